"""`wirelore check`: what a command that runs today costs on these wires."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from configgen.checked import Check
from configgen.cli.options import Sources, output_option, put, source_options
from configgen.launch import Given, Launch, Process
from configgen.plan import Objective, Workload
from probe.errors import UsageError, one_line

_POSITIVE = click.IntRange(min=1, max=10**9)


class CommandOfWords(click.Command):
    """Its argument is a command with options of its own: who forgets the quotes is told so."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise UsageError(
                f"{one_line(error.option_name, 40)} is no option of wirelore check",
                cure="Give the command that you check in quotes, or its words after --.",
            ) from error


@click.command("check", cls=CommandOfWords)
@click.argument("command", nargs=-1, required=True, metavar="COMMAND")
@source_options
@click.option("--model", metavar="MODEL", help="The model, where COMMAND names a folder that is not here.")
@click.option("--objective", type=click.Choice([o.value for o in Objective]), help="What counts. [default: balanced]")
@click.option("--input-tokens", type=_POSITIVE, help="Prompt length. [default: 1024]")
@click.option("--output-tokens", type=_POSITIVE, help="Answer length. [default: 256]")
@click.option("--concurrency", type=_POSITIVE, help="Sequences in flight, in all. [default: as for plan]")
@click.option("--node", type=click.IntRange(min=0), default=0, metavar="N", help="COMMAND's first node. [default: 0]")
@click.option("--gpus", type=_POSITIVE, help="GPUs of the plan to compare with. [default: as many as COMMAND uses]")
@click.option("--offline", is_flag=True, help="Never ask the Hugging Face hub.")
@click.option("--no-cache", is_flag=True, help="Judge as if these wires had not been measured before.")
@click.option("--strict", is_flag=True, help="End with 1 on a broken law, or a loss beyond the uncertainty.")
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output.")
@output_option
@click.pass_context
def check_command(
    ctx: click.Context,
    command: tuple[str, ...],
    sources: Sources,
    model: str | None,
    objective: str | None,
    input_tokens: int | None,
    output_tokens: int | None,
    concurrency: int | None,
    node: int,
    gpus: int | None,
    offline: bool,
    no_cache: bool,
    strict: bool,
    format: str,
    output: Path | None,
) -> None:
    """Judge COMMAND, as 'vllm serve MODEL -tp 4' in quotes or as words after --: its laws, its wires, its loss."""
    from configgen.check import check
    from configgen.engines.reading import read_command
    from configgen.engines.rules import engine_traits
    from configgen.hub import load_model
    from probe.sources.told import with_assumed_memory

    read = read_command(command[0] if len(command) == 1 else command, _options_file)
    name = model if model is not None else read.model
    if name is None:
        raise UsageError("the command names no model", cure="Name it with --model MODEL.")
    traits = engine_traits(read.engine)
    told = {
        "objective": Objective(objective) if objective else None,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "concurrency": concurrency,
    }
    workload = Workload(
        **{key: value for key, value in told.items() if value is not None},  # type: ignore[arg-type]
        assumed=tuple(key for key, value in told.items() if value is None),
    )
    spec = load_model(name, offline=offline)
    survey = sources.survey(cache=not no_cache)
    survey = replace(survey, topology=with_assumed_memory(survey.topology))
    if node >= len(survey.topology.nodes):
        raise UsageError(
            f"--node {node}: {len(survey.topology.nodes)} nodes are known", cure="Give a smaller one, or more --from."
        )
    checked = check(survey, read, spec, workload, traits, first_node=node, gpus=gpus)
    launch = _launch(checked)
    if output is not None:
        put(_json(checked, launch), output)
    if format == "json":
        if output is None:
            put(_json(checked, launch), None)
    elif output is None:
        from configgen.report.lines import measured_line
        from configgen.report.terminal import print_check

        print_check(checked, survey.topology, launch, measured_line(survey))
    if strict and not checked.is_fine:
        ctx.exit(1)


def _launch(checked: Check) -> Launch | None:
    """What would be started instead; None where the command is the best already, or there is no plan."""
    from configgen.engines.launcher import launch_of
    from probe.errors import NoPlanError

    if checked.best is None:
        return None
    try:
        return launch_of(checked.best.plan)
    except NoPlanError:
        return None


def _options_file(name: str) -> Mapping[str, object]:
    from configgen.cli.yaml_file import read_yaml

    return read_yaml(Path(name), "Give the command where its options file lies, or without it.")


def _json(checked: Check, launch: Launch | None) -> bytes:
    from configgen.check_document import encode_check

    return encode_check(checked, tuple(map(_typed, launch.processes)) if launch is not None else ())


def _typed(process: Process) -> str:
    """As a person types it: its variables before it, and what only the start knows left to the shell."""
    variables = (f"{v.name}={shlex.quote(v.value)}" for v in process.environment)
    return " ".join((*variables, *map(_quoted, process.argv)))


def _quoted(word: str) -> str:
    if isinstance(word, Given):
        return f'"${{{word.name}}}"' + (shlex.quote(word.rest) if word.rest else "")
    return shlex.quote(word)
