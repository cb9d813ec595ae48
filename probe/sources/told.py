"""What no source could tell: memory from the catalog, and the model and memory that a person named."""

from __future__ import annotations

from dataclasses import replace

from probe.catalog import GpuFigures, gpu_figures
from probe.errors import UsageError
from probe.topology import Node, NodeShape, Notice, Origin, Provenance, Topology
from probe.units import gigabytes, parse_bytes


def with_told(topology: Topology, *, gpu_model: str | None = None, gpu_memory: str | None = None) -> Topology:
    """Fills what is absent: names and memory that a person told, then memory from the catalog by name.

    `gpu_memory` is one amount for all GPUs or one per GPU, '24GiB' or '30GiB,50GiB'. What a person says beats the
    catalog but never a driver's reading of the name. Raises UsageError on an unknown model or a wrong count.
    """
    figures = _told_model(gpu_model)
    amounts = tuple(parse_bytes(part) for part in gpu_memory.split(",")) if gpu_memory else ()
    if len(amounts) > 1 and len(amounts) != topology.gpu_count:
        raise UsageError(
            f"--gpu-memory names {len(amounts)} amounts for {topology.gpu_count} GPUs",
            cure="Give one amount for all or one for each GPU.",
        )
    origins = list(topology.provenance)
    if amounts:
        origins.append(Origin("gpus.memory_bytes", Provenance.ASSUMED, "told by --gpu-memory"))
    shapes: dict[tuple[int, tuple[int, ...]], NodeShape] = {}
    nodes: list[Node] = []
    filled: set[tuple[str, str]] = set()
    place = 0
    for node in topology.nodes:
        n = len(node.gpus)
        own = amounts * n if len(amounts) == 1 else amounts[place : place + n]
        place += n
        key = (id(node.shape), own)
        if key not in shapes:
            shapes[key] = _told_shape(node.shape, figures, own, filled)
        nodes.append(replace(node, shape=shapes[key]))
    for fact, name in sorted(filled):
        found = gpu_figures(name)
        if fact == "gpus.name":
            origins.append(Origin(fact, Provenance.ASSUMED, "told by --gpu-model"))
        elif found is not None:
            origins.append(Origin(fact, Provenance.CATALOG, f"{found.name}: {found.source}"))
    return replace(topology, nodes=tuple(nodes), provenance=tuple(dict.fromkeys(origins)))


def _told_model(gpu_model: str | None) -> GpuFigures | None:
    if gpu_model is None:
        return None
    figures = gpu_figures(gpu_model)
    if figures is None:
        raise UsageError(
            f"--gpu-model {gpu_model[:60]!r} is not in the catalog",
            cure="Give the driver's name for it ('NVIDIA L40S'), or --gpu-memory.",
        )
    return figures


def _told_shape(
    shape: NodeShape, figures: GpuFigures | None, amounts: tuple[int, ...], filled: set[tuple[str, str]]
) -> NodeShape:
    """The shape with what is absent filled in; `filled` collects (fact, GPU name) of each."""
    gpus = []
    for gpu in shape.gpus:
        name = gpu.name or (figures.name if figures else None)
        found = gpu_figures(name)
        memory = amounts[gpu.index] if amounts else gpu.memory_bytes
        capability = gpu.compute_capability
        if name is not None and gpu.name is None:
            filled.add(("gpus.name", name))
        if name is not None and found is not None:
            if memory is None:
                memory = found.memory_bytes
                filled.add(("gpus.memory_bytes", name))
            if capability is None and found.compute_capability is not None:
                capability = found.compute_capability
                filled.add(("gpus.compute_capability", name))
        gpus.append(replace(gpu, name=name, memory_bytes=memory, compute_capability=capability))
    return replace(shape, gpus=tuple(gpus))


_ASSUMED_MEMORY = (
    (18, 80 * 10**9, "H100 SXM"),
    (6, 40 * 10**9, "A100 SXM 40 GB"),
    (0, 24 * 10**9, "A10, L4, RTX 3090"),
)
"""(links of a pair, bytes, what has them): the smallest GPU since Ampere that people serve on, wired like that."""


def with_assumed_memory(topology: Topology) -> Topology:
    """Memory for GPUs of which nothing tells it, so that a bare matrix can be planned on; the topology says so."""
    nodes = []
    assumed: dict[int, NodeShape] = {}
    for node in topology.nodes:
        if id(node.shape) not in assumed:
            assumed[id(node.shape)] = _assumed_shape(node.shape)
        nodes.append(replace(node, shape=assumed[id(node.shape)]))
    if all(after.shape is before.shape for before, after in zip(topology.nodes, nodes, strict=True)):
        return topology
    sizes = sorted({_assumed_memory(node.shape)[0] for node in topology.nodes})
    text = " and ".join(gigabytes(size) for size in sizes)
    notice = Notice(
        "memory-assumed",
        f"Nothing tells the memory of some GPUs: {text} is assumed, the smallest GPU wired like this. "
        "Tell it with --gpu-model or --gpu-memory.",
    )
    origin = Origin(
        "gpus.memory_bytes",
        Provenance.ASSUMED,
        f"smallest GPU wired like this: {_assumed_memory(topology.nodes[0].shape)[1]}",
    )
    return replace(
        topology,
        nodes=tuple(nodes),
        warnings=(*topology.warnings, notice),
        provenance=(*topology.provenance, origin),
    )


def _assumed_shape(shape: NodeShape) -> NodeShape:
    if all(g.memory_bytes is not None for g in shape.gpus):
        return shape
    size = _assumed_memory(shape)[0]
    return replace(shape, gpus=tuple(g if g.memory_bytes else replace(g, memory_bytes=size) for g in shape.gpus))


def _assumed_memory(shape: NodeShape) -> tuple[int, str]:
    most = max((p.links or 0 for p in shape.paths), default=0)
    return next((size, which) for links, size, which in _ASSUMED_MEMORY if most >= links)
