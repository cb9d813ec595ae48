"""What to visit next, and for how long, so that a budget buys the most useful points first. Pure: clocks are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from probe.bench.schedule import Step
from probe.bench.seen import Cost, Point, Seen
from probe.statistics import median
from probe.topology import Notice
from probe.units import count, some

RATES = -1
"""The step of a visit that measures every GPU's own rates (memory, GEMM, copies) and no group; its size is 0."""
ROUNDS = 3
"""Visits of one point at most. They lie far apart in time, since only then do they show what drifts."""
LEAST_RUNS = 5
"""Runs of an operation that no visit goes below: one to warm up, one to look at the data, and three for a median."""

_COARSE = (1 << 14, 1 << 19, 1 << 24)
"""Decode latency, the knee, and bandwidth."""
_TIGHT = 0.03
"""Relative half-width of a median's 95 % interval with which a point needs no further visit."""
_SHORTEST_S, _LONGEST_S = 0.02, 1.0
"""Of one visit, without what it needs beside its runs."""
_RATES_S = 2.0
_RATES_SHARE = 0.15
"""Of the time left."""
_DRIFT_POINTS = 6
"""Points whose second rounds tell how rounds differ; an interval counts no more than four (probe.statistics)."""
_DEAR, _CHEAP_S = 2, 0.1
"""Shares of the time that runs may cost; what costs more (and is not cheap, in seconds) waits."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One stay at a size of a step: `seconds` bounds the repetitions, `round` counts the earlier visits."""

    step: int
    size_bytes: int
    seconds: float
    round: int


@dataclass(frozen=True, slots=True)
class _Wish:
    """A point that is worth a visit, and how many of its kind (itself too) have to share the time."""

    point: Point
    left: int
    can_wait: bool


