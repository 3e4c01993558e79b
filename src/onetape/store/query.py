"""Queries: what is sealed plus the same fold over the journal's tail, each in one read transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import apsw
import numpy as np

from onetape.record import MINUTE_NS, Tick
from onetape.store import bars, chunks, seal
from onetape.store.block import ABSENT, Columns, canonical, concatenate, decode_many, take
from onetape.store.catalog import Catalog
from onetape.store.layout import KIND_BAR, KIND_TICK

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
    rows: list[Any] = connection.execute(
        "SELECT seq_last, count, payload FROM journal WHERE seq_last > ? ORDER BY seq_last", (start,)
    ).fetchall()
    return decode_many(rows, "journal") if rows else {}


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
) -> Columns | None:
    """Return one symbol's records with start_ns <= ts_event_ns < end_ns in canonical order, or None.

    wanted: only these columns (those a record has, and ts_event_ns and seq); as_of: as the tape was when its last
    position was this.
    """
    parts = []
    sealed = chunks.read(connection, kind, symbol_id, start_ns, end_ns)
    if sealed is not None:
        parts.append(sealed)
    fresh = tail(connection).get(kind)
    if fresh is not None:
        ts = fresh["ts_event_ns"]
        mask = (fresh["symbol"] == symbol_id) & (ts >= start_ns) & (ts < end_ns)
        if mask.any():
            mine = take(fresh, mask)
            del mine["symbol"]
            parts.append(mine)
    return canonical(concatenate(kind, parts)) if parts else None


def newest(connection: apsw.Connection, symbol_id: int, count: int) -> Columns | None:
    """Return one symbol's newest `count` ticks in canonical order, or None."""
    parts = []
    sealed = chunks.newest(connection, KIND_TICK, symbol_id, count)
    if sealed is not None:
        parts.append(sealed)
    fresh = tail(connection).get(KIND_TICK)
    if fresh is not None:
        mine = take(fresh, fresh["symbol"] == symbol_id)
        if len(mine.pop("symbol")):
            parts.append(mine)
    if not parts:
        return None
    joined = canonical(concatenate(KIND_TICK, parts))
    return {name: column[-count:] for name, column in joined.items()}


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
    kept = {
        row[1]: bars.Minute._make(row)
        for row in connection.execute(
            "SELECT symbol_id, ts_start_ns, open, high, low, close, volume, notional, trades, bid_volume, ask_volume,"
            " revision, first_ts, first_seq, last_ts, last_seq FROM bar WHERE symbol_id = ?"
            f" AND interval_ns = {MINUTE_NS} AND source_id = 0 AND ts_start_ns >= ? AND ts_start_ns < ?"
            " ORDER BY ts_start_ns",
            (symbol_id, start_ns, end_ns),
        )
    }
    before = seal.newest_trades(connection, [symbol_id])
    newest_ts = before.get(symbol_id, -1)
    fresh = tail(connection).get(KIND_TICK)
    if fresh is not None and (fresh["symbol"] == symbol_id).any():
        found = bars.trades(take(fresh, fresh["symbol"] == symbol_id))
        if len(found["ts_event_ns"]):
            newest_ts = max(newest_ts, int(found["ts_event_ns"][-1]))
            late = bars.late_counts(found, before)
            for bar in bars.fold(
                found,
                late,
                lambda keys: seal.kept_minutes(connection, keys),
                lambda sid, start: seal.minute_history(connection, sid, start, fresh),
            ):
                if start_ns <= bar.ts_start_ns < end_ns:
                    kept[bar.ts_start_ns] = bar
    return [kept[ts] for ts in sorted(kept)], newest_ts


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
