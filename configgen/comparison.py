"""The nouns of a comparison of two machines: what differs, what that does to numbers, and what carries over. Frozen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from configgen.plan import Parallelism, Predictions, Workload
from probe.measurement import Survey
from probe.topology import Provenance, require

COMPARISON_SCHEMA_VERSION = 1


class Kind(str, Enum):
    """Kinds of number that people take from one machine to another."""

    COMPUTE = "compute rates"
    ISLAND = "wires inside an island"
    PCIE = "wires across PCIe"
    NETWORK = "wires across nodes"
    SERVING = "serving"


class Verdict(str, Enum):
    CARRIES = "carries over"
    RATIO = "only as a ratio"
    NOT = "does not carry over"
    UNKNOWN = "cannot be told"


class Effect(str, Enum):
    """What a difference changes."""

    LATENCY = "latency of small collectives"
    BANDWIDTH = "bandwidth of large ones"
    COMPUTE = "compute"
    MEMORY = "memory size"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two machines, by the name that the person gave it."""

    name: str
    survey: Survey


@dataclass(frozen=True, slots=True)
class Told:
    """What one side says, and what that rests on."""

    text: str
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times A's speed B has, over all sizes from `low` to `high`: 0.5 is half as fast, or twice the time.

    `uncertainty` is the relative half-width.
    """

    value: float
    low: float
    high: float
    uncertainty: float

    def __post_init__(self) -> None:
        require(0 < self.low <= self.value <= self.high, "a ratio lies between its ends and is positive")
        require(self.uncertainty >= 0, "no uncertainty is negative")


@dataclass(frozen=True, slots=True)
class Difference:
    """A fact or figure on both sides; None: that side does not tell it."""

    subject: str
    a: Told | None
    b: Told | None
    affects: tuple[Effect, ...]
    ratio: Ratio | None = None
    """Of figures."""
    is_alike: bool = False
    """Whether two figures are as near as a plan can tell."""

    @property
    def is_equal(self) -> bool:
        return self.is_alike or (self.a is not None and self.b is not None and self.a.text == self.b.text)


class State(str, Enum):
    """What two figures say of each other."""

    SAME = "same"
    APART = "apart"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True)
class Contrast:
    """A figure of both sides, one beside the other."""

    kind: Kind
    ratio: Ratio
    state: State
    difference: Difference
    provenance: Provenance
    """The weaker side's."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether one kind of number carries over, and why; `measure` says what would tell, or make it better known."""

    kind: Kind
    verdict: Verdict
    reason: str
    provenance: Provenance
    """The weakest that the verdict rests on."""
    scope: str = ""
    """Where it holds for a part of the kind alone: 'up to 4 GPUs'."""
    ratio: Ratio | None = None
    measure: str | None = None

    def __post_init__(self) -> None:
        require(self.verdict is not Verdict.UNKNOWN or bool(self.measure), "what cannot be told says what would tell")


@dataclass(frozen=True, slots=True)
class Served:
    """One model, served in one way on one side."""

    parallelism: Parallelism
    predictions: Predictions
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Serving:
    """A's best plan for a model on both sides, and B's best. Ratios are B over A; `uncertainty` is their half-width."""

    model: str
    workload: Workload
    on_a: Served | None
    """None where A cannot hold the model; `law` says why."""
    on_b: Served | None
    """A's plan on B; None where B cannot host it, and `law` says why."""
    best_on_b: Served | None
    law: str | None = None
    tokens_ratio: float | None = None
    """Output tokens/s of each GPU."""
    tpot_ratio: float | None = None
    uncertainty: float | None = None
    spent: str | None = None
    """What the time goes into on the slower side that the other spends less on."""
    behind_best: float | None = None
    """How much less A's plan gives on B than B's best: 0.2 for four fifths."""
    within_uncertainty: bool = False
    """Whether `behind_best` is smaller than what the model may err by."""
    wires_share: float = 0.0
    """Part of a token's time, 0 to 1, that messages between GPUs take on the side where they take more ..."""
    wires_unmeasured: tuple[str, ...] = ()
    """... and the sides ('A', 'B') where nobody timed those of PCIe or the network."""

    @property
    def same_plan(self) -> bool:
        """Whether the best cut of a replica is the same on both."""
        if self.on_a is None or self.best_on_b is None:
            return False
        a, b = self.on_a.parallelism, self.best_on_b.parallelism
        return (a.tp, a.pp, a.ep, a.attention_dp) == (b.tp, b.pp, b.ep, b.attention_dp)


@dataclass(frozen=True)
class Comparison:
    """Whether numbers measured on A carry over to B, and why not."""

    a: Side
    b: Side
    verdict: str
    """In one line, for whoever reads nothing else."""
    judgements: tuple[Judgement, ...]
    facts: tuple[Difference, ...]
    """All that either side tells, equal or not; figures last."""
    measure: tuple[str, ...]
    notes: tuple[str, ...] = ()
    serving: Serving | None = None

    @property
    def carries_over(self) -> bool:
        """Of serving where a model was told, else of every kind of number."""
        decisive = [j for j in self.judgements if self.serving is None or j.kind is Kind.SERVING]
        return all(j.verdict is Verdict.CARRIES for j in decisive)

    @property
    def differences(self) -> tuple[Difference, ...]:
        return tuple(f for f in self.facts if f.a is not None and f.b is not None and not f.is_equal)

    @property
    def equal(self) -> tuple[Difference, ...]:
        return tuple(f for f in self.facts if f.is_equal)

    @property
    def told_by_one(self) -> tuple[Difference, ...]:
        return tuple(f for f in self.facts if (f.a is None) != (f.b is None))
