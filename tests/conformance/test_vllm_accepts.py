"""vLLM takes every command that is emitted for it and does with it what was planned; and its laws are ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from engines import VLLM, Engine
from grid import CASES, Case, Command, Emitted, emit, published, write_inputs
from laws import KINDS, STRICTER, kind_of
from record import Checked, checks
from small_models import MODELS, write_model

from configgen.document import decode_plan, encode_plan
from configgen.hub import load_model
from configgen.laws import gpu_law, kv_head_law, stages_law, tensor_parallel_laws, vocabulary_law
from configgen.model import ModelSpec
from configgen.plan import EngineTraits, Parallelism
from probe.errors import UsageError

LAYERS = 6
"""Of each model that are built: more than any has dense ones before its experts."""
NOT_BUILT = {"no-pipeline-8b"}
"""Its layers read values of weights, and there are none."""
LARGEST_TP = 32
MANY_GPUS = 4096
CAPABILITIES = ((7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
CONFIGS = {**MODELS, **published()}


@dataclass(frozen=True)
class Neighbour:
    """A command next to an emitted one that a law forbids: `ours` is what we say of it."""

    law: str
    ours: str
    request: dict[str, Any]


@dataclass
class Run:
    """All that was asked of one version, with its answers."""

    engine: Engine
    record: Checked
    emitted: dict[Case, Emitted] = field(default_factory=dict)
    commands: dict[Case, list[tuple[Command, dict[str, Any]]]] = field(default_factory=dict)
    neighbours: dict[Case, list[tuple[Neighbour, dict[str, Any]]]] = field(default_factory=dict)
    cuts: dict[str, list[tuple[Parallelism, dict[str, Any]]]] = field(default_factory=dict)
    """Of each model, every TP up to the largest, with and without EP."""
    formats: dict[str, list[tuple[tuple[int, int], dict[str, Any]]]] = field(default_factory=dict)
    """Of each model, every compute capability."""
    classes: dict[str, bool | str] = field(default_factory=dict)
    models: dict[str, ModelSpec] = field(default_factory=dict)


@pytest.fixture(scope="module", params=VLLM, ids=lambda engine: engine.version)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every case emitted, every model cut in every way, and all of it before this vLLM, in one process."""
    engine: Engine = request.param
    if (missing := engine.missing()) is not None:
        pytest.skip(f"{missing}: NOTHING is checked against vLLM {engine.version}")
    told, requests, places = Run(engine, Checked("")), [], []
    folder = tmp_path_factory.mktemp("grid")
    write_inputs(folder)

    def ask(place: list[Any], about: Any, request: dict[str, Any]) -> None:
        places.append((place, about))
        requests.append(request)

    for case in CASES:
        emitted = told.emitted[case] = emit(case, f"{engine.name}@{engine.version}", folder)
        for number, command in enumerate(emitted.commands()):
            built = number == 0 and case.model not in NOT_BUILT
            ask(told.commands.setdefault(case, []), command, command[2] | {"layers": LAYERS if built else 0})
        for neighbour in _neighbours(emitted, engine.traits):
            ask(told.neighbours.setdefault(case, []), neighbour, neighbour.request)
    for name, config in CONFIGS.items():
        model = write_model(folder / name, config)
        told.models[name] = load_model(str(model))
        layers = 0 if name in NOT_BUILT else LAYERS
        for cut in _cuts():
            ask(told.cuts.setdefault(name, []), cut, _request(str(model), cut) | {"layers": layers})
        for capability in CAPABILITIES:
            request = _request(str(model), Parallelism(1)) | {"layers": layers, "capability": capability}
            ask(told.formats.setdefault(name, []), capability, request)
    asked_classes: list[Any] = []
    ask(asked_classes, None, {"classes": True})
    order = sorted(range(len(requests)), key=lambda i: requests[i].get("capability", (9, 0)))  # another GPU takes time
    for i, answer in zip(order, engine.ask([requests[i] for i in order]), strict=True):
        place, about = places[i]
        place.append((about, answer))
    ((_, classes),) = asked_classes
    told.classes = classes["resolved"]["pipeline"]
    told.record = checks(f"vLLM {engine.version}", len(CASES), sum(map(len, told.commands.values())))
    return told


def _cuts() -> Iterator[Parallelism]:
    for tp in range(1, LARGEST_TP + 1):
        yield Parallelism(tp)
        if tp > 1:
            yield Parallelism(tp, ep=tp)


def _request(model: str, cut: Parallelism) -> dict[str, Any]:
    spread = ["--enable-expert-parallel"] if cut.ep > 1 else []
    stages = ["--pipeline-parallel-size", str(cut.pp)]
    tp = ["--tensor-parallel-size", str(cut.tp)]
    return {"argv": ["vllm", "serve", model, *tp, *stages, *spread], "gpus": MANY_GPUS}


def _laws(model: ModelSpec, cut: Parallelism, traits: EngineTraits) -> list[str]:
    stages = stages_law(model, cut, traits)
    return [
        *tensor_parallel_laws(model, cut.tp, cut.tp, cut.ep),
        *kv_head_law(model, cut.tp, traits),
        *vocabulary_law(model, cut.tp, traits),
        *([stages] if stages else []),
    ]


