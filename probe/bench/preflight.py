"""What would spoil a measurement, seen before anything starts: some of it ends the run, the rest is said."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from probe.errors import MeasureError, UsageError
from probe.topology import GpuStatus, Node, Notice, Topology
from probe.units import count, gib, ranges

CONTEXT_BYTES = 1 << 30
"""Assumed: about half of it for a CUDA context, the rest for NCCL's buffers and cuBLAS's workspace."""
BUFFERS_PER_RANK = 2
"""Sent and received, of an all-to-all or of a p2p in both directions; data are checked in small pieces."""

_LAB_RANKS_ALWAYS, _LAB_RANKS_PER_CPU, _LAB_RANKS_MOST = 16, 8, 64
_DISTURBING = (
    *("recovery-needed", "nvml-partial", "gpu-lost", "gpu-no-permission", "gpu-failed", "gpu-busy", "compute-mode"),
    *("mig", "throttled", "power-capped", "pcie-narrow", "degraded-links", "fabric-in-progress", "fabric-failed"),
    *("shm-small", "memlock-limited", "iommu-translated", "acs-redirects", "imex-channel-missing"),
)
"""Codes of warnings that a topology may already hold, in the order of weight."""

_INSTALL = "pip install 'wirelore[measure]'"
_VERSION_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """The torch that is installed, read without importing it; `cuda` and `hip` are what it was built for."""

    version: str | None = None
    cuda: str | None = None
    hip: str | None = None


@dataclass(frozen=True, slots=True)
class Ground:
    """What preflight needs to know of this host beside the topology."""

    torch: TorchBuild | None
    cpus: int = 1


def read_ground() -> Ground:
    """Of this host and interpreter. Never imports torch: that takes seconds and 200 MB."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    return Ground(_torch_build(), cpus)


def preflight(
    topology: Topology, ground: Ground, *, backend: str, lab: bool, largest_bytes: int, nodes: int = 1
) -> tuple[Notice, ...]:
    """What a person should know before these GPUs are measured: the topology's own warnings that matter here, as they
    are, then what is new. `backend` is 'auto', 'nccl' or 'gloo'; `lab`: CPU ranks stand in for a described machine;
    `nodes` take part, of which the topology tells this one (or, in a lab, all).

    Raises MeasureError where this machine cannot be measured, UsageError where it was asked for the impossible.
    """
    if ground.torch is None:
        raise MeasureError("measuring needs PyTorch, which is not installed here", cure=f"{_INSTALL}.")
    if lab:
        return tuple(_lab(topology, ground, backend))
    _require_gpu_build(ground.torch, backend)
    known = [w for code in _DISTURBING for w in topology.warnings if w.code == code]
    return (*known, *_gpus(topology.nodes[0], largest_bytes, nodes), *_versions(topology.nodes[0], ground.torch))


def _lab(topology: Topology, ground: Ground, backend: str) -> Iterator[Notice]:
    if backend == "nccl":
        raise UsageError(
            "the described machine's GPUs are not here, so NCCL has none", cure="Measure it with --backend gloo."
        )
    ranks = sum(gpu.is_usable for node in topology.nodes for gpu in node.gpus)
    if ranks == 0:
        raise MeasureError("the described machine has no usable GPU to stand in for", cure="See `wirelore probe`.")
    most = min(_LAB_RANKS_MOST, max(_LAB_RANKS_ALWAYS, _LAB_RANKS_PER_CPU * ground.cpus))
    if ranks > most:
        raise UsageError(
            f"a lab of {count(ranks, 'rank')} is too much for {count(ground.cpus, 'CPU')}: at most {most}",
            cure="Describe a smaller machine, for example --from machine:l4-2.",
        )
    if ranks > ground.cpus:
        what = f"{count(ranks, 'rank')} of the lab share {count(ground.cpus, 'CPU')}"
        yield Notice("lab-crowded", f"{what}: times show who waits for whom, more than what a link does.")


