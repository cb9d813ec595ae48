"""A fake libnvidia-ml.so.1: built from C by the machine's compiler, told by a description what machine to be."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

FakeMachine = Callable[..., dict[str, str]]
"""A description, and more variables: the environment in which it is this machine."""

SOURCE = Path(__file__).with_name("fake_nvml.c")


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build_fake_nvml(directory: Path) -> Path:
    """Compiles the library into `directory` and returns that folder: put it in LD_LIBRARY_PATH, a description's path
    in FAKE_NVML. Raises FileNotFoundError where the machine has no C compiler."""
    cc = compiler()
    if cc is None:
        raise FileNotFoundError("no C compiler (cc, gcc or clang) to build the fake NVML with")
    soname = "libnvidia-ml.so.1"
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared", f"-Wl,-soname,{soname}"]
    subprocess.run([cc, *flags, "-o", str(directory / soname), str(SOURCE)], check=True)
    return directory


def fake_environment(library: Path, description: Path, **more: str) -> dict[str, str]:
    """What a process needs to take this description for its machine."""
    return {"LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(description), **more}
