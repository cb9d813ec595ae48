"""SGLang: a Plan in the flags of `sglang serve`, a server per replica; one line where one command can say it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import floor

from configgen.engines.network import network, sockets_note
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
    visible_devices,
)
from configgen.launch import MASTER_ADDRESS, Flag, Given, Launch, Process, Setting, Variable
from configgen.plan import Plan, Replica

FIRST_PORT = 30000
"""SGLang's own default of --port (srt/arg_groups/fields/serving.py)."""
FIRST_RENDEZVOUS_PORT = 20000
PORTS_OF_A_SERVER = 20
"""With attention-DP a server takes further ports: 13 above its own or the rendezvous', and 7 from 233 above its own or
from the rendezvous' (PortArgs.init_new and the two deltas in srt/server_args.py)."""
MOST_SEQUENCES = 2048
"""Running requests of a rank at most: SGLang's own, where its memory doesn't allow more (resolve_max_num_reqs in
srt/mem_cache/kv_cache_configurator.py)."""


def sglang_launch(plan: Plan) -> Launch:
    """The plan as SGLang processes."""
    because = _not_one_line(plan)
    words: tuple[str, ...] | None = None
    if because is None:
        first = plan.replicas[0]
        own = (*_parallel_flags(plan, first), *_one_line_flags(plan), *_tuning_flags(plan, first))
        words = tuple(word for flag in own for word in flag.words)
    return Launch(
        "sglang",
        plan.engine.version,
        tuple(_processes(plan)),
        config_flag="--config",
        notes=tuple(_notes(plan)),
        one_line=words,
        not_one_line_because=because,
    )


def _not_one_line(plan: Plan) -> str | None:
    p = plan.parallelism
    if (because := beyond_flags(plan, "SGLANG_PP_LAYER_PARTITION")) is not None:
        return because
    if p.dp > 1 and p.attention_dp > 1:
        return "SGLang refuses --dp-size beside --attn-dp-size, so each replica is a server of its own"
    if len({(r.custom_all_reduce, r.memory_utilization) for r in plan.replicas}) > 1:
        return "replicas with other wires or other free memory need servers of their own"
    if plan.mixed_gpus:
        return "GPUs of different models need CUDA_DEVICE_ORDER=PCI_BUS_ID in the environment"
    if any(_unbalanced(plan, replica) for replica in plan.replicas):
        return "GPUs with different memory need SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK in the environment"
    if _steps(plan) is None:
        order = ",".join(str(ref.gpu) for replica in plan.replicas for ref in replica.gpus)
        return f"the GPU order {order} needs CUDA_VISIBLE_DEVICES in the environment: SGLang's flags only count upwards"
    return None


def _steps(plan: Plan) -> tuple[int, int] | None:
    """First GPU and the step between neighbours, where the order of all ranks is counted so; stages have step 1.

    SGLang takes base + (pp rank * tp) + (tp rank * step) for each rank (srt/entrypoints/engine.py), and a replica's
    GPUs after another's (srt/managers/data_parallel_controller.py).
    """
    order = [ref.gpu for replica in plan.replicas for ref in replica.gpus]
    step = order[1] - order[0] if len(order) > 1 else 1
    if step < 1 or order != list(range(order[0], order[0] + step * len(order), step)):
        return None
    return None if step > 1 and plan.parallelism.pp > 1 else (order[0], step)


def _one_line_flags(plan: Plan) -> Iterator[Flag]:
    """What the processes of a script are told by their number, their environment and their ports."""
    first, step = _steps(plan) or (0, 1)
    if plan.parallelism.dp > 1:
        yield Flag(("--dp-size", str(plan.parallelism.dp)), "replicas share nothing")
    if first > 0:
        yield Flag(("--base-gpu-id", str(first)), "the first GPU of the plan")
    if step > 1:
        yield Flag(("--gpu-id-step", str(step)), "the plan takes GPUs this far apart")


def _processes(plan: Plan) -> Iterator[Process]:
    servers: Counter[int] = Counter()
    reached = len({replica.nodes[0] for replica in plan.replicas}) > 1
    model = Setting("model-path", plan.model.name, "the model")
    for number, replica in enumerate(plan.replicas):
        place = max(servers[node] for node in replica.nodes) * PORTS_OF_A_SERVER
        servers.update(replica.nodes)
        for rank, node in enumerate(replica.nodes):
            flags = [*_parallel_flags(plan, replica)]
            if len(replica.nodes) > 1:
                flags += _node_flags(replica, rank, place)
            flags += _tuning_flags(plan, replica)
            if len(plan.replicas) > 1:
                flags.append(Flag(("--port", str(FIRST_PORT + place)), "ports of its own for each server of a node"))
            if reached and rank == 0:
                flags.append(Flag(("--host", "0.0.0.0"), "the proxy asks from another node"))  # noqa: S104
            yield Process(
                node,
                plan.hostnames[node],
                number,
                ("sglang", "serve", "--model-path", plan.model.name),
                tuple(flags),
                tuple(_environment(plan, replica, node)),
                FIRST_PORT + place if rank == 0 else None,
                said_by_command=(model,),
            )


