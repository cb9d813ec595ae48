"""What would change the decision: the speed of the wires, and the load, from which on another plan is chosen.

Found by planning again: at a trial's wires or load, plans are estimated and ranked by the very rule that chose. The
span is halved on a logarithmic scale with the few plans that can win, then all plans are tried a tenth beyond: whoever
is chosen there is named, and where that is one of the others, the halving is repeated with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, sqrt

from configgen.cost import Machine, Part
from configgen.forecast import TIE, Forecast, forecast, over_limits, ranked
from configgen.judge import USEFUL_BATCH, Candidate, Judge
from configgen.model import ModelSpec
from configgen.plan import NO_LIMITS, EngineTraits, Limits, Objective, Parallelism, Reason, Workload
from configgen.search import Field, materialise, search
from configgen.wires import ENGINE_KERNEL_ALPHA_S, FABRIC_EFFICIENCY, HOST_SHARING, Wires
from probe.curve import bus_factor
from probe.islands import bottleneck
from probe.measurement import Survey
from probe.topology import GpuRef, Provenance, Topology
from probe.units import message_size, seconds

FURTHEST = 32.0
"""Times faster or slower, more or fewer: further than any two hosts or loads of one machine are apart."""
NARROW = 4.0
"""The same of wires inside islands that nobody timed: public figures are 1.3-fold apart. So far one trial tells."""
DEEPEST = 16
LEADING = 6
"""Plans that are tried at the ends of the span: the best of each tp, then of each cut."""
STEPS = 4
"""Halvings of half the span on a logarithmic scale: the turn is told to about 11 %."""
PAST = 1.1
ROUNDS = 4
LARGE_BYTES = 1 << 20
"""Of smaller messages the time is told, for their start-up counts as much as what the wires carry."""

_OPERATIONS = {"all-reduce": "all_reduce", "attention-DP exchange": "all_gather", "hand-off": "p2p"}


def changes(
    found: Field, model: ModelSpec, workload: Workload, traits: EngineTraits, limits: Limits = NO_LIMITS
) -> Iterator[Reason]:
    """The turns up, else down; none where nothing within the span turns the decision."""
    best = found.forecasts[0]
    if best.candidate.parallelism.pp > DEEPEST:
        return
    candidates = _candidates(found, model, workload, traits, limits)
    now = {id(f.candidate): f for f in found.forecasts}
    known = {(n, 1.0, workload.concurrency): now[id(c)] for n, c in enumerate(candidates) if id(c) in now}
    trials = _Trials(found, model, workload, traits, candidates, known, {1.0: found.machine})
    fastest = min(FURTHEST, max(_hardware_allows(found, trials.now(n)) for n in trials.leading))
    for turn in trials.turns(lambda times: (times, workload.concurrency), (fastest, 1 / _slowest(best))):
        if (reason := _of_wires(trials, best, turn)) is not None:
            yield reason
            break
    told = replace(workload, assumed=tuple(name for name in workload.assumed if name != "concurrency"))
    spans = (FURTHEST, 1 / FURTHEST)
    for turn in replace(trials, workload=told).turns(lambda times: (1.0, _sequences(workload, times)), spans):
        yield Reason("would-change", _of_load(workload, turn), best.provenance)
        break


@dataclass(frozen=True, slots=True)
class _Turn:
    """So many times the wires' speed or the load, and what is chosen there; None where limits refuse all."""

    times: float
    taken: Forecast | None

    @property
    def subject(self) -> str:
        return f"{self.taken.candidate.parallelism.label} wins" if self.taken else "no plan keeps the limits"


