"""What was measured, as lines of up to 100 columns for whoever stands at the machine at 3 a.m. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from configgen.report.lines import gpus_line, islands_line
from configgen.report.pairs import pair_lines
from configgen.report.table import Line, table
from probe.curve import Profile, bus_factor, profiles
from probe.errors import one_line
from probe.measurement import Curve, CurveKey, Rate, Survey
from probe.stability import WIDE, Instability, instabilities
from probe.statistics import median
from probe.topology import GpuRef, Topology
from probe.units import count, figure, message_size, ranges, some

WIDTH = 100
_KNEE_BYTES = 512 << 10
_MOST_ROWS = 48
_MOST_NOTICES = 12
_GRAVE = ("wrong-data", "unlike-its-twins")
_OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p")


def survey_lines(survey: Survey) -> list[Line]:
    """Header, curves, pairs, rates, what is unstable and its cure, what is missing, what was really used."""
    known = profiles(survey.curves)
    parts = (
        _header(survey),
        _curves(survey, known),
        pair_lines(survey, known),
        _rates(survey.rates, survey.topology),
        _verified(survey),
        _unstable(survey.curves, known),
        _missing(survey),
        _evidence(survey),
    )
    return [line for part in parts for line in part]


@dataclass(frozen=True, slots=True)
class _Measured:
    """Curves of one key: groups that should be equally fast. `slowest`, of those with the largest size, is what a plan
    can count on."""

    key: CurveKey
    curves: tuple[tuple[Curve, Profile], ...]

    @property
    def slowest(self) -> tuple[Curve, Profile]:
        largest = max(read.sizes_bytes[-1] for _, read in self.curves)
        whole = [one for one in self.curves if one[1].sizes_bytes[-1] == largest]
        return min(whole, key=lambda one: one[1].plateau_busbw_gbps)


def _header(survey: Survey) -> Iterator[Line]:
    title = one_line(f"{gpus_line(survey.topology)}; {islands_line(survey.topology)}")
    yield from (Line(text, "title") for text in textwrap.wrap(title, WIDTH, subsequent_indent="  "))
    if survey.lab is not None:
        yield from _wrapped(f"LAB FIGURES, not of these GPUs: {one_line(survey.lab)}", "loud")
    if survey.is_measured:
        when = f"measured {one_line(survey.measured_at, 40)}" if survey.measured_at else "measured"
        versions = dict.fromkeys(f"{c.key.backend} {c.key.library_version or ''}".strip() for c in survey.curves)
        types = dict.fromkeys(c.key.dtype for c in survey.curves)
        drivers = dict.fromkeys(f"driver {d}" for node in survey.topology.nodes if (d := node.driver_version))
        yield from _wrapped(one_line(", ".join((when, *versions, *types, *drivers))))
    else:
        yield Line("nothing was measured", "warn")
    for origin in survey.origins[:_MOST_NOTICES]:
        yield from _wrapped(one_line(f"{origin.provenance.value}: {origin.source}"), "dim")


def _curves(survey: Survey, profiles: dict[int, Profile]) -> Iterator[Line]:
    if not survey.curves:
        return
    by_key: dict[CurveKey, list[tuple[Curve, Profile]]] = {}
    for curve in survey.curves:
        by_key.setdefault(curve.key, []).append((curve, profiles[id(curve)]))
    found = sorted((_Measured(key, tuple(curves)) for key, curves in by_key.items()), key=_place)
    heads = ("operation", "GPUs", "paths", "alpha us", "512 KiB us", "busbw GB/s", "n-half", "+-", "n")
    yield from _section("Curves")
    yield from table(heads, [_row(one) for one in found[:_MOST_ROWS]], texts=3)
    if len(found) > _MOST_ROWS:
        yield Line(f"  and {len(found) - _MOST_ROWS} more: --format json", "dim")
    shown = [text for one in found if (text := _differing(one, survey.topology)) is not None]
    yield from (line for text in shown[:_MOST_NOTICES] for line in _wrapped(text, "warn"))
    marks = ["x2: two such groups at once", "+-: half the 95 % interval of a median time", "n: times per size"]
    if any(one.key.operation == "p2p" for one in found):
        marks.append("p2p both: GB/s each way")
    if any(one.slowest[1].is_rising for one in found if not one.key.graph):
        marks.append(">: still rising at the largest size")
    if any(one.slowest[1].alpha_is_fitted for one in found):
        marks.append("~: fitted, no size up to 32 KiB")
    yield from _wrapped("; ".join(marks), "dim")


def _place(one: _Measured) -> tuple[int, int, int, int, str, bool, str]:
    key, ranks = one.key, one.curves[0][0].ranks
    operation = _OPERATIONS.index(key.operation) if key.operation in _OPERATIONS else len(_OPERATIONS)
    at_once = key.group.concurrent_groups
    return operation, key.group.nodes, ranks, at_once, str(key.group.paths), key.graph, key.direction or ""


def _row(one: _Measured) -> list[str]:
    curve, found = one.slowest
    alpha = "-" if found.alpha_s is None else ("~" if found.alpha_is_fitted else "") + figure(found.alpha_s * 1e6)
    knee = found.read(_KNEE_BYTES)
    widths = [
        (hi - lo) / 2 / t for t, ends in zip(found.times_s, found.intervals_s, strict=True) if ends for lo, hi in [ends]
    ]
    at_once = one.key.group.concurrent_groups
    nodes = f" {one.key.group.nodes} nodes" if one.key.group.nodes > 1 else ""
    plateau = (">" if found.is_rising else "") + figure(found.plateau_busbw_gbps)
    return [
        _what(one.key),
        f"{curve.ranks}" + (f" x{at_once}" if at_once > 1 else ""),
        one_line(",".join(label for label, _ in one.key.group.paths), 16 - len(nodes)) + nodes,
        alpha,
        "-" if knee.extrapolated else figure(knee.time_s * 1e6),
        "-" if one.key.graph else plateau,
        "-" if one.key.graph else message_size(round(found.n_half_bytes)),
        f"{median(widths):.0%}" if widths else "?",
        f"{median([s.n for s in curve.samples]):.0f}",
    ]


def _what(key: CurveKey) -> str:
    """'all_reduce', 'all_reduce graph', 'p2p both no-P2P'."""
    marks = ("graph" if key.graph else "", "no-P2P" if key.p2p_enabled is False else "", "NVLS" if key.nvls else "")
    return " ".join(word for word in (one_line(key.operation, 16), one_line(key.direction or "", 8), *marks) if word)


def _differing(one: _Measured, topology: Topology) -> str | None:
    """What to say where groups that should be equal are not: beyond their confidence, and further than a plan would
    notice, at the largest size that all of them have. Pairs are judged in their own matrix."""
    common = set.intersection(*(set(read.sizes_bytes) for _, read in one.curves))
    if one.key.operation == "p2p" or not common or len(one.curves) < 2:
        return None
    size = max(common)
    at_size = sorted(((read.read(size), curve) for curve, read in one.curves), key=lambda found: found[0].time_s)
    (best, fast), (worst, slow) = at_size[0], at_size[-1]
    if best.interval_s is None or worst.interval_s is None:
        return None
    if worst.interval_s[0] <= best.interval_s[1] or worst.time_s <= best.time_s * (1 + WIDE):
        return None
    gbps = [size * bus_factor(one.key.operation, fast.ranks) / read.time_s / 1e9 for read in (worst, best)]
    return (
        f"{count(len(one.curves), 'group')} of {_what(one.key)}: {_gpus(slow.members, topology)} reach "
        f"{figure(gbps[0])} GB/s at {message_size(size)}, {_gpus(fast.members, topology)} {figure(gbps[1])}"
    )


def _gpus(members: Sequence[GpuRef], topology: Topology) -> str:
    if len(topology.nodes) == 1:
        return f"GPUs {ranges([m.gpu for m in members])}"
    nodes = sorted({m.node for m in members})
    if len(nodes) > 1:
        return f"nodes {ranges(nodes)}"
    return f"node {nodes[0]} GPUs {ranges([m.gpu for m in members])}" if nodes else "some GPUs"


def _rates(rates: Sequence[Rate], topology: Topology) -> Iterator[Line]:
    if not rates:
        return
    kinds: dict[tuple[str, str], dict[GpuRef, float]] = {}
    for rate in rates:
        shape = f" {'x'.join(map(str, rate.shape))}" if rate.shape else ""
        name = f"{rate.kind}{f' {rate.dtype}' if rate.dtype else ''}{shape}"
        kinds.setdefault((one_line(name, 34), one_line(rate.unit, 10)), {})[rate.gpu] = rate.value
    yield from _section("Rates of each GPU" + ("" if len(topology.nodes) == 1 else ", of all nodes"))
    late = {kind: [gpu for gpu in sorted(values) if _is_slow(gpu, values, topology)] for kind, values in kinds.items()}
    gpus = sorted({gpu for values in kinds.values() for gpu in values})
    rows = [
        [*kind, *(figure(values[g]) + "*" * (g in late[kind]) if g in values else "-" for g in gpus)]
        for kind, values in kinds.items()
    ]
    lines = list(table(("rate", "unit", *(f"GPU{g.gpu}" for g in gpus)), rows, texts=2))
    if len(topology.nodes) > 1 or max(len(line.text) for line in lines) > WIDTH:
        rows = [
            [*kind, figure(median(list(values.values()))), figure(min(values.values())), figure(max(values.values()))]
            for kind, values in kinds.items()
        ]
        lines = list(table(("rate", "unit", "median", "least", "most"), rows, texts=2))
    yield from lines
    slow = [f"{name} of {_gpu(gpu, topology)}" for (name, _), several in late.items() for gpu in several]
    if slow:
        yield from _wrapped(f"*: more than {WIDE:.0%} below equal GPUs: {some(slow)}", "warn")


def _is_slow(gpu: GpuRef, values: dict[GpuRef, float], topology: Topology) -> bool:
    model = topology.gpu(gpu).name
    return values[gpu] < (1 - WIDE) * median([v for g, v in values.items() if topology.gpu(g).name == model])


def _verified(survey: Survey) -> Iterator[Line]:
    wrong = [v for v in survey.verifications if not v.passed]
    if survey.verifications:
        yield from _section("P2P, written and read back")
        good = len(survey.verifications) - len(wrong)
        yield Line(
            f"  {count(good, 'direction')} right" + (f", {len(wrong):,} WRONG" if wrong else ""),
            "loud" if wrong else "",
        )
    for v in wrong[:_MOST_NOTICES]:
        text = f"{_gpu(v.source, survey.topology)} -> {_gpu(v.target, survey.topology)}: {v.detail or 'wrong data'}"
        yield from _wrapped(one_line(text), "loud")


def _gpu(ref: GpuRef, topology: Topology) -> str:
    return f"GPU {ref.gpu}" if len(topology.nodes) == 1 else f"node {ref.node} GPU {ref.gpu}"


def _unstable(curves: Sequence[Curve], known: Mapping[int, Profile]) -> Iterator[Line]:
    """Each kind of instability once: the curves that have it, what was seen at the worst of them, and the cure."""
    found: dict[str, list[tuple[Instability, str]]] = {}
    for curve in curves:
        for one in instabilities(curve, known[id(curve)]):
            sizes = len(one.sizes_bytes)
            where = message_size(one.sizes_bytes[0]) if sizes == 1 else f"{sizes} sizes"
            found.setdefault(one.code, []).append((one, f"{_what(curve.key)} of {curve.ranks} GPUs ({where})"))
    if found:
        yield from _section("Unstable")
    for code, cases in found.items():
        cases.sort(key=lambda case: -case[0].worst)
        labels = some(list(dict.fromkeys(label for _, label in cases)), 3)
        yield from _wrapped(f"{code}: {cases[0][0].seen}: {labels}", "warn")
        yield from _wrapped(f"  {cases[0][0].cure}", "dim")


def _missing(survey: Survey) -> Iterator[Line]:
    if survey.missing:
        yield from _section("Missing, and what to know")
    for notice in sorted(survey.missing, key=lambda n: n.code not in _GRAVE)[:_MOST_NOTICES]:
        role = "loud" if notice.code in _GRAVE else "warn"
        yield from _wrapped(one_line(f"{notice.code}: {notice.message}", 600), role)
    if len(survey.missing) > _MOST_NOTICES:
        yield Line(f"  and {len(survey.missing) - _MOST_NOTICES} more: --format json", "dim")


def _evidence(survey: Survey) -> Iterator[Line]:
    found: dict[tuple[str, str], list[str]] = {}
    for one in survey.evidence:
        values = found.setdefault((one_line(one.operation, 20), one_line(one.what, 20)), [])
        values += [one_line(one.value, 60)]
    if found:
        yield from _section("Really used")
    for (operation, what), values in list(found.items())[: 2 * _MOST_NOTICES]:
        yield from _wrapped(f"{operation} {what}: {some(list(dict.fromkeys(values)), 8)}")


def _section(title: str) -> Iterable[Line]:
    return (Line(""), Line(title, "title"))


def _wrapped(text: str, style: str = "") -> Iterator[Line]:
    lines = textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    yield from (Line(line, style) for line in lines)
