"""What the wires between nodes need in the environment, the same for every engine that runs on NCCL."""

from __future__ import annotations

from collections.abc import Iterator

from configgen.launch import Variable
from configgen.plan import Plan, Replica, Site
from probe.topology import PathKind


def network(plan: Plan, replica: Replica, node: int) -> Iterator[Variable]:
    """The NICs nearest to this node's GPUs, and NVLink across nodes; nothing for a replica within one node.

    NCCL user guide, environment variables: NCCL_IB_HCA (`=` asks for exactly these), NCCL_MNNVL_ENABLE and
    NCCL_CUMEM_ENABLE, without which no memory is shared over a multi-node NVLink domain.
    """
    if len(replica.nodes) == 1:
        return
    if PathKind.MNNVL.value in (replica.tp_path, *replica.hops):
        for name in ("NCCL_MNNVL_ENABLE", "NCCL_CUMEM_ENABLE"):
            yield Variable(name, "1", "the nodes are one NVLink domain")
    site = site_of(plan, node)
    if site.nics:
        yield Variable("NCCL_IB_HCA", "=" + ",".join(site.nics), "the NICs nearest to these GPUs")


def site_of(plan: Plan, node: int) -> Site:
    return plan.sites[node] if plan.sites else Site()


def numa_note(plan: Plan, engine_flags: str) -> Iterator[str]:
    """How to bind ranks to their sockets' memory. A note, for the engines need numactl for it, or don't start."""
    for node, site in enumerate(plan.sites):
        if len(set(site.numa_nodes)) > 1:
            where = f" on node {node}" if len(plan.sites) > 1 else ""
            nodes = " ".join(map(str, site.numa_nodes))
            yield f"GPUs sit on NUMA nodes {nodes}{where}: where numactl is installed, add {engine_flags.format(nodes)}"
            return
