"""The file of a ledger: made whole, opened by one writer at a time, refused with a reason."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import NoReturn

import apsw

from onetape.errors import LedgerBusy, LedgerUnusable
from onetape.migrate.ledger import packs

#: 2: with packs.
FORMAT = 2
#: "OTLG": tells a ledger from any other SQLite file.
APPLICATION_ID = 0x4F544C47

_SCHEMA = """
CREATE TABLE state(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE run(id INTEGER PRIMARY KEY, command TEXT, started_ns INTEGER, ended_ns INTEGER, report TEXT);
CREATE TABLE rule(id INTEGER PRIMARY KEY, step TEXT, kind TEXT);
CREATE TABLE batch(id INTEGER PRIMARY KEY, run INTEGER, settled_ns INTEGER);
CREATE TABLE entry(id INTEGER PRIMARY KEY, rule INTEGER, source_db INTEGER, key BLOB, target BLOB,
    read BLOB, written BLOB, expire_ms INTEGER, outcome INTEGER, error TEXT, hash INTEGER);
"""


def lock(path: Path) -> int:
    """Return the descriptor that keeps other writers out until it is closed. Raises LedgerBusy, LedgerUnusable."""
    beside = path.with_name(path.name + ".lock")
    try:
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LedgerUnusable(
            f"ledger {path}: {error.strerror}", hint="give a path in a directory that can be written"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise LedgerBusy(
            f"another migrator is at work with ledger {path}",
            hint="wait for it, or look at onetape migrate status",
        ) from error
    return fd


def connect(path: Path, mode: str) -> apsw.Connection:
    """Open the ledger at `path`, in mode "w" made or brought up to date. Raises LedgerBusy, LedgerUnusable."""
    if mode == "w" and not path.exists():  # nobody is to see a ledger that is half made, or be left with one by a kill
        made = path.with_name(path.name + ".new")
        for part in ("", "-wal", "-shm"):
            made.with_name(made.name + part).unlink(missing_ok=True)
        _connected(made, mode).close()
        made.rename(path)
    return _connected(path, mode)


def _connected(path: Path, mode: str) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READONLY if mode == "r" else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    try:
        db = apsw.Connection(str(path), flags=flags)
    except apsw.Error as error:
        refuse(path, error)
    try:
        db.set_busy_timeout(5000)
        application, version = db.pragma("application_id"), db.pragma("user_version")
        new = application == 0 and version == 0 and not db.pragma("schema_version")
        if new and mode == "w":
            db.pragma("journal_mode", "wal")
        elif application != APPLICATION_ID:
            raise LedgerUnusable(f"{path} is not a ledger", hint="give another path with --ledger")
        elif version > FORMAT:
            raise LedgerUnusable(f"ledger {path} has format {version}, newer than {FORMAT}", hint="update onetape")
        if mode == "w" and version < FORMAT:
            with db:
                db.execute(_SCHEMA * new + packs.SCHEMA)
                db.pragma("application_id", APPLICATION_ID)
                db.pragma("user_version", FORMAT)
        # What a killed process wrote is safe in the WAL; only a power cut can lose the last moments, and then
        # the keys themselves still say what was copied.
        db.pragma("synchronous", "normal")
        # A checkpoint waits for the disk: with the usual 1,000 pages half the time of writing packs was that.
        db.pragma("wal_autocheckpoint", 8000)
        db.pragma("temp_store", "file")
    except apsw.Error as error:
        db.close()
        refuse(path, error)
    except BaseException:
        db.close()
        raise
    return db


def refuse(path: Path, error: apsw.Error) -> NoReturn:
    """Say what is wrong with a ledger as an error of ours, and what to do."""
    if isinstance(error, apsw.FullError):
        raise LedgerUnusable(
            f"ledger {path}: the disk is full",
            hint="free space and run again: what was intended is settled first, nothing is lost",
        ) from error
    if isinstance(error, (apsw.NotADBError, apsw.CorruptError)):
        raise LedgerUnusable(
            f"ledger {path} is damaged: {error}",
            hint="move it away and run again: targets are compared with their sources anew",
        ) from error
    if isinstance(error, apsw.BusyError):
        raise LedgerBusy(f"ledger {path} is locked", hint="another program has it open; close it") from error
    raise LedgerUnusable(f"ledger {path}: {error}", hint="see that the path can be written") from error
