"""`wirelore measure` as processes that can be watched and hurt: found by a mark in their environment, never by name."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from command import WIRELORE, environment

from probe.measurement import CurveKey, Survey
from probe.store import decode_survey
from probe.topology import GpuRef

Found = TypeVar("Found")
Points = dict[tuple[CurveKey, tuple[GpuRef, ...], int], tuple[tuple[float, ...], ...]]
"""(Key, members, size) -> times by round."""

START_S = 60.0
"""For torch to be imported while other tests keep the cores busy."""
MARK = "MEASURE_TEST_MARK"
"""The variable by which all processes of one run are known, whoever started them."""
_TICK_S = 0.02


class Run:
    """One command in the background. Rank processes are told by their order of birth, as the node forks them."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        output: Path | None = None,
        environ: dict[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.file = output or folder / "survey.json"
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *before,
                    *WIRELORE,
                    "measure",
                    "--backend",
                    "gloo",
                    "--format",
                    "json",
                    "-o",
                    str(self.file),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=environment(**{**(environ or {}), MARK: self.mark}),
                start_new_session=True,
            )

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def out(self) -> str:
        return self._out.read_text()

    def alive(self) -> dict[int, int]:
        return marked(self.mark)

    def node(self) -> int | None:
        """The process that imports torch."""
        alive = self.alive()
        return next((p for p in alive if b"probe.bench.node" in _command(p) and alive[p] == self.process.pid), None)

    def ranks(self, count: int) -> list[int] | None:
        """None until all of them live."""
        node, alive = self.node(), self.alive()
        found = [pid for pid, parent in alive.items() if parent == node]
        return found if len(found) == count else None

    def survey(self) -> Survey:
        return decode_survey(self.file.read_bytes(), where="the file")

    def points(self) -> Points:
        """What the file holds; {} before there is a file."""
        if not self.file.exists():
            return {}
        curves = self.survey().curves
        return {(c.key, c.members, s.size_bytes): s.rounds_s for c in curves for s in c.samples}

    def until(self, what: Callable[[], Found | None], within_s: float = START_S) -> Found:
        """What it gives as soon as it gives something; the command must live until then."""
        ends_s = time.monotonic() + within_s
        while time.monotonic() < ends_s:
            if found := what():
                return found
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.err}"
            time.sleep(_TICK_S)
        raise AssertionError(f"nothing within {within_s:g} s: {self.err}")

    def ended(self, within_s: float) -> int:
        """The exit code of a command that must end by then, and leave no process behind."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {within_s:g} s: {self.err}") from None
        self.gone(2.0)
        return code

    def gone(self, within_s: float) -> None:
        """Every process has ended by then; the kernel needs a moment to take down what was killed."""
        gone(self.mark, within_s)

    def kill(self) -> None:
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def measuring(
    folder: Path,
    *arguments: str,
    source: str = "machine:l4-2",
    output: Path | None = None,
    environ: dict[str, str] | None = None,
    before: Sequence[str] = (),
) -> Iterator[Run]:
    """A run that is killed, with all of its processes, when the test ends however it does. `before` goes in front."""
    folder.mkdir(exist_ok=True)
    run = Run(folder, "--from", source, *arguments, output=output, environ=environ, before=before)
    try:
        yield run
    finally:
        run.kill()


def marked(mark: str) -> dict[int, int]:
    """Every process with this mark that lives: its id and its parent's, in the order of birth."""
    sign = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent, born = _stat(int(entry.name))
                if state != "Z" and sign in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((born, int(entry.name), parent))
            except OSError:
                continue
    return {pid: parent for _, pid, parent in sorted(found)}


def gone(mark: str, within_s: float) -> None:
    """None is left by then."""
    ends_s = time.monotonic() + within_s
    while alive := marked(mark):
        assert time.monotonic() < ends_s, {pid: _command(pid) for pid in alive}
        time.sleep(_TICK_S)


def _stat(pid: int) -> tuple[str, int, int]:
    """State, parent and time of birth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[19])


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
