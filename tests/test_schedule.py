"""What is measured answers every candidate plan, on the best placement, once, and stays small on large clusters."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import combinations

import pytest
from builders import cluster_of, node_of
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.bench.candidates import cut, group_sizes, kinds
from probe.bench.schedule import DIRECTIONS, Step, curve_key, sizes, sizes_of, steps
from probe.sources.machines import machine
from probe.topology import Gpu, GpuRef, GpuState, GpuStatus, MigInstance, Nic, Node, NodeShape, Path, PathKind, Topology


def alone(found: tuple[Step, ...], operation: str = "all_reduce") -> list[Step]:
    return [s for s in found if s.operation == operation and len(s.groups) == 1 and not s.graph]


def numbers(group: tuple[GpuRef, ...]) -> list[int]:
    return sorted(m.gpu for m in group)


def test_every_group_size_runs_alone_at_once_and_in_graphs() -> None:
    found = [s for s in steps(machine("hgx-h100"), backend="nccl") if s.operation == "all_reduce"]
    for graph in (False, True):
        runs = {(len(s.groups[0]), len(s.groups)) for s in found if s.graph == graph}
        assert runs == {(2, 1), (4, 1), (8, 1), (2, 4), (4, 2)}


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("3090-bridges-4", [[0, 2], [1, 3]]),
        ("a100-pcie-pairs-8", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("l40s-8", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ],
)
def test_pairs_stand_on_the_best_paths(name: str, pairs: list[list[int]]) -> None:
    found = steps(machine(name), backend="gloo")
    assert numbers(alone(found)[0].groups[0]) in pairs
    at_once = next(s for s in found if len(s.groups) == len(pairs) and s.operation == "all_reduce")
    assert sorted(map(numbers, at_once.groups)) == pairs


def test_groups_stay_inside_islands_as_long_as_they_fit() -> None:
    quads = {**dict.fromkeys(combinations((0, 2, 4), 2), 4), **dict.fromkeys(combinations((1, 3, 5), 2), 4)}
    topology = cluster_of(node_of(6, 24, quads))
    gpus = kinds(topology)[0].sample
    assert group_sizes(topology, gpus) == (2, 4, 3, 6)
    assert [numbers(g) for g in cut(topology, gpus, 3)] == [[0, 2, 4], [1, 3, 5]]
    assert [numbers(g) for g in cut(topology, gpus, 2)][:2] == [[0, 2], [1, 3]]


def test_tensor_parallelism_comes_first_then_the_network() -> None:
    found = steps(machine("2xhgx-h100"), backend="nccl")
    assert [(s.operation, len(s.groups[0])) for s in found[:4]] == [("all_reduce", n) for n in (2, 4, 8, 16)]
    assert {m.node for m in found[3].groups[0]} == {0, 1}


def test_pipelines_all_pairs_of_two_nodes_send_at_once_and_one_pair_alone() -> None:
    found = [s for s in steps(machine("2xhgx-h100"), backend="gloo") if s.operation == "p2p"]
    across = [s for s in found if s.groups[0][0].node != s.groups[0][1].node]
    for count in (1, 8):
        assert {s.direction for s in across if len(s.groups) == count} == set(DIRECTIONS)
    assert all(a.gpu == b.gpu for s in across for a, b in s.groups)


def test_each_kind_of_path_is_tried_in_all_directions_with_and_without_p2p() -> None:
    topology = machine("l40s-8")
    found = [s for s in steps(topology, backend="nccl") if s.operation == "p2p" and len(s.groups) == 1]
    for p2p_enabled in (None, False):
        tried = {
            (topology.path(*s.groups[0]).kind, s.direction) for s in found if s.p2p_enabled is p2p_enabled
        }  # fmt: skip
        kinds_of_path = (PathKind.PXB, PathKind.NODE, PathKind.SYS)
        assert tried == {(kind, direction) for kind in kinds_of_path for direction in DIRECTIONS}


def test_p2p_is_switched_off_inside_a_node_alone() -> None:
    for name in ("2xl40s-8", "gb200-nvl72"):
        through_host = [s for s in steps(machine(name), backend="nccl") if s.p2p_enabled is False]
        assert through_host
        assert all(len({m.node for m in group}) == 1 for s in through_host for group in s.groups)


def test_gloo_has_no_graphs_and_no_p2p_to_switch_off() -> None:
    found = steps(machine("2xl40s-8"), backend="gloo")
    assert found
    assert not any(s.graph or s.p2p_enabled is not None for s in found)


@pytest.mark.parametrize(("name", "size"), [("hgx-h100", 8), ("l4-8", 8), ("2xhgx-h100", 16)])
def test_experts_have_their_collectives_over_all_gpus(name: str, size: int) -> None:
    found = steps(machine(name), backend="nccl")
    for operation in ("all_gather", "reduce_scatter", "all_to_all"):
        assert size in {len(s.groups[0]) for s in alone(found, operation)}


def test_every_pair_is_measured_when_asked() -> None:
    usual = steps(machine("l4-8"), backend="nccl")
    asked = steps(machine("l4-8"), backend="nccl", every_pair=True)
    assert asked[: len(usual)] == usual, "after what is more useful"
    for direction in DIRECTIONS:
        pairs = {tuple(numbers(s.groups[0])) for s in asked if s.direction == direction and len(s.groups) == 1}
        assert pairs == set(combinations(range(8), 2))


def test_every_pair_of_every_node_is_measured_and_nodes_do_not_count_as_contending() -> None:
    topology = machine("3xl4-8")
    found = [s for s in steps(topology, backend="gloo", every_pair=True) if s.direction == "both"]
    inside = [s for s in found if all(a.node == b.node for a, b in s.groups)]
    assert {g for s in inside for g in s.groups} == {
        (GpuRef(node, a), GpuRef(node, b)) for node in range(3) for a, b in combinations(range(8), 2)
    }
    keys = {curve_key(topology, s, g, backend="gloo", dtype="uint8").group for s in inside for g in s.groups}
    assert {key.concurrent_groups for key in keys} == {1}


def test_equal_groups_are_measured_once_and_a_sample_again_far_away() -> None:
    topology = machine("4xhgx-h100")
    found = alone(steps(topology, backend="gloo"))
    of_eight = [s.groups[0] for s in found if len(s.groups[0]) == 8]
    assert [{m.node for m in group} for group in of_eight] == [{0}, {3}]
    over_two = [{m.node for m in s.groups[0]} for s in found if len(s.groups[0]) == 16]
    assert over_two == [{0, 1}, {0, 3}]


def test_nodes_of_equal_paths_but_other_gpus_are_both_measured() -> None:
    found = alone(steps(machine("l4-8+4090-8"), backend="gloo"))
    assert {m.node for s in found if len(s.groups[0]) == 2 for m in s.groups[0]} == {0, 1}


def test_gpus_that_cannot_be_used_take_no_part() -> None:
    node = node_of(4, 24, "all")
    states = (
        GpuState(status=GpuStatus.LOST),
        GpuState(mig_instances=(MigInstance("MIG-1"),)),
        GpuState(),
        GpuState(),
    )
    found = steps(Topology((replace(node, gpus=states),)), backend="nccl")
    assert {m.gpu for s in found for group in s.groups for m in group} == {2, 3}


@pytest.mark.parametrize("name", ["h100-1", "h200-1"])
def test_one_gpu_has_nothing_to_talk_to(name: str) -> None:
    assert steps(machine(name), backend="nccl", every_pair=True) == ()


def test_two_nodes_of_one_gpu_have_a_network() -> None:
    found = steps(machine("2xh100-1"), backend="nccl")
    assert {s.operation for s in found} == {"all_reduce", "p2p", "all_gather", "reduce_scatter", "all_to_all"}


@pytest.mark.parametrize(
    "name", ["2048xhgx-h100", "gb200-nvl72", "10xgb200-nvl72", "2xhgx-h100+1xl40s-8", "dgx1-v100", "4xmi300x-8"]
)
def test_the_set_stays_small_and_is_found_fast(name: str) -> None:
    topology = machine(name)
    started = time.perf_counter()
    found = steps(topology, backend="nccl")
    assert time.perf_counter() - started < 2
    assert 20 < len(found) < 100
    assert max(len(s.groups[0]) for s in found) <= 144


def test_a_rack_is_one_domain_over_its_trays() -> None:
    found = alone(steps(machine("gb200-nvl72"), backend="gloo"))
    assert {2, 4, 8, 16, 32, 64, 72} <= {len(s.groups[0]) for s in found}


def test_each_kind_of_rail_is_tried() -> None:
    nics = (
        Nic("mlx5_0", label="NIC0", speed_gbps=400, link_layer="InfiniBand"),
        Nic("mlx5_1", label="NIC1", speed_gbps=100, link_layer="Ethernet"),
    )
    near, far = Path(PathKind.PIX), Path(PathKind.SYS)
    gpus = (Gpu(0, nearest_nics=("mlx5_0",)), Gpu(1, nearest_nics=("mlx5_1",)))
    shape = NodeShape(gpus, (Path(PathKind.SYS),), nics, ((near, far), (far, near)))
    nodes = tuple(Node(shape, (GpuState(), GpuState())) for _ in range(2))
    found = [s for s in steps(Topology(nodes), backend="nccl") if s.operation == "p2p" and len(s.groups) == 1]
    assert {s.groups[0][0].gpu for s in found if s.groups[0][0].node != s.groups[0][1].node} == {0, 1}


def test_a_key_counts_the_groups_that_contend() -> None:
    topology = machine("2xhgx-h100")
    pair = (GpuRef(0, 0), GpuRef(0, 1))
    elsewhere = (GpuRef(1, 0), GpuRef(1, 1))
    beside = (GpuRef(0, 2), GpuRef(0, 3))
    for groups, contending in (((pair,), 1), ((pair, beside), 2), ((pair, elsewhere), 1)):
        key = curve_key(topology, Step("all_reduce", groups, "a test"), pair, backend="nccl", dtype="bfloat16")
        assert key.group.concurrent_groups == contending
    rack = machine("gb200-nvl72")
    key = curve_key(rack, Step("all_reduce", (pair, elsewhere), "a test"), pair, backend="nccl", dtype="bfloat16")
    assert key.group.concurrent_groups == 2, "they share a fabric, though no tray"


def test_a_key_tells_how_the_step_ran() -> None:
    topology = machine("l4-8")
    for step in steps(topology, backend="nccl"):
        key = curve_key(topology, step, step.groups[0], backend="nccl", dtype="float32", library_version="2.29.3")
        told = (key.operation, key.direction, key.p2p_enabled, key.graph, key.library_version)
        assert told == (step.operation, step.direction, step.p2p_enabled, step.graph, "2.29.3")


def test_sizes_are_powers_of_two_up_to_the_largest() -> None:
    assert sizes("nccl") == tuple(1 << k for k in range(10, 31))
    assert sizes("gloo")[-1] == 1 << 26
    assert sizes("gloo", 5000) == (1024, 2048, 4096)
    graph = Step("all_reduce", ((GpuRef(0, 0), GpuRef(0, 1)),), "a test", graph=True)
    assert sizes_of(graph, "nccl")[-1] == 1 << 20
    with pytest.raises(ValueError, match="largest"):
        sizes("nccl", 512)


FABRICS = [Path(PathKind.NVLINK, links=4), Path(PathKind.NVLINK, links=2), Path(PathKind.PIX), Path(PathKind.SYS)]


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    nodes = []
    for _ in range(draw(st.integers(1, 3))):
        n = draw(st.integers(1, 7))
        paths = tuple(draw(st.sampled_from(FABRICS)) for _ in range(n * (n - 1) // 2))
        shape = NodeShape(tuple(Gpu(i, name=draw(st.sampled_from(["one", "two"]))) for i in range(n)), paths)
        status = st.sampled_from([GpuStatus.OK] * 4 + [GpuStatus.LOST])
        nodes += [Node(shape, tuple(GpuState(status=draw(status)) for _ in range(n)))] * draw(st.integers(1, 2))
    return Topology(tuple(nodes))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(topologies(), st.sampled_from(["nccl", "gloo"]), st.booleans())
def test_of_any_machine_every_question_is_asked_once(topology: Topology, backend: str, every_pair: bool) -> None:
    found = steps(topology, backend=backend, every_pair=every_pair)
    assert found == steps(topology, backend=backend, every_pair=every_pair), "the same on every rank"
    exact = [(s.operation, s.direction, s.p2p_enabled, s.graph, s.groups) for s in found]
    assert len(set(exact)) == len(exact)
    assert all(topology.state(m).is_usable for s in found for group in s.groups for m in group)
    usable = [GpuRef(i, g) for i, n in enumerate(topology.nodes) for g in range(len(n.gpus)) if n.gpus[g].is_usable]
    assert bool(found) == (len(usable) > 1), "two GPUs have something to measure"
    for node in {m.node for m in usable}:
        inside = {topology.path(a, b) for a, b in combinations([m for m in usable if m.node == node], 2)}
        measured = {topology.path(*s.groups[0]) for s in found if s.operation == "p2p"}
        assert inside <= measured, "each kind of path"
