"""plan(): tries every legal (tp, pp) on the real wires, keeps what fits, and ranks it by the cost model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor

from configgen.cost import Machine
from configgen.forecast import Forecast, forecast, over_limits, ranked
from configgen.judge import USEFUL_BATCH, Candidate, Judge
from configgen.laws import (
    engine_law,
    engine_place_law,
    gpu_law,
    kv_head_law,
    node_law,
    stages_law,
    tensor_parallel_laws,
    vocabulary_law,
)
from configgen.memory import (
    StageMemory,
    activation_bytes,
    overhead_bytes,
    sequence_bytes,
    stage_weight_bytes,
)
from configgen.model import ModelSpec
from configgen.placement import (
    DomainKind,
    Slot,
    Wiring,
    capacity,
    domain_kinds,
    mixed_slot,
    place,
    slots,
    stages_held,
    widths,
    wiring,
)
from configgen.plan import NO_LIMITS, EngineTraits, Limits, Objective, Parallelism, Workload
from probe.errors import NoPlanError
from probe.islands import bottleneck, islands
from probe.measurement import Survey
from probe.topology import GpuRef, Topology
from probe.units import count, gigabytes

MAX_STAGES = 64
"""Deeper pipelines than any published serving set-up; bounds the search on large clusters."""


OFFERED = 16
"""Sequences of each GPU where nobody told the load: the middle (geometric) of the 4 to 64 that public tables of servers
run from and to."""


@dataclass(frozen=True)
class Field:
    """All that was tried: candidates, best first, and what laws or memory forbade."""

    forecasts: tuple[Forecast, ...]
    refused: tuple[tuple[Parallelism, str], ...]
    has_fast_island: bool
    machine: Machine
    workload: Workload
    """With the load that was assumed where nobody told it."""

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(f.candidate for f in self.forecasts)


def search(
    survey: Survey, model: ModelSpec, workload: Workload, traits: EngineTraits, limits: Limits = NO_LIMITS
) -> Field:
    """Every legal parallelism on these wires, best first. Raises NoPlanError naming the law where there is none."""
    topology = survey.topology
    if (law := engine_law(model, workload, traits)) is not None:
        raise NoPlanError(law, cure="Use another engine.")
    nodes = min(limits.nodes or len(topology.nodes), len(topology.nodes))
    kinds = domain_kinds(topology, lambda ref: usable_bytes(topology, ref, traits), nodes)
    kinds, unfit = _capable(kinds, model, traits)
    if not kinds and unfit:
        raise NoPlanError(f"no GPU can run {model.name}: {unfit}", cure="Use other GPUs or another quantisation.")
    kinds.sort(key=lambda kind: kind.sample.worth, reverse=True)
    total = sum(len(d.gpus) for kind in kinds for d in kind.domains)
    budget = min(total, limits.gpus or total)
    if budget == 0:
        raise NoPlanError("no GPU of this machine can be used", cure="See `wirelore probe` for the state of each GPU.")
    workload = offered(workload, budget)
    has_fast_island = any(len(i.members) > 1 for i in islands(topology) if i.members[0].node < nodes)
    candidates: list[Candidate] = []
    refused: list[tuple[Parallelism, str]] = []
    largest = max(len(kind.sample.gpus) for kind in kinds)
    for tp in widths(kinds, budget):
        for inner in _inner_splits(model, tp, traits, workload):
            laws = tensor_parallel_laws(model, attention_tp=inner.attention_tp, tp=tp, ep=inner.ep)
            laws += kv_head_law(model, inner.attention_tp, traits) + vocabulary_law(model, inner.attention_tp, traits)
            if laws:
                refused.append((inner, laws[0] if inner.attention_dp == 1 else f"{inner.label}: {laws[0]}"))
                continue
            candidates += _with_stages(model, workload, traits, kinds, inner, budget, refused, limits.replicas)
    if not candidates:
        raise NoPlanError(_no_plan(model, refused, budget, topology), cure=_no_plan_cure(refused))
    machine, tried = Machine(survey), candidates
    while True:
        told = [forecast(machine, model, c, workload, traits) for c in tried]
        broken = [(f.candidate.parallelism, law) for f in told if (law := over_limits(f, workload)) is not None]
        within = [f for f in told if over_limits(f, workload) is None]
        if within or "concurrency" not in workload.assumed or workload.concurrency == 1:
            break
        workload = replace(workload, concurrency=workload.concurrency // 2)  # assumed: as much as the limits allow
    if not within:
        nearest = over_limits(min(told, key=lambda f: f.worth_s), workload)
        raise NoPlanError(
            f"no plan for {model.name} keeps the limits; of the best one, {nearest}",
            cure="Allow more time, or use fewer concurrent sequences, faster GPUs or a quantised model.",
        )
    judge = Judge(
        workload=workload,
        has_fast_island=has_fast_island,
        batch=USEFUL_BATCH if "concurrency" in workload.assumed else 1,
        largest_all_reduce=max(traits.custom_all_reduce_sizes, default=largest),
        mla=model.mla is not None,
    )
    return Field(ranked(within, judge), (*refused, *broken), has_fast_island, machine, workload)


def offered(workload: Workload, gpus: int) -> Workload:
    """The load where nobody told it: a few requests for latency, else so many for each GPU."""
    if "concurrency" not in workload.assumed or workload.objective is Objective.LATENCY:
        return workload
    return replace(workload, concurrency=OFFERED * gpus)


def usable_bytes(topology: Topology, ref: GpuRef, traits: EngineTraits) -> int:
    """Bytes that the engine may fill on this GPU: its fraction of the memory, or what others have left of it.

    An unknown size counts as 0, so that nothing is planned on a guess; of a MIG GPU the largest instance counts.
    """
    gpu, state = topology.gpu(ref), topology.state(ref)
    memory = gpu.memory_bytes
    if state.mig_instances:
        memory = max((m.memory_bytes or 0 for m in state.mig_instances), default=0)
    if memory is None:
        return 0
    return floor(memory * memory_utilization(memory, state.memory_free_bytes, traits))


def memory_utilization(memory_bytes: int, free_bytes: int | None, traits: EngineTraits) -> float:
    """The engine's default fraction, or what is free, in whole twentieths, so that nodes a percent apart stay alike."""
    if free_bytes is None or memory_bytes == 0:
        return traits.memory_utilization
    return min(traits.memory_utilization, floor(20 * free_bytes / memory_bytes) / 20)


