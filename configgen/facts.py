"""What two machines say of themselves, fact beside fact: all that a number measured there depends on. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from configgen.comparison import Difference, Effect, Told
from configgen.explain import provenance_of
from probe.errors import one_line
from probe.islands import islands
from probe.measurement import Survey
from probe.topology import Node, NodeShape, Provenance, Topology
from probe.units import count, gib, some

_WIRES = (Effect.LATENCY, Effect.BANDWIDTH)
_SOFTWARE = (*_WIRES, Effect.COMPUTE)

_WORTH_A_LOOK = frozenset(
    (
        *("throttled", "power-capped", "gpu-busy", "pcie-narrow", "pcie-slow", "degraded-links", "slow-links"),
        *("nvlink-differs", "nvlink-no-bridge", "iommu-translated", "acs-redirects", "shm-small"),
        "imex-channel-missing",
    )
)
"""Codes of a topology's warnings that change figures."""

_TOLD_ELSEWHERE = ("backend", "library", "torch")


def facts(a: Survey, b: Survey) -> Iterator[Difference]:
    """Every fact that one of both tells, hardware first."""
    for subject, affects, told in _FACTS:
        ours, theirs = told(a), told(b)
        if ours is not None or theirs is not None:
            yield Difference(subject, ours, theirs, affects)
    for name in dict.fromkeys(key for s in (a, b) for key, _ in s.environment if key not in _TOLD_ELSEWHERE):
        yield Difference(one_line(name, 40), _variable(a, name), _variable(b, name), _SOFTWARE)


def island_sizes(topology: Topology) -> Counter[tuple[int, str, str]]:
    """(GPUs, slowest path, through) -> islands of more than one GPU that are so."""
    return Counter(
        (len(i.members), i.bottleneck.label, i.bottleneck.through.value if i.bottleneck.through else "")
        for i in islands(topology)
        if i.bottleneck
    )


def shapes(topology: Topology) -> tuple[NodeShape, ...]:
    """Each kind of node once."""
    return tuple({id(node.shape): node.shape for node in topology.nodes}.values())


def memory_bytes(topology: Topology) -> int | None:
    """Of the smallest GPU; None where none tells it."""
    return min((g.memory_bytes for shape in shapes(topology) for g in shape.gpus if g.memory_bytes), default=None)


def gpu_names(topology: Topology) -> tuple[str, ...]:
    """The models, each once, in ascending order; () where any is unknown."""
    names = {gpu.name for shape in shapes(topology) for gpu in shape.gpus}
    return () if None in names else tuple(sorted(name for name in names if name is not None))


def _read(topology: Topology, fact: str, texts: Iterable[str]) -> Told | None:
    """The different texts as one, with the fact's provenance; None without any."""
    found = list(dict.fromkeys(texts))
    if not found:
        return None
    return Told(one_line(some(found, 4), 120), provenance_of(topology, fact))


def _model(s: Survey) -> Told | None:
    return _read(s.topology, "gpus.name", gpu_names(s.topology))


def _number(s: Survey) -> Told | None:
    usable = sum(state.is_usable for node in s.topology.nodes for state in node.gpus)
    nodes = f" on {count(len(s.topology.nodes), 'node')}" if len(s.topology.nodes) > 1 else ""
    lost = s.topology.gpu_count - usable
    described = any(w.code == "synthetic" for w in s.topology.warnings)
    told = Provenance.ASSUMED if described else Provenance.READ
    return Told(f"{usable:,}{nodes}" + (f", {lost:,} not usable" if lost else ""), told)


def _memory(s: Survey) -> Told | None:
    sizes = sorted({g.memory_bytes for shape in shapes(s.topology) for g in shape.gpus if g.memory_bytes})
    return _read(s.topology, "gpus.memory_bytes", map(gib, sizes))


def _fabric(s: Survey) -> Told | None:
    if not all(node.shape.nvlink_visible for node in s.topology.nodes):
        return None
    found = island_sizes(s.topology)
    texts = [f"{count(n, 'island')} of {size} ({label})" for (size, label, _), n in found.items()]
    return _read(s.topology, "paths", texts or ["none"])


def _through(s: Survey) -> Told | None:
    """A switch gives every pair all links; bonds between pairs are fixed."""
    told = sorted({p.through.value for shape in shapes(s.topology) for p in shape.paths if p.is_fast and p.through})
    return _read(s.topology, "paths", told)


