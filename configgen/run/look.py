"""Looks at this machine for the agent: driver, host, what was measured here before, and the audit of it all."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from configgen.audited import Audited
from configgen.run.agent import NODE_VARIABLE, Seen, in_service
from probe.audit import audit
from probe.cache import cache_folder, known
from probe.errors import NoGpuError, WireloreError
from probe.measurement import Survey
from probe.topology import Topology

_SIGNS = ("dev", "dev/infiniband", "proc/driver/nvidia/gpus", "sys/class/infiniband")

_GRANTS = ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""What was granted to the agent's own container or process; the node has what the driver counts."""


def look(source: str | None = None) -> Seen:
    """This machine, or a description that stands in for it. What goes wrong is what was seen, never an exception."""
    at_s, began_s = time.time(), time.monotonic()
    try:
        survey = _survey(source)
        when = datetime.fromtimestamp(at_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        audited, failure = Audited(survey, in_service(audit(survey)), when), None
    except WireloreError as error:
        audited, failure = None, str(error)
    except Exception as error:  # an agent that ends can tell nobody anything
        audited, failure = None, f"this is a bug in wirelore: {type(error).__name__}: {error}. Report it."
    return Seen(at_s, time.monotonic() - began_s, audited, failure)


def _survey(source: str | None) -> Survey:
    if source is not None:
        from probe.sources.registry import read_survey

        return read_survey(source)
    require_nothing_stuck()
    survey, _ = known(this_node(os.environ), elsewhere=False)
    return survey


def this_node(environ: Mapping[str, str]) -> Topology:
    """This machine without what is only the agent's own: the limits of its process and container, its pod's name."""
    from probe.sources.host import read_host, with_host
    from probe.sources.host_state import of_the_node, read_host_state, with_host_state
    from probe.sources.nvml import read_nvml

    state = of_the_node(read_host_state(environ=environ))
    plain = {name: value for name, value in environ.items() if name not in _GRANTS}
    topology = with_host_state(with_host(read_nvml(environ=plain), read_host()), state)
    (node,) = topology.nodes
    told = environ.get(NODE_VARIABLE, "")
    name = told if told and told.isprintable() else node.hostname
    return replace(topology, nodes=(replace(node, hostname=name),))


def require_nothing_stuck() -> None:
    """Collects every child that ended. Raises NoGpuError where one is left.

    A reader that no signal ends is left behind in the driver, and one more at every look would fill the machine.
    """
    with suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                raise NoGpuError(
                    "an earlier reader is stuck in the NVIDIA driver, where no signal ends it",
                    cure="Look for Xid in dmesg, reset the GPUs or reboot.",
                )


def signs(root: Path = Path("/")) -> tuple[object, ...]:
    """What a driver, device or measurement that comes or goes leaves in directories: cheap enough for every second."""
    names = [sorted(_names(root / place)) for place in _SIGNS]
    folder = cache_folder()
    with suppress(OSError):
        return (*names, folder.stat().st_mtime_ns if folder is not None else None)
    return (*names, None)


def _names(folder: Path) -> list[str]:
    """Of /dev only GPUs, for terminals come and go."""
    try:
        found = os.listdir(folder)  # noqa: PTH208 - names alone, once a second
    except OSError:
        return []
    return [name for name in found if name.startswith("nvidia")] if folder.name == "dev" else found
