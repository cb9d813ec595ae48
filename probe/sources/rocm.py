"""AMD's `rocm-smi --showtopo` and `amd-smi topology`, as text or JSON -> Topology. GPUs as these tools number them.

Both print what the kernel's KFD driver knows. From its kfd_crat.c and rocm_smi_lib's topology code:
- XGMI joins two GPUs over Infinity Fabric, whatever the number of GPUs in between; it weighs 15 for each of them
  (13 inside a socket), and always counts as one hop.
- PCIE goes over the CPU, or a switch, which KFD does not see. From GPU to its CPU it weighs 20. 2 hops (weight 40)
  stay with one NUMA node, so the path is NODE or better; 3 hops (more weight) go from one NUMA node to another: SYS.
- A bandwidth 'min-max' (MB/s) is that of one xGMI link and of all links of the pair.
"""

from __future__ import annotations

from collections.abc import Sequence

from probe.errors import SourceError, one_line
from probe.islands import islands, partial_meshes
from probe.sources.rocm_tables import NUMA, Tables, Unreadable, has_tables, read_tables
from probe.sources.sysfs import normal_bus_id
from probe.topology import (
    Gpu,
    GpuState,
    Node,
    NodeShape,
    Notice,
    Origin,
    P2p,
    P2pStatus,
    Path,
    PathKind,
    Provenance,
    Topology,
)
from probe.units import ranges, some

MAX_CHARS = 16 << 20
_CURE = "Run `rocm-smi --showtopo > topo.txt` (or `amd-smi topology --json`) on the machine and give the whole file."
_XGMI_HOP_WEIGHT = 15
_ONE_NODE_HOPS, _ONE_NODE_WEIGHT = 2, 40
_MAX_LINKS = 16
_ACCESS = {
    "ENABLED": P2pStatus.OK,
    "True": P2pStatus.OK,
    "DISABLED": P2pStatus.NOT_SUPPORTED,
    "False": P2pStatus.NOT_SUPPORTED,
}
_MAX_NUMA_NODE = 1 << 12


def looks_like_rocm(head: str) -> bool:
    """Whether a text holds a topology table of rocm-smi or amd-smi. No NVIDIA tool prints their titles."""
    return has_tables(head)


def read_rocm(text: str, *, where: str) -> Topology:
    """One machine. A pair's path is what both rows tell; where they differ the slower counts and a notice says so.

    Raises SourceError where there is no table, or where the text could be read in more than one way.
    """
    if len(text) > MAX_CHARS:
        raise SourceError(f"{where}: {len(text):,} characters are no topology text", cure=_CURE)
    try:
        return _Reading(read_tables(text)).topology()
    except (Unreadable, ValueError) as why:
        raise SourceError(f"{where}: {why}", cure=_CURE) from None


