"""How a run would go, by public figures: for the plan that a dry run prints, never for a decision. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from probe.bench.candidates import Group
from probe.bench.conductor import LEAST_RUNS, RATES, ROUNDS, Conductor, Visit
from probe.bench.generations import Generation
from probe.bench.schedule import Step, sizes_of
from probe.catalog import gpu_figures, nvlink_gbps_per_link, pcie_gbps
from probe.curve import bus_factor
from probe.islands import bottleneck
from probe.topology import GpuRef, Path, PathKind, Topology

_FABRIC_SHARE = 0.8
"""Of a fabric's line rate that NCCL's kernels reach (nccl src/graph/topo.h: 20.0 of 25 on SM80, 20.6 on SM90)."""
_PCIE_SHARE = {PathKind.PIX: 0.8, PathKind.PXB: 0.8, PathKind.PHB: 0.6, PathKind.NODE: 0.5, PathKind.SYS: 0.35}
_NETWORK_SHARE = 0.9
_DEFAULT_PCIE = (4, 16)
_DEFAULT_NETWORK_GBPS = 1.25
_XGMI_GBPS_PER_LINK = 64.0
_C2C_GBPS = 450.0
_CPU_GBPS = 1.0
START_S = {"gloo": 2.5, "nccl": 10.0}
"""Assumed of a run, from the command to its first visit: torch's import, CUDA contexts, the first communicator."""
_START_S, _START_PER_RANK_S = 1e-5, 1.5e-6
_CPU_START_S = 2e-4
_HOP_S = 1e-5
_PLENTY = 200
"""Runs after which the interval of a median was within 3 % on a noisy host."""


def rehearse(
    conductor: Conductor,
    estimate: Callable[[Step, int], float],
    *,
    now_s: float = 0.0,
    beside_s: float = 0.05,
    first_s: float = 0.3,
) -> list[tuple[Visit, float]]:
    """The visits of a run that goes as estimated, each with its seconds; `estimate` tells the seconds of one run.

    Assumed: what a visit needs beside its runs (a step's first brings its group together), and that 200 runs suffice.
    """
    found: list[tuple[Visit, float]] = []
    known: dict[tuple[int, int], float] = {}
    begun: set[int] = set()
    while (visit := conductor.next(now_s)) is not None:
        point, run_s, took_s = (visit.step, visit.size_bytes), 0.0, visit.seconds
        if visit.step != RATES:
            if point not in known:
                known[point] = estimate(conductor.steps[visit.step], visit.size_bytes)
            run_s = known[point]
            took_s = max(LEAST_RUNS * run_s, min(visit.seconds, _PLENTY * run_s))
            took_s += beside_s if visit.step in begun else first_s
            begun.add(visit.step)
        conductor.seen(visit, [[run_s] * LEAST_RUNS], took_s)
        now_s += took_s
        found.append((visit, took_s))
    return found


def rehearsed(
    topology: Topology,
    plans: Sequence[Generation],
    chosen: Sequence[int],
    left_s: float | None,
    backend: str,
    largest_bytes: int | None,
) -> list[tuple[Visit, float]]:
    """All generations one after the other, each with its share of the time; steps are numbered through all plans."""
    found = []
    first, now_s, start_s = 0, 0.0, START_S[backend]
    for number, plan in enumerate(plans):
        if number in chosen:
            share = plan.share / sum(plans[i].share for i in chosen if i >= number)
            ends_s = None if left_s is None else now_s + (left_s - now_s) * share
            conductor = Conductor(
                plan.steps,
                lambda step: sizes_of(step, backend, largest_bytes),
                {},
                ends_s,
                rates=plan.rates,
                rounds=1 if plan.log_only else ROUNDS,
            )
            begins_s = now_s if number == 0 else now_s + start_s / 2
            visits = rehearse(conductor, lambda step, size: estimate_s(topology, step, size, backend), now_s=begins_s)
            found += [(replace(v, step=v.step + first) if v.step != RATES else v, took_s) for v, took_s in visits]
            now_s = begins_s + sum(took_s for _, took_s in visits)
        first += len(plan.steps)
    return found


