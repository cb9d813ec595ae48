"""Audits kept in a local SQLite file: what was found, what was measured, and under which driver and library."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from probe.drift import Figure, Link, MachineHistory, Point, Record, Series, figures
from probe.errors import UsageError, one_line
from probe.finding import Finding
from probe.islands import fingerprint
from probe.measurement import Survey
from probe.topology import GpuRef, Topology

if TYPE_CHECKING:
    import sqlite3

MOST_AUDITS = 500
"""Of one machine; keeping one more drops the oldest. An HGX box with all its curves takes about 25 KB an audit, so its
history stays below 15 MB: 16 months of nightly audits."""
_APPLICATION = 0x776C6F72
"""SQLite's application_id of these files: 'wlor'."""
_WAIT_S = 10.0
_MOST_TEXT = 400
_MOST_FACTS = 200

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE machines(id INTEGER PRIMARY KEY, name TEXT NOT NULL, nodes INTEGER NOT NULL, lab INTEGER NOT NULL);
    CREATE TABLE gpus(uuid TEXT, machine INTEGER, PRIMARY KEY(uuid, machine)) WITHOUT ROWID;
    CREATE TABLE audits(id INTEGER PRIMARY KEY, machine INTEGER NOT NULL, audited_at TEXT NOT NULL, measured_at TEXT,
                        measurement TEXT, facts TEXT NOT NULL);
    CREATE INDEX audits_of ON audits(machine, audited_at);
    CREATE TABLE findings(audit INTEGER, code TEXT, severity TEXT, times INTEGER NOT NULL,
                          PRIMARY KEY(audit, code, severity)) WITHOUT ROWID;
    CREATE TABLE links(id INTEGER PRIMARY KEY, told TEXT NOT NULL UNIQUE);
    CREATE TABLE times(audit INTEGER, link INTEGER, size_bytes INTEGER, time_s REAL NOT NULL, low_s REAL, high_s REAL,
                       PRIMARY KEY(audit, link, size_bytes)) WITHOUT ROWID;
    CREATE TABLE starts(audit INTEGER, link INTEGER, time_s REAL NOT NULL, low_s REAL, high_s REAL,
                        PRIMARY KEY(audit, link)) WITHOUT ROWID
    """,
)
"""From each version of the file to the next; a file's version (user_version) is how many were applied to it."""

_BY_AUDIT = ("times", "starts", "findings")


@dataclass(frozen=True, slots=True)
class Kept:
    """Where an audit was put. `figures` is 0 where nothing was measured since the one before."""

    file: Path
    figures: int
    dropped: int
    """Older audits of this machine that made room."""


def history_file() -> Path:
    """$XDG_STATE_HOME/wirelore/history.sqlite, by default below ~/.local/state. A relative value of the variable is
    ignored, as the XDG Base Directory Specification asks. Raises UsageError without a home."""
    told = os.environ.get("XDG_STATE_HOME", "")
    try:
        base = Path(told) if told and Path(told).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise UsageError("there is no home folder to keep a history in", cure="Name a file: --history FILE.") from error
    return base / "wirelore" / "history.sqlite"


def keep(survey: Survey, findings: Sequence[Finding], path: Path | None = None, *, audited_at: str) -> Kept:
    """Adds one audit, whole or not at all; several may keep at the same time. Raises UsageError.

    Its figures must be this machine's own, not recalled from an equal one; those that stand in the file already are
    not repeated.
    """
    file = path or history_file()
    found = list(figures(survey))
    measurement = _measurement(found)
    with _opened(file, writing=True) as db:
        machine = _machine(db, survey)
        if (
            measurement
            and db.execute(
                "SELECT 1 FROM audits WHERE machine = ? AND measurement = ?", (machine, measurement)
            ).fetchone()
        ):
            found = []
        row = (machine, _instant(audited_at), survey.measured_at, measurement, _facts(survey))
        audit = db.execute(
            "INSERT INTO audits(machine, audited_at, measured_at, measurement, facts) VALUES(?, ?, ?, ?, ?)", row
        ).lastrowid
        counted = Counter((finding.code, finding.severity.value) for finding in findings)
        db.executemany("INSERT INTO findings VALUES(?, ?, ?, ?)", [(audit, *which, n) for which, n in counted.items()])
        _insert(db, audit or 0, found)
        old = "SELECT id FROM audits WHERE machine = ? ORDER BY audited_at DESC, id DESC LIMIT -1 OFFSET ?"
        dropped = _drop(db, [n for (n,) in db.execute(old, (machine, MOST_AUDITS))])
    return Kept(file, len(found), dropped)


