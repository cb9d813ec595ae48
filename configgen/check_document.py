"""Check -> versioned JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from configgen.checked import CHECK_SCHEMA_VERSION, Check, Crossing, Standing
from configgen.memory import StageMemory
from configgen.plan import Predictions, Workload
from probe.store import to_json
from probe.topology import GpuRef, Provenance


class BestDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The best plan for the same model, load and engine; `loss` is what the command gives less, 0.2 for a fifth."""

    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    expert_parallel_size: int
    attention_data_parallel_size: int
    gpu_order: tuple[tuple[int, ...], ...]
    layers_per_stage: tuple[int, ...]
    predictions: Predictions
    loss: float | None
    doubt: float | None
    because: str | None
    commands: tuple[str, ...]
    """One for each process, with its variables before it, as a shell takes it; "${HERE}" is the folder of the files
    that `wirelore emit` writes."""


class CheckDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `wirelore check --format json` prints. Sizes are None where the command's own numbers contradict."""

    schema_version: int
    verdict: str
    standing: Standing
    legal: bool | None
    """None where that rests on what is not counted here."""
    engine: str
    model: str | None
    said: dict[str, str]
    unknown_flags: tuple[str, ...]
    workload: Workload
    tensor_parallel_size: int | None
    pipeline_parallel_size: int | None
    data_parallel_size: int | None
    expert_parallel_size: int | None
    attention_data_parallel_size: int | None
    replicas: tuple[tuple[tuple[GpuRef, ...], ...], ...]
    layers_per_stage: tuple[int, ...]
    laws: tuple[str, ...]
    unsure: tuple[str, ...]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    crossings: tuple[Crossing, ...]
    memory: tuple[StageMemory, ...]
    predictions: Predictions | None
    provenance: Provenance | None
    idle_gpus: int
    best: BestDocument | None


def encode_check(checked: Check, commands: tuple[str, ...]) -> bytes:
    """The check document as indented JSON, UTF-8; `commands` are those of the best plan."""
    p = checked.parallelism
    same = (
        *("verdict", "standing", "workload", "replicas", "layers_per_stage", "laws", "unsure"),
        *("ignored", "notes", "crossings", "memory", "predictions", "provenance", "idle_gpus"),
    )
    return to_json(
        CheckDocument(
            schema_version=CHECK_SCHEMA_VERSION,
            legal=checked.legal,
            engine=checked.command.engine,
            model=checked.command.model,
            said=dict(checked.command.said),
            unknown_flags=checked.command.unknown,
            tensor_parallel_size=p.tp if p is not None else None,
            pipeline_parallel_size=p.pp if p is not None else None,
            data_parallel_size=p.dp if p is not None else None,
            expert_parallel_size=p.ep if p is not None else None,
            attention_data_parallel_size=p.attention_dp if p is not None else None,
            best=_best(checked, commands),
            **{name: getattr(checked, name) for name in same},
        )
    )


def check_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a check."""
    return msgspec.json.schema(CheckDocument)


def _best(checked: Check, commands: tuple[str, ...]) -> BestDocument | None:
    if checked.best is None:
        return None
    plan = checked.best.plan
    p = plan.parallelism
    return BestDocument(
        tensor_parallel_size=p.tp,
        pipeline_parallel_size=p.pp,
        data_parallel_size=p.dp,
        expert_parallel_size=p.ep,
        attention_data_parallel_size=p.attention_dp,
        gpu_order=plan.gpu_order,
        layers_per_stage=plan.layers_per_stage,
        predictions=plan.predictions,
        loss=checked.best.loss,
        doubt=checked.best.doubt,
        because=checked.best.because,
        commands=commands,
    )
