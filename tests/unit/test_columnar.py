"""Parquet and Arrow files: anybody's types arrive exactly, and what cannot is told by file, row and column."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

import onetape
from onetape import Tick
from onetape.errors import ImportInvalid
from onetape.exporting import export
from onetape.importing import formats
from onetape.importing.formats import Imported, Options, import_file

T0 = 1_767_600_000_000_000_000


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


@pytest.fixture(params=["parquet", "arrow", "stream"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def made(columns: Any, name: str = "in") -> Path:
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        path = tmp_path / f"{name}.{request.param}"
        if request.param == "parquet":
            pq.write_table(table, path, row_group_size=1000)
        else:
            with (ipc.new_stream if request.param == "stream" else ipc.new_file)(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=1000)
        return path

    return made


def _one(tape: onetape.Tape | None, path: Path, **options: Any) -> Imported:
    (result,) = import_file(tape, path, options=Options(**options))
    return result


@pytest.mark.parametrize(
    ("times", "zone"),
    [
        (pa.array([T0 // 10**9], pa.timestamp("s")), None),
        (pa.array([T0 // 10**6], pa.timestamp("ms", "Asia/Kolkata")), None),
        (pa.array([T0], pa.timestamp("ns", "America/New_York")), "Asia/Kolkata"),
        (pa.array([T0 // 10**3 + 19_800_000_000], pa.timestamp("us")), "Asia/Kolkata"),
        (pa.array([T0 // 10**6], pa.int64()), None),
        (pa.array([T0], pa.uint64()), None),
        (pa.array([T0 / 10**9], pa.float64()), None),
        (pa.array(["2026-01-05T08:00:00Z"]), None),
        (pa.array(["2026-01-05 13:30"]), "Asia/Kolkata"),
        (pa.array(["2026-01-05T08:00:00Z"]).dictionary_encode(), None),
    ],
)
def test_times_of_every_type_unit_and_zone_are_exact(
    tape: onetape.Tape, write: Any, times: Any, zone: str | None
) -> None:
    _one(tape, write({"time": times, "price": [1.5]}), symbol="A", timezone=zone)
    assert tape.latest("A") == Tick("A", T0, price=1.5, seq=1)


def test_dates_are_midnights_of_the_zone(tape: onetape.Tape, write: Any) -> None:
    columns = {"Date": pa.array([date(2026, 1, 5)]), "o": [1.0], "h": [2.0], "l": [0.5], "c": [1.5]}
    _one(tape, write(columns), symbol="A", kind="bars", interval="1d", source="v")
    (bar,) = tape.bar_list("A", "1d")
    assert bar.ts_start_ns == onetape.to_ns(datetime(2026, 1, 5, tzinfo=UTC))


def test_decimals_integers_dictionaries_and_nan_arrive_as_the_nearest_float_or_absent(
    tape: onetape.Tape, write: Any
) -> None:
    digits = ["0.1", "123456789.123456789", "-7.3", "0.000000001"]
    _one(
        tape,
        write(
            {
                "ts": pa.array([T0 + i for i in range(4)]),
                "symbol": pa.array(["a", "b", "a", "b"]).dictionary_encode(),
                "price": pa.array([Decimal(text) for text in digits], pa.decimal128(30, 9)),
                "size": pa.array([1, None, 2**53, 0], pa.int64()),
                "bid": pa.array([1.5, float("nan"), None, 2], pa.float32()),
                "side": ["buy", "S", None, "0"],
                "trades": pa.array([2**62 + 1, None, 3, 4]),
            }
        ),
    )
    ticks = sorted([*tape.recent("a"), *tape.recent("b")], key=lambda tick: tick.ts_event_ns)
    assert [tick.price for tick in ticks] == [float(text) for text in digits]
    assert [tick.size for tick in ticks] == [1.0, None, 2.0**53, 0.0]
    assert [tick.bid for tick in ticks] == [1.5, None, None, 2.0]
    assert [tick.side for tick in ticks] == [1, -1, 0, 0]
    assert [tick.trades for tick in ticks] == [2**62 + 1, None, 3, 4]


def test_symbols_that_are_tokens_become_text_and_a_mapping_names_columns(tape: onetape.Tape, write: Any) -> None:
    path = write({"token": [408065], "at": [T0], "px": [5.0], "price": [9.0]})
    _one(tape, path, mapping={"symbol": "token", "price": "px", "ts_event_ns": "at"}, source="kite")
    assert tape.latest("408065") == Tick("408065", T0, price=5.0, source="kite", seq=1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"price": pa.array([[1.0]])}, r"row 1, column 'price' \(price\): list<.*> is no number"),
        ({"price": pa.array([b"1"])}, r"row 1, column 'price' \(price\): binary is no number"),
        ({"price": pa.array([True])}, "bool is no number"),
        ({"time": pa.array([True]), "price": [1.0]}, "bool is no time"),
        ({"time": pa.array([None], pa.int64()), "price": [1.0]}, "row 1, .*: every record has a time"),
        ({"price": ["1.0x"]}, r"row 1, price: '1.0x': not a number"),
        ({"price": [float("inf")]}, "row 1, price: inf: a number is finite"),
        ({"price": [1.0], "size": pa.array([2**53 + 1])}, "row 1, size: '9007199254740993': .*53 bits"),
        ({"price": [1.0], "trades": [1.5]}, "row 1, trades: '1.5': not a whole number"),
        ({"price": [1.0], "trades": pa.array([2**64 - 1], pa.uint64())}, "row 1, trades: .*not a whole number"),
        ({"price": [1.0], "side": [7]}, "row 1, side: '7': not a side"),
        ({"price": [1.0], "symbol": pa.array([None], pa.string())}, "row 1, symbol: .*needs a symbol"),
        ({"price": [1.0], "symbol": [1.5]}, "row 1, column 'symbol' .*double is no text"),
        ({"time": pa.array([2**62], pa.timestamp("ms")), "price": [1.0]}, "outside 1970"),
        ({"prize": [1.0]}, "no column for price, bid or ask"),
        ({"time": pa.array([-5], pa.timestamp("ns")), "price": [1.0]}, "row 1, ts_event_ns"),
    ],
)
def test_a_wrong_type_or_value_is_told_by_file_row_and_column_and_nothing_is_stored(
    tape: onetape.Tape, write: Any, columns: dict[str, Any], message: str
) -> None:
    path = write({"time": pa.array([T0]), "symbol": ["A"], **columns})
    with pytest.raises(ImportInvalid, match=message) as caught:
        _one(tape, path)
    assert str(path) in str(caught.value)
    assert tape.stats().head == 0


def test_good_rows_of_a_file_with_wrong_ones_can_be_stored(tape: onetape.Tape, write: Any) -> None:
    rows = 2500
    prices = ["x" if i % 1000 == 7 else str(i) for i in range(rows)]
    path = write({"time": pa.array([T0 + i for i in range(rows)]), "price": prices})
    result = _one(tape, path, symbol="A", on_invalid="quarantine")
    assert (result.stored, result.refused) == (rows - 3, 3)
    assert [one.place for one in result.first_refused] == ["row 8", "row 1008", "row 2008"]
    assert len(tape.quarantined()) == 3


def test_row_groups_become_batches_of_one_size_and_an_import_goes_on_where_it_was(
    tape: onetape.Tape, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onetape.importing.format.BATCH_ROWS", 700)
    rows = 2500
    path = write({"time": pa.array([T0 + i for i in range(rows)]), "price": [float(i) for i in range(rows)]})
    append, calls = onetape.Tape.append_table, []

    def killed_at_the_third(self: onetape.Tape, data: Any, **identity: Any) -> Any:
        calls.append(identity["batch"])
        if len(calls) == 3:
            raise onetape.TapeFull("the disk is full")
        return append(self, data, **identity)

    monkeypatch.setattr(onetape.Tape, "append_table", killed_at_the_third)
    with pytest.raises(onetape.TapeFull):
        _one(tape, path, symbol="A")
    monkeypatch.setattr(onetape.Tape, "append_table", append)
    result = _one(tape, path, symbol="A")
    assert (result.stored, result.known) == (1100, 1400)
    assert tape.read("A").column("price").to_pylist() == [float(i) for i in range(rows)]
    again = path.with_name("renamed" + path.suffix)
    path.rename(again)
    assert _one(tape, again, symbol="A").stored == 0


def test_a_cut_or_damaged_file_is_refused_and_nothing_is_stored(tape: onetape.Tape, write: Any) -> None:
    path = write({"time": pa.array([T0 + i for i in range(3000)]), "price": [float(i) for i in range(3000)]})
    whole = path.read_bytes()
    for cut in (0, 3, 50, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:cut])
        with pytest.raises(ImportInvalid, match=r"cannot be read|changed|not a format"):
            _one(tape, path, symbol="A")
    assert tape.stats().head == 0


def test_a_folder_in_the_manner_of_hive_is_one_import(tape: onetape.Tape, tmp_path: Path) -> None:
    for symbol, day in (("BTC%2FUSD", 0), ("BTC%2FUSD", 1), ("ES", 0)):
        folder = tmp_path / f"in/symbol={symbol}/date=2026-01-0{day + 5}"
        folder.mkdir(parents=True)
        times = [T0 + day * 86_400 * 10**9 + i for i in range(3)]
        pq.write_table(pa.table({"ts": times, "price": [1.0, 2.0, 3.0]}), folder / "data.parquet")
    (tmp_path / "in/_SUCCESS").write_text("")
    result = _one(tape, tmp_path / "in")
    assert (result.stored, result.symbols) == (9, ("BTC/USD", "ES"))
    assert _one(tape, tmp_path / "in").stored == 0
    bad = tmp_path / "in/symbol=ES/date=2026-01-05/data.parquet"
    pq.write_table(pa.table({"ts": [T0, T0], "price": ["1", "one"]}), bad)
    with pytest.raises(ImportInvalid, match=r"symbol=ES/date=2026-01-05/data.parquet, row 2, price: 'one'"):
        _one(tape, tmp_path / "in")


def test_what_an_export_holds_is_known_by_its_metadata(tape: onetape.Tape, tmp_path: Path) -> None:
    tape.append([onetape.Bar("ES", "1h", T0 - T0 % (3600 * 10**9), 1, 3, 0.5, 2, source="v")])
    export(tape, tmp_path / "b", format="parquet", what="bars", interval="1h", columns=None)
    export(tape, tmp_path / "empty", format="parquet")
    with onetape.open(tmp_path / "new.db") as new:
        assert _one(new, tmp_path / "b").kind == "bars"
        assert import_file(new, tmp_path / "empty") == []
        assert [bar.close for bar in new.bar_list("ES", "1h")] == [2]


def test_files_are_found_by_what_is_in_them(write: Any, tmp_path: Path) -> None:
    path = write({"time": [T0], "price": [1.0]})
    other = path.rename(tmp_path / "data")
    found = formats.detect(other)
    assert found is not None
    assert found.name in ("parquet", "arrow")
