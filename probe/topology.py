"""What a machine has: GPUs, NICs and the paths between them. Frozen facts that check their own laws; no I/O.

An absent fact is None, and a warning or the provenance says why; 0, "" and "N/A" never stand for "unknown".
GPUs of a node are numbered 0..n-1 as NVML numbers them, so a GPU's index is also its place in every tuple here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property


def require(holds: bool, law: str) -> None:
    """Refuses to build what cannot be; the law is the message. Raises ValueError."""
    if not holds:
        raise ValueError(law)


class Provenance(str, Enum):
    """Where a number came from."""

    MEASURED = "measured"
    READ = "read"
    CATALOG = "catalog"
    ASSUMED = "assumed"


class PathKind(str, Enum):
    """How two devices reach each other, best first. The PCIe levels are those of `nvidia-smi topo -m`."""

    NVLINK = "NVLINK"
    XGMI = "XGMI"
    C2C = "C2C"
    MNNVL = "MNNVL"
    PIX = "PIX"
    PXB = "PXB"
    PHB = "PHB"
    NODE = "NODE"
    SYS = "SYS"
    NET = "NET"
    UNKNOWN = "UNKNOWN"

    @property
    def is_fast(self) -> bool:
        return self in _FAST

    @property
    def distance(self) -> int:
        """0 for a fast fabric, then 1 (PIX) to 5 (SYS), 6 (NET), 7 (UNKNOWN)."""
        return _DISTANCE[self]


_FAST = frozenset((PathKind.NVLINK, PathKind.XGMI, PathKind.C2C, PathKind.MNNVL))
_DISTANCE = {kind: 0 if kind in _FAST else position - len(_FAST) + 1 for position, kind in enumerate(PathKind)}
PCIE_KINDS = (PathKind.PIX, PathKind.PXB, PathKind.PHB, PathKind.NODE, PathKind.SYS)


class P2pStatus(str, Enum):
    """nvmlGpuP2PStatus_t, in the letters of `nvidia-smi topo -p2p`."""

    OK = "OK"
    CHIPSET_NOT_SUPPORTED = "CNS"
    GPU_NOT_SUPPORTED = "GNS"
    TOPOLOGY_NOT_SUPPORTED = "TNS"
    DISABLED = "DR"
    NOT_SUPPORTED = "NS"
    UNKNOWN = "U"


class GpuStatus(str, Enum):
    """Whether a GPU can be used. Only `OK` GPUs are planned on."""

    OK = "ok"
    LOST = "lost"
    NO_PERMISSION = "no-permission"
    FAILED = "failed"


class Through(str, Enum):
    DIRECT = "direct"
    SWITCH = "switch"


@dataclass(frozen=True, slots=True)
class P2p:
    """The driver's word on peer access, per capability. A promise, not a proof: see Verification."""

    read: P2pStatus | None = None
    write: P2pStatus | None = None
    nvlink: P2pStatus | None = None
    atomics: P2pStatus | None = None
    pcie: P2pStatus | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """How two devices reach each other.

    `links` counts the bonded NVLink or xGMI links (None: not told), `version` is the NVLink generation (4.0 = H100).
    `asymmetric` holds both readings, (a to b, b to a), where the two ends disagree; the path is then the slower one.
    """

    kind: PathKind
    links: int | None = None
    version: float | None = None
    through: Through | None = None
    p2p: P2p | None = None
    asymmetric: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        require(self.links is None or self.kind.is_fast, f"only a fast fabric has links, {self.kind.value} has none")
        require(self.links is None or 1 <= self.links <= 64, f"a bond has 1 to 64 links, not {self.links}")
        require(
            self.asymmetric is None or self.asymmetric[0] != self.asymmetric[1],
            "an asymmetric path has two different readings",
        )

    @property
    def is_fast(self) -> bool:
        return self.kind.is_fast

    @property
    def label(self) -> str:
        """As `nvidia-smi topo -m` prints it: 'NV18', 'PIX', 'SYS'."""
        if self.kind is PathKind.NVLINK:
            return f"NV{self.links}" if self.links else "NV"
        return str(self.kind.value)

    @property
    def slowness(self) -> tuple[int, int]:
        """Sorts paths best first: by distance, then by more links (an untold number counts as one)."""
        return (self.kind.distance, -(self.links or 1) if self.is_fast else 0)


