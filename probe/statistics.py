"""What raw times say: median, spread, an honest interval of the median, and whether they have two levels.

Times of a shared machine are skewed, follow each other (neighbours in time are alike) and drift over minutes. An
interval that takes them for independent draws is too narrow, so three are formed and the widest counts:

- order statistics of all times: exact for independent draws of any distribution, by the binomial distribution
  (Conover, Practical Nonparametric Statistics, 3rd ed. 1999, section 3.2);
- batches: rounds cut into up to six consecutive batches, Student's interval of the logarithms of the batches'
  medians, which holds where times within a batch are alike (nonoverlapping batch means; Schmeiser, Operations
  Research 30, 1982, 556-568: more than a few batches narrow little, and long ones forget better);
- rounds: the same over the medians of the rounds, which lie far apart in time: it alone sees drift.

All logarithms are natural: a difference of logarithms is a relative difference, and what disturbs times multiplies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

Rounds = Sequence[Sequence[float]]
Interval = tuple[float, float]

_BATCHES = 6
_BATCH = 4
_DRIFT_WEIGHT = 4
_TWO_LEVELS_LEAST = 30
_TWO_LEVELS_ALARM = 0.01
_TWO_LEVELS_APART = math.log(1.05)
_STUDENT_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL_975 = 1.959964


@dataclass(frozen=True, slots=True)
class Drift:
    """How much visits to one point differ: variance of the logarithm of a round's median, over that many freedoms."""

    variance: float
    freedoms: int


@dataclass(frozen=True, slots=True)
class TwoLevels:
    """Times that gather at two levels, each the median of its part; `upper_share` of them are at the upper one."""

    lower_s: float
    upper_s: float
    upper_share: float


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """Of ascending values, linear between neighbours (Hyndman and Fan 1996, type 7, as numpy and R do)."""
    place = (len(ordered) - 1) * fraction
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median(values: Sequence[float]) -> float:
    return quantile(sorted(values), 0.5)


