"""`lstopo` XML (hwloc 1, 2 and 3) -> Topology: PCIe levels from its bridges, NVLink and xGMI from its matrices.

GPUs are numbered as NVML or ROCm SMI numbers them where lstopo was built with them ('nvml0', 'rsmi0'), else in the
order of their PCI bus ids, which is NVML's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from probe.catalog import gpu_figures
from probe.errors import SourceError, one_line
from probe.islands import partial_meshes
from probe.sources.host import pci_path_kind
from probe.sources.hwloc_objects import Matrix, Objects, OsDevice, PciObject, read_objects
from probe.sources.pci_tree import nearest
from probe.sources.sysfs import PciDevice
from probe.sources.xml import parse_xml
from probe.topology import (
    Gpu,
    GpuState,
    Nic,
    Node,
    NodeShape,
    Notice,
    Origin,
    Path,
    PathKind,
    Provenance,
    Through,
    Topology,
)
from probe.units import count, ranges, some

MAX_GPUS = 128
MAX_NICS = 256
_CURE = "Run `lstopo machine.xml` on the machine and give that file, or the output of `nvidia-smi topo -m`."
_NVIDIA, _AMD = 0x10DE, 0x1002
# PCI classes (PCI Code and ID Assignment Specification): 0300 VGA, 0302 3D, 0380 other display, 1200 accelerator.
_VGA = 0x0300
_GPU_CLASSES = {_NVIDIA: (0x0300, 0x0302), _AMD: (0x0300, 0x0302, 0x0380, 0x1200)}
_GPU_LIBRARIES = ("NVML", "RSMI", "CUDA", "OpenCL")
_MEMORY_KIB = ("RSMIVRAMSize", "CUDAGlobalMemorySize", "OpenCLGlobalMemorySize")
_NETWORK_CLASSES, _WIRELESS, _INFINIBAND = 0x02, 0x0280, 0x0207
_MB_S_PER_LINK = {1.0: 20_000, 2.0: 25_000, 2.2: 50_000, 3.0: 50_000}
"""What hwloc adds to an NVLinkBandwidth for one link of this version (hwloc, topology-nvml.c)."""
_PORT_STATES = {"1": "down", "2": "init", "3": "armed", "4": "active"}  # enum ibv_port_state, less one that hwloc keeps


def looks_like_hwloc(head: str) -> bool:
    """Whether a text that begins so is lstopo's XML."""
    return head.lstrip("\ufeff \t\r\n").startswith("<") and bool(re.search(r"<(?:!DOCTYPE )?topology[\s>]", head))


def read_hwloc(text: str, *, where: str) -> Topology:
    """One node. A machine on which lstopo saw no GPU gives a node without GPUs and says so.

    Raises SourceError where the XML is none of lstopo's, or tells more devices than any machine has.
    """
    if not text.lstrip("\ufeff \t\r\n").startswith("<"):
        raise SourceError(f"{where} is no XML (lstopo's text for the console leaves too much out)", cure=_CURE)
    root = parse_xml(text, where=where)
    if root.tag != "topology" or root.find("object") is None:
        raise SourceError(f"{where} holds <{one_line(root.tag, 40)}>, not lstopo's <topology>", cure=_CURE)
    try:
        return _Reading(read_objects(root)).topology()
    except ValueError as law:
        raise SourceError(f"{where}: {law}", cure=_CURE) from law


