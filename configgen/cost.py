"""What a parallelism on given wires should give: TTFT, TPOT and output tokens/s per GPU, each of named parts. Pure.

Derivation. Benchmarks keep C requests per replica going (their concurrency): one ends, the next begins. In the time L
that a request lives, each of the C slots takes in one prompt and gives `output` tokens:

    L = TTFT + (output - 1) TPOT,    output tokens/s = C output / L

Engines batch continuously and mix chunks of prompts into decode steps. Let d be a decode step of all C sequences, and
s one that carries q prompt tokens too. In L there are n = C input / q of these, and `output` - n of the others:

    TPOT = ((n - own) s + (output - n + own) d) / output

A request's first token comes after what is left of the running step (d / 2), its own chunks, and the prompts before it:
those it meets in a steady state (mean value analysis of a closed queue, Reiser and Lavenberg, JACM 27, 1980; half of
that, since prompts are alike) and, in a benchmark of ten requests per slot that starts all slots at once, a tenth of
half of C - 1 prompts. An engine that lets prompts go first (EngineTraits.prompts_first) keeps requests in waves: each
waits for half of the wave's prompts, the wave's decoding is stretched by the other half.

Stages. With p of them, min(p, C) micro-batches circle: a token takes the longer of one way through (stages and
hand-offs) and as many turns of the slowest stage. m chunks of prompts that follow each other leave a bubble of
(p - 1) / (p - 1 + m) (GPipe, arXiv 1811.06965, section 2). The last stage samples, and waits for its host meanwhile.

How far stages stall is the model's greatest doubt. Requests that began together end together, so prompts come in waves
and m counts all that wait; of requests that end at any time, a share f of the micro-batches carries a prompt, and
those behind it wait (Sarathi-Serve, arXiv 2403.02310, section 3.3). A path through p stages that stays with the long
ones, a seconds each, and walks on to the next where it must, has a share p f / (1 + (p - 1) f) of them; so each costs
(p a - d) / (1 + (p - 1) f) more. Published throughputs of pipelines agree with waves: these are taken, and half of
what the other extreme adds is the uncertainty of the 'bubble'. What is asked beyond what memory holds waits its turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from configgen.model import ModelSpec
from configgen.passes import Machine, Replica, Stage, StagePass, slowest, through
from configgen.plan import EngineTraits, Parallelism, Workload
from configgen.roofline import Load, Work
from configgen.wires import Reading
from probe.measurement import Survey
from probe.topology import Provenance, require

__all__ = ("HOST", "Estimate", "HostTimes", "Machine", "Part", "bubble", "estimate")


REQUESTS_PER_SLOT = 10
"""Of a benchmark that starts all slots at once: num_prompts = 10 x concurrency (InferenceMAX, README)."""


@dataclass(frozen=True, slots=True)
class HostTimes:
    """What an engine's host code takes beside its GPUs, in seconds.

    The fitted ones are vLLM's on public runs of nine models on H100 and B200; benchmarks/prediction.py lists the rows,
    the fits of other engines, and those with each system and model left out.
    """

    step_s: float = 0.7e-3
    """Fitted. A decode step: scheduling, preparing inputs, sampling."""
    sequence_s: float = 16e-6
    """Fitted. A sequence of a decode step: its sampling, detokenising and streaming."""
    request_s: float = 60e-3
    """Fitted. A request before and after the GPU's work on its prompt: HTTP, tokenising, the first token's way back."""
    launch_s: float = 5e-6
    """A kernel of a step with prompts, which no graph replays: CUDA's launch on the host (about 5 us). The GPU waits
    where its work takes less."""
    uncertainty: float = 0.5
    """Relative half-width: the fits of single systems and models lie between none and twice of it."""


HOST = HostTimes()


@dataclass(frozen=True, slots=True)
class Part:
    """Seconds that go into one thing: of an output token ('decode'), or of the passes of a prompt ('prefill')."""

    phase: str
    name: str
    seconds: float
    provenance: Provenance
    source: str
    uncertainty: float = 0.0
    size_bytes: float = 0.0
    """Of one message, and what its wires carry; 0 of what is no message."""
    busbw_gbps: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predictions in seconds and output tokens/s per GPU; `uncertainty` is their relative half-width.

    The decode parts add up to TPOT. 'prompts' is what other requests' prompts add to it, 'turns' and 'bubble' what
    stages wait for each other.
    """

    ttft_s: float
    tpot_s: float
    output_tokens_per_s_per_gpu: float
    uncertainty: float
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        require(min(self.ttft_s, self.tpot_s, self.output_tokens_per_s_per_gpu) > 0, "predictions are positive")

    def share(self, name: str, phase: str = "decode") -> float:
        """What part of a phase goes into this, 0 to 1."""
        own = [part for part in self.parts if part.phase == phase]
        return sum(part.seconds for part in own if part.name == name) / sum(part.seconds for part in own)


