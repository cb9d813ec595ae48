"""What one GPU of a stage computes and reads in a forward pass: a roofline over the tensors that it holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import log, sqrt

from configgen.memory import sequence_bytes
from configgen.model import LayerKind, ModelSpec
from configgen.plan import Parallelism
from configgen.rates import Rates
from configgen.weights import Part, Tensor

KERNEL_S = 3e-6
"""Least time of a kernel in a CUDA graph, its launch, ramp and tail: aiconfigurator's `mem_empirical_constant_latency`
of every GPU, 3 us."""

ATTENTION_EFFICIENCY = 0.6
"""Of the dense peak: FlashAttention-3 reaches 0.75 without and about 0.6 with a causal mask (arXiv 2407.08608)."""

TILE = 128
"""Rows and columns of a product that one multiprocessor computes at once (CUTLASS' default tile on Hopper)."""
EXPERT_TILE = 64
"""Tokens that an expert's product is padded to whole multiples of: on average half of it is wasted per expert."""
MULTIPROCESSORS = 132
"""Of an H100; 108 to 148 on all data-centre boards since Ampere."""


@dataclass(frozen=True, slots=True)
class Load:
    """What goes through a stage at once, per attention group: new tokens of prompts, and sequences that decode."""

    decoding: float
    prompt_tokens: float
    context: float
    """Tokens that a decoding sequence has behind it, on average."""
    prompt_context: float
    """Tokens before a prompt's new token, on average: half the prompt."""

    @property
    def tokens(self) -> float:
        return self.decoding + self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of a pass on the fullest GPU of a stage, by what they are spent on."""

    weights_s: float = 0.0
    """Reading weights where that takes longer than multiplying."""
    gemm_s: float = 0.0
    """Multiplying where that takes longer than reading."""
    kv_s: float = 0.0
    attention_s: float = 0.0
    elementwise_s: float = 0.0
    launch_s: float = 0.0
    kernels: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.weights_s + other.weights_s,
            self.gemm_s + other.gemm_s,
            self.kv_s + other.kv_s,
            self.attention_s + other.attention_s,
            self.elementwise_s + other.elementwise_s,
            self.launch_s + other.launch_s,
            self.kernels + other.kernels,
        )

    def times(self, n: int) -> Work:
        return Work(
            self.weights_s * n, self.gemm_s * n, self.kv_s * n, self.attention_s * n, self.elementwise_s * n,
            self.launch_s * n, self.kernels * n,
        )  # fmt: skip

    @property
    def named(self) -> tuple[tuple[str, float], ...]:
        return (
            ("weights", self.weights_s), ("gemm", self.gemm_s), ("kv", self.kv_s), ("attention", self.attention_s),
            ("elementwise", self.elementwise_s), ("launch", self.launch_s),
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.named)


@dataclass(frozen=True, slots=True)
class _Product:
    """Matrices of one kernel on the fullest rank: q, k and v are one, so are gate and up."""

    bytes: float
    rows: int
    columns: int
    elements: float
    bits: int
    weights_only: bool
    routed: bool


def composition(model: ModelSpec, first: int, last: int) -> tuple[tuple[tuple[int, LayerKind], int], ...]:
    """How many layers of which kind: stages that agree in it and in their end do the same work."""
    key = ("composition", first, last)
    found = model.memo.get(key)
    if not isinstance(found, tuple):
        kinds = Counter((id(model.weights.layers[i]), model.layer_kinds[i]) for i in range(first, last))
        found = model.memo[key] = tuple(sorted(kinds.items(), key=lambda item: (item[0][0], item[0][1].value)))
    return found


def stage_work(model: ModelSpec, shape: Parallelism, rates: Rates, first: int, last: int, load: Load) -> Work:
    """Layers first..last-1 and, on the last stage, the head, for one rank."""
    layers = {id(layer): layer for layer in model.weights.layers[first:last]}
    total = Work()
    for (layer, kind), times in composition(model, first, last):
        total += _layer(model, shape, rates, layers[layer], kind, load).times(times)
    total += _cache(model, shape, rates, first, last, load)
    if last == model.layers:
        head = _product((model.weights.head,), shape)
        total += _dense(head, rates, max(1.0, load.decoding))
    return total


def _layer(
    model: ModelSpec, shape: Parallelism, rates: Rates, tensors: tuple[Tensor, ...], kind: LayerKind, load: Load
) -> Work:
    work = Work()
    for product in _products(model, shape, tensors):
        if product.routed:
            work += _routed(model, shape, rates, product, load.tokens * shape.attention_dp)
        else:
            work += _dense(product, rates, load.tokens)
    return work + _prompt_attention(model, shape, rates, kind, load) + _elementwise(model, shape, rates, tensors, load)


def _products(model: ModelSpec, shape: Parallelism, tensors: tuple[Tensor, ...]) -> tuple[_Product, ...]:
    key = ("products", id(tensors), shape.tp, shape.attention_dp, shape.ep)
    found = model.memo.get(key)
    if not isinstance(found, tuple):
        groups: dict[tuple[str, Part], list[Tensor]] = {}
        for tensor in tensors:
            if tensor.columns > 1:
                side = "in" if tensor.module.endswith(_FUSED) else tensor.module
                groups.setdefault((side, tensor.part), []).append(tensor)
        found = model.memo[key] = tuple(_product(tuple(group), shape) for group in groups.values())
    return found


_FUSED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "q_a_proj", "kv_a_proj_with_mqa")


def _product(tensors: tuple[Tensor, ...], shape: Parallelism) -> _Product:
    shards = [t.shard(shape.attention_tp, shape.tp, shape.ep) for t in tensors]
    first = tensors[0]
    stored = first.quantization
    return _Product(
        bytes=sum(t.rank_bytes(shape.attention_tp, shape.tp, shape.ep) for t in tensors),
        rows=sum(rows for rows, _, _ in shards),
        columns=max(columns for _, columns, _ in shards),
        elements=sum(rows * columns * count for rows, columns, count in shards),
        bits=stored.bits if stored is not None else 8 * first.element_bytes,
        weights_only=stored is not None and stored.method not in _MULTIPLIES_NARROW,
        routed=first.part is Part.ROUTED_EXPERTS,
    )


_MULTIPLIES_NARROW = frozenset(("fp8", "nvfp4", "mxfp4", "mxfp8", "int8", "fbgemm_fp8"))
"""Formats whose activations are narrow too; the others (AWQ, GPTQ, int4) are widened before they are multiplied."""


def _dense(product: _Product, rates: Rates, tokens: float) -> Work:
    read = product.bytes / rates.memory_bytes_per_s
    ops = rates.matrix_ops_per_s(product.bits, weights_only=product.weights_only)
    multiply = 2 * tokens * product.elements / ops * _last_wave(tokens, product.rows)
    quantise = 1 if product.bits < 16 and not product.weights_only else 0
    return _bound(read, multiply, kernels=1 + quantise)


def _routed(model: ModelSpec, shape: Parallelism, rates: Rates, product: _Product, tokens: float) -> Work:
    """Experts: a rank reads those that a token chose, and multiplies each token with its own.

    Of E experts, `tokens` that choose k each leave (1 - k / E) ** tokens of them unread. Ranks of an EP group wait for
    the one with the most: of n tokens a rank's share is n / ep + sqrt(2 n / ep ln ep) for independent choices (balls
    into bins: Raab and Steger, RANDOM 1998).
    """
    assert model.moe is not None
    experts, chosen = model.moe.experts, model.moe.experts_per_token
    touched = 1 - (1 - chosen / experts) ** tokens
    share = tokens * chosen / shape.ep
    share += sqrt(2 * share * log(shape.ep)) if shape.ep > 1 else 0
    here = max(1, experts // shape.ep)
    read = product.bytes * touched / rates.memory_bytes_per_s
    padded = share + here * touched * EXPERT_TILE / 2
    ops = rates.matrix_ops_per_s(product.bits, weights_only=product.weights_only)
    multiply = 2 * padded * product.elements / here / ops * _last_wave(share, product.rows)
    return _bound(read, multiply, kernels=2)


def _last_wave(tokens: float, rows: int) -> float:
    """How much longer a product takes because its last wave of tiles leaves multiprocessors idle: half a wave."""
    tiles = max(1.0, tokens / TILE) * max(1.0, rows / TILE)
    return 1 + 0.5 * MULTIPROCESSORS / max(tiles, MULTIPROCESSORS)


def _bound(read_s: float, multiply_s: float, kernels: int) -> Work:
    launch = KERNEL_S * kernels
    if read_s >= multiply_s:
        return Work(weights_s=read_s, launch_s=launch, kernels=kernels)
    return Work(gemm_s=multiply_s, launch_s=launch, kernels=kernels)


def _cache(model: ModelSpec, shape: Parallelism, rates: Rates, first: int, last: int, load: Load) -> Work:
    """Decoding reads every token's keys and values once; a linear layer's state is read and written."""
    if load.decoding <= 0:
        return Work()
    context = max(1, round(load.context))
    held = sequence_bytes(model, first, last, tokens=context, attention_tp=shape.attention_tp)
    state = sequence_bytes(model, first, last, tokens=0, attention_tp=shape.attention_tp)
    read = load.decoding * (held + state) / rates.memory_bytes_per_s
    multiply = 0.0
    if model.mla is not None:
        width = 2 * model.mla.kv_lora_rank + model.mla.qk_rope_head_dim
        heads = model.attention_heads / shape.attention_tp
        ops = 2 * heads * width * context * load.decoding * (last - first)
        multiply = ops / (rates.half_ops_per_s * ATTENTION_EFFICIENCY)
    return Work(kv_s=max(read, multiply))


def _prompt_attention(model: ModelSpec, shape: Parallelism, rates: Rates, kind: LayerKind, load: Load) -> Work:
    """Each new token of a prompt meets those before it, by each head; 2 products of the head's size."""
    if load.prompt_tokens <= 0:
        return Work()
    heads = model.attention_heads / shape.attention_tp
    width = 2.0 * model.head_dim
    context = load.prompt_context
    if model.mla is not None:
        width = model.mla.qk_nope_head_dim + model.mla.qk_rope_head_dim + model.mla.v_head_dim
    elif kind is LayerKind.FULL and model.global_attention is not None:
        width = 2.0 * model.global_attention.head_dim
    if kind is LayerKind.SLIDING and model.sliding_window is not None:
        context = min(context, model.sliding_window)
    if kind is LayerKind.LINEAR and model.linear_attention is not None:
        linear = model.linear_attention
        heads, context = linear.value_heads / shape.attention_tp, 2.0 * linear.key_head_dim
        width = linear.value_head_dim
    ops = 2 * heads * width * context * load.prompt_tokens
    return Work(attention_s=ops / (rates.half_ops_per_s * ATTENTION_EFFICIENCY))


def _elementwise(model: ModelSpec, shape: Parallelism, rates: Rates, tensors: tuple[Tensor, ...], load: Load) -> Work:
    """Norms with the residual (each reads two, writes two), attention's inputs and outputs, the activation function.

    Kernels: two norms, rotary embedding with the cache's write, attention, its reduction over splits, the activation;
    of experts the routing, the order of tokens, their gathering and their sum.
    """
    routed = model.moe is not None and any(t.part is Part.ROUTED_EXPERTS for t in tensors)
    inner = model.intermediate_size or 0
    parts = float(shape.attention_tp)
    if routed and model.moe is not None:
        inner, parts = model.moe.intermediate_size * model.moe.experts_per_token, float(shape.tp)
    width = 8 * model.hidden_size + 4 * model.attention_heads * model.head_dim / shape.attention_tp + 3 * inner / parts
    if routed and model.moe is not None:
        width += 3 * model.moe.experts_per_token * model.hidden_size / shape.ep
    seconds = load.tokens * width * model.dtype_bytes / rates.memory_bytes_per_s
    kernels = 6 + (4 if routed else 0) + (3 if model.mla is not None else 0)
    return Work(elementwise_s=seconds, launch_s=KERNEL_S * kernels, kernels=kernels)
