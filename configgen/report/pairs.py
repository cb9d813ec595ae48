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
from probe.units import figure

_MOST_GPUS = 12
_MOST_NODES = 4
_MOST_NAMED = 12


@dataclass(frozen=True, slots=True)
class _Way:
    """One direction of a pair: what it reaches, and the most it may reach by the confidence of its largest size."""

    source: GpuRef
    target: GpuRef
    path: str
    gbps: float
    at_most_gbps: float


def pair_lines(survey: Survey, profiles: Mapping[int, Profile]) -> Iterator[Line]:
    """Nothing where fewer than two pairs were measured; `profiles` by the id of their curve."""
    ways = _ways(survey, profiles)
    if len({frozenset((w.source, w.target)) for w in ways}) < 2:
        return
    usual = _usual(ways)
    slow = [w for w in ways if _is_slow(w, usual)]
    nodes = sorted({w.source.node for w in ways if w.source.node == w.target.node})
    yield from (Line(""), Line("Pairs: GB/s of one direction, from row to column", "title"))
    for node in nodes[:_MOST_NODES]:
        gpus = sorted({ref.gpu for w in ways for ref in (w.source, w.target) if ref.node == node})
        if len(gpus) > _MOST_GPUS:
            yield Line(f"  node {node}: {len(gpus)} GPUs, too many to draw: --format json", "dim")
            continue
        told = {(w.source.gpu, w.target.gpu): w for w in ways if w.source.node == w.target.node == node}
        cells = {pair: figure(w.gbps) + ("*" if w in slow else "") for pair, w in told.items()}
        rows = [[f"GPU{a}", *("X" if a == b else cells.get((a, b), "-") for b in gpus)] for a in gpus]
        corner = f"node {node}" if len(survey.topology.nodes) > 1 else ""
        yield from table([corner, *(f"GPU{b}" for b in gpus)], rows)
    for w in sorted(slow, key=lambda w: w.gbps / usual[w.path])[:_MOST_NAMED]:
        names = (_name(ref, survey.topology) for ref in (w.source, w.target))
        yield Line(
            f"  * {' -> '.join(names)} ({w.path}): {figure(w.gbps)}, equal paths {figure(usual[w.path])}", "warn"
        )


def _ways(survey: Survey, profiles: Mapping[int, Profile]) -> list[_Way]:
    found: dict[tuple[GpuRef, GpuRef], _Way] = {}
    for curve in survey.curves:
        key = curve.key
        alone = key.group.concurrent_groups == 1
        if key.operation != "p2p" or key.direction == "both" or key.p2p_enabled is False or not alone:
            continue
        if len(curve.members) != 2:
            continue
        source, target = curve.members if key.direction == "forward" else curve.members[::-1]
        read = profiles[id(curve)]
        ends = read.intervals_s[-1] or (read.times_s[-1],) * 2
        path = survey.topology.path(source, target).label
        at_most = max(read.plateau_algbw_gbps, read.sizes_bytes[-1] / ends[0] / 1e9)
        found.setdefault((source, target), _Way(source, target, path, read.plateau_algbw_gbps, at_most))
    return list(found.values())


def _usual(ways: list[_Way]) -> dict[str, float]:
    paths: dict[str, list[float]] = {}
    for way in ways:
        paths.setdefault(way.path, []).append(way.gbps)
    return {path: median(several) for path, several in paths.items()}


def _is_slow(way: _Way, usual: Mapping[str, float]) -> bool:
    """Slower than the median of equal paths, by more than what no plan notices and beyond its own confidence."""
    return way.gbps < (1 - WIDE) * usual[way.path] and way.at_most_gbps < usual[way.path]


def _name(ref: GpuRef, topology: Topology) -> str:
    return f"GPU {ref.gpu}" if len(topology.nodes) == 1 else f"node {ref.node} GPU {ref.gpu}"
