"""Laws that one engine has and another hasn't, each seen with the real program (tests/conformance)."""

from __future__ import annotations

from builders import cluster_of, dense, node_of

from configgen.decide import plan
from configgen.engines.rules import engine_traits
from configgen.engines.vllm import vllm_launch
from configgen.laws import gpu_law, kv_head_law, vocabulary_law
from configgen.model_config import spec_from_config
from configgen.plan import Workload
from probe.measurement import Survey

VLLM, SGLANG = engine_traits("vllm"), engine_traits("sglang")
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "num_hidden_layers": 24,
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "torch_dtype": "bfloat16",
}


def test_a_vocabulary_that_vllm_cannot_cut_in_three() -> None:
    """It pads to 64 whatever the TP and then divides; SGLang pads to what the TP needs."""
    model = dense(layers=32, hidden=6144, heads=48, kv_heads=12, intermediate=24576, vocab=64000)
    (law,) = vocabulary_law(model, 3, VLLM)
    assert law == "TP3: a vocabulary of 64000, padded, does not divide by 3"
    assert vocabulary_law(model, 3, SGLANG) == []
    assert vocabulary_law(model, 8, VLLM) == []
    padded = dense(layers=32, hidden=6144, heads=48, kv_heads=12, vocab=128200)  # 128,256 = 3 * 42,752
    assert vocabulary_law(padded, 3, VLLM) == []
    three = Survey(cluster_of(node_of(3, 48, "all")))
    decided = {engine: plan(three, model, Workload(), engine_traits(engine)) for engine in ("vllm", "sglang")}
    assert decided["vllm"].parallelism.tp < 3
    forbidden = [a.law for a in decided["vllm"].alternatives if a.parallelism.tp == 3]
    assert forbidden
    assert all(told is not None and "vocabulary" in told for told in forbidden)
    assert not any(a.law for a in decided["sglang"].alternatives if a.parallelism.tp == 3)


def test_gpt_oss_keeps_no_copies_of_kv_heads_in_vllm() -> None:
    model = spec_from_config(GPT_OSS, name="test/gpt-oss", source="a test")
    assert kv_head_law(model, 8, VLLM) == []
    assert kv_head_law(model, 16, VLLM) == ["TP16: 8 KV heads do not divide by 16, and vllm keeps no copies of them"]
    assert kv_head_law(model, 16, SGLANG) == []
    others = dense(layers=32, hidden=4096, heads=32, kv_heads=8)
    assert kv_head_law(others, 16, VLLM) == [], "those of other models are copied"


def test_gptq_needs_what_its_kernel_needs() -> None:
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    model = dense(layers=32, hidden=4096, heads=32, quantization=gptq)
    assert "7.5" in (gpu_law(model, (7, 0), VLLM) or "")
    assert gpu_law(model, (7, 5), VLLM) is None


def test_the_share_of_memory_that_a_plan_counts_with_is_told() -> None:
    """vLLM by itself takes more than that."""
    model = dense(layers=32, hidden=4096, heads=32)
    decided = plan(Survey(cluster_of(node_of(1, 80))), model, Workload(), VLLM)
    (process,) = vllm_launch(decided).processes
    told = process.argv[process.argv.index("--gpu-memory-utilization") + 1]
    assert float(told) == decided.replicas[0].memory_utilization == VLLM.memory_utilization


def test_the_version_before_has_the_same_laws() -> None:
    before = engine_traits("vllm@0.32.0")
    assert before.version == "0.32"
    assert before.no_pipeline_architectures == VLLM.no_pipeline_architectures
