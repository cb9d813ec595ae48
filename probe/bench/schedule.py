"""What to measure on a topology, the most useful first: the smallest set that answers every candidate plan."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import combinations

from probe.bench.candidates import Group, Kind, cut, group_sizes, kinds, rail_members, wholes
from probe.islands import group_shape
from probe.measurement import CurveKey
from probe.topology import GpuRef, Topology, require

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
DIRECTIONS = ("forward", "backward", "both")

SMALLEST_BYTES = 1 << 10
LARGEST_BYTES = {"gloo": 1 << 26}
"""The largest message by default, 1 GiB for the others: past 64 MiB a CPU has nothing more to tell."""
LARGEST_IN_GRAPH_BYTES = 1 << 20
"""Past it a launch costs little beside the transfer, and engines replay graphs for decode steps alone."""

_SPANS = (2, 4, 8)
"""Nodes (or NVLink domains) that one group is spread over."""
_MOST_PLACEMENTS = 3
"""Different placements of one group size, and pairs of unlike nodes, that are tried."""
_EVERY_PAIR_NODES = 16
"""Alike nodes whose pairs are measured at the same moment, one pair of each: nodes do not disturb each other."""
_LARGEST_GROUP = 144
"""GPUs of the largest group: wider ones would keep a whole cluster busy for one number."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on groups of GPUs that run it at the same moment: equally large, members in rank order."""

    operation: str
    groups: tuple[Group, ...]
    answers: str
    """The question of a plan that it answers, in a few words."""
    direction: str | None = None
    p2p_enabled: bool | None = None
    """False: without peer access, through the host. None: as the library chooses."""
    graph: bool = False

    def __post_init__(self) -> None:
        members = [m for group in self.groups for m in group]
        require(len(members) == len(set(members)) >= 2, "groups that run at once are disjoint, of two GPUs or more")
        require(len({len(group) for group in self.groups}) == 1, "groups that run at once are equally large")
        require(self.operation in (*COLLECTIVES, "p2p"), f"no operation is called {self.operation}")
        require((self.operation == "p2p") == (self.direction in DIRECTIONS), "p2p, and nothing else, has a direction")
        require(self.operation != "p2p" or len(self.groups[0]) == 2, "p2p joins two GPUs")

    @property
    def label(self) -> str:
        """'all_reduce of 4 GPUs, 2 groups at once, in a graph'."""
        what = f"p2p {self.direction}" if self.direction else f"{self.operation} of {len(self.groups[0])} GPUs"
        at_once = f", {len(self.groups)} groups at once" if len(self.groups) > 1 else ""
        how = (", in a graph" if self.graph else "") + (", without P2P" if self.p2p_enabled is False else "")
        return what + at_once + how


class _Use(IntEnum):
    """How much a plan loses without the answer, most first."""

    TENSOR_PARALLEL = 0
    ACROSS_NODES = 1
    DECODE = 2
    AS_DEPLOYED = 3
    PIPELINE = 4
    EXPERTS = 5
    DECODE_AS_DEPLOYED = 6
    BOTH_WAYS = 7
    RARE = 8
    WITHOUT_P2P = 9
    ALIKE = 10
    EVERY_PAIR = 11


