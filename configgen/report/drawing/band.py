"""Below a row of GPUs, or between two rows: the plan's arrows, wires of pairs, and fast switches. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from configgen.report.drawing.arrows import ArrowLine, across, arrow_lines
from configgen.report.drawing.fabric import Fabric
from configgen.report.drawing.nouns import Box, Label, Part, Wire, breadth, clip
from configgen.report.drawing.rows import Row, packed
from configgen.report.drawing.side import Metrics
from configgen.report.drawing.speeds import Speed, late
from configgen.report.drawing.view import View
from probe.statistics import median
from probe.topology import Path, PathKind
from probe.units import count

_BOX_ROWS = 3
_LABEL_ROWS = 2


def band(
    view: View, wires: Fabric, size: Metrics, upper: Mapping[int, int], border: int, lower: Mapping[int, int]
) -> tuple[Part, int]:
    """What joins the GPUs, and the row where the border of the lower row of GPUs is to be, if there is one.

    `upper` and `lower` tell the middle of each GPU, `border` the row of the upper ones' lower border.
    """
    above = _Half(view, wires, Row(upper, border, 1))
    below = _Half(view, wires, Row(lower, 0, -1))
    extents = {}
    for members in wires.switches:
        middles = [x for row in (upper, lower) for gpu, x in row.items() if gpu in members]
        extents[members] = (min(middles), max(middles))
    lines = packed(extents)
    first = border + above.rows + 1
    last = first + _BOX_ROWS * (max(lines.values(), default=-1) + 1)
    if lower:
        below = _Half(view, wires, Row(lower, last + below.rows + (0 if lines else 1), -1))
    part = Part()
    for half in (above, below):
        half.draw(part, size)
    part.wires += across(view, above.row, below.row)
    for number, (members, line) in enumerate(lines.items()):
        switch = _Switch(view, members, f"{view.prefix}NVSwitch" + (f" {number}" if len(lines) > 1 else ""))
        switch.draw(part, size, (above, below), first + _BOX_ROWS * line, (first - _LABEL_ROWS, last))
    return part, below.row.border if lower else last


class _Half:
    """What belongs to one row of GPUs; everything is counted in rows from its border."""

    def __init__(self, view: View, wires: Fabric, row: Row) -> None:
        self.view, self.row = view, row
        self.arrows: list[ArrowLine] = arrow_lines(view, row)
        self.pairs = [pair for pair in wires.direct if pair[0] in row.ports]
        ordered = {a: max(x for g in self._reached(a) if (x := row.ports[g])) for a in row.ports if self._reached(a)}
        self.tracks = packed({a: (row.ports[a], end) for a, end in ordered.items()})
        self.lanes = max((arrow.line + 2 for arrow in self.arrows), default=0)
        labels = _LABEL_ROWS if any(gpu in row.ports for members in wires.switches for gpu in members) else 0
        self.rows = self.lanes + 2 * (max(self.tracks.values(), default=-1) + 1) + labels

    def _ends(self, pair: tuple[int, int, Path]) -> tuple[int, int]:
        """Left and right."""
        a, b = pair[:2]
        return (a, b) if self.row.ports[a] < self.row.ports[b] else (b, a)

    def _reached(self, left: int) -> list[int]:
        return [ends[1] for pair in self.pairs if (ends := self._ends(pair))[0] == left]

    def draw(self, part: Part, size: Metrics) -> None:
        for arrow in self.arrows:
            arrow.draw(part, self.row)
        self._draw_pairs(part, size)

    def _draw_pairs(self, part: Part, size: Metrics) -> None:
        """Each GPU's line to the right, with a dot and a figure at each GPU that it reaches."""
        view, row = self.view, self.row
        speeds = {pair[:2]: view.speeds.pair(view.ref(pair[0]), view.ref(pair[1])) for pair in self.pairs}
        equals: dict[str, list[Speed]] = {}
        for a, b, path in self.pairs:
            if (speed := speeds[a, b]) is not None:
                equals.setdefault(path.label, []).append(speed)
        unit = (
            " GB/s" if all(breadth(_text(p[2], speeds[p[:2]], " GB/s!")) <= size.pitch - 1 for p in self.pairs) else ""
        )
        for pair in self.pairs:
            path, speed = pair[2], speeds[pair[:2]]
            slow = speed is not None and late(speed, equals[path.label])
            left, right = self._ends(pair)
            x0, x1 = row.ports[left], row.ports[right]
            line = row.out(self.lanes + 2 * self.tracks[left] + (2 if row.down > 0 else 1))
            points = ((x0, row.border), (x0, line), (x1, line), (x1, row.border))
            joins = (view.gpu_name(left), view.gpu_name(right))
            role = "xgmi" if path.kind is PathKind.XGMI else "nvlink"
            part.wires.append(Wire(points, role, joins, _about(path.label, speed), slow, ((x1, line),)))
            text = clip(_text(path, speed, unit) + ("!" if slow else ""), size.pitch - 1)
            part.texts.append(Label(x1, line - 1, text, "slow" if slow else "", "end"))


