"""The codes of the measured side: bandwidth, transports, rates, and what was not measured. Data."""

from __future__ import annotations

from probe.checks.code import Code
from probe.finding import Severity

CODES_MEASURED: dict[str, Code] = {
    "below-expectation": Code(
        Severity.FAILURE,
        "Bandwidth below the bar of its wires",
        "A group of GPUs moves less than its active links, its PCIe ports or its NICs should give. Each message size "
        "is judged alone, by its best round. It is a failure where the largest size misses its bar in two rounds, a "
        "warning where it was seen once, or only smaller sizes miss theirs, or only NVLS may be missing.",
        "A curve of the survey against active links x NCCL's figure per link x what such groups reach; PCIe and "
        "network by generation, width and line rate.",
        "Compare pair by pair (`wirelore measure --every-pair`); look for inactive links, ACS, a narrow PCIe slot, "
        "throttling and other processes.",
        "NVIDIA/nccl src/graph/topo.h; Azure/azurehpc-health-checks (thresholds; retry before draining a node); "
        "nccl-tests doc/PERFORMANCE.md",
    ),
    "below-good-hosts": Code(
        Severity.INFO,
        "PCIe through this host is slower than through good ones",
        "The group is within what hosts make of PCIe, but other hosts with the same boards reach much more.",
        "A curve over host bridges below 70 % of what NCCL counts on for such a port.",
        "Look at the firmware's settings for PCIe (NUMA per socket, relaxed ordering, ACS) and at NCCL_MIN_NCHANNELS.",
        "Public all-reduce tables of RTX PRO 6000 and L40S boxes: the same boards are up to twofold apart",
    ),
    "slow-start": Code(
        Severity.WARNING,
        "Small messages take far too long",
        "Decode steps send small all-reduces, whose time is start-up alone; here it is several times the usual one.",
        "The best round of all-reduces up to 32 KiB, over five times public figures for this number of GPUs.",
        "Look for a busy CPU, a power-saving governor, ranks far from their GPU's NUMA node, or a debug build of NCCL.",
        "Public small-message tables (aiconfigurator, vidur)",
    ),
    "slower-than-siblings": Code(
        Severity.WARNING,
        "Slower than equal groups",
        "Groups or pairs with the same paths and models should be equally fast, and these are not.",
        "Curves with equal keys at their largest common size: more than 5 % apart and beyond their confidence.",
        "Look at what these GPUs share: a link (`nvidia-smi nvlink -s`), a switch, a riser, a socket, a neighbour.",
        "nccl-tests#376 and nvbandwidth: a matrix of pairs with the slow ones marked",
    ),
    "asymmetric-bandwidth": Code(
        Severity.WARNING,
        "One direction of a pair is slower",
        "Links carry the same both ways; a pair whose way back is faster has a degraded lane or a detour.",
        "The forward and the backward curve of a pair at their largest common size, more than 10 % apart.",
        "Reseat the bridge, board or riser; look at link errors (`nvidia-smi nvlink -e`) and PCIe replays.",
        "NVIDIA/nvbandwidth: separate matrices for read and write",
    ),
    "p2p-slower-than-host": Code(
        Severity.WARNING,
        "P2P is slower than no P2P",
        "Peer access should save a copy. Where ACS or a host bridge gets in its way, host memory is the faster way.",
        "The curves of a pair with P2P and with NCCL_P2P_DISABLE=1 at their largest common size.",
        "Disable ACS on the PCIe switches, or serve with NCCL_P2P_DISABLE=1 (or NCCL_P2P_LEVEL=PXB).",
        "NVIDIA/nccl#814 (9.9 GB/s with P2P, 22 without); NVIDIA/nccl-tests#112",
    ),
    "p2p-fails-check": Code(
        Severity.FAILURE,
        "P2P loses data or hangs",
        "The driver offers peer access, and what was written is not what was read back: results would be wrong.",
        "Copies and stores of every pair, written and read back in a process of their own.",
        "Turn ACS off or set the IOMMU to passthrough (iommu=pt); until then serve with NCCL_P2P_DISABLE=1.",
        "vllm-project/vllm#51513; NVIDIA NCCL user guide, troubleshooting (PCI access control)",
    ),
    "nccl-not-peer-to-peer": Code(
        Severity.FAILURE,
        "NCCL does not use P2P where it could",
        "NVLink or a PCIe switch joins these GPUs, and NCCL moved their data through host memory or the network.",
        "The transports of NCCL's own log: SHM or NET, where P2P belongs.",
        "Unset NCCL_P2P_DISABLE and NCCL_P2P_LEVEL; in containers share IPC and /dev/shm; look at Fabric Manager.",
        "NVIDIA NCCL user guide, environment variables; dstackai/dstack#1167",
    ),
    "nccl-over-sockets": Code(
        Severity.FAILURE,
        "NCCL goes through TCP sockets beside RDMA NICs",
        "Between nodes NCCL took sockets although there are InfiniBand or RoCE devices: a fraction of their bandwidth.",
        "The transports of NCCL's own log: NET/Socket.",
        "Mount /dev/infiniband into the container, install libibverbs (or the provider's plugin), unset "
        "NCCL_IB_DISABLE, check NCCL_IB_HCA and the memlock limit.",
        "NVIDIA/nccl#1447; NVIDIA NCCL user guide, troubleshooting (InfiniBand)",
    ),
    "no-gpudirect-rdma": Code(
        Severity.WARNING,
        "No GPUDirect RDMA",
        "A NIC stands under the GPU's PCIe switch, and its data still pass through host memory.",
        "The transports of NCCL's own log: NET/IB without GDRDMA on every channel.",
        "Load nvidia-peermem (or use a kernel with DMA-BUF), check NCCL_NET_GDR_LEVEL, disable ACS.",
        "NVIDIA NCCL user guide, NCCL_NET_GDR_LEVEL; NVIDIA GPUDirect RDMA documentation",
    ),
    "wrong-nic": Code(
        Severity.WARNING,
        "Another NIC than the nearest",
        "NCCL sent through NICs that are nearest to none of the GPUs: a detour over host bridges, or a wrong network.",
        "The NICs of NCCL's own log against the paths between GPUs and NICs.",
        "Name the right ones in NCCL_IB_HCA (or NCCL_SOCKET_IFNAME), or leave both unset.",
        "NVIDIA/nccl#1447",
    ),
    "numa-remote-nic-used": Code(
        Severity.WARNING,
        "A NIC of the other socket",
        "Every byte to and from this NIC crosses the link between the sockets, which all GPUs share.",
        "The NICs of NCCL's own log, each way to them being SYS.",
        "Name NICs of the GPUs' own socket in NCCL_IB_HCA, or take GPUs beside the NIC.",
        "NVIDIA NCCL user guide, NCCL_IB_HCA; NCCL, src/graph/topo.h (bandwidth between sockets)",
    ),
    "nics-unused": Code(
        Severity.WARNING,
        "NICs stand idle",
        "All GPUs of the node sent over the network, and some of the NICs nearest to them carried nothing.",
        "The NICs of NCCL's own log against the nearest ones of the GPUs that took part.",
        "Check the ports' state and cables, NCCL_IB_HCA, and that the container sees every device.",
        "NVIDIA NCCL user guide, NCCL_IB_HCA",
    ),
    "nvls-absent": Code(
        Severity.WARNING,
        "No reductions in the NVSwitch",
        "This switch can reduce on its way (NVLS), large all-reduces then take a quarter less time; NCCL did not. "
        "Where somebody switched it off (NCCL_NVLS_ENABLE=0) it is an info.",
        "NCCL's own log: multicast not available, or rings chosen for large all-reduces on 8 GPUs and more.",
        "Use NCCL 2.18 or newer with Fabric Manager running, leave NCCL_NVLS_ENABLE and NCCL_ALGO unset; a partition "
        "of a shared switch may not offer it.",
        "NVIDIA NCCL user guide, NCCL_NVLS_ENABLE; NCCL, src/graph/tuning.cc",
    ),
    "several-libraries": Code(
        Severity.WARNING,
        "Figures of several versions of NCCL",
        "Parts of the survey were measured with different libraries, so they are not one machine's figures.",
        "The library's version in the keys of the curves.",
        "Install one version everywhere and measure again with --fresh.",
        "NVIDIA/nccl release notes: algorithms and tuning change between versions",
    ),
    "rate-below-catalog": Code(
        Severity.WARNING,
        "A GPU far below its data sheet",
        "Its memory or its matrix units are much slower than the vendor's figure for this model.",
        "Measured hbm and gemm rates against the catalog; products against the lower of peak and memory (roofline).",
        "Look for throttling, a power limit, other processes, and that the name is that of the board.",
        "The vendor's data sheet, named in the finding; BabelStream; DeepGEMM",
    ),
    "rate-below-siblings": Code(
        Severity.WARNING,
        "A GPU slower than its equals",
        "The slowest GPU sets the pace of every group that it is in.",
        "Measured rates of one model: more than 5 % below the median, copies to and from the host 20 %.",
        "Look for heat, power limits, remapped memory and other processes on it; swap it with a neighbour to see what "
        "moves.",
        "A collective ends when its slowest rank does (nccl-tests, doc/PERFORMANCE.md)",
    ),
    "pcie-slow-under-load": Code(
        Severity.WARNING,
        "PCIe slower under load than its port",
        "Copies to or from the host run far below what the port's generation and width carry: a link that trained "
        "down, or a host that can't keep up.",
        "Measured h2d and d2h against the port, shared where GPUs stand under one switch.",
        "Look at `nvidia-smi -q -d PCIE` while it copies; reseat the board or riser, and set the slot's speed in the "
        "firmware.",
        "PCI Express Base Specification; Azure/azurehpc-health-checks, check_gpu_bw",
    ),
    "unmeasured-groups": Code(
        Severity.WARNING,
        "Groups without figures",
        "The topology has kinds of groups that a measurement takes and this survey has not: nothing is known of them.",
        "What `wirelore measure --dry-run` plans against the curves of the survey.",
        "Measure again (`wirelore measure`), over all nodes where the network is missing.",
        "NVIDIA/DCGM and node health checks: a gate fails closed on missing data",
    ),
    "too-small-to-judge": Code(
        Severity.WARNING,
        "No message was large enough",
        "Bandwidth was still rising at the largest size, so a slow link could hide behind start-up time.",
        "Curves whose largest message takes less to move than buffers take to fill.",
        "Measure larger messages: --largest 1GiB, and a longer --budget.",
        "nccl-tests: bandwidth is read at large sizes, never from an average over all",
    ),
    "no-expectation": Code(
        Severity.INFO,
        "Nobody says what such wires give",
        "The model, its links or the speed of its NICs is unknown, so these curves are only compared with each other.",
        "No public figure for the group's paths.",
        "Name the model (--gpu-model) where the source does not tell it.",
        "The catalog: docs/hardware.md",
    ),
    "unstable-figures": Code(
        Severity.INFO,
        "Figures that vary",
        "Some figures drift, have two levels or many outliers: they are known less well than others.",
        "Intervals and rounds of the curves.",
        "Measure longer (--budget 60s) on an idle machine.",
        "docs/measure.md tells how intervals are formed",
    ),
    "lab-survey": Code(
        Severity.INFO,
        "Figures of a rehearsal",
        "CPU processes stood in for the GPUs: nothing is said of these GPUs' wires.",
        "The survey was measured with gloo on a described machine.",
        "Measure on the machine itself.",
        "docs/measure.md",
    ),
}
