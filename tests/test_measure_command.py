"""`wirelore measure` as a person types it: what it prints, where it ends, what it leaves, what it costs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Ended, wirelore
from fake_nvml import machines as fake
from measure_run import measuring

from probe.cache import remember
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Sample, Survey
from probe.store import decode_survey
from probe.topology import GpuRef

FakeMachine = Callable[..., dict[str, str]]
LAB = ("--from", "machine:l4-2", "--backend", "gloo")
BUDGET_S = 5.0
SLOW = 1.2
NOISE_S = 10.0
"""Tests share two cores; benchmarks/measure_cost.py judges the time itself."""


def measure(*arguments: str, **environ: str) -> Ended:
    return wirelore("measure", *arguments, environ=environ, timeout_s=60.0)


def one_line(ended: Ended) -> str:
    """What it says on standard error when that is one line, as every failure must be."""
    assert ended.out == "" and ended.err.startswith("wirelore: ") and ended.err.count("\n") == 1, ended.err
    return ended.err


# ---- without measuring ---------------------------------------------------------------------------------------------


def test_a_dry_run_tells_what_why_and_how_long_and_starts_nothing() -> None:
    began_s = time.monotonic()
    lines = measure(*LAB, "--dry-run", "--budget", "30s").data().splitlines()
    assert time.monotonic() - began_s < NOISE_S
    assert re.fullmatch(r"would measure 7 steps in 30 s, estimated [0-9.]+ s beside the start", lines[0])
    text = "\n".join(lines)
    assert re.search(r"^ +[0-9]+ +[0-9]+ +[0-9.]+  all_reduce of 2 GPUs: GPUs 0,1\n +TP 2 in a node$", text, re.M)
    assert re.search(r"^ +[0-9]+ +[0-9]+ +[0-9.]+  p2p forward: GPUs 0,1\n +PP over NODE$", text, re.M)
    for what in ("all_to_all", "all_gather", "reduce_scatter", "p2p backward", "p2p both", "memory, GEMM and copies"):
        assert what in text


def test_a_dry_run_is_possible_for_machines_that_no_lab_could_hold() -> None:
    told = measure("--from", "machine:2xhgx-h100", "--backend", "gloo", "--dry-run").data()
    assert "all_reduce of 16 GPUs" in told


@pytest.mark.parametrize(
    ("arguments", "problem", "cure"),
    [
        (["--budget", "soon"], "'soon' is no span of time", "20s"),
        (["--budget", "0s"], "'0s' is no span of time", "20s"),
        (["--timeout", "-1s"], "'-1s' is no span of time", "20s"),
        (["--largest", "huge"], "'huge'", "GiB"),
        (["--backend", "mpi"], "'mpi' is not one of", "--help"),
        (["--nnodes", "0"], "--nnodes", "--help"),
        (["--nnodes", "2"], "which of the 2 nodes this is", "--node-rank"),
        (["--nnodes", "2", "--node-rank", "2", "--master", "127.0.0.1"], "node 2 of 2", "0 to 1"),
        (["--nnodes", "2", "--node-rank", "1"], "where node 0 of 2 is", "--master"),
        (["--nnodes", "2", "--node-rank", "1", "--master", "a b:1"], "names no host and port", "HOST:PORT"),
        (["--port", "70000"], "--port", "--help"),
        (["--interface", "nope0"], "'nope0' does not exist", "Choose one"),
        (["--resume"], "none is named", "-o FILE"),
    ],
)
def test_a_wrong_option_is_one_line_with_a_cure(arguments: list[str], problem: str, cure: str) -> None:
    ended = measure(*LAB, *arguments)
    assert ended.code == 2
    assert problem in one_line(ended) and cure in ended.err


def test_without_a_gpu_it_ends_with_4_and_says_so() -> None:
    ended = measure()
    assert ended.code == 4
    assert "driver" in one_line(ended)


def test_a_described_machine_is_not_measured_unless_gloo_is_asked_for() -> None:
    ended = measure("--from", "machine:l4-2")
    assert ended.code == 2
    assert "--backend gloo" in one_line(ended)


def test_a_lab_too_large_for_this_host_is_refused() -> None:
    ended = measure("--from", "machine:2048xhgx-h100", "--backend", "gloo")
    assert ended.code == 2
    assert "16,384 ranks" in one_line(ended)


def test_further_processes_of_a_launcher_step_aside() -> None:
    ended = measure(*LAB, LOCAL_RANK="1")
    assert ended.code == 0
    assert "LOCAL_RANK=1" in one_line(ended)


def test_a_broken_survey_is_not_resumed(tmp_path: Path) -> None:
    broken = tmp_path / "survey.json"
    broken.write_text('{"schema_version": 1,')
    ended = measure(*LAB, "--resume", "-o", str(broken))
    assert ended.code == 4
    assert str(broken) in one_line(ended)
    assert broken.read_text() == '{"schema_version": 1,'


# ---- measuring -----------------------------------------------------------------------------------------------------


def test_a_lab_is_labelled_kept_to_its_budget_and_out_of_the_cache(tmp_path: Path) -> None:
    began_s = time.monotonic()
    ended = measure(*LAB, "--budget", f"{BUDGET_S}s", "--format", "json", XDG_CACHE_HOME=str(tmp_path))
    took_s = time.monotonic() - began_s
    survey = decode_survey(ended.data().encode(), where="standard output")
    assert took_s < SLOW * BUDGET_S + NOISE_S
    assert survey.lab is not None and "machine:l4-2" in survey.lab
    assert survey.curves and all(curve.key.backend == "gloo" for curve in survey.curves)
    assert all(gpu.uuid is None for node in survey.topology.nodes for gpu in node.gpus)
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_on_standard_output_and_the_notes_are_not(tmp_path: Path) -> None:
    file = tmp_path / "survey.json"
    ended = measure(*LAB, "--budget", "4s", "--largest", "64KiB", "--resume", "-o", str(file))
    assert "all_reduce" in ended.data() and "LAB FIGURES" in ended.out
    assert ended.err.endswith(f"wirelore: wrote {file}\n")
    assert "\x1b" not in ended.out + ended.err
    survey = decode_survey(file.read_bytes(), where="the file")
    assert max(sample.size_bytes for curve in survey.curves for sample in curve.samples) <= 64 << 10


@pytest.mark.long
def test_another_machines_survey_is_not_resumed(tmp_path: Path) -> None:
    file = tmp_path / "survey.json"
    measure(*LAB, "--budget", "4s", "-o", str(file)).data()
    before = file.read_bytes()
    ended = measure("--from", "machine:l40s-2", "--backend", "gloo", "--resume", "-o", str(file))
    assert ended.code == 2
    assert "another machine" in ended.err
    assert file.read_bytes() == before


def test_only_the_nodes_process_imports_torch_and_the_ranks_are_its_forks(tmp_path: Path) -> None:
    with measuring(tmp_path, "--budget", "20s") as run:
        run.until(run.points)
        node, ranks = run.until(run.node), run.until(lambda: run.ranks(2))
        assert set(run.alive()) == {run.process.pid, node, *ranks}
        assert not has_torch(run.process.pid)
        assert has_torch(node)
        for rank in ranks:
            assert words_of(rank) == words_of(node)


def has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def words_of(pid: int) -> bytes:
    """Its command line: whatever is started anew, not forked, has its own."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


