"""What real users asked, answered: each case is a machine, a model and the cut that is right without a measurement."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from builders import cluster_of, dense, llama_13b, llama_70b, llama_405b, node_of, qwen_72b_awq
from hypothesis import given
from hypothesis import strategies as st

from configgen.decide import plan
from configgen.document import decode_plan, encode_plan
from configgen.engines.rules import engine_traits
from configgen.engines.vllm import vllm_launch
from configgen.model import ModelSpec
from configgen.model_config import spec_from_config
from configgen.plan import LayerSplit, Objective, Parallelism, Plan, Workload
from configgen.search import Limits
from probe.errors import NoPlanError, UsageError
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.topology import GpuRef, GpuState, GpuStatus, MigInstance, PathKind, Topology

VLLM = engine_traits("vllm")


def decide(
    topology: Topology, model: ModelSpec, objective: str = "balanced", limits: Limits | None = None, **load: int
) -> Plan:
    assumed = () if "concurrency" in load else ("concurrency",)
    workload = Workload(objective=Objective(objective), assumed=assumed, **load)  # type: ignore[arg-type]
    return plan(Survey(topology), model, workload, VLLM, limits or Limits())


def cut(decided: Plan) -> str:
    return decided.parallelism.label


def laws(decided: Plan) -> str:
    return " | ".join(a.law for a in decided.alternatives if a.law)


@pytest.mark.parametrize("objective", ["throughput", "balanced"])
def test_nvlink_pairs_give_tp_on_the_pairs_and_pp_across_in_the_order_of_the_bridges(objective: str) -> None:
    """vllm#7958: bridges on 0-2 and 1-3."""
    decided = decide(cluster_of(node_of(4, 48, {(0, 2): 4, (1, 3): 4})), llama_70b(), objective)
    assert cut(decided) == "TP2 PP2"
    assert decided.gpu_order == ((0, 2, 1, 3),)


def test_3090_bridges_machine_too() -> None:
    four_bit = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    decided = decide(machine("3090-bridges-4"), llama_70b(four_bit), concurrency=16, input_tokens=4096)
    assert (cut(decided), decided.gpu_order) == ("TP2 PP2", ((0, 2, 1, 3),))


def test_52_heads_on_3_gpus() -> None:
    """vllm#414: TP3 is illegal, PP3 is the way."""
    model = dense(layers=48, hidden=6656, heads=52, intermediate=17920)
    decided = decide(cluster_of(node_of(3, 24)), model)
    assert cut(decided) == "PP3"
    assert "TP3: 52 attention heads do not divide by 3" in laws(decided)


def test_40_heads_on_3_gpus() -> None:
    """vllm#596: PP3 uses all three."""
    decided = decide(cluster_of(node_of(3, 16)), llama_13b())
    assert cut(decided) == "PP3"
    assert "TP3: 40 attention heads do not divide by 3" in laws(decided)


def test_64_heads_on_3_gpus_divisibility_first() -> None:
    """gpustack#814."""
    assert cut(decide(cluster_of(node_of(3, 80)), llama_70b())) == "PP3"


def test_40_heads_on_6_small_gpus() -> None:
    """vllm#4232: 6 T4: TP2 PP3 in 16 bits, TP2 DP3 where two GPUs hold it."""
    six = cluster_of(node_of(6, 15))
    assert cut(decide(six, llama_13b(), "throughput")) in ("TP2 PP3", "TP2 DP3")
    eight_bit = dense(layers=40, hidden=5120, heads=40, intermediate=13824, quantization={"quant_method": "fp8"})
    assert cut(decide(six, eight_bit, "throughput")) == "TP2 DP3"


def test_an_awq_group_that_tp2_would_cut_in_two() -> None:
    """vllm#21695: 29568 is 231 groups of 128."""
    decided = decide(cluster_of(node_of(2, 40)), qwen_72b_awq())
    assert cut(decided) == "PP2"
    assert "29568" in laws(decided)
    assert cut(decide(cluster_of(node_of(1, 80)), qwen_72b_awq())) == "TP1"


