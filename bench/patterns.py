"""How fast patterns are detected: bars a second through every detector, and what one new bar costs."""

from __future__ import annotations

import time

import numpy as np

from bench.measure import Line, Setting, take_turns
from onetape.services.patterns import candlesticks, registry
from onetape.services.patterns.bars import BarArrays
from onetape.services.patterns.detectors import LOOKBACK
from onetape.services.patterns.registry import Detector


def measure(setting: Setting) -> list[Line]:
    """Measure detectors on bars of a random walk in memory: history whole, and the newest bar as it comes."""
    bars = _walk(setting.scaled(200_000, 2_000))
    own = [detector for detector in registry.chosen() if detector.group != "candlestick"]
    ways = {"own": lambda: _whole(bars, own), "newest": lambda: _newest(bars, setting.scaled(200, 5))}
    if candlesticks.library() is not None:
        ways["all"] = lambda: _whole(bars, registry.chosen())
    found = take_turns(ways, setting.runs)
    names = {
        "own": f"patterns on history, {len(own)} own detectors",
        "all": f"patterns on history, all {len(registry.chosen())} detectors",
        "newest": "patterns of one new bar, all detectors",
    }
    units = {"own": "bars/s", "all": "bars/s", "newest": "ms"}
    return [
        Line(names[way], units[way], float(np.median(values)), setting.runs, values=values)
        for way, values in found.items()
    ]


def _whole(bars: BarArrays, which: list[Detector]) -> float:
    begun = time.perf_counter()
    registry.detect(bars, which)
    return len(bars) / (time.perf_counter() - begun)


def _newest(bars: BarArrays, count: int) -> float:
    begun = time.perf_counter()
    for last in range(len(bars) - count, len(bars)):
        registry.detect(bars.cut(last - LOOKBACK, last + 1), first=LOOKBACK)
    return (time.perf_counter() - begun) / count * 1000


def _walk(count: int) -> BarArrays:
    dice = np.random.default_rng(1)
    close = 5000 + np.cumsum(dice.integers(-3, 4, count)) * 0.25
    open_ = np.r_[close[0], close[:-1]]
    high = np.maximum(open_, close) + dice.integers(0, 3, count) * 0.25
    low = np.minimum(open_, close) - dice.integers(0, 3, count) * 0.25
    times = np.arange(count, dtype=np.int64) * 60_000_000_000
    return BarArrays(times, open_, high, low, close, np.round(dice.lognormal(3, 1, count)) + 1)
