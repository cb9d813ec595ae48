"""What was measured: samples, curves, rates, and the Survey that carries them beside the Topology. Frozen, no I/O."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from probe.islands import GroupShape
from probe.statistics import coefficient_of_variation, median, median_interval, quantile
from probe.topology import GpuRef, Notice, Origin, Topology, require

_SHORTEST_S, _LONGEST_S = 1e-12, 1e9


UNFINISHED = frozenset(("not-measured", "partly-measured", "unfinished"))
"""Codes in `Survey.missing` which say that more time would have told more."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Raw times, in seconds, of one operation on one group at one size; each is the maximum over the ranks.

    A round is one visit: its times were taken one after the other, two rounds lie apart. Only the difference between
    rounds shows what a shared machine does over minutes.
    """

    size_bytes: int
    rounds_s: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        require(0 < self.size_bytes < 1 << 60, "a sample moves at least one byte, and less than an exbibyte")
        require(len(self.rounds_s) > 0 and all(self.rounds_s), "a sample has a round, and each round a time")
        require(
            all(_SHORTEST_S <= t <= _LONGEST_S for t in self.times_s),
            "times are positive and finite, between a picosecond and 30 years",
        )

    @property
    def times_s(self) -> tuple[float, ...]:
        return tuple(itertools.chain.from_iterable(self.rounds_s))

    @property
    def n(self) -> int:
        return sum(len(one) for one in self.rounds_s)

    @property
    def min_s(self) -> float:
        return min(self.times_s)

    @property
    def p50_s(self) -> float:
        """The median of all times, of whichever round: what decisions rest on."""
        return median(self.times_s)

    @property
    def p95_s(self) -> float:
        return quantile(sorted(self.times_s), 0.95)

    @property
    def cv(self) -> float | None:
        """Standard deviation over mean; None for a single time."""
        return coefficient_of_variation(self.times_s)

    @property
    def interval_s(self) -> tuple[float, float] | None:
        """The median's 95 % confidence interval from this sample alone, as probe.statistics derives it.

        None for a single time. From one round it cannot know of drift, and from two it hardly can: `curve.profile`
        gives the intervals that a whole curve knows.
        """
        return median_interval(self.rounds_s)

    @property
    def half_width(self) -> float | None:
        """Half the interval over the median: 0.05 reads as +-5 %."""
        return None if (ends := self.interval_s) is None else (ends[1] - ends[0]) / 2 / self.p50_s


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
    """Of a 'p2p': 'forward' (first member to second), 'backward' or 'both' at once; None for a collective."""
    p2p_enabled: bool | None = None
    nvls: bool | None = None
    library_version: str | None = None


@dataclass(frozen=True)
class Curve:
    """Sizes -> times of one operation: samples in ascending order of size, at most one per size.

    A size is what nccl-tests calls so: all bytes of a rank's larger buffer (the output of an all-gather, the input of
    a reduce-scatter, both of an all-to-all); of a p2p, the bytes that go in *each* direction that is in use.
    """

    key: CurveKey
    samples: tuple[Sample, ...]
    members: tuple[GpuRef, ...] = ()

    def __post_init__(self) -> None:
        sizes = [s.size_bytes for s in self.samples]
        require(len(sizes) > 0, "a curve has at least one sample")
        require(all(a < b for a, b in itertools.pairwise(sizes)), "sizes ascend, each measured once")
        pairs = sum(count for _, count in self.key.group.paths)
        require(self.ranks * (self.ranks - 1) == 2 * pairs, "a group of n GPUs has n (n - 1) / 2 paths")
        require(len(self.members) in (0, self.ranks), "a curve's members are the GPUs of its group")

    @property
    def ranks(self) -> int:
        """GPUs of the group, n of the n (n - 1) / 2 paths between them."""
        pairs = sum(count for _, count in self.key.group.paths)
        return (1 + math.isqrt(1 + 8 * max(pairs, 0))) // 2


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
        require(1e-6 <= self.value <= 1e7, "a rate is positive and finite: from 1e-6 to 1e7 of its unit")


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
    lab: str | None = None
    """Set where CPU ranks stood in for the machine's GPUs: what did. Such figures are no GPU's, and never cached."""
    measured_at: str | None = None
    """When its measurement ended: ISO 8601, in UTC; of several surveys the oldest of theirs."""

    @property
    def is_measured(self) -> bool:
        return bool(self.curves or self.rates)

    @property
    def is_partial(self) -> bool:
        """Whether time ran out before all that was planned was measured."""
        return any(notice.code in UNFINISHED for notice in self.missing)

    @property
    def points(self) -> int:
        """Sizes of all curves, each counted once."""
        return sum(len(curve.samples) for curve in self.curves)
