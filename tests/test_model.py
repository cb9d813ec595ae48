"""A config.json becomes a ModelSpec with the authors' parameter count, or one line that says what is wrong with it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configgen.laws import tensor_parallel_laws
from configgen.model import LayerKind, ModelSpec
from configgen.model_config import spec_from_config
from configgen.quantization import ModulePatterns, glob_matches
from configgen.weights import Part
from probe.errors import ModelError

SHARED = Path(__file__).parent.parent.parent / "shared" / "models"

DENSE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1536,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
MOE: dict[str, Any] = DENSE | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "head_dim": 64,
}
LATENT: dict[str, Any] = DENSE | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "kv_lora_rank": 128,
    "q_lora_rank": 256,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 256,
    "first_k_dense_replace": 1,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
FP8_BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def spec(config: dict[str, Any], name: str = "test") -> ModelSpec:
    return spec_from_config(config, name=name, source="config.json at test")


# Published parameter counts in billions, to the digits that their authors publish: model cards and papers (main model,
# multi-token-prediction layers apart). Llama 3.1: 8.03, 70.6, 406; Qwen3: 8.2, 32.8, 30.5, 235; Qwen3.5: 397, 27;
# Mixtral 46.7 (arXiv 2401.04088); DeepSeek-V3 671 (arXiv 2412.19437); Kimi K2 1.03 T (weights index: 1026.5 B);
# gpt-oss-120b 116.83 (arXiv 2508.10925, table 1); Llama-4-Scout 109; MiniMax-M2.5 229 (weights index); Gemma 4 26.
PUBLISHED = {
    "meta-llama--Meta-Llama-3.1-8B": ("8.03", 3),
    "meta-llama--Meta-Llama-3.1-70B": ("70.6", 3),
    "meta-llama--Meta-Llama-3.1-405B": ("406", 3),
    "nvidia--Llama-3.1-70B-Instruct-FP8": ("70.6", 3),
    "Qwen--Qwen3-8B": ("8.19", 3),
    "Qwen--Qwen3-32B": ("32.8", 3),
    "Qwen--Qwen3-32B-FP8": ("32.8", 3),
    "Qwen--Qwen3-30B-A3B": ("30.5", 3),
    "Qwen--Qwen3-235B-A22B": ("235", 3),
    "nvidia--Qwen3-235B-A22B-NVFP4": ("235", 3),
    "mistralai--Mixtral-8x7B-v0.1": ("46.7", 3),
    "deepseek-ai--DeepSeek-V3": ("671", 3),
    "deepseek-ai--DeepSeek-R1": ("671", 3),
    "moonshotai--Kimi-K2-Instruct": ("1.03e+03", 3),
    "moonshotai--Kimi-K2.5": ("1.03e+03", 3),
    "openai--gpt-oss-120b": ("116.8", 4),
    "meta-llama--Llama-4-Scout-17B-16E-Instruct": ("109", 3),
    "MiniMaxAI--MiniMax-M2.5": ("229", 3),
    "Qwen--Qwen3.5-397B-A17B": ("397", 3),
    "Qwen--Qwen3.5-27B": ("27", 2),
    "google--gemma-4-26B-A4B": ("26", 2),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/models is not here")
@pytest.mark.parametrize("stem", PUBLISHED)
def test_real_configs_have_the_published_parameter_count(stem: str) -> None:
    config = json.loads((SHARED / f"{stem}.json").read_text())
    published, digits = PUBLISHED[stem]
    assert f"{spec(config).parameters / 1e9:.{digits}g}" == published


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/models is not here")
def test_every_real_config_is_read() -> None:
    for path in SHARED.glob("*.json"):
        model = spec(json.loads(path.read_text()))
        assert not [w for w in model.warnings if w.code == "architecture-unknown"], path.name


def test_dense_parameters_are_the_sum_of_its_matrices() -> None:
    attention = 512 * 512 * 2 + 2 * 128 * 512
    layer = attention + 3 * 512 * 1536 + 2 * 512
    assert spec(DENSE).parameters == 4 * layer + 2 * 1000 * 512 + 512
    assert spec(DENSE | {"tie_word_embeddings": True}).parameters == 4 * layer + 1000 * 512 + 512
    assert spec(DENSE).weight_bytes == 2 * spec(DENSE).parameters


def test_published_counts_of_families_written_by_hand() -> None:
    """GPT-2 (124.44 M), OPT-125m (125.24 M): two matrices per MLP, biases, learned positions, tied embeddings."""
    gpt2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
    assert round(spec(gpt2).parameters / 1e6, 1) == 124.4
    opt = {
        "model_type": "opt", "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "ffn_dim": 3072,
        "vocab_size": 50272, "max_position_embeddings": 2048, "enable_bias": True,
    }  # fmt: skip
    assert round(spec(opt).parameters / 1e6, 1) == 125.2


def test_qwen2_has_biases_that_its_config_does_not_name() -> None:
    with_bias = spec(DENSE | {"model_type": "qwen2"}).parameters
    assert with_bias - spec(DENSE).parameters == 4 * (512 + 2 * 128)


def test_moe_counts_experts_routers_and_head_norms() -> None:
    model = spec(MOE)
    assert model.weights.part_parameters[Part.ROUTED_EXPERTS] == 4 * 16 * 3 * 512 * 256
    assert model.weights.part_parameters[Part.ROUTER] == 4 * 16 * 512
    assert model.weights.part_parameters[Part.NORMS] == 4 * (2 * 512 + 2 * 64) + 512
    assert model.intermediate_size is None
    assert model.moe is not None and model.moe.layers == frozenset(range(4))


def test_latent_attention_and_leading_dense_layers() -> None:
    model = spec(LATENT)
    attention = 256 * 512 + 8 * 48 * 256 + (128 + 16) * 512 + 8 * 64 * 128 + 512 * 8 * 32
    assert model.weights.part_parameters[Part.ATTENTION] == 4 * attention
    assert model.weights.part_parameters[Part.DENSE_MLP] == 3 * 512 * 1536
    assert model.weights.part_parameters[Part.SHARED_EXPERTS] == 3 * 3 * 512 * 256
    assert model.moe is not None and model.moe.layers == frozenset({1, 2, 3})
    assert model.head_dim == 48


def test_which_layers_have_experts() -> None:
    def layers(**facts: Any) -> list[int]:
        moe = spec(MOE | facts).moe
        assert moe is not None
        return sorted(moe.layers)

    assert layers(decoder_sparse_step=2) == [1, 3]
    assert layers(mlp_only_layers=[0, 2]) == [1, 3]
    assert layers(moe_layer_freq=[0, 1, 1, 0]) == [1, 2]
    assert layers(mlp_layer_types=["dense", "sparse", "sparse", "sparse"]) == [1, 2, 3]
    assert spec(DENSE | {"num_experts": 0}).moe is None


def test_sliding_and_linear_layers() -> None:
    sliding, full, linear = LayerKind.SLIDING, LayerKind.FULL, LayerKind.LINEAR
    assert spec(DENSE | {"model_type": "mistral", "sliding_window": 64}).layer_kinds == (sliding,) * 4
    assert spec(DENSE | {"model_type": "gemma2", "sliding_window": 64}).layer_kinds == (sliding, full) * 2
    unused = {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}
    assert spec(DENSE | unused).layer_kinds == (full,) * 4
    assert spec(DENSE | unused | {"use_sliding_window": True, "max_window_layers": 3}).layer_kinds == (
        full, full, full, sliding,
    )  # fmt: skip
    hybrid = {
        "model_type": "qwen3_next", "full_attention_interval": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 64,
        "linear_num_value_heads": 4, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4, "intermediate_size": 64,
    }  # fmt: skip
    assert spec(DENSE | hybrid).layer_kinds == (linear, linear, linear, full)


def test_a_hybrid_of_unknown_kind_is_planned_as_full_attention_with_a_warning() -> None:
    model = spec(DENSE | {"layer_types": ["mamba", "full_attention"] * 2})
    assert model.layer_kinds == (LayerKind.FULL,) * 4
    assert [w.code for w in model.warnings] == ["hybrid-unknown"]


def test_a_multimodal_wrapper_is_read_through() -> None:
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "patch_size": 14}
    outer = {"architectures": ["XForConditionalGeneration"], "model_type": "gemma3", "vision_config": vision}
    text = {k: v for k, v in DENSE.items() if k not in ("architectures", "torch_dtype")} | {"model_type": "gemma3_text"}
    model = spec(outer | {"torch_dtype": "float16", "text_config": text | {"head_dim": 64}})
    assert (model.layers, model.dtype, model.architecture) == (4, "float16", "XForConditionalGeneration")
    assert model.tied_embeddings
    assert model.vision_parameters == 2 * (4 * 64 * 64 + 2 * 64 * 128) + 3 * 14 * 14 * 64 + 64 * 512
    blind = spec(outer | {"text_config": text | {"head_dim": 64}, "vision_config": {"model_name": "vit"}})
    assert "vision-left-out" in [w.code for w in blind.warnings]


def test_the_quantisation_of_a_wrapper_binds_its_decoder() -> None:
    text = {k: v for k, v in DENSE.items() if k != "architectures"} | {"intermediate_size": 29568}
    model = spec({"architectures": ["InternVLChatModel"], "llm_config": text, "quantization_config": AWQ})
    assert tensor_parallel_laws(model, 2, 2, 1) == [
        "TP2: AWQ group 128 does not divide 29568 / 2 = 14784 (231 groups do not split in 2)"
    ]


def test_an_unknown_architecture_is_planned_with_a_warning() -> None:
    model = spec(DENSE | {"architectures": ["FooForCausalLM"], "model_type": "foo"})
    assert model.parameters == spec(DENSE).parameters
    assert [w.code for w in model.warnings] == ["architecture-unknown"]
    assert "FooForCausalLM" in model.warnings[0].message


def test_context_with_yarn() -> None:
    assert spec(DENSE).max_context == 4096
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert spec(DENSE | {"rope_scaling": yarn}).max_context == 16384
    assert spec({k: v for k, v in DENSE.items() if k != "max_position_embeddings"}).max_context is None


# --- quantisation


def linear_bytes(config: dict[str, Any]) -> int:
    """Bytes of all tensors that are neither embedding nor norm."""
    skipped = (Part.EMBEDDING, Part.LM_HEAD, Part.NORMS)
    return sum(t.size_bytes for t in spec(config).weights.tensors if t.part not in skipped)


WIDE: dict[str, Any] = DENSE | {"num_hidden_layers": 1, "num_key_value_heads": 8}
ELEMENTS = 4 * 512 * 512 + 3 * 512 * 1536
COMPRESSED_INT4 = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True},
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*"],
}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "fp8"}, ELEMENTS + 4 * (4 * 512 + 2 * 1536 + 512)),
        (FP8_BLOCK, ELEMENTS + 4 * ELEMENTS // (128 * 128)),
        (AWQ, ELEMENTS // 2 + ELEMENTS // 128 * 5 // 2),
        (AWQ | {"quant_method": "gptq", "group_size": 64}, ELEMENTS // 2 + ELEMENTS // 64 * 5 // 2),
        ({"quant_method": "mxfp4"}, ELEMENTS // 2 + ELEMENTS // 32),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, ELEMENTS // 2 + ELEMENTS // 16),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}},
         ELEMENTS // 2 + ELEMENTS // 16),
        (COMPRESSED_INT4, 2 * 4 * 512 * 512 + 3 * 512 * 1536 // 2 + 3 * 512 * 1536 // 32 * 2),
    ],
)  # fmt: skip
def test_quantised_weights_with_their_scales(quantization: dict[str, Any], expected: int) -> None:
    assert linear_bytes(WIDE | {"quantization_config": quantization}) == expected


def test_modules_that_stay_unquantised() -> None:
    attention = 2 * 4 * 512 * 512
    for ignored in (["self_attn"], ["model.layers.*.self_attn"], ["re:.*self_attn.*"], ["model.layers.0.self_attn"],
                    ["language_model.model.layers.0.self_attn"], [r"re:.*\.(q|k|v|o)_proj$"]):  # fmt: skip
        quantization = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ignored}
        kept = linear_bytes(WIDE | {"quantization_config": quantization})
        assert kept == attention + 3 * 512 * 1536 * (1 + 4 / 128**2), ignored
    everything = {"quant_method": "fp8", "weight_block_size": [128, 128], "ignored_layers": ["gate", "vision.layers.0"]}
    assert linear_bytes(WIDE | {"quantization_config": everything}) == ELEMENTS + 4 * ELEMENTS // (128 * 128)


def test_one_layer_can_stay_unquantised() -> None:
    quantization = FP8_BLOCK | {"modules_to_not_convert": ["model.layers.2"]}
    layers = spec(DENSE | {"quantization_config": quantization}).weights.layers
    sizes = [sum(t.size_bytes for t in layer) for layer in layers]
    assert sizes[0] == sizes[1] == sizes[3] < sizes[2] == sum(t.elements for t in layers[2]) * 2


def test_routers_and_embeddings_stay_in_the_dtype() -> None:
    tensors = list(spec(MOE | {"quantization_config": FP8_BLOCK}).weights.tensors)
    whole = {Part.ROUTER, Part.NORMS, Part.EMBEDDING, Part.LM_HEAD}
    assert all(t.size_bytes == 2 * t.elements for t in tensors if t.part in whole)
    assert all(t.size_bytes < 2 * t.elements for t in tensors if t.part is Part.ROUTED_EXPERTS)


def test_quantisation_told_by_the_name_alone_is_assumed_aloud() -> None:
    model = spec(DENSE, "nvidia/Tiny-FP8")
    assert model.quantization is not None and model.quantization.bits == 8
    assert [w.code for w in model.warnings] == ["quantization-assumed"]
    assert spec(DENSE, "tiny-fp8-chat").quantization is None


def test_an_unknown_quantisation_is_counted_at_full_width_with_a_warning() -> None:
    model = spec(DENSE | {"quantization_config": {"quant_method": "magic"}})
    assert model.weight_bytes == spec(DENSE).weight_bytes
    assert [w.code for w in model.warnings] == ["quantization-unknown"]


def test_globs() -> None:
    assert glob_matches("*mlp.gate", "layers.3.mlp.gate")
    assert not glob_matches("*mlp.gate", "layers.3.mlp.gate_proj")
    assert glob_matches("layers.*.a*b", "layers.3.ab") and not glob_matches("ab*b", "ab")
    assert not glob_matches("*a" * 200 + "*!", "a" * 5000)  # would take ages as a regex
    assert ModulePatterns(frozenset({"gate"})).match("layers.3.mlp.gate")
    assert not ModulePatterns(frozenset({"gate"})).match("layers.3.mlp.gate_proj")


@given(st.text("ab.*", max_size=8), st.text("ab.", max_size=8))
@settings(derandomize=True, deadline=None, max_examples=400)
def test_globs_match_as_a_regular_expression_would(glob: str, text: str) -> None:
    import re

    wanted = re.fullmatch(re.escape(glob).replace(r"\*", ".*"), text) is not None
    assert glob_matches(glob, text) is wanted


# --- laws


@pytest.mark.parametrize(
    ("facts", "attention_tp", "tp", "ep", "law"),
    [
        ({"num_attention_heads": 52, "num_key_value_heads": 52, "hidden_size": 6656}, 3, 3, 1,
         "TP3: 52 attention heads do not divide by 3"),
        ({"num_attention_heads": 40, "num_key_value_heads": 10, "hidden_size": 5120}, 4, 4, 1,
         "TP4: 10 KV heads neither divide by 4 nor into 4 replicas"),
        ({"intermediate_size": 29568, "quantization_config": AWQ}, 2, 2, 1,
         "TP2: AWQ group 128 does not divide 29568 / 2 = 14784 (231 groups do not split in 2)"),
        ({"intermediate_size": 1538}, 4, 4, 1, "TP4: the MLP's 1538 channels do not divide by 4"),
        ({}, 2, 2, 2, "EP2: test has no experts"),
        ({}, 3, 4, 1, "TP4: attention TP 3 does not divide 4 GPUs"),
        (MOE | {"moe_intermediate_size": 768, "quantization_config": FP8_BLOCK}, 4, 4, 1,
         "TP4: FP8 block 128 does not divide an expert's 768 / 4 = 192 (6 blocks do not split in 4)"),
        (MOE | {"quantization_config": FP8_BLOCK}, 4, 4, 4,
         "TP4: FP8 block 128 does not divide a KV head's 64 channels, which a rank holds"),
        (MOE | {"num_experts": 12}, 8, 8, 8, "EP8: 12 experts do not divide by 8"),
    ],
)  # fmt: skip
def test_laws_name_their_numbers(facts: dict[str, Any], attention_tp: int, tp: int, ep: int, law: str) -> None:
    assert law in tensor_parallel_laws(spec(DENSE | facts), attention_tp, tp, ep)


def test_what_is_legal() -> None:
    assert tensor_parallel_laws(spec(DENSE), 4, 4, 1) == []  # 2 KV heads on 4 ranks: replicated
    assert tensor_parallel_laws(spec(DENSE | {"vocab_size": 1001}), 8, 8, 1) == []
    odd = spec(DENSE | {"intermediate_size": 29568, "quantization_config": AWQ})
    assert tensor_parallel_laws(odd, 1, 1, 1) == []
    experts = spec(MOE | {"moe_intermediate_size": 768, "head_dim": 128, "quantization_config": FP8_BLOCK})
    assert tensor_parallel_laws(experts, 4, 4, 4) == []
    assert tensor_parallel_laws(spec(LATENT), 1, 8, 8) == []  # attention replicated, experts spread
    padded = spec(DENSE | {"intermediate_size": 1440, "quantization_config": {"quant_method": "mxfp4"}})
    assert tensor_parallel_laws(padded, 4, 4, 1) == []


# --- hostile input


@pytest.mark.parametrize(
    ("facts", "part"),
    [
        ({"num_hidden_layers": None}, "no num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not between 1 and 1,024"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, not a whole number"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers is '32', not a whole number"),
        ({"num_hidden_layers": float("nan")}, "num_hidden_layers is nan"),
        ({"num_hidden_layers": 10**400}, "a number beyond all measure"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": [8, 8]}, "num_attention_heads is a list of 2"),
        ({"num_attention_heads": 7}, "hidden_size 512 does not split into 7 attention heads"),
        ({"num_key_value_heads": 3}, "8 attention heads share 3 KV heads evenly"),
        ({"hidden_size": -5}, "hidden_size is -5"),
        ({"vocab_size": None}, "no vocab_size"),
        ({"architectures": "Llama"}, "architectures is 'Llama', not a list of texts"),
        ({"layer_types": ["full_attention"]}, "layer_types is a list of 1, not one kind for each of 4 layers"),
        ({"quantization_config": "fp8"}, "quantization_config is 'fp8', not an object"),
        ({"quantization_config": {"quant_method": "awq", "bits": 99}}, "bits is 99, not between 1 and 16"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}}, "at least one weight"),
        ({"kv_lora_rank": 128}, "no qk_nope_head_dim"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
    ],
)
def test_bad_configs_are_refused_in_one_precise_line(facts: dict[str, Any], part: str) -> None:
    with pytest.raises(ModelError) as error:
        spec(DENSE | facts)
    assert part in error.value.problem and "config.json at test" in error.value.problem
    assert error.value.exit_code == 2 and "\n" not in str(error.value)


def test_an_empty_config_and_a_bottomless_one_are_refused() -> None:
    with pytest.raises(ModelError, match="no num_hidden_layers"):
        spec({})
    nested: dict[str, Any] = {}
    for _ in range(500):
        nested = {"text_config": nested}
    with pytest.raises(ModelError):
        spec(nested)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(-1) | st.just(1 << 60),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
KEYS = sorted(
    {*DENSE, *MOE, *LATENT, "layer_types", "sliding_window", "rope_scaling", "quantization_config", "text_config",
     "vision_config", "moe_layer_freq", "mlp_only_layers", "linear_num_value_heads", "head_dim", "dtype",
     "tie_word_embeddings", "global_head_dim", "attn_type_list", "decoder_sparse_step"}
)  # fmt: skip


@given(st.sampled_from([DENSE, MOE, LATENT]), st.dictionaries(st.sampled_from(KEYS), junk, min_size=1, max_size=4))
@settings(derandomize=True, deadline=None, max_examples=600)
def test_any_config_is_a_model_or_a_model_error(base: dict[str, Any], changes: dict[str, Any]) -> None:
    try:
        model = spec(copy.deepcopy(base) | changes)
    except ModelError as error:
        assert error.cure
    else:
        assert model.parameters > 0 and model.weight_bytes > 0
        tensor_parallel_laws(model, 2, 4, 2)


@given(junk, st.dictionaries(st.sampled_from(["quant_method", "bits", "group_size", "config_groups", "ignore",
       "weight_block_size", "quantization", "quant_algo", "dynamic"]), junk, max_size=5))  # fmt: skip
@settings(derandomize=True, deadline=None, max_examples=400)
def test_any_quantisation_is_read_or_refused(method: Any, facts: dict[str, Any]) -> None:
    for quant_method in (method, "fp8", "awq", "compressed-tensors", "modelopt"):
        try:
            spec(DENSE | {"quantization_config": {"quant_method": quant_method} | facts}).weight_bytes  # noqa: B018
        except ModelError as error:
            assert error.cure
