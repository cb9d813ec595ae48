"""Where the nodes meet: what options and launchers say, made one Rendezvous; reads the environment, touches no network.

A launcher is known by variables that it alone sets, the innermost first (torchrun may run inside srun). Sources:
torch.distributed.run (GROUP_RANK ...), Open MPI "Environment variables set for MPI applications", MPICH's Hydra
(MPI_LOCALRANKID ...), srun(1) "OUTPUT ENVIRONMENT VARIABLES", the APIs of LeaderWorkerSet (LWS_*), Kubeflow Trainer
(PET_*, which are torchrun's options) and Kubernetes' indexed jobs (JOB_COMPLETION_INDEX).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from probe.bench.messages import Rendezvous
from probe.errors import UsageError, one_line

DEFAULT_PORT = 29510
"""Beside the ports that torchrun (29400, 29500) and vLLM (29501) take for themselves."""
GROUP_PORT = DEFAULT_PORT - 1
"""Where a group meets that decides together: no port that its own measurement takes, under srun those from 29510 on."""

LEADER_WORKER_SET, KUBEFLOW, KUBERNETES_JOB = "LeaderWorkerSet", "Kubeflow Trainer", "Kubernetes job"
SRUN = "srun"

Environment = Mapping[str, str]

_SPECIAL_STEPS = 0xFFFFFFF0
"""Slurm's step ids from here on are a batch script or a shell, not one process per task (slurm/slurm.h)."""

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")


@dataclass(frozen=True, slots=True)
class Words:
    """How the user of a command says what no launcher tells, for its errors."""

    nodes: str
    """The option for the number of nodes."""
    node: str
    """How to say which of them this is."""
    address: str
    """How to say where node 0 is."""
    instead: str
    """How to say all of it, whatever a launcher says; empty where that can't be."""


OF_MEASURE = Words(
    nodes="--nnodes",
    node="Add --node-rank R (0 to N-1)",
    address="Add --master IP:PORT of node 0, or set MASTER_ADDR",
    instead="Or give --nnodes N --node-rank R --master IP:PORT.",
)


@dataclass(frozen=True, slots=True)
class Told:
    """What a launcher says of this process; None for what it leaves open."""

    origin: str
    nodes: int | None
    node: int | None
    address: str | None = None
    port: int | None = None
    hosted: bool = False
    attempt: int = 0


def find_rendezvous(
    environ: Environment,
    *,
    nnodes: int | None = None,
    node_rank: int | None = None,
    master: str | None = None,
    port: int | None = None,
    interface: str | None = None,
    words: Words = OF_MEASURE,
) -> Rendezvous:
    """Options win, then the launcher's variables; neither: this node alone. `master` is HOST, HOST:PORT or [IPv6]:PORT.

    Raises UsageError, with the cure, for what is missing, unreadable or contradictory.
    """
    host, master_port = parse_endpoint(master, "--master") if master is not None else (None, None)
    if port is not None and master_port is not None and port != master_port:
        raise UsageError(f"--master names port {master_port}, --port {port}", cure="Give the port once.")
    port = _checked_port(port if port is not None else master_port, "--port")
    if nnodes is not None and nnodes < 1:
        raise UsageError(f"--nnodes {nnodes} is no number of nodes", cure="Give 1 or more.")
    complete = nnodes is not None and node_rank is not None and host is not None
    told = None if complete or nnodes == 1 else _told(environ, nnodes, words)
    nodes = nnodes if nnodes is not None or told is None else told.nodes
    if told is not None and nodes is None:
        raise UsageError(
            f"{told.origin} may start {one_line(environ['PET_NNODES'], 40)} nodes, and nobody says how many there are",
            cure=f"Add {words.nodes} N (1: this node alone), or set PET_NNODES to one number.",
        )
    if nodes is None and (host is not None or node_rank is not None):
        what = "--master" if node_rank is None else "--node-rank"
        raise UsageError(f"{what} is given, yet nobody says how many nodes there are", cure="Add --nnodes N.")
    if nodes in (None, 1) and not node_rank:
        return Rendezvous(port=port or 0, interface=interface, origin=told.origin if told else "this node alone")
    assert nodes is not None
    node = node_rank if node_rank is not None else told.node if told else None
    if node is None:
        raise UsageError(
            f"nobody says which of the {nodes} nodes this is",
            cure=f"{words.node}, or start with torchrun, srun or mpirun.",
        )
    if told and node_rank is None and told.nodes not in (None, nodes):
        what = f"{words.nodes} says {nodes}, {told.origin} {told.nodes} nodes"
        raise UsageError(what, cure=f"Leave {words.nodes} away.")
    if not 0 <= node < nodes:
        who = "--node-rank" if node_rank is not None or told is None else told.origin
        raise UsageError(f"{who} says node {node} of {nodes}", cure=f"Nodes count from 0 to {nodes - 1}.")
    address, said_port = host, None
    if address is None:
        address, said_port = (told.address, told.port) if told and told.address else _master(environ)
    if address is None:
        raise UsageError(
            f"nobody says where node 0 of {nodes} is",
            cure=f"{words.address} (mpirun -x MASTER_ADDR=IP).",
        )
    options = {words.nodes: nnodes, "--node-rank": node_rank, "--master": host, "--port": port}
    given = [name for name, value in options.items() if value is not None]
    return Rendezvous(
        nodes=nodes,
        node=node,
        address=address,
        port=port or said_port or DEFAULT_PORT + _spread(environ, told),
        hosted=bool(told and told.hosted and host is None and port is None),
        attempt=told.attempt if told else 0,
        interface=interface,
        origin=", ".join([*([told.origin] if told and node_rank is None else []), *given]),
    )


