"""Audits that were kept: whole or not at all, found again, and told as drift link by link."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import sqlite3
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from builders import node_of
from command import wirelore

from configgen.history_document import encode_history, history_schema
from configgen.report.history import history_lines, sparkline
from probe import history
from probe.drift import Series, Verdict
from probe.errors import UsageError
from probe.finding import Finding, Severity
from probe.history import Kept, history_file, keep, prune, recall_history
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Sample, Survey
from probe.topology import GpuRef, GpuState, Node, Provenance, Topology

SIZES = (1 << 12, 1 << 14, 1 << 19, 1 << 24, 1 << 29)
FOUND = Finding("links-missing", Severity.WARNING, "a link is down", "Reseat it.", Provenance.READ)


def box(
    *, hostname: str | None = "node-1", uuids: Sequence[str | None] = "abcd", driver: str = "580.65", links: int = 18
) -> Node:
    node = node_of(4, 80, dict.fromkeys(((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)), links))
    return replace(node, hostname=hostname, driver_version=driver, gpus=tuple(GpuState(uuid=u) for u in uuids))


def measured(
    node: Node,
    *,
    slow: tuple[int, int] = (-1, -1),
    by: float = 1.0,
    seed: int = 0,
    library: str = "2.27.3",
    n: int = 12,
) -> Survey:
    """Each pair, and all: 15 us and 300 GB/s, by 1 % of noise; the slow pair's bytes take that much longer."""
    topology, rng = Topology((node,)), random.Random(seed)
    groups = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    curves = []
    for gpus in (*groups, (0, 1, 2, 3)):
        members = tuple(GpuRef(0, i) for i in gpus)
        direction = "forward" if len(gpus) == 2 else None
        operation = "p2p" if direction else "all_reduce"
        key = CurveKey(
            operation, group_shape(topology, members), "bfloat16", "nccl", False, direction, library_version=library
        )
        late = by if gpus == slow else 1.0

        def sample(size: int, late: float = late) -> Sample:
            typical = 15e-6 + size / 300e9 * late
            times = [[typical * math.exp(rng.gauss(0, 0.01)) for _ in range(n)] for _ in range(3)]
            return Sample(size, tuple(tuple(one) for one in times))

        curves.append(Curve(key, tuple(sample(size) for size in SIZES), members))
    return Survey(topology, tuple(curves), measured_at="2026-11-01T00:00:00+00:00")


def on(day: int) -> str:
    return f"2026-11-{day:02d}T08:00:00+00:00"


def of(series: Sequence[Series], gpus: tuple[int, ...], size: int | None) -> Series:
    return next(s for s in series if tuple(m.gpu for m in s.link.members) == gpus and s.size_bytes == size)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite"


def test_what_was_kept_is_found_again(file: Path) -> None:
    survey = measured(box())
    kept = keep(survey, [FOUND, FOUND], file, audited_at=on(1))
    assert kept == Kept(file, 7 * 5, 0)  # four sizes that every measurement has, and the start-up time
    (machine,) = recall_history(file)
    (record,) = machine.records
    assert (machine.name, machine.nodes, machine.lab) == ("node-1", 1, False)
    assert record.findings == (("links-missing", "warning", 2),)
    assert record.audited_at == on(1)
    assert record.measured_at == survey.measured_at
    facts = dict(record.facts)
    assert (facts["driver"], facts["library"], facts["wires"]) == ("580.65", "nccl 2.27.3", "NV18 x 6")
    whole = of(machine.series, (0, 1, 2, 3), 1 << 29)
    sample = survey.curves[-1].samples[-1]
    assert whole.first.time_s == sample.p50_s
    assert whole.value(sample.p50_s) == pytest.approx((1 << 29) / sample.p50_s * 1.5 / 1e9)
    assert whole.first.interval_s is not None
    assert whole.first.interval_s[0] < sample.p50_s < whole.first.interval_s[1]
    assert of(machine.series, (0, 1), None).first.time_s == pytest.approx(15e-6, rel=0.05)


def test_a_slow_link_is_found_and_the_others_are_not_accused(file: Path) -> None:
    for day in range(1, 9):
        slow = {"slow": (1, 3), "by": 1.3} if day > 5 else {}
        keep(measured(box(), seed=day, **slow), (), file, audited_at=on(day))  # type: ignore[arg-type]
    (machine,) = recall_history(file)
    assert {tuple(m.gpu for m in s.link.members) for s in machine.slower} == {(1, 3)}
    found = of(machine.series, (1, 3), 1 << 29)
    assert found.verdict is Verdict.SLOWER
    assert found.is_beyond_interval
    assert found.change == pytest.approx(1 / 1.3 - 1, abs=0.02)
    assert found.worst in found.points[5:]
    assert "1 of 7 links is slower than at first, the worst by 23%" in text(file)


