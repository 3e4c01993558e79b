"""Binance: trades, book tickers and depth of its spot and futures streams.

Channels as Binance's API documentation describes them. A trade's `m` says that the buyer was the maker: the seller was
the aggressor. Spot book tickers carry no time of the venue: when we got them stands for it. Depth becomes quotes: a
book is a snapshot (`lastUpdateId`) and every later update without a hole; after a hole it waits for a new snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from onetape.importing.book import Book
from onetape.importing.venues import Row, Rows, Said, Skip, ms

#: Updates of one symbol that wait for a snapshot.
_WAITING_MAX = 10_000
_PARTIAL = re.compile(r"@depth(5|10|20)(@|$)")
_TRADE = re.compile(rb'"stream"\s*:\s*"([^"@]+)@trade"')


class Binance:
    """The messages of Binance. `traded`: finds the streams of single trades in the whole recording."""

    name = "binance"

    def __init__(self, skip: Skip, traded: Callable[[re.Pattern[bytes]], set[bytes]]) -> None:
        self._skip, self._traded = skip, traded
        self._single: set[bytes] | None = None
        self._books: dict[str, _Depth] = {}

    def take(self, said: Said) -> Rows:
        """Return the ticks of a message."""
        message = said.body
        if not isinstance(message, dict):
            raise TypeError("not an object")
        stream = message.get("stream", "")
        data = message.get("data", message)
        if "lastUpdateId" in data:
            return self._snapshot(data, stream, said)
        kind = data.get("e") or ("bookTicker" if {"b", "B", "a", "A", "s"} <= data.keys() else None)
        if kind in ("trade", "aggTrade"):
            return self._trade(kind, data, said)
        if kind == "bookTicker":
            time = data.get("T", data.get("E"))
            row = _quote(data["s"], said.recv_ns if time is None else ms(time), said, "bookTicker")
            _put_best(row, (data["b"], data["B"]), (data["a"], data["A"]))
            return [row]
        if kind == "depthUpdate":
            if _PARTIAL.search(stream):
                return self._partial(data["s"], data.get("T", data["E"]), data["b"], data["a"], said)
            return self._depth(data, said)
        if kind is None:
            self._skip("REST answers" if said.url else "control messages", 1)
        else:
            self._skip(f"{kind} messages", 1)
        return []

    def _trade(self, kind: str, data: Row, said: Said) -> Rows:
        if data.get("X", "MARKET") != "MARKET":
            self._skip(f"trades of the type {data['X']}", 1)
            return []
        if kind == "aggTrade":
            if self._single is None:
                self._single = self._traded(_TRADE)
            if data["s"].lower().encode() in self._single:
                self._skip("aggTrade messages of a symbol whose single trades are here", 1)
                return []
        row = {"symbol": data["s"], "ts_event_ns": ms(data["T"]), "ts_recv_ns": said.recv_ns}
        price, size, side = float(data["p"]), float(data["q"]), -1 if data["m"] else 1
        return [{**row, "price": price, "size": size, "side": side, "source": f"binance.{kind}"}]

    def _partial(self, symbol: str, time: int | None, bids: Any, asks: Any, said: Said) -> Rows:
        row = _quote(symbol, said.recv_ns if time is None else ms(time), said, "depth")
        _put_best(row, bids[0] if bids else None, asks[0] if asks else None)
        return [row] if bids or asks else []

    def _snapshot(self, data: Row, stream: str, said: Said) -> Rows:
        if stream:
            return self._partial(stream.partition("@")[0].upper(), data.get("T"), data["bids"], data["asks"], said)
        asked = parse_qs(urlsplit(said.url or "").query).get("symbol", [None])[0]
        symbol = data.get("symbol") or asked or (next(iter(self._books)) if len(self._books) == 1 else None)
        if symbol is None:
            self._skip("depth snapshots that do not say of which symbol", 1)
            return []
        depth = self._books.setdefault(symbol, _Depth(self._skip))
        time = data.get("T")
        return depth.begin(symbol, data, said.recv_ns if time is None else ms(time), said)

    def _depth(self, data: Row, said: Said) -> Rows:
        depth = self._books.setdefault(data["s"], _Depth(self._skip))
        return depth.update(data, said)

    def end(self) -> None:
        """Count the updates that wait for a snapshot."""
        for depth in self._books.values():
            depth.end()


def _quote(symbol: str, ts_ns: int, said: Said, channel: str) -> Row:
    return {"symbol": symbol, "ts_event_ns": ts_ns, "ts_recv_ns": said.recv_ns, "source": f"binance.{channel}"}


def _put_best(row: Row, bid: Any, ask: Any) -> None:
    """Put best prices and sizes into a row; a side without any has neither, or a price of zero."""
    if bid is not None and float(bid[0]) != 0:
        row["bid"], row["bid_size"] = float(bid[0]), float(bid[1])
    if ask is not None and float(ask[0]) != 0:
        row["ask"], row["ask_size"] = float(ask[0]), float(ask[1])


class _Update(NamedTuple):
    """One depth update: its first and last number, that of the update before (futures), its time, its levels."""

    first: int
    last: int
    before: int | None
    ts_ns: int
    bids: list[tuple[float, float]]
    asks: list[tuple[float, float]]

    @classmethod
    def of(cls, data: Row) -> _Update:
        before = data.get("pu")
        time = ms(data.get("T", data["E"]))
        return cls(
            int(data["U"]),
            int(data["u"]),
            None if before is None else int(before),
            time,
            _levels("b", data),
            _levels("a", data),
        )


def _levels(side: str, data: Row) -> list[tuple[float, float]]:
    return [(float(level[0]), float(level[1])) for level in data[side]]


class _Depth:
    """One symbol's book on its way: updates that wait for a snapshot, or a book and its last update."""

    def __init__(self, skip: Skip) -> None:
        self._skip = skip
        self._book: Book | None = None
        self._last, self._joined = 0, False
        self._waiting: list[_Update] = []
        self._lost = False

    def begin(self, symbol: str, data: Row, ts_ns: int, said: Said) -> Rows:
        """Start with a snapshot and what waited for it; return the best."""
        last, bids, asks = int(data["lastUpdateId"]), _levels("bids", data), _levels("asks", data)
        self._book, self._last, self._joined, self._lost = Book(), last, False, False
        self._fill(bids, asks)
        waiting, self._waiting = self._waiting, []
        for update in waiting:
            if self._put(update):
                ts_ns = max(ts_ns, update.ts_ns)
        return self._told(symbol, ts_ns, said)

    def update(self, data: Row, said: Said) -> Rows:
        """Put an update into the book; return the best if it is news."""
        update = _Update.of(data)
        return self._told(data["s"], update.ts_ns, said) if self._put(update) else []

    def _put(self, update: _Update) -> bool:
        """Put an update into the book, or let it wait for one; return whether it went in."""
        if self._book is None:
            self._wait(update)
            return False
        if update.last < self._last or (update.last == self._last and (self._joined or update.before is None)):
            self._skip("depth updates older than their snapshot", 1)
            return False
        if not self._joined:
            whole = update.first <= self._last + 1
        elif update.before is not None:
            whole = update.before == self._last
        else:
            whole = update.first == self._last + 1
        if not whole:
            self._book, self._lost = None, True
            self._wait(update)
            return False
        self._fill(update.bids, update.asks)
        self._last, self._joined = update.last, True
        return True

    def _fill(self, bids: list[tuple[float, float]], asks: list[tuple[float, float]]) -> None:
        assert self._book is not None
        for side, levels in ((self._book.bids, bids), (self._book.asks, asks)):
            for price, size in levels:
                side.put(price, size)

    def _wait(self, update: _Update) -> None:
        self._waiting.append(update)
        if len(self._waiting) > _WAITING_MAX:
            self._waiting.pop(0)
            self._skip(self._why(), 1)

    def _told(self, symbol: str, ts_ns: int, said: Said) -> Rows:
        best = None if self._book is None else self._book.news()
        return [] if best is None else [{**_quote(symbol, ts_ns, said, "depth"), **best._asdict()}]

    def _why(self) -> str:
        return "depth updates after a hole" if self._lost else "depth updates without a snapshot"

    def end(self) -> None:
        """Count what still waits."""
        if self._waiting:
            self._skip(self._why(), len(self._waiting))
