"""What users of other stores suffer, and what real data does to a store: a test for each, here or where it is named.

Other stores' users:
- compaction run twice deletes everything: here
- an overlapping backfill leaves the store unwritable: here
- live memory never plateaus: unit/test_memory.py::test_memory_is_bounded, unit/test_ring.py (capped in bytes), and here
- parallel readers are slower than one behind the other: here
- reading while another process writes: fault/test_tape_faults.py::test_ten_processes_appending_and_following_one_tape…
- `database is locked`, and the record is lost: here
- a torn tail stops the writer while ingest goes on accepting: here
- a corrupt log, and nothing starts: fault/test_doctor.py::test_a_log_that_was_cut_off_anywhere_leaves_what_was…,
  fault/test_foreign_log.py
- an append drops real ticks as duplicates by value: unit/test_append.py::test_equal_records_are_two_records, and here
- a tick 10 ms late raises: here
- a restart redoes all of the backfill: fault/test_heal_faults.py::test_a_heal_killed_at_every_step…, and here
- stitching history to live: unit/test_live.py::test_follow_goes_from_history_to_live_without_gap_or_duplicate
- an expected bar that did not arrive: unit/test_follow_bars.py::test_with_a_grace_a_quiet_bar_ends_by_the_clock
- gaps papered over: unit/test_coverage.py::test_a_restart_of_some_seconds_is_not_papered_over_by_the_ticks_around_it
- a query in another time zone loses the boundary bar: unit/test_sessions.py::test_a_span_in_another_time_zone_keeps…
- a phantom or missing daily bar where clocks change: unit/test_sessions.py::test_a_day_of_new_york_has_as_many_hours…,
  and here
- bars anchored to a session: unit/test_sessions.py::test_an_hour_of_new_york_begins_at_half_past_nine…
- mixed price precision corrupts values: here
- the first bar of the year cannot be stored: unit/test_sessions.py::test_the_first_bar_of_the_year_is_there, and here
- a long reader pins the log: unit/test_hardening.py::test_overlapping_readers_do_not_let_the_log_grow_without_end,
  fault/test_doctor.py::test_the_process_that_pins_the_log_is_named

Real data:
- an equity day repeats rows, all of them real: integration/test_tape_sample_data.py::test_an_equity_day_with_its_…
- a session twice, the second time under the next day's name: unit/test_import_lean.py::test_a_session_under_the_next…
- crossed quotes, zero sizes, one-sided quotes: integration/test_tape_sample_data.py, and here
- times of 0.1 µs, and several trades in a millisecond whose order matters: here
"""

from __future__ import annotations

import shutil
import threading
import zoneinfo
from datetime import datetime

import apsw
import pytest

import onetape
from onetape import Tick
from onetape.record import MINUTE_NS
from onetape.store import layout, query

T0 = 1_767_225_600_000_000_000  # 2026-01-01T00:00Z
SECOND = 10**9


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.db"


@pytest.fixture
def tape(path):
    with onetape.open(path, retention_days=None) as opened:
        yield opened


def _rows(tape, symbol="A", **how):
    return tape.read(symbol, **how).to_pylist()


def test_compaction_run_twice_deletes_nothing(tape):
    """Nautilus: a second consolidation of the same period removed all files of it."""
    for part in range(4):
        tape.append([Tick("A", T0 + (i * 4 + part) * SECOND, price=1.0 + i, size=1.0) for i in range(500)])
        tape.seal()
    before, bars = _rows(tape), tape.bar_list("A")
    assert len(before) == 2000
    for _ in range(3):
        tape.compact()
        assert _rows(tape) == before and tape.bar_list("A") == bars
    assert tape.doctor(full=True).healthy


def test_an_overlapping_backfill_leaves_the_tape_writable_and_readable(tape):
    """Nautilus: files whose intervals overlap made every later write of the catalogue fail."""
    tape.append([Tick("A", T0 + i * SECOND, price=float(i)) for i in range(1000)])
    tape.seal()
    tape.append([Tick("A", T0 + i * SECOND, price=float(i)) for i in range(500, 1500)])
    tape.seal()
    tape.compact()
    tape.append(Tick("A", T0 + 700 * SECOND, price=-1.0))
    times = [row["ts_event_ns"] for row in _rows(tape)]
    assert len(times) == 2001 and times == sorted(times)
    assert tape.latest("A").ts_event_ns == T0 + 1499 * SECOND


