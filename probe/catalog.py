"""What vendors say of their GPUs, each figure with its source and date; pure, reads nothing but its own data file.

`catalog.json` holds one line per model. Peak rates are dense (no sparsity); docs/hardware.md tells how they were found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from probe.topology import require

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """A model's figures: memory in bytes, `*_gbps` in 1e9 bytes/s, `*_tflops` in 1e12 operations/s, dense.

    `memory_bytes` is the total that the driver prints in its default state (ECC on where the board ships so); where no
    such print is known, `vendor_memory_gb` x 2**30, because vendors' GB of GPU memory are binary. `nvlinks` counts
    the links that the model has (0: none, None: not NVLink at all, as on AMD); `nvlink_gbps_per_link` is one link in
    one direction, as NVML reads it. `bf16_tflops` is None where the hardware has no bf16 (before Ampere).
    """

    key: str
    name: str
    vendor_memory_gb: int
    memory_bytes: int
    hbm_gbps: float | None
    bf16_tflops: float | None
    fp16_tflops: float
    fp8_tflops: float | None
    nvlinks: int | None
    nvlink_version: float | None
    nvlink_gbps_per_link: float | None
    pcie_generation: int | None
    pcie_width: int | None
    compute_capability: tuple[int, int] | None
    source: str
    date: str
    note: str | None = None
    nvlink_by_bridge: bool = False
    """Its NVLinks work only where a bridge joins two boards, and a board without one is no fault."""

    def __post_init__(self) -> None:
        require(self.memory_bytes > 0, f"{self.key}: memory is positive")
        require(
            bool(self.nvlinks) == (self.nvlink_version is not None) == (self.nvlink_gbps_per_link is not None),
            f"{self.key}: NVLinks have a version and a rate",
        )

    @property
    def nvlink_gbps(self) -> float | None:
        """All NVLinks together, one direction, in 1e9 bytes/s; None where there are none."""
        return self.nvlinks * self.nvlink_gbps_per_link if self.nvlinks and self.nvlink_gbps_per_link else None


@dataclass(frozen=True, slots=True)
class _Entry:
    needs: frozenset[str]
    allows: frozenset[str]
    figures: GpuFigures


# Words that tell no model from another.
_NOISE = frozenset("nvidia tesla geforce rtx amd instinct gpu graphics tensor core generation edition".split())
_NAME_LIMIT = 128


@lru_cache(maxsize=256)
def gpu_figures(name: str | None) -> GpuFigures | None:
    """The figures of a driver's name ('NVIDIA H100 80GB HBM3') or a catalog key ('h100-sxm'); None if unknown.

    Every word of the name must be known to the entry, so 'RTX 4090 Laptop GPU', a vGPU profile ('A100-40C') or an
    unlisted memory size ('H100 64GB') finds nothing rather than a relative. A name that leaves several entries open
    ('A100') gives the one with the least memory, and among equals the first listed, which is the one most sold.
    """
    if not name or len(name) > _NAME_LIMIT:
        return None
    key = name.strip().casefold()
    words = _words(key)
    best: GpuFigures | None = None
    for entry in _catalog():
        if entry.figures.key == key:
            return entry.figures
        fits = entry.needs <= words <= entry.allows
        if fits and (best is None or entry.figures.vendor_memory_gb < best.vendor_memory_gb):
            best = entry.figures
    return best


def catalog_keys() -> list[str]:
    """Every key, in the order of the catalog: oldest family first."""
    return [entry.figures.key for entry in _catalog()]


def _words(text: str) -> frozenset[str]:
    """'nvidia a100-sxm4-80 gb' -> {nvidia, a100, sxm4, 80gb}; 'rtx4090' -> {rtx, 4090}."""
    text = re.sub(r"(?<![a-z0-9])([0-9]{1,4}) ?gi?b?(?![a-z0-9])", r"\1gb", text)
    return frozenset(re.findall(r"[a-z0-9]+|[^\s\x00-\x7f]", re.sub(r"(?<![a-z0-9])rtx(?=[a0-9])", "rtx ", text)))


@lru_cache(maxsize=1)
def _catalog() -> tuple[_Entry, ...]:
    import json

    return tuple(_entry(row) for row in json.loads(Path(__file__).with_name("catalog.json").read_text("utf-8"))["gpus"])


def _entry(row: dict[str, Any]) -> _Entry:
    needs = frozenset(row.pop("needs"))
    allows = needs | _NOISE | frozenset(row.pop("allows"))
    reported_mib = row.pop("reported_memory_mib")
    memory_bytes = reported_mib * _MIB if reported_mib else row["vendor_memory_gb"] * _GIB
    capability = row.pop("compute_capability")
    return _Entry(
        needs,
        allows,
        GpuFigures(**row, memory_bytes=memory_bytes, compute_capability=tuple(capability) if capability else None),
    )


_PCIE_GIGATRANSFERS = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0, 7: 128.0}
_PCIE_WIDTHS = (1, 2, 4, 8, 12, 16, 32)


def pcie_gbps(generation: int, width: int) -> float:
    """A PCIe link in one direction, in 1e9 bytes/s, after line coding and before packet headers.

    transfers/s x lanes / 8 x coding. Generations 1 and 2 run 2.5 and 5 GT/s in 8b/10b, 3 to 5 run 8, 16 and 32 GT/s in
    128b/130b, 6 and 7 run 64 and 128 GT/s in FLIT mode, where 242 of 256 bytes are not CRC or FEC (PCI Express Base
    Specification 6.0, 4.2.3). Gen4 x16 = 31.5, Gen5 x16 = 63.0. Headers leave about 85 to 90 % of it to payload.
    Raises ValueError on a generation or width that does not exist.
    """
    require(generation in _PCIE_GIGATRANSFERS, f"PCIe has generations 1 to 7, not {generation}")
    require(width in _PCIE_WIDTHS, f"a PCIe link has 1, 2, 4, 8, 12, 16 or 32 lanes, not {width}")
    coding = 8 / 10 if generation <= 2 else 128 / 130 if generation <= 5 else 242 / 256
    return _PCIE_GIGATRANSFERS[generation] * width / 8 * coding


# Per link and direction; 2.0 and 3.0: 8 x 25.78 or 4 x 51.56 Gbit/s, 4.0: 2 x 106.25, 5.0: 2 x 212.5.
_NVLINK_GBPS = {1.0: 20.0, 2.0: 25.781, 3.0: 25.781, 4.0: 26.562, 5.0: 53.125}


def nvlink_gbps_per_link(version: float) -> float | None:
    """One NVLink in one direction, in 1e9 bytes/s, as data-centre boards run it and NVML reads it (1e6 bytes/s there).

    None for a version without a public figure. GeForce and RTX boards run 3.0 at 14.062: their entry says so.
    """
    return _NVLINK_GBPS.get(version)
