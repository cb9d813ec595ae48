"""`wirelore check`: commands that people run, read as their engines would, and judged on these wires."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from builders import cluster_of, dense, llama_70b, node_of
from command import environment, wirelore
from hypothesis import given, settings
from hypothesis import strategies as st

from configgen.check import Placed, check, placed
from configgen.checked import Check, Standing
from configgen.decide import plan
from configgen.engines.launcher import launch_of
from configgen.engines.reading import Command, read_command
from configgen.engines.rules import ENGINES, engine_traits
from configgen.engines.spellings import LANGUAGES
from configgen.hub import load_model
from configgen.model import ModelSpec
from configgen.plan import Limits, Objective, Parallelism, Plan, Workload
from configgen.quantization import Quantization
from probe.errors import NoPlanError, UsageError
from probe.measurement import Survey, Verification
from probe.sources.machines import machine
from probe.topology import GpuRef, PathKind, Topology

MODEL = "Qwen/Qwen3-32B"
PAIRS = machine("3090-bridges-4")

GRID = (
    ("3090-bridges-4", "qwen3-32b", (1, 64)),
    ("a100-pcie-pairs-8", "llama-3.1-70b", (4, 512)),
    ("a100-pcie-pairs-8", "mixtral-8x7b", (4, 512)),
    ("l40s-8", "qwen3-32b", (1, 512)),
    ("a6000-6", "qwen3-32b", (4, 256)),
    ("2xhgx-h100", "llama-3.1-405b", (16,)),
    ("2xhgx-h100", "deepseek-v3", (16, 512)),
    ("gb200-nvl72", "deepseek-v3", (512,)),
    ("2xl40s-8", "llama-3.1-405b", (8,)),
)


def spec(name: str) -> ModelSpec:
    return load_model(name, offline=True)


def uneven() -> tuple[Topology, ModelSpec]:
    return cluster_of(node_of(2, (30, 50))), dense(
        layers=64, hidden=5120, heads=40, kv_heads=8, intermediate=25600, vocab=151936
    )


@cache
def grid(engine: str) -> list[tuple[str, Topology, ModelSpec, Plan]]:
    traits = engine_traits(engine)
    found = []
    for name, model, loads in GRID if engine == "vllm" else GRID[1::2]:
        topology, known = machine(name), spec(model)
        for objective in Objective:
            for concurrency in loads:
                workload = Workload(objective=objective, concurrency=concurrency)
                try:
                    decided = plan(Survey(topology), known, workload, traits)
                    launch_of(decided)
                except NoPlanError:
                    continue
                found.append((f"{name} {model} {objective.value} {concurrency}", topology, known, decided))
    topology, known = uneven()
    try:
        decided = plan(Survey(topology), known, Workload(objective=Objective.LATENCY, concurrency=1), traits)
        found.append(("uneven", topology, known, decided))
    except NoPlanError:
        pass
    return found


def assert_reads_back(decided: Plan, topology: Topology, model: ModelSpec, where: str) -> None:
    """The first node's command of every replica, and the one line where there is one."""
    launch = launch_of(decided)
    for process in launch.processes:
        if process.port is None:
            continue
        text = shlex.join([*(f"{v.name}={v.value}" for v in process.environment), *process.argv])
        files = {f"$HERE/{f.name}": {s.key: s.value for s in f.settings} for f in process.files}
        read = read_command(text, files.__getitem__)
        assert read.unknown == (), where
        if read.engine not in ("megatron",):
            assert read.model == decided.model.name
        told = placed(read, model, topology, decided.engine, process.node)
        several = len(told.replicas)  # DeepSpeed starts all of a node by one command
        assert told.asked.refused == [], where
        assert told.asked.parallelism == replace(decided.parallelism, dp=several), where
        assert told.layers == decided.layers_per_stage, where
        assert told.replicas == tuple(r.stages for r in decided.replicas[process.replica :][:several]), where
    if launch.one_line is not None:
        order = [f"{v.name}={v.value}" for v in launch.processes[0].environment if v.name == "CUDA_DEVICE_ORDER"]
        read = read_command([*order, *launch.processes[0].command, *launch.one_line])
        told = placed(read, model, topology, decided.engine)
        assert told.asked.refused == [], where
        assert (told.asked.parallelism, told.layers) == (decided.parallelism, decided.layers_per_stage), where
        assert told.replicas == tuple(r.stages for r in decided.replicas), where


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_every_emitted_command_reads_back_the_plan(engine: str) -> None:
    plans = grid(engine)
    for where, topology, model, decided in plans:
        assert_reads_back(decided, topology, model, f"{engine} {where}")
    if engine == "vllm":
        kinds = [decided for _, _, _, decided in plans]
        assert len(kinds) >= 30
        assert any(len(r.nodes) > 1 for d in kinds for r in d.replicas), "several nodes"
        assert any(d.parallelism.attention_dp > 1 for d in kinds), "attention-DP"
        assert any(not d.engine_split for d in kinds), "uneven stages"
        assert any(d.parallelism.dp > 1 and not d.model.is_moe for d in kinds), "dense replicas"
        assert any(list(order) != sorted(order) for d in kinds for order in d.gpu_order), "an order of its own"


