"""What `wirelore measure` costs: wall time against its budget, start-up, processor time, the parent's memory.

    benchmarks/measure_cost.py [--runs N] [--budget SECONDS] [--ranks 2]

Each run is the whole command with gloo ranks on this host, torch's import included. `start_s` is the time until the
first finished point is in the file, `points` how many sizes of all operations it holds at the end, `cpu_s` the time of
all processes together. Prints a table and one `name: value` line per figure; exits 1 where the worst run takes more
than 1.2 times its budget, or leaves a process behind.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from measure_run import Run, measuring

OVERRUN = 1.2


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    wall_s: float
    start_s: float
    cpu_s: float
    parent_mib: float
    points: int
    left: int


def cost(folder: Path, budget_s: float, ranks: int) -> Cost:
    began_s = time.perf_counter()
    with measuring(folder, "--budget", f"{budget_s}s", source=f"machine:l4-{ranks}") as run:
        start_s = run.until(lambda: time.perf_counter() - began_s if run.file.exists() else None)
        parent_mib = peak_mib(run.process.pid)
        _, status, usage = os.wait4(run.process.pid, 0)
        wall_s = time.perf_counter() - began_s
        run.process.returncode = os.waitstatus_to_exitcode(status)
        if run.process.returncode:
            sys.exit(f"exit {run.process.returncode}: {run.err}")
        cpu_s = usage.ru_utime + usage.ru_stime
        return Cost(wall_s, start_s, cpu_s, parent_mib, len(run.points()), still_there(run))


def peak_mib(pid: int) -> float:
    """Of a process that runs, by now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def still_there(run: Run) -> int:
    """Processes that outlive the command by more than a moment."""
    try:
        run.gone(1.0)
    except AssertionError:
        return len(run.alive())
    return 0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--budget", type=float, default=10.0, metavar="SECONDS")
    options.add_argument("--ranks", type=int, default=2, choices=(2, 4, 8))
    given = options.parse_args()
    print(f"{'wall s':>8} {'start s':>8} {'cpu s':>8} {'parent MiB':>11} {'points':>7} {'left':>5}")
    costs = []
    for _ in range(given.runs):
        with tempfile.TemporaryDirectory() as folder:
            one = cost(Path(folder), given.budget, given.ranks)
        print(
            f"{one.wall_s:>8.2f} {one.start_s:>8.2f} {one.cpu_s:>8.2f} {one.parent_mib:>11.0f} "
            f"{one.points:>7} {one.left:>5}"
        )
        costs.append(one)
    worst_s = max(one.wall_s for one in costs)
    left = sum(one.left for one in costs)
    print(f"budget_s: {given.budget:g}")
    print(f"wall_s: {statistics.median(one.wall_s for one in costs):.2f}")
    print(f"worst_wall_s: {worst_s:.2f}")
    print(f"start_s: {statistics.median(one.start_s for one in costs):.2f}")
    print(f"cpu_s: {statistics.median(one.cpu_s for one in costs):.2f}")
    print(f"parent_mib: {max(one.parent_mib for one in costs):.0f}")
    print(f"points: {statistics.median(one.points for one in costs):.0f}")
    print(f"processes_left: {left}")
    return 1 if worst_s > OVERRUN * given.budget or left else 0


if __name__ == "__main__":
    sys.exit(main())
