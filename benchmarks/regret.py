"""Scores the planner's first choice against what was measured, beside the rules of thumb.

    python benchmarks/regret.py --decisions FILE --silicon FILE [--models DIR] [--no-knife-edge]

The planner is given exactly a group's alternatives, on a synthetic machine of the table's GPUs and fabric, and the one
it thinks best is looked up in the table: benchmarks/scoring.py defines the regret, benchmarks/truth.py the groups, and
benchmarks/setups.py what stands for the table's words. `macro` is the mean over (publisher, fabric class), each cell
counted once. `estimates` takes the best estimate as it is, where the planner takes the simplest of those within 5 %.
Groups of models without a configuration (in --models or the built-in table) are listed and not scored; any other group
that the planner cannot answer lowers the coverage.

Expert choices are apart: there the planner has the whole machine, and must come to the same (TP, PP). NIM's profiles
name their own number of GPUs, so they are counted alone.

The knife edge moves each constant of the cost model by a quarter up and down: where a figure hangs on one, it shows.

The bar: mean regret pcie <= 0.02, cross_node <= 0.05, nvswitch <= 0.025, macro <= 0.03; lower than each baseline in
each class of five groups and more; coverage >= 0.95. Ends with one `name: value` line per figure; exits 1 where the bar
isn't reached. A class without groups has the value nan, and reaches its bar.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.constants import constants, moved
from benchmarks.decisions import Choice, choices, decision_groups
from benchmarks.planner import cases, own_choice, plan_order, predictor
from benchmarks.scoring import BASELINES, Score, Summary, by_class, macro, macro_mean, order_accuracy, score, summary
from benchmarks.setups import Case, NoModelError, UnmappedError, case
from benchmarks.truth import Fabric, Group, silicon_groups

BARS = {Fabric.PCIE: 0.02, Fabric.CROSS_NODE: 0.05, Fabric.NVSWITCH: 0.025}
MACRO_BAR = 0.03
COVERAGE_BAR = 0.95
LEAST_GROUPS = 5
"""Groups of a class from which on the planner must beat every baseline in it."""
OWN = "wirelore"
MODELS = Path(__file__).resolve().parent.parent.parent / "shared" / "models"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--decisions", type=Path, help="CSV, one row per alternative or expert choice")
    parser.add_argument("--silicon", type=Path, help="CSV, one row per run")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of configurations, org--name.json")
    parser.add_argument("--no-knife-edge", action="store_true", help="leave that table out: it takes a minute")
    options = parser.parse_args()
    if options.decisions is None and options.silicon is None:
        parser.error("give --decisions, --silicon or both")
    try:
        groups = silicon_groups(options.silicon) if options.silicon else []
        groups += decision_groups(options.decisions) if options.decisions else []
        experts = choices(options.decisions) if options.decisions else []
    except (OSError, KeyError, ValueError) as error:
        print(f"the tables cannot be read: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    models = options.models if options.models.is_dir() else None
    known, unmapped = cases(groups, models)
    blind = sum(not isinstance(error, NoModelError) for error in unmapped.values())
    figures = scored([g for g in groups if g.name in known], known, blind)
    print_unmapped(unmapped)
    if not options.no_knife_edge:
        print_knife_edge([g for g in groups if g.name in known], known)
    figures |= expert_figures(experts, models)
    figures["coverage"] = figures.pop("coverage")  # the last line, as scripts read it
    for name, value in figures.items():
        print(f"{name}: {value}" if isinstance(value, int) else f"{name}: {value:.4f}")
    return 0 if reached(figures) else 1


def scored(groups: Sequence[Group], known: dict[str, Case], blind: int) -> dict[str, float]:
    """Prints the tables and gives the figures by name; `blind` groups have a model and no machine here."""
    planners = {OWN: plan_order(known), "estimates": predictor(known)} | BASELINES
    scores = {name: [score(group, planner) for group in groups] for name, planner in planners.items()}
    own = scores[OWN]
    print_classes(scores)
    print_cells(own)
    print_groups(own)
    total, (right, pairs) = summary(own), order_accuracy(own)
    refused = [s for s in own if s.choice is None]
    classes = {name: by_class(one) for name, one in scores.items()}
    figures: dict[str, float] = {
        "groups": len(groups),
        "groups_refused": len(refused),
        "p95_regret": number(total.p95),
        "max_regret": number(total.worst),
        "share_within_5_percent": number(total.within),
        "pairs_compared": pairs,
        "pair_order_accuracy": right / pairs if pairs else math.nan,
    }
    for fabric in Fabric:
        beaten = [
            name for name in BASELINES if number(classes[OWN][fabric].mean) >= number(classes[name][fabric].mean) > 0
        ]
        if classes[OWN][fabric].groups >= LEAST_GROUPS:
            figures[f"{fabric.value}_baselines_not_beaten"] = len(beaten)
    for fabric in (Fabric.PCIE, Fabric.PAIRS, Fabric.CROSS_NODE, Fabric.NVSWITCH):
        figures[f"{fabric.value}_groups"] = classes[OWN][fabric].groups
        figures[f"{fabric.value}_mean_regret"] = number(classes[OWN][fabric].mean)
    figures["macro_cells"] = len(macro(own))
    figures["macro_mean_regret"] = number(macro_mean(own))
    figures["coverage"] = (len(groups) - len(refused)) / (len(groups) + blind) if groups else 0.0
    return figures


def reached(figures: dict[str, float]) -> bool:
    """Whether the bar is; nan (no group of a class) reaches it, nothing scored at all doesn't."""
    within = [not figures[f"{fabric.value}_mean_regret"] > bar for fabric, bar in BARS.items()]
    beaten = [value == 0 for name, value in figures.items() if name.endswith("_baselines_not_beaten")]
    return (
        figures["groups"] > 0
        and all(within)
        and all(beaten)
        and figures["macro_mean_regret"] <= MACRO_BAR
        and figures["coverage"] >= COVERAGE_BAR
    )


