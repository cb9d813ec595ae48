"""This node's side of the rendezvous: which interface reaches node 0, and which address node 0 listens at."""

from __future__ import annotations

import ipaddress
import re
import socket
import subprocess
import time

import msgspec

from probe.bench.messages import Rendezvous
from probe.bench.rendezvous import KUBEFLOW, KUBERNETES_JOB, LEADER_WORKER_SET, SRUN, is_ip
from probe.errors import UsageError
from probe.sources.host import Interface, read_interfaces
from probe.units import some

_KUBERNETES = (LEADER_WORKER_SET, KUBEFLOW, KUBERNETES_JOB)
"""There a name resolves only some time after the start, and may be that of a service in front of node 0."""

_ASK_AGAIN_S = 0.5
_SCONTROL_S = 5.0
_NOBODY = ("198.51.100.1", "2001:db8::1")
"""Addresses for documentation (RFC 5737, RFC 3849): only a default route leads there."""

_NODE_ADDRESS = re.compile(r"\bNodeAddr=([A-Za-z0-9_.:-]{1,253})")


class Network:
    """What this node sees of the network; the seam where tests put another one."""

    def interfaces(self) -> tuple[Interface, ...]:
        return read_interfaces()

    def addresses_of(self, host: str) -> tuple[str, ...]:
        """The addresses of a name, IPv4 first, as gloo counts them; () where it does not resolve."""
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return ()
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))

    def source_towards(self, address: str) -> str | None:
        """This node's own address on the route to another; None without a route. A UDP connect sends nothing."""
        try:
            family, kind, protocol, _, end = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(end)
                return str(probe.getsockname()[0])
        except OSError:
            return None

    def slurm_address(self, node: str) -> str | None:
        """What Slurm's controller knows a node by, for clusters whose node names do not resolve."""
        try:
            command = ["scontrol", "--oneliner", "show", "node", node]
            answer = subprocess.run(
                command, check=False, capture_output=True, text=True, errors="replace", timeout=_SCONTROL_S
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        match = _NODE_ADDRESS.search(answer.stdout[:65536])
        return match.group(1) if match and match.group(1) != node else None


_THIS = Network()


def settle(meeting: Rendezvous, *, patience_s: float = 0.0, network: Network = _THIS) -> Rendezvous:
    """The same with an address that this node can use, and with its interface.

    The address is an IP: node 0 binds it, the others connect to it. In Kubernetes the name of node 0 may resolve some
    time after the start: there it is asked for until `patience_s` are over. Raises UsageError, with the cure.
    """
    interfaces = network.interfaces()
    if meeting.nodes == 1:
        chosen = _named(meeting.interface, interfaces) if meeting.interface else _loopback(interfaces)
        return _at(meeting, _address(chosen) or meeting.address, chosen)
    address = _master_address(meeting, patience_s, network)
    chosen = choose_interface(meeting, address, interfaces, network)
    if not meeting.hosted:
        address = local_address(meeting, address, chosen, interfaces)
    return _at(meeting, address, chosen)


def choose_interface(
    meeting: Rendezvous, address: str, interfaces: tuple[Interface, ...], network: Network = _THIS
) -> Interface:
    """The named interface, if it can serve; else the one on the route to node 0, which is at `address`."""
    if meeting.interface:
        return _named(meeting.interface, interfaces, like=None if _is_misleading(meeting, address) else address)
    serving = [i for i in interfaces if i.is_up and not _is_loopback(_address(i) or "::1")]
    if not _is_misleading(meeting, address):
        if _is_loopback(address):
            return _loopback(interfaces, like=address)
        source = network.source_towards(address)
        for interface in serving:
            if source in interface.addresses:
                return interface
        raise UsageError(
            f"no interface of this node has a route to node 0 at {address}",
            cure=f"Check the address, or choose with --interface: {_those(serving)}.",
        )
    if len(serving) == 1:
        return serving[0]
    sources = {network.source_towards(nobody) for nobody in _NOBODY}
    for interface in serving:
        if sources & set(interface.addresses):
            return interface
    raise UsageError(
        f"{meeting.address!r}, the name of node 0, stands for {address}, so which interface reaches it is not clear",
        cure=f"Give --master the IP of node 0, or choose with --interface: {_those(serving)}.",
    )


def local_address(meeting: Rendezvous, address: str, chosen: Interface, interfaces: tuple[Interface, ...]) -> str:
    """What node 0 binds, the address it is known by if that is its own; what another node connects to."""
    if _is_misleading(meeting, address):
        return _address(chosen) or address
    if meeting.node != 0 or _is_loopback(address) or any(address in i.addresses for i in interfaces):
        return address
    behind_a_service = _address(chosen, address) if meeting.origin.partition(",")[0] in _KUBERNETES else None
    if behind_a_service is None:
        own = _those([i for i in interfaces if i.is_up])
        raise UsageError(
            f"node 0 is to listen at {address}, which is no address of this machine",
            cure=f"Give --master an address of node 0 (here: {own}), or start node 0 there.",
        )
    return behind_a_service


def _is_misleading(meeting: Rendezvous, address: str) -> bool:
    """Whether node 0's host name stands for its loopback (127.0.1.1 on Debian): no other node can reach it there."""
    return _is_loopback(address) and not is_ip(meeting.address) and meeting.address.partition(".")[0] != "localhost"


def _master_address(meeting: Rendezvous, patience_s: float, network: Network) -> str:
    """The IP that node 0 is known by; a loopback one only if there is no other."""
    host = meeting.address
    if is_ip(host):
        return host
    launcher = meeting.origin.partition(",")[0]
    ends_s = time.monotonic() + (patience_s if launcher in _KUBERNETES else 0.0)
    found = network.addresses_of(host)
    while not found and time.monotonic() < ends_s:
        time.sleep(min(_ASK_AGAIN_S, max(0.0, ends_s - time.monotonic())))
        found = network.addresses_of(host)
    if not found and launcher == SRUN:
        known_by = network.slurm_address(host)
        found = (known_by,) if known_by and is_ip(known_by) else network.addresses_of(known_by) if known_by else ()
    if not found:
        raise UsageError(
            f"the host name {host!r} of node 0 ({meeting.origin}) does not resolve here",
            cure="Give --master IP:PORT with an address of node 0, or set MASTER_ADDR to one.",
        )
    return min(found, key=_is_loopback)


def _named(name: str, interfaces: tuple[Interface, ...], like: str | None = None) -> Interface:
    found = next((i for i in interfaces if i.name == name), None)
    if found is not None and found.is_up and _address(found, like) is not None:
        return found
    family = f"IPv{ipaddress.ip_address(like).version}" if like else "IP"
    why = "does not exist" if found is None else "is down" if not found.is_up else f"has no {family} address"
    able = [i for i in interfaces if i.is_up and _address(i, like) is not None]
    raise UsageError(f"the interface {name!r} {why}", cure=f"Choose one of those that can serve: {_those(able)}.")


def _loopback(interfaces: tuple[Interface, ...], like: str | None = None) -> Interface:
    """lo, with IPv4 or with IPv6 alone; where it is down, as in a fresh network namespace, any other that is up."""
    able = [i for i in interfaces if i.is_up and _address(i, like) is not None]
    able.sort(key=lambda i: not _is_loopback(_address(i, like) or ""))
    if not able or (like and not _is_loopback(_address(able[0], like) or "")):
        raise UsageError("no network interface is up here, not even lo", cure="Try `ip link set lo up`.")
    return able[0]


def _address(interface: Interface, like: str | None = None) -> str | None:
    """Its first address of the other's family, IPv4 before IPv6; one that holds only on its own link is none."""
    for version in (4, 6) if like is None else (ipaddress.ip_address(like).version,):
        for text in interface.addresses:
            address = ipaddress.ip_address(text)
            if address.version == version and not address.is_link_local:
                return text
    return None


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _those(interfaces: list[Interface]) -> str:
    """'eth0 (10.0.0.1)': those that others could reach, or else lo."""
    told = [(i.name, address) for i in interfaces if (address := _address(i))]
    told = [(name, address) for name, address in told if not _is_loopback(address)] or told
    return some([f"{name} ({address})" for name, address in told]) or "none is up with an address"


def _at(meeting: Rendezvous, address: str, chosen: Interface) -> Rendezvous:
    return msgspec.structs.replace(meeting, address=address, interface=chosen.name)
