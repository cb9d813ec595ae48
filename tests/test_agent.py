"""`wirelore agent`: what it sees change, when it is well, what it publishes, and what it may be asked."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from agent_cases import failed, finding, lost, seen, well
from agent_run import agent
from command import wirelore
from fake_nvml import FakeMachine
from fake_nvml.machines import Description

from configgen.run.agent import Seen, State, changes
from configgen.run.daemon import Agent, Outlets
from configgen.run.features import labels
from configgen.run.look import look, signs
from probe.finding import Finding, Severity
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.store import decode_survey
from probe.topology import GpuState, Topology

# ---- what changed, and health --------------------------------------------------------------------------------------


def test_each_change_is_one_line_and_none_is_none() -> None:
    topology = machine("machine:hgx-h100")
    first = seen(topology)
    assert len(changes(None, first)) == 1
    assert changes(first, first) == ()
    (line,) = changes(first, seen(lost(topology, 3)))
    assert "1 of them lost" in line
    assert "1 island of 7 (NV18)" in line
    assert "before: " in line


def test_findings_that_come_and_go_are_told_and_infos_are_not() -> None:
    topology = machine("machine:hgx-h100")
    grave, info = finding("gpu-lost", Severity.FAILURE, 3), finding("good-to-know", Severity.INFO)
    assert changes(seen(topology), seen(topology, grave, info)) == ("failure gpu-lost: GPU 3",)
    assert changes(seen(topology, grave), seen(topology, replace(grave, seen="GPU 3, still"))) == ()
    assert changes(seen(topology, grave, info), seen(topology)) == ("no more gpu-lost: GPU 3",)


def test_load_changes_no_label_and_no_line(fake_machine: FakeMachine) -> None:
    topology = machine("machine:hgx-h100")
    idle = seen(topology)
    working = seen(topology, finding("throttled", Severity.WARNING), finding("pcie-slow", Severity.WARNING, 2))
    assert changes(idle, working) == changes(working, idle) == ()
    assert labels(idle) == labels(working)
    before = wirelore("agent", "--once", environ=fake_machine(well())).data()
    busy = well()
    busy |= {"processes 0": "4242 40000000000", "clocks.reasons 3": 0x40}
    assert wirelore("agent", "--once", environ=fake_machine(busy)).data() == before


def test_a_node_that_works_passes_its_audit(fake_machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("configgen.run.look.require_nothing_stuck", lambda: None)  # other tests' children are none

    def findings(description: Description) -> dict[str, Severity]:
        for name, value in fake_machine(description).items():
            monkeypatch.setenv(name, value)
        audited = look().audited
        assert audited is not None
        return {found.code: found.severity for found in audited.findings}

    busy = well()
    busy |= {"processes 0": "4242 40000000000", "clocks.reasons 3": 0x40}
    found = findings(busy)
    assert found["gpu-busy"] is Severity.INFO
    assert found["throttled"] is Severity.WARNING, "of a moment, but a metric all the same"


def test_a_failure_is_told_once_and_its_end_too() -> None:
    well = seen(machine("machine:l4-2"))
    assert changes(well, failed("no driver")) == ("no GPU can be read: no driver",)
    assert changes(failed("no driver"), failed("no driver")) == ()
    (line,) = changes(failed("no driver"), well)
    assert line.startswith("GPUs can be read again: 2 x NVIDIA L4")


def test_an_exchanged_gpu_is_told() -> None:
    def with_uuids(*uuids: str) -> Topology:
        node = machine("machine:l4-2").nodes[0]
        return Topology((replace(node, gpus=tuple(GpuState(uuid=uuid) for uuid in uuids)),))

    (line,) = changes(seen(with_uuids("GPU-a", "GPU-b")), seen(with_uuids("GPU-a", "GPU-c")))
    assert "GPU 1: GPU-b -> GPU-c" in line


def test_a_look_has_a_result_or_a_reason() -> None:
    with pytest.raises(ValueError, match="says why"):
        Seen(0.0, 0.0)


def test_an_agent_is_unwell_after_three_silent_intervals() -> None:
    state = State(60.0, since_s=1000.0)
    assert state.unwell(1180.0) is None
    assert "181 s" in str(state.unwell(1181.0))
    assert state.after(failed("no driver"), 1, 1181.0).unwell(1200.0) is None, "a broken machine is no broken agent"


def test_a_bug_is_a_reason_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(survey: Survey) -> tuple[Finding, ...]:
        raise ZeroDivisionError("in a check")

    monkeypatch.setattr("configgen.run.look.audit", broken)
    assert "ZeroDivisionError: in a check" in str(look("machine:l4-2").failure)


def test_devices_that_come_and_go_are_signs_and_terminals_are_not(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    before = signs(tmp_path)
    (tmp_path / "dev" / "pts0").touch()
    assert signs(tmp_path) == before
    (tmp_path / "dev" / "nvidia0").touch()
    assert signs(tmp_path) != before


def test_nothing_is_asked_of_a_driver_that_holds_an_earlier_reader() -> None:
    """In a process of its own, for the look collects every child that there is."""
    code = """
