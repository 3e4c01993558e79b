"""The seal: the fold of the journal, up to a position, into chunks, bars and counts, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import numpy as np

from onetape.clock import now_ns
from onetape.record import MINUTE_NS
from onetape.store import bars, chunks
from onetape.store.block import Columns, canonical, concatenate, decode_many
from onetape.store.layout import KIND_BAR, KIND_TICK, SPAN_RECORDS_MAX

_BAR_UPSERT = (
    "INSERT INTO bar(symbol_id, interval_ns, source_id, ts_start_ns, open, high, low, close, volume, notional,"
    " vwap, trades, bid_volume, ask_volume, complete, revision, first_ts, first_seq, last_ts, last_seq)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
#: A minute of the tape's own: every part is computed anew, so it replaces.
_OWN_BAR = _BAR_UPSERT.replace("INSERT", "INSERT OR REPLACE", 1)
#: A bar somebody gave: a later one with other content is a revision, an equal one changes nothing.
_GIVEN_BAR = (
    _BAR_UPSERT
    + " ON CONFLICT DO UPDATE SET open=excluded.open, high=excluded.high, low=excluded.low, close=excluded.close,"
    " volume=excluded.volume, vwap=excluded.vwap, trades=excluded.trades, bid_volume=excluded.bid_volume,"
    " ask_volume=excluded.ask_volume, complete=excluded.complete, last_seq=excluded.last_seq,"
    " revision=max(bar.revision + 1, excluded.revision)"
    " WHERE (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.vwap, bar.trades, bar.bid_volume,"
    " bar.ask_volume, bar.complete) IS NOT (excluded.open, excluded.high, excluded.low, excluded.close,"
    " excluded.volume, excluded.vwap, excluded.trades, excluded.bid_volume, excluded.ask_volume,"
    " excluded.complete)"
)


def seal_position(connection: apsw.Connection) -> int:
    """Return the position up to which records are in chunks."""
    return int(connection.execute("SELECT seal FROM state").get)


def seal(connection: apsw.Connection, at_least: int = 1) -> tuple[int, int]:
    """Seal one span of the journal, if it holds at least `at_least` records; return (seal, head) after it.

    The caller holds a write transaction. One call covers at most SPAN_RECORDS_MAX records or one journal row.
    """
    start = seal_position(connection)
    head = int(connection.execute("SELECT max(seq_last) FROM journal").get)
    if head - start < at_least or head == start:
        return start, head
    rows: list[Any] = []
    total = 0
    found = connection.execute(
        "SELECT seq_last, count, payload FROM journal WHERE seq_last > ? ORDER BY seq_last", (start,)
    )
    if head - start <= SPAN_RECORDS_MAX:
        rows = found.fetchall()
    else:
        for row in found:
            if rows and total + row[1] > SPAN_RECORDS_MAX:
                break
            rows.append(row)
            total += row[1]
        found.close(True)  # by force: the rest of the rows are for the next call
    end = rows[-1][0]
    fold(connection, decode_many(rows, "journal"), end)
    connection.execute("DELETE FROM journal WHERE seq_last <= ? AND seq_last < ?", (end, head))
    if end == head:
        connection.execute("UPDATE journal SET count = 0, payload = x'' WHERE seq_last = ?", (head,))
    return end, head


def fold(connection: apsw.Connection, found: dict[int, Columns], end: int) -> None:
    """Write one span's records as chunks, bars and counts, and move the seal to `end`."""
    at_ns = now_ns()
    for kind, columns in found.items():
        chunks.write(connection, kind, columns, end, at_ns)
    if KIND_TICK in found:
        _keep_minutes(connection, found[KIND_TICK])
        _count(connection, "ticks", found[KIND_TICK])
    if KIND_BAR in found:
        _keep_given(connection, found[KIND_BAR])
        _count(connection, "bars", found[KIND_BAR])
    connection.execute("UPDATE state SET seal = ?", (end,))


def _count(connection: apsw.Connection, what: str, columns: Columns) -> None:
    symbols, ts = columns["symbol"], columns["ts_event_ns"]
    order = np.argsort(symbols, kind="stable")
    ids, starts, counts = np.unique(symbols[order], return_index=True, return_counts=True)
    least, most = np.minimum.reduceat(ts[order], starts), np.maximum.reduceat(ts[order], starts)
    connection.executemany(
        f"UPDATE symbol SET {what} = {what} + ?2, ts_min = min(ifnull(ts_min, ?3), ?3),"
        " ts_max = max(ifnull(ts_max, ?4), ?4) WHERE id = ?1",
        zip(ids.tolist(), counts.tolist(), least.tolist(), most.tolist(), strict=True),
    )


