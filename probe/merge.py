"""Several descriptions -> one: of different machines a cluster, of one machine what each alone leaves open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import TypeVar

from probe.errors import UsageError
from probe.topology import Gpu, GpuRef, GpuState, NetworkPath, Node, NodeShape, Notice, Origin, Path, PathKind, Topology

T = TypeVar("T", Gpu, GpuState)
Told = TypeVar("Told", Notice, Origin)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the GPUs of a part stand in the merged topology: `first` nodes further down, and GPU by GPU as `moved`
    says where the part completed another description."""

    first: int
    moved: Mapping[GpuRef, GpuRef] | None = None

    def of(self, ref: GpuRef) -> GpuRef | None:
        """The same GPU in the merged topology; None where that has left it out."""
        if self.moved is None:
            return GpuRef(self.first + ref.node, ref.gpu)
        there = self.moved.get(ref)
        return None if there is None else GpuRef(self.first + there.node, there.gpu)


def merge_topologies(parts: Sequence[Topology]) -> Topology:
    """One topology of all nodes in the given order, joined by a network.

    Two descriptions with the same GPU UUIDs are of one machine and complete each other; so do one that tells paths but
    no UUIDs and one that tells UUIDs but no path (`topo -m` and `-q -x`). Raises UsageError where they share some GPUs
    but not all.
    """
    return placed(parts)[0]


def placed(parts: Sequence[Topology]) -> tuple[Topology, tuple[Place, ...]]:
    """What merge_topologies makes of these, and where each part stands in it."""
    merged: list[Topology] = []
    slots: list[int] = []
    by_uuids: dict[frozenset[str], int] = {}
    bare: dict[bool, list[int]] = {True: [], False: []}
    for part in parts:
        uuids, is_bare = _uuids(part), _tells_no_path(part)
        same = by_uuids.get(uuids) if uuids else None
        if same is None:
            same = next((i for i in bare[not is_bare] if _is_same(merged[i], part)), None)
        if same is None:
            same = len(merged)
            merged.append(part)
            if part.gpu_count > 1:  # one GPU has no path to tell
                bare[is_bare].append(same)
        elif len(part.nodes) == 1:
            wired, other = sorted((merged[same], part), key=_tells_no_path)
            merged[same] = completed(wired, other)
            bare[True], bare[False] = ([i for i in bare[b] if i != same] for b in (True, False))
            bare[_tells_no_path(merged[same])].append(same)
        if whole := _uuids(merged[same]):
            by_uuids[whole] = same
        slots.append(same)
    firsts = [0, *accumulate(len(one.nodes) for one in merged)]
    shared = Counter(slots)
    places = tuple(
        Place(firsts[slot], _moved(merged[slot], part) if shared[slot] > 1 else None)
        for slot, part in zip(slots, parts, strict=True)
    )
    return (merged[0] if len(merged) == 1 else cluster(merged)), places


def _moved(whole: Topology, part: Topology) -> dict[GpuRef, GpuRef]:
    """For each GPU of a description the same GPU in the completed one."""
    if len(whole.nodes) == len(part.nodes) == 1:
        matched = _matched(whole.nodes[0], part.nodes[0]) or []
        return {GpuRef(0, there): GpuRef(0, here) for here, there in enumerate(matched) if there is not None}
    here, there = (
        {g.uuid: GpuRef(n, i) for n, node in enumerate(t.nodes) for i, g in enumerate(node.gpus) if g.uuid}
        for t in (whole, part)
    )
    return {ref: here[uuid] for uuid, ref in there.items() if uuid in here}


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


def cluster(parts: Sequence[Topology]) -> Topology:
    """The nodes of all parts, in this order, as one network. Raises UsageError where two share a GPU."""
    shapes: dict[NodeShape, NodeShape] = {}
    nodes: list[Node] = []
    network: list[NetworkPath] = []
    for part in parts:
        first = len(nodes)
        nodes += [replace(node, shape=shapes.setdefault(node.shape, node.shape)) for node in part.nodes]
        network += [
            NetworkPath(p.kind, tuple(first + i for i in p.nodes)) for p in part.network if p.kind is PathKind.MNNVL
        ]
    uuids = [g.uuid for node in nodes for g in node.gpus if g.uuid is not None]
    if len(set(uuids)) < len(uuids):
        raise UsageError("two of the given machines share a GPU but are not the same", cure="Give each machine once.")
    network.append(NetworkPath(PathKind.NET, tuple(range(len(nodes)))))
    sizes = [len(part.nodes) for part in parts]
    warnings = folded(sizes, [part.warnings for part in parts])
    return Topology(tuple(nodes), tuple(network), warnings, folded(sizes, [part.provenance for part in parts]))


def folded(sizes: Sequence[int], told: Sequence[Sequence[Told]]) -> tuple[Told, ...]:
    """What parts of so many nodes tell, of the nodes of the whole: what all tell alike stands once, of no node."""
    plain = [
        [replace(one, node=None) if n == 1 or one.node is None else one for one in ones]
        for n, ones in zip(sizes, told, strict=True)
    ]
    alike = set.intersection(*({one for one in ones if one.node is None} for ones in plain))
    found = [one for one in plain[0] if one in alike]
    first = 0
    for n, ones in zip(sizes, plain, strict=True):
        found += [replace(one, node=first + (one.node or 0)) for one in ones if one not in alike]
        first += n
    return tuple(found)
