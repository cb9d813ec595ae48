"""A network of our own: namespaces as nodes, veth as cables to one switch, tbf as the speed of a port."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

GBIT, MBIT = 1_000_000_000, 1_000_000
_NAMESPACES = Path("/run/netns")
_OURS = re.compile(r"wl(\d+)x\d+-\w+")
_SERIAL = itertools.count()
_COMMAND_S = 30.0
_IPERF_PORT = 5377
_EVERY = ("-i", "0.5", "-p", str(_IPERF_PORT))

# A queue of 50 ms: longer than what TCP keeps in flight to a neighbour, so that it reaches the rate without losses.
_QUEUE_S = 0.050


@dataclass(frozen=True)
class Node:
    """One namespace: what runs in it sees its own interfaces alone, and a host name that nothing resolves."""

    name: str
    hostname: str
    address: str
    """Of eth0, the cable to the switch; '' where there is none."""

    def inside(self, *command: str) -> list[str]:
        """The command line that runs in this node. No process stands between: its pid is the command's own."""
        # Not `ip netns exec`: that remounts /sys.
        rename = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.hostname]
        return ["nsenter", f"--net={_NAMESPACES / self.name}", *rename, *command]

    def run(self, *command: str, environ: Mapping[str, str] | None = None) -> str:
        return _run(*self.inside(*command), environ=environ)

    def processes(self) -> tuple[int, ...]:
        """Everything that runs in this node, however it got there."""
        return tuple(map(int, _run("ip", "netns", "pids", self.name).split()))

    def interfaces(self) -> tuple[str, ...]:
        return tuple(link["ifname"] for link in json.loads(_run("ip", "-n", self.name, "-json", "link")))


