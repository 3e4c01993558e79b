"""A detection, and the record it is on the tape."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from onetape.errors import InvalidRecord
from onetape.record import OWN_SYMBOLS, SYMBOL_BYTES_MAX, Tick, interval_ns, interval_text

#: Detections of a symbol are records of the symbol with this before its name. Searches and charts leave it out.
PREFIX = OWN_SYMBOLS

#: A bar of more than 100 years is none.
_INTERVAL_MS_MAX = 100 * 366 * 86_400_000


class Detection(msgspec.Struct, frozen=True, gc=False):
    """A pattern on a bar. `ts_ns` is the bar's start; it was known when the bar was over, at `known_ns`.

    direction: +1 up, -1 down, 0 without. price: the bar's close. atr: the mean true range then, in which the outcome
    is measured. confidence: how often such a detection came true, as it was known when it was made, 0 to 1.
    """

    symbol: str
    interval: str
    ts_ns: int
    number: int
    name: str
    direction: int
    price: float
    atr: float
    confidence: float
    made_ns: int | None = None
    seq: int | None = None

    @property
    def known_ns(self) -> int:
        """When the bar was over: nobody could have acted on it before."""
        return self.ts_ns + interval_ns(self.interval)

    @property
    def key(self) -> tuple[int, int]:
        """What it is one of, among a symbol's bars of one interval: the bar's start and the detector's number."""
        return self.ts_ns, self.number

    def identity(self, again: int = 0) -> bytes:
        """Return its id on the tape: so however many processes find it, however often, it is there once.

        again: how often it was taken back before.
        """
        text = f"pattern|{self.symbol}|{self.interval}|{self.ts_ns}|{self.number}|{again}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def to_tick(self) -> Tick:
        """Return the record: a quote, so that no bar is made of it."""
        return Tick(
            PREFIX + self.symbol,
            self.ts_ns,
            bid=self.price,
            bid_size=self.confidence,
            ask_size=self.atr,
            side=self.direction,
            flags=self.number,
            trades=interval_ns(self.interval) // 1_000_000,
            source=self.name,
            ts_recv_ns=self.made_ns,
        )

    @classmethod
    def from_tick(cls, tick: Tick) -> Detection:
        """Return the detection that a record is. Raises InvalidRecord, naming the field, where it is none."""
        for name, value in (("bid", tick.bid), ("bid_size", tick.bid_size), ("trades", tick.trades)):
            if value is None:
                raise InvalidRecord(0, name, value, "a detection's record has one")
        if not tick.symbol.startswith(PREFIX) or not tick.trades:
            raise InvalidRecord(
                0, "symbol", tick.symbol, f"a detection's symbol begins with {PREFIX}, its trades is ms"
            )
        assert tick.bid is not None and tick.bid_size is not None
        return cls(
            tick.symbol.removeprefix(PREFIX),
            interval_text(tick.trades * 1_000_000),
            tick.ts_event_ns,
            tick.flags,
            tick.source or f"detector {tick.flags}",
            tick.side,
            tick.bid,
            tick.ask_size or 0.0,
            tick.bid_size,
            tick.ts_recv_ns,
            tick.seq,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data for JSON, times in ms."""
        return {
            "symbol": self.symbol,
            "interval": self.interval,
            "t_ms": self.ts_ns // 1_000_000,
            "known_ms": self.known_ns // 1_000_000,
            "number": self.number,
            "name": self.name,
            "direction": self.direction,
            "price": self.price,
            "atr": self.atr,
            "confidence": self.confidence,
        }


def fits(symbol: str) -> bool:
    """Return whether a symbol's detections have a name that a tape takes, and it is none of them itself."""
    return not symbol.startswith(PREFIX) and len((PREFIX + symbol).encode()) <= SYMBOL_BYTES_MAX


def is_one(tick: Tick) -> bool:
    """Return whether a record is a detection: anybody may append under any symbol."""
    return (
        tick.symbol.startswith(PREFIX)
        and tick.bid is not None
        and tick.bid_size is not None
        and tick.trades is not None
        and 0 < tick.trades <= _INTERVAL_MS_MAX
    )
