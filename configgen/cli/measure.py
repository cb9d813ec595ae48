"""`wirelore measure`: the wires, measured with torch.distributed in processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from configgen.cli.measuring import (
    Kept,
    Wanted,
    ended_by_signals,
    is_further_process,
    machine_of,
    meeting_of,
    run,
    tell,
)
from configgen.cli.options import source_options
from probe.errors import MeasureError, UsageError
from probe.measurement import Survey
from probe.topology import Topology
from probe.units import parse_bytes, parse_seconds

Value = TypeVar("Value")

_RAY_START_S = 60.0
"""For an actor, an interpreter and torch on a node that has none of them warm."""


def told(read: Callable[[str], Value]) -> Callable[[click.Context, click.Parameter, str | None], Value | None]:
    def parsed(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Value | None:
        return None if text is None else read(text)

    return parsed


def budget_s(text: str) -> float | None:
    """'20s' -> 20.0, 'none' -> None. Raises UsageError."""
    return None if text == "none" else parse_seconds(text)


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
    callback=told(budget_s),
)
@click.option(
    "--timeout",
    default="30s",
    show_default=True,
    metavar="TIME",
    help="Silence after which a node, a rank or an operation counts as lost.",
    callback=told(parse_seconds),
)
@click.option("--dry-run", is_flag=True, help="Print what would be measured, and how long it would take.")
@click.option("--resume", is_flag=True, help="Go on with the survey in -o.")
@click.option("--fresh", is_flag=True, help="Measure again, though these wires were measured before.")
@click.option("--every-pair", is_flag=True, help="P2P between every two GPUs, not one per kind of path.")
@click.option(
    "--largest",
    metavar="SIZE",
    help="Largest message. [default: 1GiB, with gloo 64MiB]",
    callback=told(parse_bytes),
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
    wanted = Wanted(**options, debug=bool(ctx.find_root().params.get("debug")))
    with ended_by_signals():
        if not is_further_process(wanted.node_rank):
            _measure(wanted)


def _measure(wanted: Wanted) -> None:
    if wanted.ray:
        if wanted.dry_run or wanted.resume:
            raise UsageError("--ray measures anew, without --dry-run and --resume", cure="Leave them out.")
        _on_ray(wanted)
        return
    topology, backend, lab = machine_of(wanted)
    if wanted.dry_run:
        _rehearsed(wanted, topology, backend)
        return
    resumed = _resumed(wanted)
    meeting = meeting_of(wanted, topology)
    asks_more = wanted.fresh or wanted.every_pair or wanted.model or wanted.largest
    known = None if lab or asks_more or resumed or meeting.nodes > 1 else _known(topology)
    if known is not None:
        Kept(wanted.output)(known)
        _show(known, wanted)
        return
    ended = run(wanted, topology, backend, lab, meeting, resumed)
    if ended.survey is not None:
        _show(ended.survey, wanted, is_finished=ended.failure is None, is_written=ended.is_kept)
    if ended.failure is not None:
        raise ended.failure


def _known(topology: Topology) -> Survey | None:
    """What the cache holds of these wires, if all of it was measured."""
    from probe.cache import search

    found = search(topology)
    if found.survey is None or found.survey.is_partial:
        return None
    tell(f"these wires were measured before ({found.file}); --fresh measures them again")
    return found.survey


def _on_ray(wanted: Wanted) -> None:
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
        kept = Kept(wanted.output)
        kept(decode_survey(first.survey, where=f"the survey of {first.address}"))
        assert kept.survey is not None
        _show(kept.survey, wanted)
    bad = next((ending for ending in endings if ending.exit_code), None)
    if bad is not None:
        words = bad.words.strip().rpartition("\n")[2].removeprefix("wirelore: ")
        raise MeasureError(f"Ray's node {bad.address}: {words or 'it ended without a word'}", cure="See above.")


def _arguments(wanted: Wanted) -> list[str]:
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


def _rehearsed(wanted: Wanted, topology: Topology, backend: str) -> None:
    from configgen.report.rehearsal import rehearsal_lines
    from probe.bench.generations import affordable, generations
    from probe.bench.rehearsal import START_S, rehearsed

    plans = generations(topology, backend=backend, every_pair=wanted.every_pair)
    left_s = None if wanted.budget is None else max(0.0, wanted.budget - START_S[backend])
    chosen = affordable(plans, left_s)
    visits = rehearsed(topology, plans, chosen, left_s, backend, wanted.largest)
    for line in rehearsal_lines(topology, [step for plan in plans for step in plan.steps], visits, wanted.budget):
        click.echo(line)


def _resumed(wanted: Wanted) -> Survey | None:
    if not wanted.resume:
        return None
    if wanted.output is None:
        raise UsageError("--resume goes on with a survey, and none is named", cure="Name it with -o FILE.")
    if not wanted.output.exists():
        return None
    from probe.sources.registry import read_file
    from probe.store import decode_survey

    return decode_survey(read_file(str(wanted.output)), where=str(wanted.output))


def _show(survey: Survey, wanted: Wanted, *, is_finished: bool = True, is_written: bool = True) -> None:
    if wanted.output is not None and is_written:
        tell(f"wrote {wanted.output}{'' if is_finished else ', as far as it came: --resume goes on from there'}")
    if wanted.format == "json":
        if wanted.output is None:
            from probe.store import encode_survey

            click.echo(encode_survey(survey), nl=False)
    else:
        from configgen.report.terminal import print_survey

        print_survey(survey)
