"""How long a collective takes on a group of GPUs: read from a survey's curves, else from public figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from configgen.plan import EngineTraits
from probe.catalog import gpu_figures, pcie_gbps
from probe.curve import Profile, bus_factor, profile
from probe.islands import GroupShape, bottleneck, group_shape
from probe.links import LIBRARY_ALPHA_S, STAGED_IN_HOST_MEMORY
from probe.measurement import Curve, Survey
from probe.topology import Gpu, GpuRef, Path, PathKind, Provenance
from probe.units import count, message_size

_MIB = 1 << 20
ENGINE_KERNEL_BYTES = 8 * _MIB
"""Messages up to here go through an engine's own all-reduce (vLLM, custom_all_reduce.py: max_size 8192 * 1024)."""
HOPPER_KERNEL_BYTES = {2: 64 * _MIB, 4: 32 * _MIB, 6: _MIB // 2, 8: _MIB // 4}
BLACKWELL_KERNEL_BYTES = {2: 2 * _MIB, 4: 2 * _MIB, 6: _MIB, 8: _MIB}
"""The same on compute capability 9.0 and 10.0, by ranks (vLLM, all_reduce_utils.py, CUSTOM_ALL_REDUCE_MAX_SIZES)."""

ENGINE_KERNEL_ALPHA_S = 3.9e-6
ENGINE_KERNEL_ALPHA_PER_RANK_S = 0.2e-6
"""Start-up of the engines' own kernel in a CUDA graph: 4.5, 4.8 and 5.4 us on 2, 4 and 8 H200 (a public fit of vLLM's
kernel), a straight line in the number of ranks within 0.3 us."""

FABRIC_EFFICIENCY = 0.8
"""busbw of a large collective over what the links carry: NCCL counts 20.6 of 26.6 GB/s per NVLink 4 link (graph/
topo.h, SM90_NVLINK_BW), 24 of 31.5 per PCIe Gen4 x16, 12 of 12.5 per 100 Gbit NIC."""

HOST_SHARING = {PathKind.PIX: 1.0, PathKind.PXB: 1.0, PathKind.PHB: 0.8, PathKind.NODE: 0.6, PathKind.SYS: 0.5}
"""What a root complex or the link between sockets leaves of PCIe: a group of 8 L40S has 18.8 of 31.5 GB/s on a good
host, A100 pairs across sockets 23.7 (Vidur; Azure NC96 25)."""

NETWORK_GBPS = 12.5
"""Of a node whose NICs nobody told: 100 Gbit/s."""

UNKNOWN_LINK_GBPS = 25.0
"""Per link: NVLink 3 and 4 have 25 of payload."""

BORROWED_UNCERTAINTY = 0.3
"""Of a curve of another size or number of groups, and beyond its sizes: as much as public figures leave open."""

UNCERTAINTY = {Provenance.MEASURED: 0.05, Provenance.READ: 0.2, Provenance.CATALOG: 0.3, Provenance.ASSUMED: 0.7}
"""Relative half-width. Catalog: boxes with NVSwitch were 1.3-fold apart. Assumed is what a host makes of PCIe or a
network, whatever its parts: two hosts of L40S were 14-fold apart."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds of one operation, how far they may be off, and what says so."""

    seconds: float
    provenance: Provenance
    uncertainty: float
    source: str
    size_bytes: float = 0.0
    """Of one message; `seconds` may be those of many."""
    busbw_gbps: float = 0.0


FREE = Reading(0.0, Provenance.READ, 0.0, "one GPU moves nothing")


@dataclass(frozen=True)
class Wires:
    """A survey's wires, ready to be asked many times."""

    survey: Survey
    faster: float = 1.0
    """What if: all wires so many times as fast."""
    _profiles: dict[int, Profile] = field(default_factory=dict, compare=False)
    _groups: dict[tuple[object, ...], tuple[Curve | None, str]] = field(default_factory=dict, compare=False)
    _links: dict[tuple[GpuRef, ...], _Link] = field(default_factory=dict, compare=False)
    _shapes: dict[tuple[GpuRef, ...], GroupShape] = field(default_factory=dict, compare=False)

    def seconds(
        self, operation: str, group: Sequence[GpuRef], size_bytes: float, *, at_once: int = 1, graph: bool = False
    ) -> Reading:
        """An operation of the whole group at a size (as nccl-tests counts it), `at_once` like groups running."""
        if len(group) < 2 or size_bytes <= 0:
            return FREE
        curve, how = self._curve(operation, self._shape(tuple(group), at_once), graph)
        if curve is None:
            return self._from_catalog(operation, tuple(group), size_bytes, at_once)
        known = self._profile(curve)
        if size_bytes > known.sizes_bytes[-1] and known.is_rising:
            return self._beyond(operation, tuple(group), size_bytes, at_once, known, curve)
        read = known.read(size_bytes)
        half = UNCERTAINTY[Provenance.MEASURED]
        if read.interval_s is not None:
            half = max(half, (read.interval_s[1] - read.interval_s[0]) / 2 / read.time_s)
        if read.extrapolated or how:
            half = max(half, BORROWED_UNCERTAINTY)
        scale = bus_factor(operation, len(group)) / bus_factor(operation, curve.ranks)
        seconds = read.time_s * scale / self.faster
        gbps = bus_factor(operation, len(group)) * size_bytes / seconds / 1e9
        return Reading(seconds, Provenance.MEASURED, half, f"measured {operation}{how}", size_bytes, gbps)

    def _beyond(
        self, operation: str, group: tuple[GpuRef, ...], size_bytes: float, at_once: int, known: Profile, curve: Curve
    ) -> Reading:
        """Past a last size that was still gaining speed: that size as measured, and each further byte at what the last
        step cost per byte, but no faster than public figures have it and no slower than the last size's bytes."""
        last, scale = known.sizes_bytes[-1], bus_factor(operation, len(group)) / bus_factor(operation, curve.ranks)
        last_s = known.read(last).time_s * scale / self.faster
        most_s = last_s * (size_bytes / last - 1)
        further_s = least_s = 0.0
        if len(known.sizes_bytes) > 1:
            before = known.sizes_bytes[-2]
            step_s = last_s - known.read(before).time_s * scale / self.faster
            further_s = step_s * (size_bytes - last) / (last - before)
        if self.survey.lab is None:
            ends = [self._from_catalog(operation, group, size, at_once).seconds for size in (last, size_bytes)]
            least_s = ends[1] - ends[0]
        seconds = last_s + min(most_s, max(least_s, further_s))
        gbps = bus_factor(operation, len(group)) * size_bytes / seconds / 1e9
        told = f"measured {operation} up to {message_size(last)}, which was not its full speed yet"
        return Reading(seconds, Provenance.MEASURED, BORROWED_UNCERTAINTY, told, size_bytes, gbps)

    def all_reduce(
        self, group: Sequence[GpuRef], size_bytes: float, traits: EngineTraits, *, at_once: int = 1
    ) -> Reading:
        """The faster of the library and, where the engine runs its own kernel on such a group, that kernel.

        One-shot: each rank reads the whole buffer of every other. Two-shot: reduce-scatter, then all-gather, with
        another barrier between. The kernels choose by size; so the less of both is taken (vLLM custom_all_reduce.cuh).
        """
        library = self.seconds("all_reduce", group, size_bytes, at_once=at_once, graph=size_bytes <= 1 << 20)
        n = len(group)
        if n not in traits.custom_all_reduce_sizes or self.survey.lab is not None:
            return library
        if size_bytes > _most_bytes(self.survey.topology.gpu(group[0]), n):
            return library
        link = self._link(tuple(group))
        pair = n == 2 and traits.pair_without_nvlink and link.nodes == 1
        if not (link.path.is_fast or pair):
            return library
        curve, _ = self._curve("all_reduce", self._shape(tuple(group), at_once), False)
        wire_gbps = self._profile(curve).plateau_busbw_gbps if curve is not None else link.gbps * FABRIC_EFFICIENCY
        alpha_s = ENGINE_KERNEL_ALPHA_S + n * ENGINE_KERNEL_ALPHA_PER_RANK_S
        byte_s = size_bytes / (wire_gbps * 1e9)
        one_shot, two_shot = alpha_s + (n - 1) * byte_s, 1.5 * alpha_s + 2 * (n - 1) / n * byte_s
        seconds = min(one_shot, two_shot) / self.faster
        own = Reading(
            seconds,
            Provenance.CATALOG,
            UNCERTAINTY[Provenance.CATALOG],
            f"{traits.engine}'s own all-reduce kernel, a public fit of its start-up time",
            size_bytes,
            bus_factor("all_reduce", n) * byte_s / seconds * wire_gbps,
        )
        return min(library, own, key=lambda r: r.seconds)

    def shape(self, group: tuple[GpuRef, ...]) -> GroupShape:
        """The group's paths, whatever else runs."""
        if group not in self._shapes:
            self._shapes[group] = group_shape(self.survey.topology, group)
        return self._shapes[group]

    def _shape(self, group: tuple[GpuRef, ...], at_once: int) -> GroupShape:
        return replace(self.shape(group), concurrent_groups=at_once)

    def _profile(self, curve: Curve) -> Profile:
        if id(curve) not in self._profiles:
            self._profiles[id(curve)] = profile(curve)
        return self._profiles[id(curve)]

    def _curve(self, operation: str, shape: GroupShape, graph: bool) -> tuple[Curve | None, str]:
        key = (operation, shape, graph)
        if key not in self._groups:
            self._groups[key] = self._nearest(operation, shape, graph)
        return self._groups[key]

    def _nearest(self, operation: str, shape: GroupShape, graph: bool) -> tuple[Curve | None, str]:
        """The curve of this very shape, else of the same paths with another number of groups at once, else of a group
        of another size on the same kinds of path; or none."""
        kinds = {label for label, _ in shape.paths}
        known = [
            curve
            for curve in self.survey.curves
            if curve.key.operation == operation
            and {label for label, _ in curve.key.group.paths} == kinds
            and curve.key.group.nodes == shape.nodes
            and curve.key.p2p_enabled is not False
            and curve.key.direction in (None, "forward", "both")
        ]
        if not known:
            return None, ""
        pairs = sum(count for _, count in shape.paths)

        def distance(curve: Curve) -> tuple[int, int, bool, bool]:
            own = curve.key.group
            other_size = abs(sum(count for _, count in own.paths) - pairs)
            apart = abs(own.concurrent_groups - shape.concurrent_groups)
            return other_size, apart, curve.key.graph != graph, curve.key.direction == "both"

        best = min(known, key=distance)
        other_size, apart, _, _ = distance(best)
        if other_size:
            return best, f" of {best.ranks} GPUs, the nearest that was measured"
        return best, f" with {best.key.group.concurrent_groups} groups at once" if apart else ""

    def _link(self, group: tuple[GpuRef, ...]) -> _Link:
        if group not in self._links:
            self._links[group] = _link_of(self.survey, group)
        return self._links[group]

    def _from_catalog(self, operation: str, group: tuple[GpuRef, ...], size_bytes: float, at_once: int) -> Reading:
        link, n = self._link(group), len(group)
        fast = link.path.is_fast
        base_s, rank_s = LIBRARY_ALPHA_S["NVLINK" if fast else "NET" if link.path.kind is PathKind.NET else "PCIE"]
        steps = n if operation == "all_reduce" else 2 if operation == "p2p" else max(2, n // 2)
        gbps = link.gbps * FABRIC_EFFICIENCY / max(1.0, at_once / link.lanes)
        seconds = base_s + rank_s * steps + bus_factor(operation, n) * size_bytes / (gbps * 1e9)
        seconds /= self.faster
        busbw = bus_factor(operation, n) * size_bytes / seconds / 1e9
        told = f"public figures of {link.path.label}: {link.source}"
        return Reading(seconds, link.provenance, UNCERTAINTY[link.provenance], told, size_bytes, busbw)


@dataclass(frozen=True, slots=True)
class _Link:
    """What a rank of a group can send through, one direction, in 1e9 bytes/s, by its slowest path."""

    path: Path
    gbps: float
    nodes: int
    lanes: float
    """Like groups that it carries at once without sharing."""
    provenance: Provenance
    source: str


def _most_bytes(gpu: Gpu, ranks: int) -> int:
    """The largest message that the engines' own kernel takes."""
    tables = {(9, 0): HOPPER_KERNEL_BYTES, (10, 0): BLACKWELL_KERNEL_BYTES}
    return tables.get(gpu.compute_capability or (0, 0), {}).get(ranks, ENGINE_KERNEL_BYTES)


def _link_of(survey: Survey, group: tuple[GpuRef, ...]) -> _Link:
    topology = survey.topology
    slowest = bottleneck(topology.path(a, b) for i, a in enumerate(group) for b in group[i + 1 :])
    assert slowest is not None
    nodes = len({ref.node for ref in group})
    shape = topology.nodes[group[0].node].shape
    figures = gpu_figures(topology.gpu(group[0]).name)
    if slowest.is_fast:  # each GPU has its own
        if figures is not None and figures.nvlinks and figures.nvlink_gbps_per_link:
            gbps = (slowest.links or figures.nvlinks) * figures.nvlink_gbps_per_link
            return _Link(slowest, gbps, nodes, math.inf, Provenance.CATALOG, figures.source)
        gbps = UNKNOWN_LINK_GBPS * (slowest.links or 1)
        return _Link(slowest, gbps, nodes, math.inf, Provenance.ASSUMED, "links of a kind not known: NVLink 3's rate")
    if slowest.kind is PathKind.NET:
        nics = [nic.speed_gbps / 8 for nic in shape.nics if nic.speed_gbps]
        members = max(sum(ref.node == node for ref in group) for node in {ref.node for ref in group})
        lanes = max(1.0, len(nics) / members)
        source = count(len(nics), "NIC") if nics else "no NIC is known: 100 Gbit/s"
        return _Link(slowest, sum(nics[:members]) or NETWORK_GBPS, nodes, lanes, Provenance.ASSUMED, source)
    generation = (figures.pcie_generation if figures else None) or 4
    port = topology.gpu(group[0]).pcie
    width = (port.width if port else None) or (figures.pcie_width if figures else None) or 16
    if slowest.kind in (PathKind.PIX, PathKind.PXB):
        lanes = math.inf
    else:  # a root complex of each socket, one link between sockets
        sockets = len({gpu.numa_node for gpu in shape.gpus})
        lanes = 1.0 if slowest.kind is PathKind.SYS else float(sockets)
    gbps = pcie_gbps(generation, width) * HOST_SHARING.get(slowest.kind, HOST_SHARING[PathKind.SYS])
    if "geforce" in (topology.gpu(group[0]).name or "").lower():
        gbps *= STAGED_IN_HOST_MEMORY
    return _Link(slowest, gbps, nodes, lanes, Provenance.ASSUMED, f"PCIe {generation} x{width}")
