"""plan(survey, model, workload, traits) -> Plan: the one seam between facts and flags. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from configgen.explain import broken_p2p, custom_all_reduce, is_measured, lost_by, provenance_of, reasons
from configgen.forecast import Forecast, doubt, margin
from configgen.judge import Candidate
from configgen.laws import BFLOAT16_SINCE
from configgen.memory import sequence_bytes
from configgen.model import ModelSpec
from configgen.plan import (
    NO_LIMITS,
    Alternative,
    EngineTraits,
    Limits,
    Plan,
    PlannedModel,
    Replica,
    Site,
    Workload,
)
from configgen.search import Field, materialise, memory_utilization, search
from probe.errors import UsageError
from probe.islands import fingerprint
from probe.measurement import Survey
from probe.topology import GpuRef, GpuStatus, Nic, Node, Origin, Provenance, Topology
from probe.units import count

RDMA_DEVICES = ("mlx", "bnxt_re", "irdma", "roce", "ib", "erdma", "hns")
"""How Linux names the verbs devices that NCCL_IB_HCA may list (drivers/infiniband/hw of the kernel)."""

_LONGEST_CONTEXT = 1 << 20
MAX_ALTERNATIVES = 12
"""As many losers as a person reads; the runner-up comes first."""


def plan(
    survey: Survey,
    model: ModelSpec,
    workload: Workload,
    traits: EngineTraits,
    limits: Limits = NO_LIMITS,
    *,
    what_if: bool = True,
) -> Plan:
    """The best plan for this model and load on these wires. Raises NoPlanError naming the law where there is none.

    Without `what_if` its reasons leave out what would change it, for those who take the plan alone.
    """
    if model.max_context is not None and workload.tokens > model.max_context:
        raise UsageError(
            f"{workload.tokens} tokens per sequence exceed {model.name}'s context of {model.max_context}",
            cure="Lower --input-tokens or --output-tokens.",
        )
    field = search(survey, model, workload, traits, limits)
    return plan_of(field, survey, model, traits, limits, what_if=what_if)


def plan_of(
    field: Field,
    survey: Survey,
    model: ModelSpec,
    traits: EngineTraits,
    limits: Limits = NO_LIMITS,
    *,
    what_if: bool = True,
) -> Plan:
    """The best of what a search found, with its reasons."""
    topology = survey.topology
    workload, best = field.workload, field.forecasts[0]
    chosen = best.candidate
    replicas = tuple(_replicas(survey, chosen, traits))
    order = _gpu_order(topology, replicas)
    p = chosen.parallelism
    return Plan(
        model=PlannedModel(
            name=model.name,
            source=model.source,
            layers=model.layers,
            parameters=model.parameters,
            weight_bytes=model.weight_bytes,
            architecture=model.architecture,
            is_moe=model.moe is not None,
            latent_attention=model.mla is not None,
            max_context=model.max_context,
        ),
        workload=workload,
        engine=traits,
        fingerprint=fingerprint(topology),
        parallelism=p,
        replicas=replicas,
        layers_per_stage=chosen.layers,
        gpu_order=order,
        gpu_uuids=tuple(tuple(_device_uuid(topology, GpuRef(n, i)) for i in used) for n, used in enumerate(order)),
        memory=chosen.memory,
        predictions=replace(best.predictions, max_context=max_context(model, chosen)),
        confidence=_confidence(survey, model, field),
        reasons=tuple(reasons(survey, model, workload, traits, field, limits, what_if=what_if)),
        alternatives=_alternatives(field, workload),
        degraded=tuple(_degraded(topology, workload, chosen, limits, traits)),
        provenance=(*topology.provenance, *survey.origins, Origin("model", Provenance.READ, model.source)),
        engine_split=chosen.layers == traits.split(model.layers, p.pp),
        mixed_gpus=any(
            len({g.name for g in shape.gpus}) > 1 for shape in {id(n.shape): n.shape for n in topology.nodes}.values()
        ),
        uses_mig=any(topology.state(ref).mig_instances for replica in replicas for ref in replica.gpus),
        p2p=not broken_p2p(survey, {ref for replica in replicas for stage in replica.stages for ref in stage}),
        half_precision=model.dtype == "bfloat16" and any(_before_bfloat16(topology, r) for r in replicas),
        hostnames=tuple(node.hostname for node in topology.nodes),
        sites=_sites(topology, order),
        gpu_models=tuple(tuple(topology.gpu(GpuRef(n, i)).name for i in used) for n, used in enumerate(order)),
    )


def _gpu_order(topology: Topology, replicas: tuple[Replica, ...]) -> tuple[tuple[int, ...], ...]:
    order: list[list[int]] = [[] for _ in topology.nodes]
    for replica in replicas:
        for ref in replica.gpus:
            order[ref.node].append(ref.gpu)
    return tuple(tuple(used) for used in order)


def _sites(topology: Topology, order: tuple[tuple[int, ...], ...]) -> tuple[Site, ...]:
    """What was read of the sites; a described machine's NICs have names that no driver knows."""
    if provenance_of(topology, "nics") is not Provenance.READ:
        return ()
    return tuple(_site(node, used) for node, used in zip(topology.nodes, order, strict=True))


