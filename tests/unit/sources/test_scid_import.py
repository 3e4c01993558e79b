"""Files of the .scid format onto the tape."""

from __future__ import annotations

import math
import struct
import time
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import sierra_files as sierra

import onetape
from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.importing import scid, scid_file
from onetape.importing.formats import Options, detect, import_file
from onetape.record import BUY, SELL

DAY_US = 1_767_600_000_000_000  # 2026-01-05 08:00 UTC


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "tape.db") as opened:
        yield opened


def _ticks(tape, symbol="ESZ6"):
    return tape.read(symbol, 0, onetape.record.TS_MAX_NS).to_pylist()


def _write(tmp_path, records, **of_header):
    return sierra.write(tmp_path / "ESZ6.scid", records, **of_header)


def test_single_trades_become_ticks_with_quote_side_and_the_counter_that_keeps_order(tape, tmp_path):
    path = _write(
        tmp_path,
        [
            sierra.trade(DAY_US, 6000.25, 3, bid=6000.0, ask=6000.25),
            sierra.trade(DAY_US + 1, 6000.0, 2, bid=6000.0, ask=6000.25, sold=True),
            sierra.trade(DAY_US + 2, 6000.0, 1),
        ],
    )
    (done,) = import_file(tape, path)
    assert (done.format, done.rows, done.stored, done.symbols) == ("scid", 3, 3, ("ESZ6",))
    first, second, third = tape.recent("ESZ6", 3)
    assert (first.ts_event_ns, second.ts_event_ns) == (DAY_US * 1000, DAY_US * 1000 + 1000)
    assert (first.price, first.size, first.bid, first.ask, first.side) == (6000.25, 3.0, 6000.0, 6000.25, BUY)
    assert second.side == SELL
    assert (third.bid, third.ask, third.source) == (None, None, "sierra")


def test_parts_of_an_unbundled_trade_are_marked(tape, tmp_path):
    parts = [sierra.record(DAY_US + at, open_) for at, open_ in enumerate((0.0, sierra.FIRST, 0.0, sierra.LAST))]
    import_file(tape, _write(tmp_path, parts))
    marks = [tick.flags for tick in tape.recent("ESZ6", 4)]
    assert marks == [0, scid_file.FIRST_PART, 0, scid_file.LAST_PART]


def test_other_opens_are_bars_with_the_interval_that_their_times_tell(tape, tmp_path):
    bars = [sierra.bar(DAY_US + at * 60_000_000, 10, 12, 9, 11) for at in (0, 1, 2, 7, 8)]
    (done,) = import_file(tape, _write(tmp_path, bars))
    assert (done.kind, done.stored) == ("bars", 5)
    (first, *_) = tape.bar_list("ESZ6", "1min", DAY_US * 1000, (DAY_US + 10**9) * 1000, source="sierra")
    assert (first.open, first.high, first.low, first.close, first.volume) == (10, 12, 9, 11, 10)
    assert (first.trades, first.bid_volume, first.ask_volume, first.complete) == (3, 4, 6, True)


def test_a_bar_alone_needs_its_interval_said(tape, tmp_path):
    path = _write(tmp_path, [sierra.bar(DAY_US, 10, 12, 9, 11)])
    with pytest.raises(ImportInvalid, match="--interval"):
        import_file(tape, path)
    (done,) = import_file(tape, path, None, Options(interval="5min", kind="bars"))
    assert done.stored == 1
    (done,) = import_file(tape, path, None, Options(interval="5min", kind="bars"))
    assert (done.kind, done.stored, done.known) == ("bars", 0, 1)


def test_bars_and_trades_in_one_file_are_both_taken(tape, tmp_path):
    records = [sierra.bar(DAY_US + at * 60_000_000, 10, 12, 9, 11) for at in range(3)]
    records += [sierra.trade(DAY_US + 10**9 + at, 11) for at in range(4)]
    path = _write(tmp_path, records)
    (done,) = import_file(tape, path)
    assert (done.kind, done.rows, done.stored) == ("records", 7, 7)
    assert len(_ticks(tape)) == 4
    assert import_file(tape, path)[0].stored == 0


