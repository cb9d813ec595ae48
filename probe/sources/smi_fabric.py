"""The <fabric> of a GPU in `nvidia-smi -q -x`: registration with an NVSwitch fabric, and its health, as NVML has it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from probe.fabric_health import ASPECTS, BAD, CONFIGURATION_SHIFT, CONFIGURATIONS, GOOD, OTHER_CONFIGURATION
from probe.topology import Fabric, FabricState

_STATES = {
    "not supported": FabricState.NOT_SUPPORTED,
    "not started": FabricState.NOT_STARTED,
    "in progress": FabricState.IN_PROGRESS,
    "completed": FabricState.COMPLETED,
}
_UNTOLD = ("", "n/a", "[n/a]")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SUCCESS, _UNKNOWN_ERROR = 0, 999  # nvmlReturn_t; this XML prints a failure as a text, without its number


def read_fabric(fields: Mapping[str, str], health: Mapping[str, str]) -> Fabric | None:
    """None where the GPU has no fabric or the state is no known word. A clique counts only with a cluster."""
    state = _STATES.get(fields.get("state", "").lower())
    if state is None:
        return None
    status = fields.get("status", "").lower()
    cluster = fields.get("clusterUuid", "").lower()
    has_cluster = bool(_UUID.fullmatch(cluster)) and cluster.strip("0-") != ""
    clique = fields.get("cliqueId", "")
    clique_id = int(clique) if re.fullmatch(r"[0-9]{1,10}", clique, re.ASCII) else None
    code = None if status in _UNTOLD else _SUCCESS if status == "success" else _UNKNOWN_ERROR
    return Fabric(
        state=state,
        status=code if state is FabricState.COMPLETED else None,
        cluster_uuid=cluster if has_cluster else None,
        clique_id=clique_id if has_cluster else None,
        health_mask=_mask(health),
    )


def _mask(health: Mapping[str, str]) -> int | None:
    """NVML's health mask, put together again from the words; None where no word tells anything."""
    mask = 0
    for aspect in ASPECTS:
        word = health.get(aspect.tag, "").lower()
        if word not in _UNTOLD:
            mask |= (GOOD if word == aspect.good else BAD) << aspect.shift
    word = health.get("incorrect_configuration", "").lower()
    if word not in _UNTOLD:
        known = word in CONFIGURATIONS
        mask |= (CONFIGURATIONS.index(word) + 1 if known else OTHER_CONFIGURATION) << CONFIGURATION_SHIFT
    return mask or None
