"""NCCL and RCCL topology XML: trees, links, NICs, templates; and what no such file can be trusted with."""

from __future__ import annotations

import pytest
from nccl_writer import (
    AMD,
    GPU,
    POWER,
    SWITCH,
    bridge,
    bus,
    codes,
    cpu,
    gpu,
    labels,
    link,
    message,
    net,
    nic,
    pci,
    read,
    shape_of,
)

from probe.islands import islands
from probe.sources.pci_tree import Place, cpus_of_mask, level, pcie_port
from probe.topology import PathKind, Through

# --- the PCIe tree ---


def test_levels_are_those_of_the_tree() -> None:
    deep = bridge(1, bridge(2, gpu(0), gpu(1)), bridge(3, gpu(2)))
    shape = shape_of(cpu(0, deep, gpu(3)), cpu(1, bridge(4, gpu(4))))
    assert labels(shape) == ["PIX", "PXB", "PHB", "SYS", "PXB", "PHB", "SYS", "PHB", "SYS", "SYS"]


def test_levels_of_places() -> None:
    assert level(Place(0, (1,)), Place(0, (1,))) is PathKind.PIX
    assert level(Place(0, (1,)), Place(0, (1, 2))) is PathKind.PXB
    assert level(Place(0), Place(0)) is PathKind.PHB
    assert level(Place(0), Place(None)) is PathKind.UNKNOWN


def test_one_numa_node_in_two_elements_is_one_cpu() -> None:
    assert labels(shape_of(cpu(0, gpu(0)), cpu(0, gpu(1)))) == ["PHB"]


def test_affinity_numa_capability_and_port_are_read() -> None:
    text = cpu(1, gpu(0, extra='sm="103"'), affinity="000000ff,00000000,0000000f")
    one = shape_of(text).gpus[0]
    assert (one.cpu_affinity, one.numa_node, one.compute_capability) == ("0-3,64-71", 1, (10, 3))
    assert one.pcie is not None and (one.pcie.generation, one.pcie.generation_max, one.pcie.width_max) == (None, 5, 16)


def test_what_says_unknown_stays_unknown() -> None:
    assert shape_of(cpu(-1, gpu(0), affinity="zz")).gpus[0].numa_node is None
    # A NUMA node without CPUs is no place to pin to.
    assert shape_of(cpu(2, gpu(0), affinity="00000000")).gpus[0].numa_node is None
    orphans = read(gpu(0), cpu(0, gpu(1)))
    assert labels(orphans.nodes[0].shape) == ["UNKNOWN"] and "paths-unknown" in codes(orphans)


@pytest.mark.parametrize(
    ("mask", "cpus"),
    [("c0c0", (6, 7, 14, 15)), ("1,00000000", (32,)), ("0", ()), ("", None), ("123456789", None), ("f" * 10**6, None)],
)
def test_masks(mask: str, cpus: tuple[int, ...] | None) -> None:
    assert cpus_of_mask(mask) == cpus


@pytest.mark.parametrize(
    ("speed", "width", "generation"),
    [
        ("16 GT/s", "8", 4),
        ("2.5 GT/s PCIe", "8", 1),
        ("64.0 GT/s PCIe", "8", 6),
        ("7 GT/s", "8", None),
        ("", "8", None),
    ],
)
def test_ports(speed: str, width: str, generation: int | None) -> None:
    port = pcie_port(speed, width)
    assert port is not None and (port.generation_max, port.width_max) == (generation, 8)


# --- links ---


def test_gpus_behind_common_switches_are_one_island() -> None:
    switches = [link(bus(1), 5, SWITCH), link(bus(2), 4, SWITCH)]
    topology = read(cpu(0, gpu(0, *switches), gpu(1, *switches)), cpu(1, gpu(2, *switches)))
    paths = topology.nodes[0].shape.paths
    assert {(p.label, p.through) for p in paths} == {("NV9", Through.SWITCH)}
    assert [g.nvlinks_active for g in topology.nodes[0].shape.gpus] == [9, 9, 9] and not codes(topology)
    assert len(islands(topology)[0].members) == 3


def test_a_switch_that_a_virtual_machine_hides_is_a_switch() -> None:
    hidden = link("fffffff:ffff:ff", 18, SWITCH)
    assert labels(shape_of(cpu(0, gpu(0, hidden), gpu(1, hidden)))) == ["NV18"]


def test_only_links_to_switches_that_both_gpus_name_join_them() -> None:
    first = gpu(0, link(bus(1), 5, SWITCH), link(bus(2), 13, SWITCH))
    second = gpu(1, link(bus(1), 5, SWITCH), link(bus(3), 13, SWITCH))
    assert shape_of(cpu(0, first, second)).path(0, 1).links == 5


