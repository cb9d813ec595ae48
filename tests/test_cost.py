"""The cost model: what it must do on any machine, whatever its constants."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from builders import dense, llama_70b
from hypothesis import given, settings
from hypothesis import strategies as st

from configgen.cost import HOST, Estimate, bubble, estimate
from configgen.engines.rules import engine_traits
from configgen.model import ModelSpec
from configgen.model_config import spec_from_config
from configgen.passes import Machine
from configgen.plan import EngineTraits, Parallelism, Workload
from configgen.rates import rates_of
from configgen.wires import Wires
from probe.islands import GroupShape, group_shape
from probe.measurement import Curve, CurveKey, Rate, Sample, Survey
from probe.sources.machines import machine
from probe.topology import GpuRef, Node, Provenance, Topology

VLLM = engine_traits("vllm")
NCCL_ONLY = replace(VLLM, custom_all_reduce_sizes=frozenset())
LOAD = Workload(input_tokens=1024, output_tokens=256, concurrency=16)


def gpus(n: int, first: int = 0, node: int = 0) -> tuple[GpuRef, ...]:
    return tuple(GpuRef(node, first + i) for i in range(n))


def curve(operation: str, group: GroupShape, alpha_s: float, gbps: float, direction: str | None = None) -> Curve:
    """A straight line of time over bytes, from 1 KiB to 1 GiB."""
    key = CurveKey(operation, group, "bfloat16", "nccl", direction=direction)
    sizes = [1 << k for k in range(10, 31, 2)]
    return Curve(key, tuple(Sample(s, ((alpha_s + s / (gbps * 1e9),) * 5,) * 3) for s in sizes))


def survey_of(topology: Topology, *, memory_gbps: float, tflops: float, wire_gbps: float, alpha_s: float) -> Survey:
    """All wires of a node alike, and measured; the GPUs too."""
    every = gpus(topology.gpu_count)
    rates = [
        rate
        for ref in every
        for rate in (
            Rate("hbm_read", ref, memory_gbps, "GB/s"),
            Rate("gemm", ref, tflops, "TFLOPS", "bfloat16", (4096, 8192, 8192)),
        )
    ]
    curves: dict[CurveKey, Curve] = {}
    for n in range(2, len(every) + 1):
        for group in combinations(every, n):
            for operation in ("all_reduce", "all_gather", "reduce_scatter", *(("p2p",) if n == 2 else ())):
                direction = "forward" if operation == "p2p" else None
                made = curve(operation, group_shape(topology, group), alpha_s, wire_gbps, direction)
                curves[made.key] = made
    return Survey(topology, curves=tuple(curves.values()), rates=tuple(rates))


def tell(
    survey: Survey | Machine,
    model: ModelSpec,
    tp: int = 1,
    pp: int = 1,
    *,
    load: Workload = LOAD,
    traits: EngineTraits = NCCL_ONLY,
    room: int | None = None,
    **inner: int,
) -> Estimate:
    shape = Parallelism(tp, pp, **inner)
    stages = [gpus(tp, first) for first in range(0, tp * pp, tp)]
    return estimate(survey, model, shape, traits.split(model.layers, pp), stages, load, traits, room)


def small_moe(**more: object) -> ModelSpec:
    config: dict[str, object] = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_hidden_layers": 8,
        "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 32000,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 64, "num_experts_per_tok": 8,
        "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return spec_from_config(config | more, name="test/moe", source="a test")


def test_eight_stages_and_32_micro_batches_idle_17_9_percent() -> None:
    assert bubble(8, 32) == pytest.approx(0.179, abs=5e-4)
    assert bubble(1, 4) == 0


def test_a_decode_step_pays_two_all_reduces_a_layer_of_tokens_times_hidden_times_dtype() -> None:
    topology, model = machine("hgx-h100-4"), dense(layers=10, hidden=4096, heads=32)
    alpha_s, gbps = 20e-6, 50.0
    survey = survey_of(topology, memory_gbps=3000, tflops=700, wire_gbps=gbps, alpha_s=alpha_s)
    found = tell(survey, model, tp=4)
    spent = sum(p.seconds for p in found.parts if p.phase == "decode" and p.name == "all-reduce")
    size = LOAD.concurrency * 4096 * 2
    assert spent == pytest.approx(2 * 10 * (alpha_s + size / (gbps * 1e9)), rel=1e-3)
    assert {p.provenance for p in found.parts if p.name == "all-reduce"} == {Provenance.MEASURED}


def test_the_decode_parts_add_up_to_tpot() -> None:
    topology = machine("l40s-8")
    for tp, pp in ((1, 1), (8, 1), (2, 4), (1, 8)):
        found = tell(Survey(topology), llama_70b({"quant_method": "fp8"}), tp, pp)
        assert sum(p.seconds for p in found.parts if p.phase == "decode") == pytest.approx(found.tpot_s)


def test_throughput_is_what_the_loop_of_requests_gives() -> None:
    found = tell(Survey(machine("hgx-h100")), llama_70b(), tp=4)
    life = found.ttft_s + (LOAD.output_tokens - 1) * found.tpot_s
    assert found.output_tokens_per_s_per_gpu * 4 == pytest.approx(LOAD.concurrency * LOAD.output_tokens / life)


def test_reading_the_weights_bounds_a_decode_step_from_below() -> None:
    model, load = llama_70b(), replace(LOAD, concurrency=1)
    found = tell(Survey(machine("hgx-h200")), model, tp=4, load=load)
    assert found.tpot_s > model.weight_bytes / 4 / 4.8e12
    assert found.tpot_s < 3 * model.weight_bytes / 4 / 4.8e12


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    memory=st.floats(300, 8000),
    tflops=st.floats(50, 2000),
    wire=st.floats(0.5, 800),
    alpha=st.floats(2e-6, 2e-4),
    faster=st.sampled_from(("memory_gbps", "tflops", "wire_gbps", "alpha_s")),
    factor=st.floats(1.0, 20.0),
    load=st.builds(Workload, st.sampled_from((64, 1024, 8192)), st.sampled_from((1, 16, 512)), st.integers(1, 256)),
)
def test_more_bandwidth_never_makes_the_best_latency_worse(
    memory: float, tflops: float, wire: float, alpha: float, faster: str, factor: float, load: Workload
) -> None:
    topology, model = machine("hgx-h100-4"), dense(layers=16, hidden=4096, heads=32, kv_heads=8)
    figures = {"memory_gbps": memory, "tflops": tflops, "wire_gbps": wire, "alpha_s": alpha}
    better = figures | {faster: figures[faster] / factor if faster == "alpha_s" else figures[faster] * factor}
    best: list[float] = []
    whole: list[float] = []
    for some in (figures, better):
        machine_of = Machine(survey_of(topology, **some))
        cuts = [tell(machine_of, model, tp, pp, load=load) for tp, pp in ((1, 1), (2, 1), (4, 1), (2, 2), (1, 4))]
        best.append(min(e.tpot_s for e in cuts))
        whole.append(min(e.ttft_s + (load.output_tokens - 1) * e.tpot_s for e in cuts))
    assert best[1] <= best[0] * (1 + 1e-9)
    assert whole[1] <= whole[0] * (1 + 1e-9)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(order=st.permutations(range(8)), tp=st.sampled_from((1, 2, 4, 8)), spread=st.booleans())
def test_equal_gpus_in_another_order_change_nothing(order: list[int], tp: int, spread: bool) -> None:
    survey, model = Survey(machine("hgx-h100")), small_moe()
    pp = 8 // tp
    shape = Parallelism(tp, pp, ep=tp if spread else 1)
    layers = VLLM.split(model.layers, pp)
    straight = [gpus(tp, first) for first in range(0, 8, tp)]
    shuffled = [tuple(GpuRef(0, order[ref.gpu]) for ref in stage) for stage in straight]
    assert estimate(survey, model, shape, layers, straight, LOAD, VLLM) == estimate(
        survey, model, shape, layers, shuffled, LOAD, VLLM
    )


def test_a_slow_wire_turns_tensor_parallel_into_stages() -> None:
    """The same GPUs and model: only what was measured between them differs."""
    topology, model = machine("l40s-8"), llama_70b({"quant_method": "fp8"})

    def rates(wire_gbps: float, alpha_s: float) -> tuple[float, float]:
        four = Topology(topology.nodes)
        survey = survey_of_some(four, wire_gbps, alpha_s)
        load = replace(LOAD, concurrency=64)
        tensor, stages = (tell(survey, model, tp, pp, load=load) for tp, pp in ((8, 1), (2, 4)))
        return tensor.output_tokens_per_s_per_gpu, stages.output_tokens_per_s_per_gpu

    slow_tp, slow_pp = rates(1.0, 1e-4)
    fast_tp, fast_pp = rates(400.0, 5e-6)
    assert slow_pp > 1.5 * slow_tp
    assert fast_tp > fast_pp


def survey_of_some(topology: Topology, wire_gbps: float, alpha_s: float) -> Survey:
    """Curves of the groups that TP8 and TP2 x PP4 on one node use."""
    curves = {}
    for n in (2, 4, 8):
        for first in range(0, 8, n):
            shape = group_shape(topology, gpus(n, first))
            for operation in ("all_reduce", "all_gather"):
                made = curve(operation, shape, alpha_s, wire_gbps)
                curves[made.key] = made
    for a, b in combinations(range(8), 2):
        made = curve("p2p", group_shape(topology, (GpuRef(0, a), GpuRef(0, b))), alpha_s, wire_gbps, "forward")
        curves[made.key] = made
    return Survey(topology, curves=tuple(curves.values()))


def test_more_experts_are_read_when_more_tokens_choose() -> None:
    survey, model = Survey(machine("hgx-h100")), small_moe()

    def read(concurrency: int) -> float:
        found = tell(survey, model, load=replace(LOAD, concurrency=concurrency))
        return sum(p.seconds for p in found.parts if p.phase == "decode" and p.name == "weights")

    assert read(1) < 0.5 * read(8) < read(64)
    assert read(64) < 1.1 * read(32)  # by then nearly all are


def test_latent_attention_prefers_to_run_alone_on_each_rank() -> None:
    """Under TP every rank reads the one latent of every sequence; under attention-DP each its own sequences'."""
    config: dict[str, object] = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_hidden_layers": 8,
        "hidden_size": 4096, "num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 32000,
        "intermediate_size": 8192, "moe_intermediate_size": 1024, "n_routed_experts": 64, "num_experts_per_tok": 8,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 512, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 65536,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    model = spec_from_config(config, name="test/mla", source="a test")
    load = Workload(16384, 1024, 256)
    together = tell(Survey(machine("hgx-h200")), model, tp=8, ep=8, load=load)
    alone = tell(Survey(machine("hgx-h200")), model, tp=8, ep=8, attention_dp=8, load=load)
    assert alone.share("kv") < 0.5 * together.share("kv")
    assert alone.tpot_s < together.tpot_s


