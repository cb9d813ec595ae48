"""Plans and topologies for a terminal. The one door of rich; no text from outside is ever read as markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from configgen.checked import Check
from configgen.comparison import Comparison
from configgen.launch import Launch
from configgen.plan import Alternative, Plan
from configgen.report.commands import command_notes, commands
from configgen.report.lines import gpus_line, island_text, islands_line
from configgen.report.table import Line
from probe.errors import one_line, printable
from probe.islands import Island, islands
from probe.measurement import Survey
from probe.rails import rails
from probe.topology import Node, NodeShape, Notice, Origin, Topology
from probe.units import count, figure, gib, ranges, seconds, spread

_WIDTH_WITHOUT_TTY = 110
_MATRIX_LIMIT = 16
_NODES_DRAWN = 4
_REPLICAS_DRAWN = 8


def print_topology(topology: Topology) -> None:
    """GPUs, the matrix of paths, islands, warnings and origins."""
    with _console() as console:
        _print_topology(console, topology)


def _print_topology(console: Console, topology: Topology) -> None:
    console.print(Text(gpus_line(topology), style="bold"))
    console.print(_rows(_topology_rows(topology)))
    for positions, node in _alike(topology.nodes):
        console.print()
        console.print(Text(_nodes_title(positions, node), style="bold"))
        console.print(Padding(_gpu_table(node), (0, 0, 0, 2)))
        if found := rails(node.shape):
            told = "; ".join(f"{one_line(r.nic, 30)} for {ranges(r.gpus)}" for r in found)
            console.print(Padding(Text(f"rails: {told}"), (1, 0, 0, 2)))
        if 1 < len(node.shape.gpus) <= _MATRIX_LIMIT:
            console.print(Padding(_matrix(node.shape), (1, 0, 0, 2)))
    _print_notices(console, topology.warnings)
    console.print()
    console.print(
        _section(
            "Origins", [(o.fact, f"{o.provenance.value}: {one_line(o.source)}") for o in _once(topology.provenance)]
        )
    )


def print_plan(
    plan: Plan,
    topology: Topology,
    launch: Launch,
    model_warnings: Sequence[Notice] = (),
    *,
    explain: bool = False,
    measured: str | None = None,
) -> None:
    """The plan as a tired operator wants it: what, on which GPUs, why, what lost, what to run.

    `measured` says when and where the wires were measured, None where they were not.
    """
    with _console() as console:
        _print_plan(console, plan, topology, launch, model_warnings, explain, measured)


def _print_plan(
    console: Console,
    plan: Plan,
    topology: Topology,
    launch: Launch,
    model_warnings: Sequence[Notice],
    explain: bool,
    measured: str | None,
) -> None:
    p, w = plan.parallelism, plan.workload
    console.print(Text.assemble((one_line(plan.model.name), "bold"), " on ", (gpus_line(topology), "bold")))
    assumed = f" (assumed: {', '.join(w.assumed)})" if w.assumed else ""
    rows: list[tuple[str, str | Text]] = [
        (
            "plan",
            Text(
                f"{p.label}: {count(p.gpus, 'GPU')} of {topology.gpu_count:,}, confidence {plan.confidence}",
                style="bold green",
            ),
        ),
        (
            "load",
            f"{w.objective.value}, {w.input_tokens:,} tokens in, {w.output_tokens:,} out, "
            f"{w.concurrency:,} at once{assumed}",
        ),
        ("wires", islands_line(topology)),
    ]
    loud = "" if (measured or "").startswith("measured ") else "bold red"
    rows += [("measured", Text((measured or "").removeprefix("measured "), style=loud))] if measured else []
    rows += [("layers", ",".join(map(str, plan.layers_per_stage)) + " per stage")] if p.pp > 1 else []
    rows += [("degraded", Text(text, style="yellow")) for text in plan.degraded]
    console.print(_rows(rows))
    console.print()
    console.print(_picture(plan, topology))
    console.print()
    console.print(_section("Why", [(r.rule, f"{r.text} [{r.provenance.value}]") for r in plan.reasons]))
    if plan.alternatives:
        shown = plan.alternatives if explain else plan.alternatives[:4]
        console.print()
        console.print(_section("Not chosen", [(a.parallelism.label, _verdict(a)) for a in shown]))
        if len(shown) < len(plan.alternatives):
            console.print(Text(f"  and {len(plan.alternatives) - len(shown)} more: --explain", style="dim"))
    if plan.front:
        console.print()
        console.print(Text("Front: from what is best for each user to what is best for all", style="bold"))
        console.print(Padding(_front(plan), (0, 0, 0, 2)))
    _print_notices(console, (*model_warnings, *topology.warnings))
    if explain:
        console.print()
        console.print(
            _section(
                "Origins", [(o.fact, f"{o.provenance.value}: {one_line(o.source)}") for o in _once(plan.provenance)]
            )
        )
    console.print()
    _print_commands(console, launch)


_STYLES = {"title": "bold", "head": "cyan", "good": "bold green", "warn": "yellow", "loud": "bold red", "dim": "dim"}


def print_survey(survey: Survey) -> None:
    """What was measured, and how far it can be trusted."""
    from configgen.report.survey import survey_lines

    print_lines(survey_lines(survey))


def columns() -> int:
    """Characters of a line on standard output."""
    return Console().width if sys.stdout.isatty() else _WIDTH_WITHOUT_TTY


def print_lines(lines: Iterable[Line]) -> None:
    """Each in the colour of its role, never wrapped."""
    with _console() as console:
        for line in lines:
            console.print(Text(printable(line.text), style=_STYLES.get(line.role, "")), soft_wrap=True)


def print_comparison(compared: Comparison) -> None:
    """The verdict, what it rests on, what differs, and what to measure."""
    from configgen.report.comparison import alike_rows, difference_rows, judgement_rows, serving_rows, side_text

    with _console() as console:
        console.print(Text(printable(compared.verdict), style="bold green" if compared.carries_over else "bold"))
        console.print(_rows([("A", side_text(compared.a)), ("B", side_text(compared.b))]))
        if compared.notes:
            console.print(_rows([("note", Text(printable(note), style="yellow")) for note in compared.notes]))
        console.print(Group("", _section("Numbers", judgement_rows(compared))))
        if compared.serving is not None:
            title = f"Serving {one_line(compared.serving.model)}"
            console.print(Group("", _section(title, serving_rows(compared.serving))))
        rows, left = difference_rows(compared)
        if rows:
            table = Table(box=None, pad_edge=False, header_style="cyan", padding=(0, 2, 0, 0))
            for header in ("what", "A", "B", "B/A", "affects"):
                table.add_column(header, overflow="fold", no_wrap=header == "B/A")
            for row in rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            console.print(Group("", Text("Differences", style="bold"), Padding(table, (0, 0, 0, 2))))
        if left:
            console.print(Text(f"  {left}", style="dim"))
        if alike := list(alike_rows(compared)):
            console.print(Group("", _rows(alike)))
        if compared.measure:
            console.print(Group("", _section("What would tell", [("", text) for text in compared.measure])))


def print_check(checked: Check, topology: Topology, launch: Launch | None, measured: str | None) -> None:
    """The verdict, where the command lies and what it crosses, what it gives, and what to run instead."""
    from configgen.report.check import forecast_rows, head_rows, law_rows, wire_rows

    with _console() as console:
        console.print(Text(printable(checked.verdict), style="bold green" if checked.is_fine else "bold red"))
        console.print(_rows(head_rows(checked, topology, measured)))
        for title, rows in (
            ("Laws and notes", law_rows(checked)),
            ("Wires", wire_rows(checked, topology)),
            ("Predicted", forecast_rows(checked)),
        ):
            if told := list(rows):
                console.print(Group("", _section(title, told)))
        if launch is not None and not (checked.is_fine and (checked.best is None or not checked.best.loss)):
            console.print()
            _print_commands(console, launch, "Instead (keep your other flags)")


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table of texts."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    with _console() as console:
        console.print(table)


@contextmanager
def _console() -> Iterator[Console]:
    """A console on standard output; where that is no terminal, lines lose the blanks that pad a table's cells."""
    if sys.stdout.isatty():
        yield Console(highlight=False, markup=False, emoji=False)
        return
    text = StringIO()
    yield Console(file=text, width=_WIDTH_WITHOUT_TTY, highlight=False, markup=False, emoji=False)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in text.getvalue().splitlines()))


