"""The command as users meet it: a process of its own with a deadline, its two streams, time and peak memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(sys.executable).with_name("wirelore")
WIRELORE: tuple[str, ...] = (
    (str(_SCRIPT),) if _SCRIPT.is_file() else (sys.executable, "-c", "from configgen.cli import main; main()")
)

# Between pytest and the command, since Linux counts a parent's memory at the time of exec as its child's.
_MEASURE = """
import os, sys
pid = os.fork()
if not pid:
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
os._exit(os.waitstatus_to_exitcode(status) & 255)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended. `peak_mib` is None unless it was asked for."""

    code: int
    out: str
    err: str
    seconds: float
    peak_mib: float | None = None

    def data(self) -> str:
        """Standard output of a command that must have gone well."""
        assert self.code == 0, self.err
        return self.out


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would change the command: no driver, no cached model, no network."""
    changes = (
        "WIRELORE_",
        "HF_",
        "CUDA_",
        "NVIDIA_",
        "VLLM_",
        "FAKE_NVML",
        "COLUMNS",
        "NO_COLOR",
        "FORCE_COLOR",
        "XDG_",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(changes)}
    return {**kept, "HF_HOME": "/nonexistent", "HF_HUB_OFFLINE": "1", "LD_LIBRARY_PATH": str(_no_driver()), **more}


def wirelore(
    *arguments: str | os.PathLike[str],
    stdin: bytes = b"",
    cwd: Path | None = None,
    timeout_s: float = 20.0,
    environ: dict[str, str] | None = None,
    measure: bool = False,
    before: Sequence[str] = (),
) -> Ended:
    """Runs it to its end. `before` are words in front of the command, for a launcher."""
    command = [*before, *WIRELORE, *map(os.fspath, arguments)]
    with tempfile.NamedTemporaryFile("r") as peak:
        if measure:
            command = [sys.executable, "-I", "-S", "-c", _MEASURE, peak.name, *command]
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment(**(environ or {})),
            start_new_session=True,
        )
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        seconds = time.perf_counter() - start
        peak_mib = int(peak.read()) / 1024 if measure else None
    return Ended(process.returncode, out.decode(), err.decode(), seconds, peak_mib)


def matrix(*rows: str) -> str:
    """`nvidia-smi topo -m` of GPUs alone, from rows like 'X NV4 SYS'."""
    lines = ["\t" + "\t".join(f"GPU{i}" for i in range(len(rows)))]
    lines += [
        "\t".join([f"GPU{i}", *(f" {cell} " if cell == "X" else cell for cell in row.split())])
        for i, row in enumerate(rows)
    ]
    return "\n".join(lines) + "\n\nLegend:\n\n  X    = Self\n"


def _no_driver() -> Path:
    """A folder whose libnvidia-ml.so.1 cannot be loaded: found first, wherever a real one may lie."""
    folder = Path(tempfile.gettempdir()) / f"wirelore-tests-no-driver-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    if not library.is_file():
        library.write_text("no ELF at all")
    return folder
