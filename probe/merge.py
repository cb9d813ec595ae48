"""Several descriptions -> one: of different machines a cluster, of one machine what each alone leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import TypeVar

from probe.errors import UsageError
from probe.topology import Gpu, GpuState, NetworkPath, Node, NodeShape, Notice, Origin, Path, PathKind, Topology

T = TypeVar("T", Gpu, GpuState)


def merge_topologies(parts: Sequence[Topology]) -> Topology:
    """One topology of all nodes in the given order, joined by a network.

    Two descriptions with the same GPU UUIDs are of one machine and complete each other; so do one that tells paths but
    no UUIDs and one that tells UUIDs but no path (`topo -m` and `-q -x`). Raises UsageError where they share some GPUs
    but not all.
    """
    merged: list[Topology] = []
    for part in parts:
        same = next((i for i, known in enumerate(merged) if _is_same(known, part)), None)
        if same is None:
            merged.append(part)
        elif len(part.nodes) == 1:
            wired, other = sorted((merged[same], part), key=_tells_no_path)
            merged[same] = completed(wired, other)
    return merged[0] if len(merged) == 1 else _cluster(merged)


def completed(topology: Topology, other: Topology) -> Topology:
    """The topology with what it leaves open filled in from another description of the same single machine.

    What both tell stays as the first tells it. GPUs are matched by UUID, else by PCI bus id, else by index; where that
    cannot be, a notice says so and the first stands alone.
    """
    node, told = topology.nodes[0], other.nodes[0]
    places = _matched(node, told) if len(topology.nodes) == len(other.nodes) == 1 else None
    if places is None:
        notice = Notice("not-merged", "a second description has other GPUs than the first: it is left out", 0)
        return replace(topology, warnings=(*topology.warnings, notice))
    shape = node.shape
    pairs = [(gpu, told.shape.gpus[i] if (i := places[gpu.index]) is not None else gpu) for gpu in shape.gpus]
    gpus = tuple(_filled(gpu, other_gpu) for gpu, other_gpu in pairs)
    whole = replace(
        shape,
        gpus=gpus,
        paths=tuple(_known(path, _told_path(told, places[a], places[b])) for a, b, path in shape.pairs),
        nvlink_visible=shape.nvlink_visible or told.shape.nvlink_visible,
        numa_nodes=shape.numa_nodes or told.shape.numa_nodes,
    )
    if not shape.nics and told.shape.nic_paths and None not in places:
        rows = tuple(told.shape.nic_paths[i] for i in places if i is not None)
        near = tuple(
            replace(gpu, nearest_nics=other_gpu.nearest_nics) for gpu, (_, other_gpu) in zip(gpus, pairs, strict=True)
        )
        whole = replace(whole, gpus=near, nics=told.shape.nics, nic_paths=rows)
    states = tuple(
        _filled(state, told.gpus[i]) if (i := places[index]) is not None else state
        for index, state in enumerate(node.gpus)
    )
    own = {
        name: getattr(node, name) or getattr(told, name)
        for name in ("hostname", "driver_version", "cuda_version", "virtualization")
    }
    known = {o.fact for o in topology.provenance}
    return replace(
        topology,
        nodes=(Node(shape=whole, gpus=states, **own),),
        warnings=tuple(_still_true((*topology.warnings, *other.warnings), whole)),
        provenance=(*topology.provenance, *(o for o in other.provenance if o.fact not in known)),
    )


def _is_same(a: Topology, b: Topology) -> bool:
    if _uuids(a) and _uuids(b):
        return _uuids(a) == _uuids(b)
    if len(a.nodes) != 1 or len(b.nodes) != 1 or len(a.nodes[0].gpus) != len(b.nodes[0].gpus) or a.gpu_count < 2:
        return False
    names = [[g.name for g in t.nodes[0].shape.gpus] for t in (a, b)]
    agree = all(x == y or None in (x, y) for x, y in zip(*names, strict=True))
    return agree and _tells_no_path(a) != _tells_no_path(b)


def _tells_no_path(topology: Topology) -> bool:
    return all(p.kind is PathKind.UNKNOWN for node in topology.nodes for p in node.shape.paths)


def _uuids(topology: Topology) -> frozenset[str]:
    return frozenset(g.uuid for node in topology.nodes for g in node.gpus if g.uuid is not None)


def _still_true(warnings: Sequence[Notice], shape: NodeShape) -> Iterator[Notice]:
    """Each warning once, without those that the other description has answered."""
    answered = set()
    if all(p.kind is not PathKind.UNKNOWN for p in shape.paths):
        answered |= {"paths-unknown", "rows-missing"}
    if shape.nvlink_visible:
        answered |= {"nvlink-not-visible"}
    return (w for w in dict.fromkeys(warnings) if w.code not in answered)


def _matched(node: Node, told: Node) -> list[int | None] | None:
    """For each GPU of the node its index in the other description, None where that lacks it; None: other GPUs."""
    for identity in ("uuid", "pci_bus_id"):
        here, there = ([getattr(g, identity) for g in n.gpus] for n in (node, told))
        if None not in here and None not in there:
            return [there.index(i) if i in there else None for i in here] if set(there) <= set(here) else None
    return list(range(len(node.gpus))) if len(node.gpus) == len(told.gpus) else None


def _told_path(told: Node, a: int | None, b: int | None) -> Path:
    return Path(PathKind.UNKNOWN) if a is None or b is None else told.shape.path(a, b)


def _filled(first: T, second: T) -> T:
    """The first, with the second's values where the first has none. Defaults of a state count as none."""
    absent = {
        f.name: getattr(second, f.name)
        for f in fields(first)
        if f.name not in ("index", "nearest_nics") and getattr(first, f.name) in (None, ())
    }
    return replace(first, **absent)


def _known(first: Path, second: Path) -> Path:
    """The first where it tells a path, with the P2P of either."""
    path = second if first.kind is PathKind.UNKNOWN else first
    return replace(path, p2p=first.p2p or second.p2p)


def _cluster(parts: Sequence[Topology]) -> Topology:
    shapes: dict[NodeShape, NodeShape] = {}
    nodes: list[Node] = []
    network: list[NetworkPath] = []
    warnings: list[Notice] = []
    provenance: list[Origin] = []
    for part in parts:
        first = len(nodes)
        nodes += [replace(node, shape=shapes.setdefault(node.shape, node.shape)) for node in part.nodes]
        network += [
            NetworkPath(p.kind, tuple(first + i for i in p.nodes)) for p in part.network if p.kind is PathKind.MNNVL
        ]
        warnings += [replace(w, node=first + (w.node or 0)) for w in part.warnings]
        provenance += [replace(o, node=first + (o.node or 0)) for o in part.provenance]
    uuids = [g.uuid for node in nodes for g in node.gpus if g.uuid is not None]
    if len(set(uuids)) < len(uuids):
        raise UsageError("two of the given machines share a GPU but are not the same", cure="Give each machine once.")
    network.append(NetworkPath(PathKind.NET, tuple(range(len(nodes)))))
    return Topology(tuple(nodes), tuple(network), tuple(warnings), tuple(provenance))
