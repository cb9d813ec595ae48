"""TensorRT-LLM: the options file and the command, as the engine would read them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from builders import dense, llama_70b, llama_405b, node_of, qwen_72b_awq
from command import wirelore
from engine_plans import FULL, deepseek, named, pairs, planned, qwen_32b, started, uneven
from hypothesis import given
from hypothesis import strategies as st
from test_emit import AWKWARD

from configgen.deploy.config import config_files, flags_as_files
from configgen.deploy.shell import shell_scripts
from configgen.document import encode_plan
from configgen.engines.rules import engine_traits
from configgen.engines.trtllm import kv_fraction, trtllm_launch
from configgen.memory import StageMemory
from configgen.model_config import spec_from_config
from configgen.plan import Plan
from probe.errors import NoPlanError

TRT = engine_traits("trtllm")
FACTS = Path(__file__).parent.parent / ".." / "shared" / "tools" / "engines" / "check_trtllm.py"
H100 = node_of(8, 80, "all")


def options(decided: Plan) -> list[dict[str, object]]:
    return [yaml.safe_load(text) for text in config_files(trtllm_launch(decided)).values()]


@cache
def plans() -> dict[str, Plan]:
    two = replace(planned(TRT, llama_405b(), H100, H100), hostnames=("a", "b.cluster"))
    return {
        "one node": planned(TRT, llama_70b(), H100),
        "pairs": planned(TRT, qwen_32b(), pairs(), workload=FULL),
        "two nodes": two,
        "attention-DP": planned(TRT, deepseek(), H100, workload=FULL),
        "experts on two nodes": replace(
            planned(TRT, deepseek(layers=60, experts=160), H100, H100, workload=FULL), hostnames=("a", "b")
        ),
        "uneven": uneven(TRT),
        "replicas": planned(TRT, dense(layers=32, hidden=4096, heads=32), H100, H100, workload=FULL),
        "PCIe": planned(TRT, llama_70b(), node_of(8, 48)),
    }


def test_one_node_is_said_by_its_options_file() -> None:
    decided = planned(TRT, llama_70b(), H100)
    launch = trtllm_launch(decided)
    (process,), (told,) = launch.processes, options(decided)
    assert process.argv == (
        "trtllm-serve", "serve", "test/dense", "--extra_llm_api_options", "$HERE/replica0.yaml"
    )  # fmt: skip
    assert told["tensor_parallel_size"] == told["gpus_per_node"] == 8
    assert told["enable_chunked_prefill"] is True
    assert "allreduce_strategy" not in told, "AUTO takes its own kernels where NVLink joins all"
    (own,), (printed,) = config_files(launch).values(), flags_as_files(launch).values()
    start, _, rest = printed.partition("\n")
    assert rest == own, "its configuration file is the one it starts with"
    assert start.startswith("# CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 trtllm-serve serve ")


def test_one_line_says_the_sizes_where_the_indices_are_in_order(tmp_path: Path) -> None:
    decided = planned(TRT, llama_70b(), H100)
    words = trtllm_launch(decided).one_line
    assert words is not None
    assert words[:4] == ("--tp_size", "8", "--gpus_per_node", "8")
    (tmp_path / "plan.json").write_bytes(encode_plan(decided))
    assert wirelore("emit", "plan.json", "--target", "flags", cwd=tmp_path).data() == " ".join(words) + "\n"
    assert trtllm_launch(replace(decided, model=replace(decided.model, name="x"))).one_line == words


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("pairs", "CUDA_VISIBLE_DEVICES"),
        ("two nodes", "several nodes"),
        ("attention-DP", "enable_attention_dp"),
        ("uneven", "pp_partition"),
    ],
)
def test_what_one_line_cannot_say(which: str, says: str) -> None:
    launch = trtllm_launch(plans()[which])
    assert launch.one_line is None
    assert says in (launch.not_one_line_because or "")


def test_bridged_pairs_come_in_rank_order() -> None:
    decided = plans()["pairs"]
    devices = {v.name: v.value for v in trtllm_launch(decided).processes[0].environment}["CUDA_VISIBLE_DEVICES"]
    assert devices == "0,2,1,3"
    assert (decided.parallelism.tp, decided.parallelism.pp) == (2, 2)


def test_a_replica_over_two_nodes_is_one_mpi_world() -> None:
    decided = plans()["two nodes"]
    (process,) = trtllm_launch(decided).processes
    assert process.command[:5] == ("mpirun", "-n", "16", "--host", "a:8,b.cluster:8")
    assert process.command[-4:] == ("trtllm-llmapi-launch", "trtllm-serve", "serve", "test/dense")
    exported = [process.command[i + 1] for i, word in enumerate(process.command) if word == "-x"]
    assert exported == [v.name for v in process.environment], "the other nodes get the same environment"
    (told,) = options(decided)
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"], told["gpus_per_node"]) == (8, 2, 8)


@pytest.mark.parametrize("name", [None, "", "-x", "a b", "a:8,evil", "$(touch x)", "a\n"])
def test_a_name_that_is_no_host_name_never_reaches_mpirun(name: str | None) -> None:
    decided = replace(plans()["two nodes"], hostnames=("a", name))
    launch = trtllm_launch(decided)
    assert launch.processes[0].command[4] == "$HOSTS"
    assert ': "${HOSTS:?' in shell_scripts(launch)["node0.sh"]


def test_nodes_whose_gpus_stand_in_another_order_are_refused() -> None:
    """mpirun has one environment for all nodes."""
    decided = plans()["two nodes"]
    (replica,) = decided.replicas
    stages = (replica.stages[0], replica.stages[1][::-1])
    with pytest.raises(NoPlanError, match="one CUDA_VISIBLE_DEVICES"):
        order = (decided.gpu_order[0], decided.gpu_order[1][::-1])
        trtllm_launch(replace(decided, replicas=(replace(replica, stages=stages),), gpu_order=order))


def test_experts_and_attention_dp() -> None:
    decided = plans()["attention-DP"]
    told = options(decided)[0]
    p = decided.parallelism
    assert p.attention_dp == p.ep == p.tp > 1
    assert told["enable_attention_dp"] is True
    assert (told["moe_tensor_parallel_size"], told["moe_expert_parallel_size"]) == (1, p.ep)
    assert all(p.attention_dp in (1, p.tp) for p in (a.parallelism for a in decided.alternatives))
    half = replace(decided, parallelism=replace(p, attention_dp=2))
    with pytest.raises(NoPlanError, match="every rank"):
        trtllm_launch(half)


def test_uneven_stages_carry_their_layers() -> None:
    decided = uneven(TRT)
    told = options(decided)[0]
    assert told["pp_partition"] == list(decided.layers_per_stage)
    assert decided.layers_per_stage[0] < decided.layers_per_stage[1]


def test_replicas_are_servers_on_their_own_gpus_and_ports() -> None:
    decided = plans()["replicas"]
    launch = trtllm_launch(decided)
    used, addresses = [], set()
    for process in launch.processes:
        devices = {v.name: v.value for v in process.environment}["CUDA_VISIBLE_DEVICES"]
        used += [(process.node, int(gpu)) for gpu in devices.split(",")]
        addresses.add((process.node, process.port))
        assert process.argv[-2:] == ("--port", str(process.port))
        assert process.argv[-4:-2] == ("--host", "0.0.0.0"), "the proxy comes from another node"
    assert sorted(used) == [(node, gpu) for node in range(2) for gpu in range(8)]
    assert len(addresses) == len(launch.processes) == decided.parallelism.dp > 2


def test_pcie_is_left_to_nccl() -> None:
    """Its own kernels need NVLink, also between two: AUTO would take NCCL as well."""
    assert options(plans()["PCIe"])[0]["allreduce_strategy"] == "NCCL"
    two = planned(TRT, dense(layers=40, hidden=5120, heads=40), node_of(2, 24))
    if two.parallelism.tp == 2:
        assert options(two)[0]["allreduce_strategy"] == "NCCL"


GB = 10**9


@given(
    total=st.integers(16 * GB, 200 * GB),
    twentieths=st.integers(6, 18),
    needed=st.floats(0.1, 0.95),
    spare=st.floats(0, 0.0499),
)
def test_the_cache_is_never_more_than_the_plans(total: int, twentieths: int, needed: float, spare: float) -> None:
    """What the engine makes of the fraction: fraction * (total - others - weights - activations - overhead)."""
    share = twentieths / 20
    usable = int(total * share)
    fixed = int(usable * needed)
    stage = StageMemory(fixed // 2, 0, fixed - fixed // 2, 0, usable)
    decided = plans()["one node"]
    replica = replace(decided.replicas[0], memory_utilization=share)
    fraction = kv_fraction(replace(decided, memory=(stage,)), replica)
    assert 0 < fraction <= 1
    free = 1.0 if twentieths == 18 else share + spare
    cache = fraction * (free * total - fixed)
    budget = usable - fixed
    assert cache <= max(budget, 0.001 * total) + 1e-6 * total, "a thousandth is the least that can be said"
    if twentieths == 18:
        assert cache >= budget - 0.0011 * total, "where nobody else uses the GPU it is the plan's budget"


@pytest.mark.parametrize("name", [" ".join(AWKWARD), "/models/--trust-remote-code"])
def test_no_name_is_read_by_the_shell(tmp_path: Path, name: str) -> None:
    decided = named(planned(TRT, llama_70b(), H100), name)
    (record,) = started(decided, trtllm_launch(decided), tmp_path, "trtllm-serve")
    assert record["argv"][1] == name
    assert yaml.safe_load(Path(record["argv"][3]).read_text())["tensor_parallel_size"] == 8


def test_awkward_names_of_models_and_nodes_under_mpirun(tmp_path: Path) -> None:
    decided = named(plans()["two nodes"], "it's $(touch x)\n")
    (record,) = started(decided, trtllm_launch(decided), tmp_path, "mpirun", HOSTS="a:8,b:8")
    assert record["argv"][3] == "a:8,b:8"


def test_formats_that_it_cannot_load() -> None:
    assert planned(TRT, qwen_72b_awq(), H100).engine == TRT
    gptq = dense(layers=8, hidden=4096, heads=32, quantization={"quant_method": "gptq", "bits": 4, "group_size": 128})
    with pytest.raises(NoPlanError, match="cannot load gptq checkpoints"):
        planned(TRT, gptq, H100)


@pytest.mark.parametrize("which", list(plans()))
def test_the_facts_of_its_source_accept_it(which: str, tmp_path: Path) -> None:
    """A table read from TensorRT-LLM's source, not the program: keys, types and the parallel sizes it would run."""
    if not FACTS.is_file():
        pytest.skip("../shared/tools/engines is not here")
    decided = plans()[which]
    launch = trtllm_launch(decided)
    for name, text in config_files(launch).items():
        (tmp_path / name).write_text(text)
    p = decided.parallelism
    for process in launch.processes:
        words = process.argv[process.argv.index("trtllm-serve") + 1 :]
        ended = checked([word.replace("$HERE", str(tmp_path)) for word in words])
        assert (ended["tp"], ended["pp"], ended["moe_ep"]) == (p.tp, p.pp, p.ep)
        assert ended["world_size"] == p.gpus_per_replica
        assert ended["gpus_per_node"] * len(decided.replicas[process.replica].nodes) == ended["world_size"]
        assert (ended["multi_node_needs"] == "no") == ("mpirun" not in process.command)
    if launch.one_line is not None:
        ended = checked(["serve", "m", *launch.one_line])
        assert (ended["tp"], ended["pp"], ended["moe_ep"]) == (p.tp, p.pp, p.ep)


def checked(words: list[str]) -> dict[str, int | str]:
    ended = subprocess.run([sys.executable, FACTS, *words], capture_output=True, text=True, check=False, timeout=20)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    resolved: dict[str, int | str] = json.loads(ended.stdout.splitlines()[0].removeprefix("RESOLVED "))
    return resolved


def test_a_model_from_a_config_keeps_its_attention_kind() -> None:
    assert planned(TRT, deepseek(), H100).model.latent_attention
    plain = spec_from_config({**_LLAMA}, name="x", source="a test")
    assert not planned(TRT, plain, H100).model.latent_attention


_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 8, "hidden_size": 1024,
    "num_attention_heads": 8, "intermediate_size": 4096, "vocab_size": 32000, "torch_dtype": "bfloat16",
}  # fmt: skip
