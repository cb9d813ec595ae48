"""The driver's facts -> Topology. Pure: the same facts give the same topology on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from probe.sources.cuda_visibility import with_visibility
from probe.sources.nvml_facts import Facts
from probe.sources.nvml_health import pcie_link
from probe.sources.nvml_links import Side, pci_bus_id, read_links, read_path
from probe.sources.nvml_notices import notices
from probe.topology import (
    Fabric,
    FabricState,
    Gpu,
    GpuState,
    GpuStatus,
    MigInstance,
    Node,
    NodeShape,
    Origin,
    Path,
    PathKind,
    Provenance,
    Topology,
)
from probe.units import ranges

_NO_PERMISSION, _GPU_IS_LOST, _RESET_REQUIRED = 4, 15, 16
_MIG_ON = 1
_VIRTUALIZATION = ("bare", "passthrough", "vgpu", "host-vgpu", "host-vsga")  # nvmlGpuVirtualizationMode_t
_FABRIC_STATES = tuple(FabricState)  # in the order of NVML_GPU_FABRIC_STATE_*


def topology_from_facts(facts: Facts, environ: Mapping[str, str] | None = None) -> Topology:
    """One node from the facts of its driver; `environ` decides what CUDA shows. The facts count one GPU or more."""
    indices = range(facts.number("count") or 0)
    ids = {i: pci_bus_id(facts.text("pci", i)) for i in indices}
    links = [read_links(facts, i, {pci: j for j, pci in ids.items() if pci is not None}) for i in indices]
    states = tuple(_state(facts, i, ids[i]) for i in indices)
    gpus = tuple(replace(_gpu(facts, i), nvlinks_active=links[i].active, nvlinks_total=links[i].total) for i in indices)
    sides = [Side(i, links[i], states[i].fabric, _in_mig_mode(facts, i)) for i in indices]
    paths = tuple(_path(facts, sides[a], sides[b], states) for a in indices for b in indices[a + 1 :])
    states, about_visibility = with_visibility(gpus, states, environ or {})
    node = Node(
        shape=NodeShape(gpus, paths, nvlink_visible=not any(_hides_nvlink(facts, a, b) for a in sides for b in sides)),
        gpus=states,
        hostname=facts.text("hostname"),
        driver_version=facts.text("driver"),
        cuda_version=_cuda_version(facts.number("cuda")),
        virtualization=_virtualization(facts, len(indices)),
    )
    warnings = (*notices(facts, node, sides, environ or {}), *about_visibility)
    source = f"NVML {facts.text('nvml') or 'of unknown version'}, driver {facts.text('driver') or 'unknown'}"
    told = ("gpus", "paths", "driver_version", "cuda_version", "virtualization")
    return Topology(
        nodes=(node,),
        warnings=tuple(replace(w, node=0) for w in warnings),
        provenance=tuple(Origin(fact, Provenance.READ, source, node=0) for fact in told),
    )


def _gpu(facts: Facts, i: int) -> Gpu:
    capability = facts.numbers("compute_capability", i)
    node = facts.number("numa_node", i)
    # On Grace a GPU's memory is a NUMA node of its own, without CPUs: nothing can be pinned there.
    has_cpus = node is not None and facts.text("numa_node.cpus", node) is not None
    cpus = [64 * n + bit for n, word in enumerate(facts.numbers("cpu_affinity", i)) for bit in _bits(word)]
    return Gpu(
        index=i,
        name=facts.text("name", i),
        memory_bytes=_positive(facts.fields("memory", i).get("total")),
        compute_capability=(capability[0], capability[1]) if len(capability) == 2 else None,
        numa_node=node if has_cpus else None,
        cpu_affinity=ranges(cpus) or None,
        pcie=pcie_link(facts, i),
    )


def _state(facts: Facts, i: int, pci: str | None) -> GpuState:
    status, reason = _status(facts, i)
    free = facts.fields("memory", i).get("free")
    return GpuState(
        uuid=facts.text("uuid", i),
        pci_bus_id=pci,
        serial=facts.text("serial", i),
        memory_free_bytes=free if type(free) is int else None,
        status=status,
        status_reason=reason,
        mig_instances=_mig_instances(facts, i),
        fabric=_fabric(facts, i),
    )


def _status(facts: Facts, i: int) -> tuple[GpuStatus, str | None]:
    core = [facts.reading(fact, i) for fact in ("handle", "uuid", "pci", "name", "memory", "read")]
    errors = {r.error: r.name for r in core if r.error is not None}
    if _GPU_IS_LOST in errors:
        return GpuStatus.LOST, "the driver says GPU_IS_LOST (15): it has fallen off the bus"
    if core[0].error == _NO_PERMISSION:
        return GpuStatus.NO_PERMISSION, "this process may not open it (NO_PERMISSION 4)"
    fatal = core[0].error if core[0].error is not None else _RESET_REQUIRED if _RESET_REQUIRED in errors else None
    if fatal is not None:
        return GpuStatus.FAILED, f"the driver says {errors[fatal]} ({fatal})"
    if facts.reading("read", i).value is not True:
        return GpuStatus.FAILED, f"not read: {facts.broken or 'no answer'}"
    if facts.text("uuid", i) is None and facts.text("pci", i) is None:
        return GpuStatus.FAILED, "it tells neither its UUID nor its PCI bus id"
    if _in_mig_mode(facts, i) and not _mig_instances(facts, i):
        return GpuStatus.FAILED, "MIG is on and no instance exists: CUDA finds no device here"
    return GpuStatus.OK, None


def _path(facts: Facts, a: Side, b: Side, states: tuple[GpuState, ...]) -> Path:
    both_answer = all(states[s.index].status is GpuStatus.OK for s in (a, b))
    return read_path(facts, a, b) if both_answer else Path(PathKind.UNKNOWN)


def _hides_nvlink(facts: Facts, a: Side, b: Side) -> bool:
    """Neither the links of two GPUs nor their P2P status can be read (WSL2): PCIe is then no proof."""
    inconclusive = 6
    if not a.index < b.index or any(facts.reading("read", s.index).value is not True for s in (a, b)):
        return False
    status = facts.number("p2p", a.index, b.index, 2)
    return a.links.active is None and b.links.active is None and status in (None, inconclusive)


def _in_mig_mode(facts: Facts, i: int) -> bool:
    return facts.numbers("mig.mode", i)[:1] == (_MIG_ON,)


def _mig_instances(facts: Facts, i: int) -> tuple[MigInstance, ...]:
    present = [m for m in range(facts.number("mig.count", i) or 0) if facts.reading("mig", i, m).value is True]
    return tuple(
        MigInstance(
            uuid=facts.text("mig.uuid", i, m),
            profile=(facts.text("mig.name", i, m) or "").rpartition("MIG ")[2] or None,
            memory_bytes=_positive(facts.fields("mig.memory", i, m).get("total")),
        )
        for m in present
    )


def _fabric(facts: Facts, i: int) -> Fabric | None:
    told = facts.fields("fabric", i)
    state, status, clique, health = (_natural(told.get(k)) for k in ("state", "status", "clique", "health"))
    if state is None or state >= len(_FABRIC_STATES):
        return None
    hexes = told.get("cluster")
    cluster = hexes if isinstance(hexes, str) and len(hexes) == 32 and hexes.strip("0") else None
    completed = _FABRIC_STATES[state] is FabricState.COMPLETED
    return Fabric(
        state=_FABRIC_STATES[state],
        status=status if completed else None,
        cluster_uuid=cluster and "-".join((cluster[:8], cluster[8:12], cluster[12:16], cluster[16:20], cluster[20:])),
        clique_id=clique if cluster else None,
        health_mask=health,
    )


def _virtualization(facts: Facts, gpus: int) -> str | None:
    modes = [m for i in range(gpus) if (m := facts.number("virtualization", i)) is not None]
    return _VIRTUALIZATION[max(modes)] if modes and max(modes) < len(_VIRTUALIZATION) else None


def _cuda_version(code: int | None) -> str | None:
    """13000 -> '13.0'."""
    return f"{code // 1000}.{code % 1000 // 10}" if code else None


def _bits(word: int) -> list[int]:
    return [bit for bit in range(64) if word >> bit & 1]


def _natural(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _positive(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
