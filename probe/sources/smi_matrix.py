"""Rows of an `nvidia-smi topo` text -> a matrix with named columns: each row is proven by its own X, or left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from probe.sources.smi_rows import (
    BROKEN,
    CPU_LIST,
    MAX_BLOCKS,
    MAX_GPUS,
    MAX_LINKS,
    MAX_NICS,
    ONE_CELL,
    P2P_WORDS,
    RUN,
    Block,
    Header,
    Line,
    Row,
    Unreadable,
    blocks,
    read_cells,
    read_header,
    valid_cpus,
)
from probe.units import count


@dataclass(frozen=True, slots=True)
class Affinity:
    """What follows a GPU's cells; None where it is not printed or not certain, and then `doubt` says why."""

    cpus: str | None = None
    numa_node: int | None = None
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix as printed: `cells[row, column]` by label. GPUs by number, NICs by label, in column order."""

    p2p: bool
    gpus: tuple[int, ...]
    nics: tuple[str, ...]
    cells: dict[tuple[str, str], str]
    affinity: dict[int, Affinity]
    notices: tuple[tuple[str, str], ...]
    lines: tuple[int, int]


def matrices(lines: Sequence[Line]) -> Iterator[Matrix | Unreadable]:
    """Every matrix of a text in order, or why one of them cannot be read."""
    for number, block in enumerate(blocks(lines)):
        if number >= MAX_BLOCKS:
            yield Unreadable(f"more than {MAX_BLOCKS} matrices in one text")
            return
        try:
            yield _build(block)
        except Unreadable as why:
            yield why


def _build(block: Block) -> Matrix:
    notices: list[tuple[str, str]] = []
    rows = block.rows
    wrapped = [r.pieces[:-1] for r in rows if len(r.pieces) > 1] + [block.header[:-1]]
    wrap_width = max((p.width for pieces in wrapped for p in pieces), default=1 << 30)
    # A word broken in two is the mark of a terminal that breaks at a fixed width.
    hard = any(p.width == wrap_width and BROKEN.search(p.text) for r in rows for p in r.pieces[:-1])
    glued = False
    for row in rows:
        glued |= read_cells(row, row.pieces, wrap_width, hard, row is rows[-1])
    header = read_header(block, wrap_width)
    _check_numbers(header.gpus, [r.label for r in rows])
    width = _column_count(rows, header)
    if width == 0:
        raise Unreadable("the rows hold no cells that can be told apart")
    for row in rows:
        while len(row.cells) > width and len(row.pieces) > 1:
            row.pieces.pop()
            read_cells(row, row.pieces, wrap_width, hard, row is rows[-1])
    if any(len(r.pieces) == 1 and r.label.startswith("GPU") for r in rows):
        for row in rows:
            if len(row.pieces) > 1 and len(ONE_CELL.findall(_run(row.pieces[0].text))) == width:
                row.tail_sure = False
    for row in rows:
        if row.label.startswith("GPU") and row.pieces[-1].width == wrap_width and len(row.cells) == width:
            row.tail_sure = False  # it fills the terminal's width, so the line that went on may be lost
            if str(row.cells[-1]).startswith("NV") and not row.tail.strip():
                row.cells[-1] = None
    p2p = _is_p2p(rows)
    last = rows[-1]
    if len(last.cells) < width:
        notices.append(("truncated", f"row {last.label} is cut off after {len(last.cells)} of {width} cells"))
        if last.cells and str(last.cells[-1]).startswith("NV"):
            last.cells[-1] = None  # 'NV1' may be the begin of 'NV18'
    elif (last.at_end or header.tails) and not last.tail.strip() and str(last.cells[-1]).startswith("NV"):
        last.cells[-1] = None
    columns, kept = _columns(rows, header, width, notices)
    if glued or header.glued:
        notices.append(
            ("glued-cells", "some cells stood without a blank between them and were told apart by their words")
        )
    if not header.gpus:
        notices.append(("header-missing", "the header is missing: columns are taken from the rows' own names and X"))
    cells = {(r.label, c): v for r in kept for c, v in zip(columns, _settled(r, columns, kept), strict=False) if v}
    gpus = tuple(int(c[3:]) for c in columns if c.startswith("GPU"))
    nics = tuple(c for c in columns if not c.startswith("GPU"))
    _check_nic_cells(cells, nics)
    present = {r.label for r in kept}
    missing = [c for c in columns if c not in present]
    if missing:
        shown = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
        notices.append(("rows-missing", f"no row for {shown}: those paths are told from one side only, or not at all"))
    # Where neither another row nor a legend follows, the last number of the text may not be the last that was printed.
    cut = rows[-1].label != columns[-1] or not block.legend_follows
    if header.tails and any(_has_more(r.tail, header.tails) for r in kept if r.label.startswith("GPU")):
        header = replace(header, tails=None)  # the header has lost a column's name
    affinity = {int(r.label[3:]): _affinity(r, header) for r in kept if r.label.startswith("GPU")}
    if cut and last.label.startswith("GPU") and last in kept and last.tail.split()[-1:] != ["N/A"]:
        own = affinity.pop(int(last.label[3:]))
        whole = last.label == columns[-1] and own in affinity.values()
        affinity[int(last.label[3:])] = own if whole else Affinity(doubt="the text ends in it")
    return Matrix(p2p, gpus, nics, cells, affinity, tuple(notices), (block.first - len(block.header), block.last))


def _run(text: str) -> str:
    found = RUN.match(text)
    return found.group() if found else ""


def _check_numbers(gpus: Sequence[int], labels: Sequence[str]) -> None:
    for number in (*gpus, *(int(label[3:]) for label in labels if label.startswith("GPU"))):
        if number >= MAX_GPUS:
            raise Unreadable(f"GPU{number} is no possible GPU of one machine (at most {MAX_GPUS})")
    for label in labels:
        if re.fullmatch(r"NIC[0-9]+", label) and int(label[3:]) >= MAX_NICS:
            raise Unreadable(f"{label} is no possible NIC of one machine (at most {MAX_NICS})")


def _column_count(rows: Sequence[Row], header: Header) -> int:
    """How many cells a whole row has. The last row may be cut, so it counts only where it is alone."""
    counts = Counter(len(r.cells) for r in (rows[:-1] or rows))
    readings = [n for n in header.nic_readings if all(map(_is_one_name, n))] if header.gpus else []
    told = [len(header.gpus) + len(nics) for nics in readings]
    width = next((t for t in told if counts[t] * 2 >= counts.total()), 0) or max(counts, key=lambda c: (counts[c], c))
    if len(rows) == 1 and header.gpus and width not in told:
        if len(set(told)) != 1 or width > told[0]:
            raise Unreadable("one row, cut or damaged, and a header whose columns can't be told apart")
        width = told[0]
    if width > MAX_GPUS + MAX_NICS:
        raise Unreadable(f"{width} columns are more than any machine has")
    return width


def _is_p2p(rows: Sequence[Row]) -> bool:
    seen = {c for r in rows for c in r.cells if c and c != "X"}
    p2p = {c for c in seen if c in P2P_WORDS}
    if p2p and seen - p2p:
        raise Unreadable("cells of `topo -m` and of `topo -p2p` stand in one matrix")
    return bool(p2p)


def _columns(
    rows: Sequence[Row], header: Header, width: int, notices: list[tuple[str, str]]
) -> tuple[list[str], list[Row]]:
    """The columns' labels, and the rows whose X stands in the column that carries their name."""
    at: dict[int, Counter[str]] = {}
    whole = [r for r in rows if len(r.cells) == width or (r is rows[-1] and len(r.cells) < width)]
    for r in whole:
        if r.cells.count("X") == 1:
            at.setdefault(r.cells.index("X"), Counter())[r.label] += 1
    own = {p: labels.most_common(1)[0][0] for p, labels in at.items() if len(labels) == 1}
    if len(rows) == 1 and not header.gpus:
        raise Unreadable("one row without a header is no matrix")
    columns = _header_columns(header, width, own) or _row_columns(header, width, own, whole, notices)
    if len(set(columns)) != len(columns):
        twice = next(c for c, n in Counter(columns).items() if n > 1)
        raise Unreadable(f"two columns are named {twice}")
    if odd := next((c for c in columns if c.startswith("GPU") and not c[3:].isdecimal()), None):
        raise Unreadable(f"a column is named {odd}, which is no GPU's number")
    place = {c: i for i, c in enumerate(columns)}
    named = [f"GPU{g}" for g in header.gpus] + [r.label for r in rows if r.label.startswith("GPU")]
    beyond = [label for label in named if label not in place]
    if beyond:
        raise Unreadable(f"{beyond[-1]} is named, but the rows have no cell for it")
    if sum(c.startswith("GPU") for c in columns) > MAX_GPUS or len(columns) - MAX_GPUS > MAX_NICS:
        raise Unreadable(f"{len(columns)} columns are more than any machine has")

    def proven(r: Row) -> bool:
        i = place.get(r.label)
        if i is None:
            return False
        crosses = [k for k, c in enumerate(r.cells) if c == "X"]
        return crosses == [i] or (r is rows[-1] and not crosses and len(r.cells) <= i)

    kept = [r for r in whole if proven(r)]
    lost = [r.label for r in rows if r not in kept]
    if not lost and not any(r.label.startswith("GPU") for r in kept):
        raise Unreadable("no row of a GPU is left: rows of NICs alone tell no path between GPUs")
    if len(lost) * 2 > len(rows) or not any(r.label.startswith("GPU") for r in kept):
        raise Unreadable(f"the X of row {lost[0]} does not stand in the column of its name: cells are lost or shifted")
    if lost:
        shown = ", ".join(lost[:8])
        notices.append(("row-unreadable", f"row {shown} has lost or shifted cells and is left out"))
    return columns, kept


