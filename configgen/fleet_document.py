"""A fleet's audit -> versioned JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from configgen.report.fleet import verdict, what_text
from probe.finding import Finding, Severity
from probe.fleet_audit import Deviation, FleetAudit, Odd, RateKey
from probe.measurement import CurveKey
from probe.store import to_json
from probe.topology import GpuRef

FLEET_SCHEMA_VERSION = 1


class DeviationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that is slower than on equal machines. `curve` or `rate` says which; a rate has no size."""

    what: str
    curve: CurveKey | None
    rate: RateKey | None
    members: tuple[GpuRef, ...]
    size_bytes: int | None
    value: float
    usual: float
    unit: str
    share: float
    scatter: float
    machines: int


class HostDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A machine; `findings` are its failures and warnings, `deviations` what is slower than on its equals."""

    number: int
    file: str
    hostname: str | None
    fingerprint: str
    gpus: str
    drivers: tuple[str, ...]
    libraries: tuple[str, ...]
    measured_at: str | None
    lab: str | None
    findings: tuple[Finding, ...]
    deviations: tuple[DeviationDocument, ...]


class CodeDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A code at its gravest; `hosts` are numbers of machines."""

    code: str
    severity: Severity
    hosts: tuple[int, ...]


class GroupDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Machines of equal wires. `typical` is None where too few were measured to judge each by the others; `findings`
    are that machine's, which its equals share."""

    fingerprint: str
    lab: bool
    measured: int
    typical: int | None
    hosts: tuple[int, ...]
    findings: tuple[Finding, ...]


class UnreadableDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is no survey."""

    file: str
    reason: str


class FleetDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `wirelore audit --fleet --format json` prints. `worst` are numbers of machines, the worst first."""

    schema_version: int
    audited_at: str
    verdict: str
    passes: bool
    worst: tuple[int, ...]
    hosts: tuple[HostDocument, ...]
    codes: tuple[CodeDocument, ...]
    groups: tuple[GroupDocument, ...]
    odd: tuple[Odd, ...]
    unreadable: tuple[UnreadableDocument, ...]
    older_surveys: int
    unconfirmed: int


def encode_fleet(fleet: FleetAudit, *, audited_at: str) -> bytes:
    """The fleet document as indented JSON, UTF-8, ending in a newline."""
    hosts = tuple(
        HostDocument(
            number=n,
            file=_text(host.file),
            hostname=host.hostname,
            fingerprint=host.fingerprint,
            gpus=host.gpus,
            drivers=host.drivers,
            libraries=host.libraries,
            measured_at=host.measured_at,
            lab=host.lab,
            findings=tuple(found for found in host.findings if found.severity is not Severity.INFO),
            deviations=tuple(map(_deviation, own.deviations)) if (own := fleet.by_host.get(n)) else (),
        )
        for n, host in enumerate(fleet.hosts)
    )
    document = FleetDocument(
        schema_version=FLEET_SCHEMA_VERSION,
        audited_at=audited_at,
        verdict=verdict(fleet),
        passes=fleet.passes,
        worst=fleet.ranked,
        hosts=hosts,
        codes=tuple(CodeDocument(code=code, severity=severity, hosts=found) for code, severity, found in fleet.codes),
        groups=tuple(
            GroupDocument(
                fingerprint=group.fingerprint,
                lab=group.lab,
                measured=group.measured,
                typical=group.typical,
                hosts=group.hosts,
                findings=group.findings,
            )
            for group in fleet.groups
        ),
        odd=fleet.odd,
        unreadable=tuple(
            UnreadableDocument(file=_text(file), reason=_text(reason)) for file, reason in fleet.unreadable
        ),
        older_surveys=fleet.older,
        unconfirmed=fleet.unconfirmed,
    )
    return to_json(document)


def _deviation(one: Deviation) -> DeviationDocument:
    curve, rate = (None, one.subject) if isinstance(one.subject, RateKey) else (one.subject, None)
    return DeviationDocument(
        what=what_text(one),
        curve=curve,
        rate=rate,
        members=one.members,
        size_bytes=one.size_bytes,
        value=one.value,
        usual=one.usual,
        unit=one.unit,
        share=one.share,
        scatter=one.scatter,
        machines=one.machines,
    )


def _text(name: str) -> str:
    """A file's name that is no UTF-8 as text that JSON can hold."""
    return name.encode("utf-8", "backslashreplace").decode()


def fleet_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a fleet's audit."""
    return msgspec.json.schema(FleetDocument)
