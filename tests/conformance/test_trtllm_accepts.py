"""TensorRT-LLM's options files against facts that were read in its source, where they lie beside this project.

Its published package holds no parser that could be asked, so this is no word of the real program.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from engines import ROOT
from grid import CASES, Case, Emitted, emit, write_inputs
from grid import run as wirelore
from record import Checked, checks

from configgen.engines.rules import engine_traits
from probe.errors import NoPlanError

FACTS = ROOT.parent / "shared" / "tools" / "engines" / "check_trtllm.py"


@dataclass
class Run:
    """What was emitted, with the folder of its files; a case without a plan has the law that forbids it."""

    record: Checked
    emitted: dict[Case, tuple[Emitted, Path]] = field(default_factory=dict)
    refused: dict[Case, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    if not FACTS.is_file():
        pytest.skip(f"{FACTS} is not there: NOTHING of TensorRT-LLM is checked")
    told = Run(Checked(""))
    folder = tmp_path_factory.mktemp("grid")
    write_inputs(folder)
    for case in CASES:
        try:
            emitted = emit(case, "trtllm", folder)
        except NoPlanError as error:
            told.refused[case] = str(error)
            continue
        own = folder / "trtllm" / case.name
        wirelore("emit", str(own / "plan.json"), "--target", "shell", "-o", str(own / "scripts"))
        told.emitted[case] = emitted, own / "scripts"
    commands = sum(len(emitted.processes) for emitted, _ in told.emitted.values())
    version = engine_traits("trtllm").version
    told.record = checks(f"TensorRT-LLM {version}, against read facts alone", len(told.emitted), commands)
    return told


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_options_file_agrees_with_the_read_facts(run: Run, case: Case) -> None:
    if case in run.refused:
        assert "trtllm" in run.refused[case], "the engine's own law, told by its name"
        return
    emitted, folder = run.emitted[case]
    p = emitted.plan.parallelism
    for process in emitted.processes:
        words = [word if isinstance(word, str) else f"{folder}{word['then']}" for word in process["command"]]
        words += [
            word if isinstance(word, str) else f"{folder}{word['then']}"
            for flag in process["flags"]
            for word in flag["words"]
        ]
        found = _asked(words[words.index("trtllm-serve") + 1 :])
        replica = emitted.plan.replicas[process["replica"]]
        wanted = {
            "tp": p.tp,
            "pp": p.pp,
            "moe_tp": p.tp // p.ep,
            "moe_ep": p.ep,
            "world_size": p.gpus_per_replica,
            "nodes": len(replica.nodes),
        }
        assert {name: found[name] for name in wanted} == wanted


def _asked(words: list[str]) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, str(FACTS), *words], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    resolved = next(line for line in ended.stdout.splitlines() if line.startswith("RESOLVED "))
    return dict(json.loads(resolved.removeprefix("RESOLVED ")))