def _site(node: Node, used: tuple[int, ...]) -> Site:
    gpus = [node.shape.gpus[i] for i in used]
    nics = {nic.name: nic for nic in node.shape.nics if nic.name.startswith(RDMA_DEVICES)}
    near = [[nics[name] for name in gpu.nearest_nics if name in nics] for gpu in gpus]
    numa = tuple(gpu.numa_node for gpu in gpus if gpu.numa_node is not None)
    pairs = tuple(
        (address, found[0].pci_bus_id)
        for i, found in zip(used, near, strict=True)
        if found and found[0].pci_bus_id and (address := node.gpus[i].pci_bus_id)
    )
    return Site(
        numa_nodes=numa if len(numa) == len(gpus) else (),
        nics=tuple(dict.fromkeys(nic.name for found in near for nic in found)),
        nearest=pairs if len(pairs) == len(gpus) else (),
        interfaces=tuple(dict.fromkeys(nic.interface for nic in node.shape.nics if nic.interface and _is_up(nic))),
    )


def _is_up(nic: Nic) -> bool:
    """Whether sockets can be opened there; IP over InfiniBand needs an address that few give it."""
    return nic.link_layer == "Ethernet" and nic.state in ("up", "active")


def _before_bfloat16(topology: Topology, replica: Replica) -> bool:
    capabilities = (topology.gpu(ref).compute_capability for ref in replica.gpus)
    return any(c is not None and c < BFLOAT16_SINCE for c in capabilities)


def _device_uuid(topology: Topology, ref: GpuRef) -> str | None:
    """What the engine is to be given: the GPU, or its largest MIG instance."""
    state = topology.state(ref)
    if state.mig_instances:
        return max(state.mig_instances, key=lambda m: m.memory_bytes or 0).uuid
    return state.uuid


def _replicas(survey: Survey, chosen: Candidate, traits: EngineTraits) -> Iterator[Replica]:
    topology = survey.topology
    room = min(m.usable_bytes - m.needed_bytes + m.kv_bytes for m in chosen.memory)
    for wired, stages in materialise(chosen):
        if traits.takes_first_gpus:  # it counts them up by itself: within a stage no other rank order can be had
            stages = tuple(tuple(sorted(stage)) for stage in stages)
        fractions = {_utilization(topology, ref, traits) for stage in stages for ref in stage}
        p2p = not broken_p2p(survey, {ref for stage in stages for ref in stage})
        yield Replica(
            stages=stages,
            tp_path=wired.inside.label if wired.inside else None,
            hops=tuple(path.label for path in wired.hops),
            custom_all_reduce=p2p and custom_all_reduce(chosen.parallelism, wired.inside, traits),
            memory_utilization=min(fractions),
            kv_cache_bytes=room if len(fractions) > 1 else None,
        )


def _utilization(topology: Topology, ref: GpuRef, traits: EngineTraits) -> float:
    return memory_utilization(topology.gpu(ref).memory_bytes or 0, topology.state(ref).memory_free_bytes, traits)


