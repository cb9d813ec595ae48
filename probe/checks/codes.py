"""Every code that a finding can have: what it means, what shows it, what cures it and who says so. Data."""

from __future__ import annotations

from probe.checks.code import Code as Code
from probe.checks.codes_measured import CODES_MEASURED

CODES: dict[str, Code] = {**CODES_MEASURED}
