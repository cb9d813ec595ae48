"""Candidates, and the rules by which two of them that the cost model finds alike stand before each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log2

from configgen.memory import StageMemory
from configgen.placement import DomainKind, Slot
from configgen.plan import Objective, Parallelism, Workload
from probe.topology import Path

USEFUL_BATCH = 32
"""Sequences a replica should hold where nobody told the load: a tenth of the batch at which decoding turns from
memory to compute bound (H100: 989e12 FLOP/s / 3.35e12 B/s = 295), below which each step reads weights for few."""


@dataclass(frozen=True)
class Candidate:
    """A parallelism with its places and its memory, ready to be compared."""

    parallelism: Parallelism
    runs: tuple[tuple[DomainKind, tuple[Slot, ...]], ...]
    layers: tuple[int, ...]
    memory: tuple[StageMemory, ...]
    rooms: tuple[int, ...]
    """Sequences of the workload's length that a replica of each pattern holds, in the order of `runs`."""
    tp_path: Path | None
    pp_path: Path | None

    @property
    def tp_is_fast(self) -> bool:
        return self.tp_path is None or self.tp_path.is_fast

    @property
    def tp_distance(self) -> int:
        return self.tp_path.kind.distance if self.tp_path else 0

    @property
    def memory_bytes(self) -> int:
        """Memory that its GPUs bring in together, each counted as its smallest: uneven groups waste the difference."""
        return self.parallelism.gpus * min(m.usable_bytes for m in self.memory)

    @property
    def batch(self) -> int:
        """Sequences of the workload's length that the fullest replica holds."""
        return min(self.rooms)

    @property
    def max_concurrency(self) -> int:
        """Sequences of the workload's length that all replicas hold."""
        return sum(room * times for _, _, room, times in self.replicas())

    def replicas(self) -> Iterator[tuple[DomainKind, Slot, int, int]]:
        """Each pattern of replica: its kind of domain, its slot, its room, and how many of it there are."""
        left, rooms = self.parallelism.dp, iter(self.rooms)
        for kind, patterns in self.runs:
            for slot in patterns:
                times = min(left, len(kind.domains) // patterns[0].domains)
                yield kind, slot, next(rooms), times
                left -= times


@dataclass(frozen=True, slots=True)
class Judge:
    """Sort keys: the first term in which two candidates differ decides."""

    workload: Workload
    has_fast_island: bool
    batch: int
    """Sequences that a replica should hold at least."""
    largest_all_reduce: int
    """Beyond it the engine falls back to a library whose start-up time grows with the group."""
    mla: bool

    def rank(self, c: Candidate) -> tuple[object, ...]:
        p = c.parallelism
        starved = self._starved(c)
        experts = self._expert_preference(c)
        if self.workload.objective is Objective.LATENCY:
            if self.has_fast_island:
                beyond = max(0, p.tp - self.largest_all_reduce)
                return (starved, not c.tp_is_fast, p.pp, beyond, -p.tp, experts, c.tp_distance)
            return (starved, p.pp, p.gpus_per_replica, c.tp_distance, experts)
        if self.has_fast_island:
            scattered = p.tp == 1 and p.pp > 1  # stages of one GPU leave every island unused
            rest = (-c.memory_bytes, not c.tp_is_fast, p.pp, experts, c.tp_distance)
            return (starved, c.batch < self.batch, -p.dp, scattered, *rest)
        pairs_first = {2: 0, 1: 1}.get(p.tp, p.tp)
        return (starved, -p.dp, p.gpus_per_replica > 1, -c.memory_bytes, pairs_first, c.tp_distance, experts)

    def _starved(self, c: Candidate) -> int:
        """How often the load must be halved until it fits: a few sequences more or less decide nothing."""
        return max(0, ceil(log2(self.workload.concurrency / max(1, c.max_concurrency))))

    def _expert_preference(self, c: Candidate) -> int:
        """0 is preferred. Published ratios of EP to plain TP: 1.02-1.78 with MLA, 0.56-1.04 without it."""
        p = c.parallelism
        if not self.mla or self.workload.objective is Objective.LATENCY or not c.tp_is_fast:
            return 0 if p.ep == 1 else 1
        return 0 if p.attention_dp > 1 else 1 if p.ep > 1 else 2
