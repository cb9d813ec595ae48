"""A row of GPUs as wires leave it, and how lines are packed below it. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Row:
    """`ports` tells the middle of each GPU, `border` the row that wires leave, `down` is 1 or -1: which way."""

    ports: Mapping[int, int]
    border: int
    down: int

    def out(self, rows: int) -> int:
        """The row so many rows beyond the border."""
        return self.border + self.down * rows


def packed(extents: Mapping[T, tuple[int, int]]) -> dict[T, int]:
    """A line for each extent: the first that is free from its left to its right end."""
    ends: list[int] = []
    lines: dict[T, int] = {}
    for one, (left, right) in sorted(extents.items(), key=lambda item: item[1]):
        line = next((i for i, end in enumerate(ends) if end < left), len(ends))
        ends[line : line + 1] = [right]
        lines[one] = line
    return lines
