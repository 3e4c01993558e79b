"""Rows: bars, ticks, books and gaps as the page and programs get them, compact, times in whole milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onetape.record import Bar, Tick
from onetape.store.partition import Gap

if TYPE_CHECKING:
    from onetape.sources.book import Book

MS_NS = 1_000_000

#: [t_ms, open, high, low, close, volume, revision, complete]; without prices: a bar of which no trade is left.
BarRow = list[Any]
#: [t_ms, price, size, bid, ask, bid_size, ask_size]
LastRow = list[Any]


def ms(ns: int) -> int:
    """Return whole milliseconds, rounded down."""
    return ns // MS_NS


def bar_row(bar: Bar) -> BarRow:
    """Return a bar as a row."""
    prices: list[Any] = [bar.open, bar.high, bar.low, bar.close]
    if not bar.trades and bar.open != bar.open:  # NaN: taken back
        prices = [None] * 4
    return [ms(bar.ts_start_ns), *prices, bar.volume, bar.revision, bar.complete]


def bar_rows(table: Any) -> list[BarRow]:
    """Return an Arrow table of bars as rows."""
    starts = [ms(start) for start in table["ts_start_ns"].to_pylist()]
    names = ("open", "high", "low", "close", "volume", "revision", "complete")
    return [list(row) for row in zip(starts, *(table[name].to_pylist() for name in names), strict=True)]


def gap_rows(gaps: list[Gap]) -> list[list[Any]]:
    """Return gaps as [start_ms, end_ms, "missing" | "inferred"]: said by a source, or told from the silence."""
    return [[ms(gap.start_ns), ms(gap.end_ns), "missing" if gap.state == "missing" else "inferred"] for gap in gaps]


def tick_dict(tick: Tick) -> dict[str, Any]:
    """Return a tick as the API shows it; what is absent is left out."""
    found: dict[str, Any] = {"symbol": tick.symbol, "t_ms": ms(tick.ts_event_ns), "t_ns": str(tick.ts_event_ns)}
    for name in ("price", "size", "bid", "ask", "bid_size", "ask_size", "source", "seq"):
        value = getattr(tick, name)
        if value is not None:
            found[name] = value
    if tick.side:
        found["side"] = tick.side
    if tick.flags:
        found["flags"] = tick.flags
    return found


def book_dict(symbol: str, book: Book, levels: int) -> dict[str, Any]:
    """Return an order book, best first."""
    return {
        "symbol": symbol,
        "at_ms": None if book.at_ns is None else ms(book.at_ns),
        "bids": [list(level) for level in book.bids()[:levels]],
        "asks": [list(level) for level in book.asks()[:levels]],
    }


class Last:
    """The last trade and the last quote of a symbol, each by the greatest time; late ones do not replace them."""

    __slots__ = ("ask", "ask_size", "bid", "bid_size", "price", "quote_ns", "size", "trade_ns")

    def __init__(self) -> None:
        self.trade_ns = self.quote_ns = -1
        self.price: float | None = None
        self.size: float | None = None
        self.bid: float | None = None
        self.ask: float | None = None
        self.bid_size: float | None = None
        self.ask_size: float | None = None

    def take(self, tick: Tick) -> None:
        """Take a tick into account."""
        at = tick.ts_event_ns
        if tick.price is not None and at >= self.trade_ns:
            self.trade_ns, self.price, self.size = at, tick.price, tick.size
        if (tick.bid is not None or tick.ask is not None) and at >= self.quote_ns:
            self.quote_ns, self.bid, self.ask = at, tick.bid, tick.ask
            self.bid_size, self.ask_size = tick.bid_size, tick.ask_size

    def join(self, other: Last) -> None:
        """Take in what another has that is not older."""
        if other.trade_ns >= self.trade_ns:
            self.trade_ns, self.price, self.size = other.trade_ns, other.price, other.size
        if other.quote_ns >= self.quote_ns:
            self.quote_ns, self.bid, self.ask = other.quote_ns, other.bid, other.ask
            self.bid_size, self.ask_size = other.bid_size, other.ask_size

    def row(self) -> LastRow | None:
        """Return it as a row, None where there is nothing."""
        at = max(self.trade_ns, self.quote_ns)
        if at < 0:
            return None
        return [ms(at), self.price, self.size, self.bid, self.ask, self.bid_size, self.ask_size]


def last_of(ticks: list[Tick]) -> Last:
    """Return what stands after these ticks."""
    found = Last()
    for tick in ticks:
        found.take(tick)
    return found