def _capable(kinds: list[DomainKind], model: ModelSpec, traits: EngineTraits) -> tuple[list[DomainKind], str | None]:
    """The kinds whose GPUs the engine can run this model's formats on, and the law that forbids the first other."""
    kept, law = [], None
    for kind in kinds:
        broken = [b for g in kind.sample.models if (b := gpu_law(model, g.compute_capability, traits)) is not None]
        if kind.alone and not traits.mig:
            broken.append(f"{traits.engine} {traits.version} takes GPUs by index, and a MIG instance has none")
        law = law or (broken[0] if broken else None)
        kept += [] if broken else [kind]
    return kept, law


def _inner_splits(model: ModelSpec, tp: int, traits: EngineTraits, workload: Workload) -> Iterator[Parallelism]:
    """How a stage of tp GPUs may be cut inside: plain TP, experts spread (EP), attention replicated (attention-DP)."""
    yield Parallelism(tp)
    if model.moe is None or tp == 1 or not traits.expert_parallel:
        return
    yield Parallelism(tp, ep=tp)
    if not traits.attention_dp:
        return
    for attention_dp in range(2, tp + 1):
        if tp % attention_dp == 0 and (attention_dp == tp or traits.partial_attention_dp):
            yield Parallelism(tp, ep=tp, attention_dp=attention_dp)


