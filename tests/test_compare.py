"""`wirelore compare`: which numbers of one machine may be believed on another, and what is said where they may not."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from builders import cluster_of, dense, llama_70b, node_of
from command import matrix, wirelore
from hypothesis import given, settings
from hypothesis import strategies as st

from configgen.carryover import serving
from configgen.compare import compare
from configgen.compare_document import encode_comparison
from configgen.comparison import Comparison, Effect, Judgement, Kind, Served, Serving, Side, Verdict
from configgen.engines.rules import engine_traits
from configgen.model import ModelSpec
from configgen.plan import Workload
from configgen.report.sections import changes
from configgen.report.terminal import print_comparison
from probe.cache import remember
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Rate, Sample, Survey, Verification
from probe.sources.machines import machine
from probe.store import encode_survey
from probe.topology import GpuRef, Provenance, Topology

VLLM = engine_traits("vllm")
LOAD = Workload(assumed=("concurrency",))
SIZES = tuple(1 << k for k in range(10, 28, 2))


def refs(*gpus: int, node: int = 0) -> tuple[GpuRef, ...]:
    return tuple(GpuRef(node, gpu) for gpu in gpus)


def curve(
    topology: Topology,
    members: tuple[GpuRef, ...],
    gbps: float,
    *,
    alpha_s: float = 10e-6,
    operation: str = "all_reduce",
    noise: float = 0.01,
    rounds: int = 3,
    seed: int = 0,
    **key: object,
) -> Curve:
    chance = random.Random(str((members, gbps, seed)))
    direction = "forward" if operation == "p2p" else None
    told = CurveKey(operation, group_shape(topology, members), "bfloat16", "nccl", direction=direction, **key)  # type: ignore[arg-type]

    def times(size: int) -> tuple[float, ...]:
        return tuple((alpha_s + size / (gbps * 1e9)) * chance.lognormvariate(0, noise) for _ in range(20))

    return Curve(told, tuple(Sample(s, tuple(times(s) for _ in range(rounds))) for s in SIZES), members)


def measured(
    topology: Topology, gbps: float, *, hbm: float = 700.0, tflops: float = 250.0, alpha_s: float = 10e-6, seed: int = 0
) -> Survey:
    """Groups of the first 2, 4 and 8 GPUs, as fast as `gbps` says; and what each GPU does alone."""
    n = len(topology.nodes[0].gpus)
    groups = [refs(*range(k)) for k in (2, 4, 8) if k <= n]
    curves = [curve(topology, g, gbps, alpha_s=alpha_s, seed=seed) for g in groups]
    curves += [curve(topology, groups[0], gbps, alpha_s=alpha_s, operation="p2p", seed=seed)]
    every = refs(*range(n))
    rates = [Rate("hbm_read", g, hbm, "GB/s") for g in every]
    rates += [Rate("gemm", g, tflops, "TFLOP/s", "bfloat16", (4096, 8192, 8192)) for g in every]
    return Survey(topology, tuple(curves), tuple(rates))


def of(a: Survey | Topology, b: Survey | Topology, served: Serving | None = None) -> Comparison:
    """Of two machines that nothing but their surveys tells apart."""
    sides = [s if isinstance(s, Survey) else Survey(s) for s in (a, b)]
    return compare(Side("a.json", sides[0]), Side("b.json", sides[1]), served)


def verdicts(c: Comparison) -> dict[Kind, Verdict]:
    """By kind; of a kind judged in parts the last, which is the worse."""
    return {j.kind: j.verdict for j in c.judgements}


def judged(c: Comparison, kind: Kind) -> Judgement:
    return next(j for j in c.judgements if j.kind is kind)


# ---- what was not measured ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hgx-h100", "l40s-8", "2xhgx-h100", "gb200-nvl72", "3090-bridges-4", "h100-1", "mi300x-8"]
)
def test_everything_carries_over_to_the_same_input(name: str) -> None:
    side = Side(name, Survey(machine(name)))
    same = compare(side, side)
    assert same.carries_over
    assert set(verdicts(same).values()) == {Verdict.CARRIES}
    assert not same.differences
    assert same.verdict == "Numbers measured on A carry over to B"


def test_pcie_that_nobody_timed_carries_nothing_however_equal_the_descriptions() -> None:
    equal = of(machine("l40s-8"), machine("l40s-8"))
    assert not equal.differences
    assert verdicts(equal)[Kind.COMPUTE] is Verdict.CARRIES
    assert verdicts(equal)[Kind.PCIE] is Verdict.UNKNOWN
    assert "14-fold" in judged(equal, Kind.PCIE).reason
    assert not equal.carries_over
    assert any("wirelore measure" in text for text in equal.measure)


def test_one_side_timed_is_not_enough_and_the_other_is_named() -> None:
    a, b = measured(machine("l40s-8"), 18.0), Survey(machine("l40s-8"))
    for pair, missing in (((a, b), "B"), ((b, a), "A")):
        pcie = judged(of(*pair), Kind.PCIE)
        assert pcie.verdict is Verdict.UNKNOWN
        assert f"nobody timed it on {missing}," in pcie.reason
        assert pcie.measure is not None
        assert f"on {missing}," in pcie.measure


def test_equal_nvlink_carries_over_within_what_public_figures_leave() -> None:
    equal = of(machine("hgx-h100"), machine("hgx-h100"))
    assert verdicts(equal)[Kind.ISLAND] is Verdict.CARRIES
    assert "30%" in judged(equal, Kind.ISLAND).reason
    assert equal.carries_over


def test_a_measurement_that_contradicts_the_catalog_is_no_basis_for_the_twin() -> None:
    slow = measured(machine("hgx-h100"), 20.0, hbm=3000, tflops=700)
    assert verdicts(of(slow, machine("hgx-h100")))[Kind.ISLAND] is Verdict.UNKNOWN
    usual = measured(machine("hgx-h100"), 210.0, hbm=3000, tflops=700)
    assert verdicts(of(usual, machine("hgx-h100")))[Kind.ISLAND] is Verdict.CARRIES
    throttled = measured(machine("hgx-h100"), 210.0, hbm=1500, tflops=700)
    assert verdicts(of(throttled, machine("hgx-h100")))[Kind.COMPUTE] is Verdict.UNKNOWN


def test_other_links_and_other_gpus_carry_a_ratio_with_its_doubt() -> None:
    other = of(machine("hgx-h100"), machine("hgx-a100"))
    compute, island = judged(other, Kind.COMPUTE), judged(other, Kind.ISLAND)
    assert compute.verdict is island.verdict is Verdict.RATIO
    assert compute.ratio is not None
    assert compute.ratio.high == pytest.approx(2039 / 3350, rel=0.02), "memory: 2.04 of 3.35 TB/s"
    assert compute.ratio.low == pytest.approx(312 / 989, rel=0.02), "matrices: 312 of 989 TFLOPS"
    assert compute.provenance is Provenance.CATALOG
    assert "0.66 x for large" in island.reason, "12 of 18 links"
    back = judged(of(machine("hgx-a100"), machine("hgx-h100")), Kind.COMPUTE).ratio
    assert back is not None
    assert back.low == pytest.approx(1 / compute.ratio.high)


def test_a_machine_without_a_fabric_takes_none_of_its_numbers() -> None:
    without = of(machine("hgx-h100"), machine("l40s-8"))
    assert verdicts(without)[Kind.ISLAND] is Verdict.NOT
    assert Kind.PCIE not in verdicts(without), "A has no number of PCIe to carry"
    assert judged(of(machine("l40s-8"), machine("hgx-h100")), Kind.PCIE).verdict is Verdict.NOT


def test_a_smaller_island_takes_the_numbers_of_small_groups() -> None:
    part = of(machine("hgx-h100"), machine("hgx-h100-4"))
    small, large = (j for j in part.judgements if j.kind is Kind.ISLAND)
    assert (small.verdict, small.scope) == (Verdict.CARRIES, "up to 4 GPUs")
    assert large.verdict is Verdict.NOT
    assert not part.carries_over
    rack = [j for j in of(machine("gb200-nvl72"), machine("hgx-b200")).judgements if j.kind is Kind.ISLAND]
    assert [j.scope for j in rack] == ["up to 8 GPUs", "larger groups"]


def test_the_network_is_never_known_from_its_line_rate() -> None:
    assert verdicts(of(machine("2xhgx-h100"), machine("2xhgx-h100")))[Kind.NETWORK] is Verdict.UNKNOWN
    assert verdicts(of(machine("2xhgx-h100"), machine("hgx-h100")))[Kind.NETWORK] is Verdict.NOT
    assert Kind.NETWORK not in verdicts(of(machine("gb200-nvl72"), machine("gb200-nvl72"))), "one NVLink domain"


def test_gpus_without_a_name_are_asked_for() -> None:
    bare = of(cluster_of(node_of(2, 48)), cluster_of(node_of(2, 48)))
    compute = judged(bare, Kind.COMPUTE)
    assert compute.verdict is Verdict.UNKNOWN
    assert compute.measure is not None
    assert "--gpu-model" in compute.measure
    linked = cluster_of(node_of(2, 48, {(0, 1): 4}))
    assert verdicts(of(linked, linked))[Kind.ISLAND] is Verdict.UNKNOWN, "four links of which generation?"
    assert not [f for f in bare.facts if f.ratio], "rates that are merely assumed are no figures of theirs"


def test_the_same_gpus_are_the_same_machine_whatever_the_files_are_called() -> None:
    topology = machine("l40s-8")
    node = topology.nodes[0]
    one = replace(
        topology, nodes=(replace(node, gpus=tuple(replace(g, uuid=f"GPU-{i}") for i, g in enumerate(node.gpus))),)
    )
    two = replace(
        topology, nodes=(replace(node, gpus=tuple(replace(g, uuid=f"GPU-x{i}") for i, g in enumerate(node.gpus))),)
    )
    assert verdicts(of(one, one))[Kind.PCIE] is Verdict.CARRIES
    assert verdicts(of(one, two))[Kind.PCIE] is Verdict.UNKNOWN
    assert verdicts(of(measured(one, 18.0), one))[Kind.PCIE] is Verdict.CARRIES


# ---- what was measured on both --------------------------------------------------------------------------------------


def test_equal_figures_carry_over_and_noise_is_no_difference() -> None:
    a, b = measured(machine("l40s-8"), 18.0, seed=1), measured(machine("l40s-8"), 18.2, seed=2)
    both = of(a, b)
    assert both.carries_over
    assert judged(both, Kind.PCIE).provenance is Provenance.MEASURED
    assert not [d for d in both.differences if d.ratio]
    assert len([d for d in both.equal if d.ratio]) == 2 + 3 * 4, "2 rates; 4 curves, each small, between and large"


def test_a_host_14_times_slower_for_large_messages_is_no_one_ratio() -> None:
    good, bad = measured(machine("l40s-8"), 20.7), measured(machine("l40s-8"), 1.45)
    both = of(good, bad)
    pcie = judged(both, Kind.PCIE)
    assert verdicts(both)[Kind.COMPUTE] is Verdict.CARRIES
    assert pcie.verdict is Verdict.NOT
    large = [d for d in both.differences if d.ratio and d.affects == (Effect.BANDWIDTH,)]
    assert large
    assert all(d.ratio.low == pytest.approx(1 / 14, rel=0.1) for d in large if d.ratio)
    small = next(f for f in both.facts if f.affects == (Effect.LATENCY,) and f.ratio and "all_reduce of 2" in f.subject)
    assert small.ratio is not None
    assert small.ratio.high == pytest.approx(1.0, rel=0.1), "1 KiB: start-up alone"


def test_a_constant_factor_is_a_ratio() -> None:
    a, b = measured(machine("l40s-8"), 18.0, alpha_s=10e-6), measured(machine("l40s-8"), 12.0, alpha_s=15e-6)
    pcie = judged(of(a, b), Kind.PCIE)
    assert pcie.verdict is Verdict.RATIO
    assert pcie.ratio is not None
    assert pcie.ratio.value == pytest.approx(2 / 3, rel=0.02)


def test_figures_too_noisy_to_compare_tell_nothing() -> None:
    topology = machine("l40s-8")
    a, b = (Survey(topology, (curve(topology, refs(0, 1), 18.0, noise=0.8, rounds=2, seed=seed),)) for seed in (1, 2))
    pcie = judged(of(a, b), Kind.PCIE)
    assert pcie.verdict is Verdict.UNKNOWN
    assert pcie.measure is not None
    assert "--budget" in pcie.measure


def test_one_odd_size_is_no_difference_and_three_in_a_row_are() -> None:
    topology = machine("l40s-8")
    a = Survey(topology, (curve(topology, refs(0, 1), 18.0, noise=0.002),))

    def slower(*places: int) -> Survey:
        own = curve(topology, refs(0, 1), 18.0, noise=0.002, seed=3)
        samples = [
            replace(s, rounds_s=tuple(tuple(t * 1.3 for t in one) for one in s.rounds_s)) if i in places else s
            for i, s in enumerate(own.samples)
        ]
        return Survey(topology, (replace(own, samples=tuple(samples)),))

    assert verdicts(of(a, slower(4)))[Kind.PCIE] is Verdict.CARRIES
    assert verdicts(of(a, slower(6, 7, 8)))[Kind.PCIE] is not Verdict.CARRIES


def test_what_was_timed_on_a_alone_is_named() -> None:
    whole = measured(machine("l40s-8"), 18.0)
    part = replace(whole, curves=tuple(c for c in whole.curves if c.ranks < 8))
    assert "8 GPUs were timed on A alone" in judged(of(whole, part), Kind.PCIE).reason
    assert "alone" not in judged(of(part, whole), Kind.PCIE).reason


def test_gloo_and_nccl_are_never_compared() -> None:
    a = measured(machine("l40s-8"), 18.0)
    b = replace(a, curves=tuple(replace(c, key=replace(c.key, backend="gloo")) for c in a.curves))
    pcie = judged(of(a, b), Kind.PCIE)
    assert pcie.verdict is Verdict.UNKNOWN
    assert "no like group" in pcie.reason


def test_groups_on_other_levels_of_pcie_stand_beside_each_other_with_both_named() -> None:
    a, b = measured(machine("l40s-8"), 18.0), measured(machine("4090-8"), 9.0, alpha_s=20e-6)
    both = of(a, b)
    assert judged(both, Kind.PCIE).verdict is Verdict.RATIO
    assert any("on PXB / NODE" in d.subject for d in both.differences)


def test_lab_figures_say_nothing_of_the_hardware() -> None:
    real = measured(machine("l40s-8"), 18.0)
    lab = replace(measured(machine("l40s-8"), 0.5), lab="CPU ranks of some host")
    both = of(real, lab)
    assert verdicts(both)[Kind.PCIE] is Verdict.UNKNOWN
    assert verdicts(both)[Kind.COMPUTE] is Verdict.CARRIES
    assert both.verdict.startswith("LAB FIGURES, on B not of the hardware. ")
    assert any("CPU ranks of some host" in note and "nothing of the hardware" in note for note in both.notes)
    labs = of(lab, replace(lab, curves=real.curves))
    assert verdicts(labs)[Kind.PCIE] is not Verdict.UNKNOWN, "two labs stand beside each other"
    assert labs.verdict.startswith("LAB FIGURES, on A and B")


def test_software_and_broken_p2p_are_among_the_differences() -> None:
    a = measured(machine("l40s-8"), 18.0)
    b = replace(a, environment=(("torch", "2.13.0"), ("NCCL_P2P_DISABLE", "1")))
    b = replace(
        b,
        verifications=(Verification(GpuRef(0, 0), GpuRef(0, 1), False),),
        curves=measured(machine("l40s-8"), 18.1).curves,
    )
    a = replace(a, environment=(("torch", "2.12.0"),))
    told = {d.subject: d for d in of(a, b).differences}
    assert told["torch"].a is not None
    assert told["torch"].a.text == "2.12.0"
    assert told["NCCL_P2P_DISABLE"].a is not None
    assert told["NCCL_P2P_DISABLE"].a.text == "not set"
    alone = {d.subject: d for d in of(a, b).told_by_one}
    assert alone["P2P"].b is not None
    assert "WRONG" in alone["P2P"].b.text
    assert Effect.BANDWIDTH in alone["P2P"].affects


# ---- with a model ---------------------------------------------------------------------------------------------------


def small_8b() -> ModelSpec:
    return dense(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256)


def served(a: Survey | Topology, b: Survey | Topology, model: ModelSpec, *, same: bool = False) -> Serving:
    one, two = (s if isinstance(s, Survey) else Survey(s) for s in (a, b))
    return serving(one, two, model, LOAD, VLLM, same=same)


def test_on_the_same_machine_the_ratio_is_one_without_doubt() -> None:
    told = served(machine("hgx-h100"), machine("hgx-h100"), llama_70b(), same=True)
    assert (told.tokens_ratio, told.tpot_ratio, told.uncertainty) == (1.0, 1.0, 0.0)
    assert told.same_plan
    assert of(machine("hgx-h100"), machine("hgx-h100"), told).carries_over


def test_the_ratio_is_that_of_what_each_side_predicts() -> None:
    told = served(machine("hgx-h100"), machine("hgx-a100"), llama_70b())
    assert isinstance(told.on_a, Served)
    assert isinstance(told.on_b, Served)
    each = [s.predictions.output_tokens_per_s_per_gpu or 0 for s in (told.on_a, told.on_b)]
    assert told.tokens_ratio == pytest.approx(each[1] / each[0], rel=1e-3)
    tpot = [s.predictions.tpot_s or 0 for s in (told.on_a, told.on_b)]
    assert told.tpot_ratio == pytest.approx(tpot[1] / tpot[0], rel=1e-3)
    assert told.tokens_ratio is not None
    assert told.tpot_ratio is not None
    assert told.tokens_ratio < 1 < told.tpot_ratio
    assert told.uncertainty is not None
    assert 0.02 < told.uncertainty < 0.3
    c = of(machine("hgx-h100"), machine("hgx-a100"), told)
    assert judged(c, Kind.SERVING).verdict is Verdict.RATIO
    assert f"{told.tokens_ratio:.2f} x on B" in c.verdict
    assert "of each token's" in c.verdict


def test_wires_that_nobody_timed_leave_a_serving_number_open_and_measuring_settles_it() -> None:
    model = llama_70b()
    unmeasured = served(machine("l40s-8"), machine("l40s-8"), model)
    assert unmeasured.wires_unmeasured == ("A", "B")
    assert verdicts(of(machine("l40s-8"), machine("l40s-8"), unmeasured))[Kind.SERVING] is Verdict.UNKNOWN
    a, b = measured(machine("l40s-8"), 18.0, seed=1), measured(machine("l40s-8"), 18.1, seed=2)
    settled = served(a, b, model)
    assert settled.wires_unmeasured == ()
    assert of(a, b, settled).carries_over
    half = measured(machine("l40s-8"), 18.0), measured(machine("l40s-8"), 2.0)
    slower = served(*half, model)
    assert slower.tokens_ratio is not None
    assert slower.tokens_ratio < 0.7
    assert verdicts(of(*half, slower))[Kind.SERVING] is not Verdict.CARRIES
    assert "all-reduce" in (slower.spent or "")


def test_an_engines_own_kernel_on_timed_wires_is_no_unmeasured_wire() -> None:
    """Pairs on PCIe: vLLM's own all-reduce has a public start-up time, and the measured bandwidth."""
    a, b = measured(machine("l40s-8"), 18.0, seed=1), measured(machine("l40s-8"), 18.1, seed=2)
    told = served(a, b, small_8b())
    assert told.on_a is not None
    assert told.on_a.parallelism.tp == 2
    assert told.wires_unmeasured == ()
    assert of(a, b, told).carries_over


