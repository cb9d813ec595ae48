"""Candidates in the order of what the cost model says of them: the worth of a plan, and how sure two can be told apart.

The worth of a plan is one number, less is better, in seconds:

    latency      of one user's token: (TTFT + (output - 1) TPOT) / output
    throughput   of the whole machine's token: 1 / (output tokens/s of all replicas)
    balanced     as throughput, times TPOT / 50 ms where a user gets less than 20 tokens/s, and times the
                 load over twice the sequences that memory holds where more than half of them wait

Two plans share most of what the model may have wrong: GPUs that read 10 % slower make both slower. So the doubt of a
comparison is not that of its sides: it is that of the seconds in which they differ, thing by thing, the things added as
independent errors (root of the sum of squares). Where one spreads experts or copies attention and the other doesn't,
their kernels differ too, and published ratios of the two spread further than any seconds here tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

from configgen.cost import Estimate, Machine, estimate
from configgen.judge import Candidate, Judge
from configgen.model import ModelSpec
from configgen.passes import Stages
from configgen.placement import place, wiring
from configgen.plan import EngineTraits, Objective, Predictions, Workload
from probe.topology import Provenance
from probe.units import seconds

CONVERSATION_S = 0.05
"""20 tokens/s for each user, twice as fast as people read; between MLPerf Inference's limits for Llama-2-70B, 40 ms
interactive (v5.0) and 200 ms on a server."""

TIE = 0.05
"""Plans that are nearer than this are alike, for no repetition of a serving measurement agrees better."""


KERNELS_APART = {"EP": 0.20, "attention-DP": 0.13}
"""What kernels of such plans leave open of the ratio to plain TP on one node at equal GPUs: half-widths in logs, the
mean over models of ln(most / least) / 2 in public serving runs. EP gave 0.56 to 1.04 of TP's tokens/s (Qwen3.5-397B on
B200: 0.31), 0.96 to 1.00 (MiniMax: 0.02), 1.02 to 1.78 (DeepSeek-R1: 0.28); attention-DP 0.82 to 1.00 (Kimi-K2.5: 0.10)
and 0.89 to 1.22 (MiniMax: 0.16), gpt-oss the single figure 1.07."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a candidate should give: its slowest replica's estimate, and all replicas' tokens/s."""

    candidate: Candidate
    estimate: Estimate
    output_tokens_per_s: float
    worth_s: float

    @property
    def predictions(self) -> Predictions:
        return Predictions(
            ttft_s=_rounded(self.estimate.ttft_s),
            tpot_s=_rounded(self.estimate.tpot_s),
            output_tokens_per_s_per_gpu=_rounded(self.output_tokens_per_s / self.candidate.parallelism.gpus),
            uncertainty=_rounded(self.estimate.uncertainty, 2),
            max_concurrency=self.candidate.max_concurrency,
        )

    @property
    def provenance(self) -> Provenance:
        """What most of a token's time rests on."""
        return max((p for p in self.estimate.parts if p.phase == "decode"), key=lambda p: p.seconds).provenance

    @property
    def seconds(self) -> dict[str, tuple[float, float]]:
        """What the worth is spent on: name -> (seconds, relative doubt)."""
        parts = [part for part in self.estimate.parts if part.phase == "decode"]
        scale = self.worth_s / sum(part.seconds for part in parts)
        return {part.name: (part.seconds * scale, part.uncertainty) for part in parts}


def forecast(
    machine: Machine, model: ModelSpec, candidate: Candidate, workload: Workload, traits: EngineTraits
) -> Forecast:
    """Estimates one replica of each kind that the candidate has; requests are whole, so some may get one more.

    Replicas that differ share the load by what each gives at an even share, as a balancer that looks for the shortest
    queue would.
    """
    alike: dict[tuple[object, ...], tuple[Stages, int, int]] = {}
    for kind, slot, room, times in candidate.replicas():
        if times:
            stages = next(iter(place(kind, slot)))
            names = tuple(machine.survey.topology.gpu(stage[0]).name for stage in stages)
            key = (wiring(kind, slot), names, room)
            alike[key] = (stages, room, times + (alike[key][2] if key in alike else 0))
    shape, kinds = candidate.parallelism, list(alike.values())

    def served(stages: Stages, room: int, asked: int) -> Estimate:
        return estimate(machine, model, shape, candidate.layers, stages, workload, traits, room, asked=asked)

    even = max(1, round(workload.concurrency / shape.dp))
    weights = [1.0]
    if len(kinds) > 1:
        weights = [served(stages, room, even).output_tokens_per_s_per_gpu for stages, room, _ in kinds]
    found: list[tuple[Estimate, int]] = []
    left, worth = workload.concurrency, sum(w * times for w, (_, _, times) in zip(weights, kinds, strict=True))
    for weight, (stages, room, times) in zip(weights, kinds, strict=True):
        share = round(left * weight * times / worth)
        left, worth = left - share, worth - weight * times
        each, more = divmod(share, times)
        shares = ((each + 1, more), (each, times - more))
        found += [(served(stages, room, asked), count) for asked, count in shares if asked and count]
    slowest = max((e for e, _ in found), key=lambda e: e.tpot_s)
    total = sum(e.output_tokens_per_s_per_gpu * shape.gpus_per_replica * count for e, count in found)
    return Forecast(candidate, slowest, total, _worth(slowest, total, candidate.max_concurrency, workload))


