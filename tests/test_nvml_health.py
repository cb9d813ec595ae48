"""The health of GPUs: what the reader asks, over the real bindings and the fake, and what is made of the facts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_nvml import machines as m
from fake_nvml.machines import GIB, Description
from fake_nvml.replay import description

from probe.measurement import HealthSnapshot
from probe.sources.nvml import read_nvml, read_nvml_facts
from probe.sources.nvml_facts import Facts, Reading
from probe.sources.nvml_health import health_snapshots, pcie_link, state_notices
from probe.sources.nvml_topology import topology_from_facts
from probe.sources.record import encode_record, facts_of, record_this_machine, redacted, replay
from probe.topology import GpuRef, GpuStatus

FakeMachine = Callable[..., dict[str, str]]
Ask = Callable[[Description], Facts]
NOON = "2026-11-21T12:00:00Z"


@pytest.fixture
def ask(fake_machine: FakeMachine) -> Ask:
    return lambda machine: read_nvml_facts(environ=fake_machine(machine))


def told(count: int = 1, /, **facts: object) -> Facts:
    """Facts of GPU 0 (`rows=` for 'rows', `pcie_width=` for 'pcie.width') among `count` that were read."""
    names = {"recovery_action", "compute_mode", "link_errors"}
    readings = {("count", ()): Reading(count)}
    readings |= {("read", (i,)): Reading(True) for i in range(count)}
    readings |= {(k if k in names else k.replace("_", ".", 1), (0,)): Reading(v) for k, v in facts.items()}
    return Facts(readings)


def codes(facts: Facts, **options: bool) -> list[str]:
    return [n.code for n in state_notices(facts, **options)]


def message(facts: Facts) -> str:
    (notice,) = state_notices(facts)
    return notice.message


def counters(facts: Facts, gpu: int = 0) -> dict[str, int]:
    return dict(health_snapshots(facts, taken_at=NOON)[gpu].counters)


# ---- over the bindings ----------------------------------------------------------------------------------------------


def test_a_well_machine_has_counters_and_no_notice(ask: Ask) -> None:
    facts = ask(m.healthy(m.hgx_h100()))
    assert topology_from_facts(facts).warnings == ()
    snapshots = health_snapshots(facts, taken_at=NOON)
    assert [s.gpu for s in snapshots] == [GpuRef(0, i) for i in range(8)]
    for snapshot in snapshots:
        assert snapshot.taken_at == NOON
        assert list(snapshot.counters) == sorted(snapshot.counters)
        assert {value for _, value in snapshot.counters} == {0}
    names = counters(facts)
    assert {"ecc.corrected.volatile", "ecc.uncorrected.aggregate", "rows.uncorrected", "pcie.replays"} <= set(names)
    assert {f"link.{n}.{e}" for n in range(18) for e in ("replay", "recovery", "crc")} <= set(names)
    assert "ecc.sram.threshold_exceeded" not in names, "a flag is no counter"


def test_every_counter_is_its_own(ask: Ask) -> None:
    machine = m.healthy(m.rtx_3090_bridges())
    machine |= {
        "ecc.corrected.volatile 2": 1, "ecc.uncorrected.volatile 2": 2,
        "ecc.corrected.aggregate 2": 3 << 40, "ecc.uncorrected.aggregate 2": 4,
        "rows 2": "5 6 0 0", "pcie.replays 2": 7, "ecc.sram 2": "11 12 13 14 15 16 0",
        "field 2 161 3": 21, "field 2 162 3": 22, "field 2 163 3": (1 << 40) + 23,
    }  # fmt: skip
    found = counters(ask(machine), 2)
    assert {name: value for name, value in found.items() if value} == {
        "ecc.corrected.volatile": 1, "ecc.uncorrected.volatile": 2,
        "ecc.corrected.aggregate": 3 << 40, "ecc.uncorrected.aggregate": 4,
        "ecc.sram.uncorrected_parity.aggregate": 11, "ecc.sram.uncorrected_secded.aggregate": 12,
        "ecc.sram.corrected.aggregate": 13, "ecc.sram.uncorrected_parity.volatile": 14,
        "ecc.sram.uncorrected_secded.volatile": 15, "ecc.sram.corrected.volatile": 16,
        "rows.corrected": 5, "rows.uncorrected": 6, "pcie.replays": 7,
        "link.3.replay": 21, "link.3.recovery": 22, "link.3.crc": (1 << 40) + 23,
    }  # fmt: skip


def test_a_field_that_fails_leaves_the_others_of_its_link(ask: Ask) -> None:
    machine = m.healthy(m.rtx_3090_bridges())
    machine |= {"field 0 162 1": "!3", "field 0 161 2": "!999", "field 0 162 2": "!3", "field 0 163 2": "!3"}
    facts = ask(machine)
    assert set(facts.fields("link.errors", 0, 1)) == {"replay", "crc"}
    assert facts.error("link.errors", 0, 2) == 999
    assert [name for name in counters(facts) if name.startswith("link.2.")] == []


def test_nvlink_5_has_counters_of_its_own_and_grace_its_c2c(ask: Ask) -> None:
    machine = m.healthy(m.gb200_tray(), nvlink_5=True)
    machine |= {"field 1 214 17": 2, "field 1 170": 2, "field 1 231 0": 3, "field 1 232 1": 4}
    found = counters(ask(machine), 1)
    assert found["link.17.failed_recoveries"] == 2
    assert (found["c2c.0.crc"], found["c2c.1.replay"]) == (3, 4)
    assert not any(name.endswith((".crc", ".recovery")) for name in found if name.startswith("link."))


def test_nothing_is_asked_twice_of_a_gpu_without_ecc(ask: Ask) -> None:
    machine = m.healthy(m.rtx_3090_bridges())
    machine |= {f"ecc.mode {i}": "0 1" for i in range(4)}
    machine |= {"pages.pending 1": 1, "rows 1": "!3"}
    facts = ask(machine)
    assert not any(name.startswith("ecc.") for name in counters(facts))
    assert "GPU 1 waits to retire" in message(facts)


def test_what_is_wrong_reaches_the_topology(ask: Ask) -> None:
    machine = m.healthy(m.hgx_h100())
    machine |= {
        "rows 1": "0 1 1 0", "rows 2": "0 9 0 1", "ecc.uncorrected.volatile 2": 3, "field 4 230": 1,
        "clocks.reasons 5": 0x40 | 0x08, "power.limit 6": 500_000, "power.limit_enforced 6": 500_000,
        "compute_mode 7": 3, "persistence 0": 0, "pcie.width 3": 8,
        "processes 3": f"4242 {30 * 10**9} 4243 {4 * 10**9}", "ecc.sram 0": "0 0 0 0 0 0 1",
    }  # fmt: skip
    said = {w.code: w.message for w in topology_from_facts(ask(machine)).warnings}
    seen = {
        "row-remap-pending": "GPU 1 waits",
        "row-remap-failed": "GPU 2",
        "ecc-uncorrected": "3 on GPU 2",
        "recovery-needed": "a GPU reset of GPU 4",
        "throttled": "GPU 5 throttles now (hardware thermal slowdown, hardware slowdown)",
        "power-capped": "GPU 6 is capped at 500 W, the default is 700 W",
        "compute-mode": "GPU 7 is exclusive to one process",
        "persistence-off": "GPU 0 is off",
        "pcie-narrow": "GPU 3 runs at PCIe x8 of x16",
        "gpu-busy": "2 processes hold 34.0 GB of GPU 3",
        "sram-errors": "GPU 0",
    }
    assert set(said) == set(seen)
    assert {code: text for code, text in seen.items() if text not in said[code]} == {}


def test_a_gpu_that_falls_off_the_bus_meanwhile_is_lost(ask: Ask) -> None:
    machine = m.healthy(m.hgx_h100())
    machine["power.limit 5"] = m.LOST
    facts = ask(machine)
    (node,) = topology_from_facts(facts).nodes
    assert [g.status for g in node.gpus] == [GpuStatus.LOST if i == 5 else GpuStatus.OK for i in range(8)]
    assert facts.reading("processes", 5) == Reading(), "nothing more is asked of it"


def test_a_hang_in_the_health_calls_leaves_the_topology_whole(fake_machine: FakeMachine) -> None:
    machine = m.healthy(m.hgx_h100())
    machine["ecc.mode 0"] = "hang"
    topology = read_nvml(environ=fake_machine(machine), deadline_s=1.0)
    (node,) = topology.nodes
    assert all(g.is_usable for g in node.gpus)
    assert {p.links for p in node.shape.paths} == {18}
    assert [w.code for w in topology.warnings] == ["nvml-partial"]


def test_an_old_driver_without_any_of_these_calls_is_no_fault(ask: Ask) -> None:
    facts = ask(m.hgx_h100())
    assert state_notices(facts) == ()
    assert health_snapshots(facts, taken_at=NOON) == ()


# ---- records --------------------------------------------------------------------------------------------------------


def sick() -> Description:
    machine = m.healthy(m.gb200_tray(), nvlink_5=True)
    machine |= {
        "processes 0": f"4242 {30 * 10**9} 31337 18446744073709551615", "processes 1": f"31337 {GIB}",
        "field 0 170": 1, "field 0 231 0": 5, "field 2 206 4": "!3", "rows 3": "1 2 1 0", "field 3 230": 4,
    }  # fmt: skip
    machine |= {f"field 1 {number} 3": "!999" for number in range(206, 222)}
    return machine


def test_a_record_replays_the_health_through_the_bindings(fake_machine: FakeMachine, tmp_path: Path) -> None:
    environment = {**os.environ, **fake_machine(sick())}
    record = record_this_machine(redact=False, environ=environment)
    again = tmp_path / "again.nvml"
    again.write_text(description(facts_of(record)), encoding="utf-8")
    first, second = facts_of(record), read_nvml_facts(environ={**environment, "FAKE_NVML": str(again)})
    assert first.readings == second.readings
    assert health_snapshots(first, taken_at=NOON) == health_snapshots(second, taken_at=NOON) != ()


def test_process_ids_do_not_reach_a_redacted_record(fake_machine: FakeMachine) -> None:
    record = record_this_machine(redact=False, environ={**os.environ, **fake_machine(sick())})
    clean = redacted(record)
    # As numbers of their own: this host's free memory may hold the same digits by chance.
    assert re.search(rb"\b31337\b", encode_record(record))
    assert not re.search(rb"\b(31337|4242)\b", encode_record(clean))
    assert facts_of(clean).reading("processes", 0).value == [[1, 30 * 10**9], [2, None]]
    busy = [[w.message for w in replay(r).warnings if w.code == "gpu-busy"] for r in (record, clean)]
    assert busy[0] == busy[1] != []


# ---- facts alone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasons", "names"),
    [
        (0x0, None),
        (0x1, None),
        (0x2, None),
        (0x1 | 0x2 | 0x4 | 0x10 | 0x100 | 0x200 | 0x400, None),
        (0x20, "software thermal slowdown"),
        (0x80 | 0x4, "hardware power brake"),
        (0x8, "hardware slowdown"),
    ],
)
def test_idle_and_chosen_clocks_are_no_throttling(reasons: int, names: str | None) -> None:
    facts = told(clocks_reasons=reasons)
    assert codes(facts) == ([] if names is None else ["throttled"])
    assert names is None or f"({names})" in message(facts)


def test_a_passing_slowdown_is_said_to_be_one() -> None:
    assert "probe again" in message(told(clocks_reasons=0x8))
    assert "probe again" not in message(told(clocks_reasons=0x48))


@pytest.mark.parametrize(("action", "cure"), [(1, "gpu-reset"), (2, "reboot"), (5, "nvidia-imex"), (99, "action 99")])
def test_every_recovery_action_has_its_cure(action: int, cure: str) -> None:
    assert cure in message(told(recovery_action=action))
    assert codes(told(recovery_action=0)) == []


@pytest.mark.parametrize(
    ("limit", "enforced", "capped"),
    [(700_000, 700_000, False), (800_000, 800_000, False), (700_000, 450_000, True), (699_999, 700_000, True)],
)
def test_only_a_limit_below_the_default_is_a_cap(limit: int, enforced: int, capped: bool) -> None:
    facts = told(power_limit=limit, power_limit_enforced=enforced, power_limit_default=700_000)
    assert codes(facts) == ["power-capped"] * capped
    assert codes(told(power_limit=limit)) == []


@pytest.mark.parametrize(("mode", "said"), [(0, False), (1, True), (2, True), (3, True), (9, False)])
def test_compute_modes(mode: int, said: bool) -> None:
    assert codes(told(compute_mode=mode)) == ["compute-mode"] * said


def test_the_generation_counts_only_under_load() -> None:
    idle = told(pcie_generation=1, pcie_generation_max=5, pcie_width=16, pcie_width_max=16)
    assert codes(idle) == []
    assert codes(idle, under_load=True) == ["pcie-slow"]
    narrow = told(pcie_generation=1, pcie_generation_max=5, pcie_width=4, pcie_width_max=16)
    assert codes(narrow) == ["pcie-narrow"]


@pytest.mark.parametrize(("newest", "most"), [(1, 1), (5, 16)])
def test_the_port_that_gb10_invents_is_never_a_fault(newest: int, most: int) -> None:
    facts = told(name="NVIDIA GB10", pcie_generation=1, pcie_generation_max=newest, pcie_width=1, pcie_width_max=most)
    assert pcie_link(facts, 0) is None
    assert codes(facts, under_load=True) == []


@pytest.mark.parametrize(
    ("processes", "said"),
    [
        ([], None),
        ([[7, 10**9]], "1 process holds 1.0 GB of GPU 0"),
        ([[7, None], [8, 2 * 10**9]], "2 processes hold 2.0 GB of GPU 0"),
        ([[7, None]], "1 process holds an untold part of GPU 0"),
        ("7 8", None),
        ([7, "x", [1, 2, 3]], None),
        ([[7, True]], "1 process holds an untold part of GPU 0"),
    ],
)
def test_processes_of_others(processes: object, said: str | None) -> None:
    facts = told(processes=processes)
    assert message(facts).startswith(said) if said else codes(facts) == [], said


def test_gpus_alike_share_one_notice() -> None:
    facts = told(8)
    facts.readings.update({("persistence", (i,)): Reading(0) for i in range(8)})
    facts.readings.update({("clocks.reasons", (i,)): Reading(0x40 if i in (1, 2) else 0x20) for i in range(1, 4)})
    assert [n.message.split(" is off")[0].split(" now")[0] for n in state_notices(facts)] == [
        "GPUs 1,2 throttle",
        "GPU 3 throttles",
        "persistence mode of GPUs 0-7",
    ]


def test_hostile_facts_give_no_counter_and_no_notice() -> None:
    odd: dict[str, object] = dict.fromkeys(("rows", "clocks_reasons", "processes", "ecc_sram", "recovery_action"), "x")
    odd |= {"pcie_replays": -1, "power_limit": True, "power_limit_default": [], "compute_mode": {}, "persistence": 0.0}
    facts = told(**odd)
    facts.readings["link.errors", (0, 1)] = Reading({"crc": "many", "replay": -2, "recovery": True})
    facts.readings["link.errors", ()] = Reading({"crc": 1})
    facts.readings["link.errors", (64, 1)] = facts.readings["link.errors", (-1, 1)] = Reading({"crc": 1})
    facts.readings["link.errors", (0, 2)] = Reading({"crc\x1b[31m": 1, "threshold_exceeded": 1})
    facts.readings["count", ()] = Reading(1 << 60)
    assert state_notices(facts) == ()
    assert health_snapshots(facts, taken_at=NOON) == ()


def test_a_snapshot_holds_what_was_read_and_nothing_else() -> None:
    facts = told(2, rows=[1, 2, 0, 0])
    assert health_snapshots(facts, taken_at=NOON) == (
        HealthSnapshot(GpuRef(0, 0), NOON, (("rows.corrected", 1), ("rows.uncorrected", 2))),
    )
