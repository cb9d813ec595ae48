"""Why this plan: what decided, in the user's numbers, each with the provenance of what it rests on."""

from __future__ import annotations

from collections.abc import Iterator

from configgen.cost import Part
from configgen.forecast import TIE, Forecast, doubt, largest_doubt, margin
from configgen.judge import Candidate
from configgen.model import ModelSpec
from configgen.plan import EngineTraits, Objective, Parallelism, Reason, Workload
from configgen.search import Field
from configgen.whatif import changes
from probe.measurement import Survey
from probe.topology import GpuRef, Path, PathKind, Provenance, Topology
from probe.units import count, figure, gigabytes, message_size, parameters, seconds

SPENT_ON = {
    "weights": "reading weights",
    "gemm": "multiplying",
    "kv": "reading KV",
    "elementwise": "norms and activations",
    "launch": "starting kernels",
    "all-reduce": "all-reduce",
    "attention-DP exchange": "exchanges between experts",
    "hand-off": "hand-offs between stages",
    "host": "the engine's host code",
    "turns": "waiting for other micro-batches",
    "prompts": "prompts of other requests",
    "bubble": "pipeline bubbles",
}
WIRES = ("all-reduce", "attention-DP exchange", "hand-off")


def provenance_of(topology: Topology, fact: str) -> Provenance:
    """The weakest provenance among the origins of a fact, or else of what it is part of; assumed where none told it."""
    exact = [o.provenance for o in topology.provenance if o.fact == fact]
    whole = [o.provenance for o in topology.provenance if fact.startswith(f"{o.fact}.")]
    return _weakest(exact or whole)


def _weakest(provenances: list[Provenance]) -> Provenance:
    order = (Provenance.MEASURED, Provenance.READ, Provenance.CATALOG, Provenance.ASSUMED)
    return max(provenances, key=order.index, default=Provenance.ASSUMED)


def reasons(
    survey: Survey, model: ModelSpec, workload: Workload, traits: EngineTraits, field: Field
) -> Iterator[Reason]:
    """The reasons in the order in which a person asks: does it fit, how fast, why this cut, what is unsure."""
    topology, best = survey.topology, field.forecasts[0]
    chosen = best.candidate
    paths = provenance_of(topology, "paths")
    p = chosen.parallelism
    yield _fits(topology, model, workload, chosen)
    yield _speed(best, workload)
    if p.tp > 1:
        yield from _tensor_parallel(chosen, paths)
    if p.pp > 1:
        yield _pipeline(field, paths)
    if p.dp > 1:
        yield Reason("replicas", _replicas(workload, p), Provenance.ASSUMED)
    if model.moe is not None and p.tp > 1:
        yield _experts(model, p)
    yield from _unsure(field)
    yield from changes(field, model, workload, traits)
    if _only_measuring_settles(field, topology, workload):
        yield Reason(
            "pcie-only",
            f"no two GPUs are joined by a fast fabric{_hidden(topology)}: public figures of PCIe differ up to 14-fold "
            "between hosts, so only `wirelore measure` can settle TP against PP here",
            paths,
        )
    if p.attention_tp > 1 and broken_p2p(
        survey, {ref for kind, _ in chosen.runs for d in kind.domains for ref in d.gpus}
    ):
        yield Reason(
            "p2p-broken",
            "P2P that the driver promises returned other bytes: NCCL_P2P_DISABLE=1 and no custom all-reduce, until ACS "
            "is switched off on the PCIe switches, or the IOMMU in the host's firmware",
            Provenance.MEASURED,
        )
    elif p.attention_tp > 1 and not custom_all_reduce(p, chosen.tp_path, traits):
        *smaller, largest = sorted(traits.custom_all_reduce_sizes) or [1]
        sizes = f"{', '.join(map(str, smaller))} or {largest}" if smaller else str(largest)
        yield Reason(
            "custom-all-reduce",
            f"{traits.engine}'s own all-reduce needs {sizes} GPUs and, beyond 2, NVLink between all: it is off",
            paths,
        )


