"""The wire between a node's processes and their parent: one JSON message per datagram, and nobody outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket

import msgspec

from probe.bench.messages import Message

_PR_SET_PDEATHSIG = 1
_LARGEST_BYTES = 4 << 20


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep messages apart; the receiver sees the end when the last sender is gone."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end, option in ((sender, socket.SO_SNDBUF), (receiver, socket.SO_RCVBUF)):
        end.setsockopt(socket.SOL_SOCKET, option, _LARGEST_BYTES)
    return receiver, sender


def send(end: socket.socket, message: Message) -> None:
    """Whole or not at all. Does nothing where the parent is gone: then this process is about to end too."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        end.sendall(msgspec.json.encode(message))


def receive(end: socket.socket) -> Message | None:
    """The next message; None when every sender is gone."""
    data = end.recv(_LARGEST_BYTES)
    return msgspec.json.decode(data, type=Message) if data else None


def die_with(parent: int) -> None:
    """Ends this process by SIGKILL when its parent ends, however that came about (Linux, prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
