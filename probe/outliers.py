"""Which of many machines are unlike the machines that are equal to them by description. Pure.

A figure (a median time, or a rate of one GPU) is compared with the same figure of the other machines with the same
fingerprint: the median of all, and the median absolute deviation (MAD) as their usual scatter, both of logarithms.
A third of the machines may be broken, and neither moves much (Rousseeuw and Croux, JASA 88, 1993, 1273-1283).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from probe.curve import bus_factor, profiles
from probe.fleet_audit import Deviation, FleetAudit, Group, Host, Odd, Outlier, Point, Points, RateKey
from probe.measurement import CurveKey, Survey
from probe.statistics import median

FLOOR = 0.05
"""No plan notices less; the bar at which a figure is called uncertain."""
SCATTERS = 6.0
"""Standard deviations beyond which a figure is no chance. 2,048 machines of 8 GPUs have 250,000 figures to err in."""
LEAST = 4
"""Machines of a group below which nobody is judged by the others: of three, one may be odd or two."""
_NORMAL = 1.4826
"""Standard deviation over MAD, of normally distributed values."""
_ALONE = 2.0
_ODD_SHARE = 0.05


Confirm = Callable[[Host, Sequence[Deviation]], Sequence[Deviation]]
"""Of a machine's deviations those that its own raw times bear out."""


def audit_hosts(
    hosts: Sequence[Host],
    points: Points,
    confirm: Confirm | None = None,
    *,
    unreadable: Sequence[tuple[str, str]] = (),
    most: int = 256,
) -> FleetAudit:
    """The fleet, judged. Of several surveys of one machine the newest counts. `confirm` is asked for the `most`
    slowest machines; the others that deviate are only counted."""
    newest, older = _newest(hosts)
    groups, suspects = [], []
    for members in _groups(newest):
        typical, found = _deviating(newest, members, points)
        measured = sum(newest[n].is_measured for n in members)
        first = newest[members[0]]
        groups.append(Group(first.fingerprint, tuple(members), measured, first.lab is not None, typical))
        suspects += found
    suspects.sort(key=lambda one: (one.worst.share, newest[one.host].name))
    outliers, left = [], 0
    for number, one in enumerate(suspects):
        if confirm is not None and number >= most:
            left += 1
        elif kept := tuple(confirm(newest[one.host], one.deviations) if confirm is not None else one.deviations):
            outliers.append(Outlier(one.host, kept))
    groups.sort(key=lambda group: (-len(group.hosts), group.fingerprint))
    odd = tuple(_odd(newest, groups))
    return FleetAudit(newest, tuple(groups), tuple(outliers), odd, tuple(unreadable), older, left)


def _newest(hosts: Sequence[Host]) -> tuple[tuple[Host, ...], int]:
    """Each machine once: the survey measured last; of a machine whose UUIDs are unknown all."""
    best: dict[object, Host] = {}
    for n, host in enumerate(hosts):
        identity: object = (host.uuids, host.lab is None) if host.uuids else n
        known = best.get(identity)
        if known is None or (host.measured_at or "") > (known.measured_at or ""):
            best[identity] = host
    return tuple(best.values()), len(hosts) - len(best)


def _groups(hosts: Sequence[Host]) -> list[list[int]]:
    found: dict[tuple[str, bool], list[int]] = {}
    for n, host in enumerate(hosts):
        found.setdefault((host.fingerprint, host.lab is not None), []).append(n)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Usual:
    """The middle of the logarithms of equal figures, and their scatter as a standard deviation."""

    middle: float
    scatter: float
    machines: int


def _deviating(hosts: Sequence[Host], group: Sequence[int], points: Points) -> tuple[int | None, list[Outlier]]:
    """The machine nearest to the median of its group, None where nothing could be compared; those that deviate before
    anyone looked closely."""
    logs: dict[int, list[float]] = {}
    for n in group:
        for number, time_s in zip(hosts[n].seen, hosts[n].times_s, strict=True):
            logs.setdefault(number, []).append(math.log(time_s))
    usual: dict[int, _Usual] = {}
    for number, several in logs.items():
        if len(several) >= LEAST:
            middle = median(several)
            scatter = _NORMAL * median([abs(x - middle) for x in several])
            usual[number] = _Usual(middle, scatter, len(several))
    # A few machines agree closely at some figure by chance: what figures of the group scatter by in the middle is
    # then the better word.
    common = median([one.scatter for one in usual.values()]) if usual else 0.0
    limits = {
        number: max(math.log1p(FLOOR), _scatters(one.machines) * max(one.scatter, common))
        for number, one in usual.items()
    }
    found = []
    nearest: list[tuple[int, float, int]] = []
    for n in group:
        apart = {
            number: math.log(time_s) - usual[number].middle
            for number, time_s in zip(hosts[n].seen, hosts[n].times_s, strict=True)
            if number in usual
        }
        deviations = tuple(_beyond(apart, usual, limits, points))
        if deviations:
            found.append(Outlier(n, tuple(sorted(deviations, key=lambda one: one.share))))
        elif apart:
            nearest.append((-len(apart), math.fsum(map(abs, apart.values())), n))
    return min(nearest)[2] if nearest else None, found


