"""Why this plan: the rules that decided, in the user's numbers, each with the provenance of what it rests on."""

from __future__ import annotations

from collections.abc import Iterator

from configgen.judge import USEFUL_BATCH, Candidate
from configgen.model import ModelSpec
from configgen.plan import EngineTraits, Objective, Parallelism, Reason, Workload
from configgen.search import Field
from probe.topology import Path, PathKind, Provenance, Topology
from probe.units import count, gigabytes, parameters


def provenance_of(topology: Topology, fact: str) -> Provenance:
    """The weakest provenance among the origins of a fact, or else of what it is part of; assumed where none told it."""
    order = (Provenance.MEASURED, Provenance.READ, Provenance.CATALOG, Provenance.ASSUMED)
    exact = [o.provenance for o in topology.provenance if o.fact == fact]
    whole = [o.provenance for o in topology.provenance if fact.startswith(f"{o.fact}.")]
    return max(exact or whole, key=order.index, default=Provenance.ASSUMED)


def reasons(
    topology: Topology, model: ModelSpec, workload: Workload, traits: EngineTraits, field: Field, chosen: Candidate
) -> Iterator[Reason]:
    """The reasons in the order in which a person asks: does it fit, why this cut, why these GPUs, what is unsure."""
    paths = provenance_of(topology, "paths")
    p = chosen.parallelism
    yield _fits(topology, model, workload, chosen)
    if p.tp > 1:
        yield from _tensor_parallel(chosen, field, workload, paths)
    if p.pp > 1:
        yield _pipeline(chosen, field, workload, paths)
    if p.dp > 1:
        yield Reason("replicas", _replicas(workload, p), Provenance.ASSUMED)
    if model.moe is not None and p.tp > 1:
        yield _experts(model, p)
    latency = workload.objective is Objective.LATENCY
    if not field.has_fast_island and topology.gpu_count > 1 and (p.gpus_per_replica > 1 or latency):
        yield Reason(
            "pcie-only",
            f"no two GPUs are joined by a fast fabric{_hidden(topology)}: only a measurement can settle TP against PP "
            "here; until then the smallest replica that fits is the cautious choice",
            paths,
        )
    if p.attention_tp > 1 and not custom_all_reduce(p, chosen.tp_path, traits):
        yield Reason(
            "custom-all-reduce",
            f"{traits.engine}'s own all-reduce needs 2, 4, 6 or 8 GPUs and, beyond 2, NVLink between all: it is off",
            paths,
        )


def custom_all_reduce(p: Parallelism, inside: Path | None, traits: EngineTraits) -> bool:
    """The engines' own predicate: a supported size and, beyond two GPUs, NVLink between all of them."""
    fast = inside is None or inside.is_fast
    return p.attention_tp in traits.custom_all_reduce_sizes and (fast or p.attention_tp == 2)


def lost_by(loser: Candidate, chosen: Candidate, workload: Workload, has_fast_island: bool) -> str:
    """The first rule by which the loser stands behind the chosen one."""
    a, b = loser.parallelism, chosen.parallelism
    if loser.max_concurrency < min(workload.concurrency, chosen.max_concurrency):
        return f"holds {loser.max_concurrency} of {workload.concurrency} concurrent sequences"
    saturated = "concurrency" in workload.assumed and workload.objective is not Objective.LATENCY
    if saturated and has_fast_island and loser.batch < min(USEFUL_BATCH, chosen.batch):
        return f"KV room for {count(loser.batch, 'sequence')} per replica: each step would read all weights for few"
    if not loser.tp_is_fast and chosen.tp_is_fast:
        return f"its all-reduce would cross {_label(loser)}, outside every fast island"
    if workload.objective is Objective.LATENCY and a.pp != b.pp:
        return "more stages in a row"
    if workload.objective is Objective.LATENCY:
        if a.tp > b.tp:
            return "more GPUs in each all-reduce than pay for it"
        return "fewer GPUs share each token's work" if a.tp < b.tp else "prefers another cut inside the stage"
    if a.attention_dp < b.attention_dp and (a.tp, a.pp, a.dp) == (b.tp, b.pp, b.dp):
        return "copies MLA's KV to every rank of a stage"
    if (a.tp, a.pp, a.dp) == (b.tp, b.pp, b.dp):
        return f"{'EP' if a.ep > b.ep else 'TP'} inside the stage: published ratios favour the other for this model"
    if a.dp < b.dp:
        return f"{count(a.dp, 'replica')} instead of {b.dp:,}"
    if b.gpus_per_replica == 1 and not has_fast_island:
        return "a model that fits one GPU is not cut across PCIe"
    if a.gpus >= b.gpus and loser.memory_bytes < chosen.memory_bytes:
        return "its smallest GPU would bound all the others"
    if a.gpus < b.gpus:
        return f"leaves {count(b.gpus - a.gpus, 'more GPU')} idle"
    if not has_fast_island and a.tp > b.tp:
        return "two all-reduces per layer and token would cross PCIe; a stage boundary passes one activation"
    return "more stages in a row" if a.pp > b.pp else "prefers this cut inside the stage"


