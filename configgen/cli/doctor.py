"""`wirelore doctor`: what is missing on this machine, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from probe.errors import WireloreError


@click.command("doctor")
def doctor_command() -> None:
    """Check the driver, the bindings, torch and the network tools, and name the cure of each lack."""
    from configgen.report.terminal import print_table

    print_table(("", "what", "found"), list(_checks()))


def _checks() -> Iterator[tuple[str, str, str]]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield _line(sys.version_info >= (3, 10), "python", version)
    yield _driver()
    yield _bindings()
    devices = sorted(p.name for p in Path("/dev").glob("nvidia[0-9]*")) if Path("/dev").is_dir() else []
    yield _line(
        bool(devices), "/dev/nvidia*", " ".join(devices) or "none: no NVIDIA GPU, or the container was given none"
    )
    torch = importlib.util.find_spec("torch") is not None
    yield _line(
        torch, "torch", "installed" if torch else "absent: needed to measure only; pip install 'wirelore[measure]'"
    )
    sysfs = Path("/sys/bus/pci/devices").is_dir()
    yield _line(sysfs, "/sys PCI tree", "readable" if sysfs else "absent: NICs and NUMA stay unknown")
    for tool in ("nvidia-smi", "ip"):
        path = shutil.which(tool)
        yield _line(path is not None, tool, path or "not on PATH")
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    yield _line(
        cache.is_dir(),
        "Hugging Face cache",
        str(cache) if cache.is_dir() else f"{cache} is absent: models come from the built-in table or the hub",
    )


def _driver() -> tuple[str, str, str]:
    from configgen.report.lines import machine_line
    from probe.sources.registry import read_this_machine

    try:
        return _line(True, "GPUs", machine_line(read_this_machine()))
    except WireloreError as error:
        return _line(False, "GPUs", str(error))


def _bindings() -> tuple[str, str, str]:
    spec = importlib.util.find_spec("pynvml")
    if spec is None or spec.origin is None:
        return _line(False, "NVML bindings", "absent: pip install nvidia-ml-py")
    if spec.origin.endswith("__init__.py"):
        return _line(
            False,
            "NVML bindings",
            "the old package pynvml shadows them: pip uninstall pynvml; pip install nvidia-ml-py",
        )
    return _line(True, "NVML bindings", spec.origin)


def _line(good: bool, what: str, found: str) -> tuple[str, str, str]:
    return ("ok" if good else "--", what, found)