def _scatters(machines: int) -> float:
    """How many standard deviations are beyond chance: more where few machines tell the scatter. The weight is by
    simulation: in tests/test_outliers.py honest fleets are not accused, whatever the tails of their noise."""
    return SCATTERS * (1 + 2 / machines)


def _beyond(
    apart: Mapping[int, float], usual: Mapping[int, _Usual], limits: Mapping[int, float], points: Points
) -> Iterator[Deviation]:
    """Per place the worst size, where two neighbouring sizes are beyond their limits, or one is twice as far: nothing
    bears out a lone figure, and honest times have long tails."""
    late = {number for number, far in apart.items() if far > limits[number]}
    places: dict[int, list[int]] = {}
    for number in apart if late else ():
        places.setdefault(points.places[number], []).append(number)
    for place in dict.fromkeys(points.places[number] for number in apart if number in late):
        sizes = [number in late for number in places[place]]
        worst = max(late.intersection(places[place]), key=lambda number: (apart[number], number))
        alone = apart[worst] > _ALONE * limits[worst]
        if alone or any(a and b for a, b in pairwise(sizes)):
            yield _deviation(points.all[worst], apart[worst], usual[worst])


def _deviation(point: Point, apart: float, usual: _Usual) -> Deviation:
    typical = _speed(point, math.exp(usual.middle))
    scatter = math.expm1(usual.scatter)
    return Deviation(
        point.subject, point.members, point.size_bytes, typical / math.exp(apart), typical, scatter, usual.machines
    )


def _speed(point: Point, time_s: float) -> float:
    """busbw in 1e9 bytes/s, or the rate; and from either the time again."""
    if point.size_bytes is None or isinstance(point.subject, RateKey):
        return 1 / time_s
    return point.size_bytes * bus_factor(point.subject.operation, ranks_of(point.subject)) / time_s / 1e9


def _odd(hosts: Sequence[Host], groups: Sequence[Group]) -> Iterator[Odd]:
    """Small groups beside a large one with the same models of GPUs: a bridge, a link or a GPU may be missing."""
    largest: dict[tuple[str, ...], Group] = {}
    for group in groups:
        if not group.lab:
            models = hosts[group.hosts[0]].models
            largest[models] = max(largest.get(models, group), group, key=lambda one: len(one.hosts))
    for group in groups:
        usual = largest.get(hosts[group.hosts[0]].models, group)
        few = len(group.hosts) < LEAST or len(group.hosts) <= _ODD_SHARE * len(usual.hosts)
        if not group.lab and usual is not group and few and LEAST <= len(usual.hosts) > 3 * len(group.hosts):
            here, there = hosts[group.hosts[0]], hosts[usual.hosts[0]]
            yield Odd(group.hosts, len(usual.hosts), *_told(here, there))


def _told(here: Host, there: Host) -> tuple[str, str]:
    if here.gpus != there.gpus:
        return here.gpus, there.gpus
    if here.wires != there.wires:
        one, other = dict(here.wires), dict(there.wires)
        labels = sorted({*one, *other}, key=lambda label: (one.get(label) == other.get(label), label))
        differ = [label for label in labels if one.get(label) != other.get(label)]
        told = [", ".join(f"{label} x {wires.get(label, 0)}" for label in differ) for wires in (one, other)]
        return told[0], told[1]
    return "NICs, memory or the places of GPUs unlike", "theirs"


def ranks_of(key: CurveKey) -> int:
    """GPUs of a group of this key: n of its n (n - 1) / 2 paths."""
    return (1 + math.isqrt(1 + 8 * sum(count for _, count in key.group.paths))) // 2


def confirmed(survey: Survey, deviations: Sequence[Deviation]) -> list[Deviation]:
    """Those that stand against the confidence interval of the machine's own raw times; rates have none, and stand."""
    known = profiles(survey.curves)
    at = {(curve.key, curve.members): known[id(curve)] for curve in survey.curves}
    kept = []
    for one in deviations:
        if isinstance(one.subject, RateKey) or one.size_bytes is None:
            kept.append(one)
        elif (read := at.get((one.subject, one.members))) is not None:
            ends = read.read(one.size_bytes).interval_s
            usual_s = _speed(Point(one.subject, one.members, one.size_bytes), one.usual)
            if ends is None or ends[0] > usual_s:
                kept.append(one)
    return kept