@dataclass(frozen=True, slots=True)
class PcieLink:
    """A GPU's PCIe port. `generation` drops when idle, so it is a fact only under load; `width` counts always."""

    generation: int | None = None
    generation_max: int | None = None
    width: int | None = None
    width_max: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """What repeats of a GPU on every equal node. Memory is what the vendor built in, in bytes."""

    index: int
    name: str | None = None
    memory_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    numa_node: int | None = None
    cpu_affinity: str | None = None
    pcie: PcieLink | None = None
    nvlinks_active: int | None = None
    nvlinks_total: int | None = None
    nearest_nics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.memory_bytes is None or self.memory_bytes > 0, "memory is positive or unknown, never 0")
        require(self.name != "", "a name is a text or unknown, never empty")
        require(
            self.nvlinks_active is None or self.nvlinks_total is None or self.nvlinks_active <= self.nvlinks_total,
            f"GPU {self.index}: active NVLinks <= all NVLinks",
        )


@dataclass(frozen=True, slots=True)
class MigInstance:
    """A slice of a GPU. It has no P2P over PCIe or NVLink, so it is an island of one."""

    uuid: str | None
    profile: str | None = None
    memory_bytes: int | None = None


class FabricState(str, Enum):
    """nvmlGpuFabricState_t; `status` of the registration counts only at COMPLETED."""

    NOT_SUPPORTED = "not-supported"
    NOT_STARTED = "not-started"
    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Fabric:
    """NVSwitch fabric registration. `cluster_uuid` is None where NVML gives all zeros: no multi-node NVLink."""

    state: FabricState
    status: int | None = None
    cluster_uuid: str | None = None
    clique_id: int | None = None
    health_mask: int | None = None

    def __post_init__(self) -> None:
        require(
            self.cluster_uuid is None or self.cluster_uuid.strip("0-") != "",
            "an all-zero cluster UUID means no multi-node NVLink: give None",
        )

    @property
    def is_ready(self) -> bool:
        return self.state is FabricState.COMPLETED and self.status in (0, None)

    @property
    def domain(self) -> tuple[str, int] | None:
        """(cluster UUID, clique id), both non-zero, of the multi-node NVLink domain that this GPU joined, if any."""
        if self.is_ready and self.cluster_uuid is not None and self.clique_id:
            return (self.cluster_uuid, self.clique_id)
        return None


@dataclass(frozen=True, slots=True)
class GpuState:
    """What is this GPU's own: identity and present state. `cuda_index` is None where it is hidden or unknown."""

    uuid: str | None = None
    pci_bus_id: str | None = None
    serial: str | None = None
    cuda_index: int | None = None
    visible: bool = True
    memory_free_bytes: int | None = None
    status: GpuStatus = GpuStatus.OK
    status_reason: str | None = None
    mig_instances: tuple[MigInstance, ...] = ()
    fabric: Fabric | None = None

    @property
    def is_usable(self) -> bool:
        return self.visible and self.status is GpuStatus.OK


@dataclass(frozen=True, slots=True)
class Nic:
    """A network device. `label` is the name that a printed matrix uses ('NIC0'), `name` the device's own ('mlx5_0')."""

    name: str
    label: str | None = None
    speed_gbps: float | None = None
    """Line rate in 1e9 bits/s, as vendors and the kernel print it."""
    link_layer: str | None = None
    state: str | None = None
    numa_node: int | None = None
    pci_bus_id: str | None = None
    interface: str | None = None
    """Its network interface; None where none is known, or where a bond, bridge or VLAN upon it has the address."""

    def __post_init__(self) -> None:
        require(self.name != "", "a NIC has a name")
        require(self.speed_gbps is None or self.speed_gbps > 0, "a NIC's speed is positive or unknown, never 0")


