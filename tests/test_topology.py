"""The nouns refuse to be built wrong, and say which law was broken."""

from __future__ import annotations

import pytest

from probe.topology import (
    Fabric,
    FabricState,
    Gpu,
    GpuRef,
    GpuState,
    NetworkPath,
    Nic,
    Node,
    NodeShape,
    Path,
    PathKind,
    Topology,
)

NV4 = Path(PathKind.NVLINK, links=4)
SYS = Path(PathKind.SYS)


def shape_of(*paths: Path) -> NodeShape:
    n = next(n for n in range(1, 9) if n * (n - 1) // 2 == len(paths))
    return NodeShape(tuple(Gpu(i) for i in range(n)), paths)


def test_a_path_is_the_same_from_both_ends() -> None:
    shape = shape_of(NV4, SYS, Path(PathKind.PIX))
    assert shape.path(0, 1) == shape.path(1, 0) == NV4
    assert shape.path(2, 0) == SYS
    assert shape.path(1, 2).kind is PathKind.PIX


def test_fast_fabrics_come_before_every_pcie_level_and_more_links_before_fewer() -> None:
    paths = [SYS, Path(PathKind.PIX), NV4, Path(PathKind.NVLINK, links=18), Path(PathKind.UNKNOWN), Path(PathKind.PHB)]
    assert [p.label for p in sorted(paths, key=lambda p: p.slowness)] == ["NV18", "NV4", "PIX", "PHB", "SYS", "UNKNOWN"]


@pytest.mark.parametrize(
    ("build", "law"),
    [
        (lambda: shape_of(NV4).path(1, 1), "no path to itself"),
        (lambda: Path(PathKind.SYS, links=2), "only a fast fabric has links"),
        (lambda: Path(PathKind.NVLINK, links=0), "1 to 64 links"),
        (lambda: Path(PathKind.SYS, asymmetric=("NV6", "NV6")), "two different readings"),
        (lambda: Gpu(0, memory_bytes=0), "never 0"),
        (lambda: Gpu(0, name=""), "never empty"),
        (lambda: Gpu(0, nvlinks_active=5, nvlinks_total=4), "active NVLinks"),
        (lambda: NodeShape((Gpu(1),), ()), "numbered 0..n-1"),
        (lambda: NodeShape((Gpu(0), Gpu(1)), ()), "2 GPUs have 1 pairs"),
        (lambda: NodeShape((), (), (Nic("a"), Nic("a"))), "unique"),
        (lambda: GpuRef(-1, 0), "counted from 0"),
        (lambda: GpuRef(0, -1), "counted from 0"),
        (lambda: NodeShape((Gpu(0, nearest_nics=("mlx5_9",)),), (), (Nic("mlx5_0"),)), "nearest NIC"),
        (lambda: Node(shape_of(NV4), (GpuState(),)), "one state per GPU"),
        (lambda: Node(shape_of(NV4), (GpuState(uuid="GPU-1"), GpuState(uuid="GPU-1"))), "UUIDs are unique"),
        (lambda: Fabric(FabricState.COMPLETED, cluster_uuid="00000000-0000-0000-0000-000000000000"), "all-zero"),
        (lambda: NetworkPath(PathKind.SYS, (0, 1)), "NET or MNNVL"),
        (lambda: NetworkPath(PathKind.NET, (0, 0)), "two or more different"),
        (lambda: Topology(()), "at least one node"),
    ],
)
def test_what_cannot_be_is_refused_with_its_law(build: object, law: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=law):
        build()


def rack_node(cluster: str | None, clique: int, state: FabricState = FabricState.COMPLETED) -> Node:
    fabric = Fabric(state, status=0, cluster_uuid=cluster, clique_id=clique)
    return Node(shape_of(NV4), (GpuState(fabric=fabric), GpuState(fabric=fabric)))


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        (rack_node("c1", 1), rack_node("c1", 1), PathKind.MNNVL),
        (rack_node("c1", 1), rack_node("c1", 2), PathKind.NET),
        (rack_node("c1", 1), rack_node("c2", 1), PathKind.NET),
        (rack_node(None, 0), rack_node(None, 0), PathKind.NET),
        (rack_node("c1", 1), rack_node("c1", 1, FabricState.IN_PROGRESS), PathKind.NET),
    ],
)
def test_nodes_share_nvlink_only_in_one_cluster_and_clique(a: Node, b: Node, kind: PathKind) -> None:
    assert Topology((a, b)).path(GpuRef(0, 0), GpuRef(1, 1)).kind is kind
