"""The mirror's memory: of each pair, what both sides held when they were last equal. One SQLite file.

It answers one question: does the side that we would write still hold what it held when it was equal to the other?
Then nobody else wrote it, and it may follow. A row holds the newest word only, so the file does not grow with time.
What is about to be written is put down before it is written, so a kill between the two leaves no doubt: the side
holds the one or the other.

One process at a time, held by a lock on `FILE.lock` that the kernel lets go when the process ends. What changed since
the last time is folded into the migration's ledger, where backfill, verify and undo look.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import apsw
import msgspec

from onetape.errors import LedgerBusy, LedgerUnusable
from onetape.migrate.ledger.entry import CODES, OPEN, Outcome, Row, key_hash
from onetape.migrate.ledger.ledger import Ledger

#: "OTMM": tells a mirror's memory from any other SQLite file.
APPLICATION_ID = 0x4F544D4D
FORMAT = 1

_SCHEMA = """
CREATE TABLE state(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE pair(old_db INTEGER, old_key BLOB, new_key BLOB, rule INTEGER, held BLOB, expire_ms INTEGER,
    next BLOB, next_expire_ms INTEGER, epoch INTEGER, folded INTEGER, PRIMARY KEY(old_db, old_key)) WITHOUT ROWID;
CREATE TABLE kept(old_db INTEGER, old_key BLOB, new_key BLOB, rule INTEGER, why TEXT, at_ms INTEGER,
    PRIMARY KEY(old_db, old_key)) WITHOUT ROWID;
"""
_UPSERT = """INSERT INTO pair VALUES(?,?,?,?,?,?,NULL,-1,?,0) ON CONFLICT(old_db, old_key) DO UPDATE SET
    new_key=excluded.new_key, rule=excluded.rule, held=excluded.held, expire_ms=excluded.expire_ms, next=NULL,
    next_expire_ms=-1, epoch=excluded.epoch, folded=0"""
_INTEND = "INSERT OR REPLACE INTO pair VALUES(?,?,?,?,?,?,?,?,?,0)"
_FOLD_AT_ONCE = 1000

#: What a digest stands for, its first byte: a DUMP, a key's content read in slices, a stream's ids and groups, or
#: (of what is intended) a stream's length and last id.
OF_DUMP, OF_CONTENT, OF_STREAM, OF_END = b"d", b"c", b"s", b"e"

Place = tuple[int, bytes]  # old database, old key
#: One side of a pair: the digest of what it holds and its absolute expiry in ms, or None for no such key.
Side = tuple[bytes, int] | None


class Held(msgspec.Struct, frozen=True):
    """What a pair held when both sides were last equal, and what we were about to make it hold, if anything.

    Digests begin with one of OF_…; expiries are absolute, ms since the epoch, -1 for none. `fresh`: known since the
    server was last started.
    """

    new_key: bytes
    digest: bytes | None
    expire_ms: int
    next_digest: bytes | None = None
    next_expire_ms: int = -1
    fresh: bool = True

    def holds(self, digest: bytes, expire_ms: int, slack_ms: int = 0) -> bool:
        """Return whether a side that holds this is as we left it."""
        return (digest == self.digest and abs(expire_ms - self.expire_ms) <= slack_ms) or (
            digest == self.next_digest and abs(expire_ms - self.next_expire_ms) <= slack_ms
        )


class Word(msgspec.Struct, frozen=True):
    """One pair with what it holds, or is about to."""

    old_db: int
    old_key: bytes
    new_key: bytes
    rule: int
    digest: bytes
    expire_ms: int


class Memory:
    """An open memory. Close it, or use it in `with`."""

    def __init__(self, path: Path, db: apsw.Connection, lock_fd: int) -> None:
        self.path = path
        self._db = db
        self._lock_fd: int | None = lock_fd
        self._epoch = int(self.state("epoch") or 0)
        self._kept = int(self._all("SELECT count(*) FROM kept")[0][0])

    @classmethod
    def open(cls, path: str | Path) -> Memory:
        """Open or create it as its only user. Raises LedgerBusy where another mirror has it, LedgerUnusable."""
        path = Path(path)
        lock_fd = _lock(path)
        try:
            return cls(path, _connect(path), lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let go of the lock. May be called twice."""
        self._db.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def state(self, name: str) -> str | None:
        """Return a value of the state, or None. Names in use: plan_hash, run_id, epoch, notify_before."""
        rows = self._all("SELECT value FROM state WHERE name = ?", (name,))
        return None if not rows else str(rows[0][0])

    def set_state(self, name: str, value: str | None) -> None:
        """Write a value, or remove it."""
        if value is None:
            self._write(lambda: self._db.execute("DELETE FROM state WHERE name = ?", (name,)))
        else:
            self._write(lambda: self._db.execute("INSERT OR REPLACE INTO state VALUES(?,?)", (name, value)))

    def bind(self, plan_hash: str, run_id: str) -> None:
        """Tie the memory to a plan. After a restart of the server every pair is looked at again before it is believed.

        Raises LedgerUnusable where it belongs to another plan.
        """
        known = self.state("plan_hash")
        if known is not None and known != plan_hash:
            raise LedgerUnusable(
                f"the mirror's memory {self.path} belongs to another plan: {known[:12]}, not {plan_hash[:12]}",
                hint="give each plan a memory of its own with --memory, or move this one away",
            )
        self.set_state("plan_hash", plan_hash)
        if self.state("run_id") != run_id:
            self._epoch += 1
            self.set_state("epoch", str(self._epoch))
            self.set_state("run_id", run_id)

    def find(self, places: Sequence[Place]) -> dict[Place, Held]:
        """Return what is known of these pairs; unknown ones are left out."""
        sql = """SELECT new_key, held, expire_ms, next, next_expire_ms, epoch FROM pair
            WHERE old_db = ? AND old_key = ?"""
        found: dict[Place, Held] = {}
        try:
            with self._db:
                for place in places:
                    for row in self._db.execute(sql, place):
                        new_key, held, expire_ms, next_held, next_expire_ms, epoch = row
                        fresh = epoch == self._epoch
                        found[place] = Held(new_key, held, expire_ms, next_held, next_expire_ms, fresh)
        except apsw.Error as error:
            _raise(self.path, error)
        return found

    def count(self, old_db: int | None = None) -> int:
        """Return how many pairs are known, of one old database only if given."""
        sql, values = "SELECT count(*) FROM pair", ()
        if old_db is not None:
            return int(self._all(sql + " WHERE old_db = ?", (old_db,))[0][0])
        return int(self._all(sql, values)[0][0])

    def intend(self, words: Sequence[tuple[Word, Side]]) -> None:
        """Put down what is about to be written, each with what is to be written over, None for nothing."""
        if not words:
            return
        rows = [(*_named(word), *(now or (None, -1)), word.digest, word.expire_ms, self._epoch) for word, now in words]
        self._write(lambda: self._db.executemany(_INTEND, rows))

    def remember(self, words: Sequence[Word]) -> None:
        """Put down what both sides hold now."""
        if not words:
            return
        rows = [(*_named(word), word.digest, word.expire_ms, self._epoch) for word in words]
        self._write(lambda: self._db.executemany(_UPSERT, rows))

    def forget(self, places: Sequence[Place]) -> None:
        """Drop pairs that are no more, on either side."""
        if not places:
            return
        rows = list(places)
        self._write(lambda: self._db.executemany("DELETE FROM pair WHERE old_db = ? AND old_key = ?", rows))

    # Pairs whose target somebody newer wrote

    def keep(self, place: Place, new_key: bytes, rule: int, why: str, at_ms: int) -> bool:
        """Put down that a pair differs and is left so; return whether that is news."""
        before = self._all("SELECT why FROM kept WHERE old_db = ? AND old_key = ?", place)
        row = (*place, new_key, rule, why, at_ms)
        self._write(lambda: self._db.execute("INSERT OR REPLACE INTO kept VALUES(?,?,?,?,?,?)", row))
        self._kept += not before
        return not before or before[0][0] != why

    def settled(self, places: Sequence[Place]) -> list[Place]:
        """Take pairs off the list of those that differ; return which of these were on it."""
        sql = "SELECT 1 FROM kept WHERE old_db = ? AND old_key = ?"
        there = [place for place in places if self._all(sql, place)] if self._kept else []
        if there:
            self._kept -= len(there)
            self._write(lambda: self._db.executemany("DELETE FROM kept WHERE old_db = ? AND old_key = ?", there))
        return there

    def kept_count(self) -> int:
        """Return how many pairs differ and are left so."""
        return self._kept

    def kept(self, after: Place = (-1, b""), most: int = 300) -> list[tuple[int, bytes, bytes, int, str]]:
        """Return pairs that differ and are left so, by place: old database, old key, new key, rule, why."""
        sql = """SELECT old_db, old_key, new_key, rule, why FROM kept WHERE (old_db, old_key) > (?, ?)
            ORDER BY old_db, old_key LIMIT ?"""
        return self._all(sql, (*after, most))

    # Into the ledger

    def fold(self, ledger: Ledger) -> int:
        """Write what changed since the last time into the ledger, as copies of ours. Returns how many pairs.

        The ledger has a run begun. A digest of a DUMP is what the ledger has too; of other pairs it learns that they
        are ours, with the digest open.
        """
        sql = "SELECT rule, old_db, old_key, new_key, held, expire_ms FROM pair WHERE folded = 0 AND held NOT NULL"
        done = 0
        while rows := self._all(f"{sql} LIMIT {_FOLD_AT_ONCE}"):
            ledger.record([_ledger_row(*row) for row in rows])
            places = [row[1:3] for row in rows]
            mark = "UPDATE pair SET folded = 1 WHERE old_db = ? AND old_key = ?"
            self._write(lambda: self._db.executemany(mark, places))  # noqa: B023  (called at once)
            done += len(rows)
        return done

    def _write(self, act: Callable[[], object]) -> None:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            act()
            db.execute("COMMIT")
        except BaseException as error:
            if not db.get_autocommit():
                db.execute("ROLLBACK")
            if isinstance(error, apsw.Error):
                _raise(self.path, error)
            raise

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return list(self._db.execute(sql, values))
        except apsw.Error as error:
            _raise(self.path, error)


def _named(word: Word) -> tuple[int, bytes, bytes, int]:
    return word.old_db, word.old_key, word.new_key, word.rule


def _ledger_row(rule: int, db: int, key: bytes, target: bytes, held: bytes, expire_ms: int) -> Row:
    digest = held[1:] if held[:1] == OF_DUMP else held if held[:1] == OF_CONTENT else OPEN
    code = CODES[Outcome.COPIED]
    return (rule, db, key, target, digest, digest, expire_ms, code, None, key_hash(db, key))


def _lock(path: Path) -> int:
    try:
        fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LedgerUnusable(f"the mirror's memory {path}: {error.strerror}", hint="give another path") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise LedgerBusy(f"another mirror is at work with {path}", hint="one mirror is enough") from error
    return fd


def _connect(path: Path) -> apsw.Connection:
    try:
        db = apsw.Connection(str(path))
    except apsw.Error as error:
        _raise(path, error)
    try:
        db.set_busy_timeout(5000)
        if db.pragma("application_id") == 0 and not db.pragma("schema_version"):
            db.pragma("journal_mode", "wal")
            with db:
                db.execute(_SCHEMA)
                db.pragma("application_id", APPLICATION_ID)
                db.pragma("user_version", FORMAT)
        elif db.pragma("application_id") != APPLICATION_ID:
            raise LedgerUnusable(f"{path} is not a mirror's memory", hint="give another path with --memory")
        elif db.pragma("user_version") > FORMAT:
            raise LedgerUnusable(f"the mirror's memory {path} is of a newer onetape", hint="update onetape")
        # A killed process loses nothing of it. After a power cut a pair may be taken for somebody else's, and kept.
        db.pragma("synchronous", "normal")
        return db
    except apsw.Error as error:
        db.close()
        _raise(path, error)
    except BaseException:
        db.close()
        raise


def _raise(path: Path, error: apsw.Error) -> NoReturn:
    if isinstance(error, apsw.FullError):
        hint = "free space and run it again: what was intended is settled by looking, nothing is lost"
        raise LedgerUnusable(f"the mirror's memory {path}: the disk is full", hint=hint) from error
    if isinstance(error, (apsw.NotADBError, apsw.CorruptError)):
        hint = "move it away and run again: the first sweep compares everything anew"
        raise LedgerUnusable(f"the mirror's memory {path} is damaged: {error}", hint=hint) from error
    raise LedgerUnusable(f"the mirror's memory {path}: {error}", hint="see that it can be written") from error