@dataclass(frozen=True)
class NodeShape:
    """Everything of a node that repeats; equal nodes share one, so laws are checked and islands found once.

    `paths` lists the GPU pairs in upper-triangle order (0-1, 0-2, ..., 1-2, ...); `nic_paths` one tuple per GPU, one
    path per NIC. `nvlink_visible` is False where the source cannot show NVLink (`topo -mp`): PCIe is then no proof.
    """

    gpus: tuple[Gpu, ...]
    paths: tuple[Path, ...]
    nics: tuple[Nic, ...] = ()
    nic_paths: tuple[tuple[Path, ...], ...] = ()
    nvlink_visible: bool = True
    numa_nodes: int | None = None
    """NUMA nodes with CPUs that the machine has, whether GPUs stand at them or not."""

    def __post_init__(self) -> None:
        n = len(self.gpus)
        require([g.index for g in self.gpus] == list(range(n)), "GPUs are numbered 0..n-1 in order")
        require(len(self.paths) == n * (n - 1) // 2, f"{n} GPUs have {n * (n - 1) // 2} pairs, not {len(self.paths)}")
        require(len({nic.name for nic in self.nics}) == len(self.nics), "NIC names are unique in a node")
        require(
            not self.nic_paths or (len(self.nic_paths) == n and all(len(r) == len(self.nics) for r in self.nic_paths)),
            "NIC paths: one row per GPU, one path per NIC, or none at all",
        )
        known = {nic.name for nic in self.nics}
        require(all(set(g.nearest_nics) <= known for g in self.gpus), "a nearest NIC is one of the node's NICs")

    def path(self, a: int, b: int) -> Path:
        """The path between two different GPUs. Raises ValueError on a == b."""
        require(a != b, "a GPU has no path to itself")
        if a > b:
            a, b = b, a
        n = len(self.gpus)
        return self.paths[a * n - a * (a + 1) // 2 + (b - a - 1)]

    @cached_property
    def pairs(self) -> tuple[tuple[int, int, Path], ...]:
        n = len(self.gpus)
        numbers = ((a, b) for a in range(n) for b in range(a + 1, n))
        return tuple((a, b, path) for (a, b), path in zip(numbers, self.paths, strict=True))


@dataclass(frozen=True)
class Node:
    """One machine: its shape, and what is its own. `virtualization` is 'bare', 'passthrough', 'vgpu' ... or None."""

    shape: NodeShape
    gpus: tuple[GpuState, ...]
    hostname: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    virtualization: str | None = None

    def __post_init__(self) -> None:
        require(len(self.gpus) == len(self.shape.gpus), "one state per GPU of the shape")
        uuids = [g.uuid for g in self.gpus if g.uuid is not None]
        require(len(set(uuids)) == len(uuids), "GPU UUIDs are unique in a node")


@dataclass(frozen=True, slots=True, order=True)
class GpuRef:
    """A GPU of a Topology: position of its node in `nodes`, index in the node."""

    node: int
    gpu: int

    def __post_init__(self) -> None:
        require(self.node >= 0 and self.gpu >= 0, "nodes and GPUs are counted from 0")


@dataclass(frozen=True, slots=True)
class NetworkPath:
    """Nodes that reach each other, pairwise, in one way: NET (through NICs) or MNNVL."""

    kind: PathKind
    nodes: tuple[int, ...]

    def __post_init__(self) -> None:
        require(self.kind in (PathKind.NET, PathKind.MNNVL), "between nodes a path is NET or MNNVL")
        require(len(set(self.nodes)) == len(self.nodes) >= 2, "a network path joins two or more different nodes")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about the input that a person should know. `code` is stable, `message` ends with what it means."""

    code: str
    message: str
    node: int | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a group of facts came from: `fact` names JSON keys ('gpus.memory_bytes'), `source` says what told it."""

    fact: str
    provenance: Provenance
    source: str
    node: int | None = None


@dataclass(frozen=True)
class Topology:
    """The wires: nodes, the network between them, warnings, and where each fact came from."""

    nodes: tuple[Node, ...]
    network: tuple[NetworkPath, ...] = ()
    warnings: tuple[Notice, ...] = ()
    provenance: tuple[Origin, ...] = ()

    def __post_init__(self) -> None:
        require(len(self.nodes) > 0, "a topology has at least one node")
        n = len(self.nodes)
        require(all(0 <= i < n for p in self.network for i in p.nodes), "network paths join nodes of this topology")

    @property
    def gpu_count(self) -> int:
        return sum(len(node.gpus) for node in self.nodes)

    def gpu(self, ref: GpuRef) -> Gpu:
        return self.nodes[ref.node].shape.gpus[ref.gpu]

    def state(self, ref: GpuRef) -> GpuState:
        return self.nodes[ref.node].gpus[ref.gpu]

    def path(self, a: GpuRef, b: GpuRef) -> Path:
        """Inside a node its path; across nodes MNNVL where both joined one NVLink domain, else NET."""
        if a.node == b.node:
            return self.nodes[a.node].shape.path(a.gpu, b.gpu)
        fabrics = self.state(a).fabric, self.state(b).fabric
        domain = fabrics[0].domain if fabrics[0] else None
        joined = domain is not None and fabrics[1] is not None and fabrics[1].domain == domain
        return Path(PathKind.MNNVL) if joined else Path(PathKind.NET)
