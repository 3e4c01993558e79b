"""Detectors of breakouts, volume, volatility and trend: pure functions of bars.

Each returns one code a bar: UP, DOWN, NEUTRAL (found, without a direction) or NONE. A code says something of the bars
up to its own alone, at most LOOKBACK of them. Where a state is detected (a breakout, a trend), its first bar is told.
"""

from __future__ import annotations

import numpy as np

from onetape.services.patterns import rolling
from onetape.services.patterns.bars import BarArrays, Codes, Floats

UP, DOWN, NEUTRAL, NONE = 1, -1, 2, 0

#: No detector looks further back than this many bars, its own included.
LOOKBACK = 300

ATR_BARS = 14  # Wilder's choice
CHANNEL_BARS = 20  # Donchian's four weeks
BREAKOUT_ATR = 0.1  # a close beyond the channel by less is noise at the edge
VOLUME_BARS = 50
VOLUME_Z = 5.0
VOLUME_MEANS = 2.0
FAST_ATR_BARS, SLOW_ATR_BARS = 5, 50
EXPANSION, CONTRACTION = 2.0, 0.5
TREND_BARS = 30
TREND_T = 10.0  # not 2: closes are autocorrelated, and a random walk has |t| > 2 most of the time
FAST_MEAN_BARS, SLOW_MEAN_BARS = 10, 30


def atr(bars: BarArrays) -> Floats:
    """Return the mean true range of the last ATR_BARS bars; NaN for the first ATR_BARS."""
    return rolling.average_true_range(bars, ATR_BARS)


def breakout(bars: BarArrays) -> Codes:
    """A close beyond the channel of the 20 bars before (Donchian) by at least 0.1 ATR as of the bar before.

    UP: close > max(high[-20..-1]) + 0.1 ATR[-1], and the bar before was no such. DOWN likewise, mirrored.
    """
    margin = BREAKOUT_ATR * rolling.lagged(atr(bars), 1)
    above = bars.close > rolling.lagged(rolling.highest(bars.high, CHANNEL_BARS), 1) + margin
    below = bars.close < rolling.lagged(rolling.lowest(bars.low, CHANNEL_BARS), 1) - margin
    return _codes(_begins(above), _begins(below))


def volume_spike(bars: BarArrays) -> Codes:
    """A volume far out of the 50 before it: modified z-score above 5 (Iglewicz and Hoaglin 1993), and twice their mean.

    z = (volume - median) / (1.4826 MAD); where more than half are equal (MAD 0), / (1.2533 mean absolute deviation).
    The direction is the bar's own: close against open. Bars whose volume is not known have no spike.
    """
    volume = bars.volume
    before = rolling.lagged(rolling.mean(volume, VOLUME_BARS), 1)
    at = np.flatnonzero((volume > 0) & (volume >= VOLUME_MEANS * before))
    middle, deviation, mean_deviation = rolling.median_and_spread(volume, at, VOLUME_BARS)
    scale = np.where(deviation > 0, 1.4826 * deviation, 1.2533 * mean_deviation)
    spikes = np.zeros(len(bars), dtype=bool)
    spikes[at] = (scale > 0) & (volume[at] - middle > VOLUME_Z * scale)
    return _directed(spikes, bars.close - bars.open)


def volatility_expansion(bars: BarArrays) -> Codes:
    """The mean true range of 5 bars grows beyond twice that of the 50 bars before them; first bar of such.

    The direction is that of the close over those 5 bars.
    """
    fast, slow = _ranges(bars)
    return _directed(_begins(fast > EXPANSION * slow), bars.close - rolling.lagged(bars.close, FAST_ATR_BARS))


def volatility_contraction(bars: BarArrays) -> Codes:
    """The mean true range of 5 bars falls under half that of the 50 bars before them; first bar of such. NEUTRAL."""
    fast, slow = _ranges(bars)
    return np.where(_begins(fast < CONTRACTION * slow), NEUTRAL, NONE).astype(np.int8)


def trend(bars: BarArrays) -> Codes:
    """A straight line through 30 closes whose slope has |t| > 10 (ordinary least squares), first bar of such.

    t^2 = (n - 2) Sxy^2 / (Sxx Syy - Sxy^2), compared without division.
    """
    count, size = TREND_BARS, len(bars) - TREND_BARS + 1
    strong = np.zeros(len(bars), dtype=bool)
    sign = np.zeros(len(bars))
    if size > 0:
        last = bars.close[count - 1 :]  # closes are taken relative to the last one: small numbers, exact sums
        middle = (count - 1) / 2
        total, cross, squares = np.zeros(size), np.zeros(size), np.zeros(size)
        for k in range(count):
            y = bars.close[k : k + size] - last
            total += y
            cross += (k - middle) * y
            squares += y * y
        sxx = count * (count * count - 1) / 12
        syy = squares - total * total / count
        strong[count - 1 :] = (count - 2) * cross * cross > TREND_T * TREND_T * np.maximum(sxx * syy - cross * cross, 0)
        sign[count - 1 :] = cross
    return _codes(_begins(strong & (sign > 0)), _begins(strong & (sign < 0)))


def moving_average_cross(bars: BarArrays) -> Codes:
    """The plain mean of 10 closes crosses that of 30: UP from at or below to above, DOWN from at or above to below."""
    apart = rolling.mean(bars.close, FAST_MEAN_BARS) - rolling.mean(bars.close, SLOW_MEAN_BARS)
    before = rolling.lagged(apart, 1)
    return _codes((apart > 0) & (before <= 0), (apart < 0) & (before >= 0))


def _ranges(bars: BarArrays) -> tuple[Floats, Floats]:
    ranges = rolling.true_range(bars)
    return rolling.mean(ranges, FAST_ATR_BARS), rolling.lagged(rolling.mean(ranges, SLOW_ATR_BARS), FAST_ATR_BARS)


def _begins(state: np.ndarray) -> np.ndarray:
    """Return where a state is and was not a bar before."""
    found = state.copy()
    found[1:] &= ~state[:-1]
    return found


def _codes(up: np.ndarray, down: np.ndarray) -> Codes:
    return (up.astype(np.int8) * UP + down.astype(np.int8) * DOWN).astype(np.int8)


def _directed(found: np.ndarray, move: Floats) -> Codes:
    codes = np.where(move > 0, UP, np.where(move < 0, DOWN, NEUTRAL))
    return np.where(found, codes, NONE).astype(np.int8)
