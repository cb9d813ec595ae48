"""`wirelore agent` as it runs on a node: a process of its own, a fake driver that changes, HTTP from outside."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from command import WIRELORE, environment
from fake_nvml import fake_environment
from fake_nvml.machines import Description
from ports import free_port

T = TypeVar("T")
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Running:
    """An agent, the folder of all that it writes, and its machine."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def labels(self) -> dict[str, str]:
        """Of the feature file, as NFD reads it; empty where there is none yet."""
        file = self.folder / "features" / "wirelore"
        lines = file.read_text().splitlines() if file.exists() else []
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))

    def become(self, description: Description) -> None:
        """The machine as it is from now on, whole at once."""
        description.write(self.folder / ".machine").rename(self.folder / "machine.nvml")

    def lose_driver(self) -> None:
        (self.folder / "machine.nvml").unlink()

    def get(self, path: str, accept: str = "") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path, headers={"Accept": accept} if accept else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metrics(self) -> Samples:
        status, text = self.get("/metrics")
        assert status == 200
        found = (_SAMPLE.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))
        return {(m[1], frozenset(_LABEL.findall(m[2] or ""))): float(m[3]) for m in found if m}

    def metric(self, name: str, **labels: str) -> float | None:
        """The one sample of this name with these labels, whatever others it has."""
        wanted = set(labels.items())
        values = [value for (n, told), value in self.metrics().items() if n == name and wanted <= told]
        assert len(values) <= 1
        return values[0] if values else None

    def until(self, holds: Callable[[], T], limit_s: float = 30.0) -> T:
        """The first true answer."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            try:
                if answer := holds():
                    return answer
            except OSError:  # it does not listen yet
                pass
            time.sleep(0.02)
        raise AssertionError(f"not within {limit_s:g} s:\n{self.log}")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Exit code, and the seconds that it took to end."""
        began_s = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(timeout=10), time.monotonic() - began_s

    def rss_mib(self) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))

    def cpu_s(self) -> float:
        """Processor time of the agent and of all its children that ended (proc(5): utime, stime, cutime, cstime)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def children(self) -> list[str]:
        """'PID (NAME) STATE' of each, zombies too."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                head, _, rest = stat.read_text().rpartition(")")
            except OSError:
                continue
            if rest.split()[1] == str(self.process.pid):
                found.append(f"{head}) {rest.split()[0]}")
        return found


@contextmanager
def agent(
    folder: Path, library: Path, description: Description, *options: str, interval: str = "1s", **more: str
) -> Iterator[Running]:
    """Runs until the block ends; whatever is left of it then is killed."""
    port = free_port()
    description.write(folder / "machine.nvml")
    (folder / "features").mkdir()
    told = environment(**fake_environment(library, folder / "machine.nvml"), **more)
    written = ("--features", str(folder / "features"), "--survey", str(folder / "survey.json"))
    command = [*WIRELORE, "agent", "--interval", interval, "--address", "127.0.0.1", "--port", str(port), *written]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *options], env=told, stdout=log, stderr=log, start_new_session=True)
    try:
        yield Running(process, folder, port)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
