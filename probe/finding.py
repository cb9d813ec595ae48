"""One verdict of the audit: what was seen, what was expected and who says so, what to do. Frozen, no I/O."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum

from probe.topology import GpuRef, Provenance, require

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)


class Severity(str, Enum):
    """A failure costs results or makes them wrong, a warning costs speed or certainty, an info is good to know."""

    INFO = "info"
    WARNING = "warning"
    FAILURE = "failure"

    @property
    def weight(self) -> int:
        """0 for an info, 2 for a failure."""
        return [*Severity].index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """A stable `code` (docs/findings.md tells of each), and the case at hand in words.

    `seen` and `cure` are one line each. `expected` says in words what such hardware should show, `source` who says so;
    both or none. `subject` is what was measured ('hbm_read'), where a figure was. `gpus` and `nics` are
    where it is (none: the whole node, or without a `node` the whole survey). Where a figure was judged, `value` and
    `bar` hold it and what it had to reach, in `unit`. `provenance` is that of what was seen.
    """

    code: str
    severity: Severity
    seen: str
    cure: str
    provenance: Provenance
    expected: str | None = None
    source: str | None = None
    node: int | None = None
    gpus: tuple[GpuRef, ...] = ()
    nics: tuple[str, ...] = ()
    value: float | None = None
    bar: float | None = None
    unit: str | None = None
    subject: str | None = None

    def __post_init__(self) -> None:
        require(_CODE.fullmatch(self.code) is not None, f"a code is words and hyphens, not {self.code!r}")
        require(bool(self.seen) and bool(self.cure), "a finding says what was seen and what to do")
        require((self.expected is None) == (self.source is None), "who expects something says on whose word")
        judged = (self.value, self.bar, self.unit)
        require(all(x is None for x in judged) or None not in judged, "a judged figure has a value, a bar and a unit")
        require(all(math.isfinite(x) for x in (self.value, self.bar) if x is not None), "judged figures are finite")


def gravest_first(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Failures, then warnings, then infos; in each the order that they were found in."""
    return tuple(sorted(findings, key=lambda found: -found.severity.weight))
