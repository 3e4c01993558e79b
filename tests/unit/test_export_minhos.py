"""The way back: a tape as the predecessor's database, and that database as a tape again, equal in every field."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import onetape
from onetape import Bar, Tick, minhos_row
from onetape.exporting import minhos
from onetape.exporting.minhos import export_minhos
from onetape.importing.formats import Options, import_file

T0 = 1_767_600_000_000_000_000


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


def _rows(path: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def _content(tape: onetape.Tape) -> list[dict[str, Any]]:
    found = [row for symbol in ("007", "ES", "NFO:NIFTY 25", "ü") for row in tape.read(symbol).to_pylist()]
    return [{name: repr(value) for name, value in row.items() if name != "seq"} for row in found]


def _back(tmp_path: Path, name: str = "back.db", options: Options | None = None) -> onetape.Tape:
    opened = onetape.open(tmp_path / f"again-{name}", retention_days=None)
    import_file(opened, tmp_path / name, "minhos", options or Options())
    return opened


def _strange(count: int) -> list[Tick]:
    dice = random.Random(5)
    some = [None, 0.0, -0.0, 5e-324, 0.1 + 0.2, -37.63, 1e300, 2.0**53, 2.0**62]
    sizes = [None, 0.0, 1.0, 2.5, 2.0**60, 1e300]
    made = []
    for i in range(count):
        price, bid = dice.choice(some), dice.choice(some)
        made.append(
            Tick(
                dice.choice(["ES", "007", "NFO:NIFTY 25", "ü"]),
                dice.choice([T0 + i, T0 + i * 10**9, T0 + i * 10**6 + 1, i, 2**63 - 2 - i]),
                price,
                dice.choice(sizes),
                1.0 if price is None and bid is None else bid,
                dice.choice(some),
                dice.choice(sizes),
                dice.choice(sizes),
                dice.choice([-1, 0, 1]),
                dice.choice([0, 1, 2**32 - 1]),
                *(dice.choice(some) for _ in range(3)),
                dice.choice(sizes),
                dice.choice(some),
                dice.choice([None, 0, 7, 2**62 + 1]),
                dice.choice(sizes),
                dice.choice([None, "unknown", "sierra_chart", "null"]),
                dice.choice([None, 0, T0 + 10**9, T0 + 3, 2**63 - 2]),
            )
        )
    return made


def test_a_tape_goes_there_and_back_with_every_field_of_every_tick(
    tape: onetape.Tape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minhos, "_ROWS", 100)
    tape.append(_strange(3000))
    done = export_minhos(tape, tmp_path / "back.db")
    assert (done.ticks, done.symbols, done.head) == (3000, 4, 3000)
    with _back(tmp_path) as again:
        assert _content(again) == _content(tape)


def test_the_old_system_finds_its_tables_their_columns_and_the_values_it_would_have_written(
    tape: onetape.Tape, tmp_path: Path
) -> None:
    tape.append(
        [
            Tick("ES", T0 + 123_456_000, bid=9.0, ask=11.0),
            Tick("ES", T0 + 10**9, price=12.5, size=2.0, volume=900.0, side=1, source="sierra_chart"),
            Tick("ES", T0 + 2 * 10**9, bid=12.25, ask_size=3.0, high=13.0),
        ]
    )
    export_minhos(tape, tmp_path / "back.db")
    assert _rows(
        tmp_path / "back.db",
        "SELECT id, timestamp, open, high, low, close, volume, last_size, source FROM market_data ORDER BY id",
    ) == [
        (1, T0 / 10**9 + 0.123456, 10.0, 10.0, 10.0, 10.0, None, None, "unknown"),
        (2, T0 / 10**9 + 1, 12.5, 12.5, 12.5, 12.5, 900, 2, "sierra_chart"),
        (3, T0 / 10**9 + 2, 12.5, 13.0, 12.5, 12.5, None, None, "unknown"),
    ]
    assert _rows(tmp_path / "back.db", "SELECT * FROM market_data_1min") == [
        ("ES", T0 / 10**9 // 60 * 60, 12.5, 12.5, 12.5, 12.5, 2, 12.5, 1)
    ]
    plan = _rows(
        tmp_path / "back.db",
        "EXPLAIN QUERY PLAN SELECT * FROM market_data WHERE symbol = 'ES' ORDER BY timestamp DESC LIMIT 5",
    )
    assert "USING INDEX" in plan[0][3]
    assert _rows(tmp_path / "back.db", "PRAGMA integrity_check") == [("ok",)]


def test_only_what_was_asked_is_written_and_detections_never(tape: onetape.Tape, tmp_path: Path) -> None:
    for symbol in ("ES", "NQ", "patterns:ES"):
        tape.append([Tick(symbol, T0 + i * 10**9, price=1.0) for i in range(10)])
    export_minhos(tape, tmp_path / "all.db")
    assert _rows(tmp_path / "all.db", "SELECT symbol, count(*) FROM market_data GROUP BY 1") == [("ES", 10), ("NQ", 10)]
    export_minhos(tape, tmp_path / "some.db", symbols=["NQ"], start=T0 + 3 * 10**9, end=T0 + 5 * 10**9)
    assert _rows(tmp_path / "some.db", "SELECT symbol, count(*) FROM market_data GROUP BY 1") == [("NQ", 2)]
    with pytest.raises(onetape.ConfigInvalid, match="no market data"):
        export_minhos(tape, tmp_path / "hidden.db", symbols=["patterns:ES"])


def test_a_minute_has_one_bar_and_the_others_are_counted(tape: onetape.Tape, tmp_path: Path) -> None:
    start = T0 // (60 * 10**9) * 60 * 10**9
    tape.append(Tick("ES", start, price=5.0, size=1.0))
    tape.append([Bar("ES", "1min", start + i * 60 * 10**9, 1.0, 1.0, 1.0, 1.0, source=s) for i in (0, 1) for s in "ba"])
    done = export_minhos(tape, tmp_path / "back.db")
    assert (done.minutes, done.bars_left_out) == (2, 3)
    assert _rows(tmp_path / "back.db", "SELECT close FROM market_data_1min ORDER BY timestamp") == [(5.0,), (1.0,)]


def test_what_is_there_stays_and_no_log_of_another_database_gets_a_new_one(tape: onetape.Tape, tmp_path: Path) -> None:
    tape.append(Tick("ES", T0, price=1.0))
    (tmp_path / "back.db").write_text("mine")
    with pytest.raises(onetape.ConfigInvalid, match="is there already"):
        export_minhos(tape, tmp_path / "back.db")
    assert (tmp_path / "back.db").read_text() == "mine"
    (tmp_path / "other.db-wal").write_text("its log")
    with pytest.raises(onetape.ConfigInvalid, match="belongs to another database"):
        export_minhos(tape, tmp_path / "other.db")
    with pytest.raises(onetape.ConfigInvalid, match="belongs to the tape"):
        export_minhos(tape, tape.path, replace=True)


def test_a_row_changed_since_counts_as_it_stands_and_a_spoiled_one_is_set_aside(
    tape: onetape.Tape, tmp_path: Path
) -> None:
    tape.append([Tick("ES", T0 + i * 10**9 + 1, price=1.0, side=1) for i in range(4)])
    export_minhos(tape, tmp_path / "back.db")
    connection = sqlite3.connect(tmp_path / "back.db")
    connection.execute("UPDATE market_data SET timestamp = timestamp + 100 WHERE id = 1")
    connection.execute("""UPDATE market_data SET metadata = '{"onetape": {"side": 7}}' WHERE id = 2""")
    connection.execute("""UPDATE market_data SET metadata = '{"of": "others", "not "onetape"' WHERE id = 3""")
    connection.commit()
    connection.close()
    with _back(tmp_path, options=Options(on_invalid="quarantine")) as again:
        found = [(row["ts_event_ns"], row["side"]) for row in again.read("ES").to_pylist()]
    assert found == [(T0 + 2 * 10**9, 0), (T0 + 3 * 10**9 + 1, 1), (T0 + 100 * 10**9, 1)]


def test_a_full_disk_leaves_nothing(tape: onetape.Tape, tmp_path: Path) -> None:
    tape.append([Tick("ES", T0 + i, price=1.0) for i in range(20_000)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(onetape.ExportFailed, match="nothing of the export is left"):
            export_minhos(tape, tmp_path / "back.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in tmp_path.iterdir() if "back" in path.name]


def test_a_killed_export_leaves_no_target_and_the_next_one_removes_what_it_left(
    tape: onetape.Tape, tmp_path: Path
) -> None:
    tape.append([Tick("ES", T0 + i, price=1.0) for i in range(1000)])
    code = """
        import sys, time, onetape
        from onetape.exporting import minhos
        def slow(progress):
            print("wrote", flush=True)
            time.sleep(60)
        with onetape.open(sys.argv[1], mode="r") as tape:
            minhos.export_minhos(tape, sys.argv[2], on_progress=slow)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tape.path), str(tmp_path / "back.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "wrote\n"
        os.kill(child.pid, signal.SIGKILL)
    assert not (tmp_path / "back.db").exists()
    export_minhos(tape, tmp_path / "back.db")
    assert [path.name for path in tmp_path.iterdir() if "back" in path.name] == ["back.db"]
    assert _rows(tmp_path / "back.db", "SELECT count(*) FROM market_data") == [(1000,)]


@pytest.mark.parametrize("count", [30, 300])
def test_an_export_that_comes_back_to_its_own_tape_brings_only_what_was_added_since(
    tape: onetape.Tape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(minhos_row, "WINDOW", 100)
    monkeypatch.setattr("onetape.importing.predecessor.WINDOW", 100)
    tape.append(_strange(count))
    before, head = _content(tape), tape.head
    done = export_minhos(tape, tmp_path / "back.db")
    assert done.known and tape.head == head
    import_file(tape, tmp_path / "back.db", "minhos", Options())
    assert _content(tape) == before
    _rows_added(tmp_path / "back.db", 250)
    for _ in range(2):
        import_file(tape, tmp_path / "back.db", "minhos", Options())
        assert tape.read("new").num_rows == 250 and _content(tape) == before


def _rows_added(path: Path, count: int) -> None:
    connection = sqlite3.connect(path)
    rows = [("new", T0 / 10**9 + i, float(i)) for i in range(count)]
    connection.executemany("INSERT INTO market_data(symbol, timestamp, close) VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()


def test_a_tape_that_may_only_be_read_is_exported_all_the_same(tape: onetape.Tape, tmp_path: Path) -> None:
    tape.append(_strange(10))
    with onetape.open(tape.path, mode="r") as reading:
        done = export_minhos(reading, tmp_path / "back.db")
    assert (done.ticks, done.known) == (10, False)