def coefficient_of_variation(values: Sequence[float]) -> float | None:
    """Standard deviation (n - 1) over mean; None for one value, which has no spread."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(_squares(values) / (len(values) - 1)) / mean


def median_interval(rounds: Rounds, drift: Drift | None = None) -> Interval | None:
    """The 95 % confidence interval of the median of all times, in their unit; None where one time is all there is.

    `drift` is what other points of the same run tell of the difference between rounds. It counts as up to four
    further rounds (a moderated variance: Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004, article 3); without it two
    rounds that happen to agree would prove little, and Student's factor for them is 12.7.
    """
    times = sorted(t for one in rounds for t in one)
    middle = math.log(quantile(times, 0.5))
    ends: list[Interval] = []
    rank = _median_rank(len(times))
    if rank:
        ends.append((times[rank - 1], times[-rank]))
    widths = [_spread_of_mean([math.log(t) for t in times])] if not rank else []
    widths += [_spread_of_mean(_batches(rounds)), _spread_between(rounds, drift)]
    ends += [(math.exp(middle - w), math.exp(middle + w)) for w in widths if w is not None]
    return (min(lo for lo, _ in ends), max(hi for _, hi in ends)) if ends else None


def drift_of(points: Sequence[Rounds]) -> Drift | None:
    """The difference between rounds, pooled over points of one run; None where no point has two rounds."""
    squares, freedoms = 0.0, 0
    for rounds in points:
        own = _round_medians(rounds)
        squares += _squares(own)
        freedoms += len(own) - 1
    return Drift(squares / freedoms, freedoms) if freedoms else None


def two_levels(times: Sequence[float]) -> TwoLevels | None:
    """The two levels of a bimodal distribution, None for one level or fewer than 30 times.

    The logarithms (without the outer 5 % on either side, which outliers may own) are split in two where the squares
    within the parts are least (Fisher, JASA 53, 1958). With one mode, a window half-way between the parts' medians
    is at least as dense as the emptier of two equally wide windows around those; two levels are seen where it
    holds so much less that a fair coin would do so in 1 of 100 cases, and where the levels lie 5 % apart. Values
    that a coarse clock made equal are first spread evenly over its tick. False alarms on independent times of one
    mode: under 1 in 200 for uniform (the worst), normal, log-normal and exponential ones; the tests hold it.
    """
    if len(times) < _TWO_LEVELS_LEAST:
        return None
    everything = [math.log(t) for t in _untied(sorted(times))]
    cut = len(everything) // 20
    ordered = everything[cut : len(everything) - cut]
    split = _best_split(ordered)
    lower, upper = quantile(ordered[:split], 0.5), quantile(ordered[split:], 0.5)
    apart = upper - lower
    if apart < _TWO_LEVELS_APART:
        return None
    centres = (lower, (lower + upper) / 2, upper)
    low, middle, high = (sum(abs(v - centre) <= apart / 6 for v in ordered) for centre in centres)
    fewer = min(low, high)
    if middle >= fewer or _coin(middle + fewer, middle) >= _TWO_LEVELS_ALARM:
        return None
    return TwoLevels(math.exp(lower), math.exp(upper), 1 - (cut + split) / len(everything))


def far_out(times: Sequence[float]) -> int:
    """How many times lie beyond the upper quartile by more than three interquartile ranges (Tukey 1977: 'far out')."""
    ordered = sorted(times)
    first, third = quantile(ordered, 0.25), quantile(ordered, 0.75)
    return sum(t > third + 3 * (third - first) for t in ordered)


def rounds_disagree(rounds: Rounds, least: float) -> bool:
    """Whether two rounds differ beyond doubt: medians `least` apart (relative), and their own intervals disjoint."""
    own = [(median(one), median_interval([one])) for one in rounds]
    known = [(middle, ends) for middle, ends in own if ends is not None]
    if len(known) < 2:
        return False
    lowest = min(known, key=lambda one: one[1][1])
    highest = max(known, key=lambda one: one[1][0])
    return lowest[1][1] < highest[1][0] and highest[0] >= lowest[0] * (1 + least)


def _round_medians(rounds: Rounds) -> list[float]:
    return [math.log(median(one)) for one in rounds]


def _batches(rounds: Rounds) -> list[float]:
    """Logarithms of the medians of consecutive batches, none across two rounds; rounds too short for five have none."""
    found = []
    for one in rounds:
        count = min(_BATCHES, len(one) // _BATCH)
        if count >= 5:
            edges = [len(one) * i // count for i in range(count + 1)]
            found += [math.log(median(one[a:b])) for a, b in itertools.pairwise(edges)]
    return found


def _spread_between(rounds: Rounds, drift: Drift | None) -> float | None:
    own = _round_medians(rounds)
    squares, freedoms = _squares(own), len(own) - 1
    if drift is not None:
        weight = min(_DRIFT_WEIGHT, drift.freedoms)
        squares, freedoms = squares + weight * drift.variance, freedoms + weight
    return student_975(freedoms) * math.sqrt(squares / freedoms / len(own)) if freedoms else None


def _spread_of_mean(values: Sequence[float]) -> float | None:
    n = len(values)
    return student_975(n - 1) * math.sqrt(_squares(values) / (n - 1) / n) if n > 1 else None


def _squares(values: Sequence[float]) -> float:
    """Sum of squared deviations from the mean."""
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values)


def student_975(freedoms: int) -> float:
    """The 97.5 % point of Student's t: to 10 freedoms by table, above by Abramowitz and Stegun 26.7.5."""
    if freedoms <= len(_STUDENT_975):
        return _STUDENT_975[freedoms - 1]
    z = _NORMAL_975
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + math.fsum(term / freedoms**power for power, term in enumerate(terms, 1))


@lru_cache(maxsize=1024)
def _median_rank(n: int) -> int:
    """The largest k for which the k-th smallest and k-th largest of n enclose the median in >= 95 %; 0: none does."""
    if n > 1000:
        return int((n - _NORMAL_975 * math.sqrt(n)) / 2)
    tail, k = 0, 0
    while True:
        tail += math.comb(n, k)
        if tail * 40 > 1 << n:
            return k
        k += 1


def _coin(tosses: int, heads: int) -> float:
    """P(at most so many heads) of a fair coin."""
    return sum(math.comb(tosses, k) for k in range(heads + 1)) / (1 << tosses)


def _best_split(ordered: Sequence[float]) -> int:
    """The k for which the first k and the rest have the least sum of squares within."""
    total = math.fsum(ordered)
    before, best, place = 0.0, -math.inf, 1
    for k in range(1, len(ordered)):
        before += ordered[k - 1]
        between = before**2 / k + (total - before) ** 2 / (len(ordered) - k)
        if between > best:
            best, place = between, k
    return place


def _untied(ordered: Sequence[float]) -> list[float]:
    """Equal values spread evenly over the smallest step between different ones: the clock's tick."""
    tick = min((b - a for a, b in itertools.pairwise(ordered) if b > a), default=0.0)
    tick = min(tick, ordered[0])
    spread = []
    at = 0
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end] == ordered[at]:
            end += 1
        count = end - at
        spread += [ordered[at] + tick * ((i + 0.5) / count - 0.5) for i in range(count)]
        at = end
    return spread
