"""What replicas over several nodes are told of their wires: only what a driver or a tool read, and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import cluster_of, llama_70b, llama_405b, node_of

from configgen.decide import plan
from configgen.engines.launcher import launch_of
from configgen.engines.rules import engine_traits
from configgen.launch import Launch
from configgen.plan import Objective, Workload
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.topology import GpuState, Nic, Node, Origin, Provenance, Topology

READ = (Origin("nics", Provenance.READ, "sysfs"),)


def rail_node(nic: str = "mlx5_{}") -> Node:
    """Eight GPUs behind a switch, each beside a NIC of its own, four on each socket."""
    node = node_of(8, 80, "all")
    nics = tuple(Nic(nic.format(i), pci_bus_id=f"0000:{i}a:00.0") for i in range(8))
    gpus = tuple(
        replace(gpu, numa_node=gpu.index // 4, nearest_nics=(nics[gpu.index].name,)) for gpu in node.shape.gpus
    )
    states = tuple(GpuState(pci_bus_id=f"0000:{i}b:00.0") for i in range(8))
    return replace(node, shape=replace(node.shape, gpus=gpus, nics=nics), gpus=states)


def launched(topology: Topology, engine: str = "vllm") -> Launch:
    return launch_of(plan(Survey(topology), llama_405b(), Workload(), engine_traits(engine)))


def alone() -> Launch:
    box = replace(cluster_of(rail_node()), provenance=READ)
    work = Workload(objective=Objective.LATENCY, concurrency=1)
    decided = plan(Survey(box), llama_70b(), work, engine_traits("vllm"))
    assert decided.parallelism.tp == 8
    return launch_of(decided)


def variables(launch: Launch, process: int = 0) -> dict[str, str]:
    return {v.name: v.value for v in launch.processes[process].environment}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "megatron"])
def test_a_replica_over_two_nodes_gets_the_nics_nearest_to_its_gpus(engine: str) -> None:
    two = replace(cluster_of(rail_node(), rail_node()), provenance=READ)
    for process in (0, 1):
        told = variables(launched(two, engine), process)
        assert told["NCCL_IB_HCA"] == "=" + ",".join(f"mlx5_{i}" for i in range(8))


def test_vllm_is_told_each_gpus_nic_by_address_in_rank_order() -> None:
    told = variables(launched(replace(cluster_of(rail_node(), rail_node()), provenance=READ)))
    pairs = [pair.split("=") for pair in told["VLLM_GPU_NIC_PCIE_MAPPING"].split(",")]
    assert pairs == [[f"0000:{i}b:00.0", f"0000:{i}a:00.0"] for i in range(8)]
    assert told["VLLM_NIC_SELECTION_VARS"], "vLLM refuses one without the other"


def test_names_that_nobody_read_and_ethernet_devices_are_not_told() -> None:
    assumed = cluster_of(rail_node(), rail_node())
    ethernet = replace(cluster_of(rail_node("eth{}"), rail_node("eth{}")), provenance=READ)
    for wires in (assumed, ethernet, machine("2xhgx-h100")):
        assert "NCCL_IB_HCA" not in variables(launched(wires))


def test_within_one_node_the_network_is_nobodys_business() -> None:
    assert "NCCL_IB_HCA" not in variables(alone())
    assert "NCCL_SOCKET_IFNAME" not in variables(alone())
    assert not [note for note in alone().notes if "IFNAME" in note]


def linked(*interfaces: str, layer: str = "Ethernet", state: str = "up") -> Node:
    """A rail node that has these network interfaces as well."""
    node = rail_node()
    own = tuple(Nic(name, link_layer=layer, state=state, interface=name) for name in interfaces)
    return replace(node, shape=replace(node.shape, nics=(*node.shape.nics, *own)))


SPANNING = {"vllm": "VLLM_HOST_IP", "sglang": "SGLANG_HOST_IP", "megatron": None, "trtllm": None}
"""Engines whose replicas span nodes, and their own variable for a node's address."""


@pytest.mark.parametrize("engine", SPANNING)
def test_sockets_open_on_the_only_interface_that_there_is(engine: str) -> None:
    launch = launched(replace(cluster_of(linked("eno1"), linked("eno1")), provenance=READ), engine)
    for process in range(len(launch.processes)):
        told = variables(launch, process)
        assert (told["NCCL_SOCKET_IFNAME"], told["GLOO_SOCKET_IFNAME"]) == ("=eno1", "eno1")
    assert not [note for note in launch.notes if "IFNAME" in note]


def test_each_node_has_its_own_interface_and_mpirun_has_one_environment_for_all() -> None:
    two = replace(cluster_of(linked("eno1"), linked("ens3")), provenance=READ)
    launch = launched(two)
    assert [variables(launch, p)["GLOO_SOCKET_IFNAME"] for p in (0, 1)] == ["eno1", "ens3"]
    (told,) = (variables(launched(two, "trtllm"), 0),)
    assert "GLOO_SOCKET_IFNAME" not in told
    assert told["NCCL_IB_HCA"].count("mlx5_") == 8, "what is the same on both is told"


@pytest.mark.parametrize(
    "node",
    [
        linked("eno1", "eno2"),
        linked("ib0", layer="InfiniBand"),  # few give it an address
        linked("eno1", state="down"),
        linked("eno1", state=""),
        rail_node(),
    ],
)
@pytest.mark.parametrize("engine", SPANNING)
def test_where_nobody_knows_the_interface_a_note_says_what_to_set(engine: str, node: Node) -> None:
    launch = launched(replace(cluster_of(node, node), provenance=READ), engine)
    assert all("IFNAME" not in v.name for process in launch.processes for v in process.environment)
    (note,) = [note for note in launch.notes if "NCCL_SOCKET_IFNAME" in note]
    assert "GLOO_SOCKET_IFNAME" in note
    assert ("(eno1, eno2)" in note) == (len(node.shape.nics) == 10)
    assert [name for name in SPANNING.values() if name and name in note] == [n for n in (SPANNING[engine],) if n]
    assert all("HOST_IP" not in v.name for process in launch.processes for v in process.environment)


def test_interfaces_of_a_described_machine_are_not_told() -> None:
    told = launched(cluster_of(linked("eno1"), linked("eno1")))
    assert "NCCL_SOCKET_IFNAME" not in variables(told)


def test_nvlink_across_nodes_needs_shared_memory_over_it() -> None:
    launch = launched(machine("gb200-nvl72"))
    assert "--nnodes" in launch.processes[0].argv, "405 B in 16 bits are more than the four GPUs of a tray hold"
    told = variables(launch)
    assert told["NCCL_MNNVL_ENABLE"] == told["NCCL_CUMEM_ENABLE"] == "1"


def test_where_ranks_sit_is_a_note_for_numactl_may_be_missing() -> None:
    launch = alone()
    (note,) = [note for note in launch.notes if "NUMA" in note]
    assert "--numa-bind --numa-bind-nodes 0 0 0 0 1 1 1 1" in note
    assert all("--numa-bind" not in process.argv for process in launch.processes)