def _neighbours(emitted: Emitted, traits: EngineTraits) -> Iterator[Neighbour]:
    """The emitted cut with another TP, with stages, with EP, and on fewer GPUs, where that is illegal."""
    model, p = emitted.model, emitted.plan.parallelism
    name = emitted.processes[0]["command"][-1]
    other = next(tp for tp in range(p.tp + 1, 2 * LARGEST_TP) if model.attention_heads % tp)
    for cut in (Parallelism(other, p.pp), Parallelism(p.tp, p.pp + 1), Parallelism(max(2, p.tp), ep=max(2, p.tp))):
        for law in [law for law in _laws(model, cut, traits) if kind_of(law) not in STRICTER["vllm"]][:1]:
            yield Neighbour(kind_of(law), law, _request(name, cut))
    if p.gpus_per_replica > 1 and len(emitted.plan.replicas[0].nodes) == 1 and p.attention_dp == 1:
        document = json.loads(encode_plan(emitted.plan)) | {"tensor_parallel_size": 2 * p.tp}
        with pytest.raises(UsageError) as refused:
            decode_plan(json.dumps(document).encode(), where="a plan")
        cut = Parallelism(p.tp, p.pp)
        yield Neighbour("gpus", str(refused.value), _request(name, cut) | {"gpus": p.gpus_per_replica - 1})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_command_is_accepted_and_resolves_to_the_plan(run: Run, case: Case) -> None:
    plan, p = run.emitted[case].plan, run.emitted[case].plan.parallelism
    for (form, process, request), answer in run.commands[case]:
        assert answer["accepted"], f"{form}: {answer['message']}\n{request['argv']}"
        replica, alone = plan.replicas[process["replica"]], form == "one line"
        rank = replica.nodes.index(process["node"])
        served = plan.replicas if alone else [replica]
        wanted = {
            "tp": p.attention_tp,
            "pp": p.pp,
            "dp": p.dp if alone and not plan.model.is_moe else p.attention_dp,
            "ep": p.ep > 1,
            "nodes": len(replica.nodes),
            "node_rank": rank,
            "devices": [ref.gpu for r in served for ref in r.gpus if ref.node == process["node"]],
            "layers": list(plan.layers_per_stage),
            "memory_utilization": pytest.approx(replica.memory_utilization),
            "kv_cache_bytes": replica.kv_cache_bytes,
            "max_batched_tokens": plan.engine.max_batched_tokens,
            "port": process["port"] or 8000,
        }
        if p.attention_tp > 1:
            wanted["custom_all_reduce"] = replica.custom_all_reduce
        if len(replica.nodes) > 1:
            started = "run_headless" if rank else "run_multi_api_server" if p.attention_dp > 1 else "run_server"
            wanted |= {"backend": "mp", "started": [started]}
        found = answer["resolved"]
        assert {name: found[name] for name in wanted} == wanted, f"{form}: {request['argv']}"
        longest = plan.predictions.max_context
        assert longest is None or found["max_context"] <= longest, "it would promise more context than fits"
    flags = [command for command, _ in run.commands[case] if command[0] == "flags"]
    told = {(process["node"], *request["argv"]) for _, process, request in flags}
    assert len(told) == len(flags), "no two processes of a node are started alike"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_illegal_neighbours_are_refused_by_the_same_law(run: Run, case: Case) -> None:
    for neighbour, answer in run.neighbours[case]:
        assert not answer["accepted"], f"only we refuse {neighbour.request['argv'][2:]}: {neighbour.ours}"
        ours, theirs = KINDS[neighbour.law]
        assert ours.search(neighbour.ours), neighbour
        assert theirs.search(answer["message"]), f"{neighbour.ours!r}, but vLLM says {answer['message']!r}"
        run.record.refused += 1


@pytest.mark.parametrize("name", CONFIGS)
def test_our_laws_are_vllms(run: Run, name: str) -> None:
    """Whatever TP, with EP and without: what we forbid vLLM refuses, and what we allow it builds."""
    wrong = []
    for cut, answer in run.cuts[name]:
        laws = _laws(run.models[name], cut, run.engine.traits)
        refused = not answer["accepted"]
        kinds = {kind_of(law) for law in laws}
        if refused == bool(laws) and (not laws or any(KINDS[kind][1].search(answer["message"]) for kind in kinds)):
            run.record.cuts += 1
        elif laws and not refused and kinds <= STRICTER["vllm"].keys():
            run.record.only_ours += 1
        else:
            wrong.append(f"{cut.label}: we say {laws or 'legal'}, vLLM {answer.get('message', 'accepts')[:200]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", CONFIGS)
def test_our_formats_are_vllms(run: Run, name: str) -> None:
    """On each compute capability: what it can run, it builds."""
    if run.models[name].quantization is not None and "quantization_config" not in str(CONFIGS[name]):
        pytest.skip("its name tells its format, and a file beside config.json that is not here")
    wrong = []
    for capability, answer in run.formats[name]:
        ours = gpu_law(run.models[name], capability, run.engine.traits)
        if answer["accepted"] != (ours is None):
            wrong.append(f"{capability}: we say {ours or 'legal'}, vLLM {answer.get('message', 'accepts')[:200]}")
    assert not wrong, "\n".join(wrong)


def test_our_classes_without_pipeline_are_vllms(run: Run) -> None:
    """Of all classes that generate text: those that serve nothing but drafts, embeddings or labels don't matter."""
    asked = {name: told for name, told in run.classes.items() if isinstance(told, bool)}
    assert len(asked) > 300, {name: told for name, told in run.classes.items() if isinstance(told, str)}
    serving = {name for name in asked if name.endswith(("ForCausalLM", "ForConditionalGeneration"))}
    drafts = {name for name in serving if name.startswith(("Eagle", "Peagle", "PEagle", "DFlash", "DSpark"))}
    known = run.engine.traits.no_pipeline_architectures
    assert {name for name in known & asked.keys() if asked[name]} == set(), "vLLM runs these in stages"
    assert {name for name in serving - drafts - known if not asked[name]} == set(), "vLLM does not run these in stages"
