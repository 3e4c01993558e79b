"""Connections to the file of a tape, and the one place where SQLite's errors become ours."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import apsw

from onetape.clock import now_ns
from onetape.errors import (
    OnetapeError,
    TapeBusy,
    TapeDamaged,
    TapeFull,
    TapeMissing,
    TapeReadOnly,
    TapeTooNew,
    TapeUnusable,
)
from onetape.store import layout, wal

Durability = Literal["process", "power"]

#: A commit of one tick writes one page to the log, whole and checksummed. A bare insert takes 7.5 µs with SQLite's
#: usual page of 4 KiB, 5.9 with 2 and 5.0 with 1. The price: 10 MB of chunks take 3.1 ms to read, 1.7 with 4 KiB.
_PAGE_BYTES = 1024
#: WAL pages between two checkpoints: 16 MB. A checkpoint costs two fsyncs, so rarer is faster; more would make
#: a reader that starts search a longer log.
CHECKPOINT_PAGES = 16 * 2**20 // _PAGE_BYTES
_WAL_BYTES_KEPT = 64 * 2**20
_PAGE_CACHE_KIB = 16 * 1024

Upgrade = Callable[[apsw.Connection], None]
#: From which version: what makes it the next one, inside one transaction. Version 1 is the first.
UPGRADES: dict[int, Upgrade] = {1: lambda connection: _to_2(connection)}


def _execute(connection: apsw.Connection, statements: str) -> None:
    connection.execute(statements).fetchall()


def _to_2(connection: apsw.Connection) -> None:
    from onetape.store import minutes  # only an upgrade needs it

    _execute(connection, layout.CHANGES_2)
    minutes.take_over(connection)


def translate(error: Exception, path: Path, act: str) -> OnetapeError:
    """Return the error of ours for an error of SQLite's that was met while we tried to `act`."""
    what = f"cannot {act} {path}: {error}"
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return TapeBusy(what, hint="another process held the write lock too long; nothing was stored, try again")
    if isinstance(error, apsw.FullError) or (isinstance(error, apsw.IOError) and _no_room(path)):
        return TapeFull(what, hint="the disk is full; nothing of this batch was stored; free space and try again")
    if isinstance(error, apsw.NotADBError):
        return TapeUnusable(what, hint="the file is not a tape, or its first page is damaged")
    if isinstance(error, apsw.CorruptError):
        return TapeDamaged(what, hint="stop the writers, copy the file away, restore a backup")
    if isinstance(error, apsw.ReadOnlyError | apsw.PermissionsError):
        return TapeReadOnly(what, hint='make the file writable, or open it with mode="r"')
    if isinstance(error, apsw.CantOpenError):
        return TapeUnusable(what, hint="check that the folder exists and may be written")
    if isinstance(error, apsw.IOError):
        return TapeUnusable(what, hint="the disk or the file system failed; what append returned for is kept")
    return TapeUnusable(what)


def _no_room(path: Path) -> bool:
    """Return whether the disk is full: making the log's index then fails as if the disk were broken."""
    try:
        return shutil.disk_usage(path.parent).free < 32 * _PAGE_BYTES  # the size in which the index grows
    except OSError:
        return False


def connect(
    path: Path, *, mode: Literal["rw", "r"], durability: Durability = "process", busy_timeout_ms: int = 10_000
) -> apsw.Connection:
    """Return a connection to the tape at `path`, created or upgraded where that is needed and allowed.

    Raises the TapeError that fits; never leaves a file behind that it could not make a tape of.
    """
    try:
        found, folder = path.exists(), path.parent.is_dir()
    except (OSError, ValueError) as error:
        raise TapeUnusable(f"cannot look at {str(path)!r}: {error}", hint="check the path and its rights") from error
    if found and path.is_dir():
        raise TapeUnusable(f"{path} is a directory", hint="give the path of a file, such as market_data.db")
    if mode == "r" and not found:
        raise TapeMissing(f"no tape at {path}", hint="append something first, or check the path")
    if not folder:
        raise TapeUnusable(f"no folder {path.parent}", hint="create it, or check the path")
    try:
        connection = _open(path, mode, busy_timeout_ms)
        try:
            logged = _logged(path)
            if logged:  # until it is known to be ours, it must not reach the file
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            _check(connection, path, mode, busy_timeout_ms, logged)
            if logged:
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
            _configure(connection, mode, durability, busy_timeout_ms)
        except BaseException:
            connection.close()
            raise
    except apsw.Error as error:
        raise translate(error, path, "open") from error
    return connection


