"""Audits with every part a page can show, built from a described machine and made-up times."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

from builders import llama_70b

from configgen.audited import Audited
from configgen.compare import compare
from configgen.comparison import Side
from configgen.decide import plan
from configgen.engines.rules import engine_traits
from configgen.plan import Objective, Workload
from probe.bench.schedule import curve_key, sizes_of, steps
from probe.curve import bus_factor
from probe.finding import Finding, Severity, gravest_first
from probe.measurement import Curve, Rate, Sample, Survey
from probe.sources.machines import machine
from probe.topology import GpuRef, Notice, Origin, Provenance, Topology

WIRES_GBPS = {
    "NV18": 390.0,
    "NV12": 230.0,
    "NV4": 52.0,
    "PIX": 25.0,
    "PXB": 22.0,
    "PHB": 20.0,
    "NODE": 17.0,
    "SYS": 11.0,
}
"""Made-up bus bandwidth of one pair by the label of its path."""


@cache
def measured(
    name: str = "hgx-h100",
    *,
    times: int = 12,
    rounds: int = 2,
    every_pair: bool = True,
    slow: tuple[int, int] | None = (2, 5),
) -> Survey:
    """A survey with all curves that a whole run of such a machine has; the pair `slow` has half of its bandwidth."""
    topology = machine(name)
    chance = random.Random(name)
    curves = []
    for step in steps(topology, backend="nccl", every_pair=every_pair):
        for group in step.groups:
            wire = min(WIRES_GBPS.get(topology.path(a, b).label, 24.0) for a in group for b in group if a != b)
            gbps = wire * (0.55 if step.p2p_enabled is False else 0.5 if tuple(m.gpu for m in group) == slow else 1)
            gbps /= bus_factor(step.operation, len(group)) * (1 if wire > 100 else len(step.groups))
            start_s = (3e-6 if step.graph else 9e-6) * (1 + len(group) / 6) * chance.uniform(0.97, 1.03)

            def one(size: int, start_s: float = start_s, gbps: float = gbps) -> float:
                return (start_s + size / (gbps * 1e9)) * chance.lognormvariate(0, 0.015)

            samples = tuple(
                Sample(size, tuple(tuple(one(size) for _ in range(times)) for _ in range(rounds)))
                for size in sizes_of(step, "nccl")
            )
            key = curve_key(topology, step, group, backend="nccl", dtype="bfloat16", library_version="2.27.3")
            curves.append(Curve(key, samples, group))
    gpus = [GpuRef(n, g) for n, node in enumerate(topology.nodes) for g in range(len(node.gpus))]
    rates = [Rate("hbm_read", gpu, chance.uniform(2900, 3050), "GB/s") for gpu in gpus]
    rates += [Rate("gemm", gpu, chance.uniform(700, 730), "TFLOP/s", "bfloat16", (4096, 4096, 4096)) for gpu in gpus]
    return Survey(
        hosted(topology, "rack7-node3"),
        tuple(curves),
        tuple(rates),
        environment=(("NCCL_VERSION", "2.27.3"),),
        missing=(Notice("partly-measured", "2 curves were not measured: the budget ended; measure with --resume"),),
        origins=(Origin("curves", Provenance.MEASURED, "2026-11-21 on this machine"),),
        measured_at="2026-11-21T03:00:00+00:00",
    )


def hosted(topology: Topology, hostname: str) -> Topology:
    nodes = [
        replace(
            node, hostname=hostname if i == 0 else f"{hostname}-{i}", driver_version="580.95.05", cuda_version="13.0"
        )
        for i, node in enumerate(topology.nodes)
    ]
    return replace(topology, nodes=tuple(nodes))


def findings(topology: Topology) -> tuple[Finding, ...]:
    """One of each severity, with and without a judged figure."""
    a, b = GpuRef(0, 2), GpuRef(0, min(5, len(topology.nodes[0].gpus) - 1))
    return gravest_first(
        (
            Finding(
                "pair-slow",
                Severity.FAILURE,
                "GPU 2 to GPU 5 reaches 195 GB/s, equal pairs 390 GB/s",
                "Reseat the board, then run `nvidia-smi nvlink -e` and compare its error counters.",
                Provenance.MEASURED,
                expected="390 GB/s over 18 NVLink 4 links",
                source="NVIDIA H100 data sheet: 25 GB/s of a link and direction",
                node=0,
                gpus=(a, b),
                value=195.0,
                bar=330.0,
                unit="GB/s",
            ),
            Finding(
                "pcie-width",
                Severity.WARNING,
                "PCIe x8 where the GPU has x16",
                "Reseat the GPU or its riser; a slot that is wired x8 is named in the board's manual.",
                Provenance.READ,
                expected="16 lanes",
                source="the GPU's own maximum, as the driver reads it",
                node=0,
                gpus=(GpuRef(0, 1),),
                value=8.0,
                bar=16.0,
                unit="lanes",
            ),
            Finding(
                "persistence-mode-off",
                Severity.INFO,
                "Persistence mode is off: the first use of a GPU waits for its initialisation",
                "Enable nvidia-persistenced.",
                Provenance.READ,
                node=0,
            ),
        )
    )


def audited(survey: Survey | None = None, *, planned: bool = True, baseline: bool = True) -> Audited:
    """An audit with a plan, and compared with the machine as it was before the slow pair."""
    survey = survey or measured()
    workload = Workload(objective=Objective.BALANCED, assumed=("objective",))
    return Audited(
        survey,
        findings(survey.topology),
        "2026-11-21T04:00:00+00:00",
        plan(survey, llama_70b(), workload, engine_traits("vllm")) if planned else None,
        compare(Side("last-week.json", survey), Side("this machine", survey)) if baseline else None,
    )
