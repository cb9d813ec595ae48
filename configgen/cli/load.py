"""What is asked of a model, as options that several commands share: engine, load, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from math import inf, nan
from typing import Any

import click

from configgen.plan import Objective, Workload

POSITIVE = click.IntRange(min=1, max=10**9)
_DEFAULT = Workload()


@dataclass(frozen=True, slots=True)
class Load:
    """The engine by name, and the workload with the names of what nobody told."""

    engine: str
    workload: Workload


def load_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --engine, --objective, --input-tokens, --output-tokens, --concurrency, --max-ttft and --max-tpot; the
    command gets them as `load`."""

    @click.option("--engine", default="vllm", show_default=True, metavar="NAME[@VERSION]", help="Engine to plan for.")
    @click.option(
        "--objective",
        type=click.Choice([o.value for o in Objective]),
        help=f"What to favour. [default: {_DEFAULT.objective.value}]",
    )
    @click.option("--input-tokens", type=POSITIVE, help=f"Prompt length. [default: {_DEFAULT.input_tokens}]")
    @click.option("--output-tokens", type=POSITIVE, help=f"Answer length. [default: {_DEFAULT.output_tokens}]")
    @click.option(
        "--concurrency", type=POSITIVE, help="Sequences in flight, in all. [default: 16 for latency, else 16 a GPU]"
    )
    @click.option("--max-ttft", type=_seconds, metavar="S", help="Limit on the time to the first token, in seconds.")
    @click.option("--max-tpot", type=_seconds, metavar="S", help="Limit on the time per output token, in seconds.")
    @wraps(command)
    def with_load(*, engine: str, max_ttft: float | None, max_tpot: float | None, **others: Any) -> Any:
        told = {name: others.pop(name) for name in ("objective", "input_tokens", "output_tokens", "concurrency")}
        told["objective"] = Objective(told["objective"]) if told["objective"] else None
        workload = Workload(
            **{name: value for name, value in told.items() if value is not None},
            max_ttft_s=max_ttft,
            max_tpot_s=max_tpot,
            assumed=tuple(name for name, value in told.items() if value is None),
        )
        return command(load=Load(engine, workload), **others)

    return with_load


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not 0 < value < inf:
        raise click.BadParameter(f"{text!r} is no positive number of seconds.")
    return value