import os, subprocess
from configgen.run.look import look, require_nothing_stuck
require_nothing_stuck()
ended = subprocess.Popen(["true"])
os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # so that it is there to be collected, however busy it is here
stuck = subprocess.Popen(["sleep", "60"])
print(look().failure)
stuck.kill()
stuck.wait()
require_nothing_stuck()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("an earlier reader is stuck")


# ---- publishing ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_told_once_and_the_rest_is_published(tmp_path: Path) -> None:
    said: list[str] = []
    outlets = Outlets(features=tmp_path / "gone", survey=tmp_path / "survey.json")
    one = Agent(lambda: look("machine:l4-2"), outlets, said.append, interval_s=60.0)
    one.once()
    one.once()
    assert len([line for line in said if "features not published" in line]) == 1
    assert dict(one.state.refused)["survey"] is None
    assert decode_survey((tmp_path / "survey.json").read_bytes(), where="it").topology.gpu_count == 2


def test_only_what_differs_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    outlets = Outlets(features=tmp_path / "features", survey=tmp_path / "survey.json")
    one = Agent(lambda: look("machine:l4-2"), outlets, lambda text: None, interval_s=60.0)
    one.once()
    before = (tmp_path / "survey.json").stat().st_ino
    one.once()
    assert (tmp_path / "survey.json").stat().st_ino == before
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["wirelore"], "no dot file stays"


def test_a_survey_that_cannot_be_renewed_stays(tmp_path: Path) -> None:
    looks = iter((look("machine:l4-2"), failed("no driver")))
    one = Agent(lambda: next(looks), Outlets(survey=tmp_path / "survey.json"), lambda text: None, interval_s=60.0)
    one.once()
    one.once()
    assert decode_survey((tmp_path / "survey.json").read_bytes(), where="it").topology.gpu_count == 2


def test_a_bug_in_one_outlet_ends_neither_the_agent_nor_the_others(tmp_path: Path) -> None:
    said: list[str] = []
    topology = machine("machine:l4-2")
    unwritable = replace(topology, nodes=(replace(topology.nodes[0], hostname="n\udcff"),))
    outlets = Outlets(features=tmp_path, survey=tmp_path / "survey.json")
    one = Agent(lambda: seen(unwritable), outlets, said.append, interval_s=60.0)
    one.once()
    refused = dict(one.state.refused)
    assert refused["features"] is None
    assert "UnicodeEncodeError" in str(refused["survey"])
    assert [line for line in said if "survey not published: this is a bug in wirelore" in line]


def test_a_node_name_that_no_file_can_hold_is_none(fake_nvml: Path, tmp_path: Path) -> None:
    with agent(tmp_path, fake_nvml, well(), NODE_NAME="n\udcff") as run:
        run.until((tmp_path / "survey.json").exists)
        assert run.metric("wirelore_published", to="survey") == 1
    (node,) = decode_survey((tmp_path / "survey.json").read_bytes(), where="it").topology.nodes
    assert node.hostname != "n\udcff"


# ---- the command ---------------------------------------------------------------------------------------------------


def test_once_prints_the_labels_and_ends_with_what_it_found(tmp_path: Path) -> None:
    ended = wirelore("agent", "--once", "--from", "machine:hgx-h100", "--features", tmp_path)
    assert "wirelore.io/island-size=8\n" in ended.data()
    lines = (tmp_path / "wirelore").read_text().splitlines()
    assert lines[2:] == ended.out.splitlines()
    none = wirelore("agent", "--once", "--features", tmp_path)
    assert (none.code, none.out) == (4, "wirelore.io/probe=failed\n")
    assert "wirelore.io/probe=failed\n" in (tmp_path / "wirelore").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--interval", "0.5s"), "less than 1 s"),
        (("--interval", "soon"), "no span of time"),
        (("--features", "gone"), "no folder gone"),
        (("--survey", "gone/survey.json"), "no folder gone"),
        (("--from", "-"), "again and again"),
        (("--address", "999.0.0.1"), "cannot listen"),
        (("--node-labels", "--from", "machine:l4-2"), "describes another"),
    ],
)
def test_what_was_asked_wrongly_is_said_at_once(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    ended = wirelore("agent", *arguments, cwd=tmp_path)
    assert ended.code == 2
    assert told in ended.err
    assert ended.err.count("\n") == 1


def test_options_come_from_the_environment_and_a_services_variables_are_no_options() -> None:
    links = {"WIRELORE_AGENT_PORT": "tcp://10.0.0.1:9835", "WIRELORE_AGENT_SERVICE_HOST": "10.0.0.1"}
    asked = {"WIRELORE_AGENT_ONCE": "1", "WIRELORE_AGENT_FROM": "machine:l4-2"}
    assert "wirelore.io/gpus=2\n" in wirelore("agent", environ=links | asked).data()
    wrong = wirelore("agent", environ=links | asked | {"WIRELORE_AGENT_HTTP_PORT": "70000"})
    assert (wrong.code, "70000" in wrong.err) == (2, True)


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = wirelore("agent", "--from", "machine:l4-2", "--address", "127.0.0.1", "--port", port)
    assert ended.code == 2
    assert f"port {port}" in ended.err
