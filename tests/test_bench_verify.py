"""P2P checks in processes that answer, lie, hang and die: what is recorded, how long it takes, what is left behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from builders import cluster_of, node_of

from probe.bench.verify import verify_p2p, verify_pairs
from probe.measurement import Verification
from probe.topology import GpuRef, Notice

GPUS = {GpuRef(0, i): i for i in range(3)}
PAIRS = tuple(permutations(GPUS, 2))
Check = Callable[..., tuple[tuple[Verification, ...], tuple[Notice, ...]]]

CHECKER = """
import json, os, signal, sys, time
def tell(**answer): print(json.dumps(answer), flush=True)
with open({log!r}, "a") as log: log.write(str(os.getpid()) + "\\n")
{before}
tell(ready=True)
for word in sys.argv[1:]:
    pair = [int(n) for n in word.split(":")]
{behaviour}
    tell(pair=pair, passed=True)
"""


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Verifies PAIRS by a checker whose behaviour for one pair is given as Python."""

    def run(
        behaviour: str = "", before: str = "", **options: float
    ) -> tuple[tuple[Verification, ...], tuple[Notice, ...]]:
        script = tmp_path / "checker.py"
        log = str(tmp_path / "pids")
        lines = "".join(f"    {line}\n" for line in (behaviour or "pass").splitlines())
        script.write_text(CHECKER.format(log=log, behaviour=lines, before=before))
        command = (sys.executable, "-I", "-S", str(script))
        limits: dict[str, Any] = {"deadline_s": 1.0, "start_s": 20.0, **options}
        found = verify_pairs(PAIRS, devices=GPUS, command=command, **limits)
        for pid in (tmp_path / "pids").read_text().split():
            with pytest.raises(ProcessLookupError):
                os.kill(int(pid), 0)
        return found

    return run


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "pids").read_text().split())


def failed(found: tuple[Verification, ...]) -> dict[tuple[int, int], str | None]:
    return {(v.source.gpu, v.target.gpu): v.detail for v in found if not v.passed}


def test_every_ordered_pair_is_checked_by_one_process(check: Check, tmp_path: Path) -> None:
    found, notices = check()
    assert [(v.source, v.target) for v in found] == list(PAIRS)
    assert all(v.passed for v in found) and notices == ()
    assert starts(tmp_path) == 1


def test_wrong_data_fail_their_pair_and_no_other(check: Check, tmp_path: Path) -> None:
    found, notices = check(
        "if pair == [2, 0]: tell(pair=pair, passed=False, detail='7 words\\x1b[31m wrong'); continue"
    )
    assert failed(found) == {(2, 0): "7 words [31m wrong"}
    assert (len(found), notices, starts(tmp_path)) == (6, (), 1)


def test_a_hang_is_killed_at_its_deadline_and_the_rest_goes_on(check: Check, tmp_path: Path) -> None:
    start = time.monotonic()
    hang = "if pair == [0, 2]: signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    found, notices = check(hang, deadline_s=0.5)
    assert failed(found) == {(0, 2): "no answer within 0.5 s"}
    assert (len(found), notices, starts(tmp_path)) == (6, (), 2)
    assert time.monotonic() - start < 5


def test_a_crash_is_a_failure_with_its_last_words(check: Check, tmp_path: Path) -> None:
    crash = """
if pair == [0, 1]: os.kill(os.getpid(), signal.SIGSEGV)
if pair == [2, 1]: sys.exit('CUDA error: an illegal memory access\\x07')
"""
    found, notices = check(crash)
    assert failed(found) == {
        (0, 1): "the checker died by SIGSEGV",
        (2, 1): "the checker ended with code 1: CUDA error: an illegal memory access",
    }
    assert (len(found), notices, starts(tmp_path)) == (6, (), 2)


