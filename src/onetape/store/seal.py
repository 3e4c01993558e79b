"""The seal: the fold of the journal, up to a position, into chunks, bars and counts, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import apsw
import numpy as np

from onetape.clock import now_ns
from onetape.record import MINUTE_NS, TS_MAX_NS
from onetape.store import bars, block, cancels, chunks, minutes, moments, spans
from onetape.store.block import DTYPES, Array, Columns, decode_many
from onetape.store.layout import KIND_BAR, KIND_CANCEL, KIND_TICK, SEAL_RECORDS_MAX

_BAR_UPSERT = (
    "INSERT INTO bar(symbol_id, interval_ns, source_id, ts_start_ns, open, high, low, close, volume, notional,"
    " vwap, trades, bid_volume, ask_volume, complete, revision, first_ts, first_seq, last_ts, last_seq)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
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


class Packed(NamedTuple):
    """Records behind the seal, up to `end`, sorted and packed, or being packed, but not written yet.

    `told`: the span's moments, as moments.encode() gives them. `found` is in the order of positions, `ordered` as
    by_symbol() gives it, both by kind; `begun`: the rows of their chunks, by kind.
    """

    end: int
    level: int
    told: tuple[int, bytes]
    found: dict[int, Columns]
    ordered: dict[int, Columns]
    begun: list[chunks.Rows]


def seal_position(connection: apsw.Connection) -> int:
    """Return the position up to which records are in chunks."""
    return int(connection.execute("SELECT seal FROM state").get)


def seal(connection: apsw.Connection, at_least: int = 1) -> tuple[int, int]:
    """Seal one span of the journal, if it holds at least `at_least` records; return (seal, head) after it.

    The caller holds a write transaction. One call covers at most SEAL_RECORDS_MAX records or one journal row.
    """
    start = seal_position(connection)
    head = int(connection.execute("SELECT max(seq_last) FROM journal").get)
    if head - start < at_least or head == start:
        return start, head
    rows = behind(connection, start, head)
    fold(connection, decode_many(rows, "journal"), rows[-1][0], spans.SEALED, moments.encode(*block.moments(rows)))
    clear(connection, rows[-1][0], head)
    return rows[-1][0], head


def behind(connection: apsw.Connection, start: int, head: int) -> list[Any]:
    """Return the rows (seq_last, count, payload) of the journal behind `start` that one seal covers, oldest first."""
    found = connection.execute(
        "SELECT seq_last, count, payload FROM journal WHERE seq_last > ? ORDER BY seq_last", (start,)
    )
    if head - start <= SEAL_RECORDS_MAX:
        return found.fetchall()
    rows: list[Any] = []
    total = 0
    for row in found:
        if rows and total + row[1] > SEAL_RECORDS_MAX:
            break
        rows.append(row)
        total += row[1]
    found.close(True)  # by force: the rest of the rows are for the next call
    return rows


def clear(connection: apsw.Connection, end: int, head: int) -> None:
    """Remove the rows of the journal up to `end`, which is sealed; the newest one, at `head`, stays, maybe empty."""
    connection.execute("DELETE FROM journal WHERE seq_last <= ? AND seq_last < ?", (end, head))
    if end == head:
        connection.execute("UPDATE journal SET count = 0, payload = x'' WHERE seq_last = ?", (head,))


def fold(connection: apsw.Connection, found: dict[int, Columns], end: int, level: int, told: tuple[int, bytes]) -> None:
    """Write the records behind the seal, up to `end`, as a span of chunks, bars and counts, and move the seal.

    `told`: the span's moments, as moments.encode() gives them.
    """
    write(connection, pack(found, end, level, told))


def pack(found: dict[int, Columns], end: int, level: int, told: tuple[int, bytes]) -> Packed:
    """Return records as write() takes them; what chunks they make is packed as it is asked for."""
    at_ns = now_ns()
    ordered = {kind: chunks.by_symbol(columns) for kind, columns in found.items()}
    begun = [chunks.rows(kind, columns, end, at_ns, spans.OWN_FROM[level]) for kind, columns in ordered.items()]
    return Packed(end, level, told, found, ordered, list(begun))


def write(connection: apsw.Connection, packed: Packed, foreseen: Foreseen | None = None) -> None:
    """Write what pack() returned, and move the seal, inside the caller's transaction."""
    ordered, begun = packed.ordered, list(packed.begun)

    def write_chunks() -> None:
        while begun:
            chunks.insert(connection, begun.pop(0))

    spans.add(connection, packed.end, seal_position(connection) + 1, packed.level, *packed.told)
    if KIND_TICK in ordered or KIND_CANCEL in ordered:  # beside the packing of the chunks, unless it needs them
        _keep_minutes(connection, ordered.get(KIND_TICK), ordered.get(KIND_CANCEL), write_chunks, foreseen)
    write_chunks()
    if KIND_TICK in ordered:
        _count(connection, "ticks", ordered[KIND_TICK])
    if KIND_BAR in ordered:
        _keep_given(connection, packed.found[KIND_BAR])
        _count(connection, "bars", ordered[KIND_BAR])
    connection.execute("UPDATE state SET seal = ?", (packed.end,))


