"""`wirelore emit`: a plan as launch commands."""

from __future__ import annotations

import re
from pathlib import Path

import click

from configgen.cli.options import flags_line, read_plan
from configgen.engines.launcher import launch_of
from configgen.engines.rules import engine_traits
from configgen.launch import Launch
from probe.errors import UsageError, one_line
from probe.units import count, some

TARGETS = ("flags", "shell", "yaml", "env", "json")

_HEAD_BYTES = 8192


@click.command("emit")
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path, readable=False))
@click.option("--engine", metavar="NAME[@VERSION]", help="The engine that the plan must be for; others need their own.")
@click.option("--target", type=click.Choice(TARGETS), default="shell", show_default=True, help="Form.")
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path, readable=False), help="Folder to write into."
)
def emit_command(plan_file: Path, engine: str | None, target: str, output: Path | None) -> None:
    """Write PLAN (from `wirelore plan -o plan.json`) as launch commands: one line of flags, or a script per node."""
    plan = read_plan(plan_file)
    if engine is not None and engine_traits(engine) != plan.engine:
        raise UsageError(
            f"the plan was made under the laws of {plan.engine.engine} {plan.engine.version}, not {engine[:40]}",
            cure=f"Plan again with --engine {engine[:40]}.",
        )
    launch = launch_of(plan)
    if target == "flags":
        click.echo(flags_line(launch))
        return
    files = _files(launch, target)
    if output is None:
        if len(files) > 1:
            raise UsageError(f"the plan needs {count(len(files), 'file')}", cure="Give a folder with -o DIR.")
        click.echo(next(iter(files.values())), nl=False)
        return
    from probe.store import write_atomically

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {output}: {error.strerror}", cure="Name a folder you can write to.") from error
    if left := _left(output, files, target):
        raise UsageError(
            f"{output} has {some(left, 4)} of another plan, which would start beside this one",
            cure=f"Remove {'it' if len(left) == 1 else 'them'}, or name another folder.",
        )
    for name, text in files.items():
        write_atomically(output / name, text.encode(), executable=name.endswith(".sh"))
    click.echo(f"wrote {count(len(files), 'file')} into {one_line(str(output))}", err=True)


_NAMES = {
    "shell": r"node[0-9]+\.sh|replica[0-9]+\.yaml|proxy\.conf",
    "yaml": r"(node[0-9]+-)?replica[0-9]+\.yaml",
    "env": r"node[0-9]+-replica[0-9]+\.env",
    "json": "launch.json",
}
"""What the files of a target are called."""


def _left(folder: Path, files: dict[str, str], target: str) -> list[str]:
    """Files of this target that an earlier plan left there and this one would not replace; a person's own are none."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.name not in files and path.is_file())
        named = [name for name in names if re.fullmatch(_NAMES[target], name)]
        return [name for name in named if _is_ours(folder / name)]
    except OSError:  # a folder that may be written and not read
        return []


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return b", written by wirelore" in file.read(_HEAD_BYTES)


def _files(launch: Launch, target: str) -> dict[str, str]:
    """File name -> text; each form is loaded when it is asked for."""
    match target:
        case "shell":
            from configgen.deploy.shell import shell_scripts

            return shell_scripts(launch)
        case "yaml":
            from configgen.deploy.config import flags_as_files

            return flags_as_files(launch)
        case "env":
            from configgen.deploy.env import env_files

            return env_files(launch)
    from configgen.deploy.listing import listing

    return {"launch.json": listing(launch)}
