"""check(survey, command, ...) -> Check: a command that a person already has, on these wires. Pure.

Its placement is judged by the planner's own means: the same laws, the same memory, the same cost model. It is compared
with the best plan on as many GPUs, since what the others of the machine do nobody said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from configgen.checked import Best, Check, Standing
from configgen.cost import Machine
from configgen.crossings import crossings
from configgen.decide import max_context, plan_of
from configgen.engines.asked import (
    Asked,
    as_told,
    asked,
    burdened,
    cached_otherwise,
    context_of,
    lightened,
    traits_of,
)
from configgen.engines.reading import Command, unread
from configgen.explain import broken_p2p, lost_by
from configgen.forecast import Forecast, doubt, forecast, margin
from configgen.judge import Candidate
from configgen.laws import (
    engine_law,
    gpu_law,
    kv_head_law,
    node_law,
    stages_law,
    tensor_parallel_laws,
    vocabulary_law,
)
from configgen.model import ModelSpec
from configgen.placement import Domain, DomainKind, Slot
from configgen.plan import EngineTraits, Limits, Parallelism, Plan, Workload
from configgen.search import fit, offered, search, usable_bytes
from probe.errors import NoPlanError, one_line
from probe.measurement import Survey
from probe.topology import GpuRef, GpuStatus, Topology
from probe.units import count, ranges, some

Stages = tuple[tuple[GpuRef, ...], ...]

_MOST_GPUS = 1 << 16


@dataclass(frozen=True, slots=True)
class Placed:
    """A command on GPUs: what it asks for, its replicas, and its layers per stage."""

    asked: Asked
    replicas: tuple[Stages, ...]
    layers: tuple[int, ...]


def placed(command: Command, model: ModelSpec, topology: Topology, traits: EngineTraits, first_node: int = 0) -> Placed:
    """Where the command's ranks come to lie, its first node being `first_node`. What can't be is a refusal in `asked`.

    Raises UsageError where the command can't be read.
    """
    node = topology.nodes[first_node]
    told = asked(command, model, sum(g.is_usable for g in node.gpus))
    p = told.parallelism
    if p is None:
        return Placed(told, (), ())
    layers = told.layers or (traits.split(model.layers, p.pp) if p.pp <= model.layers else ())
    told.require(p.pp <= model.layers, f"PP{p.pp}: {model.name} has {count(model.layers, 'layer')}")
    refs = _ranks(told, p, topology, first_node)
    if len(refs) != p.gpus:
        return Placed(told, (), layers)
    return Placed(told, tuple(_replicas(refs, p, told.stages_outermost)), layers)


def check(
    survey: Survey,
    command: Command,
    model: ModelSpec,
    workload: Workload,
    traits: EngineTraits,
    *,
    first_node: int = 0,
    gpus: int | None = None,
) -> Check:
    """`gpus` is how many the best plan may use: as many as the command where nobody says. Raises UsageError."""
    topology, plain = survey.topology, model
    model = as_told(command, model)
    where = placed(command, model, topology, traits, first_node)
    told, p, longest = where.asked, where.asked.parallelism, context_of(command)
    own = traits_of(command, traits, p.attention_dp if p else 1)
    laws = [*told.refused, *_laws(where, model, workload, own, topology)]
    laws += _p2p_law(survey, command, where)
    notes = [*command.notes, *told.notes, *filter(None, [_order_note(command, topology), unread(command)])]
    used = p.gpus if p is not None and where.replicas else None
    workload = offered(workload, used or topology.gpu_count)
    candidate: Candidate | None = None
    unsure: list[str] = []
    if not laws and p is not None:
        found = _candidate(where, model, workload, own, topology)
        if isinstance(found, str):
            why = _why_unsure(where, command, model, own, topology)
            laws, unsure = (laws, [f"{why}, {found}"]) if why else ([found], [])
        candidate = found if isinstance(found, Candidate) else None
    if candidate is not None:
        laws += _context_laws(longest, model, workload, own)
        full = list(_cache_law(longest, command, model, own, candidate))
        uncounted = cached_otherwise(command, model)
        laws += [] if uncounted else full
        unsure += [f"{_not_counting(uncounted)}, {law}" for law in full] if uncounted else []
        if p is not None and candidate.parallelism.dp < p.dp:
            notes.append(f"{p.dp} replicas and {workload.concurrency} at once: some get no request")
    machine = Machine(survey)
    mine = forecast(machine, model, candidate, workload, own) if candidate is not None else None
    shared = replace(traits, memory_utilization=own.memory_utilization)
    best = _best(survey, plain, workload, shared, gpus or used, mine)
    standing = _standing(bool(laws), bool(unsure), best)
    usable = sum(g.is_usable for node in topology.nodes for g in node.gpus)
    return Check(
        command=command,
        standing=standing,
        verdict=_verdict(standing, where, laws or unsure, best, burdened(command, model)),
        workload=workload,
        parallelism=p,
        replicas=where.replicas,
        layers_per_stage=where.layers,
        laws=tuple(dict.fromkeys(laws)),
        unsure=tuple(unsure),
        ignored=tuple(told.ignored),
        notes=tuple(notes),
        crossings=tuple(crossings(where.replicas, topology)),
        memory=candidate.memory if candidate is not None else (),
        predictions=(
            replace(mine.predictions, max_context=max_context(model, mine.candidate)) if mine is not None else None
        ),
        provenance=mine.provenance if mine is not None else None,
        best=best,
        idle_gpus=max(0, usable - used) if used is not None else 0,
    )


def _ranks(told: Asked, p: Parallelism, topology: Topology, first_node: int) -> list[GpuRef]:
    """The GPUs in the order of the ranks; shorter where they are not there, which is a refusal."""
    if p.gpus > _MOST_GPUS:
        told.refused.append(f"{p.label} takes {p.gpus:,} GPUs, the machine has {topology.gpu_count:,}")
        return []
    told.require(p.gpus % told.nodes == 0, f"{p.label}: {p.gpus} GPUs do not divide over {told.nodes} nodes")
    each = p.gpus // told.nodes
    if first_node + told.nodes > len(topology.nodes):
        from_node = f" from node {first_node} on" if first_node else ""
        told.refused.append(
            f"it runs on {count(told.nodes, 'node')}{from_node}, and {count(len(topology.nodes), 'node')} "
            f"{'is' if len(topology.nodes) == 1 else 'are'} known"
        )
        return []
    refs: list[GpuRef] = []
    for node in range(first_node, first_node + told.nodes):
        states = topology.nodes[node].gpus
        chosen = [i for i, g in enumerate(states) if g.is_usable]
        if told.devices is not None:
            chosen, missing = _chosen(told.devices, topology, node)
            told.require(not missing, f"node {node} has no GPU {some([one_line(m, 50) for m in missing], 4)}")
        lost = [i for i in chosen[:each] if states[i].status is not GpuStatus.OK]
        told.require(not lost, f"GPU {ranges(lost)} of node {node} cannot be used")
        if len(chosen) < each:
            by = " that its devices name" if told.devices is not None else ""
            told.refused.append(f"{p.label} needs {count(each, 'GPU')} of node {node}, and there are {len(chosen)}{by}")
            return []
        if told.devices is not None and len(chosen) > each and node == first_node:
            told.notes.append(f"of {len(chosen)} GPUs that are named the first {each} are used")
        refs += [GpuRef(node, i) for i in chosen[:each]]
    told.require(len(set(refs)) == len(refs), "a GPU has two ranks")
    return list(dict.fromkeys(refs))


def _chosen(devices: Sequence[str], topology: Topology, node: int) -> tuple[list[int], list[str]]:
    """Indices of the GPUs that these names mean there, and the names that mean none."""
    states = topology.nodes[node].gpus
    found, missing = [], []
    for name in devices:
        if name.isdecimal():
            index = int(name) if int(name) < len(states) else None
        else:
            known = ((i, u) for i, g in enumerate(states) for u in (g.uuid, *(m.uuid for m in g.mig_instances)))
            index = next((i for i, uuid in known if uuid is not None and uuid.startswith(name)), None)
        if index is None:
            missing.append(name)
        else:
            found.append(index)
    return found, missing


def _replicas(refs: Sequence[GpuRef], p: Parallelism, stages_outermost: bool) -> Iterator[Stages]:
    """Ranks are TP-fastest; then come stages, or first the other replicas."""
    for replica in range(p.dp):
        starts = [(s * p.dp + replica if stages_outermost else replica * p.pp + s) * p.tp for s in range(p.pp)]
        yield tuple(tuple(refs[start : start + p.tp]) for start in starts)


def _laws(
    where: Placed, model: ModelSpec, workload: Workload, traits: EngineTraits, topology: Topology
) -> Iterator[str]:
    """The planner's laws, in the order in which it asks."""
    p = where.asked.parallelism
    if p is None:
        return
    if model.max_context is not None and workload.tokens > model.max_context:
        yield f"{workload.tokens:,} tokens per sequence exceed {model.name}'s context of {model.max_context:,}"
    if (law := engine_law(model, workload, traits)) is not None:
        yield law
    yield from tensor_parallel_laws(model, attention_tp=p.attention_tp, tp=p.tp, ep=p.ep)
    yield from kv_head_law(model, p.attention_tp, traits)
    yield from vocabulary_law(model, p.attention_tp, traits)
    if (law := stages_law(model, p, traits)) is not None:
        yield law
    for replica in where.replicas[:1]:
        law = node_law([ref.node for stage in replica for ref in stage], p.pp, traits)
        yield from filter(None, [law])
    used = {topology.gpu(ref).compute_capability for replica in where.replicas for s in replica for ref in s}
    yield from dict.fromkeys(law for c in used if (law := gpu_law(model, c, traits)) is not None)


