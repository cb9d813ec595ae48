"""Surveys that show a code of the driver's side and surveys that do not: one Case per code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import nccl_writer as nccl
from finding_cases import Case, Made

from probe.measurement import HealthSnapshot, Survey
from probe.sources.cuda_visibility import with_visibility
from probe.sources.host_state import HostState, with_host_state
from probe.sources.machines import machine
from probe.sources.nvlink_text import read_nvlink, with_nvlink_status
from probe.sources.nvml_facts import Facts, Key, Reading
from probe.sources.nvml_health import state_notices
from probe.sources.nvml_topology import topology_from_facts
from probe.sources.smi_text import read_topo
from probe.topology import (
    Fabric,
    FabricState,
    Gpu,
    GpuRef,
    GpuState,
    GpuStatus,
    MigInstance,
    Nic,
    Notice,
    P2p,
    P2pStatus,
    Path,
    PathKind,
    PcieLink,
    Topology,
)

NOON, LATER = "2026-11-21T12:00:00+00:00", "2026-11-21T12:00:20+00:00"
RACK = "5b37010e-fb0b-4b1c-8d4b-0a6e6b3ac001"
READY = Fabric(FabricState.COMPLETED, 0, health_mask=0xAA)


# --- machines, and what is changed in them ---


def plain(name: str) -> Topology:
    """A synthetic machine without its note that it is one, so that it is taken for real."""
    return replace(machine(name), warnings=())


def with_node(topology: Topology, number: int = 0, **changes: Any) -> Topology:
    nodes = list(topology.nodes)
    nodes[number] = replace(nodes[number], **changes)
    return replace(topology, nodes=tuple(nodes))


def with_gpus(topology: Topology, changes: Callable[[Gpu], Gpu], number: int = 0) -> Topology:
    shape = topology.nodes[number].shape
    return with_node(topology, number, shape=replace(shape, gpus=tuple(map(changes, shape.gpus))))


def with_states(topology: Topology, changes: Mapping[int, GpuState]) -> Topology:
    states = topology.nodes[0].gpus
    return with_node(topology, gpus=tuple(changes.get(i, state) for i, state in enumerate(states)))


def with_paths(topology: Topology, change: Callable[[int, int, Path], Path], number: int = 0) -> Topology:
    shape = topology.nodes[number].shape
    return with_node(topology, number, shape=replace(shape, paths=tuple(change(*pair) for pair in shape.pairs)))


def with_nics(topology: Topology, changes: Callable[[int, Nic], Nic]) -> Topology:
    shape = topology.nodes[0].shape
    return with_node(topology, shape=replace(shape, nics=tuple(changes(i, nic) for i, nic in enumerate(shape.nics))))


def with_fabric(topology: Topology, *fabrics: Fabric) -> Topology:
    """For GPU 0, 1 ...; the last one stands for the rest."""
    states = topology.nodes[0].gpus
    given = (*fabrics, *(fabrics[-1:] * len(states)))
    return with_states(topology, {i: replace(state, fabric=given[i]) for i, state in enumerate(states)})


def active(topology: Topology, links: Mapping[int, int], total: int | None = None) -> Topology:
    """So many NVLinks of these GPUs are up."""
    return with_gpus(
        topology,
        lambda gpu: replace(gpu, nvlinks_active=links.get(gpu.index, gpu.nvlinks_active), nvlinks_total=total),
    )


def on_pcie(topology: Topology, lost: Callable[[int, int], bool] = lambda a, b: True) -> Topology:
    return with_paths(topology, lambda a, b, path: Path(PathKind.NODE) if lost(a, b) else path)


def port(topology: Topology, link: PcieLink, *gpus: int) -> Topology:
    return with_gpus(topology, lambda gpu: replace(gpu, pcie=link) if gpu.index in gpus or not gpus else gpu)


def p2p(topology: Topology, status: P2pStatus, *, nvlink: P2pStatus | None = None) -> Topology:
    return with_paths(topology, lambda a, b, path: replace(path, p2p=P2p(read=status, write=status, nvlink=nvlink)))


def status(kind: GpuStatus) -> Topology:
    return with_states(
        plain("hgx-h100"), {3: GpuState(pci_bus_id="0000:4c:00.0", status=kind, status_reason="it says so")}
    )


def fewer(name: str, times: int, last: str) -> Topology:
    """A cluster of which the last node is another machine."""
    whole = plain(f"{times}x{name}")
    return replace(whole, nodes=(*whole.nodes[:-1], plain(last).nodes[0]))


# --- what sources say ---


def noticed(code: str, message: str) -> Made:
    """A survey whose source said so, in the words of a source that takes long to write a file for."""
    return lambda: replace(plain("l4-2"), warnings=(Notice(code, message, 0),))


def missed(code: str, message: str) -> Made:
    return lambda: Survey(plain("l4-2"), missing=(Notice(code, message),))


def quiet() -> Topology:
    return plain("l4-2")


def driver(**facts: object) -> Made:
    """A driver that tells this of GPU 0: `clocks_reasons` is the fact 'clocks.reasons'."""
    whole = {"recovery_action", "compute_mode"}
    readings: dict[Key, Reading] = {("count", ()): Reading(1), ("read", (0,)): Reading(True)}
    readings |= {(k if k in whole else k.replace("_", ".", 1), (0,)): Reading(v) for k, v in facts.items()}
    return lambda: replace(plain("l4-2"), warnings=state_notices(Facts(readings)))


def told(broken: str | None = None, **facts: object) -> Topology:
    """One whole GPU as the driver tells it, over the reader's facts."""
    known = {"read": True, "uuid": "GPU-1", "pci": "00000000:1B:00.0", "name": "NVIDIA L4", **facts}
    readings: dict[Key, Reading] = {("count", ()): Reading(1)}
    readings |= {(k, (0,)): Reading(v) for k, v in known.items()}
    return topology_from_facts(Facts(readings, broken))


