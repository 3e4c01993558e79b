"""The sides: what both sides of each pair held when they were last seen equal, in a file beside the ledger.

On the way back it tells which side of a pair was written in the moment of the change: the one that is not any more what
both were. After the way back to the start it tells undo which new keys still are what the migration left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from onetape.errors import EndpointError, LedgerUnusable
from onetape.migrate.copying import compare
from onetape.migrate.copying.compare import Comparer
from onetape.migrate.copying.slice_decide import content_digest
from onetape.migrate.keys import content
from onetape.migrate.keys.dump import digest
from onetape.migrate.verifying.side import BIG_BYTES
from onetape.migrate.verifying.twins import Place, Twin, Twins
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError

#: Pairs that the server compares, and that are read, at once.
_AT_ONCE = 1000
_READ_AT_ONCE = 50

#: What both sides held: seal or digest of a DUMP, or digest of a content, absolute expiry in ms, -1 for none.
Held = tuple[bytes, int]


def path_of(ledger_path: Path) -> Path:
    """Return where the sides of a ledger's migration are."""
    return ledger_path.with_name(ledger_path.name + ".sides")


class Sides:
    """The file, open. Raises LedgerUnusable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = apsw.Connection(str(path))
            self._db.set_busy_timeout(10_000)
            self._db.pragma("journal_mode", "wal")
            self._db.pragma("synchronous", "normal")
            with self._db:
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS side(old_db INTEGER, old_key BLOB, new_key BLOB, stands BLOB,"
                    " expire_ms INTEGER, PRIMARY KEY(old_db, old_key)) WITHOUT ROWID"
                )
                self._db.execute("CREATE TABLE IF NOT EXISTS about(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        except apsw.Error as error:
            raise self._unusable(error) from error

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it. May be called twice."""
        self._db.close()

    def about(self, name: str) -> str | None:
        """Return a value: "pending" is the phase that a way back leads to, until it is over."""
        rows = self._rows("SELECT value FROM about WHERE name = ?", (name,))
        return None if not rows else str(rows[0][0])

    def set_about(self, name: str, value: str | None) -> None:
        """Write a value, or remove it."""
        with self._writing():
            self._db.execute("DELETE FROM about WHERE name = ?", (name,))
            if value is not None:
                self._db.execute("INSERT INTO about VALUES(?,?)", (name, value))

    def clear(self) -> None:
        """Forget all pairs."""
        with self._writing():
            self._db.execute("DELETE FROM side")

    def find(self, old: Place) -> Held | None:
        """Return what both sides of a pair held, None where they were not seen equal."""
        rows = self._rows("SELECT stands, expire_ms FROM side WHERE old_db = ? AND old_key = ?", old)
        return (bytes(rows[0][0]), int(rows[0][1])) if rows else None

    def count(self) -> int:
        """Return how many pairs are known."""
        return int(self._rows("SELECT count(*) FROM side", ())[0][0])

    def take(self, reader: Endpoint, twins: Twins, check: Callable[[], None]) -> list[Twin]:
        """Look at all pairs, and put down what equal ones hold; return those that were not so at the last look."""
        changed: list[Twin] = []
        for page in twins.old_side():
            check()
            changed += self.look(reader, page)
        return changed

    def look(self, reader: Endpoint, some: Sequence[Twin]) -> list[Twin]:
        """Look at these pairs; return those that were not what they were at the last look."""
        changed: list[Twin] = []
        comparer = Comparer(reader, sealing=True)
        for at in range(0, len(some), _AT_ONCE):
            rows = []
            for twin, held in _looked_at(reader, comparer, some[at : at + _AT_ONCE]):
                if held != self.find(twin.old):
                    changed.append(twin)
                if held is not None:
                    rows.append((twin.old_db, twin.old_key, twin.new_key, *held))
            with self._writing():
                self._db.executemany("INSERT OR REPLACE INTO side VALUES(?,?,?,?,?)", rows)
        return changed

    def _rows(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            return list(self._db.execute(sql, values))
        except apsw.Error as error:
            raise self._unusable(error) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._db:
                yield
        except apsw.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: apsw.Error) -> LedgerUnusable:
        if isinstance(error, apsw.FullError):
            return LedgerUnusable(f"{self.path}: the disk is full", hint="free space and run again")
        return LedgerUnusable(f"{self.path}: {error}", hint="move it away and run again")


