"""Kraken: trades, tickers and the book of its websocket API, version 1.

A ticker becomes a quote with the session's fields of today (UTC); its last price is no trade, so it is left out. It
carries no time of the venue: when we got it stands for it. A book's updates carry a checksum over its best ten levels:
one that does not match ends the book until the next snapshot.
"""

from __future__ import annotations

import heapq
import zlib
from typing import Any

from onetape.importing.book import Book
from onetape.importing.venues import Row, Rows, Said, Skip, seconds

_SIDES = {"b": 1, "s": -1}
_SESSION = {"open": "o", "high": "h", "low": "l", "volume": "v", "vwap": "p"}


class Kraken:
    """The messages of Kraken."""

    name = "kraken"

    def __init__(self, skip: Skip) -> None:
        self._skip = skip
        self._books: dict[str, _Book | None] = {}

    def take(self, said: Said) -> Rows:
        """Return the ticks of a message."""
        message = said.body
        if isinstance(message, dict):
            self._skip("REST answers" if said.url else "control messages", 1)
            return []
        _, *bodies, channel, pair = message
        if channel == "trade":
            return [self._trade(row, pair, said) for row in bodies[0]]
        if channel == "ticker":
            return [self._ticker(bodies[0], pair, said)]
        if channel.startswith("book"):
            return self._book(bodies, int(channel.partition("-")[2] or 10), pair, said)
        self._skip(f"{channel.partition('-')[0]} messages", 1)
        return []

    def _trade(self, row: list[Any], pair: str, said: Said) -> Row:
        price, size, side = float(row[0]), float(row[1]), _SIDES[row[3]]
        return {**_base(pair, seconds(row[2]), said, "trade"), "price": price, "size": size, "side": side}

    def _ticker(self, body: Row, pair: str, said: Said) -> Row:
        quote = {"bid": body["b"][0], "bid_size": body["b"][2], "ask": body["a"][0], "ask_size": body["a"][2]}
        session = {field: body[of][0] for field, of in _SESSION.items()}
        numbers = {field: float(text) for field, text in (quote | session).items()}
        return {**_base(pair, said.recv_ns, said, "ticker"), **numbers, "trades": int(body["t"][0])}

    def _book(self, bodies: list[Any], depth: int, pair: str, said: Said) -> Rows:
        changes = {side: levels for body in bodies for side, levels in body.items()}
        if "as" in changes or "bs" in changes:
            self._books[pair] = _Book()
        book = self._books.get(pair)
        if book is None:
            why = "after a checksum that did not match" if pair in self._books else "without a snapshot"
            self._skip(f"book updates {why}", 1)
            return []
        newest = book.put("a", changes.get("as", []) + changes.get("a", []), depth)
        newest = max(newest, book.put("b", changes.get("bs", []) + changes.get("b", []), depth))
        if "c" in changes and book.checksum() != int(changes["c"]):
            self._books[pair] = None
            self._skip("book updates whose checksum did not match", 1)
            return []
        best = book.news()
        ts_ns = newest or said.recv_ns
        return [] if best is None else [{**_base(pair, ts_ns, said, "book"), **best._asdict()}]

    def end(self) -> None:
        """Nothing waits here."""


class _Book(Book):
    """A book that keeps the texts of its levels, of which the checksum is made."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: dict[str, dict[float, str]] = {"a": {}, "b": {}}

    def put(self, name: str, levels: list[list[str]], depth: int) -> int:
        """Set levels of a side; return the newest of their times in ns, 0 without any."""
        side, texts, newest = (self.asks if name == "a" else self.bids), self._texts[name], 0
        for level in levels:
            price, size = float(level[0]), float(level[1])
            side.put(price, size)
            texts[price] = _digits(level[0]) + _digits(level[1])
            newest = max(newest, seconds(level[2]))
        side.cut(depth)
        if len(texts) > 2 * depth:
            self._texts[name] = {price: texts[price] for price in side.levels}
        return newest

    def checksum(self) -> int:
        """Return the CRC-32 of the digits of the ten best asks, then bids."""
        asks, bids = heapq.nsmallest(10, self.asks.levels), heapq.nlargest(10, self.bids.levels)
        digits = [self._texts["a"][price] for price in asks] + [self._texts["b"][price] for price in bids]
        return zlib.crc32("".join(digits).encode())


def _digits(text: str) -> str:
    return text.replace(".", "").lstrip("0")


def _base(pair: str, ts_ns: int, said: Said, channel: str) -> Row:
    return {"symbol": pair, "ts_event_ns": ts_ns, "ts_recv_ns": said.recv_ns, "source": f"kraken.{channel}"}
