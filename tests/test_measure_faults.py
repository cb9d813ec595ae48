"""Everything that goes wrong on real clusters, done to real processes: ended in time, blamed right, nothing lost."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from measure_run import START_S, Points, Run, measuring
from ports import free_port

TIMEOUT_S = 3
LATE_S = TIMEOUT_S + 5.0
ARGUMENTS = ("--timeout", f"{TIMEOUT_S}s", "--budget", "30s", "--largest", "1MiB")
"""A budget that no fault lets come to its end."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc: NO FAULT is tested")


def some_points(run: Run) -> Points:
    """The file of a run that measures."""
    return run.until(lambda: found if len(found := run.points()) >= 3 else None)


def nothing_lost(run: Run, before: Points) -> None:
    after = run.points()
    assert before
    for point, rounds in before.items():
        assert after[point][: len(rounds)] == rounds


def as_node(number: int, port: int) -> tuple[str, ...]:
    return (*ARGUMENTS, "--nnodes", "2", "--node-rank", str(number), "--master", f"127.0.0.1:{port}")


@contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Run, Run]]:
    """Both as commands of their own on this host, with one GPU each."""
    port = free_port()
    with ExitStack() as both:
        yield tuple(  # type: ignore[misc]
            both.enter_context(measuring(folder / str(node), *as_node(node, port), source="machine:l4-1"))
            for node in (0, 1)
        )


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_rank_is_named(tmp_path: Path, number: int) -> None:
    with measuring(tmp_path, *ARGUMENTS) as run:
        before = some_points(run)
        os.kill(run.until(lambda: run.ranks(2))[number], signal.SIGKILL)
        assert run.ended(LATE_S) == 4
        assert f"rank {number} (GPU {number} of node 0" in run.err
        assert "was killed by signal 9 (SIGKILL)" in run.err
        assert "dmesg" in run.err and "--resume" in run.err
        nothing_lost(run, before)


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_stopped_rank_is_named_after_the_timeout(tmp_path: Path, number: int) -> None:
    with measuring(tmp_path, *ARGUMENTS) as run:
        before = some_points(run)
        os.kill(run.until(lambda: run.ranks(2))[number], signal.SIGSTOP)
        assert run.ended(LATE_S) == 4
        assert f"rank {number} (GPU {number} of node 0" in run.err
        assert "is stopped" in run.err and "SIGSTOP" in run.err
        nothing_lost(run, before)


def test_a_parent_that_is_killed_takes_all_with_it(tmp_path: Path) -> None:
    with measuring(tmp_path, *ARGUMENTS) as run:
        before = some_points(run)
        assert len(run.alive()) >= 4
        run.process.kill()
        assert run.ended(2.0) == -signal.SIGKILL
        nothing_lost(run, before)
        assert [file.name for file in tmp_path.iterdir() if file.name.startswith("wirelore")] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_what_was_finished_before_an_interrupt_is_not_repeated(tmp_path: Path, number: int) -> None:
    with measuring(tmp_path, *ARGUMENTS) as run:
        before = some_points(run)
        run.process.send_signal(number)
        assert run.ended(2.0) == 130
        assert "interrupted" in run.err and "--resume" in run.err
        nothing_lost(run, before)
        before = run.points()
    with measuring(tmp_path, *ARGUMENTS, "--resume") as run:
        run.until(lambda: len(run.points()) > len(before))
        nothing_lost(run, before)
        after = run.points()
        assert {point: len(after[point]) for point in before} == {point: len(before[point]) for point in before}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV], ids=["killed", "stopped", "crash"])
def test_the_node_process_may_fail_too(tmp_path: Path, number: int) -> None:
    with measuring(tmp_path, *ARGUMENTS) as run:
        before = some_points(run)
        os.kill(run.until(run.node), number)
        assert run.ended(LATE_S) == 4
        how = "is stopped" if number == signal.SIGSTOP else f"was killed by signal {number} "
        assert f"the measuring process of node 0 {how}" in run.err
        nothing_lost(run, before)


@pytest.mark.long
def test_a_node_process_stopped_before_it_began_is_noticed(tmp_path: Path) -> None:
    with measuring(tmp_path, *ARGUMENTS) as run:
        os.kill(run.until(run.node), signal.SIGSTOP)
        assert run.ended(LATE_S) == 4
        assert "the measuring process of node 0 is stopped" in run.err
        assert not run.file.exists()


def test_a_full_disk_ends_the_run_with_what_the_file_held(tmp_path: Path) -> None:
    """RLIMIT_FSIZE is what a process meets of a full disk: writes fail from then on."""
    with measuring(tmp_path, *ARGUMENTS) as run:
        before = some_points(run)
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
        assert run.ended(LATE_S) == 2
        assert f"cannot write {run.file}" in run.err
        nothing_lost(run, before)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["err.txt", "out.txt", "survey.json"]