def host(**facts: Any) -> Made:
    return lambda: with_host_state(plain("l4-2"), HostState(**facts))


def visible(devices: str, *names: str) -> Made:
    def made() -> Topology:
        gpus = tuple(Gpu(i, name) for i, name in enumerate(names))
        states = tuple(GpuState(uuid=f"GPU-{i}", pci_bus_id=f"0000:0{i}:00.0") for i in range(len(names)))
        _, notices = with_visibility(gpus, states, {"CUDA_VISIBLE_DEVICES": devices})
        return replace(plain("l4-2"), warnings=tuple(notices))

    return made


def topo(*rows: str, after: str = "") -> Made:
    """`nvidia-smi topo -m`: a row per GPU, cells by blanks."""
    names = [f"GPU{i}" for i in range(len(rows))]
    lines = ["\t" + "\t".join(names), *("\t".join([n, *row.split()]) for n, row in zip(names, rows, strict=True))]
    return lambda: read_topo("\n".join([*lines, after]), where="a test")


def matrix(n: int, links: Mapping[tuple[int, int], str], rest: str = "SYS") -> Made:
    def cell(a: int, b: int) -> str:
        return "X" if a == b else links.get((min(a, b), max(a, b)), rest)

    return topo(*(" ".join(cell(a, b) for b in range(n)) for a in range(n)))


def links_of(*counts: int, gbps: str = "26.562") -> str:
    """`nvidia-smi nvlink -s` of GPUs with so many active links of 18."""
    lines = []
    for i, n in enumerate(counts):
        lines.append(f"GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-0000000{i}-0000-0000-0000-000000000000)")
        lines += [f"\t Link {k}: {gbps + ' GB/s' if k < n else '<inactive>'}" for k in range(18)]
    return "\n".join(lines)


def snapshots(**later: int) -> Survey:
    """Two GPUs, before and after; GPU 1's counters moved on to these ('link_0_crc' is 'link.0.crc')."""
    names = [name.replace("__", ".") for name in later]
    before = tuple(HealthSnapshot(GpuRef(0, i), NOON, tuple((name, 0) for name in names)) for i in (0, 1))
    after = (
        replace(before[0], taken_at=LATER),
        HealthSnapshot(GpuRef(0, 1), LATER, tuple(zip(names, later.values(), strict=True))),
    )
    return Survey(plain("l4-2"), health=(*before, *after))


def silent() -> Survey:
    """GPU 1 told counters before, and none after."""
    whole = snapshots(pcie__replays=0)
    return replace(whole, health=whole.health[:3])


