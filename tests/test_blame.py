"""Who is at fault: the cause before its echoes, and 'unknown' rather than a guess."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.bench.blame import Sight, explains, is_echo, verdict, was_killed
from probe.bench.messages import Failed
from probe.bench.roster import Roster
from probe.merge import cluster
from probe.sources.machines import machine

CLOSED = "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:3333"
LATE = "RuntimeError: [Rank 0]: Ranks 1 failed to pass monitoredBarrier in 31000 ms"
NO_MEMORY = "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB. GPU 1 has 300.00 MiB free"
NCCL = "DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, "
REMOTE_SAID = (
    "remote process exited or there was a network error, NCCL version 2.26.2 ncclRemoteError: A call failed possibly "
    "due to a network error or a remote process exiting prematurely. Last error: "
)
SYSTEM_SAID = (
    "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5 ncclSystemError: System call "
    "(e.g. socket, malloc) or external library call failed or device error. Last error: "
)
INTERNAL_SAID = (
    "internal error - please report this issue to the NCCL developers, NCCL version 2.21.5 ncclInternalError: Internal "
    "check failed. Last error: "
)
REMOTE = NCCL + REMOTE_SAID + "socketProgress: Connection closed by remote peer node1<42830>"
INFINIBAND = (
    NCCL
    + REMOTE_SAID
    + "NET/IB : Got completion from peer 10.1.0.2<54862> with status=12 opcode=0 len=0 vendor err 129"
)
UNREACHED = (
    NCCL + SYSTEM_SAID + "socketStartConnect: Connect to 10.0.0.2<45763> failed : Software caused connection abort"
)
SHARED_MEMORY = (
    NCCL + SYSTEM_SAID + "Error while creating shared memory segment /dev/shm/nccl-QcEHr8 (size 9637888), "
    "error: No space left on device (28)"
)
INTERNAL = NCCL + INTERNAL_SAID + "Socket recv failed while polling for opId=0x7f4774cc9620"
WATCHDOG = "DistBackendError: NCCL communicator was aborted on rank 0."
STORE = "DistNetworkError: failed to recv, got 0 bytes"
KILLED, ABORTED = int(signal.SIGKILL), int(signal.SIGABRT)

TWO_NODES = Roster(cluster([machine("l4-2"), machine("l4-2")]))


def judge(sights: Mapping[int, Sight], nodes: int = 2, what: str = "a rank failed") -> Failed:
    return verdict(TWO_NODES, sights, nodes, what)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_killed_rank_comes_before_what_the_others_say_of_it(order: tuple[int, ...]) -> None:
    sights = {0: Sight(errors={0: CLOSED, 1: CLOSED}), 1: Sight(killed={3: KILLED}, errors={2: CLOSED})}
    found = judge({node: sights[node] for node in order})
    assert found.problem == "rank 3 (GPU 1 of node 1) was killed by signal 9 (SIGKILL)"
    assert "dmesg" in found.cure


def test_the_watchdog_of_nccl_aborts_the_survivors_not_the_culprit() -> None:
    assert "rank 1 " in judge({0: Sight(killed={0: ABORTED, 1: KILLED}), 1: Sight()}).problem
    assert "rank 2 " in judge({0: Sight(killed={0: ABORTED}), 1: Sight(stopped=(2,))}).problem
    assert judge({0: Sight(killed={0: ABORTED})}).problem == "node 1 no longer answers"
    alone = judge({0: Sight(killed={0: ABORTED}), 1: Sight()})
    assert "rank 0 (GPU 0 of node 0) was killed by signal 6 (SIGABRT)" in alone.problem
    assert "--debug" in alone.cure and "dmesg" not in alone.cure


def test_a_stopped_rank_comes_before_the_ranks_that_waited() -> None:
    found = judge({0: Sight(errors={0: LATE}, beats={0: 4, 1: 4}), 1: Sight(stopped=(2,), beats={2: 3, 3: 4})})
    assert found.problem.startswith("rank 2 (GPU 0 of node 1) is stopped")
    assert "SIGSTOP" in found.cure


def test_an_error_of_its_own_comes_before_an_echo() -> None:
    found = judge({0: Sight(errors={0: CLOSED, 1: "ValueError: no such thing"}), 1: Sight(errors={2: LATE})})
    assert found.problem == "rank 1 (GPU 1 of node 0) failed: ValueError: no such thing"


def test_memory_that_ran_out_is_told_as_that() -> None:
    found = judge({0: Sight(errors={0: CLOSED, 1: NO_MEMORY}), 1: Sight()})
    assert found.problem.startswith("rank 1 (GPU 1 of node 0) ran out of memory: ")
    assert "--largest" in found.cure


def test_a_node_that_says_nothing_is_named_when_nobody_else_explains_it() -> None:
    assert judge({0: Sight(errors={0: CLOSED})}).problem == "node 1 no longer answers"
    assert judge({1: Sight(errors={2: CLOSED})}).problem == "node 0 no longer answers"
    assert "rank 0 " in judge({0: Sight(killed={0: KILLED})}).problem


@pytest.mark.parametrize("error", [REMOTE, INFINIBAND, UNREACHED, WATCHDOG, STORE])
def test_what_nccl_says_of_others_is_an_echo(error: str) -> None:
    """torch's own words around it, as its survivors print them when a peer, its NIC or its link is gone."""
    assert is_echo(error)
    assert "rank 3 " in judge({0: Sight(errors={0: error}), 1: Sight(errors={3: "ValueError: no such thing"})}).problem
    assert judge({0: Sight(errors={0: error, 1: error})}).problem == "node 1 no longer answers"
    assert "at fault is unknown" in judge({0: Sight(errors={0: error}), 1: Sight()}).problem


