"""Importing CSV: what users have in files arrives bit for bit and once, and what is wrong is told by line."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import onetape
from onetape.errors import ImportInvalid
from onetape.importing import BATCH_ROWS, CsvOptions, Imported, import_csv, parse_mapping, times

S = 1_000_000_000


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def made(content: str | bytes, name: str = "in.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return made


def _one(tape: onetape.Tape | None, path: Path, **options: Any) -> Imported:
    (result,) = import_csv(tape, path, CsvOptions(**options))
    return result


def _times(tape: onetape.Tape, symbol: str) -> list[int]:
    return [int(ns) for ns in tape.read(symbol).column("ts_event_ns").to_pylist()]


# What arrives


def test_usual_names_become_fields_and_numbers_arrive_bit_for_bit(tape: onetape.Tape, write: Any) -> None:
    path = write("Timestamp,Ticker,Last Price,LTQ,Best Bid,Side,OI\n1742000000000,A,0.1,3,0.30000000000000004,Buy,7\n")
    result = _one(tape, path)
    assert result.stored == 1
    tick = tape.latest("A")
    assert tick is not None
    assert (tick.price, tick.size, tick.bid, tick.side, tick.open_interest) == (0.1, 3, 0.30000000000000004, 1, 7)
    assert tick.ts_event_ns == 1742000000000 * 1_000_000


def test_importing_again_changes_nothing_also_compressed_and_renamed(tape: onetape.Tape, write: Any) -> None:
    text = "time,price\n" + "".join(f"{1742000000 + i},{i}\n" for i in range(100))
    assert _one(tape, write(text), symbol="A").stored == 100
    for again in (write(text), write(text, "other.csv"), write(gzip.compress(text.encode()), "in.csv.gz")):
        result = _one(tape, again, symbol="A")
        assert (result.stored, result.known) == (0, 100)
    assert len(_times(tape, "A")) == 100


def test_the_same_file_read_another_way_is_another_import(tape: onetape.Tape, write: Any) -> None:
    path = write("time,price\n1742000000,1\n")
    assert _one(tape, path, symbol="A").stored == 1
    assert _one(tape, path, symbol="B").stored == 1


def test_equal_rows_are_kept_as_two_records(tape: onetape.Tape, write: Any) -> None:
    assert _one(tape, write("time,price,size\n1742000000,1,2\n1742000000,1,2\n"), symbol="A").stored == 2


def test_an_unsorted_file_is_imported_and_said_to_be_unsorted(tape: onetape.Tape, write: Any) -> None:
    result = _one(tape, write("time,price\n1742000002,3\n1742000000,1\n1742000001,2\n"), symbol="A")
    assert not result.in_order
    assert tape.read("A").column("price").to_pylist() == [1, 2, 3]
    assert (result.ts_first_ns, result.ts_last_ns) == (1742000000 * S, 1742000002 * S)


def test_several_batches_come_in_order_and_an_import_goes_on_where_it_was(
    tape: onetape.Tape, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 * BATCH_ROWS + 10
    path = write("time,price\n" + "".join(f"{1742000000000 + i},{i}\n" for i in range(count)))
    append, calls = onetape.Tape.append_table, []

    def killed_at_the_second(self: onetape.Tape, data: Any, **identity: Any) -> Any:
        calls.append(identity["batch"])
        if len(calls) == 2:
            raise onetape.TapeFull("the disk is full")
        return append(self, data, **identity)

    monkeypatch.setattr(onetape.Tape, "append_table", killed_at_the_second)
    with pytest.raises(onetape.TapeFull):
        _one(tape, path, symbol="A")
    monkeypatch.undo()
    result = _one(tape, path, symbol="A")
    assert (result.stored, result.known) == (BATCH_ROWS + 10, BATCH_ROWS)
    assert tape.read("A").column("price").to_pylist() == list(range(count))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_bom_line_ends_blank_lines_quotes_and_unicode(tape: onetape.Tape, write: Any, end: str) -> None:
    lines = ['time , "symbol",Price ', "", '1742000000,東京," 6,000.25 "', '1742000001,"A ""B""",-1.5e1', ""]
    result = _one(tape, write(b"\xef\xbb\xbf" + end.join(lines).encode()))
    assert result.stored == 2
    assert tape.latest("東京").price == 6000.25  # type: ignore[union-attr]
    assert tape.latest('A "B"').price == -15  # type: ignore[union-attr]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_are_found(tape: onetape.Tape, write: Any, delimiter: str) -> None:
    text = "time,price,size\n1742000000,1.5,2\n".replace(",", delimiter)
    assert _one(tape, write(text), symbol="A").stored == 1


