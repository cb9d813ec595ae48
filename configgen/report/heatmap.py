"""Bandwidth between every two GPUs of a node as a shaded matrix; where nothing was measured, the path's name. Pure."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configgen.report.pairs import SlowWay, Way, slow_ways, ways_of
from probe.curve import Profile
from probe.measurement import Survey
from probe.topology import GpuRef, Topology
from probe.units import count, figure, message_size

SHADES = 6
_LEAST_SPAN = 4.0
"""Highest over lowest bandwidth that the shades cover at least, so that no noise is painted."""
_APART = 0.03
_MOST_GPUS = 32
_MOST_MATRICES = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One direction of a pair. `shade` counts from 0, slow, to 5; None where nothing was measured."""

    text: str
    told: str
    shade: int | None = None
    is_slow: bool = False
    is_self: bool = False


@dataclass(frozen=True, slots=True)
class Matrix:
    """From each GPU of the first column to each GPU of the head."""

    title: str
    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    matrices: tuple[Matrix, ...]
    legend: tuple[str, ...]
    """From which bandwidth on a shade is used, the slowest first; empty where nothing was measured."""
    slow: tuple[str, ...]
    left_out: str | None
    is_measured: bool


def heat_map(survey: Survey, profiles: Mapping[int, Profile]) -> HeatMap | None:
    """None where no node has two GPUs; `profiles` by the id of their curve."""
    topology = survey.topology
    ways = {(way.source, way.target): way for way in ways_of(survey, profiles)}
    slow = {(one.way.source, one.way.target): one for one in slow_ways(list(ways.values()))}
    groups = _groups(topology, ways)
    drawn = [group for group in groups if 1 < len(group) <= _MOST_GPUS][:_MOST_MATRICES]
    if not any(len(group) > 1 for group in groups):
        return None
    shown = [way for group in drawn for way in ways.values() if {way.source, way.target} <= set(group)]
    scale = _Scale.over([way.read.plateau_algbw_gbps for way in shown])
    left = len([group for group in groups if len(group) > 1]) - len(drawn)
    noun = "node" if len(groups) == len(topology.nodes) else "matrix"
    return HeatMap(
        tuple(_matrix(topology, group, ways, slow, scale) for group in drawn),
        tuple(f"{figure(bound)}" for bound in scale.bounds) if scale else (),
        tuple(_said(one, topology) for one in sorted(slow.values(), key=lambda one: one.gbps / one.usual_gbps)),
        f"{count(left, f'more {noun}')}: in the raw data" if left > 0 else None,
        bool(shown),
    )


def _groups(topology: Topology, ways: Mapping[tuple[GpuRef, GpuRef], Way]) -> list[list[GpuRef]]:
    """All GPUs together where they are few, else a node each, those that were measured first, unlike ones alone."""
    every = [GpuRef(n, g) for n, node in enumerate(topology.nodes) for g in range(len(node.gpus))]
    if len(every) <= _MOST_GPUS // 2:
        return [every]
    touched = {source.node for source, target in ways if source.node == target.node}
    shown: list[list[GpuRef]] = []
    shapes: set[int] = set()
    for n in sorted(range(len(topology.nodes)), key=lambda n: n not in touched):
        shape = topology.nodes[n].shape
        if n in touched or id(shape) not in shapes:
            shown.append([GpuRef(n, g) for g in range(len(shape.gpus))])
        shapes.add(id(shape))
    return shown


@dataclass(frozen=True, slots=True)
class _Scale:
    """Equal ratios from the slowest to the fastest. Values that lie close together get one shade, wherever it ends:
    `levels` are the least value of each such heap, ascending, and the shade of its middle."""

    low: float
    high: float
    levels: tuple[tuple[float, int], ...]

    @staticmethod
    def over(values: Sequence[float]) -> _Scale | None:
        if not values:
            return None
        ordered = sorted(values)
        low, high = min(ordered[0], ordered[-1] / _LEAST_SPAN), ordered[-1]
        heaps = [[ordered[0]]]
        for before, value in itertools.pairwise(ordered):
            if value > before * (1 + _APART):
                heaps.append([])
            heaps[-1].append(value)
        spread = math.log(high / low)
        shades = (int(math.log(heap[len(heap) // 2] / low) / spread * SHADES) for heap in heaps)
        return _Scale(low, high, tuple((h[0], min(SHADES - 1, s)) for h, s in zip(heaps, shades, strict=True)))

    def shade(self, value: float) -> int:
        return self.levels[bisect.bisect_right(self.levels, (value, SHADES)) - 1][1]

    @property
    def bounds(self) -> list[float]:
        return [self.low * (self.high / self.low) ** (shade / SHADES) for shade in range(SHADES)]


def _matrix(
    topology: Topology,
    group: Sequence[GpuRef],
    ways: Mapping[tuple[GpuRef, GpuRef], Way],
    slow: Mapping[tuple[GpuRef, GpuRef], SlowWay],
    scale: _Scale | None,
) -> Matrix:
    nodes = sorted({ref.node for ref in group})
    several = len(nodes) > 1
    names = tuple(f"{ref.node}:{ref.gpu}" if several else str(ref.gpu) for ref in group)
    title = "" if len(topology.nodes) == 1 else "All GPUs, as node:GPU" if several else f"Node {nodes[0]}"

    def cell(source: GpuRef, target: GpuRef) -> Cell:
        if source == target:
            return Cell("", "the same GPU", is_self=True)
        label = topology.path(source, target).label
        way = ways.get((source, target))
        names = f"{_name(source, topology)} to {_name(target, topology)}"
        if way is None or scale is None:
            return Cell(label, f"{names}: {label}, not measured")
        late = slow.get((source, target))
        told = f"{names}: {way.cell} GB/s over {label}" + (f", equal paths {figure(late.usual_gbps)}" if late else "")
        return Cell(way.cell, told, scale.shade(way.read.plateau_algbw_gbps), late is not None)

    return Matrix(title, names, tuple(tuple(cell(a, b) for b in group) for a in group))


def _said(one: SlowWay, topology: Topology) -> str:
    names = " to ".join(_name(ref, topology) for ref in (one.way.source, one.way.target))
    at = message_size(one.size_bytes)
    return f"{names} ({one.way.path}): {figure(one.gbps)} GB/s at {at}, equal paths {figure(one.usual_gbps)}"


def _name(ref: GpuRef, topology: Topology) -> str:
    return f"GPU {ref.gpu}" if len(topology.nodes) == 1 else f"node {ref.node} GPU {ref.gpu}"
