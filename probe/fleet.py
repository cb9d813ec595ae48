"""Surveys of many nodes -> one: equal nodes share a measurement, and a node unlike its twins is named."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from probe.curve import profile
from probe.errors import UsageError
from probe.islands import fingerprint
from probe.measurement import UNFINISHED, Curve, Survey
from probe.merge import Place, placed
from probe.outline import Outline, Pool, outline, read_outline
from probe.statistics import median
from probe.topology import GpuRef, Notice, Origin, Provenance, Topology
from probe.units import count, message_size

WORTH_TELLING = 0.05
"""Relative difference between equal nodes below which no plan changes: the bar at which a measurement is called
uncertain."""
_RUN = 3
"""Sizes in a row at which a node must be beyond its confidence: one of them is by chance in 1 of 20 curves."""
_NEARLY_ALL = 0.9
_CONFIRMED_AT_MOST = 64
"""Nodes whose raw times are read a second time: confirming costs a whole file each, and no person reads more names."""

ABOUT_TWINS = ("unlike-its-twins", "twins-unchecked")
"""Codes of the notices that the comparison of equal nodes leaves in `missing`."""

Twins = Sequence[int]
"""Positions of the parts that are equal in all that decides speed."""


def merge_surveys(surveys: Sequence[Survey]) -> Survey:
    """One survey of all nodes in this order; descriptions of one machine complete each other. Raises UsageError."""
    pool = Pool()
    return merge_outlines([outline(survey, f"survey {n}", pool) for n, survey in enumerate(surveys)], pool)


def merge_files(paths: Sequence[str]) -> Survey:
    """The surveys of different machines, each given once. Raises UsageError naming two files of one machine."""
    pool = Pool()
    parts: list[Outline] = []
    given: dict[object, str] = {}
    for path in paths:
        part = read_outline(path, pool)
        states = (gpu for node in part.survey.topology.nodes for gpu in node.gpus)
        # No two machines take the same times to the last digit, even where nothing else names them.
        identities: list[object] = [Path(path).resolve(), *(g.uuid for g in states if g.uuid is not None)]
        identities += [part.medians_s.tobytes()] if part.points else []
        for identity in identities:
            if identity in given:
                raise UsageError(
                    f"{given[identity]} and {path} are of the same machine", cure="Give one survey of each machine."
                )
        given |= dict.fromkeys(identities, path)
        parts.append(part)
    return merge_outlines(parts, pool)


def merge_outlines(parts: Sequence[Outline], pool: Pool) -> Survey:
    """One survey of all nodes in this order.

    Parts with equal fingerprints and drivers are twins: the most typical of those that measured the most stands for
    all, and the origins say for how many. A twin that differs from it by more than WORTH_TELLING and by more than both
    confidences, at three sizes in a row, is named in `missing`. Raises UsageError where lab figures would be mixed
    with measured ones, or where two parts share some GPUs but not all.
    """
    if len(parts) == 1:
        return parts[0].load()
    lab = _lab(parts)
    topology, places = placed([part.survey.topology for part in parts])
    shared = [_share(parts, twins, places, topology, pool) for twins in _twins(parts)]
    own = [_moved(part.survey, place) for part, place in zip(parts, places, strict=True)]
    everything = [*shared, *own]
    return Survey(
        topology=topology,
        curves=tuple({(c.key, c.members): c for one in shared for c in one.curves}.values()),
        rates=tuple(rate for one in shared for rate in one.rates),
        health=tuple(dict.fromkeys(h for one in everything for h in one.health)),
        verifications=tuple(dict.fromkeys(v for one in everything for v in one.verifications)),
        evidence=tuple(dict.fromkeys(e for part in parts for e in part.survey.evidence)),
        environment=tuple(dict.fromkeys(pair for part in parts for pair in part.survey.environment)),
        missing=(*(notice for one in shared for notice in one.missing), *_told_of(own)),
        origins=tuple(origin for one in shared for origin in one.origins),
        lab=lab,
        measured_at=min((at for part in parts if part.is_measured and (at := part.survey.measured_at)), default=None),
    )


def _lab(parts: Sequence[Outline]) -> str | None:
    measured = [part for part in parts if part.is_measured]
    labs = list(dict.fromkeys(part.survey.lab for part in measured if part.survey.lab is not None))
    real = next((part for part in measured if part.survey.lab is None), None)
    if labs and real is not None:
        fake = next(part for part in measured if part.survey.lab is not None)
        raise UsageError(
            f"{fake.name} holds lab figures, {real.name} measured ones: together they would be neither",
            cure="Merge the two kinds apart.",
        )
    return "; ".join(labs) or None


def _twins(parts: Sequence[Outline]) -> list[Twins]:
    """The parts by what decides their speed, those that measured nothing too."""
    found: dict[tuple[object, ...], list[int]] = {}
    for i, part in enumerate(parts):
        topology = part.survey.topology
        drivers = tuple(node.driver_version for node in topology.nodes)
        found.setdefault((fingerprint(topology), drivers), []).append(i)
    return [twins for twins in found.values() if any(parts[i].is_measured for i in twins)]


def _share(parts: Sequence[Outline], twins: Twins, places: Sequence[Place], topology: Topology, pool: Pool) -> Survey:
    """The measurement that stands for these twins, with the nodes numbered as in the whole."""
    typical = _typical(parts, twins)
    survey, place = parts[typical.chosen].load(), places[typical.chosen]
    first = topology.nodes[place.first]
    name = f"node {place.first}" + (f" ({first.hostname})" if first.hostname else "")
    nodes = sum(len(parts[i].survey.topology.nodes) for i in twins)
    alike = f"on {name}, shared by {nodes:,} equal nodes" if len(twins) > 1 else f"on {name}"
    told = survey.origins or (Origin("curves", Provenance.MEASURED, "measured"),)
    moved = _moved(survey, place)
    return replace(
        moved,
        missing=(*(n for n in moved.missing if n.code in UNFINISHED), *_unlike(parts, twins, places, typical, pool)),
        origins=tuple(replace(o, source=f"{o.source} {alike}", node=place.first + (o.node or 0)) for o in told),
    )


def _moved(survey: Survey, place: Place) -> Survey:
    """The measurements with their GPUs and nodes as the merged topology numbers them."""

    def kept(*refs: GpuRef) -> tuple[GpuRef, ...] | None:
        moved = [there for ref in refs if (there := place.of(ref)) is not None]
        return tuple(moved) if len(moved) == len(refs) else None

    many = len(survey.topology.nodes) > 1
    return replace(
        survey,
        curves=tuple(replace(c, members=m) for c in survey.curves if (m := kept(*c.members)) is not None),
        rates=tuple(replace(r, gpu=m[0]) for r in survey.rates if (m := kept(r.gpu))),
        health=tuple(replace(h, gpu=m[0]) for h in survey.health if (m := kept(h.gpu))),
        verifications=tuple(
            replace(v, source=m[0], target=m[1]) for v in survey.verifications if (m := kept(v.source, v.target))
        ),
        missing=tuple(
            n if many and n.node is None else replace(n, node=place.first + (n.node or 0)) for n in survey.missing
        ),
    )


def _told_of(own: Sequence[Survey]) -> Iterator[Notice]:
    """What nodes miss that no twin's measurement replaces; what many tell alike stands once."""
    nodes: dict[tuple[str, str], list[int | None]] = {}
    for survey in own:
        for notice in survey.missing:
            if notice.code not in UNFINISHED:
                nodes.setdefault((notice.code, notice.message), []).append(notice.node)
    for (code, message), where in nodes.items():
        alone = len(where) == 1
        yield Notice(code, message if alone else f"{message} (so on {len(where):,} nodes)", where[0] if alone else None)


