"""The tables of `rocm-smi --showtopo` and `amd-smi topology`, as text or JSON, as people paste them -> cells by pair.

A row counts only if every cell is a word of its table, their number is that of the columns and the diagonal is where
it belongs: a row that lost or gained something is left out, never shifted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from probe.sources import smi_dump
from probe.sources.sysfs import normal_bus_id

MAX_GPUS = 128
_MAX_LINE = 4096
_MAX_STARTS = 64

_MAX_ROWS = 4 * MAX_GPUS
_MAX_BLOCKS = 64

_TITLES = {
    "weight between two gpus": "weight", "weight table:": "weight",
    "hops between two gpus": "hops", "hops table:": "hops",
    "link type between two gpus": "type", "link type table:": "type",
    "link accessibility between two gpus": "access", "access table:": "access",
    "bandwidth between two gpus": "bandwidth", "numa bw table:": "bandwidth",
}  # fmt: skip
_NUMA_LINE = "(topology) numa"
_JSON_KEYS = ('"link_type"', "(topology) link type between drm", "(topology) weight between drm")
_OTHER_TITLE = re.compile(r"={4,}|\btable:|^\s*legend", re.IGNORECASE)
_SELF = r"0|X|SELF|N/A|-"
_CELLS = {
    "weight": r"[0-9]{1,6}|N/A",
    "hops": r"[0-9]{1,4}|N/A",
    "type": r"XGMI|PCIE|XXXX|UNKNOWN|SELF|N/A|0|X",
    "access": r"ENABLED|DISABLED|True|False|N/A|SELF|X",
    "bandwidth": r"[0-9]{1,9}-[0-9]{1,9}|N/A|SELF|X|0",
}
_DIAGONAL = {
    "weight": _SELF, "hops": _SELF, "type": _SELF, "access": rf"ENABLED|True|{_SELF}", "bandwidth": rf"0-0|{_SELF}",
}  # fmt: skip
_LABEL = r"GPU[0-9]{1,4}|(?:[0-9a-fA-F]{4,8}:)[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
_LABELS = re.compile(rf"(?<![\w\[])(?:{_LABEL})(?![\w\]])")
_GLUED_LABELS = re.compile(r"(?<![\w\[])(?:GPU[0-9]{1,4}){2,}(?![\w\]])")
_PER_GPU = re.compile(r"GPU\[([0-9]{1,4})\]\s*:\s*([^:\n]{1,60}):\s*(.{0,120})")
NUMA = ("(topology) numa affinity", "(topology) numa node")
_FACTS = (*NUMA, "card series", "vram total memory (b)", "pci bus")
_LINK_KEYS = {
    "type": "link_type",
    "weight": "weight",
    "hops": "num_hops",
    "access": "link_status",
    "bandwidth": "bandwidth",
}
_OLD_KEYS = {
    "type": "link_type", "weight": "weight", "hops": "hops", "access": "link_accessibility",
    "bandwidth": "numa_bandwidth",
}  # fmt: skip
_SMI_PAIR = re.compile(
    r"\(Topology\) (Weight|Hops|Link type) between DRM devices ([0-9]{1,4}) and ([0-9]{1,4})", re.IGNORECASE
)


class Unreadable(Exception):
    """Tables that could be read in more than one way, or in none; the message names why."""


@dataclass(slots=True)
class Tables:
    """Cells by table and pair, as printed; `facts` by GPU what 'GPU[0] : name: value' lines tell, in lower case."""

    count: int = 0
    cells: dict[str, dict[tuple[int, int], str]] = field(default_factory=dict)
    facts: dict[int, dict[str, str]] = field(default_factory=dict)
    bus_ids: dict[int, str] = field(default_factory=dict)
    notices: list[tuple[str, str]] = field(default_factory=list)

    def say(self, code: str, message: str) -> None:
        if (code, message) not in self.notices:
            self.notices.append((code, message))


@dataclass(slots=True)
class _Block:
    table: str
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[str]]] = field(default_factory=list)


def has_tables(text: str) -> bool:
    """Whether a text tells how AMD's GPUs are joined."""
    low = text.lower()
    return any(title in low for title in (*_TITLES, *_JSON_KEYS, _NUMA_LINE))