def test_what_shakes_is_noted() -> None:
    topology = machine("l40s-8")
    own = curve(topology, refs(0, 1), 18.0)
    rounds = [
        tuple(tuple(t * f for t in one) for one, f in zip(s.rounds_s, (1, 1.5, 2), strict=True)) for s in own.samples
    ]
    shaky = Survey(topology, (replace(own, samples=tuple(map(Sample, SIZES, rounds))),))
    both = of(shaky, Survey(topology, (own,)))
    assert [note for note in both.notes if "1 of 1 curve on A drifts" in note]
    assert not [note for note in both.notes if "on B" in note and "drift" in note]


def test_without_messages_between_gpus_their_wires_do_not_matter() -> None:
    """One GPU holds the model and replicas share nothing: what nobody knows of PCIe leaves the number alone."""
    small = dense(layers=16, hidden=2048, heads=32, kv_heads=8, intermediate=8192)
    told = served(machine("h100-pcie-8"), machine("h100-pcie-8"), small)
    assert told.on_a is not None
    assert told.on_a.parallelism.gpus_per_replica == 1
    assert told.wires_share == 0
    c = of(machine("h100-pcie-8"), machine("h100-pcie-8"), told)
    assert verdicts(c)[Kind.PCIE] is Verdict.UNKNOWN
    assert c.carries_over


