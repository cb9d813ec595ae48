"""What users asked in public, and what they should have been told: the plan, and the words that start the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import cluster_of, dense, llama_13b, llama_70b, llama_405b, node_of, qwen_72b_awq

from configgen.decide import plan
from configgen.engines.rules import engine_traits
from configgen.engines.vllm import vllm_launch
from configgen.launch import Process
from configgen.model import ModelSpec
from configgen.model_config import spec_from_config
from configgen.plan import NO_LIMITS, Limits, Objective, Plan, Workload
from probe.audit import audit
from probe.measurement import Survey, Verification
from probe.sources.machines import machine
from probe.topology import GpuRef, PathKind, PcieLink, Topology

FP8 = {"quant_method": "fp8"}
FP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}


def decide(
    wires: Topology | Survey,
    model: ModelSpec,
    objective: Objective = Objective.BALANCED,
    limits: Limits = NO_LIMITS,
    **load: int,
) -> Plan:
    told = () if "concurrency" in load else ("concurrency",)
    survey = wires if isinstance(wires, Survey) else Survey(wires)
    return plan(survey, model, Workload(objective=objective, assumed=told, **load), engine_traits("vllm"), limits)


def cut(decided: Plan) -> str:
    return decided.parallelism.label


def laws(decided: Plan) -> str:
    return " | ".join(a.law for a in decided.alternatives if a.law)


def words(decided: Plan) -> str:
    """The flags of the plan's only line, or of all its processes."""
    launch = vllm_launch(decided)
    return " ".join(launch.one_line or [w for p in launch.processes for flag in p.flags for w in flag.words])


def variables(decided: Plan) -> dict[str, str]:
    processes: tuple[Process, ...] = vllm_launch(decided).processes
    return {v.name: v.value for process in processes for v in process.environment}


def small_8b() -> ModelSpec:
    return dense(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256)


def latent_moe() -> ModelSpec:
    """Multi-head latent attention and 256 experts, in blocks of fp8."""
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_hidden_layers": 61,
        "hidden_size": 7168, "num_attention_heads": 128, "num_key_value_heads": 128, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280, "max_position_embeddings": 163840,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return spec_from_config(config, name="test/latent-moe", source="a test")


@pytest.mark.parametrize("objective", [Objective.THROUGHPUT, Objective.BALANCED])
def test_vllm_7958_bridges_on_0_2_and_1_3(objective: Objective) -> None:
    decided = decide(cluster_of(node_of(4, 48, {(0, 2): 4, (1, 3): 4})), llama_70b(), objective)
    assert cut(decided) == "TP2 PP2"
    assert "--tensor-parallel-size 2 --pipeline-parallel-size 2 --device-ids 0,2,1,3" in words(decided)


def test_vllm_21061_larger_gpus_carry_more_layers() -> None:
    """Two small and two large GPUs, interleaved: stages are of equals, and the larger ones carry more."""
    decided = decide(cluster_of(node_of(4, (30, 60, 30, 60))), llama_70b(), concurrency=1)
    assert cut(decided) == "TP2 PP2"
    small, large = decided.layers_per_stage
    assert [{ref.gpu for ref in stage} for stage in decided.replicas[0].stages] == [{0, 2}, {1, 3}]
    assert small < large
    assert "--device-ids 0,2,1,3" in words(decided)
    assert variables(decided)["VLLM_PP_LAYER_PARTITION"] == f"{small},{large}"


def test_vllm_6824_30_and_50_gb_free() -> None:
    model = dense(layers=64, hidden=5120, heads=40, kv_heads=8, intermediate=27648, vocab=152064)
    decided = decide(cluster_of(node_of(2, 80, free_gib=(30, 50))), model, concurrency=1)
    assert cut(decided) == "PP2"
    first, second = map(int, variables(decided)["VLLM_PP_LAYER_PARTITION"].split(","))
    assert first + second == 64
    assert first < second
    assert "TP2" in laws(decided)


def test_vllm_2317_24_gb_beside_8_gb() -> None:
    decided = decide(cluster_of(node_of(2, (24, 8))), small_8b())
    assert cut(decided) == "TP1"
    assert decided.replicas[0].gpus == (GpuRef(0, 0),)
    assert "TP2: needs" in laws(decided)


@pytest.mark.parametrize(
    ("heads", "hidden", "intermediate", "layers"), [(52, 6656, 17920, 48), (40, 5120, 13824, 40), (64, 8192, 22016, 80)]
)
def test_vllm_414_vllm_596_gpustack_814_heads_that_do_not_divide_by_3(
    heads: int, hidden: int, intermediate: int, layers: int
) -> None:
    model = dense(layers=layers, hidden=hidden, heads=heads, intermediate=intermediate)
    decided = decide(cluster_of(node_of(3, 80 if heads == 64 else 30)), model)
    assert cut(decided) in ("PP3", "DP3") or (heads != 52 and cut(decided) == "TP2")
    assert f"TP3: {heads} attention heads do not divide by 3" in laws(decided)
    tight = decide(cluster_of(node_of(3, {52: 24, 40: 16, 64: 64}[heads])), model)
    assert cut(tight) == "PP3"


