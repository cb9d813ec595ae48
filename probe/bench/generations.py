"""Ranks are forked anew where a library reads a variable only once: without P2P, and with its log in full."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from probe.bench.schedule import Step, steps
from probe.topology import Notice, Topology, require

_WITHOUT_P2P = {"NCCL_P2P_DISABLE": "1"}
_LEAST_S = 10.0
"""New ranks, their CUDA contexts and communicators take several seconds before anything is measured."""


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


def generations(
    topology: Topology, *, backend: str, every_pair: bool, through_host: bool = False
) -> tuple[Generation, ...]:
    """One for gloo; for NCCL also one without P2P, and one whose log tells algorithm and protocol of each size.

    `through_host` says that P2P failed its check: then everything is measured without it, as it has to be deployed.
    """
    everything = steps(topology, backend=backend, every_pair=every_pair)
    usual = tuple(s for s in everything if s.p2p_enabled is not False)
    if through_host:
        return (Generation(tuple(replace(s, p2p_enabled=False) for s in usual), 1.0, _WITHOUT_P2P, rates=True),)
    found = [Generation(usual, 1.0, rates=True)]
    if backend == "nccl":
        without = tuple(s for s in everything if s.p2p_enabled is False)
        collectives = tuple(s for s in usual if s.operation != "p2p" and not s.graph)
        if without:
            found.append(Generation(without, 0.2, _WITHOUT_P2P))
        if collectives:
            log = {"NCCL_DEBUG_SUBSYS": "INIT,ENV,GRAPH,NET,TUNING"}
            found.append(Generation(collectives, 0.1, log, log_only=True))
    return tuple(found)


def affordable(plans: tuple[Generation, ...], left_s: float | None) -> tuple[int, ...]:
    """Those that get more time than it costs to start them; the first always does, and None is time without end."""
    if left_s is None:
        return tuple(range(len(plans)))
    chosen = list(range(len(plans)))
    while len(chosen) > 1 and left_s * plans[chosen[-1]].share / sum(plans[i].share for i in chosen) < _LEAST_S:
        chosen.pop()
    return tuple(chosen)


def left_out(plans: tuple[Generation, ...], chosen: tuple[int, ...]) -> tuple[Notice, ...]:
    """Why a survey holds nothing of the generations that were not chosen."""
    found = []
    for i, plan in enumerate(plans):
        if i not in chosen:
            what = "NCCL's choice of algorithm and protocol" if plan.log_only else "paths without P2P"
            found.append(Notice("not-measured", f"The time did not suffice for {what}: give --budget 3m."))
    return tuple(found)
