"""What changed from audit to audit, as lines of up to 100 columns. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from configgen.report.table import Line, table
from probe.drift import Change, Link, MachineHistory, Series, Verdict
from probe.errors import one_line
from probe.topology import GpuRef
from probe.units import count, figure, message_size, ranges

WIDTH = 100
_MOST_ROWS = 24
_MOST_CHANGES = 16
_MOST_MACHINES = 20
_TREND = 16
_BARS = "▁▂▃▄▅▆▇█"
_STEADY_FACTS = ("fingerprint", "hostname")
"""What changes with the wires, or is seen in the title."""


def history_lines(machines: Sequence[MachineHistory]) -> list[Line]:
    """Machine by machine: verdict, what changed, the links that drifted first."""
    parts = [_machine(one) for one in machines[:_MOST_MACHINES]]
    lines = [line for n, part in enumerate(parts) for line in ([Line("")] if n else []) + list(part)]
    left = len(machines) - _MOST_MACHINES
    return [*lines, Line(f"and {count(left, 'more machine')}: --format json", "dim")] if left > 0 else lines


def _machine(one: MachineHistory) -> Iterator[Line]:
    records, slower = one.records, one.slower
    measured = sum(record.points > 0 for record in records)
    span = f"{_day(records[0].audited_at)} to {_day(records[-1].audited_at)}"
    head = f"{one_line(one.name, 80)}: {count(len(records), 'audit')} from {span}, {measured} of them with new figures"
    yield from _wrapped(head, "title", "")
    if one.lab:
        yield Line("  LAB FIGURES: CPU ranks stood in for the GPUs", "loud")
    yield Line(f"  {verdict(one)}", "warn" if slower else "")
    yield from _changes(one.changes)
    yield from _findings(one)
    yield from _drift(one)


def verdict(one: MachineHistory) -> str:
    """One line: '2 of 56 links are slower than at first, the worst by 31%'."""
    if not one.series:
        return "nothing was measured: `wirelore measure`, then `wirelore audit --keep`"
    links = {series.link for series in one.series}
    several = {series.link for series in one.series if len(series.points) > 1}
    if not several:
        return f"{count(len(links), 'link')} measured once: nothing to compare yet"
    slow = one.slower
    if slow:
        number = len({series.link for series in slow})
        worst = 1 - slow[0].first.time_s / slow[0].last.time_s
        what = "is" if number == 1 else "are"
        return f"{number} of {count(len(several), 'link')} {what} slower than at first, the worst by {worst:.0%}"
    faster = len({series.link for series in one.series if series.verdict is Verdict.FASTER})
    more = f", {faster} faster" if faster else ""
    return f"none of {count(len(several), 'link')} is slower than at first, beyond what its times tell{more}"


def _changes(changes: Sequence[Change]) -> Iterator[Line]:
    shown = [change for change in changes if change.fact not in _STEADY_FACTS]
    if shown:
        yield from (Line(""), Line("What else changed", "title"))
    for change in shown[-_MOST_CHANGES:]:
        what = "other GPUs of the same kind" if change.fact == "identity" else change.fact
        told = "" if change.fact == "identity" else f": {change.before or 'not told'} -> {change.after or 'not told'}"
        yield from _wrapped(one_line(f"{_day(change.audited_at)}  {what}{told}", 600))
    if len(shown) > _MOST_CHANGES:
        yield Line(f"  and {len(shown) - _MOST_CHANGES} earlier: --format json", "dim")


def _findings(one: MachineHistory) -> Iterator[Line]:
    """Codes that came or went between the first and the last audit."""
    first, last = ({code: severity for code, severity, _ in r.findings} for r in (one.records[0], one.records[-1]))
    for title, codes in (
        ("found now, not at first", sorted(set(last) - set(first))),
        ("found at first, not now", sorted(set(first) - set(last))),
    ):
        if codes and len(one.records) > 1:
            yield from _wrapped(f"{title}: {', '.join(one_line(code, 60) for code in codes)}")


def _drift(one: MachineHistory) -> Iterator[Line]:
    rows = _chosen(one.series)
    if not rows:
        return
    heads = ("link", "GPUs", "at", "unit", "first", "last", "worst", "change", "", "trend")
    yield from (Line(""), Line("Links, the furthest moved first", "title"))
    lines = table(heads, [_row(series) for series in rows[:_MOST_ROWS]], texts=4)
    for line, found in zip(lines, (None, *rows)):  # noqa: B905 - the head, and fewer rows
        bad = found is not None and found.verdict is Verdict.SLOWER
        yield Line(line.text, line.role or ("warn" if bad else ""))
    if len(rows) > _MOST_ROWS:
        yield Line(f"  and {len(rows) - _MOST_ROWS} more: --link A-B, or --format json", "dim")
    yield from _wrapped("~: within the 95 % intervals of both or closer than 5 %; ?: an interval is unknown", "dim")


def _chosen(series: Sequence[Series]) -> list[Series]:
    """What moved beyond doubt; of each link also its largest size of several audits, and its start-up time."""
    shown: list[Series] = []
    largest: dict[Link, Series] = {}
    for one in series:
        if one.is_bandwidth and not one.link.graph:
            best = largest.get(one.link)
            if best is None or (len(one.points) > 1, one.size_bytes or 0) > (
                len(best.points) > 1,
                best.size_bytes or 0,
            ):
                largest[one.link] = one
    for one in series:
        moved = one.verdict in (Verdict.SLOWER, Verdict.FASTER)
        usual = one.size_bytes is None if one.link.graph else largest.get(one.link) is one
        if moved or usual:
            shown.append(one)
    return sorted(
        shown, key=lambda s: (s.verdict is not Verdict.SLOWER, s.verdict is not Verdict.FASTER, -abs(s.change))
    )


def _row(one: Series) -> list[str]:
    said = {Verdict.SLOWER: "slower", Verdict.FASTER: "faster", Verdict.STEADY: "~", Verdict.UNKNOWN: "?"}
    return [
        way(one.link),
        gpus(one.link.members),
        "start" if one.size_bytes is None else message_size(one.size_bytes),
        "us" if one.size_bytes is None else "GB/s",
        *(shown(one, point.time_s) for point in (one.first, one.last, one.worst)),
        f"{one.change:+.0%}" if len(one.points) > 1 else "",
        said[one.verdict] if len(one.points) > 1 else "once",
        sparkline([one.value(point.time_s) for point in one.points]),
    ]


def shown(one: Series, time_s: float) -> str:
    """A point's value in the unit of its column."""
    return figure(one.value(time_s) * (1 if one.is_bandwidth else 1e6))


