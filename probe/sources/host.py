"""The host's side of a machine, joined to what the driver told: NUMA, CPU affinity, NICs; the one door of psutil."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path as FilePath

from probe.sources.sysfs import NumaNode, PciDevice, Sysfs, normal_bus_id, parse_cpus
from probe.topology import (
    Gpu,
    GpuState,
    GpuStatus,
    Nic,
    Node,
    Notice,
    Origin,
    Path,
    PathKind,
    Provenance,
    Topology,
)

_THIS_MACHINE = FilePath("/")
# Systems on a chip: the driver tells no memory of them because it is the host's.
_SHARES_HOST_MEMORY = re.compile(r"\b(GB10|Thor|Orin|Xavier)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host tells without a driver. `memory_*` in bytes; `virtualization` is 'vm', 'bare' or None (unknown).

    `devices` are the PCI devices that paths are drawn between: GPUs, accelerators, and the cards of `nics`.
    """

    hostname: str | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    product: str | None = None
    virtualization: str | None = None
    numa_nodes: tuple[NumaNode, ...] = ()
    devices: tuple[PciDevice, ...] = ()
    nics: tuple[Nic, ...] = ()
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface as the kernel tells it now: IPv4 addresses first, link-local ones with their zone."""

    name: str
    is_up: bool
    addresses: tuple[str, ...]


def read_interfaces() -> tuple[Interface, ...]:
    """All network interfaces of this machine, sorted by name; () where the kernel tells none."""
    import socket

    try:
        import psutil

        states, told = psutil.net_if_stats(), psutil.net_if_addrs()
    except Exception:  # psutil raises as many kinds as there are kernels and containers
        return ()
    families = (socket.AF_INET, socket.AF_INET6)
    return tuple(
        Interface(
            name,
            name in states and states[name].isup,
            tuple(a.address for f in families for a in rows if a.family == f),
        )
        for name, rows in sorted(told.items())
    )


def read_host(root: FilePath = _THIS_MACHINE) -> HostFacts:
    """Reads /sys and /proc below `root`, as any user, without failing: no /sys (macOS) gives nearly empty facts.

    Memory, and speeds that sysfs does not tell, come from psutil, and only for this machine (`root` is /).
    """
    sysfs = Sysfs(root)
    nodes = sysfs.numa_nodes()
    cards = list(sysfs.nics(nodes))
    devices = {d.bus_id: d for d in (*sysfs.gpu_devices(nodes), *(device for _, device in cards))}
    is_this = root == _THIS_MACHINE
    memory, available = _memory() if is_this else (None, None)
    online = parse_cpus(sysfs.text("sys/devices/system/cpu/online"))
    hostname = sysfs.text("proc/sys/kernel/hostname", 256) or (_hostname() if is_this else None)
    return HostFacts(
        hostname=hostname if hostname and hostname.isprintable() else None,
        cpu_count=len(online) if online else os.cpu_count() if is_this else None,
        memory_bytes=memory,
        memory_available_bytes=available,
        product=sysfs.product(),
        virtualization=sysfs.virtualization(),
        numa_nodes=nodes,
        devices=tuple(devices.values()),
        nics=_with_speeds(tuple(nic for nic, _ in cards)) if is_this else tuple(nic for nic, _ in cards),
        notices=tuple(sysfs.notices),
    )


def _hostname() -> str:
    import socket

    return socket.gethostname()


def _memory() -> tuple[int | None, int | None]:
    """All and available bytes of this machine's memory."""
    try:
        import psutil

        memory = psutil.virtual_memory()
    except Exception:  # psutil raises as many kinds as there are kernels and containers
        return None, None
    return memory.total or None, memory.available or None


def _with_speeds(nics: tuple[Nic, ...]) -> tuple[Nic, ...]:
    """Asks the network driver (ethtool) where sysfs told no speed."""
    if all(nic.speed_gbps or nic.state != "up" for nic in nics):
        return nics
    try:
        import psutil

        stats = psutil.net_if_stats()
    except Exception:
        return nics
    told = {name: stat.speed / 1000 for name, stat in stats.items() if stat.isup and stat.speed > 0}
    return tuple(replace(n, speed_gbps=n.speed_gbps or told.get(n.interface or "")) for n in nics)


