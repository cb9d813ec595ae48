"""Compute and memory rates of each GPU, and what the runs really used, as rows of a page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probe.errors import one_line
from probe.measurement import Survey
from probe.stability import WIDE
from probe.statistics import median
from probe.topology import GpuRef, Topology
from probe.units import count, figure, some

_MOST_GPUS = 16
_MOST_KINDS = 24
_MOST_VALUES = 40


@dataclass(frozen=True, slots=True)
class RateRow:
    """One kind of rate: (figure, whether it is far below equal GPUs) of each GPU, or median, least and most."""

    name: str
    unit: str
    values: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class RateTable:
    heads: tuple[str, ...]
    rows: tuple[RateRow, ...]
    slow: str | None


def rate_table(survey: Survey) -> RateTable | None:
    """None where no rate was measured."""
    kinds: dict[tuple[str, str], dict[GpuRef, float]] = {}
    for rate in survey.rates:
        shape = f" {' x '.join(map(str, rate.shape))}" if rate.shape else ""
        name = one_line(f"{rate.kind}{f' {rate.dtype}' if rate.dtype else ''}{shape}", 48)
        kinds.setdefault((name, one_line(rate.unit, 12)), {})[rate.gpu] = rate.value
    gpus = sorted({gpu for values in kinds.values() for gpu in values})
    if not gpus:
        return None
    late = {kind: _slow(values, survey.topology) for kind, values in kinds.items()}
    named = [f"{name} of {_name(gpu, survey.topology)}" for (name, _), slow in late.items() for gpu in slow]
    told = f"More than {WIDE:.0%} below equal GPUs: {some(named)}" if named else None
    if len(gpus) <= _MOST_GPUS:
        heads = tuple(_name(gpu, survey.topology) for gpu in gpus)
        cells = {
            kind: tuple((figure(values[gpu]), gpu in late[kind]) if gpu in values else ("", False) for gpu in gpus)
            for kind, values in kinds.items()
        }
    else:
        heads = ("median", "least", "most")
        cells = {
            kind: tuple((figure(value), False) for value in (median(every), min(every), max(every)))
            for kind, values in kinds.items()
            if (every := list(values.values()))
        }
    rows = tuple(RateRow(*kind, cells[kind]) for kind in [*kinds][:_MOST_KINDS])
    return RateTable(heads, rows, told)


def used_rows(survey: Survey) -> list[tuple[str, str]]:
    """What was used, from the libraries' own logs; what was set; and whether data arrived whole."""
    rows: dict[str, dict[str, None]] = {}
    for one in survey.evidence:
        rows.setdefault(one_line(f"{one.operation} {one.what}", 48), {})[one_line(one.value, 120)] = None
    for name, value in survey.environment[:_MOST_VALUES]:
        rows.setdefault(one_line(name, 48), {})[one_line(value, 200)] = None
    if survey.verifications:
        wrong = [v for v in survey.verifications if not v.passed]
        told = f"{count(len(survey.verifications) - len(wrong), 'direction')} right"
        rows["P2P, written and read back"] = {told + (f", {len(wrong):,} wrong" if wrong else ""): None}
    for notice in survey.missing[:_MOST_VALUES]:
        rows.setdefault("missing", {})[one_line(notice.message, 400)] = None
    return [(name, "; ".join([*values][:12])) for name, values in [*rows.items()][:_MOST_VALUES]]


def _slow(values: dict[GpuRef, float], topology: Topology) -> Sequence[GpuRef]:
    models = {gpu: topology.gpu(gpu).name for gpu in values}
    usual = {name: median([v for gpu, v in values.items() if models[gpu] == name]) for name in set(models.values())}
    return [gpu for gpu in sorted(values) if values[gpu] < (1 - WIDE) * usual[models[gpu]]]


def _name(gpu: GpuRef, topology: Topology) -> str:
    return f"GPU {gpu.gpu}" if len(topology.nodes) == 1 else f"{gpu.node}:{gpu.gpu}"