def _count(connection: apsw.Connection, what: str, columns: Columns) -> None:
    """Add records, sorted by symbol, to the symbols' counts."""
    symbols, ts = columns["symbol"], columns["ts_event_ns"]
    starts = np.concatenate(([0], np.flatnonzero(symbols[1:] != symbols[:-1]) + 1))
    counts = np.diff(np.append(starts, len(symbols)))
    least, most = np.minimum.reduceat(ts, starts), np.maximum.reduceat(ts, starts)
    connection.executemany(
        f"UPDATE symbol SET {what} = {what} + ?2, ts_min = min(ifnull(ts_min, ?3), ?3),"
        " ts_max = max(ifnull(ts_max, ?4), ?4) WHERE id = ?1",
        zip(symbols[starts].tolist(), counts.tolist(), least.tolist(), most.tolist(), strict=True),
    )


def newest_trades(connection: apsw.Connection, symbol_ids: Sequence[int]) -> dict[int, int]:
    """Return the greatest sealed trade time by symbol, of those that have one."""
    found = {}
    for symbol_id in symbol_ids:
        ts = connection.execute("SELECT trade_ts_max FROM symbol WHERE id = ?", (symbol_id,)).get
        if ts is not None:
            found[symbol_id] = int(ts)
    return found


def minute_history(
    connection: apsw.Connection, symbol_id: int, start_ns: int, tail: dict[int, Columns] | None = None
) -> Columns | None:
    """Return the trades of one minute that stand, sealed and in `tail`, or None where retention has removed some."""
    if start_ns < int(connection.execute("SELECT pruned_before_ns FROM symbol WHERE id = ?", (symbol_id,)).get):
        return None
    end_ns = min(start_ns + MINUTE_NS, TS_MAX_NS + 1)  # the last minute of time is cut short
    beside = None if tail is None else cancels.of_symbol(tail.get(KIND_TICK), symbol_id, start_ns, end_ns)
    whole = chunks.read(connection, KIND_TICK, symbol_id, start_ns, end_ns, beside=beside)
    if whole is None:
        whole = {name: np.zeros(0, dtype) for name, dtype in DTYPES[KIND_TICK].items()}
    whole = cancels.without(whole, cancels.targets(connection, symbol_id, start_ns, end_ns, tail or {}))
    return bars.trades({**whole, "symbol": np.full(len(whole["ts_event_ns"]), symbol_id, dtype="<u4")})


