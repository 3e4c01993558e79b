"""Bars in every shape in which legacy systems keep them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onetape.migrate.fields.bar_fields import BarDecoder, bar_identity, interval_of
from onetape.record import Bar, interval_ns

DAY_NS = 86_400 * 10**9
NOON_MS = 1_731_478_200_000  # 2024-11-13 11:40 in Kolkata
MIDNIGHT_UTC_NS = 1_731_456_000 * 10**9
OHLC = {"open": "1", "high": "3", "low": "0.5", "close": "2"}


def bars(value: Any, interval: str | None = None, start_ns: int | None = None, now_ns: int = 2**62) -> list[Any]:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return list(BarDecoder("Asia/Kolkata", now_ns).bars(raw, "NSE:INFY", interval, start_ns, "redis:ohlc"))


def bar(value: Any, **options: Any) -> Bar:
    found = bars(value, **options)
    assert len(found) == 1
    assert isinstance(found[0], Bar), found[0]
    return found[0]


def reason(value: Any, **options: Any) -> str:
    found = bars(value, **options)
    assert len(found) == 1
    assert isinstance(found[0], str)
    return found[0]


def test_a_bar_without_an_interval_is_the_day_of_its_own_zone() -> None:
    found = bar({**OHLC, "volume": 70, "timestamp": NOON_MS})
    assert found == Bar("NSE:INFY", "1d", MIDNIGHT_UTC_NS, 1, 3, 0.5, 2, volume=70, source="redis:ohlc")
    late = "2024-11-13 00:10:00"  # in Kolkata; still the 12th in UTC
    assert bar({**OHLC, "date": late}).ts_start_ns == MIDNIGHT_UTC_NS
    assert bar({**OHLC, "date": "2024-11-13"}).ts_start_ns == MIDNIGHT_UTC_NS


def test_a_bar_is_complete_when_its_interval_is_over() -> None:
    assert bar({**OHLC, "timestamp": NOON_MS}, now_ns=MIDNIGHT_UTC_NS + DAY_NS).complete
    assert not bar({**OHLC, "timestamp": NOON_MS}, now_ns=MIDNIGHT_UTC_NS + DAY_NS - 1).complete


def test_interval_and_start_come_from_the_fields_before_the_key() -> None:
    found = bar({**OHLC, "interval": "5m", "start": NOON_MS}, interval="1h", start_ns=7)
    assert (found.interval, found.ts_start_ns) == ("5min", NOON_MS * 10**6)
    found = bar(OHLC, interval="1min", start_ns=NOON_MS * 10**6)
    assert (found.interval, found.ts_start_ns) == ("1min", NOON_MS * 10**6)


def test_last_price_closes_the_bar_where_ohlc_is_nested() -> None:
    value = {"ohlc": {"open": 1, "high": 3, "low": 0.5, "close": 99}, "last_price": 2, "timestamp": NOON_MS}
    assert bar(value).close == 2


@pytest.mark.parametrize("shape", [lambda c: c, lambda c: {"candles": c}, lambda c: {"data": {"candles": c}}])
def test_candles_of_a_broker_are_read(sample_data: Path, shape: Any) -> None:
    text = (sample_data / "kite" / "pykiteconnect2018_historical_minute.json").read_text()
    found = bars(shape(json.loads(text)["data"]["candles"]), interval="1min")
    assert [(b.ts_start_ns, b.open, b.close, b.volume) for b in found] == [
        (1_513_309_500 * 10**9, 1704.5, 1702.8, 2499),
        (1_513_309_560 * 10**9, 1702, 1698.15, 1271),
    ]


def test_one_bad_bar_of_a_list_does_not_take_the_others_with_it() -> None:
    found = bars([{**OHLC, "t": NOON_MS}, {"open": 1}, {**OHLC, "t": NOON_MS + DAY_NS // 10**6}])
    assert [type(one) for one in found] == [Bar, str, Bar]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"\xff", "JSON"),
        ("text", "JSON"),
        (7, "int"),
        ([[1, 2]], "candle"),
        ({**OHLC, "close": None, "timestamp": NOON_MS}, "close"),
        ({**OHLC, "close": "x", "timestamp": NOON_MS}, "number"),
        ({**OHLC, "high": 1, "timestamp": NOON_MS}, "order"),
        ({**OHLC, "high": "inf", "timestamp": NOON_MS}, "finite"),
        ({**OHLC, "volume": -1, "timestamp": NOON_MS}, "volume"),
        (OHLC, "time"),
        ({**OHLC, "timestamp": "soon"}, "time"),
        ({**OHLC, "interval": "1month", "timestamp": NOON_MS}, "interval"),
        ({**OHLC, "interval": "1h", "timestamp": NOON_MS}, "grid"),
        ({"mean": 3, "count": 4}, "open"),
    ],
)
def test_what_is_no_bar_is_told(value: Any, why: str) -> None:
    assert why in reason(value)


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("INFY", ("INFY", None, None)),
        ("NFO:NIFTY25NOVFUT", ("NFO:NIFTY25NOVFUT", None, None)),
        ("NSE:INFY:5min", ("NSE:INFY", "5min", None)),
        ("NSE:INFY:day", ("NSE:INFY", "1d", None)),
        (f"NSE:INFY:1m:{NOON_MS}", ("NSE:INFY", "1min", NOON_MS * 10**6)),
        (f"INFY:{NOON_MS}", ("INFY", None, NOON_MS * 10**6)),
        ("day", ("day", None, None)),
    ],
)
def test_a_key_names_symbol_interval_and_start(rest: str, expected: tuple[Any, ...]) -> None:
    assert BarDecoder("UTC").key(rest) == expected


@pytest.mark.parametrize(
    ("word", "interval"),
    [
        *(("1m", "1min"), ("minute", "1min"), ("60minute", "60min"), ("1H", "1h"), ("day", "1d"), ("D", "1d")),
        *(("30s", "30s"), ("1M", None), ("week", None), ("0m", None), ("RELIANCE", None), ("", None)),
    ],
)
def test_intervals_by_many_names(word: str, interval: str | None) -> None:
    assert interval_of(word) == interval
    if interval:
        assert interval_ns(interval) > 0


def test_the_identity_of_a_bar_is_its_key_and_values() -> None:
    one = bar({**OHLC, "timestamp": NOON_MS})
    assert bar_identity(b"a", one) == bar_identity(b"a", bar({**OHLC, "timestamp": NOON_MS}))
    assert bar_identity(b"a", one) != bar_identity(b"b", one)
    assert bar_identity(b"a", one) != bar_identity(b"a", bar({**OHLC, "close": 1, "timestamp": NOON_MS}))


@pytest.mark.parametrize("trades", [1e19, 2**63, -1, "inf"])
def test_a_count_of_trades_that_no_tape_holds_is_refused_by_name(trades: Any) -> None:
    assert "trades" in reason({**OHLC, "trades": trades, "timestamp": NOON_MS})
