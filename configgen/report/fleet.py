"""A fleet's audit as lines of up to 100 columns, and as one self-contained page. Pure but for the template."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from configgen.report.table import Line, table
from probe.errors import one_line
from probe.finding import Severity
from probe.fleet_audit import Deviation, FleetAudit, Group, Host, RateKey
from probe.outliers import LEAST
from probe.units import count, figure, message_size, ranges, some

WIDTH = 100
_MOST_HOSTS = 20
_MOST_CODES = 20
_MOST_GROUPS = 12
_MOST_NAMED = 12
_MOST_ON_PAGE = 200


def verdict(fleet: FleetAudit) -> str:
    """One line: '3 of 2,048 machines need a look: 1 with failures, 2 slower than their equals'."""
    total = count(len(fleet.hosts), "machine")
    failing = sum(host.count(Severity.FAILURE) > 0 for host in fleet.hosts)
    warned = sum(host.count(Severity.WARNING) > 0 for host in fleet.hosts)
    odd = sum(len(one.hosts) for one in fleet.odd)
    parts = [
        f"{number:,} {what}"
        for number, what in (
            (failing, "with failures"),
            (len(fleet.outliers), "slower than their equals"),
            (odd, "wired unlike the others"),
            (warned, "with warnings"),
        )
        if number
    ]
    short = sum(len(group.hosts) for group in fleet.groups if group.falls_short)
    parts += [f"{short:,} in groups that fall short as a whole"] if short else []
    unread = f"; {count(len(fleet.unreadable), 'file')} could not be read" if fleet.unreadable else ""
    if not parts:
        return f"{total}: nothing stands out{unread}"
    look = {*fleet.ranked, *(n for group in fleet.groups if group.falls_short for n in group.hosts)}
    return f"{len(look):,} of {total} need a look: {', '.join(parts)}{unread}"


def fleet_lines(fleet: FleetAudit) -> list[Line]:
    """Verdict, the worst machines, what was found how often, odd wiring, groups, files that could not be read."""
    parts = (_head(fleet), _hosts(fleet), _short(fleet), _codes(fleet), _odd(fleet), _groups(fleet), _unread(fleet))
    return [line for part in parts for line in part]


def _head(fleet: FleetAudit) -> Iterator[Line]:
    yield from _wrapped(verdict(fleet), "loud" if fleet.ranked else "title", "")
    yield from (line for text in remarks(fleet) for line in _wrapped(text, "dim"))


def remarks(fleet: FleetAudit) -> Iterator[str]:
    """What to know of how the fleet was judged."""
    measured = sum(host.is_measured for host in fleet.hosts)
    yield f"{measured:,} of them measured, in {count(len(fleet.groups), 'group')} of equal wires"
    small = sum(group.measured for group in fleet.groups if group.measured and not group.is_judged)
    if small:
        yield f"{count(small, 'machine')} in groups of fewer than {LEAST}: judged by what such wires should give alone"
    if fleet.older:
        yield f"{count(fleet.older, 'older survey')} of machines with a newer one left out"
    if fleet.unconfirmed:
        yield f"{count(fleet.unconfirmed, 'more machine')} may be slow: the slowest were looked at closely"
    if any(group.lab for group in fleet.groups):
        yield "LAB FIGURES among them: they are judged apart, and are no GPU's"


def _hosts(fleet: FleetAudit) -> Iterator[Line]:
    worst = fleet.ranked
    if worst:
        yield from (Line(""), Line("The worst first", "title"))
    for n in worst[:_MOST_HOSTS]:
        for number, text in enumerate(reasons(fleet, n)):
            head = f"{one_line(fleet.hosts[n].name, 60)}: " if number == 0 else "  "
            yield from _wrapped(head + text, "warn" if number == 0 else "")
    if len(worst) > _MOST_HOSTS:
        yield Line(f"  and {len(worst) - _MOST_HOSTS:,} more: --format json or html", "dim")


def reasons(fleet: FleetAudit, n: int) -> Iterator[str]:
    """Why a machine is on the list, the gravest first."""
    host = fleet.hosts[n]
    for severity in (Severity.FAILURE, Severity.WARNING):
        found = Counter(finding.code for finding in host.findings if finding.severity is severity)
        codes = [one_line(code, 60) + (f" x {times}" if times > 1 else "") for code, times in found.most_common()]
        if codes:
            yield f"{count(sum(found.values()), severity.value)}: {some(codes)}"
    if own := fleet.by_host.get(n):
        more = f"; and {count(len(own.deviations) - 1, 'more figure')}" if len(own.deviations) > 1 else ""
        yield deviation_text(own.worst) + more
        if other := _unlike(host, fleet):
            yield other
    for odd in fleet.odd:
        if n in odd.hosts:
            here, there = one_line(odd.here), one_line(odd.there)
            yield f"wired unlike {odd.others:,} machines with such GPUs: {here}, those {there}"


def deviation_text(one: Deviation) -> str:
    """'all_reduce of GPUs 0-7: 240 GB/s at 512 MiB, 311 +-2% on 511 equal machines: 23% slower'."""
    at = f" at {message_size(one.size_bytes)}" if one.size_bytes is not None else ""
    value, usual = (f"{figure(x)} {one_line(one.unit, 12)}" for x in (one.value, one.usual))
    return (
        f"{what_text(one)}: {value}{at}, {usual} +-{one.scatter:.0%} on "
        f"{count(one.machines - 1, 'equal machine')}: {1 - one.share:.0%} slower"
    )


def what_text(one: Deviation) -> str:
    """'p2p forward of GPUs 0,1', 'gemm bfloat16 of GPU 3'."""
    nodes = sorted({ref.node for ref in one.members})
    gpus = ranges([ref.gpu for ref in one.members])
    where = f"{'GPU' if len(one.members) == 1 else 'GPUs'} {gpus}" if len(nodes) == 1 else f"nodes {ranges(nodes)}"
    if isinstance(one.subject, RateKey):
        shape = "x".join(map(str, one.subject.shape)) if one.subject.shape else ""
        words: tuple[str | None, ...] = (one.subject.kind, one.subject.dtype, shape)
    else:
        key = one.subject
        at_once = f"x{key.group.concurrent_groups}" if key.group.concurrent_groups > 1 else ""
        graph, without = "graph" if key.graph else "", "no-P2P" if key.p2p_enabled is False else ""
        words = (key.operation, key.direction, graph, without, at_once)
    return f"{' '.join(one_line(word, 24) for word in words if word)} of {where if one.members else 'a group'}"


def _unlike(host: Host, fleet: FleetAudit) -> str | None:
    """Driver or library of a slow machine that most of its equals don't have."""
    equals = next(g for g in fleet.groups if g.fingerprint == host.fingerprint and g.lab == (host.lab is not None))
    told = []
    for name, own in (("driver", host.drivers), ("library", host.libraries)):
        usual = usual_of(fleet, equals, name)
        if own and usual and own != usual:
            told.append(f"{name} {one_line(', '.join(own), 40)}, most equals {one_line(', '.join(usual), 40)}")
    return "; ".join(told) or None


