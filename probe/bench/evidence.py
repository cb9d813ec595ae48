"""What a run really used, from NCCL's or RCCL's own debug log: version, transports, NICs, algorithms, channels.

The log is that of NCCL_DEBUG=INFO with the subsystems INIT, GRAPH, TUNING, NET and ENV, of NCCL 2.18 to 2.28 and the
RCCL of those years. Its lines are written by init.cc, enqueue.cc, graph/tuning.cc and transport/*.cc of
github.com/NVIDIA/nccl. No line is trusted: it may be cut, another rank's, or not NCCL's at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from probe.errors import one_line
from probe.measurement import Evidence

ANY = "any"
"""The operation of what holds for all of them: NCCL connects its channels once."""

MAX_LINES = 2_000_000
MAX_BYTES = 256 << 20
_LINE_CHARS = 2000
_MOST_VALUES = 64
"""Different values of one kind that are kept, however many a hostile log has."""
_MOST_REMEMBERED = 20_000

_MARK = "NCCL INFO "  # RCCL's too
_OPERATIONS = {
    "AllReduce": "all_reduce",
    "AllGather": "all_gather",
    "ReduceScatter": "reduce_scatter",
    "AllToAll": "all_to_all",
    "AlltoAll": "all_to_all",
    "Broadcast": "broadcast",
    "Reduce": "reduce",
    "SendRecv": "p2p",
}
# By number until 2.23, by name since (NCCL_ALGO_*, NCCL_PROTO_* of nccl_common.h and nccl_tuner.h).
_ALGORITHMS = ("TREE", "RING", "COLLNET_DIRECT", "COLLNET_CHAIN", "NVLS", "NVLS_TREE", "PAT")
_PROTOCOLS = ("LL", "LL128", "SIMPLE")
_SETTINGS = frozenset(
    f"NCCL_{name}"
    for name in (
        "ALGO PROTO P2P_DISABLE P2P_LEVEL SHM_DISABLE IB_DISABLE IB_HCA NET NET_GDR_LEVEL NET_GDR_READ SOCKET_IFNAME "
        "SOCKET_NTHREADS NSOCKS_PERTHREAD CROSS_NIC COLLNET_ENABLE NVLS_ENABLE CUMEM_ENABLE PXN_DISABLE BUFFSIZE "
        "MIN_NCHANNELS MAX_NCHANNELS MIN_CTAS MAX_CTAS NTHREADS IB_QPS_PER_CONNECTION"
    ).split()
)
"""Variables that change a figure, and hold no path, address or name of a person."""

_VERSION = re.compile(r"\b([NR]CCL|HIP) version {0,2}:? ?([0-9]{1,3}(?:\.[0-9]{1,4}){1,3}[^\s,;]{0,40})")
_CHANNEL = re.compile(
    r"Channel [0-9]{1,5}(?:/[0-9]{1,5})? : [0-9]{1,9}\[[0-9a-fx]{1,16}\] -> [0-9]{1,9}\[[0-9a-fx]{1,16}\] "
    r"(?:\[(?:send|receive)\] )?via ((?:P2P|SHM|NET|COLLNET)\b.{0,120})"
)
_NET = re.compile(r"(?:COLL)?NET/([\w .-]{1,40}?)/([0-9]{1,3})(\([0-9]{1,9}\))?(.{0,60})")
_REST_OF_CHANNEL = re.compile(r"(?:/flush=\w{1,16})?(?: comm 0x.*)?$")
_CHOICE = re.compile(
    r"(?:([A-Za-z]{3,20})(?: \[\w{1,20}\])?: +)?([0-9]{1,18}) Bytes +-> "
    r"(?:Algo +(\w{1,20}) +proto +(\w{1,12})|Kernel +([\w.<>]{1,60}))"
)
_USING = re.compile(r"NET/(\w{1,16}) ?: Using (.{1,1500})")
_DEVICE = re.compile(r"\[([0-9]{1,3})\]([^\s;\[\]]{1,64})")
_VIRTUAL_DEVICE = re.compile(r"NET/(\w{1,16}) ?: Made virtual device \[([0-9]{1,3})\] name=([^\s]{1,64})")
_NVLS = re.compile(r"NVLS multicast support is (not )?available")
_CHANNELS = re.compile(
    r"([0-9]{1,4}) coll channels, (?:[0-9]{1,4} collnet channels, )?([0-9]{1,4}) nvls channels, ([0-9]{1,4}) p2p"
)
_SET = re.compile(r"((?:NCCL|RCCL)_[A-Z0-9_]{1,60}) set by environment to (.{1,80}?)\.?$")
_SAID_ONCE = (  # what it is evidence of, and the line that ends with it
    ("bootstrap", re.compile(r"Bootstrap ?: Using ([^\s:]{1,32}):")),
    ("network", re.compile(r"Using network (.{1,60})$")),
    ("provider", re.compile(r"NET/OFI Selected [Pp]rovider is ([\w;.-]{1,40})")),
    ("plugin", re.compile(r"NET/Plugin: Loaded net plugin (.{1,60})$")),
    ("cuda_driver", re.compile(r"cudaDriverVersion ([0-9]{4,6})\b")),
)


def evidence_in_file(path: Path) -> tuple[Evidence, ...]:
    """Evidence of the log at `path` (NCCL_DEBUG_FILE of one rank), of its first 256 MiB; () where there is none."""
    try:
        with path.open("rb") as file:
            pieces = iter(lambda: file.readline(_LINE_CHARS), b"")
            return evidence(piece.decode("utf-8", "replace") for piece in islice(pieces, MAX_LINES))
    except OSError:
        return ()


def evidence(lines: Iterable[str]) -> tuple[Evidence, ...]:
    """What the lines of a log tell, each thing once and in the order of its first appearance, algorithms last.

    'transport' is as NCCL writes it ('P2P/CUMEM/read', 'SHM/direct/direct', 'NET/IB/0/GDRDMA'), without the proxy;
    'nic' names the device that a channel goes through ('mlx5_0:1/IB', 'eth0'); 'algorithm' of an operation comes with
    the bytes for which it was chosen ('RING/LL 8-65536 B').
    """
    log = _Log()
    size = 0
    for line in islice(lines, MAX_LINES):
        size += len(line)
        if size > MAX_BYTES:
            break
        log.read(line[:_LINE_CHARS].rstrip())
    return tuple(log.evidence())


class _Log:
    """What was told so far."""

    def __init__(self) -> None:
        self._remembered: set[str] = set()
        self._told: dict[tuple[str, str], dict[str, None]] = {}
        self._sizes: dict[tuple[str, str], tuple[int, int]] = {}
        self._names: dict[tuple[str, int], str] = {}
        self._used: dict[tuple[str, int], None] = {}

    def read(self, line: str) -> None:
        _, marked, text = line.partition(_MARK)
        text = text.lstrip() if marked else line
        if text in self._remembered:  # a choice is told for every launch
            return
        if len(self._remembered) < _MOST_REMEMBERED:
            self._remembered.add(text)
        if version := _VERSION.search(text):
            self._tell(ANY, "version", f"{version[1]} {version[2]}")
        if marked:
            self._read(text)

    def evidence(self) -> Iterator[Evidence]:
        for key in self._used:
            if key in self._names:
                self._tell(ANY, "nic", self._names[key])
        for (operation, what), values in self._told.items():
            for value in filter(None, dict.fromkeys(one_line(v, 120) for v in values)):
                yield Evidence(operation, what, value)
        for (operation, choice), (least, most) in self._sizes.items():
            sizes = f"{least} B" if least == most else f"{least}-{most} B"
            yield Evidence(operation, "algorithm", f"{choice} {sizes}")

    def _read(self, text: str) -> None:
        if choice := _CHOICE.match(text):
            self._choose(choice)
        elif channel := _CHANNEL.match(text):
            self._connect(_REST_OF_CHANNEL.sub("", channel[1]))
        elif virtual := _VIRTUAL_DEVICE.match(text):
            self._name(virtual[1], int(virtual[2]), virtual[3])
        elif using := _USING.match(text):
            for number, name in _DEVICE.findall(using[2]):
                # A socket's device is told with its address, which is nobody's business here.
                self._name(using[1], int(number), name.partition(":")[0] if using[1] == "Socket" else name)
        elif channels := _CHANNELS.match(text):
            self._tell(ANY, "channels", f"{channels[1]} coll, {channels[2]} nvls, {channels[3]} p2p")
        elif nvls := _NVLS.match(text):
            self._tell(ANY, "nvls", "not available" if nvls[1] else "available")
        elif (setting := _SET.match(text)) and setting[1] in _SETTINGS:
            self._tell(ANY, "environment", f"{setting[1]}={setting[2]}")
        else:
            for what, pattern in _SAID_ONCE:
                if said := pattern.match(text):
                    self._tell(ANY, what, said[1])

    def _choose(self, choice: re.Match[str]) -> None:
        function, size, algorithm, protocol, kernel = choice.groups()
        name = f"kernel {kernel}" if kernel else f"{_of(_ALGORITHMS, algorithm)}/{_of(_PROTOCOLS, protocol)}"
        key = (_OPERATIONS.get(function or "", ANY), name)
        least, most = self._sizes.get(key, (int(size), int(size)))
        if key in self._sizes or len(self._sizes) < _MOST_VALUES:
            self._sizes[key] = (min(least, int(size)), max(most, int(size)))

    def _connect(self, transport: str) -> None:
        if net := _NET.match(transport):
            family, number, proxy, rest = net.groups()
            if len(self._used) < _MOST_VALUES:
                self._used[_family(family), int(number)] = None
            if proxy:
                self._tell(ANY, "pxn", "used")
            transport = transport[: net.end(2)] + rest
        self._tell(ANY, "transport", transport)

    def _name(self, family: str, number: int, name: str) -> None:
        if len(self._names) < _MOST_VALUES:
            self._names.setdefault((_family(family), number), name)

    def _tell(self, operation: str, what: str, value: str) -> None:
        values = self._told.setdefault((operation, what), {})
        if len(values) < _MOST_VALUES:
            values.setdefault(value)


def _family(name: str) -> str:
    """Plugins log under the name of what they replace: channels via 'NET/IBext_v8/0', devices as 'NET/IB : Using'."""
    return "IB" if name.startswith("IB") else name


def _of(names: tuple[str, ...], told: str) -> str:
    """'1' -> 'RING', 'Ring' -> 'RING'."""
    return names[int(told)] if told.isdecimal() and int(told) < len(names) else told.upper()
