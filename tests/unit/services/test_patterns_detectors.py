from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onetape.errors import InvalidRecord
from onetape.record import Bar, Tick
from onetape.services.patterns import Detection, candlesticks, detectors, levels, registry
from onetape.services.patterns.bars import BarArrays, from_bars
from onetape.services.patterns.outcomes import judge

UP, DOWN, NEUTRAL = detectors.UP, detectors.DOWN, detectors.NEUTRAL


def series(closes: object, spread: object = 0.5, volume: object = 10.0) -> BarArrays:
    """Bars that open at the close before, with `spread` above and below the body."""
    close = np.asarray(closes, dtype=np.float64)
    before = np.r_[close[0], close[:-1]]
    wide = np.broadcast_to(np.asarray(spread, dtype=np.float64), close.shape)
    high, low = np.maximum(before, close) + wide, np.minimum(before, close) - wide
    volumes = np.broadcast_to(np.asarray(volume, dtype=np.float64), close.shape).copy()
    return BarArrays(np.arange(close.size) * 60_000_000_000, before, high, low, close, volumes)


def at(codes: np.ndarray) -> list[tuple[int, int]]:
    return [(int(place), int(codes[place])) for place in np.flatnonzero(codes)]


def test_a_breakout_is_told_once_and_needs_its_margin() -> None:
    closes = np.r_[np.full(40, 100.0), 100.6, 102.0, 104.0, 104.0]
    assert at(detectors.breakout(series(closes))) == [(41, UP)], "100.6 is within 0.1 ATR of the channel's 100.5"
    assert at(detectors.breakout(series(200 - closes))) == [(41, DOWN)]


def test_a_volume_spike_is_measured_against_the_median_so_that_one_spike_does_not_hide_the_next() -> None:
    volume = np.tile([9.0, 10, 11, 12], 20)
    volume[60], volume[70] = 1000, 200
    closes = np.full(80, 100.0)
    closes[60], closes[70:] = 101, 99
    assert at(detectors.volume_spike(series(closes, volume=volume))) == [(60, UP), (70, DOWN)]


def test_where_most_volumes_are_equal_the_mean_deviation_stands_in_and_unknown_ones_never_spike() -> None:
    volume = np.full(80, 10.0)
    volume[55], volume[70] = 12, 100
    assert at(detectors.volume_spike(series(np.full(80, 100.0), volume=volume))) == [(70, NEUTRAL)]
    volume[60] = np.nan
    assert at(detectors.volume_spike(series(np.full(80, 100.0), volume=volume))) == []
    assert at(detectors.volume_spike(series(np.full(80, 100.0), volume=np.full(80, 10.0)))) == []


def test_volatility_grows_and_shrinks() -> None:
    wide = np.r_[np.full(70, 1.0), np.full(20, 5.0)]
    assert at(detectors.volatility_expansion(series(np.full(90, 100.0), wide))) == [(71, NEUTRAL)]
    narrow = np.r_[np.full(70, 1.0), np.full(20, 0.1)]
    assert at(detectors.volatility_contraction(series(np.full(90, 100.0), narrow))) == [(72, NEUTRAL)]


def test_a_straight_climb_is_a_trend_and_noise_is_none() -> None:
    closes = np.r_[np.full(40, 100.0), 100 + np.arange(1, 60) * 0.5]
    ((first, code),) = at(detectors.trend(series(closes)))
    assert code == UP and 45 < first < 75
    x = np.arange(detectors.TREND_BARS)
    slope, base = np.polyfit(x, closes[first - 29 : first + 1], 1)
    rest = closes[first - 29 : first + 1] - slope * x - base
    t = slope / np.sqrt((rest @ rest) / 28 / ((x - x.mean()) @ (x - x.mean())))
    assert t > detectors.TREND_T, "as ordinary least squares has it"
    flat = 100 + np.where(np.arange(100) % 2, 0.3, -0.3)
    assert at(detectors.trend(series(flat))) == []
    assert at(detectors.trend(series(np.full(60, 100.0)))) == []


def test_means_cross_once_where_the_market_turns() -> None:
    closes = np.r_[np.linspace(130, 100, 50), np.linspace(100, 130, 50)]
    ((place, code),) = at(detectors.moving_average_cross(series(closes)))
    assert code == UP and 55 < place < 70


def test_support_is_where_the_market_turned_three_times_and_turns_again() -> None:
    swing = np.r_[np.linspace(110, 100.5, 10), np.linspace(100.5, 110, 10)[1:-1]]
    bars = series(np.tile(swing, 5))
    found = at(levels.support(bars))
    assert found and all(code == UP for _, code in found)
    assert found[0][0] > 3 * 18, "not before the fourth time"
    assert [(place, DOWN) for place, _ in found] == at(levels.resistance(series(np.tile(200 - swing, 5))))


def test_nothing_is_found_where_nothing_moves_or_there_is_little() -> None:
    flat = BarArrays(np.arange(400), *(np.full(400, 5.0) for _ in range(5)))
    assert registry.detect(flat) == []
    for count in range(20):
        assert registry.detect(flat.cut(0, count)) == []


