"""A Slurm batch script: the nodes of the job plan together, and each starts its part of the plan."""

from __future__ import annotations

from configgen.deploy.service import Wishes, heading, init_options, name_of, service_of
from configgen.launch import Launch
from configgen.plan import Plan
from configgen.templates import fill
from probe.errors import UsageError


def slurm_files(plan: Plan, launch: Launch, wishes: Wishes) -> dict[str, str]:
    """'job.sbatch' -> its text: as many nodes as the plan uses. Raises UsageError where they use unequal numbers."""
    service = service_of(plan, launch, wishes)
    used = {ref.node for replica in plan.replicas for ref in replica.gpus}
    gpus = {sum(ref.node == node for replica in plan.replicas for ref in replica.gpus) for node in used}
    if len(gpus) > 1:
        raise UsageError(
            "the plan's nodes use different numbers of GPUs, and a job asks for as many on each",
            cure="Use --target shell, or plan with --gpus for equal parts.",
        )
    nodes = len(used)
    words = [*(["--nodes", str(nodes)] if nodes > 1 else []), *init_options(plan, None if plan.uses_mig else max(gpus))]
    name = wishes.name or name_of(plan.model.name)
    return {
        "job.sbatch": fill(
            "job.sbatch.j2",
            job=name,
            head=heading(service),
            nodes=nodes,
            gpus=gpus.pop(),
            words=words,
            service=service,
            servers=_servers(launch),
        )
    }


def _servers(launch: Launch) -> list[tuple[int, list[int]]]:
    """Node of the job -> the ports of its servers, where there are several: nobody shares the requests out then."""
    ports: dict[int, list[int]] = {}
    for process in launch.processes:
        if process.port is not None:
            ports.setdefault(process.node, []).append(process.port)
    several = sum(map(len, ports.values())) > 1
    places = sorted({process.node for process in launch.processes})
    return [(place, ports[node]) for place, node in enumerate(places) if node in ports] if several else []
