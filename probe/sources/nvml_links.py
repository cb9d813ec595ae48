"""Which pairs of GPUs NVLink joins, from what the driver says of links, peers, P2P and the fabric. Pure.

The state of a link says nothing about its peer, so a pair is joined only by evidence about the pair:
- links of one whose remote PCI id is the other (direct), else
- the driver's P2P status for NVLink, where it is conclusive (OK or a refusal; 'unknown' is neither), else
- links of both that end in a switch, where both are of one fabric domain.
Whatever goes through a switch needs the fabric manager's registration: without it links train, yet P2P is dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from probe.sources.nvml_facts import Facts
from probe.topology import Fabric, FabricState, P2p, P2pStatus, Path, PathKind, Through

_MAX_LINKS = 64
_USABLE = (1, 2)  # active; asleep, which wakes up on traffic
_SWITCH, _UNTOLD = 0x02, 0xFF  # nvmlIntNvLinkDeviceType_t
_VERSIONS = {1: 1.0, 2: 2.0, 3: 2.2, 4: 3.0, 5: 3.1, 6: 4.0, 7: 5.0, 8: 6.0}  # nvmlNvlinkVersion_t
_P2P_STATUSES = tuple(P2pStatus)  # in the order of nvmlGpuP2PStatus_t
_ANCESTORS = {  # nvmlGpuTopologyLevel_t; 0: two GPUs on one board
    0: PathKind.PIX, 10: PathKind.PIX, 20: PathKind.PXB, 30: PathKind.PHB, 40: PathKind.NODE, 50: PathKind.SYS,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Links:
    """The NVLinks of a GPU. `active` is None where no state can be read; `version` is that of the slowest."""

    total: int | None
    active: int | None
    to_gpu: Mapping[int, int]
    to_switch: int
    version: float | None

    @property
    def elsewhere(self) -> int:
        """Active links that do not lead to another GPU of this node: to a switch, or to nobody knows where."""
        return (self.active or 0) - sum(self.to_gpu.values())


@dataclass(frozen=True, slots=True)
class Side:
    """What decides about NVLink on one side of a pair."""

    index: int
    links: Links
    fabric: Fabric | None
    in_mig_mode: bool

    @property
    def is_registered(self) -> bool:
        """Nothing to register, or registered."""
        return self.fabric is None or self.fabric.state is FabricState.NOT_SUPPORTED or self.fabric.is_ready


def pci_bus_id(text: str | None) -> str | None:
    """'00000000:0A:00.0' as NVML prints it -> '0000:0a:00.0' as the kernel names it."""
    if text is None or text.count(":") != 2:
        return None
    domain, rest = text.lower().split(":", 1)
    return f"{domain.lstrip('0').rjust(4, '0')}:{rest}"


def read_links(facts: Facts, gpu: int, index_by_pci: Mapping[str, int]) -> Links:
    """A link is present only if its state reads; the driver's own count tells the total."""
    told = [(n, state) for n in range(_MAX_LINKS) if (state := facts.number("link.state", gpu, n)) is not None]
    usable = [n for n, state in told if state in _USABLE]
    peers = [_peer(facts, gpu, n, index_by_pci) for n in usable]
    to_gpu = {p: peers.count(p) for p in peers if isinstance(p, int)}
    versions = [_VERSIONS.get(facts.number("link.version", gpu, n) or 0) for n in usable]
    total = max(facts.number("links", gpu) or 0, len(told)) or facts.number("links", gpu)
    active = len(usable) if told or total == 0 else None
    return Links(total, active, to_gpu, peers.count(Through.SWITCH), min((v for v in versions if v), default=None))


