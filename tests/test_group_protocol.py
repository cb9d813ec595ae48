"""What needs no process: frames, the leader's list, and the plan that needs no meeting."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from builders import llama_70b, llama_405b
from hypothesis import given, settings
from hypothesis import strategies as st

from configgen.document import encode_plan
from configgen.engines.rules import engine_traits
from configgen.model import ModelSpec
from configgen.plan import NO_LIMITS, Limits, Objective, Workload
from configgen.run.assumed import SeenGpu, plan_without_meeting, seen_gpus
from configgen.run.group import Roll, group_name, holds_for
from configgen.run.messages import Frames, Hello, Proposal, Trouble, from_leader, from_member, packed
from probe.errors import GroupError, NoGpuError, NoPlanError, UsageError
from probe.sources.machines import machine
from probe.topology import GpuStatus, MigInstance, Topology
from probe.units import GIB

H100 = SeenGpu("NVIDIA H100 80GB HBM3", 79 << 30, (9, 0))
L4 = SeenGpu("NVIDIA L4", 22 << 30, (8, 9))


def hello(node: int, nodes: int = 3, **more: object) -> Hello:
    told: dict[str, object] = {"group": "g", "version": "1", "request": "r", "asked": "model m", "facts": f"f{node}"}
    return Hello(node=node, nodes=nodes, **(told | more))  # type: ignore[arg-type]


# Frames


@given(st.lists(st.binary(max_size=200), max_size=5), st.lists(st.integers(1, 50), max_size=30))
def test_frames_come_whole_however_they_are_cut(texts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(len(text).to_bytes(4, "big") + text for text in texts)
    frames, got = Frames(200), []
    for cut in cuts:
        got += frames.feed(stream[:cut])
        stream = stream[cut:]
    assert got + frames.feed(stream) == texts


def test_a_frame_that_is_too_long_is_refused_by_its_head_alone() -> None:
    frames = Frames(1000)
    assert frames.feed((1000).to_bytes(4, "big") + b"x" * 999) == []
    with pytest.raises(ValueError, match="1,001 bytes"):
        Frames(1000).feed((1001).to_bytes(4, "big"))


@given(st.binary(max_size=300))
def test_nonsense_is_a_value_error_and_nothing_else(data: bytes) -> None:
    for decode in (from_member, from_leader):
        with pytest.raises(ValueError):
            decode(data)


def test_messages_come_back_as_they_were_sent() -> None:
    trouble = Trouble(exit_code=3, problem="p", cure="c")
    sent = hello(1, trouble=trouble, survey="{}\n")
    assert from_member(packed(sent)[4:]) == sent
    with pytest.raises(ValueError):
        from_leader(packed(sent)[4:])


@pytest.mark.parametrize(
    ("code", "kind"), [(2, UsageError), (3, NoPlanError), (4, GroupError), (0, GroupError), (77, GroupError)]
)
def test_trouble_ends_everybody_with_its_own_code(code: int, kind: type[Exception]) -> None:
    error = Trouble(exit_code=code, problem="bad\x1b[31m\nthing", cure="x" * 9999).error()
    assert isinstance(error, kind)
    assert "\x1b" not in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


# The leader's list


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "stage", "wrong"]), st.integers(1, 3)), max_size=30))
def test_no_plan_counts_unless_all_who_are_there_have_it(events: list[tuple[str, int]]) -> None:
    roll = Roll(hello(0, 4))
    there: set[int] = set()
    has: set[int] = set()
    for what, node in events:
        if what == "enter":
            roll.enter(hello(node, 4))
            there, has = there | {node}, set()  # who comes, comes again, or goes: the round begins anew
        elif what == "leave":
            roll.leave(node)
            there, has = there - {node}, set()
        elif node in there:
            accepted = roll.stage(node, "plan" if what == "stage" else "another", "plan")
            assert accepted == (what == "stage")
            has |= {node} if accepted else set()
        assert roll.present == [0, *sorted(there)]
        assert roll.is_complete == (there == {1, 2, 3})
        assert roll.is_staged == (has >= there)


def test_strangers_change_nothing() -> None:
    roll = Roll(hello(0))
    for other in (hello(1, group="h"), hello(0), hello(3), hello(-1)):
        assert roll.refusal(other) is not None
    assert roll.refusal(hello(2)) is None
    assert roll.present == [0]


def test_who_did_not_come_is_named() -> None:
    roll = Roll(hello(0, 6))
    roll.enter(hello(2, 6))
    assert roll.absence == "nodes 1,3-5 of 6 did not come in time"


def test_the_first_objection_speaks_for_all() -> None:
    roll = Roll(hello(0))
    assert roll.objection() is None
    roll.enter(hello(2, version="2"))
    objection = roll.objection()
    assert objection is not None
    assert "node 2 runs wirelore 2, node 0 1" in objection.problem
    roll.enter(hello(1, trouble=Trouble(exit_code=4, problem="no GPU", cure="buy one")))
    objection = roll.objection()
    assert objection is not None
    assert (objection.exit_code, objection.problem) == (4, "node 1: no GPU")
    roll.leave(1)
    roll.leave(2)
    assert roll.objection() is None


def test_an_earlier_plan_holds_for_the_same_facts_alone() -> None:
    plan = Proposal(plan="p", survey="s", addresses=(), members=("f0", "f1", "f2"))
    roll = Roll(hello(0))
    assert holds_for(plan, roll), "of who is not there nothing speaks against it"
    roll.enter(hello(1))
    assert holds_for(plan, roll)
    roll.enter(hello(2, facts="other"))
    assert not holds_for(plan, roll)
    assert not holds_for(plan, Roll(hello(0, 2)))


def test_jobs_at_the_same_address_are_different_groups() -> None:
    told = [{}, {"SLURM_JOB_ID": "1"}, {"SLURM_JOB_ID": "2"}, {"PET_RDZV_ID": "1"}]
    names = [group_name(environ, address="a", port=1, nodes=2) for environ in told]
    names += [group_name({}, address=a, port=p, nodes=n) for a, p, n in (("b", 1, 2), ("a", 2, 2), ("a", 1, 3))]
    assert len(set(names)) == len(names)
    assert group_name({"HOME": "/x"}, address="A.", port=1, nodes=2) == names[0]


# The plan without a meeting

WORKLOADS = st.builds(
    Workload,
    input_tokens=st.sampled_from([128, 1024, 4096]),
    output_tokens=st.sampled_from([64, 512]),
    concurrency=st.sampled_from([1, 16, 512]),
    objective=st.sampled_from(list(Objective)),
)


@settings(max_examples=50)
@given(
    nodes=st.integers(2, 4),
    gpus=st.integers(1, 8),
    gpu=st.sampled_from([H100, L4]),
    model=st.sampled_from([llama_70b(), llama_405b()]),
    workload=WORKLOADS,
    engine=st.sampled_from(["vllm", "sglang", "trtllm"]),
)
def test_it_needs_no_other_address_than_the_leaders(
    nodes: int, gpus: int, gpu: SeenGpu, model: ModelSpec, workload: Workload, engine: str
) -> None:
    seen = (gpu,) * gpus
    try:
        decided = plan_without_meeting(nodes, seen, model, workload, engine_traits(engine), NO_LIMITS)
    except NoPlanError:
        return
    assert all(len(r.nodes) == 1 or r.nodes[0] == 0 for r in decided.replicas)
    assert decided.degraded[0].startswith("the group did not meet")
    assert {uuid for node in decided.gpu_uuids for uuid in node} <= {None}
    assert set(decided.hostnames) == {None}
    again = plan_without_meeting(nodes, seen, model, workload, engine_traits(engine), NO_LIMITS)
    assert encode_plan(again) == encode_plan(decided)


def own_view(topology: Topology, number: int) -> Topology:
    """The same machine as another node has it: other names, other free memory, a driver that counts otherwise."""
    (node,) = topology.nodes
    states = tuple(
        replace(s, uuid=f"GPU-{number}-{i}", pci_bus_id=f"{number}:{i}", serial=None, memory_free_bytes=number * GIB)
        for i, s in enumerate(node.gpus)
    )
    gpus = tuple(replace(g, memory_bytes=(g.memory_bytes or 0) - number * (1 << 18)) for g in node.shape.gpus)
    shape = replace(node.shape, gpus=gpus)
    return replace(topology, nodes=(replace(node, hostname=f"pod-{number}", gpus=states, shape=shape),))


@settings(max_examples=12)
@given(st.sampled_from(["hgx-h100", "l40s-8", "a100-pcie-pairs-8"]), st.integers(1, 60))
def test_members_with_equal_gpus_make_the_same_plan(name: str, number: int) -> None:
    topology = machine(name)
    plans = {
        encode_plan(plan_without_meeting(2, seen, llama_70b(), Workload(), engine_traits("vllm"), NO_LIMITS))
        for seen in (seen_gpus(own_view(topology, n)) for n in (0, number))
    }
    assert len(plans) == 1


def test_another_process_makes_the_same_bytes() -> None:
    """Members are processes on different hosts: nothing may depend on the order in which Python hashes."""
    program = """
