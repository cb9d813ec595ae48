"""What an audit could not look at, and why: nobody should take silence for a clean bill. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from probe.checks.group import is_known, port_gbps
from probe.checks.reading import is_of_gpus
from probe.curve import SMALL_BYTES
from probe.errors import one_line
from probe.measurement import Survey
from probe.topology import PathKind, Through, Topology

MEASURE = "nothing was measured; wirelore audit --measure does"
LAB = "CPU ranks stood in for the GPUs: measure on the machine itself"

_OF_WIRES = (
    *("below-expectation", "below-good-hosts", "slow-start", "slower-than-siblings", "asymmetric-bandwidth"),
    *("p2p-slower-than-host", "several-libraries", "too-small-to-judge", "no-expectation", "unstable-figures"),
    *("wrong-data", "nvls-absent"),
)
_OF_RATES = ("rate-below-catalog", "rate-below-siblings", "pcie-slow-under-load", "pcie-slow")
_OF_CHECKS = ("p2p-fails-check", "p2p-unverified")
_OF_TRANSPORTS = ("nccl-not-peer-to-peer", "nccl-over-sockets", "no-gpudirect-rdma", "nvls-absent")
_OF_NICS = ("wrong-nic", "numa-remote-nic-used", "nics-unused")
_OF_COUNTERS = ("row-remaps", "ecc-errors", "nvlink-errors", "c2c-errors", "pcie-replays", "gpu-silent")
_OF_NVLINK = (
    *("degraded-links", "nvlink-absent", "split-island", "bridge-absent", "nvlink-no-bridge", "nvlink-generation"),
    *("partial-mesh", "islands-not-adjacent"),
)
_OF_FABRIC = ("fabric-in-progress", "fabric-failed", "fabric-unhealthy", "clique-differs", "imex-channel-missing")
_OF_NICS_THERE = ("nic-far", "nic-down", "nic-slow", "nics-virtual", "gdr-off")
_OF_DRIVER = (
    *("gpu-failed", "gpu-no-permission", "recovery-needed", "row-remap-failed", "row-remap-pending"),
    *("page-retirement-pending", "ecc-uncorrected", "sram-errors", "throttled", "power-capped", "compute-mode"),
    *("gpu-busy", "persistence-off", "nvml-partial"),
)
_OF_LOG = ("gpu-lost", "mig")
"""`nvidia-smi -q` tells them too."""
_OF_NAMES = ("degraded-links", "nvlink-generation", "mixed-models", "memory-differs")
_OF_HOST = (
    *("container-sees-all", "gpu-count-differs", "shm-small", "memlock-limited", "iommu-translated", "numa-differs"),
    *("affinity-differs", "gpu-not-in-sysfs", "cuda-hidden", "cuda-visible-invalid", "virtualized"),
    "host-odd-fact",
)


@dataclass(frozen=True, slots=True)
class Unchecked:
    """Something that an audit looks at, and why this one did not."""

    what: str
    why: str
    codes: tuple[str, ...] = ()
    """Codes whose absence proves nothing here."""


def unchecked(survey: Survey) -> tuple[Unchecked, ...]:
    """What is measured first, then what the driver or the input does not tell."""
    return (*_measured(survey), *_read(survey.topology))


def unproven(survey: Survey) -> dict[str, str]:
    """Codes whose absence proves nothing, and why: what they are about was looked at by nobody, or only in part."""
    found = {code: f"{one.what}: {one.why}" for one in unchecked(survey) for code in one.codes}
    for code, is_shown, why in _parts(survey):
        if not is_shown:
            found.setdefault(code, why)
    return found


def _measured(survey: Survey) -> Iterator[Unchecked]:
    several = survey.topology.gpu_count > 1
    why = LAB if survey.lab is not None else None if survey.is_measured else MEASURE
    curves = [curve for curve in survey.curves if is_of_gpus(curve)]
    if several and (why is not None or not curves):
        alone = "only CPUs moved data (gloo)" if survey.curves else "no wire was measured, only each GPU alone"
        yield Unchecked("bandwidth and latency of the wires", why or alone, _OF_WIRES)
    if why is not None or not survey.rates:
        reason = why or "the time did not suffice: --budget 1m"
        yield Unchecked("memory, GEMM and copy rates of each GPU", reason, _OF_RATES)
    if several and (why is not None or not survey.verifications):
        yield Unchecked("P2P written and read back", why or "the measurement left it out", _OF_CHECKS)
    if several and (why is not None or not survey.evidence):
        reason = why or "its log did not tell"
        yield Unchecked("transports and NICs that the library really uses", reason, (*_OF_TRANSPORTS, *_OF_NICS))
    snapshots = Counter(snapshot.gpu for snapshot in survey.health)
    if why is not None or not snapshots or min(snapshots.values()) < 2:
        reason = why or "they were not read before and after"
        yield Unchecked("growth of error counters under load", reason, _OF_COUNTERS)


def _read(topology: Topology) -> Iterator[Unchecked]:
    gpus = [gpu for node in topology.nodes for gpu in node.shape.gpus]
    states = [state for node in topology.nodes for state in node.gpus]
    shapes = {id(node.shape): node.shape for node in topology.nodes}.values()
    paths = [path for shape in shapes for path in shape.paths]
    why = f"{_source(topology)} does not tell"
    if any(path.kind is PathKind.NVLINK for path in paths) and any(gpu.nvlinks_active is None for gpu in gpus):
        yield Unchecked("NVLinks that are up, GPU by GPU", why, ("slow-links", "nvlink-differs"))
    if any(path.through is Through.SWITCH for path in paths) and all(state.fabric is None for state in states):
        yield Unchecked("the NVSwitch fabric's state", why)
    if not all(shape.nvlink_visible for shape in shapes):
        yield Unchecked("NVLink", f"{_source(topology)} cannot show it", _OF_NVLINK)
    if any(gpu.pcie is None or gpu.pcie.width is None for gpu in gpus):
        yield Unchecked("PCIe width and generation", why, ("pcie-narrow", "pcie-host-older"))
    if not any(shape.nics for shape in shapes):
        yield Unchecked("network cards", why, _OF_NICS_THERE)
    if all(state.memory_free_bytes is None for state in states):
        yield Unchecked("what else runs on the GPUs", why, ("gpu-busy",))


def _parts(survey: Survey) -> Iterator[tuple[str, bool, str]]:
    """(code, whether what shows it is there, why not) where a part of what an audit looks at is missing."""
    topology = survey.topology
    nodes = topology.nodes
    states = [state for node in nodes for state in node.gpus]
    nics = [nic for node in nodes for nic in node.shape.nics]
    paths = [path for node in nodes for path in node.shape.paths]
    silent = f"{_source(topology)} does not tell"
    live, logged = _is_told_by(topology, "NVML"), _is_told_by(topology, "NVML", "nvidia-smi -q")
    yield from ((code, live, f"only the driver itself tells; {silent}") for code in _OF_DRIVER)
    yield from ((code, live, f"only the host itself tells; {silent}") for code in _OF_HOST)
    yield from ((code, logged, silent) for code in _OF_LOG)
    named = all(gpu.name is not None for node in nodes for gpu in node.shape.gpus)
    yield from ((code, named, f"{silent} the model of every GPU") for code in _OF_NAMES)
    yield "mixed-drivers", all(node.driver_version is not None for node in nodes), silent
    yield "acs-redirects", False, "reading it takes root, and nothing tells whether it could be read"
    fabric = all(state.fabric is not None for state in states)
    yield from ((code, fabric, silent) for code in _OF_FABRIC)
    yield "nic-down", all(nic.state is not None for nic in nics), silent
    yield "nic-slow", all(nic.speed_gbps is not None for nic in nics), silent
    for code in ("p2p-not-ok", "nvlink-p2p-refused"):
        yield code, all(path.p2p is not None for path in paths), silent
    keys = [curve.key for curve in survey.curves if is_of_gpus(curve)]
    ways = {key.direction for key in keys}
    yield "asymmetric-bandwidth", {"forward", "backward"} <= ways, "no pair was measured in both directions"
    without = any(key.p2p_enabled is False for key in keys)
    yield "p2p-slower-than-host", without, "no pair was measured without P2P"
    small = any(curve.samples[0].size_bytes <= SMALL_BYTES for curve in survey.curves if is_of_gpus(curve))
    yield "slow-start", small and any(key.operation == "all_reduce" for key in keys), "no small all-reduce was measured"
    copied = {rate.gpu for rate in survey.rates if rate.kind in ("h2d", "d2h")}
    ports = bool(copied) and all(is_known(topology, ref) and port_gbps(topology.gpu(ref)) for ref in copied)
    yield "pcie-slow-under-load", ports, "no copies to and from the host, or no PCIe port to hold them against"
    told = {one.what for one in survey.evidence}
    for code in _OF_TRANSPORTS:
        needs = {"nvls", "algorithm"} if code == "nvls-absent" else {"transport"}
        yield code, bool(told & needs), "the library's log did not tell"
    for code in _OF_NICS:
        yield code, len(nodes) == 1 or "nic" in told, "the library's log names no NIC"


def _is_told_by(topology: Topology, *sources: str) -> bool:
    """Whether one of these was asked on every node; whoever asks NVML asks its host too."""
    asked = {origin.node for origin in topology.provenance if origin.source.startswith(sources)}
    return None in asked or asked >= set(range(len(topology.nodes)))


def _source(topology: Topology) -> str:
    return one_line(topology.provenance[0].source, 40) if topology.provenance else "the input"