def test_prices_below_zero_are_prices() -> None:
    dice = np.random.default_rng(3)
    closes = np.cumsum(dice.integers(-4, 5, 600)) * 0.25
    closes -= closes.max() + 50
    assert {found.detector.group for found in registry.detect(series(closes))} >= {"breakout", "levels", "trend"}


def test_candlesticks_are_those_of_ta_lib() -> None:
    talib = pytest.importorskip("talib")
    assert sorted(f"CDL{name}" for name in candlesticks.NAMES) == sorted(
        talib.get_function_groups()["Pattern Recognition"]
    )
    dice = np.random.default_rng(4)
    bars = series(100 + np.cumsum(dice.integers(-8, 9, 5000)) * 0.25, dice.integers(0, 5, 5000) * 0.25)
    for name in candlesticks.NAMES:
        theirs = getattr(talib, f"CDL{name}")(bars.open, bars.high, bars.low, bars.close)
        ours = candlesticks.detector(name)(bars)
        assert ((ours != 0) == (theirs != 0)).all(), name
        if name not in candlesticks.UNDIRECTED:
            assert (ours == np.sign(theirs)).all(), name


def test_a_known_engulfing_and_a_hammer_are_found() -> None:
    pytest.importorskip("talib")
    falling = series(np.linspace(120, 100, 40), 0.1)
    bars = BarArrays(
        np.arange(41) * 60_000_000_000,
        np.r_[falling.open, 99.8],
        np.r_[falling.high, 101.5],
        np.r_[falling.low, 99.7],
        np.r_[falling.close, 101.4],
        np.full(41, 1.0),
    )
    assert (40, "CDLENGULFING", 1) in [(f.place, f.detector.name, f.direction) for f in registry.detect(bars)]


def test_without_ta_lib_the_others_work_and_it_is_said_which_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candlesticks, "library", lambda: None)
    assert len(registry.missing()) == 61
    assert {detector.group for detector in registry.chosen()} == set(registry.GROUPS) - {"candlestick"}
    assert registry.detect(series(np.r_[np.full(40, 100.0), 105.0]))[0].detector.name == "breakout"


def test_real_minute_bars_show_patterns_whose_numbers_can_be_checked_by_hand(sample_data: Path) -> None:
    rows = json.loads((sample_data / "kite" / "pykiteconnect2018_historical_minute.json").read_text())["data"][
        "candles"
    ]
    bars = from_bars(
        [Bar("NSE", "1min", n * 60_000_000_000, *map(float, row[1:5]), float(row[5])) for n, row in enumerate(rows)]
    )
    found = registry.detect(bars)
    assert found == registry.detect(bars)
    for one in found:
        assert one.price == bars.close[one.place]
        if one.detector.name == "breakout" and one.direction == 1:
            assert one.price > max(bars.high[one.place - 20 : one.place])
        if one.detector.name == "volume_spike":
            assert bars.volume[one.place] > 2 * np.median(bars.volume[one.place - 50 : one.place])


def judged(direction: int, *after: tuple[float, float], price: float = 100.0, atr: float = 2.0) -> int:
    """Judge a detection on the first of bars, of which (high, low) of the others are given; the rest stay put."""
    spans = [(price, price), *after, *[(price, price)] * (10 - len(after))]
    high, low = (np.array([span[side] for span in spans]) for side in (0, 1))
    bars = BarArrays(np.arange(len(spans)), high, high, low, low, low)
    one = np.array
    return int(judge(bars, one([0]), one([direction]), one([price]), one([atr]))[0])


def test_an_outcome_is_which_of_two_prices_is_touched_first() -> None:
    assert judged(1, (102, 100)) == 1
    assert judged(1, (101.9, 98.1)) == 0, "no move of 1 ATR in the horizon"
    assert judged(1, (100, 98), (105, 100)) == 0
    assert judged(1, (102, 100), (100, 90)) == 1
    assert judged(1, (102, 98)) == 0, "both in one bar counts against"
    assert judged(-1, (100, 98)) == 1
    assert judged(0, (100, 95.5)) == 1 and judged(0, (104.5, 100)) == 1 and judged(0, (104, 96)) == 0


def test_an_outcome_waits_for_its_horizon() -> None:
    bars = series(np.full(10, 100.0))
    assert judge(bars, np.array([0]), np.array([1]), np.array([100.0]), np.array([0.1]))[0] == -1


def test_a_detection_comes_back_from_its_record() -> None:
    detection = Detection("NFO:NIFTY25NOVFUT", "5min", 1_700_000_000_000_000_000, 7, "support", 1, -3.5, 0.25, 0.625, 5)
    assert Detection.from_tick(detection.to_tick()) == detection
    assert detection.to_tick().price is None
    assert len({detection.identity(), detection.identity(1)}) == 2
    with pytest.raises(InvalidRecord, match="trades"):
        Detection.from_tick(Tick("patterns:ES", 1, bid=1.0, bid_size=0.5))
    with pytest.raises(InvalidRecord, match="symbol"):
        Detection.from_tick(Tick("ES", 1, bid=1.0, bid_size=0.5, trades=60_000))