def test_gpus_with_no_common_switch_are_not_joined() -> None:
    topology = read(cpu(0, gpu(0, link(bus(1), 6, SWITCH)), gpu(1, link(bus(2), 6, SWITCH))))
    assert labels(topology.nodes[0].shape) == ["PHB"] and "split-island" in codes(topology)


def test_a_gpu_with_fewer_links_than_its_siblings_is_told() -> None:
    topology = read(cpu(0, *(gpu(i, link(bus(1), 16 if i == 1 else 18, SWITCH)) for i in range(3))))
    assert labels(topology.nodes[0].shape) == ["NV16", "NV18", "NV16"]
    assert "GPU 1 has 16" in message(topology, "degraded-links")


def test_direct_links_count_by_pair_and_a_ring_is_a_partial_mesh() -> None:
    ring = [gpu(i, link(bus(0x40 + (i + 1) % 4), 2), link(bus(0x40 + (i - 1) % 4), 2)) for i in range(4)]
    topology = read(cpu(0, *ring))
    assert labels(topology.nodes[0].shape) == ["NV2", "PHB", "NV2", "NV2", "PHB", "NV2"]
    assert {p.through for p in topology.nodes[0].shape.paths if p.is_fast} == {Through.DIRECT}
    assert codes(topology) == {"partial-mesh"}


def test_xgmi_joins_amd_gpus_whose_sm_is_no_compute_capability() -> None:
    def amd(i: int, other: int) -> str:
        inside = f'<gpu dev="{i}" sm="304" gcn="gfx942" rank="{i}">{link(bus(0x40 + other), 1, AMD, "xgmi")}</gpu>'
        return pci(bus(0x40 + i), AMD, inside)

    topology = read(cpu(0, amd(0, 1)), cpu(1, amd(1, 0)))
    (path,) = topology.nodes[0].shape.paths
    assert (path.kind, path.links, path.through) == (PathKind.XGMI, 1, Through.DIRECT)
    one = topology.nodes[0].shape.gpus[0]
    assert one.compute_capability is None and one.nvlinks_active is None
    assert topology.provenance[0].source == "RCCL topology dump"


@pytest.mark.parametrize(
    ("there", "back", "label", "both"),
    [
        ([link(bus(0x41), 4)], [link(bus(0x40), 3)], "NV3", ("NV4", "NV3")),
        ([link(bus(0x41), 4)], [], "PHB", ("NV4", "PHB")),
        ([link(bus(0x41), 2, AMD, "xgmi")], [link(bus(0x40), 1, AMD, "xgmi")], "XGMI", ("XGMI x2", "XGMI x1")),
    ],
)
def test_two_ends_that_differ_give_the_slower_path(
    there: list[str], back: list[str], label: str, both: tuple[str, str]
) -> None:
    topology = read(cpu(0, gpu(0, *there), gpu(1, *back)))
    (path,) = topology.nodes[0].shape.paths
    assert (path.label, path.asymmetric) == (label, both) and "asymmetric" in codes(topology)


def test_links_to_cpus_to_itself_and_to_absent_gpus_join_nothing() -> None:
    topology = read(cpu(0, gpu(0, link("0004:04:00.0", 3, POWER), link(bus(0x40), 4)), gpu(1, link(bus(0x49), 2))))
    assert labels(topology.nodes[0].shape) == ["PHB"] and "link-to-itself" in codes(topology)


# --- numbering ---


def test_gpus_are_numbered_by_dev() -> None:
    topology = read(cpu(0, gpu(0, dev=2), gpu(1, dev=0), gpu(2, dev=1)))
    assert [g.pci_bus_id for g in topology.nodes[0].gpus] == [bus(0x41), bus(0x42), bus(0x40)]
    assert "gpus-renumbered" not in codes(topology)


def test_gaps_close_up_and_are_told() -> None:
    topology = read(cpu(0, gpu(0, dev=6), gpu(1, dev=4)))
    assert [g.pci_bus_id for g in topology.nodes[0].gpus] == [bus(0x41), bus(0x40)]
    assert "GPUs 4,6 only" in message(topology, "gpus-renumbered")


def test_doubled_dev_gives_way_to_rank() -> None:
    topology = read(cpu(0, gpu(1, dev=0, at=bus(5)), gpu(0, dev=0, at=bus(6))))
    assert [g.pci_bus_id for g in topology.nodes[0].gpus] == [bus(6), bus(5)]


def test_ranks_that_share_a_gpu_are_one_gpu() -> None:
    shared = pci(bus(1), GPU, '<gpu dev="0" sm="90" rank="0"/><gpu dev="0" sm="90" rank="1"/>')
    topology = read(cpu(0, shared))
    assert topology.gpu_count == 1 and "doubled" in codes(topology)


# --- NICs ---


