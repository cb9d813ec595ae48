"""`wirelore agent`: what it publishes of a machine that changes, when it is well, and that it leaves nothing behind."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from agent_run import Running, agent
from audit_cases import plain
from command import environment, wirelore
from fake_nvml import FakeMachine
from fake_nvml.machines import LOST, Description, healthy, hgx_h100
from measured_surveys import curve, refs
from ports import free_port

from configgen.audited import Audited
from configgen.run.agent import Seen, State, changes
from configgen.run.daemon import Agent, Outlets
from configgen.run.features import NAMES, PREFIX, feature_file, labels
from configgen.run.labels import patch_of
from configgen.run.look import look, signs
from configgen.run.serve import Server
from probe.audit import audit
from probe.finding import Finding, Severity
from probe.measurement import Survey
from probe.sources.machines import MACHINES, machine
from probe.store import decode_survey
from probe.topology import GpuRef, GpuState, GpuStatus, Provenance, Topology

KUBERNETES_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
"""As the API server checks a label's value (apimachinery, pkg/util/validation)."""


def seen(survey: Survey | Topology, *findings: Finding, at_s: float = 1_800_000_000.0) -> Seen:
    survey = survey if isinstance(survey, Survey) else Survey(survey)
    return Seen(at_s, 0.1, Audited(survey, findings, "2026-11-21T12:00:00Z"))


def failed(why: str) -> Seen:
    return Seen(1_800_000_000.0, 0.1, failure=why)


def finding(code: str, severity: Severity, gpu: int = 0) -> Finding:
    return Finding(code, severity, f"GPU {gpu}", "Look.", Provenance.READ, node=0, gpus=(GpuRef(0, gpu),))


def lost(topology: Topology, *gpus: int) -> Topology:
    node = topology.nodes[0]
    states = tuple(replace(s, status=GpuStatus.LOST) if i in gpus else s for i, s in enumerate(node.gpus))
    return replace(topology, nodes=(replace(node, gpus=states),))


def well() -> Description:
    return healthy(hgx_h100())


def short(told: dict[str, str]) -> dict[str, str]:
    return {name.removeprefix(PREFIX): value for name, value in told.items()}


# ---- labels --------------------------------------------------------------------------------------------------------


def test_labels_of_an_nvswitch_machine() -> None:
    told = short(labels(seen(machine("machine:hgx-h100"))))
    assert told.pop("fingerprint").startswith("wl1-")
    assert told == {
        "probe": "ok", "gpus": "8", "islands": "1x8", "island-size": "8", "link": "NV18", "nvlinks": "18",
        "audit": "passed",
    }  # fmt: skip


def test_a_lost_gpu_counts_in_no_label() -> None:
    told = short(labels(seen(lost(machine("machine:3090-bridges-4"), 0))))
    assert (told["gpus"], told["islands"], told["island-size"]) == ("3", "1x2-1x1", "2")


def test_a_machine_without_a_fast_fabric_has_no_link() -> None:
    told = short(labels(seen(machine("machine:l40s-8"))))
    assert (told["island-size"], told["islands"]) == ("1", "8x1")
    assert not {"link", "nvlinks", "measured-gbps"} & set(told)


def test_a_machine_whose_gpus_are_all_lost_claims_nothing() -> None:
    told = short(labels(seen(lost(machine("machine:l4-2"), 0, 1))))
    assert told["gpus"] == "0"
    assert not {"islands", "island-size", "link"} & set(told)


def test_a_look_that_fails_leaves_one_label() -> None:
    assert labels(failed("no driver")) == {PREFIX + "probe": "failed"}


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_every_label_is_one_that_kubernetes_takes(name: str) -> None:
    told = labels(seen(machine(f"machine:{name}"), finding("a-code", Severity.WARNING)))
    assert set(short(told)) <= set(NAMES)
    assert all(KUBERNETES_VALUE.fullmatch(value) for value in told.values())
    assert short(told)["audit"] == "warning"


