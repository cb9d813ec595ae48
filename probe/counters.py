"""Error counters of two moments, and what their growth means. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from probe.measurement import HealthSnapshot
from probe.topology import GpuRef, Notice
from probe.units import some

Growth = dict[GpuRef, dict[str, int]]

_MEANINGS = {  # by kind of counter: code, what grew, what it means and what to do
    "link": (
        "nvlink-errors",
        "NVLink errors",
        "figures over these links are suspect. See `nvidia-smi nvlink -e`; reseat the bridge or have it serviced.",
    ),
    "c2c": ("c2c-errors", "C2C link errors", "figures between GPU and CPU are suspect. Have the board serviced."),
    "pcie": (
        "pcie-replays",
        "PCIe replays",
        "packets were sent again, so bandwidth was lost. Reseat the board or its riser, check the cable.",
    ),
    "uncorrected": (
        "ecc-uncorrected",
        "uncorrected memory errors (ECC)",
        "data were lost. Look for Xid 48, 63, 94, 95 in dmesg, and take the GPU out of service.",
    ),
    "ecc": (
        "ecc-errors",
        "corrected memory errors (ECC)",
        "no data were lost. Look whether they go on; a row that fails again is remapped.",
    ),
    "rows": ("row-remaps", "remapped rows", "memory is wearing out. Reset the GPU so that the remap takes hold."),
}
_LIFETIME = "aggregate"


def grown(before: tuple[HealthSnapshot, ...], after: tuple[HealthSnapshot, ...]) -> tuple[Notice, ...]:
    """A Notice per kind of counter that grew between the snapshots, and one for GPUs that tell none any more.

    A counter that is new or fell (a reset, a reload of the driver) tells nothing. Counts over the GPU's lifetime are
    left out where the same are counted since the driver was loaded.
    """
    if not after:
        return ()
    later = {s.gpu: dict(s.counters) for s in after}
    growth: Growth = {}
    for snapshot in before:
        known = dict(snapshot.counters)
        now = later.get(snapshot.gpu, {})
        growth[snapshot.gpu] = {
            name: now[name] - n for name, n in known.items() if now.get(name, 0) > n and not _is_repeated(name, known)
        }
    return (*_silent(before, later), *_by_kind(growth))


def _is_repeated(name: str, known: Mapping[str, int]) -> bool:
    return name.endswith(_LIFETIME) and name.removesuffix(_LIFETIME) + "volatile" in known


def _silent(before: tuple[HealthSnapshot, ...], later: Mapping[GpuRef, object]) -> Iterator[Notice]:
    gone = [_named(s.gpu) for s in before if s.gpu not in later]
    if gone:
        what = f"{some(gone)} told error counters before the measurement and none after it"
        yield Notice("gpu-silent", f"{what}: it may be lost. Look for Xid in dmesg and probe again.")


def _by_kind(growth: Growth) -> Iterator[Notice]:
    for kind, (code, what, means) in _MEANINGS.items():
        seen = [
            f"{_named(gpu)} ({some([f'{name} +{n:,}' for name, n in found.items()], 4)})"
            for gpu, counters in growth.items()
            if (found := {name: n for name, n in counters.items() if _kind(name) == kind})
        ]
        if seen:
            yield Notice(code, f"{what} grew while measuring on {some(seen)}: {means}")


def _kind(name: str) -> str:
    """The first part of a counter's name; memory errors that could not be corrected are of their own kind."""
    return "uncorrected" if ".uncorrected" in name and name.startswith("ecc.") else name.partition(".")[0]


def _named(gpu: GpuRef) -> str:
    return f"GPU {gpu.gpu}" + (f" of node {gpu.node}" if gpu.node else "")
