"""What a survey measured, as a picture asks for it: of a pair, of a group, of a GPU's own PCIe port. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from probe.curve import profiles
from probe.measurement import Curve, Survey
from probe.stability import WIDE
from probe.statistics import median
from probe.topology import GpuRef
from probe.units import figure

T = TypeVar("T", bound=Hashable)

_EQUAL = 0.03
_HOST_RATES = ("h2d",)


@dataclass(frozen=True, slots=True, order=True)
class Speed:
    """A bandwidth in 1e9 bytes/s; `at_least` where a larger message would still have been faster."""

    gbps: float
    at_least: bool = False

    @property
    def text(self) -> str:
        return (">" if self.at_least else "") + figure(self.gbps)


def span(speeds: Iterable[Speed]) -> str | None:
    """'25.1', '18.2-25.1' where they differ; None without any."""
    known = sorted(speeds)
    if not known:
        return None
    low, high = known[0], known[-1]
    return low.text if high.gbps <= low.gbps * (1 + _EQUAL) else f"{figure(low.gbps)}-{high.text}"


def late(speed: Speed, equals: Sequence[Speed]) -> bool:
    """Whether it is slower than the middle of its equals, by more than a plan notices."""
    return len(equals) > 1 and speed.gbps < (1 - WIDE) * median([one.gbps for one in equals])


@dataclass(frozen=True)
class Speeds:
    """By GPUs. Of pairs the slower direction; of collectives busbw of the only group that ran."""

    pairs: Mapping[tuple[GpuRef, GpuRef], Speed]
    """GB/s from GPU to GPU; `all_reduces` tells of pairs without such."""
    all_reduces: Mapping[frozenset[GpuRef], Speed]
    hosts: Mapping[GpuRef, Speed]
    """From the host's memory to the GPU."""

    def pair(self, a: GpuRef, b: GpuRef) -> Speed | None:
        """Point to point, else as an all-reduce of the two."""
        return self.pairs.get((min(a, b), max(a, b))) or self.all_reduces.get(frozenset((a, b)))

    @property
    def is_empty(self) -> bool:
        return not (self.pairs or self.all_reduces or self.hosts)


def speeds(survey: Survey, alike: Mapping[int, int]) -> Speeds:
    """`alike` maps each node to the one that is drawn for it; of all that are alike, the slowest counts."""
    pairs: dict[tuple[GpuRef, GpuRef], Speed] = {}
    groups: dict[frozenset[GpuRef], Speed] = {}
    wanted = [curve for curve in survey.curves if _counts(curve)]
    read = profiles(wanted)
    for curve in wanted:
        profile = read[id(curve)]
        members = [_shown(ref, alike) for ref in curve.members] if _inside(curve) else list(curve.members)
        if curve.key.operation == "p2p":
            pair = (min(members), max(members))
            _keep(pairs, pair, Speed(profile.plateau_algbw_gbps, profile.is_rising))
        else:
            _keep(groups, frozenset(members), Speed(profile.plateau_busbw_gbps, profile.is_rising))
    hosts: dict[GpuRef, Speed] = {}
    for rate in survey.rates:
        if rate.kind in _HOST_RATES and rate.gpu.node in alike:
            _keep(hosts, _shown(rate.gpu, alike), Speed(rate.value))
    return Speeds(pairs, groups, hosts)


def _counts(curve: Curve) -> bool:
    key = curve.key
    if key.graph or key.p2p_enabled is False or key.group.concurrent_groups != 1 or len(curve.members) < 2:
        return False
    return key.operation == "all_reduce" or (key.operation == "p2p" and key.direction != "both")


def _inside(curve: Curve) -> bool:
    return len({ref.node for ref in curve.members}) == 1


def _shown(ref: GpuRef, alike: Mapping[int, int]) -> GpuRef:
    return GpuRef(alike.get(ref.node, ref.node), ref.gpu)


def _keep(found: dict[T, Speed], key: T, speed: Speed) -> None:
    found[key] = min(speed, found.get(key, speed))
