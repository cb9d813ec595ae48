"""Bandwidth and latency curves as log-log charts: what stands where, in units of the drawing. Pure geometry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from probe.checks.reading import Expect
from probe.curve import Profile
from probe.errors import one_line
from probe.measurement import Curve, Survey
from probe.statistics import median
from probe.topology import Topology
from probe.units import count, figure, message_size, seconds

WIDTH, HEIGHT = 440.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 430.0, 14.0, 252.0
SERIES = 6
"""Colours and marks that are told apart by everybody; more series become a further chart."""
_LABEL_HEIGHT = 20.0
_OTHERS_DRAWN = 32
_FACETS_DRAWN = 40
_OPERATIONS = {
    "all_reduce": "All-reduce",
    "all_gather": "All-gather",
    "reduce_scatter": "Reduce-scatter",
    "all_to_all": "All-to-all",
    "p2p": "Point to point",
}


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of the grid; without a label a faint one."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    told: str


@dataclass(frozen=True, slots=True)
class Level:
    """What should be reached, where messages are large enough to judge; as a bar what fails beyond it."""

    line: str
    is_bar: bool
    told: str


@dataclass(frozen=True, slots=True)
class Trace:
    """One series: its slowest group in full, with the band of its confidence, and the others as thin lines."""

    place: int
    """Which colour and mark, 0 to 5."""
    line: str
    band: str
    others: tuple[str, ...]
    points: tuple[Point, ...]
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    about: str
    """What is seen, for whom no picture is drawn."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    traces: tuple[Trace, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A series in figures: the legend, and the chart for whoever can't see it."""

    place: int
    label: str
    start: str
    plateau: str
    expected: str
    bar: str
    source: str
    is_low: bool
    half_width: str


@dataclass(frozen=True, slots=True)
class Facet:
    """Charts of one operation, side by side, and their legend."""

    title: str
    charts: tuple[Chart, ...]
    rows: tuple[Row, ...]
    sizes: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    """Each size with (time, bandwidth) of each row, empty where that row has no such size."""

    @property
    def has_plateaus(self) -> bool:
        return any(row.plateau for row in self.rows)

    @property
    def has_expectations(self) -> bool:
        return any(row.expected for row in self.rows)

    @property
    def sources(self) -> tuple[str, ...]:
        """On whose word each row is expected to be as fast as it says."""
        return tuple(f"{row.label}: expected {row.expected} GB/s, {row.source}" for row in self.rows if row.expected)


def facets(survey: Survey, profiles: Mapping[int, Profile], expect: Expect) -> list[Facet]:
    """Every operation that was measured; `profiles` by the id of their curve."""
    found: dict[_Facet, dict[tuple[object, ...], list[Curve]]] = {}
    for curve in survey.curves:
        series = found.setdefault(_Facet.of(curve), {})
        series.setdefault(_series(curve), []).append(curve)
    many = {(c.key.dtype, c.key.backend, c.key.library_version) for c in survey.curves}
    drawn = []
    for kind in sorted(found, key=lambda f: f.order):
        whole = [
            _Series(survey.topology, tuple(found[kind][key]), profiles, expect, len(many) > 1)
            for key in sorted(found[kind], key=str)
        ]
        whole.sort(key=lambda one: one.order)
        parts = [whole[i : i + SERIES] for i in range(0, len(whole), SERIES)]
        for number, part in enumerate(parts):
            title = kind.title + (f" ({number + 1} of {len(parts)})" if len(parts) > 1 else "")
            drawn.append(_facet(title, kind, part))
    return drawn[:_FACETS_DRAWN]


@dataclass(frozen=True, slots=True)
class _Facet:
    """What is drawn together: curves of one operation that are run in one way."""

    operation: str
    graph: bool
    through_host: bool
    both_ways: bool

    @staticmethod
    def of(curve: Curve) -> _Facet:
        key = curve.key
        return _Facet(key.operation, key.graph, key.p2p_enabled is False, key.direction == "both")

    @property
    def order(self) -> tuple[int, str, bool, bool, bool]:
        names = list(_OPERATIONS)
        known = names.index(self.operation) if self.operation in names else len(names)
        return known, self.operation, self.through_host, self.graph, self.both_ways

    @property
    def title(self) -> str:
        text = _OPERATIONS.get(self.operation) or one_line(self.operation, 40)
        if self.operation == "p2p":
            text += ", both ways at once" if self.both_ways else ", one way"
        return text + (", in CUDA graphs" if self.graph else "") + (", without P2P" if self.through_host else "")


def _series(curve: Curve) -> tuple[object, ...]:
    """Equal for curves that should be equally fast, whichever way a pair's bytes go."""
    k = curve.key
    return k.group.nodes, curve.ranks, k.group.concurrent_groups, k.group.paths, k.nvls, k.dtype, k.backend, (
        k.library_version
    )  # fmt: skip


