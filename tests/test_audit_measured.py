"""What the audit says of measured figures: each code on a survey that shows it, and on one like it that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from finding_cases import Case, check_complete, check_pair, finding_of, findings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_surveys import (
    GIB,
    LARGE,
    SIZES,
    curve,
    every_pair,
    faster,
    honest,
    rated,
    refs,
    reshaped,
    told,
    whole,
)

from configgen.audited import Audited
from probe.audit import audit
from probe.checks.codes_measured import CODES_MEASURED
from probe.finding import Severity
from probe.measurement import Curve, Rate, Sample, Survey, Verification
from probe.sources.machines import machine
from probe.topology import GpuRef, Notice, Topology

ALL = refs(*range(8))
IB = ("transport", "NET/IB/0/GDRDMA"), ("transport", "P2P/CUMEM")


def reduced(name: str, gbps: float, **more: object) -> Survey:
    """One all-reduce over all GPUs of a machine."""
    topology = machine(name)
    return Survey(topology, (curve(topology, whole(topology), gbps, **more),))  # type: ignore[arg-type]


def pairs(slow: float = 24.0) -> Survey:
    return every_pair(machine("a100-pcie-8"), lambda way: slow if way == (2, 3) else 24.0)


def way_back(slow: float) -> Survey:
    return every_pair(machine("a100-pcie-8"), lambda way: slow if way == (1, 0) else 24.0)


def with_and_without(with_p2p: float, without: float) -> Survey:
    topology = machine("a100-pcie-8")
    made = [
        curve(topology, refs(0, 1), gbps, operation="p2p", direction="forward", p2p_enabled=enabled)
        for gbps, enabled in ((with_p2p, None), (without, False))
    ]
    return Survey(topology, tuple(made))


def verified(passed: bool) -> Survey:
    checks = (Verification(GpuRef(0, 0), GpuRef(0, 1), True), Verification(GpuRef(0, 1), GpuRef(0, 0), passed, "late"))
    return Survey(machine("a100-pcie-8"), verifications=checks)


def over_the_network(*said: tuple[str, str]) -> Survey:
    return told(reduced("2xhgx-h100", 370.0), *said)


RAILS = tuple(("nic", f"mlx5_{i}:1/IB") for i in range(8))


def a_gpu_per_node(*said: tuple[str, str]) -> Survey:
    topology = machine("2xhgx-h100")
    return told(Survey(topology, (curve(topology, (GpuRef(0, 0), GpuRef(1, 0)), 48.0),)), *said)


def slow_copies(value: float) -> Survey:
    return rated(machine("a100-pcie-8"), lambda gpu: value, kind="h2d")


def drifting(factor: float) -> Survey:
    made = curve(machine("l4-8"), ALL, 20.0)
    samples = tuple(
        Sample(s.size_bytes, (s.rounds_s[0], tuple(t * factor for t in s.rounds_s[1]))) for s in made.samples
    )
    return Survey(machine("l4-8"), (replace(made, samples=samples),))


def lacking_the_network() -> Survey:
    survey = honest(machine("2xl40s-8"))
    return replace(survey, curves=tuple(c for c in survey.curves if c.key.group.nodes == 1))


def unnamed(topology: Topology) -> Topology:
    return reshaped(topology, lambda s: replace(s, gpus=tuple(replace(g, name="Mystery 9") for g in s.gpus)))


def of_libraries(*versions: str) -> Survey:
    topology = machine("l4-8")
    made = [
        curve(topology, refs(2 * i, 2 * i + 1), 20.0, library_version=version) for i, version in enumerate(versions)
    ]
    return Survey(topology, tuple(made))


CASES = (
    Case("below-expectation", lambda: reduced("l40s-8", 1.5), lambda: reduced("l40s-8", 20.7)),
    Case("below-good-hosts", lambda: reduced("rtx-pro-6000-8", 24.7), lambda: reduced("rtx-pro-6000-8", 41.1)),
    Case(
        "slow-start",
        lambda: reduced("hgx-a100", 235.0, alpha_s=150e-6),
        lambda: reduced("hgx-a100", 235.0, alpha_s=20e-6),
    ),
    Case("slower-than-siblings", lambda: pairs(slow=15.0), pairs),
    Case("asymmetric-bandwidth", lambda: way_back(15.0), lambda: way_back(23.5)),
    Case("p2p-slower-than-host", lambda: with_and_without(12.0, 22.0), lambda: with_and_without(22.0, 12.0)),
    Case("p2p-fails-check", lambda: verified(False), lambda: verified(True)),
    Case(
        "nccl-not-peer-to-peer",
        lambda: told(reduced("hgx-a100", 235.0), ("transport", "SHM/direct/direct")),
        lambda: told(reduced("hgx-a100", 235.0), ("transport", "P2P/CUMEM/read")),
    ),
    Case(
        "nccl-over-sockets",
        lambda: over_the_network(("transport", "NET/Socket/0"), ("transport", "P2P/CUMEM")),
        lambda: over_the_network(*IB),
    ),
    Case(
        "no-gpudirect-rdma",
        lambda: over_the_network(("transport", "NET/IB/0"), ("transport", "P2P/CUMEM")),
        lambda: over_the_network(*IB),
    ),
    Case(
        "wrong-nic",
        lambda: a_gpu_per_node(("nic", "mlx5_1:1/IB")),
        lambda: a_gpu_per_node(("nic", "mlx5_0:1/IB")),
    ),
    Case(
        "numa-remote-nic-used",
        lambda: a_gpu_per_node(("nic", "mlx5_7:1/IB")),
        lambda: a_gpu_per_node(("nic", "mlx5_1:1/IB")),
    ),
    Case("nics-unused", lambda: over_the_network(*RAILS[:3]), lambda: over_the_network(*RAILS)),
    Case(
        "nvls-absent",
        lambda: told(reduced("hgx-h100", 370.0), ("nvls", "not available")),
        lambda: told(reduced("hgx-a100", 235.0), ("nvls", "not available")),
    ),
    Case("several-libraries", lambda: of_libraries("2.21.5", "2.27.3"), lambda: of_libraries("2.27.3", "2.27.3")),
    Case(
        "rate-below-catalog",
        lambda: rated(machine("hgx-h100"), lambda gpu: 2000.0),
        lambda: rated(machine("hgx-h100"), lambda gpu: 2900.0),
    ),
    Case(
        "rate-below-siblings",
        lambda: rated(machine("hgx-h100"), lambda gpu: 2600.0 if gpu == 3 else 2900.0),
        lambda: rated(machine("hgx-h100"), lambda gpu: 2850.0 if gpu == 3 else 2900.0),
    ),
    Case("pcie-slow-under-load", lambda: slow_copies(12.5), lambda: slow_copies(25.5)),
    Case("unmeasured-groups", lacking_the_network, lambda: honest(machine("2xl40s-8"))),
    Case(
        "too-small-to-judge",
        lambda: reduced("hgx-a100", 235.0, sizes=SIZES[:6]),
        lambda: reduced("hgx-a100", 235.0),
    ),
    Case(
        "no-expectation",
        lambda: honest(unnamed(machine("l4-8"))),
        lambda: honest(machine("l4-8")),
    ),
    Case("unstable-figures", lambda: drifting(1.4), lambda: drifting(1.0)),
    Case(
        "lab-survey",
        lambda: replace(reduced("l40s-8", 1.5, backend="gloo"), lab="CPU ranks"),
        lambda: reduced("l40s-8", 20.7),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_a_code_is_found_where_it_belongs_and_nowhere_else(case: Case) -> None:
    check_pair(case)


def test_every_measured_code_has_its_pair() -> None:
    check_complete(CASES, CODES_MEASURED)


HONEST = ("hgx-h100", "hgx-b200", "dgx1-v100", "a100-pcie-pairs-8", "l40s-8", "4090-8", "2xhgx-a100", "mi300x-8")


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_machine_has_neither_failures_nor_warnings(name: str) -> None:
    survey = honest(machine(name))
    assert [f for f in audit(survey) if f.code in CODES_MEASURED and f.severity is not Severity.INFO] == []


@settings(max_examples=40)
@given(
    name=st.sampled_from(("hgx-h100", "a100-pcie-pairs-8", "l40s-8", "2xhgx-a100")),
    share=st.floats(0.02, 1.5),
    gain=st.floats(1.0, 30.0),
)
def test_a_faster_machine_is_never_judged_worse(name: str, share: float, gain: float) -> None:
    topology = machine(name)
    groups = {whole(topology), refs(0, 1), refs(0, 1, 2, 3)}
    slow = Survey(topology, tuple(curve(topology, group, share * 200, sizes=LARGE) for group in sorted(groups)))
    fast = replace(slow, curves=tuple(faster(made, gain) for made in slow.curves))
    before = {f.gpus: f.severity.weight for f in findings_of(slow, "below-expectation")}
    after = {f.gpus: f.severity.weight for f in findings_of(fast, "below-expectation")}
    assert all(gpus in before and weight <= before[gpus] for gpus, weight in after.items())


def rounds(*gbps: float) -> Survey:
    """One size of 1 GiB on 8 L40S, in rounds of these bandwidths."""
    topology = machine("l40s-8")
    made = [curve(topology, ALL, one, sizes=(GIB,), rounds=1) for one in gbps]
    sample = Sample(GIB, tuple(one.samples[0].rounds_s[0] for one in made))
    return Survey(topology, (replace(made[0], samples=(sample,)),))


def test_one_bad_pass_drains_no_node() -> None:
    assert findings_of(rounds(1.5, 20.0), "below-expectation") == []
    once = finding_of(rounds(1.5), "below-expectation")
    assert once.severity is Severity.WARNING
    assert "seen once" in once.seen
    assert "Measure again" in once.cure
    assert finding_of(rounds(1.5, 1.6), "below-expectation").severity is Severity.FAILURE


def slow_at(*sizes: int) -> Survey:
    topology = machine("hgx-a100")
    fast, slow = curve(topology, ALL, 235.0, sizes=LARGE), curve(topology, ALL, 120.0, sizes=LARGE)
    samples = tuple(s if s.size_bytes in sizes else f for f, s in zip(fast.samples, slow.samples, strict=True))
    return Survey(topology, (replace(fast, samples=samples),))


def test_sizes_are_judged_one_by_one() -> None:
    """An average over all of them would hide the one that is slow."""
    middle = finding_of(slow_at(GIB), "below-expectation")
    assert middle.severity is Severity.WARNING
    assert "1 GiB" in middle.seen
    assert "1 of 5 sizes" in middle.seen
    assert finding_of(slow_at(16 * GIB), "below-expectation").severity is Severity.FAILURE
    assert findings_of(slow_at(), "below-expectation") == []


def test_a_judged_figure_comes_with_its_bar_its_reason_and_its_gpus() -> None:
    found = finding_of(reduced("l40s-8", 1.5), "below-expectation")
    assert found.value is not None
    assert found.bar is not None
    assert found.value < found.bar
    assert found.unit == "GB/s"
    assert found.gpus == ALL
    assert found.node == 0
    assert "PCIe Gen4 x16" in (found.expected or "")
    assert "topo.h" in (found.source or "")


def test_nvlink_that_fell_to_pcie_is_found_though_large_messages_were_never_sent() -> None:
    """A measurement ends where bandwidth no longer rises, which a slow link does early."""
    sizes = tuple(1 << power for power in range(10, 26))
    assert finding_of(reduced("hgx-h100", 20.0, sizes=sizes), "below-expectation").severity is Severity.FAILURE


def test_a_slow_gpu_is_named_as_what_slow_pairs_share() -> None:
    survey = every_pair(machine("a100-pcie-8"), lambda way: 12.0 if 5 in way else 24.0)
    socket = [f for f in findings_of(survey, "slower-than-siblings") if "GPU 5" in f.seen]
    assert any("all of them with GPU 5" in found.seen for found in socket)


def test_a_slow_group_beside_an_equal_one() -> None:
    topology = machine("a100-pcie-pairs-8")
    made = [curve(topology, refs(a, a + 1), 160.0 if a == 4 else 197.0) for a in (0, 2, 4, 6)]
    found = finding_of(Survey(topology, tuple(made)), "slower-than-siblings")
    assert set(found.gpus) == set(refs(4, 5))
    assert found.value == pytest.approx(160, rel=0.02)


def test_groups_over_unlike_wires_are_no_siblings() -> None:
    topology = machine("a100-pcie-pairs-8")
    made = (curve(topology, refs(0, 1), 197.0), curve(topology, refs(1, 2), 22.0))
    assert findings_of(Survey(topology, made), "slower-than-siblings") == []


def test_shared_memory_between_sockets_is_what_nccl_does() -> None:
    between = told(reduced("l40s-8", 20.7), ("transport", "SHM/direct/direct"), ("transport", "P2P/CUMEM"))
    assert findings_of(between, "nccl-not-peer-to-peer") == []


def test_shared_memory_of_ranks_without_p2p_proves_nothing() -> None:
    topology = machine("hgx-a100")
    without = curve(topology, refs(0, 1), 10.0, operation="p2p", direction="forward", p2p_enabled=False)
    survey = replace(reduced("hgx-a100", 235.0), curves=(*reduced("hgx-a100", 235.0).curves, without))
    both = told(survey, ("transport", "SHM/direct/direct"), ("transport", "P2P/CUMEM"))
    assert findings_of(both, "nccl-not-peer-to-peer") == []
    assert findings_of(told(survey, ("transport", "SHM/direct/direct")), "nccl-not-peer-to-peer")


def test_p2p_that_someone_disabled_says_so() -> None:
    survey = told(reduced("hgx-a100", 235.0), ("transport", "SHM/direct/direct"))
    found = finding_of(replace(survey, environment=(("NCCL_P2P_DISABLE", "1"),)), "nccl-not-peer-to-peer")
    assert "unset" in found.cure


def test_a_nic_is_known_by_its_interface_and_in_a_virtual_device() -> None:
    merged = a_gpu_per_node(("nic", "mlx5_0:1/IB+mlx5_1:1/IB"))
    assert finding_of(merged, "wrong-nic").nics == ("mlx5_1",)
    assert findings_of(a_gpu_per_node(("nic", "nonsense")), "wrong-nic") == []


def test_a_product_bound_by_memory_is_judged_by_memory() -> None:
    """85 TFLOP/s are much for 32 rows and little for 4,096."""
    topology = machine("hgx-h100")
    few, many = (
        rated(topology, lambda gpu: 80.0, kind="gemm", dtype="bfloat16", shape=(rows, 8192, 8192))
        for rows in (32, 4096)
    )
    assert findings_of(few, "rate-below-catalog") == []
    assert findings_of(many, "rate-below-catalog")


def test_gpus_under_one_switch_share_its_uplink() -> None:
    alone, shared = (rated(machine(name), lambda gpu: 13.0, kind="h2d") for name in ("a100-pcie-8", "l40s-8"))
    assert len(findings_of(alone, "pcie-slow-under-load")) == 8
    assert findings_of(shared, "pcie-slow-under-load") == []


def test_a_link_that_trained_down_is_named() -> None:
    assert "Gen2 x16" in findings_of(slow_copies(6.5), "pcie-slow-under-load")[0].seen


@pytest.mark.parametrize("code", ["partly-measured", "did-not-work"])
def test_what_was_measured_in_part_does_not_pass(code: str) -> None:
    survey = replace(lacking_the_network(), missing=(Notice(code, "Sizes were left out. Go on."),))
    assert findings_of(survey, "unmeasured-groups")
    alone = rated(machine("hgx-h100"), lambda gpu: 3000.0)
    assert findings_of(alone, "unmeasured-groups"), "rates alone say nothing of the wires"


def test_a_run_that_ended_early_says_so_itself() -> None:
    survey = replace(lacking_the_network(), missing=(Notice("not-measured", "The time ended before 3 steps. Go on."),))
    assert findings_of(survey, "unmeasured-groups") == []
    assert not Audited(survey, audit(survey), "2026-11-21T00:00:00Z").passes


def test_lab_figures_say_nothing_of_gpus() -> None:
    survey = replace(reduced("l40s-8", 0.001, backend="gloo"), lab="CPU ranks")
    measured = [f for f in audit(survey) if f.code in CODES_MEASURED]
    assert [f.code for f in measured] == ["lab-survey"]
    assert measured[0].severity is Severity.INFO


def test_a_topology_alone_has_no_measured_findings() -> None:
    assert [f for f in audit(Survey(machine("2xhgx-h100"))) if f.code in CODES_MEASURED] == []


@pytest.mark.parametrize(
    "break_it",
    [
        lambda s: replace(s, curves=tuple(replace(c, members=()) for c in s.curves)),
        lambda s: replace(s, curves=tuple(replace(c, members=refs(*range(90, 90 + c.ranks))) for c in s.curves)),
        lambda s: told(s, ("transport", ""), ("nic", "///"), ("algorithm", "NVLS x-y B"), ("nvls", "?")),
        lambda s: replace(s, rates=(Rate("hbm_read", GpuRef(9, 9), 1.0, "GB/s"), Rate("odd", GpuRef(0, 0), 1.0, "x"))),
        lambda s: replace(s, verifications=(Verification(GpuRef(7, 0), GpuRef(0, 9), False),)),
    ],
)
def test_odd_surveys_are_audited_without_a_crash(break_it: Callable[[Survey], Survey]) -> None:
    audit(break_it(honest(machine("l40s-8"))))


def test_hostile_words_stay_on_one_line() -> None:
    survey = told(reduced("hgx-a100", 235.0), ("transport", "SHM/\x1b[31m\n" + "x" * 5000))
    found = finding_of(survey, "nccl-not-peer-to-peer")
    assert found.seen.isprintable()
    assert len(found.seen) <= 600


def test_graphs_and_several_groups_at_once_are_not_mistaken_for_slow_ones() -> None:
    topology = machine("a100-pcie-8")
    sizes = tuple(s for s in SIZES if s <= 1 << 20)
    made: list[Curve] = [curve(topology, refs(0, 4), 20.0, graph=True, sizes=sizes)]
    made += [curve(topology, refs(i, i + 4), 6.0, at_once=4) for i in range(4)]
    assert findings_of(Survey(topology, tuple(made)), "below-expectation") == []
