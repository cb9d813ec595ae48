"""What two measurements of one machine say of each other: a figure that falls short once accuses nobody. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from probe.finding import Finding, Severity, gravest_first
from probe.topology import Provenance

_Place = tuple[object, ...]


def wants_another(findings: Sequence[Finding]) -> bool:
    """Whether a second measurement could acquit somebody."""
    return any(_is_judged(found) for found in findings)


def of_two(first: Sequence[Finding], second: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings after a second measurement: a measured figure counts where it falls short in both.

    One that falls short once becomes an info that says so. A measured failure that is no figure (wrong data, growing
    error counters) happened, so one sight of it is enough. All else is as the second measurement's survey has it.
    """
    both = _places(first, _is_judged) & _places(second, _is_judged)
    again = _places(second, lambda found: True)
    kept = [found if not _is_judged(found) or _place(found) in both else _once(found, "second") for found in second]
    for found in first:
        if _is_judged(found):
            kept += [_once(found, "first")] if _place(found) not in both else []
        elif found.provenance is Provenance.MEASURED and found.severity is Severity.FAILURE:
            kept += [found] if _place(found) not in again else []
    return gravest_first(tuple(kept))


def _is_judged(found: Finding) -> bool:
    """Whether a measured figure was held against a bar and fell short of it."""
    measured = found.provenance is Provenance.MEASURED and found.value is not None
    return measured and found.severity is not Severity.INFO


def _place(found: Finding) -> _Place:
    return found.code, found.node, found.gpus, found.nics


def _places(findings: Sequence[Finding], counts: Callable[[Finding], bool]) -> set[_Place]:
    return {_place(found) for found in findings if counts(found)}


def _once(found: Finding, which: str) -> Finding:
    return replace(found, severity=Severity.INFO, seen=f"only in the {which} of two measurements: {found.seen}")
