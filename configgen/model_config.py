"""config.json -> ModelSpec: the spellings of many families, one meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configgen import families
from configgen.fields import CONFIG_CURE, Fields
from configgen.model import GlobalAttention, LayerKind, LinearAttention, Mla, ModelSpec, Moe, Traits
from configgen.quantization import Quantization, read_quantization
from probe.errors import ModelError
from probe.topology import Notice

MOST_LAYERS = 1024
_MOST_HEADS = 1 << 16
_WIDEST = 1 << 22
_LARGEST_VOCABULARY = 1 << 26
_MOST_EXPERTS = 1 << 16
_LONGEST_CONTEXT = 1 << 34
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "decoder", "text_model_config")
_EXPERT_KEYS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4}


def spec_from_config(config: Mapping[str, object], *, name: str, source: str) -> ModelSpec:
    """What a published config.json says. Raises ModelError, naming the fact that is missing, absurd or contradictory.

    An architecture that is not known is planned from what its config says, with a warning.
    """
    outer = Fields(config, source)
    text = _decoder(outer)
    try:
        return _spec(outer, text, name, source)
    except ValueError as error:
        raise ModelError(f"{source}: {error}", cure=CONFIG_CURE) from None


def _decoder(outer: Fields) -> Fields:
    """The language model inside multimodal wrappers, with the wrapper's word where it is silent itself."""
    fields = outer
    for _ in range(4):
        nested = next((key for key in _NESTED if isinstance(fields.facts.get(key), Mapping)), None)
        if nested is None:
            return fields
        inner = fields.fields(nested)
        if inner is None or ("num_hidden_layers" in fields and "num_hidden_layers" not in inner):
            return fields
        inherited = ("tie_word_embeddings", "quantization_config", "dtype", "torch_dtype", "architectures")
        facts = {key: fields.facts[key] for key in inherited if key in fields} | dict(inner.facts)
        fields = Fields(facts, outer.where)
    return fields


_KV_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "multi_query_group_num")
_MLP_KEYS = (
    "intermediate_size_mlp", "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "d_ff", "inner_size",
)  # fmt: skip


def _spec(outer: Fields, fields: Fields, name: str, source: str) -> ModelSpec:
    notices: list[Notice] = []
    family = (fields.text("model_type") or outer.text("model_type") or "").removesuffix("_text") or None
    architecture = next(iter(outer.texts("architectures") or fields.texts("architectures")), None)
    fields = Fields(families.DEFAULTS.get(family or "", {}) | {k: v for k, v in fields.facts.items() if v is not None},
                    fields.where)  # fmt: skip
    if family not in families.KNOWN:
        shown = architecture or family or "This architecture, which the config does not name,"
        message = f"{shown} is not known here: weights are derived from its config alone and may be off"
        notices.append(Notice("architecture-unknown", message))
    if fields.flag("is_encoder_decoder"):
        notices.append(Notice("encoder-decoder", "an encoder-decoder is planned as a decoder: its encoder is left out"))

    layers = fields.needed(*_LAYER_KEYS, limit=MOST_LAYERS)
    hidden = fields.needed("hidden_size", "n_embd", "d_model", limit=_WIDEST)
    heads = fields.needed("num_attention_heads", "n_head", "n_heads", "num_heads", limit=_MOST_HEADS)
    mla = _latent(fields)
    head_dim = _head_dim(fields, hidden, heads, mla)
    moe = _experts(fields, family, layers, hidden)
    dtype, dtype_bytes = _dtype(outer, fields, notices)
    quantization = _quantization(outer, fields, name, notices)
    kinds, window = _layer_kinds(fields, family, layers, notices)
    intermediate = _dense_size(fields, family, layers, hidden, moe)
    notices += _assumed(fields, family, intermediate is not None, mla is not None)
    return ModelSpec(
        name=name,
        source=source,
        architecture=architecture,
        model_type=family,
        layers=layers,
        hidden_size=hidden,
        attention_heads=heads,
        kv_heads=_kv_heads(fields, heads),
        head_dim=head_dim,
        vocab_size=fields.needed("vocab_size", "n_vocab", "padded_vocab_size", limit=_LARGEST_VOCABULARY),
        tied_embeddings=_tied(fields, family),
        intermediate_size=intermediate,
        max_context=_context(fields),
        layer_kinds=kinds,
        dtype=dtype,
        dtype_bytes=dtype_bytes,
        sliding_window=window,
        mla=mla,
        moe=moe,
        linear_attention=_linear(fields, dtype_bytes) if LayerKind.LINEAR in kinds else None,
        global_attention=_global(fields, family, head_dim),
        quantization=quantization,
        vision_parameters=families.vision_parameters(outer, architecture, hidden, notices),
        traits=_traits(fields, family, moe),
        warnings=tuple(notices),
    )