def test_what_memory_does_not_hold_waits_and_does_not_speed_up() -> None:
    survey, load = Survey(machine("hgx-h100")), replace(LOAD, concurrency=64)
    free, tight = (tell(survey, llama_70b(), tp=4, load=load, room=room) for room in (None, 16))
    assert tight.ttft_s > 3 * free.ttft_s
    assert tight.tpot_s < free.tpot_s
    assert tight.output_tokens_per_s_per_gpu < free.output_tokens_per_s_per_gpu


def test_prompts_that_go_first_are_waited_for_and_stretch_decoding_less() -> None:
    survey, load = Survey(machine("hgx-h100")), Workload(4096, 128, 64)
    mixed, first = (
        tell(survey, llama_70b(), tp=4, load=load, traits=replace(VLLM, prompts_first=flag)) for flag in (False, True)
    )
    assert first.ttft_s > 2 * mixed.ttft_s
    assert first.tpot_s < mixed.tpot_s
    assert first.output_tokens_per_s_per_gpu == pytest.approx(mixed.output_tokens_per_s_per_gpu, rel=0.15)


def test_uncertainty_follows_what_the_inputs_rest_on() -> None:
    topology, model = machine("hgx-h100-4"), llama_70b()
    measured = survey_of(topology, memory_gbps=3000, tflops=700, wire_gbps=300, alpha_s=1e-5)
    known, described = tell(measured, model, tp=4), tell(Survey(topology), model, tp=4)
    unnamed = Topology((replace_names(topology),))
    assumed = tell(Survey(unnamed), model, tp=4)
    assert known.uncertainty < described.uncertainty < assumed.uncertainty
    assert 0 < known.uncertainty < 0.15
    assert {p.provenance for p in assumed.parts if p.name == "weights"} == {Provenance.ASSUMED}


