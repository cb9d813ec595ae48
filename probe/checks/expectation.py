"""What a group's wires should give: active links x what NCCL's kernels move through one, PCIe, and NICs. Pure.

All figures are busbw as nccl-tests defines it. Two are told: what such wires usually reach, and a bar below which
something is wrong. Each message size has its own, since a transfer first has to fill NCCL's buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from probe.catalog import GpuFigures, gpu_figures, pcie_gbps
from probe.checks.network import network_share
from probe.checks.reach import (
    FILL_OF_NETWORK_S,
    FILL_PER_RANK_S,
    FILL_S,
    HOST_BAR,
    NETWORK_BAR,
    NVLS_LEAST_RANKS,
    NVLS_PAYLOAD,
    NVLS_USUAL,
    OPERATIONS,
    OTHER_BAR,
    PCIE_BARS,
    UNEVEN_BAR,
    Reach,
    nvlink_reach,
)
from probe.curve import bus_factor
from probe.islands import bottleneck
from probe.links import (
    NVLS_EFFICIENCY,
    PCIE_EFFICIENCY,
    STAGED_IN_HOST_MEMORY,
    XGMI_KERNEL_GBPS,
    nvlink_kernel_gbps,
)
from probe.measurement import CurveKey
from probe.topology import GpuRef, P2pStatus, Path, PathKind, Provenance, Through, Topology, require
from probe.units import count, figure

_LARGEST_BOND = 64


@dataclass(frozen=True, slots=True)
class Expectation:
    """Of large messages, in 1e9 bytes/s. `words` says of which wires, `source` on whose word.

    With `nvls` the switch reduces, and busbw counts bytes that no wire carries: it is no share of a link, and may well
    exceed one. `without_nvls_gbps` is the bar that such a group has without it.
    """

    busbw_gbps: float
    bar_gbps: float
    words: str
    source: str
    provenance: Provenance
    factor: float = 1.0
    """busbw over algbw, of this operation and number of ranks."""
    fill_s: float = FILL_S
    """What a transfer of any size may take beside its bytes."""
    nvls: bool = False
    without_nvls_gbps: float | None = None

    def __post_init__(self) -> None:
        require(0 < self.bar_gbps <= self.busbw_gbps, "a bar is positive, and not above what is expected")
        require((self.without_nvls_gbps is None) or self.nvls, "only what NVLS gives has a bar without it")

    def at(self, size_bytes: int) -> float:
        """The busbw that is expected at a size, without the allowance: the curve rises to it as n-half tells."""
        return self._reached(size_bytes, self.busbw_gbps)

    def bar_at(self, size_bytes: int) -> float:
        return self._reached(size_bytes, self.bar_gbps)

    def _reached(self, size_bytes: int, gbps: float) -> float:
        moved = size_bytes * self.factor / 1e9
        return moved / (self.fill_s + moved / gbps)

    def is_missed(self, size_bytes: int, time_s: float, *, share: float = 1.0, without_nvls: bool = False) -> bool:
        """Whether a transfer took longer than this share of the bar allows; to fill buffers it may need three times
        the usual."""
        gbps = share * (self.without_nvls_gbps if without_nvls and self.without_nvls_gbps else self.bar_gbps)
        return time_s > 3 * self.fill_s and time_s > self.fill_s + size_bytes * self.factor / (gbps * 1e9)

    def judges(self, size_bytes: int) -> bool:
        """Whether a message is large enough for the bar to mean more than what fills buffers."""
        return size_bytes * self.factor >= self.fill_s * self.bar_gbps * 1e9


@dataclass(frozen=True, slots=True)
class _Wires:
    """What the links of a group carry per GPU, one direction, before the operation's share."""

    gbps: float
    reach: Reach
    words: str
    source: str
    provenance: Provenance


