"""A code of the audit has a pair of surveys: one that shows it, and one of the same kind that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from probe.audit import audit
from probe.checks.codes import CODES
from probe.finding import Finding
from probe.measurement import Survey
from probe.topology import Topology

Made = Callable[[], Survey | Topology]


@dataclass(frozen=True)
class Case:
    """Both are made when they are asked for, so that a table of cases costs nothing to import."""

    code: str
    shows: Made
    hides: Made


def findings_of(made: Survey | Topology, code: str | None = None) -> list[Finding]:
    """What the audit finds; of one code, if it is given. Every code is one that is documented."""
    found = audit(made if isinstance(made, Survey) else Survey(made))
    assert {one.code for one in found} <= CODES.keys()
    return [one for one in found if code in (None, one.code)]


def finding_of(made: Survey | Topology, code: str) -> Finding:
    """The only finding of this code."""
    (found,) = findings_of(made, code)
    return found


def check_pair(case: Case) -> None:
    """The body of a test that is parametrised by cases."""
    assert findings_of(case.shows(), case.code), f"{case.code} is not found where it should be"
    hidden = findings_of(case.hides(), case.code)
    assert not hidden, f"{case.code} is found where it should not be: {hidden[0].seen}"


def check_complete(cases: Iterable[Case], codes: Iterable[str]) -> None:
    """Each of these codes has its case, and each case its code."""
    told = [case.code for case in cases]
    assert sorted(told) == sorted(set(codes)), set(told) ^ set(codes)