def read_tables(text: str) -> Tables:
    """Raises Unreadable where the text tells no GPUs, some of a machine's GPUs only, or two machines."""
    low = text.lower()
    is_text = any(title in low for title in _TITLES)
    document = None if is_text else _document(text)
    tables = _from_text(text) if document is None else _from_json(document)
    if not tables.count:
        raise Unreadable("no topology table of rocm-smi or amd-smi in this text")
    return tables


# --- text ---


def _from_text(text: str) -> Tables:
    # A dump may be long; what counts begins at the first title, less the line that it stands on.
    low = text.lower()
    first = min((at for title in (*_TITLES, _NUMA_LINE) if (at := low.find(title)) >= 0), default=len(text))
    start = max(0, low.rfind("\n", 0, first) - _MAX_LINE)
    lines = [line if len(line) <= _MAX_LINE else "" for line in smi_dump.clean(text[start:]).split("\n")]
    tables = Tables()
    blocks = list(islice(_blocks(lines), _MAX_BLOCKS + 1))
    if len(blocks) > _MAX_BLOCKS:
        raise Unreadable(f"the text holds more than {_MAX_BLOCKS} tables: keep one machine's")
    labels = _labels([b for b in blocks if b.columns or b.rows])
    for block in blocks:
        _read_block(block, labels, tables)
    for line in lines:
        for gpu, name, value in _PER_GPU.findall(line) if "GPU[" in line else ():
            facts = tables.facts.setdefault(int(gpu), {})
            key = " ".join(name.lower().split())
            if key not in _FACTS:
                continue
            if facts.setdefault(key, value.strip()) != value.strip():
                raise Unreadable(f"the text tells two values for '{key}' of GPU {int(gpu)}: keep one machine's")
    told = sorted(tables.facts)
    tables.count = len(labels)
    # Only with both lines of each is a list of GPUs whole (`rocm-smi --showtoponuma`).
    if not blocks and all(all(name in facts for name in NUMA) for facts in tables.facts.values()):
        if told != list(range(len(told))):
            raise Unreadable(f"the text lists only GPUs {', '.join(map(str, told[:8]))}")
        tables.count = len(told)
    if any(gpu >= tables.count for gpu in told):
        raise Unreadable(f"the text lists GPU {told[-1]}, the tables only {tables.count} GPUs")
    if tables.count > MAX_GPUS:
        raise Unreadable(f"{tables.count} GPUs are more than any machine has")
    tables.bus_ids = {i: bus for i, label in enumerate(labels) if (bus := normal_bus_id(label))}
    return tables


def _blocks(lines: Sequence[str]) -> Iterator[_Block]:
    block: _Block | None = None
    for line in lines:
        low = line.lower()
        titles = [table for title, table in _TITLES.items() if title in low] if "gpus" in low or "table" in low else []
        if titles or _OTHER_TITLE.search(line):
            if block:
                yield block
            block = _Block(titles[0]) if titles else None
        elif block and line.strip():
            _add_line(block, line)
            if max(len(block.rows), len(block.columns)) > _MAX_ROWS:
                raise Unreadable(f"the {block.table} table has more than {_MAX_ROWS} rows, which no machine has")
    if block:
        yield block


def _add_line(block: _Block, line: str) -> None:
    """A header names columns only; a row begins with one label; a line of cells alone goes on with the row before."""
    labels, rest = _split(line)
    cells = _cells(block.table, rest)
    if labels and not rest.strip() and not block.rows:
        block.columns += labels
    elif len(labels) == 1:
        block.rows.append((labels[0], rest.split() if cells is None else cells))
    elif labels:
        block.rows.append(("", []))  # two rows on one line: neither can be trusted
    elif block.rows and cells is not None:
        block.rows[-1][1].extend(cells)


def _split(line: str) -> tuple[list[str], str]:
    """The labels of a line, and what follows the first; a prefix ('# ', a time stamp) stands before it."""
    line = _GLUED_LABELS.sub(lambda m: m[0].replace("GPU", " GPU"), line)
    found = list(_LABELS.finditer(line))
    rest = _LABELS.sub("", line[found[0].end() :]) if found else line
    return [m[0].lower() for m in found], rest


