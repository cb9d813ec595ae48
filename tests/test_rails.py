"""Rails follow the nearest RDMA NIC of each GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import node_of

from probe.rails import Rail, rails
from probe.sources.machines import machine
from probe.topology import Nic


def test_each_gpu_of_an_hgx_has_a_rail_of_its_own() -> None:
    assert rails(machine("hgx-h100").nodes[0].shape) == tuple(Rail(f"mlx5_{i}", (i,)) for i in range(8))


def test_gpus_under_one_switch_share_a_rail() -> None:
    found = rails(machine("l40s-8").nodes[0].shape)
    assert [r.gpus for r in found] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert not any(r.shared for r in found)


def test_nics_that_are_equally_near_are_shared_and_ethernet_is_no_rail() -> None:
    shape = node_of(2, 48).shape
    nics = (Nic("mlx5_0", link_layer="InfiniBand"), Nic("mlx5_1", label="NIC1"), Nic("eth0"))
    near = tuple(replace(g, nearest_nics=("mlx5_0", "mlx5_1", "eth0")) for g in shape.gpus)
    assert rails(replace(shape, nics=nics, gpus=near)) == (Rail("mlx5_0", (0, 1), True), Rail("mlx5_1", (0, 1), True))
    assert rails(shape) == ()


def test_a_rail_without_a_gpu_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="a rail has a GPU"):
        Rail("mlx5_0", ())
