"""A book: prices and sizes of both sides as a venue's updates leave them, and the best of each."""

from __future__ import annotations

from typing import NamedTuple


class Best(NamedTuple):
    """The best bid and ask with their sizes; None where a side is empty."""

    bid: float | None
    bid_size: float | None
    ask: float | None
    ask_size: float | None


class Side:
    """The levels of one side. `sign`: 1 where the highest price is the best (bids), -1 where the lowest is (asks)."""

    def __init__(self, sign: int) -> None:
        self.levels: dict[float, float] = {}
        self._sign = sign
        self._best: float | None = None

    def put(self, price: float, size: float) -> None:
        """Set the size at a price; 0 removes it."""
        if size == 0:
            if self.levels.pop(price, None) is not None and price == self._best:
                self._best = None
            return
        self.levels[price] = size
        if self._best is not None and price * self._sign > self._best * self._sign:
            self._best = price

    def best(self) -> float | None:
        """Return the best price, or None of an empty side."""
        if self._best is None and self.levels:
            self._best = (max if self._sign > 0 else min)(self.levels)
        return self._best

    def cut(self, depth: int) -> None:
        """Forget all but the best `depth` levels."""
        if len(self.levels) > depth:
            ranked = sorted(self.levels, reverse=self._sign > 0)
            for price in ranked[depth:]:
                del self.levels[price]


class Book:
    """Both sides of one symbol."""

    def __init__(self) -> None:
        self.bids, self.asks = Side(1), Side(-1)
        self._told: Best | None = None

    def best(self) -> Best:
        """Return the best of both sides."""
        bid, ask = self.bids.best(), self.asks.best()
        return Best(
            bid,
            None if bid is None else self.bids.levels[bid],
            ask,
            None if ask is None else self.asks.levels[ask],
        )

    def news(self) -> Best | None:
        """Return the best if it is not what it was when it was asked for last, and is there at all."""
        found = self.best()
        if found == self._told or (found.bid is None and found.ask is None):
            return None
        self._told = found
        return found
