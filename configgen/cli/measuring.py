"""Runs a measurement for the commands that want one: on this machine or in a lab, kept as far as it comes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import click

from configgen.cli.options import Sources, require_folder
from probe.errors import UsageError, WireloreError, one_line
from probe.measurement import Survey
from probe.topology import Topology

_LAB = "--from describes a machine that is not this one, so only CPU ranks can stand in for its GPUs"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options say, by their names."""

    sources: Sources
    backend: str = "auto"
    budget: float | None = 20.0
    timeout: float = 30.0
    dry_run: bool = False
    resume: bool = False
    fresh: bool = False
    every_pair: bool = False
    largest: int | None = None
    model: str | None = None
    offline: bool = False
    nnodes: int | None = None
    node_rank: int | None = None
    master: str | None = None
    port: int | None = None
    interface: str | None = None
    ray: bool = False
    format: str = "text"
    output: Path | None = None
    debug: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """A measurement as it ended: the survey as far as it came, None on every node but the first, and what cut it."""

    survey: Survey | None
    failure: WireloreError | KeyboardInterrupt | None
    nodes: int
    is_kept: bool = False
    """Whether a point was finished, and so is in the file that was named."""


def is_further_process(node_rank: int | None = None) -> bool:
    """Whether a launcher started this one beside the node's first, which does the work; it is said, too."""
    from probe.bench.rendezvous import steps_aside

    aside = steps_aside(os.environ, node_rank=node_rank)
    if aside is not None:
        click.echo(f"wirelore: {aside}", err=True)
    return aside is not None


def measure_now(wanted: Wanted, *, again: bool = False) -> Run:
    """Measures these wires, whatever is known of them. The budget counts from the start of the command, or `again`."""
    topology, backend, lab = machine_of(wanted)
    return run(wanted, topology, backend, lab, meeting_of(wanted, topology), None, again=again)


def machine_of(wanted: Wanted) -> tuple[Topology, str, str | None]:
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


def meeting_of(wanted: Wanted, topology: Topology) -> Any:
    """Which nodes measure together, from the options and from what a launcher says."""
    from probe.bench.rendezvous import find_rendezvous

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
    return meeting


def run(
    wanted: Wanted,
    topology: Topology,
    backend: str,
    lab: str | None,
    meeting: Any,
    resumed: Survey | None,
    *,
    again: bool = False,
) -> Run:
    """Measures, and keeps what was finished; what ends it early is in the Run, not raised."""
    from probe.bench.network import settle
    from probe.bench.preflight import preflight, read_ground
    from probe.bench.schedule import sizes
    from probe.bench.session import Order, began_s, measure

    largest = sizes(backend, wanted.largest)[-1]
    ground, nodes = read_ground(), meeting.nodes
    for notice in preflight(topology, ground, backend=backend, lab=lab is not None, largest_bytes=largest, nodes=nodes):
        tell(notice.message)
    order = Order(
        topology=topology,
        rendezvous=settle(meeting, patience_s=wanted.timeout),
        backend=backend,
        largest_bytes=largest,
        started_s=time.monotonic() if again else began_s(),
        budget_s=wanted.budget,
        timeout_s=wanted.timeout,
        lab=lab,
        every_pair=wanted.every_pair,
        named_interface=meeting.interface,
        gemm_shapes=_shapes(wanted),
        resumed=resumed,
        debug=wanted.debug,
    )
    kept = Kept(wanted.output)
    failure: WireloreError | KeyboardInterrupt | None = None
    with _progress() as show:
        try:
            survey = measure(order, keep=kept, show=show, note=tell)
        except (WireloreError, KeyboardInterrupt) as error:
            survey, failure = kept.survey, error
    if survey is not None:
        if lab is None:
            _remember(survey)
    elif failure is None:
        tell(f"node {order.rendezvous.node} is done; node 0 at {order.rendezvous.address} has the survey")
    return Run(survey, failure, meeting.nodes, is_kept=kept.survey is not None)


def _remember(survey: Survey) -> None:
    from probe.cache import remember

    kept = remember(survey)
    tell(kept.reason or f"kept for later: {kept.file}")


class Kept:
    """The survey as it stands, in a file that is whole after every point."""

    def __init__(self, output: Path | None) -> None:
        require_folder(output)
        self.output = output
        self.survey: Survey | None = None

    def __call__(self, survey: Survey) -> None:
        from probe.store import encode_survey, write_atomically

        if self.output is not None:
            write_atomically(self.output, encode_survey(survey))
        self.survey = survey


def _shapes(wanted: Wanted) -> tuple[tuple[int, int, int], ...]:
    if wanted.model is None:
        return ()
    from configgen.hub import load_model
    from configgen.shapes import gemm_shapes

    return gemm_shapes(load_model(wanted.model, offline=wanted.offline))


def tell(text: str) -> None:
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
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, which batch systems and Kubernetes send, ends a run as Ctrl-C does: kept, and nothing left behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