def test_a_fault_of_the_device_takes_a_fresh_process_and_blames_one_pair(check: Check, tmp_path: Path) -> None:
    fault = "if pair == [1, 0]: tell(pair=pair, passed=False, detail='a fault', last=True); sys.exit()"
    found, notices = check(fault)
    assert failed(found) == {(1, 0): "a fault"}
    assert (len(found), notices, starts(tmp_path)) == (6, (), 2)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("tell(pair=[1, 0], passed=True); continue", "the checker answered something else"),
        ("tell(pair=pair, passed='yes'); continue", "the checker answered something else"),
        ("os.write(1, b'x' * 70000); time.sleep(600)", "the checker told more than an answer"),
        ("os.write(1, b'{' * 60000 + b'\\n'); time.sleep(600)", "no answer within 1 s"),
    ],
)
def test_an_answer_that_is_none_proves_nothing(check: Check, lie: str, said: str) -> None:
    found, _ = check(f"if pair == [0, 1]: {lie}")
    assert failed(found) == {(0, 1): said}
    assert len(found) == 6


def test_what_a_library_prints_between_is_no_answer(check: Check) -> None:
    found, notices = check("print('hello from a library'); print('[1, 2]')")
    assert len(found) == 6 and all(v.passed for v in found) and notices == ()


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ("sys.exit('no module named torch')", "ended with code 1: no module named torch"),
        ("time.sleep(600)", "no answer within 0.5 s"),
        ("tell(ready=False, error='no CUDA GPUs are available'); sys.exit()", "no CUDA GPUs are available"),
    ],
)
def test_a_checker_that_does_not_start_proves_nothing(check: Check, tmp_path: Path, before: str, why: str) -> None:
    found, (notice,) = check(before=before, start_s=0.5)
    assert found == ()
    assert notice.code == "p2p-unverified"
    assert "6 ordered pairs" in notice.message and why in notice.message
    assert starts(tmp_path) == 1, "what does not start once is not started for every pair"


def test_a_pair_that_could_not_be_tried_is_no_failure(check: Check) -> None:
    found, (notice,) = check("if pair[0] == 2: tell(pair=pair, passed=None, detail='too little free memory'); continue")
    assert len(found) == 4 and failed(found) == {}
    assert "2 ordered pairs" in notice.message and "too little free memory" in notice.message


def test_the_budget_ends_it(check: Check) -> None:
    found, (notice,) = check("time.sleep(0.4)", budget_s=0.9)
    assert 0 < len(found) < 6 and failed(found) == {}
    assert f"{6 - len(found)} ordered pairs" in notice.message


def test_a_command_that_cannot_run_is_said() -> None:
    found, (notice,) = verify_pairs(PAIRS, devices=GPUS, command=("/nonexistent/checker",))
    assert found == () and "No such file" in notice.message


def test_one_gpu_and_mig_need_no_process() -> None:
    assert verify_p2p(cluster_of(node_of(1, 24))) == ((), ())


def test_the_real_checker_says_why_it_cannot_start_without_a_gpu() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: the real checker is NOT tried")
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs: the checker would start")
    found, (notice,) = verify_pairs(PAIRS[:1], devices=GPUS)
    assert found == ()
    assert "1 ordered pair " in notice.message and "CUDA" in notice.message


def test_the_checker_finds_what_was_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: the real checker is NOT tried")
    from probe.bench import verify

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    cpu = torch.device("cpu")
    assert list(verify._faults(cpu, cpu, seed=1)) == []
    keep = torch.Tensor.copy_

    def lossy(target: object, source: object) -> object:
        keep(target[:-5], source[:-5])  # type: ignore[index]
        return target

    monkeypatch.setattr(torch.Tensor, "copy_", lossy)
    faults = list(verify._faults(cpu, cpu, seed=1))
    assert len(faults) == len(verify.COPY_BYTES) + len(verify.STORE_BYTES)
    assert faults[0] == "5 of 1,024 words read back wrong after 4,096 bytes by the copy engine"