def _rows(rows: Iterable[tuple[str, str | Text]]) -> Padding:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(Text(one_line(label, 40)), text if isinstance(text, Text) else Text(printable(text)))
    return Padding(grid, (0, 0, 0, 2))


def _section(title: str, rows: Iterable[tuple[str, str | Text]]) -> Group:
    return Group(Text(title, style="bold"), _rows(rows))


def _topology_rows(topology: Topology) -> list[tuple[str, str | Text]]:
    rows: list[tuple[str, str | Text]] = [("wires", islands_line(topology))]
    found = islands(topology)
    rows += [("island", island_text(i)) for i in found[:8] if len(i.members) > 1]
    if sum(len(i.members) > 1 for i in found) > 8:
        rows.append(("", "and more: --format json"))
    rows += [(p.kind.value, f"joins nodes {ranges(p.nodes)}") for p in topology.network]
    for node in topology.nodes[:1]:
        rows += [("driver", f"{node.driver_version}, CUDA {node.cuda_version}")] if node.driver_version else []
        rows += [("machine", f"virtualization: {node.virtualization}")] if node.virtualization else []
    return rows


def _alike(nodes: Sequence[Node]) -> list[tuple[list[int], Node]]:
    """Nodes that print the same, together."""
    groups: dict[tuple[int, tuple[object, ...]], tuple[list[int], Node]] = {}
    for position, node in enumerate(nodes):
        key = (id(node.shape), tuple((g.status, g.memory_free_bytes, g.mig_instances, g.visible) for g in node.gpus))
        groups.setdefault(key, ([], node))[0].append(position)
    return list(groups.values())[:_NODES_DRAWN]


