"""The look: one message of a bridge, and what of it is news.

A bridge tells a symbol's state: last trade, quote, session so far, in spellings of its own. `read()` makes a `Look` of
a message, `Watch.news()` a tick of what it says that the look before did not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from math import isfinite
from typing import Any

import msgspec

from onetape.clock import to_ns
from onetape.errors import ConfigInvalid
from onetape.record import BUY, SELL, TS_MAX_NS, UNKNOWN, Tick
from onetape.sources.spellings import SPELLINGS

_TEXTS = ("symbol", "when", "side", "source")
_PRICES = ("price", "open", "high", "low", "bid", "ask", "vwap")
#: A number as text, perhaps with its thousands set apart by commas (also as in 12,34,567), never with a decimal comma.
_NUMBER = re.compile(r"[+-]?(?=\.?\d)(?:\d{1,3}(?:,\d{2,3})*,\d{3}|\d*)(?:\.\d*)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_DIGITS_MAX = 400
_SIDES = {"buy": BUY, "b": BUY, "ask": BUY, "sell": SELL, "s": SELL, "bid": SELL}


class LookInvalid(ValueError):
    """A message that says nothing that can be kept; why."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """A symbol's state as one message tells it. placeholders: how many prices were 0, which is none."""

    symbol: str | None = None
    ts_ns: int | None = None
    price: float | None = None
    size: float | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    side: int = UNKNOWN
    open: float | None = None
    high: float | None = None
    low: float | None = None
    volume: float | None = None
    vwap: float | None = None
    trades: int | None = None
    source: str | None = None
    placeholders: int = 0

    @property
    def trade(self) -> tuple[float | None, ...]:
        """What is said of the last trade."""
        return self.price, self.size

    @property
    def quote(self) -> tuple[float | None, ...]:
        """What is said of the quote."""
        return self.bid, self.ask, self.bid_size, self.ask_size

    def key(self) -> str:
        """A digest of time and content: equal for equal states."""
        return hashlib.blake2b(msgspec.msgpack.encode(self), digest_size=12).hexdigest()


def read(message: Any) -> Look:
    """Return what a message says. Numbers may be text, times Unix seconds (or ms, µs, ns by their size) or ISO 8601.

    Raises LookInvalid for what is no object, has neither price nor quote, or has a value that is none.
    """
    if isinstance(message, Mapping) and isinstance(message.get("data"), Mapping):
        message = {**{name: value for name, value in message.items() if name != "data"}, **message["data"]}
    if not isinstance(message, Mapping):
        raise LookInvalid(f"no object: {message!r:.60}")
    spelled = {_plain(name): value for name, value in message.items() if value is not None and value != ""}
    found: dict[str, Any] = {}
    placeholders = 0
    for field, spellings in SPELLINGS.items():
        value = next((spelled[name] for name in spellings if name in spelled), None)
        if value is None:
            continue
        if field in _TEXTS:
            found[field] = value
            continue
        number = _number(field, value)
        if number == 0.0 and field in _PRICES:
            placeholders += 1
            continue
        found[field] = number
    if "price" not in found:
        found.pop("size", None)
    if not {"price", "bid", "ask"} & found.keys() and not placeholders:
        raise LookInvalid("neither a price nor a quote")
    when, side, trades = found.pop("when", None), found.pop("side", None), found.pop("trades", None)
    for field in ("symbol", "source"):
        if field in found and not isinstance(found[field], str):
            raise LookInvalid(f"{field} = {found[field]!r:.60}")
    return Look(
        **found,
        ts_ns=None if when is None else time_ns(when),
        side=_SIDES.get(str(side).lower(), UNKNOWN),
        trades=None if trades is None else int(trades),
        placeholders=placeholders,
    )


class Known(msgspec.Struct, frozen=True, array_like=True):
    """What a cursor keeps of a look: its key, and what tells a trade from one that was told before."""

    key: str
    price: float | None = None
    size: float | None = None
    volume: float | None = None
    trades: int | None = None
    ts_ns: int | None = None


_TRADE = ("price", "size", "volume", "trades", "ts_ns")


