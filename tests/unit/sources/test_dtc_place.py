"""Where history and live trades meet: no trade twice, none left out, wherever the connection broke."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetape import ConfigInvalid, Tick
from onetape.sources.dtc.place import Place, decode, encode, met, unseen

_NS = 1_000_000_000


def _trades(seconds: list[int]) -> list[Tick]:
    """Trades told apart by their size, so that only the number in the second can confuse them by price."""
    return [Tick("S", second * _NS, price=100.0, size=float(index)) for index, second in enumerate(seconds)]


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=30).map(sorted),
    st.data(),
)
def test_known_trades_history_and_live_trades_make_the_whole_once(seconds: list[int], data: st.DataObject) -> None:
    whole = _trades(seconds)
    first = data.draw(st.integers(0, len(whole) - 1), "the connection before began here")
    known = data.draw(st.integers(first + 1, len(whole)), "and broke here")
    again = data.draw(st.integers(known, len(whole)), "the next one begins here")
    told_to = data.draw(st.integers(known, len(whole)), "history tells up to here")

    place = Place(seconds[first], whole=False)
    for tick in whole[first:known]:
        place.advance(tick, whole=tick.ts_event_ns // _NS > seconds[first])
    place = decode(encode({"S": place}))["S"]

    asked = [tick for tick in whole[:told_to] if tick.ts_event_ns // _NS >= place.second]
    of_second = [tick for tick in asked if tick.ts_event_ns // _NS == place.second]
    new = asked[place.known_of(of_second) :]
    last = asked[-1].ts_event_ns // _NS
    told = [tick for tick in asked if tick.ts_event_ns // _NS == last]

    live = whole[again:]
    first_second = live[0].ts_event_ns // _NS if live else 0
    if live and told_to <= again:
        assert not met(live, last, told, first_second)  # it is asked again, then what is between is said to be missing
        return
    if told_to < again:
        return  # nothing came live yet
    assert not live or met(live, last, told, first_second)
    joined = unseen(live, last, told, first_second)
    assert whole[first:known] + new + joined == whole[first:]


def test_equal_trades_of_one_second_are_told_apart_by_their_number() -> None:
    same = [Tick("S", 5 * _NS, price=1.0, size=1.0) for _ in range(4)]
    place = Place(5)
    for tick in same[:3]:
        place.advance(tick, whole=True)
    assert place.known_of(same) == 3
    assert unseen(same, 5, same[:3], first_second=4) == same[3:]


def test_a_late_trade_moves_no_place() -> None:
    place = Place(5, 2)
    place.advance(Tick("S", 4 * _NS, price=1.0), whole=True)
    assert (place.second, place.count) == (5, 2)


@pytest.mark.parametrize("cursor", ["", "7", "[]", '{"S":"x"}', '{"S":[1,2,3,4]}'])
def test_a_foreign_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(ConfigInvalid):
        decode(cursor)
