"""Inside a rank: rank 0 conducts, all ranks visit together, and rank 0 reports what came of it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from probe.bench import channel, collectives
from probe.bench.blame import is_out_of_memory
from probe.bench.collectives import Team
from probe.bench.compute import rates
from probe.bench.conductor import RATES, ROUNDS, Conductor, Visit
from probe.bench.device import CpuDevice, CudaDevice, Device, Operation
from probe.bench.evidence import evidence_in_file
from probe.bench.generations import Generation
from probe.bench.messages import Job, Measured, Point, Progress
from probe.bench.roster import Roster
from probe.bench.schedule import Step, curve_key, sizes_of
from probe.bench.sockets import interfaces, own_sockets, socket_evidence
from probe.bench.vitals import Vitals
from probe.errors import one_line
from probe.measurement import CurveKey, Evidence
from probe.statistics import median_interval
from probe.store import decode_survey
from probe.topology import GpuRef, Notice
from probe.units import mib

_END = -2
_MOST_TIMES = 200
_BATCH = 50
_TIGHT = 0.02
_IN_A_GRAPH = 10
"""Operations per graph, as vLLM times its all-reduce: launching once is what an engine does, too."""
_TEARDOWN_S = 0.3
_KEPT_BYTES = 64 << 20
_FINE, _NO_MEMORY, _WRONG, _NO_GRAPH = 0.0, 1.0, 2.0, 3.0

_TOLD_VARIABLES = (
    *("NCCL_ALGO", "NCCL_PROTO", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE"),
    *("NCCL_IB_HCA", "NCCL_NET_GDR_LEVEL", "NCCL_SOCKET_IFNAME", "NCCL_NVLS_ENABLE", "NCCL_CUMEM_ENABLE"),
    *("NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS", "GLOO_SOCKET_IFNAME", "CUDA_VISIBLE_DEVICES"),
)
"""Variables of the environment that change a figure, and tell nothing private: the others are never recorded."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a rank sits: its number in the world, its place on the node, and what it was forked for."""

    rank: int
    place: int
    generation: int
    share: float
    reports: socket.socket
    vitals: Vitals


def run(job: Job, roster: Roster, generation: Generation, seat: Seat) -> int:
    """The whole life of a rank; returns its exit code. What went wrong is said through the vitals."""
    try:
        # In memory: a rank may be killed at any time, and must leave nothing behind.
        log = Path(f"/proc/self/fd/{os.memfd_create('nccl.log')}")
        _Rank(job, roster, generation, seat, log).live()
        return 0
    except Exception as error:
        seat.vitals.say(seat.place, one_line(f"{type(error).__name__}: {error}"))
        return 1


