"""The packs of a ledger: where they are kept, and how they become entries once keys are looked up one by one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import apsw

from onetape.migrate.ledger.pack import Pack, Sealed, packed_names, packed_rules, sealed

#: Tables of a ledger. `undone`: places of a batch at which nothing was done.
SCHEMA = """
CREATE TABLE IF NOT EXISTS pack(id INTEGER PRIMARY KEY, source_db INTEGER, outcome INTEGER, rules BLOB, names BLOB,
    seals BLOB);
CREATE TABLE IF NOT EXISTS undone(batch INTEGER PRIMARY KEY, places BLOB);
"""
#: The error of a key that a verify found equal: its entry tells what both sides hold, and of nothing that was done.
FOUND_EQUAL = "a verify found both sides equal"

_INSERT_PACK = "INSERT INTO pack(id, source_db, outcome, rules, names, seals) VALUES(?,?,?,?,?,?)"
_INSERT_ENTRY = (
    "INSERT INTO {table}(id, rule, source_db, key, target, read, written, expire_ms, outcome, error, hash)"
    " VALUES(?,?,?,?,?,?,?,?,?,?,?)"
)
_SELECT = """SELECT p.id, p.source_db, p.outcome, p.rules, p.names, p.seals, u.places, b.run, b.settled_ns
    FROM pack p JOIN batch b ON b.id = p.id LEFT JOIN undone u ON u.batch = p.id"""
_ENTRY_COLUMNS = """id INTEGER PRIMARY KEY, rule INTEGER, source_db INTEGER, key BLOB, target BLOB,
    read BLOB, written BLOB, expire_ms INTEGER, outcome INTEGER, error TEXT, hash INTEGER"""
_PACKS_AT_ONCE = 64

#: id, rule, source db, key, target, read, written, expire_ms, outcome's code, error, hash: a row of `entry`.
EntryRow = tuple[int, int, int, bytes, bytes, bytes | None, bytes | None, int, int, str | None, int]


class Packs:
    """The packs in one ledger's file. Raises apsw.Error: the ledger maps it."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._exist = bool(list(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'pack'")))
        self._copied_out = False

    def make(self) -> None:
        """Make the tables, where an older ledger has none."""
        self._db.execute(SCHEMA)
        self._exist = True

    @property
    def last_id(self) -> int:
        """The id of the last key in a pack, 0 if there is none."""
        for first, number in self._rows("SELECT id, length(rules) / 2 FROM pack ORDER BY id DESC LIMIT 1"):
            return int(first) + int(number) - 1
        return 0

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._rows("SELECT 1 FROM pack LIMIT 1"))

    def add(
        self,
        id: int,
        source_db: int,
        outcome: int,
        rules: Sequence[int],
        keys: Sequence[bytes],
        targets: Sequence[bytes],
        known: Sequence[Sealed] | None = None,
    ) -> None:
        """Write a pack; its line in `batch` is the caller's."""
        seals = None if known is None else sealed(known)
        row = (id, source_db, outcome, packed_rules(rules), packed_names(keys, targets), seals)
        self._db.execute(_INSERT_PACK, row)

    def undo(self, batch: int, places: Sequence[int]) -> None:
        """Say at which places of a batch nothing was done."""
        self._db.execute("INSERT INTO undone VALUES(?,?)", (batch, struct.pack(f"<{len(places)}I", *places)))

    def entries(self, name: bytes = b"") -> Iterator[tuple[EntryRow, int, int | None]]:
        """Yield the keys as rows of `entry`, in order, each with its run and with when its batch was settled.

        `name`: only of packs in which these bytes occur.
        """
        sql = f"{_SELECT} WHERE instr(p.names, ?) ORDER BY p.id" if name else f"{_SELECT} ORDER BY p.id"
        for row in self._db.execute(sql, (name,) if name else ()) if self._exist else ():
            for entry in _entries(Pack(*row[:6]), row[6]):
                yield entry, row[7], row[8]

    def unpack(self, until: int, *, unsettled: bool = False) -> Iterator[list[EntryRow]]:
        """Turn packs up to an id into entries, some at a time: the caller begins and ends a transaction for each step.

        Yields what was turned, after it is written.
        """
        where = "p.id <= ?" + (" AND b.settled_ns IS NULL" if unsettled else "")
        sql = f"{_SELECT} WHERE {where} ORDER BY p.id LIMIT {_PACKS_AT_ONCE}"
        while found := self._rows(sql, (until,)):
            rows = [entry for row in found for entry in _entries(Pack(*row[:6]), row[6])]
            self._db.executemany(_INSERT_ENTRY.format(table="main.entry"), rows)
            ids = [(row[0],) for row in found]
            self._db.executemany("DELETE FROM pack WHERE id = ?", ids)
            self._db.executemany("DELETE FROM undone WHERE batch = ?", ids)
            yield rows

    def copy_out(self, indexed: int) -> str:
        """Return the name of a view of all entries and of all keys in packs, for a ledger that is only read.

        They are copied to SQLite's own temporary file, with those entries that the ledger's index leaves out, which
        begin after the id `indexed`; `temp.unpacked` has them, by hash too.
        """
        if not self._copied_out:
            db = self._db
            with db:
                db.execute(f"CREATE TEMP TABLE unpacked({_ENTRY_COLUMNS})")
                rows = (row for row, _run, _settled in self.entries())
                db.executemany(_INSERT_ENTRY.format(table="temp.unpacked"), rows)
                db.execute(f"INSERT OR REPLACE INTO temp.unpacked SELECT * FROM main.entry WHERE id > {indexed}")
                db.execute("CREATE INDEX temp.unpacked_by_hash ON unpacked(hash)")
                db.execute(
                    "CREATE TEMP VIEW every_entry AS SELECT * FROM main.entry e WHERE NOT EXISTS "
                    "(SELECT 1 FROM temp.unpacked u WHERE u.id = e.id) UNION ALL SELECT * FROM temp.unpacked"
                )
            self._copied_out = True
        return "every_entry"

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return list(self._db.execute(sql, values)) if self._exist else []


def _entries(pack: Pack, undone: bytes | None) -> Iterator[EntryRow]:
    left = set(struct.unpack(f"<{len(undone) // 4}I", undone)) if undone else ()
    db, outcome = pack.source_db, pack.outcome
    error = None if pack.seals is None else FOUND_EQUAL
    for id, rule, key, target, seal, expire_ms in pack.lines():
        if id - pack.id not in left:  # what was left alone has an entry of its own, if it came to anything
            yield id, rule, db, key, target, seal, seal, expire_ms, outcome, error, zlib.crc32(key, db)


__all__ = ["SCHEMA", "EntryRow", "Packs"]
