"""Below a row of GPUs, or between two rows: the plan's arrows, wires of pairs, and where switches stand. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from configgen.report.drawing.arrows import ArrowLine, across, arrow_lines
from configgen.report.drawing.fabric import Fabric
from configgen.report.drawing.nouns import NOT_MEASURED, Label, Part, Wire, breadth, clip
from configgen.report.drawing.rows import Row, packed
from configgen.report.drawing.side import Metrics
from configgen.report.drawing.speeds import Speed, late
from configgen.report.drawing.switch import BOX_ROWS, Switch
from configgen.report.drawing.view import View
from probe.topology import Path, PathKind


def band(
    view: View, wires: Fabric, size: Metrics, upper: Mapping[int, int], border: int, lower: Mapping[int, int]
) -> tuple[Part, int]:
    """What joins the GPUs, and the row where the border of the lower row of GPUs is to be, if there is one.

    `upper` and `lower` tell the middle of each GPU, `border` the row of the upper ones' lower border.
    """
    several = len(wires.switches) > 1
    switches = [
        Switch(view, members, f"{view.prefix}NVSwitch" + (f" {number}" if several else ""))
        for number, members in enumerate(wires.switches)
    ]
    labels = max((switch.label_rows for switch in switches), default=0)
    above = _Half(view, wires, Row(upper, border, 1), labels)
    below = _Half(view, wires, Row(lower, 0, -1), labels)
    ports = [[x for row in (upper, lower) for gpu, x in row.items() if gpu in switch.members] for switch in switches]
    lines = packed({number: (min(middles), max(middles)) for number, middles in enumerate(ports)})
    first = border + above.rows + 1
    last = first + BOX_ROWS * (max(lines.values(), default=-1) + 1)
    if lower:
        below = _Half(view, wires, Row(lower, last + below.rows + (0 if lines else 1), -1), labels)
    part = Part()
    for half in (above, below):
        half.draw(part, size)
    part.wires += across(view, above.row, below.row)
    for number, line in lines.items():
        switch, row = switches[number], first + BOX_ROWS * line
        for half, label_row, end in ((above, first - labels, row), (below, last, row + BOX_ROWS - 1)):
            for gpu in (gpu for gpu in switch.members if gpu in half.row.ports):
                # The middle of a GPU belongs to wires of its own, if it has any.
                x = half.row.ports[gpu] + (2 if half.pairs else 0)
                switch.wire(part, size, gpu, half.row, x=x, end=end, labels=label_row)
        switch.box(part, size, row, ports[number])
    return part, below.row.border if lower else last


class _Half:
    """What belongs to one row of GPUs; everything is counted in rows from its border."""

    def __init__(self, view: View, wires: Fabric, row: Row, labels: int) -> None:
        """`labels` are the rows that a switch's wires need for what is written at them."""
        self.view, self.row = view, row
        self.arrows: list[ArrowLine] = arrow_lines(view, row)
        self.pairs = [pair for pair in wires.direct if pair[0] in row.ports]
        ordered = {a: max(x for g in self._reached(a) if (x := row.ports[g])) for a in row.ports if self._reached(a)}
        self.tracks = packed({a: (row.ports[a], end) for a, end in ordered.items()})
        self.lanes = max((arrow.line + 2 for arrow in self.arrows), default=0)
        is_switched = any(gpu in row.ports for members in wires.switches for gpu in members)
        self.rows = self.lanes + 2 * (max(self.tracks.values(), default=-1) + 1) + (labels if is_switched else 0)

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
    return f"{label}: {speed.text} GB/s" if speed else f"{label}: {NOT_MEASURED}"
