"""Given bars: those that were appended as bars, kept by source, each with its latest content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import msgspec
import numpy as np

from onetape.record import Bar, interval_text
from onetape.store import query, seal
from onetape.store.block import Columns, take
from onetape.store.layout import KIND_BAR
from onetape.store.query import Names, tail


def to_given_bars(columns: Columns, symbols: Sequence[str], names: Names) -> list[Bar]:
    """Return columns of given bars as Bars."""
    out = []
    for row, symbol, seq in zip(seal.given_rows(columns), symbols, columns["seq"].tolist(), strict=True):
        values: Any = row
        (
            _,
            interval,
            source,
            ts,
            open_,
            high,
            low,
            close,
            volume,
            _,
            vwap,
            trades,
            sold,
            bought,
            complete,
            revision,
        ) = values[:16]
        source_name = names.catalog.source(names.connection, source)
        out.append(
            Bar(
                symbol,
                interval_text(interval),
                ts,
                open_,
                high,
                low,
                close,
                volume,
                vwap,
                trades,
                sold,
                bought,
                bool(complete),
                revision,
                source_name,
                seq,
            )
        )
    return out


def given_bars(
    connection: apsw.Connection,
    symbol_id: int,
    symbol: str,
    interval: int,
    start_ns: int,
    end_ns: int,
    source: str | None,
    names: Names,
    fresh: dict[int, Columns] | None = None,
) -> list[Bar]:
    """Return bars that were appended as bars, by start and then source, each with its latest content.

    fresh: what query.tail() gives, where it is at hand.
    """
    kept: dict[tuple[int, int], Bar] = {}
    rows: Any = connection.execute(
        "SELECT source_id, ts_start_ns, open, high, low, close, volume, vwap, trades, bid_volume, ask_volume,"
        " complete, revision, last_seq FROM bar WHERE symbol_id = ? AND interval_ns = ? AND source_id > 0"
        " AND ts_start_ns >= ? AND ts_start_ns < ?",
        (symbol_id, interval, start_ns, end_ns),
    )
    for source_id, ts, open_, high, low, close, volume, vwap, trades, sold, bought, complete, revision, seq in rows:
        given_by = names.catalog.source(connection, source_id)
        content = (open_, high, low, close, volume, vwap, trades, sold, bought, bool(complete), revision)
        kept[ts, source_id] = Bar(symbol, interval_text(interval), ts, *content, given_by, seq)
    mine = _of_tail(tail(connection) if fresh is None else fresh, symbol_id, interval, start_ns, end_ns)
    return _latest(kept, mine, symbol, source, names)


def given_bars_as_of(
    connection: apsw.Connection,
    symbol_id: int,
    symbol: str,
    interval: int,
    start_ns: int,
    end_ns: int,
    source: str | None,
    names: Names,
    as_of: int,
) -> list[Bar]:
    """Return what given_bars() would have returned when the tape's last position was `as_of`."""
    found = query.ticks(connection, symbol_id, start_ns, end_ns, KIND_BAR, as_of=as_of)
    if found is None:
        return []
    mine = take(found, found["interval_ns"] == interval)
    order = np.argsort(mine["seq"], kind="stable")
    mine = {**take(mine, order), "symbol": np.full(len(order), symbol_id, dtype="<u4")}
    return _latest({}, mine, symbol, source, names)


def _of_tail(fresh: dict[int, Columns], symbol_id: int, interval: int, start_ns: int, end_ns: int) -> Columns | None:
    columns = fresh.get(KIND_BAR)
    if columns is None:
        return None
    ts = columns["ts_event_ns"]
    mask = (columns["symbol"] == symbol_id) & (columns["interval_ns"] == interval)
    mask &= (ts >= start_ns) & (ts < end_ns)
    return take(columns, mask) if mask.any() else None


def _latest(
    kept: dict[tuple[int, int], Bar], later: Columns | None, symbol: str, source: str | None, names: Names
) -> list[Bar]:
    """Return bars with those that came later, in the order of their positions, in place of the same before them."""
    if later is not None and len(later["seq"]):
        source_ids = later["source"].tolist() if "source" in later else [0] * len(later["seq"])
        for bar, source_id in zip(to_given_bars(later, [symbol] * len(source_ids), names), source_ids, strict=True):
            old = kept.get((bar.ts_start_ns, source_id))
            kept[bar.ts_start_ns, source_id] = bar if old is None else _revised(old, bar)
    found = [bar for _, bar in sorted(kept.items(), key=lambda one: one[0])]
    return [bar for bar in found if source is None or bar.source == source]


_CONTENT = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "vwap",
    "trades",
    "bid_volume",
    "ask_volume",
    "complete",
)


def _revised(old: Bar, new: Bar) -> Bar:
    if all(getattr(old, name) == getattr(new, name) for name in _CONTENT):
        return old
    return msgspec.structs.replace(new, revision=max(old.revision + 1, new.revision))
