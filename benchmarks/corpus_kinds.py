"""What the expected answer of each kind of description means for a Topology, beside `nvidia-smi topo`."""

from __future__ import annotations

from typing import Any

from probe.islands import islands, partial_meshes
from probe.topology import GpuState, PathKind, Through, Topology

Record = dict[str, Any]
Found = dict[str, tuple[object, object]]
"""Field -> (what was read, what is expected)."""


def smi_xml(expected: Record, topology: Topology) -> Found:
    """`nvidia-smi -q -x`. A repeated value is told once in the index."""
    node = topology.nodes[0]
    return {
        "gpus": (len(node.gpus), expected["gpus"]),
        "driver": (node.driver_version, expected["driver"]),
        "names": (sorted({str(g.name) for g in node.shape.gpus}), expected["names"]),
        "busids": ([f"0000{g.pci_bus_id}".upper() for g in node.gpus], expected["busids"]),
        "mig": ({bool(g.mig_instances) for g in node.gpus}, {m == "Enabled" for m in expected["mig"]}),
        "fabric": ({_fabric(g) for g in node.gpus}, {_expected_fabric(f) for f in expected["fabric"]}),
    }


def _fabric(state: GpuState) -> tuple[str, int | None, str, str | None] | None:
    f = state.fabric
    return (f.state.value, f.status, str(f.clique_id or 0), f.cluster_uuid) if f else None


def _expected_fabric(told: dict[str, str]) -> tuple[str, int | None, str, str | None] | None:
    if told["state"] == "N/A":
        return None
    cluster = told["clusterUuid"] if told["clusterUuid"].strip("0-") else None
    return told["state"].lower(), 0 if told["status"] == "Success" else None, told["cliqueId"], cluster


def nccl_xml(expected: Record, topology: Topology) -> Found:
    """NCCL and RCCL topology files. The index numbers GPUs as they stand in the file, not by `dev`.

    A PCIe level shows only between GPUs that no fast link joins. PIX against PXB of a NIC is soft: both stand in one
    NIC matrix, and switches of two levels are told as one or as two.
    """
    shape = topology.nodes[0].shape
    place = {g.pci_bus_id: i for i, g in enumerate(topology.nodes[0].gpus)}
    order = [place[g["busid"]] for g in expected["gpu_list"]]
    pairs = [(a, b, shape.path(order[a], order[b])) for a in range(len(order)) for b in range(a + 1, len(order))]
    soft = {"PXB": "PIX"}
    nearest = {}
    for k, gpu in enumerate(order):
        if row := shape.nic_paths[gpu] if shape.nic_paths else ():
            level = min(row, key=lambda p: p.slowness).label
            nearest[str(k)] = (soft.get(level, level), sorted(shape.gpus[gpu].nearest_nics))
    return {
        "gpus": (len(shape.gpus), expected["gpus"]),
        "template": ("template" in {w.code for w in topology.warnings}, expected["template"]),
        "nics": ([(n.name, str(n.numa_node)) for n in shape.nics], [(n["name"], n["numa"]) for n in expected["nics"]]),
        "direct_link_pairs": (
            [[a, b, p.links] for a, b, p in pairs if p.through is Through.DIRECT],
            expected["direct_link_pairs"],
        ),
        "pci_level_matrix": (
            [p.label for _, _, p in pairs if not p.is_fast],
            [expected["pci_level_matrix"][a][b] for a, b, p in pairs if not p.is_fast],
        ),
        "nvswitch_links_per_gpu": (
            {str(k): n for k, g in enumerate(order) if (n := shape.gpus[g].nvlinks_active)},
            expected["nvswitch_links_per_gpu"],
        ),
        "nearest_nics": (
            nearest,
            {k: (soft.get(n["level"], n["level"]), sorted(n["nics"])) for k, n in expected["nearest_nics"].items()},
        ),
    }


def rocm(expected: Record, topology: Topology) -> Found:
    """`rocm-smi --showtopo`."""
    shape = topology.nodes[0].shape
    groups = [[r.gpu for r in island.members] for island in islands(topology)]
    return {
        "gpus": (len(shape.gpus), expected["gpus"]),
        "xgmi_pairs": ([[a, b] for a, b, p in shape.pairs if p.kind is PathKind.XGMI], expected["xgmi_pairs"]),
        "fast_domains": (
            [] if partial_meshes(shape) else sorted(g for g in groups if len(g) > 1),
            sorted(expected["fast_domains"]),
        ),
    }


def hwloc(expected: Record, topology: Topology) -> Found:
    """`lstopo` XML."""
    node = topology.nodes[0]
    return {
        "gpus": (len(node.gpus), expected["gpus"]),
        "gpu_busids": ([g.pci_bus_id for g in node.gpus], expected["gpu_busids"]),
        "numanodes": (node.shape.numa_nodes, expected["numanodes"]),
    }


KINDS = {
    "nvidia-smi -q -x": smi_xml,
    "nccl topology xml": nccl_xml,
    "rccl topology xml": nccl_xml,
    "rocm-smi --showtopo": rocm,
    "hwloc xml": hwloc,
}
