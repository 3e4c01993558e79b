"""What a bridge's message says, and what of it is news."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetape.sources.bridge.look import LookInvalid, Watch, read

_NS = 1_000_000_000


@pytest.mark.parametrize(
    "message",
    [
        {"symbol": "ES", "price": 5.25, "size": 2, "bid": 5, "ask": 5.5, "volume": 90, "timestamp": 1700000000.5},
        {"Symbol": "ES", "Last": "5.25", "LastSize": "2", "Bid": "5", "Ask": "5.5", "TotalVolume": "90",
         "time": "1700000000.5"},
        {"ticker": "ES", "LastTradePrice": 5.25, "last_trade_volume": 2, "bid_price": 5, "AskPrice": 5.5,
         "session_volume": 90, "DateTime": "2023-11-14T22:13:20.500Z"},
        {"type": "tick", "symbol": "ES", "data": {"close": 5.25, "trade_size": 2.0, "bid": 5, "ask": "5.5",
         "dailyVolume": 90, "ts": 1700000000500}},
    ],
)  # fmt: skip
def test_every_spelling_says_the_same(message: dict[str, object]) -> None:
    look = read(message)
    assert (look.symbol, look.price, look.size, look.bid, look.ask, look.volume) == ("ES", 5.25, 2.0, 5.0, 5.5, 90.0)
    assert look.ts_ns == 1_700_000_000_500_000_000


def test_times_are_exact_as_they_are_written() -> None:
    assert read({"price": 1, "ts": 1700000000.123456}).ts_ns == 1_700_000_000_123_456_000
    assert read({"price": 1, "ts": "1700000000.123456789"}).ts_ns == 1_700_000_000_123_456_789
    assert read({"price": 1, "ts": 1700000000123456789}).ts_ns == 1_700_000_000_123_456_789


def test_a_price_of_zero_is_a_placeholder_and_the_quote_beside_it_is_kept() -> None:
    look = read({"price": 0.0, "size": 3, "bid": 5.0, "ask": 5.5, "open": "0"})
    assert (look.price, look.size, look.bid, look.ask, look.open) == (None, None, 5.0, 5.5, None)
    assert look.placeholders == 2
    watch = Watch("ES", "b")
    tick = watch.news(look, 7, polled=False)
    assert tick is not None and (tick.price, tick.bid, tick.ts_event_ns) == (None, 5.0, 7)
    assert watch.news(read({"price": 0}), 8, polled=False) is None
    assert watch.placeholders == 3


@pytest.mark.parametrize(
    "message",
    [
        None, 7, "text", [1], {}, {"symbol": "ES"}, {"price": "dear"}, {"price": True}, {"price": [1]},
        {"price": "nan"}, {"price": "1e999"}, {"price": 1, "ts": "soon"}, {"price": 1, "ts": -5},
        {"price": 1, "ts": 10**30}, {"price": 1, "symbol": 5}, {"price": 1, "ts": True}, {"price": 1, "source": {}},
    ],
)  # fmt: skip
def test_what_says_nothing_is_refused(message: object) -> None:
    with pytest.raises(LookInvalid):
        read(message)


_ANY = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["price", "ts", "bid", "data", "trades", "side", "source"]), inner)
    ),
)


@given(_ANY)
def test_no_message_raises_anything_else(message: object) -> None:
    try:
        read(message)
    except LookInvalid:
        pass


def _ticks(watch: Watch, *messages: dict[str, object], polled: bool) -> list[tuple[float | None, float | None]]:
    made = [watch.news(read({"bid": 4.0, **message}), 1, polled=polled) for message in messages]
    return [(tick.price, tick.bid) for tick in made if tick is not None]


def test_a_state_polled_again_is_no_new_tick_and_one_pushed_again_is() -> None:
    same = {"price": 5.0, "size": 1, "ts": 100}
    polled, pushed = Watch("ES", "b"), Watch("ES", "b")
    assert _ticks(polled, same, same, same, polled=True) == [(5.0, 4.0)]
    assert polled.repeats == 2
    assert _ticks(pushed, same, same, polled=False) == [(5.0, 4.0), (5.0, 4.0)]


@pytest.mark.parametrize("polled", [True, False])
def test_a_quote_that_moves_beside_an_old_trade_is_a_quote_alone(polled: bool) -> None:
    watch = Watch("ES", "b")
    old = {"price": 5.0, "size": 1, "volume": 10, "ts": 100}
    assert _ticks(watch, old, {**old, "bid": 4.5, "ts": 101}, polled=polled) == [(5.0, 4.0), (None, 4.5)]
    assert _ticks(watch, {**old, "bid": 4.5, "volume": 11}, polled=polled) == [(5.0, 4.5)]


def test_a_placeholder_between_does_not_make_the_last_trade_new_again() -> None:
    watch = Watch("ES", "b")
    old = {"price": 5.0, "size": 1, "volume": 10, "ts": 100}
    zero = {"price": 0, "bid": 4.5, "ts": 101}
    assert _ticks(watch, old, zero, {**old, "bid": 4.5, "ts": 102}, polled=False) == [
        (5.0, 4.0),
        (None, 4.5),
        (None, 4.5),
    ]


def test_without_a_counter_an_equal_trade_at_another_time_is_one_where_nothing_else_moved() -> None:
    watch = Watch("ES", "b")
    first = {"price": 5.0, "size": 1, "ts": 100}
    assert len(_ticks(watch, first, {**first, "ts": 101}, polled=True)) == 2


def test_volume_that_went_by_between_two_polls_is_counted() -> None:
    watch = Watch("ES", "b")
    _ticks(watch, {"price": 5.0, "size": 1, "volume": 10}, {"price": 6.0, "size": 2, "volume": 20}, polled=True)
    assert watch.unseen == 8.0


def test_the_state_that_a_new_connection_begins_with_is_not_told_again() -> None:
    watch = Watch("ES", "b")
    state = {"price": 5.0, "size": 1, "volume": 10, "ts": 100}
    assert len(_ticks(watch, state, polled=False)) == 1
    watch.reconnected()
    assert _ticks(watch, state, state, polled=False) == []  # by its own counter nothing was traded
    uncounted = Watch("ES", "b")
    said = {"price": 5.0, "size": 1, "ts": 100}
    assert len(_ticks(uncounted, said, polled=False)) == 1
    uncounted.reconnected()
    assert _ticks(uncounted, said, said, polled=False) == [(5.0, 4.0)]  # the second is an event
    restarted = Watch("ES", "b", watch.known)
    assert _ticks(restarted, state, polled=False) == []
    moved = Watch("ES", "b", watch.known)
    assert _ticks(moved, {**state, "bid": 4.5}, polled=False) == [(None, 4.5)]  # the trade was told before


def test_a_state_pushed_again_whose_counter_stands_still_is_no_trade_again() -> None:
    """Bridges that push every 100 ms, news or none: the session's volume says that nothing was traded."""
    watch = Watch("ES", "b")
    same = {"price": 5.0, "size": 1, "volume": 10, "ts": 100}
    assert _ticks(watch, same, same, same, {**same, "volume": 11}, polled=False) == [(5.0, 4.0), (5.0, 4.0)]
    assert watch.repeats == 2


@pytest.mark.parametrize(
    ("text", "price"),
    [("4,500.25", 4500.25), ("1,234,567", 1234567.0), ("12,34,567.5", 1234567.5), ("-37.63", -37.63), ("+1.5", 1.5)],
)
def test_groups_of_thousands_are_read(text: str, price: float) -> None:
    assert read({"price": text}).price == price


@pytest.mark.parametrize("text", ["4500,25", "4,50", "4.500,25", "1,2345", "1_000", "٣"])
def test_a_number_that_may_mean_another_one_is_refused(text: str) -> None:
    with pytest.raises(LookInvalid):
        read({"price": text})


def test_a_huge_number_costs_no_time() -> None:
    for value in ("-1e999999", "1e-999999", "1e999999"):
        with pytest.raises(LookInvalid):
            read({"price": 1, "ts": value})
