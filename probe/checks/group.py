"""A group of GPUs as its expectation looks at it: paths, links and ports, each asked of the topology once. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from probe.catalog import GpuFigures, gpu_figures, pcie_gbps
from probe.islands import bottleneck
from probe.links import NVLS_EFFICIENCY, XGMI_KERNEL_GBPS, nvlink_kernel_gbps
from probe.topology import Gpu, GpuRef, P2pStatus, Path, PathKind, Through, Topology

_FABRICS = (PathKind.NVLINK, PathKind.MNNVL, PathKind.XGMI)


def is_known(topology: Topology, ref: GpuRef) -> bool:
    """Whether the topology has such a GPU: a survey may come from anywhere."""
    return 0 <= ref.node < len(topology.nodes) and 0 <= ref.gpu < len(topology.nodes[ref.node].gpus)


@dataclass(frozen=True)
class Group:
    """Two GPUs or more. Members are named by their place in the group."""

    topology: Topology
    members: Sequence[GpuRef]

    @cached_property
    def rows(self) -> list[list[Path]]:
        """Of each member, its paths inside the node or NVLink domain; those over the network are left out."""
        found: list[list[Path]] = [[] for _ in self.members]
        for i, a in enumerate(self.members):
            for j in range(i + 1, len(self.members)):
                path = self.topology.path(a, self.members[j])
                if path.kind is not PathKind.NET:
                    found[i].append(path)
                    found[j].append(path)
        return found

    @cached_property
    def slowest(self) -> Path | None:
        """Inside the nodes; None where each member is alone in its own."""
        return bottleneck(path for row in self.rows for path in row)

    @property
    def crosses_network(self) -> bool:
        return any(len(row) < len(self.members) - 1 for row in self.rows)

    @property
    def has_fabric(self) -> bool:
        """Whether a ring over NVLink or xGMI visits all members of a node: surely so where each has such paths to half
        of them, itself counted (Dirac, 1952), as in the cube mesh of a DGX-1."""
        counts = [(sum(path.kind in _FABRICS for path in row), len(row)) for row in self.rows]
        return any(fast for fast, _ in counts) and all(fast == all_ or 2 * fast > all_ for fast, all_ in counts)

    @property
    def can_nvls(self) -> bool:
        """Hopper or newer, all pairs joined through a switch."""
        return len(self.members) > 2 and all(
            (capability := self.capability(i)) is not None
            and capability[0] in NVLS_EFFICIENCY
            and all(path.kind in (PathKind.NVLINK, PathKind.MNNVL) for path in self.rows[i])
            and self.is_switched(i)
            for i in range(len(self.members))
        )

    @property
    def is_staged(self) -> bool:
        """Whether the driver offers no peer access: by its word where it has one, else as on GeForce boards."""
        told = [path.p2p for row in self.rows for path in row if path.p2p is not None]
        known = [s for p2p in told for s in (p2p.read, p2p.write) if s not in (None, P2pStatus.UNKNOWN)]
        if known:
            return any(status is not P2pStatus.OK for status in known)
        return any("geforce" in (self.topology.gpu(ref).name or "").lower() for ref in self.members)

    @property
    def is_virtual(self) -> bool:
        """Whether PCIe levels are the hypervisor's choice."""
        return any(self.topology.nodes[ref.node].virtualization not in (None, "bare") for ref in self.members)

    def gpu(self, place: int) -> Gpu:
        return self.topology.gpu(self.members[place])

    def figures(self, place: int) -> GpuFigures | None:
        return _figures(self.gpu(place).name)

    def capability(self, place: int) -> tuple[int, int] | None:
        figures = self.figures(place)
        return self.gpu(place).compute_capability or (figures.compute_capability if figures else None)

    def fast(self, place: int) -> list[Path]:
        return [path for path in self.rows[place] if path.kind in _FABRICS]

    def is_switched(self, place: int) -> bool:
        """Whether its pairs share one set of links. Where no source says so, it is plain from their number: each pair
        has all that the model has, or together they have more."""
        paths = self.fast(place)
        if all(path.kind is PathKind.MNNVL or path.through is Through.SWITCH for path in paths):
            return True
        if any(path.through is Through.DIRECT or path.kind is PathKind.XGMI for path in paths):
            return False
        links, told = self._links_of_model(place), [path.links or 0 for path in paths]
        return links is not None and (sum(told) > links or set(told) == {links})

    def links(self, place: int) -> int | None:
        """Active links that lead from it into the group; None where they can't be counted."""
        paths = self.fast(place)
        active = self.gpu(place).nvlinks_active or self._links_of_model(place)
        told = [path.links for path in paths if path.links is not None]
        if len(told) < len(paths):  # MNNVL paths and `topo -m` of some drivers count none
            return min([active, *told]) if active and self.is_switched(place) else active if len(paths) == 1 else None
        if paths[0].kind is PathKind.XGMI:
            return sum(told)
        found = min(told) if self.is_switched(place) else sum(told)
        return min(found, active) if active else found

    def gbps_per_link(self, place: int) -> float | None:
        """Of its NVLinks or xGMI links, as NCCL or RCCL counts it."""
        path, figures = self.fast(place)[0], self.figures(place)
        if path.kind is PathKind.XGMI:
            return XGMI_KERNEL_GBPS.get(figures.key) if figures else None
        version = path.version or (figures.nvlink_version if figures else None)
        return nvlink_kernel_gbps(self.capability(place), version)

    def _links_of_model(self, place: int) -> int | None:
        figures = self.figures(place)
        return self.gpu(place).nvlinks_total or (figures.nvlinks if figures else None)


_C2C = ("gh200", "gb200", "gb300", "gb10")


def is_superchip(gpu: Gpu) -> bool:
    """Whether NVLink-C2C, and no PCIe port, joins it with its CPU."""
    figures = _figures(gpu.name)
    return figures is not None and figures.key.partition("-")[0] in _C2C


def port_gbps(gpu: Gpu) -> tuple[float, str] | None:
    """A GPU's PCIe port in one direction, after line coding, and its name: 'PCIe Gen4 x16'. None: not known, or no
    way to its host.

    The width is the present one, the generation the largest that port and slot agree on: the present one drops while
    a GPU idles.
    """
    if is_superchip(gpu):
        return None
    port, figures = gpu.pcie, _figures(gpu.name)
    generation = (port.generation_max if port else None) or (figures.pcie_generation if figures else None)
    width = ((port.width or port.width_max) if port else None) or (figures.pcie_width if figures else None)
    if generation is None or width is None:
        return None
    try:
        return pcie_gbps(generation, width), f"PCIe Gen{generation} x{width}"
    except ValueError:
        return None


_figures = lru_cache(maxsize=256)(gpu_figures)
