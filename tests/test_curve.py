"""Curves read between and beyond their sizes, and say what a reading is worth; public tables are read within a bar."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.curve import Piece, Profile, algbw_gbps, between, bus_factor, profile
from probe.islands import GroupShape
from probe.measurement import Curve, CurveKey, Sample
from probe.stability import instabilities

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT.parent / "shared" / "truth" / "collectives.csv"
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=200)
DOUBLING = tuple(1 << k for k in range(10, 31))

times = st.floats(1e-7, 1e3)
points = st.dictionaries(st.integers(1, 1 << 34), times, min_size=1, max_size=24).map(
    lambda d: tuple(sorted(d.items()))
)
rising = points.map(lambda own: tuple(zip([s for s, _ in own], sorted(t for _, t in own), strict=True)))


def drawn(own: tuple[tuple[int, float], ...]) -> Profile:
    return Profile(tuple(s for s, _ in own), tuple(t for _, t in own), (None,) * len(own))


def straight(alpha_s: float, gbps: float, sizes: tuple[int, ...] = DOUBLING) -> Profile:
    return drawn(tuple((size, alpha_s + size / gbps / 1e9) for size in sizes))


@EXAMPLES
@given(points)
def test_a_measured_size_reads_as_measured(own: tuple[tuple[int, float], ...]) -> None:
    told = drawn(own)
    for size, time_s in own:
        assert told.read(size).time_s == time_s
        assert not told.read(size).extrapolated


@EXAMPLES
@given(points, st.integers(1, 1 << 36))
def test_any_size_has_a_time_and_says_what_it_is(own: tuple[tuple[int, float], ...], size: int) -> None:
    told = drawn(own)
    reading = told.read(size)
    assert 0 <= reading.time_s < math.inf
    assert reading.extrapolated == (not own[0][0] <= size <= own[-1][0])
    if not reading.extrapolated:
        below = max(p for p in own if p[0] <= size)[1]
        above = min(p for p in own if p[0] >= size)[1]
        assert min(below, above) <= reading.time_s <= max(below, above)
    elif size < own[0][0]:
        assert reading.time_s <= own[0][1]
    else:
        assert reading.time_s >= own[-1][1]


@EXAMPLES
@given(rising, st.lists(st.integers(1, 1 << 36), min_size=2, max_size=20))
def test_times_that_rise_read_as_rising(own: tuple[tuple[int, float], ...], sizes: list[int]) -> None:
    told = drawn(own)
    read = [told.read(size).time_s for size in sorted(sizes)]
    assert all(b >= a * (1 - 1e-12) for a, b in itertools.pairwise(read))


@EXAMPLES
@given(points)
def test_there_are_no_jumps_at_the_ends(own: tuple[tuple[int, float], ...]) -> None:
    told = drawn(own)
    first, last = own[0], own[-1]
    assert told.read(first[0] * (1 - 1e-9)).time_s == pytest.approx(first[1], rel=1e-6)
    assert told.read(last[0] * (1 + 1e-9)).time_s == pytest.approx(last[1], rel=1e-6)


@EXAMPLES
@given(points)
def test_what_is_told_of_any_curve_is_possible(own: tuple[tuple[int, float], ...]) -> None:
    told = drawn(own)
    assert told.alpha_s is None or told.alpha_s >= 0
    assert told.alpha_is_fitted == (own[0][0] > 32 << 10)
    assert all(piece.alpha_s >= 0 and piece.beta_s_per_byte >= 0 for piece in told.fit.pieces)
    assert told.fit.pieces[-1].until_bytes == own[-1][0]
    assert 0 <= told.fit.residual < math.inf
    rates = [algbw_gbps(s, t) for s, t in own]
    assert min(rates) * 0.999 <= told.plateau_algbw_gbps <= max(rates) * 1.001
    assert 0 <= told.n_half_bytes <= own[-1][0]


@EXAMPLES
@given(st.floats(1e-6, 1e-2), st.floats(0.05, 900), st.integers(1 << 10, 1 << 30))
def test_latency_and_bandwidth_are_read_exactly(alpha_s: float, gbps: float, size: int) -> None:
    """Hockney's line through two of its own points is itself, so nothing is lost between any two sizes."""
    told = straight(alpha_s, gbps, tuple(4**k for k in range(5, 16)))
    assert told.read(size).time_s == pytest.approx(alpha_s + size / gbps / 1e9, rel=1e-9)


@EXAMPLES
@given(st.floats(1.01, 2.0), st.floats(1e-9, 1e-3))
def test_what_grows_faster_than_the_size_is_a_power(power: float, unit_s: float) -> None:
    told = drawn(tuple((size, unit_s * (size / 1024) ** power) for size in DOUBLING))
    assert told.read(3 << 19).time_s == pytest.approx(unit_s * (3 << 9) ** power, rel=1e-9)


def test_it_stays_within_what_log_log_lines_say() -> None:
    """At sizes a factor 2 apart, a straight log-log line is at most 1.5 % higher: a decision sees no difference."""
    for ratio in (x / 10 for x in range(1, 200)):
        ends = (1.0, 2.0), (1 + ratio, 1 + 2 * ratio)
        log_log = math.sqrt(ends[1][0] * ends[1][1])
        assert 1 <= log_log / between(math.sqrt(2), *ends) <= 1.0151


