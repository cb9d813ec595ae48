"""One plan for a group, or the failure policy: real processes on loopback, killed and confused on purpose."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import environment, matrix
from fake_nvml import FakeMachine
from fake_nvml.machines import rtx_3090_bridges
from members import Group, Result, ended, hear, say
from ports import free_port

from configgen.document import decode_plan
from configgen.run.messages import Commit, Elsewhere, Frames, Hello, Proposal, Staged, from_member
from probe.topology import GpuRef

BIG = "llama-3.1-405b"

DIES_AT = """
import os
from configgen.run.house import House
from configgen.run.messages import Commit, Proposal
tell = House.tell
def told(self, message):
    if isinstance(message, {when}):
        {first}
        os.kill(os.getpid(), 9)
    tell(self, message)
House.tell = told
"""
BEFORE_COMMIT = DIES_AT.format(when="Proposal", first="tell(self, message)")
AFTER_COMMIT = DIES_AT.format(when="Commit", first="")
"""Its own files are written, and nobody has been told."""

OVER_ONCE_NODE_1_IS_THERE = """
from configgen.run.house import House
serve = House.serve
House.serve = lambda self, is_done, ends_s: serve(self, lambda: is_done() or 1 in self.roll.hellos, ends_s)
"""
"""The leader's deadline, by no clock that a busy machine could beat."""

FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
"""No file grows beyond 2000 bytes, as on a volume that is full."""


def refused(result: Result, code: int, *says: str) -> None:
    assert result.code == code, result
    assert result.err.count("\n") == 1, result.err
    for text in says:
        assert text in result.err


@contextmanager
def leader_of(group: Group) -> Iterator[socket.socket]:
    """This process in the leader's place: the connection of the member that comes."""
    with socket.create_server((group.address, group.port)) as door:
        door.settimeout(30)
        connection, _ = door.accept()
        with connection:
            connection.settimeout(30)
            yield connection


def test_all_members_start_on_the_same_plan(tmp_path: Path) -> None:
    group = Group(tmp_path, 3, machine="machine:hgx-h100", model=BIG)
    results = group.run_all()
    assert [r.code for r in results] == [0, 0, 0], results
    decided = decode_plan(group.the_plan(), where="plan.json")
    assert decided.parallelism.label == "TP8 PP3"
    assert decided.degraded == ()
    for node in range(3):
        (process,) = json.loads((tmp_path / str(node) / "argv.json").read_text())
        argv = process["argv"]
        assert argv[argv.index("--node-rank") + 1] == str(node)
        assert argv[argv.index("--master-addr") + 1] == "127.0.0.1"
        assert ("--headless" in argv) == (node > 0)
        log = (tmp_path / f"log-{node}").read_text()
        assert log == results[node].out == (tmp_path / str(node) / "summary.txt").read_text()
        assert f"node {node} of 3 (LeaderWorkerSet)" in log


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    group.run_all()
    before = [group.files(node) for node in range(2)]
    assert [r.code for r in group.run_all()] == [0, 0]
    assert [group.files(node) for node in range(2)] == before


