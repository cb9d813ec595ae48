"""PCIe ports against the card's own, and peer access that the driver refuses. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from probe.checks.view import View, ends, gpus, grouped, pairs
from probe.finding import Finding, Severity
from probe.topology import P2pStatus, PathKind

_REFUSALS = frozenset(P2pStatus) - {P2pStatus.OK, P2pStatus.UNKNOWN}
_NEAR = (PathKind.PIX, PathKind.PXB)
_DRIVER_SOURCE = "NVML, the width that device and system can have (nvmlDeviceGetMaxPcieLinkWidth)"
_P2P_SOURCE = "NVIDIA, CUDA C++ Programming Guide, Peer-to-Peer Memory Access; GPUs under one PCIe switch"


def pcie(view: View) -> Iterator[Finding]:
    """Of one node. A vGPU's port is the hypervisor's."""
    if "vg" not in (view.node.virtualization or ""):
        yield from _narrow(view)
        yield from _older_host(view)
    yield from _refused(view)


@dataclass(frozen=True, slots=True)
class _Port:
    """How wide a port runs and should, and the generations that were read with it."""

    width: int
    wanted: int
    words: str
    source: str
    generation: int | None
    generation_max: int | None


def _narrow(view: View) -> Iterator[Finding]:
    """The width counts always. A low generation alone is a card at rest; where lanes are missing too it is told with
    them, for then the slot may be at fault in both."""
    for port, members in grouped({i: p for i in view.whole if (p := _port(view, i)) and p.width < p.wanted}).items():
        beside = ""
        if port.generation and port.generation_max and port.generation < port.generation_max:
            beside = f", Gen{port.generation} of Gen{port.generation_max} when it was read (idle cards drop it)"
        yield view.found(
            "pcie-narrow",
            f"{gpus(members, 'runs', 'run')} at PCIe x{port.width} of x{port.wanted}{beside}",
            gpus=members,
            fact="gpus.pcie",
            severity=Severity.INFO if view.is_virtual or _is_built_so(view, members[0]) else None,
            expected=(port.words, port.source),
            judged=(port.width, port.wanted, "lanes"),
        )


def _is_built_so(view: View, i: int) -> bool:
    """Equal GPUs, all as narrow: a board that gives each of them half a slot (AWS wires A10G and L4 with 8 lanes)."""
    twins = [k for k in view.whole if view.shape.gpus[k].name == view.shape.gpus[i].name]
    widths = {link.width if (link := view.shape.gpus[k].pcie) else None for k in twins}
    return len(twins) > 1 and len(widths) == 1


def _port(view: View, i: int) -> _Port | None:
    link, figures = view.shape.gpus[i].pcie, view.figures(i)
    if link is None or link.width is None:
        return None
    card = (figures.pcie_width if figures else None) or 0
    if figures and card > (link.width_max or 0):
        words, source = f"x{card}, as a {figures.name} has", figures.source
    else:
        words, source = f"x{link.width_max}, the most of card and slot", _DRIVER_SOURCE
    return _Port(link.width, max(card, link.width_max or 0), words, source, link.generation, link.generation_max)


def _older_host(view: View) -> Iterator[Finding]:
    """The newest generation that card and system can have together, whatever the card does at rest."""
    for members in view.models().values():
        figures = view.figures(members[0])
        newest = figures.pcie_generation if figures else None
        told = {i: link.generation_max for i in members if (link := view.shape.gpus[i].pcie) and link.generation_max}
        if not figures or not newest or not told:
            continue
        best = max(told.values())
        for generation, slow in grouped({i: g for i, g in told.items() if g < newest}).items():
            yield view.found(
                "pcie-host-older",
                f"{gpus(slow, 'can', 'can')} run at PCIe Gen{generation} at most here",
                gpus=slow,
                fact="gpus.pcie",
                severity=Severity.WARNING if generation < best else None,
                expected=(f"Gen{newest}, as a {figures.name} has", figures.source),
                judged=(generation, newest, "PCIe generation"),
            )


def _refused(view: View) -> Iterator[Finding]:
    whole = set(view.whole)
    over: dict[bool, dict[tuple[int, int], P2pStatus]] = {True: {}, False: {}}
    for a, b, path in view.shape.pairs:
        if path.p2p is None or a not in whole or b not in whole:
            continue
        over_nvlink = path.kind is PathKind.NVLINK
        asked = (path.p2p.read, path.p2p.write, path.p2p.nvlink if over_nvlink else None)
        refusal = next((status for status in asked if status in _REFUSALS), None)
        if refusal is not None:
            over[over_nvlink][a, b] = refusal
    if over[True]:
        what = f"NVLink joins {pairs(over[True])}, yet the driver refuses P2P there ({_letters(over[True])})"
        yield view.found("nvlink-p2p-refused", what, gpus=ends(over[True]), fact="paths")
    if over[False]:
        near = [(a, b) for a, b in over[False] if view.shape.path(a, b).kind in _NEAR]
        is_grave = bool(near) and not view.is_virtual and not any(_is_geforce(view, i) for i in ends(near))
        yield view.found(
            "p2p-not-ok",
            f"the driver refuses P2P over PCIe between {pairs(near if is_grave else over[False])} "
            f"({_letters(over[False])})",
            gpus=ends(over[False]),
            fact="paths",
            severity=Severity.WARNING if is_grave else None,
            expected=("P2P between GPUs under one PCIe switch", _P2P_SOURCE) if is_grave else None,
        )


def _is_geforce(view: View, i: int) -> bool:
    return "geforce" in (view.shape.gpus[i].name or "").casefold()


def _letters(refused: dict[tuple[int, int], P2pStatus]) -> str:
    return ", ".join(sorted({status.value for status in refused.values()}))