def estimate(
    survey: Survey | Machine,
    model: ModelSpec,
    shape: Parallelism,
    layers: tuple[int, ...],
    stages: Sequence[Stage],
    workload: Workload,
    traits: EngineTraits,
    room: int | None = None,
    host: HostTimes | None = None,
    *,
    asked: int | None = None,
) -> Estimate:
    """One replica of `shape` on `stages`, beside its dp - 1 others; `room` is the sequences that its memory holds, and
    `asked` those that it is asked for, its even share where nobody says.

    A Machine in place of its survey keeps what was looked up. Raises ValueError where stages and shape disagree.
    """
    require(len(stages) == len(layers) == shape.pp, "every stage has its GPUs and its layers")
    require(all(len(stage) == shape.tp for stage in stages), "every stage has tp GPUs")
    machine = survey if isinstance(survey, Machine) else Machine(survey)
    replica = Replica(machine, model, shape, layers, tuple(stages), traits)
    asked = asked or max(1, ceil(workload.concurrency / shape.dp))
    held = asked if room is None else max(1, min(asked, room))
    return _steady(replica, workload, asked, held, host or HOST)


def bubble(stages: int, micro_batches: float) -> float:
    """The share of its time that a pipeline idles while it fills and drains: 8 stages, 32 micro-batches: 17.9 %."""
    return (stages - 1) / (stages - 1 + micro_batches)


def _steady(replica: Replica, workload: Workload, asked: int, held: int, host: HostTimes) -> Estimate:
    shape, traits, output = replica.shape, replica.traits, workload.output_tokens
    micro = min(shape.pp, held)
    sequences = held / micro / shape.attention_dp
    host_s = host.step_s + host.sequence_s * sequences
    decode = replica.step(_load(workload, sequences, 0))
    d = max(through(decode) + host_s, micro * _turn(decode, host_s))

    tokens, chunks = _chunks(workload, traits, held)
    mixed = replica.step(_load(workload, sequences, tokens))
    launches = host.launch_s * sum(stage.work.kernels for stage in mixed)
    alone = max(through(mixed), launches) + host_s
    turn = alone if shape.pp == 1 else max(_turn(mixed, host_s), alone / shape.pp)
    # Passes that a prompt takes, seconds that each of them costs the replica, and the decode steps that they stand for.
    passes = workload.input_tokens / tokens / min(shape.attention_dp, held)
    together = max(float(chunks), held * workload.input_tokens / traits.max_batched_tokens)
    # Other micro-batches go on decoding while a prompt fills the stages: only what a pass is longer for it is idle.
    longer = max(0.0, turn - _turn(decode, host_s))
    each = turn + longer * (1 / (1 - bubble(shape.pp, together)) - 1)
    carrying = min(1.0, held * passes / (output * micro))
    uneven = max(0.0, max(alone, micro * turn) - d) / (1 + (micro - 1) * carrying) + d / micro
    prompt, covered = passes * each, passes / min(together, shape.pp)

    own = alone + (chunks - 1) * turn
    others = held - 1.0
    if traits.prompts_first:
        passed = min(held, max(1.0, traits.max_batched_tokens / workload.input_tokens))
        others, wait = (held - passed) / 2, max(0.0, (held + passed) / 2 * prompt - own)
        tpot = d + others * prompt / output
    else:
        tpot = (others * prompt + max(0.0, output - others * covered) * d) / output
        tpot = min(tpot, max(d, alone, micro * each))  # every pass brings a token, so no token waits for more than one
        wait = _queue(held, prompt, (output - 1) * tpot) / 2 + others / 2 * prompt / REQUESTS_PER_SLOT
    ttft = host.request_s + d / 2 + own + wait
    rate = held * output / (ttft + (output - 1) * tpot)
    stall = Part(
        "decode",
        "bubble",
        min(others * passes * (each - turn) / output, tpot - d),
        Provenance.CATALOG,
        "stages that fill and drain, and wait for longer micro-batches (GPipe; Sarathi-Serve)",
        max(0.0, uneven - each) / 2 / (each - turn) if each > turn else 0.0,
    )
    turned_away = (asked - held) / held * (ttft + (output - 1) * tpot) / 2
    prefill = tuple(_parts("prefill", mixed, chunks))
    parts = (
        *_parts("decode", decode, 1),
        *_waits(host, host_s, d - through(decode) - host_s, tpot - d - stall.seconds, decode, _uncertainty(prefill)),
        stall,
        *prefill,
        replace(stall, phase="prefill", seconds=passes * (each - turn)),
    )
    parts = tuple(part for part in parts if part.seconds > 0)
    return Estimate(ttft + turned_away, tpot, rate / shape.gpus_per_replica, _uncertainty(parts), parts)


