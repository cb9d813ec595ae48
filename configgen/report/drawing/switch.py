"""A fast switch inside a node, one wire for each GPU behind it, and the pairs that are unlike the others. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeVar

from configgen.report.drawing.fabric import port_links
from configgen.report.drawing.nouns import NOT_MEASURED, Box, Label, Part, Wire, breadth, clip
from configgen.report.drawing.rows import Row
from configgen.report.drawing.side import Metrics
from configgen.report.drawing.speeds import Speed, late
from configgen.report.drawing.view import View
from probe.statistics import median
from probe.units import count, ranges, some

T = TypeVar("T", int, tuple[int, int])

BOX_ROWS = 3


class Switch:
    """What is slow shows where it is: on the wire of the GPU whose pairs all are, else at both ends of the pair."""

    def __init__(self, view: View, members: Sequence[int], name: str) -> None:
        self.view, self.members, self.name = view, members, name
        shape, pairs = view.node.shape, list(combinations(members, 2))
        self.links = {gpu: port_links(shape, gpu, members) for gpu in members}
        self.fewer = {gpu for gpu, links in self.links.items() if links < max(self.links.values())}
        measured = {(a, b): s for a, b in pairs if (s := view.speeds.pair(view.ref(a), view.ref(b))) is not None}
        usual = {gpu: s for gpu in members if (s := _middle(measured, gpu)) is not None}
        self.slow = _late(usual, self.links)
        sound = {pair: speed for pair, speed in measured.items() if self.slow.isdisjoint(pair)}
        odd = _late(sound, {(a, b): shape.path(a, b).links or 0 for a, b in sound})
        sound = {pair: speed for pair, speed in sound.items() if pair not in odd}
        self.speeds = usual | {gpu: s for gpu in members if (s := _middle(sound, gpu)) is not None}
        best = {gpu: max(shape.path(gpu, other).links or 0 for other in members if other != gpu) for gpu in members}
        narrow = [(a, b) for a, b in pairs if (shape.path(a, b).links or 0) < min(best[a], best[b])]
        self.odd: dict[int, dict[int, str]] = {gpu: {} for gpu in members}
        """What each GPU has with others that it has not with the rest: 'NV17', '192'."""
        for a, b in pairs:
            told = [shape.path(a, b).label] * ((a, b) in narrow) + [measured[a, b].text for _ in odd & {(a, b)}]
            if told:
                self.odd[a][b] = self.odd[b][a] = " ".join(told)

    @property
    def label_rows(self) -> int:
        return 3 if any(self.odd.values()) else 2

    def wire(self, part: Part, size: Metrics, gpu: int, row: Row, *, x: int, end: int, labels: int) -> None:
        """A GPU's wire at column `x` down or up to the row `end`; what is written at it begins in the row `labels`."""
        label = f"NV{self.links[gpu] or ''}"
        speed, slow, odd = self.speeds.get(gpu), gpu in self.slow, self.odd[gpu]
        about = f"{label}: {speed.text} GB/s" if speed is not None else f"{label}: {NOT_MEASURED}"
        if odd:
            about += f", but {some([f'{text} to GPU {other}' for other, text in odd.items()])}"
        told = [(label, gpu in self.fewer)]
        told += [(f"{speed.text} GB/s", slow)] if speed is not None else []
        if odd:
            alike = f": {next(iter(odd.values()))}" if len({*odd.values()}) == 1 else ""
            told.append((f"to {ranges(list(odd))}{alike}", True))
        marked = any(mark for _, mark in told)
        points = ((x, row.border), (x, end))
        part.wires.append(Wire(points, "nvlink", (self.view.gpu_name(gpu), self.name), about, marked))
        for line, (text, mark) in enumerate(told, start=labels):
            text = clip(text, size.pitch - 2.25) + ("!" if mark else "")
            part.texts.append(Label(x + 1.25, line, text, "slow" if mark else ""))

    def box(self, part: Part, size: Metrics, row: int, ports: Sequence[int]) -> None:
        """The switch itself, as broad as the GPUs whose middles are at `ports`."""
        left = min(ports) - size.port
        width = max(ports) - size.port + size.gpu - left
        text = self._text()
        fitting = text if breadth(text) <= width - 1.5 else "NVSwitch"
        lines = ((clip(fitting, width - 1.5), ""),)
        part.boxes.append(Box(left, row, width, BOX_ROWS, "nvswitch", lines, f"{self.view.prefix}{text}"))

    def _text(self) -> str:
        together = self.view.speeds.all_reduces.get(frozenset(map(self.view.ref, self.members)))
        if together is None:
            return "NVSwitch"
        return f"NVSwitch: all-reduce of {count(len(self.members), 'GPU')} {together.text} GB/s"


def _middle(pairs: Mapping[tuple[int, int], Speed], gpu: int) -> Speed | None:
    """What the wire of a GPU carried: the middle of its pairs."""
    found = [speed for pair, speed in pairs.items() if gpu in pair]
    return Speed(median([s.gbps for s in found]), any(s.at_least for s in found)) if found else None


def _late(speeds: Mapping[T, Speed], links: Mapping[T, int]) -> set[T]:
    """Those that are slower than the middle of those with as many links."""
    equals: dict[int, list[Speed]] = {}
    for one, speed in speeds.items():
        equals.setdefault(links[one], []).append(speed)
    return {one for one, speed in speeds.items() if late(speed, equals[links[one]])}
