"""Islands (cliques of fast paths), their bottlenecks, and the fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from probe.topology import GpuRef, NodeShape, Path, PathKind, Topology, require

_CLIQUE_STEPS = 5_000
"""Steps after which the search for maximal cliques stops: several times what the worst graph of 16 GPUs takes
(3^(16/3) = 350 cliques), and still well below a second."""

_LARGEST_PARTIAL_MESH = 32
"""GPUs of a component that is no clique, up to which the largest clique is found exactly; real ones have up to 16."""


@dataclass(frozen=True, slots=True)
class Island:
    """GPUs that are pairwise joined by a fast fabric. `bottleneck` is the slowest path inside, None for one GPU."""

    members: tuple[GpuRef, ...]
    bottleneck: Path | None

    def __post_init__(self) -> None:
        require(len(self.members) > 0, "an island has a member")
        require(
            (self.bottleneck is None) == (len(self.members) == 1), "one GPU has no path, several have a slowest one"
        )
        require(self.bottleneck is None or self.bottleneck.is_fast, "inside an island every path is fast")


@dataclass(frozen=True, slots=True)
class GroupShape:
    """What decides a group's speed: how often each kind of path occurs, over how many nodes, how many like it run."""

    paths: tuple[tuple[str, int], ...]
    nodes: int
    concurrent_groups: int = 1

    def __post_init__(self) -> None:
        require(self.nodes >= 1 and self.concurrent_groups >= 1, "a group lies on a node and runs at least once")
        require(list(self.paths) == sorted(self.paths), "paths stand in canonical order")


def group_shape(topology: Topology, members: Sequence[GpuRef], concurrent_groups: int = 1) -> GroupShape:
    """The GroupShape of these members: equal for every group that should be equally fast."""
    labels = Counter(topology.path(a, b).label for i, a in enumerate(members) for b in members[i + 1 :])
    return GroupShape(tuple(sorted(labels.items())), len({m.node for m in members}), concurrent_groups)


def bottleneck(paths: Iterable[Path]) -> Path | None:
    """The slowest of these paths; None where there is none."""
    return max(paths, key=lambda p: p.slowness, default=None)


def maximal_cliques(neighbours: Sequence[int], among: int) -> list[int]:
    """All maximal cliques of a graph, as bit sets, by Bron and Kerbosch with pivoting (CACM 16, 1973).

    `neighbours[i]` is the bit set of i's neighbours, `among` the bit set of the vertices that count. A graph built to
    have exponentially many (3^(n/3)) is cut off after a bounded number of steps; real machines never come near.
    """
    found: list[int] = []
    steps = 0

    def expand(clique: int, candidates: int, excluded: int) -> None:
        nonlocal steps
        steps += 1
        if steps > _CLIQUE_STEPS:
            return
        if not candidates and not excluded:
            found.append(clique)
            return
        pivot = max(_bits(candidates | excluded), key=lambda v: (candidates & neighbours[v]).bit_count())
        for v in _bits(candidates & ~neighbours[pivot]):
            expand(clique | 1 << v, candidates & neighbours[v], excluded & neighbours[v])
            candidates &= ~(1 << v)
            excluded |= 1 << v

    expand(0, among, 0)
    return found


def clique_partition(neighbours: Sequence[int], among: int, weight: Callable[[int, int], int]) -> list[tuple[int, ...]]:
    """Every vertex of `among` in exactly one clique: the largest first, then the heaviest, then the lowest indices.

    `weight(a, b)` of a pair is its number of links; a clique weighs the sum of its pairs.
    """

    def rank(clique: int) -> tuple[int, int, tuple[int, ...]]:
        members = _bits(clique)
        links = sum(weight(a, b) for i, a in enumerate(members) for b in members[i + 1 :])
        return (-len(members), -links, members)

    parts: list[tuple[int, ...]] = []
    while among:
        best = min(_components_or_cliques(neighbours, among), key=rank)
        parts.append(_bits(best))
        among &= ~best
    return parts


def islands(topology: Topology) -> tuple[Island, ...]:
    """Every GPU in exactly one island: cliques of fast paths, the largest first, then single GPUs.

    GPUs of one multi-node NVLink domain form one island over all their nodes. Lost, hidden and MIG GPUs stand alone.
    """
    parts_of: dict[tuple[int, int], list[tuple[tuple[int, ...], Path | None]]] = {}
    found: list[Island] = []
    domains: dict[tuple[str, int], list[Island]] = {}
    for position, node in enumerate(topology.nodes):
        joinable = _mask(i for i, g in enumerate(node.gpus) if g.is_usable and not g.mig_instances)
        key = (id(node.shape), joinable)
        if key not in parts_of:
            parts_of[key] = _shape_islands(node.shape, joinable)
        for number, (part, slowest) in enumerate(parts_of[key]):
            island = Island(tuple(GpuRef(position, i) for i in part), slowest)
            fabric = node.gpus[part[0]].fabric
            domain = fabric.domain if fabric else None
            same = domain and all((f := node.gpus[i].fabric) is not None and f.domain == domain for i in part)
            if domain and same and number == 0 and joinable >> part[0] & 1:
                domains.setdefault(domain, []).append(island)
            else:
                found.append(island)
    found += [_joined(parts) for parts in domains.values()]
    found.sort(key=_island_rank)
    return tuple(found)


