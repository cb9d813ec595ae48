"""What was measured: samples, curves, rates, and the Survey that carries them beside the Topology. Frozen, no I/O."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from probe.islands import GroupShape
from probe.topology import GpuRef, Notice, Origin, Topology, require


@dataclass(frozen=True, slots=True)
class Sample:
    """Raw times, in seconds, of one operation on one group at one size; each is the maximum over the ranks."""

    size_bytes: int
    times_s: tuple[float, ...]

    def __post_init__(self) -> None:
        require(self.size_bytes > 0, "a sample moves at least one byte")
        require(len(self.times_s) > 0, "a sample has at least one time")
        require(all(0 < t < float("inf") for t in self.times_s), "times are positive and finite")


@dataclass(frozen=True, slots=True)
class CurveKey:
    """All that must be equal for two curves to be the same measurement."""

    operation: str
    """'all_reduce', 'all_gather', 'reduce_scatter', 'all_to_all' or 'p2p'."""
    group: GroupShape
    dtype: str
    backend: str
    """'nccl', 'rccl' or 'gloo'; gloo curves of a described machine are lab figures, never a real GPU's."""
    graph: bool = False
    direction: str | None = None
    p2p_enabled: bool | None = None
    nvls: bool | None = None
    library_version: str | None = None


@dataclass(frozen=True)
class Curve:
    """Sizes -> times of one operation: samples in ascending order of size, at most one per size."""

    key: CurveKey
    samples: tuple[Sample, ...]
    members: tuple[GpuRef, ...] = ()

    def __post_init__(self) -> None:
        sizes = [s.size_bytes for s in self.samples]
        require(len(sizes) > 0, "a curve has at least one sample")
        require(all(a < b for a, b in itertools.pairwise(sizes)), "sizes ascend, each measured once")


@dataclass(frozen=True, slots=True)
class Rate:
    """A compute or memory rate of one GPU: 'hbm_read' and 'h2d' in 1e9 bytes/s, 'gemm' in 1e12 operations/s."""

    kind: str
    gpu: GpuRef
    value: float
    unit: str
    dtype: str | None = None
    shape: tuple[int, int, int] | None = None
    """(m, n, k) of a GEMM."""

    def __post_init__(self) -> None:
        require(0 < self.value < float("inf"), "a rate is positive and finite")


@dataclass(frozen=True, slots=True)
class HealthSnapshot:
    """Counters of one GPU at one moment, by name; compare two, never read one alone."""

    gpu: GpuRef
    taken_at: str
    counters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """P2P written and read back between two GPUs: the proof beside the driver's promise."""

    source: GpuRef
    target: GpuRef
    passed: bool
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run really used: ('all_reduce', 'transport', 'P2P/CUMEM'), from the library's own log."""

    operation: str
    what: str
    value: str


@dataclass(frozen=True)
class Survey:
    """The midpoint: what a machine has, and what was measured on it. Without curves it is a topology alone."""

    topology: Topology
    curves: tuple[Curve, ...] = ()
    rates: tuple[Rate, ...] = ()
    health: tuple[HealthSnapshot, ...] = ()
    verifications: tuple[Verification, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    missing: tuple[Notice, ...] = ()
    origins: tuple[Origin, ...] = ()