def test_the_plan_itself_is_the_best_and_loses_nothing() -> None:
    for where, topology, model, decided in grid("vllm")[::5]:
        launch = launch_of(decided)
        if launch.one_line is None:
            continue
        words = [*launch.processes[0].command, *launch.one_line]
        checked = check(Survey(topology), read_command(words), model, decided.workload, decided.engine)
        assert checked.standing is Standing.BEST, f"{where}: {checked.verdict}"
        assert checked.verdict.startswith("The best plan"), where
        assert checked.predictions == decided.predictions
        assert checked.memory == decided.memory


def asked(text: str, model: ModelSpec | None = None, topology: Topology = PAIRS, gpus: int = 0) -> Placed:
    read = read_command(text)
    where = machine("hgx-h100") if gpus == 8 else topology
    return placed(read, model or spec("qwen3-32b"), where, engine_traits(read.engine))


def gpus_of(told: Placed) -> list[list[list[int]]]:
    return [[[ref.gpu for ref in stage] for stage in replica] for replica in told.replicas]


@pytest.mark.parametrize(
    "text",
    [
        f"vllm serve {MODEL} -tp 2 -pp 2",
        f"vllm serve {MODEL} -tp=2 -pp=2",
        f"vllm serve --model {MODEL} --tensor-parallel-size 2 --pipeline-parallel-size 2",
        f"vllm serve {MODEL} --tensor_parallel_size=2 --pipeline_parallel_size=2",
        f"vllm serve {MODEL} --tensor-parallel 2 --pipeline-parallel-size 2",
        f"vllm serve {MODEL} -tp 8 -pp 2 -tp 2",
        f"vllm serve --trust-remote-code {MODEL} -tp 2 -pp 2 --some-new-thing x --another",
        f"vllm serve -O3 {MODEL} -tp 2 --enable-prefix-caching -pp 2 --api-key a",
        f"/opt/venv/bin/vllm serve {MODEL} -tp 2 \\\n  -pp 2 \\\n",
        f"python3.11 -m vllm.entrypoints.openai.api_server --model {MODEL} -tp 2 -pp 2 --port 9",
        f"cd /srv && exec env A=b nohup vllm serve '{MODEL}' -tp 2 -pp 2 > log 2>&1 &",
        f"vllm serve {MODEL} -tp 2 -pp 2 2> errors",
        f"numactl --cpunodebind=0 vllm serve {MODEL} -tp 2 -pp 2",
        f"sglang serve --model-path {MODEL} --tp-size 2 --pp-size 2",
        f"python -m sglang.launch_server --model {MODEL} --tp 2 --pipeline-parallel-size=2",
        f"trtllm-serve serve {MODEL} --tp_size 2 --pp_size 2",
        f"mpirun -n 4 --allow-run-as-root trtllm-llmapi-launch trtllm-serve {MODEL} --tp_size 2 --pp_size 2",
        f"srun -N 1 --ntasks 4 --mpi=pmix trtllm-llmapi-launch trtllm-serve serve {MODEL} --tp_size=2 --pp_size=2",
        "torchrun --nproc-per-node 4 tools/run_dynamic_text_generation_server.py --tensor-model-parallel-size 2 "
        f"--pipeline-model-parallel-size 2 --tokenizer-model {MODEL}",
    ],
)
def test_all_spellings_say_the_same(text: str) -> None:
    read = read_command(text)
    assert read.model == MODEL
    told = asked(text)
    assert told.asked.refused == []
    assert told.asked.parallelism == Parallelism(2, 2)
    assert gpus_of(told) == [[[0, 1], [2, 3]]]