@pytest.mark.long
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A tmpfs of 64 KiB in a mount namespace of its own: no survey has room in it for long."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=64k none {small} && exec "$@"', "sh")
    try:
        tried = subprocess.run([*mounted, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here: NO FULL DISK is tested, only a limit on the size of files")
    if tried.returncode:
        pytest.skip("no tmpfs can be mounted here: NO FULL DISK is tested, only a limit on the size of files")
    with measuring(tmp_path, *ARGUMENTS, output=small / "survey.json", before=mounted) as run:
        assert run.ended(START_S + LATE_S) == 2
        assert f"cannot write {small / 'survey.json'}: No space left on device" in run.err


@pytest.mark.long
@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_without_memory_is_named_or_its_size_left_out(tmp_path: Path, number: int) -> None:
    with measuring(tmp_path, "--timeout", f"{TIMEOUT_S}s", "--budget", "12s") as run:
        before = some_points(run)
        rank = run.until(lambda: run.ranks(2))[number]
        size = int(Path(f"/proc/{rank}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(rank, resource.RLIMIT_AS, (size + (8 << 20), size + (8 << 20)))
        code = run.ended(START_S)
        nothing_lost(run, before)
        if code:
            assert code == 4 and f"rank {number} (GPU {number} of node 0" in run.err and "out of memory" in run.err
        else:
            left_out = [notice.message for notice in run.survey().missing if notice.code == "out-of-memory"]
            assert left_out and all(f"rank {number} (GPU {number} of" in message for message in left_out)
            assert "--largest" in left_out[0]


def test_a_node_that_never_arrives_is_named(tmp_path: Path) -> None:
    with measuring(tmp_path, *as_node(0, free_port()), source="machine:l4-1") as run:
        assert run.ended(START_S + LATE_S) == 4
        assert f"1 of 2 nodes joined within {TIMEOUT_S} s, missing: node 1" in run.err
        assert not run.file.exists()


def nobody(port: int) -> ExitStack:
    return ExitStack()


def somebody_else(port: int) -> ExitStack:
    """A server that listens, and never says a word."""
    stack = ExitStack()
    stack.enter_context(socket.create_server(("127.0.0.1", port)))
    return stack


def firewall(port: int) -> ExitStack:
    """A queue of connections that is full, so that the kernel drops what else comes as a firewall would."""
    stack = ExitStack()
    server = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
    for _ in range(3):
        client = stack.enter_context(socket.socket())
        client.setblocking(False)
        client.connect_ex(server.getsockname())
    return stack


@pytest.mark.parametrize(
    "there",
    [nobody, pytest.param(somebody_else, marks=pytest.mark.long), pytest.param(firewall, marks=pytest.mark.long)],
)
def test_a_node_0_that_does_not_answer_is_named(tmp_path: Path, there: Callable[[int], ExitStack]) -> None:
    port = free_port()
    with there(port), measuring(tmp_path, *as_node(1, port), source="machine:l4-1") as run:
        assert run.ended(START_S + LATE_S) == 4
        assert f"node 0 at 127.0.0.1 port {port} did not answer within {TIMEOUT_S} s" in run.err


@pytest.mark.long
def test_a_port_in_use_is_told_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with measuring(tmp_path, *as_node(0, port), "--timeout", f"{START_S}s", source="machine:l4-1") as run:
            assert run.ended(START_S) == 2
            assert f"node 0 cannot listen at 127.0.0.1 port {port}: Address already in use" in run.err
            assert "--port" in run.err


@pytest.mark.long
def test_two_nodes_of_one_number(tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as started:
        runs = [
            started.enter_context(measuring(tmp_path / name, *as_node(node, port), source="machine:l4-1"))
            for name, node in (("first", 1), ("second", 1))
        ]
        run = started.enter_context(measuring(tmp_path / "zero", *as_node(0, port), source="machine:l4-1"))
        some_points(run)
        wrong = [one for one in runs if one.process.poll() is not None]
        assert len(wrong) == 1  # the other one measures
        assert wrong[0].ended(1.0) == 2
        assert "two nodes say that they are node 1" in wrong[0].err and "--node-rank" in wrong[0].err


@pytest.mark.parametrize("node", [pytest.param(0, marks=pytest.mark.long), 1])
def test_both_nodes_name_the_rank_that_was_killed(tmp_path: Path, node: int) -> None:
    with two_nodes(tmp_path) as runs:
        before = some_points(runs[0])
        os.kill(runs[node].until(lambda: runs[node].ranks(1))[0], signal.SIGKILL)
        for run in runs:
            assert run.ended(LATE_S) == 4
            assert f"rank {node} (GPU 0 of node {node}" in run.err
            assert "was killed by signal 9 (SIGKILL)" in run.err
        nothing_lost(runs[0], before)
        assert not runs[1].file.exists()


@pytest.mark.long
@pytest.mark.parametrize("node", [0, 1])
def test_both_nodes_name_the_rank_that_was_stopped(tmp_path: Path, node: int) -> None:
    with two_nodes(tmp_path) as runs:
        before = some_points(runs[0])
        os.kill(runs[node].until(lambda: runs[node].ranks(1))[0], signal.SIGSTOP)
        for run in runs:
            assert run.ended(LATE_S) == 4
            assert f"rank {node} (GPU 0 of node {node}" in run.err
            assert "is stopped" in run.err
        nothing_lost(runs[0], before)


@pytest.mark.long
@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_vanishes_is_named_by_the_other(tmp_path: Path, node: int) -> None:
    with two_nodes(tmp_path) as runs:
        before = some_points(runs[0])
        runs[node].process.kill()
        assert runs[node].ended(2.0) == -signal.SIGKILL
        other = runs[1 - node]
        assert other.ended(LATE_S) == 4
        assert f"node {node} no longer answers" in other.err
        assert "rank" not in other.err.partition("wirelore: node")[2].partition(".")[0]
        nothing_lost(runs[0], before)


@pytest.mark.long
@pytest.mark.parametrize("node", [0, 1])
def test_a_node_process_that_is_stopped_is_named_by_both(tmp_path: Path, node: int) -> None:
    with two_nodes(tmp_path) as runs:
        before = some_points(runs[0])
        os.kill(runs[node].until(runs[node].node), signal.SIGSTOP)
        assert runs[node].ended(LATE_S) == 4
        assert f"the measuring process of node {node} is stopped" in runs[node].err
        assert runs[1 - node].ended(LATE_S) == 4
        assert f"node {node} no longer answers" in runs[1 - node].err
        nothing_lost(runs[0], before)
