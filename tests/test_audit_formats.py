"""An audit in every form: each is read back by a reader of its own and tells the very findings, whatever they say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from configgen.audit_document import AuditDocument, encode_audit
from configgen.audited import Audited
from configgen.compare import compare
from configgen.comparison import Side
from configgen.report.audit import WIDTH, audit_lines
from configgen.report.findings import place
from configgen.report.junit import junit
from configgen.report.markdown import escaped, markdown
from configgen.report.prometheus import prometheus
from configgen.unchecked import unchecked
from probe.checks.codes import CODES, Code
from probe.errors import one_line
from probe.finding import Finding, Severity, gravest_first
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Rate, Sample, Survey
from probe.sources.machines import machine
from probe.store import decode_survey
from probe.topology import GpuRef, Nic, Provenance, Topology

WHEN = "2026-11-21T13:00:00Z"
HOSTILE = (
    "</script><img src=x onerror=alert(1)>", "[a link](https://example.com)", "![x](http://example.com/x.png)",
    "@everyone see #12, GH-7 and owner/repo#3", "https://example.com www.example.com a@example.com", "<!-- -->",
    "| a | b |\n|---|---|", "# heading", "- item", "1. item", "1) item", "> quote", "&lt;b&gt;", "]]>", "a\nb\r\nc\td",
    "***bold*** __too__ ~~gone~~ `code` ``", "\\ back\\slash\\", 'quo"ted', "nul\x00 escape\x1b[31m bell\x07", "$math$",
    "\u202eright to left\u2066", ":smile:", "deadbeefcafe", "---", "===", "* * *", "\ufffe \uffff \U0001f600",
    "x" * 700,
    "[bold]not markup[/]", '{a="b"} 1', "``` fence", "~~~", "\u2028line\u2029", "%0a%0d", "+1", "[ ] todo",
    "[x]: http://example.com", "a; b", "`a` b` `c d` (`e`), `f`g `", "(`[x](y)`) `@team`",
)  # fmt: skip
texts = (st.sampled_from(HOSTILE) | st.text(min_size=1, max_size=40)).filter(lambda text: bool(one_line(text)))
codes = st.sampled_from(["nvlinks-down", "small-shm", "pcie-narrow", "wrong-data"])


def two_nodes(hostname: str, nic: str) -> Topology:
    """Two nodes of 4 GPUs each, the first with a name and a NIC from outside."""
    topology = machine("2xdgx1-v100")
    first, second = topology.nodes
    gpus = tuple(replace(gpu, name=hostname, nearest_nics=()) for gpu in first.shape.gpus)
    shape = replace(first.shape, gpus=gpus, nics=(Nic(nic),), nic_paths=())
    return replace(topology, nodes=(replace(first, shape=shape, hostname=hostname), second))


places = st.sampled_from(
    [
        (None, ()),
        (0, ()),
        (1, (GpuRef(1, 3),)),
        (0, (GpuRef(0, 0), GpuRef(0, 1), GpuRef(0, 3))),
        (None, (GpuRef(0, 2), GpuRef(1, 2))),
    ]
)


@st.composite
def audits(draw: st.DrawFn) -> Audited:
    hostname, nic = draw(texts), draw(texts)
    found = []
    for _ in range(draw(st.integers(0, 4))):
        node, gpus = draw(places)
        expected = draw(st.none() | texts)
        found.append(
            Finding(
                draw(codes),
                draw(st.sampled_from(Severity)),
                draw(texts),
                draw(texts),
                draw(st.sampled_from(Provenance)),
                expected=expected,
                source=None if expected is None else draw(texts),
                node=node,
                gpus=gpus,
                nics=(nic,) if node == 0 and draw(st.booleans()) else (),
            )
        )
    return Audited(Survey(two_nodes(hostname, nic)), gravest_first(tuple(found)), WHEN)


def told(audited: Audited) -> Counter[tuple[str, ...]]:
    """What every form must tell of each finding: severity, code, place, seen, origin, expected, source, cure."""

    def line(text: str | None) -> str:
        return one_line(text or "", 600)

    return Counter(
        (
            f.severity.value,
            f.code,
            place(f, audited.survey.topology),
            line(f.seen),
            f.provenance.value,
            line(f.expected),
            line(f.source),
            line(f.cure),
        )
        for f in audited.findings
    )


def with_finding(survey: Survey, *findings: Finding) -> Audited:
    return Audited(survey, gravest_first(findings), WHEN)


FAILED = Finding(
    "nvlinks-down", Severity.FAILURE, "16 of 18 are up", "Reseat it.", Provenance.READ, gpus=(GpuRef(0, 3),)
)
WARNED = Finding("small-shm", Severity.WARNING, "64 MiB", "Give it --shm-size.", Provenance.READ, node=0)
INFORMED = Finding("described", Severity.INFO, "no real machine", "Nothing.", Provenance.ASSUMED)


@pytest.fixture(autouse=True)
def known_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group should reach 100 GB/s and must reach 80, and `wrong-data` is what only a measurement shows."""
    should = SimpleNamespace(busbw_gbps=100.0, bar_gbps=80.0)
    code = Code(Severity.FAILURE, "Wrong data", "It is.", "A test.", "Replace it.", "a test")
    monkeypatch.setattr("probe.checks.reading.expectation", lambda topology, key, members: should)
    for name in ("wrong-data", "pcie-narrow", "nvlinks-down"):
        monkeypatch.setitem(CODES, name, code)


