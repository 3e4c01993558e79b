"""Appending: what goes in comes back bit for bit, and what is invalid is named and leaves nothing behind."""

import datetime as dt
import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import onetape
from onetape import Bar, InvalidRecord, Tick

T0 = 1_700_000_000_000_000_000


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db") as opened:
        yield opened


FULL = Tick(
    "NFO:NIFTY 25NOV FUT",
    T0 + 1,
    price=0.1 + 0.2,
    size=0.0,
    bid=101.0,
    ask=100.0,
    bid_size=5e-324,
    ask_size=1.7e308,
    side=onetape.SELL,
    flags=2**32 - 1,
    open=-3.5,
    high=1e-9,
    low=-0.0,
    volume=12345678.5,
    vwap=99.99,
    trades=2**63 - 1,
    open_interest=7.0,
    source="feed é",
    ts_recv_ns=0,
)


def test_every_field_comes_back_bit_for_bit_from_memory_file_and_after_sealing(tape):
    import msgspec

    done = tape.append(FULL)
    expected = msgspec.structs.replace(FULL, seq=done.first)
    assert tape.latest(FULL.symbol) == expected
    assert math.copysign(1, tape.latest(FULL.symbol).low) == -1
    assert tape.read(FULL.symbol).to_pylist() == [msgspec.to_builtins(expected)]
    tape.seal()
    assert tape.read(FULL.symbol).to_pylist() == [msgspec.to_builtins(expected)]
    assert tape.recent(FULL.symbol, 5000) == [expected]


def test_absent_fields_stay_absent(tape):
    tape.append([Tick("A", T0, bid=1.0), Tick("A", T0 + 1, price=2.0, trades=0)])
    rows = tape.read("A", columns=["bid", "price", "trades", "source", "side"]).to_pylist()
    assert rows[0] == {"bid": 1.0, "price": None, "trades": None, "source": None, "side": 0}
    assert rows[1] == {"bid": None, "price": 2.0, "trades": 0, "source": None, "side": 0}


BAD = [
    ({"price": math.nan}, "price"),
    ({"price": math.inf}, "price"),
    ({"bid": -math.inf}, "bid"),
    ({"price": 1.0, "vwap": math.nan}, "vwap"),
    ({"price": 1.0, "size": -1.0}, "size"),
    ({"price": 1.0, "size": math.nan}, "size"),
    ({"price": 1.0, "bid_size": -0.5}, "bid_size"),
    ({"price": 1.0, "volume": -1.0}, "volume"),
    ({}, "price"),
    ({"size": 3.0}, "price"),
    ({"price": "100.5"}, "price"),
    ({"price": 1.0, "trades": 2**63}, "trades"),
    ({"price": 1.0, "trades": -1}, "trades"),
    ({"price": 1.0, "flags": 2**32}, "flags"),
    ({"price": 1.0, "flags": -1}, "flags"),
    ({"price": 1.0, "side": 2}, "side"),
    ({"price": 1.0, "side": 300}, "side"),
    ({"price": 1.0, "ts_recv_ns": -1}, "ts_recv_ns"),
    ({"price": 1.0, "ts_event_ns": -1}, "ts_event_ns"),
    ({"price": 1.0, "ts_event_ns": 2**63}, "ts_event_ns"),
    ({"price": 1.0, "ts_event_ns": 2**63 - 1}, "ts_event_ns"),
    ({"price": 1.0, "ts_event_ns": None}, "ts_event_ns"),
    ({"price": 1.0, "ts_event_ns": 1.5}, "ts_event_ns"),
    ({"price": 1.0, "symbol": ""}, "symbol"),
    ({"price": 1.0, "symbol": None}, "symbol"),
    ({"price": 1.0, "symbol": "A\x00B"}, "symbol"),
    ({"price": 1.0, "symbol": "x" * 256}, "symbol"),
    ({"price": 1.0, "symbol": 7}, "symbol"),
    ({"price": 1.0, "symbol": "\ud800"}, "symbol"),
]


