"""The audit of a fleet from files: what is read, what is named, and what is printed in each form."""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from builders import node_of

import probe.audit
from configgen.cli.fleet_audit import audit_fleet
from configgen.fleet_document import fleet_schema
from configgen.report.fleet import fleet_lines, fleet_page, verdict
from probe.errors import SourceError, UsageError
from probe.finding import Finding, Severity
from probe.fleet_files import audit_files, fleet_files
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Rate, Sample, Survey
from probe.store import encode_survey, encode_topology
from probe.topology import GpuRef, GpuState, Provenance, Topology

SIZES = (1 << 12, 1 << 14, 1 << 19, 1 << 21, 1 << 24, 1 << 29)
EVIL = "</title><script>alert(1)</script>'\"&{{7*7}}\x1b[31m\u202e\n[x](http://evil)"


def survey(n: int, *, late: float = 1.0, hostname: str | None = None, links: int = 18) -> Survey:
    node = node_of(2, 80, {(0, 1): links})
    states = tuple(GpuState(uuid=f"GPU-{n}-{i}") for i in range(2))
    node = replace(node, hostname=hostname or f"node-{n:03d}", driver_version="580.65", gpus=states)
    topology, rng = Topology((node,)), random.Random(n)
    members = (GpuRef(0, 0), GpuRef(0, 1))
    key = CurveKey("all_reduce", group_shape(topology, members), "bfloat16", "nccl", library_version="2.27")

    def sample(size: int) -> Sample:
        typical = (15e-6 + size / 200e9 * late) * math.exp(rng.gauss(0, 0.01))
        return Sample(size, tuple(tuple(typical * math.exp(rng.gauss(0, 0.01)) for _ in range(8)) for _ in range(2)))

    rates = (Rate("hbm_read", GpuRef(0, 0), 3000 * math.exp(rng.gauss(0, 0.01)), "GB/s"),)
    curve = Curve(key, tuple(map(sample, SIZES)), members)
    return Survey(topology, (curve,), rates, measured_at="2026-11-20T00:00:00+00:00")