def expectation(topology: Topology, key: CurveKey, members: Sequence[GpuRef]) -> Expectation | None:
    """None where no public figure covers such wires, or what they depend on (models, links, speeds) is unknown.

    `key.nvls` None takes NVLS where NCCL can use it: eight GPUs and more behind a switch, Hopper or newer.
    """
    ranks = len(members)
    if ranks < 2 or key.backend not in ("nccl", "rccl") or key.operation not in OPERATIONS:
        return None
    if not all(is_known(topology, ref) for ref in members):
        return None
    inside = _inside(topology, key, members)
    share = OPERATIONS[key.operation]
    factor = bus_factor(key.operation, ranks)
    fill_s = FILL_S + FILL_PER_RANK_S * min(ranks, 16)
    slowest = bottleneck(_paths(topology, members))
    if slowest is not None and slowest.kind is PathKind.NET:
        network = network_share(topology, key.operation, members, key.group.concurrent_groups)
        if network is None:
            return None
        most = inside.gbps * inside.reach.usual if inside else network.best_gbps
        usual = min(network.best_gbps, most)
        bar = NETWORK_BAR * min(network.plain_gbps, usual)
        source = "NCCL counts 12 GB/s per 100 Gbit/s (NET_BW, src/graph/topo.h); bar: Azure's 18 of 24, 40 of 48"
        return Expectation(usual, bar, network.words, source, Provenance.ASSUMED, factor, fill_s + FILL_OF_NETWORK_S)
    if inside is None:
        return None
    reach = inside.reach.of(share)
    ring_gbps = inside.gbps * reach.usual
    ring = Expectation(ring_gbps, ring_gbps * reach.bar, inside.words, inside.source, inside.provenance, factor, fill_s)
    return _with_nvls(topology, key, members, inside, ring) or ring


def _with_nvls(
    topology: Topology, key: CurveKey, members: Sequence[GpuRef], inside: _Wires, ring: Expectation
) -> Expectation | None:
    """An all-reduce inside the switch, by NCCL's model of it. None where it is not to be expected."""
    ranks = len(members)
    if key.operation != "all_reduce" or key.nvls is False or key.p2p_enabled is False:
        return None
    if key.nvls is None and not (ranks >= NVLS_LEAST_RANKS and can_nvls(topology, members)):
        return None
    major = min((c[0] for ref in members if (c := _capability(topology, ref))), default=0)
    share = NVLS_EFFICIENCY.get(major)
    if share is None:
        return None
    bar = inside.gbps * share * NVLS_PAYLOAD * ring.factor
    if bar <= ring.bar_gbps:
        return None
    words = f"{inside.words}, reduced in the NVSwitch (NVLS: more than the links carry)"
    source = "NCCL's nvlsEfficiency (src/graph/tuning.cc), which is Azure's threshold of 460 on 8 H100"
    return Expectation(
        bar * NVLS_USUAL, bar, words, source, Provenance.CATALOG, ring.factor, ring.fill_s, True, ring.bar_gbps
    )


def is_known(topology: Topology, ref: GpuRef) -> bool:
    """Whether the topology has such a GPU: a survey may come from anywhere."""
    return 0 <= ref.node < len(topology.nodes) and 0 <= ref.gpu < len(topology.nodes[ref.node].gpus)


def can_nvls(topology: Topology, members: Sequence[GpuRef]) -> bool:
    """Hopper or newer, all pairs joined through a switch: each pair then has all links of its GPUs."""
    for ref in members:
        capability = _capability(topology, ref)
        if capability is None or capability[0] not in NVLS_EFFICIENCY:
            return False
    links = max((_links_of(topology, ref) or 0) for ref in members)
    return len(members) > 2 and all(
        path.kind is PathKind.MNNVL
        or (path.kind is PathKind.NVLINK and (path.through is Through.SWITCH or _is_whole(path, links)))
        for path in _paths(topology, members)
    )


def _is_whole(path: Path, links: int) -> bool:
    return path.through is None and path.links is not None and path.links == links


