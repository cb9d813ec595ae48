"""A Drawing for a terminal: the same cells, as characters."""

from __future__ import annotations

from itertools import pairwise

from configgen.report.drawing.nouns import Drawing, Wire, clean
from configgen.report.table import Line

_LIGHT = " ╵╶└╷│┌├╴┘─┴┐┤┬┼"
_HEAVY = " ╹╺┗╻┃┏┣╸┛━┻┓┫┳╋"
_UP, _RIGHT, _DOWN, _LEFT = 1, 2, 4, 8
_HEAVY_ROLES = ("nvlink", "xgmi", "network")
_DASHED = {"│": "╎", "─": "╌"}
_ROLES = {"title": "title", "loud": "loud", "slow": "warn"}


def sketch(drawing: Drawing) -> list[Line]:
    """Lines as broad as the drawing; a terminal that is narrower cuts or wraps them."""
    canvas = _Canvas(drawing.width, drawing.height)
    for wire in drawing.wires:
        canvas.wire(wire)
    for key in drawing.keys:
        canvas.wire(key.wire)
    for box in drawing.boxes:
        canvas.box(box.x, box.y, box.w, box.h, dashed=box.role == "gpu-off")
    roles: dict[int, str] = {}
    for label in drawing.labels:
        canvas.text(round(label.left + 0.01), label.y, label.text)
        role = _ROLES.get(label.role, "")
        roles[label.y] = min(role or roles.get(label.y, ""), roles.get(label.y, "") or role, key=_grave)
    return [Line(text, roles.get(y, "")) for y, text in enumerate(canvas.lines())]


def _grave(role: str) -> int:
    return ("loud", "warn", "title", "").index(role)


class _Canvas:
    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.cells = [[" "] * width for _ in range(height)]
        self.arms = [[0] * width for _ in range(height)]
        self.heavy = [[False] * width for _ in range(height)]

    def wire(self, wire: Wire) -> None:
        heavy = wire.role in _HEAVY_ROLES
        for start, end in pairwise(wire.points):
            self.line(start, end, heavy)
        if wire.role == "plan":
            for (x0, y0), (x1, y1) in pairwise(wire.points):
                for x in range(min(x0, x1), max(x0, x1) + 1):
                    for y in range(min(y0, y1), max(y0, y1) + 1):
                        self.cells[y][x] = _DASHED.get(self.cells[y][x], self.cells[y][x])
        for x, y in wire.dots:
            self.cells[y][x] = "●"

    def line(self, start: tuple[int, int], end: tuple[int, int], heavy: bool) -> None:
        (x0, y0), (x1, y1) = sorted((start, end))
        for x in range(x0, x1 + 1):
            for y in range(y0, y1 + 1):
                arms = 0
                if x0 != x1:
                    arms = (_LEFT if x > x0 else 0) | (_RIGHT if x < x1 else 0)
                elif y0 != y1:
                    arms = (_UP if y > y0 else 0) | (_DOWN if y < y1 else 0)
                self.arms[y][x] |= arms
                self.heavy[y][x] |= heavy
                if self.cells[y][x] != "●":
                    self.cells[y][x] = (_HEAVY if self.heavy[y][x] else _LIGHT)[self.arms[y][x]]

    def box(self, x: int, y: int, w: int, h: int, *, dashed: bool) -> None:
        """Over what ran below it; where a wire ends at its border, the border says so."""
        for row in range(y, y + h):
            for column in range(x, x + w):
                edge = row in (y, y + h - 1) or column in (x, x + w - 1)
                inside = 0 if edge else self.arms[row][column]
                self.arms[row][column] = self.arms[row][column] if edge else 0
                if not edge and inside:
                    self.heavy[row][column] = False
                self.cells[row][column] = " "
        last_x, last_y = x + w - 1, y + h - 1
        for a, b in (
            ((x, y), (last_x, y)),
            ((x, last_y), (last_x, last_y)),
            ((x, y), (x, last_y)),
            ((last_x, y), (last_x, last_y)),
        ):
            self.line(a, b, False)
        if dashed:
            for column in range(x + 1, last_x):
                for row in (y, last_y):
                    self.cells[row][column] = _DASHED.get(self.cells[row][column], self.cells[row][column])

    def text(self, x: int, y: int, text: str) -> None:
        for char in clean(text):
            if 0 <= x < self.width and 0 <= y < self.height:
                self.cells[y][x] = char
            x += 1

    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.cells]
