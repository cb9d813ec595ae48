"""The wires alone decide: one described machine, one model, one load; only the link between the nodes differs.

What decides is the ratio of computing to sending. Of a layer's 12 h^2 parameters TP2 leaves each rank half, so it saves
12 h^2 / F seconds per token of a prompt on ranks of F operations/s, and sends 4 h bytes over a link of B bytes/s: alike
at B = F / (3 h). CPU ranks reach 45 to 80 GFLOP/s in a large product, so at h = 4096 TP2 pays above 30 to 50 Mbit/s for
prompts; a token of one user reads all weights (M = 9 to 25 GB/s) and turns near 10 to 30 Mbit/s. Four ranks at
h = 5120, TP4 against TP2 inside the nodes with PP2 across: 6 h^2 / F against 6 h / B, alike at F / h = 70 to 120
Mbit/s. So 10 or 20 Mbit/s are slow here, 1 Gbit/s is fast, and neither is near the turn. The described GPUs are of one
NVLink domain, since TP is not tried over a network; their memory holds the model only together.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from builders import node_of
from command import WIRELORE, environment
from lab import GBIT, MBIT, Lab
from together import TORCH_S, Measuring

from probe.curve import algbw_gbps
from probe.measurement import Survey
from probe.store import encode_topology
from probe.topology import Fabric, FabricState, GpuState, Topology

pytestmark = [pytest.mark.usefixtures("torch"), pytest.mark.long]

_TURN = re.compile(r"(.+) wins once wires are about (\S+) times as fast \(.+ in (\S+) (\S+) instead of (\S+) (\S+)\)")
_UNIT_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True)
class Case:
    """Two nodes of so many GPUs with 12 GiB each; a Llama of these widths; a load that is told whole."""

    gpus: int
    layers: int
    hidden: int
    intermediate: int
    input_tokens: int
    output_tokens: int
    slow_bits_s: int
    budget: str
    across: str
    inside: str


PAIR = Case(1, 32, 4096, 11008, 128, 32, 10 * MBIT, "12s", across="PP2", inside="TP2")
"""The shape of a Llama-2-7B: 13.5 GB of weights, two GPUs of 12 GiB."""
MIXED = Case(2, 40, 5120, 13824, 512, 16, 20 * MBIT, "20s", across="TP2 PP2", inside="TP4")
"""The shape of a Llama-2-13B: 26 GB of weights, four GPUs of 12 GiB; fast inside the nodes."""


@dataclass(frozen=True)
class Turn:
    """A crossover as it is printed: a message's time where the decision turns, and now."""

    label: str
    times: float
    then_s: float
    now_s: float


@pytest.mark.parametrize("case", [PAIR, MIXED], ids=["2x1", "2x2"])
def test_a_slow_link_gives_stages_across_it_and_a_fast_one_tensor_parallel(case: Case, tmp_path: Path) -> None:
    slow, fast = (_measured(case, rate, tmp_path / name) for name, rate in (("slow", case.slow_bits_s), ("fast", GBIT)))
    across, inside = (_planned(case, tmp_path / name) for name in ("slow", "fast"))

    assert _cut(across) == case.across
    assert [{gpu["node"] for gpu in stage} for stage in across["replicas"][0]["stages"]] == [{0}, {1}]
    assert _cut(inside) == case.inside
    assert {gpu["node"] for gpu in inside["replicas"][0]["stages"][0]} == {0, 1}
    assert across["fingerprint"] == inside["fingerprint"], "the same machine but for its wires"

    link = {"slow": _link_gbps(slow), "fast": _link_gbps(fast)}
    turns = {name: list(_turns(plan)) for name, plan in (("slow", across), ("fast", inside))}
    [down] = [turn for turn in turns["fast"] if turn.label == case.across]
    assert link["slow"] < down.times * link["fast"] < link["fast"]
    assert down.then_s > down.now_s
    [up] = [turn for turn in turns["slow"] if turn.label == case.inside]
    assert link["slow"] < up.times * link["slow"] < link["fast"]
    assert up.then_s < up.now_s


def _measured(case: Case, rate_bits_s: int, folder: Path) -> Survey:
    folder.mkdir()
    state = GpuState(fabric=Fabric(FabricState.COMPLETED, 0, "00000000-0000-0000-0000-000000000001", clique_id=1))
    node = replace(node_of(case.gpus, 12.0, "all" if case.gpus > 1 else ""), gpus=(state,) * case.gpus)
    (folder / "machine.json").write_bytes(encode_topology(Topology((node,))))
    options = ("--budget", case.budget, "--largest", "1MiB")
    with Lab(2, rate_bits_s) as lab, Measuring(lab, folder, str(folder / "machine.json"), *options) as run:
        assert [ended.code for ended in run.ended(TORCH_S)] == [0, 0], run.words(0) + run.words(1)
        survey = run.survey()
    assert survey.lab is not None
    assert {rate.kind for rate in survey.rates} >= {"hbm_read", "gemm"}
    return survey


def _planned(case: Case, folder: Path) -> dict[str, Any]:
    heads = case.hidden // 128
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": case.layers,
        "hidden_size": case.hidden, "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": 32000,
        "intermediate_size": case.intermediate, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "max_position_embeddings": 4096,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokens = ("--input-tokens", str(case.input_tokens), "--output-tokens", str(case.output_tokens))
    load = ("--objective", "latency", "--concurrency", "1", *tokens)
    command = [*WIRELORE, "plan", str(folder / "config.json"), "--from", str(folder / "node0.json"), *load]
    done = subprocess.run(
        [*command, "--format", "json"], check=False, capture_output=True, text=True, timeout=30, env=environment()
    )
    assert done.returncode == 0, done.stderr
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def _cut(plan: dict[str, Any]) -> str:
    sizes = (("TP", "tensor"), ("PP", "pipeline"), ("DP", "data"))
    return " ".join(f"{short}{n}" for short, name in sizes if (n := plan[f"{name}_parallel_size"]) > 1)


def _turns(plan: dict[str, Any]) -> Iterator[Turn]:
    for reason in plan["reasons"]:
        if reason["rule"] == "would-change" and (told := _TURN.fullmatch(reason["text"])):
            assert reason["provenance"] == "measured"
            label, times, then, then_unit, now, now_unit = told.groups()
            yield Turn(label, float(times), float(then) * _UNIT_S[then_unit], float(now) * _UNIT_S[now_unit])


def _link_gbps(survey: Survey) -> float:
    """What the link across carries of the largest message that was sent over it alone."""
    found = {
        (s.size_bytes, s.p50_s)
        for c in survey.curves
        if (c.key.operation, c.key.direction, c.key.group.concurrent_groups) == ("p2p", "forward", 1)
        and len({member.node for member in c.members}) == 2
        for s in c.samples[-1:]
    }
    return algbw_gbps(*max(found))
