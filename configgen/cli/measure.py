"""`wirelore measure`: the wires, measured with torch.distributed in processes of their own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click

from configgen.cli.options import Sources, source_options
from probe.errors import MeasureError, UsageError, WireloreError, one_line
from probe.measurement import Survey
from probe.topology import Topology
from probe.units import parse_bytes, parse_seconds

Value = TypeVar("Value")

_RAY_START_S = 60.0
"""For an actor, an interpreter and torch on a node that has none of them warm."""
_LAB = "--from describes a machine that is not this one, so only CPU ranks can stand in for its GPUs"


def _told(read: Callable[[str], Value]) -> Callable[[click.Context, click.Parameter, str | None], Value | None]:
    def parsed(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Value | None:
        return None if text is None else read(text)

    return parsed


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the options say, by their names."""

    sources: Sources
    backend: str
    budget: float | None
    timeout: float
    dry_run: bool
    resume: bool
    fresh: bool
    every_pair: bool
    largest: int | None
    model: str | None
    offline: bool
    nnodes: int | None
    node_rank: int | None
    master: str | None
    port: int | None
    interface: str | None
    ray: bool
    format: str
    output: Path | None
    debug: bool


@click.command("measure")
@source_options
@click.option(
    "--backend",
    type=click.Choice(["auto", "nccl", "gloo"]),
    default="auto",
    show_default=True,
    help="NCCL between GPUs; gloo between CPU ranks that stand in for them (a lab).",
)
@click.option(
    "--budget",
    default="20s",
    show_default=True,
    metavar="TIME",
    help="Time for all of it, the most useful points first; 'none' measures everything.",
    callback=_told(lambda text: None if text == "none" else parse_seconds(text)),
)
@click.option(
    "--timeout",
    default="30s",
    show_default=True,
    metavar="TIME",
    help="Silence after which a node, a rank or an operation counts as lost.",
    callback=_told(parse_seconds),
)
@click.option("--dry-run", is_flag=True, help="Print what would be measured, and how long it would take.")
@click.option("--resume", is_flag=True, help="Go on with the survey in -o.")
@click.option("--fresh", is_flag=True, help="Measure again, though these wires were measured before.")
@click.option("--every-pair", is_flag=True, help="P2P between every two GPUs, not one per kind of path.")
@click.option(
    "--largest",
    metavar="SIZE",
    help="Largest message. [default: 1GiB, with gloo 64MiB]",
    callback=_told(parse_bytes),
)
@click.option("--model", metavar="MODEL", help="Measure GEMM at this model's shapes.")
@click.option("--offline", is_flag=True, help="Never ask the Hugging Face hub about --model.")
@click.option(
    "--nnodes", type=click.IntRange(1, 4096), help="Nodes that measure together. [default: what a launcher says, or 1]"
)
@click.option("--node-rank", type=click.IntRange(0, 4095), help="This node's number; node 0 writes the survey.")
@click.option("--master", metavar="HOST[:PORT]", help="Address of node 0, best an IP.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of node 0. [default: 29510, on one node any]")
@click.option("--interface", metavar="NAME", help="Network interface to use. [default: the one on the way to node 0]")
@click.option("--ray", is_flag=True, help="Measure on the nodes of the Ray cluster that runs here.")
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="The survey, whole and valid after every finished point.",
)
@click.pass_context
def measure_command(ctx: click.Context, /, **options: Any) -> None:
    """Measure bandwidth and latency of these wires, and the rates of these GPUs."""
    wanted = _Wanted(**options, debug=bool(ctx.find_root().params.get("debug")))
    with _ended_by_signals():
        _measure(wanted)


def _measure(wanted: _Wanted) -> None:
    from probe.bench.rendezvous import find_rendezvous, steps_aside

    aside = steps_aside(os.environ, node_rank=wanted.node_rank)
    if aside is not None:
        click.echo(f"wirelore: {aside}", err=True)
        return
    if wanted.ray:
        if wanted.dry_run or wanted.resume:
            raise UsageError("--ray measures anew, without --dry-run and --resume", cure="Leave them out.")
        _on_ray(wanted)
        return
    topology, backend, lab = _machine(wanted)
    if wanted.dry_run:
        _rehearsed(wanted, topology, backend)
        return
    resumed = _resumed(wanted)
    meeting = find_rendezvous(
        os.environ,
        nnodes=wanted.nnodes,
        node_rank=wanted.node_rank,
        master=wanted.master,
        port=wanted.port,
        interface=wanted.interface,
    )
    if meeting.nodes > 1 and len(topology.nodes) > 1:
        what = f"{meeting.nodes} nodes measure together, and --from describes {len(topology.nodes)} for this one alone"
        raise UsageError(what, cure="Describe one node per command.")
    asks_more = wanted.fresh or wanted.every_pair or wanted.model or wanted.largest
    known = None if lab or asks_more or resumed or meeting.nodes > 1 else _known(topology)
    if known is not None:
        _Kept(wanted.output)(known)
        _show(known, wanted)
        return
    _run(wanted, topology, backend, lab, meeting, resumed)


