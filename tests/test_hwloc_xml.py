"""lstopo's XML: PCIe levels, NUMA, NICs, and the NVLink and xGMI matrices, over three versions of hwloc."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path as FilePath
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.errors import SourceError
from probe.sources.hwloc_objects import numa_nodes
from probe.sources.hwloc_xml import looks_like_hwloc, read_hwloc
from probe.sources.xml import parse_xml
from probe.topology import PathKind, Through, Topology

CORPUS = FilePath(__file__).resolve().parents[2] / "shared" / "topologies" / "index.jsonl"
PIX, PXB, PHB, NODE, SYS, UNKNOWN, NVLINK, XGMI = (
    *(PathKind.PIX, PathKind.PXB, PathKind.PHB, PathKind.NODE, PathKind.SYS),
    *(PathKind.UNKNOWN, PathKind.NVLINK, PathKind.XGMI),
)
DIRECT, SWITCH = Through.DIRECT, Through.SWITCH


class Machine:
    """Writes lstopo XML: `gpu`, `nic` and `bridge` give elements with fresh indices."""

    def __init__(self, version: str = "2.0") -> None:
        self.version = version
        self.index = 1000

    def fresh(self) -> int:
        self.index += 1
        return self.index

    def bridge(self, *inside: str, host: bool = False) -> str:
        kind = "0-1" if host else "1-1"
        return f'<object type="Bridge" gp_index="{self.fresh()}" bridge_type="{kind}">{"".join(inside)}</object>'

    def os_device(self, name: str, kind: int, subtype: str = "", **infos: str) -> str:
        told = "".join(f'<info name="{k}" value="{v}"/>' for k, v in infos.items())
        of = f' subtype="{subtype}"' if subtype else ""
        return f'<object type="OSDev" gp_index="{self.fresh()}" name="{name}"{of} osdev_type="{kind}">{told}</object>'

    def pci(self, bus: str, kind: str, *inside: str) -> str:
        told = f'gp_index="{self.fresh()}" pci_busid="{bus}" pci_type="{kind}"'
        return f'<object type="PCIDev" {told}>{"".join(inside)}</object>'

    def gpu(self, bus: str, *inside: str, kind: str = "0302 [10de:2330] [10de:16c1] a1") -> str:
        return self.pci(bus, kind, *inside)

    def nvml(self, bus: str, number: int, model: str = "Tesla V100-SXM2-16GB", **infos: str) -> str:
        uuid = f"GPU-{number:08x}-0000-1111-2222-333333333333"
        told = {"GPUModel": model, "NVIDIAUUID": uuid, **infos}
        return self.gpu(bus, self.os_device(f"nvml{number}", 1, "NVML", **told))

    def nic(self, bus: str, name: str, interface: str, kind: str = "0207 [15b3:1021] [15b3:0087] 00") -> str:
        rdma, network = (32, 16) if self.version.startswith("3") else (3, 2)
        return self.pci(
            bus, kind, self.os_device(interface, network), self.os_device(name, rdma, "OpenFabrics", Port1State="4")
        )

    def package(self, node: int, *inside: str) -> str:
        cpus = f"0x{0xFF << 8 * node:08x}"
        sets = f'cpuset="{cpus}" nodeset="0x{1 << node:08x}"'
        numa = f'<object type="NUMANode" os_index="{node}" {sets}/>'
        if self.version == "1":  # a NUMA node was a container then
            return f'<object type="NUMANode" os_index="{node}" {sets}>{"".join(inside)}</object>'
        return f'<object type="Package" os_index="{node}" {sets}>{numa}{"".join(inside)}</object>'

    def whole(self, *inside: str, after: str = "") -> str:
        version = "" if self.version == "1" else f' version="{self.version}"'
        dtd = "hwloc.dtd" if self.version == "1" else "hwloc2.dtd"
        machine = '<object type="Machine" cpuset="0x0000ffff" nodeset="0x00000003"><info name="HostName" value="n1"/>'
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE topology SYSTEM "{dtd}">\n'
            f"<topology{version}>{machine}{''.join(inside)}</object>{after}</topology>"
        )


def matrix(name: str, keys: Sequence[str], values: Sequence[Sequence[int]], hetero: bool = False) -> str:
    tag = "distances2hetero" if hetero else "distances2"
    told = keys if hetero else [k.partition(":")[2] for k in keys]
    flat = [str(v) for row in values for v in row]
    chunks = "".join(f"<u64values>{' '.join(flat[i : i + 10])} </u64values>" for i in range(0, len(flat), 10))
    kind = "" if hetero else ' type="OSDev"'
    told_as = f'{kind} nbobjs="{len(keys)}" kind="9" name="{name}" indexing="gp"'
    return f"<{tag}{told_as}><indexes>{' '.join(told)} </indexes>{chunks}</{tag}>"


def keys_of(text: str, names: Sequence[str]) -> list[str]:
    objects = {e.get("name"): e for e in parse_xml(text, where="x").iter("object") if e.get("name")}
    return [f"OSDev:{objects[name].get('gp_index')}" for name in names]


def read(text: str) -> Topology:
    return read_hwloc(text, where="machine.xml")


def kinds(topology: Topology) -> list[PathKind]:
    return [p.kind for p in topology.nodes[0].shape.paths]


def codes(topology: Topology) -> set[str]:
    return {w.code for w in topology.warnings}


def two_sockets(version: str = "2.0") -> str:
    m = Machine(version)
    switch = m.bridge(
        m.bridge(
            m.bridge(m.gpu("0000:11:00.0")),
            m.bridge(m.gpu("0000:12:00.0")),
            m.bridge(m.nic("0000:13:00.0", "mlx5_0", "ib0")),
        )
    )
    first = m.bridge(switch, m.bridge(m.gpu("0000:21:00.0")), host=True)
    other = m.bridge(m.bridge(m.gpu("0000:31:00.0")), host=True)
    far = m.bridge(m.bridge(m.gpu("0000:81:00.0")), host=True)
    return m.whole(m.package(0, first, other), m.package(1, far))


@pytest.mark.parametrize("version", ["1", "2.0", "3.0"])
def test_bridges_become_levels_in_every_version(version: str) -> None:
    topology = read(two_sockets(version))
    node = topology.nodes[0]
    assert [s.pci_bus_id for s in node.gpus] == [f"0000:{b}:00.0" for b in ("11", "12", "21", "31", "81")]
    assert kinds(topology) == [PIX, PHB, NODE, SYS, PHB, NODE, SYS, NODE, SYS, SYS]
    assert [g.numa_node for g in node.shape.gpus] == [0, 0, 0, 0, 1]
    assert [g.cpu_affinity for g in node.shape.gpus] == ["0-7"] * 4 + ["8-15"]
    [nic] = node.shape.nics
    assert (nic.name, nic.interface, nic.link_layer, nic.state) == ("mlx5_0", "ib0", "InfiniBand", "active")
    assert [row[0].kind for row in node.shape.nic_paths] == [PIX, PIX, PHB, NODE, SYS]
    assert node.hostname == "n1" and node.shape.gpus[0].nearest_nics == ("mlx5_0",)
    assert not node.shape.nvlink_visible and "nvlink-not-visible" in codes(topology)


def test_switches_in_a_row_are_pxb() -> None:
    m = Machine()
    deep = m.bridge(m.bridge(m.bridge(m.bridge(m.bridge(m.gpu("0000:11:00.0"))))), m.bridge(m.gpu("0000:12:00.0")))
    assert kinds(read(m.whole(m.package(0, m.bridge(deep, host=True))))) == [PXB]


def test_without_bridges_a_path_is_unknown_not_far() -> None:
    m = Machine()
    gpus = [m.gpu("0000:11:00.0"), m.gpu("0000:12:00.0")]
    topology = read(m.whole(m.package(0, *gpus), m.package(1, m.gpu("0000:81:00.0"))))
    assert kinds(topology) == [UNKNOWN, SYS, SYS] and "paths-unknown" in codes(topology)


def test_gpus_are_numbered_as_nvml_numbers_them() -> None:
    m = Machine()
    gpus = [m.nvml("0000:11:00.0", 1), m.nvml("0000:12:00.0", 0, CUDAGlobalMemorySize="16777216")]
    node = read(m.whole(m.package(0, m.bridge(*gpus, host=True)))).nodes[0]
    assert [s.pci_bus_id for s in node.gpus] == ["0000:12:00.0", "0000:11:00.0"]
    assert [s.uuid for s in node.gpus] == [f"GPU-0000000{i}-0000-1111-2222-333333333333" for i in (0, 1)]
    assert [g.memory_bytes for g in node.shape.gpus] == [16 << 30, None]


def nvlink_machine(model: str, values: Sequence[Sequence[int]], after: str = "") -> Topology:
    m = Machine()
    gpus = [m.nvml(f"0000:1{i}:00.0", i, model) for i in range(len(values))]
    body = m.package(0, m.bridge(*gpus, host=True))
    names = [f"nvml{i}" for i in range(len(values))]
    return read(m.whole(body, after=matrix("NVLinkBandwidth", keys_of(m.whole(body), names), values) + after))


LOCAL = 1_000_000


@pytest.mark.parametrize(
    ("model", "bandwidth", "links"),
    [
        ("Tesla V100-SXM2-16GB", 50_000, 2),
        ("NVIDIA A100-SXM4-40GB", 200_000, 4),
        ("Tesla P100-SXM2-16GB", 20_000, 1),
        ("Tesla V100-SXM2-16GB", 30_000, None),
        ("NVIDIA Quite New", 50_000, None),
    ],
)
def test_a_bandwidth_becomes_links_where_the_model_tells(model: str, bandwidth: int, links: int | None) -> None:
    topology = nvlink_machine(model, [[LOCAL, bandwidth, 0], [bandwidth, LOCAL, 0], [0, 0, LOCAL]])
    assert kinds(topology) == [NVLINK, PHB, PHB]
    assert topology.nodes[0].shape.path(0, 1).links == links and topology.nodes[0].shape.nvlink_visible
    assert ("link-count-unknown" in codes(topology)) == (links is None)


def test_directions_that_differ_count_as_the_slower() -> None:
    topology = nvlink_machine("Tesla V100-SXM2-16GB", [[LOCAL, 50_000], [25_000, LOCAL]])
    [path] = topology.nodes[0].shape.paths
    assert (path.links, path.asymmetric) == (1, ("NV2", "NV1")) and "asymmetric" in codes(topology)


def test_gpus_behind_nvswitch_are_joined_by_the_smaller_sum() -> None:
    m = Machine()
    gpus = [m.nvml(f"0000:1{i}:00.0", i, "NVIDIA A100-SXM4-40GB") for i in range(2)]
    switches = [
        f'<object type="PCIDev" gp_index="{k}" subtype="NVSwitch" pci_busid="0000:b{k}:00.0"'
        ' pci_type="0680 [10de:1af1] [0:0] a1"/>'
        for k in (1, 2)
    ]
    body = m.package(0, m.bridge(*gpus, *switches, host=True))
    keys = [*keys_of(m.whole(body), ["nvml0", "nvml1"]), "PCIDev:1", "PCIDev:2"]
    values = [
        [LOCAL, 0, 300_000, 300_000],
        [0, LOCAL, 300_000, 250_000],
        [300_000, 300_000, 0, 0],
        [300_000, 250_000, 0, 0],
    ]
    topology = read(m.whole(body, after=matrix("NVLinkBandwidth", keys, values, hetero=True)))
    [path] = topology.nodes[0].shape.paths
    assert (path.kind, path.links, path.through) == (NVLINK, 11, SWITCH)
    assert "fabric-unknown" in codes(topology) and len(topology.nodes[0].gpus) == 2


@pytest.mark.parametrize("how", ["matrix", "peers"])
def test_xgmi_of_accelerators(how: str) -> None:
    m = Machine("3.0")
    peers = [{"XGMIPeers": "rsmi1 "}, {"XGMIPeers": "rsmi0 "}, {}] if how == "peers" else [{}, {}, {}]
    gpus = [
        m.pci(
            f"0000:1{i}:00.0",
            "1200(00) [1002:740f] [1002:0c34] 02",
            m.os_device(
                f"rsmi{i}",
                12,
                "RSMI",
                GPUModel="AMD Instinct MI210",
                AMDUUID=f"{i}a",
                RSMIVRAMSize="67092480KiB",
                **peers[i],
            ),
        )
        for i in range(3)
    ]
    vga = m.pci("0000:01:00.0", "0300 [1002:515e] [0:0] 02")
    body = m.package(0, m.bridge(vga, *gpus, host=True))
    keys = keys_of(m.whole(body), ["rsmi0", "rsmi1", "rsmi2"])
    hops = matrix("XGMIHops", keys, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    topology = read(m.whole(body, after=hops if how == "matrix" else ""))
    assert kinds(topology) == [XGMI, PHB, PHB]
    assert topology.nodes[0].shape.nvlink_visible and len(topology.nodes[0].gpus) == 3  # the console's VGA is none
    assert topology.nodes[0].shape.gpus[0].memory_bytes == 67092480 << 10


def test_gpus_that_only_a_library_saw() -> None:
    m = Machine()
    libraries = [m.os_device(f"nvml{i}", 1, "NVML", GPUModel="NVIDIA L4") for i in (1, 0)]
    topology = read(m.whole(m.package(0, *libraries)))
    assert [g.name for g in topology.nodes[0].shape.gpus] == ["NVIDIA L4"] * 2 and kinds(topology) == [UNKNOWN]


def test_a_machine_without_gpus_is_a_node_that_says_so() -> None:
    m = Machine()
    topology = read(m.whole(m.package(0, m.bridge(m.nic("0000:13:00.0", "mlx5_0", "ib0"), host=True))))
    assert topology.gpu_count == 0 and len(topology.nodes[0].shape.nics) == 1 and "no-gpus" in codes(topology)


def test_the_pci_database_names_a_gpu_where_no_library_did() -> None:
    m = Machine()
    gpu = m.gpu("0000:11:00.0", '<info name="PCIDevice" value="GA102GL [A10G]"/>')
    assert read(m.whole(m.package(0, gpu))).nodes[0].shape.gpus[0].name == "NVIDIA A10G"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('nbobjs="2"', 'nbobjs="99999999999"'),
        ('nbobjs="2"', 'nbobjs="-2"'),
        ("50000", "NaN"),
        ("50000", "-50000"),
        ("50000", "9" * 40),
        ("<u64values>", "<u64values>1 "),
        ('indexing="gp"', 'indexing="os"'),
    ],
)
def test_a_damaged_matrix_is_left_out_and_said(old: str, new: str) -> None:
    m = Machine()
    body = m.package(0, m.bridge(m.nvml("0000:11:00.0", 0), m.nvml("0000:12:00.0", 1), host=True))
    values = matrix("NVLinkBandwidth", keys_of(m.whole(body), ["nvml0", "nvml1"]), [[LOCAL, 50_000], [50_000, LOCAL]])
    topology = read(m.whole(body, after=values.replace(old, new)))
    assert kinds(topology) == [PHB] and not topology.nodes[0].shape.nvlink_visible
    assert {"matrix-unreadable", "nvlink-not-visible"} <= codes(topology)


def test_indices_told_twice_make_a_matrix_worthless() -> None:
    m = Machine()
    body = m.package(0, m.bridge(m.nvml("0000:11:00.0", 0), m.nvml("0000:12:00.0", 1), host=True))
    keys = keys_of(m.whole(body), ["nvml0", "nvml1"])
    twice = f'<object type="OSDev" gp_index="{keys[0].partition(":")[2]}" name="eth9" osdev_type="2"/>'
    text = m.whole(body, twice, after=matrix("NVLinkBandwidth", keys, [[LOCAL, 50_000], [50_000, LOCAL]]))
    assert "matrix-unreadable" in codes(read(text))


@pytest.mark.parametrize("count", [129, 300])
def test_more_gpus_than_any_machine_has_are_refused(count: int) -> None:
    m = Machine()
    with pytest.raises(SourceError, match="GPUs are more"):
        read(m.whole(*(m.gpu(f"{i:04x}:11:00.0") for i in range(count))))


@pytest.mark.parametrize(
    "text",
    [
        "Machine (P#0 total=252GiB)\n  Package L#0\n    HostBridge L#0\n      PCI L#0 (busid=0004:05:00.0)\n",
        "<topology/>",
        "<system version='1'/>",
        '<topology><object type="Machine"',
        '<!DOCTYPE x [<!ENTITY a "b">]><topology><object type="Machine"/></topology>',
    ],
)
def test_what_is_no_lstopo_xml_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SourceError) as refusal:
        read(text)
    assert "\n" not in str(refusal.value) and "machine.xml" in str(refusal.value)


def test_only_lstopo_xml_looks_like_it() -> None:
    assert looks_like_hwloc(two_sockets("1")) and looks_like_hwloc("<!-- a licence -->\n<topology version='2.0'>")
    assert (
        not looks_like_hwloc("Machine (P#0)") and not looks_like_hwloc("<system>") and not looks_like_hwloc("topology")
    )


HOSTILE = ["", "-1", "NaN", "9" * 30, "0x", "\u202e", "0000:zz:00.0", "0xf...f", "OSDev", "Bridge", "0302 [10de:1]"]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_hostile_attributes_are_read_or_refused_never_a_crash(rng: Random) -> None:
    parts = two_sockets(rng.choice(["1", "2.0", "3.0"])).split('"')
    for _ in range(rng.randint(1, 12)):
        parts[2 * rng.randrange(len(parts) // 2) + 1] = rng.choice(
            [*HOSTILE, parts[2 * rng.randrange(len(parts) // 2) + 1]]
        )
    try:
        topology = read('"'.join(parts))
    except SourceError as refusal:
        assert "\n" not in str(refusal)
    else:
        assert topology.gpu_count <= 5


def test_recorded_machines_are_read_as_expected() -> None:
    if not CORPUS.exists():
        pytest.skip(f"no recorded machines at {CORPUS}: NOTHING of real lstopo output is tested")
    for record in map(json.loads, CORPUS.read_text().splitlines()):
        text = (CORPUS.parent / record["file"]).read_bytes().decode("utf-8", "replace")
        is_xml = record["kind"] == "hwloc xml" and record["file"].endswith(".xml")
        assert looks_like_hwloc(text[:8192]) == is_xml, record["id"]
        if record["kind"] == "hwloc xml" and not is_xml:
            with pytest.raises(SourceError):
                read(text)
        if not is_xml:
            continue
        expected = record["expected"]
        topology = read(text)
        assert [s.pci_bus_id for s in topology.nodes[0].gpus] == expected["gpu_busids"]
        assert topology.gpu_count == expected["gpus"]
        assert len(numa_nodes(parse_xml(text, where=record["file"]))) == expected["numanodes"]
