"""compare(a, b): whether numbers measured on machine A carry over to B, kind by kind, and why not. Pure.

A description is no measurement. The same GPUs behind the same PCIe levels were 14-fold apart on two hosts, so what
crosses PCIe or a network carries over only where both sides were timed, or where both are one machine. Boxes with equal
NVLinks stay within the 30 % that public figures leave open, GPUs of one model within 15 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from configgen.carryover import judge_served, judge_unserved
from configgen.comparison import Comparison, Contrast, Effect, Judgement, Kind, Ratio, Serving, Side, State, Verdict
from configgen.contrasts import estimated, has, kind_of, measured, path_label, rates, representative, unmatched
from configgen.explain import provenance_of
from configgen.facts import facts, gpu_names, island_sizes, memory_bytes
from configgen.forecast import TIE
from configgen.rates import UNCERTAINTY as RATE_UNCERTAINTY
from configgen.wires import UNCERTAINTY as WIRE_UNCERTAINTY
from probe.catalog import gpu_figures
from probe.measurement import Survey
from probe.stability import instabilities
from probe.statistics import median
from probe.topology import Provenance, Topology
from probe.units import count, figure, some

NO_ONE_RATIO = 2.0
"""Speeds of small messages, or of large ones, that are further apart than this are no one ratio to multiply with; nor
are all of them together at twice that in each direction."""

_ACROSS = {Kind.PCIE: "PCIe", Kind.NETWORK: "the network"}
_UNSTABLE = ("drift", "bimodal")
_CURVES_LOOKED_AT = 24


def compare(a: Side, b: Side, serving: Serving | None = None) -> Comparison:
    """What carries over. `serving` is what `configgen.carryover.serving` says of a model, None where none was told."""
    same = is_same(a, b)
    ours, theirs = evidence(a.survey, b.survey)
    contrasts = [*rates(ours, theirs), *measured(ours, theirs)]
    judgements: list[Judgement] = []
    for kind in (Kind.COMPUTE, Kind.ISLAND, Kind.PCIE, Kind.NETWORK):
        timed = [contrast for contrast in contrasts if contrast.kind is kind]
        stand_ins = () if timed else estimated(ours, theirs, kind)
        contrasts += stand_ins
        judgements += _judged(kind, ours, theirs, timed, stand_ins, same)
    told = tuple(facts(a.survey, b.survey))
    if serving is not None:
        judgements.append(judge_served(serving, same=same))
    else:
        judgements.append(judge_unserved(judgements, other_memory=_other_memory(ours, theirs), same=same))
    return Comparison(
        a,
        b,
        headline(judgements, serving, _lab(a.survey, b.survey)),
        tuple(judgements),
        (*told, *(c.difference for c in contrasts if c.provenance is not Provenance.ASSUMED)),
        tuple(dict.fromkeys(j.measure for j in judgements if j.measure)),
        tuple(_notes(a, b, same)),
        serving,
    )


def _other_memory(a: Survey, b: Survey) -> bool:
    ours, theirs = memory_bytes(a.topology), memory_bytes(b.topology)
    return ours is not None and theirs is not None and abs(theirs / ours - 1) > TIE


def is_same(a: Side, b: Side) -> bool:
    """Whether both are known to be one machine: one input, the very same GPUs, or one measurement.

    Equal descriptions are no proof: hosts of one kind describe themselves alike.
    """
    if a.name == b.name:
        return True
    uuids = [{g.uuid for node in side.survey.topology.nodes for g in node.gpus} for side in (a, b)]
    if uuids[0] == uuids[1] and None not in uuids[0]:
        return True
    return bool(a.survey.curves) and a.survey.curves == b.survey.curves


def evidence(a: Survey, b: Survey) -> tuple[Survey, Survey]:
    """The surveys without lab figures where the other side has none: CPU ranks say nothing of a machine's GPUs."""
    if a.lab is not None and b.lab is not None:
        return a, b
    return _unless_lab(a), _unless_lab(b)


def _unless_lab(survey: Survey) -> Survey:
    return survey if survey.lab is None else replace(survey, curves=(), rates=(), lab=None)


