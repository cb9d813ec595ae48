"""Which groups a plan could form: alike domains found once, each cut into groups on its best paths. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

from probe.islands import islands
from probe.rails import rails
from probe.tiling import tilings
from probe.topology import GpuRef, NodeShape, Topology

Group = tuple[GpuRef, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """Domains (a node's usable GPUs, or a multi-node NVLink domain's) that are alike: one answers for all."""

    domains: tuple[Group, ...]

    @property
    def sample(self) -> Group:
        return self.domains[0]

    @property
    def farthest(self) -> Group:
        return self.domains[-1]

    @property
    def noun(self) -> str:
        return "node" if len({m.node for m in self.sample}) == 1 else "NVLink domain"


def kinds(topology: Topology) -> tuple[Kind, ...]:
    """The domains by kind, in the order of their first node. A GPU that is lost, hidden or sliced is in none."""
    racked = {
        m: number
        for number, island in enumerate(islands(topology))
        if len({m.node for m in island.members}) > 1
        for m in island.members
    }
    domains: dict[tuple[str, int], list[GpuRef]] = {}
    for position, node in enumerate(topology.nodes):
        for i, gpu in enumerate(node.gpus):
            if gpu.is_usable and not gpu.mig_instances:
                ref = GpuRef(position, i)
                place = ("rack", racked[ref]) if ref in racked else ("node", position)
                domains.setdefault(place, []).append(ref)
    canonical: dict[int, NodeShape] = {}
    first_of: dict[NodeShape, NodeShape] = {}
    for node in topology.nodes:
        if id(node.shape) not in canonical:
            canonical[id(node.shape)] = first_of.setdefault(node.shape, node.shape)
    found: dict[tuple[tuple[int, int, int], ...], list[Group]] = {}
    for members in domains.values():
        first = members[0].node
        alike = tuple((m.node - first, id(canonical[id(topology.nodes[m.node].shape)]), m.gpu) for m in members)
        found.setdefault(alike, []).append(tuple(members))
    return tuple(Kind(tuple(alike)) for alike in found.values())


def group_sizes(topology: Topology, gpus: Group) -> tuple[int, ...]:
    """How large a group of these may sensibly be: what divides the GPUs of an island or of all, and powers of two.

    Powers of two first, since they divide the heads of nearly every model; then the others, small ones first.
    """
    found = {d for whole in wholes(topology, gpus) for d in range(2, whole + 1) if whole % d == 0}
    found |= {1 << k for k in range(1, len(gpus).bit_length())}
    return tuple(sorted(found, key=lambda size: (size.bit_count() > 1, size)))


def cut(topology: Topology, gpus: Group, size: int) -> tuple[Group, ...]:
    """Disjoint groups of this size on the best paths there are, as a plan would place them.

    GPUs of different models share a group only where nothing else is left to do with them. The best groups come first.
    """
    if len({m.node for m in gpus}) > 1:
        return tuple(tuple(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size))

    def model(i: int) -> tuple[str | None, int | None]:
        gpu = topology.gpu(gpus[i])
        return gpu.name, gpu.memory_bytes

    def slowness(a: int, b: int) -> tuple[int, ...]:
        path = topology.path(gpus[a], gpus[b])
        return (model(a) != model(b), not path.is_fast, *path.slowness)

    found = tilings(len(gpus), size, slowness)[0]
    best_first = sorted(found, key=lambda group: (max(slowness(a, b) for a, b in combinations(group, 2)), group))
    return tuple(tuple(gpus[i] for i in group) for group in best_first)


def rail_members(topology: Topology, gpus: Group, *, every: bool) -> tuple[int, ...]:
    """Positions in `gpus` of one GPU per rail: of every one, or of one for each distinct kind of rail."""
    shape = topology.nodes[gpus[0].node].shape
    nics = {nic.name: nic for nic in shape.nics}
    places = {m.gpu: position for position, m in enumerate(gpus) if m.node == gpus[0].node}
    found: dict[object, int] = {}
    for rail in rails(shape):
        present = [i for i in rail.gpus if i in places]
        if present:
            nic = nics[rail.nic]
            column = shape.nics.index(nic)
            path = shape.nic_paths[present[0]][column].label if shape.nic_paths else None
            kind = (nic.speed_gbps, nic.link_layer, nic.state, path, rail.shared)
            found.setdefault(rail.nic if every else kind, places[present[0]])
    return tuple(dict.fromkeys(found.values()))


def wholes(topology: Topology, gpus: Group) -> tuple[int, ...]:
    """The sizes of what these GPUs are made of: islands, nodes, all of them. Ascending, without single GPUs."""
    sizes = {len(gpus), *Counter(m.node for m in gpus).values()}
    if len({m.node for m in gpus}) == 1:
        own = {m.gpu for m in gpus}
        alone = Topology((topology.nodes[gpus[0].node],))
        sizes |= {sum(m.gpu in own for m in island.members) for island in islands(alone)}
    return tuple(sorted(size for size in sizes if size > 1))
