"""The commands of a Launch as a person copies them, each on one line with its variables. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from configgen.launch import VISIBLE, Given, Launch, Variable
from probe.units import count, some


def commands(launch: Launch, most: int) -> Iterator[str]:
    """One line where it says it all, else that of each process, of many the first."""
    if launch.one_line is not None:
        first = launch.processes[0]  # its own GPUs are not those of all: the one line says them without a variable
        yield _line((v for v in first.environment if v.name != VISIBLE), (*first.command, *launch.one_line))
        return
    several = len({process.node for process in launch.processes}) > 1
    for process in launch.processes[:most]:
        yield (f"node {process.node}: " if several else "") + _line(process.environment, process.argv)


def command_notes(launch: Launch, most: int) -> Iterator[str]:
    """What to know beside the commands; one line needs nothing else."""
    if launch.one_line is not None:
        return
    written = "`wirelore plan ... -o plan.json`, then `wirelore emit plan.json -o DIR`"
    if (left := len(launch.processes) - most) > 0:
        yield f"and {count(left, 'more command')}: {written}"
    if files := [file.name for process in launch.processes for file in process.files]:
        yield f"HERE is the folder with {some(files, 2)}: {written}"
    yield from launch.notes


def _line(variables: Iterable[Variable], words: Iterable[str]) -> str:
    told = [f"{v.name}={shlex.quote(v.value)}" for v in variables]
    return " ".join([*told, *(word if isinstance(word, Given) else shlex.quote(word) for word in words)])
