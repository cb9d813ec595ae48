"""Small machines and models for the planner's tests, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from configgen.model import ModelSpec
from configgen.model_config import spec_from_config
from probe.topology import Gpu, GpuState, NetworkPath, Node, NodeShape, Path, PathKind, Topology

GIB = 1 << 30


def node_of(
    n: int,
    memory_gib: float | tuple[float, ...],
    fast: Mapping[tuple[int, int], int] | str = "",
    *,
    pcie: PathKind = PathKind.SYS,
    free_gib: tuple[float, ...] | None = None,
) -> Node:
    """A node of n GPUs; `fast` maps pairs to link counts, or is 'all' for 18 links between every pair."""
    links = dict.fromkeys(combinations(range(n), 2), 18) if fast == "all" else dict(fast or {})
    sizes = memory_gib if isinstance(memory_gib, tuple) else (memory_gib,) * n
    paths = tuple(
        Path(PathKind.NVLINK, links=links[pair]) if pair in links else Path(pcie) for pair in combinations(range(n), 2)
    )
    gpus = tuple(Gpu(i, memory_bytes=int(sizes[i] * GIB)) for i in range(n))
    free = free_gib or (None,) * n
    states = tuple(GpuState(memory_free_bytes=None if f is None else int(f * GIB)) for f in free)
    return Node(NodeShape(gpus, paths), states)


def cluster_of(*nodes: Node) -> Topology:
    network = (NetworkPath(PathKind.NET, tuple(range(len(nodes)))),) if len(nodes) > 1 else ()
    return Topology(nodes, network)


def dense(
    *,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int | None = None,
    intermediate: int | None = None,
    vocab: int = 32000,
    quantization: Mapping[str, object] | None = None,
) -> ModelSpec:
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "intermediate_size": intermediate or hidden * 4,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 8192,
    }
    if quantization:
        config["quantization_config"] = dict(quantization)
    return spec_from_config(config, name="test/dense", source="a test")


def llama_13b() -> ModelSpec:
    return dense(layers=40, hidden=5120, heads=40, intermediate=13824)


def llama_70b(quantization: Mapping[str, object] | None = None) -> ModelSpec:
    return dense(
        layers=80, hidden=8192, heads=64, kv_heads=8, intermediate=28672, vocab=128256, quantization=quantization
    )


def llama_405b() -> ModelSpec:
    return dense(layers=126, hidden=16384, heads=128, kv_heads=8, intermediate=53248, vocab=128256)


def qwen_72b_awq() -> ModelSpec:
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128}
    return dense(layers=80, hidden=8192, heads=64, kv_heads=8, intermediate=29568, vocab=152064, quantization=awq)
