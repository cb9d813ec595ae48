"""How long the audit of a fleet takes: so many surveys of 8 GPUs with all their curves, as a whole process.

    benchmarks/fleet.py [--surveys N] [--keep DIR]

Writes N surveys (2,048) of 24 curves and 80 rates, each with noise of its own, to a temporary folder (0.8 GB; --keep:
to DIR, which stays); one of them has a slow link, one a slow GPU, one lost a link, and one file is no survey. Prints
one `name: value` line per figure; exits 1 where the bar isn't reached or where another machine than these is accused.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from speed import run  # noqa: E402

BAR_S = 10.0
SIZES = tuple(1 << power for power in (10, 12, 14, 16, 19, 20, 22, 24, 26, 29))


def write_fleet(folder: Path, number: int) -> None:
    """The surveys. Machines scatter by 2 %, their visits to a point by 1 %, the times of a visit by 2 %."""
    from probe.islands import group_shape
    from probe.measurement import Curve, CurveKey, Rate, Sample, Survey
    from probe.sources.machines import machine
    from probe.store import encode_survey
    from probe.topology import GpuRef, PathKind
    from probe.topology import Path as Wire

    topology = machine("hgx-h100")
    node = topology.nodes[0]
    groups = [tuple(GpuRef(0, i) for i in range(n)) for n in (2, 4, 8)]
    keys = [
        (CurveKey(operation, group_shape(topology, members), "bfloat16", "nccl", graph), members)
        for members in groups
        for operation in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
        for graph in (False, True)
    ]
    slow_link, slow_gpu, lost_link = number // 2, number // 3, number // 4
    for n in range(number):
        noise = random.Random(n)

        def about(value: float, scatter: float, noise: random.Random = noise) -> float:
            return float(f"{value * noise.lognormvariate(0, scatter):.5e}")

        def sample(size_bytes: int, late: float) -> Sample:
            typical = about(15e-6 + size_bytes / 320e9 * (late if size_bytes >= 1 << 20 else 1.0), 0.02)
            visits = (about(typical, 0.01) for _ in range(2))
            return Sample(size_bytes, tuple(tuple(about(visit, 0.02) for _ in range(20)) for visit in visits))

        curves = tuple(
            Curve(
                key,
                tuple(sample(size, 1.4 if n == slow_link and members == groups[0] else 1.0) for size in SIZES),
                members,
            )
            for key, members in keys
        )
        rates = tuple(
            Rate(
                "gemm",
                GpuRef(0, i),
                about(650.0 * (0.7 if n == slow_gpu and i == 5 else 1), 0.01),
                "TFLOPS",
                "bfloat16",
                (m, 4096, 4096),
            )
            for i in range(8)
            for m in (2**k for k in range(10))
        )
        shape = node.shape
        if n == lost_link:
            shape = replace(shape, paths=(Wire(PathKind.NVLINK, 17), *shape.paths[1:]))
        states = tuple(replace(gpu, uuid=f"GPU-{n}-{i}") for i, gpu in enumerate(node.gpus))
        own = replace(node, shape=shape, gpus=states, hostname=f"node-{n:04d}", driver_version="580.65.06")
        survey = Survey(replace(topology, nodes=(own,)), curves, rates, measured_at="2026-11-20T00:00:00+00:00")
        (folder / f"survey-{n:04d}.json").write_bytes(encode_survey(survey))
    (folder / "notes.json").write_text('{"no": "survey"}', encoding="utf-8")


def audited(folder: Path, number: int) -> int:
    out = folder / "audit.out"
    seconds, peak_mb = run(["audit", "--fleet", str(folder), "--format", "json", "-o", str(out)], dict(os.environ))
    told = json.loads(out.read_bytes())
    slow = sorted(host["hostname"] for host in told["hosts"] if host["deviations"])
    odd = sorted(told["hosts"][n]["hostname"] for one in told["odd"] for n in one["hosts"])
    planted = sorted(f"node-{n:04d}" for n in (number // 2, number // 3))
    right = (slow, odd, len(told["unreadable"])) == (planted, [f"node-{number // 4:04d}"], 1)
    print(f"fleet_{number}_s: {seconds:.2f}\nfleet_{number}_peak_mb: {peak_mb:.0f}\nfleet_{number}_right: {right}")
    if not right:
        print(f"slow: {slow}, odd: {odd}, unreadable: {told['unreadable']}", file=sys.stderr)
    if seconds > BAR_S:
        print(f"bar not reached: {BAR_S} s", file=sys.stderr)
    return 0 if right and seconds <= BAR_S else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surveys", type=int, default=2048)
    parser.add_argument("--keep", type=Path)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = told.keep or Path(temporary)
        if not (folder / "notes.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_fleet(folder, told.surveys)
        return audited(folder, told.surveys)


if __name__ == "__main__":
    sys.exit(main())