def _peer(facts: Facts, gpu: int, link: int, index_by_pci: Mapping[str, int]) -> int | Through | None:
    """Where a link ends: a GPU of this node, a switch, or None where nobody says."""
    peer = index_by_pci.get(pci_bus_id(facts.text("link.pci", gpu, link)) or "")
    if peer is not None and peer != gpu:
        return peer
    kind = facts.number("link.type", gpu, link)
    if kind == _SWITCH:
        return Through.SWITCH
    # Behind a switch the remote id is the switch's own, FFFFFFFF:FF:FF.0 or empty.
    is_told = isinstance(facts.reading("link.pci", gpu, link).value, str)
    return Through.SWITCH if kind in (None, _UNTOLD) and is_told else None


def read_path(facts: Facts, a: Side, b: Side) -> Path:
    """How GPUs a and b reach each other: NVLink where the pair is joined, else the PCIe level."""
    level = facts.number("ancestor", a.index, b.index)
    pcie = Path(PathKind.UNKNOWN if level is None else _ANCESTORS.get(level, PathKind.UNKNOWN))
    forth, back = _p2p(facts, a.index, b.index), _p2p(facts, b.index, a.index)
    readings = [
        _nvlink(a, b, _conclusive(forth.nvlink, back.nvlink)) or pcie,
        _nvlink(b, a, _conclusive(back.nvlink, forth.nvlink)) or pcie,
    ]
    path = max(readings, key=lambda p: p.slowness)
    labels = (readings[0].label, readings[1].label)
    return replace(path, p2p=_weaker(forth, back), asymmetric=labels if labels[0] != labels[1] else None)


def _nvlink(a: Side, b: Side, status: P2pStatus | None) -> Path | None:
    """NVLink from a to b as far as a's side tells it; None where it does not join them."""
    if a.in_mig_mode or b.in_mig_mode:
        return None
    version = min((v for v in (a.links.version, b.links.version) if v), default=None)
    direct = a.links.to_gpu.get(b.index, 0)
    if not direct and (a.links.active is None or a.links.elsewhere > a.links.to_switch):
        direct = b.links.to_gpu.get(a.index, 0)  # a's own links are there but do not say where they end
    if direct:
        return Path(PathKind.NVLINK, direct, version, Through.DIRECT)
    if not (a.is_registered and b.is_registered):
        return None
    if status is P2pStatus.OK:
        if a.links.active is None or b.links.active is None:
            return Path(PathKind.NVLINK, None, version)
        links = min(a.links.elsewhere, b.links.elsewhere)
        through = Through.SWITCH if a.links.to_switch and b.links.to_switch else None
        return Path(PathKind.NVLINK, links, version, through) if links else None
    if status is not None or not _one_domain(a.fabric, b.fabric):
        return None
    links = min(a.links.to_switch, b.links.to_switch)
    return Path(PathKind.NVLINK, links, version, Through.SWITCH) if links else None


def _conclusive(*statuses: P2pStatus | None) -> P2pStatus | None:
    """The first that says yes or no: 'unknown' is neither."""
    return next((s for s in statuses if s not in (None, P2pStatus.UNKNOWN)), None)


def _one_domain(a: Fabric | None, b: Fabric | None) -> bool:
    """False only where both name a multi-node domain and the two differ."""
    domains = {f.domain for f in (a, b) if f is not None and f.domain is not None}
    return len(domains) <= 1


def _p2p(facts: Facts, a: int, b: int) -> P2p:
    def status(capability: int) -> P2pStatus | None:
        code = facts.number("p2p", a, b, capability)
        return _P2P_STATUSES[code] if code is not None and code < len(_P2P_STATUSES) else None

    return P2p(*map(status, range(5)))


def _weaker(forth: P2p, back: P2p) -> P2p | None:
    """Per capability, what holds in both directions; None where the driver tells nothing at all."""

    def both(f: P2pStatus | None, b: P2pStatus | None) -> P2pStatus | None:
        return b if f in (None, P2pStatus.OK) and b is not None else f

    names = ("read", "write", "nvlink", "atomics", "pcie")
    p2p = P2p(*(both(getattr(forth, n), getattr(back, n)) for n in names))
    return None if p2p == P2p() else p2p
