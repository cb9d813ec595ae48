"""Where the nodes meet: the store of node 0, and what they write there for each other; nothing of it waits for ever."""

from __future__ import annotations

import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from probe.bench.messages import Rendezvous
from probe.errors import MeasureError, UsageError

T = TypeVar("T")

HEAR_S = 3.0
"""How long a node listens to the others when something went wrong, before it calls the cause unknown."""
TROUBLE = "trouble"
"""The key that tells every node that one has met trouble."""
_PAUSE_S = 0.025


class Board:
    """What the nodes write for each other, on the store of node 0. Every call has a deadline: a link can be cut."""

    def __init__(self, store: dist.Store) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1)
        self._poll: Future[bool] | None = None

    def claimed(self, key: str, within_s: float) -> int | None:
        """How many, with this one, have claimed it by now; None where the store does not answer."""
        return _result(self._thread.submit(self.store.add, key, 1), within_s)

    def write(self, key: str, text: str, within_s: float = HEAR_S) -> None:
        _result(self._thread.submit(self.store.set, key, text), within_s)

    def read(self, keys: list[str], within_s: float) -> dict[str, str]:
        """Those of the keys that are written within this time."""
        found: dict[str, str] = {}
        ends = time.monotonic() + within_s
        while len(found) < len(keys) and time.monotonic() < ends:
            for key in [key for key in keys if key not in found]:
                if _result(self._thread.submit(self.store.check, [key]), ends - time.monotonic()):
                    text = _result(self._thread.submit(self.store.get, key), ends - time.monotonic())
                    if text is not None:
                        found[key] = text.decode()
            if len(found) < len(keys):
                time.sleep(_PAUSE_S)
        return found

    def is_troubled(self) -> bool:
        """Whether some node has met trouble, as far as it is known by now: never waits."""
        if self._poll is None:
            self._poll = self._thread.submit(self.store.check, [TROUBLE])
        if not self._poll.done():
            return False
        poll, self._poll = self._poll, None
        return poll.exception() is None and poll.result()


def _result(call: Future[T], within_s: float) -> T | None:
    try:
        return call.result(max(0.0, within_s))
    except (TooLate, RuntimeError, OSError):
        return None


def listening_at(meeting: Rendezvous) -> socket.socket | None:
    """The port where the nodes meet, bound before anything else so that a port in use is told at once."""
    if meeting.node != 0 or meeting.hosted:
        return None
    try:
        family = socket.getaddrinfo(meeting.address, meeting.port, type=socket.SOCK_STREAM)[0][0]
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((meeting.address, meeting.port))
        server.listen(1024)
    except OSError as error:
        raise UsageError(
            f"node 0 cannot listen at {meeting.address} port {meeting.port}: {error.strerror}",
            cure="See with `ss -ltnp` who does (another node 0?), or choose another --port, the same on every node.",
        ) from error
    return server


def store_of(meeting: Rendezvous, listening: socket.socket | None, timeout_s: float) -> dist.Store:
    call = ThreadPoolExecutor(1).submit(
        dist.TCPStore,
        meeting.address,
        meeting.port,
        is_master=listening is not None,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listening.detach() if listening else None,
    )
    # Its own timeout ends where somebody else listens at this port, and never says a word.
    store = _result(call, timeout_s + 1)
    if store is None:
        raise no_answer(meeting, timeout_s)
    return dist.PrefixStore(meeting.prefix, store)


def no_answer(meeting: Rendezvous, timeout_s: float) -> MeasureError:
    host, port = meeting.address, meeting.port
    return MeasureError(
        f"node 0 at {host} port {port} did not answer within {timeout_s:g} s",
        cure=f"Start it there; `nc -vz {host} {port}` from here tells whether a firewall is between.",
    )