class Watch:
    """One symbol's last look: tells what is new in the next.

    Counts `repeats` (the same state again), `placeholders` (prices of 0) and `unseen` (volume that went by between two
    polls, by the bridge's own counter).
    """

    def __init__(self, symbol: str, source: str, known: Known | None = None) -> None:
        self.symbol = symbol
        self.repeats = self.placeholders = 0
        self.unseen = 0.0
        self._source = source
        self._known_key = known.key if known else None  # of the last look of the connection before
        self._before: Look | None = None
        self._trade = (
            Look(**{name: getattr(known, name) for name in _TRADE}) if known else None
        )  # the last with a price

    @property
    def known(self) -> Known | None:
        """The last look, as a cursor keeps it."""
        key = self._before.key() if self._before is not None else self._known_key
        if key is None:
            return None
        trade = self._trade or Look()
        return Known(key, *(getattr(trade, name) for name in _TRADE))

    def reconnected(self) -> None:
        """Say that the next look may be the one before again: many bridges begin with the state there is."""
        known = self.known
        self._known_key = known.key if known else None

    def news(self, look: Look, now_ns: int, *, polled: bool) -> Tick | None:
        """Return what is new as a tick, None where nothing is.

        Polling gives the same state again and again: a repeat is nothing new. Pushed messages are events: two equal
        ones are two, but for the first of a connection, and where the bridge's own counter stands still. A quote that
        moved beside a trade that did not (by that volume or number of trades, or without them by price and size) is a
        quote alone.
        """
        self.placeholders += look.placeholders
        before, trade, known_key = self._before, self._trade, self._known_key
        self._before, self._known_key = look, None
        if look.price is not None:
            self._trade = look  # a look without a price does not make the last trade new again
        is_counted = look.volume is not None or look.trades is not None
        if (known_key is not None and look.key() == known_key) or ((polled or is_counted) and look == before):
            self.repeats += 1
            return None
        traded = look.price is not None and (
            trade is None or look == before or self._is_new(trade, look, quote_moved=not _same_quote(before, look))
        )
        quoted = any(value is not None for value in (look.bid, look.ask))
        if not traded and not quoted:
            return None
        if not traded and polled and _same_quote(before, look):
            return None
        return Tick(
            self.symbol,
            now_ns if look.ts_ns is None else look.ts_ns,
            price=look.price if traded else None,
            size=look.size if traded else None,
            bid=look.bid,
            ask=look.ask,
            bid_size=look.bid_size,
            ask_size=look.ask_size,
            side=look.side if traded else UNKNOWN,
            open=look.open,
            high=look.high,
            low=look.low,
            volume=look.volume,
            vwap=look.vwap,
            trades=look.trades,
            source=look.source or self._source,
            ts_recv_ns=now_ns,
        )

    def _is_new(self, before: Look, look: Look, *, quote_moved: bool) -> bool:
        """Whether the last trade of this look is another than the one before."""
        if look.trade != before.trade:
            self._count_unseen(before, look)
            return True
        if look.volume is not None and before.volume is not None:
            self._count_unseen(before, look)
            return look.volume != before.volume
        if look.trades is not None and before.trades is not None:
            return look.trades != before.trades
        return look.ts_ns != before.ts_ns and not quote_moved  # something happened, and nothing else can have

    def _count_unseen(self, before: Look, look: Look) -> None:
        if look.volume is not None and before.volume is not None and look.size is not None:
            self.unseen += max(0.0, look.volume - before.volume - look.size)


def _same_quote(before: Look | None, look: Look) -> bool:
    return before is not None and look.quote == before.quote


def time_ns(value: Any) -> int:
    """Return a bridge's time as ns. A number is Unix seconds; from 1e11 on ms, from 1e14 on µs, from 1e17 on ns."""
    if isinstance(value, str) and not _is_number(value):
        try:
            ns = to_ns(value, "timestamp")
        except ConfigInvalid as error:
            raise LookInvalid(f"timestamp = {value!r:.60}") from error
    else:
        exact = _decimal("timestamp", value)
        if not -20 <= exact.adjusted() <= 20:
            raise LookInvalid(f"timestamp = {value!r:.60}")
        shift = 9 if exact < 10**11 else 6 if exact < 10**14 else 3 if exact < 10**17 else 0
        if exact > TS_MAX_NS:
            raise LookInvalid(f"timestamp = {value!r:.60}")
        ns = int(exact.scaleb(shift).to_integral_value(ROUND_HALF_EVEN))
    if not 0 <= ns <= TS_MAX_NS:
        raise LookInvalid(f"timestamp = {value!r:.60}")
    return ns


def _is_number(text: str) -> bool:
    try:
        Decimal(text)
    except InvalidOperation:
        return False
    return True


def _decimal(field: str, value: Any) -> Decimal:
    """A number exactly as it is written; one that may mean another (4500,25) is none."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _DIGITS_MAX or not _NUMBER.fullmatch(text):
            raise LookInvalid(f"{field} = {value!r:.60}")
        value = text.replace(",", "")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise LookInvalid(f"{field} = {value!r:.60}")
    try:
        exact = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation as error:
        raise LookInvalid(f"{field} = {value!r:.60}") from error
    if not exact.is_finite():
        raise LookInvalid(f"{field} = {value!r:.60}")
    return exact


def _number(field: str, value: Any) -> float:
    number = float(_decimal(field, value))
    if not isfinite(number):
        raise LookInvalid(f"{field} = {value!r:.60}")
    return number


def _plain(name: Any) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())