class _Reading:
    """One file's objects on their way to a Topology; says in `notices` what a person should know."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.notices: list[Notice] = []
        devices = self._unique(d for d in objects.devices if _is_gpu(d))
        self.gpus = self._numbered(devices)
        self.orphans = [] if devices else _orphans(objects.orphans)
        self.count = len(self.gpus) or len(self.orphans)
        if self.count > MAX_GPUS:
            raise ValueError(f"{self.count} GPUs are more than any machine has")
        keys = [d.keys for d in self.gpus] or [(o.key,) if o.key else () for o in self.orphans]
        self.gpu_of = {key: i for i, own in enumerate(keys) for key in own}
        self.names = [_name(d.os_devices, d) for d in self.gpus] or [_name((o,), None) for o in self.orphans]

    def topology(self) -> Topology:
        nics, cards = self._nics()
        pcie = [self._kind(a.place, b.place) for i, a in enumerate(self.gpus) for b in self.gpus[i + 1 :]]
        pcie = pcie or [PathKind.UNKNOWN] * (self.count * (self.count - 1) // 2)
        rows = tuple(tuple(Path(self._kind(g.place, card)) for card in cards) for g in self.gpus)
        if self.orphans and nics:
            rows = tuple(tuple(Path(PathKind.UNKNOWN) for _ in nics) for _ in self.orphans)
        paths, nvlink_visible = self._fast_paths([Path(kind) for kind in pcie])
        gpus = tuple(self._gpu(i, nics, rows[i] if rows else ()) for i in range(self.count))
        numa_nodes = len(self.objects.numa_nodes) or None
        shape = NodeShape(gpus, paths, nics, rows if nics else (), nvlink_visible, numa_nodes)
        states = self._states()
        hostname = one_line(self.objects.infos.get("HostName", ""), 253) or None
        self._say_what_is_odd(shape)
        facts = {
            "gpus": bool(gpus),
            "paths": len(gpus) > 1,
            "nics": bool(nics),
            "nic_paths": bool(nics and gpus),
            "gpus.name": any(g.name for g in gpus),
            "gpus.memory_bytes": any(g.memory_bytes for g in gpus),
            "gpus.numa_node": any(g.numa_node is not None for g in gpus),
            "hostname": hostname is not None,
        }
        origins = [Origin(fact, Provenance.READ, "lstopo XML", 0) for fact, there in facts.items() if there]
        return Topology((Node(shape, states, hostname),), warnings=tuple(self.notices), provenance=tuple(origins))

    def _say(self, code: str, message: str) -> None:
        self.notices.append(Notice(code, message, 0))

    # --- which GPUs ---

    def _unique(self, devices: Iterable[PciObject]) -> list[PciObject]:
        found: list[PciObject] = []
        seen: set[str] = set()
        for device in devices:
            if device.place.bus_id and device.place.bus_id in seen:
                self._say("bus-id-doubled", f"two GPUs have the PCI bus id {device.place.bus_id}: the first counts")
                continue
            seen.add(device.place.bus_id)
            found.append(device)
        return found

    def _numbered(self, devices: list[PciObject]) -> list[PciObject]:
        for prefix in ("nvml", "rsmi"):
            numbers = [[n for o in d.os_devices if (n := o.number(prefix)) is not None] for d in devices]
            if sorted(n for own in numbers for n in own) == list(range(len(devices))) and all(numbers):
                return [d for _, d in sorted(zip(numbers, devices, strict=True), key=lambda pair: pair[0])]
        return sorted(devices, key=lambda d: _bus_order(d.place.bus_id))

    # --- paths ---

    def _kind(self, a: PciDevice, b: PciDevice) -> PathKind:
        nodes = sum(1 for cpus in self.objects.numa_nodes.values() if cpus) or 1
        if len(a.route) == 1 or len(b.route) == 1:  # lstopo was told to leave bridges out
            differ = None not in (a.numa_node, b.numa_node) and a.numa_node != b.numa_node
            return PathKind.SYS if differ else PathKind.UNKNOWN
        return pci_path_kind(a, b, nodes)

    def _fast_paths(self, pcie: Sequence[Path]) -> tuple[tuple[Path, ...], bool]:
        """The PCIe paths with NVLink and xGMI over them, and whether those could be seen at all."""
        for name in self.objects.broken_matrices:
            self._say("matrix-unreadable", f"the {name} matrix is damaged and left out")
        nvlink = [m for m in self.objects.matrices if m.name == "NVLinkBandwidth"]
        xgmi = [m for m in self.objects.matrices if m.name.startswith("XGMI")]
        bandwidth = self._readings(nvlink)
        joined = {pair for pair, value in self._readings(xgmi).items() if value} | self._xgmi_peers()
        through = self._to_switches(nvlink)
        paths, unequal, uncounted, pair = [], [], False, -1
        for a in range(self.count):
            for b in range(a + 1, self.count):
                pair += 1
                forth, back = (self._fast(x, y, bandwidth, joined, through) or pcie[pair] for x, y in ((a, b), (b, a)))
                path = max(forth, back, key=lambda p: p.slowness)
                if forth != back:
                    unequal.append(f"{a}-{b} ({forth.label}, {back.label})")
                    if forth.label != back.label:
                        path = Path(path.kind, path.links, None, path.through, None, (forth.label, back.label))
                uncounted |= path.kind is PathKind.NVLINK and path.links is None
                paths.append(path)
        if unequal:
            self._say("asymmetric", f"the two directions of {some(unequal)} differ; the slower reading counts")
        if uncounted:
            what = "the NVLink matrix tells a bandwidth, and the model does not tell how many links that is"
            self._say("link-count-unknown", f"{what}: add `nvidia-smi topo -m`")
        visible = self._sees_fast_links(bandwidth)
        if self.count > 1 and not visible:
            what = "lstopo told no NVLink or xGMI matrix (built without NVML or ROCm SMI, or older than these GPUs)"
            self._say("nvlink-not-visible", f"{what}: such links are unknown, not absent; add `nvidia-smi topo -m`")
        unknown = sum(p.kind is PathKind.UNKNOWN for p in paths)
        if unknown:
            what = f"{count(unknown, 'GPU pair')} without a path, since lstopo told no PCI bridges or no NUMA node"
            self._say("paths-unknown", f"{what}: run it with `--whole-io`, or add `nvidia-smi topo -m`")
        if any(p.through is Through.SWITCH for p in paths):
            what = "NVLink through NVSwitch follows from active links, and lstopo does not tell the fabric's state"
            self._say("fabric-unknown", f"{what}: check `nvidia-smi -q | grep -A3 Fabric`")
        return tuple(paths), visible

    def _readings(self, matrices: Iterable[Matrix]) -> dict[tuple[int, int], int]:
        told: dict[tuple[int, int], int] = {}
        for matrix in matrices:
            for a, b, value in matrix:
                pair = self.gpu_of.get(a, -1), self.gpu_of.get(b, -1)
                if -1 not in pair and pair[0] != pair[1]:
                    told[pair] = max(told.get(pair, 0), value)
        return told

    def _to_switches(self, matrices: Iterable[Matrix]) -> dict[int, int]:
        """GPU -> MB/s to all ports of NVSwitches together, as hwloc's own transformation adds them up."""
        told: Counter[int] = Counter()
        for matrix in matrices:
            for a, b, value in matrix:
                if a in self.gpu_of and b in self.objects.switch_keys:
                    told[self.gpu_of[a]] += value
        return told

    def _xgmi_peers(self) -> set[tuple[int, int]]:
        number = {o.name: i for i, d in enumerate(self.gpus) for o in d.os_devices}
        peers = {
            (i, number[peer])
            for i, d in enumerate(self.gpus)
            for o in d.os_devices
            for peer in o.infos.get("XGMIPeers", "")[:4096].split()
            if peer in number
        }
        return {(a, b) for a, b in peers if a != b}

    def _fast(
        self,
        a: int,
        b: int,
        bandwidth: dict[tuple[int, int], int],
        joined: set[tuple[int, int]],
        through: dict[int, int],
    ) -> Path | None:
        if (a, b) in joined:
            return Path(PathKind.XGMI)
        if direct := bandwidth.get((a, b)):
            return Path(PathKind.NVLINK, self._links(a, direct), None, Through.DIRECT)
        if through.get(a) and through.get(b):
            both = [self._links(g, through[g]) for g in (a, b)]
            links = min(n for n in both if n) if all(both) else None
            return Path(PathKind.NVLINK, links, None, Through.SWITCH)
        return None

    def _links(self, gpu: int, mb_s: int) -> int | None:
        """How many links make this bandwidth; None where the GPU's NVLink version is not known or does not fit."""
        figures = gpu_figures(self.names[gpu])
        per_link = _MB_S_PER_LINK.get(figures.nvlink_version or 0.0) if figures else None
        links = mb_s // per_link if per_link and mb_s % per_link == 0 else 0
        return links if figures and 1 <= links <= (figures.nvlinks or 0) else None

    def _sees_fast_links(self, bandwidth: dict[tuple[int, int], int]) -> bool:
        matrix = {self.gpu_of[k] for m in self.objects.matrices for k in m.keys if k in self.gpu_of}
        by_rocm = {i for i, d in enumerate(self.gpus) if any(o.number("rsmi") is not None for o in d.os_devices)}
        return matrix | by_rocm >= set(range(self.count))

    # --- NICs ---

    def _nics(self) -> tuple[tuple[Nic, ...], list[PciDevice]]:
        """One per RDMA device, else one per network card; Wi-Fi and what hangs on USB are no wires between GPUs."""
        nics: dict[str, Nic] = {}
        places: dict[str, PciDevice] = {}
        for device in self.objects.devices:
            rdma = [o for o in device.os_devices if o.is_rdma]
            network = [o for o in device.os_devices if o.is_network]
            is_card = device.pci_class >> 8 == _NETWORK_CLASSES and device.pci_class != _WIRELESS
            for own in rdma or (network[:1] if is_card else []):
                name = one_line(own.name, 64)
                if not name or name in nics:
                    self._say("nic-ignored", f"a NIC named {name!r} is nameless or named twice, and left out")
                    continue
                layer = "InfiniBand" if device.pci_class == _INFINIBAND else None if rdma else "Ethernet"
                nics[name] = Nic(
                    name,
                    link_layer=layer,
                    state=_PORT_STATES.get(own.infos.get("Port1State", "")),
                    numa_node=device.place.numa_node,
                    pci_bus_id=device.place.bus_id or None,
                    interface=one_line(network[0].name, 64) or None if network else None,
                )
                places[name] = device.place
        if len(nics) > MAX_NICS:
            raise ValueError(f"{len(nics)} NICs are more than any machine has")
        ordered = sorted(nics, key=lambda name: (_bus_order(places[name].bus_id), name))
        return tuple(nics[name] for name in ordered), [places[name] for name in ordered]

    # --- GPUs ---

    def _gpu(self, i: int, nics: Sequence[Nic], row: Sequence[Path]) -> Gpu:
        place = self.gpus[i].place if self.gpus else None
        return Gpu(
            i,
            self.names[i],
            memory_bytes=_memory(self.gpus[i].os_devices if self.gpus else (self.orphans[i],)),
            numa_node=place.numa_node if place else None,
            cpu_affinity=place.cpus if place else None,
            nearest_nics=nearest(nics, row),
        )

    def _states(self) -> tuple[GpuState, ...]:
        os_devices = [d.os_devices for d in self.gpus] or [(o,) for o in self.orphans]
        uuids = [_info(own, "NVIDIAUUID") or _info(own, "AMDUUID") for own in os_devices]
        known = Counter(uuids)
        if any(uuid and n > 1 for uuid, n in known.items()):
            self._say("uuid-doubled", "GPUs share a UUID, which cannot be: those UUIDs are left out")
        return tuple(
            GpuState(
                uuid=uuid if uuid and known[uuid] == 1 else None,
                pci_bus_id=(self.gpus[i].place.bus_id or None) if self.gpus else None,
                serial=_info(own, "NVIDIASerial") or _info(own, "AMDSerial"),
            )
            for i, (uuid, own) in enumerate(zip(uuids, os_devices, strict=True))
        )

    def _say_what_is_odd(self, shape: NodeShape) -> None:
        if not shape.gpus:
            product = one_line(self.objects.infos.get("DMIProductName", ""), 60) or "this machine"
            what = f"lstopo saw no GPU on {product}, neither as a PCI device nor through a driver's library"
            self._say("no-gpus", f"{what}; a GPU of a system on a chip is no PCI device: add `nvidia-smi -q -x`")
        untold = [g.index for g in shape.gpus if g.name is None]
        if untold:
            self._say("names-unknown", f"the file does not tell the model of GPU {ranges(untold)}: say --gpu-model")
        sliced = [i for i, d in enumerate(self.gpus) if sum(o.number("rsmi") is not None for o in d.os_devices) > 1]
        if sliced:
            what = f"GPU {ranges(sliced)} is partitioned into several devices"
            self._say("partitioned", f"{what}, and counts as one: give `rocm-smi --showtopo` to plan on the parts")
        meshes = partial_meshes(shape)
        if meshes:
            shown = some(["-".join(map(str, c)) for c in meshes])
            self._say("partial-mesh", f"fast links join GPUs that are not all pairwise linked; fully linked: {shown}")


