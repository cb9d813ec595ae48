"""The audit as one page: all of it in one file, nothing of the machine's texts read as markup, small and quick."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from html.parser import HTMLParser

import pytest
from audits import audited, findings, hosted, measured
from hypothesis import given, settings
from hypothesis import strategies as st

from configgen.audited import Audited
from configgen.report.charts import facets
from configgen.report.drawing import draw
from configgen.report.embedded import embedded, escaped
from configgen.report.heatmap import heat_map
from configgen.report.html import page
from configgen.report.svg import svg
from probe.audit import audit
from probe.checks.codes import CODES
from probe.checks.expectation import Expectation
from probe.curve import profiles
from probe.finding import Severity
from probe.measurement import Curve, CurveKey, Evidence, Sample, Survey
from probe.sources.machines import machine
from probe.store import decode_survey
from probe.topology import GpuRef, Nic, Notice, Provenance, Topology

WHOLE = audited()
HTML = page(WHOLE)


class Read(HTMLParser):
    """Elements in their order, and which of them stay open."""

    VOID = frozenset(("meta", "input", "br"))

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def words(text: str) -> str:
    return " ".join(" ".join(Read(text).text).split())


def survey_in(text: str) -> str:
    (found,) = re.findall(r'<script type="application/json" id="survey">(.*?)</script>', text, re.DOTALL)
    return str(found)


def test_the_page_says_the_verdict_the_findings_and_their_cures() -> None:
    told = words(HTML)
    assert "1 failure, 1 warning" in told
    assert "8 x NVIDIA H100 80GB HBM3; 1 island of 8 (NV18)" in told
    for found in WHOLE.findings:
        assert " ".join(found.seen.replace("`", " ").split()) in told
        assert found.cure.split("`")[0].strip() in told
        assert found.code in told
    assert told.index("pair-slow") < told.index("pcie-width") < told.index("persistence-mode-off"), "the gravest first"
    assert "195 where 330 GB/s is the bar" in told
    assert "PCIe x8 where the GPU has x16 read GPU 1" in told, "where it is, unless that was said"
    assert "NVIDIA H100 data sheet" in told


def test_the_page_is_well_formed_and_each_id_is_used_once() -> None:
    read = Read(HTML)
    assert read.open == []
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in [*read.all("a"), *read.all("use")]:
        assert attributes["href"].removeprefix("#") in ids, "every link leads somewhere on the page"
    for attributes in (a for _, a in read.elements):
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_the_page_asks_no_network_and_its_policy_forbids_it() -> None:
    read = Read(HTML)
    for tag, attributes in read.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "image")
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "style")]
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"@import|url\(", HTML)
    (policy,) = [m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy
    for element, rule in (("style", "style-src"), ("script", "script-src")):
        for text in re.findall(rf"<{element}>(.*?)</{element}>", HTML, re.DOTALL):
            assert f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" in rules[rule], element


def test_the_page_is_small_and_holds_all_curves_of_eight_gpus() -> None:
    assert len(HTML.encode()) <= 1_500_000
    assert len(WHOLE.survey.curves) > 100


def test_a_long_run_does_not_make_the_page_larger() -> None:
    assert len(page(audited(measured(times=100), planned=False, baseline=False)).encode()) <= 1_500_000


def test_the_data_in_the_page_is_a_survey_that_reads_back() -> None:
    survey = decode_survey(survey_in(HTML).encode(), where="the page")
    assert len(survey.curves) == len(WHOLE.survey.curves)
    assert survey.topology == WHOLE.survey.topology
    for kept, curve in zip(survey.curves, WHOLE.survey.curves, strict=True):
        assert kept.key == curve.key
        for sample, whole in zip(kept.samples, curve.samples, strict=True):
            assert sample.p50_s == pytest.approx(whole.p50_s, rel=0.03)
            assert len(sample.rounds_s) == len(whole.rounds_s)
    assert "quantiles of all" in words(HTML), "what was left out is said"
    small = embedded(measured("l40s-8", every_pair=False, times=3))
    assert small.told is not None
    assert "quantiles" not in small.told


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_escaped_json_is_the_same_json_and_ends_no_element(value: object) -> None:
    text = escaped(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029\u202e\x7f")


HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-->]]><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% include 'x' %}",
    "</style><style>*{display:none}",
    "\x1b[31m\u202ered\x00\r\n",
    "`</code><b>`",
    "&lt;script&gt;",
)


@dataclass(frozen=True)
class Poisoned:
    text: str

    def survey(self) -> Survey:
        topology = machine("l40s-8")
        node = topology.nodes[0]
        gpus = tuple(replace(gpu, name=self.text, nearest_nics=()) for gpu in node.shape.gpus)
        nics = (Nic(self.text, label=self.text),)
        shape = replace(node.shape, gpus=gpus, nics=nics, nic_paths=())
        poisoned = replace(
            node, shape=shape, hostname=self.text, driver_version=self.text, cuda_version=self.text,
            virtualization=self.text,
        )  # fmt: skip
        told: Topology = replace(topology, nodes=(poisoned,), warnings=(Notice("odd", self.text),))
        whole = measured("l40s-8", every_pair=False, times=3)
        curves = tuple(
            replace(c, key=replace(c.key, dtype=self.text, backend=self.text, library_version=self.text))
            for c in whole.curves[:2]
        )
        return replace(
            whole,
            topology=told,
            curves=(*curves, whole.curves[2]),
            rates=tuple(replace(r, kind=self.text, unit=self.text, dtype=self.text) for r in whole.rates),
            evidence=(Evidence(self.text, self.text, self.text),),
            environment=((self.text, self.text),),
            missing=(Notice("odd", self.text),),
            lab=self.text,
            measured_at=self.text,
        )

    def audited(self) -> Audited:
        whole = audited(self.survey(), planned=False, baseline=True)
        found = tuple(
            replace(f, seen=self.text, cure=self.text, expected=self.text, source=self.text, nics=(self.text,))
            for f in whole.findings
        )
        planned = audited(measured("l40s-8", every_pair=False, times=3), baseline=False).plan
        assert planned is not None
        plan = replace(
            planned,
            model=replace(planned.model, name=self.text.replace("\x00", "")),  # which no plan can have
            reasons=tuple(replace(r, text=self.text, rule=self.text) for r in planned.reasons),
            degraded=(self.text,),
        )
        return replace(whole, findings=found, plan=plan, audited_at=self.text)


@cache
def harmless_page() -> Read:
    return Read(page(Poisoned("harmless").audited()))


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_from_outside_becomes_markup(text: str) -> None:
    poisoned, harmless = Read(page(Poisoned(text).audited())), harmless_page()
    kinds = [{(tag, *sorted(told)) for tag, told in read.elements if tag != "code"} for read in (poisoned, harmless)]
    assert kinds[0] == kinds[1], "the same elements with the same attributes"
    assert len(poisoned.all("script")) == 2
    assert len(poisoned.all("style")) == len(harmless.all("style"))
    assert poisoned.comments == []
    assert poisoned.open == []
    assert not [a for _, a in poisoned.elements if any(name.startswith("on") for name in a)]
    shown = "".join(poisoned.text)
    assert not set(shown) & set("\x00\x1b\u202e\r")


def test_hostile_texts_are_shown_as_they_are() -> None:
    text = page(Poisoned("<b>bold</b>").audited())
    assert html.escape("<b>bold</b>") in text
    assert "<b>bold</b>" not in text


@settings(max_examples=15)
@given(st.text(min_size=1, max_size=60))
def test_any_hostname_leaves_the_page_whole(name: str) -> None:
    survey = Survey(hosted(machine("h100-1"), name))
    read = Read(page(Audited(survey, findings(machine("l40s-8"))[1:2], "2026-11-21T04:00:00+00:00")))
    assert read.open == []
    assert len(read.all("script")) == 2


def test_without_a_measurement_the_page_says_so_and_draws_no_curve() -> None:
    told = page(Audited(Survey(machine("l40s-8")), (), "2026-11-21T04:00:00+00:00"))
    assert "Nothing found, and nothing was measured" in words(told)
    assert "wirelore measure -o survey.json" in words(told)
    assert 'id="curves"' not in told
    assert "SYS" in words(told), "the pairs' paths are known all the same"


def test_figures_of_a_lab_are_never_taken_for_a_gpus() -> None:
    lab = replace(measured("l40s-8", every_pair=False, times=3), lab="2 CPU ranks over loopback")
    told = words(page(Audited(lab, (), "2026-11-21T04:00:00+00:00")))
    assert "Lab figures, not of these GPUs: 2 CPU ranks over loopback" in told
    assert all(not f.has_expectations for f in facets(lab, profiles(lab.curves), _no_expectation))


def _no_expectation(topology: Topology, key: CurveKey, members: object) -> None:
    return None


def level(*_: object) -> Expectation:
    """40 GB/s, 32 of which are enough."""
    return Expectation(40.0, 32.0, "two links", "a test", Provenance.ASSUMED, fill_s=20e-6)


def p2p(topology: Topology, gbps: float, *, pair: tuple[int, int] = (0, 1), direction: str = "forward") -> Curve:
    (like,) = [c for c in measured("l40s-8", times=2, every_pair=False).curves if c.key.direction == "both"][:1]
    samples = tuple(Sample(1 << k, ((5e-6 + (1 << k) / (gbps * 1e9),) * 3,)) for k in range(10, 29))
    return Curve(replace(like.key, direction=direction), samples, tuple(GpuRef(0, gpu) for gpu in pair))


def test_the_expectation_is_drawn_and_what_stays_below_its_bar_is_marked() -> None:
    topology = machine("l40s-8")
    for gbps, low in ((39.0, False), (20.0, True)):
        survey = Survey(topology, (p2p(topology, gbps),))
        (facet,) = facets(survey, profiles(survey.curves), level)
        assert facet.rows[0].is_low is low
        assert facet.rows[0].expected == "40"
        assert "two links (a test)" in facet.sources[0]
        for chart in facet.charts:
            assert [level.is_bar for level in chart.traces[0].levels] == [False, True]


def test_larger_values_stand_higher_and_all_of_them_inside() -> None:
    topology = machine("l40s-8")
    survey = Survey(topology, (p2p(topology, 20.0), p2p(topology, 40.0, direction="both")))
    for facet in facets(survey, profiles(survey.curves), _no_expectation):
        for chart in facet.charts:
            (trace,) = chart.traces
            xs, ys = [p.x for p in trace.points], [p.y for p in trace.points]
            assert xs == sorted(xs)
            assert ys == sorted(ys, reverse=True), "bandwidth and time both grow with the size here"
            assert 46 <= min(xs) <= max(xs) <= 430
            assert 14 <= min(ys) <= max(ys) <= 252
            assert sum(bool(t.label) for t in chart.x_ticks) <= 6
            assert len({t.at for t in chart.y_ticks}) == len(chart.y_ticks)


def test_of_equal_groups_the_slowest_stands_for_all_and_the_others_are_thin_lines() -> None:
    topology = machine("l40s-8")
    survey = Survey(topology, tuple(p2p(topology, g, pair=(0, i)) for i, g in ((1, 40.0), (2, 20.0), (3, 41.0))))
    (facet,) = facets(survey, profiles(survey.curves), _no_expectation)
    (row,) = facet.rows
    assert "slowest of 3" in row.label
    assert float(row.plateau.removeprefix("over ")) == pytest.approx(20, rel=0.02)
    assert len(facet.charts[0].traces[0].others) == 2


def test_both_directions_of_a_pair_are_one_series() -> None:
    topology = machine("l40s-8")
    survey = Survey(topology, (p2p(topology, 40.0), p2p(topology, 39.0, direction="backward")))
    (facet,) = facets(survey, profiles(survey.curves), _no_expectation)
    assert facet.title == "Point to point, one way"
    assert len(facet.rows) == 1


def test_decode_steps_have_latency_alone() -> None:
    survey = measured("l40s-8", every_pair=False, times=3)
    (graph,) = [f for f in facets(survey, profiles(survey.curves), level) if "CUDA graphs" in f.title]
    assert [chart.title for chart in graph.charts] == ["Time"]
    assert not graph.has_plateaus
    assert not graph.has_expectations


def test_a_single_size_is_drawn() -> None:
    topology = machine("l40s-8")
    whole = p2p(topology, 20.0)
    survey = Survey(topology, (replace(whole, samples=whole.samples[-1:]),))
    (facet,) = facets(survey, profiles(survey.curves), level)
    assert len(facet.charts[0].traces[0].points) == 1
    assert 'id="curves"' in page(Audited(survey, (), "2026-11-21T04:00:00+00:00"))


def test_the_heat_map_shades_by_bandwidth_and_marks_the_slow_pair() -> None:
    survey = measured("l40s-8", times=4)
    heat = heat_map(survey, profiles(survey.curves))
    assert heat is not None
    (matrix,) = heat.matrices
    near, far, slow = matrix.rows[0][1], matrix.rows[0][7], matrix.rows[2][5]
    assert near.shade is not None
    assert far.shade is not None
    assert slow.shade is not None
    assert near.shade > far.shade > slow.shade
    assert len({cell.shade for row in matrix.rows[:4] for cell in row[4:] if not cell.is_slow}) == 1, (
        "noise is no shade"
    )
    assert float(near.text) == pytest.approx(22, rel=0.03)
    assert [cell.is_slow for row in matrix.rows for cell in row].count(True) == 2, "both directions of one pair"
    assert slow.is_slow
    assert "equal paths 11" in slow.told
    assert matrix.rows[3][3].is_self


def test_pairs_that_nobody_measured_show_their_path() -> None:
    survey = measured("hgx-h100", times=3, every_pair=False)
    heat = heat_map(survey, profiles(survey.curves))
    assert heat is not None
    unmeasured = [cell for row in heat.matrices[0].rows for cell in row if cell.shade is None and not cell.is_self]
    assert unmeasured
    assert {cell.text for cell in unmeasured} == {"NV18"}
    assert heat_map(Survey(machine("h100-1")), {}) is None


def test_a_large_cluster_stays_a_small_page() -> None:
    survey = Survey(machine("512xhgx-h100"))
    text = page(Audited(survey, findings(survey.topology), "2026-11-21T04:00:00+00:00"))
    assert len(text.encode()) <= 1_500_000
    assert 'id="survey"' not in text
    assert "too large to travel in a page" in words(text), "what is left out is said"


def test_what_a_code_means_stands_beside_what_was_seen() -> None:
    survey = measured("l40s-8", times=4, every_pair=False)
    found = audit(survey)
    told = words(page(Audited(survey, found, "2026-11-21T04:00:00+00:00")))
    assert found
    for code in {finding.code for finding in found}:
        assert CODES[code].title in told
        assert " ".join(CODES[code].meaning.replace("`", " ").split()) in told.replace("`", " ")


def test_the_picture_is_that_of_the_machine_with_its_plan() -> None:
    assert svg(draw(WHOLE.survey, WHOLE.plan)) in HTML
    (policy,) = re.findall(r'Security-Policy" content="([^"]*)"', HTML)
    assert policy.count("sha256-") == 3, "the page's style and script, and the picture's style"


def test_findings_of_one_kind_share_a_card() -> None:
    (one, *_) = findings(machine("l40s-8"))
    several = tuple(replace(one, seen=f"GPU {i} is slow") for i in range(30))
    told = page(Audited(Survey(machine("l40s-8")), several, "2026-11-21T04:00:00+00:00"))
    assert told.count('<article class="card failure">') == 1
    assert "and 22 more of the kind" in words(told)
    assert words(told).count(one.cure.split("`")[0].strip()) == 1


def test_the_plan_shows_what_it_was_chosen_over() -> None:
    assert WHOLE.plan is not None
    told = words(HTML)
    assert f"{WHOLE.plan.parallelism.label} " in told
    for alternative in WHOLE.plan.alternatives:
        assert alternative.parallelism.label in told
    for reason in WHOLE.plan.reasons:
        assert " ".join(reason.text.split()) in told


def test_a_page_without_a_plan_or_a_baseline_has_no_empty_part() -> None:
    told = page(Audited(measured("l40s-8", every_pair=False, times=3), (), "2026-11-21T04:00:00+00:00"))
    assert 'id="plan"' not in told
    assert 'id="changes"' not in told
    assert 'href="#plan"' not in told
    assert "As it should be" in words(told)
    assert Severity.FAILURE.value not in words(told).split("Findings")[0]
