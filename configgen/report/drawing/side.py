"""One side of a node: a row of GPUs, and above them their NICs, switches and sockets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from configgen.report.drawing.hosts import Host
from configgen.report.drawing.nouns import NOT_MEASURED, Box, Label, Part, Shade, Wire, breadth, clip
from configgen.report.drawing.speeds import Speed, span
from configgen.report.drawing.view import View, gpu_lines, is_narrow, letter, pcie_lines
from probe.topology import PathKind
from probe.units import figure, ranges

_GAP = 2
"""Cells between columns, for frames and shades."""
_STACK = 4
"""NICs above each other in a column without a GPU; more where a host has more than two such columns."""
_LEAST = 13
"""Cells of a GPU's box: room for 'PCIe switch' above it, and for a plan's arrows beside its neighbour's figures."""
_WIDEST = 16
"""Cells of the longest text in a device's box."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Widths and heights, in cells, that all columns of a node share."""

    gpu: int
    nic: int
    nic_rows: int
    gpu_rows: int
    label_rows: int
    """Rows for what is known of PCIe ports."""

    @property
    def pitch(self) -> int:
        return self.gpu + _GAP

    @property
    def trunk(self) -> int:
        """Where in a column its PCIe wire runs: right of the NICs."""
        return self.gpu - 2 if self.nic or self.label_rows else self.gpu // 2

    @property
    def port(self) -> int:
        """Where in a column fast wires leave the GPU."""
        return self.gpu // 2


def metrics(view: View) -> Metrics:
    shape = view.node.shape
    gpus = [gpu_lines(view, gpu.index) for gpu in shape.gpus]
    nics = [nic_lines(view, nic) for nic in range(len(shape.nics))]
    ports = [pcie_lines(view, gpu.index) for gpu in shape.gpus]
    nic = min(max(_broadest(nics), 8), 12) + 2 if nics else 0
    port = ceil(max((breadth(text) for told in ports for text in told), default=0))
    gpu = max(_LEAST, min(_broadest(gpus), _WIDEST) + 2, nic + 3 if nics else 0, port + 3 if port else 0)
    return Metrics(gpu, nic, _most(nics) + 2, _most(gpus) + 2, _most(ports))


def _broadest(told: Sequence[Sequence[tuple[str, str]]]) -> int:
    return ceil(max((breadth(text, role) for lines in told for text, role in lines), default=0))


def _most(told: Sequence[Sequence[object]]) -> int:
    return max(map(len, told), default=0)


def nic_lines(view: View, nic: int) -> list[tuple[str, str]]:
    told = view.node.shape.nics[nic]
    lines = [(told.name, "")]
    if told.state is not None and told.state.lower() not in ("active", "up"):
        lines.append((told.state, "loud"))
    elif told.speed_gbps is not None:
        lines.append((f"{figure(told.speed_gbps)} Gb/s", "dim"))
    elif told.link_layer is not None:
        lines.append((told.link_layer, "dim"))
    return lines


@dataclass
class Side:
    """A laid out row. `ports` tells the x of each GPU's middle, `sockets` of each socket's; rows count from above."""

    part: Part = field(default_factory=Part)
    ports: dict[int, int] = field(default_factory=dict)
    sockets: list[tuple[str, int]] = field(default_factory=list)
    gpu_row: int = 0
    """The row of the GPUs' lower borders: the last one."""


@dataclass(frozen=True, slots=True)
class _Column:
    host: Host
    gpu: int | None
    nics: tuple[int, ...]


