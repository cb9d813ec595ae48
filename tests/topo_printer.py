"""Prints machines as `nvidia-smi topo -m` does, and damages the text as pastes do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from probe.topology import PCIE_KINDS, Gpu, GpuState, Nic, Node, NodeShape, Path, PathKind, Topology

LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
"""
NV_LEGEND = "  NV#  = Connection traversing a bonded set of # NVLinks\n"
TAILS = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
NIC_FAMILIES = ("mlx5_{}", "mlx5_bond_{}", "ibp{}s0", "bnxt_re{}", "efa_{}", "rdmap{}s27", "hfi1_{}", "roce-p{}")


@dataclass(frozen=True)
class Printed:
    """A machine and the layout in which it is printed. `tails` is how many of the affinity columns there are."""

    topology: Topology
    tails: int = 3
    numa_texts: tuple[str, ...] = ()
    legend: bool = True
    ansi: bool = False
    pcie_view: bool = False

    @property
    def named_by_device(self) -> bool:
        return any(nic.label == nic.name for nic in self.topology.nodes[0].shape.nics)

    def text(self) -> str:
        return "".join(f"{line}\n" for line in (*self.matrix_lines(), *self.legend_lines()))

    def matrix_lines(self) -> list[str]:
        shape = self.topology.nodes[0].shape
        labels = [f"GPU{g.index}" for g in shape.gpus] + [nic.label or nic.name for nic in shape.nics]
        header = "\t".join([*labels, *TAILS[: self.tails]])
        lines = ["\t\x1b[4m" + header + "\x1b[0m" if self.ansi else "\t" + header]
        for i, gpu in enumerate(shape.gpus):
            cells = [" X " if i == j else shape.path(i, j).label for j in range(len(shape.gpus))]
            cells += [p.label for p in shape.nic_paths[i]] if shape.nics else []
            tail = [gpu.cpu_affinity or "N/A", self.numa_texts[i], "\tN/A"][: self.tails]
            lines.append("\t".join([labels[i], *cells, *tail]))
        for k, nic in enumerate(shape.nics):
            others = [" X " if k == j else _between(k, j) for j in range(len(shape.nics))]
            to_gpus = [shape.nic_paths[i][k].label for i in range(len(shape.gpus))]
            lines.append("\t".join([nic.label or nic.name, *to_gpus, *others]) + "\t" * self.tails)
        return lines

    def legend_lines(self) -> list[str]:
        if not self.legend:
            return []
        lines = (LEGEND + ("" if self.pcie_view else NV_LEGEND)).rstrip("\n").split("\n")
        nics = self.topology.nodes[0].shape.nics
        if nics and not self.named_by_device:
            lines += ["", "NIC Legend:", "", *(f"  {nic.label}: {nic.name}" for nic in nics)]
        return lines


def _between(a: int, b: int) -> str:
    return PCIE_KINDS[(a + b) % len(PCIE_KINDS)].value