def test_memory_of_the_newest_is_the_same_after_ten_times_as_many_ticks(tape):
    """Nautilus: a live process grew by what it received until it was killed."""

    def held():
        assert len(tape.recent("A")) == 1000
        return sum(symbol.bytes for symbol in tape.memory())

    def feed(count, start):
        for first in range(start, start + count, 500):
            tape.append([Tick("A", T0 + i * SECOND, price=i % 97 / 4, size=1.0) for i in range(first, first + 500)])

    feed(3000, 0)
    early = held()
    feed(30_000, 3000)
    assert held() < early * 1.5


def test_eight_readers_read_at_the_same_time(tape, monkeypatch):
    """ArcticDB: reads in parallel took a thousand times as long as one alone, each in the others' way."""
    tape.append([Tick("A", T0 + i * SECOND, price=i % 97 / 4, size=1.0) for i in range(20_000)])
    tape.seal()
    inside, ticks, rows = threading.Barrier(8), query.ticks, []

    def when_all_are_inside(*args, **options):
        inside.wait(60)  # it breaks, and with it the read, where one waits for another
        found = ticks(*args, **options)
        inside.wait(60)
        return found

    monkeypatch.setattr(query, "ticks", when_all_are_inside)
    threads = [threading.Thread(target=lambda: rows.append(tape.read("A").num_rows)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows == [20_000] * 8


def test_a_locked_tape_is_waited_for_and_the_record_is_kept(tape, path):
    """Freqtrade: `database is locked` after the order was filled, and no record of it."""
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    release.start()
    done = tape.append(Tick("A", T0, price=1.0))
    release.join()
    other.close()
    assert done.stored == 1 and [row["price"] for row in _rows(tape)] == [1.0]


def test_a_writer_that_cannot_store_says_so_and_keeps_what_it_took(path):
    """QuestDB: ingest went on accepting for 17 days what nothing wrote any more."""
    with onetape.open(path, retention_days=None, busy_timeout_ms=50) as tape:
        tape.append(Tick("A", T0, price=1.0))
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        writer = tape.writer(max_delay_ms=60_000)
        writer.append(Tick("A", T0 + 1, price=2.0))
        with pytest.raises(onetape.TapeBusy):
            writer.flush()
        other.execute("ROLLBACK")
        other.close()
        writer.flush()
        assert [row["price"] for row in _rows(tape)] == [1.0, 2.0]


def test_a_torn_tail_of_the_log_does_not_stop_the_next_writer(tape, path, tmp_path):
    """QuestDB: a tail torn by a crash froze the writer of its table."""
    for i in range(50):
        tape.append(Tick("A", T0 + i * SECOND, price=float(i)))
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    log = layout.wal_path(path).read_bytes()
    layout.wal_path(copy).write_bytes(log[: len(log) - 700])
    with onetape.open(copy, retention_days=None) as found:
        kept = len(_rows(found))
        assert kept >= 49
        found.append(Tick("A", T0 + 99 * SECOND, price=99.0))
        assert [row["price"] for row in _rows(found)] == [*map(float, range(kept)), 99.0]


def test_equal_ticks_of_one_moment_are_all_kept_through_seal_and_compaction(tape):
    """pystore: an append dropped what equalled a row that was there; a sixth of a real equity day is such rows."""
    same = Tick("A", T0, price=10.0, size=100.0, source="tape")
    tape.append([same] * 3)
    tape.seal()
    tape.append([same] * 2)
    tape.append(same)
    tape.compact()
    assert len(_rows(tape)) == 6
    assert [(bar.trades, bar.volume) for bar in tape.bar_list("A")] == [(6, 600.0)]


def test_a_tick_ten_milliseconds_late_is_stored_in_its_place_and_is_not_the_latest(tape):
    """Arctic: an append into a buffered batch raised for a tick that was a little late."""
    tape.append([Tick("A", T0 + i * SECOND, price=float(i)) for i in range(3)])
    tape.append(Tick("A", T0 + 2 * SECOND - 10_000_000, price=50.0))
    assert [row["price"] for row in _rows(tape)] == [0.0, 1.0, 50.0, 2.0]
    assert tape.latest("A").price == 2.0


def test_a_backfill_begun_again_after_a_restart_stores_nothing_twice(path):
    """marketstore: a restart fetched and wrote the whole history again."""
    parts = [[Tick("A", T0 + (day * 100 + i) * SECOND, price=1.0) for i in range(100)] for day in range(3)]
    stored = []
    for upto in (2, 3):
        with onetape.open(path, retention_days=None) as tape:
            stored += [tape.append(part, batch=f"day-{at}").stored for at, part in enumerate(parts[:upto])]
    assert stored == [100, 100, 0, 0, 100]


@pytest.mark.parametrize("first", ["2026-03-06", "2026-10-30"])
def test_a_week_with_a_change_of_clocks_has_one_daily_bar_for_each_trading_day(tape, first):
    """QuestDB: a phantom daily bar, or a missing one, in the week in which clocks change."""
    zone = zoneinfo.ZoneInfo("America/New_York")
    begin = int(datetime.fromisoformat(first).replace(tzinfo=zone).timestamp()) * SECOND
    tape.append([Tick("A", begin + i * MINUTE_NS, price=1.0, size=1.0) for i in range(6 * 1440)])
    found = tape.bar_list("A", "1d", session="XNYS")
    starts = [datetime.fromtimestamp(bar.ts_start_ns // SECOND, zone) for bar in found]
    assert {(start.hour, start.minute) for start in starts} == {(9, 30)}
    assert len({bar.session for bar in found}) == len(found) == 4
    assert {bar.trades for bar in found} == {390}


def test_prices_of_mixed_precision_in_one_chunk_come_back_bit_for_bit(tape):
    """Nautilus: one precision for a file, taken from its first row, changed the others' values."""
    prices = [1.0, 0.1, 1e-8, 123456.789, 0.1 + 0.2, 6012.25, -3.75, 1e15 + 0.5, 99.99999999, 2.5]
    tape.append([Tick("A", T0 + i, price=prices[i % 10], size=prices[-1 - i % 10] + 4) for i in range(3000)])
    tape.seal()
    tape.compact()
    found = tape.read("A")
    assert found["price"].to_pylist() == [prices[i % 10] for i in range(3000)]
    assert found["size"].to_pylist() == [prices[-1 - i % 10] + 4 for i in range(3000)]


def test_the_first_moment_of_a_year_is_a_bar_of_that_year(tape):
    """marketstore: the bar at the very beginning of a year could not be written."""
    tape.append([Tick("A", T0 - 1, price=1.0, size=1.0), Tick("A", T0, price=2.0, size=1.0)])
    tape.append(onetape.Bar("A", "1d", T0, 2.0, 2.0, 2.0, 2.0, source="vendor"))
    assert [(bar.ts_start_ns, bar.close) for bar in tape.bar_list("A", start=T0)] == [(T0, 2.0)]
    assert [bar.close for bar in tape.bar_list("A", end=T0)] == [1.0]
    given = tape.bar_list("A", "1d", start=T0, source="vendor")
    assert [(bar.ts_start_ns, bar.close) for bar in given] == [(T0, 2.0)]


def test_crossed_one_sided_and_empty_quotes_and_sizes_of_zero_are_kept_as_they_are(tape):
    """12 % of a real FX day are crossed, 14 % of a real futures day one-sided, and some of its prints of size zero."""
    given = [
        Tick("A", T0, bid=1.2, ask=1.1),
        Tick("A", T0 + 1, bid=1.2),
        Tick("A", T0 + 2, ask=1.3, ask_size=0.0),
        Tick("A", T0 + 3, price=1.0, size=0.0),
    ]
    assert tape.append(given).stored == 4
    tape.seal()
    names = ("bid", "ask", "ask_size", "price", "size")
    found = [tuple(row.get(name) for name in names) for row in _rows(tape)]
    assert found == [tuple(getattr(tick, name) for name in names) for tick in given]
    assert [(bar.volume, bar.trades) for bar in tape.bar_list("A")] == [(0.0, 1)]


def test_trades_of_one_millisecond_keep_their_order_and_tenths_of_a_microsecond(tape):
    """Several trades share a millisecond: which was the last decides the close. Some vendors tell 0.1 µs."""
    moment = T0 + 579_427_100
    prices = [5.0, 3.0, 9.0, 1.0, 7.0]
    tape.append([Tick("A", moment, price=price, size=1.0) for price in prices])
    tape.append(Tick("A", moment - 100, price=4.0, size=1.0))
    for act in (tape.seal, tape.compact):
        assert [row["price"] for row in _rows(tape)] == [4.0, *prices]
        assert _rows(tape)[0]["ts_event_ns"] == moment - 100
        bar = tape.bar_list("A")[0]
        assert (bar.open, bar.close, bar.high, bar.low) == (4.0, 7.0, 9.0, 1.0)
        act()
