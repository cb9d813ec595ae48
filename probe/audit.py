"""Survey -> findings: is this machine what its hardware should be, and what to fix where it is not. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from probe.checks.driver import driver
from probe.checks.measured import measured
from probe.finding import Finding, gravest_first
from probe.measurement import Survey

Check = Callable[[Survey], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (driver, measured)


def audit(survey: Survey) -> tuple[Finding, ...]:
    """What every check finds, the gravest first."""
    return gravest_first(tuple(found for check in CHECKS for found in check(survey)))
