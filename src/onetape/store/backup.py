"""Backups: a copy of a tape taken while it is written, proved before it gets its name; and the way back.

The copy is made of one moment: a read transaction is open on the source while its pages are copied, so that writers go
on, the copy never has to begin anew, and it ends after as many pages as the file had. The log grows meanwhile.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw
import msgspec

from onetape.errors import TapeDamaged, TapeFull, TapeInUse, TapeMissing, TapeTooNew, TapeUnusable, TargetExists
from onetape.store import ask, holders, layout, minutes, query, snapshots, sqlite
from onetape.store.catalog import Catalog
from onetape.store.query import Names
from onetape.store.snapshots import Digest

#: Pages copied between two looks at who wants to know: 4 MB, some ten milliseconds.
_PAGES_A_STEP = 4096

Progress = Callable[[int, int], None]


class BackupInfo(msgspec.Struct, frozen=True):
    """What a backup holds, all of it read again from the backup itself."""

    path: str
    format_version: int
    head: int
    records: int
    digest: str
    bytes: int


class RestorePlan(msgspec.Struct, frozen=True):
    """What a restore does, or has done: the backup it takes, and where what was there before is kept."""

    backup: BackupInfo
    to: str
    kept: str | None
    done: bool


def backup(connection: apsw.Connection, path: Path, to: Path, on_progress: Progress | None = None) -> BackupInfo:
    """Copy the tape behind `connection` to `to`, prove the copy, and only then give it its name.

    on_progress(bytes copied, bytes in all). The connection is used for nothing else meanwhile. Raises TargetExists,
    TapeFull, TapeDamaged, ChunkCorrupt; of a backup that failed nothing is left.
    """
    to = _free_target(to)
    size = path.stat().st_size + _size(layout.wal_path(path))
    _room(to.parent, size)
    partial = _partial(to)
    try:
        with query.snapshot(connection):
            head, removed = query.head(connection), _removed(connection)
            copy_pages(connection, partial, on_progress)
        names = Names(Catalog(), connection)
        of_source = snapshots.digest(lambda: _same(connection), lambda _: names, head)
        found = prove(partial)
        # What retention has removed since the copy was made is missing in the source, not in the copy.
        same = found.digest == of_source.digest or _removed(connection) != removed
        if found.head != head or not same:
            raise TapeDamaged(
                f"the copy of {path} is not what was copied: position {found.head}, not {head}, or other content",
                hint="check the disk; nothing was kept of the copy",
            )
        _sync(partial)
        os.link(partial, to)  # never over another file, which rename would do
        _sync(to.parent)
    except apsw.Error as error:
        raise sqlite.translate(error, to, "back up to") from error
    except FileExistsError as error:
        raise _taken(to) from error
    except OSError as error:
        raise TapeUnusable(f"cannot write {to}: {error}", hint="check the folder and the disk") from error
    finally:
        for leftover in (partial, layout.wal_path(partial), layout.index_path(partial)):
            leftover.unlink(missing_ok=True)
    return msgspec.structs.replace(found, path=str(to))


@contextmanager
def _same(connection: apsw.Connection) -> Iterator[apsw.Connection]:
    """Give one connection for every piece that is read."""
    yield connection


def _removed(connection: apsw.Connection) -> tuple[int, ...]:
    """Return what changes whenever records are removed."""
    return tuple(
        int(ask.value(connection, question) or 0)
        for question in (
            "SELECT pruned_seq FROM state",
            "SELECT sum(pruned_before_ns / 1000000) FROM symbol",
            "SELECT count(*) FROM damaged",
        )
    )


def copy_pages(source: apsw.Connection, to: Path, on_progress: Progress | None = None) -> None:
    """Copy every page of a tape as it is, whole or damaged, into a new file."""
    to.unlink(missing_ok=True)
    page = int(source.pragma("page_size"))
    target = apsw.Connection(str(to))
    try:
        target.pragma("synchronous", "OFF")  # it is synced as a whole before it gets its name
        with target.backup("main", source, "main") as copying:
            while not copying.done:
                copying.step(_PAGES_A_STEP)
                if on_progress is not None:
                    total = copying.page_count
                    on_progress((total - copying.remaining) * page, total * page)
    finally:
        target.close()


@contextmanager
def _frozen(path: Path) -> Iterator[apsw.Connection]:
    """Open a file that nobody writes, without making any other beside it."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(path.absolute().as_uri() + "?immutable=1", flags=flags)
    try:
        yield connection
    finally:
        connection.close()