def _parallel_flags(plan: Plan, replica: Replica) -> Iterator[Flag]:
    """SGLang's TP is all GPUs of a stage; attention-DP and EP cut it further."""
    p = plan.parallelism
    yield Flag(("--tp-size", str(p.tp)), stage_reason(replica))
    if p.pp > 1:
        yield Flag(("--pp-size", str(p.pp)), hops_reason(replica))
    if p.attention_dp > 1:
        yield Flag(("--attn-dp-size", str(p.attention_dp)), "attention runs once per rank, KV is not copied")
    if p.ep > 1:
        yield Flag(("--ep-size", str(p.ep)), f"experts spread over {p.ep} GPUs")


def _node_flags(replica: Replica, rank: int, place: int) -> list[Flag]:
    rendezvous = Given(MASTER_ADDRESS.name, f":{FIRST_RENDEZVOUS_PORT + place}")
    return [
        Flag(("--nnodes", str(len(replica.nodes))), "the replica lies on several nodes"),
        Flag(("--node-rank", str(rank)), "this node's place"),
        Flag(
            ("--dist-init-addr", rendezvous), "address of the replica's first node, ports of its own for each replica"
        ),
    ]


def _tuning_flags(plan: Plan, replica: Replica) -> Iterator[Flag]:
    p = plan.parallelism
    if p.tp > 1 and not plan.p2p:
        yield Flag(("--disable-custom-all-reduce",), "it needs P2P")
    elif p.attention_tp > 1 and not replica.custom_all_reduce:
        some = p.attention_tp in plan.engine.custom_all_reduce_sizes
        why = "needs NVLink between all GPUs of a group of more than two" if some else f"has no kernel for {p.tp} GPUs"
        yield Flag(("--disable-custom-all-reduce",), f"it {why}")
    yield Flag(("--mem-fraction-static", f"{_static_share(plan, replica):.3f}"), "weights and KV, as the plan counts")
    if plan.half_precision:
        yield Flag(("--dtype", "half"), "a GPU older than Ampere has no bfloat16")
    chunk = plan.engine.max_batched_tokens
    shared = f", on each of {p.attention_dp} attention ranks" if p.attention_dp > 1 else ""
    yield Flag(
        ("--chunked-prefill-size", str(chunk * p.attention_dp)),
        f"prompts in chunks of {chunk:,} tokens, as the plan counts{shared}",
    )
    most = min(held_sequences(plan), MOST_SEQUENCES)
    yield Flag(("--max-running-requests", str(most * p.attention_dp)), held_reason(plan, most) + shared)
    fits = plan.predictions.max_context
    if fits is not None and plan.model.max_context is not None and fits < plan.model.max_context:
        yield Flag(
            ("--context-length", str(fits)), f"KV memory holds {fits} tokens, the model allows {plan.model.max_context}"
        )


def _static_share(plan: Plan, replica: Replica) -> float:
    """What weights and KV may take of what is free at the start, of the GPU with the least (--mem-fraction-static).

    KV gets what is free once weights are loaded, less (1 - share) of what was free before, each the least of any rank
    (_profile_available_bytes in srt/mem_cache/kv_cache_configurator.py). So this part must hold, on every GPU, what
    the plan leaves free there and what it counts for activations and runtime.
    """
    alone = replica.memory_utilization >= plan.engine.memory_utilization
    free = [m.usable_bytes / plan.engine.memory_utilization if alone else m.usable_bytes for m in plan.memory]
    kept = max(
        f - m.usable_bytes + m.activation_bytes + m.overhead_bytes for f, m in zip(free, plan.memory, strict=True)
    )
    return floor(1000 * (1 - kept / min(free))) / 1000


def _unbalanced(plan: Plan, replica: Replica) -> bool:
    """Whether a rank may find a tenth less memory than another, which SGLang refuses (_check_tp_memory_balance)."""
    sizes = [m.usable_bytes for m in plan.memory]
    return plan.parallelism.tp > 1 and (min(sizes) < 0.9 * max(sizes) or replica.kv_cache_bytes is not None)


def _environment(plan: Plan, replica: Replica, node: int) -> Iterator[Variable]:
    yield CUDA_INDICES
    yield visible_devices(plan, tuple(ref for ref in replica.gpus if ref.node == node))
    yield from broken_p2p(plan)
    yield from partition(plan, "SGLANG_PP_LAYER_PARTITION")
    yield from network(plan, replica, node)
    if _unbalanced(plan, replica) or (plan.mixed_gpus and plan.parallelism.tp > 1):
        why = "the plan counts with GPUs of different memory"
        yield Variable("SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK", "0", why)


def _notes(plan: Plan) -> Iterator[str]:
    yield from server_notes(plan)
    yield from sockets_note(plan, ", and SGLANG_HOST_IP to its address")
    if plan.parallelism.tp > 2 and any((r.tp_path or "").startswith("NV") for r in plan.replicas):
        yield (
            "SGLang turns NCCL's NVLS off (NCCL_NVLS_ENABLE=0): all-reduces measured with it are faster than here. "
            "Behind an NVSwitch of Hopper or later --enable-nccl-nvls turns it on."
        )
