"""Several descriptions -> one: of different machines a cluster, of one machine what each alone leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

from probe.errors import UsageError
from probe.topology import Gpu, GpuState, NetworkPath, Node, NodeShape, Notice, Origin, Path, PathKind, Topology

T = TypeVar("T", Gpu, GpuState)


def merge_topologies(parts: Sequence[Topology]) -> Topology:
    """One topology of all nodes in the given order, joined by a network.

    Two descriptions with the same GPU UUIDs are of one machine and complete each other. Raises UsageError where they
    share some GPUs but not all.
    """
    merged: list[Topology] = []
    for part in parts:
        same = next((i for i, known in enumerate(merged) if _uuids(known) and _uuids(known) == _uuids(part)), None)
        if same is None:
            merged.append(part)
        else:
            merged[same] = completed(merged[same], part)
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
    gpus = tuple(_filled(gpu, told.shape.gpus[places[gpu.index]]) for gpu in shape.gpus)
    if not shape.nics:
        gpus = tuple(replace(g, nearest_nics=told.shape.gpus[places[g.index]].nearest_nics) for g in gpus)
    whole = NodeShape(
        gpus=gpus,
        paths=tuple(_known(path, told.shape.path(places[a], places[b])) for a, b, path in shape.pairs),
        nics=shape.nics or told.shape.nics,
        nic_paths=shape.nic_paths
        if shape.nics
        else tuple(told.shape.nic_paths[places[g.index]] for g in gpus)
        if told.shape.nic_paths
        else (),
        nvlink_visible=shape.nvlink_visible or told.shape.nvlink_visible,
        numa_nodes=shape.numa_nodes or told.shape.numa_nodes,
    )
    states = tuple(_filled(state, told.gpus[places[i]]) for i, state in enumerate(node.gpus))
    own = {
        name: getattr(node, name) or getattr(told, name)
        for name in ("hostname", "driver_version", "cuda_version", "virtualization")
    }
    known = {o.fact for o in topology.provenance}
    return replace(
        topology,
        nodes=(Node(shape=whole, gpus=states, **own),),
        warnings=(*topology.warnings, *(w for w in other.warnings if w not in topology.warnings)),
        provenance=(*topology.provenance, *(o for o in other.provenance if o.fact not in known)),
    )


def _uuids(topology: Topology) -> frozenset[str]:
    return frozenset(g.uuid for node in topology.nodes for g in node.gpus if g.uuid is not None)


def _matched(node: Node, told: Node) -> list[int] | None:
    """For each GPU of the node its index in the other description; None where they are not the same GPUs."""
    if len(node.gpus) != len(told.gpus):
        return None
    for identity in ("uuid", "pci_bus_id"):
        here, there = ([getattr(g, identity) for g in n.gpus] for n in (node, told))
        if None not in here and None not in there:
            return [there.index(i) for i in here] if set(here) == set(there) and len(set(there)) == len(there) else None
    return list(range(len(node.gpus)))


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
