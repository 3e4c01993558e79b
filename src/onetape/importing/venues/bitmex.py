"""BitMEX: trades, quotes and the L2 book of its realtime stream.

Sizes are contracts. A row of the L2 book is known by its id; messages before a symbol's `partial` are to be left out.
Its messages carry no time in older recordings: when we got them stands for it.
"""

from __future__ import annotations

from typing import Any

from onetape.clock import to_ns
from onetape.errors import ConfigInvalid
from onetape.importing.book import Book
from onetape.importing.venues import Row, Rows, Said, Skip

_SIDES = {"Buy": 1, "Sell": -1}
_BOOKS = ("orderBookL2", "orderBookL2_25")


class Bitmex:
    """The messages of BitMEX."""

    name = "bitmex"

    def __init__(self, skip: Skip) -> None:
        self._skip = skip
        self._books: dict[str, tuple[Book, dict[int, float]]] = {}

    def take(self, said: Said) -> Rows:
        """Return the ticks of a message."""
        message = said.body
        table = message.get("table") if isinstance(message, dict) else None
        if table is None:
            self._skip("REST answers" if said.url else "control messages", 1)
            return []
        if table == "trade":
            return [self._trade(row, said) for row in message["data"]]
        if table == "quote":
            return [self._quote(row, said) for row in message["data"]]
        if table in _BOOKS:
            return self._book(message, said)
        self._skip(f"{table} messages", 1)
        return []

    def _trade(self, row: Row, said: Said) -> Row:
        price, size = float(row["price"]), float(row["size"])
        return {**_base(row, said, "trade"), "price": price, "size": size, "side": _SIDES.get(row.get("side", ""), 0)}

    def _quote(self, row: Row, said: Said) -> Row:
        fields = {"bid": "bidPrice", "bid_size": "bidSize", "ask": "askPrice", "ask_size": "askSize"}
        return {**_base(row, said, "quote"), **{name: _float(row.get(of)) for name, of in fields.items()}}

    def _book(self, message: Row, said: Said) -> Rows:
        action, touched = message["action"], dict[str, Row]()
        if action == "partial":
            for symbol in {message.get("filter", {}).get("symbol"), *(row["symbol"] for row in message["data"])} - {
                None
            }:
                self._books[symbol] = Book(), {}
        for row in message["data"]:
            symbol = row["symbol"]
            if symbol not in self._books:
                self._skip(f"{message['table']} rows before their partial", 1)
                continue
            book, prices = self._books[symbol]
            side = book.bids if row["side"] == "Buy" else book.asks
            price = prices.get(row["id"])
            if action in ("partial", "insert"):
                prices[row["id"]] = price = float(row["price"])
            elif price is None:
                self._skip(f"{message['table']} rows of an id that is not known", 1)
                continue
            if action == "delete":
                del prices[row["id"]]
            side.put(price, 0.0 if action == "delete" else float(row["size"]))
            touched[symbol] = row
        return [
            {**_base(row, said, "orderBookL2"), **best._asdict()}
            for symbol, row in touched.items()
            if (best := self._books[symbol][0].news()) is not None
        ]

    def end(self) -> None:
        """Nothing waits here."""


def _base(row: Row, said: Said, channel: str) -> Row:
    time = row.get("timestamp")
    try:
        ts_ns = said.recv_ns if time is None else to_ns(time)
    except ConfigInvalid as error:
        raise ValueError(str(error)) from error
    return {"symbol": row["symbol"], "ts_event_ns": ts_ns, "ts_recv_ns": said.recv_ns, "source": f"bitmex.{channel}"}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