@pytest.mark.parametrize(("gbps", "told"), [(460.0, "400"), (480.0, "400"), (9.0, "0"), (2000.0, "800")])
def test_a_measured_bandwidth_is_told_as_a_class(gbps: float, told: str) -> None:
    topology = plain("machine:hgx-h100")
    whole = curve(topology, refs(*range(8)), gbps, alpha_s=0.0)
    pair = curve(topology, refs(0, 1), 30.0)
    assert short(labels(seen(Survey(topology, curves=(pair, whole)))))["measured-gbps"] == told


def test_figures_of_a_part_or_of_a_lab_are_no_label() -> None:
    topology = plain("machine:hgx-h100")
    pair, whole = curve(topology, refs(0, 1), 300.0), curve(topology, refs(*range(8)), 300.0)
    assert "measured-gbps" not in short(labels(seen(Survey(topology, curves=(pair,)))))
    assert "measured-gbps" not in short(labels(seen(Survey(topology, curves=(whole,), lab="CPU ranks"))))


def test_a_feature_file_is_what_nfd_reads() -> None:
    lines = feature_file({PREFIX + "gpus": "8"}, 1_800_000_000.9, 100.0).decode().splitlines()
    assert lines[1:] == ["# +expiry-time=2027-01-15T08:05:00Z", "wirelore.io/gpus=8"]
    assert lines[0].startswith("# ")
    assert not lines[0].startswith("# +")


def test_features_outlive_three_looks_of_nfd_however_short_the_interval() -> None:
    (line,) = (x for x in feature_file({}, 0.0, 1.0).decode().splitlines() if x.startswith("# +"))
    assert line == "# +expiry-time=1970-01-01T00:03:00Z"


def test_what_is_no_label_is_never_written() -> None:
    for value in ("", "a b", "a\nwirelore.io/gpus=9", "x" * 64, "-a"):
        with pytest.raises(ValueError, match="63"):
            feature_file({PREFIX + "link": value}, 0.0, 60.0)


def test_a_patch_takes_off_what_the_machine_lacks_and_touches_nobody_elses() -> None:
    patched = patch_of(labels(failed("no driver")))
    assert patched == {"metadata": {"labels": {PREFIX + name: "failed" if name == "probe" else None for name in NAMES}}}


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
import subprocess, sys
from configgen.run.look import look, require_nothing_stuck
from probe.errors import NoGpuError
require_nothing_stuck()
ended = subprocess.Popen(["true"])
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


# ---- HTTP ----------------------------------------------------------------------------------------------------------


@contextmanager
def serving(state: State) -> Iterator[tuple[Server, list[str]]]:
    said: list[str] = []
    server = Server("127.0.0.1", free_port(), lambda: state, said.append)
    server.start(poll_s=0.05)
    try:
        yield server, said
    finally:
        server.shutdown()
        server.server_close()


