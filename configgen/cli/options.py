"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from probe.errors import UsageError
from probe.topology import Topology

Command = TypeVar("Command", bound=Callable[..., Any])


def source_options(command: Command) -> Command:
    """--from (several make one cluster), --gpu-model, --gpu-memory."""
    for option in (
        click.option("--gpu-memory", metavar="SIZE[,SIZE...]", help="Memory of the GPUs: 24GiB, or one size per GPU."),
        click.option("--gpu-model", metavar="NAME", help="GPU model where the source names none, e.g. 'NVIDIA L40S'."),
        click.option(
            "--from",
            "sources",
            metavar="SRC",
            multiple=True,
            help="A file, '-' or machine:NAME instead of this machine; several make one cluster.",
        ),
    ):
        command = option(command)
    return command


def output_option(command: Command) -> Command:
    decorate = click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        help="Write JSON here, atomically, instead of standard output.",
    )
    return decorate(command)


def read_topology(sources: tuple[str, ...], gpu_model: str | None, gpu_memory: str | None) -> Topology:
    """The sources as one topology, with what the person told."""
    from probe.merge import merge_topologies
    from probe.sources.registry import read_source
    from probe.sources.told import with_told

    if sources.count("-") > 1:
        raise UsageError("standard input can be read once", cure="Give --from - only once.")
    parts = [read_source(source) for source in sources] or [read_source(None)]
    return with_told(merge_topologies(parts), gpu_model=gpu_model, gpu_memory=gpu_memory)


def put(data: bytes, output: Path | None) -> None:
    """Data to a file, atomically, or to standard output."""
    if output is None:
        click.echo(data, nl=False)
        return
    from probe.store import write_atomically

    write_atomically(output, data)
    click.echo(f"wrote {output}", err=True)
