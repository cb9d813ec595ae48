"""What NCCL really used, by its own log, against what the topology offers: transports, NICs, library. Pure.

The log of all ranks is one set of facts, so a check speaks only where the set leaves no other reading. Ranks that were
forked without P2P, to compare, log shared memory as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from probe.checks.network import is_rdma
from probe.checks.reading import Reading, finding, named
from probe.finding import Finding
from probe.topology import GpuRef, PathKind, Topology
from probe.units import some

_INSIDE_SWITCH = (PathKind.PIX, PathKind.PXB)


def used(reading: Reading) -> Iterator[Finding]:
    transports = {e.value for e in reading.survey.evidence if e.what == "transport"}
    if transports and reading.curves:
        yield from _inside_a_node(reading, transports)
        yield from _between_nodes(reading, transports)
    yield from _nics(reading)
    yield from _libraries(reading)


def _inside_a_node(reading: Reading, transports: set[str]) -> Iterator[Finding]:
    """Groups that NVLink or a PCIe switch joins, and no P2P: all through shared memory, or even through the network."""
    near = sorted(
        {ref for curve in reading.curves for ref in curve.members if _is_near(reading.topology, curve.members)}
    )
    compares = any(curve.key.p2p_enabled is False for curve in reading.curves)
    if not near or all(curve.key.p2p_enabled is False for curve in reading.curves):
        return
    all_near = all(_is_near(reading.topology, curve.members) for curve in reading.curves)
    one_node = len({ref.node for curve in reading.curves for ref in curve.members}) == 1
    others = sorted(t for t in transports if not t.startswith("P2P"))
    shared = [t for t in others if t.startswith("SHM")]
    network = [t for t in others if t.startswith("NET")]
    no_p2p = not any(t.startswith("P2P") for t in transports)
    fallen = others if no_p2p else shared if all_near and not compares else []
    fallen = fallen or (network if one_node and all_near else [])
    if fallen:
        told = dict(reading.survey.environment).get("NCCL_P2P_DISABLE") == "1" and not compares
        cure = "NCCL_P2P_DISABLE=1 is set: unset it and measure again." if told else None
        yield finding(
            "nccl-not-peer-to-peer",
            f"NCCL moved data through {some(fallen, 3)} on {named(near, reading.topology)}",
            cure=cure,
            expected=("peer-to-peer transport (P2P) over NVLink or the PCIe switch", "NCCL, environment variables"),
            gpus=near,
        )


def _is_near(topology: Topology, members: tuple[GpuRef, ...]) -> bool:
    """Whether P2P is what NCCL uses between all of them: NVLink or PCIe switches (NCCL_P2P_LEVEL's default)."""
    paths = [topology.path(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]
    staged = any("geforce" in (topology.gpu(ref).name or "").lower() for ref in members)
    return all(path.is_fast or (path.kind in _INSIDE_SWITCH and not staged) for path in paths)


def _between_nodes(reading: Reading, transports: set[str]) -> Iterator[Finding]:
    members = sorted(_network_members(reading))
    if not members:
        return
    topology = reading.topology
    nics = {nic.name: nic for ref in members for nic in topology.nodes[ref.node].shape.nics}
    rdma = sorted(name for name, nic in nics.items() if is_rdma(nic) and (nic.state or "active").lower() == "active")
    sockets = sorted(t for t in transports if t.startswith("NET/Socket"))
    if sockets and rdma:
        yield finding(
            "nccl-over-sockets",
            f"NCCL went between nodes through {some(sockets, 3)}, with {some(rdma, 4)} there",
            expected=("InfiniBand or RoCE (NET/IB) or a provider's plugin", "NCCL, NCCL_IB_DISABLE and NCCL_IB_HCA"),
            gpus=members,
            nics=rdma,
        )
    verbs = [t for t in transports if t.startswith("NET/IB")]
    if verbs and not any("GDRDMA" in t for t in verbs) and any(_has_near_nic(topology, ref) for ref in members):
        yield finding(
            "no-gpudirect-rdma",
            f"NCCL's channels between nodes ({some(sorted(verbs), 3)}) go through host memory",
            expected=("GDRDMA, with a NIC under the GPU's PCIe switch", "NCCL, NCCL_NET_GDR_LEVEL"),
            gpus=members,
        )


def _network_members(reading: Reading) -> set[GpuRef]:
    """GPUs of the groups that the network joins."""
    found: set[GpuRef] = set()
    for curve in reading.curves:
        nodes = {ref.node: ref for ref in curve.members}
        first = curve.members[0]
        if any(
            reading.topology.path(first, ref).kind is PathKind.NET for ref in nodes.values() if ref.node != first.node
        ):
            found |= set(curve.members)
    return found


def _has_near_nic(topology: Topology, ref: GpuRef) -> bool:
    rows = topology.nodes[ref.node].shape.nic_paths
    return bool(rows) and any(path.kind in _INSIDE_SWITCH for path in rows[ref.gpu])


def _nics(reading: Reading) -> Iterator[Finding]:
    """NICs that are nearest to none of the GPUs, worse where none of them is on their socket; and nearest ones idle."""
    members = sorted(_network_members(reading))
    taken = {name for e in reading.survey.evidence if e.what == "nic" for name in _device_names(e.value)}
    if not members or not taken:
        return
    topology = reading.topology
    near = {name for ref in members for name in topology.gpu(ref).nearest_nics}
    names: dict[str, str] = {}
    for ref in members:
        for nic in topology.nodes[ref.node].shape.nics:
            names |= {alias: nic.name for alias in (nic.name, nic.label, nic.interface) if alias}
    known = {names[name] for name in taken if name in names}
    foreign = sorted(known - near) if near else []
    remote = [name for name in foreign if _is_remote(topology, members, name)]
    for code, listed in (("numa-remote-nic-used", remote), ("wrong-nic", [n for n in foreign if n not in remote])):
        if listed:
            yield finding(
                code,
                f"NCCL sent through {some(listed, 4)}, which is nearest to none of the GPUs",
                expected=(f"{some(sorted(near), 4)}, the nearest", "NCCL, NCCL_IB_HCA and NCCL_CROSS_NIC"),
                gpus=members,
                nics=listed,
            )
    whole = _whole_nodes(reading)
    needed = {name for ref in members if ref.node in whole for name in topology.gpu(ref).nearest_nics}
    idle = sorted(needed - known) if known else []
    if idle:
        yield finding(
            "nics-unused",
            f"NCCL left {some(idle, 4)} unused and sent through {some(sorted(known), 4)}",
            expected=("every NIC that is nearest to a GPU", "NCCL, NCCL_IB_HCA"),
            gpus=members,
            nics=idle,
        )


def _whole_nodes(reading: Reading) -> set[int]:
    """Nodes all of whose usable GPUs took part in one group over the network: those need all of their NICs."""
    found = set()
    for curve in reading.curves:
        nodes = {ref.node for ref in curve.members}
        for node in nodes if len(nodes) > 1 else ():
            usable = [i for i, gpu in enumerate(reading.topology.nodes[node].gpus) if gpu.is_usable]
            if len(usable) == sum(ref.node == node for ref in curve.members):
                found.add(node)
    return found


def _device_names(value: str) -> list[str]:
    """'mlx5_0:1/RoCE' -> ['mlx5_0']; a virtual device has several: 'mlx5_0+mlx5_1'."""
    return [name for part in value.split("+") if (name := part.partition("/")[0].partition(":")[0].strip())]


def _is_remote(topology: Topology, members: list[GpuRef], name: str) -> bool:
    """Whether the way from each of these GPUs to the NIC leads over the link between sockets."""
    kinds = set()
    for ref in members:
        shape = topology.nodes[ref.node].shape
        for position, nic in enumerate(shape.nics):
            if nic.name == name:
                if shape.nic_paths:
                    kinds.add(shape.nic_paths[ref.gpu][position].kind)
                elif None not in (nic.numa_node, shape.gpus[ref.gpu].numa_node):
                    same = nic.numa_node == shape.gpus[ref.gpu].numa_node
                    kinds.add(PathKind.NODE if same else PathKind.SYS)
    return kinds == {PathKind.SYS}


def _libraries(reading: Reading) -> Iterator[Finding]:
    versions = sorted({v for c in reading.curves if (v := c.key.library_version) is not None})
    if len(versions) > 1:
        yield finding("several-libraries", f"the figures are of several versions of NCCL: {some(versions, 4)}")
