"""This machine through NVML: runs the reader in a child process with a deadline, then turns its facts into a Topology.

NVML can hang for ever, even in a state that no signal ends, so nothing of it runs in this process: at the deadline the
child is killed, and abandoned where that does not help. What it had told by then still counts.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path as FilePath

from probe.errors import NoGpuError, UsageError
from probe.sources.nvml_facts import Facts
from probe.sources.nvml_reader import MAX_GPUS
from probe.sources.nvml_topology import topology_from_facts
from probe.topology import Topology
from probe.units import count

DEADLINE_S = 20.0
DEADLINE_VARIABLE = "WIRELORE_NVML_TIMEOUT_S"
_READER = FilePath(__file__).with_name("nvml_reader.py")
_OUTPUT_LIMIT_BYTES = 32 << 20
_KILL_GRACE_S = 0.5

_LATE = "late"

_ELSEWHERE = "Without a GPU here, plan for another machine: --from FILE or --from machine:NAME."
_INIT_FAILURES = {  # by nvmlReturn_t: what is wrong, what to do
    4: (
        "this process may not talk to the NVIDIA driver (NO_PERMISSION 4)",
        "Check the permissions of /dev/nvidiactl and the container's device cgroup.",
    ),
    9: (
        "the NVIDIA driver is not loaded (DRIVER_NOT_LOADED 9)",
        "Load it with `modprobe nvidia`; dmesg says why it was not.",
    ),
    12: (
        "libnvidia-ml.so.1 is absent or cannot be loaded (LIBRARY_NOT_FOUND 12)",
        "Install the NVIDIA driver; a container needs runtimeClassName: nvidia or --gpus all, and "
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility.",
    ),
    13: (
        "libnvidia-ml.so.1 is too old or not NVIDIA's (FUNCTION_NOT_FOUND 13)",
        "Install a current NVIDIA driver.",
    ),
    18: (
        "the NVML library and the loaded kernel driver differ in version (LIB_RM_VERSION_MISMATCH 18)",
        "The driver was upgraded while it ran: reboot or reload the nvidia kernel modules, then recreate containers.",
    ),
    28: ("the NVIDIA driver finds no GPU (GPU_NOT_FOUND 28)", "Check `lspci -d 10de:` and dmesg."),
    999: (
        "the NVIDIA driver answers UNKNOWN (999): a container that says so has lost its GPU devices",
        "Recreate the container; on the host itself look for Xid in dmesg and reboot.",
    ),
}


def read_nvml(*, deadline_s: float | None = None, environ: Mapping[str, str] = os.environ) -> Topology:
    """This machine's GPUs and paths. The deadline is that of `read_nvml_facts`.

    Raises NoGpuError where there is no driver, no GPU, or no answer in time; UsageError on a bad deadline.
    """
    facts = read_nvml_facts(deadline_s=deadline_s, environ=environ)
    require_gpus(facts)
    topology = topology_from_facts(facts, environ)
    states = topology.nodes[0].gpus
    if not any(facts.reading("read", i).value for i in range(len(states))):
        raise NoGpuError(
            f"{count(len(states), 'GPU')} and none answers; GPU 0: {states[0].status_reason}",
            cure="Look for Xid in dmesg, check the permissions of /dev/nvidia*, reset the GPUs or reboot.",
        )
    return topology


def read_nvml_facts(*, deadline_s: float | None = None, environ: Mapping[str, str] = os.environ) -> Facts:
    """The driver's raw facts, complete or with the reason why not. Seconds; without a deadline here the variable
    WIRELORE_NVML_TIMEOUT_S counts, then 20. LD_LIBRARY_PATH and all else of `environ` reaches the library."""
    output, broken = _run_reader(_deadline(environ) if deadline_s is None else deadline_s, environ)
    return Facts.from_lines(output.split(b"\n"), broken)


def require_gpus(facts: Facts) -> None:
    """Raises NoGpuError, each cause with its own cure, unless the driver answered and counts a GPU."""
    bindings = facts.reading("bindings")
    if bindings.error is not None:
        raise NoGpuError(
            f"the NVML bindings cannot be imported ({bindings.name})",
            cure="Install them: pip install 'nvidia-ml-py>=13.580'",
        )
    if isinstance(bindings.value, str) and bindings.value.endswith("__init__.py"):
        raise NoGpuError(
            f"an old package hides the NVML bindings: {bindings.value}",
            cure="Remove it: pip uninstall pynvml && pip install --force-reinstall 'nvidia-ml-py>=13.580'",
        )
    failure = facts.reading("init")
    if failure.error is not None:
        problem, cure = _INIT_FAILURES.get(
            failure.error,
            (f"NVML does not start: {failure.name} ({failure.error})", "See whether `nvidia-smi` works, and dmesg."),
        )
        raise NoGpuError(problem, cure=f"{cure} {_ELSEWHERE}")
    total = facts.number("count")
    if total is None and facts.broken:
        raise NoGpuError(
            f"the NVIDIA driver does not answer: {facts.broken}, last fact {facts.last!r}",
            cure=f"See whether `nvidia-smi` hangs too and look for Xid in dmesg; {DEADLINE_VARIABLE} waits longer.",
        )
    if not total:
        raise NoGpuError("the NVIDIA driver works and counts no GPU", cure=f"Check `lspci -d 10de:`. {_ELSEWHERE}")
    if total > MAX_GPUS:
        raise NoGpuError(f"the NVIDIA driver counts {total} GPUs, more than {MAX_GPUS}", cure="Check `nvidia-smi -L`.")


def _deadline(environ: Mapping[str, str]) -> float:
    text = environ.get(DEADLINE_VARIABLE, str(DEADLINE_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise UsageError(f"{DEADLINE_VARIABLE}={text!r} is no number of seconds", cure="Give 1 to 3600.")
    return seconds


def _run_reader(deadline_s: float, environ: Mapping[str, str]) -> tuple[bytes, str | None]:
    """What the reader printed, and why it did not end by itself, if so."""
    # Isolated and without site: no sitecustomize, .pth file or variable of the user's changes what the reader is, and
    # it finds its modules where this process does.
    command = [sys.executable, "-I", "-S", str(_READER), str(deadline_s), *(p for p in sys.path if p)]
    try:
        reader = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
        )
    except OSError as error:
        raise NoGpuError(
            f"no process can be started to read the driver: {error.strerror}", cure="Check memory and process limits."
        ) from error
    assert reader.stdout is not None
    with reader.stdout as pipe:
        try:
            output, broken = _drain(pipe.fileno(), time.monotonic() + deadline_s)
            if broken == _LATE:
                broken = f"no answer within {deadline_s:g} s"
        finally:
            code = _end(reader)
    if broken is None and code < 0:
        broken = f"the reader died by {signal.Signals(-code).name}"
    return output, broken


def _drain(pipe: int, ends: float) -> tuple[bytes, str | None]:
    poll = select.poll()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    chunks: list[bytes] = []
    size = 0
    while (left_s := ends - time.monotonic()) > 0:
        if not poll.poll(left_s * 1000):
            continue
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return b"".join(chunks), None
        chunks.append(chunk)
        size += len(chunk)
        if size > _OUTPUT_LIMIT_BYTES:
            return b"".join(chunks), "it told more than any machine has"
    return b"".join(chunks), _LATE


def _end(reader: subprocess.Popen[bytes]) -> int:
    """Its exit code; where it outlives SIGKILL (a driver call that never returns) it is left behind."""
    try:
        return reader.wait(timeout=0.05)
    except subprocess.TimeoutExpired:
        reader.kill()
    try:
        return reader.wait(timeout=_KILL_GRACE_S)
    except subprocess.TimeoutExpired:
        reader.returncode = -signal.SIGKILL  # else its finaliser warns, and the next Popen waits for it
        return reader.returncode