def recall_history(path: Path | None = None, *, since: str | None = None) -> tuple[MachineHistory, ...]:
    """What was kept, machine by machine, the one audited last first. `since` is ISO 8601. Raises UsageError."""
    file = path or history_file()
    start = _instant(since) if since is not None else ""
    with _opened(file, writing=False) as db, _understood(file):
        machines = db.execute("SELECT id, name, nodes, lab FROM machines").fetchall()
        told = [(_records(db, n, start), str(name), int(nodes), bool(lab), n) for n, name, nodes, lab in machines]
        told = sorted((one for one in told if one[0]), key=lambda one: one[0][-1].audited_at, reverse=True)
        links = {number: _link(text) for number, text in db.execute("SELECT id, told FROM links")}
        return tuple(
            MachineHistory(name, nodes, lab, records, _series(db, n, start, links))
            for records, name, nodes, lab, n in told
        )


def prune(before: str, path: Path | None = None) -> int:
    """Drops the audits before this moment (ISO 8601) and gives the room back; how many. Raises UsageError."""
    file = path or history_file()
    with _opened(file, writing=True, create=False) as db:
        dropped = _drop(
            db, [n for (n,) in db.execute("SELECT id FROM audits WHERE audited_at < ?", (_instant(before),))]
        )
    if dropped:
        with _told(file), _connected(file) as db:
            db.execute("VACUUM")
    return dropped


def _insert(db: sqlite3.Connection, audit: int, found: Sequence[Figure]) -> None:
    numbers: dict[Link, int] = {}
    for link in dict.fromkeys(figure.link for figure in found):
        told = json.dumps(asdict(link), separators=(",", ":"))
        db.execute("INSERT OR IGNORE INTO links(told) VALUES(?)", (told,))
        numbers[link] = db.execute("SELECT id FROM links WHERE told = ?", (told,)).fetchone()[0]
    sized = [
        (audit, numbers[f.link], f.size_bytes, f.time_s, *(f.interval_s or (None, None)))
        for f in found
        if f.size_bytes is not None
    ]
    starts = [
        (audit, numbers[f.link], f.time_s, *(f.interval_s or (None, None))) for f in found if f.size_bytes is None
    ]
    db.executemany("INSERT OR REPLACE INTO times VALUES(?, ?, ?, ?, ?, ?)", sized)
    db.executemany("INSERT OR REPLACE INTO starts VALUES(?, ?, ?, ?, ?)", starts)


def _drop(db: sqlite3.Connection, audits: Sequence[int]) -> int:
    for number in audits:
        for table in _BY_AUDIT:
            db.execute(f"DELETE FROM {table} WHERE audit = ?", (number,))  # noqa: S608 - a constant
        db.execute("DELETE FROM audits WHERE id = ?", (number,))
    if audits:
        db.execute("DELETE FROM machines WHERE id NOT IN (SELECT machine FROM audits)")
        db.execute("DELETE FROM gpus WHERE machine NOT IN (SELECT id FROM machines)")
    return len(audits)


def _machine(db: sqlite3.Connection, survey: Survey) -> int:
    """The machine with one of these GPUs; where their UUIDs are unknown on either side, the one with this name."""
    topology = survey.topology
    uuids = [gpu.uuid[:_MOST_TEXT] for node in topology.nodes for gpu in node.gpus if gpu.uuid is not None]
    name, nodes, lab = _name(topology), len(topology.nodes), survey.lab is not None
    known = db.execute("SELECT id, name FROM machines WHERE nodes = ? AND lab = ? ORDER BY id DESC", (nodes, lab))
    number: int | None = None
    for one, its_name in known.fetchall():
        its_gpus = {uuid for (uuid,) in db.execute("SELECT uuid FROM gpus WHERE machine = ?", (one,))}
        if its_gpus & set(uuids) or (its_name == name and not (its_gpus and uuids)):
            number = int(one)
            break
    if number is None:
        new = db.execute("INSERT INTO machines(name, nodes, lab) VALUES(?, ?, ?)", (name, nodes, lab))
        number = int(new.lastrowid or 0)
    db.execute("UPDATE machines SET name = ? WHERE id = ?", (name, number))
    db.executemany("INSERT OR IGNORE INTO gpus VALUES(?, ?)", [(uuid, number) for uuid in uuids])
    return number


