"""A group measures its network for real before it decides: torch and gloo, CPU ranks in the place of GPUs."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
import uuid
from pathlib import Path

import pytest
from measure_run import MARK, START_S, gone, marked
from members import Group, ended

from probe.store import decode_survey

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="no torch here: a group that measures is NOT tested"
)

LAB = """
from dataclasses import replace
import configgen.cli.init as i
now = i.measure_now
i._unable = lambda *_: None
i.measure_now = lambda wanted, **how: now(replace(wanted, backend="gloo", largest=1024), **how)
"""
"""What describes a machine measures nothing, and gloo is no GPU's: only here it may."""


@pytest.mark.long
def test_the_plan_rests_on_what_all_measured_together(tmp_path: Path) -> None:
    group = Group(tmp_path, 2, machine="machine:l4-1", model="llama-3.1-8b")
    members = [group.start(n, "--budget", "10s", deadline="60s", before=LAB, GLOO_SOCKET_IFNAME="lo") for n in (0, 1)]
    results = [ended(member) for member in members]
    assert [r.code for r in results] == [0, 0], results
    group.the_plan()
    assert all("measuring failed" not in result.out for result in results), results
    surveys = {(tmp_path / str(node) / "survey.json").read_bytes() for node in (0, 1)}
    (survey,) = (decode_survey(data, where="survey.json") for data in surveys)
    assert any(curve.key.group.nodes == 2 for curve in survey.curves), "the network between them"
    assert all("LAB FIGURES" in result.out for result in results)
    before = [group.files(node) for node in (0, 1)]
    again = LAB + "\nimport os\ndef measure_now(*_, **__): os._exit(9)\ni.measure_now = measure_now\n"
    assert [r.code for r in group.run_all("--budget", "10s", before=again)] == [0, 0], "nobody measures a second time"
    assert [group.files(node) for node in (0, 1)] == before


@pytest.mark.long
def test_a_measurement_that_a_member_leaves_ends_in_a_plan(tmp_path: Path) -> None:
    group = Group(tmp_path, 2, machine="machine:l4-1", model="llama-3.1-8b")
    refuses = LAB + "\nimport os\ndef measure_now(*_, **__): os._exit(9)\ni.measure_now = measure_now\n"
    told = ("--budget", "6s")
    members = [group.start(0, *told, deadline="25s", before=LAB), group.start(1, *told, before=refuses)]
    leader = ended(members[0])
    assert ended(members[1]).code == 9
    assert leader.code == 0, leader
    assert "not met: node 1 of 2 did not come in time" in leader.out


# What holds GPU memory is a process


def ranks(mark: str, count: int) -> list[int]:
    """The processes that would each have a GPU, once all are there: children of the one that init started."""
    deadline = time.monotonic() + START_S
    while True:
        alive = marked(mark)
        nodes = [pid for pid, parent in alive.items() if parent not in alive]
        found = [pid for pid, parent in alive.items() if parent in nodes]
        if len(found) == count:
            return found
        assert time.monotonic() < deadline, "no ranks came"
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize(
    ("happens", "code"),
    [
        ("nothing", 0),
        ("a rank is killed", 0),
        ("a rank hangs", 0),
        ("the deadline", 0),
        ("SIGTERM", 130),
        ("SIGKILL", -9),
    ],
)
def test_when_it_has_ended_no_process_is_left_to_hold_a_gpus_memory(tmp_path: Path, happens: str, code: int) -> None:
    mark = uuid.uuid4().hex
    before, deadline = LAB, "60s"
    if happens == "a rank hangs":
        before = LAB + "i._SILENCE_S = 2.0\n"
    elif happens == "the deadline":
        before = LAB.replace("largest=1024", "largest=1024, timeout=600.0") + "i.GRACE_S = i._SLACK_S = 1.0\n"
        deadline = "15s"
    told = {MARK: mark, "GLOO_SOCKET_IFNAME": "lo"}
    group = Group(tmp_path, 1, machine="machine:l4-2", model="llama-3.1-8b")
    member = group.start(0, "--budget", "8s", deadline=deadline, before=before, **told)
    first, second = ranks(mark, 2)
    if happens == "a rank is killed":
        os.kill(first, signal.SIGKILL)
    elif happens in ("a rank hangs", "the deadline"):
        os.kill(second, signal.SIGSTOP)
    elif happens.startswith("SIG"):
        assert member.process.pid is not None
        os.kill(member.process.pid, signal.Signals[happens])
    result = ended(member)
    gone(mark, 2.0)
    assert result.code == code, result
    if not code:
        assert ("measuring failed" in result.out) == (happens != "nothing"), result
