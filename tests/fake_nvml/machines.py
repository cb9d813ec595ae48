"""Machines for the fake NVML. A Description says what each call answers; the functions below are whole machines."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, permutations
from pathlib import Path

GIB = 1 << 30
PIX, PXB, PHB, NODE, SYS = 10, 20, 30, 40, 50
OK, CNS, NS, UNKNOWN = 0, 1, 5, 6
READ, WRITE, NVLINK, ATOMICS, PCI = range(5)
LOST, NOT_SUPPORTED, INVALID_ARGUMENT = "!15", "!3", "!2"
NO_CLUSTER = "0" * 32
SWITCH_PCI = "FFFFFFFF:FF:FF.0"


class Description:
    """Answers by key, as the fake reads them: `d["memory 3"] = "!15"`."""

    def __init__(self, count: int, name: str, memory_gib: int, capability: str, per_socket: int = 4) -> None:
        self.count = count
        self.answers: dict[str, object] = {
            "driver": "580.95.05", "nvml": "13.580.95.05", "cuda": 13000, "count": count,
        }  # fmt: skip
        for i in range(count):
            self.answers |= {
                f"name {i}": name,
                f"uuid {i}": f"GPU-{i + 1:08x}-aaaa-bbbb-cccc-0000000000{i:02x}",
                f"pci {i}": self.pci(i),
                f"serial {i}": 1650000 + i,
                f"memory {i}": f"{memory_gib * GIB} {GIB // 2} {(memory_gib - 1) * GIB} {GIB // 2}",
                f"compute_capability {i}": capability,
                f"virtualization {i}": 0,
                f"cpu_affinity {i}": "0xffffffff 0x0" if i < per_socket else "0x0 0xff",
                f"mig.mode {i}": "0 0",
                f"pcie.generation {i}": 1, f"pcie.generation_max {i}": 5,
                f"pcie.width {i}": 16, f"pcie.width_max {i}": 16,
            }  # fmt: skip
        for a, b in combinations(range(count), 2):
            self.answers[f"ancestor {a} {b}"] = NODE if a // per_socket == b // per_socket else SYS
        for a, b in permutations(range(count), 2):
            self.p2p(a, b, OK, nvlink=NS)

    def __setitem__(self, key: str, value: object) -> None:
        self.answers[key] = value

    def pci(self, i: int) -> str:
        return f"00000000:{0x1B + 0x11 * i:02X}:00.0"

    def __ior__(self, answers: dict[str, object]) -> Description:
        self.answers |= answers
        return self

    def drop(self, *prefixes: str) -> None:
        self.answers = {k: v for k, v in self.answers.items() if not k.startswith(prefixes)}

    def p2p(self, a: int, b: int, status: int, *, nvlink: int) -> None:
        for capability in (READ, WRITE, ATOMICS, PCI):
            self.answers[f"p2p {a} {b} {capability}"] = status
        self.answers[f"p2p {a} {b} {NVLINK}"] = nvlink

    def link(self, gpu: int, number: int, version: int, *, remote: str, kind: int, state: int = 1) -> None:
        self.answers |= {
            f"link.state {gpu} {number}": state, f"link.version {gpu} {number}": version,
            f"link.type {gpu} {number}": kind, f"link.pci {gpu} {number}": remote,
        }  # fmt: skip

    def switched(self, links: int, version: int, *, joined: Iterable[tuple[int, int]] | None = None) -> None:
        """All links end in switches; pairs that are `joined` (all, if None) have NVLink P2P."""
        for i in range(self.count):
            self[f"field {i} 91"] = links
            for n in range(links):
                self.link(i, n, version, remote=SWITCH_PCI, kind=2)
        for a, b in combinations(range(self.count), 2) if joined is None else joined:
            self.p2p(a, b, OK, nvlink=OK)
            self.p2p(b, a, OK, nvlink=OK)

    def bridged(self, bonds: dict[tuple[int, int], int], version: int, total: int) -> None:
        """Direct links: so many per pair; what is left of `total` is down."""
        used = [0] * self.count
        for (a, b), links in bonds.items():
            for _ in range(links):
                self.link(a, used[a], version, remote=self.pci(b), kind=0)
                self.link(b, used[b], version, remote=self.pci(a), kind=0)
                used[a] += 1
                used[b] += 1
            self.p2p(a, b, OK, nvlink=OK)
            self.p2p(b, a, OK, nvlink=OK)
        for i in range(self.count):
            self[f"field {i} 91"] = total
            for n in range(used[i], total):
                self[f"link.state {i} {n}"] = 0

    def fabric(self, state: int = 3, status: int = 0, clique: int = 0, cluster: str = NO_CLUSTER) -> None:
        for i in range(self.count):
            self[f"fabric {i}"] = f"{state} {status} {clique} 0xaa {cluster}"

    def write(self, path: Path) -> Path:
        path.write_text("".join(f"{key} = {value}\n" for key, value in self.answers.items()))
        return path


def healthy(d: Description, *, watts: int = 700, nvlink_5: bool = False) -> Description:
    """The machine with all that a well and idle data-centre GPU tells of its health."""
    errors = range(206, 216) if nvlink_5 else range(161, 164)
    for i in range(d.count):
        d |= {
            f"ecc.mode {i}": "1 1", f"rows {i}": "0 0 0 0", f"ecc.sram {i}": "0 0 0 0 0 0 0",
            f"clocks.reasons {i}": 1, f"persistence {i}": 1, f"compute_mode {i}": 0, f"pcie.replays {i}": 0,
            f"processes {i}": "", f"field {i} 230": 0,
        }  # fmt: skip
        d |= {
            f"ecc.{kind}.{since} {i}": 0 for kind in ("corrected", "uncorrected") for since in ("volatile", "aggregate")
        }
        d |= {f"power.{limit} {i}": watts * 1000 for limit in ("limit", "limit_default", "limit_enforced")}
        links = [int(key.split()[2]) for key in d.answers if key.startswith(f"link.state {i} ")]
        d |= {f"field {i} {number} {n}": 0 for n in links for number in errors}
    return d


def hgx_h100() -> Description:
    d = Description(8, "NVIDIA H100 80GB HBM3", 80, "9 0")
    d.switched(18, version=6)
    d.fabric()
    return d


def hgx_b200() -> Description:
    d = Description(8, "NVIDIA B200", 179, "10 0")
    d.switched(18, version=7)
    d.fabric()
    d["fabric.version"] = 4
    return d


def gb200_tray() -> Description:
    """One of 18 trays: links 18 to 35 are refused with INVALID_ARGUMENT, and the rack has a cluster UUID."""
    d = Description(4, "NVIDIA GB200", 186, "10 0", per_socket=2)
    d.switched(18, version=7)
    d.fabric(clique=32766, cluster="5b37010efb0b4b1c8d4b0a6e6b3ac001")
    for i in range(4):
        d[f"numa_node {i}"] = 900 + i
        d[f"platform {i}"] = f"1821325191233 {7 + i} 3 0 1 {i + 1}"
        d |= {f"link.state {i} {n}": INVALID_ARGUMENT for n in range(18, 36)}
    return d


def a100_pcie_pairs() -> Description:
    d = Description(8, "NVIDIA A100 80GB PCIe", 80, "8 0")
    d.bridged({(0, 1): 12, (2, 3): 12, (4, 5): 12, (6, 7): 12}, version=4, total=12)
    return d


CUBE_MESH = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2, (2, 6): 1, (3, 7): 1,
    (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip


def dgx1_v100() -> Description:
    d = Description(8, "Tesla V100-SXM2-32GB", 32, "7 0")
    d.bridged(CUBE_MESH, version=2, total=6)
    d.drop("mig.mode", "field")  # before Ampere there is no MIG; old drivers do not count links
    return d


def l40s_8() -> Description:
    d = Description(8, "NVIDIA L40S", 45, "8 9")
    for a in range(0, 8, 2):
        d[f"ancestor {a} {a + 1}"] = PXB
    return d


def rtx_3090_bridges() -> Description:
    d = Description(4, "NVIDIA GeForce RTX 3090", 24, "8 6")
    d.bridged({(0, 2): 4, (1, 3): 4}, version=4, total=4)
    for a, b in combinations(range(4), 2):
        d[f"ancestor {a} {b}"] = PHB
    return d


def h200_vm() -> Description:
    d = Description(1, "NVIDIA H200", 140, "9 0")
    d["virtualization 0"] = 1
    d["fabric 0"] = f"0 999 0 0x0 {NO_CLUSTER}"
    d["field 0 91"] = 18
    for n in range(18):
        d[f"link.state 0 {n}"] = 0
    return d


def a100_mig() -> Description:
    """GPU 0 in two slices with sparse indices, GPU 1 whole."""
    d = Description(2, "NVIDIA A100-SXM4-40GB", 40, "8 0")
    d.switched(12, version=4, joined=())
    d["mig.mode 0"] = "1 1"
    d["mig.count 0"] = 7
    for m, (profile, gib) in {0: ("3g.20gb", 20), 5: ("1g.5gb", 5)}.items():
        d[f"mig.uuid 0 {m}"] = f"MIG-{m}f1e0000-1111-2222-3333-444444444444"
        d[f"mig.name 0 {m}"] = f"NVIDIA A100-SXM4-40GB MIG {profile}"
        d[f"mig.memory 0 {m}"] = f"{gib * GIB} 0 {gib * GIB} 0"
    return d


def gb10() -> Description:
    """Memory is the host's, and PCIe reads a port that does not exist."""
    d = Description(1, "NVIDIA GB10", 1, "12 1")
    d.drop("memory", "pcie")
    d |= {"pcie.generation 0": 1, "pcie.generation_max 0": 1, "pcie.width 0": 1, "pcie.width_max 0": 1}
    return d
