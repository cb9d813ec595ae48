"""Where groups lie: TP groups on the best paths of a node or NVLink domain, stages and replicas made of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from probe.islands import bottleneck, clique_partition, islands, near_order
from probe.topology import Gpu, GpuRef, Path, PathKind, Topology

Group = tuple[int, ...]
"""Positions in a Domain's `gpus`."""


@dataclass(frozen=True)
class Domain:
    """GPUs among which a TP group may lie: those of one node, or of one multi-node NVLink domain."""

    topology: Topology
    gpus: tuple[GpuRef, ...]
    usable_bytes: tuple[int, ...]

    def path(self, a: int, b: int) -> Path:
        found = self._paths.get((a, b))
        if found is None:
            found = self._paths[a, b] = self.topology.path(self.gpus[a], self.gpus[b])
        return found

    @cached_property
    def _paths(self) -> dict[tuple[int, int], Path]:
        return {}

    @cached_property
    def models(self) -> tuple[Gpu, ...]:
        """Its different GPUs, whatever their number."""
        found = {(g.name, g.compute_capability): g for g in map(self.topology.gpu, self.gpus)}
        return tuple(found.values())

    @cached_property
    def worth(self) -> tuple[int, int]:
        """Sorts domains by what they are good for: GPUs that reach each other fast, then memory."""
        n = len(self.gpus)
        fast = max((sum(a != b and self.path(a, b).is_fast for b in range(n)) for a in range(n)), default=0)
        return (fast, min(self.usable_bytes))

    @cached_property
    def _groups(self) -> dict[int, tuple[Group, ...]]:
        return {}

    @cached_property
    def _slowest(self) -> dict[Group, Path | None]:
        return {}

    def groups(self, size: int) -> tuple[Group, ...]:
        """Disjoint groups of this size on the best paths there are, neighbours in the pipeline next to each other."""
        if size not in self._groups:
            self._groups[size] = tuple(_chain(_tile(self, size), self.path))
        return self._groups[size]

    def slowest_path(self, group: Group) -> Path | None:
        if group not in self._slowest:
            self._slowest[group] = bottleneck(self.path(a, b) for i, a in enumerate(group) for b in group[i + 1 :])
        return self._slowest[group]


@dataclass(frozen=True)
class DomainKind:
    """Domains that are alike: what holds for the first holds for all, so 2,048 nodes are judged once."""

    domains: tuple[Domain, ...]
    alone: bool = False
    """MIG instances: no P2P over PCIe or NVLink, so no group of two can be formed with one."""

    @property
    def sample(self) -> Domain:
        return self.domains[0]

    def refs(self, slot: Slot) -> list[GpuRef]:
        """The GPUs of a slot on its first run of domains, in rank order."""
        return [self.domains[d].gpus[i] for d, group in slot.stages for i in group]


@dataclass(frozen=True, slots=True)
class Wiring:
    """The paths of a slot: the slowest inside its stages, and the slowest from each stage to the next."""

    inside: Path | None
    hops: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """A replica as a pattern: per stage, which domain of a run of alike ones, and which of its groups."""

    stages: tuple[tuple[int, Group], ...]

    @property
    def domains(self) -> int:
        return 1 + max(d for d, _ in self.stages)


def domain_kinds(topology: Topology, usable_bytes: Callable[[GpuRef], int], nodes: int) -> list[DomainKind]:
    """The first `nodes` nodes' usable GPUs, by domain, alike ones together in the order of their first."""
    kinds: dict[tuple[Hashable, ...], list[Domain]] = {}
    racks = [i.members for i in islands(topology) if len({m.node for m in i.members}) > 1]
    racked = {ref for members in racks for ref in members}
    for members in racks:
        gpus = tuple(ref for ref in sorted(members) if ref.node < nodes)
        if gpus:
            memory = tuple(usable_bytes(ref) for ref in gpus)
            shapes = tuple((id(topology.nodes[ref.node].shape), ref.gpu) for ref in gpus)
            kinds.setdefault(("rack", shapes, memory), []).append(Domain(topology, gpus, memory))
    for position, node in enumerate(topology.nodes[:nodes]):
        refs = [GpuRef(position, i) for i, g in enumerate(node.gpus) if g.is_usable and not g.mig_instances]
        for i, g in enumerate(node.gpus):
            if g.is_usable and g.mig_instances:
                sliced = GpuRef(position, i)
                memory = (usable_bytes(sliced),)
                kinds.setdefault(("mig", *memory), []).append(Domain(topology, (sliced,), memory))
        if racked:
            refs = [ref for ref in refs if ref not in racked]
        if refs:
            memory = tuple(usable_bytes(ref) for ref in refs)
            kinds.setdefault((id(node.shape), tuple(ref.gpu for ref in refs), memory), []).append(
                Domain(topology, tuple(refs), memory)
            )
    return [DomainKind(tuple(domains), alone=key[0] == "mig") for key, domains in kinds.items()]