def test_honest_noise_is_rarely_called_drift(tmp_path: Path) -> None:
    """Of 20 honest machines with 35 figures each, none is told slower: 5 % apart takes more than their noise."""
    told = 0
    for seed in range(20):
        file = tmp_path / f"{seed}.sqlite"
        keep(measured(box(), seed=2 * seed), (), file, audited_at=on(1))
        keep(measured(box(), seed=2 * seed + 1), (), file, audited_at=on(2))
        told += len(recall_history(file)[0].slower)
    assert told == 0


def test_a_change_within_the_intervals_is_steady_and_of_single_times_unknown(file: Path) -> None:
    one = measured(box(), n=1)
    once = replace(
        one,
        curves=tuple(
            replace(c, samples=tuple(Sample(s.size_bytes, s.rounds_s[:1]) for s in c.samples)) for c in one.curves
        ),
    )
    keep(once, (), file, audited_at=on(1))
    keep(measured(box(), by=2.0, slow=(0, 1), seed=1), (), file, audited_at=on(2))
    (machine,) = recall_history(file)
    # A median of a single time has the interval that its curve's other sizes tell, or none; it is never sure of itself.
    alone = of(machine.series, (0, 1), 1 << 29)
    assert (alone.is_beyond_interval is None) == (alone.verdict is Verdict.UNKNOWN)
    assert of(machine.series, (2, 3), 1 << 29).verdict in (Verdict.STEADY, Verdict.UNKNOWN)


def test_what_else_changed_is_told(file: Path) -> None:
    keep(measured(box()), (), file, audited_at=on(1))
    keep(measured(box(driver="590.1", links=17), library="2.28.0", seed=1), [FOUND], file, audited_at=on(2))
    keep(
        measured(box(driver="590.1", links=17, uuids="abcX"), library="2.28.0", seed=2), [FOUND], file, audited_at=on(3)
    )
    (machine,) = recall_history(file)
    told = {(c.fact, c.before, c.after) for c in machine.changes if c.fact not in ("identity", "fingerprint")}
    assert told == {
        ("driver", "580.65", "590.1"), ("library", "nccl 2.27.3", "nccl 2.28.0"), ("wires", "NV18 x 6", "NV17 x 6"),
    }  # fmt: skip
    assert [c.audited_at for c in machine.changes if c.fact == "identity"] == [on(3)]
    printed = text(file)
    assert "driver: 580.65 -> 590.1" in printed
    assert "other GPUs of the same kind" in printed
    assert "found now, not at first: links-missing" in printed


def test_a_measurement_that_is_audited_again_is_no_new_figure(file: Path) -> None:
    survey = measured(box())
    keep(survey, (), file, audited_at=on(1))
    assert keep(survey, (), file, audited_at=on(2)).figures == 0
    (machine,) = recall_history(file)
    assert [record.points for record in machine.records] == [28, 0]
    assert all(len(series.points) == 1 for series in machine.series)


def test_machines_are_told_apart_by_their_gpus_not_by_their_names(file: Path) -> None:
    keep(measured(box(hostname="pod-1")), (), file, audited_at=on(1))
    keep(measured(box(hostname="pod-2"), seed=1), (), file, audited_at=on(2))
    keep(measured(box(hostname="pod-2", uuids="efgh"), seed=2), (), file, audited_at=on(3))
    keep(replace(measured(box(hostname="pod-2"), seed=3), lab="CPU ranks"), (), file, audited_at=on(4))
    machines = recall_history(file)
    assert [(m.name, m.lab, len(m.records)) for m in machines] == [
        ("pod-2", True, 1), ("pod-2", False, 1), ("pod-2", False, 2),
    ]  # fmt: skip
    assert "LAB FIGURES" in text(file)


def test_without_uuids_the_name_tells(file: Path) -> None:
    for day, name in enumerate(("a", "a", "b", None), 1):
        keep(measured(box(hostname=name, uuids=(None,) * 4), seed=day), (), file, audited_at=on(day))
    assert sorted(len(machine.records) for machine in recall_history(file)) == [1, 1, 2]