@pytest.mark.parametrize("error", [SHARED_MEMORY, INTERNAL])
def test_what_may_be_nccls_own_failure_names_nobody_before_a_silent_node(error: str) -> None:
    sight = Sight(errors={0: error, 1: CLOSED})
    assert not is_echo(error) and not explains(sight)
    assert judge({0: sight}).problem == "node 1 no longer answers"
    assert "rank 3 " in judge({0: sight, 1: Sight(errors={3: "ValueError: no such thing"})}).problem
    assert judge({0: sight, 1: Sight()}).problem == f"rank 0 (GPU 0 of node 0) failed: {error}"
    both = judge({0: Sight(errors={0: error, 1: error}), 1: Sight()}).problem
    assert both.startswith("rank 0 (GPU 0 of node 0), rank 1 (GPU 1 of node 0) failed: ")


def test_the_rank_that_the_others_waited_for_is_suspected() -> None:
    beats = {0: Sight(beats={0: 9, 1: 9}), 1: Sight(beats={2: 9, 3: 8})}
    found = judge(beats, what="nothing moved for 30 s")
    assert found.problem == "nothing moved for 30 s, and the others waited for rank 3 (GPU 1 of node 1)"


def test_unknown_is_said_where_nothing_points_at_anybody() -> None:
    found = judge({0: Sight(errors={0: CLOSED}, beats={0: 5, 1: 5}), 1: Sight(beats={2: 5, 3: 5})})
    assert "a rank failed, the rank at fault is unknown" in found.problem
    assert "Connection closed by peer" in found.problem
    assert "--debug" in found.cure


@pytest.mark.parametrize(
    ("number", "cure"),
    [(signal.SIGKILL, "dmesg"), (signal.SIGTERM, "dmesg"), (signal.SIGSEGV, "--debug"), (63, "--debug")],
)
def test_a_crash_and_a_kill_have_their_own_cures(number: int, cure: str) -> None:
    found = was_killed("rank 0", number)
    assert f"signal {int(number)}" in found.problem and cure in found.cure


RANKS = st.integers(0, 3)
SIGHTS = st.dictionaries(
    st.integers(0, 1),
    st.builds(
        Sight,
        killed=st.dictionaries(RANKS, st.integers(1, 64)),
        stopped=st.lists(RANKS, max_size=2).map(tuple),
        errors=st.dictionaries(
            RANKS, st.sampled_from([CLOSED, LATE, NO_MEMORY, REMOTE, INTERNAL, "boom"]) | st.text(max_size=20)
        ),
        beats=st.dictionaries(RANKS, st.integers(0, 9)),
    ),
    min_size=1,
)


@given(SIGHTS)
def test_every_sight_has_a_verdict_that_names_somebody_or_says_unknown(sights: dict[int, Sight]) -> None:
    found = judge(sights)
    assert found.problem and found.cure
    assert "rank" in found.problem or "node" in found.problem
    if any(explains(sight) for sight in sights.values()):
        assert not any(sign in found.problem for sign in ("no longer answers", "is unknown", "waited for rank"))
