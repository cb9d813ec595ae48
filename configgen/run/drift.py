"""Was the plan made for what is there now? GPU by GPU, wire by wire, each difference in one line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from configgen.plan import Plan
from configgen.run.place import TAKEN_FOR_ALL, gpu_differences, on_own_gpus
from probe.errors import one_line
from probe.islands import bottleneck, fingerprint
from probe.topology import GpuRef, Node, NodeShape, Path, PathKind, Topology


def differences(plan: Plan, node: int, present: Topology, *, made_on: Topology | None = None) -> list[str]:
    """What of node `node` of the plan is not as it was, on the single node that is there. `made_on` is the topology
    that the plan was made on, where it is at hand: then every wire is compared, else those that the plan tells of."""
    plan = on_own_gpus(plan, node, present)
    gpus = list(gpu_differences(plan, node, present))
    here = present.nodes[0]
    before = _node_of(plan, node, made_on)
    found = [*gpus, *(_wires(before, here) if before is not None else _stages(plan, node, here))]
    if not found:
        found += _whole(plan, before, present)
    return list(dict.fromkeys(f"node {node}: {text}" if len(plan.gpu_order) > 1 else text for text in found))


def _node_of(plan: Plan, node: int, made_on: Topology | None) -> Node | None:
    """The node as the plan has it; None where the topology is not the plan's own."""
    if made_on is None or fingerprint(made_on) != plan.fingerprint or len(made_on.nodes) != len(plan.gpu_order):
        return None
    return made_on.nodes[node]


def _wires(before: Node, here: Node) -> Iterator[str]:
    """Every pair of GPUs, and the links of each, as far as both tell them."""
    n = len(before.gpus)
    if len(here.gpus) != n:
        yield f"{len(here.gpus)} GPUs, and {n} when it was planned"
        return
    for a, b in combinations(range(n), 2):
        then, now = before.shape.path(a, b), here.shape.path(a, b)
        if then.label != now.label and PathKind.UNKNOWN not in (then.kind, now.kind):
            yield f"GPU {a} and GPU {b} are joined by {now.label}, and were by {then.label}"
    for then_gpu, now_gpu in zip(before.shape.gpus, here.shape.gpus, strict=True):
        links = then_gpu.nvlinks_active, now_gpu.nvlinks_active
        if None not in links and links[0] != links[1]:
            yield f"GPU {then_gpu.index} has {links[1]} active NVLinks, and had {links[0]}"
    yield from _nics(before.shape, here.shape)


def _nics(before: NodeShape, here: NodeShape) -> Iterator[str]:
    then, now = ({nic.name: nic for nic in shape.nics} for shape in (before, here))
    for name in sorted(then.keys() - now.keys()):
        yield f"the NIC {one_line(name, 40)} is gone"
    for name in sorted(now.keys() - then.keys()):
        yield f"the NIC {one_line(name, 40)} is new"
    for name in sorted(then.keys() & now.keys()):
        if then[name].speed_gbps != now[name].speed_gbps:
            was, is_now = (_speed(nic.speed_gbps) for nic in (then[name], now[name]))
            yield f"the NIC {one_line(name, 40)} runs at {is_now}, and ran at {was}"


def _speed(gbps: float | None) -> str:
    return "an unknown speed" if gbps is None else f"{gbps:g} Gbit/s"


def _stages(plan: Plan, node: int, here: Node) -> Iterator[str]:
    """What the plan itself remembers of wires: the slowest path inside the stages of a replica."""
    for number, replica in enumerate(plan.replicas):
        if replica.tp_path in (None, PathKind.UNKNOWN.value) or replica.nodes != (node,):
            continue
        paths = [path for stage in replica.stages for path in _inside(stage, here)]
        slowest = bottleneck(paths)
        if slowest is not None and slowest.label != replica.tp_path and slowest.kind is not PathKind.UNKNOWN:
            yield f"replica {number}: the slowest path of its stages is {slowest.label}, and was {replica.tp_path}"


def _inside(stage: tuple[GpuRef, ...], here: Node) -> Iterator[Path]:
    n = len(here.gpus)
    for a, b in combinations([ref.gpu for ref in stage], 2):
        if a < n and b < n:
            yield here.shape.path(a, b)


def _whole(plan: Plan, before: Node | None, present: Topology) -> Iterator[str]:
    """What no line above names: memory, another switch, GPUs that the plan leaves out."""
    if TAKEN_FOR_ALL in plan.provenance:
        return  # made for nodes that nobody had seen
    if before is not None:
        then = fingerprint(Topology((before,)))
    elif len(plan.gpu_order) == 1:
        then = plan.fingerprint
    else:
        return
    now = fingerprint(present)
    if then != now:
        yield f"the fingerprint is {now}, and was {then}: memory, NICs, or GPUs that the plan leaves out, have changed"
