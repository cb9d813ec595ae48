"""The grid: machines x models x objectives, each planned and emitted by the command's own code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

from command import matrix
from small_models import MODELS, write_model

from configgen.cli.root import wirelore
from configgen.document import decode_plan
from configgen.hub import load_model
from configgen.model import ModelSpec
from configgen.plan import Plan
from probe.merge import merge_topologies
from probe.sources.registry import read_source
from probe.topology import Topology

SHARED = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "models"
MASTER = "10.0.0.7"

TEXTS = {
    "pairs": matrix("X NV4 SYS SYS", "NV4 X SYS SYS", "SYS SYS X NV4", "SYS SYS NV4 X"),
    "three": matrix("X PHB PHB", "PHB X PHB", "PHB PHB X"),
    "two": matrix("X SYS", "SYS X"),
    "six": matrix(*(" ".join("X" if i == j else "NV18" for j in range(6)) for i in range(6))),
}
"""Machines that this test describes itself, as `nvidia-smi topo -m` would."""


@dataclass(frozen=True)
class Machine:
    """`told` are the options of `wirelore plan` that describe it; TEXT stands for a file of TEXTS."""

    name: str
    told: tuple[str, ...]


def _shipped(name: str) -> Machine:
    return Machine(name, ("--from", f"machine:{name}"))


PAIRS = Machine("pairs", ("--from", "pairs.txt", "--gpu-model", "NVIDIA GeForce RTX 3090"))
THREE = Machine("three-l40s", ("--from", "three.txt", "--gpu-model", "NVIDIA L40S"))
SIX = Machine("six-h100", ("--from", "six.txt", "--gpu-model", "NVIDIA H100 80GB HBM3"))
UNEVEN = Machine("uneven", ("--from", "two.txt", "--gpu-memory", "30GiB,60GiB"))
OBJECTIVES = ("latency", "balanced", "throughput")

MATRIX: tuple[tuple[Machine, tuple[str, ...], tuple[str, ...]], ...] = (
    (_shipped("hgx-h100"), ("gqa-70b", "moe-235b-fp8", "moe-30b", "mla-16b", "awq-72b"), OBJECTIVES),
    (_shipped("hgx-a100"), ("gqa-8b", "mha-13b", "moe-47b"), OBJECTIVES),
    (_shipped("hgx-h200"), ("mla-671b-fp8",), OBJECTIVES),
    (_shipped("2xhgx-h100"), ("gqa-405b", "mla-671b-fp8", "gqa-70b"), OBJECTIVES),
    (_shipped("4xhgx-h100"), ("gqa-405b",), OBJECTIVES),
    (_shipped("gb200-nvl72"), ("mla-671b-fp8", "gqa-405b"), OBJECTIVES),
    (_shipped("2xl40s-8"), ("gqa-70b", "moe-235b-fp8"), OBJECTIVES),
    (_shipped("l40s-8"), ("fp8-blocks-32b", "moe-30b", "gptq-32b"), OBJECTIVES),
    (_shipped("h100-nvl-pairs-8"), ("gqa-70b", "moe-47b"), OBJECTIVES),
    (_shipped("dgx1-v100"), ("mha-13b", "gqa-8b"), ("latency", "throughput")),
    (_shipped("t4-4"), ("gqa-8b",), ("latency", "throughput")),
    (_shipped("a6000-6"), ("heads-of-24", "bias-32b"), OBJECTIVES),
    (SIX, ("heads-of-24", "gqa-70b"), OBJECTIVES),
    (THREE, ("bias-32b", "gqa-8b"), OBJECTIVES),
    (PAIRS, ("gqa-8b", "mha-13b", "awq-72b"), OBJECTIVES),
    (UNEVEN, ("bias-32b", "awq-72b"), OBJECTIVES),
    (_shipped("2xhgx-h100+1xl40s-8"), ("gqa-70b",), ("throughput",)),
    (_shipped("a10g-4"), ("no-pipeline-8b",), OBJECTIVES),
)
"""Which models are planned on which machines, for which objectives; each of them has a plan."""


@dataclass(frozen=True)
class Case:
    machine: Machine
    model: str
    objective: str

    @property
    def name(self) -> str:
        return f"{self.machine.name}-{self.model}-{self.objective}"


CASES = tuple(
    Case(machine, model, objective)
    for machine, models, objectives in MATRIX
    for model in models
    for objective in objectives
)


Command = tuple[str, dict[str, Any], dict[str, Any]]
"""What form it has, the process of the listing that it starts, and the request that has it checked."""


@dataclass(frozen=True)
class Emitted:
    """A case's plan, and what `wirelore emit` made of it."""

    case: Case
    plan: Plan
    model: ModelSpec
    topology: Topology
    processes: tuple[dict[str, Any], ...]
    """Of `--target json`."""
    files: dict[str, Path]
    """Of `--target yaml`, by the file's name."""
    one_line: tuple[str, ...] | None

    def commands(self) -> Iterator[Command]:
        """Each process by its flags and by its configuration file, then the one line, where there is one."""
        for process in self.processes:
            words, flags = _words(process["command"]), [flag["words"] for flag in process["flags"]]
            about = self._about(process)
            yield "flags", process, {"argv": [*words, *(word for flag in flags for word in _words(flag))], **about}
            file = self.files[f"node{process['node']}-replica{process['replica']}.yaml"]
            told = [word for flag in flags if any(isinstance(w, dict) for w in flag) for word in _words(flag)]
            yield "yaml", process, {"argv": [*words, "--config", str(file), *told], **about}
        if self.one_line is not None:
            process = self.processes[0]
            yield "one line", process, {"argv": list(self.one_line), **self._about(process)}

    def _about(self, process: dict[str, Any]) -> dict[str, Any]:
        gpus = self.topology.nodes[process["node"]].shape.gpus
        return {
            "gpus": len(gpus),
            "memory_bytes": max(gpu.memory_bytes or 0 for gpu in gpus),
            "capability": self.capability,
            "environment": {v["name"]: v["value"] for v in process["environment"]},
        }

    @cached_property
    def capability(self) -> tuple[int, int]:
        """The least of its GPUs; Hopper's where nobody told."""
        used = {ref for replica in self.plan.replicas for ref in replica.gpus}
        told = [c for ref in used if (c := self.topology.gpu(ref).compute_capability) is not None]
        return min(told, default=(9, 0))


