"""Compute and memory rates: what a lab's CPU tells, which readings a GPU gets, and what failing ones say."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: compute rates are NOT tested")

from probe.bench import compute  # noqa: E402
from probe.bench.compute import rates  # noqa: E402
from probe.bench.device import CpuDevice  # noqa: E402
from probe.measurement import Rate  # noqa: E402
from probe.topology import GpuRef, Notice  # noqa: E402

GPU = GpuRef(1, 3)
Measure = Callable[..., tuple[tuple[Rate, ...], tuple[Notice, ...]]]


class SteadyDevice(CpuDevice):
    """A clock that shows the same for every run, after running it, so that rates follow from amounts alone."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.seconds = seconds
        self.runs = 0

    def times_s(
        self, operation: Callable[[], object], count: int, *, before: Callable[[], object] | None = None
    ) -> list[float]:
        operation()
        self.runs += count
        return [self.seconds] * count


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "CPU_BUFFER_BYTES", (1 << 20, 1 << 16))
    monkeypatch.setattr(compute, "BUFFER_BYTES", (1 << 20, 1 << 16))
    monkeypatch.setattr(compute, "HOST_BUFFER_BYTES", (1 << 16,))


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """The readings that a GPU of this compute capability gets, taken on the CPU where it can."""

    def measure(
        capability: tuple[int, int], shapes: Sequence[tuple[int, int, int]] = ((16, 32, 48),), hip: str | None = None
    ) -> tuple[tuple[Rate, ...], tuple[Notice, ...]]:
        device = SteadyDevice()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(compute, "_of_cpu", lambda shapes: compute._of_gpu(device, shapes))
        return rates(device, GPU, gemm_shapes=shapes, seconds=0.1)

    return measure


def by_kind(found: Sequence[Rate]) -> dict[tuple[str, str | None], float]:
    return {(r.kind, r.dtype): r.value for r in found}


def test_a_lab_rank_tells_its_memory_and_its_gemm() -> None:
    start = time.monotonic()
    found, notices = rates(CpuDevice(), GPU, gemm_shapes=((64, 128, 256),), seconds=0.3)
    assert time.monotonic() - start < 5
    assert [(r.kind, r.unit, r.dtype, r.shape, r.gpu) for r in found] == [
        ("hbm_read", "GB/s", None, None, GPU),
        ("hbm_copy", "GB/s", None, None, GPU),
        ("gemm", "TFLOP/s", "float32", (64, 128, 256), GPU),
    ]
    assert all(0.001 < r.value < 100_000 for r in found[:2]), f"GB/s of some memory or cache: {found}"
    assert 0.000001 < found[2].value < 50
    assert notices == ()


def test_amounts_are_those_of_the_conventions() -> None:
    found, _ = rates(SteadyDevice(seconds=0.001), GPU, gemm_shapes=((64, 128, 256),), seconds=0.1)
    read, copy, gemm = (r.value for r in found)
    assert read == pytest.approx((1 << 20) / 0.001 / 1e9)
    assert copy == pytest.approx(2 * (1 << 20) / 0.001 / 1e9)
    assert gemm == pytest.approx(2 * 64 * 128 * 256 / 0.001 / 1e12)


def test_a_lab_clips_what_one_thread_cannot_do_and_says_so() -> None:
    found, notices = rates(SteadyDevice(), GPU, gemm_shapes=((4096, 28672, 8192), (8192, 8192, 8192)), seconds=0.1)
    assert [r.shape for r in found if r.shape] == [(1024, 1024, 1024)]
    assert [n.code for n in notices] == ["gemm-substituted"] and "1024x1024x1024 stood in" in notices[0].message


def test_without_a_model_the_shapes_are_named() -> None:
    _, notices = rates(SteadyDevice(), GPU, gemm_shapes=(), seconds=0.1)
    (assumed,) = [n for n in notices if n.code == "gemm-shapes-assumed"]
    assert "4096x8192x8192" in assumed.message and "--model" in assumed.message
    assert assumed.node == 1


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0])
def test_the_time_is_kept(seconds: float) -> None:
    start = time.monotonic()
    found, _ = rates(CpuDevice(), GPU, gemm_shapes=((64, 64, 64),), seconds=seconds)
    assert len(found) == 3, "no time left is still a first look"
    assert time.monotonic() - start < seconds + 1.5


def test_steady_times_need_few_runs_and_noisy_ones_more() -> None:
    steady = SteadyDevice()
    compute._median_s(steady, lambda: None, 1.0)
    assert steady.runs < 12

    class Noisy(SteadyDevice):
        def times_s(
            self, operation: Callable[[], object], count: int, *, before: Callable[[], object] | None = None
        ) -> list[float]:
            self.runs += count
            return [0.001 * (1 + (self.runs + i) % 7) for i in range(count)]

    noisy = Noisy()
    compute._median_s(noisy, lambda: None, 0.2)
    assert noisy.runs > 100


