"""What the tests of `wirelore agent` have it see."""

from __future__ import annotations

from dataclasses import replace

from fake_nvml.machines import Description, healthy, hgx_h100

from configgen.audited import Audited
from configgen.run.agent import Seen
from configgen.run.features import PREFIX
from probe.finding import Finding, Severity
from probe.measurement import Survey
from probe.topology import GpuRef, GpuStatus, Provenance, Topology


def seen(survey: Survey | Topology, *findings: Finding, at_s: float = 1_800_000_000.0) -> Seen:
    survey = survey if isinstance(survey, Survey) else Survey(survey)
    return Seen(at_s, 0.1, Audited(survey, findings, "2026-11-21T12:00:00Z"))


def failed(why: str) -> Seen:
    return Seen(1_800_000_000.0, 0.1, failure=why)


def finding(code: str, severity: Severity, gpu: int = 0) -> Finding:
    return Finding(code, severity, f"GPU {gpu}", "Look.", Provenance.READ, node=0, gpus=(GpuRef(0, gpu),))


def lost(topology: Topology, *gpus: int) -> Topology:
    node = topology.nodes[0]
    states = tuple(replace(s, status=GpuStatus.LOST) if i in gpus else s for i, s in enumerate(node.gpus))
    return replace(topology, nodes=(replace(node, gpus=states),))


def well() -> Description:
    return healthy(hgx_h100())


def short(told: dict[str, str]) -> dict[str, str]:
    return {name.removeprefix(PREFIX): value for name, value in told.items()}