def test_megatron_and_mii_have_words_of_their_own() -> None:
    mii = asked(f"python -m mii.entrypoints.openai_api_server --model {MODEL} --tensor-parallel 2 --replica-num 2")
    assert mii.asked.parallelism == Parallelism(2, dp=2)
    start = "CUDA_VISIBLE_DEVICES=0,2,1,3 torchrun --nproc_per_node=4 run_text_generation_server.py"
    uneven_stages = asked(f"{start} --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 "
                          "--pipeline-model-parallel-layout 'Et*40|t*24L'")  # fmt: skip
    assert uneven_stages.layers == (40, 24)
    assert gpus_of(uneven_stages) == [[[0, 2], [1, 3]]]
    replicas = asked(f"{start} --pipeline-model-parallel-size 2")
    assert replicas.asked.parallelism == Parallelism(1, 2, 2)
    assert gpus_of(replicas) == [[[0], [1]], [[2], [3]]], "ranks of a stage's replicas stand before the next stage"


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        (f"vllm serve {MODEL} -tp 2 --device-ids 0,2", [[[0, 2]]]),
        (f"CUDA_VISIBLE_DEVICES=3,1 vllm serve {MODEL} -tp 2", [[[3, 1]]]),
        (f"CUDA_VISIBLE_DEVICES=3,1,0 vllm serve {MODEL} -tp 2 --device-ids 2,0", [[[0, 3]]]),
        (f"vllm serve {MODEL} -dp 2 -tp 2 --device-ids 0,2,1,3", [[[0, 2]], [[1, 3]]]),
        (f"sglang serve --model-path {MODEL} --tp-size 2 --base-gpu-id 2", [[[2, 3]]]),
        (f"sglang serve --model-path {MODEL} --tp-size 2 --gpu-id-step 2", [[[0, 2]]]),
        (f"CUDA_VISIBLE_DEVICES=3,2,1 sglang serve --model-path {MODEL} --tp-size 2 --base-gpu-id 1", [[[2, 1]]]),
        (f"CUDA_VISIBLE_DEVICES=2,0 trtllm-serve {MODEL} --tp_size 2", [[[2, 0]]]),
    ],
)
def test_the_order_of_the_gpus_is_the_commands(text: str, gpus: list[list[list[int]]]) -> None:
    told = asked(text)
    assert told.asked.refused == []
    assert gpus_of(told) == gpus


def test_uuids_are_found_and_unknown_ones_refused() -> None:
    node = node_of(2, 80)
    node = replace(node, gpus=tuple(replace(g, uuid=f"GPU-{i}{i}{i}{i}-x") for i, g in enumerate(node.gpus)))
    here = cluster_of(node)
    assert gpus_of(asked(f"vllm serve {MODEL} -tp 2 --device-ids GPU-1111-x,GPU-0000-x", topology=here)) == [[[1, 0]]]
    told = asked(f"CUDA_VISIBLE_DEVICES=GPU-9999 vllm serve {MODEL}", topology=here)
    assert "no GPU GPU-9999" in told.asked.refused[0]
    told = asked(f"CUDA_VISIBLE_DEVICES=GPU-1111,GPU-0000 sglang serve --model-path {MODEL} --tp-size 2", topology=here)
    assert any("integers" in text for text in told.asked.refused)


def test_vllms_data_parallelism_copies_dense_models_and_joins_experts() -> None:
    moe = spec("mixtral-8x7b")
    cases = {
        "-tp 2 -dp 4": (Parallelism(8, attention_dp=4), 8),
        "-tp 2 -dp 4 -ep": (Parallelism(8, ep=8, attention_dp=4), 8),
        "-tp 8 --enable-expert-parallel": (Parallelism(8, ep=8), 8),
        "-tp 8 -ep --no-enable-expert-parallel": (Parallelism(8), 8),
        "-tp 2 -pp 2": (Parallelism(2, 2), 8),
    }
    for flags, (parallelism, gpus) in cases.items():
        assert asked(f"vllm serve m {flags}", moe, gpus=gpus).asked.parallelism == parallelism, flags
    assert asked(f"vllm serve {MODEL} -tp 2 -dp 4", gpus=8).asked.parallelism == Parallelism(2, dp=4)
    two = machine("2xhgx-h100")
    wide = asked("vllm serve m -dp 16 -dpl 8 -ep -dpa 10.0.0.1", moe, two)
    assert wide.asked.parallelism == Parallelism(16, ep=16, attention_dp=16)
    assert {ref.node for stage in wide.replicas[0] for ref in stage} == {0, 1}


def test_several_nodes_are_read_from_the_first_ones_command() -> None:
    two = machine("2xhgx-h100")
    text = "vllm serve m -tp 8 -pp 2 --nnodes 2 --node-rank 0 --master-addr a --device-ids 7,6,5,4,3,2,1,0"
    told = asked(text, spec("llama-3.1-405b"), two)
    assert told.asked.refused == []
    assert [[ref.node for ref in stage] for stage in told.replicas[0]] == [[0] * 8, [1] * 8]
    assert [ref.gpu for ref in told.replicas[0][1]] == [7, 6, 5, 4, 3, 2, 1, 0]
    later = placed(read_command(text), spec("llama-3.1-405b"), machine("4xhgx-h100"), engine_traits("vllm"), 2)
    assert {ref.node for stage in later.replicas[0] for ref in stage} == {2, 3}


