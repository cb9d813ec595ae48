"""NVLinks against what the model has and what its siblings show: too few, none, older, no bridge, no switch. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from probe.catalog import GpuFigures
from probe.checks.view import View, ends, gpus, grouped, pairs
from probe.finding import Finding, Severity
from probe.topology import Fabric, FabricState, PathKind, Through

_NEVER_IN_A_BOARD = 64
_COUNT_SOURCE = "NVML, the driver's count of NVLinks (field NVML_FI_DEV_NVLINK_LINK_COUNT)"
_SIBLINGS_SOURCE = "its siblings in this node"
_CUBE = 8
_STRANGERS = 2
_UNSWITCHED = "Check `nvidia-smi nvlink -s`: these boards have no switches; reset the GPU or have the board serviced."
_NEIGHBOURS = (
    "Nothing is broken. For groups that talk, ask for GPUs that `nvidia-smi topo -m` shows as neighbours on the host."
)


def nvlink(view: View) -> Iterator[Finding]:
    """What is wrong with one node's NVLinks, as its driver or its matrix tells them."""
    if view.shape.nvlink_visible:
        yield from _too_few(view)
        yield from _thin(view)
        yield from _none(view)
        yield from _apart(view)
        yield from _bridges(view)
    yield from _older(view)


def _figures(view: View, i: int) -> GpuFigures | None:
    """The catalog's figures, where the model has NVLinks."""
    figures = view.figures(i)
    return figures if figures and figures.nvlinks else None


def _bonds(view: View, i: int) -> list[int]:
    """Links to each GPU that NVLink joins with this one; [] where any of these counts is not told."""
    told = [view.shape.path(i, other).links for other in view.peers[i]]
    return [n for n in told if n] if all(told) else []


def _is_switched(view: View) -> bool:
    """A switch was seen, or a GPU's bonds add up to more links than a GPU has: each of them carries all its links."""
    if any(path.through is Through.SWITCH for path in view.shape.paths):
        return True
    return any(
        sum(_bonds(view, i)) > (figures.nvlinks or _NEVER_IN_A_BOARD)
        for i in view.whole
        if (figures := _figures(view, i))
    )


def _active(view: View, i: int, switched: bool) -> int | None:
    """NVLinks that are up. A bond to a single peer tells them only of a board with a bridge: any other may have links
    to GPUs that are not shown here."""
    told = view.shape.gpus[i].nvlinks_active
    if told is not None:
        return told
    bonds = _bonds(view, i)
    figures = _figures(view, i)
    if switched or (figures and figures.nvlink_by_bridge and len(bonds) == 1):
        return max(bonds, default=None)
    return None


def _too_few(view: View) -> Iterator[Finding]:
    switched = _is_switched(view)
    active = {i: n for i in view.whole if (n := _active(view, i, switched))}
    most = {name: max(active.get(i, 0) for i in members) for name, members in view.models().items()}
    short: dict[int, tuple[int, int, str, str, bool]] = {}
    for i, n in active.items():
        gpu, figures = view.shape.gpus[i], _figures(view, i)
        if figures and figures.nvlinks:
            wanted, words, source = figures.nvlinks, f"{figures.nvlinks} on every {figures.name}", figures.source
        elif gpu.nvlinks_total:
            wanted, words, source = gpu.nvlinks_total, f"all {gpu.nvlinks_total} of the GPU's", _COUNT_SOURCE
        else:
            wanted = most.get(gpu.name or "", 0)
            words, source = f"{wanted}, as its siblings have", _SIBLINGS_SOURCE
        if n < wanted:
            short[i] = (n, wanted, words, source, figures is not None and not figures.nvlink_by_bridge)
    for (n, wanted, words, source, is_wired), members in grouped(short).items():
        severity = Severity.FAILURE if is_wired else Severity.WARNING
        if view.is_virtual and not switched:
            severity = Severity.INFO  # the others may lead to GPUs that this machine was not given
        yield view.found(
            "degraded-links",
            f"{gpus(members, 'has', 'have')} {n} active NVLinks of {wanted}",
            gpus=members,
            fact="gpus.nvlinks_active",
            severity=severity,
            expected=(words, source),
            judged=(n, wanted, "links"),
        )


def _thin(view: View) -> Iterator[Finding]:
    """Behind a switch a bond has all links of its poorer end; fewer are missing between these two alone."""
    if not _is_switched(view) or view.is_virtual:
        return
    most = {i: max(_bonds(view, i), default=0) for i in view.whole}
    thin = {
        (a, b): (path.links, full)
        for a, b, path in view.shape.pairs
        if path.kind is PathKind.NVLINK and path.links and path.links < (full := min(most.get(a, 0), most.get(b, 0)))
    }
    for n, full in dict.fromkeys(thin.values()):
        bonds = [bond for bond, counts in thin.items() if counts == (n, full)]
        yield view.found(
            "degraded-links",
            f"NVLink joins {pairs(bonds)} with {n} links, and each of these GPUs with others by {full} or more",
            gpus=ends(bonds),
            fact="paths",
            expected=(f"{full}, the links of the poorer GPU", _SIBLINGS_SOURCE),
            judged=(n, full, "links"),
        )