def replace_names(topology: Topology) -> Node:
    node = topology.nodes[0]
    shape = replace(node.shape, gpus=tuple(replace(gpu, name=None) for gpu in node.shape.gpus))
    return replace(node, shape=shape)


@pytest.mark.parametrize("name", ["l40s-8", "h100-pcie-8", "hgx-h100"])
def test_a_ring_over_nodes_crosses_each_node_too(name: str) -> None:
    """Four NICs of 200 Gbit/s carry more than PCIe between sockets: the group is as slow as its slowest node."""
    wires = Wires(Survey(machine(f"2x{name}")))
    for size in (1 << 20, 64 << 20):
        inside = wires.seconds("all_reduce", gpus(4), size).seconds
        assert wires.seconds("all_reduce", (*gpus(4), *gpus(4, node=1)), size).seconds > inside


def test_stages_must_fit_the_shape() -> None:
    with pytest.raises(ValueError, match="tp GPUs"):
        estimate(Survey(machine("hgx-h100")), llama_70b(), Parallelism(4), (80,), [gpus(2)], LOAD, VLLM)


class TestWires:
    def test_the_contended_curve_is_read_where_groups_run_at_once(self) -> None:
        topology = machine("l40s-8")
        alone, contended = (group_shape(topology, gpus(4), n) for n in (1, 2))
        curves = (curve("all_reduce", alone, 1e-5, 20), curve("all_reduce", contended, 1e-5, 5))
        wires = Wires(Survey(topology, curves=curves))
        one, both = (wires.seconds("all_reduce", gpus(4), 1 << 26, at_once=n) for n in (1, 2))
        assert both.seconds > 3 * one.seconds
        assert wires.seconds("all_reduce", gpus(4), 1 << 26, at_once=4).source.endswith("with 2 groups at once")

    def test_a_group_that_was_not_measured_borrows_and_says_so(self) -> None:
        topology = machine("hgx-h100")
        wires = Wires(Survey(topology, curves=(curve("all_reduce", group_shape(topology, gpus(4)), 1e-5, 200),)))
        read = wires.seconds("all_reduce", gpus(6), 1 << 26)
        assert read.provenance is Provenance.MEASURED
        assert "of 4 GPUs, the nearest" in read.source
        assert read.uncertainty > wires.seconds("all_reduce", gpus(4), 1 << 26).uncertainty

    def test_curves_of_other_wires_say_nothing(self) -> None:
        topology = machine("a100-pcie-pairs-8")
        pair = curve("all_reduce", group_shape(topology, gpus(2)), 1e-5, 200)
        assert Wires(Survey(topology, curves=(pair,))).seconds("all_reduce", gpus(4), 1 << 20).provenance is not (
            Provenance.MEASURED
        )

    @pytest.mark.parametrize(
        ("name", "n", "low_gbps", "high_gbps"),
        [("hgx-h100", 8, 300, 480), ("hgx-a100", 8, 180, 260), ("l40s-8", 8, 1.4, 25), ("rtx-pro-6000-8", 8, 20, 40)],
    )
    def test_public_figures_meet_the_anchors(self, name: str, n: int, low_gbps: float, high_gbps: float) -> None:
        size = 1 << 28
        read = Wires(Survey(machine(name))).seconds("all_reduce", gpus(n), size)
        assert low_gbps < 2 * (n - 1) / n * size / read.seconds / 1e9 < high_gbps

    def test_small_messages_take_the_engines_own_kernel_where_it_runs(self) -> None:
        survey, size = Survey(machine("hgx-h100")), 64 << 10
        wires = Wires(survey)
        own, library = (wires.all_reduce(gpus(8), size, traits) for traits in (VLLM, NCCL_ONLY))
        assert own.seconds < 0.6 * library.seconds
        assert "vllm's own" in own.source
        assert wires.all_reduce(gpus(5), size, VLLM) == wires.all_reduce(gpus(5), size, NCCL_ONLY)
        assert wires.all_reduce(gpus(8), 1 << 20, VLLM) == wires.all_reduce(gpus(8), 1 << 20, NCCL_ONLY)
        assert "own" in wires.all_reduce(gpus(4), 1 << 20, VLLM).source  # 8 ranks stop at 256 KiB, 4 at 32 MiB
        pcie = Wires(Survey(machine("l40s-8")))
        assert pcie.all_reduce(gpus(4), size, VLLM) == pcie.all_reduce(gpus(4), size, NCCL_ONLY)

    def test_a_lab_knows_no_engine_kernel(self) -> None:
        survey = Survey(machine("hgx-h100"), lab="CPU ranks")
        assert "own" not in Wires(survey).all_reduce(gpus(8), 1 << 14, VLLM).source

    def test_groups_on_one_network_card_share_it(self) -> None:
        wires = Wires(Survey(machine("2xhgx-h100")))
        pair = (GpuRef(0, 0), GpuRef(1, 0))
        eight, sixteen = (wires.seconds("p2p", pair, 1 << 26, at_once=n).seconds for n in (8, 16))
        assert sixteen > 1.8 * eight  # eight cards carry eight pairs
        assert wires.seconds("p2p", pair, 1 << 26).seconds == eight