def broken_p2p(survey: Survey, gpus: set[GpuRef]) -> bool:
    """Whether a write to another of these GPUs was read back as other bytes."""
    return any(not v.passed and v.source in gpus and v.target in gpus for v in survey.verifications)


def is_measured(f: Forecast) -> bool:
    """Whether all its messages were timed here."""
    return all(part.provenance is Provenance.MEASURED for part in f.estimate.parts if part.name in WIRES)


def custom_all_reduce(p: Parallelism, inside: Path | None, traits: EngineTraits) -> bool:
    """The engines' own predicate: a supported size and, beyond two GPUs, NVLink between all of them."""
    fast = inside is None or inside.is_fast
    pair = p.attention_tp == 2 and traits.pair_without_nvlink
    return p.attention_tp in traits.custom_all_reduce_sizes and (fast or pair)


def lost_by(loser: Forecast, best: Forecast, workload: Workload) -> str:
    """How far the loser stands behind, and on what it spends more than the chosen one."""
    behind = margin(loser, best)
    a, b = loser.candidate.parallelism, best.candidate.parallelism
    if behind <= 0:
        simpler = "stages" if a.pp > b.pp else "GPUs in each group" if a.tp > b.tp else "to go wrong inside a stage"
        return f"{-behind:.0%} ahead, within what measurements repeat to, and has more {simpler}"
    if loser.candidate.max_concurrency < min(workload.concurrency, best.candidate.max_concurrency):
        short = f"; it holds {loser.candidate.max_concurrency} of {workload.concurrency} sequences"
    else:
        short = ""
    theirs, ours = loser.seconds, best.seconds
    most = max(theirs, key=lambda name: theirs[name][0] - ours.get(name, (0.0, 0.0))[0])
    part = next(p for p in loser.estimate.parts if p.phase == "decode" and p.name == most)
    idle = b.gpus - a.gpus
    spare = f"; it leaves {count(idle, 'more GPU')} idle" if idle > 0 else ""
    return f"{behind:.0%} behind: {spent(loser, part)}{short}{spare}"


def spent(f: Forecast, part: Part) -> str:
    """'63 % of each token's time in all-reduce (measured all_reduce: 2.1 GB/s at 512 KiB)'."""
    share = part.seconds / f.estimate.tpot_s
    inside = ""
    if part.name == "prompts":
        prefill = [p for p in f.estimate.parts if p.phase == "prefill"]
        most = max(prefill, key=lambda p: p.seconds)
        inside = f", {f.estimate.share(most.name, 'prefill'):.0%} of them in {SPENT_ON.get(most.name, most.name)}"
        part = most if most.size_bytes else part
    carried = f": {part.busbw_gbps:.3g} GB/s at {message_size(round(part.size_bytes))}" if part.size_bytes else ""
    told = f" ({part.source}{carried})" if part.size_bytes else ""
    name = "prompts of other requests" + inside if inside else SPENT_ON.get(part.name, part.name)
    return f"{share:.0%} of each token's {seconds(f.estimate.tpot_s)} in {name}{told}"


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


def _speed(f: Forecast, workload: Workload) -> Reason:
    decode = sorted((p for p in f.estimate.parts if p.phase == "decode"), key=lambda p: -p.seconds)
    most = [p for p in decode if p.seconds >= 0.1 * f.estimate.tpot_s][:3] or decode[:1]
    shares = ", ".join(f"{p.seconds / f.estimate.tpot_s:.0%} {SPENT_ON.get(p.name, p.name)}" for p in most)
    wires = [p for p in decode if p.name in WIRES and p in most]
    carried = "".join(
        f"; {p.name} at {p.busbw_gbps:.3g} GB/s for {message_size(round(p.size_bytes))}, {p.source}" for p in wires[:1]
    )
    queue = " with its wait for memory" if f.candidate.max_concurrency < workload.concurrency else ""
    each = f.output_tokens_per_s / f.candidate.parallelism.gpus
    text = (
        f"a token takes {seconds(f.estimate.tpot_s)}, the first {seconds(f.estimate.ttft_s)}{queue}, and each GPU "
        f"gives {figure(each)} tokens/s, each give or take {f.estimate.uncertainty:.0%}: {shares}{carried}"
    )
    return Reason("speed", text, _weakest([p.provenance for p in most]))


