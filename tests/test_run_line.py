"""The line under `Run` that a person copies: it is the plan, with nothing around it, as `wirelore check` reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import matrix, wirelore

FULL = ("--objective", "throughput", "--offline")
LATE = matrix("X SYS NODE NODE", "SYS X NODE NODE", "NODE NODE X NV4", "NODE NODE NV4 X")
"""Bridges join 2 and 3, so a plan for two GPUs does not begin with GPU 0."""


def run_lines(*arguments: str, cwd: Path) -> list[str]:
    lines = wirelore("plan", *arguments, cwd=cwd).data().splitlines()
    return [line.strip() for line in lines[lines.index("Run") + 1 :]]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "deepspeed"])
def test_one_line_for_several_replicas_has_room_for_all(engine: str, tmp_path: Path) -> None:
    machine = ("--from", "machine:hgx-h100")
    line = run_lines("llama-3.1-8b", "--engine", engine, *machine, *FULL, cwd=tmp_path)[0]
    assert "meta-llama/Llama-3.1-8B" in line
    assert "CUDA_VISIBLE_DEVICES" not in line, "one replica's GPUs are not those of all"
    told = json.loads(wirelore("check", line, *machine, *FULL, "--format", "json", cwd=tmp_path).data())
    assert told["verdict"].startswith("The best plan"), told["verdict"]


def test_a_plan_that_begins_later_counts_its_gpus_once(tmp_path: Path) -> None:
    (tmp_path / "topo.txt").write_text(LATE)
    machine = ("--from", "topo.txt", "--gpu-model", "NVIDIA GeForce RTX 3090", "--gpus", "2")
    line = run_lines("llama-3.1-8b", "--engine", "sglang", *machine, "--offline", cwd=tmp_path)[0]
    assert "--base-gpu-id 2" in line
    assert "CUDA_VISIBLE_DEVICES" not in line
    told = json.loads(wirelore("check", line, *machine, "--offline", "--format", "json", cwd=tmp_path).data())
    assert told["verdict"].startswith("The best plan"), told["verdict"]


def test_who_writes_the_files_that_a_command_needs(tmp_path: Path) -> None:
    machine = ("--from", "machine:hgx-h100")
    lines = run_lines("llama-3.1-70b", "--engine", "trtllm", *machine, "--offline", cwd=tmp_path)
    assert "$HERE/replica0.yaml" in lines[0]
    assert any(line.startswith("HERE is the folder with replica0.yaml") and "wirelore emit" in line for line in lines)
