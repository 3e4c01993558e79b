"""Rolling figures, each a function of its window's values alone.

There are no running sums: a window is added up term by term, oldest first, for all bars at once. So a figure has the
same bits wherever the array begins, and what is computed live on the last bars equals what is computed on history.
Where there are too few bars a figure is NaN.
"""

from __future__ import annotations

import numpy as np

from onetape.services.patterns.bars import BarArrays, Floats


def lagged(x: Floats, by: int) -> Floats:
    """Return x of `by` bars before."""
    found = np.full(x.size, np.nan)
    if by < x.size:
        found[by:] = x[: x.size - by]
    return found


def highest(x: Floats, count: int) -> Floats:
    """Return the greatest of the last `count` values, this one included."""
    return _folded(x, count, np.maximum)


def lowest(x: Floats, count: int) -> Floats:
    """Return the least of the last `count` values, this one included."""
    return _folded(x, count, np.minimum)


def mean(x: Floats, count: int) -> Floats:
    """Return the mean of the last `count` values, this one included."""
    return _folded(x, count, np.add) / count


def _folded(x: Floats, count: int, fold: np.ufunc) -> Floats:
    found = np.full(x.size, np.nan)
    size = x.size - count + 1
    if size > 0:
        part = x[:size].copy()
        for k in range(1, count):
            fold(part, x[k : k + size], out=part)
        found[count - 1 :] = part
    return found


def true_range(bars: BarArrays) -> Floats:
    """Return max(high, previous close) - min(low, previous close) (Wilder 1978); NaN for the first bar."""
    before = lagged(bars.close, 1)
    return np.maximum(bars.high, before) - np.minimum(bars.low, before)


def average_true_range(bars: BarArrays, count: int) -> Floats:
    """Return the plain mean of the last `count` true ranges. (Wilder's own smoothing never forgets; this one does.)"""
    return mean(true_range(bars), count)


def median_and_spread(x: Floats, at: np.ndarray, count: int) -> tuple[Floats, Floats, Floats]:
    """Return, for each index in `at`, of the `count` values before it: median, median and mean absolute deviation."""
    medians, deviations, means = (np.full(at.size, np.nan) for _ in range(3))
    offsets = np.arange(-count, 0)
    for begin in range(0, at.size, 4096):  # some 2 MB at a time
        part = slice(begin, begin + 4096)
        window = x[at[part, None] + offsets]
        medians[part] = _median(window)
        apart = np.abs(window - medians[part, None])
        deviations[part] = _median(apart)
        total = apart[:, 0].copy()
        for k in range(1, count):
            total += apart[:, k]
        means[part] = total / count
    return medians, deviations, means


def _median(rows: np.ndarray) -> Floats:
    half = rows.shape[1] // 2
    ordered = np.sort(rows, axis=1)
    return ordered[:, half] if rows.shape[1] % 2 else (ordered[:, half - 1] + ordered[:, half]) / 2