@EXAMPLES
@given(st.floats(2e-6, 1e-3), st.floats(1, 900))
def test_figures_of_a_straight_curve(alpha_s: float, gbps: float) -> None:
    told = straight(alpha_s, gbps, tuple(1 << k for k in range(3, 41)))
    assert told.fit.residual < 1e-6
    for piece in told.fit.pieces:
        assert piece.alpha_s + piece.beta_s_per_byte * piece.until_bytes == pytest.approx(
            alpha_s + piece.until_bytes / gbps / 1e9
        )
    assert told.fit.pieces[0].alpha_s == pytest.approx(alpha_s, rel=1e-3)
    assert told.plateau_reached
    assert told.plateau_algbw_gbps == pytest.approx(gbps, rel=0.03)
    assert told.n_half_bytes == pytest.approx(alpha_s * gbps * 1e9, rel=0.07)


def test_a_curve_of_two_regimes_gets_two_lines() -> None:
    """Start-up 10 us at 20 GB/s up to 1 MiB, then another algorithm: 150 us at 300 GB/s."""
    own = tuple((s, 1e-5 + s / 20e9 if s <= 1 << 20 else 1.5e-4 + s / 300e9) for s in DOUBLING)
    first, second = drawn(own).fit.pieces
    assert first.until_bytes == 1 << 20
    assert first.alpha_s == pytest.approx(1e-5)
    assert second.alpha_s == pytest.approx(1.5e-4)
    assert second.beta_s_per_byte == pytest.approx(1 / 300e9)


def test_small_sizes_are_not_drowned_by_large_ones() -> None:
    """Least squares on t gives this curve a start-up time that is off by half and more: the large sizes' noise."""
    source = random.Random(5)
    own = tuple((s, (4e-5 + s / 400e9) * source.uniform(0.95, 1.05)) for s in DOUBLING)
    assert drawn(own).fit.pieces[0].alpha_s == pytest.approx(4e-5, rel=0.1)
    assert drawn(own).alpha_s == pytest.approx(4e-5, rel=0.05)


def test_start_up_time_is_what_small_sizes_took() -> None:
    told = drawn(((1024, 9e-6), (8192, 11e-6), (32768, 20e-6), (65536, 90e-6)))
    assert told.alpha_s == 11e-6
    assert not told.alpha_is_fitted
    assert told.read(1).time_s == 9e-6, "the smallest size cost no more than start-up: flat"


def test_without_small_sizes_start_up_is_fitted_and_said_to_be() -> None:
    told = straight(5e-5, 100, DOUBLING[8:])
    assert told.alpha_is_fitted
    assert told.alpha_s == pytest.approx(5e-5)
    below = told.read(1024)
    assert below.extrapolated
    assert below.time_s == pytest.approx(5e-5 + 1024 / 100e9)


def test_one_large_size_tells_no_start_up_time() -> None:
    told = drawn(((1 << 30, 0.1),))
    assert told.alpha_s is None
    assert told.read(1 << 20).time_s == 0.1
    assert told.read(1 << 20).extrapolated
    assert not told.plateau_reached


def test_beyond_the_largest_size_bytes_come_at_the_plateau() -> None:
    told = straight(1e-5, 100)
    beyond = told.read(1 << 34)
    assert beyond.extrapolated
    assert beyond.interval_s is None
    assert beyond.time_s == pytest.approx((1 << 34) / 100e9, rel=0.01)


def test_an_unfinished_curve_has_no_plateau() -> None:
    told = straight(1e-3, 100, DOUBLING[:14])
    assert not told.plateau_reached
    assert told.plateau_algbw_gbps == pytest.approx(algbw_gbps(told.sizes_bytes[-1], told.times_s[-1]))


@pytest.mark.parametrize("size", [0, -1, math.inf, math.nan])
def test_no_such_size(size: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        straight(1e-5, 100).read(size)


@pytest.mark.parametrize(
    ("operation", "ranks", "factor"),
    [
        ("all_reduce", 2, 1.0), ("all_reduce", 8, 1.75), ("all_gather", 8, 0.875), ("reduce_scatter", 4, 0.75),
        ("all_to_all", 2, 0.5), ("p2p", 2, 1.0),
    ],
)  # fmt: skip
def test_bus_factors_are_those_of_nccl_tests(operation: str, ranks: int, factor: float) -> None:
    assert bus_factor(operation, ranks) == factor


def test_an_unknown_operation_has_no_factor() -> None:
    with pytest.raises(ValueError, match="no operation is called broadcast"):
        bus_factor("broadcast", 8)


def test_a_negative_line_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="negative"):
        Piece(-1e-6, 1e-9, 1024)


def curve(*samples: Sample, operation: str = "all_reduce") -> Curve:
    return Curve(CurveKey(operation, GroupShape((("PHB", 6),), 1), "float32", "gloo"), samples)


