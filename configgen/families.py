"""What a config.json leaves unsaid because the family's code says it: each set names the model types it holds for.

Source throughout: the configuration and modeling files of huggingface/transformers (src/transformers/models).
"""

from __future__ import annotations

from configgen.fields import Fields
from probe.topology import Notice

TIED = frozenset((
    "gemma", "gemma2", "gemma3", "gemma4", "gemma3n", "cohere", "cohere2", "gpt2", "gpt_bigcode", "opt", "bloom",
    "falcon", "mpt", "starcoder2",
))  # fmt: skip
"""Embedding and lm_head are one matrix unless the config denies it."""

QKV_BIAS = frozenset((
    "qwen", "qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "glm4_moe", "glm", "glm4", "chatglm", "phi",
))  # fmt: skip
"""Queries, keys and values have a bias whatever the config says, the output has none."""

QK_NORM = frozenset((
    "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "gemma3", "gemma4",
))  # fmt: skip
WEIGHTLESS_QK_NORM = frozenset(("llama4",))

UNGATED = frozenset((
    "gpt2", "gpt_bigcode", "gptj", "gpt_neo", "gpt_neox", "opt", "bloom", "falcon", "mpt", "phi", "starcoder2",
    "nemotron",
))  # fmt: skip
"""MLPs of two matrices instead of three."""

LAYER_NORM = frozenset((
    "gpt2", "gpt_bigcode", "gptj", "gpt_neo", "gpt_neox", "opt", "bloom", "falcon", "phi", "starcoder2", "nemotron",
))  # fmt: skip
MLP_BIAS = frozenset(("gpt2", "gpt_bigcode", "gptj", "gpt_neo", "gpt_neox", "opt", "bloom", "phi"))
LEARNED_POSITIONS = frozenset(("gpt2", "gpt_bigcode", "opt"))
NORMS = {"gemma2": 4, "gemma3": 4, "gemma4": 4, "glm4": 4, "cohere": 1, "cohere2": 1, "phi": 1}
"""Norms of the hidden size in a layer, where not 2."""

SHARED_EXPERT_GATE = frozenset(("qwen2_moe", "qwen3_next", "qwen3_5_moe"))
SLIDING_PATTERN = {"gemma2": 2, "gemma3": 6, "gemma4": 6, "gpt_oss": 2, "cohere2": 4}
"""Every n-th layer is a full one among sliding ones."""
WINDOW_AFTER = frozenset(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"))
"""Layers from max_window_layers on slide."""

MOE_MODULES = {
    "mixtral": ("block_sparse_moe.gate", "block_sparse_moe.experts.0"),
    "minimax_m2": ("block_sparse_moe.gate", "block_sparse_moe.experts.0"),
    "gpt_oss": ("mlp.router", "mlp.experts.0"),
    "llama4": ("feed_forward.router", "feed_forward.experts.0"),
}

NAMED_QUANTIZATIONS = {"-fp8": "FP8", "-nvfp4": "NVFP4", "-fp4": "NVFP4"}
"""Checkpoints whose config.json is silent on quantisation (NVIDIA Model Optimizer) say it in their name."""

DEFAULTS: dict[str, dict[str, object]] = {
    "gemma3": {
        "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "sliding_window": 4096, "max_position_embeddings": 131072,
    },
    "gpt_oss": {"sliding_window": 128, "torch_dtype": "bfloat16"},
    "minimax_m2": {"torch_dtype": "bfloat16"},
}  # fmt: skip

KNOWN = TIED | QKV_BIAS | QK_NORM | UNGATED | frozenset((
    "llama", "llama4", "mistral", "mistral3", "ministral", "mixtral", "phi3", "gpt_oss", "deepseek_v2", "deepseek_v3",
    "deepseek_v32", "kimi_k2", "kimi_k25", "minimax_m2", "granite", "internlm2", "yi", "olmo", "olmo2", "exaone",
    "baichuan", "solar", "stablelm", "deepseek", "smollm3",
))  # fmt: skip

_LLAMA4_VISION = {"hidden_size": 1408, "num_hidden_layers": 34, "intermediate_size": 5632, "patch_size": 14}
"""The tower that Scout and Maverick share: meta-llama/Llama-4-Scout-17B-16E-Instruct config.json, vision_config."""


def vision_parameters(outer: Fields, architecture: str | None, text_size: int, notices: list[Notice]) -> int:
    """Parameters of the vision tower, from its depth and widths: attention 4 h^2, MLP, patches, a projector.

    0 where there is none; what cannot be derived is left out with a warning.
    """
    for other in ("audio_config", "speech_config"):
        if outer.facts.get(other):
            notices.append(Notice("audio-left-out", "the audio tower's weights are not counted"))
    found = outer.get("vision_config", "visual", "vision_tower_config")
    if found is None and architecture == "Llama4ForConditionalGeneration":
        notices.append(Notice("vision-assumed", "the config is silent on its vision tower: Llama 4's own is assumed"))
        found = ("vision_config", _LLAMA4_VISION)
    if found is None or not found[1]:
        return 0
    tower = Fields(found[1], f"{outer.where}: {found[0]}") if isinstance(found[1], dict) else None
    width = tower.count("hidden_size", "vt_hidden_size", "embed_dim", "width", limit=1 << 16) if tower else None
    depth = tower.count("num_hidden_layers", "depth", "vt_num_hidden_layers", "layers", limit=1024) if tower else None
    if tower is None or width is None or depth is None:
        message = "a vision tower whose size the config does not tell: its weights are left out"
        notices.append(Notice("vision-left-out", message))
        return 0
    inner = tower.count("intermediate_size", "vt_intermediate_size", limit=1 << 18) or 4 * width
    gated = (tower.text("model_type") or "").startswith(("gemma4", "qwen2_5_vl", "pixtral"))
    patch = tower.count("patch_size", limit=1024) or 14
    frames = tower.count("temporal_patch_size", limit=64) or 1
    positions = tower.count("num_position_embeddings", "position_embedding_size", limit=1 << 22) or 0
    merge = tower.count("spatial_merge_size", limit=64) or 1
    merged = width * merge * merge
    projector = merged * (merged + text_size) if merge > 1 else width * text_size
    layer = 4 * width * width + (3 if gated else 2) * width * inner
    return depth * layer + 3 * frames * patch * patch * width + positions * width + projector
