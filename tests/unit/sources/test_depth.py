"""Order books from .depth files, in the file and as they are written."""

from __future__ import annotations

import threading
import time

import pytest
from tests import sierra_files as sierra

from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.sources import depth_file, registry
from onetape.sources.depth import DepthTail
from onetape.sources.depth_file import ADD_ASK, ADD_BID, CLEAR, DELETE_ASK, END_OF_BATCH, MODIFY_BID

DAY_US = 1_767_600_000_000_000  # 2026-01-05 08:00 UTC
DAY, NEXT = "2026-01-05", "2026-01-06"
#: A book of two bids and an ask, in one batch.
WHOLE = [
    sierra.depth(DAY_US, CLEAR),
    sierra.depth(DAY_US, ADD_BID, 6000.0, 5, 2),
    sierra.depth(DAY_US, ADD_BID, 5999.75, 9, 4),
    sierra.depth(DAY_US, ADD_ASK, 6000.25, 3, 1, END_OF_BATCH),
]


def _write(folder, day, messages, **of_header):
    path = folder / f"ESZ26.{day}.depth"
    path.write_bytes(sierra.depth_header(**of_header) + b"".join(messages))
    return path


def _append(path, *messages):
    with path.open("ab") as file:
        file.write(b"".join(messages))


class Following:
    def __init__(self, folder, cursor=None, **options):
        self.source = DepthTail(folder, "ESZ6", "ESZ26", **options)
        self.source.resume(cursor)
        self.ticks, self.cursors, self.empty = [], [cursor], 0
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
            self.ticks += delivery.records
            self.empty += delivery.cursor is None
            self.cursors += [delivery.cursor] if delivery.cursor else []

    def until(self, done):
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline, (self.ticks[-3:], self.source.stats)
            time.sleep(0.005)

    @property
    def book(self):
        return self.source.books["ESZ6"]

    @property
    def quotes(self):
        return [(tick.bid, tick.bid_size, tick.ask, tick.ask_size) for tick in self.ticks]


def test_a_book_is_rebuilt_and_its_best_comes_as_quotes(tmp_path):
    path = _write(tmp_path, DAY, WHOLE)
    with Following(tmp_path) as tail:
        tail.until(lambda: tail.ticks)
        assert [tuple(level) for level in tail.book.bids()] == [(6000.0, 5.0, 2), (5999.75, 9.0, 4)]
        _append(path, sierra.depth(DAY_US + 1000, MODIFY_BID, 6000.0, 7, 3, END_OF_BATCH))
        _append(path, sierra.depth(DAY_US + 2000, MODIFY_BID, 5999.75, 1, 1, END_OF_BATCH))  # not the best
        _append(path, sierra.depth(DAY_US + 3000, DELETE_ASK, 6000.25, 0, 0, END_OF_BATCH))
        tail.until(lambda: len(tail.ticks) == 3)
        assert tail.book.asks() == []
        assert tail.book.at_ns == (DAY_US + 3000) * 1000
    assert tail.quotes == [(6000.0, 5.0, 6000.25, 3.0), (6000.0, 7.0, 6000.25, 3.0), (6000.0, 7.0, None, None)]


def test_a_batch_is_waited_for_until_it_is_whole(tmp_path):
    path = _write(tmp_path, DAY, WHOLE)
    with Following(tmp_path) as tail:
        tail.until(lambda: tail.ticks)
        half = sierra.depth(DAY_US + 1, ADD_BID, 6000.25, 1, 1, END_OF_BATCH)
        _append(path, sierra.depth(DAY_US + 1, DELETE_ASK, 6000.25), half[:11])
        tail.until(lambda: tail.empty)
        assert tail.book.asks()
        _append(path, half[11:])
        tail.until(lambda: len(tail.ticks) == 2)
    assert tail.quotes[1] == (6000.25, 1.0, None, None)


def test_a_restart_has_the_whole_book_and_gives_no_quote_twice(tmp_path):
    path = _write(tmp_path, DAY, WHOLE)
    with Following(tmp_path) as tail:
        tail.until(lambda: tail.ticks)
    _append(path, sierra.depth(DAY_US + 1000, MODIFY_BID, 6000.0, 7, 3, END_OF_BATCH))
    with Following(tmp_path, tail.cursors[-1]) as tail:
        tail.until(lambda: tail.ticks)
        tail.until(lambda: tail.empty)
        assert len(tail.book.bids()) == 2
    assert tail.quotes == [(6000.0, 7.0, 6000.25, 3.0)]


def test_the_next_days_file_is_taken_up_when_it_is_there(tmp_path):
    _write(tmp_path, DAY, WHOLE)
    with Following(tmp_path) as tail:
        tail.until(lambda: tail.ticks)
        later = DAY_US + 86_400_000_000
        _write(tmp_path, NEXT, [sierra.depth(later, CLEAR), sierra.depth(later, ADD_BID, 6100.0, 1, 1, END_OF_BATCH)])
        tail.until(lambda: len(tail.ticks) == 2)
        assert [level.price for level in tail.book.bids()] == [6100.0]
    assert NEXT in tail.cursors[-1]


