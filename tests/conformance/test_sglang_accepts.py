"""SGLang takes every command that is emitted for it and resolves it to what was planned; what it leaves unchecked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from engines import SGLANG
from grid import CASES, MASTER, Case, Command, Emitted, emit, write_inputs
from laws import kind_of
from record import Checked, checks

from configgen.laws import node_law, tensor_parallel_laws
from configgen.plan import Parallelism
from probe.errors import NoPlanError

TRAITS = SGLANG.traits
TOO_OLD = {case for case in CASES if case.machine.name == "dgx1-v100"}
"""Cases without a plan: SGLang's loader asks for compute capability 7.5."""


@dataclass
class Run:
    """All that was asked, with SGLang's answers."""

    record: Checked
    emitted: dict[Case, Emitted] = field(default_factory=dict)
    refused: dict[Case, str] = field(default_factory=dict)
    commands: dict[Case, list[tuple[Command, dict[str, Any]]]] = field(default_factory=dict)
    neighbours: dict[Case, list[tuple[tuple[str, str], dict[str, Any]]]] = field(default_factory=dict)
    """(our law, what SGLang says; '' where it only finds out when it loads), its answer."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every case emitted, and all commands before SGLang, in one process."""
    if (missing := SGLANG.missing()) is not None:
        pytest.skip(f"{missing}: NOTHING is checked against SGLang")
    told, requests, places = Run(Checked("")), [], []
    folder = tmp_path_factory.mktemp("grid")
    write_inputs(folder)
    for case in CASES:
        try:
            emitted = told.emitted[case] = emit(case, "sglang", folder)
        except NoPlanError as error:
            told.refused[case] = str(error)
            continue
        for command in emitted.commands():
            places.append((told.commands.setdefault(case, []), command))
            requests.append(command[2])
        for ours, theirs, request in _neighbours(emitted):
            places.append((told.neighbours.setdefault(case, []), (ours, theirs)))
            requests.append(request)
    for (place, about), answer in zip(places, SGLANG.ask(requests), strict=True):
        place.append((about, answer))
    commands = sum(map(len, told.commands.values()))
    told.record = checks(f"SGLang {SGLANG.version}", len(told.emitted), commands)
    return told


def _neighbours(emitted: Emitted) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(our law, what SGLang says of it, a request) of illegal cuts next to the emitted one."""
    model, p = emitted.model, emitted.plan.parallelism
    start = emitted.processes[0]["command"]

    def request(*words: object) -> dict[str, Any]:
        return {"argv": [*start, *map(str, words)]}

    other = next(tp for tp in range(p.tp + 1, 64) if model.attention_heads % tp)
    yield tensor_parallel_laws(model, other, other, 1)[0], "", request("--tp-size", other, "--pp-size", p.pp)
    yield _refusal(p.tp, p.tp + 1), "attn_dp_size == 0", request("--tp-size", p.tp, "--attn-dp-size", p.tp + 1)
    nodes = p.gpus_per_replica + 1
    spread = [node for node in range(nodes) for _ in range(1 + (node == 0))]
    law = node_law(spread, p.pp, TRAITS)
    assert law is not None
    over = ("--nnodes", nodes, "--node-rank", 0, "--dist-init-addr", f"{MASTER}:20000")
    yield (
        law,
        "divisible by number of nodes",
        request("--tp-size", p.tp, "--pp-size", p.pp, *over),
    )
    if model.moe is None:
        yield tensor_parallel_laws(model, 2, 2, 2)[0], "", request("--tp-size", 2, "--ep-size", 2)
    else:
        ep = next(ep for ep in range(2, 64) if model.moe.experts % ep)
        yield tensor_parallel_laws(model, 1, ep, ep)[-1], "", request("--tp-size", ep, "--ep-size", ep)


def _refusal(tp: int, attention_dp: int) -> str:
    with pytest.raises(ValueError, match="attention_dp divides tp") as refused:
        Parallelism(tp, attention_dp=attention_dp)
    return str(refused.value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_command_is_accepted_and_resolves_to_the_plan(run: Run, case: Case) -> None:
    if case in TOO_OLD:
        assert "compute capability 7.5" in run.refused[case]
        return
    plan, p = run.emitted[case].plan, run.emitted[case].plan.parallelism
    for (form, process, request), answer in run.commands[case]:
        assert answer["accepted"], f"{form}: {answer['message']}\n{request['argv']}"
        replica, alone, found = plan.replicas[process["replica"]], form == "one line", answer["resolved"]
        wanted: dict[str, Any] = {
            "tp_size": p.tp,
            "pp_size": p.pp,
            "dp_size": p.dp if alone else 1,
            "attn_dp_size": p.attention_dp,
            "ep_size": p.ep,
            "nnodes": len(replica.nodes),
            "node_rank": replica.nodes.index(process["node"]),
            "layers": list(plan.layers_per_stage),
            "chunked_prefill_size": plan.engine.max_batched_tokens,
            "mem_fraction_static": float(_value(process, "--mem-fraction-static")),
            "max_running_requests": int(_value(process, "--max-running-requests")),
            "device": "cuda",
        }
        if p.attention_tp > 1:
            wanted["disable_custom_all_reduce"] = not replica.custom_all_reduce
        assert {name: found[name] for name in wanted} == wanted, f"{form}: {request['argv']}"
        own = [ref.gpu for ref in replica.gpus if ref.node == process["node"]]
        if alone:
            every = [ref.gpu for each in plan.replicas for ref in each.gpus]
            counted = [found["base_gpu_id"] + i * found["gpu_id_step"] for i in range(len(every))]
            assert counted == every
        else:
            assert request["environment"]["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, own))
        if len(replica.nodes) > 1:
            assert found["dist_init_addr"].startswith(f"{MASTER}:")


def _value(process: dict[str, Any], flag: str) -> str:
    return str(next(each["words"][1] for each in process["flags"] if each["words"][0] == flag))


@pytest.mark.parametrize("case", [case for case in CASES if case not in TOO_OLD], ids=lambda case: case.name)
def test_illegal_neighbours(run: Run, case: Case) -> None:
    """Refused by both, or by us alone where SGLang finds out only when it loads; one that looks sooner is noticed."""
    for (ours, theirs), answer in run.neighbours[case]:
        if theirs:
            assert not answer["accepted"], ours
            assert theirs in answer["message"], f"{ours!r}, but SGLang says {answer['message']!r}"
            run.record.refused += 1
        else:
            assert kind_of(ours) in ("heads", "experts", "no experts")
            assert answer["accepted"], f"SGLang looks at this now: {answer['message']}"
            run.record.only_ours += 1
