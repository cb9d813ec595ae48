"""What of the host's settings gets in the way of GPUs that talk: shared memory, locked memory, IOMMU, ACS, containers.

Everything is read as any user, below a root, and without failing; what cannot be read is None, and no notice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from probe.sources.sysfs import PciDevice, Sysfs
from probe.topology import GpuStatus, Notice, Topology
from probe.units import GIB, count, gib, mib

SHM_WANTED_BYTES = GIB
"""NCCL User Guide, "Troubleshooting", section Docker: --shm-size=1g; engines' own pages ask for several GiB."""

MEMLOCK_WANTED_BYTES = GIB
"""NCCL asks for unlimited; what it locks is its buffers, some hundred MB per communicator (NCCL User Guide)."""

_GPU_VENDORS = ("0x10de", "0x1002")  # NVIDIA, AMD: not the display controller of a server's BMC
_CONFIG_BYTES = 4096
_EXTENDED_CONFIG = 0x100
# Linux, include/uapi/linux/pci_regs.h: PCI_EXT_CAP_ID_ACS, PCI_ACS_CTRL, PCI_ACS_RR | PCI_ACS_CR (P2P redirects).
_ACS, _ACS_CONTROL, _REDIRECT = 0x0D, 0x06, 0x04 | 0x08
_MAX_CAPABILITIES = 96
_UNLIMITED = -1
_NAMED = 4
_CGROUPS = (("kubepods", "kubernetes"), ("docker", "docker"), ("libpod", "podman"), ("containerd", "containerd"))


@dataclass(frozen=True, slots=True)
class HostState:
    """Settings of this host or container, as far as they could be read.

    `memlock_bytes` is -1 without a limit. `iommu` is that of the GPUs: 'translated', 'passthrough' or 'off'.
    `acs_redirecting` are the PCI bridges above GPUs that send P2P traffic up to the root complex; reading that takes
    root. `container` is 'kubernetes', 'docker', 'podman', 'containerd', 'lxc' or None; `requested_gpus` is what
    NVIDIA_VISIBLE_DEVICES says in a container ('all', or a list). `imex_channels` are those of this node's devices.
    """

    shm_bytes: int | None = None
    memlock_bytes: int | None = None
    has_rdma: bool = False
    gpu_bus_ids: tuple[str, ...] = ()
    iommu: str | None = None
    acs_redirecting: tuple[str, ...] | None = None
    container: str | None = None
    requested_gpus: str | None = None
    imex_channels: tuple[int, ...] | None = None


def read_host_state(root: Path = Path("/"), *, environ: Mapping[str, str] = os.environ) -> HostState:
    """Reads /dev, /proc and /sys below `root`."""
    sysfs = Sysfs(root)
    gpus = [d for d in sysfs.gpu_devices(()) if sysfs.text(f"sys/bus/pci/devices/{d.route[-1]}/vendor") in _GPU_VENDORS]
    container = _container(sysfs, environ)
    return HostState(
        shm_bytes=_size(root / "dev/shm"),
        memlock_bytes=_memlock(sysfs.text("proc/self/limits")),
        has_rdma=bool(sysfs.names("sys/class/infiniband")),
        gpu_bus_ids=tuple(d.bus_id for d in gpus),
        iommu=_iommu(sysfs, gpus),
        acs_redirecting=_redirecting(root, gpus),
        container=container,
        requested_gpus=environ.get("NVIDIA_VISIBLE_DEVICES") if container else None,
        imex_channels=_imex_channels(sysfs),
    )


def of_the_node(state: HostState) -> HostState:
    """What holds for the node, whoever looks: without the limits of this process and the walls of its container."""
    state = replace(state, memlock_bytes=None)
    if state.container is None:
        return state
    return replace(state, container=None, shm_bytes=None, requested_gpus=None, imex_channels=None)


def host_notices(state: HostState) -> tuple[Notice, ...]:
    """What a person should know of these settings, whatever the GPUs are."""
    return (*_memory(state), *_peer_traffic(state), *_visibility(state))


def with_host_state(topology: Topology, state: HostState, *, node: int = 0) -> Topology:
    """The topology with the notices on its host, those of `host_notices` and those that also look at its GPUs.

    What the topology already warns of stays said once.
    """
    said = {w.code for w in topology.warnings if w.node in (node, None)}
    found = (*host_notices(state), *_against(topology, state, node))
    return replace(
        topology, warnings=(*topology.warnings, *(replace(n, node=node) for n in found if n.code not in said))
    )