def usual_of(fleet: FleetAudit, group: Group, name: str) -> tuple[str, ...]:
    """What most machines of a group have as 'driver' or 'library'."""
    told = (fleet.hosts[n].drivers if name == "driver" else fleet.hosts[n].libraries for n in group.hosts)
    return Counter(one for one in told if one).most_common(1)[0][0] if any(told) else ()


def _codes(fleet: FleetAudit) -> Iterator[Line]:
    codes = fleet.codes
    if not codes:
        return
    yield from (Line(""), Line("Found, by code", "title"))
    rows = [
        [one_line(code, 40), severity.value, f"{len(hosts):,}", f"{len(hosts) / len(fleet.hosts):.1%}"]
        for code, severity, hosts in codes[:_MOST_CODES]
    ]
    yield from table(("code", "severity", "machines", "share"), rows, texts=2)
    if len(codes) > _MOST_CODES:
        yield Line(f"  and {len(codes) - _MOST_CODES} more: --format json", "dim")


def shortfalls(fleet: FleetAudit) -> Iterator[tuple[str, str]]:
    """(which group, what its typical machine has) of groups that fall short as a whole."""
    for group in fleet.groups:
        if group.falls_short and group.typical is not None:
            found = Counter(finding.code for finding in group.findings if finding.severity is not Severity.INFO)
            codes = [one_line(code, 60) + (f" x {times}" if times > 1 else "") for code, times in found.most_common()]
            typical = one_line(fleet.hosts[group.typical].name, 60)
            yield (
                one_line(group.fingerprint, 24),
                f"{some(codes)}, as on {typical}, the typical one of {len(group.hosts):,}",
            )