def ask(server: Server, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_health_says_why_it_is_bad() -> None:
    with serving(State(1.0, since_s=time.monotonic() - 60)) as (server, _):
        status, text = ask(server, "/healthz")
        assert status == 503
        assert "no look at the machine has ended for 60 s" in text
    with serving(State(60.0, since_s=time.monotonic())) as (server, _):
        assert ask(server, "/healthz") == (200, "ok\n")
        assert ask(server, "/")[0] == 200
        assert ask(server, "/healthz", "HEAD") == (200, "")
        assert ask(server, "/etc/passwd")[0] == 404


def test_metrics_are_those_of_the_audit_and_the_agents_own() -> None:
    topology = lost(machine("machine:hgx-h100"), 3)
    found = finding('a-"code"'.replace('"', ""), Severity.FAILURE, 3)
    state = State(60.0, 0.0).after(seen(topology, found), 2, 1.0)
    with serving(replace(state, refused=(("features", None), ("survey", "disk full")))) as (server, said):
        status, text = ask(server, "/metrics")
    assert status == 200
    for line in (
        'wirelore_gpu_usable{gpu="3",node="0"} 0.0',
        'wirelore_finding{code="a-code",gpu="3",nic="",node="0",severity="failure"} 1.0',
        "wirelore_audit_passed 0.0",
        "wirelore_probe_success 1.0",
        'wirelore_probes_total{result="ok"} 1.0',
        "wirelore_changes_total 2.0",
        'wirelore_published{to="features"} 1.0',
        'wirelore_published{to="survey"} 0.0',
    ):
        assert f"{line}\n" in text, text
    assert "process_resident_memory_bytes " in text
    assert "python_gc" not in text
    assert said == []


def test_hostile_names_stay_inside_their_labels() -> None:
    topology = machine("machine:l4-2")
    node = replace(topology.nodes[0], hostname='a"} 1\nwirelore_audit_passed 7\n# \\')
    state = State(60.0, 0.0).after(seen(replace(topology, nodes=(node,))), 0, 1.0)
    with serving(state) as (server, _):
        _, text = ask(server, "/metrics")
    assert [line for line in text.splitlines() if line.startswith("wirelore_audit_passed")] == [
        "wirelore_audit_passed 1.0"
    ]


def test_a_failed_look_has_no_machine_in_its_metrics() -> None:
    with serving(State(60.0, 0.0).after(failed("no driver"), 1, 1.0)) as (server, _):
        _, text = ask(server, "/metrics")
    assert "wirelore_probe_success 0.0\n" in text
    assert 'wirelore_probes_total{result="failed"} 1.0\n' in text
    assert "wirelore_gpu" not in text


def test_clients_that_only_hold_connections_keep_nobody_out() -> None:
    with serving(State(60.0, since_s=time.monotonic())) as (server, said):
        idle = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(60)]
        try:
            for _ in range(5):
                assert ask(server, "/healthz") == (200, "ok\n")
            assert threading.active_count() < 40
            for client in idle[::2]:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
                client.close()
            assert ask(server, "/healthz") == (200, "ok\n")
        finally:
            for client in idle:
                client.close()
    assert said == []


# ---- its page -------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "agent.md").read_text()


def test_its_page_names_every_metric_and_label() -> None:
    topology = plain("machine:hgx-h100")
    measured = Survey(topology, curves=(curve(topology, refs(*range(8)), 450.0),), measured_at="2026-11-20T12:00:00Z")
    state = replace(State(60.0, 0.0), refused=(("survey", None),)).after(seen(measured), 0, 1.0)
    with serving(state) as (server, _):
        _, text = ask(server, "/metrics")
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE wirelore_")}
    audits = (Path(__file__).resolve().parent.parent / "docs" / "audit.md").read_text()
    assert not {name for name in names if f"`{name}`" not in PAGE + audits}
    assert not {name for name in NAMES if f"`wirelore.io/{name}`" not in PAGE}


def test_the_role_on_its_page_is_the_least_that_does() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    documents = [d for block in blocks for d in yaml.safe_load_all(block)]
    (role,) = (d for d in documents if d["kind"] == "ClusterRole")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}]


# ---- a whole life, over the real bindings ---------------------------------------------------------------------------


def with_link_lost(description: Description) -> Description:
    description["link.state 2 17"] = 0
    return description


def with_gpu_lost(description: Description) -> Description:
    description["memory 5"] = LOST
    return description


def looks(run: Running) -> float:
    return sum(value for (name, _), value in run.metrics().items() if name == "wirelore_probes_total")


