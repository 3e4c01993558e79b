"""The database of MinhOS, `market_data.db`: its ticks and its minutes, taken while the old system may still write them.

Nothing of it is changed, and no lock is held for longer than one read of a few thousand rows. A row is known by its
table, its id and what it holds, so a copy of the database, one that was pruned, or one that was set back to a backup
gives the tape what the tape does not have, and nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from onetape.errors import ImportInvalid
from onetape.importing import predecessor_rows, times
from onetape.importing.format import Batch, Format, Options, Part, Tell
from onetape.minhos_row import WINDOW, mark
from onetape.store.layout import APPLICATION_ID

if TYPE_CHECKING:
    from onetape.tape import Tape

Found = TypeVar("Found")

_MAGIC = b"SQLite format 3\0"
_HINTS: dict[type[Exception], str] = {
    apsw.NotADBError: "it is no SQLite database",
    apsw.CorruptError: "the database is damaged: sqlite3's .recover saves what can be saved; import its result",
    apsw.BusyError: "another program holds it locked: try again",
}
#: How long a lock is waited for. MinhOS commits one row at a time, each in milliseconds.
_WAIT_S = 5
_TABLES = ("market_data", "market_data_1min")


def _detects(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            header = file.read(65_536)
        if header[:16] != _MAGIC or int.from_bytes(header[68:72]) == APPLICATION_ID:
            return False
        return "market_data" in _read(path, _columns_of)
    except ImportInvalid:
        return b"market_data" in header  # damaged or locked: saying so is for whoever imports it
    except OSError:
        return False


def _parts(path: Path, options: Options) -> list[Part]:
    zone = options.timezone or "UTC"
    times.check("iso", zone)
    columns = _read(path, _columns_of)
    keys = {table: _key_of(path, table, columns[table]) for table in columns}
    if "market_data" not in columns:
        raise ImportInvalid(f"{path}: it has no table market_data", hint="this is no database of MinhOS")
    parts: list[Part] = []
    for table, names in columns.items():
        missing = [name for name in ("symbol", "timestamp") if name not in names]
        missing += ["id"] if table == "market_data" and not keys[table] else []
        if missing:
            raise ImportInvalid(f"{path}, table {table}: no column {missing[0]}", hint="this is no database of MinhOS")
        kind = _Ticks if table == "market_data" else _Minutes
        parts.append(kind(path, table, names, keys[table], zone, options))
    return parts


class _Table(Part):
    """One table of the database."""

    steady = False  # the old system may go on writing
    used: frozenset[str] = frozenset()

    def __init__(self, path: Path, table: str, columns: Sequence[str], key: str, zone: str, options: Options) -> None:
        self.path, self.table, self.columns, self.key = path, table, columns, key
        self.zone, self.source = zone, options.source
        self.shown = f"{path}!{table}"
        self.how = {"table": table, "timezone": zone, "source": options.source}
        self.notes: list[str] = []
        unused = [name for name in columns if name not in self.used]
        if unused:
            self.notes.append(f"columns not used: {', '.join(unused)}")

    def _rows(self, where: str, given: tuple[Any, ...], order: str) -> list[dict[str, Any]]:
        """Return rows as dicts of their columns, and the key under the empty name."""
        names = ", ".join('"' + name.replace('"', '""') + '"' for name in self.columns)
        query = f"SELECT {names}, {self.key or 'NULL'} FROM {self.table} WHERE {where} ORDER BY {order}"
        rows = _read(self.path, lambda connection: connection.execute(query, given).fetchall())
        return [dict(zip((*self.columns, ""), row, strict=True)) for row in rows]

    def _one(self, what: str, where: str = "1", given: tuple[Any, ...] = ()) -> int | None:
        query = f"SELECT {what} FROM {self.table} WHERE {where}"
        found = _read(self.path, lambda connection: connection.execute(query, given).get)
        return None if found is None else int(found)


class _Ticks(_Table):
    """market_data: rows are added and never changed, so the place to go on from is found by the ids."""

    kind = "ticks"
    used = frozenset(("id", "symbol", "timestamp", "trades", "source", "created_at", *predecessor_rows.TICK_NUMBERS))
    _span: tuple[int, int] | None = None
    _before = _count = 0

    def begin(self, tape: Tape | None) -> None:
        """Find which rows are new; rows that come while we read are left to the next run."""
        if self._span is not None:
            return
        least, last = (self._one(f"{what}({self.key})") for what in ("min", "max"))
        if least is None or last is None:
            self._span = 0, 0
            return
        start = least - 1 if tape is None else self._known(tape, least - 1, last)
        self._span = start, last
        self._before = self._one("count(*)", f"{self.key} <= ?", (start,)) or 0
        self._count = self._one("count(*)") or 0
        self.bytes_total = self.path.stat().st_size

    def _known(self, tape: Tape, before: int, last: int) -> int:
        """Return the id of the newest row that the tape has, or `before`."""
        found, at = before, last
        while at > before:
            window = (at - 1) // WINDOW * WINDOW
            newest = self._rows(f"{self.key} <= ?", (window + WINDOW,), f"{self.key} DESC LIMIT 1")
            if newest and tape.cursor(self._mark(newest[0])) is not None:
                found = int(newest[0][""])
                break
            at = self._one(f"max({self.key})", f"{self.key} <= ?", (window,)) or before
        # The window after it may have been imported while it grew: then one of its rows ended a batch.
        first = self._one(f"min({self.key})", f"{self.key} > ?", (found,))
        if first is not None:
            end = (first - 1) // WINDOW * WINDOW + WINDOW
            where = f"{self.key} > ? AND {self.key} <= ?"
            for row in self._rows(where, (found, end), f"{self.key} DESC"):
                if tape.cursor(self._mark(row)) is not None:
                    return int(row[""])
        return found

    def batches(self, tell: Tell) -> Generator[Batch, None, str]:
        assert self._span is not None
        at, last = self._span
        if at >= last and not self._before:
            return ""
        if self._before:
            yield Batch(data=[], rows=0, place=str, known=self._before)
        done = self._before
        while at < last:
            first = self._one(f"min({self.key})", f"{self.key} > ?", (at,))
            if first is None or first > last:
                break
            end = min((first - 1) // WINDOW * WINDOW + WINDOW, last)
            rows = self._rows(f"{self.key} > ? AND {self.key} <= ?", (at, end), self.key)
            at = end
            if not rows:
                continue
            place = _Place([f"row {row['']}" for row in rows])
            batch = predecessor_rows.ticks(rows, self.zone, self.source, place)
            batch.cursor = (self._mark(rows[-1]), None, "imported")
            done += len(rows)
            tell(self.bytes_total * done // max(self._count, done))
            yield batch
        return ""

    def _mark(self, row: dict[str, Any]) -> str:
        return mark(row[""], row)


class _Minutes(_Table):
    """market_data_1min: a minute is written again while it grows, so each row is known by what it holds."""

    kind = "bars"
    used = frozenset(("symbol", "timestamp", "trades", *predecessor_rows.BAR_NUMBERS))

    def __init__(self, path: Path, table: str, columns: Sequence[str], key: str, zone: str, options: Options) -> None:
        super().__init__(path, table, columns, key, zone, options)
        self.notes.append(
            "volumes are as MinhOS summed them, from a volume that was cumulative; bars of ticks go first"
        )

    def batches(self, tell: Tell) -> Generator[Batch, None, str]:
        # By row id: a minute that is replaced meanwhile moves to the end. A table without row ids has a unique key.
        key = self.key or "(symbol, timestamp)"
        after: tuple[Any, ...] = ()
        while True:
            where = f"{key} > ({', '.join('?' for _ in after)})" if after else "1"
            rows = self._rows(where, after, f"{key.strip('()')} LIMIT {WINDOW}")
            if not rows:
                return ""
            after = (rows[-1][""],) if self.key else (rows[-1]["symbol"], rows[-1]["timestamp"])
            tell(0)
            place = _Place([f"row {row['symbol']!r} {row['timestamp']!r}" for row in rows])
            yield predecessor_rows.bars(rows, self.zone, self.source, place)


class _Place:
    def __init__(self, shown: Sequence[str]) -> None:
        self._shown = shown

    def __call__(self, index: int) -> str:
        return self._shown[index]


def _columns_of(connection: apsw.Connection) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for table in _TABLES:
        names = [str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")]
        if names:
            found[table] = names
    return found


def _key_of(path: Path, table: str, columns: Sequence[str]) -> str:
    """Return what rows are numbered by: SQLite's own row id, else a column id, else nothing."""

    def look(connection: apsw.Connection) -> str:
        try:
            connection.execute(f"SELECT rowid FROM {table} LIMIT 0")
            return "rowid"
        except apsw.SQLError:
            return "id" if "id" in columns else ""

    return _read(path, look)


