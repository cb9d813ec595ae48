"""What drivers and hosts say, judged: by the topology's facts first, and by what its sources noticed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from probe.checks.fabric import fabric
from probe.checks.gpus import gpus_of_all, gpus_of_node
from probe.checks.nics import nics
from probe.checks.notices import lifted, named_pairs
from probe.checks.nvlink import nvlink
from probe.checks.pcie import pcie
from probe.checks.view import View
from probe.finding import Finding
from probe.measurement import Survey
from probe.topology import GpuRef, Topology

OF_NODE: tuple[Callable[[View], Iterator[Finding]], ...] = (gpus_of_node, fabric, nvlink, pcie, nics)

_SAYS_TOO = {
    "nvlink-absent": {"degraded-links", "nvlink-no-bridge"},
    "bridge-absent": {"degraded-links", "nvlink-no-bridge"},
    "fabric-failed": {"split-island"},
    "gpus-missing": {"container-sees-part"},
}
"""A finding from the facts, and the notices of other codes that tell the same less well."""


def driver(survey: Survey) -> Iterator[Finding]:
    """Nothing twice: a notice that the facts themselves tell is left out, and what many nodes tell alike is one."""
    own = tuple(by_facts(survey.topology))
    yield from folded((*own, *_not_told(lifted(survey), own)))


def by_facts(topology: Topology) -> Iterator[Finding]:
    """Needs no source to have noticed anything."""
    for number in range(len(topology.nodes)):
        view = View(topology, number)
        for check in OF_NODE:
            yield from check(view)
    if len(topology.nodes) > 1:
        yield from gpus_of_all(topology)


def _not_told(notices: Iterable[Finding], own: tuple[Finding, ...]) -> Iterator[Finding]:
    for notice in notices:
        same = [
            found
            for found in own
            if notice.code in (found.code, *_SAYS_TOO.get(found.code, ())) and notice.node in (None, found.node)
        ]
        told = {ref for found in same for ref in found.gpus}
        if not same or not _covers(told, notice):
            yield notice


def _covers(told: set[GpuRef], notice: Finding) -> bool:
    """An accused GPU accounts for each of its bonds; a bond between two that nobody accuses is another fault."""
    bonds = named_pairs(notice.seen)
    if bonds:
        accused = {ref.gpu for ref in told}
        return all(a in accused or b in accused for a, b in bonds)
    return told.issuperset(notice.gpus)


def folded(findings: Iterable[Finding]) -> Iterator[Finding]:
    """What several nodes tell in the same words, once, with all their GPUs and NICs."""
    groups: dict[Finding, list[Finding]] = {}
    for found in findings:
        groups.setdefault(replace(found, node=None, gpus=(), nics=()), []).append(found)
    for members in groups.values():
        nodes = {found.node for found in members}
        if len(nodes) == 1 or None in nodes:
            yield from dict.fromkeys(members)
            continue
        yield replace(
            members[0],
            seen=f"{members[0].seen} (so on {len(nodes):,} nodes)",
            node=None,
            gpus=tuple(dict.fromkeys(ref for found in members for ref in found.gpus)),
            nics=tuple(dict.fromkeys(nic for found in members for nic in found.nics)),
        )
