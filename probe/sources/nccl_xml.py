"""NCCL and RCCL topology XML (NCCL_TOPO_DUMP_FILE, and templates for NCCL_TOPO_FILE) -> Topology. Pure.

GPUs are numbered by `dev`, which NCCL takes from NVML, else by `rank`, else in PCI bus order, as NVML numbers them;
numbers with gaps (a job on some of the GPUs) close up, and a notice says so. What the files mean is NCCL's own
src/graph/xml.cc and topo.cc: a link to a switch (class 0x068000) joins GPUs that name the same switch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from probe.errors import SourceError, one_line
from probe.islands import partial_meshes
from probe.sources.nccl_elements import MAX_LINKS, GpuElement, HostElements, NetElement, read_hosts
from probe.sources.pci_tree import level, nearest
from probe.sources.xml import parse_xml
from probe.topology import (
    Gpu,
    GpuState,
    NetworkPath,
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

_CURE = "Give the file that NCCL writes with NCCL_TOPO_DUMP_FILE, or the output of `nvidia-smi topo -m`."
_PATHS = {kind: Path(kind) for kind in PathKind}
_E = TypeVar("_E", GpuElement, NetElement)


def looks_like_nccl(head: str) -> bool:
    """Whether a text that begins so is NCCL or RCCL topology XML."""
    return head.lstrip("\ufeff \t\r\n").startswith("<") and ("<system>" in head or "<system " in head)


def read_nccl(text: str, *, where: str) -> Topology:
    """One node per host of the file. A template of PCIe switches and NICs alone gives a node without GPUs.

    Raises SourceError where the XML is none of NCCL's, or tells neither a GPU nor a NIC.
    """
    root = parse_xml(text, where=where)
    if root.tag != "system":
        raise SourceError(f"{where} holds <{one_line(root.tag, 40)}>, not NCCL's <system>", cure=_CURE)
    try:
        hosts = [_Host(elements) for elements in read_hosts(root)]
        if not any(host.gpus or host.nets for host in hosts):
            raise SourceError(f"{where} names neither a GPU nor a NIC", cure=_CURE)
        return _topology(hosts)
    except ValueError as law:
        raise SourceError(f"{where}: {law}", cure=_CURE) from law


def _topology(hosts: Sequence[_Host]) -> Topology:
    shapes: dict[NodeShape, NodeShape] = {}
    nodes, warnings, origins = [], [], []
    for position, host in enumerate(hosts):
        shape = host.shape()
        nodes.append(
            Node(shapes.setdefault(shape, shape), tuple(GpuState(pci_bus_id=g.card.bus_id) for g in host.gpus))
        )
        warnings += [replace(w, node=position) for w in host.notices]
        origins += [Origin(fact, Provenance.READ, host.source, position) for fact in host.facts(shape)]
    network = (NetworkPath(PathKind.NET, tuple(range(len(nodes)))),) if len(nodes) > 1 else ()
    if network:
        what = f"the file tells {len(nodes)} hosts, as NCCL writes them for one NVLink domain, but not which domain"
        cure = "NET counts between them. Give each node's `nvidia-smi -q -x` as well."
        warnings.append(Notice("domain-unknown", f"{what}: {cure}"))
    return Topology(tuple(nodes), network, tuple(warnings), tuple(origins))


@dataclass(frozen=True, slots=True)
class _Wires:
    """The fast links of one GPU: counts by peer's bus id, and by switch."""

    peers: dict[str, tuple[PathKind, int]]
    switches: dict[str, int]

    @property
    def to_switches(self) -> int:
        return sum(self.switches.values())


