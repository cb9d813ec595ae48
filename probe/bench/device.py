"""The device of a rank, CPU or GPU: its memory, its clock, and graphs where it has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Operation = Callable[[], object]


class Device(Protocol):
    """What the benchmarks need to know of the device that a rank drives."""

    place: torch.device
    has_graphs: bool

    def times_s(self, operation: Operation, count: int, *, before: Operation | None = None) -> list[float]:
        """Seconds of each of `count` runs, each after `before` (a barrier), whose own time does not count."""

    def captured(self, operation: Operation, times: int) -> Operation:
        """`times` runs as one graph, as engines launch small ones; only of a device that has graphs."""

    def synchronize(self) -> None:
        """Waits until everything that was asked of the device is done."""


class CpuDevice:
    """A CPU rank: operations block, so the host's clock is exact."""

    place = torch.device("cpu")
    has_graphs = False

    def times_s(self, operation: Operation, count: int, *, before: Operation | None = None) -> list[float]:
        times = []
        for _ in range(count):
            if before is not None:
                before()
            start = time.perf_counter()
            operation()
            times.append(time.perf_counter() - start)
        return times

    def captured(self, operation: Operation, times: int) -> Operation:
        raise NotImplementedError("a CPU has no graphs")

    def synchronize(self) -> None:
        pass


class CudaDevice:
    """A GPU rank (CUDA or ROCm): operations are enqueued, and events on the device's own clock time each."""

    has_graphs = True

    def __init__(self, index: int) -> None:
        self.place = torch.device("cuda", index)
        torch.cuda.set_device(self.place)

    def times_s(self, operation: Operation, count: int, *, before: Operation | None = None) -> list[float]:
        marks: list[Sequence[torch.cuda.Event]] = []
        for _ in range(count):
            if before is not None:
                before()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            operation()
            end.record()
            marks.append((start, end))
        self.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in marks]

    def captured(self, operation: Operation, times: int) -> Operation:
        graph = torch.cuda.CUDAGraph()
        self.synchronize()
        with torch.cuda.graph(graph):
            for _ in range(times):
                operation()
        return graph.replay

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.place)