def _turn(passed: Sequence[StagePass], host_s: float) -> float:
    """What a micro-batch occupies the slowest stage for; the last one samples, and waits for its host meanwhile."""
    return max(slowest(passed), passed[-1].seconds + host_s) if len(passed) > 1 else slowest(passed)


def _load(workload: Workload, sequences: float, prompt_tokens: float) -> Load:
    context = workload.input_tokens + workload.output_tokens / 2
    return Load(sequences, prompt_tokens, context, workload.input_tokens / 2)


def _chunks(workload: Workload, traits: EngineTraits, held: int) -> tuple[float, int]:
    """(prompt tokens of a step, steps of a prompt): what decoding leaves of a step's tokens, and more than one prompt
    where so many requests wait that otherwise more steps had to carry one than a request decodes."""
    space = max(traits.max_batched_tokens // 4, traits.max_batched_tokens - held)
    chunks = ceil(workload.input_tokens / space)
    prompts = max(1.0, held * chunks / workload.output_tokens)
    return min(float(space), workload.input_tokens / chunks * prompts), chunks


def _queue(slots: int, service_s: float, elsewhere_s: float) -> float:
    """Seconds that a request waits behind others: one station, `slots` customers who then spend `elsewhere_s`."""
    waiting = 0.0
    for customers in range(1, slots):
        response = service_s * (1 + waiting)
        waiting = customers * response / (response + elsewhere_s)
    return service_s * waiting


def _parts(phase: str, passed: Sequence[StagePass], times: int) -> Iterator[Part]:
    rates = passed[0].rates
    work = sum((stage.work for stage in passed), Work())
    for name, seconds in work.named:
        yield Part(phase, name, seconds * times, rates.provenance, rates.source, rates.uncertainty)
    readings: dict[str, list[Reading]] = {}
    for stage in passed:
        for name, reading in stage.wires:
            readings.setdefault(name, []).append(reading)
    for name, found in readings.items():
        worst = max(found, key=lambda r: r.seconds)
        seconds = sum(r.seconds for r in found) * times
        yield Part(
            phase, name, seconds, worst.provenance, worst.source, worst.uncertainty, worst.size_bytes, worst.busbw_gbps
        )


def _waits(
    host: HostTimes, host_s: float, turns_s: float, prompts_s: float, decode: Sequence[StagePass], prompts: float
) -> Iterator[Part]:
    rates = decode[0].rates
    fitted = "fitted on public serving measurements (benchmarks/prediction.py)"
    yield Part("decode", "host", host_s, Provenance.CATALOG, fitted, host.uncertainty)
    yield Part("decode", "turns", turns_s, rates.provenance, "micro-batches before it in the slowest stage")
    yield Part("decode", "prompts", prompts_s, rates.provenance, "prompts of other requests", prompts)


def _uncertainty(parts: Sequence[Part]) -> float:
    """The parts' half-widths, weighted by their time: they may all err in the same direction; 1 is a factor of two."""
    own = [part for part in parts if part.phase == parts[0].phase]
    return min(1.0, sum(p.seconds * p.uncertainty for p in own) / sum(p.seconds for p in own))
