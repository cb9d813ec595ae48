"""Predicts public serving measurements with the cost model, and scores what it says of systems and models left out.

    python benchmarks/prediction.py --silicon FILE [--models DIR] [--rows]

The table has one row per run: model, system, engine, precision, input and output length, concurrency, how the model is
cut, and what was seen. Quantities, as such benchmarks define them (vLLM's benchmark_serving, InferenceMAX):

- TTFT: from sending a request to its first token, over all requests of the run, those of its start included;
- TPOT: (end - first token) / (output tokens - 1), over all requests;
- output tokens/s/GPU: concurrency x output / (TTFT + (output - 1) TPOT) / GPUs, which is how these tables count it.

The error is |predicted / measured - 1|; the figure is its median. Machines come from public figures alone: no curve and
no rate of these systems was measured here, so this is what a plan from a description is worth.

Fitted constants. Three numbers stand for the engines' host code (configgen.cost.HostTimes): time per step, per sequence
of a step, and per request. All others are physical or cited, and listed with their origin. For the figures, the rows of
a system and a model are predicted with the three fitted on rows of *other* systems *and* other models, by the least sum
of |log(predicted / measured)|: TPOT for the first two, TTFT for the third. `shipped_*` are the figures of the values in
the code. The bars: 15 % for TPOT and tokens/s/GPU, 35 % for TTFT; exits 1 below any. Ends with `name: value` lines.
"""

from __future__ import annotations

import argparse
import ast
import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.setups import Case, UnmappedError, case
from benchmarks.truth import Setup, positive, silicon_setup, silicon_shape
from configgen import cost, passes, rates, roofline, wires
from configgen.cost import HOST, Estimate, HostTimes, Machine, estimate
from configgen.plan import Parallelism, Workload
from probe.measurement import Survey
from probe.statistics import median, quantile
from probe.topology import GpuRef

BARS = {"tpot": 0.15, "output_tokens_per_s_per_gpu": 0.15, "ttft": 0.35}
NAMES = {"tpot": "TPOT", "output_tokens_per_s_per_gpu": "tok/s/GPU", "ttft": "TTFT"}
NO_HOST = replace(HOST, step_s=0.0, sequence_s=0.0, request_s=0.0)

STEPS_S = tuple(n * 1e-4 for n in range(21))
SEQUENCES_S = tuple(n * 4e-6 for n in range(13))
REQUESTS_S = tuple(n * 5e-3 for n in range(25))

Ratios = dict[str, float]
"""Figure -> predicted / measured."""


@dataclass(frozen=True)
class Run:
    """A row of the table, and what the cost model is given for it."""

    setup: Setup
    given: Case
    machine: Machine
    shape: Parallelism
    workload: Workload
    tpot_s: float
    ttft_s: float
    rate: float

    def predicted(self, host: HostTimes) -> Estimate:
        model, traits = self.given.model, self.given.traits
        stages, layers = _stages(self.shape), traits.split(model.layers, self.shape.pp)
        return estimate(self.machine, model, self.shape, layers, stages, self.workload, traits, host=host)

    def ratios(self, found: Estimate) -> Ratios:
        return {
            "tpot": found.tpot_s / self.tpot_s,
            "output_tokens_per_s_per_gpu": found.output_tokens_per_s_per_gpu / self.rate,
            "ttft": found.ttft_s / self.ttft_s,
        }


def _stages(shape: Parallelism) -> tuple[tuple[GpuRef, ...], ...]:
    gpus = [GpuRef(0, i) for i in range(shape.tp * shape.pp)]
    return tuple(tuple(gpus[first : first + shape.tp]) for first in range(0, len(gpus), shape.tp))


