"""Every synthetic machine is wired as its one-line text says, alone, as a cluster and in a mixture."""

from __future__ import annotations

from itertools import combinations

import pytest

from probe.catalog import gpu_figures
from probe.errors import SourceError
from probe.islands import fingerprint, islands, partial_meshes
from probe.sources.machines import MACHINES, MAX_NODES, machine
from probe.topology import PathKind, Topology

ALONE = [[i] for i in range(8)]
ISLANDS: dict[str, list[list[int]]] = {
    "h100-1": [[0]],
    "h200-1": [[0]],
    "hgx-h100": [list(range(8))],
    "hgx-h200": [list(range(8))],
    "hgx-b200": [list(range(8))],
    "hgx-a100": [list(range(8))],
    "a100-pcie-pairs-8": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "h100-nvl-pairs-8": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "a100-pcie-8": ALONE,
    "h100-pcie-8": ALONE,
    "h200-nvl-8": ALONE,
    "gh200-1": [[0]],
    "dgx-spark-1": [[0]],
    "dgx1-v100": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "3090-bridges-4": [[0, 2], [1, 3]],
    "3090-4": ALONE[:4],
    "l40s-8": ALONE,
    "l4-8": ALONE,
    "t4-4": ALONE[:4],
    "a10g-4": ALONE[:4],
    "a6000-6": ALONE[:6],
    "4090-8": ALONE,
    "rtx-pro-6000-8": ALONE,
    "mi300x-8": [list(range(8))],
}
"""Per machine of one node. Racks have tests of their own."""


def members(topology: Topology) -> list[list[tuple[int, int]]]:
    return [[(ref.node, ref.gpu) for ref in island.members] for island in islands(topology)]


def test_every_machine_has_its_islands_written_down() -> None:
    assert set(MACHINES) == {*ISLANDS, "gb200-nvl72"}


@pytest.mark.parametrize("name", ISLANDS)
def test_islands_of_one_node(name: str) -> None:
    topology = machine(name)
    assert members(topology) == [[(0, gpu) for gpu in island] for island in ISLANDS[name]]
    assert topology.network == ()


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_is_whole(name: str) -> None:
    topology, kind = machine(name), MACHINES[name]
    assert len(topology.nodes) == kind.nodes
    assert {w.code for w in topology.warnings} == {"synthetic"}
    assert topology.provenance, "each fact says where it came from"
    node = topology.nodes[0]
    shape, figures = node.shape, gpu_figures(kind.gpu)
    assert figures is not None
    assert {(g.name, g.memory_bytes) for g in shape.gpus} == {(figures.name, figures.memory_bytes)}
    assert all(state.is_usable and state.uuid is None for state in node.gpus), "nobody made these boards"
    assert len(shape.nics) == kind.nics
    if kind.nics:
        assert all(gpu.nearest_nics for gpu in shape.gpus)
    sockets = {gpu.numa_node for gpu in shape.gpus}
    assert sockets == set(range(min(kind.sockets, kind.gpus)))
    for a, b, path in shape.pairs:
        same_socket = shape.gpus[a].numa_node == shape.gpus[b].numa_node
        assert path.is_fast or (path.kind is PathKind.SYS) != same_socket, "SYS crosses sockets, nothing else does"
    for gpu in shape.gpus:
        ends = [shape.path(gpu.index, other.index).links or 0 for other in shape.gpus if other is not gpu]
        if figures.nvlinks:
            assert max(ends, default=0) <= figures.nvlinks, "no board has more links than its model"


@pytest.mark.parametrize("name", ["hgx-h100", "hgx-h200", "hgx-b200", "hgx-a100"])
def test_behind_nvswitch_every_pair_has_all_links(name: str) -> None:
    shape = machine(name).nodes[0].shape
    figures = gpu_figures(MACHINES[name].gpu)
    assert figures is not None
    assert {path.links for path in shape.paths} == {figures.nvlinks}


