"""An audit in Prometheus' text format, for the node exporter's textfile collector and the agent. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from configgen.audited import Audited
from probe.curve import profiles
from probe.errors import one_line
from probe.finding import Finding, Severity
from probe.islands import islands
from probe.measurement import CurveKey, Survey
from probe.topology import GpuRef, Topology
from probe.units import ranges

Labels = tuple[tuple[str, str], ...]
_LONGEST_LABEL = 200


@dataclass(frozen=True, slots=True)
class Metric:
    """One gauge: its values by their labels, each set of labels once."""

    name: str
    about: str
    values: dict[Labels, float] = field(default_factory=dict)

    @property
    def samples(self) -> dict[Labels, float]:
        """The values by labels that are one bounded line each. Clipped ones may come out alike: each stands once."""
        return {
            tuple((name, one_line(text, _LONGEST_LABEL)) for name, text in labels): value
            for labels, value in self.values.items()
        }

    def lines(self) -> Iterator[str]:
        """As https://prometheus.io/docs/instrumenting/exposition_formats/ asks; nothing where there is no value."""
        if not self.values:
            return
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} gauge"
        for labels, value in self.samples.items():
            yield f"{self.name}{_written(labels)} {value:.10g}"


def prometheus(audited: Audited) -> str:
    """Verdict and findings, what the machine has, and what was measured beside what it should be.

    Lab figures are no GPU's and are left out. GPUs of a group are written 'node:gpus', as '0:0-3 1:0-3'.
    """
    return "".join(f"{line}\n" for metric in metrics(audited) for line in metric.lines())


def metrics(audited: Audited) -> tuple[Metric, ...]:
    """The same as gauges, in the order of the text; those without a value among them."""
    return (*_verdict(audited), *_machine(audited.survey.topology), *_measured(audited.survey))


def _verdict(audited: Audited) -> Iterator[Metric]:
    survey, findings = audited.survey, audited.findings
    yield Metric("wirelore_audit_passed", "1 if the audit found neither a failure nor a warning.", {(): audited.passes})
    when = _epoch_s(audited.audited_at)
    yield Metric("wirelore_audit_timestamp_seconds", "When the audit was made.", {(): when} if when is not None else {})
    measured = _epoch_s(survey.measured_at) if survey.measured_at is not None and survey.lab is None else None
    yield Metric(
        "wirelore_measured_timestamp_seconds",
        "When the wires were measured; absent where they were not.",
        {(): measured} if measured is not None else {},
    )
    severities = Counter(found.severity for found in findings)
    yield Metric(
        "wirelore_findings",
        "Findings of the audit by severity.",
        {(("severity", severity.value),): severities[severity] for severity in Severity},
    )
    places = Counter(labels for found in findings for labels in _places(found))
    yield Metric("wirelore_finding", "Findings at a place: a GPU, a NIC, a node, or all (no labels).", {**places})


def _places(found: Finding) -> set[Labels]:
    """A finding on several GPUs stands at each of them."""
    node = "" if found.node is None else str(found.node)
    where = [(str(ref.node), str(ref.gpu), "") for ref in found.gpus] + [
        (node, "", one_line(nic, _LONGEST_LABEL)) for nic in found.nics
    ]
    return {
        (("code", found.code), ("severity", found.severity.value), ("node", n), ("gpu", gpu), ("nic", nic))
        for n, gpu, nic in where or [(node, "", "")]
    }