def headline(judgements: Sequence[Judgement], serving: Serving | None, lab: str | None) -> str:
    """One line: of serving where a model was told, else kind by kind."""
    if serving is not None:
        own = next(j for j in judgements if j.kind is Kind.SERVING)
        text = f"{serving.model}, served on A: {own.verdict.value}: {own.reason}"
    elif all(j.verdict is Verdict.CARRIES for j in judgements):
        text = "Numbers measured on A carry over to B"
    else:
        parts = []
        for verdict in Verdict:
            names = [f"{j.kind.value}{f' ({j.scope})' if j.scope else ''}" for j in judgements if j.verdict is verdict]
            parts += [f"{verdict.value}: {', '.join(names)}"] if names else []
        some_do = any(j.verdict is Verdict.CARRIES for j in judgements)
        text = f"{'Not every' if some_do else 'No'} number measured on A carries over to B as it is: {'; '.join(parts)}"
    return f"LAB FIGURES, {lab}. {text}" if lab else text


def _lab(a: Survey, b: Survey) -> str | None:
    sides = [name for name, survey in (("A", a), ("B", b)) if survey.lab is not None]
    return f"on {' and '.join(sides)} not of the hardware" if sides else None


def _judged(
    kind: Kind, a: Survey, b: Survey, timed: Sequence[Contrast], stand_ins: Sequence[Contrast], same: bool
) -> Iterator[Judgement]:
    if kind is not Kind.COMPUTE and not has(a.topology, kind):
        return
    again = (a.curves, a.rates) == (b.curves, b.rates)
    if same and _wired_alike(kind, a.topology, b.topology) and (again or not timed):
        yield Judgement(kind, Verdict.CARRIES, "one and the same machine", provenance_of(b.topology, "paths"))
    elif kind is Kind.COMPUTE:
        yield _compute(a, b, timed)
    elif not has(b.topology, kind):
        lacks = "B has no fast fabric" if kind is Kind.ISLAND else f"nothing on B crosses {_ACROSS[kind]}"
        yield Judgement(kind, Verdict.NOT, lacks, provenance_of(b.topology, "paths"))
    elif timed:
        yield _timed(kind, timed, unmatched(a, b).get(kind, ()))
    elif kind is Kind.ISLAND:
        yield from _islands(a, b, stand_ins)
    else:
        yield _untimed(kind, a, b, stand_ins)


def _wired_alike(kind: Kind, a: Topology, b: Topology) -> bool:
    return gpu_names(a) == gpu_names(b) and _label(a, kind) == _label(b, kind)


def _timed(kind: Kind, own: Sequence[Contrast], unlike: tuple[int, ...]) -> Judgement:
    """Both sides were timed: what the figures say."""
    apart = [c for c in own if c.state is State.APART]
    left = f"; groups of {some([*map(str, unlike)])} GPUs were timed on A alone" if unlike else ""
    longer = "`wirelore measure --budget 60s` on the side with the wider intervals" if kind is not Kind.COMPUTE else ""
    if apart:
        spread = {effects: [c.ratio for c in own if c.difference.affects == effects] for effects in _effects(own)}
        ranges = {e: (min(r.low for r in of), max(r.high for r in of)) for e, of in spread.items()}
        text = ", ".join(f"{_short(e)} {_times(*ends)}" for e, ends in ranges.items())
        pure = [ends for e, ends in ranges.items() if len(e) == 1]
        ratio = _overall(own)
        one = all(high <= NO_ONE_RATIO * low for low, high in pure) and ratio.high <= NO_ONE_RATIO**2 * ratio.low
        reason = f"B's speed is {text} A's, both measured{left}"
        if one or kind is Kind.COMPUTE:
            return Judgement(kind, Verdict.RATIO, reason, Provenance.MEASURED, ratio=ratio)
        return Judgement(kind, Verdict.NOT, f"{reason}: that is no one ratio, take B's own", Provenance.MEASURED)
    unsure = [c for c in own if c.state is State.UNSURE]
    if 2 * len(unsure) > len(own):
        half = median([c.ratio.uncertainty for c in unsure])
        reason = f"both were measured, but what they have in common is only known to +-{half:.0%}{left}"
        return Judgement(kind, Verdict.UNKNOWN, reason, Provenance.MEASURED, measure=longer or "wirelore measure")
    off = max(abs(c.ratio.value - 1) for c in own)
    reason = f"measured on both, {count(len(own), 'figure')} within {max(off, 0.01):.0%}{left}"
    return Judgement(kind, Verdict.CARRIES, reason, Provenance.MEASURED, ratio=_overall(own))


