"""Point-to-point bandwidth as a matrix per node, with the pairs marked that are slower than equal paths. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from configgen.report.table import Line, table
from probe.curve import Profile
from probe.measurement import Survey
from probe.stability import WIDE
from probe.statistics import median
from probe.topology import GpuRef, Topology
from probe.units import figure, message_size

_MOST_GPUS = 12
_MOST_NODES = 4
_MOST_NAMED = 12


@dataclass(frozen=True, slots=True)
class Way:
    """One direction of a pair."""

    source: GpuRef
    target: GpuRef
    path: str
    read: Profile

    @property
    def cell(self) -> str:
        return (">" if self.read.is_rising else "") + figure(self.read.plateau_algbw_gbps)


@dataclass(frozen=True, slots=True)
class SlowWay:
    """A way that takes longer than equal ones at the largest size that all of them have."""

    way: Way
    size_bytes: int
    gbps: float
    usual_gbps: float


def pair_lines(survey: Survey, profiles: Mapping[int, Profile]) -> Iterator[Line]:
    """Nothing where fewer than two pairs were measured; `profiles` by the id of their curve."""
    ways = ways_of(survey, profiles)
    if len({frozenset((w.source, w.target)) for w in ways}) < 2:
        return
    slow = slow_ways(ways)
    marked = [id(one.way) for one in slow]
    nodes = sorted({w.source.node for w in ways if w.source.node == w.target.node})
    yield from (Line(""), Line("Pairs: GB/s of one direction, from row to column", "title"))
    for node in nodes[:_MOST_NODES]:
        gpus = sorted({ref.gpu for w in ways for ref in (w.source, w.target) if ref.node == node})
        if len(gpus) > _MOST_GPUS:
            yield Line(f"  node {node}: {len(gpus)} GPUs, too many to draw: --format json", "dim")
            continue
        told = {(w.source.gpu, w.target.gpu): w for w in ways if w.source.node == w.target.node == node}
        cells = {pair: w.cell + ("*" if id(w) in marked else "") for pair, w in told.items()}
        rows = [[f"GPU{a}", *("X" if a == b else cells.get((a, b), "-") for b in gpus)] for a in gpus]
        corner = f"node {node}" if len(survey.topology.nodes) > 1 else ""
        yield from table([corner, *(f"GPU{b}" for b in gpus)], rows)
    for one in sorted(slow, key=lambda one: one.gbps / one.usual_gbps)[:_MOST_NAMED]:
        names = " -> ".join(_name(ref, survey.topology) for ref in (one.way.source, one.way.target))
        usual = f"equal paths {figure(one.usual_gbps)}"
        size = message_size(one.size_bytes)
        yield Line(f"  * {names} ({one.way.path}): {figure(one.gbps)} at {size}, {usual}", "warn")


def ways_of(survey: Survey, profiles: Mapping[int, Profile]) -> list[Way]:
    found: dict[tuple[GpuRef, GpuRef], Way] = {}
    for curve in survey.curves:
        key = curve.key
        alone = key.group.concurrent_groups == 1
        if key.operation != "p2p" or key.direction == "both" or key.p2p_enabled is False or not alone:
            continue
        if len(curve.members) != 2:
            continue
        source, target = curve.members if key.direction == "forward" else curve.members[::-1]
        path = survey.topology.path(source, target).label
        found.setdefault((source, target), Way(source, target, path, profiles[id(curve)]))
    return list(found.values())


def slow_ways(ways: list[Way]) -> list[SlowWay]:
    """Slower than the median of equal paths, by more than what a plan notices, and beyond the own confidence."""
    found = []
    for path in {way.path for way in ways}:
        equal = [way for way in ways if way.path == path]
        common = set.intersection(*(set(way.read.sizes_bytes) for way in equal))
        if not common:
            continue
        size = max(common)
        usual_s = median([way.read.read(size).time_s for way in equal])
        for way in equal:
            at = way.read.read(size)
            least_s = at.interval_s[0] if at.interval_s else at.time_s
            if at.time_s > usual_s / (1 - WIDE) and least_s > usual_s:
                found.append(SlowWay(way, size, size / at.time_s / 1e9, size / usual_s / 1e9))
    return found


def _name(ref: GpuRef, topology: Topology) -> str:
    return f"GPU {ref.gpu}" if len(topology.nodes) == 1 else f"node {ref.node} GPU {ref.gpu}"
