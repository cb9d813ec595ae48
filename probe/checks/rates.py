"""Rates of single GPUs against the catalog and against GPUs of the same model, and the PCIe link under load. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from probe.catalog import GpuFigures, gpu_figures, pcie_gbps
from probe.checks.group import is_known, port_gbps
from probe.checks.reading import Reading, finding, named
from probe.finding import Finding
from probe.links import MATRIX_EFFICIENCY
from probe.measurement import Rate
from probe.stability import WIDE
from probe.statistics import median
from probe.topology import GpuRef, PathKind, Topology
from probe.units import count, figure

MEMORY_REACH = 0.9
"""Of the vendor's memory bandwidth, what a plain read reaches (BabelStream on an H100: 3.0 of 3.35 TB/s)."""
MEMORY_BAR = 0.7
"""Assumed: boards whose memory keeps its ECC in itself (T4, A10, L4) reach 0.75 to 0.85."""
MATRIX_BAR = 0.3
"""Assumed, of the vendor's peak: boards with a low power limit (H100 PCIe, L40S) reach about half of it for long, and a
T4 at 70 W 24 of 65 TFLOP/s in FP16 (forums.developer.nvidia.com/t/264462: as expected, says NVIDIA)."""
COPY_REACH = 0.83
"""Of PCIe after line coding, what copies of pinned memory reach: 26 of 31.5 GB/s on Gen4 x16, 55 of 63 on Gen5."""
COPY_BAR = 0.63
"""Azure's health checks (check_gpu_bw): 10 of 15.75 GB/s on Gen3 x16, 21 of 31.5 on Gen4 x16."""
_MOST_REACHED = 0.92
"""Assumed: no copy carries more than that of a link."""
COPIES_APART = 0.2
"""Between equal GPUs: the way to the host depends on the socket that the process ran on."""

