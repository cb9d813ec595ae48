"""`wirelore init`: before the engine starts, on this node alone or with its group."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from configgen.cli.load import POSITIVE, Load, load_options
from configgen.cli.measure import told
from configgen.cli.measuring import Wanted, ended_by_signals, is_further_process, measure_now
from configgen.cli.options import Sources, note, source_options
from configgen.plan import Limits
from configgen.run.init import Done, Member, Request, Standing, settle_plan, tell_trouble
from configgen.run.meeting import GRACE_S
from probe.bench.rendezvous import GROUP_PORT, Words, find_rendezvous
from probe.errors import MeasureError, UsageError, WireloreError
from probe.measurement import Survey
from probe.units import parse_seconds

_TERMINATION_LOG = "WIRELORE_TERMINATION_LOG"
_DEFAULT_LOG = "/dev/termination-log"
_SLACK_S = 5.0
_SILENCE_S = 10.0
"""After which a node counts as lost while the network is measured: there is a deadline to keep."""
_WORDS = Words(
    nodes="--nodes",
    node="Set RANK (0 to N-1), WORLD_SIZE (N) and MASTER_ADDR",
    address="Set MASTER_ADDR to the address of node 0",
    instead="",
)
"""All members are started with the same words, so what differs is told by the environment."""


@click.command("init")
@click.argument("model")
@click.option(
    "--folder",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, readable=False),
    help="Where the files go: the volume that the engine's container mounts at this very path.",
)
@source_options
@load_options
@click.option("--gpus", type=POSITIVE, help="Use at most this many GPUs.")
@click.option("--replicas", type=POSITIVE, help="Start at most this many servers, all in all.")
@click.option("--gpus-per-node", type=POSITIVE, metavar="N", help="GPUs that each node asked its scheduler for.")
@click.option("--offline", is_flag=True, help="Never ask the Hugging Face hub.")
@click.option("--no-measure", is_flag=True, help="Plan by what the driver tells alone.")
@click.option(
    "--budget", default="20s", show_default=True, metavar="TIME", callback=told(parse_seconds), help="For measuring."
)
@click.option(
    "--deadline",
    default="60s",
    show_default=True,
    metavar="TIME",
    callback=told(parse_seconds),
    help="For all of it; a group that has not met by then goes by the plan that needs no meeting.",
)
@click.option(
    "--group-port", type=click.IntRange(1, 65535), default=GROUP_PORT, show_default=True, help="Where the group meets."
)
@click.option("--nodes", type=click.IntRange(1, 4096), help="Members of the group. [default: what a launcher says]")
@click.option("--strict", is_flag=True, help="End with 1 on findings: no meeting, no measurement, faults.")
@click.pass_context
def init_command(
    ctx: click.Context,
    model: str,
    folder: Path,
    sources: Sources,
    load: Load,
    gpus: int | None,
    replicas: int | None,
    gpus_per_node: int | None,
    offline: bool,
    no_measure: bool,
    budget: float,
    deadline: float,
    group_port: int,
    nodes: int | None,
    strict: bool,
) -> None:
    """Plan MODEL for this node, or with the others for its group, and leave plan, argv and start script in a folder."""
    ends_s = time.monotonic() + deadline
    if is_further_process():
        return
    with ended_by_signals(), _last_words(), _hard_end(deadline):
        standing, request = _standing(nodes, group_port), None
        try:
            limits = Limits(gpus=gpus, replicas=replicas)
            request = _request(model, load, limits, gpus_per_node, None if no_measure else budget, offline)
            member = _member(request, sources, folder, standing)
        except WireloreError as error:
            tell_trouble(standing, request, error, ends_s=ends_s)
            raise
        done = settle_plan(member, ends_s=ends_s)
        _write_last_words(done.summary)
        click.echo(done.summary, nl=False)
        ctx.exit(1 if strict and _findings(done) else 0)


def _standing(nodes: int | None, port: int) -> Standing:
    """Whether there is a group, and which member this is. Raises UsageError for what the launcher leaves open."""
    meeting = find_rendezvous(os.environ, nnodes=nodes, words=_WORDS)
    if meeting.nodes == 1:
        return Standing()
    from configgen.run.group import group_name
    from configgen.run.link import reachable_name

    name = group_name(os.environ, address=meeting.address, port=port, nodes=meeting.nodes)
    address = reachable_name(meeting.address, meeting.origin)
    return Standing(meeting.node, meeting.nodes, address, port, name, meeting.origin)


def _request(
    model: str, load: Load, limits: Limits, promised: int | None, budget_s: float | None, offline: bool
) -> Request:
    from configgen.engines.rules import engine_traits
    from configgen.hub import load_model

    traits = engine_traits(load.engine)
    spec = load_model(model, offline=offline)
    return Request(spec, load.workload, traits, limits, promised, budget_s)


def _member(request: Request, sources: Sources, folder: Path, standing: Standing) -> Member:
    from configgen.run.volume import Volume

    survey = sources.survey()
    if len(survey.topology.nodes) > 1:
        raise UsageError(
            f"--from describes {len(survey.topology.nodes)} nodes, and this is one",
            cure="Describe one node per command; a launcher tells how many there are.",
        )

    def measuring(seconds: float, standing: Standing) -> tuple[Survey | None, str | None]:
        group = standing.nodes > 1
        wanted = Wanted(
            sources,
            budget=seconds,
            timeout=min(_SILENCE_S, seconds),
            nnodes=standing.nodes,
            node_rank=standing.node if group else None,
            master=_endpoint(standing.address) if group else None,
        )
        ran = measure_now(wanted, again=True)
        if isinstance(ran.failure, KeyboardInterrupt):
            raise ran.failure
        return ran.survey, ran.failure.problem if ran.failure is not None else None

    unable = _unable(survey, sources, standing)
    return Member(request, survey, Volume(folder), os.environ, standing=standing, measuring=measuring, unable=unable)


def _endpoint(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _unable(survey: Survey, sources: Sources, standing: Standing) -> str | None:
    """Why this node's wires cannot be measured, seen before anything starts."""
    from probe.bench.preflight import preflight, read_ground

    if sources.given:
        return "--from describes the machine"
    try:
        preflight(
            survey.topology, read_ground(), backend="nccl", lab=False, largest_bytes=1 << 20, nodes=standing.nodes
        )
    except WireloreError as error:
        return error.problem
    return None


