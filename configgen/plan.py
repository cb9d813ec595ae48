"""The decision's nouns: Workload, EngineTraits, Parallelism and Plan. Frozen, checked; the JSON keys are the fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from configgen.memory import StageMemory
from probe.topology import GpuRef, Origin, Provenance, require

PLAN_SCHEMA_VERSION = 1


class Objective(str, Enum):
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    BALANCED = "balanced"


@dataclass(frozen=True, slots=True)
class Workload:
    """What will be asked of the model. `assumed` names the fields that nobody told, so that the output can say so."""

    input_tokens: int = 1024
    output_tokens: int = 256
    concurrency: int = 16
    objective: Objective = Objective.BALANCED
    max_ttft_s: float | None = None
    max_tpot_s: float | None = None
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "concurrency"):
            require(getattr(self, name) >= 1, f"{name} is at least 1")
        for name in ("max_ttft_s", "max_tpot_s"):
            require((limit := getattr(self, name)) is None or limit > 0, f"{name} is positive")

    @property
    def tokens(self) -> int:
        """Tokens of one finished sequence."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the topology may be used: the first `nodes` nodes, at most `gpus` GPUs, in at most `replicas`."""

    gpus: int | None = None
    nodes: int | None = None
    replicas: int | None = None


NO_LIMITS = Limits()


class LayerSplit(str, Enum):
    """Which stages an engine gives the extra layers to, where layers don't divide by stages."""

    BEFORE_LAST = "before-last"
    LAST = "last"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """What planning must know of an engine, as data. Filled by engines/rules.py."""

    engine: str
    version: str
    memory_utilization: float
    """Fraction of a GPU's memory that the engine is given."""
    max_batched_tokens: int
    """Tokens of one forward pass: bounds the activations."""
    layer_split: LayerSplit
    max_sequences: int = 1024
    """Sequences of one forward pass: what a server is told to hold at most."""
    custom_all_reduce_sizes: frozenset[int] = frozenset()
    no_pipeline_architectures: frozenset[str] = frozenset()
    min_capability: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Compute capability that a quantisation method needs at least."""
    no_float16_model_types: frozenset[str] = frozenset()
    oldest_capability: tuple[int, int] | None = None
    """Compute capability that any model needs at least; None where the engine's builds decide."""
    mig: bool = True
    """Whether it can be given a MIG instance, which has a UUID and no index."""
    whole_stages: bool = False
    """Whether a node must hold whole stages, or a stage whole nodes, because ranks are counted so."""
    attention_dp: bool = True
    attention_dp_with_stages: bool = True
    """Whether the ranks of one stage may each run attention alone while there are more stages."""
    partial_attention_dp: bool = True
    """Whether attention may also run on parts of a stage, not only on the whole of it or on each GPU alone."""
    expert_parallel: bool = True
    """Whether whole experts may lie on different GPUs of a stage."""
    max_stages: int | None = None
    single_node: bool = False
    """Whether a replica must lie in one node."""
    takes_first_gpus: bool = False
    """Whether it takes a node's GPUs from index 0 on by itself, replica by replica, and no order can be given."""
    copies_kv_heads: bool = True
    """Whether TP beyond the KV heads keeps copies of them, instead of being refused."""
    no_kv_copies: frozenset[str] = frozenset()
    """Architectures whose KV heads are never copied, in an engine that copies those of others."""
    vocabulary_padding: int | None = None
    """What a vocabulary is padded to whole multiples of before TP cuts it; None where it is padded to fit any TP."""
    pair_without_nvlink: bool = True
    """Whether its own all-reduce runs between two GPUs that only PCIe joins."""
    model_types: frozenset[str] | None = None
    """What it can load, as `model_type` says it; None where no list is known here."""
    quantizations: frozenset[str] | None = None
    """Quantisation methods of checkpoints that it can load; None where no list is known here."""
    max_context: int | None = None
    """Tokens of the longest sequence that it serves whatever the memory."""
    prompts_first: bool = False
    """Whether waiting prompts run alone before decoding goes on (SGLang without --enable-mixed-chunk), not mixed in."""

    def __post_init__(self) -> None:
        require(0 < self.memory_utilization <= 1, "memory utilization is a fraction of 1")
        require(min(self.max_batched_tokens, self.max_sequences) > 0, "a forward pass has a token and a sequence")

    def split(self, layers: int, stages: int) -> tuple[int, ...]:
        """Layers per stage as the engine splits them by itself: 80 over 3 is 27,27,26 in vLLM."""
        base, extra = divmod(layers, stages)
        if self.layer_split is LayerSplit.FIRST:
            first = 0
        elif self.layer_split is LayerSplit.LAST or extra == stages:
            first = stages - extra
        else:
            first = max(0, stages - 1 - extra)
        return tuple(base + (first <= i < first + extra) for i in range(stages))


