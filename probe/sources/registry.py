"""The one place that knows all sources: looks at an input, decides what it is, and has it read."""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from typing import BinaryIO

from probe.errors import NoGpuError, SourceError
from probe.topology import Topology

TEXT_LIMIT_BYTES = 16 << 20
TEXT_LIMIT_LINES = 200_000
DOCUMENT_LIMIT_BYTES = 128 << 20
_CURE = "Give the output of `nvidia-smi topo -m`, a file from `wirelore probe -o FILE`, or machine:NAME."


def read_source(source: str | None) -> Topology:
    """None: this machine. 'machine:NAME': synthetic. '-': standard input. Else a file. Raises WireloreError."""
    if source is None:
        return read_this_machine()
    topology = _read(source)
    if topology.gpu_count == 0:
        raise NoGpuError(f"{source} describes a machine without GPUs", cure=_CURE)
    return topology


def read_this_machine() -> Topology:
    """The driver's facts joined with the host's. Raises NoGpuError where there is no GPU or driver."""
    from probe.sources.host import read_host, with_host
    from probe.sources.nvml import read_nvml

    return with_host(read_nvml(), read_host())


def _read(source: str) -> Topology:
    if source.startswith("machine:"):
        from probe.sources.machines import machine

        return machine(source)
    where = "standard input" if source == "-" else source
    try:
        with os.fdopen(0, "rb", closefd=False) if source == "-" else FilePath(source).open("rb") as stream:
            return _read_stream(stream, where)
    except OSError as error:
        raise SourceError(f"cannot read {where}: {error.strerror}", cure=_CURE) from error


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
    data = stream.read(DOCUMENT_LIMIT_BYTES + 1)
    is_document = data[:4096].lstrip()[:1] == b"{"
    limit = DOCUMENT_LIMIT_BYTES if is_document else TEXT_LIMIT_BYTES
    if len(data) > limit:
        raise SourceError(f"{where} is larger than {limit >> 20} MiB", cure=_CURE)
    if not data or data.isspace():
        raise SourceError(f"{where} is empty", cure=_CURE)
    if is_document:
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
    if sum(map(text.count, "\n\r\v\f")) > TEXT_LIMIT_LINES:
        raise SourceError(f"{where} has more than {TEXT_LIMIT_LINES:,} lines", cure=_CURE)
    return text
