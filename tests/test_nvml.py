"""NVML over the real bindings and the real C ABI: every machine is a description that the fake library answers from."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from fake_nvml import machines as m
from fake_nvml.machines import GIB, Description

from probe.errors import NoGpuError, UsageError
from probe.sources.nvml import _end, read_nvml, read_nvml_facts
from probe.sources.nvml_facts import Facts
from probe.sources.nvml_topology import topology_from_facts
from probe.topology import (
    FabricState,
    GpuStatus,
    MigInstance,
    Node,
    P2pStatus,
    PathKind,
    Provenance,
    Through,
    Topology,
)

Read = Callable[..., Topology]
Environment = Callable[..., dict[str, str]]


@pytest.fixture
def read(fake_machine: Environment) -> Read:
    def read_machine(description: Description, **environ: str) -> Topology:
        return read_nvml(environ=fake_machine(description, **environ), deadline_s=20.0)

    return read_machine


def only_node(topology: Topology) -> Node:
    (node,) = topology.nodes
    return node


def nvlinks(topology: Topology) -> dict[tuple[int, int], int | None]:
    return {(a, b): p.links for a, b, p in only_node(topology).shape.pairs if p.kind is PathKind.NVLINK}


def pcie(topology: Topology) -> dict[tuple[int, int], PathKind]:
    return {(a, b): p.kind for a, b, p in only_node(topology).shape.pairs if p.kind is not PathKind.NVLINK}


def codes(topology: Topology) -> set[str]:
    return {w.code for w in topology.warnings}


def message(topology: Topology, code: str) -> str:
    (found,) = [w.message for w in topology.warnings if w.code == code]
    return found


def all_pairs(n: int) -> set[tuple[int, int]]:
    return set(combinations(range(n), 2))


# ---- whole machines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("machine", "version"), [(m.hgx_h100, 4.0), (m.hgx_b200, 5.0)])
def test_hgx_is_one_island_through_switches(read: Read, machine: Callable[[], Description], version: float) -> None:
    topology = read(machine())
    node = only_node(topology)
    assert set(nvlinks(topology)) == all_pairs(8)
    assert {(p.links, p.version, p.through) for p in node.shape.paths} == {(18, version, Through.SWITCH)}
    assert {(g.nvlinks_active, g.nvlinks_total) for g in node.shape.gpus} == {(18, 18)}
    assert topology.warnings == ()
    # Completed with an all-zero cluster UUID is normal, and no multi-node domain.
    for state in node.gpus:
        assert state.fabric is not None
        assert (state.fabric.state, state.fabric.status) == (FabricState.COMPLETED, 0)
        assert state.fabric.cluster_uuid is None
        assert state.fabric.domain is None


def test_identity_memory_and_origin(read: Read) -> None:
    topology = read(m.hgx_h100())
    node = only_node(topology)
    gpu, state = node.shape.gpus[7], node.gpus[7]
    assert (gpu.name, gpu.memory_bytes, gpu.compute_capability) == ("NVIDIA H100 80GB HBM3", 80 * GIB, (9, 0))
    assert gpu.cpu_affinity == "64-71"
    assert gpu.pcie is not None
    assert (gpu.pcie.generation, gpu.pcie.generation_max, gpu.pcie.width_max) == (1, 5, 16)
    assert state.uuid == "GPU-00000008-aaaa-bbbb-cccc-000000000007"
    assert (state.pci_bus_id, state.serial) == ("0000:92:00.0", "1650007")
    assert (state.cuda_index, state.memory_free_bytes) == (7, 79 * GIB)
    assert (node.driver_version, node.cuda_version, node.virtualization) == ("580.95.05", "13.0", "bare")
    assert node.shape.path(0, 1).p2p is not None
    assert {(o.provenance, o.source) for o in topology.provenance} == {
        (Provenance.READ, "NVML 13.580.95.05, driver 580.95.05")
    }


def test_gb200_tray_counts_18_links_and_names_its_domain(read: Read) -> None:
    topology = read(m.gb200_tray())
    node = only_node(topology)
    assert nvlinks(topology) == dict.fromkeys(all_pairs(4), 18)
    assert {g.nvlinks_total for g in node.shape.gpus} == {18}
    fabrics = [g.fabric for g in node.gpus]
    assert {f.domain for f in fabrics if f} == {("5b37010e-fb0b-4b1c-8d4b-0a6e6b3ac001", 32766)}
    assert {g.numa_node for g in node.shape.gpus} == {None}, "a GPU's own memory node has no CPUs"
    assert topology.warnings == ()


def test_gb200_without_a_link_count_still_ignores_refused_links(read: Read) -> None:
    tray = m.gb200_tray()
    tray.drop("field")
    assert nvlinks(read(tray)) == dict.fromkeys(all_pairs(4), 18)


def test_rack_position_is_kept_in_the_facts(fake_machine: Environment) -> None:
    facts = read_nvml_facts(environ=fake_machine(m.gb200_tray()))
    assert facts.fields("platform", 2) == {"chassis": "1821325191233", "slot": 9, "tray": 3, "host": 0, "module": 3}


def test_a100_pcie_pairs(read: Read) -> None:
    topology = read(m.a100_pcie_pairs())
    assert nvlinks(topology) == dict.fromkeys([(0, 1), (2, 3), (4, 5), (6, 7)], 12)
    assert pcie(topology)[1, 2] is PathKind.NODE
    assert pcie(topology)[1, 4] is PathKind.SYS
    assert only_node(topology).shape.path(0, 1).through is Through.DIRECT
    assert topology.warnings == ()


def test_dgx1_cube_mesh(read: Read) -> None:
    topology = read(m.dgx1_v100())
    assert nvlinks(topology) == m.CUBE_MESH
    assert {p.version for p in only_node(topology).shape.paths if p.is_fast} == {2.0}
    assert topology.warnings == ()


def test_l40s_has_pcie_only(read: Read) -> None:
    topology = read(m.l40s_8())
    assert nvlinks(topology) == {}
    assert {pair for pair, kind in pcie(topology).items() if kind is PathKind.PXB} == {(0, 1), (2, 3), (4, 5), (6, 7)}
    assert only_node(topology).shape.nvlink_visible
    assert topology.warnings == ()


def test_3090_bridges_join_0_2_and_1_3(read: Read) -> None:
    topology = read(m.rtx_3090_bridges())
    assert nvlinks(topology) == {(0, 2): 4, (1, 3): 4}
    assert set(pcie(topology).values()) == {PathKind.PHB}


def test_single_h200_in_a_vm_is_no_fault(read: Read) -> None:
    topology = read(m.h200_vm())
    node = only_node(topology)
    assert node.virtualization == "passthrough"
    assert codes(topology) == {"virtualized"}
    fabric = node.gpus[0].fabric
    assert fabric is not None
    assert (fabric.state, fabric.status) == (FabricState.NOT_SUPPORTED, None)
    assert node.gpus[0].is_usable
    assert (node.shape.gpus[0].nvlinks_active, node.shape.gpus[0].nvlinks_total) == (0, 18)


def test_mig_instances_are_listed_and_joined_to_nothing(read: Read) -> None:
    topology = read(m.a100_mig())
    node = only_node(topology)
    assert node.gpus[0].mig_instances == (
        MigInstance("MIG-0f1e0000-1111-2222-3333-444444444444", "3g.20gb", 20 * GIB),
        MigInstance("MIG-5f1e0000-1111-2222-3333-444444444444", "1g.5gb", 5 * GIB),
    )
    assert node.gpus[1].mig_instances == ()
    assert nvlinks(topology) == {}
    assert codes(topology) == {"mig"}
    assert {g.cuda_index for g in node.gpus} == {None}


def test_mig_mode_without_instances_cannot_be_used(read: Read) -> None:
    machine = m.a100_mig()
    machine.drop("mig.uuid")
    topology = read(machine)
    assert [g.is_usable for g in only_node(topology).gpus] == [False, True]
    assert "no instance" in message(topology, "gpu-failed")


def test_gb10_tells_no_memory_and_its_pcie_port_is_not_believed(read: Read) -> None:
    topology = read(m.gb10())
    gpu = only_node(topology).shape.gpus[0]
    assert (gpu.memory_bytes, gpu.pcie) == (None, None)
    assert codes(topology) == {"memory-unknown"}


# ---- old libraries, old drivers, poor platforms --------------------------------------------------------------------


@pytest.mark.parametrize("newest", [2, 3, 4])
def test_every_fabric_layout_is_read(read: Read, newest: int) -> None:
    tray = m.gb200_tray()
    tray["fabric.version"] = newest
    fabric = only_node(read(tray)).gpus[3].fabric
    assert fabric is not None
    assert fabric.domain == ("5b37010e-fb0b-4b1c-8d4b-0a6e6b3ac001", 32766)
    assert fabric.health_mask == 0xAA


def test_memory_falls_back_to_the_old_call(read: Read) -> None:
    machine = m.rtx_3090_bridges()
    machine |= {f"memory.v2 {i}": "!13" for i in range(4)}
    node = only_node(read(machine))
    assert [g.memory_bytes for g in node.shape.gpus] == [24 * GIB] * 4
    assert node.gpus[0].memory_free_bytes == 23 * GIB


def test_a_platform_that_tells_almost_nothing_degrades(read: Read) -> None:
    machine = m.l40s_8()
    machine.drop(
        "p2p", "ancestor", "serial", "cpu_affinity", "pcie", "mig", "virtualization", "compute", "nvml", "cuda"
    )
    topology = read(machine)
    node = only_node(topology)
    assert len(node.gpus) == 8
    assert set(pcie(topology).values()) == {PathKind.UNKNOWN}
    assert not node.shape.nvlink_visible
    assert codes(topology) == {"nvlink-not-visible", "paths-unknown"}
    assert (node.cuda_version, node.virtualization, node.shape.gpus[0].cpu_affinity) == (None, None, None)


# ---- which pairs NVLink joins --------------------------------------------------------------------------------------


def test_inconclusive_p2p_leaves_the_decision_to_the_switch_links(read: Read) -> None:
    machine = m.hgx_h100()
    machine |= {f"p2p {a} {b} {m.NVLINK}": m.UNKNOWN for a in range(8) for b in range(8) if a != b}
    assert nvlinks(read(machine)) == dict.fromkeys(all_pairs(8), 18)


def test_one_conclusive_direction_of_p2p_is_enough(read: Read) -> None:
    machine = m.rtx_3090_bridges()
    machine.drop("link", "field")
    machine[f"p2p 2 0 {m.NVLINK}"] = m.UNKNOWN
    assert nvlinks(read(machine)) == {(0, 2): None, (1, 3): None}


def test_one_end_that_names_its_peer_is_enough(read: Read) -> None:
    machine = m.rtx_3090_bridges()
    machine.drop("p2p", "link.pci 0", "link.type 0")
    topology = read(machine)
    assert nvlinks(topology) == {(0, 2): 4, (1, 3): 4}
    assert "asymmetric" not in codes(topology)


def test_gpus_of_two_partitions_are_not_joined(read: Read) -> None:
    tray = m.gb200_tray()
    tray.drop("p2p")
    tray |= {f"fabric {i}": f"3 0 {i // 2 + 1} 0xaa {'ab' * 16}" for i in range(4)}
    assert set(nvlinks(read(tray))) == {(0, 1), (2, 3)}


def test_a_switch_that_names_itself_only_by_its_pci_id(read: Read) -> None:
    machine = m.hgx_h100()
    machine.drop("p2p", "link.type")
    for n, remote in enumerate(["", m.SWITCH_PCI, "00000000:C1:00.0"] * 6):
        machine |= {f"link.pci {i} {n}": remote for i in range(8)}
    assert nvlinks(read(machine)) == dict.fromkeys(all_pairs(8), 18)


def test_links_without_any_word_on_their_peer_join_nothing(read: Read) -> None:
    machine = m.rtx_3090_bridges()
    machine.drop("p2p", "link.type", "link.pci")
    topology = read(machine)
    assert nvlinks(topology) == {}
    assert {g.nvlinks_active for g in only_node(topology).shape.gpus} == {4}


def test_p2p_ok_without_readable_links_is_nvlink_of_unknown_width(read: Read) -> None:
    machine = m.rtx_3090_bridges()
    machine.drop("link", "field")
    topology = read(machine)
    assert nvlinks(topology) == {(0, 2): None, (1, 3): None}
    assert only_node(topology).shape.path(0, 2).label == "NV"


def test_a_bridge_counts_though_p2p_is_refused_and_says_so(read: Read) -> None:
    machine = m.rtx_3090_bridges()
    machine.p2p(0, 2, m.CNS, nvlink=m.CNS)
    topology = read(machine)
    assert nvlinks(topology) == {(0, 2): 4, (1, 3): 4}
    assert "0-2" in message(topology, "nvlink-p2p-refused")
    p2p = only_node(topology).shape.path(0, 2).p2p
    assert p2p is not None
    assert p2p.read is P2pStatus.CHIPSET_NOT_SUPPORTED, "one refusing direction is a refusal"


def test_ends_that_disagree_are_asymmetric_and_the_slower_counts(read: Read) -> None:
    machine = m.rtx_3090_bridges()
    machine["link.state 2 3"] = 0
    topology = read(machine)
    path = only_node(topology).shape.path(0, 2)
    assert (path.links, path.asymmetric) == (3, ("NV4", "NV3"))
    assert {"asymmetric", "degraded-links"} <= codes(topology)


def test_a_sleeping_link_is_a_link(read: Read) -> None:
    machine = m.rtx_3090_bridges()
    machine |= {"link.state 0 0": 2, "link.state 2 0": 2}
    assert nvlinks(read(machine)) == {(0, 2): 4, (1, 3): 4}


def test_degraded_links_make_the_bond_narrower_and_are_said(read: Read) -> None:
    machine = m.hgx_h100()
    machine |= {"link.state 5 3": 0, "link.state 5 17": 3}
    topology = read(machine)
    assert {n for pair, n in nvlinks(topology).items() if 5 in pair} == {16}
    assert {n for pair, n in nvlinks(topology).items() if 5 not in pair} == {18}
    assert "GPU 5 has 16 active NVLinks, its siblings 18" in message(topology, "degraded-links")


def test_split_island_comes_from_pairs_and_not_from_links(read: Read) -> None:
    machine = m.hgx_h100()
    halves = [*combinations(range(4), 2), *combinations(range(4, 8), 2)]
    for a, b in all_pairs(8) - set(halves):
        machine.p2p(a, b, m.NS, nvlink=m.NS)
        machine.p2p(b, a, m.NS, nvlink=m.NS)
    topology = read(machine)
    assert nvlinks(topology) == dict.fromkeys(halves, 18)
    assert {g.nvlinks_active for g in only_node(topology).shape.gpus} == {18}
    assert "16 pairs" in message(topology, "split-island")


def test_boards_without_bridges_are_no_fault(read: Read) -> None:
    machine = m.a100_pcie_pairs()
    machine.bridged({}, version=4, total=12)
    for a, b in all_pairs(8):
        machine.p2p(a, b, m.OK, nvlink=m.NS)
        machine.p2p(b, a, m.OK, nvlink=m.NS)
    topology = read(machine)
    assert nvlinks(topology) == {}
    assert codes(topology) == {"nvlink-no-bridge"}
    assert {(g.nvlinks_active, g.nvlinks_total) for g in only_node(topology).shape.gpus} == {(0, 12)}


# ---- the fabric manager --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "status", "code"), [(2, 0, "fabric-in-progress"), (1, 0, "fabric-in-progress"), (3, 999, "fabric-failed")]
)
def test_without_fabric_registration_p2p_is_dead_though_links_are_up(
    fake_machine: Environment, state: int, status: int, code: str
) -> None:
    machine = m.hgx_h100()
    machine.fabric(state, status)
    topology = read_nvml(environ=fake_machine(machine), deadline_s=2.0)
    assert nvlinks(topology) == {}
    assert {g.nvlinks_active for g in only_node(topology).shape.gpus} == {18}
    assert codes(topology) == {code}
    assert "GPUs 0-7" in message(topology, code)


def test_one_unregistered_gpu_leaves_the_other_seven_joined(read: Read) -> None:
    machine = m.hgx_h100()
    machine["fabric 3"] = f"3 4 0 0xaa {m.NO_CLUSTER}"
    topology = read(machine)
    assert set(nvlinks(topology)) == {pair for pair in all_pairs(8) if 3 not in pair}
    assert "GPU 3 failed (status 4)" in message(topology, "fabric-failed")


def test_registration_that_completes_meanwhile_is_waited_for(read: Read) -> None:
    machine = m.hgx_h100()
    machine |= {f"fabric {i}": f"2 0 0 0 ; 2 0 0 0 ; 3 0 0 0xaa {m.NO_CLUSTER}" for i in range(8)}
    topology = read(machine)
    assert set(nvlinks(topology)) == all_pairs(8)
    assert topology.warnings == ()


# ---- GPUs that do not answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["handle", "uuid", "memory"])
def test_a_lost_gpu_leaves_seven_of_eight(read: Read, call: str) -> None:
    machine = m.hgx_h100()
    machine[f"{call} 3"] = m.LOST
    topology = read(machine)
    node = only_node(topology)
    assert [g.status for g in node.gpus] == [GpuStatus.LOST if i == 3 else GpuStatus.OK for i in range(8)]
    assert set(nvlinks(topology)) == {pair for pair in all_pairs(8) if 3 not in pair}
    assert set(pcie(topology).values()) == {PathKind.UNKNOWN}
    assert "7 of 8" in message(topology, "gpu-lost")
    assert [g.cuda_index for g in node.gpus] == [0, 1, 2, None, 3, 4, 5, 6], "CUDA does not count it"


def test_gpus_of_others_stay_closed(read: Read) -> None:
    machine = m.hgx_h100()
    machine |= {f"handle {i}": "!4" for i in range(4, 8)}
    topology = read(machine)
    assert [g.status for g in only_node(topology).gpus] == [GpuStatus.OK] * 4 + [GpuStatus.NO_PERMISSION] * 4
    assert set(nvlinks(topology)) == all_pairs(4)
    assert codes(topology) == {"gpu-no-permission"}


def test_a_gpu_that_needs_a_reset_has_failed(read: Read) -> None:
    machine = m.rtx_3090_bridges()
    machine["handle 1"] = "!16"
    topology = read(machine)
    assert only_node(topology).gpus[1].status is GpuStatus.FAILED
    assert "ResetRequired (16)" in message(topology, "gpu-failed")


def test_when_no_gpu_answers_there_is_no_topology(fake_machine: Environment) -> None:
    machine = m.rtx_3090_bridges()
    machine |= {f"handle {i}": m.LOST for i in range(4)}
    with pytest.raises(NoGpuError, match=r"4 GPUs and none answers.*GPU_IS_LOST"):
        read_nvml(environ=fake_machine(machine))


def test_a_hang_on_one_gpu_keeps_what_was_read_before(fake_machine: Environment) -> None:
    machine = m.hgx_h100()
    machine["memory 5"] = "hang"
    started = time.monotonic()
    topology = read_nvml(environ=fake_machine(machine), deadline_s=0.6)
    assert time.monotonic() - started < 2.0
    node = only_node(topology)
    assert [g.status for g in node.gpus] == [GpuStatus.OK] * 5 + [GpuStatus.FAILED] * 3
    assert set(nvlinks(topology)) == all_pairs(5)
    assert "no answer within 0.6 s; the last answer was 'name 5'" in message(topology, "nvml-partial")


def test_a_crash_in_the_driver_keeps_what_was_read_before(read: Read) -> None:
    machine = m.rtx_3090_bridges()
    machine["mig.mode 3"] = "crash"
    topology = read(machine)
    assert [g.status for g in only_node(topology).gpus] == [GpuStatus.OK] * 3 + [GpuStatus.FAILED]
    assert nvlinks(topology) == {(0, 2): 4}
    assert "died by SIGSEGV" in message(topology, "nvml-partial")


# ---- no driver at all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "problem", "cure"),
    [
        ("!9", "driver is not loaded", "modprobe nvidia"),
        ("!18", "differ in version", "reboot or reload"),
        ("!999", "UNKNOWN", "Recreate the container"),
        ("!4", "NO_PERMISSION", "/dev/nvidiactl"),
        ("!28", "finds no GPU", "lspci"),
        ("!17", r"OperatingSystem \(17\)", "nvidia-smi"),
        ("crash", "died by SIGSEGV", "Xid"),
    ],
)
def test_init_failures_have_their_own_message_and_cure(
    fake_machine: Environment, answer: str, problem: str, cure: str
) -> None:
    machine = m.h200_vm()
    machine["init"] = answer
    with pytest.raises(NoGpuError, match=problem) as caught:
        read_nvml(environ=fake_machine(machine))
    assert cure in caught.value.cure
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_an_init_that_hangs_ends_at_the_deadline(fake_machine: Environment) -> None:
    machine = m.hgx_h100()
    machine["init"] = "hang"
    started = time.monotonic()
    with pytest.raises(NoGpuError, match=r"no answer within 0\.4 s"):
        read_nvml(environ=fake_machine(machine, WIRELORE_NVML_TIMEOUT_S="0.4"))
    assert time.monotonic() - started < 2.0


def test_a_reader_that_outlives_its_kill_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in a driver call that never returns: nobody waits for it, and dropping it raises no warning."""
    deaf = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    kills: list[int] = []
    monkeypatch.setattr(deaf, "kill", lambda: kills.append(deaf.pid))
    started = time.monotonic()
    assert _end(deaf) < 0
    assert time.monotonic() - started < 2.0
    assert kills == [deaf.pid]
    assert deaf.stdin is not None
    deaf.stdin.close()


