"""Fast wires inside a node: which GPUs a switch joins, and which pairs have wires of their own. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from probe.islands import clique_partition
from probe.topology import NodeShape, Path, PathKind, Through

_MOST_LINKS = 18
"""NVLinks that a GPU has at most, up to Blackwell (18 on H100 and B200, by NVIDIA's data sheets): a mesh that would
need more goes through a switch."""


@dataclass(frozen=True, slots=True)
class Fabric:
    """`switches` lists the GPUs of each switch; `direct` the fast pairs that no switch joins."""

    switches: tuple[tuple[int, ...], ...]
    direct: tuple[tuple[int, int, Path], ...]


def fabric(shape: NodeShape) -> Fabric:
    """Every fast pair once: behind the one switch that holds both, or as a wire."""
    neighbours = [0] * len(shape.gpus)
    for a, b, path in shape.pairs:
        if path.kind in (PathKind.NVLINK, PathKind.MNNVL) and path.through is not Through.DIRECT:
            neighbours[a] |= 1 << b
            neighbours[b] |= 1 << a
    among = sum(1 << i for i, mask in enumerate(neighbours) if mask)
    cliques = clique_partition(neighbours, among, lambda a, b: shape.path(a, b).links or 1)
    switches = tuple(tuple(sorted(clique)) for clique in cliques if _is_switched(shape, clique))
    inside = {(a, b) for members in switches for i, a in enumerate(members) for b in members[i + 1 :]}
    return Fabric(switches, tuple(pair for pair in shape.pairs if pair[2].is_fast and pair[:2] not in inside))


def port_links(shape: NodeShape, gpu: int, others: Iterable[int]) -> int:
    """Links of a GPU to the switch that joins it with others: as the driver counts them, else those of its best pair;
    0 where nothing tells."""
    told = max((shape.path(gpu, other).links or 0 for other in others if other != gpu), default=0)
    return shape.gpus[gpu].nvlinks_active or told


def _is_switched(shape: NodeShape, clique: tuple[int, ...]) -> bool:
    """As the source says it; else where each GPU would need more links for a mesh than a GPU has."""
    if len(clique) < 2:
        return False
    paths = [shape.path(a, b) for i, a in enumerate(clique) for b in clique[i + 1 :]]
    if any(path.through is Through.SWITCH for path in paths):
        return True
    return min(path.links or 0 for path in paths) * (len(clique) - 1) > _MOST_LINKS