class TestRates:
    def test_measured_rates_stand_before_the_vendors(self) -> None:
        topology = machine("hgx-h100-2")
        rates = (
            *(Rate("hbm_read", ref, 1000.0, "GB/s") for ref in gpus(2)),
            Rate("gemm", GpuRef(0, 0), 300.0, "TFLOPS", "bfloat16", (64, 8192, 8192)),
            Rate("gemm", GpuRef(0, 0), 500.0, "TFLOPS", "bfloat16", (4096, 8192, 8192)),
            Rate("gemm", GpuRef(0, 1), 400.0, "TFLOPS", "bfloat16", (4096, 8192, 8192)),
        )
        found = rates_of(Survey(topology, rates=rates), gpus(2))
        assert found.provenance is Provenance.MEASURED
        assert found.memory_bytes_per_s < 1e12
        assert found.half_ops_per_s == 400e12  # the slower of the two bounds the group
        assert found.fp8_ops_per_s == pytest.approx(800e12, rel=0.01)

    def test_four_bits_need_a_tensor_core_that_takes_them(self) -> None:
        hopper, blackwell = (rates_of(Survey(machine(name)), gpus(1)) for name in ("hgx-h100", "hgx-b200"))
        assert hopper.matrix_ops_per_s(4) == hopper.half_ops_per_s
        assert blackwell.matrix_ops_per_s(4) == 4 * blackwell.half_ops_per_s
        assert hopper.matrix_ops_per_s(8) > 1.9 * hopper.half_ops_per_s
        assert hopper.matrix_ops_per_s(8, weights_only=True) == hopper.half_ops_per_s