@pytest.mark.parametrize("known", [False, True], ids=["new symbol", "known symbol"])
@pytest.mark.parametrize("fields,culprit", BAD)
def test_an_invalid_tick_is_named_and_nothing_of_its_batch_is_stored(tape, fields, culprit, known):
    if known:
        tape.append(Tick("A", T0, price=1.0))
    before = tape.stats().head
    bad = Tick(**{"symbol": "A", "ts_event_ns": T0, **fields})
    for batch, index in ((bad, 0), ([Tick("A", T0, price=1.0), bad], 1)):
        with pytest.raises(InvalidRecord) as caught:
            tape.append(batch)
        assert (caught.value.index, caught.value.field) == (index, culprit)
        assert "\n" not in str(caught.value)
        assert caught.value.hint
    with pytest.raises(InvalidRecord):
        tape.check(bad)
    assert tape.stats().head == before


def test_quarantine_keeps_the_good_and_tells_of_the_bad(tape):
    batch = [Tick("A", T0, price=1.0), Tick("A", T0 + 1, price=math.nan), Tick("A", T0 + 2, price=3.0), Tick("", 1)]
    done = tape.append(batch, on_invalid="quarantine", batch="file-1")
    assert done.stored == 2
    assert [tick.price for tick in tape.recent("A")] == [1.0, 3.0]
    refused = tape.quarantined()
    assert [(bad.index, bad.field, bad.batch) for bad in refused] == [(3, "symbol", "file-1"), (1, "price", "file-1")]
    assert refused[1].record["symbol"] == "A"
    assert tape.append(batch, on_invalid="quarantine", batch="file-1").stored == 0
    assert len(tape.quarantined()) == 2


def test_a_lone_bad_tick_can_be_quarantined(tape):
    assert tape.append(Tick("A", T0, price=math.inf), on_invalid="quarantine").stored == 0
    assert tape.quarantined()[0].field == "price"


def test_an_empty_batch_is_nothing(tape):
    assert tape.append([]).stored == 0
    assert tape.append_table({"symbol": "A", "ts_event_ns": [], "price": []}).stored == 0
    assert tape.stats().head == 0


def test_something_else_than_a_record_is_refused(tape):
    with pytest.raises(InvalidRecord, match="a record is a Tick or a Bar"):
        tape.append([Tick("A", T0, price=1.0), "hello"])
    assert tape.stats().head == 0


def test_positions_follow_the_order_given_also_across_symbols_and_kinds(tape):
    bar = Bar("B", "1d", 0, 1.0, 2.0, 0.5, 1.5)
    done = tape.append([Tick("A", T0, price=1.0), bar, Tick("C", T0 - 9, price=2.0), Tick("A", T0, price=3.0)])
    assert done == (1, 4, 4)
    seen = list(tape.follow(from_seq=0, idle_s=0))
    assert [(record.symbol, record.seq) for record in seen] == [("A", 1), ("B", 2), ("C", 3), ("A", 4)]
    tape.seal()
    assert list(tape.follow(from_seq=0, idle_s=0)) == seen


def test_an_unsorted_batch_is_fine_and_reads_sorted(tape):
    tape.append([Tick("A", T0 + offset, price=float(offset)) for offset in (5, 1, 9, 1, 0)])
    assert [tick.price for tick in tape.recent("A")] == [0.0, 1.0, 1.0, 5.0, 9.0]
    assert tape.latest("A").price == 9.0


COLUMNS = {
    "symbol": ["A", "B", "A"],
    "ts_event_ns": [T0, T0 + 1, T0 + 2],
    "price": [1.5, None, 2.5],
    "bid": [None, 7.0, 2.0],
    "trades": [None, 3, 4],
    "source": ["x", None, "y"],
}
EXPECTED = [
    {"ts_event_ns": T0, "price": 1.5, "bid": None, "trades": None, "source": "x"},
    {"ts_event_ns": T0 + 2, "price": 2.5, "bid": 2.0, "trades": 4, "source": "y"},
]