def _head_dim(fields: Fields, hidden: int, heads: int, mla: Mla | None) -> int:
    if mla is not None:
        return mla.qk_nope_head_dim + mla.qk_rope_head_dim
    given = fields.count("head_dim", "kv_channels", "d_kv", "attention_head_dim", limit=_WIDEST)
    if given is None and hidden % heads:
        raise ModelError(
            f"{fields.where}: hidden_size {hidden} does not split into {heads} attention heads and head_dim is missing",
            cure=CONFIG_CURE,
        )
    return given or hidden // heads


def _kv_heads(fields: Fields, heads: int) -> int:
    given = fields.count(*_KV_KEYS, limit=_MOST_HEADS)
    multi_query = fields.flag("multi_query") and not fields.flag("new_decoder_architecture")
    return 1 if multi_query and given in (None, heads) else given or heads


def _latent(fields: Fields) -> Mla | None:
    rank = fields.count("kv_lora_rank", limit=_WIDEST, least=0)
    if not rank:
        return None
    index_heads = fields.count("index_n_heads", limit=_MOST_HEADS)
    return Mla(
        q_lora_rank=fields.count("q_lora_rank", limit=_WIDEST, least=0) or None,
        kv_lora_rank=rank,
        qk_nope_head_dim=fields.needed("qk_nope_head_dim", limit=_WIDEST),
        qk_rope_head_dim=fields.needed("qk_rope_head_dim", limit=_WIDEST),
        v_head_dim=fields.needed("v_head_dim", limit=_WIDEST),
        index_heads=index_heads,
        index_head_dim=fields.needed("index_head_dim", limit=_WIDEST) if index_heads else None,
    )


def _experts(fields: Fields, family: str | None, layers: int, hidden: int) -> Moe | None:
    experts = fields.count(*_EXPERT_KEYS, limit=_MOST_EXPERTS, least=0)
    if not experts or fields.flag("enable_moe_block") is False:
        return None
    size = fields.count("moe_intermediate_size", "expert_intermediate_size", "expert_ffn_hidden_size", limit=_WIDEST)
    size = size or fields.needed("intermediate_size", "ffn_hidden_size", "ffn_dim", limit=_WIDEST)
    per_token = fields.count(
        "num_experts_per_tok", "experts_per_token", "num_experts_per_token", "top_k_experts", "moe_k", "moe_top_k",
        "moe_topk", limit=experts,
    )  # fmt: skip
    shared = fields.count("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", limit=256, least=0)
    shared_size = fields.count(
        "shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size",
        limit=_WIDEST, least=0,
    )  # fmt: skip
    if family == "llama4":
        shared, shared_size = 1, size
    if shared_size:
        shared = shared or 1
    return Moe(
        experts=experts,
        experts_per_token=per_token or 1,
        intermediate_size=size,
        layers=frozenset(_expert_layers(fields, family, layers)),
        shared_experts=shared or 0,
        shared_intermediate_size=(shared_size or shared * size) if shared else None,
    )


def _expert_layers(fields: Fields, family: str | None, layers: int) -> list[int]:
    kinds = fields.texts("mlp_layer_types")
    if kinds:
        return [i for i, kind in enumerate(kinds[:layers]) if kind == "sparse"]
    listed = fields.counts("moe_layers", limit=layers - 1)
    if listed:
        return list(listed)
    first = fields.count("first_k_dense_replace", "moe_layer_start_index", limit=MOST_LAYERS, least=0) or 0
    last = fields.count("moe_layer_end_index", limit=MOST_LAYERS, least=-1)
    last = layers - 1 if last is None or last < 0 else last
    frequency = fields.get("moe_layer_freq")
    if frequency is not None and isinstance(frequency[1], (list, tuple)):
        flags = fields.counts("moe_layer_freq", limit=1) or ()
        return [i for i, sparse in enumerate(flags[:layers]) if sparse]
    step = fields.count("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_interval", limit=MOST_LAYERS)
    dense = set(fields.counts("mlp_only_layers", limit=MOST_LAYERS) or ())
    every = fields.count("moe_layer_freq", limit=MOST_LAYERS) or 1
    chosen = range(first, min(layers, last + 1))
    return [i for i in chosen if i % every == 0 and (i + 1) % (step or 1) == 0 and i not in dense]


def _dense_size(fields: Fields, family: str | None, layers: int, hidden: int, moe: Moe | None) -> int | None:
    """The width of dense MLPs; families that name none use four times the hidden size."""
    beside = fields.flag("enable_moe_block") is True
    if moe is not None and len(moe.layers) == layers and not beside:
        return None
    return fields.count(*_MLP_KEYS, limit=_WIDEST) or 4 * hidden


