"""One pass through a replica's stages: what its GPUs compute, and what goes over its wires. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from configgen.model import ModelSpec
from configgen.plan import EngineTraits, Parallelism
from configgen.rates import Rates, rates_of
from configgen.roofline import Load, Work, composition, stage_work
from configgen.wires import Reading, Wires
from probe.measurement import Survey
from probe.topology import GpuRef

Stage = tuple[GpuRef, ...]
"""A stage's GPUs in rank order."""
Stages = tuple[Stage, ...]

TENSORS_HANDED_OFF = 2
"""From stage to stage: the hidden state and the residual (vLLM's IntermediateTensors)."""


@dataclass(frozen=True)
class Machine:
    """A survey prepared for many estimates: what was looked up once is kept."""

    survey: Survey
    faster: float = 1.0
    """What if: all wires so many times as fast."""
    wires: Wires = field(init=False)
    _rates: dict[Stage, Rates] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "wires", Wires(self.survey, self.faster))

    def rewired(self, times: float) -> Machine:
        """The same with wires so many times as fast; what was looked up of them is kept too."""
        other = replace(self, faster=times)
        object.__setattr__(other, "wires", replace(self.wires, faster=times))
        return other

    def rates(self, gpus: Stage) -> Rates:
        if gpus not in self._rates:
            self._rates[gpus] = rates_of(self.survey, gpus)
        return self._rates[gpus]


@dataclass(frozen=True, slots=True)
class StagePass:
    """A pass through one stage: its work and, by name, its readings of the wires, all layers together."""

    work: Work
    wires: tuple[tuple[str, Reading], ...]
    rates: Rates

    @property
    def seconds(self) -> float:
        return self.work.seconds + sum(reading.seconds for _, reading in self.wires)


@dataclass(frozen=True)
class Replica:
    """A model cut by `shape` and `layers`, on these stages, beside dp - 1 like it."""

    machine: Machine
    model: ModelSpec
    shape: Parallelism
    layers: tuple[int, ...]
    stages: tuple[Stage, ...]
    traits: EngineTraits

    def step(self, load: Load) -> tuple[StagePass, ...]:
        """A micro-batch's way through all stages; `load` is that of each attention group."""
        first, found = 0, []
        works: dict[tuple[object, ...], Work] = {}
        for number, (stage, layers) in enumerate(zip(self.stages, self.layers, strict=True)):
            rates = self.machine.rates(stage)
            last = first + layers
            alike = (id(rates), composition(self.model, first, last), last == self.model.layers)
            if alike not in works:
                works[alike] = stage_work(self.model, self.shape, rates, first, last, load)
            work = works[alike]
            wires = list(self._inside(stage, layers, load))
            if number + 1 < len(self.stages):
                wires.append(("hand-off", self._hand_off(stage, self.stages[number + 1], load)))
            found.append(StagePass(work, tuple(wires), rates))
            first += layers
        return tuple(found)

    def _inside(self, stage: Stage, layers: int, load: Load) -> Iterator[tuple[str, Reading]]:
        """Two all-reduces a layer of tokens x hidden x dtype bytes: after attention, and after the MLP or the experts
        (Megatron-LM, arXiv 1909.08053, section 3). EP alone changes neither, since each rank sees every token. Under
        attention-DP the experts' tokens are gathered from all ranks and their sums scattered back (vLLM's default
        `allgather_reducescatter` backend)."""
        shape, wires = self.shape, self.machine.wires
        size = load.tokens * self.model.hidden_size * self.model.dtype_bytes
        at_once = self._at_once(stage)
        if shape.attention_tp > 1:
            group = stage[: shape.attention_tp]
            each = wires.all_reduce(group, size, self.traits, at_once=at_once * shape.attention_dp)
            yield "all-reduce", _times(each, layers)
        if shape.attention_dp > 1:
            total = size * shape.attention_dp
            for operation in ("all_gather", "reduce_scatter"):
                each = wires.seconds(operation, stage, total, at_once=at_once)
                yield "attention-DP exchange", _times(each, layers)
        elif shape.tp > 1:
            yield "all-reduce", _times(wires.all_reduce(stage, size, self.traits, at_once=at_once), layers)

    def _at_once(self, stage: Stage) -> int:
        """Like groups that run at the same time on the same node: other stages' and other replicas'."""
        node = stage[0].node
        members = sum(ref.node == node for ref in stage)
        places = sum(state.is_usable for state in self.machine.survey.topology.nodes[node].gpus) // members
        return max(1, min(places, self.shape.dp * self.shape.pp))

    def _hand_off(self, stage: Stage, following: Stage, load: Load) -> Reading:
        """Each rank sends its share of every token's tensors to the rank of its number, and the next stage gathers them
        (vLLM: send_tensor_dict with all_gather_group)."""
        size = TENSORS_HANDED_OFF * load.tokens * self.model.hidden_size * self.model.dtype_bytes
        wires, ranks = self.machine.wires, self.shape.attention_tp
        pairs = zip(stage, following, strict=True)
        sent = [wires.seconds("p2p", pair, size / ranks, at_once=len(stage)) for pair in pairs]
        slow = max(sent, key=lambda r: r.seconds)
        gathered = wires.seconds("all_gather", following[:ranks], size, at_once=self._at_once(following))
        return replace(slow, seconds=slow.seconds + gathered.seconds)


def slowest(passed: Sequence[StagePass]) -> float:
    return max(stage.seconds for stage in passed)


def through(passed: Sequence[StagePass]) -> float:
    return sum(stage.seconds for stage in passed)


def _times(reading: Reading, n: int) -> Reading:
    return replace(reading, seconds=reading.seconds * n)
