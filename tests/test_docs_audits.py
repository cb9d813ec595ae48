"""docs/audit.md and docs/history.md as somebody follows them who keeps an eye on machines."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from audits import measured
from docs_commands import LAB_AUDIT, Terminal, documented
from fake_nvml import FakeMachine
from fake_nvml.machines import hgx_h100
from measured_surveys import faster, honest

from probe.history import keep
from probe.sources.machines import machine
from probe.store import encode_survey

SURVEYS = "/shared/surveys"


def test_the_first_five_minutes(terminal: Terminal, fake_machine: FakeMachine) -> None:
    look, measure, page = documented(
        "audit.md", "wirelore audit", "wirelore audit --measure", "wirelore audit --measure -o audit.html"
    )
    driver = fake_machine(hgx_h100())
    assert "8 x NVIDIA H100 80GB HBM3" in terminal.runs(look, **driver)
    assert "1 x NVIDIA L4" in terminal.runs(measure, **LAB_AUDIT)
    terminal.runs(page, **LAB_AUDIT)
    assert "1 x NVIDIA L4" in (terminal.folder / "audit.html").read_text()


def test_in_ci(terminal: Terminal) -> None:
    (strict,) = documented("audit.md", "wirelore audit --measure --strict")
    terminal.runs(strict, **LAB_AUDIT)
    suite = ElementTree.parse(terminal.folder / "audit.xml").getroot()
    assert suite.tag == "testsuites"


def test_metrics_are_left_for_the_node_exporter(terminal: Terminal, fake_machine: FakeMachine) -> None:
    (export,) = documented("audit.md", "wirelore audit -o /var/lib/node_exporter")
    terminal.runs(export.at("/var/lib/node_exporter/textfile", terminal.folder), **fake_machine(hgx_h100()))
    assert 'wirelore_findings{severity="' in (terminal.folder / "wirelore.prom").read_text()


def test_one_machine_over_time(terminal: Terminal) -> None:
    """A lab's audit is kept; it has no links, unlike the machine of three nights whose history is shown then."""
    nightly, links, link = documented(
        "history.md", "wirelore audit --measure --keep", "wirelore history", "wirelore history --link"
    )
    terminal.runs(nightly, **LAB_AUDIT)
    (kept,) = terminal.folder.rglob("history.sqlite")
    assert ": 1 audit from " in terminal.runs(links)
    survey = measured("3090-bridges-4")
    for date, share in (("2026-10-31", 1.0), ("2026-11-01", 0.99), ("2026-11-02", 0.9)):
        curves = tuple(faster(curve, share) for curve in survey.curves)
        when = f"{date}T03:00:00+00:00"
        keep(replace(survey, curves=curves, measured_at=when), (), kept, audited_at=when)
    assert "3 audits" in terminal.runs(links)
    told = terminal.runs(link)
    assert "2 audits from 2026-11-01" in told
    assert "p2p forward" in told and "slower" in told


@pytest.fixture
def fleet(terminal: Terminal) -> Terminal:
    """Nine surveys, in a folder in place of a shared disk."""
    folder = terminal.folder / "surveys"
    folder.mkdir()
    for n in range(9):
        share = 0.5 if n == 4 else 1.0
        survey = honest(machine("machine:3090-4"), lambda _, share=share: share)
        (folder / f"{n}.json").write_bytes(encode_survey(survey))
    return terminal


def test_many_machines(fleet: Terminal) -> None:
    told, page, pick = documented(
        "history.md", "wirelore audit --fleet /shared/surveys", "wirelore audit --fleet /shared/surveys -o",
        "wirelore audit --fleet /shared/surveys --format json",
    )  # fmt: skip
    here = fleet.folder / "surveys"
    assert "1 of 9 machines" in fleet.runs(told.at(SURVEYS, here))
    fleet.runs(page.at(SURVEYS, here))
    assert "1 of 9 machines" in (fleet.folder / "fleet.html").read_text()
    if shutil.which("jq") is None:
        pytest.skip(f"no jq here: `{pick}` is NOT tested")
    assert json.loads(fleet.runs(pick.at(SURVEYS, here)))["file"].endswith("4.json")
