"""What a decision needs of a model: layers, heads, experts, dtypes. Frozen facts that check their own laws; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from configgen.quantization import Quantization
from configgen.weights import Weights, weights_of
from probe.topology import Notice, require


class LayerKind(str, Enum):
    """What a layer remembers of a sequence: every token, the last tokens of a window, or a state of constant size."""

    FULL = "full"
    SLIDING = "sliding"
    LINEAR = "linear"


@dataclass(frozen=True, slots=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): keys and values share one latent.

    `q_lora_rank` is None where queries are projected directly. The indexer is that of sparse attention (DeepSeek-V3.2).
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    index_heads: int | None = None
    index_head_dim: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim)
        require(min(sizes) > 0, "latent attention has positive sizes")
        require(self.q_lora_rank is None or self.q_lora_rank > 0, "a query rank is positive or absent")
        require((self.index_heads is None) == (self.index_head_dim is None), "an indexer has heads and their size")


@dataclass(frozen=True, slots=True)
class Moe:
    """Routed experts. `intermediate_size` is of one expert, `shared_intermediate_size` of all shared ones together."""

    experts: int
    experts_per_token: int
    intermediate_size: int
    layers: frozenset[int]
    shared_experts: int = 0
    shared_intermediate_size: int | None = None

    def __post_init__(self) -> None:
        require(1 <= self.experts_per_token <= self.experts, "a token goes to at least one and at most all experts")
        require(self.intermediate_size > 0, "an expert has a positive intermediate size")
        require(
            (self.shared_experts > 0) == (self.shared_intermediate_size is not None),
            "shared experts have an intermediate size",
        )


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Gated DeltaNet (arXiv 2412.06464): per value head a (key_head_dim, value_head_dim) state instead of a cache."""

    key_heads: int
    key_head_dim: int
    value_heads: int
    value_head_dim: int
    conv_kernel: int
    state_bytes_per_value: int

    def __post_init__(self) -> None:
        sizes = (self.key_heads, self.key_head_dim, self.value_heads, self.value_head_dim, self.conv_kernel)
        require(min(sizes) > 0, "linear attention has positive sizes")
        require(self.value_heads % self.key_heads == 0, "value heads of linear attention split evenly over key heads")

    @property
    def conv_channels(self) -> int:
        return 2 * self.key_heads * self.key_head_dim + self.value_heads * self.value_head_dim


@dataclass(frozen=True, slots=True)
class GlobalAttention:
    """Full-attention layers that differ from the sliding ones (Gemma 4). Keys can serve as values too."""

    kv_heads: int
    head_dim: int
    keys_are_values: bool = False

    def __post_init__(self) -> None:
        require(min(self.kv_heads, self.head_dim) > 0, "global attention has heads of a positive size")


@dataclass(frozen=True, slots=True)
class Traits:
    """What an architecture adds around its big matrices. `qk_norm`: 'head' one norm for all heads, 'all' one each."""

    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: str | None = None
    attention_gate: bool = False
    attention_sinks: bool = False
    gated_mlp: bool = True
    mlp_bias: bool = False
    expert_bias: bool = False
    router_bias: bool = False
    shared_expert_gate: bool = False
    dense_beside_experts: bool = False
    norms: int = 2
    norm_bias: bool = False
    learned_positions: int = 0
    router: str = "mlp.gate"
    """What checkpoints call the router's and the experts' modules: ignore lists of quantisation name them."""
    expert: str = "mlp.experts.0"


@dataclass(frozen=True)
class ModelSpec:
    """A decoder. `intermediate_size` is that of dense MLPs, None where every layer is MoE; `max_context` in tokens.

    Multi-token-prediction layers are not part of it: engines load them only for speculative decoding.
    """

    name: str
    source: str
    architecture: str | None
    model_type: str | None
    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    intermediate_size: int | None
    max_context: int | None
    layer_kinds: tuple[LayerKind, ...]
    dtype: str = "bfloat16"
    dtype_bytes: int = 2
    sliding_window: int | None = None
    mla: Mla | None = None
    moe: Moe | None = None
    linear_attention: LinearAttention | None = None
    global_attention: GlobalAttention | None = None
    quantization: Quantization | None = None
    vision_parameters: int = 0
    traits: Traits = field(default_factory=Traits)
    warnings: tuple[Notice, ...] = ()

    def __post_init__(self) -> None:
        require(self.layers > 0, "a model has at least one layer")
        require(len(self.layer_kinds) == self.layers, f"{self.layers} layers have as many kinds")
        require(min(self.hidden_size, self.head_dim, self.vocab_size) > 0, "sizes are positive")
        require(self.attention_heads > 0, "a model has at least one attention head")
        kv_heads = [self.kv_heads] + ([self.global_attention.kv_heads] if self.global_attention else [])
        for kv in kv_heads:
            require(
                kv > 0 and self.attention_heads % kv == 0,
                f"{self.attention_heads} attention heads share {kv} KV heads evenly",
            )
        require(self.dtype_bytes > 0, "a dtype has at least one byte")
        require(self.intermediate_size is None or self.intermediate_size > 0, "an MLP has a positive size")
        sliding, linear = LayerKind.SLIDING in self.layer_kinds, LayerKind.LINEAR in self.layer_kinds
        require(not sliding or (self.sliding_window or 0) > 0, "sliding layers have a window")
        require(not linear or self.linear_attention is not None, "linear layers have linear attention")
        if self.moe is not None:
            require(all(0 <= i < self.layers for i in self.moe.layers), "MoE layers are layers of the model")
        every = self.moe is not None and len(self.moe.layers) == self.layers and not self.traits.dense_beside_experts
        require(every or self.intermediate_size is not None, "layers without experts have a dense MLP")

    @cached_property
    def weights(self) -> Weights:
        """Every tensor, per layer."""
        return weights_of(self)

    @cached_property
    def memo(self) -> dict[object, object]:
        """Sums over layers that a search asks for thousands of times; whoever derives them keeps them here."""
        return {}

    @property
    def parameters(self) -> int:
        """All parameters, experts and vision tower included, a tied embedding counted once."""
        return self.weights.parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as the checkpoint stores them, scales and zero points included."""
        return self.weights.size_bytes
