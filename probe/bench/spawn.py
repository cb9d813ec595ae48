"""Starts the process of a node and listens to it under a deadline; whatever happens, nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from typing import IO

import msgspec

from probe.bench import channel
from probe.bench.blame import was_killed
from probe.bench.messages import Failed, Job, Joined, Message
from probe.bench.vitals import is_stopped
from probe.errors import MeasureError, one_line

_START_S = 120.0
"""Silence that is still no sign of death before the nodes have met: torch may come from a cold disk far away."""
_LEAST_S = 5.0
"""The node's process notices a rank's silence itself, and then hears the other nodes before it tells."""
_LAST_WORDS_BYTES = 2000


def messages(job: Job, *, debug: bool = False) -> Generator[list[Message], None, None]:
    """What the node's process reports, as it comes: one or more messages at a time, until it ends.

    The last is Done or Failed. At the end of the iteration, by whatever cause, no process of it runs any more. Raises
    MeasureError where no process can be started.
    """
    receiver, sender = channel.pair()
    with receiver, _in_memory("words") as words, _in_memory("job") as task:
        task.write(msgspec.json.encode(job))
        task.seek(0)
        try:
            process = _started(sender, task, None if debug else words)
        finally:
            sender.close()
        try:
            yield from _heard(process.pid, receiver, job)
            yield [_ended(process, job, words)]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _in_memory(name: str) -> IO[bytes]:
    """A file that needs no disk, which may be full or read-only here."""
    return os.fdopen(os.memfd_create(name), "w+b")


def _started(sender: socket.socket, task: IO[bytes], words: IO[bytes] | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "probe.bench.node", str(sender.fileno()), str(os.getpid())]
    try:
        return subprocess.Popen(
            command,
            stdin=task,
            stdout=subprocess.DEVNULL,
            stderr=words,
            pass_fds=(sender.fileno(),),
            start_new_session=True,  # Ctrl-C is the parent's to answer
            env={"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, "PYTHONSAFEPATH": "1"},
        )
    except OSError as error:
        raise MeasureError(
            f"no process can be started to measure: {error.strerror}", cure="Check memory and process limits."
        ) from error


def _heard(pid: int, receiver: socket.socket, job: Job) -> Iterator[list[Message]]:
    """Until every sender is gone, or silent for too long."""
    poll = select.poll()
    poll.register(receiver, select.POLLIN)
    patience_s, heard_s = max(_START_S, job.timeout_s), time.monotonic()
    while (silent_s := time.monotonic() - heard_s) < patience_s and not (silent_s >= job.timeout_s and is_stopped(pid)):
        if not poll.poll(min(job.timeout_s, patience_s - silent_s) * 1000):
            continue
        batch: list[Message] = []
        while poll.poll(0):
            message = channel.receive(receiver)
            if message is None:
                yield batch
                return
            batch.append(message)
            if isinstance(message, Joined):
                patience_s = max(_LEAST_S, job.timeout_s)
        yield batch
        heard_s = time.monotonic()
    if is_stopped(pid):
        yield [Failed(f"{_who(job)} is stopped", "Something sent it SIGSTOP: a debugger, or a batch system.")]
    else:
        what = f"{_who(job)} said nothing for {patience_s:g} s"
        yield [Failed(what, "If this machine is only slow, --timeout waits longer.")]


def _ended(process: subprocess.Popen[bytes], job: Job, words: IO[bytes]) -> Failed:
    """It ended: what is only right after Done or Failed, so whoever got one of these never reads this."""
    code = process.wait()
    if code < 0:
        return was_killed(_who(job), -code)
    words.seek(0, os.SEEK_END)
    words.seek(max(0, words.tell() - _LAST_WORDS_BYTES))
    last = one_line(words.read().decode(errors="replace").strip().rpartition("\n")[2])
    cure = f"Run again with --debug.{f' Its last words: {last}' if last else ''}"
    return Failed(f"{_who(job)} ended with exit code {code} before it was done", cure)


def _who(job: Job) -> str:
    return f"the measuring process of node {job.rendezvous.node}"
