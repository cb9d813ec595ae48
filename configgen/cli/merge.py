"""`wirelore merge`: the surveys of many nodes as one of the cluster."""

from __future__ import annotations

from pathlib import Path

import click

from configgen.cli.options import note, output_option, put
from probe.errors import UsageError
from probe.units import count


@click.command("merge")
@click.argument("surveys", metavar="SURVEY...", nargs=-1, required=True)
@output_option
def merge_command(surveys: tuple[str, ...], output: Path | None) -> None:
    """Join surveys of many nodes into one of the cluster; equal nodes share one measurement."""
    from probe.fleet import ABOUT_TWINS, merge_files
    from probe.store import encode_survey

    if "-" in surveys:
        raise UsageError("merge reads files, not standard input", cure="Write the survey to a file and name that.")
    cluster = merge_files(surveys)
    put(encode_survey(cluster), output)
    size = count(len(cluster.topology.nodes), "node"), count(cluster.topology.gpu_count, "GPU")
    click.echo(f"{', '.join(size)}, {count(len(cluster.curves), 'curve')}", err=True)
    for notice in cluster.missing:
        if notice.code in ABOUT_TWINS:
            note(notice.message)