def way(link: Link) -> str:
    """'all_reduce', 'p2p both no-P2P', 'all_reduce graph x2'."""
    marks = (
        link.direction or "",
        "graph" if link.graph else "",
        "no-P2P" if link.p2p_enabled is False else "",
        "NVLS" if link.nvls else "",
        f"x{link.concurrent_groups}" if link.concurrent_groups > 1 else "",
    )
    return " ".join(one_line(word, 16) for word in (link.operation, *marks) if word)


def gpus(members: Sequence[GpuRef]) -> str:
    """'0-1' of a pair, as --link takes it; '0,1,4-7', or '1:0-2:0' where the nodes are not one."""
    nodes = sorted({m.node for m in members})
    if len(members) == 2:
        return "-".join(f"{m.gpu}" if nodes == [0] else f"{m.node}:{m.gpu}" for m in members)
    if len(nodes) > 1:
        return f"{len(members)} on nodes {ranges(nodes)}"
    return (f"{nodes[0]}:" if nodes[0] else "") + ranges([m.gpu for m in members])


def sparkline(values: Sequence[float]) -> str:
    """One bar per value, from the least to the most; of many values the last of each of 16 equal parts."""
    n = len(values)
    parts = min(n, _TREND)
    some = [values[(i + 1) * n // parts - 1] for i in range(parts)]
    low, high = min(values), max(values)
    # A trend within 2 % is drawn flat: bars that fill their height would show noise as if it were news.
    room = max(high - low, 0.02 * high)
    middle = (high + low - room) / 2
    return "".join(_BARS[min(len(_BARS) - 1, int((v - middle) / room * len(_BARS)))] for v in some)


def _day(moment: str) -> str:
    return one_line(moment[:10], 10)


def _wrapped(text: str, role: str = "", indent: str = "  ") -> Iterator[Line]:
    lines = textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent="      ", break_on_hyphens=False)
    yield from (Line(line, role) for line in lines)