def acs_redirects(config: bytes) -> bool | None:
    """Whether a bridge redirects P2P, from its configuration space; None where that is cut off (64 bytes without
    root). A bridge without the capability redirects nothing."""
    if len(config) < _CONFIG_BYTES:
        return None
    at = _EXTENDED_CONFIG
    for _ in range(_MAX_CAPABILITIES):
        header = int.from_bytes(config[at : at + 4], "little")
        if header in (0, 0xFFFFFFFF):
            return False if header == 0 else None  # all ones: the device does not answer
        if header & 0xFFFF == _ACS:
            control = int.from_bytes(config[at + _ACS_CONTROL : at + _ACS_CONTROL + 2], "little")
            return bool(control & _REDIRECT)
        at = header >> 20 & ~3
        if at < _EXTENDED_CONFIG:
            return False
    return None


def _memory(state: HostState) -> Iterator[Notice]:
    if state.shm_bytes is not None and state.shm_bytes < SHM_WANTED_BYTES:
        wanted = f"NCCL's guide asks for {gib(SHM_WANTED_BYTES)} or more"
        what = f"shared memory (/dev/shm) holds {mib(state.shm_bytes)}, {wanted}"
        cure = {
            None: "`mount -o remount,size=16G /dev/shm`.",
            "kubernetes": "Mount an emptyDir with medium: Memory at /dev/shm.",
        }.get(state.container, "Start the container with --ipc=host or --shm-size=16g.")
        yield Notice("shm-small", f"{what}: several ranks on this node fail or hang at start. {cure}")
    if state.has_rdma and state.memlock_bytes is not None and _UNLIMITED < state.memlock_bytes < MEMLOCK_WANTED_BYTES:
        what = f"only {mib(state.memlock_bytes)} of memory may be locked here, and RDMA locks its buffers"
        cure = (
            "Set `ulimit -l unlimited`, --ulimit memlock=-1 (docker) or LimitMEMLOCK=infinity (systemd, for pods too)."
        )
        yield Notice("memlock-limited", f"{what}: NCCL over InfiniBand or RoCE may fail to register memory. {cure}")


def _peer_traffic(state: HostState) -> Iterator[Notice]:
    if len(state.gpu_bus_ids) < 2:
        return
    if state.iommu == "translated":
        what = "the IOMMU translates what GPUs send over PCIe to each other and to NICs"
        means = "that is slow, and with ACS writes may be lost although the driver allows P2P (a rank hangs)"
        cure = "On bare metal boot with iommu=pt or turn it off, or set NCCL_P2P_DISABLE=1 where PCIe joins the GPUs."
        yield Notice("iommu-translated", f"{what}: {means}. {cure}")
    if state.acs_redirecting:
        ids = ", ".join(state.acs_redirecting[:_NAMED])
        more = f" and {len(state.acs_redirecting) - _NAMED} more" if len(state.acs_redirecting) > _NAMED else ""
        what = f"ACS sends P2P traffic through the root complex at {count(len(state.acs_redirecting), 'PCI bridge')}"
        cure = "On bare metal disable it in the firmware, or `setpci -s BRIDGE ECAP_ACS+6.w=0000` at every boot."
        yield Notice("acs-redirects", f"{what} ({ids}{more}): PIX and PXB are no faster than PHB then. {cure}")


def _visibility(state: HostState) -> Iterator[Notice]:
    if state.container and state.requested_gpus == "all":
        what = f"NVIDIA_VISIBLE_DEVICES=all in this container ({state.container}) shows every GPU of the node"
        yield Notice("container-sees-all", f"{what}, whatever it was granted: plan only on yours (--gpus).")


