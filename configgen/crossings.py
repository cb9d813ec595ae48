"""crossings(replicas, topology): what the messages of a placement go over, stage by stage. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from configgen.checked import Crossing
from probe.islands import islands
from probe.topology import GpuRef, Path, Topology


def crossings(replicas: Sequence[tuple[tuple[GpuRef, ...], ...]], topology: Topology) -> Iterator[Crossing]:
    """For every stage of several GPUs, and every boundary between stages."""
    island = {ref: number for number, found in enumerate(islands(topology)) for ref in found.members}
    for number, stages in enumerate(replicas):
        for place, stage in enumerate(stages):
            if len(stage) > 1:
                pairs = [topology.path(a, b) for i, a in enumerate(stage) for b in stage[i + 1 :]]
                yield _crossing(number, place, None, stage, pairs, island)
        for place, (a, b) in enumerate(pairwise(stages)):
            ranks = list(zip(a, b, strict=True))
            pairs = [topology.path(x, y) for x, y in ranks]
            spanned = max(len({island[x], island[y]}) for x, y in ranks)
            yield replace(_crossing(number, place, place + 1, (*a, *b), pairs, island), islands=spanned)


def _crossing(
    replica: int,
    stage: int,
    to_stage: int | None,
    gpus: tuple[GpuRef, ...],
    pairs: Sequence[Path],
    island: dict[GpuRef, int],
) -> Crossing:
    labels = Counter(path.label for path in sorted(pairs, key=lambda path: path.slowness, reverse=True))
    slowest = max(pairs, key=lambda path: path.slowness)
    nodes = len({ref.node for ref in gpus})
    return Crossing(
        replica, stage, to_stage, gpus, slowest.label, tuple(labels.items()), len({island[ref] for ref in gpus}), nodes
    )
