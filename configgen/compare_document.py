"""Comparison -> versioned JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from configgen.comparison import COMPARISON_SCHEMA_VERSION, Comparison, Difference, Judgement, Serving, Side
from probe.islands import fingerprint
from probe.store import to_json


class SideDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two machines."""

    source: str
    fingerprint: str
    nodes: int
    gpus: int
    measured_at: str | None
    lab: str | None


class ComparisonDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `wirelore compare --format json` prints. Ratios are B's speed over A's."""

    schema_version: int
    verdict: str
    carries_over: bool
    a: SideDocument
    b: SideDocument
    judgements: tuple[Judgement, ...]
    differences: tuple[Difference, ...]
    equal: tuple[Difference, ...]
    told_by_one: tuple[Difference, ...]
    measure: tuple[str, ...]
    notes: tuple[str, ...]
    serving: Serving | None


def encode_comparison(c: Comparison) -> bytes:
    """The comparison document as indented JSON, UTF-8, ending in a newline."""
    return to_json(comparison_document(c))


def comparison_document(c: Comparison) -> ComparisonDocument:
    """For documents that carry a comparison."""
    return ComparisonDocument(
        schema_version=COMPARISON_SCHEMA_VERSION,
        verdict=c.verdict,
        carries_over=c.carries_over,
        a=_side(c.a),
        b=_side(c.b),
        judgements=c.judgements,
        differences=c.differences,
        equal=c.equal,
        told_by_one=c.told_by_one,
        measure=c.measure,
        notes=c.notes,
        serving=c.serving,
    )


def comparison_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a comparison."""
    return msgspec.json.schema(ComparisonDocument)


def _side(side: Side) -> SideDocument:
    topology = side.survey.topology
    return SideDocument(
        source=side.name,
        fingerprint=fingerprint(topology),
        nodes=len(topology.nodes),
        gpus=topology.gpu_count,
        measured_at=side.survey.measured_at,
        lab=side.survey.lab,
    )