def test_the_cube_mesh_uses_six_links_of_every_gpu() -> None:
    shape = machine("dgx1-v100").nodes[0].shape
    for a in range(8):
        assert sum(shape.path(a, b).links or 0 for b in range(8) if b != a) == 6
    assert (0, 1, 2, 3) in partial_meshes(shape)


@pytest.mark.parametrize("name", ["l40s-8", "rtx-pro-6000-8"])
def test_two_gpus_under_each_switch(name: str) -> None:
    shape = machine(name).nodes[0].shape
    near = {(a, b) for a, b, path in shape.pairs if path.kind is PathKind.PXB}
    assert near == {(0, 1), (2, 3), (4, 5), (6, 7)}


def test_a_rack_is_one_island_of_72() -> None:
    topology = machine("gb200-nvl72")
    (island,) = islands(topology)
    assert len(island.members) == 72
    assert island.bottleneck is not None
    assert island.bottleneck.kind is PathKind.MNNVL
    assert [(p.kind, len(p.nodes)) for p in topology.network] == [(PathKind.MNNVL, 18)]


def test_two_racks_are_two_islands_that_a_network_joins() -> None:
    topology = machine("machine:2xgb200-nvl72")
    assert [len(island) for island in members(topology)] == [72, 72]
    assert [(p.kind, len(p.nodes)) for p in topology.network] == [
        (PathKind.MNNVL, 18),
        (PathKind.MNNVL, 18),
        (PathKind.NET, 36),
    ]


def test_equal_nodes_share_one_shape() -> None:
    topology = machine("machine:2048xhgx-h100")
    assert len(topology.nodes) == 2048
    assert len({id(node.shape) for node in topology.nodes}) == 1
    assert topology.network[0].nodes == tuple(range(2048))
    assert len({node.hostname for node in topology.nodes}) == 2048


def test_a_mixture_keeps_its_order() -> None:
    topology = machine("machine:2xhgx-h100+1xl40s-8+h100-1")
    assert [node.shape.gpus[0].name for node in topology.nodes] == [
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA L40S",
        "NVIDIA H100 80GB HBM3",
    ]
    assert [len(node.gpus) for node in topology.nodes] == [8, 8, 8, 1]
    assert [(p.kind, p.nodes) for p in topology.network] == [(PathKind.NET, (0, 1, 2, 3))]
    assert [len(island) for island in members(topology)] == [8, 8, *[1] * 9]


def test_names_may_be_written_in_any_case_and_with_blanks_around() -> None:
    assert machine("machine:1xHGX-H100 + l4-8").nodes == machine("hgx-h100+l4-8").nodes


def test_different_machines_have_different_fingerprints() -> None:
    prints = {name: fingerprint(machine(name)) for name in MACHINES}
    assert all(prints[a] != prints[b] for a, b in combinations(prints, 2))
    assert fingerprint(machine("2xhgx-h100")) != fingerprint(machine("hgx-h100"))
    assert fingerprint(machine("l4-8+t4-4")) == fingerprint(machine("t4-4+l4-8")), "order of nodes does not count"


@pytest.mark.parametrize(
    "text",
    ["", "nope", "hgx-h100+", "+hgx-h100", "0xhgx-h100", "-1xhgx-h100", "1.5xhgx-h100", "x", "2x", "2xhgx-h100x2"],
)
def test_what_is_no_machine(text: str) -> None:
    with pytest.raises(SourceError):
        machine(f"machine:{text}")


def test_no_more_nodes_than_can_be_handled() -> None:
    assert len(machine(f"{MAX_NODES}xh100-1").nodes) == MAX_NODES
    for text in (f"{MAX_NODES + 1}xh100-1", f"{MAX_NODES}xh100-1+l4-8", "999999999xh100-1", "300xgb200-nvl72"):
        with pytest.raises(SourceError, match="more than 4096"):
            machine(text)
