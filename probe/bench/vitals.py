"""What a process shows of itself to the one that started it: a beat, its last words, whether it is stopped."""

from __future__ import annotations

import mmap
from pathlib import Path

_WORDS_BYTES = 1 << 10
_BEAT_BYTES = 8


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger holds this process (proc(5): state T or t)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


class Vitals:
    """One beat and one text per rank of a node; each rank writes only its own."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._beats = memoryview(mmap.mmap(-1, max(1, ranks) * _BEAT_BYTES)).cast("Q")
        self._words = mmap.mmap(-1, max(1, ranks) * _WORDS_BYTES)

    def beat(self, place: int) -> None:
        self._beats[place] += 1

    @property
    def beats(self) -> tuple[int, ...]:
        """How often each rank has beaten: whoever is behind the others is what they wait for."""
        return tuple(self._beats[: self._ranks])

    def say(self, place: int, text: str) -> None:
        words = text.encode()[: _WORDS_BYTES - 1]
        self._words[place * _WORDS_BYTES : place * _WORDS_BYTES + len(words)] = words

    @property
    def errors(self) -> tuple[str, ...]:
        """The last words of each rank, '' where it said none."""
        slots = (self._words[i * _WORDS_BYTES : (i + 1) * _WORDS_BYTES] for i in range(self._ranks))
        return tuple(slot.partition(b"\0")[0].decode(errors="replace") for slot in slots)
