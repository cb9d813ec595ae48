"""What every report of an audit tells beside its findings, as rows: machine, plan, changes, next steps. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from configgen.audited import Audited
from configgen.comparison import Comparison
from configgen.plan import Plan
from configgen.report.comparison import difference_rows, judgement_rows
from configgen.report.findings import kinds
from configgen.report.lines import gpus_line, islands_line, measured_line
from configgen.unchecked import unchecked
from probe.errors import one_line
from probe.finding import Severity
from probe.measurement import Survey
from probe.units import count, figure, seconds, some

HEADINGS = {Severity.FAILURE: "Failures", Severity.WARNING: "Warnings", Severity.INFO: "Good to know"}
"""The gravest first."""


def machine_facts(survey: Survey) -> Iterator[tuple[str, str]]:
    """What was audited, as short rows: host, GPUs, wires, when measured."""
    names = [one_line(node.hostname, 60) for node in survey.topology.nodes if node.hostname]
    if names:
        yield "host", some(names, 4)
    yield "GPUs", gpus_line(survey.topology)
    yield "wires", islands_line(survey.topology)
    drivers = dict.fromkeys(one_line(node.driver_version, 30) for node in survey.topology.nodes if node.driver_version)
    if drivers:
        yield "driver", some(list(drivers), 4)
    yield "measured", (measured_line(survey) or "nothing").removeprefix("measured ")


def plan_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """The plan in a few rows; `wirelore plan` tells all of it."""
    p, told = plan.parallelism, plan.predictions
    yield "plan", f"{p.label} on {count(p.gpus, 'GPU')}, confidence {plan.confidence}"
    if told.ttft_s is not None and told.tpot_s is not None and told.output_tokens_per_s_per_gpu is not None:
        speed = f"{figure(told.output_tokens_per_s_per_gpu)} tokens/s per GPU"
        yield "gives", f"first token {seconds(told.ttft_s)}, per token {seconds(told.tpot_s)}, {speed}"
    yield from (("degraded", one_line(text)) for text in plan.degraded)


def changes(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """The verdict, what differs from the baseline, and what that does to its numbers."""
    yield "A, the baseline", one_line(comparison.a.name, 80)
    yield "B, audited here", one_line(comparison.b.name, 80)
    yield "verdict", comparison.verdict
    rows, left = difference_rows(comparison)
    for what, a, b, speed, _ in rows:
        yield what, f"{a} -> {b}" + (f" (speed {speed})" if speed else "")
    if left:
        yield "", left
    yield from judgement_rows(comparison)


def silences(survey: Survey) -> Iterator[tuple[str, str]]:
    """(Why, what) could not be checked, each reason once."""
    reasons: dict[str, list[str]] = {}
    for one in unchecked(survey):
        reasons.setdefault(one.why, []).append(one.what)
    yield from ((why, "; ".join(whats)) for why, whats in reasons.items())


def next_steps(audited: Audited) -> Iterator[str]:
    """What to do now, the most useful first."""
    grave = [kind for kind in kinds(audited) if kind.severity is not Severity.INFO]
    if grave:
        yield f"Begin with {grave[0].code}: {grave[0].cases[0].cure}"
    if not audited.survey.is_measured or audited.survey.lab is not None:
        yield "Measure, on the machine itself: wirelore audit --measure"
    elif grave:
        yield "Then see whether it helped: wirelore audit --measure"
    elif audited.comparison is None:
        yield "Keep this as what is normal here: wirelore audit -o baseline.json; later --baseline baseline.json"