def _label(candidate: Candidate) -> str:
    return candidate.tp_path.label if candidate.tp_path else "nothing"


def _fits(topology: Topology, model: ModelSpec, workload: Workload, chosen: Candidate) -> Reason:
    memory = max(chosen.memory, key=lambda m: m.needed_bytes / m.usable_bytes)
    p = chosen.parallelism
    text = (
        f"{parameters(model.parameters)} parameters are {gigabytes(model.weight_bytes)} of weights; "
        f"{'one GPU holds' if p.gpus_per_replica == 1 else f'{p.gpus_per_replica} GPUs hold'} them with KV for "
        f"{count(chosen.max_concurrency // p.dp, 'sequence')} of {workload.tokens:,} tokens per replica "
        f"({gigabytes(memory.needed_bytes)} of {gigabytes(memory.usable_bytes)} usable on the fullest GPU)"
    )
    return Reason("fits", text, provenance_of(topology, "gpus.memory_bytes"))


def _tensor_parallel(c: Candidate, field: Field, workload: Workload, paths: Provenance) -> Iterator[Reason]:
    p = c.parallelism
    if c.tp_is_fast:
        edge = (
            "up to the island's edge, for latency" if workload.objective is Objective.LATENCY else "inside one island"
        )
        yield Reason("tp-in-island", f"TP{p.tp} stays {edge}: its slowest path is {_label(c)}", paths)
    elif c.tp_path is not None and c.tp_path.kind is PathKind.UNKNOWN:
        yield Reason("tp-unknown-path", f"TP{p.tp} lies on paths that the input does not tell", paths)
    else:
        yield Reason("tp-on-pcie", f"TP{p.tp} lies on the best PCIe level that holds it: {_label(c)}", paths)


def _pipeline(c: Candidate, field: Field, workload: Workload, paths: Provenance) -> Reason:
    p = c.parallelism
    across = c.pp_path.label if c.pp_path else "nothing"
    why = _why_stages(field)
    sequences = -(-workload.concurrency // p.dp)
    bubble = (p.pp - 1) / (p.pp - 1 + sequences)
    text = (
        f"PP{p.pp} across {across}, since {why}: one activation per token and boundary; "
        f"the bubble (p-1)/(p-1+m) is {bubble:.0%} with a replica's {count(sequences, 'sequence')} as micro-batches"
    )
    return Reason("pp-across", text, paths)


def _why_stages(field: Field) -> str:
    if not field.has_fast_island:
        return "two all-reduces per layer cost more than one hand-over"
    held = any(c.parallelism.pp == 1 and c.tp_is_fast for c in field.candidates)
    return "these GPUs hold more KV than TP in one island" if held else "no island holds the model"


def _replicas(workload: Workload, p: Parallelism) -> str:
    each = -(-workload.concurrency // p.dp)
    return f"DP{p.dp}: replicas share nothing, so they scale; each serves {each} of {workload.concurrency} sequences"


def _experts(model: ModelSpec, p: Parallelism) -> Reason:
    experts = model.moe.experts if model.moe else 0
    if p.attention_dp > 1:
        text = (
            f"MLA's KV would be copied to every TP rank: attention-DP{p.attention_dp} keeps it once, "
            f"EP{p.ep} spreads the {experts} experts"
        )
    elif p.ep > 1 and model.mla is not None:
        text = f"EP{p.ep} spreads {experts} experts: published EP / TP ratios are 1.02-1.78 for MLA models"
    elif p.ep > 1:
        text = f"EP{p.ep} keeps {experts} experts whole, where TP would cut their blocks"
    else:
        text = f"TP, not EP, for {experts} experts: published EP / TP ratios are 0.56-1.04 without MLA or at low load"
    return Reason("experts", text, Provenance.CATALOG)


def _hidden(topology: Topology) -> str:
    seen = all(node.shape.nvlink_visible for node in topology.nodes)
    return "" if seen else " as far as this input can show: it hides NVLink"