def _joined(parts: list[Island]) -> Island:
    """Islands of several nodes in one NVLink domain, as one."""
    if len(parts) == 1:
        return parts[0]
    inside = [part.bottleneck for part in parts if part.bottleneck]
    members = tuple(ref for part in parts for ref in part.members)
    return Island(members, bottleneck([*inside, Path(PathKind.MNNVL)]))


def partial_meshes(shape: NodeShape) -> list[tuple[int, ...]]:
    """All maximal cliques (two GPUs or more) of those fast components that are no cliques themselves."""
    neighbours = _fast_neighbours(shape)
    cliques: list[int] = []
    for component in _components(neighbours, (1 << len(shape.gpus)) - 1):
        if not _is_clique(neighbours, component):
            cliques += maximal_cliques(neighbours, component)
    return sorted((_bits(c) for c in cliques), key=lambda c: (-len(c), c))


def fingerprint(topology: Topology) -> str:
    """A stable hash of what decides performance: models, memory, paths, links, NICs, usable GPUs; no serial numbers.

    Node order and node names do not count; equal fingerprints may share measurements.
    """
    cache: dict[int, str] = {}
    kinds: Counter[str] = Counter()
    for node in topology.nodes:
        if id(node.shape) not in cache:
            cache[id(node.shape)] = json.dumps(_shape_facts(node.shape), separators=(",", ":"))
        unusable = [i for i, g in enumerate(node.gpus) if not g.is_usable]
        mig = [(i, len(g.mig_instances)) for i, g in enumerate(node.gpus) if g.mig_instances]
        kinds[f"{cache[id(node.shape)]}{unusable}{mig}"] += 1
    network = sorted((p.kind.value, len(p.nodes)) for p in topology.network)
    text = json.dumps([sorted(kinds.items()), network], separators=(",", ":"))
    return f"wl1-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def _shape_facts(shape: NodeShape) -> list[object]:
    def facts(path: Path) -> list[object]:
        return [path.label, path.through.value if path.through else None, bool(path.asymmetric)]

    gib_of = [None if g.memory_bytes is None else round(g.memory_bytes / (1 << 30)) for g in shape.gpus]
    return [
        [[g.name, gib, g.numa_node] for g, gib in zip(shape.gpus, gib_of, strict=True)],
        [facts(p) for p in shape.paths],
        [[nic.speed_gbps, nic.link_layer] for nic in shape.nics],
        [[p.label for p in row] for row in shape.nic_paths],
    ]


def _shape_islands(shape: NodeShape, joinable: int) -> list[tuple[tuple[int, ...], Path | None]]:
    """The islands inside a node, each with its slowest path."""
    neighbours = [mask & joinable if joinable >> i & 1 else 0 for i, mask in enumerate(_fast_neighbours(shape))]
    parts = clique_partition(neighbours, (1 << len(shape.gpus)) - 1, lambda a, b: shape.path(a, b).links or 1)
    return [(part, bottleneck(shape.path(a, b) for i, a in enumerate(part) for b in part[i + 1 :])) for part in parts]


def _island_rank(island: Island) -> tuple[int, int, tuple[GpuRef, ...]]:
    links = island.bottleneck.links or 1 if island.bottleneck else 0
    return (-len(island.members), -links, island.members)


def _fast_neighbours(shape: NodeShape) -> list[int]:
    neighbours = [0] * len(shape.gpus)
    for a, b, path in shape.pairs:
        if path.is_fast:
            neighbours[a] |= 1 << b
            neighbours[b] |= 1 << a
    return neighbours


def _components(neighbours: Sequence[int], among: int) -> list[int]:
    found = []
    while among:
        component, frontier = 0, among & -among
        while frontier:
            component |= frontier
            reached = 0
            for v in _bits(frontier):
                reached |= neighbours[v]
            frontier = reached & among & ~component
        found.append(component)
        among &= ~component
    return found


def _components_or_cliques(neighbours: Sequence[int], among: int) -> list[int]:
    """Components that are cliques as they are (the common case, in linear time), maximal cliques of the others."""
    found = []
    for component in _components(neighbours, among):
        within = [mask & component for mask in neighbours]
        if _is_clique(within, component):
            found.append(component)
        elif component.bit_count() > _LARGEST_PARTIAL_MESH:
            found.append(_grown_clique(within, component))
        else:
            found += maximal_cliques(within, component)
    return found


def _grown_clique(neighbours: Sequence[int], among: int) -> int:
    """One maximal clique, grown from the vertex with the most neighbours: enough where trying all takes too long."""
    clique = 0
    while among:
        best = max(_bits(among), key=lambda v: (neighbours[v] & among).bit_count())
        clique |= 1 << best
        among &= neighbours[best]
    return clique


def _is_clique(neighbours: Sequence[int], members: int) -> bool:
    return all(neighbours[v] & members == members & ~(1 << v) for v in _bits(members))


def _mask(numbers: Iterable[int]) -> int:
    mask = 0
    for i in numbers:
        mask |= 1 << i
    return mask


def _bits(mask: int) -> tuple[int, ...]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return tuple(found)
