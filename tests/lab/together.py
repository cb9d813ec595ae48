"""`wirelore measure` in every node of a lab at once: its processes, its words, its survey."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from command import WIRELORE, environment
from lab import Lab, Node

from probe.measurement import Survey
from probe.store import decode_survey

PORT = 29611
TORCH_S = 60.0
"""How long the first point may take: torch is imported once per node, on a machine with other things to do."""


@dataclass(frozen=True)
class Ended:
    """How one node's command ended, and what it said on standard error."""

    code: int
    words: str


class Measuring:
    """One command per node, with the same options and its own -o; what still runs at the end of the block is killed.

    `nodes` tells how many are said to take part, where more are expected than the lab has; `only` which are started.
    """

    def __init__(
        self,
        lab: Lab,
        folder: Path,
        machine: str,
        *options: str,
        nodes: int | None = None,
        only: Sequence[int] | None = None,
    ) -> None:
        self.lab, self.folder, self.survey_file = lab, folder, folder / "node0.json"
        common = ["measure", "--from", machine, "--backend", "gloo", "--format", "json", *options]
        self.commands = [[*common, "-o", str(folder / f"node{i}.json")] for i in range(len(lab.nodes))]
        if len(lab.nodes) > 1:
            where = f"{lab.nodes[0].address}:{PORT}"
            for i, command in enumerate(self.commands):
                command[1:1] = ["--nnodes", str(nodes or len(lab.nodes)), "--node-rank", str(i), "--master", where]
        self.started = tuple(range(len(lab.nodes)) if only is None else only)
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Measuring:
        self._processes = [
            self._start(self.lab.nodes[i], self.commands[i], self.folder / f"node{i}.txt") for i in self.started
        ]
        return self

    def _start(self, node: Node, command: Sequence[str], words: Path) -> subprocess.Popen[bytes]:
        with words.open("wb") as file:
            return subprocess.Popen(
                node.inside(*WIRELORE, *command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=environment(),
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def survey(self) -> Survey:
        return decode_survey(self.survey_file.read_bytes(), where=str(self.survey_file))

    def points(self) -> set[tuple[object, ...]]:
        """What the file holds by now: each curve with each of its sizes."""
        if not self.survey_file.exists():
            return set()
        return {(c.key, c.members, sample.size_bytes) for c in self.survey().curves for sample in c.samples}

    def wait_for_points(self, count: int = 1, within_s: float = TORCH_S) -> set[tuple[object, ...]]:
        """The finished points as soon as there are so many."""
        ends_s = time.monotonic() + within_s
        while len(found := self.points()) < count:
            gone = [i for i, process in zip(self.started, self._processes, strict=True) if process.poll() is not None]
            assert not gone, f"node {gone[0]} ended before {count} points: {self.words(gone[0])}"
            assert time.monotonic() < ends_s, f"{len(found)} of {count} points in {within_s} s"
            time.sleep(0.02)
        return found

    def words(self, node: int) -> str:
        return (self.folder / f"node{node}.txt").read_text(errors="replace")

    def ended(self, within_s: float) -> list[Ended]:
        """All of them, who must have ended by themselves by then."""
        ends_s = time.monotonic() + within_s
        for i, process in zip(self.started, self._processes, strict=True):
            try:
                process.wait(max(0.0, ends_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"node {i} still runs after {within_s:g} s: {self.words(i)}") from None
        return [
            Ended(process.returncode, self.words(i)) for i, process in zip(self.started, self._processes, strict=True)
        ]

    def nothing_left(self, within_s: float = 2.0) -> bool:
        """Whether no process runs in any node; the kernel needs a moment to take down what was killed."""
        ends_s = time.monotonic() + within_s
        while any(node.processes() for node in self.lab.nodes):
            if time.monotonic() > ends_s:
                return False
            time.sleep(0.02)
        return True
