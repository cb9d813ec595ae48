"""What Linux shows below /sys and /proc: NUMA nodes, PCI devices, NICs; every file may lie or be missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from probe.errors import one_line
from probe.topology import Nic, Notice
from probe.units import ranges

MAX_ENTRIES = 8192
_MAX_NOTICES = 16
_MAX_CPU = 1 << 16
_MAX_NUMA_NODE = 1 << 12
_MAX_NIC_GBPS = 100_000
_BUS_ID = re.compile(r"([0-9a-f]{1,8}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,64}")
# PCI classes (PCI Code and ID Assignment Specification): 03 display controller, 12 processing accelerator.
_GPU_CLASSES = ("0x03", "0x12")
_ARPHRD_ETHER = "1"
_HYPERVISORS = re.compile(
    r"kvm|qemu|vmware|virtualbox|virtual machine|google compute engine|openstack|xen|domu|parallels|alibaba cloud ecs",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class NumaNode:
    """A NUMA node that has CPUs; `cpus` as '0-31,64-95'."""

    index: int
    cpus: str


@dataclass(frozen=True, slots=True)
class PciDevice:
    """`route` leads from the host bridge over every PCI bridge to the device: ('pci0000:16', '0000:16:01.0', ...)."""

    bus_id: str
    route: tuple[str, ...]
    numa_node: int | None = None
    cpus: str | None = None


def normal_bus_id(text: str | None) -> str | None:
    """NVML's '00000000:17:00.0' and sysfs' '0000:17:00.0' -> '0000:17:00.0'; None where it is no PCI bus id."""
    match = _BUS_ID.fullmatch(text.strip().lower()) if text and len(text) < 64 else None
    return f"{int(match[1], 16):04x}:{match[2]}:{match[3]}.{match[4]}" if match else None


def parse_cpus(text: str | None) -> tuple[int, ...] | None:
    """'0-2,8' -> (0, 1, 2, 8); () for an empty list, None where it is no list of CPUs."""
    if text is None:
        return None
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip(), re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < _MAX_CPU:
            return None
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


@dataclass(slots=True)
class Sysfs:
    """Reads below `root`; what cannot be read is None, what cannot be true is None and a notice."""

    root: Path
    notices: list[Notice] = field(default_factory=list)

    def text(self, path: str, limit: int = 4096) -> str | None:
        try:
            with (self.root / path).open("rb") as file:
                return file.read(limit).decode("utf-8", "replace").strip() or None
        except (OSError, ValueError):
            return None

    def names(self, path: str) -> list[str]:
        try:
            with os.scandir(self.root / path) as entries:
                names = sorted(entry.name for entry, _ in zip(entries, range(MAX_ENTRIES), strict=False))
        except (OSError, ValueError):
            return []
        if len(names) == MAX_ENTRIES:
            self.doubt(path, f"more than {MAX_ENTRIES} entries")
        return names

    def doubt(self, path: str, seen: str) -> None:
        if len(self.notices) < _MAX_NOTICES:
            self.notices.append(Notice("host-odd-fact", f"/{path} holds {one_line(seen, 60)!r}: taken as unknown."))

    def route(self, path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Where a link leads: the PCI route (empty if none) and what follows it ('virtio0', 'net', 'eth0').

        The last host bridge counts: behind Intel VMD or Hyper-V a host bridge is itself the child of a device.
        """
        try:
            parts = (self.root / path).readlink().parts
        except (OSError, ValueError):
            return (), ()
        start = max((i for i, part in enumerate(parts) if _HOST_BRIDGE.fullmatch(part)), default=len(parts))
        end = start + 1
        while end < len(parts) and _BUS_ID.fullmatch(parts[end]):
            end += 1
        return (parts[start:end], parts[end:]) if end > start + 1 else ((), parts)

    def numa_nodes(self) -> tuple[NumaNode, ...]:
        """Only nodes with CPUs: a GPU's or CXL memory can be a node of its own, where nothing can be pinned."""
        nodes = []
        for name in self.names("sys/devices/system/node"):
            if re.fullmatch(r"node[0-9]{1,4}", name, re.ASCII):
                path = f"sys/devices/system/node/{name}/cpulist"
                cpus = self.cpus(path)
                if cpus:
                    nodes.append(NumaNode(int(name[4:]), cpus))
        return tuple(sorted(nodes, key=lambda n: n.index))

    def cpus(self, path: str) -> str | None:
        text = self.text(path, 1 << 16)
        cpus = parse_cpus(text)
        if text and cpus is None:
            self.doubt(path, text)
        return ranges(cpus) if cpus else None

    def gpu_devices(self, nodes: tuple[NumaNode, ...]) -> Iterator[PciDevice]:
        """Display controllers and accelerators, of whatever vendor."""
        for bus_id in self.names("sys/bus/pci/devices"):
            if (self.text(f"sys/bus/pci/devices/{bus_id}/class") or "").startswith(_GPU_CLASSES):
                route, _ = self.route(f"sys/bus/pci/devices/{bus_id}")
                if route:
                    yield self.device(route, nodes)

    def device(self, route: tuple[str, ...], nodes: tuple[NumaNode, ...]) -> PciDevice:
        path = f"sys/bus/pci/devices/{route[-1]}"
        node = self.numa_node(f"{path}/numa_node")
        # A node without CPUs (Grace GPU memory, CXL) is no place to pin to.
        node = node if not nodes or node in [n.index for n in nodes] else None
        cpus = self.cpus(f"{path}/local_cpulist") or next((n.cpus for n in nodes if n.index == node), None)
        return PciDevice(normal_bus_id(route[-1]) or route[-1], route, node, cpus)

    def numa_node(self, path: str) -> int | None:
        """-1 is the kernel's word for unknown: firmware that tells no proximity, or a virtual machine."""
        text = self.text(path)
        if text is None or text == "-1":
            return None
        if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) and int(text) < _MAX_NUMA_NODE:
            return int(text)
        self.doubt(path, text)
        return None

    def nics(self, nodes: tuple[NumaNode, ...]) -> Iterator[tuple[Nic, PciDevice]]:
        """One per device: RDMA devices first (mlx5_0), then Ethernet without RDMA (eth0), in the order of names.

        Left out: software devices, Wi-Fi, devices behind USB, and SR-IOV virtual functions, which are no wires of
        their own. In a guest a virtual function looks like a physical one, and counts.
        """
        taken: set[str] = set()  # names, and bus ids: both are unique
        for name in sorted(self.names("sys/class/infiniband"), key=_natural):
            path = f"sys/class/infiniband/{name}"
            route, _ = self.route(path)
            if route and _NAME.fullmatch(name) and not self.is_virtual_function(route):
                device = self.device(route, nodes)
                taken |= {name, device.bus_id}
                yield self.rdma_nic(name, device), device
        for name in sorted(self.names("sys/class/net"), key=_natural):
            path = f"sys/class/net/{name}"
            route, rest = self.route(path)
            is_card = route and (rest[:1] == ("net",) or (rest[:1] and re.fullmatch(r"virtio[0-9]+", rest[0])))
            if is_card and _NAME.fullmatch(name) and self.is_ethernet(path) and not self.is_virtual_function(route):
                device = self.device(route, nodes)
                if not taken & {name, device.bus_id}:
                    taken |= {name, device.bus_id}
                    yield self.ethernet_nic(name, device), device

    def is_virtual_function(self, route: tuple[str, ...]) -> bool:
        return "physfn" in self.names(f"sys/bus/pci/devices/{route[-1]}")

    def is_ethernet(self, path: str) -> bool:
        is_wireless = any(name in ("wireless", "phy80211") for name in self.names(path))
        return self.text(f"{path}/type") == _ARPHRD_ETHER and not is_wireless

    def rdma_nic(self, name: str, device: PciDevice) -> Nic:
        """The first active port stands for the device; a port that is down prints the rate of no link: unknown."""
        ports = f"sys/class/infiniband/{name}/ports"
        numbers = [n for n in sorted(self.names(ports), key=_natural) if n.isascii() and n.isdigit()]
        states = {n: self.word(f"{ports}/{n}/state") for n in numbers}
        port = next((n for n in numbers if states[n] == "active"), numbers[0] if numbers else None)
        state = states[port] if port else None
        layer = self.text(f"{ports}/{port}/link_layer") if port else None
        interfaces = [n for n in self.names(f"sys/class/infiniband/{name}/device/net") if _NAME.fullmatch(n)]
        interfaces = [n for n in interfaces if self.stands_alone(n)]
        return Nic(
            name,
            speed_gbps=self.rate(f"{ports}/{port}/rate") if state == "active" else None,
            link_layer=layer if layer in ("InfiniBand", "Ethernet") else None,
            state=state,
            numa_node=device.numa_node,
            pci_bus_id=device.bus_id,
            interface=min(interfaces, key=_natural, default=None),
        )

    def ethernet_nic(self, name: str, device: PciDevice) -> Nic:
        path = f"sys/class/net/{name}"
        return Nic(
            name,
            speed_gbps=self.megabits(f"{path}/speed"),
            link_layer="Ethernet",
            state=self.word(f"{path}/operstate"),
            numa_node=device.numa_node,
            pci_bus_id=device.bus_id,
            interface=name if self.stands_alone(name) else None,
        )

    def stands_alone(self, interface: str) -> bool:
        """Whether no bond, bridge or VLAN is built upon it, which would have the address in its place."""
        return not any(
            name == "master" or name.startswith("upper_") for name in self.names(f"sys/class/net/{interface}")
        )

    def word(self, path: str) -> str | None:
        """'4: ACTIVE' -> 'active', 'up' -> 'up'."""
        match = re.fullmatch(r"(?:[0-9]+: *)?([A-Za-z_]{1,32})", self.text(path) or "", re.ASCII)
        return match[1].lower() if match else None

    def rate(self, path: str) -> float | None:
        """'400 Gb/sec (4X NDR)' -> 400.0, in 1e9 bits/s."""
        text = self.text(path)
        match = re.match(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *Gb/sec", text or "", re.ASCII)
        gbps = float(match[1]) if match else 0.0
        if text and (match is None or gbps > _MAX_NIC_GBPS):
            self.doubt(path, text)
        return gbps if 0 < gbps <= _MAX_NIC_GBPS else None

    def megabits(self, path: str) -> float | None:
        """sysfs gives 1e6 bits/s; -1 or an error where the link is down or virtual."""
        text = self.text(path)
        if text is None or text in ("-1", "0", "4294967295"):
            return None
        if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) and int(text) <= _MAX_NIC_GBPS * 1000:
            return int(text) / 1000
        self.doubt(path, text)
        return None

    def product(self) -> str | None:
        names = (self.text(f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name"))
        return one_line(" ".join(n for n in names if n), 80) or None

    def virtualization(self) -> str | None:
        """'vm' or 'bare'. On x86 the CPU's hypervisor flag decides, elsewhere only the firmware's name can say 'vm'."""
        flags = re.search(r"^flags\s*:(.*)$", self.text("proc/cpuinfo", 1 << 16) or "", re.MULTILINE)
        if flags:
            return "vm" if "hypervisor" in flags[1].split() else "bare"
        return "vm" if _HYPERVISORS.search(self.product() or "") else None


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts mlx5_2 before mlx5_10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(p), "") if p.isascii() and p.isdigit() else (1, 0, p) for p in parts)
