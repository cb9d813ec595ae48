"""Figures of two machines beside each other: measured ones at common sizes, else what stands for them. Pure.

B's speed over A's at one size is only as good as both 95 % intervals. The two are apart where these are disjoint and
the medians differ by more than a plan notices; where they are not, and the intervals leave more open than public
figures do, nothing is known. One size may be apart by chance: three in a row, or more than half of them, are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log, sqrt

from configgen.comparison import Contrast, Difference, Effect, Kind, Ratio, State, Told
from configgen.rates import Rates, rates_of
from configgen.wires import BORROWED_UNCERTAINTY, Reading, Wires
from probe.curve import SMALL_BYTES, Profile, bus_factor, profiles
from probe.islands import GroupShape, bottleneck, islands
from probe.measurement import Curve, Survey
from probe.stability import WIDE
from probe.statistics import median
from probe.topology import PCIE_KINDS, GpuRef, PathKind, Provenance, Topology
from probe.units import figure, message_size

LARGE_BYTES = 4 << 20
"""From here on bytes rule: at 200 GB/s they take 20 us, more than any collective inside a node takes to start."""

SIZES = (SMALL_BYTES, 64 << 20)
"""Where figures that nobody measured are compared."""

_IN_A_ROW = 3
_LARGEST_GROUP = 8
_GPUS_ASKED = 64
_FAST = tuple(kind.value for kind in PathKind if kind.is_fast)
_NO_INTERVAL = BORROWED_UNCERTAINTY
"""Relative half-width of a size that was timed once: it may be anything that public figures may be."""

Labels = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What two curves must agree in to be of one thing; their paths may differ."""

    kind: Kind
    operation: str
    ranks: int
    nodes: int
    at_once: int
    graph: bool
    direction: str | None
    p2p: bool
    backend: str

    def subject(self, ours: Labels, theirs: Labels, sizes: Sequence[int]) -> str:
        paths = dict.fromkeys(",".join(label for label, _ in labels) for labels in (ours, theirs))
        marks = (self.direction or "", "in a graph" if self.graph else "", "" if self.p2p else "without P2P")
        of = f"{self.ranks} GPUs" + (f" x{self.at_once}" if self.at_once > 1 else "")
        ends = " to ".join(dict.fromkeys((message_size(sizes[0]), message_size(sizes[-1]))))
        what = " ".join(word for word in (self.operation, *marks) if word)
        return f"{what} of {of} on {' / '.join(paths)}, {ends}"


def kind_of(group: GroupShape) -> Kind:
    """What the group's slowest path is."""
    if all(label.startswith("NV") or label in _FAST for label, _ in group.paths):
        return Kind.ISLAND
    return Kind.NETWORK if any(label == PathKind.NET.value for label, _ in group.paths) else Kind.PCIE


def measured(a: Survey, b: Survey) -> Iterator[Contrast]:
    """What was timed on both: an operation of as many GPUs on the same kind of path, by size of message."""
    ours, theirs = _curves(a), _curves(b)
    for asked in ours:
        for labels, reads in ours[asked].items():
            others = theirs.get(asked, {})
            if not others:
                continue
            like = labels if labels in others else max(others, key=_slowness)
            yield from _over_sizes(asked, (labels, reads), (like, others[like]))


def unmatched(a: Survey, b: Survey) -> dict[Kind, tuple[int, ...]]:
    """Sizes of groups that were timed on A and have no like on B, by kind."""
    ours, theirs = ({(asked.kind, asked.ranks) for asked in map(_asked, s.curves)} for s in (a, b))
    left = sorted(ours - theirs, key=lambda pair: pair[1])
    return {kind: tuple(n for k, n in left if k is kind) for kind, _ in left}


def _curves(survey: Survey) -> dict[_Asked, dict[Labels, list[Profile]]]:
    read, found = profiles(survey.curves), dict[_Asked, dict[Labels, list[Profile]]]()
    for curve in survey.curves:
        found.setdefault(_asked(curve), {}).setdefault(curve.key.group.paths, []).append(read[id(curve)])
    return found