class _Reading:
    """One text's tables on their way to a Topology; says in `notices` what a person should know."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.count = tables.count
        self.notices = [Notice(code, message, 0) for code, message in tables.notices]
        self.numa = [self._numa_node(i) for i in range(self.count)]

    def topology(self) -> Topology:
        shows_types = "type" in self.tables.cells
        paths = self._paths()
        gpus = tuple(
            Gpu(i, self._fact(i, "card series"), memory_bytes=self._memory(i), numa_node=self.numa[i])
            for i in range(self.count)
        )
        shape = NodeShape(gpus, paths, nvlink_visible=shows_types)
        node = Node(shape, tuple(GpuState(pci_bus_id=self._bus_id(i)) for i in range(self.count)))
        topology = Topology((node,))
        self._say_what_is_odd(shape, topology)
        told = {
            "paths": bool(self.tables.cells),
            "gpus.numa_node": any(n is not None for n in self.numa),
            "gpus.name": any(g.name for g in gpus),
            "gpus.memory_bytes": any(g.memory_bytes for g in gpus),
        }
        origins = [Origin(f, Provenance.READ, "rocm-smi or amd-smi topology", 0) for f, there in told.items() if there]
        return Topology((node,), warnings=tuple(self.notices), provenance=tuple(origins))

    def _say(self, code: str, message: str) -> None:
        self.notices.append(Notice(code, message, 0))

    # --- paths ---

    def _paths(self) -> tuple[Path, ...]:
        pairs = [(a, b) for a in range(self.count) for b in range(a + 1, self.count)]
        paths = []
        unequal, refused = [], []
        for a, b in pairs:
            told = [r for pair in ((a, b), (b, a)) if (r := self._reading(*pair)) is not None]
            path = max(told, key=lambda p: p.slowness, default=Path(PathKind.UNKNOWN))
            labels = tuple(p.label for p in told)
            if len(set(labels)) == 2:
                unequal.append(f"{a}-{b} ({labels[0]}, {labels[1]})")
            access = self._access(a, b)
            refused += [f"{a}-{b}"] if access and access.read is not P2pStatus.OK else []
            asymmetric = (labels[0], labels[1]) if len(set(labels)) == 2 else None
            paths.append(Path(path.kind, path.links, p2p=access, asymmetric=asymmetric))
        if unequal:
            self._say("asymmetric", f"the two rows of {some(unequal)} differ; the slower reading counts")
        if refused:
            self._say("p2p-not-ok", f"the driver grants no peer access between {some(refused)}: measure before use")
        self._say_what_is_unknown(pairs, paths)
        return tuple(paths)

    def _cell(self, table: str, a: int, b: int) -> str | None:
        return self.tables.cells.get(table, {}).get((a, b))

    def _number(self, table: str, a: int, b: int) -> int | None:
        cell = self._cell(table, a, b)
        return int(cell) if cell and cell.isdigit() and int(cell) else None

    def _reading(self, a: int, b: int) -> Path | None:
        """The path from a to b as a's rows tell it; None where they don't."""
        kind = self._cell("type", a, b)
        if kind is None:
            return None
        if kind == "XGMI":
            return Path(PathKind.XGMI, self._links(a, b))
        return Path(self._pcie(a, b) if kind == "PCIE" else PathKind.UNKNOWN)

    def _pcie(self, a: int, b: int) -> PathKind:
        """NODE stands for 'within a NUMA node': whether a switch makes it nearer, nobody here tells."""
        hops, weight = self._number("hops", a, b), self._number("weight", a, b)
        nodes = self.numa[a], self.numa[b]
        far = [hops > _ONE_NODE_HOPS] if hops and hops >= _ONE_NODE_HOPS else []
        far += [weight > _ONE_NODE_WEIGHT] if weight and weight >= _ONE_NODE_WEIGHT else []
        far += [nodes[0] != nodes[1]] if None not in nodes else []
        return PathKind.UNKNOWN if not far else PathKind.SYS if any(far) else PathKind.NODE

    def _links(self, a: int, b: int) -> int | None:
        low, _, high = (self._cell("bandwidth", a, b) or "").partition("-")
        if not (low.isdigit() and high.isdigit() and int(low)) or int(high) % int(low):
            return None
        links = int(high) // int(low)
        return links if 1 <= links <= _MAX_LINKS else None

    def _access(self, a: int, b: int) -> P2p | None:
        told = {_ACCESS[c] for pair in ((a, b), (b, a)) if (c := self._cell("access", *pair)) in _ACCESS}
        if not told:
            return None
        worse = P2pStatus.OK if told == {P2pStatus.OK} else P2pStatus.NOT_SUPPORTED
        return P2p(read=worse, write=worse)

    def _say_what_is_unknown(self, pairs: Sequence[tuple[int, int]], paths: Sequence[Path]) -> None:
        if not pairs:
            return
        if "type" not in self.tables.cells:
            what = "no link type table: xGMI is unknown, not absent, and so are all paths"
            self._say("nvlink-not-visible", f"{what}; add the whole `rocm-smi --showtopo`")
            return
        rows = {a for a, _ in self.tables.cells["type"]}
        lost = [i for i in range(self.count) if i not in rows]
        if lost:
            self._say("rows-missing", f"the link type table tells no row of GPU {ranges(lost)}: the text may be cut")
        unknown = [f"{a}-{b}" for (a, b), p in zip(pairs, paths, strict=True) if p.kind is PathKind.UNKNOWN]
        if unknown:
            self._say("paths-unknown", f"the text does not tell how {some(unknown)} reach each other; measure it")
        if any(p.kind is PathKind.NODE for p in paths):
            what = "AMD's tools tell no PCIe switches: paths within a NUMA node count as NODE and may be nearer"
            self._say("pcie-level-coarse", f"{what}; an RCCL dump (NCCL_TOPO_DUMP_FILE) tells")
        around = [
            f"{a}-{b}"
            for (a, b), p in zip(pairs, paths, strict=True)
            if p.kind is PathKind.XGMI
            and max(self._number("weight", *x) or 0 for x in ((a, b), (b, a))) > _XGMI_HOP_WEIGHT
        ]
        if around:
            what = f"{len(around)} GPU pairs reach each other over xGMI only through other GPUs ({some(around)})"
            self._say("xgmi-indirect", f"{what}: they share links with others, so measure before trusting the speed")

    # --- GPUs ---

    def _fact(self, i: int, *names: str) -> str | None:
        facts = self.tables.facts.get(i, {})
        text = next((facts[name] for name in names if name in facts), "")
        return one_line(text, 80) if text and text not in ("N/A", "0x0") else None

    def _numa_node(self, i: int) -> int | None:
        """The kernel's node of the PCI device, '-1' where it knows none: then KFD's is its fallback, no fact.

        The two agree else. Where the tool told both for some GPU, one that has only one of the two is damaged.
        """
        affinity, node = (_integer(self._fact(i, name)) for name in NUMA)
        both = any(all(name in facts for name in NUMA) for facts in self.tables.facts.values())
        told = node if affinity is None else affinity
        is_whole = (not both or None not in (affinity, node)) and node in (told, None)
        return told if told is not None and is_whole and 0 <= told < _MAX_NUMA_NODE else None

    def _memory(self, i: int) -> int | None:
        size = _integer(self._fact(i, "vram total memory (b)"))
        return size if size is not None and 0 < size < 1 << 50 else None

    def _bus_id(self, i: int) -> str | None:
        return self.tables.bus_ids.get(i) or normal_bus_id(self._fact(i, "pci bus"))

    # --- what a person should know ---

    def _say_what_is_odd(self, shape: NodeShape, topology: Topology) -> None:
        told = any("numa" in name for facts in self.tables.facts.values() for name in facts)
        unsure = [i for i in range(self.count) if self.numa[i] is None] if told else []
        if unsure:
            what = f"no NUMA node is told of GPU {ranges(unsure)}: a virtual machine, silent firmware, or a cut text"
            self._say("affinity-unknown", f"{what}; pin by measurement only")
        meshes = partial_meshes(shape)
        if meshes:
            shown = some(["-".join(map(str, c)) for c in meshes])
            self._say(
                "partial-mesh", f"xGMI joins GPUs that are not all pairwise linked; fully linked are only {shown}"
            )
        members = [[r.gpu for r in island.members] for island in islands(topology)]
        apart = [",".join(map(str, m)) for m in members if m[-1] - m[0] != len(m) - 1]
        if apart:
            what = f"xGMI islands with GPUs that are not consecutive: {some(apart)}"
            self._say("islands-not-adjacent", f"{what}; the GPU order matters")


def _integer(text: str | None) -> int | None:
    digits = (text or "").removeprefix("-")
    return int(text or "") if digits.isascii() and digits.isdigit() and len(digits) < 19 else None
