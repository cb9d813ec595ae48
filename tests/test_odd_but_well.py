"""Machines that look odd and are well: parts as containers and virtual machines are given them, boards built so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import audit_cases as a
import pytest
from finding_cases import finding_of, findings_of

from probe.finding import Severity
from probe.sources.host_state import HostState, with_host_state
from probe.topology import GpuRef, Nic, Notice, Path, PathKind, PcieLink, Topology


def part(whole: Topology, *kept: int) -> Topology:
    """These GPUs of a machine of one node, numbered anew."""
    node = whole.nodes[0]
    shape = node.shape
    gpus = tuple(replace(shape.gpus[k], index=i) for i, k in enumerate(kept))
    paths = tuple(shape.path(*pair) for pair in combinations(kept, 2))
    rows = tuple(shape.nic_paths[k] for k in kept) if shape.nic_paths else ()
    return a.with_node(
        whole,
        shape=replace(shape, gpus=gpus, paths=paths, nic_paths=rows),
        gpus=tuple(node.gpus[k] for k in kept),
    )


def graver_than_info(topology: Topology) -> list[str]:
    return [found.code for found in findings_of(topology) if found.severity is not Severity.INFO]


def links_up(topology: Topology, links: int | None) -> Topology:
    return a.with_gpus(topology, lambda gpu: replace(gpu, nvlinks_active=links, nvlinks_total=links and 6))


# --- NVLink ---


@pytest.mark.parametrize("active", [6, None])
@pytest.mark.parametrize("kept", [(0, 5), (0, 5, 6, 7)])
def test_gpus_of_a_cube_mesh_that_are_no_neighbours_are_well(kept: tuple[int, ...], active: int | None) -> None:
    found = finding_of(links_up(part(a.plain("dgx1-v100"), *kept), active), "nvlink-absent")
    assert found.severity is Severity.INFO and "fabricmanager" not in found.cure


def test_a_cube_mesh_without_nvlink_is_no_part_of_one() -> None:
    whole = links_up(a.plain("dgx1-v100"), None)
    for broken in (
        links_up(part(whole, 0, 5), 0),
        a.on_pcie(part(whole, 0, 1, 2, 3)),
        a.on_pcie(whole, lambda x, y: 3 in (x, y)),
    ):
        found = finding_of(broken, "nvlink-absent")
        assert found.severity is Severity.FAILURE and "fabricmanager" not in found.cure


def test_a_bridge_whose_other_end_was_not_granted_is_not_absent() -> None:
    bridged = a.active(a.plain("a100-pcie-pairs-8"), dict.fromkeys(range(8), 12), 12)
    found = finding_of(part(bridged, 0, 1, 2, 4), "bridge-absent")
    assert found.severity is Severity.INFO and found.gpus == (GpuRef(0, 2), GpuRef(0, 3))
    down = a.active(part(bridged, 0, 1, 2, 4), {2: 0, 3: 0}, 12)
    assert finding_of(down, "bridge-absent").severity is Severity.WARNING


def test_bridges_that_a_virtual_machine_does_not_see_are_no_fault() -> None:
    untold = part(a.active(a.plain("a100-pcie-pairs-8"), {}), 0, 1, 2, 4)
    untold = a.with_gpus(untold, lambda gpu: replace(gpu, nvlinks_active=None, nvlinks_total=None))
    assert graver_than_info(untold) == ["bridge-absent"]
    assert graver_than_info(a.with_node(untold, virtualization="passthrough")) == []


# --- PCIe and NICs ---


@pytest.mark.parametrize(
    ("narrow", "virtualization", "severity"),
    [
        (range(8), None, Severity.INFO),
        (range(7), None, Severity.WARNING),
        ((3,), "passthrough", Severity.INFO),
    ],
)
def test_lanes_that_all_equal_gpus_lack_are_how_the_machine_is_built(
    narrow: Sequence[int], virtualization: str | None, severity: Severity
) -> None:
    """As clouds wire A10G and L4: 8 lanes each."""
    machine = a.port(a.port(a.plain("l4-8"), a.X16), PcieLink(1, 4, 8, 16), *narrow)
    found = finding_of(a.with_node(machine, virtualization=virtualization), "pcie-narrow")
    assert (found.severity, len(found.gpus)) == (severity, len(narrow))


def test_a_single_narrow_gpu_has_no_equal_that_would_excuse_it() -> None:
    assert finding_of(a.port(a.plain("l4-1"), PcieLink(4, 4, 4, 16)), "pcie-narrow").severity is Severity.WARNING


def test_a_port_that_no_gpu_sends_through_may_be_unplugged() -> None:
    """As a DGX H100 has it: a NIC for each GPU, and others for storage."""
    storage = with_storage_ports(a.plain("hgx-h100"), "active", "down", "active", "down")
    found = finding_of(storage, "nic-down")
    assert (found.severity, found.nics) == (Severity.INFO, ("mlx5_9", "mlx5_11"))
    beside = a.with_nics(storage, lambda i, nic: replace(nic, state="down") if i == 5 else nic)
    graver, idle = findings_of(beside, "nic-down")
    assert (graver.severity, graver.nics) == (Severity.WARNING, ("mlx5_5",)) and idle.nics == found.nics


def with_storage_ports(topology: Topology, *states: str) -> Topology:
    shape = topology.nodes[0].shape
    ports = tuple(Nic(f"mlx5_{8 + i}", None, 400.0, "InfiniBand", state) for i, state in enumerate(states))
    rows = tuple((*row, *(Path(PathKind.NODE) for _ in ports)) for row in shape.nic_paths)
    return a.with_node(topology, shape=replace(shape, nics=(*shape.nics, *ports), nic_paths=rows))


@pytest.mark.parametrize(("rate", "is_found"), [(None, False), (1.0, True)])
def test_a_nic_of_unknown_rate_on_the_gpus_socket_may_be_theirs(rate: float | None, is_found: bool) -> None:
    """As lstopo tells a machine with EFA: neither rate nor link layer; two InfiniBand ports are on one socket alone."""

    def changed(i: int, nic: Nic) -> Nic:
        return replace(nic, label=None, speed_gbps=rate if i < 2 else None, link_layer=None if i < 2 else "InfiniBand")

    assert bool(findings_of(a.with_nics(a.plain("l40s-8"), changed), "nic-far")) is is_found


# --- how many GPUs ---


@pytest.mark.parametrize(
    ("gpus", "container", "requested", "virtualization", "severity"),
    [
        (3, "kubernetes", "0,1,2", "bare", Severity.INFO),
        (6, "kubernetes", "void", "bare", Severity.INFO),
        (7, "docker", "0,1,2,3,4,5,6", "bare", Severity.INFO),
        (7, "docker", "all", "bare", Severity.WARNING),
        (3, None, None, "passthrough", Severity.INFO),
        (7, None, None, "passthrough", Severity.WARNING),
        (3, None, None, "bare", Severity.WARNING),
    ],
)
def test_gpus_that_were_not_granted_are_not_missing(
    gpus: int, container: str | None, requested: str | None, virtualization: str, severity: Severity
) -> None:
    node = a.with_node(a.plain(f"hgx-h100-{gpus}"), virtualization=virtualization)
    granted = with_host_state(node, HostState(container=container, requested_gpus=requested))
    assert finding_of(granted, "gpus-missing").severity is severity
    assert not findings_of(granted, "container-sees-part"), "told once"


def test_a_source_that_knows_how_many_gpus_there_are_is_believed() -> None:
    listed = replace(a.plain("hgx-h100-3"), warnings=(Notice("gpus-missing", "the machine has 8, the file 3", 0),))
    assert finding_of(a.with_node(listed, virtualization="passthrough"), "gpus-missing").severity is Severity.WARNING