def _short(fleet: FleetAudit) -> Iterator[Line]:
    told = list(shortfalls(fleet))
    if told:
        yield from (Line(""), Line("Groups that fall short as a whole", "title"))
    for name, text in told[:_MOST_NAMED]:
        yield from _wrapped(f"{name}: {text}", "warn")
    if len(told) > _MOST_NAMED:
        yield Line(f"  and {len(told) - _MOST_NAMED} more: --format json", "dim")


def _odd(fleet: FleetAudit) -> Iterator[Line]:
    if fleet.odd:
        yield from (Line(""), Line("Wired unlike most machines with such GPUs", "title"))
    for one in fleet.odd[:_MOST_NAMED]:
        names = some([one_line(fleet.hosts[n].name, 40) for n in one.hosts])
        yield from _wrapped(f"{names}: {one_line(one.here)}; {one.others:,} others: {one_line(one.there)}", "warn")
    if len(fleet.odd) > _MOST_NAMED:
        yield Line(f"  and {len(fleet.odd) - _MOST_NAMED} more kinds: --format json", "dim")


def _groups(fleet: FleetAudit) -> Iterator[Line]:
    yield from (Line(""), Line("Groups of equal wires", "title"))
    yield from table(("fingerprint", "machine", "machines", "measured", "slow"), list(group_rows(fleet)), texts=2)
    if len(fleet.groups) > _MOST_GROUPS:
        yield Line(f"  and {len(fleet.groups) - _MOST_GROUPS:,} more: --format json", "dim")


def group_rows(fleet: FleetAudit, most: int = _MOST_GROUPS) -> Iterator[list[str]]:
    for group in fleet.groups[:most]:
        slow = sum(n in fleet.by_host for n in group.hosts)
        told = one_line(fleet.hosts[group.hosts[0]].gpus, 44) + (" (lab)" if group.lab else "")
        late = f"{slow:,}" if group.is_judged else "-"
        yield [one_line(group.fingerprint, 24), told, f"{len(group.hosts):,}", f"{group.measured:,}", late]


def _unread(fleet: FleetAudit) -> Iterator[Line]:
    if fleet.unreadable:
        yield from (Line(""), Line("Could not be read", "title"))
    for _, why in fleet.unreadable[:_MOST_NAMED]:
        yield from _wrapped(one_line(why), "warn")
    if len(fleet.unreadable) > _MOST_NAMED:
        yield Line(f"  and {len(fleet.unreadable) - _MOST_NAMED:,} more: --format json", "dim")


def _wrapped(text: str, role: str = "", indent: str = "  ") -> Iterator[Line]:
    lines = textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent="      ", break_on_hyphens=False)
    yield from (Line(line, role) for line in lines)


@dataclass(frozen=True, slots=True)
class Row:
    """A machine of the page's list. `share` is what it reaches of its equals' speed, in per cent."""

    name: str
    file: str
    gpus: str
    failures: int
    warnings: int
    share: int | None
    reasons: tuple[str, ...]


def fleet_page(fleet: FleetAudit, *, audited_at: str) -> str:
    """One HTML file without scripts and without anything from a network."""
    from configgen.templates import fill_html

    hosts, ranked = fleet.hosts, fleet.ranked
    rows = [
        Row(
            hosts[n].name,
            hosts[n].file,
            hosts[n].gpus,
            hosts[n].count(Severity.FAILURE),
            hosts[n].count(Severity.WARNING),
            round(100 * own.worst.share) if (own := fleet.by_host.get(n)) else None,
            tuple(reasons(fleet, n)),
        )
        for n in ranked[:_MOST_ON_PAGE]
    ]
    return fill_html(
        "fleet.html.j2",
        verdict=verdict(fleet),
        status="bad"
        if any(row.failures or row.share is not None for row in rows)
        else "good"
        if fleet.passes
        else "unsure",
        audited_at=audited_at,
        remarks=list(remarks(fleet)),
        rows=rows,
        left=len(ranked) - len(rows),
        codes=[
            (code, severity.value, len(found), _percent(found, hosts), some([hosts[n].name for n in found], 8))
            for code, severity, found in fleet.codes
        ],
        odd=[(some([hosts[n].name for n in one.hosts]), one.here, one.there, one.others) for one in fleet.odd],
        short=list(shortfalls(fleet)),
        groups=list(group_rows(fleet, _MOST_ON_PAGE)),
        unreadable=fleet.unreadable[:_MOST_ON_PAGE],
        unread=len(fleet.unreadable),
    )


def _percent(some_hosts: Sequence[int], hosts: Sequence[Host]) -> str:
    return f"{len(some_hosts) / len(hosts):.1%}"