@dataclass(frozen=True)
class _Typical:
    """The twin that stands for all, and the median of all twins at each point that several have seen."""

    chosen: int
    medians_s: Mapping[int, float]


def _typical(parts: Sequence[Outline], twins: Twins) -> _Typical:
    """Of those that measured nearly the most points the one nearest to the median of all; of equals the first."""
    times: dict[int, list[float]] = {}
    for i in twins:
        for point, time_s in zip(parts[i].seen, parts[i].medians_s, strict=True):
            times.setdefault(point, []).append(time_s)
    medians_s = {point: median(several) for point, several in times.items() if len(several) > 1}
    measured = [i for i in twins if parts[i].is_measured]
    most = max(parts[i].points for i in measured)
    full = [i for i in measured if parts[i].points >= _NEARLY_ALL * most]

    def distance(i: int) -> float:
        apart = [abs(x) for _, x in _deviations(parts[i], medians_s)]
        return math.fsum(apart) / len(apart) if apart else 0.0

    return _Typical(min(full, key=distance), medians_s)


def _deviations(part: Outline, medians_s: Mapping[int, float]) -> Iterator[tuple[int, float]]:
    """For each point that twins share, the logarithm of this part's time over the twins' median."""
    for point, time_s in zip(part.seen, part.medians_s, strict=True):
        if point in medians_s:
            yield point, math.log(time_s / medians_s[point])


