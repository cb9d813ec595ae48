"""What would change the decision: the speed of the wires, and the load, from which on another plan wins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import sqrt

from configgen.cost import Machine
from configgen.forecast import Forecast, forecast
from configgen.model import ModelSpec
from configgen.plan import EngineTraits, Reason, Workload
from configgen.search import Field
from probe.topology import Provenance
from probe.units import message_size

FURTHEST = 32.0
"""Times faster or slower, more or fewer: further than any two hosts or loads of one machine are apart."""
DEEPEST = 16
STEPS = 6
"""Halvings of the span on a logarithmic scale: the crossover is told to about 3 %."""


def changes(field: Field, model: ModelSpec, workload: Workload, traits: EngineTraits) -> Iterator[Reason]:
    """The crossovers against the best plan of another tp; none where nothing within the span turns the decision."""
    best = field.forecasts[0]
    other = next((f for f in field.forecasts[1:] if _differs(f, best)), None)
    if other is None or max(f.candidate.parallelism.pp for f in (best, other)) > DEEPEST:
        return

    def lead(wires: float, load: float) -> float:
        """Positive while the best one stays ahead."""
        machine = field.machine if wires == 1 else Machine(field.machine.survey, wires)
        work = replace(workload, concurrency=max(1, round(workload.concurrency * load)))
        a, b = (forecast(machine, model, f.candidate, work, traits).worth_s for f in (best, other))
        return b - a

    label = other.candidate.parallelism.label
    wires = _crossover(lambda x: lead(x, 1.0))
    part = _message(best, other)
    if wires is not None and part is not None:
        size_bytes, gbps, provenance = part
        way = "more" if wires > 1 else "less"
        yield Reason(
            "would-change",
            f"{label} wins where wires carry {wires:.2g} times as much or {way} ({gbps * wires:.3g} GB/s instead of "
            f"{gbps:.3g} for {message_size(round(size_bytes))})",
            provenance,
        )
    load = _crossover(lambda x: lead(1.0, x))
    if load is not None and (turn := round(workload.concurrency * load)) not in (0, workload.concurrency):
        side = "above" if load > 1 else "below"
        yield Reason("would-change", f"{label} wins {side} about {turn:,} sequences at once", best.provenance)


def _differs(f: Forecast, best: Forecast) -> bool:
    a, b = f.candidate.parallelism, best.candidate.parallelism
    return a.tp != b.tp and f.worth_s > best.worth_s


def _message(best: Forecast, other: Forecast) -> tuple[float, float, Provenance] | None:
    """The message on which one of them spends most: what the wires that decide carry of it."""
    parts = [p for f in (best, other) for p in f.estimate.parts if p.phase == "decode" and p.size_bytes]
    part = max(parts, key=lambda p: p.seconds, default=None)
    return None if part is None else (part.size_bytes, part.busbw_gbps, part.provenance)


def _crossover(lead: Callable[[float], float]) -> float | None:
    """The nearest factor at which the lead is lost, by halving the span on a logarithmic scale; up before down."""
    for end in (FURTHEST, 1 / FURTHEST):
        if lead(end) < 0:
            near, far = 1.0, end
            for _ in range(STEPS):
                middle = sqrt(near * far)
                near, far = (near, middle) if lead(middle) < 0 else (middle, far)
            return far
    return None