def _open(path: Path, mode: str, busy_timeout_ms: int) -> apsw.Connection:
    """Return a connection that is patient from its first look: the last to close a tape locks it for a moment."""
    if mode == "rw":
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        connection.set_busy_handler(patience(busy_timeout_ms))
        if connection.readonly("main"):
            connection.close()
            raise TapeReadOnly(f"{path} may not be written", hint='make it writable, or open it with mode="r"')
        return connection
    flags = apsw.SQLITE_OPEN_READONLY
    connection = apsw.Connection(str(path), flags=flags)
    connection.set_busy_handler(patience(busy_timeout_ms))
    try:
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
        return connection
    except (apsw.CantOpenError, apsw.ReadOnlyError):
        connection.close()
        wal = layout.wal_path(path)
        if wal.exists() and wal.stat().st_size:
            raise
        # A folder that may not be written and no log: nobody is writing, so the file can be read as it is.
        uri = path.absolute().as_uri() + "?immutable=1"
        frozen = FrozenConnection(uri, flags=flags | apsw.SQLITE_OPEN_URI)
        frozen.set_busy_handler(patience(busy_timeout_ms))
        return frozen


class FrozenConnection(apsw.Connection):
    """A connection to a tape that nobody can be writing: it sees the file as it was when it was opened."""


def frozen_facts(path: Path) -> tuple[int, int, bool]:
    """Return what changes when somebody does write to such a tape after all."""
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size, layout.wal_path(path).exists()


#: How long a short look from the outside waits for a lock, ms.
_LOOK_MS = 2_000


def patience(timeout_ms: int) -> Callable[[int], bool]:
    """Return a busy handler that tries again at short random intervals, so that no writer starves."""
    started = 0.0

    def wait(tries: int) -> bool:
        nonlocal started
        now = time.monotonic()
        if tries == 0:
            started = now
        if (now - started) * 1000 >= timeout_ms:
            return False
        time.sleep(random.uniform(0.00005, 0.0005 if tries < 50 else 0.003))
        return True

    return wait


def _pragma(connection: apsw.Connection, name: str) -> int:
    value = connection.pragma(name)
    return int(value) if value is not None else 0


def _wal(connection: apsw.Connection, timeout_ms: int) -> None:
    """Turn the log on. SQLite asks no busy handler for the lock this takes, so we wait ourselves."""
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        try:
            connection.pragma("journal_mode", "wal")
            return
        except apsw.BusyError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(random.uniform(0.0005, 0.003))


def _logged(path: Path) -> bool:
    try:
        return layout.wal_path(path).stat().st_size > 0
    except FileNotFoundError:
        return False


def misfit(path: Path) -> str | None:
    """Return why the log beside a file cannot be its own, as far as a short look tells, or None. Changes nothing."""
    if not _logged(path) or not wal.is_tape(path):
        return None
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_handler(patience(_LOOK_MS))
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("BEGIN")
        return wal.misfit(connection, path)
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
        return str(error)
    finally:
        connection.close()


def _check(connection: apsw.Connection, path: Path, mode: str, timeout_ms: int, logged: bool) -> None:
    connection.execute("BEGIN")  # another process may be making the tape: what is read must be of one moment
    try:
        empty = connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
        application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
        ours = application == layout.APPLICATION_ID and 0 < version <= layout.FORMAT_VERSION
        wrong = wal.misfit(connection, path) if logged and ours else None
    finally:
        connection.execute("COMMIT")
    if wrong is not None:
        raise TapeDamaged(
            f"{layout.wal_path(path)} does not belong to {path.name}: {wrong}",
            hint="nothing was changed; onetape doctor --repair sets that log aside",
        )
    if empty and application == 0:
        if mode == "r":
            raise TapeUnusable(f"{path} is empty", hint="it is not a tape yet; append something first")
        _create(connection, timeout_ms)
        return
    if application != layout.APPLICATION_ID:
        raise TapeUnusable(f"{path} is a database, but not a tape", hint="give another path; it was not touched")
    if version > layout.FORMAT_VERSION:
        raise TapeTooNew(
            f"{path} has format {version}, this onetape reads up to {layout.FORMAT_VERSION}",
            hint="install a newer onetape",
        )
    if version < layout.FORMAT_VERSION:
        if mode == "r":
            raise TapeUnusable(f"{path} has the older format {version}", hint="open it once for writing to upgrade it")
        upgrade(connection, path, UPGRADES, layout.FORMAT_VERSION)


