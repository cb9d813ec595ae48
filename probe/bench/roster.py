"""Who takes part: one rank per usable GPU, node by node, and how a person knows it."""

from __future__ import annotations

from dataclasses import dataclass

from probe.topology import GpuRef, Topology


@dataclass(frozen=True)
class Roster:
    """The ranks of a run, in order. Lost, hidden and partitioned (MIG) GPUs take no part."""

    topology: Topology

    @property
    def members(self) -> tuple[GpuRef, ...]:
        return tuple(
            GpuRef(position, i)
            for position, node in enumerate(self.topology.nodes)
            for i, gpu in enumerate(node.gpus)
            if gpu.is_usable and not gpu.mig_instances
        )

    def of_node(self, node: int) -> list[int]:
        """The ranks of this node's GPUs."""
        return [rank for rank, ref in enumerate(self.members) if ref.node == node]

    def name(self, rank: int) -> str:
        """'rank 5 (GPU 1 of gpu-b)'."""
        ref = self.members[rank]
        return f"rank {rank} (GPU {ref.gpu} of {self.node_name(ref.node)})"

    def node_name(self, node: int) -> str:
        host = self.topology.nodes[node].hostname
        alike = [n.hostname for n in self.topology.nodes].count(host) > 1
        return f"node {node}" if host is None or alike else f"node {node}, {host}"