def _header_columns(header: Header, width: int, own: dict[int, str]) -> list[str] | None:
    """The header's labels where it has as many as the rows have cells, and most rows agree with it."""
    best: tuple[int, list[str]] | None = None
    for nics in header.nic_readings if header.gpus else ():
        labels = [*(f"GPU{g}" for g in header.gpus), *nics]
        if len(labels) == width and all(map(_is_one_name, nics)):
            agree = sum(labels[p] == label for p, label in own.items())
            named = all(labels[p] == label for p, label in own.items() if not label.startswith("GPU"))
            if named and agree * 2 > len(own) and (best is None or agree > best[0]):
                best = (agree, labels)
    return best[1] if best else None


def _row_columns(
    header: Header, width: int, own: dict[int, str], rows: Sequence[Row], notices: list[tuple[str, str]]
) -> list[str]:
    """Labels from the rows' own X; what no row tells is numbered on, where GPUs and NICs can be told apart."""
    low = 1 + max((p for p, label in own.items() if label.startswith("GPU")), default=-1)
    nv = (i for r in rows if r.label.startswith("GPU") for i, c in enumerate(r.cells) if c and c.startswith("NV"))
    low = max(low, 1 + max(nv, default=-1))
    starts = {
        p - int(label[3:]) if re.fullmatch(r"NIC[0-9]+", label) else p
        for p, label in own.items()
        if not label.startswith("GPU")
    }
    numbered = [p - int(x[3:]) for p, x in own.items() if re.fullmatch(r"NIC[0-9]+", x)]
    high = min(starts, default=width)
    told = list(header.gpus) == list(range(len(header.gpus))) and len(header.gpus)
    if numbered and low <= max(numbered) == min(numbered):
        gpus = numbered[0]
    elif low == high:
        gpus = low
    elif told and low <= told <= high:
        gpus = told
    elif not starts and low >= 8 and _all_joined(rows, low):
        gpus = low  # all GPUs of the rows are joined by NVLink and no further column is: those are NICs
    else:
        raise Unreadable(
            f"{width} cells in a row, {low} of them GPUs: without a whole header the others can't be named"
        )
    fitting = (n for n in header.nic_readings if header.gpus and len(n) == width - gpus)
    names = next((n for n in fitting if all(map(_is_one_name, n))), None)
    if names is None and low < gpus < width and not numbered:
        what = f"{count(width - gpus, 'column')} beyond GPU{gpus - 1} have no name in the header"
        notices.append(("columns-unnamed", f"{what}: they are taken as NICs, and may be GPUs whose rows are lost"))
    columns = []
    for p in range(width):
        spare = f"GPU{p}" if p < gpus else names[p - gpus] if names else f"NIC{p - gpus}"
        label = own.get(p, spare)
        if label.startswith("GPU") != (p < gpus) or (p < gpus and label != f"GPU{p}"):
            raise Unreadable(f"the X of row {label} stands in column {p + 1}: cells are lost or shifted")
        columns.append(label)
    return columns