def _generation(s: Survey) -> Told | None:
    told = sorted({p.version for shape in shapes(s.topology) for p in shape.paths if p.version is not None})
    return _read(s.topology, "paths", (f"{version:g}" for version in told))


def _paths(s: Survey) -> Told | None:
    texts = []
    for shape in shapes(s.topology):
        labels = Counter(path.label for path in shape.paths)
        texts.append(" ".join(f"{n}x{label}" for label, n in sorted(labels.items())))
    return _read(s.topology, "paths", (text for text in texts if text))


def _port(s: Survey) -> Told | None:
    ports = (g.pcie for shape in shapes(s.topology) for g in shape.gpus)
    texts = [
        f"{f'Gen{p.generation_max} ' if p.generation_max else ''}x{p.width or p.width_max}"
        for p in ports
        if p is not None and (p.width or p.width_max)
    ]
    return _read(s.topology, "gpus.pcie", texts)


def _nics(s: Survey) -> Told | None:
    texts = []
    for shape in shapes(s.topology):
        kinds = Counter((nic.speed_gbps, nic.link_layer) for nic in shape.nics)
        texts += [
            f"{n} x {f'{speed:g} Gbit/s' if speed else 'unknown speed'}{f' {layer}' if layer else ''}"
            for (speed, layer), n in kinds.items()
        ]
    return _read(s.topology, "nics", texts)


def _p2p(s: Survey) -> Told | None:
    """What was written and read back; else the driver's word."""
    if s.verifications:
        wrong = sum(not v.passed for v in s.verifications)
        text = f"{wrong} of {count(len(s.verifications), 'direction')} WRONG" if wrong else "right where read back"
        return Told(text, Provenance.MEASURED)
    told = {p.p2p.read.value for shape in shapes(s.topology) for p in shape.paths if p.p2p and p.p2p.read}
    return _read(s.topology, "paths.p2p", sorted(told))


def _warnings(s: Survey) -> Told | None:
    """Only a driver tells these, so silence without one is no good sign."""
    found = sorted({w.code for w in s.topology.warnings if w.code in _WORTH_A_LOOK})
    if not found and all(node.driver_version is None for node in s.topology.nodes):
        return None
    return Told(some(found, 6) or "none", Provenance.READ)


def _of_nodes(tell: Callable[[Node], str | None]) -> Callable[[Survey], Told | None]:
    def told(s: Survey) -> Told | None:
        found = sorted({text for node in s.topology.nodes if (text := tell(node))})
        return Told(one_line(some(found, 4), 120), Provenance.READ) if found else None

    return told


def _library(s: Survey) -> Told | None:
    found = dict.fromkeys(
        f"{c.key.backend.upper()} {c.key.library_version or 'of unknown version'}" for c in s.curves
    ) or dict.fromkeys(value for key, value in s.environment if key == "library")
    return Told(one_line(some(list(found), 4), 120), Provenance.READ) if found else None


def _variable(s: Survey, name: str) -> Told | None:
    """A variable that one survey did not record was not set there: the survey records all that change figures."""
    found = list(dict.fromkeys(value for key, value in s.environment if key == name))
    if found:
        return Told(one_line(some(found, 4), 120), Provenance.READ)
    return Told("not set", Provenance.READ) if s.environment and name.isupper() else None


_FACTS: tuple[tuple[str, tuple[Effect, ...], Callable[[Survey], Told | None]], ...] = (
    ("GPU model", (Effect.COMPUTE, Effect.MEMORY, *_WIRES), _model),
    ("GPUs", (Effect.MEMORY,), _number),
    ("memory of a GPU", (Effect.MEMORY,), _memory),
    ("fast fabric", _WIRES, _fabric),
    ("fabric through", _WIRES, _through),
    ("NVLink generation", (Effect.BANDWIDTH,), _generation),
    ("paths inside a node", _WIRES, _paths),
    ("PCIe port", (Effect.BANDWIDTH,), _port),
    ("NICs of a node", _WIRES, _nics),
    ("P2P", _WIRES, _p2p),
    ("warnings", _SOFTWARE, _warnings),
    ("virtualization", _SOFTWARE, _of_nodes(lambda node: node.virtualization)),
    ("driver", _SOFTWARE, _of_nodes(lambda node: node.driver_version)),
    ("CUDA", (Effect.COMPUTE,), _of_nodes(lambda node: node.cuda_version)),
    ("collectives library", _WIRES, _library),
    ("torch", (Effect.COMPUTE,), lambda s: _variable(s, "torch")),
)