def _words(words: list[str | dict[str, str]]) -> list[str]:
    """As they are where MASTER_ADDR is told."""
    return [word if isinstance(word, str) else MASTER + word["then"] for word in words]


def run(*arguments: str) -> str:
    """What the command prints, run in this process. Raises what it raises."""
    told = StringIO()
    with redirect_stdout(told), redirect_stderr(StringIO()):
        wirelore.main(args=list(arguments), standalone_mode=False)
    return told.getvalue()


def write_inputs(folder: Path) -> dict[str, Path]:
    """The models and machines of the grid, as files. Model's name -> its folder; published ones where they are here."""
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text)
    return {name: write_model(folder / name, config) for name, config in MODELS.items()}


def published() -> dict[str, dict[str, Any]]:
    """Configurations of ../shared/models, where there is such a folder."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(SHARED.glob("*.json"))}


def emit(case: Case, engine: str, folder: Path) -> Emitted:
    """Plans the case for the engine and emits it; `folder` holds what write_inputs wrote."""
    own = folder / engine.replace("@", "-") / case.name
    own.mkdir(parents=True)
    told = [str(folder / word) if word.endswith(".txt") else word for word in case.machine.told]
    plan_file = str(own / "plan.json")
    model = str(folder / case.model)
    workload = ["--concurrency", "512"] if case.objective == "throughput" else []
    common = ["--objective", case.objective, "--engine", engine, "--offline", "--no-cache", *workload]
    run("plan", model, *told, *common, "-o", plan_file)
    listing = json.loads(run("emit", plan_file, "--target", "json"))
    run("emit", plan_file, "--target", "yaml", "-o", str(own / "yaml"))
    decided = decode_plan(Path(plan_file).read_bytes(), where=plan_file)
    sources = [told[i + 1] for i, word in enumerate(told) if word == "--from"]
    from probe.sources.told import with_told

    topology = merge_topologies([read_source(source) for source in sources])
    options = dict(zip(told[::2], told[1::2], strict=True))
    topology = with_told(topology, gpu_model=options.get("--gpu-model"), gpu_memory=options.get("--gpu-memory"))
    from configgen.engines.launcher import launch_of

    launch = launch_of(decided)
    line = None
    if launch.one_line is not None:
        line = (*launch.processes[0].command, *run("emit", plan_file, "--target", "flags").split())
    files = {path.name: path for path in (own / "yaml").iterdir()}
    return Emitted(case, decided, load_model(model), topology, tuple(listing["processes"]), files, line)
