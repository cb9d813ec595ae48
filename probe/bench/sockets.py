"""The TCP connections of this process, and the network interfaces that they go through: what gloo really used.

A connection's local address is one of an interface's; between two ranks of one node the kernel itself carries it.
Linux tells the addresses of interfaces through ioctl (netdevice(7)) and /proc/net/if_inet6; nothing else is needed.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from probe.errors import one_line
from probe.measurement import Evidence

_MOST_DESCRIPTORS = 65_536
_SIOCGIFCONF = 0x8912
_IFREQ = struct.Struct("16sH2x4s16x" if struct.calcsize("P") == 8 else "16sH2x4s8x")
_MOST_ADDRESSES = 512
_TEXT_LIMIT = 1 << 20


class Connection(NamedTuple):
    """An established TCP connection: local and remote address and port."""

    local: str
    local_port: int
    remote: str
    remote_port: int


def own_sockets() -> tuple[Connection, ...]:
    """The established TCP connections of this process, of all its descriptors; () where /proc tells none."""
    try:
        numbers = sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir())[:_MOST_DESCRIPTORS]
    except OSError:
        return ()
    return tuple(connection for number in numbers if (connection := _connection(number)) is not None)


def interfaces() -> dict[str, str]:
    """Every address of this machine (of its network namespace) -> the name of its interface."""
    try:
        with Path("/proc/self/net/if_inet6").open("rb") as file:
            ipv6 = file.read(_TEXT_LIMIT).decode("ascii", "replace")
    except OSError:
        ipv6 = ""
    return {**dict(_ipv4_addresses()), **dict(ipv6_addresses(ipv6))}


def socket_evidence(
    operation: str, connections: Iterable[Connection], names: Mapping[str, str], *, before: Iterable[Connection] = ()
) -> tuple[Evidence, ...]:
    """Each interface with its connections ('eth0 (3 connections)'), those of `before` (a store's) left out.

    An address of no known interface (one that moved meanwhile) is told as 'unknown'.
    """
    old = frozenset(before)
    used = Counter(names.get(c.local, "unknown") for c in connections if c not in old)
    counted = ((name, f"{n} connection{'s' if n != 1 else ''}") for name, n in sorted(used.items()))
    return tuple(Evidence(operation, "interface", f"{one_line(name, 32)} ({many})") for name, many in counted)


def ipv6_addresses(text: str) -> Iterator[tuple[str, str]]:
    """(address, interface) of each line of /proc/net/if_inet6: address, index, prefix, scope, flags, name."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 6 and len(words[0]) == 32:
            try:
                yield str(IPv6Address(int(words[0], 16))), words[5]
            except ValueError:
                continue


def _ipv4_addresses() -> Iterator[tuple[str, str]]:
    from array import array
    from fcntl import ioctl

    buffer = array("B", bytes(_IFREQ.size * _MOST_ADDRESSES))
    place, size = buffer.buffer_info()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            answer = ioctl(asker, _SIOCGIFCONF, struct.pack("iP", size, place))
    except OSError:
        return
    filled = struct.unpack("iP", answer)[0]
    for label, family, address in _IFREQ.iter_unpack(buffer.tobytes()[: filled - filled % _IFREQ.size]):
        if family == socket.AF_INET:
            name = label.partition(b"\0")[0].decode("utf-8", "replace")
            yield socket.inet_ntoa(address), name.partition(":")[0]  # 'eth0:1' is a second address of eth0


def _connection(number: int) -> Connection | None:
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return None
        with socket.socket(fileno=os.dup(number)) as own:  # closing the copy closes no connection
            if own.family not in (socket.AF_INET, socket.AF_INET6) or own.type != socket.SOCK_STREAM:
                return None
            local, remote = own.getsockname(), own.getpeername()
    except OSError:  # gone meanwhile, or not connected
        return None
    return Connection(_plain(local[0]), local[1], _plain(remote[0]), remote[1])


def _plain(address: str) -> str:
    """'::ffff:10.0.0.1' -> '10.0.0.1', 'fe80::1%eth0' -> 'fe80::1'."""
    bare = address.partition("%")[0]
    mapped = getattr(ip_address(bare), "ipv4_mapped", None)
    return str(mapped or bare)
