"""What makes a curve's figures unstable, each kind with its cure."""

from __future__ import annotations

from dataclasses import dataclass

from probe.curve import Profile, profile
from probe.measurement import Curve, Sample
from probe.statistics import far_out, median, rounds_disagree, two_levels

WIDE = 0.05
"""Half-width of an interval above which a figure is called uncertain: plans closer than that are no different."""
_DRIFT = 0.05
_TAIL_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Instability:
    """A reason to trust some figures of a curve less. `code` is stable; `cure` says what makes them better."""

    code: str
    """'uncertain', 'seen-once', 'drift', 'bimodal' or 'outliers'."""
    sizes_bytes: tuple[int, ...]
    seen: str
    cure: str
    worst: float
    """How much of it, at the worst size: what `seen` says in words."""


def instabilities(curve: Curve, read: Profile | None = None) -> tuple[Instability, ...]:
    """What is unstable in a curve, each kind once with the sizes that it holds for, the gravest first. `read` is its
    profile beside the other curves of its survey."""
    intervals = (read or profile(curve)).intervals_s
    found: dict[str, list[tuple[int, float]]] = {code: [] for code in _SAID}
    for sample, ends in zip(curve.samples, intervals, strict=True):
        for code, how_much in _unstable(sample, ends):
            found[code].append((sample.size_bytes, how_much))
    return tuple(
        Instability(code, tuple(size for size, _ in where), said.format(worst), cure, worst)
        for code, (said, cure) in _SAID.items()
        if (where := found[code]) and (worst := max(much for _, much in where)) is not None
    )


_SAID = {
    "drift": (
        "visits to the same point differ by up to {:.0%}, more than the times of one visit do",
        "Measure when the machine is idle, or with a longer --budget; figures closer than that are no different.",
    ),
    "bimodal": (
        "times gather at two levels, up to {:.0%} apart, and the median lies in one of them by chance",
        "Fix the clocks, stop other work on these GPUs and links, and measure again with --fresh.",
    ),
    "uncertain": (
        "the median is only known to +-{:.0%}",
        "Measure longer: --budget 60s.",
    ),
    "outliers": (
        "up to {:.0%} of the times are far above the others",
        "Look for what interrupts the machine (other processes, clocks); the median stands, latency limits may not.",
    ),
    "seen-once": (
        "visited only once, so that drift between visits is unknown",
        "Measure longer: --budget 60s.",
    ),
}
"""code -> what is seen, with the largest figure of all sizes; the cure."""


def _unstable(sample: Sample, ends: tuple[float, float] | None) -> list[tuple[str, float]]:
    found = []
    middles = [median(one) for one in sample.rounds_s]
    # Two rounds at different levels look like two levels: drift is then the better word.
    if rounds_disagree(sample.rounds_s, _DRIFT):
        found.append(("drift", max(middles) / min(middles) - 1))
    elif levels := two_levels(sample.times_s):
        found.append(("bimodal", levels.upper_s / levels.lower_s - 1))
    if ends is not None and (half := (ends[1] - ends[0]) / 2 / sample.p50_s) > WIDE:
        found.append(("uncertain", half))
    if (far := far_out(sample.times_s)) > max(1, _TAIL_SHARE * sample.n):
        found.append(("outliers", far / sample.n))
    if len(sample.rounds_s) == 1:
        found.append(("seen-once", 1))
    return found
