"""What sources and measurements noticed, as findings. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from probe.checks.codes import CODES
from probe.checks.view import LONGEST
from probe.counters import grown
from probe.errors import one_line
from probe.finding import Finding, Severity
from probe.measurement import HealthSnapshot, Survey
from probe.topology import GpuRef, Notice, Provenance, Topology

UNKNOWN = "unknown-notice"
_DISTURBING = frozenset(("gpu-busy",))
"""What spoils figures, and is a GPU's ordinary day where none were taken."""

_END_OF_SENTENCE = re.compile(r"\. (?=[A-Z`])")
_ON_OTHER_NODES = re.compile(r" \(so on [0-9,]{1,9} nodes\)$")
_GPUS = re.compile(r"\bGPUs? ([0-9]{1,4}(?:(?:-|,|, )[0-9]{1,4}){0,64})\b(?: of node ([0-9]{1,4})\b)?")


def lifted(survey: Survey) -> Iterator[Finding]:
    """Every notice of the topology, of the measurement, and of counters that grew and are not told yet."""
    topology = survey.topology
    for notice in topology.warnings:
        found = _finding(notice, topology, _told_by(topology))
        disturbs = survey.is_measured or notice.code not in _DISTURBING
        yield found if disturbs else replace(found, severity=Severity.INFO)
    said = {notice.code for notice in survey.missing}
    fresh = (notice for notice in grown(*before_and_after(survey.health)) if notice.code not in said)
    for notice in (*survey.missing, *fresh):
        yield _finding(notice, topology, Provenance.MEASURED)


def before_and_after(
    health: Iterable[HealthSnapshot],
) -> tuple[tuple[HealthSnapshot, ...], tuple[HealthSnapshot, ...]]:
    """Each GPU's first snapshot, and its last where there is another.

    A GPU with one snapshot beside others of its node with two fell silent; a node with one of each tells nothing.
    """
    by_gpu: dict[GpuRef, list[HealthSnapshot]] = {}
    for snapshot in sorted(health, key=lambda one: one.taken_at):
        by_gpu.setdefault(snapshot.gpu, []).append(snapshot)
    compared = {ref.node for ref, taken in by_gpu.items() if len(taken) > 1}
    before = tuple(taken[0] for ref, taken in by_gpu.items() if ref.node in compared)
    return before, tuple(taken[-1] for ref, taken in by_gpu.items() if ref.node in compared and len(taken) > 1)


def split(message: str) -> tuple[str, str | None]:
    """('what: meaning', 'Cure.'): the first sentence, and the others if there are any."""
    text = one_line(message, LONGEST)
    alike = _ON_OTHER_NODES.search(text)
    text = text[: alike.start()] if alike else text
    end = _END_OF_SENTENCE.search(text)
    seen, cure = (text[: end.start()], text[end.end() :]) if end else (text.removesuffix("."), None)
    return seen + (alike.group() if alike else ""), cure


def named_gpus(text: str, topology: Topology, node: int | None) -> tuple[GpuRef, ...]:
    """The GPUs that a house message names ('GPU 3', 'GPUs 0-3,6', 'GPU 1 of node 2'); those that are not there are
    left out, and without a node none is known."""
    found: dict[GpuRef, None] = {}
    for listed, of_node in _GPUS.findall(text):
        position = int(of_node) if of_node else node
        if position is None or position >= len(topology.nodes):
            continue
        n = len(topology.nodes[position].gpus)
        for part in listed.split(","):
            first, _, last = part.strip().partition("-")
            found |= dict.fromkeys(GpuRef(position, i) for i in range(int(first), min(int(last or first) + 1, n)))
    return tuple(found)


def _finding(notice: Notice, topology: Topology, provenance: Provenance) -> Finding:
    count = len(topology.nodes)
    node = notice.node if notice.node is not None and 0 <= notice.node < count else 0 if count == 1 else None
    is_known = notice.code in CODES
    code = CODES[notice.code if is_known else UNKNOWN]
    seen, cure = split(notice.message if is_known else f"{notice.code}: {notice.message}")
    return Finding(
        code=notice.code if is_known else UNKNOWN,
        severity=code.severity,
        seen=seen or code.title,
        cure=cure or code.cure,
        provenance=provenance,
        node=node,
        gpus=named_gpus(seen, topology, node),
    )


def _told_by(topology: Topology) -> Provenance:
    """A described machine's warnings are its author's words."""
    told = [origin.provenance for origin in topology.provenance]
    return Provenance.READ if not told or Provenance.READ in told else told[0]