def slots(kind: DomainKind, tp: int, pp: int) -> tuple[Slot, ...]:
    """The replicas that a run of alike domains holds: inside one domain where they fit, else over several, evenly.

    Every domain of a replica carries the same number of stages, since engines refuse uneven ranks per node.
    """
    groups = kind.sample.groups(tp)
    if not groups or (kind.alone and tp * pp > 1):
        return ()
    if pp == 1:
        domain = kind.sample
        largest_first = sorted(groups, key=lambda g: (-min(domain.usable_bytes[i] for i in g), g))
        return tuple(Slot(((0, group),)) for group in largest_first)
    if pp <= len(groups):
        return tuple(
            Slot(tuple((0, g) for g in groups[first : first + pp])) for first in range(0, len(groups) - pp + 1, pp)
        )
    for span in range(-(-pp // len(groups)), min(pp, len(kind.domains)) + 1):
        if pp % span == 0:
            return (Slot(tuple((d, g) for d in range(span) for g in groups[: pp // span])),)
    return ()


def wiring(kind: DomainKind, slot: Slot) -> Wiring:
    """The slot's paths; a step to another domain is the network."""
    inside = (kind.domains[d].slowest_path(group) for d, group in slot.stages)
    hops = (
        boundary(group, following, kind.domains[d].path) if d == next_d else Path(PathKind.NET)
        for (d, group), (next_d, following) in pairwise(slot.stages)
    )
    return Wiring(bottleneck(path for path in inside if path is not None), tuple(hops))


def place(kind: DomainKind, slot: Slot) -> Iterator[tuple[tuple[GpuRef, ...], ...]]:
    """The slot on each run of domains in turn: stages of GpuRefs."""
    span = slot.domains
    for first in range(0, len(kind.domains) - span + 1, span):
        yield tuple(tuple(kind.domains[first + d].gpus[i] for i in group) for d, group in slot.stages)


def mixed_slot(kinds: Sequence[DomainKind], tp: int, pp: int) -> tuple[DomainKind, Slot] | None:
    """One replica over all domains of all kinds, the same number of stages on each; None where that cannot be."""
    kinds = [kind for kind in kinds if not kind.alone]
    domains = sorted((d for kind in kinds for d in kind.domains), key=lambda d: d.gpus[0])
    if len(kinds) < 2 or pp % len(domains) or any(len(d.groups(tp)) < pp // len(domains) for d in domains):
        return None
    each = pp // len(domains)
    return DomainKind(tuple(domains)), Slot(tuple((i, g) for i, d in enumerate(domains) for g in d.groups(tp)[:each]))


def _tile(domain: Domain, size: int) -> list[Group]:
    """Cuts groups level by level: from the widest bonds, then islands, then what one switch joins, and so on outward.

    GPUs of different models or memory share a group only where nothing else is left to do with them.
    """
    left = set(range(len(domain.gpus)))
    if size == 1:
        return [(i,) for i in near_order(sorted(left), domain.path)]
    groups: list[Group] = []
    for alike_only in (True, False):
        for level in _levels(domain):
            if len(left) < size:
                return groups
            neighbours = [0] * len(domain.gpus)
            for a in left:
                for b in left:
                    if a < b and domain.path(a, b).slowness <= level and (not alike_only or _alike(domain, a, b)):
                        neighbours[a] |= 1 << b
                        neighbours[b] |= 1 << a
            among = sum(1 << i for i in left)
            for part in clique_partition(neighbours, among, lambda a, b: domain.path(a, b).links or 1):
                order = near_order(part, domain.path)
                for first in range(0, len(order) - size + 1, size):
                    group = tuple(sorted(order[first : first + size]))
                    groups.append(group)
                    left -= set(group)
    return groups


def _levels(domain: Domain) -> list[tuple[int, int]]:
    """How slow a path of a group may be, step by step: first the widest bonds alone, at last everything but the net."""
    n = len(domain.gpus)
    slowness = {domain.path(a, b).slowness for a in range(n) for b in range(a + 1, n)}
    return sorted(s for s in slowness if s[0] != PathKind.NET.distance)


def _alike(domain: Domain, a: int, b: int) -> bool:
    def traits(i: int) -> tuple[str | None, int]:
        return domain.topology.gpu(domain.gpus[i]).name, domain.usable_bytes[i]

    return traits(a) == traits(b)


def _chain(groups: list[Group], path: Callable[[int, int], Path]) -> Iterator[Group]:
    """Groups in an order where each one's successor is the one it reaches best, starting with the lowest."""
    left = sorted(groups)
    while left:
        last = left.pop(0)
        yield last
        left = [g for _, g in sorted((boundary(last, g, path).slowness, g) for g in left)]


def boundary(a: Group, b: Group, path: Callable[[int, int], Path]) -> Path:
    """The slowest path between ranks of the same number in two neighbouring stages."""
    return max((path(i, j) for i, j in zip(a, b, strict=True)), key=lambda p: p.slowness)
