"""Which of many machines are unlike the machines that are equal to them by description: robustly, and for why. Pure.

A figure (a median time, or a rate of one GPU) is compared with the same figure of the other machines with the same
fingerprint: the median of all, and the median absolute deviation (MAD) as their usual scatter, both of logarithms.
A third of the machines may be broken, and neither moves much (Rousseeuw and Croux, JASA 88, 1993, 1273-1283).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from probe.finding import Finding, Severity
from probe.measurement import CurveKey, Rate, Survey
from probe.statistics import median
from probe.topology import GpuRef

FLOOR = 0.05
"""No plan notices less; the bar at which a figure is called uncertain."""
SCATTERS = 6.0
"""Standard deviations beyond which a figure is no chance. 2,048 machines of 8 GPUs have 250,000 figures to err in."""
LEAST = 4
"""Machines of a group below which nobody is judged by the others: of three, one may be odd or two."""
_NORMAL = 1.4826
"""Standard deviation over MAD, of normally distributed values."""
_ODD_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class RateKey:
    """A rate that GPUs of one model have in common: 'hbm_read', or 'gemm' of one dtype and shape."""

    kind: str
    unit: str
    dtype: str | None = None
    shape: tuple[int, int, int] | None = None


Subject = CurveKey | RateKey
Place = tuple[Subject, tuple[GpuRef, ...]]
"""What was measured, and on which GPUs of the machine."""


@dataclass(frozen=True)
class Host:
    """One survey of the fleet. `times` holds, per place and size, a time in seconds; of a rate (no size) 1 / rate."""

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
    times: Mapping[tuple[Place, int | None], float]
    findings: tuple[Finding, ...] = ()

    @property
    def name(self) -> str:
        return self.hostname or self.file

    @property
    def is_measured(self) -> bool:
        return bool(self.times)

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
    """Machines with one fingerprint. Those measured are judged by each other where there are four or more."""

    fingerprint: str
    hosts: tuple[int, ...]
    measured: int
    lab: bool
    figures: int
    """Figures that could be compared."""

    @property
    def is_judged(self) -> bool:
        return self.figures > 0


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
        """Each code at its gravest, with the machines that have it: the gravest first, then the most frequent."""
        found: dict[str, set[int]] = {}
        worst: dict[str, Severity] = {}
        for n, host in enumerate(self.hosts):
            for finding in host.findings:
                found.setdefault(finding.code, set()).add(n)
                known = worst.setdefault(finding.code, finding.severity)
                worst[finding.code] = max(known, finding.severity, key=lambda s: s.weight)
        order = sorted(found, key=lambda code: (-worst[code].weight, -len(found[code]), code))
        return tuple((code, worst[code], tuple(sorted(found[code]))) for code in order)

    @property
    def passes(self) -> bool:
        """Whether `--strict` ends with 0: every file was read, and nothing is wrong with any machine."""
        return not self.ranked and not self.unreadable and not self.unconfirmed


Confirm = Callable[[int, Sequence[Deviation]], Sequence[Deviation]]
"""Of a machine's deviations those that its own raw times bear out."""


def audit_hosts(
    hosts: Sequence[Host], confirm: Confirm | None = None, *, unreadable: Sequence[tuple[str, str]] = (), most: int = 256
) -> FleetAudit:
    """The fleet, judged. Of several surveys of one machine the newest counts. `confirm` is asked for the `most`
    slowest machines; the others that deviate are only counted."""
    newest, older = _newest(hosts)
    groups, suspects = [], []
    for members in _groups(newest):
        figures, found = _deviating(newest, members)
        measured = sum(newest[n].is_measured for n in members)
        first = newest[members[0]]
        groups.append(Group(first.fingerprint, tuple(members), measured, first.lab is not None, figures))
        suspects += found
    suspects.sort(key=lambda one: (one.worst.share, newest[one.host].name))
    outliers, left = [], 0
    for number, one in enumerate(suspects):
        if confirm is not None and number >= most:
            left += 1
        elif kept := tuple(confirm(one.host, one.deviations) if confirm is not None else one.deviations):
            outliers.append(Outlier(one.host, kept))
    groups.sort(key=lambda group: (-len(group.hosts), group.fingerprint))
    odd = tuple(_odd(newest, groups))
    return FleetAudit(newest, tuple(groups), tuple(outliers), odd, tuple(unreadable), older, left)


