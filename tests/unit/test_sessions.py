"""Sessions: bars from the open of a market, exact over changes of clocks, holidays, early closes and breaks."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

import onetape
from onetape import Calendar, Session, Tick
from onetape.clock import to_ns, to_text
from onetape.store import sessions

HOUR_NS = 3_600_000_000_000
FUTURES = Session("America/Chicago", "17:00", "16:00")


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        yield opened


def every(tape, minutes, start, end, symbol="A"):
    """Put a trade of size 1 on the tape every so many minutes of start … end."""
    step = minutes * 60_000_000_000
    tape.append([Tick(symbol, ts, price=10.0, size=1.0) for ts in range(to_ns(start), to_ns(end), step)])


def told(bars):
    return [(str(bar.session), to_text(bar.ts_start_ns)[:16], bar.trades) for bar in bars]


def test_an_hour_of_new_york_begins_at_half_past_nine_and_the_last_one_is_cut_by_the_close(tape):
    every(tape, 10, "2025-01-14T14:00", "2025-01-14T22:00")
    found = told(tape.bar_list("A", "1h", session="XNYS"))
    assert found[0] == ("2025-01-14", "2025-01-14T14:30", 6)
    assert found[-1] == ("2025-01-14", "2025-01-14T20:30", 3)
    assert len(found) == 7
    assert told(tape.bar_list("A", "1d", session="XNYS")) == [("2025-01-14", "2025-01-14T14:30", 39)]


@pytest.mark.parametrize("monday,opens", [("2025-03-10", "13:30"), ("2025-03-03", "14:30"), ("2025-11-03", "14:30")])
def test_new_york_opens_at_its_own_time_before_and_after_the_clocks_change(tape, monday, opens):
    every(tape, 30, monday, to_ns(monday) + 24 * HOUR_NS)
    for session in ("XNYS", "America/New_York 09:30-16:00"):
        assert told(tape.bar_list("A", "1d", session=session)) == [(monday, f"{monday}T{opens}", 13)]


@pytest.mark.parametrize("day,hours", [("2025-03-09", 23), ("2025-11-02", 25), ("2025-11-03", 24)])
def test_a_day_of_new_york_has_as_many_hours_as_its_clocks_show_and_one_bar(tape, day, hours):
    opens = to_ns(datetime.fromisoformat(day).replace(tzinfo=ZoneInfo("America/New_York")))
    every(tape, 30, opens - 48 * HOUR_NS, opens + 72 * HOUR_NS)
    session = Session("America/New_York", "00:00", "24:00", days=("mon", "tue", "wed", "thu", "fri", "sat", "sun"))
    daily = tape.bar_list("A", "1d", session=session)
    assert [str(bar.session) for bar in daily] == sorted({str(bar.session) for bar in daily})
    (one,) = [bar for bar in daily if str(bar.session) == day]
    assert (one.ts_start_ns, one.trades) == (opens, 2 * hours)
    hourly = [bar for bar in tape.bar_list("A", "1h", session=session) if str(bar.session) == day]
    assert [bar.ts_start_ns for bar in hourly] == [opens + i * HOUR_NS for i in range(hours)]


def test_a_futures_day_of_23_hours_opens_on_the_evening_before_and_is_named_after_its_end(tape):
    every(tape, 30, "2025-03-06T00:00", "2025-03-12T00:00")
    found = told(tape.bar_list("A", "1d", session=FUTURES))
    assert found[1:-1] == [
        ("2025-03-07", "2025-03-06T23:00", 46),
        ("2025-03-10", "2025-03-09T22:00", 46),  # Sunday evening, on the day on which the clocks changed
        ("2025-03-11", "2025-03-10T22:00", 46),
    ]
    assert all(
        bar.ts_start_ns // HOUR_NS % 24 != 21 for bar in tape.bar_list("A", "1min", "2025-03-10", session=FUTURES)
    )


def test_a_futures_day_keeps_the_holidays_and_early_closes_of_its_calendar(tape):
    every(tape, 30, "2025-11-25T23:00", "2025-12-02T23:00")
    found = told(tape.bar_list("A", "1d", session="America/Chicago 17:00-16:00 mon-fri CMES"))
    assert found == [
        ("2025-11-26", "2025-11-25T23:00", 46),
        ("2025-11-27", "2025-11-26T23:00", 38),  # Thanksgiving: until noon in Chicago
        ("2025-11-28", "2025-11-27T23:00", 38),
        ("2025-12-01", "2025-11-30T23:00", 46),
        ("2025-12-02", "2025-12-01T23:00", 46),
    ]


def test_holidays_have_no_bar_and_early_closes_a_short_one(tape):
    every(tape, 30, "2025-11-26", "2025-11-29")
    assert told(tape.bar_list("A", "1d", session=Calendar("XNYS"))) == [
        ("2025-11-26", "2025-11-26T14:30", 13),
        ("2025-11-28", "2025-11-28T14:30", 7),
    ]


@pytest.mark.parametrize("name", ["XNSE", "XBOM", "Asia/Kolkata 09:15-15:30"])
def test_an_indian_session_begins_at_a_quarter_past_nine(tape, name):
    every(tape, 15, "2025-01-14T03:00", "2025-01-14T11:00")
    found = told(tape.bar_list("A", "1h", session=name))
    assert found[0] == ("2025-01-14", "2025-01-14T03:45", 4)
    assert found[-1] == ("2025-01-14", "2025-01-14T09:45", 1)


def test_after_a_lunch_break_time_is_counted_anew_and_counted_bars_go_on(tape):
    every(tape, 30, "2025-01-14T00:00", "2025-01-14T06:30")
    assert told(tape.bar_list("A", "1h", session="XTKS")) == [
        ("2025-01-14", "2025-01-14T00:00", 2),
        ("2025-01-14", "2025-01-14T01:00", 2),
        ("2025-01-14", "2025-01-14T02:00", 1),  # until 11:30 in Tokyo
        ("2025-01-14", "2025-01-14T03:30", 2),
        ("2025-01-14", "2025-01-14T04:30", 2),
        ("2025-01-14", "2025-01-14T05:30", 2),
    ]
    assert [bar.trades for bar in tape.bar_list("A", "4tick", session="XTKS")] == [4, 4, 3]
    assert [bar.trades for bar in tape.bar_list("A", "1d", session="XTKS")] == [11]


def test_a_trade_at_the_close_is_outside_and_one_at_the_open_inside(tape):
    tape.append([Tick("A", to_ns(at), price=1.0) for at in ("2025-01-14T14:30", "2025-01-14T20:59:59.999999999")])
    tape.append([Tick("A", to_ns(at), price=9.0) for at in ("2025-01-14T14:29:59.999999999", "2025-01-14T21:00")])
    (bar,) = tape.bar_list("A", "1d", session="XNYS")
    assert (bar.trades, bar.high, bar.complete) == (2, 1.0, True)


def test_the_first_bar_of_the_year_is_there(tape):
    every(tape, 60, "2024-12-31T22:00", "2025-01-01T03:00")
    starts = [to_text(bar.ts_start_ns)[:16] for bar in tape.bar_list("A", "1d")]
    assert starts == ["2024-12-31T00:00", "2025-01-01T00:00"]
    assert [to_text(bar.ts_start_ns)[:16] for bar in tape.bar_list("A", "1h", "2025-01-01", "2025-01-01T01:00")] == [
        "2025-01-01T00:00"
    ]


def test_a_span_in_another_time_zone_keeps_the_bar_at_its_boundary(tape):
    every(tape, 30, "2025-01-14T14:30", "2025-01-14T21:00")
    zone = ZoneInfo("America/New_York")
    start, end = datetime(2025, 1, 14, 9, 30, tzinfo=zone), datetime(2025, 1, 14, 10, 30, tzinfo=zone)
    for session in (None, "XNYS"):
        found = tape.bar_list("A", "30min", start, end, session=session)
        assert [to_text(bar.ts_start_ns)[11:16] for bar in found] == ["14:30", "15:00"]
    same = tape.bar_list("A", "30min", start.astimezone(UTC), end.astimezone(timezone_of(5.5)))
    assert same == tape.bar_list("A", "30min", start, end)


def timezone_of(hours):
    from datetime import timezone

    return timezone(timedelta(hours=hours))


def test_weeks_begin_on_monday_and_are_of_their_sessions(tape):
    every(tape, 60, "2025-01-06T00:00", "2025-01-19T00:00")
    found = told(tape.bar_list("A", "7d", session="XNYS"))
    # The market was closed on 9 January 2025, a day of mourning.
    assert found == [("2025-01-06", "2025-01-06T14:30", 24), ("2025-01-13", "2025-01-13T14:30", 30)]
    assert [to_text(bar.ts_start_ns)[:10] for bar in tape.bar_list("A", "7d")] == ["2025-01-06", "2025-01-13"]


@pytest.mark.parametrize(
    "session,says",
    [
        ("XNYC", "did you mean XNYS"),
        ("", "no exchange calendar"),
        ("America/Newyork 09:30-16:00", "America/New_York"),
        ("America/New_York 09:30-25:00", "25:00"),
        ("America/New_York 09:30-16:00 mon-foo", "foo"),
        ("America/New_York 09:30-16:00 mon-fri XNYC", "XNYS"),
        (7, "session = 7"),
    ],
)
def test_a_session_nobody_knows_is_refused_by_name(tape, session, says):
    tape.append(Tick("A", to_ns("2025-01-14T15:00"), price=1.0))
    with pytest.raises(onetape.ConfigInvalid, match=says):
        tape.bars("A", session=session)
    with pytest.raises(onetape.ConfigInvalid, match=says):
        tape.follow_bars("A", session=session)


def test_a_span_beyond_what_a_calendar_knows_is_an_error_and_not_empty(tape):
    tape.append(Tick("A", to_ns("1990-01-02T05:00"), price=1.0))
    with pytest.raises(onetape.ConfigInvalid, match="the calendar XBOM knows 1997-01-01 to"):
        tape.bars("A", session="XBOM")
    assert tape.bars("A", "1min", "2000-01-01", session="XBOM").num_rows == 0


def test_a_local_time_the_clocks_skip_is_as_far_after_the_gap_and_one_shown_twice_is_the_first():
    def first(day, opens, closes):
        number = (date.fromisoformat(day) - date(1970, 1, 1)).days
        week = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
        found = Session("America/New_York", opens, closes, week).windows(number, number)
        return [to_text(ns)[11:16] for ns in (int(found.opens[0]), int(found.closes[0]))]

    assert first("2025-03-09", "02:30", "04:00") == ["07:30", "08:00"]
    assert first("2025-11-02", "01:30", "04:00") == ["05:30", "09:00"]


def test_closed_tells_when_no_session_is_open():
    found = Calendar("XNYS").closed(to_ns("2025-11-26T20:00"), to_ns("2025-11-28T20:00"))
    assert [(to_text(a)[:16], to_text(b)[:16]) for a, b in found] == [
        ("2025-11-26T21:00", "2025-11-28T14:30"),
        ("2025-11-28T18:00", "2025-11-28T20:00"),
    ]
    assert sessions.closed(sessions.UTC_DAYS, 5, 10) == []


def test_sessions_of_ones_own_are_any_object_with_windows(tape):
    class Minutes:
        def windows(self, first_day, last_day):
            return sessions.UTC_DAYS.windows(first_day, last_day)

    every(tape, 60, "2025-01-14", "2025-01-16")
    found = tape.bar_list("A", "1d", session=Minutes())
    assert [(bar.trades, str(bar.session)) for bar in found] == [(24, "2025-01-14"), (24, "2025-01-15")]