def _inside(topology: Topology, key: CurveKey, members: Sequence[GpuRef]) -> _Wires | None:
    """The wires that a group has inside its nodes (or its NVLink domain)."""
    paths = [path for path in _paths(topology, members) if path.kind is not PathKind.NET]
    slowest = bottleneck(paths)
    if slowest is None:
        return None
    if key.p2p_enabled is not False:
        kinds = {path.kind for path in paths}
        if kinds & {PathKind.NVLINK, PathKind.MNNVL, PathKind.XGMI} and _has_ring(topology, members):
            return _fabric(topology, members)
    return _pcie(topology, key, members, slowest)


def _has_ring(topology: Topology, members: Sequence[GpuRef]) -> bool:
    """Whether a ring over fast paths visits all: surely so where each GPU has them to half of the others, itself
    counted (Dirac, 1952), as in the cube mesh of a DGX-1. Members of each node are looked at alone."""
    for ref in members:
        peers = [
            other for other in members if other != ref and (other.node == ref.node or _is_joined(topology, ref, other))
        ]
        fast = sum(topology.path(ref, other).is_fast for other in peers)
        if 2 * fast < len(peers) + 1 and fast < len(peers):
            return False
    return True


def _is_joined(topology: Topology, a: GpuRef, b: GpuRef) -> bool:
    return topology.path(a, b).kind is PathKind.MNNVL


def _fabric(topology: Topology, members: Sequence[GpuRef]) -> _Wires | None:
    """By the GPU that has the fewest links into the group, or the slowest."""
    found: list[_Wires] = []
    for ref in members:
        others = [(other, topology.path(ref, other)) for other in members if other != ref]
        fast = [path for _, path in others if path.is_fast]
        if not fast:
            return None
        switched = _is_switched(topology, ref, fast)
        links = _links_into(topology, ref, fast, is_switched=switched)
        per_link = _per_link(topology, ref, fast[0])
        if links is None or per_link is None:
            return None
        kind = "xGMI link" if fast[0].kind is PathKind.XGMI else "NVLink"
        words = f"{count(links, kind)} of {figure(per_link)} GB/s each"
        if fast[0].kind is PathKind.XGMI:
            reach, source = Reach(0.97, OTHER_BAR), "RCCL's figure per xGMI link (src/graph/topo.h)"
        else:
            reach = nvlink_reach(_capability(topology, ref), len(members), is_switched=switched)
            source = "NCCL's figure per link (src/graph/topo.h) and public tables of nccl-tests"
        if not switched and found and found[0].gbps != links * per_link:
            reach = Reach(reach.usual, UNEVEN_BAR)
        found.append(_Wires(links * per_link, reach, words, source, Provenance.CATALOG))
    slowest = min(found, key=lambda one: one.gbps)
    return replace(slowest, reach=Reach(slowest.reach.usual, min(one.reach.bar for one in found)))


def _is_switched(topology: Topology, ref: GpuRef, paths: Sequence[Path]) -> bool:
    links = _links_of(topology, ref)
    return all(
        path.kind is PathKind.MNNVL or path.through is Through.SWITCH or (links is not None and _is_whole(path, links))
        for path in paths
    )


def _links_into(topology: Topology, ref: GpuRef, fast: Sequence[Path], *, is_switched: bool) -> int | None:
    """Active links that lead to the group. Through a switch all pairs share the GPU's; else each pair has its own."""
    told = [path.links for path in fast if path.kind is not PathKind.MNNVL]
    active = topology.gpu(ref).nvlinks_active
    if any(links is None for links in told) or not told:
        links = active or _links_of(topology, ref)
        return links if links and (is_switched or len(fast) == 1) else None
    known = [links for links in told if links is not None]
    most = (active or _links_of(topology, ref) or max(known)) if fast[0].kind is PathKind.NVLINK else _LARGEST_BOND
    return max(1, min(min(known) if is_switched else sum(known), most))


def _per_link(topology: Topology, ref: GpuRef, path: Path) -> float | None:
    figures = _figures(topology, ref)
    if path.kind is PathKind.XGMI:
        return XGMI_KERNEL_GBPS.get(figures.key) if figures else None
    if path.kind not in (PathKind.NVLINK, PathKind.MNNVL):
        return None
    return nvlink_kernel_gbps(_capability(topology, ref), path.version or (figures.nvlink_version if figures else None))


