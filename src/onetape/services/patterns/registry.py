"""The registry: every detector under a number that never changes, and all of them at once over bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from onetape.errors import ConfigInvalid
from onetape.services.patterns import candlesticks, detectors, levels
from onetape.services.patterns.bars import BarArrays, Codes
from onetape.services.patterns.detectors import NEUTRAL


class Detector(NamedTuple):
    """A detector: its number on the tape, its name, its group, and what it does."""

    number: int
    name: str
    group: str
    detect: Callable[[BarArrays], Codes]


class Found(NamedTuple):
    """What was detected: the bar's place, the detector, +1 up, -1 down or 0 without a direction; price and ATR."""

    place: int
    detector: Detector
    direction: int
    price: float
    atr: float


_OWN = (
    Detector(1, "breakout", "breakout", detectors.breakout),
    Detector(2, "volume_spike", "volume", detectors.volume_spike),
    Detector(3, "volatility_expansion", "volatility", detectors.volatility_expansion),
    Detector(4, "volatility_contraction", "volatility", detectors.volatility_contraction),
    Detector(5, "trend", "trend", detectors.trend),
    Detector(6, "moving_average_cross", "trend", detectors.moving_average_cross),
    Detector(7, "support", "levels", levels.support),
    Detector(8, "resistance", "levels", levels.resistance),
)
_CANDLES = tuple(
    Detector(101 + place, f"CDL{name}", "candlestick", candlesticks.detector(name))
    for place, name in enumerate(candlesticks.NAMES)
)

#: Number → detector. Numbers are on tapes: one that is no longer made is not given to another.
DETECTORS = {detector.number: detector for detector in _OWN + _CANDLES}
GROUPS = tuple(dict.fromkeys(detector.group for detector in DETECTORS.values()))


def chosen(names: Iterable[str] | None = None) -> list[Detector]:
    """Return the detectors of these names or groups (None: all) that can run here. Raises ConfigInvalid."""
    wanted = None if names is None else set(names)
    known = {detector.name for detector in DETECTORS.values()} | set(GROUPS)
    if wanted is not None and (strange := sorted(wanted - known)):
        raise ConfigInvalid(
            f"there is no detector {strange[0]!r}", hint=f"name detectors, or groups of them: {', '.join(GROUPS)}"
        )
    return [
        detector
        for detector in DETECTORS.values()
        if (wanted is None or detector.name in wanted or detector.group in wanted)
        and (detector.group != "candlestick" or candlesticks.library() is not None)
    ]


def missing() -> list[str]:
    """Return the names of the detectors that cannot run here: those of TA-Lib, where it is not installed."""
    return [] if candlesticks.library() is not None else [detector.name for detector in _CANDLES]


def detect(bars: BarArrays, which: Iterable[Detector] | None = None, first: int = 0) -> list[Found]:
    """Return what is found on the bars from index `first` on, by bar, then by number.

    What is found on a bar depends on it and the LOOKBACK - 1 bars before it alone. Nothing is found where the ATR is
    not known yet (the first 14 bars), zero or beyond a float's range: there is no measure of a move.
    """
    if len(bars) <= first:
        return []
    with np.errstate(all="ignore"):
        atr = detectors.atr(bars)
        measured = (atr > 0) & np.isfinite(atr)
        rows: list[tuple[int, int, Found]] = []
        for detector in chosen() if which is None else which:
            codes = detector.detect(bars)
            for place in (np.flatnonzero((codes[first:] != 0) & measured[first:]) + first).tolist():
                direction = 0 if codes[place] == NEUTRAL else int(codes[place])
                found = Found(place, detector, direction, float(bars.close[place]), float(atr[place]))
                rows.append((place, detector.number, found))
    rows.sort(key=lambda row: row[:2])
    return [found for _, _, found in rows]