def test_nics_have_speed_layer_place_and_nearness() -> None:
    near = bridge(1, bridge(2, gpu(0)), nic(0, net("mlx5_0"), net("mlx5_1", 200000, 2)))
    shape = shape_of(cpu(0, near, nic(1, net("eth0", 25000), pci_class="0x020000")), cpu(1, gpu(1)))
    told = [(n.name, n.speed_gbps, n.link_layer, n.numa_node, n.pci_bus_id) for n in shape.nics]
    assert told == [
        ("mlx5_0", 400.0, "InfiniBand", 0, bus(0x80)),
        ("mlx5_1", 200.0, "InfiniBand", 0, bus(0x80)),
        ("eth0", 25.0, "Ethernet", 0, bus(0x81)),
    ]
    assert [[p.label for p in row] for row in shape.nic_paths] == [["PXB", "PXB", "PHB"], ["SYS", "SYS", "SYS"]]
    assert shape.gpus[0].nearest_nics == ("mlx5_0", "mlx5_1") and len(shape.gpus[1].nearest_nics) == 3


def test_ports_of_one_name_stay_apart_and_a_doubled_port_is_one() -> None:
    topology = read(cpu(0, gpu(0), nic(0, net("mlx4_0"), net("mlx4_0", port=2), net("mlx4_0", port=2))))
    assert [n.name for n in topology.nodes[0].shape.nics] == ["mlx4_0:1", "mlx4_0:2"] and "doubled" in codes(topology)


def test_merged_nics_keep_their_name() -> None:
    assert shape_of(cpu(0, gpu(0), nic(0, net("mlx5_0+mlx5_1", 800000)))).nics[0].name == "mlx5_0+mlx5_1"


@pytest.mark.parametrize("speed", [200_000_000, 0, -1, "nan", "1e5", ""])
def test_a_speed_in_other_units_is_unknown_and_told(speed: object) -> None:
    topology = read(cpu(0, gpu(0), nic(0, net("cxi0", speed))))
    assert topology.nodes[0].shape.nics[0].speed_gbps is None and "cxi0" in message(topology, "odd-value")


def test_network_devices_without_a_card_are_told() -> None:
    topology = read(cpu(0, gpu(0), f"<nic>{net('veth1')}{net('br-2')}</nic>"))
    assert "veth1, br-2" in message(topology, "nics-virtual")
    assert topology.nodes[0].shape.nics[0].link_layer is None
    assert "gdr-off" in codes(read(cpu(0, gpu(0), nic(0, net("mlx5_0", gdr=0)))))


def test_a_hostile_name_never_passes() -> None:
    topology = read(cpu(0, gpu(0), nic(0, net("a&#10;b"), net("x" * 500), net("ok"))))
    assert [n.name for n in topology.nodes[0].shape.nics] == ["net0", "net1", "ok"]
    assert all(w.message.isprintable() for w in topology.warnings)


# --- templates, several hosts ---


def test_a_template_knows_pcie_but_not_nvlink() -> None:
    part = pci("ffff:ff:01.0", "0x060400", pci(bus(9), "0x020700") + pci(bus(1), GPU))
    topology = read(cpu(0, part, pci(bus(7), GPU)), cpu(1, pci(bus(3), AMD)))
    shape = topology.nodes[0].shape
    assert [g.pci_bus_id for g in topology.nodes[0].gpus] == [bus(1), bus(3), bus(7)]
    assert labels(shape) == ["SYS", "PHB", "SYS"] and not shape.nvlink_visible
    assert (shape.nics[0].name, shape.gpus[0].nearest_nics) == (bus(9), (bus(9),))
    assert codes(topology) == {"template", "nvlink-not-visible"}


def test_a_template_without_gpus_is_a_node_without_gpus() -> None:
    topology = read(cpu(0, bridge(1, nic(0, net("mlx5_0")))))
    assert topology.gpu_count == 0 and [n.name for n in topology.nodes[0].shape.nics] == ["mlx5_0"]
    assert codes(topology) == {"no-gpus"}


def test_a_function_that_a_dump_does_not_use_is_no_gpu() -> None:
    assert read(cpu(0, gpu(0), pci(bus(1), "0x030000"))).gpu_count == 1


def test_hosts_of_one_file_are_nodes_and_equal_ones_share_a_shape() -> None:
    topology = read(
        cpu(0, gpu(0), host="0xa"), cpu(1, gpu(1), host="0xa"), cpu(0, gpu(0), host="0xb"), cpu(0, gpu(0), host="0xc")
    )
    assert [len(n.gpus) for n in topology.nodes] == [2, 1, 1]
    assert topology.nodes[1].shape is topology.nodes[2].shape
    assert topology.network[0].kind is PathKind.NET and "domain-unknown" in codes(topology)
