"""One fault, one finding: curves over equal wires that fall short alike are told together, by the worst. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace

from probe.checks.reading import Reading, label, named
from probe.errors import one_line
from probe.finding import Finding
from probe.measurement import Curve, CurveKey
from probe.topology import GpuRef
from probe.units import some

_MOST_NAMED = 4
_MOST_TEXT = 600

Case = tuple[Curve, Finding]


def one_way(key: CurveKey) -> CurveKey:
    """Its operation and kind of path: which of a pair's ways is 'forward' is only how its GPUs are numbered."""
    return key if key.direction == "both" else replace(key, direction=None)


def subject(curve: Curve) -> str:
    """'p2p over 1 NV18': what a second measurement has to find slow as well."""
    paths = ", ".join(f"{n} {kind}" for kind, n in curve.key.group.paths)
    return f"{label(replace(curve, key=one_way(curve.key))).rstrip(',')} over {paths}"


def folded(reading: Reading, cases: Iterable[Case]) -> Iterator[Finding]:
    """Those of one code, severity, operation and kind of path as one, whose figure is the worst of them.

    A GPU that all of them share is accused alone where they are all that it is in, and others over such wires do well.
    """
    alike: dict[Hashable, list[Case]] = {}
    for curve, found in cases:
        alike.setdefault((found.code, found.severity, one_way(curve.key)), []).append((curve, found))
    for together in alike.values():
        curve, worst = min(together, key=lambda case: _reached(case[1]))
        slow = [one for one, _ in together]
        gpus, words = accused(reading, curve, slow)
        seen = one_line(worst.seen + words, _MOST_TEXT)
        yield replace(worst, seen=seen, gpus=gpus, node=_node(gpus), subject=subject(curve))


def accused(reading: Reading, worst: Curve, slow: Sequence[Curve]) -> tuple[tuple[GpuRef, ...], str]:
    """The GPUs that slow curves over equal wires accuse, and who is slow beside the worst, in words."""
    own = set(worst.members)
    back = any(curve is not worst and set(curve.members) == own for curve in slow)
    others = dict.fromkeys(named(curve.members, reading.topology) for curve in slow if set(curve.members) != own)
    words = "; its way back too" if back and worst.key.operation == "p2p" else ""
    words += f"; slower too: {some(list(others), _MOST_NAMED)}" if others else ""
    shared = set.intersection(*(set(curve.members) for curve in slow))
    if others and len(shared) == 1:
        words += f"; all of them with {named(sorted(shared), reading.topology)}"
        key, pairs = one_way(worst.key), {frozenset(curve.members) for curve in slow}
        equal = {frozenset(curve.members) for curve in reading.curves if one_way(curve.key) == key}
        if pairs == {members for members in equal if members & shared} and pairs < equal:
            return tuple(shared), words
    return tuple(sorted({ref for curve in slow for ref in curve.members})), words


def _reached(found: Finding) -> float:
    """What was reached of the bar; of a time, the bar over it."""
    if not found.value or not found.bar:
        return 0.0
    return found.bar / found.value if found.unit == "us" else found.value / found.bar


def _node(gpus: Sequence[GpuRef]) -> int | None:
    nodes = {ref.node for ref in gpus}
    return min(nodes) if len(nodes) == 1 else None