@pytest.mark.parametrize(
    ("text", "model", "says"),
    [
        ("vllm serve m -tp 3", "qwen3-32b", "64 attention heads do not divide by 3"),
        ("vllm serve m -tp 8", "qwen3-32b", "needs 8 GPUs of node 0, and there are 4"),
        ("vllm serve m -ep", "qwen3-32b", "has no experts"),
        ("vllm serve m -dp 2 --data-parallel-rank 0", "qwen3-32b", "start N servers"),
        ("vllm serve m -tp 2 -pp 2 --nnodes 2", "qwen3-32b", "runs on 2 nodes"),
        ("vllm serve m -tp 2 --nnodes 2 --distributed-executor-backend ray", "qwen3-32b", "refuses --nnodes"),
        ("vllm serve m -tp 2 --device-ids 0,0", "qwen3-32b", "name a GPU twice"),
        ("vllm serve m -tp 2 --device-ids 0,GPU-1", "qwen3-32b", "mix indices and UUIDs"),
        ("vllm serve m -tp 2 --device-ids 0", "qwen3-32b", "there are 1 that its devices name"),
        ("vllm serve m -tp 2 --device-ids 0,9", "qwen3-32b", "no GPU 9"),
        ("CUDA_VISIBLE_DEVICES=0,1 vllm serve m --device-ids 3", "qwen3-32b", "has 2 entries"),
        ("CUDA_VISIBLE_DEVICES=1,1 vllm serve m -tp 2", "qwen3-32b", "names a GPU twice"),
        ("VLLM_PP_LAYER_PARTITION=30,30 vllm serve m -pp 2", "qwen3-32b", "layers 30,30 are 60 of 64"),
        ("VLLM_PP_LAYER_PARTITION=64 vllm serve m -pp 2", "qwen3-32b", "1 part of layers for 2 stages"),
        ("sglang serve --model-path m --tp-size 2 --nnodes 2", "qwen3-32b", "--dist-init-addr is missing"),
        ("sglang serve --model-path m --tp-size 4 --attn-dp-size 3", "qwen3-32b", "attention_dp divides tp"),
        ("sglang serve --model-path m --dp-size 2 --nnodes 2 --dist-init-addr a", "qwen3-32b", "--dp-size above 1"),
        ("sglang serve --model-path m --tp-size 4 --ep-size 4 --moe-dp-size 2", "mixtral-8x7b", "MoE-DP2"),
        ("mpirun -n 2 trtllm-llmapi-launch trtllm-serve m --tp_size 4", "qwen3-32b", "2 MPI processes"),
        ("torchrun --nproc-per-node 3 run_text_generation_server.py --tensor-model-parallel-size 2", "qwen3-32b",
         "refuses 3 processes"),
        ("python -m mii.entrypoints.openai_api_server --model m --tensor-parallel 8", "llama-3.1-8b", "8 GPUs"),
        ("vllm serve m -tp 2", "qwen3-32b", "the smallest has"),
        ("vllm serve m -tp 4 --max-model-len 1000", "qwen3-32b", "at most 1,000 tokens"),
        ("vllm serve m", "llama-3.1-8b", "add --max-model-len"),
        ("vllm serve m -tp 4 --max-model-len 1M", "qwen3-32b", "the model's context is"),
        ("vllm serve m -tp 2 -pp 2", "whisper", "has no pipeline"),
        ("vllm serve m -tp 3", "of three", "a vocabulary of 32000"),
    ],
)  # fmt: skip
def test_what_an_engine_refuses_is_named(text: str, model: str, says: str) -> None:
    others = {
        "whisper": replace(llama_70b(), architecture="WhisperForConditionalGeneration"),
        "of three": dense(layers=32, hidden=3072, heads=24, kv_heads=3, intermediate=9216, vocab=32000),
    }
    known = others.get(model) or spec(model)
    read = read_command(text)
    checked = check(Survey(PAIRS), read, known, Workload(), engine_traits(read.engine))
    assert checked.standing is Standing.REFUSED
    assert checked.verdict.startswith("Refused: ")
    assert any(says in law for law in checked.laws), checked.laws


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vllm serve m -tp 1 -pp 4 --disable-custom-all-reduce", "--disable-custom-all-reduce"),
        ("VLLM_PP_LAYER_PARTITION=64 vllm serve m -tp 4", "VLLM_PP_LAYER_PARTITION"),
        ("vllm serve m -tp 4 --device-ids 0,1,2,3 --distributed-executor-backend ray", "--device-ids"),
        ("CUDA_VISIBLE_DEVICES=0,1,2,3,all vllm serve m -tp 4", "'all'"),
        ("CUDA_VISIBLE_DEVICES=1,0 python -m mii.entrypoints.openai_api_server --model m --tensor-parallel 4", "MII"),
    ],
)
def test_what_an_engine_ignores_is_said(text: str, says: str) -> None:
    assert any(says in ignored for ignored in asked(text).asked.ignored)


