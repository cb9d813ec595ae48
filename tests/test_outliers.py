"""What stands out of a fleet: planted faults are found, honest noise is not accused."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fleets import NOISES, SIZES, fleet, host
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.finding import Finding, Severity
from probe.fleet_audit import Deviation, Host, Points, RateKey
from probe.outliers import LEAST, audit_hosts
from probe.topology import GpuRef, Provenance


def slowed(one: Host, points: Points, by: float, *, sizes: Sequence[int] = SIZES, dtype: str = "type3") -> Host:
    """With the times of one curve at these sizes that much longer."""
    times = array("d", one.times_s)
    for at, number in enumerate(one.seen):
        point = points.all[number]
        if point.size_bytes in sizes and not isinstance(point.subject, RateKey) and point.subject.dtype == dtype:
            times[at] *= by
    return replace(one, times_s=times)


@pytest.mark.parametrize(("machines", "by"), [(LEAST, 2.0), (7, 1.5), (32, 1.5), (200, 1.3)])
def test_a_planted_slow_link_is_found_and_nobody_else(machines: int, by: float) -> None:
    """The fewer machines tell what is usual, the slower must a link be."""
    hosts, points = fleet(machines, random.Random(machines))
    hosts[1] = slowed(hosts[1], points, by, sizes=SIZES[2:])
    found = audit_hosts(hosts, points)
    assert [hosts[one.host].name for one in found.outliers] == ["node-0001"]
    assert found.ranked == (1,)
    assert not found.passes
    worst = found.outliers[0].worst
    assert worst.share == pytest.approx(1 / by, rel=0.1)
    assert (worst.size_bytes in SIZES[2:], worst.machines, worst.unit) == (True, machines, "GB/s")
    assert worst.value == pytest.approx(worst.usual * worst.share)
    assert len(found.outliers[0].deviations) == 1


def test_a_slow_gpu_is_found_by_its_rate() -> None:
    hosts, points = fleet(40, random.Random(0))
    times = array("d", hosts[7].times_s)
    times[-3] *= 2  # GPU 5's
    hosts[7] = replace(hosts[7], times_s=times)
    (found,) = audit_hosts(hosts, points).outliers
    assert found.host == 7
    assert (found.worst.members, found.worst.size_bytes, found.worst.unit) == ((GpuRef(0, 5),), None, "GB/s")
    assert found.worst.value == pytest.approx(1500, rel=0.1)


def test_honest_fleets_are_not_accused() -> None:
    """Over 120 honest fleets of 4 to 256 machines (3,360 of them, 100,000 figures per noise): with normal noise and
    with exponential tails nobody; where tails are Student's with 5 freedoms, fewer than 1 in 200."""
    accused = dict.fromkeys(NOISES, 0)
    machines = 0
    for seed in range(40):
        size = (4, 5, 8, 16, 32, 103)[seed % 6]
        scatter, own = ((0.01, 0.0), (0.03, 0.03), (0.1, 0.05))[seed % 3]
        machines += size
        for noise in NOISES:
            hosts, points = fleet(size, random.Random(seed), noise=noise, scatter=scatter, own=own, places=12)
            accused[noise] += len(audit_hosts(hosts, points).outliers)
    assert accused["normal"] == 0
    assert accused["laplace"] == 0
    assert accused["student5"] <= machines / 200


@settings(max_examples=40)
@given(st.integers(LEAST, 12), st.integers(0, 1 << 30), st.floats(0.001, 0.008), st.floats(1.3, 20))
def test_a_fault_is_found_whatever_the_honest_noise(machines: int, seed: int, scatter: float, by: float) -> None:
    hosts, points = fleet(machines, random.Random(seed), scatter=scatter, places=6)
    hosts[0] = slowed(hosts[0], points, by)
    assert [one.host for one in audit_hosts(hosts, points).outliers] == [0]


@settings(max_examples=25)
@given(st.integers(0, 1 << 30), st.floats(0.1, 10))
def test_being_fast_or_equal_accuses_nobody(seed: int, factor: float) -> None:
    hosts, points = fleet(9, random.Random(seed), places=4)
    alike = [replace(one, times_s=array("d", [t * factor for t in hosts[0].times_s])) for one in hosts]
    assert audit_hosts(alike, points).outliers == ()
    fast = [slowed(hosts[0], points, 0.3), *hosts[1:]]
    assert audit_hosts(fast, points).outliers == ()


def test_a_third_of_the_machines_may_be_broken() -> None:
    hosts, points = fleet(30, random.Random(2))
    hosts[:9] = [slowed(one, points, 3) for one in hosts[:9]]
    assert {one.host for one in audit_hosts(hosts, points).outliers} == set(range(9))


def test_what_is_slow_everywhere_is_nobodys_fault() -> None:
    hosts, points = fleet(20, random.Random(3))
    assert audit_hosts([slowed(one, points, 3) for one in hosts], points).outliers == ()


def test_nobody_is_judged_by_fewer_than_four() -> None:
    hosts, points = fleet(3, random.Random(4))
    hosts[0] = slowed(hosts[0], points, 50)
    found = audit_hosts(hosts, points)
    assert found.outliers == ()
    assert not found.groups[0].is_judged