class _Moving(Exception):
    """Somebody began to write the database while it was read as one at rest."""


def _read(path: Path, work: Callable[[apsw.Connection], Found]) -> Found:
    """Return what `work` reads in one moment of the database; again, if somebody who writes it was in the way."""
    until_s = time.monotonic() + _WAIT_S
    while True:
        try:
            return _attempt(path, work)
        except OSError as error:
            raise ImportInvalid(f"{path}: cannot be opened: {error.strerror}", hint="check the path") from error
        except (apsw.Error, _Moving) as error:
            # A journal that is not ours to roll back, or a log that comes and goes, is gone in a moment.
            passing = isinstance(error, apsw.BusyError | apsw.ReadOnlyError | apsw.CantOpenError | _Moving)
            if not passing or time.monotonic() > until_s:
                hint = _HINTS.get(type(error), "open it once with the program that wrote it, and import it again")
                raise ImportInvalid(f"{path}: {error}", hint=hint) from error
            time.sleep(0.01)


def _attempt(path: Path, work: Callable[[apsw.Connection], Found]) -> Found:
    log = path.with_name(path.name + "-wal")
    with path.open("rb") as file:
        logs = file.read(20)[18:20] == b"\2\2"
    # One that uses a log and has none is at rest: SQLite is told that it need not make one beside it.
    quiet = logs and not log.exists()
    how = "immutable=1" if quiet else "mode=ro"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(f"{path.absolute().as_uri()}?{how}", flags=flags)
    try:
        connection.set_busy_timeout(_WAIT_S * 1000)
        connection.execute("BEGIN")
        found = work(connection)
    except apsw.Error:
        if quiet and log.exists():
            raise _Moving from None
        raise
    finally:
        connection.close()
    if quiet and log.exists():
        raise _Moving("somebody began to write it while it was read")
    return found


FORMAT = Format(
    name="minhos",
    says="The predecessor's market_data.db: its ticks and one-minute bars, also while it is being written",
    detects=_detects,
    parts=_parts,
    uses=frozenset({"source", "timezone"}),
)
