"""docs/measure.md on one machine, and the check of docs/hardware.md where there is none to check."""

from __future__ import annotations

import sys

from docs_commands import ROOT, Terminal, documented, program, settings

from probe.store import decode_survey

LAB = settings("measure", backend="gloo", largest="1KiB", **{"from": "machine:rtx-pro-6000-2"})
"""Two CPU ranks in place of GPUs that hold the page's model, and one size."""


def test_a_machine_is_measured_again_and_on_and_planned_from(terminal: Terminal) -> None:
    first, longer, resumed, plan = documented(
        "measure.md",
        "wirelore measure -o survey.json",
        "wirelore measure -o survey.json --budget",
        "wirelore measure -o survey.json --resume",
        "wirelore plan Qwen/Qwen3-32B --from survey.json",
    )
    file = terminal.folder / "survey.json"
    # Of one rank, which has measured everything long before.
    terminal.runs(longer, **{**LAB, **settings("measure", **{"from": "machine:l4-1"})})
    assert decode_survey(file.read_bytes(), where=str(longer)).rates
    short = settings("measure", budget="8s")
    terminal.runs(first, **LAB, **short)
    before = decode_survey(file.read_bytes(), where=str(first)).curves
    terminal.runs(resumed, **LAB, **short)
    after = decode_survey(file.read_bytes(), where=str(resumed)).curves
    assert before
    assert {curve.key for curve in before} <= {curve.key for curve in after}, "what was there is still there"
    assert "Qwen/Qwen3-32B on 2 x NVIDIA RTX PRO 6000" in terminal.runs(plan)


def test_the_check_of_real_gpus_is_skipped_in_one_line_without_one(terminal: Terminal) -> None:
    (check,) = documented("hardware.md", ".venv/bin/python benchmarks/gpu_check.py")
    (terminal.folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    (terminal.folder / ".venv").mkdir()
    program(terminal.folder / ".venv/bin", "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    told = terminal.runs(check)
    assert told.startswith("skipped: ") and told.count("\n") == 1
    assert not (terminal.folder / "gpu-check").exists()
