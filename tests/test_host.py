"""The host source on machines described as sysfs trees: what is local to what, and what stays unknown."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.sources.host import HostFacts, pci_path_kind, read_host, with_host
from probe.sources.sysfs import PciDevice, normal_bus_id, parse_cpus
from probe.topology import (
    Gpu,
    GpuState,
    GpuStatus,
    Nic,
    Node,
    NodeShape,
    Path,
    PathKind,
    Provenance,
    Topology,
)

DISPLAY, NETWORK, ACCELERATOR = "0x030200", "0x020000", "0x120000"


class Tree:
    """A sysfs tree as Linux lays it out: devices below /sys/devices, everything else links to them."""

    def __init__(self, root: FilePath) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def link(self, path: str, target: str) -> None:
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(self.root / target, link.parent))

    def node(self, index: int, cpus: str) -> None:
        self.write(f"sys/devices/system/node/node{index}/cpulist", cpus)

    def pci(self, route: str, *, kind: str, numa: str = "-1", cpus: str = "") -> str:
        """`route` is 'pci0000:16/0000:16:01.0/0000:17:00.0'; gives the device's folder."""
        home = f"sys/devices/{route}"
        self.write(f"{home}/class", kind)
        self.write(f"{home}/numa_node", numa)
        self.write(f"{home}/local_cpulist", cpus)
        self.link(f"sys/bus/pci/devices/{route.rsplit('/', 1)[-1]}", home)
        return home

    def interface(self, name: str, home: str, *, speed: str = "100000", state: str = "up") -> None:
        self.write(f"{home}/net/{name}/type", "1")
        self.write(f"{home}/net/{name}/speed", speed)
        self.write(f"{home}/net/{name}/operstate", state)
        self.link(f"{home}/net/{name}/device", home)
        self.link(f"sys/class/net/{name}", f"{home}/net/{name}")

    def rdma(
        self, name: str, home: str, *, rate: str = "400 Gb/sec (4X NDR)", state: str = "4: ACTIVE", port: int = 1
    ) -> None:
        ports = f"{home}/infiniband/{name}/ports/{port}"
        self.write(f"{ports}/rate", rate)
        self.write(f"{ports}/state", state)
        self.write(f"{ports}/link_layer", "InfiniBand")
        if port == 1:
            self.link(f"{home}/infiniband/{name}/device", home)
            self.link(f"sys/class/infiniband/{name}", f"{home}/infiniband/{name}")


@pytest.fixture
def tree(tmp_path: FilePath) -> Tree:
    return Tree(tmp_path)


