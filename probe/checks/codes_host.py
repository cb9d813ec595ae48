"""Codes of the host, its drivers, and what a process or container sees of it. Data."""

from __future__ import annotations

from probe.checks.code import Code
from probe.finding import Severity

CODES_HOST: dict[str, Code] = {
    "mixed-drivers": Code(
        Severity.WARNING,
        "Nodes run different drivers",
        "Results are hard to compare, and libraries may choose other algorithms on either. Fabric manager and IMEX "
        "want equal versions.",
        "The driver version of each node.",
        "Bring all nodes of a job to one driver version.",
        "NVIDIA, Fabric Manager User Guide (docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide); NVIDIA, "
        "IMEX Service for NVLink Networks (docs.nvidia.com/multi-node-nvlink-systems/imex-guide)",
    ),
    "virtualized": Code(
        Severity.INFO,
        "This is a virtual machine",
        "PCIe levels, NUMA nodes and P2P may be flattened by the hypervisor: only a measurement tells.",
        "NVML's virtualization mode, or the CPU's hypervisor flag.",
        "Measure; ask the provider for a topology file (NCCL_TOPO_FILE) where levels matter.",
        "NVIDIA/nccl#1674",
    ),
    "nvml-partial": Code(
        Severity.WARNING,
        "The driver was read in part",
        "It did not answer all questions in time: what is missing is unknown, not absent.",
        "The reader's child process: its deadline, its end, its last answer.",
        "Look for Xid in dmesg and see whether `nvidia-smi` hangs too; WIRELORE_NVML_TIMEOUT_S waits longer.",
        "NVIDIA/go-nvml#152; leptonai/gpud#117",
    ),
    "container-sees-all": Code(
        Severity.INFO,
        "The container sees every GPU of the node",
        "Whatever it was granted, all GPUs are visible, and others may use them.",
        "NVIDIA_VISIBLE_DEVICES=all in a container or pod.",
        "Plan only on the GPUs that are yours (--gpus); in Kubernetes request GPUs instead of running privileged.",
        "NVIDIA Container Toolkit, Specialized Configurations "
        "(docs.nvidia.com/datacenter/cloud-native/container-toolkit)",
    ),
    "container-sees-part": Code(
        Severity.INFO,
        "The container sees a part of the node's GPUs",
        "An odd number of GPUs is what it was granted, and no sign of a lost one. The others may work for somebody "
        "else, on wires that they share.",
        "A number of GPUs that no machine has, equal to the list in NVIDIA_VISIBLE_DEVICES; or a container whose "
        "runtime tells no list.",
        "Nothing. For groups of 2, 4 or 8 ask for as many GPUs.",
        "NVIDIA Container Toolkit, Specialized Configurations "
        "(docs.nvidia.com/datacenter/cloud-native/container-toolkit)",
    ),
    "gpu-count-differs": Code(
        Severity.WARNING,
        "The container sees another number of GPUs than it was given",
        "More: a privileged container sees all. Fewer: a GPU is lost or not passed on.",
        "The list in NVIDIA_VISIBLE_DEVICES against the driver's count.",
        "Plan only on yours (--gpus); where it sees fewer, look for Xid in dmesg.",
        "NVIDIA Container Toolkit, Specialized Configurations "
        "(docs.nvidia.com/datacenter/cloud-native/container-toolkit)",
    ),
    "shm-small": Code(
        Severity.WARNING,
        "Shared memory (/dev/shm) is small",
        "NCCL and engines exchange data between processes there: several ranks on this node fail or hang at start.",
        "The size of the file system at /dev/shm against 1 GiB.",
        "Start the container with --ipc=host or --shm-size=16g; in Kubernetes mount an emptyDir with medium: Memory.",
        "NVIDIA, NCCL User Guide, Troubleshooting "
        "(docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html); NVIDIA/nccl-tests#163",
    ),
    "memlock-limited": Code(
        Severity.WARNING,
        "Little memory may be locked",
        "RDMA locks its buffers: NCCL over InfiniBand or RoCE may fail to register memory.",
        "The limit of locked memory where RDMA devices are present.",
        "Set `ulimit -l unlimited`, --ulimit memlock=-1 (docker) or LimitMEMLOCK=infinity (systemd).",
        "NVIDIA, NCCL User Guide, Troubleshooting "
        "(docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html)",
    ),
    "iommu-translated": Code(
        Severity.WARNING,
        "The IOMMU translates traffic between GPUs",
        "P2P over PCIe is slow, and with ACS writes may be lost although the driver allows P2P (a rank hangs).",
        "The type of the GPUs' IOMMU groups, or the kernel's command line.",
        "On bare metal boot with iommu=pt or turn it off, or set NCCL_P2P_DISABLE=1 where PCIe joins the GPUs.",
        "NVIDIA, NCCL User Guide, Troubleshooting "
        "(docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html); vllm-project/vllm#51513",
    ),
    "acs-redirects": Code(
        Severity.WARNING,
        "ACS sends P2P through the root complex",
        "GPUs under one PCIe switch talk by way of the CPU: PIX and PXB are no faster than PHB.",
        "The ACS control register of the PCI bridges above GPUs (reading it takes root).",
        "On bare metal disable it in the firmware, or `setpci -s BRIDGE ECAP_ACS+6.w=0000` at every boot.",
        "NVIDIA, NCCL User Guide, Troubleshooting "
        "(docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html); NVIDIA/nccl-tests#112",
    ),
    "cuda-hidden": Code(
        Severity.INFO,
        "CUDA_VISIBLE_DEVICES hides GPUs",
        "This process plans on and measures those that are left.",
        "The variable against the driver's list.",
        "Unset it to plan on all.",
        "NVIDIA, CUDA C++ Programming Guide, CUDA Environment Variables "
        "(docs.nvidia.com/cuda/cuda-c-programming-guide)",
    ),
    "cuda-visible-invalid": Code(
        Severity.WARNING,
        "CUDA_VISIBLE_DEVICES names what is not there",
        "CUDA ignores the invalid entry and every one after it.",
        "The variable's entries against indices and UUIDs of this machine.",
        "Correct the list; UUIDs are safest.",
        "NVIDIA, CUDA C++ Programming Guide, CUDA Environment Variables "
        "(docs.nvidia.com/cuda/cuda-c-programming-guide)",
    ),
    "cuda-order": Code(
        Severity.WARNING,
        "GPU numbers may mean others to CUDA",
        "By default CUDA counts the fastest GPU first, NVML by PCI bus: with different models the same number means "
        "two GPUs.",
        "Numbers in CUDA_VISIBLE_DEVICES on a machine with different models.",
        "Set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID.",
        "NVIDIA, CUDA C++ Programming Guide, CUDA Environment Variables "
        "(docs.nvidia.com/cuda/cuda-c-programming-guide); pytorch/pytorch#86539",
    ),
    "numa-differs": Code(
        Severity.INFO,
        "Driver and kernel disagree on a NUMA node",
        "The driver's word counts. One of them has stale or invented firmware tables.",
        "NVML's NUMA node against sysfs.",
        "Check with `lspci -vv` and numactl; update the firmware.",
        "Linux kernel documentation, sysfs-bus-pci, numa_node (docs.kernel.org)",
    ),
    "affinity-differs": Code(
        Severity.INFO,
        "Driver and kernel disagree on a GPU's CPUs",
        "The driver's word counts. A cpuset can narrow either.",
        "NVML's CPU affinity against local_cpulist in sysfs.",
        "Look at the cpuset of this process or container; pin by the one that fits.",
        "Linux kernel documentation, sysfs-bus-pci, local_cpulist (docs.kernel.org)",
    ),
    "gpu-not-in-sysfs": Code(
        Severity.WARNING,
        "The kernel shows no PCI device of a GPU",
        "Its NUMA node, affinity and NIC paths are unknown.",
        "PCI bus ids that the driver tells, looked up in /sys.",
        "Mount /sys in the container; check `lspci` on the host.",
        "Linux kernel documentation, sysfs-bus-pci (docs.kernel.org)",
    ),
    "host-odd-fact": Code(
        Severity.INFO,
        "A file of the kernel holds what it cannot",
        "The value is taken as unknown.",
        "Files below /sys and /proc, checked for range and form.",
        "Look at the file; a wrong firmware table is the usual reason.",
        "Linux kernel documentation, sysfs rules (docs.kernel.org)",
    ),
}
