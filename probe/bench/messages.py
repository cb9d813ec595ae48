"""What the parent tells the node's process, and what that and its ranks report: one JSON message per datagram."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from probe.measurement import CurveKey, Evidence, Rate, Verification
from probe.topology import GpuRef, Notice


class Rendezvous(msgspec.Struct, frozen=True, kw_only=True):
    """Where the nodes meet. `hosted` says that a launcher's own store already listens at that address."""

    nodes: int = 1
    node: int = 0
    """This node's rank, 0 to nodes - 1; node 0 hosts the store and conducts."""
    address: str = "127.0.0.1"
    port: int = 0
    """0 lets the system choose, on one node only."""
    hosted: bool = False
    attempt: int = 0
    """Of a launcher that starts again what failed: its store still holds what the former attempt wrote."""
    interface: str | None = None
    """The network interface that gloo and NCCL bind, None for the library's own choice."""
    origin: str = "this node alone"
    """Who told: '--nnodes', 'torchrun', 'srun', 'mpirun', 'LeaderWorkerSet', 'Kubernetes job' ..."""

    @property
    def prefix(self) -> str:
        """Of all keys of this attempt in the store."""
        return f"wirelore/{self.attempt}"


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """Whatever else a rank found out."""

    rates: tuple[Rate, ...] = ()
    verifications: tuple[Verification, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    missing: tuple[Notice, ...] = ()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's process needs to know; times are this host's monotonic clock."""

    rendezvous: Rendezvous
    topology: msgspec.Raw
    """This node's topology document."""
    backend: str
    started_s: float
    """When the command began, on this host's time.monotonic()."""
    budget_s: float | None
    timeout_s: float
    """Silence after which a node, a rank or an operation counts as lost."""
    largest_bytes: int
    every_pair: bool = False
    named_interface: str | None = None
    """The one that a person named; without it NCCL uses all that it finds, as an engine would."""
    gemm_shapes: tuple[tuple[int, int, int], ...] = ()
    resume: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # raw JSON and null cannot be told apart
    """A survey of the same machine whose points need no measuring."""
    told: Measured
    """What this node's parent found out about its GPUs before any rank began."""


class Arrival(msgspec.Struct, frozen=True):
    """What a node brings to the others; all have to mean the same thing by a step's number."""

    version: str
    backend: str
    topology: msgspec.Raw


class Agreement(msgspec.Struct, frozen=True):
    """What node 0 decides for all, once every node is there."""

    every_pair: bool
    largest_bytes: int
    generations: tuple[int, ...]
    through_host: bool
    """P2P failed its check somewhere."""


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """Every node is there."""

    topology: bytes
    """That of all nodes: its document, compressed by zlib."""
    pids: tuple[int, ...]
    """This node's ranks."""


class Point(msgspec.Struct, frozen=True, tag="point"):
    """One visit of one group at one size: its raw times, each the maximum over the ranks."""

    key: CurveKey
    members: tuple[GpuRef, ...]
    size_bytes: int
    times_s: tuple[float, ...]


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A sign of life: what is measured now."""

    text: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The run cannot go on."""

    problem: str
    cure: str
    misused: bool = False
    """Whether it was asked for in a way that cannot work: exit code 2."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """All that was worth the time has been measured."""


Message: TypeAlias = Joined | Point | Measured | Progress | Failed | Done
