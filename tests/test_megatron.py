"""Megatron-LM: torchrun, the sizes of both rank generators, layouts, and what it cannot load."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from builders import dense, llama_70b, llama_405b, node_of, qwen_72b_awq
from engine_plans import FULL, deepseek, named, pairs, planned, qwen_32b, started, uneven
from hypothesis import given
from hypothesis import strategies as st
from test_emit import AWKWARD, MASTER

from configgen.deploy.config import flags_as_files
from configgen.engines.megatron import PROGRAM, buffer_gib, megatron_launch, stage_layout
from configgen.engines.rules import engine_traits
from configgen.launch import Process
from configgen.plan import Plan
from probe.errors import NoPlanError, UsageError
from probe.topology import GpuRef

MEGATRON = engine_traits("megatron")
H100 = node_of(8, 80, "all")
TOLD = {"CHECKPOINT": "/models/converted", "MEGATRON": "/opt/Megatron LM"}


def value(process: Process, flag: str) -> str:
    return process.argv[process.argv.index(flag) + 1]


def size(process: Process, flag: str) -> int:
    return int(value(process, flag)) if flag in process.argv else 1


def variables(process: Process) -> dict[str, str]:
    return {v.name: v.value for v in process.environment}


def assert_its_ranks_are_the_plans(decided: Plan, parts: list[Process]) -> None:
    """World = tp dp pp = expert_tp ep expert_dp pp (initialize_model_parallel), TP the fastest, stages the slowest."""
    p, replica = decided.parallelism, decided.replicas[parts[0].replica]
    world = sum(size(part, "--nproc-per-node") for part in parts)
    tp, pp = size(parts[0], "--tensor-model-parallel-size"), size(parts[0], "--pipeline-model-parallel-size")
    assert (tp, pp, world // (tp * pp), world % (tp * pp)) == (p.attention_tp, p.pp, p.attention_dp, 0)
    if decided.model.is_moe:
        ep, expert_tp = size(parts[0], "--expert-model-parallel-size"), size(parts[0], "--expert-tensor-parallel-size")
        assert ep == p.ep
        assert ep * expert_tp * pp == world, "no expert data parallelism"
    ranks = [
        GpuRef(part.node, int(gpu)) for part in parts for gpu in variables(part)["CUDA_VISIBLE_DEVICES"].split(",")
    ]
    assert tuple(ranks) == replica.gpus
    if len(parts) > 1:
        assert [int(value(part, "--node-rank")) for part in parts] == list(range(len(parts)))


def test_one_node() -> None:
    decided = planned(MEGATRON, llama_70b(), H100)
    (process,) = launch = megatron_launch(decided).processes
    assert process.command == ("torchrun", "--nnodes", "1", "--nproc-per-node", "8", "--master-port", "29500", PROGRAM)
    assert value(process, "--load") == "$CHECKPOINT"
    assert value(process, "--tokenizer-model") == "test/dense"
    assert "--pipeline-model-parallel-layout" not in process.argv
    assert "--expert-model-parallel-size" not in process.argv
    assert variables(process)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert_its_ranks_are_the_plans(decided, list(launch))


def test_neither_one_line_nor_a_file_can_say_it() -> None:
    launch = megatron_launch(planned(MEGATRON, llama_70b(), H100))
    assert launch.one_line is None
    assert "torchrun" in (launch.not_one_line_because or "")
    with pytest.raises(UsageError, match="no configuration file"):
        flags_as_files(launch)


def test_bridged_pairs_come_in_rank_order() -> None:
    decided = planned(MEGATRON, qwen_32b(), pairs(), workload=FULL)
    (process,) = megatron_launch(decided).processes
    assert (decided.parallelism.tp, decided.parallelism.pp) == (2, 2)
    assert variables(process)["CUDA_VISIBLE_DEVICES"] == "0,2,1,3"
    assert_its_ranks_are_the_plans(decided, [process])


def test_two_nodes_are_two_parts_of_one_world() -> None:
    decided = planned(MEGATRON, llama_405b(), H100, H100)
    parts = list(megatron_launch(decided).processes)
    assert_its_ranks_are_the_plans(decided, parts)
    assert [part.command[:7] for part in parts] == [
        ("torchrun", "--nnodes", "2", "--nproc-per-node", "8", "--node-rank", str(rank)) for rank in range(2)
    ]
    assert {value(part, "--master-addr") for part in parts} == {"$MASTER_ADDR"}
    assert [part.port for part in parts] == [5000, None], "the first rank answers"


def test_experts_span_ranks_that_run_attention_alone() -> None:
    decided = planned(MEGATRON, deepseek(), H100, workload=FULL)
    p = decided.parallelism
    assert p.attention_dp == p.ep > 1
    parts = [q for q in megatron_launch(decided).processes if q.replica == 0]
    assert_its_ranks_are_the_plans(decided, parts)
    assert size(parts[0], "--tensor-model-parallel-size") == 1
    assert "--sequence-parallel" not in parts[0].argv
    assert "--cache-mla-latents" in parts[0].argv
    assert value(parts[0], "--inference-dynamic-batching-block-size") == "64"
    assert "--inference-dynamic-batching" not in parts[0].argv, "its check wants blocks of 256"


def test_experts_and_tp_send_parts_of_the_tokens() -> None:
    decided = planned(MEGATRON, deepseek(), H100)
    p = replace(decided.parallelism, ep=decided.parallelism.tp, attention_dp=1)
    assert p.ep > 1
    (process, *_) = megatron_launch(replace(decided, parallelism=p)).processes
    assert "--sequence-parallel" in process.argv
    assert value(process, "--expert-tensor-parallel-size") == "1"


def test_uneven_stages_carry_their_layers() -> None:
    decided = uneven(MEGATRON)
    (process,) = megatron_launch(decided).processes
    first, last = decided.layers_per_stage
    assert value(process, "--pipeline-model-parallel-layout") == f"Et*{first}|t*{last}L"


def test_layers_that_do_not_divide_are_written_out_though_they_are_the_usual_cut() -> None:
    """It cuts only evenly by itself."""
    model = dense(layers=127, hidden=16384, heads=128, kv_heads=8, intermediate=53248)
    decided = planned(MEGATRON, model, H100, H100)
    assert decided.parallelism.pp == 2
    assert decided.engine_split
    assert value(megatron_launch(decided).processes[0], "--pipeline-model-parallel-layout").count("|") == 1


@given(st.lists(st.integers(1, 130), min_size=2, max_size=20))
def test_a_layout_is_read_back_as_the_layers(layers: list[int]) -> None:
    """As PipelineParallelLayerLayout.parse_str_to_list unrolls 'x*n' and splits at '|'."""
    unrolled = re.sub(r"(.)\*(\d+)", lambda found: found.group(1) * int(found.group(2)), stage_layout(tuple(layers)))
    stages = unrolled.split("|")
    assert [stage.count("t") for stage in stages] == layers
    assert unrolled.strip("t|") == unrolled
    assert (unrolled[0], unrolled[-1]) == ("E", "L")


def test_replicas_are_worlds_of_their_own() -> None:
    decided = planned(MEGATRON, dense(layers=32, hidden=4096, heads=32), H100, workload=FULL)
    launch = megatron_launch(decided)
    assert len(launch.processes) == decided.parallelism.dp > 1
    for flag in ("--port", "--master-port", "--inference-coordinator-port"):
        assert len({value(process, flag) for process in launch.processes}) == decided.parallelism.dp
    for process in launch.processes:
        assert_its_ranks_are_the_plans(decided, [process])


def test_the_cache_is_what_the_fullest_stage_has_left() -> None:
    decided = uneven(MEGATRON)
    room = min(m.usable_bytes - m.weights_bytes - m.activation_bytes - m.overhead_bytes for m in decided.memory)
    assert room - 2**30 / 100 < buffer_gib(decided) * 2**30 <= room
    (process,) = megatron_launch(decided).processes
    step = 4 * decided.parallelism.attention_tp
    assert int(value(process, "--inference-dynamic-batching-max-requests")) % step == 0


@pytest.mark.parametrize("name", [" ".join(AWKWARD), "/models/--trust-remote-code"])
def test_no_name_is_read_by_the_shell(tmp_path: Path, name: str) -> None:
    decided = named(planned(MEGATRON, llama_70b(), H100), name)
    (record,) = started(decided, megatron_launch(decided), tmp_path, "torchrun", **TOLD)
    assert record["argv"][record["argv"].index("--tokenizer-model") + 1] == name
    assert f"{TOLD['MEGATRON']}/tools/run_dynamic_text_generation_server.py" in record["argv"]


def test_both_nodes_start_their_part(tmp_path: Path) -> None:
    decided = named(planned(MEGATRON, llama_405b(), H100, H100), "it's $(touch x)\n")
    records = started(decided, megatron_launch(decided), tmp_path, "torchrun", MASTER_ADDR=MASTER, **TOLD)
    assert len(records) == 2


def test_laws() -> None:
    with pytest.raises(NoPlanError, match="cannot load awq checkpoints"):
        planned(MEGATRON, qwen_72b_awq(), H100)
    few = dense(layers=80, hidden=8192, heads=64, kv_heads=4, intermediate=28672)
    decided = planned(MEGATRON, few, H100)
    assert decided.parallelism.tp <= 4
    laws = [a.law for a in decided.alternatives if a.law]
    assert any("4 KV heads do not divide by 8" in law for law in laws)
    assert planned(engine_traits("vllm"), few, H100).parallelism.tp == 8, "where copies are kept the law is none"
