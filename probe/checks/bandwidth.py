"""Each curve against what its wires should give, size by size, by its best round. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from probe.checks.expectation import Expectation
from probe.checks.group import Group
from probe.checks.reach import NVLS_LEAST_RANKS
from probe.checks.reading import Reading, best_s, busbw, finding, label, named
from probe.curve import SMALL_BYTES
from probe.finding import Finding, Severity
from probe.links import LIBRARY_ALPHA_S
from probe.measurement import Curve, Sample
from probe.stability import instabilities
from probe.units import count, figure, message_size, seconds, some

GOOD_HOST = 0.7
"""Of the expectation of PCIe, below which other hosts with the same boards do better."""
SMALLER_SIZES = 0.9
"""Of the bar, at sizes below a curve's largest: between two protocols NCCL's choice costs some percent (177 of 188 GB/s
at 128 MiB on 8 A100 that reach 229, ml-engineering)."""
SLOW_START = 5
"""Times what public figures have for a start-up: hosts and versions of NCCL are up to three-fold apart in them."""
_MOST_NAMED = 3


def bandwidth(reading: Reading) -> Iterator[Finding]:
    """Below the bar; within it and below good hosts; slow to start; without NVLS; unstable."""
    for curve in reading.curves:
        expected = reading.expected(curve)
        if expected is None:
            continue
        missed = [s for s in curve.samples if _misses(curve, s, expected)]
        if missed:
            yield _below(reading, curve, expected, missed)
        else:
            yield from _below_good_hosts(reading, curve, expected)
        yield from _slow_start(reading, curve)
    yield from _without_nvls(reading)
    yield from _unstable(reading)


def _misses(curve: Curve, sample: Sample, expected: Expectation, *, without_nvls: bool = False) -> bool:
    if sample.size_bytes <= SMALL_BYTES:  # its time is start-up alone
        return False
    share = 1.0 if sample is curve.samples[-1] else SMALLER_SIZES
    return expected.is_missed(sample.size_bytes, best_s(sample), share=share, without_nvls=without_nvls)


def _below(reading: Reading, curve: Curve, expected: Expectation, missed: list[Sample]) -> Finding:
    """A failure where the largest size misses the bar in two rounds; one round alone, or smaller sizes alone, and what
    lacks NVLS alone, are warnings."""
    worst = max(missed, key=lambda s: best_s(s) * expected.bar_at(s.size_bytes) / s.size_bytes)
    value, bar = busbw(curve, worst.size_bytes, best_s(worst)), expected.bar_at(worst.size_bytes)
    largest = curve.samples[-1]
    ring_alone = expected.nvls and not any(_misses(curve, s, expected, without_nvls=True) for s in missed)
    once = all(len(s.rounds_s) < 2 for s in missed)
    size = message_size(worst.size_bytes)
    seen = f"{label(curve)} of {named(curve.members, reading.topology)} reaches {figure(value)} GB/s at {size}"
    if len(curve.samples) > 1:
        seen += f", below the bar at {len(missed)} of {count(len(curve.samples), 'size')}"
    cure = None
    if ring_alone and reading.nvls_used is None:
        seen += "; as a ring it would do, so NVLS may be what is missing"
        cure = "Look for 'NVLS multicast support' in NCCL's log; Fabric Manager and NCCL 2.18 or newer are needed."
    if once:
        seen += "; seen once"
        cure = f"Measure again (`wirelore measure --fresh`): one bad pass proves little. {cure or ''}".rstrip()
    grave = not once and largest in missed and not (ring_alone and reading.nvls_used is None)
    return finding(
        "below-expectation",
        seen,
        severity=Severity.FAILURE if grave else Severity.WARNING,
        cure=cure,
        expected=(
            f"{figure(expected.at(worst.size_bytes))} GB/s, no less than {figure(bar)}: {expected.words}",
            expected.source,
        ),
        gpus=curve.members,
        judged=(value, bar, "GB/s"),
    )


def _below_good_hosts(reading: Reading, curve: Curve, expected: Expectation) -> Iterator[Finding]:
    """Within what hosts make of PCIe, but much less than others do with the same boards."""
    largest = curve.samples[-1]
    value = busbw(curve, largest.size_bytes, best_s(largest))
    usual = expected.at(largest.size_bytes)
    is_host = "host" in expected.words and curve.key.p2p_enabled is not False
    if is_host and expected.judges(largest.size_bytes) and value < GOOD_HOST * usual:
        yield finding(
            "below-good-hosts",
            f"{label(curve)} of {named(curve.members, reading.topology)} reaches {figure(value)} GB/s",
            expected=(f"{figure(usual)} GB/s on good hosts: {expected.words}", expected.source),
            gpus=curve.members,
            judged=(value, GOOD_HOST * usual, "GB/s"),
        )


def _slow_start(reading: Reading, curve: Curve) -> Iterator[Finding]:
    """Small all-reduces of a single group, whose time is start-up alone."""
    small = [best_s(s) for s in curve.samples if s.size_bytes <= SMALL_BYTES]
    if not small or curve.key.operation != "all_reduce" or curve.key.group.concurrent_groups > 1:
        return
    alpha_s, group = min(small), Group(reading.topology, curve.members)
    is_fast = group.slowest is not None and group.slowest.is_fast
    wires = "NET" if group.crosses_network else "NVLINK" if is_fast else "PCIE"
    base_s, rank_s = LIBRARY_ALPHA_S[wires]
    usual_s = base_s + rank_s * curve.ranks
    if alpha_s > SLOW_START * usual_s:
        yield finding(
            "slow-start",
            f"{label(curve)} of {named(curve.members, reading.topology)} takes {seconds(alpha_s)} for small messages",
            expected=(f"about {seconds(usual_s)}", "public tables of nccl-tests (aiconfigurator, vidur)"),
            gpus=curve.members,
            judged=(alpha_s * 1e6, SLOW_START * usual_s * 1e6, "us"),
        )


def _without_nvls(reading: Reading) -> Iterator[Finding]:
    if reading.nvls_used is not False:
        return
    for curve in reading.curves:
        key = curve.key
        able = len(curve.members) >= NVLS_LEAST_RANKS and Group(reading.topology, curve.members).can_nvls
        if able and key.operation == "all_reduce" and not key.graph and key.p2p_enabled is not False:
            off = dict(reading.survey.environment).get("NCCL_NVLS_ENABLE") == "0"
            yield finding(
                "nvls-absent",
                f"NCCL reduced without NVLS on {named(curve.members, reading.topology)}, behind a switch that has it",
                expected=("all-reduces in the switch, about 1.3 times as fast as a ring", "NCCL, src/graph/tuning.cc"),
                severity=Severity.INFO if off else None,
                gpus=curve.members,
            )
            return


def _unstable(reading: Reading) -> Iterator[Finding]:
    """Each kind of instability once, with the curves that have it."""
    kinds: dict[str, list[tuple[float, str, str, str]]] = {}
    for curve in reading.curves:
        who = f"{label(curve)} of {named(curve.members, reading.topology)}"
        for one in instabilities(curve, reading.profiles[id(curve)]):
            kinds.setdefault(one.code, []).append((one.worst, one.seen, one.cure, who))
    for code, cases in kinds.items():
        cases.sort(key=lambda case: -case[0])
        _, seen, cure, _ = cases[0]
        curves = some(list(dict.fromkeys(who for *_, who in cases)), _MOST_NAMED)
        yield finding("unstable-figures", f"{code}: {seen} ({curves})", cure=cure)