def number(value: float | None) -> float:
    return math.nan if value is None else value


def print_classes(scores: dict[str, list[Score]]) -> None:
    print("mean regret (p95, max; share within 5 %) by fabric class, and the pairs in the right order")
    for name, one in scores.items():
        right, pairs = order_accuracy(one)
        print(f"  {name:<14}macro {number(macro_mean(one)):.4f}   order {right}/{pairs}")
        for fabric, figures in by_class(one).items():
            print(f"    {fabric.value:<12}{shown(figures)}")


def print_cells(scores: Sequence[Score]) -> None:
    print(f"\n{OWN} by publisher and class")
    for (publisher, fabric), figures in macro(scores).items():
        print(f"  {publisher.removeprefix('https://')[:44]:<46}{fabric:<12}{shown(figures)}")


def shown(figures: Summary) -> str:
    if figures.mean is None:
        return f"{figures.groups:>4} groups"
    spread = f"({figures.p95:.3f}, {figures.worst:.3f}; {figures.within:.0%})"
    return f"{figures.groups:>4} groups  {figures.mean:.4f}  {spread}"


def print_groups(scores: Sequence[Score]) -> None:
    """Every group outside NVSwitch, and the worst behind one."""
    worst_first = sorted(scores, key=lambda s: -s.regret)
    inside = [s for s in worst_first if s.group.setup.fabric is Fabric.NVSWITCH]
    outside = [s for s in worst_first if s.group.setup.fabric is not Fabric.NVSWITCH]
    for title, shown_ones in (("each group outside NVSwitch", outside), ("the worst ten behind it", inside[:10])):
        print(f"\nregret  chosen -> best: {title}")
        for one in shown_ones:
            labels = [a.shape.label for a in one.group.alternatives]
            chosen = "refused all" if one.choice is None else labels[one.choice]
            refused = [label for label, worth in zip(labels, one.worth, strict=True) if worth is None]
            says = f"   refuses {', '.join(refused)}" if refused and one.choice is not None else ""
            print(f"{one.regret:6.3f}  {chosen} -> {labels[one.best]}   {one.group.name}{says}")


def print_unmapped(unmapped: dict[str, UnmappedError]) -> None:
    for reason, count in sorted(Counter(map(str, unmapped.values())).items()):
        print(f"\nnot scored, {count} groups: {reason}")


def print_knife_edge(groups: Sequence[Group], known: dict[str, Case]) -> None:
    """Each constant at 3/4 and 5/4 of itself: the macro mean, how far it moves, and the mean of each class."""
    base = number(macro_mean(predicted_scores(groups, known)))
    print("\nknife edge: mean regrets with each constant of the cost model at 3/4 and at 5/4")
    for name in constants():
        ends = []
        for factor in (0.75, 1.25):
            with moved(name, factor):
                ends.append(predicted_scores(groups, known))
        means = [number(macro_mean(scores)) for scores in ends]
        classes = [by_class(scores) for scores in ends]
        cells = "   ".join(
            f"{fabric.value} {'/'.join(f'{number(one[fabric].mean):.4f}' for one in classes)}" for fabric in BARS
        )
        furthest = max(abs(mean - base) for mean in means)
        print(f"  {name:<34}macro {means[0]:.4f}/{means[1]:.4f} (moves {furthest:.4f})   {cells}")


def predicted_scores(groups: Sequence[Group], known: dict[str, Case]) -> list[Score]:
    """Scores of the cost model as its constants now stand: what models keep of earlier sums is forgotten."""
    for given in known.values():
        given.model.memo.clear()
    planner = predictor(known)
    return [score(group, planner) for group in groups]


def expert_figures(experts: Sequence[Choice], models: Path | None) -> dict[str, float]:
    """Prints what was chosen otherwise, and counts exact matches of (TP, PP)."""
    matches: dict[str, list[bool]] = {"expert": [], "nim": [], "legal": []}
    print("\nexpert choices (TP, PP): ours, and theirs where it differs")
    for choice in experts:
        try:
            given = case(choice.setup, models)
        except UnmappedError as error:
            print(f"  not scored: {choice.name}: {error}")
            continue
        ours = own_choice(choice, given)
        kind = "legal" if choice.kind == "legal_constraint" else "nim" if choice.is_nim else "expert"
        matches[kind].append(ours in choice.accepted)
        if ours not in choice.accepted:
            theirs = " or ".join(f"TP{tp} PP{pp}" for tp, pp in sorted(choice.accepted))
            said = "no plan" if ours is None else f"TP{ours[0]} PP{ours[1]}"
            print(f"  {kind:<7}{said} against {theirs:<10}  {choice.name}")
    figures: dict[str, float] = {}
    for kind in ("legal", "nim", "expert"):
        found = matches[kind]
        figures[f"{kind}_cases"] = len(found)
        figures[f"{kind}_match_rate"] = sum(found) / len(found) if found else math.nan
    return figures


if __name__ == "__main__":
    sys.exit(main())