def _asked(curve: Curve) -> _Asked:
    key = curve.key
    return _Asked(
        kind_of(key.group),
        key.operation,
        curve.ranks,
        key.group.nodes,
        key.group.concurrent_groups,
        key.graph,
        key.direction,
        key.p2p_enabled is not False,
        key.backend,
    )


def _slowness(labels: Labels) -> tuple[int, int]:
    """The worst label decides."""
    kinds = {kind.value: kind for kind in PathKind}
    worst = max((kinds[label].distance for label, _ in labels if label in kinds), default=0)
    links = min((int(label[2:]) for label, _ in labels if label[:2] == "NV" and label[2:].isdecimal()), default=0)
    return worst, -links


def _over_sizes(
    asked: _Asked, ours: tuple[Labels, list[Profile]], theirs: tuple[Labels, list[Profile]]
) -> Iterator[Contrast]:
    common = [
        size
        for size in sorted({s for read in ours[1] for s in read.sizes_bytes})
        if any(read.sizes_bytes[0] <= size <= read.sizes_bytes[-1] for read in theirs[1])
    ]
    for low, high, affects in (
        (0, SMALL_BYTES, (Effect.LATENCY,)),
        (SMALL_BYTES + 1, LARGE_BYTES - 1, (Effect.LATENCY, Effect.BANDWIDTH)),
        (LARGE_BYTES, 1 << 60, (Effect.BANDWIDTH,)),
    ):
        sizes = [size for size in common if low <= size <= high]
        if sizes:
            yield _contrast(asked, affects, sizes, ours, theirs)


def _contrast(
    asked: _Asked,
    affects: tuple[Effect, ...],
    sizes: list[int],
    ours: tuple[Labels, list[Profile]],
    theirs: tuple[Labels, list[Profile]],
) -> Contrast:
    pairs = [(_slowest(ours[1], size), _slowest(theirs[1], size)) for size in sizes]
    speeds, halves, states = [], [], []
    for (t_a, low_a, high_a), (t_b, low_b, high_b) in pairs:
        speed, low, high = t_a / t_b, low_a / high_b, high_a / low_b
        apart = abs(log(speed)) > log(1 + WIDE) and (high < 1 or low > 1)
        open_ = low < 1 / (1 + BORROWED_UNCERTAINTY) or high > 1 + BORROWED_UNCERTAINTY
        states.append(State.APART if apart else State.UNSURE if open_ else State.SAME)
        speeds.append(speed)
        halves.append((high - low) / 2 / speed)
    ratio = Ratio(median(speeds), min(speeds), max(speeds), median(halves))
    told = [
        Told(_figures(asked, affects, sizes, [pair[side][0] for pair in pairs]), Provenance.MEASURED) for side in (0, 1)
    ]
    state = _state(states)
    subject = asked.subject(ours[0], theirs[0], sizes)
    difference = Difference(subject, told[0], told[1], affects, ratio, state is State.SAME)
    return Contrast(asked.kind, ratio, state, difference, Provenance.MEASURED)


def _state(states: Sequence[State]) -> State:
    longest = run = 0
    for state in states:
        run = run + 1 if state is State.APART else 0
        longest = max(longest, run)
    if longest >= min(_IN_A_ROW, len(states)) or 2 * states.count(State.APART) > len(states):
        return State.APART
    return State.UNSURE if 2 * states.count(State.UNSURE) > len(states) else State.SAME


def _slowest(reads: Iterable[Profile], size: int) -> tuple[float, float, float]:
    """(time, lower end, upper end) of the slowest group: what can be counted on."""
    within = [read.read(size) for read in reads if read.sizes_bytes[0] <= size <= read.sizes_bytes[-1]]
    slow = max(within, key=lambda r: r.time_s)
    low, high = slow.interval_s or (slow.time_s / (1 + _NO_INTERVAL), slow.time_s * (1 + _NO_INTERVAL))
    return slow.time_s, low, high


