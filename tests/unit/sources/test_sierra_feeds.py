"""Files of Sierra Chart through a feed onto a tape, ended and begun again."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

from tests import sierra_files as sierra

import onetape
from onetape.record import TS_MAX_NS
from onetape.sources import depth_file, registry
from onetape.sources.feed import Feed

DAY_US = 1_767_600_000_000_000  # 2026-01-05 08:00 UTC


@contextmanager
def _fed(tape, table):
    feed = Feed(registry.make(table), tape)
    thread = threading.Thread(target=feed.run, daemon=True)
    thread.start()
    try:
        yield feed
    finally:
        feed.close()
        thread.join(60)
    assert not thread.is_alive()


def _until(done, feed):
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, feed.stats
        time.sleep(0.01)


def test_a_scid_with_bars_marks_and_a_price_that_is_none_is_stored_once_over_restarts(tmp_path):
    path = tmp_path / "ESZ6.scid"
    bars = [sierra.bar(DAY_US - at * 60_000_000, 10, 12, 9, 11) for at in (3, 2, 1)]
    ticks = [sierra.trade(DAY_US + at, 100 + at) for at in range(700)]
    sierra.write(path, [*bars, *ticks, sierra.trade(DAY_US + 800, float("nan"), bid=1, ask=2)])
    with onetape.open(tmp_path / "tape.db") as tape:
        table = {"kind": "scid", "path": str(path), "tick_size": "0.25"}
        for count, behind in ((700, 704), (703, 707), (703, 707)):
            place = f'"records":{behind},'
            with _fed(tape, table) as feed:
                _until(lambda n=count: len(tape.read("ESZ6", 0, TS_MAX_NS)) == n, feed)
                _until(lambda place=place: place in (tape.cursor("source:scid") or ""), feed)
            if count == 700:
                with path.open("ab") as file:
                    file.write(b"".join(sierra.trade(DAY_US + 900 + at, 5) for at in range(3)))
        assert len(tape.quarantined()) == 1
        assert len(tape.bar_list("ESZ6", "1min", 0, TS_MAX_NS, source="sierra")) == 3


def test_a_dly_is_stored_once_over_restarts_and_a_changed_day_replaces_what_it_was(tmp_path):
    path = tmp_path / "ES.dly"
    head = "Date, Open, High, Low, Close, Volume\n"
    path.write_text(head + "2026/01/05, 1, 2, 1, 2, 9\n2026/01/06, 2, 3, 2, 3, 9\n")
    with onetape.open(tmp_path / "tape.db") as tape:

        def closes():
            return [bar.close for bar in tape.bar_list("ES", "1d", 0, TS_MAX_NS, source="sierra")]

        for _ in range(2):
            with _fed(tape, {"kind": "dly", "path": str(path)}) as feed:
                _until(lambda: closes() == [2, 3] and feed.source.stats.records == 2, feed)
        head_before = tape.stats().head if hasattr(tape.stats(), "head") else None
        path.write_text(head + "2026/01/05, 1, 2, 1, 2, 9\n2026/01/06, 2, 4, 2, 4, 9\n")
        with _fed(tape, {"kind": "dly", "path": str(path)}) as feed:
            _until(lambda: closes() == [2, 4], feed)
        assert head_before is None or tape.stats().head == head_before + 1


def test_quotes_of_a_book_are_stored_once_over_restarts(tmp_path):
    batch = [
        sierra.depth(DAY_US, depth_file.CLEAR),
        sierra.depth(DAY_US, depth_file.ADD_BID, 6000.0, 5, 2),
        sierra.depth(DAY_US, depth_file.ADD_ASK, 6000.25, 3, 1, depth_file.END_OF_BATCH),
    ]
    path = tmp_path / "ES.2026-01-05.depth"
    path.write_bytes(sierra.depth_header() + b"".join(batch))
    with onetape.open(tmp_path / "tape.db") as tape:
        table = {"kind": "depth", "folder": str(tmp_path), "symbol": "ESZ6", "file_symbol": "ES"}
        for bid_size in (5, 6, 7):
            with _fed(tape, table) as feed:
                _until(lambda n=bid_size: (found := tape.latest("ESZ6")) and found.bid_size == n, feed)
            more = sierra.depth(DAY_US + bid_size, depth_file.MODIFY_BID, 6000.0, bid_size + 1, 2, 1)
            with path.open("ab") as file:
                file.write(more)
        found = tape.read("ESZ6", 0, TS_MAX_NS)["bid_size"].to_pylist()
    assert found == [5, 6, 7]
