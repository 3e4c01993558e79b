"""The plain reading: what entries of old keys add up to, read a second time by other code.

The migrator's own decoder reads the old and the new keys and what is landed, so an error of it would agree with itself.
This reading shares nothing with it: names of its own, the standard library's JSON, one entry at a time.
Where it is not sure of an entry (two fields that could be the size, nested books) it proves nothing for the page.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from onetape.migrate.proving import exact

# Names without case and punctuation: "lastPrice", "last_price" and "LAST-PRICE" are one.
_PRICES = frozenset(("lastprice", "ltp", "price", "lasttradedprice", "tradeprice", "last", "lp"))
_SIZES = frozenset(
    (
        *("lasttradedquantity", "lastquantity", "lasttradequantity", "lastqty", "lastsize", "ltq"),
        *("tradesize", "tradequantity", "tradeqty", "size", "qty", "quantity"),
    )
)
_QUOTES = frozenset(
    (
        *("bid", "bestbid", "bidprice", "bestbidprice", "bestbuyprice", "bp"),
        *("ask", "bestask", "askprice", "bestaskprice", "bestsellprice", "sp", "offer"),
    )
)
_TIMES = frozenset(
    (
        *("timestamp", "timestampms", "timestampns", "ts", "tsms", "tsns", "tsevent", "tseventns", "time", "timems"),
        *("exchangetimestamp", "exchangetimestampms", "exchangetimestampns"),
        *("eventtime", "eventtimems", "eventtimens"),
    )
)
#: Fields that hold more than a number says: what is in them may count.
_NESTED = frozenset(("depth", "buy", "sell", "bids", "asks", "ohlc"))
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_NS = {10: 10**9, 13: 10**6, 16: 10**3, 19: 1}
_LAYOUTS_MAX = 1000


class Totals(NamedTuple):
    """What entries add up to: ticks, and in exact units prices and sizes; `ms` the sum of the times, where told."""

    ticks: int
    prices: int
    sizes: int
    ms: int | None


class _Unsure(Exception):
    """This entry may mean more than is understood here."""


class _Layout(NamedTuple):
    price: int | None
    size: int | None
    quotes: tuple[int, ...]
    time: int | None
    payload: bool


class PlainReading:
    """Reads entries; remembers the layouts it has met."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[Any, ...], _Layout] = {}

    def totals(self, entries: Sequence[Sequence[bytes]]) -> Totals | None:
        """Return what the entries add up to, None if it is not sure of one of them."""
        ticks = 0
        prices: list[float] = []
        sizes: list[float] = []
        ms: int | None = 0
        try:
            for flat in entries:
                price, size, quoted, time_ms = self._entry(flat[::2], flat[1::2])
                if price is None and not quoted:
                    continue
                ticks += 1
                if price is not None:
                    prices.append(price)
                if size is not None:
                    sizes.append(size)
                ms = None if ms is None or time_ms is None else ms + time_ms
        except _Unsure:
            return None
        return Totals(ticks, _total(prices), _total(sizes), ms)

    def _entry(
        self, names: Sequence[Any], values: Sequence[Any]
    ) -> tuple[float | None, float | None, bool, int | None]:
        layout = self._layout(tuple(names))
        if layout.payload:
            try:
                inner = json.loads(values[0])
            except (ValueError, RecursionError):
                raise _Unsure from None
            if not isinstance(inner, dict):
                raise _Unsure
            names, values = list(inner), list(inner.values())
            layout = self._layout(tuple(names))
            if layout.payload:
                raise _Unsure
        price = None if layout.price is None else _number(values[layout.price])
        size = None if layout.size is None else _number(values[layout.size])
        quoted = any(_number(values[place]) is not None for place in layout.quotes)
        if size is not None and size < 0:
            raise _Unsure
        return price, size, quoted, None if layout.time is None else _ms(values[layout.time])

    def _layout(self, names: tuple[Any, ...]) -> _Layout:
        found = self._layouts.get(names)
        if found is None:
            if len(self._layouts) >= _LAYOUTS_MAX:
                self._layouts.clear()
            found = self._layouts[names] = _layout_of([_plain(name) for name in names])
        return found


def _layout_of(names: list[str]) -> _Layout:
    def places(wanted: frozenset[str]) -> list[int]:
        return [place for place, name in enumerate(names) if name in wanted]

    price, size, quotes, time = map(places, (_PRICES, _SIZES, _QUOTES, _TIMES))
    if len(names) == 1 and not price and not quotes:
        return _Layout(None, None, (), None, True)
    if len(price) > 1 or len(size) > 1 or _NESTED & set(names) or not (price or quotes):
        raise _Unsure
    return _Layout(
        price[0] if price else None,
        size[0] if size else None,
        tuple(quotes),
        time[0] if len(time) == 1 else None,
        False,
    )


def _plain(name: Any) -> str:
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _number(value: Any) -> float | None:
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
    elif value is None:
        return None
    elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _Unsure
    else:
        text = str(value)
    if not text:
        return None
    if _NUMBER.fullmatch(text) is None:
        raise _Unsure
    found = float(text)
    if math.isinf(found):
        raise _Unsure
    return found


def _total(values: list[float]) -> int:
    return exact.sums(np.array(values), np.zeros(len(values), np.int64)).get(0, 0)


def _ms(value: Any) -> int | None:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    scale = _NS.get(len(text)) if text.isascii() and text.isdecimal() else None
    return None if scale is None else int(text) * scale // 1_000_000


__all__ = ["PlainReading", "Totals"]
