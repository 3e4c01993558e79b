"""Edges of the store: the ends of time, long appends of few, files of an older format, and what codecs stumble over."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import subprocess
import sys
import threading
import time

import apsw
import numpy as np
import pytest

import onetape
from onetape import Bar, Tick
from onetape.record import SeqRange
from onetape.store import bars, layout, moments, packed, spans
from onetape.store.layout import index_path
from onetape.writer import AsyncWriter, Writer

T0 = 1_700_000_000_000_000_000
MINUTE = 60_000_000_000
LAST = 2**63 - 2


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        yield opened


@pytest.mark.parametrize("ends", [(LAST, LAST - 1), (0, 0)])
def test_a_late_trade_and_a_cancel_in_the_first_and_the_last_minute_of_time_are_in_their_bar(tape, ends):
    newest, late = ends
    tape.append(Tick("A", newest, price=1.0, size=1.0))
    tape.seal()
    done = tape.append(Tick("A", late, price=2.0, size=2.0))
    for _ in range(2):
        assert [(bar.trades, bar.volume) for bar in tape.bar_list("A")] == [(2, 3.0)]
        assert tape.bar_list("A", "7min")[0].volume == 3.0
        tape.seal()
    tape.cancel(Tick("A", late, price=2.0, size=2.0, seq=done.last))
    for _ in range(2):
        assert [(bar.trades, bar.volume) for bar in tape.bar_list("A")] == [(1, 1.0)]
        tape.compact()
    assert tape.read("A", columns=["ts_event_ns"]).to_pydict() == {"ts_event_ns": [newest]}


def test_compaction_keeps_when_spans_of_an_older_format_were_sealed(tape):
    for start in range(0, 300, 100):
        tape.append([Tick("A", T0 + start + i, price=1.0) for i in range(100)])
        tape.seal()
    connection = tape._writer_connection
    connection.execute("UPDATE span SET moments = x'', at_ms = 1000000000000 + seal")  # as the upgrade leaves them
    asked = [1000000000000 + after for after in (-1, 99, 100, 150, 200, 299, 300, 1000)]
    before = [moments.position_at(connection, ms * 1_000_000) for ms in asked]
    assert before == [0, 0, 100, 100, 200, 200, 300, 300]
    tape.compact()
    assert connection.execute("SELECT count(*) FROM span").get == 1
    assert [moments.position_at(connection, ms * 1_000_000) for ms in asked] == before


def test_a_file_that_cannot_shrink_is_compacted_and_pruned_all_the_same(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        tape.append([Tick("A", T0 + i, price=float(i % 7)) for i in range(4000)])
    other = apsw.Connection(str(path))
    other.pragma("journal_mode", "delete")
    other.pragma("auto_vacuum", 0)  # as SQLite's own shell leaves a file it has dumped and read again
    other.execute("VACUUM")
    other.close()
    with onetape.open(path, retention_days=None) as tape:
        tape.seal()
        assert tape.compact().records == 4000
        assert tape.prune(now=T0 + 10**18, retention_days=1) == 4000


def test_what_a_writer_of_long_groups_stores_is_sealed(tape):
    with tape.writer(max_delay_ms=60_000, max_records=2 * layout.DIRECT_RECORDS) as writer:
        for i in range(8 * layout.DIRECT_RECORDS):
            writer.append(Tick("A", T0 + i, price=1.0))
    stats = tape.stats()
    assert stats.head == 8 * layout.DIRECT_RECORDS
    assert stats.unsealed < layout.SEAL_RECORDS_TAIL


def test_ticks_and_bars_in_turns_are_sealed_together_however_many(tape):
    turns = layout.DIRECT_RECORDS // 2
    records = [
        record
        for i in range(turns)
        for record in (Tick("A", T0 + i, price=1.0), Bar("A", "1min", 60 * 10**9 * i, 1.0, 1.0, 1.0, 1.0))
    ]
    tape.append(records)
    tape.seal()
    stats = tape.stats()
    assert (stats.ticks, stats.bars_given) == (turns, turns)
    assert stats.chunks <= 4 + turns // 1440  # one for each kind and day
    assert [record.seq for record in tape.follow(from_seq=0, idle_s=0)] == list(range(1, 2 * turns + 1))


def test_compacting_succeeds_while_another_is_moving_the_log(tape):
    tape.append([Tick("A", T0 + i, price=1.0) for i in range(100)])
    # The lock of whoever moves the log, as SQLite takes it: byte 121 of the log's index.
    lock = index_path(tape.path).open("r+b")
    fcntl.fcntl(lock, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 121, 1, 0))
    try:
        assert tape.compact().records == 100
    finally:
        lock.close()


def test_prices_whose_products_overflow_are_sealed_and_their_bars_are_read(tape):
    tape.append([Tick("A", T0 + i, price=1e300, size=1e300, side=1) for i in range(10)])
    for _ in range(2):
        assert [(bar.high, bar.volume > 9e300, bar.trades) for bar in tape.bar_list("A")] == [(1e300, True, 10)]
        tape.compact()


@pytest.mark.parametrize("others", [[], [MINUTE], [-MINUTE], [-MINUTE, MINUTE, 2 * MINUTE]])
def test_a_minute_of_more_trades_than_are_folded_at_once_is_one_bar(tape, others):
    long = 5 * bars._SLICE_RECORDS
    start = T0 // MINUTE * MINUTE
    ts = np.sort(np.concatenate((start + np.arange(long), [start + offset for offset in others])).astype("<i8"))
    tape.append_table({"symbol": "A", "ts_event_ns": ts, "price": np.arange(len(ts)) / 4, "size": 1.0})
    assert {bar.ts_start_ns: (bar.trades, bar.volume) for bar in tape.bar_list("A")} == {
        **{start + offset: (1, 1.0) for offset in others},
        start: (long, float(long)),
    }


def test_long_appends_and_reads_work_while_python_is_ending(tmp_path):
    code = """
