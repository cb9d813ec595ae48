"""What was kept of audits -> versioned JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from probe.drift import Change, Link, MachineHistory, Record, Series, Verdict
from probe.store import to_json

HISTORY_SCHEMA_VERSION = 1


class PointDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit of this number measured. `interval_s` is the 95 % interval of the median time."""

    number: int
    time_s: float
    interval_s: tuple[float, float] | None
    busbw_gbps: float | None
    """None for a start-up time."""


class SeriesDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one link, the oldest first. `size_bytes` is None for the start-up time."""

    link: Link
    size_bytes: int | None
    change: float
    """Relative, from the first to the last: of busbw, or of the start-up time."""
    is_beyond_interval: bool | None
    """None where an interval is unknown, or there is one point alone."""
    verdict: Verdict
    first: PointDocument
    last: PointDocument
    worst: PointDocument
    points: tuple[PointDocument, ...]


class MachineDocument(msgspec.Struct, frozen=True, kw_only=True):
    """All that was kept of one machine."""

    name: str
    nodes: int
    lab: bool
    audits: tuple[Record, ...]
    changes: tuple[Change, ...]
    series: tuple[SeriesDocument, ...]


class HistoryDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `wirelore history --format json` prints."""

    schema_version: int
    machines: tuple[MachineDocument, ...]


def encode_history(machines: Sequence[MachineHistory]) -> bytes:
    """The history document as indented JSON, UTF-8, ending in a newline."""
    return to_json(
        HistoryDocument(
            schema_version=HISTORY_SCHEMA_VERSION,
            machines=tuple(
                MachineDocument(
                    name=one.name,
                    nodes=one.nodes,
                    lab=one.lab,
                    audits=one.records,
                    changes=one.changes,
                    series=tuple(_series(series) for series in one.series),
                )
                for one in machines
            ),
        )
    )


def history_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a history."""
    return msgspec.json.schema(HistoryDocument)


def _series(one: Series) -> SeriesDocument:
    points = {
        point.number: PointDocument(
            number=point.number,
            time_s=point.time_s,
            interval_s=point.interval_s,
            busbw_gbps=one.value(point.time_s) if one.is_bandwidth else None,
        )
        for point in one.points
    }
    return SeriesDocument(
        link=one.link,
        size_bytes=one.size_bytes,
        change=one.change,
        is_beyond_interval=one.is_beyond_interval,
        verdict=one.verdict,
        first=points[one.first.number],
        last=points[one.last.number],
        worst=points[one.worst.number],
        points=tuple(points.values()),
    )
