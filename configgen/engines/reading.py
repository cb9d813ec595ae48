"""Commands that people run, read word by word: an engine's spellings are data, and no shell ever sees them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

from configgen.engines.spellings import LANGUAGES, LAUNCHERS, Entry, Language
from probe.errors import UsageError, one_line
from probe.units import some

LONGEST_BYTES = 64 << 10
MOST_WORDS = 2048
MOST_NUMBER = 10**9

Files = Callable[[str], Mapping[str, object]]
"""Reads an engine's options file; raises UsageError."""

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_NUMBER = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([kmgtKMGT]?)")
_FACTORS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_OPERATORS = re.compile(r"[();<>|&]+")
_CURE = "Give the command as you type it, in quotes, or its words after --."
_ONE = "Give the one command that starts the server, like 'vllm serve MODEL -tp 4'."


@dataclass(frozen=True)
class Command:
    """What a command says, by meaning ('tp': '4'), before any law; of equal flags the last counts, as in engines."""

    engine: str
    model: str | None
    said: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    """Flags that are in no table here."""
    notes: tuple[str, ...] = ()

    def has(self, meaning: str) -> bool:
        return meaning in self.said

    def number(self, meaning: str, default: int = 1) -> int:
        """A positive whole number; '8k' and '8K' as vLLM reads them. Raises UsageError naming the spelling."""
        text = self.said.get(meaning)
        if text is None:
            return default
        match = _NUMBER.fullmatch(text)
        value = float(match.group(1)) * _FACTORS.get(match.group(2), 1) if match else 0.0
        if not 1 <= value <= MOST_NUMBER or value != int(value):
            raise UsageError(
                f"{meaning} is {one_line(text, 40)!r}, which is no positive whole number", cure="Give 1 or more."
            )
        return int(value)

    def fraction(self, meaning: str) -> float | None:
        text = self.said.get(meaning)
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{0,3}(\.[0-9]{1,12})?", text) or not text or not 0 < float(text) <= 1:
            raise UsageError(f"{meaning} is {one_line(text, 40)!r}, which is no fraction of 1", cure="Give 0.9 or so.")
        return float(text)

    def numbers(self, meaning: str) -> tuple[int, ...] | None:
        """'27,27,26' or '[27, 27, 26]'; None where it is not said. Raises UsageError."""
        text = self.said.get(meaning)
        if text is None:
            return None
        parts = [part.strip() for part in text.strip("[] ").split(",")][:MOST_WORDS]
        if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
            raise UsageError(f"{meaning} is {one_line(text, 60)!r}: no list of numbers", cure="Write it like 27,27,26.")
        return tuple(map(int, parts))

    def names(self, meaning: str) -> tuple[str, ...] | None:
        """'0,1' or 'GPU-a,GPU-b', each stripped; None where it is not said."""
        text = self.said.get(meaning)
        return None if text is None else tuple(part.strip() for part in text.split(","))[:MOST_WORDS]


def read_command(told: str | Sequence[str], files: Files | None = None) -> Command:
    """A command line, or its words, as an engine would take them. Raises UsageError in one line."""
    words = _split(told) if isinstance(told, str) else list(told)
    _check_size(words)
    if isinstance(told, str):
        words = _segment(words)
    environment, words = _environment(words)
    place, entry, language = _entry(words)
    said: dict[str, str] = {}
    unknown: list[str] = []
    notes: list[str] = []
    _prefix(words[:place], said, environment, notes)
    rest = words[place + len(entry.words) :]
    positionals = _flags(rest, language, said, unknown, notes)
    model = said.pop("model", None) or (positionals[0] if positionals and language.model_first else None)
    said = _with_files(language, said, files, unknown, notes)
    model, _ = model or said.get("model"), said.pop("model", None)
    said |= {meaning: environment[name] for name, meaning in language.variables.items() if environment.get(name)}
    for text in (model, *(said.get(m) for m in language.sizes)):
        if text is not None and re.match(r"\$|`", text):
            what = f"the command holds {one_line(text, 40)!r}, which only a shell could fill in"
            raise UsageError(what, cure="Give its value.")
    return Command(language.engine, model, said, environment, tuple(unknown), tuple(notes))


