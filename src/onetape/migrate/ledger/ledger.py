"""The ledger: a migration's durable memory, one SQLite file: what was read, intended, and what came of it.

Rows are only ever appended, in the order in which keys are met: a batch's rows are written as intended before
the act, and its line in `batch` is settled after it, so one small update records two hundred outcomes. The
last row of a key is the truth about it; those before it are its history. An index over keys exists only for
the rows of earlier runs: keeping one up to date in the order of SCAN would rewrite it page by page, gigabytes
for a million keys. Batches copied without being read are packs (see pack.py), one row each, until keys are looked up.

One process writes at a time, held by a lock on the file `LEDGER.lock` that the kernel lets go when the
process ends, however it ends. Anybody may read meanwhile.
"""

from __future__ import annotations

import heapq
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec

from onetape import clock
from onetape.errors import LedgerUnusable
from onetape.migrate.ledger import packs
from onetape.migrate.ledger.entry import (
    CODES,
    NO_TICKS,
    OUTCOMES,
    Entry,
    Known,
    Outcome,
    Row,
    Run,
    entry_of,
)
from onetape.migrate.ledger.file import connect, lock, refuse
from onetape.migrate.ledger.pack import Sealed
from onetape.migrate.ledger.packs import Packs
from onetape.migrate.plans.plan import Plan

_INSERT = (
    "INSERT INTO entry(rule, source_db, key, target, read, written, expire_ms, outcome, error, hash)"
    " VALUES(?,?,?,?,?,?,?,?,?,?)"
)
_INSERT_AT = (
    "INSERT INTO entry(id, rule, source_db, key, target, read, written, expire_ms, outcome, error, hash)"
    " VALUES(?,?,?,?,?,?,?,?,?,?,?)"
)
# A batch's id is that of its first entry: the batch of an entry is the last one that begins at or before it.
_COLUMNS = """e.id, b.run, e.rule, r.step, e.source_db, e.key, e.target, e.read, e.written, e.expire_ms,
    CASE WHEN b.settled_ns IS NULL THEN 0 ELSE e.outcome END, e.error, b.settled_ns"""
_FROM = """FROM {entry} e JOIN batch b ON b.id = (SELECT max(id) FROM batch WHERE id <= e.id)
    JOIN rule r ON r.id = e.rule"""


