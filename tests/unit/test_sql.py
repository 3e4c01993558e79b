"""SQL, Polars and PyArrow over a tape: the same rows as read(), no more read than asked, and nothing but reading."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pytest

import onetape
from onetape.store import query

pytest.importorskip("duckdb")

HOUR = 3_600_000_000_000
T0 = onetape.to_ns("2025-03-14T09:00:00")
SYMBOLS = ("ES", "NQ", "YM")


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Iterator[onetape.Tape]:
    """Three symbols over eight hours, an hour a chunk, and some ticks not sealed yet."""
    with onetape.open(tmp_path_factory.mktemp("sql") / "t.db", retention_days=None) as opened:
        for hour in range(8):
            for symbol in SYMBOLS:
                opened.append([_tick(symbol, hour, i) for i in range(1500)])
                opened.seal()
        opened.append([onetape.Tick("ES", T0 + 9 * HOUR, bid=1.5, source="late"), _tick("NQ", 3, 7)])
        yield opened


def _tick(symbol: str, hour: int, i: int) -> onetape.Tick:
    return onetape.Tick(symbol, T0 + hour * HOUR + i * 1_000_000_001, price=100 + i % 7, size=i % 3, side=1)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, tuple[str, ...]]]:
    """What is read of the tape: (symbol id, start_ns, end_ns, columns)."""
    found: list[tuple[int, int, int, tuple[str, ...]]] = []
    whole = query.ticks

    def ticks(connection: Any, symbol_id: int, start: int, end: int, **more: Any) -> Any:
        found.append((symbol_id, start, end, tuple(more["wanted"])))
        return whole(connection, symbol_id, start, end, **more)

    monkeypatch.setattr(query, "ticks", ticks)
    return found


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    return sorted((row for row in table.to_pylist()), key=lambda row: row["seq"])


def test_all_of_ticks_is_all_that_read_returns(tape: onetape.Tape) -> None:
    found = tape.sql("SELECT * EXCLUDE (time) FROM ticks")
    assert _rows(found) == _rows(tape.read(None))
    times = tape.sql("SELECT ts_event_ns, epoch_us(time) AS us FROM ticks").to_pylist()
    assert all(row["us"] == row["ts_event_ns"] // 1000 for row in times)


@pytest.mark.parametrize(
    ("where", "expression"),
    [
        ("symbol = 'ES'", pc.field("symbol") == "ES"),
        ("symbol IN ('ES', 'YM', 'none')", pc.field("symbol").isin(["ES", "YM"])),
        ("symbol <> 'ES' AND price >= 103", (pc.field("symbol") != "ES") & (pc.field("price") >= 103)),
        ("symbol LIKE 'N%'", pc.field("symbol") == "NQ"),
        (f"ts_event_ns BETWEEN {T0 + HOUR} AND {T0 + 2 * HOUR}",
         (pc.field("ts_event_ns") >= T0 + HOUR) & (pc.field("ts_event_ns") <= T0 + 2 * HOUR)),
        ("time >= '2025-03-14 11:30' AND time < '2025-03-14 12:00'",
         (pc.field("ts_event_ns") >= T0 + 5 * HOUR // 2) & (pc.field("ts_event_ns") < T0 + 3 * HOUR)),
        (f"(symbol = 'ES' AND ts_event_ns < {T0 + HOUR}) OR (symbol = 'NQ' AND ts_event_ns > {T0 + 7 * HOUR})",
         ((pc.field("symbol") == "ES") & (pc.field("ts_event_ns") < T0 + HOUR))
         | ((pc.field("symbol") == "NQ") & (pc.field("ts_event_ns") > T0 + 7 * HOUR))),
        ("price IS NULL OR source = 'late'", pc.field("price").is_null()),
        ("time::DATE = '2025-03-15'", pc.field("ts_event_ns") < 0),
        ("NOT (symbol = 'ES' OR symbol = 'NQ')", pc.field("symbol") == "YM"),
    ],
)  # fmt: skip
def test_a_condition_keeps_the_rows_that_it_keeps_of_read(
    tape: onetape.Tape, where: str, expression: pc.Expression
) -> None:
    expected = _rows(tape.read(None).filter(expression))
    assert _rows(tape.sql(f"SELECT * EXCLUDE (time) FROM ticks WHERE {where}")) == expected
    assert _rows(tape.dataset().to_table(filter=expression).drop(["time"])) == expected
    assert tape.dataset().count_rows(expression) == len(expected)


def test_only_the_symbols_times_and_columns_asked_for_are_read(
    tape: onetape.Tape, windows: list[tuple[int, int, int, tuple[str, ...]]]
) -> None:
    found = tape.sql(
        "SELECT avg(price) AS mean FROM ticks"
        " WHERE symbol = ? AND time >= '2025-03-14 11:00' AND time < '2025-03-14 12:00'",
        ["NQ"],
    )
    part = tape.read("NQ", T0 + 2 * HOUR, T0 + 3 * HOUR, ["price"])
    assert found["mean"].to_pylist() == [pc.mean(part["price"]).as_py()]
    *read, _ = windows
    assert {symbol_id for symbol_id, *_ in read} == {tape._symbol_ids["NQ"]}
    assert sum(min(end, T0 + 9 * HOUR) - max(start, T0) for _, start, end, _ in read) <= 3 * HOUR
    assert all(set(columns) <= {"price", "ts_event_ns"} for *_, columns in read)


def test_a_filter_true_of_whole_pieces_needs_no_column(
    tape: onetape.Tape, windows: list[tuple[int, int, int, tuple[str, ...]]]
) -> None:
    assert tape.dataset().to_table(["price"], filter=pc.field("symbol") == "YM").num_rows == 12_000
    assert {(symbol_id, columns) for symbol_id, *_, columns in windows} == {(tape._symbol_ids["YM"], ("price",))}


def test_a_symbol_nobody_has_reads_nothing(tape: onetape.Tape, windows: list[Any]) -> None:
    assert tape.sql("SELECT * FROM ticks WHERE symbol = 'none'").num_rows == 0
    assert not windows


def test_a_query_is_of_one_moment(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db") as tape:
        tape.append([onetape.Tick("ES", T0, price=1), onetape.Tick("ES", T0, price=2)])
        assert tape.sql("SELECT count(*) AS n FROM ticks", as_of=1)["n"].to_pylist() == [1]
        dataset = tape.dataset()
        tape.append(onetape.Tick("ES", T0, price=3))
        assert dataset.count_rows() == 2 and tape.dataset().count_rows() == 3


def test_bars_and_symbols_are_tables_too(tape: onetape.Tape) -> None:
    bars = tape.sql("SELECT * EXCLUDE (time) FROM bars WHERE interval = '5min' AND symbol = 'ES' ORDER BY ts_start_ns")
    assert bars.to_pylist() == tape.bars("ES", "5min").to_pylist()
    assert (
        tape.sql("SELECT * EXCLUDE (time) FROM bars_2min WHERE symbol = 'YM'").num_rows
        == tape.bars("YM", "2min").num_rows
    )
    joined = tape.sql(
        "SELECT s.symbol, count(*) AS n FROM symbols s JOIN bars_1h USING (symbol) GROUP BY ALL ORDER BY 1"
    )
    assert joined.to_pylist() == [{"symbol": name, "n": tape.bars(name, "1h").num_rows} for name in SYMBOLS]
    with pytest.raises(onetape.ConfigInvalid, match="no table bars_0min"):
        tape.sql("SELECT * FROM bars_0min")


def test_duckdbs_own_asof_join_comes_back_and_agrees(tape: onetape.Tape) -> None:
    found = tape.sql(
        "SELECT t.seq, q.price FROM (SELECT * FROM ticks WHERE symbol = 'ES' AND price IS NOT NULL) t"
        " ASOF JOIN (SELECT * FROM ticks WHERE symbol = 'NQ') q ON t.ts_event_ns >= q.ts_event_ns ORDER BY 1"
    )
    nq = tape.read("NQ", columns=["ts_event_ns", "price"]).rename_columns(["ts_event_ns", "bid"])
    es = tape.read("ES", columns=["ts_event_ns", "seq", "price"])
    expected = onetape.join_as_of(es.filter(pc.is_valid(es["price"])), nq, ["bid"], same_tape=False).sort_by("seq")
    assert found["price"].to_pylist() == expected["bid"].to_pylist()


def test_polars_scans_with_its_conditions_pushed_down(tape: onetape.Tape, windows: list[Any]) -> None:
    lazy = tape.scan().filter((pl.col("symbol") == "NQ") & (pl.col("ts_event_ns") >= T0 + 7 * HOUR)).select("price")
    assert lazy.collect()["price"].to_list() == tape.read("NQ", T0 + 7 * HOUR)["price"].to_pylist()
    *read, _ = windows
    assert {symbol_id for symbol_id, *_ in read} == {tape._symbol_ids["NQ"]}
    assert all("bid" not in columns for *_, columns in read)
    means = tape.scan(["ES", "YM"]).group_by("symbol").agg(pl.len()).collect().sort("symbol")
    assert means["len"].to_list() == [12_001, 12_000]
    assert tape.scan("ES").head(3).collect()["seq"].to_list() == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT * FRM ticks", "line 1, column 14: syntax error"),
        ("SELECT symbol,\n  '東', nope\nFROM ticks", 'line 2, column 8: Referenced column "nope"'),
        ("SELECT * FROM missing", "line 1, column 15: Table with name missing does not exist"),
        ("SELECT price::DATE FROM ticks", "line 1, column 13"),
        ("", "no SQL statement"),
        ("SELECT 1; SELECT 2", "2 SQL statements"),
        ("DELETE FROM ticks", "DELETE is not answered"),
        ("CREATE TABLE x AS SELECT 1", "CREATE is not answered"),
        ("SET threads = 1", "SET is not answered"),
        ("ATTACH 'x.db'", "ATTACH is not answered"),
        ("COPY ticks TO 'x.csv'", "COPY is not answered"),
        ("SELECT * FROM ticks WHERE symbol = ?", ""),
    ],
)
def test_what_is_no_good_query_is_refused_and_the_place_named(tape: onetape.Tape, text: str, message: str) -> None:
    with pytest.raises(onetape.QueryInvalid) as caught:
        tape.sql(text)
    assert message in str(caught.value) and "\n" not in str(caught.value) and "{" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["FROM 'x.csv'", "FROM read_text('x.csv')", "FROM read_csv('x.csv')", "FROM glob('*')", "FROM read_blob('x.csv')",
     "SELECT * FROM secret", "SELECT * FROM query('COPY (SELECT 1) TO ''y.csv''')"],
)  # fmt: skip
def test_a_query_sees_no_file_and_no_variable_of_its_caller(
    tape: onetape.Tape, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    secret = pa.table({"a": [1]})
    with pytest.raises(onetape.QueryInvalid):
        tape.sql(text)
    assert secret.num_rows == 1 and [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_an_answer_too_large_and_a_query_too_hungry_say_so(tape: onetape.Tape) -> None:
    with pytest.raises(onetape.QueryTooLarge, match="larger than 100,000 bytes"):
        tape.sql("SELECT * FROM ticks", result_bytes_max=100_000)
    with pytest.raises(onetape.QueryTooLarge, match="more memory"):
        tape.sql("SELECT list(a) FROM range(20000000) t(a)", memory_bytes=16 * 2**20)


def test_an_answer_may_be_left_half_read(tape: onetape.Tape) -> None:
    for _ in range(5):
        with tape.sql_batches("SELECT * FROM ticks a, symbols") as (schema, batches):
            assert "price" in schema.names and next(batches).num_rows
    with pytest.raises(ZeroDivisionError), tape.sql_batches("SELECT * FROM ticks") as (_, batches):
        raise ZeroDivisionError


def test_a_damaged_chunk_is_told_by_its_own_name_through_every_engine(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        tape.append_table({"symbol": ["ES"] * 9000, "ts_event_ns": range(T0, T0 + 9000), "price": [1.0] * 9000})
        connection = tape._writing()
        connection.execute(
            "UPDATE chunk SET payload = CAST(substr(payload, 1, 40) || x'FF00' || substr(payload, 43) AS BLOB)"
        )
        with pytest.raises(onetape.ChunkCorrupt):
            tape.sql("SELECT sum(price) FROM ticks")
        with pytest.raises(onetape.ChunkCorrupt):
            tape.dataset().to_table()
        with pytest.raises(onetape.ChunkCorrupt):
            list(tape.batches("ES"))


def test_without_duckdb_or_polars_it_says_what_to_install(tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(onetape.ConfigInvalid, match=r"pip install onetape\[sql\]"):
        tape.sql("SELECT 1")
    with pytest.raises(onetape.ConfigInvalid, match=r"pip install onetape\[polars\]"):
        tape.scan()


def test_a_dataset_is_one_of_pyarrows_but_cannot_be_changed(tape: onetape.Tape) -> None:
    dataset = tape.dataset("ES")
    assert isinstance(dataset, pads.Dataset) and dataset.schema.field("time").type == pa.timestamp("us")
    assert dataset.head(3, columns=["seq"])["seq"].to_pylist() == [1, 2, 3]
    assert dataset.head(0).num_rows == 0
    with pytest.raises(onetape.ConfigInvalid, match="no column 'x'"):
        dataset.to_table(["x"])
    with pytest.raises(onetape.ConfigInvalid, match="scanned, not changed"):
        dataset.filter(pc.field("price") > 1)


def test_a_tape_that_is_closed_meanwhile_says_so(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db") as tape:
        tape.append(onetape.Tick("ES", T0, price=1))
        dataset, reader = tape.dataset(), tape.batches("ES")
        with tape.sql_batches("SELECT symbol FROM symbols") as (_, batches):
            assert next(batches).num_rows == 1
    with pytest.raises(onetape.TapeClosed):
        dataset.to_table()
    with pytest.raises(onetape.TapeClosed):
        reader.read_next_batch()
    with pytest.raises(onetape.TapeClosed):
        tape.sql("SELECT 1 FROM ticks")


def test_bars_asked_for_as_of_a_moment_know_nothing_of_later_trades(tmp_path):
    start = 1_767_225_600_000_000_000
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        done = tape.append([onetape.Tick("A", start + i, price=1.0, size=1.0) for i in range(10)])
        tape.append([onetape.Tick("A", start + i, price=9.0, size=1.0) for i in range(5)])
        tape.cancel(tape.tick_at(1))
        for table in ("bars WHERE interval = '1min'", "bars_5min", "bars_7s"):
            query = f"SELECT max(high) AS high, sum(volume) AS volume FROM {table}"
            assert tape.sql(query, as_of=done.last).to_pylist() == [{"high": 1.0, "volume": 10.0}]
            assert tape.sql(query).to_pylist() == [{"high": 9.0, "volume": 14.0}]