def _split(text: str) -> list[str]:
    """As a POSIX shell splits it, nothing expanded; operators are words of their own."""
    if len(text.encode(errors="replace")) > LONGEST_BYTES:
        raise UsageError(f"the command is longer than {LONGEST_BYTES >> 10} KiB", cure=_ONE)
    if "\0" in text:
        raise UsageError("the command holds a NUL, which no command can", cure=_CURE)
    text = re.sub(r"\\\r?\n", " ", text)
    text = re.sub(r"(?<=\s)[0-9](?=>)", "", text)  # 2>file: the number is the redirection's
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError as error:
        raise UsageError(
            f"the command cannot be split into words: {error}".lower(), cure="Close every quote."
        ) from error


def _check_size(words: Sequence[str]) -> None:
    if not words:
        raise UsageError("there is no command", cure=_ONE)
    if len(words) > MOST_WORDS or sum(map(len, words)) > LONGEST_BYTES:
        raise UsageError(f"the command has more than {MOST_WORDS:,} words or {LONGEST_BYTES >> 10} KiB", cure=_ONE)
    if any("\0" in word for word in words):
        raise UsageError("the command holds a NUL, which no command can", cure=_CURE)


def _segment(words: Sequence[str]) -> list[str]:
    """Of what operators (;, &&, |, >) part, the one command that starts an engine, after what was exported to it."""
    if any(word == "$" and words[i + 1][:1] == "(" for i, word in enumerate(words[:-1])):
        raise UsageError("the command holds $(...), which only a shell could run", cure="Give its value.")
    segments: list[list[str]] = [[]]
    for word in words:
        if _OPERATORS.fullmatch(word):
            segments.append([])
        else:
            segments[-1].append(word)
    starting = [place for place, segment in enumerate(segments) if _find(segment) is not None]
    if len(starting) > 1:
        raise UsageError("several servers are started there", cure="Give one command at a time.")
    if not starting:
        return list(words)
    exports = [segment for segment in segments[: starting[0]] if segment[:1] == ["export"]]
    exported = [word for segment in exports for word in segment if _ASSIGNMENT.fullmatch(word)]
    return [*exported, *segments[starting[0]]]


