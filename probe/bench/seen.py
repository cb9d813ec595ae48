"""What a run has seen so far, point by point, and what the next visit would cost by it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

from probe.statistics import Drift, drift_of, median, median_interval

Point = tuple[int, int]
"""(step, size in bytes)."""

SETTLED = 0.03
"""Relative change of bandwidth per doubling, over two doublings, below which larger messages tell nothing new."""
_LARGE = 1 << 20
"""From here on what a visit needs beside its runs grows with its buffers."""
_FORGET = 0.9


class Seen:
    """The points of this run, and of an earlier one: (step, size) -> (rounds, median in seconds)."""

    def __init__(self, sizes: Sequence[Sequence[int]], earlier: Mapping[Point, tuple[int, float]]) -> None:
        self._sizes = sizes
        self._earlier = {point: done for point, done in earlier.items() if done[0] > 0}
        self._times: dict[Point, list[Sequence[float]]] = {}

    def add(self, point: Point, times: Sequence[float]) -> None:
        self._times.setdefault(point, []).append(tuple(times))

    def has_begun(self, step: int) -> bool:
        """Whether this run, which had to bring the group together, has visited the step."""
        return any((step, size) in self._times for size in self._sizes[step])

    def rounds(self, point: Point) -> int:
        return len(self._times.get(point, ())) + self._earlier.get(point, (0, 0.0))[0]

    def sizes(self, step: int) -> list[int]:
        """Those of the step's sizes that are known, ascending."""
        return [size for size in self._sizes[step] if self.rounds((step, size))]

    def run_s(self, point: Point) -> float:
        """The median of a known point."""
        rounds = self._times.get(point)
        return median(list(chain.from_iterable(rounds))) if rounds else self._earlier[point][1]

    def expected_run_s(self, step: int, size: int, *, cautious: bool = False) -> float:
        """The time of one run: that of the next larger known size, or a line through the two largest ones.

        Through one alone the line is flat, as small messages are, or where caution is asked for in proportion to the
        bytes. Of a step that nothing is known of, the slowest other step tells; 0 where there is none.
        """
        known = self.sizes(step)
        if not known:
            begun = {other for other, _ in self._times}
            return max((self.expected_run_s(other, size, cautious=cautious) for other in begun), default=0.0)
        larger = [s for s in known if s >= size]
        if larger:
            return self.run_s((step, larger[0]))
        last_s = self.run_s((step, known[-1]))
        most_per_byte_s = last_s / known[-1]
        if len(known) > 1:
            rise_s = last_s - self.run_s((step, known[-2]))
            per_byte_s = min(most_per_byte_s, max(0.0, rise_s / (known[-1] - known[-2])))
        else:
            per_byte_s = most_per_byte_s if cautious else 0.0
        return last_s + per_byte_s * (size - known[-1])

    def is_settled(self, step: int) -> bool:
        """Whether the last three sizes stand next to each other and carry the same bandwidth."""
        known, sizes = self.sizes(step), self._sizes[step]
        if len(known) < 3 or known[-3:] != list(sizes[sizes.index(known[-1]) - 2 :][:3]):
            return False
        rates = [size / self.run_s((step, size)) for size in known[-3:]]
        return all(abs(later / earlier - 1) < SETTLED for earlier, later in pairwise(rates))

    def drift(self) -> Drift | None:
        """How rounds differ, over all points; None as long as no point has two."""
        return drift_of([[[median(one)] for one in rounds] for rounds in self._times.values()])

    def half_width(self, point: Point, drift: Drift | None) -> float | None:
        """Of the median's 95 % interval, relative; None where it is unknown: a single round says nothing of drift."""
        rounds = self._times.get(point)
        if rounds is None or (drift is None and len(rounds) == 1):
            return None
        ends = median_interval(rounds, drift)
        return (ends[1] - ends[0]) / 2 / self.run_s(point) if ends else None


class Cost:
    """What visits need beside their repetitions: buffers, the check of the data, barriers; more for a step's first."""

    def __init__(self) -> None:
        self._beside_s: dict[int, float] = {}
        self._first_s = 0.0

    def learn(self, size: int, beside_s: float, *, is_first: bool) -> None:
        beside_s = max(0.0, beside_s)
        if is_first:
            self._first_s = max(beside_s, self._first_s * _FORGET)
        else:
            self._beside_s[size] = max(beside_s, self._beside_s.get(size, 0.0) * _FORGET)

    def of(self, size: int, *, is_first: bool = False) -> float:
        """The recent worst at this size or the next larger known one; past the largest, what depends on it grows."""
        larger = [s for s in self._beside_s if s >= size]
        if larger:
            beside_s = self._beside_s[min(larger)]
        elif self._beside_s:
            largest, least_s = max(self._beside_s), min(self._beside_s.values())
            grows = size / largest if largest >= _LARGE else 1
            beside_s = least_s + (self._beside_s[largest] - least_s) * grows
        else:
            beside_s = 0.0
        return max(beside_s, self._first_s) if is_first else beside_s