def _against(topology: Topology, state: HostState, node: int) -> Iterator[Notice]:
    gpus = topology.nodes[node].gpus
    requested = _requested(state.requested_gpus)
    if requested is not None and requested != len(gpus):
        what = f"the container was given {count(requested, 'GPU')} (NVIDIA_VISIBLE_DEVICES) and sees {len(gpus)}"
        cure = "A privileged one sees all: plan only on yours (--gpus). Where it sees fewer, look for Xid in dmesg."
        yield Notice("gpu-count-differs", f"{what}. {cure}")
    elif state.container and _is_part(len(gpus), state.requested_gpus):
        what = f"this container ({state.container}) sees {count(len(gpus), 'GPU')}, as it was given"
        yield Notice("container-sees-part", f"{what}: a part of the node. Nothing is missing.")
    in_domain = any(g.fabric and g.fabric.domain and g.status is GpuStatus.OK for g in gpus)
    if in_domain and state.imex_channels == ():
        what = "the GPUs are of a multi-node NVLink domain, yet there is no IMEX channel here"
        cure = "Start nvidia-imex on all its nodes and create (or mount) /dev/nvidia-caps-imex-channels/channel0."
        yield Notice("imex-channel-missing", f"{what}: between nodes the network counts, not NVLink. {cure}")


def _is_part(gpus: int, devices: str | None) -> bool:
    """Machines have 1, 2, 4, 8 or 16 GPUs. Without a list (CDI tells none) one short of 8 or 16 is rather a loss."""
    if not gpus & (gpus - 1):
        return False
    return _requested(devices) == gpus or (devices in (None, "", "void") and gpus + 1 not in (8, 16))


def _requested(devices: str | None) -> int | None:
    """How many whole GPUs a list names; None for words ('all', 'void', 'none') and MIG slices ('0:1', 'MIG-...')."""
    entries = [e.strip() for e in (devices or "")[: 1 << 14].split(",") if e.strip()]
    is_list = entries and all(re.fullmatch(r"[0-9]{1,4}|GPU-[0-9A-Fa-f-]{1,36}", e, re.ASCII) for e in entries)
    return len(set(entries)) if is_list else None


def _size(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except (OSError, AttributeError, ValueError):
        return None
    return found.f_blocks * found.f_frsize or None  # a size of 0 is a tmpfs without any limit


def _memlock(limits: str | None) -> int | None:
    """The soft limit: 'Max locked memory  65536  65536  bytes' -> 65536."""
    match = re.search(r"^Max locked memory +(unlimited|[0-9]{1,20}) ", limits or "", re.MULTILINE | re.ASCII)
    return None if match is None else _UNLIMITED if match[1] == "unlimited" else int(match[1])


def _iommu(sysfs: Sysfs, gpus: list[PciDevice]) -> str | None:
    """The kernel tells it per device; where it does not, its command line does."""
    types = [sysfs.text(f"sys/bus/pci/devices/{d.route[-1]}/iommu_group/type", 64) or "" for d in gpus]
    if any(t.startswith("DMA") for t in types):
        return "translated"
    if "identity" in types:
        return "passthrough"
    options = set((sysfs.text("proc/cmdline") or "").split())
    if options & {"iommu=off", "intel_iommu=off", "amd_iommu=off"}:
        return "off"
    if not (sysfs.root / "sys/kernel/iommu_groups").is_dir():
        return None
    if not sysfs.names("sys/kernel/iommu_groups"):
        return "off"
    if options & {"iommu=pt", "iommu.passthrough=1"}:
        return "passthrough"
    return "translated" if options & {"intel_iommu=on", "amd_iommu=on", "iommu.passthrough=0"} else None


def _redirecting(root: Path, gpus: list[PciDevice]) -> tuple[str, ...] | None:
    bridges = dict.fromkeys(bridge for d in gpus for bridge in d.route[1:-1])
    told = {bridge: acs_redirects(_config(root / "sys/bus/pci/devices" / bridge / "config")) for bridge in bridges}
    known = [bridge for bridge, redirects in told.items() if redirects is not None]
    return tuple(bridge for bridge in known if told[bridge]) if known else None


def _config(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_CONFIG_BYTES)
    except (OSError, ValueError):
        return b""


def _container(sysfs: Sysfs, environ: Mapping[str, str]) -> str | None:
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    for file, kind in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (sysfs.root / file).exists():
            return kind
    cgroup = sysfs.text("proc/1/cgroup", 1 << 16) or ""
    return next((kind for word, kind in (*_CGROUPS, ("/lxc", "lxc")) if word in cgroup), None)


def _imex_channels(sysfs: Sysfs) -> tuple[int, ...] | None:
    """() where /dev shows none; None without a /dev."""
    names = sysfs.names("dev/nvidia-caps-imex-channels")
    channels = sorted(int(m[1]) for name in names if (m := re.fullmatch(r"channel([0-9]{1,5})", name, re.ASCII)))
    return tuple(channels) if channels or (sysfs.root / "dev").is_dir() else None
