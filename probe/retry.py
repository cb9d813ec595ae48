"""What two measurements of one machine say of each other: a figure that falls short once accuses nobody. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from probe.finding import Finding, Severity, gravest_first
from probe.topology import Provenance
from probe.units import ranges


def wants_another(findings: Sequence[Finding]) -> bool:
    """Whether a second measurement could acquit somebody."""
    return any(_is_judged(found) for found in findings)


def of_two(first: Sequence[Finding], second: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings after a second measurement: a measured figure counts where it falls short in both.

    One that falls short once becomes an info that says so. A measured failure that is no figure (wrong data, growing
    error counters) happened, so one sight of it is enough. All else is as the second measurement's survey has it.
    """
    before, after = ([found for found in findings if _is_judged(found)] for findings in (first, second))
    kept = [_confirmed(found, before) if _is_judged(found) else found for found in second]
    for found in first:
        if _is_judged(found):
            kept += [] if _alike(found, after) else [_once(found, "first")]
        elif found.provenance is Provenance.MEASURED and found.severity is Severity.FAILURE:
            kept += [] if _alike(found, second) else [found]
    return gravest_first(tuple(kept))


def _is_judged(found: Finding) -> bool:
    """Whether a measured figure was held against a bar and fell short of it."""
    measured = found.provenance is Provenance.MEASURED and found.value is not None
    return measured and found.severity is not Severity.INFO


def _confirmed(found: Finding, before: Sequence[Finding]) -> Finding:
    """As the second measurement has it, accusing those alone that fell short in the first one too."""
    same = _alike(found, before)
    if not same:
        return _once(found, "second")
    both = tuple(ref for ref in found.gpus if any(ref in other.gpus for other in same))
    if both == found.gpus:
        return found
    exact = next((other for other in same if other.gpus == both), None)
    if exact is not None:
        return replace(exact, severity=found.severity)
    nodes = {ref.node for ref in both}
    told = f"{found.seen}; in both measurements: GPU{'s' if len(both) > 1 else ''} {ranges([r.gpu for r in both])}"
    return replace(found, seen=told, gpus=both, node=min(nodes) if len(nodes) == 1 else None)


def _alike(found: Finding, others: Sequence[Finding]) -> list[Finding]:
    """Others that tell of the same thing measured: a finding may name all that are slow, so GPUs in common are
    enough."""
    return [
        other
        for other in others
        if (other.code, other.subject, other.nics) == (found.code, found.subject, found.nics)
        and (other.gpus == found.gpus or not set(other.gpus).isdisjoint(found.gpus))
    ]


def _once(found: Finding, which: str) -> Finding:
    return replace(found, severity=Severity.INFO, seen=f"only in the {which} of two measurements: {found.seen}")