def test_metrics_and_labels_follow_the_machine_within_one_interval(fake_nvml: Path, tmp_path: Path) -> None:
    """A change counts as followed by the first look that began after it: at most two end until it must be seen."""
    with agent(tmp_path, fake_nvml, well()) as run:
        run.until(lambda: run.labels.get("wirelore.io/island-size") == "8")
        assert run.until(lambda: run.metric("wirelore_nvlinks_active", gpu="2")) == 18
        for change, shows in (
            (lambda: run.become(with_link_lost(well())), lambda: run.metric("wirelore_nvlinks_active", gpu="2") == 17),
            (lambda: run.become(with_gpu_lost(well())), lambda: run.metric("wirelore_gpu_usable", gpu="5") == 0),
            (run.lose_driver, lambda: run.metric("wirelore_probe_success") == 0),
            (lambda: run.become(well()), lambda: run.metric("wirelore_gpu_usable", gpu="5") == 1),
        ):
            before = looks(run)
            change()
            run.until(shows)
            assert looks(run) <= before + 2
            wanted = {
                0.0: {"probe": "failed"},
                1.0: {"probe": "ok", "gpus": "7" if run.metric("wirelore_gpu_usable", gpu="5") == 0 else "8"},
            }[run.metric("wirelore_probe_success") or 0.0]
            run.until(lambda wanted=wanted: wanted.items() <= short(run.labels).items())  # type: ignore[misc]
        status, text = run.get("/healthz")
        assert (status, text) == (200, "ok\n")
        code, seconds = run.end()
        log = run.log.splitlines()
    assert code == 0
    assert seconds < 1
    assert run.children() == []
    assert "Traceback" not in run.log
    assert all(line.startswith("wirelore agent: ") for line in log)
    assert sum("no GPU can be read" in line for line in log) == 1
    assert sum("GPUs can be read again" in line for line in log) == 1
    assert log[-1] == "wirelore agent: ends on SIGTERM"
    assert short(run.labels)["gpus"] == "8", "the features stay until they expire"
    assert decode_survey((tmp_path / "survey.json").read_bytes(), where="it").topology.gpu_count == 8


def test_a_driver_that_hangs_makes_it_unwell_and_still_lets_it_end(fake_nvml: Path, tmp_path: Path) -> None:
    hanging = well()
    hanging["count"] = "hang"
    with agent(tmp_path, fake_nvml, well()) as run:
        run.until(lambda: run.get("/healthz")[0] == 200 and run.labels)
        run.become(hanging)
        status, text = run.until(lambda: (found := run.get("/healthz"))[0] == 503 and found)  # type: ignore[misc]
        assert "3 intervals are 3 s" in text
        assert run.metric("wirelore_probe_success") == 1, "the last look that ended"
        assert len(run.children()) == 1
        code, seconds = run.end()
    assert (code, status) == (0, 503)
    assert seconds < 1
    assert "Traceback" not in run.log


def test_a_hang_that_ends_is_one_failed_look(fake_nvml: Path, tmp_path: Path) -> None:
    hanging = well()
    hanging["count"] = "hang"
    with agent(tmp_path, fake_nvml, hanging, WIRELORE_NVML_TIMEOUT_S="1") as run:
        run.until(lambda: (run.metric("wirelore_probes_total", result="failed") or 0) >= 2)
        assert run.log.count("does not answer") == 1
        run.become(well())
        run.until(lambda: run.metric("wirelore_probe_success"))
        run.until(lambda: not [child for child in run.children() if child.endswith("Z")])


def test_sighup_asks_for_a_look_at_once(fake_nvml: Path, tmp_path: Path) -> None:
    with agent(tmp_path, fake_nvml, well(), interval="1h") as run:
        run.until(lambda: run.metric("wirelore_probe_success"))
        run.become(with_gpu_lost(well()))
        os.kill(run.process.pid, 1)
        run.until(lambda: short(run.labels).get("gpus") == "7")
        assert looks(run) == 2
        assert run.end(2)[0] == 0


