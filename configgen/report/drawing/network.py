"""Several nodes: each network as a spine with what it joins on both sides, equal nodes as one where they are many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from configgen.report.drawing.fabric import port_links
from configgen.report.drawing.nouns import NOT_MEASURED, Box, Label, Part, Wire, clip
from configgen.report.drawing.speeds import Speed, Speeds, span
from configgen.report.drawing.view import Role
from probe.topology import GpuRef, NetworkPath, Node, PathKind, Topology
from probe.units import count, figure, ranges, some

_CELL = 30
_WIRE = 20
_SPINE = 22
_MOST_CELLS = 36
"""Blocks that one network shows; more are put together by kind."""


@dataclass(frozen=True, slots=True)
class _Block:
    """One end of a network: a node, a rack, or many equal nodes."""

    name: str
    lines: tuple[tuple[str, str], ...]
    wire: str
    about: str
    hop: str = ""
    """What of the plan goes on in the next block."""


def network_parts(
    topology: Topology, kinds: Sequence[Sequence[int]], speeds: Speeds, roles: Mapping[GpuRef, Role]
) -> Iterator[Part]:
    """A part for each network path; for nodes that none joins, one without a spine. `kinds` are equal nodes."""
    joined = {node for path in topology.network for node in path.nodes}
    across = _across(topology, speeds)
    for number, path in enumerate(topology.network):
        inner = [p for p in topology.network if p.kind is PathKind.MNNVL] if path.kind is PathKind.NET else []
        racks = {node: p for p in inner for node in p.nodes if set(p.nodes) <= set(path.nodes)}
        yield _spine(path, number, _blocks(topology, path, racks, kinds, roles), across.get(path.kind, []))
    alone = tuple(n for n in range(len(topology.nodes)) if n not in joined)
    if len(topology.nodes) > 1 and alone:
        yield _grid(list(_grouped(topology, alone, kinds, roles, "")), "no network is told between these nodes")


def _across(topology: Topology, speeds: Speeds) -> dict[PathKind, list[Speed]]:
    """Pairs over two nodes, by the path between them."""
    found: dict[PathKind, list[Speed]] = {}
    for (a, b), speed in speeds.pairs.items():
        if a.node != b.node:
            found.setdefault(topology.path(a, b).kind, []).append(speed)
    return found


def _blocks(
    topology: Topology,
    path: NetworkPath,
    racks: Mapping[int, NetworkPath],
    kinds: Sequence[Sequence[int]],
    roles: Mapping[GpuRef, Role],
) -> list[_Block]:
    blocks = []
    for rack in dict.fromkeys(racks[node] for node in path.nodes if node in racks):
        name = f"rack of {count(len(rack.nodes), 'node')}"
        where = f"nodes {ranges(sorted(rack.nodes))}"
        wire = _wire(topology.nodes[rack.nodes[0]], path.kind)
        blocks.append(_Block(where, ((name, "name"), (where, "")), f"each {wire}" if wire else "", where))
    single = tuple(node for node in path.nodes if node not in racks)
    return blocks + list(_grouped(topology, single, kinds, roles, path.kind))


def _grouped(
    topology: Topology,
    nodes: Sequence[int],
    kinds: Sequence[Sequence[int]],
    roles: Mapping[GpuRef, Role],
    kind: PathKind | str,
) -> Iterator[_Block]:
    mixed = len({_gpus(topology.nodes[position]) for position in nodes}) > 1
    if len(nodes) <= _MOST_CELLS:
        for position in nodes:
            node = topology.nodes[position]
            name = f"node {position}" + (f" ({node.hostname})" if node.hostname else "")
            lines = [(name, "name")] + ([(_gpus(node), "dim")] if mixed else [])
            told = _planned(position, node, roles)
            lines += [(told, "plan")] if told else []
            wire = _wire(node, kind)
            about = ", ".join(text for text, _ in lines)
            yield _Block(f"node {position}", tuple(lines), wire, about, _hop(topology, position, nodes, roles))
        return
    wanted = set(nodes)
    for positions in kinds:
        among = [position for position in positions if position in wanted]
        if among:
            node = topology.nodes[among[0]]
            where = f"nodes {ranges(among)}"
            name = f"{len(among):,} nodes like node {among[0]}"
            wire = _wire(node, kind)
            yield _Block(where, ((name, "name"), (_gpus(node), "dim")), f"each {wire}" if wire else "", where)


def _gpus(node: Node) -> str:
    usable = sum(gpu.is_usable for gpu in node.gpus)
    text = count(len(node.gpus), "GPU")
    return text if usable == len(node.gpus) else f"{text}, {len(node.gpus) - usable} unusable"


def _wire(node: Node, kind: PathKind | str) -> str:
    """What a node brings to a network: '4 x NV18', '8 x 400 Gb/s'."""
    if kind is PathKind.MNNVL:
        gpus = range(len(node.gpus))
        links = Counter(port_links(node.shape, gpu, gpus) for gpu in gpus)
        return ", ".join(f"{n} x NV{each or 'Link'}" for each, n in links.items())
    speeds: dict[float | None, int] = {}
    for nic in node.shape.nics:
        speeds[nic.speed_gbps] = speeds.get(nic.speed_gbps, 0) + 1
    known = [f"{n} x {figure(speed)} Gb/s" for speed, n in speeds.items() if speed is not None]
    return known[0] if len(known) == 1 else count(len(node.shape.nics), "NIC") if node.shape.nics else ""


def _planned(position: int, node: Node, roles: Mapping[GpuRef, Role]) -> str:
    """'DP 0 PP 1', or the first of several groups."""
    told = [roles.get(GpuRef(position, gpu)) for gpu in range(len(node.gpus))]
    groups = dict.fromkeys(role.group or "in plan" for role in told if role is not None)
    return some(list(groups), 2) if groups else "not in plan" if roles else ""


def _hop(topology: Topology, position: int, nodes: Sequence[int], roles: Mapping[GpuRef, Role]) -> str:
    """'replica 0: stage 0 to stage 1' where the node that stands next has the stage after one of this node's."""

    def stages(node: int) -> set[tuple[int, int]]:
        refs = (GpuRef(node, gpu) for gpu in range(len(topology.nodes[node].gpus)))
        return {(role.replica, role.stage) for ref in refs if (role := roles.get(ref)) is not None}

    after = list(nodes[nodes.index(position) + 1 :][:1])
    mine, theirs = stages(position), {stage for node in after for stage in stages(node)}
    hops = sorted((r, s) for r, s in mine if (r, s + 1) in theirs and (r, s + 1) not in mine)
    return f"replica {hops[0][0]}: stage {hops[0][1]} to stage {hops[0][1] + 1}" if hops else ""


