"""The book: a symbol's orders by price, both sides, as the latest message left them. Any thread may read it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Literal, NamedTuple

BookSide = Literal["bid", "ask"]
#: A level put or, with a size of 0, taken away: (side, price, size, orders). None: both sides are emptied.
Change = tuple[BookSide, float, float, int] | None


class Level(NamedTuple):
    """What is offered at a price. `orders` is 0 where the feed does not say how many they are."""

    price: float
    size: float
    orders: int = 0


class BookSnapshot(NamedTuple):
    """A book at a moment, best first; `at_ns` is the time of the newest message in it, None before the first."""

    at_ns: int | None
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]


class Book:
    """Levels of both sides, read and written by several threads.

    A crossed book is kept as it is told: that is for the reader to see. Sizes and prices are not checked here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._levels: dict[str, dict[float, Level]] = {"bid": {}, "ask": {}}
        self._ranked: dict[str, list[Level] | None] = {"bid": None, "ask": None}
        self._at_ns: int | None = None

    @property
    def at_ns(self) -> int | None:
        """Time of the newest message, ns; None before the first one that had a time."""
        return self._at_ns

    def bids(self) -> list[Level]:
        """Return the bids, the highest price first."""
        with self._lock:
            return list(self._rank("bid"))

    def asks(self) -> list[Level]:
        """Return the asks, the lowest price first."""
        with self._lock:
            return list(self._rank("ask"))

    def best(self) -> tuple[Level | None, Level | None]:
        """Return the best bid and the best ask, None where a side is empty."""
        with self._lock:
            bids, asks = self._levels["bid"], self._levels["ask"]
            return (bids[max(bids)] if bids else None, asks[min(asks)] if asks else None)

    def snapshot(self, levels: int | None = None) -> BookSnapshot:
        """Return both sides as of one moment, at most `levels` of each."""
        with self._lock:
            return BookSnapshot(self._at_ns, tuple(self._rank("bid")[:levels]), tuple(self._rank("ask")[:levels]))

    def set_level(self, side: BookSide, price: float, size: float, orders: int = 0, at_ns: int | None = None) -> None:
        """Put what is offered at a price; a size of 0 takes the level away, whether it was there or not."""
        with self._lock:
            if size:
                self._levels[side][price] = Level(price, size, orders)
            else:
                self._levels[side].pop(price, None)
            self._ranked[side] = None
            self._touch(at_ns)

    def clear(self, at_ns: int | None = None) -> None:
        """Empty both sides."""
        with self._lock:
            for side in ("bid", "ask"):
                self._levels[side] = {}
                self._ranked[side] = None
            self._touch(at_ns)

    def change(self, changes: Iterable[Change], at_ns: int | None = None) -> None:
        """Make several changes in one step, in their order; None among them empties the book."""
        with self._lock:
            for one in changes:
                if one is None:
                    self._levels = {"bid": {}, "ask": {}}
                elif one[2]:
                    self._levels[one[0]][one[1]] = Level(*one[1:])
                else:
                    self._levels[one[0]].pop(one[1], None)
            self._ranked = {"bid": None, "ask": None}
            self._touch(at_ns)

    def replace(self, snapshot: BookSnapshot) -> None:
        """Become what a snapshot says, in one step: no reader sees half of it."""
        with self._lock:
            self._levels = {
                "bid": {level.price: level for level in snapshot.bids},
                "ask": {level.price: level for level in snapshot.asks},
            }
            self._ranked = {"bid": None, "ask": None}
            self._at_ns = snapshot.at_ns

    def _touch(self, at_ns: int | None) -> None:
        if at_ns is not None:
            self._at_ns = at_ns

    def _rank(self, side: str) -> list[Level]:
        ranked = self._ranked[side]
        if ranked is None:
            ranked = sorted(self._levels[side].values(), key=lambda level: level.price, reverse=side == "bid")
            self._ranked[side] = ranked
        return ranked
