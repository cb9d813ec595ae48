"""`nvidia-smi topo` text (-m, -mp, -p2p), alone or inside any dump, as people paste it -> Topology."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from probe.errors import SourceError
from probe.islands import islands, partial_meshes
from probe.sources import smi_dump
from probe.sources.smi_matrix import Matrix, matrices
from probe.sources.smi_rows import MAX_NICS, P2P_WORDS, Line, Unreadable, physical_lines
from probe.topology import (
    Gpu,
    GpuState,
    Nic,
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
_CURE = "Run `nvidia-smi topo -m > topo.txt` on the machine and give that file."
_ROW_SOMEWHERE = re.compile(
    r"GPU[0-9]{1,3}(?:\x1b\[[0-9;]*m|[\s|]|&nbsp;|\\t)*(?:NV[1-9]|SYS|SOC|NODE|PHB|PXB|PIX|CNS|GNS|TNS|OK|X(?![A-Za-z]))"
)
_ASKED_FOR = re.compile(r"nvidia-smi\s+topo\b|\bGPU Topology:")
_COMMAND = re.compile(
    r"topo\s+(?:-i\s*\S+\s+)?(?:(-mp|--matrix-pci)|(-m|--matrix)|(?:-p2p|--p2pstatus)\s+([rwnap]{1,5}))(?![\w-])"
)
_CAPABILITY = {"r": "read", "w": "write", "n": "nvlink", "a": "atomics", "p": "pcie"}
_LEGEND_ENDS = (
    *("self", "upi)", "qpi)", "node", "nodes", "cpu)", "cpu", "bridge", "bridges", "bridge)", "switch", "switches"),
    *("nvlinks", "link", "numa", "ok", "supported", "unknown", "regkey"),
)
_LEGEND_ENTRY = re.compile(r"\s*(?:X|SYS|SOC|NODE|PHB|PXB|PIX|NV#|OK|CNS|GNS|TNS|NS|U|DR)\s*=\s*(.*)")


def looks_like_topo(text: str) -> bool:
    """Whether a text holds (or at least announces) a matrix of `nvidia-smi topo`."""
    head = text[:MAX_CHARS]
    return bool(_ROW_SOMEWHERE.search(head) or _ASKED_FOR.search(head))


def read_topo(text: str, *, where: str) -> Topology:
    """One machine from the text of `nvidia-smi topo -m`, `-mp` or `-p2p`, whatever stands around it.

    A pair's path is what both rows tell; where they differ the slower reading counts and a notice says so.
    Raises SourceError where there is no matrix, or where it could be read in more than one way.
    """
    if len(text) > MAX_CHARS:
        raise SourceError(f"{where}: {len(text):,} characters are no topology text", cure=_CURE)
    lines = physical_lines(smi_dump.clean(text))
    found = list(matrices(lines))
    readable = [m for m in found if isinstance(m, Matrix)]
    if not readable:
        why = str(found[0]) if found else "no topology matrix of `nvidia-smi topo` in this text"
        raise SourceError(f"{where}: {why}", cure=_CURE)
    try:
        return _Reading(lines, readable, [m for m in found if isinstance(m, Unreadable)]).topology()
    except (Unreadable, ValueError) as why:
        raise SourceError(f"{where}: {why}", cure=_CURE) from None


class _Reading:
    """One text's matrices and surroundings on their way to a Topology."""

    def __init__(self, lines: Sequence[Line], found: Sequence[Matrix], refused: Sequence[Unreadable]) -> None:
        self.lines = lines
        self.notices: list[Notice] = []
        commands = [self._command(m, found) for m in found]
        wires = [(m, c) for m, c in zip(found, commands, strict=True) if not m.p2p]
        if refused and not wires:
            raise refused[0]
        for why in refused:
            self._say("matrix-unreadable", f"another matrix in the text is left out: {why}")
        shown = [(m, self._shows_nvlink(m, c, found)) for m, c in wires]
        best = [m for m, nvlink in shown if nvlink] or [m for m, _ in shown]
        self.matrix = _agreed(best) if best else None
        self.nvlink_visible = any(nvlink for _, nvlink in shown)
        self.grants = [(m, c or "r") for m, c in zip(found, commands, strict=True) if m.p2p]
        base = self.matrix or self.grants[0][0]
        self.base = base
        self.count = max(base.gpus) + 1
        for matrix in (self.matrix, *(m for m, _ in self.grants)):
            for code, message in matrix.notices if matrix else ():
                self._say(code, message)

    def topology(self) -> Topology:
        paths = self._with_grants(self._paths())
        nics, nic_paths = self._nics()
        names, states, versions = self._identities()
        gpus = tuple(self._gpu(i, names.get(i), nics, nic_paths[i] if nic_paths else ()) for i in range(self.count))
        shape = NodeShape(gpus, paths, nics, nic_paths, self.nvlink_visible)
        node = Node(shape, states, driver_version=versions[0], cuda_version=versions[1])
        self._say_what_is_odd(shape, Topology((node,)))
        source = (
            "nvidia-smi topo text"
            if self.matrix is None
            else f"nvidia-smi topo {'-m' if self.nvlink_visible else '-mp'} text"
        )
        facts = ["paths" if self.matrix else "paths.p2p"]
        facts += ["nics", "nic_paths"] if nics else []
        facts += ["gpus.cpu_affinity", "gpus.numa_node"] if any(g.cpu_affinity for g in gpus) else []
        origins = [Origin(f, Provenance.READ, source, 0) for f in facts]
        told = {"gpus.name": bool(names), "gpus.uuid": any(s.uuid for s in states), "driver_version": bool(versions[0])}
        origins += [Origin(f, Provenance.READ, "GPU list in the same text", 0) for f, there in told.items() if there]
        return Topology((node,), warnings=tuple(self.notices), provenance=tuple(origins))

    def _say(self, code: str, message: str) -> None:
        notice = Notice(code, message, 0)
        if notice not in self.notices:
            self.notices.append(notice)

    # --- what kind of matrix ---

    def _between(self, start: int, end: int) -> str:
        return "\n".join(line.text for line in self.lines[start:end])

    def _command(self, matrix: Matrix, found: Sequence[Matrix]) -> str | None:
        """'mp', 'm', or the letters after -p2p, of the last command line before a matrix."""
        before = max((m.lines[1] + 1 for m in found if m.lines[1] < matrix.lines[0]), default=0)
        commands = list(_COMMAND.finditer(self._between(max(before, matrix.lines[0] - 200), matrix.lines[0])))
        last = commands[-1] if commands else None
        if last is None or bool(last.group(3)) != matrix.p2p:
            return None
        return str(last.group(3) or ("mp" if last.group(1) else "m"))

    def _shows_nvlink(self, matrix: Matrix, command: str | None, found: Sequence[Matrix]) -> bool:
        if any(cell.startswith("NV") for cell in matrix.cells.values()):
            return True
        after = min((m.lines[0] for m in found if m.lines[0] > matrix.lines[1]), default=len(self.lines))
        legend = self._between(matrix.lines[1] + 1, min(after, matrix.lines[1] + 60))
        if command:
            return command == "m"
        return "egend" not in legend.replace("NIC Legend", "") or bool(re.search(r"NV#|NVLink", legend))

    # --- paths ---

    def _cell(self, row: str, column: str) -> str | None:
        return self.matrix.cells.get((row, column)) if self.matrix else None

    def _paths(self) -> tuple[Path, ...]:
        paths, unequal, unknown = [], [], 0
        for a in range(self.count):
            for b in range(a + 1, self.count):
                path = _merge(self._cell(f"GPU{a}", f"GPU{b}"), self._cell(f"GPU{b}", f"GPU{a}"))
                unknown += path.kind is PathKind.UNKNOWN
                if path.asymmetric:
                    unequal.append(f"{a}-{b} ({path.asymmetric[0]}, {path.asymmetric[1]})")
                paths.append(path)
        if unequal:
            self._say(
                "asymmetric",
                f"the two rows of {len(unequal)} GPU pairs differ: {some(unequal)}; the slower reading counts",
            )
        if unknown and self.matrix:
            self._say("rows-missing", f"{unknown} GPU pairs are told by no row: their paths are unknown")
        if not self.matrix:
            self._say(
                "p2p-only",
                "`topo -p2p` tells peer access, not the wires: all paths are unknown; add `nvidia-smi topo -m`",
            )
        elif not self.nvlink_visible:
            self._say(
                "nvlink-not-visible",
                "this is the PCIe view (`topo -mp`), which hides NVLink: NVLink is unknown, not absent",
            )
        return tuple(paths)

    def _with_grants(self, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        granted: list[dict[str, P2pStatus]] = [{} for _ in paths]
        for matrix, letters in self.grants:
            if matrix.gpus != self.base.gpus:
                self._say("p2p-ignored", "the -p2p matrix lists other GPUs than the -m matrix and is left out")
                continue
            unequal, refused, k = [], [], -1
            for a in range(self.count):
                for b in range(a + 1, self.count):
                    k += 1
                    cells = {matrix.cells.get((f"GPU{a}", f"GPU{b}")), matrix.cells.get((f"GPU{b}", f"GPU{a}"))} - {
                        None
                    }
                    if not cells:
                        continue
                    worst = max((str(c) for c in cells), key=P2P_WORDS.index)
                    for letter in letters:
                        granted[k][_CAPABILITY[letter]] = P2pStatus(worst)
                    unequal += [f"{a}-{b}"] if len(cells) > 1 else []
                    refused += [f"{a}-{b} {worst}"] if worst != "OK" else []
            if unequal:
                self._say("asymmetric", f"peer access differs by direction between {some(unequal)}; the worse counts")
            if refused:
                self._say("p2p-not-ok", f"the driver grants no peer access ({letters}) between {some(refused)}")
        return tuple(
            Path(p.kind, p.links, p.version, p.through, P2p(**g), p.asymmetric) if g else p
            for p, g in zip(paths, granted, strict=True)
        )

    # --- NICs ---

    def _nics(self) -> tuple[tuple[Nic, ...], tuple[tuple[Path, ...], ...]]:
        labels = self.matrix.nics if self.matrix else ()
        if len(labels) > MAX_NICS:
            raise Unreadable(f"{len(labels)} NICs are more than any machine has")
        legend = smi_dump.nic_legend([line.text for line in self.lines])
        early = bool(legend) and any(x not in legend and re.fullmatch(r"NIC[0-9]+", x) for x in labels)
        ending = next(
            (x for x in labels if early and re.search(rf"\b{re.escape(x)}[ \t]*:", self.lines[-1].text)), None
        )
        if ending:
            legend = {**legend, ending: None}  # the text stops in this entry
        counts = Counter(name for name in legend.values() if name)
        nics, garbled = [], []
        for label in labels:
            name = legend.get(label)
            if label in legend and (name is None or counts[name] > 1 or (name in labels and name != label)):
                garbled.append(label)
                name = None
            nics.append(Nic(name or label, label))
        if garbled:
            self._say(
                "legend-garbled", f"the NIC legend is damaged at {some(garbled)}: those keep their labels as names"
            )
        if early:
            self._say("truncated", "the NIC legend ends early: some NICs keep their labels as names")
        rows, unequal = [], []
        for gpu in range(self.count if labels else 0):
            row = tuple(_merge(self._cell(f"GPU{gpu}", nic), self._cell(nic, f"GPU{gpu}")) for nic in labels)
            unequal += [f"GPU{gpu}-{nic}" for nic, path in zip(labels, row, strict=True) if path.asymmetric]
            rows.append(row)
        if unequal:
            self._say("asymmetric", f"the two rows of {some(unequal)} differ; the slower reading counts")
        return tuple(nics), tuple(rows)

    # --- GPUs ---

    def _gpu(self, index: int, name: str | None, nics: Sequence[Nic], paths: Sequence[Path]) -> Gpu:
        affinity = self.base.affinity.get(index)
        # A NIC whose path is not told could be the nearest one.
        known = bool(paths) and all(p.kind is not PathKind.UNKNOWN for p in paths)
        best = min((p.kind.distance for p in paths), default=0)
        nearest = (
            tuple(nic.name for nic, p in zip(nics, paths, strict=False) if p.kind.distance == best) if known else ()
        )
        cpus, numa = (affinity.cpus, affinity.numa_node) if affinity else (None, None)
        return Gpu(index, name, numa_node=numa, cpu_affinity=cpus, nearest_nics=nearest)

    def _identities(self) -> tuple[Mapping[int, str], tuple[GpuState, ...], tuple[str | None, str | None]]:
        text = self._between(0, len(self.lines))
        listed = smi_dump.gpu_list(text)
        if any(i >= self.count for i in listed):
            self._say(
                "names-ignored", f"the text lists GPU {max(listed)}, the matrix has {self.count}: names are left out"
            )
            listed = {}
        uuids = Counter(entry.uuid for entry in listed.values())
        states = []
        for i in range(self.count):
            entry = listed.get(i)
            uuid = entry.uuid if entry and uuids[entry.uuid] == 1 else None
            states.append(GpuState(uuid=uuid, mig_instances=entry.mig if entry else ()))
        names = {i: entry.name for i, entry in listed.items() if entry.name}
        return names, tuple(states), smi_dump.versions(text)

    # --- what a person should know ---

    def _say_what_is_odd(self, shape: NodeShape, topology: Topology) -> None:
        doubts = {g: a.doubt for g, a in self.base.affinity.items() if a.doubt}
        if self.matrix and doubts:
            why = "; ".join(sorted(set(doubts.values())))
            self._say(
                "affinity-unknown", f"CPU affinity or NUMA node of GPU {ranges(sorted(doubts))} is not certain: {why}"
            )
        if self._legend_is_cut():
            self._say("truncated", "the text ends inside the legend")
        meshes = partial_meshes(shape)
        if meshes:
            shown = some(["-".join(map(str, c)) for c in meshes])
            self._say(
                "partial-mesh", f"NVLink joins GPUs that are not all pairwise linked; fully linked are only {shown}"
            )
        links = Counter(p.links for p in shape.paths if p.kind is PathKind.NVLINK and p.links)
        most = max(links, key=lambda n: (links[n], n), default=0)
        weak = [
            f"{a}-{b} (NV{p.links})"
            for a, b, p in shape.pairs
            if p.links and p.links < most and (p.links * 2 > most or links[p.links] * 4 <= links.total())
        ]
        if weak and not meshes:
            self._say(
                "degraded-links", f"fewer links than the NV{most} of their siblings: {some(weak)}; a link may be down"
            )
        apart = [i for i in islands(topology) if (m := [r.gpu for r in i.members])[-1] - m[0] != len(m) - 1]
        if apart:
            shown = some([",".join(str(r.gpu) for r in i.members) for i in apart])
            self._say(
                "islands-not-adjacent",
                f"NVLink islands with GPUs that are not consecutive: {shown}; the GPU order matters",
            )
        if any(s.mig_instances for s in topology.nodes[0].gpus):
            self._say("mig", "the text lists MIG instances: they have no peer access, so each is an island of one")

    def _legend_is_cut(self) -> bool:
        last = next((line.text for line in reversed(self.lines) if line.text.strip()), "")
        if last.strip().lower() in ("legend:", "nic legend:"):
            return True
        entry = _LEGEND_ENTRY.fullmatch(last)
        if entry is None:
            return False
        words = entry.group(1).rstrip(" .`").lower().split()
        return not words or not words[-1].endswith(_LEGEND_ENDS) or words[-1] in ("pcie",)


def _agreed(found: Sequence[Matrix]) -> Matrix:
    """The fullest of several matrices that tell the same. Raises Unreadable where they tell different machines."""
    best = max(found, key=lambda m: len(m.cells))
    for other in found:
        if any(best.cells.get(pair, cell) != cell for pair, cell in other.cells.items()) or not set(other.gpus) <= set(
            best.gpus
        ):
            raise Unreadable("the text holds two matrices that differ: keep the one that is meant")
    return best


def _merge(there: str | None, back: str | None) -> Path:
    """One path from the readings of both ends."""
    readings = [_path(cell) for cell in (there, back) if cell is not None]
    if not readings:
        return Path(PathKind.UNKNOWN)
    slower = max(readings, key=lambda p: p.slowness)
    if len(readings) == 2 and readings[0] != readings[1]:
        return Path(slower.kind, slower.links, asymmetric=(str(there), str(back)))
    return slower


def _path(cell: str) -> Path:
    if cell.startswith("NV"):
        return Path(PathKind.NVLINK, int(cell[2:]))
    return Path(PathKind.SYS if cell == "SOC" else PathKind(cell))