def _as_numpy():
    nan = math.nan
    return {
        "symbol": np.array(["A", "B", "A"]),
        "ts_event_ns": np.array([T0, T0 + 1, T0 + 2]).astype("datetime64[ns]"),
        "price": np.array([1.5, nan, 2.5]),
        "bid": np.array([nan, 7.0, 2.0], dtype="float32"),
        "trades": np.array([nan, 3, 4]),
        "source": np.array(["x", None, "y"], dtype=object),
    }


def _as_arrow():
    table = pa.table(COLUMNS)
    ts = table["ts_event_ns"].cast(pa.timestamp("ns", "Asia/Kolkata"))
    return table.set_column(1, "ts_event_ns", ts).set_column(0, "symbol", table["symbol"].dictionary_encode())


FRAMES = {
    "dict of lists": lambda: COLUMNS,
    "dict of numpy": _as_numpy,
    "arrow": _as_arrow,
    "arrow batch": lambda: pa.table(COLUMNS).to_batches()[0],
    "arrow in chunks": lambda: pa.concat_tables([pa.table(COLUMNS).slice(0, 1), pa.table(COLUMNS).slice(1)]),
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "polars": lambda: pl.DataFrame(COLUMNS),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_table_of_any_kind_reads_back_the_same(tape, name):
    assert tape.append_table(FRAMES[name]()).stored == 3
    columns = ["ts_event_ns", "price", "bid", "trades", "source"]
    assert tape.read("A", columns=columns).to_pylist() == EXPECTED
    assert tape.read("B", columns=["price", "bid", "trades"]).to_pylist() == [{"price": None, "bid": 7.0, "trades": 3}]


def test_what_is_read_can_be_appended_again(tape):
    tape.append_table(COLUMNS)
    with onetape.open(tape.path.with_name("copy.db")) as other:
        other.append_table(tape.read("A"))
        assert other.read("A").drop_columns(["seq"]) == tape.read("A").drop_columns(["seq"])


def test_scalars_stand_for_every_row_and_texts_for_times(tape):
    tape.append_table({"symbol": "A", "source": "s", "ts_event_ns": ["2025-01-01", dt.datetime(2025, 1, 2)], "bid": 1})
    rows = tape.read("A", columns=["ts_event_ns", "bid", "source"]).to_pylist()
    assert [row["ts_event_ns"] for row in rows] == [1_735_689_600_000_000_000, 1_735_776_000_000_000_000]
    assert rows[0]["bid"] == 1.0
    assert rows[1]["source"] == "s"


@pytest.mark.parametrize(
    "table,message",
    [
        ({"symbol": "A", "price": [1.0]}, "no column 'ts_event_ns'"),
        ({"ts_event_ns": [1], "price": [1.0]}, "no column 'symbol'"),
        ({"symbol": "A", "ts_event_ns": [1], "prize": [1.0]}, "no tick has a column 'prize'"),
        ({"symbol": "A", "ts_event_ns": [1, 2], "price": [1.0]}, "differ in length"),
        ({"symbol": "A", "ts_event_ns": 1, "price": 1.0}, "every column is a scalar"),
        ([1, 2], "cannot append a list"),
    ],
)
def test_a_table_that_is_not_one_of_ticks_is_refused(tape, table, message):
    with pytest.raises(onetape.ConfigInvalid, match=message):
        tape.append_table(table)
    assert tape.stats().head == 0


@pytest.mark.parametrize(
    "column,values,field",
    [
        ("price", np.array([1.0, np.inf]), "price"),
        ("price", pa.array([1.0, math.nan]), "price"),
        ("price", ["1", "2"], "price"),
        ("trades", np.array([1, 2**64 - 1], dtype="u8"), "trades"),
        ("trades", np.array([1.0, 2.5]), "trades"),
        ("ts_event_ns", [1, -5], "ts_event_ns"),
        ("ts_event_ns", [1, None], "ts_event_ns"),
        ("ts_event_ns", ["2025-01-01", "soon"], "ts_event_ns"),
        ("ts_event_ns", np.array([1.0, math.nan]), "ts_event_ns"),
        ("symbol", ["A", None], "symbol"),
        ("symbol", pa.array(["A", None]), "symbol"),
        ("side", np.array([1, 257]), "side"),
    ],
)
def test_a_bad_value_in_a_table_is_named(tape, column, values, field):
    table = {"symbol": "A", "ts_event_ns": [1, 2], "price": [1.0, 2.0], column: values}
    with pytest.raises(InvalidRecord) as caught:
        tape.append_table(table)
    assert caught.value.field == field
    if field != "side":
        assert caught.value.index == (0 if isinstance(values, list) and values == ["1", "2"] else 1)
    assert tape.stats().head == 0


def test_equal_records_are_two_records(tape):
    tick = Tick("A", T0, price=1.0)
    tape.append([tick, tick])
    tape.append(tick)
    assert len(tape.recent("A")) == 3


def test_a_known_batch_changes_nothing_even_after_sealing_and_reopening(tape):
    first = tape.append_table(COLUMNS, batch="digest-1")
    tape.seal()
    again = tape.append_table(COLUMNS, batch="digest-1")
    assert (again.first, again.last, again.stored) == (first.first, first.last, 0)
    with onetape.open(tape.path) as other:
        assert other.append([Tick("Z", 1, price=1.0)], batch="digest-1").stored == 0
    assert tape.stats().ticks == 3
    assert [info.symbol for info in tape.symbols()] == ["A", "B"]


def test_ids_skip_only_the_records_that_are_known(tape):
    ticks = [Tick("A", T0 + i, price=float(i)) for i in range(4)]
    assert tape.append(ticks[:2], ids=[b"0", b"1"]).stored == 2
    assert tape.append(ticks, ids=[b"0", b"1", b"2", b"3"]).stored == 2
    assert tape.append(ticks[:1] * 2, ids=[b"9", b"9"]).stored == 1
    assert [tick.price for tick in tape.recent("A")] == [0.0, 0.0, 1.0, 2.0, 3.0]
    assert tape.has_ids([b"0", b"7", b"9"]) == [True, False, True]


def test_a_cursor_moves_with_the_records_or_not_at_all(tape):
    tick = Tick("A", T0, price=1.0)
    tape.append([tick], cursor=("stream", None, "5-0"))
    assert tape.cursor("stream") == "5-0"
    for before in (None, "4-0"):
        with pytest.raises(onetape.CursorConflict, match="is at '5-0'"):
            tape.append([tick], cursor=("stream", before, "6-0"))
    with pytest.raises(InvalidRecord):
        tape.append([Tick("A", -1, price=1.0)], cursor=("stream", "5-0", "6-0"))
    assert tape.cursor("stream") == "5-0"
    assert tape.append([], cursor=("stream", "5-0", "7-0")).stored == 0
    assert tape.cursor("stream") == "7-0"
    assert len(tape.recent("A")) == 1


def test_identity_that_cannot_be_used_is_refused(tape):
    tick = Tick("A", T0, price=1.0)
    for identity in (
        {"batch": "a", "ids": [b"1"]},
        {"batch": ""},
        {"ids": []},
        {"ids": [b""]},
        {"ids": ["text"]},
        {"ids": [b"x" * 65]},
    ):
        with pytest.raises(onetape.ConfigInvalid):
            tape.append([tick], **identity)
    with pytest.raises(onetape.ConfigInvalid, match="on_invalid"):
        tape.append([tick], on_invalid="ignore")
    assert tape.stats().head == 0