def test_uneven_free_memory_gives_uneven_stages() -> None:
    """vllm#6824: 30 and 50 GB."""
    model = dense(layers=64, hidden=5120, heads=40, kv_heads=8, intermediate=27648, vocab=152064)
    for node in (node_of(2, (30, 50)), node_of(2, 80, free_gib=(30, 50))):
        decided = decide(cluster_of(node), model, concurrency=1)
        assert cut(decided) == "PP2"
        assert decided.layers_per_stage[0] < decided.layers_per_stage[1]
        assert sum(decided.layers_per_stage) == 64
        assert not decided.engine_split
        assert "TP2" in laws(decided)


def test_a_small_second_gpu_is_no_partner_for_tp() -> None:
    """vllm#2317: 24 and 8 GB: the small one bounds TP2; the large one alone serves."""
    small_8b = dense(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256)
    decided = decide(cluster_of(node_of(2, (24, 8))), small_8b)
    assert cut(decided) == "TP1"
    assert decided.replicas[0].gpus == (GpuRef(0, 0),)
    assert "the smallest has" in laws(decided)
    assert any("idle" in text for text in decided.degraded)


def test_a_13b_on_4_gpus_is_four_replicas() -> None:
    """vllm#1873: TP4 was slower than one GPU."""
    assert cut(decide(cluster_of(node_of(4, 40)), llama_13b())) == "DP4"
    assert cut(decide(machine("a100-pcie-4"), llama_13b(), "throughput")) == "DP4"


def test_405b_in_bf16_on_two_nodes() -> None:
    for objective in ("latency", "throughput", "balanced"):
        decided = decide(machine("2xhgx-h100"), llama_405b(), objective)
        assert cut(decided) == "TP8 PP2"
        assert decided.replicas[0].nodes == (0, 1)
        assert decided.replicas[0].hops == ("NET",)


def test_a_model_that_needs_32_gpus_on_4_nodes() -> None:
    giant = dense(layers=120, hidden=25600, heads=160, kv_heads=16, intermediate=69632)
    decided = decide(machine("4xhgx-h100"), giant)
    assert cut(decided) == "TP8 PP4"
    assert decided.layers_per_stage == (30, 30, 30, 30)


def test_64_gpus_keep_tp_in_the_node() -> None:
    """vllm#6938."""
    decided = decide(machine("8xhgx-h100"), llama_405b(), "latency")
    assert decided.parallelism.tp == 8
    assert all(len({ref.node for ref in stage}) == 1 for replica in decided.replicas for stage in replica.stages)


def test_70b_on_8_l40s() -> None:
    for objective in ("throughput", "balanced"):
        decided = decide(machine("l40s-8"), llama_70b(), objective)
        assert decided.parallelism.tp < 8
        assert decided.parallelism.gpus == 8
        assert any(r.rule == "pcie-only" and "measure" in r.text for r in decided.reasons)
        assert decided.confidence == "low"


def test_70b_on_6_a6000() -> None:
    """vllm#11147: latency TP4 with two idle, throughput TP2 PP3."""
    latency = decide(machine("a6000-6"), llama_70b(), "latency")
    assert cut(latency) == "TP4"
    assert not latency.replicas[0].custom_all_reduce
    assert cut(decide(machine("a6000-6"), llama_70b(), "throughput")) == "TP2 PP3"


def test_70b_in_fp8_on_8_h100_is_several_replicas_for_throughput_and_one_for_latency() -> None:
    """vllm#8089."""
    fp8 = llama_70b({"quant_method": "fp8"})
    assert decide(machine("hgx-h100"), fp8, "throughput").parallelism.dp >= 2
    assert cut(decide(machine("hgx-h100"), fp8, "latency")) == "TP8"


def test_a_model_that_fits_one_gpu_is_replicated() -> None:
    small = dense(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256)
    assert cut(decide(machine("hgx-h100"), small, "throughput", concurrency=1024)) == "DP8"
    assert cut(decide(machine("h100-1"), small, "throughput")) == "TP1"