@dataclass(frozen=True)
class _Trials:
    """Plans by number, the chosen one first, and what each gives at (times the wires' speed, sequences at once)."""

    found: Field
    model: ModelSpec
    workload: Workload
    traits: EngineTraits
    candidates: Sequence[Candidate]
    known: dict[tuple[int, float, int], Forecast]
    machines: dict[float, Machine]

    def turns(self, at: Callable[[float], tuple[float, int]], ends: Sequence[float]) -> Iterator[_Turn]:
        """The nearest turn towards each end of what is chosen at so many times what is now."""
        for end in ends:
            near, tried = 1.0, {0}
            for far in (sqrt(end), end) if max(end, 1 / end) > NARROW else (end,) if end != 1 else ():
                tried |= {*self.chosen(self.leading, at(far))}
                if not self._stays(self.chosen(tried, at(far))):
                    if (turn := self._turn(tried, at, near, far)) is not None:
                        yield turn
                    break
                near = far

    def _turn(self, tried: set[int], at: Callable[[float], tuple[float, int]], near: float, far: float) -> _Turn | None:
        """Where between the chosen plan is no more, and who is instead when all that may be are tried."""
        for _ in range(ROUNDS):
            times = self._halved(tried, at, near, far)
            past = _beyond(at(times), far > 1)
            taken, expected = (self.chosen(those, past) for those in (self._within_reach(times), tried))
            if not self._stays(taken) and self._cut(taken) == self._cut(expected):
                return _Turn(times, self._forecast(taken[0], past) if taken else None)
            tried |= {*taken}
            if self._stays(self.chosen(tried, at(far))):
                return None
        return None

    def chosen(self, tried: Sequence[int] | set[int], at: tuple[float, int]) -> tuple[int, ...]:
        """(the plan that is chosen, the one of least worth) of these; empty where limits refuse all of them."""
        workload = replace(self.workload, concurrency=at[1])
        told = {id(f): n for n in sorted(tried) for f in [self._forecast(n, at)] if over_limits(f, workload) is None}
        forecasts = [self._forecast(n, at) for n in told.values()]
        if not forecasts:
            return ()
        order = ranked(forecasts, self._judge(workload))
        return told[id(order[0])], told[id(min(order, key=lambda f: f.worth_s))]

    def _forecast(self, number: int, at: tuple[float, int]) -> Forecast:
        times, sequences = at
        if (number, times, sequences) not in self.known:
            workload = replace(self.workload, concurrency=sequences)
            candidate = self.candidates[number]
            if "concurrency" not in workload.assumed:
                candidate = _with_replicas(candidate, sequences)
            if times not in self.machines:
                self.machines[times] = self.found.machine.rewired(times)
            self.known[number, times, sequences] = forecast(
                self.machines[times], self.model, candidate, workload, self.traits
            )
        return self.known[number, times, sequences]

    def _halved(self, tried: set[int], at: Callable[[float], tuple[float, int]], near: float, far: float) -> float:
        for _ in range(STEPS):
            middle = sqrt(near * far)
            near, far = (middle, far) if self._stays(self.chosen(tried, at(middle))) else (near, middle)
        return float(_times(far))

    def now(self, number: int) -> Forecast:
        """What a plan gives on the wires and under the load of now."""
        return self._forecast(number, (1.0, self.workload.concurrency))

    def number(self, taken: Forecast) -> int:
        return next(n for n, candidate in enumerate(self.candidates) if _cut(candidate) == _cut(taken.candidate))

    def _within_reach(self, times: float) -> list[int]:
        """So many times faster wires make no plan faster by more, nor by more than its square what a plan is worth."""
        now = [self.now(n).worth_s for n in range(len(self.candidates))]
        power = 2 if self.workload.objective is Objective.BALANCED else 1
        return [n for n, worth_s in enumerate(now) if worth_s <= now[0] * max(times, 1 / times) ** power / (1 - TIE)]

    @property
    def leading(self) -> list[int]:
        tps, cuts = dict[int, int](), dict[tuple[int, int], int]()
        for number, candidate in enumerate(self.candidates):
            p = candidate.parallelism
            tps.setdefault(p.tp, number)
            cuts.setdefault((p.tp, p.pp), number)
        return list(dict.fromkeys((0, *tps.values(), *cuts.values())))[:LEADING]

    def _judge(self, workload: Workload) -> Judge:
        """As search() has it."""
        largest = max(candidate.parallelism.tp for candidate in self.candidates)
        return Judge(
            workload=workload,
            has_fast_island=self.found.has_fast_island,
            batch=USEFUL_BATCH if "concurrency" in workload.assumed else 1,
            largest_all_reduce=max(self.traits.custom_all_reduce_sizes, default=largest),
            mla=self.model.mla is not None,
        )

    def _stays(self, chosen: tuple[int, ...]) -> bool:
        return self._cut(chosen) == _cut(self.candidates[0])

    def _cut(self, chosen: tuple[int, ...]) -> Parallelism | None:
        return _cut(self.candidates[chosen[0]]) if chosen else None


def _cut(candidate: Candidate) -> Parallelism:
    """How a replica is cut, whatever their number."""
    return replace(candidate.parallelism, dp=1)


def _with_replicas(candidate: Candidate, most: int) -> Candidate:
    """A replica without a request is an idle one."""
    p = candidate.parallelism
    return candidate if p.dp <= most else replace(candidate, parallelism=replace(p, dp=most))


def _candidates(
    found: Field, model: ModelSpec, workload: Workload, traits: EngineTraits, limits: Limits
) -> list[Candidate]:
    """All that may be chosen elsewhere, in the order in which it stands now: a load that was told bounds the replicas,
    and limits refuse plans; at another load there may be more of both, so they are searched for again without these."""
    few = "concurrency" not in workload.assumed and any(
        c.parallelism.dp == workload.concurrency for c in found.candidates
    )
    if not few and workload.max_ttft_s is None and workload.max_tpot_s is None:
        return list(found.candidates)
    sequences = round(workload.concurrency * FURTHEST)
    wide = replace(workload, concurrency=sequences, max_ttft_s=None, max_tpot_s=None)
    ranks = {_cut(c): n for n, c in enumerate(found.candidates)}
    all_of_them = search(found.machine.survey, model, wide, traits, limits).candidates
    return sorted(all_of_them, key=lambda c: ranks.get(_cut(c), len(ranks)))


