"""What is written is what is read: topologies and surveys as versioned JSON, and what is refused by name."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import store
from probe.errors import SourceError
from probe.islands import GroupShape, fingerprint, islands
from probe.measurement import Curve, CurveKey, Evidence, HealthSnapshot, Rate, Sample, Survey, Verification
from probe.sources.machines import MACHINES, machine
from probe.topology import (
    PCIE_KINDS,
    Fabric,
    FabricState,
    Gpu,
    GpuRef,
    GpuState,
    GpuStatus,
    MigInstance,
    NetworkPath,
    Nic,
    Node,
    NodeShape,
    Notice,
    Origin,
    P2p,
    P2pStatus,
    Path,
    PathKind,
    PcieLink,
    Provenance,
    Through,
    Topology,
)

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=120)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


texts = st.text(max_size=12)
names = st.text(min_size=1, max_size=12)
sizes = st.integers(1, 1 << 48)
small = st.integers(0, 64)
speeds = st.floats(0.001, 1e6)
readings = st.tuples(texts, texts).filter(lambda pair: pair[0] != pair[1])
p2ps = st.builds(P2p, *[maybe(st.sampled_from(P2pStatus))] * 5)
slow = st.sampled_from([*PCIE_KINDS, PathKind.UNKNOWN])
slow_paths = st.builds(Path, slow, p2p=maybe(p2ps), asymmetric=maybe(readings))
fast_paths = st.builds(
    Path,
    st.sampled_from([PathKind.NVLINK, PathKind.XGMI, PathKind.C2C]),
    maybe(st.integers(1, 64)),
    maybe(st.sampled_from([2.0, 3.0, 4.0, 5.0])),
    maybe(st.sampled_from(Through)),
    maybe(p2ps),
    maybe(readings),
)
nic_paths = st.builds(Path, slow, asymmetric=maybe(readings))
pcie_links = st.builds(PcieLink, maybe(small), maybe(small), maybe(small), maybe(small))
migs = st.builds(MigInstance, maybe(texts), maybe(texts), maybe(sizes))
fabrics = st.builds(
    Fabric,
    st.sampled_from(FabricState),
    maybe(small),
    maybe(st.uuids(allow_nil=False).map(str)),
    maybe(small),
    maybe(st.integers(0, 1 << 32)),
)
nics = st.builds(
    Nic, names, maybe(texts), maybe(speeds), maybe(texts), maybe(texts), maybe(small), maybe(texts), maybe(texts)
)
states = st.builds(
    GpuState,
    uuid=st.none(),
    pci_bus_id=maybe(texts),
    serial=maybe(texts),
    cuda_index=maybe(small),
    visible=st.booleans(),
    memory_free_bytes=maybe(sizes),
    status=st.sampled_from(GpuStatus),
    status_reason=maybe(texts),
    mig_instances=st.lists(migs, max_size=2).map(tuple),
    fabric=maybe(fabrics),
)
notices = st.builds(Notice, texts, texts, maybe(small))
origins = st.builds(Origin, texts, st.sampled_from(Provenance), texts, maybe(small))


@st.composite
def shapes(draw: st.DrawFn) -> NodeShape:
    n = draw(st.integers(0, 4))
    own_nics = tuple(draw(st.lists(nics, max_size=2, unique_by=lambda nic: nic.name)))
    gpus = []
    for index in range(n):
        total = draw(maybe(small))
        gpus.append(
            Gpu(
                index,
                draw(maybe(names)),
                draw(maybe(sizes)),
                draw(maybe(st.tuples(small, small))),
                draw(maybe(small)),
                draw(maybe(texts)),
                draw(maybe(pcie_links)),
                None if total is None else draw(st.integers(0, total)),
                total,
                tuple(nic.name for nic in own_nics if draw(st.booleans())),
            )
        )
    pairs = n * (n - 1) // 2
    paths = draw(st.lists(slow_paths | fast_paths, min_size=pairs, max_size=pairs))
    rows = tuple(tuple(draw(nic_paths) for _ in own_nics) for _ in range(n))
    told = bool(own_nics) and n > 0 and draw(st.booleans())
    return NodeShape(tuple(gpus), tuple(paths), own_nics, rows if told else (), draw(st.booleans()))


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    kinds = draw(st.lists(shapes(), min_size=1, max_size=2))
    nodes = []
    for position, shape in enumerate(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))):
        gpus = [draw(states) for _ in shape.gpus]
        known = draw(st.booleans())
        gpus = [_named(g, position, i, known) for i, g in enumerate(gpus)]
        nodes.append(Node(shape, tuple(gpus), *(draw(maybe(texts)) for _ in range(4))))
    network = []
    if len(nodes) > 1:
        network.append(NetworkPath(draw(st.sampled_from([PathKind.NET, PathKind.MNNVL])), tuple(range(len(nodes)))))
    told = [draw(st.lists(strategy, max_size=2)) for strategy in (notices, origins)]
    return Topology(tuple(nodes), tuple(network), tuple(told[0]), tuple(told[1]))


def _named(state: GpuState, node: int, index: int, known: bool) -> GpuState:
    values = {field: getattr(state, field) for field in GpuState.__dataclass_fields__}
    return GpuState(**{**values, "uuid": f"GPU-{node}-{index}" if known else None})


def read_back(topology: Topology) -> Topology:
    return store.decode_survey(store.encode_topology(topology), where="a test").topology


def equal(one: Topology, other: Topology) -> bool:
    """NodeShape caches its pairs, so nodes are compared by their fields."""
    return one == other and fingerprint(one) == fingerprint(other) and islands(one) == islands(other)


@EXAMPLES
@given(topologies())
def test_any_topology_comes_back_equal(topology: Topology) -> None:
    back = read_back(topology)
    assert equal(back, topology)
    assert store.encode_topology(back) == store.encode_topology(topology)


@pytest.mark.parametrize("name", [*MACHINES, "3xhgx-h100+2xl40s-8", "2xgb200-nvl72"])
def test_every_machine_comes_back_equal(name: str) -> None:
    topology = machine(name)
    back = read_back(topology)
    assert equal(back, topology)
    assert len({id(node.shape) for node in back.nodes}) == len({id(node.shape) for node in topology.nodes})


def survey() -> Survey:
    """One of everything that can be measured."""
    group = GroupShape((("NV18", 1),), nodes=1, concurrent_groups=2)
    a, b = GpuRef(0, 0), GpuRef(0, 1)
    key = CurveKey("all_reduce", group, "bfloat16", "nccl", True, None, True, False, "2.27.3")
    pair = CurveKey("p2p", group, "bfloat16", "nccl", direction="both", p2p_enabled=False)
    rounds = (Sample(1024, ((1e-5, 2e-5), (1.5e-5,))), Sample(2048, ((3e-5,),)))
    return Survey(
        machine("hgx-h100"),
        curves=(Curve(key, rounds, (a, b)), Curve(pair, (Sample(1 << 30, ((0.1, 0.2),)),))),
        rates=(Rate("gemm", a, 700.5, "TFLOP/s", "bfloat16", (8192, 8192, 8192)), Rate("hbm_read", b, 3000.0, "GB/s")),
        health=(HealthSnapshot(a, "2026-01-01T00:00:00Z", (("nvlink_crc", 0),)),),
        verifications=(Verification(a, b, True, "4 MiB"),),
        evidence=(Evidence("all_reduce", "transport", "P2P/CUMEM"),),
        environment=(("NCCL_DEBUG", "INFO"),),
        missing=(Notice("not-measured", "no second node"),),
        origins=(Origin("curves", Provenance.MEASURED, "nccl 2.27.3"),),
    )


def test_a_survey_comes_back_equal() -> None:
    whole = survey()
    assert store.decode_survey(store.encode_survey(whole), where="a test") == whole


def test_a_topology_is_a_survey_without_measurements() -> None:
    topology = machine("l4-8")
    assert store.decode_survey(store.encode_topology(topology), where="a test") == Survey(topology)


def test_a_document_is_text_that_ends_in_a_newline() -> None:
    data = store.encode_topology(machine("h100-1"))
    assert data.endswith(b"}\n")
    assert b"\n  " in data, "people read it too"
    data.decode("utf-8")


def document() -> dict[str, Any]:
    told = json.loads(store.encode_topology(machine("a100-pcie-pairs-8")))
    assert isinstance(told, dict)
    return told


def decode(told: object) -> Survey:
    return store.decode_survey(json.dumps(told).encode(), where="survey.json")


def test_unknown_keys_are_those_of_a_later_minor_change() -> None:
    told = document()
    told["later"] = {"anything": [1]}
    told["nodes"][0]["gpus"][0]["later"] = True
    assert decode(told).topology == machine("a100-pcie-pairs-8")


def test_what_is_derived_is_never_believed() -> None:
    told = document()
    told |= {"islands": [], "maximal_cliques": [], "fingerprint": "forged"}
    assert islands(decode(told).topology) == islands(machine("a100-pcie-pairs-8"))


def edit(told: Any, path: str, value: object) -> None:
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in way:
        told = told[step]
    if value is ...:
        del told[last]
    else:
        told[last] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema_version", 2, "schema version 2"),
        ("schema_version", 0, "schema version 0"),
        ("schema_version", -1, "schema version -1"),
        ("schema_version", "1", "schema_version"),
        ("schema_version", None, "no wirelore document"),
        ("schema_version", ..., "no wirelore document"),
        ("nodes", ..., "nodes"),
        ("nodes", [], "at least one node"),
        ("nodes", {}, "nodes"),
        ("nodes.0.gpus", ..., "gpus"),
        ("nodes.0.gpus.3.index", ..., "index"),
        ("nodes.0.gpus.3.index", 4, "numbered 0..n-1"),
        ("nodes.0.gpus.3.memory_bytes", "80 GB", "memory_bytes"),
        ("nodes.0.gpus.3.memory_bytes", 0, "never 0"),
        ("nodes.0.gpus.3.memory_bytes", 1.5, "memory_bytes"),
        ("nodes.0.gpus.3.name", "", "never empty"),
        ("nodes.0.gpus.3.status", "fine", "status"),
        ("nodes.0.gpus.3.nearest_nics", ["mlx5_99"], "nearest NIC"),
        ("nodes.0.gpus.3.fabric", {"state": "completed", "cluster_uuid": "00000000-0000"}, "all-zero"),
        ("nodes.0.gpus.3.nvlinks_active", 99, "active NVLinks"),
        ("nodes.0.paths", [], r"nodes\[0\].paths: 8 GPUs need each pair"),
        ("nodes.0.paths.0.a", 1, "each pair a < b exactly once"),
        ("nodes.0.paths.0.kind", "WIFI", "kind"),
        ("nodes.0.paths.0.nvlinks", 0, "1 to 64 links"),
        ("nodes.0.paths.5.nvlinks", 4, "only a fast fabric has links"),
        ("nodes.0.paths.5.asymmetric", {"a_to_b": "SYS", "b_to_a": "SYS"}, "two different readings"),
        ("nodes.0.paths.5.asymmetric", {"a_to_b": "SYS"}, "b_to_a"),
        ("nodes.0.nic_paths.0.nic", "mlx5_99", "each GPU needs each NIC"),
        ("nodes.0.nics.0.name", "mlx5_1", "unique|each GPU needs each NIC"),
        ("nodes.0.nics.0.speed_gbps", 0, "never 0"),
        ("network", [{"kind": "NET", "nodes": [0, 7]}], "nodes of this topology"),
        ("network", [{"kind": "SYS", "nodes": [0, 1]}], "NET or MNNVL"),
        ("provenance", [{"fact": "x", "provenance": "guessed", "source": ""}], "provenance"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: object, says: str) -> None:
    told = document()
    edit(told, path, value)
    with pytest.raises(SourceError, match=says) as caught:
        decode(told)
    assert caught.value.problem.startswith("survey.json")
    assert caught.value.cure


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("curves.0.samples", [], "at least one sample"),
        ("curves.0.samples.0.rounds_s", [[1e-5], [0.0]], "positive and finite"),
        ("curves.0.samples.0.rounds_s", [[1e-5], []], "each round a time"),
        ("curves.0.samples.0.rounds_s", [], "has a round"),
        ("curves.0.samples.0.rounds_s", [1e-5], "rounds_s"),
        ("curves.0.samples.0.rounds_s", ..., "rounds_s"),
        ("curves.0.samples.0.size_bytes", 1 << 62, "less than an exbibyte"),
        ("curves.0.samples.1.size_bytes", 512, "sizes ascend"),
        ("curves.0.members", [{"node": 0, "gpu": 0}], "members are the GPUs of its group"),
        ("curves.0.key.group.paths", [["NV18", 2]], "n \\(n - 1\\) / 2 paths"),
        ("curves.0.key.group.nodes", 0, "lies on a node"),
        ("rates.0.value", -1, "positive and finite"),
        ("rates.0.gpu", 3, "gpu"),
        ("topology.nodes", [], "at least one node"),
        ("topology", {}, "schema_version|fingerprint"),
        ("health.0.counters", [["crc", "many"]], "counters"),
    ],
)
def test_what_is_wrong_in_a_survey_is_named(path: str, value: object, says: str) -> None:
    told = json.loads(store.encode_survey(survey()))
    edit(told, path, value)
    with pytest.raises(SourceError, match=says):
        decode(told)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"1", b'"schema_version"', b"{}", b"\xff", b"{'a': 1}"])
def test_what_is_no_document(data: bytes) -> None:
    with pytest.raises(SourceError, match=r"x\.json"):
        store.decode_survey(data, where="x.json")


@EXAMPLES
@given(st.binary(max_size=40), st.integers(0, 4000), st.integers(0, 40))
def test_damage_is_refused_or_harmless(noise: bytes, place: int, gone: int) -> None:
    data = store.encode_topology(machine("a100-pcie-pairs-8"))
    place %= len(data)
    try:
        survey = store.decode_survey(data[:place] + noise + data[place + gone :], where="damaged.json")
    except SourceError as error:
        assert str(error).startswith("damaged.json")
    else:
        assert survey.topology.nodes


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (store.topology_schema, {"schema_version", "fingerprint", "nodes", "islands", "maximal_cliques", "provenance"}),
        (store.survey_schema, {"schema_version", "topology", "curves", "rates", "health", "evidence", "missing"}),
    ],
)
def test_schemas_resolve_and_name_the_keys(schema: Any, wanted: set[str]) -> None:
    told = schema()
    named = told["$defs"]

    def references(part: Any) -> set[str]:
        if isinstance(part, dict):
            own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
            return own.union(*(references(value) for value in part.values()))
        return set().union(*(references(value) for value in part)) if isinstance(part, list) else set()

    assert {reference.removeprefix("#/$defs/") for reference in references(told)} <= set(named)
    top = named[told["$ref"].removeprefix("#/$defs/")]
    assert wanted <= set(top["properties"])
    assert "schema_version" in top["required"]
    json.dumps(told)


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: FilePath) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    store.write_atomically(link, b"new")
    assert link.is_symlink() and target.read_text() == "new"


def test_a_pipe_is_written_to_never_replaced(tmp_path: FilePath) -> None:
    """As root, `-o /dev/stdout` would otherwise put a file where the device was."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        store.write_atomically(pipe, b"news")
        assert os.read(reader, 10) == b"news"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