def _machine(topology: Topology) -> Iterator[Metric]:
    nodes = Metric("wirelore_node_info", "A node: its position, name and driver.")
    gpus = Metric("wirelore_gpu_info", "A GPU: its model and UUID.")
    usable = Metric("wirelore_gpu_usable", "1 if the GPU answers and may be used.")
    active = Metric("wirelore_nvlinks_active", "NVLinks of the GPU that are up.")
    total = Metric("wirelore_nvlinks", "NVLinks that the GPU has.")
    for position, node in enumerate(topology.nodes):
        at = ("node", str(position))
        nodes.values[(at, ("hostname", node.hostname or ""), ("driver", node.driver_version or ""))] = 1
        for gpu, state in zip(node.shape.gpus, node.gpus, strict=True):
            one = (at, ("gpu", str(gpu.index)))
            about: Labels = (*one, ("name", gpu.name or ""), ("uuid", state.uuid or ""))
            gpus.values[about] = 1
            usable.values[one] = state.is_usable
            for metric, links in ((active, gpu.nvlinks_active), (total, gpu.nvlinks_total)):
                if links is not None:
                    metric.values[one] = links
    sizes: dict[Labels, float] = {
        (("gpus", _gpus(island.members)), ("link", island.bottleneck.label if island.bottleneck else "")): len(
            island.members
        )
        for island in islands(topology)
    }
    size = Metric("wirelore_island_size", "GPUs that a fast fabric joins pairwise, 1 for a GPU alone.", sizes)
    yield from (nodes, gpus, usable, active, total, size)


def _measured(survey: Survey) -> Iterator[Metric]:
    if survey.lab is not None:
        return
    from probe.checks.reading import best_s, busbw, expecting

    reached = Metric(
        "wirelore_busbw_gbps",
        "Bus bandwidth of the largest message in its best round, in 1e9 bytes/s, as nccl-tests counts it.",
    )
    expected = Metric("wirelore_expected_busbw_gbps", "What such wires should give to that message, in 1e9 bytes/s.")
    bar = Metric("wirelore_least_busbw_gbps", "Bus bandwidth of it below which it is a finding, in 1e9 bytes/s.")
    latency = Metric("wirelore_latency_seconds", "Time of a message up to 32 KiB.")
    read, expect = profiles(survey.curves), expecting(survey)
    for curve in survey.curves:
        labels, known = _curve(curve.key, curve.members), read[id(curve)]
        largest = curve.samples[-1]
        size, gbps = largest.size_bytes, busbw(curve, largest.size_bytes, best_s(largest))
        if known.alpha_s is not None:
            latency.values[labels] = max(known.alpha_s, latency.values.get(labels, 0.0))
        if gbps > reached.values.get(labels, gbps):
            continue
        reached.values[labels] = gbps
        should = expect(survey.topology, curve.key, curve.members)
        if should is not None and not curve.key.graph and should.judges(size):
            expected.values[labels], bar.values[labels] = should.at(size), should.bar_at(size)
    rate = Metric("wirelore_rate", "A rate of one GPU, in `unit`.")
    for one in survey.rates:
        shape = "x".join(map(str, one.shape or ()))
        what = (("kind", one.kind), ("dtype", one.dtype or ""), ("shape", shape), ("unit", one.unit))
        labels = (*what, ("node", str(one.gpu.node)), ("gpu", str(one.gpu.gpu)))
        rate.values[labels] = one.value
    yield from (reached, expected, bar, latency, rate)


def _curve(key: CurveKey, members: tuple[GpuRef, ...]) -> Labels:
    """All that tells one curve from another; an empty label is the same as none."""
    return (
        ("operation", key.operation),
        ("gpus", _gpus(members)),
        ("paths", ",".join(f"{n} x {label}" for label, n in key.group.paths)),
        ("groups_at_once", str(key.group.concurrent_groups)),
        ("direction", key.direction or ""),
        ("graph", "yes" if key.graph else ""),
        ("p2p", "off" if key.p2p_enabled is False else ""),
        ("nvls", {True: "on", False: "off", None: ""}[key.nvls]),
        ("dtype", key.dtype),
        ("library", f"{key.backend} {key.library_version or ''}".strip()),
    )


def _gpus(members: tuple[GpuRef, ...]) -> str:
    nodes = dict.fromkeys(ref.node for ref in members)
    return " ".join(f"{node}:{ranges([ref.gpu for ref in members if ref.node == node])}" for node in nodes)


def _epoch_s(iso: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 time; None where it is none."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _written(labels: Labels) -> str:
    """'{code="a",node="0"}'; '' for none."""
    escaped = ((name, text.replace("\\", "\\\\").replace('"', '\\"')) for name, text in labels)
    return "{" + ",".join(f'{name}="{text}"' for name, text in escaped) + "}" if labels else ""
