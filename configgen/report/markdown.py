"""An audit as Markdown for a ticket. What comes from outside can form no markup, link, mention or HTML. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from configgen.audited import Audited
from configgen.report.findings import Case, Kind, kinds
from configgen.report.sections import HEADINGS, changes, machine_facts, next_steps, plan_facts, silences
from probe.errors import one_line
from probe.units import count, some

_MOST_CASES = 20
_MOST_PLACES = 20
_MOST_CHARACTERS = 40_000
"""Of findings; a GitHub issue holds 65,536 characters in all."""

_PLAIN = re.compile(r"""[("']{0,2}[^\W_]+(?:[-+/'][^\W_]+|[.,][0-9]+)*%?[)"'.,:;!?]{0,4}""")
"""A word that no flavour of Markdown reads as anything else, with the marks that sentences put around it."""
_TOKEN = re.compile(r"""([("']{0,2})`([^`\s](?:[^`]*[^`\s])?)`([)"'.,:;!?]{0,4})(?= |$)|[^ ]+""")
"""A command in backticks, as texts of this house name it, with the marks around it; or any other word."""
_MARKED = re.compile(r"""([("']{0,2})(.*?\w.*?)([)"'.,:;!?]{0,4})""")
"""The same marks around any other word."""
_REFERENCE = re.compile(r"[^\w]*(?:[A-Za-z]+-[0-9]+|[0-9a-fA-F]{7,64})[^\w]*|[0-9]+[.)]+")
"""What trackers turn into links: 'GH-12', 'ABC-34', a commit's hash; and what begins a list: '1.'."""


def markdown(audited: Audited) -> str:
    """Headings and lists alone, so that it reads well unrendered too; each finding is one list item."""
    lines = [f"## Audit: {escaped(audited.verdict)}", ""]
    lines += _items((*machine_facts(audited.survey), ("audited", audited.audited_at)))
    lines += _findings(kinds(audited))
    if audited.plan is not None:
        lines += ["", f"### Plan for {escaped(audited.plan.model.name)}", "", *_items(plan_facts(audited.plan))]
    if audited.comparison is not None:
        lines += ["", "### Against the baseline", "", *_items(changes(audited.comparison))]
    silent = [("", f"{what} ({why})") for why, what in silences(audited.survey)]
    lines += ["", "### Not checked", "", *_items(silent)] if silent else []
    steps = list(next_steps(audited))
    lines += ["", "### Next", "", *(f"- {escaped(step)}" for step in steps)] if steps else []
    return "\n".join(lines) + "\n"


def escaped(text: str, limit: int = 600) -> str:
    """One line in which words of a sentence stay as they are, and all else stands in a code span.

    Backslashes would not do: trackers look for mentions and addresses after the Markdown is read, but never in code.
    """
    return " ".join(_token(match) for match in _TOKEN.finditer(one_line(text, limit)))


def _token(match: re.Match[str]) -> str:
    before, command, after = match.groups()
    if command is not None:
        return f"{before}{_code(command)}{after}"
    return match[0] if _is_plain(match[0]) else _marked(match[0])


def _is_plain(word: str) -> bool:
    return _PLAIN.fullmatch(word) is not None and _REFERENCE.fullmatch(word) is None


def _marked(word: str) -> str:
    """The word in a code span, without the marks that the sentence put around it: who copies it gets the word."""
    parts = _MARKED.fullmatch(word)
    if parts is None:
        return _code(word)
    before, bare, after = parts.groups()
    while after and _is_open(bare, after[0]):  # what the word itself opened is a part of it
        bare, after = bare + after[0], after[1:]
    return f"{before}{_code(bare)}{after}"


def _is_open(word: str, mark: str) -> bool:
    """Whether the mark would close what the word opens."""
    return word.count("(") > word.count(")") if mark == ")" else mark in "\"'" and word.count(mark) % 2 == 1


def _code(word: str) -> str:
    """A code span around any word, as CommonMark 6.1 asks: a fence longer than every run of backticks inside."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", word)), default=0))
    pad = " " if word.startswith("`") or word.endswith("`") else ""
    return f"{fence}{pad}{word}{pad}{fence}"


def _items(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield from (f"- **{escaped(label)}:** {escaped(text)}" if label else f"- {escaped(text)}" for label, text in rows)


def _findings(found: Sequence[Kind]) -> Iterator[str]:
    """The gravest first, as many as a ticket holds."""
    heading, room = None, _MOST_CHARACTERS
    for number, kind in enumerate(found):
        lines = list(_kind(kind))
        room -= sum(map(len, lines))
        if room < 0:
            yield from ("", f"And {count(len(found) - number, 'more kind')} of finding: see the JSON.")
            return
        if heading != HEADINGS[kind.severity]:
            heading = HEADINGS[kind.severity]
            yield from ("", f"### {heading}")
        yield from lines


def _kind(kind: Kind) -> Iterator[str]:
    yield from ("", f"#### {escaped(kind.code)}: {escaped(kind.title)}", "")
    for case in kind.cases[:_MOST_CASES]:
        yield from _case(case)
    left = len(kind.cases) - _MOST_CASES
    if left > 0:
        yield f"- and {left} more: see the JSON"


def _case(case: Case) -> Iterator[str]:
    where = f"**{escaped(some(case.places, _MOST_PLACES))}:** " if case.places else ""
    yield f"- {where}{escaped(case.seen)} ({case.provenance})"
    if case.expectation is not None:
        yield f"  - Expected: {escaped(case.expectation)}"
    yield f"  - Do: {escaped(case.cure)}"