def _pcie(topology: Topology, key: CurveKey, members: Sequence[GpuRef], slowest: Path) -> _Wires | None:
    """PCIe by the narrowest port of the group, as far as the slowest path lets it through."""
    wires = [port_gbps(topology, ref) for ref in members]
    ports = [wire for wire in wires if wire is not None]
    if len(ports) < len(wires):
        return None
    least_gbps, port = min(ports)
    kind = slowest.kind if slowest.kind in PCIE_BARS else PathKind.SYS
    gbps, bar, words = least_gbps * PCIE_EFFICIENCY, PCIE_BARS[kind], f"{port}, {_through(kind)}"
    if any(topology.nodes[ref.node].virtualization not in (None, "bare") for ref in members):
        bar = min(bar, PCIE_BARS[PathKind.SYS])  # levels are the hypervisor's choice
    if key.p2p_enabled is False or _is_staged(topology, members):
        gbps, bar, words = gbps * STAGED_IN_HOST_MEMORY, min(bar, HOST_BAR), f"{port}, through host memory"
    at_once = key.group.concurrent_groups
    if at_once > 1 and kind not in (PathKind.PIX, PathKind.PXB):  # a root complex of each socket, a link between them
        sockets = (
            1 if kind is PathKind.SYS else len({gpu.numa_node for gpu in topology.nodes[members[0].node].shape.gpus})
        )
        gbps, words = gbps / max(1.0, at_once / sockets), f"{words}, {at_once} groups at once"
    source = "NCCL counts 12 GB/s of a Gen3 x16 (PCI_BW, src/graph/topo.h); bar: public figures of such boards"
    return _Wires(gbps, Reach(1.0, bar), words, source, Provenance.ASSUMED)


def _through(kind: PathKind) -> str:
    inside = kind in (PathKind.PIX, PathKind.PXB)
    return f"through PCIe switches ({kind.value})" if inside else f"through host bridges ({kind.value})"


def _is_staged(topology: Topology, members: Sequence[GpuRef]) -> bool:
    """Whether the driver offers no peer access: by its word where it has one, else as on GeForce boards."""
    told = [path.p2p for path in _paths(topology, members) if path.p2p is not None]
    statuses = [status for p2p in told for status in (p2p.read, p2p.write) if status not in (None, P2pStatus.UNKNOWN)]
    if statuses:
        return any(status is not P2pStatus.OK for status in statuses)
    return any("geforce" in (topology.gpu(ref).name or "").lower() for ref in members)


def port_gbps(topology: Topology, ref: GpuRef) -> tuple[float, str] | None:
    """A GPU's PCIe port in one direction, after line coding, and its name: 'PCIe Gen4 x16'. None: not known.

    The width is the present one, the generation the largest that port and slot agree on: the present one drops while
    a GPU idles.
    """
    port, figures = topology.gpu(ref).pcie, _figures(topology, ref)
    generation = (port.generation_max if port else None) or (figures.pcie_generation if figures else None)
    width = ((port.width or port.width_max) if port else None) or (figures.pcie_width if figures else None)
    if generation is None or width is None:
        return None
    try:
        return pcie_gbps(generation, width), f"PCIe Gen{generation} x{width}"
    except ValueError:
        return None


def _paths(topology: Topology, members: Sequence[GpuRef]) -> list[Path]:
    return [topology.path(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]


def _capability(topology: Topology, ref: GpuRef) -> tuple[int, int] | None:
    figures = _figures(topology, ref)
    return topology.gpu(ref).compute_capability or (figures.compute_capability if figures else None)


def _links_of(topology: Topology, ref: GpuRef) -> int | None:
    """All links that the model has."""
    figures = _figures(topology, ref)
    return topology.gpu(ref).nvlinks_total or (figures.nvlinks if figures else None)


def _figures(topology: Topology, ref: GpuRef) -> GpuFigures | None:
    return _figures_of(topology.gpu(ref).name)


_figures_of = lru_cache(maxsize=256)(gpu_figures)
