"""Every code that a finding can have: what it means, what shows it, what cures it and who says so. Data."""

from __future__ import annotations

from probe.checks.code import Code as Code
from probe.checks.codes_gpu import CODES_GPU
from probe.checks.codes_host import CODES_HOST
from probe.checks.codes_input import CODES_INPUT
from probe.checks.codes_links import CODES_LINKS
from probe.checks.codes_measured import CODES_MEASURED
from probe.checks.codes_run import CODES_RUN

TOPICS: dict[str, dict[str, Code]] = {
    "Wires: NVLink, fabric, PCIe, P2P, NICs": CODES_LINKS,
    "GPUs": CODES_GPU,
    "The host and what a process sees of it": CODES_HOST,
    "What was measured, against what it should be": CODES_MEASURED,
    "The measurement": CODES_RUN,
    "What the input left open": CODES_INPUT,
}
"""A module per topic, in the order of docs/findings.md; a code belongs to one topic."""

CODES: dict[str, Code] = {name: code for topic in TOPICS.values() for name, code in topic.items()}
