"""What a stage of a model takes on each of its GPUs: weights, KV cache, activations, and what the runtime keeps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from probe.topology import require

if TYPE_CHECKING:
    from configgen.model import ModelSpec

RUNTIME_BYTES = int(1.79 * 2**30)
"""CUDA context, libraries and graphs: `non_torch_memory 1.79GiB` of Llama-3-8B on one H100, vLLM's own profiler
(https://github.com/vllm-project/vllm/pull/10511, 2024-12-14)."""

COMMUNICATOR_BYTES = 392_000_000
"""NCCL buffers of a group: aiconfigurator's memory model has 342 to 392 MB; the larger one."""

_ACTIVATION_WIDTHS = ((8, 5), (4, 5), (2, 6), (1, 10))
"""(tp, c): a pass over some tokens holds 2 tokens h c bytes at its peak (aiconfigurator's memory model)."""

_EXPERT_TOKENS = 16 << 10
"""Tokens that one call of vLLM's fused expert kernel takes (vllm/envs.py, VLLM_FUSED_MOE_CHUNK_SIZE)."""

_SAMPLED_SEQUENCES, _SAMPLER_COPIES = 256, 4
"""Logits in float32 and their scaled, sorted and normalised copies for vLLM's default max_num_seqs. With it Llama-3-8B
comes to 1.11 GiB for 8192 tokens; vLLM's profiler saw 1.26 GiB (pull 10511)."""


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes on the fullest GPU of a stage; `usable_bytes` is what the engine may take of that GPU."""

    weights_bytes: int
    kv_bytes: int
    activation_bytes: int
    overhead_bytes: int
    usable_bytes: int

    def __post_init__(self) -> None:
        sizes = (self.weights_bytes, self.kv_bytes, self.activation_bytes, self.overhead_bytes)
        require(min(sizes) >= 0, "memory is never negative")
        require(self.usable_bytes >= 0, "usable memory is never negative")

    @property
    def needed_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.activation_bytes + self.overhead_bytes

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.usable_bytes


def stage_weight_bytes(model: ModelSpec, first: int, last: int, *, attention_tp: int, tp: int, ep: int) -> int:
    """Weights of layers first..last-1 on the fullest rank, embedding before layer 0 and head after the last included.

    Routed experts are spread over ep ranks and cut over the other tp / ep; everything else is cut over attention_tp. A
    tied embedding stands once on a stage that has both ends, and on both stages where there are two.
    """
    _check_range(model, first, last)
    sums = _prefix_sums(model, attention_tp, tp, ep)
    total = sums.layers[last] - sums.layers[first]
    has_input, has_output = first == 0, last == model.layers
    if has_input:
        total += sums.input
    if has_output:
        total += sums.output
        if not (model.tied_embeddings and has_input):
            total += sums.head
    return total


def kv_bytes_per_token(model: ModelSpec, first: int, last: int, *, attention_tp: int) -> int:
    """What one more token of a sequence adds on a rank, in layers that keep every token.

    Grouped-query attention keeps a key and a value per KV head: 2 x kv_heads x head_dim x bytes a layer; a rank holds
    kv_heads / tp of them, at least one, since heads beyond the KV heads share replicas (Ainslie et al., arXiv
    2305.13245; vLLM: `max(1, total_num_kv_heads // tensor_parallel_size)`). Latent attention keeps one latent and one
    rotary key for all heads: (kv_lora_rank + qk_rope_head_dim) x bytes a layer, which every rank holds whole
    (DeepSeek-V2, arXiv 2405.04434, section 2.1.2 and table 1). A sparse-attention indexer adds one FP8 key with its
    float32 scale per 128 values. Engines keep the cache in the activation dtype unless told otherwise.
    """
    _check_range(model, first, last)
    sums = _cache_sums(model, attention_tp)
    return sums.full[last] - sums.full[first]


def sequence_bytes(model: ModelSpec, first: int, last: int, *, tokens: int, attention_tp: int) -> int:
    """The cache of one sequence on a rank: sliding layers stop growing at their window, linear ones never grow."""
    require(tokens >= 0, "a sequence has no negative length")
    _check_range(model, first, last)
    sums = _cache_sums(model, attention_tp)
    held = min(tokens, model.sliding_window) if model.sliding_window is not None else tokens
    return (
        tokens * (sums.full[last] - sums.full[first])
        + held * (sums.sliding[last] - sums.sliding[first])
        + sums.state[last]
        - sums.state[first]
    )


def activation_bytes(model: ModelSpec, *, tokens: int, tp: int, ep: int = 1, attention_dp: int = 1) -> int:
    """Peak working memory of a pass over `tokens` tokens on a rank.

    Dense layers as measured by others (see _ACTIVATION_WIDTHS), the sampler, and for experts what vLLM's fused kernel
    allocates: every token once per chosen expert, at the width that a rank holds of it (fused_moe: intermediate caches
    1 to 3); under attention-DP the tokens of all ranks, as far as one call of the kernel takes them.
    """
    require(tokens >= 0 and tp >= 1, "tokens are not negative and a group has at least one GPU")
    width = next(c for size, c in _ACTIVATION_WIDTHS if tp // attention_dp >= size)
    dense = tokens * model.hidden_size * width * model.dtype_bytes
    sampler = min(tokens, _SAMPLED_SEQUENCES) * model.vocab_size * 4 * _SAMPLER_COPIES
    routed = 0
    if model.moe is not None:
        wide = 3 * -(-model.moe.intermediate_size * ep // tp) + model.hidden_size
        seen = max(tokens, min(tokens * attention_dp, _EXPERT_TOKENS))
        routed = seen * model.moe.experts_per_token * wide * model.dtype_bytes
    return dense + sampler + routed


def overhead_bytes(gpus: int) -> int:
    """What a replica of so many GPUs costs each of them beside the model: the runtime, and communicators if any."""
    require(gpus >= 1, "a replica has at least one GPU")
    return RUNTIME_BYTES + (COMMUNICATOR_BYTES if gpus > 1 else 0)


@dataclass(frozen=True, slots=True)
class _WeightSums:
    layers: tuple[int, ...]
    input: int
    output: int
    head: int


@dataclass(frozen=True, slots=True)
class _CacheSums:
    """Prefix sums over layers: bytes per token of full and of sliding ones, bytes per sequence of linear ones."""

    full: tuple[int, ...]
    sliding: tuple[int, ...]
    state: tuple[int, ...]


def _prefix_sums(model: ModelSpec, attention_tp: int, tp: int, ep: int) -> _WeightSums:
    key = ("weights", attention_tp, tp, ep)
    sums = model.memo.get(key)
    if not isinstance(sums, _WeightSums):
        require(min(attention_tp, tp, ep) >= 1, "a group has at least one GPU")
        weights = model.weights
        sizes = {
            id(layer): sum(t.rank_bytes(attention_tp, tp, ep) for t in layer)
            for layer in {id(layer): layer for layer in weights.layers}.values()
        }
        sums = model.memo[key] = _WeightSums(
            layers=(0, *accumulate(sizes[id(layer)] for layer in weights.layers)),
            input=sum(t.rank_bytes(attention_tp, tp, ep) for t in weights.input),
            output=sum(t.rank_bytes(attention_tp, tp, ep) for t in weights.output),
            head=weights.head.rank_bytes(attention_tp, tp, ep),
        )
    return sums


def _cache_sums(model: ModelSpec, attention_tp: int) -> _CacheSums:
    key = ("cache", attention_tp)
    sums = model.memo.get(key)
    if not isinstance(sums, _CacheSums):
        require(attention_tp >= 1, "a group has at least one GPU")
        full = _layer_bytes_per_token(model, attention_tp, everywhere=True)
        local = _layer_bytes_per_token(model, attention_tp, everywhere=False)
        state = _state_bytes(model, attention_tp)
        kinds = [kind.value for kind in model.layer_kinds]
        sums = model.memo[key] = _CacheSums(
            full=(0, *accumulate(full if k == "full" else 0 for k in kinds)),
            sliding=(0, *accumulate(local if k == "sliding" else 0 for k in kinds)),
            state=(0, *accumulate(state if k == "linear" else 0 for k in kinds)),
        )
    return sums


def _layer_bytes_per_token(model: ModelSpec, attention_tp: int, *, everywhere: bool) -> int:
    if model.mla is not None:
        latent = (model.mla.kv_lora_rank + model.mla.qk_rope_head_dim) * model.dtype_bytes
        index = model.mla.index_head_dim or 0
        return latent + index + 4 * -(-index // 128)
    kv_heads, dim = model.kv_heads, model.head_dim
    if everywhere and model.global_attention is not None:
        kv_heads, dim = model.global_attention.kv_heads, model.global_attention.head_dim
    return 2 * -(-kv_heads // attention_tp) * dim * model.dtype_bytes


def _state_bytes(model: ModelSpec, attention_tp: int) -> int:
    """Per sequence: value heads x key size x value size, and the convolution's last inputs."""
    linear = model.linear_attention
    if linear is None:
        return 0
    heads = -(-linear.value_heads // attention_tp)
    recurrent = heads * linear.key_head_dim * linear.value_head_dim * linear.state_bytes_per_value
    channels = -(-linear.conv_channels // attention_tp)
    return recurrent + channels * (linear.conv_kernel - 1) * model.dtype_bytes


def _check_range(model: ModelSpec, first: int, last: int) -> None:
    if not 0 <= first < last <= model.layers:
        raise ValueError(f"a stage has layers first < last of 0..{model.layers}, not {first}..{last}")