def runs_of(table: Path, models: Path | None) -> tuple[list[Run], dict[str, int]]:
    """The rows that something stands for, and why the others have nothing: reason -> rows."""
    cases: dict[Setup, Case] = {}
    machines: dict[int, Machine] = {}
    unmapped: dict[str, int] = defaultdict(int)
    runs = []
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            setup = silicon_setup(row)
            ttft, tpot = positive(row["silicon_ttft_ms"]), positive(row["silicon_tpot_ms"])
            rate = positive(row["tput_gpu"])
            try:
                if ttft is None or tpot is None or rate is None:
                    raise UnmappedError("a figure is missing")
                given = cases.setdefault(setup, case(setup, models)) if setup not in cases else cases[setup]
            except UnmappedError as reason:
                unmapped[str(reason)] += 1
                continue
            machine = machines.setdefault(id(given.topology), Machine(Survey(given.topology)))
            tokens_in, tokens_out, concurrency = (round(float(row[name])) for name in ("isl", "osl", "conc"))
            load = Workload(tokens_in, tokens_out, concurrency)
            runs.append(Run(setup, given, machine, silicon_shape(row), load, tpot / 1e3, ttft / 1e3, rate))
    return runs, dict(unmapped)


def fitted(runs: Sequence[Run], bare: Sequence[Estimate]) -> HostTimes:
    """The host's times that predict these runs best; `bare` are their estimates without any.

    A step's time adds to TPOT as it is (all runs here have one stage), a request's to TTFT.
    """
    steps = [
        (e.tpot_s, run.workload.concurrency / run.shape.attention_dp, run.tpot_s)
        for run, e in zip(runs, bare, strict=True)
    ]

    def tpot_error(step_s: float, sequence_s: float) -> float:
        return sum(abs(log((own + step_s + sequence_s * n) / seen)) for own, n, seen in steps)

    step_s, sequence_s = STEPS_S[0], SEQUENCES_S[0]
    for _ in range(4):  # each in turn, until neither moves
        step_s = min(STEPS_S, key=lambda s: tpot_error(s, sequence_s))
        sequence_s = min(SEQUENCES_S, key=lambda s: tpot_error(step_s, s))
    firsts = [(e.ttft_s, run.ttft_s) for run, e in zip(runs, bare, strict=True)]
    request_s = min(REQUESTS_S, key=lambda r: sum(abs(log((own + r) / seen)) for own, seen in firsts))
    return replace(HOST, step_s=step_s, sequence_s=sequence_s, request_s=request_s)


def left_out(runs: Sequence[Run]) -> tuple[list[Ratios], dict[tuple[str, str], tuple[HostTimes, int]]]:
    """Every run predicted with constants that saw neither its system nor its model; and these, with the rows seen."""
    bare = [run.predicted(NO_HOST) for run in runs]
    hosts: dict[tuple[str, str], tuple[HostTimes, int]] = {}
    found = []
    for run in runs:
        key = (run.setup.gpu, run.setup.model)
        if key not in hosts:
            seen = [i for i, o in enumerate(runs) if o.setup.gpu != key[0] and o.setup.model != key[1]]
            host = fitted([runs[i] for i in seen], [bare[i] for i in seen]) if seen else NO_HOST
            hosts[key] = host, len(seen)
        found.append(run.ratios(run.predicted(hosts[key][0])))
    return found, hosts


def origins() -> Iterator[tuple[str, str, str]]:
    """(file, constant, what its docstring says of its origin) of the cost model."""
    for module in (cost, passes, rates, roofline, wires):
        body = ast.parse(Path(module.__file__ or "").read_text("utf-8")).body
        for line, following in zip(body, [*body[1:], ast.Pass()], strict=True):
            if not (isinstance(line, ast.Assign) and isinstance(name := line.targets[0], ast.Name)):
                continue
            told = following.value if isinstance(following, ast.Expr) else None
            text = str(told.value) if isinstance(told, ast.Constant) else "see the line above"
            if name.id.isupper() and not name.id.startswith("_") and name.id not in ("HOST", "FREE"):
                yield (
                    module.__name__.rpartition(".")[2],
                    f"{name.id} = {ast.unparse(line.value)}",
                    " ".join(text.split()),
                )


def errors(ratios: Sequence[Ratios], name: str) -> list[float]:
    return sorted(abs(one[name] - 1) for one in ratios)


