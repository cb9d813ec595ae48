"""One measurement from the parent's side: check, verify, spawn, collect, and keep every finished point."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from probe.bench.findings import Findings
from probe.bench.messages import Done, Failed, Job, Joined, Measured, Progress, Rendezvous
from probe.bench.spawn import messages
from probe.errors import MeasureError, UsageError
from probe.measurement import HealthSnapshot, Survey
from probe.store import encode_survey, encode_topology
from probe.topology import Notice, Origin, Provenance, Topology

Shape = tuple[int, int, int]

_VERIFY_SHARE = 0.25
"""Of the budget at most, for P2P written and read back: each pair is one line, and a pair may hang."""


_HEALTH_S = 3.0


@dataclass(frozen=True)
class Order:
    """What to measure, and how long."""

    topology: Topology
    """Of this node alone."""
    rendezvous: Rendezvous
    backend: str
    largest_bytes: int
    started_s: float
    budget_s: float | None
    timeout_s: float
    lab: str | None = None
    """What stands in for the GPUs; None where they are real."""
    every_pair: bool = False
    named_interface: str | None = None
    gemm_shapes: tuple[Shape, ...] = ()
    resumed: Survey | None = None
    debug: bool = False


def measure(
    order: Order, *, keep: Callable[[Survey], None], show: Callable[[str], None], note: Callable[[str], None]
) -> Survey | None:
    """Runs it; `keep` gets the survey after each finished point, `show` what is measured now, `note` what to know.

    Returns the survey on node 0, None on the others. Raises MeasureError where it could not be finished (UsageError
    where the fault is in how it was asked for): what was finished until then has been kept.
    """
    node = order.rendezvous.node
    writes = node == 0
    taken_at = _now()
    findings = Findings(order.topology, lab=order.lab, origin=_origin(order, taken_at), resumed=order.resumed)
    told = Measured()
    if order.lab is None:
        told = _before(order, findings, taken_at)
        if writes:
            findings.add(told)
        for broken in (v for v in told.verifications if not v.passed):
            what = f"P2P from GPU {broken.source.gpu} to GPU {broken.target.gpu} failed its check: {broken.detail}"
            note(f"{what}. Everything is measured without P2P (NCCL_P2P_DISABLE=1)")
    job = Job(
        rendezvous=order.rendezvous,
        topology=msgspec.Raw(encode_topology(order.topology)),
        backend=order.backend,
        started_s=order.started_s,
        budget_s=order.budget_s,
        timeout_s=order.timeout_s,
        largest_bytes=order.largest_bytes,
        every_pair=order.every_pair,
        named_interface=order.named_interface,
        gemm_shapes=order.gemm_shapes,
        resume=msgspec.Raw(encode_survey(order.resumed)) if order.resumed and writes else msgspec.UNSET,
        told=told,
    )

    def kept() -> Survey:
        if not findings.has_news:
            return findings.survey
        survey = replace(findings.survey, measured_at=_now())
        if writes:
            keep(survey)
        return survey

    failed = _run(job, findings, kept, show, order.debug)
    if order.lab is None:
        _after(findings, node, note)
    survey = kept()
    if failed is not None:
        raise (UsageError if failed.misused else MeasureError)(failed.problem, cure=failed.cure)
    if writes and not survey.is_measured:
        raise MeasureError("the time was over before the first point was measured", cure="Give a longer --budget.")
    return survey if writes else None


def _run(
    job: Job, findings: Findings, keep: Callable[[], Survey], show: Callable[[str], None], debug: bool
) -> Failed | None:
    """Until all is measured, or something failed."""
    with contextlib.closing(messages(job, debug=debug)) as batches:
        for batch in batches:
            news = False
            for message in batch:
                if isinstance(message, Failed):
                    return message
                if isinstance(message, Done):
                    findings.finish()
                    return None
                if isinstance(message, Progress) and message.text:
                    show(message.text)
                news |= findings.add(message) and not isinstance(message, Joined)
            if news:
                keep()
    raise AssertionError("the last message is Done or Failed")


def _before(order: Order, findings: Findings, taken_at: str) -> Measured:
    """Counters, and P2P written and read back, before any rank begins."""
    from probe.bench.health import health
    from probe.bench.verify import BUDGET_S, verify_p2p

    node = order.rendezvous.node
    findings.add_health(*_of_node(node, *health(taken_at, deadline_s=_HEALTH_S)))
    left_s = BUDGET_S if order.budget_s is None else min(BUDGET_S, order.budget_s * _VERIFY_SHARE)
    verifications, notices = verify_p2p(order.topology, budget_s=left_s)
    return Measured(
        verifications=tuple(
            replace(v, source=replace(v.source, node=node), target=replace(v.target, node=node)) for v in verifications
        ),
        missing=tuple(replace(notice, node=node) for notice in notices),
    )


def _after(findings: Findings, node: int, note: Callable[[str], None]) -> None:
    from probe.bench.health import health
    from probe.counters import grown

    before = findings.survey.health
    after, notices = _of_node(node, *health(_now(), deadline_s=_HEALTH_S))
    grew = grown(before, after)
    findings.add_health(after, (*notices, *grew))
    for notice in grew:
        note(notice.message)


def _of_node(
    node: int, snapshots: Iterable[HealthSnapshot], notices: Iterable[Notice]
) -> tuple[tuple[HealthSnapshot, ...], tuple[Notice, ...]]:
    """The same with this node's number among all."""
    numbered = tuple(replace(one, gpu=replace(one.gpu, node=node)) for one in snapshots)
    return numbered, tuple(replace(notice, node=node) for notice in notices)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _origin(order: Order, taken_at: str) -> Origin:
    where = os.uname().nodename if order.lab is None else order.lab
    return Origin("curves", Provenance.MEASURED, f"{order.backend} at {taken_at}, {where}")


def began_s() -> float:
    """When this process began, on the monotonic clock: a budget counts from there."""
    ticks = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19])
    since_boot_s = ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_s)
