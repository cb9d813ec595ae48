"""Groups and pairs against their equals, a pair's two directions, and P2P against the way through the host. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from probe.checks.folding import Case, accused, folded, one_way, subject
from probe.checks.group import is_known
from probe.checks.reading import Reading, best_s, busbw, finding, label, named
from probe.finding import Finding
from probe.measurement import Curve
from probe.stability import WIDE
from probe.statistics import median
from probe.units import count, figure, message_size, some

ASYMMETRIC = 0.1
"""Assumed: relative difference of a pair's two directions above which it is told, twice what a plan notices."""
_MOST_NAMED = 4
_SOURCE = "the same measurement on this machine"


def siblings(reading: Reading) -> Iterator[Finding]:
    """Also P2P that failed its check: the driver's promise against what was read back."""
    yield from _slow(reading)
    yield from folded(reading, _directions(reading))
    yield from folded(reading, _through_the_host(reading))
    yield from _wrong(reading)


def _slow(reading: Reading) -> Iterator[Finding]:
    """Of equal groups those that are slower than the usual one by more than a plan notices, and beyond their own
    confidence, at the largest size that all of them have. One finding for each kind of group."""
    kinds: dict[Hashable, list[Curve]] = {}
    for curve in reading.curves:
        models = tuple(sorted(reading.topology.gpu(ref).name or "" for ref in curve.members))
        kinds.setdefault((one_way(curve.key), models), []).append(curve)
    for curves in kinds.values():
        size = _common(curves)
        if len(curves) < 2 or size is None:
            continue
        times = {id(curve): _best_at(curve, size) for curve in curves}
        usual_s = median(list(times.values())) if len(curves) > 2 else min(times.values())
        slow = [c for c in curves if times[id(c)] > usual_s / (1 - WIDE) and _surely_above(reading, c, size, usual_s)]
        if not slow:
            continue
        worst = max(slow, key=lambda curve: times[id(curve)])
        value, usual = busbw(worst, size, times[id(worst)]), busbw(worst, size, usual_s)
        seen = f"{label(worst)} of {named(worst.members, reading.topology)} reaches {figure(value)} GB/s"
        seen += f" at {message_size(size)}, equal groups {figure(usual)}"
        gpus, others = accused(reading, worst, slow)
        yield finding(
            "slower-than-siblings",
            seen + others,
            expected=(f"{figure(usual)} GB/s, as {count(len(curves), 'equal group')} usually reach", _SOURCE),
            gpus=gpus,
            judged=(value, usual * (1 - WIDE), "GB/s"),
            subject=subject(worst),
        )


def _directions(reading: Reading) -> Iterator[Case]:
    for forward, backward in _twins(reading, "direction", "forward", "backward"):
        size = _common((forward, backward))
        if size is None:
            continue
        slow, fast = sorted((forward, backward), key=lambda curve: -_best_at(curve, size))
        slow_s, fast_s = _best_at(slow, size), _best_at(fast, size)
        if slow_s * (1 - ASYMMETRIC) > fast_s and _surely_above(reading, slow, size, fast_s):
            value, usual = busbw(slow, size, slow_s), busbw(fast, size, fast_s)
            arrow = _arrow(reading, slow)
            found = finding(
                "asymmetric-bandwidth",
                f"{arrow} carries {figure(value)} GB/s at {message_size(size)}, the way back {figure(usual)}",
                expected=(f"{figure(usual)} GB/s both ways", _SOURCE),
                gpus=slow.members,
                judged=(value, usual * (1 - ASYMMETRIC), "GB/s"),
            )
            yield slow, found


def _through_the_host(reading: Reading) -> Iterator[Case]:
    """P2P that is slower than no P2P: seen where ACS or a host bridge gets in its way."""
    for direct, through in _twins(reading, "p2p_enabled", None, False):
        size = _common((direct, through))
        if size is None:
            continue
        direct_s, host_s = _best_at(direct, size), _best_at(through, size)
        if host_s < direct_s * (1 - WIDE) and _surely_above(reading, direct, size, host_s):
            value, usual = busbw(direct, size, direct_s), busbw(through, size, host_s)
            found = finding(
                "p2p-slower-than-host",
                f"{_arrow(reading, direct)} with P2P {figure(value)} GB/s at {message_size(size)}, without it "
                f"{figure(usual)}",
                expected=(f"{figure(usual)} GB/s and more: P2P saves a copy", _SOURCE),
                gpus=direct.members,
                judged=(value, usual * (1 - WIDE), "GB/s"),
            )
            yield direct, found


def _wrong(reading: Reading) -> Iterator[Finding]:
    wrong = [v for v in reading.survey.verifications if not v.passed]
    if wrong:
        topology = reading.topology
        told = [f"{named([v.source], topology)} -> {named([v.target], topology)}" for v in wrong]
        why = next((f" ({v.detail})" for v in wrong if v.detail), "")
        whole = f"{count(len(wrong), 'direction')} of {len(reading.survey.verifications):,}"
        gpus = sorted({ref for v in wrong for ref in (v.source, v.target) if is_known(topology, ref)})
        yield finding(
            "p2p-fails-check",
            f"what P2P wrote was not read back in {whole}: {some(told, _MOST_NAMED)}{why}",
            expected=("the same data, as the driver promises with P2P", "CUDA's peer access; vllm#51513"),
            gpus=gpus,
        )


def _twins(reading: Reading, field: str, one: object, other: object) -> list[tuple[Curve, Curve]]:
    """Point-to-point curves of the same members whose keys differ in one field alone, where it has these values."""
    found: dict[Hashable, dict[object, Curve]] = {}
    for curve in reading.curves:
        if curve.key.operation == "p2p":
            told: dict[str, Any] = {field: None}
            found.setdefault((replace(curve.key, **told), curve.members), {})[getattr(curve.key, field)] = curve
    return [(twins[one], twins[other]) for twins in found.values() if one in twins and other in twins]


def _common(curves: Sequence[Curve]) -> int | None:
    """The largest size that all of them have."""
    sizes = set.intersection(*({s.size_bytes for s in curve.samples} for curve in curves))
    return max(sizes, default=None)


def _best_at(curve: Curve, size_bytes: int) -> float:
    return next(best_s(s) for s in curve.samples if s.size_bytes == size_bytes)


def _surely_above(reading: Reading, curve: Curve, size_bytes: int, time_s: float) -> bool:
    """Whether the confidence interval of its median lies above a time as well."""
    ends = reading.profiles[id(curve)].read(size_bytes).interval_s
    return ends is None or ends[0] > time_s


def _arrow(reading: Reading, curve: Curve) -> str:
    """'GPU 0 -> GPU 3', as the bytes go."""
    ends = curve.members[::-1] if curve.key.direction == "backward" else curve.members
    between = " <-> " if curve.key.direction == "both" else " -> "
    return between.join(named([ref], reading.topology) for ref in ends)
