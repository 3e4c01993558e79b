"""Old address of onetape.Tick: `MarketData`, with times in Unix seconds.

    MarketData                               Tick
    timestamp (seconds, float)               ts_event_ns
    close                                    price
    last_size                                size
    bid, ask, bid_size, ask_size             the same
    open, high, low, volume, vwap, trades    the session snapshot of the same name
    source ("unknown")                       source (None)

Seconds become nanoseconds by the decimal text that Python prints for the float, so 1700000000.123456 is
1700000000123456000 ns. From 1970-04-08 on (2**23 s, where floats lie further apart than 1 ns) the way back gives the
identical float.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from math import isfinite
from numbers import Integral, Real
from typing import Any

from onetape import InvalidRecord, Tick, now_ns, to_ns
from onetape.sources.spellings import SPELLINGS

_NS = 1_000_000_000


@dataclass
class MarketData:
    """One look at a symbol: its last trade, its quote, and the session so far.

    `timestamp` is Unix seconds, UTC. open, high and low are the session's and default to close; volume is the
    session's, cumulative. Changing an object never changes what a store holds.
    """

    symbol: str
    timestamp: float
    close: float
    open: float | None = None
    high: float | None = None
    low: float | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    last_size: float | None = None
    volume: float | None = None
    vwap: float | None = None
    trades: int | None = None
    source: str = "unknown"

    def __post_init__(self) -> None:
        if self.open is None:
            self.open = self.close
        if self.high is None:
            self.high = self.close
        if self.low is None:
            self.low = self.close
        if self.source is None:
            self.source = "unknown"

    @property
    def price(self) -> float:
        """Return close, by its other name."""
        return self.close

    @property
    def spread(self) -> float | None:
        """Return ask - bid, or None without both."""
        return None if self.bid is None or self.ask is None else self.ask - self.bid

    @property
    def midpoint(self) -> float | None:
        """Return the middle of bid and ask, or None without both."""
        return None if self.bid is None or self.ask is None else (self.bid + self.ask) / 2

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not None."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MarketData:
        """Return what to_dict() gave, or a dict of the services' API.

        `price` is taken where there is no `close`; other unknown keys are left out. `timestamp` is seconds, ISO 8601
        text or a datetime (both UTC without an offset); without one it is now.
        """
        known = {field.name: data[field.name] for field in fields(cls) if data.get(field.name) is not None}
        known.setdefault("symbol", "")
        known.setdefault("close", data.get("price"))
        known["timestamp"] = _seconds(known.get("timestamp"))
        return cls(**known)

    @classmethod
    def from_sierra_data(cls, data: Mapping[str, Any]) -> MarketData:
        """Return what a Sierra Chart bridge sent.

        Field names are taken in the spellings met there, without regard to case and underscores (`price`, `Last`,
        `LastTradePrice`; `BidSize`, `bid_size`; ...), numbers also as text, times as from_dict() takes them. The
        event time of the bridge is kept; only without one it is now. `source` defaults to "sierra_chart".
        """
        spelled = {_plain(name): value for name, value in data.items() if value is not None and value != ""}
        found: dict[str, Any] = {}
        for field, spellings in _SIERRA.items():
            value = next((spelled[name] for name in spellings if name in spelled), None)
            if value is not None:
                found[field] = value if field in _TEXTS else _from_text(field, value)
        found.setdefault("source", "sierra_chart")
        return cls.from_dict(found)

    def to_tick(self) -> Tick:
        """Return it as a Tick, received now. Raises InvalidRecord for what a tape cannot hold exactly."""
        return Tick(
            self.symbol,
            seconds_to_ns(self.timestamp),
            price=_number("close", self.close),
            size=_number("last_size", self.last_size),
            bid=_number("bid", self.bid),
            ask=_number("ask", self.ask),
            bid_size=_number("bid_size", self.bid_size),
            ask_size=_number("ask_size", self.ask_size),
            open=_number("open", self.open),
            high=_number("high", self.high),
            low=_number("low", self.low),
            volume=_number("volume", self.volume),
            vwap=_number("vwap", self.vwap),
            trades=_count(self.trades),
            source=None if self.source == "unknown" else self.source,
            ts_recv_ns=now_ns(),
        )

    @classmethod
    def from_tick(cls, tick: Tick) -> MarketData:
        """Return a tape's tick as MarketData. A tick that is only a quote has the close None."""
        return cls(
            tick.symbol,
            ns_to_seconds(tick.ts_event_ns),
            tick.price,  # type: ignore[arg-type]  # None: nothing was traded; a made-up price would lie
            tick.open,
            tick.high,
            tick.low,
            tick.bid,
            tick.ask,
            _whole(tick.bid_size),
            _whole(tick.ask_size),
            _whole(tick.size),
            _whole(tick.volume),
            tick.vwap,
            tick.trades,
            tick.source or "unknown",
        )


#: A field of the old record → its spellings in a bridge's messages; the first found counts.
_OLD = {"when": "timestamp", "price": "close", "size": "last_size"}
_SIERRA = {_OLD.get(field, field): spellings for field, spellings in SPELLINGS.items() if field != "side"}


_TEXTS = ("symbol", "timestamp", "source")


def seconds_to_ns(seconds: float) -> int:
    """Return Unix seconds as nanoseconds, exactly as the number is printed. Raises InvalidRecord."""
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise InvalidRecord(0, "timestamp", seconds, "a time is Unix seconds")
    if isinstance(seconds, Integral):
        return int(seconds) * _NS
    exact = float(seconds)
    if not isfinite(exact):
        raise InvalidRecord(0, "timestamp", seconds, "a time is finite Unix seconds")
    return int(Decimal(repr(exact)).scaleb(9).to_integral_value(ROUND_HALF_EVEN))


def ns_to_seconds(ns: int) -> float:
    """Return nanoseconds as the nearest Unix seconds."""
    return ns / _NS  # one integer by another: Python rounds this correctly, float(ns) / 1e9 would round twice


def _seconds(value: Any) -> float:
    if value is None:
        return time.time()
    if isinstance(value, datetime):
        return ns_to_seconds(to_ns(value, "timestamp"))
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return ns_to_seconds(to_ns(value, "timestamp"))
    number: float = value
    return number


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidRecord(0, name, value, "a number is an int or a float")
    try:
        number = float(value)
    except OverflowError:
        number = 0.0
    if isinstance(value, Integral) and number != int(value):
        raise InvalidRecord(0, name, value, "an integer is kept exactly up to 2**53, above it may not be")
    return number


def _count(value: Any) -> int | None:
    number = _number("trades", value)
    if number is None:
        return None
    if not isfinite(number) or not number.is_integer():
        raise InvalidRecord(0, "trades", value, "a count is a whole number")
    return int(value)


def _whole(value: float | None) -> float | int | None:
    """Sizes and volumes are integers in the old system; a fractional one stays a float."""
    return int(value) if value is not None and value.is_integer() else value


def _plain(name: str) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


def _from_text(field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        number = float(value.replace(",", ""))
    except ValueError as error:
        raise InvalidRecord(0, field, value, "this text is not a number") from error
    return int(number) if number.is_integer() else number
