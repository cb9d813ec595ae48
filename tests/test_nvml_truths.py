"""What others learnt of NVML the hard way, one test per lesson: our behaviour over the real bindings and the fake.

The numbers are those of the notes on NVML that the project started from; each docstring is the lesson.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from builders import llama_70b
from fake_nvml import machines as m
from fake_nvml.machines import Description

from configgen.decide import plan
from configgen.document import encode_plan
from configgen.engines.rules import engine_traits
from configgen.plan import Workload
from probe.errors import NoGpuError
from probe.islands import islands
from probe.measurement import Survey
from probe.merge import merge_topologies
from probe.sources.host_state import HostState, with_host_state
from probe.sources.nvml import read_nvml
from probe.topology import Fabric, FabricState, GpuRef, GpuStatus, P2pStatus, PathKind, Through, Topology

Environment = Callable[..., dict[str, str]]
Read = Callable[..., Topology]


@pytest.fixture
def read(fake_machine: Environment) -> Read:
    return lambda machine, **environ: read_nvml(environ=fake_machine(machine, **environ), deadline_s=20.0)


def joined(topology: Topology) -> dict[tuple[int, int], int | None]:
    (node,) = topology.nodes
    return {(a, b): path.links for a, b, path in node.shape.pairs if path.is_fast}


def members(topology: Topology) -> list[list[int]]:
    return [[ref.gpu for ref in island.members] for island in islands(topology)]


def codes(topology: Topology) -> list[str]:
    return [w.code for w in topology.warnings]


def message(topology: Topology, code: str) -> str:
    (found,) = [w.message for w in topology.warnings if w.code == code]
    return found


def fabrics(topology: Topology) -> list[Fabric]:
    return [gpu.fabric for node in topology.nodes for gpu in node.gpus if gpu.fabric]


def all_pairs(n: int) -> list[tuple[int, int]]:
    return list(combinations(range(n), 2))


def test_truth_01_a_links_state_says_nothing_of_its_peer(read: Read) -> None:
    """Four cards, all links up: who is joined comes from the pair (remote PCI id, else P2P), never from the state."""
    machine = m.rtx_3090_bridges()
    assert joined(read(machine)) == {(0, 2): 4, (1, 3): 4}
    machine.drop("link.pci", "link.type")
    assert joined(read(machine)) == {(0, 2): 4, (1, 3): 4}, "P2P tells it where the links do not"
    machine.drop("p2p")
    assert joined(read(machine)) == {}, "active links alone join nobody"


def test_truth_02_link_indices_beyond_the_last_are_refused_with_invalid_argument(read: Read) -> None:
    """GB200 has 18 links of 36 indices: the driver's count says so, and without it a link counts if its state reads."""
    tray = m.gb200_tray()
    tray |= {f"link.version {i} {n}": 7 for i in range(4) for n in range(18, 36)}  # other queries answer for any index
    for count_is_told in (True, False):
        if not count_is_told:
            tray.drop("field")
        topology = read(tray)
        assert joined(topology) == dict.fromkeys(all_pairs(4), 18)
        assert {(g.nvlinks_active, g.nvlinks_total) for g in topology.nodes[0].shape.gpus} == {(18, 18)}


@pytest.mark.parametrize("remote", [m.SWITCH_PCI, "", "00000000:C1:00.0"])
def test_truth_03_behind_a_switch_the_remote_pci_id_is_no_gpus(read: Read, remote: str) -> None:
    """It is the switch's, all ones, or empty: still an island of eight."""
    machine = m.hgx_h100()
    machine.drop("link.type")
    machine |= {f"link.pci {i} {n}": remote for i in range(8) for n in range(18)}
    topology = read(machine)
    assert joined(topology) == dict.fromkeys(all_pairs(8), 18)
    assert {path.through for path in topology.nodes[0].shape.paths} == {Through.SWITCH}


def test_truth_04_all_links_up_yet_two_islands(read: Read) -> None:
    """Islands come from the graph of pairs, never from counts of links."""
    machine = m.hgx_h100()
    for a, b in all_pairs(8):
        if a // 4 != b // 4:
            machine.p2p(a, b, m.NS, nvlink=m.NS)
            machine.p2p(b, a, m.NS, nvlink=m.NS)
    topology = read(machine)
    assert members(topology) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "split-island" in codes(topology)


def test_truth_05_nvml_knows_nothing_of_cuda_visible_devices(read: Read) -> None:
    """Indices and UUIDs are joined by identity; where CUDA's own order is a guess, the cure is named."""
    machine = m.rtx_3090_bridges()
    uuid = str(machine.answers["uuid 3"])
    for visible in ("3", uuid, uuid[:12]):
        states = read(machine, CUDA_VISIBLE_DEVICES=visible).nodes[0].gpus
        assert [s.visible for s in states] == [False, False, False, True]
        assert states[3].cuda_index == 0
    machine["name 0"] = "NVIDIA RTX A2000"
    doubtful = read(machine, CUDA_VISIBLE_DEVICES="1,0")
    assert {s.cuda_index for s in doubtful.nodes[0].gpus} == {None}
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in message(doubtful, "cuda-order")