class _Rank:
    """A rank between its first contact with the others and its last."""

    def __init__(self, job: Job, roster: Roster, generation: Generation, seat: Seat, log: Path) -> None:
        self.job, self.roster, self.generation, self.seat, self.log = job, roster, generation, seat, log
        self.ref = roster.members[seat.rank]
        self.world = len(roster.members)
        self.leads = seat.rank == 0
        self.teams: dict[tuple[int, ...], Team | None] = {}
        self.used: tuple[Evidence, ...] = ()
        self.dtype = "float32" if job.backend == "gloo" else "bfloat16"
        _set_environment(job, log)
        if job.backend != "gloo":
            _bind(roster.topology.gpu(self.ref).numa_node)
        self.device: Device = CpuDevice() if job.backend == "gloo" else CudaDevice(self._cuda_index())
        if job.backend == "gloo":
            torch.set_num_threads(1)
        meeting = job.rendezvous
        self.wait = timedelta(seconds=job.timeout_s)
        plain = dist.TCPStore(meeting.address, meeting.port, is_master=False, timeout=self.wait, wait_for_workers=False)
        self.store = dist.PrefixStore(f"{meeting.prefix}/generation/{seat.generation}", plain)
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("control", self.store),
            rank=seat.rank,
            world_size=self.world,
            timeout=self.wait + timedelta(seconds=2),  # the node's process notices first, and knows more
        )
        self.control = dist.distributed_c10d._get_default_group()
        self.before = own_sockets()

    def live(self) -> None:
        """Visits until the conductor has enough."""
        self._warm_up()
        conductor = self._conductor() if self.leads else None
        while True:
            self._meet()
            visit = self._announced(conductor)
            if visit is None:
                break
            began_s = time.monotonic()
            if visit.step == RATES:
                self._rates(visit)
                times: Sequence[Sequence[float]] | None = [[1.0]]
            else:
                times = self._visit(visit)
            if conductor is not None:
                if times is None:
                    conductor.failed(visit)
                else:
                    conductor.seen(visit, times, time.monotonic() - began_s)
        self._tell_all("used", Measured(evidence=self._evidence()))
        if conductor is not None:
            told = () if self.generation.log_only else conductor.why_missing()
            channel.send(self.seat.reports, Measured(missing=told, environment=self._environment()))
        self._meet()  # nobody leaves before all are heard

    def _warm_up(self) -> None:
        """The library starts before the first visit, which would pay for it and make all others look dear."""
        self._meet()
        team = self._team(tuple(range(self.world))) if self.world > 1 else None
        if team is not None:
            collectives.barrier(team, self.device)()
            self.device.synchronize()

    def _conductor(self) -> Conductor:
        job, now_s = self.job, time.monotonic()
        ends_s = None
        if job.budget_s is not None:
            ends_s = now_s + (job.started_s + job.budget_s - _TEARDOWN_S - now_s) * self.seat.share
        return Conductor(
            self.generation.steps,
            lambda step: sizes_of(step, job.backend, job.largest_bytes),
            self._have(),
            ends_s,
            rates=self.generation.rates,
            rounds=1 if self.generation.log_only else ROUNDS,
        )

    def _have(self) -> dict[tuple[int, int], tuple[int, float]]:
        """What a survey to be resumed holds of these steps: (step, size) -> (rounds, median)."""
        if self.job.resume is msgspec.UNSET or self.generation.log_only:
            return {}
        survey = decode_survey(bytes(self.job.resume), where="the survey to resume")
        curves = {(curve.key, curve.members): curve for curve in survey.curves}
        have: dict[tuple[int, int], tuple[int, float]] = {}
        if set(self.roster.members) <= {rate.gpu for rate in survey.rates}:
            have[RATES, 0] = 1, 1.0
        for number, step in enumerate(self.generation.steps):
            found = [curves.get((self._key(step, group), group)) for group in step.groups]
            sizes = [{s.size_bytes: s for s in curve.samples} if curve else {} for curve in found]
            for size in set.intersection(*(set(known) for known in sizes)):
                samples = [known[size] for known in sizes]
                have[number, size] = min(len(s.rounds_s) for s in samples), max(s.p50_s for s in samples)
        return have

    def _meet(self) -> None:
        """All ranks are here: the one that is not is named by gloo."""
        self.seat.vitals.beat(self.seat.place)
        dist.monitored_barrier(self.control, self.wait + timedelta(seconds=1), wait_all_ranks=True)

    def _announced(self, conductor: Conductor | None) -> Visit | None:
        words = torch.empty(4, dtype=torch.float64)
        if conductor is not None:
            visit = conductor.next(time.monotonic())
            step, size, seconds, number = (_END, 0, 0.0, 0) if visit is None else _words(visit)
            words[:] = torch.tensor([step, size, seconds, number], dtype=torch.float64)
            if visit is not None:
                channel.send(self.seat.reports, Progress(self._told(visit)))
        dist.broadcast(words, 0, group=self.control)
        step, size, seconds, number = words.tolist()
        return None if step == _END else Visit(int(step), int(size), seconds, int(number))

    def _told(self, visit: Visit) -> str:
        if visit.step == RATES:
            return "memory, GEMM and copies of every GPU"
        again = f", round {visit.round + 1}" if visit.round else ""
        size = mib(visit.size_bytes) if visit.size_bytes >= 1 << 20 else f"{visit.size_bytes >> 10} KiB"
        return f"{self.generation.steps[visit.step].label}, {size}{again}"

    def _visit(self, visit: Visit) -> list[list[float]] | None:
        """Times per group, in seconds; None where the size does not work, which has been reported then."""
        step = self.generation.steps[visit.step]
        groups = [tuple(self.roster.members.index(member) for member in group) for group in step.groups]
        everybody = self._team(tuple(sorted(rank for group in groups for rank in group)))
        team = next(filter(None, [self._team(group) for group in groups]), None)
        ready, state = None, _FINE
        if team is not None:
            try:
                ready = collectives.exchange(
                    step.operation,
                    team,
                    self.device,
                    visit.size_bytes,
                    collectives.DTYPES[self.dtype],
                    step.direction,
                )
                self.device.synchronize()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(f"{type(error).__name__}: {error}"):
                    raise
                state = _NO_MEMORY
        if self._bad(step, groups, visit, state):
            return None
        if ready is not None:
            try:
                state = _FINE if ready.is_right() else _WRONG
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(f"{type(error).__name__}: {error}"):
                    raise
                state = _NO_MEMORY
        if self._bad(step, groups, visit, state):
            return None
        operation, state = (ready.run if ready else None), _FINE
        if step.graph and self.device.has_graphs and operation is not None:
            try:
                operation = self.device.captured(operation, _IN_A_GRAPH)
            except RuntimeError:
                state = _NO_GRAPH
        if self._bad(step, groups, visit, state):
            return None
        times = self._times(step, groups, visit, everybody, operation, clocked=bool(ready and ready.clocked))
        if visit.size_bytes > _KEPT_BYTES and isinstance(self.device, CudaDevice):
            del ready
            torch.cuda.empty_cache()
        if not self.used and team is not None:
            self.used = socket_evidence(step.operation, own_sockets(), interfaces(), before=self.before)
        if self.leads and not self.generation.log_only:
            for group, group_times in zip(step.groups, times, strict=True):
                point = Point(self._key(step, group), group, visit.size_bytes, tuple(group_times))
                channel.send(self.seat.reports, point)
        return times

    def _times(
        self,
        step: Step,
        groups: Sequence[Sequence[int]],
        visit: Visit,
        everybody: Team | None,
        operation: Operation | None,
        *,
        clocked: bool,
    ) -> list[list[float]]:
        """Repeats until the median is known or the visit's seconds are over: all ranks see the same, and agree."""
        runs = _IN_A_GRAPH if step.graph and self.device.has_graphs else 1
        before = collectives.barrier(everybody, self.device) if everybody else None
        found: list[list[float]] = [[] for _ in groups]
        count, spent_s = 1, 0.0
        while True:
            own = self.device.times_s(operation, count, before=before) if operation else [0.0] * count
            own = [t / runs for t in own] if clocked else [0.0] * count
            told = collectives.gathered(own, self.world, self.control)
            for times, group in zip(found, groups, strict=True):
                times += [max(told[rank][i] for rank in group) for i in range(count)]
            self.seat.vitals.beat(self.seat.place)
            spent_s += runs * sum(max(times[-count + i] for times in found) for i in range(count))
            done = len(found[0])
            if done >= _MOST_TIMES or (done >= 3 and spent_s >= visit.seconds) or self.generation.log_only:
                return found
            if done >= 20 and max(_half_width(times) for times in found) < _TIGHT:
                return found
            left_s = max(visit.seconds - spent_s, 0.0)
            count = max(1, min(_BATCH, _MOST_TIMES - done, int(left_s / max(spent_s / done, 1e-9))))

    def _bad(self, step: Step, groups: Sequence[Sequence[int]], visit: Visit, state: float) -> bool:
        """Whether any rank met trouble with this size: reported, by the rank that leads, as what it is."""
        self.seat.vitals.beat(self.seat.place)
        states = [told[0] for told in collectives.gathered([state], self.world, self.control)]
        if not any(states):
            return False
        if self.leads:
            size = f"{step.label} of {visit.size_bytes:,} bytes"
            for rank, met in enumerate(states):
                if met == _NO_MEMORY:
                    what = f"{self.roster.name(rank)} has no memory for {size}, so it was left out."
                    cure = "Free memory there, or give a smaller --largest."
                    self._report(Notice("out-of-memory", f"{what} {cure}", self.roster.members[rank].node))
            if _NO_GRAPH in states:
                who = self.roster.name(states.index(_NO_GRAPH))
                what = f"{who} could not capture {size} in a graph, so it was left out: eager times stand for it."
                self._report(Notice("no-graph", f"{what} Look at the versions of torch and NCCL.", None))
            for group in groups:
                if any(states[rank] == _WRONG for rank in group):
                    wrong = ", ".join(self.roster.name(rank) for rank in group if states[rank] == _WRONG)
                    what = f"{size} gave wrong data at {wrong}: no time of it counts."
                    cure = "Do not serve on these GPUs before it is understood; try NCCL_P2P_DISABLE=1, look for Xid."
                    self._report(Notice("wrong-data", f"{what} {cure}", self.roster.members[group[0]].node))
        return True

    def _report(self, notice: Notice) -> None:
        channel.send(self.seat.reports, Measured(missing=(notice,)))

    def _rates(self, visit: Visit) -> None:
        found, missing = rates(self.device, self.ref, gemm_shapes=self.job.gemm_shapes, seconds=visit.seconds)
        self._tell_all("rates", Measured(rates=found, missing=missing))

    def _tell_all(self, what: str, measured: Measured) -> None:
        """Every rank's findings reach the parent of rank 0, through the store: they are too large for a tensor."""
        self.store.set(f"{what}/{self.seat.rank}", msgspec.json.encode(measured).decode())
        self._meet()
        if self.leads:
            told: list[Measured] = [
                msgspec.json.decode(self.store.get(f"{what}/{rank}"), type=Measured) for rank in range(self.world)
            ]
            for one in told:
                channel.send(self.seat.reports, one)

    def _team(self, ranks: tuple[int, ...]) -> Team | None:
        if ranks not in self.teams:
            self.teams[ranks] = collectives.new_team(ranks, self.seat.rank, self.job.backend, self.job.timeout_s + 2)
        return self.teams[ranks]

    def _key(self, step: Step, group: Sequence[GpuRef]) -> CurveKey:
        return curve_key(
            self.roster.topology,
            step,
            group,
            backend=self.job.backend,
            dtype="uint8" if step.operation == "p2p" else self.dtype,
            library_version=self._library,
        )

    @cached_property
    def _library(self) -> str:
        if self.job.backend == "gloo":
            return f"torch {torch.__version__}"
        return ".".join(map(str, torch.cuda.nccl.version()))

    def _evidence(self) -> tuple[Evidence, ...]:
        return self.used if self.job.backend == "gloo" else evidence_in_file(self.log)

    def _environment(self) -> tuple[tuple[str, str], ...]:
        told = [("backend", self.job.backend), ("library", self._library), ("torch", str(torch.__version__))]
        told += [(name, one_line(os.environ[name], 200)) for name in _TOLD_VARIABLES if name in os.environ]
        return tuple(told)

    def _cuda_index(self) -> int:
        """CUDA's number of this GPU: by UUID, since CUDA and NVML may count in different orders."""
        state = self.roster.topology.state(self.ref)
        for index in range(torch.cuda.device_count()):
            uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
            if uuid and state.uuid is not None and state.uuid.removeprefix("GPU-") == uuid.removeprefix("GPU-"):
                return index
        return self.seat.place if state.cuda_index is None else state.cuda_index


