"""What is emitted for four machines and every engine, whole, as a person reviewed it.

A change that is meant: `WRITE_GOLDEN=1 pytest tests/test_golden.py`, then read the difference before it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from configgen.decide import plan
from configgen.deploy.shell import shell_scripts
from configgen.engines.launcher import launch_of
from configgen.engines.rules import engine_traits
from configgen.hub import load_model
from configgen.plan import Objective, Workload
from probe.measurement import Survey
from probe.sources.machines import machine

GOLDEN = Path(__file__).parent / "golden"
UNTOLD = ("input_tokens", "output_tokens", "concurrency")
LATENCY = Workload(objective=Objective.LATENCY, assumed=UNTOLD)
THROUGHPUT = Workload(objective=Objective.THROUGHPUT, assumed=UNTOLD)

CASES = {
    "pairs": ("3090-bridges-4", "qwen3-32b", LATENCY),
    "2x8-h100": ("2xhgx-h100", "llama-3.1-405b", LATENCY),
    "8x-l40s": ("l40s-8", "llama-3.1-70b", THROUGHPUT),
    "nvl72-moe": ("gb200-nvl72", "deepseek-v3", THROUGHPUT),
}
OTHER_MODELS = {
    ("deepspeed", "pairs"): "qwen2.5-14b",  # its factory knows no qwen3
    ("deepspeed", "2x8-h100"): "llama-3.1-70b",  # it lies in one node
    ("deepspeed", "nvl72-moe"): "mixtral-8x7b",  # nor deepseek_v3
    ("megatron", "nvl72-moe"): "qwen3-235b-a22b",  # it loads plain weights alone
}
ENGINES = ("vllm", "sglang", "trtllm", "megatron", "deepspeed")
SHOWN_NODES = 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_emitted_files_are_those_that_were_reviewed(case: str, engine: str) -> None:
    name, model, workload = CASES[case]
    model = OTHER_MODELS.get((engine, case), model)
    decided = plan(Survey(machine(name)), load_model(model, offline=True), workload, engine_traits(engine))
    files = shell_scripts(launch_of(decided))
    text = f"{model} on machine:{name}: {decided.parallelism.label}\n{_shown(files)}"
    golden = GOLDEN / f"{case}-{engine}.txt"
    if "WRITE_GOLDEN" in os.environ:
        golden.write_text(text)
    assert text == golden.read_text()


def _shown(files: dict[str, str]) -> str:
    """All of a few files; of many only those of the first nodes and of the first replica, and the others' names."""
    scripts = [name for name in files if name.endswith(".sh")]
    hidden = set(scripts[SHOWN_NODES:])
    hidden |= set([name for name in files if name.startswith("replica")][1:])
    names = "".join(f"and {name}\n" for name in files if name in hidden)
    return "".join(f"\n==> {name} <==\n{text}" for name, text in files.items() if name not in hidden) + names
