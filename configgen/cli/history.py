"""`wirelore history`: what changed from audit to audit, link by link."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from configgen.cli.options import note, output_option, put
from probe.drift import MachineHistory
from probe.errors import UsageError
from probe.topology import GpuRef
from probe.units import count

if TYPE_CHECKING:
    from configgen.audited import Audited

_LINK = re.compile(r"(?:([0-9]{1,5}):)?([0-9]{1,3})-(?:([0-9]{1,5}):)?([0-9]{1,3})", re.ASCII)


@click.command("history")
@click.option(
    "--history",
    "file",
    type=click.Path(path_type=Path, readable=False),
    help="The file of audits, instead of $XDG_STATE_HOME/wirelore/history.sqlite.",
)
@click.option("--since", metavar="DATE", help="Only audits from this date or time on (ISO 8601, UTC).")
@click.option("--link", metavar="A-B", help="Only what joins these two GPUs: 0-1, or 0:3-1:3 with their nodes.")
@click.option("--prune-before", metavar="DATE", help="Drop the audits before this date, and end.")
@click.option("--strict", is_flag=True, help="End with 1 where a link is slower than at first, beyond doubt.")
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output.")
@output_option
@click.pass_context
def history_command(
    ctx: click.Context,
    /,
    file: Path | None,
    since: str | None,
    link: str | None,
    prune_before: str | None,
    strict: bool,
    format: str,
    output: Path | None,
) -> None:
    """Say what changed since the first audit that was kept (`wirelore audit --keep`), link by link."""
    from configgen.history_document import encode_history
    from probe.history import prune, recall_history

    if prune_before is not None:
        note(f"dropped {count(prune(prune_before, file), 'audit')}")
        return
    machines = recall_history(file, since=since)
    if link is not None:
        machines = _of_link(machines, link)
    if not machines:
        raise UsageError(
            "no audit was kept" + (" since then" if since else ""), cure="`wirelore audit --keep` keeps one."
        )
    if format == "json" or output is not None:
        put(encode_history(machines), output)
    else:
        from configgen.report.history import history_lines
        from configgen.report.terminal import print_lines

        print_lines(history_lines(machines))
    if strict and any(machine.slower for machine in machines):
        ctx.exit(1)


def keep_audit(audited: Audited, file: Path | None) -> None:
    """Adds an audit to the history, for `wirelore audit --keep`, and says where. Raises UsageError."""
    from probe.history import keep

    kept = keep(audited.survey, audited.findings, file, audited_at=audited.audited_at)
    old = f"; the oldest {count(kept.dropped, 'audit')} made room" if kept.dropped else ""
    note(f"kept in {kept.file}, {count(kept.figures, 'new figure')}{old}: wirelore history")


def _of_link(machines: Sequence[MachineHistory], text: str) -> tuple[MachineHistory, ...]:
    """Of each machine the series of this pair; where no pair was measured alone, of the groups that hold both."""
    told = _LINK.fullmatch(text)
    if told is None:
        raise UsageError(f"{text[:40]!r} is no link", cure="Write it like 0-1, or 0:3-1:3 with the nodes' numbers.")
    pair = {GpuRef(int(told[1] or 0), int(told[2])), GpuRef(int(told[3] or 0), int(told[4]))}
    found = []
    for one in machines:
        holding = [series for series in one.series if pair <= set(series.link.members)]
        alone = [series for series in holding if len(series.link.members) == 2]
        found.append(replace(one, series=tuple(alone or holding)))
    if not any(one.series for one in found):
        raise UsageError(f"no figure of the link {text} was kept", cure="Without --link all links are listed.")
    return tuple(one for one in found if one.series)