def test_a_plan_that_b_cannot_hold_names_the_law() -> None:
    model = llama_70b()
    told = served(machine("hgx-h100"), machine("hgx-h100-2"), model)
    assert told.on_a is not None
    assert told.on_b is None
    assert told.law
    assert verdicts(of(machine("hgx-h100"), machine("hgx-h100-2"), told))[Kind.SERVING] is Verdict.NOT
    none_b = served(machine("hgx-h100"), machine("t4-4"), model)
    assert none_b.best_on_b is None
    assert (none_b.law or "").startswith("on B, ")
    none_a = served(machine("t4-4"), machine("hgx-h100"), model)
    assert none_a.on_a is None
    assert none_a.best_on_b is not None
    assert verdicts(of(machine("t4-4"), machine("hgx-h100"), none_a))[Kind.SERVING] is Verdict.UNKNOWN


def test_fewer_gpus_hold_fewer_replicas_and_each_keeps_its_load() -> None:
    model = small_8b()
    told = served(machine("hgx-h100"), machine("hgx-h100-4"), model)
    assert told.on_a is not None
    assert told.on_b is not None
    a, b = told.on_a.parallelism, told.on_b.parallelism
    assert (a.tp, a.pp) == (b.tp, b.pp)
    assert b.dp == a.dp // 2
    assert told.tokens_ratio == pytest.approx(1.0, abs=0.02)
    more = served(machine("hgx-h100-4"), machine("2xhgx-h100"), model)
    assert more.on_a is not None
    assert more.on_b is not None
    assert more.on_b.parallelism.dp == more.on_a.parallelism.dp
    assert more.tokens_ratio == pytest.approx(1.0, abs=0.05)


