"""The Launch noun: for one engine, what each process is started with. No engine flag exists above this line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from probe.topology import require

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the command line: its words ('--tensor-parallel-size', '8') and a one-line reason."""

    words: tuple[str, ...]
    reason: str

    def __post_init__(self) -> None:
        require(len(self.words) > 0 and self.words[0].startswith("-"), "a flag starts with a dash")
        require("\n" not in self.reason, "a reason is one line")


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable and a one-line reason."""

    name: str
    value: str
    reason: str

    def __post_init__(self) -> None:
        require(_VARIABLE.fullmatch(self.name) is not None, "a variable's name is letters, digits and underscores")
        require("\n" not in self.reason, "a reason is one line")


@dataclass(frozen=True, slots=True)
class Process:
    """One command on one node: `node` is its position in the topology, `replica` the copy of the model it serves."""

    node: int
    hostname: str | None
    replica: int
    command: tuple[str, ...]
    flags: tuple[Flag, ...]
    environment: tuple[Variable, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        return self.command + tuple(word for flag in self.flags for word in flag.words)


@dataclass(frozen=True)
class Launch:
    """All processes of a plan for one engine. `one_line` is None where one command on one node can't say it all."""

    engine: str
    engine_version: str
    processes: tuple[Process, ...]
    notes: tuple[str, ...] = ()
    one_line: tuple[str, ...] | None = None
    not_one_line_because: str | None = None

    def __post_init__(self) -> None:
        require(
            (self.one_line is None) != (self.not_one_line_because is None), "one line of flags, or why there is none"
        )
