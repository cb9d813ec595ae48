"""An audit as lines of up to 100 columns for whoever stands at the machine at 3 a.m.: the verdict first. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from configgen.audited import Audited
from configgen.report.findings import Case, Kind, kinds
from configgen.report.sections import HEADINGS, changes, machine_facts, next_steps, plan_facts, silences
from configgen.report.table import Line
from probe.errors import one_line, printable
from probe.finding import Severity
from probe.units import count, some

WIDTH = 100
_FACT = 8
_WIDEST_LABEL = 34
_MOST_CASES = 6
_MOST_PLACES = 8
_MOST_INFOS = 12
_ROLES = {Severity.FAILURE: "loud", Severity.WARNING: "warn", Severity.INFO: ""}


def audit_lines(audited: Audited, picture: Sequence[Line] = ()) -> list[Line]:
    """Verdict, machine, its picture, findings with their cures, the plan, what changed, what was not checked, what to
    do next."""
    plan, compared = audited.plan, audited.comparison
    parts = (
        _header(audited),
        picture,
        _findings(audited),
        _rows(f"Plan for {one_line(plan.model.name, 80)}", plan_facts(plan)) if plan is not None else (),
        _rows("Against the baseline", changes(compared)) if compared is not None else (),
        _rows("Not checked", [("", f"{what} ({why})") for why, what in silences(audited.survey)], "dim"),
        _rows("Next", [("", step) for step in next_steps(audited)]),
    )
    return [line for part in parts for line in part]


def _header(audited: Audited) -> Iterator[Line]:
    role = "good" if audited.passes else "loud" if audited.worst is Severity.FAILURE else "warn"
    yield Line(audited.verdict[:1].upper() + audited.verdict[1:], role)
    loud = audited.survey.lab is not None
    for label, text in machine_facts(audited.survey):
        yield from _row(label, text, "loud" if loud and label == "measured" else "")
    yield from _row("audited", audited.audited_at)


def _findings(audited: Audited) -> Iterator[Line]:
    found = kinds(audited)
    for severity in HEADINGS:
        several = [kind for kind in found if kind.severity is severity]
        if several:
            yield from (Line(""), Line(HEADINGS[severity], "title"))
        most = _MOST_INFOS if severity is Severity.INFO else len(several)
        for kind in several[:most]:
            yield from _kind(kind, _ROLES[severity])
        if len(several) > most:
            yield Line(f"  and {count(len(several) - most, 'more kind')}: --format json", "dim")


def _kind(kind: Kind, role: str) -> Iterator[Line]:
    yield from _wrapped(f"{kind.code}: {kind.title}", 2, role)
    cures = {case.cure for case in kind.cases}
    for case in kind.cases[:_MOST_CASES]:
        yield from _case(case, cured=len(cures) > 1)
    if len(kind.cases) > _MOST_CASES:
        yield Line(f"    and {len(kind.cases) - _MOST_CASES} more: --format json", "dim")
    if len(cures) == 1:
        yield from _wrapped(f"do: {kind.cases[0].cure}", 4)


def _case(case: Case, *, cured: bool) -> Iterator[Line]:
    where = some(case.places, _MOST_PLACES)
    said = not where or (len(case.places) == 1 and where in case.seen)
    yield from _wrapped(f"{'' if said else where + ': '}{case.seen} [{case.provenance}]", 4)
    if case.expectation is not None:
        yield from _wrapped(f"expected: {case.expectation}", 6, "dim")
    if cured:
        yield from _wrapped(f"do: {case.cure}", 6)


def _rows(heading: str, rows: Iterable[tuple[str, str]], role: str = "") -> Iterator[Line]:
    """Labels in a column of their own width, nothing where there are no rows."""
    told = [(label, text) for label, text in rows if text]
    width = min(max((len(label) for label, _ in told), default=0), _WIDEST_LABEL)
    yield from (Line(""), Line(heading, "title")) if told else ()
    for label, text in told:
        yield from _row(label, text, role, width)


def _row(label: str, text: str, role: str = "", width: int = _FACT) -> Iterator[Line]:
    head = label.ljust(width) + "  " if width else ""
    yield from _wrapped(head + text, 2, role, hanging=len(head) if len(label) <= width else 4)


def _wrapped(text: str, indent: int, role: str = "", *, hanging: int = 4) -> Iterator[Line]:
    lines = textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_on_hyphens=False,
    )
    yield from (Line(line, role) for line in lines)