def pci_path_kind(a: PciDevice, b: PciDevice, numa_nodes: int) -> PathKind:
    """The level of `nvidia-smi topo -m` between two devices, from where their routes part.

    No common host bridge: NODE within a NUMA node, SYS across, and UNKNOWN where the kernel tells no node (on a machine
    of one NUMA node it is NODE all the same). Only the host bridge in common: PHB. A common bridge below it: PIX if
    each device hangs on its own port of that bridge, or both are functions of one card ("at most a single PCIe
    bridge", where a switch, which sysfs shows as one bridge per port, counts once); else PXB, through several.
    """
    common = sum(1 for _ in takewhile(lambda step: step[0] == step[1], zip(a.route, b.route, strict=False)))
    if common == 0:
        if numa_nodes == 1:
            return PathKind.NODE
        if a.numa_node is None or b.numa_node is None:
            return PathKind.UNKNOWN
        return PathKind.NODE if a.numa_node == b.numa_node else PathKind.SYS
    if common == 1:
        return PathKind.PHB
    return PathKind.PIX if max(len(a.route), len(b.route)) - common <= 2 else PathKind.PXB


def with_host(topology: Topology, host: HostFacts, *, node: int = 0) -> Topology:
    """Completes one node with the host's facts. What the topology has stays; a contradiction becomes a notice."""
    own = topology.nodes[node]
    shape = own.shape
    found = {device.bus_id: device for device in host.devices}
    places = [found.get(normal_bus_id(state.pci_bus_id) or "") for state in own.gpus]
    notices = [
        *host.notices,
        *_missing(own.gpus, places, host),
        *_conflicts(shape.gpus, places),
        *_virtualized(own, host),
    ]
    if host.nics and not shape.nics:
        cards = [found.get(nic.pci_bus_id or "") for nic in host.nics]
        rows = tuple(tuple(Path(_kind(place, card, host)) for card in cards) for place in places)
        shape = replace(shape, nics=host.nics, nic_paths=rows)
    gpus = tuple(
        _completed(gpu, place, shape.nics, shape.nic_paths[gpu.index] if shape.nic_paths else ())
        for gpu, place in zip(shape.gpus, places, strict=True)
    )
    gpus, states = _with_shared_memory(gpus, own.gpus, host)
    completed = replace(
        own,
        shape=replace(shape, gpus=gpus, numa_nodes=shape.numa_nodes or len(host.numa_nodes) or None),
        gpus=states,
        hostname=own.hostname or host.hostname,
        virtualization=own.virtualization or host.virtualization,
    )
    return replace(
        topology,
        nodes=(*topology.nodes[:node], completed, *topology.nodes[node + 1 :]),
        warnings=(*topology.warnings, *(replace(n, node=node) for n in notices)),
        provenance=(*topology.provenance, *(replace(o, node=node) for o in _origins(own, completed))),
    )


def _origins(before: Node, after: Node) -> Iterator[Origin]:
    for fact in ("hostname", "virtualization"):
        if getattr(before, fact) != getattr(after, fact):
            yield Origin(fact, Provenance.READ, "sysfs")
    if before.shape.nics != after.shape.nics:
        yield from (Origin(fact, Provenance.READ, "sysfs") for fact in ("nics", "nic_paths"))
    sources = dict.fromkeys(("numa_node", "cpu_affinity", "nearest_nics"), "sysfs")
    sources["memory_bytes"] = "all memory of the host, which the GPU shares"
    for fact, source in sources.items():
        if any(getattr(a, fact) != getattr(b, fact) for a, b in zip(before.shape.gpus, after.shape.gpus, strict=True)):
            yield Origin(f"gpus.{fact}", Provenance.READ, source)
    if before.gpus != after.gpus:
        yield Origin("gpus.memory_free_bytes", Provenance.READ, "the host's MemAvailable")


