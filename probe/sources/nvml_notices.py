"""What a person should know of the driver's facts: each notice says what was seen, what it means, what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from probe.sources.nvml_facts import Facts
from probe.sources.nvml_health import state_notices
from probe.sources.nvml_links import Side
from probe.topology import FabricState, GpuStatus, Node, Notice, P2pStatus, PathKind, Through
from probe.units import count, ranges

_STATUS_CODES = {
    GpuStatus.LOST: ("gpu-lost", "Look for Xid in dmesg, drain the node, reset the GPU or reboot."),
    GpuStatus.NO_PERMISSION: ("gpu-no-permission", "Check the container's device cgroup and /dev/nvidia* permissions."),
    GpuStatus.FAILED: ("gpu-failed", "Look for Xid in dmesg; `nvidia-smi -q` may say more; reset the GPU or reboot."),
}
_REFUSALS = frozenset(P2pStatus) - {P2pStatus.OK, P2pStatus.UNKNOWN}
_PAIRS_NAMED = 6


def notices(facts: Facts, node: Node, sides: Sequence[Side], environ: Mapping[str, str]) -> Iterator[Notice]:
    """In the order of weight: what makes facts missing, then what is broken, then what lowers confidence."""
    ok = [s for s in sides if node.gpus[s.index].status is GpuStatus.OK]
    if facts.broken:
        what = f"the driver was read in part ({facts.broken}; the last answer was {facts.last!r})"
        yield Notice("nvml-partial", f"{what}: what is missing here is unknown, not absent. Look for Xid in dmesg.")
    yield from _unusable(node, len(ok))
    yield from _fabric(node, ok)
    yield from _degraded(node, ok)
    yield from _split(node, ok)
    yield from _nvlink(node, ok)
    yield from _mig(node, sides)
    yield from state_notices(facts)
    yield from _confidence(facts, node, environ)


def _unusable(node: Node, usable: int) -> Iterator[Notice]:
    for i, gpu in enumerate(node.gpus):
        if gpu.status in _STATUS_CODES:
            code, cure = _STATUS_CODES[gpu.status]
            at = f" ({gpu.pci_bus_id})" if gpu.pci_bus_id else ""
            left = f"{usable} of {count(len(node.gpus), 'GPU')} can be used"
            yield Notice(code, f"GPU {i}{at}: {gpu.status_reason}; {left}. {cure}")


def _fabric(node: Node, ok: Sequence[Side]) -> Iterator[Notice]:
    waiting = [s.index for s in ok if _is_blocked(s) and s.fabric and s.fabric.state is not FabricState.COMPLETED]
    failed = [(s.index, s.fabric.status) for s in ok if _is_blocked(s) and s.fabric and s.fabric.status]
    if waiting:
        states = {s.fabric.state.value for s in ok if s.index in waiting and s.fabric}
        what = f"NVSwitch registration of {_gpus(waiting)} is {' and '.join(sorted(states))}"
        cure = "Normal while a node boots: probe again; if it stays, see `systemctl status nvidia-fabricmanager`."
        yield Notice("fabric-in-progress", f"{what}: no NVLink traffic until it completes, PCIe counts. {cure}")
    if failed:
        codes = ", ".join(sorted({str(status) for _, status in failed}))
        what = f"NVSwitch registration of {_gpus([i for i, _ in failed])} failed (status {codes})"
        cure = "Restart nvidia-fabricmanager (its version must equal the driver's), then reset the GPUs or reboot."
        yield Notice("fabric-failed", f"{what}: links look active, yet traffic falls to PCIe. {cure}")


def _is_blocked(side: Side) -> bool:
    """Waits for a registration that its links need; links that lead to other GPUs directly need none."""
    return not side.is_registered and bool(side.links.total) and not side.links.to_gpu


def _degraded(node: Node, ok: Sequence[Side]) -> Iterator[Notice]:
    """A GPU with fewer links than its siblings of the same model."""
    by_model: dict[str | None, list[Side]] = {}
    for side in ok:
        by_model.setdefault(node.shape.gpus[side.index].name, []).append(side)
    for siblings in by_model.values():
        most = max(s.links.active or 0 for s in siblings)
        switched = any(s.links.to_switch for s in siblings)
        # Without a switch a GPU with no active link at all just has no bridge.
        fewer = {s.index: s.links.active for s in siblings if s.links.active is not None and s.links.active < most}
        fewer = {i: n for i, n in fewer.items() if n or switched}
        if fewer:
            seen = ", ".join(f"GPU {i} has {n}" for i, n in fewer.items())
            cure = "Look at `nvidia-smi nvlink -s` and `-e`; reseat the bridge or have the board serviced."
            yield Notice("degraded-links", f"{seen} active NVLinks, its siblings {most}: a slower island. {cure}")


def _split(node: Node, ok: Sequence[Side]) -> Iterator[Notice]:
    switched = {s.index for s in ok if s.links.to_switch and s.is_registered and not s.in_mig_mode}
    apart = [(a, b) for a, b, path in node.shape.pairs if {a, b} <= switched and not path.is_fast]
    if apart:
        what = f"{count(len(apart), 'pair')} of GPUs behind NVSwitch cannot reach each other over it ({_pairs(apart)})"
        cure = "Their links are up: check the fabric manager's partitions and the passthrough of NVSwitches."
        yield Notice("split-island", f"{what}: the islands are smaller than the links suggest. {cure}")


def _nvlink(node: Node, ok: Sequence[Side]) -> Iterator[Notice]:
    idle = [s.index for s in ok if s.links.total and s.links.active == 0 and s.is_registered]
    if len(idle) > 1 and not any(s.links.to_switch for s in ok):
        what = f"no NVLink of {_gpus(idle)} is active, as on boards without a bridge"
        yield Notice("nvlink-no-bridge", f"{what}; if there is a bridge, it is absent or down: reseat it.")
    refused = [
        (a, b)
        for a, b, path in node.shape.pairs
        if path.through is Through.DIRECT and path.p2p and {path.p2p.read, path.p2p.nvlink} & _REFUSALS
    ]
    if refused:
        what = f"NVLink joins {_pairs(refused)}, yet the driver refuses P2P there"
        yield Notice("nvlink-p2p-refused", f"{what}: measure before relying on it (`nvidia-smi topo -p2p n`).")
    if not node.shape.nvlink_visible:
        what = "neither NVLinks nor P2P can be read here (WSL2, a vGPU or an old driver)"
        yield Notice("nvlink-not-visible", f"{what}: PCIe levels are no proof that there is no NVLink; measure.")
    asymmetric = [(a, b) for a, b, path in node.shape.pairs if path.asymmetric]
    if asymmetric:
        what = f"the two ends of {_pairs(asymmetric)} tell their path differently"
        yield Notice("asymmetric", f"{what}: the slower one counts. Look at `nvidia-smi nvlink -s`.")


def _mig(node: Node, sides: Sequence[Side]) -> Iterator[Notice]:
    sliced = [s.index for s in sides if s.in_mig_mode]
    if sliced:
        instances = sum(len(node.gpus[i].mig_instances) for i in sliced)
        what = f"MIG is on for {_gpus(sliced)} ({count(instances, 'instance')})"
        cure = "Name one instance by its UUID in CUDA_VISIBLE_DEVICES, or turn MIG off to use whole GPUs."
        yield Notice("mig", f"{what}: instances have no P2P, so each serves alone. {cure}")


def _confidence(facts: Facts, node: Node, environ: Mapping[str, str]) -> Iterator[Notice]:
    if node.virtualization not in (None, "bare"):
        what = f"this is a virtual machine ({node.virtualization})"
        yield Notice("virtualized", f"{what}: PCIe levels, NUMA and P2P may be flattened; only a measurement tells.")
    untold = [a for a, gpu in enumerate(node.shape.gpus) if gpu.memory_bytes is None and _is_ok(node, a)]
    if untold:
        what = f"the driver tells no memory of {_gpus(untold)} (memory shared with the host, or a bare vGPU)"
        yield Notice("memory-unknown", f"{what}: the host's available memory counts, or say --gpu-memory.")
    unknown = [
        (a, b)
        for a, b, path in node.shape.pairs
        if path.kind is PathKind.UNKNOWN and _is_ok(node, a) and _is_ok(node, b)
    ]
    if unknown:
        yield Notice("paths-unknown", f"the driver tells no path between {_pairs(unknown)}; only a measurement tells.")
    if environ.get("NVIDIA_VISIBLE_DEVICES") == "all" and "KUBERNETES_SERVICE_HOST" in environ:
        what = "NVIDIA_VISIBLE_DEVICES=all in a pod shows every GPU of the node, whatever the pod requested"
        yield Notice("container-sees-all", f"{what}: plan only on the GPUs that are yours (--gpus).")


def _is_ok(node: Node, i: int) -> bool:
    return node.gpus[i].status is GpuStatus.OK


def _gpus(indices: Sequence[int]) -> str:
    return f"GPU{'s' if len(indices) > 1 else ''} {ranges(tuple(indices))}"


def _pairs(pairs: Sequence[tuple[int, int]]) -> str:
    named = ", ".join(f"{a}-{b}" for a, b in pairs[:_PAIRS_NAMED])
    return named + (f" and {len(pairs) - _PAIRS_NAMED} more" if len(pairs) > _PAIRS_NAMED else "")
