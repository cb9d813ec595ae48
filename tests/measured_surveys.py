"""Surveys of machines that give what their wires should, or some share of it, written as a measurement writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

from probe.bench.schedule import curve_key, steps
from probe.checks.expectation import expectation
from probe.curve import bus_factor
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Evidence, Rate, Sample, Survey
from probe.topology import GpuRef, NodeShape, PathKind, Topology

SIZES = tuple(1 << power for power in range(10, 31, 2))
GIB = 1 << 30
ShareOf = Callable[[Curve], float]
JITTER = (0.998, 0.999, 1.0, 1.001, 1.002)


def refs(*gpus: int, node: int = 0) -> tuple[GpuRef, ...]:
    return tuple(GpuRef(node, gpu) for gpu in gpus)


def curve(
    topology: Topology,
    members: Sequence[GpuRef],
    gbps: float,
    *,
    operation: str = "all_reduce",
    sizes: Sequence[int] = SIZES,
    alpha_s: float = 12e-6,
    rounds: int = 2,
    at_once: int = 1,
    backend: str = "nccl",
    **key: object,
) -> Curve:
    """Of so much busbw at every size, beside a start-up time; the two rounds of a size are alike."""
    told = CurveKey(operation, group_shape(topology, members, at_once), "bfloat16", backend, **key)  # type: ignore[arg-type]
    factor = bus_factor(operation, len(members))

    def one(size: int) -> tuple[float, ...]:
        return tuple((alpha_s + size * factor / (gbps * 1e9)) * share for share in JITTER)

    return Curve(told, tuple(Sample(size, (one(size),) * rounds) for size in sizes), tuple(members))


def faster(made: Curve, share: float) -> Curve:
    """All of its times so many times as short."""
    samples = tuple(
        Sample(s.size_bytes, tuple(tuple(t / share for t in one) for one in s.rounds_s)) for s in made.samples
    )
    return replace(made, samples=samples)


def honest(topology: Topology, share_of: ShareOf = lambda made: 1.0) -> Survey:
    """All that `wirelore measure` takes of a machine, each curve at a share of what its wires should give."""
    found: list[Curve] = []
    for step in steps(topology, backend="nccl"):
        for group in step.groups:
            key = curve_key(topology, step, group, backend="nccl", dtype="bfloat16", library_version="2.27.3")
            expected = expectation(topology, key, group)
            gbps = expected.busbw_gbps if expected else 10.0
            made = Curve(key, tuple(Sample(s, ((s / 1e9,),)) for s in sizes_of(step.graph)), group)
            ideal = tuple(
                Sample(size, (_times(12e-6 + size * bus_factor(key.operation, len(group)) / (gbps * 1e9)),) * 2)
                for size in sizes_of(step.graph)
            )
            found.append(faster(replace(made, samples=ideal), share_of(made)))
    return Survey(topology, tuple(found))


def sizes_of(graph: bool) -> tuple[int, ...]:
    return tuple(size for size in SIZES if not graph or size <= 1 << 20)


def _times(middle_s: float) -> tuple[float, ...]:
    return tuple(middle_s * share for share in JITTER)


def told(survey: Survey, *said: tuple[str, str], operation: str = "any") -> Survey:
    """With the evidence of NCCL's log: ('transport', 'P2P/CUMEM'), ..."""
    return replace(survey, evidence=(*survey.evidence, *(Evidence(operation, what, value) for what, value in said)))


def every_pair(topology: Topology, gbps_of: Callable[[tuple[int, int]], float]) -> Survey:
    """Both directions of each pair of node 0; `gbps_of` is asked (from, to)."""
    pairs = combinations(range(len(topology.nodes[0].gpus)), 2)
    found = [
        curve(topology, refs(*pair), gbps_of(way), operation="p2p", direction=direction)
        for pair in pairs
        for direction, way in (("forward", pair), ("backward", pair[::-1]))
    ]
    return Survey(topology, tuple(found))


def rated(topology: Topology, value_of: Callable[[int], float], kind: str = "hbm_read", **more: object) -> Survey:
    unit = "TFLOP/s" if kind == "gemm" else "GB/s"
    values = [Rate(kind, ref, value_of(ref.gpu), unit, **more) for ref in _gpus(topology)]  # type: ignore[arg-type]
    return Survey(topology, rates=tuple(values))


def _gpus(topology: Topology) -> list[GpuRef]:
    return [GpuRef(n, i) for n, node in enumerate(topology.nodes) for i in range(len(node.gpus))]


def reshaped(topology: Topology, of: Callable[[NodeShape], NodeShape]) -> Topology:
    """Every node with another shape."""
    return replace(topology, nodes=tuple(replace(node, shape=of(node.shape)) for node in topology.nodes))


def with_links(topology: Topology, links: int) -> Topology:
    """So many links on every NVLink path."""
    return reshaped(
        topology,
        lambda shape: replace(
            shape,
            paths=tuple(replace(p, links=links) if p.kind is PathKind.NVLINK else p for p in shape.paths),
            gpus=tuple(replace(g, nvlinks_active=links) if g.nvlinks_active else g for g in shape.gpus),
        ),
    )


def whole(topology: Topology) -> tuple[GpuRef, ...]:
    return tuple(_gpus(topology))


LARGE = (GIB // 4, GIB // 2, GIB, 8 * GIB, 16 * GIB)
