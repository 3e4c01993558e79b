"""Measures of bars: how far prices went, how straight, how widely; from plain lists, oldest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median, pstdev

import msgspec

from onetape.record import Bar

#: Bars that a direction is judged by, and that a range is averaged over.
DIRECTION_BARS, RANGE_BARS = 20, 14
#: From here on a move counts as straight; and a range, against the median before, as wide.
STRAIGHT, WIDE = 0.35, 1.5
#: Sums of greater numbers could leave a float's range. No measure depends on the unit: they are made smaller, exactly.
_GREAT, _SMALLER = 1e290, 2.0**-64


class Regime(msgspec.Struct, frozen=True):
    """What a market does. name: "trend", "volatile", "range", or "unknown" where bars are too few.

    direction: +1, -1 or 0, of a trend only. efficiency: 0 to 1, how straight it went (Kaufman's efficiency ratio: the
    net move divided by the sum of all moves). range_ratio: the mean true range of the last 14 bars divided by the
    median of those before; None where there are fewer than 14 before, or they did not move.
    """

    name: str
    direction: int = 0
    efficiency: float | None = None
    range_ratio: float | None = None
    bars: int = 0


def regime(bars: Sequence[Bar]) -> Regime:
    """Return the regime: straight enough is a trend, else wide enough is volatile, else it is a range."""
    if len(bars) <= DIRECTION_BARS:
        return Regime("unknown", bars=len(bars))
    closes = [bar.close for bar in bars[-DIRECTION_BARS - 1 :]]
    straight = efficiency(closes)
    wide = range_ratio(bars)
    if straight >= STRAIGHT:
        return Regime("trend", 1 if closes[-1] > closes[0] else -1, straight, wide, len(bars))
    return Regime("volatile" if wide is not None and wide >= WIDE else "range", 0, straight, wide, len(bars))


def efficiency(closes: Sequence[float]) -> float:
    """Return the net move divided by the sum of all moves; 0 where nothing moved."""
    closes = _in_range(closes)
    moved = math.fsum(abs(after - before) for before, after in pairwise(closes))
    return abs(closes[-1] - closes[0]) / moved if moved else 0.0


def true_ranges(bars: Sequence[Bar]) -> list[float]:
    """Return the true range of each bar but the first: its span, and from the close before, all in one unit."""
    highs, lows, closes = ([getattr(bar, name) for bar in bars] for name in ("high", "low", "close"))
    flat = _in_range([*highs, *lows, *closes])
    highs, lows, closes = flat[: len(bars)], flat[len(bars) : 2 * len(bars)], flat[2 * len(bars) :]
    return [
        max(high, before) - min(low, before) for high, low, before in zip(highs[1:], lows[1:], closes[:-1], strict=True)
    ]


def range_ratio(bars: Sequence[Bar]) -> float | None:
    """Return the mean true range of the last 14 bars divided by the median of those before, or None."""
    ranges = true_ranges(bars)
    before = ranges[:-RANGE_BARS]
    usual = median(before) if len(before) >= RANGE_BARS else 0.0
    return fmean(ranges[-RANGE_BARS:]) / usual if usual else None


def zscore(values: Sequence[float]) -> float | None:
    """Return how many standard deviations the last is from the mean of all; None where they do not differ, or some are
    no numbers.
    """
    if not all(math.isfinite(value) for value in values):
        return None
    values = _in_range(values)
    deviation = pstdev(values) if len(values) > 1 else 0.0
    if deviation <= 1e-12 * max(abs(value) for value in values or [0.0]):  # equal but for rounding
        return None
    return (values[-1] - fmean(values)) / deviation


def _in_range(values: Sequence[float]) -> list[float]:
    great = any(abs(value) > _GREAT for value in values)
    return [value * _SMALLER for value in values] if great else list(values)
