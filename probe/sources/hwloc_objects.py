"""The objects of an `lstopo` XML that matter here: PCI devices and where they hang, NUMA nodes, link matrices. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from probe.sources.pci_tree import cpulist, cpus_of_mask
from probe.sources.sysfs import PciDevice, normal_bus_id

MAX_MATRIX = 256
_MAX_MATRICES = 8
_MAX_VALUE = 1 << 40
_MAX_INDEX = 1 << 16
_PCI_TYPE = re.compile(r"([0-9a-f]{4})\s*(?:\([^()]{0,40}\)\s*)?\[([0-9a-f]{4}):([0-9a-f]{4})\]", re.ASCII)
_LINK_MATRICES = ("NVLinkBandwidth", "XGMIBandwidth", "XGMIHops")
# hwloc 1 and 2 number the kinds of an OS device (hwloc_obj_osdev_type_e), hwloc 3 has a bit for each.
_NETWORK, _RDMA = 2, 3
_NETWORK_BIT, _RDMA_BIT = 1 << 4, 1 << 5


@dataclass(frozen=True, slots=True)
class OsDevice:
    """What the operating system or a library calls a device: 'nvml0', 'cuda0', 'mlx5_0'. `infos` as hwloc found it."""

    name: str
    subtype: str
    is_network: bool
    is_rdma: bool
    infos: Mapping[str, str]
    key: str | None = None

    def number(self, prefix: str) -> int | None:
        """('nvml') of 'nvml3' -> 3."""
        match = re.fullmatch(prefix + r"([0-9]{1,4})", self.name, re.ASCII)
        return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class PciObject:
    """A PCI device; `place` knows its bus id ('' if the file's is none) and its route of bridges from the root."""

    place: PciDevice
    pci_class: int
    vendor: int
    infos: Mapping[str, str]
    os_devices: tuple[OsDevice, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Values between objects by their keys ('OSDev:12'); MB/s for a bandwidth, a count for hops."""

    name: str
    keys: tuple[str, ...]
    values: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        n = len(self.keys)
        return ((a, b, self.values[i * n + j]) for i, a in enumerate(self.keys) for j, b in enumerate(self.keys))


@dataclass(slots=True)
class Objects:
    """Everything of one file. `numa_nodes`: OS index -> CPUs, None where a node is memory alone (a GPU's, CXL)."""

    devices: list[PciObject] = field(default_factory=list)
    orphans: list[OsDevice] = field(default_factory=list)
    """GPU library devices that hang on no PCI device: lstopo saw no PCI."""
    numa_nodes: dict[int, str | None] = field(default_factory=dict)
    infos: dict[str, str] = field(default_factory=dict)
    matrices: list[Matrix] = field(default_factory=list)
    broken_matrices: list[str] = field(default_factory=list)
    switch_keys: set[str] = field(default_factory=set)
    is_bitwise: bool = False


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where an object stands: the bridges above it, and the sets that it or the nearest ancestor tells."""

    route: tuple[str, ...] = ()
    cpuset: str | None = None
    nodeset: str | None = None


def read_objects(root: Element) -> Objects:
    found = Objects(is_bitwise=(root.get("version") or "").startswith("3"))
    found.infos = _infos(root)
    for machine in root.findall("object"):
        found.infos.update(_infos(machine))
    found.numa_nodes = numa_nodes(root)
    _walk(root, _Spot(), found)
    seen = Counter(k for element in root.iter("object") if (k := _key(element)))
    for element in (*root.iter("distances2"), *root.iter("distances2hetero")):
        if element.get("name") in _LINK_MATRICES:
            matrix = _matrix(element) if len(found.matrices) < _MAX_MATRICES else None
            if matrix is None or any(seen[key] > 1 for key in matrix.keys):
                found.broken_matrices.append(str(element.get("name")))
            else:
                found.matrices.append(matrix)
    return found


def numa_nodes(root: Element) -> dict[int, str | None]:
    """OS index -> CPUs ('0-31') of every NUMA node; None for a node without CPUs."""
    told: dict[int, str | None] = {}
    for element in root.iter("object"):
        index = _natural(element.get("os_index"), _MAX_INDEX) if element.get("type") == "NUMANode" else None
        if index is not None:
            told[index] = cpulist(_bits(element.get("cpuset")) or ())
    return told


def _walk(element: Element, spot: _Spot, found: Objects) -> None:
    for child in element.findall("object"):
        kind = child.get("type")
        here = _Spot(spot.route, child.get("cpuset") or spot.cpuset, child.get("nodeset") or spot.nodeset)
        if kind == "Bridge":
            # A bridge has no identity that a file could not repeat: its place in the document is one.
            here = _Spot((*spot.route, f"bridge {id(child)}"), here.cpuset, here.nodeset)
            _note_switch(child, found)
        elif kind == "PCIDev":
            _note_switch(child, found)
            device = _pci_object(child, here, found)
            if device is not None:
                found.devices.append(device)
        elif kind == "OSDev":
            found.orphans.append(_os_device(child, found.is_bitwise))
        if kind != "PCIDev":
            _walk(child, here, found)


def _pci_object(element: Element, spot: _Spot, found: Objects) -> PciObject | None:
    match = _PCI_TYPE.match((element.get("pci_type") or "").lower())
    if match is None:
        return None
    os_elements = [e for e in element.iter("object") if e.get("type") == "OSDev"]
    bus_id = normal_bus_id(element.get("pci_busid")) or ""
    nodes = [n for n in _bits(spot.nodeset) or () if found.numa_nodes.get(n)]
    node = nodes[0] if len(nodes) == 1 else None
    return PciObject(
        place=PciDevice(
            bus_id,
            (*spot.route, f"device {id(element)}"),
            node,
            found.numa_nodes.get(node or 0) if node is not None else None,
        ),
        pci_class=int(match[1], 16),
        vendor=int(match[2], 16),
        infos=_infos(element),
        os_devices=tuple(_os_device(e, found.is_bitwise) for e in os_elements),
        keys=tuple(k for e in (element, *os_elements) if (k := _key(e))),
    )


def _note_switch(element: Element, found: Objects) -> None:
    key = _key(element)
    if key and element.get("subtype") == "NVSwitch":
        found.switch_keys.add(key)


def _os_device(element: Element, is_bitwise: bool) -> OsDevice:
    kind = _natural(element.get("osdev_type"), _MAX_INDEX)
    if is_bitwise:
        network, rdma = bool((kind or 0) & _NETWORK_BIT), bool((kind or 0) & _RDMA_BIT)
    else:
        network, rdma = kind == _NETWORK, kind == _RDMA
    infos = _infos(element)
    subtype = element.get("subtype") or infos.get("Backend") or infos.get("CoProcType") or ""
    return OsDevice(element.get("name") or "", subtype, network, rdma, infos, _key(element))


def _infos(element: Element) -> dict[str, str]:
    return {name: e.get("value") or "" for e in element.findall("info") if (name := e.get("name"))}


def _key(element: Element) -> str | None:
    """As a matrix refers to it: 'OSDev:12'. hwloc 1 has no such index."""
    index = _natural(element.get("gp_index"), 1 << 62)
    return f"{element.get('type')}:{index}" if index is not None else None


def _matrix(element: Element) -> Matrix | None:
    """None where the numbers do not make a square of known objects."""
    n = _natural(element.get("nbobjs"), MAX_MATRIX)
    keys = " ".join(e.text or "" for e in element.findall("indexes")).split()
    if element.tag == "distances2":
        keys = [f"{element.get('type')}:{k}" for k in keys] if element.get("indexing") == "gp" else []
    words = " ".join(e.text or "" for e in element.findall("u64values")).split()
    values = [_natural(word, _MAX_VALUE) for word in words]
    whole = [v for v in values if v is not None]
    if not n or len(keys) != n or len(set(keys)) != n or len(values) != n * n or len(whole) != n * n:
        return None
    return Matrix(str(element.get("name")), tuple(keys), tuple(whole))


def _bits(mask: str | None) -> tuple[int, ...] | None:
    """'0x0000ffff,,0x1' -> the bits that are set. An empty word is 0; an endless set ('0xf...f') is no answer."""
    return cpus_of_mask(",".join(word or "0" for word in mask.split(","))) if mask else None


def _natural(text: str | None, below: int) -> int | None:
    if text is None or not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        return None
    return int(text) if int(text) < below else None
