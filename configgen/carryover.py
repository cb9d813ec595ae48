"""A's best plan for a model, predicted on A and on B: the ratio of what it gives, and how far that may be off. Pure.

The ratio of two predictions errs less than each. What both share, wrong alike, moves it only where it takes another
part of the time: with parts s of the time T, an error u of a shared part moves the ratio by u (s_B / T_B - s_A / T_A),
parts that err apart by u_A s_A / T_A and u_B s_B / T_B. They are added as independent. Shared are the engine's host
code, and kernels on GPUs of one model; wires never, unless both are one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

from configgen.comparison import Judgement, Kind, Served, Serving, Verdict
from configgen.contrasts import crosses, kind_of
from configgen.cost import Machine
from configgen.explain import WIRES, spent
from configgen.forecast import TIE, Forecast, doubt, forecast, margin
from configgen.judge import Candidate
from configgen.model import ModelSpec
from configgen.plan import EngineTraits, Parallelism, Workload
from configgen.search import Field, materialise, search
from configgen.wires import UNCERTAINTY as WIRE_UNCERTAINTY
from probe.errors import NoPlanError
from probe.measurement import Survey
from probe.topology import Provenance
from probe.units import some

HOSTS_APART = 14.0
"""PCIe of two hosts with the same GPUs (L40S, all-reduce of 8: 1.4 and 20.7 GB/s)."""

_COMPUTED = ("weights", "gemm", "kv", "attention", "elementwise", "prompts")


def serving(
    a: Survey, b: Survey, model: ModelSpec, workload: Workload, traits: EngineTraits, *, same: bool = False
) -> Serving:
    """Plans on A, and asks what that plan gives on B. A side that cannot hold the model is told, never raised."""
    try:
        ours = search(a, model, workload, traits)
    except NoPlanError as error:
        return Serving(
            model.name, workload, None, None, _best(b, model, workload, traits), law=f"on A, {error.problem}"
        )
    best = ours.forecasts[0]
    try:
        theirs = search(b, model, workload, traits)
    except NoPlanError as error:
        return Serving(model.name, ours.workload, _served(best), None, None, law=f"on B, {error.problem}")
    shape = best.candidate.parallelism
    found = next((f for f in theirs.forecasts if _alike(f.candidate.parallelism, shape)), None)
    if found is None:
        law = f"B cannot host {_replica(shape)}: {_law(theirs, shape)}"
        return Serving(model.name, ours.workload, _served(best), None, _served(theirs.forecasts[0]), law=law)
    ported = _ported(found.candidate, theirs.machine, model, ours.workload, shape, traits)
    sides = () if same else (("A", a, best), ("B", b, ported))
    return Serving(
        model.name,
        ours.workload,
        on_a=_served(best),
        on_b=_served(ported),
        best_on_b=_served(theirs.forecasts[0]),
        tokens_ratio=_each(ported) / _each(best),
        tpot_ratio=ported.estimate.tpot_s / best.estimate.tpot_s,
        uncertainty=ratio_doubt(best, ported, same=same),
        spent=_spent(best, ported, ours.workload),
        behind_best=margin(found, theirs.forecasts[0]),
        within_uncertainty=abs(margin(found, theirs.forecasts[0])) <= doubt(found, theirs.forecasts[0]),
        wires_share=max(map(_wires_share, (best, ported))),
        wires_unmeasured=tuple(name for name, survey, f in sides if not _timed(survey, f)),
    )


def ratio_doubt(a: Forecast, b: Forecast, *, same: bool = False) -> float:
    """Relative half-width of the ratio of two forecasts of one plan on two machines."""
    shares = [_shares(f) for f in (a, b)]
    like = _models(a.candidate) == _models(b.candidate) != {None}
    total = 0.0
    for name in {*shares[0], *shares[1]}:
        (one, u_a), (two, u_b) = shares[0].get(name, (0.0, 0.0)), shares[1].get(name, (0.0, 0.0))
        wired = name in WIRES or (name == "prompts" and a.candidate.parallelism.gpus_per_replica > 1)
        apart = wired or (name in _COMPUTED and not like)
        if same or not apart:
            total += ((two - one) * max(u_a, u_b)) ** 2
        else:
            total += (one * u_a) ** 2 + (two * u_b) ** 2
    return sqrt(total)


def judge_served(s: Serving, *, same: bool) -> Judgement:
    """Whether a serving number of A's plan carries over."""
    if s.on_a is None:
        told = "the same model on a machine that holds it: A cannot, so nothing was measured there"
        return Judgement(Kind.SERVING, Verdict.UNKNOWN, s.law or "", Provenance.READ, measure=told)
    if s.on_b is None or s.tokens_ratio is None or s.uncertainty is None:
        return Judgement(Kind.SERVING, Verdict.NOT, s.law or "", s.on_a.provenance)
    plan, half = s.on_a.parallelism.label, f"give or take {s.uncertainty:.0%}"
    why = f": {s.spent}" if s.spent and abs(s.tokens_ratio - 1) > TIE else ""
    text = f"a number measured on A with {plan} would be {s.tokens_ratio:.2f} x on B, {half}{why}"
    weakest = max(s.on_a.provenance, s.on_b.provenance, key=[*Provenance].index)
    open_wires = s.wires_unmeasured and s.wires_share * (HOSTS_APART - 1) > WIRE_UNCERTAINTY[Provenance.CATALOG]
    if open_wires or s.uncertainty > WIRE_UNCERTAINTY[Provenance.CATALOG]:
        where = " and ".join(s.wires_unmeasured) or "A and B"
        text += f"; nobody timed the wires on {where}" if open_wires else ""
        ask = f"`wirelore measure -o FILE` on {where}, or serve it on both"
        return Judgement(Kind.SERVING, Verdict.UNKNOWN, text, weakest, measure=ask)
    if abs(s.tokens_ratio - 1) > TIE:
        return Judgement(Kind.SERVING, Verdict.RATIO, text, weakest)
    told = "one and the same machine" if same else text
    return Judgement(Kind.SERVING, Verdict.CARRIES, told, weakest)


