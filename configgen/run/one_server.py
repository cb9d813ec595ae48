"""The plan of a group: where one server is asked for, it answers on node 0, for that is where a Service asks."""

from __future__ import annotations

from dataclasses import replace

from configgen.decide import plan
from configgen.model import ModelSpec
from configgen.plan import EngineTraits, Limits, Plan, Workload
from probe.errors import NoPlanError
from probe.measurement import Survey


def plan_for_group(
    survey: Survey,
    model: ModelSpec,
    workload: Workload,
    traits: EngineTraits,
    limits: Limits,
    *,
    what_if: bool = True,
) -> Plan:
    """The best plan; with `limits.replicas` 1 the best whose replica begins on node 0, which may leave out last nodes.

    Raises NoPlanError where there is none.
    """
    best = plan(survey, model, workload, traits, limits, what_if=what_if)
    first = best.replicas[0].nodes[0]
    if limits.replicas != 1 or first == 0:
        return best
    for nodes in range(len(survey.topology.nodes) - 1, 0, -1):
        try:
            found = plan(survey, model, workload, traits, replace(limits, nodes=nodes), what_if=what_if)
        except NoPlanError:
            break  # fewer nodes hold no more
        if found.replicas[0].nodes[0] == 0:
            return found
    raise NoPlanError(
        f"the one server that was asked for would begin on node {first}, and is asked at node 0, whose GPUs can't "
        f"begin it",
        cure="Give node 0 what the other nodes have, or leave --replicas away and ask each server where it is.",
    )