def _figures(asked: _Asked, affects: tuple[Effect, ...], sizes: list[int], times_s: list[float]) -> str:
    """Of small messages times, of others bus bandwidths; at the first and last size."""
    if affects == (Effect.LATENCY,):
        ends, unit = [t * 1e6 for t in times_s], "us"
    else:
        factor = bus_factor(asked.operation, asked.ranks)
        ends, unit = [factor * s / t / 1e9 for s, t in zip(sizes, times_s, strict=True)], "GB/s"
    return f"{' to '.join(dict.fromkeys(map(figure, (ends[0], ends[-1]))))} {unit}"


def representative(topology: Topology, kind: Kind) -> tuple[GpuRef, ...] | None:
    """GPUs whose slowest path is of this kind: a whole island up to 8, or the worst pair; None: there are none."""
    if kind is Kind.ISLAND:
        island = next((i for i in islands(topology) if len(i.members) > 1), None)
        return island.members[:_LARGEST_GROUP] if island else None
    if kind is Kind.NETWORK:
        first = GpuRef(0, 0)
        others = (GpuRef(n, 0) for n, node in enumerate(topology.nodes) if n and node.gpus)
        far = next((o for o in others if topology.nodes[0].gpus and topology.path(first, o).kind is PathKind.NET), None)
        return (first, far) if far else None
    worst: tuple[tuple[int, int], GpuRef, GpuRef] | None = None
    seen: set[int] = set()
    for n, node in enumerate(topology.nodes):
        if id(node.shape) in seen:
            continue
        seen.add(id(node.shape))
        for a, b, path in node.shape.pairs:
            usable = node.gpus[a].is_usable and node.gpus[b].is_usable
            if not path.is_fast and usable and (worst is None or path.slowness > worst[0]):
                worst = path.slowness, GpuRef(n, a), GpuRef(n, b)
    return worst[1:] if worst else None


def path_label(topology: Topology, group: Sequence[GpuRef]) -> str:
    slowest = bottleneck(topology.path(a, b) for i, a in enumerate(group) for b in group[i + 1 :])
    return slowest.label if slowest else ""


def estimated(a: Survey, b: Survey, kind: Kind) -> tuple[Contrast, ...]:
    """An all-reduce of the same number of GPUs on both, small and large: measured where it was, else public figures."""
    groups = representative(a.topology, kind), representative(b.topology, kind)
    if groups[0] is None or groups[1] is None:
        return ()
    n = min(map(len, groups))  # type: ignore[arg-type]
    readings = []
    for survey, group in zip((a, b), groups, strict=True):
        assert group is not None
        wires = Wires(survey)
        readings.append([wires.seconds("all_reduce", group[:n], size) for size in SIZES])
    paths = dict.fromkeys(path_label(s.topology, g or ()) for s, g in zip((a, b), groups, strict=True))
    found = []
    for at, effect in enumerate((Effect.LATENCY, Effect.BANDWIDTH)):
        ours, theirs = readings[0][at], readings[1][at]
        subject = f"all_reduce of {n} GPUs on {' / '.join(paths)}, {message_size(SIZES[at])}"
        told = [Told(_reading(r, effect), r.provenance) for r in (ours, theirs)]
        found.append(_of_values(kind, subject, (effect,), told, (ours.seconds, theirs.seconds), (ours, theirs)))
    return tuple(found)


def _reading(r: Reading, effect: Effect) -> str:
    return f"{figure(r.seconds * 1e6)} us" if effect is Effect.LATENCY else f"{figure(r.busbw_gbps)} GB/s"


def _of_values(
    kind: Kind,
    subject: str,
    affects: tuple[Effect, ...],
    told: Sequence[Told],
    seconds: tuple[float, float],
    sure: tuple[Reading | Rates, Reading | Rates],
) -> Contrast:
    """Two single figures: apart by more than both leave open, or not."""
    speed = seconds[0] / seconds[1]
    half = sqrt(sum(one.uncertainty**2 for one in sure))
    state = State.SAME if abs(log(speed)) <= log(1 + WIDE) else State.APART if abs(log(speed)) > half else State.UNSURE
    ratio = Ratio(speed, speed, speed, half)
    weakest = max((one.provenance for one in sure), key=[*Provenance].index)
    difference = Difference(subject, told[0], told[1], affects, ratio, state is State.SAME)
    return Contrast(kind, ratio, state, difference, weakest)