def test_a_driver_without_gpus(fake_machine: Environment) -> None:
    with pytest.raises(NoGpuError, match="counts no GPU"):
        read_nvml(environ=fake_machine(Description(0, "", 1, "")))


def test_an_absurd_number_of_gpus_is_refused(fake_machine: Environment) -> None:
    machine = Description(0, "", 1, "")
    machine |= {"count": 4_000_000_000, "handle 0": m.LOST}
    with pytest.raises(NoGpuError, match="counts 4000000000 GPUs"):
        read_nvml(environ=fake_machine(machine))


def test_library_absent_or_unloadable(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no ELF at all")  # found first, wherever a real one may lie
    with pytest.raises(NoGpuError, match=r"libnvidia-ml\.so\.1 is absent or cannot be loaded") as caught:
        read_nvml(environ={"LD_LIBRARY_PATH": str(tmp_path)})
    assert "runtimeClassName" in caught.value.cure


def test_old_pynvml_package_that_hides_the_bindings_is_named(
    fake_machine: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml").mkdir()
    (tmp_path / "pynvml" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(NoGpuError, match=r"pynvml.__init__\.py") as caught:
        read_nvml(environ=fake_machine(m.h200_vm()))
    assert "pip uninstall pynvml" in caught.value.cure


def test_bindings_that_are_not_installed_are_named(
    fake_machine: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p and p])
    with pytest.raises(NoGpuError, match="cannot be imported") as caught:
        read_nvml(environ=fake_machine(m.h200_vm()))
    assert "nvidia-ml-py" in caught.value.cure


def test_the_users_python_settings_do_not_reach_the_reader(fake_machine: Environment, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not the standard library')")
    environ = fake_machine(m.h200_vm(), PYTHONPATH=str(tmp_path), PYTHONWARNINGS="error", PYTHONINSPECT="1")
    assert only_node(read_nvml(environ=environ)).gpus[0].is_usable


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "1e9", ""])
def test_a_bad_deadline_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="WIRELORE_NVML_TIMEOUT_S"):
        read_nvml(environ={"WIRELORE_NVML_TIMEOUT_S": text})


