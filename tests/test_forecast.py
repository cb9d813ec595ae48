"""plan() by the cost model: limits, ties, margins, and what measured wires change."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from builders import cluster_of, llama_13b, llama_70b, node_of
from test_cost import NCCL_ONLY, curve, survey_of

from configgen.decide import plan
from configgen.engines.rules import engine_traits
from configgen.forecast import TIE
from configgen.plan import Objective, Plan, Workload
from probe.errors import NoPlanError
from probe.islands import group_shape
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.topology import Fabric, FabricState, GpuRef, GpuState, Provenance

VLLM = engine_traits("vllm")
FP8 = {"quant_method": "fp8"}


def decide(survey: Survey, objective: Objective = Objective.THROUGHPUT, **load: float) -> Plan:
    told = () if "concurrency" in load else ("concurrency",)
    return plan(survey, llama_70b(FP8), Workload(objective=objective, assumed=told, **load), VLLM)  # type: ignore[arg-type]


def wired(gbps: float, alpha_s: float = 1e-5) -> Survey:
    return survey_of(machine("l40s-4"), memory_gbps=800, tflops=250, wire_gbps=gbps, alpha_s=alpha_s)


def test_every_plan_says_what_it_should_give_and_by_how_much_the_others_lose() -> None:
    decided = decide(Survey(machine("hgx-h100")))
    told = decided.predictions
    assert told.ttft_s and told.tpot_s and told.output_tokens_per_s_per_gpu
    assert 0 < (told.uncertainty or 0) < 1
    lost = [a for a in decided.alternatives if a.lost_by]
    assert lost and all(a.predictions.tpot_s and a.margin is not None for a in lost)
    margins = [a.margin or 0.0 for a in lost]
    assert margins == sorted(margins)
    assert min(margins) >= -TIE


def test_the_wires_alone_turn_stages_into_tensor_parallel() -> None:
    """The same GPUs, model and load: only what was measured between them differs, and the crossover lies between."""
    slow, fast = 0.5, 200.0
    across, inside = (decide(wired(gbps), Objective.LATENCY, concurrency=16) for gbps in (slow, fast))
    assert across.parallelism.tp < inside.parallelism.tp == 4
    (text,) = [r.text for r in across.reasons if r.rule == "would-change" and "once wires" in r.text]
    turn = float(re.findall(r"wires are about ([0-9.]+) times", text)[0]) * slow
    assert slow < turn < fast
    assert all(r.provenance is Provenance.MEASURED for r in across.reasons if r.rule == "speed")


def test_more_sequences_turn_the_order_too() -> None:
    survey = Survey(machine("hgx-h100"))
    few, many = (decide(survey, concurrency=c).parallelism for c in (8, 2048))
    assert few.tp > many.tp


def test_a_limit_refuses_what_breaks_it_and_names_itself() -> None:
    survey = Survey(machine("hgx-h100"))
    free = decide(survey, concurrency=512)
    tpot_s = free.predictions.tpot_s or 0.0
    held = decide(survey, concurrency=512, max_tpot_s=0.97 * tpot_s)
    assert (held.predictions.tpot_s or 1.0) <= 0.97 * tpot_s
    assert any("is above --max-tpot" in a.law for a in held.alternatives if a.law)
    with pytest.raises(NoPlanError, match=r"keeps the limits; .* is above --max-tpot 0\.001"):
        decide(survey, concurrency=512, max_tpot_s=0.001)


def test_a_load_that_nobody_told_is_what_the_limits_allow() -> None:
    survey = Survey(machine("hgx-h100"))
    full, limited = decide(survey), decide(survey, max_tpot_s=0.015)
    assert full.workload.concurrency == 16 * 8
    assert limited.workload.concurrency < full.workload.concurrency
    assert (limited.predictions.tpot_s or 1.0) <= 0.015


def test_of_plans_that_are_alike_the_one_with_fewer_stages_is_taken() -> None:
    decided = decide(Survey(machine("hgx-h100")), concurrency=2048)
    near = [a for a in decided.alternatives if a.margin is not None and a.margin <= TIE]
    assert near
    assert all((a.parallelism.pp, a.parallelism.tp) >= (decided.parallelism.pp, decided.parallelism.tp) for a in near)


def test_what_an_alternative_loses_on_is_told_in_the_users_numbers() -> None:
    decided = decide(wired(0.5), Objective.LATENCY, concurrency=16)
    (tp4,) = [a.lost_by or "" for a in decided.alternatives if a.parallelism.tp == 4 and a.lost_by][:1]
    assert re.search(r"\d+% behind: .*all-reduce.*measured all_reduce: 0\.\d+ GB/s at", tp4)


def test_measured_wires_need_no_warning_that_they_are_not() -> None:
    assert any(r.rule == "pcie-only" for r in decide(Survey(machine("l40s-4"))).reasons)
    fast = decide(wired(200.0), Objective.LATENCY, concurrency=16)
    assert not any(r.rule == "pcie-only" for r in fast.reasons)
    assert fast.confidence != "low"


def test_a_limit_that_all_plans_keep_changes_nothing() -> None:
    survey = Survey(machine("a100-pcie-4"))
    work = Workload(objective=Objective.THROUGHPUT, concurrency=64)
    free = plan(survey, llama_13b(), work, VLLM)
    kept = plan(survey, llama_13b(), Workload(1024, 256, 64, Objective.THROUGHPUT, 1e4, 1e3), VLLM)
    assert (free.parallelism, free.gpu_order) == (kept.parallelism, kept.gpu_order)


def test_the_bandwidth_that_would_change_it_is_that_of_the_wires_that_decide() -> None:
    """Fast inside two nodes, slow across: TP4 stands against TP2 with stages, and what TP4 sends goes across."""
    fabric = Fabric(FabricState.COMPLETED, 0, "00000000-0000-0000-0000-000000000001", clique_id=1)
    node = replace(node_of(2, 80, "all"), gpus=(GpuState(fabric=fabric),) * 2)
    topology = cluster_of(node, node)
    inside = group_shape(topology, (GpuRef(0, 0), GpuRef(0, 1)))
    whole = group_shape(topology, tuple(GpuRef(n, i) for n in (0, 1) for i in (0, 1)))
    curves = (curve("all_reduce", inside, 5e-6, 100.0), curve("all_reduce", whole, 2e-5, 5.0))
    survey = Survey(topology, curves=curves)
    decided = plan(survey, llama_70b(), Workload(objective=Objective.LATENCY, concurrency=1), NCCL_ONLY)
    assert decided.parallelism.tp == 4
    (text,) = [r.text for r in decided.reasons if r.rule == "would-change" and "once wires" in r.text]
    size_bytes = 8192 * 2
    (told_us,) = re.findall(r"16 KiB in .* instead of ([0-9.]+) us", text)
    assert float(told_us) * 1e-6 == pytest.approx(2e-5 + size_bytes / 5e9, rel=0.02)
