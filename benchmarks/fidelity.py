"""Whether `wirelore measure` tells what the wires do: gloo over shaped links, with iperf3 beside it in the same run.

    benchmarks/fidelity.py [--only 2x2] [--budget 40] [--keep DIR]

Each wiring is a lab of network namespaces at one switch (tests/lab/lab.py), shaped in both directions to 1 Gbit/s and
to 200 Mbit/s: 2x1 and 4x1 are nodes with one rank, 2x2 are two nodes with two ranks each. iperf3 measures the same
links before and after; a ratio is the Survey's median busbw over the mean of the two. Judged are all sizes of at least
64 token-bucket bursts, since a message below the burst beats the line.

**What the ring allows.** Ranks 0..n-1 form a ring in node order; in an all-reduce of S bytes every rank sends
2 (n-1)/n S bytes to the next. On k nodes exactly k edges of the ring leave a node, one out of and one into each, so
every port carries one flow in each direction, whether the node has one rank or two. With a port's bandwidth B the time
is at least 2 (n-1)/n S / B, and busbw = 2 (n-1)/n S / t is at most B: on 2x1, 2x2 and 4x1 alike the ring may reach what
iperf3 reaches on one link. p2p moves S bytes over one link: at most B, in both directions at once too.

**Two islands' worth.** On 2x2 the two GPUs of a node share an NVLink bridge in the topology and loopback in the lab:
the Survey must show them faster than the wire between the nodes by FAST times at least, as a curve of its own.

Prints a table and one `name: value` line per figure; exits 1 where a bar isn't reached, 0 with "skipped: reason" where
no lab can be built.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "lab"))

from lab import GBIT, MBIT, Lab, missing
from together import Measuring

from probe.curve import algbw_gbps, bus_factor
from probe.islands import islands
from probe.measurement import Curve, Survey

PAIR_BAR, RING_BAR, FAST = 0.05, 0.06, 3.0
"""Deviation from iperf3 that 2x1 (and every p2p), and rings of four, may have; how much faster a node is inside."""
_END_S = 60.0
"""What a run may take beside its budget."""


@dataclass(frozen=True)
class Wiring:
    name: str
    nodes: int
    machine: str
    patience: int = 1
    """Budgets that it takes: with four ranks there is more to measure, and each time is longer."""

    @property
    def bar(self) -> float:
        return PAIR_BAR if self.name == "2x1" else RING_BAR


WIRINGS = (
    Wiring("2x1", 2, "machine:l4-1"),
    Wiring("2x2", 2, "machine:h100-nvl-pairs-2", patience=2),
    Wiring("4x1", 4, "machine:l4-1", patience=2),
)
RATES = (GBIT, 200 * MBIT)


@dataclass(frozen=True)
class Run:
    """A survey of shaped links, and what iperf3 says of them, in 1e9 bytes/s, before and after."""

    wiring: Wiring
    rate_bits_s: int
    burst_bytes: int
    iperf_gbps: tuple[float, float]
    survey: Survey

    @property
    def wire_gbps(self) -> float:
        return mean(self.iperf_gbps)

    @property
    def name(self) -> str:
        return f"{self.wiring.name}_{self.rate_bits_s // MBIT}m"


@dataclass(frozen=True)
class Ratio:
    """One size of one operation across the nodes, beside iperf3."""

    run: Run
    operation: str
    size_bytes: int
    samples: int
    busbw_gbps: float

    @property
    def value(self) -> float:
        return self.busbw_gbps / self.run.wire_gbps

    @property
    def bar(self) -> float:
        return self.run.wiring.bar if self.operation == "all_reduce" else PAIR_BAR


def measured(wiring: Wiring, rate_bits_s: int, budget_s: int, folder: Path) -> Run:
    """Runs the lab once, iperf3 first and last."""
    with Lab(wiring.nodes, rate_bits_s) as lab:
        first, last = lab.nodes[0], lab.nodes[-1]
        before = lab.iperf_bits_s(first, last, 3)
        largest_mib = max(1, (1 << (2 * 64 * lab.burst_bytes).bit_length()) >> 20)
        options = ("--budget", f"{budget_s}s", "--largest", f"{largest_mib}MiB")
        with Measuring(lab, folder, wiring.machine, *options) as measuring:
            for i, ended in enumerate(measuring.ended(budget_s + _END_S)):
                if ended.code:
                    sys.exit(f"{wiring.name}: node {i} ended with {ended.code}: {ended.words}")
            survey = measuring.survey()
        after = lab.iperf_bits_s(first, last, 3)
        return Run(wiring, rate_bits_s, lab.burst_bytes, (before / 8e9, after / 8e9), survey)


def ratios(run: Run) -> Iterator[Ratio]:
    """Every judged size of the all-reduce over all ranks, and of p2p between two nodes."""
    ranks = sum(len(node.gpus) for node in run.survey.topology.nodes)
    for curve in run.survey.curves:
        nodes = {member.node for member in curve.members}
        is_ring = curve.key.operation == "all_reduce" and len(curve.members) == ranks
        is_pair = curve.key.operation == "p2p" and len(nodes) == 2 and curve.key.group.concurrent_groups == 1
        if is_ring or is_pair:
            label = f"p2p_{curve.key.direction}" if is_pair else "all_reduce"
            for sample in curve.samples:
                if sample.size_bytes >= 64 * run.burst_bytes:
                    busbw = algbw_gbps(sample.size_bytes, sample.p50_s) * bus_factor(curve.key.operation, curve.ranks)
                    yield Ratio(run, label, sample.size_bytes, len(sample.times_s), busbw)


def inside_over_across(run: Run) -> float | None:
    """How many times faster the all-reduce of one node's GPUs is than that of all, each at its largest size."""

    def best_gbps(curves: list[Curve]) -> float | None:
        last = [(c.samples[-1], bus_factor(c.key.operation, c.ranks)) for c in curves]
        return max((algbw_gbps(s.size_bytes, s.p50_s) * factor for s, factor in last), default=None)

    rings = [c for c in run.survey.curves if c.key.operation == "all_reduce"]
    inside = best_gbps([c for c in rings if len({m.node for m in c.members}) == 1])
    across = best_gbps([c for c in rings if len({m.node for m in c.members}) > 1])
    return inside / across if inside and across else None


