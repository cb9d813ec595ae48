"""Findings for people: where each is, those of one kind together, and what is alike said once. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from configgen.audited import Audited
from probe.checks.codes import CODES
from probe.errors import one_line
from probe.finding import Finding, Severity
from probe.topology import Topology
from probe.units import count, ranges, some

_MOST_TEXT = 600


@dataclass(frozen=True, slots=True)
class Case:
    """What was found alike in one or more places; every text is one clean line."""

    places: tuple[str, ...]
    """'GPUs 0-3', 'node 2 (host) NIC mlx5_0'; empty: all that there is."""
    seen: str
    provenance: str
    expected: str | None
    source: str | None
    cure: str

    @property
    def expectation(self) -> str | None:
        """'450 GB/s (NVIDIA H100 datasheet)'."""
        return None if self.expected is None else f"{self.expected} ({self.source})"


@dataclass(frozen=True, slots=True)
class Kind:
    """All findings of one code and one severity."""

    code: str
    severity: Severity
    title: str
    cases: tuple[Case, ...]


def kinds(audited: Audited) -> tuple[Kind, ...]:
    """The gravest first, else in the order that they were found in."""
    found: dict[tuple[Severity, str], dict[Case, list[str]]] = {}
    for one in audited.findings:
        case = Case(
            (),
            one_line(one.seen, _MOST_TEXT),
            one.provenance.value,
            None if one.expected is None else one_line(one.expected, _MOST_TEXT),
            None if one.source is None else one_line(one.source, _MOST_TEXT),
            one_line(one.cure, _MOST_TEXT),
        )
        where = place(one, audited.survey.topology)
        found.setdefault((one.severity, one.code), {}).setdefault(case, []).extend([where] if where else [])
    ordered = sorted(found.items(), key=lambda item: -item[0][0].weight)
    return tuple(
        Kind(code, severity, title(code), tuple(replace(case, places=tuple(places)) for case, places in cases.items()))
        for (severity, code), cases in ordered
    )


def title(code: str) -> str:
    """What the code is called in docs/findings.md; a code that is not there is its own title."""
    return CODES[code].title if code in CODES else code.replace("-", " ")


def place(found: Finding, topology: Topology) -> str:
    """'GPU 3', 'GPUs 0-3', 'node 2 (host) NIC mlx5_0', 'nodes 0-3', 'node 1'; '' where nothing else could be meant."""
    several = len(topology.nodes) > 1
    nodes = sorted({ref.node for ref in found.gpus})
    if len(nodes) > 2:
        return f"nodes {ranges(nodes)}: {count(len(found.gpus), 'GPU')}"
    parts = [
        (f"{_node(node, topology)} " if several else "") + _gpus([ref.gpu for ref in found.gpus if ref.node == node])
        for node in nodes
    ]
    if found.nics:
        names = some([one_line(name, 40) for name in found.nics])
        label = f"{'NIC' if len(found.nics) == 1 else 'NICs'} {names}"
        parts.append(f"{_node(found.node, topology)} {label}" if several and found.node is not None else label)
    if not parts and found.node is not None and several:
        return _node(found.node, topology)
    return ", ".join(parts)


def _gpus(gpus: Sequence[int]) -> str:
    return f"GPU {gpus[0]}" if len(gpus) == 1 else f"GPUs {ranges(list(gpus))}"


def _node(node: int, topology: Topology) -> str:
    name = topology.nodes[node].hostname if node < len(topology.nodes) else None
    return f"node {node}" + (f" ({one_line(name, 60)})" if name else "")
