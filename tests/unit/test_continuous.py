"""Continuous futures: when they roll, what is read over a roll, and that nothing later is ever looked at."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

import onetape
from onetape import Bar, ConfigInvalid, DaysBefore, GapUnknown, NameTaken, OnDates, Roll, Tape, Tick
from onetape.store import continuous, rolls
from onetape.tape.contract_days import Volumes

S = 1_000_000_000
MINUTE = 60 * S
HOUR = 60 * MINUTE


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Tape]:
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        yield opened


def _ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * S


def _tick(symbol: str, at: str, price: float, size: float = 1.0, **more: float) -> Tick:
    return Tick(symbol, _ns(at), price=price, size=size, **more)  # type: ignore[arg-type]


#: A and B both trade from the 1st to the 6th at noon; B is dearer by 10, and the larger from the 3rd on.
def _two(tape: Tape) -> None:
    for n in range(1, 7):
        tape.append(
            [
                _tick("A", f"2025-12-0{n}T12:00:00", 100.0 + n, 50.0),
                _tick("B", f"2025-12-0{n}T12:00:10", 110.0 + n, 10.0 if n < 3 else 60.0),
                _tick("A", f"2025-12-0{n}T18:00:00", 100.5 + n, 1.0),
            ]
        )


CHAIN = [("A", "2025-12-19"), ("B", "2026-03-20")]


def _seen(table: object) -> list[tuple[str, float]]:
    return list(zip(table["symbol"].to_pylist(), table["price"].to_pylist(), strict=True))  # type: ignore[index]


def test_volume_rolls_on_the_day_after_the_next_contract_traded_more(tape: Tape) -> None:
    _two(tape)
    view = tape.define_continuous("C", CHAIN, "volume")
    (roll,) = tape.rolls("C")
    assert (roll.old, roll.new, roll.ts_ns) == ("A", "B", _ns("2025-12-04"))
    assert (roll.gap, roll.old_price, roll.new_price) == (10.0, 103.0, 113.0)
    assert roll.priced_ns == _ns("2025-12-03T12:00:00") and "60 > 51 on 2025-12-03" in roll.why
    expected = [
        ("A", 101.0), ("A", 101.5), ("A", 102.0), ("A", 102.5), ("A", 103.0), ("A", 103.5),
        ("B", 114.0), ("B", 115.0), ("B", 116.0),
    ]  # fmt: skip
    assert _seen(view.read()) == expected
    assert _seen(tape.read("C")) == expected
    assert view.front("2025-12-03T23:59:59") == "A" and view.front("2025-12-04") == "B" == view.front()


def test_back_adjusted_prices_are_shifted_and_ratios_multiplied_sizes_are_not(tape: Tape) -> None:
    _two(tape)
    tape.append(Tick("A", _ns("2025-12-02T13:00:00"), bid=99.0, ask=99.5, bid_size=7.0, vwap=98.0, volume=5.0))
    view = tape.define_continuous("C", CHAIN, "volume")
    back = view.read(adjust="back")
    assert back["price"].to_pylist()[:2] == [111.0, 111.5] and back["price"].to_pylist()[-1] == 116.0
    quote = back.to_pylist()[3]
    assert (quote["bid"], quote["ask"], quote["vwap"]) == (109.0, 109.5, 108.0)
    assert (quote["price"], quote["bid_size"], quote["volume"]) == (None, 7.0, 5.0)
    ratio = view.read(adjust="ratio", columns=["price"])["price"].to_pylist()
    assert ratio[0] == 101.0 * (113.0 / 103.0) and ratio[-1] == 116.0
    with pytest.raises(ConfigInvalid, match="adjust"):
        view.read(adjust="forward")  # type: ignore[arg-type]


def test_a_span_that_ends_before_a_roll_is_not_changed_by_it(tape: Tape) -> None:
    _two(tape)
    view = tape.define_continuous("C", CHAIN, "volume")
    before = view.read("2025-12-01", "2025-12-04", adjust="back")
    assert before.equals(view.read("2025-12-01", "2025-12-04"))
    assert _seen(view.read("2025-12-05", "2025-12-06", adjust="back")) == [("B", 115.0)]


@pytest.mark.parametrize("rule", ["volume", "open_interest"])
def test_what_is_read_up_to_a_time_is_what_was_read_at_that_time(tmp_path: Path, rule: str) -> None:
    ticks = []
    for n in range(1, 13):
        at = f"2025-12-{n:02}"
        for symbol, size in (("A", 100 - 9 * n), ("B", 10 * n if n < 8 else 30), ("D", 8 * n)):
            ticks.append(_tick(symbol, f"{at}T1{n % 3}:00:00", 100.0 + n, max(size, 1), open_interest=max(size, 1)))
    ticks.sort(key=lambda tick: tick.ts_event_ns)
    chain = [("A", "2025-12-10"), ("B", "2025-12-20"), ("D", "2026-01-20")]
    with onetape.open(tmp_path / "live.db", retention_days=None) as live:
        view = live.define_continuous("C", chain, rule)
        told = []
        for n, tick in enumerate(ticks):
            live.append(tick)
            told.append((tick.ts_event_ns, view.rolls(end=tick.ts_event_ns + 1), view.read(adjust="back").num_rows))
            if n == len(ticks) // 2:
                live.seal()
        assert len(told[-1][1]) == 2
        for at, then, rows in told:
            assert view.rolls(end=at + 1) == then, "a later record changed an earlier roll"
            same_time = sum(tick.ts_event_ns == at for tick in ticks)
            assert view.read(end=at + 1).num_rows - rows in range(same_time)


def test_a_follower_gets_the_roll_between_the_last_of_the_old_and_the_first_of_the_new(tape: Tape) -> None:
    _two(tape)
    view = tape.define_continuous("C", CHAIN, "volume")
    with view.follow(from_seq=0) as follower:
        found = follower.take(1)
    kinds = [record.new if isinstance(record, Roll) else record.symbol for record in found]
    assert kinds == ["A"] * 6 + ["B"] + ["B"] * 3
    roll = found[6]
    assert isinstance(roll, Roll) and (roll.symbol, roll.old, roll.new, roll.gap) == ("C", "A", "B", 10.0)
    assert roll.ts_ns == _ns("2025-12-04") and found[5].ts_event_ns < roll.ts_ns <= found[7].ts_event_ns
    assert [r for r in found if not isinstance(r, Roll)] == [Tick(**row) for row in view.read().to_pylist()]


def test_live_and_history_roll_alike_also_when_late_data_would_decide_otherwise(tmp_path: Path) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

    def at(days: int, hour: int) -> int:
        return int((today + timedelta(days=days, hours=hour)).timestamp()) * S

    chain = [("A", (today + timedelta(days=30)).date()), ("B", (today + timedelta(days=120)).date())]
    with onetape.open(tmp_path / "t.db") as tape, onetape.open(tmp_path / "t.db") as other:
        view = tape.define_continuous("C", chain, "volume")
        with tape.follow("C") as follower:
            tape.append([Tick("A", at(-2, 9), price=1.0, size=5.0), Tick("B", at(-2, 9), price=2.0, size=9.0)])
            assert [r.symbol for r in follower.take(1)] == ["A"]
            tape.append(Tick("B", at(-1, 9), price=2.5, size=1.0))
            roll, first = follower.take(1)
            assert isinstance(roll, Roll) and roll.ts_ns == at(-1, 0) and first.price == 2.5
            tape.append(Tick("A", at(-2, 10), price=1.5, size=50.0))  # late: A traded more after all
            (late,) = follower.take(1)
            assert (late.symbol, late.price) == ("A", 1.5)  # of the time when A was the front
            tape.append(Tick("A", at(-1, 10), price=1.6, size=50.0))  # of the old contract, after the roll
            tape.append(Tick("B", at(0, 9), price=2.6, size=1.0))
            assert [(r.symbol, r.price) for r in follower.take(1)] == [("B", 2.6)]
        expected = [("A", 1.0), ("A", 1.5), ("B", 2.5), ("B", 2.6)]
        assert _seen(view.read()) == expected and _seen(other.read("C")) == expected
        assert [r.ts_ns for r in other.rolls("C")] == [at(-1, 0)]
        with other.follow("C", from_seq=0) as again:
            assert [r.new for r in again.take(1) if isinstance(r, Roll)] == ["B"]


def test_two_followers_are_told_of_one_roll(tmp_path: Path) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

    def at(days: int, hour: int) -> int:
        return int((today + timedelta(days=days, hours=hour)).timestamp()) * S

    chain = [("A", (today + timedelta(days=30)).date()), ("B", (today + timedelta(days=120)).date())]
    with onetape.open(tmp_path / "t.db") as one, onetape.open(tmp_path / "t.db") as two:
        one.define_continuous("C", chain, "volume")
        with one.follow("C") as first, two.follow("C") as second:
            one.append([Tick("A", at(-2, 9), price=1.0, size=5.0), Tick("B", at(-2, 9), price=2.0, size=9.0)])
            one.append(Tick("B", at(-1, 9), price=2.5, size=1.0))
            while len(mine := [r for r in first.take(1) if isinstance(r, Roll)]) == 0:
                pass
            one.append(Tick("A", at(-2, 10), price=1.5, size=50.0))
            theirs: list[Roll] = []
            while not theirs:
                theirs = [r for r in second.take(1) if isinstance(r, Roll)]
            assert [r.ts_ns for r in mine] == [r.ts_ns for r in theirs] == [at(-1, 0)]


def test_a_follower_that_goes_on_later_gets_a_roll_it_has_not_had_and_none_twice(tape: Tape) -> None:
    _two(tape)
    view = tape.define_continuous("C", CHAIN, "volume")
    whole = []
    with view.follow(from_seq=0) as follower:
        whole = follower.take(1)
    for cut in range(1, 19):
        with view.follow(from_seq=cut) as follower:
            found = follower.take(0.05)
        seen = [r for r in whole if not isinstance(r, Roll) and (r.seq or 0) <= cut]
        rows = [*tape.read("A").to_pylist(), *tape.read("B").to_pylist()]
        at_roll = any(row["seq"] <= cut and row["ts_event_ns"] >= _ns("2025-12-04") for row in rows)
        assert found == whole[len(seen) + at_roll :], cut
    with view.follow(from_time="2025-12-04") as follower:
        assert [type(r).__name__ for r in follower.take(1)] == ["Tick"] * 3
    with view.follow(from_time="2025-12-03T13:00:00") as follower:
        assert [type(r).__name__ for r in follower.take(1)] == ["Tick", "Roll", "Tick", "Tick", "Tick"]
    with view.follow() as follower:
        tape.append(_tick("B", "2025-12-08T12:00:00", 1.0))
        assert [type(r).__name__ for r in follower.take(1)] == ["Tick"]


def test_a_subscriber_gets_rolls_too(tape: Tape) -> None:
    import threading

    _two(tape)
    tape.define_continuous("C", CHAIN, "volume")
    got: list[object] = []
    done = threading.Event()

    def callback(record: object) -> None:
        got.append(record)
        if len(got) == 10:
            done.set()

    subscription = tape.subscribe(callback, "C", "block", from_seq=0)
    assert done.wait(60)
    subscription.close()
    assert [type(record).__name__ for record in got] == ["Tick"] * 6 + ["Roll"] + ["Tick"] * 3


def test_bars_are_the_contracts_own_and_adjusted_alike(tape: Tape) -> None:
    _two(tape)
    view = tape.define_continuous("C", CHAIN, "volume")
    for interval in ("1min", "1h", "1d"):
        raw = view.bar_list(interval)
        a, b = (tape.bar_list(symbol, interval) for symbol in "AB")
        cut = _ns("2025-12-04")
        assert raw == [bar for bar in a if bar.ts_start_ns < cut] + [bar for bar in b if bar.ts_start_ns >= cut]
        assert tape.bar_list("C", interval) == raw
        rows = view.bars(interval, adjust="back").to_pylist()
        told = zip(rows, view.bar_list(interval, adjust="back"), strict=True)
        assert all({name: getattr(bar, name) for name in row} == row for row, bar in told)
    adjusted = view.bar_list("1d", adjust="back")
    assert [(bar.open, bar.high, bar.low, bar.close) for bar in adjusted][2:4] == [
        (113.0, 113.5, 113.0, 113.5),
        (114.0, 114.0, 114.0, 114.0),
    ]
    assert [bar.volume for bar in adjusted] == [51.0, 51.0, 51.0, 60.0, 60.0, 60.0]
    assert view.bars("1d", adjust="ratio").num_rows == 6


def test_a_bar_in_which_a_roll_falls_is_made_of_both_contracts(tape: Tape) -> None:
    for minute in range(0, 180, 30):
        at = datetime(2025, 12, 3, 22, tzinfo=UTC) + timedelta(minutes=minute)
        for symbol, price in (("A", 100.0), ("B", 110.0)):
            tape.append(Tick(symbol, int(at.timestamp()) * S, price=price + minute / 30, size=1.0 + minute / 30))
    view = tape.define_continuous("C", CHAIN, ["2025-12-04"], timezone="America/Chicago", day_start="17:30")
    (roll,) = view.rolls()
    assert roll.ts_ns == _ns("2025-12-03T23:30:00") and roll.gap == 10.0
    raw = view.bar_list("1h", adjust="back")
    assert [(bar.symbol, bar.open, bar.close, bar.volume) for bar in raw] == [
        ("A", 110.0, 111.0, 3.0),
        ("B", 112.0, 113.0, 7.0),
        ("B", 114.0, 115.0, 11.0),
    ]
    assert raw[1].trades == 2 and raw[1].vwap == (112.0 * 3 + 113.0 * 4) / 7
    day = view.bar_list("1d")
    assert [(bar.open, bar.close, bar.volume, bar.symbol) for bar in day] == [
        (100.0, 113.0, 10.0, "B"),
        (114.0, 115.0, 11.0, "B"),
    ]


def test_days_before_expiry_are_calendar_or_business_days_with_holidays() -> None:
    chain = [("A", "2025-12-29"), ("B", "2026-03-20")]  # a Monday
    for roll, holidays, expected in (
        ("0d", (), date(2025, 12, 29)),
        ("5d", (), date(2025, 12, 24)),
        ("1d", (), date(2025, 12, 28)),  # a Sunday: from its start on, so with Monday's first tick
        ("1bd", (), date(2025, 12, 26)),
        (DaysBefore(2, business=True), (), date(2025, 12, 25)),
        ("2bd", ("2025-12-25", "2025-12-26"), date(2025, 12, 23)),
    ):
        definition = continuous.define("C", chain, roll, holidays=holidays)
        assert rolls.dates(definition) == [expected]
        assert rolls.fixed(definition).switches[0].ts_ns == _ns(str(expected))


def test_a_roll_on_a_weekend_begins_with_the_next_session(tape: Tape) -> None:
    tape.define_continuous("C", CHAIN, ["2025-12-06"])  # a Saturday
    tape.append([_tick("A", "2025-12-05T20:00:00", 1.0), _tick("B", "2025-12-05T20:00:30", 2.0)])
    tape.append([_tick("A", "2025-12-08T09:00:00", 3.0), _tick("B", "2025-12-08T09:00:01", 4.0)])
    with tape.follow("C", from_seq=0) as follower:
        found = follower.take(1)
    assert [getattr(r, "price", "roll") for r in found] == [1.0, "roll", 4.0]


def test_trading_days_begin_on_the_evening_before_and_keep_to_the_wall_clock() -> None:
    definition = continuous.define("C", CHAIN, "volume", timezone="America/Chicago", day_start="17:00")
    assert rolls.day_start_ns(definition, date(2025, 12, 5)) == _ns("2025-12-04T23:00:00")
    assert rolls.day_start_ns(definition, date(2025, 7, 7)) == _ns("2025-07-06T22:00:00")
    for text, expected in (
        ("2025-12-04T22:59:59", date(2025, 12, 4)),
        ("2025-12-04T23:00:00", date(2025, 12, 5)),
        ("2025-03-09T21:59:59", date(2025, 3, 9)),  # clocks went forward that night
        ("2025-03-09T22:00:00", date(2025, 3, 10)),
        ("2025-11-02T22:59:59", date(2025, 11, 2)),  # and back
        ("2025-11-02T23:00:00", date(2025, 11, 3)),
    ):
        assert rolls.trading_day(definition, _ns(text)) == expected, text
    morning = continuous.define("C", CHAIN, "volume", timezone="Asia/Kolkata", day_start="09:15")
    assert rolls.trading_day(morning, _ns("2025-12-04T03:44:59")) == date(2025, 12, 3)
    assert rolls.trading_day(morning, _ns("2025-12-04T03:45:00")) == date(2025, 12, 4)


def test_open_interest_rolls_by_the_last_value_of_a_day_and_carries_it_over_quiet_ones(tape: Tape) -> None:
    tape.append(
        [
            _tick("A", "2025-12-01T10:00:00", 1.0, open_interest=100.0),
            _tick("B", "2025-12-01T10:00:00", 2.0, open_interest=120.0),
            _tick("A", "2025-12-01T18:00:00", 1.0, open_interest=130.0),
            _tick("B", "2025-12-03T10:00:00", 2.0, open_interest=131.0),
            _tick("B", "2025-12-05T10:00:00", 2.0),
        ]
    )
    tape.define_continuous("C", CHAIN, "open_interest")
    (roll,) = tape.rolls("C")
    assert roll.ts_ns == _ns("2025-12-04") and "131 > 130" in roll.why


def test_it_never_rolls_back(tape: Tape) -> None:
    for n, (a, b) in enumerate([(5, 1), (1, 5), (9, 1), (9, 1)], 1):
        tape.append([_tick("A", f"2025-12-0{n}T12:00:00", 1.0, a), _tick("B", f"2025-12-0{n}T12:00:00", 2.0, b)])
    tape.define_continuous("C", CHAIN, "volume")
    assert [(r.old, r.new) for r in tape.rolls("C")] == [("A", "B")]


def test_a_contract_that_expires_gives_way_whatever_its_volume(tape: Tape) -> None:
    for n in range(17, 23):
        tape.append([_tick("A", f"2025-12-{n}T12:00:00", 1.0, 9.0), _tick("B", f"2025-12-{n}T12:00:00", 2.0, 1.0)])
    tape.define_continuous("C", CHAIN, "volume")
    (roll,) = tape.rolls("C")
    assert roll.ts_ns == _ns("2025-12-20") and roll.why == "expired on 2025-12-19"


def test_a_contract_without_data_is_passed_over(tape: Tape) -> None:
    _two(tape)
    chain = [("A", "2025-12-19"), ("X", "2026-01-16"), ("B", "2026-03-20")]
    tape.define_continuous("C", chain, "volume")
    assert [(r.old, r.new) for r in tape.rolls("C")] == [("A", "B")]
    view = tape.define_continuous("D", chain, ["2025-12-03", "2025-12-05"])
    assert [s for s, _ in _seen(view.read())] == ["A"] * 4 + ["B"] * 2  # X is the front on the 3rd and 4th
    assert [roll.gap for roll in view.rolls()] == [None, None]


def test_contracts_that_expired_before_the_first_record_are_not_waited_for(tape: Tape) -> None:
    _two(tape)
    view = tape.define_continuous("C", [("Z", "2025-09-19"), *CHAIN], "volume")
    assert [(r.old, r.new) for r in view.rolls()] == [("A", "B")] and view.read().num_rows == 9


def test_an_unknown_gap_is_an_error_when_adjusting_and_nothing_when_not(tape: Tape) -> None:
    tape.append([_tick("A", "2025-12-01T10:00:00", 5.0), _tick("B", "2025-12-01T10:01:00", 7.0)])
    tape.append(_tick("B", "2025-12-05T10:00:00", 8.0))
    view = tape.define_continuous("C", CHAIN, ["2025-12-03"])
    assert view.rolls()[0].gap is None and view.read().num_rows == 2
    for ask in (view.read, view.bars):
        for adjust in ("back", "ratio"):
            with pytest.raises(GapUnknown, match="roll from A to B") as unknown:
                ask(adjust=adjust)
            assert "gaps" in unknown.value.hint
    assert _seen(view.read("2025-12-03", adjust="back")) == [("B", 8.0)]  # it needs no gap
    view = tape.define_continuous("C", CHAIN, ["2025-12-03"], gaps={"B": 2.0}, replace=True)
    assert _seen(view.read(adjust="back")) == [("A", 7.0), ("B", 8.0)]
    with pytest.raises(GapUnknown, match="no ratio"):
        view.read(adjust="ratio")


def test_back_adjusted_prices_may_be_negative_and_ratios_need_positive_ones(tape: Tape) -> None:
    for n in (1, 2, 5):
        tape.append([_tick("A", f"2025-12-0{n}T10:00:00", 60.0), _tick("B", f"2025-12-0{n}T10:00:01", -37.0)])
    view = tape.define_continuous("C", CHAIN, ["2025-12-03"])
    assert [price for _, price in _seen(view.read(adjust="back"))] == [-37.0, -37.0, -37.0]
    tape.append(_tick("A", "2025-12-01T09:00:00", 10.0))
    assert view.read(adjust="back")["price"][0].as_py() == -87.0
    with pytest.raises(GapUnknown, match="no ratio"):
        view.read(adjust="ratio")


def test_two_rolls_add_up(tape: Tape) -> None:
    for n in range(1, 8):
        for symbol, price in (("A", 100.0), ("B", 110.0), ("D", 125.0)):
            tape.append(_tick(symbol, f"2025-12-0{n}T10:00:00", price))
    chain = [("D", "2025-12-20"), ("A", "2025-12-05"), ("B", "2025-12-07")]  # in any order
    view = tape.define_continuous("C", chain, "2d")
    assert [(r.old, r.new, r.gap) for r in view.rolls()] == [("A", "B", 10.0), ("B", "D", 15.0)]
    assert set(view.read(adjust="back")["price"].to_pylist()) == {125.0}
    assert [bar.close for bar in view.bar_list("1d", adjust="ratio")] == pytest.approx([125.0] * 7)
    assert [price for _, price in _seen(view.read(end="2025-12-05", adjust="back"))] == [110.0] * 4
    assert [s for s, _ in _seen(view.read("2025-12-03", "2025-12-05"))] == ["B", "B"]


def test_the_newest_ticks_are_the_fronts_also_over_a_roll(tape: Tape) -> None:
    view = tape.define_continuous("C", CHAIN, "volume")
    assert view.latest() is None and tape.latest("C") is None and tape.recent("C") == [] == view.rolls()
    assert tape.read("C").num_rows == 0 and tape.bar_list("C") == []
    _two(tape)
    assert tape.latest("C") == tape.latest("B") == view.latest()
    everything = [Tick(**row) for row in view.read().to_pylist()]
    for count in (1, 3, 4, 9, 50):
        assert tape.recent("C", count) == everything[-count:]
    assert "C" not in tape.latest()


def test_a_continuous_future_has_no_records_of_its_own_and_a_name_of_its_own(tape: Tape) -> None:
    _two(tape)
    tape.define_continuous("C", CHAIN, "volume")
    with pytest.raises(onetape.InvalidRecord, match="append to its contracts"):
        tape.append(_tick("C", "2025-12-05T10:00:00", 1.0))
    with pytest.raises(NameTaken):
        tape.alias("C", "A")
    with pytest.raises(NameTaken):
        tape.alias("x", "C")
    tape.alias("256265", "A")
    for name in ("A", "256265"):
        with pytest.raises(NameTaken):
            tape.define_continuous(name, [("E", "2026-01-01"), ("F", "2026-02-01")], "volume")
    with pytest.raises(ConfigInvalid, match="itself"):
        tape.define_continuous("D", [("C", "2026-01-01"), ("F", "2026-02-01")], "volume")
    with pytest.raises(ConfigInvalid, match="one symbol"):
        tape.define_continuous("D", [("A", "2026-01-01"), ("256265", "2026-02-01")], "volume")
    with pytest.raises(ConfigInvalid, match="alone"):
        tape.follow(["C", "A"])
    assert [info.symbol for info in tape.symbols()] == ["A", "B"]


def test_contracts_may_be_named_by_an_alias(tape: Tape) -> None:
    tape.alias("1", "A")
    tape.alias("2", "B")
    _two(tape)
    view = tape.define_continuous("C", [("1", "2025-12-19"), ("2", "2026-03-20")], "volume")
    assert [(r.old, r.new) for r in view.rolls()] == [("A", "B")] and view.read().num_rows == 9
    with view.follow(from_seq=0) as follower:
        assert len(follower.take(1)) == 10


def test_a_definition_is_replaced_only_when_asked_and_older_versions_stay(tape: Tape) -> None:
    _two(tape)
    assert tape.define_continuous("C", CHAIN, "volume").version == 1
    assert tape.define_continuous("C", list(reversed(CHAIN)), "volume").version == 1  # the same
    with pytest.raises(NameTaken, match="version 1"):
        tape.define_continuous("C", CHAIN, "5d")
    assert tape.define_continuous("C", CHAIN, "5d", replace=True).version == 2
    assert tape.continuous("C").version == 2 and tape.continuous("C", 1).definition.roll == onetape.VolumeCrossover()
    assert [view.name for view in tape.continuous_futures()] == ["C"]
    for ask in ({"name": "C", "version": 3}, {"name": "D"}):
        with pytest.raises(ConfigInvalid, match="no continuous future"):
            tape.continuous(**ask)  # type: ignore[arg-type]
    assert tape.remove_continuous("C") == 2 and tape.continuous_futures() == []
    assert tape.read("A").num_rows == 12


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"contracts": []}, "no contracts"),
        ({"contracts": [("A", "2025-12-19"), ("A", "2026-03-20")]}, "given twice"),
        ({"contracts": [("A", "2025-12-19"), ("B", "2025-12-19")]}, "both expire"),
        ({"contracts": [("A", "Christmas")]}, "no date"),
        ({"contracts": ["A", "B"]}, "pairs|no date"),
        ({"contracts": [("C", "2025-12-19"), ("B", "2026-12-19")]}, "name of the whole"),
        ({"contracts": [("", "2025-12-19")]}, "cannot be a contract"),
        ({"name": ""}, "cannot be called"),
        ({"roll": "moon"}, "no rule"),
        ({"roll": ["2025-12-01", "2025-12-02"]}, "2 roll dates for 2 contracts"),
        ({"roll": OnDates((date(2026, 1, 5),))}, "is after 2025-12-19"),
        ({"roll": "400d"}, "days before expiry"),
        ({"contracts": [("A", "2025-12-20"), ("B", "2025-12-21"), ("D", "2026-01-20")], "roll": "1bd"}, "never be"),
        ({"timezone": "Mars/Base"}, "unknown"),
        ({"timezone": "../etc"}, "unknown"),
        ({"day_start": "25:00"}, "local time"),
        ({"gaps": {"A": 1.0}}, "gaps"),
        ({"gaps": {"B": float("nan")}}, "finite"),
        ({"holidays": ["never"]}, "no date"),
    ],
)
def test_a_definition_that_cannot_work_is_refused(tape: Tape, change: dict[str, object], match: str) -> None:
    given: dict[str, object] = {"name": "C", "contracts": CHAIN, "roll": "volume", **change}
    with pytest.raises(ConfigInvalid, match=match):
        tape.define_continuous(**given)  # type: ignore[arg-type]
    assert tape.continuous_futures() == []


def test_rolls_stay_when_retention_has_removed_the_ticks(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        _two(tape)
        view = tape.define_continuous("C", CHAIN, "volume")
        rolled, bars = view.rolls(), view.bar_list("1d")
        tape.prune(now="2027-01-01", retention_days=1)
        if tape.read("A").num_rows:  # it was on the tape for too short a time by the tape's own count
            pytest.skip("nothing was pruned")
        assert view.rolls() == rolled and view.bar_list("1d") == bars


def test_a_tape_opened_for_reading_rolls_and_follows(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        _two(tape)
        tape.define_continuous("C", CHAIN, "volume")
        with onetape.open(tmp_path / "t.db", mode="r") as reader, reader.follow("C", from_seq=0) as follower:
            assert reader.rolls("C") == tape.rolls("C") and len(follower.take(1)) == 10
            with pytest.raises(onetape.TapeReadOnly):
                reader.define_continuous("D", CHAIN, "volume")


def _lean(path: Path, expiry: str) -> list[list[str]]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(f"_{expiry}.csv"):
                return [line.split(",") for line in archive.read(name).decode().split()]
    return []


def test_real_minute_bars_of_several_expiries_make_one_future(sample_data: Path, tape: Tape) -> None:
    folder = sample_data / "lean" / "future" / "cme" / "minute" / "es"
    expiries = {"201312": "2013-12-20", "201403": "2014-03-21", "201406": "2014-06-20"}
    volumes: dict[tuple[str, str], float] = {}
    for path in sorted(folder.glob("*_trade.zip")):
        # Lean's times are of the exchange: US Eastern for its futures; four hours behind UTC that month.
        midnight = _ns(f"{path.name[:4]}-{path.name[4:6]}-{path.name[6:8]}") + 4 * HOUR
        for expiry in expiries:
            rows = _lean(path, expiry)
            if rows:
                volumes[path.name[:8], expiry] = sum(float(row[5]) for row in rows)
                tape.append(
                    [
                        Bar(f"ES {expiry}", "1min", midnight + int(row[0]) * 1_000_000, *map(float, row[1:6]))
                        for row in rows
                    ]
                )
    chain = [(f"ES {expiry}", at) for expiry, at in expiries.items()]
    assert volumes["20131008", "201312"] > volumes["20131008", "201403"] > 0
    by_volume = tape.define_continuous("ES.v", chain, "volume", timezone="America/New_York")
    assert by_volume.rolls() == [] and by_volume.front() == "ES 201312"
    backwards = [("ES 201403", "2013-12-20"), ("ES 201312", "2014-03-21")]  # as if the March contract came first
    view = tape.define_continuous("ES.c", backwards, "volume", timezone="America/New_York")
    (roll,) = view.rolls()
    assert (roll.old, roll.new, roll.ts_ns) == ("ES 201403", "ES 201312", _ns("2013-10-07T04:00:00"))
    assert f"{volumes['20131006', '201312']:,.15g} > {volumes['20131006', '201403']:,.15g}" in roll.why
    assert roll.gap is not None and 3 < roll.gap < 10
    raw, back = view.bar_list("1min"), view.bar_list("1min", adjust="back")
    march, december = tape.bar_list("ES 201403"), tape.bar_list("ES 201312")
    assert raw == [b for b in march if b.ts_start_ns < roll.ts_ns] + [
        b for b in december if b.ts_start_ns >= roll.ts_ns
    ]
    assert back[0].close == raw[0].close + roll.gap and back[-1] == raw[-1]


def test_a_cancelled_tick_counts_for_no_roll_and_a_follower_of_the_front_is_told(tape: Tape) -> None:
    _two(tape)
    view = tape.define_continuous("C", CHAIN, "volume")
    assert [r.ts_ns for r in view.rolls()] == [_ns("2025-12-04")]
    big = next(row for row in tape.read("B").to_pylist() if row["ts_event_ns"] == _ns("2025-12-03T12:00:10"))
    head = tape.stats().head
    tape.cancel(Tick(**big))
    for sealed in (False, True):
        if sealed:
            tape.seal()
        (roll,) = view.rolls()
        assert roll.ts_ns == _ns("2025-12-05") and roll.priced_ns == _ns("2025-12-04T12:00:00")
        assert [s for s, _ in _seen(view.read())] == ["A"] * 8 + ["B"] * 2
    first = Tick(**tape.read("A").to_pylist()[0])
    with view.follow(from_seq=head) as follower:
        assert follower.take(0.05) == []  # the cancel is of a tick that was never the front's
        tape.cancel(first)
        (told,) = follower.take(1)
        assert told.target_seq == first.seq


def test_what_a_view_cannot_do_is_refused_and_not_silently_empty(tape: Tape) -> None:
    _two(tape)
    view = tape.define_continuous("C", CHAIN, "volume")
    with pytest.raises(ConfigInvalid, match="read whole"):
        tape.batches("C")
    with pytest.raises(ConfigInvalid):
        tape.bars("C", "100tick")
    with pytest.raises(ConfigInvalid, match="5min, 1h, 1d"):
        view.bars("7min")
    with pytest.raises(ConfigInvalid, match="alone"):
        tape.read(["C", "A"])
    assert tape.read(["C"]).num_rows == view.read().num_rows


def test_what_is_kept_in_memory_of_rolls_is_dropped_when_older_records_come(tape: Tape) -> None:
    _two(tape)
    view = tape.define_continuous("C", CHAIN, "volume")
    before = view.schedule()
    assert view.schedule() is before
    tape.append([_tick("A", "2025-12-06T19:00:00", 1.0), _tick("other", "2025-12-01T10:00:00", 1.0)])
    assert view.schedule() is before  # neither an older record of a contract nor a new day
    tape.append(_tick("A", "2025-12-03T20:00:00", 1.0, 100.0))
    assert [r.ts_ns for r in view.rolls()] == [_ns("2025-12-05")]
    tape.append(_tick("A", "2025-12-02T20:00:00", 1.0, 100.0))
    tape.seal()
    tape.append(_tick("B", "2025-12-02T21:00:00", 1.0, 500.0))
    assert [r.ts_ns for r in view.rolls()] == [_ns("2025-12-03")]
    tape.append_table(
        {"symbol": "A", "ts_event_ns": [_ns("2025-12-02T22:00:00")] * 9000, "price": 1.0, "size": [1.0] * 9000}
    )
    assert [r.ts_ns for r in view.rolls()] == [_ns("2025-12-05")]


def test_a_new_day_decides_anew(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape, onetape.open(tmp_path / "t.db") as other:
        view = tape.define_continuous("C", CHAIN, "volume")
        tape.append([_tick("A", "2025-12-01T10:00:00", 1.0, 1.0), _tick("B", "2025-12-01T10:00:00", 1.0, 2.0)])
        assert view.rolls() == []
        other.append(_tick("B", "2025-12-02T00:00:00", 1.0))
        assert [r.ts_ns for r in view.rolls()] == [_ns("2025-12-02")]


def test_contracts_with_bars_given_and_with_ticks_go_together(tape: Tape) -> None:
    for n in range(1, 4):
        at = _ns(f"2025-12-0{n}T12:00:00")
        tape.append(Bar("A", "1min", at, 100.0, 100.0, 100.0, 100.0, volume=5.0, source="vendor"))
        tape.append(Tick("B", at + S, price=110.0, size=9.0 if n == 2 else 1.0))
    view = tape.define_continuous("C", CHAIN, "volume")
    (roll,) = view.rolls()
    assert roll.ts_ns == _ns("2025-12-03") and roll.gap == 10.0
    for adjust, first in ((None, 100.0), ("back", 110.0)):
        table = view.bars("1min", adjust=adjust)
        assert table["symbol"].to_pylist() == ["A", "A", "B"] and table["close"].to_pylist() == [first, first, 110.0]
        assert table["source"].to_pylist() == ["vendor", "vendor", None]


def test_a_subscriber_that_wants_only_the_newest_gets_the_roll_beside_the_tick(tape: Tape) -> None:
    import threading

    _two(tape)
    tape.define_continuous("C", CHAIN, "volume")
    got: list[object] = []
    slow, done = threading.Event(), threading.Event()

    def callback(record: object) -> None:
        slow.wait(1)
        got.append(record)
        if isinstance(record, Tick) and record.price == 999.0:
            done.set()

    subscription = tape.subscribe(callback, "C", "conflate", from_seq=0)
    tape.append(_tick("B", "2025-12-06T20:00:00", 999.0))
    slow.set()
    assert done.wait(60)
    assert subscription.active and subscription.error is None and subscription.stats(0).errors == 0
    subscription.close()
    assert [type(record).__name__ for record in got].count("Roll") == 1


def test_a_correction_may_name_a_tick_by_an_alias(tape: Tape) -> None:
    tape.alias("1", "A")
    tape.append([_tick("1", "2025-12-01T10:00:00", 1.0), _tick("1", "2025-12-01T10:00:01", 2.0)])
    first = Tick(**tape.read("1").to_pylist()[0])
    tape.revise(first, _tick("1", "2025-12-01T10:00:00", 1.5))
    assert tape.read("A")["price"].to_pylist() == [1.5, 2.0]
    assert [info.symbol for info in tape.symbols()] == ["A"]


def test_no_volume_of_the_next_trading_day_counts_for_the_one_before(tape: Tape) -> None:
    view = tape.define_continuous("C", CHAIN, "volume", timezone="America/Chicago", day_start="17:00")
    for n in range(1, 8):  # whatever day a month of reading ends with
        tape.append(_tick("A", f"2024-10-{n + 2:02}T12:00:00", 1.0, 2.0))
    tape.append(_tick("B", "2024-10-08T22:00:00", 2.0, 9.0))  # the trading day of the 9th has just begun
    tape.append(_tick("A", "2024-10-11T12:00:00", 1.0, 2.0))
    (roll,) = view.rolls()
    assert roll.why == "volume 9 > 2 on 2024-10-09" and roll.ts_ns == _ns("2024-10-09T22:00:00")
    days = Volumes(tape, view.definition, ["A", "B"])
    assert [days(1, date(2024, 10, n)) for n in (7, 8, 9, 10)] == [0.0, 0.0, 9.0, 0.0]