def columns(hosts: Iterable[Host], islands: Mapping[int, int]) -> Iterator[_Column]:
    """From left to right; GPUs of one host by island, then by index, so that what is bridged stands together."""
    for host in hosts:
        yield from columns(host.hosts, islands)
        gpus = sorted(host.gpus, key=lambda gpu: (islands.get(gpu, len(islands)), gpu))
        many = len(host.nics)
        count = len(gpus) or min(ceil(many / _STACK), max(2, ceil((many / 2) ** 0.5)))
        for i in range(count):
            yield _Column(
                host,
                gpus[i] if gpus else None,
                host.nics[i * len(host.nics) // count : (i + 1) * len(host.nics) // count],
            )


def side(view: View, hosts: Sequence[Host], size: Metrics, *, top: int) -> Side:
    """`top` rows stay free above the sockets."""
    return _Layout(view, size, top, hosts).side


class _Layout:
    def __init__(self, view: View, size: Metrics, top: int, hosts: Sequence[Host]) -> None:
        self.view, self.size, self.x = view, size, 0
        self.side = Side()
        self.part = self.side.part
        depth = max(map(_depth, hosts), default=1)
        self.top = top
        self.stack_row = top + 4 * depth
        found = list(columns(hosts, view.islands))
        # Where no GPU stands below them, NICs may go on beside the GPUs.
        beside = max(size.label_rows, 1) + size.gpu_rows
        stacked = (len(c.nics) * size.nic_rows - (beside if c.gpu is None else 0) for c in found)
        self.gpu_row = self.stack_row + max([0, *stacked]) + max(size.label_rows, 1)
        self.side.gpu_row = self.gpu_row + size.gpu_rows - 1
        for host in hosts:
            self.host(host, 0)
            self.x += 1
        self.shades(found)

    def host(self, host: Host, depth: int) -> tuple[str, int]:
        """Draws a host and what is below it; its name and the middle of its bar."""
        first, row = self.x, self.top + 4 * depth
        below = [self.host(child, depth + 1) for child in host.hosts]
        name = f"{self.view.prefix}{host.name}" + (
            f" of GPU {ranges(sorted(host.all_gpus))}" if host.role != "socket" else ""
        )
        for column in columns([Host(host.name, host.role, host.meets, host.gpus, host.nics)], self.view.islands):
            self.column(column, row + 2, name)
        width = max(self.x - first - _GAP, self.size.gpu)
        self.x = max(self.x, first + width + _GAP)
        texts = _host_texts(self.view, host)
        text = next((text for text in texts if breadth(text) <= width - 1.5), texts[-1])
        self.part.boxes.append(
            Box(first, row, width, 3, host.role, ((clip(text, width - 1.5), ""),), f"{self.view.prefix}{texts[0]}")
        )
        for child, x in below:
            self.part.wires.append(Wire(((x, row + 2), (x, row + 4)), "uplink", (child, name), NOT_MEASURED))
        middle = first + width // 2
        if depth == 0:
            self.side.sockets.append((name, middle))
        return name, middle

    def column(self, column: _Column, row: int, host: str) -> None:
        x, trunk = self.x, self.x + self.size.trunk
        for i, nic in enumerate(column.nics):
            self.nic(nic, x, self.stack_row + i * self.size.nic_rows, ((trunk, row),), host)
        if column.gpu is not None:
            self.gpu(column.gpu, x, (trunk, row), host)
        self.x += self.size.pitch

    def nic(self, nic: int, x: int, y: int, start: tuple[tuple[int, int], ...], host: str) -> None:
        told, size = self.view.node.shape.nics[nic], self.size
        lines = tuple((clip(text, size.nic - 1.5), role) for text, role in nic_lines(self.view, nic))
        about = ", ".join(text for text, _ in nic_lines(self.view, nic))
        self.part.boxes.append(Box(x, y, size.nic, size.nic_rows, "nic", lines, f"{self.view.prefix}NIC {about}"))
        trunk = start[0][0]
        joins = (f"{self.view.prefix}NIC {told.name}", host)
        points = (*start, (trunk, y + 1), (x + size.nic - 1, y + 1))
        words = (*(text for text, _ in nic_lines(self.view, nic)[1:]), NOT_MEASURED)
        self.part.wires.append(Wire(points, "nic", joins, ", ".join(words)))

    def gpu(self, gpu: int, x: int, start: tuple[int, int], host: str) -> None:
        view, size = self.view, self.size
        state = view.node.gpus[gpu]
        told = gpu_lines(view, gpu)
        lines = tuple((clip(text, size.gpu - 1.5, role), role) for text, role in told)
        about = ", ".join((f"{view.prefix}{told[0][0]}", *(text for text, _ in told[1:])))
        about += f": {state.status_reason}" if state.status_reason else ""
        role = "gpu" if state.is_usable else "gpu-off"
        self.part.boxes.append(Box(x, self.gpu_row, size.gpu, size.gpu_rows, role, lines, about))
        self.side.ports[gpu] = x + size.port
        ports, narrow = pcie_lines(view, gpu), is_narrow(view.node.shape.gpus[gpu])
        words = [*ports, *(["fewer lanes than it has"] if narrow else [])]
        words += [NOT_MEASURED] if view.ref(gpu) not in view.speeds.hosts else []
        joins = (view.gpu_name(gpu), host)
        about = "PCIe " + ", ".join(words)
        self.part.wires.append(Wire((start, (start[0], self.gpu_row)), "pcie", joins, about, slow=narrow))
        for i, text in enumerate(ports):
            role = "slow" if narrow and i == 0 else "dim"
            row = self.gpu_row - len(ports) + i
            self.part.texts.append(Label(start[0] - 0.25, row, text, role, "end"))

    def shades(self, found: Sequence[_Column]) -> None:
        """Behind each run of neighbours of one island, and around each run of one stage."""
        gpus = [column.gpu for column in found]
        islands = [None if gpu is None else self.view.islands.get(gpu) for gpu in gpus]
        for island, run in _runs(islands, gpus):
            self.shade(run, "island", island, f"island {letter(island)}", 0.6)
        stages: dict[tuple[int, int], int] = {}
        told = [None if gpu is None else self.view.role(gpu) for gpu in gpus]
        for role in told:
            if role is not None:
                stages.setdefault((role.replica, role.stage), role.replica)
        numbers = [None if role is None else list(stages).index((role.replica, role.stage)) for role in told]
        names = [f"replica {replica}, stage {stage}" for replica, stage in stages]
        for number, run in _runs(numbers, gpus):
            self.shade(run, "stage", number, names[number], 0.1)

    def shade(self, run: list[int], role: str, number: int, about: str, margin: float) -> None:
        first, last = (self.side.ports[gpu] - self.size.port for gpu in (run[0], run[-1]))
        x, y = first - margin, self.gpu_row - margin / 2
        w, h = last - first + self.size.gpu + 2 * margin, self.size.gpu_rows + margin
        self.part.shades.append(Shade(x, y, w, h, role, number, about))


def _runs(numbers: Sequence[int | None], gpus: Sequence[int | None]) -> Iterator[tuple[int, list[int]]]:
    run: list[int] = []
    for i, (number, gpu) in enumerate(zip(numbers, gpus, strict=True)):
        if number is not None and gpu is not None:
            run.append(gpu)
            if i + 1 == len(numbers) or numbers[i + 1] != number:
                yield number, run
                run = []


def _depth(host: Host) -> int:
    return 1 + max(map(_depth, host.hosts), default=0)


def _host_texts(view: View, host: Host) -> list[str]:
    """What to write on a host's bar, the longest first."""
    name = f"CPU, {host.name}" if host.name.startswith("NUMA") else host.name
    found = meeting(view, sorted(host.all_gpus), host.meets)
    figures = [f"{name}: {kinds} {text} GB/s" for kinds, text in found]
    short = [f"{kinds} {text} GB/s" for kinds, text in found]
    return [*figures, *short, name, host.name] if host.role == "socket" else [*figures, *short, name]


def meeting(view: View, gpus: Sequence[int], kinds: Sequence[PathKind]) -> list[tuple[str, str]]:
    """('NODE', '18.2-21'): what was measured between GPUs on paths of these kinds; empty where nothing was."""
    found: dict[str, list[Speed]] = {}
    for i, a in enumerate(gpus):
        for b in gpus[i + 1 :]:
            path = view.node.shape.path(a, b)
            speed = view.speeds.pair(view.ref(a), view.ref(b)) if path.kind in kinds else None
            if speed is not None:
                found.setdefault(path.label, []).append(speed)
    texts = [speed for several in found.values() for speed in several]
    told = span(texts)
    return [("/".join(found), told)] if told else []
