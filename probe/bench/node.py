"""The process of a node: imports torch once, brings the nodes together, forks a rank per GPU, watches them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import zlib
from dataclasses import dataclass

import msgspec

from probe import __version__
from probe.bench import channel, worker
from probe.bench.blame import Sight, explains, verdict
from probe.bench.board import HEAR_S, TROUBLE, Board, listening_at, no_answer, store_of
from probe.bench.generations import Generation, affordable, generations, left_out
from probe.bench.messages import Agreement, Arrival, Done, Failed, Job, Joined, Measured, Progress
from probe.bench.roster import Roster
from probe.bench.vitals import Vitals, is_stopped
from probe.errors import MeasureError, UsageError, WireloreError, one_line
from probe.merge import cluster
from probe.store import decode_survey, encode_topology
from probe.topology import Topology
from probe.units import some

_TICK_S = 0.1
_BEAT_S = 0.5
_SETTLE_S = 1.0
"""A rank that is killed closes its connections before its end can be seen: the others' errors come first."""


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

    def run(self, agreement: Agreement) -> None:
        """Generation after generation, until one cannot finish."""
        plans = _plans(self.job, self.roster.topology, agreement)
        chosen = [plans[i] for i in agreement.generations]
        for number, generation in enumerate(chosen):
            share = generation.share / sum(later.share for later in chosen[number:])
            if not self._generation(number, generation, share):
                return
        if self.job.rendezvous.node == 0:
            channel.send(self.reports, Measured(missing=left_out(plans, agreement.generations)))
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
            ends_s = time.monotonic() + HEAR_S
            self.board.write(f"sight/{number}/{own}", msgspec.json.encode(sight).decode(), HEAR_S)
            self.board.write(TROUBLE, what, ends_s - time.monotonic())
            heard = self.board.read([f"sight/{number}/{node}" for node in range(nodes)], ends_s - time.monotonic())
            for key, text in heard.items():
                sights[int(key.rpartition("/")[2])] = _known(msgspec.json.decode(text, type=Sight), self.roster)
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
    """All nodes' topologies as one. Raises MeasureError naming who is missing, UsageError where nodes do not match."""
    own, nodes = job.rendezvous.node, job.rendezvous.nodes
    claims = board.claimed(f"claim/{own}", job.timeout_s)
    if claims is None:
        raise no_answer(job.rendezvous, job.timeout_s)
    if claims > 1:
        raise UsageError(f"two nodes say that they are node {own}", cure="Give each its own --node-rank.")
    arrival = Arrival(__version__, job.backend, job.topology)
    board.write(f"node/{own}", msgspec.json.encode(arrival).decode())
    keys = [f"node/{i}" for i in range(nodes)]
    found = board.read(keys, job.timeout_s)
    missing = [f"node {i}" for i, key in enumerate(keys) if key not in found]
    if missing:
        raise MeasureError(
            f"{len(found)} of {nodes} nodes joined within {job.timeout_s:g} s, missing: {some(missing)}",
            cure="Start the same command there, or read what it says; --timeout waits longer.",
        )
    arrivals = [msgspec.json.decode(found[key], type=Arrival) for key in keys]
    for node, other in enumerate(arrivals):
        if (other.version, other.backend) != (arrivals[0].version, arrivals[0].backend):
            mine, theirs = (f"wirelore {a.version} with {a.backend}" for a in (arrivals[0], other))
            raise UsageError(f"node 0 runs {mine}, node {node} {theirs}", cure="Start the same on every node.")
    parts = [decode_survey(bytes(a.topology), where=key).topology for key, a in zip(keys, arrivals, strict=True)]
    return cluster(parts) if nodes > 1 else parts[0]


def _run(job: Job, reports: socket.socket) -> None:
    listening = listening_at(job.rendezvous)
    if listening is not None:
        meeting = msgspec.structs.replace(job.rendezvous, port=listening.getsockname()[1])
        job = msgspec.structs.replace(job, rendezvous=meeting)
    board = Board(store_of(job.rendezvous, listening, job.timeout_s))
    waiting_s = time.monotonic()
    topology = _joined(job, board)
    if job.budget_s is not None and job.rendezvous.nodes > 1:  # to wait for others is not to measure
        job = msgspec.structs.replace(job, budget_s=job.budget_s + time.monotonic() - waiting_s)
    agreement = _agreed(job, board, reports, topology)
    job = msgspec.structs.replace(job, every_pair=agreement.every_pair, largest_bytes=agreement.largest_bytes)
    NodeProcess(job, board, reports, Roster(topology)).run(agreement)


def _agreed(job: Job, board: Board, reports: socket.socket, topology: Topology) -> Agreement:
    """Node 0 hears what the others' parents found out, tells its own, and decides for all."""
    own, nodes = job.rendezvous.node, job.rendezvous.nodes
    if own != 0:
        board.write(f"told/{own}", msgspec.json.encode(job.told).decode())
        text = board.read(["agreement"], job.timeout_s).get("agreement")
        if text is None:
            raise no_answer(job.rendezvous, job.timeout_s)
        return msgspec.json.decode(text, type=Agreement)
    heard = board.read([f"told/{node}" for node in range(1, nodes)], job.timeout_s)
    told = [msgspec.json.decode(text, type=Measured) for text in heard.values()]
    for one in told:
        channel.send(reports, one)
    broken = not all(v.passed for one in (job.told, *told) for v in one.verifications)
    agreement = Agreement(job.every_pair, job.largest_bytes, (), broken)
    left_s = None if job.budget_s is None else job.started_s + job.budget_s - time.monotonic()
    chosen = affordable(_plans(job, topology, agreement), left_s)
    agreement = msgspec.structs.replace(agreement, generations=chosen)
    board.write("agreement", msgspec.json.encode(agreement).decode())
    return agreement


def _plans(job: Job, topology: Topology, agreement: Agreement) -> tuple[Generation, ...]:
    return generations(
        topology,
        backend=job.backend,
        every_pair=agreement.every_pair,
        through_host=agreement.through_host,
    )


def _known(sight: Sight, roster: Roster) -> Sight:
    """Without ranks that this run does not have: it comes over an open port."""
    ranks = range(len(roster.members))
    return msgspec.structs.replace(
        sight,
        killed={rank: number for rank, number in sight.killed.items() if rank in ranks},
        stopped=tuple(rank for rank in sight.stopped if rank in ranks),
        errors={rank: error for rank, error in sight.errors.items() if rank in ranks},
    )


def main() -> None:
    """`python -m probe.bench.node FD PARENT`: the job comes on standard input, messages go to the socket FD."""
    channel.die_with(int(sys.argv[2]))
    reports = socket.socket(fileno=int(sys.argv[1]))
    try:
        _run(msgspec.json.decode(sys.stdin.buffer.read(), type=Job), reports)
    except WireloreError as error:
        channel.send(reports, Failed(error.problem, error.cure, misused=isinstance(error, UsageError)))
    except Exception as error:
        channel.send(reports, Failed(one_line(f"{type(error).__name__}: {error}"), "Run again with --debug."))
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(0)  # threads of the store and of the board may wait for a link that is gone


if __name__ == "__main__":
    main()
