"""`wirelore probe`: the topology alone, without torch."""

from __future__ import annotations

from pathlib import Path

import click

from configgen.cli.options import Sources, output_option, put, source_options


@click.command("probe")
@source_options
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output.")
@output_option
def probe_command(sources: Sources, format: str, output: Path | None) -> None:
    """Read this machine's GPUs, NICs and wires, or a description of a machine."""
    topology = sources.topology()
    if format == "json" or output is not None:
        from probe.store import encode_topology

        put(encode_topology(topology), output)
    else:
        from configgen.report.terminal import print_topology

        print_topology(topology)
