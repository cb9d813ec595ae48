"""Registration with an NVSwitch fabric: under way, failed, unwell, or in different cliques. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from probe.checks.view import View, gpus, grouped
from probe.fabric_health import health_problems
from probe.finding import Finding, Severity
from probe.topology import FabricState, Through

_UNDER_WAY = (FabricState.NOT_STARTED, FabricState.IN_PROGRESS)
_SLOWER_ONLY = frozenset(("degraded bandwidth", "route recovery in progress"))
_NVML = "NVML API Reference, Fabric definitions (state 3 and status 0)"


def fabric(view: View) -> Iterator[Finding]:
    """Of one node. No cluster (UUID of zeros) is normal: there is no NVLink between nodes then."""
    told = {i: state.fabric for i, state in enumerate(view.node.gpus) if state.fabric and i in view.whole}
    waiting = {i: f.state.value for i, f in told.items() if f.state in _UNDER_WAY and _needs_it(view, i)}
    if waiting:
        states = " and ".join(sorted(set(waiting.values())))
        yield view.found(
            "fabric-in-progress",
            f"NVSwitch registration of {gpus(waiting)} is {states}: no NVLink traffic until it completes",
            gpus=waiting,
            expected=("registration completed", _NVML),
        )
    failed = {i: f.status for i, f in told.items() if f.state is FabricState.COMPLETED and f.status}
    for status, members in grouped(failed).items():
        yield view.found(
            "fabric-failed",
            f"NVSwitch registration of {gpus(members)} failed (status {status}): traffic falls to PCIe",
            gpus=members,
            expected=("registration completed with status 0", _NVML),
        )
    for problems, members in grouped({i: tuple(health_problems(f.health_mask)) for i, f in told.items()}).items():
        if problems:
            yield view.found(
                "fabric-unhealthy",
                f"the NVLink fabric of {gpus(members)} tells {', '.join(problems)}",
                gpus=members,
                severity=Severity.WARNING if _SLOWER_ONLY.issuperset(problems) else None,
                expected=("a health mask without trouble", "nvml.h, NVML_GPU_FABRIC_HEALTH_MASK_*"),
            )
    yield from _cliques(view)


def _needs_it(view: View, i: int) -> bool:
    """Links that lead to other GPUs directly, or to nobody, need no registration."""
    gpu, figures = view.shape.gpus[i], view.figures(i)
    if any(view.shape.path(i, other).through is Through.DIRECT for other in view.peers[i]):
        return False
    return bool(gpu.nvlinks_total or (figures and figures.nvlinks and not figures.nvlink_by_bridge))


def _cliques(view: View) -> Iterator[Finding]:
    """GPUs of one node in different domains, or some in one and some in none. (cluster, 0) is in none."""
    ready = {i: f for i in view.whole if (f := view.node.gpus[i].fabric) and f.is_ready}
    domains = grouped({i: f.domain for i, f in ready.items()})
    if len(domains) > 1:
        told = [
            f"{gpus(members, 'is', 'are')} in " + (f"clique {domain[1]}" if domain else "none")
            for domain, members in domains.items()
        ]
        yield view.found(
            "clique-differs",
            f"the GPUs of this node are not in one NVLink domain: {', '.join(told)}",
            gpus=ready,
            expected=("one cluster UUID and clique for all GPUs of a node", "NVIDIA, IMEX guide; NVIDIA/nccl#1301"),
        )
