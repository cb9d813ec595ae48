"""The leader's side of a group's sockets: members are heard and told, strangers shown out, nobody is waited for."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from configgen.run.group import Roll, digest
from configgen.run.messages import (
    HELLO_BYTES,
    Elsewhere,
    Frames,
    Hello,
    Message,
    Proposal,
    Staged,
    Trouble,
    from_member,
    packed,
)

_AGAIN_S = 0.1
_SEND_S = 10.0
_FAREWELL_S = 2.0
_CHUNK = 1 << 18
_STRANGERS = 16
"""Connections that have not said who they are; who opens more loses the oldest."""


@dataclass(eq=False)
class _Guest:
    """One connection: who it says it is, once it has said so."""

    connection: socket.socket
    frames: Frames = field(default_factory=lambda: Frames(HELLO_BYTES))
    node: int | None = None


class House:
    """The leader's door: lets members in, hears them, tells them; strangers are shown out."""

    def __init__(self, roll: Roll) -> None:
        self.roll = roll
        self.verdict: Message | None = None
        """Told at once to every member that comes from now on."""
        self._proposed: str | None = None
        self._door: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._guests: list[_Guest] = []
        self._told: set[int] = set()

    def open(self, port: int, ends_s: float) -> str | None:
        """Listens at the port of all addresses, IPv6 too where there is any; else the reason why it could not."""
        while True:
            try:
                self._door = _listening(port)
            except OSError as error:
                if time.monotonic() >= ends_s:
                    return f"port {port} of the leader cannot be had: {error.strerror}"
                time.sleep(max(0.0, min(_AGAIN_S, ends_s - time.monotonic())))
            else:
                self._door.setblocking(False)
                self._selector.register(self._door, selectors.EVENT_READ)
                return None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of each node as it is seen from here; the leader's own is what the launcher tells."""
        seen = {guest.node: _plain(guest.connection) for guest in self._guests if guest.node is not None}
        return tuple(seen.get(node, "") for node in range(self.roll.own.nodes))

    def propose(self, proposal: Proposal) -> None:
        self._proposed = digest(proposal.plan)
        self.tell(proposal)

    def tell(self, message: Message) -> None:
        """To all members that are here; who cannot hear is gone."""
        data = packed(message)
        for guest in [guest for guest in self._guests if guest.node is not None]:
            self._send(guest, data)

    def dismiss(self, trouble: Trouble, ends_s: float) -> None:
        """Tells all members, those too that come until the end."""
        self.verdict = trouble
        self._told = {guest.node for guest in self._guests if guest.node is not None}
        self.tell(trouble)
        self.serve(lambda: len(self._told) >= self.roll.own.nodes - 1, ends_s)

    def serve(self, is_done: Callable[[], bool], ends_s: float) -> None:
        """Hears everybody until it is done, somebody is in trouble, or the time is over."""
        while not (is_done() or (self.verdict is None and self.roll.objection())):
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                return
            for key, _ in self._selector.select(left_s):
                if key.fileobj is self._door:
                    self._let_in()
                elif key.data in self._guests:
                    self._hear(key.data)

    def close(self) -> None:
        """Sees that what was told arrives: a connection with unread words in it would be reset, and lose them."""
        if self._door is not None:
            self._door.close()
        ends_s = time.monotonic() + _FAREWELL_S
        for guest in self._guests:
            with contextlib.suppress(OSError):
                guest.connection.shutdown(socket.SHUT_WR)
        for guest in self._guests:
            with contextlib.suppress(OSError), guest.connection as connection:
                while guest.node is not None and (left_s := ends_s - time.monotonic()) > 0:
                    connection.settimeout(left_s)
                    if not connection.recv(_CHUNK):
                        break
        self._guests.clear()
        self._selector.close()

    def _let_in(self) -> None:
        assert self._door is not None
        try:
            connection, _ = self._door.accept()
        except OSError:
            return
        strangers = [guest for guest in self._guests if guest.node is None]
        if len(strangers) >= self.roll.own.nodes + _STRANGERS:
            self._show_out(strangers[0])
        guest = _Guest(connection)
        self._guests.append(guest)
        self._selector.register(connection, selectors.EVENT_READ, guest)

    def _hear(self, guest: _Guest) -> None:
        try:
            guest.connection.settimeout(_SEND_S)
            data = guest.connection.recv(_CHUNK)
            for frame in guest.frames.feed(data):
                self._take(guest, frame)
        except (OSError, ValueError):
            data = b""
        if not data:
            self._show_out(guest)

    def _take(self, guest: _Guest, frame: bytes) -> None:
        """Raises ValueError on what no member would say now."""
        message = from_member(frame)
        if guest.node is None:
            if not isinstance(message, Hello):
                raise ValueError("who does not say hello is no member")
            self._welcome(guest, message)
        elif isinstance(message, Trouble):
            self.roll.complain(guest.node, message)
        elif not isinstance(message, Staged) or not self.roll.stage(guest.node, message.plan, self._proposed):
            raise ValueError("not what was proposed")

    def _welcome(self, guest: _Guest, hello: Hello) -> None:
        refusal = self.roll.refusal(hello)
        if refusal is not None:
            self._send(guest, packed(refusal))
            raise ValueError(refusal.reason)
        for former in [other for other in self._guests if other.node == hello.node]:
            former.node = None  # so that showing it out strikes nobody off the list
            self._send(former, packed(Elsewhere(reason=f"another process says that it is node {hello.node}")))
            self._show_out(former)
        self.roll.enter(hello)
        guest.node = hello.node
        if self.verdict is not None:
            self._send(guest, packed(self.verdict))
            self._told.add(hello.node)

    def _send(self, guest: _Guest, data: bytes) -> None:
        try:
            guest.connection.settimeout(_SEND_S)
            guest.connection.sendall(data)
        except OSError:
            self._show_out(guest)

    def _show_out(self, guest: _Guest) -> None:
        if guest not in self._guests:
            return
        self._guests.remove(guest)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(guest.connection)
        guest.connection.close()
        if guest.node is not None:
            self.roll.leave(guest.node)


def _listening(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
    return socket.create_server(("", port), backlog=256)


def _plain(connection: socket.socket) -> str:
    """'::ffff:10.0.0.1' is 10.0.0.1."""
    try:
        return str(connection.getpeername()[0]).removeprefix("::ffff:")
    except OSError:
        return ""