def show(title: str, runs: Sequence[Run], ratios: Sequence[Ratios], key: Callable[[Run], str]) -> None:
    """A line per group: rows, and of each figure the median error and the median of predicted / measured."""
    groups: dict[str, list[Ratios]] = defaultdict(list)
    for run, one in zip(runs, ratios, strict=True):
        groups[key(run)].append(one)
    print(f"{title:58}{'rows':>5}" + "".join(f"{n:>18}" for n in NAMES.values()))
    for group, members in sorted(groups.items()):
        cells = (f"{median(errors(members, n)):8.1%} (x{median([m[n] for m in members]):4.2f})" for n in NAMES)
        print(f"{group:58}{len(members):5}" + "".join(f"{cell:>18}" for cell in cells))
    print()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--silicon", type=Path, required=True, help="CSV, one row per run")
    parser.add_argument("--models", type=Path, help="folder of org--name.json configurations")
    parser.add_argument("--rows", action="store_true", help="a line for every run")
    options = parser.parse_args()
    models = options.models or (sibling if (sibling := options.silicon.parent.parent / "models").is_dir() else None)
    runs, unmapped = runs_of(options.silicon, models)
    if not runs:
        print(f"no row of {options.silicon} can be predicted: {unmapped}", file=sys.stderr)
        return 1
    ratios, hosts = left_out(runs)
    shipped = [run.predicted(HOST) for run in runs]
    shipped_ratios = [run.ratios(found) for run, found in zip(runs, shipped, strict=True)]
    if options.rows:
        for run, one in zip(runs, ratios, strict=True):
            w = run.workload
            told = f"{w.input_tokens}/{w.output_tokens} x{w.concurrency} {run.shape.label}"
            print(f"{_who(run):58}{told:40}" + " ".join(f"{NAMES[n]} x{one[n]:.2f}" for n in NAMES))
    for title, key in (
        ("system, engine, model, precision", _who),
        ("engine, lengths", lambda r: f"{r.setup.engine} {r.workload.input_tokens}/{r.workload.output_tokens}"),
        ("cut", lambda r: r.shape.label),
    ):
        show(title, runs, ratios, key)
    print("constants, and where they come from")
    for place, constant, origin in origins():
        print(f"  {place}.{constant}: {origin}")
    print("fitted: milliseconds per step, microseconds per sequence, milliseconds per request")
    for name, host, rows in (("as shipped: vllm's", HOST, 0), *_fits(runs)):
        print(f"  {name:58}{_host(host)}" + (f"  saw {rows} rows" if rows else ""))
    for (gpu, model), (host, rows) in sorted(hosts.items()):
        print(f"  {f'left out: {gpu} and {model}':58}{_host(host)}  saw {rows} rows")
    print()
    figures: dict[str, float] = {"rows": len(runs), "rows_unmapped": sum(unmapped.values())}
    for name in BARS:
        own = errors(ratios, name)
        figures[f"{name}_median_error"] = median(own)
        figures[f"{name}_p90_error"] = quantile(own, 0.9)
        figures[f"shipped_{name}_median_error"] = median(errors(shipped_ratios, name))
    within = [abs(one["tpot"] - 1) <= found.uncertainty for one, found in zip(shipped_ratios, shipped, strict=True)]
    figures["tpot_within_uncertainty"] = sum(within) / len(within)
    figures["uncertainty_median"] = median([found.uncertainty for found in shipped])
    for name, value in figures.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    return 0 if all(figures[f"{name}_median_error"] <= bar for name, bar in BARS.items()) else 1


def _who(run: Run) -> str:
    return f"{run.setup.gpu} {run.setup.engine} {run.setup.model.rpartition('/')[2]} {run.setup.precision or 'bf16'}"


def _fits(runs: Sequence[Run]) -> Iterator[tuple[str, HostTimes, int]]:
    """The fits on all rows, and on those of each engine."""
    bare = [run.predicted(NO_HOST) for run in runs]
    yield "on all rows", fitted(runs, bare), len(runs)
    for engine in sorted({run.setup.engine for run in runs}):
        own = [i for i, run in enumerate(runs) if run.setup.engine == engine]
        yield f"on all rows of {engine}", fitted([runs[i] for i in own], [bare[i] for i in own]), len(own)


def _host(host: HostTimes) -> str:
    return f"{host.step_s * 1e3:5.1f} ms {host.sequence_s * 1e6:5.0f} us {host.request_s * 1e3:5.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
