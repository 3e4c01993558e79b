"""The database of MinhOS: both tables, whatever stands in them, again and again while the old system writes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onetape
from onetape.errors import ImportInvalid
from onetape.importing import predecessor
from onetape.importing.formats import Imported, Options, detect, import_file

T0 = 1_700_000_000
TICKS = (
    "CREATE TABLE market_data(id INTEGER PRIMARY KEY AUTOINCREMENT, symbol TEXT NOT NULL, timestamp REAL, open REAL,"
    " high REAL, low REAL, close REAL, volume INTEGER, bid REAL, ask REAL, bid_size INTEGER, ask_size INTEGER,"
    " last_size INTEGER, vwap REAL, trades INTEGER, source TEXT, metadata JSON,"
    " created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
)
MINUTES = (
    "CREATE TABLE market_data_1min(symbol TEXT, timestamp REAL, open REAL, high REAL, low REAL, close REAL,"
    " volume INTEGER, vwap REAL, trades INTEGER, PRIMARY KEY (symbol, timestamp))"
)
QUARANTINE = Options(on_invalid="quarantine")


@pytest.fixture
def tape(tmp_path: Path) -> Any:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


@pytest.fixture
def old(tmp_path: Path) -> Any:
    made = sqlite3.connect(tmp_path / "market_data.db", isolation_level=None)
    made.execute("PRAGMA journal_mode = WAL")
    made.execute(TICKS)
    made.execute(MINUTES)
    yield made
    made.close()


def _path(tmp_path: Path) -> Path:
    return tmp_path / "market_data.db"


def _add(old: sqlite3.Connection, count: int, first: int = 0) -> None:
    old.execute("BEGIN")
    old.executemany(
        "INSERT INTO market_data(symbol, timestamp, close, last_size, bid, ask) VALUES (?, ?, ?, 1, 1, 2)",
        [("NQ", T0 + i + 0.25, 100 + i % 50) for i in range(first, first + count)],
    )
    old.execute("COMMIT")


def _row(old: sqlite3.Connection, **values: Any) -> None:
    names = ", ".join(values)
    marks = ", ".join("?" for _ in values)
    old.execute(f"INSERT INTO market_data({names}) VALUES ({marks})", tuple(values.values()))


def _counts(results: list[Imported]) -> list[tuple[int, int, int]]:
    return [(one.stored, one.known, one.refused) for one in results]


def test_both_tables_come_over_with_every_column_in_its_place(
    tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape
) -> None:
    _row(old, symbol="NQ", timestamp=1700000000.123456, open=1.0, high=4.0, low=0.5, close=2.5, volume=900, bid=2.25,
         ask=2.75, bid_size=3, ask_size=4, last_size=2, vwap=2.1, trades=7, source="sierra_chart", metadata='{"a": 1}',
         created_at="2023-11-14 22:13:21")  # fmt: skip
    old.execute("INSERT INTO market_data_1min VALUES ('NQ', 1699999980.0, 1, 3, 1, 2, 50, 2.0, 9)")
    found = detect(_path(tmp_path))
    assert found is not None and found.name == "minhos"
    results = import_file(tape, _path(tmp_path))
    assert _counts(results) == [(1, 0, 0), (1, 0, 0)]
    assert "columns not used: metadata" in results[0].notes
    tick = tape.latest("NQ")
    assert tick == onetape.Tick(
        "NQ", 1700000000123456000, price=2.5, size=2.0, bid=2.25, ask=2.75, bid_size=3.0, ask_size=4.0, open=1.0,
        high=4.0, low=0.5, volume=900.0, vwap=2.1, trades=7, source="sierra_chart", ts_recv_ns=1700000001000000000,
        seq=tick.seq if tick else None,
    )  # fmt: skip
    bar = tape.bars("NQ", "1min", source="minhos").to_pylist()[0]
    assert (bar["ts_start_ns"], bar["high"], bar["volume"], bar["trades"]) == (1699999980 * 10**9, 3.0, 50.0, 9)
    assert _counts(import_file(tape, _path(tmp_path))) == [(0, 1, 0), (0, 1, 0)]


@pytest.mark.parametrize(
    ("written", "ns"),
    [
        (1700000000, 1700000000 * 10**9),
        (1700000000.5, 1700000000_500000000),
        (1700000000123, 1700000000_123000000),
        ("1700000000123456", 1700000000_123456000),
        (1700000000123456789, 1700000000_123456789),
        ("1700000000.25", 1700000000_250000000),
        ("2023-11-14T22:13:20", 1700000000 * 10**9),
        (" 2023-11-14 22:13:20.5+00:00 ", 1700000000_500000000),
        ("2023-11-15T03:43:20+05:30", 1700000000 * 10**9),
        (None, None),
        ("", None),
        ("yesterday", None),
        (93005, None),
        (-1.0, None),
        (float("inf"), None),
        (1e30, None),
        (b"\x00\x01", None),
        ("99999-01-01", None),
    ],
)
def test_times_of_every_spelling_are_read_or_refused(tmp_path: Path, tape: onetape.Tape, written: Any, ns: int) -> None:
    old = sqlite3.connect(_path(tmp_path))
    old.execute(TICKS.replace("timestamp REAL", "timestamp"))
    _row(old, symbol="NQ", timestamp=written, close=1.0)
    old.commit()
    old.close()
    if ns is not None:
        assert import_file(tape, _path(tmp_path))[0].ts_first_ns == ns
        return
    with pytest.raises(ImportInvalid, match=r"market_data.db!market_data, row 1, timestamp: .*nothing was stored"):
        import_file(tape, _path(tmp_path))
    assert tape.stats().head == 0
    assert _counts(import_file(tape, _path(tmp_path), options=QUARANTINE)) == [(0, 0, 1)]
    assert len(tape.quarantined()) == 1


def test_local_text_times_are_read_in_the_zone_given(tmp_path: Path, tape: onetape.Tape) -> None:
    old = sqlite3.connect(_path(tmp_path))
    old.execute(TICKS.replace("timestamp REAL", "timestamp TEXT"))
    _row(old, symbol="NQ", timestamp="2023-11-14 16:13:20", close=1.0)
    old.commit()
    old.close()
    options = Options(timezone="America/Chicago")
    assert import_file(tape, _path(tmp_path), options=options)[0].ts_first_ns == T0 * 10**9


def test_text_and_nulls_among_numbers_are_taken_for_what_they_say(
    tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape
) -> None:
    _row(old, symbol="A", timestamp=T0, close="6000.25", bid="", ask=None, volume="12", trades="3", source="unknown")
    _row(old, symbol="B", timestamp=T0, close=None, bid=5)
    import_file(tape, _path(tmp_path))
    a, b = tape.latest("A"), tape.latest("B")
    assert a is not None and b is not None
    assert (a.price, a.bid, a.ask, a.volume, a.trades, a.source) == (6000.25, None, None, 12.0, 3, None)
    assert (b.price, b.bid) == (None, 5.0)


def test_rows_that_no_tick_can_be_are_set_aside_with_their_reasons_once(
    tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape
) -> None:
    _add(old, 3)
    _row(old, symbol="NQ", timestamp=T0, close="12,5")
    _row(old, symbol="NQ", timestamp=T0)
    _row(old, symbol="", timestamp=T0, close=1)
    _row(old, symbol="NQ", timestamp=T0, close=1, bid_size=-4)
    _row(old, symbol=b"\x00", timestamp=T0, close=1)
    _row(old, symbol="NQ", timestamp=T0, close=1, trades=2.5)
    _row(old, symbol="NQ", timestamp=T0, close="1_000")
    old.execute("INSERT INTO market_data_1min VALUES ('NQ', 1699999990.0, 1, 3, 1, 2, 50, 2.0, 9)")
    old.execute("INSERT INTO market_data_1min VALUES ('NQ', 1699999980.0, 1, 0, 1, 2, 50, 2.0, 9)")
    old.execute("INSERT INTO market_data_1min VALUES ('NQ', 1700000040.0, 1, 3, NULL, 2, 50, 2.0, 9)")
    with pytest.raises(ImportInvalid, match="row 4, close: '12,5': not a number; nothing was stored"):
        import_file(tape, _path(tmp_path))
    assert tape.stats().head == 0
    results = import_file(tape, _path(tmp_path), options=QUARANTINE)
    assert _counts(results) == [(3, 0, 7), (0, 0, 3)]
    assert [one.place for one in results[0].first_refused] == [f"row {i}" for i in range(4, 11)]
    assert "row 'NQ' 1699999990.0" in [one.place for one in results[1].first_refused]
    again = import_file(tape, _path(tmp_path), options=QUARANTINE)
    assert (again[0].stored, again[0].known) == (0, 10)
    assert len(tape.quarantined()) == 10


def test_equal_rows_are_all_kept(tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape) -> None:
    for _ in range(5):
        _row(old, symbol="NQ", timestamp=T0, close=1, created_at="2023-11-14 22:13:21")
    assert _counts(import_file(tape, _path(tmp_path)))[0] == (5, 0, 0)
    assert _counts(import_file(tape, _path(tmp_path)))[0] == (0, 5, 0)


def test_each_run_brings_only_what_was_written_since(
    tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predecessor, "WINDOW", 16)
    total = 0
    for count in (1, 5, 10, 16, 0, 40, 3, 100):
        _add(old, count, total)
        assert _counts(import_file(tape, _path(tmp_path)))[0] == (count, total, 0)
        total += count
    assert tape.read("NQ")["ts_event_ns"].to_pylist() == [(T0 + i) * 10**9 + 250_000_000 for i in range(total)]


def test_a_copy_a_pruned_one_and_one_from_a_backup_bring_nothing_twice(
    tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predecessor, "WINDOW", 16)
    _add(old, 50)
    import_file(tape, _path(tmp_path))
    old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    backup = Path(shutil.copy(_path(tmp_path), tmp_path / "renamed.sqlite"))
    assert _counts(import_file(tape, backup))[0] == (0, 50, 0)
    old.execute("DELETE FROM market_data WHERE id <= 33")  # retention
    _add(old, 7, 50)
    assert _counts(import_file(tape, _path(tmp_path)))[0] == (7, 17, 0)
    with sqlite3.connect(backup) as restored:  # it went on from the backup: the same ids, other rows
        _add_to = "INSERT INTO market_data(symbol, timestamp, close) VALUES ('ES', ?, 5)"
        restored.executemany(_add_to, [(T0 + i,) for i in range(9)])
    assert _counts(import_file(tape, backup))[0] == (9, 50, 0)
    assert tape.stats().ticks == 66


def test_a_minute_that_was_written_again_revises_its_bar(
    tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape
) -> None:
    old.execute("INSERT INTO market_data_1min VALUES ('NQ', 1699999980.0, 1, 3, 1, 2, 50, 2.0, 9)")
    old.execute("INSERT INTO market_data_1min VALUES ('NQ', 1700000040.0, 1, 3, 1, 2, 50, 2.0, 9)")
    import_file(tape, _path(tmp_path))
    old.execute("REPLACE INTO market_data_1min VALUES ('NQ', 1699999980.0, 1, 8, 1, 2, 60, 2.0, 9)")
    assert _counts(import_file(tape, _path(tmp_path)))[1] == (1, 1, 0)
    bars = tape.bars("NQ", "1min", source="minhos").to_pylist()
    assert [(bar["high"], bar["revision"]) for bar in bars] == [(8.0, 1), (3.0, 0)]


@pytest.mark.parametrize("without", [False, True])
def test_minutes_are_all_read_whatever_numbers_their_rows(
    tmp_path: Path, tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch, without: bool
) -> None:
    monkeypatch.setattr(predecessor, "WINDOW", 16)
    old = sqlite3.connect(_path(tmp_path))
    old.execute(TICKS)
    old.execute(MINUTES + (" WITHOUT ROWID" if without else ""))
    rows = [(f"S{i % 7}", (T0 // 60 + i // 7) * 60.0, 1, 3, 1, 2, 50, 2.0, i) for i in range(200)]
    old.executemany("INSERT INTO market_data_1min VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    old.commit()
    old.close()
    assert _counts(import_file(tape, _path(tmp_path)))[1] == (200, 0, 0)
    assert _counts(import_file(tape, _path(tmp_path)))[1] == (0, 200, 0)


def test_a_log_that_is_not_in_the_file_yet_is_read_too(
    tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape
) -> None:
    old.execute("PRAGMA wal_autocheckpoint = 0")
    _add(old, 100)
    assert (tmp_path / "market_data.db-wal").stat().st_size > 0
    assert _counts(import_file(tape, _path(tmp_path)))[0] == (100, 0, 0)


def test_nothing_is_written_beside_or_into_a_database_at_rest(
    tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape
) -> None:
    _add(old, 100)
    old.close()
    place = tmp_path / "rest"
    place.mkdir()
    shutil.copy(_path(tmp_path), place)
    before = (place / "market_data.db").read_bytes()
    place.chmod(0o500)
    try:
        assert _counts(import_file(tape, place / "market_data.db"))[0] == (100, 0, 0)
        assert [path.name for path in place.iterdir()] == ["market_data.db"]
        assert (place / "market_data.db").read_bytes() == before
    finally:
        place.chmod(0o700)


WRITER = """
import sqlite3, sys, time
old = sqlite3.connect(sys.argv[1], isolation_level=None)
old.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
old.execute("PRAGMA synchronous = OFF")
print("ready", flush=True)
for i in range(1000):
    old.execute(
        "INSERT INTO market_data(symbol, timestamp, close, last_size) VALUES ('NQ', ?, ?, 1)", (1700000000 + i, i)
    )
    if i % 10 == 0:
        time.sleep(0.001)