import atexit, sys
import numpy as np, onetape
tape = onetape.open(sys.argv[1], retention_days=None)
def last():
    table = {"symbol": "A", "ts_event_ns": np.arange(200_000), "price": np.arange(200_000) / 4}
    print(tape.append_table(table).stored, tape.read("A").num_rows)
atexit.register(last)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t.db")], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("200000 200000\n", "")


def test_tasks_that_share_a_writer_never_commit_in_the_event_loop():
    threads = set()

    def commit(runs, _wait):
        threads.add(threading.get_ident())
        time.sleep(0.001)
        return SeqRange(1, 1, sum(len(run.rows) for run in runs))

    async def run() -> int:
        writer = Writer(lambda _tick: (1, b""), commit, max_delay_ms=60_000, max_records=1)

        async def write() -> None:
            for i in range(5):
                await shared.append(Tick("A", T0 + i, price=1.0))

        async with AsyncWriter(writer, blocks=True) as shared:
            await asyncio.gather(*(write() for _ in range(8)))
        return writer.stored

    assert asyncio.run(run()) == 40
    assert threads
    assert threading.get_ident() not in threads


def test_a_damaged_chunk_holds_up_neither_retention_nor_the_merging_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "SEAL_RECORDS", 10)
    monkeypatch.setattr(spans, "MERGE_SPANS", 4)
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        for i in range(20):
            tape.append(Tick("A", T0 + i, price=1.0))
        raw = apsw.Connection(str(path))
        raw.execute("UPDATE chunk SET payload = zeroblob(50) WHERE id = (SELECT min(id) FROM chunk)")
        raw.close()
        for i in range(20, 200):
            tape.append(Tick("A", T0 + i, price=1.0))
        stats = tape.stats()
        assert stats.seal_error is None
        assert stats.seal == 200
        assert stats.chunks < 20
        assert tape.read("A", T0 + 100).num_rows == 100


