"""What a picture is made of: boxes, wires, labels and shades on a grid of character cells. Frozen, no I/O.

A cell is as wide as a character and as high as a line, so the same coordinates serve a terminal and a vector picture.
Boxes and wires run through the middles of cells, as box-drawing characters do; x counts to the right, y downwards.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from probe.errors import printable
from probe.topology import require

Point = tuple[int, int]

NOT_MEASURED = "not measured"
"""How the words of a wire without a figure end."""

_SCALES = {"title": 1.35, "name": 1.1}
"""How much wider than plain text a role is set."""
_BROAD = frozenset("MW@%mw&")
_ENDLESS = 2000
"""Characters of a hostile text that are looked at."""


def clean(text: str) -> str:
    """Text on one line: no control or bidi characters, and no marks that pile up on a letter."""
    composed = unicodedata.normalize("NFC", printable(text[:_ENDLESS]))
    return " ".join("".join(c for c in composed if unicodedata.category(c) not in ("Mn", "Me", "Mc")).split())


def breadth(text: str, role: str = "") -> float:
    """Cells that a text takes at most: in a terminal, and in any usual sans-serif font as large as a cell allows."""
    return sum(map(_char_breadth, text)) * _SCALES.get(role, 1.0)


def _char_breadth(char: str) -> float:
    if char in _BROAD:
        return 1.45
    if char.isascii():
        return 1.1 if char.isupper() else 1.0
    return 2.0


def clip(text: str, cells: float, role: str = "") -> str:
    """The text cleaned, and cut with an ellipsis where it is broader than so many cells."""
    text = clean(text)
    if breadth(text, role) <= cells:
        return text
    room, kept = cells / _SCALES.get(role, 1.0) - _char_breadth("…"), ""
    for char in text:
        room -= _char_breadth(char)
        if room < 0:
            break
        kept += char
    return kept.rstrip() + "…"


def folded(text: str, cells: float, role: str = "") -> Iterator[str]:
    """The text over as many lines as it needs, broken at blanks."""
    line = ""
    for word in clean(text).split():
        longer = f"{line} {word}" if line else word
        if line and breadth(longer, role) > cells:
            yield clip(line, cells, role)
            longer = word
        line = longer
    if line:
        yield clip(line, cells, role)


@dataclass(frozen=True, slots=True)
class Label:
    """A text on line `y`. `x` is its left edge, its middle or its right edge, as `anchor` says."""

    x: float
    y: int
    text: str
    role: str = ""
    """'title', 'name', 'dim', 'slow', 'loud', 'plan' or plain."""
    anchor: str = "start"

    @property
    def left(self) -> float:
        whole = breadth(self.text, self.role)
        return self.x - {"start": 0.0, "middle": whole / 2, "end": whole}[self.anchor]

    @property
    def right(self) -> float:
        return self.left + breadth(self.text, self.role)


@dataclass(frozen=True, slots=True)
class Box:
    """A device. The border lies in the outermost cells, so w and h count it; `lines` stand in the middle."""

    x: int
    y: int
    w: int
    h: int
    role: str
    """'socket', 'pcie-switch', 'nic', 'gpu', 'gpu-off', 'nvswitch', 'node' or 'network'."""
    lines: tuple[tuple[str, str], ...] = ()
    """(text, role) of each line."""
    about: str = ""
    """All of it in words, for who points at the box."""

    @property
    def labels(self) -> Iterator[Label]:
        top = self.y + (self.h - len(self.lines)) // 2
        for i, (text, role) in enumerate(self.lines):
            yield Label(self.x + self.w / 2, top + i, text, role, "middle")


@dataclass(frozen=True, slots=True)
class Wire:
    """A line along rows and columns. `joins` names its ends, 'node 0 GPU 3'; nothing that a legend only shows."""

    points: tuple[Point, ...]
    role: str
    """'nvlink', 'xgmi', 'pcie', 'nic', 'uplink', 'network' or 'plan'."""
    joins: tuple[str, ...] = ()
    about: str = ""
    slow: bool = False
    dots: tuple[Point, ...] = ()
    """Where it branches off a line that others share: a crossing without a dot is none."""

    def __post_init__(self) -> None:
        require(len(self.points) >= 2, "a wire has two ends")
        require(
            all(x0 == x1 or y0 == y1 for (x0, y0), (x1, y1) in pairwise(self.points)),
            "wires run along rows and columns",
        )


@dataclass(frozen=True, slots=True)
class Shade:
    """An area behind boxes (an island) or a frame around them (a stage of the plan); `number` picks its colour."""

    x: float
    y: float
    w: float
    h: float
    role: str
    """'island' or 'stage'."""
    number: int
    about: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """A line of the legend: a sample of a wire, three cells long, and what it means."""

    x: int
    y: int
    role: str
    slow: bool = False
    dot: bool = False
    """Whether a dot alone tells it, where wires share a line."""

    @property
    def wire(self) -> Wire:
        dots = ((self.x + 1, self.y),) if self.dot else ()
        return Wire(((self.x, self.y), (self.x + 2, self.y)), self.role, slow=self.slow, dots=dots)


@dataclass(frozen=True)
class Drawing:
    """A picture, `width` x `height` cells. `title` is one line, `description` all that it shows in words."""

    width: int
    height: int
    title: str
    description: str
    boxes: tuple[Box, ...] = ()
    wires: tuple[Wire, ...] = ()
    texts: tuple[Label, ...] = ()
    shades: tuple[Shade, ...] = ()
    keys: tuple[Key, ...] = ()

    @property
    def labels(self) -> Iterator[Label]:
        """All texts: free ones and those in boxes."""
        yield from self.texts
        for box in self.boxes:
            yield from box.labels


class Part:
    """A piece of a picture while it is laid out; pieces are moved, flipped and joined."""

    def __init__(self) -> None:
        self.boxes: list[Box] = []
        self.wires: list[Wire] = []
        self.texts: list[Label] = []
        self.shades: list[Shade] = []
        self.keys: list[Key] = []

    def add(self, other: Part, dx: int = 0, dy: int = 0) -> None:
        """What `other` shows, further right and further down."""

        def moved(points: Sequence[Point]) -> tuple[Point, ...]:
            return tuple((x + dx, y + dy) for x, y in points)

        self.boxes += [Box(b.x + dx, b.y + dy, b.w, b.h, b.role, b.lines, b.about) for b in other.boxes]
        self.wires += [Wire(moved(w.points), w.role, w.joins, w.about, w.slow, moved(w.dots)) for w in other.wires]
        self.texts += [Label(t.x + dx, t.y + dy, t.text, t.role, t.anchor) for t in other.texts]
        self.shades += [Shade(s.x + dx, s.y + dy, s.w, s.h, s.role, s.number, s.about) for s in other.shades]
        self.keys += [Key(k.x + dx, k.y + dy, k.role, k.slow, k.dot) for k in other.keys]

    def flipped(self, height: int) -> Part:
        """Upside down within so many rows; boxes keep their lines in order."""
        part, last = Part(), height - 1

        def turned(points: Sequence[Point]) -> tuple[Point, ...]:
            return tuple((x, last - y) for x, y in points)

        part.boxes = [Box(b.x, height - b.y - b.h, b.w, b.h, b.role, b.lines, b.about) for b in self.boxes]
        part.wires = [Wire(turned(w.points), w.role, w.joins, w.about, w.slow, turned(w.dots)) for w in self.wires]
        part.texts = [Label(t.x, last - t.y, t.text, t.role, t.anchor) for t in self.texts]
        part.shades = [Shade(s.x, height - s.y - s.h, s.w, s.h, s.role, s.number, s.about) for s in self.shades]
        part.keys = [Key(k.x, last - k.y, k.role, k.slow, k.dot) for k in self.keys]
        return part

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows up to the last that is drawn on."""
        right = [
            0.0,
            *(b.x + b.w for b in self.boxes),
            *(x + 1 for w in self.wires for x, _ in w.points),
            *(t.right for t in self.texts),
            *(s.x + s.w for s in self.shades),
        ]
        low = [
            0.0,
            *(b.y + b.h for b in self.boxes),
            *(y + 1 for w in self.wires for _, y in w.points),
            *(t.y + 1 for t in self.texts),
            *(s.y + s.h for s in self.shades),
            *(k.y + 1 for k in self.keys),
        ]
        return ceil(max(right)), ceil(max(low))
