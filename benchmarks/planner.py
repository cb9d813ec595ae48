"""The planner, given exactly a group's alternatives: what it thinks of each, and what it would choose alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks.decisions import Choice
from benchmarks.scoring import Planner, Worth
from benchmarks.setups import Case, UnmappedError, case
from benchmarks.truth import Goal, Group
from configgen import cost
from configgen.cost import Estimate, Machine, estimate
from configgen.laws import tensor_parallel_laws
from configgen.memory import activation_bytes, overhead_bytes, sequence_bytes, stage_weight_bytes
from configgen.placement import domain_kinds, place, slots
from configgen.plan import Parallelism, Workload
from configgen.search import search, usable_bytes
from probe.errors import NoPlanError
from probe.measurement import Survey
from probe.topology import GpuRef, Topology

Stages = tuple[tuple[GpuRef, ...], ...]


def cases(groups: Sequence[Group], models: Path | None) -> tuple[dict[str, Case], dict[str, UnmappedError]]:
    """Group -> what the planner is given, and group -> why nothing stands for it."""
    found, unmapped = {}, {}
    for group in groups:
        try:
            found[group.name] = case(group.setup, models)
        except UnmappedError as error:
            unmapped[group.name] = error
    return found, unmapped


def predictor(known: dict[str, Case]) -> Planner:
    """Each alternative's figure as the cost model predicts it; None where a law or memory forbids it."""
    machines: dict[int, Machine] = {}

    def worth(group: Group) -> Worth:
        given = known[group.name]
        machine = machines.setdefault(id(given.topology), Machine(Survey(given.topology)))
        return tuple(_worth(group, given, machine, a.shape) for a in group.alternatives)

    return worth


def _worth(group: Group, given: Case, machine: Machine, shape: Parallelism) -> float | None:
    work = group.load.on(shape.dp)
    if group.goal is Goal.THROUGHPUT_PER_GPU:  # of one replica, and it was measured alone
        work = replace(work, concurrency=max(1, work.concurrency // shape.dp))
        shape = replace(shape, dp=1)
    found = predicted(given, machine, shape, work)
    if found is None:
        return None
    return {
        Goal.THROUGHPUT_PER_GPU: found.output_tokens_per_s_per_gpu,
        Goal.THROUGHPUT: found.output_tokens_per_s_per_gpu * shape.gpus,
        Goal.TTFT: 1 / found.ttft_s,
        Goal.TPOT: 1 / found.tpot_s,
    }[group.goal]


def predicted(given: Case, machine: Machine, shape: Parallelism, work: Workload) -> Estimate | None:
    """What the cost model says of a shape on its best place; None where a law or memory forbids it."""
    model, traits = given.model, given.traits
    if (
        tensor_parallel_laws(model, attention_tp=shape.attention_tp, tp=shape.tp, ep=shape.ep)
        or shape.pp > model.layers
    ):
        return None
    stages, layers = seat(given.topology, shape.tp, shape.pp), traits.split(model.layers, shape.pp)
    if stages is None or (held := room(given, shape, stages, layers, work)) < 1:
        return None
    return estimate(machine, model, shape, layers, stages, work, traits, room=held, host=cost.HOST)


@cache
def seat(topology: Topology, tp: int, pp: int) -> Stages | None:
    """The first replica: where a plan puts it, or where no node holds a stage, over the nodes as they are numbered."""
    kind = domain_kinds(topology, lambda ref: 1, len(topology.nodes))[0]
    for slot in slots(kind, tp, pp):
        return next(iter(place(kind, slot)))
    refs = [GpuRef(n, g) for n, node in enumerate(topology.nodes) for g in range(len(node.gpus))]
    if len(refs) < tp * pp:
        return None
    return tuple(tuple(refs[first : first + tp]) for first in range(0, tp * pp, tp))


def room(given: Case, shape: Parallelism, stages: Stages, layers: tuple[int, ...], work: Workload) -> int:
    """Sequences of the workload's length that a replica's fullest stage holds; none where its weights don't fit."""
    model, first, rooms = given.model, 0, []
    for stage, count in zip(stages, layers, strict=True):
        last = first + count
        fixed = stage_weight_bytes(model, first, last, attention_tp=shape.attention_tp, tp=shape.tp, ep=shape.ep)
        tokens, spread = given.traits.max_batched_tokens, shape.attention_dp
        fixed += activation_bytes(model, tokens=tokens, tp=shape.tp, ep=shape.ep, attention_dp=spread)
        fixed += overhead_bytes(shape.gpus_per_replica)
        one = sequence_bytes(model, first, last, tokens=work.tokens, attention_tp=shape.attention_tp)
        left = min(usable_bytes(given.topology, ref, given.traits) for ref in stage) - fixed
        rooms.append(left // max(1, one))
        first = last
    return max(0, min(rooms)) * shape.attention_dp


def plan_order(known: dict[str, Case]) -> Planner:
    """How `plan` ranks what it tries; an inner cut that it never tries stands with plain TP of the same size."""

    def worth(group: Group) -> Worth:
        given = known[group.name]
        shapes = [a.shape for a in group.alternatives]
        work = group.load.on(max(s.dp for s in shapes))
        try:
            field = search(Survey(given.topology), given.model, work, given.traits)
        except NoPlanError:
            return (None,) * len(shapes)
        places: dict[tuple[int, ...], int] = {}
        for number, candidate in enumerate(field.candidates):
            p = candidate.parallelism
            for key in ((p.tp, p.pp, p.ep, p.attention_dp), (p.tp, p.pp)):
                places.setdefault(key, number)

        def place_of(s: Parallelism) -> float | None:
            number = places.get((s.tp, s.pp, s.ep, s.attention_dp), places.get((s.tp, s.pp)))
            return None if number is None else -float(number)

        return tuple(place_of(s) for s in shapes)

    return worth


def own_choice(choice: Choice, given: Case) -> tuple[int, int] | None:
    """(tp, pp) of the best plan on the whole machine; None where there is none.

    Under limits a saturated server takes as much as it can within them: the load is halved until a plan keeps them.
    """
    work = choice.load.on(given.topology.gpu_count)
    while True:
        try:
            p = search(Survey(given.topology), given.model, work, given.traits).candidates[0].parallelism
        except NoPlanError:
            if not choice.load.saturated or work.concurrency == 1:
                return None
            work = replace(work, concurrency=work.concurrency // 2)
        else:
            return p.tp, p.pp
