"""What a table of spellings is made of: how an engine starts, its flags by meaning, and how its parser takes words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Entry:
    """Words that start an engine, by their last path component; '*' at an end of one stands for any text there."""

    words: tuple[str, ...]

    def fits(self, words: Sequence[str], place: int) -> bool:
        here = words[place : place + len(self.words)]
        return len(here) == len(self.words) and all(map(_alike, self.words, here))


def _alike(pattern: str, word: str) -> bool:
    core = pattern.strip("*")
    if pattern.endswith("*"):
        return core in word
    if pattern.startswith("*"):
        return word.endswith(core)
    return pattern in (word, word.rpartition("/")[2])


@dataclass(frozen=True)
class Language:
    """An engine's words. `values` and `switches` map a meaning to its spellings; 'no ' before one takes it back."""

    engine: str
    name: str
    example: str
    entries: tuple[Entry, ...]
    values: Mapping[str, str]
    switches: Mapping[str, str] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    """Further flags that take no value."""
    beside: frozenset[str] = frozenset()
    """Further flags that take a value and decide nothing here: all that begin as a size does, for its abbreviations."""
    several: frozenset[str] = frozenset()
    """Meanings, and flags of `beside`, that take all words up to the next flag."""
    repeated: frozenset[str] = frozenset()
    """Meanings of which every flag counts, joined by NUL; of others the last one."""
    suffixed: frozenset[str] = frozenset()
    """Meanings whose number may be '8k'."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variable -> meaning."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Key of its options file -> meaning; empty where keys are the long flags."""
    file_wins: bool = False
    file_ends: tuple[str, ...] = ()
    """Of the options file's name; empty for any."""
    model_first: bool = False
    """Whether the model may be a word that is no flag."""
    model_once: bool = False
    """Whether such a word beside the model's flag is one too many."""
    dashes_alike: bool = True
    """Whether '--a_b' is '--a-b'."""
    abbreviates: bool = False
    """Whether the beginning of one long flag stands for it, as argparse has it."""
    glued: bool = True
    """Whether '-n2' is '-n 2'."""
    sizes: tuple[str, ...] = ("tp", "pp", "dp", "ep", "nnodes", "devices", "attention dp", "first GPU", "GPU step")
    """What decides the placement: a flag that only looks like one of these is never passed over."""

    @cached_property
    def flags(self) -> dict[str, tuple[str, str | None]]:
        """Spelling -> (meaning, None where a value follows, else what the switch sets: '' takes it back)."""
        found: dict[str, tuple[str, str | None]] = {}
        for meaning, spelled in self.values.items():
            found |= dict.fromkeys(spelled.split(), (meaning, None))
        for meaning, spelled in self.switches.items():
            plain = meaning.removeprefix("no ")
            found |= dict.fromkeys(spelled.split(), (plain, "yes" if plain == meaning else ""))
        return found

    @cached_property
    def all_flags(self) -> frozenset[str]:
        """Every flag that a table here has."""
        return frozenset(self.flags) | self.alone | self.beside

    @cached_property
    def size_spellings(self) -> tuple[str, ...]:
        """Flags, and keys of the options file, that decide the placement."""
        flags = [flag for flag, (meaning, _) in self.flags.items() if meaning in self.sizes]
        return (*flags, *(f"--{key}" for key, meaning in self.keys.items() if meaning in self.sizes))

    @cached_property
    def alone_like(self) -> re.Pattern[str]:
        """Of both real parsers no flag that begins so takes a value, but for the ones that are named here."""
        return re.compile(
            r"--(enable|disable|no|trust|use|skip|enforce|is)-(?!access-log-for-endpoints)|-O|-h$|--help$|--version$"
        )


@dataclass(frozen=True, slots=True)
class Launcher:
    """What stands before an engine, and the flags by which it counts processes or sets their environment."""

    names: tuple[str, ...]
    language: Language
    operands: int = 0
    """Words of its own behind its flags: a duration, a list of CPUs."""
