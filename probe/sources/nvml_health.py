"""How well the GPUs are, from the driver's facts: counters to compare later, and what a person should know now. Pure.

Counters say little alone: their growth over a run tells. What is a fault at any time, or changes what a measurement
means (a power cap, somebody else's processes), becomes a notice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from probe.sources.nvml_facts import Facts
from probe.sources.nvml_reader import C2C_ERRORS, ECC_TOTALS, LINK_ERRORS, LINK_ERRORS_5, MAX_GPUS, SRAM_ERRORS
from probe.topology import GpuRef, Notice, PcieLink
from probe.units import gigabytes, ranges

if TYPE_CHECKING:
    from probe.measurement import HealthSnapshot

_COUNTERS = (*ECC_TOTALS, "pcie.replays")
_COUNTERS_BY_NAME = {  # whatever else a recording may hold under these facts is none
    "ecc.sram": ("ecc.sram", frozenset(SRAM_ERRORS) - {"threshold_exceeded"}),
    "link.errors": ("link", frozenset((*LINK_ERRORS, *LINK_ERRORS_5))),
    "c2c.errors": ("c2c", frozenset(C2C_ERRORS)),
}
_ROWS = ("corrected", "uncorrected", "pending", "failed")  # as nvmlDeviceGetRemappedRows returns them
# GB10 hangs on C2C and reports a Gen1 x1 port that does not exist (nvtop#499).
_HAS_NO_PCIE = re.compile(r"\bGB10\b")
_RECOVERY = {  # nvmlDeviceGpuRecoveryAction_t: what the driver asks for, and how it is done
    1: ("a GPU reset", "Stop what runs on it, then `nvidia-smi --gpu-reset -i N`."),
    2: ("a reboot of the node", "Drain the node and reboot it."),
    3: ("P2P to be drained", "Stop the jobs that use P2P with it, then look again."),
    4: ("P2P to be drained and a GPU reset", "Stop all jobs on its NVLink peers, then `nvidia-smi --gpu-reset -i N`."),
    5: ("a recovery of the IMEX domain", "Restart nvidia-imex on all nodes of the domain."),
    6: ("a reset of its PCIe bus", "Drain the node and reset the GPU's bus, or reboot."),
    7: ("a reboot of the system", "Drain the node and reboot it."),
}
_THROTTLES = {  # nvmlClocksEventReasons: those that mean trouble; a software power cap under load is ordinary
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x08: "hardware slowdown",
}
_HW_SLOWDOWN = 0x08  # the sum of the two others of the hardware, or power drawn too fast
_COMPUTE_MODES = {1: "exclusive to a thread", 2: "prohibited", 3: "exclusive to one process"}  # nvmlComputeMode_t
_MILLIWATTS = 1000

_T = TypeVar("_T")


def health_snapshots(facts: Facts, *, taken_at: str) -> tuple[HealthSnapshot, ...]:
    """Per GPU the counters that could be read, under the names of their facts: 'pcie.replays', 'link.3.replay'.

    `taken_at` is ISO 8601. A GPU that tells no counter has no snapshot.
    """
    from probe.measurement import HealthSnapshot  # late: who only probes measures nothing

    told: dict[int, dict[str, int]] = {i: {} for i in _all(facts)}
    for fact, at in facts.readings:
        if at and at[0] in told:
            told[at[0]].update(_counters(facts, fact, at))
    return tuple(
        HealthSnapshot(GpuRef(0, i), taken_at, tuple(sorted(counters.items())))
        for i, counters in told.items()
        if counters
    )


def _counters(facts: Facts, fact: str, at: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    if fact in _COUNTERS and (number := facts.number(fact, *at)) is not None:
        yield fact, number
    elif fact == "rows":
        yield from zip(("rows.corrected", "rows.uncorrected"), facts.numbers("rows", *at), strict=False)
    elif fact in _COUNTERS_BY_NAME:
        prefix, names = _COUNTERS_BY_NAME[fact]
        prefix = ".".join((prefix, *map(str, at[1:])))
        for name, value in facts.fields(fact, *at).items():
            if name in names and type(value) is int and value >= 0:
                yield f"{prefix}.{name}", value


def pcie_link(facts: Facts, i: int) -> PcieLink | None:
    """The GPU's PCIe port; None where it tells none, or one that cannot be true."""
    facets = ("pcie.generation", "pcie.generation_max", "pcie.width", "pcie.width_max")
    generation, generation_max, width, width_max = (facts.number(f, i) or None for f in facets)
    # No GPU was ever built with a Gen1 x1 port.
    invented = (generation_max or generation) == 1 and (width_max or width) == 1
    link = PcieLink(generation, generation_max, width, width_max)
    if invented or link == PcieLink() or _HAS_NO_PCIE.search(facts.text("name", i) or ""):
        return None
    return link


