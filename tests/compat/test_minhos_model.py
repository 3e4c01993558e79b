"""minhos.models.market.MarketData: fields, defaults, conversions, and times that come back identical."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minhos.models.market import MarketData, ns_to_seconds, seconds_to_ns
from onetape import InvalidRecord, Tick

T = 1_700_000_000.25


def test_fields_are_the_documented_ones_in_order() -> None:
    names = [field.name for field in dataclasses.fields(MarketData)]
    assert " ".join(names) == (
        "symbol timestamp close open high low bid ask bid_size ask_size last_size volume vwap trades source"
    )


def test_open_high_and_low_default_to_close_and_source_to_unknown() -> None:
    data = MarketData("ESZ6", T, 6012.25)
    assert (data.open, data.high, data.low, data.source) == (6012.25, 6012.25, 6012.25, "unknown")
    assert data.bid is data.ask is data.volume is data.vwap is data.trades is data.last_size is None


def test_given_open_high_and_low_stay() -> None:
    data = MarketData("ESZ6", T, 5.0, open=4.0, high=6.0, low=3.0, source="feed")
    assert (data.open, data.high, data.low, data.source) == (4.0, 6.0, 3.0, "feed")


def test_price_spread_and_midpoint() -> None:
    data = MarketData("ESZ6", T, 6012.25, bid=6012.0, ask=6012.5)
    assert (data.price, data.spread, data.midpoint) == (6012.25, 0.5, 6012.25)
    one_sided = MarketData("ESZ6", T, 6012.25, bid=6012.0)
    assert one_sided.spread is None
    assert one_sided.midpoint is None


def test_a_zero_bid_is_a_bid() -> None:
    assert MarketData("SPREAD", T, 0.0, bid=0.0, ask=0.5).spread == 0.5


def test_to_dict_leaves_none_out_and_from_dict_takes_it_back() -> None:
    data = MarketData("ESZ6", T, 6012.25, bid=6012.0, volume=0, trades=7)
    written = data.to_dict()
    assert written == {
        "symbol": "ESZ6",
        "timestamp": T,
        "close": 6012.25,
        "open": 6012.25,
        "high": 6012.25,
        "low": 6012.25,
        "bid": 6012.0,
        "volume": 0,
        "trades": 7,
        "source": "unknown",
    }
    assert MarketData.from_dict(json.loads(json.dumps(written))) == data


def test_from_dict_takes_price_for_close_and_leaves_unknown_keys_out() -> None:
    data = MarketData.from_dict({"symbol": "NQZ6", "timestamp": T, "price": 21.5, "exchange": "CME"})
    assert (data.symbol, data.close, data.timestamp) == ("NQZ6", 21.5, T)
    assert MarketData.from_dict({"symbol": "A", "timestamp": T, "price": 1.0, "close": 2.0}).close == 2.0


def test_from_dict_without_a_price_makes_no_price_up() -> None:
    assert MarketData.from_dict({"symbol": "NQZ6", "timestamp": T}).close is None


@pytest.mark.parametrize("text", ["2023-11-14T22:13:20.250Z", "2023-11-14T22:13:20.250+00:00", str(T)])
def test_from_dict_takes_times_as_text(text: str) -> None:
    assert MarketData.from_dict({"symbol": "A", "timestamp": text, "close": 1.0}).timestamp == T


@pytest.mark.parametrize(
    "message",
    [
        {"symbol": "ESZ6", "timestamp": T, "price": 5.5, "bid": 5.25, "ask": 5.75, "bid_size": 3, "volume": 1200},
        {"Symbol": "ESZ6", "DateTime": "2023-11-14T22:13:20.25Z", "Last": "5.5", "Bid": "5.25", "Ask": "5.75",
         "BidSize": "3", "Volume": "1,200"},
        {"SYMBOL": "ESZ6", "ts": T, "LastTradePrice": 5.5, "BidPrice": 5.25, "AskPrice": 5.75, "BidQuantity": 3,
         "SessionVolume": 1200},
    ],
)  # fmt: skip
def test_sierra_messages_in_their_spellings(message: dict[str, object]) -> None:
    data = MarketData.from_sierra_data(message)
    assert data == MarketData("ESZ6", T, 5.5, bid=5.25, ask=5.75, bid_size=3, volume=1200, source="sierra_chart")


def test_a_sierra_message_keeps_its_event_time() -> None:
    sent = MarketData.from_sierra_data({"symbol": "ESZ6", "timestamp": datetime(2020, 1, 2, tzinfo=UTC), "price": 1})
    assert sent.timestamp == datetime(2020, 1, 2, tzinfo=UTC).timestamp()


def test_a_sierra_number_that_is_none_is_named() -> None:
    with pytest.raises(InvalidRecord, match="bid = 'n/a'"):
        MarketData.from_sierra_data({"symbol": "ESZ6", "price": 1, "bid": "n/a"})


# Times: from 2**23 s on (1970-04-08) floats lie further apart than a nanosecond.


@given(st.floats(min_value=2.0**23, max_value=9.2e9, allow_nan=False))
def test_any_float_time_comes_back_identical(seconds: float) -> None:
    assert ns_to_seconds(seconds_to_ns(seconds)) == seconds


@given(st.integers(min_value=10**16, max_value=9 * 10**18).map(lambda us: us // 1000 * 1000))
def test_a_time_in_whole_microseconds_is_whole_microseconds_on_the_tape(ns: int) -> None:
    if ns < 2**32 * 10**9:  # up to 2106 floats lie less than a microsecond apart
        assert seconds_to_ns(ns / 10**9) == ns


def test_times_are_what_python_prints() -> None:
    assert seconds_to_ns(1700000000.123456) == 1_700_000_000_123_456_000
    assert seconds_to_ns(1700000000) == 1_700_000_000_000_000_000
    assert seconds_to_ns(0.1) == 100_000_000


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, None, "1700000000", True])
def test_a_time_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidRecord, match="timestamp"):
        seconds_to_ns(wrong)  # type: ignore[arg-type]


# The mapping onto ticks


def test_close_is_the_price_and_last_size_the_size() -> None:
    data = MarketData(
        "NFO:NIFTY", T, 5.5, 5.0, 6.0, 4.0, 5.25, 5.75, 3, 4, last_size=2, volume=900, vwap=5.4, trades=77, source="x"
    )
    tick = data.to_tick()
    assert tick.ts_event_ns == 1_700_000_000_250_000_000
    assert (tick.price, tick.size, tick.bid, tick.ask, tick.bid_size, tick.ask_size) == (5.5, 2, 5.25, 5.75, 3, 4)
    assert (tick.open, tick.high, tick.low, tick.volume, tick.vwap, tick.trades) == (5.0, 6.0, 4.0, 900, 5.4, 77)
    assert tick.source == "x"
    assert MarketData.from_tick(tick) == data


def test_unknown_is_no_source_on_the_tape() -> None:
    assert MarketData("A", T, 1.0).to_tick().source is None
    assert MarketData.from_tick(Tick("A", 10**18, price=1.0)).source == "unknown"


def test_whole_sizes_come_back_as_integers_and_fractions_as_they_are() -> None:
    back = MarketData.from_tick(MarketData("A", T, 1.0, volume=1500, last_size=0.5).to_tick())
    assert json.dumps(back.volume) == "1500"
    assert back.last_size == 0.5


def test_a_quote_without_a_trade_has_no_made_up_close() -> None:
    data = MarketData.from_tick(Tick("A", 10**18, bid=1.0, ask=2.0))
    assert (data.close, data.midpoint) == (None, 1.5)


@pytest.mark.parametrize(("field", "value"), [("volume", 2**63 + 1), ("bid", "12"), ("trades", 1.5), ("close", True)])
def test_what_a_tape_cannot_hold_is_named(field: str, value: object) -> None:
    data = MarketData("A", T, 1.0)
    setattr(data, field, value)
    with pytest.raises(InvalidRecord, match=field):
        data.to_tick()
