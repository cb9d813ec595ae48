"""Reads recorded machines with the real source and scores what it says against an index of expected answers.

    python benchmarks/corpus.py --index FILE [--kind 'nvidia-smi topo -m']

The index has one JSON record per line (`id`, `kind`, `file` relative to the index, `expected`, `hand`). Compared are,
for a matrix: the cells as printed, NVLink pairs, fast domains, maximal cliques, isolated GPUs, nearest NICs, asymmetric
pairs, and the warnings that are due. Ends with one `name: value` line per figure;
exits 1 when anything is wrong or refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.corpus_kinds import KINDS
from probe.errors import SourceError
from probe.islands import islands, partial_meshes
from probe.sources.registry import read_text
from probe.topology import PathKind, Topology

Record = dict[str, Any]

EXPECTED_WRONGLY = {
    (
        "315",
        "nearest_nics",
    ): "the rows GPU4..GPU7 print SYS under all three NICs, and the index lists such GPUs with level SYS "
    "and all NICs everywhere else (id 095, GPU0); here it leaves them out",
}
"""(id, field) -> the proof, from the text itself, that the expected answer is wrong. Shown aloud, still compared."""

DUE_BY_STATUS = {"truncated": "truncated", "headless": "header-missing", "CNS": "p2p-not-ok"}
DUE_BY_HAND = {
    "first NIC Legend entries are overwritten": "legend-garbled",
    "asymmetric": "asymmetric",
    "is degraded": "degraded-links",
    "non adjacent": "islands-not-adjacent",
    "no header": "header-missing",
    "missing": "rows-missing",
    "topo -mp": "nvlink-not-visible",
    "cube mesh": "partial-mesh",
}
NAMES = {
    "nvidia-smi topo -m": "topo_m",
    "nvidia-smi topo -mp": "topo_mp",
    "nvidia-smi topo -p2p": "topo_p2p",
    "nvidia-smi -q -x": "smi_xml",
    "nccl topology xml": "nccl_xml",
    "rccl topology xml": "rccl_xml",
    "rocm-smi --showtopo": "rocm",
    "hwloc xml": "hwloc",
    "negative": "negative",
}


def kind_of(record: Record) -> str:
    kind = str(record["kind"])
    return "nvidia-smi topo -p2p" if kind.startswith("nvidia-smi topo -p2p") else kind


def is_negative(record: Record) -> bool:
    """A refusal is the right answer: no topology, or a file that is no machine at all (nothing is expected of it)."""
    return record["kind"] == "negative" or not record["expected"]


def mismatches(record: Record, topology: Topology) -> dict[str, str]:
    """Field -> what was read where it differs from what is expected."""
    expected: Record = record["expected"]
    if (compared := KINDS.get(kind_of(record))) is not None:
        found = compared(expected, topology)
        wrong = {name: f"read {read}, expected {due}" for name, (read, due) in found.items() if read != due}
    elif kind_of(record) == "nvidia-smi topo -p2p":
        wrong = _p2p_mismatches(record, topology)
    else:
        wrong = _matrix_mismatches(expected, topology)
    missing = warnings_due(record) - {w.code for w in topology.warnings}
    if missing:
        wrong["warnings"] = f"no warning {', '.join(sorted(missing))}"
    return wrong


def warnings_due(record: Record) -> set[str]:
    expected: Record = record["expected"]
    due = {code for word, code in DUE_BY_STATUS.items() if word in str(expected.get("status") or "")}
    due |= {code for words, code in DUE_BY_HAND.items() if words in str(record.get("hand") or "")}
    due |= {"asymmetric"} if expected.get("asymmetric") else set()
    due |= {"nvlink-not-visible"} if expected.get("nvlink_visible") is False else set()
    return due | ({"partial-mesh"} if expected.get("partial_mesh") else set())


def _p2p_mismatches(record: Record, topology: Topology) -> dict[str, str]:
    letter = str(record["kind"])[-1]
    capability = {"r": "read", "w": "write", "n": "nvlink", "a": "atomics", "p": "pcie"}[letter]
    shape = topology.nodes[0].shape
    # A text without its command line can't tell which capability it shows; then it counts as read.
    seen = {getattr(p.p2p, capability) or p.p2p.read if p.p2p else None for p in shape.paths}
    wrong = {}
    if len(shape.gpus) != record["expected"]["gpus"]:
        wrong["gpus"] = str(len(shape.gpus))
    if (not any(s is None for s in seen) and {s.value for s in seen if s} == {"OK"}) != record["expected"]["all_ok"]:
        wrong["all_ok"] = str(sorted(str(s) for s in seen))
    return wrong


def _matrix_mismatches(expected: Record, topology: Topology) -> dict[str, str]:
    node = topology.nodes[0]
    shape = node.shape
    n = len(shape.gpus)
    found: dict[str, tuple[object, object]] = {"gpus": (n, expected["gpus"])}
    if n != expected["gpus"]:
        return {"gpus": f"{n}, not {expected['gpus']}"}
    told = {(a, b): p for a, b, p in shape.pairs}
    absent = [a for a in range(n) if expected["matrix"][a] is None]
    for a in range(n):
        row = expected["matrix"][a]
        if row is not None:
            found[f"matrix row {a}"] = (_as_printed(topology, a), ["SYS" if c == "SOC" else c for c in row])
    for a in absent:
        unknown = [told[min(a, b), max(a, b)].kind is PathKind.UNKNOWN for b in absent if b != a]
        found[f"matrix row {a}"] = (all(unknown), True)
    links = [[a, b, p.links] for a, b, p in shape.pairs if p.kind is PathKind.NVLINK]
    found["nvlink_pairs"] = (links, expected["nvlink_pairs"])
    cliques = [list(c) for c in partial_meshes(shape)]
    in_mesh = {g for c in cliques for g in c}
    groups = [[ref.gpu for ref in island.members] for island in islands(topology)]
    domains = sorted(g for g in groups if len(g) > 1 and not in_mesh & set(g))
    if expected.get("fast_domains") is not None:
        found["fast_domains"] = (domains, sorted(expected["fast_domains"]))
    if expected.get("maximal_cliques") is not None:
        found["maximal_cliques"] = (sorted(cliques), sorted(expected["maximal_cliques"]))
    if expected.get("isolated") is not None:
        alone = [g for g in range(n) if not any(g in (a, b) and p.is_fast for a, b, p in shape.pairs)]
        found["isolated"] = (alone, expected["isolated"])
    found["asymmetric"] = (
        [[f"GPU{a}", f"GPU{b}", *p.asymmetric] for a, b, p in shape.pairs if p.asymmetric],
        expected["asymmetric"],
    )
    found["nearest_nics"] = (_nearest(topology), expected["nearest_nics"])
    if expected.get("nvlink_visible") is False:
        found["nvlink_visible"] = (shape.nvlink_visible, False)
    return {field: f"read {seen}, expected {wanted}" for field, (seen, wanted) in found.items() if seen != wanted}


def _as_printed(topology: Topology, a: int) -> list[str]:
    shape = topology.nodes[0].shape
    row = []
    for b in range(len(shape.gpus)):
        path = shape.path(a, b) if a != b else None
        if path is None:
            row.append("X")
        elif path.asymmetric:
            row.append(path.asymmetric[0 if a < b else 1])
        else:
            row.append(path.label)
    return row


def _nearest(topology: Topology) -> Record:
    shape = topology.nodes[0].shape
    labels = {nic.name: nic.label for nic in shape.nics}
    place = {nic.name: i for i, nic in enumerate(shape.nics)}
    return {
        f"GPU{gpu.index}": {
            "level": shape.nic_paths[gpu.index][place[gpu.nearest_nics[0]]].label,
            "nics": [labels[name] for name in gpu.nearest_nics],
        }
        for gpu in shape.gpus
        if gpu.nearest_nics
    }


def score(index: Path, only: str | None = None) -> tuple[dict[str, Counter[str]], list[str], int]:
    """(kind -> right, wrong, refused, unread), the mismatches as lines, and how many expectations were proven wrong."""
    table: dict[str, Counter[str]] = {}
    lines: list[str] = []
    proven = 0
    for text in index.read_text().splitlines():
        record: Record = json.loads(text)
        kind = kind_of(record)
        if only and not kind.startswith(only):
            continue
        counts = table.setdefault(kind, Counter())
        where = f"{record['id']} ({record['file']})"
        content = (index.parent / record["file"]).read_bytes().decode("utf-8", "replace")
        try:
            topology = read_text(content, where=record["file"])
        except SourceError as refusal:
            counts["right" if is_negative(record) else "refused"] += 1
            if not is_negative(record):
                lines.append(f"{where}: refused: {refusal}")
            continue
        if is_negative(record):
            counts["wrong"] += 1
            lines.append(f"{where}: read as {topology.gpu_count} GPUs, a refusal is due")
            continue
        wrong = mismatches(record, topology)
        open_ones = {f: what for f, what in wrong.items() if (record["id"], f) not in EXPECTED_WRONGLY}
        counts["wrong" if open_ones else "right"] += 1
        for name, what in wrong.items():
            proof = EXPECTED_WRONGLY.get((record["id"], name))
            proven += proof is not None
            lines.append(f"{where}: {name}: {what}" + (f"\n    the expected answer is wrong: {proof}" if proof else ""))
    return table, lines, proven


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--index", type=Path, required=True, help="JSON lines, one record per machine")
    parser.add_argument("--kind", help="score only kinds that begin so")
    options = parser.parse_args()
    table, lines, proven = score(options.index, options.kind)
    print(f"{'kind':28}{'right':>7}{'wrong':>7}{'refused':>9}")
    for kind, counts in sorted(table.items()):
        print(f"{kind:28}{counts['right']:7}{counts['wrong']:7}{counts['refused']:9}")
    for line in lines:
        print(line)
    failed = 0
    for kind, name in NAMES.items():
        counts = table.get(kind, Counter())
        failed += counts["wrong"] + counts["refused"]
        if kind in table:
            print(f"{name}_right: {counts['right']}\n{name}_total: {counts.total()}")
    print(f"expected_proven_wrong: {proven}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