def state_notices(facts: Facts, *, under_load: bool = False) -> tuple[Notice, ...]:
    """What is wrong or in the way now, the gravest first. `under_load`: the GPUs work, so the PCIe generation counts,
    which drops when idle."""
    gpus = [i for i in _all(facts) if facts.reading("read", i).value is True]
    return (
        *_recovery(facts, gpus),
        *_memory_errors(facts, gpus),
        *_pcie(facts, gpus, under_load),
        *_throttled(facts, gpus),
        *_power_capped(facts, gpus),
        *_compute_mode(facts, gpus),
        *_busy(facts, gpus),
        *_persistence(facts, gpus),
    )


def _recovery(facts: Facts, gpus: Sequence[int]) -> Iterator[Notice]:
    actions = {i: facts.number("recovery_action", i) or 0 for i in gpus}
    for action, members in _alike(actions):
        if action:
            what, cure = _RECOVERY.get(action, (f"recovery action {action}", "Reset the GPU or reboot."))
            yield Notice("recovery-needed", f"the driver asks for {what} of {_gpus(members)}: expect failures. {cure}")


def _memory_errors(facts: Facts, gpus: Sequence[int]) -> Iterator[Notice]:
    rows = {i: dict(zip(_ROWS, facts.numbers("rows", i), strict=False)) for i in gpus}
    failed = [i for i in gpus if rows[i].get("failed")]
    pending = [i for i in gpus if rows[i].get("pending")]
    pages = [i for i in gpus if facts.number("pages.pending", i) == 1]
    uncorrected = {i: n for i in gpus if (n := facts.number("ecc.uncorrected.volatile", i))}
    worn = [i for i in gpus if facts.fields("ecc.sram", i).get("threshold_exceeded") == 1]
    if failed:
        what = f"{_gpus(failed)} could not remap a bad row of memory: none is left to take its place"
        yield Notice("row-remap-failed", f"{what}. Take it out of service and have it replaced (RMA).")
    if uncorrected:
        seen = ", ".join(f"{n:,} on GPU {i}" for i, n in uncorrected.items())
        cure = "Look for Xid 48, 63, 94, 95 in dmesg and reset the GPU; if it comes again, have it serviced."
        yield Notice("ecc-uncorrected", f"uncorrected ECC errors since the driver was loaded: {seen}. {cure}")
    if worn:
        what = f"{_gpus(worn, 'counts', 'count')} more SRAM errors than the vendor's threshold"
        yield Notice("sram-errors", f"{what}. Run the field diagnostic, and have it replaced if that fails.")
    if pending:
        what = f"{_gpus(pending, 'waits', 'wait')} to remap a bad row of memory, which stays in use until then"
        yield Notice("row-remap-pending", f"{what}. Stop what runs there and reset the GPU (`nvidia-smi --gpu-reset`).")
    if pages:
        what = f"{_gpus(pages, 'waits', 'wait')} to retire a bad page of memory, which stays in use until then"
        yield Notice("page-retirement-pending", f"{what}. Stop what runs there, then reset the GPU or reboot.")


def _pcie(facts: Facts, gpus: Sequence[int], under_load: bool) -> Iterator[Notice]:
    links = {i: link for i in gpus if (link := pcie_link(facts, i))}
    widths = {i: (p.width, p.width_max) for i, p in links.items() if p.width and p.width_max and p.width < p.width_max}
    for (width, most), members in _alike(widths):
        what = f"{_gpus(members, 'runs', 'run')} at PCIe x{width} of x{most}"
        yield Notice("pcie-narrow", f"{what}: so much less bandwidth. Reseat the board or riser; check the slot.")
    slow = {
        i: (p.generation, p.generation_max)
        for i, p in links.items()
        if under_load and p.generation and p.generation_max and p.generation < p.generation_max
    }
    for (generation, newest), members in _alike(slow):
        what = f"{_gpus(members, 'runs', 'run')} at PCIe Gen{generation} of Gen{newest} under load"
        yield Notice("pcie-slow", f"{what}: half the bandwidth per step. Check slot, riser and the firmware's setting.")


