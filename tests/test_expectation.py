"""What wires should give: by the links that are there, with the thresholds that operators of such machines use."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from finding_cases import findings_of
from measured_surveys import GIB, LARGE, curve, honest, refs, reshaped, told, whole, with_links

from probe.checks.expectation import Expectation, expectation
from probe.checks.reading import expecting
from probe.curve import bus_factor
from probe.finding import Severity
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Sample, Survey
from probe.sources.machines import MACHINES, machine
from probe.topology import GpuRef, P2p, P2pStatus, PathKind, PcieLink, Topology
from probe.topology import Path as Wire

TABLE = Path(__file__).resolve().parents[2] / "shared" / "truth" / "collectives.csv"


def expected(
    topology: Topology, members: tuple[GpuRef, ...], operation: str = "all_reduce", at_once: int = 1, **key: object
) -> Expectation:
    made = CurveKey(operation, group_shape(topology, members, at_once), "bfloat16", "nccl", **key)  # type: ignore[arg-type]
    found = expectation(topology, made, members)
    assert found is not None
    return found


def verdict(name: str, gpus: int, busbw: float, *, sizes: tuple[int, ...] = LARGE, **key: object) -> Severity | None:
    """Of an all-reduce on the first GPUs of a machine that has this busbw at every size, fills of buffers included."""
    topology = machine(name)
    members = refs(*range(gpus))
    made = curve(topology, members, busbw, sizes=sizes, alpha_s=1e-9, **key)  # type: ignore[arg-type]
    found = findings_of(Survey(topology, (made,)), "below-expectation")
    return found[0].severity if found else None


AZURE = {  # machine, GPUs, their threshold (azurehpc-health-checks), published figures of such machines
    "ND H100 v5": ("hgx-h100", 8, 460.0, (480.0, 482.0, 445.0, 374.0, 368.0)),
    "ND A100 v4": ("hgx-a100", 8, 228.0, (235.0, 174.0)),
    "NDv2": ("dgx1-v100", 8, 110.0, (130.0, 60.0)),
    "NC80 H100": ("h100-nvl-pairs-8", 2, 208.0, (214.0, 191.0)),
    "NC96 A100": ("a100-pcie-pairs-8", 2, 193.0, (195.0, 161.0)),
}


@pytest.mark.parametrize("sku", AZURE)
def test_azures_thresholds_give_the_same_verdicts(sku: str) -> None:
    name, gpus, threshold, published = AZURE[sku]
    for figure in published:
        judged = verdict(name, gpus, figure, sizes=(8 * GIB, 16 * GIB))
        assert (judged is None) == (figure >= threshold), f"{sku} at {figure} GB/s: {judged}"


@pytest.mark.parametrize("sku", AZURE)
def test_the_bar_is_azures_within_one_percent(sku: str) -> None:
    name, gpus, threshold, _ = AZURE[sku]
    assert expected(machine(name), refs(*range(gpus))).bar_gbps == pytest.approx(threshold, rel=0.01)


def test_azures_25_of_four_a100_in_two_pairs_is_what_such_wires_reach() -> None:
    found = expected(machine("a100-pcie-pairs-8"), refs(0, 1, 2, 3))
    assert found.busbw_gbps == pytest.approx(25, rel=0.05)
    assert verdict("a100-pcie-pairs-8", 4, 25.0) is None


ANCHORS = [  # machine, GPUs, published busbw (GB/s), whether it is what such wires give
    ("hgx-b200", 8, 846.0, True),
    ("hgx-a100", 8, 235.0, True),
    ("a100-pcie-pairs-8", 4, 23.7, True),
    ("h100-nvl-pairs-8", 4, 48.8, True),
    ("rtx-pro-6000-8", 2, 38.6, True),
    ("rtx-pro-6000-8", 4, 26.4, True),
    ("rtx-pro-6000-8", 8, 24.7, True),
    ("l40s-8", 2, 20.0, True),
    ("l40s-8", 8, 20.7, True),
    ("l40s-8", 4, 5.2, False),
    ("l40s-8", 8, 2.1, False),
    ("l40s-8", 8, 1.4, False),
    ("mi300x-8", 2, 47.7, True),
    ("mi300x-8", 8, 312.9, True),
]


@pytest.mark.parametrize(("name", "gpus", "busbw", "is_normal"), ANCHORS)
def test_published_figures(name: str, gpus: int, busbw: float, is_normal: bool) -> None:
    assert verdict(name, gpus, busbw) == (None if is_normal else Severity.FAILURE)


def test_an_h100_nvl_is_judged_by_its_twelve_links() -> None:
    pair = expected(machine("h100-nvl-pairs-8"), refs(0, 1))
    board = expected(machine("hgx-h100"), refs(0, 1))
    assert pair.busbw_gbps == pytest.approx(board.busbw_gbps * 12 / 18)
    assert "12 NVLinks" in pair.words
    assert verdict("h100-nvl-pairs-8", 2, 212.0) is None
    assert verdict("hgx-h100", 2, 212.0) is Severity.FAILURE


def test_active_links_count() -> None:
    whole_links, fewer = machine("hgx-a100"), with_links(machine("hgx-a100"), 8)
    group = refs(*range(8))
    assert expected(fewer, group).bar_gbps == pytest.approx(expected(whole_links, group).bar_gbps * 8 / 12)
    one_lost = reshaped(
        whole_links,
        lambda shape: replace(shape, gpus=(replace(shape.gpus[0], nvlinks_active=11), *shape.gpus[1:])),
    )
    assert "11 NVLinks" in expected(one_lost, group).words


def test_nvls_is_labelled_and_has_an_expectation_of_its_own() -> None:
    topology = machine("hgx-h100")
    group = refs(*range(8))
    switch, ring = expected(topology, group), expected(topology, group, nvls=False)
    assert switch.nvls
    assert "NVLS" in switch.words
    assert "%" not in switch.words
    assert switch.busbw_gbps == pytest.approx(482, rel=0.02)  # 8 H200 at 16 GiB
    assert not ring.nvls
    assert ring.busbw_gbps == pytest.approx(370, rel=0.01)
    assert switch.without_nvls_gbps == ring.bar_gbps
    for other in (expected(topology, refs(0, 1, 2, 3)), expected(topology, group, "all_gather")):
        assert not other.nvls
    assert not expected(machine("hgx-a100"), refs(*range(8))).nvls


@pytest.mark.parametrize(
    ("log", "severity"),
    [
        ((), Severity.WARNING),
        ((("nvls", "available"),), Severity.WARNING),
        ((("nvls", "not available"),), None),
    ],
)
def test_a_ring_on_eight_h100_is_a_warning_unless_the_log_explains_it(
    log: tuple[tuple[str, str], ...], severity: Severity | None
) -> None:
    topology = machine("hgx-h100")
    survey = told(Survey(topology, (curve(topology, whole(topology), 374.0, sizes=LARGE, alpha_s=1e-6),)), *log)
    found = findings_of(survey, "below-expectation")
    assert [one.severity for one in found] == ([severity] if severity else [])
    assert bool(findings_of(survey, "nvls-absent")) == (log == (("nvls", "not available"),))


def test_a_switch_that_does_not_reduce_is_a_warning_unless_somebody_wanted_it_so() -> None:
    topology = machine("hgx-h100")
    ring = curve(topology, whole(topology), 374.0, sizes=LARGE, alpha_s=1e-6)
    survey = told(Survey(topology, (ring,)), ("nvls", "not available"))
    (found,) = findings_of(survey, "nvls-absent")
    assert found.severity is Severity.WARNING, "Azure's 460 fails there too"
    switched_off = replace(survey, environment=(("NCCL_NVLS_ENABLE", "0"),))
    assert findings_of(switched_off, "nvls-absent")[0].severity is Severity.INFO
    expected_now = expecting(survey)(topology, ring.key, ring.members)
    assert expected_now is not None
    assert not expected_now.nvls, "charts and metrics draw the bar that the finding names"


def test_bars_rise_with_the_size() -> None:
    found = expected(machine("hgx-a100"), refs(*range(8)))
    bars = [found.bar_at(1 << power) for power in range(10, 36)]
    assert bars == sorted(bars)
    assert bars[0] < 0.1
    assert bars[-1] == pytest.approx(found.bar_gbps, rel=0.01)
    assert all(found.at(1 << power) > found.bar_at(1 << power) for power in range(10, 36))
    assert not found.judges(1 << 20)
    assert found.judges(GIB)


def test_pcie_follows_generation_and_width() -> None:
    def port(topology: Topology, link: PcieLink) -> Topology:
        return reshaped(topology, lambda s: replace(s, gpus=tuple(replace(g, pcie=link) for g in s.gpus)))

    pair, base = refs(0, 1), machine("l40s-8")
    full = expected(base, pair).busbw_gbps
    assert full == pytest.approx(24, rel=0.01)  # NCCL: 12 of a Gen3 x16
    assert expected(port(base, PcieLink(1, 4, 8, 16)), pair).busbw_gbps == pytest.approx(full / 2, rel=0.01)
    assert expected(port(base, PcieLink(1, 3, 16, 16)), pair).busbw_gbps == pytest.approx(full / 2, rel=0.01)
    assert expected(port(base, PcieLink(1, 4, 16, 16)), pair).busbw_gbps == pytest.approx(full, rel=0.01)


def test_farther_paths_have_lower_bars() -> None:
    topology = machine("l40s-8")
    near, node, far = (expected(topology, refs(0, gpu)).bar_gbps for gpu in (1, 2, 7))
    assert near > node > far


def test_what_goes_through_host_memory_is_expected_to_take_twice_as_long() -> None:
    topology = machine("l40s-8")
    direct = expected(topology, refs(0, 1), "p2p", direction="forward")
    through = expected(topology, refs(0, 1), "p2p", direction="forward", p2p_enabled=False)
    assert through.busbw_gbps == pytest.approx(direct.busbw_gbps / 2)
    refused = P2p(read=P2pStatus.CHIPSET_NOT_SUPPORTED, write=P2pStatus.CHIPSET_NOT_SUPPORTED)
    staged = reshaped(topology, lambda s: replace(s, paths=tuple(replace(p, p2p=refused) for p in s.paths)))
    assert expected(staged, refs(0, 1)).busbw_gbps == pytest.approx(expected(topology, refs(0, 1)).busbw_gbps / 2)
    geforce = expected(machine("4090-8"), refs(0, 1))
    assert geforce.busbw_gbps == pytest.approx(12, rel=0.01)


def test_a_bridged_pair_of_geforce_boards_has_its_nvlinks() -> None:
    assert "4 NVLinks of 12 GB/s" in expected(machine("3090-bridges-4"), refs(0, 2)).words
    assert "PCIe" in expected(machine("3090-bridges-4"), refs(0, 1)).words


def test_groups_at_once_share_host_bridges_and_not_nvlink() -> None:
    host, switch = machine("a100-pcie-8"), machine("hgx-a100")
    assert expected(host, refs(0, 4), at_once=4).busbw_gbps == pytest.approx(expected(host, refs(0, 4)).busbw_gbps / 4)
    assert expected(switch, refs(0, 1), at_once=4) == expected(switch, refs(0, 1))


def test_the_network_by_hierarchy_and_nics() -> None:
    pair = machine("2xhgx-a100")  # eight NICs of 200 Gbit/s: 24 GB/s for each GPU
    whole_nodes = expected(pair, whole(pair))
    assert whole_nodes.busbw_gbps == pytest.approx(235, rel=0.01)  # what NVLink gives is less than 24 x 15
    assert whole_nodes.bar_gbps == pytest.approx(0.75 * 8 * 24)
    single = expected(pair, (GpuRef(0, 0), GpuRef(1, 0)))
    assert single.busbw_gbps == pytest.approx(24)
    four = machine("4xhgx-b200")
    assert expected(four, whole(four)).busbw_gbps == pytest.approx(48 * 31 / 3)
    forward = expected(four, (GpuRef(0, 0), GpuRef(3, 0)), "p2p", direction="forward")
    assert forward.busbw_gbps == pytest.approx(48)
    slow = reshaped(pair, lambda s: replace(s, nics=tuple(replace(nic, speed_gbps=100.0) for nic in s.nics)))
    assert expected(slow, (GpuRef(0, 0), GpuRef(1, 0))).busbw_gbps == pytest.approx(12)


def test_multi_node_nvlink_is_nvlink() -> None:
    rack = machine("gb200-nvl72")
    assert "NVLinks" in expected(rack, (GpuRef(0, 0), GpuRef(17, 3))).words


def test_a_cube_mesh_rings_over_all_of_its_links() -> None:
    topology = machine("dgx1-v100")
    assert "6 NVLinks" in expected(topology, refs(*range(8))).words
    assert "1 NVLink " in expected(topology, refs(0, 1)).words
    assert "PCIe" in expected(topology, refs(0, 5)).words


def test_nothing_is_expected_of_what_nobody_knows() -> None:
    topology = machine("l40s-8")
    nameless = reshaped(topology, lambda s: replace(s, gpus=tuple(replace(g, name="Mystery 9") for g in s.gpus)))
    key = CurveKey("all_reduce", group_shape(nameless, refs(0, 1)), "bfloat16", "nccl")
    assert expectation(nameless, key, refs(0, 1)) is None
    assert expectation(topology, replace(key, backend="gloo"), refs(0, 1)) is None
    assert expectation(topology, key, ()) is None
    assert expectation(topology, key, (GpuRef(0, 0), GpuRef(5, 0))) is None
    assert expectation(topology, key, (GpuRef(0, 0), GpuRef(0, 99))) is None
    unknown = reshaped(topology, lambda s: replace(s, paths=tuple(Wire(PathKind.UNKNOWN) for _ in s.paths)))
    assert expected(unknown, refs(0, 1)).bar_gbps <= expected(topology, refs(0, 7)).bar_gbps


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_every_machine_has_expectations_that_hold_for_themselves(name: str) -> None:
    survey = honest(machine(name))
    for made in survey.curves:
        found = expectation(survey.topology, made.key, made.members)
        if found is not None:
            assert 0 < found.bar_gbps <= found.busbw_gbps < 2000
            assert "None" not in found.words


SETUPS = {
    ("A100-80GB", "nvswitch"): "hgx-a100",
    ("NVIDIA A100-SXM4-80GB", "nvswitch"): "hgx-a100",
    ("A100-80GB", "nvlink_pairs"): "a100-pcie-pairs-8",
    ("A100-80GB", "nvlink_pairs_crossing_pcie"): "a100-pcie-pairs-8",
    ("H100", "nvswitch"): "hgx-h100",
    ("NVIDIA H100 80GB HBM3", "nvswitch"): "hgx-h100",
    ("NVIDIA H200", "nvswitch"): "hgx-h200",
    ("NVIDIA B200", "nvswitch"): "hgx-b200",
    ("B200-SXM-180GB", "nvswitch"): "hgx-b200",
    ("NVIDIA L40S", "pcie4"): "l40s-8",
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "pcie5"): "rtx-pro-6000-8",
    ("MI300X", "xgmi (all-to-all p2p links)"): "mi300x-8",
}
OPERATIONS = {"all_reduce": "all_reduce", "all_gather": "all_gather", "alltoall": "all_to_all"}


def test_of_published_curves_those_of_the_known_bad_host_fail_and_no_others() -> None:
    if not TABLE.exists():
        pytest.skip(f"{TABLE} is not here")
    curves: dict[tuple[str, int, str, str], dict[int, float]] = defaultdict(dict)
    with TABLE.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = SETUPS.get((row["gpu"], row["fabric"]))
            if name and row["op"] in OPERATIONS and row["bytes"] and row["busbw_GBps"] and "engine" not in row["notes"]:
                where = (name, int(row["n_gpus"]), OPERATIONS[row["op"]], row["source"])
                curves[where].setdefault(int(row["bytes"]), float(row["busbw_GBps"]))
    judged = {}
    for (name, gpus, operation, source), figures in curves.items():
        topology, members = machine(name), refs(*range(gpus))
        factor = bus_factor(operation, gpus)
        samples = tuple(Sample(s, ((s * factor / gbps / 1e9,) * 5,) * 2) for s, gbps in sorted(figures.items()))
        key = CurveKey(operation, group_shape(topology, members), "bfloat16", "nccl")
        found = findings_of(Survey(topology, (Curve(key, samples, members),)), "below-expectation")
        judged[name, gpus, operation, source] = [one.severity for one in found]
    bad = {where[:3] for where, severities in judged.items() if severities}
    assert len(judged) >= 20
    assert bad == {("l40s-8", n, op) for n in (4, 8) for op in OPERATIONS.values()}