def steps_aside(environ: Environment, *, node_rank: int | None = None) -> str | None:
    """What to print where a launcher started several processes per node and this is not the first; else None.

    One wirelore measures all GPUs of its node. Whoever gives this process a --node-rank of its own wants it to run.
    """
    if node_rank is not None:
        return None
    for name in _LOCAL_RANKS:
        rank = _number(environ, name)
        if rank:
            return f"One process measures all GPUs of a node: this one ({name}={rank}) has nothing to do."
    return None


def parse_endpoint(text: str, where: str) -> tuple[str, int | None]:
    """'host:29500' -> ('host', 29500), '[::1]:29500' -> ('::1', 29500), '10.0.0.1' -> ('10.0.0.1', None)."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        readable = bool(closed) and colon in ("", ":") and is_ip(host)
    elif text.count(":") > 1:
        host, colon, port, readable = text, "", "", is_ip(text)
    else:
        host, colon, port = text.partition(":")
        readable = _HOST.fullmatch(host) is not None
    if not readable or (colon and not re.fullmatch(r"[0-9]{1,5}", port)):
        raise UsageError(
            f"{where} {text[:80]!r} names no host and port", cure="Write HOST:PORT, 10.0.0.1:29510 or [fd00::1]:29510."
        )
    return host, _checked_port(int(port) if colon else None, where)


def is_ip(text: str) -> bool:
    """Whether it is an address already, IPv6 with or without its zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def first_host(nodelist: str) -> str | None:
    """The first name of Slurm's folded list: 'gpu[03-07,11],login' -> 'gpu03'."""
    head = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", nodelist[:4096])
    name = re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", head.group()) if head else ""
    return name if _HOST.fullmatch(name) else None


def told_by_launcher(environ: Environment, nnodes: int | None = None) -> Told | None:
    """What the innermost launcher says of this process; None without one. Raises UsageError for what it leaves out.

    One that leaves the number of nodes open counts where `nnodes` or no other says it.
    """
    open_ended = None
    for detect in _LAUNCHERS:
        told = detect(environ)
        if told is not None and (told.nodes is not None or nnodes):
            return told
        open_ended = open_ended or told
    # An index alone makes no group: most indexed jobs are not one.
    index = _number(environ, "JOB_COMPLETION_INDEX") if nnodes else None
    return Told(KUBERNETES_JOB, None, index) if index is not None else open_ended


def _told(environ: Environment, nnodes: int | None, words: Words) -> Told | None:
    try:
        return told_by_launcher(environ, nnodes)
    except UsageError as error:
        raise UsageError(error.problem, cure=f"{error.cure} {words.instead}".rstrip()) from error


def _torchrun(environ: Environment) -> Told | None:
    if "TORCHELASTIC_RUN_ID" not in environ:
        return None
    return Told(
        "torchrun",
        _needed(environ, "GROUP_WORLD_SIZE"),
        _needed(environ, "GROUP_RANK"),
        *_master(environ),
        hosted=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=_number(environ, "TORCHELASTIC_RESTART_COUNT") or 0,
    )


def _open_mpi(environ: Environment) -> Told | None:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    return _mpi(environ, "mpirun", *(f"OMPI_COMM_WORLD_{name}" for name in names))


