"""Survey -> findings: is this machine what its hardware should be, and what to fix where it is not. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from probe.checks.driver import driver
from probe.checks.measured import measured, measured_beside_curves
from probe.finding import Finding, gravest_first
from probe.measurement import Survey

Check = Callable[[Survey], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (driver, measured)


def audit(survey: Survey) -> tuple[Finding, ...]:
    """What every check finds, the gravest first."""
    return _found(CHECKS, survey)


def audit_beside_curves(survey: Survey) -> tuple[Finding, ...]:
    """All but what its curves show, and whether any are missing: that takes longer than the rest together."""
    return _found(tuple(measured_beside_curves if check is measured else check for check in CHECKS), survey)


def _found(checks: tuple[Check, ...], survey: Survey) -> tuple[Finding, ...]:
    return gravest_first(tuple(found for check in checks for found in check(survey)))
