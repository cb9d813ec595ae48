"""Whether what we measure on real GPUs is true: rates against plain torch loops, collectives, health and evidence.

    benchmarks/gpu_check.py --out DIR [--budget 30s] [--bar 0.10]

Reads and records this machine (DIR/machine.json, fit for an issue), runs `wirelore measure` (DIR/survey.json), then
times memory and GEMM on one GPU by loops that share no code with it, and looks whether `wirelore init`, which measures
too, gives all GPU memory back. Prints tables and one `name: value` line per figure; exits 1 where a rate is off by more
than the bar, memory is kept, or the measurement failed. Without a GPU it says so and exits 0.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from probe.catalog import GpuFigures, gpu_figures
from probe.errors import NoGpuError, one_line
from probe.measurement import Curve, Rate, Survey
from probe.sources.nvml import read_nvml
from probe.sources.record import encode_record, record_this_machine
from probe.store import decode_survey

WIRELORE = Path(sys.executable).parent / "wirelore"
RUNS = 50
KEPT_MIB = 64
"""More is a process that is still there: a CUDA context alone takes hundreds."""
COMPARED = ("hbm_read", "hbm_copy", "h2d", "d2h", "gemm")
# nccl-tests, doc/PERFORMANCE.md
BUSBW_FACTORS: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "p2p": lambda n: 1.0,
}


def reference(wanted: Sequence[Rate]) -> list[float | None]:
    """The same rates by the shortest loops that torch allows, on CUDA's first device. Runs in a process of its own."""
    import torch

    def seconds(run: Callable[[], object]) -> float:
        for _ in range(10):
            run()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(RUNS):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / RUNS

    def value(rate: Rate) -> float | None:
        if rate.kind == "gemm" and rate.shape is not None:
            m, n, k = rate.shape
            if not hasattr(torch, rate.dtype or "") or "float8" in (rate.dtype or ""):
                return None
            dtype = getattr(torch, rate.dtype or "")
            a, b = torch.randn(m, k, device="cuda", dtype=dtype), torch.randn(n, k, device="cuda", dtype=dtype)
            return 2 * m * n * k / seconds(lambda: torch.nn.functional.linear(a, b)) / 1e12
        size = 1 << 30
        gpu = torch.ones(size // 4, device="cuda")
        if rate.kind == "hbm_read":
            return size / seconds(lambda: torch.sum(gpu)) / 1e9
        if rate.kind == "hbm_copy":
            other = torch.empty_like(gpu)
            return 2 * size / seconds(lambda: other.copy_(gpu)) / 1e9
        host = torch.ones(size // 4, pin_memory=True)
        if rate.kind == "h2d":
            return size / seconds(lambda: gpu.copy_(host, non_blocking=True)) / 1e9
        return size / seconds(lambda: host.copy_(gpu, non_blocking=True)) / 1e9

    return [value(rate) for rate in wanted]


def referenced(wanted: Sequence[Rate], uuid: str | None) -> list[float | None]:
    """`reference` in a child process, so that its memory and its torch are gone afterwards."""
    asked = json.dumps([[r.kind, r.dtype, r.shape] for r in wanted])
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": uuid} if uuid else {})}
    command = [sys.executable, __file__, "--reference", asked]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300)
    if ended.returncode:
        print(f"the reference loops failed: {one_line(ended.stderr[-300:])}", file=sys.stderr)
        return [None] * len(wanted)
    told: list[float | None] = json.loads(ended.stdout)
    return told


def name_of(rate: Rate) -> str:
    return " ".join(filter(None, (rate.kind, rate.dtype, "x".join(map(str, rate.shape)) if rate.shape else "")))


def peak_of(rate: Rate, figures: GpuFigures | None) -> float | None:
    """The catalog's figure, in the rate's unit."""
    if figures is None:
        return None
    if rate.kind == "gemm":
        return figures.fp8_tflops if "float8" in (rate.dtype or "") else figures.bf16_tflops
    return figures.hbm_gbps if rate.kind.startswith("hbm") else None


def print_rates(survey: Survey) -> dict[str, float]:
    """The rates of all GPUs, and the ratio to the reference for those of the first; returns the ratios by name."""
    if not survey.rates:
        print("no rate was measured")
        return {}
    first = min(r.gpu for r in survey.rates)
    compared = [r for r in survey.rates if r.gpu == first and r.kind in COMPARED]
    told = referenced(compared, survey.topology.state(first).uuid)
    ratios = {}
    figures = gpu_figures(survey.topology.gpu(first).name)
    title = f"rate of GPU {first.gpu}"
    print(f"\n{title:<40}{'wirelore':>10}{'torch loop':>12}{'ratio':>8}{'of catalog':>12}  unit")
    for rate, loop in zip(compared, told, strict=True):
        ratio = rate.value / loop if loop else None
        if ratio is not None:
            ratios[name_of(rate)] = ratio
        peak = peak_of(rate, figures)
        print(
            f"{name_of(rate):<40}{rate.value:>10.4g}{f'{loop:.4g}' if loop else '-':>12}"
            f"{f'{ratio:.3f}' if ratio else '-':>8}{f'{rate.value / peak:.0%}' if peak else '-':>12}  {rate.unit}"
        )
    for kind in dict.fromkeys(name_of(r) for r in survey.rates):
        values = [r.value for r in survey.rates if name_of(r) == kind]
        if len(values) > 1:
            spread = (max(values) - min(values)) / statistics.median(values)
            print(f"{kind:<40}{len(values)} GPUs differ by {spread:.1%}")
    return ratios


def print_curves(curves: Sequence[Curve]) -> None:
    if not curves:
        print("\nno path between GPUs was measured")
        return
    title = f"{'operation':<16}{'GPUs':>5}{'graph':>7}"
    print(f"\n{title}{'smallest':>12}{'us':>9}{'largest':>14}{'busbw GB/s':>12}  paths")
    for curve in curves:
        small, large = curve.samples[0], curve.samples[-1]
        n = len(curve.members) or 2
        busbw = large.size_bytes / statistics.median(large.times_s) * BUSBW_FACTORS[curve.key.operation](n) / 1e9
        paths = " ".join(f"{label}x{times}" for label, times in curve.key.group.paths)
        print(
            f"{curve.key.operation:<16}{n:>5}{'yes' if curve.key.graph else 'no':>7}{small.size_bytes:>12}"
            f"{statistics.median(small.times_s) * 1e6:>9.1f}{large.size_bytes:>14}{busbw:>12.2f}  {paths}"
        )


def print_findings(survey: Survey) -> None:
    failed = [v for v in survey.verifications if not v.passed]
    print(f"\nP2P verified: {len(survey.verifications) - len(failed)} of {len(survey.verifications)} ordered pairs")
    for v in failed:
        print(f"  FAILED {v.source.gpu} -> {v.target.gpu}: {v.detail}")
    for e in survey.evidence:
        print(f"  {e.operation}: {e.what} = {e.value}")
    for notice in (*survey.topology.warnings, *survey.missing):
        print(f"  {notice.code}: {notice.message}")


def free_mib() -> list[int]:
    return [(gpu.memory_free_bytes or 0) >> 20 for gpu in read_nvml().nodes[0].gpus]


def print_kept(budget: str) -> list[str]:
    """What `wirelore init` has not given back of each GPU's memory, once it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(WIRELORE), "init", "qwen3-4b", "--folder", f"{folder}/plan", "--budget", budget]
        environment = {**os.environ, "XDG_CACHE_HOME": folder}  # where nothing is known, so that it measures
        before = free_mib()
        code = subprocess.run([*command, "--deadline", "180s"], check=False, timeout=300, env=environment).returncode
        after = free_mib()
        is_measured = (
            code == 0 and decode_survey(Path(folder, "plan", "survey.json").read_bytes(), where="").is_measured
        )
    most = max(a - b for a, b in zip(before, after, strict=True))
    print(f"\ninit_measured: {is_measured}\ninit_memory_kept_mib: {most}")
    ended = [f"`{' '.join(command)}` ended with code {code}"] * (code != 0)
    return ended + [f"init kept {most} MiB of a GPU"] * (most > KEPT_MIB)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the record and the survey")
    parser.add_argument("--budget", default="30s", help="time for `wirelore measure`")
    parser.add_argument("--bar", type=float, default=0.10, help="largest difference to the torch loops")
    parser.add_argument("--reference", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reference is not None:
        asked = json.loads(options.reference)
        from probe.topology import GpuRef

        wanted = [Rate(kind, GpuRef(0, 0), 1.0, "", dtype, shape and tuple(shape)) for kind, dtype, shape in asked]
        print(json.dumps(reference(wanted)))
        return 0
    try:
        node = read_nvml().nodes[0]
    except NoGpuError as error:
        print(f"skipped: {error.problem}")
        return 0
    if options.out is None:
        parser.error("--out DIR is needed where there is a GPU")
    options.out.mkdir(parents=True, exist_ok=True)
    names = [gpu.name or "unknown" for gpu in node.shape.gpus]
    print(f"{', '.join(f'{names.count(n)} x {n}' for n in dict.fromkeys(names))}; driver {node.driver_version}")
    (options.out / "machine.json").write_bytes(encode_record(record_this_machine()))
    path = options.out / "survey.json"
    command = [str(WIRELORE), "measure", "--budget", options.budget, "--fresh", "-o", str(path)]
    code = subprocess.run(command, check=False, timeout=900).returncode
    if not path.is_file():
        print(f"bar not reached: `{' '.join(command)}` ended with code {code} and left no survey", file=sys.stderr)
        return 1
    survey = decode_survey(path.read_bytes(), where=str(path))
    ratios = print_rates(survey)
    print_curves(survey.curves)
    print_findings(survey)
    print(f"\ngpus: {len(names)}\ncurves: {len(survey.curves)}\nrates: {len(survey.rates)}")
    for name, ratio in ratios.items():
        print(f"{name.replace(' ', '_')}_ratio: {ratio:.3f}")
    off = [name for name, ratio in ratios.items() if abs(ratio - 1) > options.bar]
    missed = [f"{name} differs from the torch loop by {ratios[name] - 1:+.0%}" for name in off]
    missed += [f"`wirelore measure` ended with code {code}"] * (code != 0)
    missed += print_kept(options.budget)
    missed += ["P2P that the driver promised failed"] * any(not v.passed for v in survey.verifications)
    for what in missed:
        print(f"bar not reached: {what}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
