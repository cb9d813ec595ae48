"""Looks at this machine for the agent: driver, host, what was measured here before, and the audit of it all."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from configgen.audited import Audited
from configgen.run.agent import Seen
from probe.audit import audit
from probe.cache import cache_folder, known
from probe.errors import NoGpuError, WireloreError
from probe.measurement import Survey

_SIGNS = ("dev", "dev/infiniband", "proc/driver/nvidia/gpus", "sys/class/infiniband")


def look(source: str | None = None) -> Seen:
    """This machine, or a description that stands in for it. What goes wrong is what was seen, never an exception."""
    at_s, began_s = time.time(), time.monotonic()
    try:
        survey = _survey(source)
        when = datetime.fromtimestamp(at_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        audited, failure = Audited(survey, audit(survey), when), None
    except WireloreError as error:
        audited, failure = None, str(error)
    except Exception as error:  # an agent that ends can tell nobody anything
        audited, failure = None, f"this is a bug in wirelore: {type(error).__name__}: {error}. Report it."
    return Seen(at_s, time.monotonic() - began_s, audited, failure)


def _survey(source: str | None) -> Survey:
    from probe.sources.registry import read_survey, read_this_machine

    if source is not None:
        return read_survey(source)
    require_nothing_stuck()
    survey, _ = known(read_this_machine(), elsewhere=False)
    return survey


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
