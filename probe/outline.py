"""A survey as merging thousands needs it: its topology and a few medians; the raw times stay in the file."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import msgspec

from probe.measurement import Curve, CurveKey, Evidence, HealthSnapshot, Rate, Sample, Survey, Verification
from probe.sources.registry import read_file
from probe.statistics import median
from probe.store import TopologyDocument, holds_survey, reading, topology_of
from probe.topology import GpuRef, Notice, Origin, Topology, require

T = TypeVar("T", bound=Hashable)
Point = tuple[CurveKey, tuple[GpuRef, ...], int]
"""Of a curve with these members, one size in bytes."""

_EVERY = 5
"""A size counts where its power of two is one in so many: 16 KiB, 512 KiB, 16 MiB and 512 MiB, which every measurement
visits first. Which sizes count must not depend on what else was measured, since twins are compared at equal sizes."""


class Pool:
    """What many surveys have in common, kept once."""

    def __init__(self) -> None:
        self._shared: dict[Hashable, Any] = {}
        self.points: dict[Point, int] = {}
        """Point -> its number."""

    def share(self, thing: T) -> T:
        shared: T = self._shared.setdefault(thing, thing)
        return shared

    def topology(self, topology: Topology) -> Topology:
        nodes = tuple(replace(node, shape=self.share(node.shape)) for node in topology.nodes)
        return replace(
            topology, nodes=nodes, warnings=self.share(topology.warnings), provenance=self.share(topology.provenance)
        )


@dataclass(frozen=True)
class Outline:
    """One survey of many: `survey` is without curves and rates, `load` reads all of it."""

    name: str
    """The file, or whatever else a person knows it by."""
    survey: Survey
    is_measured: bool
    points: int
    """Sizes of all its curves."""
    seen: array[int]
    """Numbers of the points, by the pool, whose medians are known ..."""
    medians_s: array[float]
    """... and these."""
    load: Callable[[], Survey]


def outline(survey: Survey, name: str, pool: Pool) -> Outline:
    """Of a survey in memory."""
    samples = (
        ((curve.key, curve.members, sample.size_bytes), sample.p50_s)
        for curve in survey.curves
        for sample in curve.samples
        if _counts(sample.size_bytes) or sample is curve.samples[-1]
    )
    seen, medians_s = _numbered(samples, pool)
    slim = replace(_slim(survey, pool), curves=(), rates=())
    return Outline(name, slim, survey.is_measured, survey.points, seen, medians_s, lambda: survey)


def read_outline(path: str, pool: Pool) -> Outline:
    """Of a survey's or a topology's file. Raises SourceError naming what is wrong."""
    from probe.store import decode_survey

    return _outlined(read_file(path), path, pool, lambda: decode_survey(read_file(path), where=path))


def read_lean(path: str) -> Survey:
    """A survey's or a topology's file with the few sizes of each curve at which many are compared, raw times and all.
    Raises SourceError naming what is wrong."""
    data = read_file(path)
    with reading(path):
        if not holds_survey(data, path):
            return Survey(topology_of(msgspec.json.decode(data, type=TopologyDocument)))
        told = msgspec.json.decode(data, type=_WholeDocument)
        topology = topology_of(told.topology)
        curves = tuple(_few(curve) for curve in told.curves)
        for ref in {ref for curve in curves for ref in curve.members} | {rate.gpu for rate in told.rates}:
            known = 0 <= ref.node < len(topology.nodes) and 0 <= ref.gpu < len(topology.nodes[ref.node].gpus)
            require(known, f"node {ref.node} has no GPU {ref.gpu}")
        return Survey(topology, curves, told.rates, **{name: getattr(told, name) for name in _KEPT})


def _few(curve: _WholeCurve) -> Curve:
    last = len(curve.samples) - 1
    kept = (sample for n, sample in enumerate(curve.samples) if _counts(sample.size_bytes) or n == last)
    return Curve(curve.key, tuple(Sample(one.size_bytes, one.rounds_s) for one in kept), curve.members)


class _Sample(msgspec.Struct):
    size_bytes: int
    rounds_s: msgspec.Raw


class _Curve(msgspec.Struct):
    key: CurveKey
    samples: tuple[_Sample, ...]
    members: tuple[GpuRef, ...] = ()


class _Beside(msgspec.Struct):
    topology: TopologyDocument
    health: tuple[HealthSnapshot, ...] = ()
    verifications: tuple[Verification, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    missing: tuple[Notice, ...] = ()
    origins: tuple[Origin, ...] = ()
    lab: str | None = None
    measured_at: str | None = None


class _Document(_Beside):
    curves: tuple[_Curve, ...] = ()
    rates: tuple[msgspec.Raw, ...] = ()


class _WholeSample(msgspec.Struct):
    size_bytes: int
    rounds_s: tuple[tuple[float, ...], ...]


class _WholeCurve(msgspec.Struct):
    key: CurveKey
    samples: tuple[_WholeSample, ...]
    members: tuple[GpuRef, ...] = ()


class _WholeDocument(_Beside):
    curves: tuple[_WholeCurve, ...] = ()
    rates: tuple[Rate, ...] = ()


_KEPT = tuple(name for name in _Beside.__struct_fields__ if name != "topology")


def _outlined(data: bytes, where: str, pool: Pool, load: Callable[[], Survey]) -> Outline:
    with reading(where):
        if not holds_survey(data, where):
            topology = topology_of(msgspec.json.decode(data, type=TopologyDocument))
            return Outline(where, Survey(pool.topology(topology)), False, 0, array("L"), array("d"), load)
        told = msgspec.json.decode(data, type=_Document)
        survey = Survey(topology_of(told.topology), **{name: getattr(told, name) for name in _KEPT})
        seen, medians_s = _numbered(_medians(told.curves, pool), pool)
    points = sum(len(curve.samples) for curve in told.curves)
    return Outline(where, _slim(survey, pool), bool(points or told.rates), points, seen, medians_s, load)


def _medians(curves: Iterable[_Curve], pool: Pool) -> Iterator[tuple[Point, float]]:
    for curve in curves:
        key, members = pool.share(curve.key), pool.share(curve.members)
        for sample in curve.samples:
            if _counts(sample.size_bytes) or sample is curve.samples[-1]:
                rounds = msgspec.json.decode(sample.rounds_s, type=list[list[float]])
                times = list(chain.from_iterable(rounds))
                if not times or min(times) <= 0:
                    raise ValueError("curves: a sample has times, and each is positive")
                yield (key, members, sample.size_bytes), median(times)


def _counts(size_bytes: int) -> bool:
    return size_bytes.bit_length() % _EVERY == 0


def _numbered(medians: Iterable[tuple[Point, float]], pool: Pool) -> tuple[array[int], array[float]]:
    seen, medians_s = array("L"), array("d")
    for point, time_s in medians:
        seen.append(pool.points.setdefault(point, len(pool.points)))
        medians_s.append(time_s)
    return seen, medians_s


def _slim(survey: Survey, pool: Pool) -> Survey:
    """Without what says nothing in a cluster: counters that stood still, and P2P that works."""
    first: dict[GpuRef, HealthSnapshot] = {}
    moved = {h.gpu for h in survey.health if h.counters != first.setdefault(h.gpu, h).counters}
    return replace(
        survey,
        topology=pool.topology(survey.topology),
        health=tuple(h for h in survey.health if h.gpu in moved),
        verifications=tuple(v for v in survey.verifications if not v.passed),
        evidence=pool.share(survey.evidence),
        environment=pool.share(survey.environment),
        missing=pool.share(survey.missing),
        origins=pool.share(survey.origins),
    )