class _Host:
    """One host's elements on their way to a Node; says in `notices` what a person should know."""

    def __init__(self, elements: HostElements) -> None:
        self.notices: list[Notice] = []
        # In a filled file a function without a <gpu> or <net> is one that the job did not use.
        gpus = self._unique(elements.gpus or elements.bare_gpus, lambda g: g.card.bus_id, "GPU")
        nets = self._unique(elements.nets or elements.bare_nets, lambda n: n.name and (n.name, n.port), "NIC")
        self.is_template = not any(g.is_filled or g.links for g in gpus)
        self.gpus = self._ordered(gpus)
        self.nets = nets
        self.wires = [_wires(g) for g in self.gpus]
        self.source = "NCCL topology template" if self.is_template else "NCCL topology dump"
        if any(link.kind is PathKind.XGMI for g in gpus for link in g.links):
            self.source = self.source.replace("NCCL", "RCCL")
        if elements.odd:
            self._say("odd-value", f"not believable, taken as unknown: {some(elements.odd)}")

    def _say(self, code: str, message: str) -> None:
        self.notices.append(Notice(code, message))

    def _unique(self, elements: Sequence[_E], key: Callable[[_E], object], noun: str) -> list[_E]:
        """Several elements of one device (ranks that share a GPU) are one device."""
        seen: dict[object, _E] = {}
        for element in elements:
            seen.setdefault(key(element) or id(element), element)
        if len(seen) < len(elements):
            self._say("doubled", f"{len(elements) - len(seen)} {noun} elements name a {noun} that is told already")
        return list(seen.values())

    def _ordered(self, gpus: list[GpuElement]) -> list[GpuElement]:
        for name in ("dev", "rank"):
            numbers = [getattr(g, name) for g in gpus]
            if gpus and None not in numbers and len(set(numbers)) == len(gpus):
                ordered = sorted(gpus, key=lambda g: int(getattr(g, name)))
                if name == "dev" and sorted(numbers) != list(range(len(gpus))):
                    what = f"the file tells NVML's GPUs {ranges(sorted(numbers))} only, here 0 to {len(gpus) - 1}"
                    self._say("gpus-renumbered", f"{what}: add the bus ids to be sure which GPU a plan means.")
                return ordered
        return sorted(gpus, key=lambda g: _bus_order(g.card.bus_id))

    def shape(self) -> NodeShape:
        nics = self._nics()
        rows = tuple(tuple(_PATHS[level(g.card.place, n.card.place)] for n in self.nets) for g in self.gpus)
        rows = rows if nics else ()
        gpus = tuple(self._gpu(i, nearest(nics, rows[i]) if rows else ()) for i in range(len(self.gpus)))
        shape = NodeShape(gpus, self._paths(), nics, rows, nvlink_visible=not self.is_template)
        self._say_what_is_odd(shape)
        return shape

    def facts(self, shape: NodeShape) -> list[str]:
        told = {
            "paths": len(shape.gpus) > 1,
            "nics": bool(shape.nics),
            "nic_paths": bool(shape.nic_paths),
            "gpus.numa_node": any(g.numa_node is not None for g in shape.gpus),
            "gpus.cpu_affinity": any(g.cpu_affinity for g in shape.gpus),
            "gpus.compute_capability": any(g.compute_capability for g in shape.gpus),
            "gpus.pcie": any(g.pcie for g in shape.gpus),
            "gpus.nvlinks_active": any(g.nvlinks_active is not None for g in shape.gpus),
            "gpus.pci_bus_id": any(g.card.bus_id for g in self.gpus),
        }
        return [fact for fact, is_told in told.items() if is_told]

    def _gpu(self, i: int, nics: tuple[str, ...]) -> Gpu:
        element, wires = self.gpus[i], self.wires[i]
        direct = sum(n for kind, n in wires.peers.values() if kind is PathKind.NVLINK)
        active = direct + wires.to_switches
        return Gpu(
            index=i,
            compute_capability=element.capability,
            numa_node=element.card.numa_node,
            cpu_affinity=element.card.cpus,
            pcie=element.card.port,
            nvlinks_active=active if 0 < active <= MAX_LINKS else None,
            nearest_nics=nics,
        )

    def _nics(self) -> tuple[Nic, ...]:
        names = Counter(net.name for net in self.nets)
        taken = {net.name for net in self.nets}
        nics = []
        for number, net in enumerate(self.nets):
            name = net.name
            if name is None or names[name] > 1:
                # Two ports of one device have one name; a name that is damaged gives way to a number.
                name = f"{name}:{net.port}" if name and net.port is not None else f"net{number}"
                while name in taken:
                    name += "'"
                taken.add(name)
            nics.append(
                Nic(
                    name,
                    speed_gbps=net.speed_gbps,
                    link_layer=net.link_layer,
                    numa_node=net.card.numa_node,
                    pci_bus_id=net.card.bus_id,
                )
            )
        return tuple(nics)

    def _paths(self) -> tuple[Path, ...]:
        paths = []
        for a in range(len(self.gpus)):
            for b in range(a + 1, len(self.gpus)):
                pcie = _PATHS[level(self.gpus[a].card.place, self.gpus[b].card.place)]
                readings = (self._fast(a, b) or pcie, self._fast(b, a) or pcie)
                path = max(readings, key=lambda p: p.slowness)
                texts = (_text(readings[0]), _text(readings[1]))
                paths.append(replace(path, asymmetric=texts) if texts[0] != texts[1] else path)
        return tuple(paths)

    def _fast(self, a: int, b: int) -> Path | None:
        """What GPU a's own links say of the way to b."""
        kind, links = self.wires[a].peers.get(self.gpus[b].card.bus_id or "", (None, 0))
        if kind is not None:
            return Path(kind, links if links <= MAX_LINKS else None, through=Through.DIRECT)
        first, second = self.wires[a].switches, self.wires[b].switches
        if common := first.keys() & second.keys():
            links = min(sum(first[s] for s in common), sum(second[s] for s in common))
            return Path(PathKind.NVLINK, links if links <= MAX_LINKS else None, through=Through.SWITCH)
        return None

    # --- what a person should know ---

    def _say_what_is_odd(self, shape: NodeShape) -> None:
        if not self.gpus:
            self._say("no-gpus", "the file names no GPU, only NICs: a template that NCCL fills where it runs")
        elif self.is_template:
            self._say("template", "this is a template: PCIe and NICs as its author gives them, not as a machine told")
            cure = "NVLink is unknown, not absent. Give the file of NCCL_TOPO_DUMP_FILE, or `nvidia-smi topo -m`."
            self._say("nvlink-not-visible", f"a template tells no NVLink: {cure}")
        self._say_of_links(shape)
        self._say_of_nics()
        if any(p.kind is PathKind.UNKNOWN for p in (*shape.paths, *(p for row in shape.nic_paths for p in row))):
            self._say("paths-unknown", "some devices hang on no CPU in the file: the paths between them are unknown")

    def _say_of_links(self, shape: NodeShape) -> None:
        selfish = [i for i, g in enumerate(self.gpus) if g.card.bus_id and g.card.bus_id in self.wires[i].peers]
        if selfish:
            self._say("link-to-itself", f"links of GPU {ranges(selfish)} lead to the GPU itself and are left out")
        unequal = [f"{a}-{b} ({p.asymmetric[0]}, {p.asymmetric[1]})" for a, b, p in shape.pairs if p.asymmetric]
        if unequal:
            what = f"the two GPUs of {count(len(unequal), 'pair')} tell their links differently: {some(unequal)}"
            self._say("asymmetric", f"{what}; the slower reading counts")
        switched = [i for i, wires in enumerate(self.wires) if wires.switches]
        apart = [f"{a}-{b}" for a, b, p in shape.pairs if {a, b} <= set(switched) and not p.is_fast]
        if apart:
            what = f"no NVSwitch is common to {some(apart)}: NVLink joins them only if trunks join their switches"
            self._say("split-island", f"{what}; PCIe counts. `nvidia-smi topo -m` tells.")
        most = max((self.wires[i].to_switches for i in switched), default=0)
        fewer = [i for i in range(len(self.gpus)) if most and self.wires[i].to_switches < most]
        if fewer:
            seen = ", ".join(f"GPU {i} has {self.wires[i].to_switches}" for i in fewer[:6])
            self._say("degraded-links", f"{seen} NVLinks to switches, its siblings {most}: a slower island")
        meshes = partial_meshes(shape)
        if meshes:
            shown = some(["-".join(map(str, clique)) for clique in meshes])
            self._say(
                "partial-mesh", f"links join GPUs that are not all pairwise linked; fully linked are only {shown}"
            )

    def _say_of_nics(self) -> None:
        virtual = [net.name or "?" for net in self.nets if net.is_virtual]
        if virtual:
            what = f"{count(len(virtual), 'network device')} without a card: {some(virtual)}"
            self._say("nics-virtual", f"{what}; NCCL puts such a device at the first CPU, so its paths mean little")
        staged = [net.name or "?" for net in self.nets if net.gdr is False and not net.is_virtual]
        if staged and self.gpus:
            what = f"no GPUDirect RDMA over {some(staged)}: traffic between nodes is copied through host memory"
            self._say("gdr-off", f"{what}. Load nvidia-peermem or use DMA-BUF.")


def _wires(gpu: GpuElement) -> _Wires:
    peers: dict[str, tuple[PathKind, int]] = {}
    switches: dict[str, int] = {}
    for link in gpu.links:
        if link.to_switch:
            switches[link.target] = switches.get(link.target, 0) + link.count
        elif link.kind is not None:
            peers[link.target] = (link.kind, peers.get(link.target, (link.kind, 0))[1] + link.count)
    return _Wires(peers, switches)


def _bus_order(bus_id: str | None) -> tuple[int, ...]:
    """NVML numbers GPUs in the order of domain, bus, device; those without a bus id come last."""
    return tuple(int(part, 16) for part in bus_id.replace(".", ":").split(":")) if bus_id else (1 << 32,)


def _text(path: Path) -> str:
    return f"{path.label} x{path.links}" if path.kind is PathKind.XGMI else path.label
