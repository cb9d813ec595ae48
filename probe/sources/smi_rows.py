"""Physical lines of a damaged `nvidia-smi topo` text -> headers and rows: prefixes off, wraps joined, cells told.

Whitespace is not trusted: cells are known by their words, and only `NV<count>` can run into a digit that follows it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

MAX_GPUS = 128
MAX_NICS = 256
MAX_LINKS = 64
MAX_BLOCKS = 64
_MAX_LINE = 32_768
_MAX_PIECES = 64
_MAX_NOISE = 5
"""Foreign lines inside a matrix (another process's log) after which the matrix is over."""

LEVELS = ("SYS", "SOC", "NODE", "PHB", "PXB", "PIX")
P2P_WORDS = ("OK", "CNS", "GNS", "TNS", "NS", "DR", "U")
_WORDS = (*LEVELS, *P2P_WORDS, "X")
# 36: NVML_NVLINK_MAX_LINKS of nvml.h 13.615; what seems more is a smaller count and a digit that ran into it.
_CELL = rf"(?:NV(?:[12][0-9]|3[0-6]|[1-9])|{'|'.join(sorted(_WORDS, key=len, reverse=True))})"
_BEGUN = "|".join(sorted({w[:k] for w in (*_WORDS, "NV") for k in range(1, len(w))} | {"NV"}, key=len, reverse=True))
_ENDED = "|".join(sorted({w[k:] for w in _WORDS for k in range(1, len(w))} - {"X"}, key=len, reverse=True))

_GPU_ROW = re.compile(rf"GPU([0-9]{{1,9}})[ \t]*(?={_CELL})")
_GLUED_NIC_ROW = re.compile(rf"[ \t]*([A-Za-z][\w.\-]{{0,62}}?[a-z0-9])(?={_CELL})")
_NIC_ROW = re.compile(
    rf"[ \t]*(?:[0-9]{{1,6}}[ \t:.)]+)?(NIC[0-9]{{1,9}}(?=[ \t]*{_CELL})|[A-Za-z][\w.\-]{{0,63}}(?=[ \t]+{_CELL}))"
)
RUN = re.compile(rf"(?:[ \t]*{_CELL})+")
ONE_CELL = re.compile(_CELL)
_GLUED = re.compile(rf"{_CELL}(?={_CELL})")
BROKEN = re.compile(rf"(?:^|\s)(?:{_BEGUN})$")
_MORE = re.compile(
    rf"(?:(?:{_ENDED}|V[0-9]{{1,2}}|[0-9]{{1,2}}(?= ?{_CELL})) ?)?(?:{_CELL} ?)*[0-9,\-/NA ]*(?:{_BEGUN})?"
)
_NOT_A_NAME = re.compile(rf"(?:(?:{_ENDED}|A)?{_CELL}*|(?:{_ENDED})|V?[0-9]+|N?/?A)")
_LEFT_OVER = re.compile(rf"\b(?:{_CELL}|ODE|DE|YS|IX|XB|HB|SY|NOD|PH|PX|PI|NV)\b")
_PROSE = re.compile(r"(?<!\S)(?!A?f?finity)[A-Za-z][a-z]+(?!\S)")
_HEADER_TAIL = re.compile(r"CPU\s*Aff|NUMA\s*Aff|GPU\s*NUMA")
_RULE_LINE = re.compile(r"[-=+_.:~\s]*")
CPU_LIST = re.compile(r"[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*")


class Unreadable(Exception):
    """A matrix that could be read in more than one way, or in none; the message names why."""


@dataclass(frozen=True, slots=True)
class Line:
    """A physical line without its prefix; `width` is its printed length with it, without trailing blanks."""

    text: str
    width: int


@dataclass(slots=True)
class Row:
    label: str
    pieces: list[Line]
    at_end: bool = False
    cells: list[str | None] = field(default_factory=list)
    tail: str = ""
    tail_sure: bool = True
    spread_tail: str | None = None
    """The tail with blanks where the text was wrapped, where they are possible too."""
    last_options: dict[str, str] = field(default_factory=dict)
    """Ways to read a last cell that ran into the CPU list: cell -> what then follows."""


@dataclass(slots=True)
class Block:
    header: list[Line]
    rows: list[Row]
    first: int
    last: int
    legend_follows: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    gpus: tuple[int, ...] = ()
    nic_readings: tuple[tuple[str, ...], ...] = ((),)
    tails: int | None = None
    """How many of CPU Affinity, NUMA Affinity, GPU NUMA ID are printed; None where the header does not tell."""
    glued: bool = False


def physical_lines(text: str) -> list[Line]:
    """Lines without the prefix that the rows share ('# ', '> ', 'file:# ', a time stamp); overlong ones emptied."""
    raw = [line if len(line) <= _MAX_LINE else "" for line in text.split("\n")]
    prefixes: Counter[str] = Counter()
    for line in raw:
        if "GPU" in line and (found := _GPU_ROW.search(line)) and re.search(r"[^\s0-9]", line[: found.start()]):
            prefixes[_shape(line[: found.start()][:200])] += 1
    prefix = re.compile("|".join(shape for shape, _ in prefixes.most_common(4))) if prefixes else None
    lines = []
    for line in raw:
        found = prefix.match(line) if prefix else None
        rest = line[found.end() :] if found else line
        lines.append(Line(rest.rstrip(), len(line.expandtabs(8).rstrip())))
    return lines


def _shape(prefix: str) -> str:
    """A prefix as a pattern: numbers and blanks may differ from line to line."""
    # A blank between two numbers stays required, or a row of digits could be split in endless ways.
    parts = re.findall(r"[0-9]+|\s+|[^\s0-9]+", prefix)
    last = len(parts) - 1
    blanks = [f"[ \t]{{{int(i < last)},{len(p)}}}" for i, p in enumerate(parts)]
    return "".join(
        "[0-9]+" if p[0].isdigit() else b if p.isspace() else re.escape(p) for p, b in zip(parts, blanks, strict=True)
    )


def blocks(lines: Sequence[Line]) -> Iterator[Block]:
    block: Block | None = None
    rows_of: dict[str, Row] = {}
    known: tuple[str, ...] = ()
    floor, noise, open_row, skipping = 0, 0, False, False
    for i, line in enumerate(lines):
        text = line.text
        if not text.strip():
            open_row = False
            continue
        row = _row_start(text, block is not None, known)
        if row is not None:
            label, rest = row
            piece = Line(rest, line.width)
            twin = rows_of.get(label) if block else None
            if twin is not None and twin.pieces[0].text.split() == rest.split():
                open_row, skipping = False, True
                continue
            skipping = False
            if block is None or twin is not None:
                if block:
                    yield block
                    floor = block.last + 1
                block = Block(_header_lines(lines, i, floor), [], i, i)
                rows_of = {}
                words = {w for p in block.header for w in p.text.split() if not w.startswith(("GPU", "NIC"))}
                known = tuple(sorted(words, key=len, reverse=True)) if len(words) <= MAX_NICS + 8 else ()
            if len(block.rows) >= MAX_GPUS + MAX_NICS:
                continue
            rows_of[label] = Row(label, [piece], at_end=i == len(lines) - 1)
            block.rows.append(rows_of[label])
            block.last, noise, open_row = i, 0, True
        elif block is not None:
            if open_row and len(block.rows[-1].pieces) < _MAX_PIECES and _continues(text):
                block.rows[-1].pieces.append(line)
                block.rows[-1].at_end = i == len(lines) - 1
                block.last = i
                continue
            if skipping and _continues(text):
                continue
            open_row = False
            noise += 1
            if noise > _MAX_NOISE or "egend" in text or "nvidia-smi" in text or re.search(r"GPU[0-9]", text):
                block.legend_follows = "egend" in text
                yield block
                floor, noise, block = block.last + 1, 0, None
    if block:
        yield block


def _row_start(text: str, inside: bool, known: tuple[str, ...]) -> tuple[str, str] | None:
    """(label, the rest) of a line that begins a row."""
    found = _GPU_ROW.search(text)
    if found:
        run = RUN.match(text, found.end())
        if run and _may_follow(text[run.end() :]):
            cells = ONE_CELL.findall(run.group())
            if inside or len(cells) > 1 or "X" in cells:
                return f"GPU{int(found.group(1))}", text[found.end() :]
    if not inside:
        return None
    label = next((k for k in known if text.lstrip().startswith(k)), None)
    if label and re.match(r"[A-Za-z]", label) and not label.startswith("GPU") and not _NOT_A_NAME.fullmatch(label):
        after = text.lstrip()[len(label) :]
        run = RUN.match(after)
        if run and _may_follow(after[run.end() :]):
            return label, after
    named = _GLUED_NIC_ROW.match(text) or _NIC_ROW.match(text)
    if named is None or named.group(1).startswith("GPU") or _NOT_A_NAME.fullmatch(named.group(1)):
        return None
    run = RUN.match(text, named.end())
    rest = text[run.end() :].strip() if run else "?"
    if not run or not (_may_follow(text[run.end() :]) if named.group(1).startswith("NIC") else _is_tail(rest)):
        return None
    return named.group(1), text[named.end() :]


def _may_follow(rest: str) -> bool:
    """What may stand after a row's cells: nothing, a blank, the CPU list, or the begin of a wrapped cell."""
    return not rest or rest[0] in " \t0123456789,-" or rest.startswith("N/A") or bool(re.fullmatch(_BEGUN, rest))


def _is_tail(rest: str) -> bool:
    return not rest or bool(re.fullmatch(rf"[0-9,\-/NA \t]*(?:{_BEGUN})?", rest))


def _continues(text: str) -> bool:
    """Whether a line can be the rest of a wrapped row."""
    squeezed = " ".join(text.split())
    return bool(_MORE.fullmatch(squeezed)) and bool(re.search(r"[0-9A-Z]", squeezed))


def _header_lines(lines: Sequence[Line], row: int, floor: int) -> list[Line]:
    pieces: list[Line] = []
    for i in range(row - 1, max(floor, row - 120) - 1, -1):
        text = lines[i].text
        if _RULE_LINE.fullmatch(text):
            if pieces:
                break
            continue
        if "nvidia-smi" in text or "egend" in text or re.search(r"[$=,;?!<>(){}]", text):
            break
        if len(_PROSE.findall(text)) > 2:
            break
        pieces.append(lines[i])
        if re.search(r"GPU0(?![0-9])", text):
            break
    pieces.reverse()
    while pieces and not re.search(r"GPU[0-9]", pieces[0].text):
        pieces.pop(0)
    return pieces


def _join(pieces: Sequence[Line], wrap_width: int) -> tuple[str, list[int]]:
    """Pieces of one printed line put together, and the places where it is not certain that no blank stood there."""
    text, doubts = "", []
    for i, piece in enumerate(pieces):
        if i:
            before = pieces[i - 1]
            if before.width < wrap_width or piece.text[:1].isspace():
                text = text.rstrip() + " "
            else:
                doubts.append(len(text))
        text += piece.text if i == 0 or not text.endswith(" ") else piece.text.lstrip()
    return text, doubts


def read_cells(row: Row, pieces: Sequence[Line], wrap_width: int, hard: bool, last_row: bool = False) -> bool:
    """Fills a row's cells and tail from its pieces; True where cells stood without a blank between them."""
    text, doubts = _join(pieces, wrap_width)
    run = RUN.match(text)
    end = run.end() if run else 0
    row.cells = list(ONE_CELL.findall(text[:end]))
    row.tail = text[end:]
    row.spread_tail = None
    if not hard and any(d > end for d in doubts):
        cuts = [end, *(d for d in doubts if d > end), len(text)]
        row.spread_tail = " ".join(text[a:b] for a, b in pairwise(cuts))
    if _LEFT_OVER.search(row.tail) or (not last_row and BROKEN.search(row.tail)):
        row.cells.clear()  # a cell among the CPU lists: something before it could not be read
    row.last_options = {}
    last = row.cells[-1] if row.cells else ""
    touching = row.tail[:1].strip() != ""
    seam = not hard and any(end - len(str(last)) + 2 < d <= end for d in doubts)
    if last and last.startswith("NV") and (touching or seam or int(last[2:]) > MAX_LINKS):
        digits = last[2:]
        counts = [digits[:k] for k in range(1, len(digits) + 1) if int(digits[:k]) <= MAX_LINKS]
        ways = {f"NV{n}": digits[len(n) :] + row.tail for n in counts}
        row.last_options = {n: rest for n, rest in ways.items() if _plausible_tail(rest)} or ways
    return any(m.end() not in doubts for m in _GLUED.finditer(text, 0, end)) or (touching and end not in doubts)


def _plausible_tail(rest: str) -> bool:
    words = rest.split()
    return not words or rest[0].isspace() or valid_cpus(words[0]) or words[0] == "N/A"


def valid_cpus(text: str) -> bool:
    """Whether this is a list of CPUs as the driver prints it: ascending, ranges with begin <= end."""
    if len(text) > 4096 or not CPU_LIST.fullmatch(text):
        return False
    bounds = [[int(n) for n in part.split("-")] for part in text.split(",")]
    return all(b[0] <= b[-1] for b in bounds) and all(a[-1] < b[0] for a, b in pairwise(bounds))


def _is_one_kind(nics: Sequence[str]) -> bool:
    """NICs are printed all by number or all by device name; a mixture is a cut or broken header."""
    return len({bool(re.fullmatch("NIC[0-9]+", nic)) for nic in nics}) < 2


_CUT_TAIL = re.compile(r"CPU\s*\Z")
"""What is left of 'CPU Affinity' where the line broke after its first word, glued to the last NIC's name or not."""


def read_header(block: Block, wrap_width: int) -> Header:
    if not block.header:
        return Header()
    closed = "".join(p.text for p in block.header)
    numbers = list(re.finditer(r"GPU([0-9]{1,9})", closed))
    if not numbers:
        return Header()
    readings = []
    for text in (closed, _join(block.header, wrap_width)[0], " ".join(p.text for p in block.header)):
        gpus = list(re.finditer(r"GPU[0-9]{1,9}", text))
        tail = _HEADER_TAIL.search(text, gpus[-1].end())
        part = text[gpus[-1].end() : tail.start()] if tail else _CUT_TAIL.sub("", text[gpus[-1].end() :])
        nics = re.findall(r"NIC[0-9]+", part) if re.fullmatch(r"(?:\s*NIC[0-9]+)*\s*", part) else part.split()
        readings.append(tuple(nics))
    squeezed = re.sub(r"\s", "", closed[numbers[-1].end() :])
    tails = None
    if "CPUAffinity" in squeezed:
        tails = 1 + ("NUMAAffinity" in squeezed) + ("GPUNUMAID" in squeezed)
        if not squeezed.endswith(("CPUAffinity", "NUMAAffinity", "GPUNUMAID")):
            tails = None
    elif not squeezed or readings[0]:
        tails = 0
    glued = bool(
        re.search(
            r"(?:GPU|NIC)[0-9]+(?:GPU[0-9]|NIC[0-9]|CPU)|GPU[0-9]+[A-Za-z]", " ".join(p.text for p in block.header)
        )
    )
    return Header(
        tuple(int(n.group(1)) for n in numbers),
        tuple(dict.fromkeys(r for r in readings if _is_one_kind(r))),
        tails,
        glued,
    )