def _candidate(
    where: Placed, model: ModelSpec, workload: Workload, traits: EngineTraits, topology: Topology
) -> Candidate | str | None:
    """The placement as the search's own noun; the law where memory or the engine forbids one of its replicas."""
    p = where.asked.parallelism
    assert p is not None
    refs = tuple(ref for replica in where.replicas for stage in replica for ref in stage)
    domain = Domain(topology, refs, tuple(usable_bytes(topology, ref, traits) for ref in refs))
    kind = DomainKind((domain,), alone=any(topology.state(ref).mig_instances for ref in refs))
    each = p.gpus_per_replica
    slots = tuple(
        Slot(tuple(tuple((0, first + s * p.tp + rank) for rank in range(p.tp)) for s in range(p.pp)))
        for first in range(0, p.gpus, each)
    )
    shape = Parallelism(p.tp, p.pp, 1, p.ep, p.attention_dp)
    found = fit(model, workload, traits, shape, [(kind, slots)], p.gpus, where.layers)
    asked_for = p.dp if "concurrency" in workload.assumed else min(p.dp, workload.concurrency)
    if isinstance(found, Candidate) and found.parallelism.dp < asked_for:  # some replicas fit, others don't
        alone = (fit(model, workload, traits, shape, [(kind, (slot,))], each, where.layers) for slot in slots)
        return next((law for law in alone if isinstance(law, str)), found)
    return found


