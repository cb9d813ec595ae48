"""A plan as a page shows it: what was chosen, where it lies, why, and what it was chosen over. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from configgen.memory import StageMemory
from configgen.plan import Alternative, Parallelism, Plan, Predictions
from probe.errors import one_line
from probe.topology import GpuRef, Topology
from probe.units import count, figure, gib, ranges, seconds, spread

_MOST_REPLICAS = 12
_MOST_ALTERNATIVES = 24
_BAR = 100.0


@dataclass(frozen=True, slots=True)
class Rival:
    """A way to cut the model. `share` of the best throughput, 0 to 100; None where it is forbidden or untold."""

    label: str
    is_chosen: bool
    is_forbidden: bool
    throughput: str
    first_token: str
    per_token: str
    share: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Bar:
    """Part of a GPU's memory, in hundredths of what the engine may take."""

    name: str
    x: float
    width: float
    told: str


@dataclass(frozen=True, slots=True)
class Memory:
    title: str
    told: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class PlanView:
    label: str
    model: str
    summary: str
    load: str
    tiles: tuple[tuple[str, str], ...]
    """(figure, what it is) of what the plan should give."""
    degraded: tuple[str, ...]
    placement: tuple[tuple[str, str], ...]
    memory: tuple[Memory, ...]
    reasons: tuple[tuple[str, str, str], ...]
    """(rule, text, provenance)."""
    rivals: tuple[Rival, ...]
    more: int


def plan_view(plan: Plan, topology: Topology) -> PlanView:
    p, w = plan.parallelism, plan.workload
    engine = one_line(f"{plan.engine.engine} {plan.engine.version}", 60)
    assumed = f"; assumed: {', '.join(w.assumed)}" if w.assumed else ""
    told = plan.predictions
    half = f" ±{spread(told.uncertainty)}" if told.uncertainty is not None else ""
    tiles = (
        (_seconds(told.ttft_s), "to the first token" + half),
        (_seconds(told.tpot_s), "for each further token" + half),
        (_figure(told.output_tokens_per_s_per_gpu), "tokens/s of each GPU" + half),
        (f"{told.max_concurrency:,}" if told.max_concurrency is not None else "", "requests at once fit"),
        (f"{told.max_context:,}" if told.max_context is not None else "", "tokens of context fit"),
    )
    return PlanView(
        p.label,
        one_line(plan.model.name, 120),
        f"{count(p.dp, 'replica')} of {count(p.pp, 'stage')} with {count(p.tp, 'GPU')}: "
        f"{p.gpus:,} of {topology.gpu_count:,} GPUs, for {engine}, confidence {plan.confidence}",
        f"{w.objective.value}, {w.input_tokens:,} tokens in, {w.output_tokens:,} out, "
        f"{w.concurrency:,} at once{assumed}",
        tuple(tile for tile in tiles if tile[0]),
        tuple(one_line(text) for text in plan.degraded),
        tuple(_placement(plan, topology)),
        tuple(_memory(stage, number, p.pp) for number, stage in enumerate(plan.memory[:4])),
        tuple((r.rule.replace("-", " "), one_line(r.text, 1000), r.provenance.value) for r in plan.reasons),
        tuple(_rivals(plan)),
        max(0, len(plan.alternatives) - _MOST_ALTERNATIVES),
    )


def _rivals(plan: Plan) -> Iterator[Rival]:
    shown = plan.alternatives[:_MOST_ALTERNATIVES]
    if not shown:
        return
    best = max(
        (x.output_tokens_per_s_per_gpu or 0.0 for x in (plan.predictions, *(a.predictions for a in shown))),
        default=0.0,
    )
    yield _rival(plan.parallelism, plan.predictions, best, "chosen", is_chosen=True)
    for a in shown:
        yield _rival(a.parallelism, a.predictions, best, _why(a), is_forbidden=a.law is not None)


def _rival(
    p: Parallelism, told: Predictions, best: float, why: str, *, is_chosen: bool = False, is_forbidden: bool = False
) -> Rival:
    speed = told.output_tokens_per_s_per_gpu
    share = round(_BAR * speed / best, 1) if speed and best else None
    return Rival(
        p.label, is_chosen, is_forbidden, _figure(speed), _seconds(told.ttft_s), _seconds(told.tpot_s), share, why
    )


def _why(a: Alternative) -> str:
    if a.law is not None:
        return f"forbidden: {one_line(a.law.removeprefix(f'{a.parallelism.label}: '), 600)}"
    return one_line(a.lost_by or "", 600)


def _placement(plan: Plan, topology: Topology) -> Iterator[tuple[str, str]]:
    for number, replica in enumerate(plan.replicas[:_MOST_REPLICAS]):
        stages = [_gpus(stage, topology) for stage in replica.stages]
        text = stages[0] + "".join(f" → ({hop}) {one}" for hop, one in zip(replica.hops, stages[1:], strict=True))
        inside = f", over {replica.tp_path} inside" if replica.tp_path else ""
        yield f"replica {number}", one_line(text + inside, 600)
    if len(plan.replicas) > _MOST_REPLICAS:
        yield "", f"and {len(plan.replicas) - _MOST_REPLICAS} more"


def _gpus(stage: tuple[GpuRef, ...], topology: Topology) -> str:
    nodes = list(dict.fromkeys(ref.node for ref in stage))
    parts = []
    for node in nodes:
        gpus = [ref.gpu for ref in stage if ref.node == node]
        named = f"{'GPUs' if len(gpus) > 1 else 'GPU'} {ranges(gpus)}"
        parts.append(f"node {node} {named}" if len(topology.nodes) > 1 else named)
    return " and ".join(parts)


def _memory(stage: StageMemory, number: int, stages: int) -> Memory:
    parts = (
        ("weights", stage.weights_bytes),
        ("KV cache asked for", stage.kv_bytes),
        ("activations", stage.activation_bytes),
        ("runtime", stage.overhead_bytes),
        ("free", stage.usable_bytes - stage.needed_bytes),
    )
    bars, x = [], 0.0
    for name, size in parts:
        width = _BAR * size / max(stage.usable_bytes, 1)
        bars.append(Bar(name, round(x, 2), round(width, 2), f"{name} {gib(size)}"))
        x += width
    title = "Memory of a GPU" + (f", stage {number}" if stages > 1 else "")
    return Memory(title, f"of {gib(stage.usable_bytes)} that the engine may take", tuple(bars))


def _seconds(value: float | None) -> str:
    return "" if value is None else seconds(value)


def _figure(value: float | None) -> str:
    return "" if value is None else figure(value)