def random_printed(rng: Random, most_gpus: int = 16, most_nics: int = 63) -> Printed:
    """Any machine: any paths and link counts, NICs by number or by device name, any affinities."""
    n = rng.choice((1, 2, 2, 3, 4, 4, 5, 6, 8, 8, 8, 10, 12, 16))
    n = min(n, most_gpus)
    k = min(rng.choice((0, 0, 0, 1, 2, 4, 8, 9, 12, 12, 26, 63)), most_nics)
    family = rng.choice(NIC_FAMILIES)
    names = [family.format(i) for i in range(k)]
    by_device = rng.random() < 0.25
    nics = tuple(Nic(name, name if by_device else f"NIC{i}") for i, name in enumerate(names))
    style, links = rng.choice(("any", "mesh", "pairs", "pcie")), rng.choice((1, 2, 4, 6, 8, 12, 18))
    paths = []
    for a in range(n):
        for b in range(a + 1, n):
            fast = {"any": rng.random() < 0.4, "mesh": True, "pairs": b == a ^ 1, "pcie": False}[style]
            count = rng.choice((1, 2, 4, 12, 18)) if style == "any" else links
            paths.append(Path(PathKind.NVLINK, count) if fast else Path(rng.choice(PCIE_KINDS)))
    nic_paths = tuple(tuple(Path(rng.choice(PCIE_KINDS)) for _ in nics) for _ in range(n)) if nics else ()
    tails = rng.choice((0, 1, 2, 2, 3, 3, 3, 3)) if n > 1 or k else rng.choice((1, 2, 3))
    texts = tuple(rng.choice(("0", "1", "3", "7", "12", "0-1", "N/A")) for _ in range(n))
    gpus = []
    for i in range(n):
        first = rng.choice((0, 0, 5, 8, 24, 56, 128))
        last = first + rng.choice((1, 7, 15, 31))
        cpus = rng.choice(
            (
                f"{first}-{last}",
                f"{first}-{last},{last + 33}-{last + 64}",
                f"{first},{first + 2},{first + 4}",
                str(first),
                None,
            )
        )
        best = min((p.kind.distance for p in nic_paths[i]), default=0) if nics else 0
        near = (
            tuple(nic.name for nic, p in zip(nics, nic_paths[i], strict=True) if p.kind.distance == best)
            if nics
            else ()
        )
        numa = int(texts[i]) if tails > 1 and texts[i].isdigit() else None
        gpus.append(Gpu(i, numa_node=numa, cpu_affinity=cpus if tails else None, nearest_nics=near))
    node = Node(NodeShape(tuple(gpus), tuple(paths), nics, nic_paths), tuple(GpuState() for _ in range(n)))
    return Printed(Topology((node,)), tails, texts, legend=rng.random() < 0.8, ansi=rng.random() < 0.2)


# --- damages: each takes lines and a source of chance, and gives lines ---

Damage = Callable[[list[str], Random], list[str]]


def keep(lines: list[str], rng: Random) -> list[str]:
    return lines


def tabs_to_8(lines: list[str], rng: Random) -> list[str]:
    return [line.expandtabs(8) for line in lines]


def single_blanks(lines: list[str], rng: Random) -> list[str]:
    return [re.sub(r"[ \t]+", " ", line).rstrip() for line in lines]


def some_tabs_lost(lines: list[str], rng: Random) -> list[str]:
    """A tenth of the tabs vanish: SYSSYS, GPU0GPU1, NV180-31."""
    return ["".join("" if c == "\t" and i and rng.random() < 0.1 else c for i, c in enumerate(line)) for line in lines]


def column_tab_lost(lines: list[str], rng: Random) -> list[str]:
    """One tab vanishes at the same place of every line, as where a terminal wrapped; the others become blanks."""
    place = rng.randrange(1, max(2, lines[0].count("\t")))
    damaged = []
    for line in lines:
        parts = line.split("\t")
        if len(parts) > place + 1:
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        damaged.append("\t".join(parts).expandtabs(8))
    return damaged


LAYOUTS: tuple[Damage, ...] = (keep, tabs_to_8, tabs_to_8, single_blanks, some_tabs_lost, column_tab_lost)


def header_stripped(lines: list[str], rng: Random) -> list[str]:
    return [lines[0].lstrip(), *lines[1:]]


def header_lost(lines: list[str], rng: Random) -> list[str]:
    return lines[1:]


HEADS: tuple[Damage, ...] = (keep, keep, keep, header_stripped, header_lost)


def hard_wrap(lines: list[str], rng: Random) -> list[str]:
    width, strip = rng.randint(60, 200), rng.random() < 0.5
    pieces = []
    for line in lines:
        shown = line.expandtabs(8)
        pieces += [shown[i : i + width] for i in range(0, len(shown), width)] or [""]
    return [p.rstrip() for p in pieces] if strip else pieces


