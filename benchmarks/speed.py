"""How long the command takes, as whole processes: medians of 10 runs, with the peak memory of the process.

    benchmarks/speed.py [--files DIR | --merge]

Cases: plan_text (a text matrix to flags), plan_survey (what was measured to flags), plan_rack (a MoE on 72 GPUs of one
NVLink domain), probe_nvml (the fake driver with 8 GPUs), plan_cluster (2,048 nodes, and how
time grows from 64 nodes on), merge (2,048 node surveys of 0.6 MB, one of them slow; once, since it takes seconds and
1.3 GB of temporary files; --merge does this alone). Prints a table and one `name: value` line per figure; exits 1
where a bar isn't reached.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

RUNS = 10
FILE_BAR_S = 0.30
MERGE_BAR_S = 10.0
MARK = "31337"
MODEL = "llama-3.1-70b"
WIRELORE = Path(sys.executable).parent / "wirelore"

TOPO = "\t" + "\t".join([*(f"GPU{i}" for i in range(8)), "NIC0", "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"])


def matrix() -> str:
    """An HGX H100 as `nvidia-smi topo -m` prints it, with names as collect_env does."""
    rows = [TOPO]
    for a in range(8):
        cells = [" X " if a == b else "NV18" for b in range(8)]
        rows.append("\t".join([f"GPU{a}", *cells, "PXB" if a < 4 else "SYS", "0-55", "0", "N/A"]))
    rows.append("\t".join(["NIC0", *("PXB" if a < 4 else "SYS" for a in range(8)), " X "]))
    names = "\n".join(f"GPU {i}: NVIDIA H100 80GB HBM3" for i in range(8))
    return (
        names
        + "\n\n"
        + "\n".join(rows)
        + "\n\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing a bonded set of # NVLinks\n"
    )


def run(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall seconds and peak MB of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(WIRELORE), *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"wirelore {' '.join(arguments)}: exit {process.returncode}: {errors.decode()}")
    return seconds, usage.ru_maxrss / 1024


def read_files(folder: Path) -> int:
    """Every file of a folder of recorded machines, three processes each: the slowest median of process time (CPU)."""
    worst, slowest = 0.0, folder
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "index.jsonl"]
    for file in files:
        seconds = []
        for _ in range(3):
            command = [str(WIRELORE), "probe", "--from", str(file), "--format", "json"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds.append(usage.ru_utime + usage.ru_stime)
        median = statistics.median(seconds)
        worst, slowest = max((worst, slowest), (median, file))
    print(f"files: {len(files)}\nslowest_file: {slowest}\nslowest_file_cpu_s: {worst:.3f}")
    return 1 if worst > FILE_BAR_S else 0


def survey_text(slower: float) -> bytes:
    """What measuring an HGX H100 for 20 s leaves: 24 curves of 10 sizes, two rounds of 20 times.

    Whatever must differ from node to node holds MARK: host name, UUIDs, and every time in its last digits.
    """
    from probe.islands import group_shape
    from probe.measurement import Curve, CurveKey, Sample, Survey
    from probe.sources.machines import machine
    from probe.store import encode_survey
    from probe.topology import GpuRef

    topology = machine("hgx-h100")
    node = topology.nodes[0]
    states = tuple(replace(gpu, uuid=f"GPU-{MARK}-{i}") for i, gpu in enumerate(node.gpus))
    own = replace(node, gpus=states, hostname=f"node-{MARK}", driver_version="580.65.06")
    noise = random.Random(1)

    def time_s(size_bytes: int) -> float:
        typical = 15e-6 + size_bytes / 300e9 * (slower if size_bytes >= 1 << 20 else 1.0)
        return float(f"{typical * noise.lognormvariate(0, 0.02):.4e}".replace("e", f"{MARK}e"))

    curves = []
    for n in (2, 4, 8):
        members = tuple(GpuRef(0, i) for i in range(n))
        for operation in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            for graph in (False, True):
                key = CurveKey(operation, group_shape(topology, members), "bfloat16", "nccl", graph)
                sizes = (1 << power for power in (10, 12, 14, 16, 19, 20, 22, 24, 26, 29))
                samples = (Sample(b, tuple(tuple(time_s(b) for _ in range(20)) for _ in range(2))) for b in sizes)
                curves.append(Curve(key, tuple(samples), members))
    return encode_survey(Survey(replace(topology, nodes=(own,)), tuple(curves)))


def merge(folder: Path, nodes: int) -> tuple[float, float]:
    """Wall seconds and peak MB of merging so many node surveys, one of them slow. Exits where that is not named."""
    usual, slow = survey_text(1.0), survey_text(1.3)
    paths = [folder / f"survey-{n:04d}.json" for n in range(nodes)]
    for n, path in enumerate(paths):
        text = slow if n == nodes // 2 else usual
        path.write_bytes(text.replace(MARK.encode(), f"{n:05d}".encode()))
    result = run(["merge", *map(str, paths), "-o", str(folder / "cluster.json")], dict(os.environ))
    if (folder / "cluster.json").read_bytes().count(b"unlike-its-twins") != 1:
        sys.exit("merge did not name the one slow node, or named others")
    return result


def merges() -> int:
    figures: dict[int, tuple[float, float]] = {}
    for nodes in (256, 2048):
        with tempfile.TemporaryDirectory() as folder:
            figures[nodes] = merge(Path(folder), nodes)
        print(f"merge_{nodes}_s: {figures[nodes][0]:.2f}\nmerge_{nodes}_peak_mb: {figures[nodes][1]:.0f}")
    per_node = (figures[2048][1] - figures[256][1]) / (2048 - 256) * 1000
    print(f"merge_kb_per_equal_node: {per_node:.0f}")
    if figures[2048][0] > MERGE_BAR_S:
        print("bar not reached: merge_2048", file=sys.stderr)
    return 1 if figures[2048][0] > MERGE_BAR_S else 0


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[1] == "--files":
        return read_files(Path(sys.argv[2]))
    if sys.argv[1:] == ["--merge"]:
        return merges()
    from fake_nvml import build_fake_nvml, fake_environment
    from fake_nvml.machines import hgx_h100

    with tempfile.TemporaryDirectory() as folder:
        topo = Path(folder) / "topo.txt"
        topo.write_text(matrix(), encoding="utf-8")
        survey = Path(folder) / "survey.json"
        survey.write_bytes(survey_text(1.0))
        plain = {**os.environ, "HF_HOME": folder}
        library = build_fake_nvml(Path(folder))
        fake = {**plain, **fake_environment(library, hgx_h100().write(Path(folder) / "hgx.nvml"))}
        cases = {
            "plan_text": (["plan", MODEL, "--from", str(topo), "--format", "flags"], plain, 0.25, 45.0),
            "plan_survey": (["plan", MODEL, "--from", str(survey), "--format", "flags"], plain, 0.30, 50.0),
            "plan_rack": (["plan", "deepseek-v3", "--from", "machine:gb200-nvl72"], plain, 1.0, None),
            "probe_nvml": (["probe"], fake, 0.30, None),
            **{
                f"plan_cluster_{n}": (["plan", MODEL, "--from", f"machine:{n}xhgx-h100"], plain, bar, None)
                for n, bar in ((64, None), (256, None), (1024, None), (2048, 2.0))
            },
        }
        print(f"{'case':<20}{'median s':>10}{'bar s':>8}{'min':>8}{'max':>8}{'peak MB':>9}{'bar MB':>8}")
        missed, medians, lines = [], {}, []
        for name, (arguments, environment, bar_s, bar_mb) in cases.items():
            run(arguments, environment)
            seconds, peaks = zip(*(run(arguments, environment) for _ in range(RUNS)), strict=True)
            medians[name], peak = statistics.median(seconds), max(peaks)
            print(
                f"{name:<20}{medians[name]:>10.3f}{bar_s or '-':>8}{min(seconds):>8.3f}{max(seconds):>8.3f}"
                f"{peak:>9.1f}{bar_mb or '-':>8}"
            )
            lines += [f"{name}_s: {medians[name]:.3f}", f"{name}_peak_mb: {peak:.1f}"]
            missed += [name] * ((bar_s is not None and medians[name] > bar_s) + (bar_mb is not None and peak > bar_mb))
        growth = medians["plan_cluster_2048"] / medians["plan_cluster_64"]
        lines.append(f"plan_cluster_growth_64_to_2048: {growth:.2f}")
        missed += ["plan_cluster grows faster than the node count"] * (growth > 2048 / 64)
        print("\n" + "\n".join(lines))
        for name in missed:
            print(f"bar not reached: {name}", file=sys.stderr)
    return merges() or (1 if missed else 0)


if __name__ == "__main__":
    sys.exit(main())
