"""Ports that a test has for itself: no other test takes them, nor a connection that somebody opens meanwhile."""

from __future__ import annotations

import random
import socket

_RANGE = range(20_000, 29_000)
"""Below those that the kernel gives to outgoing connections and to port 0 (32768 on), and below launchers' defaults."""


def free_port() -> int:
    """Nobody listens at it, and no other call returns it, in whatever process, until this one ends."""
    while True:
        port = random.choice(_RANGE)
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0wirelore-tests-port-{port}")  # a name in no file: the kernel frees it with the process
            socket.create_server(("", port)).close()
        except OSError:
            claim.close()
        else:
            claim.detach()
            return port