# ---- what was measured before --------------------------------------------------------------------------------------


def test_wires_that_were_measured_are_measured_again_only_when_asked(
    fake_machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = fake_machine(fake.rtx_3090_bridges()) | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    topology = decode_survey(
        wirelore("probe", "--format", "json", environ=environ).data().encode(), where="probe"
    ).topology
    monkeypatch.setenv("XDG_CACHE_HOME", environ["XDG_CACHE_HOME"])
    members = (GpuRef(0, 0), GpuRef(0, 1))
    key = CurveKey("all_reduce", group_shape(topology, members), "bfloat16", "nccl", library_version="2.28.9")
    survey = Survey(topology, (Curve(key, (Sample(1 << 20, ((1e-3, 1.1e-3),)),), members),))
    assert remember(survey).reason is None
    known = measure("--format", "json", **environ)
    assert decode_survey(known.data().encode(), where="standard output").curves == survey.curves
    assert "--fresh" in known.err
    again = measure("--fresh", **environ)
    assert again.code == 4 and "PyTorch" in again.err


def test_a_budget_that_ends_before_the_first_point_says_so_and_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "survey.json"
    ended = measure(*LAB, "--budget", "100ms", "-o", str(file))
    assert ended.code == 4
    assert "before the first point" in ended.err and "--budget" in ended.err and "wrote" not in ended.err
    assert not file.exists()


def test_a_folder_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    began_s = time.monotonic()
    ended = measure(*LAB, "-o", str(tmp_path / "no" / "survey.json"))
    assert ended.code == 2 and "there is no folder" in one_line(ended)
    assert time.monotonic() - began_s < NOISE_S


def test_lab_figures_are_not_resumed_as_another_machine(tmp_path: Path) -> None:
    file = tmp_path / "survey.json"
    first = measure("--from", "machine:l4-1", "--backend", "gloo", "--budget", "4s", "-o", str(file))
    assert first.code == 0
    before = file.read_bytes()
    ended = measure("--from", "machine:h100-1", "--backend", "gloo", "--budget", "4s", "--resume", "-o", str(file))
    assert ended.code == 2 and "another machine" in ended.err
    assert file.read_bytes() == before
