"""The GPUs' error counters at one moment, before or after a measurement."""

from __future__ import annotations

import os
from collections.abc import Mapping

from probe.errors import NoGpuError
from probe.measurement import HealthSnapshot
from probe.topology import Notice


def health(
    taken_at: str, *, deadline_s: float = 10.0, environ: Mapping[str, str] = os.environ
) -> tuple[tuple[HealthSnapshot, ...], tuple[Notice, ...]]:
    """A snapshot per GPU of this machine, and a Notice where there are none. `taken_at` is ISO 8601, in UTC.

    The driver is read in a child process, which has `deadline_s` seconds; what it told by then counts.
    """
    from probe.sources.nvml import read_nvml_facts, require_gpus
    from probe.sources.nvml_health import health_snapshots

    try:
        facts = read_nvml_facts(deadline_s=deadline_s, environ=environ)
        require_gpus(facts)
    except NoGpuError as error:
        return (), (Notice("health-unknown", f"no error counters can be read: {error.problem}."),)
    snapshots = health_snapshots(facts, taken_at=taken_at)
    if not snapshots:
        return (), (Notice("health-unknown", "the driver tells no error counters of these GPUs."),)
    return snapshots, ()
