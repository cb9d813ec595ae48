"""The regret benchmark: what a group is, what a choice loses, and what is counted how, on small tables of our own."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest

from configgen.plan import Objective, Parallelism, Workload

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import regret as command
from benchmarks.constants import constants, moved, scaled
from benchmarks.decisions import choices, decision_groups
from benchmarks.planner import cases, predictor, seat
from benchmarks.scoring import (
    BASELINES,
    Worth,
    by_class,
    first_choice,
    macro_mean,
    order_accuracy,
    regret,
    score,
    summary,
)
from benchmarks.setups import UnmappedError, model_of, topology_of, traits_of
from benchmarks.truth import (
    Alternative,
    Fabric,
    Goal,
    Group,
    Load,
    Setup,
    silicon_groups,
)
from configgen import wires
from probe.topology import GpuRef

L40S = Setup("meta-llama/Llama-3.1-8B", "bf16", "L40S", 8, 1, "pcie4", "", "vllm 0.33")
DECISION = (
    "id,kind,source,engine,model_hf_id,weight_dtype,gpu,gpus_per_node,nodes,intra_fabric,inter_fabric,workload,"
    "tp,pp,dp,ep,metric_name,metric_value,is_best_in_group,group_id,notes"
).split(",")
SILICON = (
    "gid,model_path,system,backend,precision,isl,osl,conc_per_gpu,tp_size,pp_size,attention_dp_size,moe_ep_size,gpus,"
    "silicon_ttft_ms,silicon_tpot_ms,tput_gpu"
).split(",")


def group(
    values: list[float | None],
    shapes: list[Parallelism] | None = None,
    *,
    goal: Goal = Goal.THROUGHPUT_PER_GPU,
    publisher: str = "us",
    setup: Setup = L40S,
) -> Group:
    shapes = shapes or [Parallelism(1 << i) for i in range(len(values))]
    alternatives = tuple(Alternative(s, v) for s, v in zip(shapes, values, strict=True))
    return Group("g", publisher, setup, Load(Workload()), goal, alternatives)


def always(place: int) -> Worth:
    return tuple(float(i == place) for i in range(4))


def table(path: Path, columns: list[str], rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def decision(**facts: object) -> dict[str, object]:
    return {
        "kind": "measured", "source": "org/repo docs v1 (read)", "engine": "vllm", "weight_dtype": "bf16",
        "model_hf_id": "meta-llama/Llama-3.1-8B", "gpu": "L40S", "gpus_per_node": 8, "nodes": 1,
        "intra_fabric": "pcie4", "workload": "isl/osl=1000/200;offline max throughput", "tp": 1, "pp": 1, "dp": 1,
        "ep": 1, "metric_name": "output_tok_s_of_one_instance", "group_id": "g",
    } | facts  # fmt: skip


def run(gpus: int, tput: object, **facts: object) -> dict[str, object]:
    return {
        "gid": "s", "model_path": "meta-llama/Llama-3.1-8B", "system": "h100_sxm", "backend": "vllm", "isl": "1024.0",
        "osl": "128.0", "conc_per_gpu": "16.0", "tp_size": float(gpus), "pp_size": 1.0, "attention_dp_size": 1.0,
        "moe_ep_size": 1.0, "gpus": float(gpus), "tput_gpu": tput,
    } | facts  # fmt: skip


@pytest.mark.parametrize(
    ("values", "choice", "goal", "expected"),
    [
        ([100.0, 80.0], 1, Goal.THROUGHPUT, 0.2),
        ([100.0, 95.0], 1, Goal.THROUGHPUT, 0.0),
        ([100.0, 94.9], 1, Goal.THROUGHPUT_PER_GPU, 0.051),
        ([10.0, 20.0], 1, Goal.TPOT, 0.5),
        ([10.0, 20.0], 0, Goal.TTFT, 0.0),
        ([10.0, 10.5], 1, Goal.TPOT, 0.0),
        ([100.0, None], 1, Goal.THROUGHPUT, 1.0),
        ([None, 5.0], 1, Goal.THROUGHPUT, 0.0),
    ],
)
def test_what_a_choice_loses(values: list[float | None], choice: int, goal: Goal, expected: float) -> None:
    assert regret(values, choice, goal) == pytest.approx(expected)


def test_no_choice_loses_all_and_equals_go_to_the_first() -> None:
    assert first_choice((None, None)) is None
    assert first_choice((None, 2.0, 2.0, 1.0)) == 1
    assert score(group([1.0, 2.0]), lambda _: (None, None)).regret == 1.0


def test_the_best_alternative_is_the_highest_throughput_or_the_shortest_time() -> None:
    for goal, best in ((Goal.THROUGHPUT, 2), (Goal.TPOT, 1)):
        assert score(group([5.0, 3.0, 9.0, None], goal=goal), lambda _: always(0)).best == best


def test_pairs_closer_than_5_percent_have_no_order_and_a_refused_alternative_stands_last() -> None:
    scores = [score(group([100.0, 98.0, 50.0]), lambda _: (1.0, 2.0, None))]
    assert order_accuracy(scores) == (2, 2)
    undecided = [score(group([100.0, 50.0]), lambda _: (1.0, 1.0))]
    assert order_accuracy(undecided) == (0, 1)
    slow_first = [score(group([2.0, 1.0], goal=Goal.TTFT), lambda _: (1.0, 2.0))]
    assert order_accuracy(slow_first) == (1, 1)


def test_one_publisher_with_many_groups_does_not_swamp_the_mean() -> None:
    many = [score(group([1.0, 0.5], publisher="many"), lambda _: (1.0, 0.0)) for _ in range(9)]
    one = [score(group([1.0, 0.5], publisher="few"), lambda _: (0.0, 1.0))]
    assert summary(many + one).mean == pytest.approx(0.05)
    assert macro_mean(many + one) == pytest.approx(0.25)
    assert macro_mean([]) is None


def test_classes_follow_the_wires_between_the_gpus() -> None:
    def fabric(inside: str, nodes: int = 1) -> Fabric | None:
        return Setup("m", None, "g", 8, nodes, inside, "", "").fabric

    assert [fabric(i) for i in ("nvswitch", "nvlink", "nvlink_pairs", "pcie4", "pcie5")] == [
        Fabric.NVSWITCH, Fabric.NVSWITCH, Fabric.PAIRS, Fabric.PCIE, Fabric.PCIE,
    ]  # fmt: skip
    assert fabric("nvswitch", nodes=2) is Fabric.CROSS_NODE
    assert fabric("none") is None
    scores = [score(group([1.0, 0.5]), lambda _: (1.0, 0.0))]
    assert {f: s.groups for f, s in by_class(scores).items() if s.groups} == {Fabric.PCIE: 1}


def test_what_the_rules_of_thumb_choose() -> None:
    shapes = [Parallelism(1), Parallelism(2), Parallelism(4), Parallelism(8), Parallelism(2, 2), Parallelism(4, ep=4)]
    one_node = group([1.0] * 6, shapes)
    picked = {name: first_choice(rule(one_node)) for name, rule in BASELINES.items()}
    assert picked == {"TP = all": 3, "DP first": 0, "always TP4": 2, "vLLM recipe": 0}
    two_nodes = Setup("m", None, "g", 8, 2, "nvswitch", "", "")
    across = group([1.0, 1.0], [Parallelism(16), Parallelism(8, 2)], setup=two_nodes)
    assert first_choice(BASELINES["TP = all"](across)) == 0
    assert first_choice(BASELINES["vLLM recipe"](across)) == 1


def test_instances_of_different_size_are_compared_per_gpu_on_equally_many_gpus(tmp_path: Path) -> None:
    rows = [decision(tp=2, metric_value=100), decision(tp=4, metric_value=150), decision(tp=8, metric_value="OOM")]
    rows.append(decision(group_id="lone", metric_value=1))
    (found,) = decision_groups(table(tmp_path / "d.csv", DECISION, rows))
    assert found.values == (50.0, 37.5, None)
    assert [a.shape.gpus for a in found.alternatives] == [8, 8, 8]
    assert (found.goal, found.publisher, found.setup.fabric) == (Goal.THROUGHPUT_PER_GPU, "org/repo", Fabric.PCIE)
    assert found.load.saturated
    assert found.load.on(4).concurrency == 4 * found.load.on(1).concurrency
    assert (found.load.workload.input_tokens, found.load.workload.output_tokens) == (1000, 200)


def test_totals_of_equally_many_gpus_stay_totals(tmp_path: Path) -> None:
    rows = [decision(tp=8, metric_value=1, metric_name="relative_throughput"),
            decision(tp=4, pp=2, metric_value=6.6, metric_name="relative_throughput")]  # fmt: skip
    (found,) = decision_groups(table(tmp_path / "d.csv", DECISION, rows))
    assert (found.goal, found.values) == (Goal.THROUGHPUT, (1.0, 6.6))


def test_one_users_speed_is_a_latency(tmp_path: Path) -> None:
    phases = ("4K generation", "4K prefill")
    rows = [
        decision(tp=tp, metric_value=v, metric_name="tok_s", workload=w, group_id=w, gpus_per_node=1,
                 inter_fabric="200GbE switch")
        for w in phases for tp, v in ((1, 10), (2, 20))
    ]  # fmt: skip
    generation, prefill = decision_groups(table(tmp_path / "d.csv", DECISION, rows))
    assert (generation.goal, prefill.goal) == (Goal.TPOT, Goal.TTFT)
    assert generation.values == (0.1, 0.05)
    work = generation.load.on(1)
    assert (work.objective, work.concurrency, work.input_tokens) == (Objective.LATENCY, 1, 4096)
    assert generation.setup.nodes == 2, "two GPUs of one-GPU nodes are two nodes, whatever the table says"
    assert [a.shape.dp for a in generation.alternatives] == [1, 1]


def test_what_a_load_leaves_open_is_assumed_and_said(tmp_path: Path) -> None:
    rows = [decision(kind="expert_choice", workload=w, source=w or "x") for w in ("conc 4-64", "serving", "latency")]
    told, serving, latency = choices(table(tmp_path / "d.csv", DECISION, rows))
    assert told.load.workload.concurrency == 16
    assert serving.load.workload.assumed == ("input_tokens", "output_tokens", "concurrency")
    assert latency.load.workload.objective is Objective.LATENCY


def test_runs_of_one_load_per_gpu_are_one_group(tmp_path: Path) -> None:
    rows = [run(1, 300), run(4, 200), run(4, 250, attention_dp_size=4.0, moe_ep_size=4.0), run(2, 5, gid="lone")]
    (found,) = silicon_groups(table(tmp_path / "s.csv", SILICON, rows))
    assert found.values == (300.0, 200.0, 250.0)
    assert [a.shape for a in found.alternatives] == [
        Parallelism(1, dp=4), Parallelism(4), Parallelism(4, ep=4, attention_dp=4),
    ]  # fmt: skip
    assert found.load.on(4).concurrency == 64
    assert (found.publisher, found.setup.precision, found.setup.fabric) == ("silicon", None, Fabric.NVSWITCH)


def test_one_publishers_answers_to_one_question_are_one_choice(tmp_path: Path) -> None:
    expert = {"kind": "expert_choice", "metric_name": ""}
    rows = [decision(**expert, tp=4), decision(**expert, tp=8), decision(**expert, tp=1, source="other"),
            decision(**expert, tp=2, engine="nim/tensorrt-llm")]  # fmt: skip
    both, other, nim = choices(table(tmp_path / "d.csv", DECISION, rows))
    assert [sorted(c.accepted) for c in (both, other)] == [[(4, 1), (8, 1)], [(1, 1)]]
    assert [c.is_nim for c in (both, other, nim)] == [False, False, True]


def test_dep_means_attention_dp(tmp_path: Path) -> None:
    rows = [decision(tp=2, ep=2, notes="2 GPUs DEP2", metric_value=1), decision(tp=2, ep=2, metric_value=1)]
    (found,) = decision_groups(table(tmp_path / "d.csv", DECISION, rows))
    assert [a.shape.attention_dp for a in found.alternatives] == [2, 1]


@pytest.mark.parametrize(
    ("gpu", "count", "nodes", "inside", "across"),
    [
        ("H100-SXM-80GB", 8, 1, "nvswitch", ""),
        ("H100-SXM-80GB", 4, 1, "nvlink", ""),
        ("b200-sxm", 8, 1, "nvswitch", ""),
        ("A100-80GB", 4, 2, "nvlink_pairs", "100 Gbps Ethernet"),
        ("H100-NVL-94GB", 2, 1, "nvlink_pairs", ""),
        ("RTX-PRO-6000-SE", 8, 1, "pcie5", ""),
        ("H200 (no NVLink used)", 4, 1, "pcie5", ""),
        ("DGX-Spark GB10", 1, 4, "single_gpu_node", "200GbE switch"),
        ("GH200-144GB", 1, 1, "none", ""),
        ("GB200-NVL72", 4, 1, "nvswitch", ""),
    ],
)
def test_a_tables_words_stand_for_a_machine(gpu: str, count: int, nodes: int, inside: str, across: str) -> None:
    topology = topology_of(Setup("m", None, gpu, count, nodes, inside, across, ""))
    assert [len(node.gpus) for node in topology.nodes] == [count] * nodes
    speeds = {nic.speed_gbps for node in topology.nodes for nic in node.shape.nics}
    if across:
        assert speeds == {float("".join(c for c in across.split()[0] if c.isdigit()))}


def test_a_slow_network_replaces_the_nics_that_such_a_machine_usually_has() -> None:
    def speed(across: str) -> list[float | None]:
        nodes = topology_of(Setup("m", None, "H100-SXM-80GB", 8, 2, "nvswitch", across, "")).nodes
        return [nic.speed_gbps for nic in nodes[0].shape.nics]

    assert speed("IB/RoCE") == [400.0] * 8
    assert speed("no InfiniBand (slow)") == [25.0]


def test_what_nothing_stands_for_is_named() -> None:
    for setup, word in ((Setup("m", None, "TPU", 8, 1, "pcie4", "", ""), "TPU"),
                        (Setup("m", None, "L40S", 8, 1, "token ring", "", ""), "token ring"),
                        (Setup("m", None, "L40S", 8, 1, "nvswitch", "", ""), "l40s")):  # fmt: skip
        with pytest.raises(UnmappedError, match=word):
            topology_of(setup)
    with pytest.raises(UnmappedError, match="no configuration of nobody/nothing"):
        model_of("nobody/nothing", None, None)
    with pytest.raises(UnmappedError, match="iq2"):
        model_of("meta-llama/Llama-3.1-8B", "iq2", None)


def test_the_served_precision_narrows_a_published_model_and_never_widens_it() -> None:
    bits = {p: model_of("meta-llama/Llama-3.1-8B", p, None).quantization for p in ("bf16", "fp8", "fp4", "int4")}
    assert {p: q and q.bits for p, q in bits.items()} == {"bf16": None, "fp8": 8, "fp4": 4, "int4": 4}
    mxfp4 = model_of("openai/gpt-oss-120b", "fp8", None).quantization
    assert mxfp4 is not None
    assert mxfp4.method == "mxfp4"
    assert model_of("someone/Llama-3.1-8B-NVFP4", "fp4", None).layers == 32


def test_an_engine_without_rules_is_not_held_to_vllms_laws() -> None:
    assert traits_of("tensorrt-llm 0.14.0").attention_dp_with_stages
    assert not traits_of("vllm 0.5.3").attention_dp_with_stages


def test_a_stage_larger_than_a_node_lies_over_nodes_in_their_order() -> None:
    two = topology_of(Setup("m", None, "H100-SXM-80GB", 8, 2, "nvswitch", "", ""))
    (stage,) = seat(two, 16, 1) or ()
    assert stage == tuple(GpuRef(n, g) for n in range(2) for g in range(8))
    inside = seat(two, 8, 2) or ()
    assert [{ref.node for ref in stage} for stage in inside] == [{0}, {1}]
    assert seat(two, 32, 1) is None


def test_the_planner_refuses_what_laws_and_memory_forbid_and_prefers_what_wires_carry() -> None:
    shapes = [Parallelism(1, dp=8), Parallelism(4, dp=2), Parallelism(8)]
    big = Setup("meta-llama/Llama-3.1-70B", "fp8", "L40S", 8, 1, "pcie4", "", "vllm")
    odd = Setup("openai/gpt-oss-120b", None, "H100-SXM-80GB", 8, 1, "nvswitch", "", "vllm")
    groups = [
        group([None, 2.0, 1.0], shapes, setup=big),
        group([1.0, 1.0], [Parallelism(8), Parallelism(7)], setup=odd),
    ]
    groups = [
        Group(str(i), g.publisher, g.setup, Load(Workload(), True), g.goal, g.alternatives)
        for i, g in enumerate(groups)
    ]
    known, unmapped = cases(groups, None)
    assert not unmapped
    alone, two, whole = predictor(known)(groups[0])
    assert alone is None
    assert two is not None
    assert whole is not None
    assert two > whole > 0
    heads = predictor(known)(groups[1])
    assert heads[0] is not None
    assert heads[1] is None


def test_every_constant_of_the_cost_model_can_be_moved_and_comes_back() -> None:
    assert {"FABRIC_EFFICIENCY", "MEMORY_EFFICIENCY"} <= set(constants())
    before = wires.FABRIC_EFFICIENCY
    with moved("FABRIC_EFFICIENCY", 0.75):
        assert pytest.approx(0.75 * before) == wires.FABRIC_EFFICIENCY
    assert before == wires.FABRIC_EFFICIENCY
    assert scaled({"a": (1.0, 2.0)}, 2) == {"a": (2.0, 4.0)}
    assert scaled(("name", 1.0), 2) is None
    assert scaled(True, 2) is None


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    fast = [decision(tp=tp, metric_value=tp * v, group_id=f"g{i}") for i in range(2) for tp, v in ((1, 9), (2, 5))]
    expert = decision(kind="expert_choice", tp=1, group_id="e", metric_name="")
    unknown = [decision(model_hf_id="nobody/nothing", group_id="u", tp=t, metric_value=1) for t in (1, 2)]
    decisions = table(tmp_path / "d.csv", DECISION, [*fast, expert, *unknown])
    silicon = table(tmp_path / "s.csv", SILICON, [run(1, 300), run(8, 100)])
    return ["--decisions", str(decisions), "--silicon", str(silicon), "--models", str(tmp_path), "--no-knife-edge"]


def test_the_command_ends_with_a_line_per_figure(
    tables: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["regret.py", *tables])
    assert command.main() == 0
    out = capsys.readouterr().out
    figures = dict(line.split(": ") for line in out[out.index("\ngroups: ") :].split("\n") if line)
    assert {name: figures[name] for name in ("groups", "pcie_groups", "nvswitch_groups", "pairs_groups")} == {
        "groups": "3", "pcie_groups": "2", "nvswitch_groups": "1", "pairs_groups": "0",
    }  # fmt: skip
    assert math.isnan(float(figures["pairs_mean_regret"]))
    assert float(figures["pcie_mean_regret"]) == float(figures["macro_mean_regret"]) == 0
    assert (figures["coverage"], figures["macro_cells"]) == ("1.0000", "2")
    assert figures["expert_cases"] == "1"
    assert "not scored, 1 groups: no configuration of nobody/nothing" in out


def test_a_machine_that_is_not_known_lowers_the_coverage_and_a_model_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = [
        decision(group_id=name, tp=tp, metric_value=9, **facts)
        for name, facts in (("a", {}), ("b", {"gpu": "TPU"}), ("c", {"model_hf_id": "nobody/nothing"}))
        for tp in (1, 2)
    ]
    decisions = table(tmp_path / "d.csv", DECISION, odd)
    monkeypatch.setattr(sys, "argv", ["regret.py", "--decisions", str(decisions), "--no-knife-edge"])
    assert command.main() == 1
    assert "\ncoverage: 0.5000\n" in capsys.readouterr().out


def test_the_command_fails_below_its_bar_and_on_no_table(
    tables: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["regret.py", *tables])
    monkeypatch.setattr(command, "plan_order", lambda known: lambda g: tuple(float(a.shape.tp) for a in g.alternatives))
    assert command.main() == 1
    monkeypatch.setattr(sys, "argv", ["regret.py", "--silicon", "/nowhere.csv"])
    assert command.main() == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_bar_counts_baselines_coverage_and_classes() -> None:
    good = {
        "groups": 9, "pcie_mean_regret": 0.0, "cross_node_mean_regret": math.nan, "nvswitch_mean_regret": 0.0,
        "macro_mean_regret": 0.0, "coverage": 1.0, "pcie_baselines_not_beaten": 0,
    }  # fmt: skip
    assert command.reached(good)
    for name, value in (("groups", 0), ("pcie_mean_regret", 0.021), ("cross_node_mean_regret", 0.06), ("coverage", 0.9),
                        ("macro_mean_regret", 0.031), ("pcie_baselines_not_beaten", 1)):  # fmt: skip
        assert not command.reached(good | {name: value}), name