def _is_one_name(name: str) -> bool:
    """Whether a word of the header can be one NIC: no part of a wrapped name, and not two names that ran together."""
    found = re.fullmatch(r"([A-Za-z]+)([\w.\-]*)", name)
    return found is not None and not re.search(rf"[0-9]{found.group(1)}", found.group(2))


def _all_joined(rows: Sequence[Row], gpus: int) -> bool:
    own = [r for r in rows if r.label.startswith("GPU")]
    return len(own) > 1 and all(
        all(c and (c == "X" or c.startswith("NV")) for c in r.cells[:gpus]) and len(r.cells) >= gpus for r in own
    )


def _settled(row: Row, columns: Sequence[str], rows: Sequence[Row]) -> list[str | None]:
    """The row's cells; a last 'NV1' that ran into a CPU list '8-15' is settled by the other GPU's row, or refused."""
    if len(row.last_options) < 2 or len(row.cells) != len(columns):
        if len(row.last_options) == 1 and len(row.cells) == len(columns) and row.cells[-1] is not None:
            ((row.cells[-1], row.tail),) = row.last_options.items()
        return row.cells
    other = next((r for r in rows if r.label == columns[-1]), None)
    place = columns.index(row.label)
    told = other.cells[place] if other and place < len(other.cells) else None
    if told not in row.last_options:
        ways = " or ".join(
            f"{cell} + {rest.split()[0] if rest.split() else ''}" for cell, rest in row.last_options.items()
        )
        raise Unreadable(f"row {row.label}: {row.cells[-1]} and the CPU list ran together ({ways}) and no row decides")
    row.cells[-1], row.tail = told, row.last_options[str(told)]
    return row.cells