@dataclass(frozen=True, slots=True, order=True)
class Parallelism:
    """GPUs of one stage (tp), stages of a replica (pp), replicas (dp); inside a stage attention_dp and ep divide tp."""

    tp: int
    pp: int = 1
    dp: int = 1
    ep: int = 1
    attention_dp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "ep", "attention_dp"):
            require(getattr(self, name) >= 1, f"{name} >= 1")
        require(
            self.tp % self.attention_dp == 0, f"attention_dp divides tp: {self.attention_dp} does not divide {self.tp}"
        )
        require(self.tp % self.ep == 0, f"ep divides tp: {self.ep} does not divide {self.tp}")

    @property
    def attention_tp(self) -> int:
        return self.tp // self.attention_dp

    @property
    def gpus_per_replica(self) -> int:
        return self.tp * self.pp

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def label(self) -> str:
        """'TP2 PP2 DP2', factors of one left out; a single GPU is 'TP1'."""
        parts = [f"{name}{size}" for name, size in (("TP", self.tp), ("PP", self.pp), ("DP", self.dp)) if size > 1]
        parts += [f"{name}{size}" for name, size in (("EP", self.ep), ("attention-DP", self.attention_dp)) if size > 1]
        return " ".join(parts) or "TP1"


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of the model: stages in pipeline order, each its GPUs in rank order, and what holds for it alone."""

    stages: tuple[tuple[GpuRef, ...], ...]
    tp_path: str | None = None
    """Slowest path inside its stages ('NV18', 'SYS'); None where a stage is one GPU."""
    hops: tuple[str, ...] = ()
    """Slowest path from each stage to the next."""
    custom_all_reduce: bool = False
    memory_utilization: float = 1.0
    """Fraction of each GPU's memory for the engine: what the fullest of its GPUs has to give."""
    kv_cache_bytes: int | None = None
    """KV of each GPU, where its GPUs have different fractions to give and one fraction can't say it."""

    def __post_init__(self) -> None:
        labels = (*(() if self.tp_path is None else (self.tp_path,)), *self.hops)
        require(all(label.isprintable() for label in labels), "a path's label is one line")
        require(0 < self.memory_utilization <= 1, "a replica's memory utilization is a fraction of 1")
        require(self.kv_cache_bytes is None or self.kv_cache_bytes > 0, "a KV cache has a size or none is told")

    @property
    def gpus(self) -> tuple[GpuRef, ...]:
        return tuple(ref for stage in self.stages for ref in stage)

    @property
    def nodes(self) -> tuple[int, ...]:
        """Nodes in the order in which their GPUs stand."""
        return tuple(dict.fromkeys(ref.node for ref in self.gpus))


@dataclass(frozen=True, slots=True)
class Reason:
    """Why: `rule` is a stable name, `text` says it in the user's numbers, `provenance` what it rests on."""

    rule: str
    text: str
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the plan should give by the cost model; `uncertainty` is the relative half-width of the times."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    output_tokens_per_s_per_gpu: float | None = None
    uncertainty: float | None = None
    max_concurrency: int | None = None
    max_context: int | None = None

    def __post_init__(self) -> None:
        told = (self.ttft_s, self.tpot_s, self.output_tokens_per_s_per_gpu, self.max_concurrency, self.max_context)
        require(all(number is None or number > 0 for number in told), "a prediction is positive or none is made")
        require(self.uncertainty is None or self.uncertainty >= 0, "an uncertainty is never negative")


@dataclass(frozen=True, slots=True)
class Alternative:
    """What was not chosen: `law` forbids it, or `lost_by` names the rule by which it stands behind."""

    parallelism: Parallelism
    law: str | None = None
    lost_by: str | None = None
    margin: float | None = None
    """How much less the chosen plan's worth it gives: 0.2 for four fifths."""
    within_uncertainty: bool = False
    """Whether the margin is smaller than what the model may err by."""
    predictions: Predictions = Predictions()

    def __post_init__(self) -> None:
        require((self.law is None) != (self.lost_by is None), "an alternative is forbidden by a law or lost by a rule")


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan at a load: what each user gets, and what the whole machine gives."""

    concurrency: int
    parallelism: Parallelism
    output_tokens_per_s: float
    predictions: Predictions


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """What the plan keeps of the model."""

    name: str
    source: str
    layers: int
    parameters: int
    weight_bytes: int
    architecture: str | None = None
    is_moe: bool = False
    latent_attention: bool = False
    max_context: int | None = None

    def __post_init__(self) -> None:
        require(self.name != "", "a model has a name")
        require("\0" not in self.name, "a model's name has no NUL, which no program can be given")
        require(not self.name.startswith("-"), "a model's name starts with no dash, or engines would read it as a flag")
        require(self.max_context is None or self.max_context > 0, "a model's context is positive or not told")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a node's used GPUs sit, as a driver or a tool told it, in the order of `gpu_order`."""

    numa_nodes: tuple[int, ...] = ()
    """Of each GPU; empty where it is not known of all."""
    nics: tuple[str, ...] = ()
    """RDMA devices nearest to them, each once."""
    nearest: tuple[tuple[str, str], ...] = ()
    """PCI addresses of each GPU and of its nearest NIC; empty where they are not known of all."""
    interfaces: tuple[str, ...] = ()
    """Ethernet interfaces of the node that have a link and nothing built upon them, each once."""