def test_the_slow_wires_show_in_another_best_plan() -> None:
    """The same box, one with wires so slow that TP no longer pays: the plan differs, and A's one falls behind."""
    a, b = measured(machine("l40s-8"), 200.0, alpha_s=5e-6), measured(machine("l40s-8"), 0.8, alpha_s=80e-6)
    told = served(a, b, llama_70b())
    assert told.on_a is not None
    assert told.best_on_b is not None
    assert not told.same_plan
    assert told.on_a.parallelism.tp > told.best_on_b.parallelism.tp
    assert told.behind_best is not None
    assert told.behind_best > 0.2


# ---- any two machines -----------------------------------------------------------------------------------------------

NAMES = ("hgx-h100", "2xhgx-a100", "l40s-8", "3090-bridges-4", "h100-1", "mi300x-8", "dgx1-v100", "1xl4-8+1xhgx-h100")
SURVEYS = (
    st.sampled_from(NAMES)
    .map(machine)
    .flatmap(lambda t: st.sampled_from([Survey(t), measured(t, 20.0) if len(t.nodes[0].gpus) > 1 else Survey(t)]))
)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(SURVEYS, SURVEYS)
def test_whatever_the_two_are_each_verdict_has_its_reason(a: Survey, b: Survey) -> None:
    both = of(a, b)
    kinds = [j.kind for j in both.judgements]
    assert {Kind.COMPUTE, Kind.SERVING} <= set(kinds)
    for one in both.judgements:
        assert one.reason
        assert one.verdict is not Verdict.UNKNOWN or one.measure in both.measure
    assert both.carries_over == all(j.verdict is Verdict.CARRIES for j in both.judgements)
    assert "\n" not in both.verdict
    assert len(both.differences) + len(both.equal) + len(both.told_by_one) == len(both.facts)
    assert json.loads(encode_comparison(both))["carries_over"] is both.carries_over


