"""The only place where quantities become text, and text becomes quantities."""

from __future__ import annotations

import re
from collections.abc import Sequence

from probe.errors import UsageError

GIB = 1 << 30

_UNIT_BYTES = {
    "": GIB, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": GIB, "tib": 1 << 40, "k": 1 << 10, "m": 1 << 20, "g": GIB, "t": 1 << 40,
}  # fmt: skip
_MOST_BARE_GIB = 10_000
"""More than any GPU or host has: whoever writes more without a unit means bytes or MiB."""
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """'24GiB' -> bytes. GB = 1e9, GiB = 2**30; a bare number is GiB, as vendors print it. Raises UsageError."""
    match = _QUANTITY.fullmatch(text) if len(text) <= 64 else None
    factor = _UNIT_BYTES.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is no amount of memory", cure="Write it like 24GiB, 80GB or 24.")
    number, unit = match.groups()
    amount = int(float(number) * factor)
    if not unit and amount > _MOST_BARE_GIB * GIB:
        raise UsageError(f"{text!r} has no unit and would be GiB", cure=f"Name the unit: {number}B or {number}MiB.")
    if not 0 < amount < 1 << 50:
        raise UsageError(f"{text!r} is no possible amount", cure="Write it like 24GiB, 80GB or 24 (GiB), 512MiB.")
    return amount


_UNIT_S = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_seconds(text: str) -> float:
    """'20s', '500ms', '2m' or '20' -> seconds. Raises UsageError."""
    match = _QUANTITY.fullmatch(text[:64])
    factor = _UNIT_S.get(match.group(2).lower()) if match else None
    seconds = float(match.group(1)) * factor if match and factor else 0.0
    if not 0 < seconds <= 1e6:
        raise UsageError(f"{text!r} is no span of time", cure="Write it like 20s, 500ms or 2m.")
    return seconds


def gib(size_bytes: float) -> str:
    """85899345920 -> '80.0 GiB'."""
    return f"{size_bytes / GIB:.1f} GiB"


def mib(size_bytes: float) -> str:
    """67108864 -> '64 MiB'; less than one with its digits."""
    size = size_bytes / (1 << 20)
    return f"{size:,.0f} MiB" if size >= 1 else f"{size:.2g} MiB"


def gigabytes(size_bytes: float) -> str:
    """141107412992 -> '141.1 GB' (1e9 bytes)."""
    return f"{size_bytes / 1e9:.1f} GB"


def gbps(bandwidth_gbps: float) -> str:
    """Bandwidth in 1e9 bytes/s."""
    return f"{bandwidth_gbps:.3g} GB/s"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """(1, 'GPU') -> '1 GPU', (16384, 'GPU') -> '16,384 GPUs'."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def parameters(number: float) -> str:
    """8.03e9 -> '8.03 B'."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def ranges(numbers: list[int] | tuple[int, ...]) -> str:
    """(0, 1, 2, 5) -> '0-2,5': ascending runs folded, order kept."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" if len(r) > 2 else f"{r[0]},{r[1]}" for r in runs)


def some(things: Sequence[str], most: int = 6) -> str:
    """The first of many: 'a, b, c and 12 more'."""
    return ", ".join(things[:most]) + (f" and {len(things) - most} more" if len(things) > most else "")


def message_size(size_bytes: int) -> str:
    """16384 -> '16 KiB', 1 << 30 -> '1 GiB'; what is no whole number of them with its digits: 1500 -> '1.46 KiB'."""
    for unit, letter in ((GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{figure(size_bytes / unit)} {letter}"
    return f"{size_bytes:,} B"


def figure(value: float) -> str:
    """Three digits that count, without an exponent: 0.123, 12.3, 1,234."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}" if value >= 1e-4 else f"{value:.1e}"


def seconds(value: float) -> str:
    """0.0123 -> '12.3 ms'."""
    if value >= 1:
        return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def spread(half_width: float) -> str:
    """How far a figure may be off: 0.28 -> '28%', 1.3 -> 'a factor of 2.3', since no time is less than nothing."""
    return f"{half_width:.0%}" if half_width < 1 else f"a factor of {1 + half_width:.2g}"
