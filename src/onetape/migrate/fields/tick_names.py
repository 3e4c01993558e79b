"""The names that feeds give to what a tick holds: one table, in order of precedence.

Names are compared after normal(): lower case, with underscores, so "lastPrice", "LAST_PRICE" and "last-price"
are one. For each of Tick's columns the first name that has a readable value wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

#: Tick's column → names of plain numbers, the most specific first.
NUMBERS: dict[str, tuple[str, ...]] = {
    # "close" is missing on purpose: in a tick of these feeds it is the close of the day before.
    "price": ("last_price", "last_traded_price", "ltp", "trade_price", "price", "last", "lp"),
    "size": (
        *("last_traded_quantity", "last_quantity", "last_trade_quantity", "last_qty", "last_size", "ltq"),
        *("trade_size", "trade_quantity", "trade_qty", "size", "qty", "quantity"),
    ),
    "bid": ("best_bid_price", "best_bid", "bid_price", "bid", "best_buy_price", "bp"),
    "ask": ("best_ask_price", "best_ask", "ask_price", "ask", "offer", "best_sell_price", "sp"),
    # total_buy_quantity and buy_quantity are sums over the whole book, not the size at the best price.
    "bid_size": ("best_bid_size", "best_bid_quantity", "best_bid_qty", "bid_size", "bid_quantity", "bid_qty"),
    "ask_size": ("best_ask_size", "best_ask_quantity", "best_ask_qty", "ask_size", "ask_quantity", "ask_qty"),
    "open": ("day_open", "session_open", "open_price", "open"),
    "high": ("day_high", "session_high", "high_price", "high"),
    "low": ("day_low", "session_low", "low_price", "low"),
    # Always what was traded in the session so far; the tape never sums it.
    "volume": (
        *("zerodha_cumulative_volume", "cumulative_volume", "volume_traded_today", "volume_traded"),
        *("total_traded_volume", "total_volume", "session_volume", "day_volume", "vtt", "volume", "vol"),
    ),
    "vwap": ("vwap", "average_traded_price", "average_price", "average_trade_price", "avg_price", "atp"),
    "open_interest": ("open_interest", "oi"),
}
#: Columns of whole numbers.
COUNTS: dict[str, tuple[str, ...]] = {
    "trades": ("trades", "trade_count", "number_of_trades", "num_trades", "total_trades"),
    "flags": ("flags",),
}
SIDES = ("aggressor_side", "aggressor", "trade_side", "side")
BUYER_IS_MAKER = ("is_buyer_maker", "buyer_maker")

#: When it happened: the exchange's time, then a feed's, then that of the last trade (often in whole seconds).
EVENT_TIMES = (
    *("ts_event_ns", "ts_event", "event_time_ns", "event_time", "event_time_ms", "event_timestamp"),
    *("exchange_timestamp_ns", "exchange_timestamp_ms", "exchange_timestamp", "exchange_time", "exch_time"),
    *("timestamp_ns", "timestamp_us", "timestamp_ms", "timestamp", "time_stamp", "ts_ns", "ts_ms", "ts"),
    *("datetime", "date_time", "time_ms", "time", "tick_time", "exch_feed_time", "feed_time", "ltt", "date"),
    *("last_traded_time", "last_trade_time", "trade_time", "traded_at"),
)
RECEIVE_TIMES = (
    *("ts_recv_ns", "ts_recv", "received_at", "receive_time", "received_time", "recv_time", "arrival_time"),
    *("received_timestamp", "local_timestamp"),
)
SYMBOLS = ("symbol", "tradingsymbol", "trading_symbol", "symbol_name", "instrument", "ticker")
#: Fields that hold a whole tick as one JSON object.
PAYLOADS = ("data", "payload", "tick", "tick_data", "json", "message", "value")


def normal(name: bytes | str) -> str:
    """Return a field's name as the table writes it."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text.strip())
    return re.sub(r"[\s.\-]+", "_", text).lower()


class Pick(NamedTuple):
    """Where a column's value is: a place in the fields, and how to get it out of a nested value there."""

    place: int
    inside: Callable[[Any], Any] | None = None


def picks(names: list[str], wanted: tuple[str, ...]) -> tuple[Pick, ...]:
    """Return the places of the `wanted` names among `names`, in order of precedence."""
    return tuple(Pick(names.index(name)) for name in wanted if name in names)


def nested_picks(names: list[str], column: str) -> tuple[Pick, ...]:
    """Return where a column can be found inside an `ohlc` or `depth` field: after all plain names."""
    if column in ("open", "high", "low") and "ohlc" in names:
        return (Pick(names.index("ohlc"), lambda value: _member(value, column)),)
    if column in ("bid", "bid_size", "ask", "ask_size"):
        sides = ("buy", "bids", "bid") if column.startswith("bid") else ("sell", "asks", "ask")
        part = 1 if column.endswith("size") else 0
        whole = [Pick(names.index("depth"), lambda v: _level(v, sides, part))] if "depth" in names else []
        single = [Pick(names.index(s), lambda v: _best(v, part)) for s in sides[:2] if s in names]
        return (*whole, *single)
    return ()


def as_object(value: Any) -> Any:
    """Return JSON text decoded, anything else as it is. Raises ValueError."""
    if isinstance(value, (bytes, str)):
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise ValueError("holds no JSON") from None
    return value


def _member(value: Any, name: str) -> Any:
    found = as_object(value) if value not in (b"", "", None) else None
    return found.get(name) if isinstance(found, dict) else None


def _level(value: Any, sides: tuple[str, ...], part: int) -> Any:
    found = as_object(value) if value not in (b"", "", None) else None
    if not isinstance(found, dict):
        return None
    levels = next((found[side] for side in sides if side in found), None)
    return _best(levels, part)


def _best(value: Any, part: int) -> Any:
    levels = as_object(value) if value not in (b"", "", None) else None
    if not isinstance(levels, list) or not levels:
        return None
    best = levels[0]
    if isinstance(best, dict):
        pair = [best.get("price"), best.get("quantity", best.get("size", best.get("qty")))]
    elif isinstance(best, list) and len(best) >= 2:
        pair = best[:2]
    else:
        return None
    # Feeds fill an empty side of the book with levels of price 0 and size 0: that is no quote.
    return None if _zero(pair[0]) and _zero(pair[1]) else pair[part]


def _zero(value: Any) -> bool:
    return value is None or value == 0
