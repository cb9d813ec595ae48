"""The whole picture of a survey: title, each kind of node once, what joins the nodes, and how to read it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from configgen.plan import Plan
from configgen.report.drawing.network import network_parts
from configgen.report.drawing.node import node_part
from configgen.report.drawing.nouns import NOT_MEASURED, Drawing, Key, Label, Part, breadth, clean, clip, folded
from configgen.report.drawing.speeds import Speeds, speeds
from configgen.report.drawing.view import Role, View, roles
from configgen.report.lines import gpus_line, islands_line, measured_line
from probe.islands import Island, islands
from probe.measurement import Survey
from probe.stability import WIDE
from probe.topology import GpuRef, GpuStatus, Node, PathKind, Topology, require
from probe.units import count, ranges, some

_MARGIN = 2
_LEAST_WIDTH = 64
_MOST_LINES = 3
"""Lines of one text."""
_MOST_KINDS = 4
"""Kinds of node that are drawn in full."""
_FAST = ("nvlink", "xgmi")
_WIRES = {
    "nvlink": "NVLink",
    "xgmi": "xGMI",
    "pcie": "PCIe",
    "nic": "PCIe of a NIC",
    "network": "network",
    "plan": "pipeline: stage to next stage",
}


def draw(survey: Survey, plan: Plan | None = None) -> Drawing:
    """The machine with its measured figures and, where given, the plan for it. Raises ValueError where the plan names
    GPUs that the survey does not have."""
    topology = survey.topology
    found = roles(plan)
    require(
        all(ref.node < len(topology.nodes) and ref.gpu < len(topology.nodes[ref.node].gpus) for ref in found),
        "the plan is for this machine: it has all GPUs that the plan names",
    )
    kinds = _kinds(topology)
    known = speeds(survey, {position: kind[0] for kind in kinds for position in kind})
    by_node = _islands_by_node(islands(topology))
    parts = [_kind_part(topology, kind, known, found, plan is not None, by_node) for kind in kinds[:_MOST_KINDS]]
    parts += network_parts(topology, kinds, known, found)
    whole = Part()
    width = max([_LEAST_WIDTH, *(part.size[0] for part in parts)]) + 2 * _MARGIN
    row = _texts(whole, 1, _head(survey, plan), width)
    for part in parts:
        whole.add(part, (width - part.size[0]) // 2, row + 1)
        row += part.size[1] + 2
    row = _legend(whole, row, width)
    _texts(whole, row + 1, _notes(survey, known, kinds, whole), width)
    width, height = max(width, whole.size[0]), whole.size[1] + 1
    title = clean(f"{gpus_line(topology)}; {islands_line(topology)}")
    return Drawing(
        width,
        height,
        title,
        _description(topology, whole, plan),
        tuple(whole.boxes),
        tuple(whole.wires),
        tuple(whole.texts),
        tuple(whole.shades),
        tuple(whole.keys),
    )


def _kinds(topology: Topology) -> list[list[int]]:
    """Positions of nodes that look alike, together."""
    shapes: dict[int, int] = {}
    alike: dict[object, int] = {}
    kinds: dict[object, list[int]] = {}
    for position, node in enumerate(topology.nodes):
        # Equal nodes mostly share their shape, and comparing it with itself costs nothing.
        shape = shapes.setdefault(id(node.shape), alike.setdefault(node.shape, len(alike)))
        states = tuple((g.status, g.visible, tuple(i.profile for i in g.mig_instances)) for g in node.gpus)
        kinds.setdefault((shape, states), []).append(position)
    return list(kinds.values())


def _islands_by_node(found: Sequence[Island]) -> dict[int, dict[int, int]]:
    """Of each node's GPUs that are in an island, its number within the node."""
    by_node: dict[int, dict[int, int]] = {}
    for island in found:
        if len(island.members) > 1:
            for node in {ref.node for ref in island.members}:
                numbers = by_node.setdefault(node, {})
                number = len(set(numbers.values()))
                numbers |= {ref.gpu: number for ref in island.members if ref.node == node}
    return by_node


def _kind_part(
    topology: Topology,
    kind: Sequence[int],
    known: Speeds,
    found: Mapping[GpuRef, Role],
    has_plan: bool,
    islands: Mapping[int, Mapping[int, int]],
) -> Part:
    position, several = kind[0], len(topology.nodes) > 1
    node = topology.nodes[position]
    same = len({gpu.name for gpu in node.shape.gpus}) <= 1
    prefix = f"node {position} " if several else ""
    view = View(position, node, known, found, has_plan, islands.get(position, {}), same, prefix)
    inner, part = node_part(view), Part()
    width = max(inner.size[0], _LEAST_WIDTH)
    row = _texts(part, 0, [(_node_title(kind, node), "name")], width, margin=0) if several else 0
    part.add(inner, dy=row)
    return part


def _node_title(kind: Sequence[int], node: Node) -> str:
    name = f"node {kind[0]}" + (f" ({clip(node.hostname, 40)})" if node.hostname else "")
    model = gpus_line(Topology((node,)))
    if len(kind) == 1:
        return f"{name}: {model}"
    return f"x {len(kind):,}: nodes {ranges(list(kind))} are alike, {name} is drawn: {model}"


