"""What forbids a split of a model: each broken law a sentence with its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from configgen.weights import Cut, Part, Tensor

if TYPE_CHECKING:
    from configgen.model import ModelSpec
    from configgen.placement import DomainKind, Slot
    from configgen.plan import EngineTraits, Parallelism, Workload

BFLOAT16_SINCE = (8, 0)
"""Ampere; CUDA C++ Programming Guide, arithmetic instructions by compute capability."""


def tensor_parallel_laws(model: ModelSpec, attention_tp: int, tp: int, ep: int) -> list[str]:
    """The laws that a stage of tp GPUs breaks, its attention cut over attention_tp and its experts spread over ep.

    They are the engines' own (vLLM 0.33, SGLang 0.5.23): heads, KV heads, MLP and expert widths divide; whole
    quantisation groups and blocks on every rank. How a vocabulary is padded differs: see vocabulary_law.
    """
    if tp % attention_tp:
        return [f"TP{tp}: attention TP {attention_tp} does not divide {tp} GPUs"]
    if tp % ep:
        return [f"TP{tp}: EP {ep} does not divide {tp} GPUs"]
    broken = [*_heads(model, attention_tp), *_experts(model, attention_tp, tp, ep)]
    if model.intermediate_size is not None and model.intermediate_size % attention_tp:
        broken.append(f"TP{attention_tp}: the MLP's {model.intermediate_size} channels do not divide by {attention_tp}")
    for tensor in model.weights.distinct:
        law = _blocks(tensor, attention_tp, tp, ep)
        if law is not None and law not in broken:
            broken.append(law)
    return broken


def engine_law(model: ModelSpec, workload: Workload, traits: EngineTraits) -> str | None:
    """Why this engine can't serve this model or these sequences at all, on whatever GPUs."""
    engine = f"{traits.engine} {traits.version}"
    if traits.model_types is not None and model.model_type not in traits.model_types:
        known = ", ".join(sorted(traits.model_types))
        return f"{engine} cannot load model type {model.model_type or 'unknown'!r}; it loads {known}"
    method = model.quantization.method if model.quantization else None
    if traits.quantizations is not None and method is not None and method not in traits.quantizations:
        known = ", ".join(sorted(traits.quantizations)) or "plain weights alone"
        return f"{engine} cannot load {method} checkpoints; it loads {known}"
    if traits.max_context is not None and workload.tokens > traits.max_context:
        return f"{engine} serves at most {traits.max_context:,} tokens per sequence, not {workload.tokens:,}"
    return None


def kv_head_law(model: ModelSpec, tp: int, traits: EngineTraits) -> list[str]:
    """The law that TP beyond the KV heads breaks in an engine that keeps no copies of them."""
    copies = traits.copies_kv_heads and model.architecture not in traits.no_kv_copies
    if copies or model.mla is not None or model.kv_heads % tp == 0:
        return []
    return [f"TP{tp}: {model.kv_heads} KV heads do not divide by {tp}, and {traits.engine} keeps no copies of them"]


