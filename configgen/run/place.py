"""Which node of a plan this is, and whether its GPUs are the planned ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from configgen.launch import is_hostname
from configgen.plan import Plan
from probe.bench.rendezvous import is_ip, parse_endpoint, told_by_launcher
from probe.errors import NoGpuError, UsageError, one_line
from probe.topology import GpuRef, GpuState, GpuStatus, Node, Origin, Provenance, Topology
from probe.units import count, some

TAKEN_FOR_ALL = Origin("gpus", Provenance.ASSUMED, "this node's, taken for those of every node")
"""Marks a plan that needed no meeting."""
_NODE_CURE = "Name this node's part with --node N."
_OTHER_CURE = "Run `wirelore plan` again on this machine, or name this node's part with --node N."


@dataclass(frozen=True, slots=True)
class Place:
    """This node's position in the plan, who told it, and what is known of the first node's address."""

    node: int
    origin: str
    names_hold: bool = False
    """Whether this host's own name is the plan's, so that its other names are names of this cluster too."""
    address: str | None = None
    """What MASTER_ADDR says, of whatever node `address_of` names; None where it names the first of any replica."""
    address_of: int | None = None


def find_place(plan: Plan, environ: Mapping[str, str], *, node: int | None, hostname: str) -> Place:
    """--node, else this host's name in the plan, else the launcher's rank. Raises UsageError where nobody tells."""
    nodes = len(plan.hostnames)
    named = [i for i, name in enumerate(plan.hostnames) if name and _is_same(name, hostname)]
    own_word = _address(environ)
    if node is not None:
        if node >= nodes:
            raise UsageError(
                f"--node {node}: the plan has {count(nodes, 'node')}", cure=f"Give a number from 0 to {nodes - 1}."
            )
        return Place(node, "--node", named == [node], own_word)
    try:
        told = told_by_launcher(environ, nodes if nodes > 1 else None)
    except UsageError as error:
        raise UsageError(error.problem, cure=_NODE_CURE) from error
    rank = told.node if told is not None and (told.nodes or nodes) != 1 else None
    if len(named) == 1:
        if told is None or rank is None:
            return Place(named[0], "its name", True, own_word)
        same = rank == named[0]
        return Place(named[0], "its name", True, told.address if same else None, 0 if same else None)
    if told is not None and rank is not None:
        started = told.nodes if told.nodes is not None else nodes
        if rank >= nodes or started < _last(plan) + 1:
            raise UsageError(
                f"{told.origin} says node {rank} of {started}, and the plan has {count(nodes, 'node')}",
                cure=f"Start it on {count(_last(plan) + 1, 'node')}, or plan for these with --from.",
            )
        return Place(rank, told.origin, False, told.address or own_word, 0)
    if nodes == 1:
        return Place(0, "the only node", False, own_word)
    known = some([one_line(name, 40) for name in plan.hostnames if name], 4)
    raise UsageError(
        f"nobody says which of the plan's {nodes} nodes this is: {one_line(hostname, 60)!r} is not among "
        f"{known or 'its names, for it has none'}",
        cure="Name it with --node N, or start with torchrun, srun or mpirun.",
    )


def master_address(plan: Plan, place: Place, replica: int) -> str:
    """The address of the replica's first node. Raises UsageError where nobody tells it."""
    first = plan.replicas[replica].nodes[0]
    name = plan.hostnames[first]
    if place.address is not None and place.address_of in (None, first):
        return place.address
    if place.names_hold and name is not None and (is_ip(name) or is_hostname(name)):
        return name
    which = f"node {first} ({one_line(name, 60)})" if name else f"node {first}"
    more = f"--node {place.node} and " if place.address is not None else ""
    raise UsageError(
        f"replica {replica} begins on {which}, and nobody says its address",
        cure=f"Start with {more}MASTER_ADDR set to the address of node {first}.",
    )


