"""Members that may use other GPUs than their neighbours: one plan, each started on its own GPUs, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from builders import cluster_of, llama_70b, node_of
from command import wirelore
from fake_nvml import FakeMachine
from fake_nvml.machines import l40s_8
from members import Group, Result, ended

from configgen.decide import plan
from configgen.document import decode_plan, encode_plan
from configgen.engines.rules import engine_traits
from configgen.plan import NO_LIMITS, Limits, Plan, Workload
from configgen.run.assumed import plan_without_meeting, seen_gpus
from configgen.run.one_server import plan_for_group
from configgen.run.place import on_own_gpus
from probe.errors import NoGpuError, NoPlanError
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.store import decode_survey
from probe.topology import Topology

FIRST, LAST = "0,1,2,3", "4,5,6,7"


def unmet(group: Group, node: int, here: dict[str, str], visible: str, *options: str) -> Result:
    options = ("--no-measure", "--replicas", "1", *options)
    return group.run(node, *options, machine="", deadline="100ms", **here, CUDA_VISIBLE_DEVICES=visible)


def started_on(group: Group, node: int) -> str:
    """The GPUs that the engine of this node is given."""
    (process,) = json.loads((group.folder / str(node) / "argv.json").read_text())
    argv, told = process["argv"], process["environment"]
    return str(argv[argv.index("--device-ids") + 1] if "--device-ids" in argv else told["CUDA_VISIBLE_DEVICES"])


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_unmet_members_start_one_plan_on_the_gpus_that_each_may_use(
    tmp_path: Path, fake_machine: FakeMachine, engine: str
) -> None:
    group = Group(tmp_path, 2, model="llama-3.1-70b")
    here = fake_machine(l40s_8())
    for node, visible in enumerate((LAST, FIRST)):
        result = unmet(group, node, here, visible, "--engine", engine)
        assert result.code == 0, result
    decided = decode_plan(group.the_plan(), where="plan.json")
    assert decided.degraded[0].startswith("the group did not meet: 2 nodes with 4 GPUs each are assumed")
    assert [started_on(group, node) for node in (0, 1)] == [LAST, FIRST]
    survey = decode_survey((tmp_path / "0" / "survey.json").read_bytes(), where="survey.json")
    script = (tmp_path / "0" / "start").read_text()
    assert [str(gpu.uuid) in script for gpu in survey.topology.nodes[0].gpus] == [False] * 4 + [True] * 4, (
        "it looks for its own before it starts"
    )
    path = tmp_path / "0" / "plan.json"
    for visible, code in ((LAST, 0), ("4,5,6", 1)):
        told = {**here, "CUDA_VISIBLE_DEVICES": visible}
        assert wirelore("drift", path, "--node", "0", cwd=tmp_path, environ=told).code == code


def test_one_command_for_several_nodes_can_name_no_other_gpus(tmp_path: Path, fake_machine: FakeMachine) -> None:
    """mpirun has one CUDA_VISIBLE_DEVICES for all: to start would be to start on a neighbour's GPUs."""
    group = Group(tmp_path, 2, model="llama-3.1-70b")
    here = fake_machine(l40s_8())
    for node in (0, 1):
        result = unmet(group, node, here, LAST, "--engine", "trtllm")
        assert result.code == 4, result
        assert "are not its first ones" in result.err
        assert group.plan(node) is None
    assert unmet(group, 1, here, FIRST, "--engine", "trtllm").code == 0


def hiding(topology: Topology, *hidden: int) -> Topology:
    (node,) = topology.nodes
    gpus = tuple(replace(gpu, visible=index not in hidden) for index, gpu in enumerate(node.gpus))
    return replace(topology, nodes=(replace(node, gpus=gpus),))


def without_meeting(topology: Topology) -> Plan:
    traits = engine_traits("vllm")
    return plan_without_meeting(2, seen_gpus(topology), llama_70b(), Workload(), traits, NO_LIMITS)


def test_which_gpus_are_hidden_changes_no_byte_of_the_plan() -> None:
    whole = machine("l40s-8")
    views = [hiding(whole, *hidden) for hidden in ((0, 1, 2, 3), (4, 5, 6, 7), (0, 2, 4, 6))]
    plans = [without_meeting(view) for view in views]
    assert len({encode_plan(decided) for decided in plans}) == 1
    own = on_own_gpus(plans[2], 1, views[2])
    assert {ref.gpu for r in own.replicas for ref in r.gpus if ref.node == 1} <= {1, 3, 5, 7}
    assert own.gpu_order[0] == plans[2].gpu_order[0], "other nodes are theirs to say"
    fewer = hiding(whole, 0, 1, 2, 3, 4)
    assert on_own_gpus(plans[0], 0, fewer) == plans[0], "what is not there is told as the plan has it"


def test_a_plan_of_a_group_that_met_names_gpus_as_they_are() -> None:
    topology = hiding(machine("l40s-8"), 0, 1, 2, 3)
    met = plan(Survey(topology), llama_70b(), Workload(), engine_traits("vllm"))
    assert on_own_gpus(met, 0, topology) is met


def test_a_node_that_may_use_no_gpu_says_so() -> None:
    with pytest.raises(NoGpuError, match="all GPUs of this node are hidden"):
        seen_gpus(hiding(machine("l4-2"), 0, 1))


# One server is asked where the group's Service asks


def test_the_one_server_of_a_group_answers_on_node_0(tmp_path: Path) -> None:
    group = Group(tmp_path, 2, model="llama-3.1-8b")
    members = [
        group.start(node, "--replicas", "1", machine=f"machine:{name}")
        for node, name in enumerate(("l4-2", "hgx-h100"))
    ]
    assert [ended(member).code for member in members] == [0, 0]
    decided = decode_plan(group.the_plan(), where="plan.json")
    assert decided.replicas[0].nodes[0] == 0, "though node 1 is the better one"
    ports = [[p["port"] for p in json.loads((tmp_path / str(n) / "argv.json").read_text())] for n in (0, 1)]
    assert ports == [[8000], []]


def test_a_server_that_node_0_cannot_begin_is_no_plan(tmp_path: Path) -> None:
    group = Group(tmp_path, 2, model="llama-3.1-70b")
    members = [
        group.start(node, "--replicas", "1", machine=f"machine:{name}")
        for node, name in enumerate(("l4-2", "hgx-h100"))
    ]
    for member in members:
        result = ended(member)
        assert result.code == 3, result
        assert "would begin on node 1" in result.err


def test_it_leaves_out_no_more_nodes_than_it_must() -> None:
    small, large = node_of(1, 80, "all"), node_of(8, 80, "all")
    survey = Survey(cluster_of(small, small, large))
    traits, one = engine_traits("vllm"), Limits(replicas=1)
    assert plan(survey, llama_70b(), Workload(), traits, one).replicas[0].nodes == (2,)
    assert plan_for_group(survey, llama_70b(), Workload(), traits, one).replicas[0].nodes == (0, 1)
    free = plan_for_group(survey, llama_70b(), Workload(), traits, NO_LIMITS)
    assert free.replicas[0].nodes == (2,), "who asked for no single server is told where each one is"
    with pytest.raises(NoPlanError, match="would begin on node 1"):
        plan_for_group(Survey(cluster_of(small, large)), llama_70b(), Workload(), traits, one)
