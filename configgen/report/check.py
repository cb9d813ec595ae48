"""A checked command as rows of text: its placement, its wires, what it would give, and the best plan beside it."""

from __future__ import annotations

from collections.abc import Iterator

from configgen.checked import Check, Crossing
from configgen.plan import Predictions
from configgen.report.lines import gpus_line, islands_line
from probe.errors import one_line
from probe.topology import GpuRef, Topology
from probe.units import count, figure, gigabytes, ranges, seconds, some

Row = tuple[str, str]
_MOST_CROSSINGS = 12


def head_rows(c: Check, topology: Topology, measured: str | None) -> Iterator[Row]:
    w, p = c.workload, c.parallelism
    assumed = f" (assumed: {', '.join(w.assumed)})" if w.assumed else ""
    model = f" {one_line(c.command.model, 80)}" if c.command.model else ""
    sizes = f" as {p.label}" if p is not None else ""
    yield "command", f"{c.command.engine}{model}{sizes}"
    load = f"{w.input_tokens:,} tokens in, {w.output_tokens:,} out, {w.concurrency:,} at once{assumed}"
    yield "load", f"{w.objective.value}, {load}"
    yield "machine", f"{gpus_line(topology)}; {islands_line(topology)}"
    if measured:
        yield "measured", measured.removeprefix("measured ")
    if p is not None and p.pp > 1:
        yield "layers", ",".join(map(str, c.layers_per_stage)) + " per stage"
    if c.idle_gpus:
        idle = f"{count(c.idle_gpus, 'GPU')} of the machine {'is' if c.idle_gpus == 1 else 'are'} not used by it"
        yield "idle", f"{idle}, nor by the plan that it is compared with (--gpus N allows more)"


def law_rows(c: Check) -> Iterator[Row]:
    yield from (("broken", law) for law in c.laws)
    yield from (("unsure", law) for law in c.unsure)
    yield from (("ignored", text) for text in c.ignored)
    yield from (("note", text) for text in c.notes)


def wire_rows(c: Check, topology: Topology) -> Iterator[Row]:
    """A line for each stage and boundary; replicas that read the same in one."""
    several = len(topology.nodes) > 1
    alike: dict[tuple[object, ...], list[Crossing]] = {}
    for crossing in c.crossings:
        key = (crossing.stage, crossing.to_stage, crossing.paths, crossing.islands, crossing.nodes)
        alike.setdefault(key, []).append(crossing)
    for number, crossings in enumerate(alike.values()):
        if number == _MOST_CROSSINGS:
            yield "", f"and {count(len(alike) - number, 'more group')}: --format json"
            return
        first = crossings[0]
        where = some([_gpus(c, crossing, several) for crossing in crossings], 4)
        yield _name(first), f"{where}: {_paths(first)}{_crosses(first)}"


def forecast_rows(c: Check) -> Iterator[Row]:
    if c.predictions is not None:
        rests = f" [{c.provenance.value}]" if c.provenance is not None else ""
        yield "this command", _told(c.predictions) + rests
    if c.best is not None:
        best = c.best.plan
        yield f"best, {best.parallelism.label}", _told(best.predictions)
        if c.best.because is not None and (c.best.loss or 0) > 0:
            yield "why", c.best.because
    if c.memory:
        fullest = max(c.memory, key=lambda m: m.needed_bytes / max(1, m.usable_bytes))
        yield (
            "memory",
            f"{gigabytes(fullest.needed_bytes)} of {gigabytes(fullest.usable_bytes)} usable on the fullest GPU, "
            f"{gigabytes(fullest.weights_bytes)} of it weights",
        )


def _told(p: Predictions) -> str:
    give = f", give or take {p.uncertainty:.0%}" if p.uncertainty is not None else ""
    holds = f"; memory holds {count(p.max_concurrency, 'sequence')}" if p.max_concurrency is not None else ""
    return (
        f"first token {seconds(p.ttft_s or 0)}, per token {seconds(p.tpot_s or 0)}, "
        f"{figure(p.output_tokens_per_s_per_gpu or 0)} tokens/s per GPU{give}{holds}"
    )


def _name(crossing: Crossing) -> str:
    return f"stage {crossing.stage}" + (f" -> {crossing.to_stage}" if crossing.to_stage is not None else "")


def _gpus(c: Check, crossing: Crossing, several: bool) -> str:
    if crossing.to_stage is None:
        return _refs(crossing.gpus, several)
    half = len(crossing.gpus) // 2
    return f"{_refs(crossing.gpus[:half], several)} -> {_refs(crossing.gpus[half:], several)}"


def _refs(gpus: tuple[GpuRef, ...], several: bool) -> str:
    nodes = dict.fromkeys(ref.node for ref in gpus)
    parts = (ranges([ref.gpu for ref in gpus if ref.node == node]) for node in nodes)
    if several:
        return " ".join(f"{node}:[{part}]" for node, part in zip(nodes, parts, strict=True))
    return f"[{' '.join(parts)}]"


def _paths(crossing: Crossing) -> str:
    return ", ".join(f"{count(n, 'pair')} over {label}" for label, n in crossing.paths)


def _crosses(crossing: Crossing) -> str:
    inside = "inside one island" if crossing.islands == 1 else f"across {crossing.islands} islands"
    return f"; {inside}" + (f", {crossing.nodes} nodes" if crossing.nodes > 1 else "")
