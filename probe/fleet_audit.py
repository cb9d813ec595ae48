"""What is told of a fleet: its machines, groups of equal ones, and which of them are unlike their equals. Frozen."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from probe.finding import Finding, Severity
from probe.islands import fingerprint
from probe.measurement import CurveKey, Survey
from probe.topology import GpuRef


@dataclass(frozen=True, slots=True)
class RateKey:
    """A rate that GPUs of one model have in common: 'hbm_read', or 'gemm' of one dtype and shape."""

    kind: str
    unit: str
    dtype: str | None = None
    shape: tuple[int, int, int] | None = None


Subject = CurveKey | RateKey


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured, on which GPUs of a machine, at which size; a rate has none."""

    subject: Subject
    members: tuple[GpuRef, ...]
    size_bytes: int | None


class Points:
    """The points of a fleet, numbered: equal ones of thousands of machines are one."""

    def __init__(self) -> None:
        self.all: list[Point] = []
        self.places: list[int] = []
        """Of each point: points that differ in their size alone have one place."""
        self._places: dict[tuple[Subject, tuple[GpuRef, ...]], tuple[int, dict[int | None, int]]] = {}

    def numbers(
        self, subject: Subject, members: tuple[GpuRef, ...], sizes_bytes: Sequence[int | None]
    ) -> Iterator[int]:
        """Those of one place at these sizes."""
        place, known = self._places.setdefault((subject, members), (len(self._places), {}))
        for size_bytes in sizes_bytes:
            number = known.setdefault(size_bytes, len(self.all))
            if number == len(self.all):
                self.all.append(Point(subject, members, size_bytes))
                self.places.append(place)
            yield number

    def adopted(self, others: Points) -> list[int]:
        """The numbers that another list's points have here."""
        return [n for one in others.all for n in self.numbers(one.subject, one.members, (one.size_bytes,))]


@dataclass(frozen=True)
class Host:
    """One survey of the fleet. `seen` are numbers of points, and `times_s` their median times; of a rate 1 / rate."""

    file: str
    hostname: str | None
    fingerprint: str
    gpus: str
    """In words: '8 x NVIDIA H100 80GB HBM3'."""
    models: tuple[str, ...]
    """Which models it has, each once; how many GPUs does not count."""
    wires: tuple[tuple[str, int], ...]
    """How often each kind of path joins two of its GPUs."""
    drivers: tuple[str, ...]
    libraries: tuple[str, ...]
    uuids: frozenset[str]
    measured_at: str | None
    lab: str | None
    seen: array[int]
    times_s: array[float]
    findings: tuple[Finding, ...] = ()

    @property
    def name(self) -> str:
        return self.hostname or self.file

    @property
    def is_measured(self) -> bool:
        return len(self.seen) > 0

    def count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Deviation:
    """A figure that is beyond chance slower than the same of equal machines.

    `value` and `usual` are busbw in 1e9 bytes/s, or the rate in its unit; `share` is value / usual. `scatter` is what
    the others differ by, as a relative standard deviation; `machines` are all that the median is of.
    """

    subject: Subject
    members: tuple[GpuRef, ...]
    size_bytes: int | None
    value: float
    usual: float
    scatter: float
    machines: int

    @property
    def share(self) -> float:
        return self.value / self.usual

    @property
    def unit(self) -> str:
        return self.subject.unit if isinstance(self.subject, RateKey) else "GB/s"


@dataclass(frozen=True, slots=True)
class Outlier:
    """A machine (its place in the fleet) with the figures that are unlike its equals', the slowest first; per place
    the worst size."""

    host: int
    deviations: tuple[Deviation, ...]

    @property
    def worst(self) -> Deviation:
        return self.deviations[0]


@dataclass(frozen=True, slots=True)
class Odd:
    """Machines wired unlike most machines with the same GPUs: what they have and what those have, in words."""

    hosts: tuple[int, ...]
    others: int
    here: str
    there: str


@dataclass(frozen=True, slots=True)
class Group:
    """Machines with one fingerprint. Those measured are judged by each other where there are four or more; then
    `typical` is the one nearest to the median of all, and `findings` what all figures of that one say: of every
    machine that is like it."""

    fingerprint: str
    hosts: tuple[int, ...]
    measured: int
    lab: bool
    typical: int | None
    findings: tuple[Finding, ...] = ()

    @property
    def is_judged(self) -> bool:
        return self.typical is not None

    @property
    def falls_short(self) -> bool:
        return any(finding.severity is not Severity.INFO for finding in self.findings)


