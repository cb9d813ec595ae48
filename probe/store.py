"""Topology and Survey <-> versioned JSON, the JSON Schema of it, and files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import msgspec

from probe.errors import SourceError, UsageError
from probe.islands import fingerprint, islands, partial_meshes
from probe.measurement import Curve, Evidence, HealthSnapshot, Rate, Survey, Verification
from probe.rails import Rail, rails
from probe.topology import (
    Fabric,
    Gpu,
    GpuRef,
    GpuState,
    GpuStatus,
    MigInstance,
    NetworkPath,
    Nic,
    Node,
    NodeShape,
    Notice,
    Origin,
    P2p,
    Path,
    PathKind,
    PcieLink,
    Through,
    Topology,
    require,
)

SCHEMA_VERSION = 1
MAX_GPUS_PER_NODE = 128


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the JSON documents: unknown keys of a later minor change are ignored, missing ones are refused."""


class Reading(_Document, frozen=True, kw_only=True):
    """What the two ends of an asymmetric path say, as printed."""

    a_to_b: str
    b_to_a: str


class PathDocument(_Document, frozen=True, kw_only=True):
    """A GPU pair of a node, a < b."""

    a: int
    b: int
    kind: PathKind
    nvlinks: int | None = None
    version: float | None = None
    through: Through | None = None
    p2p: P2p | None = None
    asymmetric: Reading | None = None


class NicPathDocument(_Document, frozen=True, kw_only=True):
    """A GPU (index) and a NIC (name) of a node."""

    gpu: int
    nic: str
    kind: PathKind
    asymmetric: Reading | None = None


class GpuDocument(_Document, frozen=True, kw_only=True):
    """A GPU: what it is, and its present state."""

    index: int
    cuda_index: int | None = None
    uuid: str | None = None
    name: str | None = None
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    pci_bus_id: str | None = None
    serial: str | None = None
    numa_node: int | None = None
    cpu_affinity: str | None = None
    compute_capability: tuple[int, int] | None = None
    pcie: PcieLink | None = None
    nvlinks_active: int | None = None
    nvlinks_total: int | None = None
    visible: bool = True
    status: GpuStatus = GpuStatus.OK
    status_reason: str | None = None
    mig_instances: tuple[MigInstance, ...] = ()
    fabric: Fabric | None = None
    nearest_nics: tuple[str, ...] = ()


class NodeDocument(_Document, frozen=True, kw_only=True):
    """A machine."""

    hostname: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    virtualization: str | None = None
    nvlink_visible: bool = True
    numa_nodes: int | None = None
    gpus: tuple[GpuDocument, ...]
    nics: tuple[Nic, ...] = ()
    paths: tuple[PathDocument, ...] = ()
    nic_paths: tuple[NicPathDocument, ...] = ()
    rails: tuple[Rail, ...] = ()
    """Derived, for readers."""


class TopologyDocument(_Document, frozen=True, kw_only=True):
    """What `wirelore probe` prints. Islands, cliques and fingerprint are derived: for readers, never read back."""

    schema_version: int
    fingerprint: str
    nodes: tuple[NodeDocument, ...]
    network: tuple[NetworkPath, ...] = ()
    islands: tuple[tuple[GpuRef, ...], ...] = ()
    maximal_cliques: tuple[tuple[GpuRef, ...], ...] = ()
    warnings: tuple[Notice, ...] = ()
    provenance: tuple[Origin, ...] = ()