def on_own_gpus(plan: Plan, node: int, present: Topology) -> Plan:
    """A plan that needed no meeting, with the indices by which this very node has its GPUs; any other as it is.

    Only for starting and comparing: it is the plan as it was made that is equal on all nodes.
    """
    seen = visible_gpus(present.nodes[0])
    if TAKEN_FOR_ALL not in plan.provenance or max(plan.gpu_order[node], default=0) >= len(seen):
        return plan

    def own(ref: GpuRef) -> GpuRef:
        return GpuRef(node, seen[ref.gpu]) if ref.node == node else ref

    replicas = tuple(replace(r, stages=tuple(tuple(map(own, stage)) for stage in r.stages)) for r in plan.replicas)
    order = [tuple(seen[i] for i in used) if n == node else used for n, used in enumerate(plan.gpu_order)]
    return replace(plan, replicas=replicas, gpu_order=tuple(order))


def visible_gpus(node: Node) -> list[int]:
    """Those that the scheduler gave: some hand them out by a variable, and hide nothing else of the host."""
    return [index for index, state in enumerate(node.gpus) if state.visible]


def require_planned_gpus(plan: Plan, node: int, topology: Topology) -> None:
    """Raises NoGpuError naming each planned GPU that is missing, another, elsewhere or out of use on this machine."""
    wrong = list(gpu_differences(plan, node, topology))
    if wrong:
        raise NoGpuError(f"this machine is not node {node} of the plan: {some(wrong, 3)}", cure=_OTHER_CURE)


def gpu_differences(plan: Plan, node: int, topology: Topology) -> Iterator[str]:
    """One line for each planned GPU of the node that is not on this machine as planned."""
    present = topology.nodes[0]
    models = plan.gpu_models[node] if plan.gpu_models else (None,) * len(plan.gpu_order[node])
    for index, uuid, model in zip(plan.gpu_order[node], plan.gpu_uuids[node], models, strict=True):
        if (text := _wrong(index, uuid, model, present)) is not None:
            yield text


def _wrong(index: int, uuid: str | None, model: str | None, present: Node) -> str | None:
    """What is the matter with one planned GPU; None where it is there as planned."""
    states = present.gpus
    planned = f"planned GPU {index}" + (f" ({one_line(uuid, 50)})" if uuid else "")
    found = next((i for i, state in enumerate(states) if uuid is not None and uuid in _uuids(state)), None)
    if uuid is not None and found is None:
        if index >= len(states):
            return f"{planned} is missing: there are {count(len(states), 'GPU')}"
        if _uuids(states[index]):
            return f"{planned} is missing, GPU {index} is {one_line(_uuids(states[index])[0], 50)}"
    if found is not None and found != index:
        return f"{planned} is GPU {found} here"
    if index >= len(states):
        return f"{planned} is missing: there are {count(len(states), 'GPU')}"
    state, name = states[index], present.shape.gpus[index].name
    if state.status is not GpuStatus.OK:
        return f"{planned} is {state.status.value}: {one_line(state.status_reason or 'no reason told', 80)}"
    if not state.visible:
        return f"{planned} is hidden by CUDA_VISIBLE_DEVICES"
    if model is not None and name is not None and model != name:
        return f"{planned} is planned as {one_line(model, 50)} and is {one_line(name, 50)}"
    return None


def _uuids(state: GpuState) -> list[str]:
    """By which an engine may have been given this GPU: those of its instances where it is cut."""
    own = [m.uuid for m in state.mig_instances] if state.mig_instances else [state.uuid]
    return [uuid for uuid in own if uuid is not None]


def _last(plan: Plan) -> int:
    return max(node for replica in plan.replicas for node in replica.nodes)


def _address(environ: Mapping[str, str]) -> str | None:
    return parse_endpoint(environ["MASTER_ADDR"], "MASTER_ADDR")[0] if environ.get("MASTER_ADDR") else None


def _is_same(planned: str, own: str) -> bool:
    """'gpu03' and 'gpu03.cluster' are one host; two full names must be equal."""
    a, b = planned.lower().rstrip("."), own.lower().rstrip(".")
    return a == b or (("." in a) != ("." in b) and a.partition(".")[0] == b.partition(".")[0])
