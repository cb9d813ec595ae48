"""Peer-to-peer copies written and read back, pair by pair, in a process that may hang or die: the parent ends it.

A driver's word on peer access is a promise: writes can be dropped without an error, and a copy can hang for ever (an
IOMMU that translates, ACS). So a checker of its own does the copies, `python -m probe.bench.verify PARENT A:B ...` with
CUDA's ordinals; it prints {"ready": true}, then one line per ordered pair. Where it falls silent or dies, the pair at
hand has failed, and a fresh checker goes on with the rest. Only the checker imports torch.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, BinaryIO

from probe.errors import one_line
from probe.measurement import Verification
from probe.topology import GpuRef, Notice, Topology
from probe.units import count

if TYPE_CHECKING:
    import torch

Pair = tuple[GpuRef, GpuRef]

DEADLINE_S = 10.0
"""For one ordered pair: 200 MB each way take well under a second on the slowest PCIe link."""
START_S = 60.0
"""For `import torch` and a context on every GPU, on a cold file system."""
BUDGET_S = 180.0

COPY_BYTES = (4 << 10, 1 << 20, 64 << 20)
"""By the copy engine."""
STORE_BYTES = (1 << 20, 16 << 20)
"""By stores of a kernel, as NCCL's are: another way through the hardware, and lost where the other is not."""

_LINE_BYTES = 1 << 16
_KILL_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of a pair: `passed` is None where it could not be tried. After the last answer a checker is no use."""

    passed: bool | None
    detail: str | None
    last: bool = False


def verify_p2p(
    topology: Topology, *, node: int = 0, deadline_s: float = DEADLINE_S, budget_s: float = BUDGET_S
) -> tuple[tuple[Verification, ...], tuple[Notice, ...]]:
    """Every ordered pair of this machine's usable GPUs; MIG instances have no P2P, so nothing to verify."""
    gpus = [
        (GpuRef(node, i), g) for i, g in enumerate(topology.nodes[node].gpus) if g.is_usable and not g.mig_instances
    ]
    uuids = [gpu.uuid for _, gpu in gpus if gpu.uuid is not None]
    if len(uuids) == len(gpus):  # whatever order CUDA counts in, the checker sees them in this one
        devices = {ref: position for position, (ref, _) in enumerate(gpus)}
        environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    else:
        devices = {ref: gpu.cuda_index for ref, gpu in gpus if gpu.cuda_index is not None}
        environ = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ}
    pairs = tuple(permutations(devices, 2))
    return verify_pairs(pairs, devices=devices, environ=environ, deadline_s=deadline_s, budget_s=budget_s)


def verify_pairs(
    pairs: Sequence[Pair],
    *,
    devices: Mapping[GpuRef, int],
    command: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    deadline_s: float = DEADLINE_S,
    start_s: float = START_S,
    budget_s: float = BUDGET_S,
) -> tuple[tuple[Verification, ...], tuple[Notice, ...]]:
    """What became of each ordered pair (writer, reader), and a Notice for those that could not be tried.

    Seconds: `deadline_s` for a pair, `start_s` until a checker is ready, `budget_s` for all. `devices` are CUDA's
    ordinals. A pair whose check hangs, dies or reads back other data than were written has failed; a checker that does
    not even start proves nothing, and its pairs are not in the result.
    """
    ends = time.monotonic() + budget_s
    command = command or (sys.executable, "-m", "probe.bench.verify", str(os.getpid()))
    left = deque(pairs)
    found: list[Verification] = []
    untried: list[str] = []
    obstacle: str | None = None
    while left and obstacle is None:
        with _Checker([*command, *(f"{devices[a]}:{devices[b]}" for a, b in left)], environ) as checker:
            obstacle = checker.obstacle(min(start_s, ends - time.monotonic()))
            while left and obstacle is None:
                if time.monotonic() >= ends:
                    obstacle = f"{budget_s:g} s were over"
                    break
                a, b = left.popleft()
                answer = checker.answer((devices[a], devices[b]), deadline_s)
                if answer.passed is None:
                    untried.append(answer.detail or "no reason told")
                else:
                    found.append(Verification(a, b, answer.passed, answer.detail))
                if answer.last:
                    break
    if not left and not untried:
        return tuple(found), ()
    what = f"P2P of {count(len(left) + len(untried), 'ordered pair')} was not written and read back"
    why = one_line("; ".join(dict.fromkeys((*untried, *([obstacle] if obstacle else ())))), 200)
    return tuple(found), (Notice("p2p-unverified", f"{what} ({why}): the driver's word alone stands for it."),)


