"""The group of commands, each loaded when it is called: start-up time is a feature."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from probe import __version__
from probe.errors import UsageError, WireloreError

_COMMANDS = {
    "probe": ("configgen.cli.probe", "Read this machine's topology, or a description of one."),
    "plan": ("configgen.cli.plan", "Choose TP, PP, DP, EP and the GPU order for a model."),
    "emit": ("configgen.cli.emit", "Write a plan as launch commands."),
    "models": ("configgen.cli.tables", "List the models whose facts are built in."),
    "machines": ("configgen.cli.tables", "List the synthetic machines."),
    "schema": ("configgen.cli.tables", "Print the JSON Schema of a document."),
    "doctor": ("configgen.cli.doctor", "Say what is missing on this machine and how to get it."),
}
_CONFIG_LIMIT_BYTES = 1 << 18


class LazyGroup(click.Group):
    """Imports a command's module only when that command runs; --help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name][0]), f"{cmd_name}_command")
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "WIRELORE"},
)
@click.option("--config", type=click.Path(path_type=Path), help="YAML file with options per command; flags win.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, message="wirelore %(version)s")
@click.pass_context
def wirelore(ctx: click.Context, config: Path | None, debug: bool) -> None:
    """What the wires know: reads a GPU machine's wires and says how to cut a model across them."""
    if config is not None:
        ctx.default_map = _options_from(config)
    if ctx.invoked_subcommand is None:
        _one_line()


def _one_line() -> None:
    from configgen.report.lines import machine_line
    from probe.sources.registry import read_source

    try:
        click.echo(machine_line(read_source(None)))
    except WireloreError as error:
        click.echo(f"no GPU here: {error}")
        click.echo("Next: wirelore plan llama-3.1-70b --from machine:hgx-h100, or wirelore doctor.")


def _options_from(path: Path) -> dict[str, dict[str, Any]]:
    """Options per command: {'plan': {'engine': 'vllm'}}. Raises UsageError on anything else."""
    import yaml

    cure = "Write it as `command:` with `option: value` lines below."
    try:
        with path.open("rb") as stream:
            data = stream.read(_CONFIG_LIMIT_BYTES + 1)
        if len(data) > _CONFIG_LIMIT_BYTES:
            raise UsageError(f"{path} is larger than {_CONFIG_LIMIT_BYTES >> 10} KiB", cure=cure)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(data, yaml.SafeLoader)):
            raise UsageError(f"{path} uses YAML aliases, which are not read", cure=cure)
        told = yaml.safe_load(data)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", cure=cure) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"{path} is no readable YAML", cure=cure) from error
    options = told if isinstance(told, dict) else {}
    if not isinstance(told, dict | None) or not all(isinstance(v, dict) for v in options.values()):
        raise UsageError(f"{path} holds no options", cure=cure)
    unknown = [str(name) for name in options if name not in _COMMANDS]
    if unknown:
        raise UsageError(f"{path} names no command of wirelore: {unknown[0][:40]}", cure=cure)
    return {str(name): {str(k).replace("-", "_"): v for k, v in given.items()} for name, given in options.items()}