def judge_unserved(judgements: Sequence[Judgement], *, other_memory: bool, same: bool) -> Judgement:
    """Without a model: what every kind of number together says of one that rests on all of them."""
    weakest = max((j.provenance for j in judgements), key=[*Provenance].index)
    if same and all(j.verdict is Verdict.CARRIES for j in judgements):
        return Judgement(Kind.SERVING, Verdict.CARRIES, "with equal software and load", weakest)
    ask = "`--model MODEL`: only a model says which of these a benchmark rests on"
    off = dict.fromkeys(j.kind.value for j in judgements if j.verdict in (Verdict.NOT, Verdict.RATIO))
    if off or other_memory:
        reason = f"it rests on {some([*off, *(['the memory of a GPU'] if other_memory else [])])}"
        return Judgement(Kind.SERVING, Verdict.NOT, reason, weakest, measure=ask)
    unknown = [j.kind.value for j in judgements if j.verdict is Verdict.UNKNOWN]
    if unknown:
        reason = f"it may rest on what nobody knows: {some(list(dict.fromkeys(unknown)))}"
        return Judgement(Kind.SERVING, Verdict.UNKNOWN, reason, weakest, measure=ask)
    return Judgement(Kind.SERVING, Verdict.CARRIES, "with equal software and load, as all it rests on", weakest)


def _best(survey: Survey, model: ModelSpec, workload: Workload, traits: EngineTraits) -> Served | None:
    try:
        return _served(search(survey, model, workload, traits).forecasts[0])
    except NoPlanError:
        return None


def _ported(
    found: Candidate, machine: Machine, model: ModelSpec, workload: Workload, shape: Parallelism, traits: EngineTraits
) -> Forecast:
    """A's replicas, as many of them as B holds, each with the load that it has on A."""
    dp = min(shape.dp, found.parallelism.dp)
    candidate = replace(found, parallelism=replace(found.parallelism, dp=dp))
    load = replace(workload, concurrency=max(1, round(workload.concurrency * dp / shape.dp)))
    return forecast(machine, model, candidate, load, traits)


def _alike(one: Parallelism, other: Parallelism) -> bool:
    """Whether a replica is cut the same way, whatever their number."""
    return replace(one, dp=1) == replace(other, dp=1)


def _replica(shape: Parallelism) -> str:
    return replace(shape, dp=1).label


def _law(field: Field, shape: Parallelism) -> str:
    told = next((law for p, law in field.refused if _alike(p, shape)), None)
    return told or next((law for p, law in field.refused if p.tp == shape.tp), "it has no group of so many GPUs")


def _served(f: Forecast) -> Served:
    return Served(f.candidate.parallelism, f.predictions, f.provenance)


def _each(f: Forecast) -> float:
    return f.output_tokens_per_s / f.candidate.parallelism.gpus


def _shares(f: Forecast) -> dict[str, tuple[float, float]]:
    """What a token's time goes into: name -> (part of it, relative doubt)."""
    decode = [part for part in f.estimate.parts if part.phase == "decode"]
    whole = sum(part.seconds for part in decode)
    return {part.name: (part.seconds / whole, part.uncertainty) for part in decode}


def _models(candidate: Candidate) -> set[str | None]:
    return {gpu.name for kind, _ in candidate.runs for gpu in kind.sample.models}


def _labels(candidate: Candidate) -> set[str]:
    """Of all paths that its messages take."""
    found = set[str]()
    for wired, _ in materialise(candidate):
        found |= {path.label for path in (wired.inside, *wired.hops) if path is not None}
    return found


def _wires_share(f: Forecast) -> float:
    prompts = f.estimate.share("prompts")
    return sum(f.estimate.share(name) + prompts * f.estimate.share(name, "prefill") for name in WIRES)


def _timed(survey: Survey, f: Forecast) -> bool:
    """Whether wires like the worst that its messages take were timed; of NVLink the catalog is enough."""
    worst = crosses(_labels(f.candidate))
    return worst is None or any(kind_of(curve.key.group) is worst for curve in survey.curves)


def _spent(a: Forecast, b: Forecast, workload: Workload) -> str:
    """On the slower side, what takes so much more of its time there."""
    slow, fast, name = (b, a, "on B") if b.estimate.tpot_s >= a.estimate.tpot_s else (a, b, "on A")
    dp = a.candidate.parallelism.dp
    other = {part.name: part.seconds for part in fast.estimate.parts if part.phase == "decode"}
    decode = [part for part in slow.estimate.parts if part.phase == "decode"]
    most = max(decode, key=lambda part: part.seconds - other.get(part.name, 0.0))
    held, asked = slow.candidate.max_concurrency, workload.concurrency * slow.candidate.parallelism.dp // dp
    short = f"; its memory holds {held} of {asked} sequences" if held < asked else ""
    return f"{name} {spent(slow, most)}{short}"