class _Checker:
    """A checker's process and the lines that it prints; at the end of the `with` it is gone, or abandoned."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._command = command
        self._environ = environ
        self._buffer = b""

    def __enter__(self) -> _Checker:
        self._errors: BinaryIO = tempfile.TemporaryFile()
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**self._environ, "PYTHONSAFEPATH": "1"},  # where one stands is no place for modules
                start_new_session=True,
            )
        except OSError as error:
            self._process = None
            self._refused = f"no process can be started ({error.strerror})"
        return self

    def __exit__(self, *_: object) -> None:
        self._errors.close()
        if self._process is None:
            return
        assert self._process.stdout is not None
        self._process.stdout.close()
        _end(self._process)

    def obstacle(self, within_s: float) -> str | None:
        """Why it cannot be asked; None once it is ready."""
        told = self._line(within_s)
        if isinstance(told, dict) and told.get("ready") is True:
            return None
        return f"the checker did not start: {told if isinstance(told, str) else told.get('error', 'no reason told')}"

    def answer(self, pair: tuple[int, int], within_s: float) -> _Answer:
        told = self._line(within_s)
        if isinstance(told, str):
            return _Answer(False, told, last=True)
        passed, detail = told.get("passed"), told.get("detail")
        if told.get("pair") != list(pair) or not (passed is None or isinstance(passed, bool)):
            return _Answer(False, "the checker answered something else", last=True)
        return _Answer(passed, one_line(detail, 200) if isinstance(detail, str) else None, told.get("last") is True)

    def _line(self, within_s: float) -> dict[str, object] | str:
        """The next JSON object that it prints, whatever a library prints between; a text says why none comes."""
        if self._process is None:
            return self._refused
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN | select.POLLHUP)
        ends = time.monotonic() + within_s
        read_bytes = len(self._buffer)
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                if (told := _object(line)) is not None:
                    return told
            left_s = ends - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                return f"no answer within {max(0.0, within_s):.3g} s"
            chunk = os.read(pipe, 1 << 14)
            if not chunk:
                return self._last_words()
            self._buffer += chunk
            read_bytes += len(chunk)
            if read_bytes > _LINE_BYTES:
                return "the checker told more than an answer"

    def _last_words(self) -> str:
        assert self._process is not None
        code = _end(self._process)
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4096))
        lines = self._errors.read(4096).decode("utf-8", "replace").strip().splitlines()
        how = f"died by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        return f"the checker {how}" + (f": {one_line(lines[-1], 160)}" if lines else "")


def _object(line: bytes) -> dict[str, object] | None:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; where it outlives SIGKILL (a driver call that never returns) it is left behind."""
    try:
        return process.wait(timeout=0.05)
    except subprocess.TimeoutExpired:
        process.kill()
    try:
        return process.wait(timeout=_KILL_GRACE_S)
    except subprocess.TimeoutExpired:
        process.returncode = -signal.SIGKILL  # else its finaliser warns, and the next Popen waits for it
        return process.returncode


# ---- inside the checker ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """PARENT A:B ...: one line per ordered pair, in that order."""
    from probe.bench.channel import die_with

    die_with(int(arguments[0]))
    pairs = [(int(a), int(b)) for a, _, b in (argument.partition(":") for argument in arguments[1:])]
    try:
        import torch

        for device in sorted({device for pair in pairs for device in pair}):
            torch.zeros(1, device=torch.device("cuda", device))
    except Exception as error:
        _tell({"ready": False, "error": one_line(f"{type(error).__name__}: {error}", 200)})
        return
    _tell({"ready": True})
    for number, (a, b) in enumerate(pairs):
        answer: dict[str, object] = {"pair": [a, b], "passed": True}
        try:
            fault = next(_faults(torch.device("cuda", a), torch.device("cuda", b), seed=number + 1), None)
            if fault:
                answer |= {"passed": False, "detail": fault}
            elif not torch.cuda.can_device_access_peer(a, b):
                answer["detail"] = "no peer access: copied through the host"
        except torch.cuda.OutOfMemoryError:
            answer |= {"passed": None, "detail": "too little free memory"}
        except RuntimeError as error:  # a fault of the device, after which every call of this process fails
            answer |= {"passed": False, "detail": str(error).partition("\n")[0], "last": True}
        _tell(answer)
        if "last" in answer:
            return


def _faults(source: torch.device, target: torch.device, *, seed: int) -> Iterator[str]:
    """What was read back wrong, in words. Copies of contiguous tensors go by the copy engine; strided ones, where
    there is peer access, by a kernel of the source that stores into the target's memory (ATen, native/cuda/Copy.cu)."""
    import torch

    for by, sizes, stride in (("the copy engine", COPY_BYTES, 1), ("a kernel's stores", STORE_BYTES, 2)):
        for size in sizes:
            elements = size // 4
            # A multiplier of its own per pair, so that what an earlier pair left there never looks right.
            told = torch.arange(elements, dtype=torch.int32) * (2 * seed + 1) + size
            sent = torch.empty(elements * stride, dtype=torch.int32, device=source)[::stride]
            sent.copy_(told)
            received = torch.full((elements * stride,), -1, dtype=torch.int32, device=target)[::stride]
            torch.cuda.synchronize(target)
            received.copy_(sent)
            torch.cuda.synchronize(source)
            torch.cuda.synchronize(target)
            wrong = int((received.cpu() != told).sum())
            if wrong:
                yield f"{wrong:,} of {elements:,} words read back wrong after {size:,} bytes by {by}"


def _tell(answer: dict[str, object]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
