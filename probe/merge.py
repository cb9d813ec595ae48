"""Many topologies -> one cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from probe.errors import UsageError
from probe.topology import NetworkPath, Node, NodeShape, PathKind, Topology


def merge_topologies(parts: Sequence[Topology]) -> Topology:
    """One topology of all nodes in the given order, joined by a network. Raises UsageError on a GPU given twice."""
    if len(parts) == 1:
        return parts[0]
    shapes: dict[NodeShape, NodeShape] = {}
    nodes: list[Node] = []
    network: list[NetworkPath] = []
    warnings, provenance = [], []
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
        raise UsageError("the same GPU appears in two of the given machines", cure="Give each machine once.")
    network.append(NetworkPath(PathKind.NET, tuple(range(len(nodes)))))
    return Topology(tuple(nodes), tuple(network), tuple(warnings), tuple(provenance))
