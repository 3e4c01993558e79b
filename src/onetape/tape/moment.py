"""One moment of a tape, read in pieces: what takes long to read, read as it was at one position, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import apsw

from onetape.record import TS_MAX_NS, Bar, interval_ns
from onetape.store import days, given, made, query
from onetape.store.catalog import Catalog
from onetape.store.interval import parse
from onetape.store.made import Rule
from onetape.store.query import Names
from onetape.tape.handle import Handle

if TYPE_CHECKING:
    import pyarrow as pa

#: Ticks of one piece: with all twenty fields, and twice while they become Arrow, about 150 MB.
PIECE_RECORDS = 524_288


class Moment:
    """A tape as it was at the position `head`. What is appended, revised or removed meanwhile is not seen."""

    def __init__(self, connection: apsw.Connection, catalog: Catalog) -> None:
        self._connection, self._catalog = connection, catalog
        self._names = Names(catalog, connection)
        self.head = query.head(connection)

    def symbols(self) -> list[str]:
        """Return the names of all symbols, in order."""
        return sorted(self._names.symbols(query.symbol_counts(self._connection)))

    def sources(self) -> list[str]:
        """Return the names of all who sent records."""
        rows: list[Any] = self._connection.execute("SELECT name FROM source ORDER BY id").fetchall()
        return [row[0] for row in rows]

    def spans(self, symbol: str, what: str, start_ns: int, end_ns: int) -> list[tuple[int, int, int]]:
        """Return (start_ns, end_ns, about how many records) of the pieces of a symbol's "ticks" or "bars"."""
        symbol_id = self._catalog.symbol_id(self._connection, symbol)
        if symbol_id is None:
            return []
        if what == "ticks":
            return list(days.pieces(days.of_ticks(self._connection, symbol_id), start_ns, end_ns, PIECE_RECORDS))
        found = list(days.pieces(days.of_bars(self._connection, symbol_id), 0, TS_MAX_NS + 1, PIECE_RECORDS // 16))
        # A bar of several days may start on one without a trade: the pieces leave no time out.
        edges = [0, *(until for _, until, _ in found[:-1]), TS_MAX_NS + 1]
        clipped = [min(max(edge, start_ns), end_ns) for edge in edges]
        return [
            (since, until, count)
            for (since, until), (_, _, count) in zip(itertools.pairwise(clipped), found, strict=False)
            if since < until
        ]

    def ticks(self, symbol: str, start_ns: int, end_ns: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return what tape.read() would have returned at this moment."""
        from onetape.store import arrow

        symbol_id, symbol = self._catalog.find(self._connection, symbol)
        found = None if symbol_id is None else query.ticks(self._connection, symbol_id, start_ns, end_ns)
        return arrow.to_arrow(found, symbol, columns, self._names)

    def bars(self, symbol: str, interval: str, start_ns: int, end_ns: int) -> list[Bar]:
        """Return the bars of every source, and the tape's own (source None) after them, ascending in their start."""
        length = interval_ns(interval)
        symbol_id, symbol = self._catalog.find(self._connection, symbol)
        if symbol_id is None:
            return []
        given_ones = given.given_bars(self._connection, symbol_id, symbol, length, start_ns, end_ns, None, self._names)
        rule = Rule(parse(interval))
        found = made.bars(self._connection, [symbol_id], rule, start_ns, end_ns)
        own = made.to_bars(found, {symbol_id: symbol}, rule)
        return sorted([*given_ones, *own], key=lambda bar: bar.ts_start_ns)


class Moments(Handle):
    """How a tape is read as it was at one moment."""

    @contextmanager
    def moment(self) -> Iterator[Moment]:
        """Hold the tape as it is now, for reading in pieces. Writers go on; their log cannot shrink until it ends."""
        with self._reading() as connection, query.snapshot(connection):
            yield Moment(connection, self._catalog)