def _worth(estimated: Estimate, tokens_per_s: float, held: int, workload: Workload) -> float:
    output = workload.output_tokens
    if workload.objective is Objective.LATENCY:
        return (estimated.ttft_s + (output - 1) * estimated.tpot_s) / output
    if workload.objective is Objective.THROUGHPUT:
        return 1 / tokens_per_s
    crowded = workload.concurrency / max(1, 2 * held)
    return max(1.0, estimated.tpot_s / CONVERSATION_S) * max(1.0, crowded) / tokens_per_s


def margin(loser: Forecast, chosen: Forecast) -> float:
    """How much worse: 0.2 where the loser takes 25 % more seconds, so gives 20 % less."""
    return 1 - chosen.worth_s / loser.worth_s


def doubt(a: Forecast, b: Forecast) -> float:
    """How far their margin may be off, relative as the margin; never less than plans that are alike may be apart."""
    return max(TIE, sqrt(sum(x * x for _, x in _apart(a, b))) / max(a.worth_s, b.worth_s))


def largest_doubt(a: Forecast, b: Forecast) -> tuple[str, Provenance]:
    """The thing that makes their margin doubtful, and what its figure rests on."""
    name, _ = max(_apart(a, b), key=lambda one: abs(one[1]))
    parts = {p.name: p for f in (b, a) for p in f.estimate.parts if p.phase == "decode"}
    return name, parts[name].provenance if name in parts else Provenance.CATALOG


def _apart(a: Forecast, b: Forecast) -> Iterator[tuple[str, float]]:
    """How far the seconds may err by which a spends more than b, thing by thing, and how far their kernels may."""
    ours, theirs = a.seconds, b.seconds
    for name in sorted({*ours, *theirs}):
        one, two = ours.get(name, (0.0, 0.0)), theirs.get(name, (0.0, 0.0))
        more = one[0] - two[0]
        yield name, more * (one[1] if more > 0 else two[1])
    p, q = a.candidate.parallelism, b.candidate.parallelism
    for name, differs in (
        ("EP", (p.ep > 1) != (q.ep > 1)),
        ("attention-DP", (p.attention_dp > 1) != (q.attention_dp > 1)),
    ):
        if differs:
            yield name, KERNELS_APART[name] * min(a.worth_s, b.worth_s)


def ranked(forecasts: Sequence[Forecast], judge: Judge) -> tuple[Forecast, ...]:
    """The best first; but of those that are alike the simplest: fewest stages, smallest groups, the judge's rules."""
    by_worth = sorted(forecasts, key=lambda f: (f.worth_s, judge.rank(f.candidate)))
    alike = [f for f in by_worth if margin(f, by_worth[0]) <= TIE]
    first = min(alike, key=lambda f: _simplicity(f, judge))
    return (first, *(f for f in by_worth if f is not first))


def _simplicity(f: Forecast, judge: Judge) -> tuple[object, ...]:
    p = f.candidate.parallelism
    partly = 1 < p.attention_dp < p.tp
    return (p.pp, p.tp, partly, p.attention_dp, p.ep, judge.rank(f.candidate))


def over_limits(f: Forecast, workload: Workload) -> str | None:
    """The limit that it breaks, in words."""
    for name, told, limit in (
        ("TTFT", f.estimate.ttft_s, workload.max_ttft_s),
        ("TPOT", f.estimate.tpot_s, workload.max_tpot_s),
    ):
        if limit is not None and told > limit:
            return f"{f.candidate.parallelism.label}: {name} of {seconds(told)} is above --max-{name.lower()} {limit:g}"
    return None


def _rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")