class SurveyDocument(_Document, frozen=True, kw_only=True):
    """What `wirelore measure` writes: a topology and all that was measured on it."""

    schema_version: int
    topology: TopologyDocument
    curves: tuple[Curve, ...] = ()
    rates: tuple[Rate, ...] = ()
    health: tuple[HealthSnapshot, ...] = ()
    verifications: tuple[Verification, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    missing: tuple[Notice, ...] = ()
    origins: tuple[Origin, ...] = ()
    lab: str | None = None
    measured_at: str | None = None


def encode_topology(topology: Topology) -> bytes:
    """The topology document as indented JSON, UTF-8, ending in a newline."""
    return to_json(_topology_document(topology))


def encode_survey(survey: Survey) -> bytes:
    return to_json(survey_document(survey))


def survey_document(survey: Survey) -> SurveyDocument:
    """For documents that carry a survey."""
    parts = {name: getattr(survey, name) for name in SurveyDocument.__struct_fields__[2:]}
    return SurveyDocument(schema_version=SCHEMA_VERSION, topology=_topology_document(survey.topology), **parts)


def decode_survey(data: bytes, *, where: str) -> Survey:
    """A survey or topology document, or one that carries a survey. Raises SourceError naming the key that is wrong."""
    with reading(where):
        carried = msgspec.json.decode(data, type=_Carrier).survey
        data = data if carried is msgspec.UNSET else bytes(carried)
        if not holds_survey(data, where):
            return Survey(topology_of(msgspec.json.decode(data, type=TopologyDocument)))
        document = msgspec.json.decode(data, type=SurveyDocument)
        parts = {name: getattr(document, name) for name in SurveyDocument.__struct_fields__[2:]}
        topology = topology_of(document.topology)
        for gpu in {rate.gpu for rate in document.rates}:
            known = 0 <= gpu.node < len(topology.nodes) and 0 <= gpu.gpu < len(topology.nodes[gpu.node].gpus)
            require(known, f"rates: node {gpu.node} has no GPU {gpu.gpu}")
        return Survey(topology, **parts)


def holds_survey(data: bytes, where: str) -> bool:
    """Whether the document is a survey; False for a topology. Raises SourceError on another kind or version."""
    head = msgspec.json.decode(data, type=_Head)
    if head.schema_version is None:
        raise SourceError(
            f"{where} is JSON, but no wirelore document", cure="Give what `wirelore probe -o FILE` wrote."
        )
    if not 1 <= head.schema_version <= SCHEMA_VERSION:
        raise SourceError(
            f"{where} has schema version {head.schema_version}, this program reads 1 to {SCHEMA_VERSION}",
            cure="Update wirelore.",
        )
    return head.topology is not msgspec.UNSET


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns whatever is wrong with a document into a SourceError that names it."""
    try:
        yield
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise SourceError(f"{where}: {reason}", cure="Give what `wirelore probe -o FILE` wrote, unchanged.") from error


def topology_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what `wirelore probe` prints."""
    return msgspec.json.schema(TopologyDocument)


def survey_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a survey."""
    return msgspec.json.schema(SurveyDocument)


def to_json(document: object) -> bytes:
    """Any document or noun as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def write_atomically(path: FilePath, data: bytes, *, executable: bool = False) -> None:
    """Writes beside the target and renames: a reader sees the old file or the whole new one. Raises UsageError.

    A link stays one, its target is written; a device or pipe is written to as it is, never replaced. Who may read an
    `executable` file may also run it.
    """
    try:
        path = path.resolve()
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
            FilePath(temporary).chmod(mode | (mode & 0o444) >> 2 if executable else mode)
            FilePath(temporary).replace(path)
        except BaseException:
            FilePath(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}",
            cure="Name a file where you can write and where there is room.",
        ) from error


class _Carrier(_Document, frozen=True, kw_only=True):
    survey: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Head(_Document, frozen=True, kw_only=True):
    schema_version: int | None = None
    topology: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _topology_document(topology: Topology) -> TopologyDocument:
    cliques = [
        tuple(GpuRef(position, i) for i in clique)
        for position, node in enumerate(topology.nodes)
        for clique in partial_meshes(node.shape)
    ]
    return TopologyDocument(
        schema_version=SCHEMA_VERSION,
        fingerprint=fingerprint(topology),
        nodes=tuple(_node_document(node) for node in topology.nodes),
        network=topology.network,
        islands=tuple(island.members for island in islands(topology)),
        maximal_cliques=tuple(cliques),
        warnings=topology.warnings,
        provenance=topology.provenance,
    )


