"""Lines with a role, and plain tables of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """`role` says what a line is for; a terminal gives it a colour."""

    text: str
    role: str = ""
    """'title', 'head', 'good', 'warn', 'loud', 'dim' or plain."""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> Iterator[Line]:
    """A head and rows, two blanks apart; the first `texts` columns stand left, figures right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for number, row in enumerate((heads, *rows)):
        cells = [
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield Line(f"  {'  '.join(cells)}".rstrip(), "" if number else "head")
