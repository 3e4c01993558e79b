"""The session: what one connection's messages become, with the trades that a fill of the gap before it brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onetape.record import Tick
from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.connection import Connection
from onetape.sources.dtc.depth import Depth
from onetape.sources.dtc.encoding import Message
from onetape.sources.dtc.fill import Fill
from onetape.sources.dtc.market import TRADES, Market
from onetape.sources.dtc.place import Place, encode
from onetape.sources.source import Delivery

if TYPE_CHECKING:
    from onetape.sources.dtc.source import DtcSource

_NS = 1_000_000_000

#: How often it is said again that the server has no feed of a symbol, ns.
AWAY_NS = 5 * _NS


class Session:
    """One connection of a source. What outlives it (places, spans to fill, feeds that are away) is the source's."""

    def __init__(
        self,
        source: DtcSource,
        ids: dict[int, str],
        welcome: Mapping[str, Any],
        subscribe: Callable[[Connection], object],
    ) -> None:
        self._source = source
        self._ids = ids
        self._subscribe = subscribe
        self._markets = {number: Market(symbol, source.name, source._clock) for number, symbol in ids.items()}
        self._first_second: dict[str, int] = {}  # in which the live trades began, perhaps in its middle
        self._begun: set[str] = set()  # symbols whose place goes on without a break into the live trades
        self._depth = Depth({number: source.books[symbol] for number, symbol in ids.items() if symbol in source.books})
        self._quotes_by_depth = bool(welcome["MarketDepthUpdatesBestBidAndAsk"])
        self._again = bool(welcome["ResubscribeWhenMarketDataFeedAvailable"])
        self._rejected: dict[str, str] = {}
        self._beat_ns = source._clock()  # of the server's last heartbeat
        self._dropped = 0
        self._refused = 0

    def deliver(
        self,
        messages: list[Message],
        fill: Fill | None,
        missing: list[tuple[str, int, int]],
        connection: Connection,
    ) -> Delivery:
        """Return what these messages and the fill have by now."""
        source, ticks, moved = self._source, [], False
        missing, covers = list(missing), []
        self._still_away(missing)
        for number, fields in messages:
            tick = self._take(number, fields, missing, connection)
            if tick is None:
                continue
            if number in TRADES:
                self._first_second.setdefault(tick.symbol, tick.ts_event_ns // _NS)
                if fill is not None and fill.hold(tick):
                    continue
                self._advance(tick)
                moved = True
            ticks.append(tick)
        if fill is not None:
            for part in fill.parts():
                start = part.place.second * _NS
                source._places[part.symbol] = part.place
                if part.joined is not None:
                    if part.joined:
                        self._begun.add(part.symbol)
                    for tick in part.ticks:
                        self._advance(tick)
                    span = source._spans.pop(part.symbol, None)
                    if part.joined:
                        self._fact("filled_ns", part.symbol, source._clock())
                        covers += [(part.symbol, *span)] if span else []
                    else:
                        self._fact("not_filled", part.symbol, part.why)
                        end = part.ticks[0].ts_event_ns if part.ticks else source._clock()
                        missing.append((part.symbol, start, max(start + 1, end)))
                moved = moved or bool(part.ticks)
                ticks += part.ticks
        refused = sum(market.refused for market in self._markets.values()) + self._depth.refused
        source._count(refused=refused - self._refused)
        self._refused = refused
        cursor = encode(source._places) if moved else None
        if cursor == source._told_cursor:  # only trades older than the place
            cursor = None
        source._told_cursor = cursor or source._told_cursor
        return Delivery(ticks, cursor=cursor, covers=covers, missing=missing)

    def _advance(self, tick: Tick) -> None:
        second = tick.ts_event_ns // _NS
        first = self._first_second[tick.symbol]
        places = self._source._places
        if tick.symbol not in self._begun:
            self._begun.add(tick.symbol)
            if tick.symbol not in places or second == places[tick.symbol].second:
                places[tick.symbol] = Place(second, whole=False)
        places[tick.symbol].advance(tick, whole=second > first)

    def _take(
        self, number: int, fields: dict[str, Any], missing: list[tuple[str, int, int]], connection: Connection
    ) -> Tick | None:
        source = self._source
        if number == dtc.HEARTBEAT:
            self._heartbeat(fields["NumDroppedMessages"], missing)
        elif number == dtc.FEED_STATUS:
            self._feed_status(list(self._ids), fields["Status"], missing, connection)
        elif number == dtc.FEED_SYMBOL_STATUS:
            self._feed_status([fields["SymbolID"]], fields["Status"], missing, connection)
        elif number in (dtc.MARKET_DATA_REJECT, dtc.DEPTH_REJECT):
            symbol = self._ids.get(fields["SymbolID"])
            if symbol is not None:
                why = fields["RejectText"] or "no reason given"
                self._fact("rejected" if number == dtc.MARKET_DATA_REJECT else "depth_rejected", symbol, why)
                if number == dtc.MARKET_DATA_REJECT:
                    self._rejected[symbol] = why
                    source._away.setdefault(symbol, source._clock())
                    self._trouble()
        elif "SymbolID" in fields:
            market = self._markets.get(fields["SymbolID"])
            if market is None:
                source._count(refused=1)
                return None
            depth = self._depth.take(number, fields)
            if depth is None:
                return market.take(number, fields)
            if depth.whole and self._quotes_by_depth:
                return market.best(depth.bid, depth.ask, depth.ts_ns)
        return None

    def _fact(self, kind: str, symbol: str, value: Any) -> None:
        facts = self._source._facts
        facts[kind] = {**facts.get(kind, {}), symbol: value}  # a new one: others may be reading the old

    def _heartbeat(self, dropped: int, missing: list[tuple[str, int, int]]) -> None:
        """Take the server's count of messages that it did not send; a smaller one than before began anew."""
        new = dropped - self._dropped if dropped >= self._dropped else dropped
        before, self._beat_ns, self._dropped = self._beat_ns, self._source._clock(), dropped
        if new:
            self._source._count(dropped=new)
            missing += [(symbol, before, max(before + 1, self._beat_ns)) for symbol in self._ids.values()]

    def _feed_status(
        self, numbers: list[int], status: int, missing: list[tuple[str, int, int]], connection: Connection
    ) -> None:
        source, now = self._source, self._source._clock()
        symbols = [self._ids[number] for number in numbers if number in self._ids]
        if status == dtc.FEED_UNAVAILABLE:
            for symbol in symbols:
                source._away.setdefault(symbol, now)
        elif status == dtc.FEED_AVAILABLE:
            back = [symbol for symbol in symbols if symbol in source._away and symbol not in self._rejected]
            for symbol in back:
                since = source._away.pop(symbol)
                missing.append((symbol, since, max(since + 1, now)))
                self._first_second.pop(symbol, None)  # the second that it comes back in is seen from its middle on
                self._begun.discard(symbol)
            if back and self._again:
                self._subscribe(connection)
        self._trouble()

    def _trouble(self) -> None:
        """Say what of the server's own feed is away. Of a source without any feed nothing is covered."""
        source = self._source
        away = [symbol for symbol in source._away if symbol not in self._rejected]
        why = [f"the server says that its own feed is away: {_some(away)}"] if away else []
        why += [f"the server rejects {symbol}: {text}" for symbol, text in list(self._rejected.items())[:3]]
        heard = len(source._away) < len(source._symbols)
        source._tell(state="live" if heard else "waiting", trouble="; ".join(why) or None)

    def _still_away(self, missing: list[tuple[str, int, int]]) -> None:
        """Say on and on what is missing of symbols that were heard before: a kill must not leave it covered."""
        source, now = self._source, self._source._clock()
        for symbol, since in source._away.items():
            if now - since >= AWAY_NS and symbol in source._places:
                missing.append((symbol, since, now))
                source._away[symbol] = now


def _some(symbols: list[str]) -> str:
    return ", ".join(symbols[:5]) + (f" and {len(symbols) - 5} more" if len(symbols) > 5 else "")
