"""The <fabric> of a GPU in `nvidia-smi -q -x`: registration with an NVSwitch fabric, and its health, as NVML has it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

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
_BAD, _GOOD = 1, 2  # NVML_GPU_FABRIC_HEALTH_MASK_*_TRUE and _FALSE: TRUE is the trouble
_CONFIGURATION_SHIFT, _CONFIGURATION_IS_CORRECT = 8, 1


@dataclass(frozen=True, slots=True)
class _Aspect:
    """Two bits of the health mask: the field that tells them, its word for all is well, and what is wrong if not."""

    tag: str
    shift: int
    good: str
    trouble: str


_ASPECTS = (  # shifts as in nvml.h, NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_*
    _Aspect("bandwidth", 0, "full", "degraded bandwidth"),
    _Aspect("route_recovery_in_progress", 2, "false", "route recovery in progress"),
    _Aspect("route_unhealthy", 4, "false", "unhealthy route"),
    _Aspect("access_timeout_recovery", 6, "false", "access timeout recovery"),
)
_CONFIGURATIONS = (  # NVML_GPU_FABRIC_HEALTH_MASK_INCORRECT_CONFIGURATION_*, from 1 on
    "none", "incorrect sysguid", "incorrect chassis sn", "no partition", "insufficient nvlinks", "incompatible gpu fw",
    "invalid location", "gpu state invalid",
)  # fmt: skip
_OTHER_CONFIGURATION = 15  # the field's largest value: wrong, in words that are not known here


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
    for aspect in _ASPECTS:
        word = health.get(aspect.tag, "").lower()
        if word not in _UNTOLD:
            mask |= (_GOOD if word == aspect.good else _BAD) << aspect.shift
    word = health.get("incorrect_configuration", "").lower()
    if word not in _UNTOLD:
        known = word in _CONFIGURATIONS
        mask |= (_CONFIGURATIONS.index(word) + 1 if known else _OTHER_CONFIGURATION) << _CONFIGURATION_SHIFT
    return mask or None


def health_problems(mask: int | None) -> list[str]:
    """What a health mask complains of, in words."""
    if mask is None:
        return []
    found = [a.trouble for a in _ASPECTS if mask >> a.shift & 3 == _BAD]
    configuration = mask >> _CONFIGURATION_SHIFT & 15
    if configuration > _CONFIGURATION_IS_CORRECT:
        known = configuration <= len(_CONFIGURATIONS)
        found.append(f"configuration: {_CONFIGURATIONS[configuration - 1] if known else 'incorrect'}")
    return found
