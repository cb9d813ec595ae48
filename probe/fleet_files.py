"""Thousands of surveys -> the hosts of a fleet, read and audited on all cores; what can't be read is named."""

from __future__ import annotations

import glob
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from probe.audit import audit, audit_beside_curves
from probe.checks.reading import is_of_gpus
from probe.errors import SourceError, UsageError, WireloreError, one_line
from probe.finding import Finding
from probe.fleet_audit import Deviation, FleetAudit, Host, Points, host_of, renumbered
from probe.outliers import audit_hosts, confirmed
from probe.outline import read_lean
from probe.sources.registry import read_file
from probe.store import decode_survey

T = TypeVar("T")

_AT_ONCE = 16
"""Files that a process reads before it answers: their points travel once."""
_WORTH_PROCESSES = 64
"""Files from which on a second process earns what starting it costs."""
_MOST_PROCESSES = 16
_CURE = "Name a folder, or a pattern in quotes: --fleet 'surveys/*.json'."


def fleet_files(pattern: str) -> list[str]:
    """The .json files in and below a folder, or those that a pattern names (`**`: any folders). Raises UsageError."""
    if Path(pattern).is_dir():
        found = [str(path) for path in Path(pattern).rglob("*.json")]
    else:
        found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob knows no absolute pattern
    files = sorted(name for name in found if not Path(name).is_dir())
    if not files:
        raise UsageError(f"no file is named by {pattern[:200]}", cure=_CURE)
    return files


def audit_files(files: Sequence[str], *, processes: int | None = None) -> FleetAudit:
    """The fleet of these surveys. Raises SourceError where none of them can be read."""
    points = Points()
    hosts: list[Host] = []
    unreadable: list[tuple[str, str]] = []
    for batch in _each(_read, files, processes):
        numbers = points.adopted(batch.points)
        hosts += [renumbered(host, numbers) for host in batch.hosts]
        unreadable += batch.unreadable
    if not hosts:
        raise SourceError(
            f"none of {len(files)} files is a survey: {unreadable[0][1]}",
            cure="Give what `wirelore measure -o FILE` or `wirelore probe -o FILE` wrote.",
        )
    fleet = audit_hosts(hosts, points, _confirmed, unreadable=unreadable)
    closer = fleet.worth_a_closer_look
    batches = _each(_look, [fleet.hosts[n].file for n in closer], processes)
    told = (findings for batch in batches for findings in batch)
    return fleet.looked_at({n: found for n, found in zip(closer, told, strict=True) if found is not None})


@dataclass(frozen=True, slots=True)
class _Batch:
    hosts: tuple[Host, ...]
    unreadable: tuple[tuple[str, str], ...]
    points: Points


def _each(work: Callable[[Sequence[str]], T], files: Sequence[str], processes: int | None) -> Iterator[T]:
    """The work done on batches of files, in their order."""
    parts = [files[at : at + _AT_ONCE] for at in range(0, len(files), _AT_ONCE)]
    processes = processes or _processes(len(files))
    if processes == 1:
        yield from map(work, parts)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # A fork shares what is imported; there are no threads here that it could cut in two.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("fork"), initializer=_ignore_interrupts)
    try:
        yield from pool.map(work, parts)
    except BrokenProcessPool as error:
        raise SourceError(
            "a process that reads surveys was killed, perhaps since memory ran out", cure="Give fewer files at once."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(files: Sequence[str]) -> _Batch:
    points = Points()
    hosts, unreadable = [], []
    for file in files:
        try:
            hosts.append(_host(file, points))
        except WireloreError as error:
            unreadable.append((file, one_line(error.problem)))
        except Exception as error:
            # One survey that a check cannot cope with must not cost the verdict on thousands.
            unreadable.append((file, one_line(f"it cannot be audited: {type(error).__name__}: {error}")))
    return _Batch(tuple(hosts), tuple(unreadable), points)


def _host(file: str, points: Points) -> Host:
    """Without the verdict on its curves, which is a matter of its equals at first: it takes longer than all the
    rest."""
    survey = read_lean(file)
    if survey.topology.gpu_count == 0:
        raise SourceError(f"{file} describes a machine without GPUs", cure=_CURE)
    has_curves = any(is_of_gpus(curve) for curve in survey.curves)
    found = audit_beside_curves(replace(survey, curves=())) if has_curves else audit(survey)
    return host_of(survey, file, points, found)


def _look(files: Sequence[str]) -> list[tuple[Finding, ...] | None]:
    """All findings of each; None where a file is gone or a check can't cope with it: what is known stands."""
    found: list[tuple[Finding, ...] | None] = []
    for file in files:
        try:
            found.append(audit(decode_survey(read_file(file), where=file)))
        except Exception:
            found.append(None)
    return found


def _confirmed(host: Host, deviations: Sequence[Deviation]) -> Sequence[Deviation]:
    try:
        return confirmed(decode_survey(read_file(host.file), where=host.file), deviations)
    except WireloreError:  # it was there a moment ago: what is known of it stands
        return deviations


def _processes(files: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _MOST_PROCESSES, files // _WORTH_PROCESSES))


def _ignore_interrupts() -> None:
    """Ctrl-C ends the command, which ends its processes; they have nothing to say about it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
