"""Reads a curve: the time at any size, start-up time, plateau bandwidth, n-half, and the lines behind them.

Sizes and bandwidths are those of nccl-tests (its doc/PERFORMANCE.md): algbw = bytes / t, busbw = algbw x a factor
that makes the wire's rate of it, whatever the number of ranks. 1 GB/s = 1e9 bytes/s.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from probe.measurement import Curve
from probe.statistics import Drift, drift_of, median, median_interval
from probe.topology import require

Interval = tuple[float, float]

_OWN_DRIFT = 4
SMALL_BYTES = 32 << 10
"""Up to here start-up time rules: at 10 GB/s the bytes themselves take 3 us, and no collective starts in less."""
_SETTLED = 0.03
"""Bandwidths that differ by less are one plateau; the same bound at which a measurement stops doubling the size."""


def bus_factor(operation: str, ranks: int) -> float:
    """busbw over algbw, as nccl-tests' PERFORMANCE.md derives it: all-reduce 2(n-1)/n; all-gather, reduce-scatter and
    all-to-all (n-1)/n, with the total bytes; p2p 1, with the bytes of one direction. Raises ValueError."""
    require(ranks >= 1, "a group has a member")
    if operation == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if operation in ("all_gather", "reduce_scatter", "all_to_all"):
        return (ranks - 1) / ranks
    require(operation == "p2p", f"no operation is called {operation}")
    return 1.0


def algbw_gbps(size_bytes: float, time_s: float) -> float:
    """Bytes over time, in 1e9 bytes/s."""
    return size_bytes / time_s / 1e9


@dataclass(frozen=True, slots=True)
class Reading:
    """A time at a size. Where it is `extrapolated`, past the measured sizes, nothing is known of its accuracy."""

    time_s: float
    extrapolated: bool = False
    interval_s: Interval | None = None
    """95 % confidence; None where too few times were taken, and of every extrapolation."""


@dataclass(frozen=True, slots=True)
class Piece:
    """t = alpha + beta x bytes (Hockney, Parallel Computing 20, 1994, 389-398) for sizes up to `until_bytes`."""

    alpha_s: float
    beta_s_per_byte: float
    until_bytes: int

    def __post_init__(self) -> None:
        require(self.alpha_s >= 0 and self.beta_s_per_byte >= 0, "no time and no bandwidth is negative")


@dataclass(frozen=True, slots=True)
class Fit:
    """One or two pieces over all sizes. `residual` is the root mean square of the relative error (0.1 = 10 %)."""

    pieces: tuple[Piece, ...]
    residual: float


@dataclass(frozen=True)
class Profile:
    """A curve ready to be asked: the median time of each size, its interval, and busbw's factor."""

    sizes_bytes: tuple[int, ...]
    times_s: tuple[float, ...]
    intervals_s: tuple[Interval | None, ...]
    factor: float = 1.0

    def __post_init__(self) -> None:
        n = len(self.sizes_bytes)
        require(n > 0 and n == len(self.times_s) == len(self.intervals_s), "each size has a time and an interval")
        require(self.sizes_bytes[0] > 0, "a size is at least one byte")
        require(all(a < b for a, b in itertools.pairwise(self.sizes_bytes)), "sizes ascend, each measured once")
        require(all(0 < t < math.inf for t in self.times_s), "times are positive and finite")

    def read(self, size_bytes: float) -> Reading:
        """The time at a size, in O(log n). Raises ValueError on a size that isn't positive and finite.

        A measured size reads as measured. Between two sizes it is the line that `between` draws. Below the smallest
        it falls towards `alpha_s`, which it never undercuts: flat where the smallest size costs no more than start-up.
        Above the largest each further byte comes at the plateau's bandwidth.
        """
        require(0 < size_bytes < math.inf, "a size is positive and finite")
        first, last = self.sizes_bytes[0], self.sizes_bytes[-1]
        if size_bytes < first:
            start = self.times_s[0] if self.alpha_s is None else min(self.alpha_s, self.times_s[0])
            return Reading(start + (self.times_s[0] - start) * size_bytes / first, True)
        if size_bytes > last:
            return Reading(self.times_s[-1] + (size_bytes - last) / (self.plateau_algbw_gbps * 1e9), True)
        at = bisect.bisect_left(self.sizes_bytes, size_bytes)
        if self.sizes_bytes[at] == size_bytes:
            return Reading(self.times_s[at], False, self.intervals_s[at])
        ends = self.sizes_bytes[at - 1], self.sizes_bytes[at]
        time_s = between(size_bytes, ends, (self.times_s[at - 1], self.times_s[at]))
        one, other = self.intervals_s[at - 1], self.intervals_s[at]
        if one is None or other is None:
            return Reading(time_s)
        low, high = (between(size_bytes, ends, pair) for pair in zip(one, other, strict=True))
        return Reading(time_s, False, (min(low, time_s), max(high, time_s)))

    @cached_property
    def alpha_s(self) -> float | None:
        """Start-up time: the median over the measured sizes up to 32 KiB. Without such sizes the first piece of the
        fit tells it, and with a single size nothing does."""
        small = [t for size, t in zip(self.sizes_bytes, self.times_s, strict=True) if size <= SMALL_BYTES]
        if small:
            return median(small)
        return min(self.fit.pieces[0].alpha_s, self.times_s[0]) if len(self.sizes_bytes) > 1 else None

    @property
    def alpha_is_fitted(self) -> bool:
        return self.sizes_bytes[0] > SMALL_BYTES

    @cached_property
    def _settled(self) -> tuple[float, ...]:
        """Bandwidths of the largest sizes, down to the first that differs from the largest's by 3 % or more."""
        rates = [algbw_gbps(s, t) for s, t in zip(self.sizes_bytes, self.times_s, strict=True)]
        return tuple(itertools.takewhile(lambda rate: abs(rate / rates[-1] - 1) < _SETTLED, reversed(rates)))

    @cached_property
    def plateau_algbw_gbps(self) -> float:
        """The bandwidth that large sizes settle at: the median over those within 3 % of the largest."""
        return median(self._settled)

    @property
    def plateau_busbw_gbps(self) -> float:
        return self.plateau_algbw_gbps * self.factor

    @property
    def plateau_reached(self) -> bool:
        """Whether the last two sizes agree; otherwise the plateau is only what the largest size reached."""
        return len(self._settled) > 1

    @property
    def is_rising(self) -> bool:
        """Whether a larger size than the largest would probably show more: it was still faster than the one before."""
        if self.plateau_reached or len(self.sizes_bytes) < 2:
            return not self.plateau_reached
        before, last = (size / t for size, t in list(zip(self.sizes_bytes, self.times_s, strict=True))[-2:])
        return last > before

    @cached_property
    def n_half_bytes(self) -> float:
        """The least size that gets half the plateau's bandwidth (Hockney's n-half): alpha / beta of a straight line.

        Read from the curve; below the smallest size that is an extrapolation, and 0 means that nothing of a start-up
        time was seen.
        """
        half = self.plateau_algbw_gbps / 2
        rates = (algbw_gbps(s, t) for s, t in zip(self.sizes_bytes, self.times_s, strict=True))
        at = next(i for i, rate in enumerate(rates) if rate >= half)
        low, high = float(self.sizes_bytes[at - 1]) if at else 0.0, float(self.sizes_bytes[at])
        for _ in range(60):
            middle = (low + high) / 2
            reached = middle > 0 and algbw_gbps(middle, self.read(middle).time_s) >= half
            low, high = (low, middle) if reached else (middle, high)
        return high if high > 1 else 0.0

    @cached_property
    def fit(self) -> Fit:
        """The two straight lines, each with alpha, beta >= 0, that err least *relatively*.

        Times span four decades, so least squares on t sees only the largest sizes and gives them an alpha that may be
        off by half or negative. Here (alpha + beta s) / t - 1 is squared: linear in alpha and beta with u = 1 / t and
        v = s / t, so a piece is two normal equations; where their solution is negative, the least of a convex function
        over the quadrant lies on an axis, where it is a one-line formula. The cut that leaves the least sum is taken
        out of all that give each line two sizes; fewer than four sizes get one line.
        """
        points = list(zip(self.sizes_bytes, self.times_s, strict=True))
        cuts = range(2, len(points) - 1) if len(points) >= 4 else (len(points),)
        candidates = [[_line(part) for part in (points[:cut], points[cut:]) if part] for cut in cuts]
        best = min(candidates, key=lambda lines: sum(squares for squares, _ in lines))
        residual = math.sqrt(sum(squares for squares, _ in best) / len(points))
        return Fit(tuple(piece for _, piece in best), residual)


