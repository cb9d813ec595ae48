"""The front: for each speed that a user may get, the plan and the load at which the machine gives most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from configgen.forecast import TIE, Forecast
from configgen.model import ModelSpec
from configgen.plan import Choice, EngineTraits, Limits, Workload
from configgen.search import search
from probe.errors import NoPlanError
from probe.measurement import Survey

MOST_PER_GPU = 256
"""Sequences of each GPU at most: fuller than any public table of servers."""


def front(
    survey: Survey, model: ModelSpec, workload: Workload, traits: EngineTraits, limits: Limits | None = None
) -> tuple[Choice, ...]:
    """The choices that no other beats in both time per token and tokens/s of the machine, the fastest for users first.

    A told load is kept; else it is doubled from one sequence on. Of choices that follow each other, each gives at least
    5 % more tokens/s. Raises NoPlanError where nothing is legal at any load.
    """
    gpus = (limits or Limits()).gpus or survey.topology.gpu_count
    found: list[tuple[int, Forecast]] = []
    failed: NoPlanError | None = None
    for load in _loads(workload, gpus):
        told = tuple(name for name in workload.assumed if name != "concurrency")
        try:
            field = search(survey, model, replace(workload, concurrency=load, assumed=told), traits, limits or Limits())
        except NoPlanError as error:
            failed = error
            continue
        found += [(load, forecast) for forecast in field.forecasts]
    if not found and failed is not None:
        raise failed
    kept: list[Choice] = []
    for load, f in sorted(found, key=lambda one: (one[1].estimate.tpot_s, -one[1].output_tokens_per_s, one[0])):
        if not kept or f.output_tokens_per_s > (1 + TIE) * kept[-1].output_tokens_per_s:
            kept.append(Choice(load, f.candidate.parallelism, f.output_tokens_per_s, f.predictions))
    return tuple(kept)


def _loads(workload: Workload, gpus: int) -> Iterator[int]:
    if "concurrency" not in workload.assumed:
        yield workload.concurrency
        return
    load = 1
    while load <= MOST_PER_GPU * gpus:
        yield load
        load *= 2