def test_a_damaged_survey_of_any_member_is_made_anew(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    group.run_all()
    before = (tmp_path / "0" / "survey.json").read_bytes()
    for node in range(2):
        (tmp_path / str(node) / "survey.json").write_bytes(b"")
        assert [r.code for r in group.run_all()] == [0, 0]
        assert [(tmp_path / str(n) / "survey.json").read_bytes() for n in range(2)] == [before] * 2


def test_other_gpus_are_planned_anew(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    group.run_all()
    first = group.the_plan()
    members = [group.start(0), group.start(1, machine="machine:l4-4")]
    assert [ended(m).code for m in members] == [0, 0]
    assert group.the_plan() != first


def test_it_meets_over_ipv6(tmp_path: Path) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here: a group that meets over it is NOT tested")
    group = Group(tmp_path, 2, address="::1")
    assert [r.code for r in group.run_all()] == [0, 0]
    assert decode_plan(group.the_plan(), where="plan.json").degraded[:1] != ("the group did not meet",)
    assert all("not met" not in (tmp_path / str(n) / "summary.txt").read_text() for n in range(2))


def test_replicas_that_begin_elsewhere_are_told_that_nodes_address(tmp_path: Path) -> None:
    group = Group(tmp_path, 4, machine="machine:hgx-h100", model=BIG)
    assert [r.code for r in group.run_all("--objective", "throughput", "--concurrency", "2000")] == [0] * 4
    decided = decode_plan(group.the_plan(), where="plan.json")
    assert [replica.nodes for replica in decided.replicas] == [(0, 1), (2, 3)]
    script = (tmp_path / "3" / "start").read_text()
    assert "--master-addr \\\n  127.0.0.1 \\" in script


# Who does not come


def test_a_missing_worker_leaves_the_same_plan_to_all_others(tmp_path: Path) -> None:
    group = Group(tmp_path, 3, machine="machine:hgx-h100", model=BIG)
    members = [group.start(0, before=OVER_ONCE_NODE_1_IS_THERE), group.start(1)]
    results = [ended(member) for member in members]
    assert [r.code for r in results] == [0, 0], results
    assert group.plan(0) == group.plan(1)
    decided = decode_plan(group.plan(0) or b"", where="plan.json")
    assert decided.degraded[0].startswith("the group did not meet: 3 nodes with 8 GPUs each are assumed")
    assert decided.gpu_uuids == ((None,) * 8,) * 3
    assert "not met: node 2 of 3 did not come in time" in results[0].out
    late = group.run(2, deadline="200ms")
    assert late.code == 0, late
    assert group.the_plan() == group.plan(0), "who comes late starts on what the others started on"


def test_without_a_meeting_a_second_run_changes_nothing(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    assert group.run(1, deadline="200ms").code == 0
    before = group.files(1)
    with leader_of_another(group):
        assert group.run(1, deadline="200ms").code == 0
    assert group.files(1) == before, "whatever the reason is this time"


@contextmanager
def leader_of_another(group: Group) -> Iterator[None]:
    with socket.create_server((group.address, group.port)):
        yield


def test_strict_members_do_not_start_unmet(tmp_path: Path) -> None:
    result = Group(tmp_path, 2).run(0, "--strict", deadline="200ms")
    assert result.code == 1
    assert "not met: node 1 of 2 did not come in time" in result.out


def test_a_name_that_does_not_resolve_is_waited_for_no_longer_than_told(tmp_path: Path) -> None:
    result = Group(tmp_path, 2, address="leader.invalid").run(1, deadline="300ms")
    assert result.code == 0
    assert "not met: the leader at leader.invalid port" in result.out


def test_unmet_a_node_that_lacks_a_gpu_does_not_start(tmp_path: Path) -> None:
    """The others plan with eight: on this one their plan cannot run."""
    result = Group(tmp_path, 2).run(1, "--gpus-per-node", "8", machine="machine:l4-7", deadline="200ms")
    refused(result, 4, "did not meet", "7 GPUs, not 8")
    assert Group(tmp_path, 2).plan(1) is None
    assert "7 GPUs, not 8" in (tmp_path / "log-1").read_text()


def test_a_service_that_asks_the_leader_alone_gets_one_server_of_all(tmp_path: Path) -> None:
    """Met or not: a second one, on the worker, would be asked by nobody."""
    met, unmet = Group(tmp_path / "met", 2), Group(tmp_path / "unmet", 2)
    for group in (met, unmet):
        group.folder.mkdir()
        group.model, group.machine = "llama-3.1-8b", "machine:h100-1"
    assert [result.code for result in met.run_all("--replicas", "1")] == [0, 0]
    assert [unmet.run(node, "--replicas", "1", deadline="200ms").code for node in range(2)] == [0, 0]
    for group in (met, unmet):
        assert json.loads(group.the_plan())["data_parallel_size"] == 1
        argv = [json.loads((group.folder / str(node) / "argv.json").read_text()) for node in range(2)]
        assert [process["port"] for node in argv for process in node] in ([8000], [8000, None])


def test_members_that_may_start_different_numbers_of_servers_do_not_meet(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    members = [group.start(node, "--replicas", str(node + 1)) for node in range(2)]
    for member in members:
        refused(ended(member), 2, "replicas")


def test_unmet_and_too_big_for_memory_does_not_start(tmp_path: Path) -> None:
    refused(Group(tmp_path, 2, model=BIG).run(1, deadline="200ms"), 3, "405B")


# Who dies


def test_a_leader_killed_while_it_waits(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    leader = group.start(0)
    group.knock().close()
    leader.kill()
    assert ended(leader).code == -9
    result = group.run(1, deadline="500ms")
    assert result.code == 0
    assert "not met" in result.out
    assert group.run(0, deadline="200ms").code == 0
    group.the_plan()


def test_a_leader_that_dies_before_it_proposed_leaves_the_common_plan(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    member = group.start(1, deadline="2s")
    with leader_of(group) as connection:
        assert Frames(1 << 24).feed(connection.recv(1 << 20))  # it has said hello
    result = ended(member)
    assert result.code == 0
    assert group.run(0, deadline="200ms").code == 0
    group.the_plan()


def test_a_leader_killed_before_commit_leaves_nobody_with_a_plan_of_his_own(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    worker = group.start(1, deadline="5s", before="import configgen.run.meeting as m; m.GRACE_S = 0.2")
    leader = group.start(0, before=BEFORE_COMMIT)
    assert ended(leader).code == -9
    refused(ended(worker), 4, "nobody said whether the group starts on it", "Start all nodes")
    assert (group.plan(0), group.plan(1)) == (None, None)
    refused(group.run(1, deadline="200ms"), 4, "nobody said")  # it stays so until somebody says
    assert [r.code for r in group.run_all()] == [0, 0]
    assert "not met" not in (tmp_path / "1" / "summary.txt").read_text()
    group.the_plan()


def test_a_leader_killed_after_commit_stands_by_its_plan(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    worker = group.start(1, deadline="5s", before="import configgen.run.meeting as m; m.GRACE_S = 0.2")
    leader = group.start(0, before=AFTER_COMMIT)
    assert ended(leader).code == -9
    assert ended(worker).code == 4
    promised = group.plan(0)
    assert promised is not None
    assert group.plan(1) is None
    assert group.run(0, deadline="200ms").code == 0, "alone it keeps what it promised"
    assert group.plan(0) == promised
    assert [r.code for r in group.run_all()] == [0, 0]
    assert group.the_plan() == promised


def test_a_member_that_comes_back_alone_keeps_the_plan_of_its_group(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    group.run_all()
    before = group.files(1)
    assert group.run(1, deadline="200ms").code == 0
    assert group.files(1) == before


def test_a_member_killed_and_started_again_is_one_of_the_group(tmp_path: Path) -> None:
    group = Group(tmp_path, 3)
    leader, first = group.start(0), group.start(1)
    group.knock().close()
    first.kill()
    ended(first)
    others = [group.start(1), group.start(2)]
    assert [ended(m).code for m in (leader, *others)] == [0, 0, 0]
    group.the_plan()


# Who differs


def test_one_gpu_less_on_one_node_is_planned_for_and_said(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    members = [group.start(n, "--gpus-per-node", "8", machine=f"machine:l4-{8 - n}") for n in range(2)]
    assert [ended(member).code for member in members] == [0, 0]
    decided = decode_plan(group.the_plan(), where="plan.json")
    assert "node 1 has 7 GPUs, and 8 were asked for" in decided.degraded
    used = [ref for replica in decided.replicas for ref in replica.gpus]
    assert GpuRef(1, 7) not in used


def test_one_gpu_less_stops_a_strict_group(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    options = ("--gpus-per-node", "8", "--strict")
    members = [group.start(n, *options, machine=f"machine:l4-{8 - n}") for n in range(2)]
    assert [ended(member).code for member in members] == [1, 1]


def test_different_versions_start_nothing(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    other = "import configgen.run.init as i; i.__version__ = '0.0.9'"
    members = [group.start(0), group.start(1, before=other)]
    for member in members:
        refused(ended(member), 2, "node 1 runs wirelore 0.0.9, node 0", "the same image")
    assert (group.plan(0), group.plan(1)) == (None, None)


def test_different_models_start_nothing(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    members = [group.start(0), group.start(1, model="llama-3.1-8b")]
    for member in members:
        refused(ended(member), 2, "node 1 was asked for model meta-llama/Llama-3.1-8B", "Qwen/Qwen3-32B")


def test_different_options_start_nothing(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    members = [group.start(0), group.start(1, "--concurrency", "3")]
    for member in members:
        refused(ended(member), 2, "node 1 was asked for concurrency 3, node 0 for concurrency assumed")


def test_a_model_that_none_can_hold_starts_nothing(tmp_path: Path) -> None:
    group = Group(tmp_path, 2, model=BIG)
    for result in group.run_all():
        refused(result, 3, "405B")
    assert "405B" in (tmp_path / "log-1").read_text(), "the numbers are in the termination message"


def test_a_node_without_a_driver_ends_all_at_once(tmp_path: Path) -> None:
    group = Group(tmp_path, 3)
    no_driver = {"LD_LIBRARY_PATH": environment()["LD_LIBRARY_PATH"]}
    members = [group.start(0), group.start(1), group.start(2, machine="", **no_driver)]
    results = [ended(member) for member in members]
    for result in results[:2]:
        refused(result, 4, "node 2: libnvidia-ml.so.1 is absent")
    refused(results[2], 4, "libnvidia-ml.so.1 is absent")


def test_two_members_that_see_the_same_gpus_start_nothing(tmp_path: Path, fake_machine: FakeMachine) -> None:
    """A container that asked for no GPU sees all of its host."""
    group = Group(tmp_path, 2)
    here = fake_machine(rtx_3090_bridges())
    members = [group.start(node, machine="", **here) for node in range(2)]
    for member in members:
        refused(ended(member), 2, "share a GPU")


def test_a_full_volume_on_one_node_leaves_a_plan_on_none(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    members = [group.start(0), group.start(1, before=FULL)]
    results = [ended(member) for member in members]
    refused(results[0], 2, "node 1: cannot write", "room", "--folder")
    refused(results[1], 2, "cannot write", "room", "--folder")
    assert (group.plan(0), group.plan(1)) == (None, None)
    assert not any((tmp_path / "1").glob("**/*")), "nothing half-written is left"
    assert [r.code for r in group.run_all()] == [0, 0], "with room again it goes on as if nothing had been"


def test_a_full_volume_of_the_leader_leaves_a_plan_on_none(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    members = [group.start(0, before=FULL), group.start(1)]
    for member in members:
        refused(ended(member), 2, "cannot write")
    assert (group.plan(0), group.plan(1)) == (None, None)


# Who else is at the door


def test_strangers_are_shown_out_and_the_group_meets(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    leader = group.start(0)
    nested = b"[" * 100_000
    ill = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",  # read as a length it is 1.2 GB
        struct.pack(">I", 1 << 30) + b"x" * 65536,
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 7) + b"garbage",
        struct.pack(">I", len(nested)) + nested,
        struct.pack(">I", 2) + b"{}",
    ]
    for data in ill:
        with group.knock() as connection:
            connection.sendall(data)
            assert hear(connection) is None, "shown out without a word"
    half = [group.knock() for _ in range(40)]  # they come and say nothing: more than there is room for
    for number, connection in enumerate(half[-5:]):
        connection.sendall(struct.pack(">I", 1000) + b"x" * number)
    stranger = Hello(group="another", node=1, nodes=2, version="1", request="", asked="")
    with group.knock() as connection:
        say(connection, stranger)
        answer = hear(connection)
        assert isinstance(answer, Elsewhere)
        assert "another group" in answer.reason
    with group.knock() as connection:
        say(connection, Staged(plan="what plan?"))
        assert hear(connection) is None
    worker = group.start(1)
    assert [ended(leader).code, ended(worker).code] == [0, 0]
    group.the_plan()
    assert "not met" not in (tmp_path / "0" / "summary.txt").read_text()
    for connection in half:
        connection.close()


@pytest.mark.parametrize(
    "data", [struct.pack(">I", 1 << 30) + b"x" * 65536, b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["1 GB", "HTTP"]
)
def test_somebody_else_at_the_leaders_port_is_not_believed(tmp_path: Path, data: bytes) -> None:
    group = Group(tmp_path, 2)
    member = group.start(1, deadline="1500ms")
    with leader_of(group) as connection:
        connection.recv(1)
        connection.sendall(data)
    result = ended(member)
    assert result.code == 0
    assert "not met" in result.out


def test_two_groups_at_one_port_do_not_mix(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a = Group(tmp_path / "a", 2, port=port)
    b = Group(tmp_path / "b", 2, machine="machine:l4-4", address="localhost", port=port)
    leader = a.start(0)
    a.knock().close()
    results = b.run_all(deadline="2500ms")
    assert [r.code for r in results] == [0, 0], results
    assert "Address already in use" in results[0].out
    assert "another group meets at this port" in results[1].out
    b.the_plan()
    worker = a.start(1)
    assert [ended(leader).code, ended(worker).code] == [0, 0]
    a.the_plan()
    assert "not met" not in (tmp_path / "a" / "0" / "summary.txt").read_text()


def test_a_staged_plan_counts_when_the_leader_says_so(tmp_path: Path) -> None:
    """The leader's side, step by step, with this process as the member."""
    group = Group(tmp_path, 2)
    probing = group.start(1, deadline="2s")
    with leader_of(group) as connection:
        frames: list[bytes] = []
        reader = Frames(1 << 24)
        while not frames:
            frames = reader.feed(connection.recv(1 << 16))
        hello = from_member(frames[0])
    probing.kill()
    ended(probing)
    assert isinstance(hello, Hello)
    leader = group.start(0)
    with group.knock() as connection:
        say(connection, hello)
        proposal = hear(connection)
        assert isinstance(proposal, Proposal)
        assert group.plan(0) is None, "nothing counts before all have it"
        record = json.loads((tmp_path / "0" / ".pending" / "facts.json").read_text())
        say(connection, Staged(plan=record["plan"]))
        commit = hear(connection)
        assert commit == Commit(plan=record["plan"])
        assert group.plan(0) == proposal.plan.encode(), "whoever is told may rely on the leader's own files"
    assert ended(leader).code == 0


def test_matrices_of_different_nodes_make_one_plan(tmp_path: Path) -> None:
    """--from takes what people have: a node whose GPUs are no island plans with one whose are."""
    group = Group(tmp_path, 2)
    wired, bare = tmp_path / "wired.txt", tmp_path / "bare.txt"
    wired.write_text(matrix("X NV12", "NV12 X"))
    bare.write_text(matrix("X SYS", "SYS X"))
    told = ("--gpu-model", "NVIDIA A100-SXM4-80GB")
    members = [group.start(0, *told, machine=str(wired)), group.start(1, *told, machine=str(bare))]
    assert [ended(member).code for member in members] == [0, 0]
    group.the_plan()