def prove(path: Path) -> BackupInfo:
    """Read all of a backup: its pages, its format, every record. Raises the error that says what is wrong with it."""
    if not path.is_file():
        raise TapeMissing(f"no backup at {path}", hint="check the path")
    wal = layout.wal_path(path)
    if _size(wal):
        raise TapeUnusable(
            f"{path} has a log beside it ({wal.name}): it is a tape in use or a plain copy of one, not a backup",
            hint="make one with onetape backup",
        )
    try:
        with _frozen(path) as connection:
            version = int(connection.pragma("user_version") or 0)
            if connection.pragma("application_id") != layout.APPLICATION_ID:
                raise TapeUnusable(f"{path} is a database, but not a tape", hint="give a file that onetape wrote")
            if version > layout.FORMAT_VERSION:
                raise TapeTooNew(f"{path} has format {version}", hint="install a newer onetape")
            wrong = ask.value(connection, "PRAGMA integrity_check(1)")
            if wrong != "ok":
                raise TapeDamaged(f"{path} is damaged: {wrong}", hint="take another backup; onetape doctor says more")
            head = query.head(connection)
            if version < layout.FORMAT_VERSION:
                return BackupInfo(str(path), version, head, 0, "", path.stat().st_size)
            names = Names(Catalog(), connection)
            for row in connection.execute("SELECT id, payload FROM minute"):
                minutes._decode([row])
            found: Digest = snapshots.digest(lambda: _same(connection), lambda _: names, head)
            return BackupInfo(str(path), version, head, found.records, found.digest, path.stat().st_size)
    except apsw.Error as error:
        raise sqlite.translate(error, path, "read") from error
    except UnicodeDecodeError as error:
        raise TapeDamaged(f"{path} is damaged: {error}", hint="take another; onetape doctor says more") from error


def restore(path: Path, to: Path, *, execute: bool, replace: bool = False) -> RestorePlan:
    """Put a backup, once it is proved, where a tape is to be; without `execute` only say what would be done.

    A file that is there is refused, unless `replace`: then it and its log are renamed, never removed. Refused too
    while other processes have it open: they would go on writing to the old file. Raises TargetExists, TapeInUse,
    TapeDamaged, ChunkCorrupt, TapeUnusable, TapeFull.
    """
    if to.exists() and path.exists() and to.samefile(path):
        raise TargetExists(f"{to} is the backup itself", hint="give the path the tape is to have")
    found = prove(path)
    if not to.parent.is_dir():
        raise TapeUnusable(f"no folder {to.parent}", hint="create it, or check the path")
    there = [each for each in (to, layout.wal_path(to), layout.index_path(to)) if each.exists()]
    if there and not replace:
        raise TargetExists(
            f"{there[0]} exists",
            hint="restore to another path, or add --replace: then what is there is renamed",
        )
    _refuse_while_open(to)
    _room(to.parent, found.bytes)
    kept = _kept_name(to) if there else None
    plan = RestorePlan(found, str(to), None if kept is None else str(kept), execute)
    if not execute:
        return plan
    partial = _partial(to)
    try:
        shutil.copyfile(path, partial)
        again = prove(partial)
        if (again.head, again.digest) != (found.head, found.digest):
            raise TapeDamaged(f"the copy of {path} is not what was copied", hint="check the disk")
        _sync(partial)
        _refuse_while_open(to)
        if kept is not None:
            # The log goes first: a tape without its log is older, but a log without its tape is nothing.
            for suffix in ("-shm", "-wal", ""):
                with suppress(FileNotFoundError):
                    to.with_name(to.name + suffix).rename(kept.with_name(kept.name + suffix))
        os.link(partial, to)
        _sync(to.parent)
    except FileExistsError as error:
        raise _taken(to) from error
    except OSError as error:
        raise TapeUnusable(f"cannot write {to}: {error}", hint="check the folder and the disk") from error
    finally:
        partial.unlink(missing_ok=True)
    return plan


def _partial(to: Path) -> Path:
    """Return where a file is made before it gets its name; what a process that was killed left there is removed."""
    for left in to.parent.glob(f".{glob.escape(to.name)}.*.partial*"):
        pid = left.name[len(to.name) + 2 :].split(".")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            left.unlink(missing_ok=True)
    return to.with_name(f".{to.name}.{os.getpid()}.partial")


def _refuse_while_open(path: Path) -> None:
    if not path.exists():
        return
    using = holders.holders(path)
    if using:
        told = ", ".join(f"{holder.pid} ({holder.command[:40]})" for holder in using[:5])
        raise TapeInUse(
            f"{path} is open in {len(using)} process{'es' if len(using) > 1 else ''}: {told}",
            hint="stop them first: they would go on with the old file",
            pids=[holder.pid for holder in using],
        )


def _kept_name(to: Path) -> Path:
    for number in range(1, 10_000):
        kept = to.with_name(f"{to.name}.before-restore-{number}")
        if not kept.exists():
            return kept
    raise TargetExists(f"too many files {to.name}.before-restore-…", hint="remove some")


def _free_target(to: Path) -> Path:
    if not to.parent.is_dir():
        raise TapeUnusable(f"no folder {to.parent}", hint="create it, or check the path")
    if to.is_dir():
        raise TapeUnusable(f"{to} is a directory", hint="give the path of a file")
    if to.exists() or to.is_symlink() or _size(layout.wal_path(to)):
        raise _taken(to)
    return to


def _taken(to: Path) -> TargetExists:
    return TargetExists(f"{to} exists", hint="choose another name; nothing was written")


def _room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise TapeFull(f"{folder} has {free:,} bytes free, {size:,} are needed", hint="free space; nothing was written")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
