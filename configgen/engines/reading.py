"""Commands that people run, read word by word: an engine's spellings are data, and no shell ever sees them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import takewhile

from configgen.engines.language import Entry, Language
from configgen.engines.shell import ASSIGNMENT, MOST_WORDS, check_size, opened, starting_command, words_of
from configgen.engines.spellings import LANGUAGES, LAUNCHERS, started
from probe.errors import UsageError, one_line
from probe.units import some

MOST_NUMBER = 10**9

Files = Callable[[str], Mapping[str, object]]
"""Reads an engine's options file; raises UsageError."""

_WHOLE = re.compile(r" *\+?([0-9]+(?:_[0-9]+)*) *", re.ASCII)
_SUFFIXED = re.compile(r" *([0-9]{1,12}(?:\.[0-9]{1,6}(?=[kmgt]))?)([kmgtKMGT]) *")
_FACTORS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_FRACTION = re.compile(r"\+?([0-9]{1,3}(\.[0-9]{0,12})?|\.[0-9]{1,12})(e[+-]?[0-9]{1,2})?", re.IGNORECASE)
_NEAR = 0.88
"""Likeness (difflib's ratio) from which on a flag is a slip for another: one or two letters of most flags."""


@dataclass(frozen=True)
class Command:
    """What a command says, by meaning ('tp': '4'), before any law; of equal flags the last counts, as in engines."""

    engine: str
    model: str | None
    said: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    """Flags that are in no table here."""
    refused: tuple[str, ...] = ()
    """What the engine's own parser ends with."""
    notes: tuple[str, ...] = ()
    suffixed: frozenset[str] = frozenset()
    """Meanings whose number may be '8k'."""

    def has(self, meaning: str) -> bool:
        return meaning in self.said

    def number(self, meaning: str, default: int = 1) -> int:
        """A positive whole number, as int() reads it; '8k' and '8K' where the engine takes them. Raises UsageError."""
        text = self.said.get(meaning)
        if text is None:
            return default
        whole = _WHOLE.fullmatch(text[:200])
        scaled = _SUFFIXED.fullmatch(text) if meaning in self.suffixed else None
        value = float(whole[1].replace("_", "")) if whole else 0.0
        if scaled is not None:
            value = float(int(float(scaled[1]) * _FACTORS[scaled[2]]))
        if not 1 <= value <= MOST_NUMBER:
            raise UsageError(
                f"{meaning} is {one_line(text, 40)!r}, which is no positive whole number", cure="Give 1 or more."
            )
        return int(value)

    def fraction(self, meaning: str) -> float | None:
        text = self.said.get(meaning)
        if text is None:
            return None
        if not _FRACTION.fullmatch(text) or not 0 < float(text) <= 1:
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


@dataclass
class _Reading:
    """What has been read so far, of the engine and of all that stands before it."""

    said: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_command(told: str | Sequence[str], files: Files | None = None) -> Command:
    """A command line, or its words, as an engine would take them. Raises UsageError in one line."""
    words = words_of(told) if isinstance(told, str) else list(told)
    check_size(words)
    words = opened(words)
    if isinstance(told, str):
        words = starting_command(words)
    place, entry, language = _entry(words)
    read = _Reading()
    _before(words[:place], read)
    positionals = _flags(words[place + len(entry.words) :], language, read)
    model = _model(positionals, language, read)
    said = _with_files(language, read, files)
    model, _ = model or said.get("model"), said.pop("model", None)
    for name, meaning in language.variables.items():
        value = read.environment.get(name)
        if value or (value is not None and meaning == "visible devices"):  # an empty one hides every GPU
            said[meaning] = value
    for text in (model, *(said.get(m) for m in language.sizes)):
        if text is not None and re.match(r"\$|`", text):
            what = f"the command holds {one_line(text, 40)!r}, which only a shell could fill in"
            raise UsageError(what, cure="Give its value.")
    unknown, refused, notes = (tuple(dict.fromkeys(texts)) for texts in (read.unknown, read.refused, read.notes))
    return Command(language.engine, model, said, read.environment, unknown, refused, notes, language.suffixed)


