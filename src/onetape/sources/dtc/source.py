"""The DTC source: ticks of several symbols from one connection, their order books, and after a gap what was missed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, SourceRefused
from onetape.record import Tick
from onetape.sources.book import Book
from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.connection import Connection, Moved, Unwelcome
from onetape.sources.dtc.depth import Depth
from onetape.sources.dtc.encoding import Message
from onetape.sources.dtc.fill import Fill
from onetape.sources.dtc.history import HistoryServer
from onetape.sources.dtc.layout import Malformed
from onetape.sources.dtc.market import TRADES, Market
from onetape.sources.dtc.place import Place, decode, encode
from onetape.sources.source import Backoff, Delivery, Reconnecting

_NS = 1_000_000_000

#: How often it is said again that the server has no feed of a symbol, ns.
_AWAY_NS = 5 * _NS

#: A connection that lasted this long, s, was a good one: the next wait is short again.
GOOD_S = 10.0


class DtcSource(Reconnecting):
    """Trades and quotes of `symbols` from a DTC server; order books where `depth` levels are asked for.

    symbols: name on the tape → (name at the server, its exchange). history: the server that fills gaps; None: gaps are
    said to be missing. history_days: how far back to begin where there is no cursor.
    """

    kind = "dtc"
    lost = (OSError, EOFError, Malformed)

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        symbols: Mapping[str, tuple[str, str]],
        *,
        user: str = "",
        password: str = "",
        encoding: int = dtc.BINARY,
        heartbeat_s: int = 10,
        connect_s: float = 10.0,
        depth: int = 0,
        history: HistoryServer | None = None,
        history_days: float = 0.0,
        backoff: Backoff | None = None,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        if not symbols:
            raise ConfigInvalid(f"source {name}: no symbols", hint='say which, such as symbols = ["ESZ6"]')
        super().__init__(name, backoff=backoff, clock=clock)
        self._home = self._address = (host, port)
        self._symbols = dict(symbols)
        self._user, self._password = user, password
        self._encoding, self._heartbeat_s, self._connect_s = encoding, heartbeat_s, connect_s
        self._depth, self._history, self._history_days = depth, history, history_days
        self._places: dict[str, Place] = {}
        self._spans: dict[str, tuple[int, int]] = {}  # what the fill of this connection is to cover
        self._told_cursor: str | None = None
        self._alive_ns: int | None = None  # when the server was last heard, of this process's connections
        self._away: dict[str, int] = {}  # symbols that the server has no feed of, and since when that is not told
        self.books: dict[str, Book] = {symbol: Book() for symbol in symbols} if depth else {}

    def resume(self, cursor: str | None) -> None:
        """Go on behind the trades that this cursor knows; gaps are filled where there is a history server."""
        self._places = {} if cursor is None else decode(cursor)
        self._told_cursor = cursor
        super().resume(cursor)

    def _session(self) -> Iterator[Delivery]:
        address, self._address = self._address, self._home  # a redirection holds while its address answers
        connection = Connection(*address, connect_s=self._connect_s, heartbeat_s=self._heartbeat_s, wanted=self._wanted)
        began = time.monotonic()
        fill = None
        try:
            chosen = connection.agree(self._encoding)
            welcome = connection.log_on(user=self._user, password=self._password)
            self._address = address
            self._facts["server"], self._facts["encoding"] = welcome["ServerName"], chosen
            ids = self._subscribe(connection)
            session = _Session(self, ids, welcome, self._subscribe)
            missing = self._gap()
            fill = self._fill(missing)
            self._tell(state="live", trouble=None)
            good = False
            while not self.stopped:
                if not good and time.monotonic() - began > GOOD_S:
                    self._backoff.reset()
                    good = True
                taken = connection.receive(0.05 if fill and fill.busy else 0.5)
                heard_ns = self._clock() - int(connection.silent_s * _NS)
                delivery = session.deliver(taken, fill, missing, connection)
                missing = []
                yield msgspec.structs.replace(delivery, heard_ns=heard_ns)
                self._alive_ns = heard_ns
                self._facts["unknown_messages"] = connection.unknown
            connection.log_off("the client ends")
        except Moved as error:
            self._address = _address(error.address, address[1])
            raise
        except Unwelcome as error:
            raise SourceRefused(f"source {self.name}: {error}", hint="check user and password of the server") from error
        finally:
            if fill is not None:
                fill.close()
            connection.close()
            for book in self.books.values():
                book.clear()

    def _wanted(self) -> bool:
        return not self.stopped

    def _subscribe(self, connection: Connection) -> dict[int, str]:
        ids = dict(enumerate(self._symbols, start=1))
        for number, symbol in ids.items():
            theirs, exchange = self._symbols[symbol]
            wanted = {"RequestAction": dtc.SUBSCRIBE, "SymbolID": number, "Symbol": theirs, "Exchange": exchange}
            connection.send(dtc.MARKET_DATA_REQUEST, wanted)
            if self._depth:
                connection.send(dtc.DEPTH_REQUEST, {**wanted, "NumLevels": self._depth})
        return ids

    def _gap(self) -> list[tuple[str, int, int]]:
        """Of which span nothing was heard, between the connection before and this one."""
        now, before = self._clock(), self._alive_ns
        away, self._away = self._away, {}
        if before is None or now <= before:
            return []
        return [(symbol, min(before, away.get(symbol, before)), now) for symbol in self._symbols]

    def _fill(self, missing: list[tuple[str, int, int]]) -> Fill | None:
        """Begin to ask history for what is behind the places; what it will tell is not missing yet."""
        if self._history is None:
            return None
        places = {symbol: place for symbol, place in self._places.items() if symbol in self._symbols}
        if self._history_days > 0:
            start = self._clock() // _NS - int(self._history_days * 86400)
            places = {symbol: places.get(symbol) or Place(start) for symbol in self._symbols}
        if not places:
            return None
        theirs = {symbol: self._symbols[symbol] for symbol in places}
        for symbol, start, end in missing:  # what a fill that was cut off had to cover is still to be
            self._spans[symbol] = (self._spans.get(symbol, (start, end))[0], end)
        missing[:] = [span for span in missing if span[0] not in places]
        return Fill(self._history, places, theirs, source=self.name, clock=self._clock)


class _Session:
    """What one connection's messages become."""

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
            if now - since >= _AWAY_NS and symbol in source._places:
                missing.append((symbol, since, now))
                source._away[symbol] = now


def _some(symbols: list[str]) -> str:
    return ", ".join(symbols[:5]) + (f" and {len(symbols) - 5} more" if len(symbols) > 5 else "")


def _address(text: str, port: int) -> tuple[str, int]:
    """The host and port of "host:port" or "host". Raises Malformed."""
    host, colon, number = text.rpartition(":")
    if not colon:
        host, number = text, str(port)
    if not host or not number.isdecimal() or not 0 < int(number) < 65536:
        raise Malformed(f"the server says to connect to {text!r:.80}, which is no address")
    return host, int(number)