def why_not() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    return missing()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[wiring.name for wiring in WIRINGS], help="one wiring")
    parser.add_argument(
        "--budget",
        type=int,
        default=40,
        metavar="SECONDS",
        help="of a run at 1 Gbit/s; at 200 Mbit/s, and with four ranks, twice that (default: 40)",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leaves the surveys there")
    arguments = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"skipped: {reason}: NOTHING is known of how true the measured bandwidths are")
        return 0
    failures: list[str] = []
    figures: dict[str, float] = {}
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'wiring':7}{'Mbit/s':>7} {'operation':13}{'MiB':>5}{'runs':>5}{'busbw':>9}{'iperf3':>9}{'ratio':>7}")
    for wiring in WIRINGS:
        if arguments.only in (None, wiring.name):
            for rate in RATES:
                budget_s = arguments.budget * wiring.patience * (1 if rate == GBIT else 2)
                with tempfile.TemporaryDirectory(prefix="wirelore-fidelity-") as folder:
                    run = measured(wiring, rate, budget_s, Path(folder))
                    if arguments.keep:
                        arguments.keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(Path(folder) / "node0.json", arguments.keep / f"{run.name}.json")
                judge(run, figures, failures)
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def judge(run: Run, figures: dict[str, float], failures: list[str]) -> None:
    """Prints what one run says, and adds its figures: per operation the ratio that is farthest from 1."""
    found = list(ratios(run))
    for ratio in found:
        print(
            f"{run.wiring.name:7}{run.rate_bits_s // MBIT:>7} {ratio.operation:13}{ratio.size_bytes / 2**20:>5.0f}"
            f"{ratio.samples:>5}{ratio.busbw_gbps:>9.4f}{run.wire_gbps:>9.4f}{ratio.value:>7.3f}",
            flush=True,
        )
    for operation in ("all_reduce", "p2p_forward", "p2p_backward", "p2p_both"):
        here = [ratio for ratio in found if ratio.operation == operation]
        if here:
            worst = max(here, key=lambda ratio: abs(ratio.value - 1))
            figures[f"{run.name}_{operation}_ratio"] = worst.value
            if abs(worst.value - 1) > worst.bar:
                failures.append(f"{run.name} {operation}: {worst.value:.3f} of iperf3, bar {worst.bar:.0%} off")
        elif operation in ("all_reduce", "p2p_forward"):
            failures.append(f"{run.name} {operation}: no size of 64 bursts was measured")
    figures[f"{run.name}_iperf3_after_over_before"] = run.iperf_gbps[1] / run.iperf_gbps[0]
    if any(len(node.gpus) > 1 for node in run.survey.topology.nodes):
        times = inside_over_across(run)
        figures[f"{run.name}_inside_over_across"] = times or 0.0
        figures[f"{run.name}_islands"] = len(islands(run.survey.topology))
        if times is None or times < FAST or len(islands(run.survey.topology)) != len(run.survey.topology.nodes):
            failures.append(
                f"{run.name}: inside a node {times or 0:.1f} times the wire, bar {FAST:g} and one island each"
            )


if __name__ == "__main__":
    sys.exit(main())