def judged(text: str, topology: Topology = PAIRS, model: str = "qwen3-32b", **more: int) -> Check:
    read = read_command(text)
    every = ("objective", "input_tokens", "output_tokens", "concurrency")
    return check(Survey(topology), read, spec(model), Workload(assumed=every), engine_traits(read.engine), **more)


def test_sequences_beyond_the_models_context_are_refused() -> None:
    read, long = read_command(f"vllm serve {MODEL} -tp 4"), Workload(input_tokens=10**6)
    checked = check(Survey(PAIRS), read, spec("qwen3-32b"), long, engine_traits("vllm"))
    assert checked.standing is Standing.REFUSED
    assert "context of" in checked.verdict


def test_the_rule_of_thumb_loses_on_bridged_pairs() -> None:
    checked = judged(f"vllm serve {MODEL} -tp 4")
    assert checked.standing is Standing.BEHIND
    assert checked.best is not None
    assert checked.best.loss is not None
    assert checked.best.doubt is not None
    assert checked.best.loss > checked.best.doubt
    assert checked.best.plan.parallelism == Parallelism(2, 2)
    (stage,) = checked.crossings
    assert (stage.slowest, dict(stage.paths), stage.islands) == ("NODE", {"NODE": 4, "NV4": 2}, 2)


def test_the_order_alone_can_lose() -> None:
    """The same cut in index order misses both bridges inside its stages."""
    checked = judged(f"vllm serve {MODEL} -tp 2 -pp 2 --max-model-len 4096")
    assert checked.standing is Standing.BEHIND
    assert "TP2 PP2 on GPUs 0,2 | 1,3: TP2 PP2 on GPUs 0,1 | 2,3" in checked.verdict
    assert [c.slowest for c in checked.crossings] == ["NODE", "NODE", "NV4"]
    assert [c.islands for c in checked.crossings] == [2, 2, 1]
    assert judged(f"CUDA_VISIBLE_DEVICES=0,2,1,3 vllm serve {MODEL} -tp 2 -pp 2 --max-model-len 4k").is_fine


def test_a_switch_that_slows_costs_what_it_costs() -> None:
    fast, alone = machine("hgx-h100"), Workload(concurrency=1, objective=Objective.LATENCY)
    model, traits = spec("llama-3.1-70b"), engine_traits("vllm")
    texts = ("vllm serve m -tp 8", "vllm serve m -tp 8 --disable-custom-all-reduce")
    plain, slowed = (check(Survey(fast), read_command(text), model, alone, traits).predictions for text in texts)
    assert plain is not None
    assert slowed is not None
    assert (slowed.tpot_s or 0) > (plain.tpot_s or 0)
    few = judged("vllm serve m -tp 8 --max-num-seqs 4", fast, "llama-3.1-70b")
    assert few.predictions is not None
    assert few.predictions.max_concurrency == 4


def test_it_is_compared_on_as_many_gpus_unless_told() -> None:
    fast = machine("hgx-h100")
    own = judged("vllm serve m -tp 2", fast, "llama-3.1-8b")
    assert own.idle_gpus == 6
    assert own.best is not None
    assert own.best.plan.parallelism.gpus <= 2
    every = judged("vllm serve m -tp 2", fast, "llama-3.1-8b", gpus=8)
    assert every.best is not None
    assert every.best.plan.parallelism.gpus > 2


def test_broken_p2p_makes_wrong_answers_unless_it_is_off() -> None:
    wrong = Verification(GpuRef(0, 0), GpuRef(0, 1), False)
    survey = Survey(PAIRS, verifications=(wrong,))
    traits, model = engine_traits("vllm"), spec("qwen3-32b")
    read = read_command(f"vllm serve {MODEL} -tp 4")
    assert any("NCCL_P2P_DISABLE" in law for law in check(survey, read, model, Workload(), traits).laws)
    read = read_command(f"NCCL_P2P_DISABLE=1 vllm serve {MODEL} -tp 4")
    assert not any("NCCL_P2P_DISABLE" in law for law in check(survey, read, model, Workload(), traits).laws)


