"""Nodes of an existing Ray cluster: one actor on each runs the node's own command; the one door of ray."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from probe.bench import channel
from probe.bench.rendezvous import DEFAULT_PORT
from probe.errors import MeasureError, UsageError, one_line, printable

_GRACE_S = 5.0
_TAIL_BYTES = 4000


@dataclass(frozen=True, slots=True)
class RayNode:
    """A node that can take part: what of it is reserved while it is measured."""

    address: str
    gpus: float
    cpus: float

    @property
    def bundle(self) -> dict[str, float]:
        """All its GPUs, because Ray hides those that an actor did not ask for; pinned to this very node."""
        wanted = {f"node:{self.address}": 0.001, "GPU": self.gpus, "CPU": min(1.0, self.cpus)}
        return {name: amount for name, amount in wanted.items() if amount > 0}


@dataclass(frozen=True, slots=True)
class Ending:
    """How one node's command ended. `survey` is what node 0 wrote, be it partial."""

    address: str
    exit_code: int
    words: str
    survey: bytes | None = None


def measure_on_ray(
    program: Sequence[str],
    *,
    cluster: str | None = None,
    nodes: int | None = None,
    port: int | None = None,
    wait_s: float = 30.0,
    timeout_s: float = 30.0,
    longest_s: float | None = None,
) -> tuple[Ending, ...]:
    """Runs `python PROGRAM --nnodes N --node-rank R --master IP:PORT`, on node 0 with `-o FILE` too, on every node.

    `program` is what follows the interpreter's name; the same wirelore must be installed where Ray's workers run.
    `cluster` is Ray's address (None: RAY_ADDRESS, or the cluster that runs here). `nodes` of those with GPUs, or where
    none has, of all, are taken; None: every one. The node of this driver, if it is among them, is node 0. Up to
    `wait_s` seconds are given to the reservation, and again to the first answer. The first node to end has
    `longest_s` for all of its part (None: as long as it takes), then the others have `timeout_s` to end too.

    Endings come in the order of the nodes. Raises UsageError without ray or without such a cluster, MeasureError where
    the nodes cannot be had or none of them ends.
    """
    with _connected(cluster) as ray:
        chosen = choose_nodes(ray.nodes(), nodes, first=ray.util.get_node_ip_address())
        with _reserved(ray, chosen, wait_s) as actors:
            at = _endpoint(chosen[0].address, port or _free_port(ray, chosen[0], actors[0], wait_s))
            tasks = [
                actor.run.remote([*program, "--nnodes", str(len(chosen)), "--node-rank", str(rank), "--master", at])
                for rank, actor in enumerate(actors)
            ]
            return tuple(_endings(ray, chosen, tasks, timeout_s, longest_s))


def choose_nodes(told: Sequence[dict[str, Any]], nodes: int | None, *, first: str | None = None) -> list[RayNode]:
    """From `ray.nodes()`: those with GPUs, or all where none has any; `first`, if among them, leads."""
    alive = [
        RayNode(node["NodeManagerAddress"], node["Resources"].get("GPU", 0.0), node["Resources"].get("CPU", 0.0))
        for node in told
        if node["Alive"]
    ]
    able = [node for node in alive if node.gpus] or alive
    able.sort(key=lambda node: (node.address != first, node.address))
    wanted = len(able) if nodes is None else nodes
    if not 0 < wanted <= len(able):
        kind = "nodes with GPUs" if able and able[0].gpus else "nodes"
        raise UsageError(
            f"Ray has {len(able)} {kind}, not {wanted}", cure="Give --nnodes as many as `ray status` shows."
        )
    return able[:wanted]


