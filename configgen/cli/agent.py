"""`wirelore agent`: stays on a node and says what its wires are: labels, metrics, a survey on disk."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import click

from configgen.cli.options import require_folder
from probe.errors import NoGpuError, UsageError, one_line
from probe.units import parse_seconds

_LEAST_INTERVAL_S = 1.0


@click.command("agent")
@click.option("--interval", metavar="TIME", default="60s", show_default=True, help="Look at the machine this often.")
# A Service named wirelore-agent gives every pod beside it WIRELORE_AGENT_PORT=tcp://..., which is none of ours.
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=9835,
    show_default=True,
    allow_from_autoenv=False,
    envvar="WIRELORE_AGENT_HTTP_PORT",
    help="Of /metrics and /healthz.",
)
@click.option("--address", metavar="ADDRESS", default="::", help="Listen here. [default: everywhere, IPv6 and IPv4]")
@click.option(
    "--features",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    metavar="DIR",
    help="Write labels for Node Feature Discovery into this folder.",
)
@click.option(
    "--survey",
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    metavar="FILE",
    help="Keep the present survey in this file.",
)
@click.option("--node-labels", is_flag=True, help="Set the labels through the Kubernetes API, on node $NODE_NAME.")
@click.option(
    "--from",
    "source",
    metavar="SRC",
    envvar="WIRELORE_AGENT_FROM",
    help="A file or machine:NAME instead of this machine, to try it out.",
)
@click.option("--once", is_flag=True, help="Look once, publish, print the labels, and end.")
def agent_command(
    interval: str,
    port: int,
    address: str,
    features: Path | None,
    survey: Path | None,
    node_labels: bool,
    source: str | None,
    once: bool,
) -> None:
    """Stay on this node: look at its GPUs and wires, audit them, and publish metrics, labels and a survey.

    It never measures, and runs nothing on any GPU: measured figures are those that `wirelore measure` left here.
    """
    from configgen.run.daemon import Agent, Ended, Outlets
    from configgen.run.features import labels
    from configgen.run.look import look, signs

    interval_s = parse_seconds(interval)
    if interval_s < _LEAST_INTERVAL_S:
        raise UsageError(f"--interval {interval} is less than 1 s", cure="Give 1s or more; 60s is the default.")
    require_folder(survey)
    if features is not None and not features.is_dir():
        cure = "Create it, or mount NFD's /etc/kubernetes/node-feature-discovery/features.d there."
        raise UsageError(f"there is no folder {features}", cure=cure)
    if source == "-":
        raise UsageError("standard input can be read once, and the agent looks again and again", cure="Give a file.")
    outlets = Outlets(features, survey, _node(source) if node_labels else None)
    watched = signs if source is None else lambda: None
    agent = Agent(partial(look, source), outlets, _say, interval_s=interval_s, signs=watched)
    if once:
        seen = agent.once()
        for name, value in labels(seen).items():
            click.echo(f"{name}={value}")
        if seen.failure is not None:
            raise NoGpuError("no GPU can be read", cure="The reason stands above.")
        if any(reason is not None for _, reason in agent.state.refused):
            raise UsageError("not all could be published", cure="The reason stands above.")
        return
    from configgen.run.serve import Server

    server = Server(address, port, lambda: agent.state, _say)
    try:
        server.start()
        _say(f"listens on {address} port {port}, looks every {interval_s:g} s")
        agent.run()
    except Ended as ended:
        _say(f"ends on {ended.signal.name}")


def _node(source: str | None) -> str:
    """Where the labels go. Raises UsageError."""
    from configgen.run.labels import require_labelling

    if source is not None:
        raise UsageError("--node-labels labels this machine, --from describes another", cure="Give one of the two.")
    return require_labelling(os.environ)


def _say(text: str) -> None:
    """A line in the log. Whoever reads it may have gone: that ends no agent."""
    with suppress(OSError):
        click.echo(f"wirelore agent: {one_line(text, 600)}", err=True)
