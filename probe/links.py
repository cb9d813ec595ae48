"""What links carry by public figures: the constants that the cost model and the audit share. Data, no I/O."""

from __future__ import annotations

NVLINK_KERNEL_GBPS = {(6, 0): 18.0, (7, 0): 20.0, (8, 0): 20.0, (8, 6): 12.0, (9, 0): 20.6, (10, 0): 40.1}
"""What NCCL's kernels move through one NVLink in one direction, GB/s by compute capability: SM60_NVLINK_BW to
SM100_NVLINK_BW of github.com/NVIDIA/nccl, src/graph/topo.h (2026). About 80 % of the wire."""

_BY_VERSION = {1.0: (6, 0), 2.0: (7, 0), 3.0: (8, 0), 4.0: (9, 0), 5.0: (10, 0)}
"""Compute capability of the first GPUs with a version of NVLink."""

NVLS_EFFICIENCY = {9: 0.85, 10: 0.74}
"""Of the above, what reductions inside the NVSwitch reach, by major compute capability: nvlsEfficiency of NCCL
(src/graph/tuning.cc, 2026). Elsewhere there are none."""

XGMI_KERNEL_GBPS = {"mi210": 36.0, "mi250x": 36.0, "mi300x": 48.0, "mi325x": 48.0, "mi355x": 48.0}
"""The same per xGMI link, by catalog key: MI200_XGMI_WIDTH to GFX95X_XGMI_WIDTH of RCCL (ROCm/rccl, src/graph/
topo.h)."""

PCIE_EFFICIENCY = 12 / 15.754
"""Of a PCIe link after line coding, what NCCL counts on: 12 GB/s of a Gen3 x16 (PCI_BW of its src/graph/topo.h), so
24 of a Gen4 and 48 of a Gen5."""

NIC_EFFICIENCY = 0.96
"""Of a NIC's line rate: 12 GB/s of 100 Gbit/s (NET_BW of the same file), 24 of 200, 46 to 48 of 400."""

STAGED_IN_HOST_MEMORY = 0.5
"""Left of PCIe where the driver offers no peer access over it, as on GeForce boards since Ampere: NCCL then passes
each byte through host memory, so the root complex carries it twice (NCCL, transport/shm.cc)."""

LIBRARY_ALPHA_S = {"NVLINK": (4.7e-6, 1.6e-6), "PCIE": (4.5e-6, 2.6e-6), "NET": (15e-6, 2.6e-6)}
"""(alpha at no rank, alpha per rank) of NCCL. NVLink: 7.1, 10.6, 17.4 us on 2, 4, 8 H100. PCIe: 8.6, 14, 24 us on
L40S, 6.8, 13.6, 26.9 us on RTX PRO 6000. Network: 41 us median of small all-reduces on 2 GPUs of two nodes (vidur)."""

MATRIX_EFFICIENCY = 0.78
"""Of the vendor's dense peak, what the best large product reaches: DeepGEMM's 1,550 TFLOPS in FP8 on an H800, whose
peak is 1,979 (github.com/deepseek-ai/DeepGEMM, README, 2025)."""


def nvlink_kernel_gbps(capability: tuple[int, int] | None, version: float | None) -> float | None:
    """Per link and direction, in 1e9 bytes/s, as NCCL counts it; by the link's version where no GPU is known."""
    known = capability or _BY_VERSION.get(version or 0.0)
    if known is None:
        return None
    # As ncclTopoNVLinkBw chooses: 8.6 alone is narrow, and a capability between two has that below it.
    older = [own for own in NVLINK_KERNEL_GBPS if own <= known and (own != (8, 6) or known == (8, 6))]
    return NVLINK_KERNEL_GBPS[max(older)] if older else None