def test_what_is_only_the_agents_own_container_says_nothing_of_the_node(fake_nvml: Path, tmp_path: Path) -> None:
    inside = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "NVIDIA_VISIBLE_DEVICES": "all", "NODE_NAME": "gpu-node-7"}
    with agent(tmp_path, fake_nvml, well(), **inside) as run:
        run.until(lambda: run.metric("wirelore_node_info", hostname="gpu-node-7"))
        run.until((tmp_path / "survey.json").exists)
        codes = {dict(labels)["code"] for (name, labels) in run.metrics() if name == "wirelore_finding"}
    assert not codes & {"container-sees-all", "shm-small", "memlock-limited", "gpu-count-differs"}
    (node,) = decode_survey((tmp_path / "survey.json").read_bytes(), where="it").topology.nodes
    assert node.hostname == "gpu-node-7"


def test_figures_that_were_measured_here_are_published_and_those_of_others_are_not(
    fake_nvml: Path, tmp_path: Path
) -> None:
    description = well()
    told = environment(
        LD_LIBRARY_PATH=str(fake_nvml),
        FAKE_NVML=str(description.write(tmp_path / "this")),
        XDG_CACHE_HOME=str(tmp_path),
    )
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from measured_surveys import curve, refs
from probe.cache import remember
from probe.measurement import Survey
from probe.sources.registry import read_this_machine
topology = read_this_machine()
made = curve(topology, refs(*range(8)), 450.0, library_version="2.27.3")
kept = remember(Survey(topology, curves=(made,), measured_at="2026-11-20T12:00:00Z"))
assert kept.file, kept.reason
"""
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], env=told, check=True, timeout=30)
    here = wirelore("agent", "--once", environ={**told})
    assert "wirelore.io/measured-gbps=400\n" in here.data()
    other = well()
    other |= {f"uuid {i}": f"GPU-{i:08x}-ffff-bbbb-cccc-00000000000{i}" for i in range(8)}
    other.write(tmp_path / "this")
    assert "measured-gbps" not in wirelore("agent", "--once", environ={**told}).data()


def test_what_one_init_measured_the_next_one_and_the_agent_know(fake_nvml: Path, tmp_path: Path) -> None:
    """One folder of the node in all of them, as `emit --cache-host-path` and the chart's cache.hostPath mount it."""
    told = environment(
        LD_LIBRARY_PATH=str(fake_nvml),
        FAKE_NVML=str(well().write(tmp_path / "this")),
        XDG_CACHE_HOME=str(tmp_path / "node"),
    )
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import probe.bench.preflight, probe.bench.session
from configgen.cli import main
from measured_surveys import curve, refs
from probe.measurement import Survey
from probe.sources.registry import read_this_machine

def measure(order, **_):
    with Path("measured").open("a") as file:
        file.write("once\\n")
    topology = read_this_machine()
    made = curve(topology, refs(*range(8)), 450.0, library_version="2.27.3")
    return Survey(topology, curves=(made,), measured_at="2026-11-20T12:00:00Z")

probe.bench.preflight.preflight = lambda *_, **__: ()
probe.bench.session.measure = measure
main()
"""
    for folder in ("first", "second"):
        words = ["init", "llama-3.1-8b", "--offline", "--folder", folder]
        command = [sys.executable, "-c", code, str(Path(__file__).parent), *words]
        ended = subprocess.run(command, env=told, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "measured").read_text() == "once\n"
    assert "wirelore.io/measured-gbps=400\n" in wirelore("agent", "--once", environ={**told}).data()


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


def test_the_surveys_metrics_stay_as_they_were() -> None:
    """The textfile collector's form and the agent's are of one making."""
    ended = wirelore("audit", "--from", "machine:l4-2", "--format", "prometheus")
    found = {line.split("{")[0].split(" ")[0] for line in ended.data().splitlines() if not line.startswith("#")}
    survey = Survey(machine("machine:l4-2"))
    state = State(60.0, 0.0).after(seen(survey, *audit(survey)), 0, 1.0)
    with serving(state) as (server, _):
        _, text = ask(server, "/metrics")
    assert found <= {line.split("{")[0].split(" ")[0] for line in text.splitlines()}
