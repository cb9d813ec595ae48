"""What a group's wires should give: active links x what NCCL's kernels move through one, PCIe, and NICs. Pure.

All figures are busbw as nccl-tests defines it. Two are told: what such wires usually reach, and a bar below which
something is wrong. Each message size has its own, since a transfer first has to fill NCCL's buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from probe.checks.group import Group, is_known, port_gbps
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
    PCIE_BARS,
    UNEVEN_BAR,
    XGMI_RING,
    Reach,
    nvlink_reach,
)
from probe.curve import bus_factor
from probe.links import NVLS_EFFICIENCY, PCIE_EFFICIENCY, STAGED_IN_HOST_MEMORY
from probe.measurement import CurveKey
from probe.topology import GpuRef, PathKind, Provenance, Topology, require
from probe.units import count, figure

_NCCL = "github.com/NVIDIA/nccl, src/graph"


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
        return size_bytes * self.factor / 1e9 / self._time_s(size_bytes, self.busbw_gbps)

    def bar_at(self, size_bytes: int) -> float:
        """The busbw below which a message of this size misses the bar."""
        return size_bytes * self.factor / 1e9 / self._longest_s(size_bytes, self.bar_gbps)

    def _time_s(self, size_bytes: int, gbps: float) -> float:
        return self.fill_s + size_bytes * self.factor / (gbps * 1e9)

    def _longest_s(self, size_bytes: int, gbps: float) -> float:
        """To fill buffers a transfer may need three times the usual."""
        return max(3 * self.fill_s, self._time_s(size_bytes, gbps))

    def is_missed(self, size_bytes: int, time_s: float, *, share: float = 1.0, without_nvls: bool = False) -> bool:
        """Whether a transfer took longer than this share of the bar allows."""
        gbps = share * (self.without_nvls_gbps if without_nvls and self.without_nvls_gbps else self.bar_gbps)
        return time_s > self._longest_s(size_bytes, gbps)

    def judges(self, size_bytes: int) -> bool:
        """Whether a message is large enough for the bar to mean more than what fills buffers."""
        return size_bytes * self.factor >= self.fill_s * self.bar_gbps * 1e9


@dataclass(frozen=True, slots=True)
class _Wires:
    """What the links of a group carry per GPU, one direction, and how much of it an all-reduce reaches."""

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
    group = Group(topology, members)
    wires = _inside(group, key)
    inside: Expectation | None = None
    if wires is not None:
        reach = wires.reach.of(OPERATIONS[key.operation])
        usual = wires.gbps * reach.usual
        factor, fill_s = bus_factor(key.operation, ranks), FILL_S + FILL_PER_RANK_S * min(ranks, 16)
        ring = Expectation(usual, usual * reach.bar, wires.words, wires.source, wires.provenance, factor, fill_s)
        inside = _with_nvls(group, key, wires, ring) or ring
    return _over_network(group, key, inside) if group.crosses_network else inside


def _over_network(group: Group, key: CurveKey, inside: Expectation | None) -> Expectation | None:
    """As much as the NICs let through, and no more than the wires inside the nodes."""
    network = network_share(group.topology, key.operation, group.members, key.group.concurrent_groups)
    if network is None:
        return None
    usual = min(network.best_gbps, inside.busbw_gbps) if inside else network.best_gbps
    ranks = len(group.members)
    return Expectation(
        busbw_gbps=usual,
        bar_gbps=NETWORK_BAR * min(network.plain_gbps, usual),
        words=network.words,
        source=f"NCCL: 12 GB/s per 100 Gbit/s ({_NCCL}/topo.h); bar: Azure's health checks, 18 of 24 and 40 of 48",
        provenance=Provenance.ASSUMED,
        factor=bus_factor(key.operation, ranks),
        fill_s=FILL_S + FILL_PER_RANK_S * min(ranks, 16) + FILL_OF_NETWORK_S,
    )


def _with_nvls(group: Group, key: CurveKey, wires: _Wires, ring: Expectation) -> Expectation | None:
    """An all-reduce inside the switch, by NCCL's model of it. None where it is not to be expected."""
    ranks = len(group.members)
    if key.operation != "all_reduce" or key.nvls is False or key.p2p_enabled is False:
        return None
    if key.nvls is None and not (ranks >= NVLS_LEAST_RANKS and group.can_nvls):
        return None
    major = min((c[0] for place in range(ranks) if (c := group.capability(place))), default=0)
    share = NVLS_EFFICIENCY.get(major)
    bar = wires.gbps * share * NVLS_PAYLOAD * ring.factor if share else 0.0
    if bar <= ring.bar_gbps:
        return None
    words = f"{wires.words}, reduced in the NVSwitch (NVLS: more than the links carry)"
    return replace(
        ring,
        busbw_gbps=bar * NVLS_USUAL,
        bar_gbps=bar,
        words=words,
        source=f"nvlsEfficiency of NCCL ({_NCCL}/tuning.cc), which makes Azure's threshold of 460 on 8 H100",
        nvls=True,
        without_nvls_gbps=ring.bar_gbps,
    )


