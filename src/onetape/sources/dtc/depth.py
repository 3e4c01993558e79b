"""The depth: a DTC server's levels of order books, put into books by symbol id."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.market import as_printed, seconds_to_ns

if TYPE_CHECKING:
    from onetape.sources.book import Book

_SNAPSHOTS = {dtc.DEPTH_SNAPSHOT, dtc.DEPTH_SNAPSHOT_FLOAT}
_UPDATES = {dtc.DEPTH_UPDATE, dtc.DEPTH_UPDATE_FLOAT, dtc.DEPTH_UPDATE_NO_TIMESTAMP}
_FLOATS = {dtc.DEPTH_SNAPSHOT_FLOAT, dtc.DEPTH_UPDATE_FLOAT, dtc.DEPTH_UPDATE_NO_TIMESTAMP}


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
        self.refused = 0

    def take(self, number: int, fields: dict[str, Any]) -> Level | None:
        """Put a depth message into its book; None where the message is of something else, or of no book."""
        if number not in _SNAPSHOTS and number not in _UPDATES:
            return None
        book = self._books.get(fields["SymbolID"])
        if book is None:
            return Level(False, None, None, None)
        ts_ns = _time(number, fields)
        whole = fields.get("FinalUpdateInBatch", dtc.BATCH_FALSE) in (0, dtc.BATCH_TRUE)
        if number in _SNAPSHOTS:
            first = bool(fields.get("IsFirstMessageInBatch")) or fields.get("FinalUpdateInBatch") == dtc.BATCH_BEGIN
            whole = bool(fields.get("IsLastMessageInBatch")) or fields.get("FinalUpdateInBatch") == dtc.BATCH_TRUE
            if first or (number == dtc.DEPTH_SNAPSHOT_FLOAT and fields["Level"] == 1 and fields["Side"] == dtc.AT_BID):
                book.clear(ts_ns)
        self._put(number, fields, book, ts_ns)
        if not whole:
            return Level(False, None, None, ts_ns)
        bids, asks = book.bids(), book.asks()
        return Level(True, bids[0][:2] if bids else None, asks[0][:2] if asks else None, ts_ns)

    def _put(self, number: int, fields: dict[str, Any], book: Book, ts_ns: int | None) -> None:
        price, size, side = fields["Price"], fields["Quantity"], fields["Side"]
        if side not in (dtc.AT_BID, dtc.AT_ASK):
            if number in _UPDATES or size:  # an empty book is told by a level of no side
                self.refused += 1
            return
        if number in _FLOATS:
            price, size = as_printed(price), as_printed(size)
        if not isfinite(price) or not isfinite(size) or size < 0 or abs(price) >= dtc.FLOAT_UNSET:
            self.refused += 1
            return
        gone = number in _UPDATES and fields["UpdateType"] == dtc.DELETE_LEVEL
        book.set_level("bid" if side == dtc.AT_BID else "ask", price, 0.0 if gone else size, fields["NumOrders"], ts_ns)


def _time(number: int, fields: dict[str, Any]) -> int | None:
    when = fields.get("DateTime")
    if not when:
        return None
    return int(when) * 1_000_000 if number == dtc.DEPTH_UPDATE_FLOAT else seconds_to_ns(when)