def a_and_b(first: Path, second: Path) -> Callable[[int, int, Path], Path]:
    return lambda a, b, path: first if (a, b) == (0, 1) else second


SWITCHED = nccl.cpu(
    0,
    *(nccl.gpu(i, nccl.link(nccl.bus(0xC0), 18, nccl.SWITCH)) for i in range(2)),
)
X16 = PcieLink(generation=1, generation_max=4, width=16, width_max=16)
NARROW = PcieLink(generation=2, generation_max=4, width=4, width_max=16)
IN_RACK = Fabric(FabricState.COMPLETED, 0, RACK, 7)
FULL_MESH = {(a, b): "NV18" for a in range(4) for b in range(a + 1, 4)}
RING = {(0, 1): "NV2", (1, 2): "NV2", (2, 3): "NV2", (0, 3): "NV2"}
GEFORCE, DATA_CENTRE = "4090-8", "l40s-8"

WIRES = (
    Case("degraded-links", lambda: active(plain("hgx-h100"), {3: 16}, 18), lambda: active(plain("hgx-h100"), {}, 18)),
    Case("nvlink-absent", lambda: on_pcie(plain("hgx-h100")), lambda: plain("hgx-h100")),
    Case("split-island", lambda: on_pcie(plain("hgx-h100"), lambda a, b: a < 4 <= b), lambda: plain("hgx-h100")),
    Case(
        "bridge-absent",
        lambda: on_pcie(plain("3090-bridges-4"), lambda a, b: (a, b) == (1, 3)),
        lambda: plain("3090-bridges-4"),
    ),
    Case("nvlink-no-bridge", lambda: plain("3090-4"), lambda: plain("l40s-8")),
    Case(
        "nvlink-generation",
        lambda: with_paths(plain("hgx-h100"), lambda a, b, path: replace(path, version=3.0)),
        lambda: with_paths(plain("hgx-a100"), lambda a, b, path: replace(path, version=3.1)),
    ),
    Case(
        "slow-links",
        lambda: with_nvlink_status(
            plain("hgx-h100-2"), links_of(18, 18).replace("Link 17: 26.562", "Link 17: 20.0", 1)
        ),
        lambda: with_nvlink_status(plain("hgx-h100-2"), links_of(18, 18)),
    ),
    Case(
        "nvlink-differs",
        lambda: with_nvlink_status(plain("hgx-h100-2"), links_of(16, 16)),
        lambda: with_nvlink_status(plain("hgx-h100-2"), links_of(18, 18)),
    ),
    Case(
        "nvlink-p2p-refused",
        lambda: p2p(plain("3090-bridges-4"), P2pStatus.DISABLED, nvlink=P2pStatus.DISABLED),
        lambda: p2p(plain("3090-bridges-4"), P2pStatus.OK, nvlink=P2pStatus.OK),
    ),
    Case("asymmetric", topo("X NV18", "NV17 X"), topo("X NV18", "NV18 X")),
    Case("partial-mesh", matrix(4, RING), matrix(4, FULL_MESH)),
    Case("islands-not-adjacent", matrix(4, {(0, 2): "NV4", (1, 3): "NV4"}), matrix(4, {(0, 1): "NV4", (2, 3): "NV4"})),
    Case(
        "link-to-itself",
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0, nccl.link(nccl.bus(0x40), 4)), nccl.gpu(1))),
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0, nccl.link(nccl.bus(0x41), 4)), nccl.gpu(1))),
    ),
    Case("xgmi-indirect", noticed("xgmi-indirect", "xGMI reaches 0-3 over others: measure before trusting it"), quiet),
    Case(
        "fabric-in-progress",
        lambda: with_fabric(plain("hgx-h100"), Fabric(FabricState.IN_PROGRESS)),
        lambda: with_fabric(plain("hgx-h100"), READY),
    ),
    Case(
        "fabric-failed",
        lambda: with_fabric(plain("hgx-h100"), READY, Fabric(FabricState.COMPLETED, 5), READY),
        lambda: with_fabric(plain("hgx-h100"), Fabric(FabricState.NOT_SUPPORTED)),
    ),
    Case(
        "fabric-unhealthy",
        lambda: with_fabric(plain("hgx-h100"), replace(READY, health_mask=0xA9)),
        lambda: with_fabric(plain("hgx-h100"), READY, replace(READY, health_mask=0x1AA), replace(READY, health_mask=0)),
    ),
    Case("fabric-unknown", noticed("fabric-unknown", "lstopo does not tell the fabric's state: check it"), quiet),
    Case(
        "clique-differs",
        lambda: with_fabric(plain("hgx-h100"), IN_RACK, replace(IN_RACK, clique_id=8)),
        lambda: with_fabric(plain("hgx-h100"), IN_RACK),
    ),
    Case(
        "domain-unknown",
        lambda: nccl.read(
            nccl.cpu(0, nccl.gpu(0), nccl.gpu(1), host="0xa"), nccl.cpu(0, nccl.gpu(0), nccl.gpu(1), host="0xb")
        ),
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0), nccl.gpu(1), host="0xa")),
    ),
    Case(
        "imex-channel-missing",
        lambda: with_host_state(with_fabric(plain("hgx-h100"), IN_RACK), HostState(imex_channels=())),
        lambda: with_host_state(with_fabric(plain("hgx-h100"), IN_RACK), HostState(imex_channels=(0,))),
    ),
    Case(
        "p2p-not-ok",
        lambda: p2p(plain(DATA_CENTRE), P2pStatus.CHIPSET_NOT_SUPPORTED),
        lambda: p2p(plain(DATA_CENTRE), P2pStatus.UNKNOWN),
    ),
    Case("pcie-narrow", lambda: port(plain("3090-4"), NARROW, 0), lambda: port(plain("3090-4"), X16)),
    Case(
        "pcie-slow",
        lambda: replace(
            quiet(),
            warnings=state_notices(
                Facts(
                    {("count", ()): Reading(1), ("read", (0,)): Reading(True)}
                    | {(f"pcie.{k}", (0,)): Reading(v) for k, v in {"generation": 1, "generation_max": 4}.items()}
                ),
                under_load=True,
            ),
        ),
        driver(pcie_generation=1, pcie_generation_max=4),
    ),
    Case(
        "pcie-host-older",
        lambda: port(plain("l40s-8"), replace(X16, generation_max=3)),
        lambda: port(plain("l40s-8"), X16),
    ),
    Case("pcie-level-coarse", noticed("pcie-level-coarse", "AMD's tools tell no PCIe switches; RCCL tells"), quiet),
    Case(
        "nic-far",
        lambda: with_nics(plain("l40s-8"), lambda i, nic: replace(nic, state="down") if i > 1 else nic),
        lambda: with_nics(plain("l40s-8"), lambda i, nic: replace(nic, state="down") if i > 2 else nic),
    ),
    Case(
        "nic-down",
        lambda: with_nics(plain("hgx-h100"), lambda i, nic: replace(nic, state="down") if i == 5 else nic),
        lambda: plain("hgx-h100"),
    ),
    Case(
        "nic-slow",
        lambda: with_nics(plain("hgx-h100"), lambda i, nic: replace(nic, speed_gbps=200.0) if i == 5 else nic),
        lambda: plain("hgx-h100"),
    ),
    Case(
        "nics-virtual",
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0), nccl.gpu(1), f"<nic>{nccl.net('eth0')}</nic>")),
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0), nccl.gpu(1), nccl.nic(0, nccl.net("mlx5_0")))),
    ),
    Case(
        "gdr-off",
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0), nccl.gpu(1), nccl.nic(0, nccl.net("mlx5_0", gdr=0)))),
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0), nccl.gpu(1), nccl.nic(0, nccl.net("mlx5_0", gdr=1)))),
    ),
)