def _cells(table: str, text: str) -> list[str] | None:
    """The cells of a text that is cells alone; words may have run together ('XGMIXGMI'), numbers may not."""
    words = text.split()
    cells = re.findall(_CELLS[table], text) if table == "type" else words
    whole = "".join(cells) == "".join(words) and all(re.fullmatch(_CELLS[table], cell) for cell in cells)
    return cells if whole else None


def _labels(blocks: Sequence[_Block]) -> list[str]:
    """The GPUs in the order of the tables. Raises Unreadable where tables name different ones."""
    found = [labels for b in blocks if (labels := _names(b))]
    if not found:
        return []
    labels = max(found, key=len)
    if any(own != labels for own in found):
        raise Unreadable("the tables name different GPUs: keep one machine's, whole")
    if len(set(labels)) < len(labels):
        raise Unreadable("a table names a GPU twice")
    numbers = [int(label[3:]) for label in labels if label.startswith("gpu")]
    if numbers and numbers != list(range(len(labels))):
        raise Unreadable(f"the tables list only GPUs {', '.join(map(str, numbers[:8]))}, or not in order")
    return labels


def _names(block: _Block) -> list[str]:
    """What a table proves to be its GPUs: a header that fits a row, or, without a header, rows that make a square."""
    whole = [(label, row) for label, row in block.rows if _is_whole(block.table, row)]
    if block.columns:
        return block.columns if any(len(row) == len(block.columns) for _, row in whole) else []
    n = len(block.rows)
    return [label for label, _ in whole] if len(whole) == n and all(len(row) == n for _, row in whole) else []


def _is_whole(table: str, row: Sequence[str]) -> bool:
    return bool(row) and all(re.fullmatch(_CELLS[table], cell) for cell in row)


def _is_in_place(table: str, row: Sequence[str], i: int) -> bool:
    """Whether the cell for the GPU itself stands where it belongs, and nowhere else."""
    others = [*row[:i], *row[i + 1 :]] if table == "type" else ()
    return bool(re.fullmatch(_DIAGONAL[table], row[i])) and not {"0", "X", "SELF"} & set(others)


def _read_block(block: _Block, labels: Sequence[str], tables: Tables) -> None:
    if not labels:
        return
    place = {label: i for i, label in enumerate(labels)}
    cells: dict[tuple[int, int], str] = {}
    odd = []
    if block.columns and not block.rows:
        tables.say("truncated", f"the {block.table} table has no rows: the text is cut")
    if not block.columns and block.rows:
        tables.say("header-missing", f"the {block.table} table has no header: its columns count in order")
    for label, row in block.rows:
        i = place.get(label)
        whole = _is_whole(block.table, row)
        if i is None and whole:
            raise Unreadable(f"the {block.table} table has a row of {label.upper() or 'two GPUs'} and no column")
        if i is None or not whole or len(row) != len(labels) or not _is_in_place(block.table, row, i):
            odd.append(label.upper() or "?")
            continue
        for j, cell in enumerate(row):
            if cells.setdefault((i, j), cell) != cell:
                raise Unreadable(f"the {block.table} table tells {label.upper()} twice, differently")
    if odd:
        shown = ", ".join(odd[:6]) + (f" and {len(odd) - 6} more" if len(odd) > 6 else "")
        tables.say("row-unreadable", f"rows of the {block.table} table are damaged and left out: {shown}")
    if not cells:
        return
    known = tables.cells.setdefault(block.table, {})
    if any(known.get(pair, cell) != cell for pair, cell in cells.items()):
        raise Unreadable(f"the text holds two {block.table} tables that differ: keep the one that is meant")
    known.update(cells)


# --- JSON ---


def _document(text: str) -> Any | None:
    """The first JSON object, or list of objects, that begins a line, whatever stands around it."""
    starts = re.finditer(r"^[ \t]{0,8}[\[{]", text, re.MULTILINE)
    for start, _ in zip(starts, range(_MAX_STARTS), strict=False):
        try:
            document = json.JSONDecoder().raw_decode(text, start.end() - 1)[0]
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) or (isinstance(document, list) and any(isinstance(e, dict) for e in document)):
            return document
    return None


