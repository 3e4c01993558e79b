"""Bars as legacy systems keep them: objects, candle arrays and lists of either, turned into Bar records.

Pure: no server, no tape. Known shapes: an object with open, high, low, close (or o, h, l, c), flat or under
`ohlc` beside a `last_price` (then `close` is the day before's and last_price closes the bar); an array
[time, open, high, low, close, volume, ...]; lists of these, plain or as Kite sends them (data.candles).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any
from zoneinfo import ZoneInfo

from onetape import clock
from onetape.migrate.fields import tick_names
from onetape.migrate.fields.tick_times import TimeReader
from onetape.record import Bar, interval_ns
from onetape.store.validate import symbol_problem

#: A key that names no interval holds daily bars: `ohlc_latest:*` is the session's open, high, low and close.
DEFAULT_INTERVAL = "1d"

_DAY = "1d"
_INTERVAL = re.compile(r"(\d{0,4})[ _]?(s|sec|second|m|min|minute|h|hr|hour|d|day)(?:s|ly)?", re.IGNORECASE)
_UNITS = {"s": "s", "m": "min", "h": "h", "d": "d"}
_TIMES = ("ts_start_ns", "start_time", "start", "bar_time", "bucket", "open_time", "datetime", "date", "time", "ts")
_PRICES = (("open", "o"), ("high", "h"), ("low", "l"), ("close", "c"))
_NUMBERS = {
    "volume": ("volume", "vol", "v"),
    "vwap": ("vwap", "average_price"),
    "bid_volume": ("bid_volume", "sell_volume"),
    "ask_volume": ("ask_volume", "buy_volume"),
}
_INTERVALS = ("interval", "timeframe", "time_frame", "resolution", "period", "granularity")


class BarDecoder:
    """Decodes bars of one legacy system, whose naive times are in `zone`; `now_ns` tells complete bars."""

    def __init__(self, zone: str = "UTC", now_ns: int | None = None) -> None:
        self._time = TimeReader(zone)
        self._zone = ZoneInfo(zone)
        self._now_ns = clock.now_ns() if now_ns is None else now_ns

    def key(self, rest: str) -> tuple[str, str | None, int | None]:
        """Return symbol, interval and start (ns) that the rest of a key names: `SYMBOL[:INTERVAL[:START]]`.

        The symbol may hold colons: only a last part that is a time, and one that is an interval, are taken off.
        """
        start = interval = None
        head, colon, tail = rest.rpartition(":")
        if colon and tail.isdecimal() and len(tail) >= 9:
            try:
                start, rest = self._time.read(tail), head
            except ValueError:
                pass
            head, colon, tail = rest.rpartition(":")
        if colon and (interval := interval_of(tail)) is not None:
            rest = head
        return rest, interval, start

    def bars(
        self, value: Any, symbol: str, interval: str | None, start_ns: int | None, source: str
    ) -> Iterator[Bar | str]:
        """Yield the bars in a value, or for what is none the reason why, as text.

        `value` is JSON (bytes), or what JSON or a hash gives: a dict or a list. `interval` and `start_ns` are
        what the key says, for bars that do not say it themselves. A day's bar starts at 00:00 UTC of its date
        in the system's zone, because bars of the tape lie on the UTC grid.
        """
        try:
            found = tick_names.as_object(value)
        except ValueError:
            yield "not JSON"
            return
        if isinstance(found, dict) and isinstance(inner := found.get("data"), (dict, list)):
            found = inner
        if isinstance(found, dict) and isinstance(inner := found.get("candles"), list):
            found = inner
        several = isinstance(found, list) and not _is_candle(found)
        for one in found if several else [found]:
            try:
                yield self._bar(one, symbol, interval, None if several else start_ns, source)
            except ValueError as error:
                yield str(error)

    def _bar(self, raw: Any, symbol: str, interval: str | None, start_ns: int | None, source: str) -> Bar:
        if isinstance(raw, (bytes, str)):
            raw = tick_names.as_object(raw)
        if isinstance(raw, list):
            if not _is_candle(raw):
                raise ValueError("an array that is no candle [time, open, high, low, close, ...]")
            raw = dict(zip(("time", "open", "high", "low", "close", "volume"), raw, strict=False))
        if not isinstance(raw, dict):
            raise ValueError(f"a {type(raw).__name__} is no bar")
        fields = {tick_names.normal(name): value for name, value in raw.items()}
        nested = tick_names.as_object(fields["ohlc"]) if fields.get("ohlc") else None
        if isinstance(nested, dict):
            fields = {**fields, **nested}
            if "last_price" in fields:
                fields["close"] = fields["last_price"]
        prices = [_number(fields, names) for names in _PRICES]
        if None in prices:
            absent = [names[0] for names, price in zip(_PRICES, prices, strict=True) if price is None]
            raise ValueError(f"no {' or '.join(absent)}")
        own = next((str(_text(fields[name])) for name in _INTERVALS if fields.get(name)), "")
        length = (interval_of(own) if own else None) or interval or DEFAULT_INTERVAL
        if own and interval_of(own) is None:
            raise ValueError(f"interval {own!r} is not one of seconds, minutes, hours or days")
        own_symbol = _text(next((fields[n] for n in tick_names.SYMBOLS if fields.get(n)), None))
        if own_symbol and not symbol.endswith(f":{own_symbol}"):
            symbol = own_symbol
        if (why := symbol_problem(symbol)) is not None:
            raise ValueError(f"symbol {symbol!r}: {why}")
        start = self._start(fields, start_ns, length)
        open_, high, low, close = prices
        if open_ is None or high is None or low is None or close is None:
            raise ValueError("one of open, high, low and close is missing")
        _check_prices(open_, high, low, close)
        trades = _number(fields, ("trades", "trade_count"))
        numbers = {name: _number(fields, names) for name, names in _NUMBERS.items()}
        for name, number in (*numbers.items(), ("trades", trades)):
            if number is not None and not (math.isfinite(number) and (number >= 0 or name == "vwap")):
                raise ValueError(f"{name} = {number} cannot be")
        if trades is not None and trades >= 2**63:
            raise ValueError(f"trades = {trades} cannot be")
        return Bar(
            symbol,
            length,
            start,
            open_,
            high,
            low,
            close,
            volume=numbers.get("volume"),
            vwap=numbers.get("vwap"),
            bid_volume=numbers.get("bid_volume"),
            ask_volume=numbers.get("ask_volume"),
            trades=None if trades is None else int(trades),
            complete=start + interval_ns(length) <= self._now_ns,
            source=source,
        )

    def _start(self, fields: dict[str, Any], start_ns: int | None, length: str) -> int:
        names = (*_TIMES, "t", *tick_names.EVENT_TIMES)
        found = next((ns for n in names if n in fields and (ns := self._time.read(fields[n])) is not None), None)
        found = start_ns if found is None else found
        if found is None:
            raise ValueError("no time in the fields or in the key")
        if length == _DAY:
            # A session's date is that of its own zone: 00:00 in Kolkata is the evening before in UTC.
            seconds, rest = divmod(found, 1_000_000_000)
            if seconds % 86400 or rest:
                day = datetime.fromtimestamp(seconds, self._zone).date()
                found = clock.to_ns(datetime(day.year, day.month, day.day, tzinfo=UTC))
        if found % interval_ns(length):
            raise ValueError(f"{clock.to_text(found)} is not the start of a {length} bar on the UTC grid")
        return found


def _check_prices(first: float, high: float, low: float, last: float) -> None:
    if not all(map(math.isfinite, (first, high, low, last))):
        raise ValueError("a price is not a finite number")
    if not low <= min(first, last) <= max(first, last) <= high:
        raise ValueError(f"open {first}, high {high}, low {low}, close {last}: out of order")


def bar_identity(key: bytes, bar: Bar) -> bytes:
    """Return the 16 bytes by which a bar is known: its key and all that it says."""
    values = [bar.symbol, bar.interval, bar.ts_start_ns, bar.open, bar.high, bar.low, bar.close]
    values += [bar.volume, bar.vwap, bar.trades, bar.bid_volume, bar.ask_volume]
    return blake2b(key + b"\0" + repr(values).encode(), digest_size=16).digest()


def interval_of(word: str) -> str | None:
    """Return an interval as the tape writes it ("5min", "1d") from words such as 5m, minute, 60minute, day."""
    match = _INTERVAL.fullmatch(word)
    if match is None or word.endswith("M"):  # 1M is a month
        return None
    count = int(match[1] or 1)
    return f"{count}{_UNITS[match[2][0].lower()]}" if count else None


def _is_candle(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 5 and not isinstance(value[0], (dict, list))


def _number(fields: dict[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        value = _text(fields.get(name))
        if value not in (None, ""):
            try:
                return float(value)
            except (TypeError, ValueError):
                raise ValueError(f"{name} = {value!r} is not a number") from None
    return None


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else value
