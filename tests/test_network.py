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


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
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
