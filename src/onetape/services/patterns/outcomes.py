"""Outcomes: whether what a detection says came true."""

from __future__ import annotations

import numpy as np

from onetape.services.patterns.bars import BarArrays, Floats

#: A detection is judged by this many bars after its own.
HORIZON_BARS = 10
#: The move that counts, in ATR as of the detection.
MOVE_ATR = 1.0
#: The same where no direction is told: either way counts, so a random walk moves 1 ATR nearly always, and this far in
#: about half of all cases.
UNDIRECTED_MOVE_ATR = 2.25


def judge(bars: BarArrays, index: np.ndarray, direction: np.ndarray, price: Floats, atr: Floats) -> np.ndarray:
    """Return for each detection 1 (it came true), 0 (it did not) or -1 (its horizon has not passed yet).

    It came true if, within the 10 bars after its own, the market moved 1 ATR from its price in its direction, and not
    1 ATR against it before or in the same bar (the order inside a bar is not known: it counts against). Without a
    direction it came true if the market moved 2.25 ATR either way. (First touch of two barriers with a limit of time:
    Lopez de Prado 2018.)
    """
    result = np.full(index.size, -1, dtype=np.int64)
    ready = np.flatnonzero(index + HORIZON_BARS < len(bars))
    at, way, base = index[ready], direction[ready], price[ready]
    reach = np.where(way == 0, UNDIRECTED_MOVE_ATR, MOVE_ATR) * atr[ready]
    won, lost = np.zeros(ready.size, dtype=bool), np.zeros(ready.size, dtype=bool)
    for k in range(1, HORIZON_BARS + 1):
        above, below = bars.high[at + k] >= base + reach, bars.low[at + k] <= base - reach
        against = np.where(way > 0, below, np.where(way < 0, above, False))
        towards = np.where(way > 0, above, np.where(way < 0, below, above | below))
        lost |= ~won & against
        won |= ~lost & towards
    result[ready] = won
    return result