@dataclass(frozen=True)
class Plan:
    """Which GPUs do what, in which order, and why."""

    model: PlannedModel
    workload: Workload
    engine: EngineTraits
    fingerprint: str
    parallelism: Parallelism
    replicas: tuple[Replica, ...]
    layers_per_stage: tuple[int, ...]
    gpu_order: tuple[tuple[int, ...], ...]
    """Per node of the topology: the indices used there, in rank order."""
    gpu_uuids: tuple[tuple[str | None, ...], ...]
    hostnames: tuple[str | None, ...]
    memory: tuple[StageMemory, ...]
    """Per stage, for one of its GPUs: the fullest one."""
    predictions: Predictions
    confidence: str
    reasons: tuple[Reason, ...]
    alternatives: tuple[Alternative, ...] = ()
    front: tuple[Choice, ...] = ()
    """What other loads and plans would give, the fastest for each user first; empty where nobody asked."""
    degraded: tuple[str, ...] = ()
    provenance: tuple[Origin, ...] = ()
    engine_split: bool = True
    """Whether the engine would cut the layers in just this way by itself."""
    mixed_gpus: bool = False
    """Whether a node mixes GPU models, so that CUDA's default order may differ from the driver's."""
    uses_mig: bool = False
    p2p: bool = True
    """False where a measurement found peer-to-peer transfers between GPUs of a stage broken."""
    sites: tuple[Site, ...] = ()
    """Per node of the topology; empty where nobody read them."""
    half_precision: bool = False
    """Whether a GPU that is used has no bfloat16 (compute capability below 8.0) while the model is in it."""
    gpu_models: tuple[tuple[str | None, ...], ...] = ()
    """Names of the GPUs in gpu_order, so that a launch notices another machine; empty in plans of earlier versions."""

    def __post_init__(self) -> None:
        p = self.parallelism
        used = [ref for replica in self.replicas for ref in replica.gpus]
        require(
            len(used) == p.gpus,
            f"tp * pp * dp == GPUs used: {p.tp} * {p.pp} * {p.dp} = {p.gpus}, but {len(used)} are placed",
        )
        require(len(set(used)) == len(used), "groups are disjoint: a GPU belongs to one stage of one replica")
        require(len(self.replicas) == p.dp, "one replica per dp")
        require(all(len(r.stages) == p.pp for r in self.replicas), "every replica has pp stages")
        require(all(len(s) == p.tp for r in self.replicas for s in r.stages), "every stage has tp GPUs")
        require(len(self.layers_per_stage) == p.pp and min(self.layers_per_stage) >= 1, "every stage has a layer")
        require(sum(self.layers_per_stage) == self.model.layers, "stages cover every layer once")
        require(len(self.gpu_order) == len(self.gpu_uuids) == len(self.hostnames), "one order, UUIDs and name per node")
        require(all(ref.node < len(self.hostnames) for ref in used), "every used GPU is on one of the plan's nodes")
        order: list[list[int]] = [[] for _ in self.hostnames]
        for ref in used:
            order[ref.node].append(ref.gpu)
        require([*map(list, self.gpu_order)] == order, "gpu_order names each used GPU once, in rank order")
        sizes = [*map(len, order)]
        require([*map(len, self.gpu_uuids)] == sizes, "one UUID per used GPU, or none where it is not known")
        require(not self.gpu_models or [*map(len, self.gpu_models)] == sizes, "one model per used GPU")
        require(not self.sites or len(self.sites) == len(sizes), "one site per node, or none at all")
        for site, size in zip(self.sites, sizes, strict=False):
            told = (len(site.numa_nodes), len(site.nearest))
            require(all(n in (0, size) for n in told), "a site tells of each used GPU of its node or of none")
        require(p.ep == 1 or self.model.is_moe, "only a model with experts spreads them")
        taken = max(replica.memory_utilization for replica in self.replicas)
        require(taken <= self.engine.memory_utilization, "a replica takes at most the engine's fraction")
        require(len(self.memory) == p.pp and all(m.fits for m in self.memory), "a plan never exceeds memory")
        require(min(m.usable_bytes for m in self.memory) > 0, "every stage has memory")
        require(self.confidence in ("high", "medium", "low"), "confidence is high, medium or low")