import hashlib
from builders import llama_70b, llama_405b
from configgen.document import encode_plan
from configgen.engines.rules import engine_traits
from configgen.hub import load_model
from configgen.plan import Limits, Workload
from configgen.run.assumed import SeenGpu, plan_without_meeting
from configgen.run.init import Request
gpu = SeenGpu("NVIDIA H100 80GB HBM3", 79 << 30, (9, 0))
for model in (llama_405b(), load_model("deepseek-r1", offline=True), load_model("mixtral-8x7b", offline=True)):
    for engine in ("vllm", "sglang", "trtllm"):
        traits = engine_traits(engine)
        request = Request(model, Workload(), traits, Limits())
        plan = encode_plan(plan_without_meeting(2, (gpu,) * 8, model, Workload(), traits, Limits()))
        print(hashlib.sha256(plan).hexdigest(), request.digest)
"""
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1
    assert len(next(iter(told)).splitlines()) == 9


def test_what_cannot_run_here_is_no_plan_for_equal_nodes() -> None:
    topology = machine("l4-2")
    (node,) = topology.nodes

    def with_first(**changes: object) -> Topology:
        first = replace(node.gpus[0], **changes)  # type: ignore[arg-type]
        return replace(topology, nodes=(replace(node, gpus=(first, *node.gpus[1:])),))

    with pytest.raises(NoGpuError, match="GPU 0 of this node is lost"):
        seen_gpus(with_first(status=GpuStatus.LOST))
    with pytest.raises(NoGpuError, match="MIG"):
        seen_gpus(with_first(mig_instances=(MigInstance("MIG-1"),)))
    assert len(seen_gpus(with_first(visible=False, status=GpuStatus.LOST))) == 1, "what is hidden is not its own"


def test_limits_hold_without_a_meeting() -> None:
    decided = plan_without_meeting(2, (H100,) * 8, llama_70b(), Workload(), engine_traits("vllm"), Limits(gpus=8))
    assert decided.parallelism.gpus <= 8
