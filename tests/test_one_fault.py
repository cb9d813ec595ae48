"""One fault makes one finding, which accuses whom it is of, and a second measurement confirms that very fault."""

from __future__ import annotations

from dataclasses import replace

import pytest
from audit_cases import plain
from measured_surveys import curve, every_pair, honest, rated, refs, whole

from probe.audit import audit
from probe.checks.codes_measured import CODES_MEASURED
from probe.finding import Finding, Severity
from probe.measurement import Curve, Survey
from probe.retry import of_two
from probe.topology import Topology


def grave(findings: tuple[Finding, ...]) -> list[Finding]:
    return [f for f in findings if f.code in CODES_MEASURED and f.value is not None and f.severity is not Severity.INFO]


def test_wires_that_are_all_slow_are_one_failure() -> None:
    found = grave(audit(every_pair(plain("hgx-h100"), lambda way: 150.0)))
    assert [f.code for f in found] == ["below-expectation"]
    assert found[0].gpus == refs(*range(8))


def test_one_slow_gpu_is_accused_alone() -> None:
    found = grave(audit(every_pair(plain("hgx-h100"), lambda way: 150.0 if 5 in way else 390.0)))
    assert {f.code for f in found} == {"below-expectation", "slower-than-siblings"}
    assert [f.gpus for f in found] == [refs(5)] * 2
    assert all("all of them with GPU 5" in f.seen for f in found)


def test_two_slow_pairs_of_a_gpu_whose_others_do_well_accuse_their_links() -> None:
    slow = ({2, 5}, {2, 7})
    found = grave(audit(every_pair(plain("hgx-h100"), lambda way: 150.0 if set(way) in slow else 390.0)))
    assert [f.gpus for f in found] == [refs(2, 5, 7)] * 2


def test_the_way_back_of_a_pair_is_not_another_pair() -> None:
    found = grave(audit(every_pair(plain("hgx-h100"), lambda way: 150.0 if set(way) == {2, 5} else 390.0)))
    assert [f.gpus for f in found] == [refs(2, 5)] * 2
    assert all("its way back too" in f.seen and "slower too" not in f.seen for f in found)


def test_copies_over_equal_ports_are_told_once() -> None:
    found = grave(audit(rated(plain("a100-pcie-8"), lambda gpu: 11.0 + gpu / 10, kind="h2d")))
    assert [(f.code, f.gpus, f.value) for f in found] == [("pcie-slow-under-load", refs(*range(8)), 11.0)]


@pytest.mark.parametrize("name", ["gh200-1", "gb200-nvl72"])
def test_a_superchip_s_copies_are_not_held_against_pcie(name: str) -> None:
    assert grave(audit(rated(plain(name), lambda gpu: 20.0, kind="h2d"))) == []


def test_a_t4_at_its_power_limit_is_well() -> None:
    told = {"kind": "gemm", "dtype": "float16", "shape": (4096, 4096, 4096)}
    t4 = Survey(plain("hgx-h100")).topology
    cards = _named(t4, "Tesla T4")
    assert grave(audit(rated(cards, lambda gpu: 24.0, **told))) == []  # type: ignore[arg-type]
    assert grave(audit(rated(cards, lambda gpu: 15.0, **told)))  # type: ignore[arg-type]


def _named(topology: Topology, name: str) -> Topology:
    node = topology.nodes[0]
    shape = replace(node.shape, gpus=tuple(replace(gpu, name=name) for gpu in node.shape.gpus))
    return replace(topology, nodes=(replace(node, shape=shape),))


# ---- two measurements ----------------------------------------------------------------------------------------------


def short(operation: str) -> Survey:
    def share(made: Curve) -> float:
        return 0.6 if made.key.operation == operation and made.ranks == 8 else 1.0

    return honest(plain("hgx-h100"), share)


def test_another_operation_confirms_nothing() -> None:
    both = of_two(audit(short("all_gather")), audit(short("all_reduce")))
    assert grave(both) == []
    assert sum("two measurements" in f.seen for f in both) == 2
    assert grave(of_two(audit(short("all_gather")), audit(short("all_gather"))))


def test_another_group_of_the_same_gpus_confirms_nothing() -> None:
    topology = plain("hgx-a100")
    pair = Survey(topology, (curve(topology, refs(2, 3), 100.0), curve(topology, whole(topology), 235.0)))
    all_ = Survey(topology, (curve(topology, refs(2, 3), 235.0), curve(topology, whole(topology), 100.0)))
    assert grave(audit(pair)) and grave(audit(all_))
    assert grave(of_two(audit(pair), audit(all_))) == []


def test_a_second_slow_pair_neither_acquits_the_first_nor_is_accused() -> None:
    def slow(*pairs: set[int]) -> tuple[Finding, ...]:
        return audit(every_pair(plain("l40s-8"), lambda way: 17.0 if set(way) in pairs else 21.0))

    for one, other in ((slow({2, 3}), slow({2, 3}, {0, 1})), (slow({2, 3}, {0, 1}), slow({2, 3}))):
        found = grave(of_two(one, other))
        assert [(f.code, f.gpus) for f in found] == [("slower-than-siblings", refs(2, 3))]
        assert "GPUs 0,1" not in found[0].seen


def test_what_both_measurements_share_is_told_where_neither_tells_it_alone() -> None:
    def slow(*gpus: int) -> tuple[Finding, ...]:
        return audit(rated(plain("hgx-h100"), lambda gpu: 2600.0 if gpu in gpus else 3000.0))

    (found,) = grave(of_two(slow(3, 5), slow(3, 6)))
    assert found.gpus == refs(3)
    assert "in both measurements: GPU 3" in found.seen
