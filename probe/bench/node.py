"""The process of a node: imports torch once, brings the nodes together, forks a rank per GPU, watches them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import msgspec
import torch.distributed as dist

from probe.bench import channel, worker
from probe.bench.blame import Sight, explains, verdict
from probe.bench.generations import Generation, generations
from probe.bench.messages import Done, Failed, Job, Joined, Measured, Progress, Rendezvous
from probe.bench.roster import Roster
from probe.bench.vitals import Vitals, is_stopped
from probe.errors import MeasureError, UsageError, WireloreError, one_line
from probe.merge import cluster
from probe.store import decode_survey, encode_topology
from probe.topology import Topology
from probe.units import some

T = TypeVar("T")

_TICK_S = 0.1
_BEAT_S = 0.5
_HEAR_S = 3.0
"""How long a node listens to the others when something went wrong, before it calls the cause unknown."""
_SETTLE_S = 1.0
"""A rank that is killed closes its connections before its end can be seen: the others' errors come first."""
_TROUBLE = "trouble"


class Board:
    """What the nodes write for each other, on the store of node 0. Every call has a deadline: a link can be cut."""

    def __init__(self, store: dist.Store) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1)
        self._poll: Future[bool] | None = None

    def claimed(self, key: str, within_s: float) -> int | None:
        """How many, with this one, have claimed it by now; None where the store does not answer."""
        return _result(self._thread.submit(self.store.add, key, 1), within_s)

    def write(self, key: str, text: str, within_s: float = _HEAR_S) -> None:
        _result(self._thread.submit(self.store.set, key, text), within_s)

    def read(self, keys: list[str], within_s: float) -> dict[str, str]:
        """Those of the keys that are written within this time."""
        found: dict[str, str] = {}
        ends = time.monotonic() + within_s
        while len(found) < len(keys) and time.monotonic() < ends:
            for key in [key for key in keys if key not in found]:
                if _result(self._thread.submit(self.store.check, [key]), ends - time.monotonic()):
                    text = _result(self._thread.submit(self.store.get, key), ends - time.monotonic())
                    if text is not None:
                        found[key] = text.decode()
            if len(found) < len(keys):
                time.sleep(_TICK_S / 4)
        return found

    def is_troubled(self) -> bool:
        """Whether some node has met trouble, as far as it is known by now: never waits."""
        if self._poll is None:
            self._poll = self._thread.submit(self.store.check, [_TROUBLE])
        if not self._poll.done():
            return False
        poll, self._poll = self._poll, None
        return poll.exception() is None and poll.result()


def _result(call: Future[T], within_s: float) -> T | None:
    try:
        return call.result(max(0.0, within_s))
    except (TooLate, RuntimeError, OSError):
        return None


