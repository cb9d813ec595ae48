"""The health mask of a GPU's NVSwitch registration, in words; bits as nvml.h names them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

BAD, GOOD = 1, 2
"""NVML_GPU_FABRIC_HEALTH_MASK_*_TRUE and _FALSE: TRUE is the trouble; 0 is 'not supported'."""

CONFIGURATION_SHIFT = 8
CONFIGURATIONS = (
    "none", "incorrect sysguid", "incorrect chassis sn", "no partition", "insufficient nvlinks", "incompatible gpu fw",
    "invalid location", "gpu state invalid",
)  # fmt: skip
"""NVML_GPU_FABRIC_HEALTH_MASK_INCORRECT_CONFIGURATION_*, from 1 on."""
OTHER_CONFIGURATION = 15
"""The field's largest value: wrong, in words that are not known here."""

_CONFIGURATION_IS_CORRECT = 1


@dataclass(frozen=True, slots=True)
class Aspect:
    """Two bits of the mask: the tag and the word for 'all is well' in `nvidia-smi -q -x`, and what is wrong if not."""

    tag: str
    shift: int
    good: str
    trouble: str


ASPECTS = (  # shifts as in nvml.h, NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_*
    Aspect("bandwidth", 0, "full", "degraded bandwidth"),
    Aspect("route_recovery_in_progress", 2, "false", "route recovery in progress"),
    Aspect("route_unhealthy", 4, "false", "unhealthy route"),
    Aspect("access_timeout_recovery", 6, "false", "access timeout recovery"),
)


def health_problems(mask: int | None) -> list[str]:
    """What a health mask complains of, in words. 0xAA and 0x1AA complain of nothing."""
    if mask is None:
        return []
    found = [a.trouble for a in ASPECTS if mask >> a.shift & 3 == BAD]
    configuration = mask >> CONFIGURATION_SHIFT & 15
    if configuration > _CONFIGURATION_IS_CORRECT:
        known = configuration <= len(CONFIGURATIONS)
        found.append(f"configuration: {CONFIGURATIONS[configuration - 1] if known else 'incorrect'}")
    return found