def test_a_ratio_beside_times_is_one_of_speeds_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = measured(machine("l40s-8"), 18.0, alpha_s=10e-6), measured(machine("l40s-8"), 12.0, alpha_s=20e-6)
    print_comparison(of(a, b))
    told = capsys.readouterr().out
    head = next(line for line in told.splitlines() if line.split()[:1] == ["what"])
    assert "speed, B/A" in head
    times = [line for line in told.splitlines() if re.search(r"20\.1 to 21\.\d us +0\.50\d x +latency", line)]
    assert len(times) == 4, "twice the time is half the speed"
    assert any(re.search(r"21\.\d us .*\(speed 0\.50\d x\)", text) for _, text in changes(of(a, b)))


def test_it_prints_narrow_lines_without_codes(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = replace(Survey(machine("3090-bridges-4")), environment=(("NCCL_ALGO", "[bold]\x1b[31mno[/]"),))
    print_comparison(compare(Side("\x1b[31ma", hostile), Side("b" * 500, measured(machine("l40s-8"), 9.0))))
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "[bold]" in told
    assert all(len(line) <= 110 for line in told.splitlines())


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_says_it_in_the_first_line_and_strict_ends_with_1(tmp_path: Path) -> None:
    told = wirelore("compare", "machine:hgx-h100", "machine:l40s-8").data()
    first = told.partition("\n")[0]
    assert first.startswith("No number measured on A carries over to B as it is")
    assert "What would tell" in told
    assert wirelore("compare", "machine:hgx-h100", "machine:l40s-8", "--strict").code == 1
    assert wirelore("compare", "machine:hgx-h100", "machine:hgx-h100", "--strict").code == 0
    survey = tmp_path / "a.json"
    survey.write_bytes(encode_survey(measured(machine("l40s-8"), 18.0)))
    (tmp_path / "copy.json").write_bytes(survey.read_bytes())
    assert wirelore("compare", survey, tmp_path / "copy.json", "--strict").code == 0


def test_json_is_versioned_and_holds_every_number_with_its_provenance(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    ended = wirelore(
        "compare", "machine:hgx-h100", "machine:hgx-a100", "--model", "llama-3.1-8b", "--offline", "-o", file
    )
    assert (ended.code, ended.out) == (0, "")
    told = json.loads(file.read_bytes())
    assert told["schema_version"] == 1
    assert told["carries_over"] is False
    assert {j["kind"] for j in told["judgements"]} >= {"compute rates", "serving"}
    assert all(j["provenance"] in [p.value for p in Provenance] for j in told["judgements"])
    for difference in told["differences"]:
        assert difference["a"]["provenance"]
        assert difference["b"]["provenance"]
    assert 0 < told["serving"]["tokens_ratio"] < 1
    printed = wirelore("compare", "machine:hgx-h100", "machine:hgx-a100", "--format", "json").data()
    assert json.loads(printed)["serving"] is None
    assert "carries_over" in wirelore("schema", "comparison").data()


def test_text_of_two_hosts_and_what_cannot_be_read(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(matrix("X NV4 SYS", "NV4 X SYS", "SYS SYS X"))
    told = wirelore("compare", tmp_path / "a.txt", tmp_path / "b.txt").data()
    assert "cannot be told" in told
    assert "--gpu-model" in told
    assert wirelore("compare", tmp_path / "a.txt", "-", stdin=(tmp_path / "b.txt").read_bytes()).code == 0
    twice = wirelore("compare", "-", "-", stdin=b"")
    assert twice.code == 2
    assert wirelore("compare", tmp_path / "a.txt", tmp_path / "none.txt").code == 4
    assert wirelore("compare", "machine:hgx-h100", "machine:l40s-8", "--model", "no/such-model", "--offline").code == 2


def test_what_the_cache_knows_of_another_host_is_no_measurement_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a plan, figures of equal wires are the best there are; here they are the question."""
    topology = machine("l40s-8")
    topology = replace(topology, nodes=(replace(topology.nodes[0], driver_version="570.1"),))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remember(measured(topology, 18.0)).file is not None
    for name, gbps in (("a", 18.0), ("b", None)):
        survey = measured(topology, gbps) if gbps else Survey(topology)
        (tmp_path / f"{name}.json").write_bytes(encode_survey(survey))
    known = {"XDG_CACHE_HOME": str(tmp_path)}
    planned = wirelore("plan", "llama-3.1-8b", "--from", tmp_path / "b.json", environ=known).data()
    assert "(cache" in "".join(planned.split()), "however it is wrapped"
    told = wirelore("compare", tmp_path / "a.json", tmp_path / "b.json", environ=known).data()
    assert "nobody timed it on B" in told
