"""`wirelore launch`: this node's part of a plan, checked and started."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click

from configgen.cli.options import note, read_plan
from configgen.plan import Plan
from probe.errors import NoGpuError, one_line
from probe.units import count


@click.command("launch")
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--node",
    type=click.IntRange(min=0, max=10**6),
    metavar="N",
    help="This node's place in the plan. [default: by its name, or the launcher's rank]",
)
@click.option(
    "--folder",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
    help="Where to write the engine's configuration files. [default: beside PLAN]",
)
@click.option("--dry-run", is_flag=True, help="Print what would be executed, and do nothing.")
@click.pass_context
def launch_command(ctx: click.Context, plan_file: Path, node: int | None, folder: Path | None, dry_run: bool) -> None:
    """Check that this node's GPUs are those of PLAN (from `wirelore plan -o plan.json`), and become its engine."""
    from configgen.engines.launcher import launch_of
    from configgen.run.launch import become, missing_program, starts, write_files
    from configgen.run.place import find_place
    from probe.bench.rendezvous import steps_aside

    plan = read_plan(plan_file)
    if steps_aside(os.environ, node_rank=node) is not None:
        note("another process of this node starts its part of the plan: this one has nothing to do")
        return
    environ = dict(os.environ)
    place = find_place(plan, environ, node=node, hostname=socket.gethostname())
    launch = launch_of(plan)
    folder = folder if folder is not None else plan_file.parent
    own = list(starts(launch, plan, place, folder, environ))
    if not own:
        note(f"node {place.node} ({place.origin}) has no process to start in this plan")
        return
    ready = [start for _, start in own]
    missing = next((error for start in ready if (error := missing_program(start, environ)) is not None), None)
    if dry_run:
        for start in ready:
            click.echo(start.line)
        if missing is not None:
            note(str(missing))
        try:
            _check_gpus(plan, place.node)
        except NoGpuError as error:
            note(str(error))
        return
    _check_gpus(plan, place.node)
    if missing is not None:
        raise missing
    for path in write_files(launch, [process for process, _ in own], folder):
        note(f"wrote {one_line(str(path))}")
    if len(ready) == 1:
        become(ready[0], environ)
    from configgen.run.together import run_together

    note(f"starts {count(len(ready), 'server')} of node {place.node} ({place.origin})")
    ending = run_together(ready, environ)
    if ending.server is not None:
        port = ready[ending.server].port
        where = f" (port {port})" if port is not None else ""
        note(f"server {ending.server}{where} ended with {ending.code}: the others are ended too")
    ctx.exit(ending.code)


def _check_gpus(plan: Plan, node: int) -> None:
    from configgen.run.place import require_planned_gpus
    from probe.sources.nvml import read_nvml

    require_planned_gpus(plan, node, read_nvml())