def _name(topology: Topology) -> str:
    hosts = [node.hostname for node in topology.nodes if node.hostname]
    if not hosts:
        return fingerprint(topology)
    return one_line(hosts[0], 80) + (f" and {len(topology.nodes) - 1} more" if len(topology.nodes) > 1 else "")


def _facts(survey: Survey) -> str:
    """What may explain why a figure changed, as JSON."""
    topology = survey.topology
    wires = Counter(path.label for node in topology.nodes for path in node.shape.paths)
    gpus = Counter(gpu.name or "unknown model" for node in topology.nodes for gpu in node.shape.gpus)
    uuids = [gpu.uuid for node in topology.nodes for gpu in node.gpus]
    told = {
        "driver": ", ".join(sorted({node.driver_version for node in topology.nodes if node.driver_version})),
        "library": ", ".join(sorted({f"{c.key.backend} {c.key.library_version or '?'}" for c in survey.curves})),
        "GPUs": ", ".join(f"{n} x {name}" for name, n in gpus.items()),
        "wires": ", ".join(f"{label} x {n}" for label, n in sorted(wires.items())),
        "identity": "" if None in uuids else hashlib.sha256(json.dumps(uuids).encode()).hexdigest()[:12],
        "hostname": _name(topology),
        "fingerprint": fingerprint(topology),
        **{f"environment {name}": value for name, value in survey.environment[:_MOST_FACTS]},
    }
    return json.dumps({one_line(name, 80): one_line(value, _MOST_TEXT) for name, value in told.items() if value})


def _measurement(found: Sequence[Figure]) -> str | None:
    """What identifies a measurement: no two take the same times to the last digit."""
    return hashlib.sha256(repr([figure.time_s for figure in found]).encode()).hexdigest()[:20] if found else None


def _records(db: sqlite3.Connection, machine: int, since: str) -> tuple[Record, ...]:
    found: dict[int, list[tuple[str, str, int]]] = {}
    chosen = "FROM audits WHERE machine = ? AND audited_at >= ?"
    of_these = f"(SELECT id {chosen})"
    query = f"SELECT audit, code, severity, times FROM findings WHERE audit IN {of_these}"  # noqa: S608 - constants
    for audit, code, severity, times in db.execute(query, (machine, since)):
        found.setdefault(audit, []).append((str(code), str(severity), int(times)))
    query = f"SELECT audit, COUNT(*) FROM times WHERE audit IN {of_these} GROUP BY audit"  # noqa: S608 - constants
    points = dict(db.execute(query, (machine, since)).fetchall())
    rows = db.execute(f"SELECT id, audited_at, measured_at, facts {chosen} ORDER BY audited_at, id", (machine, since))
    return tuple(
        Record(
            number,
            str(audited_at),
            None if measured_at is None else str(measured_at),
            tuple((str(k), str(v)) for k, v in dict(json.loads(facts)).items()),
            tuple(found.get(number, ())),
            int(points.get(number, 0)),
        )
        for number, audited_at, measured_at, facts in rows
    )


def _series(db: sqlite3.Connection, machine: int, since: str, links: dict[int, Link]) -> tuple[Series, ...]:
    points: dict[tuple[int, int | None], list[Point]] = {}
    for table, size in (("times", "size_bytes"), ("starts", "NULL")):
        rows = db.execute(
            f"SELECT link, {size}, audit, time_s, low_s, high_s FROM {table} JOIN audits ON audits.id = audit "  # noqa: S608
            "WHERE machine = ? AND audited_at >= ? ORDER BY audited_at, audit",
            (machine, since),
        )
        for link, size_bytes, audit, time_s, low_s, high_s in rows:
            ends = None if low_s is None or high_s is None else (float(low_s), float(high_s))
            points.setdefault((link, size_bytes), []).append(Point(int(audit), float(time_s), ends))
    found = [Series(links[link], size_bytes, tuple(several)) for (link, size_bytes), several in points.items()]
    return tuple(sorted(found, key=lambda one: (one.link.order, one.size_bytes or 0)))