def test_truth_06_without_the_fabric_manager_active_links_carry_nothing(fake_machine: Environment) -> None:
    """Registered means state 3 and status 0; in progress is waited for shortly, then said, and PCIe counts."""
    machine = m.hgx_h100()
    for state, status, code in ((3, 999, "fabric-failed"), (2, 0, "fabric-in-progress")):
        machine.fabric(state, status)
        topology = read_nvml(environ=fake_machine(machine), deadline_s=3)
        assert joined(topology) == {}
        assert {g.nvlinks_active for g in topology.nodes[0].shape.gpus} == {18}
        assert codes(topology) == [code]
    machine |= {f"fabric {i}": f"2 0 0 0 ; 3 0 0 0xaa {m.NO_CLUSTER}" for i in range(8)}
    assert len(joined(read_nvml(environ=fake_machine(machine)))) == 28


def test_truth_07_equal_all_zero_cluster_uuids_join_no_nodes(read: Read) -> None:
    """A multi-node domain is a cluster UUID and a clique, both equal and neither zero."""

    def two_nodes(machine: Description, fabric: str = "") -> PathKind:
        first = read(machine)
        machine |= {f"uuid {i}": f"GPU-ffff{i:04x}-aaaa-bbbb-cccc-000000000000" for i in range(machine.count)}
        machine |= {f"fabric {i}": fabric for i in range(machine.count)} if fabric else {}
        return merge_topologies([first, read(machine)]).path(GpuRef(0, 0), GpuRef(1, 0)).kind

    assert two_nodes(m.hgx_h100()) is PathKind.NET
    assert two_nodes(m.gb200_tray()) is PathKind.MNNVL
    assert two_nodes(m.gb200_tray(), fabric=f"3 0 5 0xaa {'5b37010efb0b4b1c8d4b0a6e6b3ac001'}") is PathKind.NET
    assert two_nodes(m.gb200_tray(), fabric=f"3 0 32766 0xaa {'ab' * 16}") is PathKind.NET


def test_truth_08_a_fabric_that_is_not_supported_in_a_vm_is_no_error(read: Read) -> None:
    """A single H200 says "Not Supported" with status "Unknown Error": information."""
    topology = read(m.healthy(m.h200_vm()))
    assert [(f.state, f.status) for f in fabrics(topology)] == [(FabricState.NOT_SUPPORTED, None)]
    assert topology.nodes[0].gpus[0].is_usable
    assert codes(topology) == ["virtualized"]


def test_truth_09_a_vm_flattens_pcie_and_lowers_confidence(read: Read) -> None:
    """All PHB and P2P CNS: kept as told, with the word that only a measurement tells."""
    machine = m.l40s_8()
    for a, b in all_pairs(8):
        machine[f"ancestor {a} {b}"] = m.PHB
        machine.p2p(a, b, m.CNS, nvlink=m.NS)
        machine.p2p(b, a, m.CNS, nvlink=m.NS)
    machine |= {f"virtualization {i}": 1 for i in range(8)}
    topology = read(machine)
    assert {path.kind for path in topology.nodes[0].shape.paths} == {PathKind.PHB}
    assert topology.nodes[0].virtualization == "passthrough"
    assert "only a measurement tells" in message(topology, "virtualized")


def test_truth_10_mig_instances_have_no_p2p(read: Read) -> None:
    """Nothing joins across MIG, even where links are up and the driver would say OK for the whole GPUs."""
    machine = m.a100_mig()
    machine.p2p(0, 1, m.OK, nvlink=m.OK)
    machine.p2p(1, 0, m.OK, nvlink=m.OK)
    topology = read(machine)
    assert len(topology.nodes[0].gpus[0].mig_instances) == 2
    assert joined(topology) == {}
    assert "no P2P" in message(topology, "mig")


@pytest.mark.parametrize("call", ["handle", "memory", "power.limit"])
def test_truth_11_a_lost_gpu_leaves_seven_of_eight(read: Read, call: str) -> None:
    """Whichever call finds it: guarded per GPU and per call."""
    machine = m.healthy(m.hgx_h100())
    machine[f"{call} 6"] = m.LOST
    topology = read(machine)
    assert [g.status is GpuStatus.LOST for g in topology.nodes[0].gpus] == [i == 6 for i in range(8)]
    assert members(topology)[0] == [0, 1, 2, 3, 4, 5, 7]
    assert "7 of 8 GPUs can be used" in message(topology, "gpu-lost")


def test_truth_12_each_way_not_to_start_has_its_own_cure(fake_machine: Environment, tmp_path: Path) -> None:
    cures = {}
    for code, cure in ((9, "modprobe"), (18, "reboot or reload"), (999, "Recreate the container"), (4, "permissions")):
        machine = m.h200_vm()
        machine["init"] = f"!{code}"
        with pytest.raises(NoGpuError, match=rf"\b{code}\b") as caught:
            read_nvml(environ=fake_machine(machine))
        assert cure in caught.value.cure
        cures[code] = str(caught.value)
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    with pytest.raises(NoGpuError, match="LIBRARY_NOT_FOUND 12") as caught:
        read_nvml(environ={"LD_LIBRARY_PATH": str(tmp_path)})
    assert "runtimeClassName: nvidia" in caught.value.cure and "utility" in caught.value.cure
    assert len({*cures.values(), str(caught.value)}) == 5