def _is_gpu(device: PciObject) -> bool:
    if device.pci_class not in _GPU_CLASSES.get(device.vendor, ()):
        return False
    # Servers carry an old ATI VGA chip for the console; it computes nothing, so no library knows it.
    plain_vga = device.vendor == _AMD and device.pci_class == _VGA
    return not plain_vga or any(o.subtype in _GPU_LIBRARIES for o in device.os_devices)


def _orphans(os_devices: Sequence[OsDevice]) -> list[OsDevice]:
    """GPUs that a driver's library told although lstopo saw no PCI, each once."""
    for prefix in ("nvml", "rsmi", "cuda"):
        numbered = {n: o for o in os_devices if (n := o.number(prefix)) is not None}
        if numbered:
            return [o for _, o in sorted(numbered.items())]
    return []


def _bus_order(bus_id: str) -> tuple[int, ...]:
    return tuple(int(part, 16) for part in re.split("[:.]", bus_id)) if bus_id else (1 << 40,)


def _info(os_devices: Iterable[OsDevice], name: str) -> str | None:
    return next((text for o in os_devices if (text := one_line(o.infos.get(name, ""), 80))), None)


def _name(os_devices: Sequence[OsDevice], device: PciObject | None) -> str | None:
    """As the driver calls it, else as the PCI database does: 'GA102GL [A10G]' -> 'NVIDIA A10G'."""
    by_library: Callable[[OsDevice], int] = lambda o: (  # noqa: E731
        _GPU_LIBRARIES.index(o.subtype) if o.subtype in _GPU_LIBRARIES else len(_GPU_LIBRARIES)
    )
    told = _info(sorted(os_devices, key=by_library), "GPUModel")
    if told or device is None:
        return told
    bracket = re.search(r"\[([^\[\]]{2,60})\]", device.infos.get("PCIDevice", "")[:200])
    vendor = "NVIDIA" if device.vendor == _NVIDIA else "AMD"
    return one_line(f"{vendor} {bracket[1]}", 80) if bracket else None


def _memory(os_devices: Sequence[OsDevice]) -> int | None:
    """Bytes; hwloc 1 and 2 write KiB without a unit, hwloc 3 with it."""
    for name in _MEMORY_KIB:
        told = {o.infos[name] for o in os_devices if name in o.infos}
        match = re.fullmatch(r"([0-9]{1,12})(?:KiB)?", told.pop(), re.ASCII) if len(told) == 1 else None
        if match and 0 < int(match[1]) < 1 << 40:
            return int(match[1]) << 10
    return None
