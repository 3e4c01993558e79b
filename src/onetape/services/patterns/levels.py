"""Support and resistance: prices at which the market turned before, and turns again."""

from __future__ import annotations

import numpy as np

from onetape.services.patterns import rolling
from onetape.services.patterns.bars import BarArrays, Codes, Floats
from onetape.services.patterns.detectors import DOWN, NONE, UP, atr

#: A pivot is the extreme of this many bars on each side (Williams' fractal has 2), and known that many bars later.
PIVOT_BARS = 3
#: Pivots older than this make no level.
LEVEL_BARS = 240
#: Pivots within this many ATR of the price are one level.
LEVEL_ATR = 0.25
#: A level is where the market turned this often before.
TOUCHES = 3
#: The bar closes this many ATR away from its extreme: it was turned back.
REJECTION_ATR = 0.5
#: The bar's extreme is that of so many bars: it came from afar.
APPROACH_BARS = 5


def pivots(bars: BarArrays) -> tuple[np.ndarray, Floats]:
    """Return the index (ascending) and the price of each turning point, highs and lows.

    A high is above the 3 before and not below the 3 after it; a low mirrored. It is known at index + PIVOT_BARS.
    """
    highs, lows = _extremes(bars.high), _extremes(-bars.low)
    at = np.concatenate([highs, lows])
    prices = np.concatenate([bars.high[highs], bars.low[lows]])
    order = np.argsort(at, kind="stable")
    return at[order], prices[order]


def support(bars: BarArrays) -> Codes:
    """UP: the low comes to a level of at least 3 turning points, and the close is 0.5 ATR above the low and above it.

    The level is the mean of the turning points of the last 240 bars, known a bar before, that lie within 0.25 ATR (as
    of the bar before) of the low; the low is the least of 5 bars.
    """
    scale = rolling.lagged(atr(bars), 1)
    came = bars.low <= rolling.lowest(bars.low, APPROACH_BARS)
    at = np.flatnonzero(came & (bars.close - bars.low >= REJECTION_ATR * scale) & (scale > 0))
    level, touches = _levels(bars, at, bars.low[at], scale[at])
    codes = np.full(len(bars), NONE, dtype=np.int8)
    codes[at[(touches >= TOUCHES) & (bars.close[at] > level)]] = UP
    return codes


def resistance(bars: BarArrays) -> Codes:
    """DOWN: as support(), mirrored: the high comes to a level, and the close is 0.5 ATR below the high and below it."""
    scale = rolling.lagged(atr(bars), 1)
    came = bars.high >= rolling.highest(bars.high, APPROACH_BARS)
    at = np.flatnonzero(came & (bars.high - bars.close >= REJECTION_ATR * scale) & (scale > 0))
    level, touches = _levels(bars, at, bars.high[at], scale[at])
    codes = np.full(len(bars), NONE, dtype=np.int8)
    codes[at[(touches >= TOUCHES) & (bars.close[at] < level)]] = DOWN
    return codes


def _extremes(x: Floats) -> np.ndarray:
    size = x.size - 2 * PIVOT_BARS
    if size <= 0:
        return np.zeros(0, dtype=np.int64)
    middle = x[PIVOT_BARS : PIVOT_BARS + size]
    found = np.ones(size, dtype=bool)
    for k in range(1, PIVOT_BARS + 1):
        found &= middle > x[PIVOT_BARS - k : PIVOT_BARS - k + size]
        found &= middle >= x[PIVOT_BARS + k : PIVOT_BARS + k + size]
    return np.flatnonzero(found) + PIVOT_BARS


def _levels(bars: BarArrays, at: np.ndarray, price: Floats, scale: Floats) -> tuple[Floats, np.ndarray]:
    """Return for each bar in `at` the mean and the number of the turning points near its price."""
    where, prices = pivots(bars)
    first = np.searchsorted(where, at - LEVEL_BARS, side="left")
    behind = np.searchsorted(where, at - 1 - PIVOT_BARS, side="right")
    apart, touches = np.zeros(at.size), np.zeros(at.size, dtype=np.int64)
    for k in range(int((behind - first).max(initial=0))):  # newest first, so the order of adding is the same anywhere
        index = behind - 1 - k
        distance = prices[index] - price
        near = (index >= first) & (np.abs(distance) <= LEVEL_ATR * scale)
        touches += near
        apart += np.where(near, distance, 0.0)
    return price + apart / np.maximum(touches, 1), touches