def _with_stages(
    model: ModelSpec,
    workload: Workload,
    traits: EngineTraits,
    kinds: list[DomainKind],
    inner: Parallelism,
    budget: int,
    refused: list[tuple[Parallelism, str]],
    replicas: int | None,
) -> Iterator[Candidate]:
    held = sum(stages_held(kind, inner.tp) for kind in kinds)
    deepest = min(model.layers, held, budget // inner.tp, MAX_STAGES)
    least: int | None = None
    for pp in range(1, deepest + 1):
        if least is not None and pp > max(8, 2 * least):
            return  # deeper ones only wait more
        shape = Parallelism(inner.tp, pp, 1, inner.ep, inner.attention_dp)
        if (law := stages_law(model, shape, traits)) is not None:
            refused.append((shape, law))
            return
        runs = [(kind, slots(kind, inner.tp, pp)) for kind in kinds]
        if not any(found for _, found in runs):
            mixed = mixed_slot(kinds, inner.tp, pp)
            runs = [(mixed[0], (mixed[1],))] if mixed else []
        fitting = fit(model, workload, traits, shape, runs, budget, replicas=replicas)
        if isinstance(fitting, Candidate):
            least = least or pp
            yield fitting
        elif fitting:
            refused.append((shape, fitting))
        fast = [(kind, found) for kind, found in runs if found and _is_fast(kind, found)]
        if 0 < len(fast) < sum(bool(found) for _, found in runs):
            alone = fit(model, workload, traits, shape, fast, budget, replicas=replicas)
            if isinstance(alone, Candidate):
                yield alone


def _is_fast(kind: DomainKind, patterns: tuple[Slot, ...]) -> bool:
    return all((path := wiring(kind, slot).inside) is None or path.is_fast for slot in patterns)


def fit(
    model: ModelSpec,
    workload: Workload,
    traits: EngineTraits,
    shape: Parallelism,
    runs: list[tuple[DomainKind, tuple[Slot, ...]]],
    budget: int,
    layers: tuple[int, ...] | None = None,
    replicas: int | None = None,
) -> Candidate | str | None:
    """The candidate with all replicas that fit with one cut of the layers; else the law; None: there is no place."""
    kept: list[tuple[DomainKind, tuple[Slot, ...]]] = []
    dp, law = 0, None
    rooms: list[int] = []
    memory: tuple[StageMemory, ...] = ()
    wanted = budget // shape.gpus_per_replica
    wanted = min(wanted, replicas or wanted)
    if "concurrency" not in workload.assumed:
        wanted = min(wanted, workload.concurrency)  # a replica without a request is an idle one
    for kind, patterns in runs:
        fitting: list[Slot] = []
        for slot in patterns:
            if dp + len(fitting) >= wanted:
                break
            broken = node_law([ref.node for ref in kind.refs(slot)], shape.pp, traits)
            if (broken := broken or engine_place_law(kind, slot, fitting, traits)) is not None:
                law = law or f"{shape.label}: {broken}"
                continue
            usable = capacity(kind, slot)
            cut = layers or _cut_layers(model, shape, usable, traits)
            stages = _stage_memory(model, workload, traits, shape, cut, usable)
            short = next((s for s, m in enumerate(stages) if not m.fits), None)
            if short is not None:
                law = law or _too_small(shape, stages[short], short)
                continue
            layers = cut
            fitting.append(slot)
            room = _room(traits, shape, stages)
            rooms.append(room)
            if room == min(rooms):
                memory = stages
        if fitting:
            kept.append((kind, tuple(fitting)))
            dp += len(fitting) * (len(kind.domains) // fitting[0].domains)
    dp = min(dp, wanted)
    if dp == 0 or layers is None:
        return law
    memory = tuple(_with_load(model, workload, shape, layers, m, s, dp) for s, m in enumerate(memory))
    wires = [wiring(kind, slot) for kind, fitting in kept for slot in fitting]
    inside = bottleneck(w.inside for w in wires if w.inside)
    across = bottleneck(path for w in wires for path in w.hops)
    parallelism = Parallelism(shape.tp, shape.pp, dp, shape.ep, shape.attention_dp)
    return Candidate(parallelism, tuple(kept), layers, memory, tuple(rooms), inside, across)


def _cut_layers(
    model: ModelSpec, shape: Parallelism, capacity: tuple[int, ...], traits: EngineTraits
) -> tuple[int, ...]:
    """The engine's own cut on equal GPUs; else layers dealt one by one to the stage with the most room left."""
    own = traits.split(model.layers, shape.pp)
    if len(set(capacity)) == 1 and all(_stage_weights(model, shape, own, s) < capacity[s] for s in (0, shape.pp - 1)):
        return own
    counts = [1] * shape.pp
    average = (
        stage_weight_bytes(model, 0, model.layers, attention_tp=shape.attention_tp, tp=shape.tp, ep=shape.ep)
        / model.layers
    )
    ends = [0.0] * shape.pp
    for stage in {0, shape.pp - 1}:
        ends[stage] = average * 2
    for _ in range(model.layers - shape.pp):
        room = [capacity[s] - ends[s] - counts[s] * average for s in range(shape.pp)]
        counts[room.index(max(room))] += 1
    return tuple(counts)


def _stage_weights(model: ModelSpec, shape: Parallelism, layers: tuple[int, ...], stage: int) -> int:
    first = sum(layers[:stage])
    return stage_weight_bytes(
        model, first, first + layers[stage], attention_tp=shape.attention_tp, tp=shape.tp, ep=shape.ep
    )


def _stage_memory(
    model: ModelSpec,
    workload: Workload,
    traits: EngineTraits,
    shape: Parallelism,
    layers: tuple[int, ...],
    capacity: tuple[int, ...],
) -> tuple[StageMemory, ...]:
    """Per stage, for its smallest GPU, with the KV of one whole sequence: the least that can serve at all."""
    activations = activation_bytes(
        model, tokens=traits.max_batched_tokens, tp=shape.tp, ep=shape.ep, attention_dp=shape.attention_dp
    )
    stages = []
    for stage in range(shape.pp):
        first = sum(layers[:stage])
        stages.append(
            StageMemory(
                weights_bytes=_stage_weights(model, shape, layers, stage),
                kv_bytes=sequence_bytes(
                    model, first, first + layers[stage], tokens=workload.tokens, attention_tp=shape.attention_tp
                ),
                activation_bytes=activations,
                overhead_bytes=overhead_bytes(shape.gpus_per_replica),
                usable_bytes=capacity[stage],
            )
        )
    return tuple(stages)


def _with_load(
    model: ModelSpec,
    workload: Workload,
    shape: Parallelism,
    layers: tuple[int, ...],
    one: StageMemory,
    stage: int,
    dp: int,
) -> StageMemory:
    """The stage's memory with the KV of its share of the workload, as much of it as there is room for."""
    share = -(-workload.concurrency // (dp * shape.attention_dp))
    room = one.usable_bytes - one.needed_bytes + one.kv_bytes
    sequences = min(share, room // one.kv_bytes) if one.kv_bytes else share
    return StageMemory(
        one.weights_bytes, one.kv_bytes * sequences, one.activation_bytes, one.overhead_bytes, one.usable_bytes
    )


def _room(traits: EngineTraits, shape: Parallelism, stages: tuple[StageMemory, ...]) -> int:
    """Sequences of the workload's length that one replica holds at once; the fullest stage decides, or the engine."""
    rooms = [(m.usable_bytes - m.needed_bytes + m.kv_bytes) // m.kv_bytes for m in stages if m.kv_bytes]
    return min([*rooms, traits.max_sequences]) * shape.attention_dp


def _too_small(shape: Parallelism, memory: StageMemory, stage: int) -> str:
    bound = f" of stage {stage}" if shape.pp > 1 else ""
    return (
        f"{shape.label}: needs {gigabytes(memory.needed_bytes)} on each GPU{bound} "
        f"({gigabytes(memory.weights_bytes)} weights), the smallest has {gigabytes(memory.usable_bytes)} usable"
    )


def _no_plan(model: ModelSpec, refused: list[tuple[Parallelism, str]], gpus: int, topology: Topology) -> str:
    if all(g.memory_bytes is None for node in topology.nodes for g in node.shape.gpus):
        return "the memory of the GPUs is not known"
    widest = sorted(refused, key=lambda r: -r[0].gpus_per_replica)
    laws = list(dict.fromkeys(law for _, law in widest))[:3]
    return f"no legal plan for {model.name} on {count(gpus, 'GPU')}: {'; '.join(laws) or 'no group can be formed'}"


def _no_plan_cure(refused: list[tuple[Parallelism, str]]) -> str:
    if any("usable" in law for _, law in refused):
        return "Use more or larger GPUs, a quantised model, or shorter sequences; --gpu-memory corrects wrong sizes."
    return "Name the GPUs with --gpu-model or --gpu-memory, or use another number of GPUs."


def materialise(candidate: Candidate) -> Iterator[tuple[Wiring, tuple[tuple[GpuRef, ...], ...]]]:
    """The candidate's replicas, as many as its dp: their wiring, and their stages of GpuRefs."""
    left = candidate.parallelism.dp
    for kind, patterns in candidate.runs:
        wires = [wiring(kind, slot) for slot in patterns]
        placed = [place(kind, slot) for slot in patterns]
        for stages_of_slots in zip(*placed, strict=True):
            for wired, stages in zip(wires, stages_of_slots, strict=True):
                if left == 0:
                    return
                yield wired, stages
                left -= 1
