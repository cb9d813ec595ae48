"""What the wires between nodes need in the environment, the same for every engine that runs on NCCL."""

from __future__ import annotations

from collections.abc import Iterator

from configgen.launch import Variable
from configgen.plan import Plan, Replica, Site
from probe.topology import PathKind
from probe.units import some


def network(plan: Plan, replica: Replica, node: int) -> Iterator[Variable]:
    """The NICs nearest to this node's GPUs, where its sockets open, and NVLink across nodes; nothing within one node.

    NCCL user guide, environment variables: NCCL_IB_HCA and NCCL_SOCKET_IFNAME (`=` asks for exactly these),
    NCCL_MNNVL_ENABLE and NCCL_CUMEM_ENABLE, without which no memory is shared over a multi-node NVLink domain.
    """
    if len(replica.nodes) == 1:
        return
    if PathKind.MNNVL.value in (replica.tp_path, *replica.hops):
        for name in ("NCCL_MNNVL_ENABLE", "NCCL_CUMEM_ENABLE"):
            yield Variable(name, "1", "the nodes are one NVLink domain")
    site = site_of(plan, node)
    if site.nics:
        yield Variable("NCCL_IB_HCA", "=" + ",".join(site.nics), "the NICs nearest to these GPUs")
    if len(site.interfaces) == 1:
        (name,) = site.interfaces
        yield Variable("NCCL_SOCKET_IFNAME", f"={name}", "the only Ethernet interface of this node with a link")
        yield Variable("GLOO_SOCKET_IFNAME", name, "the same for messages between CPUs")


def sockets_note(plan: Plan, also: str = "") -> Iterator[str]:
    """What to set by hand where a replica spans nodes whose way to each other nobody told, and what `also`."""
    nodes = {node for replica in plan.replicas if len(replica.nodes) > 1 for node in replica.nodes}
    told = [site_of(plan, node).interfaces for node in sorted(nodes)]
    if not nodes or all(len(names) == 1 for names in told):
        return
    several = next((names for names in told if len(names) > 1), ())
    which = f" ({some(several, 4)})" if several else ""
    yield (
        f"Where a node has several network interfaces{which}, set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME there to "
        f"the one that reaches the other nodes{also}."
    )


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
