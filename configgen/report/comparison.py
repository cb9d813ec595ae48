"""A comparison as rows of text for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from configgen.comparison import Comparison, Difference, Effect, Kind, Ratio, Served, Serving, Side, Told
from configgen.report.lines import gpus_line, islands_line, measured_line
from probe.errors import one_line
from probe.units import count, figure

Row = tuple[str, str]
_MOST_FIGURES = 14
_MOST_ALIKE = 3
_SHORT = {
    Effect.LATENCY: "latency", Effect.BANDWIDTH: "bandwidth", Effect.COMPUTE: "compute", Effect.MEMORY: "memory size",
}  # fmt: skip


def side_text(side: Side) -> str:
    """'survey.json: 8 x NVIDIA L40S; no fast fabric between GPUs; measured 2026-11-20'."""
    topology = side.survey.topology
    told = measured_line(side.survey) or "not measured"
    return f"{one_line(side.name, 80)}: {gpus_line(topology)}; {islands_line(topology)}; {told}"


def judgement_rows(c: Comparison) -> Iterator[Row]:
    for j in c.judgements:
        scope = f" ({j.scope})" if j.scope else ""
        why = "as above" if j.kind is Kind.SERVING and c.serving is not None else j.reason
        yield f"{j.kind.value}{scope}", f"{j.verdict.value}: {why} [{j.provenance.value}]"


def difference_rows(c: Comparison) -> tuple[list[tuple[str, str, str, str, str]], str | None]:
    """(what, on A, on B, speed of B over A, effects) of each, the figures furthest apart first; what is not shown."""
    plain = [d for d in c.differences if d.ratio is None]
    figures = sorted((d for d in c.differences if d.ratio is not None), key=_apart, reverse=True)
    shown = [*plain, *figures[:_MOST_FIGURES]]
    left = len(figures) - _MOST_FIGURES
    rows = [
        (d.subject, _told(d.a), _told(d.b), _times(d.ratio), ", ".join(_SHORT[e] for e in d.affects)) for d in shown
    ]
    return rows, f"and {left} more: --format json" if left > 0 else None


def alike_rows(c: Comparison) -> Iterator[Row]:
    """Equal things in one line, and what only one side tells."""
    plain = [d for d in c.equal if d.ratio is None]
    if plain:
        yield "equal", "; ".join(f"{d.subject} {_told(d.a)}" for d in plain)
    figures = {d: abs(d.ratio.value - 1) for d in c.equal if d.ratio is not None}
    if figures:
        shown = "; ".join(f"{d.subject} {_told(d.a)}" for d in [*figures][:_MOST_ALIKE])
        more = " ..." if len(figures) > _MOST_ALIKE else ""
        yield "alike", f"{count(len(figures), 'figure')} within {max(0.01, *figures.values()):.0%}: {shown}{more}"
    for name, alone in (
        ("A", [d for d in c.told_by_one if d.b is None]),
        ("B", [d for d in c.told_by_one if d.a is None]),
    ):
        if alone:
            yield f"{name} alone tells", "; ".join(f"{d.subject} {_told(d.a or d.b)}" for d in alone)


def serving_rows(s: Serving) -> Iterator[Row]:
    w = s.workload
    assumed = f" (assumed: {', '.join(w.assumed)})" if w.assumed else ""
    load = f"{w.input_tokens:,} tokens in, {w.output_tokens:,} out, {w.concurrency:,} at once{assumed}"
    yield "load", f"{w.objective.value}, {load}"
    if s.on_a is not None:
        yield "best on A", _served(s.on_a)
    if s.on_b is not None and s.on_a is not None:
        yield f"A's {s.on_a.parallelism.label} on B", _served(s.on_b)
    if s.tokens_ratio is not None and s.tpot_ratio is not None and s.uncertainty is not None:
        half = f"+-{s.uncertainty:.0%}"
        yield "B/A", f"tokens/s per GPU {s.tokens_ratio:.2f} x, TPOT {s.tpot_ratio:.2f} x, {half}"
    if s.law is not None:
        yield "forbidden", s.law
    if s.best_on_b is not None:
        yield "best on B", ("the same cut: " if s.same_plan else "") + _served(s.best_on_b)
    if s.behind_best is not None and not s.same_plan:
        unsure = ", within the uncertainty" if s.within_uncertainty else ""
        yield "A's plan there", f"{s.behind_best:.0%} behind B's best{unsure}"


def _served(served: Served) -> str:
    p = served.predictions
    parts = [served.parallelism.label]
    if p.output_tokens_per_s_per_gpu is not None and p.tpot_s is not None:
        parts.append(f"{figure(p.output_tokens_per_s_per_gpu)} tokens/s per GPU, TPOT {p.tpot_s * 1e3:.3g} ms")
    half = f" +-{p.uncertainty:.0%}" if p.uncertainty is not None else ""
    return f"{': '.join(parts)}{half} [{served.provenance.value}]"


def _told(told: Told | None) -> str:
    return f"{told.text} [{told.provenance.value}]" if told is not None else "-"


def _times(ratio: Ratio | None) -> str:
    return f"{figure(ratio.value)} x" if ratio is not None else ""


def _apart(d: Difference) -> float:
    assert d.ratio is not None
    return max(d.ratio.high, 1 / d.ratio.low)