def newest_trades(connection: apsw.Connection, symbol_ids: Sequence[int]) -> dict[int, int]:
    """Return the greatest sealed trade time by symbol, of those that have one."""
    found = {}
    for symbol_id in symbol_ids:
        ts = connection.execute("SELECT trade_ts_max FROM symbol WHERE id = ?", (symbol_id,)).get
        if ts is not None:
            found[symbol_id] = int(ts)
    return found


def kept_minutes(connection: apsw.Connection, keys: list[bars.Key]) -> dict[bars.Key, bars.Minute]:
    """Return the tape's own minutes that are kept under `keys`."""
    found = {}
    for symbol_id, start_ns in keys:
        for row in connection.execute(
            "SELECT symbol_id, ts_start_ns, open, high, low, close, volume, notional, trades, bid_volume, ask_volume,"
            " revision, first_ts, first_seq, last_ts, last_seq FROM bar"
            f" WHERE symbol_id = ? AND interval_ns = {MINUTE_NS} AND source_id = 0 AND ts_start_ns = ?",
            (symbol_id, start_ns),
        ):
            found[symbol_id, start_ns] = bars.Minute._make(row)
    return found


def minute_history(
    connection: apsw.Connection, symbol_id: int, start_ns: int, tail: Columns | None = None
) -> Columns | None:
    """Return all trades of one minute, sealed and in `tail`, or None where retention may have removed some."""
    if start_ns < int(connection.execute("SELECT pruned_before_ns FROM symbol WHERE id = ?", (symbol_id,)).get):
        return None
    parts = []
    sealed = chunks.read(connection, KIND_TICK, symbol_id, start_ns, start_ns + MINUTE_NS)
    if sealed is not None:
        parts.append({**sealed, "symbol": np.full(len(sealed["ts_event_ns"]), symbol_id, dtype="<u4")})
    if tail is not None:
        ts = tail["ts_event_ns"]
        mask = (tail["symbol"] == symbol_id) & (ts >= start_ns) & (ts < start_ns + MINUTE_NS)
        parts.append({name: column[mask] for name, column in tail.items()})
    return bars.trades(canonical(concatenate(KIND_TICK, parts))) if parts else None


def _keep_minutes(connection: apsw.Connection, columns: Columns) -> None:
    found = bars.trades(columns)
    if not len(found["ts_event_ns"]):
        return
    symbol_ids = np.unique(found["symbol"]).tolist()
    late = bars.late_counts(found, newest_trades(connection, symbol_ids))
    made = bars.fold(
        found,
        late,
        lambda keys: kept_minutes(connection, keys),
        lambda symbol_id, start_ns: minute_history(connection, symbol_id, start_ns),
    )
    connection.executemany(
        _OWN_BAR,
        (
            (
                bar.symbol_id,
                MINUTE_NS,
                0,
                bar.ts_start_ns,
                bar.open,
                bar.high,
                bar.low,
                bar.close,
                bar.volume,
                bar.notional,
                bar.vwap,
                bar.trades,
                bar.bid_volume,
                bar.ask_volume,
                None,
                bar.revision,
                bar.first_ts,
                bar.first_seq,
                bar.last_ts,
                bar.last_seq,
            )
            for bar in made
        ),
    )
    symbols = found["symbol"]
    last = np.append(np.flatnonzero(symbols[1:] != symbols[:-1]), len(symbols) - 1)
    connection.executemany(
        "UPDATE symbol SET trade_ts_max = max(ifnull(trade_ts_max, ?2), ?2) WHERE id = ?1",
        zip(symbols[last].tolist(), found["ts_event_ns"][last].tolist(), strict=True),
    )


def given_rows(columns: Columns) -> list[tuple[object, ...]]:
    """Return given bars as rows of table bar, in the order of their positions."""
    count = len(columns["ts_event_ns"])

    def column(name: str, missing: object = None) -> list[object]:
        if name not in columns:
            return [missing] * count
        values = columns[name].tolist()
        return [None if v != v or v == -(2**63) else v for v in values]

    nothing = [None] * count
    return list(
        zip(
            column("symbol"),
            column("interval_ns"),
            column("source", 0),
            column("ts_event_ns"),
            column("open"),
            column("high"),
            column("low"),
            column("close"),
            column("volume"),
            nothing,
            column("vwap"),
            column("trades"),
            column("bid_volume"),
            column("ask_volume"),
            column("complete", 0),
            column("revision", 0),
            nothing,
            nothing,
            nothing,
            column("seq"),
            strict=True,
        )
    )


def _keep_given(connection: apsw.Connection, columns: Columns) -> None:
    connection.executemany(_GIVEN_BAR, given_rows(columns))
