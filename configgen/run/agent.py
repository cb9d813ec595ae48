"""What the agent of a node knows, whether it is well, and what changed between two looks at the machine. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from configgen.audited import Audited
from configgen.report.lines import gpus_line, islands_line, measured_line
from probe.errors import one_line
from probe.finding import Finding, Severity, gravest_first
from probe.topology import GpuRef, Topology, require
from probe.units import some

NODE_VARIABLE = "NODE_NAME"
"""The node's name in its cluster, from the downward API: a pod's own host name is another."""

STALE_INTERVALS = 3
"""Without a look for so many intervals the agent counts as stuck, and what it wrote as out of date."""

BUSY = "gpu-busy"
PASSING = frozenset((BUSY, "throttled", "pcie-slow"))
"""Findings of a moment. Metrics tell them as they are; no label and no line of the log comes and goes with load."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the machine: what was found, or why nothing could be read."""

    at_s: float
    """Seconds since 1970."""
    took_s: float
    audited: Audited | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        require((self.audited is None) != (self.failure is None), "a look finds a machine or says why it doesn't")


@dataclass(frozen=True, slots=True)
class State:
    """All that is told to whoever asks; replaced as a whole after each look."""

    interval_s: float
    since_s: float
    """When the last look ended, before the first one when the agent started; of a clock that only goes forward."""
    seen: Seen | None = None
    looks: int = 0
    failed: int = 0
    changes: int = 0
    refused: tuple[tuple[str, str | None], ...] = ()
    """Each outlet that is in use, and why it could not be written the last time; None where it was."""

    def after(self, seen: Seen, changed: int, now_s: float) -> State:
        return replace(
            self,
            since_s=now_s,
            seen=seen,
            looks=self.looks + 1,
            failed=self.failed + (seen.failure is not None),
            changes=self.changes + changed,
        )

    def unwell(self, now_s: float) -> str | None:
        """Why the agent cannot be trusted any more; None where it can. A machine without GPUs is not its fault."""
        silent_s, most_s = now_s - self.since_s, STALE_INTERVALS * self.interval_s
        if silent_s <= most_s:
            return None
        return f"no look at the machine has ended for {silent_s:.0f} s; {STALE_INTERVALS} intervals are {most_s:g} s"


def in_service(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings as they count on a node that works: that somebody uses its GPUs is what it is there for."""
    return gravest_first(tuple(replace(f, severity=Severity.INFO) if f.code == BUSY else f for f in findings))


def lasting(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Those that somebody should know of who looks at another time: neither of a moment nor merely good to know."""
    return tuple(f for f in findings if f.code not in PASSING and f.severity is not Severity.INFO)


def changes(before: Seen | None, now: Seen) -> tuple[str, ...]:
    """One line for each thing that is new, gone or otherwise; but only of what lasts."""
    if now.audited is None:
        known = before is not None and before.failure == now.failure
        return () if known else (f"no GPU can be read: {now.failure}",)
    whole = _machine(now.audited)
    if before is None or before.audited is None:
        again = "" if before is None else "GPUs can be read again: "
        return (f"{again}{whole}", *_findings((), now.audited.findings))
    was = _machine(before.audited)
    lines = (f"{whole}; before: {was}",) if was != whole else ()
    topologies = before.audited.survey.topology, now.audited.survey.topology
    return (*lines, *_replaced(*topologies), *_findings(before.audited.findings, now.audited.findings))


def _machine(audited: Audited) -> str:
    topology = audited.survey.topology
    driver = topology.nodes[0].driver_version
    parts = (gpus_line(topology), islands_line(topology), f"driver {one_line(driver or 'unknown', 40)}")
    return "; ".join((*parts, measured_line(audited.survey) or "not measured"))


def _replaced(before: Topology, now: Topology) -> tuple[str, ...]:
    """GPUs that stand where others stood."""
    a, b = ([gpu.uuid for node in topology.nodes for gpu in node.gpus] for topology in (before, now))
    if len(a) != len(b):
        return ()
    pairs = [f"GPU {i}: {x} -> {y}" for i, (x, y) in enumerate(zip(a, b, strict=True)) if x and y and x != y]
    return (f"other GPUs than before: {some(pairs, 4)}",) if pairs else ()


_Place = tuple[str, int | None, tuple[GpuRef, ...], tuple[str, ...]]


def _findings(before: tuple[Finding, ...], now: tuple[Finding, ...]) -> tuple[str, ...]:
    a, b = _by_place(before), _by_place(now)
    new = [f"{found.severity.value} {found.code}: {found.seen}" for place, found in b.items() if place not in a]
    gone = [f"no more {found.code}: {found.seen}" for place, found in a.items() if place not in b]
    return (*new, *gone)


def _by_place(findings: tuple[Finding, ...]) -> dict[_Place, Finding]:
    return {(f.code, f.node, f.gpus, f.nics): f for f in lasting(findings)}
