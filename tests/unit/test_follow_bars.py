"""Following bars: forming, complete, revised, taken back; across processes' tapes, restarts and threads."""

import asyncio
import math
import threading
import time

import pytest

import onetape
from onetape import Tick
from onetape.record import MINUTE_NS

T0 = 1_700_000_040_000_000_000 // MINUTE_NS * MINUTE_NS


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        yield opened


def trade(minute, price=10.0, symbol="A", seconds=0):
    return Tick(symbol, T0 + minute * MINUTE_NS + seconds * 10**9, price=price, size=1.0)


def short(bars):
    return [((bar.ts_start_ns - T0) // MINUTE_NS, bar.trades, bar.complete, bar.revision) for bar in bars]


def test_a_bar_is_given_as_it_forms_when_it_is_complete_and_when_a_late_trade_revises_it(tape):
    with tape.follow_bars("A") as follower:
        assert follower.take() == []
        tape.append(trade(0))
        assert short(follower.take()) == [(0, 1, False, 0)]
        tape.append([trade(0, seconds=1), trade(0, seconds=2)])
        assert short(follower.take()) == [(0, 3, False, 0)]  # two trades, one change
        tape.append(trade(1))
        assert short(follower.take()) == [(0, 3, True, 0), (1, 1, False, 0)]
        tape.append(trade(0, seconds=30))
        assert short(follower.take()) == [(0, 4, True, 1)]
        tape.seal()
        assert follower.take() == []
        tape.append(Tick("A", T0 + 2, bid=1.0, ask=2.0))
        tape.append(trade(0, symbol="B"))
        assert follower.take() == []


def test_corrections_revise_and_a_bar_without_trades_left_is_taken_back(tape):
    tape.append([trade(0), trade(0, 12.0, seconds=1), trade(1)])
    first, second, _ = tape.recent("A", 3)
    with tape.follow_bars("A", from_seq=0) as follower:
        assert short(follower.take()) == [(0, 2, True, 0), (1, 1, False, 0)]
        tape.revise(second, trade(0, 11.0, seconds=1))
        (bar,) = follower.take()
        assert (bar.high, bar.revision) == (11.0, 2)  # one is gone, and the other came late
        tape.cancel(first)
        tape.cancel(tape.recent("A", 3)[0])
        (bar,) = follower.take()
        assert (bar.ts_start_ns, bar.trades, bar.volume) == (T0, 0, None)
        assert bar.revision > 2
        assert math.isnan(bar.open)
        assert short(tape.bar_list("A")) == [(1, 1, False, 0)]


def test_who_goes_on_where_another_was_gets_the_end_of_the_bar_that_was_forming(tape):
    with tape.follow_bars("A", "30s", from_seq=0) as follower:
        tape.append([trade(0)])
        assert short(follower.take()) == [(0, 1, False, 0)]
        position = follower.position
    tape.append(trade(1))
    with tape.follow_bars("A", "30s", from_seq=position) as follower:
        assert short(follower.take()) == [(0, 1, True, 0), (1, 1, False, 0)]


def test_counted_bars_have_a_number_and_a_late_trade_revises_all_behind_it(tape):
    with tape.follow_bars("A", "2tick", session=None) as follower:
        tape.append([trade(i, float(i)) for i in range(1, 6)])
        assert [(bar.number, bar.open, bar.close, bar.complete) for bar in follower.take()] == [
            (0, 1.0, 2.0, True),
            (1, 3.0, 4.0, True),
            (2, 5.0, 5.0, False),
        ]
        tape.append(trade(2, 9.0, seconds=1))
        assert [(bar.number, bar.open, bar.close, bar.revision) for bar in follower.take()] == [
            (1, 9.0, 3.0, 1),
            (2, 4.0, 5.0, 1),
        ]
        tape.append(trade(6, 6.0))
        (bar,) = follower.take()
        assert (bar.number, bar.trades, bar.complete, bar.ts_end_ns) == (3, 1, False, T0 + 6 * MINUTE_NS)
        tape.cancel(tape.recent("A", 1)[0])
        assert (3, 0) in [(bar.number, bar.trades) for bar in follower.take()]
        assert [bar.number for bar in tape.bar_list("A", "2tick")] == [0, 1, 2]


def test_with_a_grace_a_quiet_bar_ends_by_the_clock(tape):
    minute = time.time_ns() // MINUTE_NS * MINUTE_NS
    with tape.follow_bars("A", "1min", grace_s=0.2) as follower:
        tape.append(Tick("A", minute - MINUTE_NS, price=1.0))
        assert [bar.complete for bar in follower.take()] == [True]
    assert tape.bar_list("A")[0].complete is False
    now = [minute + 1]
    with tape.follow_bars("A", "1min", grace_s=2) as follower:
        follower._clock = lambda: now[0]
        tape.append(Tick("A", minute, price=1.0))
        assert [bar.complete for bar in follower.take()] == [True, False]  # the one before, by the tape itself
        now[0] = minute + MINUTE_NS + 1_999_999_999
        assert follower.take() == []
        now[0] += 1
        assert [bar.complete for bar in follower.take()] == [True]
        assert follower.take() == []
        tape.append(Tick("A", minute + MINUTE_NS, price=1.0))
        assert [bar.ts_start_ns for bar in follower.take()] == [minute + MINUTE_NS]  # nothing new of the first


def test_an_iteration_wakes_for_what_another_handle_appends_and_ends_when_closed(tape):
    seen = []
    follower = tape.follow_bars(["A", "B"])
    thread = threading.Thread(target=lambda: seen.extend(follower))
    thread.start()
    with onetape.open(tape.path) as other:
        other.append([trade(0), trade(0, symbol="B"), trade(0, symbol="C")])
    deadline = time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    follower.close()
    thread.join(60)
    assert not thread.is_alive()
    assert [bar.symbol for bar in seen] == ["A", "B"]


def test_from_a_time_on_only_bars_of_that_time_are_given(tape):
    tape.append([trade(i) for i in range(4)])
    with tape.follow_bars("A", from_time=T0 + 2 * MINUTE_NS, idle_s=0) as follower:
        assert [number for number, *_ in short(follower)] == [2, 3]


def test_the_asynchronous_twin_gives_the_same(tape):
    tape.append([trade(i) for i in range(3)])

    async def collect():
        return [bar async for bar in tape.afollow_bars("A", from_seq=0, idle_s=0.05)]

    assert asyncio.run(collect()) == tape.bar_list("A")


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval": "0s"},
        {"session": "nowhere"},
        {"price": "last"},
        {"interval": "5volume", "price": "bid"},
        {"from_seq": -1},
        {"from_seq": 1, "from_time": 1},
        {"grace_s": -1},
        {"grace_s": math.nan},
    ],
)
def test_what_cannot_be_followed_is_refused_at_once(tape, wrong):
    with pytest.raises(onetape.ConfigInvalid):
        tape.follow_bars("A", **wrong)


def test_when_ticks_are_gone_minutes_stay_and_a_session_cut_by_it_is_left_out(tmp_path):
    day = 86_400_000_000_000
    start = (time.time_ns() // day - 1) * day  # yesterday, today, tomorrow: what is to come stays
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        tape.append([Tick("A", start + i * day // 4, price=float(i), size=1.0) for i in range(12)])
        tape.seal()
        tape.prune(now=time.time_ns() + day, retention_days=1)
        left = tape.read("A").num_rows
        assert left < 12
        assert sum(bar.trades for bar in tape.bar_list("A", "1h")) == 12
        first = start + (12 - left) * day // 4
        assert [bar.ts_start_ns for bar in tape.bar_list("A", "90s")][:1] == [first]
        assert all(bar.trades == 4 for bar in tape.bar_list("A", "4tick"))
