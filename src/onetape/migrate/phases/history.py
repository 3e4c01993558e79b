"""The history: what was done to a live migration as a whole, in the ledger's file: changes of phase, replaced values.

Beside the ledger's own tables, through a connection of its own: a phase may change while a mirror or a verify has
the ledger open, and each write here is one short transaction. A row of `transition` is written before the state in
Redis is changed, and ended after; what the state says decides about a row that was never ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec

from onetape import clock
from onetape.errors import LedgerBusy, LedgerUnusable
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import State
from onetape.migrate.plans.plan import Plan

_TABLES = """
CREATE TABLE IF NOT EXISTS transition(id INTEGER PRIMARY KEY, at_ns INTEGER, command TEXT, before TEXT, after TEXT,
    version INTEGER, by TEXT, reason TEXT, forced INTEGER, ended_ns INTEGER, outcome TEXT);
CREATE TABLE IF NOT EXISTS replaced(id INTEGER PRIMARY KEY, at_ns INTEGER, command TEXT, db INTEGER, key BLOB,
    other_db INTEGER, other_key BLOB, payload BLOB, expire_ms INTEGER, ours INTEGER, why TEXT, put_back_ns INTEGER);
CREATE TABLE IF NOT EXISTS found(db INTEGER, key BLOB, PRIMARY KEY(db, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS replaced_by_key ON replaced(db, key);
"""
#: What the outcome of a transition says.
DONE, NOT_DONE = "done", "not done"


class Transition(msgspec.Struct, frozen=True):
    """One change of the migration's state: from phase `before` to `after`, as version `version`.

    `forced`: a gate's reasons were overridden; `reason` has them. `ended_ns` None: the command was killed before it
    could say. `outcome`: DONE, NOT_DONE or "" while it is open.
    """

    id: int
    at_ns: int
    command: str
    before: str
    after: str
    version: int
    by: str
    reason: str
    forced: bool
    ended_ns: int | None
    outcome: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, times as ISO 8601."""
        facts = msgspec.structs.asdict(self)
        ended = None if self.ended_ns is None else clock.to_text(self.ended_ns)
        del facts["at_ns"], facts["ended_ns"]
        return {**facts, "at": clock.to_text(self.at_ns), "ended": ended}


class Replaced(msgspec.Struct, frozen=True):
    """A value that a command put another one in the place of, as DUMP gave it.

    `payload` None: it was too big to keep. `expire_ms` is absolute, -1 for none. `ours`: it was a copy that the
    migration itself had made, so nobody misses it.
    """

    id: int
    at_ns: int
    command: str
    db: int
    key: bytes
    other_db: int
    other_key: bytes
    payload: bytes | None
    expire_ms: int
    ours: bool
    why: str
    put_back_ns: int | None


class History:
    """The history in a ledger's file, which must be there. Close it, or use it in `with`. Raises LedgerUnusable."""

    def __init__(self, path: Path, *, mode: str = "w") -> None:
        self.path = path
        if not path.exists():
            raise LedgerUnusable(f"there is no ledger {path}", hint="run a backfill first, or give --ledger")
        Ledger.open(path, mode="r").close()  # it is one, and not a newer one
        flags = apsw.SQLITE_OPEN_READONLY if mode == "r" else apsw.SQLITE_OPEN_READWRITE
        try:
            self._db = apsw.Connection(str(path), flags=flags)
            self._db.set_busy_timeout(10_000)
            if mode == "w":
                self._write(lambda: self._db.execute(_TABLES))
                self._db.pragma("synchronous", "normal")
            self._has_tables = bool(self._all("SELECT 1 FROM sqlite_master WHERE name = 'replaced'"))
        except apsw.Error as error:
            raise self._unusable(error) from error

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it. May be called twice."""
        self._db.close()

    # The ledger's values

    def value(self, name: str) -> str | None:
        """Return a value of the ledger's state row, as Ledger.state() does."""
        rows = self._all("SELECT value FROM state WHERE name = ?", (name,))
        return None if not rows else str(rows[0][0])

    def set_values(self, **values: str) -> None:
        """Write values of the ledger's state row, all or none, without the ledger's lock."""
        self._write(
            lambda: self._db.executemany("INSERT OR REPLACE INTO state VALUES(?,?)", list(values.items())), power=True
        )

    @property
    def live(self) -> tuple[Phase, int] | None:
        """Return (phase, version) of the live migration as far as the ledger knows, None for none."""
        phase, version = self.value("live_phase"), self.value("live_version")
        return (Phase(phase), int(version or 0)) if phase else None

    @property
    def version_max(self) -> int:
        """Return the greatest version that this ledger has seen."""
        return int(self.value("live_version") or 0)

    # Transitions

    def intend(self, command: str, before: Phase, after: Phase, by: str, reason: str, forced: bool) -> int:
        """Write down a change of phase that is about to be made; return its id."""
        row = (clock.now_ns(), command, before.value, after.value, by, reason, int(forced))
        self._write(
            lambda: self._db.execute(
                "INSERT INTO transition(at_ns, command, before, after, by, reason, forced, outcome)"
                " VALUES(?,?,?,?,?,?,?,'')",
                row,
            ),
            power=True,
        )
        return self._db.last_insert_rowid()

    def end(self, id: int, state: State) -> None:
        """Write down that a change was made."""

        def write() -> None:
            row = (state.version, clock.now_ns(), DONE, id)
            self._db.execute("UPDATE transition SET version=?, ended_ns=?, outcome=? WHERE id=?", row)
            self._know(state)

        self._write(write, power=True)

    def refuse(self, id: int, why: str) -> None:
        """Write down that a change was not made."""
        row = (clock.now_ns(), f"{NOT_DONE}: {why}", id)
        self._write(lambda: self._db.execute("UPDATE transition SET ended_ns=?, outcome=? WHERE id=?", row))

    def reconcile(self, state: State) -> None:
        """Take the state in Redis for the truth: end what a killed command began, and know its phase and version."""

        def write() -> None:
            for id, after in list(self._db.execute("SELECT id, after FROM transition WHERE ended_ns IS NULL")):
                done = after == state.phase.value
                outcome = DONE if done else f"{NOT_DONE}: the command was killed before"
                row = (state.version if done else None, clock.now_ns(), outcome, id)
                self._db.execute("UPDATE transition SET version=?, ended_ns=?, outcome=? WHERE id=?", row)
            self._know(state)

        if self.live != (state.phase, state.version) or self._all("SELECT 1 FROM transition WHERE ended_ns IS NULL"):
            self._write(write)

    def _know(self, state: State) -> None:
        values = {"live_phase": state.phase.value, "live_version": str(state.version), "phase": state.phase.value}
        self._db.executemany("INSERT OR REPLACE INTO state VALUES(?,?)", list(values.items()))

    def forget_live(self, phase: str) -> None:
        """Know no live migration any more; its greatest version stays known."""
        self.set_values(live_phase="", phase=phase)

    def transitions(self) -> list[Transition]:
        """Return all changes of phase, oldest first."""
        if not self._has_tables:
            return []
        columns = "id, at_ns, command, before, after, coalesce(version, 0), by, reason, forced, ended_ns, outcome"
        rows = self._all(f"SELECT {columns} FROM transition ORDER BY id")
        names = Transition.__struct_fields__
        return [msgspec.convert(dict(zip(names, row, strict=True)), Transition, strict=False) for row in rows]

    # Replaced values

    def keep(self, rows: Sequence[tuple[str, int, bytes, int, bytes, bytes | None, int, bool, str]]) -> None:
        """Keep values about to be replaced.

        A row: command, database and key, the other side's database and key, DUMP, expiry, ours, why.
        """
        now_ns = clock.now_ns()
        values = [(now_ns, *row[:7], int(row[7]), row[8]) for row in rows]
        self._write(
            lambda: self._db.executemany(
                "INSERT INTO replaced(at_ns, command, db, key, other_db, other_key, payload, expire_ms, ours, why)"
                " VALUES(?,?,?,?,?,?,?,?,?,?)",
                values,
            )
        )

    def replaced(
        self, *, db: int | None = None, key: bytes | None = None, open_only: bool = False
    ) -> Iterator[Replaced]:
        """Yield replaced values, oldest first: of one key if given; `open_only`: those not put back."""
        if not self._has_tables:
            return
        wanted = {"db": db, "key": key}
        clauses = [f"{name} = ?" for name, value in wanted.items() if value is not None]
        clauses += ["put_back_ns IS NULL"] if open_only else []
        where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
        values = [value for value in wanted.values() if value is not None]
        names = ", ".join(Replaced.__struct_fields__)
        for row in self._db.execute(f"SELECT {names} FROM replaced {where} ORDER BY id", values):
            values_of = dict(zip(Replaced.__struct_fields__, row, strict=True))
            yield Replaced(**{**values_of, "ours": bool(values_of["ours"])})

    # New keys that were there before both sides were written

    def note_found(self, places: Sequence[tuple[int, bytes]]) -> None:
        """Put down new keys that the migration did not make."""
        self._write(lambda: self._db.executemany("INSERT OR IGNORE INTO found VALUES(?,?)", places))

    def was_found(self, db: int, key: bytes) -> bool:
        """Return whether a new key was there before both sides were written."""
        return self._has_tables and bool(self._all("SELECT 1 FROM found WHERE db = ? AND key = ?", (db, key)))

    def put_back(self, db: int, key: bytes) -> None:
        """Write down that what this key held was put back."""
        row = (clock.now_ns(), db, key)
        self._write(
            lambda: self._db.execute(
                "UPDATE replaced SET put_back_ns=? WHERE db=? AND key=? AND put_back_ns IS NULL", row
            )
        )

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return list(self._db.execute(sql, values))
        except apsw.Error as error:
            raise self._unusable(error) from error

    def _write(self, act: Callable[[], object], *, power: bool = False) -> None:
        """Carry it out as one transaction; `power`: one that a power cut cannot take back, as a change of phase."""
        db = self._db
        try:
            db.pragma("synchronous", "full" if power else "normal")
            db.execute("BEGIN IMMEDIATE")
            act()
            db.execute("COMMIT")
        except BaseException as error:
            if not db.get_autocommit():
                db.execute("ROLLBACK")
            if isinstance(error, apsw.Error):
                raise self._unusable(error) from error
            raise

    def _unusable(self, error: apsw.Error) -> LedgerUnusable | LedgerBusy:
        if isinstance(error, apsw.BusyError):
            return LedgerBusy(f"ledger {self.path} is locked", hint="another program has it open; close it")
        if isinstance(error, apsw.FullError):
            return LedgerUnusable(f"ledger {self.path}: the disk is full", hint="free space and run again")
        return LedgerUnusable(f"ledger {self.path}: {error}", hint="see that the path can be written")


def begun(path: Path, plan: Plan, *, address: str, run_id: str) -> None:
    """Make sure that the ledger is there and belongs to this plan and server. Raises LedgerUnusable, LedgerBusy."""
    if path.exists():
        with Ledger.open(path, mode="r") as ledger:
            ledger.check(plan, address=address, run_id=run_id)
            if ledger.state("plan_hash") is not None:
                return
    with Ledger.open(path) as ledger:
        ledger.bind(plan, address=address, run_id=run_id)


__all__ = ["DONE", "NOT_DONE", "History", "Replaced", "Transition", "begun"]
