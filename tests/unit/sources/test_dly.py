"""Daily bars from .dly files."""

from __future__ import annotations

import threading
import time

import pytest

import onetape
from onetape.errors import ImportInvalid
from onetape.importing.formats import Options, import_file
from onetape.sources import registry
from onetape.sources.feed import Feed

HEAD = "Date, Open, High, Low, Close, Volume, OpenInterest\n"
DAYS = ["2026/01/05, 10.5, 12, 9, 11, 1000, 50\n", "2026/01/06, 11, 13, 10, 12.25, 900, 51\n"]
DAY_NS = 86_400_000_000_000


def _closes(tape):
    found = tape.bar_list("ES", "1d", 0, onetape.record.TS_MAX_NS, source="sierra")
    return [(bar.ts_start_ns // DAY_NS, bar.open, bar.close, bar.volume) for bar in found]


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "tape.db") as opened:
        yield opened


def test_lines_become_daily_bars_and_a_file_that_grew_adds_its_new_day(tape, tmp_path):
    path = tmp_path / "ES.dly"
    path.write_text(HEAD + DAYS[0])
    assert import_file(tape, path)[0].stored == 1
    path.write_text(HEAD + "".join(DAYS))
    (done,) = import_file(tape, path)
    assert (done.format, done.stored, done.known) == ("dly", 1, 1)
    assert _closes(tape) == [(20_458, 10.5, 11, 1000), (20_459, 11, 12.25, 900)]


def test_a_day_that_was_written_anew_stands_as_it_is_now(tape, tmp_path):
    path = tmp_path / "ES.dly"
    path.write_text(HEAD + "".join(DAYS))
    import_file(tape, path)
    path.write_text(HEAD + DAYS[0] + DAYS[1].replace("12.25", "12.50"))
    assert import_file(tape, path)[0].stored == 1
    assert [close for _, _, close, _ in _closes(tape)] == [11, 12.5]


def test_prices_are_scaled_and_snapped(tape, tmp_path):
    path = tmp_path / "ES.dly"
    path.write_text(HEAD + "2026/01/05, 451237, 451237, 451237, 451237, 1, 0\n")
    import_file(tape, path, None, Options(multiplier="0.01", tick_size="0.01"))
    assert _closes(tape)[0][1] == 4512.37


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("2026/13/05, 1, 1, 1, 1, 1, 1\n", "line 3, Date"),
        ("2026/01/07, 1, x, 1, 1, 1, 1\n", "line 3, High"),
        ("2026/01/07, 1\n", "line 3, High"),
        ("2199/01/01, 1, 1, 1, 1, 1, 1\n", r"line 3, Date.*in the future"),
    ],
)
def test_a_line_that_is_none_is_named_and_nothing_stored(tape, tmp_path, line, says):
    path = tmp_path / "ES.dly"
    path.write_text(HEAD + DAYS[0] + line)
    with pytest.raises(ImportInvalid, match=says):
        import_file(tape, path)
    assert tape.symbols() == []


def test_a_header_without_prices_is_refused(tape, tmp_path):
    path = tmp_path / "ES.dly"
    path.write_text("Date, Last\n2026/01/05, 1\n")
    with pytest.raises(ImportInvalid, match="no column open, high, low, close"):
        import_file(tape, path)


def test_a_followed_file_gives_each_line_once_and_a_changed_one_again(tmp_path):
    path = tmp_path / "ES.dly"
    source = registry.make({"kind": "dly", "path": str(path)})
    bars, ids = [], []

    def run():
        for delivery in source:
            bars.extend(delivery.records)
            ids.extend(delivery.ids or [])

    def until(count):
        deadline = time.monotonic() + 60
        while len(bars) < count:
            assert time.monotonic() < deadline, source.stats
            time.sleep(0.01)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        path.write_text(HEAD + DAYS[0])
        until(1)
        with path.open("a") as file:
            file.write(DAYS[1][:14])  # half a line
            file.flush()
            time.sleep(0.1)
            file.write(DAYS[1][14:])
        until(2)
        path.write_text(HEAD + DAYS[0] + DAYS[1].replace("12.25", "12.50"))
        until(3)
    finally:
        source.close()
        thread.join(60)
    assert not thread.is_alive()
    assert [bar.close for bar in bars] == [11, 12.25, 12.5]
    assert len(set(ids)) == 3


class Following:
    """A followed file, and the closes that it gave."""

    def __init__(self, path):
        self.source = registry.make({"kind": "dly", "path": str(path)})
        self.bars, self.ids = [], []
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
            self.bars.extend(delivery.records)
            self.ids.extend(delivery.ids or [])

    def until(self, done):
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline, self.source.stats
            time.sleep(0.01)


def test_a_line_whose_last_cell_is_half_written_is_waited_for(tmp_path):
    path = tmp_path / "ES.dly"
    path.write_text(HEAD.replace(", OpenInterest", "") + "2026/01/05, 10.5, 12, 9, 11, 10")
    with Following(path) as tail:
        time.sleep(0.2)
        with path.open("a") as file:
            file.write("00\n")
        tail.until(lambda: tail.bars)
        time.sleep(0.1)
    assert [bar.volume for bar in tail.bars] == [1000]


def test_a_last_line_without_its_end_is_taken_when_nothing_follows(tmp_path):
    path = tmp_path / "ES.dly"
    path.write_text(HEAD + DAYS[0].rstrip())
    with Following(path) as tail:
        tail.until(lambda: tail.bars)


def test_a_day_that_is_changed_back_stands_as_it_was(tape, tmp_path):
    path = tmp_path / "ES.dly"
    wrong = DAYS[1].replace("12.25", "12.75")
    path.write_text(HEAD + "".join(DAYS))
    feed = Feed(registry.make({"kind": "dly", "path": str(path)}), tape)
    thread = threading.Thread(target=feed.run, daemon=True)
    thread.start()
    try:
        for text, close in ((DAYS[1], 12.25), (wrong, 12.75), (DAYS[1], 12.25), (wrong, 12.75), (DAYS[1], 12.25)):
            path.write_text(HEAD + DAYS[0] + text)
            deadline = time.monotonic() + 60
            while [one[2] for one in _closes(tape)] != [11, close]:
                assert time.monotonic() < deadline, (_closes(tape), feed.stats)
                time.sleep(0.01)
    finally:
        feed.close()
        thread.join(60)
    assert not thread.is_alive()
