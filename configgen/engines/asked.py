"""What a command asks for, in the plan's words: a parallelism, layers and GPUs, and what its engine would make of it.

A refusal is what the engine itself ends with, or waits for ever on; what it ignores, it ignores without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from configgen.engines.reading import Command
from configgen.model import ModelSpec
from configgen.plan import EngineTraits, Parallelism
from probe.errors import UsageError, one_line
from probe.units import count

_ENTRY = re.compile(r"[0-9]{1,4}|(?:GPU|MIG)-[A-Za-z0-9/_-]{1,80}")


@dataclass
class Asked:
    """`parallelism` is None where the command's own numbers contradict each other."""

    parallelism: Parallelism | None = None
    nodes: int = 1
    layers: tuple[int, ...] | None = None
    """Per stage, None for the engine's own cut."""
    devices: tuple[str, ...] | None = None
    """GPUs of each of its nodes in rank order, by index or UUID; None for as they come."""
    stages_outermost: bool = False
    """Whether ranks count all replicas of the first stage before the second stage."""
    refused: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def require(self, holds: bool, refusal: str) -> None:
        if not holds:
            self.refused.append(refusal)

    def cut(self, **sizes: int) -> None:
        """Its parallelism; the law that these sizes break is a refusal."""
        try:
            self.parallelism = Parallelism(**sizes)
        except ValueError as error:
            self.refused.append(str(error))


def asked(command: Command, model: ModelSpec, gpus_per_node: int) -> Asked:
    """What this command would start for this model. Raises UsageError for what can't be judged here at all."""
    told = Asked(refused=list(command.refused))
    if command.number("prefill context parallelism") > 1:
        raise UsageError("prefill context parallelism is not judged here", cure="Give a command without it.")
    _ENGINES[command.engine](command, model, told, gpus_per_node)
    layers = told.layers
    if layers is not None and told.parallelism is not None:
        pp = told.parallelism.pp
        told.require(len(layers) == pp, f"{count(len(layers), 'part')} of layers for {count(pp, 'stage')}")
        told.require(sum(layers) == model.layers, f"layers {_list(layers)} are {sum(layers)} of {model.layers}")
        told.require(min(layers) >= 1, "a stage has at least one layer")
    told.notes += (f"{told_by} is not counted in the prediction" for told_by in _uncounted(command, model))
    return told


def as_told(command: Command, model: ModelSpec) -> ModelSpec:
    """The model in the dtype that the command says: weights that are not quantised, cache and activations."""
    if command.said.get("dtype") not in ("float32", "float"):
        return model
    return replace(model, dtype="float32", dtype_bytes=4)


def lightened(command: Command, model: ModelSpec) -> tuple[str, ...]:
    """What it says that takes weights off the GPUs and is not counted: no law of memory is certain beside it."""
    return tuple(name for name in _uncounted(command, model) if name in _LIGHTER)


def cached_otherwise(command: Command, model: ModelSpec) -> tuple[str, ...]:
    """What it says that changes the room for the cache and is not counted: how much of it there is, is not certain."""
    return tuple(name for name in _uncounted(command, model) if name in (*_LIGHTER, *_OTHER_CACHE))


def burdened(command: Command, model: ModelSpec) -> tuple[str, ...]:
    """What it says that takes memory and is not counted: that it fits is not certain."""
    return tuple(name for name in _uncounted(command, model) if name in _HEAVIER)