class Lab:
    """Up to 200 nodes at one switch, every port of which passes `rate_bits_s` in each direction (None: unshaped).

        with Lab(2, rate_bits_s=GBIT) as lab:
            subprocess.run(lab.nodes[0].inside("ping", "-c1", lab.nodes[1].address))

    A token bucket lets `burst_bytes` pass at once after a rest: judge rates by messages of 64 bursts and more.
    """

    def __init__(self, nodes: int = 2, rate_bits_s: int | None = GBIT) -> None:
        self.rate_bits_s = rate_bits_s
        self._prefix = f"wl{os.getpid()}x{next(_SERIAL)}"
        self._switch = f"{self._prefix}-switch"
        self.nodes = tuple(Node(f"{self._prefix}-n{i}", f"lab-node-{i}", f"10.77.0.{i + 1}") for i in range(nodes))

    @property
    def burst_bytes(self) -> int:
        """2 ms of the rate, at least 128 KiB: what a late timer lets go by, and two of TCP's largest segments."""
        return max(128 * 1024, (self.rate_bits_s or 0) // 8 // 500)

    def __enter__(self) -> Lab:
        sweep()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _build(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for i, node in enumerate(self.nodes):
            _ip("netns", "add", node.name)
            # Whatever the host prefers: the one that every kernel lets a namespace choose.
            node.run("sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno")
            cable = f"eth0 type veth peer name port{i} netns {self._switch}".split()
            _ip("-n", node.name, "link", "add", *cable)
            _ip("-n", self._switch, "link", "set", f"port{i}", "master", "br0", "up")
            _ip("-n", node.name, "link", "set", "lo", "up")
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", "eth0")
            _ip("-n", node.name, "link", "set", "eth0", "up")
            self._shape(node.name, "eth0")
            self._shape(self._switch, f"port{i}")

    def _shape(self, namespace: str, interface: str) -> None:
        if self.rate_bits_s is None:
            return
        limit = int(self.rate_bits_s / 8 * _QUEUE_S) + self.burst_bytes
        words = f"root tbf rate {self.rate_bits_s}bit burst {self.burst_bytes} limit {limit}".split()
        _run("tc", "-n", namespace, "qdisc", "add", "dev", interface, *words)

    def _remove(self) -> None:
        for name in (*(node.name for node in self.nodes), self._switch):
            _delete(name)

    def cut(self, node: Node) -> None:
        """Pulls the cable: nothing arrives or leaves, and the node's own interface sees no carrier."""
        _ip("-n", self._switch, "link", "set", f"port{self.nodes.index(node)}", "down")

    def restore(self, node: Node) -> None:
        _ip("-n", self._switch, "link", "set", f"port{self.nodes.index(node)}", "up")

    @contextlib.contextmanager
    def flap(self, node: Node, seconds: float) -> Iterator[None]:
        """Pulls the cable now and puts it back after so long, while the body goes on."""
        self.cut(node)
        timer = threading.Timer(seconds, self.restore, [node])
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def add_unusable(self, node: Node, name: str, *, up: bool) -> None:
        """A second interface that leads nowhere: down, or up with an address that nobody answers."""
        i = self.nodes.index(node)
        _ip("-n", node.name, "link", "add", name, *f"type veth peer name {name}-{i} netns {self._switch}".split())
        _ip("-n", self._switch, "link", "set", f"{name}-{i}", "up")
        if up:
            _ip("-n", node.name, "addr", "add", f"192.168.{200 + i}.1/24", "dev", name)
            _ip("-n", node.name, "link", "set", name, "up")

    def ipv6_loopback(self, node: Node) -> None:
        """Leaves the node ::1 and nothing else: no 127.0.0.1, no cable."""
        _ip("-n", node.name, "link", "del", "eth0")
        _ip("-n", node.name, "addr", "del", "127.0.0.1/8", "dev", "lo")

    def iperf_bits_s(self, sender: Node, receiver: Node, seconds: int = 2, *, both: bool = False) -> float:
        """What iperf3's receiver counts, the median of its half seconds; of both directions at once, the slower."""
        server = subprocess.Popen(receiver.inside("iperf3", "-s", "-1", "-J", *_EVERY), stdout=subprocess.PIPE)
        try:
            _wait_for_port(server, _IPERF_PORT)
            words = ["-c", receiver.address, "-t", str(seconds), "-O", "1", "-J", *_EVERY]
            told = json.loads(sender.run("iperf3", *words, *(["--bidir"] if both else [])))
            heard = json.loads(server.communicate(timeout=_COMMAND_S)[0])
        finally:
            server.kill()
            server.wait()
        directions = [[moment["sum"] for moment in heard["intervals"]]]
        if both:
            directions.append([moment["sum_bidir_reverse"] for moment in told["intervals"]])
        return min(
            statistics.median(float(moment["bits_per_second"]) for moment in direction if not moment["omitted"])
            for direction in directions
        )


def missing() -> str | None:
    """Why no lab can be built here, None where one can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    absent = [tool for tool in ("ip", "tc", "nsenter", "unshare", "sysctl", "iperf3") if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    try:
        with Lab(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"this kernel makes no such network: {error.stderr.strip()}"


def sweep() -> None:
    """Removes what runs that were killed have left behind: their names carry the pid of the process that made them."""
    if not _NAMESPACES.is_dir():
        return
    for namespace in _NAMESPACES.iterdir():
        ours = _OURS.fullmatch(namespace.name)
        if ours and not Path("/proc", ours[1]).exists():
            _delete(namespace.name)


def _wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Until something listens at the port in the network that this process sees."""
    ends_s = time.monotonic() + _COMMAND_S
    listens = re.compile(rf":{port:04X} \S+ 0A ")
    while not any(listens.search(Path(f"/proc/{process.pid}/net/{table}").read_text()) for table in ("tcp", "tcp6")):
        if process.poll() is not None or time.monotonic() > ends_s:
            raise TimeoutError(f"nothing listens at port {port}")
        time.sleep(0.005)


def _delete(name: str) -> None:
    """Ends what runs in a namespace, and removes it. Its interfaces, and the far ends of them, go with it."""
    if not (_NAMESPACES / name).exists():
        return
    for pid in _run("ip", "netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(subprocess.CalledProcessError):  # another run swept it at the same moment
        _ip("netns", "del", name)


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*command: str, environ: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=_COMMAND_S, env=environ and dict(environ)
    )
    return done.stdout
