"""A member's way to the leader: its address found and its port reached, or known in time that they can't be."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from configgen.run.messages import MOST_BYTES, Frames, FromLeader, Message, from_leader, packed
from probe.errors import one_line

_SEND_S = 5.0
_CHUNK = 1 << 18

Resolved = list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]]


def reachable_name(told: str, launcher: str) -> str:
    """The address of node 0 as this node can resolve it: what a Slurm cluster's controller knows, where no DNS does."""
    from probe.bench.network import Network
    from probe.bench.rendezvous import SRUN

    network = Network()
    if not launcher.startswith(SRUN) or network.addresses_of(told):
        return told
    return network.slurm_address(told) or told


class Link:
    """A member's connection to the leader. Whatever goes wrong is an OSError, what is no message a ValueError."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = Frames(MOST_BYTES)
        self._whole: list[bytes] = []

    def send(self, message: Message) -> None:
        self._connection.settimeout(_SEND_S)
        self._connection.sendall(packed(message))

    def receive(self, ends_s: float) -> FromLeader:
        while not self._whole:
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("no answer in time")
            self._connection.settimeout(left_s)
            data = self._connection.recv(_CHUNK)
            if not data:
                raise ConnectionError("it went away")
            self._whole += self._frames.feed(data)
        return from_leader(self._whole.pop(0))


@contextlib.contextmanager
def connected(address: str, port: int, ends_s: float) -> Iterator[Link]:
    last: OSError = TimeoutError("no answer in time")
    for family, kind, protocol, _, end in _resolved(address, port, ends_s):
        with contextlib.closing(socket.socket(family, kind, protocol)) as connection:
            connection.settimeout(max(0.01, min(_SEND_S, ends_s - time.monotonic())))
            try:
                connection.connect(end)
            except OSError as error:
                last = error
                continue
            yield Link(connection)
            return
    raise last


def _resolved(address: str, port: int, ends_s: float) -> Resolved:
    """The addresses of a name. A resolver may take longer than there is time, and no call of it can be given up: so
    another thread waits. Raises OSError."""
    found: list[Resolved | OSError] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(address, port, type=socket.SOCK_STREAM))  # type: ignore[arg-type]
        except OSError as error:
            found.append(error)
        except UnicodeError:
            found.append(OSError("the name cannot be one"))

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(max(0.0, ends_s - time.monotonic()))
    if not found:
        raise TimeoutError(f"{one_line(address, 80)} does not resolve")
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]
