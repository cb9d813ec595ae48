"""`plan --pareto`: which plan and load is best between one user's speed and the machine's."""

from __future__ import annotations

import json

import pytest
from builders import llama_70b
from command import wirelore

from configgen.decide import plan
from configgen.engines.rules import engine_traits
from configgen.pareto import front
from configgen.plan import Choice, Limits, Objective, Workload
from probe.errors import NoPlanError
from probe.measurement import Survey
from probe.sources.machines import machine

VLLM = engine_traits("vllm")
ANY_LOAD = Workload(assumed=("concurrency",))
BOX = Survey(machine("hgx-h100"))


def axes(choice: Choice) -> tuple[float, float]:
    assert choice.predictions.tpot_s is not None
    return -choice.predictions.tpot_s, choice.output_tokens_per_s


def test_no_choice_is_beaten_in_both_and_users_get_less_where_the_machine_gives_more() -> None:
    found = [axes(choice) for choice in front(BOX, llama_70b(), ANY_LOAD, VLLM)]
    assert len(found) > 4
    assert found == sorted(found, reverse=True)
    totals = [total for _, total in found]
    assert totals == sorted(totals)
    assert totals[-1] > 10 * totals[0], "from one user to a full machine"


def test_what_plan_chooses_at_a_load_is_not_beyond_the_front() -> None:
    found = [axes(choice) for choice in front(BOX, llama_70b(), ANY_LOAD, VLLM)]
    for objective in Objective:
        for load in (1, 64, 512):
            told = plan(BOX, llama_70b(), Workload(objective=objective, concurrency=load), VLLM)
            tpot_s, each = told.predictions.tpot_s, told.predictions.output_tokens_per_s_per_gpu
            assert tpot_s is not None and each is not None
            total = each * told.parallelism.gpus
            assert any(-speed <= tpot_s * 1.001 and total <= most * 1.051 for speed, most in found), (objective, load)


def test_few_users_want_wide_groups_and_many_want_replicas() -> None:
    found = front(BOX, llama_70b(), ANY_LOAD, VLLM)
    assert found[0].parallelism.tp == 8
    assert found[-1].parallelism.dp > 1


def test_a_told_load_is_kept_and_limits_hold() -> None:
    found = front(BOX, llama_70b(), Workload(concurrency=64), VLLM)
    assert {choice.concurrency for choice in found} == {64}
    limited = front(BOX, llama_70b(), Workload(max_tpot_s=0.02, assumed=("concurrency",)), VLLM, Limits(gpus=4))
    assert limited
    assert all((choice.predictions.tpot_s or 1) <= 0.02 and choice.parallelism.gpus <= 4 for choice in limited)


def test_a_model_that_fits_at_no_load_is_refused() -> None:
    with pytest.raises(NoPlanError, match="no legal plan"):
        front(Survey(machine("l4-1")), llama_70b(), ANY_LOAD, VLLM)


def test_the_command_shows_the_front_and_writes_it() -> None:
    asked = ("plan", "llama-3.1-70b", "--from", "machine:hgx-h100")
    rows = wirelore(*asked, "--pareto").data().split("Front: ")[1].split("\n\n")[0].splitlines()[2:]
    written = json.loads(wirelore(*asked, "--pareto", "--format", "json").data())["front"]
    assert len(rows) == len(written) > 4
    for row, choice in zip(rows, written, strict=True):
        assert f"{choice['concurrency']:,}" in row
    assert json.loads(wirelore(*asked, "--format", "json").data())["front"] == []
