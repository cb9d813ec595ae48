"""What a node is left with: its files, as a pure function of the plan."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from configgen.document import decode_plan
from configgen.engines.launcher import launch_of
from configgen.launch import Launch, Process
from configgen.plan import Plan
from configgen.report.lines import measured_line
from configgen.run.launch import Start, starts
from configgen.run.place import Place, on_own_gpus
from configgen.run.volume import RECORD, Record
from probe.errors import NoGpuError, one_line
from probe.measurement import Survey
from probe.store import to_json
from probe.topology import Topology
from probe.units import count

_SUMMARY_BYTES = 4096
"""What Kubernetes keeps of a termination message (kubernetes.io, "Determine the Reason for Pod Failure")."""


@dataclass(frozen=True, slots=True)
class Paper:
    """One decision, as a node is to have it."""

    plan: str
    survey: str
    measured: Survey
    """The same survey, read."""
    record: Record
    launcher: str
    """Who told this node its number."""
    address: str
    """Of node 0, as the launcher tells it; empty for a node alone."""
    here: Topology
    """This node as it was just read."""


def node_files(paper: Paper, folder: Path, environ: dict[str, str]) -> dict[str, bytes]:
    """File name -> content. Equal papers give equal bytes. Raises UsageError for what the environment should tell, and
    NoGpuError where this node's GPUs can't be told to who starts its part."""
    planned = decode_plan(paper.plan.encode(), where="plan.json")
    record = paper.record
    decided = on_own_gpus(planned, record.node, paper.here)
    if decided != planned:
        _require_own_start(planned, record.node)
    launch = launch_of(decided)
    own = list(_starts(launch, decided, paper, folder, environ))
    configs = _configs(launch, [process for process, _ in own])
    ready = [start for _, start in own]
    files = {
        "plan.json": paper.plan,
        "survey.json": paper.survey,
        "plan.env": _plan_env(decided, record, ready),
        "argv.json": _argv(ready),
        "start": _start_script(decided, paper, ready),
        "summary.txt": summary(decided, paper, ready),
        **configs,
    }
    record = msgspec.structs.replace(record, files=tuple(sorted([*files, RECORD])))
    return {name: text.encode() for name, text in files.items()} | {RECORD: to_json(record)}


def _require_own_start(plan: Plan, node: int) -> None:
    """Raises NoGpuError where one command starts a replica's ranks on several nodes: it names the same GPUs on all."""
    started = {(process.node, process.replica) for process in launch_of(plan).processes}
    for number, replica in enumerate(plan.replicas):
        if node in replica.nodes and any((other, number) not in started for other in replica.nodes):
            raise NoGpuError(
                "the group did not meet, and the GPUs that this node may use are not its first ones, while one command "
                f"of {plan.engine.engine} starts a server on several nodes, with the same GPUs on each",
                cure="Give all nodes the same CUDA_VISIBLE_DEVICES, or start the group again so that it meets.",
            )


def _starts(
    launch: Launch, decided: Plan, paper: Paper, folder: Path, environ: dict[str, str]
) -> Iterable[tuple[Process, Start]]:
    """Each process of this node, told the address of its own replica's first node."""
    for process in launch.processes:
        if process.node != paper.record.node:
            continue
        first = decided.replicas[process.replica].nodes[0]
        address = paper.address if first == 0 else _at(paper.record.addresses, first)
        place = Place(paper.record.node, paper.launcher, address=address or None, address_of=first)
        yield from starts(replace(launch, processes=(process,)), decided, place, folder, environ)


def _at(addresses: Sequence[str], node: int) -> str:
    return addresses[node] if node < len(addresses) else ""


def _configs(launch: Launch, processes: Sequence[Process]) -> dict[str, str]:
    from configgen.deploy.config import config_text

    return {file.name: config_text(launch, file) for process in processes for file in process.files}


def _argv(ready: Sequence[Start]) -> str:
    told = [{"argv": list(s.argv), "environment": dict(s.variables), "port": s.port} for s in ready]
    return json.dumps(told, indent=2) + "\n"


def _plan_env(decided: Plan, record: Record, ready: Sequence[Start]) -> str:
    """Sizes for whoever writes the command by hand, then what every server of this node is told."""
    p = decided.parallelism
    sizes = {
        "PLAN_TENSOR_PARALLEL_SIZE": p.tp,
        "PLAN_PIPELINE_PARALLEL_SIZE": p.pp,
        "PLAN_DATA_PARALLEL_SIZE": p.dp,
        "PLAN_EXPERT_PARALLEL_SIZE": p.ep,
        "PLAN_ATTENTION_DATA_PARALLEL_SIZE": p.attention_dp,
        "PLAN_NODE": record.node,
        "PLAN_NODES": len(decided.gpu_order),
        "PLAN_DIGEST": record.plan,
        "PLAN_DEGRADED": "true" if decided.degraded else "false",
    }
    shared = [v for v in (ready[0].variables if ready else ()) if all(v in start.variables for start in ready)]
    told = [f"{name}={value}" for name, value in shared if value.isprintable()]
    return "".join(f"{line}\n" for line in (*(f"{name}={value}" for name, value in sizes.items()), *told))


def _start_script(decided: Plan, paper: Paper, ready: Sequence[Start]) -> str:
    from configgen.templates import fill

    node = paper.record.node
    order, planned_uuids = decided.gpu_order[node], decided.gpu_uuids[node]
    states = paper.here.nodes[0].gpus
    uuids = [
        uuid or (states[i].uuid if i < len(states) else None) for i, uuid in zip(order, planned_uuids, strict=True)
    ]
    return fill(
        "start.sh.j2",
        engine=decided.engine.engine,
        version=decided.engine.version,
        node=node,
        nodes=len(decided.gpu_order),
        digest=paper.record.plan,
        planned=[(index, uuid) for index, uuid in zip(order, uuids, strict=True) if uuid is not None],
        starts=ready,
    )


def summary(decided: Plan, paper: Paper, ready: Sequence[Start]) -> str:
    """What a person reads first; fits into Kubernetes' termination message."""
    p, record = decided.parallelism, paper.record
    nodes = len(decided.gpu_order)
    where = f"node {record.node} of {nodes} ({paper.launcher})" if nodes > 1 else "this node alone"
    lines = [
        f"wirelore {record.version}: {decided.model.name} on {count(p.gpus, 'GPU')}: {p.label}, "
        f"confidence {decided.confidence}",
        f"{where}, plan {record.plan[:12]}",
        measured_line(paper.measured) or f"not measured{f': {record.unmeasured}' if record.unmeasured else ''}",
    ]
    lines += [f"not met: {record.reason}"] if record.reason else []
    lines += [f"degraded: {text}" for text in decided.degraded]
    lines += [f"starts: {' '.join(start.argv)}" for start in ready] or ["starts: nothing on this node"]
    text = "".join(f"{one_line(line, 600)}\n" for line in lines)
    return text.encode()[:_SUMMARY_BYTES].decode(errors="ignore")
