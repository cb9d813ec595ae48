"""`wirelore audit` as a person types it: streams, exit codes, forms, baseline, and when it measures a second time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import environment, wirelore
from hypothesis import given, settings
from hypothesis import strategies as st

import probe.audit
from configgen.cli import measuring, run
from configgen.cli.measuring import Run, Wanted
from probe.cache import remember
from probe.errors import MeasureError
from probe.finding import Finding, Severity
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Sample, Survey
from probe.retry import of_two, wants_another
from probe.sources.machines import machine
from probe.store import decode_survey, encode_survey
from probe.topology import GpuRef, Provenance, Topology

BOX = "machine:3090-bridges-4"
PAIR = (GpuRef(0, 0), GpuRef(0, 2))
SLOW = Finding(
    "busbw-low", Severity.FAILURE, "9 GB/s", "Reseat the bridge.", Provenance.MEASURED, "50 GB/s", "a test",
    gpus=PAIR, value=9.0, bar=40.0, unit="GB/s",
)  # fmt: skip
WRONG = Finding("wrong-data", Severity.FAILURE, "1 of 9 bytes differs", "Replace it.", Provenance.MEASURED, gpus=PAIR)
NARROW = Finding("pcie-narrow", Severity.WARNING, "x8 of x16", "Reseat it.", Provenance.READ, gpus=PAIR[:1])


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache of this user, and no launcher."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    found(monkeypatch)


def found(monkeypatch: pytest.MonkeyPatch, *several: Finding) -> None:
    """Every survey is found to have these, whatever it says."""
    monkeypatch.setattr(probe.audit, "CHECKS", (lambda survey: iter(several),))


def measured_survey(topology: Topology | None = None, gbps: float = 10.0) -> Survey:
    topology = topology or machine("3090-bridges-4")
    key = CurveKey("all_reduce", group_shape(topology, PAIR), "bfloat16", "nccl", library_version="2.27.3")
    curve = Curve(key, tuple(Sample(size, ((size / gbps / 1e9,),)) for size in (1 << 10, 1 << 20)), PAIR)
    return Survey(topology, (curve,), measured_at="2026-11-21T12:00:00+00:00")


# ---- what is printed, and how it ends -------------------------------------------------------------------------------


def test_the_verdict_is_the_first_line_and_data_alone_is_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, NARROW, SLOW)
    assert run(["audit", "--from", BOX]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == "1 failure, 1 warning"
    assert shown.out.index("busbw-low") < shown.out.index("pcie-narrow")
    assert shown.err == ""


@pytest.mark.parametrize(
    ("several", "code"), [((), 0), ((replace(NARROW, severity=Severity.INFO),), 0), ((NARROW,), 1), ((SLOW,), 1)]
)
def test_strict_ends_with_1_on_a_warning_or_a_failure_and_still_writes(
    several: tuple[Finding, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, *several)
    file = tmp_path / "audit.json"
    assert run(["audit", "--from", BOX, "--strict", "-o", str(file)]) == code
    assert json.loads(file.read_text())["passes"] is (code == 0)
    assert run(["audit", "--from", BOX, "-o", str(file)]) == 0, "without --strict findings are no failure"


FORMS = {
    "a.json": '{\n  "schema_version": 1',
    "a.svg": "<svg ",
    "a.HTML": "<!doctype html>",
    "a.htm": "<!doctype html>",
    "a.md": "## Audit: ",
    "a.xml": "<?xml",
    "a.prom": "# HELP wirelore_",
    "a.txt": "1 warning\n",
    "a": "1 warning\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_the_suffix_names_the_form_unless_the_option_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, NARROW)
    file = tmp_path / name
    assert run(["audit", "--from", BOX, "-o", str(file)]) == 0
    assert file.read_text().startswith(FORMS[name])
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.endswith("wirelore: note: 1 warning\n")
    assert run(["audit", "--from", BOX, "-o", str(file), "--format", "markdown"]) == 0
    assert file.read_text().startswith("## Audit: ")


def test_each_form_goes_to_standard_output_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, NARROW)
    heads = {"json": "{", "svg": "<svg ", "html": "<!doctype", "markdown": "## ", "junit": "<?xml", "prometheus": "# "}
    for form, head in heads.items():
        assert run(["audit", "--from", BOX, "--format", form]) == 0
        shown = capsys.readouterr()
        assert shown.out.startswith(head) and shown.err == ""


def test_warnings_are_red_in_junit_only_under_strict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, NARROW)
    assert run(["audit", "--from", BOX, "--format", "junit"]) == 0
    assert "<failure" not in capsys.readouterr().out
    assert run(["audit", "--from", BOX, "--format", "junit", "--strict"]) == 1
    assert '<failure type="warning"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--format", "pdf"], "'pdf' is not one of"),
        (["--budget", "20s"], "--measure, which is not given"),
        (["--every-pair"], "--measure, which is not given"),
        (["--measure", "--budget", "soon"], "'soon' is no span of time"),
        (["--measure"], "--backend gloo"),
        (["--baseline", "nowhere.json"], "nowhere.json"),
        (["-o", "nowhere/audit.json"], "no folder nowhere"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_a_wrong_option_is_one_line_with_a_cure(arguments: list[str], problem: str, tmp_path: Path) -> None:
    ended = wirelore("audit", "--from", BOX, *arguments, cwd=tmp_path)
    assert ended.code in (2, 4) and ended.out == ""
    assert ended.err.startswith("wirelore: ") and ended.err.count("\n") == 1
    assert problem in ended.err


def test_without_a_gpu_it_ends_with_4() -> None:
    ended = wirelore("audit")
    assert (ended.code, ended.out) == (4, "")
    assert "driver" in ended.err


def test_a_form_loads_only_what_it_needs(tmp_path: Path) -> None:
    program = [sys.executable, "-X", "importtime", "-c", "from configgen.cli import main; main()"]
    words = ["audit", "--from", BOX, "--format", "json", "-o", str(tmp_path / "audit.json")]
    ended = subprocess.run([*program, *words], env=environment(), capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[1].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}
    assert "configgen.audit_document" in loaded
    assert not loaded & {"torch", "jinja2", "rich", "xml.etree", "xml.etree.ElementTree", "sqlite3", "asyncio"}


# ---- the plan ------------------------------------------------------------------------------------------------------


def test_the_plan_is_that_of_wirelore_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "--from", BOX, "--model", "qwen3-32b", "--format", "json"]) == 0
    audit = json.loads(capsys.readouterr().out)
    assert run(["plan", "qwen3-32b", "--from", BOX, "--format", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    same = ("tensor_parallel_size", "pipeline_parallel_size", "gpu_order", "predictions", "fingerprint")
    assert {key: audit["plan"][key] for key in same} == {key: plan[key] for key in same}
    assert run(["audit", "--from", BOX, "--model", "qwen3-32b"]) == 0
    assert "Plan for Qwen/Qwen3-32B" in capsys.readouterr().out


def test_a_model_that_fits_nowhere_ends_with_3_after_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "--from", "machine:l4-2", "--model", "llama-3.1-405b"]) == 3
    shown = capsys.readouterr()
    assert shown.out.startswith("Nothing found")
    assert shown.err.startswith("wirelore: ")


# ---- baseline ------------------------------------------------------------------------------------------------------


def test_an_audit_is_a_baseline_and_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    survey, before, after = measured_survey(), tmp_path / "survey.json", tmp_path / "before.json"
    before.write_bytes(encode_survey(survey))
    assert run(["audit", "--from", str(before), "-o", str(after)]) == 0
    assert decode_survey(after.read_bytes(), where="an audit").curves == survey.curves
    slower = tmp_path / "slower.json"
    slower.write_bytes(encode_survey(measured_survey(gbps=2.0)))
    capsys.readouterr()
    assert run(["audit", "--from", str(slower), "--baseline", str(after), "--format", "json"]) == 0
    comparison = json.loads(capsys.readouterr().out)["comparison"]
    assert comparison["a"]["source"] == str(after)
    assert any(d["ratio"] and d["ratio"]["value"] < 0.3 for d in comparison["differences"])
    assert run(["plan", "qwen3-32b", "--from", str(after)]) == 0


def test_a_wrong_baseline_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measurements(monkeypatch)
    assert run(["audit", "--measure", "--baseline", "/nowhere.json"]) == 4
    assert run(["audit", "--measure", "--model", "/nowhere"]) == 2
    assert run(["audit", "--measure", "-o", "/nowhere/audit.json"]) == 2
    assert capsys.readouterr().out == ""


# ---- what is known already -----------------------------------------------------------------------------------------


def test_figures_of_other_gpus_however_equal_are_no_evidence_of_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_host(name: str) -> Topology:
        topology = machine("3090-bridges-4")
        (node,) = topology.nodes
        gpus = tuple(replace(gpu, uuid=f"GPU-{name}-{i}") for i, gpu in enumerate(node.gpus))
        return replace(topology, nodes=(replace(node, driver_version="580.65.06", hostname=name, gpus=gpus),))

    assert remember(measured_survey(of_host("there"))).file is not None
    for name, known in (("there", True), ("here", False)):
        file = tmp_path / f"{name}.json"
        file.write_bytes(encode_survey(Survey(of_host(name))))
        assert run(["audit", "--from", str(file), "--format", "json"]) == 0
        curves = json.loads(capsys.readouterr().out)["survey"]["curves"]
        assert bool(curves) is known


# ---- measuring -----------------------------------------------------------------------------------------------------


def measurements(monkeypatch: pytest.MonkeyPatch, *runs: Run) -> list[Wanted]:
    """Stands in for measuring: gives these, one after the other; what was asked for is kept."""
    asked: list[Wanted] = []
    left = iter(runs)

    def measure_now(wanted: Wanted, *, again: bool = False) -> Run:
        assert again is bool(asked)
        asked.append(wanted)
        return next(left)

    monkeypatch.setattr(measuring, "measure_now", measure_now)
    return asked


def findings_in_turn(monkeypatch: pytest.MonkeyPatch, *several: tuple[Finding, ...]) -> None:
    left = iter(several)
    monkeypatch.setattr(probe.audit, "CHECKS", (lambda survey: iter(next(left)),))


RUN = Run(measured_survey(), None, 1)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [((), None, "as it should be"), ((NARROW,), None, "1 warning"), ((SLOW,), (SLOW,), "1 failure"),
     ((SLOW,), (), "as it should be"), ((SLOW, NARROW), (NARROW,), "1 warning"), ((SLOW, WRONG), (), "1 failure")],
)  # fmt: skip
def test_it_measures_again_only_where_a_figure_falls_short_and_counts_what_falls_short_twice(
    first: tuple[Finding, ...],
    second: tuple[Finding, ...] | None,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    turns = (first,) if second is None else (first, second)
    findings_in_turn(monkeypatch, *turns)
    asked = measurements(monkeypatch, *[RUN] * len(turns))
    assert run(["audit", "--measure", "--budget", "1m", "--every-pair", "--format", "json"]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["verdict"] == verdict
    assert [(wanted.budget, wanted.every_pair) for wanted in asked] == [(60.0, True)] * len(turns)
    assert ("measuring once more" in shown.err) is (second is not None)
    twice = any(origin["fact"] == "findings" for origin in told["survey"]["origins"])
    assert twice is (second is not None)
    if (SLOW in first) and second is not None and SLOW not in second:
        (once,) = [f for f in told["findings"] if f["code"] == SLOW.code]
        assert once["severity"] == "info" and once["seen"].startswith("only in the first of two measurements: ")


def test_several_nodes_are_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, SLOW)
    assert len(measurements(monkeypatch, replace(RUN, nodes=2))) == 0
    assert run(["audit", "--measure", "--strict"]) == 1
    assert "measure once more before you believe them" in capsys.readouterr().err


def test_what_cuts_a_measurement_short_ends_the_command_after_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, SLOW)
    lost = MeasureError("rank 1 was lost", cure="Look for Xid in dmesg.")
    measurements(monkeypatch, replace(RUN, failure=lost))
    assert run(["audit", "--measure"]) == 4
    shown = capsys.readouterr()
    assert shown.out.startswith("1 failure") and "rank 1 was lost" in shown.err
    measurements(monkeypatch, RUN, Run(None, KeyboardInterrupt(), 1))
    assert run(["audit", "--measure"]) == 130
    assert capsys.readouterr().out.startswith("1 failure"), "the first measurement counts alone"


def test_the_other_nodes_and_processes_of_a_launcher_print_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measurements(monkeypatch, Run(None, None, 2))
    assert run(["audit", "--measure"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run(["audit", "--measure"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and "LOCAL_RANK=1" in shown.err


def test_a_lab_is_measured_and_says_so() -> None:
    words = ("--measure", "--from", "machine:l4-2", "--backend", "gloo", "--budget", "20s", "--format", "json")
    ended = wirelore("audit", *words, timeout_s=90.0)
    told = json.loads(ended.data())
    assert told["survey"]["lab"] and told["survey"]["curves"]
    assert any("stood in" in one["why"] for one in told["not_checked"])


def test_what_is_slow_both_times_stays_although_more_is_slow_once() -> None:
    more = replace(SLOW, gpus=(*PAIR, GpuRef(0, 1)))
    for first, second in ((SLOW, more), (more, SLOW)):
        (kept,) = of_two([first], [second])
        assert kept.severity is Severity.FAILURE


# ---- two measurements ----------------------------------------------------------------------------------------------

several_findings = st.lists(
    st.builds(
        lambda base, gpu, severity: replace(base, gpus=(GpuRef(0, gpu),), severity=severity),
        st.sampled_from([SLOW, WRONG, NARROW]),
        st.integers(0, 2),
        st.sampled_from(Severity),
    ),
    max_size=5,
)


@settings(max_examples=100)
@given(several_findings, several_findings)
def test_a_second_measurement_only_acquits(first: list[Finding], second: list[Finding]) -> None:
    def accused(findings: Iterator[Finding]) -> set[tuple[Any, ...]]:
        return {(f.code, f.gpus) for f in findings if f.value is not None and f.severity is not Severity.INFO}

    both = of_two(first, second)
    assert accused(iter(both)) == accused(iter(first)) & accused(iter(second))
    places: Callable[[Iterator[Finding]], set[Any]] = lambda findings: {(f.code, f.gpus) for f in findings}  # noqa: E731
    assert places(iter(second)) <= places(iter(both)) <= places(iter([*first, *second])), "nothing is lost or invented"
    assert {f for f in second if f.provenance is Provenance.READ} <= set(both), "the driver's word stands"
    failed = {(f.code, f.gpus) for f in (*first, *second) if f.code == "wrong-data" and f.severity is Severity.FAILURE}
    assert failed <= places(iter(both)), "wrong data seen once was wrong"
    assert wants_another(first) == bool(accused(iter(first)))