def _words(visit: Visit) -> tuple[int, int, float, int]:
    return visit.step, visit.size_bytes, visit.seconds, visit.round


def _half_width(times: Sequence[float]) -> float:
    interval = median_interval([tuple(times)])
    return float("inf") if interval is None else (interval[1] - interval[0]) / sum(interval)


def _set_environment(job: Job, log: Path) -> None:
    """Before any library reads it. The log is ours alone; what a person set of the rest stays."""
    subsystems = os.environ.get("NCCL_DEBUG_SUBSYS", "") if "TUNING" in os.environ.get("NCCL_DEBUG_SUBSYS", "") else ""
    os.environ |= {
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_FILE": str(log),
        "NCCL_DEBUG_SUBSYS": subsystems or "INIT,ENV,GRAPH,NET",
    }
    if job.rendezvous.interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", job.rendezvous.interface)
    if job.named_interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = job.named_interface
        os.environ["NCCL_SOCKET_IFNAME"] = f"={job.named_interface}"  # exactly that one, not all that begin so


def _bind(numa_node: int | None) -> None:
    """To the CPUs beside the GPU: else its copies come from either socket, run by run."""
    if numa_node is None:
        return
    with contextlib.suppress(OSError, ValueError):
        told = Path(f"/sys/devices/system/node/node{numa_node}/cpulist").read_text("ascii").strip()
        spans = [part.partition("-") for part in told.split(",") if part]
        cpus = {cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1)}
        os.sched_setaffinity(0, cpus & os.sched_getaffinity(0))
