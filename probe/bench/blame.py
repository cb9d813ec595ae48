"""Who is at fault, out of what every node saw: the first cause, not the cascade that follows it."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import msgspec

from probe.bench.messages import Failed
from probe.bench.roster import Roster
from probe.units import some

_ECHOES = (
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out",
    "timeout",
    "monitoredbarrier",
    "no route to host",
    "unreachable",
    "process group",
    "failed to recv",
    "remote peer",
    "remote process",
    "network error",
    "connection abort",
    "completion from peer",
    "ncclremoteerror",
    "communicator was aborted",
)
"""What gloo, NCCL and the store say when somebody else is gone (torch 2.4 to 2.13, NCCL 2.18 to 2.28)."""

_OF_NCCL = ("nccl error", "distbackenderror")
"""How torch begins what NCCL says (c10d/NCCLUtils.cpp). An ncclSystemError or ncclInternalError may be a full /dev/shm
here, or all that is seen of another's end: https://github.com/NVIDIA/nccl/issues/795."""

_NO_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "memoryerror")

_KILL_CURE = "`dmesg` there tells whether the kernel's out-of-memory killer did it; a container's limit may, too."
_CRASH_CURE = "A library crashed there: run again with --debug for its last words."
_DEBUG_CURE = "Run again with --debug for the libraries' own words."


class Sight(msgspec.Struct, frozen=True):
    """What one node saw of its ranks when something went wrong."""

    killed: dict[int, int] = {}
    """Rank -> the signal that ended it."""
    stopped: tuple[int, ...] = ()
    errors: dict[int, str] = {}
    """Rank -> what it said of itself before it ended."""
    beats: dict[int, int] = {}
    """Rank -> how far it came."""


def is_echo(error: str) -> bool:
    """Whether this error of a rank may be only what another's failure looks like from afar."""
    return any(sign in error.lower() for sign in _ECHOES)


def _is_doubtful(error: str) -> bool:
    """Whether it proves nothing as long as somebody else may have failed."""
    return is_echo(error) or any(sign in error.lower() for sign in _OF_NCCL)


def is_out_of_memory(error: str) -> bool:
    """Whether torch, CUDA, NCCL or Python says that memory is short."""
    return any(sign in error.lower() for sign in _NO_MEMORY)


def explains(sight: Sight) -> bool:
    """Whether one of these ranks is seen to be a cause, not an echo."""
    crashed = any(number != signal.SIGABRT for number in sight.killed.values())
    return crashed or bool(sight.stopped) or not all(_is_doubtful(error) for error in sight.errors.values())


def verdict(roster: Roster, sights: Mapping[int, Sight], nodes: int, what_happened: str) -> Failed:
    """The cause that explains the rest, most certain first; 'unknown' where nothing points at anybody."""
    killed = {rank: number for sight in sights.values() for rank, number in sight.killed.items()}
    errors = {rank: error for sight in sights.values() for rank, error in sight.errors.items()}
    aborted = {rank for rank, number in killed.items() if number == signal.SIGABRT}  # NCCL's watchdog ends itself so
    for rank in killed.keys() - aborted:
        return was_killed(roster.name(rank), killed[rank])
    for rank in (rank for sight in sights.values() for rank in sight.stopped):
        return Failed(
            f"{roster.name(rank)} is stopped, so the others waited in vain",
            "Something sent it SIGSTOP: a debugger, or a batch system that suspends jobs.",
        )
    for rank, error in errors.items():
        if is_out_of_memory(error):
            cure = "Free memory there, or give a smaller --largest."
            return Failed(f"{roster.name(rank)} ran out of memory: {error}", cure)
        if not _is_doubtful(error):
            return Failed(f"{roster.name(rank)} failed: {error}", _DEBUG_CURE)
    silent = [roster.node_name(node) for node in range(nodes) if node not in sights]
    if silent:
        return Failed(
            f"{some(silent)} no longer answers" if len(silent) == 1 else f"{some(silent)} no longer answer",
            "Read what its own command says; if that says nothing, look at its link and its machine (ping, dmesg).",
        )
    doubtful = {rank: error for rank, error in errors.items() if not is_echo(error)}
    for error in doubtful.values():
        return Failed(f"{some([roster.name(rank) for rank in doubtful])} failed: {error}", _DEBUG_CURE)
    for rank in aborted:
        return was_killed(roster.name(rank), signal.SIGABRT)
    beats = {rank: count for sight in sights.values() for rank, count in sight.beats.items()}
    behind = [rank for rank, count in beats.items() if count < max(beats.values())]
    if behind:
        who = some([roster.name(rank) for rank in behind])
        return Failed(f"{what_happened}, and the others waited for {who}", _DEBUG_CURE)
    echo = next(iter(errors.values()), None)
    return Failed(
        f"{what_happened}, the rank at fault is unknown{f' (seen: {echo})' if echo else ''}",
        _DEBUG_CURE,
    )


def was_killed(who: str, number: int) -> Failed:
    """A process that a signal ended."""
    from_outside = number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return Failed(f"{who} was killed by {_signal_name(number)}", _KILL_CURE if from_outside else _CRASH_CURE)


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
