"""Reading bars: the tape's own, made of trades or quotes, and those that were given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from onetape.clock import Time
from onetape.errors import ConfigInvalid
from onetape.offloop import in_thread
from onetape.record import Bar
from onetape.store import given, made, query
from onetape.store.block import Columns
from onetape.store.interval import parse
from onetape.store.made import Rule
from onetape.store.query import Names
from onetape.store.sessions import Sessions, find
from onetape.tape.bar_follows import BarFollows
from onetape.tape.continuous import view_of
from onetape.tape.snapshots import Snapshots

if TYPE_CHECKING:
    import pyarrow as pa


class _Found(NamedTuple):
    """Own bars as columns with the names of their symbols by id; all bars as records if some were given."""

    rule: Rule
    own: Columns
    names: dict[int, str]
    merged: list[Bar] | None


class Bars(Snapshots, BarFollows):
    """How bars are read."""

    def bars(
        self,
        symbols: str | Sequence[str],
        interval: str = "1min",
        start: Time | None = None,
        end: Time | None = None,
        *,
        source: str | None = None,
        session: str | Sessions | None = None,
        price: str = "trade",
        as_of: int | str | Time | None = None,
    ) -> pa.Table:
        """Return bars with start <= ts_start_ns < end as one Arrow table: by symbol as asked for, ascending.

        interval: time ("250ms", "30s", "1min", "7min", "1h"), sessions ("1d", "7d"), or what closes a bar: "100tick",
        "5000volume", "1000000value", "2.5range". No trade is split. Bars of time, and the counting of the others, begin
        anew at the open of each session, so they are the same whatever span is asked for.

        session: when the market trades: None (UTC days), an exchange calendar ("XNYS"), hours ("America/Chicago
        17:00-16:00"), a Session or a Calendar. A bar ends at the close at the latest; trades outside of sessions are in
        no bar; a span without trades has none. "1d" is one bar a session. Column `session` is then the trading day.

        price: "trade", or "bid", "ask", "mid" for bars of quotes: without volume, `trades` counts the quotes. as_of:
        what the tape said at a position, a snapshot or a time of appending; see as_of().

        The tape's own bars have source null. Bars that were appended as bars fill the starts that have none of its own
        (without session and price); source="…" returns only those of one source. complete: a later trade is on the
        tape. Counted bars have columns number (of their session, from 0) and ts_end_ns (of their last trade).

        Raises ConfigInvalid (interval, session, price, as_of), ChunkCorrupt.
        """
        from onetape.store import arrow, bar_table

        if (view := view_of(self, symbols)) is not None:
            _plain_only(session, price, as_of, source)
            return view.bars(interval, start, end)
        asked = [symbols] if isinstance(symbols, str) else list(dict.fromkeys(symbols))
        found = self._bars(asked, interval, start, end, source, session, price, as_of)
        if found.merged is None:
            return bar_table.to_arrow(found.own, found.names, found.rule)
        if not found.rule.interval.counted and not found.rule.dated:
            return arrow.bars_to_arrow(found.merged)
        return bar_table.bars_to_arrow(found.merged, found.rule)

    def bar_list(
        self,
        symbols: str | Sequence[str],
        interval: str = "1min",
        start: Time | None = None,
        end: Time | None = None,
        *,
        source: str | None = None,
        session: str | Sessions | None = None,
        price: str = "trade",
        as_of: int | str | Time | None = None,
    ) -> list[Bar]:
        """Return what bars() returns, as Bar records."""
        if (view := view_of(self, symbols)) is not None:
            _plain_only(session, price, as_of, source)
            return view.bar_list(interval, start, end)
        asked = [symbols] if isinstance(symbols, str) else list(dict.fromkeys(symbols))
        found = self._bars(asked, interval, start, end, source, session, price, as_of)
        return made.to_bars(found.own, found.names, found.rule) if found.merged is None else found.merged

    async def abars(
        self,
        symbols: str | Sequence[str],
        interval: str = "1min",
        start: Time | None = None,
        end: Time | None = None,
        *,
        source: str | None = None,
        session: str | Sessions | None = None,
        price: str = "trade",
        as_of: int | str | Time | None = None,
    ) -> pa.Table:
        """As bars(), off the event loop."""
        return await in_thread(
            self.bars, symbols, interval, start, end, source=source, session=session, price=price, as_of=as_of
        )

    def _bars(
        self,
        asked: list[str],
        interval: str,
        start: Time | None,
        end: Time | None,
        source: str | None,
        session: str | Sessions | None,
        price: str,
        as_of: int | str | Time | None,
    ) -> _Found:
        rule = Rule(parse(interval), find(session), price)
        made.check(rule)
        fills = not rule.dated and price == "trade" and rule.interval.ns is not None
        if source is not None and not fills:
            raise ConfigInvalid(
                f"source = {source!r} asks for bars that were given: they have no session, price or counting",
                hint="leave source out, or the others",
            )
        start_ns, end_ns = self._span(start, end)
        position = None if as_of is None else self.as_of(as_of)
        with self._reading() as connection, query.snapshot(connection):
            known = [self._catalog.find(connection, name) for name in asked]
            ids = {symbol_id: name for symbol_id, name in known if symbol_id is not None}
            names = Names(self._catalog, connection)
            given_bars: dict[int, list[Bar]] = {}
            if fills:
                length = rule.interval.ns or 0
                fresh = query.tail(connection)
                for symbol_id, name in ids.items():
                    which = (connection, symbol_id, name, length, start_ns, end_ns, source, names)
                    ones = (
                        given.given_bars(*which, fresh)
                        if position is None
                        else given.given_bars_as_of(*which, position)
                    )
                    if ones:
                        given_bars[symbol_id] = ones
            wanted = list(ids) if source is None else []
            own = made.bars(connection, wanted, rule, start_ns, end_ns, position)
        in_order = list(ids) == sorted(ids)
        if not given_bars and source is None:
            return _Found(rule, own if in_order else _ordered(own, list(ids)), ids, None)
        by_symbol: dict[str, dict[int, Bar]] = {name: {} for name in ids.values()}
        for symbol_id, ones in given_bars.items():
            by_symbol[ids[symbol_id]] = {bar.ts_start_ns: bar for bar in reversed(ones)}
        if source is not None:
            return _Found(rule, own, ids, [bar for symbol_id in ids for bar in given_bars.get(symbol_id, [])])
        for bar in made.to_bars(own, ids, rule):
            by_symbol[bar.symbol][bar.ts_start_ns] = bar
        return _Found(rule, own, ids, [bars[ts] for bars in by_symbol.values() for ts in sorted(bars)])


def _ordered(own: Columns, ids: list[int]) -> Columns:
    """Return bars in the order in which their symbols were asked for."""
    import numpy as np

    begin, end = np.searchsorted(own["symbol"], ids), np.searchsorted(own["symbol"], ids, side="right")
    order = np.concatenate([np.arange(start, stop) for start, stop in zip(begin, end, strict=True)])
    return {name: column[order] for name, column in own.items()}


def _plain_only(session: object, price: str, as_of: object, source: object) -> None:
    """Refuse for a continuous future what is not made of its contracts' bars."""
    if session is not None or price != "trade" or as_of is not None or source is not None:
        raise ConfigInvalid(
            "bars of a continuous future have no session, price, as_of or source", hint="ask for those of its contracts"
        )