def _link(told: str) -> Link:
    fields = json.loads(told)
    members = tuple(GpuRef(int(one["node"]), int(one["gpu"])) for one in fields.pop("members"))
    return Link(members=members, **fields)


def _instant(text: str) -> str:
    """Any ISO 8601 date or time as UTC to the second, so that texts sort as moments do. Raises UsageError."""
    from datetime import datetime, timezone

    try:
        moment = datetime.fromisoformat(text[:40].replace("Z", "+00:00"))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text[:40]!r} is no date", cure="Write it like 2026-11-21 or 2026-11-21T08:00.") from error


@contextmanager
def _opened(file: Path, *, writing: bool, create: bool = True) -> Iterator[sqlite3.Connection]:
    """The file at the present version, in one transaction: all that is done in it stays, or nothing."""
    with _told(file):
        if writing and create:
            _make_room(file)
        elif not file.exists():
            raise UsageError(f"there is no history in {file}", cure="Start one: `wirelore audit --keep`.")
        with _connected(file, read_only=not (writing or os.access(file.parent, os.W_OK))) as db:
            version = _version(db, file)
            if writing:
                # A second process may be switching at this very moment; either of them is enough.
                with suppress(_sqlite().OperationalError):
                    db.execute("PRAGMA journal_mode = WAL").fetchone()
            if writing or version < len(MIGRATIONS):
                db.execute("BEGIN IMMEDIATE")
                _migrate(db, file)
            else:
                db.execute("BEGIN")
            yield db
            db.execute("COMMIT")


@contextmanager
def _connected(file: Path, *, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    # In a folder that nobody may write to, SQLite can't make the files that a reader of a WAL file shares.
    how = "mode=ro&immutable=1" if read_only else "mode=rw"
    db = _sqlite().connect(f"{file.resolve().as_uri()}?{how}", uri=True, timeout=_WAIT_S, isolation_level=None)
    try:
        yield db
    finally:
        db.close()


def _make_room(file: Path) -> None:
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))


def _version(db: sqlite3.Connection, file: Path) -> int:
    # Tables first: whoever creates the file at this moment commits them and the application's id as one.
    (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    (application,), (version,) = (
        db.execute(f"PRAGMA {what}").fetchone() for what in ("application_id", "user_version")
    )
    if tables and application != _APPLICATION:
        raise UsageError(f"{file} is a database, but no history of audits", cure="Name another file: --history FILE.")
    if version > len(MIGRATIONS):
        raise UsageError(
            f"{file} has version {version}, this program reads 1 to {len(MIGRATIONS)}",
            cure="Update wirelore, or name another file: --history FILE.",
        )
    return int(version)


def _migrate(db: sqlite3.Connection, file: Path) -> None:
    for number in range(_version(db, file), len(MIGRATIONS)):
        for statement in MIGRATIONS[number].split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number + 1}")
    db.execute(f"PRAGMA application_id = {_APPLICATION}")


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Turns whatever SQLite or the disk says into one line with a cure."""
    sqlite = _sqlite()
    try:
        yield
    except sqlite.OperationalError as error:
        reason, other = str(error), "Name another file: --history FILE."
        if "locked" in reason or "busy" in reason or "locking" in reason:
            cure = f"Try again when no other wirelore writes; on a network disk name a local one. {other}"
        elif "full" in reason or "disk I/O" in reason:
            cure = f"Make room on the disk, or drop old audits: `wirelore history --prune-before DATE`. {other}"
        elif "no such" in reason:
            cure = _broken(file)
        else:
            cure = f"Check who may write there. {other}"
        raise UsageError(f"the history {file}: {reason}", cure=cure) from error
    except sqlite.DatabaseError as error:
        raise UsageError(f"the history {file} cannot be read: {error}", cure=_broken(file)) from error
    except OSError as error:
        cure = "Name a file where you can write: --history FILE."
        raise UsageError(f"cannot open the history {file}: {error.strerror}", cure=cure) from error


@contextmanager
def _understood(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"the history {file} holds what wirelore never writes: {type(error).__name__} {error}"
        raise UsageError(problem, cure=_broken(file)) from error


def _broken(file: Path) -> str:
    return f"Move it away (mv {file.name} {file.name}.broken, with its -wal); the next `--keep` starts a new one."


def _sqlite() -> ModuleType:
    import sqlite3

    return sqlite3
