"""The measured side of the audit: what the machine reached, against its wires' expectation and against its equals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from probe.checks.bandwidth import bandwidth
from probe.checks.gaps import gaps
from probe.checks.rates import rates
from probe.checks.reading import Reading, finding
from probe.checks.siblings import siblings
from probe.checks.used import used
from probe.errors import one_line
from probe.finding import Finding
from probe.measurement import Survey

_Part = Callable[[Reading], Iterator[Finding]]

_PARTS: tuple[_Part, ...] = (bandwidth, siblings, used, rates, gaps)
_BESIDE_CURVES: tuple[_Part, ...] = (used, rates)


def measured(survey: Survey, parts: tuple[_Part, ...] = _PARTS) -> Iterator[Finding]:
    """Nothing of a survey without figures; one info of a lab's, whose figures are no GPU's."""
    if survey.lab is not None:
        seen = f"the figures are not of these GPUs: {one_line(survey.lab, 200)}"
        yield finding("lab-survey", seen)
    elif survey.is_measured or survey.verifications:
        reading = Reading(survey)
        for part in parts:
            yield from part(reading)


def measured_beside_curves(survey: Survey) -> Iterator[Finding]:
    """What its rates and its library's log show."""
    return measured(survey, _BESIDE_CURVES)
