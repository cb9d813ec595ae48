"""Regret: what a planner's first choice loses against the best alternative that was measured; pure.

regret = 1 - v / max v where more is better, 1 - min v / v where less is; 0 within 5 % of the best, for no repetition
of these measurements agrees better; 1 for a choice that failed when it was tried, and for no choice at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log2

from benchmarks.truth import Fabric, Goal, Group
from probe.statistics import quantile

TIE = 0.05

Worth = tuple[float | None, ...]
"""What a planner thinks of each alternative, more is better; None: it refuses that one."""
Planner = Callable[[Group], Worth]


@dataclass(frozen=True, slots=True)
class Score:
    """How one planner did on one group. `choice` is None where it refused every alternative."""

    group: Group
    worth: Worth
    choice: int | None
    regret: float

    @property
    def best(self) -> int:
        return best_of(self.group)


def score(group: Group, planner: Planner) -> Score:
    worth = planner(group)
    choice = first_choice(worth)
    return Score(group, worth, choice, 1.0 if choice is None else regret(group.values, choice, group.goal))


def first_choice(worth: Worth) -> int | None:
    """The most worthy alternative, the first of equals."""
    known = [(w, -i) for i, w in enumerate(worth) if w is not None]
    return -max(known)[1] if known else None


def regret(values: Sequence[float | None], choice: int, goal: Goal) -> float:
    """Of choosing `choice` among alternatives that gave `values`."""
    chosen, known = values[choice], [v for v in values if v is not None]
    if chosen is None:
        return 1.0
    share = min(known) / chosen if goal.lower_is_better else chosen / max(known)
    return 0.0 if share >= 1 - TIE else 1 - share


def best_of(group: Group) -> int:
    known = [(v, i) for i, v in enumerate(group.values) if v is not None]
    return (min(known) if group.goal.lower_is_better else max(known, key=lambda k: (k[0], -k[1])))[1]


def order_accuracy(scores: Sequence[Score]) -> tuple[int, int]:
    """(pairs in the right order, pairs) among measured alternatives more than 5 % apart; a refused one stands last."""
    right = total = 0
    for one in scores:
        for a, b in combinations(range(len(one.worth)), 2):
            seen_a, seen_b = one.group.values[a], one.group.values[b]
            if seen_a is None or seen_b is None or min(seen_a, seen_b) > (1 - TIE) * max(seen_a, seen_b):
                continue
            thought_a, thought_b = (-1.0 if w is None else w for w in (one.worth[a], one.worth[b]))
            total += 1
            right += thought_a != thought_b and (thought_a > thought_b) == (
                (seen_a > seen_b) != one.group.goal.lower_is_better
            )
    return right, total


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures over some groups; `mean` and the others are None where there is no group."""

    groups: int
    mean: float | None = None
    p95: float | None = None
    worst: float | None = None
    within: float | None = None


def summary(scores: Sequence[Score]) -> Summary:
    if not scores:
        return Summary(0)
    regrets = sorted(one.regret for one in scores)
    return Summary(
        len(regrets),
        sum(regrets) / len(regrets),
        quantile(regrets, 0.95),
        regrets[-1],
        sum(r == 0 for r in regrets) / len(regrets),
    )


def by_class(scores: Sequence[Score]) -> dict[Fabric, Summary]:
    return {fabric: summary([s for s in scores if s.group.setup.fabric is fabric]) for fabric in Fabric}


def macro(scores: Sequence[Score]) -> dict[tuple[str, str], Summary]:
    """Per (publisher, class), so that the many groups of one publisher do not swamp the rest."""
    cells: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for one in scores:
        fabric = one.group.setup.fabric
        cells[one.group.publisher, fabric.value if fabric else "none"].append(one)
    return {cell: summary(members) for cell, members in sorted(cells.items())}


def macro_mean(scores: Sequence[Score]) -> float | None:
    means = [cell.mean for cell in macro(scores).values() if cell.mean is not None]
    return sum(means) / len(means) if means else None


def _plain(group: Group, key: Callable[[int, int], float]) -> Worth:
    """Rules name TP and PP and nothing else: among equals plain TP stands before attention-DP and EP."""
    shapes = [a.shape for a in group.alternatives]
    return tuple(-key(s.tp, s.pp) - 1e-3 * (s.attention_dp > 1) - 1e-4 * (s.ep > 1) for s in shapes)


def all_gpus(group: Group) -> Worth:
    return _plain(group, lambda tp, pp: 0.01 * pp - tp)


def dp_first(group: Group) -> Worth:
    return _plain(group, lambda tp, pp: tp * pp + 0.01 * pp)


def always(gpus: int) -> Planner:
    return lambda group: _plain(group, lambda tp, pp: abs(log2(tp / gpus)) + 0.01 * pp)


def vllm_recipe(group: Group) -> Worth:
    """vLLM's documentation: one GPU where the model fits, else TP over the node, and stages across nodes."""
    node = group.setup.gpus_per_node

    def key(tp: int, pp: int) -> float:
        if tp * pp == 1:
            return -1e6  # it was measured, so it fits
        return 1e6 * (tp > node) + 0.01 * pp - tp

    return _plain(group, key)


BASELINES: dict[str, Planner] = {
    "TP = all": all_gpus,
    "DP first": dp_first,
    "always TP4": always(4),
    "vLLM recipe": vllm_recipe,
}
