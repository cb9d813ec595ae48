"""Findings as cards: those that need the same cure stand on one, the gravest first. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from probe.checks.codes import CODES
from probe.errors import one_line
from probe.finding import Finding, Severity
from probe.topology import Topology
from probe.units import figure, ranges, some

_MOST_SEEN = 8
_GAUGE = 160.0
_A_GPU = re.compile(r"GPUs? [0-9]")


@dataclass(frozen=True, slots=True)
class Gauge:
    """A judged figure against its bar, in units of a drawing `width` wide."""

    filled: float
    bar: float
    told: str
    width: float = _GAUGE


@dataclass(frozen=True, slots=True)
class Seen:
    """One case: what was seen, where, and how far from what had to be."""

    text: str
    where: str
    provenance: str
    gauge: Gauge | None


@dataclass(frozen=True, slots=True)
class Card:
    code: str
    severity: str
    title: str
    cure: str
    seen: tuple[Seen, ...]
    more: int
    """Cases that the card leaves out."""
    expected: tuple[tuple[str, str], ...]
    """(what, on whose word) of the cases, each once."""
    about: str
    """What the code means, whatever the case."""


def cards(findings: Sequence[Finding], topology: Topology) -> list[Card]:
    """Each code and cure once, in the order of the findings."""
    alike: dict[tuple[str, Severity, str], list[Finding]] = {}
    for found in findings:
        alike.setdefault((found.code, found.severity, found.cure), []).append(found)
    return [_card(several, topology) for several in alike.values()]


def _card(several: Sequence[Finding], topology: Topology) -> Card:
    first = several[0]
    known = CODES.get(first.code)
    told = dict.fromkeys((f.expected, f.source) for f in several if f.expected is not None and f.source is not None)
    return Card(
        first.code,
        first.severity.value,
        known.title if known else first.code.replace("-", " ").capitalize(),
        one_line(first.cure, 600),
        tuple(_seen(found, topology) for found in several[:_MOST_SEEN]),
        max(0, len(several) - _MOST_SEEN),
        tuple((one_line(expected, 400), one_line(source, 400)) for expected, source in [*told][:3]),
        known.meaning if known else "",
    )


def _seen(found: Finding, topology: Topology) -> Seen:
    text = one_line(found.seen, 600)
    tells_where = _A_GPU.search(text) is not None and (len(topology.nodes) == 1 or "node" in text)
    return Seen(text, "" if tells_where else _where(found, topology), found.provenance.value, _gauge(found))


def _where(found: Finding, topology: Topology) -> str:
    several = len(topology.nodes) > 1
    parts = [_node(found.node, topology)] if several and found.node is not None else []
    by_node: dict[int, list[int]] = {}
    for ref in sorted(found.gpus):
        by_node.setdefault(ref.node, []).append(ref.gpu)
    for node, gpus in list(by_node.items())[:4]:
        named = f"{'GPUs' if len(gpus) > 1 else 'GPU'} {ranges(gpus)}"
        parts.append(f"{_node(node, topology)} {named}" if several and node != found.node else named)
    parts += ["..."] if len(by_node) > 4 else []
    parts += [f"NIC {some([one_line(nic, 40) for nic in found.nics])}"] if found.nics else []
    return ", ".join(parts)


def _node(node: int, topology: Topology) -> str:
    name = topology.nodes[node].hostname if 0 <= node < len(topology.nodes) else None
    return f"node {node}" + (f" ({one_line(name, 60)})" if name else "")


def _gauge(found: Finding) -> Gauge | None:
    if found.value is None or found.bar is None or found.unit is None or min(found.value, found.bar) < 0:
        return None
    whole = max(found.value, found.bar) * 1.15
    if whole <= 0:
        return None
    told = f"{figure(found.value)} where {figure(found.bar)} {one_line(found.unit, 20)} is the bar"
    return Gauge(round(_GAUGE * found.value / whole, 1), round(_GAUGE * found.bar / whole, 1), told)
