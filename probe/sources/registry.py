"""The one place that knows all sources: looks at an input, decides what it is, and has it read."""

from __future__ import annotations

import sys
from pathlib import Path as FilePath
from typing import BinaryIO

from probe.errors import NoGpuError, SourceError
from probe.topology import Topology

TEXT_LIMIT_BYTES = 16 << 20
DOCUMENT_LIMIT_BYTES = 256 << 20
_SNIFF_BYTES = 4096
_CURE = "Give the output of `nvidia-smi topo -m`, a file from `wirelore probe -o FILE`, or machine:NAME."


def read_source(source: str | None) -> Topology:
    """None: this machine. 'machine:NAME': synthetic. '-': standard input. Else a file. Raises WireloreError."""
    if source is None:
        return read_this_machine()
    if source.startswith("machine:"):
        from probe.sources.machines import machine

        return machine(source)
    if source == "-":
        return _read_stream(sys.stdin.buffer, "standard input")
    path = FilePath(source)
    if path.is_dir():
        raise SourceError(f"{source} is a directory", cure=_CURE)
    try:
        with path.open("rb") as stream:
            return _read_stream(stream, source)
    except OSError as error:
        raise SourceError(f"cannot read {source}: {error.strerror}", cure=_CURE) from error


def read_this_machine() -> Topology:
    """The driver's facts joined with the host's. Raises NoGpuError where there is no GPU or driver."""
    from probe.sources.host import read_host, with_host
    from probe.sources.nvml import read_nvml

    topology = read_nvml()
    if topology.gpu_count == 0:
        raise NoGpuError(
            "the driver answers, but there is no GPU", cure="Check `nvidia-smi -L` and the container's GPU request."
        )
    return with_host(topology, read_host())


def read_text(text: str, *, where: str) -> Topology:
    """Any text that describes a machine. Raises SourceError when it is of no known kind."""
    from probe.sources.smi_text import looks_like_topo, read_topo

    if text.lstrip("\ufeff \t\r\n").startswith(("<?xml", "<!DOCTYPE", "<system", "<topology", "<nvidia_smi_log")):
        raise SourceError(
            f"{where} is XML, which this version does not read yet",
            cure="Give the output of `nvidia-smi topo -m` instead.",
        )
    if looks_like_topo(text):
        return read_topo(text, where=where)
    raise SourceError(f"{where} holds no topology that can be read", cure=_CURE)


def _read_stream(stream: BinaryIO, where: str) -> Topology:
    head = stream.read(_SNIFF_BYTES)
    is_document = head.lstrip()[:1] == b"{" and b'"schema_version"' in head
    limit = DOCUMENT_LIMIT_BYTES if is_document else TEXT_LIMIT_BYTES
    data = head + stream.read(limit + 1 - len(head))
    if len(data) > limit:
        raise SourceError(f"{where} is larger than {limit >> 20} MiB", cure=_CURE)
    if not data.strip():
        raise SourceError(f"{where} is empty", cure=_CURE)
    if data.lstrip()[:1] == b"{":
        from probe.store import decode_survey

        return decode_survey(data, where=where).topology
    return read_text(_decode(data, where), where=where)


def _decode(data: bytes, where: str) -> str:
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise SourceError(f"{where} is neither UTF-8 text nor JSON", cure=_CURE) from error
    if "\0" in text:
        raise SourceError(f"{where} is a binary file", cure=_CURE)
    return text
