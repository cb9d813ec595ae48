"""`wirelore audit`: whether this machine is as its hardware should be, and what to fix where it is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from configgen.cli.measure import budget_s
from configgen.cli.options import Sources, note, put, require_folder, source_options
from configgen.comparison import Comparison, Side
from probe.audit import audit
from probe.errors import UsageError, WireloreError
from probe.finding import Finding
from probe.measurement import Survey
from probe.topology import Origin, Provenance

if TYPE_CHECKING:
    from configgen.audited import Audited
    from configgen.model import ModelSpec
    from configgen.plan import Plan
    from configgen.report.table import Line

_FORMATS = ("text", "json", "svg", "html", "markdown", "junit", "prometheus")
_SUFFIXES = {
    ".json": "json", ".svg": "svg", ".html": "html", ".htm": "html", ".md": "markdown", ".xml": "junit",
    ".prom": "prometheus",
}  # fmt: skip
_TWICE = Origin("findings", Provenance.MEASURED, "measured twice: a figure counts that falls short both times")


@dataclass(frozen=True, slots=True)
class _Judged:
    """A survey, what was found in it, and what cut its measurement short."""

    survey: Survey
    findings: tuple[Finding, ...]
    failure: WireloreError | KeyboardInterrupt | None = None


@click.command("audit")
@source_options
@click.option("--measure", is_flag=True, help="Measure first, and a second time where a figure falls short.")
@click.option("--budget", metavar="TIME", help="Time for each measurement; 'none' measures everything. [default: 20s]")
@click.option("--every-pair", is_flag=True, help="Measure between every two GPUs, not one pair per kind of path.")
@click.option("--backend", type=click.Choice(["auto", "nccl", "gloo"]), help="What measures. [default: auto]")
@click.option("--baseline", metavar="SRC", help="Compare with this survey or audit: what has changed since.")
@click.option("--model", metavar="MODEL", help="Show the plan for this model, too.")
@click.option("--offline", is_flag=True, help="Never ask the Hugging Face hub about --model.")
@click.option("--fleet", metavar="DIR|GLOB", help="Judge these surveys of many machines by each other instead.")
@click.option("--keep", is_flag=True, help="Add this audit to the history of this machine: `wirelore history`.")
@click.option(
    "--history",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="The file that --keep adds to. [default: in $XDG_STATE_HOME/wirelore]",
)
@click.option("--strict", is_flag=True, help="End with 1 on a failure or a warning.")
@click.option("--format", type=click.Choice(_FORMATS), help="Output. [default: as the suffix of -o says, else text]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="Write it here, atomically, instead of to standard output.",
)
@click.pass_context
def audit_command(
    ctx: click.Context,
    /,
    sources: Sources,
    measure: bool,
    budget: str | None,
    every_pair: bool,
    backend: str | None,
    baseline: str | None,
    model: str | None,
    offline: bool,
    fleet: str | None,
    keep: bool,
    history: Path | None,
    strict: bool,
    format: str | None,
    output: Path | None,
) -> None:
    """Say whether this machine's wires are as they should be: what driver and host tell, and what was measured."""
    form = format or (_SUFFIXES.get(output.suffix.lower(), "text") if output is not None else "text")
    # Whatever can be wrong with what was asked for is said before anything is measured.
    require_folder(output)
    if fleet is not None:
        from configgen.cli.fleet_audit import audit_fleet

        if not audit_fleet(fleet, format=form, output=output) and strict:
            ctx.exit(1)
        return
    spec = _spec(model, offline)
    before = _before(baseline, sources)
    if measure:
        judged = _measured(sources, budget, every_pair=every_pair, backend=backend or "auto")
        if judged is None:
            return
    elif budget is not None or every_pair or backend is not None:
        raise UsageError("--budget, --every-pair and --backend are about --measure, which is not given", cure="Add it.")
    else:
        judged = _known(sources)
    failure = judged.failure
    plan: Plan | None = None
    if spec is not None:
        try:
            plan = _plan(judged.survey, spec)
        except WireloreError as error:
            failure = failure or error
    audited = _audited(judged, plan, _compared(before, judged.survey, sources))
    _show(audited, form, output, strict=strict)
    if keep or history is not None:
        from configgen.cli.history import keep_audit

        keep_audit(audited, history)
    if failure is not None:
        raise failure
    if strict and not audited.passes:
        ctx.exit(1)


def _known(sources: Sources) -> _Judged:
    """What is known of this machine. Figures of other GPUs, however equal, say nothing of these."""
    survey = sources.survey(elsewhere=False)
    return _Judged(survey, audit(survey))


