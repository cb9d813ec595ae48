"""`nvidia-smi nvlink -s` text (the state of every link), alone or beside `topo -m` in a dump.

Its capabilities (`-c`) and remote ends (`-R`, `-p`) may stand around it and are no states: they don't count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from probe.errors import SourceError, one_line
from probe.sources import smi_dump
from probe.topology import (
    Gpu,
    GpuState,
    Node,
    NodeShape,
    Notice,
    Origin,
    Path,
    PathKind,
    Provenance,
    Topology,
)
from probe.units import ranges

MAX_GPUS = 128
MAX_LINKS = 64
MAX_CHARS = 16 << 20
_MAX_GB_S = 1000.0
_MAX_LINE = 400
_MAX_ENTRIES = 1 << 15
_CURE = "Run `nvidia-smi topo -m; nvidia-smi nvlink -s` on the machine and give what both print."
_GPU = re.compile(r"(?:^|[\s>#|\]])GPU ([0-9]{1,4}):[ \t]*(.*)")
_UUID = re.compile(r"\(UUID:[ \t]{1,4}(GPU-[0-9a-fA-F-]{8,40})\)")
_LINK = re.compile(
    r"\bLink ([0-9]{1,4}):[ \t]{1,8}(<?inactive>?|([0-9]{1,6}(?:\.[0-9]{1,6})?)[ \t]?GB/s)", re.IGNORECASE
)
_ALL_DOWN = re.compile(r"all links are inactive", re.IGNORECASE)
_NONE = re.compile(r"does not have or support nvlink|nvlink information: not supported", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NvlinkStatus:
    """A GPU's links. `total` is None where the tool only says that all are down; `gbps_per_link` is in 1e9 bytes/s
    and one direction, of the slowest active link, None where none is active."""

    active: int
    total: int | None
    gbps_per_link: float | None = None
    name: str | None = None
    uuid: str | None = None


@dataclass(slots=True)
class _Listed:
    name: str | None = None
    uuid: str | None = None
    links: dict[int, float | None] = field(default_factory=dict)
    verdict: tuple[int, int | None] | None = None


def looks_like_nvlink(head: str) -> bool:
    """Whether a text tells states of NVLinks."""
    return bool(_LINK.search(head) or _ALL_DOWN.search(head) or _NONE.search(head))


def read_nvlink_status(text: str, *, where: str = "the text") -> dict[int, NvlinkStatus]:
    """GPU index -> its links; empty where the text tells none. A link told twice is active only if it always was.

    Raises SourceError where the text tells two machines, or what no machine has.
    """
    if len(text) > MAX_CHARS:
        raise SourceError(f"{where}: {len(text):,} characters are no list of links", cure=_CURE)
    listed = _listed(text.replace("&lt;", "<").replace("&gt;", ">"), where)
    told = {i: _status(gpu) for i, gpu in listed.items() if gpu.links or gpu.verdict}
    if any(i >= MAX_GPUS for i in told):
        raise SourceError(f"{where} lists GPU {max(told)}, more than any machine has", cure=_CURE)
    uuids = Counter(s.uuid for s in told.values() if s.uuid)
    if any(n > 1 for n in uuids.values()):
        raise SourceError(f"{where}: two GPUs have one UUID", cure=_CURE)
    return told


def read_nvlink(text: str, *, where: str) -> Topology:
    """One node with the links of each GPU: which GPUs they join is not told, so every path is unknown, and said so."""
    told = read_nvlink_status(text, where=where)
    if not told:
        raise SourceError(f"{where} tells the state of no NVLink", cure=_CURE)
    if sorted(told) != list(range(len(told))):
        raise SourceError(f"{where} tells only GPU {ranges(sorted(told))} of the machine", cure=_CURE)
    n = len(told)
    gpus = tuple(Gpu(i, told[i].name) for i in range(n))
    unknown = Path(PathKind.UNKNOWN)
    shape = NodeShape(gpus, (unknown,) * (n * (n - 1) // 2), nvlink_visible=False)
    node = Node(shape, tuple(GpuState(uuid=told[i].uuid) for i in range(n)))
    notices: tuple[Notice, ...] = ()
    if n > 1:
        what = "`nvlink -s` tells how many links are up, not which GPUs they join: all paths are unknown"
        notices = (Notice("paths-unknown", f"{what}; add `nvidia-smi topo -m`", 0),)
    origin = Origin("gpus.name", Provenance.READ, "nvidia-smi nvlink -s text", 0)
    return with_nvlink_status(Topology((node,), warnings=notices, provenance=(origin,)), text, where=where)


def with_nvlink_status(topology: Topology, text: str, *, node: int = 0, where: str = "the text") -> Topology:
    """Adds the links that a text tells to one node's GPUs, and notices about those that are down.

    GPUs are matched by UUID where both sides tell them, else by index. What the topology already has stays.
    """
    told = read_nvlink_status(text, where=where)
    if not told:
        return topology
    own = topology.nodes[node]
    matched = _matched(own, told)
    if matched is None:
        what = "`nvlink -s` in the text lists other GPUs than the rest of it"
        notice = Notice("nvlink-ignored", f"{what}: link states are left out", node)
        return replace(topology, warnings=(*topology.warnings, notice))
    gpus = tuple(_with_links(gpu, matched.get(gpu.index)) for gpu in own.shape.gpus)
    notices = tuple(replace(n, node=node) for n in _notices(own.shape, matched))
    known = {(w.code, w.message) for w in topology.warnings}
    fresh = tuple(n for n in notices if (n.code, n.message) not in known)
    changed = replace(own, shape=replace(own.shape, gpus=gpus))
    origin = Origin("gpus.nvlinks_active", Provenance.READ, "nvidia-smi nvlink -s text", node)
    return replace(
        topology,
        nodes=(*topology.nodes[:node], changed, *topology.nodes[node + 1 :]),
        warnings=(*topology.warnings, *fresh),
        provenance=(*topology.provenance, *((origin,) if gpus != own.shape.gpus else ())),
    )


def _listed(text: str, where: str) -> dict[int, _Listed]:
    listed: dict[int, _Listed] = {}
    current: _Listed | None = None
    entries = 0
    for line in smi_dump.clean(text).split("\n"):
        if len(line) > _MAX_LINE or not ("GPU " in line or "ink" in line):
            continue
        header, link = _GPU.search(line), _LINK.search(line)
        entries += bool(header or link)
        if entries > _MAX_ENTRIES:
            raise SourceError(f"{where} lists more than {_MAX_ENTRIES:,} GPUs and links", cure=_CURE)
        if header:
            current = listed.setdefault(int(header[1]), _Listed())
            _note_identity(current, header[2], where)
        if current is None:
            continue
        if link:
            number, speed = int(link[1]), float(link[3]) if link[3] else None
            if number >= MAX_LINKS or (speed is not None and speed > _MAX_GB_S):
                raise SourceError(f"{where}: a line no GPU prints: {one_line(line, 60)!r}", cure=_CURE)
            speed = speed or None  # 0 GB/s is no active link
            known = current.links.get(number, speed)
            current.links[number] = min(known, speed) if known and speed else None
        elif _ALL_DOWN.search(line):
            current.verdict = (0, None)
        elif _NONE.search(line):
            current.verdict = (0, 0)
    return listed


def _note_identity(gpu: _Listed, rest: str, where: str) -> None:
    uuid = found[1] if (found := _UUID.search(rest)) else None
    if uuid and gpu.uuid not in (None, uuid):
        raise SourceError(f"{where} tells two machines: one GPU number, two UUIDs", cure=_CURE)
    gpu.uuid = uuid or gpu.uuid
    name = one_line(rest.partition("(UUID")[0], 80)
    is_name = re.fullmatch(r"[A-Za-z][A-Za-z0-9 ./+()_\-]{1,79}", name) and not _NONE.search(name)
    gpu.name = gpu.name or (name if is_name else None)


def _status(gpu: _Listed) -> NvlinkStatus:
    speeds = [speed for speed in gpu.links.values() if speed]
    if not gpu.links and gpu.verdict:
        return NvlinkStatus(gpu.verdict[0], gpu.verdict[1], None, gpu.name, gpu.uuid)
    return NvlinkStatus(len(speeds), len(gpu.links), min(speeds, default=None), gpu.name, gpu.uuid)


def _matched(node: Node, told: Mapping[int, NvlinkStatus]) -> dict[int, NvlinkStatus] | None:
    """The node's GPU index -> its links; None where the two can't be the same machine."""
    by_uuid = {state.uuid: i for i, state in enumerate(node.gpus) if state.uuid}
    if by_uuid and len(by_uuid) == len(node.gpus) and all(s.uuid for s in told.values()):
        if not all(s.uuid in by_uuid for s in told.values()):
            return None
        return {by_uuid[str(s.uuid)]: s for s in told.values()}
    if max(told) >= len(node.gpus):
        return None
    for i, status in told.items():
        uuid, name = node.gpus[i].uuid, node.shape.gpus[i].name
        names = [n.casefold() for n in (name, status.name) if n]
        other_name = len(names) == 2 and names[0] not in names[1] and names[1] not in names[0]
        if other_name or (uuid and status.uuid and uuid != status.uuid):
            return None
    return dict(told)


def _with_links(gpu: Gpu, status: NvlinkStatus | None) -> Gpu:
    if status is None or gpu.nvlinks_active is not None:
        return gpu
    total = gpu.nvlinks_total if gpu.nvlinks_total is not None else status.total
    if total is not None and total < status.active:
        return gpu  # the topology knows of fewer links than are up here: not the same state
    return replace(gpu, nvlinks_active=status.active, nvlinks_total=total)


def _notices(shape: NodeShape, told: Mapping[int, NvlinkStatus]) -> Iterator[Notice]:
    groups: dict[str | None, dict[int, NvlinkStatus]] = {}
    for i, status in sorted(told.items()):
        groups.setdefault(shape.gpus[i].name or status.name, {})[i] = status
    for siblings in groups.values():
        yield from _about_siblings(siblings)
    idle = [i for i, s in sorted(told.items()) if s.active == 0 and s.total != 0]
    if len(idle) > 1 and len(idle) == len(told):
        what = f"no NVLink of GPUs {ranges(idle)} is active, as on boards without a bridge"
        yield Notice("nvlink-no-bridge", f"{what}; if there is a bridge or NVSwitch, it is absent or down.")
    for a, b, path in shape.pairs:
        ends = [told[x].active for x in (a, b) if x in told]
        if path.kind is PathKind.NVLINK and ends and min(ends) < (path.links or 1):
            what = f"the paths say {path.label} between {a} and {b}, the link states only {min(ends)} active links"
            yield Notice("nvlink-differs", f"{what}: they were taken at different times, or a link just went down.")
            return


def _about_siblings(siblings: Mapping[int, NvlinkStatus]) -> Iterator[Notice]:
    most = max(s.active for s in siblings.values())
    fewer = {i: s.active for i, s in siblings.items() if s.active < most and s.total != 0}
    if fewer:
        seen = ", ".join(f"GPU {i} has {n or 'no'}" for i, n in fewer.items())
        cure = "No bridge there, or it is down: look at" if not any(fewer.values()) else "Look at"
        cure += " `nvidia-smi nvlink -s` and `-e`; reseat the bridge or have the board serviced."
        yield Notice("degraded-links", f"{seen} active NVLinks, its siblings {most}: a slower island. {cure}")
    fastest = max((s.gbps_per_link or 0.0 for s in siblings.values()), default=0.0)
    slow = {i: s.gbps_per_link for i, s in siblings.items() if s.gbps_per_link and s.gbps_per_link < fastest}
    if slow:
        seen = ", ".join(f"GPU {i} at {speed:g}" for i, speed in slow.items())
        yield Notice("slow-links", f"NVLinks run slower than those of siblings ({fastest:g} GB/s): {seen} GB/s.")
