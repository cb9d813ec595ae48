"""What a node is left with: its files as a pure function of the plan, and the volume that takes all or none of them."""

from __future__ import annotations

import contextlib
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
from configgen.run.group import digest
from configgen.run.launch import Start, starts
from configgen.run.messages import Proposal
from configgen.run.place import Place
from probe.errors import UsageError, one_line
from probe.measurement import Survey
from probe.store import to_json, write_atomically
from probe.topology import Topology
from probe.units import count

RECORD = "facts.json"
_PENDING = ".pending"
_SUMMARY_BYTES = 4096
"""What Kubernetes keeps of a termination message (kubernetes.io, "Determine the Reason for Pod Failure")."""
_MOST_BYTES = 128 << 20


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan in a folder was made for, so that a second run knows whether it still holds."""

    schema_version: int = 1
    version: str
    request: str
    node: int
    members: tuple[str, ...]
    """Facts of each node of the group, as digests; empty where the group did not meet ..."""
    facts: str
    """... and of this node."""
    addresses: tuple[str, ...]
    plan: str
    """Digest of plan.json: equal on all nodes."""
    survey: str
    """Digest of survey.json."""
    reason: str | None
    """Why the group did not meet."""
    unmeasured: str | None
    """Why nothing was measured, where that is no fault."""
    faults: tuple[str, ...]
    """What went wrong on the way, and makes the plan worse."""
    files: tuple[str, ...]


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
    """File name -> content. Equal papers give equal bytes. Raises UsageError for what the environment should tell."""
    decided = decode_plan(paper.plan.encode(), where="plan.json")
    launch = launch_of(decided)
    record = paper.record
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


class Volume:
    """The folder that the engine's container mounts: first all files beside the old ones, then all in their place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending = folder / _PENDING

    def record(self) -> Record | None:
        """Of the plan that counts; None without one, and for what nobody here wrote."""
        return _record(self.folder / RECORD)

    def pending(self) -> Record | None:
        """Of a plan that was staged and neither published nor discarded."""
        return _record(self._pending / RECORD)

    def held(self) -> Proposal | None:
        """The plan that counts, whole as it was written."""
        record = self.record()
        if record is None:
            return None
        plan, survey = (_text(self.folder / name) for name in ("plan.json", "survey.json"))
        if plan is None or survey is None or (digest(plan), digest(survey)) != (record.plan, record.survey):
            return None
        return Proposal(
            plan=plan,
            survey=survey,
            addresses=record.addresses,
            members=record.members,
            unmeasured=record.unmeasured,
            faults=record.faults,
        )

    def stage(self, files: dict[str, bytes]) -> None:
        """All that differs from what is there. Raises UsageError where there is no room or no right to write."""
        self.discard()
        changed = {name: data for name, data in files.items() if not _holds(self.folder / name, data, _mode(name))}
        if not changed:
            return
        for path in (self.folder / name for name in changed):
            if path.is_dir() and not path.is_symlink():  # found out when it is published, others may have started
                raise UsageError(f"cannot write into {self.folder}: {path.name} is a folder", cure="Take it away.")
        try:
            self._pending.mkdir(parents=True, exist_ok=True)
            for name, data in sorted(changed.items(), key=lambda file: file[0] == RECORD):
                write_atomically(self._pending / name, data)
                if _mode(name):
                    (self._pending / name).chmod(_mode(name))
        except OSError as error:
            self.discard()
            raise UsageError(
                f"cannot write into {self.folder}: {error.strerror}", cure="Name another with --folder."
            ) from error
        except UsageError as error:
            self.discard()
            raise UsageError(error.problem, cure="Make room, or name another folder with --folder.") from error

    def publish(self) -> None:
        """What was staged takes its place; what the last plan needed and this one doesn't is removed."""
        if not self._pending.is_dir():
            return
        former, record = self.record(), self.pending()
        try:
            names = sorted((path.name for path in self._pending.iterdir()), key=lambda name: name == RECORD)
            for name in names:
                (self._pending / name).replace(self.folder / name)
            self._pending.rmdir()
            for name in sorted(set(former.files if former else ()) - set(record.files if record else ())):
                if record is not None and Path(name).name == name:
                    (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write into {self.folder}: {error.strerror}", cure="Name another with --folder."
            ) from error

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            for path in self._pending.iterdir():
                path.unlink()
            self._pending.rmdir()


def _record(path: Path) -> Record | None:
    text = _text(path)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Record)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        return data.decode() if len(data) <= _MOST_BYTES else None
    except (OSError, UnicodeDecodeError):
        return None


def _mode(name: str) -> int:
    """What must be allowed; 0 for what the process's own mask says."""
    return 0o755 if name == "start" else 0


def _holds(path: Path, data: bytes, mode: int) -> bool:
    try:
        told = path.stat()
        fits = told.st_size == len(data) and told.st_mode & mode == mode
        return path.is_file() and fits and path.read_bytes() == data
    except OSError:
        return False
