"""Descriptions of one machine complete each other; of several machines they make a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import cluster_of, node_of

from probe.errors import UsageError
from probe.merge import completed, merge_topologies
from probe.sources.registry import read_text
from probe.topology import GpuState, Nic, Node, NodeShape, Notice, Origin, Path, PathKind, Provenance, Topology


def identified(node: Node, *uuids: str) -> Node:
    return replace(node, gpus=tuple(GpuState(uuid=u) for u in uuids))


def nameless(node: Node) -> Node:
    gpus = tuple(replace(g, memory_bytes=None) for g in node.shape.gpus)
    return replace(node, shape=replace(node.shape, gpus=gpus))


def wireless(node: Node) -> Node:
    unknown = (Path(PathKind.UNKNOWN),) * len(node.shape.paths)
    return replace(node, shape=replace(node.shape, paths=unknown))


def test_a_matrix_and_a_listing_of_one_machine_make_one_whole() -> None:
    node = node_of(4, 48, {(0, 2): 4, (1, 3): 4})
    matrix = Topology((nameless(node),), provenance=(Origin("paths", Provenance.READ, "matrix"),))
    listing = Topology(
        (identified(wireless(node), "GPU-a", "GPU-b", "GPU-c", "GPU-d"),),
        provenance=(Origin("gpus.memory_bytes", Provenance.READ, "listing"),),
    )
    whole = completed(matrix, listing)
    assert whole.nodes[0].shape == node.shape
    assert [g.uuid for g in whole.nodes[0].gpus] == ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
    assert {o.fact for o in whole.provenance} == {"paths", "gpus.memory_bytes"}


def test_gpus_are_matched_by_uuid_whatever_their_order() -> None:
    node = node_of(3, (24, 48, 80), {(0, 1): 4})
    first = Topology((identified(nameless(node), "GPU-a", "GPU-b", "GPU-c"),))
    turned = NodeShape(
        tuple(replace(node.shape.gpus[old], index=new) for new, old in enumerate((2, 0, 1))),
        (Path(PathKind.SYS), Path(PathKind.SYS), Path(PathKind.NVLINK, links=4)),
    )
    second = Topology((Node(turned, tuple(GpuState(uuid=f"GPU-{x}") for x in "cab")),))
    assert completed(first, second).nodes[0].shape == node.shape
    assert merge_topologies([first, second]).nodes[0].shape == node.shape


def test_nics_come_with_their_paths() -> None:
    node = node_of(2, 48)
    nics = (Nic("mlx5_0"),)
    near = tuple(replace(g, nearest_nics=("mlx5_0",)) for g in node.shape.gpus)
    wired = replace(node.shape, gpus=near, nics=nics, nic_paths=((Path(PathKind.PIX),),) * 2)
    whole = completed(Topology((node,)), Topology((replace(node, shape=wired),)))
    assert whole.nodes[0].shape == wired


def test_a_description_of_other_gpus_is_left_out_aloud() -> None:
    two, three = cluster_of(node_of(2, 48)), cluster_of(node_of(3, 48))
    whole = completed(two, three)
    assert whole.nodes == two.nodes
    assert [w.code for w in whole.warnings] == ["not-merged"]


def test_different_machines_make_a_cluster_and_a_shared_gpu_is_refused() -> None:
    a = Topology((identified(node_of(2, 48), "GPU-a", "GPU-b"),))
    b = Topology((identified(node_of(2, 48), "GPU-c", "GPU-d"),))
    c = Topology((identified(node_of(2, 48), "GPU-a", "GPU-x"),))
    cluster = merge_topologies([a, b])
    assert len(cluster.nodes) == 2 and cluster.nodes[0].shape is cluster.nodes[1].shape
    with pytest.raises(UsageError, match="share a GPU"):
        merge_topologies([a, c])


def test_a_dump_with_a_matrix_and_a_log_is_one_machine() -> None:
    gpus = "".join(
        f'<gpu id="00000000:{16 + i:02X}:00.0"><product_name>NVIDIA L40S</product_name>'
        f"<uuid>GPU-{i}0000000-1111-2222-3333-"
        f"444444444444</uuid><fb_memory_usage><total>46068 MiB</total><free>46000 MiB</free></fb_memory_usage></gpu>"
        for i in range(2)
    )
    dump = (
        "$ nvidia-smi topo -m\n\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\n"
        "GPU0\t X \tPIX\t0-15\t0\nGPU1\tPIX\t X \t0-15\t0\n\n"
        '$ nvidia-smi -q -x\n<?xml version="1.0" ?>\n<nvidia_smi_log><driver_version>580.1</driver_version>'
        f"<attached_gpus>2</attached_gpus>{gpus}</nvidia_smi_log>\n"
    )
    node = read_text(dump, where="dump").nodes[0]
    assert node.shape.path(0, 1).kind is PathKind.PIX
    assert [g.name for g in node.shape.gpus] == ["NVIDIA L40S"] * 2
    assert node.driver_version == "580.1"


def test_a_matrix_and_a_listing_given_apart_are_one_machine_too() -> None:
    """As the listing's own notice advises: `-q -x` and `topo -m` of one machine, two files."""
    node = node_of(2, 48)
    matrix, listing = Topology((nameless(node),)), Topology((identified(wireless(node), "GPU-a", "GPU-b"),))
    for parts in ([matrix, listing], [listing, matrix]):
        whole = merge_topologies(parts)
        assert [n.shape for n in whole.nodes] == [node.shape]
        assert whole.nodes[0].gpus[1].uuid == "GPU-b"
    assert len(merge_topologies([matrix, matrix]).nodes) == 2, "two matrices are two machines"


def test_what_the_second_description_answers_is_no_longer_warned_of() -> None:
    node = node_of(2, 48)
    unknown = Topology((identified(wireless(node), "GPU-a", "GPU-b"),), warnings=(Notice("paths-unknown", "no path"),))
    assert merge_topologies([Topology((nameless(node),)), unknown]).warnings == ()


def test_a_listing_that_lost_a_gpu_still_tells_of_the_others() -> None:
    node = identified(nameless(node_of(3, 48)), "GPU-a", "GPU-b", "GPU-c")
    listing = Topology((identified(wireless(node_of(2, 80)), "GPU-a", "GPU-c"),))
    memory = [g.memory_bytes for g in completed(Topology((node,)), listing).nodes[0].shape.gpus]
    assert memory == [80 << 30, None, 80 << 30]


def test_one_cluster_given_twice_is_one_cluster() -> None:
    cluster = Topology(tuple(identified(node_of(2, 48), f"GPU-{i}a", f"GPU-{i}b") for i in range(2)))
    assert merge_topologies([cluster, cluster]) == cluster


def test_xml_after_a_licence_or_a_prompt_is_found() -> None:
    log = (
        "<nvidia_smi_log><driver_version>580.1</driver_version><attached_gpus>1</attached_gpus>"
        '<gpu id="00000000:10:00.0"><product_name>NVIDIA L40S</product_name></gpu></nvidia_smi_log>'
    )
    for text in (f'<?xml version="1.0"?>\n<!-- {"word " * 3000} -->\n{log}', f"$ nvidia-smi -q -x\n{log}\n"):
        assert read_text(text, where="log").nodes[0].shape.gpus[0].name == "NVIDIA L40S"
