"""A survey as JSON inside a page: small enough to travel with it, and nothing in it can end its element. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from probe.measurement import Curve, Sample, Survey
from probe.statistics import quantile
from probe.store import encode_survey
from probe.topology import Origin, Provenance

_MOST_TIMES = 48_000
"""Times that are embedded: some 10 bytes each, so that a page with all curves of 8 GPUs stays well below 1.5 MB."""
_LARGEST_BYTES = 1_000_000
_DIGITS = 4
_TELLING = re.compile(r"[<>&]+|[^\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class Embedded:
    """`text` is JSON that `--from` reads, None where it is too large; `told` says what was left out."""

    text: str | None
    told: str | None


def embedded(survey: Survey) -> Embedded:
    """The survey without what a page has no room for."""
    thin, told = _thinned(survey)
    text = _compact(encode_survey(thin))
    if len(text) > _LARGEST_BYTES:
        return Embedded(None, f"With {len(text) / 1e6:.1f} MB it is too large to travel in a page.")
    return Embedded(escaped(text), told)


def escaped(json: str) -> str:
    """The same JSON without a character that HTML reads or that no screen shows as it is: such stand in strings alone,
    where \\u says them as well."""
    return _TELLING.sub(lambda found: "".join(map(_escape, found.group())), json)


def _escape(char: str) -> str:
    if char.isprintable() and char not in "<>&":
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))


def _thinned(survey: Survey) -> tuple[Survey, str | None]:
    """Where there are too many times, each round as an odd number of evenly spaced quantiles: its median stays."""
    rounds = sum(len(sample.rounds_s) for curve in survey.curves for sample in curve.samples)
    times = sum(sample.n for curve in survey.curves for sample in curve.samples)
    if not times:
        return survey, None
    most = max(1, _MOST_TIMES // rounds) if times > _MOST_TIMES else max(times, 1)
    most -= 1 - most % 2
    told = f"Times have {_DIGITS} digits here"
    if times > _MOST_TIMES:
        told += f", and of each round there are at most {most}: quantiles of all"
    curves = tuple(_curve(curve, most) for curve in survey.curves)
    origin = Origin("curves", Provenance.MEASURED, f"from a page: {told.lower()}")
    return replace(survey, curves=curves, origins=(*survey.origins, origin)), f"{told}."


def _curve(curve: Curve, most: int) -> Curve:
    samples = (Sample(s.size_bytes, tuple(_round(one, most) for one in s.rounds_s)) for s in curve.samples)
    return replace(curve, samples=tuple(samples))


def _round(times_s: tuple[float, ...], most: int) -> tuple[float, ...]:
    kept: tuple[float, ...] = times_s
    if len(times_s) > most:
        ordered = sorted(times_s)
        kept = tuple(quantile(ordered, (i + 0.5) / most) for i in range(most))
    return tuple(float(f"{t:.{_DIGITS}g}") for t in kept)


def _compact(json: bytes) -> str:
    import msgspec

    return msgspec.json.format(json, indent=0).decode()
