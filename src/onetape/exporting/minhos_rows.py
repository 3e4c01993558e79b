"""Rows of the predecessor's tables made of ticks and bars, and what its columns cannot hold as JSON beside them.

A reader of the row takes its columns as they are; then each field under "onetape" in `metadata` replaces what the
columns gave. A field stands there only if the columns alone would give another value.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from decimal import Decimal
from math import copysign, isfinite
from typing import Any

import msgspec

from onetape.record import Bar, Tick

COLUMNS = ("symbol", "timestamp", "open", "high", "low", "close", "volume", "bid", "ask", "bid_size", "ask_size",
           "last_size", "vwap", "trades", "source", "metadata", "created_at")  # fmt: skip
_NS = 1_000_000_000
#: Below it (1973) a number is not known for seconds by its size.
_PLAIN_NS = 10**17
_FLOATS = ("price", "size", "bid", "ask", "bid_size", "ask_size", "open", "high", "low", "volume", "vwap")
_encode = msgspec.json.Encoder().encode


class TickRows:
    """Rows of market_data of one symbol, in order of time: it knows the last trade, which a quote repeats."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self._last: float | None = None

    def of(self, ticks: Iterable[Tick]) -> list[tuple[Any, ...]]:
        """Return the rows of ticks, in the order of COLUMNS."""
        return [self._row(tick) for tick in ticks]

    def _row(self, tick: Tick) -> tuple[Any, ...]:
        close, seconds = tick.price, tick.ts_event_ns / _NS
        more: dict[str, Any] = {}
        if close is None:
            more["price"] = None
            close = self._last if self._last is not None else _middle(tick)
        else:
            self._last = close
        for name in ("open", "high", "low"):
            if getattr(tick, name) is None:
                more[name] = None
        for name in _FLOATS:
            value = getattr(tick, name)
            if value == 0 and copysign(1, value) < 0:  # SQLite keeps a whole number without the sign of its zero
                more[name] = value
        if tick.ts_event_ns < _PLAIN_NS or int(Decimal(repr(seconds)).scaleb(9)) != tick.ts_event_ns:
            more["ts_event_ns"] = tick.ts_event_ns
        if tick.ts_recv_ns is not None and (tick.ts_recv_ns % _NS or tick.ts_recv_ns < _PLAIN_NS):
            more["ts_recv_ns"] = tick.ts_recv_ns
        if tick.side:
            more["side"] = tick.side
        if tick.flags:
            more["flags"] = tick.flags
        if tick.open_interest is not None:
            more["open_interest"] = tick.open_interest
        if tick.source == "unknown":
            more["source"] = tick.source
        return (
            self.symbol,
            seconds,
            close if tick.open is None else tick.open,
            close if tick.high is None else tick.high,
            close if tick.low is None else tick.low,
            close,
            tick.volume,
            tick.bid,
            tick.ask,
            tick.bid_size,
            tick.ask_size,
            tick.size,
            tick.vwap,
            tick.trades,
            tick.source or "unknown",
            _encode({"onetape": more}).decode() if more else None,
            None if tick.ts_recv_ns is None else _text(tick.ts_recv_ns // _NS),
        )


def _middle(tick: Tick) -> float:
    if tick.bid is not None and tick.ask is not None:
        return tick.bid / 2 + tick.ask / 2
    return tick.bid if tick.bid is not None else tick.ask if tick.ask is not None else 0.0


def _text(seconds: int) -> str:
    """Return a time as SQLite's CURRENT_TIMESTAMP writes it, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def minutes(bars: Sequence[Bar]) -> tuple[list[tuple[Any, ...]], int]:
    """Return rows of market_data_1min, one a minute: the tape's own bar, else the first source's; and how many not.

    A minute before 1973-03-03 is none: its time is not known for seconds, and this table keeps nothing beside a row.
    """
    chosen: dict[int, Bar] = {}
    for bar in sorted(bars, key=lambda bar: (bar.ts_start_ns, bar.source or "")):
        if bar.ts_start_ns >= _PLAIN_NS:
            chosen.setdefault(bar.ts_start_ns, bar)
    rows = [
        (
            bar.symbol,
            bar.ts_start_ns / _NS,
            bar.open,
            bar.high,
            bar.low,
            bar.close,
            _finite(bar.volume),
            _finite(bar.vwap),
            bar.trades,
        )
        for bar in chosen.values()
    ]
    return rows, len(bars) - len(rows)


def _finite(number: float | None) -> float | None:
    """Return a sum, or None where it grew out of what a float can hold."""
    return number if number is not None and isfinite(number) else None
