"""Where a node's PCIe wires end: its sockets and switches, as far as the paths tell. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from probe.topology import NodeShape, PathKind

_SWITCHED = (PathKind.PIX, PathKind.PXB)
_LOCAL = (*_SWITCHED, PathKind.PHB, PathKind.NODE)


@dataclass(frozen=True, slots=True)
class Host:
    """A socket or a switch: the GPUs and NICs that hang on itself, and the switches below it."""

    name: str
    role: str
    """'socket' or 'pcie-switch'."""
    meets: tuple[PathKind, ...]
    """Paths between two GPUs below it that turn round here."""
    gpus: tuple[int, ...] = ()
    nics: tuple[int, ...] = ()
    hosts: tuple[Host, ...] = ()

    @property
    def all_gpus(self) -> Iterator[int]:
        for host in self.hosts:
            yield from host.all_gpus
        yield from self.gpus


def sockets(shape: NodeShape) -> tuple[Host, ...]:
    """The sockets of a node, by NUMA node. GPUs and NICs are numbered as the shape numbers them.

    A matrix tells a switch only by who is near whom: devices that PIX joins hang on one switch, those that PXB joins
    on several in a row. Where NVLink hides how two GPUs lie on PCIe, a NIC near both still tells.
    """
    switched = _parts(shape, _SWITCHED)
    numa = _numa(shape)
    inner = {device: part for part in _parts(shape, (PathKind.PIX,)) for device in part}
    by_socket: dict[int, list[Host | int]] = {}
    for part in switched:
        place = next((numa[device] for device in part), 0)
        one = part[0] if len(part) == 1 else _switch(shape, part, inner)
        by_socket.setdefault(place, []).append(one)
    return tuple(
        _host(shape, _named(place, len(by_socket)), "socket", (PathKind.PHB, PathKind.NODE), by_socket[place])
        for place in sorted(by_socket, key=lambda p: (p < 0, abs(p)))
    )


def _named(place: int, places: int) -> str:
    """Negative places are those whose NUMA node nobody told."""
    if place >= 0:
        return f"NUMA {place}"
    return "host" if places == 1 else "NUMA unknown"


def _switch(shape: NodeShape, part: tuple[int, ...], inner: dict[int, tuple[int, ...]]) -> Host:
    groups = list(dict.fromkeys(inner[device] for device in part))
    if len(groups) == 1:
        return _host(shape, "PCIe switch", "pcie-switch", (PathKind.PIX,), list(part))
    below: list[Host | int] = [
        group[0] if len(group) == 1 else _host(shape, "PCIe switch", "pcie-switch", (PathKind.PIX,), list(group))
        for group in groups
    ]
    return _host(shape, "PCIe switches", "pcie-switch", (PathKind.PXB,), below)


def _host(shape: NodeShape, name: str, role: str, meets: tuple[PathKind, ...], below: list[Host | int]) -> Host:
    n = len(shape.gpus)
    devices = [one for one in below if isinstance(one, int)]
    return Host(
        name,
        role,
        meets,
        tuple(d for d in devices if d < n),
        tuple(d - n for d in devices if d >= n),
        tuple(one for one in below if isinstance(one, Host)),
    )


def _near(shape: NodeShape, kinds: tuple[PathKind, ...]) -> Iterator[tuple[int, int]]:
    n = len(shape.gpus)
    yield from ((a, b) for a, b, path in shape.pairs if path.kind in kinds)
    for gpu, row in enumerate(shape.nic_paths):
        yield from ((gpu, n + nic) for nic, path in enumerate(row) if path.kind in kinds)


def _parts(shape: NodeShape, kinds: tuple[PathKind, ...]) -> list[tuple[int, ...]]:
    """Devices that such paths join, alone or through others; NICs are numbered after the GPUs."""
    return _joined(len(shape.gpus) + len(shape.nics), _near(shape, kinds))


def _joined(count: int, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, ...]]:
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    parts: dict[int, list[int]] = {}
    for i in range(count):
        parts.setdefault(root(i), []).append(i)
    return [tuple(part) for part in parts.values()]


def _numa(shape: NodeShape) -> list[int]:
    """Of each device its NUMA node; where none is told that of a local device, and else -1, -2 ...: devices between
    which nothing shows a way over two sockets share one."""
    told = [gpu.numa_node for gpu in shape.gpus] + [nic.numa_node for nic in shape.nics]
    found: dict[int, int] = {}
    strangers: list[list[int]] = []
    for part in _parts(shape, _LOCAL):
        known = next((numa for device in part if (numa := told[device]) is not None), None)
        for device in part:
            if (numa := told[device]) is None:
                numa = known
            if numa is not None:
                found[device] = numa
        left = [device for device in part if device not in found]
        if left:
            same = next((one for one in strangers if not _far(shape, one, left)), None)
            if same is None:
                strangers.append(left)
            else:
                same += left
    for number, devices in enumerate(strangers):
        found |= dict.fromkeys(devices, -1 - number)
    return [found[device] for device in range(len(told))]


def _far(shape: NodeShape, some: list[int], others: list[int]) -> bool:
    n = len(shape.gpus)

    def path(a: int, b: int) -> PathKind | None:
        a, b = min(a, b), max(a, b)
        if b < n:
            return shape.path(a, b).kind
        return shape.nic_paths[a][b - n].kind if a < n and shape.nic_paths else None

    return any(path(a, b) is PathKind.SYS for a in some for b in others)