def _spine(path: NetworkPath, number: int, blocks: list[_Block], measured: list[Speed]) -> Part:
    """Blocks in two columns, and the network between them; each has one wire to it."""
    part, name, speed = Part(), f"network {number}", span(measured)
    told = f"GPU to GPU {speed} GB/s" if speed is not None else NOT_MEASURED
    rows = max((len(block.lines) for block in blocks), default=1) + 2
    half = -(-len(blocks) // 2)
    for i, block in enumerate(blocks):
        right, row = i >= half, i % half * rows
        x = _CELL + 2 * _WIRE + _SPINE if right else 0
        part.boxes.append(_box(block, x, row, rows))
        if block.hop and i + 1 < len(blocks) and i + 1 != half:
            middle = x + _CELL // 2
            joins = (block.name, blocks[i + 1].name)
            part.wires.append(Wire(((middle, row + rows - 1), (middle, row + rows)), "plan", joins, block.hop))
        ends = (_CELL + _WIRE + _SPINE - 1, x) if right else (_CELL - 1, _CELL + _WIRE)
        line = row + rows // 2
        role = "nvlink" if path.kind is PathKind.MNNVL else "network"
        about = f"{block.wire}, {told}" if block.wire else told
        part.wires.append(Wire(((ends[0], line), (ends[1], line)), role, (block.name, name), about))
        if block.wire:
            part.texts.append(Label(sum(ends) / 2 + 0.5, line - 1, clip(block.wire, _WIRE - 1), "dim", "middle"))
    is_mnnvl = path.kind is PathKind.MNNVL
    lines = [("NVLink switches" if is_mnnvl else "Network", "name"), (path.kind.value, "dim")]
    if speed is not None:
        lines += [("GPU to GPU", ""), (f"{speed} GB/s", "")]
    height = max(half * rows, len(lines) + 2)
    role = "nvswitch" if is_mnnvl else "network"
    about = f"{lines[0][0]} of nodes {ranges(sorted(path.nodes))}"
    part.boxes.append(Box(_CELL + _WIRE, 0, _SPINE, height, role, tuple(lines), about))
    return part


def _grid(blocks: list[_Block], told: str) -> Part:
    part = Part()
    rows = max(len(block.lines) for block in blocks) + 2
    part.texts.append(Label(0, 0, told, "dim"))
    for i, block in enumerate(blocks):
        part.boxes.append(_box(block, i % 3 * (_CELL + 4), 1 + i // 3 * rows, rows))
    return part


def _box(block: _Block, x: int, y: int, rows: int) -> Box:
    lines = tuple((clip(text, _CELL - 1.5, role), role) for text, role in block.lines)
    return Box(x, y, _CELL, rows, "node", lines, block.about)