def _hydra(environ: Environment) -> Told | None:
    """MPICH and Intel MPI. Slurm sets PMI_RANK too, but not the local ones."""
    return _mpi(environ, "mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def _mpi(environ: Environment, origin: str, rank: str, size: str, local_rank: str, local_size: str) -> Told | None:
    """MPI tells ranks of processes, and orders them by slot or by node as it was asked: only one per node is clear."""
    if rank not in environ or local_size not in environ:
        return None
    processes, here = _needed(environ, size), _needed(environ, local_size)
    if here == processes:
        return Told(origin, 1, 0)
    if here != 1 or _needed(environ, local_rank) != 0:
        raise UsageError(
            f"{origin} started {here} of {processes} processes on this node, and does not tell which node it is",
            cure="Start one per node: --map-by ppr:1:node (Open MPI) or -ppn 1 (MPICH, Intel MPI).",
        )
    return Told(origin, processes, _needed(environ, rank), *_master(environ))


def _srun(environ: Environment) -> Told | None:
    """Slurm's node 0 is the first name of the step's list; where srun itself was typed may be a login node."""
    step = _number(environ, "SLURM_STEP_ID")
    if step is None or step >= _SPECIAL_STEPS or "SLURM_PROCID" not in environ:
        return None
    address, port = _master(environ)
    nodelist = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    nodes = _needed(environ, "SLURM_STEP_NUM_NODES" if "SLURM_STEP_NUM_NODES" in environ else "SLURM_NNODES")
    return Told(SRUN, nodes, _needed(environ, "SLURM_NODEID"), address or first_host(nodelist), port)


def _leader_worker_set(environ: Environment) -> Told | None:
    if "LWS_LEADER_ADDRESS" not in environ:
        return None
    nodes, node = _needed(environ, "LWS_GROUP_SIZE"), _needed(environ, "LWS_WORKER_INDEX")
    return Told(LEADER_WORKER_SET, nodes, node, *parse_endpoint(environ["LWS_LEADER_ADDRESS"], "LWS_LEADER_ADDRESS"))


def _kubeflow(environ: Environment) -> Told | None:
    """PET_NNODES may be a range, 'least:most', of which torchrun alone knows how many came (GROUP_WORLD_SIZE)."""
    nodes = environ.get("PET_NNODES", "")
    least, _, most = nodes.partition(":")
    if not nodes:
        return None
    endpoint = environ.get("PET_MASTER_ADDR") or environ.get("PET_RDZV_ENDPOINT")
    address, port = parse_endpoint(endpoint, "PET_MASTER_ADDR") if endpoint else (None, None)
    port = _checked_port(_number(environ, "PET_MASTER_PORT"), "PET_MASTER_PORT") or port
    count = None if most and least != most else _needed({"PET_NNODES": least}, "PET_NNODES")
    return Told(KUBEFLOW, count, _number(environ, "PET_NODE_RANK"), address, port)


def _generic(environ: Environment) -> Told | None:
    """RANK and WORLD_SIZE count processes; PyTorchJob and many scripts start one per node and set no local ones."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environ.keys():
        return None
    rank, world = _needed(environ, "RANK"), _needed(environ, "WORLD_SIZE")
    here = _number(environ, "LOCAL_WORLD_SIZE")
    if here is None and "LOCAL_RANK" not in environ:
        here = 1
    if not here or world % here:
        raise UsageError(
            "RANK and WORLD_SIZE count processes, and how many of them are on a node is not told",
            cure="Start one process per node, or set LOCAL_WORLD_SIZE to how many there are.",
        )
    return Told("RANK and WORLD_SIZE", world // here, rank // here, *_master(environ))


_LAUNCHERS: tuple[Callable[[Environment], Told | None], ...] = (
    _torchrun,
    _open_mpi,
    _hydra,
    _leader_worker_set,
    _kubeflow,
    _generic,
    _srun,
)


def _master(environ: Environment) -> tuple[str | None, int | None]:
    if not environ.get("MASTER_ADDR"):
        return None, None
    host, port = parse_endpoint(environ["MASTER_ADDR"], "MASTER_ADDR")
    return host, _checked_port(_number(environ, "MASTER_PORT"), "MASTER_PORT") or port


def _spread(environ: Environment, told: Told | None) -> int:
    """Two Slurm jobs on one node meet at different ports."""
    return (_number(environ, "SLURM_JOB_ID") or 0) % 1000 if told and told.origin == SRUN else 0


def _number(environ: Environment, name: str) -> int | None:
    text = environ.get(name)
    if text is None or text == "":
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise UsageError(f"{name} says {text[:40]!r}, which is no number", cure=f"Correct or unset {name}.")
    return int(text)


def _needed(environ: Environment, name: str) -> int:
    number = _number(environ, name)
    if number is None:
        raise UsageError(
            f"a launcher's variables are there, but not {name}",
            cure=f"Set {name} too, or unset what an earlier run left.",
        )
    return number


def _checked_port(port: int | None, where: str) -> int | None:
    if port is not None and not 0 < port < 1 << 16:
        raise UsageError(f"{where}: {port} is no port", cure="Choose one from 1024 to 65535.")
    return port
