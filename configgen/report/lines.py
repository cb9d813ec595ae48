"""Short lines about machines, shared by every report."""

from __future__ import annotations

from collections import Counter

from probe.errors import one_line
from probe.islands import Island, islands
from probe.measurement import Survey
from probe.topology import GpuStatus, Topology
from probe.units import count, ranges


def machine_line(topology: Topology, measured: Survey | None = None) -> str:
    """One line on a machine: GPUs, islands, measured or not, what to run next."""
    told = (measured_line(measured) if measured else None) or "not measured"
    return f"{gpus_line(topology)}; {islands_line(topology)}; {told}. Next: wirelore plan MODEL"


def measured_line(survey: Survey) -> str | None:
    """When, where and from which file its figures are; None where it holds none. What is no GPU's says so first."""
    if not survey.is_measured:
        return None
    told = [o.source for o in survey.origins if o.fact == "curves"] or ["at an unknown time"]
    if survey.lab is not None:
        return one_line(f"LAB FIGURES, not of these GPUs: {survey.lab}; measured {told[-1]}")
    return one_line(f"measured {told[-1]}")


def gpus_line(topology: Topology) -> str:
    """'8 x NVIDIA H100 80GB HBM3', '4 GPUs of unknown model, 1 of them lost', '... on 2 nodes'."""
    names = Counter(gpu.name for node in topology.nodes for gpu in node.shape.gpus)
    parts = [
        f"{n:,} x {one_line(name, 60)}" if name else f"{count(n, 'GPU')} of unknown model" for name, n in names.items()
    ]
    text = " + ".join(parts) or "no GPU"
    bad = Counter(g.status for node in topology.nodes for g in node.gpus if g.status is not GpuStatus.OK)
    text += "".join(f", {n} of them {status.value}" for status, n in bad.items())
    return text + (f" on {count(len(topology.nodes), 'node')}" if len(topology.nodes) > 1 else "")


def islands_line(topology: Topology) -> str:
    """'1 island of 8 (NV18)', '4 islands of 2 (NV4)', 'no fast fabric'."""
    kinds = Counter((len(i.members), i.bottleneck.label) for i in islands(topology) if i.bottleneck)
    if topology.gpu_count == 1:
        return "a single GPU"
    if not kinds:
        seen = all(node.shape.nvlink_visible for node in topology.nodes)
        return "no fast fabric between GPUs" if seen else "NVLink is not visible in this input"
    return ", ".join(f"{count(n, 'island')} of {size} ({label})" for (size, label), n in kinds.items())


def island_text(island: Island) -> str:
    """'node 0: GPUs 0,2 (NV4)'; a rack-wide island names its nodes."""
    nodes = sorted({m.node for m in island.members})
    label = f" ({island.bottleneck.label})" if island.bottleneck else ""
    if len(nodes) > 1:
        return f"nodes {ranges(nodes)}: {count(len(island.members), 'GPU')}{label}"
    return f"node {nodes[0]}: {'GPUs' if label else 'GPU'} {ranges([m.gpu for m in island.members])}{label}"