@pytest.mark.parametrize(
    "before", ["export {};", "export B=c {} &&", "cd /srv;\nexport {};", "env {}", "{}", "exec env {}"]
)
def test_what_was_exported_counts_and_says_so(before: str) -> None:
    told = asked(before.format("CUDA_VISIBLE_DEVICES=2,3 NCCL_P2P_DISABLE=1") + " vllm serve m -tp 2")
    assert gpus_of(told) == [[[2, 3]]]
    assert "NCCL_P2P_DISABLE=1 is not counted in the prediction" in told.asked.notes


def test_a_variable_that_was_never_exported_does_not_reach_the_engine() -> None:
    assert gpus_of(asked("CUDA_VISIBLE_DEVICES=2,3; vllm serve m -tp 2")) == [[[0, 1]]]


def test_flags_that_no_table_has_are_only_noted() -> None:
    checked = judged(f"vllm serve {MODEL} -tp 4 --some-flag 7 --kv-cache-dtype fp8")
    assert any("--some-flag" in note for note in checked.notes)
    assert any("KV dtype is not counted" in note for note in checked.notes)


UNCOUNTED = [
    ("-tp 1 --quantization fp8 --max-model-len 4096", "quantization at load"),
    ("-tp 1 --cpu-offload-gb 200 --max-model-len 4096", "CPU offload"),
    ("-tp 2 --kv-cache-dtype fp8 --max-model-len 30000", "KV dtype"),
]


@pytest.mark.parametrize(("flags", "says"), UNCOUNTED)
def test_memory_is_not_judged_where_it_rests_on_what_is_not_counted(flags: str, says: str) -> None:
    told = judged(f"vllm serve m {flags}", machine("hgx-h100"), "llama-3.1-70b")
    assert told.standing is Standing.UNJUDGED
    assert told.verdict.startswith(f"Not judged: without counting {says}")
    assert told.laws == ()
    assert told.legal is None
    assert told.is_fine
    assert len(told.unsure) == 1
    plain = re.sub(r"--(quantization|cpu-offload-gb|kv-cache-dtype) \S+", "", flags)
    assert judged(f"vllm serve m {plain}", machine("hgx-h100"), "llama-3.1-70b").standing is Standing.REFUSED


def test_weights_beyond_every_byte_are_refused_whatever_the_cache_takes() -> None:
    for text in ("vllm serve m -tp 1 --kv-cache-dtype fp8", "sglang serve --model-path m --mem-fraction-static 0.95"):
        assert judged(text, machine("hgx-h100"), "llama-3.1-70b").standing is Standing.REFUSED
    tight = judged(
        "sglang serve --model-path m --tp 2 --mem-fraction-static 0.95", machine("hgx-h100"), "llama-3.1-70b"
    )
    assert tight.standing is Standing.UNJUDGED


def test_the_method_of_a_quantised_checkpoint_is_counted_already() -> None:
    model = replace(spec("llama-3.1-70b"), quantization=Quantization("fp8", 8))
    read = read_command("vllm serve m -tp 1 --quantization fp8 --max-model-len 4096")
    told = check(Survey(machine("3090-bridges-4")), read, model, Workload(), engine_traits("vllm"))
    assert told.standing is Standing.REFUSED


def test_float32_weighs_twice() -> None:
    fast = machine("hgx-h100")
    assert judged("vllm serve m -tp 2 --max-model-len 4096", fast, "llama-3.1-70b").standing is not Standing.REFUSED
    for dtype in ("float32", "float"):
        told = judged(f"vllm serve m -tp 2 --dtype {dtype} --max-model-len 4096", fast, "llama-3.1-70b")
        assert told.standing is Standing.REFUSED
    wide = judged("vllm serve m -tp 8 --dtype float32", fast, "llama-3.1-70b")
    plain = judged("vllm serve m -tp 8 --dtype bfloat16", fast, "llama-3.1-70b")
    assert wide.memory[0].weights_bytes == 2 * plain.memory[0].weights_bytes
    assert any("float32 is not counted" in note for note in wide.notes)


def test_what_takes_memory_and_is_not_counted_leads_the_verdict() -> None:
    told = judged("vllm serve m -tp 8 --enable-lora", machine("hgx-h100"), "llama-3.1-70b")
    assert told.verdict.startswith("Without counting LoRA: ")


def test_the_plans_own_placement_set_worse_is_not_the_best_plan() -> None:
    fast, load = machine("hgx-h100"), Workload(objective=Objective.THROUGHPUT, concurrency=256)
    model, traits = spec("llama-3.1-8b"), engine_traits("vllm")
    told = check(Survey(fast), read_command("vllm serve m --max-num-seqs 2"), model, load, traits)
    assert told.standing is Standing.BEHIND
    assert told.verdict.startswith("Loses ")
    assert "the same placement with the engine's own settings" in told.verdict