@dataclass(frozen=True)
class FleetAudit:
    """All that is told of a fleet. `unreadable` are (file, why); `older` are surveys of machines with a newer one."""

    hosts: tuple[Host, ...]
    groups: tuple[Group, ...]
    outliers: tuple[Outlier, ...]
    odd: tuple[Odd, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    older: int = 0
    unconfirmed: int = 0
    """Machines that may be slow too, and were not looked at closely."""
    by_host: Mapping[int, Outlier] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_host", {one.host: one for one in self.outliers})

    @property
    def worth_a_closer_look(self) -> tuple[int, ...]:
        """Machines that all their figures are to be asked of: those that stand out, those that no equals judge, and
        of each group the typical one."""
        alone = (n for group in self.groups if not group.is_judged for n in group.hosts if self.hosts[n].is_measured)
        typical = (group.typical for group in self.groups if group.typical is not None)
        return tuple(sorted({*self.by_host, *alone, *typical}))

    def looked_at(self, findings: Mapping[int, tuple[Finding, ...]]) -> FleetAudit:
        """With what those said. What the typical machine of a group has, its group has: it is told of no single one."""
        hosts = list(self.hosts)
        groups = []
        for group in self.groups:
            common = findings.get(group.typical, ()) if group.typical is not None else ()
            own = hosts[group.typical].findings if group.typical is not None else ()
            shared = tuple(finding for finding in common if finding not in own)
            codes = {finding.code for finding in shared}
            groups.append(replace(group, findings=shared))
            for n in group.hosts:
                if n in findings and n != group.typical:
                    told = tuple(found for found in findings[n] if found.code not in codes)
                    hosts[n] = replace(hosts[n], findings=told)
        return replace(self, hosts=tuple(hosts), groups=tuple(groups))

    @property
    def ranked(self) -> tuple[int, ...]:
        """The machines that something is wrong with, the worst first: failures, then how slow, then warnings."""
        odd = {n for one in self.odd for n in one.hosts}

        def gravity(n: int) -> tuple[float, ...]:
            own = self.by_host.get(n)
            host = self.hosts[n]
            slow = own.worst.share if own else 1.0
            return (-host.count(Severity.FAILURE), slow, -(n in odd), -host.count(Severity.WARNING))

        wrong = [n for n in range(len(self.hosts)) if gravity(n) != (0, 1.0, 0, 0)]
        return tuple(sorted(wrong, key=lambda n: (gravity(n), self.hosts[n].name)))

    @property
    def codes(self) -> tuple[tuple[str, Severity, tuple[int, ...]], ...]:
        """Each code at its gravest, with the machines that have it, by themselves or as their group has: the gravest
        first, then the most frequent."""
        found: dict[str, set[int]] = {}
        worst: dict[str, Severity] = {}
        told = [((n,), host.findings) for n, host in enumerate(self.hosts)]
        for hosts, findings in [*told, *((group.hosts, group.findings) for group in self.groups)]:
            for finding in findings:
                found.setdefault(finding.code, set()).update(hosts)
                known = worst.setdefault(finding.code, finding.severity)
                worst[finding.code] = max(known, finding.severity, key=lambda s: s.weight)
        order = sorted(found, key=lambda code: (-worst[code].weight, -len(found[code]), code))
        return tuple((code, worst[code], tuple(sorted(found[code]))) for code in order)

    @property
    def passes(self) -> bool:
        """Whether `--strict` ends with 0: every file was read, and nothing is wrong with any machine."""
        short = any(group.falls_short for group in self.groups)
        return not (self.ranked or short or self.unreadable or self.unconfirmed)


def host_of(survey: Survey, file: str, points: Points, findings: Sequence[Finding] = ()) -> Host:
    """What the comparison needs of a survey."""
    topology = survey.topology
    names = Counter(gpu.name or "GPU of unknown model" for node in topology.nodes for gpu in node.shape.gpus)
    seen, times_s = array("L"), array("d")
    for curve in survey.curves:
        seen.extend(points.numbers(curve.key, curve.members, [sample.size_bytes for sample in curve.samples]))
        times_s.extend(sample.p50_s for sample in curve.samples)
    for rate in survey.rates:
        seen.extend(points.numbers(RateKey(rate.kind, rate.unit, rate.dtype, rate.shape), (rate.gpu,), (None,)))
        times_s.append(1 / rate.value)
    return Host(
        file=file,
        hostname=topology.nodes[0].hostname,
        fingerprint=fingerprint(topology),
        gpus=", ".join(f"{n} x {name}" for name, n in names.items()),
        models=tuple(sorted(names)),
        wires=tuple(sorted(Counter(path.label for node in topology.nodes for path in node.shape.paths).items())),
        drivers=tuple(sorted({node.driver_version for node in topology.nodes if node.driver_version})),
        libraries=tuple(sorted({f"{c.key.backend} {c.key.library_version or '?'}" for c in survey.curves})),
        uuids=frozenset(gpu.uuid for node in topology.nodes for gpu in node.gpus if gpu.uuid is not None),
        measured_at=survey.measured_at,
        lab=survey.lab,
        seen=seen,
        times_s=times_s,
        findings=tuple(findings),
    )


def renumbered(host: Host, numbers: Sequence[int]) -> Host:
    """The same host, its points numbered as another list has them."""
    return replace(host, seen=array("L", [numbers[number] for number in host.seen]))
