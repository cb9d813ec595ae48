"""Public measurements of serving set-ups, as groups of alternatives; reads the silicon tables, of single runs.

Runs of one `gid` share set-up, engine and load per GPU, and differ in how they cut the model. Each is taken as often as
fills the same number of GPUs, and its output tokens/s per GPU are compared.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from configgen.plan import Objective, Parallelism, Workload

SATURATED = 2048
"""Sequences that an endless queue keeps running on each replica, as far as memory holds them: TensorRT-LLM's default
`max_batch_size` (docs/source/performance/performance-tuning-guide/tuning-max-batch-size-and-max-num-tokens.md)."""


class Fabric(str, Enum):
    """The classes that regret is averaged over."""

    NVSWITCH = "nvswitch"
    PAIRS = "pairs"
    PCIE = "pcie"
    CROSS_NODE = "cross_node"


class Goal(str, Enum):
    """Which figure says that one alternative is better than another."""

    THROUGHPUT_PER_GPU = "output tokens/s/GPU"
    THROUGHPUT = "output tokens/s"
    TTFT = "TTFT"
    TPOT = "TPOT"

    @property
    def lower_is_better(self) -> bool:
        return self in (Goal.TTFT, Goal.TPOT)


@dataclass(frozen=True, slots=True)
class Setup:
    """What was measured on, in the table's own words. `precision` is None where none was recorded."""

    model: str
    precision: str | None
    gpu: str
    gpus_per_node: int
    nodes: int
    inside: str
    across: str
    engine: str

    @property
    def fabric(self) -> Fabric | None:
        """None where no wire joins the GPUs, or the table has a word for it that is not known here."""
        if self.nodes > 1:
            return Fabric.CROSS_NODE
        if self.inside in ("nvswitch", "nvlink"):
            return Fabric.NVSWITCH
        if self.inside == "nvlink_pairs":
            return Fabric.PAIRS
        return Fabric.PCIE if self.inside.startswith("pcie") else None


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to cut the model, and what it was seen to give; None where it was tried and failed (out of memory)."""

    shape: Parallelism
    value: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked. Under a `saturated` one each replica runs as much as it can, so the load grows with them."""

    workload: Workload
    saturated: bool = False

    def on(self, replicas: int) -> Workload:
        return replace(self.workload, concurrency=SATURATED * replicas) if self.saturated else self.workload


@dataclass(frozen=True, slots=True)
class Group:
    """Alternatives for one set-up and load."""

    name: str
    publisher: str
    setup: Setup
    load: Load
    goal: Goal
    alternatives: tuple[Alternative, ...]

    @property
    def values(self) -> tuple[float | None, ...]:
        return tuple(a.value for a in self.alternatives)


Row = dict[str, str]


def silicon_groups(path: Path) -> list[Group]:
    """The groups of a silicon table, by output tokens/s/GPU; lone rows are no group."""
    by_gid: dict[str, list[Row]] = defaultdict(list)
    for row in rows(path):
        by_gid[row["gid"]].append(row)
    groups = []
    for gid, runs in by_gid.items():
        if len(runs) < 2:
            continue
        first = runs[0]
        gpus = math.lcm(*(whole(r["gpus"]) for r in runs))
        load = Workload(
            whole(first["isl"]),
            whole(first["osl"]),
            max(1, round(float(first["conc_per_gpu"]) * gpus)),
            Objective.THROUGHPUT,
        )
        alternatives = tuple(Alternative(silicon_shape(r, gpus), positive(r["tput_gpu"])) for r in runs)
        groups.append(Group(gid, "silicon", silicon_setup(first), Load(load), Goal.THROUGHPUT_PER_GPU, alternatives))
    return groups


def silicon_setup(row: Row) -> Setup:
    """The set-up of one row: an 8-GPU node behind NVSwitch, as both of the table's systems are."""
    precision = row["precision"] or None
    return Setup(row["model_path"], precision, row["system"].replace("_", "-"), 8, 1, "nvswitch", "", row["backend"])


def silicon_shape(row: Row, gpus: int | None = None) -> Parallelism:
    """How one row cuts the model, replicated to fill `gpus`: `tp_size` is attention TP, so a stage has `gpus` GPUs."""
    stage, stages = whole(row["gpus"]) // whole(row["pp_size"]), whole(row["pp_size"])
    return Parallelism(
        tp=stage,
        pp=stages,
        dp=(gpus or stage * stages) // (stage * stages),
        ep=whole(row["moe_ep_size"]),
        attention_dp=whole(row["attention_dp_size"]),
    )


def positive(text: str | None) -> float | None:
    """A positive finite number; None for whatever else the table says: a run that failed."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def rows(path: Path) -> Iterable[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def whole(text: str) -> int:
    return int(float(text))