_BYTES = {"bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}


def rates(reading: Reading) -> Iterator[Finding]:
    topology = reading.topology
    known = [rate for rate in reading.survey.rates if is_known(topology, rate.gpu)]
    kinds: dict[tuple[object, ...], list[Rate]] = {}
    for rate in known:
        model = topology.gpu(rate.gpu).name
        kinds.setdefault((rate.kind, rate.dtype, rate.shape, model), []).append(rate)
    for alike in kinds.values():
        yield from _below_siblings(topology, alike)
        below = [(rate, usual, bar) for rate in alike if (of := _catalog(topology, rate)) for usual, bar in [of]]
        below = [(rate, usual, bar) for rate, usual, bar in below if rate.value < bar]
        if below:
            rate, usual, bar = min(below, key=lambda one: one[0].value)
            figures = gpu_figures(topology.gpu(rate.gpu).name)
            assert figures is not None
            gpus = sorted({one.gpu for one, _, _ in below})
            yield finding(
                "rate-below-catalog",
                f"{_name(rate)} of {named(gpus, topology)} is {figure(rate.value)} {rate.unit}",
                expected=(
                    f"about {figure(usual)} {rate.unit} of a {figures.name}",
                    f"{figures.source} ({figures.date})",
                ),
                gpus=gpus,
                judged=(rate.value, bar, rate.unit),
                subject=_name(rate),
            )
    yield from _slow_links(topology, [rate for rate in known if rate.kind in ("h2d", "d2h")])


def _below_siblings(topology: Topology, alike: list[Rate]) -> Iterator[Finding]:
    usual = median([rate.value for rate in alike])
    bar = usual * (1 - (COPIES_APART if alike[0].kind in ("h2d", "d2h") else WIDE))
    slow = sorted((rate for rate in alike if rate.value < bar), key=lambda rate: rate.value)
    if slow:
        gpus = sorted(rate.gpu for rate in slow)
        unit = slow[0].unit
        yield finding(
            "rate-below-siblings",
            f"{_name(slow[0])} of {named(gpus, topology)} is {figure(slow[0].value)} {unit}, of equal GPUs "
            f"{figure(usual)}",
            expected=(
                f"{figure(usual)} {unit}, the median of {count(len(alike), 'equal GPU')}",
                "the same measurement",
            ),
            gpus=gpus,
            judged=(slow[0].value, bar, unit),
            subject=_name(slow[0]),
        )


def _catalog(topology: Topology, rate: Rate) -> tuple[float, float] | None:
    """(what is usual, the bar) by the vendor's figures; None where they say nothing of such a rate."""
    figures = gpu_figures(topology.gpu(rate.gpu).name)
    if figures is None or topology.nodes[rate.gpu.node].virtualization == "vgpu":
        return None
    if rate.kind in ("hbm_read", "hbm_copy"):
        return (figures.hbm_gbps * MEMORY_REACH, figures.hbm_gbps * MEMORY_BAR) if figures.hbm_gbps else None
    peak = _peak_tflops(figures, rate.dtype)
    if rate.kind != "gemm" or rate.shape is None or peak is None or figures.hbm_gbps is None:
        return None
    m, n, k = rate.shape
    width = _BYTES[rate.dtype or ""]
    moved = (m * k + k * n) * width + m * n * 2
    by_memory = 2 * m * n * k / moved * figures.hbm_gbps / 1e3  # roofline (Williams, CACM 52, 2009)
    usual = min(peak * MATRIX_EFFICIENCY, by_memory * MEMORY_REACH)
    return usual, usual * MATRIX_BAR / MATRIX_EFFICIENCY


def _peak_tflops(figures: GpuFigures, dtype: str | None) -> float | None:
    peaks = {"bfloat16": figures.bf16_tflops, "float16": figures.fp16_tflops, "float8_e4m3fn": figures.fp8_tflops}
    return peaks.get(dtype or "")


def _slow_links(topology: Topology, copies: list[Rate]) -> Iterator[Finding]:
    """Copies run on all GPUs at once, so those under one PCIe switch share its uplink. GPUs with equal ports and shares
    are told together."""
    alike: dict[tuple[float, str, int], list[Rate]] = {}
    for gpu in sorted({rate.gpu for rate in copies}):
        port = port_gbps(topology.gpu(gpu))
        if port is None:
            continue
        sharing = 1 + sum(_shares_a_switch(topology, gpu, other) for other in {r.gpu for r in copies} - {gpu})
        slow = min((rate for rate in copies if rate.gpu == gpu), key=lambda rate: rate.value)
        if slow.value < port[0] * COPY_BAR / sharing:
            alike.setdefault((*port, sharing), []).append(slow)
    for (gbps, words, sharing), slowest in alike.items():
        worst = min(slowest, key=lambda rate: rate.value)
        gpus = sorted(rate.gpu for rate in slowest)
        least = "" if len(gpus) == 1 else f" on {named([worst.gpu], topology)}, the least"
        yield finding(
            "pcie-slow-under-load",
            f"{_name(worst)} of {named(gpus, topology)} is {figure(worst.value)} GB/s{least}"
            + _looks_like(worst.value, gbps),
            expected=(
                f"about {figure(gbps * COPY_REACH / sharing)} GB/s over {words}"
                + (f" with {sharing} GPUs under a switch" if sharing > 1 else ""),
                "PCI Express Base Specification; bar: Azure's 10 of a Gen3 x16 and 21 of a Gen4 x16",
            ),
            gpus=gpus,
            judged=(worst.value, gbps * COPY_BAR / sharing, "GB/s"),
            subject="copies to and from the host",
        )


def _shares_a_switch(topology: Topology, a: GpuRef, b: GpuRef) -> bool:
    return a.node == b.node and topology.path(a, b).kind in (PathKind.PIX, PathKind.PXB)


def _looks_like(value: float, port: float) -> str:
    """The slowest links that could do as much, which are equally fast in pairs: Gen2 x16 and Gen3 x8."""
    slower = [(pcie_gbps(g, w), f"Gen{g} x{w}") for g in (1, 2, 3, 4) for w in (4, 8, 16)]
    fits = [(gbps, name) for gbps, name in slower if value <= gbps * _MOST_REACHED and gbps < port]
    least = min((gbps for gbps, _ in fits), default=0.0)
    names = [name for gbps, name in fits if gbps < least * 1.05]
    return f", as over {' or '.join(names)}" if names else ""


def _name(rate: Rate) -> str:
    shape = f" {'x'.join(map(str, rate.shape))}" if rate.shape else ""
    return f"{rate.kind}{f' {rate.dtype}' if rate.dtype else ''}{shape}"
