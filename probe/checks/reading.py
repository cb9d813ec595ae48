"""A survey as the checks of the measured side read it: the curves of GPUs, their best rounds, their names. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from probe.checks.codes_measured import CODES_MEASURED
from probe.checks.expectation import Expectation, expectation
from probe.checks.group import is_known
from probe.curve import Profile, bus_factor, profiles
from probe.errors import one_line
from probe.finding import Finding, Severity
from probe.measurement import Curve, CurveKey, Sample, Survey
from probe.statistics import median
from probe.topology import GpuRef, Provenance, Topology
from probe.units import ranges

Expect = Callable[[Topology, CurveKey, Sequence[GpuRef]], Expectation | None]


@dataclass(frozen=True)
class Reading:
    """One survey, read once for all checks."""

    survey: Survey

    @property
    def topology(self) -> Topology:
        return self.survey.topology

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Those of GPUs that the topology has: what gloo moved went through CPUs."""
        return tuple(
            curve
            for curve in self.survey.curves
            if curve.key.backend in ("nccl", "rccl")
            and curve.members
            and all(is_known(self.topology, ref) for ref in curve.members)
        )

    @cached_property
    def profiles(self) -> dict[int, Profile]:
        """By the id of their curve."""
        return profiles(self.curves)

    @cached_property
    def nvls_used(self) -> bool | None:
        """Whether NCCL reduced in the switch, by its own log; None where that does not say.

        'not available' settles it; else what it chose for large all-reduces, which the log tells if time sufficed.
        """
        told = {one.value for one in self.survey.evidence if one.what == "nvls"}
        if told == {"not available"}:
            return False
        chosen = [e.value for e in self.survey.evidence if e.what == "algorithm" and e.operation == "all_reduce"]
        if any(value.startswith("NVLS") for value in chosen):
            return True
        return False if any(_largest_bytes(value) >= _LARGE_BYTES for value in chosen) else None

    def expected(self, curve: Curve) -> Expectation | None:
        """What such wires should give, without NVLS where NCCL's log says that it was not used."""
        return self._expectations[id(curve)]

    @cached_property
    def _expectations(self) -> dict[int, Expectation | None]:
        expect = expecting(self.survey)
        return {id(c): expect(self.topology, c.key, c.members) for c in self.curves}


def expecting(survey: Survey) -> Expect:
    """`expectation`, without NVLS where NCCL's own log says that it was not used."""
    without = Reading(survey).nvls_used is False
    return lambda topology, key, members: expectation(topology, replace(key, nvls=False) if without else key, members)


_LARGE_BYTES = 64 << 20


def _largest_bytes(choice: str) -> int:
    """'RING/SIMPLE 1024-1048576 B' -> 1048576; 0 where it is nothing such."""
    number = choice.removesuffix(" B").rpartition(" ")[2].rpartition("-")[2]
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 20 else 0


def best_s(sample: Sample) -> float:
    """The median of the best round: what the wires can do when nothing disturbs them."""
    return min(median(one) for one in sample.rounds_s)


def busbw(curve: Curve, size_bytes: int, time_s: float) -> float:
    """In 1e9 bytes/s."""
    return bus_factor(curve.key.operation, curve.ranks) * size_bytes / time_s / 1e9


def named(members: Sequence[GpuRef], topology: Topology) -> str:
    """'GPUs 0-3', 'node 2 GPUs 0,4', 'GPUs 0-7 of nodes 0-1'."""
    gpus = sorted({ref.gpu for ref in members})
    nodes = sorted({ref.node for ref in members})
    what = f"GPU{'s' if len(gpus) > 1 else ''} {ranges(gpus)}"
    if len(topology.nodes) == 1:
        return what
    return f"node {nodes[0]} {what}" if len(nodes) == 1 else f"{what} of nodes {ranges(nodes)}"


def label(curve: Curve) -> str:
    """'all_reduce of GPUs' without whom: 'p2p both without P2P', 'all_reduce, 2 groups at once'."""
    key = curve.key
    words = [key.operation, key.direction or "", "in a graph" if key.graph else ""]
    words += ["without P2P"] if key.p2p_enabled is False else []
    text = " ".join(word for word in words if word)
    at_once = key.group.concurrent_groups
    return f"{text}, {at_once} groups at once," if at_once > 1 else text


def finding(
    code: str,
    seen: str,
    *,
    severity: Severity | None = None,
    cure: str | None = None,
    expected: tuple[str, str] | None = None,
    gpus: Sequence[GpuRef] = (),
    nics: Sequence[str] = (),
    judged: tuple[float, float, str] | None = None,
) -> Finding:
    """What the code says usually stands where the case says nothing of its own. `expected` is (what, on whose word),
    `judged` is (value, bar, unit)."""
    nodes = {ref.node for ref in gpus}
    value, bar, unit = judged or (None, None, None)
    return Finding(
        code=code,
        severity=severity or CODES_MEASURED[code].severity,
        seen=one_line(seen, 600),
        cure=cure or CODES_MEASURED[code].cure,
        provenance=Provenance.MEASURED,
        expected=expected[0] if expected else None,
        source=expected[1] if expected else None,
        node=min(nodes) if len(nodes) == 1 else None,
        gpus=tuple(gpus),
        nics=tuple(nics),
        value=value,
        bar=bar,
        unit=unit,
    )
