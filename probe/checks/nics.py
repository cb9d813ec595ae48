"""Network devices: far from their GPUs, down, or slower than their siblings. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from probe.checks.view import View, gpus
from probe.finding import Finding, Severity
from probe.topology import Nic, PathKind
from probe.units import some

_UP = ("active", "up")
_UNTOLD = (None, "unknown", "testing", "dormant")
_FAST_GBPS = 25.0
"""Slower Ethernet manages a machine; between GPUs nobody sends over it by choice."""
_SAME_SOCKET = (PathKind.PIX, PathKind.PXB, PathKind.PHB, PathKind.NODE)
_SIBLINGS = "its siblings in this node"
_NUMA_SOURCE = "NVIDIA, NCCL User Guide: a GPU's traffic should leave through a NIC under its own PCIe switch or socket"


def nics(view: View) -> Iterator[Finding]:
    """Of one node."""
    yield from _far(view)
    yield from _down(view)
    yield from _slow(view)


def _carries_traffic(nic: Nic) -> bool:
    """A printed matrix lists RDMA devices alone; of others the rate or the link layer tells."""
    return nic.label is not None or nic.link_layer == "InfiniBand" or (nic.speed_gbps or 0.0) >= _FAST_GBPS


def _may_carry_traffic(nic: Nic) -> bool:
    """lstopo tells no rates, and of devices such as AWS's EFA no link layer either."""
    return nic.speed_gbps is None


def _far(view: View) -> Iterator[Finding]:
    """Grave only where others show that it could be better: one NIC cannot be near to two sockets, and where no GPU
    has a near one, the GPUs are a part of a machine, or the machine is built so."""
    shape = view.shape
    working = [k for k, nic in enumerate(shape.nics) if nic.state in (*_UP, *_UNTOLD)]
    used = [k for k in working if _carries_traffic(shape.nics[k])]
    if not used or not shape.nic_paths or view.is_virtual:
        return
    near = [k for k in working if k in used or _may_carry_traffic(shape.nics[k])]
    homes = {home for k in near for home in _homes(view, k)}
    far = [
        i
        for i in view.whole
        if min((shape.nic_paths[i][k] for k in near), key=lambda path: path.slowness).kind is PathKind.SYS
        and shape.gpus[i].numa_node not in homes
    ]
    if far:
        sockets = {gpu.numa_node for gpu in shape.gpus} - {None}
        is_built_so = len(used) < max(len(sockets), 2) or len(far) == len(view.whole)
        yield view.found(
            "nic-far",
            f"every NIC is on another socket than {gpus(far)} (SYS)",
            gpus=far,
            nics=[shape.nics[k].name for k in used],
            fact="nic_paths",
            severity=Severity.INFO if is_built_so else None,
            expected=("a NIC on the GPU's own socket", _NUMA_SOURCE),
        )


def _homes(view: View, k: int) -> set[int]:
    """The NUMA nodes of a NIC: its own, or those of GPUs near it. In some machines (sub-NUMA clusters, virtual ones)
    the driver prints SYS between devices of one node."""
    nic, shape = view.shape.nics[k], view.shape
    if nic.numa_node is not None:
        return {nic.numa_node}
    near = (gpu for gpu in shape.gpus if shape.nic_paths[gpu.index][k].kind in _SAME_SOCKET)
    return {gpu.numa_node for gpu in near if gpu.numa_node is not None}


def _kind(nic: Nic) -> tuple[str, str | None]:
    """'mlx5_3' is a sibling of 'mlx5_0' where both speak the same link layer."""
    return nic.name.rstrip("0123456789"), nic.link_layer


def _nearest(view: View) -> set[str]:
    """NICs that GPUs send through; others serve storage or management. Empty where no source tells."""
    return {name for gpu in view.shape.gpus for name in gpu.nearest_nics}


def _down(view: View) -> Iterator[Finding]:
    nearest = _nearest(view)
    kinds: dict[tuple[str, str | None], list[Nic]] = {}
    for nic in view.shape.nics:
        kinds.setdefault(_kind(nic), []).append(nic)
    for siblings in kinds.values():
        up = [nic for nic in siblings if nic.state in _UP]
        down = [nic for nic in siblings if nic.state not in (*_UP, *_UNTOLD)]
        if not any(_carries_traffic(nic) for nic in up):
            continue
        missed = [nic for nic in down if nic.name in nearest or not nearest]
        for ports in (missed, [nic for nic in down if nic not in missed]):
            if ports:
                names = [nic.name for nic in ports]
                states = some(sorted({str(nic.state) for nic in ports}))
                yield view.found(
                    "nic-down",
                    f"{some(names)} {'is' if len(ports) == 1 else 'are'} {states}",
                    nics=names,
                    fact="nics",
                    severity=Severity.INFO if ports is not missed or len(down) >= len(up) else None,
                    expected=(f"a link, as {some([nic.name for nic in up])} {_has(up)}", _SIBLINGS),
                )


def _slow(view: View) -> Iterator[Finding]:
    """Only NICs that are some GPU's nearest compare."""
    near = _nearest(view)
    kinds: dict[tuple[str, str | None], dict[str, float]] = {}
    for nic in view.shape.nics:
        if nic.speed_gbps and _carries_traffic(nic) and (nic.name in near or not near):
            kinds.setdefault(_kind(nic), {})[nic.name] = nic.speed_gbps
    for rates in kinds.values():
        usual, times = Counter(rates.values()).most_common(1)[0]
        for rate in sorted({r for r in rates.values() if r < usual}) if times * 2 > len(rates) else ():
            names = [name for name, r in rates.items() if r == rate]
            yield view.found(
                "nic-slow",
                f"{some(names)} {'runs' if len(names) == 1 else 'run'} at {rate:g} Gbit/s",
                nics=names,
                fact="nics",
                expected=(f"{usual:g} Gbit/s, as {times} of {len(rates)} like it", _SIBLINGS),
                judged=(rate, usual, "Gbit/s"),
            )


def _has(up: list[Nic]) -> str:
    return "has" if len(up) == 1 else "have"