def _looked_at(reader: Endpoint, comparer: Comparer, some: Sequence[Twin]) -> Iterable[tuple[Twin, Held | None]]:
    """Yield what both sides of each pair hold: by the server's script, and what that cannot tell by reading it."""
    for old_db, new_db in dict.fromkeys((twin.old_db, twin.new_db) for twin in some):
        group = [twin for twin in some if (twin.old_db, twin.new_db) == (old_db, new_db)]
        request = comparer.request(old_db, new_db, [(twin.old_key, twin.new_key) for twin in group])
        replies = None if request is None else reader.exchange(*request)
        codes = None if replies is None else comparer.answer(replies)
        if replies is None or codes is None:
            yield from _in_batches(reader, group)
            continue
        seals = iter(comparer.sealed(replies))
        unclear = []
        for place, twin in enumerate(group):
            code = codes[place : place + 1]
            if code == compare.EQUAL:
                yield twin, next(seals)
            elif code in (compare.NO_SOURCE, compare.NO_TARGET, compare.EXPIRY):
                yield twin, None
            else:
                unclear.append(twin)
        yield from _in_batches(reader, unclear)


def _in_batches(reader: Endpoint, some: Sequence[Twin]) -> Iterable[tuple[Twin, Held | None]]:
    for at in range(0, len(some), _READ_AT_ONCE):
        yield from _held(reader, some[at : at + _READ_AT_ONCE])


def _held(reader: Endpoint, some: Sequence[Twin]) -> Iterable[tuple[Twin, Held | None]]:
    """Yield what both sides of each pair hold, as of one moment, None where they are not equal."""
    sizes = _sizes(reader, some)
    small = [twin for twin, size in zip(some, sizes, strict=True) if size <= BIG_BYTES]
    for twin, size in zip(some, sizes, strict=True):
        if size > BIG_BYTES:
            yield twin, _held_big(reader, twin)
    if not small:
        return
    commands: list[Sequence[Argument]] = [("MULTI",)]
    for side in ("old", "new"):
        for twin in small:
            db, key = twin.old if side == "old" else twin.new
            commands += [("SELECT", db), ("DUMP", key), ("PEXPIRETIME", key)]
    replies = reader.pipeline([*commands, ("EXEC",)])[-1]
    reader.db = -1
    if not isinstance(replies, list):  # a server before 7.0
        for twin in small:
            yield twin, _held_big(reader, twin)
        return
    for place, twin in enumerate(small):
        one, other = replies[3 * place + 1 : 3 * place + 3], replies[3 * (place + len(small)) + 1 :][:2]
        values = (*one, *other)
        if any(isinstance(value, ReplyError) for value in values):
            yield twin, _held_big(reader, twin)
        elif one[0] is None or other[0] is None or one[1] != other[1]:
            yield twin, None
        else:
            mine = digest(one[0])
            yield twin, (mine, int(one[1])) if mine == digest(other[0]) else None


def _held_big(reader: Endpoint, twin: Twin) -> Held | None:
    found = content.read_together(reader, [twin.old, twin.new])
    if found is None or found[0] is None or found[0] != found[1]:
        return None
    return content_digest(found[0]), -1 if found[0].expires_ms is None else found[0].expires_ms


def _sizes(reader: Endpoint, some: Sequence[Twin]) -> list[int]:
    sizes = [0] * len(some)
    for new in (False, True):
        for db in dict.fromkeys((twin.new if new else twin.old)[0] for twin in some):
            places = [at for at, twin in enumerate(some) if (twin.new if new else twin.old)[0] == db]
            keys = [(some[at].new if new else some[at].old)[1] for at in places]
            reader.select(db)
            replies = reader.pipeline([("MEMORY", "USAGE", key, "SAMPLES", 1) for key in keys])
            for at, reply in zip(places, replies, strict=True):
                if isinstance(reply, ReplyError):
                    raise EndpointError(f"MEMORY USAGE: {reply.message}", code=reply.code)
                sizes[at] = max(sizes[at], reply or 0)
    return sizes


def remove(path: Path) -> None:
    """Remove the file, if it is there."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


__all__ = ["Held", "Sides", "path_of", "remove"]
