"""What audits of one machine say over time: series per link, how far they moved, what else changed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from probe.curve import SMALL_BYTES, Interval, Profile, bus_factor, profiles
from probe.measurement import Curve, CurveKey, Survey
from probe.stability import WIDE
from probe.statistics import median
from probe.topology import GpuRef, require

_KEPT_EVERY = 5


@dataclass(frozen=True, slots=True)
class Link:
    """A path or a group, and how it was driven. Neither the library's version nor the kind of the paths is part of it:
    those may change while it stays the same link."""

    operation: str
    members: tuple[GpuRef, ...]
    dtype: str
    backend: str
    graph: bool = False
    direction: str | None = None
    p2p_enabled: bool | None = None
    nvls: bool | None = None
    concurrent_groups: int = 1

    def __post_init__(self) -> None:
        require(len(self.members) >= 2, "a link joins two GPUs or more")
        bus_factor(self.operation, len(self.members))

    @property
    def order(self) -> tuple[object, ...]:
        """Pairs first, then groups by size; of equal members by operation."""
        ways = (self.operation, self.direction or "", self.graph, self.p2p_enabled is False, self.concurrent_groups)
        return (len(self.members), self.members, *ways, self.nvls or False, self.dtype, self.backend)


@dataclass(frozen=True, slots=True)
class Figure:
    """A median time with its 95 % interval. `size_bytes` None: the start-up time, over all sizes up to 32 KiB."""

    link: Link
    size_bytes: int | None
    time_s: float
    interval_s: Interval | None


@dataclass(frozen=True, slots=True)
class Record:
    """One audit that was kept. `facts` are what may explain a change: driver, library, wires, environment.

    `findings` are (code, severity, how often). `points` is 0 where nothing was measured since the audit before.
    """

    number: int
    audited_at: str
    measured_at: str | None
    facts: tuple[tuple[str, str], ...]
    findings: tuple[tuple[str, str, int], ...]
    points: int


@dataclass(frozen=True, slots=True)
class Change:
    """A fact that is another one than at the audit before; None: not told then, or not any more."""

    number: int
    audited_at: str
    fact: str
    before: str | None
    after: str | None


class Verdict(str, Enum):
    """How the last figure stands to the first: beyond the intervals of both and by more than a plan notices, or not."""

    SLOWER = "slower"
    FASTER = "faster"
    STEADY = "steady"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Point:
    """What the audit of this number measured."""

    number: int
    time_s: float
    interval_s: Interval | None


@dataclass(frozen=True)
class Series:
    """One figure of one link over time, the oldest point first."""

    link: Link
    size_bytes: int | None
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        require(len(self.points) > 0, "a series has a point")
        require(self.size_bytes is None or self.size_bytes > 0, "a size is at least one byte")
        require(all(point.time_s > 0 for point in self.points), "times are positive")

    @property
    def is_bandwidth(self) -> bool:
        return self.size_bytes is not None

    def value(self, time_s: float) -> float:
        """busbw in 1e9 bytes/s; of a start-up time the seconds themselves."""
        if self.size_bytes is None:
            return time_s
        return self.size_bytes * bus_factor(self.link.operation, len(self.link.members)) / time_s / 1e9

    @property
    def first(self) -> Point:
        return self.points[0]

    @property
    def last(self) -> Point:
        return self.points[-1]

    @property
    def worst(self) -> Point:
        return max(self.points, key=lambda point: point.time_s)

    @property
    def change(self) -> float:
        """Relative change of `value` from the first to the last: -0.1 is 10 % less bandwidth, or a quicker start."""
        return self.value(self.last.time_s) / self.value(self.first.time_s) - 1

    @property
    def is_beyond_interval(self) -> bool | None:
        """Whether the 95 % intervals of the first and the last are apart; None where one of them is not known."""
        ends, others = self.first.interval_s, self.last.interval_s
        if len(self.points) < 2 or ends is None or others is None:
            return None
        return ends[1] < others[0] or others[1] < ends[0]

    @property
    def verdict(self) -> Verdict:
        apart = self.is_beyond_interval
        if apart is None:
            return Verdict.UNKNOWN
        ratio = self.last.time_s / self.first.time_s
        if not apart or max(ratio, 1 / ratio) <= 1 + WIDE:
            return Verdict.STEADY
        return Verdict.SLOWER if ratio > 1 else Verdict.FASTER


@dataclass(frozen=True)
class MachineHistory:
    """All that was kept of one machine; `lab` where CPU ranks stood in for its GPUs."""

    name: str
    nodes: int
    lab: bool
    records: tuple[Record, ...]
    series: tuple[Series, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(changes(self.records))

    @property
    def slower(self) -> tuple[Series, ...]:
        """What is slower beyond doubt, the furthest first."""
        found = [one for one in self.series if one.verdict is Verdict.SLOWER]
        return tuple(sorted(found, key=lambda one: one.first.time_s / one.last.time_s))


def changes(records: Sequence[Record]) -> Iterator[Change]:
    """From audit to audit, oldest first, each fact that changed."""
    for before, after in pairwise(records):
        old, new = dict(before.facts), dict(after.facts)
        for fact in dict.fromkeys((*old, *new)):
            if old.get(fact) != new.get(fact):
                yield Change(after.number, after.audited_at, fact, old.get(fact), new.get(fact))


def figures(survey: Survey) -> Iterator[Figure]:
    """What of a survey is worth keeping: per curve the start-up time, the sizes that every measurement visits (16 KiB,
    512 KiB, 16 MiB and 512 MiB) and the largest."""
    known = profiles(survey.curves)
    for curve in survey.curves:
        if len(curve.members) >= 2:
            yield from _figures(link_of(curve.key, curve.members), curve, known[id(curve)])


def link_of(key: CurveKey, members: tuple[GpuRef, ...]) -> Link:
    ways = (key.graph, key.direction, key.p2p_enabled, key.nvls, key.group.concurrent_groups)
    return Link(key.operation, members, key.dtype, key.backend, *ways)


def _figures(link: Link, curve: Curve, read: Profile) -> Iterator[Figure]:
    at_start = []
    for sample, time_s, ends in zip(curve.samples, read.times_s, read.intervals_s, strict=True):
        if sample.size_bytes <= SMALL_BYTES:
            at_start.append(ends)
        if sample.size_bytes.bit_length() % _KEPT_EVERY == 0 or sample is curve.samples[-1]:
            yield Figure(link, sample.size_bytes, time_s, ends)
    if at_start and read.alpha_s is not None:
        told = [pair for pair in at_start if pair is not None]
        # The median of the ends encloses the median of the medians, and is no narrower than a typical one of them.
        both = (median([low for low, _ in told]), median([high for _, high in told])) if told else None
        inside = both is not None and both[0] <= read.alpha_s <= both[1]
        yield Figure(link, None, read.alpha_s, both if inside else None)
