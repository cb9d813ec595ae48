"""Servers of one node under one parent: all start, all get its signals, all end with the first that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from configgen.run.launch import Start, cannot_start
from probe.bench.channel import die_with

GRACE_S = 25.0
"""What servers have to end by themselves: less than the 30 s after which Kubernetes ends a container for good."""

_ASKED_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_HEARD = (*_ASKED_TO_END, signal.SIGCHLD)


@dataclass(frozen=True, slots=True)
class Ending:
    """Why all ended: the server that ended first and its exit code, or the signal that this process got."""

    code: int
    server: int | None = None


def run_together(starts: Sequence[Start], environ: Mapping[str, str], *, grace_s: float = GRACE_S) -> Ending:
    """Starts all and waits until one ends or this process is asked to end; then ends the others, and all they started.

    A server that outlives a killed parent is killed by the kernel (prctl PR_SET_PDEATHSIG). Raises UsageError where
    one can't be started.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by some parents, and then no ending is told
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)  # so that none is lost between two looks
    servers: list[subprocess.Popen[bytes]] = []
    asked = signal.SIGTERM
    try:
        for start in starts:
            servers.append(_started(start, environ, before))
        ended, asked = _first_ending(servers)
        return ended
    finally:
        _end(servers, asked, grace_s)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _started(start: Start, environ: Mapping[str, str], mask: set[signal.Signals | int]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            start.argv,
            env=start.environment(environ),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C comes here, and to it from here
            preexec_fn=partial(_in_child, os.getpid(), mask),  # noqa: PLW1509 - this process has one thread
        )
    except OSError as error:
        raise cannot_start(start, error) from error


def _in_child(parent: int, mask: set[signal.Signals | int]) -> None:
    die_with(parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _first_ending(servers: Sequence[subprocess.Popen[bytes]]) -> tuple[Ending, signal.Signals]:
    """What happened first, and the signal by which the others are to end."""
    while True:
        ended = [(i, server) for i, server in enumerate(servers) if _has_ended(server)]
        for _, server in ended:
            _kill_rest(server)
        codes = [(i, _code(server.wait())) for i, server in ended]
        if codes:
            number, code = next(((i, code) for i, code in codes if code), codes[0])
            return Ending(code, number), signal.SIGTERM
        heard = signal.Signals(signal.sigwait(_HEARD))
        if heard != signal.SIGCHLD:
            return Ending(128 + heard), heard


def _end(servers: Sequence[subprocess.Popen[bytes]], asked: signal.Signals, grace_s: float) -> None:
    """Asks all to end, and kills what is left after the grace, or at once when it is asked again."""
    left = [server for server in servers if server.returncode is None]
    for server in left:
        server.send_signal(asked)
    deadline = time.monotonic() + grace_s
    while not all(_has_ended(server) for server in left) and (rest := deadline - time.monotonic()) > 0:
        heard = signal.sigtimedwait(_HEARD, rest)
        if heard is not None and heard.si_signo in _ASKED_TO_END:
            break
    for server in left:
        _kill_rest(server)
        server.wait()


def _has_ended(server: subprocess.Popen[bytes]) -> bool:
    """Without collecting it, so that its process group keeps its number until all of it is gone."""
    if server.returncode is not None:
        return True
    return os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_rest(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def _code(returned: int) -> int:
    return 128 - returned if returned < 0 else returned