def test_absent_numbers_are_absent_but_a_symbol_may_be_called_na(tape: onetape.Tape, write: Any) -> None:
    _one(tape, write("time,symbol,price,size,bid\n1742000000,NA,1,,NaN\n1742000001,NA,2,null,NA\n"))
    assert [(t.price, t.size, t.bid) for t in tape.recent("NA")] == [(1, None, None), (2, None, None)]


def test_all_texts_of_a_zip_are_imported_or_none(tape: onetape.Tape, tmp_path: Path) -> None:
    path = tmp_path / "days.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.csv", "time,price\n1742000000,1\n")
        archive.writestr("two.csv", "time,price\n1742000060,x\n")
    with pytest.raises(ImportInvalid, match=r"days\.zip!two\.csv, line 2"):
        import_csv(tape, path, CsvOptions(symbol="A"))
    assert tape.stats().ticks == 0
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.csv", "time,price\n1742000000,1\n")
        archive.writestr("two.csv", "time,price\n1742000060,2\n")
    assert [result.stored for result in import_csv(tape, path, CsvOptions(symbol="A"))] == [1, 1]


def test_bars_are_imported_with_their_interval(tape: onetape.Tape, write: Any) -> None:
    path = write("Date,Open,High,Low,Close,Volume\n2025-03-13,1,3,0.5,2,10\n2025-03-14,2,4,1,3,\n")
    result = _one(tape, path, kind="bars", symbol="ES", interval="1d", source="vendor")
    assert result.stored == 2
    found = tape.bar_list("ES", "1d")
    assert [(bar.open, bar.close, bar.volume, bar.source) for bar in found] == [
        (1, 2, 10, "vendor"),
        (2, 3, None, "vendor"),
    ]
    assert _one(tape, path, kind="bars", symbol="ES", interval="1d", source="vendor").known == 2


def test_a_file_of_only_a_header_holds_no_rows(tape: onetape.Tape, write: Any) -> None:
    assert _one(tape, write("time,price\n\n"), symbol="A").rows == 0


def test_a_dry_run_needs_no_tape_and_says_what_a_run_would(write: Any) -> None:
    result = _one(None, write("time,last,venue\n1742000000,1,X\n"), symbol="A")
    assert result.dry_run
    assert (result.rows, result.stored) == (1, 0)
    assert result.columns == {"ts_event_ns": "time", "price": "last"}
    assert result.unused == ("venue",)


def test_a_mapping_beats_the_usual_names(tape: onetape.Tape, write: Any) -> None:
    path = write("time,price,settle,volume\n1742000000,1,2,3\n")
    result = _one(tape, path, symbol="A", mapping={"price": "Settle", "size": "volume"})
    tick = tape.latest("A")
    assert tick is not None
    assert (tick.price, tick.size, tick.volume) == (2, 3, None)
    assert result.unused == ("price",)


# What is refused, and how it is told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("time,price\n1742000000,1\n1742000001,abc\n", r"line 3, column 'price': 'abc': not a number"),
        ("time,price\n\n1742000000,1\n\nx,1\n", r"line 5, column 'time' \(ts_event_ns\): 'x': not a time"),
        ("time,price\n1742000000,1,5\n", "line 2: 3 columns instead of 2"),
        ("time,price\n1742000000,1\n17420", "line 3: 1 columns instead of 2"),
        ("time,price,price\n1742000000,1,2\n", r"column 'price' is there 2 times \(columns 2, 3\)"),
        ("when,cost\n1,2\n", r"no column for ts_event_ns .*columns are 'when', 'cost'"),
        ("time,volume\n1742000000,2\n", "no column for price, bid or ask"),
        ("1742000000,1\n1742000001,1\n", "line 1 is data, not column names"),
        ("time,price\n1742000000,inf\n", r"line 2, column 'price': 'inf': a number is finite"),
        ("time,price\n1742000000,\n", "line 2, column 'price': '': a tick has a price, a bid or an ask"),
        ("time,price,size\n1742000000,1,-2\n", "line 2, column 'size': '-2': a size is not negative"),
        ("time,price\n-5,1\n", "line 2, column 'time'"),
        ("time,price\n2300-01-01,1\n", "line 2, column 'time'"),
        ("time,price\n99999999999999999999,1\n", "line 2, column 'time'"),
        ("time,price\n14/03/2025 10:00,1\n", "a time of a form that is not known.*--time-format"),
        ("time,price,side\n1742000000,1,up\n", "line 2, column 'side': 'up'"),
        ("time,price,trades\n1742000000,1,99999999999999999999\n", "not a whole number of 64 bits"),
        ("time;price\n1742000000;1,5\n", "line 2, column 'price': '1,5': not a number"),
        ("time,symbol,price\n1742000000,,1\n", "line 2, column 'symbol': '': a record needs a symbol"),
        (b"time,price\n1742000000,\xe9\n", "line 2: not UTF-8"),
        ("time,price\n1742000000,1\n".encode("utf-16"), "not UTF-8 text .*utf-16"),
        (gzip.compress(b"time,price\n1742000000,1\n" * 50)[:-20], "damaged or cut off"),
        (b"PK\x03\x04 not a zip", "cannot be read"),
    ],
)
def test_a_wrong_file_is_told_by_line_and_column_and_stores_nothing(
    tape: onetape.Tape, write: Any, content: str | bytes, told: str
) -> None:
    options = CsvOptions() if "symbol" in str(content) else CsvOptions(symbol="A")
    with pytest.raises(ImportInvalid, match=told) as caught:
        import_csv(tape, write(content), options)
    assert "\n" not in str(caught.value)
    assert tape.stats().ticks == 0