def _check_nic_cells(cells: dict[tuple[str, str], str], nics: Sequence[str]) -> None:
    names = set(nics)
    for (row, column), cell in cells.items():
        if cell.startswith("NV") and (row in names or column in names):
            raise Unreadable(f"{row} to {column} reads {cell}: no NIC has NVLink, so columns are shifted")
        if cell == "X" and row != column:
            raise Unreadable(f"row {row} has an X under {column}")
        if cell.startswith("NV") and int(cell[2:]) > MAX_LINKS:
            raise Unreadable(f"{row} to {column} reads {cell}: no pair has so many links")


def _affinity(row: Row, header: Header) -> Affinity:
    """What the tail tells. Two columns that ran into each other look like one number, so the count must be right."""
    if not row.tail.split():
        return Affinity(doubt="not printed")
    if header.tails == 0:
        return Affinity(doubt="the header names no such column")
    columns = _tail_columns(row.tail, header.tails or 3)
    spread = row.spread_tail is not None and _tail_columns(row.spread_tail, header.tails or 3) is not None
    if columns is None or spread or not row.tail_sure:
        return Affinity(doubt="the columns run into each other or are empty")
    cpus, numa, _ = columns
    node = int(numa) if numa and numa.isdigit() and len(numa) < 6 else None
    listed = cpus if cpus != "N/A" else None
    return Affinity(listed, node, None if listed and node is not None else "printed as N/A, as a range, or not at all")


def _has_more(tail: str, wanted: int) -> bool:
    words = tail.split()[: wanted + 1]
    return len(words) > wanted and bool(re.match(r"[0-9]|N/A", words[wanted]))


def _tail_columns(tail: str, wanted: int) -> tuple[str, str | None, str | None] | None:
    """(CPUs, NUMA nodes, the GPU's own node) as printed, where the tail has exactly the wanted columns."""
    words = tail.split()[: wanted + 2]
    parted = re.fullmatch(r"([0-9]+)N/A", words[wanted - 2]) if 1 < wanted <= len(words) + 1 else None
    if parted:
        words[wanted - 2 : wanted - 1] = [parted.group(1), "N/A"]
    if len(words) < wanted or _has_more(" ".join(words), wanted):
        return None
    cpus = words[0]
    numa = words[1] if wanted > 1 else None
    own = words[2] if wanted > 2 else None
    if not (cpus == "N/A" or valid_cpus(cpus)) or not (numa in (None, "N/A") or CPU_LIST.fullmatch(str(numa))):
        return None
    return (cpus, numa, own) if own in (None, "N/A") or str(own).isdigit() else None