"""


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_rows_come_over_once_each_while_the_old_system_writes(
    tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape, mode: str
) -> None:
    old.execute("PRAGMA journal_mode = DELETE")
    old.close()
    command = [sys.executable, "-c", WRITER, str(_path(tmp_path)), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        while writer.poll() is None:
            import_file(tape, _path(tmp_path))
    assert writer.returncode == 0  # our reading has not stopped it
    import_file(tape, _path(tmp_path))
    assert tape.read("NQ", columns=["price"])["price"].to_pylist() == [float(i) for i in range(1000)]


def test_what_is_no_database_of_minhos_is_refused(tmp_path: Path, tape: onetape.Tape) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as made:
        made.execute("CREATE TABLE t(a)")
    assert detect(other) is None
    with pytest.raises(ImportInvalid, match="no table market_data"):
        import_file(tape, other, "minhos")
    strange = tmp_path / "strange.db"
    with sqlite3.connect(strange) as made:
        made.execute("CREATE TABLE market_data(id INTEGER PRIMARY KEY, close)")
    with pytest.raises(ImportInvalid, match="no column symbol"):
        import_file(tape, strange, "minhos")
    (tmp_path / "text.db").write_text("hello " * 100)
    with pytest.raises(ImportInvalid, match="no SQLite database"):
        import_file(tape, tmp_path / "text.db", "minhos")
    assert detect(tape.path) is None


def test_a_damaged_or_cut_database_is_an_error_that_names_it(
    tmp_path: Path, old: sqlite3.Connection, tape: onetape.Tape
) -> None:
    _add(old, 5000)
    old.close()
    content = _path(tmp_path).read_bytes()
    for damaged in (content[: len(content) // 2], content[:8192] + os.urandom(len(content) - 8192)):
        _path(tmp_path).write_bytes(damaged)
        with pytest.raises(ImportInvalid, match=r"market_data.db: .*damaged"):
            import_file(tape, _path(tmp_path))
    assert tape.stats().head == 0
