"""What the launchers' tests share: a command that tells how it was started, and how its words are read back."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from docs_commands import ROOT, Command, settings

START_S = 60.0

TELL = """
import json, os, sys
from probe.bench.network import settle
from probe.bench.rendezvous import find_rendezvous, steps_aside
from probe.errors import UsageError

note = steps_aside(os.environ)
try:
    told = {} if note else (lambda m: {name: getattr(m, name) for name in m.__struct_fields__})(
        settle(find_rendezvous(os.environ)))
except UsageError as error:
    told = {"error": str(error)}
os.write(1, (json.dumps({"note": note, **told}) + chr(10)).encode())
"""
"""In place of the measurement: where this process would meet the others, as one line of JSON."""

NOISE = 2.5
SMALL = {"from": "machine:l4-1", "backend": "gloo", "budget": "12s", "largest": "1KiB"}
MEASURE = (
    *(sys.executable, "-c", "from configgen.cli import main; main()", "measure", "--format", "json"),
    *(word for name, value in SMALL.items() for word in (f"--{name}", value)),
)
"""A small measurement of a described node with one GPU: CPU ranks stand in for GPUs, and each curve has one size."""
SETTINGS = settings("measure", **SMALL)
"""The same by environment, for the commands of docs/measure.md, which tell nothing of it."""


Figures = dict[str, dict[int, float]]
"""Of each curve's key, the median seconds by size."""


def figures(survey: Path) -> Figures:
    document = json.loads(survey.read_text())
    assert len(document["topology"]["nodes"]) == 2, "both nodes are in the survey"
    return {
        json.dumps(curve["key"], sort_keys=True): {
            sample["size_bytes"]: statistics.median(t for times in sample["rounds_s"] for t in times)
            for sample in curve["samples"]
        }
        for curve in document["curves"]
    }


def assert_same_survey(found: Figures, expected: Figures) -> None:
    """The same keys, and times within what a busy host and another virtual cable make of the same wire."""
    assert sorted(found.keys() ^ expected.keys()) == [], "in one of the two surveys alone"
    shared = [(key, size) for key, curve in expected.items() for size in curve if size in found[key]]
    ratios = [found[key][size] / expected[key][size] for key, size in shared]
    assert len(ratios) >= len(expected), "every curve starts at the same size"
    assert 1 / NOISE < statistics.median(ratios) < NOISE


@dataclass(frozen=True)
class Told:
    """One process's answer to TELL."""

    note: str | None
    error: str | None = None
    nodes: int | None = None
    node: int | None = None
    address: str | None = None
    port: int | None = None
    hosted: bool | None = None
    attempt: int | None = None
    interface: str | None = None
    origin: str | None = None


def told(output: str) -> list[Told]:
    """Every process's answer, the nodes in order; a launcher's own lines are passed over."""
    lines = [line[line.index("{") :] for line in output.splitlines() if '{"note"' in line]
    return sorted((Told(**json.loads(line)) for line in lines), key=lambda t: -1 if t.node is None else t.node)


def clean_environment(**more: str) -> dict[str, str]:
    """This one's, without what a launcher around the tests may have left."""
    strange = ("SLURM_", "OMPI_", "PMI", "PET_", "LWS_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def run_together(
    commands: Sequence[Sequence[str]], environ: Mapping[str, str], within_s: float = START_S, cwd: Path = ROOT
) -> list[str]:
    """Starts them all at once; their outputs, where all end well."""
    children = [
        subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(environ), cwd=cwd)
        for c in commands
    ]
    try:
        outputs = [child.communicate(timeout=within_s)[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    for child, output in zip(children, outputs, strict=True):
        assert child.returncode == 0, output
    return outputs


def typed(command: Command | str) -> list[str]:
    """The words that have a shell run it."""
    return ["bash", "-euo", "pipefail", "-c", command if isinstance(command, str) else command.text]


def tool(name: str) -> str | None:
    """A program beside this interpreter, or on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