def test_two_different_nodes_get_one_plan_that_holds_on_both() -> None:
    mixed = machine("hgx-h100+l40s-8")
    decided = decide(mixed, llama_13b(), "throughput", concurrency=1024)
    assert {node for r in decided.replicas for node in r.nodes} == {0, 1}
    smallest = min(g.memory_bytes or 0 for node in mixed.nodes for g in node.shape.gpus)
    assert all(m.needed_bytes <= smallest for m in decided.memory)
    across = decide(mixed, llama_405b())
    assert across.parallelism.pp == 2
    assert across.layers_per_stage[0] != across.layers_per_stage[1]


def test_a_rack_is_one_island_larger_than_a_node() -> None:
    decided = decide(machine("gb200-nvl72"), llama_405b(), "latency")
    assert decided.parallelism.tp > 4
    assert decided.replicas[0].tp_path == "MNNVL"


def test_latency_tp_in_a_rack_ends_where_the_engines_own_all_reduce_ends() -> None:
    decided = decide(machine("gb200-nvl72"), llama_70b(), "latency")
    assert cut(decided) == "TP8 DP9"
    assert all(len({ref.node for ref in r.gpus}) == 2 for r in decided.replicas)


def test_a_replica_has_as_many_gpus_on_each_of_its_nodes() -> None:
    """vLLM refuses uneven ranks per node; in a rack of 4-GPU trays 6 or 14 GPUs would be uneven."""
    for objective in ("latency", "throughput"):
        for limit in (8, 14, 20):
            decided = decide(machine("gb200-nvl72"), llama_405b(), objective, Limits(gpus=limit))
            for replica in decided.replicas:
                ranks = [sum(ref.node == node for ref in replica.gpus) for node in replica.nodes]
                assert len(set(ranks)) == 1


def test_replicas_of_one_gpu_stand_in_index_order() -> None:
    small = dense(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256)
    assert decide(machine("dgx1-v100"), small, "throughput", concurrency=1024).gpu_order == (tuple(range(8)),)


def test_gpus_without_bfloat16_get_half_precision() -> None:
    assert decide(machine("dgx1-v100"), llama_13b()).half_precision
    assert not decide(machine("hgx-a100"), llama_13b()).half_precision


def test_the_load_decides_how_far_a_70b_in_fp8_is_cut() -> None:
    """It fits one H100 and starves there: 410 tokens/s against 2058 per GPU on two."""
    fp8 = llama_70b({"quant_method": "fp8"})
    cuts = [decide(machine("hgx-h100"), fp8, "throughput", concurrency=c).parallelism.tp for c in (8, 128, 512)]
    assert cuts == sorted(cuts, reverse=True)
    assert cuts[0] >= 4, "weights decide"
    assert cuts[-1] == 2, "KV decides"


def mla_moe() -> ModelSpec:
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_hidden_layers": 61,
        "hidden_size": 7168, "num_attention_heads": 128, "num_key_value_heads": 128, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280, "max_position_embeddings": 163840,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return spec_from_config(config, name="test/mla-moe", source="a test")


def test_mla_with_tp_would_copy_its_kv_so_attention_is_replicated_and_experts_spread() -> None:
    """vllm#16037."""
    decided = decide(machine("hgx-h200"), mla_moe(), "throughput")
    assert decided.parallelism == Parallelism(tp=8, pp=1, dp=1, ep=8, attention_dp=8)
    assert cut(decide(machine("hgx-h200"), mla_moe(), "latency")).startswith("TP8")


def test_no_plan_names_the_law() -> None:
    with pytest.raises(NoPlanError, match="smallest has") as caught:
        decide(cluster_of(node_of(2, 16)), llama_405b())
    assert caught.value.exit_code == 3


def test_unknown_memory_is_not_guessed() -> None:
    node = node_of(2, 16)
    blind = replace(node, shape=replace(node.shape, gpus=tuple(replace(g, memory_bytes=None) for g in node.shape.gpus)))
    with pytest.raises(NoPlanError, match=r"memory of the GPUs is not known.*--gpu-m"):
        decide(cluster_of(blind), llama_13b())


