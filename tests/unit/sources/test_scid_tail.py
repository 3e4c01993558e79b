"""A .scid file that is followed while it is written, cut, replaced and removed."""

from __future__ import annotations

import threading
import time

import pytest
from tests import sierra_files as sierra

import onetape
from onetape.errors import ConfigInvalid
from onetape.record import Bar
from onetape.sources import registry
from onetape.sources.scid import ScidTail

DAY_US = 1_767_600_000_000_000  # 2026-01-05 08:00 UTC
MINUTE_US = 60_000_000


class Following:
    """A tail in a thread of its own, and what it gave."""

    def __init__(self, path, cursor=None, **options):
        self.source = ScidTail(path, "ESZ6", **options)
        self.source.resume(cursor)
        self.records, self.cursors, self.empty, self.covers = [], [cursor], 0, []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.source.close()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self):
        for delivery in self.source:
            if delivery.columns is not None:
                self.records += delivery.columns["price"].tolist()
            self.records += [r if isinstance(r, Bar) else r.price for r in delivery.records]
            self.empty += not delivery.count
            self.covers += delivery.covers
            if delivery.cursor is not None:
                self.cursors.append(delivery.cursor)

    def until(self, done):
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline, (self.records[-5:], self.source.stats)
            time.sleep(0.005)

    def until_records(self, count):
        self.until(lambda: len(self.records) >= count)

    def until_trouble(self, words):
        self.until(lambda: words in (self.source.stats.trouble or ""))


def _trades(start, end, at_us=DAY_US):
    return [sierra.trade(at_us + at, 100 + at) for at in range(start, end)]


def _append(path, *records):
    with path.open("ab") as file:
        file.write(b"".join(records))


