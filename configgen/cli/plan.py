"""`wirelore plan`: a model and a machine in, a plan out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from configgen.cli.load import POSITIVE, Load, load_options
from configgen.cli.options import Sources, flags_line, note, output_option, put, source_options
from configgen.decide import plan
from configgen.engines.launcher import launch_of
from configgen.engines.rules import engine_traits
from configgen.hub import load_model
from configgen.plan import Limits, Plan
from configgen.report.lines import measured_line
from probe.sources.told import with_assumed_memory


@click.command("plan")
@click.argument("model")
@source_options
@load_options
@click.option("--gpus", type=POSITIVE, help="Use at most this many GPUs.")
@click.option("--nodes", type=POSITIVE, help="Use only the first nodes.")
@click.option("--offline", is_flag=True, help="Never ask the Hugging Face hub.")
@click.option("--no-cache", is_flag=True, help="Plan as if these wires had not been measured before.")
@click.option("--explain", is_flag=True, help="List every alternative and where each fact came from.")
@click.option("--pareto", is_flag=True, help="Show what other loads and plans give: tokens/s of a user and of all.")
@click.option(
    "--format", type=click.Choice(["text", "json", "flags"]), default="text", show_default=True, help="Output."
)
@output_option
def plan_command(
    model: str,
    sources: Sources,
    load: Load,
    gpus: int | None,
    nodes: int | None,
    offline: bool,
    no_cache: bool,
    explain: bool,
    pareto: bool,
    format: str,
    output: Path | None,
) -> None:
    """Choose how to cut MODEL (a Hugging Face name, a folder with config.json, a short name) across these GPUs."""
    traits = engine_traits(load.engine)
    spec = load_model(model, offline=offline)
    survey = sources.survey(cache=not no_cache)
    topology = with_assumed_memory(survey.topology)
    survey, limits = replace(survey, topology=topology), Limits(gpus=gpus, nodes=nodes)
    decided = plan(survey, spec, load.workload, traits, limits, what_if=format != "flags" or output is not None)
    if pareto:
        from configgen.pareto import front

        decided = replace(decided, front=front(survey, spec, load.workload, traits, limits))
    measured = measured_line(survey)
    if output is not None:
        put(_json(decided), output)
    if format == "flags":
        click.echo(flags_line(launch_of(decided)))
        for text in (*(w.message for w in topology.warnings if w.code == "memory-assumed"), *decided.degraded):
            note(text)
        if measured is not None:
            note(measured)
    elif format == "json":
        if output is None:
            put(_json(decided), None)
        if survey.lab is not None and measured is not None:
            note(measured)
    elif output is None or explain:
        from configgen.report.terminal import print_plan

        print_plan(decided, topology, launch_of(decided), spec.warnings, explain=explain, measured=measured)


def _json(decided: Plan) -> bytes:
    from configgen.document import encode_plan

    return encode_plan(decided)
