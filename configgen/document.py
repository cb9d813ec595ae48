"""Plan <-> versioned JSON, in the keys of the CLI contract."""

from __future__ import annotations

from typing import Any

import msgspec

from configgen.engines.rules import engine_traits
from configgen.memory import StageMemory
from configgen.plan import (
    PLAN_SCHEMA_VERSION,
    Alternative,
    Choice,
    Parallelism,
    Plan,
    PlannedModel,
    Predictions,
    Reason,
    Replica,
    Site,
    Workload,
)
from probe.errors import UsageError
from probe.store import to_json
from probe.topology import Origin


class PlanDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `wirelore plan -o` writes and `wirelore emit` reads."""

    schema_version: int
    model: PlannedModel
    workload: Workload
    engine: str
    engine_version: str
    fingerprint: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    expert_parallel_size: int
    attention_data_parallel_size: int
    gpu_order: tuple[tuple[int, ...], ...]
    gpu_uuids: tuple[tuple[str | None, ...], ...]
    hostnames: tuple[str | None, ...]
    replicas: tuple[Replica, ...]
    layers_per_stage: tuple[int, ...]
    engine_split: bool
    memory: tuple[StageMemory, ...]
    mixed_gpus: bool
    uses_mig: bool
    p2p: bool
    half_precision: bool
    sites: tuple[Site, ...] = ()
    gpu_models: tuple[tuple[str | None, ...], ...] = ()
    predictions: Predictions
    confidence: str
    reasons: tuple[Reason, ...]
    alternatives: tuple[Alternative, ...]
    front: tuple[Choice, ...]
    degraded: tuple[str, ...]
    provenance: tuple[Origin, ...]


_SAME = tuple(name for name in PlanDocument.__struct_fields__ if name in Plan.__dataclass_fields__ and name != "engine")


def encode_plan(plan: Plan) -> bytes:
    """The plan document as indented JSON, UTF-8, ending in a newline."""
    return to_json(plan_document(plan))


def plan_document(plan: Plan) -> PlanDocument:
    """For documents that carry a plan."""
    p = plan.parallelism
    return PlanDocument(
        schema_version=PLAN_SCHEMA_VERSION,
        engine=plan.engine.engine,
        engine_version=plan.engine.version,
        tensor_parallel_size=p.tp,
        pipeline_parallel_size=p.pp,
        data_parallel_size=p.dp,
        expert_parallel_size=p.ep,
        attention_data_parallel_size=p.attention_dp,
        **{name: getattr(plan, name) for name in _SAME},
    )


def decode_plan(data: bytes, *, where: str) -> Plan:
    """Reads back what encode_plan wrote; the laws are checked again. Raises UsageError naming what is wrong."""
    try:
        told = msgspec.json.decode(data, type=PlanDocument)
        if told.schema_version != PLAN_SCHEMA_VERSION:
            raise ValueError(f"schema version {told.schema_version} is not {PLAN_SCHEMA_VERSION}")
        return Plan(
            engine=engine_traits(f"{told.engine}@{told.engine_version}"),
            parallelism=Parallelism(
                told.tensor_parallel_size,
                told.pipeline_parallel_size,
                told.data_parallel_size,
                told.expert_parallel_size,
                told.attention_data_parallel_size,
            ),
            **{name: getattr(told, name) for name in _SAME},
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"{where} is no plan: {reason}", cure="Give what `wirelore plan -o FILE` wrote.") from error


def plan_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a plan."""
    return msgspec.json.schema(PlanDocument)