def _entry(words: Sequence[str]) -> tuple[int, Entry, Language]:
    found = started(words)
    if found is None:
        known = ", ".join(language.example for language in LANGUAGES)
        first = f", but {one_line(words[0], 60)!r}" if words else ""
        cure = f"Give one of: {known}; of a container or a script, the command in it."
        raise UsageError(f"no known engine is started there{first}", cure=cure)
    return found


def _model(positionals: Sequence[str], language: Language, read: _Reading) -> str | None:
    """The model of the command line; every other word that is no flag is one that the engine refuses."""
    told = read.said.pop("model", None)
    first = positionals[:1] if language.model_first else []
    extra = [*positionals[len(first) :], *(first if told is not None and language.model_once else [])]
    if extra:
        words = some([one_line(word, 40) for word in extra], 4)
        read.refused.append(f"{language.name} refuses the command: no flag takes {words}")
    return told or (first[0] if first else None)


def _before(words: Sequence[str], read: _Reading) -> None:
    """What stands before the engine: its environment, launchers whose numbers count, others with a note."""
    left = list(words)
    while left:
        name, *left = left
        assigned = ASSIGNMENT.fullmatch(name)
        if assigned is not None:
            read.environment[assigned[1]] = assigned[2]
            continue
        launcher = next((known for known in LAUNCHERS if name.rpartition("/")[2] in known.names), None)
        if launcher is None:
            if not re.fullmatch(r"(.*/)?python[0-9.]*", name) and name != "-m":
                read.notes.append(f"{one_line(name, 40)!r} before the engine is not read")
            continue
        own = _Reading(read.said, read.environment, notes=read.notes)
        left = _flags(left, launcher.language, own, stop_at_word=True)[launcher.operands :]
        _environment(own)


def _environment(read: _Reading) -> None:
    """What a launcher's flags make of the environment: `env -i`, `env -u A`, `mpirun -x A=b`, `docker run -e A=b`."""
    if read.said.pop("cleared", None):
        read.environment.clear()
    for name in read.said.pop("unset", "").split("\0"):
        read.environment.pop(name, None)
    for text in read.said.pop("exported", "").split("\0"):
        assigned = ASSIGNMENT.fullmatch(text)
        if assigned is not None:
            read.environment[assigned[1]] = assigned[2]
    gpus = re.fullmatch(r'"?device=([0-9A-Za-z,-]{1,2000})"?', read.said.pop("container GPUs", ""))
    if gpus is not None:
        read.environment.setdefault("CUDA_VISIBLE_DEVICES", gpus[1])


def _flags(words: Sequence[str], language: Language, read: _Reading, *, stop_at_word: bool = False) -> list[str]:
    """Fills `read`; returns what is no flag, or, for a launcher, all from its first such word on."""
    positionals: list[str] = []
    swallowed: list[str] = []
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if word == "--":
            return [*positionals, *words[i:]]
        if not _is_flag(word):
            if stop_at_word:
                return list(words[i - 1 :])
            positionals.append(word)
            continue
        name, equals, value = word.partition("=")
        if not equals and word not in language.flags and language.glued and word[:2] in language.flags:
            name, equals, value = word[:2], "=", word[2:]
        name, known = _known(name, language, read)
        values = list(takewhile(lambda w: not _is_flag(w), words[i:]))
        if known is None:
            alone = name in language.alone or language.alone_like.match(name) is not None
            if not equals and not alone:
                one = name in language.beside and name not in language.several
                taken = values[:1] if one else values  # a flag that is in no table may take several
                i += len(taken)
                swallowed += taken if name not in language.beside else []
            continue
        meaning, constant = known
        if constant is not None:
            if equals:
                read.refused.append(f"{language.name} refuses {one_line(word, 60)}: the flag takes no value")
            read.said.pop(meaning, None)
            if constant:
                read.said[meaning] = constant
            continue
        if not equals:
            if not values:
                raise UsageError(f"{one_line(name, 60)} needs a value", cure="Write it behind the flag.")
            taken = values if meaning in language.several else values[:1]
            value = ",".join(taken)
            i += len(taken)
        before = [read.said[meaning]] if meaning in language.repeated and meaning in read.said else []
        read.said[meaning] = "\0".join([*before, value])
    if not positionals and language.model_first and swallowed and "model" not in read.said:
        return swallowed[-1:]  # `--some-switch MODEL`, `--some-flag 1 MODEL`: in no table
    return positionals


