"""What is told of one kind of finding. Frozen, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from probe.finding import Severity
from probe.topology import require


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of finding. `severity` is the usual one; `source` is a document, a thread or a tool that says so."""

    severity: Severity
    title: str
    meaning: str
    evidence: str
    cure: str
    source: str

    def __post_init__(self) -> None:
        require(all((self.title, self.meaning, self.evidence, self.cure, self.source)), "a code is told in full")
