"""An extent: ticks of some symbols and a span of time, as they were at one position, read in pieces.

No read transaction stays open between two pieces, so the log can shrink meanwhile. What is on the tape up to a position
never changes, except that retention removes the oldest: a piece that has lost something raises HistoryGone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import apsw

from onetape.clock import to_text
from onetape.errors import ConfigInvalid, HistoryGone
from onetape.store import aliases, order, query, windows
from onetape.store.catalog import Catalog
from onetape.store.layout import KIND_TICK
from onetape.store.query import Names
from onetape.store.windows import Window
from onetape.tape.handle import Handle

if TYPE_CHECKING:
    import pyarrow as pa

Symbols = str | Sequence[str] | None


class Extent:
    """What is read: `symbols` (id → name), start_ns <= ts_event_ns < end_ns, as of `position`."""

    def __init__(self, tape: Handle, symbols: Symbols, start_ns: int, end_ns: int, position: int | None) -> None:
        """Without a position, it is the tape's last one."""
        self._tape = tape
        self.start_ns, self.end_ns = start_ns, end_ns
        with tape._reading() as connection, query.snapshot(connection):
            self.symbols = chosen(connection, tape._catalog, symbols)
            self.position = query.head(connection) if position is None else position
            self._sources = _sources(connection)
            self._removed = _removed(connection, 0)

    def windows(self, symbol_ids: Sequence[int], records: int) -> list[Window]:
        """Return windows of about `records` ticks of some of the symbols, which together are the whole span."""
        with self._tape._reading() as connection, query.snapshot(connection):
            return windows.of_symbols(connection, symbol_ids, self.start_ns, self.end_ns, records)

    def read(self, symbol_ids: Sequence[int], window: Window, asked: Sequence[str]) -> pa.Table:
        """Return the ticks of some of the symbols in a window in canonical order; dictionaries are always the same."""
        from onetape.store import arrow

        with self._tape._reading() as connection, query.snapshot(connection):
            self._check_kept(connection, symbol_ids, window)
            columns = ticks(connection, symbol_ids, *window, asked, self.position)
            if columns is not None:
                codes = [list(self.symbols).index(symbol_id) for symbol_id in symbol_ids]
                columns["symbol"] = _renumbered(columns["symbol"], codes)
            names = Names(self._tape._catalog, connection)
            return arrow.to_arrow(columns, list(self.symbols.values()), asked, names, self._sources)

    def _check_kept(self, connection: apsw.Connection, symbol_ids: Sequence[int], window: Window) -> None:
        for symbol_id, before_ns in _removed(connection, window[0]).items():
            if symbol_id in symbol_ids and before_ns > self._removed.get(symbol_id, 0):
                raise HistoryGone(
                    f"retention removed ticks of {self.symbols[symbol_id]} before {to_text(before_ns)} while they were"
                    " being read",
                    hint="read again from there, or take a snapshot first, which keeps what it covers",
                    symbol=self.symbols[symbol_id],
                    before_ns=before_ns,
                )


def chosen(connection: apsw.Connection, catalog: Catalog, symbols: Symbols) -> dict[int, str]:
    """Return id → name of the symbols asked for that the tape knows, each once, in the order given; all by name."""
    if symbols is None:
        catalog.load(connection)
        symbols = sorted(catalog.names())
    asked = [symbols] if isinstance(symbols, str) else symbols
    found = [catalog.find(connection, name) for name in asked]
    for (symbol_id, _), name in zip(found, asked, strict=True):
        if symbol_id is None and aliases.is_continuous(connection, name):
            raise ConfigInvalid(
                f"{name!r} is a continuous future, which is read whole",
                hint="use read(), or ask for its contracts: tape.continuous(name).symbols()",
            )
    return {symbol_id: name for symbol_id, name in found if symbol_id is not None}


def ticks(
    connection: apsw.Connection,
    symbol_ids: Sequence[int],
    start_ns: int,
    end_ns: int,
    asked: Sequence[str],
    position: int | None,
) -> Any:
    """Return several symbols' columns in canonical order, the column symbol counting `symbol_ids`; None if empty."""
    wanted = [name for name in asked if name != "symbol"]
    parts, numbers = [], []
    for number, symbol_id in enumerate(symbol_ids):
        found = query.ticks(connection, symbol_id, start_ns, end_ns, wanted=wanted, as_of=position)
        if found is not None and len(found["ts_event_ns"]):
            parts.append(found)
            numbers.append(number)
    if not parts:
        return None
    columns = order.merge(KIND_TICK, parts)
    columns["symbol"] = _renumbered(columns["symbol"], numbers)
    return columns


def _renumbered(codes: Any, numbers: Sequence[int]) -> Any:
    import numpy as np

    return codes if list(numbers) == list(range(len(numbers))) else np.asarray(numbers, codes.dtype)[codes]


def _sources(connection: apsw.Connection) -> list[str]:
    """Return the names of sources, by id from 1."""
    rows: list[Any] = connection.execute("SELECT id, name FROM source").fetchall()
    names = dict(rows)
    return [names.get(number, "") for number in range(1, max(names, default=0) + 1)]


def _removed(connection: apsw.Connection, since_ns: int) -> dict[int, int]:
    """Return symbol id → the time before which retention has removed ticks, of those after `since_ns`."""
    rows: list[Any] = connection.execute(
        "SELECT id, pruned_before_ns FROM symbol WHERE pruned_before_ns > ?", (since_ns,)
    ).fetchall()
    return dict(rows)
