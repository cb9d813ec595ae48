"""Disjoint groups of one size on the best paths there are, and the best order of a pipeline, whatever the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

Group = tuple[int, ...]

Slowness = Callable[[int, int], tuple[int, ...]]
"""Of a pair, either way round: the less the better. The first numbers matter most, over all groups together."""

MOST_ALIKE = 8
"""Tilings that are equally good, of which as many are told: what lies between their groups may differ."""

_STEPS = 2_000
"""After which a search takes the best that it has found: several times what 8 GPUs in any mesh take, 20 ms at most."""

_LARGEST_SEARCHED = 16
"""Items among which is searched; of more, in racks and on large PCIe boards, what is near lies level within level."""


def tilings(n: int, size: int, slowness: Slowness) -> tuple[tuple[Group, ...], ...]:
    """The best ways to cut items 0 to n - 1 into n // size groups, the first found first; never none.

    A group is as slow as its slowest pair. That tiling is best which has the fewest groups of the slowest kind, then of
    the next, and so on; of equals, the one with the fewest slow pairs.
    """
    if size == 1 or size > n:
        return (tuple((i,) for i in range(n if size == 1 else 0)),)
    told = _pairs(n, slowness)
    if len(set(told.values())) == 1:
        return (tuple(tuple(range(i, i + size)) for i in range(0, n - size + 1, size)),)
    if n > _LARGEST_SEARCHED:
        return (_level_by_level(n, size, told),)
    return _searched(_costs(n, told), size)


def shortest_chain(n: int, slowness: Slowness) -> Group:
    """The items in the order whose steps from one to the next are best: the fewest of the slowest kind, and so on.

    Of the two ways to walk it, the one with slow steps first: the last stages of a pipeline have more to do.
    """
    told = _pairs(n, slowness) if n > 2 else {}
    if len(set(told.values())) < 2:
        return tuple(range(n))
    cost = _costs(n, told)
    least, cheapest = _spanning(cost), min(cost[a][b] for a, b in told)
    best: tuple[int, Group] | None = None
    steps = 0

    def walk(chain: Group, spent: int) -> None:
        nonlocal best, steps
        steps += 1
        enough = best is not None and (steps > _STEPS or best[0] == least)
        if enough or (best is not None and spent + (n - len(chain)) * cheapest >= best[0]):
            return
        if len(chain) == n:
            best = (spent, chain)
            return
        last = cost[chain[-1]]
        for following in sorted((x for x in range(n) if x not in chain), key=lambda x: last[x]):
            walk((*chain, following), spent + last[following])

    for first in range(n):
        walk((first,), 0)
    assert best is not None
    one = best[1]
    return max(one, one[::-1], key=lambda chain: [cost[a][b] for a, b in pairwise(chain)])


def _spanning(cost: list[list[int]]) -> int:
    """Of the cheapest tree over all items (Prim): no chain costs less."""
    near, total = dict(enumerate(cost[0])), 0
    del near[0]
    while near:
        item = min(near, key=near.__getitem__)
        total += near.pop(item)
        near = {other: min(known, cost[item][other]) for other, known in near.items()}
    return total


def _pairs(n: int, slowness: Slowness) -> dict[tuple[int, int], tuple[int, ...]]:
    return {(a, b): slowness(a, b) for a in range(n) for b in range(a)}


def _costs(n: int, told: dict[tuple[int, int], tuple[int, ...]]) -> list[list[int]]:
    """Each pair's slowness as a number of which sums compare as told in `tilings`.

    Every number that a slowness begins with is a digit of its own, of a base that no count of pairs reaches.
    """
    kinds = set(told.values())
    starts = sorted({kind[:end] for kind in kinds for end in range(1, len(kind) + 1)}, key=lambda s: (-len(s), s))
    digit = {start: 1 << (2 * n.bit_length() * place) for place, start in enumerate(starts)}
    worth = {kind: sum(digit[kind[:end]] for end in range(1, len(kind) + 1)) for kind in kinds}
    cost = [[0] * n for _ in range(n)]
    for (a, b), kind in told.items():
        cost[a][b] = cost[b][a] = worth[kind]
    return cost


def _level_by_level(n: int, size: int, told: dict[tuple[int, int], tuple[int, ...]]) -> tuple[Group, ...]:
    """Groups of what the best paths join, then of what is left over with what the next ones join to it, and so on."""
    groups: list[Group] = []
    parts: list[Group] = [(item,) for item in range(n)]
    for level in sorted(set(told.values())):
        joined: list[Group] = []
        for part in parts:
            near = (i for i, other in enumerate(joined) if _within(told, level, part, other))
            place = next(near, None)
            if place is None:
                joined.append(part)
            else:
                joined[place] += part
        for part in joined:
            groups += [tuple(sorted(part[i : i + size])) for i in range(0, len(part) - size + 1, size)]
        left = (part[len(part) - len(part) % size :] for part in joined)
        parts = sorted((part for part in left if part), key=lambda part: (-len(part), part))
    return tuple(groups)


def _searched(cost: list[list[int]], size: int) -> tuple[tuple[Group, ...], ...]:
    """Branch and bound: the first item that is free gets a group, member by member, the nearest first.

    Of items that are alike to all others ("twins") the first that is free stands for all.
    """
    n = len(cost)
    # A group costs its slowest pair too, in digits above those of all pairs; twice `size` keeps the bounds whole.
    above = max(map(max, cost)).bit_length() + 2 * n.bit_length()
    pair = [[c * 2 * size for c in row] for row in cost]
    twins, bounds = _twins(pair), [_least_share(row, item, size, above) for item, row in enumerate(pair)]
    found: list[tuple[Group, ...]] = []
    best = steps = 0

    def hopeless(least: int) -> bool:
        return bool(found) and (steps > _STEPS or least > best or (least == best and len(found) == MOST_ALIKE))

    def tile(groups: tuple[Group, ...], free: int, spare: int, spent: int) -> None:
        nonlocal best
        members = list(_bits(free))
        if len(members) == spare:
            if not found or spent < best:
                found.clear()
                best = spent
            found.append(groups)
            return
        least = sorted(bounds[item] for item in members)
        if hopeless(spent + sum(least[: len(members) - spare])):
            return
        rest = spent + sum(least[: len(members) - spare - size])
        first = members[0]

        def grow(group: Group, left: int, slowest: int, pairs: int, pull: list[int], far: list[int]) -> None:
            """`pull` and `far` are each item's sum and slowest of its paths to the group."""
            nonlocal steps
            steps += 1
            if len(group) == size:
                inside = sum(1 << item for item in group)
                tile((*groups, tuple(sorted(group))), free & ~inside, spare, spent + (slowest << above) + pairs)
                return
            options, seen = [], 0
            for item in _bits(left):
                if not seen >> item & 1:
                    seen |= twins[item]
                    options.append((max(slowest, far[item]), pairs + pull[item], item))
            for worst, together, item in sorted(options):
                if hopeless(rest + (worst << above) + together):
                    return
                row = pair[item]
                pulls = [a + b for a, b in zip(pull, row, strict=True)]
                fars = [a if a > b else b for a, b in zip(far, row, strict=True)]
                grow((*group, item), left & ~(1 << item), worst, together, pulls, fars)
                left &= ~twins[item]

        grow((first,), free & ~(1 << first), 0, 0, pair[first], pair[first])
        unused = free & twins[first]
        if unused.bit_count() <= spare:
            tile(groups, free & ~unused, spare - unused.bit_count(), spent)

    tile((), (1 << n) - 1, n % size, 0)
    return tuple(found)


def _least_share(row: list[int], item: int, size: int, above: int) -> int:
    """What an item adds to any group at least: its part of the slowest pair, and half of its own pairs."""
    nearest = sorted(row[:item] + row[item + 1 :])[: size - 1]
    return (nearest[-1] << above) // size + sum(nearest) // 2


def _twins(cost: list[list[int]]) -> list[int]:
    """Per item the bit set of those that can change places with it, itself among them."""
    twins = [1 << item for item in range(len(cost))]
    for between in {c for a, row in enumerate(cost) for c in row[:a]}:
        alike: dict[tuple[int, ...], int] = {}
        for item, row in enumerate(cost):
            key = (*row[:item], between, *row[item + 1 :])
            alike[key] = alike.get(key, 0) | 1 << item
        for items in alike.values():
            for item in _bits(items):
                twins[item] |= items
    return twins


def _bits(mask: int) -> Iterator[int]:
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1


def _within(told: dict[tuple[int, int], tuple[int, ...]], level: tuple[int, ...], part: Group, other: Group) -> bool:
    return all(told[max(a, b), min(a, b)] <= level for a in part for b in other)