def test_a_file_that_grew_adds_what_is_new_and_nothing_twice(tape, tmp_path, monkeypatch):
    monkeypatch.setattr(scid, "BATCH_RECORDS", 4)
    records = [sierra.trade(DAY_US + at, 100 + at) for at in range(23)]
    for count, stored in ((10, 10), (10, 0), (11, 1), (23, 12), (23, 0)):
        (done,) = import_file(tape, _write(tmp_path, records[:count]))
        assert (done.rows, done.stored, done.known) == (count, stored, count - stored)
    assert [row["price"] for row in _ticks(tape)] == [100 + at for at in range(23)]


def test_a_last_bar_written_anew_becomes_a_revision(tape, tmp_path):
    records = [sierra.bar(DAY_US + at * 60_000_000, 10, 12, 9, 11) for at in range(3)]
    import_file(tape, _write(tmp_path, records))
    for close in (11.5, 12.0):
        records[-1] = sierra.bar(DAY_US + 120_000_000, 10, 12, 9, close)
        assert import_file(tape, _write(tmp_path, records))[0].stored == 1
    found = tape.bar_list("ESZ6", "1min", 0, onetape.record.TS_MAX_NS, source="sierra")
    assert [(bar.close, bar.revision) for bar in found] == [(11, 0), (11, 0), (12, 2)]


def test_a_bar_that_is_not_over_waits_for_a_later_import(tape, tmp_path):
    now_us = time.time_ns() // 60_000_000_000 * 60_000_000
    records = [sierra.bar(now_us - back * 3_600_000_000, 10, 12, 9, 11) for back in (4, 3, 2, 0)]
    (done,) = import_file(tape, _write(tmp_path, records), None, Options(interval="1h", kind="bars"))
    assert (done.stored, done.skipped) == (3, {"the last bar, which is not over": 1})


def test_a_file_that_was_replaced_is_refused_and_nothing_stored(tape, tmp_path):
    records = [sierra.trade(DAY_US + at, 100 + at) for at in range(6)]
    import_file(tape, _write(tmp_path, records))
    changed = [*records[:3], sierra.trade(DAY_US + 3, 999), *records[4:], sierra.trade(DAY_US + 9, 109)]
    with pytest.raises(ImportInvalid, match="replaced"):
        import_file(tape, _write(tmp_path, changed))
    with pytest.raises(ImportInvalid, match="replaced"):
        import_file(tape, _write(tmp_path, records[:4]))
    assert len(_ticks(tape)) == 6


def test_sizes_are_those_that_the_header_states(tape, tmp_path):
    records = [sierra.record(DAY_US + at, close=100 + at, record_bytes=48) for at in range(5)]
    import_file(tape, _write(tmp_path, records, header_bytes=80, record_bytes=48))
    assert [row["price"] for row in _ticks(tape)] == [100, 101, 102, 103, 104]


def test_half_a_record_at_the_end_is_left_for_the_next_time(tape, tmp_path):
    records = [sierra.trade(DAY_US + at, 100 + at) for at in range(3)]
    path = tmp_path / "ESZ6.scid"
    path.write_bytes(sierra.header() + b"".join(records)[:-7])
    (done,) = import_file(tape, path)
    assert (done.stored, done.notes) == (2, ("33 bytes of a record behind the last whole one are left",))
    assert import_file(tape, _write(tmp_path, records))[0].stored == 1


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "0 bytes of 56"),
        (sierra.header()[:30], "30 bytes of 56"),
        (sierra.header(mark=b"SCDD"), "not with b'SCID'"),
        (struct.pack("<4sIIHHI36s", b"SCID", 12, 40, 1, 0, 0, b""), "12 bytes long"),
        (struct.pack("<4sIIHHI36s", b"SCID", 2**31, 40, 1, 0, 0, b""), "2147483648 bytes long"),
        (sierra.header(record_bytes=0), "a record is 0 bytes"),
        (sierra.header(record_bytes=39), "a record is 39 bytes"),
        (sierra.header(version=7), "version 7"),
    ],
)
def test_a_header_that_is_none_is_refused_with_what_is_wrong(tape, tmp_path, raw, says):
    path = tmp_path / "X.scid"
    path.write_bytes(raw)
    with pytest.raises(ImportInvalid, match=says):
        import_file(tape, path, "scid")


