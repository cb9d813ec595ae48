"""`wirelore compare`: whether numbers measured on one machine carry over to another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from configgen.cli.options import Sources, output_option, put
from configgen.comparison import Comparison, Serving, Side
from probe.errors import UsageError


@click.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--model", metavar="MODEL", help="Predict A's best plan for this model on both.")
@click.option("--offline", is_flag=True, help="Never ask the Hugging Face hub about --model.")
@click.option("--strict", is_flag=True, help="End with 1 where A's numbers do not carry over as they are.")
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output.")
@output_option
@click.pass_context
def compare_command(
    ctx: click.Context,
    /,
    a: str,
    b: str,
    model: str | None,
    offline: bool,
    strict: bool,
    format: str,
    output: Path | None,
) -> None:
    """Say whether numbers measured on machine A carry over to machine B, and why not; both as for --from."""
    from configgen.compare import compare

    if a == b == "-":
        raise UsageError("standard input can be read once", cure="Give one of the two machines as a file.")
    # What the cache holds may have been measured on another host of the same kind: that is the very question here.
    sides = (
        Side(a, Sources((a,), None, None).survey(cache=False)),
        Side(b, Sources((b,), None, None).survey(cache=False)),
    )
    compared = compare(*sides, _serving(*sides, model, offline) if model is not None else None)
    if output is not None:
        put(_json(compared), output)
    if format == "json":
        if output is None:
            put(_json(compared), None)
    elif output is None:
        from configgen.report.terminal import print_comparison

        print_comparison(compared)
    if strict and not compared.carries_over:
        ctx.exit(1)


def _serving(a: Side, b: Side, model: str, offline: bool) -> Serving:
    from configgen.carryover import serving
    from configgen.compare import evidence, is_same
    from configgen.engines.rules import engine_traits
    from configgen.hub import load_model
    from configgen.plan import Workload
    from probe.sources.told import with_assumed_memory

    spec = load_model(model, offline=offline)
    ours, theirs = (replace(s, topology=with_assumed_memory(s.topology)) for s in evidence(a.survey, b.survey))
    workload = Workload(assumed=("objective", "input_tokens", "output_tokens", "concurrency"))
    return serving(ours, theirs, spec, workload, engine_traits("vllm"), same=is_same(a, b))


def _json(compared: Comparison) -> bytes:
    from configgen.compare_document import encode_comparison

    return encode_comparison(compared)
