"""The elements of an NCCL or RCCL topology file, as records: cpu, pci, gpu, nvlink, xgmi, nic and net."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar
from xml.etree.ElementTree import Element

from probe.sources.pci_tree import Place, cpulist, cpus_of_mask, pcie_port
from probe.sources.sysfs import normal_bus_id
from probe.topology import PathKind, PcieLink

MAX_LINKS = 64
MAX_GPUS, MAX_NICS = 128, 256  # of one host
_MAX_CPUS = _MAX_GPUS_IN_ALL = 1024  # of all hosts together: an NVLink domain ends at 576 GPUs
_MAX_FUNCTIONS = 16_384  # PCI functions of all hosts together
_MAX_TARGETS = 256  # of the links of one GPU
_MAX_NUMBER = 1 << 20
_MAX_NUMA_NODE = 1 << 12
_MAX_NIC_GBPS = 6_400
"""Four bonded ports of 1.6 Tb/s (IEEE 802.3dj), the fastest that a card of any vendor announces."""
_NAME = re.compile(r"[A-Za-z0-9_.:@+-]{1,128}")  # '+' joins the names of NICs that NCCL merged
# PCI classes (PCI Code and ID Assignment Specification): 03 display controller, 12 processing accelerator, 02 network.
_GPU_CLASSES = ("0x03", "0x12")
_NIC_CLASS, _INFINIBAND_CLASS = "0x02", "0x0207"
_SWITCH_CLASS, _CPU_CLASS = "0x0680", "0x068001"
_NO_DEVICE = "fffffff"  # NCCL's word for a peer that a virtual machine does not show; it takes it for an NVSwitch


@dataclass(frozen=True, slots=True)
class Link:
    """NVLinks or xGMI links of one GPU to one target. `kind` None: the target is a CPU and joins no GPUs."""

    kind: PathKind | None
    target: str
    to_switch: bool
    count: int


@dataclass(frozen=True, slots=True)
class Card:
    """What stands on one PCI function: the place, bus id, NUMA node and CPUs that GPUs and NICs have alike."""

    place: Place
    bus_id: str | None
    pci_class: str
    numa_node: int | None
    cpus: str | None
    port: PcieLink | None


@dataclass(frozen=True, slots=True)
class GpuElement:
    """A GPU; a template gives only its card."""

    card: Card
    dev: int | None = None
    rank: int | None = None
    capability: tuple[int, int] | None = None
    is_filled: bool = False
    links: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True)
class NetElement:
    """A NIC port; a template gives only its card. `is_virtual`: a network device without a card."""

    card: Card
    name: str | None
    port: int | None = None
    speed_gbps: float | None = None
    gdr: bool | None = None
    is_virtual: bool = False

    @property
    def link_layer(self) -> str | None:
        if not self.card.pci_class.startswith(_NIC_CLASS):
            return None
        return "InfiniBand" if self.card.pci_class.startswith(_INFINIBAND_CLASS) else "Ethernet"


@dataclass(slots=True)
class HostElements:
    """What hangs below the CPUs of one host; `bare_*` are PCI functions of which only the class says what they are."""

    gpus: list[GpuElement] = field(default_factory=list)
    nets: list[NetElement] = field(default_factory=list)
    bare_gpus: list[GpuElement] = field(default_factory=list)
    bare_nets: list[NetElement] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


def read_hosts(system: Element) -> list[HostElements]:
    """One entry per host; a file of one NVLink domain may hold several, told apart by the CPUs' `host_hash`.

    Raises ValueError where a host has more GPUs, NICs or CPUs than any machine.
    """
    walk = _Walk()
    hashes = [element.get("host_hash") for element in system if element.tag == "cpu"]
    if len(hashes) > _MAX_CPUS:
        raise ValueError(f"{len(hashes):,} CPUs are more than any machine has")
    several = len({h for h in hashes if h}) > 1
    hosts: dict[str, HostElements] = {}
    cpus: dict[tuple[str, str], int] = {}
    for number, element in enumerate(system):
        key = (element.get("host_hash") or "") if several else ""
        if element.tag == "cpu":
            walk.host = hosts.setdefault(key, HostElements())
            # One NUMA node is one CPU, in how many elements ever it is told.
            numa = element.get("numaid") or f"element {number}"
            walk.cpu(element, cpus.setdefault((key, numa), len(cpus)))
        elif element.tag in ("pci", "nic", "net"):
            walk.host = hosts.setdefault(next(iter(hosts), key), HostElements())
            walk.children([element], Card(Place(None), None, "", None, None, None))
    total = sum(len(host.gpus) + len(host.bare_gpus) for host in hosts.values())
    if total > _MAX_GPUS_IN_ALL:
        raise ValueError(f"{total:,} GPUs are more than any NVLink domain has")
    return list(hosts.values())


_E = TypeVar("_E", GpuElement, NetElement)


def _add(elements: list[_E], element: _E, most: int) -> None:
    if len(elements) == most:
        raise ValueError(f"more than {most} {'GPUs' if isinstance(element, GpuElement) else 'NICs'} are no machine")
    elements.append(element)


class _Walk:
    """Goes down one tree; the host that it is in collects what it finds."""

    def __init__(self) -> None:
        self.host = HostElements()
        self._functions = 0

    def cpu(self, element: Element, number: int) -> None:
        mask = element.get("affinity")
        cpus = cpus_of_mask(mask)
        if mask and cpus is None:
            self._doubt("affinity", mask)
        numa = self._number(element, "numaid", _MAX_NUMA_NODE)
        # A node without CPUs (GPU memory on Grace) is no place to pin to.
        numa = None if cpus == () else numa
        self.children(list(element), Card(Place(number), None, "", numa, cpulist(cpus), None))

    def children(self, elements: list[Element], parent: Card) -> None:
        for element in elements:
            if element.tag == "pci":
                self._pci(element, parent)
            elif element.tag == "nic":
                self.children(list(element), parent)
            elif element.tag == "net":
                _add(self.host.nets, self._net(element, parent), MAX_NICS)

    def _pci(self, element: Element, parent: Card) -> None:
        self._functions += 1
        if self._functions > _MAX_FUNCTIONS:
            raise ValueError(f"more than {_MAX_FUNCTIONS:,} PCI functions are no machine")
        number = self._functions
        bus_id = normal_bus_id(element.get("busid"))
        if bus_id is None:
            self._doubt("busid", element.get("busid"))
        pci_class = (element.get("class") or "").lower()[:16]
        port = pcie_port(element.get("link_speed"), element.get("link_width"))
        card = Card(parent.place, bus_id, pci_class, parent.numa_node, parent.cpus, port)
        inside = list(element)
        for gpu in (e for e in inside if e.tag == "gpu"):
            _add(self.host.gpus, self._gpu(gpu, card), MAX_GPUS)
        if not any(e.tag in ("gpu", "nic", "net", "pci") for e in inside):
            if pci_class.startswith(_GPU_CLASSES):
                _add(self.host.bare_gpus, GpuElement(card), MAX_GPUS)
            elif pci_class.startswith(_NIC_CLASS):
                _add(self.host.bare_nets, NetElement(card, bus_id), MAX_NICS)
        self.children([e for e in inside if e.tag != "pci"], card)
        place = Place(parent.place.cpu, (*parent.place.bridges, number))
        below = Card(place, bus_id, pci_class, parent.numa_node, parent.cpus, None)
        self.children([e for e in inside if e.tag == "pci"], below)

    def _gpu(self, element: Element, card: Card) -> GpuElement:
        sm = self._number(element, "sm", 10_000)
        # RCCL writes a GPU's compute units there.
        is_amd = element.get("gcn") is not None
        return GpuElement(
            card,
            dev=self._number(element, "dev"),
            rank=self._number(element, "rank"),
            capability=divmod(sm, 10) if sm and sm < 1000 and not is_amd else None,
            is_filled=element.get("sm") is not None,
            links=tuple(self._links(element)),
        )

    def _links(self, gpu: Element) -> Iterator[Link]:
        if len(gpu) > _MAX_TARGETS:
            raise ValueError(f"a GPU with links to {len(gpu):,} targets is no GPU")
        for element in gpu:
            if element.tag not in ("nvlink", "xgmi"):
                continue
            target = (element.get("target") or "").strip().lower()[:64]
            count = self._number(element, "count", MAX_LINKS + 1)
            if not target or not count:
                self._doubt(f"{element.tag} target or count", f"{target} x {element.get('count')}")
                continue
            tclass = (element.get("tclass") or "").lower()[:16]
            known = normal_bus_id(target)
            if tclass.startswith(_CPU_CLASS):
                yield Link(None, target, False, count)
            elif tclass.startswith(_SWITCH_CLASS) or (not tclass and (known is None or target.startswith(_NO_DEVICE))):
                yield Link(PathKind.NVLINK, known or target, True, count)
            elif known is not None and (not tclass or tclass.startswith(_GPU_CLASSES)):
                yield Link(PathKind.XGMI if element.tag == "xgmi" else PathKind.NVLINK, known, False, count)
            else:
                self._doubt(f"{element.tag} target", f"{target} of class {tclass}")

    def _net(self, element: Element, card: Card) -> NetElement:
        name = element.get("name")
        if name is None or not _NAME.fullmatch(name):
            self._doubt("net name", name)
            name = None
        gdr = element.get("gdr")
        return NetElement(
            card,
            name,
            port=self._number(element, "port"),
            speed_gbps=self._speed(element, name),
            gdr=gdr == "1" if gdr in ("0", "1") else None,
            is_virtual=card.bus_id is None and not card.pci_class,
        )

    def _speed(self, element: Element, name: str | None) -> float | None:
        """NCCL writes 1e6 bits/s."""
        text = element.get("speed")
        match = re.fullmatch(r"[0-9]{1,12}", text or "", re.ASCII)
        gbps = int(match[0]) / 1000 if match else 0.0
        if text is not None and not 0 < gbps <= _MAX_NIC_GBPS:
            self._doubt(f"speed of {name}", f"{text} Mb/s")
            return None
        return gbps or None

    def _number(self, element: Element, attribute: str, limit: int = _MAX_NUMBER) -> int | None:
        """-1 is NCCL's word for unknown."""
        text = element.get(attribute)
        if text is None or text == "-1":
            return None
        if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) and int(text) < limit:
            return int(text)
        self._doubt(attribute, text)
        return None

    def _doubt(self, what: str, seen: str | None) -> None:
        if len(self.host.odd) < 64:
            self.host.odd.append(f"{what} {(seen or 'nothing')[:40]!r}")
