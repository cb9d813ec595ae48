"""Writes NCCL topology XML for tests: machines of the tests' own make."""

from __future__ import annotations

from probe.sources.nccl_xml import looks_like_nccl, read_nccl
from probe.topology import NodeShape, Topology

SWITCH, GPU, AMD, POWER = "0x068000", "0x030200", "0x120000", "0x068001"


def bus(i: int) -> str:
    return f"0000:{i:02x}:00.0"


def link(target: str, count: object, tclass: str = GPU, tag: str = "nvlink") -> str:
    return f'<{tag} target="{target}" count="{count}" tclass="{tclass}"/>'


def gpu(i: int, *links: str, dev: object = None, extra: str = 'sm="90"', at: str | None = None) -> str:
    inside = f'<gpu dev="{i if dev is None else dev}" rank="{i}" gdr="1" {extra}>{"".join(links)}</gpu>'
    return pci(at or bus(0x40 + i), GPU, inside)


def pci(busid: str, pci_class: str, inside: str = "", speed: str = "32.0 GT/s PCIe") -> str:
    return f'<pci busid="{busid}" class="{pci_class}" link_speed="{speed}" link_width="16">{inside}</pci>'


def bridge(i: int, *inside: str) -> str:
    return pci(bus(i), "0x060400", "".join(inside))


def net(name: str, speed: object = 400000, port: int = 1, gdr: int = 1) -> str:
    return f'<net name="{name}" dev="0" speed="{speed}" port="{port}" gdr="{gdr}"/>'


def nic(i: int, *nets: str, pci_class: str = "0x020700") -> str:
    return pci(bus(0x80 + i), pci_class, f"<nic>{''.join(nets)}</nic>")


def cpu(numa: object, *inside: str, affinity: str = "0000ffff", host: str = "") -> str:
    told = f' host_hash="{host}"' if host else ""
    return f'<cpu numaid="{numa}" affinity="{affinity}"{told}>{"".join(inside)}</cpu>'


def read(*cpus: str) -> Topology:
    text = f'<!-- made by a test -->\n<system version="1">{"".join(cpus)}</system>'
    assert looks_like_nccl(text[:200])
    return read_nccl(text, where="topo.xml")


def shape_of(*cpus: str) -> NodeShape:
    return read(*cpus).nodes[0].shape


def codes(topology: Topology) -> set[str]:
    return {w.code for w in topology.warnings}


def message(topology: Topology, code: str) -> str:
    return next(w.message for w in topology.warnings if w.code == code)


def labels(shape: NodeShape) -> list[str]:
    return [p.label for p in shape.paths]