def _inside(group: Group, key: CurveKey) -> _Wires | None:
    """The wires that a group has inside its nodes (or its NVLink domain)."""
    if group.slowest is None:
        return None
    if key.p2p_enabled is not False and group.has_fabric:
        return _fabric(group)
    return _pcie(group, key, group.slowest.kind)


def _fabric(group: Group) -> _Wires | None:
    """By the GPU that has the least bandwidth into the group."""
    found: list[_Wires] = []
    for place in range(len(group.members)):
        if not group.rows[place]:  # alone on its node
            continue
        links, per_link = group.links(place), group.gbps_per_link(place)
        if links is None or per_link is None:
            return None
        is_xgmi = group.fast(place)[0].kind is PathKind.XGMI
        capability, switched = group.capability(place), group.is_switched(place)
        reach = XGMI_RING if is_xgmi else nvlink_reach(capability, len(group.members), is_switched=switched)
        if not switched and found and found[0].gbps != links * per_link:
            reach = Reach(reach.usual, UNEVEN_BAR)
        words = f"{count(links, 'xGMI link' if is_xgmi else 'NVLink')} of {figure(per_link)} GB/s each"
        source = (
            "RCCL's figure per xGMI link (github.com/ROCm/rccl, src/graph/topo.h)"
            if is_xgmi
            else f"NCCL's figure per link ({_NCCL}/topo.h); public tables of nccl-tests; Azure's health checks"
        )
        found.append(_Wires(links * per_link, reach, words, source, Provenance.CATALOG))
    slowest = min(found, key=lambda wires: wires.gbps)
    return replace(slowest, reach=Reach(slowest.reach.usual, min(wires.reach.bar for wires in found)))


def _pcie(group: Group, key: CurveKey, kind: PathKind) -> _Wires | None:
    """PCIe by the narrowest port of the group, as far as the slowest path lets it through."""
    ports = [port_gbps(group.gpu(place)) for place in range(len(group.members))]
    known = [port for port in ports if port is not None]
    if len(known) < len(ports):
        return None
    least_gbps, port = min(known)
    inside_switch = kind in (PathKind.PIX, PathKind.PXB)
    where = kind.value if kind in PCIE_BARS else "of an unknown kind"
    words = f"{port}, through {'PCIe switches' if inside_switch else 'host bridges'} ({where})"
    gbps, bar = least_gbps * PCIE_EFFICIENCY, PCIE_BARS.get(kind, HOST_BAR)
    if group.is_virtual:
        bar = min(bar, HOST_BAR)
    if key.p2p_enabled is False or group.is_staged:
        gbps, bar, words = gbps * STAGED_IN_HOST_MEMORY, min(bar, HOST_BAR), f"{port}, through host memory"
    at_once = key.group.concurrent_groups
    if at_once > 1 and not inside_switch:  # a root complex of each socket, one link between them
        shape = group.topology.nodes[group.members[0].node].shape
        sockets = len({gpu.numa_node for gpu in shape.gpus}) if kind in (PathKind.PHB, PathKind.NODE) else 1
        gbps, words = gbps / max(1.0, at_once / sockets), f"{words}, {at_once} groups at once"
    source = f"NCCL: 12 GB/s of a Gen3 x16 ({_NCCL}/topo.h); bar: public figures of such boards"
    return _Wires(gbps, Reach(1.0, bar), words, source, Provenance.ASSUMED)