def _effects(own: Sequence[Contrast]) -> list[tuple[Effect, ...]]:
    return list(dict.fromkeys(c.difference.affects for c in own))


def _short(effects: tuple[Effect, ...]) -> str:
    names: dict[tuple[Effect, ...], str] = {
        (Effect.LATENCY,): "for small messages",
        (Effect.BANDWIDTH,): "for large ones",
        (Effect.COMPUTE,): "",
    }
    return names.get(effects, "in between")


def _times(low: float, high: float) -> str:
    ends = dict.fromkeys((figure(low), figure(high)))
    return f"{' to '.join(ends)} x"


def _overall(own: Sequence[Contrast]) -> Ratio:
    values = [c.ratio.value for c in own]
    low, high = min(c.ratio.low for c in own), max(c.ratio.high for c in own)
    return Ratio(median(values), low, high, median([c.ratio.uncertainty for c in own]))


def _compute(a: Survey, b: Survey, own: Sequence[Contrast]) -> Judgement:
    both = all(c.provenance is Provenance.MEASURED for c in own)
    names = gpu_names(a.topology), gpu_names(b.topology)
    if both:
        return _timed(Kind.COMPUTE, own, ())
    nameless = [side for side, of in (("A", names[0]), ("B", names[1])) if not of]
    if nameless:
        return Judgement(
            Kind.COMPUTE,
            Verdict.UNKNOWN,
            f"{' and '.join(nameless)} {'does' if len(nameless) == 1 else 'do'} not tell the GPU model",
            Provenance.ASSUMED,
            measure="name the GPUs: `wirelore probe --from FILE --gpu-model NAME -o FILE.json`, and compare that",
        )
    far = [c for c in own if abs(c.ratio.value - 1) > RATE_UNCERTAINTY[Provenance.CATALOG]]
    weakest = own[0].provenance
    if names[0] == names[1]:
        if not far:
            reason = f"the same model, {some(names[0])}: within {RATE_UNCERTAINTY[Provenance.CATALOG]:.0%}"
            return Judgement(Kind.COMPUTE, Verdict.CARRIES, reason, Provenance.CATALOG)
        one = far[0].difference
        reason = f"the same model, but the measured {one.subject} is {_times(far[0].ratio.value, far[0].ratio.value)}"
        ask = "the rates on both: `wirelore measure`"
        return Judgement(Kind.COMPUTE, Verdict.UNKNOWN, f"{reason} what it usually is", weakest, measure=ask)
    unknown = [n for of in names for n in of if gpu_figures(n) is None]
    if unknown and weakest is Provenance.ASSUMED:
        reason = f"other GPUs, and no figures are known of {some(unknown)}"
        ask = "the rates on both: `wirelore measure`"
        return Judgement(Kind.COMPUTE, Verdict.UNKNOWN, reason, weakest, measure=ask)
    each = ", ".join(f"{c.difference.subject} {_times(c.ratio.low, c.ratio.high)}" for c in own)
    reason = f"other GPUs: {each} (+-{own[0].ratio.uncertainty:.0%})"
    return Judgement(Kind.COMPUTE, Verdict.RATIO, reason, weakest, ratio=_overall(own))


def _label(topology: Topology, kind: Kind) -> str | None:
    group = representative(topology, kind) if kind is not Kind.COMPUTE else None
    return path_label(topology, group) if group else None


