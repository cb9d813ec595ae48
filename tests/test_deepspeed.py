"""DeepSpeed-MII: one server per node, on the GPUs that it takes by itself, and what it cannot do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from builders import dense, llama_13b, llama_70b, llama_405b, node_of, qwen_72b_awq
from command import wirelore
from engine_plans import FULL, deepseek, named, pairs, planned, started
from test_emit import AWKWARD

from configgen.deploy.config import flags_as_files
from configgen.document import encode_plan
from configgen.engines.deepspeed import deepspeed_launch
from configgen.engines.rules import engine_traits
from configgen.model_config import spec_from_config
from configgen.plan import Parallelism, Workload
from probe.errors import NoPlanError, UsageError

DEEPSPEED = engine_traits("deepspeed")
H100 = node_of(8, 80, "all")


def test_one_node(tmp_path: Path) -> None:
    decided = planned(DEEPSPEED, llama_70b(), H100)
    launch = deepspeed_launch(decided)
    (process,) = launch.processes
    assert process.argv == (
        *("python", "-m", "mii.entrypoints.openai_api_server", "--model", "test/dense"),
        *("--tensor-parallel", "8", "--max-length", "8192"),
    )
    assert launch.one_line == process.argv[5:]
    (tmp_path / "plan.json").write_bytes(encode_plan(decided))
    flags = wirelore("emit", "plan.json", "--target", "flags", cwd=tmp_path).data()
    assert flags == "--tensor-parallel 8 --max-length 8192\n"
    with pytest.raises(UsageError, match="no configuration file"):
        flags_as_files(launch)


def test_replicas_of_a_node_are_one_server_and_nodes_are_several() -> None:
    decided = planned(DEEPSPEED, llama_13b(), H100, H100, workload=FULL)
    launch = deepspeed_launch(decided)
    assert [process.node for process in launch.processes] == [0, 1]
    by_node = Counter(replica.nodes[0] for replica in decided.replicas)
    for process in launch.processes:
        told = dict(zip(process.argv[3::2], process.argv[4::2], strict=True))
        assert int(told["--replica-num"]) == by_node[process.node] > 1
        assert int(told["--tensor-parallel"]) == decided.parallelism.tp
        assert process.port == 8000
    assert launch.one_line is None


def test_its_replicas_lie_where_it_would_put_them() -> None:
    """Replica k of a node on GPUs k tp .. (k + 1) tp - 1: _allocate_devices of mii/config.py."""
    for gpus in (1, 2, 5, 8):
        decided = planned(DEEPSPEED, llama_13b(), H100, workload=FULL, gpus=gpus)
        placed = [ref.gpu for replica in decided.replicas for ref in replica.gpus]
        assert placed == list(range(len(placed)))


def test_a_stage_has_the_order_that_it_counts_in() -> None:
    """Bridges join 0 with 2 and 1 with 3: others would name 0,2,1,3."""
    decided = planned(DEEPSPEED, llama_13b(), pairs())
    assert [ref.gpu for ref in decided.replicas[0].gpus] == list(range(4))
    (process,) = deepspeed_launch(decided).processes
    assert process.argv[process.argv.index("--tensor-parallel") + 1] == "4"


def test_pairs_that_are_no_neighbours_cannot_be_named() -> None:
    decided = planned(DEEPSPEED, dense(layers=40, hidden=5120, heads=40, intermediate=13824), pairs(), workload=FULL)
    assert decided.parallelism.tp != 2
    laws = [a.law or "" for a in decided.alternatives]
    assert any("TP2: deepspeed takes GPUs 0..1 by itself, the best group is 0, 2" in law for law in laws)


def test_a_plan_on_other_gpus_is_refused() -> None:
    decided = planned(DEEPSPEED, llama_13b(), node_of(2, 80, "all"), workload=FULL, gpus=1)
    (replica,) = decided.replicas
    moved = replace(replica, stages=((replace(replica.gpus[0], gpu=1),),))
    with pytest.raises(NoPlanError, match="GPUs from 0 on, the plan takes 1"):
        deepspeed_launch(replace(decided, replicas=(moved,), gpu_order=((1,),)))
    with pytest.raises(NoPlanError, match="from 0 on"):
        deepspeed_launch(replace(decided, uses_mig=True))


def test_only_the_first_gpu_left_of_a_node_is_its_to_take() -> None:
    """A node where others hold GPU 0: the plan must not count on GPU 1 alone."""
    node = node_of(2, 80, "all", free_gib=(1, 80))
    with pytest.raises(NoPlanError):
        planned(DEEPSPEED, llama_13b(), node, workload=FULL)


def test_there_is_no_pipeline() -> None:
    with pytest.raises(NoPlanError, match=r"PP2: deepspeed 0\.3 has no pipeline"):
        planned(DEEPSPEED, llama_405b(), H100, H100)
    decided = planned(DEEPSPEED, llama_70b(), H100)
    with pytest.raises(NoPlanError, match="tensor parallelism and replicas alone"):
        deepspeed_launch(replace(decided, parallelism=Parallelism(8, attention_dp=8)))


def test_experts_are_cut_and_never_spread() -> None:
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_hidden_layers": 32,
        "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000, "torch_dtype": "bfloat16",
    }  # fmt: skip
    mixtral = spec_from_config(config, name="test/experts", source="a test")
    assert planned(DEEPSPEED, mixtral, H100, workload=FULL).parallelism.ep == 1


def test_what_it_cannot_load_or_serve() -> None:
    with pytest.raises(NoPlanError, match=r"cannot load model type 'deepseek_v2'; it loads .*mixtral"):
        planned(DEEPSPEED, deepseek(), H100)
    awq = qwen_72b_awq()
    with pytest.raises(NoPlanError, match="plain weights alone"):
        planned(DEEPSPEED, awq, H100)
    long = replace(llama_13b(), max_context=32768)
    with pytest.raises(NoPlanError, match="at most 8,192 tokens per sequence, not 9,000"):
        planned(DEEPSPEED, long, H100, workload=Workload(input_tokens=8000, output_tokens=1000))


@pytest.mark.parametrize("name", [" ".join(AWKWARD), "/models/--trust-remote-code"])
def test_no_name_is_read_by_the_shell(tmp_path: Path, name: str) -> None:
    decided = named(planned(DEEPSPEED, llama_70b(), H100), name)
    (record,) = started(decided, deepspeed_launch(decided), tmp_path, "python")
    assert record["argv"][3] == name
    assert record["environment"] == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "its launcher ignores CUDA_VISIBLE_DEVICES"
