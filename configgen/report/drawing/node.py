"""One node: sockets, switches, NICs and GPUs in one row or two, and the fast fabric below or between them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from configgen.report.drawing.band import band
from configgen.report.drawing.fabric import Fabric, fabric
from configgen.report.drawing.hosts import Host, sockets
from configgen.report.drawing.nouns import NOT_MEASURED, Label, Part, Wire
from configgen.report.drawing.side import columns, meeting, metrics, side
from configgen.report.drawing.view import View
from probe.topology import PathKind

_LONGEST_ROW = 12
"""GPUs and columns of NICs that stand in one row; more stand in two, with the fabric between them."""
_MARGIN = 2
_RAIL_ROWS = 2


@dataclass(frozen=True, slots=True)
class _Spot:
    """The middle of a socket, the row in which the way to the next runs, and +1 where the socket is below that row."""

    name: str
    x: int
    rail: int
    down: int


def node_part(view: View) -> Part:
    """The node, from its upper left corner."""
    part, wires, size = Part(), fabric(view.node.shape), metrics(view)
    hosts = sockets(view.node.shape)
    rail = _RAIL_ROWS if len(hosts) > 1 else 0
    upper, *others = (side(view, row, size, top=rail) for row in _rows(view, hosts, wires))
    margin = _MARGIN if others else 0
    ports = [{gpu: x + margin for gpu, x in one.ports.items()} for one in (upper, *others)]
    joined, first = band(view, wires, size, ports[0], upper.gpu_row, ports[1] if others else {})
    part.add(upper.part, margin)
    part.add(joined)
    spots = [_Spot(name, x + margin, rail - 1, 1) for name, x in upper.sockets]
    for lower in others:
        height = lower.gpu_row + 1
        part.add(lower.part.flipped(height), margin, first)
        spots += [_Spot(name, x + margin, first + height - rail, -1) for name, x in lower.sockets]
    if rail:
        _join(view, part, spots)
    return part


def _rows(view: View, hosts: tuple[Host, ...], wires: Fabric) -> list[Sequence[Host]]:
    """Sockets in one row, or in two where one would be too long and no pair's own wire joins the two."""
    widths = [len(list(columns([host], view.islands))) for host in hosts]
    if sum(widths) <= _LONGEST_ROW or len(hosts) < 2:
        return [hosts]
    half = min(range(1, len(hosts)), key=lambda i: abs(sum(widths[:i]) - sum(widths[i:])))
    upper = {gpu for host in hosts[:half] for gpu in host.all_gpus}
    if any((a in upper) != (b in upper) for a, b, _ in wires.direct):
        return [hosts]
    return [hosts[:half], hosts[half:]]


def _join(view: View, part: Part, spots: Sequence[_Spot]) -> None:
    """The way from each socket to the next, around the node where they stand in two rows."""
    found = meeting(view, range(len(view.node.gpus)), (PathKind.SYS,))
    speed = f"SYS {found[0][1]} GB/s" if found else NOT_MEASURED
    text = "between sockets" + (f": {speed}" if found else "")
    for a, b in pairwise(spots):
        around = [] if a.rail == b.rail else [(0, a.rail), (0, b.rail)]
        points = ((a.x, a.rail + a.down), (a.x, a.rail), *around, (b.x, b.rail), (b.x, b.rail + b.down))
        part.wires.append(Wire(points, "uplink", (a.name, b.name), speed))
    part.texts.append(Label(spots[0].x + 1, 0, text, "dim"))
