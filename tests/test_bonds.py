"""One bond of several: a matrix shows two faults, and the audit tells both."""

from __future__ import annotations

from dataclasses import replace

import audit_cases as a
import pytest
from finding_cases import finding_of, findings_of

from probe.finding import Severity
from probe.topology import GpuRef, Notice, Topology

H100 = "NVIDIA H100 80GB HBM3"


def switched(n: int, weak: dict[int, int], **thin: int) -> Topology:
    """H100s behind a switch as `nvidia-smi topo -m` tells them; `_1_2=17` is a bond of its own."""
    own = {(int(bond[1]), int(bond[3])): links for bond, links in thin.items()}
    counts = {(x, y): min(weak.get(x, 18), weak.get(y, 18)) for x in range(n) for y in range(x + 1, n)} | own
    read = a.matrix(n, {bond: f"NV{links}" for bond, links in counts.items()})()
    assert isinstance(read, Topology)
    return a.with_gpus(read, lambda gpu: replace(gpu, name=H100))


@pytest.mark.parametrize("n", [4, 8])
def test_a_thin_bond_is_told_beside_a_gpu_with_links_down(n: int) -> None:
    gpu, bond = findings_of(switched(n, {3: 16}, _1_2=17), "degraded-links")
    assert (gpu.gpus, gpu.severity, gpu.value) == ((GpuRef(0, 3),), Severity.FAILURE, 16)
    assert (bond.gpus, bond.severity) == ((GpuRef(0, 1), GpuRef(0, 2)), Severity.WARNING)
    assert (bond.value, bond.bar) == (17, 18) and "1-2" in bond.seen


def test_a_thin_bond_alone_is_told_once() -> None:
    assert finding_of(switched(4, {}, _1_2=17), "degraded-links").gpus == (GpuRef(0, 1), GpuRef(0, 2))
    assert len(findings_of(switched(8, {3: 16}), "degraded-links")) == 1


def test_a_notice_of_bonds_is_left_out_only_where_each_has_an_accused_gpu() -> None:
    weak = a.active(a.plain("hgx-h100"), {3: 16}, 18)
    told = replace(weak, warnings=(Notice("degraded-links", "fewer links: 1-3 (NV16), 3-5 (NV16); look", 0),))
    assert len(findings_of(told, "degraded-links")) == 1
    more = replace(weak, warnings=(Notice("degraded-links", "fewer links: 1-3 (NV16), 1-2 (NV17); look", 0),))
    assert [f.gpus for f in findings_of(more, "degraded-links")] == [
        (GpuRef(0, 3),),
        (GpuRef(0, 1), GpuRef(0, 3), GpuRef(0, 2)),
    ]
