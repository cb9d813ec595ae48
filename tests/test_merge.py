"""Descriptions of one machine complete each other; of several machines they make a cluster."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
from builders import cluster_of, node_of
from command import wirelore

from probe.errors import UsageError
from probe.fleet import merge_files, merge_surveys
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Evidence, HealthSnapshot, Rate, Sample, Survey, Verification
from probe.merge import completed, merge_topologies, placed
from probe.sources.registry import read_survey, read_text
from probe.store import encode_survey, encode_topology
from probe.topology import GpuRef, GpuState, Nic, Node, NodeShape, Notice, Origin, Path, PathKind, Provenance, Topology


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


def test_what_all_parts_tell_alike_stands_once() -> None:
    origin, notice = Origin("paths", Provenance.READ, "NVML"), Notice("gpu-busy", "GPU 0 is busy")
    parts = [
        Topology(
            (identified(node_of(2, 48), f"GPU-{i}a", f"GPU-{i}b"),), provenance=(origin,), warnings=(notice,) * (i % 2)
        )
        for i in range(3)
    ]
    cluster = merge_topologies(parts)
    assert cluster.provenance == (origin,)
    assert cluster.warnings == (replace(notice, node=1),)


def test_it_is_told_where_each_part_stands() -> None:
    first = Topology((identified(node_of(2, 48), "GPU-a", "GPU-b"),))
    other = Topology((identified(node_of(2, 48), "GPU-c", "GPU-d"),))
    turned = Topology((identified(nameless(node_of(2, 48)), "GPU-d", "GPU-c"),))
    _, places = placed([first, other, turned])
    assert [p.of(GpuRef(0, 1)) for p in places] == [GpuRef(0, 1), GpuRef(1, 1), GpuRef(1, 0)]


# ---- surveys -------------------------------------------------------------------------------------------------------

SIZES = tuple(1 << power for power in (10, 14, 16, 19, 20, 22, 24, 26))


def surveyed(
    number: int,
    *,
    slower: float = 1.0,
    slow_from: int = 1 << 19,
    noise: float = 0.01,
    gpus: int = 4,
    driver: str = "580.1",
    lab: str | None = None,
    sizes: tuple[int, ...] = SIZES,
) -> Survey:
    """Node `number`, measured: an all-reduce over all its GPUs, one rate per GPU, and what runs beside."""
    node = identified(node_of(gpus, 80, "all"), *(f"GPU-{number}-{i}" for i in range(gpus)))
    topology = Topology((replace(node, hostname=f"host{number}", driver_version=driver),))
    members = tuple(GpuRef(0, i) for i in range(gpus))
    key = CurveKey("all_reduce", group_shape(topology, members), "bfloat16", "nccl", library_version="2.27.3")
    chance = random.Random(number)

    def times(size: int) -> tuple[float, ...]:
        typical = (10e-6 + size / 1e11) * (slower if size >= slow_from else 1)
        return tuple(typical * chance.lognormvariate(0, noise) for _ in range(20))

    samples = tuple(Sample(size, tuple(times(size) for _ in range(3))) for size in sizes)
    return Survey(
        topology,
        (Curve(key, samples, members),),
        rates=tuple(Rate("hbm_read", ref, 3000.0 + number, "GB/s") for ref in members),
        health=(
            HealthSnapshot(GpuRef(0, 0), "2026-11-20T10:00:00+00:00", (("nvlink_crc", 0),)),
            HealthSnapshot(GpuRef(0, 0), "2026-11-20T10:00:20+00:00", (("nvlink_crc", number % 2),)),
        ),
        verifications=(Verification(members[0], members[1], number != 3),),
        evidence=(Evidence("all_reduce", "transport", "P2P/CUMEM"),),
        environment=(("NCCL_DEBUG", "INFO"),),
        missing=(Notice("partly-measured", f"the time ended on {number}"), Notice("rate-missing", "no fp8 here")),
        origins=(Origin("curves", Provenance.MEASURED, f"nccl on host{number}"),),
        lab=lab,
        measured_at=f"2026-11-{20 + number % 8}T10:00:00+00:00",
    )


def unlike(survey: Survey) -> list[int | None]:
    return [notice.node for notice in survey.missing if notice.code == "unlike-its-twins"]


def test_equal_nodes_share_one_copy_and_it_is_said_for_how_many() -> None:
    cluster = merge_surveys([surveyed(n) for n in range(6)])
    assert len(cluster.topology.nodes) == 6
    assert len(cluster.curves) == 1
    assert len(cluster.rates) == 4
    (origin,) = cluster.origins
    node = origin.node
    assert node is not None and origin.provenance is Provenance.MEASURED
    assert f"on node {node} (host{node}), shared by 6 equal nodes" in origin.source
    assert {m.node for m in cluster.curves[0].members} == {node}
    assert cluster.curves[0].samples == surveyed(node).curves[0].samples, "raw times of the one that stands for all"
    assert {r.gpu.node for r in cluster.rates} == {node}
    assert cluster.evidence == (Evidence("all_reduce", "transport", "P2P/CUMEM"),)
    assert cluster.environment == (("NCCL_DEBUG", "INFO"),)
    assert cluster.measured_at == "2026-11-20T10:00:00+00:00", "no younger than its oldest part"


def test_what_is_wrong_with_single_nodes_is_kept() -> None:
    cluster = merge_surveys([surveyed(n) for n in range(6)])
    assert [v.source.node for v in cluster.verifications if not v.passed] == [3]
    typical = cluster.curves[0].members[0].node
    assert {h.gpu.node for h in cluster.health} - {typical} == {1, 3, 5} - {typical}, "counters that moved"
    assert [n.message for n in cluster.missing if n.code == "rate-missing"] == ["no fp8 here (so on 6 nodes)"]
    assert len([n for n in cluster.missing if n.code == "partly-measured"]) == 1, "what a twin measured is not missing"


def test_nodes_that_differ_in_wires_or_driver_keep_their_own_curves() -> None:
    cluster = merge_surveys([surveyed(0), surveyed(1, gpus=2), surveyed(2, driver="575.9"), surveyed(3)])
    assert [c.ranks for c in cluster.curves] == [4, 2, 4]
    assert sorted("shared by 2" in o.source for o in cluster.origins) == [False, False, True]


def test_a_node_that_was_not_measured_shares_what_its_twin_measured() -> None:
    cluster = merge_surveys([Survey(surveyed(0).topology), surveyed(1)])
    assert "shared by 2 equal nodes" in cluster.origins[0].source
    assert {m.node for m in cluster.curves[0].members} == {1}


@pytest.mark.parametrize("slower", [1.3, 0.7])
def test_a_node_unlike_its_twins_is_named_whichever_place_it_has(slower: float) -> None:
    for odd in (0, 3, 5):
        cluster = merge_surveys([surveyed(n, slower=slower if n == odd else 1.0) for n in range(6)])
        assert unlike(cluster) == [odd]
        (notice,) = (n for n in cluster.missing if n.code == "unlike-its-twins")
        assert f"node {odd} (host{odd})" in notice.message
        assert "all_reduce of 4 GPUs takes" in notice.message
        assert "from 512 KiB to 64 MiB" in notice.message
        assert {m.node for m in cluster.curves[0].members} != {odd}, "it does not stand for the others"


def test_noise_is_no_difference() -> None:
    assert unlike(merge_surveys([surveyed(n, noise=0.02) for n in range(40)])) == []
    assert unlike(merge_surveys([surveyed(n, noise=0.6, slower=1.1 if n == 1 else 1) for n in range(6)])) == []


def test_a_difference_that_changes_no_plan_is_not_told() -> None:
    assert unlike(merge_surveys([surveyed(n, noise=0.001, slower=1.03 if n == 1 else 1) for n in range(4)])) == []


def test_one_size_that_is_off_proves_nothing() -> None:
    odd = surveyed(2)
    samples = tuple(
        replace(s, rounds_s=tuple(tuple(t * 1.5 for t in one) for one in s.rounds_s)) if s.size_bytes == 1 << 24 else s
        for s in odd.curves[0].samples
    )
    odd = replace(odd, curves=(replace(odd.curves[0], samples=samples),))
    assert unlike(merge_surveys([surveyed(0), surveyed(1), odd, surveyed(3)])) == []


def test_the_fullest_stand_for_the_others() -> None:
    cluster = merge_surveys([surveyed(0, sizes=SIZES[:2]), surveyed(1), surveyed(2, sizes=SIZES[:3])])
    assert len(cluster.curves[0].samples) == len(SIZES)


def test_measurements_of_one_machine_follow_its_gpus_into_the_completed_description() -> None:
    survey = surveyed(0, gpus=2)
    listing = identified(nameless(node_of(2, 80)), "GPU-0-1", "GPU-0-0")
    other = Topology((identified(node_of(2, 80), "GPU-x", "GPU-y"),))
    whole = merge_surveys([Survey(other), Survey(Topology((listing,))), survey])
    assert len(whole.topology.nodes) == 2
    assert whole.curves[0].members == (GpuRef(1, 1), GpuRef(1, 0))
    assert [r.gpu for r in whole.rates] == [GpuRef(1, 1), GpuRef(1, 0)]


def test_lab_figures_never_mix_with_measured_ones() -> None:
    with pytest.raises(UsageError, match="lab figures"):
        merge_surveys([surveyed(0, lab="CPU ranks"), surveyed(1)])
    assert merge_surveys([surveyed(0, lab="CPU ranks"), surveyed(1, lab="CPU ranks")]).lab == "CPU ranks"
    assert merge_surveys([surveyed(0, lab="here"), surveyed(1, lab="there"), Survey(surveyed(2).topology)]).lab == (
        "here; there"
    )


def test_clusters_are_merged_node_by_node() -> None:
    pair = merge_surveys([surveyed(0), surveyed(1)])
    rest = merge_surveys([surveyed(2), surveyed(3)])
    cluster = merge_surveys([pair, rest])
    assert [n.hostname for n in cluster.topology.nodes] == [f"host{i}" for i in range(4)]
    assert "shared by 4 equal nodes" in cluster.origins[0].source


def written(folder: FilePath, *surveys: Survey) -> list[str]:
    paths = [folder / f"s{i}.json" for i in range(len(surveys))]
    for path, survey in zip(paths, surveys, strict=True):
        path.write_bytes(encode_survey(survey))
    return [str(path) for path in paths]


def test_files_merge_as_surveys_in_memory_do(tmp_path: FilePath) -> None:
    surveys = [surveyed(n, slower=1.3 if n == 2 else 1) for n in range(4)]
    paths = written(tmp_path, *surveys)
    from_files, in_memory = merge_files(paths), merge_surveys(surveys)
    assert from_files.curves == in_memory.curves
    assert from_files.topology == in_memory.topology
    assert unlike(from_files) == unlike(in_memory) == [2]
    (notice,) = (n for n in from_files.missing if n.code == "unlike-its-twins")
    assert "s2.json" in notice.message, "where its own figures are"


def test_merge_writes_a_survey_that_every_command_reads(tmp_path: FilePath) -> None:
    paths = written(tmp_path, *(surveyed(n, slower=1.4 if n == 1 else 1) for n in range(3)))
    ended = wirelore("merge", *paths, "-o", "cluster.json", cwd=tmp_path)
    assert ended.data() == ""
    assert "3 nodes, 12 GPUs, 1 curve" in ended.err
    assert "node 1 (host1) is unlike" in ended.err
    assert read_survey(str(tmp_path / "cluster.json")) == merge_files(paths)
    assert "on 3 nodes" in wirelore("probe", "--from", "cluster.json", cwd=tmp_path).data()
    assert wirelore("merge", paths[0], cwd=tmp_path).data().encode() == encode_survey(surveyed(0)), "to standard output"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a, b: [a, b, a], "same machine"),
        (lambda a, b: [a, f"{a.rpartition('/')[0]}/./s0.json"], "same machine"),
        (lambda a, b: [a, "-"], "standard input"),
        (lambda a, b: [a, "nowhere.json"], "nowhere.json"),
        (lambda a, b: [a, "text"], "text"),
    ],
    ids=["twice", "twice by another name", "stdin", "no file", "no survey"],
)
def test_what_cannot_be_merged_is_named(tmp_path: FilePath, change: object, says: str) -> None:
    assert callable(change)
    paths = written(tmp_path, surveyed(0), surveyed(1))
    (tmp_path / "text").write_text("no survey")
    ended = wirelore("merge", *change(*paths), "-o", "cluster.json", cwd=tmp_path)
    assert ended.code in (2, 4)
    assert says in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "cluster.json").exists()


def test_two_surveys_of_one_machine_are_refused_even_where_nothing_names_it(tmp_path: FilePath) -> None:
    survey = surveyed(0, lab="CPU ranks")
    node = replace(survey.topology.nodes[0], gpus=(GpuState(),) * 4, hostname=None)
    nameless_survey = replace(survey, topology=Topology((node,)))
    with pytest.raises(UsageError, match="same machine"):
        merge_files(written(tmp_path, nameless_survey, nameless_survey))
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_bytes(encode_topology(nameless_survey.topology))
    two = merge_files([str(tmp_path / name) for name in ("a.json", "b.json")])
    assert len(two.topology.nodes) == 2, "two equal machines without names and figures are two"