WELL = driver(rows=[0, 0, 0, 0], clocks_reasons=1, compute_mode=0, persistence=1)

GPUS = (
    Case("gpu-lost", lambda: status(GpuStatus.LOST), lambda: status(GpuStatus.OK)),
    Case("gpu-failed", lambda: status(GpuStatus.FAILED), lambda: status(GpuStatus.LOST)),
    Case("gpu-no-permission", lambda: status(GpuStatus.NO_PERMISSION), lambda: status(GpuStatus.OK)),
    Case("gpus-missing", lambda: plain("hgx-h100-7"), lambda: plain("hgx-h100-4")),
    Case("gpu-silent", silent, lambda: snapshots(pcie__replays=0)),
    Case("recovery-needed", driver(recovery_action=1), driver(recovery_action=0)),
    Case("row-remap-failed", driver(rows=[1, 1, 0, 1]), WELL),
    Case("row-remap-pending", driver(rows=[1, 0, 1, 0]), WELL),
    Case("row-remaps", lambda: snapshots(rows__corrected=1), lambda: snapshots(rows__corrected=0)),
    Case("page-retirement-pending", driver(pages_pending=1), driver(pages_pending=0)),
    Case(
        "ecc-uncorrected",
        lambda: snapshots(ecc__uncorrected__volatile=2),
        lambda: snapshots(ecc__corrected__volatile=2),
    ),
    Case("ecc-errors", lambda: snapshots(ecc__corrected__volatile=2), lambda: snapshots(ecc__corrected__volatile=0)),
    Case("sram-errors", driver(ecc_sram={"threshold_exceeded": 1}), driver(ecc_sram={"threshold_exceeded": 0})),
    Case("nvlink-errors", lambda: snapshots(link__0__crc=7), lambda: snapshots(link__0__crc=0)),
    Case("c2c-errors", lambda: snapshots(c2c__0__crc=7), lambda: snapshots(c2c__0__crc=0)),
    Case("pcie-replays", lambda: snapshots(pcie__replays=9), lambda: snapshots(pcie__replays=0)),
    Case("throttled", driver(clocks_reasons=0x40), driver(clocks_reasons=0x4)),
    Case(
        "power-capped",
        driver(power_limit=450_000, power_limit_default=700_000),
        driver(power_limit=700_000, power_limit_default=700_000),
    ),
    Case("compute-mode", driver(compute_mode=3), WELL),
    Case("gpu-busy", driver(processes=[[4711, 1 << 30]]), driver(processes=[])),
    Case("persistence-off", driver(persistence=0), WELL),
    Case(
        "mig",
        lambda: with_states(plain("hgx-a100"), {0: GpuState(mig_instances=(MigInstance("MIG-1", "3g.40gb"),))}),
        lambda: plain("hgx-a100"),
    ),
    Case("partitioned", noticed("partitioned", "GPU 0 is partitioned into several devices, and counts as one"), quiet),
    Case(
        "mixed-models",
        lambda: with_gpus(plain("l4-2"), lambda gpu: replace(gpu, name="NVIDIA L40S") if gpu.index else gpu),
        quiet,
    ),
    Case(
        "memory-differs",
        lambda: with_gpus(plain("l4-2"), lambda gpu: replace(gpu, memory_bytes=(22 + 2 * gpu.index) << 30)),
        lambda: with_gpus(plain("l4-2"), lambda gpu: replace(gpu, memory_bytes=(22 << 30) + (gpu.index << 20))),
    ),
)

