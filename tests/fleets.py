"""Fleets of machines by description, with honest noise, for tests of what compares them."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Sequence

from probe.fleet_audit import Host, Point, Points, RateKey
from probe.islands import GroupShape
from probe.measurement import CurveKey
from probe.topology import GpuRef

SIZES = (1 << 14, 1 << 19, 1 << 24, 1 << 29)
NOISES: dict[str, Callable[[random.Random], float]] = {
    "normal": lambda rng: rng.gauss(0, 1),
    "laplace": lambda rng: rng.expovariate(1.414) * rng.choice((-1, 1)),
    "student5": lambda rng: rng.gauss(0, 1) / math.sqrt(rng.gammavariate(2.5, 0.4)) * 0.775,
}
"""Of unit variance, the latter two with tails as shared machines have."""


def fleet(
    machines: int,
    rng: random.Random,
    *,
    noise: str = "normal",
    scatter: float = 0.02,
    own: float = 0.0,
    places: int = 24,
) -> tuple[list[Host], Points]:
    """Honest machines: every figure scatters by `scatter`, and each machine as a whole by `own`."""
    points = Points()
    draw = NOISES[noise]
    numbers = [
        (number, _typical_s(point))
        for point in _points(places)
        for number in points.numbers(point.subject, point.members, (point.size_bytes,))
    ]
    hosts = []
    for n in range(machines):
        of_all = own * draw(rng)
        times = [typical_s * math.exp(of_all + scatter * draw(rng)) for _, typical_s in numbers]
        hosts.append(host(n, [number for number, _ in numbers], times))
    return hosts, points


def host(n: int, seen: Sequence[int], times_s: Sequence[float], **changes: object) -> Host:
    told: dict[str, object] = {
        "file": f"survey-{n:04d}.json",
        "hostname": f"node-{n:04d}",
        "fingerprint": "wl1-a",
        "gpus": "8 x GPU",
        "models": ("GPU",),
        "wires": (("NV18", 28),),
        "drivers": ("580",),
        "libraries": ("nccl 2.27",),
        "uuids": frozenset((f"GPU-{n}",)),
        "measured_at": "2026-11-20T00:00:00+00:00",
        "lab": None,
        "seen": array("L", seen),
        "times_s": array("d", times_s),
        **changes,
    }
    return Host(**told)  # type: ignore[arg-type]


def _points(places: int) -> list[Point]:
    members = tuple(GpuRef(0, i) for i in range(8))
    keys = [CurveKey("all_reduce", GroupShape((("NV18", 28),), 1), f"type{n}", "nccl") for n in range(places)]
    rates = [Point(RateKey("hbm_read", "GB/s"), (gpu,), None) for gpu in members]
    return [Point(key, members, size) for key in keys for size in SIZES] + rates


def _typical_s(point: Point) -> float:
    return 15e-6 + point.size_bytes / 300e9 if point.size_bytes else 1 / 3000