def _newest(hosts: Sequence[Host]) -> tuple[tuple[Host, ...], int]:
    """Each machine once: the survey measured last; of a machine whose UUIDs are unknown all."""
    best: dict[object, Host] = {}
    for n, host in enumerate(hosts):
        identity: object = (host.uuids, host.lab is None) if host.uuids else n
        known = best.get(identity)
        if known is None or (host.measured_at or "") > (known.measured_at or ""):
            best[identity] = host
    return tuple(best.values()), len(hosts) - len(best)


def _groups(hosts: Sequence[Host]) -> list[list[int]]:
    found: dict[tuple[str, bool], list[int]] = {}
    for n, host in enumerate(hosts):
        found.setdefault((host.fingerprint, host.lab is not None), []).append(n)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Usual:
    """The middle of the logarithms of equal figures, and their scatter as a standard deviation."""

    middle: float
    scatter: float
    machines: int


def _deviating(hosts: Sequence[Host], group: Sequence[int]) -> tuple[int, list[Outlier]]:
    """How many figures of a group could be compared, and its machines that deviate before anyone looked closely."""
    logs: dict[tuple[Place, int | None], list[float]] = {}
    for n in group:
        for what, time_s in hosts[n].times.items():
            logs.setdefault(what, []).append(math.log(time_s))
    usual: dict[tuple[Place, int | None], _Usual] = {}
    for what, several in logs.items():
        if len(several) >= LEAST:
            middle = median(several)
            scatter = _NORMAL * median([abs(x - middle) for x in several])
            usual[what] = _Usual(middle, scatter, len(several))
    # A few machines agree closely at some figure by chance: what figures of the group scatter by in the middle is
    # then the better word, the more so the fewer machines there are.
    common = median([one.scatter for one in usual.values()]) if usual else 0.0
    limits = {
        what: max(math.log1p(FLOOR), _scatters(one.machines) * max(one.scatter, common)) for what, one in usual.items()
    }
    found = []
    for n in group:
        deviations = tuple(_beyond(hosts[n], usual, limits))
        if deviations:
            found.append(Outlier(n, tuple(sorted(deviations, key=lambda one: one.share))))
    return sum(one.machines for one in usual.values()), found


def _scatters(machines: int) -> float:
    """How many standard deviations are beyond chance: more where few machines tell the scatter. The MAD of n normal
    values is as uncertain as a standard deviation of 0.37 n (its efficiency), and underrates it where n is small."""
    return SCATTERS * (1 + 4 / machines)


def _beyond(
    host: Host, usual: Mapping[tuple[Place, int | None], _Usual], limits: Mapping[tuple[Place, int | None], float]
) -> Iterator[Deviation]:
    """Per place the worst size, where two neighbouring sizes are beyond their limits, or the only one is."""
    places: dict[Place, list[tuple[int | None, float, bool]]] = {}
    for what, time_s in host.times.items():
        if what in usual:
            apart = math.log(time_s) - usual[what].middle
            places.setdefault(what[0], []).append((what[1], apart, apart > limits[what]))
    for place, sizes in places.items():
        late = [beyond for _, _, beyond in sizes]
        if any(late) and (len(sizes) == 1 or any(a and b for a, b in zip(late, late[1:], strict=False))):
            size, apart, _ = max((one for one in sizes if one[2]), key=lambda one: one[1])
            yield _deviation(place, size, apart, usual[place, size])