def _why_unsure(
    where: Placed, command: Command, model: ModelSpec, traits: EngineTraits, topology: Topology
) -> str | None:
    """Why memory may not be judged by what is counted; None where the weights alone are too much of every byte."""
    if lighter := lightened(command, model):
        return _not_counting(lighter)
    otherwise = cached_otherwise(command, model)
    if not otherwise:
        return None
    least, all_of_it = Workload(input_tokens=1, output_tokens=1, concurrency=1), replace(traits, memory_utilization=1.0)
    return None if isinstance(_candidate(where, model, least, all_of_it, topology), str) else _not_counting(otherwise)


def _not_counting(names: Sequence[str]) -> str:
    return f"without counting {', '.join(names)}"


def _context_laws(told: int | None, model: ModelSpec, workload: Workload, traits: EngineTraits) -> Iterator[str]:
    if told is not None and workload.tokens > told:
        yield f"it serves at most {told:,} tokens of a sequence, and {workload.tokens:,} are asked for"
    if traits.engine == "vllm" and told is not None and told > (model.max_context or told):
        yield f"vLLM refuses --max-model-len {told:,}: the model's context is {model.max_context:,}"


def _cache_law(
    told: int | None, command: Command, model: ModelSpec, traits: EngineTraits, candidate: Candidate
) -> Iterator[str]:
    """vLLM starts only where the KV memory holds one sequence of the longest length (_check_enough_kv_cache_memory of
    vllm/v1/core/kv_cache_utils.py)."""
    fits, longest = max_context(model, candidate), told or model.max_context
    if traits.engine != "vllm" or longest is None or command.said.get("context") in ("-1", "auto"):
        return
    if fits < longest <= (model.max_context or longest):
        yield (
            f"vLLM refuses to start: KV memory holds {fits:,} tokens of a sequence, and one may have {longest:,}: "
            f"add --max-model-len {fits}"
        )


def _p2p_law(survey: Survey, command: Command, where: Placed) -> Iterator[str]:
    refs = {ref for replica in where.replicas for stage in replica for ref in stage}
    if broken_p2p(survey, refs) and command.environment.get("NCCL_P2P_DISABLE") != "1":
        yield "P2P between these GPUs returned other bytes: without NCCL_P2P_DISABLE=1 answers are wrong"


