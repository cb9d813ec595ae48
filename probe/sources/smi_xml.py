"""`nvidia-smi -q -x` -> Topology: what each GPU is, but not the wires between GPUs. Pure.

GPUs are numbered as the file lists them, which is NVML's order; `-q -x` of some GPUs only (`-i`) closes the gaps, and
a notice says so. No version of this XML tells the path between two GPUs, so a path is UNKNOWN, with one exception:
GPUs that joined the same multi-node NVLink domain. A clique id is the id of a *unicast pointer* clique, of GPUs that
reach each other's memory over the fabric (nvml.h, nvmlGpuFabricInfo_v4_t; NCCL joins nodes on the same test), so
these are NVLink through a switch, of an untold number of links. A completed registration alone, with a zero cluster
UUID (HGX), says no such thing: a partition or a virtual machine may split the GPUs behind the switches.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from probe.errors import SourceError, one_line
from probe.fabric_health import health_problems
from probe.sources.smi_fabric import read_fabric
from probe.sources.sysfs import normal_bus_id
from probe.sources.xml import parse_xml
from probe.topology import (
    Gpu,
    GpuState,
    GpuStatus,
    MigInstance,
    Node,
    NodeShape,
    Notice,
    Origin,
    Path,
    PathKind,
    PcieLink,
    Provenance,
    Through,
    Topology,
)
from probe.units import count, ranges, some

MAX_GPUS = 128
_MAX_MIG_INSTANCES = 64
_CURE = "Give the whole output of `nvidia-smi -q -x`, or that of `nvidia-smi topo -m`."
_UNTOLD = re.compile(
    r"|none|err!|unknown( error)?|\[?(n/?a|not (supported|found|available|active))\]?|insufficient permissions?"
    r"|requested functionality.*|function not found|timeout",
    re.IGNORECASE,
)
_BROKEN = re.compile(r"\[?gpu.{0,60}(lost|fallen off|requires? (a )?reset).*", re.IGNORECASE)
_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_VERSION = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,4}){1,3}")
_MEMORY = re.compile(r"[0-9]{1,8} MiB")
_VIRTUALIZATION = {
    "None": "bare",
    "Pass-Through": "passthrough",
    "VGPU": "vgpu",
    "Host VGPU": "host-vgpu",
    "Host VSGA": "host-vsga",
}


def looks_like_smi(head: str) -> bool:
    """Whether a text that begins so is `nvidia-smi -q -x`."""
    return head.lstrip("\ufeff \t\r\n").startswith("<") and "nvidia_smi_log" in head


def read_smi(text: str, *, where: str) -> Topology:
    """One machine from the XML of `nvidia-smi -q -x`. Raises SourceError where it is none, or lists no GPU."""
    root = parse_xml(text, where=where)
    if root.tag != "nvidia_smi_log":
        raise SourceError(f"{where} holds <{one_line(root.tag, 40)}>, not <nvidia_smi_log>", cure=_CURE)
    gpus = root.findall("gpu")
    if not gpus:
        raise SourceError(f"{where} lists no GPU", cure="Run `nvidia-smi -q -x` where the driver sees its GPUs.")
    if len(gpus) > MAX_GPUS:
        raise SourceError(f"{where}: {len(gpus):,} GPUs are more than any machine has", cure=_CURE)
    try:
        return _Reading(root, gpus).topology()
    except ValueError as law:
        raise SourceError(f"{where}: {law}", cure=_CURE) from law


class _Reading:
    """One log on its way to a Topology."""

    def __init__(self, root: Element, elements: Sequence[Element]) -> None:
        self.root = root
        self.elements = elements
        self.notices: list[Notice] = []
        self.odd: list[str] = []

    def topology(self) -> Topology:
        gpus = tuple(self._gpu(i, element) for i, element in enumerate(self.elements))
        states = self._states()
        paths = tuple(_path(a, b) for i, a in enumerate(states) for b in states[i + 1 :])
        all_known = all(p.kind is not PathKind.UNKNOWN for p in paths)
        node = Node(
            NodeShape(gpus, paths, nvlink_visible=all_known),
            states,
            driver_version=self._version("driver_version"),
            cuda_version=self._version("cuda_version"),
            virtualization=self._virtualization(),
        )
        self._say_what_is_odd(node)
        source = f"nvidia-smi -q -x, driver {node.driver_version or 'unknown'}"
        told = {
            "gpus.name": any(g.name for g in gpus),
            "gpus.memory_bytes": any(g.memory_bytes for g in gpus),
            "gpus.pcie": any(g.pcie for g in gpus),
            "gpus.uuid": any(s.uuid for s in states),
            "gpus.pci_bus_id": any(s.pci_bus_id for s in states),
            "gpus.fabric": any(s.fabric for s in states),
            "gpus.mig_instances": any(s.mig_instances for s in states),
            "paths": any(p.is_fast for p in paths),
            "driver_version": bool(node.driver_version),
            "cuda_version": bool(node.cuda_version),
            "virtualization": bool(node.virtualization),
        }
        origins = tuple(Origin(fact, Provenance.READ, source, 0) for fact, is_told in told.items() if is_told)
        return Topology((node,), warnings=tuple(self.notices), provenance=origins)

    def _say(self, code: str, message: str) -> None:
        self.notices.append(Notice(code, message, 0))

    def _gpu(self, i: int, element: Element) -> Gpu:
        return Gpu(
            index=i,
            name=_text(element, "product_name"),
            memory_bytes=self._memory(element, "total") or None,
            pcie=self._pcie(element),
        )

    def _states(self) -> tuple[GpuState, ...]:
        uuids = [self._matched(e, "uuid", _UUID) for e in self.elements]
        serials = [_text(e, "serial") for e in self.elements]
        buses = [normal_bus_id(_text(e, "pci/pci_bus_id") or e.get("id")) for e in self.elements]
        for noun, values in (("UUID", uuids), ("bus id", buses)):
            doubled = {v for v, n in Counter(v for v in values if v).items() if n > 1}
            if doubled:
                shared = ranges([i for i, v in enumerate(values) if v in doubled])
                self._say("doubled", f"GPUs {shared} share a {noun}: it is taken as unknown")
                values[:] = [None if v in doubled else v for v in values]
        states = []
        for i, element in enumerate(self.elements):
            mig = self._mig_instances(element)
            status, reason = _status(element, mig)
            states.append(
                GpuState(
                    uuid=uuids[i],
                    pci_bus_id=buses[i],
                    serial=serials[i],
                    memory_free_bytes=self._memory(element, "free"),
                    status=status,
                    status_reason=reason,
                    mig_instances=mig,
                    fabric=read_fabric(_texts(element, "fabric"), _texts(element, "fabric/health")),
                )
            )
        return tuple(states)

    def _mig_instances(self, element: Element) -> tuple[MigInstance, ...]:
        """Empty where MIG is off, whatever is listed."""
        listed = element.findall("mig_devices/mig_device") if _in_mig_mode(element) else []
        if len(listed) > _MAX_MIG_INSTANCES:
            raise ValueError(f"{len(listed):,} MIG instances are more than any GPU has")
        # This XML names neither the UUID nor the profile of an instance.
        return tuple(
            MigInstance(self._matched(e, "uuid", _UUID), memory_bytes=self._memory(e, "total") or None) for e in listed
        )

    def _memory(self, element: Element, which: str) -> int | None:
        match = self._matched(element, f"fb_memory_usage/{which}", _MEMORY)
        return int(match.split()[0]) << 20 if match else None

    def _pcie(self, element: Element) -> PcieLink | None:
        info = "pci/pci_gpu_link_info"
        fields = ("pcie_gen/current_link_gen", "pcie_gen/max_link_gen")
        generation, generation_max = (self._small(element, f"{info}/{f}", r"[1-9]") for f in fields)
        fields = ("link_widths/current_link_width", "link_widths/max_link_width")
        width, width_max = (self._small(element, f"{info}/{f}", r"(?:1|2|4|8|12|16|32)x") for f in fields)
        link = PcieLink(generation, generation_max, width, width_max)
        # GB10 hangs on C2C and reports a Gen1 x1 port that does not exist; no GPU was ever built with one.
        invented = (generation_max or generation) == 1 and (width_max or width) == 1
        return None if invented or link == PcieLink() else link

    def _small(self, element: Element, path: str, pattern: str) -> int | None:
        text = self._matched(element, path, re.compile(pattern))
        return int(text.removesuffix("x")) if text else None

    def _matched(self, element: Element, path: str, pattern: re.Pattern[str]) -> str | None:
        text = _text(element, path)
        if text is None or pattern.fullmatch(text):
            return text
        if len(self.odd) < 64:
            self.odd.append(f"{path.rpartition('/')[2]} {text[:40]!r}")
        return None

    def _version(self, tag: str) -> str | None:
        return self._matched(self.root, tag, _VERSION)

    def _virtualization(self) -> str | None:
        """The least bare of what the GPUs say."""
        modes = list(_VIRTUALIZATION)
        texts = (_raw(e, "gpu_virtualization_mode/virtualization_mode") for e in self.elements)
        told = [modes.index(t) for t in texts if t in _VIRTUALIZATION]
        return _VIRTUALIZATION[modes[max(told)]] if told else None

    # --- what a person should know ---

    def _say_what_is_odd(self, node: Node) -> None:
        self._say_of_gpus(node)
        self._say_of_fabric(node)
        attached = _text(self.root, "attached_gpus")
        if attached and attached != str(len(self.elements)):
            what = f"the machine has {attached[:8]} GPUs, the file lists {len(self.elements)}"
            self._say("gpus-missing", f"{what}, numbered from 0 here: a plan for it uses these alone")
        unknown = sum(p.kind is PathKind.UNKNOWN for p in node.shape.paths)
        if unknown:
            what = f"`nvidia-smi -q -x` tells no wires: {count(unknown, 'GPU pair')} of unknown path"
            if any(s.fabric and s.fabric.is_ready for s in node.gpus):
                what += " (the GPUs are registered with NVSwitch, so NVLink is likely, but not told)"
            self._say("paths-unknown", f"{what}. Add the output of `nvidia-smi topo -m`.")
        if node.virtualization not in (None, "bare"):
            what = f"this is a virtual machine ({node.virtualization})"
            self._say("virtualized", f"{what}: PCIe levels, NUMA and P2P may be flattened; only a measurement tells.")
        if self.odd:
            self._say("odd-value", f"not believable, taken as unknown: {some(self.odd)}")

    def _say_of_gpus(self, node: Node) -> None:
        for i, state in enumerate(node.gpus):
            if state.status is not GpuStatus.OK:
                code = "gpu-lost" if state.status is GpuStatus.LOST else "gpu-failed"
                self._say(code, f"GPU {i}: {state.status_reason}. Look for Xid in dmesg; reset the GPU or reboot.")
        untold = [g.index for g in node.shape.gpus if g.memory_bytes is None and node.gpus[g.index].is_usable]
        if untold:
            self._say("memory-unknown", f"the file tells no memory of GPU {ranges(untold)}: say --gpu-memory")
        sliced = [i for i, state in enumerate(node.gpus) if state.mig_instances]
        if sliced:
            instances = sum(len(node.gpus[i].mig_instances) for i in sliced)
            what = f"MIG is on for GPU {ranges(sliced)} ({count(instances, 'instance')})"
            self._say("mig", f"{what}: instances have no P2P, so each serves alone.")

    def _say_of_fabric(self, node: Node) -> None:
        fabrics = {i: s.fabric for i, s in enumerate(node.gpus) if s.fabric}
        waiting = [i for i, f in fabrics.items() if f.state.value in ("not-started", "in-progress")]
        failed = [i for i, f in fabrics.items() if f.status]
        if waiting:
            cure = "Normal while a node boots; if it stays, see `systemctl status nvidia-fabricmanager`."
            what = f"NVSwitch registration of GPU {ranges(waiting)} is not complete"
            self._say("fabric-in-progress", f"{what}: no NVLink traffic until it is. {cure}")
        if failed:
            texts = sorted({one_line(_text(self.elements[i], "fabric/status") or "?", 40) for i in failed})
            what = f"NVSwitch registration of GPU {ranges(failed)} failed ({', '.join(texts[:4])})"
            self._say("fabric-failed", f"{what}: traffic falls to PCIe. Restart nvidia-fabricmanager.")
        ill = {i: told for i, f in fabrics.items() if (told := health_problems(f.health_mask))}
        if ill:
            seen = some([f"GPU {i}: {', '.join(told)}" for i, told in ill.items()])
            self._say("fabric-unhealthy", f"NVLink fabric: {seen}. Expect less than full bandwidth; see the switches.")


def _path(a: GpuState, b: GpuState) -> Path:
    """NVLink where both are whole GPUs of one multi-node NVLink domain; else nothing tells."""
    domains = [s.fabric.domain for s in (a, b) if s.fabric and s.is_usable and not s.mig_instances]
    if len(domains) == 2 and domains[0] is not None and domains[0] == domains[1]:
        return Path(PathKind.NVLINK, through=Through.SWITCH)
    return Path(PathKind.UNKNOWN)


def _status(element: Element, mig: Sequence[MigInstance]) -> tuple[GpuStatus, str | None]:
    for tag in ("product_name", "uuid", "pci/pci_bus_id", "fb_memory_usage/total"):
        if _BROKEN.fullmatch(text := _raw(element, tag)):
            return GpuStatus.FAILED if "reset" in text.lower() else GpuStatus.LOST, f"nvidia-smi says {text[:60]!r}"
    if _raw(element, "gpu_reset_status/reset_required") == "Yes":
        return GpuStatus.FAILED, "nvidia-smi says that it requires a reset"
    if _in_mig_mode(element) and not mig:
        return GpuStatus.FAILED, "MIG is on and no instance exists: CUDA finds no device here"
    return GpuStatus.OK, None


def _in_mig_mode(element: Element) -> bool:
    return _raw(element, "mig_mode/current_mig") == "Enabled"


def _raw(element: Element, path: str) -> str:
    return one_line(element.findtext(path) or "", 200)


def _text(element: Element, path: str) -> str | None:
    """What a field says; None where it says in one of nvidia-smi's many ways that it says nothing."""
    text = _raw(element, path)
    return None if _UNTOLD.fullmatch(text) or _BROKEN.fullmatch(text) else text


def _texts(element: Element, path: str) -> Mapping[str, str]:
    found = element.find(path)
    return {} if found is None else {child.tag: _raw(found, child.tag) for child in list(found)[:32]}
