"""Plans in SGLang's words: what each server is started with, in which order it gets its GPUs, and what it refuses."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from builders import cluster_of, dense, llama_70b, llama_405b, node_of
from command import wirelore
from stub_engine import AWKWARD, MASTER, decided_by, emitted, expected, run_script, stub_engine
from test_users_cases import latent_moe, small_8b

from configgen.decide import plan
from configgen.deploy.config import flags_as_files
from configgen.deploy.shell import shell_scripts
from configgen.engines.rules import engine_traits
from configgen.engines.sglang import sglang_launch
from configgen.launch import Process
from configgen.laws import node_law
from configgen.model import ModelSpec
from configgen.plan import NO_LIMITS, LayerSplit, Limits, Objective, Plan, Workload
from probe.errors import NoPlanError
from probe.measurement import Survey, Verification
from probe.sources.machines import machine
from probe.topology import GpuRef, GpuState, MigInstance, Topology

SGLANG = engine_traits("sglang")
FULL = ("--engine", "sglang", "--objective", "throughput", "--concurrency", "512")


@pytest.fixture
def sglang(tmp_path: Path) -> Path:
    """A folder with a `sglang` that records how it was called."""
    return stub_engine(tmp_path, "sglang")


def decide(
    wires: Topology | Survey,
    model: ModelSpec,
    objective: Objective = Objective.BALANCED,
    limits: Limits = NO_LIMITS,
    **load: int,
) -> Plan:
    told = () if "concurrency" in load else ("concurrency",)
    survey = wires if isinstance(wires, Survey) else Survey(wires)
    return plan(survey, model, Workload(objective=objective, assumed=told, **load), SGLANG, limits)


def said(process: Process) -> dict[str, str | None]:
    """Flag -> value, as the parser reads them."""
    return {flag.words[0]: flag.words[1] if len(flag.words) > 1 else None for flag in process.flags}


def variables(process: Process) -> dict[str, str]:
    return {v.name: v.value for v in process.environment}


def gpus(process: Process) -> list[int]:
    return [int(index) for index in variables(process)["CUDA_VISIBLE_DEVICES"].split(",")]


def pairs() -> Topology:
    return cluster_of(node_of(4, 24, {(0, 2): 4, (1, 3): 4}))


def test_one_node_is_one_line() -> None:
    decided = decide(machine("hgx-h100"), llama_70b(), Objective.LATENCY)
    launch = sglang_launch(decided)
    (process,) = launch.processes
    assert process.command == ("sglang", "serve", "--model-path", decided.model.name)
    assert said(process)["--tp-size"] == "8"
    assert gpus(process) == list(range(8))
    assert variables(process)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert process.port == 30000 and "--port" not in said(process)
    assert launch.one_line == process.argv[4:], "the order 0..7 goes without saying"
    assert "--disable-custom-all-reduce" not in process.argv
    assert any("NVLS" in note for note in launch.notes)


def test_the_order_of_bridged_pairs_needs_the_environment() -> None:
    model = dense(layers=64, hidden=5120, heads=40, kv_heads=8, intermediate=17408, vocab=151936)
    decided = decide(pairs(), model, Objective.THROUGHPUT)
    launch = sglang_launch(decided)
    assert decided.parallelism.label == "TP2 PP2"
    (process,) = launch.processes
    assert gpus(process) == [0, 2, 1, 3]
    assert launch.one_line is None
    assert "order 0,2,1,3 needs CUDA_VISIBLE_DEVICES" in (launch.not_one_line_because or "")


@pytest.mark.parametrize(
    ("order", "stages", "replicas", "says"),
    [
        ((0, 1, 2, 3), 1, 1, ""),
        ((4, 5, 6, 7), 1, 1, "--base-gpu-id 4"),
        ((4, 5, 6, 7), 2, 1, "--base-gpu-id 4"),
        ((1, 3, 5, 7), 1, 1, "--base-gpu-id 1 --gpu-id-step 2"),
        ((1, 3, 5, 7), 1, 4, "--dp-size 4 --base-gpu-id 1 --gpu-id-step 2"),
        ((0, 2, 4, 6), 1, 1, "--gpu-id-step 2"),
        ((0, 2, 4, 6), 2, 1, None),  # the second stage would begin at GPU 2, beside the first one's
        ((0, 1, 4, 5), 1, 1, None),
        ((3, 2, 1, 0), 1, 1, None),
        ((0, 2, 1, 3), 1, 2, None),
    ],
)
def test_flags_count_gpus_upwards_only(order: tuple[int, ...], stages: int, replicas: int, says: str | None) -> None:
    """What rank takes which GPU: base + pp rank * tp + tp rank * step, replica by replica."""
    decided = decide(machine("hgx-h100"), small_8b(), limits=Limits(gpus=1))
    tp = len(order) // stages // replicas
    refs = [GpuRef(0, gpu) for gpu in order]
    stage_gpus = [tuple(refs[first : first + tp]) for first in range(0, len(refs), tp)]
    placed = [
        replace(decided.replicas[0], stages=tuple(stage_gpus[first : first + stages]), custom_all_reduce=True)
        for first in range(0, len(stage_gpus), stages)
    ]
    decided = replace(
        decided,
        parallelism=replace(decided.parallelism, tp=tp, pp=stages, dp=replicas),
        replicas=tuple(placed),
        layers_per_stage=(32 // stages,) * stages,
        memory=decided.memory * stages,
        gpu_order=(order,),
        gpu_uuids=((None,) * len(order),),
        gpu_models=((None,) * len(order),),
    )
    line = sglang_launch(decided).one_line
    assert (line is None) == (says is None)
    if line is not None:
        counted = [i for i, word in enumerate(line) if word in ("--dp-size", "--base-gpu-id", "--gpu-id-step")]
        assert " ".join(f"{line[i]} {line[i + 1]}" for i in counted) == says


def test_nodes_of_a_replica_meet_at_its_first(tmp_path: Path, sglang: Path) -> None:
    decided = decided_by("llama-3.1-405b", "--from", "machine:2xhgx-h100", "--engine", "sglang", folder=tmp_path)
    launch = sglang_launch(decided)
    assert launch.not_one_line_because == "the plan spans several nodes"
    assert [said(p)["--node-rank"] for p in launch.processes] == ["0", "1"]
    assert {said(p)["--dist-init-addr"] for p in launch.processes} == {"$MASTER_ADDR:20000"}
    assert {(said(p)["--tp-size"], said(p)["--pp-size"], said(p)["--nnodes"]) for p in launch.processes} == {
        ("8", "2", "2")
    }
    assert [p.port for p in launch.processes] == [30000, None]
    for node, script in enumerate(emitted(decided, tmp_path)):
        records = run_script(script, sglang, MASTER_ADDR=MASTER)
        assert records == expected([p for p in launch.processes if p.node == node], MASTER_ADDR=MASTER)
        assert f"{MASTER}:20000" in records[0]["argv"]


def test_replicas_over_the_same_kind_of_nodes_are_reached_from_others() -> None:
    launch = sglang_launch(decide(machine("4xhgx-h100"), llama_405b(), Objective.THROUGHPUT))
    heads = [p for p in launch.processes if p.port is not None]
    assert [p.node for p in heads] == [0, 2]
    assert all(said(p)["--host"] == "0.0.0.0" for p in heads)
    assert all("--host" not in said(p) for p in launch.processes if p.port is None)


def test_experts_spread_and_attention_runs_once_per_rank() -> None:
    decided = decide(machine("hgx-h200"), latent_moe(), Objective.THROUGHPUT, concurrency=512)
    p = decided.parallelism
    assert (p.tp, p.ep, p.attention_dp, p.dp) == (8, 8, 8, 1)
    launch = sglang_launch(decided)
    flags = said(launch.processes[0])
    assert (flags["--tp-size"], flags["--ep-size"], flags["--attn-dp-size"]) == ("8", "8", "8")
    assert flags["--chunked-prefill-size"] == str(8 * SGLANG.max_batched_tokens), "SGLang gives each rank an eighth"
    assert int(flags["--max-running-requests"] or 0) % 8 == 0, "and so with sequences"
    assert "--dp-size" not in flags and launch.one_line is not None


def test_attention_ranks_may_have_stages() -> None:
    """Unlike vLLM's, they share one pipeline."""
    decided = decide(machine("2xhgx-h100"), latent_moe(), Objective.THROUGHPUT, concurrency=512)
    p = decided.parallelism
    assert p.pp > 1 and p.attention_dp > 1
    flags = [said(process) for process in sglang_launch(decided).processes]
    assert all(f["--attn-dp-size"] == str(p.attention_dp) and f["--pp-size"] == str(p.pp) for f in flags)


