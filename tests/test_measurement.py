"""Samples keep raw times and say honestly how well their median is known; curves know their group."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.islands import GroupShape, group_shape
from probe.measurement import Curve, CurveKey, Sample
from probe.sources.machines import machine
from probe.statistics import Drift, drift_of, far_out, median_interval, quantile, student_975, two_levels
from probe.topology import GpuRef

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=150)
times = st.floats(1e-12, 1e9)
rounds = st.lists(st.lists(times, min_size=1, max_size=40).map(tuple), min_size=1, max_size=4).map(tuple)
TRUE_S = 20e-6


def correlated(
    source: random.Random, n: int, phi: float, spread: float = 0.05, shift: float = 0.0
) -> tuple[float, ...]:
    """Times around 20 us whose logarithms are an autoregressive process; `phi` 0 makes them independent."""
    value, found = source.gauss(0, spread / math.sqrt(1 - phi**2)), []
    for _ in range(n):
        value = phi * value + source.gauss(0, spread)
        found.append(TRUE_S * math.exp(value + shift))
    return tuple(found)


def coverage(visits: int, n: int, *, phi: float = 0.0, drift: float = 0.0, known: Drift | None = None) -> float:
    """How often the interval holds the true median, of 300 samples."""
    source = random.Random(f"{visits} {n} {phi} {drift}")
    held = 0
    for _ in range(300):
        sample = [correlated(source, n, phi, shift=source.gauss(0, drift) if drift else 0.0) for _ in range(visits)]
        ends = median_interval(sample, known)
        assert ends is not None
        held += ends[0] <= TRUE_S <= ends[1]
    return held / 300


@EXAMPLES
@given(rounds)
def test_statistics_keep_their_order(own: tuple[tuple[float, ...], ...]) -> None:
    sample = Sample(1024, own)
    assert sample.n == len(sample.times_s) == sum(map(len, own))
    assert sample.min_s <= sample.p50_s <= sample.p95_s <= max(sample.times_s)
    assert (sample.cv is None) == (sample.n == 1)
    assert sample.cv is None or 0 <= sample.cv <= math.sqrt(sample.n) * 1.001
    assert (sample.interval_s is None) == (sample.half_width is None) == (sample.n == 1)
    if sample.interval_s is not None:
        low, high = sample.interval_s
        assert 0 <= low <= sample.p50_s * (1 + 1e-9)
        assert sample.p50_s * (1 - 1e-9) <= high < math.inf


def test_the_figures_are_those_of_the_raw_times() -> None:
    sample = Sample(1024, ((4e-6, 1e-6), (3e-6, 2e-6, 10e-6)))
    assert sample.times_s == (4e-6, 1e-6, 3e-6, 2e-6, 10e-6)
    assert (sample.n, sample.min_s, sample.p50_s) == (5, 1e-6, 3e-6)
    assert sample.p95_s == pytest.approx(8.8e-6)  # numpy.quantile(times, 0.95)
    assert sample.cv == pytest.approx(math.sqrt(12.5) / 4)


def test_one_time_proves_nothing() -> None:
    sample = Sample(1024, ((1e-5,),))
    assert sample.p50_s == 1e-5
    assert (sample.cv, sample.interval_s, sample.half_width) == (None, None, None)


def test_order_statistics_are_the_textbook_ones() -> None:
    """Conover's table of the binomial distribution: of 20 the 6th and the 15th, of 100 the 40th and the 61st."""
    assert median_interval([tuple(range(1, 21))])[0] <= 6  # type: ignore[index]
    alternating = [float(1 + (i * 61) % 100) for i in range(100)]  # well mixed: the batches' medians agree
    assert median_interval([alternating]) == (40.0, 61.0)


@pytest.mark.parametrize(("freedoms", "told"), [(1, 12.706), (9, 2.262), (11, 2.201), (20, 2.086), (60, 2.000)])
def test_students_t(freedoms: int, told: float) -> None:
    assert student_975(freedoms) == pytest.approx(told, abs=0.002)