def test_a_wrong_value_in_a_late_batch_leaves_nothing_stored(tape: onetape.Tape, write: Any) -> None:
    rows = [f"{1742000000000 + i},{i}" for i in range(BATCH_ROWS + 5)]
    rows[-1] = "1742000000000,bad"
    with pytest.raises(ImportInvalid, match=f"line {BATCH_ROWS + 6}, column 'price': 'bad'"):
        _one(tape, write("time,price\n" + "\n".join(rows)), symbol="A")
    assert tape.stats().ticks == 0


def test_quarantine_keeps_the_good_rows_and_lists_the_bad(tape: onetape.Tape, write: Any) -> None:
    path = write("time,price,size\n1742000000,1,1\n1742000001,oops,1\n1742000002,2,-1\nnever,3,1\n1742000004,4,1\n")
    result = _one(tape, path, symbol="A", on_invalid="quarantine")
    assert (result.stored, result.refused) == (2, 3)
    assert [(row.line, row.column, row.value) for row in result.first_refused] == [
        (3, "price", "oops"),
        (4, "size", "-1"),
        (5, "time", "never"),
    ]
    assert len(tape.quarantined()) == 3
    again = _one(tape, path, symbol="A", on_invalid="quarantine")
    assert (again.stored, again.known) == (0, 2)
    assert len(tape.quarantined()) == 3


def test_a_bar_without_a_price_is_refused(tape: onetape.Tape, write: Any) -> None:
    path = write("date,open,high,low,close\n2025-03-14,1,2,,1\n")
    with pytest.raises(ImportInvalid, match="line 2, column 'low': '': a bar has an open"):
        _one(tape, path, kind="bars", symbol="A", interval="1d")


def test_bars_need_an_interval(tape: onetape.Tape, write: Any) -> None:
    with pytest.raises(ImportInvalid, match=r"no column for interval .*--interval 1min"):
        _one(tape, write("date,open,high,low,close\n2025-03-14,1,2,1,1\n"), kind="bars", symbol="A")


