"""What the driver answered, fact by fact, as the reader printed it. Pure; lines may come from a recording too."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

MAX_LINE_BYTES = 1 << 16
Key = tuple[str, tuple[int, ...]]


class Reading(NamedTuple):
    """A value, or the driver's error: its nvmlReturn_t (-1: the bindings failed) and its name ('GpuIsLost')."""

    value: object = None
    error: int | None = None
    name: str | None = None


_ABSENT = Reading()


@dataclass(frozen=True)
class Facts:
    """Readings by fact and place: ('name', (3,)) is GPU 3's name, ('p2p', (0, 1, 2)) capability 2 from GPU 0 to 1.

    `broken` says why the reading ended before its end ('no answer within 20 s'), None where it is complete. The typed
    getters give None for an error, an absent fact, and a value of another type or sign.
    """

    readings: dict[Key, Reading]
    broken: str | None = None

    @classmethod
    def from_lines(cls, lines: Iterable[bytes], broken: str | None = None) -> Facts:
        """Lines that are no facts are dropped: a killed reader leaves half a line. A later fact replaces an earlier."""
        readings: dict[Key, Reading] = {}
        for line in lines:
            try:
                told = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
            except (ValueError, RecursionError):
                continue
            if not isinstance(told, dict):
                continue
            fact, at = told.get("fact"), told.get("at")
            if isinstance(fact, str) and isinstance(at, list) and all(type(i) is int for i in at):
                error, name = told.get("error"), told.get("name")
                readings[fact, tuple(at)] = Reading(
                    told.get("value"),
                    error if type(error) is int else None,
                    name if isinstance(name, str) else None,
                )
        complete = ("end", ()) in readings
        return cls(readings, None if complete else broken or "the reader ended early")

    @property
    def last(self) -> str:
        """The last fact that was read, as 'p2p 0 1 2': what came after it did not answer."""
        fact, at = next(reversed(self.readings), ("nothing", ()))
        return " ".join((fact, *map(str, at)))

    def reading(self, fact: str, *at: int) -> Reading:
        return self.readings.get((fact, at), _ABSENT)

    def error(self, fact: str, *at: int) -> int | None:
        return self.reading(fact, *at).error

    def number(self, fact: str, *at: int) -> int | None:
        value = self.reading(fact, *at).value
        return value if type(value) is int and value >= 0 else None

    def numbers(self, fact: str, *at: int) -> tuple[int, ...]:
        value = self.reading(fact, *at).value
        return tuple(value) if isinstance(value, list) and all(type(n) is int and n >= 0 for n in value) else ()

    def text(self, fact: str, *at: int) -> str | None:
        value = self.reading(fact, *at).value
        clean = "".join(c for c in value[:200] if c.isprintable()).strip() if isinstance(value, str) else ""
        return clean or None

    def fields(self, fact: str, *at: int) -> dict[str, object]:
        value = self.reading(fact, *at).value
        return value if isinstance(value, dict) else {}
