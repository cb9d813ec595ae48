"""Messages become a survey that is valid at any moment, on top of the one that is resumed."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.bench.findings import Findings
from probe.bench.messages import Done, Failed, Joined, Measured, Point, Progress
from probe.bench.schedule import curve_key, steps
from probe.errors import UsageError
from probe.measurement import Evidence, Rate, Survey
from probe.sources.machines import machine
from probe.store import decode_survey, encode_survey, encode_topology
from probe.topology import GpuRef, Notice, Origin, Provenance, Topology

PAIR = machine("l4-2")
MEMBERS = (GpuRef(0, 0), GpuRef(0, 1))
ORIGIN = Origin("curves", Provenance.MEASURED, "gloo, a test")
KEYS = tuple(
    curve_key(PAIR, step, MEMBERS, backend="gloo", dtype="float32", library_version="9")
    for step in steps(PAIR, backend="gloo")
)


def empty(topology: Topology = PAIR, resumed: Survey | None = None) -> Findings:
    return Findings(topology, lab="a test", origin=ORIGIN, resumed=resumed)


def point(size: int, *times_s: float, key: int = 0) -> Point:
    return Point(KEYS[key], MEMBERS, size, times_s)


def joined(topology: Topology) -> Joined:
    return Joined(zlib.compress(encode_topology(topology)), (1, 2))


def test_visits_of_one_size_are_rounds_of_one_sample_and_sizes_ascend() -> None:
    findings = empty()
    for message in (point(2048, 0.2), point(1024, 0.1, 0.11), point(2048, 0.3), point(1024, 1.0, key=1)):
        assert findings.add(message)
    first, second = findings.survey.curves
    assert [(s.size_bytes, s.rounds_s) for s in first.samples] == [(1024, ((0.1, 0.11),)), (2048, ((0.2,), (0.3,)))]
    assert (first.key, second.key) == KEYS[:2] and first.members == MEMBERS
    assert findings.survey.lab == "a test" and ORIGIN in findings.survey.origins


@pytest.mark.parametrize("message", [Progress("p2p"), Done(), Failed("no", "yes")])
def test_what_is_no_finding_changes_nothing(message: Progress | Done | Failed) -> None:
    findings = empty()
    before = findings.survey
    assert not findings.add(message)
    assert findings.survey == before


def test_the_same_fact_told_by_two_ranks_is_kept_once() -> None:
    findings = empty()
    told = Measured(
        rates=(Rate("hbm_read", MEMBERS[0], 3.0, "GB/s"),),
        evidence=(Evidence("all_reduce", "transport", "tcp"),),
        environment=(("torch", "2"),),
        missing=(Notice("wrong-data", "it was wrong"),),
    )
    findings.add(told)
    findings.add(told)
    survey = findings.survey
    assert (len(survey.rates), len(survey.evidence), len(survey.environment)) == (1, 1, 1)
    assert [notice.code for notice in survey.missing].count("wrong-data") == 1


def test_what_is_resumed_keeps_its_rounds_and_loses_the_reasons_that_no_longer_hold() -> None:
    findings = empty()
    findings.add(point(1024, 0.1))
    lasting, passing = Notice("wrong-data", "it was wrong"), Notice("not-measured", "the time ended")
    findings.add(Measured(missing=(lasting, passing)))
    later = empty(resumed=decode_survey(encode_survey(findings.survey), where="a test"))
    later.add(joined(PAIR))
    later.add(point(1024, 0.2))
    later.add(point(4096, 0.4))
    (curve,) = later.survey.curves
    assert [(s.size_bytes, s.rounds_s) for s in curve.samples] == [(1024, ((0.1,), (0.2,))), (4096, ((0.4,),))]
    assert lasting in later.survey.missing and passing not in later.survey.missing


def test_a_survey_of_another_machine_is_not_resumed() -> None:
    findings = empty()
    findings.add(point(1024, 0.1))
    later = empty(resumed=findings.survey)
    with pytest.raises(UsageError, match="another machine"):
        later.add(joined(machine("hgx-h100")))


def test_rates_alone_of_another_machine_or_driver_are_not_adopted() -> None:
    findings = empty()
    findings.add(Measured(rates=(Rate("hbm_read", MEMBERS[0], 3.0, "GB/s"),)))
    newer = replace(PAIR, nodes=tuple(replace(node, driver_version="999.1") for node in PAIR.nodes))
    for other in (machine("h100-1"), newer):
        with pytest.raises(UsageError, match="another machine or driver"):
            empty(resumed=findings.survey).add(joined(other))


@pytest.mark.parametrize(("before", "now"), [("CPU ranks", None), (None, "CPU ranks")])
def test_lab_figures_and_real_ones_never_share_a_survey(before: str | None, now: str | None) -> None:
    resumed = replace(empty().survey, lab=before)
    with pytest.raises(UsageError, match="never share a survey"):
        Findings(PAIR, lab=now, origin=ORIGIN, resumed=resumed)


def test_a_run_that_finds_nothing_leaves_no_trace_in_what_it_resumes() -> None:
    findings = empty()
    findings.add(point(1024, 0.1))
    later = empty(resumed=findings.survey)
    later.add(joined(PAIR))
    assert not later.has_news and later.survey.origins == findings.survey.origins
    later.add(point(1024, 0.2))
    assert later.has_news


def test_names_of_the_machine_may_change_between_two_runs() -> None:
    findings = empty()
    findings.add(point(1024, 0.1))
    renamed = replace(PAIR, nodes=tuple(replace(node, hostname="elsewhere") for node in PAIR.nodes))
    later = empty(resumed=findings.survey)
    later.add(joined(renamed))
    assert later.survey.topology.nodes[0].hostname == "elsewhere" and later.survey.curves


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(KEYS) - 1),
            st.integers(1, 1 << 30),
            st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=5),
        ),
        max_size=20,
    )
)
def test_the_survey_is_valid_after_every_message(told: list[tuple[int, int, list[float]]]) -> None:
    findings = empty()
    for number, (key, size, times_s) in enumerate(told, 1):
        findings.add(point(size, *times_s, key=key))
        survey = decode_survey(encode_survey(findings.survey), where="a test")
        assert sum(len(s.rounds_s) for curve in survey.curves for s in curve.samples) == number