def _findings(done: Done) -> bool:
    """What --strict minds: what went wrong on the way to the plan, and what an audit would warn of."""
    from probe.audit import audit
    from probe.finding import Severity

    grave = (Severity.FAILURE, Severity.WARNING)
    found = [finding for finding in audit(done.survey) if finding.severity in grave]
    for finding in found:
        note(f"{finding.code}: {finding.seen}")
    return bool(done.faults or found)


@contextlib.contextmanager
def _hard_end(deadline_s: float) -> Iterator[None]:
    """What each part keeps by itself, kept for all of it too: a driver, a disk or a hub that hangs is an error here."""

    def late(number: int, frame: FrameType | None) -> None:
        raise MeasureError(
            f"not done {deadline_s + GRACE_S:g} s after the start",
            cure="See what hangs, or allow more with --deadline.",
        )

    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, deadline_s + GRACE_S + _SLACK_S, _SLACK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


@contextlib.contextmanager
def _last_words() -> Iterator[None]:
    """What ends the command is the container's termination message too."""
    try:
        yield
    except WireloreError as error:
        _write_last_words(f"wirelore: {error}\n")
        raise


def _write_last_words(text: str) -> None:
    """Where the kubelet put a file for it; written as it stands, for it is a mount and can't be replaced."""
    named = os.environ.get(_TERMINATION_LOG)
    path = Path(named or _DEFAULT_LOG)
    if named or path.exists():
        with contextlib.suppress(OSError):
            path.write_text(text, "utf-8")
