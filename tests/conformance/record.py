"""Writes down what was really checked: rows of the tables in docs/engines.md, each by the run that it tells of."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "engines.md"


@dataclass
class Checked:
    """What one run has asked of one version of an engine, so far."""

    name: str
    cases: int = 0
    commands: int = 0
    refused: int = 0
    """Illegal neighbours that both refuse, by the same law."""
    cuts: int = 0
    """Cuts of models of which both say the same."""
    only_ours: int = 0
    """Of both kinds, those that we alone refuse."""
    failed: int = 0

    @property
    def row(self) -> list[str]:
        result = f"{self.failed} tests FAILED" if self.failed else "all as planned"
        counts = (self.cases, self.commands, self.refused, self.cuts, self.only_ours)
        shown = [f"{count:,}" if count else "-" for count in counts]
        return [self.name, *shown, date.today().isoformat(), result]


ALL: list[Checked] = []
"""Of this run."""


def checks(name: str, cases: int, commands: int) -> Checked:
    """The record of this engine and version, from now on."""
    ALL.append(Checked(name, cases, commands))
    return ALL[-1]


def write_rows(table: str, rows: Sequence[Sequence[str]], page: Path = PAGE) -> None:
    """Replaces the rows that begin as these do, between the page's two marks of this table; others stay."""
    with page.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the engines are asked at the same time
        text = file.read()
        begin, end = f"<!-- {table}, by the run itself -->\n", f"<!-- end of {table} -->\n"
        before, rest = text.split(begin)
        inside, after = rest.split(end)
        head, rule, *old = inside.splitlines()
        kept = {line.split("|")[1].strip(): line for line in old}
        kept |= {row[0]: f"| {' | '.join(row)} |" for row in rows}
        lines = "\n".join((head, rule, *(kept[name] for name in sorted(kept))))
        file.seek(0)
        file.write(f"{before}{begin}{lines}\n{end}{after}")
        file.truncate()
