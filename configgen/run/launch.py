"""A node's part of a Launch, ready to be started: words filled in, configuration files written, its programs found."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from configgen.launch import HERE, MASTER_ADDRESS, MEANINGS, VISIBLE, Given, Launch, Process
from configgen.plan import Plan
from configgen.run.place import Place, master_address
from probe.errors import UsageError, one_line

_INSTALL = {
    "vllm": "Install it with `pip install vllm`, or activate the environment that has it.",
    "sglang": "Install it with `pip install sglang`, or activate the environment that has it.",
    "trtllm-serve": "Use NVIDIA's container nvcr.io/nvidia/tensorrt-llm/release, or `pip install tensorrt-llm`.",
    "mpirun": "Install Open MPI, or load its module.",
    "torchrun": "Install it with `pip install torch`, or activate the environment that has it.",
    "python": "Activate the Python environment of the engine.",
}
"""What to do where a program is not there."""

_TORCHRUN = "TORCHELASTIC_RUN_ID"
_OF_TORCHRUN = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
"""What torchrun sets beside TORCHELASTIC_*: an engine that starts its own ranks would take them for its own, and with
TORCHELASTIC_USE_AGENT_STORE wait for a store that nobody hosts (torch/distributed/rendezvous.py)."""


@dataclass(frozen=True, slots=True)
class Start:
    """What one process is started with: its words, what it inherits not, and what it is told beside."""

    argv: tuple[str, ...]
    unset: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    port: int | None = None

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in environ.items() if name not in self.unset} | dict(self.variables)

    @property
    def line(self) -> str:
        """One line that a shell reads back as this very start; control characters are written out."""
        cleared = [word for name in self.unset for word in ("-u", name)]
        told = [f"{name}={_quoted(value)}" for name, value in self.variables]
        return " ".join([*(["env", *cleared] if cleared else []), *told, *map(_quoted, self.argv)])


def starts(
    launch: Launch, plan: Plan, place: Place, folder: Path, environ: Mapping[str, str]
) -> Iterator[tuple[Process, Start]]:
    """Each process of this node with its start. Raises UsageError for what the environment should tell and doesn't."""
    for process in launch.processes:
        if process.node == place.node:
            argv = tuple(_filled(word, plan, place, process, folder, environ) for word in process.argv)
            variables = tuple((v.name, v.value) for v in process.environment)
            if any("\0" in word for word in (*argv, *(value for _, value in variables))):
                raise UsageError("the plan has a word with a NUL, which no program can be given", cure="Plan again.")
            yield process, Start(argv, tuple(_unset(environ, dict(variables))), variables, process.port)


def write_files(launch: Launch, processes: Sequence[Process], folder: Path) -> list[Path]:
    """Writes the configuration files of these processes, each whole or not at all."""
    from configgen.deploy.config import config_text
    from probe.store import write_atomically

    files = {file.name: file for process in processes for file in process.files}
    if files:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make {folder}: {error.strerror}", cure="Name another with --folder.") from error
    for name, file in files.items():
        write_atomically(folder / name, config_text(launch, file).encode())
    return [folder / name for name in files]


def missing_program(start: Start, environ: Mapping[str, str]) -> UsageError | None:
    """The error for a program that is not on PATH, with how to get it."""
    program = start.argv[0]
    if shutil.which(program, path=start.environment(environ).get("PATH", os.defpath)) is not None:
        return None
    cure = _INSTALL.get(program, "Install it, or activate the environment that has it.")
    return UsageError(f"{one_line(program, 80)} is not on PATH", cure=cure)


def become(start: Start, environ: Mapping[str, str]) -> NoReturn:
    """Replaces this process. Raises UsageError where that fails."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores both, and a program inherits that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(start.argv[0], start.argv, start.environment(environ))  # noqa: S606 - no shell, by design
    except OSError as error:
        raise cannot_start(start, error) from error


def cannot_start(start: Start, error: OSError) -> UsageError:
    what = f"{one_line(start.argv[0], 80)} cannot be started: {error.strerror}"
    return UsageError(what, cure="Check that it is a program for this machine, and its permissions.")


def _filled(word: str, plan: Plan, place: Place, process: Process, folder: Path, environ: Mapping[str, str]) -> str:
    if not isinstance(word, Given):
        return word
    if word.name == HERE:
        return str(folder.resolve()) + word.rest
    if word.name == MASTER_ADDRESS.name:
        return master_address(plan, place, process.replica) + word.rest
    if not environ.get(word.name):
        meaning = MEANINGS.get(word.name, "what the launch's notes say")
        raise UsageError(f"{word.name} is not set, and the launch needs it", cure=f"Set it to {meaning}.")
    return environ[word.name] + word.rest


def _unset(environ: Mapping[str, str], told: Mapping[str, str]) -> Iterator[str]:
    """The plan counts all GPUs as the driver does; vLLM counts --device-ids inside CUDA_VISIBLE_DEVICES."""
    names = [VISIBLE]
    if _TORCHRUN in environ:
        names += [*_OF_TORCHRUN, *sorted(name for name in environ if name.startswith("TORCHELASTIC_"))]
    yield from (name for name in names if name in environ and name not in told)


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    plain = "".join(
        f"\\{c}" if c in "\\'" else c if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in c.encode())
        for c in word
    )
    return f"$'{plain}'"
