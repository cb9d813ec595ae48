"""Reads a table of decisions: measured alternatives, and what experts chose.

Rows of kind `measured` that share a `group_id` are alternatives; of the other kinds, `expert_choice` is what somebody
runs and `legal_constraint` what a law left over.

No planner leaves GPUs idle for throughput, so there each alternative is taken as often as fills the same number of
GPUs, and what it should give is compared per GPU. The measured figures stay as printed, but for those "of one
instance", which are divided by its GPUs. One user's times and speeds are those of the alternative alone.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.truth import Alternative, Goal, Group, Load, Row, Setup, positive, rows, whole
from configgen.plan import Objective, Parallelism, Workload

MLPERF_TOKENS = {"llama2-70b": (294, 294), "mixtral-8x7b": (294, 145)}
"""(input, output) of MLPerf's data sets. Outputs: TOKENS_PER_SAMPLE 294.45 and 145.9 of the reference accuracy scripts
(mlcommons/inference language/llama2-70b and mixtral-8x7b README); mean inputs are not published, and assumed."""

MLPERF_SERVER_LIMITS_S = (2.0, 0.2)
"""TTFT and TPOT that MLPerf's Server scenario allows Llama-2-70B and Mixtral at the 99th percentile."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What somebody runs on a set-up. `accepted` are all that one publisher names for the same case."""

    name: str
    kind: str
    publisher: str
    setup: Setup
    load: Load
    accepted: frozenset[tuple[int, int]]
    """(tp, pp)."""

    @property
    def is_nim(self) -> bool:
        """NIM's profiles name their own number of GPUs, so they tell TP and nothing else."""
        return self.setup.engine.startswith("nim")


def decision_groups(path: Path) -> list[Group]:
    """The measured groups of a decisions table; lone rows are no group."""
    by_id: dict[str, list[Row]] = defaultdict(list)
    for row in rows(path):
        if row["kind"] == "measured":
            by_id[row["group_id"]].append(row)
    return [_decision_group(name, rows) for name, rows in by_id.items() if len(rows) > 1]


def choices(path: Path) -> list[Choice]:
    """What experts chose and what laws left over; one publisher's answers to one question are one choice."""
    found: dict[tuple[object, ...], Choice] = {}
    for row in rows(path):
        if row["kind"] == "measured":
            continue
        setup = _decision_setup(row, 1)
        load, _ = _load(row["workload"])
        key = (row["kind"], publisher(row["source"]), setup, row["workload"])
        answer = frozenset(((whole(row["tp"]), whole(row["pp"])),))
        if key in found:
            found[key] = replace(found[key], accepted=found[key].accepted | answer)
        else:
            found[key] = Choice(row["group_id"], row["kind"], publisher(row["source"]), setup, load, answer)
    return list(found.values())


def publisher(source: str) -> str:
    """The first word of a source, without round and page: 'NVIDIA/TensorRT-LLM docs/... v0.14.0' is one publisher."""
    return source.split()[0].rstrip(";") if source.split() else ""


def _decision_group(name: str, rows: Sequence[Row]) -> Group:
    shapes = [_decision_shape(row) for row in rows]
    setup = _decision_setup(rows[0], max(shape.gpus for shape in shapes))
    metric, workload_text = rows[0]["metric_name"], rows[0]["workload"]
    load, goal = _load(workload_text)
    unequal = len({shape.gpus for shape in shapes}) > 1
    if goal is Goal.THROUGHPUT and (unequal or "per_gpu" in metric or "one_instance" in metric):
        goal = Goal.THROUGHPUT_PER_GPU
        gpus = math.lcm(*(shape.gpus_per_replica for shape in shapes))
        shapes = [replace(shape, dp=gpus // shape.gpus_per_replica) for shape in shapes]
    alternatives = []
    for row, shape in zip(rows, shapes, strict=True):
        value = positive(row["metric_value"])
        if value is not None and "one_instance" in metric:
            value /= shape.gpus_per_replica
        if value is not None and goal.lower_is_better and "tok" in metric:
            value = 1 / value  # one user's speed, as the time that it takes
        alternatives.append(Alternative(shape, value))
    return Group(name, publisher(rows[0]["source"]), setup, load, goal, tuple(alternatives))


def _decision_setup(row: Row, used: int) -> Setup:
    """`used` GPUs at least: a table that calls a cluster of one-GPU nodes one node still needs so many of them."""
    per_node = whole(row["gpus_per_node"])
    nodes = max(whole(row["nodes"]), -(-used // per_node)) if row["inter_fabric"] else whole(row["nodes"])
    precision = row["weight_dtype"] or None
    return Setup(
        row["model_hf_id"],
        precision,
        row["gpu"],
        per_node,
        nodes,
        row["intra_fabric"],
        row["inter_fabric"],
        row["engine"],
    )


def _decision_shape(row: Row) -> Parallelism:
    """TensorRT-LLM's 'DEP4' (in the notes) is attention DP and EP over 4 GPUs; other rows run attention under TP."""
    tp = whole(row["tp"])
    spread = re.search(r"\bDEP\d", row["notes"]) is not None
    return Parallelism(tp, whole(row["pp"]), whole(row["dp"]), whole(row["ep"]), tp if spread else 1)


def _load(text: str) -> tuple[Load, Goal]:
    """A table's words for a load: lengths, concurrency, and which figure counts. What they leave open is assumed."""
    assumed = []
    lengths = re.search(r"isl/osl=(\d+)/(\d+)", text) or re.search(r"avg in (\d+) / out (\d+)", text)
    mlperf = next((name for name in MLPERF_TOKENS if name in text), None)
    tokens = (int(lengths[1]), int(lengths[2])) if lengths else MLPERF_TOKENS[mlperf] if mlperf else None
    if tokens is None:
        assumed += ["input_tokens", "output_tokens"]
        tokens = (Workload().input_tokens, Workload().output_tokens)
    work = Workload(*tokens, objective=Objective.THROUGHPUT, assumed=tuple(assumed))
    if phase := re.search(r"(\d+)K (prefill|generation)", text):
        work = replace(work, input_tokens=int(phase[1]) << 10, concurrency=1, objective=Objective.LATENCY)
        return Load(work), Goal.TTFT if phase[2] == "prefill" else Goal.TPOT
    if told := re.search(r"conc (\d+)-(\d+)", text):
        middle = math.sqrt(int(told[1]) * int(told[2]))
        return Load(replace(work, concurrency=max(1, round(middle)))), Goal.THROUGHPUT
    if "latency" in text:
        return Load(replace(work, concurrency=1, objective=Objective.LATENCY)), Goal.TPOT
    if "Server" in text:
        work = replace(work, max_ttft_s=MLPERF_SERVER_LIMITS_S[0], max_tpot_s=MLPERF_SERVER_LIMITS_S[1])
        return Load(work, saturated=True), Goal.THROUGHPUT
    if re.search(r"offline|max|throughput|capacity", text, re.IGNORECASE):
        return Load(work, saturated=True), Goal.THROUGHPUT
    return Load(replace(work, assumed=(*assumed, "concurrency"))), Goal.THROUGHPUT
