"""How much of what links carry a collective reaches, and below which share of that something is wrong. Data, pure."""

from __future__ import annotations

from dataclasses import dataclass

from probe.topology import PathKind, require


@dataclass(frozen=True, slots=True)
class Reach:
    """`usual`: the share of the links' bandwidth. `bar`: the share of that which must be there."""

    usual: float
    bar: float

    def __post_init__(self) -> None:
        require(0 < self.bar <= 1 and self.usual > 0, "a bar is not above what is usual, and above nothing")

    def of(self, other: Reach) -> Reach:
        return Reach(self.usual * other.usual, self.bar * other.bar)


_RING = {
    (8, 0): (0.825, 0.92, 0.98),
    (9, 0): (0.867, 0.95, 1.0),
    (10, 0): (0.76, 0.89, 0.96),
}
"""Of links x NCCL's figure per link, an all-reduce without NVLS on 2, 4, 8 GPUs, as large messages approach it.
A100: 197, 222, 235 of 240 GB/s (aiconfigurator's nccl_perf tables; NCCL, tuning.cc, caps an 8-GPU A100 at 235). H100
and H200: 328, 358, 370 of 371 (the same tables; ring on 8: 368). B200: 547, 647, 682 of 722."""
RING_BAR = 0.97
"""Azure's health checks (azurehpc-health-checks, conf/): 228 of 235 on 8 A100, 193 of 198 and 208 of 214 on pairs."""

_OTHER_RING = (0.82, 0.92, 1.0)
OTHER_BAR = 0.91
"""Of links whose GPUs no public table covers, and of links that lead straight to each peer: Azure's 110 of the 120
that six NVLinks of a V100 carry (ND40rs v2)."""

UNEVEN_BAR = 0.7
"""Assumed of direct links that are not as many at each GPU: rings may not use all of them."""

NVLS_PAYLOAD = 5 / 6
"""Bytes that an all-reduce in the switch moves per byte of the links, by NCCL's own model (src/graph/tuning.cc, 2.18
to 2.27), which makes 460 GB/s busbw of 8 H100: Azure's threshold for them (ND H100 v5). It is the bar."""
NVLS_USUAL = 1.05
"""Over that: 480 of 460 on 8 H100 and 482 on 8 H200; 846 of 779 on 8 B200."""
NVLS_LEAST_RANKS = 8
"""NCCL's default choice is unknown of fewer: a ring on 4 H100 is as fast (350 of 378, aiconfigurator)."""

OPERATIONS = {
    "all_reduce": Reach(1.0, 1.0),
    "all_gather": Reach(0.9, 0.85),
    "reduce_scatter": Reach(0.9, 0.85),
    "all_to_all": Reach(0.85, 0.85),
    "p2p": Reach(0.95, 0.85),
}
"""Beside an all-reduce of the same group. On 2, 4, 8 H100 an all-gather reached 0.81, 0.92, 0.93 of it, an all-to-all
0.88, 0.82, 0.88 (aiconfigurator); on PCIe 0.84 to 0.98, and 0.67 to 1.1. A pair's sendrecv_perf on A100: 195 of 197."""

PCIE_BARS = {PathKind.PIX: 0.65, PathKind.PXB: 0.65, PathKind.PHB: 0.4, PathKind.NODE: 0.4, PathKind.SYS: 0.25}
"""Of what NCCL counts on, by path. Under one switch public figures are 0.8 and more of it (L40S 20.1 of 24, RTX PRO
6000 38.6 of 48), and ACS halves them. Through host bridges good hosts of the same boards are twofold apart (24.7 and
41.1 of 48), and the bad one had 0.06 to 0.22 (L40S, 1.4 to 5.2 of 24). Between sockets NCCL counts 6 to 40 GB/s,
whatever the CPU (topo.h: BDW_QPI_BW to ERP_QPI_BW), so little is sure."""

HOST_BAR = 0.25
"""Of copies that go through host memory: the least of the above."""

NETWORK_BAR = 0.75
"""Of the NICs: Azure's loopback all-reduce, 18 of 24 GB/s per 200 Gbit/s and 40 of 48 per 400 (azurehpc-health-
checks, check_nccl_allreduce_ib_loopback)."""

FILL_S, FILL_PER_RANK_S = 100e-6, 15e-6
"""What a transfer of any size may lose while buffers fill: 24 to 127 us on 2 to 8 A100, H100 and B200 between 64 and
512 MiB (aiconfigurator, vidur). Allowed for: 130 us on 2 GPUs, 220 on 8."""
FILL_OF_NETWORK_S = 500e-6
"""The same between nodes, beside it: 16 H100, 32 B200 and 16 A100 over EFA lost 0.3, 0.5 and 1.1 ms
(awsome-distributed-training, ml-engineering)."""


def nvlink_reach(capability: tuple[int, int] | None, ranks: int, *, is_switched: bool) -> Reach:
    """Of an all-reduce without NVLS over NVLink; between the ranks of the tables in proportion."""
    table = _RING.get(capability or (0, 0))
    shares = table or _OTHER_RING
    known = table is not None and (is_switched or ranks == 2)
    if ranks <= 4:
        usual = shares[0] + (shares[1] - shares[0]) * (ranks - 2) / 2
    else:
        usual = shares[1] + (shares[2] - shares[1]) * (min(ranks, 8) - 4) / 4
    return Reach(usual, RING_BAR if known else OTHER_BAR)
