"""Coverage from the side of whoever runs a recorder: outages, thin symbols, nights, retention, and what nobody said."""

import asyncio
import random
import time

import apsw
import pytest

import onetape
from onetape import ConfigInvalid, Tick

S = 10**9
MIN, HOUR, DAY = 60 * S, 3600 * S, 86400 * S
T = onetape.to_ns("2026-03-02T10:00:00")


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as made:
        yield made


def _flow(tape, symbol, start_ns, end_ns, step_ns=S):
    tape.append_table(
        {"symbol": symbol, "ts_event_ns": list(range(start_ns, end_ns, step_ns)), "price": 1.0, "size": 1.0}
    )


def _told(spans):
    return [(s.state, (s.start_ns - T) / S, (s.end_ns - T) / S) for s in spans]


class Hours:
    """A market that is open from 10:00 to 11:00 each day."""

    def closed(self, start_ns, end_ns):
        first = start_ns - start_ns % DAY - DAY
        shut = [(day + 11 * HOUR, day + DAY + 10 * HOUR) for day in range(first, end_ns, DAY)]
        return [(max(a, start_ns), min(b, end_ns)) for a, b in shut if a < end_ns and b > start_ns]


def test_a_feed_that_was_down_for_twenty_minutes_leaves_one_gap_of_twenty_minutes(tape):
    _flow(tape, "ES", T, T + 1200 * S)
    beat = tape.heartbeat("feed", ["ES"], since=T)
    for seconds in range(5, 1201, 5):
        beat.alive(T + seconds * S)
    _flow(tape, "ES", T + 2400 * S, T + 3600 * S)  # a new process
    beat = tape.heartbeat("feed", ["ES"], since=T + 2400 * S)
    beat.alive(T + 3600 * S)
    assert _told(tape.coverage("ES")) == [("covered", 0, 1200), ("missing", 1200, 2400), ("covered", 2400, 3600)]
    assert [(g.state, g.start_ns, g.end_ns) for g in tape.gaps("ES")] == [("missing", T + 1200 * S, T + 2400 * S)]
    rows = tape._writer_connection.execute("SELECT count(*) FROM coverage").get
    assert rows == 2, "a heartbeat is an update, not a row"


def test_a_restart_of_some_seconds_is_not_papered_over_by_the_ticks_around_it(tape):
    _flow(tape, "ES", T, T + 60 * S)
    tape.cover("ES", T, T + 60 * S, source="feed")
    _flow(tape, "ES", T + 80 * S, T + 140 * S)
    tape.cover("ES", T + 80 * S, T + 140 * S, source="feed")
    assert _told(tape.gaps("ES")) == [("missing", 60, 80)]
    assert tape.gaps("ES", min_s=30) == []


def test_ticks_between_the_last_heartbeat_and_the_crash_count_as_covered(tape):
    _flow(tape, "ES", T, T + 63 * S)
    tape.cover("ES", T, T + 60 * S, source="feed")
    tape.cover("ES", T + 600 * S, T + 700 * S, source="feed")
    spans = tape.coverage("ES")
    assert _told(spans)[:3] == [
        ("covered", 0, 60),
        ("covered", 60, pytest.approx(62, abs=1e-6)),
        ("missing", pytest.approx(62, abs=1e-6), 600),
    ]
    assert [span.inferred for span in spans[:3]] == [False, True, False]


def test_a_gap_never_holds_a_tick(tape):
    tape.cover("ES", T, T + 60 * S, source="feed")
    tape.append(Tick("ES", T + 300 * S, price=1.0))
    tape.cover("ES", T + 600 * S, T + 700 * S, source="feed")
    assert [(g.start_ns - T, g.end_ns - T) for g in tape.gaps("ES")] == [
        (60 * S, 300 * S),
        (300 * S + 1, 600 * S),
    ]


def test_a_symbol_that_trades_thinly_is_quiet_not_missing(tape):
    beat = tape.heartbeat("feed", ["THIN"], since=T)
    tape.append([Tick("THIN", T + n * 1800 * S, price=1.0) for n in range(3)])
    beat.alive(T + 2 * HOUR)
    assert {span.state for span in tape.coverage("THIN")} == {"covered", "quiet"}
    assert tape.gaps("THIN") == []
    assert sum(s.end_ns - s.start_ns for s in tape.coverage("THIN", quiet_s=86400) if s.state == "quiet") == 0


