"""The market: one symbol as a DTC server tells it, trades and quotes made into ticks.

Trades become ticks with price, size and aggressor (at the ask: a buyer; at the bid: a seller) and the session so far
where the server tells it; quotes become ticks with bid and ask. What the protocol marks as not known is None.

Times in whole seconds are not put before what came earlier in the same second. Prices that travel or are kept as
float32 are read as they print, so 1.10345 is 1.10345 and not 1.1034499406814575.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import isfinite
from typing import Any

from onetape.importing.scid import FUTURE_S_MAX
from onetape.record import BUY, SELL, TS_MAX_NS, UNKNOWN, Tick
from onetape.sources.dtc import messages as dtc

_SIDES = {dtc.AT_ASK: BUY, dtc.AT_BID: SELL}

#: Tick.flags of a trade: the protocol's mark of a bundle (1 first, 2 last), and the trade's condition above it.
FIRST_OF_BUNDLE, LAST_OF_BUNDLE, CONDITION_SHIFT = 1, 2, 8

#: A time this much after now is none, ns: it would be the latest for ever, and the place behind which nothing is asked.
FUTURE_NS = FUTURE_S_MAX * 1_000_000_000

#: Messages whose time is in whole seconds; those with microseconds as integers.
_SECONDS = {dtc.TRADE_COMPACT, dtc.BID_ASK, dtc.BID_ASK_COMPACT}
_MICROSECONDS = {dtc.TRADE_UNBUNDLED_2, dtc.BID_ASK_MICROSECONDS}

_SESSION = {
    dtc.SESSION_OPEN: ("open", "Price"),
    dtc.SESSION_HIGH: ("high", "Price"),
    dtc.SESSION_LOW: ("low", "Price"),
    dtc.SESSION_VOLUME: ("volume", "Volume"),
    dtc.OPEN_INTEREST: ("open_interest", "OpenInterest"),
    dtc.SESSION_NUM_TRADES: ("trades", "NumTrades"),
}

TRADES = {dtc.TRADE, dtc.TRADE_COMPACT, dtc.TRADE_UNBUNDLED, dtc.TRADE_UNBUNDLED_2, dtc.TRADE_NO_TIMESTAMP}
QUOTES = {dtc.BID_ASK, dtc.BID_ASK_COMPACT, dtc.BID_ASK_NO_TIMESTAMP, dtc.BID_ASK_MICROSECONDS}


class Market:
    """One symbol on one connection. `refused` counts messages that hold no valid tick."""

    def __init__(self, symbol: str, source: str, clock: Callable[[], int]) -> None:
        self.symbol = symbol
        self.refused = 0
        self._source = source
        self._clock = clock
        self._last_ns = 0
        self._last_quote_ns = 0
        self._session_day = 0
        self._session: dict[str, Any] = {}

    def take(self, number: int, fields: dict[str, Any]) -> Tick | None:
        """Return the tick that a market data message is, None where it is none."""
        if number in TRADES:
            return self._trade(number, fields)
        if number in QUOTES:
            return self._quote(number, fields)
        if number == dtc.MARKET_DATA_SNAPSHOT:
            return self._snapshot(fields)
        if number == dtc.TRADING_SESSION_DATE:
            self._begin_session(fields["Date"])
        elif number in _SESSION:
            name, field = _SESSION[number]
            self._begin_session(fields.get("TradingSessionDate", 0))
            self._set_session(name, fields[field])
        return None

    def _trade(self, number: int, fields: dict[str, Any]) -> Tick | None:
        ts_ns, now_ns = self._time(number, fields), self._clock()
        price, size = as_printed(fields["Price"]), as_printed(fields["Volume"])
        if ts_ns is None or not _known(price) or not _known(size) or size < 0:
            self.refused += 1
            return None
        session = self._session
        if "volume" in session:  # the protocol leaves the summing to the client
            session["volume"] += size
        if "trades" in session:
            session["trades"] += 1
        return Tick(
            self.symbol,
            ts_ns,
            price=price,
            size=float(size),
            side=_SIDES.get(fields["AtBidOrAsk"], UNKNOWN),
            flags=(fields.get("UnbundledTradeIndicator", 0) & 3)
            | (fields.get("TradeCondition", 0) & 0xFF) << CONDITION_SHIFT,
            source=self._source,
            ts_recv_ns=now_ns,
            **session,
        )

    def _quote(self, number: int, fields: dict[str, Any]) -> Tick | None:
        ts_ns = self._time(number, fields)
        prices = fields["BidPrice"], fields["AskPrice"]
        return self._quoted(ts_ns, prices, (fields["BidQuantity"], fields["AskQuantity"]), {})

    def _snapshot(self, fields: dict[str, Any]) -> Tick | None:
        """The state at the subscription. Its last trade was told when it happened; a quote that is not new is none."""
        self._begin_session(fields["TradingSessionDate"])
        for name, field in (
            ("open", "SessionOpenPrice"),
            ("high", "SessionHighPrice"),
            ("low", "SessionLowPrice"),
            ("volume", "SessionVolume"),
            ("trades", "SessionNumTrades"),
            ("open_interest", "OpenInterest"),
        ):
            self._set_session(name, fields[field])
        when = fields["BidAskDateTime"]
        ts_ns = seconds_to_ns(when) if when else self._clock()
        if ts_ns is not None and ts_ns <= self._last_quote_ns:
            return None
        prices = fields["BidPrice"], fields["AskPrice"]
        if not any(_known(price) for price in prices):
            return None
        return self._quoted(ts_ns, prices, (fields["BidQuantity"], fields["AskQuantity"]), dict(self._session))

    def _quoted(
        self, ts_ns: int | None, prices: tuple[float, float], sizes: tuple[float, float], session: dict[str, Any]
    ) -> Tick | None:
        bid, bid_size = _side(prices[0], sizes[0])
        ask, ask_size = _side(prices[1], sizes[1])
        if ts_ns is None or ts_ns > self._clock() + FUTURE_NS or (bid is None and ask is None):
            self.refused += 1
            return None
        self._last_quote_ns = max(self._last_quote_ns, ts_ns)
        return Tick(
            self.symbol,
            ts_ns,
            bid=bid,
            ask=ask,
            bid_size=bid_size,
            ask_size=ask_size,
            source=self._source,
            ts_recv_ns=self._clock(),
            **session,
        )

    def best(self, bid: tuple[float, float] | None, ask: tuple[float, float] | None, ts_ns: int | None) -> Tick | None:
        """Return the quote of a book's best levels (price, size), for servers that tell it by depth alone."""
        if bid is None and ask is None:
            return None
        unset = (dtc.DOUBLE_UNSET, 0.0)
        (bid_price, bid_size), (ask_price, ask_size) = bid or unset, ask or unset
        return self._quoted(ts_ns or self._clock(), (bid_price, ask_price), (bid_size, ask_size), {})

    def _time(self, number: int, fields: dict[str, Any]) -> int | None:
        when = fields.get("DateTime")
        if not when:  # the same as the message's before, or not known
            return self._last_ns or self._clock()
        if number in _SECONDS:
            ts_ns = int(when) * 1_000_000_000
            if ts_ns // 1_000_000_000 == self._last_ns // 1_000_000_000:
                ts_ns = max(ts_ns, self._last_ns)
        elif number in _MICROSECONDS:
            ts_ns = int(when) * 1000
        else:
            return self._note(seconds_to_ns(when))
        return self._note(ts_ns)

    def _note(self, ts_ns: int | None) -> int | None:
        if ts_ns is None or not 0 <= ts_ns <= min(TS_MAX_NS, self._clock() + FUTURE_NS):
            return None
        self._last_ns = ts_ns
        return ts_ns

    def _begin_session(self, day: int) -> None:
        if day and day != self._session_day:
            if self._session_day:
                self._session = {}
            self._session_day = day

    def _set_session(self, name: str, value: float) -> None:
        if name in ("trades", "open_interest"):
            if not 0 <= value < dtc.COUNT_UNSET:
                return
            self._session[name] = int(value) if name == "trades" else float(value)
        elif _known(value) and not (name == "volume" and value < 0):
            self._session[name] = as_printed(float(value))


