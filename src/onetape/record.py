"""Records: the immutable things a tape holds, a `Tick` or a `Bar`, and what makes one valid."""

from __future__ import annotations

from datetime import date
from typing import NamedTuple

import msgspec

#: Aggressor of a trade, from the buyer's side: +1 the buyer lifted the ask, -1 the seller hit the bid.
BUY, SELL, UNKNOWN = 1, -1, 0

#: The least and greatest time a record can carry, ns since 1970-01-01 UTC (the greatest is 2262-04-11).
TS_MIN_NS, TS_MAX_NS = 0, 2**63 - 2

#: A symbol is 1 to this many bytes of UTF-8, without control characters. It may contain colons and blanks.
SYMBOL_BYTES_MAX = 255

#: Symbols that begin so are a service's own records (detections of patterns), and no market's: lists leave them out.
OWN_SYMBOLS = "patterns:"

MINUTE_NS = 60_000_000_000


class Tick(msgspec.Struct, frozen=True, kw_only=False, gc=False):
    """A trade, a quote, or both, with the session snapshot that many vendors send along.

    Times are nanoseconds since the epoch, UTC. Prices and sizes are float64 and come back bit for bit. All but
    `symbol` and `ts_event_ns` may be None, but one of price, bid and ask must be there. Sizes are not negative;
    crossed quotes, zero sizes and one-sided quotes are ordinary.
    """

    symbol: str
    ts_event_ns: int  # when it happened
    price: float | None = None  # of the trade
    size: float | None = None  # of the trade
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    side: int = UNKNOWN  # aggressor: BUY, SELL or UNKNOWN
    flags: int = 0  # the source's own marks, 32 bits
    open: float | None = None  # of the session, as are the next six
    high: float | None = None
    low: float | None = None
    volume: float | None = None  # traded in the session so far: cumulative, never summed
    vwap: float | None = None
    trades: int | None = None
    open_interest: float | None = None
    source: str | None = None  # who sent it
    ts_recv_ns: int | None = None  # when we got it
    seq: int | None = None  # the position on the tape; None before the append, ignored by it


class Bar(msgspec.Struct, frozen=True, gc=False):
    """One symbol's trades of one interval. `ts_start_ns` is the START of the bar and never moves.

    `interval` is a count and a unit: "1s", "1min", "5min", "1h", "1d". A bar of the tape's own making has the
    source None; `revision` grows by one each time its content changes after it was first kept. The last three
    fields are of the tape's own bars alone: an append ignores them.
    """

    symbol: str
    interval: str
    ts_start_ns: int
    open: float
    high: float
    low: float
    close: float
    volume: float | None = None  # sum of the trade sizes
    vwap: float | None = None
    trades: int | None = None
    bid_volume: float | None = None  # sold at the bid
    ask_volume: float | None = None  # bought at the ask
    complete: bool = True
    revision: int = 0
    source: str | None = None
    seq: int | None = None
    session: date | None = None  # the trading day, of bars that were asked for with a session
    number: int | None = None  # which of its session, from 0: of tick, volume, value and range bars, as is the next
    ts_end_ns: int | None = None  # when its last trade was


class Cancel(msgspec.Struct, frozen=True, gc=False):
    """A record that takes a tick back: the tick of this symbol at position `target_seq`, of time `ts_event_ns`.

    Nothing on the tape is changed: reading leaves the tick out, and reading as of a position before `seq` still has
    it. `traded` says whether it had a price, and so was in a bar. A revision is a Cancel and, at the next position, the
    tick that stands instead.
    """

    symbol: str
    ts_event_ns: int
    target_seq: int
    traded: bool
    seq: int | None = None


#: What a tape holds and a follower yields.
Record = Tick | Bar | Cancel


class SeqRange(NamedTuple):
    """What an append did: the positions it gave, both ends included, and how many records it stored.

    An append whose batch the tape already holds stores 0 and returns the positions of the first time. An
    append of nothing returns (head + 1, head, 0).
    """

    first: int
    last: int
    stored: int


_UNITS_NS = {
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "min": MINUTE_NS,
    "h": 3600 * 1_000_000_000,
    "d": 86400 * 1_000_000_000,
}


def interval_ns(interval: str) -> int:
    """Return the length of an interval such as "1min" in nanoseconds. Raises ValueError."""
    digits = interval.rstrip("smindh")
    unit = interval[len(digits) :]
    if not digits.isdecimal() or unit not in _UNITS_NS or int(digits) == 0 or len(digits) > 6:
        raise ValueError(f"{interval!r} is not an interval: a count and one of ms, s, min, h, d, such as '1min'")
    if int(digits) * _UNITS_NS[unit] > TS_MAX_NS:
        raise ValueError(f"{interval!r} is longer than time itself here")
    return int(digits) * _UNITS_NS[unit]


def interval_text(ns: int) -> str:
    """Return the canonical text of an interval: the longest unit that divides it. Raises ValueError."""
    for unit, size in reversed(_UNITS_NS.items()):
        if ns > 0 and ns % size == 0:
            return f"{ns // size}{unit}"
    raise ValueError(f"{ns} ns is not a bar interval")
