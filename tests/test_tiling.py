"""Groups on the best paths, against what trying everything finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.tiling import Group, shortest_chain, tilings

NV2, NV1, NEAR, FAR = (0, 0, -2), (0, 0, -1), (1, 1, 0), (1, 5, 0)
Slowness = Callable[[int, int], tuple[int, int, int]]

CUBE = {
    **dict.fromkeys([(0, 1), (0, 2), (1, 5), (2, 3), (3, 7), (4, 5), (4, 6), (6, 7)], NV2),
    **dict.fromkeys([(0, 3), (0, 4), (1, 2), (1, 3), (2, 6), (4, 7), (5, 6), (5, 7)], NV1),
}
"""The wires of a DGX-1 V100."""


def meshed(wires: dict[tuple[int, int], tuple[int, int, int]], order: list[int] | None = None) -> Slowness:
    """All other pairs are FAR; item i is what was number order[i]."""
    number = order or list(range(64))

    def slowness(a: int, b: int) -> tuple[int, int, int]:
        one, two = sorted((number[a], number[b]))
        return wires.get((one, two), FAR)

    return slowness


def every_tiling(free: Group, size: int, spare: int) -> Iterator[tuple[Group, ...]]:
    if len(free) < size:
        yield ()
        return
    for rest in combinations(free[1:], size - 1):
        left = tuple(i for i in free[1:] if i not in rest)
        for others in every_tiling(left, size, spare):
            yield ((free[0], *rest), *others)
    if spare:
        yield from every_tiling(free[1:], size, spare - 1)


def rank(groups: tuple[Group, ...], slowness: Slowness) -> tuple[object, ...]:
    """Fewest groups that are not fast, then fewest on the slowest kind, and so on; then the same of all pairs."""

    def counts(paths: list[tuple[int, int, int]]) -> list[object]:
        found: list[object] = []
        for length in (1, 2, 3):
            starts = Counter(path[:length] for path in paths)
            found += [starts[s] for s in sorted({p[:length] for p in (NV2, NV1, NEAR, FAR)}, reverse=True)]
        return found

    inside = [[slowness(a, b) for a, b in combinations(group, 2)] for group in groups]
    return tuple(counts([max(paths) for paths in inside]) + counts([path for paths in inside for path in paths]))


wirings = st.dictionaries(
    st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda pair: pair[0] < pair[1]),
    st.sampled_from((NV2, NV1, NEAR)),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(wirings, st.integers(2, 8), st.integers(2, 5))
def test_no_tiling_is_better_than_those_found(
    wires: dict[tuple[int, int], tuple[int, int, int]], n: int, size: int
) -> None:
    slowness = meshed(wires)
    found = tilings(n, size, slowness)
    for groups in found:
        members = [i for group in groups for i in group]
        assert [len(group) for group in groups] == [size] * (n // size)
        assert len(set(members)) == len(members) and set(members) <= set(range(n))
    best = min(rank(groups, slowness) for groups in every_tiling(tuple(range(n)), size, n % size))
    assert {rank(groups, slowness) for groups in found} == {best}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.permutations(range(8)))
def test_a_cube_mesh_has_four_pairs_of_two_links_and_two_cliques_whatever_its_numbers(order: list[int]) -> None:
    slowness = meshed(CUBE, order)
    for groups in tilings(8, 2, slowness):
        assert [slowness(a, b) for a, b in groups] == [NV2] * 4
    for groups in tilings(8, 4, slowness):
        assert all(slowness(a, b) != FAR for group in groups for a, b in combinations(group, 2))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(wirings, st.integers(1, 6))
def test_no_chain_is_better_than_the_one_found(wires: dict[tuple[int, int], tuple[int, int, int]], n: int) -> None:
    slowness = meshed(wires)

    def steps(chain: Group) -> list[int]:
        paths = [slowness(a, b) for a, b in pairwise(chain)]
        return [sum(p[0] for p in paths), *(paths.count(kind) for kind in (FAR, NEAR, NV1))]

    found = shortest_chain(n, slowness)
    assert sorted(found) == list(range(n))
    if n > 2:
        assert steps(found) == min(map(steps, permutations(range(n))))


@pytest.mark.parametrize(("size", "whole"), [(2, 35), (3, 18), (4, 17), (8, 8), (16, 4)])
def test_a_rack_is_cut_tray_by_tray_though_one_gpu_is_lost(size: int, whole: int) -> None:
    """18 trays of 4, the second of them with 3: the others stay whole."""
    trays = [tray for tray in range(18) for _ in range(3 if tray == 1 else 4)]

    def slowness(a: int, b: int) -> tuple[int, int, int]:
        return NV2 if trays[a] == trays[b] else NV1

    [groups] = tilings(71, size, slowness)
    assert len(groups) == 71 // size
    each = [Counter(trays[i] for i in group) for group in groups]
    assert sum(set(count.values()) == {min(size, 4)} for count in each) == whole


def test_576_gpus_in_one_domain_are_cut_in_no_time() -> None:
    [groups] = tilings(576, 8, lambda a, b: NV2 if a // 4 == b // 4 else NV1)
    assert [list(group) for group in groups] == [list(range(first, first + 8)) for first in range(0, 576, 8)]