def _measured(sources: Sources, budget: str | None, *, every_pair: bool, backend: str) -> _Judged | None:
    """What a measurement says, or two of them; None on every node but the first, which has it all."""
    from configgen.cli.measuring import Wanted, ended_by_signals, is_further_process, measure_now
    from probe.retry import of_two, wants_another

    debug = bool(click.get_current_context().find_root().params.get("debug"))
    wanted = Wanted(sources, backend, budget_s(budget or "20s"), every_pair=every_pair, debug=debug)
    with ended_by_signals():
        if is_further_process():
            return None
        run = measure_now(wanted)
        if run.survey is None:
            if run.failure is not None:
                raise run.failure
            return None
        first = _Judged(run.survey, audit(run.survey), run.failure)
        if run.failure is not None or not wants_another(first.findings):
            return first
        if run.nodes > 1:
            note("figures fall short; the other nodes are done, so measure once more before you believe them")
            return first
        note("figures fall short: measuring once more, for a bad moment accuses nobody")
        run = measure_now(wanted, again=True)
    if run.survey is None or run.failure is not None:
        return replace(first, failure=run.failure)
    survey = replace(run.survey, origins=(*run.survey.origins, _TWICE))
    return _Judged(survey, of_two(first.findings, audit(survey)))


def _spec(model: str | None, offline: bool) -> ModelSpec | None:
    if model is None:
        return None
    from configgen.hub import load_model

    return load_model(model, offline=offline)


def _plan(survey: Survey, spec: ModelSpec) -> Plan:
    """As `wirelore plan MODEL` decides when no more is told. Raises WireloreError."""
    from configgen.decide import plan
    from configgen.engines.rules import engine_traits
    from configgen.plan import Workload
    from probe.sources.told import with_assumed_memory

    workload = Workload(assumed=("objective", "input_tokens", "output_tokens", "concurrency"))
    survey = replace(survey, topology=with_assumed_memory(survey.topology))
    return plan(survey, spec, workload, engine_traits("vllm"))


def _before(baseline: str | None, sources: Sources) -> Side | None:
    if baseline is None:
        return None
    if baseline == "-" and "-" in sources.given:
        raise UsageError("standard input can be read once", cure="Give the baseline as a file.")
    return Side(baseline, Sources((baseline,), None, None).survey(cache=False))


def _compared(before: Side | None, survey: Survey, sources: Sources) -> Comparison | None:
    if before is None:
        return None
    from configgen.compare import compare

    return compare(before, Side(" + ".join(sources.given) or "now", survey))


def _audited(judged: _Judged, plan: Plan | None, compared: Comparison | None) -> Audited:
    from configgen.audited import Audited

    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Audited(judged.survey, judged.findings, now, plan, compared)


def _show(audited: Audited, form: str, output: Path | None, *, strict: bool) -> None:
    if form == "text" and output is None:
        from configgen.report.audit import audit_lines
        from configgen.report.terminal import columns, print_lines

        print_lines(audit_lines(audited, _picture(audited, columns())))
        return
    put(_written(audited, form, strict=strict), output)
    if output is not None:
        note(audited.verdict)


def _written(audited: Audited, form: str, *, strict: bool) -> bytes:
    """The audit in a form; each loads what it needs alone."""
    if form == "json":
        from configgen.audit_document import encode_audit

        return encode_audit(audited)
    if form == "svg":
        from configgen.report.drawing import draw
        from configgen.report.svg import svg

        return svg(draw(audited.survey, audited.plan)).encode()
    if form == "html":
        from configgen.report.html import page

        return page(audited).encode()
    if form == "markdown":
        from configgen.report.markdown import markdown

        return markdown(audited).encode()
    if form == "junit":
        from configgen.report.junit import junit

        return junit(audited, strict=strict).encode()
    if form == "prometheus":
        from configgen.report.prometheus import prometheus

        return prometheus(audited).encode()
    from configgen.report.audit import audit_lines

    return "".join(f"{line.text}\n" for line in audit_lines(audited, _picture(audited))).encode()


def _picture(audited: Audited, columns: int | None = None) -> list[Line]:
    """The machine in characters; nothing where it is broader than the lines, for a picture does not wrap."""
    from configgen.report.drawing import draw
    from configgen.report.sketch import sketch

    drawing = draw(audited.survey, audited.plan)
    if columns is not None and drawing.width > columns:
        return []
    lines = sketch(drawing)
    while lines and not lines[-1].text:
        del lines[-1]
    return lines
