"""`wirelore probe`: the topology alone, without torch."""

from __future__ import annotations

from pathlib import Path

import click

from configgen.cli.options import Sources, output_option, put, source_options
from probe.errors import UsageError
from probe.measurement import Survey
from probe.topology import Topology


@click.command("probe")
@source_options
@click.option("--format", type=click.Choice(["text", "json", "svg"]), default="text", show_default=True, help="Output.")
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what driver and host told, for `--from` and for bug reports; without what identifies the machine.",
)
@click.option("--no-redact", is_flag=True, help="Keep host name, serials and UUIDs in the record.")
@output_option
def probe_command(sources: Sources, format: str, record: Path | None, no_redact: bool, output: Path | None) -> None:
    """Read this machine's GPUs, NICs and wires, or a description of a machine."""
    if no_redact and record is None:
        raise UsageError("--no-redact is about --record, which is not given", cure="Add --record FILE.")
    if format == "svg" and record is None:
        # A picture shows what is known to have been measured on these wires.
        put(_picture(sources.survey()), output)
        return
    topology = sources.topology() if record is None else _recorded(sources, record, redact=not no_redact)
    if format == "svg":
        put(_picture(Survey(topology)), output)
    elif format == "json" or output is not None:
        from probe.store import encode_topology

        put(encode_topology(topology), output)
    else:
        from configgen.report.terminal import print_topology

        print_topology(topology)


def _picture(survey: Survey) -> bytes:
    from configgen.report.drawing import draw
    from configgen.report.svg import svg

    return svg(draw(survey)).encode()


def _recorded(sources: Sources, file: Path, *, redact: bool) -> Topology:
    """Records this machine, and goes on with what the record replays: what is shown is what is sent."""
    from probe.sources.record import encode_record, record_this_machine, replay

    if sources.given:
        raise UsageError("--record reads this machine, --from another", cure="Give one of the two.")
    record = record_this_machine(redact=redact)
    put(encode_record(record), file)
    return sources.told(replay(record))