def _deviation(place: Place, size_bytes: int | None, apart: float, usual: _Usual) -> Deviation:
    from probe.curve import bus_factor

    subject, members = place
    if size_bytes is None or isinstance(subject, RateKey):
        typical = 1 / math.exp(usual.middle)
    else:
        typical = size_bytes * bus_factor(subject.operation, ranks_of(subject)) / math.exp(usual.middle) / 1e9
    scatter = math.expm1(usual.scatter)
    return Deviation(subject, members, size_bytes, typical / math.exp(apart), typical, scatter, usual.machines)


def ranks_of(key: CurveKey) -> int:
    """GPUs of a group of this key: n of its n (n - 1) / 2 paths."""
    return (1 + math.isqrt(1 + 8 * sum(count for _, count in key.group.paths))) // 2


def _odd(hosts: Sequence[Host], groups: Sequence[Group]) -> Iterator[Odd]:
    """Small groups beside a large one with the same models of GPUs: a bridge, a link or a GPU may be missing."""
    for group in groups:
        models = hosts[group.hosts[0]].models
        if not models:
            continue
        alike = [g for g in groups if hosts[g.hosts[0]].models == models and not (g.lab or group.lab)]
        usual = max(alike, key=lambda g: len(g.hosts), default=group)
        few = len(group.hosts) < LEAST or len(group.hosts) <= _ODD_SHARE * len(usual.hosts)
        if usual is not group and few and LEAST <= len(usual.hosts) > 3 * len(group.hosts):
            here, there = hosts[group.hosts[0]], hosts[usual.hosts[0]]
            yield Odd(group.hosts, len(usual.hosts), *_told(here, there))


def _told(here: Host, there: Host) -> tuple[str, str]:
    if here.gpus != there.gpus:
        return here.gpus, there.gpus
    if here.wires != there.wires:
        one, other = dict(here.wires), dict(there.wires)
        labels = sorted({*one, *other}, key=lambda label: (one.get(label) == other.get(label), label))
        differ = [label for label in labels if one.get(label) != other.get(label)]
        return tuple(", ".join(f"{label} x {w.get(label, 0)}" for label in differ) for w in (one, other))  # type: ignore[return-value]
    return "NICs, memory or the places of GPUs unlike", "theirs"


def host_of(survey: Survey, file: str, findings: Sequence[Finding] = ()) -> Host:
    """What the comparison needs of a survey. Raises ValueError where a curve names GPUs that the machine lacks."""
    from probe.islands import fingerprint

    topology = survey.topology
    names = Counter(gpu.name or "GPU of unknown model" for node in topology.nodes for gpu in node.shape.gpus)
    times: dict[tuple[Place, int | None], float] = {}
    for curve in survey.curves:
        for sample in curve.samples:
            times[(curve.key, curve.members), sample.size_bytes] = sample.p50_s
    for rate in survey.rates:
        times[(rate_key(rate), (rate.gpu,)), None] = 1 / rate.value
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
        times=times,
        findings=tuple(findings),
    )


def rate_key(rate: Rate) -> RateKey:
    return RateKey(rate.kind, rate.unit, rate.dtype, rate.shape)


def confirmed(survey: Survey, deviations: Sequence[Deviation]) -> list[Deviation]:
    """Those that stand against the confidence interval of the machine's own raw times; rates have none, and stand."""
    from probe.curve import bus_factor, profiles

    known = profiles(survey.curves)
    at = {(curve.key, curve.members): known[id(curve)] for curve in survey.curves}
    kept = []
    for one in deviations:
        if isinstance(one.subject, RateKey) or one.size_bytes is None:
            kept.append(one)
        elif (read := at.get((one.subject, one.members))) is not None:
            ends = read.read(one.size_bytes).interval_s
            usual_s = one.size_bytes * bus_factor(one.subject.operation, ranks_of(one.subject)) / one.usual / 1e9
            if ends is None or ends[0] > usual_s:
                kept.append(one)
    return kept