HOST = (
    Case(
        "mixed-drivers",
        lambda: with_node(with_node(plain("2xhgx-h100"), driver_version="580.95.05"), 1, driver_version="570.1"),
        lambda: with_node(with_node(plain("2xhgx-h100"), driver_version="580.95.05"), 1, driver_version="580.95.05"),
    ),
    Case(
        "virtualized",
        lambda: with_node(plain("l4-2"), virtualization="passthrough"),
        lambda: with_node(plain("l4-2"), virtualization="bare"),
    ),
    Case("nvml-partial", lambda: told("no answer within 20 s"), told),
    Case(
        "container-sees-all",
        host(container="docker", requested_gpus="all"),
        host(container="docker", requested_gpus="0,1"),
    ),
    Case(
        "container-sees-part",
        lambda: with_host_state(plain("l4-3"), HostState(container="docker", requested_gpus="0,1,2")),
        lambda: with_host_state(plain("l4-3"), HostState(container="docker", requested_gpus="all")),
    ),
    Case(
        "gpu-count-differs",
        host(container="docker", requested_gpus="0"),
        host(container="docker", requested_gpus="0,1"),
    ),
    Case("shm-small", host(shm_bytes=64 << 20), host(shm_bytes=64 << 30)),
    Case("memlock-limited", host(has_rdma=True, memlock_bytes=65536), host(has_rdma=True, memlock_bytes=-1)),
    Case(
        "iommu-translated",
        host(gpu_bus_ids=("a", "b"), iommu="translated"),
        host(gpu_bus_ids=("a", "b"), iommu="passthrough"),
    ),
    Case(
        "acs-redirects",
        host(gpu_bus_ids=("a", "b"), acs_redirecting=("0000:16:00.0",)),
        host(gpu_bus_ids=("a", "b"), acs_redirecting=()),
    ),
    Case("cuda-hidden", visible("0", "L4", "L4"), visible("0,1", "L4", "L4")),
    Case("cuda-visible-invalid", visible("0,9", "L4", "L4"), visible("0,1", "L4", "L4")),
    Case("cuda-order", visible("0,1", "L4", "L40S"), visible("0,1", "L4", "L4")),
    Case("numa-differs", noticed("numa-differs", "GPU 1: the driver says NUMA node 0, sysfs 1: the driver's"), quiet),
    Case("affinity-differs", noticed("affinity-differs", "GPU 1: the driver says CPUs 0-3, sysfs 4-7: its"), quiet),
    Case("gpu-not-in-sysfs", noticed("gpu-not-in-sysfs", "sysfs shows no PCI device of GPU 0, 1: unknown"), quiet),
    Case("host-odd-fact", noticed("host-odd-fact", "/sys/x holds 'y': taken as unknown."), quiet),
)

