"""What the NICs of a group's nodes should give it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from probe.links import NIC_EFFICIENCY
from probe.topology import GpuRef, Nic, Topology


@dataclass(frozen=True, slots=True)
class NetworkShare:
    """busbw that the network allows a group, in 1e9 bytes/s: by the best algorithm, and by the plainest."""

    best_gbps: float
    plain_gbps: float
    words: str


def network_share(
    topology: Topology, operation: str, members: Sequence[GpuRef], concurrent_groups: int
) -> NetworkShare | None:
    """None where a node's NICs or their speeds are not known.

    With k nodes, m GPUs of n on each, and W = what a GPU has of its node's NICs: reducing inside the nodes first
    leaves each GPU busbw (k - 1) / (n - 1) to send, so an all-reduce can reach W (n - 1) / (k - 1). A plain ring goes
    out of a node once through all of its NICs and reaches m W. Of an all-to-all, (n - m) / (n - 1) leaves the node.
    """
    per_node = Counter(ref.node for ref in members)
    gpus, nodes, own = len(members), len(per_node), max(per_node.values())
    shares, told = [], set()
    for node, present in per_node.items():
        here = [ref for ref in members if ref.node == node]
        used = _nics(topology, here)
        if not used:
            return None
        line_gbps = sum(nic.speed_gbps or 0.0 for nic in used) / 8
        if operation == "p2p":  # one flow goes through one NIC
            line_gbps = max(nic.speed_gbps or 0.0 for nic in used) / 8
        contending = max(1.0, concurrent_groups * len(used) / max(1, len(_all(topology, node))))
        contending = min(contending, float(concurrent_groups))
        shares.append(line_gbps * NIC_EFFICIENCY / present / contending)
        told.add(f"{len(used)} x {used[0].speed_gbps:g} Gbit/s")
    share = min(shares)
    words = f"{' and '.join(sorted(told))} per node"
    if operation == "p2p":
        return NetworkShare(share, share, words)
    if operation == "all_to_all":
        reached = share * (gpus - 1) / (gpus - own)
        return NetworkShare(reached, reached, words)
    best = share * (gpus - 1) / (nodes - 1) if operation == "all_reduce" else share * own
    return NetworkShare(best, share * own, words)


def _nics(topology: Topology, members: Sequence[GpuRef]) -> list[Nic]:
    """The NICs nearest to these GPUs of a node; where none is known, as many as there are GPUs, the fastest first."""
    known = _all(topology, members[0].node)
    near = {name for ref in members for name in topology.gpu(ref).nearest_nics}
    found = [nic for nic in known if nic.name in near]
    return found or sorted(known, key=lambda nic: -(nic.speed_gbps or 0.0))[: len(members)]


def _all(topology: Topology, node: int) -> list[Nic]:
    """A node's NICs whose speed is known: those for RDMA where there are any, for NCCL takes them first."""
    nics = [nic for nic in topology.nodes[node].shape.nics if nic.speed_gbps]
    return [nic for nic in nics if is_rdma(nic)] or nics


def is_rdma(nic: Nic) -> bool:
    """`nvidia-smi topo -m` labels RDMA devices alone, sysfs tells their link layer, and neither that of others."""
    return nic.link_layer is not None or nic.label is not None
