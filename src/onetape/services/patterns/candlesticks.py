"""The candlestick set of TA-Lib: its 61 functions, where TA-Lib is installed (the extra `patterns`).

TA-Lib keeps running sums, so its answers can depend, in the last bit, on where its input begins. Prices are given to it
as whole multiples of 1e-8: their sums are exact, so the answer for a bar depends on the bars before it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from onetape.services.patterns.bars import BarArrays, Codes
from onetape.services.patterns.detectors import NEUTRAL

#: Their order is for ever: a detection carries a number that counts from it.
NAMES = (
    "2CROWS",
    "3BLACKCROWS",
    "3INSIDE",
    "3LINESTRIKE",
    "3OUTSIDE",
    "3STARSINSOUTH",
    "3WHITESOLDIERS",
    "ABANDONEDBABY",
    "ADVANCEBLOCK",
    "BELTHOLD",
    "BREAKAWAY",
    "CLOSINGMARUBOZU",
    "CONCEALBABYSWALL",
    "COUNTERATTACK",
    "DARKCLOUDCOVER",
    "DOJI",
    "DOJISTAR",
    "DRAGONFLYDOJI",
    "ENGULFING",
    "EVENINGDOJISTAR",
    "EVENINGSTAR",
    "GAPSIDESIDEWHITE",
    "GRAVESTONEDOJI",
    "HAMMER",
    "HANGINGMAN",
    "HARAMI",
    "HARAMICROSS",
    "HIGHWAVE",
    "HIKKAKE",
    "HIKKAKEMOD",
    "HOMINGPIGEON",
    "IDENTICAL3CROWS",
    "INNECK",
    "INVERTEDHAMMER",
    "KICKING",
    "KICKINGBYLENGTH",
    "LADDERBOTTOM",
    "LONGLEGGEDDOJI",
    "LONGLINE",
    "MARUBOZU",
    "MATCHINGLOW",
    "MATHOLD",
    "MORNINGDOJISTAR",
    "MORNINGSTAR",
    "ONNECK",
    "PIERCING",
    "RICKSHAWMAN",
    "RISEFALL3METHODS",
    "SEPARATINGLINES",
    "SHOOTINGSTAR",
    "SHORTLINE",
    "SPINNINGTOP",
    "STALLEDPATTERN",
    "STICKSANDWICH",
    "TAKURI",
    "TASUKIGAP",
    "THRUSTING",
    "TRISTAR",
    "UNIQUE3RIVER",
    "UPSIDEGAP2CROWS",
    "XSIDEGAP3METHODS",
)

#: TA-Lib answers +100 for these whatever they mean: they say that the market hesitates, not where it goes.
UNDIRECTED = frozenset({"DOJI", "DRAGONFLYDOJI", "GRAVESTONEDOJI", "LONGLEGGEDDOJI", "RICKSHAWMAN"})

_GRID = 1e8


@cache
def library() -> Any:
    """Return TA-Lib's module, or None where it is not installed."""
    try:
        import talib
    except ImportError:
        return None
    return talib


def detector(name: str) -> Callable[[BarArrays], Codes]:
    """Return the detector of a candlestick pattern by its name in NAMES."""

    def detect(bars: BarArrays) -> Codes:
        talib = library()
        if talib is None or not len(bars):
            return np.zeros(len(bars), dtype=np.int8)
        found = getattr(talib, f"CDL{name}")(*on_grid(bars))
        signs = np.sign(found).astype(np.int8)
        return np.where(signs != 0, NEUTRAL, 0).astype(np.int8) if name in UNDIRECTED else signs

    detect.__doc__ = f"TA-Lib's CDL{name}."
    return detect


def on_grid(bars: BarArrays) -> tuple[np.ndarray, ...]:
    """Return open, high, low and close as whole multiples of 1e-8."""
    return tuple(np.rint(column * _GRID) for column in (bars.open, bars.high, bars.low, bars.close))