def _text(path: Path, speed: Speed | None, unit: str) -> str:
    label = "xGMI" if path.kind is PathKind.XGMI else path.label
    return f"{label} {speed.text}{unit}" if speed else label


def _about(label: str, speed: Speed | None) -> str:
    return f"{label}: {speed.text} GB/s" if speed else f"{label}: not measured"


class _Switch:
    """A fast switch, with one wire for each GPU behind it."""

    def __init__(self, view: View, members: Sequence[int], name: str) -> None:
        self.view, self.members, self.name = view, members, name
        self.speeds = {gpu: self._through(gpu) for gpu in members}

    def _through(self, gpu: int) -> Speed | None:
        """What the wire of a GPU carried: the middle of its pairs behind the switch."""
        pair, ref = self.view.speeds.pair, self.view.ref
        found = [s for other in self.members if other != gpu and (s := pair(ref(gpu), ref(other)))]
        return Speed(median([s.gbps for s in found]), any(s.at_least for s in found)) if found else None

    def draw(self, part: Part, size: Metrics, halves: Sequence[_Half], row: int, labels: tuple[int, int]) -> None:
        """The box from `row` on; `labels` are the first rows for what is written above and below all switches."""
        view, known = self.view, [speed for speed in self.speeds.values() if speed is not None]
        ends: list[int] = []
        for half, label_row, end in zip(halves, labels, (row, row + _BOX_ROWS - 1), strict=True):
            for gpu in (gpu for gpu in self.members if gpu in half.row.ports):
                # The middle of a GPU belongs to wires of its own, if it has any.
                x = half.row.ports[gpu] + (2 if half.pairs else 0)
                ends.append(half.row.ports[gpu])
                speed = self.speeds[gpu]
                slow = speed is not None and late(speed, known)
                label = self._label(gpu)
                joins = (view.gpu_name(gpu), self.name)
                part.wires.append(Wire(((x, half.row.border), (x, end)), "nvlink", joins, _about(label, speed), slow))
                part.texts.append(Label(x + 1.25, label_row, label))
                if speed is not None:
                    text, role = f"{speed.text} GB/s" + ("!" if slow else ""), "slow" if slow else ""
                    part.texts.append(Label(x + 1.25, label_row + 1, text, role))
        left = min(ends) - size.port
        width = max(ends) - size.port + size.gpu - left
        text = self._text()
        fitting = text if breadth(text) <= width - 1.5 else "NVSwitch"
        part.boxes.append(
            Box(left, row, width, _BOX_ROWS, "nvswitch", ((clip(fitting, width - 1.5), ""),), f"{view.prefix}{text}")
        )

    def _label(self, gpu: int) -> str:
        labels = {self.view.node.shape.path(gpu, other).label for other in self.members if other != gpu}
        return min(labels, key=lambda label: (len(label), label))

    def _text(self) -> str:
        together = self.view.speeds.all_reduces.get(frozenset(map(self.view.ref, self.members)))
        if together is None:
            return "NVSwitch"
        return f"NVSwitch: all-reduce of {count(len(self.members), 'GPU')} {together.text} GB/s"
