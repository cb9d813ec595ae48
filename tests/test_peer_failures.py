"""Where the best existing planner fails, and what is right there."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from builders import cluster_of, llama_13b, llama_70b, llama_405b, node_of
from test_plan_properties import odd_heads
from test_users_cases import FP8, cut, decide, latent_moe, small_8b, words

from configgen.engines.rules import engine_traits
from configgen.hub import load_model
from configgen.model import ModelSpec
from configgen.model_config import spec_from_config
from configgen.plan import NO_LIMITS, Limits, Objective, Parallelism, Plan, Workload
from configgen.search import search
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.topology import Topology

VLLM = engine_traits("vllm")
DEEPSEEK = Path(__file__).resolve().parents[2] / "shared" / "models" / "deepseek-ai--DeepSeek-V3.json"


def idle(decided: Plan, topology: Topology) -> int:
    return topology.gpu_count - decided.parallelism.gpus


@pytest.mark.parametrize("objective", Objective)
def test_405b_in_bf16_fits_16_h100_as_two_stages(objective: Objective) -> None:
    """It exits 1, 'does not fit any parallel config': its search never tries PP."""
    decided = decide(machine("2xhgx-h100"), load_model("llama-3.1-405b", offline=True), objective)
    assert cut(decided) == "TP8 PP2"
    assert decided.layers_per_stage == (63, 63)
    assert (decided.predictions.max_concurrency or 0) >= 1


@pytest.mark.parametrize("objective", Objective)
def test_70b_on_8_l40s_uses_all_and_gives_no_less_than_tp4_twice(objective: Objective) -> None:
    """It exits 1, or takes TP4 twice, of which its own engine says that TP2 PP4 gives 3.35 times as much."""
    topology, model = machine("l40s-8"), llama_70b()
    decided = decide(topology, model, objective)
    assert idle(decided, topology) == 0
    found = search(Survey(topology), model, Workload(objective=objective, assumed=("concurrency",)), VLLM).forecasts
    twice = next(f for f in found if f.candidate.parallelism == Parallelism(4, 1, 2)).predictions
    each = decided.predictions.output_tokens_per_s_per_gpu
    assert each is not None and twice.output_tokens_per_s_per_gpu is not None
    assert each >= twice.output_tokens_per_s_per_gpu
    if objective is Objective.THROUGHPUT:
        assert decided.parallelism.pp > 1


def deepseek(source: str) -> ModelSpec:
    if source == "table":
        return load_model("deepseek-v3", offline=True)
    if not DEEPSEEK.exists():
        pytest.skip(f"{DEEPSEEK} is not here: DeepSeek-V3 is planned from the built-in table ALONE")
    return spec_from_config(json.loads(DEEPSEEK.read_text()), name="deepseek-v3", source=str(DEEPSEEK))


@pytest.mark.parametrize("source", ["table", "config"])
@pytest.mark.parametrize("objective", Objective)
def test_deepseek_v3_on_32_h100_is_never_cut_over_two_nodes(objective: Objective, source: str) -> None:
    """It takes TP16 over two nodes."""
    topology, model = machine("4xhgx-h100"), deepseek(source)
    decided = decide(topology, model, objective)
    assert idle(decided, topology) == 0
    assert decided.parallelism.tp <= 8
    for other in search(Survey(topology), model, Workload(objective=objective), VLLM).candidates:
        assert other.parallelism.tp <= 8
    for stage in (stage for replica in decided.replicas for stage in replica.stages):
        assert len({ref.node for ref in stage}) == 1


def test_61_layers_over_4_stages_are_cut_as_the_engine_cuts_them() -> None:
    """It only warns that 61 is no multiple of 4."""
    model = latent_moe()
    found = search(Survey(machine("4xhgx-h100")), model, Workload(objective=Objective.THROUGHPUT), VLLM).candidates
    of_four = [c for c in found if c.parallelism.pp == 4]
    assert of_four
    for candidate in of_four:
        assert sum(candidate.layers) == 61
        assert sorted(candidate.layers) == [15, 15, 15, 16]
        assert candidate.layers == VLLM.split(61, 4)


@pytest.mark.parametrize("objective", [Objective.THROUGHPUT, Objective.BALANCED])
@pytest.mark.parametrize(("gpus", "model"), [(6, llama_70b()), (3, llama_70b()), (3, small_8b()), (6, small_8b()),
                                             (10, small_8b()), (6, odd_heads()), (10, odd_heads())])  # fmt: skip
def test_numbers_that_are_no_powers_of_two_are_used_whole(gpus: int, model: ModelSpec, objective: Objective) -> None:
    """Of 6 GPUs it uses 4. So may a server with little to do; one that is busy has no GPU to spare."""
    topology = cluster_of(node_of(gpus, 80, "all"))
    decided = decide(topology, model, objective, concurrency=1024)
    assert idle(decided, topology) == 0, cut(decided)


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("gpus", [3, 5, 6, 7, 10, 11])
def test_what_is_left_over_is_told_and_would_not_have_helped(gpus: int, objective: Objective) -> None:
    topology = cluster_of(node_of(gpus, 80, "all"))
    for model in (small_8b(), llama_70b(), odd_heads()):
        decided = decide(topology, model, objective)
        left = idle(decided, topology)
        assert any(f"{left} GPU" in text and "idle" in text for text in decided.degraded) == (left > 0)
        whole = [a for a in decided.alternatives if a.parallelism.gpus == gpus and a.margin is not None]
        assert all((a.margin or 0) > -0.06 for a in whole)


@pytest.mark.parametrize("gpus", [5, 10])
def test_a_limit_of_gpus_is_what_may_be_used(gpus: int) -> None:
    decided = decide(machine("2xhgx-h100"), small_8b(), Objective.THROUGHPUT, Limits(gpus=gpus), concurrency=1024)
    assert decided.parallelism.gpus == gpus


@pytest.mark.parametrize("pairs", [((0, 2), (1, 3)), ((0, 3), (1, 2)), ((0, 1), (2, 3))])
def test_the_order_of_the_gpus_is_that_of_the_bridges(pairs: tuple[tuple[int, int], ...]) -> None:
    """It names GPUs 0 to N-1 whatever joins them."""
    decided = decide(cluster_of(node_of(4, 48, dict.fromkeys(pairs, 4))), llama_70b(), Objective.THROUGHPUT)
    order = decided.gpu_order[0]
    assert cut(decided) == "TP2 PP2"
    assert {tuple(sorted(order[:2])), tuple(sorted(order[2:]))} == set(pairs)
    assert f"--device-ids {','.join(map(str, order))}" in words(decided)


@pytest.mark.parametrize("objective", Objective)
def test_a_moe_in_a_rack_of_72_stays_in_whole_trays_or_parts_of_one(objective: Objective) -> None:
    topology = machine("gb200-nvl72")
    decided = decide(topology, latent_moe(), objective, concurrency=2048)
    p = decided.parallelism
    assert p.gpus >= 64
    assert idle(decided, topology) < p.gpus_per_replica, "no further whole replica"
    if objective is not Objective.LATENCY:
        assert p.attention_dp > 1, "its latent KV would be copied to every rank"
    for replica in decided.replicas:
        each = set(Counter(ref.node for ref in replica.gpus).values())
        assert len(each) == 1
        assert each == {4} or p.gpus_per_replica < 4


@pytest.mark.parametrize("objective", Objective)
def test_of_unlike_nodes_the_one_with_more_memory_carries_more_layers(objective: Objective) -> None:
    decided = decide(machine("l40s-8+hgx-h100"), llama_405b(), objective, NO_LIMITS, concurrency=4)
    assert cut(decided) == "TP8 PP2"
    small, large = sorted(zip(decided.layers_per_stage, decided.replicas[0].stages, strict=True), key=lambda s: s[0])
    assert {ref.node for ref in small[1]} == {0}
    assert {ref.node for ref in large[1]} == {1}
    assert small[0] < large[0]
    assert small[0] + large[0] == 126


def test_unlike_gpus_of_one_node_carry_by_their_memory() -> None:
    decided = decide(cluster_of(node_of(4, (24, 80, 24, 80))), llama_70b(), Objective.THROUGHPUT, concurrency=4)
    by_size = {True: 0, False: 0}
    for stage, layers in zip(decided.replicas[0].stages, decided.layers_per_stage, strict=True):
        by_size[all(ref.gpu in (1, 3) for ref in stage)] += layers
    assert by_size[True] > by_size[False]


@pytest.mark.parametrize("model", [llama_13b(), llama_70b(FP8)], ids=["13b", "70b"])
def test_slower_nodes_beside_fast_ones_never_make_a_plan_worse(model: ModelSpec) -> None:
    load = Workload(objective=Objective.THROUGHPUT, concurrency=512)
    alone, both = (
        search(Survey(machine(name)), model, load, VLLM).forecasts[0].output_tokens_per_s
        for name in ("hgx-h100", "hgx-h100+l40s-8")
    )
    assert both >= alone


def test_a_small_model_is_served_on_every_kind_of_node() -> None:
    decided = decide(machine("hgx-h100+l40s-8"), llama_13b(), Objective.THROUGHPUT, concurrency=512)
    assert {ref.node for replica in decided.replicas for ref in replica.gpus} == {0, 1}
    assert all(len({ref.node for ref in replica.gpus}) == 1 for replica in decided.replicas)
