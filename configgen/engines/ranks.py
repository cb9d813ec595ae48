"""Ranks of a replica on its nodes, as launchers count them: the first node's GPUs first, in the order of the plan."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from configgen.launch import VISIBLE, Variable
from configgen.plan import Plan, Replica
from probe.errors import NoPlanError
from probe.topology import GpuRef

CUDA_INDICES = Variable("CUDA_DEVICE_ORDER", "PCI_BUS_ID", "makes CUDA's indices those of the plan")
"""CUDA C++ Programming Guide, environment variables: the driver's own order instead of the fastest GPU first."""


def ranks_by_node(replica: Replica) -> list[tuple[int, tuple[GpuRef, ...]]]:
    """(node, its GPUs in rank order). Raises NoPlanError where a node's ranks don't follow each other."""
    parts = [(node, tuple(refs)) for node, refs in groupby(replica.gpus, key=lambda ref: ref.node)]
    if len(parts) > len(replica.nodes):
        raise NoPlanError(
            "ranks of one node must follow each other, and this plan's stages go back and forth between nodes",
            cure="Plan with another --gpus or --nodes.",
        )
    return parts


def visible_devices(plan: Plan, refs: tuple[GpuRef, ...]) -> Variable:
    """CUDA_VISIBLE_DEVICES: indices in rank order, as engines read them back with int(); UUIDs for MIG instances."""
    names = [_uuid(plan, ref) for ref in refs] if plan.uses_mig else [str(ref.gpu) for ref in refs]
    why = "rank order: each TP group is consecutive, stages follow each other"
    return Variable(VISIBLE, ",".join(names), why)


def broken_p2p(plan: Plan) -> tuple[Variable, ...]:
    return () if plan.p2p else (Variable("NCCL_P2P_DISABLE", "1", "P2P between these GPUs returned other bytes"),)


def beyond_flags(plan: Plan, partition: str) -> str | None:
    """Why one line of flags can't say the plan, as far as engines agree; `partition` is their variable for layers."""
    if len({node for replica in plan.replicas for node in replica.nodes}) > 1:
        return "the plan spans several nodes"
    if not plan.p2p:
        return "broken P2P needs NCCL_P2P_DISABLE in the environment"
    if not plan.engine_split:
        return f"the uneven layer split needs {partition} in the environment"
    return None


def partition(plan: Plan, name: str) -> tuple[Variable, ...]:
    """The layers of each stage in the engine's own variable, where it would cut them otherwise."""
    if plan.engine_split:
        return ()
    split = ",".join(map(str, plan.layers_per_stage))
    return (Variable(name, split, "stages of different memory carry different layers"),)


def server_notes(plan: Plan) -> Iterator[str]:
    """What a person has to do beside starting the processes, for engines that start a server per replica."""
    if len(plan.replicas) > 1:
        yield f"{len(plan.replicas):,} independent servers: put a load balancer before them (proxy.conf)."
    if any(len(r.nodes) > 1 for r in plan.replicas):
        yield "Set MASTER_ADDR to the address of each replica's first node before starting its parts."


def stage_reason(replica: Replica) -> str:
    return f"slowest path inside a stage: {replica.tp_path}" if replica.tp_path else "one GPU per stage"


def hops_reason(replica: Replica) -> str:
    return f"paths between stages: {', '.join(replica.hops)}"


def experts_reason(ep: int) -> str:
    return f"whole experts spread over {ep} GPUs" if ep > 1 else "every GPU of a stage has a part of each expert"


def held_sequences(plan: Plan) -> int:
    """Whole sequences of the told length that one attention rank of a replica holds at once."""
    return max(1, (plan.predictions.max_concurrency or 1) // plan.parallelism.dp // plan.parallelism.attention_dp)


def held_reason(plan: Plan, told: int) -> str:
    """Why an attention rank is told to take `told` sequences at once, of those that its memory holds."""
    held = held_sequences(plan)
    holds = f"memory holds {held:,} sequences of {plan.workload.tokens:,} tokens"
    return holds if told == held else f"{holds}; {plan.engine.engine} gets {told:,}"


def longest_sequence(plan: Plan) -> tuple[int, str] | None:
    """Tokens, and why, where the KV memory holds less than the model allows; None where the model is the limit."""
    fits, allowed = plan.predictions.max_context, plan.model.max_context
    if fits is None or (allowed is not None and fits >= allowed):
        return None
    return fits, f"KV memory holds {fits:,} tokens" + (f", the model allows {allowed:,}" if allowed else "")


def _uuid(plan: Plan, ref: GpuRef) -> str:
    return plan.gpu_uuids[ref.node][plan.gpu_order[ref.node].index(ref.gpu)] or str(ref.gpu)