def test_a_symbol_without_any_tick_is_known_once_a_source_watches_it(tape):
    assert tape.coverage("NEW") == [] and tape.gaps("NEW") == []
    tape.heartbeat("feed", ["NEW"], since=T).alive(T + HOUR)
    assert _told(tape.coverage("NEW")) == [("quiet", 0, 3600)]
    assert tape.latest("NEW") is None


def test_a_closed_market_is_neither_missing_nor_quiet_but_ticks_after_hours_are_covered(tape):
    for day in range(3):
        _flow(tape, "ES", T + day * DAY, T + day * DAY + HOUR, 5 * S)
    beat = tape.heartbeat("feed", ["ES"], since=T)
    beat.alive(T + HOUR + 600 * S)
    beat.resume(T + 2 * DAY - 60 * S)
    beat.alive(T + 2 * DAY + HOUR)
    spans = tape.coverage("ES", session=Hours())
    missing = [(s.end_ns - s.start_ns) // S for s in spans if s.state == "missing"]
    assert missing == [4], "the feed slept at night; of the day nobody spoke of, only what follows its last tick"
    assert [s.state for s in spans if s.end_ns - s.start_ns > 12 * HOUR] == ["closed", "closed"]
    tape.append([Tick("ES", T + HOUR + n * S, price=1.0) for n in range(60, 400)])
    told = tape.coverage("ES", T + HOUR + 100 * S, T + HOUR + 300 * S, session=Hours())
    assert [s.state for s in told] == ["covered"]


def test_a_feed_that_was_down_while_the_market_was_closed_missed_nothing_but_in_the_session_it_did(tape):
    _flow(tape, "ES", T, T + 1800 * S, S)
    tape.cover("ES", T, T + 1800 * S, source="feed")
    tape.mark_missing("ES", T + 1800 * S, T + 2 * HOUR, source="feed")
    spans = tape.coverage("ES", session=Hours())
    assert _told(spans) == [("covered", 0, 1800), ("missing", 1800, 3600), ("closed", 3600, 7200)]


def test_what_any_source_covers_is_covered_and_of_one_source_the_last_word_holds(tape):
    tape.mark_missing("ES", T, T + 100 * S, source="a")
    tape.cover("ES", T + 20 * S, T + 50 * S, source="b")
    spans = tape.coverage("ES")
    assert [(s.state, s.by) for s in spans] == [("missing", ("a",)), ("covered", ("b",)), ("missing", ("a",))]
    tape.mark_missing("ES", T + 30 * S, T + 40 * S, source="b")
    assert _told(tape.gaps("ES")) == [("missing", 0, 20), ("missing", 30, 40), ("missing", 50, 100)]
    tape.cover("ES", T, T + 100 * S, source="a")
    assert tape.gaps("ES") == []


def test_on_a_tape_where_nobody_said_anything_long_silence_is_unknown_not_missing(tape):
    random.seed(3)
    for day in range(3):
        start = T + day * DAY
        times = [start + n * 2 * S + random.randrange(S) for n in range(1800)]
        if day == 1:
            times = [ts for ts in times if not start + 1200 * S <= ts < start + 2400 * S]
        tape.append_table({"symbol": "ES", "ts_event_ns": times, "price": 1.0})
    long = [g for g in tape.gaps("ES") if g.end_ns - g.start_ns < HOUR]
    assert [g.state for g in long] == ["unknown"]
    assert T + DAY + 1190 * S < long[0].start_ns < long[0].end_ns < T + DAY + 2410 * S
    assert all(s.inferred for s in tape.coverage("ES") if s.state == "covered")
    nights = [s.state for s in tape.coverage("ES", session=Hours()) if s.end_ns - s.start_ns > 12 * HOUR]
    assert nights == ["closed", "closed"]


def test_a_thin_symbol_that_nobody_speaks_of_is_not_suspected_for_being_thin(tape):
    random.seed(4)
    at, times = T, []
    for _ in range(400):
        at += int(random.expovariate(1 / 300) * S)
        times.append(at)
    tape.append_table({"symbol": "THIN", "ts_event_ns": times, "price": 1.0})
    assert tape.gaps("THIN") == []


def test_filling_a_hole_does_not_turn_the_nights_around_it_into_missing_time(tape):
    for day in range(3):
        _flow(tape, "ES", T + day * DAY, T + day * DAY + HOUR, 2 * S)
    tape.fill("ES", T + DAY + 2 * HOUR, T + DAY + 3 * HOUR, [], source="vendor")
    assert {g.state for g in tape.gaps("ES")} == {"unknown"}


def test_the_future_is_not_missing(tape):
    now = onetape.now_ns()
    tape.cover("ES", now - HOUR, now - 1800 * S, source="feed")
    gaps = tape.gaps("ES", now - HOUR, now + DAY)
    assert len(gaps) == 1 and abs(gaps[0].end_ns - now) < 60 * S
    spans = tape.coverage("ES", now - HOUR, now + DAY)
    assert spans[-1].state == "unknown" and spans[-1].end_ns == now + DAY


def test_what_retention_removed_is_pruned_not_missing(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        _flow(tape, "ES", T, T + HOUR)
        tape.cover("ES", T, T + HOUR, source="feed")
        tape.cover("ES", T + 2 * HOUR, T + 2 * DAY + HOUR, source="feed")
        _flow(tape, "ES", T + 2 * DAY, T + 2 * DAY + HOUR)
        tape.seal()
        removed = tape.prune(now=onetape.now_ns() + 400 * DAY, retention_days=1)
        assert removed
        assert tape.gaps("ES") == []
        assert {s.state for s in tape.coverage("ES", T, T + HOUR)} == {"pruned"}
        assert tape.coverage("ES", T - DAY, T - HOUR)[0].state == "unknown"


def test_sealing_and_moving_ticks_into_chunks_changes_no_answer(tape):
    for symbol, step in (("A", S), ("B", 700 * S), ("C", 40 * S)):
        _flow(tape, symbol, T, T + 2 * HOUR, step)
        _flow(tape, symbol, T + 3 * HOUR, T + 4 * HOUR, step)
        tape.append([Tick(symbol, T + 5 * HOUR + n * S, price=1.0) for n in range(5)])
    before = [tape.coverage(symbol) for symbol in "ABC"]
    tape.seal()
    assert [tape.coverage(symbol) for symbol in "ABC"] == before
    tape.compact()
    assert [tape.coverage(symbol) for symbol in "ABC"] == before


def test_a_heartbeat_that_goes_back_or_repeats_says_nothing_and_one_that_resumes_leaves_the_outage_open(tape):
    beat = tape.heartbeat("feed", ["A", "B"], since=T)
    beat.alive(T + 10 * S)
    beat.alive(T + 5 * S)
    beat.alive(T + 10 * S)
    beat.add("C")
    beat.resume(T + 60 * S)
    beat.alive(T + 70 * S)
    for symbol in "AB":
        assert _told(tape.gaps(symbol)) == [("missing", 10, 60)]
    assert _told(tape.coverage("C", quiet_s=600)) == [("covered", 60, 70)]


def test_a_heartbeat_goes_on_after_its_own_span_was_marked_missing_in_the_middle(tape):
    beat = tape.heartbeat("feed", ["A"], since=T)
    beat.alive(T + 100 * S)
    tape.mark_missing("A", T + 90 * S, T + 100 * S, source="feed")
    beat.alive(T + 200 * S)
    assert _told(tape.coverage("A", quiet_s=600)) == [
        ("covered", 0, 90),
        ("missing", 90, 100),
        ("covered", 100, 200),
    ]


@pytest.mark.parametrize(
    "act",
    [
        lambda tape: tape.cover("", T, T + 1),
        lambda tape: tape.cover("A", T + 1, T),
        lambda tape: tape.cover("A", T, T),
        lambda tape: tape.cover("A", T, T + 1, source=""),
        lambda tape: tape.cover("A\n", T, T + 1),
        lambda tape: tape.mark_missing("A" * 300, T, T + 1),
        lambda tape: tape.fill("A", T, T + 9, [Tick("B", T, price=1.0)], source="s"),
        lambda tape: tape.fill("A", T, T + 9, [], source=None),
        lambda tape: tape.coverage("A", quiet_s=float("nan")),
        lambda tape: tape.heartbeat("f", ["\x00"]),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_written(tape, act):
    with pytest.raises(ConfigInvalid):
        act(tape)
    assert tape._writer_connection.execute("SELECT count(*) FROM coverage").get == 0
    assert tape.symbols() == []


def test_a_tape_opened_for_reading_tells_its_coverage_and_takes_no_word(tmp_path, tape):
    tape.cover("A", T, T + HOUR, source="feed")
    with onetape.open(tape.path, mode="r") as reader:
        assert reader.coverage("A") == tape.coverage("A")
        with pytest.raises(onetape.TapeReadOnly):
            reader.cover("A", T, T + 1)
        with pytest.raises(onetape.TapeReadOnly):
            reader.heartbeat("feed", ["A"])


def test_a_full_disk_leaves_the_word_unsaid_and_what_was_said_readable(tape):
    tape.cover("A", T, T + S, source="feed")
    connection = tape._writer_connection
    connection.pragma("max_page_count", connection.pragma("page_count"))
    with pytest.raises(onetape.TapeFull):
        for n in range(5000):
            tape.cover("A", T + 2 * n * S, T + (2 * n + 1) * S, source=f"s{n % 7}")
    held = tape.coverage("A")
    assert held[0].state in ("covered", "quiet")
    connection.pragma("max_page_count", 10**9)
    tape.cover("A", T, T + DAY, source="feed")
    assert tape.gaps("A") == []


def test_the_asyncio_twins_answer_the_same(tape):
    tape.cover("A", T, T + S, source="feed")
    tape.cover("A", T + 5 * S, T + 6 * S, source="feed")
    assert asyncio.run(tape.acoverage("A")) == tape.coverage("A")
    assert asyncio.run(tape.agaps("A")) == tape.gaps()


def test_records_and_the_word_on_them_are_one_transaction(tape):
    """Between the append and the rows there is a note; whoever reads sees it, whoever writes keeps it."""
    tape.cover("A", T, T + S, source="feed")
    tape.cover("A", T + 9 * S, T + 10 * S, source="feed")
    real = type(tape)._in_coverage
    calls = []

    def dies_before_the_rows(self, act):
        calls.append(act)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, act)

    type(tape)._in_coverage = dies_before_the_rows
    try:
        with pytest.raises(KeyboardInterrupt):
            tape.fill("A", T + S, T + 9 * S, [Tick("A", T + 2 * S, price=1.0)], source="vendor")
    finally:
        type(tape)._in_coverage = real
    assert tape._writer_connection.execute("SELECT count(*) FROM coverage WHERE state = 4").get == 0
    assert tape.gaps("A") == []
    assert tape.fill("A", T + S, T + 9 * S, [Tick("A", T + 3 * S, price=1.0)], source="other").stored == 0
    tape.mark_missing("A", T + S, T + 9 * S, source="vendor")
    assert [g.by for g in tape.gaps("A")] == [("vendor",)] or tape.gaps("A") == []
    assert isinstance(tape._writer_connection, apsw.Connection)


def test_a_word_under_an_alias_is_a_word_on_its_symbol(tape):
    tape.append(Tick("ESZ6", T, price=1.0))
    tape.alias("ES DEC26", "ESZ6")
    tape.cover("ES DEC26", T, T + 60 * S, source="feed")
    tape.heartbeat("feed", ["ES DEC26"], since=T + 90 * S).alive(T + 100 * S)
    assert [info.symbol for info in tape.symbols()] == ["ESZ6"]
    assert _told(tape.gaps()) == [("missing", 60, 90)]
    assert _told(tape.gaps("ES DEC26")) == [("missing", 60, 90)]
    tape.fill("ES DEC26", T + 60 * S, T + 90 * S, [Tick("ES DEC26", T + 70 * S, price=2.0)], source="vendor")
    assert tape.gaps() == [] and tape.latest("ESZ6").price == 2.0


def test_ticks_that_were_taken_back_leave_their_time_open_for_others(tape):
    _flow(tape, "ES", T, T + 600 * S, 10 * S)
    tape.mark_missing("ES", T, T + 600 * S, source="feed")
    for tick in list(tape.recent("ES", 60))[20:40]:
        tape.cancel(tick)
    ticks = [Tick("ES", T + n * S, price=9.0) for n in range(0, 600, 10)]
    done = tape.fill("ES", T, T + 600 * S, ticks, source="vendor")
    assert (done.stored, done.there) == (20, 40)
    assert tape.read("ES").num_rows == 60


def test_gaps_of_thousands_of_symbols_do_not_take_longer_for_each_of_them(tape):
    names = [f"S{n}" for n in range(2000)]
    tape.append([Tick(name, T, price=1.0) for name in names])
    beat = tape.heartbeat("feed", names, since=T)
    beat.alive(T + S)
    beat.resume(T + 2 * S)
    beat.alive(T + 3 * S)
    began = time.perf_counter()
    assert len(tape.gaps(start=T, end=T + 3 * S)) == len(tape.gaps()) == 2000
    assert time.perf_counter() - began < 60
