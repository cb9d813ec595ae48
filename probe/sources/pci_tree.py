"""Where a device stands in a PCIe tree, and the level of the path between two devices. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from probe.topology import Nic, Path, PathKind, PcieLink
from probe.units import ranges

_MAX_CPUS = 1 << 13  # NR_CPUS of the largest kernels
# GT/s of a lane -> generation (PCI Express Base Specification 6.0, table 1-1); a kernel before 5.x prints '8 GT/s'.
_GENERATIONS = {"2.5": 1, "5": 2, "8": 3, "16": 4, "32": 5, "64": 6, "128": 7}
_WIDTHS = (1, 2, 4, 8, 12, 16, 32)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device hangs: its CPU (None: not told), and the bridges from there down to it, outermost first.

    CPUs and bridges are numbers that the reader of a tree gives, since bus ids may be missing or doubled.
    """

    cpu: int | None
    bridges: tuple[int, ...] = ()


def level(a: Place, b: Place) -> PathKind:
    """The PCIe level of `nvidia-smi topo -m`, as NCCL finds it in a tree (ncclTopoSetPaths).

    PIX below one and the same bridge, PXB where only a bridge further up is common, PHB through one CPU, SYS from CPU
    to CPU. A tree of CPUs does not tell host bridges apart, so NODE never comes out: PHB stands for both.
    """
    if a.bridges and a.bridges == b.bridges:
        return PathKind.PIX
    common = sum(1 for _ in takewhile(lambda step: step[0] == step[1], zip(a.bridges, b.bridges, strict=False)))
    if common:
        return PathKind.PXB
    if a.cpu is None or b.cpu is None:
        return PathKind.UNKNOWN
    return PathKind.PHB if a.cpu == b.cpu else PathKind.SYS


def nearest(nics: Sequence[Nic], row: Sequence[Path]) -> tuple[str, ...]:
    """The names of the NICs at the shortest distance; none where a NIC of unknown path could be as near."""
    best = min((p.kind.distance for p in row), default=None)
    if best is None or any(p.kind is PathKind.UNKNOWN for p in row):
        return ()
    return tuple(nic.name for nic, path in zip(nics, row, strict=True) if path.kind.distance == best)


def cpus_of_mask(mask: str | None) -> tuple[int, ...] | None:
    """'00000000,0000ffff' (32-bit words, highest first, as in sysfs) -> CPU numbers; None where it is no mask."""
    if mask is None or len(mask) > _MAX_CPUS // 32 * 9:
        return None
    words = mask.lower().replace("0x", "").split(",")
    if not all(re.fullmatch("[0-9a-f]{1,8}", word.strip(), re.ASCII) for word in words):
        return None
    bits = int("".join(word.strip().rjust(8, "0") for word in words), 16)
    return tuple(n for n, bit in enumerate(reversed(f"{bits:b}")) if bit == "1")


def cpulist(cpus: Sequence[int] | None) -> str | None:
    """(0, 1, 2, 8) -> '0-2,8'; None for no CPU."""
    return ranges(tuple(cpus)) if cpus else None


def pcie_port(speed: str | None, width: str | None) -> PcieLink | None:
    """'32.0 GT/s PCIe', '16' -> Gen5 x16. NCCL writes what device and port can do at most, not what runs now."""
    match = re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9])?)\s*GT/s.{0,16}", speed or "", re.ASCII)
    generation = _GENERATIONS.get(match[1].removesuffix(".0")) if match else None
    lanes = int(width) if width and width in map(str, _WIDTHS) else None
    return PcieLink(generation_max=generation, width_max=lanes) if generation or lanes else None
