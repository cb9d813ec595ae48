"""Whether the confidence that a survey reports is what a second run of the same measurement sees.

Each pair of runs is two complete `wirelore measure` of a lab machine, one after the other, on this host as it is. A
point (operation, group, size) agrees where the two medians differ by no more than both intervals allow together: the
distance of their logarithms is at most sqrt(h1^2 + h2^2), with h the half-width of the logarithm's 95 % interval. For
honest intervals of independent runs that holds for about 95 % of the points. `overlap` is the looser reading, that the
two intervals touch. A point without an interval agrees with nothing.

Bar: 90 % of the points agree. Ends with `name: value` lines; exits 1 below the bar.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from math import hypot, log
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from probe.curve import profiles
from probe.measurement import Survey
from probe.store import decode_survey

BAR = 0.90
WIRELORE = (sys.executable, "-c", "from configgen.cli import main; main()")

Point = tuple[object, ...]
Figure = tuple[float, tuple[float, float] | None]


def measured(machine: str, budget: str, largest: str, folder: Path) -> Survey:
    """One run of its own."""
    output = folder / "survey.json"
    options = ("--backend", "gloo", "--budget", budget, "--largest", largest, "--format", "json", "-o", str(output))
    subprocess.run([*WIRELORE, "measure", "--from", machine, *options], check=True, capture_output=True)
    return decode_survey(output.read_bytes(), where=str(output))


def figures(survey: Survey) -> dict[Point, Figure]:
    """The median of every point, with its interval."""
    found: dict[Point, Figure] = {}
    known = profiles(survey.curves)
    for curve in survey.curves:
        read = known[id(curve)]
        for size, time_s, interval in zip(read.sizes_bytes, read.times_s, read.intervals_s, strict=True):
            found[curve.key, curve.members, size] = time_s, interval
    return found


def agree(one: Figure, other: Figure) -> bool:
    """Within what both intervals allow together."""
    if one[1] is None or other[1] is None:
        return False
    halves = [log(high / low) / 2 for low, high in (one[1], other[1])]
    return abs(log(one[0] / other[0])) <= hypot(*halves)


def overlap(one: Figure, other: Figure) -> bool:
    """Whether the intervals touch."""
    return one[1] is not None and other[1] is not None and one[1][0] <= other[1][1] and other[1][0] <= one[1][1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="machine:l4-2")
    parser.add_argument("--budget", default="40s", help="of each run")
    parser.add_argument("--largest", default="4MiB")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of runs")
    told = parser.parse_args()
    compared: list[tuple[Figure, Figure]] = []
    print(f"{'pair':>4} {'points':>6} {'agree':>6} {'overlap':>7}  median half-width")
    for number in range(told.pairs):
        with tempfile.TemporaryDirectory() as folder:
            one, other = (figures(measured(told.machine, told.budget, told.largest, Path(folder))) for _ in range(2))
        pairs = [(one[point], other[point]) for point in one.keys() & other.keys()]
        compared += pairs
        shares = f"{_share(pairs, agree):>6.1%} {_share(pairs, overlap):>7.1%}"
        print(f"{number + 1:>4} {len(pairs):>6} {shares}  {_width(pairs):.1%}")
    share = _share(compared, agree)
    print(f"points: {len(compared)}")
    print(f"agreement: {share:.4f}")
    print(f"overlap: {_share(compared, overlap):.4f}")
    print(f"median_half_width: {_width(compared):.4f}")
    return 0 if compared and share >= BAR else 1


def _share(pairs: list[tuple[Figure, Figure]], test: Callable[[Figure, Figure], bool]) -> float:
    return sum(test(*pair) for pair in pairs) / max(1, len(pairs))


def _width(pairs: list[tuple[Figure, Figure]]) -> float:
    widths = [log(i[1] / i[0]) / 2 for pair in pairs for _, i in pair if i is not None]
    return median(widths) if widths else float("nan")


if __name__ == "__main__":
    sys.exit(main())