def soft_wrap(lines: list[str], rng: Random) -> list[str]:
    width = rng.randint(60, 200)
    pieces: list[str] = []
    for line in lines:
        rest = line.expandtabs(8).rstrip()
        while len(rest) > width:
            at = rest.rfind(" ", 0, width + 1)
            if at <= len(rest) - len(rest.lstrip()):
                break
            pieces.append(rest[:at].rstrip())
            rest = rest[at:].lstrip()
        pieces.append(rest)
    return pieces


WRAPS: tuple[Damage, ...] = (keep, keep, hard_wrap, soft_wrap)


def prefixed(lines: list[str], rng: Random) -> list[str]:
    prefix = rng.choice(
        ("# ", "> ", "//   ", "jobs/run.sh:# ", "[rank0]: ", "2024-05-01 12:0{}:0{} INFO node7: ", "| ")
    )
    return [prefix.format(rng.randrange(10), rng.randrange(10)) + line for line in lines]


def padded(lines: list[str], rng: Random) -> list[str]:
    return [line + " " * rng.choice((0, 3, 40)) for line in lines]


def table_pipes(lines: list[str], rng: Random) -> list[str]:
    return ["| " + line.replace("\t", " | ") + " |" for line in lines]


def odd_blanks(lines: list[str], rng: Random) -> list[str]:
    odd = rng.choice(("\u00a0", "&nbsp;", "\u2003"))
    return [line.replace("\t", odd * 2).replace("  ", odd + " ") for line in lines]


MARGINS: tuple[Damage, ...] = (keep, keep, keep, prefixed, padded)

BEFORE = (
    "",
    "$ nvidia-smi topo -m\n",
    "Collecting environment information...\nPyTorch version: 2.7\nCUDA used to build PyTorch: 12.6\n\nGPU Topology:\n",
    "Here is what we see on the node (GPU0 is slow!):\n\n```\n",
    "======================\nTopology\n----------------------\n",
)
AFTER = ("", "\n\nLD_LIBRARY_PATH=/usr/lib64\nCUDA_VISIBLE_DEVICES=0,1\n", "```\nAny idea?\n", "\nroot@node:~# ")


@dataclass(frozen=True)
class Variant:
    """A damaged text of a machine; `whole` says that every cell is still in it, `headless` that the header is not."""

    printed: Printed
    text: str
    whole: bool
    headless: bool
    how: str


def random_variant(rng: Random, printed: Printed | None = None) -> Variant:
    """One machine printed and damaged in several ways at once."""
    printed = printed or random_printed(rng)
    layout, head, wrap, margin = (rng.choice(c) for c in (LAYOUTS, HEADS, WRAPS, MARGINS))
    if layout in (tabs_to_8, column_tab_lost) or wrap is not keep:
        printed = replace(printed, ansi=False)  # a terminal copies no escapes
    matrix = head(layout(printed.matrix_lines(), rng), rng)
    if wrap is keep and layout is keep and rng.random() < 0.4:
        margin = rng.choice((table_pipes, odd_blanks))
    lines = margin(wrap(matrix, rng) + printed.legend_lines(), rng)
    whole = True
    if rng.random() < 0.06 and len(matrix) > 2:
        del lines[rng.randrange(1, len(matrix))]
        whole = False
    ending = rng.choice(("\n", "\n", "\r\n", "<br>"))
    text = "".join(line + ending for line in lines)
    before, after = rng.choice(BEFORE), rng.choice(AFTER)
    if rng.random() < 0.06:
        text, after, whole = text[: rng.randrange(len(text) // 3, len(text))], "", False
    text = ("\ufeff" if rng.random() < 0.1 else "") + before + text + after
    how = " ".join(f.__name__ for f in (layout, head, wrap, margin)) + f" {ending!r}" + ("" if whole else " cut")
    return Variant(printed, text, whole, head is header_lost, how)