def _times(times: float) -> str:
    return f"{times:.2f}" if 0.9 < times < 10 else f"{times:.2g}"


def _beyond(at: tuple[float, int], up: bool) -> tuple[float, int]:
    """A tenth beyond a turn of the wires or, where these are as they are, of the load."""
    times, sequences = at
    if times != 1:
        return (times * PAST if up else times / PAST), sequences
    return times, ceil(sequences * PAST) if up else max(1, floor(sequences / PAST))


def _sequences(workload: Workload, times: float) -> int:
    """Away from what is asked now, so that a tenth more is at least one more."""
    return max(1, (ceil if times > 1 else floor)(workload.concurrency * times))


def _of_load(workload: Workload, turn: _Turn) -> str:
    sequences = _sequences(workload, turn.times)
    if sequences == 1:
        return f"{turn.subject} for one sequence at a time"
    return f"{turn.subject} {'above' if turn.times > 1 else 'below'} about {sequences:,} sequences at once"


def _of_wires(trials: _Trials, best: Forecast, turn: _Turn) -> Reason | None:
    """Told by the message on which the chosen plan or the next one spends most; None where none is faster than that."""
    rivals = (best, trials.now(trials.number(turn.taken))) if turn.taken else (best,)
    messages = [message for f in rivals if (message := _message(f)) is not None]
    if not messages:
        return None
    message = max(messages, key=lambda m: m.part.seconds)
    if turn.times > message.fastest(trials.found.machine.survey.topology):
        return None
    part, size = message.part, message_size(round(message.part.size_bytes))
    if part.size_bytes < LARGE_BYTES:
        told = f"{size} in {seconds(message.time_s / turn.times)} instead of {seconds(message.time_s)}"
    else:
        told = f"{part.busbw_gbps * turn.times:.3g} GB/s instead of {part.busbw_gbps:.3g} for {size}"
    text = f"{turn.subject} once wires are about {_times(turn.times)} times as fast ({told})"
    return Reason("would-change", text, part.provenance)


@dataclass(frozen=True, slots=True)
class _Message:
    """What a plan sends, and between which GPUs."""

    part: Part
    operation: str
    group: tuple[GpuRef, ...]

    @property
    def bus_bytes(self) -> float:
        return self.part.size_bytes * bus_factor(self.operation, len(self.group))

    @property
    def time_s(self) -> float:
        return self.bus_bytes / (self.part.busbw_gbps * 1e9)

    def fastest(self, topology: Topology) -> float:
        """Times as fast as now would be the fastest start-up that is known, and all that the link carries."""
        return self.time_s / (ENGINE_KERNEL_ALPHA_S + self.bus_bytes / (_link_gbps(topology, self.group) * 1e9))


def _slowest(f: Forecast) -> float:
    """Who sends nothing loses nothing by slower wires."""
    paths = [path for path in (f.candidate.tp_path, f.candidate.pp_path) if path is not None]
    if (message := _message(f)) is None:
        return 1.0
    public = message.part.provenance is not Provenance.MEASURED
    return NARROW if public and all(path.is_fast for path in paths) else FURTHEST


def _hardware_allows(found: Field, f: Forecast) -> float:
    message = _message(f)
    return 1.0 if message is None else max(1.0, message.fastest(found.machine.survey.topology))


def _message(f: Forecast) -> _Message | None:
    """That on which it spends most; of the first replica's GPUs."""
    parts = [p for p in f.estimate.parts if p.phase == "decode" and p.name in _OPERATIONS and p.busbw_gbps > 0]
    if not parts:
        return None
    part = max(parts, key=lambda p: p.seconds)
    _, stages = next(materialise(f.candidate))
    group, p = stages[0], f.candidate.parallelism
    if part.name == "hand-off":
        group = (stages[0][0], stages[1][0])
    elif part.name == "all-reduce" and p.attention_tp > 1:
        group = group[: p.attention_tp]
    return _Message(part, _OPERATIONS[part.name], group)


def _link_gbps(topology: Topology, group: tuple[GpuRef, ...]) -> float:
    """What a rank's link carries by the catalog: of PCIe its port, whatever the host leaves of it."""
    slowest = bottleneck(topology.path(a, b) for i, a in enumerate(group) for b in group[i + 1 :])
    told = Wires(Survey(topology)).seconds("all_gather", group, 1 << 36)
    left = HOST_SHARING.get(slowest.kind, 1.0) if slowest else 1.0
    return told.busbw_gbps / FABRIC_EFFICIENCY / left
