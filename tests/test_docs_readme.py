"""README.md as its reader follows it."""

from __future__ import annotations

import shlex
import shutil
import sys

import pytest
from command import matrix
from docs_commands import LAB_AUDIT, ROOT, Terminal, documented, examples, page_path, program, run_in_bash, settings
from fake_nvml import FakeMachine
from fake_nvml.machines import rtx_3090_bridges

PYTHON = f"""#!/bin/sh
# A Python whose virtual environments have the tests' own wirelore, and a pip that writes down what it is asked for.
[ "$1 $2" = "-m venv" ] || exec {sys.executable} "$@"
mkdir -p "$3/bin" && cp {{programs}}/wirelore {{programs}}/pip "$3/bin"
"""
PIP = '#!/bin/sh\necho "$@" >> {asked}\n'


def maker(terminal: Terminal) -> dict[str, str]:
    """The environment in which make sets up a virtual environment in the folder, not in this tree, without network."""
    if shutil.which("make") is None:
        pytest.skip("no make here: `make run` and `make setup` are NOT tested")
    programs = terminal.folder / "bin"
    program(programs, "pip", PIP.format(asked=terminal.folder / "asked"))
    python = program(programs, "python-for-make", PYTHON.format(programs=programs))
    return {**terminal.environ, "MAKEFLAGS": f"VENV={terminal.folder / 'venv'} PYTHON={python}"}


def test_make_sets_up_and_plans_on_what_is_there(terminal: Terminal, fake_machine: FakeMachine) -> None:
    (run,) = documented("README.md", "make run")
    environ = maker(terminal)
    told = run_in_bash(run, ROOT, environ).stdout
    assert shlex.split((terminal.folder / "asked").read_text())[-2:] == ["-e", ".[dev]"]
    assert "No GPU here" in told
    shown = next(examples(page_path("README.md").read_text("utf-8"))).shown
    assert "\n".join(shown).strip() in told, "what the page shows below"
    with_gpus = run_in_bash(run, ROOT, {**environ, **fake_machine(rtx_3090_bridges())}).stdout
    assert "No GPU here" not in with_gpus
    assert "TP2 PP2" in with_gpus


def test_make_sets_up_what_checks_real_gpus(terminal: Terminal) -> None:
    (setup,) = documented("hardware.md", "make setup")
    run_in_bash(setup, ROOT, maker(terminal))
    asked = shlex.split((terminal.folder / "asked").read_text())
    assert asked[-4:] == ["-c", "constraints.txt", "-e", ".[dev]"]
    assert (terminal.folder / "venv/.ready").exists()
    assert '"wirelore[agent,measure]"' in (ROOT / "pyproject.toml").read_text().partition("\ndev = [")[2]
    # A local version, as in 2.13.0+cpu, would be another build than PyPI's for CUDA.
    assert "+" not in (ROOT / "constraints.txt").read_text()


def test_make_test_is_what_ci_runs() -> None:
    """And so what runs this."""
    (test,) = documented("README.md", "make test")
    assert test.text in (ROOT / ".ci/run").read_text().splitlines()


def test_the_flags_of_this_machine_reach_the_engine(terminal: Terminal, fake_machine: FakeMachine) -> None:
    (serve,) = documented("README.md", "vllm serve")
    program(terminal.folder / "bin", "vllm", '#!/bin/sh\nprintf "%s\\n" "$@" > argv\n')
    terminal.runs(serve, **fake_machine(rtx_3090_bridges()))
    argv = (terminal.folder / "argv").read_text().splitlines()
    assert argv[:4] == ["serve", "Qwen/Qwen3-32B", "--tensor-parallel-size", "2"]
    assert "0,2,1,3" in argv, "bridges join 0 and 2, and 1 and 3"


def test_a_matrix_that_somebody_pasted_is_planned_from(terminal: Terminal) -> None:
    (plan,) = documented("README.md", "wirelore plan llama-3.1-70b --from topo.txt")
    rows = ("X PIX SYS SYS", "PIX X SYS SYS", "SYS SYS X PIX", "SYS SYS PIX X")
    (terminal.folder / "topo.txt").write_text(matrix(*rows))
    assert "on 4 x NVIDIA L40S\n" in terminal.runs(plan)


def test_a_machine_is_measured_audited_and_compared(terminal: Terminal) -> None:
    """A lab of one CPU rank first; then a described machine, beside what it was before."""
    measure, compare = documented("README.md", "wirelore audit --measure", "wirelore audit --strict")
    terminal.runs(measure, **LAB_AUDIT)
    assert "LAB FIGURES" in (terminal.folder / "audit.html").read_text()
    described = settings("audit", **{"from": "machine:hgx-h100"})
    (before,) = [word for word in compare.words if word.endswith(".json")]
    run_in_bash(f"wirelore audit -o {before}", terminal.folder, {**terminal.environ, **described})
    assert "carry over to B" in terminal.runs(compare, **described)
