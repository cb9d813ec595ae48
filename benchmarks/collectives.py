"""Reads public tables of collectives with the real curve reader, and scores what it says of sizes it was not shown.

    python benchmarks/collectives.py --table FILE [--every]

The table has one row per measured size, with columns `bytes`, `latency_us`, `op`, `n_gpus` and, if there, `busbw_GBps`
and `notes`. Rows that agree in every other column are one series; of `notes` all counts of bytes are ignored ('nearest
to 2048 B'), since they differ from row to row. Rows without a size or a time, and sizes given twice, are counted.

- Interpolation: each inner size is left out, the rest is read there; the error is |read / measured - 1|. The gap is
  then twice as wide (on log axes) as any that a reader of the whole series meets. A series' figure is the median over
  its sizes. The first and the last size are left out too, but that is extrapolation: shown, no part of the bar.
- Start-up: alpha as it is reported against the median time up to 32 KiB (equal by definition where such sizes are in
  the table), the alpha of the fit, and the alpha told when no size up to 32 KiB is shown.
- busbw: algbw times the factor, against the table's own column.

The bar: the median over the series' figures, and over all sizes of all series, is <= 3 %; every reported alpha is
within 30 %, and none is negative. Ends with one `name: value` line per figure; exits 1 where the bar isn't reached.
Beside it: straight lines on log-log axes (`log_log_*`), how many series reach 3 % by themselves, and how many fall:
there a larger size was faster than a smaller one by more than 3 %, which no reading of the neighbours foretells.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from probe.curve import SMALL_BYTES, Profile, algbw_gbps, bus_factor
from probe.statistics import median, quantile

BAR = 0.03
ALPHA_BAR = 0.30
BUSBW_TOLERANCE = 0.05
"""Tables print bandwidths with two or three digits."""
PER_ROW = ("bytes", "latency_us", "busbw_GBps", "notes")
OPERATIONS = {"alltoall": "all_to_all", "send_recv": "p2p"}
Point = tuple[int, float]
Reader = Callable[[Sequence[Point], int], float]


@dataclass(frozen=True)
class Series:
    name: str
    operation: str
    ranks: int
    points: tuple[Point, ...]
    """(bytes, seconds), ascending."""
    busbw_gbps: tuple[float | None, ...]


def series_of(table: Path) -> tuple[list[Series], int]:
    """The series of a table, and the rows that no series can use."""
    found: dict[tuple[str, ...], dict[int, tuple[float, float | None]]] = defaultdict(dict)
    about: dict[tuple[str, ...], dict[str, str]] = {}
    unused = 0
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = (*(v for k, v in row.items() if k not in PER_ROW), re.sub(r"\d+ B\b", "", row.get("notes") or ""))
            size, time_us = number(row["bytes"]), number(row["latency_us"])
            if size is None or time_us is None or int(size) in found[key]:
                unused += 1
                continue
            found[key][int(size)] = (time_us / 1e6, number(row.get("busbw_GBps")))
            about[key] = row
    return [
        Series(
            " ".join(v for k, v in about[key].items() if k not in PER_ROW),
            OPERATIONS.get(about[key]["op"], about[key]["op"]),
            int(about[key]["n_gpus"]),
            tuple((size, rows[size][0]) for size in sorted(rows)),
            tuple(rows[size][1] for size in sorted(rows)),
        )
        for key, rows in found.items()
        if rows
    ], unused


def number(text: str | None) -> float | None:
    """A positive finite number, None for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def profile_of(points: Sequence[Point]) -> Profile:
    return Profile(tuple(s for s, _ in points), tuple(t for _, t in points), (None,) * len(points))


def read(points: Sequence[Point], size_bytes: int) -> float:
    return profile_of(points).read(size_bytes).time_s


def read_log_log(points: Sequence[Point], size_bytes: int) -> float:
    """A straight line on log-log axes between the neighbours."""
    (s0, t0) = max(p for p in points if p[0] < size_bytes)
    (s1, t1) = min(p for p in points if p[0] > size_bytes)
    share = math.log(size_bytes / s0) / math.log(s1 / s0)
    return math.exp(math.log(t0) + share * math.log(t1 / t0))


def left_out(points: Sequence[Point], reader: Reader, places: Sequence[int]) -> list[float]:
    """Relative errors of reading each of these places from all other points."""
    errors = []
    for at in places:
        size, time_s = points[at]
        errors.append(abs(reader([*points[:at], *points[at + 1 :]], size) / time_s - 1))
    return errors