def rates(a: Survey, b: Survey) -> tuple[Contrast, ...]:
    """Memory and matrix rates: those that both measured in one way, else what a plan takes for each."""
    ours, theirs = _medians(a), _medians(b)
    found = []
    for key in [key for key in ours if key in theirs]:
        kind, unit, dtype, shape = key
        name = " ".join(filter(None, (kind, dtype, "x".join(map(str, shape)) if shape else "")))
        told = [Told(f"{figure(of[key])} {unit}", Provenance.MEASURED) for of in (ours, theirs)]
        speed = theirs[key] / ours[key]
        state = State.APART if abs(log(speed)) > log(1 + WIDE) else State.SAME
        ratio = Ratio(speed, speed, speed, WIDE)
        difference = Difference(name, told[0], told[1], (Effect.COMPUTE,), ratio, state is State.SAME)
        found.append(Contrast(Kind.COMPUTE, ratio, state, difference, Provenance.MEASURED))
    return tuple(found) or _taken(a, b)


def _medians(survey: Survey) -> dict[tuple[str, str, str | None, tuple[int, int, int] | None], float]:
    """Over the GPUs of a model; of several models the slowest, for it bounds a group."""
    values: dict[tuple[str, str, str | None, tuple[int, int, int] | None], dict[str | None, list[float]]] = {}
    for rate in survey.rates:
        if rate.kind in ("hbm_read", "gemm"):  # what decides a forward pass; copies to the host do not
            key = (rate.kind, rate.unit, rate.dtype, rate.shape)
            values.setdefault(key, {}).setdefault(survey.topology.gpu(rate.gpu).name, []).append(rate.value)
    return {key: min(map(median, of.values())) for key, of in values.items()}


def _taken(a: Survey, b: Survey) -> tuple[Contrast, ...]:
    taken = [rates_of(survey, _asked_gpus(survey)) for survey in (a, b)]
    found = []
    for name, unit, scale, values in (
        ("memory rate in kernels", "GB/s", 1e9, [r.memory_bytes_per_s for r in taken]),
        ("matrix rate, 16 bits", "TFLOPS", 1e12, [r.half_ops_per_s for r in taken]),
    ):
        told = [Told(f"{figure(v / scale)} {unit}", r.provenance) for v, r in zip(values, taken, strict=True)]
        seconds = 1 / values[0], 1 / values[1]
        found.append(_of_values(Kind.COMPUTE, name, (Effect.COMPUTE,), told, seconds, (taken[0], taken[1])))
    return tuple(found)


def _asked_gpus(survey: Survey) -> list[GpuRef]:
    """One GPU of each model, and some of those that were measured."""
    topology = survey.topology
    models: dict[str | None, GpuRef] = {}
    seen: set[int] = set()
    for n, node in enumerate(topology.nodes):
        if id(node.shape) not in seen:
            seen.add(id(node.shape))
            for gpu in node.shape.gpus:
                models.setdefault(gpu.name, GpuRef(n, gpu.index))
    timed = list(dict.fromkeys(rate.gpu for rate in survey.rates))[:_GPUS_ASKED]
    return [*models.values(), *timed]


def has(topology: Topology, kind: Kind) -> bool:
    return representative(topology, kind) is not None


def crosses(labels: Iterable[str]) -> Kind | None:
    """The worst kind of wires that these paths are, by their labels; None where all are fast."""
    found = set(labels)
    if PathKind.NET.value in found:
        return Kind.NETWORK
    return Kind.PCIE if found & {kind.value for kind in (*PCIE_KINDS, PathKind.UNKNOWN)} else None
