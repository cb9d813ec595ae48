"""What was not measured, or could not be judged: a missing figure is no good one. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from probe.bench.schedule import Step, steps
from probe.checks.reading import Reading, finding, label, named
from probe.finding import Finding
from probe.islands import group_shape
from probe.measurement import Curve
from probe.units import count, some


def gaps(reading: Reading) -> Iterator[Finding]:
    yield from _never_measured(reading)
    yield from _too_small(reading)
    yield from _without_expectation(reading)


def _never_measured(reading: Reading) -> Iterator[Finding]:
    """Groups alone and pairs that a measurement of this topology takes, and this survey has not, whatever the reason.
    A run that had no time for a step says so itself, and so is told where nothing at all was measured."""
    survey = reading.survey
    if not survey.is_measured or any(notice.code == "not-measured" for notice in survey.missing):
        return
    known = {(c.key.operation, c.key.group.paths, c.key.group.nodes) for c in reading.curves}
    lacking = [step for step in steps(reading.topology, backend="nccl") if _is_plain(step)]
    lacking = [step for step in lacking if _question(reading, step) not in known]
    if lacking:
        labels = some(list(dict.fromkeys(f"{step.operation} ({step.answers})" for step in lacking)), 4)
        yield finding(
            "unmeasured-groups",
            f"{count(len(lacking), 'group')} of this topology have no figures: {labels}",
            gpus=sorted({ref for step in lacking for ref in step.groups[0]}),
        )


def _is_plain(step: Step) -> bool:
    one_way = step.operation == "p2p" and step.direction == "forward"
    alone = len(step.groups) == 1 and not step.graph and step.p2p_enabled is None
    return alone and (one_way or step.operation == "all_reduce")


def _question(reading: Reading, step: Step) -> tuple[str, tuple[tuple[str, int], ...], int]:
    shape = group_shape(reading.topology, step.groups[0])
    return step.operation, shape.paths, shape.nodes


def _too_small(reading: Reading) -> Iterator[Finding]:
    """Curves that were still rising, and end before bandwidth could be judged."""
    small: list[Curve] = []
    for curve in reading.curves:
        expected = reading.expected(curve)
        if expected is None or curve.key.graph or expected.judges(curve.samples[-1].size_bytes):
            continue
        if reading.profiles[id(curve)].is_rising:
            small.append(curve)
    if small:
        who = [f"{label(curve)} of {named(curve.members, reading.topology)}" for curve in small]
        yield finding(
            "too-small-to-judge",
            f"{count(len(small), 'curve')} ended while still rising, so their bandwidth is not judged: {some(who, 3)}",
            gpus=sorted({ref for curve in small for ref in curve.members}),
        )


def _without_expectation(reading: Reading) -> Iterator[Finding]:
    unknown = [curve for curve in reading.curves if reading.expected(curve) is None]
    if unknown:
        who = list(dict.fromkeys(named(curve.members, reading.topology) for curve in unknown))
        yield finding(
            "no-expectation",
            f"no public figure covers the wires of {some(who, 4)}: their curves are judged beside each other alone",
            gpus=sorted({ref for curve in unknown for ref in curve.members}),
        )
