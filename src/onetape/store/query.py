"""Queries: what is sealed plus the same fold over the journal's tail, each in one read transaction."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import apsw
import numpy as np

from onetape.record import MINUTE_NS, Tick
from onetape.store import bars, cancels, chunks, seal
from onetape.store import minutes as minute_store
from onetape.store.block import ABSENT, Array, Columns, canonical, concatenate, decode_many, take
from onetape.store.catalog import Catalog
from onetape.store.layout import KIND_BAR, KIND_CANCEL, KIND_TICK

_NONE = np.zeros(0, dtype="<i8")
TICK_NAMES: tuple[str, ...] = Tick.__struct_fields__


@contextmanager
def snapshot(connection: apsw.Connection) -> Iterator[None]:
    """Everything read inside is of one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def tail(connection: apsw.Connection, after: int | None = None) -> dict[int, Columns]:
    """Return the records behind the seal (or after a position), by kind, in order of position, with seq."""
    start = seal.seal_position(connection) if after is None else after
    kept = _kept_tails.get(connection) if after is None else None
    if kept is not None:
        return kept.read(connection, start)
    rows: list[Any] = connection.execute(
        "SELECT seq_last, count, payload FROM journal WHERE seq_last > ? ORDER BY seq_last", (start,)
    ).fetchall()
    return decode_many(rows, "journal") if rows else {}


def keep_tail(connection: apsw.Connection) -> None:
    """Let this connection keep what tail() decoded, and decode only what came since. For one that never writes.

    Rows of the journal never change, and a connection's next look is never at an older state than its last.
    """
    _kept_tails[connection] = _Tail()


class _Tail:
    """The decoded tail of one connection: of which seal, and up to which position."""

    def __init__(self) -> None:
        self._seal, self._last = -1, -1
        self._found: dict[int, Columns] = {}

    def read(self, connection: apsw.Connection, start: int) -> dict[int, Columns]:
        if start != self._seal:
            self._seal, self._last, self._found = start, start, {}
        rows: list[Any] = connection.execute(
            "SELECT seq_last, count, payload FROM journal WHERE seq_last > ? ORDER BY seq_last", (self._last,)
        ).fetchall()
        if rows:
            newer = decode_many(rows, "journal")
            for kind, columns in newer.items():
                before = self._found.get(kind)
                self._found[kind] = columns if before is None else concatenate(kind, [before, columns])
            self._last = rows[-1][0]
        return dict(self._found)


_kept_tails: weakref.WeakKeyDictionary[apsw.Connection, _Tail] = weakref.WeakKeyDictionary()


def head(connection: apsw.Connection) -> int:
    """Return the last position given."""
    return int(connection.execute("SELECT max(seq_last) FROM journal").get)


def ticks(
    connection: apsw.Connection,
    symbol_id: int,
    start_ns: int,
    end_ns: int,
    kind: int = KIND_TICK,
    wanted: Sequence[str] | None = None,
    as_of: int | None = None,
    positions: bool = True,
    allocate: chunks.Allocate = np.empty,
    complete: set[str] | None = None,
) -> Columns | None:
    """Return one symbol's records with start_ns <= ts_event_ns < end_ns in canonical order, or None.

    wanted: only these columns (those a record has, and ts_event_ns and seq; seq only where it is needed, if positions
    is False); as_of: as the tape was when its last position was this; allocate: makes long columns; complete: gets
    names of columns that are known to have nothing absent.
    """
    fresh = tail(connection)
    beside = cancels.of_symbol(fresh.get(kind), symbol_id, start_ns, end_ns)
    taken_back = _NONE if kind != KIND_TICK else cancels.targets(connection, symbol_id, start_ns, end_ns, fresh, as_of)
    positions |= len(taken_back) > 0
    found = chunks.read(
        connection, kind, symbol_id, start_ns, end_ns, wanted, as_of, beside, positions, allocate, complete
    )
    return found if found is None else cancels.without(found, taken_back)


def newest(
    connection: apsw.Connection,
    symbol_id: int,
    count: int,
    wanted: Sequence[str] | None = None,
    as_of: int | None = None,
) -> Columns | None:
    """Return one symbol's newest `count` ticks in canonical order, or None; wanted and as_of as in ticks()."""
    fresh = tail(connection)
    needed = None if wanted is None else {"ts_event_ns", "seq", *wanted}
    beside = cancels.of_symbol(fresh.get(KIND_TICK), symbol_id, 0, 2**63 - 1)
    if beside is not None and as_of is not None:
        beside = take(beside, beside["seq"] <= as_of)
    if beside is not None and needed is not None:
        beside = {name: column for name, column in beside.items() if name in needed}
    asked = count
    while True:
        parts = [] if beside is None else [beside]
        sealed = chunks.newest(connection, KIND_TICK, symbol_id, asked, wanted, as_of)
        if sealed is not None:
            parts.append(sealed)
        if not parts:
            return None
        joined = canonical(concatenate(KIND_TICK, parts))
        have = len(joined["ts_event_ns"])
        if not have:
            return None
        first = int(joined["ts_event_ns"][max(0, have - asked)])
        last = int(joined["ts_event_ns"][-1]) + 1
        stands = cancels.without(joined, cancels.targets(connection, symbol_id, first, last, fresh, as_of))
        there = int(np.count_nonzero(stands["ts_event_ns"] >= first))
        if there >= count or have < asked:
            return {name: column[-count:] for name, column in stands.items()}
        asked *= 2  # some of the newest were taken back: look further