RUN = (
    Case("unfinished", missed("unfinished", "The run did not come to its end. Go on with --resume."), quiet),
    Case("not-measured", missed("not-measured", "The time ended before 1 step: p2p. Give more time."), quiet),
    Case("partly-measured", missed("partly-measured", "The time ended before some sizes of 1 step: p2p."), quiet),
    Case("did-not-work", missed("did-not-work", "Sizes that did not work were left out: p2p from 8 bytes."), quiet),
    Case("wrong-data", missed("wrong-data", "p2p of 8 bytes gave wrong data at rank 1: no time of it counts."), quiet),
    Case("out-of-memory", missed("out-of-memory", "rank 1 (GPU 1 of node 0) has no memory for p2p."), quiet),
    Case("no-graph", missed("no-graph", "rank 0 could not capture p2p in a graph, so it was left out."), quiet),
    Case("p2p-unverified", missed("p2p-unverified", "P2P of 2 ordered pairs was not written and read back."), quiet),
    Case("health-unknown", missed("health-unknown", "the driver tells no error counters of these GPUs."), quiet),
    Case("rate-missing", missed("rate-missing", "gemm fp8 of GPU 1 was not measured: no fp8"), quiet),
    Case("gemm-shapes-assumed", missed("gemm-shapes-assumed", "no model was told, so GEMM shapes are assumed"), quiet),
    Case("gemm-substituted", missed("gemm-substituted", "bf16 is emulated: GEMM was measured in fp16"), quiet),
    Case("unlike-its-twins", missed("unlike-its-twins", "node 0 is unlike the 3 nodes equal to it: x"), quiet),
    Case("twins-unchecked", missed("twins-unchecked", "3 more nodes may be unlike their twins"), quiet),
)

ROWS = ("X NV18 NV18", "NV18 X NV18", "NV18 NV18 X")
P2P_ONLY = " \tGPU0\tGPU1\n GPU0\tX\tOK\n GPU1\tOK\tX\n\nLegend:\n\n  X    = Self\n  OK   = Status Ok\n"
GARBLED = (
    "\tGPU0\tNIC0\tNIC1\tCPU Affinity\nGPU0\t X \tPIX\tPIX\t0-3\nNIC0\tPIX\t X \tPIX\nNIC1\tPIX\tPIX\t X \n\n"
    "NIC Legend:\n\n  NIC0: {}\n  NIC1: mlx5_1\n"
)