def traits_of(command: Command, traits: EngineTraits, attention_dp: int) -> EngineTraits:
    """The engine as this command sets it: its memory, its steps, its own all-reduce."""
    share = command.fraction("memory fraction")
    tokens, most = _whole(command, "tokens"), _whole(command, "sequences")
    if command.engine == "sglang":  # both are of all attention ranks together
        tokens, most = tokens and max(1, tokens // attention_dp), most and max(1, most // attention_dp)
    off = command.has("custom all-reduce off") or command.said.get("all-reduce") == "NCCL"
    return replace(
        traits,
        memory_utilization=share or traits.memory_utilization,
        max_batched_tokens=tokens or traits.max_batched_tokens,
        max_sequences=most or traits.max_sequences,
        custom_all_reduce_sizes=frozenset() if off else traits.custom_all_reduce_sizes,
    )


def context_of(command: Command) -> int | None:
    """Tokens of the longest sequence that it is told to serve."""
    return _whole(command, "context")


def _whole(command: Command, meaning: str) -> int | None:
    """A number, where it is said and is none of the words for 'choose yourself'."""
    return None if command.said.get(meaning) in (None, "-1", "auto") else command.number(meaning)


def _vllm(c: Command, model: ModelSpec, told: Asked, gpus_per_node: int) -> None:
    """vllm/config/parallel.py, vllm/config/model.py and EngineArgs of 0.33.0: data parallelism copies dense models,
    and joins the ranks of a model with experts, which then share each MoE layer."""
    tp, pp, dp = c.number("tp"), c.number("pp"), c.number("dp")
    spread, executor = c.has("expert parallelism"), c.said.get("executor", "mp")
    if model.moe is None:
        told.require(not spread, f"vLLM refuses --enable-expert-parallel: {one_line(model.name, 60)} has no experts")
        outside = [name for name in ("dp rank", "external balancer") if c.has(name)]
        told.require(dp == 1 or not outside, "vLLM refuses --data-parallel-rank of a dense model: start N servers")
        told.cut(tp=tp, pp=pp, dp=dp)
    else:
        total = tp * dp
        told.cut(tp=total, pp=pp, ep=total if spread else 1, attention_dp=dp)
        if spread and total == 1:
            told.ignored.append("--enable-expert-parallel: there is one GPU in a stage")
    gpus = tp * pp * dp
    for refusal in (*_vllm_steps(c, model), *_vllm_context_parallel(c, model, tp)):
        told.refused.append(f"vLLM refuses {refusal}")
    told.nodes = c.number("nnodes")
    told.require(
        told.nodes == 1 or executor in ("mp", "uni", "external_launcher"), f"vLLM refuses --nnodes with {executor!r}"
    )
    local = c.number("dp local", dp)
    if told.nodes == 1 and local < dp:
        told.require(dp % local == 0, f"--data-parallel-size-local {local} does not divide {dp}")
        told.nodes = -(-dp // local)
    if executor == "ray":
        if c.has("devices"):
            told.ignored.append("--device-ids: it has no effect with Ray, which chooses the GPUs")
        told.notes.append("Ray chooses nodes and GPUs; judged as if it took them in order")
        told.nodes = max(told.nodes, -(-gpus // max(1, gpus_per_node)))
    told.devices = _vllm_devices(c, told) if executor != "ray" else None
    told.layers = c.numbers("layers")
    if told.layers is not None and pp == 1:
        told.ignored.append("VLLM_PP_LAYER_PARTITION: there is one stage")
        told.layers = None
    if tp == 1 and c.has("custom all-reduce off"):
        told.ignored.append("--disable-custom-all-reduce: there is no all-reduce inside one GPU")
    if told.nodes > 1 and c.number("nnodes") > 1 and not c.has("master address"):
        told.notes.append("--master-addr is missing: the nodes meet only where it is 127.0.0.1's")


def _vllm_steps(c: Command, model: ModelSpec) -> Iterator[str]:
    """SchedulerConfig of vllm/config/scheduler.py; tokens that nobody says are 8,192 at most."""
    tokens, most = _whole(c, "tokens"), _whole(c, "sequences")
    if most is not None and (tokens or _MOST_TOKENS) < most:
        yield f"--max-num-seqs {most}: a step has {tokens or _MOST_TOKENS:,} tokens, and each sequence needs one"
    longest = _whole(c, "context") or model.max_context
    if c.has("chunks off") and tokens is not None and longest is not None and tokens < longest:
        yield f"prompts in one piece: a sequence may have {longest:,} tokens, and a step {tokens:,}"


def _vllm_context_parallel(c: Command, model: ModelSpec, tp: int) -> Iterator[str]:
    """--decode-context-parallel-size by vllm/config/{parallel,model}.py."""
    dcp = c.number("decode context parallelism")
    if tp % dcp:
        yield f"decode context parallelism of {dcp}: TP is {tp}"
    elif dcp > 1 and model.mla is None:
        copies, shared = tp // model.kv_heads, model.attention_heads // model.kv_heads
        if dcp > copies:
            yield f"decode context parallelism of {dcp}: TP{tp} of {model.kv_heads} KV heads allows {max(1, copies)}"
        elif shared % dcp:
            yield f"decode context parallelism of {dcp}: {shared} heads share a KV head"


def _vllm_devices(c: Command, told: Asked) -> tuple[str, ...] | None:
    """--device-ids counts inside CUDA_VISIBLE_DEVICES where both are there (EngineArgs._resolve_device_ids)."""
    visible, named = _visible(c, told), c.names("devices")
    if named is None:
        return visible
    told.require(len(set(named)) == len(named), "vLLM refuses --device-ids that name a GPU twice")
    numbers = [name.isdecimal() for name in named]
    told.require(all(numbers) or not any(numbers), "vLLM refuses --device-ids that mix indices and UUIDs")
    told.require(all(map(_ENTRY.fullmatch, named)), f"--device-ids {one_line(','.join(named), 60)} names no GPUs")
    if visible is None or not all(numbers):
        return named
    beyond = [name for name in named if len(name) > 4 or int(name) >= len(visible)]
    told.require(not beyond, f"--device-ids {', '.join(beyond[:4])}: CUDA_VISIBLE_DEVICES has {len(visible)} entries")
    return None if beyond else tuple(visible[int(name)] for name in named)


def _visible(c: Command, told: Asked) -> tuple[str, ...] | None:
    """CUDA_VISIBLE_DEVICES as CUDA reads it: a repeated entry hides everything, a wrong one all after it."""
    entries = c.names("visible devices")
    if entries is None:
        return None
    if entries == ("",):
        told.refused.append("CUDA_VISIBLE_DEVICES is empty: CUDA then shows no GPU")
        return ()
    told.require(len(set(entries)) == len(entries), "CUDA_VISIBLE_DEVICES names a GPU twice: CUDA then shows none")
    wrong = next((i for i, entry in enumerate(entries) if not _ENTRY.fullmatch(entry)), None)
    if wrong is not None:
        told.ignored.append(f"CUDA_VISIBLE_DEVICES from {one_line(entries[wrong], 30)!r} on: it names no GPU")
        entries = entries[:wrong]
    return entries


def _sglang(c: Command, model: ModelSpec, told: Asked, gpus_per_node: int) -> None:
    """check_server_args of 0.5.23; what it leaves unchecked until it loads is checked by the planner's laws."""
    tp, pp, dp = c.number("tp"), c.number("pp"), c.number("dp")
    ep, attention_dp, expert_dp = c.number("ep"), c.number("attention dp"), c.number("expert dp")
    if c.has("attention dp by dp"):
        told.notes.append("--enable-dp-attention is deprecated: --attn-dp-size says the same")
        attention_dp, dp = max(attention_dp, dp), 1
    told.nodes = c.number("nnodes")
    told.require(tp * pp % told.nodes == 0, f"SGLang refuses TP x PP = {tp * pp} on {told.nodes} nodes: not divisible")
    told.require(dp == 1 or told.nodes == 1, "SGLang refuses --dp-size above 1 with several nodes")
    told.require(dp == 1 or attention_dp == 1, "SGLang refuses --dp-size beside --attn-dp-size")
    told.require(
        told.nodes == 1 or c.has("master address"),
        "--dist-init-addr is missing: SGLang starts, and its nodes wait for each other",
    )
    told.require(
        ep == 1 or expert_dp == 1 or ep * expert_dp == tp,
        f"SGLang refuses EP{ep} x MoE-DP{expert_dp}: with both it wants TP{tp}",
    )
    told.cut(tp=tp, pp=pp, dp=dp, ep=ep, attention_dp=attention_dp)
    visible, base, step = _visible(c, told), c.said.get("first GPU", "0"), c.number("GPU step")
    if visible is not None and not all(name.isdecimal() for name in visible) and not c.has("custom all-reduce off"):
        told.require(tp == 1, "SGLang's own all-reduce reads CUDA_VISIBLE_DEVICES as integers: UUIDs end it")
    first = 0 if base == "0" else c.number("first GPU")
    if first or step > 1:
        local = min(tp, max(1, tp * pp // told.nodes))
        places = [first + (rank // local) * local + rank % local * step for rank in range(min(dp * tp * pp, 4096))]
        if pp == 1:
            places = [first + rank * step for rank in range(min(dp * tp, 4096))]
        told.require(visible is None or max(places) < len(visible), "--base-gpu-id leaves CUDA_VISIBLE_DEVICES")
        within = visible is not None and max(places) < len(visible)
        visible = tuple(visible[p] if visible is not None and within else str(p) for p in places)
    told.devices = visible
    told.layers = c.numbers("layers")
    if told.layers is not None and pp == 1:
        told.ignored.append("SGLANG_PP_LAYER_PARTITION: there is one stage")
        told.layers = None
    if not c.has("NVLS") and tp > 2:
        told.notes.append("SGLang turns NCCL's NVLS off without --enable-nccl-nvls")


def _trtllm(c: Command, model: ModelSpec, told: Asked, gpus_per_node: int) -> None:
    """Mapping of tensorrt_llm/mapping.py: one MPI world of tp x pp ranks, node after node."""
    tp, pp, ep = c.number("tp"), c.number("pp"), c.number("ep")
    expert_tp = c.number("expert tp", max(1, tp // ep))
    if model.moe is not None:
        cluster = c.number("cluster")
        product = f"{expert_tp} x {ep}" + (f" x {cluster}" if cluster > 1 else "")
        told.require(expert_tp * ep * cluster == tp, f"TensorRT-LLM refuses expert TP x EP = {product}: TP is {tp}")
    told.cut(tp=tp, pp=pp, ep=ep, attention_dp=tp if c.said.get("attention dp by tp") is not None else 1)
    world = c.number("processes", tp * pp)
    told.require(world == tp * pp, f"{count(world, 'MPI process', 'MPI processes')} for TP x PP = {tp * pp}")
    each = c.number("GPUs per node", min(max(1, gpus_per_node), tp * pp))
    told.nodes = max(c.number("launcher nodes"), -(-tp * pp // each))
    told.devices, told.layers = _visible(c, told), c.numbers("layers")


def _deepspeed(c: Command, model: ModelSpec, told: Asked, gpus_per_node: int) -> None:
    told.cut(tp=c.number("tp"), dp=c.number("dp"))
    if c.has("visible devices"):
        told.ignored.append("CUDA_VISIBLE_DEVICES: DeepSpeed-MII takes GPUs from index 0 on")


def _megatron(c: Command, model: ModelSpec, told: Asked, gpus_per_node: int) -> None:
    """initialize_model_parallel of megatron/core/parallel_state.py: world = tp dp pp, ranks TP-fastest, stages last."""
    tp, pp, ep = c.number("tp"), c.number("pp"), c.number("ep")
    told.nodes = c.number("nnodes")
    world = told.nodes * c.number("per node", -(-tp * pp // told.nodes))
    told.require(world % (tp * pp) == 0, f"Megatron refuses {world} processes: TP x PP is {tp * pp}")
    dp = max(1, world // (tp * pp))
    if model.moe is not None and dp > 1:
        told.cut(tp=tp * dp, pp=pp, ep=ep, attention_dp=dp)
    else:
        told.require(ep == 1 or model.moe is not None, "Megatron refuses --expert-model-parallel-size without experts")
        told.cut(tp=tp, pp=pp, dp=dp, ep=ep)
        told.stages_outermost = dp > 1
    told.devices, layout = _visible(c, told), c.said.get("layout")
    if layout is not None:
        told.layers = _layout(layout)
    elif pp > 1:
        told.layers = _ends(c, model, pp, told)


def _layout(text: str) -> tuple[int, ...]:
    """'Et*27|t*26|t*27L' -> 27,26,27. Raises UsageError where a stage is written otherwise."""
    stages = []
    for part in text.strip().removeprefix("E").removesuffix("L").split("|")[:4096]:
        match = re.fullmatch(r"t\*([0-9]{1,6})|(t{1,4096})", part)
        if match is None:
            raise UsageError(
                f"--pipeline-model-parallel-layout {one_line(text, 60)} is not read", cure="Write it like Et*27|t*26L."
            )
        stages.append(int(match.group(1)) if match.group(1) else len(match.group(2)))
    return tuple(stages)


def _ends(c: Command, model: ModelSpec, pp: int, told: Asked) -> tuple[int, ...] | None:
    """--decoder-first- and -last-pipeline-num-layers, the rest in equal parts; without them all parts are equal."""
    first = c.number("first stage") if c.has("first stage") else None
    last = c.number("last stage") if c.has("last stage") else None
    middle = pp - (first is not None) - (last is not None)
    left = model.layers - (first or 0) - (last or 0)
    divides = middle > 0 and left > 0 and left % middle == 0
    told.require(divides, f"Megatron refuses {left} layers on {count(middle, 'stage')}: it cuts evenly")
    if not divides:
        return None
    parts = (first, *[left // middle] * middle, last)
    return tuple(part for part in parts if part is not None)


_ENGINES: dict[str, Callable[[Command, ModelSpec, Asked, int], None]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "trtllm": _trtllm,
    "deepspeed": _deepspeed,
    "megatron": _megatron,
}

_MOST_TOKENS = 8192
"""--max-num-batched-tokens of a vLLM server by default, on the GPUs that have the most (get_batch_defaults)."""

_LIGHTER = ("quantization at load", "CPU offload")
_OTHER_CACHE = ("KV dtype", "KV bytes", "static fraction", "KV fraction")
_HEAVIER = ("speculation", "LoRA")
_UNCOUNTED = (*_OTHER_CACHE, "CPU offload", *_HEAVIER, "eager")

_NCCL_UNCOUNTED = (
    *("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE", "NCCL_NET_GDR_LEVEL", "NCCL_ALGO"),
    *("NCCL_PROTO", "NCCL_NVLS_ENABLE", "NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS"),
)
"""Variables that take another path, or another algorithm, than NCCL would by itself."""


def _uncounted(c: Command, model: ModelSpec) -> list[str]:
    found = [name for name in _UNCOUNTED if c.has(name) and c.said[name] not in ("auto", "0")]
    found += [one_line(f"{name}={c.environment[name]}", 60) for name in _NCCL_UNCOUNTED if c.environment.get(name)]
    found += ["quantization at load"] if c.has("quantization") and model.quantization is None else []
    found += ["arithmetic in float32"] if as_told(c, model) is not model else []
    return found + (["decode context parallelism"] if c.number("decode context parallelism") > 1 else [])


def _list(numbers: tuple[int, ...]) -> str:
    return one_line(",".join(map(str, numbers)), 60)
