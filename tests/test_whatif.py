"""What a plan says of others is true: beyond its turn the named one is chosen, and words agree with signs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from math import ceil, floor

import pytest
from builders import llama_70b
from test_users_cases import FP8, latent_moe, small_8b

from configgen.cost import Machine
from configgen.decide import plan
from configgen.engines.rules import engine_traits
from configgen.forecast import TIE, doubt, margin
from configgen.hub import load_model
from configgen.plan import Objective, Plan, Workload
from configgen.search import search
from probe.errors import NoPlanError
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.units import spread

VLLM = engine_traits("vllm")
MODELS = {
    "8b": small_8b(),
    "70b-fp8": llama_70b(FP8),
    "mla": latent_moe(),
    "moe": load_model("gpt-oss-120b", offline=True),
}
MACHINES = ("hgx-h100", "l40s-8", "a100-pcie-pairs-8", "3090-bridges-4", "2xhgx-h100")
LOADS = (1, 6, 64, None)
PAST = 1.1

_WIRES = re.compile(r"(.+) wins once wires are about (\S+) times as fast \((.+)\)")
_LOAD = re.compile(r"(.+) wins (above|below) about (\S+) sequences at once|(.+) wins for one sequence at a time")


def work(objective: Objective, concurrency: int | None) -> Workload:
    if concurrency is None:
        return Workload(objective=objective, assumed=("concurrency",))
    return Workload(objective=objective, concurrency=concurrency)


def questions() -> Iterator[tuple[str, str, Workload]]:
    """Some of all, where each machine, model, objective and load comes up."""
    asked = [(m, n, work(o, c)) for m in MACHINES for n in MODELS for o in Objective for c in LOADS]
    for number, (name, model, load) in enumerate(asked):
        fits = (name == "2xhgx-h100") >= (model == "mla") and (model, name) != ("70b-fp8", "3090-bridges-4")
        if number % 7 == 0 and fits:
            yield name, model, load


ASKED = [*questions()]
each_question = pytest.mark.parametrize(
    ("name", "model", "load"), ASKED, ids=[f"{n}-{m}-{w.objective.value}-{w.concurrency}" for n, m, w in ASKED]
)


def decided(name: str, model: str, load: Workload) -> Plan:
    return plan(Survey(machine(name)), MODELS[model], load, VLLM)


def cut(label: str) -> str:
    """How a replica is cut: the label without the number of replicas; a whole replica on one GPU is TP1."""
    return " ".join(word for word in label.split() if not word.startswith("DP") and word != "TP1")


@each_question
def test_the_named_plan_is_chosen_beyond_its_turn(
    name: str, model: str, load: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = decided(name, model, load)
    told = replace(found.workload, assumed=())
    for text in (r.text for r in found.reasons if r.rule == "would-change"):
        if turn := _WIRES.fullmatch(text):
            label, times = turn[1], float(turn[2])
            faster = times * PAST if times > 1 else times / PAST
            with monkeypatch.context() as patched:
                patched.setattr("configgen.search.Machine", lambda survey, faster=faster: Machine(survey, faster))
                there = decided(name, model, found.workload if not load.assumed else load)
        else:
            turned = _LOAD.fullmatch(text)
            assert turned, text
            label, at = turned[1] or turned[4], int((turned[3] or "1").replace(",", ""))
            sequences = ceil(at * PAST) if turned[2] == "above" else max(1, floor(at / PAST))
            there = decided(name, model, replace(told, concurrency=sequences))
        assert cut(there.parallelism.label) == cut(label), text


def test_turns_are_told_both_of_wires_and_of_loads() -> None:
    told = [r.text for asked in ASKED[::4] for r in decided(*asked).reasons if r.rule == "would-change"]
    assert any(_WIRES.fullmatch(text) for text in told)
    assert any(_LOAD.fullmatch(text) for text in told)


def test_no_turn_lies_beyond_what_a_link_can_carry() -> None:
    """Eight H100 with bridges between pairs: PCIe 5 x16 carries 63 GB/s, so no plan is said to win at more."""
    for objective in Objective:
        for load in (1, 16, 512):
            for reason in decided("h100-nvl-pairs-8", "8b", work(objective, load)).reasons:
                if told := re.search(r"about (\S+) times as fast \((\S+) GB/s", reason.text):
                    assert float(told[1]) < 1 or float(told[2]) <= 600
                if told := re.search(r"about (\S+) times as fast \(\S+ KiB in (\S+) us", reason.text):
                    assert float(told[1]) < 1 or float(told[2]) >= 3.9


def test_where_a_limit_refuses_all_it_says_from_which_load_on() -> None:
    limited = Workload(objective=Objective.THROUGHPUT, concurrency=64, max_tpot_s=0.03)
    (text,) = [r.text for r in decided("hgx-h100", "70b-fp8", limited).reasons if "keeps the limits" in r.text]
    (turn,) = re.findall(r"no plan keeps the limits above about (\d+) sequences", text)
    with pytest.raises(NoPlanError, match="keeps the limits"):
        decided("hgx-h100", "70b-fp8", replace(limited, concurrency=ceil(int(turn) * PAST)))
    assert decided("hgx-h100", "70b-fp8", replace(limited, concurrency=floor(int(turn) / PAST)))


@each_question
def test_words_agree_with_signs_and_confidence_with_doubts(name: str, model: str, load: Workload) -> None:
    found = decided(name, model, load)
    field = search(Survey(machine(name)), MODELS[model], load, VLLM)
    best, others = field.forecasts[0], field.forecasts[1:]
    margins = {(f.candidate.parallelism.label): margin(f, best) for f in reversed(others)}
    texts = [r.text for r in found.reasons if r.rule in ("runner-up", "uncertain")]
    texts += [told for r in found.reasons if r.rule == "experts" for told in r.text.split("; ")]
    texts += [f"{a.parallelism.label} is {a.lost_by}" for a in found.alternatives if a.lost_by]
    for text in texts:
        if told := re.match(r"(.+?) is (?:(\d+)% (behind|ahead)|level)", text):
            behind = margins[told[1]]
            assert told[3] is None or (behind > 0) == (told[3] == "behind"), text
            assert abs(100 * abs(behind) - int(told[2] or 0)) <= 0.51, text
    near = [f for f in others if abs(margin(f, best)) <= max(TIE, doubt(f, best))]
    assert not (found.confidence == "high" and near)
    assert bool(near) == any(r.rule == "uncertain" for r in found.reasons)


@each_question
def test_what_decided_between_ep_and_tp_is_named(name: str, model: str, load: Workload) -> None:
    found = decided(name, model, load)
    p = found.parallelism
    for text in (r.text for r in found.reasons if r.rule == "experts"):
        field = search(Survey(machine(name)), MODELS[model], load, VLLM)
        rivals = [
            margin(f, field.forecasts[0])
            for f in field.forecasts
            if (q := f.candidate.parallelism).tp == p.tp
            and q.pp == p.pp
            and (q.ep, q.attention_dp) != (p.ep, p.attention_dp)
        ]
        if not rivals:
            assert "forbidden otherwise: " in text
        elif min(rivals) <= 0:
            assert f"a tie (within {TIE:.0%})" in text
        else:
            assert re.search(r" is (\d+% behind|level)", text)


@pytest.mark.parametrize("objective", Objective)
def test_what_a_plan_loses_is_told_in_what_its_objective_compares(objective: Objective) -> None:
    """AWQ on 3090s: a plan may answer sooner and still give less, so a time per token would not say why it lost."""
    found = plan(
        Survey(machine("3090-4")), load_model("qwen2.5-72b-instruct-awq", offline=True), work(objective, 64), VLLM
    )
    lost = [a.lost_by or "" for a in found.alternatives if a.margin and a.margin > TIE]
    unit = "a token with its share of the first" if objective is Objective.LATENCY else "tokens/s in all"
    assert lost
    assert all(re.match(rf"\d+% behind: \S+( m?s)? {unit}, not ", text) for text in lost)


def test_what_memory_holds_is_told_of_a_load_that_was_assumed_too() -> None:
    found = decided("3090-bridges-4", "8b", Workload(6144, 2048, assumed=("concurrency",)))
    (text,) = [text for text in found.degraded if "the others wait" in text]
    assert f"memory holds {found.predictions.max_concurrency} of 64" in text
    if found.parallelism.dp > 1:
        (each,) = [r.text for r in found.reasons if r.rule == "replicas"]
        assert "holds" in each and "serves" not in each


def test_an_uncertainty_above_a_whole_is_a_factor() -> None:
    assert [spread(half) for half in (0.28, 0.999, 1.3)] == ["28%", "100%", "a factor of 2.3"]