def seconds_to_ns(seconds: float) -> int | None:
    """Return Unix seconds as ns, exact to the microsecond that a double holds; None for what is no time."""
    if not isfinite(seconds) or not 0 <= seconds < TS_MAX_NS / 1e9:
        return None
    return int(seconds * 1e6 + 0.5) * 1000


def as_printed(value: float) -> float:
    """Return a float32 as its shortest decimal text says: what was meant, where it was a price in decimals.

    A double that is no float32 stays as it is. Whole numbers do too, and so do multiples of 1/256, as bonds are priced,
    while float32 has room for finer ones: above 2048 they are as likely what is left of a decimal.
    """
    if not isfinite(value) or float(value).is_integer() or (abs(value) < 2048 and (value * 256.0).is_integer()):
        return value
    for digits in (6, 7, 8):
        meant = float(f"{value:.{digits}g}")
        if struct.unpack("<f", struct.pack("<f", meant))[0] == value:
            return meant
    return value


def _known(value: float) -> bool:
    return isfinite(value) and abs(value) < dtc.FLOAT_UNSET


def _side(price: float, size: float) -> tuple[float | None, float | None]:
    """One side of a quote. A price of 0 with a size of 0 is how some servers say that there is none."""
    if not _known(price) or (price == 0 and size == 0):
        return None, None
    return as_printed(float(price)), float(size) if _known(size) and size >= 0 else None
