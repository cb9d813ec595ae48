"""Surveys that this user measured, by what decides their figures: fingerprint, driver, library. In the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from probe.errors import SourceError, WireloreError, one_line
from probe.islands import fingerprint
from probe.measurement import Survey
from probe.topology import Notice, Origin, Provenance, Topology

_FILES_READ = 16
"""Of one machine and driver: as many library versions as anyone keeps. The newest files are looked at."""
_MOST_BYTES = 128 << 20
_FITNESS = {True: 2, None: 1, False: 0}
"""Of a survey, by whether its NCCL is the installed one."""
_NCCL_RECORD = re.compile(r"nvidia_nccl_cu[0-9]{1,3}-([0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4})[^/]{0,40}\.dist-info")


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the cache knows of a machine, in which file, and what was wrong with other files."""

    survey: Survey | None = None
    """Told of the topology that was asked for ..."""
    measured_on: Topology | None = None
    """... and measured on this one, whose GPUs may be others."""
    file: Path | None = None
    library: str | None = None
    """What it was measured with, where that is not known to be what is installed: 'NCCL 2.27.3, here unknown'."""
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a survey was put, or the reason why it was not."""

    file: Path | None = None
    reason: str | None = None


def recall(topology: Topology) -> Survey | None:
    """The newest survey of equal wires under equal drivers, told of this topology; None where there is none."""
    return search(topology).survey


def search(topology: Topology, *, other_library: bool = False) -> Recalled:
    """As `recall`, with where it was found. Never raises: what cannot be read is left out with a notice.

    A survey with the NCCL that is installed here comes before newer ones. One with another NCCL counts only if
    `other_library` says so and there is no better one, with a notice.
    """
    wires = _wires(topology)
    folder = cache_folder()
    if wires is None or folder is None or not folder.is_dir():
        return Recalled()
    found, notices = [], []
    try:
        files = sorted(folder.glob(f"{wires}-*.json"), key=_age)[:_FILES_READ]
    except OSError:
        return Recalled()
    installed = installed_nccl() if files else None
    for file in files:
        try:
            survey = _read(file)
            if survey.lab is not None or not survey.is_measured or _wires(survey.topology) != wires:
                raise SourceError(f"{file} is no measurement of these wires", cure="Delete it.")
        except (WireloreError, OSError) as error:
            text = f"{one_line(str(error))} It is left out; `wirelore measure` writes a new one."
            notices.append(Notice("cache-unreadable", text))
        else:
            fitness = _FITNESS[_same_library(survey, installed)]
            if fitness or other_library:
                found.append((fitness, survey.measured_at or "", -_age(file), str(file), survey))
    if not found:
        return Recalled(notices=tuple(notices))
    _, _, _, name, best = max(found, key=lambda entry: entry[:4])
    library, same = None, _same_library(best, installed)
    if not same:
        library = f"{_libraries(best)}, here {installed or 'unknown'}"
    if same is False:
        what = f"NCCL {installed} is installed, and the figures of these wires are of {_libraries(best)}"
        notices.append(Notice("library-differs", f"{what}: they may be others now. `wirelore measure` takes new ones."))
    return Recalled(replace(best, topology=topology), best.topology, Path(name), library, tuple(notices))


def known(topology: Topology, *, elsewhere: bool) -> tuple[Survey, tuple[Notice, ...]]:
    """The topology with what was measured on such wires, and when, where and in which file that stands.

    `elsewhere` says whether it may have been on other GPUs. Never raises; the notices tell of what was left out.
    """
    found = search(topology, other_library=True)
    if found.survey is None or found.measured_on is None:
        return Survey(topology), found.notices
    name = found.measured_on.nodes[0].hostname
    same = same_gpus(found.measured_on, topology)
    if not (same or elsewhere):
        return Survey(topology), found.notices
    other = "on an equal machine" + (f", {name}" if name else "")
    source = f"cache {found.file}" + (f", {found.library}" if found.library else "")
    return with_origin(found.survey, source, "on this machine" if same else other), found.notices


def with_origin(survey: Survey, source: str, where: str = "") -> Survey:
    """The survey with an origin that says when, where and from which source its curves are."""
    when = survey.measured_at[:10] if survey.measured_at else "at an unknown time"
    text = f"{when} {where}".rstrip() + f" ({source})"
    return replace(survey, origins=(*survey.origins, Origin("curves", Provenance.MEASURED, text)))


def remember(survey: Survey) -> Kept:
    """Keeps a survey for `recall`, unless the cache holds a fuller one. Lab figures never enter: they are no GPU's.

    Never raises: a cache that can't be written is a reason, not a failure.
    """
    reason = _unfit(survey)
    if reason is not None:
        return Kept(reason=reason)
    wires, folder = _wires(survey.topology), cache_folder()
    if wires is None:
        return Kept(reason="not kept for later: the driver's version is unknown, so it might be another one by then")
    if folder is None:
        return Kept(reason="not kept for later: there is no home folder; set XDG_CACHE_HOME")
    libraries = sorted({curve.key.library_version or "" for curve in survey.curves})
    file = folder / f"{wires}-{_hashed(libraries)}.json"
    try:
        if not folder.is_dir():  # one that is there was made for more than this user: its mode is its owner's to say
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (fuller := _fuller(file, survey)) is not None:
            return Kept(reason=fuller)
        _write(file, survey)
    except (WireloreError, OSError) as error:
        return Kept(reason=f"not kept for later: {one_line(str(error))}")
    return Kept(file)


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/wirelore/surveys, by default below ~/.cache; None without a home. A relative value of the
    variable is ignored, as the XDG Base Directory Specification asks."""
    told = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(told) if told and Path(told).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "wirelore" / "surveys"