def vocabulary_law(model: ModelSpec, tp: int, traits: EngineTraits) -> list[str]:
    """The law that a TP of 3, 5, 6 ... breaks in an engine that pads a vocabulary to one size for every TP."""
    if traits.vocabulary_padding is None:
        return []
    padded = -(-model.vocab_size // traits.vocabulary_padding) * traits.vocabulary_padding
    return [f"TP{tp}: a vocabulary of {padded}, padded, does not divide by {tp}"] if padded % tp else []


def stages_law(model: ModelSpec, shape: Parallelism, traits: EngineTraits) -> str | None:
    """Why the engine can't run this model in so many stages; deeper ones are forbidden alike."""
    engine = f"{traits.engine} {traits.version}"
    if shape.pp == 1:
        return None
    if traits.max_stages is not None and shape.pp > traits.max_stages:
        most = "no pipeline" if traits.max_stages == 1 else f"at most {traits.max_stages} stages"
        return f"PP{shape.pp}: {engine} has {most}"
    if model.architecture in traits.no_pipeline_architectures:
        return f"PP{shape.pp}: {engine} has no pipeline for {model.architecture}"
    if shape.attention_dp > 1 and not traits.attention_dp_with_stages:
        return f"{shape.label}: {engine} gives each attention-DP rank a pipeline of its own: no stages"
    return None


def engine_place_law(kind: DomainKind, slot: Slot, earlier: Sequence[Slot], traits: EngineTraits) -> str | None:
    """Why the engine can't start a replica on just these GPUs, after the earlier ones."""
    gpus = kind.refs(slot)
    if traits.single_node and len({ref.node for ref in gpus}) > 1:
        return f"a replica of {traits.engine} lies in one node"
    if not traits.takes_first_gpus:
        return None
    if kind.alone:
        return f"{traits.engine} takes whole GPUs by index, no MIG instances"
    first = sum(ref.node == gpus[0].node for before in earlier for ref in kind.refs(before))
    if sorted(ref.gpu for ref in gpus) == list(range(first, first + len(gpus))):
        return None
    wanted = f"{first}..{first + len(gpus) - 1}" if len(gpus) > 1 else str(first)
    chosen = ", ".join(str(ref.gpu) for ref in gpus)
    return f"{traits.engine} takes GPUs {wanted} by itself, the best group is {chosen}"


def _heads(model: ModelSpec, tp: int) -> list[str]:
    broken = []
    if model.attention_heads % tp:
        broken.append(f"TP{tp}: {model.attention_heads} attention heads do not divide by {tp}")
    counts = {model.kv_heads} | ({model.global_attention.kv_heads} if model.global_attention else set())
    for kv_heads in sorted(counts - {model.attention_heads}) if model.mla is None else ():
        if kv_heads % tp and tp % kv_heads:
            broken.append(f"TP{tp}: {kv_heads} KV heads neither divide by {tp} nor into {tp} replicas")
    linear = model.linear_attention
    if linear is not None and linear.key_heads % tp:
        broken.append(f"TP{tp}: {linear.key_heads} key heads of linear attention do not divide by {tp}")
    return broken


def _experts(model: ModelSpec, attention_tp: int, tp: int, ep: int) -> list[str]:
    moe = model.moe
    if moe is None:
        return [f"EP{ep}: {model.name} has no experts"] if ep > 1 else []
    broken = []
    if moe.experts % ep:
        broken.append(f"EP{ep}: {moe.experts} experts do not divide by {ep}")
    cut = tp // ep
    if moe.intermediate_size % cut:
        broken.append(f"TP{cut}: an expert's {moe.intermediate_size} channels do not divide by {cut}")
    shared = moe.shared_intermediate_size
    if shared is not None and shared % attention_tp:
        broken.append(f"TP{attention_tp}: the shared experts' {shared} channels do not divide by {attention_tp}")
    return broken


def _blocks(tensor: Tensor, attention_tp: int, tp: int, ep: int) -> str | None:
    """A scale belongs to one rank: what a rank holds of a quantised weight is made of whole groups or blocks."""
    quantization, routed = tensor.quantization, tensor.part is Part.ROUTED_EXPERTS
    parts = tp // ep if routed else attention_tp
    if quantization is None or quantization.pads or tensor.cut is Cut.NOWHERE or parts == 1:
        return None
    if tensor.cut is Cut.COLUMNS:
        whole, units = tensor.columns, tensor.columns
        size = quantization.block[1] if quantization.block else quantization.group_size
    else:
        whole, units = tensor.rows, tensor.rows // tensor.unit
        size = quantization.block[0] if quantization.block else None
    if size is None or (units % parts and units >= parts):
        return None  # nothing to keep whole, or an uneven cut, which is a law of its own
    rows, columns, _ = tensor.shard(attention_tp, tp, ep)
    share = columns if tensor.cut is Cut.COLUMNS else rows
    if share % size == 0:
        return None
    unit = "block" if quantization.block else "group"
    method = quantization.method.upper() if quantization.method.isalnum() else quantization.method
    broken = f"TP{parts}: {method} {unit} {size} does not divide"
    if units < parts:
        return f"{broken} a KV head's {share} channels, which a rank holds"
    owner = "an expert's " if routed else ""
    count = f" ({whole // size} {unit}s do not split in {parts})" if whole % size == 0 else ""
    return f"{broken} {owner}{whole} / {parts} = {share}{count}"


def gpu_law(model: ModelSpec, capability: tuple[int, int] | None, traits: EngineTraits) -> str | None:
    """Why the engine can't run this model's formats on a GPU of this compute capability; None is an untold one."""
    if capability is None:
        return None
    engine, shown = f"{traits.engine} {traits.version}", f"compute capability {capability[0]}.{capability[1]}"
    method = model.quantization.method if model.quantization else None
    for what, least in ((engine, traits.oldest_capability), (method, traits.min_capability.get(method or ""))):
        if least is not None and capability < least:
            where = "" if what == engine else f" in {traits.engine}"
            return f"{what} needs compute capability {least[0]}.{least[1]}{where}, the GPU has {shown}"
    if capability < BFLOAT16_SINCE and model.model_type in traits.no_float16_model_types:
        return f"{model.model_type} is not stable in float16, and {shown} has no bfloat16"
    return None


def node_law(nodes: Sequence[int], stages: int, traits: EngineTraits) -> str | None:
    """Why an engine can't start a replica whose ranks lie on these nodes, given in rank order.

    Every engine starts the same number of ranks on each node, node after node. One that counts ranks by whole stages
    places the stages of other cuts wrongly, or never starts some of them (SGLang's _calculate_rank_ranges), and doesn't
    say so.
    """
    ranks = Counter(nodes)
    if len(set(ranks.values())) > 1:
        return f"a replica needs as many GPUs on each of its nodes, here {', '.join(map(str, ranks.values()))}"
    if len([node for node, _ in groupby(nodes)]) > len(ranks):
        return "the ranks of a node follow each other, and these stages go back and forth between nodes"
    if traits.whole_stages and stages % len(ranks) and len(ranks) % stages:
        engine = f"{traits.engine} {traits.version}"
        return f"{engine} puts whole stages on a node or whole nodes in a stage, not {stages} stages on {len(ranks)}"
    return None
