"""vLLM: a Plan in the flags of `vllm serve`, a server per replica; one line where one command can carry them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from configgen.engines.network import network, numa_note, site_of, sockets_note
from configgen.engines.ranks import (
    CUDA_INDICES,
    beyond_flags,
    broken_p2p,
    held_reason,
    held_sequences,
    hops_reason,
    partition,
    server_notes,
    stage_reason,
)
from configgen.launch import MASTER_ADDRESS, Flag, Launch, Process, Setting, Variable
from configgen.plan import Plan, Replica
from probe.topology import GpuRef

FIRST_PORT = 8000
FIRST_MASTER_PORT = 29501


def vllm_launch(plan: Plan) -> Launch:
    """The plan as vLLM processes."""
    because = _not_one_line(plan)
    words: tuple[str, ...] | None = None
    if because is None:
        replica = plan.replicas[0]
        devices = [ref for r in plan.replicas for ref in r.gpus]
        own = (*_parallel_flags(plan, replica, plan.parallelism.dp), _device_flag(plan, devices))
        words = tuple(word for flag in (*own, *_tuning_flags(plan, replica)) for word in flag.words)
    return Launch(
        "vllm",
        plan.engine.version,
        tuple(_processes(plan)),
        config_flag="--config",
        notes=tuple(_notes(plan)),
        one_line=words,
        not_one_line_because=because,
    )


def _not_one_line(plan: Plan) -> str | None:
    p = plan.parallelism
    if (because := beyond_flags(plan, "VLLM_PP_LAYER_PARTITION")) is not None:
        return because
    if plan.model.is_moe and p.dp > 1:
        return "vLLM's --data-parallel-size joins the experts of MoE replicas, so each replica is a server of its own"
    if len({_settings(replica) for replica in plan.replicas}) > 1:
        return "replicas with other wires or other free memory need servers of their own"
    if plan.mixed_gpus and not _uuids_known(plan):
        return "GPUs of different models need CUDA_DEVICE_ORDER=PCI_BUS_ID in the environment"
    return None


def _processes(plan: Plan) -> Iterator[Process]:
    servers: Counter[int] = Counter()
    for number, replica in enumerate(plan.replicas):
        place = servers[replica.nodes[0]]
        servers[replica.nodes[0]] += 1
        for rank, node in enumerate(replica.nodes):
            own = [ref for ref in replica.gpus if ref.node == node]
            flags = [*_parallel_flags(plan, replica, 1), _device_flag(plan, own)]
            if len(replica.nodes) > 1:
                flags += _node_flags(replica, rank, place)
            flags += _tuning_flags(plan, replica)
            port = FIRST_PORT + place if rank == 0 else None
            if port is not None and len(plan.replicas) > 1:
                flags.append(Flag(("--port", str(port)), "one port per server of a node"))
            command, environment = ("vllm", "serve", plan.model.name), _environment(plan, replica, node)
            model = Setting("model", plan.model.name, "the model")
            yield Process(
                node,
                plan.hostnames[node],
                number,
                command,
                tuple(flags),
                environment,
                port,
                said_by_command=(model,),
            )


def _settings(replica: Replica) -> tuple[object, ...]:
    """What all replicas of one server share."""
    return (replica.custom_all_reduce, replica.memory_utilization, replica.kv_cache_bytes)


def _parallel_flags(plan: Plan, replica: Replica, dense_dp: int) -> Iterator[Flag]:
    p = plan.parallelism
    yield Flag(("--tensor-parallel-size", str(p.attention_tp)), stage_reason(replica))
    if p.pp > 1:
        yield Flag(("--pipeline-parallel-size", str(p.pp)), hops_reason(replica))
    if p.attention_dp > 1:
        yield Flag(("--data-parallel-size", str(p.attention_dp)), "attention runs once per rank, KV is not copied")
    elif dense_dp > 1:
        yield Flag(("--data-parallel-size", str(dense_dp)), "replicas share nothing")
    if p.ep > 1:
        yield Flag(("--enable-expert-parallel",), f"experts spread over {p.ep} GPUs")


def _device_flag(plan: Plan, devices: list[GpuRef]) -> Flag:
    by_uuid = plan.uses_mig or (plan.mixed_gpus and _uuids_known(plan))
    names = [_uuid(plan, ref) or str(ref.gpu) for ref in devices] if by_uuid else [str(ref.gpu) for ref in devices]
    return Flag(("--device-ids", ",".join(names)), "rank order: each TP group is consecutive, stages follow each other")


def _tuning_flags(plan: Plan, replica: Replica) -> Iterator[Flag]:
    if plan.parallelism.attention_tp > 1 and not replica.custom_all_reduce:
        why = "it needs one node and, for more than two GPUs, NVLink between all" if plan.p2p else "it needs P2P"
        yield Flag(("--disable-custom-all-reduce",), why)
    taken = replica.memory_utilization < plan.engine.memory_utilization
    why = "other processes hold the rest of the memory" if taken else "as the plan counts"
    yield Flag(("--gpu-memory-utilization", f"{replica.memory_utilization:.2f}"), why)
    if replica.kv_cache_bytes is not None:
        size = str(replica.kv_cache_bytes)
        yield Flag(("--kv-cache-memory-bytes", size), "GPUs with different free memory: one fraction can't say it")
    if plan.half_precision:
        yield Flag(("--dtype", "half"), "a GPU older than Ampere has no bfloat16")
    chunk = plan.engine.max_batched_tokens
    yield Flag(("--max-num-batched-tokens", str(chunk)), f"prompts in chunks of {chunk:,} tokens, as the plan counts")
    most = min(held_sequences(plan), plan.engine.max_sequences)
    yield Flag(("--max-num-seqs", str(most)), held_reason(plan, most))
    fits = plan.predictions.max_context
    if fits is not None and plan.model.max_context is not None and fits < plan.model.max_context:
        yield Flag(
            ("--max-model-len", str(fits)), f"KV memory holds {fits} tokens, the model allows {plan.model.max_context}"
        )


def _node_flags(replica: Replica, rank: int, place: int) -> list[Flag]:
    flags = [
        Flag(("--nnodes", str(len(replica.nodes))), "the replica lies on several nodes"),
        Flag(("--node-rank", str(rank)), "this node's place"),
        Flag(("--master-addr", MASTER_ADDRESS), "address of the replica's first node"),
        Flag(("--master-port", str(FIRST_MASTER_PORT + place)), "one port per replica"),
    ]
    if rank > 0:
        flags.append(Flag(("--headless",), "only the first node answers requests"))
    return flags


def _environment(plan: Plan, replica: Replica, node: int) -> tuple[Variable, ...]:
    variables = [CUDA_INDICES, *broken_p2p(plan), *partition(plan, "VLLM_PP_LAYER_PARTITION")]
    variables += network(plan, replica, node)
    nearest = site_of(plan, node).nearest
    if nearest and len(replica.nodes) > 1:
        pairs = ",".join(f"{gpu}={nic}" for gpu, nic in nearest)
        variables.append(Variable("VLLM_GPU_NIC_PCIE_MAPPING", pairs, "each GPU's nearest NIC, by PCI address"))
        chosen = "UCX_NET_DEVICES:1"
        variables.append(Variable("VLLM_NIC_SELECTION_VARS", chosen, "what the mapping sets, per rank, for transfers"))
    return tuple(variables)


def _notes(plan: Plan) -> Iterator[str]:
    yield from server_notes(plan)
    yield from sockets_note(plan, ", and VLLM_HOST_IP to its address")
    if len(plan.replicas) == 1:
        yield from numa_note(plan, "--numa-bind --numa-bind-nodes {}")


def _uuid(plan: Plan, ref: GpuRef) -> str | None:
    return plan.gpu_uuids[ref.node][plan.gpu_order[ref.node].index(ref.gpu)]


def _uuids_known(plan: Plan) -> bool:
    return all(uuid is not None for node in plan.gpu_uuids for uuid in node)