class Names(NamedTuple):
    """How ids become names."""

    catalog: Catalog
    connection: apsw.Connection

    def symbols(self, ids: Iterable[int]) -> list[str]:
        return [self.catalog.symbol(self.connection, i) for i in ids]

    def sources(self, ids: Iterable[int]) -> list[str | None]:
        return [self.catalog.source(self.connection, i) for i in ids]


def to_ticks(columns: Columns, symbol: str | Sequence[str], names: Names) -> list[Tick]:
    """Return columns as Ticks; `symbol` is one for all, or one a record."""
    count = len(columns["ts_event_ns"])
    values: list[Any] = []
    for name in TICK_NAMES:
        if name == "symbol":
            values.append([symbol] * count if isinstance(symbol, str) else symbol)
        elif name == "source":
            values.append(names.sources(columns["source"].tolist()) if "source" in columns else [None] * count)
        elif name not in columns:
            values.append([0 if name in ("side", "flags") else None] * count)
        else:
            values.append(_optional(columns[name]))
    return list(map(Tick, *values))


def _optional(column: Any) -> list[Any]:
    values: list[Any] = column.tolist()
    if column.dtype.kind == "f":
        return [None if v != v else v for v in values] if np.isnan(column).any() else values
    if column.dtype.itemsize == 8 and (column == ABSENT).any():
        return [None if v == ABSENT else v for v in values]
    return values


def minutes(connection: apsw.Connection, symbol_id: int, start_ns: int, end_ns: int) -> tuple[list[bars.Minute], int]:
    """Return the tape's own minutes with start_ns <= ts_start_ns < end_ns, and the newest trade time (-1: none)."""
    found, newest_ts = minute_rows(connection, [symbol_id], start_ns, end_ns)
    return bars.to_records(found), newest_ts[symbol_id]


def minute_rows(
    connection: apsw.Connection, symbol_ids: Sequence[int], start_ns: int, end_ns: int
) -> tuple[Array, dict[int, int]]:
    """Return the own MINUTES (store/bars.py) of symbols with start_ns <= start < end_ns, by symbol id, ascending.

    And the time of the newest trade of each symbol (-1: none), which tells what is complete.
    """
    asked = np.array(sorted(symbol_ids), dtype="<u4")
    kept = minute_store.read_all(connection, asked.tolist(), start_ns, end_ns)
    before = seal.newest_trades(connection, asked.tolist())
    newest_ts = {symbol_id: before.get(symbol_id, -1) for symbol_id in asked.tolist()}
    fresh = tail(connection)
    ticks_there = _of_symbols(fresh.get(KIND_TICK), asked)
    taken_back = _of_symbols(fresh.get(KIND_CANCEL), asked)
    if ticks_there is None and taken_back is None:
        return kept, newest_ts
    if ticks_there is not None and "price" in ticks_there:
        traded = ~np.isnan(ticks_there["price"])
        for symbol_id in np.unique(ticks_there["symbol"][traded]).tolist():
            mine = traded & (ticks_there["symbol"] == symbol_id)
            newest_ts[symbol_id] = max(newest_ts[symbol_id], int(ticks_there["ts_event_ns"][mine].max()))
    changed = seal.minutes_of(connection, ticks_there, taken_back, fresh)
    within = (changed["ts_event_ns"] >= start_ns) & (changed["ts_event_ns"] < end_ns)
    both = np.concatenate((kept, changed[within]))
    order = both["symbol"].astype("<i8") << 28 | both["ts_event_ns"] // MINUTE_NS
    by = np.argsort(order, kind="stable")
    last = np.append(order[by][1:] != order[by][:-1], True) if len(by) else np.zeros(0, dtype=bool)
    joined = both[by[last]]
    return joined[joined["trades"] > 0], newest_ts


def _of_symbols(columns: Columns | None, symbol_ids: Array) -> Columns | None:
    if columns is None:
        return None
    mask = np.isin(columns["symbol"], symbol_ids)
    return take(columns, mask) if mask.any() else None


class SymbolCounts(NamedTuple):
    """What the tape holds of one symbol."""

    ticks: int
    bars: int
    ts_min: int | None
    ts_max: int | None


def symbol_counts(connection: apsw.Connection) -> dict[int, SymbolCounts]:
    """Return the counts of every symbol, the journal's tail included."""
    found = {
        row[0]: SymbolCounts(*row[1:])
        for row in connection.execute("SELECT id, ticks, bars, ts_min, ts_max FROM symbol")
    }
    for kind, columns in tail(connection).items():
        symbols, ts = columns["symbol"], columns["ts_event_ns"]
        for symbol_id in np.unique(symbols).tolist():
            mine = ts[symbols == symbol_id]
            old = found.get(symbol_id, SymbolCounts(0, 0, None, None))
            least, most = int(mine.min()), int(mine.max())
            found[symbol_id] = SymbolCounts(
                old.ticks + (len(mine) if kind == KIND_TICK else 0),
                old.bars + (len(mine) if kind == KIND_BAR else 0),
                least if old.ts_min is None else min(least, old.ts_min),
                most if old.ts_max is None else max(most, old.ts_max),
            )
    return found
