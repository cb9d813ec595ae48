"""All that a report of an audit shows: the machine, its findings, the plan for it and what changed. Frozen, no I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from configgen.comparison import Comparison
from configgen.plan import Plan
from probe.checks.reading import is_of_gpus
from probe.finding import Finding, Severity
from probe.measurement import Survey
from probe.units import count

AUDIT_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Audited:
    """A survey with its findings, the gravest first. `comparison` is with the baseline as A and this survey as B."""

    survey: Survey
    findings: tuple[Finding, ...]
    audited_at: str
    """ISO 8601, in UTC."""
    plan: Plan | None = None
    comparison: Comparison | None = None

    @property
    def worst(self) -> Severity | None:
        """None where nothing was found."""
        return max((found.severity for found in self.findings), key=lambda s: s.weight, default=None)

    @property
    def verdict(self) -> str:
        """One line: 'as it should be', '1 failure, 2 warnings', 'nothing found, and nothing was measured'."""
        found = Counter(finding.severity for finding in self.findings)
        grave = [count(found[s], s.value) for s in (Severity.FAILURE, Severity.WARNING) if found[s]]
        if grave:
            return ", ".join(grave)
        return "as it should be" if self.is_measured else "nothing found, and nothing was measured"

    @property
    def is_measured(self) -> bool:
        """Whether figures are of these GPUs: a lab's are of a CPU, and so are those of gloo."""
        survey = self.survey
        return survey.lab is None and bool(survey.rates or any(is_of_gpus(curve) for curve in survey.curves))

    @property
    def passes(self) -> bool:
        """Whether `--strict` ends with 0: neither a failure nor a warning."""
        return self.worst in (None, Severity.INFO)
