"""TensorRT-LLM: a Plan as an options file for `trtllm-serve`, under `mpirun` where a replica spans nodes.

Read in tensorrt_llm of 1.2: commands/serve.py (flags, underscores only), llmapi/llm_args.py (keys of the file; any
other is refused; a key of the file beats the flag), mapping.py (ranks are TP-fastest and node = rank // gpus_per_node;
moe_tp * moe_ep * cluster == tp; with attention-DP every rank of the tp group runs attention alone). So nearly all goes
into the file, which names every size whatever the version's spelling of a flag. A replica over several nodes is one
MPI world (docs/source/commands/trtllm-serve: as many tasks as ranks around `trtllm-llmapi-launch trtllm-serve`): one
command on its first node starts it all, and the folder of the files must be the same on each.

One line of flags says the flags that old and new versions share; it can't say chunks, attention-DP, an uneven split or
an order of GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import floor

from configgen.engines.network import network, sockets_note
from configgen.engines.ranks import (
    CUDA_INDICES,
    broken_p2p,
    experts_reason,
    held_reason,
    held_sequences,
    hops_reason,
    longest_sequence,
    ranks_by_node,
    stage_reason,
    visible_devices,
)
from configgen.launch import HERE, ConfigFile, Flag, Given, Launch, Process, Setting, Value, Variable, is_hostname
from configgen.plan import Plan, Replica
from probe.errors import NoPlanError

FIRST_PORT = 8000

_TWENTIETH = 0.05
_DIGITS = 1000


def trtllm_launch(plan: Plan) -> Launch:
    """The plan as TensorRT-LLM servers. Raises NoPlanError where its ranks can't lie as planned."""
    if plan.parallelism.attention_dp not in (1, plan.parallelism.tp):
        raise NoPlanError(
            f"{plan.parallelism.label}: enable_attention_dp runs attention alone on every rank of a stage or on none",
            cure="Plan with another --gpus.",
        )
    because = _not_one_line(plan)
    return Launch(
        "trtllm",
        plan.engine.version,
        tuple(_processes(plan)),
        notes=tuple(_notes(plan)),
        one_line=None if because else tuple(_flags(plan)),
        not_one_line_because=because,
    )


def kv_fraction(plan: Plan, replica: Replica) -> float:
    """free_gpu_memory_fraction that gives the KV cache what the plan gives it, and never more.

    TensorRT-LLM multiplies it with what a profiling run leaves of the memory, so of total - others - n where n is
    weights, activations and overhead (KvCacheCreator._cal_max_memory, _torch/pyexecutor/_util.py: `(total - peak) *
    fraction`). The plan's budget is u = f * total with f the replica's memory_utilization, so its cache is u - n, and

        fraction = (u - n) / (free * total - n),    total = u / f

    `free` is what others leave: all of it where f is the engine's own fraction; else f was rounded down to a twentieth,
    so at most a twentieth more. The fullest stage decides, since all ranks read one file; cut off, not rounded.
    """
    own = replica.memory_utilization >= plan.engine.memory_utilization
    free = 1.0 if own else min(1.0, replica.memory_utilization + _TWENTIETH)
    fractions = []
    for stage in plan.memory:
        needed = stage.needed_bytes - stage.kv_bytes
        left = free * stage.usable_bytes / replica.memory_utilization - needed
        fractions.append((stage.usable_bytes - needed) / left)
    return max(1, floor(_DIGITS * min(fractions))) / _DIGITS


def _not_one_line(plan: Plan) -> str | None:
    p = plan.parallelism
    if len({node for replica in plan.replicas for node in replica.nodes}) > 1:
        return "the plan spans several nodes"
    if p.dp > 1:
        return "trtllm-serve has one replica: each is a server of its own"
    if plan.replicas[0].gpus and [ref.gpu for ref in plan.replicas[0].gpus] != list(range(p.gpus)):
        return "the order of the GPUs needs CUDA_VISIBLE_DEVICES in the environment"
    if plan.uses_mig or plan.mixed_gpus:
        return "the choice of the GPUs needs CUDA_DEVICE_ORDER and CUDA_VISIBLE_DEVICES in the environment"
    if not plan.p2p:
        return "broken P2P needs NCCL_P2P_DISABLE in the environment"
    if not plan.engine_split:
        return "the uneven layer split needs pp_partition in an options file"
    if p.attention_dp > 1:
        return "attention-DP needs enable_attention_dp in an options file"
    if plan.workload.input_tokens > plan.engine.max_batched_tokens:
        return "prompts longer than a step need enable_chunked_prefill in an options file"
    if plan.half_precision:
        return "float16 needs dtype in an options file"
    return None


def _flags(plan: Plan) -> Iterator[str]:
    """Those that both old and new versions take."""
    p, replica = plan.parallelism, plan.replicas[0]
    yield from ("--tp_size", str(p.tp))
    if p.pp > 1:
        yield from ("--pp_size", str(p.pp))
    if p.ep > 1:
        yield from ("--ep_size", str(p.ep))
    yield from ("--gpus_per_node", str(p.gpus))
    yield from ("--kv_cache_free_gpu_memory_fraction", str(kv_fraction(plan, replica)))
    yield from ("--max_batch_size", str(min(held_sequences(plan), plan.engine.max_sequences)))
    yield from ("--max_num_tokens", str(plan.engine.max_batched_tokens))
    if (longest := longest_sequence(plan)) is not None:
        yield from ("--max_seq_len", str(longest[0]))