def minutes_of(
    connection: apsw.Connection,
    ticks: Columns | None,
    taken_back: Columns | None,
    tail: dict[int, Columns] | None,
    write_chunks: Callable[[], None] | None = None,
) -> Array:
    """Return the MINUTES that ticks and cancels change. `tail`: all records of the journal, where these are of it.

    write_chunks: writes the ticks' chunks, if that is still to be done; ticks are sorted as by_symbol() does then.
    """
    none = {name: np.zeros(0, dtype) for name, dtype in DTYPES[KIND_TICK].items()}
    found = bars.trades(none if ticks is None else ticks, ordered=write_chunks is not None)
    symbol_ids = block.distinct(found["symbol"]).tolist()
    late = bars.late_counts(found, newest_trades(connection, symbol_ids)) if symbol_ids else {}

    def history(symbol_id: int, start_ns: int) -> Columns | None:
        if write_chunks is not None:
            write_chunks()
        return minute_history(connection, symbol_id, start_ns, tail)

    return bars.fold(
        found,
        late,
        lambda symbols, starts: minutes.kept(connection, symbols, starts),
        history,
        cancels.by_minute(taken_back),
    )


class Foreseen(NamedTuple):
    """The MINUTES `made` that ticks change, where the kept ones are `have` and `old`, as minutes.kept() gives them."""

    keys: tuple[Array, Array]
    have: Array
    old: Array
    made: Array

    def holds(self, connection: apsw.Connection) -> bool:
        """Return whether what is kept is still what it was."""
        have, old = minutes.kept(connection, *self.keys)
        return have.tobytes() == self.have.tobytes() and old.tobytes() == self.old.tobytes()


class _HistoryNeeded(Exception):
    """A minute has to be folded from all of its trades."""


def foresee(connection: apsw.Connection, packed: Packed) -> Foreseen | None:
    """Return what write() will make of the kept minutes, if nobody changes them or the seal; None if it takes more.

    It takes more where trades came late into a kept minute or were taken back: their chunks have to be written first.
    """
    ticks = packed.ordered.get(KIND_TICK)
    if ticks is None or KIND_CANCEL in packed.ordered:
        return None
    asked: list[tuple[Array, Array, Array, Array]] = []

    def kept(symbols: Array, starts: Array) -> tuple[Array, Array]:
        have, old = minutes.kept(connection, symbols, starts)
        asked.append((symbols, starts, have, old))
        return have, old

    def history(_symbol_id: int, _start_ns: int) -> Columns | None:
        raise _HistoryNeeded

    found = bars.trades(ticks, ordered=True)
    symbol_ids = block.distinct(found["symbol"]).tolist()
    late = bars.late_counts(found, newest_trades(connection, symbol_ids)) if symbol_ids else {}
    try:
        made = bars.fold(found, late, kept, history)
    except _HistoryNeeded:
        return None
    if len(asked) != 1:
        return None
    symbols, starts, have, old = asked[0]
    return Foreseen((symbols, starts), have, old, made)


def _keep_minutes(
    connection: apsw.Connection,
    ticks: Columns | None,
    taken_back: Columns | None,
    write_chunks: Callable[[], None],
    foreseen: Foreseen | None,
) -> None:
    if foreseen is not None and foreseen.holds(connection):
        minutes.write(connection, foreseen.made)
    else:
        minutes.write(connection, minutes_of(connection, ticks, taken_back, None, write_chunks))
    if ticks is None or "price" not in ticks:
        return
    there = ~np.isnan(ticks["price"])
    symbols, ts = ticks["symbol"], ticks["ts_event_ns"]
    if not there.all():
        symbols, ts = symbols[there], ts[there]
    if len(symbols):
        last = np.append(np.flatnonzero(symbols[1:] != symbols[:-1]), len(symbols) - 1)
        connection.executemany(
            "UPDATE symbol SET trade_ts_max = max(ifnull(trade_ts_max, ?2), ?2) WHERE id = ?1",
            zip(symbols[last].tolist(), ts[last].tolist(), strict=True),
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
