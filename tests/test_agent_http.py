"""What `wirelore agent` answers over HTTP, and what its page says of that."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml
from agent_cases import failed, finding, lost, seen
from audit_cases import plain
from command import wirelore
from measured_surveys import curve, refs
from ports import free_port

from configgen.run.agent import State
from configgen.run.features import NAMES
from configgen.run.serve import Server
from probe.audit import audit
from probe.finding import Severity
from probe.measurement import Survey
from probe.sources.machines import machine


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


def test_the_surveys_metrics_stay_as_they_were() -> None:
    """The textfile collector's form and the agent's are of one making."""
    ended = wirelore("audit", "--from", "machine:l4-2", "--format", "prometheus")
    found = {line.split("{")[0].split(" ")[0] for line in ended.data().splitlines() if not line.startswith("#")}
    survey = Survey(machine("machine:l4-2"))
    state = State(60.0, 0.0).after(seen(survey, *audit(survey)), 0, 1.0)
    with serving(state) as (server, _):
        _, text = ask(server, "/metrics")
    assert found <= {line.split("{")[0].split(" ")[0] for line in text.splitlines()}


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
