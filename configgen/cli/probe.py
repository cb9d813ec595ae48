"""`wirelore probe`: the topology alone, without torch."""

from __future__ import annotations

from pathlib import Path

import click

from configgen.cli.options import output_option, put, read_topology, source_options


@click.command("probe")
@source_options
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output."
)
@output_option
def probe_command(
    sources: tuple[str, ...], gpu_model: str | None, gpu_memory: str | None, form: str, output: Path | None
) -> None:
    """Read this machine's GPUs, NICs and wires, or a description of a machine."""
    topology = read_topology(sources, gpu_model, gpu_memory)
    if form == "json" or output is not None:
        from probe.store import encode_topology

        put(encode_topology(topology), output)
    elif form == "text":
        from configgen.report.terminal import print_topology

        print_topology(topology)