@pytest.mark.parametrize("call", ["init", "count"])
def test_truth_13_a_driver_that_hangs_is_abandoned_at_the_deadline(fake_machine: Environment, call: str) -> None:
    machine = m.hgx_h100()
    machine[call] = "hang"
    started = time.monotonic()
    with pytest.raises(NoGpuError, match=r"does not answer: no answer within 0.4 s"):
        read_nvml(environ=fake_machine(machine), deadline_s=0.4)
    assert time.monotonic() - started < 2.0


def test_truth_14_gb10_invents_a_pcie_port_and_wsl2_tells_next_to_nothing(read: Read) -> None:
    """The port is suppressed; a platform without most calls degrades and says what it cannot show."""
    gb10 = read(m.healthy(m.gb10()))
    assert gb10.nodes[0].shape.gpus[0].pcie is None
    assert "pcie-narrow" not in codes(gb10)
    wsl2 = m.l40s_8()
    wsl2.answers = {k: v for k, v in wsl2.answers.items() if k.split()[0] in ("count", "name", "uuid", "pci", "memory")}
    topology = read(wsl2)
    assert all(g.is_usable for g in topology.nodes[0].gpus)
    assert not topology.nodes[0].shape.nvlink_visible
    assert codes(topology) == ["nvlink-not-visible", "paths-unknown"]


def test_truth_15_boards_without_a_bridge_are_no_fault(read: Read) -> None:
    """All links down on all PCIe boards is "no bridge": nothing degraded, nothing split."""
    machine = m.a100_pcie_pairs()
    machine.bridged({}, version=4, total=12)
    for a, b in all_pairs(8):
        machine.p2p(a, b, m.OK, nvlink=m.NS)
        machine.p2p(b, a, m.OK, nvlink=m.NS)
    assert codes(read(machine)) == ["nvlink-no-bridge"]


def test_truth_16_a_container_that_sees_more_than_it_was_given_is_warned(read: Read) -> None:
    """NVIDIA_VISIBLE_DEVICES=all shows every GPU; a privileged pod shows eight where two were requested."""
    pod = read(m.hgx_h100(), NVIDIA_VISIBLE_DEVICES="all", KUBERNETES_SERVICE_HOST="10.96.0.1")
    assert codes(pod) == ["container-sees-all"]
    sees_all = HostState(container="kubernetes", requested_gpus="all")
    assert codes(with_host_state(pod, sees_all)) == ["container-sees-all"], "said once"
    privileged = with_host_state(read(m.hgx_h100()), HostState(container="kubernetes", requested_gpus="4,5"))
    assert "was given 2 GPUs (NVIDIA_VISIBLE_DEVICES) and sees 8" in message(privileged, "gpu-count-differs")


def test_truth_17_p2p_ok_is_a_promise_and_never_a_proof(read: Read) -> None:
    """The driver's OK stays its word: only a Verification, which nothing but a written and read block makes, proves."""
    topology = read(m.l40s_8())
    assert all(p.p2p and p.p2p.read is P2pStatus.OK for p in topology.nodes[0].shape.paths)
    assert set(joined(topology)) == set(), "a promise of P2P over PCIe is no fast path either"
    survey = Survey(topology)
    assert survey.verifications == ()
    decided = plan(survey, llama_70b(), Workload(), engine_traits("vllm"))
    said = encode_plan(decided).decode().lower() + "".join(w.message for w in topology.warnings).lower()
    assert "verified" not in said and "verification" not in said
    assert "measure" in said
    translated = HostState(iommu="translated", gpu_bus_ids=("0000:1b:00.0", "0000:2c:00.0"))
    assert "writes may be lost although the driver allows P2P" in message(
        with_host_state(topology, translated), "iommu-translated"
    )


def test_truth_18_a_pair_shown_as_node_may_have_lost_its_bridge(read: Read) -> None:
    """Three pairs have their bridge, the fourth reads NODE with all its links down: bridge absent or down."""
    machine = m.a100_pcie_pairs()
    for i in (6, 7):
        machine |= {f"link.state {i} {n}": 0 for n in range(12)}
    machine.p2p(6, 7, m.OK, nvlink=m.NS)
    machine.p2p(7, 6, m.OK, nvlink=m.NS)
    topology = read(machine)
    assert joined(topology) == dict.fromkeys([(0, 1), (2, 3), (4, 5)], 12)
    assert topology.nodes[0].shape.path(6, 7).kind is PathKind.NODE
    assert codes(topology) == ["nvlink-no-bridge"]
    assert "GPUs 6,7" in message(topology, "nvlink-no-bridge")
    assert "absent or down" in message(topology, "nvlink-no-bridge")
