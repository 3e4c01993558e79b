"""Sums of ticks are exact and of one value in any order; whatever differs in one tick changes them."""

from __future__ import annotations

import random
from datetime import datetime
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onetape.clock import to_ns
from onetape.migrate.proving import exact
from onetape.migrate.proving.day_sums import COLUMNS, DaySums, Sums
from onetape.migrate.proving.plain_reading import PlainReading

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
T = 1_700_000_000_000_000_000


def columns(ticks: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: [tick.get(name) for tick in ticks] for name in ("ts_event_ns", *COLUMNS)}


def summed(ticks: list[dict[str, Any]], zone: str = "UTC", until_ns: int | None = None) -> dict[Any, Sums]:
    adding = DaySums(zone, until_ns)
    adding.add([tick["symbol"] for tick in ticks], columns(ticks))
    return adding.found()


@given(st.lists(st.tuples(FLOATS, st.integers(0, 3)), max_size=50))
def test_a_sum_is_the_one_that_fractions_give(pairs: list[tuple[float, int]]) -> None:
    values = np.array([value for value, _group in pairs], np.float64)
    groups = np.array([group for _value, group in pairs], np.int64)
    found = exact.sums(values, groups)
    for group in set(groups.tolist()):
        wanted = sum((Fraction(value) for value, of in pairs if of == group), Fraction(0))
        assert Fraction(found[group], exact.UNIT) == wanted


def test_the_least_and_the_greatest_floats_are_added_exactly() -> None:
    values = np.array([5e-324, 1.7976931348623157e308, -1.7976931348623157e308])
    assert exact.sums(values, np.zeros(3, np.int64)) == {0: exact.units(5e-324)}
    twice = exact.units(1.7976931348623157e308) * 2
    assert exact.number(twice) == str(twice // exact.UNIT)  # no float holds it, and JSON gets it all the same
    assert exact.number(exact.units(0.1) * 3) == 0.30000000000000004
    assert exact.number(exact.units(7.0)) == 7


TICKS = st.lists(
    st.fixed_dictionaries(
        {
            "symbol": st.sampled_from(["A", "B"]),
            "ts_event_ns": st.integers(T, T + 3 * 86_400 * 10**9),
            "price": st.none() | st.floats(-10, 10),
            "size": st.none() | st.floats(0, 10),
            "bid": st.none() | st.just(1.5),
        }
    ),
    min_size=1,
    max_size=40,
)


@given(TICKS, st.randoms(use_true_random=False))
def test_sums_are_the_same_in_any_order_and_in_any_parts(ticks: list[dict[str, Any]], chance: random.Random) -> None:
    shuffled = list(ticks)
    chance.shuffle(shuffled)
    adding = DaySums("Asia/Kolkata")
    for tick in shuffled:
        adding.add(tick["symbol"], columns([tick]))
        if chance.random() < 0.3:
            adding.found()
    whole, parts = summed(ticks, "Asia/Kolkata"), adding.found()
    assert whole.keys() == parts.keys()
    for key, sums in whole.items():
        assert [getattr(sums, name) for name in Sums.__slots__] == [
            getattr(parts[key], name) for name in Sums.__slots__
        ]


@given(TICKS, st.data())
def test_one_changed_value_changes_the_check(ticks: list[dict[str, Any]], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(ticks) - 1))
    name = data.draw(st.sampled_from(["price", "size", "bid", "ask", "ts_event_ns", "open_interest"]))
    other = dict(ticks[at])
    other[name] = T + 1_000_000 if name == "ts_event_ns" else 99.25
    before, after = summed(ticks), summed([*ticks[:at], other, *ticks[at + 1 :]])
    unchanged = ticks[at].get(name) == other[name]
    if name == "ts_event_ns":
        unchanged = ticks[at][name] // 1_000_000 == other[name] // 1_000_000
    checks = [sorted((key, sums.check) for key, sums in found.items()) for found in (before, after)]
    assert (checks[0] == checks[1]) == unchanged


