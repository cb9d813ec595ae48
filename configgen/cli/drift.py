"""`wirelore drift`: is the plan still for this machine?"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import click

from configgen.cli.options import Sources, read_plan, source_options
from configgen.plan import Plan
from probe.errors import UsageError, WireloreError, one_line
from probe.topology import Topology
from probe.units import count

_SURVEY = "survey.json"


@click.command("drift")
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path, readable=False))
@source_options
@click.option(
    "--node",
    type=click.IntRange(min=0, max=10**6),
    metavar="N",
    help="This node's place in the plan. [default: by its name, or the launcher's rank]",
)
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output.")
@click.pass_context
def drift_command(ctx: click.Context, plan_file: Path, sources: Sources, node: int | None, format: str) -> None:
    """Say whether PLAN was made for the GPUs and wires that are there now; end with 1 where it was not."""
    from configgen.run.drift import differences
    from probe.sources.told import with_assumed_memory

    plan = read_plan(plan_file)
    present = with_assumed_memory(sources.topology())  # as every plan is made
    made_on = _made_on(plan_file)
    found = [
        text
        for planned, position in _pairs(plan, present, node)
        for text in differences(plan, planned, Topology((present.nodes[position],)), made_on=made_on)
    ]
    if format == "json":
        click.echo(json.dumps({"fits": not found, "differences": found}, indent=2))
    else:
        for text in found:
            click.echo(one_line(text, 300))
        if not found:
            click.echo("the plan fits what is there")
    ctx.exit(1 if found else 0)


def _pairs(plan: Plan, present: Topology, node: int | None) -> list[tuple[int, int]]:
    """(node of the plan, node that is there): a described cluster is compared as a whole, a machine with its part."""
    from configgen.run.place import find_place

    planned, there = len(plan.gpu_order), len(present.nodes)
    if there > 1 and there == planned and node is None:
        return [(position, position) for position in range(there)]
    if there > 1:
        raise UsageError(
            f"the plan is for {count(planned, 'node')}, and {there} are described",
            cure="Describe the same nodes, or one of them with --node N.",
        )
    hostname = present.nodes[0].hostname or socket.gethostname()
    return [(find_place(plan, os.environ, node=node, hostname=hostname).node, 0)]


def _made_on(plan_file: Path) -> Topology | None:
    """The topology of the survey beside the plan, where `wirelore init` left one."""
    from probe.sources.registry import read_survey

    path = plan_file.with_name(_SURVEY)
    if not path.is_file():
        return None
    try:
        return read_survey(str(path)).topology
    except WireloreError:
        return None
