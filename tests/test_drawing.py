"""The picture of a machine: nothing overlaps, nothing is left out, nothing is told by colour alone, nothing runs."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path as File
from xml.etree import ElementTree

import pytest
from builders import llama_70b, node_of
from command import wirelore
from engine_plans import planned
from hypothesis import given, settings
from hypothesis import strategies as st

from configgen.engines.rules import engine_traits
from configgen.plan import Parallelism, Plan, Replica
from configgen.report import svg as svg_module
from configgen.report.drawing import Drawing, Label, Wire, draw
from configgen.report.sketch import sketch
from configgen.report.svg import svg
from probe.islands import group_shape, islands
from probe.measurement import Curve, CurveKey, Rate, Sample, Survey, Verification
from probe.sources.machines import machine
from probe.topology import (
    Gpu,
    GpuRef,
    GpuState,
    GpuStatus,
    MigInstance,
    Nic,
    Node,
    NodeShape,
    Path,
    PathKind,
    PcieLink,
    Through,
    Topology,
)

HOSTILE = (
    "<script>alert(1)</script>",
    "a&b\"'<x>&amp;",
    "\x00\x1b[31mred\x07\x9b\ufffe",
    "\u202egnp.exe שלום",
    "W" * 300,
    "漢字" * 150,
    "e\u0301\u0336\u0336\u0336" * 60,
    "]]>--><!-- \n</svg>",
)
SWITCHED = Path(PathKind.NVLINK, links=6, version=2.0, through=Through.SWITCH)


def dgx2() -> Topology:
    gpus = tuple(
        Gpu(i, "Tesla V100-SXM3-32GB", 32 << 30, numa_node=i // 8, pcie=PcieLink(1, 3, 16, 16)) for i in range(16)
    )
    nics = tuple(Nic(f"mlx5_{i}", speed_gbps=100.0, numa_node=i // 4, state="active") for i in range(8))

    def near(gpu: int, nic: int) -> PathKind:
        if gpu // 2 == nic:
            return PathKind.PIX
        if gpu // 4 == nic // 2:
            return PathKind.PXB
        return PathKind.NODE if gpu // 8 == nic // 4 else PathKind.SYS

    rows = tuple(tuple(Path(near(gpu, nic)) for nic in range(8)) for gpu in range(16))
    return of(NodeShape(gpus, (SWITCHED,) * 120, nics, rows))


def two_sockets() -> Topology:
    """Eight GPUs on PCIe, two on each switch; one has lost lanes, one NIC is down, both NICs hang on a socket."""

    def path(a: int, b: int) -> Path:
        return Path(PathKind.PIX if a // 2 == b // 2 else PathKind.NODE if a // 4 == b // 4 else PathKind.SYS)

    gpus = tuple(
        Gpu(i, "NVIDIA L40S", 48 << 30, numa_node=i // 4, pcie=PcieLink(1, 4, 8 if i == 5 else 16, 16))
        for i in range(8)
    )
    nics = (
        Nic("enp1s0f0", speed_gbps=200.0, numa_node=0),
        Nic("enp1s0f1", speed_gbps=200.0, numa_node=0, state="down"),
    )
    rows = tuple((Path(PathKind.NODE if gpu < 4 else PathKind.SYS),) * 2 for gpu in range(8))
    return of(NodeShape(gpus, tuple(path(a, b) for a, b in combinations(range(8), 2)), nics, rows))


def of(shape: NodeShape) -> Topology:
    return Topology((Node(shape, tuple(GpuState() for _ in shape.gpus)),))


def changed(name: str, **changes: GpuState) -> Topology:
    """A synthetic machine with other states: gpu3=..."""
    topology = machine(name)
    node = topology.nodes[0]
    states = tuple(changes.get(f"gpu{i}", state) for i, state in enumerate(node.gpus))
    return replace(topology, nodes=(replace(node, gpus=states), *topology.nodes[1:]))


def lost() -> Topology:
    return changed("hgx-h100", gpu3=GpuState(status=GpuStatus.LOST, status_reason="Xid 79"))


def sliced() -> Topology:
    def mig(*profiles: str) -> GpuState:
        return GpuState(mig_instances=tuple(MigInstance(None, profile) for profile in profiles))

    return changed(
        "h100-pcie-8", gpu0=mig("3g.40gb", "3g.40gb"), gpu1=mig(*["1g.10gb"] * 7), gpu7=GpuState(visible=False)
    )


def unknown() -> Topology:
    gpus = tuple(Gpu(i) for i in range(4))
    return of(NodeShape(gpus, (Path(PathKind.UNKNOWN),) * 6, nvlink_visible=False))


def hostile() -> Topology:
    topology = machine("l40s-8")
    node = topology.nodes[0]
    names = {nic.name: f"{HOSTILE[i]}{i}" for i, nic in enumerate(node.shape.nics)}
    nics = tuple(replace(nic, name=names[nic.name], state=HOSTILE[-1 - i]) for i, nic in enumerate(node.shape.nics))
    gpus = tuple(
        replace(gpu, name=HOSTILE[i], nearest_nics=tuple(names[nic] for nic in gpu.nearest_nics))
        for i, gpu in enumerate(node.shape.gpus)
    )
    bad = replace(node, shape=replace(node.shape, gpus=gpus, nics=nics), hostname=HOSTILE[0])
    nodes = (bad, *(replace(node, hostname=name) for name in HOSTILE[1:]))
    return Topology(nodes)


def mesh_of_16() -> Topology:
    gpus = tuple(Gpu(i, numa_node=i // 8) for i in range(16))
    return of(NodeShape(gpus, (Path(PathKind.XGMI, links=1, through=Through.DIRECT),) * 120))


MACHINES: dict[str, Callable[[], Topology]] = {
    **{
        name: (lambda name=name: machine(name))  # type: ignore[misc]
        for name in (
            *("h100-1", "gh200-1", "hgx-h100", "hgx-h100-2", "dgx1-v100", "3090-bridges-4", "a100-pcie-pairs-8"),
            *("l40s-8", "a6000-6", "a10g-4", "mi300x-8", "gb200-nvl72", "2xgb200-nvl72", "16xhgx-h100"),
            *("2xhgx-h100+1xl40s-8", "2048xhgx-h100"),
        )
    },
    "dgx2": dgx2,
    "two-sockets": two_sockets,
    "lost": lost,
    "mig": sliced,
    "unknown": unknown,
    "hostile": hostile,
    "mesh-of-16": mesh_of_16,
}
each_machine = pytest.mark.parametrize("name", MACHINES)

_GBPS = {"PIX": 24.6, "PXB": 22.1, "PHB": 19.2, "NODE": 18.3, "SYS": 11.9, "NET": 48.0, "MNNVL": 700.0}


def curve(
    topology: Topology, members: tuple[GpuRef, ...], operation: str, gbps: float, way: str | None = None
) -> Curve:
    key = CurveKey(operation, group_shape(topology, members), "bfloat16", "nccl", direction=way)
    factor = 2 * (len(members) - 1) / len(members) if operation == "all_reduce" else 1.0
    sizes = (1 << 28, 1 << 29)
    return Curve(key, tuple(Sample(size, ((size * factor / gbps / 1e9,) * 2,)) for size in sizes), members)


def measured(topology: Topology, slow: tuple[tuple[int, int], ...] = (), nodes: int = 1) -> Survey:
    """Every pair of the first nodes, all GPUs of each together, and each GPU's own port; slow pairs at half."""
    curves, rates = [], []
    for position, node in enumerate(topology.nodes[:nodes]):
        for a, b, path in node.shape.pairs:
            gbps = _GBPS.get(path.label) or 21.25 * (path.links or 1)
            gbps /= 2 if (a, b) in slow else 1
            for way, speed in (("forward", gbps), ("backward", gbps * 1.01)):
                curves.append(curve(topology, (GpuRef(position, a), GpuRef(position, b)), "p2p", speed, way))
        refs = tuple(GpuRef(position, gpu) for gpu in range(len(node.gpus)))
        curves += [curve(topology, refs, "all_reduce", 471.0)] if len(refs) > 2 else []
        rates += [Rate("h2d", ref, 55.1, "GB/s") for ref in refs]
    return Survey(topology, tuple(curves), tuple(rates))


