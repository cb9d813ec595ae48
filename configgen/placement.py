"""Where groups lie: TP groups on the best paths of a node or NVLink domain, stages and replicas made of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise, permutations

from probe.islands import bottleneck, islands
from probe.tiling import Group, shortest_chain, tilings
from probe.topology import Gpu, GpuRef, Path, PathKind, Topology

Pipeline = tuple[Group, ...]
"""The stages of a replica, each a Group of positions in a Domain's `gpus`, in rank order."""

WIDEST_OVER_NODES = 8
"""GPUs of a stage that lies over several nodes. Two nodes of 8 H100 as TP16 were 6.6 times slower than as TP8 PP2, and
over InfiniBand no faster: cutting a layer over more than a usual node gains nothing that a network keeps."""

_LARGEST_ALIGNED = 4
"""Ranks of a group up to which every order is tried to bring ranks of the same number near to each other."""


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

    def bytes_of(self, group: Group) -> int:
        """Usable bytes of its smallest GPU, for every rank holds as much as any other."""
        return min(self.usable_bytes[i] for i in group)

    def pipelines(self, tp: int, pp: int) -> tuple[Pipeline, ...]:
        """Disjoint replicas of pp stages of tp GPUs: the best groups there are, and of these the best neighbours.

        Those on more memory come first, then those on better paths. GPUs of other models or memory are in one stage or
        one replica only where nothing else is left to do with them.
        """
        if (tp, pp) not in self._pipelines:
            self._pipelines[tp, pp] = min((self._joined(groups, pp) for groups in self._tilings(tp)), key=self._hops)
        return self._pipelines[tp, pp]

    @cached_property
    def _pipelines(self) -> dict[tuple[int, int], tuple[Pipeline, ...]]:
        return {}

    @cached_property
    def _tiled(self) -> dict[int, tuple[tuple[Group, ...], ...]]:
        return {}

    def _tilings(self, tp: int) -> tuple[tuple[Group, ...], ...]:
        if tp not in self._tiled:
            ways = tilings(len(self.gpus), tp, lambda a, b: self._slowness((a,), (b,)))
            self._tiled[tp] = tuple(tuple(map(self._ranked, groups)) for groups in ways)
        return self._tiled[tp]

    def _ranked(self, group: Group) -> Group:
        """In rank order: each half on the best paths there are, for attention may be cut over less than the group."""
        if len(group) < 4 or len(group) % 2:
            return group
        halves = tilings(len(group), len(group) // 2, lambda a, b: self._slowness((group[a],), (group[b],)))[0]
        ranked = (self._ranked(tuple(group[i] for i in half)) for half in halves)
        return self._by_node(tuple(i for half in sorted(ranked, key=lambda h: (self._goodness(h), h)) for i in half))

    def _by_node(self, group: Group, first: int | None = None) -> Group:
        """Node after node, as engines count their ranks, beginning with node `first` where the group has it."""
        nodes = [self.gpus[i].node for i in group]
        return tuple(sorted(group, key=lambda i: ((node := self.gpus[i].node) != first, nodes.index(node))))

    def _joined(self, groups: tuple[Group, ...], pp: int) -> tuple[Pipeline, ...]:
        """The groups as replicas, neighbours next to each other, and the best last: there are the logits to be made."""
        groups = tuple(sorted(groups, key=lambda g: (*self._goodness(g), g)))
        replicas = tilings(len(groups), pp, lambda a, b: self._slowness(groups[a], groups[b]))[0]
        found = [self._in_order([groups[i] for i in sorted(replica)]) for replica in replicas]
        return tuple(sorted(found, key=lambda p: (*(-n for n in min(map(self._goodness, p))), p)))

    def _in_order(self, stages: list[Group]) -> Pipeline:
        order = shortest_chain(len(stages), lambda a, b: self._slowness(stages[a], stages[b])[-3:])
        found = [stages[order[0]]]
        for number in order[1:]:
            found.append(self._facing(found[-1], stages[number]))
        return tuple(found)

    def _hops(self, pipelines: tuple[Pipeline, ...]) -> list[tuple[int, ...]]:
        return sorted((self._slowness(a, b) for p in pipelines for a, b in pairwise(p)), reverse=True)

    def _goodness(self, group: Group) -> tuple[int, ...]:
        path = self.slowest_path(group)
        return (self.bytes_of(group), *(-n for n in path.slowness)) if path else (self.bytes_of(group), 0, 0)

    @cached_property
    def _known(self) -> dict[tuple[Group, Group], tuple[int, ...]]:
        return {}

    def _slowness(self, a: Group, b: Group) -> tuple[int, ...]:
        """Of two groups as neighbours: whether they are unlike, how good the worse one is, and what joins them."""
        found = self._known.get((a, b))
        if found is None:
            path = boundary(a, self._facing(a, b), self.path)
            names = {self.topology.gpu(self.gpus[group[0]]).name for group in (a, b)}
            worse, better = sorted((self._goodness(a), self._goodness(b)))
            unlike = len(names) > 1 or worse != better
            found = self._known[a, b] = (unlike, *(-n for n in worse), not path.is_fast, *path.slowness)
        return found

    def _facing(self, a: Group, b: Group) -> Group:
        """b's GPUs in the order in which the paths from a's ranks to those of the same number are best."""
        if len(a) > _LARGEST_ALIGNED or len({self.path(i, j).slowness for i in a for j in b}) == 1:
            return self._by_node(b, self.gpus[a[-1]].node)

        def slowest_first(order: Group) -> list[tuple[int, int]]:
            return sorted((self.path(i, j).slowness for i, j in zip(a, order, strict=True)), reverse=True)

        return self._by_node(min(permutations(b), key=slowest_first), self.gpus[a[-1]].node)

    def slowest_path(self, group: Group) -> Path | None:
        if group not in self._slowest:
            self._slowest[group] = bottleneck(self.path(a, b) for a, b in combinations(group, 2))
        return self._slowest[group]

    @cached_property
    def _slowest(self) -> dict[Group, Path | None]:
        return {}


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
        return [self.domains[d].gpus[i] for stage in slot.stages for d, i in stage]


@dataclass(frozen=True, slots=True)
class Wiring:
    """The paths of a slot: the slowest inside its stages, and the slowest from each stage to the next."""

    inside: Path | None
    hops: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """A replica as a pattern: per stage its ranks, each as (which domain of a run of alike ones, position in it)."""

    stages: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def domains(self) -> int:
        return 1 + max(d for stage in self.stages for d, _ in stage)


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


def widths(kinds: Sequence[DomainKind], gpus: int) -> list[int]:
    """The sizes that a stage can have: up to the largest domain, and all GPUs of several small ones."""
    largest = max(len(kind.sample.gpus) for kind in kinds)
    over_nodes = {
        count * len(kind.sample.gpus)
        for kind in kinds
        if not kind.alone
        for count in range(2, min(len(kind.domains), WIDEST_OVER_NODES // len(kind.sample.gpus)) + 1)
    }
    return sorted(size for size in {*range(1, largest + 1), *over_nodes} if size <= gpus)


def stages_held(kind: DomainKind, tp: int) -> int:
    """How many stages of tp GPUs the domains have room for."""
    each = len(kind.sample.gpus)
    return each // tp * len(kind.domains) if tp <= each else len(kind.domains) // _domains_of_a_stage(kind, tp)


def slots(kind: DomainKind, tp: int, pp: int) -> tuple[Slot, ...]:
    """The replicas that a run of alike domains holds: inside one domain where they fit, else over several, evenly.

    Every domain of a replica carries the same number of stages, since engines refuse uneven ranks per node; or a stage
    takes all GPUs of several domains.
    """
    domain, most = kind.sample, len(kind.domains)
    if kind.alone and tp * pp > 1:
        return ()
    if tp > len(domain.gpus):
        span = _domains_of_a_stage(kind, tp)
        whole = range(len(domain.gpus))
        wide = tuple(tuple((first + d, i) for d in range(span) for i in whole) for first in range(0, span * pp, span))
        return (Slot(wide),) if span * pp <= most else ()
    for span in range(1, min(pp, most) + 1):
        if pp % span == 0 and tp * (pp // span) <= len(domain.gpus):
            return tuple(_repeated(pipeline, span) for pipeline in domain.pipelines(tp, pp // span))
    return ()


def _domains_of_a_stage(kind: DomainKind, tp: int) -> int:
    """How many whole domains are a stage of tp GPUs; more than there are where none is."""
    count, rest = divmod(tp, len(kind.sample.gpus))
    return count if rest == 0 and tp <= WIDEST_OVER_NODES else len(kind.domains) + 1


def _repeated(pipeline: Pipeline, domains: int) -> Slot:
    """The same stages on each of so many domains, one domain after the other."""
    return Slot(tuple(tuple((d, i) for i in group) for d in range(domains) for group in pipeline))


def capacity(kind: DomainKind, slot: Slot) -> tuple[int, ...]:
    """Per stage the usable bytes of its smallest GPU, for every rank holds as much as any other."""
    return tuple(min(kind.domains[d].usable_bytes[i] for d, i in stage) for stage in slot.stages)


def wiring(kind: DomainKind, slot: Slot) -> Wiring:
    """The slot's paths; from domain to domain it is the network."""

    def inside(stage: tuple[tuple[int, int], ...]) -> Path | None:
        if len({d for d, _ in stage}) > 1:
            return Path(PathKind.NET)
        return kind.domains[stage[0][0]].slowest_path(tuple(i for _, i in stage))

    def hop(a: tuple[int, int], b: tuple[int, int]) -> Path:
        return kind.domains[a[0]].path(a[1], b[1]) if a[0] == b[0] else Path(PathKind.NET)

    hops = (bottleneck(hop(a, b) for a, b in zip(*pair, strict=True)) for pair in pairwise(slot.stages))
    return Wiring(
        bottleneck(path for stage in slot.stages if (path := inside(stage)) is not None),
        tuple(path for path in hops if path is not None),
    )


def place(kind: DomainKind, slot: Slot) -> Iterator[tuple[tuple[GpuRef, ...], ...]]:
    """The slot on each run of domains in turn: stages of GpuRefs."""
    span = slot.domains
    for first in range(0, len(kind.domains) - span + 1, span):
        yield tuple(tuple(kind.domains[first + d].gpus[i] for d, i in stage) for stage in slot.stages)


def mixed_slot(kinds: Sequence[DomainKind], tp: int, pp: int) -> tuple[DomainKind, Slot] | None:
    """One replica over all domains of all kinds, the same number of stages on each; None where that cannot be."""
    kinds = [kind for kind in kinds if not kind.alone]
    domains = sorted((d for kind in kinds for d in kind.domains), key=lambda d: d.gpus[0])
    if len(kinds) < 2 or pp % len(domains) or any(len(d.gpus) < tp * pp // len(domains) for d in domains):
        return None
    stages = ((d, group) for d, domain in enumerate(domains) for group in domain.pipelines(tp, pp // len(domains))[0])
    return DomainKind(tuple(domains)), Slot(tuple(tuple((d, i) for i in group) for d, group in stages))


def boundary(a: Group, b: Group, path: Callable[[int, int], Path]) -> Path:
    """The slowest path between ranks of the same number in two neighbouring stages."""
    return max((path(i, j) for i, j in zip(a, b, strict=True)), key=lambda p: p.slowness)
