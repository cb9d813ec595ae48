"""Megatron-LM: a Plan as `torchrun` around the dynamic text generation server of Megatron Core, one part per node.

Read in Megatron Core 0.16.1 (its wheel) and in NVIDIA/Megatron-LM: tools/run_dynamic_text_generation_server.py
(--port), megatron/inference/utils.py (what the server reads), megatron/training/arguments.py (flags and their checks),
core/parallel_state.py, core/transformer/pipeline_parallel_layer_layout.py, core/inference/contexts/dynamic_context.py.

World = tp * dp * pp, and the same GPUs once more as expert_tp * ep * expert_dp * pp (initialize_model_parallel: two
rank generators, 'tp-cp-ep-dp-pp', the same pipeline groups). So expert parallelism spans a stage's attention-DP ranks
as well as its TP ranks: with expert_tp = tp / ep of the plan, expert_dp is 1 and every cut of a stage has its words.
TP ranks are the fastest, then DP, stages the slowest: the plan's order. Layers are cut evenly or by
--pipeline-model-parallel-layout.

The weights are a checkpoint that the person has converted (CHECKPOINT); its architecture is read from there. It can't
be one line: torchrun's flags stand before the program, and those of each node differ.
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
    server_notes,
    stage_reason,
    visible_devices,
)
from configgen.launch import MASTER_ADDRESS, Flag, Given, Launch, Process, Variable
from configgen.plan import Plan, Replica

FIRST_PORT = 5000
"""--port of the server by default."""
FIRST_MASTER_PORT = 29500
"""torchrun's --master-port by default."""
FIRST_COORDINATOR_PORT = 12346
"""--inference-coordinator-port by default."""
LATENT_BLOCK = 64
"""Tokens of a cache block for latent attention: `Flash MLA requires a block size of 64` (dynamic_context.py)."""

PROGRAM = Given("MEGATRON", "/tools/run_dynamic_text_generation_server.py")
CHECKPOINT = Given("CHECKPOINT")

_ROUNDER = 4
"""REQUEST_ROUNDER of dynamic_context.py: requests come in multiples of it and of tp."""


def megatron_launch(plan: Plan) -> Launch:
    """The plan as processes of torchrun."""
    return Launch(
        "megatron",
        plan.engine.version,
        tuple(_processes(plan)),
        notes=tuple(_notes(plan)),
        not_one_line_because="torchrun's own flags stand before the program, and CHECKPOINT is told where it starts",
    )


def stage_layout(layers: tuple[int, ...]) -> str:
    """Layers per stage as --pipeline-model-parallel-layout: 27,26,27 is 'Et*27|t*26|t*27L' (E embedding, L loss)."""
    return "E" + "|".join(f"t*{n}" for n in layers) + "L"


def buffer_gib(plan: Plan) -> float:
    """KV cache of each GPU in GiB (`int(buffer_size_gb * 1024**3)` bytes), cut off: what the fullest stage has left.

    Stages agree on the least number of blocks, so a stage with fewer layers takes less than that.
    """
    room = min(m.usable_bytes - m.needed_bytes + m.kv_bytes for m in plan.memory)
    return max(1, floor(room * 100 / 2**30)) / 100


def _processes(plan: Plan) -> Iterator[Process]:
    servers: Counter[int] = Counter()
    for number, replica in enumerate(plan.replicas):
        parts = ranks_by_node(replica)
        place = max(servers[node] for node, _ in parts)
        for rank, (node, refs) in enumerate(parts):
            servers[node] = place + 1
            torchrun = [("--nnodes", str(len(parts))), ("--nproc-per-node", str(len(refs)))]
            if len(parts) > 1:
                torchrun += [("--node-rank", str(rank)), ("--master-addr", MASTER_ADDRESS)]
            torchrun.append(("--master-port", str(FIRST_MASTER_PORT + place)))
            command = ("torchrun", *(word for words in torchrun for word in words), PROGRAM)
            flags = (*_parallel_flags(plan, replica), *_model_flags(plan), *_memory_flags(plan), *_ports(plan, place))
            environment = (
                CUDA_INDICES,
                visible_devices(plan, refs),
                *_environment(plan),
                *network(plan, replica, node),
            )
            port = FIRST_PORT + place if rank == 0 else None
            yield Process(node, plan.hostnames[node], number, command, flags, environment, port)


