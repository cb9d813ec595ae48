"""The Launch noun: for one engine, what each process is started with. No engine flag exists above this line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from probe.topology import require

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Given(str):
    """A word that is known only where the command starts: the variable of this name, and what follows it.

    Its text is '$NAME' and the rest, but only its type makes it one: a model that is called '$HOME' stays a name.
    """

    __slots__ = ("name", "rest")
    name: str
    rest: str

    def __new__(cls, name: str, rest: str = "") -> Given:
        require(_VARIABLE.fullmatch(name) is not None, "a variable's name is letters, digits and underscores")
        word = super().__new__(cls, f"${name}{rest}")
        word.name, word.rest = name, rest
        return word


MASTER_ADDRESS = Given("MASTER_ADDR")
"""Of a replica's first node; told by the launcher's environment, for no address is copied into a plan."""

HERE = "HERE"
"""The variable that names the folder of the emitted files."""

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that names the GPUs that a process may see."""

MEANINGS = {
    "MASTER_ADDR": "the address of the first node",
    "HOSTS": "the nodes of the replica and their numbers of GPUs as mpirun takes them, like a:8,b:8",
    "CHECKPOINT": "the folder of the Megatron checkpoint",
    "MEGATRON": "the folder that holds the sources of Megatron-LM",
}
"""What to set a variable to that the starting environment must tell."""

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


def is_hostname(told: str | None) -> bool:
    """Whether it is a name that a resolver takes, and nothing that another program could read as more."""
    return told is not None and _HOSTNAME.fullmatch(told) is not None


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


Value = bool | int | float | str | list["Value"] | dict[str, "Value"]
"""What a configuration file may hold."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One entry of an engine's configuration file and a one-line reason."""

    key: str
    value: Value
    reason: str

    def __post_init__(self) -> None:
        require("\n" not in self.reason, "a reason is one line")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file that a process is started with, in the engine's own format; its flags refer to it by Given(HERE, ...)."""

    name: str
    settings: tuple[Setting, ...]

    def __post_init__(self) -> None:
        require(_FILE.fullmatch(self.name) is not None, "a file's name is letters, digits, dots and dashes")


@dataclass(frozen=True, slots=True)
class Process:
    """One command on one node: `node` is its position in the topology, `replica` the copy of the model it serves."""

    node: int
    hostname: str | None
    replica: int
    command: tuple[str, ...]
    flags: tuple[Flag, ...]
    environment: tuple[Variable, ...] = ()
    port: int | None = None
    """Where it answers requests; None where another process of its replica does."""
    files: tuple[ConfigFile, ...] = ()
    said_by_command: tuple[Setting, ...] = ()
    """What `command` says in words of its own, the model above all, as entries of the engine's configuration file."""

    @property
    def argv(self) -> tuple[str, ...]:
        return self.command + tuple(word for flag in self.flags for word in flag.words)

    @property
    def counts_all_gpus(self) -> bool:
        """Whether its GPUs are counted among all, so that a launcher's choice of visible ones must not reach it."""
        return all(variable.name != VISIBLE for variable in self.environment)


@dataclass(frozen=True)
class Launch:
    """All processes of a plan for one engine. `one_line` is None where one command on one node can't say it all."""

    engine: str
    engine_version: str
    processes: tuple[Process, ...]
    config_flag: str | None = None
    """The flag by which the engine takes all others from a file; None where it has no such file."""
    notes: tuple[str, ...] = ()
    one_line: tuple[str, ...] | None = None
    not_one_line_because: str | None = None

    def __post_init__(self) -> None:
        require(
            (self.one_line is None) != (self.not_one_line_because is None), "one line of flags, or why there is none"
        )