def test_a_context_longer_than_the_models_own_is_refused() -> None:
    with pytest.raises(UsageError, match="context"):
        decide(cluster_of(node_of(1, 80)), llama_13b(), input_tokens=9000)


def test_lost_gpus_are_not_planned_on() -> None:
    node = node_of(8, 80, "all")
    lost = replace(node, gpus=(*node.gpus[:3], GpuState(status=GpuStatus.LOST), *node.gpus[4:]))
    decided = decide(cluster_of(lost), llama_70b(), "latency")
    assert cut(decided) == "TP4"
    assert 3 not in decided.gpu_order[0]
    assert any("cannot be used" in text for text in decided.degraded)


def test_mig_instances_never_form_a_group() -> None:
    node = node_of(2, 80, "all")
    state = GpuState(
        mig_instances=(MigInstance("MIG-a", "3g.40gb", 40 << 30), MigInstance("MIG-b", "1g.10gb", 10 << 30))
    )
    sliced = replace(node, gpus=(state, replace(state, mig_instances=(MigInstance("MIG-c", "3g.40gb", 40 << 30),))))
    decided = decide(cluster_of(sliced), llama_13b())
    assert cut(decided) == "DP2"
    assert decided.gpu_uuids == (("MIG-a", "MIG-c"),)
    with pytest.raises(NoPlanError):
        decide(cluster_of(sliced), llama_70b())


def test_limits_bound_what_is_used() -> None:
    small = dense(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256)
    assert decide(machine("hgx-h100"), small, "throughput", Limits(gpus=3)).parallelism.gpus == 3
    assert decide(machine("4xhgx-h100"), small, "throughput", Limits(nodes=2)).parallelism.gpus == 16


def test_every_plan_reads_back_from_json() -> None:
    for topology, model in ((machine("2xhgx-h100"), llama_405b()), (machine("3090-bridges-4"), llama_13b())):
        decided = decide(topology, model)
        assert decode_plan(encode_plan(decided), where="plan.json") == decided


@pytest.mark.parametrize(
    ("split", "expected"),
    [(LayerSplit.BEFORE_LAST, (27, 27, 26)), (LayerSplit.LAST, (26, 27, 27)), (LayerSplit.FIRST, (27, 27, 26))],
)
def test_engines_split_80_layers_over_3_stages_in_their_own_way(split: LayerSplit, expected: tuple[int, ...]) -> None:
    assert replace(VLLM, layer_split=split).split(80, 3) == expected