def _assumed(fields: Fields, family: str | None, has_mlp: bool, has_latent: bool) -> Iterator[Notice]:
    """What the config leaves to its family's own default, where that is not the one taken here."""
    if has_mlp and family not in families.UNGATED and fields.count(*_MLP_KEYS, limit=_WIDEST) is None:
        yield Notice("mlp-width-assumed", "config.json names no intermediate_size: 4 x hidden_size is assumed")
    if (
        not has_latent
        and family not in families.UNGATED | {"llama"}
        and fields.count(*_KV_KEYS, limit=_MOST_HEADS) is None
    ):
        yield Notice(
            "kv-heads-assumed", "config.json names no num_key_value_heads: as many as attention heads are assumed"
        )


def _layer_kinds(
    fields: Fields, family: str | None, layers: int, notices: list[Notice]
) -> tuple[tuple[LayerKind, ...], int | None]:
    window = fields.count("sliding_window", limit=_LONGEST_CONTEXT, least=0) or None
    wanted = fields.flag("use_sliding_window")
    if wanted is False or (wanted is None and family in families.WINDOW_AFTER):
        window = None
    named = fields.texts("layer_types", "layers_block_type")
    if named and len(named) < layers:
        raise fields.wrong("layer_types", named, f"one kind for each of {layers} layers")
    if not named:
        interval = fields.count("full_attention_interval", limit=MOST_LAYERS)
        pattern = fields.count("sliding_window_pattern", "_sliding_window_pattern", limit=MOST_LAYERS)
        pattern = pattern or families.SLIDING_PATTERN.get(family or "")
        if interval and "linear_num_value_heads" in fields:
            kinds = [LayerKind.FULL if (i + 1) % interval == 0 else LayerKind.LINEAR for i in range(layers)]
            return tuple(kinds), None
        hybrid = fields.counts("attn_type_list", limit=16)
        if (hybrid is not None and 0 in hybrid) or "hybrid_override_pattern" in fields or "mamba_d_state" in fields:
            notices.append(_hybrid())
        if window is None:
            return (LayerKind.FULL,) * layers, None
        if family in families.WINDOW_AFTER:
            first = fields.count("max_window_layers", limit=MOST_LAYERS, least=0) or 0
            return tuple(LayerKind.SLIDING if i >= first else LayerKind.FULL for i in range(layers)), window
        kinds = [LayerKind.FULL if pattern and (i + 1) % pattern == 0 else LayerKind.SLIDING for i in range(layers)]
        return tuple(kinds), window
    # Chunked attention (Llama 4) keeps every token: engines hold its whole cache unless told otherwise.
    known = {"sliding_attention": LayerKind.SLIDING, "linear_attention": LayerKind.LINEAR}
    has_linear = "linear_num_value_heads" in fields
    kinds = []
    for kind in named[:layers]:
        mapped = known.get(kind, LayerKind.FULL)
        if kind not in (*known, "full_attention", "chunked_attention", "attention") or (
            mapped is LayerKind.LINEAR and not has_linear
        ):
            mapped = LayerKind.FULL
            if not any(n.code == "hybrid-unknown" for n in notices):
                notices.append(_hybrid())
        kinds.append(LayerKind.FULL if mapped is LayerKind.SLIDING and window is None else mapped)
    return tuple(kinds), window if LayerKind.SLIDING in kinds else None


def _hybrid() -> Notice:
    message = "some layers are of a kind that is not known here: they are counted as full attention, too much KV cache"
    return Notice("hybrid-unknown", message)


def _linear(fields: Fields, dtype_bytes: int) -> LinearAttention:
    state = _DTYPE_BYTES.get(fields.text("mamba_ssm_dtype") or "")
    return LinearAttention(
        key_heads=fields.needed("linear_num_key_heads", limit=_MOST_HEADS),
        key_head_dim=fields.needed("linear_key_head_dim", limit=_WIDEST),
        value_heads=fields.needed("linear_num_value_heads", limit=_MOST_HEADS),
        value_head_dim=fields.needed("linear_value_head_dim", limit=_WIDEST),
        conv_kernel=fields.count("linear_conv_kernel_dim", limit=1024) or 4,
        state_bytes_per_value=state or dtype_bytes,
    )


def _global(fields: Fields, family: str | None, head_dim: int) -> GlobalAttention | None:
    dim = fields.count("global_head_dim", limit=_WIDEST)
    kv_heads = fields.count("num_global_key_value_heads", limit=_MOST_HEADS)
    shared = fields.flag("attention_k_eq_v") is True
    if dim is None and kv_heads is None and not shared:
        return None
    local = fields.count("num_key_value_heads", limit=_MOST_HEADS) or 1
    return GlobalAttention(kv_heads=kv_heads or local, head_dim=dim or head_dim, keys_are_values=shared)


