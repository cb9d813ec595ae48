"""Why this plan: what decided, in the user's numbers, each with the provenance of what it rests on."""

from __future__ import annotations

from collections.abc import Iterator

from configgen.cost import Part
from configgen.forecast import KERNELS_APART, TIE, Forecast, doubt, largest_doubt, margin
from configgen.judge import Candidate
from configgen.model import ModelSpec
from configgen.plan import NO_LIMITS, EngineTraits, Limits, Objective, Parallelism, Reason, Workload
from configgen.search import Field
from configgen.whatif import changes
from probe.measurement import Survey
from probe.topology import GpuRef, Path, PathKind, Provenance, Topology
from probe.units import count, figure, gigabytes, message_size, parameters, seconds, spread

SPENT_ON = {
    "weights": "reading weights",
    "gemm": "multiplying",
    "kv": "reading KV",
    "attention": "attention",
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
COMPUTED = ("weights", "gemm", "kv", "attention", "elementwise", "prompts")
NAMED_SHARE = 0.1
"""What takes less of a token's time than this explains nothing."""


def provenance_of(topology: Topology, fact: str) -> Provenance:
    """The weakest provenance among the origins of a fact, or else of what it is part of; assumed where none told it."""
    exact = [o.provenance for o in topology.provenance if o.fact == fact]
    whole = [o.provenance for o in topology.provenance if fact.startswith(f"{o.fact}.")]
    return _weakest(exact or whole)


def _weakest(provenances: list[Provenance]) -> Provenance:
    order = (Provenance.MEASURED, Provenance.READ, Provenance.CATALOG, Provenance.ASSUMED)
    return max(provenances, key=order.index, default=Provenance.ASSUMED)


def reasons(
    survey: Survey,
    model: ModelSpec,
    workload: Workload,
    traits: EngineTraits,
    field: Field,
    limits: Limits = NO_LIMITS,
    *,
    what_if: bool = True,
) -> Iterator[Reason]:
    """The reasons in the order in which a person asks: does it fit, how fast, why this cut, what is unsure.

    `what_if` adds what would change the plan, which takes as long as the search.
    """
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
        yield Reason("replicas", _replicas(workload, chosen), Provenance.ASSUMED)
    if model.moe is not None and p.tp > 1:
        yield _experts(model, field)
    yield from _unsure(survey, field)
    if what_if:
        yield from changes(field, model, workload, traits, limits)
    if _only_measuring_settles(survey, field, workload):
        yield Reason(
            "pcie-only",
            f"no two GPUs are joined by a fast fabric{_hidden(topology)}: public figures of PCIe differ up to 14-fold "
            "between hosts, so TP against PP is a guess here until `wirelore measure` has timed them",
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
            f"{traits.engine}'s own all-reduce needs {sizes} GPUs of one node and, beyond 2, NVLink: it is off",
            paths,
        )


def broken_p2p(survey: Survey, gpus: set[GpuRef]) -> bool:
    """Whether a write to another of these GPUs was read back as other bytes."""
    return any(not v.passed and v.source in gpus and v.target in gpus for v in survey.verifications)


def is_measured(survey: Survey, f: Forecast) -> bool:
    """Whether wires like the slowest that its messages take were timed; an engine's own kernel goes over them too."""
    timed = {label for curve in survey.curves for label, _ in curve.key.group.paths}
    return {path.label for path in (f.candidate.tp_path, f.candidate.pp_path) if path} <= timed


def custom_all_reduce(p: Parallelism, inside: Path | None, traits: EngineTraits) -> bool:
    """The engines' own predicate: a supported size, one node and, beyond two GPUs, NVLink between all of them."""
    fast = inside is None or inside.is_fast
    one_node = inside is None or inside.kind is not PathKind.NET
    pair = p.attention_tp == 2 and traits.pair_without_nvlink and one_node
    return p.attention_tp in traits.custom_all_reduce_sizes and (fast or pair)


def stands(behind: float) -> str:
    """A margin in words."""
    if abs(behind) < 0.005:
        return "level"
    return f"{abs(behind):.0%} {'behind' if behind > 0 else 'ahead'}"


def lost_by(loser: Forecast, best: Forecast, workload: Workload) -> str:
    """How far the loser stands behind by what the objective compares, and on what it spends more than the chosen."""
    behind = margin(loser, best)
    a, b = loser.candidate.parallelism, best.candidate.parallelism
    if behind <= 0:
        return f"{stands(behind)}, within what measurements repeat to, {_less_simple(a, b)}"
    gives = 1 - loser.output_tokens_per_s / best.output_tokens_per_s
    slower = workload.objective is Objective.BALANCED and abs(behind - gives) > TIE
    told = [f"{stands(behind)}: {_gives(loser, best, workload, slower)}"]
    theirs, ours = loser.seconds, best.seconds
    most = max(theirs, key=lambda name: theirs[name][0] - ours.get(name, (0.0, 0.0))[0])
    part = next(p for p in loser.estimate.parts if p.phase == "decode" and p.name == most)
    if part.seconds >= NAMED_SHARE * loser.estimate.tpot_s:
        told.append(spent(loser, part, "each" if slower else None))
    if loser.candidate.max_concurrency < min(workload.concurrency, best.candidate.max_concurrency):
        told.append(f"it holds {loser.candidate.max_concurrency} of {workload.concurrency} sequences")
    if b.gpus > a.gpus:
        told.append(f"it leaves {count(b.gpus - a.gpus, 'more GPU')} idle")
    return "; ".join(told)


def _gives(loser: Forecast, best: Forecast, workload: Workload, slower: bool) -> str:
    """What the objective compares, of both."""
    if workload.objective is Objective.LATENCY:
        one, two = (seconds(f.worth_s) for f in (loser, best))
        return f"{one} a token with its share of the first, not {two}"
    text = f"{figure(loser.output_tokens_per_s)} tokens/s in all, not {figure(best.output_tokens_per_s)}"
    one, two = (seconds(f.estimate.tpot_s) for f in (loser, best))
    return f"{text}, and {one} a token, not {two}" if slower else text


def _less_simple(a: Parallelism, b: Parallelism) -> str:
    """In what a is less simple than b, by the order in which ranked() asks."""
    if a.pp > b.pp:
        return "and has more stages"
    if a.pp == b.pp and a.tp > b.tp:
        return "and has larger groups"
    if (a.pp, a.tp) == (b.pp, b.tp) and (a.attention_dp, a.ep) > (b.attention_dp, b.ep):
        return "and its ranks wait for each other's experts"
    return "and comes second by the rules for ties"


def spent(f: Forecast, part: Part, whole: str | None = None) -> str:
    """'63 % of each token's time in all-reduce (measured all_reduce: 2.1 GB/s at 512 KiB)', or of `whole`."""
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
    whole = whole or f"each token's {seconds(f.estimate.tpot_s)}"
    return f"{share:.0%} of {whole} in {name}{told}"


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
        f"gives {figure(each)} tokens/s, each give or take {spread(f.estimate.uncertainty)}: {shares}{carried}"
    )
    return Reason("speed", text, _weakest([p.provenance for p in most]))


