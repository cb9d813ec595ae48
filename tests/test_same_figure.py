"""What a group should reach is one figure in findings, page and metrics, and alarms ring for findings alone."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from audit_cases import plain
from measured_surveys import JITTER, curve, honest, refs, told

from configgen.audited import Audited
from configgen.report.charts import Row, facets
from configgen.report.prometheus import prometheus
from probe.audit import audit
from probe.checks.expectation import expectation
from probe.checks.reading import expecting
from probe.curve import profiles
from probe.measurement import Curve, Sample, Survey
from probe.units import figure

LINE = re.compile(r"wirelore_(busbw|expected_busbw|least_busbw)_gbps(\{.*\}) (.*)")


def metrics(survey: Survey) -> dict[str, dict[str, float]]:
    """By labels, then by name."""
    found: dict[str, dict[str, float]] = {}
    for line in prometheus(Audited(survey, audit(survey), "2026-11-21T04:00:00+00:00")).splitlines():
        if match := LINE.fullmatch(line):
            found.setdefault(match[2], {})[match[1]] = float(match[3])
    return found


def row(survey: Survey) -> Row:
    (facet,) = facets(survey, profiles(survey.curves), expecting(survey))
    return facet.rows[0]


@pytest.mark.parametrize("said", [(), (("nvls", "not available"),)])
def test_one_expectation_in_every_form(said: tuple[tuple[str, str], ...]) -> None:
    topology = plain("hgx-h100")
    survey = told(Survey(topology, (curve(topology, refs(*range(8)), 200.0),)), *said)
    (found,) = (f for f in audit(survey) if f.code == "below-expectation")
    (one,) = metrics(survey).values()
    assert found.bar is not None
    assert found.value is not None
    assert one["least_busbw"] == pytest.approx(found.bar)
    assert one["busbw"] == pytest.approx(found.value)
    assert (row(survey).expected, row(survey).bar) == (figure(one["expected_busbw"]), figure(found.bar))
    assert (found.expected or "").startswith(f"{row(survey).expected} GB/s, no less than {row(survey).bar}: ")


@pytest.mark.parametrize("name", ["hgx-h100", "hgx-a100", "l40s-8"])
def test_no_alarm_rings_on_a_machine_that_is_well(name: str) -> None:
    """As slow to fill its buffers as the expectation allows, and with messages too small to judge."""
    topology = plain(name)

    def slow_to_fill(made: Curve) -> Curve:
        should = expectation(topology, made.key, made.members)
        if should is None:
            return made

        def time_s(size: int) -> float:
            return 8e-6 + (should.fill_s if size > 1 << 22 else 0.0) + size * should.factor / (should.busbw_gbps * 1e9)

        samples = (Sample(s.size_bytes, (tuple(time_s(s.size_bytes) * j for j in JITTER),) * 2) for s in made.samples)
        return replace(made, samples=tuple(samples))

    survey = replace(honest(topology), curves=tuple(map(slow_to_fill, honest(topology).curves)))
    assert not [f for f in audit(survey) if f.code == "below-expectation"]
    told = metrics(survey).values()
    assert any("least_busbw" in one for one in told)
    assert all(one["busbw"] >= one.get("least_busbw", 0.0) for one in told)


def test_one_bad_round_marks_nothing() -> None:
    topology = plain("hgx-h100")
    made = curve(topology, refs(0, 1), 390.0)
    samples = tuple(replace(s, rounds_s=(s.rounds_s[0], tuple(9 * t for t in s.rounds_s[1]))) for s in made.samples)
    survey = Survey(topology, (replace(made, samples=samples),))
    assert not [f for f in audit(survey) if f.code == "below-expectation"]
    assert not row(survey).is_low
    (one,) = metrics(survey).values()
    assert one["busbw"] >= one["least_busbw"]