def _known(name: str, language: Language, read: _Reading) -> tuple[str, tuple[str, str | None] | None]:
    """(spelling as the engine has it, (meaning, what a switch sets; None where a value follows)), or None.

    What is in no table is noted, or a refusal where it was meant to decide the placement.
    """
    plain = f"--{name[2:].replace('_', '-')}" if language.dashes_alike and name.startswith("--") else name
    if plain in language.all_flags:
        return plain, language.flags.get(plain)
    longer = sorted(known for known in language.all_flags if known.startswith(plain)) if plain[:2] == "--" else []
    shown, meant = one_line(name, 60), {language.flags.get(known, (known, None)) for known in longer}
    if language.abbreviates and len(meant) == 1:
        if longer[0] in language.flags:
            read.notes.append(f"{shown} is read as {longer[0]}")
        return longer[0], language.flags.get(longer[0])
    if language.abbreviates and len(longer) > 1:
        read.refused.append(f"{language.name} refuses {shown}: it may be {some(longer, 4)}")
    elif (size := _size_like(plain, language)) is not None:
        read.refused.append(f"{language.name} has no {shown}" + (f": say {size}" if size else ""))
    else:
        read.unknown.append(plain)
    return plain, None


def _size_like(name: str, language: Language) -> str | None:
    """The flag of this engine that another engine's spelling or a slip of the hand meant; '' where it has none."""
    if language.alone_like.match(name):
        return None
    own = {_bare(flag): flag for flag in reversed(language.size_spellings)}
    bare = _bare(name)
    if (slip := re.sub(r"[0-9]+$", "", bare)) in own:
        return own[slip]
    for other in LANGUAGES:
        meaning = next((other.flags[flag][0] for flag in other.size_spellings if _bare(flag) == bare), None)
        if meaning is not None:
            return (language.values.get(meaning) or language.switches.get(meaning) or "").partition(" ")[0]
    begun = next((flag for flag in language.size_spellings if len(bare) > 1 and flag.startswith(f"--{bare}")), None)
    near = get_close_matches(bare, own, 1, _NEAR) if 6 < len(bare) < 60 else []
    return begun or (own[near[0]] if near else None)


def _bare(flag: str) -> str:
    return flag.lstrip("-").replace("_", "-").lower()


def _is_flag(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and not re.match(r"-[0-9.]", word)


def _with_files(language: Language, read: _Reading, files: Files | None) -> dict[str, str]:
    """With what an options file says: behind the command line, or before it where the engine has it so."""
    path = read.said.pop("options file", None)
    if path is None:
        return read.said
    if language.file_ends and not path.lower().endswith(language.file_ends):
        ends = " or ".join(language.file_ends)
        read.refused.append(f"{language.name} refuses the options file {one_line(path, 60)}: it wants {ends}")
    if files is None:
        read.notes.append(f"{one_line(path, 80)} is not read: what it says is missing here")
        return read.said
    told: dict[str, str] = {}
    for key, value in _flat(files(path)):
        known = language.keys.get(key)
        if known is None:
            known = _of_a_file(key, language, read)
        if known is None or value is False or value is None:
            continue
        if isinstance(value, list):
            several = known in language.several or known in language.keys.values()
            if len(value) > 1 and not several:
                read.refused.append(f"{language.name} refuses a list of several for {one_line(key, 40)}: write a text")
            value = ",".join(map(str, value))
        told[known] = "" if value is True else str(value)
    return read.said | told if language.file_wins else told | read.said


def _of_a_file(key: str, language: Language, read: _Reading) -> str | None:
    """What a key means that stands for a flag; a key that nothing has is noted as a flag is."""
    if not language.keys:
        _, flag = _known(f"--{key}", language, read)
        return flag[0] if flag is not None else None
    size = _size_like(f"--{key}", language)
    if size is None:
        read.unknown.append(one_line(key, 60))
    else:
        read.refused.append(f"{language.name}'s options file has no {one_line(key, 60)}")
    return None


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