class Ledger:
    """An open ledger. Close it, or use it in `with`."""

    def __init__(self, path: Path, db: apsw.Connection, lock_fd: int | None) -> None:
        self.path = path
        self._db = db
        self._lock_fd = lock_fd
        self._packs = Packs(db)
        self._run = 0
        self._indexed = 0
        self._last_entry = 0
        self._earlier = 0  # the last entry of earlier runs
        self._writes = lock_fd is not None
        self._says_open = False

    @property
    def is_first_run(self) -> bool:
        """Return whether no earlier run wrote anything: then no target can be ours."""
        return self._earlier == 0

    @classmethod
    def open(cls, path: str | Path, *, mode: str = "w") -> Ledger:
        """Open a ledger; mode "w" creates it and makes this process its only writer, "r" only reads.

        Raises LedgerBusy when another process writes, LedgerUnusable when the file is damaged, is no ledger,
        cannot be opened, is from a newer onetape, or (mode "r") is not there.
        """
        path = Path(path)
        if mode == "r" and not path.exists():
            raise LedgerUnusable(f"there is no ledger {path}", hint="run a backfill first, or give --ledger")
        lock_fd = lock(path) if mode == "w" else None
        try:
            db = connect(path, mode)
            ledger = cls(path, db, lock_fd)
            last = [ledger._scalar(f"SELECT max(id) FROM {table}") for table in ("entry", "batch")]
            ledger._last_entry = max(*last, ledger._packs.last_id)
            ledger._earlier = ledger._last_entry
            ledger._indexed = ledger._scalar("SELECT value FROM state WHERE name = 'indexed'")
            return ledger
        except BaseException:
            if lock_fd is not None:
                os.close(lock_fd)
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let go of the lock. May be called twice."""
        self._db.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # The state: one row a name

    def state(self, name: str) -> str | None:
        """Return a value of the state, or None.

        Names in use: plan_hash, plan_name, target_db, address, run_id, phase, verdict, indexed, digests_open.
        """
        rows = self._all("SELECT value FROM state WHERE name = ?", (name,))
        return None if not rows else str(rows[0][0])

    def set_state(self, **values: str) -> None:
        """Write values of the state row, all or none."""
        self._write(lambda: self._db.executemany("INSERT OR REPLACE INTO state VALUES(?,?)", list(values.items())))

    def bind(self, plan: Plan, *, address: str, run_id: str) -> None:
        """Tie a new ledger to a plan and a server, or check that they are those of this ledger.

        A server is the same one when its address or what it calls its run is the same: one of them survives a
        restart, the other a move. Raises LedgerUnusable.
        """
        self.check(plan, address=address, run_id=run_id)
        self.set_state(
            plan_hash=plan.hash,
            plan_name=plan.name,
            target_db=str(plan.target_db),
            address=address,
            run_id=run_id,
            phase=self.state("phase") or "planned",
        )
        rules = [(index, rule.step, rule.kind) for index, rule in enumerate(plan.rules)]
        self._write(lambda: self._db.executemany("INSERT OR REPLACE INTO rule VALUES(?,?,?)", rules))

    def check(self, plan: Plan, *, address: str, run_id: str) -> None:
        """Raise LedgerUnusable where the ledger belongs to another plan or server. Writes nothing."""
        known = self.state("plan_hash")
        if known is not None and known != plan.hash:
            raise LedgerUnusable(
                f"ledger {self.path} belongs to another plan: {self.state('plan_name')} {known[:12]}, "
                f"not {plan.name} {plan.hash[:12]}",
                hint="give each plan its own ledger with --ledger",
            )
        if known is not None and address != self.state("address") and run_id != self.state("run_id"):
            raise LedgerUnusable(
                f"ledger {self.path} belongs to another server: {self.state('address')}, not {address}",
                hint="give each server its own ledger with --ledger",
            )

    # Runs

    def begin_run(self, command: str) -> int:
        """Start a run and return its id."""
        now_ns = clock.now_ns()

        def begin() -> None:
            self._db.execute("INSERT INTO run(command, started_ns) VALUES(?,?)", (command, now_ns))

        self._write(begin)
        self._run = self._db.last_insert_rowid()
        self._earlier = self._last_entry
        return self._run

    def end_run(self, report: str | None = None) -> None:
        """Record that the run came to its end, and where its report is."""
        row = (clock.now_ns(), report, self._run)
        self._write(lambda: self._db.execute("UPDATE run SET ended_ns=?, report=? WHERE id=?", row))
        if not self._packs.any:  # they wait for whoever looks keys up, and the index with them
            self._index(self._last_entry)

    def runs(self) -> list[Run]:
        """Return all runs, oldest first."""
        return [Run(*row) for row in self._all("SELECT id, command, started_ns, ended_ns, report FROM run ORDER BY id")]

    # Intents and outcomes

    def intend(self, rows: Sequence[Row], settle: Sequence[tuple[int, Sequence[Row | None]]] = ()) -> int:
        """Write a batch of rows as intended, with the outcome that the act is to have; return the batch's id.

        `settle` names batches to settle in the same transaction, as settle() does: one commit for both.
        """
        batch = self._last_entry + 1
        line = (batch, self._run)

        def write() -> None:
            for settled, changes in settle:
                self._settle(settled, changes)
            self._db.execute("INSERT INTO batch(id, run) VALUES(?,?)", line)
            if rows:  # SQLite gives the others the ids that follow; of those in packs it knows nothing
                self._db.execute(_INSERT_AT, (batch, *rows[0]))
                self._db.executemany(_INSERT, rows[1:])

        self._write(write)
        self._last_entry += len(rows)
        return batch

    def intend_open(
        self,
        source_db: int,
        rules: Sequence[int],
        keys: Sequence[bytes],
        targets: Sequence[bytes],
        settle: Sequence[tuple[int, Sequence[int]]] = (),
    ) -> int:
        """Write a batch as one pack of keys that are to be copied without being read; return the batch's id.

        `settle` names batches of this kind to settle in the same transaction, as settle_open() does.
        """
        batch = self._last_entry + 1

        def write() -> None:
            for settled, undone in settle:
                self._settle_open(settled, undone)
            if not self._says_open:
                self._db.execute("INSERT OR REPLACE INTO state VALUES('digests_open', '1')")
            self._db.execute("INSERT INTO batch(id, run) VALUES(?,?)", (batch, self._run))
            self._packs.add(batch, source_db, CODES[Outcome.COPIED], rules, keys, targets)

        self._write(write)
        self._says_open = True
        self._last_entry += len(keys)
        return batch

    def settle_open(self, settled: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Record that batches of intend_open() were done, but for the keys at these places, which were left alone."""

        def write() -> None:
            for batch, undone in settled:
                self._settle_open(batch, undone)

        self._write(write)

    def record_equal(
        self,
        source_db: int,
        rules: Sequence[int],
        keys: Sequence[bytes],
        targets: Sequence[bytes],
        known: Sequence[Sealed],
    ) -> None:
        """Write down that these targets are equal to their sources, and what both hold: nobody wrote anything."""
        batch = self._last_entry + 1

        def write() -> None:
            line = (batch, self._run, clock.now_ns())
            self._db.execute("INSERT INTO batch(id, run, settled_ns) VALUES(?,?,?)", line)
            self._packs.add(batch, source_db, CODES[Outcome.UNCHANGED], rules, keys, targets, known)

        self._write(write)
        self._last_entry += len(keys)

    @property
    def digests_open(self) -> bool:
        """Return whether keys were copied without being read since a verify took the digests of all."""
        return bool(self.state("digests_open"))

    def settle(self, batch: int, changes: Sequence[Row | None] = ()) -> None:
        """Record that the act of a batch was done.

        `changes`, in its order, replace rows that came otherwise.
        """
        self._write(lambda: self._settle(batch, changes))

    def record(self, rows: Sequence[Row]) -> None:
        """Write rows whose outcome is known already: nothing is or was to be written for them."""
        if rows:
            self.settle(self.intend(rows))

    def _settle(self, batch: int, changes: Sequence[Row | None]) -> None:
        replaced = [(*row[4:9], batch + i) for i, row in enumerate(changes) if row is not None]
        if replaced:
            self._db.executemany(
                "UPDATE entry SET read=?, written=?, expire_ms=?, outcome=?, error=? WHERE id=?", replaced
            )
        self._db.execute("UPDATE batch SET settled_ns=? WHERE id=?", (clock.now_ns(), batch))

    def _settle_open(self, batch: int, undone: Sequence[int]) -> None:
        if undone:
            self._packs.undo(batch, undone)
        self._db.execute("UPDATE batch SET settled_ns=? WHERE id=?", (clock.now_ns(), batch))

    # Reading

    def find(self, db: int, keys: Sequence[bytes]) -> dict[bytes, Known]:
        """Return what earlier runs last wrote for these source keys; unknown ones are left out."""
        if not self._earlier:
            return {}
        lookups = [
            f"SELECT target, read, written, expire_ms, error FROM {table} WHERE hash = ? {indexed} "
            "AND key = ? AND source_db = ? AND written IS NOT NULL ORDER BY id DESC LIMIT 1"
            for table, indexed in self._looked_up()
        ]
        found = {}
        try:
            with self._db:  # one read transaction for all of them: taking its lock costs more than a look-up
                for key in keys:
                    for sql in lookups:
                        rows = list(self._db.execute(sql, (zlib.crc32(key, db), key, db)))
                        if rows:
                            found[key] = Known(*rows[0])
                            break
        except apsw.Error as error:
            refuse(self.path, error)
        return found

    def _looked_up(self) -> list[tuple[str, str]]:
        """Return the tables that find() looks into, the newest entries first, with what their indexes ask for."""
        if self._writes:
            self._unpack(self._earlier)
            self._index(self._earlier)
        main = ("main.entry", f"AND id <= {self._indexed}")
        if self._writes or self._indexed >= self._last_entry:
            return [main]
        return [(self._copied_out() and "temp.unpacked", ""), main]

    def _copied_out(self) -> str:
        try:
            return self._packs.copy_out(self._indexed)
        except apsw.Error as error:
            refuse(self.path, error)

    def find_now(self, db: int, key: bytes) -> Known | None:
        """Return what any run, this one included, last wrote for a source key. Reads the ledger through."""
        rows = self._all(
            "SELECT id, target, read, written, expire_ms, error FROM entry WHERE key = ? AND source_db = ? "
            "AND written IS NOT NULL ORDER BY id DESC LIMIT 1",
            (key, db),
        )
        for entry in self._packed(key):
            if (entry.source_db, entry.key) == (db, key) and entry.written is not None:
                rows.append((entry.id, entry.target, entry.read, entry.written, entry.expire_ms, entry.error))
        return Known(*max(rows)[1:]) if rows else None

    def unsettled(self) -> list[tuple[int, Entry]]:
        """Return (batch, entry) of what was intended but never settled: a run was killed between.

        An entry's outcome is here the one that was intended. There are at most a few batches of them.
        """
        self._unpack(self._last_entry, unsettled=True)
        source = _FROM.format(entry="entry")
        sql = f"SELECT b.id, e.outcome, {_COLUMNS} {source} WHERE b.settled_ns IS NULL ORDER BY e.id"
        first = self._scalar("SELECT min(id) FROM batch WHERE settled_ns IS NULL")
        if not first:
            return []
        rows = self._all(sql.replace("WHERE", f"WHERE e.id >= {first} AND"))
        return [(row[0], msgspec.structs.replace(entry_of(row[2:]), outcome=OUTCOMES[row[1]])) for row in rows]

    def entries(self, *, run: int | None = None, step: str | None = None) -> Iterator[Entry]:
        """Yield all entries in the order in which they were written, of one run or step only if given."""
        wanted = {"b.run": run, "r.step": step}
        where = " AND ".join(f"{column} = ?" for column, value in wanted.items() if value is not None)
        values = [value for value in wanted.values() if value is not None]
        rows = self._entries(f"{'WHERE ' + where if where else ''} ORDER BY e.id", values)
        packed = (e for e in self._packed() if run in (None, e.run) and step in (None, e.step))
        return heapq.merge(rows, packed, key=lambda entry: entry.id)

    def notes(self) -> Iterator[Entry]:
        """Yield what was written of copied keys that are, in part, no ticks or bars."""
        return self._entries("WHERE substr(e.error, 1, ?) = ? ORDER BY e.id", (len(NO_TICKS), NO_TICKS))

    def newest(self, *, step: str | None = None) -> Iterator[Entry]:
        """Yield the newest entry of each source key, in the order in which those were written.

        SQLite sorts on disk, so this takes no memory that grows with the keys.
        """
        source = self._every_entry()
        where = f"WHERE e.id IN (SELECT max(id) FROM {source} GROUP BY source_db, key)"
        if step is None:
            return self._entries(f"{where} ORDER BY e.id", source=source)
        return self._entries(f"{where} AND r.step = ? ORDER BY e.id", (step,), source=source)

    def why(self, key: bytes) -> list[Entry]:
        """Return the history of a key, given by its source or its target name, oldest first."""
        packed = [entry for entry in self._packed(key) if key in (entry.key, entry.target)]
        rows = self._entries("WHERE e.key = ? OR e.target = ?", (key, key))
        return sorted([*rows, *packed], key=lambda entry: entry.id)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return step → outcome → number of keys, counting each key's newest entry.

        Entries of a verify count where there are no others.
        """
        source = self._every_entry()
        sql = f"""SELECT r.step, CASE WHEN b.settled_ns IS NULL THEN 0 ELSE e.outcome END, count(*)
            {_FROM.format(entry=source)}
            WHERE e.id IN (SELECT coalesce(max(done), max(id)) FROM
                (SELECT source_db, key, id, CASE error WHEN '{packs.FOUND_EQUAL}' THEN NULL ELSE id END AS done
                FROM {source}) GROUP BY source_db, key) GROUP BY 1, 2"""
        counts: dict[str, dict[str, int]] = {}
        for step, code, number in self._all(sql):
            counts.setdefault(step, {})[OUTCOMES[code].value] = number
        return counts

    def _entries(self, clause: str, values: Sequence[Any] = (), source: str = "main.entry") -> Iterator[Entry]:
        sql = f"SELECT {_COLUMNS} {_FROM.format(entry=source)} {clause}"
        try:
            for row in self._db.execute(sql, values):
                yield entry_of(row)
        except apsw.Error as error:
            refuse(self.path, error)

    def _packed(self, name: bytes = b"") -> Iterator[Entry]:
        """Yield the keys in packs as entries; `name`: only of packs in which it occurs."""
        steps: dict[int, str] = dict(self._all("SELECT id, step FROM rule"))
        try:
            for row, run, settled_ns in self._packs.entries(name):
                id, rule, db, key, target, read, written, expire_ms, outcome, error, _hash = row
                known = OUTCOMES[outcome if settled_ns is not None else 0]
                yield Entry(
                    id, run, rule, steps[rule], db, key, target, read, written, expire_ms, known, error, settled_ns
                )
        except apsw.Error as error:
            refuse(self.path, error)

    def _every_entry(self) -> str:
        return self._copied_out() if self._packs.any else "main.entry"

    def _unpack(self, until: int, *, unsettled: bool = False) -> None:
        try:
            steps = self._packs.unpack(until, unsettled=unsettled)
            more = True
            while more:
                with self._db:
                    more = next(steps, None) is not None
        except apsw.Error as error:
            refuse(self.path, error)

    def _index(self, last: int) -> None:
        # Only rows of earlier runs, so that this run's inserts do not touch it. `id <= N` is part of the
        # index's definition, so each run makes its own.
        if self._indexed != last:

            def build() -> None:
                self._db.execute("DROP INDEX IF EXISTS entry_by_hash")
                self._db.execute(f"CREATE INDEX entry_by_hash ON entry(hash) WHERE id <= {last}")
                self._db.execute("INSERT OR REPLACE INTO state VALUES('indexed', ?)", (last,))

            self._write(build)
        self._indexed = last

    def _write(self, act: Callable[[], object]) -> None:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            act()
            db.execute("COMMIT")
        except BaseException as error:
            if not db.get_autocommit():  # SQLite has rolled back by itself when the disk is full
                db.execute("ROLLBACK")
            if isinstance(error, apsw.Error):
                refuse(self.path, error)
            raise

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return list(self._db.execute(sql, values))
        except apsw.Error as error:
            refuse(self.path, error)

    def _scalar(self, sql: str, values: Sequence[Any] = ()) -> int:
        rows = self._all(sql, values)
        return int(rows[0][0] or 0) if rows else 0