def _order_note(command: Command, topology: Topology) -> str | None:
    mixed = any(len({gpu.name for gpu in node.shape.gpus}) > 1 for node in topology.nodes)
    if not mixed or command.said.get("device order") == "PCI_BUS_ID":
        return None
    return "GPUs of different models, and no CUDA_DEVICE_ORDER=PCI_BUS_ID: CUDA may count them in another order"


def _best(
    survey: Survey, model: ModelSpec, workload: Workload, traits: EngineTraits, gpus: int | None, mine: Forecast | None
) -> Best | None:
    """On so many GPUs, or on all where these hold no plan."""
    for limits in dict.fromkeys((Limits(gpus=gpus), Limits())):
        try:
            field = search(survey, model, workload, traits, limits)
        except NoPlanError:
            continue
        plan = plan_of(field, survey, model, traits, limits, what_if=False)
        if mine is None or limits.gpus != gpus:
            return Best(plan, None, None, None)
        ahead = field.forecasts[0]
        loss = margin(mine, ahead)
        return Best(plan, round(loss, 4), round(doubt(mine, ahead), 4), lost_by(mine, ahead, field.workload))
    return None


def _standing(broken: bool, unsure: bool, best: Best | None) -> Standing:
    if broken:
        return Standing.REFUSED
    if unsure:
        return Standing.UNJUDGED
    if best is None or best.loss is None or best.doubt is None:
        return Standing.UNCOMPARED
    if best.loss <= 0:
        return Standing.BEST
    return Standing.BEHIND if best.loss > best.doubt else Standing.WITHIN_UNCERTAINTY


def _verdict(
    standing: Standing, where: Placed, broken: Sequence[str], best: Best | None, burdens: Sequence[str]
) -> str:
    """`broken` are laws, surely or perhaps; `burdens` take memory that nobody counted."""
    p = where.asked.parallelism
    name = "the command" if p is None else p.label + (f" on {_gpus(where.replicas)}" if where.replicas else "")
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        lead = "Refused" if standing is Standing.REFUSED else "Not judged"
        return f"{lead}: {one_line(broken[0], 300)}{more}"
    if burdens:
        told = _compared(standing, where, best, name)
        return f"W{_not_counting(burdens)[1:]}: {told[0].lower()}{told[1:]}"
    return _compared(standing, where, best, name)


def _compared(standing: Standing, where: Placed, best: Best | None, name: str) -> str:
    if best is None or best.loss is None or best.doubt is None:
        return f"Legal: {name}; no plan to compare it with"
    other, same = best.plan.parallelism.label, is_same(where, best.plan)
    if same and standing is not Standing.BEHIND:
        return f"The best plan: {name}"
    if same:
        other = "the same placement with the engine's own settings"
    elif best.plan.parallelism == where.asked.parallelism:
        other += f" on {_gpus(tuple(r.stages for r in best.plan.replicas))}"
    if standing is Standing.BEHIND:
        return f"Loses {best.loss:.0%} (give or take {best.doubt:.0%}) against {other}: {name}"
    if standing is Standing.BEST:
        return f"As good as the best plan, {other}: {name}"
    behind = f"{best.loss:.0%} behind, give or take {best.doubt:.0%}"
    return f"Within the uncertainty of the best plan, {other} ({behind}): {name}"


def is_same(where: Placed, plan: Plan) -> bool:
    """Whether it is this very plan: equal cuts of equal layers on the same GPUs in the same order."""
    same = {r.stages for r in plan.replicas} == set(where.replicas)
    return same and plan.parallelism == where.asked.parallelism and plan.layers_per_stage == where.layers


def _gpus(replicas: Sequence[Stages]) -> str:
    """'GPUs 0,2 | 1,3', stages parted by bars; where there are several replicas or nodes their number."""
    if len(replicas) > 1 or not replicas:
        return f"{count(sum(len(s) for r in replicas for s in r), 'GPU')}"
    nodes = len({ref.node for stage in replicas[0] for ref in stage})
    gpus = sum(map(len, replicas[0]))
    if nodes > 1 or gpus > 16:
        return f"{count(gpus, 'GPU')} of {count(nodes, 'node')}"
    text = " | ".join(ranges([ref.gpu for ref in stage]) for stage in replicas[0])
    return f"{'GPU' if gpus == 1 else 'GPUs'} {text}"
