"""What holds of every plan, whatever the machine, the model, the objective and the load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise

import pytest
from builders import cluster_of, dense, llama_13b, llama_70b, llama_405b, node_of
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from test_cost import small_moe, survey_of
from test_users_cases import latent_moe

from configgen.decide import plan
from configgen.document import encode_plan
from configgen.engines.rules import engine_traits
from configgen.forecast import TIE, forecast
from configgen.model import ModelSpec
from configgen.passes import Machine
from configgen.plan import NO_LIMITS, Limits, Objective, Plan, Workload
from configgen.search import search, usable_bytes
from probe.errors import NoPlanError
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.topology import Fabric, FabricState, GpuRef, GpuState, Node, NodeShape, Path, PathKind, Topology

VLLM = engine_traits("vllm")

few = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    phases=[Phase.generate],  # what fails is told as drawn: to shrink a plan takes minutes
)


def small_8b() -> ModelSpec:
    return dense(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256)


def odd_heads() -> ModelSpec:
    """30 layers, 36 heads, 12 of them for KV: groups of 3, 6 and 9 are as legal as of 2 and 4."""
    return dense(layers=30, hidden=4608, heads=36, kv_heads=12, intermediate=18432)


_BUILT = (small_8b, odd_heads, llama_13b, llama_70b, llama_405b, small_moe, latent_moe)
MODELS = {f.__name__: cache(f) for f in _BUILT}
NAMED = ("hgx-h100", "hgx-a100-4", "l40s-8", "3090-bridges-4", "a100-pcie-pairs-8", "dgx1-v100", "a6000-6", "l4-2",
         "h100-nvl-pairs-8", "2xhgx-h200", "2xdgx-spark-1", "hgx-h100+l40s-8", "rtx-pro-6000-8")  # fmt: skip


@st.composite
def nodes(draw: st.DrawFn, mixed: bool = True) -> Node:
    """1 to 16 GPUs: in islands, in pairs, on PCIe levels alone, or joined at random; of one memory size or mixed."""
    n = draw(st.integers(1, 16))
    kind = draw(st.sampled_from(("islands", "pairs", "pcie", "random")))
    fast: dict[tuple[int, int], int] = {}
    if kind == "islands":
        size = draw(st.integers(1, n))
        fast = {(a, b): 18 for a, b in combinations(range(n), 2) if a // size == b // size}
    elif kind == "pairs":
        order = draw(st.permutations(range(n)))
        fast = {(min(a, b), max(a, b)): 4 for a, b in zip(order[::2], order[1::2], strict=False)}
    elif kind == "random":
        chosen = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=2 * n))
        fast = {(min(a, b), max(a, b)): 2 + (a + b) % 3 for a, b in chosen if a != b}
    far = draw(st.sampled_from((PathKind.SYS, PathKind.NODE)))
    near = draw(st.sampled_from((far, PathKind.PIX, PathKind.PHB)))
    per_switch = draw(st.sampled_from((1, 2, 4)))
    sizes = draw(st.sampled_from(((24.0,), (80.0,), (141.0,), (24.0, 80.0), (48.0, 48.0, 16.0))[: 5 if mixed else 3]))
    built = node_of(n, tuple(sizes[i % len(sizes)] for i in range(n)), fast, pcie=far)
    paths = tuple(
        path if path.is_fast or a // per_switch != b // per_switch else Path(near)
        for (a, b), path in zip(combinations(range(n), 2), built.shape.paths, strict=True)
    )
    gpus = tuple(replace(gpu, numa_node=2 * gpu.index // n) for gpu in built.shape.gpus)
    return Node(NodeShape(gpus, paths), built.gpus)


@st.composite
def machines(draw: st.DrawFn) -> Topology:
    """A known machine, or one to three nodes that are alike or not, joined by a network or by one NVLink domain."""
    if draw(st.integers(0, 3)) == 0:
        return machine(draw(st.sampled_from(NAMED)))
    first = draw(nodes())
    others = draw(st.integers(0, 2))
    built = cluster_of(first, *(first if draw(st.booleans()) else draw(nodes()) for _ in range(others)))
    if others and draw(st.integers(0, 3)) == 0:
        state = GpuState(fabric=Fabric(FabricState.COMPLETED, 0, "00000000-0000-0000-0000-000000000001", clique_id=1))
        return replace(built, nodes=tuple(replace(node, gpus=(state,) * len(node.gpus)) for node in built.nodes))
    return built


loads = st.builds(
    Workload,
    st.sampled_from((128, 1024, 4096)),
    st.sampled_from((1, 64, 512)),
    st.sampled_from((1, 3, 16, 128, 1024)),
    st.sampled_from(Objective),
    assumed=st.sampled_from(((), ("concurrency",))),
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Survey, ModelSpec, Workload, Limits]:
    model = MODELS[draw(st.sampled_from(sorted(MODELS)))]()
    limits = Limits(gpus=draw(st.one_of(st.none(), st.sampled_from((3, 5, 6, 10)))))
    return Survey(draw(machines())), model, draw(loads), limits


def decided(survey: Survey, model: ModelSpec, load: Workload, limits: Limits) -> Plan:
    """The plan; where there is none, that is said with a law and the cure, and the example has told all it can."""
    try:
        return plan(survey, model, load, VLLM, limits)
    except NoPlanError as error:
        assert "no legal plan for" in str(error) and error.cure
        assert "GPU" in str(error)
        assume(False)
        raise


@few
@given(questions())
def test_gpus_are_used_once_and_layers_covered_once(asked: tuple[Survey, ModelSpec, Workload, Limits]) -> None:
    survey, model, load, limits = asked
    found = decided(survey, model, load, limits)
    p = found.parallelism
    placed = [ref for replica in found.replicas for ref in replica.gpus]
    assert p.tp * p.pp * p.dp == len(placed) == len(set(placed)) == sum(map(len, found.gpu_order))
    assert len(placed) <= min(survey.topology.gpu_count, limits.gpus or survey.topology.gpu_count)
    for replica in found.replicas:
        assert [len(stage) for stage in replica.stages] == [p.tp] * p.pp
        ranks = Counter(ref.node for ref in replica.gpus)
        assert len(set(ranks.values())) == 1, "engines start as many ranks on each node of a replica"
    covered = [n for n, layers in enumerate(found.layers_per_stage) for _ in range(layers)]
    assert len(covered) == model.layers and covered == sorted(covered) and set(covered) == set(range(p.pp))
    assert model.attention_heads % p.attention_tp == 0
    assert model.moe is None or model.moe.experts % p.ep == 0


@few
@given(questions())
def test_no_plan_exceeds_the_memory_of_any_gpu_of_any_stage(asked: tuple[Survey, ModelSpec, Workload, Limits]) -> None:
    survey, model, load, limits = asked
    found = decided(survey, model, load, limits)
    for replica in found.replicas:
        for stage, memory in zip(replica.stages, found.memory, strict=True):
            assert memory.needed_bytes <= memory.usable_bytes
            for ref in stage:
                real = survey.topology.gpu(ref).memory_bytes or 0
                assert memory.needed_bytes <= usable_bytes(survey.topology, ref, VLLM) <= real
                assert memory.usable_bytes <= real


@few
@given(questions())
def test_the_refused_name_their_law_and_the_losers_what_they_lose_on(
    asked: tuple[Survey, ModelSpec, Workload, Limits],
) -> None:
    survey, model, load, limits = asked
    found = decided(survey, model, load, limits)
    for other in found.alternatives:
        if other.law is None:
            assert other.lost_by and other.margin is not None
            told = other.predictions
            assert told.tpot_s and told.ttft_s and told.output_tokens_per_s_per_gpu and told.max_concurrency
            assert other.margin >= -TIE / (1 - TIE), "nothing better by more than the tie is left behind"
        else:
            p = other.parallelism
            labels = (p.label, replace(p, pp=1, dp=1).label, f"TP{p.tp}:", f"EP{p.ep}:", f"PP{p.pp}:", VLLM.engine)
            assert any(label in other.law for label in labels), other.law
    told = found.predictions
    assert told.tpot_s and told.ttft_s and told.output_tokens_per_s_per_gpu and 0 < (told.uncertainty or 0) < 2


@settings(few, max_examples=25)
@given(questions())
def test_the_same_question_has_the_same_answer(asked: tuple[Survey, ModelSpec, Workload, Limits]) -> None:
    survey, model, load, limits = asked
    once = decided(survey, model, load, limits)
    assert encode_plan(plan(Survey(survey.topology), model, load, VLLM, limits)) == encode_plan(once)


@st.composite
def even_nodes(draw: st.DrawFn) -> Node:
    """Equal islands of 1, 2, 4 or 8 GPUs that fill the node, two islands under each socket or switch, equal GPUs."""
    size, count = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from((1, 2, 4)))
    n = min(16, size * count)
    fast = {(a, b): 4 for a, b in combinations(range(n), 2) if a // size == b // size}
    built = node_of(n, draw(st.sampled_from((24.0, 80.0))), fast)
    near = Path(draw(st.sampled_from((PathKind.SYS, PathKind.NODE, PathKind.PIX))))
    paths = tuple(
        path if path.is_fast or a // (2 * size) != b // (2 * size) else near
        for (a, b), path in zip(combinations(range(n), 2), built.shape.paths, strict=True)
    )
    return Node(replace(built.shape, paths=paths), built.gpus)


@st.composite
def meshes(draw: st.DrawFn) -> Node:
    """Partial meshes of equal GPUs: the cube of a DGX-1, a ring of wide bonds, and bridges between any two."""
    kind = draw(st.sampled_from(("cube", "ring", "bridges")))
    if kind == "bridges":
        n, order = draw(st.integers(3, 8)), draw(st.permutations(range(8)))
        pairs = [pair for pair in zip(order[::2], order[1::2], strict=True) if max(pair) < n]
        near = {(min(pair), max(pair)): 4 for pair in pairs[: draw(st.integers(1, 4))]}
    else:
        n = 8
        quads = {pair: 1 for pair in combinations(range(8), 2) if pair[0] // 4 == pair[1] // 4}
        cube = {**quads, **{(a, a + 4): 1 for a in range(4)}, (0, 1): 2, (1, 5): 2, (2, 3): 2, (2, 6): 2, (6, 7): 2}
        near = cube if kind == "cube" else {(min(a, b), max(a, b)): 2 for a in range(8) for b in [(a + 1) % 8]}
    far = draw(st.sampled_from((PathKind.NODE, PathKind.SYS)))
    built = node_of(n, draw(st.sampled_from((32.0, 80.0))), near, pcie=far)
    switched = draw(st.booleans())
    paths = tuple(
        path if path.is_fast or not switched or a // 2 != b // 2 else Path(PathKind.PIX)
        for (a, b), path in zip(combinations(range(n), 2), built.shape.paths, strict=True)
    )
    return Node(replace(built.shape, paths=paths), built.gpus)


def renumbered(node: Node, order: Sequence[int]) -> Node:
    """The same node; what was GPU i is now GPU order[i]."""
    n = len(node.shape.gpus)
    old = {number: position for position, number in enumerate(order)}
    path = dict(zip(combinations(range(n), 2), node.shape.paths, strict=True))
    gpus = tuple(replace(node.shape.gpus[old[i]], index=i) for i in range(n))
    paths = tuple(path[min(old[a], old[b]), max(old[a], old[b])] for a, b in combinations(range(n), 2))
    return Node(NodeShape(gpus, paths), tuple(node.gpus[old[i]] for i in range(n)))


def shuffled(kind: st.SearchStrategy[Node]) -> st.SearchStrategy[tuple[Topology, Topology]]:
    return kind.flatmap(
        lambda node: st.permutations(range(len(node.shape.gpus))).map(
            lambda order: (cluster_of(node), cluster_of(renumbered(node, order)))
        )
    )


def wires_of(found: Plan, topology: Topology) -> tuple[Counter[tuple[str, ...]], Counter[tuple[str, ...]]]:
    """The paths inside each stage, and those from each stage to the next, whoever they join."""

    def labels(pairs: Iterable[tuple[GpuRef, GpuRef]]) -> tuple[str, ...]:
        return tuple(sorted(topology.path(a, b).label for a, b in pairs))

    stages = [stage for replica in found.replicas for stage in replica.stages]
    hops = [hop for replica in found.replicas for hop in pairwise(replica.stages)]
    inside = Counter(labels(combinations(stage, 2)) for stage in stages)
    return inside, Counter(labels(zip(a, b, strict=True)) for a, b in hops)


@few
@given(shuffled(even_nodes()), st.sampled_from(sorted(MODELS)), loads)
def test_other_numbers_of_the_same_gpus_give_the_same_plan_on_the_same_wires(
    wirings: tuple[Topology, Topology], name: str, load: Workload
) -> None:
    one, other = (decided(Survey(topology), MODELS[name](), load, NO_LIMITS) for topology in wirings)
    assert one.parallelism == other.parallelism
    assert one.predictions == other.predictions
    assert one.layers_per_stage == other.layers_per_stage
    assert wires_of(one, wirings[0]) == wires_of(other, wirings[1])


@settings(few, max_examples=40)
@given(shuffled(nodes(mixed=False)), st.sampled_from(sorted(MODELS)), loads)
def test_other_numbers_of_any_equal_gpus_promise_the_same(
    wirings: tuple[Topology, Topology], name: str, load: Workload
) -> None:
    """However irregular the wires; what is left over may lie on other ones of the same kinds."""
    one, other = (decided(Survey(topology), MODELS[name](), load, NO_LIMITS) for topology in wirings)
    assert one.parallelism == other.parallelism
    assert one.predictions.tpot_s == pytest.approx(other.predictions.tpot_s, rel=0.01)
    each = one.predictions.output_tokens_per_s_per_gpu
    assert each == pytest.approx(other.predictions.output_tokens_per_s_per_gpu, rel=TIE)


@settings(few, max_examples=40)
@given(shuffled(meshes()), st.sampled_from(sorted(MODELS)), loads)
def test_other_numbers_of_a_partial_mesh_give_the_same_plan(
    wirings: tuple[Topology, Topology], name: str, load: Workload
) -> None:
    one, other = (decided(Survey(topology), MODELS[name](), load, NO_LIMITS) for topology in wirings)
    assert one.parallelism == other.parallelism
    for told in ("tpot_s", "ttft_s", "output_tokens_per_s_per_gpu", "max_concurrency"):  # a chain may run either way
        assert getattr(one.predictions, told) == pytest.approx(getattr(other.predictions, told), rel=1e-3)


def test_the_numbers_of_large_and_small_gpus_do_not_decide() -> None:
    """Two of 24 and two of 80 GB: 716 tokens/s where equals are neighbours, 490 where they alternate."""
    load = Workload(1024, 64, 128, Objective.THROUGHPUT)
    told = set()
    for sizes in ((24.0, 24.0, 80.0, 80.0), (24.0, 80.0, 24.0, 80.0), (80.0, 24.0, 24.0, 80.0)):
        found = plan(Survey(cluster_of(node_of(4, sizes))), odd_heads(), load, VLLM)
        told.add((found.parallelism.label, found.predictions))
    assert len(told) == 1


def test_a_group_of_leftovers_keeps_bridged_pairs_whole_whatever_their_numbers() -> None:
    """Five GPUs, two bridged pairs, TP4: both pairs belong into the group."""
    for pairs in (((0, 1), (2, 3)), ((0, 1), (3, 4)), ((1, 2), (3, 4)), ((0, 2), (1, 4))):
        wires = cluster_of(node_of(5, 80, dict.fromkeys(pairs, 18), pcie=PathKind.NODE))
        found = plan(Survey(wires), llama_70b(), Workload(objective=Objective.LATENCY, concurrency=1), VLLM)
        assert found.parallelism.tp == 4
        [inside] = wires_of(found, wires)[0]
        assert inside.count("NV18") == 2, pairs


@settings(few, max_examples=40)
@given(questions(), st.floats(1.0, 30.0))
def test_faster_wires_never_make_the_best_latency_worse(
    asked: tuple[Survey, ModelSpec, Workload, Limits], faster: float
) -> None:
    survey, model, load, limits = asked
    load = replace(load, objective=Objective.LATENCY)
    try:
        field = search(survey, model, load, VLLM, limits)
    except NoPlanError:
        assume(False)
    quick = Machine(survey, faster)
    then = [forecast(quick, model, f.candidate, field.workload, VLLM).worth_s for f in field.forecasts]
    now = [f.worth_s for f in field.forecasts]
    assert min(then) <= min(now) * (1 + 1e-9)
    assert now[0] <= min(now) / (1 - TIE), "what is chosen is as good as the best, but for the tie"


@settings(few, max_examples=25)
@given(
    st.sampled_from(("l40s-4", "hgx-h100-4", "3090-bridges-4", "a6000-3")),
    st.sampled_from(("memory_gbps", "tflops", "wire_gbps", "alpha_s")),
    st.fixed_dictionaries(
        {
            "memory_gbps": st.floats(300, 8000),
            "tflops": st.floats(50, 2000),
            "wire_gbps": st.floats(0.2, 800),
            "alpha_s": st.floats(2e-6, 2e-4),
        }
    ),
    st.floats(1.0, 20.0),
    st.sampled_from(("small_8b", "odd_heads", "small_moe", "llama_13b")),
    loads,
)
def test_a_survey_of_faster_things_never_promises_a_worse_latency(
    name: str, which: str, figures: dict[str, float], factor: float, model: str, load: Workload
) -> None:
    load = replace(load, objective=Objective.LATENCY)
    better = figures | {which: figures[which] / factor if which == "alpha_s" else figures[which] * factor}
    worths = [
        [f.worth_s for f in search(survey_of(machine(name), **some), MODELS[model](), load, VLLM).forecasts]
        for some in (figures, better)
    ]
    assert min(worths[1]) <= min(worths[0]) * (1 + 1e-9)
    assert worths[1][0] <= min(worths[0]) / (1 - TIE) * (1 + 1e-9)