def test_the_counts_of_a_tape_whose_file_is_gone_are_an_error_that_says_so(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        tape.append(Tick("A", T0, price=1.0))
        assert tape.stats().head == 1
        (tmp_path / "t.db").rename(tmp_path / "elsewhere.db")
        with pytest.raises(onetape.TapeMissing, match="is gone"):
            tape.stats()
        (tmp_path / "elsewhere.db").rename(tmp_path / "t.db")
        assert tape.stats().head == 1


def test_kept_bars_are_counted_by_the_hour_and_by_the_day(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        tape.append([Tick("A", T0 + i * 60 * 10**9, price=1.0) for i in range(300)])  # over midnight
        tape.seal()
        assert tape.stats().bars_kept == 300
        tape.compact()
        assert tape.stats().bars_kept == 300
        tape.append(Tick("A", T0 + 7, price=2.0))
        tape.seal()
        assert tape.stats().bars_kept == 300


def _days_of_bars(tape, days=3):
    """A tick a minute on some days, sealed, and the bars packed by the day."""
    day = 86_400 * 10**9
    start = T0 // day * day
    for number in range(days):
        tape.append_table(
            {
                "symbol": "A",
                "ts_event_ns": [start + number * day + i * 60 * 10**9 for i in range(1440)],
                "price": [100.0 + i % 7 for i in range(1440)],
                "size": 1.0,
            }
        )
    tape.compact()
    return start, day


def test_retention_of_bars_leaves_the_rest_of_a_packed_day(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        start, day = _days_of_bars(tape)
        raw = apsw.Connection(str(path))
        raw.execute("UPDATE chunk SET sealed_ns = ts_max")
        raw.close()
        noon_of_the_second = start + day + day // 2
        asked = {"now": noon_of_the_second + 10 * day, "retention_days": 5, "bar_retention_days": 10}
        assert tape.prune_plan(**asked).bar_hours == 24
        tape.prune(**asked)
        assert tape.bar_list("A")[0].ts_start_ns <= noon_of_the_second
        assert len(tape.bar_list("A", start=noon_of_the_second)) == 720 + 1440


def test_a_repair_of_a_packed_days_bars_makes_the_whole_day_again(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        _days_of_bars(tape)
        before = tape.bar_list("A")
    for damage in (
        "UPDATE minute SET payload = CAST(substr(payload, 1, 200) || zeroblob(40) || substr(payload, 241) AS BLOB)",
        "UPDATE minute SET payload = CAST(x'07' || substr(payload, 2) AS BLOB)",
    ):
        raw = apsw.Connection(str(path))
        raw.execute(damage + " WHERE id = (SELECT min(id) FROM minute)")
        raw.close()
        onetape.repair(path, execute=True)
        with onetape.open(path, retention_days=None) as tape:
            assert tape.bar_list("A") == before
            tape.compact()


def test_a_repair_of_one_wrong_bar_leaves_the_rest_of_its_packed_day(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        _days_of_bars(tape)
        before = tape.bar_list("A")
    raw = apsw.Connection(str(path))
    row_id, payload = raw.execute("SELECT id, payload FROM minute ORDER BY id LIMIT 1").fetchall()[0]
    kind, columns = packed.unpack(payload[1:], "the bars")
    columns["close"][0] = 99.0
    raw.execute("UPDATE minute SET payload = ? WHERE id = ?", (payload[:1] + packed.pack(kind, columns), row_id))
    raw.close()
    onetape.repair(path, execute=True)
    with onetape.open(path, retention_days=None) as tape:
        assert tape.bar_list("A") == before


def test_corrections_are_awaited_off_the_event_loop(tmp_path):
    async def correct(tape):
        tape.append([Tick("A", T0 + i, price=float(i)) for i in range(3)])
        first, second, _ = tape.recent("A")
        await tape.acancel(first)
        await tape.arevise(second, Tick("A", T0 + 1, price=9.0))

    with onetape.open(tmp_path / "t.db") as tape:
        asyncio.run(correct(tape))
        assert [tick.price for tick in tape.recent("A")] == [9.0, 2.0]