def test_vllm_4232_40_heads_on_6_t4() -> None:
    six = cluster_of(node_of(6, 15))
    eight_bit = dense(layers=40, hidden=5120, heads=40, intermediate=13824, quantization=FP8)
    assert cut(decide(six, llama_13b(), Objective.THROUGHPUT)) in ("TP2 PP3", "TP2 DP3")
    assert cut(decide(six, eight_bit, Objective.THROUGHPUT)) == "TP2 DP3"


def test_vllm_11147_70b_on_6_a6000() -> None:
    latency = decide(machine("a6000-6"), llama_70b(), Objective.LATENCY)
    assert cut(latency) == "TP4"
    assert any("2 GPUs stay idle" in text for text in latency.degraded)
    assert cut(decide(machine("a6000-6"), llama_70b(), Objective.THROUGHPUT)) == "TP2 PP3"


def test_vllm_21695_an_awq_group_that_tp2_would_cut() -> None:
    decided = decide(cluster_of(node_of(2, 40)), qwen_72b_awq())
    assert cut(decided) == "PP2"
    assert "AWQ group 128 does not divide 29568 / 2 = 14784 (231 groups do not split in 2)" in laws(decided)


def test_vllm_13719_custom_all_reduce_is_off_on_4_pcie_gpus_and_stages_are_compared() -> None:
    decided = decide(machine("4090-8"), llama_70b(FP4), Objective.LATENCY, Limits(gpus=4))
    assert cut(decided) == "TP4"
    assert "--disable-custom-all-reduce" in words(decided)
    assert any(r.rule == "custom-all-reduce" for r in decided.reasons)
    assert any(a.parallelism.pp > 1 for a in decided.alternatives if a.lost_by)


def test_vllm_51513_9920_8087_33041_p2p_that_is_promised_and_broken() -> None:
    a, b = GpuRef(0, 0), GpuRef(0, 1)
    broken = (Verification(a, b, False, "read back other bytes"), Verification(b, a, False, "read back other bytes"))
    survey = Survey(machine("4090-8"), verifications=broken)
    decided = decide(survey, llama_13b(), Objective.LATENCY, Limits(gpus=2))
    assert "--disable-custom-all-reduce" in words(decided)
    assert variables(decided)["NCCL_P2P_DISABLE"] == "1"
    assert any("ACS" in r.text and "IOMMU" in r.text for r in decided.reasons)


@pytest.mark.parametrize(
    ("wires", "objective"),
    [(cluster_of(node_of(4, 40)), Objective.BALANCED), (machine("a100-pcie-4"), Objective.THROUGHPUT)],
    ids=["balanced", "throughput"],
)
def test_vllm_1873_13b_on_4_gpus_is_four_replicas(wires: Topology, objective: Objective) -> None:
    decided = decide(wires, llama_13b(), objective)
    assert cut(decided) == "DP4"
    assert "--data-parallel-size 4 --device-ids 0,1,2,3" in words(decided)


def test_vllm_8089_70b_in_fp8_on_8_h100() -> None:
    assert decide(machine("hgx-h100"), llama_70b(FP8), Objective.THROUGHPUT).parallelism.tp in (2, 4)
    assert cut(decide(machine("hgx-h100"), llama_70b(FP8), Objective.LATENCY)) == "TP8"


@pytest.mark.parametrize("objective", Objective)
def test_vllm_6938_64_gpus_keep_tp_in_the_node(objective: Objective) -> None:
    decided = decide(machine("8xhgx-h100"), llama_405b(), objective)
    assert all(len({ref.node for ref in stage}) == 1 for replica in decided.replicas for stage in replica.stages)
    assert decided.parallelism.pp >= 2, "810 GB do not fit one node"


def two_cliques() -> Topology:
    """A rack whose last nine trays joined another clique: one NVLink domain by cable, two by IMEX."""
    rack = machine("gb200-nvl72")

    def joined(number: int) -> int:
        return 1 if number < 9 else 2

    nodes = tuple(
        replace(
            node,
            gpus=tuple(
                replace(gpu, fabric=replace(gpu.fabric, clique_id=joined(number))) for gpu in node.gpus if gpu.fabric
            ),
        )
        for number, node in enumerate(rack.nodes)
    )
    return replace(rack, nodes=nodes)


def test_vllm_16992_the_nvlink_domain_is_not_the_node_and_not_the_rack() -> None:
    whole = decide(machine("gb200-nvl72"), llama_405b(), Objective.LATENCY)
    assert len({ref.node for ref in whole.replicas[0].stages[0]}) > 1, "TP may leave the tray"
    for replica in decide(two_cliques(), llama_405b(), Objective.LATENCY).replicas:
        for stage in replica.stages:
            assert len({ref.node < 9 for ref in stage}) == 1, "TP may not leave the clique"
            assert replica.tp_path in ("NV18", "MNNVL")


def test_vllm_16037_mla_would_copy_its_kv_under_tp() -> None:
    p = decide(machine("hgx-h200"), latent_moe(), Objective.THROUGHPUT).parallelism
    assert (p.attention_dp, p.ep) == (8, 8)