@pytest.mark.parametrize("n", [3, 5, 6, 12, 30, 200])
def test_independent_times_are_covered(n: int) -> None:
    assert coverage(1, n) >= 0.92


@pytest.mark.parametrize(("n", "phi"), [(30, 0.5), (60, 0.5), (200, 0.5), (200, 0.8)])
def test_times_that_resemble_their_neighbours_are_covered(n: int, phi: float) -> None:
    assert coverage(1, n, phi=phi) >= 0.89


@pytest.mark.parametrize(("visits", "n"), [(2, 5), (2, 60), (3, 20), (3, 100)])
def test_drift_between_visits_is_covered(visits: int, n: int) -> None:
    assert coverage(visits, n, phi=0.3, drift=0.05) >= 0.92


def test_one_visit_cannot_know_of_drift_and_the_other_sizes_can() -> None:
    assert coverage(1, 60, drift=0.05) < 0.7
    assert coverage(1, 60, drift=0.05, known=Drift(0.05**2, 30)) >= 0.92
    assert coverage(2, 60, drift=0.05, known=Drift(0.05**2, 30)) >= 0.92


def test_other_sizes_make_two_visits_worth_more() -> None:
    alone = Sample(1024, (correlated(random.Random(1), 30, 0), correlated(random.Random(2), 30, 0, shift=0.03)))
    drift = drift_of([alone.rounds_s] * 6)
    assert drift is not None
    told = median_interval(alone.rounds_s, drift)
    assert told is not None
    assert alone.half_width is not None
    assert (told[1] - told[0]) / 2 / alone.p50_s < alone.half_width / 2


def test_drift_is_learnt_from_points_that_were_visited_twice() -> None:
    once = ((1e-5, 2e-5),)
    assert drift_of([once, once]) is None
    told = drift_of([once, ((1e-5,), (1e-5 * math.e,)), ((5.0,), (5.0,), (5.0,))])
    assert told is not None
    assert told.variance == pytest.approx(0.5 / 3)
    assert told.freedoms == 3


def test_more_times_make_it_narrower() -> None:
    source = random.Random(3)
    halves = [Sample(1, (correlated(source, n, 0),)).half_width for n in (10, 50, 250, 1250)]
    assert all(a > b for a, b in itertools.pairwise(halves) if a is not None and b is not None)


ONE_MODE: dict[str, Callable[[random.Random], float]] = {
    "uniform": lambda r: r.uniform(1, 3),
    "normal": lambda r: max(0.1, r.gauss(10, 2)),
    "log-normal": lambda r: r.lognormvariate(0, 0.5),
    "exponential": lambda r: 1 + r.expovariate(1),
    "coarse clock": lambda r: max(1, round(r.gauss(10, 1))),
    "coarser clock": lambda r: max(1, round(r.gauss(4, 0.5))),
    "outliers": lambda r: r.gauss(10, 0.3) * (20 if r.random() < 0.03 else 1),
}


@pytest.mark.parametrize("name", ONE_MODE)
@pytest.mark.parametrize("n", [30, 100])
def test_one_level_raises_no_alarm(name: str, n: int) -> None:
    source = random.Random(n)
    alarms = sum(two_levels([ONE_MODE[name](source) for _ in range(n)]) is not None for _ in range(400))
    assert alarms / 400 <= 0.01


@pytest.mark.parametrize(("share", "n", "power"), [(0.5, 40, 0.9), (0.3, 60, 0.85), (0.15, 200, 0.85)])
def test_two_levels_are_seen(share: float, n: int, power: float) -> None:
    source = random.Random(n)
    seen = 0
    for _ in range(200):
        levels = two_levels([source.gauss(14 if source.random() < share else 10, 0.5) for _ in range(n)])
        if levels is not None:
            seen += 1
            assert levels.lower_s == pytest.approx(10, rel=0.08)
            assert levels.upper_s == pytest.approx(14, rel=0.08)
            assert levels.upper_share == pytest.approx(share, abs=0.3)
    assert seen / 200 >= power


