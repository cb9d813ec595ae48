"""Models as folders with a config.json, of every kind that the laws tell apart; no weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FP8_BLOCKS = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head"],
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def _llama(layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    } | more


def _qwen3(layers: int, hidden: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    told = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128, "rms_norm_eps": 1e-6}
    return _llama(layers, hidden, heads, kv_heads, inner, 151936) | told | more


_QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
_DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "routed_scaling_factor": 2.5,
}

MODELS: Mapping[str, dict[str, Any]] = {
    "gqa-8b": _llama(32, 4096, 32, 8, 14336, 128256),
    "gqa-70b": _llama(80, 8192, 64, 8, 28672, 128256),
    "gqa-405b": _llama(126, 16384, 128, 8, 53248, 128256),
    "mha-13b": _llama(40, 5120, 40, 40, 13824, 32000),
    "heads-of-24": _llama(42, 6144, 48, 12, 24576, 64000),
    "bias-32b": _llama(
        64, 5120, 40, 8, 27648, 152064, architectures=["Qwen2ForCausalLM"], model_type="qwen2", rms_norm_eps=1e-6
    ),
    "fp8-blocks-32b": _qwen3(64, 5120, 64, 8, 25600, quantization_config=FP8_BLOCKS),
    "awq-72b": _llama(
        80, 8192, 64, 8, 29568, 152064, architectures=["Qwen2ForCausalLM"], model_type="qwen2",
        torch_dtype="float16", quantization_config=AWQ,
    ),
    "gptq-32b": _llama(
        64, 5120, 40, 8, 27648, 152064, architectures=["Qwen2ForCausalLM"], model_type="qwen2",
        torch_dtype="float16", quantization_config=GPTQ,
    ),
    "moe-47b": _llama(
        32, 4096, 32, 8, 14336, 32000, architectures=["MixtralForCausalLM"], model_type="mixtral",
        num_local_experts=8, num_experts_per_tok=2, sliding_window=None,
    ),
    "moe-30b": _qwen3(48, 2048, 32, 4, 6144, num_experts=128, moe_intermediate_size=768, **_QWEN3_MOE),
    "moe-235b-fp8": _qwen3(
        94, 4096, 64, 4, 12288, num_experts=128, moe_intermediate_size=1536, quantization_config=FP8_BLOCKS,
        **_QWEN3_MOE,
    ),
    "mla-671b-fp8": _llama(
        61, 7168, 128, 128, 18432, 129280, q_lora_rank=1536, n_routed_experts=256, moe_intermediate_size=2048,
        first_k_dense_replace=3, n_group=8, topk_group=4, quantization_config=FP8_BLOCKS, **_DEEPSEEK,
    ),
    "mla-16b": _llama(
        27, 2048, 16, 16, 10944, 102400, q_lora_rank=None, n_routed_experts=64, moe_intermediate_size=1408,
        first_k_dense_replace=1, n_group=1, topk_group=1, **_DEEPSEEK,
    ),
    "no-pipeline-8b": {
        "architectures": ["Gemma3nForCausalLM"],
        "model_type": "gemma3n_text",
        "num_hidden_layers": 35,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "vocab_size": 262400,
        "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
    },
}  # fmt: skip
"""Name -> config.json, each in the shape of a published model."""


def write_model(folder: Path, config: Mapping[str, Any]) -> Path:
    """A folder that both wirelore and an engine take for a model: its config, and a file of weights that holds none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    empty = b"{}"
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(empty)) + empty)
    return folder
