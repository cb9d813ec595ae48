"""The plan of a group that did not meet: a pure function of what every member knows by itself, so all have the same.

Its GPUs are counted without the hidden ones, which may be others on each node: place.on_own_gpus says which they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from configgen.model import ModelSpec
from configgen.plan import EngineTraits, Limits, Plan, Workload
from configgen.run.one_server import plan_for_group
from configgen.run.place import TAKEN_FOR_ALL, visible_gpus
from probe.catalog import gpu_figures
from probe.errors import NoGpuError
from probe.measurement import Survey
from probe.sources.told import with_assumed_memory
from probe.topology import (
    Gpu,
    GpuState,
    GpuStatus,
    NetworkPath,
    Node,
    NodeShape,
    Path,
    PathKind,
    Topology,
)
from probe.units import GIB, count

ASSUMED = "the group did not meet: {nodes} with {gpus} each are assumed, all equal, with unknown wires"
"""The first line of what is degraded; who was missing stands beside the plan, for that is not the same everywhere."""


@dataclass(frozen=True, slots=True)
class SeenGpu:
    """What of a GPU may be taken for granted on every node of a group that was asked for with one template."""

    name: str | None
    memory_bytes: int | None
    """The catalog's, else whole GiB: drivers of different age report some MiB more or less of the same GPU."""
    compute_capability: tuple[int, int] | None


def seen_gpus(topology: Topology) -> tuple[SeenGpu, ...]:
    """This node's GPUs without the hidden ones, as the other nodes are assumed to have them.

    Raises NoGpuError where what the others will start cannot run here: that is then known, not assumed.
    """
    node = topology.nodes[0]
    seen = visible_gpus(node)
    if not seen:
        raise NoGpuError(
            "the group did not meet, and all GPUs of this node are hidden",
            cure="Correct or unset CUDA_VISIBLE_DEVICES.",
        )
    for index in seen:
        state = node.gpus[index]
        if state.status is not GpuStatus.OK or state.mig_instances:
            what = "is cut into MIG instances" if state.mig_instances else f"is {state.status.value}"
            raise NoGpuError(
                f"the group did not meet, and GPU {index} of this node {what}: no plan for equal nodes can use it",
                cure="See `wirelore probe`, or start the group again so that it meets.",
            )
    gpus = [node.shape.gpus[index] for index in seen]
    return tuple(SeenGpu(gpu.name, _memory(gpu), gpu.compute_capability) for gpu in gpus)


def _memory(gpu: Gpu) -> int | None:
    figures = gpu_figures(gpu.name)
    if figures is not None and figures.memory_bytes is not None:
        return figures.memory_bytes
    return gpu.memory_bytes // GIB * GIB or None if gpu.memory_bytes is not None else None


def plan_without_meeting(
    nodes: int,
    gpus: Sequence[SeenGpu],
    model: ModelSpec,
    workload: Workload,
    traits: EngineTraits,
    limits: Limits,
) -> Plan:
    """The same plan, to the byte, on every member that is given the same; it names no host and no UUID.

    Only the leader's address is known without a meeting, so a replica that spans nodes begins on node 0. Raises
    NoPlanError where there is none.
    """
    survey = Survey(_equal_nodes(nodes, gpus))
    decided = plan_for_group(survey, model, workload, traits, limits, what_if=False)
    if any(len(replica.nodes) > 1 and replica.nodes[0] != 0 for replica in decided.replicas):
        alone = replace(limits, gpus=decided.parallelism.gpus_per_replica)
        decided = plan_for_group(survey, model, workload, traits, alone, what_if=False)
    said = ASSUMED.format(nodes=count(nodes, "node"), gpus=count(len(gpus), "GPU"))
    return replace(decided, degraded=(said, *decided.degraded))


def _equal_nodes(nodes: int, gpus: Sequence[SeenGpu]) -> Topology:
    shape = NodeShape(
        tuple(
            Gpu(
                index,
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                compute_capability=gpu.compute_capability,
            )
            for index, gpu in enumerate(gpus)
        ),
        tuple(Path(PathKind.UNKNOWN) for _ in combinations(gpus, 2)),
    )
    node = Node(shape, (GpuState(),) * len(gpus))
    network = (NetworkPath(PathKind.NET, tuple(range(nodes))),) if nodes > 1 else ()
    return with_assumed_memory(Topology((node,) * nodes, network, provenance=(TAKEN_FOR_ALL,)))
