"""Codes of the wires: NVLink, NVSwitch fabric, PCIe, P2P and NICs. Data."""

from __future__ import annotations

from probe.checks.code import Code
from probe.finding import Severity

CODES_LINKS: dict[str, Code] = {
    "degraded-links": Code(
        Severity.WARNING,
        "Fewer NVLinks than the model or its siblings",
        "Some NVLinks of a GPU are down. Its bonds are narrower, and a collective runs at the pace of its narrowest "
        "member. On boards that are wired together (SXM) this is a failure; on boards with bridges, one of several "
        "bridges may be absent; in a virtual machine the missing links may lead to GPUs that it was not given.",
        "Active links per GPU against the catalog's count of the model (an H100 NVL has 12, an H100 SXM 18), the "
        "driver's own total, or siblings of the same name; behind a switch also each bond against the poorer of its "
        "two GPUs.",
        "Look at `nvidia-smi nvlink -s` and `-e`; reset the GPU, reseat the bridge or have the board serviced.",
        "NVIDIA Health Validation, nvlink_active (docs.nvidia.com/health-validation/reference/checks): no inactive "
        "link is tolerated",
    ),
    "nvlink-absent": Code(
        Severity.FAILURE,
        "A GPU that should have NVLink has none",
        "The model is wired to NVLink where it is built in (SXM, superchips), yet no NVLink joins this GPU with any "
        "other. All its traffic goes over PCIe or the host, many times slower. On boards without switches (SXM2) a GPU "
        "of a part of the machine may just be no neighbour of the others (good to know).",
        "No NVLink path between GPUs of such a model, while their fabric registration is not known to be pending. "
        "Links may even read active: a link's state says nothing of its peer.",
        "Check `systemctl status nvidia-fabricmanager` (its version must equal the driver's) and `nvidia-smi nvlink "
        "-s`; in a virtual machine ask whether NVSwitches were passed through.",
        "NVIDIA, Fabric Manager User Guide (docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide); "
        "dstackai/dstack#1167",
    ),
    "split-island": Code(
        Severity.WARNING,
        "NVSwitch joins only some of the GPUs",
        "Links are up, but pairs behind the switch cannot reach each other over it: the islands are smaller than "
        "the links suggest. A group across them falls to PCIe.",
        "Pairs without an NVLink path among GPUs that each have NVLink through a switch.",
        "Check the fabric manager's partitions and the passthrough of NVSwitches; plan groups inside an island.",
        "NVIDIA, Fabric Manager User Guide (docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide); "
        "NVIDIA/TensorRT-LLM#16603",
    ),
    "bridge-absent": Code(
        Severity.WARNING,
        "Some boards have an NVLink bridge, equal ones have none",
        "A bridge is absent, half-seated or down. Those GPUs talk over PCIe while their siblings have NVLink. Where "
        "their links are active, the bridge leads to a GPU that was not granted; in a virtual machine it may (good to "
        "know).",
        "Two or more GPUs of a bridged model without an NVLink path and active links, beside siblings with one.",
        "Power off and reseat the bridge; then `nvidia-smi nvlink -s` should show its links active. If none was "
        "bought, the planner already knows.",
        "NVIDIA/k8s-device-plugin#436; NVIDIA/nccl#557 (a half-seated bridge)",
    ),
    "nvlink-no-bridge": Code(
        Severity.INFO,
        "No NVLink bridge on boards that could have one",
        "The model has NVLink fingers and no board here is bridged. That is how most of them are sold, and no fault.",
        "No NVLink path between any GPUs of a bridged model; or all their links read inactive.",
        "Nothing, where no bridge was bought. Where there is one, it is absent or down: reseat it.",
        "NVIDIA/NVSentinel#1481",
    ),
    "nvlink-generation": Code(
        Severity.WARNING,
        "NVLink runs an older generation than the model has",
        "Each link is slower than it should be, or the driver tells another board than the name says.",
        "The version of the GPU's links, by its whole number, against the catalog.",
        "Update driver and firmware, reset the GPU; compare with `nvidia-smi nvlink -s` of a sibling node.",
        "NVIDIA Health Validation, nvlink_bandwidth_count_speed (docs.nvidia.com/health-validation/reference/checks)",
    ),
    "slow-links": Code(
        Severity.WARNING,
        "NVLinks run slower than those of siblings",
        "Links trained to a lower rate on some GPUs; bonds are as slow as their slowest link.",
        "Rates that `nvidia-smi nvlink -s` prints, against siblings of the same model.",
        "Reset the GPU; if it comes again, reseat the bridge or have the board serviced.",
        "NVIDIA Health Validation, nvlink_bandwidth_count_speed (docs.nvidia.com/health-validation/reference/checks)",
    ),
    "nvlink-differs": Code(
        Severity.WARNING,
        "Paths and link states disagree",
        "The matrix shows a wider bond than links are active: the texts are of different times, or a link just went "
        "down.",
        "`nvidia-smi topo -m` beside `nvidia-smi nvlink -s`.",
        "Take both again at one time; if they still differ, look at `nvidia-smi nvlink -e`.",
        "`nvidia-smi topo` and its legend (`topo -m`, `nvlink -s`)",
    ),
    "nvlink-p2p-refused": Code(
        Severity.WARNING,
        "NVLink is there, and the driver refuses P2P over it",
        "Peer access may fail although the wires are there, and libraries may fall back to host memory.",
        "P2P status per pair (`nvidia-smi topo -p2p n`) against the NVLink path of the same pair.",
        "Measure before relying on it; look for a registry key or module option that turns P2P off, and at the "
        "fabric manager.",
        "NVIDIA Health Validation, group NVLink (docs.nvidia.com/health-validation/reference/checks); NVIDIA, NVML "
        "API Reference (docs.nvidia.com/deploy/nvml-api)",
    ),
    "asymmetric": Code(
        Severity.WARNING,
        "The two ends of a path tell it differently",
        "The slower reading counts. Either a link is down on one side, or the text is damaged.",
        "Both readings of a pair: rows of a matrix, links of either GPU, peer access in either direction.",
        "Look at `nvidia-smi nvlink -s` of both GPUs and take the text again.",
        "`nvidia-smi topo` and its legend (both rows of a pair)",
    ),
    "partial-mesh": Code(
        Severity.INFO,
        "Fast links join GPUs that are not all pairwise linked",
        "As in the DGX-1's cube mesh: a group of all of them crosses PCIe or other GPUs; only cliques are islands.",
        "The graph of fast paths: its connected components against its cliques.",
        "Nothing: the planner groups by cliques and orders GPUs by them.",
        "NVIDIA, DGX-1 With Tesla V100 System Architecture (WP-08437-002)",
    ),
    "islands-not-adjacent": Code(
        Severity.INFO,
        "NVLink islands are not consecutive GPUs",
        "Engines take GPUs in order, so by default a group would lie across islands.",
        "Members of each island against their indices.",
        "Use the GPU order of the plan (`wirelore plan`).",
        "vllm-project/vllm#7958",
    ),
    "link-to-itself": Code(
        Severity.INFO,
        "Links that lead to the GPU itself",
        "The file tells a loop, which joins nothing; those links are left out.",
        "The target of each link in an NCCL topology file.",
        "Write the file again with NCCL_TOPO_DUMP_FILE; look for a loop-back plug.",
        "NCCL_TOPO_DUMP_FILE and NCCL_TOPO_FILE: NVIDIA, NCCL User Guide, Environment Variables "
        "(docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html)",
    ),
    "xgmi-indirect": Code(
        Severity.INFO,
        "xGMI pairs without a link of their own",
        "They are joined through other GPUs and share links with them.",
        "Hops and weights of ROCm's link table.",
        "Measure before trusting the speed of such a pair.",
        "AMD, ROCm SMI and AMD SMI (rocm.docs.amd.com)",
    ),
    "fabric-in-progress": Code(
        Severity.WARNING,
        "NVSwitch registration is not complete",
        "No NVLink traffic until it is; PCIe counts meanwhile. Normal while a node boots or a partition is made.",
        "The fabric state of each GPU that has NVLinks (`nvidia-smi -q`, section Fabric).",
        "Probe again; if it stays, see `systemctl status nvidia-fabricmanager`.",
        "NVIDIA, Fabric Manager User Guide (docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide); NVIDIA "
        "Health Validation, group NVLink (docs.nvidia.com/health-validation/reference/checks)",
    ),
    "fabric-failed": Code(
        Severity.FAILURE,
        "NVSwitch registration failed",
        "Links train and read active, yet P2P is dead and traffic falls to PCIe without a word.",
        "Fabric state 'completed' with a status that is not success.",
        "Restart nvidia-fabricmanager (its version must equal the driver's), then reset the GPUs or reboot.",
        "NVIDIA, Fabric Manager User Guide (docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide); "
        "dstackai/dstack#1167",
    ),
    "fabric-unhealthy": Code(
        Severity.FAILURE,
        "The NVLink fabric reports trouble",
        "Degraded bandwidth and route recovery cost speed (a warning); an unhealthy route, access timeouts or a "
        "wrong configuration can end jobs.",
        "The fabric's health mask: two bits per aspect, 1 is bad and 2 is good, so that 0xAA and 0x1AA are well.",
        "See the switches' and the subnet manager's logs (`nvidia-smi -q`, section Fabric); drain the node until it "
        "is clear.",
        "nvml.h, NVML_GPU_FABRIC_HEALTH_MASK_*; NVIDIA Health Validation, group NVLink "
        "(docs.nvidia.com/health-validation/reference/checks)",
    ),
    "fabric-unknown": Code(
        Severity.INFO,
        "The fabric's state is not told",
        "NVLink through NVSwitch was concluded from active links, and whether the fabric manager registered them is "
        "not known.",
        "An lstopo file, which has no word on it.",
        "Check `nvidia-smi -q | grep -A3 Fabric`.",
        "hwloc, XML import and export (open-mpi.org/projects/hwloc)",
    ),
    "clique-differs": Code(
        Severity.WARNING,
        "GPUs of one node are in different NVLink domains",
        "Only GPUs with the same cluster UUID and clique reach each other over NVLink between nodes. A mixed node "
        "splits groups.",
        "Cluster UUID and clique id of all GPUs of a node. A UUID of zeros is normal and means no NVLink between "
        "nodes.",
        "Look at the fabric manager's partitions (NMX) and restart nvidia-imex on the domain's nodes.",
        "NVIDIA, IMEX Service for NVLink Networks (docs.nvidia.com/multi-node-nvlink-systems/imex-guide); "
        "NVIDIA/nccl#1301",
    ),
    "domain-unknown": Code(
        Severity.WARNING,
        "Which NVLink domain joins the hosts is not told",
        "The file lists several hosts as NCCL writes them for one NVLink domain, without naming it; the network "
        "counts between them.",
        "An NCCL topology file with several hosts.",
        "Give each node's `nvidia-smi -q -x` as well.",
        "NCCL_TOPO_DUMP_FILE and NCCL_TOPO_FILE: NVIDIA, NCCL User Guide, Environment Variables "
        "(docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html)",
    ),
    "imex-channel-missing": Code(
        Severity.WARNING,
        "A multi-node NVLink domain without an IMEX channel",
        "Processes cannot map memory of other nodes: NCCL uses the network instead of NVLink.",
        "GPUs with a cluster UUID and clique, and no device under /dev/nvidia-caps-imex-channels.",
        "Start nvidia-imex on all nodes of the domain and create (or mount) channel0.",
        "NVIDIA, IMEX Service for NVLink Networks (docs.nvidia.com/multi-node-nvlink-systems/imex-guide)",
    ),
    "p2p-not-ok": Code(
        Severity.INFO,
        "The driver refuses P2P over PCIe",
        "NCCL copies through host memory. GeForce boards since the RTX 30 series and many virtual machines are so "
        "by design; between data-centre GPUs under one PCIe switch it is a warning.",
        "P2P status per pair (`nvidia-smi topo -p2p r`): CNS chipset, GNS GPU, TNS topology, DR disabled, NS not "
        "supported.",
        "On bare metal check ACS, IOMMU and the firmware's PCIe settings; on GeForce boards there is nothing to "
        "repair.",
        "NVIDIA, CUDA C++ Programming Guide, Peer-to-Peer Memory Access "
        "(docs.nvidia.com/cuda/cuda-c-programming-guide); NVIDIA, NVML API Reference "
        "(docs.nvidia.com/deploy/nvml-api)",
    ),
    "pcie-narrow": Code(
        Severity.WARNING,
        "PCIe with fewer lanes than the card has",
        "Bandwidth shrinks with the lanes, for copies from the host and for GPUs that talk over PCIe. The width "
        "does not change at rest. Where all equal GPUs are as narrow, or in a virtual machine, the machine is built "
        "so (good to know).",
        "The present width against the card's in the catalog, or the most that card and slot can have. A low "
        "generation is told beside it, since a poor slot or riser often lowers both.",
        "Reseat the board or riser; check the slot's wiring and the firmware's bifurcation.",
        "NVIDIA, NVML API Reference (docs.nvidia.com/deploy/nvml-api), nvmlDeviceGetCurrPcieLinkWidth; NVIDIA DCGM, "
        "PCIe plugin (link downtraining)",
    ),
    "pcie-slow": Code(
        Severity.WARNING,
        "PCIe runs an older generation under load",
        "Each step back halves the bandwidth. Judged only while the GPU works, because idle cards drop their "
        "generation.",
        "The generation read under load against the most that card and system can have.",
        "Check slot, riser and the firmware's setting of the link speed.",
        "NVIDIA, NVML API Reference (docs.nvidia.com/deploy/nvml-api), nvmlDeviceGetCurrPcieLinkGeneration",
    ),
    "pcie-host-older": Code(
        Severity.INFO,
        "The host offers an older PCIe generation than the card",
        "The most that card and system can have together is below the card's own: half the bandwidth per step. "
        "Where siblings have more, it is a warning.",
        "The driver's maximum for card and system (not what runs now) against the catalog.",
        "Check the firmware's setting of the slot's speed; otherwise the board is what it is, and measured figures "
        "tell.",
        "NVIDIA, NVML API Reference (docs.nvidia.com/deploy/nvml-api), nvmlDeviceGetMaxPcieLinkGeneration",
    ),
    "pcie-level-coarse": Code(
        Severity.INFO,
        "PCIe switches are not told",
        "AMD's tools name no switches: paths within a NUMA node count as NODE and may be nearer.",
        "The link type table of ROCm's tools.",
        "Add a dump of RCCL's topology (NCCL_TOPO_DUMP_FILE).",
        "AMD, ROCm SMI and AMD SMI (rocm.docs.amd.com)",
    ),
    "nic-far": Code(
        Severity.WARNING,
        "No NIC on the GPU's socket",
        "What the GPU sends to other nodes crosses the link between sockets first, which is slow and shared.",
        "The path between the GPU and each NIC that is up: all are SYS, those of unknown rate too. With fewer NICs "
        "than sockets, or where no GPU has a near one, the machine is built so (good to know).",
        "Move a NIC to a slot of that socket, check that all NICs are up, or keep groups that cross nodes on the "
        "other GPUs.",
        "NVIDIA, NCCL User Guide, Troubleshooting "
        "(docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html); NVIDIA/nccl#1447",
    ),
    "nic-down": Code(
        Severity.WARNING,
        "A NIC is down while its siblings are up",
        "NCCL uses the NICs that are left: rails are unequal, and some GPUs send through far ones. Unused ports are "
        "common where as many are down as up, and among those that are no GPU's nearest (good to know).",
        "The state of each port against NICs of the same kind and link layer, and the NICs nearest to each GPU.",
        "Check cable, transceiver and switch port (`ibstat`, `ethtool`).",
        "NVIDIA Health Validation, InfiniBand checks; Azure/azurehpc-health-checks, InfiniBand link checks",
    ),
    "nic-slow": Code(
        Severity.WARNING,
        "A NIC runs slower than its siblings",
        "A collective over all rails waits for the slowest.",
        "The rate of each NIC that is some GPU's nearest, against most of its kind.",
        "Check cable and switch port; a link that trained to half its lanes or an older rate shows in `ibstat` and "
        "`ethtool`.",
        "Azure/azurehpc-health-checks, InfiniBand link checks",
    ),
    "nics-virtual": Code(
        Severity.INFO,
        "Network devices without a card",
        "NCCL puts such a device at the first CPU, so its paths mean little.",
        "Devices of an NCCL topology file that hang on no PCI device.",
        "Judge their distance by measurement.",
        "NCCL_TOPO_DUMP_FILE and NCCL_TOPO_FILE: NVIDIA, NCCL User Guide, Environment Variables "
        "(docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html)",
    ),
    "gdr-off": Code(
        Severity.WARNING,
        "No GPUDirect RDMA",
        "Traffic between nodes is copied through host memory: slower, and it loads the CPUs.",
        "The gdr attribute of network devices in an NCCL topology file.",
        "Load nvidia-peermem or use a kernel and driver with DMA-BUF.",
        "NVIDIA, GPUDirect RDMA (docs.nvidia.com/cuda/gpudirect-rdma)",
    ),
}