def _from_json(document: Any) -> Tables:
    if isinstance(document, dict):
        if any(
            isinstance(k, str) and _SMI_PAIR.fullmatch(k) for v in document.values() if isinstance(v, dict) for k in v
        ):
            return _from_rocm_smi(document)
        lists = [v for v in document.values() if isinstance(v, list)]
        document = lists[0] if len(lists) == 1 else None
    if not isinstance(document, list) or not all(isinstance(e, dict) for e in document):
        raise Unreadable("the JSON is not what `amd-smi topology --json` writes")
    if not 0 < len(document) <= MAX_GPUS:
        raise Unreadable(f"the JSON lists {len(document)} GPUs, which no machine has")
    tables = Tables(count=len(document))
    if sorted(str(e.get("gpu", i)) for i, e in enumerate(document)) != sorted(map(str, range(len(document)))):
        raise Unreadable("the JSON lists only some GPUs of the machine, or one twice")
    for position, entry in enumerate(document):
        gpu = int(entry.get("gpu", position))
        bus_id = normal_bus_id(str(entry["bdf"])[:64]) if "bdf" in entry else None
        if bus_id:
            tables.bus_ids[gpu] = bus_id
        for table, peer, value in _links(entry, tables.count):
            _put(tables, table, gpu, peer, value)
    if len(set(tables.bus_ids.values())) < len(tables.bus_ids):
        tables.bus_ids.clear()
        tables.say("bus-id-doubled", "GPUs share a PCI bus id, as parts of one do: the ids are left out")
    return tables


def _links(entry: dict[str, Any], count: int) -> Iterator[tuple[str, int, str]]:
    """(table, peer, cell) of one GPU, as written since ROCm 6.2 (a list of links) and before (a table each)."""
    links = entry.get("links")
    for position, link in enumerate(links if isinstance(links, list) else ()):
        peer = link.get("gpu", position) if isinstance(link, dict) else None
        if type(peer) is int and 0 <= peer < count:
            yield from ((t, peer, str(link[k])[:40]) for t, k in _LINK_KEYS.items() if k in link)
    for table, key in _OLD_KEYS.items():
        row = entry.get(key)
        for name, value in row.items() if isinstance(row, dict) else ():
            match = re.fullmatch(r"gpu_([0-9]{1,4})", name)
            if match and int(match[1]) < count:
                yield table, int(match[1]), str(value)[:40]


def _from_rocm_smi(document: dict[str, Any]) -> Tables:
    """`rocm-smi --showtopo --json`: each pair once, all values as text; GPUs are 'card0' ..."""
    tables = Tables()
    cards = sorted(int(m[1]) for k in document if (m := re.fullmatch(r"card([0-9]{1,4})", k)))
    pairs = []
    for values in (v for v in document.values() if isinstance(v, dict)):
        pairs += [(m, value) for k, value in values.items() if (m := _SMI_PAIR.fullmatch(str(k)))]
    numbers = {int(n) for m, _ in pairs for n in m.groups()[1:]} | set(cards)
    tables.count = len(numbers)
    if not numbers or sorted(numbers) != list(range(len(numbers))) or len(numbers) > MAX_GPUS:
        raise Unreadable("the JSON lists only some GPUs of the machine")
    names = {"weight": "weight", "hops": "hops", "link type": "type"}
    for match, value in pairs:
        a, b = int(match[2]), int(match[3])
        _put(tables, names[match[1].lower()], a, b, str(value)[:40])
        _put(tables, names[match[1].lower()], b, a, str(value)[:40])
    for card in cards:
        facts = document[f"card{card}"]
        told = facts.items() if isinstance(facts, dict) else ()
        tables.facts[card] = {str(k).lower(): str(v)[:120] for k, v in told}
    return tables


def _put(tables: Tables, table: str, a: int, b: int, cell: str) -> None:
    if not re.fullmatch(_CELLS[table], cell):
        tables.say("odd-value", f"the {table} table holds a value that it cannot: taken as unknown")
    elif tables.cells.setdefault(table, {}).setdefault((a, b), cell) != cell:
        raise Unreadable(f"the JSON tells GPU {a} to GPU {b} twice, differently")
