"""Exporting: what the tape holds arrives in files whole, of one moment, bit for bit, or nothing does."""

from __future__ import annotations

import csv
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import onetape
from onetape import Bar, Tick
from onetape.exporting import export, files
from onetape.tape import moment

T0 = 1_767_600_000_000_000_000
DAY = 86_400_000_000_000


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


def _fill(tape: onetape.Tape, symbol: str = "ES", count: int = 1000, step: int = 10**11) -> None:
    tape.append([Tick(symbol, T0 + i * step, price=i * 0.1, size=float(i)) for i in range(count)])


def test_csv_has_every_field_the_time_twice_and_empty_cells_for_what_is_absent(
    tape: onetape.Tape, tmp_path: Path
) -> None:
    tape.append(Tick('A "B", c/d', T0 + 1, price=-0.0, size=5e-324, side=-1, source="x,y", ts_recv_ns=7))
    export(tape, tmp_path / "out.csv")
    (row,) = csv.DictReader((tmp_path / "out.csv").open())
    assert row["symbol"] == 'A "B", c/d'
    assert (row["time"], row["ts_event_ns"]) == ("2026-01-05T08:00:00.000000001Z", str(T0 + 1))
    assert (row["price"], row["size"], row["side"], row["bid"]) == ("-0", "5e-324", "-1", "")
    assert (row["source"], row["ts_recv_ns"], row["seq"]) == ("x,y", "7", "1")


def test_gzip_goes_by_name_and_the_same_records_give_the_same_bytes(tape: onetape.Tape, tmp_path: Path) -> None:
    _fill(tape)
    for name in ("one.csv.gz", "two.csv.gz", "plain.csv"):
        export(tape, tmp_path / name)
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.csv.gz").read_bytes()) == (tmp_path / "plain.csv").read_bytes()


@pytest.mark.parametrize("name", ["out.parquet", "out.arrow", "out.feather"])
def test_one_file_holds_all_symbols_says_its_units_and_equals_what_read_returns(
    tape: onetape.Tape, tmp_path: Path, name: str
) -> None:
    for symbol in ("ES", "A/B"):
        _fill(tape, symbol)
    tape.append(Tick("ES", T0, bid=1, source="later"))
    done = export(tape, tmp_path / name)
    read = pq.read_table if name.endswith("parquet") else lambda path: pa.ipc.open_file(path).read_all()
    table = read(tmp_path / name)
    assert (done.rows, done.symbols, done.head) == (2001, 2, 2001)
    rows = [row for symbol in ("A/B", "ES") for row in tape.read(symbol).to_pylist()]
    assert table.to_pylist() == rows
    told = table.schema.metadata
    assert (told[b"onetape.version"], told[b"onetape.head"]) == (onetape.__version__.encode(), b"2001")
    assert table.schema.field("ts_event_ns").metadata[b"unit"] == b"ns since 1970-01-01T00:00:00Z"