def between(size_bytes: float, sizes: tuple[float, float], times_s: tuple[float, float]) -> float:
    """The time at a size between two measured ones; it never leaves the two times.

    The line is Hockney's alpha + beta x bytes through both points where that has alpha, beta >= 0: where the time
    neither falls nor grows faster than the size, a slope of 0 to 1 on log-log axes. Elsewhere it is straight on
    log-log axes, a power law. A straight log-log line everywhere would overstate every latency-and-bandwidth curve,
    half-way between sizes a factor 2 apart by up to 1.5 %, a factor 4 apart by up to 6.1 %
    (sqrt((1 + x)(1 + r x)) / (1 + sqrt(r) x) at x = 1 / sqrt(r)).
    """
    (s0, s1), (t0, t1) = sizes, times_s
    if t0 <= t1 and t1 * s0 <= t0 * s1:
        time_s = t0 + (t1 - t0) * (size_bytes - s0) / (s1 - s0)
    else:
        share = math.log(size_bytes / s0) / math.log(s1 / s0)
        time_s = math.exp(math.log(t0) + share * math.log(t1 / t0))
    return min(max(time_s, min(times_s)), max(times_s))


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, Piece]:
    """(sum of squared relative errors, the piece) of the best line with alpha, beta >= 0."""
    # In units of the last point, so that no square over- or underflows.
    size_unit, time_unit = points[-1]
    u = [time_unit / t for _, t in points]
    v = [(s / size_unit) * (time_unit / t) for s, t in points]
    uu, uv, vv = (math.fsum(a * b for a, b in zip(x, y, strict=True)) for x, y in ((u, u), (u, v), (v, v)))
    su, sv = math.fsum(u), math.fsum(v)
    lines = [(su / uu, 0.0), (0.0, sv / vv)]
    determinant = uu * vv - uv * uv
    if determinant > 1e-12 * uu * vv:
        alpha, beta = (su * vv - sv * uv) / determinant, (uu * sv - uv * su) / determinant
        lines += [(alpha, beta)] if alpha >= 0 and beta >= 0 else []
    squares, alpha, beta = min(
        (math.fsum((a * x + b * y - 1) ** 2 for x, y in zip(u, v, strict=True)), a, b) for a, b in lines
    )
    return squares, Piece(alpha * time_unit, beta * time_unit / size_unit, size_unit)


def profile(curve: Curve, drift: Drift | None = None) -> Profile:
    """The curve with its intervals. Drift between rounds is learnt from all its sizes, visited together as they were;
    where fewer than four show any, `drift` counts: what the whole run showed."""
    own = drift_of([sample.rounds_s for sample in curve.samples])
    known = own if own is not None and own.freedoms >= _OWN_DRIFT else drift or own
    return Profile(
        tuple(sample.size_bytes for sample in curve.samples),
        tuple(sample.p50_s for sample in curve.samples),
        tuple(median_interval(sample.rounds_s, known) for sample in curve.samples),
        bus_factor(curve.key.operation, curve.ranks),
    )


def profiles(curves: Sequence[Curve]) -> dict[int, Profile]:
    """Those of one survey, by the id of their curve: a size seen once drifts as what was seen twice beside it."""
    drift = drift_of([sample.rounds_s for curve in curves for sample in curve.samples])
    return {id(curve): profile(curve, drift) for curve in curves}