def _tensor_parallel(c: Candidate, paths: Provenance) -> Iterator[Reason]:
    p = c.parallelism
    if c.tp_is_fast:
        yield Reason("tp-in-island", f"TP{p.tp} stays inside one island: its slowest path is {_label(c)}", paths)
    elif c.tp_path is not None and c.tp_path.kind is PathKind.UNKNOWN:
        yield Reason("tp-unknown-path", f"TP{p.tp} lies on paths that the input does not tell", paths)
    elif c.tp_path is not None and c.tp_path.kind is PathKind.NET:
        yield Reason("tp-across-nodes", f"TP{p.tp} takes whole nodes and crosses the network between them", paths)
    else:
        yield Reason("tp-on-pcie", f"TP{p.tp} lies on the best PCIe level that holds it: {_label(c)}", paths)


def _pipeline(field: Field, paths: Provenance) -> Reason:
    best = field.forecasts[0]
    c = best.candidate
    across = c.pp_path.label if c.pp_path else "nothing"
    flat = next((f for f in field.forecasts if f.candidate.parallelism.pp == 1), None)
    if flat is None:
        why = _why_not_flat(field)
    else:
        short = flat.candidate.max_concurrency < min(c.max_concurrency, field.workload.concurrency)
        more = " and holds fewer sequences" if short else ""
        why = (
            f"since {flat.candidate.parallelism.label}, the best without stages, is {stands(margin(flat, best))}{more}"
        )
    idle = best.estimate.share("bubble")
    text = (
        f"PP{c.parallelism.pp} across {across}, {why}: one activation per token and boundary; "
        f"bubbles take {idle:.0%} of a token's time"
    )
    return Reason("pp-across", text, paths)


def _why_not_flat(field: Field) -> str:
    laws = [(p.tp, law) for p, law in field.refused if p.pp == 1]
    _, widest = max(laws, key=lambda one: one[0], default=(0, "usable"))
    if "--max-" in widest:
        return "since no group without stages keeps the limits"
    if "usable" not in widest:
        return f"since without stages {widest}"
    return f"since no {'island' if field.has_fast_island else 'group without stages'} holds the model"