def _parallel_flags(plan: Plan, replica: Replica) -> Iterator[Flag]:
    p = plan.parallelism
    reason = "each rank runs attention alone" if p.attention_dp > 1 else stage_reason(replica)
    yield Flag(("--tensor-model-parallel-size", str(p.attention_tp)), reason)
    if plan.model.is_moe:
        yield Flag(("--expert-model-parallel-size", str(p.ep)), experts_reason(p.ep))
        yield Flag(("--expert-tensor-parallel-size", str(p.tp // p.ep)), "GPUs over which one expert is cut")
    if p.ep > 1 and p.attention_tp > 1:
        yield Flag(
            ("--sequence-parallel",), "experts on several GPUs and TP: each TP rank sends its part of the tokens"
        )
    yield Flag(("--pipeline-model-parallel-size", str(p.pp)), hops_reason(replica) if p.pp > 1 else "one stage")
    if len(set(plan.layers_per_stage)) > 1:
        layout = stage_layout(plan.layers_per_stage)
        yield Flag(("--pipeline-model-parallel-layout", layout), "stages with different numbers of layers")


def _model_flags(plan: Plan) -> Iterator[Flag]:
    yield Flag(("--load", CHECKPOINT), "weights in Megatron's own format")
    yield Flag(("--use-checkpoint-args",), "the architecture is the checkpoint's; the sizes above are not read from it")
    yield Flag(("--no-use-tokenizer-model-from-checkpoint-args",), "nor is the tokenizer")
    yield Flag(("--tokenizer-type", "HuggingFaceTokenizer"), "the model's own")
    yield Flag(("--tokenizer-model", plan.model.name), "the model's own")
    yield Flag(("--micro-batch-size", "1"), "its argument check wants one; serving has no micro-batches")
    if plan.half_precision:
        yield Flag(("--fp16",), "a GPU older than Ampere has no bfloat16")
    else:
        yield Flag(("--bf16",), "as the plan counts the weights")


def _memory_flags(plan: Plan) -> Iterator[Flag]:
    p, workload = plan.parallelism, plan.workload
    if plan.model.latent_attention:
        yield Flag(("--cache-mla-latents",), "dynamic batching keeps one latent per token")
        yield Flag(("--inference-dynamic-batching-block-size", str(LATENT_BLOCK)), "the only one for latents")
    else:
        yield Flag(("--inference-dynamic-batching",), "checks the sizes below")
    size = f"{buffer_gib(plan):.2f}"
    yield Flag(("--inference-dynamic-batching-buffer-size-gb", size), "what weights and activations leave, in GiB")
    chunk = plan.engine.max_batched_tokens
    yield Flag(("--inference-dynamic-batching-max-tokens", str(chunk)), f"a step has at most {chunk:,} tokens")
    yield Flag(("--enable-chunked-prefill",), f"longer prompts run in chunks of {chunk:,} tokens, as the plan counts")
    step = _ROUNDER * p.attention_tp
    most = -(-min(held_sequences(plan), plan.engine.max_sequences) // step) * step  # less would leave memory unused
    yield Flag(("--inference-dynamic-batching-max-requests", str(most)), held_reason(plan, most))
    longest = longest_sequence(plan) or (plan.model.max_context or workload.tokens, "as long as the model allows")
    yield Flag(("--inference-max-seq-length", str(longest[0])), f"{longest[1]}; by default 2,560 tokens")


def _ports(plan: Plan, place: int) -> Iterator[Flag]:
    if len(plan.replicas) > 1:
        yield Flag(("--port", str(FIRST_PORT + place)), "one port per server of a node")
        coordinator = str(FIRST_COORDINATOR_PORT + place)
        yield Flag(("--inference-coordinator-port", coordinator), "one coordinator per server of a node")


def _environment(plan: Plan) -> Iterator[Variable]:
    if plan.parallelism.attention_tp > 1:
        yield Variable("CUDA_DEVICE_MAX_CONNECTIONS", "1", "Megatron's kernels and copies must start in order under TP")
    yield from broken_p2p(plan)


def _notes(plan: Plan) -> Iterator[str]:
    yield "Set MEGATRON to a Megatron-LM checkout of core 0.16 and CHECKPOINT to the converted model (torch_dist)."
    yield from server_notes(plan)
    yield from sockets_note(plan)