def driver(*bus_ids: str | None, name: str = "NVIDIA H100 80GB HBM3") -> Topology:
    """What NVML tells of GPUs at these bus ids: nothing of the host."""
    n = len(bus_ids)
    gpus = tuple(Gpu(i, name=name) for i in range(n))
    states = tuple(GpuState(uuid=f"GPU-{i}", pci_bus_id=bus_id) for i, bus_id in enumerate(bus_ids))
    return Topology((Node(NodeShape(gpus, (Path(PathKind.NVLINK, 18),) * (n * (n - 1) // 2)), states),))


def hgx(tree: Tree) -> list[str]:
    """Two sockets, four host bridges each, a switch below each with a GPU and a NIC; gives bus ids as NVML prints."""
    tree.node(0, "0-55,112-167")
    tree.node(1, "56-111,168-223")
    tree.node(2, "")  # memory only
    bus_ids = []
    for i in range(8):
        bus, socket = 0x10 + 0x10 * i, i // 4
        above = f"pci0000:{bus:02x}/0000:{bus:02x}:01.0/0000:{bus + 1:02x}:00.0"
        cpus = ("0-55,112-167", "56-111,168-223")[socket]
        port = f"{above}/0000:{bus + 2:02x}"
        gpu = tree.pci(f"{port}:00.0/0000:{bus + 3:02x}:00.0", kind=DISPLAY, numa=str(socket), cpus=cpus)
        nic = tree.pci(f"{port}:01.0/0000:{bus + 4:02x}:00.0", kind=NETWORK, numa=str(socket), cpus=cpus)
        tree.rdma(f"mlx5_{i}", nic)
        tree.interface(f"ibs{i}", nic, speed="400000")
        bus_ids.append("0000" + gpu.rsplit("/", 1)[-1].upper())
    return bus_ids


def test_hgx_with_a_nic_beside_each_gpu(tree: Tree) -> None:
    bus_ids = hgx(tree)
    tree.write("sys/devices/system/cpu/online", "0-223")
    tree.write("proc/sys/kernel/hostname", "dgx-7")
    host = read_host(tree.root)
    assert host.hostname == "dgx-7" and host.cpu_count == 224
    assert [n.index for n in host.numa_nodes] == [0, 1]
    assert host.notices == ()

    node = with_host(driver(*bus_ids), host).nodes[0]
    shape = node.shape
    assert [nic.name for nic in shape.nics] == [f"mlx5_{i}" for i in range(8)]
    assert shape.nics[5] == Nic(
        "mlx5_5",
        speed_gbps=400.0,
        link_layer="InfiniBand",
        state="active",
        numa_node=1,
        pci_bus_id="0000:64:00.0",
        interface="ibs5",
    )
    assert [gpu.nearest_nics for gpu in shape.gpus] == [(f"mlx5_{i}",) for i in range(8)]
    assert [gpu.numa_node for gpu in shape.gpus] == [0] * 4 + [1] * 4
    assert shape.gpus[6].cpu_affinity == "56-111,168-223"
    kinds = [path.kind for path in shape.nic_paths[0]]
    assert kinds == [PathKind.PIX] + [PathKind.NODE] * 3 + [PathKind.SYS] * 4
    assert shape.paths[0].links == 18, "what the driver told stays"
    assert node.hostname == "dgx-7"


def test_provenance_names_what_was_filled_in(tree: Tree) -> None:
    topology = with_host(driver(*hgx(tree)), read_host(tree.root))
    told = {origin.fact for origin in topology.provenance}
    assert {"nics", "nic_paths", "gpus.numa_node", "gpus.cpu_affinity", "gpus.nearest_nics"} <= told
    assert {origin.provenance for origin in topology.provenance} == {Provenance.READ}
    assert with_host(topology, read_host(tree.root)).provenance == topology.provenance, "nothing is filled in twice"


def test_two_socket_pcie_box_keeps_every_nearest_nic(tree: Tree) -> None:
    """Two GPUs and two Ethernet ports on one host bridge of socket 0, one GPU on another, one on socket 1."""
    tree.node(0, "0-15")
    tree.node(1, "16-31")
    tree.pci("pci0000:00/0000:00:01.0/0000:01:00.0", kind=DISPLAY, numa="0")
    tree.pci("pci0000:00/0000:00:02.0/0000:02:00.0", kind=DISPLAY, numa="0")
    tree.pci("pci0000:40/0000:40:01.0/0000:41:00.0", kind=DISPLAY, numa="0")
    tree.pci("pci0000:80/0000:80:01.0/0000:81:00.0", kind=DISPLAY, numa="1")
    for function in (0, 1):
        home = tree.pci(f"pci0000:00/0000:00:03.0/0000:03:00.{function}", kind=NETWORK, numa="0")
        tree.interface(f"eno{function}", home, speed="25000")
    topology = with_host(driver("0000:01:00.0", "0000:02:00.0", "0000:41:00.0", "0000:81:00.0"), read_host(tree.root))
    shape = topology.nodes[0].shape
    assert [row[0].kind for row in shape.nic_paths] == [PathKind.PHB, PathKind.PHB, PathKind.NODE, PathKind.SYS]
    assert all(gpu.nearest_nics == ("eno0", "eno1") for gpu in shape.gpus)
    assert shape.nics[0].speed_gbps == 25.0 and shape.nics[0].link_layer == "Ethernet" and shape.nics[0].state == "up"
    assert shape.gpus[3].cpu_affinity == "16-31", "no local_cpulist: the NUMA node's"


def test_a_flattened_virtual_machine_is_warned_of(tree: Tree) -> None:
    tree.node(0, "0-7")
    tree.node(1, "8-15")
    tree.write("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vme hypervisor lahf_lm\n")
    tree.write("sys/class/dmi/id/sys_vendor", "QEMU")
    tree.write("sys/class/dmi/id/product_name", "Standard PC")
    tree.pci("pci0000:00/0000:00:05.0", kind=DISPLAY, cpus="0-15")
    nic = tree.pci("pci0000:00/0000:00:06.0", kind=NETWORK, cpus="0-15")
    tree.rdma("mlx5_0", nic)
    virtio = tree.pci("pci0000:00/0000:00:07.0", kind=NETWORK)
    tree.interface("eth0", f"{virtio}/virtio3", speed="-1")
    elsewhere = tree.pci("pci0001:00/0001:00:00.0", kind=NETWORK)
    tree.rdma("mlx5_1", elsewhere)

    topology = with_host(driver("00000000:00:05.0"), read_host(tree.root))
    node = topology.nodes[0]
    assert node.virtualization == "vm"
    assert [nic.name for nic in node.shape.nics] == ["mlx5_0", "mlx5_1", "eth0"]
    assert [path.kind for path in node.shape.nic_paths[0]] == [PathKind.PHB, PathKind.UNKNOWN, PathKind.PHB]
    gpu = node.shape.gpus[0]
    assert gpu.numa_node is None and gpu.nearest_nics == ("mlx5_0", "eth0")
    assert node.shape.nics[2].speed_gbps is None
    (warning,) = topology.warnings
    assert warning.code == "virtualized" and "QEMU Standard PC" in warning.message and warning.node == 0


def test_a_driver_that_says_bare_metal_under_a_hypervisor_stays_and_is_contradicted(tree: Tree) -> None:
    tree.write("proc/cpuinfo", "flags : fpu hypervisor\n")
    topology = driver("0000:01:00.0")
    topology = replace(topology, nodes=(replace(topology.nodes[0], virtualization="bare"),))
    joined = with_host(topology, read_host(tree.root))
    assert joined.nodes[0].virtualization == "bare"
    assert [w.code for w in joined.warnings] == ["virtualized"] and "bare metal" in joined.warnings[0].message


def test_what_the_driver_told_beats_sysfs(tree: Tree) -> None:
    topology = driver(*hgx(tree)[:1])
    told = replace(topology.nodes[0].shape.gpus[0], numa_node=1, cpu_affinity="56-111")
    own = replace(topology.nodes[0], shape=replace(topology.nodes[0].shape, gpus=(told,)), hostname="mine")
    joined = with_host(replace(topology, nodes=(own,)), read_host(tree.root))
    gpu = joined.nodes[0].shape.gpus[0]
    assert (gpu.numa_node, gpu.cpu_affinity, joined.nodes[0].hostname) == (1, "56-111", "mine")
    assert [w.code for w in joined.warnings] == ["numa-differs", "affinity-differs"]
    assert not {"gpus.numa_node", "gpus.cpu_affinity", "hostname"} & {o.fact for o in joined.provenance}


def test_affinity_written_in_another_way_is_no_conflict(tree: Tree) -> None:
    topology = driver(*hgx(tree)[:1])
    told = replace(topology.nodes[0].shape.gpus[0], cpu_affinity="0-20,21-55,112-167")
    own = replace(topology.nodes[0], shape=replace(topology.nodes[0].shape, gpus=(told,)))
    assert with_host(replace(topology, nodes=(own,)), read_host(tree.root)).warnings == ()


def test_container_without_infiniband_still_has_ethernet(tree: Tree) -> None:
    tree.node(0, "0-3")
    home = tree.pci("pci0000:00/0000:00:1c.0/0000:02:00.0", kind=NETWORK, numa="0")
    tree.interface("eth0", home, speed="10000")
    tree.link("sys/class/net/lo", "sys/devices/virtual/net/lo")
    host = read_host(tree.root)
    assert [(nic.name, nic.speed_gbps) for nic in host.nics] == [("eth0", 10.0)]
    joined = with_host(driver("0000:09:00.0"), host)
    assert joined.nodes[0].shape.nic_paths == ((Path(PathKind.UNKNOWN),),)
    assert joined.nodes[0].shape.gpus[0].nearest_nics == ()
    assert [w.code for w in joined.warnings] == ["gpu-not-in-sysfs"]


@pytest.mark.parametrize("above", ["master", "upper_br0", "upper_eth0.100"])
def test_a_part_of_a_bond_bridge_or_vlan_is_no_interface_to_open_sockets_on(tree: Tree, above: str) -> None:
    home = tree.pci("pci0000:00/0000:00:1c.0/0000:02:00.0", kind=NETWORK)
    tree.interface("eth0", home)
    assert [nic.interface for nic in read_host(tree.root).nics] == ["eth0"]
    tree.link(f"{home}/net/eth0/{above}", "sys/devices/virtual/net/above")
    assert [(nic.name, nic.interface) for nic in read_host(tree.root).nics] == [("eth0", None)]
    tree.rdma("mlx5_bond_0", home)
    assert [(nic.name, nic.interface) for nic in read_host(tree.root).nics] == [("mlx5_bond_0", None)]


def test_a_laptop_without_sysfs_gives_empty_facts(tree: Tree) -> None:
    host = read_host(tree.root / "nowhere")
    assert host == HostFacts()
    topology = driver("0000:01:00.0")
    assert with_host(topology, host) == topology


def test_only_cards_with_a_wire_are_nics(tree: Tree) -> None:
    card = tree.pci("pci0000:00/0000:00:01.0/0000:01:00.0", kind=NETWORK)
    tree.interface("enp1s0", card)
    tree.interface("enp1s0d1", card)  # the second port of the same function
    virtual = tree.pci("pci0000:00/0000:00:01.0/0000:01:00.1", kind=NETWORK)
    tree.link(f"{virtual}/physfn", card)
    tree.interface("enp1s0v0", virtual)
    tree.rdma("mlx5_9", virtual)
    usb = tree.pci("pci0000:00/0000:00:14.0", kind="0x0c0330")
    tree.interface("usb0", f"{usb}/usb1/1-1/1-1:1.0")
    wifi = tree.pci("pci0000:00/0000:00:15.0", kind="0x028000")
    tree.interface("wlp0", wifi)
    tree.write(f"{wifi}/net/wlp0/wireless/x", "")
    tree.interface("br0", "sys/devices/virtual")
    tree.link("sys/class/infiniband/rxe0", "sys/devices/virtual/infiniband/rxe0")
    assert [nic.name for nic in read_host(tree.root).nics] == ["enp1s0"]


def test_the_active_port_counts_and_a_port_that_is_down_has_no_speed(tree: Tree) -> None:
    two_ports = tree.pci("pci0000:00/0000:00:01.0/0000:01:00.0", kind=NETWORK)
    tree.rdma("mlx4_0", two_ports, rate="10 Gb/sec (4X SDR)", state="1: DOWN")
    tree.rdma("mlx4_0", two_ports, rate="56 Gb/sec (4X FDR)", port=2)
    down = tree.pci("pci0000:00/0000:00:02.0/0000:02:00.0", kind=NETWORK)
    tree.rdma("mlx5_10", down, rate="2.5 Gb/sec (1X SDR)", state="1: DOWN")
    first, second = read_host(tree.root).nics
    assert (first.speed_gbps, first.state) == (56.0, "active")
    assert (second.speed_gbps, second.state) == (None, "down")


@pytest.mark.parametrize("speed", ["-1", "0", "4294967295"])
def test_the_kernels_words_for_an_untold_speed_are_nothing_odd(tree: Tree, speed: str) -> None:
    tree.interface("eth0", tree.pci("pci0000:00/0000:00:01.0", kind=NETWORK), speed=speed)
    host = read_host(tree.root)
    assert host.nics[0].speed_gbps is None and host.notices == ()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("numa_node", "99999999"),
        ("numa_node", "-7"),
        ("numa_node", "one\x1b[31m"),
        ("local_cpulist", "0-4294967295"),
        ("local_cpulist", "9-3"),
        ("net/eth0/speed", "999999999"),
        ("net/eth0/speed", "fast"),
        ("infiniband/mlx5_0/ports/1/rate", "99999999 Gb/sec"),
        ("infiniband/mlx5_0/ports/1/rate", "very much"),
    ],
)
def test_absurd_files_become_unknown_and_a_notice(tree: Tree, file: str, text: str) -> None:
    home = tree.pci("pci0000:00/0000:00:01.0/0000:01:00.0", kind=NETWORK)
    tree.interface("eth0", home)
    if file.startswith("infiniband"):
        tree.rdma("mlx5_0", home)
    tree.write(f"{home}/{file}", text)
    host = read_host(tree.root)
    (nic,) = host.nics
    assert nic.numa_node is None and (nic.speed_gbps is None or "numa" in file or "cpu" in file)
    (notice,) = host.notices
    assert notice.code == "host-odd-fact" and file in notice.message and notice.message.isprintable()


def test_a_thousand_odd_files_give_a_few_notices(tree: Tree) -> None:
    for i in range(40):
        tree.pci(f"pci0000:00/0000:{i:02x}:00.0", kind=DISPLAY, numa="many")
    assert 1 <= len(read_host(tree.root).notices) <= 16


def test_unreadable_and_binary_files_are_unknown(tree: Tree) -> None:
    home = tree.pci("pci0000:00/0000:00:01.0/0000:01:00.0", kind=NETWORK)
    tree.interface("eth0", home)
    (tree.root / home / "numa_node").unlink()
    (tree.root / home / "numa_node").mkdir()
    (tree.root / home / "net/eth0/operstate").write_bytes(bytes(range(256)) * 400)
    (tree.root / "sys/class/net/loop").symlink_to("loop")
    tree.write("sys/class/net/plain", "")
    (nic,) = read_host(tree.root).nics
    assert (nic.numa_node, nic.state, nic.speed_gbps) == (None, None, 100.0)


def test_accelerators_of_other_vendors_are_found(tree: Tree) -> None:
    tree.pci("pci0000:00/0000:00:01.0/0000:05:00.0", kind=ACCELERATOR, numa="0")
    assert [d.bus_id for d in read_host(tree.root).devices] == ["0000:05:00.0"]


def device(route: str, numa: int | None = None) -> PciDevice:
    parts = tuple(route.split("/"))
    return PciDevice(parts[-1], parts, numa)


SWITCHED = "pci0000:16/0000:16:01.0/0000:17:00.0"


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        (f"{SWITCHED}/0000:18:00.0/0000:19:00.0", f"{SWITCHED}/0000:18:01.0/0000:1a:00.0", PathKind.PIX),
        (f"{SWITCHED}/0000:18:00.0/0000:19:00.0", f"{SWITCHED}/0000:18:00.0/0000:19:00.1", PathKind.PIX),
        (
            f"{SWITCHED}/0000:18:00.0/0000:19:00.0",
            f"{SWITCHED}/0000:18:01.0/0000:1a:00.0/0000:1b:00.0/0000:1c:00.0",
            PathKind.PXB,
        ),
        (
            f"{SWITCHED}/0000:18:00.0/0000:19:00.0",
            f"{SWITCHED}/0000:18:01.0/0000:1a:00.0/0000:1b:00.0",
            PathKind.PXB,
        ),
        ("pci0000:16/0000:16:01.0/0000:17:00.0", "pci0000:16/0000:16:02.0/0000:18:00.0", PathKind.PHB),
        ("pci0000:00/0000:00:05.0", "pci0000:00/0000:00:06.0", PathKind.PHB),
        ("pci0000:16/0000:16:01.0/0000:17:00.0", "pci0000:64/0000:64:01.0/0000:65:00.0", PathKind.UNKNOWN),
    ],
)
def test_levels_follow_from_where_the_routes_part(a: str, b: str, kind: PathKind) -> None:
    assert pci_path_kind(device(a), device(b), 2) is kind
    assert pci_path_kind(device(b), device(a), 2) is kind


def test_an_unknown_path_that_could_be_nearer_leaves_no_nearest_nic(tree: Tree) -> None:
    tree.node(0, "0-3")
    tree.node(1, "4-7")
    tree.pci("pci0000:00/0000:00:01.0/0000:01:00.0", kind=DISPLAY, numa="0")
    far = tree.pci("pci0000:80/0000:80:01.0/0000:81:00.0", kind=NETWORK, numa="1")
    untold = tree.pci("pci0000:40/0000:40:01.0/0000:41:00.0", kind=NETWORK)
    tree.interface("far", far)
    tree.interface("untold", untold)
    shape = with_host(driver("0000:01:00.0"), read_host(tree.root)).nodes[0].shape
    assert [path.kind for path in shape.nic_paths[0]] == [PathKind.SYS, PathKind.UNKNOWN]
    assert shape.gpus[0].nearest_nics == ()


def test_between_host_bridges_the_numa_node_decides() -> None:
    a, b = "pci0000:16/0000:16:01.0/0000:17:00.0", "pci0000:64/0000:64:01.0/0000:65:00.0"
    assert pci_path_kind(device(a, 0), device(b, 0), 2) is PathKind.NODE
    assert pci_path_kind(device(a, 0), device(b, 1), 2) is PathKind.SYS
    assert pci_path_kind(device(a), device(b), 1) is PathKind.NODE, "one NUMA node: there is no other"


def test_a_chip_that_shares_the_hosts_memory_takes_it(tree: Tree) -> None:
    host = HostFacts(memory_bytes=128_000_000_000, memory_available_bytes=100_000_000_000)
    joined = with_host(driver("0000:01:00.0", name="NVIDIA GB10"), host)
    node = joined.nodes[0]
    assert (node.shape.gpus[0].memory_bytes, node.gpus[0].memory_free_bytes) == (128_000_000_000, 100_000_000_000)
    assert {"gpus.memory_bytes", "gpus.memory_free_bytes"} == {o.fact for o in joined.provenance}


@pytest.mark.parametrize(("name", "status"), [("NVIDIA H100 PCIe", GpuStatus.OK), ("NVIDIA GB10", GpuStatus.LOST)])
def test_no_other_gpu_gets_the_hosts_memory(name: str, status: GpuStatus) -> None:
    topology = driver("0000:01:00.0", name=name)
    own = replace(topology.nodes[0], gpus=(replace(topology.nodes[0].gpus[0], status=status),))
    joined = with_host(replace(topology, nodes=(own,)), HostFacts(memory_bytes=1 << 37, memory_available_bytes=1 << 36))
    assert joined.nodes[0].shape.gpus[0].memory_bytes is None
    assert joined.nodes[0].gpus[0].memory_free_bytes is None


def test_only_the_named_node_changes(tree: Tree) -> None:
    one = driver(*hgx(tree))
    two = Topology((one.nodes[0], replace(one.nodes[0], gpus=tuple(GpuState() for _ in range(8)))))
    joined = with_host(two, read_host(tree.root), node=0)
    assert joined.nodes[1] is two.nodes[1]
    assert len(joined.nodes[0].shape.nics) == 8


def test_nics_that_the_topology_has_stay(tree: Tree) -> None:
    topology = driver(*hgx(tree)[:1])
    shape = replace(topology.nodes[0].shape, nics=(Nic("bond0"),), nic_paths=((Path(PathKind.SYS),),))
    joined = with_host(replace(topology, nodes=(replace(topology.nodes[0], shape=shape),)), read_host(tree.root))
    assert joined.nodes[0].shape.nics == (Nic("bond0"),)
    assert joined.nodes[0].shape.gpus[0].nearest_nics == ("bond0",)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("00000000:17:00.0", "0000:17:00.0"),
        ("0000:C1:00.0", "0000:c1:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("FFFFFFFF:FF:FF.0", None),
        ("17:00.0", None),
        ("", None),
        (None, None),
    ],
)
def test_bus_ids_have_one_spelling(text: str | None, normal: str | None) -> None:
    assert normal_bus_id(text) == normal


@settings(derandomize=True, deadline=None)
@given(st.text(alphabet="0123456789-, abc\n", max_size=40))
def test_any_text_is_cpus_or_not(text: str) -> None:
    cpus = parse_cpus(text)
    assert cpus is None or list(cpus) == sorted(set(cpus))


def test_this_machine_can_be_read() -> None:
    host = read_host()
    assert host.cpu_count is not None and host.cpu_count >= 1
    assert host.memory_bytes is not None and host.memory_available_bytes is not None
    assert host.memory_bytes >= host.memory_available_bytes > 0
    assert host.hostname
    with_host(driver("0000:01:00.0"), host)
