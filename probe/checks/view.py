"""A node as the checks of the driver's facts look at it. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

from probe.catalog import GpuFigures, gpu_figures
from probe.checks.codes import CODES
from probe.errors import one_line
from probe.finding import Finding, Severity
from probe.topology import GpuRef, GpuStatus, Node, NodeShape, PathKind, Provenance, Topology
from probe.units import ranges, some

_T = TypeVar("_T", bound=Hashable)

LONGEST = 1000
"""Characters of what was seen: names and reasons come from drivers and files."""

figures_of = lru_cache(maxsize=256)(gpu_figures)
"""The catalog's figures of a driver's name; a cluster asks for the same name thousands of times."""


@dataclass(frozen=True)
class View:
    """One node of a topology. GPUs are named by their index."""

    topology: Topology
    number: int

    @property
    def node(self) -> Node:
        return self.topology.nodes[self.number]

    @property
    def shape(self) -> NodeShape:
        return self.node.shape

    @property
    def is_virtual(self) -> bool:
        """Levels, NUMA nodes and P2P may be the hypervisor's choice, and links may lead to GPUs of others."""
        return self.node.virtualization not in (None, "bare")

    @cached_property
    def whole(self) -> tuple[int, ...]:
        """GPUs that answer and are not cut into MIG instances: those that can have NVLink and P2P."""
        return tuple(i for i, gpu in enumerate(self.node.gpus) if gpu.status is GpuStatus.OK and not gpu.mig_instances)

    @cached_property
    def peers(self) -> dict[int, tuple[int, ...]]:
        """The GPUs that NVLink joins with each."""
        found: dict[int, list[int]] = {i: [] for i in range(len(self.node.gpus))}
        for a, b, path in self.shape.pairs:
            if path.kind is PathKind.NVLINK:
                found[a].append(b)
                found[b].append(a)
        return {i: tuple(others) for i, others in found.items()}

    def figures(self, gpu: int) -> GpuFigures | None:
        return figures_of(self.shape.gpus[gpu].name)

    def models(self) -> dict[str, list[int]]:
        """Whole GPUs by the name that their driver tells; those without one are left out."""
        return grouped({i: name for i in self.whole if (name := self.shape.gpus[i].name)})

    def found(
        self,
        code: str,
        seen: str,
        *,
        gpus: Iterable[int] = (),
        nics: Iterable[str] = (),
        fact: str = "gpus",
        severity: Severity | None = None,
        cure: str | None = None,
        expected: tuple[str, str] | None = None,
        judged: tuple[float, float, str] | None = None,
    ) -> Finding:
        """What the code says usually stands where the case says nothing of its own. `fact` names what it rests on, as
        in Topology.provenance; `expected` is (what, on whose word), `judged` is (value, bar, unit)."""
        value, bar, unit = judged or (None, None, None)
        return Finding(
            code=code,
            severity=severity or CODES[code].severity,
            seen=one_line(seen, LONGEST),
            cure=cure or CODES[code].cure,
            provenance=self._provenance(fact),
            expected=one_line(expected[0], LONGEST) if expected else None,
            source=expected[1] if expected else None,
            node=self.number,
            gpus=tuple(GpuRef(self.number, i) for i in gpus),
            nics=tuple(nics),
            value=value,
            bar=bar,
            unit=unit,
        )

    def _provenance(self, fact: str) -> Provenance:
        told = {o.fact: o.provenance for o in self.topology.provenance if o.node in (None, self.number)}
        return next((told[f] for f in (fact, fact.partition(".")[0], "paths") if f in told), Provenance.READ)


def grouped(values: Mapping[int, _T]) -> dict[_T, list[int]]:
    """Each value with those that have it."""
    groups: dict[_T, list[int]] = {}
    for i, value in values.items():
        groups.setdefault(value, []).append(i)
    return groups


def gpus(members: Iterable[int], one: str = "", many: str = "") -> str:
    """([3], 'has', 'have') -> 'GPU 3 has'; several: 'GPUs 0-7 have'."""
    listed = tuple(members)
    return f"GPU{'s' if len(listed) > 1 else ''} {ranges(listed)} {many if len(listed) > 1 else one}".rstrip()


def pairs(listed: Iterable[tuple[int, int]]) -> str:
    """'0-1, 2-3 and 4 more'."""
    return some([f"{a}-{b}" for a, b in listed])


def ends(listed: Iterable[tuple[int, int]]) -> list[int]:
    """The GPUs of these pairs, each once."""
    return sorted({i for pair in listed for i in pair})
