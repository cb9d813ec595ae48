"""A typed line as the words of the one command that starts an engine: split as a shell would, and never run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from configgen.engines.spellings import started
from probe.errors import UsageError

LONGEST_BYTES = 64 << 10
MOST_WORDS = 2048

ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
CURE = "Give the command as you type it, in quotes, or its words after --."
ONE = "Give the one command that starts the server, like 'vllm serve MODEL -tp 4'."

_UNSAID = re.compile(
    r"""('[^']*'|"(?:\\.|[^"\\])*")"""  # what quotes hold is a word's
    r"|(?P<joined>\\\r?\n)|(\\.)"
    r"|(?P<comment>(?<![^\s;&|()])\#[^\n]*)"
    r"|(?P<file>(?<=\s)[0-9](?=[<>]))"  # 2>errors: the number is the redirection's
    r"|(?P<line>\n(?!\s*-))",  # what goes on with a flag was only wrapped
    re.DOTALL,
)
_SEEN_AS = {"joined": " ", "comment": "", "file": "", "line": "\n;\n"}
_OPERATORS = re.compile(r"[();<>|&]+")
_REDIRECTION = re.compile(r"[<>&]*[<>][<>&]*\|?")
_SHELLS = ("sh", "bash", "dash", "zsh")


def words_of(text: str) -> list[str]:
    """As a POSIX shell splits it, nothing expanded; operators are words of their own. Raises UsageError."""
    if len(text.encode(errors="replace")) > LONGEST_BYTES:
        raise UsageError(f"the command is longer than {LONGEST_BYTES >> 10} KiB", cure=ONE)
    if "\0" in text:
        raise UsageError("the command holds a NUL, which no command can", cure=CURE)
    text = _UNSAID.sub(lambda found: _SEEN_AS.get(found.lastgroup or "", found[0]), text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError as error:
        raise UsageError(
            f"the command cannot be split into words: {error}".lower(), cure="Close every quote."
        ) from error


def check_size(words: Sequence[str]) -> None:
    """Raises UsageError where there is no command, or more of it than any person types."""
    if not words:
        raise UsageError("there is no command", cure=ONE)
    if len(words) > MOST_WORDS or sum(map(len, words)) > LONGEST_BYTES:
        raise UsageError(f"the command has more than {MOST_WORDS:,} words or {LONGEST_BYTES >> 10} KiB", cure=ONE)
    if any("\0" in word for word in words):
        raise UsageError("the command holds a NUL, which no command can", cure=CURE)


def starting_command(words: Sequence[str]) -> list[str]:
    """Of what operators (;, &&, |) part, the one command that starts an engine, after what was exported to it."""
    if any(word == "$" and words[i + 1][:1] == "(" for i, word in enumerate(words[:-1])):
        raise UsageError("the command holds $(...), which only a shell could run", cure="Give its value.")
    segments: list[list[str]] = [[]]
    to_a_file = False
    for word in words:
        if to_a_file:
            to_a_file = False
        elif _REDIRECTION.fullmatch(word):
            to_a_file = True
        elif _OPERATORS.fullmatch(word):
            segments.append([])
        else:
            segments[-1].append(word)
    starting = [place for place, segment in enumerate(segments) if started(segment) is not None]
    if len(starting) > 1:
        raise UsageError("several servers are started there", cure="Give one command at a time.")
    if not starting:
        return list(words)
    exports = [segment for segment in segments[: starting[0]] if segment[:1] == ["export"]]
    exported = [word for segment in exports for word in segment if ASSIGNMENT.fullmatch(word)]
    return [*exported, *segments[starting[0]]]


def opened(words: Sequence[str]) -> list[str]:
    """With what `bash -c '...'` would run in place of it."""
    for place, (shell, flag, _) in enumerate(zip(words, words[1:], words[2:], strict=False)):
        if shell.rpartition("/")[2] in _SHELLS and re.fullmatch(r"-[a-z]*c", flag):
            inside = starting_command(words_of(words[place + 2]))
            if started(inside) is not None:
                return [*words[:place], *inside, *words[place + 3 :]]
    return list(words)
