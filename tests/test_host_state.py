"""The host's settings: read from trees as Linux lays them out, and said only where they get in the way."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_host import ACCELERATOR, DISPLAY, Tree

from probe.sources.host_state import (
    HostState,
    acs_redirects,
    host_notices,
    of_the_node,
    read_host_state,
    with_host_state,
)
from probe.sources.machines import machine
from probe.topology import Fabric, FabricState, Notice, Topology

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNTOUCHED = HostState(
    shm_bytes=64 * GIB, memlock_bytes=-1, has_rdma=True, gpu_bus_ids=("0000:17:00.0", "0000:18:00.0"),
    iommu="passthrough", acs_redirecting=(), imex_channels=(),
)  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def gpu(tree: Tree, route: str, *, vendor: str = "0x10de", group: int | None = None, kind: str = "DMA") -> None:
    home = tree.pci(route, kind=DISPLAY if vendor == "0x10de" else ACCELERATOR)
    tree.write(f"{home}/vendor", vendor)
    if group is not None:
        tree.write(f"sys/kernel/iommu_groups/{group}/type", kind)
        tree.link(f"{home}/iommu_group", f"sys/kernel/iommu_groups/{group}")


def config(*capabilities: tuple[int, bytes], size: int = 4096) -> bytes:
    """A configuration space with these extended capabilities, 0x40 bytes each."""
    space = bytearray(4096)
    for n, (number, body) in enumerate(capabilities):
        at, following = 0x100 + 0x40 * n, 0x100 + 0x40 * (n + 1) if n + 1 < len(capabilities) else 0
        space[at : at + 4] = (number | 1 << 16 | following << 20).to_bytes(4, "little")
        space[at + 4 : at + 4 + len(body)] = body
    return bytes(space[:size])


def acs(control: int) -> tuple[int, bytes]:
    return 0x0D, bytes((0x5F, 0, control, 0))


AER = (0x01, b"\xff" * 32)


def codes(state: HostState) -> list[str]:
    return [n.code for n in host_notices(state)]


def message(state: HostState) -> str:
    (notice,) = host_notices(state)
    return notice.message


def plain(name: str) -> Topology:
    """A synthetic machine without its note that it is one."""
    return replace(machine(name), warnings=())


def in_domain(topology: Topology) -> Topology:
    (node,) = topology.nodes
    fabric = Fabric(FabricState.COMPLETED, 0, "5b37010e-fb0b-4b1c-8d4b-0a6e6b3ac001", 7)
    return replace(topology, nodes=(replace(node, gpus=tuple(replace(g, fabric=fabric) for g in node.gpus)),))


# ---- reading --------------------------------------------------------------------------------------------------------


def test_an_empty_root_tells_nothing_and_says_nothing(tmp_path: Path) -> None:
    state = read_host_state(tmp_path, environ={})
    assert state == HostState()
    assert host_notices(state) == ()


def test_this_machine_is_read_without_failing() -> None:
    for notice in host_notices(read_host_state()):
        assert notice.code and notice.message.endswith((".", ")"))


@pytest.mark.parametrize(("limit", "expected"), [("8388608", 8 * MIB), ("unlimited", -1), ("many", None)])
def test_locked_memory(tree: Tree, limit: str, expected: int | None) -> None:
    rows = "Limit                     Soft Limit           Hard Limit           Units     \n"
    rows += (
        f"Max locked memory         {limit:<20} {'unlimited':<20} bytes     \nMax file locks  unlimited unlimited locks"
    )
    tree.write("proc/self/limits", rows)
    assert read_host_state(tree.root, environ={}).memlock_bytes == expected


def test_shared_memory_is_the_size_of_its_file_system(tree: Tree) -> None:
    (tree.root / "dev/shm").mkdir(parents=True)
    found = os.statvfs(tree.root)
    assert read_host_state(tree.root, environ={}).shm_bytes == found.f_blocks * found.f_frsize


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("DMA", "translated"), ("DMA-FQ", "translated"), ("identity", "passthrough"), ("blocked", None)],
)
def test_the_kernel_tells_the_iommu_of_each_gpu(tree: Tree, kind: str, expected: str | None) -> None:
    gpu(tree, "pci0000:16/0000:16:01.0/0000:17:00.0", group=3, kind=kind)
    gpu(tree, "pci0000:00/0000:00:02.0", vendor="0x1a03", group=4, kind="DMA")  # the BMC's own display
    state = read_host_state(tree.root, environ={})
    assert (state.iommu, state.gpu_bus_ids) == (expected, ("0000:17:00.0",))


@pytest.mark.parametrize(
    ("cmdline", "groups", "expected"),
    [
        ("quiet intel_iommu=on iommu=pt", True, "passthrough"),
        ("quiet intel_iommu=on", True, "translated"),
        ("intel_iommu=off", True, "off"),
        ("quiet", True, None),
        ("quiet intel_iommu=on", False, "off"),
    ],
)
def test_where_the_kernel_tells_no_type_its_command_line_does(
    tree: Tree, cmdline: str, groups: bool, expected: str | None
) -> None:
    tree.write("proc/cmdline", f"BOOT_IMAGE=/vmlinuz {cmdline}")
    (tree.root / "sys/kernel/iommu_groups" / ("0" if groups else "")).mkdir(parents=True)
    assert read_host_state(tree.root, environ={}).iommu == expected


def test_acs_is_read_of_the_bridges_above_gpus_only(tree: Tree) -> None:
    gpu(tree, "pci0000:16/0000:16:01.0/0000:17:00.0/0000:18:00.0/0000:19:00.0")
    controls = {"16:01.0": 0x00, "17:00.0": 0x1D, "18:00.0": 0x11, "30:01.0": 0x1D}
    tree.pci("pci0000:30/0000:30:01.0", kind="0x060400")
    for name, control in controls.items():
        folder = tree.root / f"sys/bus/pci/devices/0000:{name}"
        if not folder.exists():
            folder.mkdir(parents=True)
        (folder / "config").write_bytes(config(AER, acs(control)))
    assert read_host_state(tree.root, environ={}).acs_redirecting == ("0000:17:00.0",)
    for name in controls:
        (tree.root / f"sys/bus/pci/devices/0000:{name}/config").write_bytes(config(AER, acs(0x1D), size=64))
    assert read_host_state(tree.root, environ={}).acs_redirecting is None, "without root 64 bytes are all there is"


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (config(acs(0x04)), True),
        (config(acs(0x08)), True),
        (config(AER, AER, acs(0x1D)), True),
        (config(AER, acs(0x01 | 0x10 | 0x40)), False),
        (config(AER), False),
        (bytes(4096), False),
        (b"\xff" * 4096, None),
        (config(acs(0x1D), size=256), None),
        (b"", None),
    ],
)
def test_acs_redirects(space: bytes, expected: bool | None) -> None:
    assert acs_redirects(space) is expected


def test_a_list_of_capabilities_that_never_ends_is_left() -> None:
    space = bytearray(config(AER))
    space[0x102:0x104] = (0x100 << 4 | 1).to_bytes(2, "little")  # the next is itself
    assert acs_redirects(bytes(space)) is None


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.binary(max_size=64).map(lambda seed: (seed * 4096)[:4096]))
def test_any_configuration_space_gives_an_answer(space: bytes) -> None:
    assert acs_redirects(space) in (True, False, None)


@pytest.mark.parametrize(
    ("file", "text", "environ", "kind"),
    [
        (".dockerenv", "", {}, "docker"),
        ("run/.containerenv", "", {}, "podman"),
        ("proc/1/cgroup", "0::/kubepods/burstable/pod1", {}, "kubernetes"),
        ("proc/1/cgroup", "1:name=systemd:/docker/0123abcd", {}, "docker"),
        ("proc/1/cgroup", "1:cpu:/lxc/box", {}, "lxc"),
        ("proc/1/cgroup", "0::/init.scope", {}, None),
        (".dockerenv", "", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
    ],
)
def test_containers(tree: Tree, file: str, text: str, environ: dict[str, str], kind: str | None) -> None:
    tree.write(file, text)
    state = read_host_state(tree.root, environ={**environ, "NVIDIA_VISIBLE_DEVICES": "0,1"})
    assert (state.container, state.requested_gpus) == (kind, "0,1" if kind else None)


def test_imex_channels(tree: Tree) -> None:
    (tree.root / "dev").mkdir()
    assert read_host_state(tree.root, environ={}).imex_channels == ()
    for name in ("channel0", "channel12", "channel2", "other"):
        tree.write(f"dev/nvidia-caps-imex-channels/{name}", "")
    assert read_host_state(tree.root, environ={}).imex_channels == (0, 2, 12)


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_a_host_as_it_should_be_is_no_news() -> None:
    assert host_notices(UNTOUCHED) == ()
    topology = plain("machine:hgx-h100")
    assert with_host_state(topology, UNTOUCHED) == topology


def test_small_shared_memory_has_the_cure_of_its_container() -> None:
    for container, cure in ((None, "remount"), ("kubernetes", "emptyDir"), ("docker", "--shm-size")):
        small = replace(UNTOUCHED, shm_bytes=64 * MIB, container=container)
        assert "64 MiB" in message(small) and cure in message(small)
    assert codes(replace(UNTOUCHED, shm_bytes=GIB)) == []


def test_locked_memory_matters_to_rdma_only() -> None:
    limited = replace(UNTOUCHED, memlock_bytes=8 * MIB)
    assert "only 8 MiB" in message(limited)
    assert codes(replace(limited, has_rdma=False)) == []


def test_iommu_and_acs_matter_between_gpus() -> None:
    bridges = tuple(f"0000:{n:02x}:00.0" for n in range(6))
    state = replace(UNTOUCHED, iommu="translated", acs_redirecting=bridges)
    assert codes(state) == ["iommu-translated", "acs-redirects"]
    assert "6 PCI bridges (0000:00:00.0," in host_notices(state)[1].message
    assert "and 2 more" in host_notices(state)[1].message
    assert codes(replace(state, gpu_bus_ids=("0000:17:00.0",))) == []


@pytest.mark.parametrize(
    ("container", "requested", "said"),
    [
        ("docker", "all", ["container-sees-all"]),
        (None, "all", []),
        ("kubernetes", "0,1", ["gpu-count-differs"]),
        ("docker", "GPU-0a1b,GPU-0a1c,GPU-0a1d,GPU-0a1e", []),
        ("docker", "0:0,0:1", []),
        ("docker", "MIG-0a1b", []),
        ("kubernetes", "void", []),
        ("docker", "", []),
    ],
)
def test_what_a_container_was_given_against_what_it_sees(
    container: str | None, requested: str, said: list[str]
) -> None:
    state = replace(UNTOUCHED, container=container, requested_gpus=requested)
    topology = with_host_state(plain("machine:3090-bridges-4"), state)
    assert [(w.code, w.node) for w in topology.warnings] == [(code, 0) for code in said]


@pytest.mark.parametrize(
    ("gpus", "requested", "is_told"),
    [(3, "0,1,2", True), (7, "0,1,2,3,4,5,6", True), (3, "void", True), (7, "void", False), (4, "void", False)],
)
def test_a_container_with_a_part_of_the_gpus_says_so(gpus: int, requested: str, is_told: bool) -> None:
    state = replace(UNTOUCHED, container="kubernetes", requested_gpus=requested)
    told = [w.code for w in with_host_state(plain(f"machine:hgx-h100-{gpus}"), state).warnings]
    assert told == ["container-sees-part"] * is_told


def test_nothing_is_said_twice() -> None:
    topology = plain("machine:3090-bridges-4")
    warned = replace(topology, warnings=(Notice("container-sees-all", "in a pod", node=0),))
    assert with_host_state(warned, replace(UNTOUCHED, container="docker", requested_gpus="all")) == warned


def test_a_multi_node_nvlink_domain_needs_an_imex_channel() -> None:
    tray = in_domain(plain("machine:hgx-h100"))
    assert [w.code for w in with_host_state(tray, UNTOUCHED).warnings] == ["imex-channel-missing"]
    assert with_host_state(tray, replace(UNTOUCHED, imex_channels=(0,))) == tray
    assert with_host_state(tray, replace(UNTOUCHED, imex_channels=None)) == tray, "unknown is no finding"


def test_a_look_at_the_node_leaves_out_what_is_only_the_lookers() -> None:
    inside = replace(
        UNTOUCHED, container="kubernetes", shm_bytes=64 * MIB, memlock_bytes=64 * KIB, requested_gpus="all",
        iommu="translated", acs_redirecting=("0000:16:00.0",),
    )  # fmt: skip
    assert {n.code for n in host_notices(inside)} > {"shm-small", "memlock-limited", "container-sees-all"}
    assert {n.code for n in host_notices(of_the_node(inside))} == {"iommu-translated", "acs-redirects"}
    on_the_host = replace(inside, container=None, requested_gpus=None)
    assert {n.code for n in host_notices(of_the_node(on_the_host))} == {
        "shm-small", "iommu-translated", "acs-redirects",
    }  # fmt: skip
