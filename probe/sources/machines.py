"""Synthetic machines by name: what the common boxes look like, and clusters of them (`machine:2048xhgx-h100`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from probe.catalog import gpu_figures
from probe.errors import SourceError
from probe.topology import (
    Fabric,
    FabricState,
    Gpu,
    GpuState,
    NetworkPath,
    Nic,
    Node,
    NodeShape,
    Notice,
    Origin,
    Path,
    PathKind,
    Provenance,
    Through,
    Topology,
)

MAX_NODES = 4096
PREFIX = "machine:"

PathOf = Callable[[int, int], Path]


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of node: `gpu` is a catalog key, `path_of(a, b)` the wiring, `sockets` the number of NUMA nodes."""

    about: str
    gpu: str
    gpus: int
    path_of: PathOf
    sockets: int = 2
    nics: int = 0
    nic_gbps: float = 400.0
    nic_kind: PathKind = PathKind.PIX
    nodes: int = 1
    """More than 1: a rack whose nodes share one NVLink domain."""


def _switched(links: int, version: float) -> PathOf:
    path = Path(PathKind.NVLINK, links=links, version=version, through=Through.SWITCH)
    return lambda a, b: path


def _pcie(gpus: int, *, sockets: int = 2, per_switch: int = 1, near: PathKind = PathKind.PXB) -> PathOf:
    """GPUs in equal parts on each socket; `per_switch` neighbours share a PCIe switch."""
    per_socket = max(1, gpus // sockets)

    def path_of(a: int, b: int) -> Path:
        if a // per_socket != b // per_socket:
            return Path(PathKind.SYS)
        return Path(near if a // per_switch == b // per_switch else PathKind.NODE)

    return path_of


def _bridged(base: PathOf, links: int, version: float, *pairs: tuple[int, int]) -> PathOf:
    bridge = Path(PathKind.NVLINK, links=links, version=version, through=Through.DIRECT)
    bridged = {frozenset(p) for p in pairs}
    return lambda a, b: bridge if {a, b} in bridged else base(a, b)


# The hybrid cube mesh of the DGX-1: two quads, each GPU with six links, four of them doubled (NVIDIA WP-08437-002).
_CUBE_MESH = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2, (2, 6): 1, (3, 7): 1,
    (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip


def _cube_mesh(a: int, b: int) -> Path:
    links = _CUBE_MESH.get((a, b))
    return Path(PathKind.NVLINK, links=links, version=2.0, through=Through.DIRECT) if links else _pcie(8)(a, b)


MACHINES = {
    "h100-1": Machine("one H100 SXM", "h100-sxm", 1, _pcie(1), sockets=1),
    "h200-1": Machine("one H200 SXM", "h200-sxm", 1, _pcie(1), sockets=1),
    "hgx-h100": Machine("8 H100 SXM behind NVSwitch, 8 NICs", "h100-sxm", 8, _switched(18, 4.0), nics=8),
    "hgx-h200": Machine("8 H200 SXM behind NVSwitch, 8 NICs", "h200-sxm", 8, _switched(18, 4.0), nics=8),
    "hgx-b200": Machine("8 B200 behind NVSwitch, 8 NICs", "b200-sxm", 8, _switched(18, 5.0), nics=8),
    "hgx-a100": Machine(
        "8 A100 SXM 80 GB behind NVSwitch, 8 NICs", "a100-sxm-80", 8, _switched(12, 3.0), nics=8, nic_gbps=200.0
    ),
    "gb200-nvl72": Machine(
        "a rack of 18 trays with 4 GB200 each, one NVLink domain",
        "gb200",
        4,
        _switched(18, 5.0),
        nics=4,
        nic_kind=PathKind.NODE,
        nodes=18,
    ),
    "a100-pcie-pairs-8": Machine(
        "8 A100 PCIe, NVLink bridges on neighbours",
        "a100-pcie-80",
        8,
        _bridged(_pcie(8), 12, 3.0, (0, 1), (2, 3), (4, 5), (6, 7)),
        nics=2,
        nic_gbps=200.0,
        nic_kind=PathKind.NODE,
    ),
    "h100-nvl-pairs-8": Machine(
        "8 H100 NVL, NVLink bridges on neighbours",
        "h100-nvl",
        8,
        _bridged(_pcie(8), 12, 4.0, (0, 1), (2, 3), (4, 5), (6, 7)),
        nics=2,
        nic_kind=PathKind.NODE,
    ),
    "a100-pcie-8": Machine("8 A100 PCIe without bridges", "a100-pcie-80", 8, _pcie(8), nics=2, nic_gbps=200.0),
    "h100-pcie-8": Machine("8 H100 PCIe without bridges", "h100-pcie", 8, _pcie(8), nics=2),
    "h200-nvl-8": Machine("8 H200 NVL without bridges", "h200-nvl", 8, _pcie(8), nics=2),
    "gh200-1": Machine("one GH200 144 GB", "gh200-144", 1, _pcie(1), sockets=1, nics=1),
    "dgx-spark-1": Machine("one GB10, a DGX Spark", "gb10", 1, _pcie(1), sockets=1, nics=1, nic_gbps=200.0),
    "dgx1-v100": Machine("8 V100 SXM2 in a hybrid cube mesh", "v100-sxm2-32", 8, _cube_mesh, nics=4, nic_gbps=100.0),
    "3090-bridges-4": Machine(
        "4 RTX 3090, NVLink bridges on 0-2 and 1-3",
        "rtx-3090",
        4,
        _bridged(_pcie(4, sockets=1), 4, 3.0, (0, 2), (1, 3)),
        sockets=1,
    ),
    "3090-4": Machine("4 RTX 3090 without bridges", "rtx-3090", 4, _pcie(4, sockets=1), sockets=1),
    "l40s-8": Machine(
        "8 L40S, two under each PCIe switch", "l40s", 8, _pcie(8, per_switch=2), nics=4, nic_kind=PathKind.PXB
    ),
    "l4-8": Machine("8 L4", "l4", 8, _pcie(8)),
    "t4-4": Machine("4 T4", "t4", 4, _pcie(4, sockets=1), sockets=1),
    "a10g-4": Machine("4 A10G as in a cloud instance", "a10g", 4, lambda a, b: Path(PathKind.PHB), sockets=1),
    "a6000-6": Machine("6 RTX A6000", "rtx-a6000", 6, _pcie(6)),
    "4090-8": Machine("8 RTX 4090", "rtx-4090", 8, _pcie(8)),
    "rtx-pro-6000-8": Machine(
        "8 RTX PRO 6000 Blackwell Server, two under each PCIe switch",
        "rtx-pro-6000-server",
        8,
        _pcie(8, per_switch=2),
        nics=4,
        nic_kind=PathKind.PXB,
    ),
    "mi300x-8": Machine(
        "8 MI300X, fully joined by xGMI",
        "mi300x",
        8,
        lambda a, b: Path(PathKind.XGMI, links=1, through=Through.DIRECT),
        nics=8,
    ),
}

_TERM = re.compile(r"(?:([0-9]{1,9})x)?([a-z0-9][a-z0-9-]{0,40})", re.IGNORECASE)


def _kind(name: str) -> Machine | None:
    """The machine of this name, or the first GPUs of one: 'l4-2' of 'l4-8', 'hgx-h100-4' of 'hgx-h100'."""
    if name in MACHINES:
        return MACHINES[name]
    stem, _, number = name.rpartition("-")
    whole = MACHINES.get(stem) or next((m for known, m in MACHINES.items() if known == f"{stem}-{m.gpus}"), None)
    if whole is None or whole.nodes > 1 or not number.isdecimal() or not 1 <= int(number[:3]) <= whole.gpus:
        return None
    gpus = int(number[:3])
    return replace(whole, about=f"{gpus} of: {whole.about}", gpus=gpus)


def machine(text: str) -> Topology:
    """'hgx-h100', '2048xhgx-h100' or '2xhgx-h100+1xl40s-8' -> Topology; 'l4-2' is a part of 'l4-8'.

    Raises SourceError on an unknown name.
    """
    nodes: list[Node] = []
    network: list[NetworkPath] = []
    for term in text.removeprefix(PREFIX).split("+"):
        match = _TERM.fullmatch(term.strip())
        kind = _kind(match.group(2).lower()) if match else None
        if match is None or kind is None:
            raise SourceError(
                f"there is no synthetic machine {term[:60]!r}", cure="See `wirelore machines` for the names."
            )
        times = int(match.group(1) or 1)
        if not 0 < times * kind.nodes + len(nodes) <= MAX_NODES:
            raise SourceError(
                f"{text[:60]!r} has no node or more than {MAX_NODES}", cure=f"Ask for 1 to {MAX_NODES} nodes."
            )
        shape = _shape(kind)
        for rack in range(times):
            first = len(nodes)
            nodes += [_node(kind, shape, len(nodes) + i, rack) for i in range(kind.nodes)]
            if kind.nodes > 1:
                network.append(NetworkPath(PathKind.MNNVL, tuple(range(first, len(nodes)))))
    if len(nodes) > 1 and not (len(network) == 1 and len(network[0].nodes) == len(nodes)):
        network.append(NetworkPath(PathKind.NET, tuple(range(len(nodes)))))
    return Topology(
        nodes=tuple(nodes),
        network=tuple(network),
        warnings=(Notice("synthetic", f"{PREFIX}{text.removeprefix(PREFIX)} is a described machine, not a real one."),),
        provenance=(
            Origin("paths", Provenance.ASSUMED, "synthetic machine"),
            Origin("gpus.memory_bytes", Provenance.CATALOG, "catalog"),
        ),
    )


def _shape(kind: Machine) -> NodeShape:
    figures = gpu_figures(kind.gpu)
    if figures is None:
        raise KeyError(kind.gpu)
    nics = tuple(
        Nic(
            f"mlx5_{i}",
            label=f"NIC{i}",
            speed_gbps=kind.nic_gbps,
            link_layer="InfiniBand",
            state="active",
            numa_node=i * kind.sockets // kind.nics,
        )
        for i in range(kind.nics)
    )
    rows = tuple(tuple(_nic_path(kind, g, i) for i in range(kind.nics)) for g in range(kind.gpus))
    gpus = tuple(
        Gpu(
            index=i,
            name=figures.name,
            memory_bytes=figures.memory_bytes,
            compute_capability=figures.compute_capability,
            numa_node=i * kind.sockets // kind.gpus,
            nvlinks_active=figures.nvlinks if kind.path_of(0, 1).is_fast else None,
            nvlinks_total=figures.nvlinks if kind.path_of(0, 1).is_fast else None,
            nearest_nics=_nearest(nics, rows[i]),
        )
        for i in range(kind.gpus)
    )
    pairs = ((a, b) for a in range(kind.gpus) for b in range(a + 1, kind.gpus))
    return NodeShape(gpus, tuple(kind.path_of(a, b) for a, b in pairs), nics, rows if nics else ())


def _nic_path(kind: Machine, gpu: int, nic: int) -> Path:
    if gpu * kind.nics // kind.gpus == nic:
        return Path(kind.nic_kind)
    same_socket = gpu * kind.sockets // kind.gpus == nic * kind.sockets // kind.nics
    return Path(PathKind.NODE if same_socket else PathKind.SYS)


def _nearest(nics: tuple[Nic, ...], row: tuple[Path, ...]) -> tuple[str, ...]:
    best = min((p.slowness for p in row), default=None)
    return tuple(nic.name for nic, p in zip(nics, row, strict=True) if p.slowness == best)


def _node(kind: Machine, shape: NodeShape, position: int, rack: int) -> Node:
    fabric = None
    if kind.nodes > 1:
        fabric = Fabric(FabricState.COMPLETED, 0, f"00000000-0000-0000-0000-{rack + 1:012d}", clique_id=1)
    states = tuple(GpuState(fabric=fabric) for _ in shape.gpus)
    return Node(shape=shape, gpus=states, hostname=f"node{position}")