def _nodes_title(positions: Sequence[int], node: Node) -> str:
    if len(positions) == 1:
        return f"node {positions[0]}" + (f" ({one_line(node.hostname, 60)})" if node.hostname else "")
    return f"nodes {ranges(list(positions))} (alike)"


def _gpu_table(node: Node) -> Table:
    table = Table(box=None, pad_edge=False, header_style="cyan", padding=(0, 2, 0, 0))
    for header in ("GPU", "model", "memory", "PCI", "NUMA", "nearest NICs", "state"):
        table.add_column(header, no_wrap=header != "nearest NICs")
    for gpu, state in zip(node.shape.gpus, node.gpus, strict=True):
        shown = state.status.value if state.visible else "hidden"
        if state.mig_instances:
            shown += f", {count(len(state.mig_instances), 'MIG instance')}"
        if state.status_reason:
            shown += f": {one_line(state.status_reason, 60)}"
        table.add_row(
            str(gpu.index),
            Text(one_line(gpu.name or "unknown", 50)),
            gib(gpu.memory_bytes) if gpu.memory_bytes else "unknown",
            Text(one_line(state.pci_bus_id or "-", 40)),
            "-" if gpu.numa_node is None else str(gpu.numa_node),
            Text(one_line(" ".join(gpu.nearest_nics), 60) or "-"),
            Text(shown),
        )
    return table


def _matrix(shape: NodeShape) -> Table:
    n = len(shape.gpus)
    table = Table(box=None, pad_edge=False, header_style="cyan", padding=(0, 2, 0, 0))
    for header in ("", *(f"GPU{i}" for i in range(n))):
        table.add_column(header, no_wrap=True)
    for a in range(n):
        cells = (Text("X", style="dim") if a == b else _path_cell(shape, a, b) for b in range(n))
        table.add_row(Text(f"GPU{a}", style="cyan"), *cells)
    return table