def _tensor_parallel(c: Candidate, paths: Provenance) -> Iterator[Reason]:
    p = c.parallelism
    if c.tp_is_fast:
        yield Reason("tp-in-island", f"TP{p.tp} stays inside one island: its slowest path is {_label(c)}", paths)
    elif c.tp_path is not None and c.tp_path.kind is PathKind.UNKNOWN:
        yield Reason("tp-unknown-path", f"TP{p.tp} lies on paths that the input does not tell", paths)
    else:
        yield Reason("tp-on-pcie", f"TP{p.tp} lies on the best PCIe level that holds it: {_label(c)}", paths)


def _pipeline(field: Field, paths: Provenance) -> Reason:
    best = field.forecasts[0]
    c = best.candidate
    across = c.pp_path.label if c.pp_path else "nothing"
    flat = next((f for f in field.forecasts if f.candidate.parallelism.pp == 1), None)
    if flat is None:
        why = (
            "since no group without stages holds the model"
            if not field.has_fast_island
            else "since no island holds the model"
        )
    else:
        more = " for these GPUs hold more KV" if flat.candidate.max_concurrency < c.max_concurrency else ""
        label = flat.candidate.parallelism.label
        why = f"since {label}, the best without stages, is {margin(flat, best):.0%} behind{more}"
    idle = best.estimate.share("bubble")
    text = (
        f"PP{c.parallelism.pp} across {across}, {why}: one activation per token and boundary; "
        f"bubbles take {idle:.0%} of a token's time"
    )
    return Reason("pp-across", text, paths)


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
    elif p.ep > 1:
        text = f"EP{p.ep} keeps {experts} experts whole, where TP would cut their blocks"
    else:
        text = f"TP, not EP, for {experts} experts: no rank waits for the one whose experts most tokens chose"
    return Reason("experts", text, Provenance.CATALOG)


def _unsure(field: Field) -> Iterator[Reason]:
    """The runner-up, how far it is behind, and what would settle it where the model can't."""
    if len(field.forecasts) < 2:
        return
    best, second = field.forecasts[:2]
    behind, err = abs(margin(second, best)), doubt(second, best)
    label = second.candidate.parallelism.label
    name, provenance = largest_doubt(second, best)
    if behind > err:
        yield Reason(
            "runner-up", f"{label} is {behind:.0%} behind, and the model tells them apart to {err:.0%}", provenance
        )
        return
    if provenance is not Provenance.MEASURED and name in WIRES:
        settle = f"`wirelore measure` would settle it: {SPENT_ON[name]} on these wires"
    elif provenance is not Provenance.MEASURED and name in ("weights", "gemm", "kv", "elementwise", "prompts"):
        settle = "`wirelore measure` would settle it: the GPUs' memory and matrix rates"
    else:
        settle = f"only serving both can settle it, for they differ in {SPENT_ON.get(name, name)}"
    side = "behind" if margin(second, best) >= 0 else "ahead"
    simpler = f"; of two within {TIE:.0%} the simpler is taken" if behind <= TIE else ""
    yield Reason(
        "uncertain",
        f"{label} is {behind:.0%} {side}, within the uncertainty of {err:.0%}{simpler}: {settle}",
        provenance,
    )


def _only_measuring_settles(field: Field, topology: Topology, workload: Workload) -> bool:
    best = field.forecasts[0]
    if field.has_fast_island or topology.gpu_count == 1 or (is_measured(best) and best.candidate.parallelism.tp > 1):
        return False
    return best.candidate.parallelism.gpus_per_replica > 1 or workload.objective is Objective.LATENCY


def _hidden(topology: Topology) -> str:
    seen = all(node.shape.nvlink_visible for node in topology.nodes)
    return "" if seen else " as far as this input can show: it hides NVLink"