def test_uneven_stages_carry_their_layers_and_may_differ_in_memory(tmp_path: Path, sglang: Path) -> None:
    decided = decide(
        cluster_of(node_of(4, (40, 40, 60, 60), {(0, 1): 4, (2, 3): 4})), llama_70b(), Objective.THROUGHPUT
    )
    assert decided.parallelism.label == "TP2 PP2"
    launch = sglang_launch(decided)
    assert "SGLANG_PP_LAYER_PARTITION" in (launch.not_one_line_because or "")
    (script,) = emitted(decided, tmp_path)
    (record,) = run_script(script, sglang)
    told = record["environment"]
    layers = tuple(map(int, told["SGLANG_PP_LAYER_PARTITION"].split(",")))
    assert layers == decided.layers_per_stage and sum(layers) == 80
    smaller, larger = (stage[0].gpu for stage in decided.replicas[0].stages)
    assert (layers[0] < layers[1]) == (smaller < larger)
    assert told["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] == "0", "else it refuses a tenth less memory on one GPU"


def test_the_engine_gives_spare_layers_to_the_last_stages() -> None:
    assert SGLANG.layer_split is LayerSplit.LAST
    assert SGLANG.split(80, 3) == (26, 27, 27)
    decided = decide(machine("h100-pcie-8"), llama_70b(), Objective.THROUGHPUT, limits=Limits(gpus=3))
    assert decided.layers_per_stage == (26, 27, 27) and decided.engine_split
    assert "SGLANG_PP_LAYER_PARTITION" not in variables(sglang_launch(decided).processes[0])


def test_dense_replicas_are_servers_on_ports_of_their_own(tmp_path: Path, sglang: Path) -> None:
    decided = decided_by("llama-3.1-8b", "--from", "machine:hgx-h100", *FULL, folder=tmp_path)
    launch = sglang_launch(decided)
    n = decided.parallelism.dp
    assert n > 1
    line = launch.one_line or ()
    assert line[line.index("--dp-size") + 1] == str(n)
    records = run_script(emitted(decided, tmp_path)[0], sglang, shell="bash", SERVERS=str(n))
    assert records == expected(list(launch.processes))
    used = [index for r in records for index in r["environment"]["CUDA_VISIBLE_DEVICES"].split(",")]
    assert sorted(map(int, used)) == list(range(8)), "every GPU belongs to one server"
    ports = sorted(p.port or 0 for p in launch.processes)
    assert all(b - a >= 20 for a, b in pairwise(ports)), "room for attention-DP's own ports"
    assert (tmp_path / "scripts" / "proxy.conf").read_text().count("server 127.0.0.1:") == n


def test_replicas_with_attention_ranks_are_no_one_line() -> None:
    """SGLang refuses --dp-size beside --attn-dp-size."""
    whole = decide(machine("hgx-h200"), latent_moe(), Objective.THROUGHPUT, concurrency=512)
    (replica,) = whole.replicas
    halves = tuple(replace(replica, stages=(replica.gpus[first : first + 4],)) for first in (0, 4))
    decided = replace(whole, replicas=halves, parallelism=replace(whole.parallelism, tp=4, ep=4, attention_dp=4, dp=2))
    launch = sglang_launch(decided)
    assert "--attn-dp-size" in (launch.not_one_line_because or "")
    assert [gpus(p) for p in launch.processes] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [p.port for p in launch.processes] == [30000, 30020]


def test_broken_p2p_is_worked_around() -> None:
    wires = cluster_of(node_of(2, 80, "all"))
    broken = Survey(wires, verifications=(Verification(GpuRef(0, 0), GpuRef(0, 1), False),))
    decided = decide(broken, llama_70b({"quant_method": "fp8"}), Objective.LATENCY)
    assert decided.parallelism.tp == 2
    launch = sglang_launch(decided)
    (process,) = launch.processes
    assert variables(process)["NCCL_P2P_DISABLE"] == "1"
    assert "--disable-custom-all-reduce" in said(process)
    assert "NCCL_P2P_DISABLE" in (launch.not_one_line_because or "")


def test_no_custom_all_reduce_over_pcie_beyond_a_pair() -> None:
    four = decide(machine("l40s-8"), llama_70b(), Objective.LATENCY, limits=Limits(gpus=4))
    assert four.parallelism.tp == 4
    assert "--disable-custom-all-reduce" in said(sglang_launch(four).processes[0])
    assert any("needs 2, 3, 4, 5, 6, 7 or 8 GPUs" in r.text for r in four.reasons if r.rule == "custom-all-reduce")
    fp8 = dense(layers=40, hidden=5120, heads=40, intermediate=13824, quantization={"quant_method": "fp8"})
    two = decide(machine("l40s-8"), fp8, Objective.LATENCY, limits=Limits(gpus=2))
    assert two.parallelism.tp == 2
    assert "--disable-custom-all-reduce" not in said(sglang_launch(two).processes[0])


def test_mixed_gpus_need_the_order_of_the_bus() -> None:
    decided = replace(decide(machine("hgx-h100"), llama_70b(), Objective.LATENCY), mixed_gpus=True)
    launch = sglang_launch(decided)
    assert "CUDA_DEVICE_ORDER" in (launch.not_one_line_because or "")
    assert variables(launch.processes[0])["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] == "0"


def test_memory_is_told_as_weights_and_kv_of_what_is_free() -> None:
    decided = decide(machine("hgx-h100"), llama_70b(), Objective.LATENCY)
    (process,) = sglang_launch(decided).processes
    share = float(said(process)["--mem-fraction-static"] or 0)
    (memory,) = decided.memory
    total = memory.usable_bytes / SGLANG.memory_utilization
    assert memory.weights_bytes + memory.kv_bytes <= share * total
    assert share * total + memory.activation_bytes + memory.overhead_bytes <= memory.usable_bytes
    half = decide(cluster_of(node_of(8, 80, "all", free_gib=(40.0,) * 8)), llama_70b(), Objective.LATENCY)
    (memory,) = half.memory
    share = float(said(sglang_launch(half).processes[0])["--mem-fraction-static"] or 0)
    assert memory.usable_bytes <= 40 << 30
    assert share == pytest.approx(1 - (memory.activation_bytes + memory.overhead_bytes) / memory.usable_bytes, abs=2e-3)


def test_context_and_sequences_come_from_the_plans_memory() -> None:
    long = replace(llama_70b(), max_context=1 << 20)
    decided = decide(cluster_of(node_of(4, 48, "all")), long)
    flags = said(sglang_launch(decided).processes[0])
    fits = decided.predictions.max_context
    assert fits is not None and fits < 1 << 20
    assert flags["--context-length"] == str(fits)
    assert flags["--max-running-requests"] == str((decided.predictions.max_concurrency or 0) // decided.parallelism.dp)


def test_old_gpus_take_half_precision() -> None:
    (process,) = sglang_launch(decide(machine("t4-4"), small_8b(), Objective.LATENCY)).processes
    assert said(process)["--dtype"] == "half"


def test_what_sglang_cannot_run_is_no_plan() -> None:
    with pytest.raises(NoPlanError, match=r"sglang 0\.5\.23 needs compute capability 7\.5, the GPU has .* 7\.0"):
        decide(machine("dgx1-v100"), small_8b())
    with pytest.raises(NoPlanError, match=r"gptq needs compute capability 8\.0 in sglang"):
        decide(machine("t4-4"), llama_70b({"quant_method": "gptq", "bits": 4, "group_size": 128}))
    node = node_of(1, 80)
    sliced = replace(node, gpus=(GpuState(mig_instances=(MigInstance("MIG-a", "3g.40gb", 40 << 30),)),))
    with pytest.raises(NoPlanError, match="takes GPUs by index, and a MIG instance has none"):
        decide(cluster_of(sliced), small_8b())


def test_whole_gpus_are_used_beside_sliced_ones() -> None:
    node = node_of(2, 80)
    sliced = GpuState(mig_instances=(MigInstance("MIG-a", "3g.40gb", 40 << 30),))
    decided = decide(cluster_of(replace(node, gpus=(sliced, GpuState()))), small_8b())
    launch = sglang_launch(decided)
    assert [gpus(p) for p in launch.processes] == [[1]]
    assert launch.one_line is not None and launch.one_line[2:4] == ("--base-gpu-id", "1")


def test_a_class_without_a_pipeline_gets_none() -> None:
    two = cluster_of(node_of(8, 80, "all"), node_of(8, 80, "all"))
    with pytest.raises(NoPlanError, match=r"sglang 0\.5\.23 has no pipeline for Gemma2ForCausalLM"):
        decide(two, replace(llama_405b(), architecture="Gemma2ForCausalLM"))


@pytest.mark.parametrize(
    ("nodes", "stages", "legal"),
    [
        ([0] * 4 + [1] * 4, 2, True),
        ([0] * 4 + [1] * 4, 4, True),
        ([0] * 4 + [1] * 4, 1, True),
        ([0] * 4 + [1] * 4 + [2] * 4, 2, False),  # six GPUs a stage: node 1 holds halves of both
        ([0] * 6 + [1] * 6, 3, False),
    ],
)
def test_ranks_are_counted_by_whole_stages(nodes: list[int], stages: int, legal: bool) -> None:
    """SGLang would start the wrong ranks, or too few, and wait for ever."""
    law = node_law(nodes, stages, SGLANG)
    assert (law is None) == legal
    assert law is None or "whole stages" in law
    assert node_law(nodes, stages, engine_traits("vllm")) is None


def test_every_node_of_a_replica_starts_as_many_ranks() -> None:
    assert "as many GPUs on each" in (node_law([0, 0, 0, 1], 2, SGLANG) or "")
    assert "back and forth" in (node_law([0, 1, 0, 1], 2, SGLANG) or "")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_configuration_file_says_all_that_the_command_does(tmp_path: Path, engine: str) -> None:
    wirelore(
        "plan", "llama-3.1-405b", "--from", "machine:2xhgx-h100", "--engine", engine, "-o", "plan.json", cwd=tmp_path
    ).data()
    wirelore("emit", "plan.json", "--target", "yaml", "-o", "files", cwd=tmp_path).data()
    wirelore("emit", "plan.json", "--target", "json", "-o", ".", cwd=tmp_path).data()
    text = (tmp_path / "files" / "node1-replica0.yaml").read_text()
    told = yaml.safe_load(text)
    key = {"vllm": "model", "sglang": "model-path"}[engine]
    assert told[key] == "meta-llama/Llama-3.1-405B"
    assert told["node-rank"] == 1
    assert not any("_" in name for name in told), "underscores are refused by SGLang"
    assert not any("MASTER_ADDR" in str(value) for value in told.values()), "a file knows no environment"
    start = shlex.split(text.splitlines()[0].removeprefix("# "))
    command = start.index(engine)
    assert start[command + 1] == "serve" and "node1-replica0.yaml" in start and "$MASTER_ADDR" in text.splitlines()[0]
    (script,) = (p for p in json.loads((tmp_path / "launch.json").read_text())["processes"] if p["node"] == 1)
    others = ["env", "-u", "CUDA_VISIBLE_DEVICES"] if engine == "vllm" else []
    assert start[:command] == others + [f"{v['name']}={v['value']}" for v in script["environment"]], (
        "a file has no place for it"
    )


def test_a_name_that_no_comment_can_hold_is_still_in_the_file() -> None:
    decided = decide(machine("hgx-h100"), llama_70b(), Objective.LATENCY)
    decided = replace(decided, model=replace(decided.model, name="a\nb: c  d"))
    (text,) = flags_as_files(sglang_launch(decided)).values()
    assert yaml.safe_load(text)["model-path"] == "a\nb: c  d"
    assert all(line.startswith(("# ", "  ")) or ":" in line or not line for line in text.splitlines())
    assert not text.startswith("# sglang serve")


def test_no_name_is_read_by_the_shell(tmp_path: Path, sglang: Path) -> None:
    decided = decide(machine("hgx-h100"), small_8b(), Objective.LATENCY, limits=Limits(gpus=1))
    for number, name in enumerate([*AWKWARD, " ".join(AWKWARD)]):
        launch = sglang_launch(replace(decided, model=replace(decided.model, name=name), hostnames=(f"{name}\n",)))
        script = tmp_path / f"{number}.sh"
        script.write_text(shell_scripts(launch)["node0.sh"])
        (record,) = run_script(script, sglang)
        assert [record] == expected(list(launch.processes))
        assert record["argv"][:3] == ["serve", "--model-path", name]


def test_the_command_prints_one_line_or_says_why_not(tmp_path: Path) -> None:
    flags = ("--engine", "sglang@0.5.23", "--format", "flags")
    told = wirelore("plan", "llama-3.1-70b", "--from", "machine:hgx-h100", *flags, cwd=tmp_path).data()
    assert told.startswith("--tp-size ") and "--model-path" not in told
    ended = wirelore("plan", "llama-3.1-405b", "--from", "machine:2xhgx-h100", *flags, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "several nodes" in ended.err
