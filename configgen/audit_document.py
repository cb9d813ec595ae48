"""Audited -> versioned JSON that carries its survey, so that it can be a source or a baseline later."""

from __future__ import annotations

from typing import Any

import msgspec

from configgen.audited import AUDIT_SCHEMA_VERSION, Audited
from configgen.compare_document import ComparisonDocument, comparison_document
from configgen.document import PlanDocument, plan_document
from configgen.unchecked import Unchecked, unchecked
from probe.finding import Finding, Severity
from probe.islands import fingerprint
from probe.store import SurveyDocument, survey_document, to_json


class AuditDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `wirelore audit --format json` prints. In findings, `node` and `gpus` count as in `survey.topology`."""

    schema_version: int
    audited_at: str
    fingerprint: str
    verdict: str
    passes: bool
    """Whether `--strict` would end with 0."""
    worst: Severity | None
    findings: tuple[Finding, ...]
    not_checked: tuple[Unchecked, ...]
    plan: PlanDocument | None
    comparison: ComparisonDocument | None
    survey: SurveyDocument


def encode_audit(audited: Audited) -> bytes:
    """The audit document as indented JSON, UTF-8, ending in a newline."""
    return to_json(
        AuditDocument(
            schema_version=AUDIT_SCHEMA_VERSION,
            audited_at=audited.audited_at,
            fingerprint=fingerprint(audited.survey.topology),
            verdict=audited.verdict,
            passes=audited.passes,
            worst=audited.worst,
            findings=audited.findings,
            not_checked=unchecked(audited.survey),
            plan=plan_document(audited.plan) if audited.plan is not None else None,
            comparison=comparison_document(audited.comparison) if audited.comparison is not None else None,
            survey=survey_document(audited.survey),
        )
    )


def audit_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of an audit."""
    return msgspec.json.schema(AuditDocument)