class _NodeActor:
    """What Ray starts on a node. The command ends with it, however it ends."""

    def free_port(self) -> int:
        """The usual port, or where that is taken any other."""
        import socket

        for port in (DEFAULT_PORT, 0):
            with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
                try:
                    probe.bind(("", port))
                    return int(probe.getsockname()[1])
                except OSError:
                    continue
        raise MeasureError("no port is free on node 0", cure="Give one with --port.")

    def run(self, words: list[str]) -> tuple[int, str, bytes | None]:
        with tempfile.TemporaryDirectory() as folder:
            survey = Path(folder, "survey.json")
            output = ["-o", str(survey)] if _rank(words) == 0 else []
            ended = subprocess.run(
                [sys.executable, *words, *output],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=partial(channel.die_with, os.getpid()),
            )
            words_of = ended.stdout[-_TAIL_BYTES:].decode(errors="replace")
            return ended.returncode, words_of, survey.read_bytes() if survey.is_file() else None


def _rank(words: Sequence[str]) -> int:
    return int(words[words.index("--node-rank") + 1])


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@contextmanager
def _connected(cluster: str | None) -> Iterator[Any]:
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise UsageError(
            "ray is not installed here", cure="Install wirelore[ray], at the cluster's own version."
        ) from error
    try:
        ray.init(
            address=cluster or os.environ.get("RAY_ADDRESS") or "auto",
            log_to_driver=False,
            logging_level="error",
            configure_logging=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray cluster answers at {cluster or 'RAY_ADDRESS or this machine'}: {one_line(str(error), 160)}",
            cure="Start one (`ray start --head`), or give its address.",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _reserved(ray: Any, chosen: Sequence[RayNode], wait_s: float) -> Iterator[list[Any]]:
    """An actor on each node; the group and all in it is given back at the end."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

    group = ray.util.placement_group([node.bundle for node in chosen], strategy="STRICT_SPREAD")
    try:
        if not group.wait(wait_s):
            raise MeasureError(
                f"Ray did not give {len(chosen)} whole nodes within {wait_s:g} s",
                cure="Free their GPUs: `ray status` shows what is used.",
            )
        actor = ray.remote(_NodeActor)
        yield [
            actor.options(
                num_cpus=min(1.0, node.cpus),
                num_gpus=node.gpus,
                max_restarts=0,
                scheduling_strategy=In(placement_group=group, placement_group_bundle_index=place),
            ).remote()
            for place, node in enumerate(chosen)
        ]
    finally:
        ray.util.remove_placement_group(group)


def _free_port(ray: Any, node: RayNode, actor: Any, wait_s: float) -> int:
    try:
        return int(ray.get(actor.free_port.remote(), timeout=wait_s))
    except ray.exceptions.GetTimeoutError as error:
        raise MeasureError(
            f"Ray's node {node.address} started nothing within {wait_s:g} s",
            cure="Its raylet's log (/tmp/ray/session_latest/logs there) tells why.",
        ) from error
    except ray.exceptions.RayError as error:
        raise MeasureError(
            f"Ray's node {node.address} runs no wirelore: {one_line(str(error), 160)}",
            cure="Install the same wirelore where Ray's workers run.",
        ) from error


def _endings(
    ray: Any, chosen: Sequence[RayNode], tasks: Sequence[Any], timeout_s: float, longest_s: float | None
) -> Iterator[Ending]:
    """Waits for the first to end, then for the others so long as it takes them to notice."""
    done, _ = ray.wait(list(tasks), num_returns=1, timeout=longest_s)
    if not done:
        raise MeasureError(
            f"none of Ray's {len(tasks)} nodes ended within {longest_s:g} s",
            cure="Run `wirelore measure` on one of them: it tells what it waits for.",
        )
    done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=timeout_s + _GRACE_S)
    for node, task in zip(chosen, tasks, strict=True):
        if task not in done:
            yield Ending(node.address, 124, f"did not end within {timeout_s + _GRACE_S:g} s of the others")
            continue
        try:
            code, words, survey = ray.get(task, timeout=_GRACE_S)
        except ray.exceptions.RayError as error:
            yield Ending(node.address, 70, one_line(f"Ray: {error}"))
        else:
            yield Ending(node.address, code, "\n".join(map(printable, words.splitlines())), survey)