class Conductor:
    """Decides visit after visit: `next`, then `seen` or `failed`.

    First three sizes of every step; then doubling until bandwidth settles; then a few of these points again, since only
    second rounds show how much the machine drifts; then the sizes between; then what was too dear before; then second
    and third rounds where the median's interval is still wide. Within each part the most useful step comes first, and
    each plans for half of the time that is left. A size that is too dear for its share waits, and a smaller one stands
    in for it. What a visit costs is learnt from those before it, and none is begun that would not end in time. Without
    an end everything is visited three times. `have` holds what an earlier run measured: (step, size) -> (rounds, median
    in seconds), and (RATES, 0) -> anything.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        sizes_of_step: Callable[[Step], Sequence[int]],
        have: Mapping[Point, tuple[int, float]],
        ends_s: float | None,
        *,
        rates: bool = True,
        rounds: int = ROUNDS,
    ) -> None:
        self.steps = tuple(steps)
        self._sizes = tuple(tuple(sizes_of_step(step)) for step in self.steps)
        self._ends_s = ends_s
        self._rounds = rounds
        self._rates_wanted = rates and (RATES, 0) not in have
        self._seen = Seen(self._sizes, {point: done for point, done in have.items() if point[0] != RATES})
        self._cost = Cost()
        self._too_large: dict[int, int] = {}
        self._dear: list[Point] = []
        self._now_s = 0.0
        self._until_s = 0.0
        self._wishes = self._parts()

    def next(self, now_s: float) -> Visit | None:
        """The next visit; None when all is measured or nothing more ends in time."""
        self._now_s = now_s
        if self._ends_s is not None and now_s + _SHORTEST_S > self._ends_s:
            return None
        for wish in self._wishes:
            step, size = wish.point
            if step == RATES:
                return Visit(step, size, self._rates_s(), 0)
            fair_s = self._fair_s(wish)
            if wish.can_wait and self._is_dear(wish.point, fair_s):
                self._dear.append(wish.point)
                stand_in = self._stand_in(wish.point, fair_s)
                if stand_in is None:
                    continue
                size = stand_in
            runs_s = LEAST_RUNS * self._seen.expected_run_s(step, size, cautious=True)
            beside_s = self._cost.of(size, is_first=not self._seen.has_begun(step))
            if self._ends_s is None or now_s + beside_s + max(fair_s, runs_s) <= self._ends_s:
                return Visit(step, size, fair_s, self._seen.rounds((step, size)))
        return None

    def seen(self, visit: Visit, times_by_group: Sequence[Sequence[float]], took_s: float) -> None:
        """What a visit found, in seconds per run and group, and how long it took with all that it needs."""
        if visit.step == RATES:
            self._rates_wanted = False
            return
        slowest = max((times for times in times_by_group if times), key=median, default=None)
        if slowest is None:
            self.failed(visit)
            return
        beside_s = took_s - max(visit.seconds, sum(slowest))
        self._cost.learn(visit.size_bytes, beside_s, is_first=not self._seen.has_begun(visit.step))
        self._seen.add((visit.step, visit.size_bytes), slowest)

    def failed(self, visit: Visit) -> None:
        """This size of this step does not work; it and larger ones are not visited any more."""
        if visit.step == RATES:
            self._rates_wanted = False
        else:
            known = self._too_large.get(visit.step, visit.size_bytes)
            self._too_large[visit.step] = min(known, visit.size_bytes)

    def why_missing(self) -> tuple[Notice, ...]:
        """What was not measured, and why."""
        never, partly = [], []
        for i, step in enumerate(self.steps):
            known, gaps = len(self._seen.sizes(i)), len(self._gaps(i))
            if gaps and known:
                partly.append(f"{step.label} ({known} of {known + gaps} sizes)")
            elif gaps:
                never.append(step.label)
        cure = "Give more time with --budget, and go on with --resume."
        found = []
        if never:
            text = f"The time ended before {count(len(never), 'step')}: {some(never)}. {cure}"
            found.append(Notice("not-measured", text))
        if partly:
            text = f"The time ended before some sizes of {count(len(partly), 'step')}: {some(partly)}. {cure}"
            found.append(Notice("partly-measured", text))
        broken = [f"{self.steps[i].label} from {size:,} bytes" for i, size in sorted(self._too_large.items())]
        if broken:
            found.append(Notice("did-not-work", f"Sizes that did not work were left out: {some(broken)}."))
        return tuple(found)

    def _parts(self) -> Iterator[_Wish]:
        """What is worth a visit, in order. Every part reads what the visits before it have found."""
        yield from self._part(self._coarse())
        yield from self._part(tuple(self._dear))
        yield from self._part([(i, s) for i, sizes in enumerate(self._sizes) for s in sizes if s > coarse(sizes)[-1]])
        yield from self._part(self._again(is_coarse=True)[:_DRIFT_POINTS], again=True)
        yield from self._part(self._between())
        yield from self._part(self._dear, can_wait=False)
        for _ in range(self._rounds - 1):
            for is_coarse in (True, False):
                yield from self._part(self._again(is_coarse), again=True)

    def _part(self, points: Sequence[Point], *, can_wait: bool = True, again: bool = False) -> Iterator[_Wish]:
        if self._ends_s is not None:
            self._until_s = self._now_s + (self._ends_s - self._now_s) / 2
        for number, point in enumerate(points):
            if again or self._is_new(point):
                yield _Wish(point, len(points) - number, can_wait and not again and self._ends_s is not None)

    def _is_new(self, point: Point) -> bool:
        step, size = point
        if step == RATES:
            return self._rates_wanted
        beyond = size > max(self._seen.sizes(step), default=size) and self._seen.is_settled(step)
        return not beyond and self._works(point) and not self._seen.rounds(point)

    def _works(self, point: Point) -> bool:
        step, size = point
        return size < self._too_large.get(step, size + 1)

    def _coarse(self) -> list[Point]:
        """Step by step; the GPUs' own rates are cheap and always needed, and come after the first step."""
        points = [(i, s) for i, sizes in enumerate(self._sizes) for s in coarse(sizes)]
        early = sum(step == 0 for step, _ in points)
        return [*points[:early], (RATES, 0), *points[early:]]

    def _between(self) -> list[Point]:
        """Each step's size that is farthest from a known one, then each step's next."""
        columns = [
            [(i, size) for size in _farthest_first(sizes, self._gaps(i))]
            for i, sizes in enumerate(self._sizes)
        ]  # fmt: skip
        return [p for row in zip_longest(*columns) for p in row if p is not None and p not in self._dear]

    def _gaps(self, step: int) -> list[int]:
        return [size for size in self._sizes[step] if self._is_new((step, size))]

    def _again(self, is_coarse: bool) -> list[Point]:
        """Points that deserve another round."""
        drift = self._seen.drift()
        found = []
        for i, sizes in enumerate(self._sizes):
            chosen = coarse(sizes)
            for point in ((i, size) for size in self._seen.sizes(i) if (size in chosen) == is_coarse):
                if self._seen.rounds(point) < self._rounds and self._works(point):
                    width = None if self._ends_s is None else self._seen.half_width(point, drift)
                    if width is None or width > _TIGHT:
                        found.append(point)
        return found

    def _is_dear(self, point: Point, fair_s: float) -> bool:
        return LEAST_RUNS * self._seen.expected_run_s(*point) > max(_DEAR * fair_s, _CHEAP_S)

    def _stand_in(self, point: Point, fair_s: float) -> int | None:
        """The largest size below, above those known, that is not too dear: a slow wire is at its best there, too."""
        step, size = point
        least = max(self._seen.sizes(step), default=0)
        fits = [s for s in self._sizes[step] if least < s < size and not self._is_dear((step, s), fair_s)]
        return max((s for s in fits if self._works((step, s))), default=None)

    def _fair_s(self, wish: _Wish) -> float:
        if self._ends_s is None:
            return _LONGEST_S
        share_s = (self._until_s - self._now_s) / wish.left - self._cost.of(wish.point[1])
        return max(_SHORTEST_S, min(_LONGEST_S, share_s))

    def _rates_s(self) -> float:
        left_s = float("inf") if self._ends_s is None else _RATES_SHARE * (self._ends_s - self._now_s)
        return min(_RATES_S, left_s)


def coarse(sizes: Sequence[int]) -> tuple[int, ...]:
    """Three of these sizes: latency, knee, bandwidth; the nearest below each, and the largest where it is small."""
    return tuple(sorted({max((s for s in sizes if s <= target), default=sizes[0]) for target in _COARSE}))


def _farthest_first(sizes: Sequence[int], gaps: Sequence[int]) -> list[int]:
    """The gaps in an order that halves the widest stretch between known sizes again and again."""
    left = [i for i, size in enumerate(sizes) if size in gaps]
    near = [i for i in range(len(sizes)) if i not in left]
    order = []
    while left:
        best = max(left, key=lambda i: (min((abs(i - k) for k in near), default=len(sizes)), -i))
        left.remove(best)
        near.append(best)
        order.append(sizes[best])
    return order
