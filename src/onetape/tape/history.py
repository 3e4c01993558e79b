"""History: ticks of one symbol or several as Arrow, whole or in batches, the newest, and trades beside their quotes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import apsw
import numpy as np

from onetape.clock import Time
from onetape.errors import ConfigInvalid
from onetape.offloop import in_thread
from onetape.store import order, query, windows
from onetape.store.block import Array, Columns, take
from onetape.store.layout import CHUNK_RECORDS_MAX, KIND_TICK
from onetape.store.query import Names
from onetape.tape.continuous import view_of
from onetape.tape.extent import Extent, Symbols, chosen, ticks
from onetape.tape.snapshots import Snapshots

if TYPE_CHECKING:
    import pyarrow as pa

#: Ticks read at a time: what a piece costs besides its ticks (the journal's tail is looked at, up to 5 ms) is little.
PIECE_RECORDS = 524_288
_PIECE_RECORDS_MAX = 4 * PIECE_RECORDS
_BATCH_ROWS_MAX = 2**24
_JOINED = ("symbol", "ts_event_ns", "price", "size", "side", "seq")
_QUOTES = ("ts_event_ns", "bid", "ask", "bid_size", "ask_size", "seq")


class History(Snapshots):
    """How history is read."""

    def read(
        self,
        symbols: Symbols,
        start: Time | None = None,
        end: Time | None = None,
        columns: Sequence[str] | None = None,
        *,
        as_of: int | str | Time | None = None,
    ) -> pa.Table:
        """Return ticks with start <= ts_event_ns < end as one Arrow table, in canonical order (ts_event_ns, seq).

        symbols: one, several, or None for all; of those the tape has never seen there are no rows. start, end: ns, ISO
        8601 text, datetime or date (UTC without a zone); None is without bound. columns: names of Tick's fields, all by
        default; times int64 ns, prices and sizes float64, null where absent, symbol and source dictionary-encoded. Only
        these columns are decoded. as_of: what the tape said at a position, a snapshot or a time of appending; see
        as_of().

        Raises ConfigInvalid, ChunkCorrupt. The table is in memory whole: batches() reads more than fits.
        """
        from onetape.store import arrow

        asked = arrow.check_columns(columns)
        if (view := view_of(self, symbols)) is not None:
            return view.read(start, end, columns, as_of=as_of)
        start_ns, end_ns = self._span(start, end)
        position = None if as_of is None else self.as_of(as_of)
        with self._reading() as connection, query.snapshot(connection):
            names = Names(self._catalog, connection)
            if isinstance(symbols, str):
                symbol_id, symbol = self._catalog.find(connection, symbols)
                found, complete = None, set[str]()
                if symbol_id is not None:
                    wanted = [name for name in asked if name != "symbol"]
                    found = query.ticks(
                        connection,
                        symbol_id,
                        start_ns,
                        end_ns,
                        wanted=wanted,
                        as_of=position,
                        positions="seq" in asked,
                        allocate=arrow.empty,
                        complete=complete,
                    )
                return arrow.to_arrow(found, symbol, asked, names, complete=complete)
            several = chosen(connection, self._catalog, symbols)
            found = ticks(connection, list(several), start_ns, end_ns, asked, position)
            return arrow.to_arrow(found, list(several.values()), asked, names)

    async def aread(
        self,
        symbols: Symbols,
        start: Time | None = None,
        end: Time | None = None,
        columns: Sequence[str] | None = None,
        *,
        as_of: int | str | Time | None = None,
    ) -> pa.Table:
        """As read(), off the event loop."""
        return await in_thread(self.read, symbols, start, end, columns, as_of=as_of)

    def newest(self, symbols: Symbols, count: int = 1000, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the newest `count` ticks of each symbol as one Arrow table, in canonical order.

        As read() in all else. From the file, whatever this process keeps in memory.
        """
        from onetape.store import arrow

        asked = arrow.check_columns(columns)
        if count < 1:
            raise ConfigInvalid(f"count = {count}", hint="ask for at least one")
        with self._reading() as connection, query.snapshot(connection):
            several = chosen(connection, self._catalog, symbols)
            named, parts = [], []
            for symbol_id, name in several.items():
                found = query.newest(connection, symbol_id, count)
                if found is not None and len(found["ts_event_ns"]):
                    named.append(name)
                    parts.append(found)
            merged = order.merge(KIND_TICK, parts) if parts else None
            return arrow.to_arrow(merged, named, asked, Names(self._catalog, connection))

    def batches(
        self,
        symbols: Symbols = None,
        start: Time | None = None,
        end: Time | None = None,
        columns: Sequence[str] | None = None,
        *,
        batch_rows: int = 65_536,
        as_of: int | str | Time | None = None,
    ) -> pa.RecordBatchReader:
        """Return what read() returns as batches of at most `batch_rows` rows, one behind the other, in bounded memory.

        All are of one moment: `as_of`, or now. What is appended, late or cancelled meanwhile is not in them, and no
        transaction is held between two, so writers and their log go on. At any time about half a million ticks are in
        memory (two million for 64 symbols and more), unless more than that share one time. If retention removes ticks
        that are still to come, the iteration ends with HistoryGone.
        """
        import pyarrow as pa

        from onetape.store import arrow

        if not 1 <= batch_rows <= _BATCH_ROWS_MAX:
            raise ConfigInvalid(f"batch_rows = {batch_rows}", hint=f"it is 1 to {_BATCH_ROWS_MAX:,}")
        asked = arrow.check_columns(columns)
        position = None if as_of is None else self.as_of(as_of)
        extent = Extent(self, symbols, *self._span(start, end), position)
        return pa.RecordBatchReader.from_batches(arrow.schema(asked), _batches(extent, asked, batch_rows))

    def trades_with_quotes(
        self,
        symbol: str,
        start: Time | None = None,
        end: Time | None = None,
        *,
        max_age_ns: int | None = None,
        as_of: int | str | Time | None = None,
    ) -> pa.Table:
        """Return a symbol's trades with start <= ts_event_ns < end, each with the newest quote at or before it.

        An as-of join, see join_as_of(): columns symbol, ts_event_ns, price, size, side, seq of the trade; bid, ask,
        bid_size, ask_size, quote_ts_ns, quote_age_ns of the quote. The quote may be from before `start`: it is looked
        for back to the beginning of the tape, or as far as `max_age_ns` allows; a quote that is older is none.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        from onetape.asof import join_as_of
        from onetape.store import arrow

        if max_age_ns is not None and max_age_ns < 0:
            raise ConfigInvalid(f"max_age_ns = {max_age_ns}", hint="an age is 0 or more")
        start_ns, end_ns = self._span(start, end)
        position = None if as_of is None else self.as_of(as_of)
        wanted = [name for name in {*_JOINED, *_QUOTES} if name != "symbol"]
        with self._reading() as connection, query.snapshot(connection):
            names = Names(self._catalog, connection)
            symbol_id, symbol = next(iter(chosen(connection, self._catalog, symbol).items()), (None, symbol))
            found = before = None
            if symbol_id is not None:
                found = query.ticks(connection, symbol_id, start_ns, end_ns, wanted=wanted, as_of=position)
            if symbol_id is not None and found is not None and _trades_before_quotes(found):
                since_ns = 0 if max_age_ns is None else max(0, start_ns - max_age_ns)
                before = _quote_before(connection, symbol_id, since_ns, start_ns, position)
            trades = arrow.to_arrow(found, symbol, _JOINED, names)
            quotes = arrow.to_arrow(found, symbol, _QUOTES, names)
            if before is not None:
                quotes = pa.concat_tables([arrow.to_arrow(before, symbol, _QUOTES, names), quotes])
        if trades["price"].null_count:
            trades = trades.filter(pc.is_valid(trades["price"]))
        return join_as_of(trades, quotes, max_age_ns=max_age_ns)


def _batches(extent: Extent, asked: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    ids = list(extent.symbols)
    records = min(max(PIECE_RECORDS, 2 * CHUNK_RECORDS_MAX * len(ids)), _PIECE_RECORDS_MAX)
    for window in extent.windows(ids, records) if ids else []:
        yield from extent.read(ids, window, asked).to_batches(batch_rows)


def _is_quote(columns: Columns) -> Array:
    """Return which records quote at least one side."""
    none = np.zeros(len(columns["ts_event_ns"]), dtype=bool)
    told = [~np.isnan(columns[side]) for side in ("bid", "ask") if side in columns]
    either: Array = np.logical_or.reduce([none, *told])
    return either


def _trades_before_quotes(columns: Columns) -> bool:
    """Return whether some trade has no quote at or before it among these records."""
    if "price" not in columns:
        return False
    trades, quotes = np.flatnonzero(~np.isnan(columns["price"])), np.flatnonzero(_is_quote(columns))
    return bool(len(trades) and (not len(quotes) or trades[0] < quotes[0]))


def _quote_before(
    connection: apsw.Connection, symbol_id: int, since_ns: int, before_ns: int, position: int | None
) -> Columns | None:
    """Return the newest quote with since_ns <= ts_event_ns < before_ns, looking back piece by piece."""
    for records in (CHUNK_RECORDS_MAX, PIECE_RECORDS):  # most often it is near
        cut = windows.of_symbols(connection, [symbol_id], since_ns, before_ns, records)
        near = records < PIECE_RECORDS
        for start_ns, end_ns in reversed(cut[-1:] if near else cut):
            found = query.ticks(connection, symbol_id, start_ns, end_ns, wanted=_QUOTES, as_of=position)
            if found is not None and len(at := np.flatnonzero(_is_quote(found))):
                return take(found, at[-1:])
        if near:
            before_ns = cut[-1][0]
    return None