def _known(topology: Topology) -> Survey | None:
    """What the cache holds of these wires, if all of it was measured."""
    from probe.cache import search

    found = search(topology)
    if found.survey is None or found.survey.is_partial:
        return None
    _note(f"these wires were measured before ({found.file}); --fresh measures them again")
    return found.survey


def _on_ray(wanted: _Wanted) -> None:
    """The same command on every node of the Ray cluster; what node 0 wrote becomes this one's."""
    from probe.bench.ray_nodes import measure_on_ray
    from probe.store import decode_survey

    program = ["-c", "from configgen.cli import main; main()", "measure", *_arguments(wanted)]
    longest_s = None if wanted.budget is None else wanted.budget + 2 * wanted.timeout + _RAY_START_S
    endings = measure_on_ray(
        program, nodes=wanted.nnodes, port=wanted.port, timeout_s=wanted.timeout, longest_s=longest_s
    )
    first = endings[0]
    if first.survey is not None:
        kept = _Kept(wanted.output)
        kept(decode_survey(first.survey, where=f"the survey of {first.address}"))
        assert kept.survey is not None
        _show(kept.survey, wanted)
    bad = next((ending for ending in endings if ending.exit_code), None)
    if bad is not None:
        words = bad.words.strip().rpartition("\n")[2].removeprefix("wirelore: ")
        raise MeasureError(f"Ray's node {bad.address}: {words or 'it ended without a word'}", cure="See above.")


def _arguments(wanted: _Wanted) -> list[str]:
    """This command's options for the nodes, without those that say where and how its result is shown."""
    words = {
        "--gpu-model": wanted.sources.gpu_model,
        "--gpu-memory": wanted.sources.gpu_memory,
        "--backend": wanted.backend,
        "--budget": "none" if wanted.budget is None else f"{wanted.budget}s",
        "--timeout": f"{wanted.timeout}s",
        "--largest": None if wanted.largest is None else f"{wanted.largest}B",
        "--model": wanted.model,
        "--interface": wanted.interface,
    }
    flags = {"--every-pair": wanted.every_pair, "--fresh": wanted.fresh, "--offline": wanted.offline}
    told = [word for source in wanted.sources.given for word in ("--from", source)]
    told += [word for name, value in words.items() if value is not None for word in (name, value)]
    return [*told, *(name for name, given in flags.items() if given), "--format", "json"]


def _machine(wanted: _Wanted) -> tuple[Topology, str, str | None]:
    """The topology of this node, the backend, and what stands in for the GPUs, if anything does."""
    topology = wanted.sources.topology()
    if not wanted.sources.given and wanted.backend != "gloo":
        return topology, "nccl", None
    if wanted.backend != "gloo":
        raise UsageError(_LAB, cure="Add --backend gloo for lab figures, or measure on the machine itself.")
    described = " + ".join(wanted.sources.given) or "this machine's GPUs"
    here = os.uname().nodename
    lab = f"CPU ranks of {here} ({os.cpu_count()} cores) standing in for {described}"
    nameless = tuple(
        replace(
            node,
            hostname=here if len(topology.nodes) == 1 else node.hostname,
            gpus=tuple(replace(gpu, uuid=None, serial=None) for gpu in node.gpus),
        )
        for node in topology.nodes
    )
    return replace(topology, nodes=nameless), "gloo", one_line(lab, 200)


def _rehearsed(wanted: _Wanted, topology: Topology, backend: str) -> None:
    from configgen.report.rehearsal import rehearsal_lines
    from probe.bench.generations import affordable, generations
    from probe.bench.rehearsal import START_S, rehearsed

    plans = generations(topology, backend=backend, every_pair=wanted.every_pair)
    left_s = None if wanted.budget is None else max(0.0, wanted.budget - START_S[backend])
    chosen = affordable(plans, left_s)
    visits = rehearsed(topology, plans, chosen, left_s, backend, wanted.largest)
    for line in rehearsal_lines(topology, [step for plan in plans for step in plan.steps], visits, wanted.budget):
        click.echo(line)