# ---- what CUDA shows -----------------------------------------------------------------------------------------------


def uuid(i: int) -> str:
    return f"GPU-{i + 1:08x}-aaaa-bbbb-cccc-0000000000{i:02x}"


@pytest.mark.parametrize(
    ("variable", "cuda_order", "notices"),
    [
        ("2,0", [2, 0], {"cuda-hidden"}),
        (" 3 , 1 ", [3, 1], {"cuda-hidden"}),
        ("0,1,2,3", [0, 1, 2, 3], set()),
        ("", [], {"cuda-hidden"}),
        ("NoDevFiles", [], {"cuda-hidden", "cuda-visible-invalid"}),
        ("1,-1,2", [1], {"cuda-hidden", "cuda-visible-invalid"}),
        ("1,4,2", [1], {"cuda-hidden", "cuda-visible-invalid"}),
        ("1,1", [], {"cuda-hidden", "cuda-visible-invalid"}),
        (f"{uuid(3)},{uuid(1)}", [3, 1], {"cuda-hidden"}),
        ("GPU-00000003,gpu-00000001", [2, 0], {"cuda-hidden"}),
        ("GPU-0000000,GPU-00000001", [], {"cuda-hidden", "cuda-visible-invalid"}),
        ("GPU-00000002,GPU-deadbeef,GPU-00000001", [1], {"cuda-hidden", "cuda-visible-invalid"}),
        ("GPU-00000002,0", [1], {"cuda-hidden", "cuda-visible-invalid"}),
        ("0\x1b[31m,2", [0, 2], {"cuda-hidden"}),
    ],
)
def test_cuda_visible_devices(read: Read, variable: str, cuda_order: list[int], notices: set[str]) -> None:
    topology = read(m.rtx_3090_bridges(), CUDA_VISIBLE_DEVICES=variable)
    states = only_node(topology).gpus
    assert {i for i, s in enumerate(states) if s.visible} == set(cuda_order)
    assert [s.cuda_index for s in states] == [cuda_order.index(i) if i in cuda_order else None for i in range(4)]
    assert codes(topology) == notices
    assert nvlinks(topology) == {(0, 2): 4, (1, 3): 4}, "hidden GPUs stay facts of the machine"


