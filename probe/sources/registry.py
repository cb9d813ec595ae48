"""The one place that knows all sources: looks at an input, decides what it is, and has it read."""

from __future__ import annotations

import os
import re
from importlib import import_module
from io import BufferedReader
from pathlib import Path as FilePath

from probe.errors import NoGpuError, SourceError
from probe.measurement import Survey
from probe.topology import Topology

TEXT_LIMIT_BYTES = 8 << 20
TEXT_LIMIT_LINES = 200_000
DOCUMENT_LIMIT_BYTES = 128 << 20
_HEAD = 4096
"""Bytes that tell a document (JSON) from a text; characters that tell the kinds of text apart."""
_CURE = "Give the output of `nvidia-smi topo -m`, a file from `wirelore probe -o FILE`, or machine:NAME."

_XML_KINDS = ("smi_xml.smi", "nccl_xml.nccl", "hwloc_xml.hwloc")
_TEXT_KINDS = ("rocm.rocm", "smi_text.topo", "nvlink_text.nvlink")
"""MODULE.NAME of probe.sources, asked in this order: looks_like_NAME(head), then read_NAME(text, where=...)."""
_AMD_WORDS = ("two gpus", " table:", "link_type", "(topology)")
"""One of them stands in whatever AMD's tools print; without any the module that reads it is not even loaded."""
_XML_PROLOGUE = re.compile(r"\A(?:\ufeff|\s|<\?[^>]{0,400}\?>|<!--(?:(?!-->).){0,60000}-->)+", re.DOTALL)
"""What may stand before the first element: marks, blanks, declarations, and licences as comments."""
_SMI_LOG = re.compile(r"<nvidia_smi_log>.*?</nvidia_smi_log>", re.DOTALL)


def read_source(source: str | None) -> Topology:
    """None: this machine. 'machine:NAME': synthetic. '-': standard input. Else a file. Raises WireloreError."""
    return read_this_machine() if source is None else read_survey(source).topology


def read_survey(source: str) -> Survey:
    """The topology of a source, with what was measured on it where it is a survey. Raises WireloreError."""
    survey = _read(source)
    if survey.topology.gpu_count == 0:
        raise NoGpuError(f"{source} describes a machine without GPUs", cure=_CURE)
    return survey


def read_this_machine() -> Topology:
    """The driver's facts joined with the host's. Raises NoGpuError where there is no GPU or driver."""
    from probe.sources.host import read_host, with_host
    from probe.sources.host_state import read_host_state, with_host_state
    from probe.sources.nvml import read_nvml

    return with_host_state(with_host(read_nvml(), read_host()), read_host_state())


def read_bytes(data: bytes, *, where: str) -> Topology:
    """Whatever machine a file holds. Raises SourceError when it is of no known kind, or NoGpuError as it did."""
    return _survey_of(data, where).topology


def _survey_of(data: bytes, where: str) -> Survey:
    if not data or data.isspace():
        raise SourceError(f"{where} is empty", cure=_CURE)
    data = _as_utf8(data)
    head = data[:_HEAD]
    if head.lstrip()[:1] != b"{":
        return Survey(read_text(_decode(data, where), where=where))
    if b'"record_version"' in head:
        from probe.sources.record import decode_record, replay

        return Survey(replay(decode_record(data, where=where)))
    from probe.sources.rocm import looks_like_rocm, read_rocm

    if looks_like_rocm(head.decode("utf-8", "replace")):
        return Survey(read_rocm(_decode(data, where), where=where))
    from probe.store import decode_survey

    return decode_survey(data, where=where)


def _as_utf8(data: bytes) -> bytes:
    """JSON as Windows shells write it (a byte order mark, UTF-16) made plain; everything else as it is."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data[:TEXT_LIMIT_BYTES].decode("utf-16", "replace")
        return text.encode() if text[:_HEAD].lstrip()[:1] == "{" else data
    return data.removeprefix(b"\xef\xbb\xbf")


def read_text(text: str, *, where: str) -> Topology:
    """Any text that describes a machine, several outputs in one dump too. Raises SourceError when it is of no kind."""
    head = _XML_PROLOGUE.sub("", text[: 16 * _HEAD])[:_HEAD]
    if head.startswith("<") and (topology := _read_as(_XML_KINDS, head, text, where)) is not None:
        return topology
    low = text.lower()
    kinds = _TEXT_KINDS if any(word in low for word in _AMD_WORDS) else _TEXT_KINDS[1:]
    if (topology := _read_as(kinds, text, text, where)) is not None:
        return _with_other_outputs(topology, text, where)
    if (log := _SMI_LOG.search(text)) is not None:
        return read_text(log.group(), where=where)
    raise SourceError(f"{where} holds no topology that can be read", cure=_CURE)


def _read_as(kinds: tuple[str, ...], looked_at: str, text: str, where: str) -> Topology | None:
    """The text by the first source that knows it; None where none does."""
    for kind in kinds:
        module, _, name = kind.partition(".")
        source = import_module(f"probe.sources.{module}")
        if getattr(source, f"looks_like_{name}")(looked_at):
            topology = getattr(source, f"read_{name}")(text, where=where)
            return topology if isinstance(topology, Topology) else None
    return None


def _with_other_outputs(topology: Topology, text: str, where: str) -> Topology:
    """A dump may hold `nvidia-smi nvlink -s` and `nvidia-smi -q -x` of the same machine beside the matrix."""
    from probe.merge import completed

    if (log := _SMI_LOG.search(text)) is not None:
        from probe.sources.smi_xml import read_smi

        topology = completed(topology, read_smi(log.group(), where=where))
    if "nvlink" in text.lower():
        from probe.sources.nvlink_text import looks_like_nvlink, with_nvlink_status

        if looks_like_nvlink(text) and any(g.nvlinks_total is None for g in topology.nodes[0].shape.gpus):
            return with_nvlink_status(topology, text, where=where)
    return topology


def _read(source: str) -> Survey:
    if source.startswith("machine:"):
        from probe.sources.machines import machine

        return Survey(machine(source))
    where = "standard input" if source == "-" else source
    return _survey_of(read_file(source), where)


def read_file(source: str) -> bytes:
    """A file's bytes, or those of standard input ('-'), within the limit of its kind. Raises SourceError."""
    where = "standard input" if source == "-" else source
    try:
        with os.fdopen(0, "rb", closefd=False) if source == "-" else FilePath(source).open("rb") as stream:
            return _bounded(stream, where)
    except OSError as error:
        raise SourceError(f"cannot read {where}: {error.strerror}", cure=_CURE) from error


def _bounded(stream: BufferedReader, where: str) -> bytes:
    """All of it, or a refusal before more than the limit of its kind is in memory."""
    limit = DOCUMENT_LIMIT_BYTES if stream.peek(_HEAD).lstrip()[:1] == b"{" else TEXT_LIMIT_BYTES
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise SourceError(f"{where} is larger than {limit >> 20} MiB", cure=_CURE)
    return data


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
