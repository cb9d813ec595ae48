"""The plan's pipeline: from each stage to the next, along a row of GPUs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from configgen.report.drawing.nouns import Part, Wire
from configgen.report.drawing.rows import Row, packed
from configgen.report.drawing.view import View

_LEAVES, _REACHES = 4, 2
"""Cells from the middle of a GPU at which an arrow leaves and reaches it, on the side of the other one."""
_ACROSS = 3
"""The same of an arrow to the other row: left, since figures stand on the right."""


@dataclass(frozen=True, slots=True)
class ArrowLine:
    """From one GPU to another, on the line of this number."""

    start: int
    end: int
    line: int
    joins: tuple[str, str]
    about: str

    def draw(self, part: Part, row: Row) -> None:
        y = row.out(self.line + 1)
        points = ((self.start, row.border), (self.start, y), (self.end, y), (self.end, row.border))
        part.wires.append(Wire(points, "plan", self.joins, self.about))


def arrow_lines(view: View, row: Row) -> list[ArrowLine]:
    """One for each hop between stages of a replica that both have GPUs in this row: between the nearest two."""
    stages: dict[tuple[int, int], list[int]] = {}
    for gpu in row.ports:
        if (role := view.role(gpu)) is not None:
            stages.setdefault((role.replica, role.stage), []).append(gpu)
    hops: dict[tuple[int, int], tuple[int, int]] = {}
    for (replica, stage), gpus in sorted(stages.items()):
        after = stages.get((replica, stage + 1), [])
        pairs = [(abs(row.ports[a] - row.ports[b]), a, b) for a in gpus for b in after]
        if pairs:
            hops[replica, stage] = min(pairs)[1:]
    extents = {hop: _extent(row.ports[a], row.ports[b]) for hop, (a, b) in hops.items()}
    lines = packed({hop: (min(ends), max(ends)) for hop, ends in extents.items()})
    return [
        ArrowLine(
            *extents[hop],
            lines[hop],
            (view.gpu_name(hops[hop][0]), view.gpu_name(hops[hop][1])),
            _hop(*hop),
        )
        for hop in hops
    ]


def across(view: View, above: Row, below: Row) -> Iterator[Wire]:
    """Hops from a row to the other where the two GPUs stand face to face; other hops are told by the GPUs' labels."""
    facing = {(above.ports[a], a, b) for a in above.ports for b in below.ports if above.ports[a] == below.ports[b]}
    hops: dict[tuple[int, int, int], tuple[int, int, int]] = {}
    for x, a, b in sorted(facing):
        one, other = view.role(a), view.role(b)
        if one is not None and other is not None and one.replica == other.replica and abs(one.stage - other.stage) == 1:
            hops.setdefault((one.replica, one.stage, other.stage), (x, a, b))
    for (replica, upper, lower), (x, a, b) in hops.items():
        points = ((x - _ACROSS, above.border), (x - _ACROSS, below.border))
        joins = (view.gpu_name(a), view.gpu_name(b))
        down = lower > upper
        about = _hop(replica, min(upper, lower))
        yield Wire(points if down else points[::-1], "plan", joins if down else joins[::-1], about)


def _hop(replica: int, stage: int) -> str:
    return f"replica {replica}: stage {stage} to stage {stage + 1}"


def _extent(a: int, b: int) -> tuple[int, int]:
    way = 1 if b > a else -1
    return a + way * _LEAVES, b - way * _REACHES