def test_the_oldest_make_room(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_AUDITS", 3)
    other = box(hostname="other", uuids="wxyz")
    keep(measured(other), (), file, audited_at=on(1))
    dropped = [keep(measured(box(), seed=day), [FOUND], file, audited_at=on(day)).dropped for day in range(1, 7)]
    assert dropped == [0, 0, 0, 1, 1, 1]
    by_name = {machine.name: machine for machine in recall_history(file)}
    assert [record.audited_at for record in by_name["node-1"].records] == [on(4), on(5), on(6)]
    assert len(by_name["other"].records) == 1
    with sqlite3.connect(file) as db:
        left = [
            db.execute(f"SELECT COUNT(DISTINCT audit) FROM {table}").fetchone()[0]
            for table in ("times", "starts", "findings")
        ]
    db.close()
    assert left == [4, 4, 3]


def test_pruning_gives_the_room_back(file: Path) -> None:
    for day in range(1, 21):
        keep(measured(box(), seed=day), (), file, audited_at=on(day))
    before = file.stat().st_size
    ended = wirelore("history", "--history", str(file), "--prune-before", "2026-11-19")
    assert (ended.code, ended.out) == (0, "")
    assert "dropped 18 audits" in ended.err
    assert file.stat().st_size <= before / 2
    assert len(recall_history(file)[0].records) == 2
    assert prune("2027-01-01", file) == 2
    assert recall_history(file) == ()


def test_since_looks_at_the_later_audits_alone(file: Path) -> None:
    for day in (1, 2, 3):
        slow = {"slow": (0, 1), "by": 1.5} if day == 1 else {}
        keep(measured(box(), seed=day, **slow), (), file, audited_at=on(day))  # type: ignore[arg-type]
    assert [len(m.records) for m in recall_history(file, since="2026-11-02")] == [2]
    assert [len(m.records) for m in recall_history(file, since="2026-11-02T09:00:00+01:00")] == [2]
    assert [len(m.records) for m in recall_history(file, since="2026-11-02T08:00:01Z")] == [1]
    assert of(recall_history(file)[0].series, (0, 1), 1 << 29).verdict is Verdict.FASTER
    assert of(recall_history(file, since="2026-11-02")[0].series, (0, 1), 1 << 29).verdict is Verdict.STEADY
    with pytest.raises(UsageError, match="is no date"):
        recall_history(file, since="yesterday")


def _keep_some(file: Path, first: int, number: int) -> None:
    for n in range(first, first + number):
        keep(measured(box(), seed=n), [FOUND], file, audited_at=f"2026-11-01T08:{n:02d}:00")


def test_many_keep_at_once_and_nothing_is_lost(file: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_keep_some, args=(file, 10 * n, 4)) for n in range(5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [writer.exitcode for writer in writers] == [0] * 5
    (machine,) = recall_history(file)
    assert [record.points for record in machine.records] == [28] * 20
    assert all(len(series.points) == 20 for series in machine.series)


def _die_in_the_middle(file: Path) -> None:
    def dying(*_: object) -> None:
        os._exit(9)

    history._insert = dying  # type: ignore[assignment]
    keep(measured(box(), seed=2), [FOUND], file, audited_at=on(2))


def test_a_crash_in_the_middle_leaves_what_was_there(file: Path) -> None:
    keep(measured(box()), (), file, audited_at=on(1))
    known = recall_history(file)
    writer = multiprocessing.get_context("fork").Process(target=_die_in_the_middle, args=(file,))
    writer.start()
    writer.join(30)
    assert writer.exitcode == 9
    assert recall_history(file) == known
    keep(measured(box(), seed=3), (), file, audited_at=on(3))
    assert len(recall_history(file)[0].records) == 2


def test_an_older_file_is_brought_up_to_date_and_a_newer_one_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(measured(box()), [FOUND], file, audited_at=on(1))
    known = recall_history(file)
    with monkeypatch.context() as later:
        later.setattr(history, "MIGRATIONS", (*history.MIGRATIONS, "ALTER TABLE audits ADD COLUMN note TEXT"))
        assert recall_history(file) == known
        keep(measured(box(), seed=1), (), file, audited_at=on(2))
        assert len(recall_history(file)[0].records) == 2
    for attempt in (lambda: recall_history(file), lambda: keep(measured(box()), (), file, audited_at=on(3))):
        with pytest.raises(UsageError, match=r"has version 2, this program reads 1 to 1.*Update wirelore"):
            attempt()


def test_a_migration_that_fails_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(measured(box()), (), file, audited_at=on(1))
    known = recall_history(file)
    with monkeypatch.context() as later:
        later.setattr(history, "MIGRATIONS", (*history.MIGRATIONS, "CREATE TABLE more(x); DROP TABLE absent"))
        with pytest.raises(UsageError, match="no such table"):
            recall_history(file)
    assert recall_history(file) == known


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE cookies(x)")
    db.close()


def _wrong_types(path: Path) -> None:
    keep(measured(box()), (), path, audited_at=on(1))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE times SET time_s = 'soon'")
    db.close()


def _no_tables(path: Path) -> None:
    keep(measured(box()), (), path, audited_at=on(1))
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE starts")
    db.close()


def _torn(path: Path) -> None:
    keep(measured(box()), (), path, audited_at=on(1))
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(b"no database at all " * 100), "cannot be read"),
        (_foreign, "is a database, but no history"),
        (_wrong_types, "holds what wirelore never writes"),
        (_no_tables, "no such table"),
        (_torn, "cannot be read|never writes|malformed"),
        (lambda path: path.mkdir(), "unable to open"),
        (lambda path: None, "there is no history"),
    ],
    ids=["garbage", "foreign", "types", "tables", "torn", "folder", "absent"],
)
def test_a_spoilt_file_is_one_line_with_a_cure(tmp_path: Path, spoil: object, says: str) -> None:
    path = tmp_path / "history.sqlite"
    spoil(path)  # type: ignore[operator]
    with pytest.raises(UsageError, match=says) as caught:
        recall_history(path)
    assert caught.value.cure
    ended = wirelore("history", "--history", str(path))
    assert ended.code == 2
    assert ended.err.count("\n") == 1