def test_a_day_is_that_of_the_zone_and_its_bits_are_minutes_of_its_clock() -> None:
    late = to_ns(datetime(2025, 11, 21, 23, 59, 30, tzinfo=ZoneInfo("Asia/Kolkata")))
    ticks = [{"symbol": "A", "ts_event_ns": late + s * 10**9, "price": 1.0} for s in (0, 29, 30)]
    found = summed(ticks, "Asia/Kolkata")
    assert [(sums.ticks, sums.minutes) for _key, sums in sorted(found.items())] == [(2, 1 << 1439), (1, 1)]
    assert len(summed(ticks, "UTC")) == 1
    # New York's clocks go back at 06:00 UTC on 2025-11-02: the day has 25 hours, its clock 24.
    ticks = [{"symbol": "A", "ts_event_ns": to_ns(f"2025-11-02T{hour:02d}:30Z"), "price": 1.0} for hour in range(4, 24)]
    assert {sums.ticks for sums in summed(ticks, "America/New_York").values()} == {20}


def test_first_and_last_prices_are_those_of_trades_and_all_of_one_moment_count() -> None:
    ticks = [
        {"symbol": "A", "ts_event_ns": T, "bid": 5.0},
        {"symbol": "A", "ts_event_ns": T + 1_000_000, "price": 3.0, "size": 1.0},
        {"symbol": "A", "ts_event_ns": T + 1_999_999, "price": 2.0, "size": 0.1},
        {"symbol": "A", "ts_event_ns": T + 9_000_000, "price": 7.0, "size": 0.2},
    ]
    (sums,) = summed(ticks).values()
    ms = T // 1_000_000
    assert (sums.first_ms, sums.opened, sums.closed) == (ms, (ms + 1, 2.0, 3.0), (ms + 9, 7.0, 7.0))
    assert (sums.ticks, sums.trades, sums.high, sums.low) == (4, 3, 7.0, 2.0)
    assert Fraction(sums.volume, exact.UNIT) == Fraction(1.0) + Fraction(0.1) + Fraction(0.2)


def test_ticks_from_a_time_on_are_left_out() -> None:
    ticks = [{"symbol": "A", "ts_event_ns": T + i, "price": 1.0} for i in range(10)]
    assert [sums.ticks for sums in summed(ticks, until_ns=T + 4).values()] == [4]
    assert summed(ticks, until_ns=T) == {}


def flat(**fields: Any) -> list[bytes]:
    return [str(one).encode() for pair in fields.items() for one in pair]


def test_the_plain_reading_adds_up_what_it_is_sure_of() -> None:
    reading = PlainReading()
    totals = reading.totals(
        [
            flat(lastPrice="100.10", last_traded_quantity="3", ts=1_700_000_000_123),
            [b"data", b'{"ltp": 0.2, "qty": 1, "timestamp": 1700000001}'],
            flat(bid=1, ask=2, ts=1_700_000_000_000_000),
            flat(price="", bid=1, ts=1_700_000_000_000_000_000),
        ]
    )
    assert totals is not None
    assert (totals.ticks, totals.sizes) == (4, exact.units(4.0))
    assert totals.prices == exact.units(100.10) + exact.units(0.2)
    assert totals.ms == 1_700_000_000_123 + 1_700_000_001_000 + 2 * 1_700_000_000_000


def test_the_plain_reading_says_nothing_where_it_is_not_sure() -> None:
    for entry in (
        flat(price=1, ltp=2),
        flat(price=1, size=1, qty=2),
        flat(price="1_000"),
        flat(price="nan"),
        flat(price="1e999"),
        flat(price=1, depth="{}"),
        flat(note="x", other="y"),
        [b"data", b"[1]"],
        [b"data", b"{" * 100_000],
    ):
        assert PlainReading().totals([flat(price=1), entry]) is None, entry
