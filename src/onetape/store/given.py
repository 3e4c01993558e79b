"""Given bars: those that were appended as bars, kept by source, each with its latest content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import msgspec

from onetape.record import Bar, interval_text
from onetape.store import seal
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
) -> list[Bar]:
    """Return bars that were appended as bars, by start and then source, each with its latest content."""
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
    fresh = tail(connection).get(KIND_BAR)
    if fresh is not None:
        ts_all = fresh["ts_event_ns"]
        mask = (fresh["symbol"] == symbol_id) & (fresh["interval_ns"] == interval)
        mask &= (ts_all >= start_ns) & (ts_all < end_ns)
        mine = take(fresh, mask)
        source_ids = mine["source"].tolist() if "source" in mine else []
        for bar, source_id in zip(to_given_bars(mine, [symbol] * len(source_ids), names), source_ids, strict=True):
            old = kept.get((bar.ts_start_ns, source_id))
            kept[bar.ts_start_ns, source_id] = bar if old is None else _revised(old, bar)
    found = [bar for _, bar in sorted(kept.items())]
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
