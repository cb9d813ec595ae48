"""The nouns of a checked command: where it lies, what it breaks, what it costs against the best plan. Frozen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from configgen.engines.reading import Command
from configgen.memory import StageMemory
from configgen.plan import Parallelism, Plan, Predictions, Workload
from probe.topology import GpuRef, Provenance

CHECK_SCHEMA_VERSION = 1


class Standing(str, Enum):
    """What the verdict comes to."""

    REFUSED = "refused"
    BEHIND = "behind"
    WITHIN_UNCERTAINTY = "within-uncertainty"
    BEST = "best"
    UNJUDGED = "unjudged"
    """Whether it can start rests on what is not counted here."""
    UNCOMPARED = "uncompared"
    """It is legal, and there is no plan to compare it with."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """What the messages of one group go over: a stage's all-reduces, or the hand-offs to the next stage."""

    replica: int
    stage: int
    to_stage: int | None
    gpus: tuple[GpuRef, ...]
    """Of the stage; of both stages where it is a boundary."""
    slowest: str
    """Label of the slowest path: 'NV4', 'SYS', 'NET'."""
    paths: tuple[tuple[str, int], ...]
    """Label -> pairs of GPUs, the slowest first."""
    islands: int
    """Islands that a message crosses at most; 1 where all paths are of one fast fabric."""
    nodes: int


@dataclass(frozen=True, slots=True)
class Best:
    """The best plan for the same model, load and engine."""

    plan: Plan
    loss: float | None
    """How much less the command gives, 0.2 for four fifths; None where the command can't be predicted."""
    doubt: float | None
    because: str | None
    """What the command spends more on."""


@dataclass(frozen=True, slots=True)
class Check:
    """A command on a machine. `replicas` are its stages of GPUs in rank order, empty where it can't be placed."""

    command: Command
    standing: Standing
    verdict: str
    workload: Workload
    parallelism: Parallelism | None
    replicas: tuple[tuple[tuple[GpuRef, ...], ...], ...]
    layers_per_stage: tuple[int, ...]
    laws: tuple[str, ...]
    unsure: tuple[str, ...]
    """Laws that it breaks unless what is not counted here takes less memory than what is."""
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    crossings: tuple[Crossing, ...]
    memory: tuple[StageMemory, ...]
    predictions: Predictions | None
    provenance: Provenance | None
    """What most of a token's predicted time rests on."""
    best: Best | None
    idle_gpus: int

    @property
    def legal(self) -> bool | None:
        """None where that can't be judged."""
        return None if self.standing is Standing.UNJUDGED else self.standing is not Standing.REFUSED

    @property
    def is_fine(self) -> bool:
        return self.standing not in (Standing.REFUSED, Standing.BEHIND)