def _processes(plan: Plan) -> Iterator[Process]:
    servers: Counter[int] = Counter()
    reached_from_elsewhere = len({replica.nodes[0] for replica in plan.replicas}) > 1
    for number, replica in enumerate(plan.replicas):
        first = replica.nodes[0]
        port = FIRST_PORT + servers[first]
        servers[first] += 1
        environment = _environment(plan, replica)
        file = ConfigFile(f"replica{number}.yaml", tuple(_settings(plan, replica)))
        flags = [Flag(("--extra_llm_api_options", Given(HERE, f"/{file.name}")), "all sizes: the file beats flags")]
        if reached_from_elsewhere:
            flags.append(Flag(("--host", "0.0.0.0"), "the proxy is on another node; by default only this one"))  # noqa: S104
        if len(plan.replicas) > 1:
            flags.append(Flag(("--port", str(port)), "one port per server of a node"))
        command = (*_mpi(plan, replica, environment), "trtllm-serve", "serve", plan.model.name)
        yield Process(first, plan.hostnames[first], number, command, tuple(flags), environment, port, (file,))


def _mpi(plan: Plan, replica: Replica, environment: tuple[Variable, ...]) -> tuple[str, ...]:
    """One task per rank on all nodes of the replica; a node's slots are its GPUs, filled node after node."""
    parts = ranks_by_node(replica)
    if len(parts) == 1:
        return ()
    names = [plan.hostnames[node] for node, _ in parts]
    hosts: str = Given("HOSTS")
    if all(is_hostname(name) for name in names):
        hosts = ",".join(f"{name}:{len(refs)}" for name, (_, refs) in zip(names, parts, strict=True))
    exported = [word for variable in environment for word in ("-x", variable.name)]
    return ("mpirun", "-n", str(len(replica.gpus)), "--host", hosts, *exported, "trtllm-llmapi-launch")


def _environment(plan: Plan, replica: Replica) -> tuple[Variable, ...]:
    """The same on every node of the replica, since mpirun has one environment for all. Raises NoPlanError."""
    devices = [visible_devices(plan, refs) for _, refs in ranks_by_node(replica)]
    if len(set(devices)) > 1:
        raise NoPlanError(
            "mpirun gives all nodes one CUDA_VISIBLE_DEVICES, and this plan orders the GPUs of its nodes differently",
            cure="Plan on nodes that are alike.",
        )
    wires = [tuple(network(plan, replica, node)) for node in replica.nodes]
    shared = (variable for variable in wires[0] if all(variable in other for other in wires))
    return (CUDA_INDICES, devices[0], *broken_p2p(plan), *shared)


def _settings(plan: Plan, replica: Replica) -> Iterator[Setting]:
    p = plan.parallelism
    yield Setting("tensor_parallel_size", p.tp, stage_reason(replica))
    if p.pp > 1:
        yield Setting("pipeline_parallel_size", p.pp, hops_reason(replica))
        if not plan.engine_split:
            layers: list[Value] = list(plan.layers_per_stage)
            yield Setting("pp_partition", layers, "stages of different memory carry different layers")
    per_node = len(replica.gpus) // len(replica.nodes)
    yield Setting("gpus_per_node", per_node, "ranks of a node: rank // gpus_per_node is its node")
    if plan.model.is_moe:
        yield Setting("moe_tensor_parallel_size", p.tp // p.ep, "GPUs over which one expert is cut")
        yield Setting("moe_expert_parallel_size", p.ep, experts_reason(p.ep))
    if p.attention_dp > 1:
        yield Setting("enable_attention_dp", True, "attention runs once per rank, KV is not copied")
    if p.attention_tp > 1 and not replica.custom_all_reduce:
        why = "its own kernels need NVLink between 2, 4 or 8 GPUs" if plan.p2p else "its own kernels need P2P"
        yield Setting("allreduce_strategy", "NCCL", why)
    if plan.half_precision:
        yield Setting("dtype", "float16", "a GPU older than Ampere has no bfloat16")
    share: dict[str, Value] = {"free_gpu_memory_fraction": kv_fraction(plan, replica)}
    yield Setting(
        "kv_cache_config", share, "of what weights and activations leave: the cache that the plan counts with"
    )
    most = min(held_sequences(plan), plan.engine.max_sequences)
    yield Setting("max_batch_size", most, held_reason(plan, most))
    chunk = plan.engine.max_batched_tokens
    yield Setting("max_num_tokens", chunk, f"a step has at most {chunk:,} tokens, as the plan counts")
    yield Setting("enable_chunked_prefill", True, "longer prompts run in chunks instead of being refused")
    if (longest := longest_sequence(plan)) is not None:
        yield Setting("max_seq_len", *longest)


def _notes(plan: Plan) -> Iterator[str]:
    if len(plan.replicas) > 1:
        yield f"{len(plan.replicas):,} independent servers: put a load balancer before them (proxy.conf)."
    if any(len(replica.nodes) > 1 for replica in plan.replicas):
        yield "Open MPI starts a replica's ranks on all its nodes; this folder must be at the same path on each."
    yield from sockets_note(plan, "; mpirun hands both on with -x")
