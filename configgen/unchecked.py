"""What an audit could not look at, and why: nobody should take silence for a clean bill. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from probe.errors import one_line
from probe.measurement import Survey
from probe.topology import PathKind, Through, Topology

MEASURE = "nothing was measured; wirelore audit --measure does"
LAB = "CPU ranks stood in for the GPUs: measure on the machine itself"


@dataclass(frozen=True, slots=True)
class Unchecked:
    """Something that an audit looks at, and why this one did not."""

    what: str
    why: str


def unchecked(survey: Survey) -> tuple[Unchecked, ...]:
    """What is measured first, then what the driver or the input does not tell."""
    return (*_measured(survey), *_read(survey.topology))


def _measured(survey: Survey) -> Iterator[Unchecked]:
    several = survey.topology.gpu_count > 1
    why = LAB if survey.lab is not None else None if survey.is_measured else MEASURE
    if several and (why is not None or not survey.curves):
        yield Unchecked("bandwidth and latency of the wires", why or "no wire was measured, only each GPU alone")
    if why is not None or not survey.rates:
        yield Unchecked("memory, GEMM and copy rates of each GPU", why or "the time did not suffice: --budget 1m")
    if several and (why is not None or not survey.verifications):
        yield Unchecked("P2P written and read back", why or "the measurement left it out")
    if several and (why is not None or not survey.evidence):
        yield Unchecked("transports and NICs that the library really uses", why or "its log did not tell")
    snapshots = Counter(snapshot.gpu for snapshot in survey.health)
    if why is not None or not snapshots or min(snapshots.values()) < 2:
        yield Unchecked("growth of error counters under load", why or "they were not read before and after")


def _read(topology: Topology) -> Iterator[Unchecked]:
    gpus = [gpu for node in topology.nodes for gpu in node.shape.gpus]
    states = [state for node in topology.nodes for state in node.gpus]
    shapes = {id(node.shape): node.shape for node in topology.nodes}.values()
    paths = [path for shape in shapes for path in shape.paths]
    why = f"{_source(topology)} does not tell"
    if any(path.kind is PathKind.NVLINK for path in paths) and any(gpu.nvlinks_active is None for gpu in gpus):
        yield Unchecked("NVLinks that are up, GPU by GPU", why)
    if any(path.through is Through.SWITCH for path in paths) and all(state.fabric is None for state in states):
        yield Unchecked("the NVSwitch fabric's state", why)
    if not all(shape.nvlink_visible for shape in shapes):
        yield Unchecked("NVLink", f"{_source(topology)} cannot show it")
    if any(gpu.pcie is None or gpu.pcie.width is None for gpu in gpus):
        yield Unchecked("PCIe width and generation", why)
    if not any(shape.nics for shape in shapes):
        yield Unchecked("network cards", why)
    if all(state.memory_free_bytes is None for state in states):
        yield Unchecked("what else runs on the GPUs", why)


def _source(topology: Topology) -> str:
    return one_line(topology.provenance[0].source, 40) if topology.provenance else "the input"
