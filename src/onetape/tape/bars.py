"""Reading bars: the tape's own, made of trades, and those that were given."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from onetape.clock import Time
from onetape.errors import ConfigInvalid
from onetape.record import Bar, interval_ns
from onetape.store import given, made, query
from onetape.store.query import Names
from onetape.tape.handle import Handle

if TYPE_CHECKING:
    import pyarrow as pa


class Bars(Handle):
    """How bars are read."""

    def bars(
        self,
        symbol: str,
        interval: str = "1min",
        start: Time | None = None,
        end: Time | None = None,
        *,
        source: str | None = None,
    ) -> pa.Table:
        """Return a symbol's bars with start <= ts_start_ns < end as one Arrow table, ascending.

        The tape's own bars (source null) are made of trades, in whole minutes that divide a UTC day. Bars that were
        appended as bars fill the starts that have none of its own; source="…" returns only those of one source.
        """
        from onetape.store import arrow

        return arrow.bars_to_arrow(self.bar_list(symbol, interval, start, end, source=source))

    def bar_list(
        self,
        symbol: str,
        interval: str = "1min",
        start: Time | None = None,
        end: Time | None = None,
        *,
        source: str | None = None,
    ) -> list[Bar]:
        """Return what bars() returns, as Bar records."""
        start_ns, end_ns = self._span(start, end)
        try:
            length = interval_ns(interval)
        except ValueError as error:
            raise ConfigInvalid(str(error)) from error
        with self._reading() as connection, query.snapshot(connection):
            symbol_id, symbol = self._catalog.find(connection, symbol)
            if symbol_id is None:
                return []
            names = Names(self._catalog, connection)
            given_ones = given.given_bars(connection, symbol_id, symbol, length, start_ns, end_ns, source, names)
            own: list[Bar] = []
            if source is None and (made.keeps(length) or not given_ones):
                own = made.own_bars(connection, symbol_id, symbol, length, start_ns, end_ns)
        merged = {bar.ts_start_ns: bar for bar in reversed(given_ones)} | {bar.ts_start_ns: bar for bar in own}
        return given_ones if source is not None else [merged[ts] for ts in sorted(merged)]

    async def abars(
        self, symbol: str, interval: str = "1min", start: Time | None = None, end: Time | None = None
    ) -> pa.Table:
        """As bars(), off the event loop."""
        return await asyncio.to_thread(self.bars, symbol, interval, start, end)