def _throttled(facts: Facts, gpus: Sequence[int]) -> Iterator[Notice]:
    reasons = {i: (facts.number("clocks.reasons", i) or 0) & sum(_THROTTLES) for i in gpus}
    for bits, members in _alike(reasons):
        if bits:
            names = [name for bit, name in _THROTTLES.items() if bits & bit]
            cure = "Check cooling, power supplies and cables (`nvidia-smi -q -d PERFORMANCE,TEMPERATURE`)."
            if bits == _HW_SLOWDOWN:
                cure = f"It may be a passing change of state, so probe again. {cure}"
            what = f"{_gpus(members, 'throttles', 'throttle')} now ({', '.join(names)})"
            yield Notice("throttled", f"{what}: measurements and serving are slower than the hardware. {cure}")


def _power_capped(facts: Facts, gpus: Sequence[int]) -> Iterator[Notice]:
    caps: dict[int, tuple[int, int]] = {}
    for i in gpus:
        default = facts.number("power.limit_default", i) or 0
        limits = [n for fact in ("power.limit", "power.limit_enforced") if (n := facts.number(fact, i))]
        if limits and min(limits) // _MILLIWATTS < default // _MILLIWATTS:
            caps[i] = (min(limits) // _MILLIWATTS, default // _MILLIWATTS)
    for (cap, default), members in _alike(caps):
        what = f"{_gpus(members, 'is', 'are')} capped at {cap} W, the default is {default} W"
        yield Notice("power-capped", f"{what}: compute is slower. If that is not meant: `nvidia-smi -pl {default}`.")


def _compute_mode(facts: Facts, gpus: Sequence[int]) -> Iterator[Notice]:
    for mode, members in _alike({i: facts.number("compute_mode", i) or 0 for i in gpus}):
        if mode in _COMPUTE_MODES:
            what = f"the compute mode of {_gpus(members)} is {_COMPUTE_MODES[mode]}"
            means = "no process can use it" if mode == 2 else "a second process there fails"
            yield Notice("compute-mode", f"{what}: {means}. `nvidia-smi -c DEFAULT` (as root) allows all.")


def _busy(facts: Facts, gpus: Sequence[int]) -> Iterator[Notice]:
    """Neither the reader nor its parent computes, so every process that is told belongs to somebody else."""
    held = []
    for i in gpus:
        used = _processes(facts.reading("processes", i).value)
        if used:
            known = [n for n in used if n is not None]
            who = "1 process holds" if len(used) == 1 else f"{len(used):,} processes hold"
            held.append(f"{who} {gigabytes(sum(known)) if known else 'an untold part'} of GPU {i}")
    if held:
        cure = "Plan on what is free or on other GPUs, measure when they are done (`nvidia-smi` lists them)."
        yield Notice("gpu-busy", f"{', '.join(held)}: less memory, and disturbed measurements. {cure}")


def _processes(told: object) -> list[int | None]:
    """Bytes per process, as [[pid, bytes or null], ...] tells them."""
    pairs = told if isinstance(told, list | tuple) else ()
    pairs = [p for p in pairs if isinstance(p, list | tuple) and len(p) == 2]
    return [p[1] if type(p[1]) is int and p[1] >= 0 else None for p in pairs]


def _persistence(facts: Facts, gpus: Sequence[int]) -> Iterator[Notice]:
    off = [i for i in gpus if facts.number("persistence", i) == 0]
    if off:
        what = f"persistence mode of {_gpus(off)} is off: the driver unloads when idle, so starts are slow"
        yield Notice("persistence-off", f"{what}, and limits and counters are forgotten. Enable nvidia-persistenced.")


def _all(facts: Facts) -> range:
    return range(min(facts.number("count") or 0, MAX_GPUS))


def _alike(values: Mapping[int, _T]) -> Iterable[tuple[_T, list[int]]]:
    """Each value with the GPUs that have it."""
    groups: dict[_T, list[int]] = {}
    for i, value in values.items():
        groups.setdefault(value, []).append(i)
    return groups.items()


def _gpus(gpus: Sequence[int], one: str = "", many: str = "") -> str:
    """([3], 'runs', 'run') -> 'GPU 3 runs'; several: 'GPUs 0-7 run'."""
    return f"GPU{'s' if len(gpus) > 1 else ''} {ranges(tuple(gpus))} {many if len(gpus) > 1 else one}".rstrip()