def test_a_file_that_grows_while_it_is_read_is_refused(
    tape: onetape.Tape, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onetape import importing

    path = write("time,price\n1742000000,1\n")
    check = importing._Job.check

    def grow(self: Any) -> None:
        check(self)
        path.write_text(path.read_text() + "1742000001,2\n")

    monkeypatch.setattr(importing._Job, "check", grow)
    with pytest.raises(ImportInvalid, match="changed while it was read"):
        _one(tape, path, symbol="A")
    assert tape.stats().ticks == 0


def test_a_mapping_the_wrong_way_round_is_recognised() -> None:
    assert parse_mapping(["price=last, size=qty", "volume="], "ticks") == {"price": "last", "size": "qty", "volume": ""}
    with pytest.raises(ImportInvalid, match="did you mean price=last"):
        parse_mapping(["last=price"], "ticks")
    for wrong in ("price", "price=a,price=b", "close=x"):
        with pytest.raises(ImportInvalid):
            parse_mapping([wrong], "ticks")


# Times


@pytest.mark.parametrize(
    ("text", "form", "ns"),
    [
        ("1742000000", "s", 1742000000 * S),
        ("1742000000.123456789", "s", 1742000000123456789),
        ("1742000000123", "ms", 1742000000123 * 1_000_000),
        ("1742000000123.25", "ms", 1742000000123250000),
        ("1742000000123456", "us", 1742000000123456000),
        ("1742000000123456789", "ns", 1742000000123456789),
        ("2025-03-15", "iso", 1741996800 * S),
        ("2025-03-15T00:53:20.123456789Z", "iso", 1742000000123456789),
        ("2025-03-15 06:23:20+05:30", "iso", 1742000000 * S),
        ("2025-03-15 06:23:20.5 +0530", "iso", 1742000000500000000),
        ("20250315 00:53:20.25", "%Y%m%d %H:%M:%S.%f", 1742000000250000000),
        ("20250315", "%Y%m%d", 1741996800 * S),
        ("2025.03.15 00:53", "%Y.%m.%d %H:%M", 1741999980 * S),
    ],
)
def test_the_form_of_a_time_is_found_and_no_digit_is_lost(
    tape: onetape.Tape, write: Any, text: str, form: str, ns: int
) -> None:
    assert times.detect(text) == form
    assert _one(tape, write(f"time,price\n{text},1\n"), symbol="A").time_format == form
    assert _times(tape, "A") == [ns]


def test_a_time_zone_counts_for_times_without_an_offset_only(tape: onetape.Tape, write: Any) -> None:
    text = "time,price\n2025-03-14T09:15:00,1\n2025-03-14T09:15:00+01:00,2\n"
    _one(tape, write(text), symbol="A", timezone="Asia/Kolkata")
    assert sorted(_times(tape, "A")) == [1741923900 * S, 1741940100 * S]
    assert onetape.to_ns("2025-03-14T03:45:00Z") == 1741923900 * S


def test_daylight_saving_moves_the_offset_and_an_unclear_time_is_refused(tape: onetape.Tape, write: Any) -> None:
    text = "time,price\n2024-11-02 12:00,1\n2024-11-03 12:00,2\n"
    _one(tape, write(text), symbol="A", timezone="America/New_York")
    assert [ns % (24 * 3600 * S) // (3600 * S) for ns in _times(tape, "A")] == [16, 17]
    for unclear in ("2024-11-03 01:30", "2024-03-10 02:30"):
        with pytest.raises(ImportInvalid, match="twice or never"):
            _one(tape, write(f"time,price\n{unclear},1\n"), symbol="A", timezone="America/New_York")


def test_a_date_and_a_time_column_are_one_time(tape: onetape.Tape, write: Any) -> None:
    _one(tape, write("Date,Time,Price\n2025-03-15,00:53:20.5,1\n"), symbol="A")
    assert _times(tape, "A") == [1742000000500000000]


def test_a_pattern_with_an_offset_reads_what_other_tools_write(tape: onetape.Tape, write: Any) -> None:
    text = "time,price\n2016-12-30 21:37:57 +0000 UTC,1.05\n"
    _one(tape, write(text), symbol="A", time_format="%Y-%m-%d %H:%M:%S %z UTC")
    assert _times(tape, "A") == [onetape.to_ns("2016-12-30T21:37:57Z")]


@pytest.mark.parametrize(("name", "value"), [("time_format", "fortnights"), ("timezone", "Mars/Olympus")])
def test_an_unknown_form_or_zone_is_refused(write: Any, name: str, value: str) -> None:
    with pytest.raises(ImportInvalid, match=value):
        _one(None, write("time,price\n1742000000,1\n"), symbol="A", **{name: value})


@given(st.lists(st.tuples(st.integers(0, 2**62), st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
def test_what_was_written_as_csv_is_read_bit_for_bit(rows: list[tuple[int, float]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place, onetape.open(Path(place) / "t.db", retention_days=None) as tape:
        path = Path(place) / "in.csv"
        path.write_text("ts_event_ns,price\n" + "".join(f"{ns},{price!r}\n" for ns, price in rows))
        assert _one(tape, path, symbol="A", time_format="ns").stored == len(rows)
        table = tape.read("A")
        found = sorted(zip(table.column("ts_event_ns").to_pylist(), table.column("price").to_pylist(), strict=True))
        assert found == sorted(rows)


# Real files


def test_real_ticks_of_marketstore_are_read_as_they_are(tape: onetape.Tape, sample_data: Path) -> None:
    result = _one(tape, sample_data / "marketstore" / "ticks-example-1.csv", symbol="EURUSD")
    assert result.time_format == "%Y%m%d %H:%M:%S %f"
    assert result.stored == result.rows == 1003
    assert tape.recent("EURUSD", 1003)[0].bid == 1.05185


def test_a_real_day_of_trades_in_a_zip_without_a_header(tape: onetape.Tape, sample_data: Path) -> None:
    path = sample_data / "lean" / "equity" / "usa" / "tick" / "aig" / "20131007_trade.zip"
    options = CsvOptions(
        symbol="AIG", header=("time", "price", "size", "exchange", "conditions", "suspicious"), time_format="ms"
    )
    (result,) = import_csv(tape, path, options)
    with zipfile.ZipFile(path) as archive:
        lines = archive.read(archive.namelist()[0]).decode().splitlines()
    assert result.stored == len(lines) > 1000
    table = tape.read("AIG")
    assert table.column("price").to_pylist() == [float(line.split(",")[1]) for line in lines]