# ---- JSON ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(audits())
def test_json_holds_the_findings_and_the_survey(audited: Audited) -> None:
    data = encode_audit(audited)
    document = msgspec.json.decode(data, type=AuditDocument)
    assert document.findings == audited.findings
    assert (document.verdict, document.passes, document.worst) == (audited.verdict, audited.passes, audited.worst)
    assert decode_survey(data, where="an audit") == audited.survey


# ---- JUnit ---------------------------------------------------------------------------------------------------------


def cases_in(text: str) -> Iterator[tuple[str, ...]]:
    """The findings in the lines that a test case or the suite's output holds."""
    heads = {"  seen: ": "seen", "  expected: ": "expected", "  source: ": "source", "  do: ": "do"}
    one: dict[str, str] = {}
    for line in text.split("\n"):
        head = next((h for h in heads if line.startswith(h)), None)
        if head is None and (match := re.fullmatch(r"(failure|warning|info) ([a-z0-9-]+): (.*)", line)):
            one = dict(zip(("severity", "code", "places"), match.groups(), strict=True))
        elif head is not None:
            one[heads[head]] = line.removeprefix(head)
        if head == "  do: ":
            seen, _, origin = one["seen"].removesuffix("]").rpartition(" [")
            expected, source = one.get("expected", ""), one.get("source", "")
            yield (one["severity"], one["code"], one["places"], seen, origin, expected, source, one["do"])


def _sorted(one: tuple[str, ...]) -> tuple[str, ...]:
    return (*one[:2], "; ".join(sorted(one[2].split("; "))), *one[3:])


def suite_of(text: str) -> Any:
    root = fromstring(text.encode())
    assert root.tag == "testsuites" and not root.attrib and [child.tag for child in root] == ["testsuite"]
    return root[0]