def test_only_equal_wires_are_compared_and_lab_figures_apart() -> None:
    hosts, points = fleet(16, random.Random(5))
    others = [replace(slowed(one, points, 4), fingerprint="wl1-b", uuids=frozenset()) for one in hosts[:6]]
    lab = [replace(slowed(one, points, 9), lab="CPU ranks", uuids=frozenset()) for one in hosts[:6]]
    found = audit_hosts([*hosts, *others, *lab], points)
    assert found.outliers == ()
    assert [(group.fingerprint, group.lab, group.measured) for group in found.groups] == [
        ("wl1-a", False, 16), ("wl1-a", True, 6), ("wl1-b", False, 6),
    ]  # fmt: skip


def test_a_lone_figure_must_be_twice_as_far() -> None:
    hosts, points = fleet(50, random.Random(6), scatter=0.001)
    once = slowed(hosts[4], points, 1.09, sizes=SIZES[3:])
    assert audit_hosts([*hosts[:4], once, *hosts[5:]], points).outliers == ()
    twice = slowed(hosts[4], points, 1.09, sizes=SIZES[2:])
    assert len(audit_hosts([*hosts[:4], twice, *hosts[5:]], points).outliers) == 1


def test_of_two_surveys_of_a_machine_the_newer_counts() -> None:
    hosts, points = fleet(12, random.Random(7))
    older = replace(slowed(hosts[2], points, 5), measured_at="2026-11-01T00:00:00+00:00", file="old.json")
    found = audit_hosts([older, *hosts], points)
    assert (found.older, len(found.hosts), found.outliers) == (1, 12, ())
    newer = replace(older, measured_at="2026-12-01T00:00:00+00:00")
    found = audit_hosts([newer, *hosts], points)
    assert [found.hosts[one.host].file for one in found.outliers] == ["old.json"]


def test_own_times_have_the_last_word_and_are_asked_of_a_few() -> None:
    hosts, points = fleet(100, random.Random(8))
    hosts[:9] = [slowed(one, points, 2 + n) for n, one in enumerate(hosts[:9])]
    asked = []

    def confirm(one: Host, deviations: Sequence[Deviation]) -> Sequence[Deviation]:
        asked.append(one.name)
        return deviations if one.name != "node-0008" else ()

    found = audit_hosts(hosts, points, confirm, most=3)
    assert asked == ["node-0008", "node-0007", "node-0006"]  # the slowest
    assert [hosts[one.host].name for one in found.outliers] == ["node-0007", "node-0006"]
    assert found.unconfirmed == 6
    assert not found.passes


def test_odd_wires_beside_many_equal_machines() -> None:
    hosts, points = fleet(40, random.Random(9))
    hosts[3] = replace(hosts[3], fingerprint="wl1-b", wires=(("NV17", 1), ("NV18", 27)))
    hosts[4] = replace(hosts[4], fingerprint="wl1-c", gpus="7 x GPU", wires=(("NV18", 21),))
    hosts[5] = replace(hosts[5], fingerprint="wl1-d", models=("other GPU",))
    found = audit_hosts(hosts, points)
    assert {one.hosts: (one.others, one.here, one.there) for one in found.odd} == {
        (3,): (37, "NV17 x 1, NV18 x 27", "NV17 x 0, NV18 x 28"),
        (4,): (37, "7 x GPU", "8 x GPU"),
    }
    assert found.ranked == (3, 4)


def test_two_kinds_of_machines_are_both_usual() -> None:
    hosts, points = fleet(40, random.Random(10))
    half = [replace(one, fingerprint="wl1-b", wires=(("PIX", 28),)) for one in hosts[:15]]
    assert audit_hosts([*half, *hosts[15:]], points).odd == ()


def test_the_worst_come_first_and_codes_are_counted() -> None:
    def finding(code: str, severity: Severity) -> Finding:
        return Finding(code, severity, "seen", "cure", Provenance.READ)

    down = finding("link-down", Severity.FAILURE)
    hosts, points = fleet(30, random.Random(11))
    hosts[1] = replace(hosts[1], findings=(finding("narrow", Severity.WARNING), finding("virtual", Severity.INFO)))
    hosts[2] = replace(hosts[2], findings=(down, down))
    hosts[3] = replace(hosts[3], findings=(down, finding("narrow", Severity.INFO)))
    hosts[4] = slowed(hosts[4], points, 2)
    hosts[5] = slowed(hosts[5], points, 4)
    found = audit_hosts(hosts, points, unreadable=[("x.json", "no survey")])
    assert found.ranked == (2, 3, 5, 4, 1)
    assert found.codes == (
        ("link-down", Severity.FAILURE, (2, 3)),
        ("narrow", Severity.WARNING, (1, 3)),
        ("virtual", Severity.INFO, (1,)),
    )
    assert not found.passes


def test_a_fleet_in_which_nothing_stands_out_passes() -> None:
    hosts, points = fleet(20, random.Random(12))
    found = audit_hosts([*hosts, host(99, (), ())], points)
    assert found.passes
    assert (found.groups[0].measured, len(found.hosts)) == (20, 21)
