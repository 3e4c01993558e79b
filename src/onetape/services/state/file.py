"""The file of the state: one SQLite file beside the tape; each change and its event are one transaction."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, FillConflict, StateUnusable
from onetape.services.state.position import Fill, Position, apply, exact

Kept = TypeVar("Kept")

VERSION = 1
_APPLICATION_ID = 0x6F745354  # "otST"
_BUSY_MS = 10_000
#: Where two open a new file at once, SQLite does not wait: it is tried again for so long, s.
_OPEN_S = 10.0
#: Events that are kept. Those who follow look every 0.25 s, and each change is synced: nobody is so far behind.
EVENTS_MAX = 100_000
#: How often older ones are removed, in events.
_TRIM_EVERY = 1_000
_TABLES = """
CREATE TABLE position(symbol TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE fill(fill_id TEXT PRIMARY KEY, ts_ns INTEGER NOT NULL, content TEXT NOT NULL, realized TEXT NOT NULL)
    WITHOUT ROWID;
CREATE INDEX fill_by_time ON fill(ts_ns);
CREATE TABLE setting(name TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE event(event_id INTEGER PRIMARY KEY AUTOINCREMENT, at_ns INTEGER NOT NULL, kind TEXT NOT NULL,
    content TEXT NOT NULL);
"""


class Event(msgspec.Struct, frozen=True):
    """One change of the state. kind: "fill", "contract", "risk" or "system"; content: what it is now, as plain data."""

    event_id: int
    at_ns: int
    kind: str
    content: dict[str, Any]


class StateFile:
    """Any number of processes read and change it. A change that returned survives a kill and a power cut.

    Raises StateUnusable where the file cannot be opened, read or written; then nothing of the change is stored.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._opened: tuple[int, int] | None = None
        until_s = time.monotonic() + _OPEN_S
        while True:
            try:
                with self._mapped("open"):
                    self._connection = apsw.Connection(str(self.path))
                    self._prepare()
                    self._opened = _which(self.path)
                return
            except BaseException as error:
                if hasattr(self, "_connection"):
                    self._connection.close()
                if not isinstance(error.__cause__, apsw.BusyError) or time.monotonic() > until_s:
                    raise
            time.sleep(0.02)

    def close(self) -> None:
        """Close it; it cannot be used any more."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def moment(self) -> Iterator[None]:
        """What is read within is of one moment, whatever other threads and processes change meanwhile."""
        with self._lock, self._mapped("read"):
            if self._connection.in_transaction:  # it is in a moment already, or in a change of its own
                yield
                return
            self._connection.execute("BEGIN").fetchall()
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK").fetchall()

    def position(self, symbol: str) -> Position:
        """Return a symbol's position; a flat one where there never was any."""
        rows = self._ask("SELECT content FROM position WHERE symbol = ?", (symbol,))
        return _decoded(self.path, rows[0][0], Position) if rows else Position(symbol=symbol)

    def positions(self) -> dict[str, Position]:
        """Return every position that ever was, by symbol, flat ones too."""
        rows = self._ask("SELECT content FROM position ORDER BY symbol")
        return {one.symbol: one for one in (_decoded(self.path, row[0], Position) for row in rows)}

    def setting(self, name: str) -> dict[str, Any]:
        """Return a setting, {} where it was never set."""
        rows = self._ask("SELECT content FROM setting WHERE name = ?", (name,))
        return _decoded(self.path, rows[0][0], dict[str, Any]) if rows else {}

    def fills(self, limit: int) -> list[Fill]:
        """Return the newest fills, ascending in time."""
        rows = self._ask("SELECT content FROM fill ORDER BY ts_ns DESC, fill_id DESC LIMIT ?", (limit,))
        return [_decoded(self.path, row[0], Fill) for row in reversed(rows)]

    def made(self, start_ns: int, end_ns: int) -> Decimal:
        """Return what fills of start <= time < end realized, after fees."""
        rows = self._ask("SELECT content, realized FROM fill WHERE ts_ns >= ? AND ts_ns < ?", (start_ns, end_ns))
        with exact():
            return sum((Decimal(row[1]) - _decoded(self.path, row[0], Fill).fee for row in rows), Decimal(0))

    def events(self, after: int, limit: int = 1000) -> list[Event]:
        """Return events with a greater id, ascending. Their ids have no holes; the newest EVENTS_MAX are kept."""
        rows = self._ask("SELECT * FROM event WHERE event_id > ? ORDER BY event_id LIMIT ?", (after, limit))
        return [Event(row[0], row[1], row[2], _decoded(self.path, row[3], dict[str, Any])) for row in rows]

    def last_event(self) -> int:
        """Return the id of the newest event, 0 before there is one."""
        return int(self._ask("SELECT coalesce(max(event_id), 0) FROM event")[0][0])

    def fill(self, fill: Fill) -> tuple[Position, Decimal, bool]:
        """Take a fill: the position after it, what it realized, and whether it is new. Raises FillConflict.

        A fill that was taken before changes nothing.
        """
        with self._changing():
            return self._known(fill) or self._new(fill)

    def flatten(self, fill: Fill) -> tuple[Position, Decimal, bool]:
        """As fill(), of all that is held then, whatever quantity it has; of nothing it is none, and is not new."""
        with self._changing():
            known = self._known(fill, any_quantity=True)
            held = self.position(fill.symbol)
            if known or not held.quantity:
                return known or (held, Decimal(0), False)
            return self._new(msgspec.structs.replace(fill, quantity=-held.quantity))

    def _known(self, fill: Fill, *, any_quantity: bool = False) -> tuple[Position, Decimal, bool] | None:
        known = self._ask("SELECT content, realized FROM fill WHERE fill_id = ?", (fill.fill_id,))
        if not known:
            return None
        before = _decoded(self.path, known[0][0], Fill)
        quantity = fill.quantity if any_quantity else before.quantity
        if msgspec.structs.replace(before, ts_ns=fill.ts_ns, quantity=quantity) != fill:
            raise FillConflict(
                f"the fill {fill.fill_id!r} was taken before with other content: {before}",
                hint="an id names one execution for ever: give each its own",
                fill_id=fill.fill_id,
            )
        return self.position(fill.symbol), Decimal(known[0][1]), False

    def _new(self, fill: Fill) -> tuple[Position, Decimal, bool]:
        after, realized = apply(self.position(fill.symbol), fill)
        content = msgspec.json.encode(fill).decode()
        self._ask("INSERT INTO fill VALUES (?, ?, ?, ?)", (fill.fill_id, fill.ts_ns, content, str(realized)))
        self._put(after)
        plain = {"fill": msgspec.to_builtins(fill), "position": msgspec.to_builtins(after)}
        self._tell("fill", {**plain, "realized": str(realized)})
        return after, realized, True

    def contract(self, symbol: str, multiplier: Decimal) -> None:
        """Set what one point of a contract is worth. Raises ConfigInvalid while it is held at another."""
        with self._changing():
            position = self.position(symbol)
            if position.multiplier == multiplier and self._ask("SELECT 1 FROM position WHERE symbol = ?", (symbol,)):
                return
            if position.quantity and position.multiplier != multiplier:
                raise ConfigInvalid(
                    f"{symbol}: the multiplier is {position.multiplier:f} while {position.quantity:f} are held",
                    hint="close the position first: another multiplier would change what it made",
                )
            self._put(msgspec.structs.replace(position, multiplier=multiplier))
            self._tell("contract", {"symbol": symbol, "multiplier": str(multiplier)})

    def change(self, name: str, make: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Make a setting anew from what it is, in one transaction, and return it; what raises changes nothing."""
        with self._changing():
            before = self.setting(name)
            after = make(before)
            if after != before:
                self._ask("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, msgspec.json.encode(after).decode()))
                self._tell(name, after)
            return after

    def _prepare(self) -> None:
        connection = self._connection
        connection.set_busy_timeout(_BUSY_MS)
        connection.execute("PRAGMA synchronous = FULL").fetchall()
        with self._changing():
            empty = not connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
            if empty:
                connection.execute(f"{_TABLES} PRAGMA application_id = {_APPLICATION_ID};").fetchall()
                connection.execute(f"PRAGMA user_version = {VERSION}").fetchall()
            if connection.pragma("application_id") != _APPLICATION_ID:
                raise StateUnusable(f"{self.path} is not a state file", hint="give another path; it was not touched")
            if connection.pragma("user_version") > VERSION:
                raise StateUnusable(f"{self.path} was written by a newer onetape", hint="update onetape")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()

    def _put(self, position: Position) -> None:
        content = msgspec.json.encode(position).decode()
        self._ask("INSERT OR REPLACE INTO position VALUES (?, ?)", (position.symbol, content))

    def _tell(self, kind: str, content: dict[str, Any]) -> None:
        text = msgspec.json.encode(content).decode()
        self._ask("INSERT INTO event(at_ns, kind, content) VALUES (?, ?, ?)", (now_ns(), kind, text))
        newest = self.last_event()
        if newest % _TRIM_EVERY == 0:
            self._ask("DELETE FROM event WHERE event_id <= ?", (newest - EVENTS_MAX,))

    def _ask(self, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock, self._mapped("read"):
            return self._connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock, self._mapped("write"):
            if self._opened is not None and _which(self.path) != self._opened:
                # SQLite would go on in the file that has no name any more, and all of it would be gone at the end.
                raise StateUnusable(
                    f"{self.path} was removed or replaced while it was in use; nothing of this change is stored",
                    hint="put it back where it was; or restart, to go on with what is there now",
                )
            self._connection.execute("BEGIN IMMEDIATE").fetchall()
            try:
                yield
                self._connection.execute("COMMIT").fetchall()
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK").fetchall()
                raise

    @contextlib.contextmanager
    def _mapped(self, act: str) -> Iterator[None]:
        try:
            yield
        except (apsw.Error, OSError) as error:
            hint = "check the disk and the rights; nothing of this change is stored"
            raise StateUnusable(f"cannot {act} {self.path}: {error}", hint=hint) from error


def _which(path: Path) -> tuple[int, int] | None:
    """Return what tells the file at a path from any other; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _decoded(path: Path, text: str, what: type[Kept]) -> Kept:
    try:
        return msgspec.json.decode(text, type=what)
    except msgspec.DecodeError as error:
        hint = "the file is damaged, or something else wrote it: put back a copy of it"
        raise StateUnusable(f"cannot read {path}: {error}: {text[:100]!r}", hint=hint) from error
