"""Codes of the GPUs themselves. Data."""

from __future__ import annotations

from probe.checks.code import Code
from probe.finding import Severity

CODES_GPU: dict[str, Code] = {
    "gpu-lost": Code(
        Severity.FAILURE,
        "A GPU fell off the bus",
        "The driver counts it and cannot reach it. Whatever ran on it has failed.",
        "NVML answers GPU_IS_LOST, or `nvidia-smi -q` prints it in place of values.",
        "Look for Xid 79 in dmesg, drain the node, reset the GPU or reboot; if it comes again, have it serviced.",
        "NVIDIA, Xid Errors (docs.nvidia.com/deploy/xid-errors); NVIDIA, GPU Debug Guidelines "
        "(docs.nvidia.com/deploy/gpu-debug-guidelines)",
    ),
    "gpu-failed": Code(
        Severity.FAILURE,
        "A GPU cannot be used",
        "It answers with errors, needs a reset, or is in MIG mode without an instance.",
        "The driver's answer to the first questions about the GPU.",
        "Look for Xid in dmesg; `nvidia-smi -q` may say more; reset the GPU or reboot.",
        "NVIDIA, GPU Debug Guidelines (docs.nvidia.com/deploy/gpu-debug-guidelines)",
    ),
    "gpu-no-permission": Code(
        Severity.WARNING,
        "A GPU that this process may not open",
        "It is counted and cannot be used from here, so it is left out of plans and measurements.",
        "NVML answers NO_PERMISSION.",
        "Check the container's device cgroup and the permissions of /dev/nvidia*.",
        "NVIDIA, NVML API Reference (docs.nvidia.com/deploy/nvml-api)",
    ),
    "gpus-missing": Code(
        Severity.WARNING,
        "Fewer GPUs than such a node has",
        "A board with 7 of 8 GPUs has usually lost one at boot, before any driver counted it. A container or "
        "virtual machine that was granted fewer is well (good to know).",
        "The count of GPUs against the sizes of boards with built-in NVLink, equal nodes, or the total in the same "
        "file; and what a container was given. 7 or 15 in a virtual machine are a warning still.",
        "Check `lspci -d 10de:` and dmesg for a GPU that did not come up; reseat or service it. Where fewer were "
        "granted, nothing.",
        "NVIDIA Health Validation, gpu_count (docs.nvidia.com/health-validation/reference/checks)",
    ),
    "gpu-silent": Code(
        Severity.FAILURE,
        "A GPU told counters before the measurement and none after",
        "It may have fallen off the bus during the run; its figures are suspect.",
        "Health snapshots before and after, per GPU.",
        "Look for Xid in dmesg and probe again; drain the node if it stays silent.",
        "NVIDIA, Xid Errors (docs.nvidia.com/deploy/xid-errors)",
    ),
    "recovery-needed": Code(
        Severity.FAILURE,
        "The driver asks for a reset or reboot",
        "It met an error that it cannot mend in flight. Expect failures until it is done.",
        "NVML's field GPU_RECOVERY_ACTION.",
        "Do what the driver asks: reset the GPU, drain P2P, or reboot the node.",
        "nvml.h, nvmlDeviceGpuRecoveryAction_t; NVIDIA, GPU Debug Guidelines "
        "(docs.nvidia.com/deploy/gpu-debug-guidelines)",
    ),
    "row-remap-failed": Code(
        Severity.FAILURE,
        "A bad row of memory could not be remapped",
        "No spare row is left. Uncorrectable errors will come again at this place.",
        "NVML's remapped rows: failure flag.",
        "Take the GPU out of service and have it replaced (RMA).",
        "NVIDIA, GPU Memory Error Management (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt)",
    ),
    "row-remap-pending": Code(
        Severity.WARNING,
        "A bad row of memory waits to be remapped",
        "The row stays in use until the GPU is reset.",
        "NVML's remapped rows: pending flag.",
        "Stop what runs there and reset the GPU (`nvidia-smi --gpu-reset`).",
        "NVIDIA, GPU Memory Error Management (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt)",
    ),
    "row-remaps": Code(
        Severity.WARNING,
        "Rows of memory were remapped while measuring",
        "Memory is wearing out. A few are within the design; the figures of this run may have suffered.",
        "The counters of remapped rows before and after.",
        "Reset the GPU so that the remap takes hold, and watch whether it goes on.",
        "NVIDIA, GPU Memory Error Management (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt)",
    ),
    "page-retirement-pending": Code(
        Severity.WARNING,
        "A bad page of memory waits to be retired",
        "The page stays in use until the driver is loaded again.",
        "NVML's retired pages: pending flag (GPUs before Ampere).",
        "Stop what runs there, then reset the GPU or reboot.",
        "NVIDIA, Dynamic Page Retirement (docs.nvidia.com/deploy/dynamic-page-retirement)",
    ),
    "ecc-uncorrected": Code(
        Severity.FAILURE,
        "Uncorrected memory errors",
        "Data were lost. What ran there ended or computed with wrong bits.",
        "NVML's count of uncorrected errors since the driver was loaded, or its growth while measuring.",
        "Look for Xid 48, 63, 94, 95 in dmesg and reset the GPU; if it comes again, have it serviced.",
        "NVIDIA, GPU Memory Error Management (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt); NVIDIA, Xid Errors "
        "(docs.nvidia.com/deploy/xid-errors)",
    ),
    "ecc-errors": Code(
        Severity.WARNING,
        "Corrected memory errors while measuring",
        "No data were lost, and some speed may have been. Errors that go on foretell a remap.",
        "NVML's counts of corrected errors before and after.",
        "Watch whether they go on; a row that fails again is remapped, and a GPU that keeps failing is replaced.",
        "NVIDIA, GPU Memory Error Management (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt)",
    ),
    "sram-errors": Code(
        Severity.FAILURE,
        "SRAM errors above the vendor's threshold",
        "The chip's own caches fail more often than the vendor accepts.",
        "NVML's SRAM error status: threshold exceeded.",
        "Run the field diagnostic, and have the GPU replaced if that fails.",
        "NVIDIA, GPU Memory Error Management (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt)",
    ),
    "nvlink-errors": Code(
        Severity.WARNING,
        "NVLink errors while measuring",
        "Packets were sent again or links recovered: bandwidth was lost, and figures over these links are suspect.",
        "Replay, recovery and CRC counters per link before and after; on NVLink 5 those of its own.",
        "See `nvidia-smi nvlink -e`; reseat the bridge or have it serviced, then measure again.",
        "NVIDIA, GPU Debug Guidelines (docs.nvidia.com/deploy/gpu-debug-guidelines)",
    ),
    "c2c-errors": Code(
        Severity.WARNING,
        "C2C link errors while measuring",
        "The link between GPU and CPU of a superchip met errors; figures over it are suspect.",
        "C2C counters before and after.",
        "Measure again; if they grow again, have the board serviced.",
        "NVIDIA, NVML API Reference (docs.nvidia.com/deploy/nvml-api)",
    ),
    "pcie-replays": Code(
        Severity.WARNING,
        "PCIe replays while measuring",
        "Packets were sent again, so bandwidth was lost: a poor contact, riser or cable.",
        "NVML's replay counter before and after.",
        "Reseat the board or its riser, check the cable.",
        "NVIDIA, NVML API Reference (docs.nvidia.com/deploy/nvml-api), nvmlDeviceGetPcieReplayCounter",
    ),
    "throttled": Code(
        Severity.WARNING,
        "A GPU is slowed down now",
        "Heat, a power brake or a hardware slowdown lowers its clocks: measurements and serving are slower than the "
        "hardware.",
        "NVML's clock event reasons, without those that are ordinary (idle, a software power cap under load).",
        "Check cooling, power supplies and cables (`nvidia-smi -q -d PERFORMANCE,TEMPERATURE`).",
        "nvml.h, nvmlClocksEventReason*; NVIDIA, GPU Debug Guidelines (docs.nvidia.com/deploy/gpu-debug-guidelines)",
    ),
    "power-capped": Code(
        Severity.WARNING,
        "The power limit is below its default",
        "Compute is slower, by choice or by oversight.",
        "The enforced power limit against the board's default.",
        "If that is not meant, set the default again with `nvidia-smi -pl WATTS`.",
        "NVIDIA, NVML API Reference (docs.nvidia.com/deploy/nvml-api), nvmlDeviceGetPowerManagementDefaultLimit; "
        "NVIDIA Health Validation, GPU power limit",
    ),
    "compute-mode": Code(
        Severity.WARNING,
        "The compute mode shuts processes out",
        "In exclusive mode a second process on the GPU fails; in prohibited mode every one does.",
        "NVML's compute mode.",
        "`nvidia-smi -c DEFAULT` (as root) allows all.",
        "NVIDIA, CUDA C++ Programming Guide, Compute Modes (docs.nvidia.com/cuda/cuda-c-programming-guide)",
    ),
    "gpu-busy": Code(
        Severity.WARNING,
        "Other processes use a GPU",
        "Less memory is free, and a measurement is disturbed. On a machine in service that is ordinary.",
        "NVML's list of compute processes, none of which are wirelore's.",
        "Plan on what is free or on other GPUs, measure when they are done (`nvidia-smi` lists them).",
        "NVIDIA, NVML API Reference (docs.nvidia.com/deploy/nvml-api), nvmlDeviceGetComputeRunningProcesses",
    ),
    "persistence-off": Code(
        Severity.INFO,
        "Persistence mode is off",
        "The driver unloads when nothing uses the GPU: starts are slow, and limits and counters are forgotten.",
        "NVML's persistence mode.",
        "Enable nvidia-persistenced.",
        "NVIDIA, Driver Persistence (docs.nvidia.com/deploy/driver-persistence)",
    ),
    "mig": Code(
        Severity.INFO,
        "GPUs are cut into MIG instances",
        "Instances have no P2P over PCIe or NVLink, so each serves alone.",
        "MIG mode and the instances that exist.",
        "Name one instance by its UUID in CUDA_VISIBLE_DEVICES, or turn MIG off to use whole GPUs.",
        "NVIDIA, Multi-Instance GPU User Guide (docs.nvidia.com/datacenter/tesla/mig-user-guide)",
    ),
    "partitioned": Code(
        Severity.INFO,
        "A GPU is partitioned into several devices",
        "It counts as one here; plans for its parts need their own topology.",
        "Several devices of ROCm's library on one PCI device.",
        "Give `rocm-smi --showtopo` to plan on the parts.",
        "AMD, ROCm SMI and AMD SMI (rocm.docs.amd.com)",
    ),
    "mixed-models": Code(
        Severity.WARNING,
        "GPUs of different models work together",
        "A group runs at the pace of its slowest member and has the memory of its smallest. Between nodes of a "
        "cluster it is good to know.",
        "The names that drivers tell.",
        "Keep groups within equal GPUs, as the planner does, or make the node uniform.",
        "NVIDIA, NCCL User Guide; vllm-project/vllm#21061",
    ),
    "memory-differs": Code(
        Severity.WARNING,
        "Equal GPUs have different memory",
        "Plans are made for the smallest. ECC is on for some boards and off for others, or a board is another "
        "variant or reserves memory.",
        "Total memory of GPUs with the same name, when they differ by more than 1 %.",
        "Compare `nvidia-smi -q -d ECC,MEMORY` of the two and make them alike (`nvidia-smi -e`).",
        "NVIDIA, NVML API Reference (docs.nvidia.com/deploy/nvml-api), nvmlDeviceGetMemoryInfo and "
        "nvmlDeviceGetEccMode",
    ),
}
