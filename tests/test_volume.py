"""Two commands and one folder: one after the other, never a mix, and nobody is kept out by the dead."""

from __future__ import annotations

import json
import os
import time
from hashlib import sha256
from pathlib import Path

import pytest
from members import WAIT_S, Group, ended

HOLDS = """
import os, pathlib
from configgen.run.{module} import {owner}
go_on = {owner}.{what}
def hold(self, *told):
    pathlib.Path({here!r}).touch()
    while not pathlib.Path({go!r}).exists():
        os.sched_yield()
    return go_on(self, *told)
{owner}.{what} = hold
"""
TELLS_THAT_IT_WAITS = """
import fcntl, pathlib
flock = fcntl.flock
def told(*asked):
    try:
        flock(*asked)
    except BlockingIOError:
        pathlib.Path({waits!r}).touch()
        raise
fcntl.flock = told
"""


def holding(folder: Path, *, module: str = "volume", owner: str = "Volume", what: str = "publish") -> str:
    """For the process that is to stop there, until the file 'go' exists."""
    return HOLDS.format(module=module, owner=owner, what=what, here=str(folder / "here"), go=str(folder / "go"))


def appears(path: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        os.sched_yield()


def is_one_plan(folder: Path) -> None:
    record = json.loads((folder / "facts.json").read_text())
    for name in ("plan", "survey"):
        assert record[name] == sha256((folder / f"{name}.json").read_bytes()).hexdigest()
    assert sorted(record["files"]) == sorted(path.name for path in folder.iterdir()), "nothing is left behind"
    assert f"plan {record['plan'][:12]}" in (folder / "summary.txt").read_text()
    assert record["plan"][:12] in (folder / "start").read_text()


def test_a_second_command_waits_for_the_first_and_finds_its_plan(tmp_path: Path) -> None:
    group = Group(tmp_path, 1, model="llama-3.1-8b")
    first = group.start(0, before=holding(tmp_path))
    appears(tmp_path / "here")
    second = group.start(0, before=TELLS_THAT_IT_WAITS.format(waits=str(tmp_path / "waits")))
    appears(tmp_path / "waits")
    (tmp_path / "go").touch()
    results = [ended(first), ended(second)]
    assert [r.code for r in results] == [0, 0], results
    assert results[0].out == results[1].out
    is_one_plan(tmp_path / "0")


def test_who_waits_in_vain_touches_nothing(tmp_path: Path) -> None:
    group = Group(tmp_path, 1, model="llama-3.1-8b")
    first = group.start(0, before=holding(tmp_path))
    appears(tmp_path / "here")
    late = group.run(0, "--concurrency", "3", deadline="100ms")
    assert late.code == 2
    assert "another `wirelore init` is at work in" in late.err
    assert "--folder" in late.err
    (tmp_path / "go").touch()
    assert ended(first).code == 0
    is_one_plan(tmp_path / "0")


def test_a_command_that_is_killed_keeps_nobody_out(tmp_path: Path) -> None:
    group = Group(tmp_path, 1, model="llama-3.1-8b")
    first = group.start(0, before=holding(tmp_path))
    appears(tmp_path / "here")
    first.kill()
    ended(first)
    assert (tmp_path / "0" / ".pending").is_dir()
    assert group.run(0).code == 0
    is_one_plan(tmp_path / "0")


DIES = """
import os
go_on = os.{what}
def die(*paths, **more):
    if str(paths[-1]).endswith({last!r}):
        os.kill(os.getpid(), 9)
    return go_on(*paths, **more)
os.{what} = die
"""


@pytest.mark.parametrize(("former", "then"), [("trtllm", "vllm"), ("vllm", "trtllm")])
@pytest.mark.parametrize(("what", "last"), [("replace", "/0/facts.json"), ("rmdir", "/.pending")])
def test_what_a_killed_command_left_is_gone_after_the_next(
    tmp_path: Path, former: str, then: str, what: str, last: str
) -> None:
    """TensorRT-LLM's plan has a file more, and who is killed on the way to or from it has it half in its place."""
    group = Group(tmp_path, 1, model="llama-3.1-8b")
    assert group.run(0, "--engine", former).code == 0
    assert group.run(0, "--engine", then, before=DIES.format(what=what, last=last)).code == -9
    assert group.run(0, "--engine", "vllm").code == 0
    is_one_plan(tmp_path / "0")


def test_a_folder_that_went_while_it_was_waited_for_is_made_anew(tmp_path: Path) -> None:
    group = Group(tmp_path, 1, model="llama-3.1-405b")
    first = group.start(0, before=holding(tmp_path, module="init", owner="Member", what="decide"))
    appears(tmp_path / "here")
    waits = TELLS_THAT_IT_WAITS.format(waits=str(tmp_path / "waits"))
    second = group.start(0, model="llama-3.1-8b", before=waits)
    appears(tmp_path / "waits")
    (tmp_path / "go").touch()
    assert ended(first).code == 3
    assert ended(second).code == 0
    is_one_plan(tmp_path / "0")


def test_many_at_once_leave_the_plan_of_one(tmp_path: Path) -> None:
    group = Group(tmp_path, 1, model="llama-3.1-8b")
    members = [group.start(0, "--concurrency", str(1 + number % 2)) for number in range(6)]
    assert [ended(member).code for member in members] == [0] * 6
    is_one_plan(tmp_path / "0")


@pytest.mark.parametrize(("module", "what"), [("fcntl", "flock"), ("os", "open")])
def test_a_volume_that_knows_no_locks_is_written_all_the_same(tmp_path: Path, module: str, what: str) -> None:
    before = f"""
import errno, os, {module}
real = {module}.{what}
def refuse(first, *more, **told):
    if {what!r} == "flock" or (isinstance(first, os.PathLike) and first.name == "0"):
        raise OSError(errno.ENOLCK, "no locks available")
    return real(first, *more, **told)
{module}.{what} = refuse
"""
    assert Group(tmp_path, 1, model="llama-3.1-8b").run(0, before=before).code == 0
    is_one_plan(tmp_path / "0")


def test_folders_that_stay_empty_are_taken_away(tmp_path: Path) -> None:
    group = Group(tmp_path / "a" / "b", 1, model="llama-3.1-405b")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert group.run(0).code == 3
    assert not (tmp_path / "a" / "b" / "0").exists()
    assert (tmp_path / "a" / "b").is_dir(), "what was there before stays"
