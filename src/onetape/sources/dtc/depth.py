"""The depth: a DTC server's levels of order books, put into books by symbol id."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal, NamedTuple

from onetape.record import TS_MAX_NS
from onetape.sources.book import Book, BookSnapshot
from onetape.sources.book import Level as BookLevel
from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.layout import Malformed
from onetape.sources.dtc.market import as_printed, seconds_to_ns

#: A snapshot, and a book, has at most this many levels.
LEVELS_MAX = 100_000

_SNAPSHOTS = {dtc.DEPTH_SNAPSHOT, dtc.DEPTH_SNAPSHOT_FLOAT}
_UPDATES = {dtc.DEPTH_UPDATE, dtc.DEPTH_UPDATE_FLOAT, dtc.DEPTH_UPDATE_NO_TIMESTAMP}


class Level(NamedTuple):
    """A level was taken. whole: the server ended a batch with it; bid, ask: the best (price, size) then."""

    whole: bool
    bid: tuple[float, float] | None
    ask: tuple[float, float] | None
    ts_ns: int | None


class Depth:
    """Books by the symbol id of one connection. `refused` counts levels that are none."""

    def __init__(self, books: Mapping[int, Book]) -> None:
        self._books = books
        self._gathered: dict[int, dict[str, list[BookLevel]]] = {}
        self.refused = 0
        self._updates = 0

    def take(self, number: int, fields: dict[str, Any]) -> Level | None:
        """Put a depth message into its book; None where the message is of something else, or of no book."""
        if number not in _SNAPSHOTS and number not in _UPDATES:
            return None
        book = self._books.get(fields["SymbolID"])
        if book is None:
            return Level(False, None, None, None)
        ts_ns = _time(number, fields)
        if number in _SNAPSHOTS:
            return self._snapshot(number, fields, book, ts_ns)
        level = self._level(number, fields)
        if level is not None:
            side, made = level
            gone = fields["UpdateType"] == dtc.DELETE_LEVEL
            book.set_level(side, made.price, 0.0 if gone else made.size, made.orders, ts_ns)
            self._updates += 1
            if self._updates % 10_000 == 0 and len(book.bids()) + len(book.asks()) > LEVELS_MAX:
                raise Malformed(f"a book of more than {LEVELS_MAX} levels")
        if fields["FinalUpdateInBatch"] in (dtc.BATCH_FALSE, dtc.BATCH_BEGIN):
            return Level(False, None, None, ts_ns)
        return _best(book, ts_ns)

    def _snapshot(self, number: int, fields: dict[str, Any], book: Book, ts_ns: int | None) -> Level:
        """Gather a snapshot; the book becomes it in one step, with its last level."""
        key = fields["SymbolID"]
        if fields.get("IsFirstMessageInBatch") or fields.get("FinalUpdateInBatch") == dtc.BATCH_BEGIN:
            self._gathered.pop(key, None)
        gathered = self._gathered.setdefault(key, {"bid": [], "ask": []})
        level = self._level(number, fields)
        if level is not None and level[1].size:
            gathered[level[0]].append(level[1])
        if sum(map(len, gathered.values())) > LEVELS_MAX:
            raise Malformed(f"a snapshot of more than {LEVELS_MAX} levels")
        if not fields.get("IsLastMessageInBatch") and fields.get("FinalUpdateInBatch") != dtc.BATCH_TRUE:
            return Level(False, None, None, ts_ns)
        del self._gathered[key]
        book.replace(BookSnapshot(ts_ns or book.at_ns, tuple(gathered["bid"]), tuple(gathered["ask"])))
        return _best(book, ts_ns)

    def _level(self, number: int, fields: dict[str, Any]) -> tuple[Literal["bid", "ask"], BookLevel] | None:
        price, size, side = fields["Price"], fields["Quantity"], fields["Side"]
        if side not in (dtc.AT_BID, dtc.AT_ASK):
            if number in _UPDATES or size:  # an empty book is told by a level of no side
                self.refused += 1
            return None
        price, size = as_printed(price), as_printed(size)
        if not isfinite(price) or not isfinite(size) or size < 0 or abs(price) >= dtc.FLOAT_UNSET:
            self.refused += 1
            return None
        return "bid" if side == dtc.AT_BID else "ask", BookLevel(price, size, fields["NumOrders"])


def _best(book: Book, ts_ns: int | None) -> Level:
    bid, ask = book.best()
    return Level(True, bid[:2] if bid else None, ask[:2] if ask else None, ts_ns)


def _time(number: int, fields: dict[str, Any]) -> int | None:
    when = fields.get("DateTime")
    if not when:
        return None
    if number != dtc.DEPTH_UPDATE_FLOAT:
        return seconds_to_ns(when)
    ns = int(when) * 1_000_000
    return ns if 0 <= ns <= TS_MAX_NS else None