def test_two_levels_need_enough_times() -> None:
    def levels(n: int, apart: float) -> list[float]:
        return [(apart if i % 2 else 1) * (1 + i / 1e4) for i in range(n)]

    assert two_levels(levels(29, 2)) is None
    assert two_levels(levels(60, 2)) is not None
    assert two_levels(levels(60, 1.04)) is None, "levels 4 % apart change no decision"


@EXAMPLES
@given(st.lists(times, min_size=1, max_size=80))
def test_any_times_can_be_judged(values: list[float]) -> None:
    levels = two_levels(values)
    assert levels is None or (levels.lower_s < levels.upper_s and 0 < levels.upper_share < 1)
    assert 0 <= far_out(values) <= len(values) // 4
    assert quantile(sorted(values), 0) == min(values)
    assert quantile(sorted(values), 1) == max(values)


def test_far_out_counts_what_stands_alone() -> None:
    assert far_out([10.0, 11.0, 12.0, 13.0] * 10 + [100.0, 200.0]) == 2
    assert far_out([10.0, 11.0, 12.0, 13.0] * 10) == 0


def test_an_interval_costs_less_than_a_millisecond() -> None:
    sample = Sample(1024, (correlated(random.Random(0), 200, 0.5),))
    took = []
    for _ in range(20):
        start = time.perf_counter()
        assert sample.half_width is not None
        took.append(time.perf_counter() - start)
    assert min(took) < 1e-3


@pytest.mark.parametrize(
    ("size", "own", "law"),
    [
        (0, ((1e-5,),), "at least one byte"),
        (1 << 62, ((1e-5,),), "less than an exbibyte"),
        (1024, (), "has a round"),
        (1024, ((1e-5,), ()), "each round a time"),
        (1024, ((0.0,),), "positive and finite"),
        (1024, ((-1e-5,),), "positive and finite"),
        (1024, ((math.inf,),), "positive and finite"),
        (1024, ((math.nan,),), "positive and finite"),
        (1024, ((1e-300,),), "positive and finite"),
    ],
)
def test_what_cannot_be_measured_cannot_be_built(size: int, own: tuple[tuple[float, ...], ...], law: str) -> None:
    with pytest.raises(ValueError, match=law):
        Sample(size, own)


def key(pairs: int) -> CurveKey:
    return CurveKey("all_reduce", GroupShape((("NV18", pairs),) if pairs else (), 1), "bfloat16", "nccl")


ONE = (Sample(1024, ((1e-5,),)),)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 72])
def test_a_curve_knows_its_ranks_from_its_paths(ranks: int) -> None:
    assert Curve(key(ranks * (ranks - 1) // 2), ONE).ranks == ranks


def test_a_curve_of_a_real_group_knows_its_ranks() -> None:
    topology = machine("a100-pcie-pairs-8")
    members = tuple(GpuRef(0, gpu) for gpu in (0, 1, 2, 5))
    shape = group_shape(topology, members)
    assert len(shape.paths) > 1
    assert Curve(CurveKey("all_gather", shape, "float16", "nccl"), ONE, members).ranks == 4


@pytest.mark.parametrize("pairs", [2, 4, 27, -1])
def test_no_group_has_so_many_paths(pairs: int) -> None:
    with pytest.raises(ValueError, match=r"n \(n - 1\) / 2 paths"):
        Curve(key(pairs), ONE)


def test_members_are_the_group() -> None:
    with pytest.raises(ValueError, match="members are the GPUs of its group"):
        Curve(key(1), ONE, (GpuRef(0, 0),))


@pytest.mark.parametrize("sizes", [(), (2, 1), (1, 1)])
def test_sizes_ascend(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least one sample|sizes ascend"):
        Curve(key(1), tuple(Sample(size, ((1e-5,),)) for size in sizes))