def _head(survey: Survey, plan: Plan | None) -> Iterator[tuple[str, str]]:
    nodes = survey.topology.nodes
    name = f"{clip(nodes[0].hostname, 40)}: " if len(nodes) == 1 and nodes[0].hostname else ""
    yield name + gpus_line(survey.topology), "title"
    told = measured_line(survey) or "not measured"
    yield f"{islands_line(survey.topology)}; {told}", "loud" if survey.lab is not None else "dim"
    if plan is not None:
        yield f"Plan for {clip(plan.model.name, 60)}: {plan.parallelism.label}", "plan"


def _texts(
    part: Part,
    row: int,
    texts: Iterator[tuple[str, str]] | Sequence[tuple[str, str]],
    width: int,
    *,
    margin: int = _MARGIN,
) -> int:
    """Each text over as many lines as it needs; the row after them."""
    for text, role in texts:
        for line in islice(folded(text, width - 2 * margin, role), _MOST_LINES):
            part.texts.append(Label(margin, row, line, role))
            row += 1
    return row


def _legend(part: Part, row: int, width: int) -> int:
    """A sample of each kind of wire that is drawn."""
    x = _MARGIN
    samples = [(role, False, False, text) for role, text in _WIRES.items() if any(w.role == role for w in part.wires)]
    late = [wire for wire in part.wires if wire.slow and wire.role != "pcie"]
    if late:
        samples.append(
            (
                late[0].role,
                True,
                all(wire.dots for wire in late),
                f"! more than {WIDE:.0%} slower than equal wires, or fewer links",
            )
        )
    if any(wire.slow and wire.role == "pcie" for wire in part.wires):
        samples.append(("pcie", True, False, "fewer PCIe lanes than the port has"))
    for role, slow, dot, text in samples:
        if x > _MARGIN and x + 4 + breadth(text) > width - _MARGIN:
            x, row = _MARGIN, row + 1
        part.keys.append(Key(x, row, role, slow, dot))
        part.texts.append(Label(x + 4, row, text, "dim"))
        x += 7 + int(breadth(text) + 0.99)
    return row + 1


def _notes(survey: Survey, known: Speeds, kinds: Sequence[Sequence[int]], part: Part) -> Iterator[tuple[str, str]]:
    topology = survey.topology
    if known.is_empty:
        yield "No wire was measured: `wirelore measure` tells what each carries.", "dim"
    else:
        host = "; above a GPU: from the host's memory" if known.hosts else ""
        yield f"GB/s: from GPU to GPU in the slower direction, at large messages{host}.", "dim"
        if any(wire.role in _FAST and NOT_MEASURED in wire.about for wire in part.wires):
            yield "Fast wires without a figure were not measured.", "dim"
        if any(len(kind) > 1 for kind in kinds):
            yield "Of nodes that are alike each figure is the slowest of theirs.", "dim"
    for wrong in [v for v in survey.verifications if not v.passed][:4]:
        yield f"WRONG DATA from {_gpu(wrong.source, topology)} to {_gpu(wrong.target, topology)}", "loud"
    for kind in kinds[:_MOST_KINDS]:
        yield from _node_notes(topology, kind[0])
    if len(kinds) > _MOST_KINDS:
        yield f"{len(kinds) - _MOST_KINDS} more kinds of node are not drawn in full.", "loud"


def _node_notes(topology: Topology, position: int) -> Iterator[tuple[str, str]]:
    node = topology.nodes[position]
    where = f"node {position}: " if len(topology.nodes) > 1 else ""
    unknown = [f"{a}-{b}" for a, b, path in node.shape.pairs if path.kind is PathKind.UNKNOWN]
    if unknown:
        yield f"{where}{count(len(unknown), 'GPU pair')} of unknown path: {some(unknown)}", "loud"
    if not node.shape.nvlink_visible:
        yield f"{where}this input does not show NVLink: GPUs may have wires that are not drawn.", "loud"
    differing = [f"{a}-{b}" for a, b, path in node.shape.pairs if path.asymmetric]
    if differing:
        yield f"{where}both ends tell a different path: {some(differing)}; the slower one is drawn.", "loud"
    lost = [i for i, gpu in enumerate(node.gpus) if gpu.status is not GpuStatus.OK]
    if lost:
        yield f"{where}{count(len(lost), 'GPU')} cannot be used: {ranges(lost)}", "loud"


def _gpu(ref: GpuRef, topology: Topology) -> str:
    return f"GPU {ref.gpu}" if len(topology.nodes) == 1 else f"node {ref.node} GPU {ref.gpu}"


def _description(topology: Topology, part: Part, plan: Plan | None) -> str:
    """For who hears the picture: what is drawn, and each fast wire with its figure."""
    drawn: dict[str, int] = {}
    for box in part.boxes:
        drawn[box.role] = drawn.get(box.role, 0) + 1
    names = {
        "socket": "CPU",
        "pcie-switch": "PCIe switch",
        "nic": "NIC",
        "gpu": "GPU",
        "gpu-off": "unusable GPU",
        "nvswitch": "NVSwitch",
        "node": "node",
        "network": "network",
    }
    plurals = {"PCIe switch": "PCIe switches", "NVSwitch": "NVSwitches"}
    boxes = ", ".join(count(n, names[role], plurals.get(names[role])) for role, n in drawn.items())
    fast = [f"{' to '.join(w.joins)}, {w.about}" for w in part.wires if w.role in _FAST and w.joins]
    words = [f"Drawn: {boxes}.", f"Wires: {some(fast, 36)}." if fast else "No fast wires."]
    words += [f"Plan: {plan.parallelism.label}."] if plan is not None else []
    return clean(" ".join(words))
