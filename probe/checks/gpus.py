"""GPUs that cannot be used, that are missing, or that differ from their siblings. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from probe.checks.codes import CODES
from probe.checks.view import LONGEST, View, figures_of, gpus, grouped
from probe.errors import one_line
from probe.finding import Finding, Severity
from probe.topology import GpuStatus, Node, Provenance, Topology
from probe.units import count, gib, some

_STATUS_CODES = {
    GpuStatus.LOST: "gpu-lost",
    GpuStatus.NO_PERMISSION: "gpu-no-permission",
    GpuStatus.FAILED: "gpu-failed",
}
_BOARDS = (1, 2, 4, 8, 16)
_GREAT_BOARDS = (8, 16)
_BOARD_SOURCE = "NVIDIA, HGX and DGX user guides; Health Validation, check gpu_count"
_MEMORY_TOLERANCE = 0.01
"""Firmware versions differ by some MiB; ECC on one and off on another by a sixteenth of GDDR6."""
_MIXED_SOURCE = "NVIDIA, NCCL User Guide: a collective runs at the pace of its slowest member"


def gpus_of_node(view: View) -> Iterator[Finding]:
    """What one node's GPUs tell of themselves and against each other."""
    yield from _unusable(view)
    yield from _odd_count(view)
    yield from _sliced(view)
    yield from _virtual(view)
    models = {name: members for name, members in view.models().items() if members}
    if len(models) > 1:
        told = [f"{gpus(members, 'is', 'are')} {name}" for name, members in models.items()]
        yield view.found("mixed-models", f"{count(len(models), 'model')} in one node: {some(told)}", gpus=view.whole)
    for members in models.values():
        yield from _memory(view, members)


def gpus_of_all(topology: Topology) -> Iterator[Finding]:
    """What the nodes of a cluster tell against each other."""
    drivers: dict[str, list[int]] = {}
    for i, node in enumerate(topology.nodes):
        if node.driver_version:
            drivers.setdefault(node.driver_version, []).append(i)
    if len(drivers) > 1:
        told = [f"{version} on {count(len(nodes), 'node')}" for version, nodes in sorted(drivers.items())]
        yield _of_all("mixed-drivers", f"{count(len(drivers), 'driver version')}: {some(told)}")
    kinds = Counter(_models(node) for node in topology.nodes)
    kinds.pop((), None)
    if len({name for names in kinds for name in names}) > 1 and len(kinds) > 1:
        told = [f"{' and '.join(names)} on {count(n, 'node')}" for names, n in kinds.items()]
        yield _of_all("mixed-models", f"nodes of different models: {some(told)}", Severity.INFO)
    yield from _fewer_than_others(topology)


def _models(node: Node) -> tuple[str, ...]:
    return tuple(sorted({gpu.name for gpu in node.shape.gpus if gpu.name}))


def _unusable(view: View) -> Iterator[Finding]:
    for i, state in enumerate(view.node.gpus):
        if state.status in _STATUS_CODES:
            code = _STATUS_CODES[state.status]
            at = f" ({state.pci_bus_id})" if state.pci_bus_id else ""
            reason = state.status_reason or CODES[code].title.lower()
            yield view.found(code, f"GPU {i}{at}: {reason}", gpus=(i,))


def _odd_count(view: View) -> Iterator[Finding]:
    """GPUs that NVLink joins where they are built in come 1, 2, 4, 8 or 16 to a board. Containers and virtual machines
    are granted any number; yet a virtual machine one short of a great board has rather lost one."""
    n = len(view.node.gpus)
    names = {gpu.name for gpu in view.shape.gpus}
    figures = [figures_of(name) for name in names]
    on_board = all(f and f.nvlinks and not f.nvlink_by_bridge for f in figures)
    if not n or not on_board or n in _BOARDS:
        return
    said = {notice.code for notice in view.topology.warnings if notice.node in (None, view.number)}
    if "gpus-missing" not in said:  # a source that says so knows the true number
        is_granted = "container-sees-part" in said or (view.is_virtual and n + 1 not in _GREAT_BOARDS)
        whole = next((size for size in _BOARDS if size > n), n)
        what = " and ".join(sorted(f.name for f in figures if f))
        yield view.found(
            "gpus-missing",
            f"{n} GPUs ({what}) answer in this node",
            severity=Severity.INFO if is_granted else None,
            expected=(f"{', '.join(map(str, _BOARDS))}: boards of such GPUs carry no {n}", _BOARD_SOURCE),
            judged=(n, whole, "GPUs"),
        )


def _fewer_than_others(topology: Topology) -> Iterator[Finding]:
    """Nodes with fewer GPUs than most of the same model; a majority of three or more says what is usual."""
    by_model: dict[tuple[str, ...], list[int]] = {}
    for i, node in enumerate(topology.nodes):
        if models := _models(node):
            by_model.setdefault(models, []).append(i)
    for nodes in by_model.values():
        usual, times = Counter(len(topology.nodes[i].gpus) for i in nodes).most_common(1)[0]
        if times < 3 or times * 2 <= len(nodes):
            continue
        for i in nodes:
            n = len(topology.nodes[i].gpus)
            if n < usual and n in _BOARDS:  # any other number is odd by itself
                yield View(topology, i).found(
                    "gpus-missing",
                    f"{count(n, 'GPU')} in this node",
                    expected=(f"{usual}, as {times:,} of {len(nodes):,} equal nodes have", "its sibling nodes"),
                    judged=(n, usual, "GPUs"),
                )


def _sliced(view: View) -> Iterator[Finding]:
    sliced = [i for i, state in enumerate(view.node.gpus) if state.mig_instances]
    if sliced:
        instances = sum(len(view.node.gpus[i].mig_instances) for i in sliced)
        what = f"MIG is on for {gpus(sliced)} ({count(instances, 'instance')}): instances have no P2P"
        yield view.found("mig", what, gpus=sliced)


def _virtual(view: View) -> Iterator[Finding]:
    if view.is_virtual:
        what = f"this is a virtual machine ({view.node.virtualization}): PCIe levels, NUMA and P2P may be flattened"
        yield view.found("virtualized", what, fact="virtualization")


def _memory(view: View, members: list[int]) -> Iterator[Finding]:
    sizes = {i: size for i in members if (size := view.shape.gpus[i].memory_bytes)}
    most = max(sizes.values(), default=0)
    for size, fewer in grouped({i: n for i, n in sizes.items() if n < most * (1 - _MEMORY_TOLERANCE)}).items():
        yield view.found(
            "memory-differs",
            f"{gpus(fewer, 'has', 'have')} {gib(size)} of memory, others of the same name {gib(most)}",
            gpus=fewer,
            fact="gpus.memory_bytes",
            expected=(f"{gib(most)}, as its siblings have", "its siblings in this node"),
            judged=(size, most, "bytes"),
        )


def _of_all(code: str, seen: str, severity: Severity | None = None) -> Finding:
    return Finding(
        code=code,
        severity=severity or CODES[code].severity,
        seen=one_line(seen, LONGEST),
        cure=CODES[code].cure,
        provenance=Provenance.READ,
        expected="the same on every node of a job",
        source=_MIXED_SOURCE,
    )