def noisy(seed: int, middle_s: float, n: int = 40, spread: float = 0.01) -> tuple[float, ...]:
    source = random.Random(seed)
    return tuple(middle_s * math.exp(source.gauss(0, spread)) for _ in range(n))


def test_a_profile_carries_medians_intervals_and_the_factor() -> None:
    samples = [Sample(size, tuple(noisy(size + k, 1e-5 + size / 1e9) for k in range(3))) for size in DOUBLING]
    told = profile(curve(*samples))
    assert told.times_s == tuple(s.p50_s for s in samples)
    assert told.factor == 1.5
    assert told.plateau_busbw_gbps == pytest.approx(1.5, rel=0.05)
    reading = told.read(3 << 14)
    assert not reading.extrapolated
    assert reading.interval_s is not None
    assert reading.interval_s[0] < reading.time_s < reading.interval_s[1]
    assert reading.interval_s[1] / reading.interval_s[0] < 1.1


def test_a_reading_between_single_times_has_no_interval() -> None:
    assert profile(curve(Sample(1024, ((1e-5,),)), Sample(4096, ((2e-5,),)))).read(2048).interval_s is None


def test_a_size_visited_once_learns_of_drift_from_the_others() -> None:
    seen = [Sample(1 << k, (noisy(k, 1e-3), noisy(-k, 1.1e-3))) for k in range(10, 16)]
    once = Sample(1 << 20, (noisy(7, 5e-3),))
    told = profile(curve(*seen, once))
    ends = told.intervals_s[-1]
    assert ends is not None
    assert once.half_width is not None
    assert (ends[1] - ends[0]) / 2 / once.p50_s > 5 * once.half_width


def codes(*samples: Sample) -> dict[str, tuple[int, ...]]:
    found = instabilities(curve(*samples))
    assert all(one.cure.endswith(".") and one.seen and "{" not in one.seen for one in found)
    return {one.code: one.sizes_bytes for one in found}


def test_a_quiet_curve_has_nothing_to_say() -> None:
    assert codes(*(Sample(1 << k, tuple(noisy(k * 9 + r, 1e-4) for r in range(3))) for k in range(10, 30))) == {}


def test_each_instability_is_named_with_its_sizes() -> None:
    quiet = [Sample(1 << k, tuple(noisy(k * 9 + r, 1e-4) for r in range(3))) for k in range(10, 20)]
    two = tuple(t * (1.5 if i % 3 == 0 else 1) for i, t in enumerate(noisy(3, 1e-3)))
    tail = tuple(t * (30 if i % 15 == 7 else 1) for i, t in enumerate(noisy(4, 1e-3)))
    assert codes(*quiet, Sample(1 << 20, (two, two, two)))["bimodal"] == (1 << 20,)
    assert codes(*quiet, Sample(1 << 20, (tail, tail, tail))) == {"outliers": (1 << 20,)}
    assert codes(*quiet, Sample(1 << 20, (noisy(5, 1e-3),))) == {"seen-once": (1 << 20,)}
    assert "uncertain" in codes(*quiet, Sample(1 << 20, tuple(noisy(r, 1e-3, 4, 0.3) for r in range(3))))


def test_drift_is_called_drift_and_not_two_levels() -> None:
    moved = Sample(1 << 20, (noisy(1, 1e-3), noisy(2, 1.4e-3), noisy(3, 1e-3)))
    found = codes(moved)
    assert found["drift"] == (1 << 20,)
    assert "bimodal" not in found
    assert "uncertain" in found


def run_benchmark(table: Path) -> tuple[int, dict[str, str], str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "collectives.py"), "--table", str(table)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    figures = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    return done.returncode, figures, done.stdout + done.stderr


def table(path: Path, seconds: dict[int, float]) -> Path:
    rows = [f"here,H1,switch,8,1,all_reduce,{size},{t * 1e6},nearest to {size} B" for size, t in seconds.items()]
    head = "source,gpu,fabric,n_gpus,n_nodes,op,bytes,latency_us,notes"
    path.write_text("\n".join([head, *rows, "here,H1,switch,8,1,all_reduce,0,,size not stated"]))
    return path


def test_the_benchmark_scores_a_table_of_its_own(tmp_path: Path) -> None:
    code, figures, text = run_benchmark(table(tmp_path / "a.csv", {s: 2e-5 + s / 200e9 for s in DOUBLING}))
    assert code == 0, text
    assert (figures["series_scored"], figures["rows_unused"]) == ("1", "1")
    assert float(figures["series_median_error"]) < 1e-3
    assert float(figures["alpha_of_fit_median_error"]) < 0.01


def test_the_benchmark_fails_where_its_bar_is_missed(tmp_path: Path) -> None:
    code, _, text = run_benchmark(table(tmp_path / "a.csv", {s: 2e-5 * (1 + k % 2) for k, s in enumerate(DOUBLING)}))
    assert code == 1, text


def test_public_tables_are_read_within_the_bar() -> None:
    if not TABLE.exists():
        pytest.skip(f"{TABLE} is not here: NO public table of collectives was read")
    code, figures, text = run_benchmark(TABLE)
    assert code == 0, text
    assert int(figures["series_scored"]) > 0
