"""Labels of a node, and the file from which Node Feature Discovery takes them. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone

from configgen.run.agent import STALE_INTERVALS, Seen, lasting
from probe.curve import profiles
from probe.islands import Island, fingerprint, islands
from probe.measurement import Survey
from probe.topology import require

PREFIX = "wirelore.io/"
NAMES = ("probe", "gpus", "islands", "island-size", "link", "nvlinks", "measured-gbps", "audit", "fingerprint")
"""All that there are: a label that a machine does not have is taken off its node."""

CLASSES_GBPS = (800, 600, 400, 300, 200, 100, 50, 25, 10, 0)
"""A measured bandwidth is told as the first of these that it reaches, so that a label does not change with noise."""

FILE = "wirelore"
_LIMIT_BYTES = 64 << 10
"""Larger files are left out (kubernetes-sigs/node-feature-discovery, source/local: MaxFeatureFileSize)."""
_LEAST_LIFE_S = 180.0
"""Three times NFD's core.sleepInterval of 60 s, so that no short interval lets a label flap."""
_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII)


def labels(seen: Seen) -> dict[str, str]:
    """What schedulers and people choose a node by; without what a machine does not have."""
    if seen.audited is None:
        return {PREFIX + "probe": "failed"}
    survey = seen.audited.survey
    topology = survey.topology
    grave = lasting(seen.audited.findings)
    usable = [island for island in islands(topology) if all(topology.state(ref).is_usable for ref in island.members)]
    told = {
        "probe": "ok",
        "gpus": str(sum(len(island.members) for island in usable)),
        "islands": _sizes(usable),
        "audit": grave[0].severity.value if grave else "passed",
        "fingerprint": fingerprint(topology),
    }
    if usable:
        told["island-size"] = str(len(usable[0].members))
        if (slowest := usable[0].bottleneck) is not None:
            told["link"] = slowest.label
            told |= {"nvlinks": str(slowest.links)} if slowest.links else {}
        if (reached := _class_gbps(survey, usable[0])) is not None:
            told["measured-gbps"] = str(reached)
    return {PREFIX + name: told[name] for name in NAMES if told.get(name)}


def feature_file(told: Mapping[str, str], written_at_s: float, interval_s: float) -> bytes:
    """One `name=value` a line, and when NFD is to drop them unless they are written again. Seconds since 1970."""
    require(all(_VALUE.fullmatch(value) for value in told.values()), "a label's value is up to 63 plain characters")
    life_s = max(STALE_INTERVALS * interval_s, _LEAST_LIFE_S)
    until = datetime.fromtimestamp(written_at_s + life_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = ["# Written by wirelore agent.", f"# +expiry-time={until}", *(f"{n}={v}" for n, v in told.items())]
    text = "".join(f"{line}\n" for line in lines).encode()
    require(len(text) <= _LIMIT_BYTES, "a feature file has at most 64 KiB")
    return text


def _sizes(found: list[Island]) -> str:
    """'2x4' for two islands of four, '1x7-1x1' where one GPU stands alone beside seven."""
    return "-".join(f"{number}x{size}" for size, number in Counter(len(i.members) for i in found).items())


def _class_gbps(survey: Survey, island: Island) -> int | None:
    """Of the all-reduce over the whole island with nothing beside it; None where that was not measured."""
    if survey.lab is not None:
        return None
    whole = [
        curve
        for curve in survey.curves
        if curve.key.operation == "all_reduce"
        and curve.key.group.concurrent_groups == 1
        and set(curve.members) == set(island.members)
    ]
    if not whole:
        return None
    read = profiles(survey.curves)
    best_gbps = max(read[id(curve)].plateau_busbw_gbps for curve in whole)
    return next(least for least in CLASSES_GBPS if best_gbps >= least)
