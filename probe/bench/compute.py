"""What one GPU does alone: memory bandwidth, matrix rate at a model's shapes, and copies to and from the host.

Conventions. 'hbm_read' sums a buffer: its bytes over the time. 'hbm_copy' copies it: bytes read *and* written, as
STREAM counts (McCalpin, cs.virginia.edu/stream). 'h2d' and 'd2h' copy pinned memory: bytes in that direction. All in
1e9 bytes/s. 'gemm' of (m, n, k) multiplies m x k by k x n: 2 m n k operations over the time, in 1e12/s.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from probe.bench.device import Device, Operation
from probe.errors import one_line
from probe.measurement import Rate
from probe.statistics import median, median_interval
from probe.topology import GpuRef, Notice

Shape = tuple[int, int, int]
Reason = tuple[str, str]
"""A Notice's code and message."""

ASSUMED_SHAPES: tuple[Shape, ...] = ((4096, 8192, 8192), (32, 8192, 8192))
"""A prefill's and a decode's square GEMM at the hidden size of the 70B models, where no model is told."""

LARGEST_CACHE_BYTES = 256 << 20
"""AMD Infinity Cache of the MI300X (CDNA 3 white paper); NVIDIA's largest L2 has 128 MB (RTX Blackwell white paper)."""

BUFFER_BYTES = (2 << 30, 1 << 30, 2 * LARGEST_CACHE_BYTES)
"""For the GPU's memory, the first that fits: all larger than any cache, or the cache would be what is measured."""
HOST_BUFFER_BYTES = (256 << 20, 64 << 20)
"""To and from the host; nvbandwidth copies 512 MiB, above 64 MiB the rate no longer depends on it."""
CPU_BUFFER_BYTES = (64 << 20, 16 << 20)
"""A rank of a lab: memory of the host, in part its cache."""

_SIDE = 1024  # of a lab's GEMM: a thread computes it in some 0.1 s, and many ranks share the host's memory
_MOST_WEIGHTS = 64
_FP8_SINCE = (8, 9)  # compute capability: Ada, Hopper and newer (CUDA C++ Programming Guide, tensor core types)
_BF16_SINCE = (8, 0)
_FP8_MULTIPLE = 16  # of k and n: cuBLASLt's rule for fp8 (cuBLAS, "Using the cuBLASLt API")