@pytest.fixture(autouse=True)
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What single machines are told is another room's; tests here bring checks of their own."""
    monkeypatch.setattr(probe.audit, "CHECKS", ())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten machines; the slow one lies deeper. Beside them what is no survey."""
    fleet = tmp_path / "fleet"
    (fleet / "rack" / "b").mkdir(parents=True)
    for n in range(9):
        (fleet / f"s{n}.json").write_bytes(encode_survey(survey(n)))
    (fleet / "rack" / "b" / "s9.json").write_bytes(encode_survey(survey(9, late=1.6)))
    (fleet / "plan.json").write_text('{"schema_version": 1}')
    (fleet / "torn.json").write_bytes(encode_survey(survey(10))[:-500])
    (fleet / "notes.txt").write_text("no JSON, and not asked for")
    return fleet


def test_the_slow_machine_is_named_and_unreadable_files_are_not_fatal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not audit_fleet(str(folder))
    printed = capsys.readouterr().out
    assert printed.startswith("1 of 10 machines need a look: 1 slower than their equals; 2 files could not be read\n")
    assert "node-009: all_reduce of GPUs 0,1: " in printed
    assert "on 9 equal machines: 3" in printed
    assert "plan.json" in printed
    assert "torn.json" in printed
    assert "node-003" not in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_json_has_its_schema_and_all_that_was_found(folder: Path, tmp_path: Path) -> None:
    audit_fleet(str(folder / "**" / "*.json"), format="json", output=tmp_path / "out.json")
    told = json.loads((tmp_path / "out.json").read_bytes())
    assert set(told) == set(fleet_schema()["$defs"]["FleetDocument"]["properties"])
    (worst,) = told["worst"]
    slow = told["hosts"][worst]
    assert slow["hostname"] == "node-009"
    assert slow["deviations"][0]["machines"] == 10
    assert slow["deviations"][0]["value"] < 0.7 * slow["deviations"][0]["usual"]
    assert {Path(one["file"]).name for one in told["unreadable"]} == {"plan.json", "torn.json"}
    assert all(one["reason"] for one in told["unreadable"])


def test_several_processes_find_what_one_finds(folder: Path) -> None:
    files = fleet_files(str(folder)) * 4  # more than one batch each
    one, two = (audit_files(files, processes=n) for n in (1, 2))
    assert fleet_lines(one) == fleet_lines(two)
    assert one.older == 30


def test_every_check_is_asked_and_one_that_fails_costs_one_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(one: Survey):  # type: ignore[no-untyped-def]
        if one.topology.nodes[0].hostname == "node-004":
            raise IndexError("a check met what it didn't expect")
        gpus = (GpuRef(0, 0),)
        yield Finding("narrow-pcie", Severity.FAILURE, "x8", "Reseat it.", Provenance.READ, gpus=gpus, node=0)

    monkeypatch.setattr(probe.audit, "CHECKS", (check,))
    found = audit_files(fleet_files(str(folder)))
    assert [(code, len(hosts)) for code, _, hosts in found.codes] == [("narrow-pcie", 9)]
    assert [Path(file).name for file, why in found.unreadable if "IndexError" in why] == ["s4.json"]
    assert verdict(found).startswith("9 of 9 machines need a look: 9 with failures, 1 slower than their equals")


def test_curves_are_judged_where_a_machine_stands_out_or_alone_and_for_a_group_as_a_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(one: Survey):  # type: ignore[no-untyped-def]
        for curve in one.curves:
            assert len(curve.samples) == len(SIZES)  # all of the file
            yield Finding("below-bar", Severity.FAILURE, "slow", "Look.", Provenance.MEASURED)
            if curve.samples[-1].p50_s > 1.3 * curve.samples[-1].size_bytes / 200e9:
                yield Finding("far-below", Severity.FAILURE, "slow", "Look.", Provenance.MEASURED)

    monkeypatch.setattr(probe.audit, "CHECKS", (check,))
    (folder / "alone.json").write_bytes(encode_survey(survey(30, links=4)))
    found = audit_files(fleet_files(str(folder)))
    group, alone = found.groups
    assert [one.code for one in group.findings] == ["below-bar"]
    assert (len(group.hosts), group.typical is None, alone.typical) == (10, False, None)
    told = {host.hostname: [one.code for one in host.findings] for host in found.hosts if host.findings}
    assert told == {"node-009": ["far-below"], "node-030": ["below-bar"]}
    assert [found.hosts[n].hostname for n in found.ranked] == ["node-009", "node-030"]
    audit_fleet(str(folder))
    assert f"{group.fingerprint}: below-bar, as on" in capsys.readouterr().out


def test_a_topology_alone_is_counted_and_not_judged(folder: Path) -> None:
    (folder / "t.json").write_bytes(encode_topology(survey(11).topology))
    found = audit_files(fleet_files(str(folder)))
    assert (len(found.hosts), found.groups[0].measured) == (11, 10)


def test_a_curve_of_gpus_that_are_not_there_is_unreadable(folder: Path) -> None:
    bad = survey(12)
    curve = replace(bad.curves[0], members=(GpuRef(0, 0), GpuRef(3, 7)))
    (folder / "bad.json").write_bytes(encode_survey(replace(bad, curves=(curve,))))
    assert any("node 3 has no GPU 7" in why for _, why in audit_files(fleet_files(str(folder))).unreadable)


def test_nothing_to_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file is named by"):
        audit_fleet(str(tmp_path))
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(SourceError, match="none of 1 files is a survey"):
        audit_fleet(str(tmp_path))
    with pytest.raises(UsageError, match="a fleet is not told as svg"):
        audit_fleet(str(tmp_path), format="svg")


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect",):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_stands_alone_and_hostile_names_stay_text(folder: Path) -> None:
    (folder / f"evil-{os.fsdecode(b'<b>caf%c</b>' % 0xE9).replace('/', '_')}.json").write_bytes(
        encode_survey(survey(20, late=2, hostname=EVIL))
    )
    found = audit_files(fleet_files(str(folder)))
    text = fleet_page(found, audited_at="2026-11-21T00:00:00+00:00")
    page = _Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.tags.count("title") == 1
    assert "<script>alert(1)</script>" in page.words
    assert "{{7*7}}" in page.words
    assert all(c.isprintable() or c == "\n" for c in text)
    assert not [value for name, value in page.attributes if name in ("src", "href") and value != "data:,"]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "node-009" in page.words
    assert text.encode()


def test_hostile_names_stay_on_their_line(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.json").write_bytes(encode_survey(survey(20, late=2, hostname=EVIL + "x" * 3000)))
    (folder / "bad\x1b[2J\nname.json").write_text("{}")
    found = audit_files(fleet_files(str(folder)))
    lines = [line.text for line in fleet_lines(found)]
    assert all(line.isprintable() and len(line) <= 100 for line in lines)
    audit_fleet(str(folder), format="json", output=tmp_path / "o.json")
    assert json.loads((tmp_path / "o.json").read_bytes())["hosts"]


def test_many_of_everything_stays_short() -> None:
    from fleets import fleet

    hosts, points = fleet(300, random.Random(1), places=4)
    for n in range(0, 300, 2):
        finding = Finding(f"code-{n}", Severity.FAILURE, "seen", "cure", Provenance.READ)
        hosts[n] = replace(hosts[n], findings=(finding,), fingerprint=f"wl1-{n}")
    from probe.outliers import audit_hosts

    found = audit_hosts(hosts, points, unreadable=[(f"{n}.json", "no survey") for n in range(400)])
    assert len(fleet_lines(found)) < 200
    assert len(fleet_page(found, audited_at="now")) < 300_000