def _resumed(wanted: _Wanted) -> Survey | None:
    if not wanted.resume:
        return None
    if wanted.output is None:
        raise UsageError("--resume goes on with a survey, and none is named", cure="Name it with -o FILE.")
    if not wanted.output.exists():
        return None
    from probe.sources.registry import read_file
    from probe.store import decode_survey

    return decode_survey(read_file(str(wanted.output)), where=str(wanted.output))


def _run(
    wanted: _Wanted, topology: Topology, backend: str, lab: str | None, meeting: Any, resumed: Survey | None
) -> None:
    from probe.bench.network import settle
    from probe.bench.preflight import preflight, read_ground
    from probe.bench.schedule import sizes
    from probe.bench.session import Order, began_s, measure

    largest = sizes(backend, wanted.largest)[-1]
    ground, nodes = read_ground(), meeting.nodes
    for notice in preflight(topology, ground, backend=backend, lab=lab is not None, largest_bytes=largest, nodes=nodes):
        _note(notice.message)
    order = Order(
        topology=topology,
        rendezvous=settle(meeting, patience_s=wanted.timeout),
        backend=backend,
        largest_bytes=largest,
        started_s=began_s(),
        budget_s=wanted.budget,
        timeout_s=wanted.timeout,
        lab=lab,
        every_pair=wanted.every_pair,
        named_interface=meeting.interface,
        gemm_shapes=_shapes(wanted),
        resumed=resumed,
        debug=wanted.debug,
    )
    kept = _Kept(wanted.output)
    failure: WireloreError | KeyboardInterrupt | None = None
    with _progress() as show:
        try:
            survey = measure(order, keep=kept, show=show, note=_note)
        except (WireloreError, KeyboardInterrupt) as error:
            survey, failure = kept.survey, error
    if survey is not None:
        if lab is None:
            _remember(survey)
        _show(survey, wanted, is_finished=failure is None, is_written=kept.survey is not None)
    elif failure is None:
        _note(f"node {order.rendezvous.node} is done; node 0 at {order.rendezvous.address} has the survey")
    if failure is not None:
        raise failure


def _remember(survey: Survey) -> None:
    from probe.cache import remember

    kept = remember(survey)
    _note(kept.reason or f"kept for later: {kept.file}")


class _Kept:
    """The survey as it stands, in a file that is whole after every point."""

    def __init__(self, output: Path | None) -> None:
        if output is not None and not output.parent.is_dir():
            raise UsageError(
                f"there is no folder {output.parent} for {output.name}", cure="Create it, or name another."
            )
        self.output = output
        self.survey: Survey | None = None

    def __call__(self, survey: Survey) -> None:
        from probe.store import encode_survey, write_atomically

        if self.output is not None:
            write_atomically(self.output, encode_survey(survey))
        self.survey = survey


def _show(survey: Survey, wanted: _Wanted, *, is_finished: bool = True, is_written: bool = True) -> None:
    if wanted.output is not None and is_written:
        _note(f"wrote {wanted.output}{'' if is_finished else ', as far as it came: --resume goes on from there'}")
    if wanted.format == "json":
        if wanted.output is None:
            from probe.store import encode_survey

            click.echo(encode_survey(survey), nl=False)
    else:
        from configgen.report.terminal import print_survey

        print_survey(survey)


def _shapes(wanted: _Wanted) -> tuple[tuple[int, int, int], ...]:
    if wanted.model is None:
        return ()
    from configgen.hub import load_model
    from configgen.shapes import gemm_shapes

    return gemm_shapes(load_model(wanted.model, offline=wanted.offline))


def _note(text: str) -> None:
    click.echo(f"wirelore: {one_line(text, 600)}", err=True)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """One line on standard error that is written over; nothing where no person looks."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    try:
        yield lambda text: click.echo(f"\r\x1b[Kmeasuring {one_line(text, 70)}", err=True, nl=False)
    finally:
        click.echo("\r\x1b[K", err=True, nl=False)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM, which batch systems and Kubernetes send, ends a run as Ctrl-C does: kept, and nothing left behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