class _Series:
    """Curves that should be equally fast. The slowest, of those with the largest size, stands for them."""

    def __init__(
        self, topology: Topology, curves: Sequence[Curve], profiles: Mapping[int, Profile], expect: Expect, full: bool
    ) -> None:
        read = [(curve, profiles[id(curve)]) for curve in curves]
        largest = max(profile.sizes_bytes[-1] for _, profile in read)
        whole = [one for one in read if one[1].sizes_bytes[-1] == largest]
        self.curve, self.slowest = min(whole, key=lambda one: one[1].plateau_busbw_gbps)
        self.others = [profile for _, profile in read if profile is not self.slowest][:_OTHERS_DRAWN]
        self.groups = len(read)
        self.expected = expect(topology, self.curve.key, self.curve.members)
        self._full = full

    @property
    def judged(self) -> list[int]:
        """Sizes at which something is expected."""
        return [size for size in self.slowest.sizes_bytes if self.expected and self.expected.judges(size)]

    @property
    def bounds(self) -> list[tuple[int, float]]:
        """(size, time) at the ends of what is expected, and of its bar."""
        expected, sizes = self.expected, self.judged
        if expected is None or self.curve.key.graph or len(sizes) < 2:
            return []
        return [(s, self.time_s(s, at(s))) for s in (sizes[0], sizes[-1]) for at in (expected.at, expected.bar_at)]

    def time_s(self, size_bytes: int, busbw_gbps: float) -> float:
        return size_bytes * self.slowest.factor / (busbw_gbps * 1e9)

    @property
    def is_low(self) -> bool:
        """Whether the largest message took longer than the bar allows."""
        size, time_s = self.slowest.sizes_bytes[-1], self.slowest.times_s[-1]
        return self.expected is not None and self.expected.judges(size) and self.expected.is_missed(size, time_s)

    @property
    def order(self) -> tuple[int, int, int, str]:
        group = self.curve.key.group
        return group.nodes, self.curve.ranks, group.concurrent_groups, str(group.paths)

    @property
    def label(self) -> str:
        key, at_once = self.curve.key, self.curve.key.group.concurrent_groups
        paths = one_line("+".join(label for label, _ in key.group.paths), 24)
        parts = [paths if key.operation == "p2p" else f"{count(self.curve.ranks, 'GPU')}, {paths}"]
        parts += [f"{key.group.nodes} nodes"] if key.group.nodes > 1 else []
        parts += [f"{count(at_once, 'pair' if self.curve.ranks == 2 else 'group')} at once"] if at_once > 1 else []
        parts += ["NVLS"] if key.nvls else []
        parts += [one_line(f"{key.backend} {key.library_version or ''} {key.dtype}", 40)] if self._full else []
        return ", ".join(parts)


def _facet(title: str, kind: _Facet, series: Sequence[_Series]) -> Facet:
    charts = [_chart(title, series, latency=True)]
    if not kind.graph:
        charts.insert(0, _chart(title, series, latency=False))
    rows = tuple(_row(place, one, kind.graph) for place, one in enumerate(series))
    return Facet(title, tuple(charts), rows, tuple(_sizes([one.slowest for one in series])))


def _sizes(reads: Sequence[Profile]) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    told = [dict(zip(read.sizes_bytes, read.times_s, strict=True)) for read in reads]
    for size in sorted({size for times in told for size in times}):
        cells = (
            (seconds(times[size]), figure(_busbw(read, size, times[size]))) if size in times else ("", "")
            for read, times in zip(reads, told, strict=True)
        )
        yield message_size(size), tuple(cells)


def _row(place: int, one: _Series, graph: bool) -> Row:
    read, expected = one.slowest, None if graph else one.expected
    widths = [
        (ends[1] - ends[0]) / 2 / t for t, ends in zip(read.times_s, read.intervals_s, strict=True) if ends is not None
    ]
    plateau = ("over " if read.is_rising else "") + figure(read.plateau_busbw_gbps)
    return Row(
        place,
        one.label + (f", slowest of {one.groups}" if one.groups > 1 else ""),
        "" if read.alpha_s is None else ("about " if read.alpha_is_fitted else "") + seconds(read.alpha_s),
        "" if graph else plateau,
        figure(expected.busbw_gbps) if expected else "",
        figure(expected.bar_gbps) if expected else "",
        f"{expected.words} ({expected.source})" if expected else "",
        not graph and one.is_low,
        f"±{100 * median(widths):.2g}%" if widths else "",
    )


def _busbw(read: Profile, size_bytes: int, time_s: float) -> float:
    return size_bytes * read.factor / time_s / 1e9