INPUT = (
    Case("synthetic", lambda: machine("l4-2"), quiet),
    Case("unknown-notice", noticed("from-tomorrow", "what this version does not know"), quiet),
    Case(
        "memory-unknown",
        lambda: told(name="NVIDIA GB10"),
        lambda: told(memory={"total": 1 << 34, "free": 1 << 33}),
    ),
    Case(
        "memory-assumed", noticed("memory-assumed", "Nothing tells the memory of some GPUs: 16 GB is assumed."), quiet
    ),
    Case(
        "names-unknown", noticed("names-unknown", "the file does not tell the model of GPU 0,1: say --gpu-model"), quiet
    ),
    Case("names-ignored", noticed("names-ignored", "the text lists GPU 9, the matrix has 2: left out"), quiet),
    Case("paths-unknown", lambda: read_nvlink(links_of(18, 18), where="a test"), topo("X NV18", "NV18 X")),
    Case(
        "nvlink-not-visible",
        lambda: nccl.read(nccl.cpu(0, nccl.pci(nccl.bus(1), nccl.GPU), nccl.pci(nccl.bus(2), nccl.GPU))),
        lambda: nccl.read(SWITCHED),
    ),
    Case(
        "rows-missing",
        lambda: read_topo("\tGPU0\tGPU1\tGPU2\nGPU0\t X \tNV18\tNV18\n", where="a test"),
        topo(*ROWS),
    ),
    Case(
        "row-unreadable",
        lambda: read_topo(
            "\tGPU0\tGPU1\tGPU2\nGPU0\t X \tPIX\tPIX\nGPU1\tPIX\t X \nGPU2\tPIX\tPIX\t X \n", where="a test"
        ),
        topo(*ROWS),
    ),
    Case("matrix-unreadable", noticed("matrix-unreadable", "another matrix in the text is left out: no rows"), quiet),
    Case("truncated", noticed("truncated", "the text ends inside the legend"), topo(*ROWS)),
    Case("header-missing", noticed("header-missing", "the header is missing: columns by the rows' names"), topo(*ROWS)),
    Case("glued-cells", noticed("glued-cells", "some cells stood without a blank between them"), topo(*ROWS)),
    Case("columns-unnamed", noticed("columns-unnamed", "2 columns have no name: they are taken as NICs"), topo(*ROWS)),
    Case(
        "legend-garbled",
        lambda: read_topo(GARBLED.format("IX      PIX"), where="a test"),
        lambda: read_topo(GARBLED.format("mlx5_0"), where="a test"),
    ),
    Case("p2p-only", lambda: read_topo(P2P_ONLY, where="a test"), topo(*ROWS)),
    Case("p2p-ignored", noticed("p2p-ignored", "the -p2p matrix lists other GPUs and is left out"), topo(*ROWS)),
    Case(
        "nvlink-ignored",
        lambda: with_nvlink_status(plain("l4-2"), links_of(18, 18, 18)),
        lambda: with_nvlink_status(plain("hgx-h100-2"), links_of(18, 18)),
    ),
    Case("affinity-unknown", noticed("affinity-unknown", "CPU affinity of GPU 0 is not certain: glued"), quiet),
    Case("odd-value", noticed("odd-value", "not believable, taken as unknown: width 17"), quiet),
    Case(
        "doubled",
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0), nccl.gpu(1), nccl.gpu(1))),
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0), nccl.gpu(1))),
    ),
    Case("bus-id-doubled", noticed("bus-id-doubled", "two GPUs have the PCI bus id 0000:1b:00.0: the first"), quiet),
    Case("uuid-doubled", noticed("uuid-doubled", "GPUs share a UUID, which cannot be: left out"), quiet),
    Case("gpus-renumbered", noticed("gpus-renumbered", "GPUs are numbered by rank: add the bus ids."), quiet),
    Case(
        "no-gpus",
        lambda: nccl.read(nccl.cpu(0, nccl.nic(0, nccl.net("mlx5_0")))),
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0))),
    ),
    Case(
        "template",
        lambda: nccl.read(nccl.cpu(0, nccl.pci(nccl.bus(1), nccl.GPU), nccl.pci(nccl.bus(2), nccl.GPU))),
        lambda: nccl.read(nccl.cpu(0, nccl.gpu(0), nccl.gpu(1))),
    ),
    Case("link-count-unknown", noticed("link-count-unknown", "the NVLink matrix tells a bandwidth: add it"), quiet),
    Case("nic-ignored", noticed("nic-ignored", "a NIC named '' is nameless or named twice, and left out"), quiet),
    Case("not-merged", noticed("not-merged", "a second description has other GPUs: it is left out"), quiet),
)

DRIVER_CASES = (*WIRES, *GPUS, *HOST, *RUN, *INPUT)