@cache
def some_plan() -> Plan:
    return planned(engine_traits("vllm"), llama_70b(), node_of(8, 80, "all"))


def placed(topology: Topology, replicas: list[list[list[tuple[int, int]]]]) -> Plan:
    """A plan with these stages, each a list of (node, GPU); nothing else of it is drawn."""
    base = some_plan()
    share = base.replicas[0].memory_utilization
    stages = (tuple(tuple(GpuRef(*ref) for ref in stage) for stage in one) for one in replicas)
    made = tuple(Replica(one, memory_utilization=share) for one in stages)
    tp, pp, dp = len(replicas[0][0]), len(replicas[0]), len(replicas)
    order = tuple(
        tuple(ref.gpu for one in made for ref in one.gpus if ref.node == node) for node in range(len(topology.nodes))
    )
    return replace(
        base,
        parallelism=Parallelism(tp, pp, dp),
        replicas=made,
        layers_per_stage=tuple(base.model.layers // pp + (i < base.model.layers % pp) for i in range(pp)),
        gpu_order=order,
        gpu_uuids=tuple((None,) * len(one) for one in order),
        hostnames=(None,) * len(order),
        memory=base.memory[:1] * pp,
        gpu_models=(),
        sites=(),
    )


def on(*gpus: int, node: int = 0) -> list[tuple[int, int]]:
    return [(node, gpu) for gpu in gpus]


PLANS: dict[str, tuple[Callable[[], Topology], list[list[list[tuple[int, int]]]]]] = {
    "tp8": (MACHINES["hgx-h100"], [[on(*range(8))]]),
    "bridges": (MACHINES["3090-bridges-4"], [[on(0, 2), on(1, 3)]]),
    "two-replicas": (MACHINES["l40s-8"], [[on(0, 1), on(2, 3)], [on(4, 5), on(6, 7)]]),
    "pp8": (MACHINES["l40s-8"], [[on(i) for i in range(8)]]),
    "backwards": (MACHINES["dgx1-v100"], [[on(6, 7), on(0, 1), on(4, 5), on(2, 3)]]),
    "crosswise": (MACHINES["l40s-8"], [[on(0, 4), on(1, 5)], [on(2, 6), on(3, 7)]]),
    "both-rows": (dgx2, [[on(*range(8)), on(*range(8, 16))]]),
    "both-rows-pp4": (dgx2, [[on(0, 1), on(8, 9), on(2, 3), on(10, 11)], [on(4, 5), on(12, 13), on(6, 7), on(14, 15)]]),
    "some": (two_sockets, [[on(0, 1)], [on(4, 5)]]),
    "nodes": (MACHINES["16xhgx-h100"], [[on(*range(8), node=n), on(*range(8), node=n + 1)] for n in range(0, 16, 2)]),
    "rack": (MACHINES["gb200-nvl72"], [[[(2 * r + i // 4, i % 4) for i in range(8)]] for r in range(9)]),
}


PICTURES = (
    *MACHINES,
    *(f"{name}, measured" for name in MACHINES if name not in ("2048xhgx-h100", "hostile")),
    *(f"{name}, planned" for name in PLANS),
    *(f"{name}, planned, measured" for name in PLANS),
)
each_picture = pytest.mark.parametrize("name", PICTURES)


@cache
def picture(name: str) -> Drawing:
    what, *how = name.split(", ")
    make, replicas = PLANS[what] if "planned" in how else (MACHINES[what], [])
    topology = make()
    survey = measured(topology, slow=((0, 2), (1, 3))) if "measured" in how else Survey(topology)
    return draw(survey, placed(topology, replicas) if replicas else None)


# Laws of geometry


def overlaps(drawing: Drawing) -> Iterator[str]:
    """Every way in which two things stand where only one can, or one stands outside."""
    rows: dict[int, list[Label]] = {}
    for label in drawing.labels:
        rows.setdefault(label.y, []).append(label)
        if label.left < 0 or label.right > drawing.width or not 0 <= label.y < drawing.height:
            yield f"outside: {label}"
    for row in rows.values():
        row.sort(key=lambda label: label.left)
        yield from (f"{a.text!r} over {b.text!r}" for a, b in pairwise(row) if a.right > b.left)
    for a, b in combinations(drawing.boxes, 2):
        if a.x < b.x + b.w and b.x < a.x + a.w and a.y < b.y + b.h and b.y < a.y + a.h:
            yield f"{a.about!r} over {b.about!r}"
    for box in drawing.boxes:
        if box.x < 0 or box.y < 0 or box.x + box.w > drawing.width or box.y + box.h > drawing.height:
            yield f"outside: {box}"
        for label in box.labels:
            if label.left < box.x + 0.5 or label.right > box.x + box.w - 0.5:
                yield f"wider than its box: {label}"
            if not box.y < label.y < box.y + box.h - 1:
                yield f"higher than its box: {label}"
        for label in drawing.texts:
            if label.left < box.x + box.w and box.x < label.right and box.y <= label.y < box.y + box.h:
                yield f"{label.text!r} on {box.about!r}"
    for wire in drawing.wires:
        yield from strikes(drawing, wire)
    spots = Counter(spot for w in drawing.wires if w.role == "plan" for spot in (w.points[0], w.points[-1]))
    yield from (f"two arrows at {spot}" for spot, many in spots.items() if many > 1)


def strikes(drawing: Drawing, wire: Wire) -> Iterator[str]:
    """Labels that a wire runs through."""
    for (x0, y0), (x1, y1) in pairwise(wire.points):
        left, right = sorted((x0 + 0.5, x1 + 0.5))
        for label in drawing.texts:
            if min(y0, y1) <= label.y <= max(y0, y1) and label.left < right and left < label.right:
                yield f"{label.text!r} is struck by {wire.joins}"
        if not (min(x0, x1) >= 0 and max(x0, x1) < drawing.width and min(y0, y1) >= 0 and max(y0, y1) < drawing.height):
            yield f"outside: {wire}"


@each_picture
def test_nothing_overlaps_and_nothing_is_outside(name: str) -> None:
    assert not list(overlaps(picture(name)))


# Every wire once


def ends(drawing: Drawing, *roles: str) -> Counter[tuple[str, ...]]:
    return Counter(tuple(sorted(wire.joins)) for wire in drawing.wires if wire.joins and wire.role in roles)


def wires_of(drawing: Drawing, node: Node, prefix: str) -> Iterator[str]:
    """What is drawn otherwise than once of one node."""
    n = len(node.gpus)
    fast = dict(ends(drawing, "nvlink", "xgmi").items())
    direct = Counter(
        frozenset(int(name.removeprefix(f"{prefix}GPU ")) for name in joined)
        for joined in fast
        if all(name.startswith(f"{prefix}GPU ") for name in joined)
    )
    switched: dict[str, set[int]] = {}
    for joined in fast:
        gpu, other = (joined if joined[0].startswith(f"{prefix}GPU ") else joined[::-1])[:2]
        if other.startswith(f"{prefix}NVSwitch"):
            switched.setdefault(other, set()).add(int(gpu.removeprefix(f"{prefix}GPU ")))
    yield from (f"{joined} x {many}" for joined, many in fast.items() if many != 1)
    for a, b, path in node.shape.pairs:
        times = direct[frozenset((a, b))] + sum({a, b} <= members for members in switched.values())
        if times != path.is_fast:
            yield f"{a}-{b} ({path.label}) is drawn {times} times"
    for role, names in (
        ("pcie", [f"{prefix}GPU {i}" for i in range(n)]),
        ("nic", [f"{prefix}NIC {nic.name}" for nic in node.shape.nics]),
    ):
        drawn = Counter(joined[0] for w in drawing.wires if w.role == role and (joined := w.joins))
        drawn = Counter({name: many for name, many in drawn.items() if name.startswith(prefix)})
        if drawn != Counter(names):
            yield f"{role}: {drawn}"


@each_machine
def test_every_wire_is_drawn_once(name: str) -> None:
    topology = MACHINES[name]()
    drawing = draw(Survey(topology))
    several = len(topology.nodes) > 1
    firsts = {id(node.shape): position for position, node in reversed([*enumerate(topology.nodes)])}
    for position in firsts.values():
        assert not list(wires_of(drawing, topology.nodes[position], f"node {position} " if several else ""))


def test_each_node_of_a_rack_has_one_wire_to_its_spine_and_each_rack_one_to_the_network() -> None:
    drawing = draw(Survey(machine("2xgb200-nvl72")))
    spines = [joined for joined in ends(drawing, "nvlink") if any(name.startswith("network") for name in joined)]
    assert sorted(spines) == sorted((f"network {i // 18}", f"node {i}") for i in range(36))
    assert ends(drawing, "network") == {("network 2", "nodes 0-17"): 1, ("network 2", "nodes 18-35"): 1}
    assert sum(label.text == "4 x NV18" for label in drawing.texts) == 36


def test_thousands_of_equal_nodes_are_one_node_and_how_often_it_is_there() -> None:
    drawing = draw(Survey(machine("2048xhgx-h100")))
    texts = [label.text for label in drawing.labels]
    assert any(text.startswith("x 2,048: nodes 0-2047 are alike") for text in texts)
    assert sum(box.role == "gpu" for box in drawing.boxes) == 8
    assert len(ends(drawing, "network")) == 1


def test_only_some_kinds_of_node_are_drawn_in_full_and_the_picture_says_so() -> None:
    topology = machine("1xhgx-h100+1xl40s-8+1xl4-8+1xt4-4+1xa10g-4+1xmi300x-8")
    drawing = draw(Survey(topology))
    assert any("2 more kinds of node" in label.text for label in drawing.texts)
    assert sum(label.text.startswith("node 5") for label in drawing.labels) == 1


# What is shown


def texts(drawing: Drawing) -> str:
    return "\n".join(label.text for label in drawing.labels)


def test_sockets_and_switches_are_those_that_paths_tell() -> None:
    def below(topology: Topology) -> list[tuple[str, int]]:
        drawing = draw(Survey(topology))
        counts = Counter(wire.joins[1] for wire in drawing.wires if wire.role == "pcie")
        return sorted(counts.items())

    assert below(two_sockets()) == [(f"PCIe switch of GPU {i},{i + 1}", 2) for i in range(0, 8, 2)]
    assert below(machine("a6000-6")) == [("NUMA 0", 3), ("NUMA 1", 3)] or [
        many for _, many in below(machine("a6000-6"))
    ] == [3, 3]
    assert below(unknown()) == [("host", 4)]
    uplinks = ends(draw(Survey(dgx2())), "uplink")
    assert uplinks["NUMA 0", "NUMA 1"] == 1
    assert uplinks["NUMA 0", "PCIe switches of GPU 0-3"] == 1
    assert uplinks["PCIe switch of GPU 0,1", "PCIe switches of GPU 0-3"] == 1


@pytest.mark.parametrize(
    ("n", "links", "switches"), [(8, 12, 1), (4, 4, 0), (4, 6, 0), (2, 4, 0), (16, 6, 1), (4, 18, 1)]
)
def test_without_a_word_on_switches_they_are_where_gpus_have_too_few_links_for_a_mesh(
    n: int, links: int, switches: int
) -> None:
    pairs = (Path(PathKind.NVLINK, links=links),) * (n * (n - 1) // 2)
    drawing = draw(Survey(of(NodeShape(tuple(Gpu(i) for i in range(n)), pairs))))
    assert sum(box.role == "nvswitch" for box in drawing.boxes) == switches
    assert len(ends(drawing, "nvlink")) == (n if switches else n * (n - 1) // 2)


def test_a_wire_shows_its_slower_direction_and_stands_out_where_equals_are_faster() -> None:
    drawing = draw(measured(machine("dgx1-v100"), slow=((0, 2),)))
    shown = {wire.joins: wire for wire in drawing.wires if wire.role == "nvlink"}
    assert shown["GPU 0", "GPU 2"].slow
    assert shown["GPU 0", "GPU 2"].about == "NV1: 10.6 GB/s"
    assert not shown["GPU 0", "GPU 1"].slow, "half of NV2 is no slow NV1"
    assert "NV1 10.6 GB/s!" in texts(drawing)
    assert "NV2 42.5 GB/s" in texts(drawing)
    assert "! more than 5% slower than equal wires" in texts(drawing)


def test_behind_a_switch_the_gpu_whose_every_pair_is_slow_stands_out_alone() -> None:
    late = tuple(pair for pair in combinations(range(8), 2) if 5 in pair)
    drawing = draw(measured(machine("hgx-h100"), slow=late))
    assert [wire.joins for wire in drawing.wires if wire.slow] == [("GPU 5", "NVSwitch")]
    assert "191 GB/s!" in texts(drawing)
    assert "NVSwitch: all-reduce of 8 GPUs 471 GB/s" in texts(drawing)


def test_pcie_figures_stand_where_the_paths_turn_round() -> None:
    told = texts(draw(measured(two_sockets())))
    assert "PCIe switch: PIX 24.6 GB/s" in told
    assert "CPU, NUMA 0: NODE 18.3 GB/s" in told
    assert "between sockets: SYS 11.9 GB/s" in told
    assert "CPU, NUMA 0: NODE 9.15-18.3 GB/s" in texts(draw(measured(two_sockets(), slow=((0, 2),))))


def test_the_figure_of_equal_nodes_is_the_slowest_of_theirs() -> None:
    topology = machine("2x3090-bridges-4")
    fast, late = measured(topology), measured(topology, slow=((0, 2),), nodes=2)
    both = replace(fast, curves=(*fast.curves, *(c for c in late.curves if c.members[0].node == 1)))
    assert "NV4 42.5!" in texts(draw(both))
    assert "the slowest of theirs" in texts(draw(both))


def test_what_was_not_measured_is_said_once() -> None:
    told = texts(draw(Survey(machine("mi300x-8"))))
    assert told.count("No wire was measured") == 1
    one = machine("dgx1-v100")
    some = Survey(one, (curve(one, (GpuRef(0, 0), GpuRef(0, 1)), "all_reduce", 20.0),))
    assert texts(draw(some)).count("without a figure were not measured") == 1
    assert "NV1 20 GB/s" in texts(draw(some)), "an all-reduce of the pair stands in for a point-to-point"
    assert "not measured" not in texts(draw(measured(one)))


def test_other_measurements_are_no_figures_of_a_wire() -> None:
    """Through the host, both ways at once, in a graph, beside other groups."""
    topology = machine("3090-bridges-4")
    pair = (GpuRef(0, 0), GpuRef(0, 2))
    base = curve(topology, pair, "p2p", 50.0, "forward")
    crowded = group_shape(topology, pair, 2)
    others = (
        replace(base, key=replace(base.key, direction="both")),
        replace(base, key=replace(base.key, p2p_enabled=False)),
        replace(base, key=replace(base.key, graph=True)),
        replace(base, key=replace(base.key, group=crowded)),
    )
    assert "GB/s" not in texts(draw(Survey(topology, others)))


def test_text_tells_what_colour_tells() -> None:
    assert "LOST" in texts(draw(Survey(lost())))
    assert "1 GPU cannot be used: 3" in texts(draw(Survey(lost())))
    mig = texts(draw(Survey(sliced())))
    assert all(word in mig for word in ("2 x 3g.40gb", "7 x 1g.10gb", "HIDDEN"))
    assert "6 GPU pairs of unknown path" in texts(draw(Survey(unknown())))
    assert "does not show NVLink" in texts(draw(Survey(unknown())))
    boxes = {box.lines[0][0]: [text for text, _ in box.lines] for box in draw(Survey(machine("dgx1-v100"))).boxes}
    assert "island A" in boxes["GPU 3"]
    assert "island B" in boxes["GPU 4"]
    assert "down" in texts(draw(Survey(two_sockets())))
    assert "fewer PCIe lanes" in texts(draw(Survey(two_sockets())))
    wrong = Verification(GpuRef(0, 0), GpuRef(0, 3), False)
    assert "WRONG DATA from GPU 0 to GPU 3" in texts(draw(replace(measured(machine("l4-8")), verifications=(wrong,))))
    assert "LAB FIGURES" in texts(draw(replace(measured(machine("l4-2")), lab="CPU ranks")))


@each_machine
def test_each_island_is_shaded_over_its_own_gpus_and_no_others(name: str) -> None:
    topology = MACHINES[name]()
    drawing = draw(Survey(topology))
    if len(topology.nodes) > 1:
        return
    shaded: dict[int, set[str]] = {}
    for shade in drawing.shades:
        for box in drawing.boxes:
            if (
                box.role.startswith("gpu")
                and shade.x < box.x < shade.x + shade.w
                and shade.y < box.y < shade.y + shade.h
            ):
                shaded.setdefault(shade.number, set()).add(box.lines[0][0])
    expected = [{f"GPU {ref.gpu}" for ref in one.members} for one in islands(topology) if len(one.members) > 1]
    assert sorted(map(sorted, shaded.values())) == sorted(map(sorted, expected))


@pytest.mark.parametrize("name", PLANS)
def test_the_plan_lies_over_the_gpus_that_it_uses(name: str) -> None:
    make, replicas = PLANS[name]
    topology = make()
    drawing = draw(Survey(topology), placed(topology, replicas))
    single = len(replicas) == 1
    gpus = {box.about.split(",")[0].removeprefix("node 0 "): box for box in drawing.boxes if box.role == "gpu"}
    frames = [shade for shade in drawing.shades if shade.role == "stage"]
    for r, stages in enumerate(replicas):
        for s, stage in enumerate(stages):
            for t, (node, gpu) in enumerate(stage):
                if node:
                    continue
                box = gpus[f"GPU {gpu}"]
                told = " ".join(text for text, role in box.lines if role == "plan")
                assert told == " ".join(
                    word
                    for word, shown in (
                        (f"DP {r}", not single),
                        (f"PP {s}", len(stages) > 1),
                        (f"TP {t}", len(stage) > 1),
                    )
                    if shown
                )
                around = [f for f in frames if f.x < box.x < f.x + f.w and f.y < box.y < f.y + f.h]
                assert [f.about for f in around] == [f"replica {r}, stage {s}"]
    used = {ref for stages in replicas for stage in stages for ref in stage}
    idle = [box for name, box in gpus.items() if (0, int(name.split()[1])) not in used]
    assert all(("not in plan", "dim") in box.lines for box in idle)


def arrows(name: str) -> set[tuple[str, ...]]:
    make, replicas = PLANS[name]
    drawing = draw(Survey(make()), placed(make(), replicas))
    return {wire.joins for wire in drawing.wires if wire.role == "plan"}


def test_arrows_lead_from_each_stage_to_the_next() -> None:
    assert arrows("bridges") == {("GPU 2", "GPU 1")}
    assert arrows("two-replicas") == {("GPU 1", "GPU 2"), ("GPU 5", "GPU 6")}
    assert arrows("pp8") == {(f"GPU {i}", f"GPU {i + 1}") for i in range(7)}
    assert arrows("backwards") == {("GPU 6", "GPU 1"), ("GPU 1", "GPU 4"), ("GPU 4", "GPU 3")}
    assert arrows("both-rows") == {("GPU 0", "GPU 8")}
    assert {(f"node {n}", f"node {n + 1}") for n in range(0, 16, 2)} <= arrows("nodes")
    assert not arrows("tp8") | arrows("rack")


def test_a_plan_for_another_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="has all GPUs that the plan names"):
        draw(Survey(machine("l4-4")), placed(machine("l4-8"), [[on(0, 7)]]))


# Any machine


@st.composite
def shapes(chance: st.DrawFn) -> NodeShape:
    n = chance(st.integers(1, 16))
    rng = random.Random(chance(st.integers(0, 1 << 32)))
    fast = [
        Path(PathKind.NVLINK, links=rng.randint(1, 18), through=rng.choice([None, Through.DIRECT, Through.SWITCH])),
        Path(PathKind.XGMI, links=1),
        Path(PathKind.C2C),
    ]
    slow = [
        Path(kind) for kind in (PathKind.PIX, PathKind.PXB, PathKind.PHB, PathKind.NODE, PathKind.SYS, PathKind.UNKNOWN)
    ]
    kinds = rng.sample(fast + slow, rng.randint(1, 4))
    nics = tuple(
        Nic(
            f"mlx5_{i}" * rng.choice([1, 1, 4]),
            speed_gbps=rng.choice([None, 400.0]),
            numa_node=rng.choice([None, 0, 3]),
        )
        for i in range(rng.choice([0, 1, 3, 12]))
    )
    pcie = [None, PcieLink(1, 5, 16, 16), PcieLink(None, None, 4, 16)]
    gpus = tuple(
        Gpu(
            i,
            rng.choice([None, "X", "NVIDIA GeForce RTX 4090 Ti SUPER"]),
            numa_node=rng.choice([None, 0, 1, 7]),
            pcie=rng.choice(pcie),
        )
        for i in range(n)
    )
    paths = tuple(rng.choice(kinds) for _ in range(n * (n - 1) // 2))
    rows = tuple(tuple(rng.choice(slow) for _ in nics) for _ in gpus) if nics and rng.random() < 0.8 else ()
    return NodeShape(gpus, paths, nics, rows)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shapes(), st.booleans())
def test_the_laws_hold_for_any_machine(shape: NodeShape, is_measured: bool) -> None:
    topology = of(shape)
    n = len(shape.gpus)
    survey = measured(topology) if is_measured else Survey(topology)
    plan = placed(topology, [[[(0, i)] for i in range(n)]])
    for drawing in (draw(survey), draw(survey, plan)):
        assert not list(overlaps(drawing))
        assert not list(wires_of(drawing, topology.nodes[0], ""))


# Media


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


@each_machine
def test_svg_is_small_and_well_formed_and_says_everything(name: str) -> None:
    topology = MACHINES[name]()
    started = time.process_time()
    drawing = draw(Survey(topology))
    text = svg(drawing)
    if topology.gpu_count <= 72:
        assert time.process_time() - started < 0.5
    assert len(text.encode()) <= 200_000
    assert svg(draw(Survey(MACHINES[name]()))) == text, "the same machine, the same picture"
    root = parsed(text)
    assert root.attrib["role"] == "img"
    spaced = {
        "{http://www.w3.org/2000/svg}" + tag
        for tag in ("svg", "title", "desc", "style", "rect", "text", "polyline", "circle", "polygon")
    }
    assert {element.tag for element in root.iter()} <= spaced
    assert [element.tag.rpartition("}")[2] for element in root][:2] == ["title", "desc"]
    shown = [element.text for element in root if element.tag.endswith("}text")]
    assert Counter(shown) == Counter(label.text for label in drawing.labels)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import| on[a-z]+=|javascript:", text)


def test_hostile_names_stay_names() -> None:
    text = svg(draw(Survey(hostile())))
    assert "<script" not in text
    assert "<!--" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff\u0336]", text)
    titles = [element.text for element in parsed(text).iter() if element.tag.endswith("title")]
    assert any("<script>alert(1)</script>" in (title or "") for title in titles), "shown as it is written"
    assert max(len(label.text) for label in draw(Survey(hostile())).labels) < 130


@each_picture
def test_a_terminal_shows_every_label_and_no_control_character(name: str) -> None:
    drawing = picture(name)
    lines = sketch(drawing)
    assert len(lines) == drawing.height
    for label in drawing.labels:
        assert label.text in lines[label.y].text
    assert all(line.text.isprintable() and len(line.text) <= drawing.width for line in lines)


def test_a_terminal_shows_bridges_as_lines() -> None:
    picture = [line.text.strip() for line in sketch(draw(Survey(machine("3090-bridges-4"))))]
    assert any(re.fullmatch(r"┗━+●\s+┗━+●", line) for line in picture)


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(c * 2 for c in digits) if len(digits) == 3 else digits
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def blended(over: str, under: str, share: float) -> str:
    """The colour of one laid over another; under is written with six digits or three."""
    wide = "".join(c * 2 for c in under.lstrip("#")) if len(under) == 4 else under.lstrip("#")
    mixed = (
        round(share * int(over.lstrip("#")[i : i + 2], 16) + (1 - share) * int(wide[i : i + 2], 16)) for i in (0, 2, 4)
    )
    return "#" + "".join(f"{value:02x}" for value in mixed)


@pytest.mark.parametrize("theme", [svg_module._LIGHT, svg_module._DARK], ids=["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(theme: str) -> None:
    told = dict(re.findall(r"--wl-([a-z]+):([^;]+)", theme))
    papers = [told["paper"], told["box"], told["fastbox"], told["netbox"]]
    papers += [blended(tint, told["paper"], float(told["tint"])) for tint in svg_module._TINTS]
    for name in ("ink", "dim", "slow", "plan"):
        assert min(contrast(told[name], paper) for paper in papers) >= 4.5, name
    for name in ("line", "fast", "net"):
        assert contrast(told[name], told["paper"]) >= 3, name


# The command


def test_probe_draws_a_source(tmp_path: File) -> None:
    ended = wirelore("probe", "--from", "machine:dgx1-v100", "--format", "svg", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert parsed(ended.out).attrib["role"] == "img"
    written = wirelore("probe", "--from", "machine:dgx1-v100", "--format", "svg", "-o", "node.svg", cwd=tmp_path)
    assert written.out == ""
    assert (tmp_path / "node.svg").read_text("utf-8") == ended.out


def test_probe_draws_what_a_survey_measured(tmp_path: File) -> None:
    from probe.store import encode_survey

    (tmp_path / "survey.json").write_bytes(encode_survey(measured(machine("3090-bridges-4"))))
    ended = wirelore("probe", "--from", "survey.json", "--format", "svg", cwd=tmp_path)
    assert "NV4 85 GB/s" in ended.out


_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_LOOK = """<script>
const out = [];
for (const picture of document.querySelectorAll("svg")) {
  const seen = [...picture.querySelectorAll("text")].map(t => [t, t.getBBox()]);
  const {width, height} = picture.viewBox.baseVal;
  for (const [t, a] of seen)
    if (a.x < 0 || a.x + a.width > width || a.y < 0 || a.y + a.height > height) out.push("outside: " + t.textContent);
  for (let i = 0; i < seen.length; i++) for (let k = i + 1; k < seen.length; k++) {
    const [s, a] = seen[i], [t, b] = seen[k];
    if (a.x < b.x + b.width && b.x < a.x + a.width && Math.abs(a.y - b.y) < 10)
      out.push(s.textContent + " over " + t.textContent);
  }
}
document.body.innerHTML = "";
document.body.textContent = "looked at all: " + JSON.stringify(out);
</script>"""


@pytest.mark.long
@pytest.mark.skipif(_BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_real_browser_sets_no_text_over_another(tmp_path: File) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><meta charset=utf-8><body>" + "".join(svg(picture(name)) for name in PICTURES) + _LOOK, "utf-8"
    )
    command = [
        str(_BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
    ]
    ended = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=100, check=False)
    assert "looked at all: []" in ended.stdout, ended.stdout[-2000:]