def mixed() -> Description:
    machine = m.rtx_3090_bridges()
    machine["name 3"] = "NVIDIA RTX A2000"
    return machine


def test_ordinals_on_mixed_models_need_the_pci_order(read: Read) -> None:
    doubtful = read(mixed(), CUDA_VISIBLE_DEVICES="3,0")
    assert [s.visible for s in only_node(doubtful).gpus] == [True, False, False, True]
    assert {s.cuda_index for s in only_node(doubtful).gpus} == {None}
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in message(doubtful, "cuda-order")
    certain = read(mixed(), CUDA_VISIBLE_DEVICES="3,0", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert [s.cuda_index for s in only_node(certain).gpus] == [1, None, None, 0]
    by_uuid = read(mixed(), CUDA_VISIBLE_DEVICES=f"{uuid(3)},{uuid(0)}")
    assert [s.cuda_index for s in only_node(by_uuid).gpus] == [1, None, None, 0]


def test_without_the_variable_cuda_counts_in_pci_order_where_that_is_certain(read: Read) -> None:
    swapped = m.rtx_3090_bridges()
    swapped |= {"pci 0": "00000000:C1:00.0"}
    assert [s.cuda_index for s in only_node(read(swapped)).gpus] == [3, 0, 1, 2]
    assert {s.cuda_index for s in only_node(read(mixed())).gpus} == {None}
    assert [s.cuda_index for s in only_node(read(mixed(), CUDA_DEVICE_ORDER="PCI_BUS_ID")).gpus] == [0, 1, 2, 3]


def test_a_mig_uuid_shows_that_instance_only(read: Read) -> None:
    topology = read(m.a100_mig(), CUDA_VISIBLE_DEVICES="MIG-5f1e")
    states = only_node(topology).gpus
    assert [s.visible for s in states] == [True, False]
    assert [i.profile for i in states[0].mig_instances] == ["1g.5gb"]
    assert {s.cuda_index for s in states} == {None}


def test_a_pod_that_sees_every_gpu_is_warned(read: Read) -> None:
    pod = read(m.h200_vm(), NVIDIA_VISIBLE_DEVICES="all", KUBERNETES_SERVICE_HOST="10.96.0.1")
    assert "container-sees-all" in codes(pod)
    assert "container-sees-all" not in codes(read(m.h200_vm(), NVIDIA_VISIBLE_DEVICES="all"))


# ---- facts, without any library ------------------------------------------------------------------------------------


def lines(*facts: tuple[str, list[int], object]) -> list[bytes]:
    return [json.dumps({"fact": fact, "at": at, "value": value}).encode() for fact, at, value in facts]


def test_numa_node_counts_only_with_cpus() -> None:
    told = [("count", [], 2), ("numa_node", [0], 1), ("numa_node", [1], 9), ("numa_node.cpus", [1], "0-63")]
    facts = Facts.from_lines(lines(*told, ("numa_node.cpus", [9], ""), ("end", [], True)))
    assert [g.numa_node for g in only_node(topology_from_facts(facts)).shape.gpus] == [1, None]


def test_facts_survive_what_is_no_fact() -> None:
    good = lines(("name", [0], "NVIDIA \x1b[31mL4"), ("count", [], 1))
    bad = [b"", b"\xff\xfe", b"[" * 60_000, b'{"fact": 1}', b'{"fact": "name", "at": ["0"]}', b'{"fact": "count", "at"']
    facts = Facts.from_lines([*bad, *good, b'{"fact":"x","at":[],"value":"' + b"y" * 70_000 + b'"}'])
    assert facts.text("name", 0) == "NVIDIA [31mL4"
    assert facts.number("count") == 1
    assert len(facts.readings) == 2
    assert facts.broken == "the reader ended early"


def test_a_value_of_the_wrong_type_is_absent() -> None:
    told = [("count", [], True), ("name", [0], 7), ("mig.mode", [0], [1, -1]), ("memory", [0], "80"), ("cuda", [], -1)]
    facts = Facts.from_lines(lines(*told, ("uuid", [0], "  ")))
    assert facts.number("count") is None
    assert facts.text("name", 0) is None
    assert facts.numbers("mig.mode", 0) == ()
    assert facts.fields("memory", 0) == {}
    assert facts.number("cuda") is None
    assert facts.text("uuid", 0) is None


def test_equal_facts_give_equal_topologies(fake_machine: Environment) -> None:
    facts = read_nvml_facts(environ=fake_machine(m.hgx_h100()))
    assert facts.broken is None
    assert topology_from_facts(facts) == topology_from_facts(Facts(dict(facts.readings)))


def test_pynvml_has_one_door() -> None:
    root = Path(__file__).parents[1]
    users = {
        path.name
        for room in ("probe", "configgen")
        for path in (root / room).rglob("*.py")
        if "import pynvml" in (text := path.read_text()) or '__import__("pynvml")' in text
    }
    assert users == {"nvml_reader.py"}