def test_a_file_that_is_written_anew_gives_only_what_is_later(tmp_path):
    path = _write(tmp_path, DAY, WHOLE)
    with Following(tmp_path) as tail:
        tail.until(lambda: tail.ticks)
        more = sierra.depth(DAY_US + 5, MODIFY_BID, 6000.0, 8, 3, END_OF_BATCH)
        _write(tmp_path, DAY, WHOLE[:2])
        tail.until(lambda: tail.source.stats.reconnects)
        _append(path, *WHOLE[2:], more)
        tail.until(lambda: len(tail.ticks) == 2)
    assert tail.quotes[1] == (6000.0, 8.0, 6000.25, 3.0)


def test_messages_that_cannot_be_are_counted_and_the_rest_taken(tmp_path):
    ahead = time.time_ns() // 1000 + 400 * 86_400_000_000
    bad = [
        sierra.depth(DAY_US, 99, 1.0, 1),
        sierra.depth(DAY_US, ADD_BID, float("nan"), 1),
        sierra.depth(-sierra.EPOCH_US, ADD_BID, 1.0, 1),
        sierra.depth(ahead, ADD_BID, 1.0, 1),
    ]
    _write(tmp_path, DAY, [*WHOLE[:3], *bad, *WHOLE[3:]])
    with Following(tmp_path) as tail:
        tail.until(lambda: tail.ticks)
    assert tail.quotes == [(6000.0, 5.0, 6000.25, 3.0)]
    assert tail.source.stats.refused == 4


def test_no_file_and_a_damaged_one_are_waited_out(tmp_path):
    with Following(tmp_path) as tail:
        tail.until(lambda: "none yet" in (tail.source.stats.trouble or ""))
        path = _write(tmp_path, DAY, WHOLE)
        path.write_bytes(b"SCID" + bytes(60))
        tail.until(lambda: "not with b'SCDD'" in (tail.source.stats.trouble or "") or tail.ticks)
        _write(tmp_path, DAY, WHOLE)
        tail.until(lambda: tail.ticks)
    assert tail.quotes == [(6000.0, 5.0, 6000.25, 3.0)]


def test_a_snapshot_is_of_whole_batches_that_had_ended_by_then():
    later = [sierra.depth(DAY_US + 10, DELETE_ASK, 6000.25), sierra.depth(DAY_US + 12, ADD_ASK, 6001.0, 1, 1, 1)]
    found = list(depth_file.messages(b"".join(WHOLE + later), depth_file.Header()))
    times = [(DAY_US + at) * 1000 for at in (-1, 0, 11, 12, 99)]
    asks = [[level.price for level in shot.asks] for _, shot in depth_file.snapshots(found, times)]
    assert asks == [[], [6000.25], [6000.25], [6001.0], [6001.0]]


def test_headers_that_are_none_are_refused():
    for raw in (b"", sierra.depth_header()[:20], sierra.depth_header(record_bytes=9), b"SCID" + bytes(60)):
        with pytest.raises(ImportInvalid, match="header"):
            depth_file.read_header(raw, "X.depth")


def test_messages_of_which_no_batch_ends_are_taken_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(depth_file, "BATCH_MAX", 100)
    path = _write(tmp_path, DAY, WHOLE[:2])
    with Following(tmp_path) as tail:
        tail.until(lambda: tail.empty)
        assert tail.ticks == []
        _append(path, *(sierra.depth(DAY_US + n, ADD_BID, 7000.0 + n, 5, 2) for n in range(250)))
        tail.until(lambda: len(tail.ticks) == 2)
        assert tail.source.stats.facts["batches_without_end"] == 2
        assert len(tail.book.bids()) == 199
    with Following(tmp_path, tail.cursors[-1]) as again:
        again.until(lambda: again.empty)
        assert again.ticks == []


def test_half_a_batch_at_the_end_of_a_day_is_counted_as_lost(tmp_path):
    _write(tmp_path, DAY, [*WHOLE, *WHOLE[1:3]])
    later = DAY_US + 86_400_000_000
    with Following(tmp_path) as tail:
        tail.until(lambda: tail.ticks)
        _write(tmp_path, NEXT, [sierra.depth(later, CLEAR), sierra.depth(later, ADD_BID, 6100.0, 1, 1, END_OF_BATCH)])
        tail.until(lambda: len(tail.ticks) == 2)
        assert tail.source.stats.dropped == 2


def test_a_source_is_made_of_a_table(tmp_path):
    table = {"kind": "depth", "folder": str(tmp_path), "symbol": "ESZ6", "file_symbol": "ESZ26"}
    assert registry.make(table).books.keys() == {"ESZ6"}
    for wrong in ({"start": "soon"}, {"file_symbol": "../ES"}, {"tick_size": 0}):
        with pytest.raises(ConfigInvalid):
            registry.make({**table, **wrong})
