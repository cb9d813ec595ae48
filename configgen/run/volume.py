"""The volume that the engine's container mounts: it takes all files of a plan or none, from one command at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from configgen.run.group import digest
from configgen.run.messages import Proposal
from probe.errors import UsageError
from probe.store import write_atomically

RECORD = "facts.json"
_PENDING = ".pending"
_MOST_BYTES = 128 << 20
_AGAIN_S = 0.1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan in a folder was made for, so that a second run knows whether it still holds."""

    schema_version: int = 1
    version: str
    request: str
    node: int
    members: tuple[str, ...]
    """Facts of each node of the group, as digests; empty where the group did not meet ..."""
    facts: str
    """... and of this node."""
    addresses: tuple[str, ...]
    plan: str
    """Digest of plan.json: equal on all nodes."""
    survey: str
    """Digest of survey.json."""
    reason: str | None
    """Why the group did not meet."""
    unmeasured: str | None
    """Why nothing was measured, where that is no fault."""
    faults: tuple[str, ...]
    """What went wrong on the way, and makes the plan worse."""
    files: tuple[str, ...]


class Volume:
    """The folder: first all files beside the old ones, then all in their place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending = folder / _PENDING

    @contextlib.contextmanager
    def alone(self, ends_s: float) -> Iterator[None]:
        """Keeps other commands out of the folder, after waiting for the one that is in it. `ends_s` is of
        time.monotonic(). Raises UsageError where that one stays.

        The folder itself is locked, so nothing is left behind, and the kernel lets go with the process, however it
        ends. Network file systems without locks leave those of folders to the kernel too (Linux, fs/locks.c); where
        there is none at all, nobody is kept out.
        """
        with contextlib.ExitStack() as held:
            made = self._lock(held, ends_s)
            held.callback(_take_away_empty, made)
            yield

    def _lock(self, held: contextlib.ExitStack, ends_s: float) -> list[Path]:
        """The folders that it made. One that can't be made or locked is left to the writing, which says why."""
        made: list[Path] = []
        while True:
            try:
                made = [path for path in (self.folder, *self.folder.parents) if not path.exists()] or made
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
                held.callback(os.close, lock)
                self._wait_for(lock, ends_s)
            except OSError:
                return made
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), self.folder.stat()):
                    return made
            # else it was waited for somebody who took the folder away again

    def _wait_for(self, lock: int, ends_s: float) -> None:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                left_s = ends_s - time.monotonic()
                if left_s <= 0:
                    raise UsageError(
                        f"another `wirelore init` is at work in {self.folder}",
                        cure="Wait for its end, or give each a --folder of its own.",
                    ) from None
                time.sleep(min(_AGAIN_S, left_s))
            else:
                return

    def record(self) -> Record | None:
        """Of the plan that counts; None without one, and for what nobody here wrote."""
        return _record(self.folder / RECORD)

    def pending(self) -> Record | None:
        """Of a plan that was staged and neither published nor discarded."""
        return _record(self._pending / RECORD)

    def held(self) -> Proposal | None:
        """The plan that counts, whole as it was written."""
        record = self.record()
        if record is None:
            return None
        plan, survey = (_text(self.folder / name) for name in ("plan.json", "survey.json"))
        if plan is None or survey is None or (digest(plan), digest(survey)) != (record.plan, record.survey):
            return None
        return Proposal(
            plan=plan,
            survey=survey,
            addresses=record.addresses,
            members=record.members,
            unmeasured=record.unmeasured,
            faults=record.faults,
        )

    def stage(self, files: dict[str, bytes]) -> None:
        """All that differs from what is there. Raises UsageError where there is no room or no right to write."""
        strays = self._strays() - files.keys()
        self.discard()
        with contextlib.suppress(OSError):
            self._remove(strays)
        changed = {name: data for name, data in files.items() if not _holds(self.folder / name, data, _mode(name))}
        if not changed:
            return
        for path in (self.folder / name for name in changed):
            if path.is_dir() and not path.is_symlink():  # found out when it is published, others may have started
                raise UsageError(f"cannot write into {self.folder}: {path.name} is a folder", cure="Take it away.")
        try:
            self._pending.mkdir(parents=True, exist_ok=True)
            for name, data in sorted(changed.items(), key=lambda file: file[0] == RECORD):
                write_atomically(self._pending / name, data)
                if _mode(name):
                    (self._pending / name).chmod(_mode(name))
        except OSError as error:
            self.discard()
            raise UsageError(
                f"cannot write into {self.folder}: {error.strerror}", cure="Name another with --folder."
            ) from error
        except UsageError as error:
            self.discard()
            raise UsageError(error.problem, cure="Make room, or name another folder with --folder.") from error

    def publish(self) -> None:
        """What was staged takes its place; what the last plan needed and this one doesn't is removed."""
        if not self._pending.is_dir():
            return
        former, record = self.record(), self.pending()
        try:
            names = sorted((path.name for path in self._pending.iterdir()), key=lambda name: name == RECORD)
            for name in names:
                if name == RECORD:  # last of all: who is killed before leaves a list of what is to be removed
                    self._remove(_files(former) - _files(record))
                (self._pending / name).replace(self.folder / name)
            self._pending.rmdir()
        except OSError as error:
            raise UsageError(
                f"cannot write into {self.folder}: {error.strerror}", cure="Name another with --folder."
            ) from error

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            for path in self._pending.iterdir():
                path.unlink()
            self._pending.rmdir()

    def _strays(self) -> set[str]:
        """Files of a plan that never counted: its command was killed while it published."""
        half = _files(self.pending())
        staged = {path.name for path in self._pending.iterdir()} if half else set()
        return half - staged - _files(self.record())

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)


def _files(record: Record | None) -> set[str]:
    """Plain names alone: what stands in a record may have been put there by somebody else."""
    return {name for name in (record.files if record else ()) if Path(name).name == name}


def _take_away_empty(folders: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _record(path: Path) -> Record | None:
    text = _text(path)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Record)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        return data.decode() if len(data) <= _MOST_BYTES else None
    except (OSError, UnicodeDecodeError):
        return None


def _mode(name: str) -> int:
    """What must be allowed; 0 for what the process's own mask says."""
    return 0o755 if name == "start" else 0


def _holds(path: Path, data: bytes, mode: int) -> bool:
    try:
        told = path.stat()
        fits = told.st_size == len(data) and told.st_mode & mode == mode
        return path.is_file() and fits and path.read_bytes() == data
    except OSError:
        return False