def _prices(start, end):
    return [100.0 + at for at in range(start, end)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ESZ6.scid"


def test_what_is_there_comes_first_and_then_what_is_written(path):
    sierra.write(path, _trades(0, 1000))
    with Following(path) as tail:
        tail.until_records(1000)
        tail.until(lambda: tail.empty)  # connected, and nothing happened
        for at in range(1000, 1010, 2):
            _append(path, *_trades(at, at + 2))
            tail.until_records(at + 2)
        stats = tail.source.stats
    assert tail.records == _prices(0, 1010)
    assert (stats.state, stats.trouble, stats.records) == ("live", None, 1010)
    assert stats.flush_lag_ms > 0
    assert "notice_ms" in stats.facts
    assert tail.source.stats.state == "ended"


def test_only_what_flushes_close_to_each_other_enclose_is_covered(path):
    sierra.write(path, _trades(0, 3))
    with Following(path) as tail:
        tail.until_records(3)
        tail.until(lambda: tail.empty)
        _append(path, sierra.trade(DAY_US + 5_000_000, 5))
        tail.until_records(4)
        _append(path, sierra.trade(DAY_US + 500_000_000, 6))
        tail.until_records(5)
        tail.until(lambda: tail.empty > 1)
    assert tail.covers == [("ESZ6", (DAY_US + 2) * 1000, (DAY_US + 5_000_000) * 1000)]
    assert not tail.source.live  # a feed is not to cover the silence of a file


@pytest.mark.parametrize("cut", [1, 8, 39])
def test_half_a_record_is_waited_for(path, cut):
    sierra.write(path, _trades(0, 2))
    (record,) = _trades(2, 3)
    with Following(path) as tail:
        tail.until_records(2)
        _append(path, record[:cut])
        tail.until(lambda: tail.empty)
        assert len(tail.records) == 2
        _append(path, record[cut:])
        tail.until_records(3)
    assert tail.records == _prices(0, 3)


def test_it_goes_on_behind_its_cursor_wherever_it_was_ended(path):
    sierra.write(path, _trades(0, 10))
    with Following(path) as tail:
        tail.until_records(10)
    _append(path, *_trades(10, 15))
    with Following(path, tail.cursors[-1]) as tail:
        tail.until_records(5)
        tail.until(lambda: tail.empty)
    assert tail.records == _prices(10, 15)


def test_a_file_that_is_missing_is_waited_for(path):
    with Following(path) as tail:
        tail.until_trouble("No such file")
        sierra.write(path, _trades(0, 3))
        tail.until_records(3)
    assert tail.records == _prices(0, 3)


def test_a_file_that_is_removed_and_comes_back_longer_goes_on_without_a_repeat(path):
    sierra.write(path, _trades(0, 5))
    with Following(path) as tail:
        tail.until_records(5)
        path.unlink()
        tail.until_trouble("No such file")
        sierra.write(path, _trades(0, 9))
        tail.until_records(9)
        tail.until(lambda: tail.empty)
    assert tail.records == _prices(0, 9)


def test_a_file_renamed_over_it_is_taken_up_by_time(path, tmp_path):
    sierra.write(path, _trades(10, 15))
    with Following(path) as tail:
        tail.until_records(5)
        sierra.write(tmp_path / "new", _trades(0, 20)).replace(path)  # with older history, as a download has it
        tail.until_records(10)
        tail.until(lambda: tail.source.stats.facts.get("replaced") == 1 and tail.empty)
    assert tail.records == _prices(10, 20)
    assert tail.source.stats.facts["older_records_more"] == 10


def test_a_file_written_anew_in_its_place_bit_by_bit_is_neither_lost_nor_doubled(path):
    sierra.write(path, _trades(10, 15))
    with Following(path) as tail:
        tail.until_records(5)
        path.write_bytes(b"")
        tail.until_trouble("header")
        sierra.write(path, _trades(8, 11))
        tail.until_trouble("older file")
        _append(path, *_trades(11, 13))
        _append(path, *_trades(13, 18))
        tail.until_records(8)
        tail.until(lambda: tail.empty)
    assert tail.records == _prices(10, 18)


def test_a_file_replaced_by_an_older_one_is_told_and_waited_out(path):
    sierra.write(path, _trades(0, 10))
    with Following(path) as tail:
        tail.until_records(10)
        sierra.write(path, _trades(0, 6))
        tail.until_trouble("replaced by an older file")
        assert tail.source.stats.state == "waiting"
        sierra.write(path, _trades(0, 12))
        tail.until_records(12)
    assert tail.records == _prices(0, 12)
    assert tail.source.stats.trouble is None


def test_trades_of_the_same_microsecond_are_counted_when_the_file_is_replaced(path):
    same = [sierra.trade(DAY_US, 100 + at) for at in range(5)]
    sierra.write(path, same[:3])
    with Following(path) as tail:
        tail.until_records(3)
        sierra.write(path, [sierra.trade(DAY_US - 5, 1), *same, sierra.trade(DAY_US + 1, 200)])
        tail.until_records(6)
        tail.until(lambda: tail.empty)
    assert tail.records == [100, 101, 102, 103, 104, 200]


def test_a_last_bar_written_anew_comes_as_a_revision_and_once_more_when_it_is_over(path):
    now_us = time.time_ns() // 1000 // MINUTE_US * MINUTE_US
    bars = [sierra.bar(now_us + at * MINUTE_US, 10, 12, 9, 11) for at in (-30, -20, -10, 0)]
    sierra.write(path, bars)
    with Following(path, interval_ns=600 * 10**9) as tail:
        tail.until_records(4)
        sierra.write(path, [*bars[:3], sierra.bar(now_us, 10, 13, 9, 12.5)])
        tail.until_records(5)
        _append(path, sierra.bar(now_us + 10 * MINUTE_US, 13, 13, 13, 13))
        tail.until_records(7)
        tail.until(lambda: tail.empty)
    shown = [
        ((bar.ts_start_ns // 1000 - now_us) // MINUTE_US, bar.close, bar.revision, bar.complete) for bar in tail.records
    ]
    assert shown == [
        (-30, 11, 0, True),
        (-20, 11, 0, True),
        (-10, 11, 0, True),
        (0, 11, 0, False),
        (0, 12.5, 1, False),
        (0, 12.5, 2, True),
        (10, 13, 0, False),
    ]
    assert all(bar.interval == "10min" for bar in tail.records)


def test_a_bar_written_anew_while_nobody_looked_is_a_revision_too(path):
    bars = [sierra.bar(DAY_US + at * MINUTE_US, 10, 12, 9, 11) for at in range(3)]
    sierra.write(path, bars)
    with Following(path) as tail:
        tail.until_records(3)
    sierra.write(path, [*bars[:2], sierra.bar(DAY_US + 2 * MINUTE_US, 10, 12, 9, 9.5)])
    with Following(path, tail.cursors[-1]) as tail:
        tail.until_records(1)
        tail.until(lambda: tail.empty)
    assert [(bar.close, bar.revision) for bar in tail.records] == [(9.5, 1)]


def test_a_bar_alone_waits_for_a_second_one_that_tells_its_length(path):
    sierra.write(path, [sierra.bar(DAY_US, 10, 12, 9, 11)])
    with Following(path) as tail:
        tail.until_trouble("give the source an interval")
        _append(path, sierra.bar(DAY_US + MINUTE_US, 10, 12, 9, 11))
        tail.until_records(2)
    assert {bar.interval for bar in tail.records} == {"1min"}


@pytest.mark.parametrize("raw", [b"SCDD" + sierra.header()[4:], sierra.header()[:40], sierra.header(record_bytes=12)])
def test_a_file_with_a_damaged_header_is_told_and_read_once_it_is_whole(path, raw):
    path.write_bytes(raw)
    with Following(path) as tail:
        tail.until_trouble("header")
        sierra.write(path, _trades(0, 3))
        tail.until_records(3)
    assert tail.records == _prices(0, 3)


@pytest.mark.parametrize(("us", "says"), [(5 * 10**15, "from the future"), (-sierra.EPOCH_US, "its time is none")])
def test_a_record_of_no_possible_time_holds_what_follows_until_it_is_put_right(path, us, says):
    sierra.write(path, [*_trades(0, 2), sierra.trade(us, 7.0), *_trades(3, 4)])
    with Following(path) as tail:
        tail.until_records(2)
        tail.until_trouble(says)
        assert "record 3" in tail.source.stats.trouble
        sierra.write(path, _trades(0, 4))
        tail.until_records(4)
    assert tail.records == _prices(0, 4)


def test_a_source_can_begin_at_a_time_instead_of_the_whole_file(path):
    sierra.write(path, _trades(0, 10))
    with Following(path, start_ns=(DAY_US + 7) * 1000) as tail:
        tail.until_records(3)
    assert tail.records == _prices(7, 10)
    with Following(path, start_ns=-1) as tail:
        tail.until(lambda: tail.empty)
        _append(path, sierra.trade(time.time_ns() // 1000, 5.0))
        tail.until_records(1)
    assert tail.records == [5.0]


def test_a_cursor_of_something_else_is_refused(path):
    with pytest.raises(ConfigInvalid, match="no place"):
        ScidTail(path, "ESZ6").resume("17-0")


def test_a_source_is_made_of_a_table(path):
    source = registry.make({"kind": "scid", "name": "es", "path": str(path), "tick_size": 0.25})
    assert (source.name, source.cursor_name) == ("es", "source:es")
    for wrong in ({"tick_size": "0"}, {"interval": "1 parsec"}, {"start": "soon"}, {"colour": "red"}):
        with pytest.raises(ConfigInvalid):
            registry.make({"kind": "scid", "path": str(path), **wrong})


def test_what_the_tail_gives_can_be_stored_with_its_cursor(path, tmp_path):
    sierra.write(path, _trades(0, 600))
    with onetape.open(tmp_path / "tape.db") as tape:
        for _ in range(2):
            source = ScidTail(path, "ESZ6")
            before = tape.cursor(source.cursor_name)
            source.resume(before)
            for delivery in source:
                cursor = (source.cursor_name, before, delivery.cursor) if delivery.cursor else None
                if delivery.columns is not None:
                    tape.append_table(delivery.columns, cursor=cursor)
                elif delivery.records:
                    tape.append(delivery.records, cursor=cursor)
                else:
                    source.close()
                before = delivery.cursor or before
            _append(path, *_trades(600, 700)) if tape.latest("ESZ6").price < 750 else None
        found = tape.read("ESZ6", 0, onetape.record.TS_MAX_NS)["price"].to_pylist()
    assert found == _prices(0, 700)
