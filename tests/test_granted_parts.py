"""A part of a machine, as containers and virtual machines are given it, is not accused of what it was not given."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import audit_cases as a
import pytest
from finding_cases import finding_of, findings_of

from probe.finding import Severity
from probe.topology import GpuRef, Topology


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
