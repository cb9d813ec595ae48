"""Members of a group as real processes on this machine: `wirelore init` told by a launcher's variables.

They are forked from a process that has the command loaded, since dozens are started and each would load it anew.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from command import environment
from ports import free_port

from configgen.run.messages import Frames, FromLeader, Message, from_leader, packed

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["configgen.cli.init", "configgen.engines.vllm", "configgen.report.terminal", "members"])
PLAIN = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
OF_LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_", "TORCHELASTIC_", "GROUP_", "ROLE_", "LWS_", "PET_", "JOB_C")
WAIT_S = 40.0

LWS, TRAINER, JOB = "LeaderWorkerSet", "Kubeflow Trainer", "Kubernetes job"


def told_by(launcher: str, node: int, nodes: int, address: str) -> dict[str, str]:
    """What pods of these kinds have in their environment; an indexed job says nothing of the others' number."""
    match launcher:
        case "LeaderWorkerSet":
            return {"LWS_LEADER_ADDRESS": address, "LWS_GROUP_SIZE": str(nodes), "LWS_WORKER_INDEX": str(node)}
        case "Kubeflow Trainer":
            own = {"PET_NNODES": str(nodes), "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": str(node)}
            port = {"PET_MASTER_PORT": "29400", "JOB_COMPLETION_INDEX": str(node)}
            return {**own, "PET_MASTER_ADDR": address, **port}
        case _:
            return {"JOB_COMPLETION_INDEX": str(node), "MASTER_ADDR": address}


@dataclass(frozen=True)
class Result:
    """How a member ended."""

    code: int
    out: str
    err: str


def _member(words: list[str], environ: dict[str, str], output: Path, before: str) -> None:
    """In the process of a member: becomes what a shell would have started."""
    from configgen.cli import main

    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["wirelore", *words]
    exec(before, {})  # what a test breaks on purpose
    main()


@dataclass
class Member:
    """A member that runs."""

    process: multiprocessing.process.BaseProcess
    output: Path

    def kill(self) -> None:
        self.process.kill()


@dataclass
class Group:
    """A place for the folders of its members, and the port where they meet."""

    folder: Path
    nodes: int
    machine: str = "machine:l4-2"
    model: str = "qwen3-32b"
    address: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    launcher: str = LWS
    _started: int = 0

    def start(
        self,
        node: int,
        *options: str,
        model: str | None = None,
        machine: str | None = None,
        deadline: str = "20s",
        before: str = "",
        **variables: str,
    ) -> Member:
        """A member that runs. `before` is Python that runs in it first: it may break something on purpose."""
        told = {
            **told_by(self.launcher, node, self.nodes, self.address),
            "WIRELORE_TERMINATION_LOG": str(self.folder / f"log-{node}"),
            **variables,
        }
        clean = {n: v for n, v in environment().items() if n not in PLAIN and not n.startswith(OF_LAUNCHERS)}
        source = ("--from", machine or self.machine) if machine != "" else ()
        words = ["init", model or self.model, "--folder", str(self.folder / str(node)), "--offline", *source]
        words += ["--group-port", str(self.port), "--deadline", deadline, *options]
        words += ["--nodes", str(self.nodes)] if self.launcher == JOB else []
        environ = {**clean, "XDG_CACHE_HOME": str(self.folder / "cache"), **told}
        self._started += 1
        output = self.folder / f"output-{self._started}"
        process = FORKS.Process(target=_member, args=(words, environ, output, before))
        process.start()
        return Member(process, output)

    def run(self, node: int, *options: str, **how: str) -> Result:
        return ended(self.start(node, *options, **how))

    def run_all(self, *options: str, **how: str) -> list[Result]:
        members = [self.start(node, *options, **how) for node in range(self.nodes)]
        return [ended(member) for member in members]

    def plan(self, node: int) -> bytes | None:
        path = self.folder / str(node) / "plan.json"
        return path.read_bytes() if path.exists() else None

    def the_plan(self) -> bytes:
        """That of all members: one, and the same."""
        plans = {self.plan(node) for node in range(self.nodes)}
        assert len(plans) == 1
        (plan,) = plans
        assert plan is not None, "no member has a plan"
        return plan

    def files(self, node: int) -> dict[str, tuple[bytes, int]]:
        """Content and time of the last change, by name."""
        folder = self.folder / str(node)
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}

    def knock(self) -> socket.socket:
        """A connection to the leader, as soon as it listens."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                return socket.create_connection((self.address, self.port), timeout=WAIT_S)
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "the leader never listened"
                os.sched_yield()


def ended(member: Member) -> Result:
    member.process.join(WAIT_S)
    assert member.process.exitcode is not None, "it hangs"
    out, err = (member.output.with_suffix(f".{name}").read_text() for name in ("out", "err"))
    return Result(member.process.exitcode, out, err)


def say(connection: socket.socket, message: Message) -> None:
    connection.sendall(packed(message))


def hear(connection: socket.socket) -> FromLeader | None:
    """The leader's next message; None where it has gone or hung up."""
    frames, found = Frames(64 << 20), []
    while not found:
        try:
            data = connection.recv(1)  # no more than a frame at a time
        except ConnectionResetError:
            return None
        if not data:
            return None
        found = frames.feed(data)
    return from_leader(found[0])