_CONFIDENT = 0.01
_LEAST_TIMES, _MOST_TIMES = 5, 200
_SHORT_S, _LONG_ENOUGH_S = 1e-4, 5e-4
"""An event's own cost is some us: what takes less than the first is timed in graphs that take the second."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """One rate to take: `prepare(size)` gives an operation, and the bytes or operations that one run of it counts."""

    kind: str
    prepare: Callable[[int], tuple[Operation, float]]
    sizes: Sequence[int]
    dtype: str | None = None
    shape: Shape | None = None

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.kind, self.dtype, _told(self.shape) if self.shape else "")))


def rates(
    device: Device, gpu: GpuRef, *, gemm_shapes: Sequence[Shape], seconds: float
) -> tuple[tuple[Rate, ...], tuple[Notice, ...]]:
    """The rates of this rank's GPU, and why others are missing. `gemm_shapes` are (m, n, k); () takes ASSUMED_SHAPES.

    A GPU is measured in bf16 (fp16 before Ampere) and fp8 (from Ada on); a CPU of a lab by the threads that torch has
    here, in float32 and with sides of 1,024 at most. Each rate is the median of runs that go on until it is known to
    1 % (at 95 % confidence) or its share of `seconds` is over. Ranks that measure at the same time share the host.
    """
    shapes = tuple(dict.fromkeys(gemm_shapes or ASSUMED_SHAPES))
    readings, reasons = _of_cpu(shapes) if device.place.type == "cpu" else _of_gpu(device, shapes)
    notices = [Notice(code, reason, gpu.node) for code, reason in reasons]
    if not gemm_shapes:
        what = f"no model was told, so GEMM shapes are assumed: {', '.join(map(_told, shapes))} (m x n x k)"
        notices.append(Notice("gemm-shapes-assumed", f"{what}; a model's own may be slower. Give --model.", gpu.node))
    found = []
    ends = time.monotonic() + seconds
    for number, reading in enumerate(readings):
        share_s = max(0.0, ends - time.monotonic()) / (len(readings) - number)
        value = _taken(device, reading, share_s)
        if isinstance(value, float):
            unit = "TFLOP/s" if reading.shape else "GB/s"
            found.append(Rate(reading.kind, gpu, value, unit, reading.dtype, reading.shape))
        else:
            what = f"{reading.name} of GPU {gpu.gpu} was not measured: {value}"
            notices.append(Notice("rate-missing", f"{what}; the catalog's figure stands for it.", gpu.node))
    return tuple(found), tuple(notices)


def _of_cpu(shapes: Sequence[Shape]) -> tuple[list[_Reading], list[Reason]]:
    place = torch.device("cpu")
    clipped = tuple(dict.fromkeys((min(m, _SIDE), min(n, _SIDE), min(k, _SIDE)) for m, n, k in shapes))
    reasons: list[Reason] = []
    if clipped != tuple(shapes):
        stood_in = ", ".join(map(_told, clipped))
        reasons.append(("gemm-substituted", f"a lab's GEMM has sides of {_SIDE:,} at most: {stood_in} stood in"))
    return [*_memory(place, CPU_BUFFER_BYTES), *(_gemm(place, shape, torch.float32) for shape in clipped)], reasons


def _of_gpu(device: Device, shapes: Sequence[Shape]) -> tuple[list[_Reading], list[Reason]]:
    """Memory first, then GEMM by GEMM: they also warm the GPU up to its clocks under load."""
    place = device.place
    capability = torch.cuda.get_device_capability(place)
    is_amd = torch.version.hip is not None
    dtype = torch.bfloat16 if is_amd or capability >= _BF16_SINCE else torch.float16
    readings = [*_memory(place, BUFFER_BYTES), *_host_copies(place), *(_gemm(place, s, dtype) for s in shapes)]
    reasons: list[Reason] = []
    if dtype is torch.float16:
        reasons.append(("gemm-substituted", "bf16 is emulated before Ampere: GEMM was measured in fp16"))
    if is_amd:
        reasons.append(("rate-missing", "fp8 is not measured on AMD: its formats differ by generation"))
    elif capability < _FP8_SINCE:
        version = ".".join(map(str, capability))
        what = f"the GPU has no fp8 matrix unit (compute capability {version}, fp8 comes with 8.9)"
        reasons.append(("rate-missing", what))
    else:
        fit = [s for s in shapes if s[1] % _FP8_MULTIPLE == 0 == s[2] % _FP8_MULTIPLE]
        readings += [_gemm_fp8(place, shape) for shape in fit]
        odd = [shape for shape in shapes if shape not in fit]
        if odd:
            what = f"fp8 GEMM needs n and k in multiples of {_FP8_MULTIPLE}: not so {', '.join(map(_told, odd))}"
            reasons.append(("rate-missing", what))
    return readings, reasons


def _memory(place: torch.device, sizes: Sequence[int]) -> Iterator[_Reading]:
    def read(size: int) -> tuple[Operation, float]:
        buffer = torch.ones(size // 4, dtype=torch.float32, device=place)
        return buffer.sum, size

    def copy(size: int) -> tuple[Operation, float]:
        source = torch.ones(size // 4, dtype=torch.float32, device=place)
        target = torch.empty_like(source)
        return lambda: target.copy_(source), 2 * size

    yield _Reading("hbm_read", read, sizes)
    yield _Reading("hbm_copy", copy, sizes)


def _host_copies(place: torch.device) -> Iterator[_Reading]:
    def buffers(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        host = torch.ones(size, dtype=torch.uint8, pin_memory=True)
        return host, torch.ones(size, dtype=torch.uint8, device=place)

    def to_device(size: int) -> tuple[Operation, float]:
        host, own = buffers(size)
        return lambda: own.copy_(host, non_blocking=True), size

    def to_host(size: int) -> tuple[Operation, float]:
        host, own = buffers(size)
        return lambda: host.copy_(own, non_blocking=True), size

    yield _Reading("h2d", to_device, HOST_BUFFER_BYTES)
    yield _Reading("d2h", to_host, HOST_BUFFER_BYTES)


def _gemm(place: torch.device, shape: Shape, dtype: torch.dtype) -> _Reading:
    """x W^T, as a linear layer does it. One run goes through so many weights that no cache keeps the first: a model's
    layers come cold too. Random numbers, since a GPU draws less power on zeros and clocks higher."""
    m, n, k = shape

    def prepare(weights: int) -> tuple[Operation, float]:
        x = torch.randn(m, k, dtype=dtype, device=place)
        layers = [torch.randn(n, k, dtype=dtype, device=place).t() for _ in range(weights)]
        y = torch.empty(m, n, dtype=dtype, device=place)

        def run() -> None:
            for layer in layers:
                torch.mm(x, layer, out=y)

        return run, 2.0 * m * n * k * weights

    return _Reading("gemm", prepare, _weights(place, n * k * dtype.itemsize), str(dtype).removeprefix("torch."), shape)


def _gemm_fp8(place: torch.device, shape: Shape) -> _Reading:
    m, n, k = shape
    dtype = torch.float8_e4m3fn

    def prepare(weights: int) -> tuple[Operation, float]:
        x = torch.randn(m, k, device=place).to(dtype)
        layers = [torch.randn(n, k, device=place).to(dtype).t() for _ in range(weights)]
        one = torch.ones((), device=place)

        def run() -> None:
            for layer in layers:
                torch._scaled_mm(x, layer, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

        return run, 2.0 * m * n * k * weights

    return _Reading("gemm", prepare, _weights(place, n * k), "float8_e4m3fn", shape)


def _weights(place: torch.device, weight_bytes: int) -> tuple[int, ...]:
    if place.type == "cpu":
        return (1,)
    enough = min(_MOST_WEIGHTS, math.ceil(2 * LARGEST_CACHE_BYTES / weight_bytes))
    return (enough, 1) if enough > 1 else (1,)


def _taken(device: Device, reading: _Reading, share_s: float) -> float | str:
    """The rate in 1e9 bytes/s or 1e12 operations/s, or why there is none."""
    obstacle = "no size was tried"
    for size in reading.sizes:
        try:
            operation, amount = reading.prepare(size)
            value = amount / _median_s(device, operation, share_s)
        except (RuntimeError, MemoryError, AssertionError, NotImplementedError, ValueError) as error:
            obstacle = one_line(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", 160)
            if not _is_out_of_memory(error):
                return obstacle
        else:
            return value / (1e12 if reading.shape else 1e9)
        finally:
            operation = _nothing  # what it holds is freed before the next is prepared
            if device.place.type == "cuda":
                with contextlib.suppress(RuntimeError):  # after a fault of the device everything raises
                    torch.cuda.empty_cache()
    return f"too little free memory ({obstacle})"


def _median_s(device: Device, operation: Operation, share_s: float) -> float:
    """Of one run, in seconds: of at least 5 and at most 200 timings, within the share where that allows it."""
    ends = time.monotonic() + share_s
    device.times_s(operation, 2)  # libraries load, choose kernels and take their workspace
    first = min(device.times_s(operation, 2))
    runs = 1
    if first < _SHORT_S:
        runs = math.ceil(_LONG_ENOUGH_S / max(first, 1e-6))
        operation, runs = (device.captured(operation, runs), runs) if device.has_graphs else (operation, 1)
    times: list[float] = []
    while len(times) < _MOST_TIMES:
        times += device.times_s(operation, _LEAST_TIMES)
        interval = median_interval([times])
        if time.monotonic() >= ends or (interval and interval[1] - interval[0] <= 2 * _CONFIDENT * median(times)):
            break
    return median(times) / runs


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        or "allocate memory" in text
        or "out of memory" in text
    )


def _nothing() -> None:
    pass


def _told(shape: Shape) -> str:
    return "x".join(map(str, shape))