@dataclass
class Child:
    """A rank as its parent sees it. `status` is a wait status, None while it runs."""

    pid: int
    rank: int
    status: int | None = None

    def reap(self) -> None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status

    @property
    def killed_by(self) -> int | None:
        """The signal that ended it."""
        return os.WTERMSIG(self.status) if self.status and os.WIFSIGNALED(self.status) else None

    def kill(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitpid(self.pid, 0)[1]


@dataclass
class NodeProcess:
    """From the first contact with the other nodes to the last rank's end."""

    job: Job
    board: Board
    reports: socket.socket
    roster: Roster

    def run(self) -> None:
        """Generation after generation, until one cannot finish."""
        plans = generations(self.roster.topology, backend=self.job.backend, every_pair=self.job.every_pair)
        for number, generation in enumerate(plans):
            share = generation.share / sum(later.share for later in plans[number:])
            if not self._generation(number, generation, share):
                return
        channel.send(self.reports, Done())

    def _generation(self, number: int, generation: Generation, share: float) -> bool:
        """Forks the ranks and sees them through. False where they could not finish: the parent has been told why."""
        meeting = self.job.rendezvous
        alone = meeting.nodes == 1  # in a lab, one host stands for a whole described cluster
        mine = range(len(self.roster.members)) if alone else self.roster.of_node(meeting.node)
        vitals = Vitals(len(mine))
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        children = []
        own = os.getpid()
        for place, rank in enumerate(mine):
            pid = os.fork()
            if pid == 0:
                channel.die_with(own)
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
                os.environ.update(generation.environment)
                seat = worker.Seat(rank, place, number, share, self.reports, vitals)
                os._exit(worker.run(self.job, self.roster, generation, seat))
            children.append(Child(pid, rank))
        if number == 0:
            document = zlib.compress(encode_topology(self.roster.topology))
            channel.send(self.reports, Joined(document, tuple(child.pid for child in children)))
        try:
            return self._watched(number, children, vitals)
        finally:
            for child in children:
                child.kill()

    def _watched(self, number: int, children: list[Child], vitals: Vitals) -> bool:
        beats, moved_s, told_s = vitals.beats, time.monotonic(), 0.0
        while any(child.status is None for child in children):
            signal.sigtimedwait({signal.SIGCHLD}, _TICK_S)
            for child in children:
                child.reap()
            now_s = time.monotonic()
            if vitals.beats != beats:
                beats, moved_s = vitals.beats, now_s
            if now_s - told_s > _BEAT_S:
                channel.send(self.reports, Progress(""))
                told_s = now_s
            what = None
            if any(child.status for child in children):
                what = "a rank failed"
            elif now_s - moved_s > self.job.timeout_s:
                what = f"nothing moved for {self.job.timeout_s:g} s"
            elif self.job.rendezvous.nodes > 1 and self.board.is_troubled():
                what = "another node met trouble"
            if what is not None:
                self._tell(number, children, vitals, what)
                return False
        return True

    def _tell(self, number: int, children: list[Child], vitals: Vitals, what: str) -> None:
        """Hears what the other nodes saw, and tells the parent who is at fault."""
        own, nodes = self.job.rendezvous.node, self.job.rendezvous.nodes
        sight = _sight(children, vitals)
        channel.send(self.reports, Progress(""))
        sights = {own: sight}
        if nodes > 1:
            ends_s = time.monotonic() + _HEAR_S
            self.board.write(f"sight/{number}/{own}", msgspec.json.encode(sight).decode(), _HEAR_S)
            self.board.write(_TROUBLE, what, ends_s - time.monotonic())
            heard = self.board.read([f"sight/{number}/{node}" for node in range(nodes)], ends_s - time.monotonic())
            for key, text in heard.items():
                sights[int(key.rpartition("/")[2])] = msgspec.json.decode(text, type=Sight)
            # The parent of node 0 ends this process, and the board with it: not before all who are there have read it.
            self.board.write(f"heard/{number}/{own}", "", _SETTLE_S)
            if own == 0:
                self.board.read([f"heard/{number}/{node}" for node in sights], _SETTLE_S)
        channel.send(self.reports, verdict(self.roster, sights, nodes, what))


def _sight(children: list[Child], vitals: Vitals) -> Sight:
    """What there is to see of these ranks, once it explains why any of them failed or they had time to show it."""
    ends_s = time.monotonic() + _SETTLE_S
    while True:
        for child in children:
            child.reap()
        sight = Sight(
            killed={child.rank: number for child in children if (number := child.killed_by) is not None},
            stopped=tuple(child.rank for child in children if is_stopped(child.pid)),
            errors={c.rank: error for c, error in zip(children, vitals.errors, strict=True) if error},
            beats={child.rank: count for child, count in zip(children, vitals.beats, strict=True)},
        )
        if explains(sight) or not any(child.status for child in children) or time.monotonic() > ends_s:
            return sight
        signal.sigtimedwait({signal.SIGCHLD}, _TICK_S)


def _joined(job: Job, board: Board) -> Topology:
    """All nodes' topologies as one. Raises MeasureError naming who is missing."""
    own, nodes = job.rendezvous.node, job.rendezvous.nodes
    claims = board.claimed(f"claim/{own}", job.timeout_s)
    if claims is None:
        raise _no_answer(job.rendezvous, job.timeout_s)
    if claims > 1:
        raise UsageError(f"two nodes say that they are node {own}", cure="Give each its own --node-rank.")
    board.write(f"node/{own}", bytes(job.topology).decode())
    keys = [f"node/{i}" for i in range(nodes)]
    found = board.read(keys, job.timeout_s)
    missing = [f"node {i}" for i, key in enumerate(keys) if key not in found]
    if missing:
        raise MeasureError(
            f"{len(found)} of {nodes} nodes joined within {job.timeout_s:g} s, missing: {some(missing)}",
            cure="Start the same command there, or read what it says; --timeout waits longer.",
        )
    parts = [decode_survey(found[key].encode(), where=key).topology for key in keys]
    return cluster(parts) if nodes > 1 else parts[0]


def _listening(meeting: Rendezvous) -> socket.socket | None:
    """The port where the nodes meet, bound before anything else so that a port in use is told at once."""
    if meeting.node != 0 or meeting.hosted:
        return None
    try:
        family = socket.getaddrinfo(meeting.address, meeting.port, type=socket.SOCK_STREAM)[0][0]
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((meeting.address, meeting.port))
        server.listen(1024)
    except OSError as error:
        raise UsageError(
            f"node 0 cannot listen at {meeting.address} port {meeting.port}: {error.strerror}",
            cure="See with `ss -ltnp` who does (another node 0?), or choose another --port, the same on every node.",
        ) from error
    return server


def _store(meeting: Rendezvous, listening: socket.socket | None, timeout_s: float) -> dist.Store:
    call = ThreadPoolExecutor(1).submit(
        dist.TCPStore,
        meeting.address,
        meeting.port,
        is_master=listening is not None,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listening.detach() if listening else None,
    )
    # Its own timeout ends where somebody else listens at this port, and never says a word.
    store = _result(call, timeout_s + 1)
    if store is None:
        raise _no_answer(meeting, timeout_s)
    return dist.PrefixStore(meeting.prefix, store)


def _no_answer(meeting: Rendezvous, timeout_s: float) -> MeasureError:
    where = f"{meeting.address} port {meeting.port}"
    return MeasureError(
        f"node 0 at {where} did not answer within {timeout_s:g} s",
        cure=f"Start it there; `nc -vz {meeting.address} {meeting.port}` from here tells whether a firewall is between.",
    )


def _run(job: Job, reports: socket.socket) -> None:
    listening = _listening(job.rendezvous)
    if listening is not None:
        meeting = msgspec.structs.replace(job.rendezvous, port=listening.getsockname()[1])
        job = msgspec.structs.replace(job, rendezvous=meeting)
    board = Board(_store(job.rendezvous, listening, job.timeout_s))
    waiting_s = time.monotonic()
    topology = _joined(job, board)
    if job.budget_s is not None and job.rendezvous.nodes > 1:  # to wait for others is not to measure
        job = msgspec.structs.replace(job, budget_s=job.budget_s + time.monotonic() - waiting_s)
    _pass_on(job, board, reports)
    NodeProcess(job, board, reports, Roster(topology)).run()


def _pass_on(job: Job, board: Board, reports: socket.socket) -> None:
    """What the other nodes' parents found out reaches node 0, which writes the survey."""
    own, nodes = job.rendezvous.node, job.rendezvous.nodes
    if own != 0:
        board.write(f"told/{own}", msgspec.json.encode(job.told).decode())
    else:
        for text in board.read([f"told/{node}" for node in range(1, nodes)], job.timeout_s).values():
            channel.send(reports, msgspec.json.decode(text, type=Measured))


def main() -> None:
    """`python -m probe.bench.node FD PARENT`: the job comes on standard input, messages go to the socket FD."""
    channel.die_with(int(sys.argv[2]))
    reports = socket.socket(fileno=int(sys.argv[1]))
    try:
        _run(msgspec.json.decode(sys.stdin.buffer.read(), type=Job), reports)
    except WireloreError as error:
        channel.send(reports, Failed(error.problem, error.cure))
    except Exception as error:
        channel.send(reports, Failed(one_line(f"{type(error).__name__}: {error}"), "Run again with --debug."))
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(0)  # threads of the store and of the board may wait for a link that is gone


if __name__ == "__main__":
    main()