def falls(points: Sequence[Point]) -> bool:
    """Whether a larger size was ever faster than a smaller one by more than the bar: noise, or another algorithm."""
    highest = 0.0
    for _, time_s in points:
        if time_s < highest * (1 - BAR):
            return True
        highest = max(highest, time_s)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--table", type=Path, required=True, help="CSV, one row per measured size")
    parser.add_argument("--every", action="store_true", help="a line for every series, not only the worst ten")
    options = parser.parse_args()
    series, unused = series_of(options.table)
    figures = scored(series, unused, every=options.every)
    for name, value in figures.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    return 0 if reached(figures) else 1


def reached(figures: dict[str, float]) -> bool:
    """Whether the bar is; a table that nothing can be scored on reaches none."""
    within = all(figures.get(name, math.inf) <= BAR for name in ("series_median_error", "pooled_median_error"))
    return within and figures["alpha_worst_error"] <= ALPHA_BAR and figures["alpha_negative"] == 0


def scored(series: Sequence[Series], unused: int, *, every: bool) -> dict[str, float]:
    """Prints the table and gives the figures by name."""
    inner: list[list[float]] = []
    log_log: list[list[float]] = []
    edges: list[float] = []
    lines: list[tuple[float, float, str]] = []
    for one in series:
        places = range(1, len(one.points) - 1)
        errors = left_out(one.points, read, places)
        if not errors:
            continue
        lines.append((median(errors), max(errors), one.name + (" (falls)" if falls(one.points) else "")))
        inner.append(errors)
        log_log.append(left_out(one.points, read_log_log, places))
        if len(one.points) > 3:
            edges += left_out(one.points, read, (0, len(one.points) - 1))
    print(f"{'median':>8}{'worst':>8}  series, the worst{'' if every else ' ten'} first")
    for middle, worst, name in sorted(lines, reverse=True)[: None if every else 10]:
        print(f"{middle:8.1%}{worst:8.1%}  {name[:150]}")
    figures: dict[str, float] = {"rows_unused": unused, "series": len(series), "series_scored": len(inner)}
    for title, of_series in (("", inner), ("log_log_", log_log)):
        if of_series:
            pooled = sorted(error for own in of_series for error in own)
            middles = [median(own) for own in of_series]
            figures |= {
                f"{title}series_median_error": median(middles),
                f"{title}pooled_median_error": quantile(pooled, 0.5),
                f"{title}pooled_p90_error": quantile(pooled, 0.9),
                f"{title}series_within_bar": sum(middle <= BAR for middle in middles),
            }
    if edges:
        figures["extrapolated_median_error"] = median(edges)
    figures["series_falling"] = sum(falls(one.points) for one in series if len(one.points) > 2)
    return figures | alphas(series) | bandwidths(series)


def alphas(series: Sequence[Series]) -> dict[str, float]:
    """Start-up times against the observed median up to 32 KiB."""
    told, fitted, blind, negative = [], [], [], 0
    for one in series:
        small = [t for size, t in one.points if size <= SMALL_BYTES]
        large = [(size, t) for size, t in one.points if size > SMALL_BYTES]
        whole = profile_of(one.points)
        negative += (whole.alpha_s or 0) < 0 or whole.fit.pieces[0].alpha_s < 0
        if len(small) < 2 or len(large) < 4:
            continue
        seen = median(small)
        told.append(abs((whole.alpha_s or 0) / seen - 1))
        fitted.append(abs(whole.fit.pieces[0].alpha_s / seen - 1))
        blind.append(abs((profile_of(large).alpha_s or 0) / seen - 1))
    return {
        "alpha_series": len(told),
        "alpha_worst_error": max(told, default=math.inf),
        "alpha_negative": negative,
        "alpha_of_fit_within_bar": sum(error <= ALPHA_BAR for error in fitted),
        "alpha_of_fit_median_error": median(fitted) if fitted else math.inf,
        "alpha_unseen_within_bar": sum(error <= ALPHA_BAR for error in blind),
        "alpha_unseen_median_error": median(blind) if blind else math.inf,
    }


def bandwidths(series: Sequence[Series]) -> dict[str, float]:
    """How many rows' own busbw is what size, time and the convention give."""
    right = total = 0
    for one in series:
        for (size, time_s), told in zip(one.points, one.busbw_gbps, strict=True):
            try:
                busbw = algbw_gbps(size, time_s) * bus_factor(one.operation, one.ranks)
            except ValueError:  # an operation that this project has no word for
                continue
            if told is not None:
                total += 1
                right += abs(busbw / told - 1) <= BUSBW_TOLERANCE
    return {"busbw_agreeing": right, "busbw_total": total}


if __name__ == "__main__":
    sys.exit(main())