def test_a_foreign_database_is_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "firefox.sqlite"
    _foreign(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="no history of audits"):
        keep(measured(box()), (), path, audited_at=on(1))
    assert path.read_bytes() == before


def test_a_file_that_stays_locked_is_one_line_with_a_cure(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(measured(box()), (), file, audited_at=on(1))
    monkeypatch.setattr(history, "_WAIT_S", 0.05)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(UsageError, match=r"locked.*Try again when no other wirelore writes"):
            keep(measured(box(), seed=1), (), file, audited_at=on(2))
        assert len(recall_history(file)[0].records) == 1  # readers don't wait for a writer
    finally:
        holder.close()


def test_hostile_names_reach_no_terminal(file: Path) -> None:
    evil = "a\x1b[31m\n'; DROP TABLE audits; --\u202e" + "x" * 5000
    survey = measured(box(hostname=evil, driver=evil), library=evil)
    hostile = replace(survey, environment=((evil, evil),))
    keep(hostile, (), file, audited_at=on(1))
    keep(replace(hostile, environment=()), (), file, audited_at=on(2))
    printed = text(file)
    assert all(c.isprintable() or c == "\n" for c in printed)
    assert max(map(len, printed.splitlines())) <= 100
    assert json.loads(encode_history(recall_history(file)))["machines"][0]["audits"][1]["points"] == 0


def test_the_command_prints_text_json_and_one_link(file: Path) -> None:
    for day in (1, 2, 3):
        keep(measured(box(), seed=day, slow=(0, 1), by=1 + day / 10), (), file, audited_at=on(day))
    printed = wirelore("history", "--history", str(file)).data()
    assert printed.startswith("node-1: 3 audits from 2026-11-01 to 2026-11-03, 3 of them with new figures\n")
    row = next(line for line in printed.splitlines() if "p2p forward" in line)
    assert row.split()[2:5] == ["0-1", "512", "MiB"]
    assert row.split()[-2:] == ["slower", row.split()[-1]]
    assert len(row.split()[-1]) == 3  # bars of three audits
    told = json.loads(wirelore("history", "--history", str(file), "--format", "json", "--link", "0-1").data())
    assert set(told) == set(history_schema()["$defs"]["HistoryDocument"]["properties"])
    series = told["machines"][0]["series"]
    assert {tuple(m["gpu"] for m in s["link"]["members"]) for s in series} == {(0, 1)}
    assert [len(s["points"]) for s in series] == [3] * 5
    assert wirelore("history", "--history", str(file), "--strict").code == 1
    assert wirelore("history", "--history", str(file), "--strict", "--link", "2-3").code == 0
    assert wirelore("history", "--history", str(file), "--link", "0-0x").code == 2
    assert wirelore("history", "--history", str(file), "--link", "0-9").code == 2
    assert wirelore("history", "--history", str(file), "--since", "2030-01-01").code == 2


def test_the_file_stands_in_the_state_folder_and_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "own"))
    assert history_file() == tmp_path / "own" / "wirelore" / "history.sqlite"
    keep(measured(box()), (), audited_at=on(1))
    assert stat.S_IMODE(history_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(history_file().parent.stat().st_mode) == 0o700
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_file() == tmp_path / ".local" / "state" / "wirelore" / "history.sqlite"


def test_an_unmeasured_audit_is_kept_with_what_it_found(file: Path) -> None:
    keep(Survey(Topology((box(),))), [FOUND], file, audited_at=on(1))
    assert recall_history(file)[0].series == ()
    assert "nothing was measured" in text(file)


def test_sparklines() -> None:
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert len(set(sparkline([300, 301, 299.5, 300.2]))) <= 3  # 0.5 % is drawn as the noise that it is
    assert len(sparkline([float(n) for n in range(1, 400)])) == 16
    assert sparkline([5.0]) in "▄▅"


def text(file: Path) -> str:
    return "\n".join(line.text for line in history_lines(recall_history(file))) + "\n"