def _kind(a: PciDevice | None, b: PciDevice | None, host: HostFacts) -> PathKind:
    return pci_path_kind(a, b, len(host.numa_nodes)) if a and b else PathKind.UNKNOWN


def _completed(gpu: Gpu, place: PciDevice | None, nics: Sequence[Nic], row: Sequence[Path]) -> Gpu:
    best = min((path.kind.distance for path in row if path.kind is not PathKind.UNKNOWN), default=None)
    nearest = tuple(nic.name for nic, path in zip(nics, row, strict=False) if path.kind.distance == best)
    # A path is unknown only between host bridges, so it can be no better than NODE.
    if best is not None and best > PathKind.PHB.distance and any(p.kind is PathKind.UNKNOWN for p in row):
        nearest = ()
    return replace(
        gpu,
        numa_node=gpu.numa_node if gpu.numa_node is not None or place is None else place.numa_node,
        cpu_affinity=gpu.cpu_affinity or (place.cpus if place else None),
        nearest_nics=gpu.nearest_nics or nearest,
    )


def _with_shared_memory(
    gpus: tuple[Gpu, ...], states: tuple[GpuState, ...], host: HostFacts
) -> tuple[tuple[Gpu, ...], tuple[GpuState, ...]]:
    """All host memory is what such a GPU was built with, what the host can spare now is what it has free."""
    sharing = [
        g.memory_bytes is None and s.status is GpuStatus.OK and bool(_SHARES_HOST_MEMORY.search((g.name or "")[:128]))
        for g, s in zip(gpus, states, strict=True)
    ]
    if host.memory_bytes is None or not any(sharing):
        return gpus, states
    return (
        tuple(replace(g, memory_bytes=host.memory_bytes) if yes else g for g, yes in zip(gpus, sharing, strict=True)),
        tuple(
            replace(s, memory_free_bytes=s.memory_free_bytes or host.memory_available_bytes) if yes else s
            for s, yes in zip(states, sharing, strict=True)
        ),
    )


def _conflicts(gpus: Sequence[Gpu], places: Sequence[PciDevice | None]) -> list[Notice]:
    notices = []
    for gpu, place in zip(gpus, places, strict=True):
        if place is None:
            continue
        nodes = (gpu.numa_node, place.numa_node)
        if None not in nodes and nodes[0] != nodes[1]:
            what = f"GPU {gpu.index}: the driver says NUMA node {nodes[0]}, sysfs {nodes[1]}"
            notices.append(Notice("numa-differs", f"{what}: the driver's counts. Check with `lspci -vv` and numactl."))
        cpus = (gpu.cpu_affinity, place.cpus)
        if None not in cpus and parse_cpus(cpus[0]) != parse_cpus(cpus[1]):
            what = f"GPU {gpu.index}: the driver says CPUs {cpus[0]}, sysfs {cpus[1]}"
            notices.append(Notice("affinity-differs", f"{what}: the driver's count; a cpuset can narrow either."))
    return notices


def _virtualized(node: Node, host: HostFacts) -> list[Notice]:
    """The driver itself warns of what it sees as passed through."""
    if host.virtualization != "vm" or node.virtualization not in (None, "bare"):
        return []
    what = f"this is a virtual machine ({host.product or 'the CPU shows a hypervisor'})"
    if node.virtualization:
        what = f"the driver says bare metal, yet {what}"
    return [Notice("virtualized", f"{what}: PCIe levels, NUMA and P2P may be flattened; only a measurement tells.")]


def _missing(states: Sequence[GpuState], places: Sequence[PciDevice | None], host: HostFacts) -> list[Notice]:
    lost = [str(i) for i, (s, p) in enumerate(zip(states, places, strict=True)) if s.pci_bus_id and p is None]
    if not lost or not host.devices:
        return []
    what = f"sysfs shows no PCI device of GPU {', '.join(lost)}"
    return [Notice("gpu-not-in-sysfs", f"{what}: NUMA node, affinity and NIC paths are unknown there.")]