def test_megatrons_own_command_loses_nothing() -> None:
    topology, model, traits = machine("l40s-8"), spec("llama-3.1-8b"), engine_traits("megatron")
    for tokens in (600, 1000, 2400, 5000):
        load = Workload(objective=Objective.THROUGHPUT, input_tokens=tokens, concurrency=4096)
        decided = plan(Survey(topology), model, load, traits, Limits(gpus=1))
        process = launch_of(decided).processes[0]
        text = shlex.join([*(f"{v.name}={v.value}" for v in process.environment), *process.argv])
        told = check(Survey(topology), read_command(text), model, load, traits)
        assert told.standing is Standing.BEST, told.verdict


def test_no_spelling_means_two_things() -> None:
    for language in LANGUAGES:
        flags = " ".join([*language.values.values(), *language.switches.values()]).split()
        assert len(flags) == len(set(flags)), language.engine
        assert not set(flags) & (language.alone | language.beside), language.engine
        assert language.engine in ENGINES


HOSTILE = [
    "",
    "   ",
    "'",
    'vllm serve "x',
    "vllm serve x \\",
    "vllm serve\0 x",
    "echo hello",
    "vllm",
    "vllm chat",
    "vllm serve x -tp",
    "vllm serve x -tp --headless",
    "vllm serve x -tp -4",
    "vllm serve x -tp 0",
    "vllm serve x -tp 2.5",
    "vllm serve x -tp ٣",
    "vllm serve x -tp 1e9",
    "vllm serve x -tp " + "9" * 4000,
    "vllm serve x -tp $TP",
    "vllm serve $MODEL",
    "vllm serve $(touch pwned)",
    "vllm serve `touch pwned`",
    "vllm serve x & vllm serve y",
    "vllm serve " + "x " * 60_000,
    "vllm serve " + "x" * 70_000,
    "VLLM_PP_LAYER_PARTITION=a,b vllm serve x -pp 2",
    "vllm serve x --gpu-memory-utilization nan",
    "vllm serve x --gpu-memory-utilization 7",
    "vllm serve x --max-model-len huge",
    "vllm serve x -pcp 2",
    "torchrun run_text_generation_server.py --pipeline-model-parallel-layout '((((' --tokenizer-model x",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
def test_hostile_commands_end_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as told:
        read = read_command(text)
        check(Survey(PAIRS), read, spec("qwen3-32b"), Workload(), engine_traits(read.engine))
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 600


SHARDS = """vllm serve x -tp 2 -- - = --a=b $ ( > && A=b -m sglang.launch_server torchrun --device-ids ,,, env -u \x1b é
trtllm-serve --config 1"""


@given(st.lists(st.sampled_from(SHARDS.split()), max_size=12))
@settings(max_examples=300)
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    for told in (words, " ".join(words)):
        try:
            read = read_command(told)
            placed(read, spec("qwen3-32b"), PAIRS, engine_traits(read.engine))
        except UsageError:
            continue
        assert isinstance(read, Command)


NEAR = ("--from", "machine:3090-bridges-4")


def test_the_verdict_stands_first_and_strict_ends_with_it() -> None:
    told = wirelore("check", f"vllm serve {MODEL} -tp 4", *NEAR)
    first, *rest = told.data().splitlines()
    assert first.startswith("Loses ")
    assert any("--device-ids 0,2,1,3" in line for line in rest), "what to use instead"
    assert wirelore("check", f"vllm serve {MODEL} -tp 4", *NEAR, "--strict").code == 1
    assert wirelore("check", f"vllm serve {MODEL} -tp 3", *NEAR, "--strict").code == 1
    fine = wirelore("check", "--strict", *NEAR, "--", "vllm", "serve", MODEL, "-tp", "2", "-pp", "2", "--device-ids",
                    "0,2,1,3", "--max-model-len", "2048")  # fmt: skip
    assert fine.code == 0, fine.out
    assert fine.out.startswith("The best plan: TP2 PP2 on GPUs 0,2 | 1,3\n")


def test_the_document_says_all_of_it(tmp_path: Path) -> None:
    told = json.loads(wirelore("check", f"vllm serve {MODEL} -tp 4", *NEAR, "--format", "json").data())
    assert told["schema_version"] == 1
    assert (told["engine"], told["model"], told["standing"], told["legal"]) == ("vllm", MODEL, "behind", True)
    assert told["tensor_parallel_size"] == 4
    assert told["replicas"] == [[[{"node": 0, "gpu": i} for i in range(4)]]]
    assert told["best"]["gpu_order"] == [[0, 2, 1, 3]]
    assert told["best"]["loss"] > told["best"]["doubt"] > 0
    assert "--device-ids 0,2,1,3" in told["best"]["commands"][0]
    schema = json.loads(wirelore("schema", "check").data())
    told_alone = wirelore("check", f"sglang serve --model-path {MODEL} --tp 4", *NEAR, "--format", "json").data()
    (command,) = json.loads(told_alone)["best"]["commands"]
    assert "CUDA_VISIBLE_DEVICES=0,2,1,3 sglang serve" in command, "what the plan says beside its flags"
    two = ("--from", "machine:2xhgx-h100", "--model", "llama-3.1-405b", "--format", "json")
    of_two = json.loads(wirelore("check", "vllm serve m -tp 8 -pp 2 -n 2", *two).data())["best"]["commands"]
    assert len(of_two) == 2
    assert all('--master-addr "${MASTER_ADDR}"' in command for command in of_two), "a shell fills it in"
    assert set(schema["$defs"]["CheckDocument"]["properties"]) == set(told)
    written = wirelore("check", f"vllm serve {MODEL} -tp 4", *NEAR, "-o", "check.json", cwd=tmp_path)
    assert written.data() == ""
    assert json.loads((tmp_path / "check.json").read_text()) == told


def test_who_forgets_the_quotes_is_told() -> None:
    ended = wirelore("check", "vllm", "serve", MODEL, "-tp", "4", *NEAR)
    assert (ended.code, ended.out) == (2, "")
    assert "in quotes" in ended.err
    assert ended.err.count("\n") == 1


def test_an_options_file_is_read_as_the_engine_reads_it(tmp_path: Path) -> None:
    (tmp_path / "vllm.yaml").write_text("model: x\ntensor-parallel-size: 4\npipeline_parallel_size: 2\n")
    (tmp_path / "trt.yaml").write_text(
        "tensor_parallel_size: 2\npipeline_parallel_size: 2\npp_partition: [40, 24]\nkv_cache_config:\n"
        "  free_gpu_memory_fraction: 0.5\nsurprise: 1\n"
    )
    text = f"vllm serve {MODEL} --config vllm.yaml -tp 2"
    told = json.loads(wirelore("check", text, *NEAR, "--format", "json", cwd=tmp_path).data())
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"]) == (2, 2), "the command line wins"
    text = f"trtllm-serve {MODEL} --tp_size 4 --extra_llm_api_options trt.yaml"
    told = json.loads(wirelore("check", text, *NEAR, "--format", "json", cwd=tmp_path).data())
    assert (told["tensor_parallel_size"], told["layers_per_stage"]) == (2, [40, 24]), "here the file wins"
    assert told["unknown_flags"] == ["surprise"]
    (tmp_path / "bomb.yaml").write_text("a: &a [x, x]\nb: [*a, *a]\n")
    for name, says in (("bomb.yaml", "aliases"), ("missing.yaml", "cannot read")):
        ended = wirelore("check", f"vllm serve {MODEL} --config {name}", *NEAR, cwd=tmp_path)
        assert (ended.code, ended.out) == (2, "")
        assert says in ended.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["vllm serve"], "names no model"),
        (["vllm serve no/such-model", "--offline"], "no model"),
        (["vllm serve x", "--model", "qwen3-32b", "--node", "7"], "--node 7"),
        (["vllm serve 'x"], "quot"),
        (["ls"], "no known engine"),
        ([], "COMMAND"),
    ],
)
def test_a_check_that_cannot_be_made_ends_in_one_line(arguments: list[str], says: str) -> None:
    ended = wirelore("check", *arguments, *NEAR)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert ended.err.count("\n") == 1


