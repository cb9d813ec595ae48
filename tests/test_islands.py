"""Islands are cliques, every GPU is in exactly one, and the fingerprint knows what matters."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from probe.islands import fingerprint, group_shape, islands, maximal_cliques, partial_meshes
from probe.topology import (
    Fabric,
    FabricState,
    Gpu,
    GpuRef,
    GpuState,
    GpuStatus,
    MigInstance,
    Node,
    NodeShape,
    Path,
    PathKind,
    Topology,
)

KINDS = [Path(PathKind.NVLINK, links=4), Path(PathKind.NVLINK, links=2), *map(Path, list(PathKind)[4:9])]


def topology_of(n: int, fast: dict[tuple[int, int], int], states: tuple[GpuState, ...] | None = None) -> Topology:
    paths = tuple(
        Path(PathKind.NVLINK, links=fast[pair]) if pair in fast else Path(PathKind.SYS)
        for pair in combinations(range(n), 2)
    )
    shape = NodeShape(tuple(Gpu(i) for i in range(n)), paths)
    return Topology((Node(shape, states or tuple(GpuState() for _ in range(n))),))


def members(topology: Topology) -> list[list[int]]:
    return [[ref.gpu for ref in island.members] for island in islands(topology)]


def test_bridged_pairs_are_islands_though_their_indices_are_not_adjacent() -> None:
    assert members(topology_of(4, {(0, 2): 4, (1, 3): 4})) == [[0, 2], [1, 3]]


def test_a_cube_mesh_is_cut_into_its_two_quads() -> None:
    quad = dict.fromkeys(combinations(range(4), 2), 1)
    other = dict.fromkeys(combinations(range(4, 8), 2), 1)
    cross = {(i, i + 4): 1 for i in range(4)}
    cube = topology_of(8, {**quad, **other, **cross})
    assert members(cube) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert partial_meshes(cube.nodes[0].shape) == [(0, 1, 2, 3), (4, 5, 6, 7), (0, 4), (1, 5), (2, 6), (3, 7)]


def test_of_equally_large_cliques_the_one_with_more_links_comes_first() -> None:
    assert members(topology_of(3, {(0, 1): 1, (1, 2): 4})) == [[1, 2], [0]]


def test_lost_hidden_and_sliced_gpus_stand_alone() -> None:
    full = dict.fromkeys(combinations(range(4), 2), 12)
    states = (GpuState(status=GpuStatus.LOST), GpuState(visible=False), GpuState(), GpuState())
    assert members(topology_of(4, full, states)) == [[2, 3], [0], [1]]
    sliced = (GpuState(mig_instances=(MigInstance("MIG-1"),)), *(GpuState() for _ in range(3)))
    assert members(topology_of(4, full, sliced)) == [[1, 2, 3], [0]]


def test_one_nvlink_domain_over_two_nodes_is_one_island_and_a_third_node_is_not_in_it() -> None:
    def node(clique: int) -> Node:
        fabric = Fabric(FabricState.COMPLETED, 0, "cluster", clique)
        return replace(topology_of(2, {(0, 1): 18}, (GpuState(fabric=fabric),) * 2).nodes[0])

    found = islands(Topology((node(1), node(1), node(2))))
    assert [[(m.node, m.gpu) for m in i.members] for i in found] == [[(0, 0), (0, 1), (1, 0), (1, 1)], [(2, 0), (2, 1)]]
    assert [i.bottleneck.kind for i in found if i.bottleneck] == [PathKind.MNNVL, PathKind.NVLINK]


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    n = draw(st.integers(1, 9))
    paths = tuple(draw(st.sampled_from(KINDS)) for _ in range(n * (n - 1) // 2))
    return Topology((Node(NodeShape(tuple(Gpu(i) for i in range(n)), paths), (GpuState(),) * n),))


@given(topologies())
def test_every_gpu_is_in_exactly_one_island_and_every_island_is_a_clique(topology: Topology) -> None:
    found = islands(topology)
    assert sorted(m for i in found for m in i.members) == [GpuRef(0, g) for g in range(topology.gpu_count)]
    assert all(topology.path(a, b).is_fast for i in found for a, b in combinations(i.members, 2))
    assert [len(i.members) for i in found] == sorted((len(i.members) for i in found), reverse=True)


@given(topologies())
def test_maximal_cliques_are_what_trying_every_subset_finds(topology: Topology) -> None:
    shape = topology.nodes[0].shape
    n = len(shape.gpus)
    neighbours = [sum(1 << b for b in range(n) if b != a and shape.path(a, b).is_fast) for a in range(n)]
    cliques = [
        set(c) for r in range(1, n + 1) for c in combinations(range(n), r)
        if all(shape.path(a, b).is_fast for a, b in combinations(c, 2))
    ]  # fmt: skip
    maximal = {sum(1 << v for v in c) for c in cliques if not any(c < d for d in cliques)}
    assert set(maximal_cliques(neighbours, (1 << n) - 1)) == maximal


def test_the_fingerprint_knows_wires_and_models_but_no_serial_numbers() -> None:
    base = topology_of(4, {(0, 1): 4, (2, 3): 4})
    node = base.nodes[0]
    named = replace(node, hostname="a", gpus=tuple(GpuState(uuid=f"GPU-{i}", serial=str(i)) for i in range(4)))
    assert fingerprint(base) == fingerprint(Topology((named,)))
    lost = replace(node, gpus=(GpuState(status=GpuStatus.LOST), *node.gpus[1:]))
    others = [topology_of(4, {(0, 2): 4, (1, 3): 4}), topology_of(4, {(0, 1): 2, (2, 3): 4}), Topology((lost,))]
    assert len({fingerprint(t) for t in (base, *others)}) == 4


def test_the_fingerprint_does_not_depend_on_the_order_of_nodes() -> None:
    a, b = topology_of(2, {(0, 1): 4}).nodes[0], topology_of(2, {}).nodes[0]
    assert fingerprint(Topology((a, b))) == fingerprint(Topology((b, a)))


def test_groups_of_like_paths_have_one_group_shape() -> None:
    pairs = topology_of(4, {(0, 2): 4, (1, 3): 4})
    assert group_shape(pairs, [GpuRef(0, 0), GpuRef(0, 2)]) == group_shape(pairs, [GpuRef(0, 1), GpuRef(0, 3)])
    assert group_shape(pairs, [GpuRef(0, 0), GpuRef(0, 1)]) != group_shape(pairs, [GpuRef(0, 0), GpuRef(0, 2)])


def test_a_graph_made_to_have_millions_of_cliques_ends_soon() -> None:
    thirds = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(20)]
    apart = {pair for third in thirds for pair in combinations(third, 2)}
    fast = {pair: 1 for pair in combinations(range(60), 2) if pair not in apart}
    assert sum(len(i) for i in members(topology_of(60, fast))) == 60
