"""Reading history: zero-copy Arrow, several symbols, the newest, batches of one moment, trades beside quotes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import onetape
from onetape.store import arrow, query
from onetape.store.query import Names
from onetape.tape import history

DAY = 86_400_000_000_000
T0 = onetape.to_ns("2025-03-14T13:30:00")


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        yield opened


def _address(array: pa.Array) -> int:
    return int(array.buffers()[1].address)


def test_a_full_column_becomes_arrow_without_a_copy_and_without_a_bitmap(tape: onetape.Tape) -> None:
    price, size = np.arange(1000.0), np.ones(1000)
    size[7] = np.nan
    columns = {"ts_event_ns": np.arange(1000), "price": price, "size": size, "seq": np.arange(1000)}
    with tape._reading() as connection:
        names = Names(tape._catalog, connection)
        table = arrow.to_arrow(columns, "ES", ["price", "size"], names)
    full, holed = table["price"].chunk(0), table["size"].chunk(0)
    assert _address(full) == price.ctypes.data and full.buffers()[0] is None
    assert _address(holed) == size.ctypes.data and holed.null_count == 1 and holed[7].as_py() is None


def test_frames_share_the_memory_of_the_table_that_was_read(tape: onetape.Tape) -> None:
    tape.append_table({"symbol": ["ES"] * 9000, "ts_event_ns": T0 + np.arange(9000), "price": np.arange(9000.0)})
    table = tape.read("ES", columns=["ts_event_ns", "price"])
    column = table["price"].chunk(0)
    assert table["price"].num_chunks == 1
    assert column.to_numpy(zero_copy_only=True).ctypes.data == _address(column)
    polars = pl.from_arrow(table)
    assert isinstance(polars, pl.DataFrame)
    assert polars["price"].to_numpy(allow_copy=False).ctypes.data == _address(column)
    pandas = table.to_pandas(split_blocks=True, zero_copy_only=True)  # raises where it would have to copy
    assert isinstance(pandas, pd.DataFrame) and pandas["price"].to_numpy().ctypes.data == _address(column)
    assert len(table.to_pandas()) == 9000


def test_duckdb_scans_the_table_that_was_read(tape: onetape.Tape) -> None:
    duckdb = pytest.importorskip("duckdb")
    tape.append([onetape.Tick("ES", T0 + i, price=float(i)) for i in range(10)])
    with duckdb.connect() as connection:
        ticks = tape.read("ES")  # noqa: F841  (DuckDB looks it up by its name)
        assert connection.sql("SELECT sum(price) FROM ticks WHERE symbol = 'ES'").fetchall() == [(45.0,)]


def test_an_unknown_column_is_refused_before_anything_is_read(
    tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape.append(onetape.Tick("ES", T0, price=1))
    monkeypatch.setattr(query, "ticks", lambda *a, **k: pytest.fail("it was read"))
    for read in (tape.read, tape.newest, tape.batches):
        with pytest.raises(onetape.ConfigInvalid, match="no tick has a column 'prize'"):
            read("ES", columns=["prize"])


def test_several_symbols_come_in_canonical_order_each_once(tape: onetape.Tape) -> None:
    tape.append(
        [onetape.Tick("NQ", T0 + 5, price=1), onetape.Tick("ES", T0 + 5, price=2), onetape.Tick("ES", T0, bid=3)]
    )
    table = tape.read(["ES", "NQ", "ES", "unknown"])
    assert [(row["symbol"], row["seq"]) for row in table.to_pylist()] == [("ES", 3), ("NQ", 1), ("ES", 2)]
    assert pa.types.is_dictionary(table.schema.field("symbol").type)
    assert tape.read(None) == tape.read(["ES", "NQ"])
    assert tape.read([]).num_rows == tape.read("unknown").num_rows == 0
    assert tape.read([]).schema == table.schema


def test_a_read_as_of_a_position_does_not_know_what_came_later(tape: onetape.Tape) -> None:
    tape.append([onetape.Tick("ES", T0, price=1), onetape.Tick("NQ", T0, price=1)])
    tape.append([onetape.Tick("ES", T0 - 1, price=2)])
    assert tape.read("ES", as_of=2)["seq"].to_pylist() == [1]
    assert tape.read(None, as_of=1)["symbol"].to_pylist() == ["ES"]
    with pytest.raises(onetape.ConfigInvalid, match="not yet"):
        tape.read("ES", as_of=99)


def test_the_newest_are_so_many_of_each_symbol(tape: onetape.Tape) -> None:
    tape.append([onetape.Tick("ES" if i % 3 else "NQ", T0 + i, price=i) for i in range(30)])
    tape.seal()
    tape.append(onetape.Tick("NQ", T0 - 1, price=99))  # late: not among the newest
    assert tape.newest(None, 2)["price"].to_pylist() == [24, 27, 28, 29]
    assert tape.newest("NQ", 2, ["price"])["price"].to_pylist() == [24, 27]
    with pytest.raises(onetape.ConfigInvalid, match="at least one"):
        tape.newest("ES", 0)


def test_what_is_appended_while_batches_are_read_is_not_in_them(
    tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PIECE_RECORDS", 10)
    monkeypatch.setattr(history, "CHUNK_RECORDS_MAX", 5)
    for part in range(6):  # each its own chunk, so each its own piece
        tape.append([onetape.Tick("ES", T0 + part * DAY + i, price=i) for i in range(20)])
        tape.seal()
    expected = tape.read("ES").to_pylist()
    reader = tape.batches("ES", batch_rows=7)
    found = reader.read_next_batch().to_pylist()
    tape.append([onetape.Tick("ES", T0 + 3 * DAY + i, price=-1) for i in range(50)])  # late, into a piece to come
    tape.append(onetape.Tick("ES", T0 + 9 * DAY, price=-1))
    tape.seal()
    for batch in reader:
        assert batch.num_rows <= 7
        found += batch.to_pylist()
    assert found == expected


def test_no_transaction_is_open_between_two_batches(tape: onetape.Tape) -> None:
    tape.append([onetape.Tick("ES", T0 + i, price=i) for i in range(20)])
    reader = tape.batches("ES", batch_rows=5)
    reader.read_next_batch()
    connection = tape._writing()
    tape.append(onetape.Tick("ES", T0, price=1))
    busy, logged, done = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0]
    assert (busy, logged, done) == (0, 0, 0)


def test_retention_that_overtakes_the_batches_is_an_error(tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PIECE_RECORDS", 10)
    monkeypatch.setattr(history, "CHUNK_RECORDS_MAX", 5)
    first = (onetape.now_ns() // DAY + 100) * DAY  # retention spares what was stored after the time it removes up to
    for part in range(4):
        tape.append([onetape.Tick("ES", first + part * DAY + i, price=i) for i in range(20)])
        tape.seal()
    reader = tape.batches("ES")
    assert reader.read_next_batch().num_rows == 20
    assert tape.prune(now=first + 3 * DAY, retention_days=0.5) == 60
    with pytest.raises(onetape.HistoryGone, match="retention removed ticks of ES"):
        reader.read_next_batch()
    assert tape.read("ES").num_rows == 20


def test_bad_arguments_of_batches_are_refused(tape: onetape.Tape) -> None:
    with pytest.raises(onetape.ConfigInvalid, match="batch_rows"):
        tape.batches("ES", batch_rows=0)
    assert list(tape.batches("ES")) == []
    assert tape.batches("ES", columns=["price", "symbol"]).schema.names == ["price", "symbol"]


def test_a_quote_from_before_the_span_counts_unless_it_is_too_old(tape: onetape.Tape) -> None:
    tape.append(onetape.Tick("ES", T0 - 3 * DAY, bid=1, ask=2, bid_size=5))
    tape.seal()
    tape.append([onetape.Tick("ES", T0 + i, price=i + 1) for i in range(3)])
    table = tape.trades_with_quotes("ES", T0)
    assert table["bid"].to_pylist() == [1, 1, 1] and table["bid_size"].to_pylist() == [5, 5, 5]
    assert table["quote_age_ns"].to_pylist() == [3 * DAY, 3 * DAY + 1, 3 * DAY + 2]
    assert tape.trades_with_quotes("ES", T0, max_age_ns=3 * DAY)["bid"].to_pylist() == [1, None, None]
    assert tape.trades_with_quotes("ES", T0 + 9).num_rows == tape.trades_with_quotes("unknown").num_rows == 0


def test_a_record_that_is_both_has_its_own_quote_and_one_side_replaces_both(tape: onetape.Tape) -> None:
    tape.append(
        [onetape.Tick("ES", T0, bid=1, ask=2), onetape.Tick("ES", T0, price=9, ask=3), onetape.Tick("ES", T0, bid=4)]
    )
    row = tape.trades_with_quotes("ES").to_pylist()[0]
    assert (row["bid"], row["ask"], row["quote_age_ns"]) == (None, 3, 0)


def test_trades_of_one_tape_find_quotes_of_another_by_time(tape: onetape.Tape, tmp_path: Path) -> None:
    tape.append([onetape.Tick("ES", T0 + i, price=i + 1) for i in range(3)])
    with onetape.open(tmp_path / "other.db") as other:
        other.append([onetape.Tick("NQ", T0, price=7), *(onetape.Tick("NQ", T0 + 1, bid=i) for i in (5, 6))])
        trades, quotes = tape.read("ES", columns=["ts_event_ns", "price", "seq"]), other.read("NQ")
    joined = onetape.join_as_of(trades, quotes, ["bid"], same_tape=False, prefix="nq_")
    assert joined["nq_bid"].to_pylist() == [None, 6, 6]
    assert joined["nq_quote_age_ns"].to_pylist() == [None, 0, 1]
    assert onetape.join_as_of(trades, quotes, ["bid"])["bid"].to_pylist() == [None, 5, 6]  # as if positions were one
    assert onetape.join_as_of(trades.slice(0, 0), quotes).num_rows == 0
    assert onetape.join_as_of(trades, quotes.slice(0, 0))["bid"].null_count == 3


def test_tables_that_cannot_be_joined_are_refused(tape: onetape.Tape) -> None:
    tape.append([onetape.Tick("ES", T0 + i, price=i + 1, bid=1) for i in range(3)])
    table = tape.read("ES", columns=["ts_event_ns", "seq", "bid"])
    with pytest.raises(onetape.ConfigInvalid, match="two columns 'bid'"):
        onetape.join_as_of(table, table, ["bid"])
    with pytest.raises(onetape.ConfigInvalid, match="no column 'ask'"):
        onetape.join_as_of(table, table, ["ask"])
    with pytest.raises(onetape.ConfigInvalid, match="not in order"):
        onetape.join_as_of(table.take([2, 0]).drop(["bid"]), table, ["bid"])
    with pytest.raises(onetape.ConfigInvalid, match="max_age_ns"):
        onetape.join_as_of(table, table, ["bid"], max_age_ns=-1)