@settings(max_examples=50)
@given(audits())
def test_junit_tells_the_findings_in_valid_xml(audited: Audited) -> None:
    suite = suite_of(junit(audited))
    alike: dict[tuple[str, ...], list[str]] = {}
    for severity, code, where, *rest in (one for one, n in told(audited).items() for _ in range(n)):
        alike.setdefault((severity, code, *rest), []).extend([where] if where else [])
    expected = {(key[0], key[1], "; ".join(sorted(at)) or "everywhere", *key[2:]) for key, at in alike.items()}
    found = {one for text in suite.itertext() for one in cases_in(text)}
    assert {_sorted(one) for one in found} == {_sorted(one) for one in expected}
    tags = [child.tag for child in suite]
    cases = suite.findall("testcase")
    assert tags == ["properties", *["testcase"] * len(cases), "system-out", "system-err"]
    assert int(suite.get("tests")) == len(cases)
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
    assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped"))
    assert all({"name", "classname", "time"} == set(case.attrib) and len(case) <= 1 for case in cases)
    assert {"id", "package", "name", "timestamp", "hostname", "tests", "failures", "errors", "time"} <= set(
        suite.attrib
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp"))
    assert len({case.get("name") for case in cases}) == len(cases)


def verdicts(audited: Audited, *, strict: bool = False) -> dict[str, str]:
    """What CI shows for each test case: 'failure', 'skipped' or 'passed'."""
    suite = suite_of(junit(audited, strict=strict))
    return {case.get("name"): case[0].tag if len(case) else "passed" for case in suite.findall("testcase")}


def test_ci_is_red_where_the_exit_code_is() -> None:
    survey = measured(machine("hgx-h100"))
    told = verdicts(with_finding(survey, FAILED, WARNED, INFORMED))
    assert (told["nvlinks-down"], told["small-shm"], told["described"]) == ("failure", "skipped", "passed")
    assert told["pcie-narrow"] == "passed"
    strict = verdicts(with_finding(survey, WARNED), strict=True)
    assert strict["small-shm"] == "failure"


def test_what_was_not_measured_is_not_green() -> None:
    survey = Survey(machine("hgx-h100"))
    told = verdicts(with_finding(survey))
    assert told["wrong-data"] == "skipped"
    assert told["pcie-narrow"] == "passed"
    assert all(told[f"not checked: {one.what}"] == "skipped" for one in unchecked(survey))
    assert verdicts(with_finding(measured(survey.topology)))["wrong-data"] == "passed"
    lab = replace(measured(survey.topology), lab="CPU ranks")
    assert verdicts(with_finding(lab))["wrong-data"] == "skipped"


# ---- Markdown ------------------------------------------------------------------------------------------------------

READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
ALLOWED = {"heading", "paragraph", "bullet_list", "list_item", "inline", "text", "code_inline", "strong"}
LINKED = re.compile(r"@|#|www\.|://|:[a-z0-9_+-]+:|\$|GH-\d|\b[0-9a-f]{7,}\b", re.IGNORECASE)
"""What GitHub, GitLab and their like make something of outside of code."""


def unquoted(text: str) -> str:
    """Without backticks: pairs of them become code spans."""
    return text.replace("`", "")


def plain(token: Any) -> str:
    return "".join(child.content for child in token.children)


def items_of(text: str) -> list[tuple[int, str]]:
    """(depth, text) of every list item and heading (depth 0 and below), after a look at what it is made of."""
    found, depth = [], 0
    for token in READER.parse(text):
        kind = re.sub(r"_(open|close)$", "", token.type)
        assert kind in ALLOWED, f"{token.type} in {text!r}"
        depth += token.nesting if kind == "bullet_list" else 0
        if token.type == "inline":
            for child in token.children:
                assert re.sub(r"_(open|close)$", "", child.type) in ALLOWED, f"{child.type} in {token.content!r}"
                if child.type == "text":
                    assert not LINKED.search(child.content), child.content
            found.append((depth, plain(token)))
    return found


@settings(max_examples=100)
@given(texts)
@example("1. item")
@example("` `` ``` `")
def test_any_text_reads_as_itself_in_markdown_and_forms_nothing(text: str) -> None:
    ((depth, read),) = items_of(f"- {escaped(text)}")
    assert (depth, unquoted(read)) == (1, unquoted(one_line(text, 600)))


def test_a_command_in_a_sentence_is_one_code_span() -> None:
    assert escaped("Run `wirelore audit --measure`, then (`nvidia-smi -q`).") == (
        "Run `wirelore audit --measure`, then (`nvidia-smi -q`)."
    )
    assert escaped("`a b`c") == "`` `a `` ``b`c``", "no code span ends inside a word"


@settings(max_examples=60)
@given(audits())
def test_markdown_tells_the_findings_and_nothing_else_forms(audited: Audited) -> None:
    read = items_of(markdown(audited))
    found = set()
    severity, code = "", ""
    names = {"Failures": "failure", "Warnings": "warning", "Good to know": "info"}
    for number, (depth, text) in enumerate(read):
        if depth == 0 and text in names:
            severity = names[text]
        elif depth == 0:
            code = text.partition(":")[0]
        below = [line for deep, line in read[number + 1 : number + 3] if deep == 2]
        if depth == 1 and below:
            expected = next((line.removeprefix("Expected: ") for line in below if line.startswith("Expected: ")), "")
            cure = next(line.removeprefix("Do: ") for line in below if line.startswith("Do: "))
            found.add((severity, code, text, expected, cure))
    for one in told(audited):
        severity, code, where, seen, origin, expected, source, cure = one
        expected = f"{expected} ({source})" if expected else ""
        assert any(
            (s, c, unquoted(e), unquoted(d)) == (severity, code, unquoted(one_line(expected, 600)), unquoted(cure))
            and unquoted(t).endswith(f"{unquoted(seen)} ({origin})")
            and unquoted(where) in unquoted(t)
            for s, c, t, e, d in found
        ), (one, found)


def test_a_ticket_has_room_for_many_findings() -> None:
    survey = Survey(machine("256xhgx-h100"))
    found = tuple(
        replace(FAILED, code=f"code-{number % 97}", seen=f"{number} of 18 are up " + "x" * 300, gpus=(GpuRef(node, 0),))
        for number, node in enumerate(range(256))
        for _ in range(4)
    )
    text = markdown(with_finding(survey, *found, WARNED))
    assert len(text) < 60_000
    assert "more kinds of finding: see the JSON" in text
    assert text.rstrip().endswith("`--measure`")


# ---- Prometheus ----------------------------------------------------------------------------------------------------


LABEL = r'[a-z][a-z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"wirelore_[a-z_]+(?:\{{{LABEL}(?:,{LABEL})*\}})? -?[0-9.e+-]+")
"""A line of the text format, stricter than its readers are."""


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """By name and labels, read by Prometheus' own client; each once."""
    for line in text.removesuffix("\n").split("\n"):
        assert line.startswith(("# HELP wirelore_", "# TYPE wirelore_")) or SAMPLE.fullmatch(line), line
    parser = pytest.importorskip("prometheus_client.parser", reason="the Prometheus format is NOT read back")
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in parser.text_string_to_metric_families(text):
        assert family.documentation and family.type == "gauge"
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


@settings(max_examples=50)
@given(audits())
def test_prometheus_counts_the_findings_at_their_places(audited: Audited) -> None:
    read = samples(prometheus(audited))
    by_severity = Counter(found.severity.value for found in audited.findings)
    for severity in Severity:
        assert read["wirelore_findings", (("severity", severity.value),)] == by_severity[severity.value]
    assert read["wirelore_audit_passed", ()] == audited.passes
    expected: Counter[tuple[str, str, str, str, str]] = Counter()
    for found in audited.findings:
        node = "" if found.node is None else str(found.node)
        spots = [(str(ref.node), str(ref.gpu), "") for ref in found.gpus]
        spots += [(node, "", one_line(nic, 200)) for nic in found.nics]
        expected.update((found.code, found.severity.value, *spot) for spot in spots or [(node, "", "")])
    shown = {tuple(value for _, value in labels): v for (name, labels), v in read.items() if name == "wirelore_finding"}
    assert shown == dict(expected)
    hostname = one_line(audited.survey.topology.nodes[0].hostname or "", 200)
    assert any(dict(labels).get("hostname") == hostname for name, labels in read if name == "wirelore_node_info")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_name_breaks_out_of_its_label(text: str) -> None:
    read = samples(prometheus(with_finding(Survey(two_nodes(text, text)), replace(WARNED, nics=(text,)))))
    for metric, label in (("node_info", "hostname"), ("gpu_info", "name"), ("finding", "nic")):
        told = {dict(labels)[label] for name, labels in read if name == f"wirelore_{metric}"}
        assert one_line(text, 200) in told


def measured(topology: Topology, gbps: float = 50.0) -> Survey:
    members = tuple(GpuRef(0, gpu) for gpu in range(4))
    key = CurveKey("all_reduce", group_shape(topology, members), "bfloat16", "nccl", library_version="2.28.3")
    times = tuple(Sample(size, ((1e-5 + size / (gbps * 1e9 / 1.5),),)) for size in (1 << 10, 1 << 29, 1 << 30))
    return Survey(
        topology,
        (Curve(key, times, members),),
        (Rate("hbm_read", GpuRef(0, 1), 3000.0, "GB/s"),),
        measured_at="2026-11-21T12:00:00+00:00",
    )


def test_prometheus_has_what_was_measured_beside_what_it_should_be() -> None:
    text = prometheus(with_finding(measured(machine("hgx-h100"))))
    read = {name: (dict(labels), value) for (name, labels), value in samples(text).items()}
    labels, busbw = read["wirelore_busbw_gbps"]
    assert busbw == pytest.approx(50.0, rel=0.01)
    assert (labels["operation"], labels["gpus"], labels["library"]) == ("all_reduce", "0:0-3", "nccl 2.28.3")
    assert read["wirelore_expected_busbw_gbps"] == (labels, 100.0)
    assert read["wirelore_least_busbw_gbps"] == (labels, 80.0)
    assert read["wirelore_latency_seconds"] == (labels, pytest.approx(1e-5, rel=0.1))
    assert read["wirelore_rate"][1] == 3000.0
    assert read["wirelore_measured_timestamp_seconds"][1] == 1795262400
    assert read["wirelore_island_size"] == ({"gpus": "0:0-7", "link": "NV18"}, 8.0)


def test_lab_figures_are_nobody_s_metrics() -> None:
    lab = replace(measured(machine("hgx-h100")), lab="CPU ranks standing in")
    text = prometheus(with_finding(lab))
    assert "busbw" not in text and "wirelore_rate" not in text and "wirelore_measured" not in text


# ---- text ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(audits())
def test_text_is_narrow_clean_and_whole(audited: Audited) -> None:
    lines = [line.text for line in audit_lines(audited)]
    assert lines[0].lower() == audited.verdict
    assert all(len(line) <= WIDTH and line.isprintable() for line in lines)
    flowing = re.sub(r"\s", "", "".join(lines))
    for _, code, _, seen, origin, expected, source, cure in told(audited):
        assert f"{code}:" in flowing
        assert re.sub(r"\s", "", f"{seen} [{origin}]") in flowing
        assert re.sub(r"\s", "", f"do: {cure}") in flowing
        assert re.sub(r"\s", "", f"{expected} ({source})" if expected else "") in flowing


def test_text_says_the_verdict_first_and_the_gravest_next() -> None:
    many = [replace(FAILED, node=node, gpus=(GpuRef(node, 3),)) for node in range(2)]
    text = "\n".join(
        line.text for line in audit_lines(with_finding(Survey(machine("2xhgx-h100")), WARNED, INFORMED, *many))
    )
    assert text.startswith("2 failures, 1 warning\n")
    order = [text.index(part) for part in ("Failures", "Warnings", "Good to know", "Not checked", "Next")]
    assert order == sorted(order)
    assert text.count("16 of 18 are up") == 1, "what is alike is said once"
    assert "node 0 (node0) GPU 3, node 1 (node1) GPU 3: 16 of 18 are up [read]" in text
    assert "Begin with nvlinks-down: Reseat it." in text


def test_a_clean_measured_machine_is_told_what_to_keep() -> None:
    lines = audit_lines(with_finding(measured(machine("hgx-h100"))))
    assert (lines[0].text, lines[0].role) == ("As it should be", "good")
    assert any("baseline.json" in line.text for line in lines)


def test_what_changed_since_the_baseline_is_shown() -> None:
    before, after = Survey(machine("hgx-h100")), Survey(machine("hgx-h200"))
    audited = replace(with_finding(after), comparison=compare(Side("old.json", before), Side("now", after)))
    for text in ("\n".join(line.text for line in audit_lines(audited)), markdown(audited)):
        assert "old.json" in text
        assert re.search(r"H100.*->.*H200", text)
    document = msgspec.json.decode(encode_audit(audited), type=AuditDocument)
    assert document.comparison is not None and document.comparison.a.source == "old.json"


# ---- what was not checked ------------------------------------------------------------------------------------------


def test_a_text_matrix_leaves_more_unchecked_than_a_machine_that_tells_all() -> None:
    bare = {one.what for one in unchecked(Survey(machine("hgx-h100")))}
    assert {"bandwidth and latency of the wires", "PCIe width and generation"} <= bare
    after = {one.what for one in unchecked(measured(machine("hgx-h100")))}
    assert "bandwidth and latency of the wires" in bare - after
    assert "P2P written and read back" in after, "nobody verified it"
    alone = {one.what for one in unchecked(Survey(machine("h100-1")))}
    assert not any("wires" in what or "P2P" in what for what in alone)


def test_lab_figures_check_nothing() -> None:
    lab = replace(measured(machine("hgx-h100")), lab="CPU ranks")
    reasons = {one.what: one.why for one in unchecked(lab)}
    assert "stood in" in reasons["bandwidth and latency of the wires"]