_ALL_REDUCE_USES = (_Use.TENSOR_PARALLEL, _Use.DECODE, _Use.AS_DEPLOYED, _Use.DECODE_AS_DEPLOYED)
"""Of a common group size: alone, alone in a graph, all groups at once, all at once in a graph."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """A step, its use, and what else must differ for it not to be the same question twice."""

    use: _Use
    step: Step
    apart: Hashable = None


def steps(topology: Topology, *, backend: str, every_pair: bool = False) -> tuple[Step, ...]:
    """The steps in the order of their use. Only usable GPUs without MIG instances take part.

    Groups come from islands and divisors alone, each on its best placement. Groups of equal GroupShape and GPU models
    are measured once, and a sample of them on other GPUs again, to see whether they really are equal.
    """
    found = kinds(topology)
    wishes = [wish for kind in found for wish in _inside(topology, kind, backend, every_pair)]
    wishes += _across(topology, found, backend, every_pair)
    chosen: list[Step] = []
    asked: set[Hashable] = set()
    for wish in sorted(wishes, key=lambda w: w.use):
        step = wish.step
        groups = tuple(sorted(_likeness(topology, group) for group in step.groups))
        question = (step.operation, step.direction, step.p2p_enabled, step.graph, groups, wish.apart)
        exactly = replace(step, answers="")
        if question not in asked and exactly not in asked:
            chosen.append(step)
        asked |= {question, exactly}
    return tuple(chosen)


def sizes(backend: str, largest_bytes: int | None = None) -> tuple[int, ...]:
    """Message sizes in bytes: powers of two from 1 KiB to `largest_bytes`, by default 1 GiB (gloo: 64 MiB)."""
    top = largest_bytes or LARGEST_BYTES.get(backend, 1 << 30)
    require(top >= SMALLEST_BYTES, f"the largest message is at least {SMALLEST_BYTES} bytes")
    return tuple(1 << k for k in range(SMALLEST_BYTES.bit_length() - 1, top.bit_length()))


def sizes_of(step: Step, backend: str, largest_bytes: int | None = None) -> tuple[int, ...]:
    """The sizes of one step: those of a decode step alone where it runs in a graph."""
    return tuple(s for s in sizes(backend, largest_bytes) if not step.graph or s <= LARGEST_IN_GRAPH_BYTES)


def curve_key(
    topology: Topology,
    step: Step,
    group: Sequence[GpuRef],
    *,
    backend: str,
    dtype: str,
    library_version: str | None = None,
) -> CurveKey:
    """What a curve of this step and group is a curve of. Groups that share no node and no fabric do not contend."""
    return CurveKey(
        operation=step.operation,
        group=group_shape(topology, group, _contending(topology, step, group)),
        dtype=dtype,
        backend=backend,
        graph=step.graph,
        direction=step.direction,
        p2p_enabled=step.p2p_enabled,
        library_version=library_version,
    )


def _contending(topology: Topology, step: Step, group: Sequence[GpuRef]) -> int:
    def wires(members: Sequence[GpuRef]) -> set[Hashable]:
        fabrics = (topology.state(m).fabric for m in members)
        return {fabric.domain for fabric in fabrics if fabric and fabric.domain} | {m.node for m in members}

    if len(step.groups) == 1:
        return 1
    own = wires(group)
    return sum(not own.isdisjoint(wires(other)) for other in step.groups)


def _likeness(topology: Topology, group: Group) -> tuple[tuple[tuple[str, int], ...], int, tuple[str, ...]]:
    shape = group_shape(topology, group)
    return shape.paths, shape.nodes, tuple(sorted(topology.gpu(m).name or "" for m in group))


def _inside(topology: Topology, kind: Kind, backend: str, every_pair: bool) -> Iterator[_Wish]:
    """What is asked of one node or NVLink domain."""
    gpus, whole_sizes = kind.sample[:_LARGEST_GROUP], wholes(topology, kind.sample[:_LARGEST_GROUP])
    twins: list[Group] = []
    halves: tuple[Group, ...] = ()
    for size in group_sizes(topology, gpus):
        is_common = size.bit_count() == 1 or size in whole_sizes
        uses = _ALL_REDUCE_USES if is_common else (_Use.RARE,) * len(_ALL_REDUCE_USES)
        groups = cut(topology, gpus, size)
        halves = groups if len(groups) == 2 else halves
        distinct = {_likeness(topology, group): group for group in reversed(groups)}
        for group in sorted(distinct.values(), key=groups.index)[:_MOST_PLACEMENTS]:
            alone = Step("all_reduce", (group,), f"TP {size} in a {kind.noun}")
            yield from _and_graph(_Wish(uses[0], alone), uses[1], backend)
        deployed = Step("all_reduce", groups, f"{len(groups)} x TP {size} in a {kind.noun}, all busy")
        yield from _and_graph(_Wish(uses[2], deployed), uses[3], backend)
        likeness = _likeness(topology, groups[0])
        far = (g for g in reversed(cut(topology, kind.farthest[-len(gpus) :], size)) if g != groups[0])
        twins += [g for g in far if _likeness(topology, g) == likeness][:1]
    for twin in dict.fromkeys((*twins[:1], *twins[-1:])):
        yield _Wish(_Use.ALIKE, Step("all_reduce", (twin,), "whether alike groups are equally fast"), "again")
    for size in whole_sizes[-2:]:
        yield from _experts(cut(topology, gpus, size)[0], f"EP {size} in a {kind.noun}", _Use.EXPERTS)
    if halves:
        hops = tuple(zip(*halves, strict=True))
        yield _Wish(_Use.PIPELINE, Step("p2p", hops, f"PP 2 in a {kind.noun}, all ranks sending", "forward"))
    yield from _paths(topology, kind, backend, every_pair)


def _paths(topology: Topology, kind: Kind, backend: str, every_pair: bool) -> Iterator[_Wish]:
    """Pairs of GPUs: one of each distinct kind of path, the farthest like it, or all of them."""
    gpus = kind.sample
    first = gpus[0].node
    reachable = [*(m for m in gpus if m.node == first), *[m for m in gpus if m.node != first][:1]]
    alike: dict[Hashable, list[Group]] = {}
    for a, b in combinations(reachable, 2):
        models = sorted(topology.gpu(m).name or "" for m in (a, b))
        alike.setdefault((topology.path(a, b), *models), []).append((a, b))
    for what, pairs in alike.items():
        yield from _pair(pairs[0], f"PP over {topology.path(*pairs[0]).label}", _Use.PIPELINE, what)
        if backend != "gloo" and pairs[0][0].node == pairs[0][1].node:
            for direction in DIRECTIONS:
                step = Step("p2p", (pairs[0],), "whether P2P is faster than the host", direction, p2p_enabled=False)
                yield _Wish(_Use.WITHOUT_P2P, step, what)
        if len(pairs) > 1:
            step = Step("p2p", (pairs[-1],), "whether alike paths are equally fast", "forward")
            yield _Wish(_Use.ALIKE, step, ("again", what))
    if every_pair:
        nodes = kind.domains[:_EVERY_PAIR_NODES]
        for pair in (pair for pairs in alike.values() for pair in pairs):
            i, j = (gpus.index(member) for member in pair)
            everywhere = tuple((node[i], node[j]) for node in nodes)
            for direction in DIRECTIONS:
                yield _Wish(_Use.EVERY_PAIR, Step("p2p", everywhere, "every pair, as asked", direction), (i, j))


def _across(topology: Topology, found: Sequence[Kind], backend: str, every_pair: bool) -> Iterator[_Wish]:
    """What is asked of several nodes (or NVLink domains): the network between alike ones, and between unlike ones."""
    for kind in found:
        for span in _SPANS:
            if span <= len(kind.domains) and (span == 2 or span * len(kind.sample) <= _LARGEST_GROUP):
                use = _Use.ACROSS_NODES if span == 2 else _Use.RARE
                yield from _spread(kind.domains[:span], backend, use)
        if len(kind.domains) > 1:
            yield from _between(topology, kind.domains[0], kind.domains[1], every_pair)
        if len(kind.domains) > 2:
            a, b = kind.sample, kind.farthest
            answers = "whether far nodes reach each other as near ones"
            for step in (Step("p2p", ((a[0], b[0]),), answers, "forward"), Step("all_reduce", ((*a, *b),), answers)):
                if len(a) + len(b) <= _LARGEST_GROUP:
                    yield _Wish(_Use.ALIKE, step, "far")
    for one, other in list(combinations(found, 2))[:_MOST_PLACEMENTS]:
        even = min(len(one.sample), len(other.sample))
        a, b = one.sample[:even], other.sample[:even]
        yield from _spread((a, b), backend, _Use.ACROSS_NODES)
        yield from _between(topology, a, b, every_pair)


def _spread(domains: Sequence[Group], backend: str, use: _Use) -> Iterator[_Wish]:
    """One group over these domains: all of their GPUs, and one GPU of each."""
    whole = tuple(m for gpus in domains for m in gpus)
    if len(whole) <= _LARGEST_GROUP:
        wide = Step("all_reduce", (whole,), f"TP {len(whole)} over {len(domains)} nodes")
        yield from _and_graph(_Wish(use, wide), _Use.RARE, backend)
        yield from _experts(whole, f"EP {len(whole)} over {len(domains)} nodes", max(use, _Use.EXPERTS))
    single = Step("all_reduce", (tuple(gpus[0] for gpus in domains),), f"one GPU on each of {len(domains)} nodes")
    yield from _and_graph(_Wish(use, single), _Use.RARE, backend)


def _between(topology: Topology, a: Group, b: Group, every_pair: bool) -> Iterator[_Wish]:
    """GPUs of the same place in two domains: one pair, all pairs at once, and one pair for each kind of rail."""
    yield from _pair((a[0], b[0]), "PP over the network", _Use.ACROSS_NODES)
    pairs = tuple(zip(a, b, strict=True))
    for direction in DIRECTIONS:
        use = _Use.BOTH_WAYS if direction != "forward" else _Use.AS_DEPLOYED
        yield _Wish(use, Step("p2p", pairs, "PP over all rails at once", direction))
    for position in rail_members(topology, a, every=every_pair):
        if position:
            pair = (a[position], b[position])
            yield from _pair(pair, "PP over one rail", _Use.EVERY_PAIR if every_pair else _Use.RARE, pair)


def _pair(pair: Group, answers: str, use: _Use, apart: Hashable = None) -> Iterator[_Wish]:
    for direction in DIRECTIONS:
        later = use if direction == "forward" else max(use, _Use.BOTH_WAYS)
        yield _Wish(later, Step("p2p", (pair,), answers, direction), apart)


def _experts(group: Group, answers: str, use: _Use) -> Iterator[_Wish]:
    for operation in ("all_to_all", "all_gather", "reduce_scatter"):
        yield _Wish(use, Step(operation, (group,), answers))


def _and_graph(wish: _Wish, use: _Use, backend: str) -> Iterator[_Wish]:
    """The wish, and where there are graphs the same in one: eager launches overstate small messages 2 to 4 times."""
    yield wish
    if backend != "gloo":
        yield replace(wish, use=use, step=replace(wish.step, graph=True))
