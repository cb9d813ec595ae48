"""Ranks are forked anew where a library reads a variable only once: without P2P, and with its log in full."""

from __future__ import annotations

from dataclasses import dataclass, field

from probe.bench.schedule import Step, steps
from probe.topology import Topology, require


@dataclass(frozen=True)
class Generation:
    """Ranks that live together: what they measure, under which variables, with which share of the time."""

    steps: tuple[Step, ...]
    share: float
    environment: dict[str, str] = field(default_factory=dict)
    rates: bool = False
    log_only: bool = False
    """Runs every step once for what the library then logs; its times, slowed by the log, are not kept."""

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "a generation has a share of the time")


def generations(topology: Topology, *, backend: str, every_pair: bool) -> tuple[Generation, ...]:
    """One for gloo; for NCCL also one without P2P, and one whose log tells algorithm and protocol of each size."""
    everything = steps(topology, backend=backend, every_pair=every_pair)
    through_host = tuple(s for s in everything if s.p2p_enabled is False)
    usual = tuple(s for s in everything if s.p2p_enabled is not False)
    found = [Generation(usual, 1.0, rates=True)]
    if backend == "nccl":
        if through_host:
            found.append(Generation(through_host, 0.2, {"NCCL_P2P_DISABLE": "1"}))
        collectives = tuple(s for s in usual if s.operation != "p2p" and not s.graph)
        if collectives:
            log = {"NCCL_DEBUG_SUBSYS": "INIT,ENV,GRAPH,NET,TUNING"}
            found.append(Generation(collectives, 0.1, log, log_only=True))
    return tuple(found)
