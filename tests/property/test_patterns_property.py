from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onetape.services.patterns import registry
from onetape.services.patterns.bars import BarArrays
from onetape.services.patterns.detectors import LOOKBACK


def market(seed: int, count: int, grid: float, base: float) -> BarArrays:
    """A random walk with calm and wild stretches, gaps, equal prices, and missing volumes."""
    dice = np.random.default_rng(seed)
    wild = np.repeat(dice.choice([1, 1, 2, 8], count // 20 + 1), 20)[:count]
    close = base + np.cumsum(dice.integers(-3, 4, count) * wild) * grid
    open_ = np.r_[close[0], close[:-1]] + np.where(dice.random(count) < 0.1, dice.integers(-9, 10, count), 0) * grid
    high = np.maximum(open_, close) + dice.integers(0, 4, count) * wild * grid
    low = np.minimum(open_, close) - dice.integers(0, 4, count) * wild * grid
    volume = np.where(dice.random(count) < 0.02, np.nan, np.round(dice.lognormal(3, 1, count)))
    return BarArrays(np.arange(count, dtype=np.int64) * 60_000_000_000, open_, high, low, close, volume)


markets = st.builds(
    market,
    st.integers(0, 2**32 - 1),
    st.integers(350, 900),
    st.sampled_from([0.01, 0.05, 0.1, 1 / 3, 1e-6, 1000.0]),
    st.sampled_from([0.0, 100.0, 64_321.7, -40.0]),
)


def found(bars: BarArrays, first: int = 0, moved: int = 0) -> list[tuple[int, int, int, float, float]]:
    return [
        (one.place + moved, one.detector.number, one.direction, one.price, one.atr)
        for one in registry.detect(bars, first=first)
    ]


@settings(max_examples=25)
@given(markets, st.data())
def test_what_is_found_on_a_prefix_is_what_the_whole_shows_there(bars: BarArrays, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(bars)))
    assert found(bars.cut(0, end)) == [one for one in found(bars) if one[0] < end]


@settings(max_examples=25)
@given(markets, st.data())
def test_what_is_found_bar_by_bar_is_what_the_whole_shows(bars: BarArrays, data: st.DataObject) -> None:
    whole = found(bars)
    place = data.draw(st.integers(LOOKBACK, len(bars) - 1))
    for last in range(place, min(place + 5, len(bars))):
        begin = last - LOOKBACK
        assert found(bars.cut(begin, last + 1), LOOKBACK, begin) == [one for one in whole if one[0] == last]


@settings(max_examples=10)
@given(markets)
def test_every_detection_can_be_measured_and_is_found_again(bars: BarArrays) -> None:
    whole = found(bars)
    assert whole == found(bars)
    assert len({(place, number) for place, number, *_ in whole}) == len(whole)
    for _, _, direction, price, atr in whole:
        assert direction in (-1, 0, 1) and np.isfinite(price) and atr > 0