def _tied(fields: Fields, family: str | None) -> bool:
    given = fields.flag("tie_word_embeddings")
    return family in families.TIED if given is None else given


def _context(fields: Fields) -> int | None:
    """Tokens, RoPE scaling included where the config gives the length before it (YaRN)."""
    keys = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length", "n_ctx")
    given = fields.count(*keys, limit=_LONGEST_CONTEXT)
    scaling = fields.get("rope_scaling")
    if given is None or scaling is None or not isinstance(scaling[1], Mapping):
        return given
    rope = Fields(scaling[1], f"{fields.where}: rope_scaling")
    if (rope.text("rope_type", "type") or "") != "yarn":
        return given
    original = rope.count("original_max_position_embeddings", limit=_LONGEST_CONTEXT)
    factor = rope.number("factor")
    return max(given, int(original * factor)) if original and factor and 1 <= factor <= 4096 else given


def _dtype(outer: Fields, fields: Fields, notices: list[Notice]) -> tuple[str, int]:
    """What activations, and weights that are not quantised, have. Engines serve float32 checkpoints in 16 bits."""
    given = fields.text("dtype", "torch_dtype") or outer.text("dtype", "torch_dtype")
    dtype = (given or "bfloat16").removeprefix("torch.")
    if given is None:
        notices.append(Notice("dtype-assumed", "the config names no dtype: bfloat16 is assumed, 2 bytes"))
    elif dtype not in _DTYPE_BYTES:
        notices.append(Notice("dtype-assumed", f"dtype {dtype!r} is not known here: bfloat16 is assumed, 2 bytes"))
    elif _DTYPE_BYTES[dtype] == 4:
        notices.append(Notice("dtype-narrowed", "a float32 checkpoint is served in bfloat16, 2 bytes"))
    return (dtype, 2) if _DTYPE_BYTES.get(dtype) == 2 else ("bfloat16", 2)


def _quantization(outer: Fields, fields: Fields, name: str, notices: list[Notice]) -> Quantization | None:
    config = fields.fields("quantization_config", "compression_config") or outer.fields("quantization_config")
    if config is None or not config.facts:
        implied = next((q for q in families.NAMED_QUANTIZATIONS if name.lower().endswith(q)), None)
        if implied is None:
            return None
        config = Fields({"quant_algo": families.NAMED_QUANTIZATIONS[implied]}, fields.where)
        message = f"the config is silent on quantisation, the name ends in {implied[1:].upper()}: assumed"
        notices.append(Notice("quantization-assumed", message + "; put hf_quant_config.json beside config.json"))
    quantization, said = read_quantization(config)
    notices.extend(said)
    return quantization


def _traits(fields: Fields, family: str | None, moe: Moe | None) -> Traits:
    bias = fields.flag("attention_bias", "qkv_bias", "use_qkv_bias", "use_bias", "bias", "enable_bias") is True
    qk_norm = "head" if family in families.QK_NORM else None
    if fields.flag("use_qk_norm") and family not in families.WEIGHTLESS_QK_NORM:
        qk_norm = "all" if fields.text("qk_norm_type") == "per_layer" else "head"
    scored = fields.text("topk_method") == "noaux_tc" or fields.flag(
        "use_routing_bias", "moe_router_enable_expert_bias"
    )
    beside = fields.flag("enable_moe_block") is True
    norms = families.NORMS.get(family or "", 2) + (3 if beside else 0)
    router, expert = families.MOE_MODULES.get(family or "", ("mlp.gate", "mlp.experts.0"))
    positions = 0
    if family in families.LEARNED_POSITIONS:
        positions = (_context(fields) or 0) + (2 if family == "opt" else 0)
    return Traits(
        qkv_bias=bias or family in families.QKV_BIAS,
        output_bias=bias and family not in families.QKV_BIAS,
        qk_norm=qk_norm,
        attention_gate=fields.flag("attn_output_gate") is True or family == "qwen3_next",
        attention_sinks=family == "gpt_oss",
        gated_mlp=family not in families.UNGATED,
        mlp_bias=fields.flag("mlp_bias", "use_bias", "bias", "enable_bias") is True or family in families.MLP_BIAS,
        expert_bias=family == "gpt_oss",
        router_bias=bool(scored) or family == "gpt_oss",
        shared_expert_gate=family in families.SHARED_EXPERT_GATE,
        dense_beside_experts=beside and moe is not None,
        norms=norms,
        norm_bias=family in families.LAYER_NORM,
        learned_positions=positions,
        router=router,
        expert=expert,
    )
