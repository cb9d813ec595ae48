"""The plan of a measurement as lines: what, on which GPUs, why, how long. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from probe.bench.conductor import RATES, Visit
from probe.bench.schedule import Step
from probe.topology import GpuRef, Topology
from probe.units import count

_MOST_GROUPS = 3


def rehearsal_lines(
    topology: Topology, steps: Sequence[Step], visits: Sequence[tuple[Visit, float]], budget_s: float | None
) -> list[str]:
    """A line per step in the order of use: its sizes and rounds, the estimated seconds, its groups, what it answers."""
    sizes = Counter(step for step, _ in {(visit.step, visit.size_bytes) for visit, _ in visits})
    rounds = Counter(visit.step for visit, _ in visits)
    seconds: Counter[int] = Counter()
    for visit, took_s in visits:
        seconds[visit.step] += took_s  # type: ignore[assignment]
    limit = "without a limit" if budget_s is None else f"in {budget_s:g} s"
    lines = [
        f"would measure {count(len(steps), 'step')} {limit}, estimated {sum(seconds.values()):.1f} s beside the start",
        "(estimates from catalog figures; sizes are visited again while time is left)",
        "",
        f"{'sizes':>5} {'visits':>6} {'est. s':>6}  what",
    ]
    if rounds[RATES]:
        lines.append(f"{'-':>5} {rounds[RATES]:>6} {seconds[RATES]:>6.1f}  memory, GEMM and copies of every GPU")
    for i, step in enumerate(steps):
        head = f"{sizes[i]:>5} {rounds[i]:>6} {seconds[i]:>6.1f}" if rounds[i] else f"{'no time left':>19}"
        lines.append(f"{head}  {step.label}: {_groups(topology, step)}")
        lines.append(f"{'':>19}  {step.answers}")
    return lines


def _groups(topology: Topology, step: Step) -> str:
    shown = [_group(topology, group) for group in step.groups[:_MOST_GROUPS]]
    more = len(step.groups) - len(shown)
    return "GPUs " + " | ".join(shown) + (f" | {more} more" if more else "")


def _group(topology: Topology, group: Sequence[GpuRef]) -> str:
    named = [f"{m.node}:{m.gpu}" if len(topology.nodes) > 1 else str(m.gpu) for m in group]
    return ",".join(named) if len(named) <= 8 else f"{','.join(named[:3])}...{named[-1]} ({len(named)})"
