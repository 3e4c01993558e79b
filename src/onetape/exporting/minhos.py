"""The predecessor's database, written back: ticks and one-minute bars in the schema of MinhOS's market_data.db."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import msgspec

from onetape import minhos_row
from onetape.clock import Time, to_ns
from onetape.errors import ConfigInvalid, CursorConflict, TapeBusy, TapeFull, TapeReadOnly
from onetape.exporting import OnProgress, keep_off, known, minhos_rows, target
from onetape.progress import ProgressMeter
from onetape.record import OWN_SYMBOLS, TS_MAX_NS, Tick

if TYPE_CHECKING:
    from onetape.tape import Tape
    from onetape.tape.moment import Moment

#: Rows that are Python objects at once.
_ROWS = 16_384

# The indexes are made first: rows come in order of symbol and time, so that nothing has to be sorted beside the file.
_SCHEMA = """
CREATE TABLE market_data(
    id INTEGER PRIMARY KEY AUTOINCREMENT, symbol TEXT NOT NULL, timestamp REAL NOT NULL, open REAL, high REAL, low REAL,
    close REAL NOT NULL, volume INTEGER, bid REAL, ask REAL, bid_size INTEGER, ask_size INTEGER, last_size INTEGER,
    vwap REAL, trades INTEGER, source TEXT, metadata JSON, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX idx_market_data_symbol_timestamp ON market_data(symbol, timestamp);
CREATE INDEX idx_market_data_timestamp ON market_data(timestamp);
CREATE TABLE market_data_1min(
    symbol TEXT NOT NULL, timestamp REAL NOT NULL, open REAL, high REAL, low REAL, close REAL, volume INTEGER,
    vwap REAL, trades INTEGER, PRIMARY KEY (symbol, timestamp));
CREATE INDEX idx_market_data_1min_timestamp ON market_data_1min(timestamp);
"""
_TICK = (
    f"INSERT INTO market_data({', '.join(minhos_rows.COLUMNS)}) VALUES ({', '.join('?' * len(minhos_rows.COLUMNS))})"
)
_MINUTE = "INSERT INTO market_data_1min VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


class MinhosExported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written. `head`: the position of the tape it shows.

    `bars_left_out`: second bars of a minute, and any before 1973. `known`: the tape knows the rows of the file for its
    own, so that importing it later takes only what was added to it; not where the tape cannot be written.
    """

    to: str
    head: int
    symbols: int
    ticks: int
    minutes: int
    bars_left_out: int
    known: bool
    bytes: int
    seconds: float


def export_minhos(
    tape: Tape,
    to: str | os.PathLike[str],
    *,
    symbols: Sequence[str] | None = None,
    start: Time | None = None,
    end: Time | None = None,
    replace: bool = False,
    on_progress: OnProgress | None = None,
) -> MinhosExported:
    """Write the ticks and one-minute bars with start <= time < end as a new database of MinhOS.

    Everything is of one moment of the tape, read and written in pieces. Rows are in order of symbol (as asked, else by
    name), then canonical. A tick that is only a quote has as close the last trade before it in what is written, or,
    before the first, the middle of its quote: the old table has no row without one. What a column cannot hold is under
    "onetape" in `metadata`, and the import of the file takes it from there. A minute has the tape's own bar, else the
    first source's by name. The tape is told the identity of the ticks' rows (see onetape.minhos_row), if it can be
    written: an import of the file onto it takes what the old system added since, and nothing twice.

    Raises ConfigInvalid for a target that is there (unless `replace`) and for what cannot be asked, ExportFailed for
    one that cannot be written (nothing of it is left), ChunkCorrupt.
    """
    path = Path(os.path.abspath(to))  # noqa: PTH100  (a link as target is replaced, not followed)
    keep_off(tape, path)
    _refuse_logs(path)
    began_s = time.monotonic()
    with tape.moment() as moment:
        asked = [symbol for symbol in known(moment, symbols, tape) if symbols or not symbol.startswith(OWN_SYMBOLS)]
        hidden = next((symbol for symbol in asked if symbol.startswith(OWN_SYMBOLS)), None)
        if hidden is not None:
            raise ConfigInvalid(f"{hidden} is no market data", hint="the old schema holds ticks and minutes alone")
        span = (0 if start is None else to_ns(start, "start"), TS_MAX_NS + 1 if end is None else to_ns(end, "end"))
        with target.writing(path, folder=False, replace=replace) as temporary:
            job = _Job(temporary, on_progress)
            try:
                job.write(moment, asked, span)
                # Before the file is in its place: a kill between the two leaves a word on rows that are nowhere else.
                told = _tell(tape, job.marks())
            finally:
                job.close()
            size = temporary.stat().st_size
            _refuse_logs(path)
        return MinhosExported(
            to=str(path),
            head=moment.head,
            symbols=len(job.symbols),
            ticks=job.ticks,
            minutes=job.minutes,
            bars_left_out=job.left_out,
            known=told,
            bytes=size,
            seconds=time.monotonic() - began_s,
        )


def _tell(tape: Tape, marks: Iterable[str]) -> bool:
    """Tell the tape which rows are its own, as an import of them would."""
    try:
        for mark in marks:
            if tape.cursor(mark) is None:
                with contextlib.suppress(CursorConflict):  # another export of the same did it meanwhile
                    tape.append([], cursor=(mark, None, "exported"))
    except (TapeReadOnly, TapeBusy, TapeFull):
        return False
    return True


def _refuse_logs(path: Path) -> None:
    """Refuse a name beside which another database's log lies: SQLite would take it for this one's."""
    for end in ("-wal", "-journal", "-shm"):
        log = path.with_name(path.name + end)
        if os.path.lexists(log):
            raise ConfigInvalid(f"{log} is there: it belongs to another database", hint="give another name")


class _Job:
    """One export on its way into a new file."""

    def __init__(self, temporary: Path, on_progress: OnProgress | None) -> None:
        self.symbols = set[str]()
        self.ticks = self.minutes = self.left_out = 0
        self._meter, self._on_progress, self._total = ProgressMeter("exporting"), on_progress, 0
        self._connection: apsw.Connection | None = None
        try:
            self._connection = apsw.Connection(str(temporary))
        except apsw.Error as error:
            raise _as_os(error) from error
        # Nobody sees the file before it is whole and synced, so that nothing has to be undone in it.
        self._run("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", "PRAGMA locking_mode = EXCLUSIVE", "BEGIN")
        self._run(_SCHEMA)

    def write(self, moment: Moment, symbols: Sequence[str], span: tuple[int, int]) -> None:
        """Write everything."""
        spans = {symbol: moment.spans(symbol, "ticks", *span) for symbol in symbols}
        self._total = sum(count for found in spans.values() for _, _, count in found)
        for symbol, found in spans.items():
            rows = minhos_rows.TickRows(symbol)
            for start_ns, end_ns, _ in found:
                self._piece(rows, moment.ticks(symbol, start_ns, end_ns))
            for start_ns, end_ns, _ in moment.spans(symbol, "bars", *span):
                chosen, left_out = minhos_rows.minutes(moment.bars(symbol, "1min", start_ns, end_ns))
                self._many(_MINUTE, chosen)
                self.minutes += len(chosen)
                self.left_out += left_out
                if chosen:
                    self.symbols.add(symbol)
        self._run("COMMIT")

    def marks(self) -> Iterator[str]:
        """Yield the identity of the last row of each window, as they are read from the file."""
        names = ", ".join(minhos_row.TELLING)
        for at in range(minhos_row.WINDOW, self.ticks + minhos_row.WINDOW, minhos_row.WINDOW):
            row_id = min(at, self.ticks)
            for row in self._run(f"SELECT {names} FROM market_data WHERE id = {row_id}"):
                yield minhos_row.mark(row_id, dict(zip(minhos_row.TELLING, row, strict=True)))

    def _piece(self, rows: minhos_rows.TickRows, table: Any) -> None:
        for at in range(0, table.num_rows, _ROWS):
            some = table.slice(at, _ROWS)
            columns = [some.column(name).to_pylist() for name in Tick.__struct_fields__]
            self._many(_TICK, rows.of(Tick(*values) for values in zip(*columns, strict=True)))
            self.ticks += some.num_rows
            self.symbols.add(rows.symbol)
            if self._on_progress is not None:
                self._on_progress(self._meter.update(self.ticks, max(self._total, self.ticks)))

    def _run(self, *statements: str) -> list[Any]:
        assert self._connection is not None
        found: list[Any] = []
        try:
            for statement in statements:
                found = self._connection.execute(statement).fetchall()
        except apsw.Error as error:
            raise _as_os(error) from error
        return found

    def _many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        assert self._connection is not None
        try:
            self._connection.executemany(statement, rows)
        except apsw.Error as error:
            raise _as_os(error) from error

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close(True)


def _as_os(error: apsw.Error) -> OSError:
    """Return what went wrong as an error of the file system, which the target knows how to tell."""
    return OSError(errno.ENOSPC if isinstance(error, apsw.FullError) else errno.EIO, str(error))


__all__ = ["MinhosExported", "export_minhos"]