def _path_cell(shape: NodeShape, a: int, b: int) -> Text:
    path = shape.path(a, b)
    text = path.label + ("!" if path.asymmetric else "")
    return Text(text, style="green" if path.is_fast else "")


def _picture(plan: Plan, topology: Topology) -> Padding:
    """Islands as brackets, in rank order: each island of a node with the GPUs of each stage that lie in it."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for number, replica in enumerate(plan.replicas):
        if number == _REPLICAS_DRAWN:
            grid.add_row("", Text(f"and {count(len(plan.replicas) - number, 'more replica')}", style="dim"))
            break
        stages = []
        for stage in replica.stages:
            nodes = list(dict.fromkeys(ref.node for ref in stage))
            parts = [
                (f"node {node}: " if len(topology.nodes) > 1 else ("GPUs " if len(stage) > 1 else "GPU "))
                + " ".join(str(ref.gpu) for ref in stage if ref.node == node)
                for node in nodes
            ]
            stages.append("[" + "; ".join(parts) + "]")
        inside = f"  inside: {replica.tp_path}" if replica.tp_path else ""
        drawn = stages[:1] + [f" -{hop}-> {stage}" for hop, stage in zip(replica.hops, stages[1:], strict=True)]
        grid.add_row(f"replica {number}", Text("".join(drawn) + inside))
    for island in _drawn_islands(topology):
        grid.add_row("island", Text(island_text(island), style="green"))
    return Padding(grid, (0, 0, 0, 2))


def _front(plan: Plan) -> Table:
    """A row for each choice; tokens/s that each user sees while an answer comes, and that all GPUs give together."""
    table = Table(box=None, pad_edge=False, header_style="cyan", padding=(0, 2, 0, 0))
    table.add_column("plan", no_wrap=True)
    for header in ("at once", "first token", "per token", "tokens/s each", "tokens/s all", "give or take"):
        table.add_column(header, no_wrap=True, justify="right")
    for choice in plan.front:
        told = choice.predictions
        ttft_s, tpot_s = told.ttft_s or 0.0, told.tpot_s or 0.0
        table.add_row(
            Text(choice.parallelism.label),
            f"{choice.concurrency:,}",
            seconds(ttft_s),
            seconds(tpot_s),
            figure(1 / tpot_s),
            figure(choice.output_tokens_per_s),
            spread(told.uncertainty or 0),
        )
    return table


def _drawn_islands(topology: Topology) -> list[Island]:
    fast = [i for i in islands(topology) if len(i.members) > 1]
    return fast if len(fast) <= 4 else fast[:3]


def _verdict(a: Alternative) -> str:
    """Why an alternative was not chosen; the law's own label is left out, since it stands beside it."""
    return f"forbidden: {a.law.removeprefix(f'{a.parallelism.label}: ')}" if a.law else (a.lost_by or "")


def _once(origins: Sequence[Origin]) -> list[Origin]:
    """Origins without their node, each once."""
    return list({(o.fact, o.provenance, o.source): o for o in origins}.values())


def _print_notices(console: Console, notices: Sequence[Notice]) -> None:
    if notices:
        console.print()
        shown = [(n.code, Text(one_line(n.message), style="yellow")) for n in notices[:12]]
        console.print(_section("Warnings", shown))


def _print_commands(console: Console, launch: Launch, title: str = "Run") -> None:
    """Whole commands, never wrapped, so that they can be copied; what is said of them may be."""
    console.print(Text(title, style="bold"))
    for command in commands(launch, _NODES_DRAWN):
        console.print(Text(printable(f"  {command}")), soft_wrap=True)
    for note in command_notes(launch, _NODES_DRAWN):
        console.print(Text(printable(f"  {note}"), style="dim"))
