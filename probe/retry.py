"""What two measurements of one machine say of each other: a figure that falls short once accuses nobody. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from probe.finding import Finding, Severity, gravest_first
from probe.topology import Provenance


def wants_another(findings: Sequence[Finding]) -> bool:
    """Whether a second measurement could acquit somebody."""
    return any(_is_judged(found) for found in findings)


def of_two(first: Sequence[Finding], second: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings after a second measurement: a measured figure counts where it falls short in both.

    One that falls short once becomes an info that says so. A measured failure that is no figure (wrong data, growing
    error counters) happened, so one sight of it is enough. All else is as the second measurement's survey has it.
    """
    before, after = ([found for found in findings if _is_judged(found)] for findings in (first, second))
    kept = [found if not _is_judged(found) or _is_among(found, before) else _once(found, "second") for found in second]
    for found in first:
        if _is_judged(found):
            kept += [] if _is_among(found, after) else [_once(found, "first")]
        elif found.provenance is Provenance.MEASURED and found.severity is Severity.FAILURE:
            kept += [] if _is_among(found, second) else [found]
    return gravest_first(tuple(kept))


def _is_judged(found: Finding) -> bool:
    """Whether a measured figure was held against a bar and fell short of it."""
    measured = found.provenance is Provenance.MEASURED and found.value is not None
    return measured and found.severity is not Severity.INFO


def _is_among(found: Finding, others: Sequence[Finding]) -> bool:
    """Whether another finding tells of the same: a finding may name all that are slow, so GPUs in common are enough."""
    return any(
        (other.code, other.nics) == (found.code, found.nics)
        and (other.gpus == found.gpus or not set(other.gpus).isdisjoint(found.gpus))
        for other in others
    )


def _once(found: Finding, which: str) -> Finding:
    return replace(found, severity=Severity.INFO, seen=f"only in the {which} of two measurements: {found.seen}")