def _require_gpu_build(build: TorchBuild, backend: str) -> None:
    if backend == "gloo":
        raise UsageError(
            "gloo measures CPUs, not this machine's GPUs",
            cure="Leave --backend away, or describe a machine for a lab: --from machine:l4-2 --backend gloo.",
        )
    if build.cuda is None and build.hip is None:
        told = f" ({build.version})" if build.version else ""
        raise MeasureError(
            f"the installed PyTorch{told} is built for CPUs and cannot reach the GPUs",
            cure="Install a build for CUDA or ROCm (pytorch.org/get-started).",
        )


def _gpus(node: Node, largest_bytes: int, nodes: int) -> Iterator[Notice]:
    states = node.gpus
    usable = [i for i, gpu in enumerate(states) if gpu.is_usable and not gpu.mig_instances]
    hidden = [i for i, gpu in enumerate(states) if gpu.status is GpuStatus.OK and not gpu.visible]
    if not usable:
        why = "CUDA_VISIBLE_DEVICES hides them" if hidden else "they are lost, failed or sliced into MIG instances"
        raise MeasureError(
            f"none of {count(len(states), 'GPU')} here can be measured: {why}", cure="See `wirelore probe` for each."
        )
    if hidden:
        what = f"{_named(hidden)} hidden by CUDA_VISIBLE_DEVICES"
        yield Notice("gpu-hidden", f"{what}: not measured, and what runs on them disturbs the others.")
    free = {i: n for i in usable if (n := states[i].memory_free_bytes) is not None}
    full = [i for i, n in free.items() if n < CONTEXT_BYTES]
    if full:
        raise MeasureError(
            f"{_named(full)} short of memory: {gib(min(free[i] for i in full))} free, and a rank takes "
            f"{gib(CONTEXT_BYTES)} before it measures anything",
            cure="Stop what runs there (`nvidia-smi` lists it), or hide these GPUs with CUDA_VISIBLE_DEVICES.",
        )
    wanted = CONTEXT_BYTES + BUFFERS_PER_RANK * largest_bytes
    tight = [i for i, n in free.items() if n < wanted]
    if tight:
        what = f"{_named(tight)} short of memory: {gib(min(free[i] for i in tight))} free of the {gib(wanted)} wanted"
        yield Notice("memory-low", f"{what}. Sizes that do not fit are left out.")
    if len(usable) == 1 == nodes:
        what = f"only GPU {usable[0]} can be measured"
        yield Notice("one-gpu", f"{what}: there is no path between GPUs, so its rates alone are taken.")


def _versions(node: Node, build: TorchBuild) -> Iterator[Notice]:
    driver = _major(node.cuda_version)
    built = _major(build.cuda)
    if driver is not None and built is not None and built > driver:
        what = f"PyTorch is built for CUDA {build.cuda}, the driver offers {node.cuda_version}"
        yield Notice(
            "driver-old", f"{what}: it may not start. Update the driver or take a PyTorch for CUDA {driver}.x."
        )


def _major(version: str | None) -> int | None:
    match = re.match(r"[0-9]{1,4}", version or "")
    return int(match[0]) if match else None


def _named(gpus: list[int]) -> str:
    return f"GPU {gpus[0]} is" if len(gpus) == 1 else f"GPUs {ranges(gpus)} are"


def _torch_build() -> TorchBuild | None:
    """None where no torch is installed. What it was built for stands in its version.py, as text."""
    from importlib.util import find_spec

    try:
        found = find_spec("torch")
    except (ImportError, ValueError):
        return None
    if found is None or found.origin is None:
        return None
    try:
        with Path(found.origin).with_name("version.py").open("rb") as file:
            text = file.read(_VERSION_BYTES).decode("utf-8", "replace")
    except OSError:
        text = ""
    return torch_build(text)


def torch_build(version_py: str) -> TorchBuild:
    """From the text of torch/version.py: `cuda: Optional[str] = '12.8'`, or None where it was built without."""

    def told(name: str) -> str | None:
        match = re.search(rf"^{name}\b[^=\n]{{0,40}}= *['\"]([^'\"\n]{{1,60}})['\"]", version_py, re.MULTILINE)
        return match[1] if match else None

    return TorchBuild(told("__version__"), told("cuda"), told("hip"))
