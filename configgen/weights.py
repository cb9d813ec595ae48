"""The tensors of a model, derived from its shape: how many elements, how they are stored and how TP and EP cut them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

from configgen.quantization import Quantization

if TYPE_CHECKING:
    from configgen.model import ModelSpec


class Part(str, Enum):
    ATTENTION = "attention"
    DENSE_MLP = "dense MLP"
    ROUTER = "router"
    ROUTED_EXPERTS = "routed experts"
    SHARED_EXPERTS = "shared experts"
    NORMS = "norms"
    EMBEDDING = "embedding"
    LM_HEAD = "lm_head"
    VISION = "vision tower"


class Cut(str, Enum):
    """Which side of a weight tensor parallelism divides; what is divided nowhere stands whole on every rank."""

    ROWS = "output"
    COLUMNS = "input"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class Tensor:
    """`count` equal weights of (rows = out, columns = in). A rank takes whole units of rows, such as a head's."""

    module: str
    part: Part
    rows: int
    columns: int = 1
    count: int = 1
    cut: Cut = Cut.NOWHERE
    unit: int = 1
    element_bytes: int = 2
    quantization: Quantization | None = None

    @property
    def elements(self) -> int:
        return self.count * self.rows * self.columns

    @property
    def size_bytes(self) -> int:
        return self.rank_bytes(1, 1, 1)

    def shard(self, attention_tp: int, tp: int, ep: int) -> tuple[int, int, int]:
        """(rows, columns, count) on the fullest rank. TP inside the attention group cuts all but routed experts.

        KV heads beyond the head count are replicated, which is what rounding up to a whole head gives.
        """
        parts, count = attention_tp, self.count
        if self.part is Part.ROUTED_EXPERTS:
            parts, count = max(1, tp // ep), -(-self.count // ep)
        if self.cut is Cut.ROWS:
            return -(-(self.rows // self.unit) // parts) * self.unit, self.columns, count
        if self.cut is Cut.COLUMNS:
            return self.rows, -(-self.columns // parts), count
        return self.rows, self.columns, count

    def rank_bytes(self, attention_tp: int, tp: int, ep: int) -> int:
        rows, columns, count = self.shard(attention_tp, tp, ep)
        if self.quantization is not None:
            return count * self.quantization.weight_bytes(rows, columns)
        return count * rows * columns * self.element_bytes


@dataclass(frozen=True)
class Weights:
    """`layers[i]` are the tensors of layer i; equal layers share one tuple. `input` stands before them, `output` after.

    `head` is the lm_head's own matrix, or the tied embedding once more where it has to be on another stage.
    """

    layers: tuple[tuple[Tensor, ...], ...]
    input: tuple[Tensor, ...]
    output: tuple[Tensor, ...]
    head: Tensor
    tied: bool

    @property
    def tensors(self) -> Iterator[Tensor]:
        yield from self.input
        for layer in self.layers:
            yield from layer
        yield from self.output
        if not self.tied:
            yield self.head

    @cached_property
    def parameters(self) -> int:
        return sum(t.elements for t in self.tensors)

    @cached_property
    def size_bytes(self) -> int:
        return sum(t.size_bytes for t in self.tensors)

    @cached_property
    def part_parameters(self) -> dict[Part, int]:
        """Elements of each part, over all layers."""
        totals = dict.fromkeys(Part, 0)
        for tensor in self.tensors:
            totals[tensor.part] += tensor.elements
        return totals

    @cached_property
    def distinct(self) -> tuple[Tensor, ...]:
        """One tensor of every kind, for laws that hold per kind."""
        return tuple(dict.fromkeys(t for layer in {id(layer): layer for layer in self.layers}.values() for t in layer))


def weights_of(spec: ModelSpec) -> Weights:
    moe_layers = spec.moe.layers if spec.moe is not None else frozenset()
    ignored = spec.quantization.ignored if spec.quantization is not None else None
    built: dict[tuple[object, ...], tuple[Tensor, ...]] = {}
    shared: dict[tuple[Tensor, ...], tuple[Tensor, ...]] = {}
    layers = []
    for index, kind in enumerate(spec.layer_kinds):
        key = (kind, index in moe_layers, index if ignored is not None and ignored.tell_layers_apart else None)
        if key not in built:
            tensors = tuple(_layer(spec, kind.value, index in moe_layers))
            stored = tuple(_stored(t, spec, index) for t in tensors)
            built[key] = shared.setdefault(stored, stored)
        layers.append(built[key])
    width, plain = spec.hidden_size, spec.dtype_bytes
    vocabulary = Tensor("embed_tokens", Part.EMBEDDING, spec.vocab_size, width, cut=Cut.ROWS, element_bytes=plain)
    before = [vocabulary]
    if spec.traits.learned_positions:
        before.append(
            Tensor("embed_positions", Part.EMBEDDING, spec.traits.learned_positions, width, element_bytes=plain)
        )
    if spec.vision_parameters:
        before.append(Tensor("vision", Part.VISION, spec.vision_parameters, element_bytes=plain))
    norm = Tensor("norm", Part.NORMS, width * (2 if spec.traits.norm_bias else 1), element_bytes=plain)
    head = replace(vocabulary, module="lm_head", part=Part.LM_HEAD)
    return Weights(tuple(layers), tuple(before), (norm,), head, spec.tied_embeddings)


_UNQUANTIZED = frozenset((Part.ROUTER, Part.NORMS))


def _stored(tensor: Tensor, spec: ModelSpec, index: int) -> Tensor:
    """Linear weights as quantised as the checkpoint has them; vectors, routers and ignored modules in the dtype."""
    quantization = spec.quantization
    module = f"layers.{index}.{tensor.module}"
    if quantization is None or tensor.columns == 1 or tensor.part in _UNQUANTIZED or quantization.ignored.match(module):
        return replace(tensor, element_bytes=spec.dtype_bytes)
    return replace(tensor, element_bytes=spec.dtype_bytes, quantization=quantization)


def _layer(spec: ModelSpec, kind: str, has_experts: bool) -> Iterator[Tensor]:
    traits = spec.traits
    yield Tensor("norm", Part.NORMS, spec.hidden_size * traits.norms * (2 if traits.norm_bias else 1))
    if kind == "linear":
        yield from _linear_attention(spec)
    elif spec.mla is not None:
        yield from _latent_attention(spec)
    else:
        yield from _attention(spec, kind)
    if has_experts:
        yield from _experts(spec)
    if spec.intermediate_size is not None and (not has_experts or traits.dense_beside_experts):
        yield from _mlp(spec, "mlp", Part.DENSE_MLP, spec.intermediate_size, 1, traits.mlp_bias)


def _attention(spec: ModelSpec, kind: str) -> Iterator[Tensor]:
    traits, hidden, heads = spec.traits, spec.hidden_size, spec.attention_heads
    kv_heads, dim, values = spec.kv_heads, spec.head_dim, True
    if spec.global_attention is not None and kind == "full":
        kv_heads, dim = spec.global_attention.kv_heads, spec.global_attention.head_dim
        values = not spec.global_attention.keys_are_values
    queries = heads * dim * (2 if traits.attention_gate else 1)
    unit = queries // heads
    yield Tensor("self_attn.q_proj", Part.ATTENTION, queries, hidden, cut=Cut.ROWS, unit=unit)
    yield Tensor("self_attn.k_proj", Part.ATTENTION, kv_heads * dim, hidden, cut=Cut.ROWS, unit=dim)
    if values:
        yield Tensor("self_attn.v_proj", Part.ATTENTION, kv_heads * dim, hidden, cut=Cut.ROWS, unit=dim)
    yield Tensor("self_attn.o_proj", Part.ATTENTION, hidden, heads * dim, cut=Cut.COLUMNS)
    if traits.qkv_bias:
        yield Tensor("self_attn.bias", Part.ATTENTION, queries + (1 + values) * kv_heads * dim)
    if traits.output_bias:
        yield Tensor("self_attn.o_proj.bias", Part.ATTENTION, hidden)
    if traits.attention_sinks:
        yield Tensor("self_attn.sinks", Part.ATTENTION, heads, cut=Cut.ROWS)
    if traits.qk_norm is not None:
        normed = 2 * dim if traits.qk_norm == "head" else (heads + kv_heads) * dim
        yield Tensor("self_attn.qk_norm", Part.NORMS, normed)


def _latent_attention(spec: ModelSpec) -> Iterator[Tensor]:
    """The down-projections to a latent stand whole on every rank, the up-projections are cut by heads."""
    mla = spec.mla
    assert mla is not None
    hidden, heads = spec.hidden_size, spec.attention_heads
    query = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    key_value = mla.qk_nope_head_dim + mla.v_head_dim
    if mla.q_lora_rank is None:
        yield Tensor("self_attn.q_proj", Part.ATTENTION, heads * query, hidden, cut=Cut.ROWS, unit=query)
    else:
        rank = mla.q_lora_rank
        yield Tensor("self_attn.q_a_proj", Part.ATTENTION, rank, hidden)
        yield Tensor("self_attn.q_a_layernorm", Part.NORMS, rank)
        yield Tensor("self_attn.q_b_proj", Part.ATTENTION, heads * query, rank, cut=Cut.ROWS, unit=query)
    latent = mla.kv_lora_rank
    yield Tensor("self_attn.kv_a_proj_with_mqa", Part.ATTENTION, latent + mla.qk_rope_head_dim, hidden)
    yield Tensor("self_attn.kv_a_layernorm", Part.NORMS, latent)
    yield Tensor("self_attn.kv_b_proj", Part.ATTENTION, heads * key_value, latent, cut=Cut.ROWS, unit=key_value)
    yield Tensor("self_attn.o_proj", Part.ATTENTION, hidden, heads * mla.v_head_dim, cut=Cut.COLUMNS)
    if mla.index_heads is not None and mla.index_head_dim is not None:
        source = mla.q_lora_rank or hidden
        yield Tensor("self_attn.indexer.wq_b", Part.ATTENTION, mla.index_heads * mla.index_head_dim, source)
        yield Tensor("self_attn.indexer.wk", Part.ATTENTION, mla.index_head_dim, hidden)
        yield Tensor("self_attn.indexer.weights_proj", Part.ATTENTION, mla.index_heads, hidden)


def _linear_attention(spec: ModelSpec) -> Iterator[Tensor]:
    """Gated DeltaNet as Qwen3-Next and Qwen3.5 build it: one projection for q, k, v, one gate, two small ones."""
    linear = spec.linear_attention
    assert linear is not None
    hidden, values = spec.hidden_size, linear.value_heads * linear.value_head_dim
    group = linear.conv_channels // linear.key_heads
    value_unit = values // linear.key_heads
    yield Tensor("linear_attn.in_proj_qkv", Part.ATTENTION, linear.conv_channels, hidden, cut=Cut.ROWS, unit=group)
    yield Tensor("linear_attn.in_proj_z", Part.ATTENTION, values, hidden, cut=Cut.ROWS, unit=value_unit)
    small = 2 * linear.value_heads
    yield Tensor("linear_attn.in_proj_ba", Part.ATTENTION, small, hidden, cut=Cut.ROWS, unit=small // linear.key_heads)
    yield Tensor("linear_attn.conv1d", Part.ATTENTION, linear.conv_channels * linear.conv_kernel, cut=Cut.ROWS)
    yield Tensor("linear_attn.state", Part.ATTENTION, 2 * linear.value_heads + linear.value_head_dim)
    yield Tensor("linear_attn.out_proj", Part.ATTENTION, hidden, values, cut=Cut.COLUMNS)


def _experts(spec: ModelSpec) -> Iterator[Tensor]:
    moe, traits = spec.moe, spec.traits
    assert moe is not None
    yield Tensor(traits.router, Part.ROUTER, moe.experts, spec.hidden_size)
    if traits.router_bias:
        yield Tensor(traits.router, Part.ROUTER, moe.experts)
    yield from _mlp(spec, traits.expert, Part.ROUTED_EXPERTS, moe.intermediate_size, moe.experts, traits.expert_bias)
    if moe.shared_intermediate_size is not None:
        module = "mlp.shared_expert" if traits.shared_expert_gate else "mlp.shared_experts"
        yield from _mlp(spec, module, Part.SHARED_EXPERTS, moe.shared_intermediate_size, 1, False)
        if traits.shared_expert_gate:
            yield Tensor("mlp.shared_expert_gate", Part.ROUTER, 1, spec.hidden_size)


def _mlp(spec: ModelSpec, module: str, part: Part, size: int, count: int, bias: bool) -> Iterator[Tensor]:
    hidden = spec.hidden_size
    names = ("gate_proj", "up_proj") if spec.traits.gated_mlp else ("up_proj",)
    for name in names:
        yield Tensor(f"{module}.{name}", part, size, hidden, count, Cut.ROWS)
    yield Tensor(f"{module}.down_proj", part, hidden, size, count, Cut.COLUMNS)
    if bias:
        yield Tensor(f"{module}.bias", part, len(names) * size + hidden, count=count)