def test_records_shifted_by_a_wrong_header_size_are_refused_by_their_place(tape, tmp_path):
    path = tmp_path / "X.scid"
    wrong = struct.pack("<4sIIHHI36s", b"SCID", 60, 40, 1, 0, 0, b"")
    path.write_bytes(wrong + b"".join(sierra.trade(DAY_US + at, 100) for at in range(5)))
    with pytest.raises(ImportInvalid, match="record 1, time"):
        import_file(tape, path)
    assert tape.symbols() == []


def test_records_of_the_future_are_refused_and_can_be_set_aside(tape, tmp_path):
    ahead = time.time_ns() // 1000 + 400 * 86_400_000_000
    path = _write(tmp_path, [sierra.trade(DAY_US, 100), sierra.trade(ahead, 101)])
    with pytest.raises(ImportInvalid, match=r"record 2, time.*in the future"):
        import_file(tape, path)
    (done,) = import_file(tape, path, None, Options(on_invalid="quarantine"))
    assert (done.stored, done.refused) == (1, 1)
    assert len(tape.quarantined()) == 1


def test_a_price_that_is_no_number_is_refused_and_never_becomes_a_quote(tape, tmp_path):
    path = _write(tmp_path, [sierra.trade(DAY_US, math.nan, bid=1.0, ask=2.0)])
    with pytest.raises(ImportInvalid, match="record 1, price"):
        import_file(tape, path)


def test_prices_in_integer_units_are_scaled_and_snapped(tape, tmp_path):
    path = _write(tmp_path, [sierra.trade(DAY_US, 451237, bid=451236, ask=451237)])
    import_file(tape, path, None, Options(multiplier="0.01", tick_size="0.01"))
    (tick,) = tape.recent("ESZ6", 1)
    assert (tick.price, tick.bid, tick.ask) == (4512.37, 4512.36, 4512.37)


@given(
    steps=st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=20),
    grid=st.sampled_from(["0.25", "0.01", "0.1", "0.005", "0.03125", "1", "5", "0.0000005", "0.015625", "12.5"]),
)
def test_a_snapped_price_is_the_double_nearest_to_its_decimal(steps, grid):
    exact = [Decimal(grid) * step for step in steps]
    raw = np.array([float(price) for price in exact], "<f4")
    assert scid_file.Prices(1, grid).of(raw).tolist() == [float(price) for price in exact]


@pytest.mark.parametrize("value", ["0", "-1", "x", "nan", "inf", "1e-300"])
def test_a_tick_size_that_is_none_is_refused(value):
    with pytest.raises(ConfigInvalid, match="tick_size"):
        scid_file.Prices(1, value)


def test_a_file_is_known_by_its_first_bytes(tmp_path):
    path = tmp_path / "noname"
    path.write_bytes(sierra.header())
    assert detect(path).name == "scid"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**12),
            st.floats(0.25, 2**20, width=32),
            st.integers(1, 2**31),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_what_was_written_is_read_back(rows):
    raw = b"".join(sierra.trade(DAY_US + at, price, size, sold=sold) for at, price, size, sold in rows)
    records = scid_file.Header().records(raw)
    columns = scid_file.tick_columns(records, "X", None, scid_file.Prices())
    found = [(tick.ts_event_ns, tick.price, tick.size, tick.side) for tick in scid_file.ticks(columns)]
    assert found == [((DAY_US + at) * 1000, price, size, SELL if sold else BUY) for at, price, size, sold in rows]