def estimate_s(topology: Topology, step: Step, size_bytes: int, backend: str) -> float:
    """Seconds of one run of the step at this size; the slowest group counts.

    time = start + bytes x bus factor / bandwidth of the slowest path, the bus factor being nccl-tests'. Bandwidths are
    catalog figures: NVLink per link and version, PCIe by generation and width, NIC line rates over the GPUs that use
    them. Assumed: the shares of them that are reached; PCIe 4.0 x16 and 10 Gbit/s where nothing is told; xGMI 64 and
    C2C 450 GB/s (MI300X and GH200 data sheets); groups at once share a host's PCIe and its NICs evenly; a start of
    10 us and 1.5 us per rank, half of it in a graph; gloo on a CPU 1 GB/s over all ranks, and 0.2 ms per rank.
    """
    ranks = len(step.groups[0])
    moved_bytes = size_bytes * bus_factor(step.operation, ranks)
    if backend == "gloo":
        return _CPU_START_S * ranks + moved_bytes * ranks * len(step.groups) / (_CPU_GBPS * 1e9)
    start_s = _START_S + _START_PER_RANK_S * ranks
    if len({m.node for m in step.groups[0]}) > 1:
        start_s += _HOP_S
    slowest_gbps = min(_group_gbps(topology, step, group) for group in step.groups)
    return (start_s / 2 if step.graph else start_s) + moved_bytes / (slowest_gbps * 1e9)


def _group_gbps(topology: Topology, step: Step, group: Group) -> float:
    """Of the slowest path in the group, shared with the groups that run beside it."""
    slowest = bottleneck(topology.path(a, b) for i, a in enumerate(group) for b in group[i + 1 :])
    if slowest is None or slowest.kind in (PathKind.NET, PathKind.UNKNOWN):
        return min(_network_gbps(topology, step, m) for m in group)
    through_host = step.p2p_enabled is False
    if slowest.is_fast and not through_host:
        return min(_fabric_gbps(topology, slowest, m) for m in group) * _FABRIC_SHARE
    kind = slowest.kind if slowest.kind in _PCIE_SHARE else PathKind.SYS
    beside = 1 if kind in (PathKind.PIX, PathKind.PXB) else len(step.groups)
    return min(_pcie_gbps(topology, m) for m in group) * _PCIE_SHARE[kind] / beside


def _fabric_gbps(topology: Topology, path: Path, member: GpuRef) -> float:
    figures = gpu_figures(topology.gpu(member).name)
    if path.kind is PathKind.MNNVL:
        return figures.nvlink_gbps if figures and figures.nvlink_gbps else _C2C_GBPS
    if path.kind is PathKind.C2C:
        return _C2C_GBPS
    links = path.links or 1
    if path.kind is PathKind.XGMI:
        return links * _XGMI_GBPS_PER_LINK
    told = nvlink_gbps_per_link(path.version) if path.version else None
    known = figures.nvlink_gbps_per_link if figures else None
    return links * (known or told or 25.0)


def _pcie_gbps(topology: Topology, member: GpuRef) -> float:
    gpu = topology.gpu(member)
    figures = gpu_figures(gpu.name)
    generation = gpu.pcie.generation_max if gpu.pcie else None
    width = (gpu.pcie.width or gpu.pcie.width_max) if gpu.pcie else None
    generation = generation or (figures.pcie_generation if figures else None) or _DEFAULT_PCIE[0]
    width = width or (figures.pcie_width if figures else None) or _DEFAULT_PCIE[1]
    try:
        return pcie_gbps(generation, width)
    except ValueError:
        return pcie_gbps(*_DEFAULT_PCIE)


def _network_gbps(topology: Topology, step: Step, member: GpuRef) -> float:
    """The node's NICs together, over its GPUs that take part in different groups; one GPU has one NIC."""
    rates = [nic.speed_gbps / 8 for nic in topology.nodes[member.node].shape.nics if nic.speed_gbps]
    if not rates:
        return _DEFAULT_NETWORK_GBPS * _NETWORK_SHARE
    flows = Counter(m.node for group in step.groups for m in group)[member.node]
    groups = sum(any(m.node == member.node for m in group) for group in step.groups)
    used = sum(sorted(rates, reverse=True)[:flows])
    return used / groups * _NETWORK_SHARE