def test_host_times_add_to_each_step() -> None:
    survey, shape = Survey(machine("hgx-h100")), Parallelism(8)
    slow = replace(HOST, step_s=HOST.step_s + 5e-3)
    one, other = (
        estimate(survey, llama_70b(), shape, (80,), [gpus(8)], replace(LOAD, concurrency=1), VLLM, None, host)
        for host in (HOST, slow)
    )
    assert other.tpot_s - one.tpot_s == pytest.approx(5e-3)


@pytest.mark.parametrize("lab", [None, "two CPU ranks"])
@pytest.mark.parametrize("wire_gbps", [0.5, 20.0, 200.0])
def test_curves_that_end_early_go_on_as_they_rise(wire_gbps: float, lab: str | None) -> None:
    """A run that had no time for large sizes must neither slow all large messages down, nor lend a slow link the speed
    of public figures."""
    whole = survey_of(machine("hgx-h100-4"), memory_gbps=3000, tflops=700, wire_gbps=wire_gbps, alpha_s=2e-5)
    short = tuple(replace(c, samples=tuple(s for s in c.samples if s.size_bytes <= 256 << 10)) for c in whole.curves)
    assert all(1 < len(c.samples) < len(w.samples) for c, w in zip(short, whole.curves, strict=True))

    def read(survey: Survey) -> float:
        return Wires(replace(survey, lab=lab)).seconds("all_reduce", gpus(4), 64 << 20).seconds

    assert read(replace(whole, curves=short)) == pytest.approx(read(whole), rel=0.1)