def _environment(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Leading VAR=value words, also behind `export`, `exec` or `env`."""
    found: dict[str, str] = {}
    left = list(words)
    while left:
        assigned = _ASSIGNMENT.fullmatch(left[0])
        if assigned is not None:
            found[assigned.group(1)] = assigned.group(2)
        elif left[0] == "env" and left[1:2] == ["-u"]:
            found.pop("".join(left[2:3]), None)
            del left[1:3]
        elif left[0] not in ("env", "exec", "export", "nohup", "sudo", "time"):
            break
        del left[0]
    return found, left


def _find(words: Sequence[str]) -> tuple[int, Entry, Language] | None:
    """Where an engine is started: the first words that are an entry of one."""
    for place in range(len(words)):
        for language in LANGUAGES:
            for entry in language.entries:
                if entry.fits(words, place):
                    return place, entry, language
    return None


def _entry(words: Sequence[str]) -> tuple[int, Entry, Language]:
    found = _find(words)
    if found is None:
        known = ", ".join(language.example for language in LANGUAGES)
        first = f", but {one_line(words[0], 60)!r}" if words else ""
        raise UsageError(f"no known engine is started there{first}", cure=f"Give one of: {known}.")
    return found


def _prefix(words: Sequence[str], said: dict[str, str], environment: dict[str, str], notes: list[str]) -> None:
    """What stands before the engine: launchers whose numbers count, others with a note."""
    left = list(words)
    while left:
        name, *rest = left
        launcher = next((known for known in LAUNCHERS if name.rpartition("/")[2] in known.names), None)
        if launcher is None:
            if not re.fullmatch(r"(.*/)?python[0-9.]*", name) and name != "-m":
                notes.append(f"{one_line(name, 40)!r} before the engine is not read")
            left = rest
            continue
        own: list[str] = []
        unknown: list[str] = []
        left = _flags(rest, launcher.language, said, unknown, own, stop_at_word=True)
        notes += own
        for name, value in _exported(rest):
            environment.setdefault(name, value)


def _exported(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """mpirun -x NAME=value."""
    for flag, value in pairwise(words):
        assigned = _ASSIGNMENT.fullmatch(value)
        if flag == "-x" and assigned is not None:
            yield assigned.group(1), assigned.group(2)


def _flags(
    words: Sequence[str],
    language: Language,
    said: dict[str, str],
    unknown: list[str],
    notes: list[str],
    *,
    stop_at_word: bool = False,
) -> list[str]:
    """Fills `said`; returns what is no flag, or, for a launcher, all from its first such word on."""
    positionals: list[str] = []
    swallowed: list[str] = []
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if not _is_flag(word):
            if stop_at_word:
                return list(words[i - 1 :])
            positionals.append(word)
            continue
        name, equals, value = word.partition("=")
        name, known = _known(name, language, notes)
        if known is None:
            if name not in (*unknown, *language.alone, *language.beside):
                unknown.append(name)
            alone = name in language.alone or language.alone_like.match(name) is not None
            if not equals and not alone and i < len(words) and not _is_flag(words[i]):
                swallowed.append(words[i])
                i += 1
            continue
        meaning, constant = known
        if constant is not None:
            said.pop(meaning, None)
            if constant:
                said[meaning] = constant
            continue
        if not equals:
            if i == len(words) or _is_flag(words[i]):
                raise UsageError(f"{one_line(name, 60)} needs a value", cure="Write it behind the flag.")
            value = words[i]
            more = takewhile(lambda w: not _is_flag(w), words[i + 1 :]) if meaning in language.several else ()
            values = [value, *more]
            value = ",".join(values)
            i += len(values)
        said[meaning] = value
    if not positionals and language.model_first and len(swallowed) == 1:
        return swallowed  # `--some-switch MODEL`: a switch that is in no table
    return positionals


def _known(name: str, language: Language, notes: list[str]) -> tuple[str, tuple[str, str | None] | None]:
    """(spelling as the engine has it, (meaning, what a switch sets; None where a value follows)), or None."""
    plain = f"--{name[2:].replace('_', '-')}" if language.dashes_alike and name.startswith("--") else name
    found = language.flags.get(plain)
    if found is None and len(plain) > 4 and plain.startswith("--") and plain not in language.alone:
        longer = sorted(known for known in language.flags if known.startswith(plain))
        if longer and len({language.flags[known] for known in longer}) == 1:
            notes.append(f"{one_line(name, 60)} is read as {longer[0]}")
            found = language.flags[longer[0]]
    return plain, found


def _is_flag(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and not re.match(r"-[0-9.]", word)


def _with_files(
    language: Language, said: dict[str, str], files: Files | None, unknown: list[str], notes: list[str]
) -> dict[str, str]:
    """With what an options file says: behind the command line, or before it where the engine has it so."""
    path = said.pop("options file", None)
    if path is None:
        return said
    if files is None:
        notes.append(f"{one_line(path, 80)} is not read: what it says is missing here")
        return said
    told: dict[str, str] = {}
    for key, value in _flat(files(path)):
        known = language.keys.get(key)
        if known is None and not language.keys:
            _, flag = _known(f"--{key}", language, notes)
            known = flag[0] if flag is not None else None
        if known is None:
            unknown.append(one_line(key, 60))
        elif value is not False and value is not None:
            told[known] = "" if value is True else str(value)
    return said | told if language.file_wins else told | said


def _flat(told: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    for key, value in told.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def unread(command: Command) -> str | None:
    """A line on the flags that no table here has."""
    if not command.unknown:
        return None
    return f"not read: {some([one_line(name, 60) for name in command.unknown], 8)}"