def max_context(model: ModelSpec, c: Candidate) -> int:
    """Tokens of the longest single sequence that every stage can hold, up to the model's own limit."""
    most = model.max_context or _LONGEST_CONTEXT
    for memory, first, last in zip(c.memory, _firsts(c.layers), _firsts((*c.layers, 0))[1:], strict=True):
        room = memory.usable_bytes - memory.needed_bytes + memory.kv_bytes
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            held = sequence_bytes(model, first, last, tokens=middle, attention_tp=c.parallelism.attention_tp)
            low, high = (middle, high) if held <= room else (low, middle - 1)
        most = low
    return most


def _firsts(layers: tuple[int, ...]) -> list[int]:
    return [sum(layers[:stage]) for stage in range(len(layers))]


def _confidence(survey: Survey, model: ModelSpec, field: Field) -> str:
    """High where no other plan is within the uncertainty's reach; low where measuring must settle it."""
    best, *others = field.forecasts
    p = best.candidate.parallelism
    if model.warnings or provenance_of(survey.topology, "gpus.memory_bytes") is Provenance.ASSUMED:
        return "low"
    wired = is_measured(survey, best) or (field.has_fast_island and best.candidate.tp_is_fast)
    if p.gpus_per_replica > 1 and not wired:
        return "low"
    return "medium" if p.pp > 1 or any(abs(margin(f, best)) <= doubt(f, best) for f in others) else "high"


def _alternatives(field: Field, workload: Workload) -> tuple[Alternative, ...]:
    """The runner-up and the best loser of every tp, in order of rank, then what laws and limits forbid, each once."""
    best, others = field.forecasts[0], field.forecasts[1:]
    of_tp = {f.candidate.parallelism.tp: f for f in reversed(others)}
    losers = [f for f in others if f is others[0] or of_tp[f.candidate.parallelism.tp] is f]
    lost = [_lost(f, best, workload) for f in losers]
    broken: dict[str, Alternative] = {}
    for p, law in sorted(field.refused, key=lambda r: (r[0].attention_dp > 1, r[0].ep > 1)):  # the plain cut tells it
        broken.setdefault(law.rpartition(": ")[2], Alternative(p, law=law))
    forbidden = list(broken.values())
    return tuple(lost[: MAX_ALTERNATIVES // 2] + forbidden[: MAX_ALTERNATIVES - min(len(lost), MAX_ALTERNATIVES // 2)])


def _lost(f: Forecast, best: Forecast, workload: Workload) -> Alternative:
    behind = margin(f, best)
    return Alternative(
        f.candidate.parallelism,
        lost_by=lost_by(f, best, workload),
        margin=round(behind, 4),
        within_uncertainty=abs(behind) <= doubt(f, best),
        predictions=f.predictions,
    )


def _degraded(
    topology: Topology, workload: Workload, chosen: Candidate, limits: Limits, traits: EngineTraits
) -> list[str]:
    texts = []
    if chosen.max_concurrency < workload.concurrency:
        full = chosen.batch >= traits.max_sequences * chosen.parallelism.attention_dp
        holder = f"{traits.engine} runs" if full else "memory holds"
        texts.append(
            f"{holder} {chosen.max_concurrency} of {workload.concurrency} concurrent sequences of "
            f"{workload.tokens:,} tokens; the others wait"
        )
    nodes = topology.nodes[: limits.nodes or len(topology.nodes)]
    lost = sum(g.status is not GpuStatus.OK for node in nodes for g in node.gpus)
    if lost:
        texts.append(f"{count(lost, 'GPU')} cannot be used: see `wirelore probe`")
    usable = sum(g.is_usable for node in nodes for g in node.gpus)
    idle = min(usable, limits.gpus or usable) - chosen.parallelism.gpus
    if idle > 0:
        served = "concurrency" not in workload.assumed and chosen.parallelism.dp >= workload.concurrency
        why = "the told load needs no more replicas" if served else "no further whole replica helps"
        if chosen.parallelism.dp == limits.replicas:
            why = f"{count(limits.replicas, 'replica')} and no more may be started"
        texts.append(f"{count(idle, 'GPU')} {'stays' if idle == 1 else 'stay'} idle: {why}")
    return texts