def _islands(a: Survey, b: Survey, own: Sequence[Contrast]) -> Iterator[Judgement]:
    """NVLink that was not timed on both: equal links of equal GPUs are equally fast, to what public figures leave."""
    groups = representative(a.topology, Kind.ISLAND), representative(b.topology, Kind.ISLAND)
    assert groups[0] is not None and groups[1] is not None
    sizes = [max(size for size, _, _ in island_sizes(survey.topology)) for survey in (a, b)]
    labels = _label(a.topology, Kind.ISLAND), _label(b.topology, Kind.ISLAND)
    gpus = a.topology.gpu(groups[0][0]), b.topology.gpu(groups[1][0])
    scope = f"up to {sizes[1]} GPUs" if sizes[1] < sizes[0] else ""
    half = WIRE_UNCERTAINTY[Provenance.CATALOG]
    ask = "name the GPUs, or `wirelore measure` on both"
    weakest = max((c.provenance for c in own), key=[*Provenance].index)
    if labels[0] == labels[1] and gpus[0].name == gpus[1].name and gpus[0].name is not None:
        # Start-up depends on the library's version, so only bandwidth tells a fabric from its like.
        off = [c for c in own[1:] if abs(c.ratio.value - 1) > half]
        if off:
            reason = f"the same links, but {off[0].difference.subject} is {_times(off[0].ratio.low, off[0].ratio.high)}"
            ask = "`wirelore measure` on both"
            yield Judgement(
                Kind.ISLAND, Verdict.UNKNOWN, f"{reason} what is usual", weakest, scope, off[0].ratio, measure=ask
            )
        else:
            reason = f"{labels[0]} of the same GPUs on both: within {half:.0%}"
            yield Judgement(Kind.ISLAND, Verdict.CARRIES, reason, Provenance.CATALOG, scope)
    elif weakest is Provenance.ASSUMED:
        reason = f"{labels[0]} on A and {labels[1]} on B, and not every GPU model is known, nor so the rate of a link"
        yield Judgement(Kind.ISLAND, Verdict.UNKNOWN, reason, weakest, scope, measure=ask)
    else:
        small, large = own[0].ratio, own[1].ratio
        reason = (
            f"other links, {labels[0]} and {labels[1]}: {_times(small.low, small.high)} for small messages, "
            f"{_times(large.low, large.high)} for large ones (+-{large.uncertainty:.0%})"
        )
        yield Judgement(Kind.ISLAND, Verdict.RATIO, reason, weakest, scope, _overall(own))
    if scope:
        none = f"no island of B has more than {sizes[1]} GPUs"
        told = provenance_of(b.topology, "paths")
        yield Judgement(Kind.ISLAND, Verdict.NOT, none, told, "larger groups")


def _untimed(kind: Kind, a: Survey, b: Survey, own: Sequence[Contrast]) -> Judgement:
    """PCIe or a network that was not timed on both: only a difference beyond all doubt tells anything."""
    timed = [any(kind_of(curve.key.group) is kind for curve in survey.curves) for survey in (a, b)]
    sides = [name for name, done in (("A", timed[0]), ("B", timed[1])) if not done]
    labels = dict.fromkeys((_label(a.topology, kind), _label(b.topology, kind)))
    large = own[1].ratio
    if own[1].state is State.APART and not any(timed):
        said = (
            f"{' and '.join(filter(None, labels))}: public figures say {_times(large.low, large.high)} for large ones"
        )
        reason = f"{said}, further apart than they are doubtful (+-{large.uncertainty:.0%})"
        return Judgement(kind, Verdict.NOT, reason, own[1].provenance, ratio=large)
    where = " and ".join(sides or ("A", "B"))
    why = "two hosts of the same GPUs were 14-fold apart" if kind is Kind.PCIE else "switches and drivers decide it"
    reason = f"nobody timed it on {where}, and {why}" if sides else f"no like group was timed on both, and {why}"
    ask = f"`wirelore measure -o FILE` on {where}, for {_ACROSS[kind]}"
    return Judgement(kind, Verdict.UNKNOWN, reason, own[1].provenance, measure=ask)


def _notes(a: Side, b: Side, same: bool) -> Iterator[str]:
    if same:
        yield "A and B are one machine: what holds for it need not hold for another of the same description"
    for name, side in (("A", a), ("B", b)):
        survey = side.survey
        if survey.lab is not None:
            yield f"{name} holds lab figures, {survey.lab}: they say nothing of the hardware"
        if survey.is_partial:
            yield f"the measurement of {name} did not come to its end"
        if any(w.code == "synthetic" for w in survey.topology.warnings):
            yield f"{name} is a described machine, not a real one"
        looked_at = survey.curves[:: max(1, len(survey.curves) // _CURVES_LOOKED_AT)]
        shaky = sum(any(i.code in _UNSTABLE for i in instabilities(curve)) for curve in looked_at)
        if shaky:
            told = f"{shaky} of {count(len(looked_at), 'curve')} on {name} {'drifts' if shaky == 1 else 'drift'}"
            yield f"{told} or gather at two levels: `wirelore measure --fresh` when the machine is idle"