def test_a_3090_in_a_gen2_x4_slot_is_a_finding() -> None:
    node = machine("3090-4").nodes[0]
    slot = PcieLink(generation=2, generation_max=4, width=4, width_max=16)
    gpus = (replace(node.shape.gpus[0], pcie=slot), *node.shape.gpus[1:])
    found = audit(Survey(Topology((replace(node, shape=replace(node.shape, gpus=gpus)),))))
    assert any("x4" in finding.seen and "x16" in (finding.expected or "") for finding in found)


# What was measured, where a rule of thumb says otherwise.


def test_at_low_load_replicas_of_one_gpu_lose_on_nvswitch() -> None:
    """B200, 70B in fp8, tokens/s/GPU at 4 requests per GPU: TP1 296, TP2 418, TP4 538, TP8 526."""
    decided = decide(
        machine("hgx-b200"), llama_70b(FP8), Objective.THROUGHPUT, concurrency=32, input_tokens=1024, output_tokens=1024
    )
    assert decided.parallelism.tp in (4, 8)


def test_a_gpu_that_holds_the_weights_and_no_kv_is_too_small() -> None:
    """H100, 70B in fp8: TP1 410, TP2 2058 tokens/s/GPU."""
    for decided in (
        decide(machine("hgx-h100"), llama_70b(FP8), Objective.THROUGHPUT),
        decide(machine("hgx-h100"), llama_70b(FP8), Objective.THROUGHPUT, concurrency=512),
    ):
        assert decided.parallelism.gpus_per_replica >= 2


def test_stages_win_throughput_inside_an_island_too() -> None:
    """405B in fp8 on H200: PP8 1.5 times TP8 at most throughput; MLPerf runs TP4 PP2."""
    eight = dense(layers=126, hidden=16384, heads=128, kv_heads=8, intermediate=53248, vocab=128256, quantization=FP8)
    decided = decide(machine("hgx-h200"), eight, Objective.THROUGHPUT, concurrency=512)
    assert decided.parallelism.pp > 1
    assert cut(decide(machine("hgx-h200"), eight, Objective.LATENCY, concurrency=1)) == "TP8"


def test_two_stages_beat_two_replicas_in_a_pcie_box() -> None:
    """RTX PRO 6000, 70B in fp4: PP2 1901, TP1 1724 tokens/s/GPU."""
    decided = decide(
        machine("rtx-pro-6000-2"), llama_70b(FP4), Objective.THROUGHPUT, concurrency=512, output_tokens=1024
    )
    assert cut(decided) == "PP2"


def test_a_slow_network_keeps_tp_in_the_node() -> None:
    """405B on 2 x 8 H100 without InfiniBand: TP8 PP2 is 6.6 times TP16."""
    decided = decide(machine("2xhgx-h100"), llama_405b(), Objective.THROUGHPUT, concurrency=256)
    assert cut(decided) == "TP8 PP2"


@pytest.mark.parametrize("objective", Objective)
def test_a_large_moe_on_four_nodes_is_not_cut_over_two_of_them(objective: Objective) -> None:
    """DeepSeek-V3 on 32 H100: the best existing planner takes TP16 over two nodes."""
    decided = decide(machine("4xhgx-h100"), latent_moe(), objective)
    assert all(len({ref.node for ref in stage}) == 1 for replica in decided.replicas for stage in replica.stages)


def test_groups_lie_on_the_bridges_whoever_they_join() -> None:
    """MLPerf's H100 NVL set-up: ranks '0,3 1,2 4,5 6,7'."""
    bridges = {(0, 3): 12, (1, 2): 12, (4, 5): 12, (6, 7): 12}
    decided = decide(cluster_of(node_of(8, 94, bridges, pcie=PathKind.NODE)), llama_70b(), Objective.THROUGHPUT)
    pairs = [set(stage) for replica in decided.replicas for stage in replica.stages]
    assert decided.parallelism.tp == 2
    assert {frozenset(ref.gpu for ref in pair) for pair in pairs} == {frozenset(pair) for pair in bridges}


def test_nearly_equal_plans_are_said_to_be_within_the_uncertainty() -> None:
    """A saturated 70B in fp8 on 8 H100: two replicas of two stages give what four of one do, and no catalog tells."""
    decided = decide(machine("hgx-h100"), llama_70b(FP8), Objective.THROUGHPUT, concurrency=2048)
    near = [a for a in decided.alternatives if a.within_uncertainty]
    assert near
    assert decided.parallelism.pp == 1, "the simpler one is taken"
    assert any("within the uncertainty" in reason.text for reason in decided.reasons)


def test_a_quarter_of_a_millisecond_does_not_hide_a_clear_winner() -> None:
    """4 RTX 3090 without bridges, one request: TP4 reads a quarter of the weights on each GPU."""
    decided = decide(machine("3090-4"), llama_13b(), Objective.LATENCY, concurrency=1)
    assert cut(decided) == "TP4"
    assert not any(r.rule == "uncertain" for r in decided.reasons)