def test_nothing_of_a_command_is_run(tmp_path: Path) -> None:
    for text in ("vllm serve $(touch pwned)", "vllm serve `touch pwned`", f"vllm serve {MODEL} -tp 4; touch pwned",
                 f"A=$(touch pwned) vllm serve {MODEL}"):  # fmt: skip
        wirelore("check", text, *NEAR, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_json_loads_nothing_heavy() -> None:
    arguments = ["check", f"vllm serve {MODEL} -tp 4", *NEAR, "--format", "json"]
    code = "from configgen.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *arguments],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = {line.rsplit("|", 1)[1].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}
    assert "configgen.check" in loaded
    assert not loaded & {"torch", "rich", "jinja2", "yaml", "huggingface_hub", "asyncio", "psutil", "pynvml", "http"}


def test_pcie_is_named_where_a_group_crosses_sockets() -> None:
    topology = cluster_of(node_of(8, 80, {(0, 1): 4, (2, 3): 4}, pcie=PathKind.SYS))
    checked = judged("vllm serve m -tp 8 --max-model-len 4096", topology, "llama-3.1-70b")
    (stage,) = checked.crossings
    assert stage.slowest == "SYS"
    assert dict(stage.paths) == {"SYS": 26, "NV4": 2}
    assert stage.islands == 6