def _none(view: View) -> Iterator[Finding]:
    """GPUs that are wired together where they are built in (SXM), and yet no NVLink joins them with any other."""
    wired = [i for i in view.whole if (f := _figures(view, i)) and not f.nvlink_by_bridge]
    alone = [
        i
        for i in wired
        if len(wired) > 1
        and not view.peers[i]
        and not _waits(view.node.gpus[i].fabric)
        and (view.shape.gpus[i].nvlinks_active == 0 or _tells_paths(view, i, wired))
    ]
    for (name, active), members in grouped(
        {i: (_name(view, i), view.shape.gpus[i].nvlinks_active) for i in alone}
    ).items():
        ups = f", though {active} of its links are active" if active else ""
        figures = _figures(view, members[0])
        assert figures is not None
        is_direct = _is_direct(figures)
        severity: Severity | None
        cure: str | None
        if is_direct and active != 0 and len(wired) < _CUBE and len(alone) <= _STRANGERS:
            severity, cure = Severity.INFO, _NEIGHBOURS
        else:
            severity = Severity.WARNING if view.is_virtual else None
            cure = _UNSWITCHED if is_direct else None
        yield view.found(
            "nvlink-absent",
            f"no NVLink joins {gpus(members)} with any other GPU{ups}",
            gpus=members,
            fact="paths",
            severity=severity,
            cure=cure,
            expected=(f"{figures.nvlinks} NVLinks on every {name}", figures.source),
        )


def _is_direct(figures: GpuFigures) -> bool:
    """Boards of this socket (P100, V100) have no NVSwitch. In a cube mesh of 8 each GPU has links to four others only,
    and its quad is fully joined: of a part of it one or two GPUs can be strangers to all others, no more."""
    return "SXM2" in figures.name


def _name(view: View, i: int) -> str:
    figures = _figures(view, i)
    return figures.name if figures else ""


def _waits(fabric: Fabric | None) -> bool:
    """Registration is under way or failed: that is a finding of its own."""
    return fabric is not None and fabric.state is not FabricState.NOT_SUPPORTED and not fabric.is_ready


def _tells_paths(view: View, i: int, others: list[int]) -> bool:
    return all(view.shape.path(i, other).kind is not PathKind.UNKNOWN for other in others if other != i)


def _apart(view: View) -> Iterator[Finding]:
    """Pairs behind a switch that no NVLink joins, though each of the two has NVLink with others."""
    if not _is_switched(view):
        return
    joined = {i for i in view.whole if view.peers[i] and not _waits(view.node.gpus[i].fabric)}
    apart = [
        (a, b)
        for a, b, path in view.shape.pairs
        if a in joined and b in joined and not path.is_fast and path.kind is not PathKind.UNKNOWN
    ]
    if apart:
        yield view.found(
            "split-island",
            f"NVSwitch does not join {pairs(apart)}, though NVLink joins each of them with others",
            gpus=ends(apart),
            fact="paths",
            expected=("NVLink between every pair behind one NVSwitch", "NVIDIA, Fabric Manager User Guide"),
        )


def _bridges(view: View) -> Iterator[Finding]:
    """Links that are up without a peer here lead to a GPU that this process, container or machine was not given."""
    for name, members in view.models().items():
        figures = _figures(view, members[0])
        if figures is None or not figures.nvlink_by_bridge or not _all_told(view, members):
            continue
        away = [i for i in members if not view.peers[i] and view.shape.gpus[i].nvlinks_active]
        bare = [i for i in members if not view.peers[i] and i not in away]
        if away:
            yield view.found(
                "bridge-absent",
                f"the links of {gpus(away)} are active and lead to no GPU here",
                gpus=away,
                fact="paths",
                severity=Severity.INFO,
                cure="Nothing, where only a part of the machine was granted: ask for bridged GPUs together.",
            )
        if len(bare) < 2:  # a bridge joins two
            continue
        if len(bare) == len(members):
            seen = f"no bridge joins {gpus(bare)} ({name})"
            yield view.found("nvlink-no-bridge", seen, gpus=bare, fact="paths")
        else:
            yield view.found(
                "bridge-absent",
                f"no bridge joins {gpus(bare)}, and {gpus([i for i in members if i not in bare], 'has', 'have')} one",
                gpus=bare,
                fact="paths",
                severity=Severity.INFO if view.is_virtual else None,
                expected=("a bridge on all of equal GPUs, or on none", _SIBLINGS_SOURCE),
            )


def _all_told(view: View, members: list[int]) -> bool:
    return len(members) > 1 and all(_tells_paths(view, i, members) for i in members)


def _older(view: View) -> Iterator[Finding]:
    """The whole number of a generation counts: NVML has 3.0 and 3.1 for the same boards."""
    versions: dict[int, tuple[float, float, str, str]] = {}
    for i in view.whole:
        told = [v for other in view.peers[i] if (v := view.shape.path(i, other).version)]
        figures = _figures(view, i)
        if told and figures and figures.nvlink_version and int(min(told)) < int(figures.nvlink_version):
            versions[i] = (min(told), figures.nvlink_version, figures.name, figures.source)
    for (version, wanted, name, source), members in grouped(versions).items():
        yield view.found(
            "nvlink-generation",
            f"{gpus(members, 'runs', 'run')} NVLink {version}",
            gpus=members,
            fact="paths",
            expected=(f"NVLink {wanted} on every {name}", source),
            judged=(version, wanted, "NVLink generation"),
        )