def installed_nccl() -> str | None:
    """Version of the NCCL that pip put beside this interpreter's torch, None where it put none there or several.

    Read off the name of the folder that records it (packaging.python.org, "Recording installed projects"): to import
    torch, or even importlib.metadata, takes longer than a plan.
    """
    for folder in sys.path:
        versions = set()
        with suppress(OSError):
            versions = {m[1] for entry in Path(folder).iterdir() if (m := _NCCL_RECORD.fullmatch(entry.name))}
        if versions:
            return versions.pop() if len(versions) == 1 else None
    return None


def _same_library(survey: Survey, installed: str | None) -> bool | None:
    """Whether its curves are of the NCCL that is installed, None where that cannot be known."""
    if not survey.curves:
        return True  # a GPU's own rates have nothing to do with it
    told = [(curve.key.backend, curve.key.library_version) for curve in survey.curves]
    if installed is None or any(backend != "nccl" or version is None for backend, version in told):
        return None
    return all(version == installed for _, version in told)


def _libraries(survey: Survey) -> str:
    told = {(curve.key.backend, curve.key.library_version) for curve in survey.curves}
    return " and ".join(sorted(f"{backend.upper()} {version or 'of unknown version'}" for backend, version in told))


def same_gpus(a: Topology, b: Topology) -> bool:
    """Whether two topologies are known to be of the very same GPUs, not only of equal ones."""
    uuids = [[gpu.uuid for node in t.nodes for gpu in node.gpus] for t in (a, b)]
    return uuids[0] == uuids[1] and None not in uuids[0]


def _unfit(survey: Survey) -> str | None:
    if survey.lab is not None:
        return "not kept for later: lab figures are no GPU's, and never stand for a machine's own"
    if not survey.is_measured:
        return "not kept for later: nothing was measured"
    if any(curve.key.backend == "gloo" for curve in survey.curves):
        return "not kept for later: gloo moves data through CPUs, so its figures are not these GPUs' own"
    return None


def _wires(topology: Topology) -> str | None:
    """The part of a file's name that stands for the wires, and the drivers node by node; None where one is unknown.

    Members of curves are numbered by node, so equal nodes in another order are other wires here.
    """
    drivers = [node.driver_version for node in topology.nodes]
    if None in drivers:
        return None
    whole = fingerprint(topology)
    kinds: dict[tuple[object, ...], str] = {}
    nodes = []
    for node in topology.nodes if len(drivers) > 1 else ():
        kind = (id(node.shape), *((gpu.is_usable, len(gpu.mig_instances)) for gpu in node.gpus))
        if kind not in kinds:
            kinds[kind] = fingerprint(Topology((node,)))
        nodes.append(kinds[kind])
    return f"{whole}-{_hashed([drivers, nodes])}"


def _hashed(parts: object) -> str:
    """A file name can hold it, whatever strings a driver reports."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _age(file: Path) -> float:
    try:
        return -file.stat().st_mtime
    except OSError:
        return 0.0


def _read(file: Path) -> Survey:
    from probe.store import decode_survey

    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        raise SourceError(f"{file} is no survey's file", cure="Delete it.")
    return decode_survey(file.read_bytes(), where=str(file))


_FULL_ENOUGH = 0.5
"""Of the points of an earlier survey: one that came to its end with fewer was asked for less, `--largest 64KiB`."""


def _fuller(file: Path, survey: Survey) -> str | None:
    """Why the file is the better one, if it is."""
    try:
        known = _read(file)
    except (WireloreError, OSError):
        return None
    much_less = survey.points < (known.points if survey.is_partial else known.points * _FULL_ENOUGH)
    if known.lab is not None or not much_less:
        return None
    when = f" of {known.measured_at[:10]}" if known.measured_at else ""
    return (
        f"not kept for later: {file} holds a fuller one{when}, {known.points:,} points to {survey.points:,}; "
        "measure longer, or delete it"
    )


def _write(file: Path, survey: Survey) -> None:
    from probe.store import encode_survey, write_atomically

    write_atomically(file, encode_survey(survey))