@dataclass(frozen=True, slots=True)
class _Scale:
    """Logarithmic, from values to the drawing."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


def _chart(title: str, series: Sequence[_Series], *, latency: bool) -> Chart:
    def value(read: Profile, size: int, time_s: float) -> float:
        return time_s * 1e6 if latency else _busbw(read, size, time_s)

    def values(read: Profile) -> Iterator[float]:
        return (value(read, s, t) for s, t in zip(read.sizes_bytes, read.times_s, strict=True))

    reads = [read for one in series for read in (one.slowest, *one.others)]
    levels = [value(one.slowest, size, time_s) for one in series for size, time_s in one.bounds]
    sizes = [size for read in reads for size in (read.sizes_bytes[0], read.sizes_bytes[-1])]
    x = _Scale(min(sizes) / 1.4, max(sizes) * 1.4, LEFT, RIGHT)
    y_low, y_high = _ends([*itertools.chain.from_iterable(map(values, reads)), *levels])
    y = _Scale(y_low, y_high, BOTTOM, TOP)

    def line(read: Profile, ys: Iterable[float]) -> str:
        return " ".join(f"{x.at(s):.1f},{y.at(v):.1f}" for s, v in zip(read.sizes_bytes, ys, strict=True))

    def trace(place: int, one: _Series) -> Trace:
        read = one.slowest
        points = tuple(
            Point(round(x.at(s), 1), round(y.at(value(read, s, t)), 1), _told(one, read, s, t))
            for s, t in zip(read.sizes_bytes, read.times_s, strict=True)
        )
        lines = tuple(line(other, values(other)) for other in one.others)
        levels = tuple(_levels(one, value, x, y))
        return Trace(place, line(read, values(read)), _band(read, value, x, y), lines, points, levels)

    what = "time" if latency else "bus bandwidth"
    return Chart(
        "Time" if latency else "Bus bandwidth, GB/s",
        f"{title}: {what} by message size, both axes logarithmic; the same figures stand in the table below",
        tuple(_size_ticks(x)),
        tuple(_ticks(y, latency)),
        tuple(trace(place, one) for place, one in enumerate(series)),
    )


def _told(one: _Series, read: Profile, size: int, time_s: float) -> str:
    return f"{one.label}: {message_size(size)}, {figure(_busbw(read, size, time_s))} GB/s, {seconds(time_s)}"


def _levels(one: _Series, value: Callable[[Profile, int, float], float], x: _Scale, y: _Scale) -> Iterator[Level]:
    expected = one.expected
    if expected is None or not one.bounds:
        return
    for is_bar, at, said in (
        (False, expected.at, f"expected {figure(expected.busbw_gbps)} GB/s, {expected.words} ({expected.source})"),
        (True, expected.bar_at, f"below {figure(expected.bar_gbps)} GB/s something is wrong"),
    ):
        ys = [(size, value(one.slowest, size, one.time_s(size, at(size)))) for size in one.judged]
        yield Level(" ".join(f"{x.at(s):.1f},{y.at(v):.1f}" for s, v in ys), is_bar, f"{one.label}: {said}")


def _band(read: Profile, value: Callable[[Profile, int, float], float], x: _Scale, y: _Scale) -> str:
    """The outline of the 95 % intervals; empty where one is unknown."""
    there, back = [], []
    for size, ends in zip(read.sizes_bytes, read.intervals_s, strict=True):
        if ends is None:
            return ""
        at = x.at(size)
        low, high = (max(e, 1e-12) for e in ends)
        there.append(f"{at:.1f},{y.at(value(read, size, low)):.1f}")
        back.append(f"{at:.1f},{y.at(value(read, size, high)):.1f}")
    return " ".join((*there, *reversed(back)))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Round ends around all values, at least a factor of 4 apart."""
    low, high = min(values) / 1.15, max(values) * 1.15
    if high / low < 4:
        middle = math.sqrt(low * high)
        low, high = middle / 2, middle * 2
    return low, high


def _ticks(scale: _Scale, latency: bool) -> Iterator[Tick]:
    """At 1, 2 and 5 of each decade; those have a label where there is room for it."""
    decades = math.log10(scale.high / scale.low)
    step = max(1, math.ceil(decades / 6))
    roomy = abs(scale.end - scale.start) / decades * math.log10(2) >= _LABEL_HEIGHT
    for exponent in range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1):
        for digit in (1, 2, 5) if decades <= 4 else (1,):
            tick = digit * 10.0**exponent
            if scale.low <= tick <= scale.high:
                told = exponent % step == 0 if digit == 1 else roomy
                yield Tick(round(scale.at(tick), 1), _tick(tick, latency) if told else "")


def _tick(value: float, latency: bool) -> str:
    return seconds(float(f"{value / 1e6:.3g}")) if latency else figure(float(f"{value:.3g}"))


def _size_ticks(scale: _Scale) -> Iterator[Tick]:
    powers = range(math.ceil(math.log2(scale.low)), math.floor(math.log2(scale.high)) + 1)
    step = next(n for n in (1, 2, 5, 10, 20, 60) if len(powers) / n <= 6)
    for power in powers:
        if power % step == 0:
            yield Tick(round(scale.at(2.0**power), 1), message_size(1 << power))