def test_a_folder_has_a_file_for_each_symbol_and_day_that_other_readers_take_as_one_table(
    tape: onetape.Tape, tmp_path: Path
) -> None:
    import polars

    for symbol in ("BTC/USD", "..", "a=b%", "東京"):
        _fill(tape, symbol, 10, DAY // 4)
    done = export(tape, tmp_path / "out", format="parquet")
    assert done.files == 4 * 3
    assert (tmp_path / "out/symbol=BTC%2FUSD/date=2026-01-05/part-0.parquet").is_file()
    found = polars.read_parquet(tmp_path / "out/**/*.parquet", hive_partitioning=True)
    assert set(found["symbol"]) == {"BTC/USD", "..", "a=b%", "東京"}
    for symbol in set(found["symbol"]):
        mine = found.filter(polars.col("symbol") == symbol).sort("seq")
        assert mine["price"].to_list() == tape.read(symbol).column("price").to_pylist()
    assert json.loads((tmp_path / "out/_onetape.json").read_text())["rows"] == 40
    assert {b"onetape.symbol"} <= set(pq.read_schema(next((tmp_path / "out").rglob("*.parquet"))).metadata)


def test_a_symbol_too_long_for_a_folder_gets_a_name_of_its_own(tape: onetape.Tape, tmp_path: Path) -> None:
    for last in "XY":
        _fill(tape, "東" * 84 + last, 3)
    assert export(tape, tmp_path / "out", format="parquet").files == 2
    assert {
        pq.read_schema(path).metadata[b"onetape.symbol"].decode() for path in (tmp_path / "out").rglob("*.parquet")
    } == {"東" * 84 + "X", "東" * 84 + "Y"}


def test_span_symbols_and_columns_are_those_asked_for(tape: onetape.Tape, tmp_path: Path) -> None:
    _fill(tape, "ES", 10, 10**9)
    _fill(tape, "NQ", 10, 10**9)
    done = export(
        tape, tmp_path / "o.arrow", symbols=["NQ"], start=T0 + 10**9, end=T0 + 3 * 10**9, columns=["size", "price"]
    )
    table = pa.ipc.open_file(tmp_path / "o.arrow").read_all()
    assert table.column_names == ["size", "price"]
    assert table.column("size").to_pylist() == [1.0, 2.0]
    assert (done.ts_first_ns, done.ts_last_ns) == (T0 + 10**9, T0 + 2 * 10**9)


def test_an_alias_is_exported_as_its_symbol(tape: onetape.Tape, tmp_path: Path) -> None:
    _fill(tape, "NSE:INFY", 3)
    tape.alias("408065", "NSE:INFY")
    export(tape, tmp_path / "o.csv", symbols=["408065", "NSE:INFY"])
    assert [row["symbol"] for row in csv.DictReader((tmp_path / "o.csv").open())] == ["NSE:INFY"] * 3


def test_bars_are_those_of_every_source_and_the_tapes_own(tape: onetape.Tape, tmp_path: Path) -> None:
    _fill(tape, "ES", 100, 10**9)
    tape.append([Bar("ES", "1min", T0, 1, 3, 0.5, 2, trades=7, complete=False, revision=3, source="v")])
    tape.append([Bar("ES", "1h", T0, 1, 3, 0.5, 2, source="v")])
    export(tape, tmp_path / "b.parquet", what="bars", interval="60s")
    rows = pq.read_table(tmp_path / "b.parquet").to_pylist()
    assert [(row["ts_start_ns"] - T0, row["source"]) for row in rows] == [(0, "v"), (0, None), (60 * 10**9, None)]
    assert [row["revision"] for row in rows] == [3, 0, 0]
    assert pq.read_schema(tmp_path / "b.parquet").metadata[b"onetape.interval"] == b"1min"
    assert export(tape, tmp_path / "b", format="parquet", what="bars").files == 1


@pytest.mark.parametrize("piece", [moment.PIECE_RECORDS, 1600])
def test_bars_of_any_interval_are_the_ones_that_bars_returns(
    tape: onetape.Tape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(moment, "PIECE_RECORDS", piece)
    _fill(tape, "ES", 3000, DAY // 200)
    _fill(tape, "NQ", 10, DAY * 40)
    tape.seal()
    _fill(tape, "ES", 300, DAY // 20 + 7)
    for interval in ("1min", "1h", "1d", "7min", "90s", "1s", "2d", "5d"):
        export(tape, tmp_path / "o.arrow", what="bars", interval=interval, replace=True)
        found = pa.ipc.open_file(tmp_path / "o.arrow").read_all()
        for symbol in ("ES", "NQ"):
            wanted = tape.bars(symbol, interval).select(found.column_names).to_pylist()
            assert [row for row in found.to_pylist() if row["symbol"] == symbol] == wanted
            assert wanted


def test_pieces_of_any_size_give_the_same_file(
    tape: onetape.Tape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(tape, "ES", 9_000, 10**10)
    _fill(tape, "ES", 2000, 10**10 + 1)
    tape.seal()
    _fill(tape, "ES", 300, DAY // 2)
    export(tape, tmp_path / "whole.csv")
    export(tape, tmp_path / "bars.csv", what="bars")
    for size in (40, 9_000):
        monkeypatch.setattr(moment, "PIECE_RECORDS", size * 16)
        monkeypatch.setattr(files, "GROUP_ROWS", 7 * size)
        export(tape, tmp_path / f"{size}.csv")
        assert (tmp_path / f"{size}.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
        export(tape, tmp_path / f"bars{size}.csv", what="bars")
        assert (tmp_path / f"bars{size}.csv").read_bytes() == (tmp_path / "bars.csv").read_bytes()


def test_what_is_appended_meanwhile_is_not_in_it(
    tape: onetape.Tape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for symbol in ("A", "B", "C"):
        _fill(tape, symbol, 50)
    monkeypatch.setattr(moment, "PIECE_RECORDS", 10)
    write = files.CsvFile.write

    def appended(self: files.CsvFile, symbol: str, table: object) -> None:
        tape.append([Tick(name, T0 + i, price=9.9) for name in ("A", "B", "C") for i in range(2000)])
        tape.seal()
        write(self, symbol, table)

    monkeypatch.setattr(files.CsvFile, "write", appended)
    done = export(tape, tmp_path / "o.csv")
    assert (done.rows, done.head) == (150, 150)
    assert "9.9," not in [row["price"] for row in csv.DictReader((tmp_path / "o.csv").open())]
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 151


def test_an_empty_answer_is_a_whole_file_without_rows(tape: onetape.Tape, tmp_path: Path) -> None:
    _fill(tape, count=1)
    for name in ("o.csv", "o.parquet", "o.arrow"):
        assert export(tape, tmp_path / name, end=5).rows == 0
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 0
    assert pa.ipc.open_file(tmp_path / "o.arrow").read_all().num_rows == 0
    assert (tmp_path / "o.csv").read_text().startswith("symbol,time,ts_event_ns,price")


# What is refused, and what is left of an export that fails


def test_a_target_that_is_there_is_refused_and_replaced_only_when_asked(tape: onetape.Tape, tmp_path: Path) -> None:
    _fill(tape)
    (tmp_path / "o.csv").write_text("mine")
    with pytest.raises(onetape.ConfigInvalid, match="is there already"):
        export(tape, tmp_path / "o.csv")
    assert (tmp_path / "o.csv").read_text() == "mine"
    export(tape, tmp_path / "o.csv", replace=True)
    assert (tmp_path / "o.csv").read_text().count("\n") == 1001
    export(tape, tmp_path / "f", format="parquet")
    with pytest.raises(onetape.ConfigInvalid, match="is there already"):
        export(tape, tmp_path / "f", format="parquet")
    _fill(tape, "NEW")
    export(tape, tmp_path / "f", format="parquet", replace=True)
    assert (tmp_path / "f/symbol=NEW").is_dir()


def test_a_folder_that_is_no_export_is_never_replaced_nor_the_tape_itself(tape: onetape.Tape, tmp_path: Path) -> None:
    _fill(tape)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear")
    with pytest.raises(onetape.ConfigInvalid, match="is no folder of an export"):
        export(tape, tmp_path / "home", format="parquet", replace=True)
    for mine in (tape.path, tape.path.with_name(tape.path.name + "-wal")):
        with pytest.raises(onetape.ConfigInvalid, match="belongs to the tape"):
            export(tape, mine, format="csv", replace=True)
    assert (tmp_path / "home/letter").read_text() == "dear"
    assert tape.read("ES").num_rows == 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "x.txt"}, "does not say which format"),
        ({"to": "no/x.csv"}, "there is no folder"),
        ({"to": "x.csv", "symbols": ["es"]}, "no symbol 'es'"),
        ({"to": "x.csv", "columns": ["prize"]}, "no tick has a column 'prize'"),
        ({"to": "x.csv", "columns": ["price", "price"]}, "asked for twice"),
        ({"to": "x.csv", "what": "bars", "interval": "0min"}, "is not an interval"),
        ({"to": "x.csv", "what": "bars", "columns": ["price"]}, "no bar has a column"),
        ({"to": "x.csv", "start": "yesterday"}, "is not a time"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_leaves_nothing(
    tape: onetape.Tape, tmp_path: Path, arguments: dict, message: str
) -> None:
    _fill(tape, count=3)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(onetape.ConfigInvalid, match=message):
        export(tape, tmp_path / arguments.pop("to"), **arguments)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.parquet", "o.arrow", "folder"])
def test_a_full_disk_is_said_and_nothing_is_left(tape: onetape.Tape, tmp_path: Path, name: str) -> None:
    _fill(tape, count=40_000)
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "x", small], capture_output=True).returncode
    ):
        pytest.skip("cannot make a small disk here")
    try:
        with pytest.raises(onetape.ExportFailed, match="the disk is full"):
            export(tape, small / name, format="parquet" if name == "folder" else None)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_limit_on_the_size_of_files_is_said_and_what_was_there_stays(tape: onetape.Tape, tmp_path: Path) -> None:
    _fill(tape, count=40_000)
    (tmp_path / "o.parquet").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(onetape.ExportFailed, match="nothing of the export is left"):
            export(tape, tmp_path / "o.parquet", replace=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "o.parquet").read_text() == "old"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["o.csv", "folder"])
def test_a_killed_export_leaves_no_target_and_the_next_one_removes_what_it_left(
    tape: onetape.Tape, tmp_path: Path, name: str
) -> None:
    for symbol in ("A", "B"):
        _fill(tape, symbol)
    code = """
        import sys, time, onetape
        from onetape.exporting import export, files
        for kind in (files.CsvFile, files.ParquetFolder):
            write = kind.write
            def slow(self, symbol, table, write=write):
                write(self, symbol, table)
                print("wrote", flush=True)
                time.sleep(60)
            kind.write = slow
        with onetape.open(sys.argv[1], mode="r") as tape:
            export(tape, sys.argv[2], format="parquet" if "folder" in sys.argv[2] else "csv")
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), tape.path, tmp_path / name], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "wrote\n"
    assert len(list(tmp_path.glob(".*partial*"))) == 1
    other = tmp_path / f"other.{name}"
    export(tape, other, format="parquet" if name == "folder" else "csv")
    assert len(list(tmp_path.glob(".*partial*"))) == 1
    export(tape, tmp_path / name, format="parquet" if name == "folder" else "csv")
    assert len(list(tmp_path.glob(".*partial*"))) == 1, "what somebody still writes stays"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    export(tape, tmp_path / name, format="parquet" if name == "folder" else "csv", replace=True)
    assert not list(tmp_path.glob(".*partial*"))


def test_two_exports_to_one_name_leave_one_whole_file(tape: onetape.Tape, tmp_path: Path) -> None:
    _fill(tape, count=5000)
    outcomes: list[object] = []

    def one() -> None:
        try:
            outcomes.append(export(tape, tmp_path / "o.csv").rows)
        except onetape.ConfigInvalid as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(5000) == 1
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 5001