_GPU_FACTS = (
    "name",
    "memory_bytes",
    "compute_capability",
    "numa_node",
    "cpu_affinity",
    "pcie",
    "nvlinks_active",
    "nvlinks_total",
    "nearest_nics",
)
_GPU_STATES = (
    "uuid",
    "pci_bus_id",
    "serial",
    "cuda_index",
    "visible",
    "memory_free_bytes",
    "status",
    "status_reason",
    "mig_instances",
    "fabric",
)
_NODE_FACTS = ("hostname", "driver_version", "cuda_version", "virtualization")


def _node_document(node: Node) -> NodeDocument:
    shape = node.shape
    gpus = tuple(
        GpuDocument(
            index=gpu.index,
            **{name: getattr(gpu, name) for name in _GPU_FACTS},
            **{name: getattr(state, name) for name in _GPU_STATES},
        )
        for gpu, state in zip(shape.gpus, node.gpus, strict=True)
    )
    paths = tuple(
        PathDocument(
            a=a,
            b=b,
            kind=p.kind,
            nvlinks=p.links,
            version=p.version,
            through=p.through,
            p2p=p.p2p,
            asymmetric=_reading(p),
        )
        for a, b, p in shape.pairs
    )
    nic_paths = tuple(
        NicPathDocument(gpu=g, nic=nic.name, kind=p.kind, asymmetric=_reading(p))
        for g, row in enumerate(shape.nic_paths)
        for nic, p in zip(shape.nics, row, strict=True)
    )
    own = {name: getattr(node, name) for name in _NODE_FACTS}
    return NodeDocument(
        gpus=gpus,
        nics=shape.nics,
        paths=paths,
        nic_paths=nic_paths,
        nvlink_visible=shape.nvlink_visible,
        numa_nodes=shape.numa_nodes,
        rails=rails(shape),
        **own,
    )


def _reading(path: Path) -> Reading | None:
    return Reading(a_to_b=path.asymmetric[0], b_to_a=path.asymmetric[1]) if path.asymmetric else None


def topology_of(document: TopologyDocument) -> Topology:
    """The topology, its laws checked; equal nodes share one shape. Raises ValueError."""
    shapes: dict[NodeShape, NodeShape] = {}
    nodes = []
    for position, told in enumerate(document.nodes):
        node = _node(told, f"nodes[{position}]")
        nodes.append(replace(node, shape=shapes.setdefault(node.shape, node.shape)))
    return Topology(tuple(nodes), document.network, document.warnings, document.provenance)


def _node(document: NodeDocument, where: str) -> Node:
    n = len(document.gpus)
    if n > MAX_GPUS_PER_NODE:
        raise ValueError(f"{where}.gpus: a node has at most {MAX_GPUS_PER_NODE} GPUs, not {n}")
    expected = [(a, b) for a in range(n) for b in range(a + 1, n)]
    if sorted((p.a, p.b) for p in document.paths) != expected:
        raise ValueError(f"{where}.paths: {n} GPUs need each pair a < b exactly once")
    by_pair = {
        (p.a, p.b): Path(p.kind, p.nvlinks, p.version, p.through, p.p2p, _readings(p.asymmetric))
        for p in document.paths
    }
    by_nic = {(p.gpu, p.nic): Path(p.kind, asymmetric=_readings(p.asymmetric)) for p in document.nic_paths}
    names = [nic.name for nic in document.nics]
    if by_nic and set(by_nic) != {(g, name) for g in range(n) for name in names}:
        raise ValueError(f"{where}.nic_paths: each GPU needs each NIC exactly once")
    shape = NodeShape(
        gpus=tuple(Gpu(index=g.index, **{name: getattr(g, name) for name in _GPU_FACTS}) for g in document.gpus),
        paths=tuple(by_pair[pair] for pair in expected),
        nics=document.nics,
        nic_paths=tuple(tuple(by_nic[g, name] for name in names) for g in range(n)) if by_nic else (),
        nvlink_visible=document.nvlink_visible,
        numa_nodes=document.numa_nodes,
    )
    states = tuple(GpuState(**{name: getattr(g, name) for name in _GPU_STATES}) for g in document.gpus)
    return Node(shape=shape, gpus=states, **{name: getattr(document, name) for name in _NODE_FACTS})


def _readings(reading: Reading | None) -> tuple[str, str] | None:
    return (reading.a_to_b, reading.b_to_a) if reading else None