def _unlike(
    parts: Sequence[Outline], twins: Twins, places: Sequence[Place], typical: _Typical, pool: Pool
) -> Iterator[Notice]:
    """Twins that differ: first screened by a few medians, then confirmed by raw times and their confidence."""
    numbers: dict[object, int] = {}
    curve_of = [numbers.setdefault((key, members), len(numbers)) for key, members, _ in pool.points]
    suspects = []
    for i in twins:
        doubt = _doubt(parts[i], typical.medians_s, curve_of) if i != typical.chosen else 0.0
        if doubt:
            suspects.append((-doubt, i))
    suspects.sort()
    known = parts[typical.chosen].load() if suspects else None
    for _, i in suspects[:_CONFIRMED_AT_MOST]:
        if known is not None and (told := _differences(parts[i].load(), known)):
            node = places[i].first
            where = parts[i].survey.topology.nodes[0].hostname
            name = f"node {node}" + (f" ({where})" if where else "")
            more = f", and {count(len(told) - 1, 'curve')} more" if len(told) > 1 else ""
            yield Notice(
                "unlike-its-twins",
                f"{name} is unlike the {count(len(twins) - 1, 'node')} equal to it: {told[0]}{more}. Its own figures "
                f"are in {parts[i].name} alone; look at its links, then measure it again with --fresh.",
                node,
            )
    if len(suspects) > _CONFIRMED_AT_MOST:
        left = count(len(suspects) - _CONFIRMED_AT_MOST, "more node")
        yield Notice(
            "twins-unchecked", f"{left} may be unlike their twins: only the worst {_CONFIRMED_AT_MOST} are named."
        )


def _doubt(part: Outline, medians_s: Mapping[int, float], curve_of: Sequence[int]) -> float:
    """The largest deviation of a curve that deviates at two neighbouring points, or at the only one; else 0."""
    curves: dict[int, list[float]] = {}
    for point, apart in _deviations(part, medians_s):
        curves.setdefault(curve_of[point], []).append(apart)
    least = math.log1p(WORTH_TELLING)
    worst = 0.0
    for several in curves.values():
        for a, b in pairwise(several if len(several) > 1 else several * 2):
            if a * b > 0 and min(abs(a), abs(b)) > least:
                worst = max(worst, min(abs(a), abs(b)))
    return worst


def _differences(survey: Survey, twin: Survey) -> list[str]:
    """What of a survey is beyond doubt faster or slower than at its twin, the worst first."""
    others = {(c.key, c.members): c for c in twin.curves}
    found = [d for c in survey.curves if (other := others.get((c.key, c.members))) and (d := _difference(c, other))]
    return [text for _, text in sorted(found, reverse=True)]


def _difference(curve: Curve, twin: Curve) -> tuple[float, str] | None:
    here, there = profile(curve), profile(twin)
    known = dict(zip(there.sizes_bytes, zip(there.times_s, there.intervals_s, strict=True), strict=True))
    run: list[tuple[int, float]] = []
    best: list[tuple[int, float]] = []
    shared = 0
    for size_bytes, time_s, ends in zip(here.sizes_bytes, here.times_s, here.intervals_s, strict=True):
        if size_bytes not in known:
            continue
        shared += 1
        other_s, other_ends = known[size_bytes]
        apart = ends is not None and other_ends is not None and (ends[0] > other_ends[1] or ends[1] < other_ends[0])
        ratio = time_s / other_s
        differs = apart and abs(math.log(ratio)) > math.log1p(WORTH_TELLING)
        if not differs or (run and (run[-1][1] > 1) != (ratio > 1)):
            run = []
        if differs:
            run = [*run, (size_bytes, ratio)]
        best = max(best, run, key=len)
    if not best or len(best) < min(_RUN, shared):
        return None
    middle = median([ratio for _, ratio in best])
    how = f"takes {middle:.2f} times as long" if middle > 1 else f"takes {middle:.2f} of the time"
    first, last = message_size(best[0][0]), message_size(best[-1][0])
    sizes = f"from {first} to {last}" if first != last else f"at {first}"
    return abs(math.log(middle)), f"{curve.key.operation} of {curve.ranks} GPUs {how} {sizes}"