def test_short_runs_are_timed_in_graphs_where_there_are_any() -> None:
    class Graphs(SteadyDevice):
        def captured(self, operation: Callable[[], object], times: int) -> Callable[[], object]:
            self.seconds = 0.00001 * times + 0.000005
            return operation

    assert compute._median_s(Graphs(0.00001), lambda: None, 0.1) == pytest.approx(0.00001, rel=0.02)


# ---- what a GPU gets ------------------------------------------------------------------------------------------------


def test_hopper_gets_bf16_and_fp8(as_gpu: Measure) -> None:
    found, _ = as_gpu((9, 0))
    assert {("hbm_read", None), ("hbm_copy", None), ("gemm", "bfloat16")} <= set(by_kind(found))
    assert found[-1].shape == (16, 32, 48)


def test_what_fails_is_a_notice_and_the_others_stand(as_gpu: Measure) -> None:
    """No accelerator is here to pin memory for."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: pinning works")
    found, notices = as_gpu((9, 0))
    missing = {n.message.split(" of GPU ")[0] for n in notices if n.code == "rate-missing"}
    assert {"h2d", "d2h"} <= missing
    assert ("gemm", "bfloat16") in by_kind(found)
    assert all(n.node == 1 and "\n" not in n.message for n in notices)


@pytest.mark.parametrize(
    ("capability", "dtype", "said"),
    [((8, 0), "bfloat16", "compute capability 8.0"), ((7, 5), "float16", "emulated before Ampere")],
)
def test_older_gpus_say_why_there_is_no_fp8(
    as_gpu: Measure, capability: tuple[int, int], dtype: str, said: str
) -> None:
    found, notices = as_gpu(capability)
    assert {r.dtype for r in found if r.kind == "gemm"} == {dtype}
    assert any(said in n.message for n in notices)
    assert any("fp8" in n.message for n in notices)


def test_amd_is_measured_in_bf16(as_gpu: Measure) -> None:
    found, notices = as_gpu((9, 4), hip="6.4")
    assert {r.dtype for r in found if r.kind == "gemm"} == {"bfloat16"}
    assert any("AMD" in n.message for n in notices)


def test_shapes_that_fp8_cannot_take_are_named(as_gpu: Measure) -> None:
    _, notices = as_gpu((9, 0), shapes=((16, 33, 48),))
    assert any("16x33x48" in n.message and "multiples of 16" in n.message for n in notices)


@pytest.mark.parametrize("error", [MemoryError("x"), RuntimeError("[enforce fail] can't allocate memory: 9 bytes")])
def test_too_little_memory_takes_the_next_smaller_buffer(error: Exception) -> None:
    tried: list[int] = []

    def prepare(size: int) -> tuple[Callable[[], object], float]:
        tried.append(size)
        if size > 10:
            raise error
        return (lambda: None), 5e6

    reading = compute._Reading("hbm_read", prepare, (1000, 100, 10, 1))
    assert compute._taken(SteadyDevice(), reading, 0.1) == pytest.approx(5.0)
    assert tried == [1000, 100, 10]
    tried.clear()
    told = compute._taken(SteadyDevice(), compute._Reading("hbm_read", prepare, (1000, 100)), 0.1)
    assert isinstance(told, str) and told.startswith("too little free memory")


def test_a_fault_is_not_tried_again() -> None:
    tried: list[int] = []

    def prepare(size: int) -> tuple[Callable[[], object], float]:
        tried.append(size)
        raise RuntimeError("CUDA error: an illegal memory access\nCompile with ...")

    told = compute._taken(SteadyDevice(), compute._Reading("gemm", prepare, (64, 1)), 0.1)
    assert told == "RuntimeError: CUDA error: an illegal memory access"
    assert tried == [64]


def test_one_run_reads_more_weights_than_any_cache_holds() -> None:
    gpu = torch.device("cuda", 0)
    for n, k in ((1024, 1024), (8192, 8192), (28672, 8192), (64, 64)):
        bytes_each = 2 * n * k
        most, *rest = compute._weights(gpu, bytes_each)
        assert most * bytes_each >= 2 * compute.LARGEST_CACHE_BYTES or most == 64
        assert most * bytes_each < 2 * compute.LARGEST_CACHE_BYTES + bytes_each
        assert rest in ([], [1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the real rates are NOT measured here")
def test_a_real_gpu() -> None:
    from probe.bench.device import CudaDevice

    found, _ = rates(CudaDevice(int(os.environ.get("LOCAL_RANK", "0"))), GpuRef(0, 0), gemm_shapes=(), seconds=5.0)
    assert {"hbm_read", "hbm_copy", "h2d", "d2h", "gemm"} <= {r.kind for r in found}