@pytest.mark.parametrize(
    ("build", "law"),
    [
        (lambda: Parallelism(8, attention_dp=3), "attention_dp divides tp"),
        (lambda: Parallelism(8, ep=3), "ep divides tp"),
        (lambda: Parallelism(0), "tp >= 1"),
        (lambda: Workload(concurrency=0), "concurrency is at least 1"),
        (lambda: Workload(max_ttft_s=0.0), "positive"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_its_law(build: object, law: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=law):
        build()


def test_a_plan_that_breaks_its_laws_cannot_be_built() -> None:
    decided = decide(machine("hgx-h100"), llama_70b())
    for broken, law in (
        ({"replicas": decided.replicas[:1]}, "tp \\* pp \\* dp == GPUs used"),
        ({"replicas": (decided.replicas[0], decided.replicas[0])}, "disjoint"),
        ({"layers_per_stage": (79,)}, "every layer once"),
        ({"confidence": "sure"}, "confidence"),
    ):
        with pytest.raises(ValueError, match=law):
            replace(decided, **broken)  # type: ignore[arg-type]


@st.composite
def boxes(draw: st.DrawFn) -> Topology:
    n = draw(st.integers(1, 8))
    fast = {pair: 4 for pair in combinations(range(n), 2) if draw(st.booleans())}
    memory = tuple(draw(st.sampled_from([24.0, 48.0, 80.0])) for _ in range(n))
    pcie = draw(st.sampled_from([PathKind.PIX, PathKind.NODE, PathKind.SYS]))
    return cluster_of(*[node_of(n, memory, fast, pcie=pcie)] * draw(st.integers(1, 3)))


@given(boxes(), st.sampled_from(["latency", "throughput", "balanced"]), st.sampled_from([llama_13b(), llama_70b()]))
def test_any_plan_keeps_the_laws(topology: Topology, objective: str, model: ModelSpec) -> None:
    try:
        decided = decide(topology, model, objective)
    except NoPlanError as error:
        assert "GPU" in str(error)
        return
    p = decided.parallelism
    assert p.tp * p.pp * p.dp == sum(len(r.gpus) for r in decided.replicas) <= topology.gpu_count
    for replica in decided.replicas:
        for stage, memory in zip(replica.stages, decided.memory, strict=True):
            held = memory.weights_bytes + memory.activation_bytes + memory.overhead_bytes
            assert all(held < (topology.gpu(ref).memory_bytes or 0) for ref in stage)


@given(st.permutations(range(6)))
def test_renaming_the_gpus_renames_the_answer(order: list[int]) -> None:
    """Bridges on three pairs, wherever they are plugged: TP2 lies on them."""
    pairs = [tuple(sorted(order[i : i + 2])) for i in (0, 2, 4)]
    decided = decide(cluster_of(node_of(6, 48, dict.fromkeys(pairs, 4))), llama_70b(), "throughput")
    assert cut(decided) == "TP2 PP3"
    assert sorted(tuple(ref.gpu for ref in stage) for stage in decided.replicas[0].stages) == sorted(pairs)


def command(decided: Plan) -> str:
    return " | ".join(" ".join(process.argv) for process in vllm_launch(decided).processes)


def test_what_is_emitted_for_uneven_free_memory_can_load_the_plan() -> None:
    """One fraction bounds every GPU of a server at start-up: it is the smallest, and the KV is told in bytes."""
    model = dense(layers=64, hidden=5120, heads=40, kv_heads=8, intermediate=27648, vocab=152064)
    decided = decide(cluster_of(node_of(2, 80, free_gib=(30, 50))), model, concurrency=1)
    assert "--gpu-memory-utilization 0.35 --kv-cache-memory-bytes" in command(decided)
    kv_bytes = decided.replicas[0].kv_cache_bytes
    for memory, free in zip(decided.memory, (30 << 30, 50 << 30), strict=True):
        assert kv_bytes is not None
        assert memory.weights_bytes + memory.activation_bytes + memory.overhead_bytes + kv_bytes <= free


def test_a_busy_gpu_does_not_throttle_the_servers_beside_it() -> None:
    node = node_of(4, 80, "all", free_gib=(80, 80, 40, 80))
    small = dense(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256)
    launch = vllm_launch(decide(cluster_of(node), small, "throughput", concurrency=1024))
    assert launch.one_line is None
    told = [p.argv[p.argv.index("--gpu-memory-utilization") + 1] for p in launch.processes if "0.50" in p.argv]
    assert told == ["0.50"]
    assert len(launch.processes) > 1


def test_nodes_a_few_percent_apart_in_free_memory_are_planned_alike() -> None:
    base = machine("4xhgx-h100")
    nodes = [
        replace(n, gpus=tuple(replace(g, memory_free_bytes=int((0.89 - i / 100) * 85.6e9)) for g in n.gpus))
        for i, n in enumerate(base.nodes)
    ]
    assert cut(decide(replace(base, nodes=tuple(nodes)), llama_405b())) == "TP8 PP2 DP2"


def test_wide_bonds_come_before_narrow_ones_inside_an_island() -> None:
    links = {(0, 2): 4, (1, 3): 4, (0, 1): 2, (0, 3): 2, (1, 2): 2, (2, 3): 2}
    decided = decide(cluster_of(node_of(4, 48, links)), llama_13b(), "throughput")
    assert (cut(decided), decided.gpu_order, decided.replicas[0].tp_path) in (
        ("TP2 DP2", ((0, 2, 1, 3),), "NV4"),
        ("DP4", ((0, 1, 2, 3),), None),
    )
    limited = decide(cluster_of(node_of(4, 24, links)), llama_13b(), "latency", Limits(gpus=2))
    assert limited.gpu_order == ((0, 2),)


def test_each_replica_of_a_mixed_cluster_has_its_own_wires() -> None:
    wires = cluster_of(node_of(8, 48), node_of(8, 48, "all"))
    decided = decide(wires, llama_70b(), "throughput", concurrency=128)
    by_node = {r.nodes[0]: r for r in decided.replicas}
    assert by_node[1].tp_path == "NV18" and by_node[1].custom_all_reduce
    assert by_node[0].tp_path != "NV18"
    processes = vllm_launch(decided).processes
    assert [p.node for p in processes if p.node == 1 and "--disable-custom-all-reduce" in p.argv] == []


def test_of_two_nodes_the_better_one_is_used_first() -> None:
    cluster = machine("l40s-8+hgx-h100")
    assert {n for r in decide(cluster, llama_70b(), limits=Limits(gpus=8)).replicas for n in r.nodes} == {1}
    latency = decide(cluster, llama_70b(), "latency")
    assert latency.parallelism.tp == 8 and latency.replicas[0].nodes == (1,)


def test_no_more_replicas_than_requests() -> None:
    small = dense(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256)
    assert decide(machine("hgx-h100"), small, concurrency=1).parallelism.dp == 1
    assert decide(machine("hgx-h100"), small, concurrency=3).parallelism.dp <= 3


def test_a_format_that_the_gpu_is_too_old_for_is_a_law() -> None:
    with pytest.raises(NoPlanError, match=r"awq needs compute capability 7\.5"):
        decide(machine("dgx1-v100"), llama_70b({"quant_method": "awq", "bits": 4, "group_size": 128}))
    assert decide(machine("hgx-a100"), llama_70b({"quant_method": "awq", "bits": 4, "group_size": 128}))


def test_stages_of_one_gpu_are_not_preferred_where_bridges_exist() -> None:
    """Five GPUs, two bridges: TP2 PP2 on the bridges, one GPU idle."""
    decided = decide(cluster_of(node_of(5, 48, {(0, 3): 4, (1, 4): 4})), llama_70b())
    assert cut(decided) == "TP2 PP2"
    assert sorted(tuple(ref.gpu for ref in s) for s in decided.replicas[0].stages) == [(0, 3), (1, 4)]


def test_a_few_gpus_of_a_cluster_are_taken_from_one_node() -> None:
    small = dense(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256)
    launch = vllm_launch(decide(machine("2xhgx-h100"), small, limits=Limits(gpus=3)))
    assert launch.one_line is not None


def test_small_gpus_are_not_pulled_into_a_group_that_they_would_bound() -> None:
    for sizes in ((80.0,) * 4 + (22.5,) * 4, (80.0, 22.5) * 4):
        decided = decide(cluster_of(node_of(8, sizes, "all")), llama_70b(), concurrency=200)
        assert cut(decided) == "TP4"
        assert all(sizes[ref.gpu] == 80 for ref in decided.replicas[0].gpus)


def test_a_reason_never_says_that_no_island_holds_a_model_that_one_holds() -> None:
    """70B in 16 bits: a bridged pair of 80 GB holds the weights, not the KV of a useful batch beside them."""
    pairs = cluster_of(node_of(4, 80, {(0, 1): 12, (2, 3): 12}))
    (stages,) = [r.text for r in decide(pairs, llama_70b(), "throughput").reasons if r.rule == "pp-across"]
    assert "no island" not in stages and "the best without stages" in stages
    (stages,) = [r.text for r in decide(machine("2xhgx-h100"), llama_405b()).reasons if r.rule == "pp-across"]
    assert "no island holds the model" in stages
