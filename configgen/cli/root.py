"""The group of commands, each loaded when it is called: start-up time is a feature."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from probe import __version__
from probe.errors import UsageError

_COMMANDS = {
    "probe": ("configgen.cli.probe", "Read this machine's topology, or a description of one."),
    "measure": ("configgen.cli.measure", "Measure the wires with torch.distributed."),
    "merge": ("configgen.cli.merge", "Join surveys of many nodes into one of the cluster."),
    "plan": ("configgen.cli.plan", "Choose TP, PP, DP, EP and the GPU order for a model."),
    "emit": ("configgen.cli.emit", "Write a plan as launch commands."),
    "launch": ("configgen.cli.launch", "Start this node's part of a plan."),
    "init": ("configgen.cli.init", "Plan before the engine starts, alone or with a group of nodes."),
    "drift": ("configgen.cli.drift", "Say whether a plan still fits what is there."),
    "check": ("configgen.cli.check", "Say what a command that runs today costs on these wires."),
    "audit": ("configgen.cli.audit", "Say whether this machine is as its hardware should be."),
    "compare": ("configgen.cli.compare", "Say whether numbers measured on A carry over to B."),
    "history": ("configgen.cli.history", "Say what changed since, link by link."),
    "models": ("configgen.cli.tables", "List the models whose facts are built in."),
    "machines": ("configgen.cli.tables", "List the synthetic machines."),
    "schema": ("configgen.cli.tables", "Print the JSON Schema of a document."),
    "doctor": ("configgen.cli.doctor", "Say what is missing on this machine and how to get it."),
}
_CONFIG_CURE = "Write it as `command:` with `option: value` lines below."


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
@click.option(
    "--config", type=click.Path(path_type=Path, readable=False), help="YAML file with options per command; flags win."
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, message="wirelore %(version)s")
@click.pass_context
def wirelore(ctx: click.Context, config: Path | None, debug: bool) -> None:
    """What the wires know: reads a GPU machine's wires and says how to cut a model across them."""
    if config is not None:
        ctx.default_map = {name: _options_of(ctx, name, told, config) for name, told in _read_config(config).items()}
    if ctx.invoked_subcommand is None:
        from configgen.cli.options import Sources
        from configgen.report.lines import machine_line

        survey = Sources((), None, None).survey()
        click.echo(machine_line(survey.topology, survey))


def _options_of(ctx: click.Context, name: str, told: dict[Any, Any], path: Path) -> dict[str, Any]:
    """A command's options as click wants them: by its own names, texts, and a list where an option repeats."""
    command = wirelore.get_command(ctx, name)
    parameters = command.params if command else []
    known = {spelled.lstrip("-"): p for p in parameters if isinstance(p, click.Option) for spelled in p.opts}
    given = {str(option).replace("_", "-"): value for option, value in told.items() if value is not None}
    unknown = [option for option in given if option not in known]
    if command is None or unknown:
        what = f"option of `wirelore {name}`: {unknown[0][:40]}" if command else f"command of wirelore: {name[:40]}"
        raise UsageError(f"{path} names no {what}", cure=_CONFIG_CURE)
    options: dict[str, Any] = {}
    for option, value in given.items():
        repeats = known[option].multiple
        values = value if repeats and isinstance(value, list) else [value]
        if any(isinstance(v, (list, dict)) for v in values):
            raise UsageError(f"{path}: {option} of `wirelore {name}` is no single value", cure=_CONFIG_CURE)
        options[str(known[option].name)] = [str(v) for v in values] if repeats else str(value)
    return options


def _read_config(path: Path) -> dict[str, dict[Any, Any]]:
    """Options per command: {'plan': {'engine': 'vllm'}}. Raises UsageError on anything else."""
    from configgen.cli.yaml_file import read_yaml

    told = read_yaml(path, _CONFIG_CURE)
    if not all(isinstance(options, dict) for options in told.values()):
        raise UsageError(f"{path} holds no options", cure=_CONFIG_CURE)
    return {str(name): options for name, options in told.items()}