def _create(connection: apsw.Connection, timeout_ms: int) -> None:
    connection.pragma("page_size", _PAGE_BYTES)
    connection.pragma("auto_vacuum", "INCREMENTAL")  # must be set before the first table; gives space back later
    _wal(connection, timeout_ms)
    connection.execute("BEGIN IMMEDIATE")
    with_rollback = True
    try:
        if connection.execute("SELECT count(*) FROM sqlite_schema").get == 0:  # no other process was faster
            connection.execute(layout.SCHEMA)
            connection.execute("INSERT INTO state VALUES (0, 0, 0, 0, ?)", (now_ns(),))
            connection.execute("INSERT INTO journal VALUES (0, 0, 0, x'')")
            _execute(connection, layout.CHANGES_2)
            connection.pragma("application_id", layout.APPLICATION_ID)
            connection.pragma("user_version", layout.FORMAT_VERSION)
        connection.execute("COMMIT")
        with_rollback = False
    finally:
        if with_rollback and connection.in_transaction:  # a full disk makes SQLite end it by itself
            connection.execute("ROLLBACK")


def upgrade(connection: apsw.Connection, path: Path, upgrades: dict[int, Upgrade], to_version: int) -> None:
    """Bring an older file to `to_version`: back it up beside itself, then change it in one transaction."""
    version = _pragma(connection, "user_version")
    backup = layout.backup_path(path, version)
    if not backup.exists():
        partial = backup.with_name(backup.name + ".partial")
        partial.unlink(missing_ok=True)
        connection.execute("VACUUM INTO ?", (str(partial),))
        partial.replace(backup)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in range(_pragma(connection, "user_version"), to_version):
            if step not in upgrades:
                raise TapeUnusable(f"{path} has format {step}, which this onetape cannot upgrade")
            upgrades[step](connection)
        connection.pragma("user_version", to_version)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk makes SQLite end it by itself
            connection.execute("ROLLBACK")
        raise


def _configure(connection: apsw.Connection, mode: str, durability: Durability, timeout_ms: int) -> None:
    connection.pragma("cache_size", -_PAGE_CACHE_KIB)
    if mode == "rw":
        _wal(connection, timeout_ms)
        # NORMAL: the log is not fsynced at commit, so a killed process loses nothing and a power cut at most
        # the last commits. FULL: fsynced at every commit.
        connection.pragma("synchronous", "FULL" if durability == "power" else "NORMAL")
        connection.pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        connection.pragma("journal_size_limit", _WAL_BYTES_KEPT)
    else:
        connection.pragma("query_only", True)


def move_log(connection: apsw.Connection) -> None:
    """Move what is in the log into the file, as far as no reader needs it, unless somebody else is at it already."""
    with contextlib.suppress(apsw.BusyError, apsw.LockedError):
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)


def log_is_long(path: Path) -> bool:
    """Return whether the log has outgrown what is kept of it."""
    try:
        return layout.wal_path(path).stat().st_size >= _WAL_BYTES_KEPT
    except FileNotFoundError:
        return False


def restart_log(connection: apsw.Connection, path: Path, patience_ms: int, busy_timeout_ms: int) -> None:
    """Begin the log anew if it has outgrown what is kept of it.

    Readers that overlap, each of them short, keep SQLite from doing that by itself, and the log would grow without
    end: this waits up to `patience_ms` for a moment without one. If there is none, the next seal tries again.
    """
    if not log_is_long(path):
        return
    connection.set_busy_handler(patience(patience_ms))
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except (apsw.BusyError, apsw.LockedError):
        return
    finally:
        connection.set_busy_handler(patience(busy_timeout_ms))
