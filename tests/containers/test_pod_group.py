"""Two pods that find each other by name: one plan for both, or that which needs no meeting, within the deadline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import wirelore
from fake_nvml.machines import Description, hgx_h100
from machine import Install, Machine, emitted, listed, variables, words
from pods import EMPTY, Data, Ended, Play, Pod, pod, with_words

MODEL = "llama-3.1-405b"
DEADLINE_S, GRACE_S = 6.0, 10.0
"""For those who wait for somebody that never comes; what a proposal may take beyond it, and the start of Python."""


def node(number: int, gpus: int = 8) -> Description:
    """One of several equal nodes, whose GPUs are their own."""
    d = hgx_h100()
    d["count"] = gpus
    d |= {f"uuid {i}": f"GPU-{i + 1:08x}-aaaa-bbbb-{number:04x}-0000000000{i:02x}" for i in range(gpus)}
    return d


class Group:
    """The pods of an emitted LeaderWorkerSet, told of each other as its controller does it."""

    def __init__(self, install: Install, play: Play, specs: list[Data], network: str) -> None:
        self._install, self._play, self._specs, self._network = install, play, specs, network
        self.machines: dict[int, Machine] = {}

    def start(
        self,
        number: int,
        *,
        deadline_s: float = 40.0,
        gpus: int = 8,
        plan: Data = EMPTY,
        network: str | None = None,
        change: Callable[[Data], Data] = lambda spec: spec,
    ) -> Pod:
        machine = self._install(node(number, gpus), f"node{number}")
        self.machines[number] = machine
        told = {"LWS_LEADER_ADDRESS": "group-0", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": str(number)}
        spec = change(with_words(self._specs[number], deadline=f"{deadline_s:g}s"))
        described = pod(f"group-{number}", spec, plan=plan, more=machine.volumes, **machine.environment, **told)
        return self._play(described, network or self._network)


@pytest.fixture(scope="module")
def specs(image: str, engine_image: str, tmp_path_factory: pytest.TempPathFactory) -> list[Data]:
    return emitted(tmp_path_factory.mktemp("emitted") / "here", MODEL, "2xhgx-h100", (image, engine_image))


@pytest.fixture
def group(install: Install, play: Play, specs: list[Data], network: str) -> Group:
    return Group(install, play, specs, network)


def assert_one_plan(leader: Pod, worker: Pod, ends: list[Ended], tmp_path: Path) -> None:
    """Both have the plan that `wirelore plan` makes of what both saw, and each engine its own node's part of it."""
    plan = leader.file("plan.json")
    assert plan == worker.file("plan.json")
    assert leader.file("survey.json") == worker.file("survey.json")
    (tmp_path / "survey.json").write_bytes(leader.file("survey.json"))
    wirelore("plan", MODEL, "--offline", "--from", "survey.json", "-o", "plan.json", cwd=tmp_path).data()
    made = json.loads((tmp_path / "plan.json").read_text())
    group = json.loads(plan)
    same = ("replicas", "gpu_order", "gpu_uuids", "predictions", "degraded", "layers_per_stage")
    assert {key: group[key] for key in same} == {key: made[key] for key in same}
    processes = listed(tmp_path)
    for number, found in enumerate(ends):
        (process,) = [process for process in processes if process["node"] == number]
        assert found.engine["argv"] == words(process, "group-0")[1:]
        told = variables(process)
        assert told.items() <= found.engine["environment"].items()
        assert found.engine["plan"]["plan.json"] == hashlib.sha256(plan).hexdigest()
    ranks = [found.engine["argv"][found.engine["argv"].index("--node-rank") + 1] for found in ends]
    assert ranks == ["0", "1"]


def test_a_group_starts_on_one_plan_however_late_one_comes(group: Group, tmp_path: Path) -> None:
    leader = group.start(0)
    leader.await_init()
    worker = group.start(1)
    ends = [leader.ended(), worker.ended()]
    assert [found.code for found in ends] == [0, 0], [found.log for found in ends]
    assert_one_plan(leader, worker, ends, tmp_path)


def test_a_leader_that_was_killed_and_comes_back_still_leads(group: Group, tmp_path: Path) -> None:
    leader = group.start(0)
    leader.kill()
    worker = group.start(1)
    worker.await_init()
    ends = [leader.again(), worker.ended()]
    assert [found.code for found in ends] == [0, 0], [found.log for found in ends]
    assert_one_plan(leader, worker, ends, tmp_path)


def test_who_waits_in_vain_takes_the_plan_that_needs_no_meeting_and_it_is_the_same(group: Group) -> None:
    """Nobody's name leads anywhere: for each of them the other never comes."""
    pods = [group.start(number, deadline_s=DEADLINE_S, network="none") for number in range(2)]
    ends = [started.ended() for started in pods]
    assert [found.code for found in ends] == [0, 0], [found.log for found in ends]
    assert max(found.seconds for found in ends) < DEADLINE_S + GRACE_S
    assert all("not met: " in found.log for found in ends)
    plan = pods[0].file("plan.json")
    assert plan == pods[1].file("plan.json"), "nobody invents a plan of its own"
    assert "the group did not meet" in json.loads(plan)["degraded"][0]
    leader, worker = ([word for word in found.engine["argv"] if word != "--headless"] for found in ends)
    rank = leader.index("--node-rank") + 1
    assert (leader.pop(rank), worker.pop(rank)) == ("0", "1")
    assert leader == worker


def test_a_worker_whose_leader_is_killed_is_not_left_waiting(group: Group) -> None:
    leader = group.start(0)
    leader.await_init()
    leader.kill()
    worker = group.start(1, deadline_s=DEADLINE_S)
    found = worker.ended()
    assert found.code == 0, found.log
    assert found.seconds < DEADLINE_S + GRACE_S
    assert "not met: the leader at group-0" in found.log
    assert group.machines[1].last_words == found.log


def test_a_node_with_fewer_gpus_than_it_was_to_have_is_said_to_both(group: Group) -> None:
    leader, worker = group.start(0), group.start(1, gpus=7)
    ends = [leader.ended(), worker.ended()]
    assert [found.code for found in ends] == [0, 0], [found.log for found in ends]
    assert leader.file("plan.json") == worker.file("plan.json")
    said = "node 1 has 7 GPUs, and 8 were asked for"
    assert said in json.loads(leader.file("plan.json"))["degraded"]
    assert all(said in machine.last_words for machine in group.machines.values())


def strict(spec: Data) -> Data:
    spec["initContainers"][0]["args"].insert(0, "--strict")
    return spec


def test_strict_members_do_not_start_with_fewer_gpus_than_they_were_to_have(group: Group) -> None:
    leader, worker = group.start(0, change=strict), group.start(1, gpus=7, change=strict)
    ends = [leader.ended(), worker.ended()]
    assert [(found.code, found.engines) for found in ends] == [(1, []), (1, [])], [found.log for found in ends]


def test_a_full_volume_of_one_keeps_the_other_from_starting(group: Group, small_volume: Data) -> None:
    leader, worker = group.start(0), group.start(1, plan=small_volume)
    ends = [leader.ended(), worker.ended()]
    assert [found.code for found in ends] == [2, 2], [found.log for found in ends]
    assert [found.engines for found in ends] == [[], []]
    assert all("No space left" in machine.last_words for machine in group.machines.values())
    assert max(found.seconds for found in ends) < 30