def _replicas(workload: Workload, chosen: Candidate) -> str:
    dp = chosen.parallelism.dp
    each = -(-workload.concurrency // dp)
    text = f"DP{dp}: replicas share nothing, so they scale; each"
    if chosen.batch < each:
        return f"{text} holds {chosen.batch} of its {each} sequences, {workload.concurrency} in all"
    uneven = workload.concurrency % dp or len(set(chosen.rooms)) > 1
    return f"{text} serves {'about ' if uneven else ''}{each} of {workload.concurrency} sequences"


def _experts(model: ModelSpec, field: Field) -> Reason:
    """How the experts are cut, and what decided against the next other way: a law, the margin, or the tie."""
    best = field.forecasts[0]
    p, experts = best.candidate.parallelism, model.moe.experts if model.moe else 0
    if p.attention_dp > 1:
        text = (
            f"attention-DP{p.attention_dp} keeps MLA's KV once, where TP copies it to every rank, and EP{p.ep} spreads "
            f"the {experts} experts"
        )
    elif p.ep > 1:
        text = f"EP{p.ep} keeps each of {experts} experts whole on one rank"
    else:
        text = f"TP{p.tp} cuts each of {experts} experts, so no rank waits for the one whose experts most tokens chose"
    others = (
        f
        for f in field.forecasts[1:]
        if (q := f.candidate.parallelism).tp == p.tp
        and q.pp == p.pp
        and (q.ep, q.attention_dp) != (p.ep, p.attention_dp)
    )
    rival = next(others, None)
    if rival is None:
        laws = (
            law
            for q, law in field.refused
            if q.tp == p.tp and q.pp in (1, p.pp) and (q.ep, q.attention_dp) != (p.ep, p.attention_dp)
        )
        law = next(laws, None)
        return Reason("experts", f"{text}; forbidden otherwise: {law}" if law else text, Provenance.CATALOG)
    behind = margin(rival, best)
    text += f"; {rival.candidate.parallelism.label} is {stands(behind)}"
    if behind <= 0:
        text += f", a tie (within {TIE:.0%}) that goes to the simpler"
    elif behind <= doubt(rival, best):
        text += f", within the uncertainty of {spread(doubt(rival, best))}"
    return Reason("experts", text, Provenance.CATALOG)


def _unsure(survey: Survey, field: Field) -> Iterator[Reason]:
    """The runner-up, how far it is behind, and what would settle the first that cannot be told from the chosen."""
    best, *others = field.forecasts
    if not others:
        return
    second = others[0]
    if margin(second, best) > doubt(second, best):
        label, behind = second.candidate.parallelism.label, stands(margin(second, best))
        yield Reason(
            "runner-up",
            f"{label} is {behind}, and the model tells them apart to {spread(doubt(second, best))}",
            largest_doubt(second, best)[1],
        )
    near = next((f for f in others if margin(f, best) <= doubt(f, best)), None)
    if near is None:
        return
    name, provenance = largest_doubt(near, best)
    if name in KERNELS_APART:
        settle = f"serving both would settle it, for public ratios of {name} to TP are further apart"
    elif name in WIRES and not (is_measured(survey, near) and is_measured(survey, best)):
        settle = f"`wirelore measure` would settle it: {SPENT_ON[name]} on these wires"
    elif name in COMPUTED and provenance is not Provenance.MEASURED:
        settle = "`wirelore measure` would settle it: the GPUs' memory and matrix rates"
    else:
        settle = f"serving both would settle it, for they differ in {SPENT_ON.get(name, name)}"
    tie = f"; of plans within {TIE:.0%} the simpler is taken" if margin(near, best) <= 0 else ""
    yield Reason(
        "uncertain",
        f"{near.candidate.parallelism.label} is {stands(margin(near, best))}, within the uncertainty of "
        f"{spread(doubt(near, best))}{tie}: {settle}",
        provenance,
    )


def _only_measuring_settles(survey: Survey, field: Field, workload: Workload) -> bool:
    best = field.forecasts[0]
    if field.has_fast_island or survey.topology.gpu_count == 1:
        return False
    if best.candidate.parallelism.tp > 1 and is_measured(survey, best):
        return False
    return best.candidate.parallelism.gpus_per_replica > 1 or workload.objective is Objective.LATENCY


def _hidden(topology: Topology) -> str:
    seen = all(node.shape.nvlink_visible for node in topology.nodes)
    return "" if seen else " as far as this input can show: it hides NVLink"
