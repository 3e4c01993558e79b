"""Real ticks on the tape: every row comes back, repeated ones, crossed quotes and zero sizes included."""

import csv
import io
import json
import zipfile
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

import onetape
from onetape.clock import to_ns


def _rows(path):
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield from csv.reader(io.TextIOWrapper(archive.open(name), "utf-8"))


def _midnight_ns(day: str, zone: str) -> int:
    return to_ns(datetime.strptime(day, "%Y%m%d").replace(tzinfo=ZoneInfo(zone)))


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db") as opened:
        yield opened


def test_an_equity_day_with_its_repeated_prints(tape, sample_data):
    midnight = _midnight_ns("20131007", "America/New_York")
    rows = list(_rows(sample_data / "lean/equity/usa/tick/ibm/20131007_trade.zip"))
    table = {
        "symbol": "IBM",
        "ts_event_ns": [midnight + int(float(row[0]) * 10**6) for row in rows],
        "price": [int(row[1]) / 10_000 for row in rows],
        "size": [float(row[2]) for row in rows],
        "source": [row[3] for row in rows],
    }
    assert len(set(map(tuple, rows))) < len(rows), "the sample repeats rows"
    assert tape.append_table(table, batch="ibm").stored == len(rows)
    assert tape.append_table(table, batch="ibm").stored == 0
    for _ in range(2):
        read = tape.read("IBM", columns=["ts_event_ns", "price", "size", "source"]).to_pydict()
        order = sorted(range(len(rows)), key=lambda i: table["ts_event_ns"][i])
        assert read["ts_event_ns"] == [table["ts_event_ns"][i] for i in order]
        assert read["price"] == [table["price"][i] for i in order]
        assert read["size"] == [table["size"][i] for i in order]
        assert read["source"] == [table["source"][i] for i in order]
        tape.seal()
    bars = tape.bar_list("IBM")
    assert sum(bar.trades for bar in bars) == len(rows)
    assert sum(bar.volume for bar in bars) == sum(table["size"])
    assert max(bar.high for bar in bars) == max(table["price"])


def test_an_fx_day_with_its_crossed_quotes(tape, sample_data):
    midnight = _midnight_ns("20140504", "America/New_York")
    rows = list(_rows(sample_data / "lean/forex/fxcm/tick/eurusd/20140504_quote.zip"))
    ticks = [onetape.Tick("EURUSD", midnight + int(r[0]) * 10**6, bid=float(r[1]), ask=float(r[2])) for r in rows]
    assert any(tick.bid > tick.ask for tick in ticks), "the sample has crossed quotes"
    assert tape.append(ticks).stored == len(rows)
    assert len(tape.recent("EURUSD", 10**6)) == len(rows)
    assert tape.bars("EURUSD").num_rows == 0


def test_a_futures_day_with_its_zero_sizes(tape, sample_data):
    midnight = _midnight_ns("20131007", "America/New_York")
    rows = list(_rows(sample_data / "lean/future/comex/tick/gc/20131007_trade.zip"))
    sizes = [float(row[2]) for row in rows]
    prices = [float(row[1]) for row in rows]
    times = [midnight + int(float(row[0]) * 10**6) for row in rows]
    done = tape.append_table({"symbol": "GC", "ts_event_ns": times, "price": prices, "size": sizes})
    assert done.stored == len(rows)
    assert 0.0 in sizes
    assert sorted(tape.read("GC").column("size").to_pylist()) == sorted(sizes)


def test_quotes_of_dukascopy_read_back_bit_for_bit(tape, sample_data):
    rows = json.loads((sample_data / "dukascopy_node/btcusd-tick-2023-02-20T12-2023-02-20T13.json").read_text())
    first = rows[0]
    as_list = isinstance(first, list)
    bid = [row[2] if as_list else row["bidPrice"] for row in rows]
    ask = [row[1] if as_list else row["askPrice"] for row in rows]
    times = [(row[0] if as_list else row["timestamp"]) * 10**6 for row in rows]
    tape.append_table({"symbol": "BTCUSD", "ts_event_ns": times, "bid": bid, "ask": ask})
    read = tape.read("BTCUSD", columns=["bid", "ask"]).to_pydict()
    assert read == {"bid": bid, "ask": ask}


def test_an_indian_session_crosses_no_day_and_starts_at_half_past(tape, sample_data):
    zone = ZoneInfo("Asia/Kolkata")
    midnight = _midnight_ns("20190709", "Asia/Kolkata")
    rows = list(_rows(sample_data / "lean/equity/india/minute/yesbank/20190709_trade.zip"))
    bars = []
    for ms, *prices, volume in rows:
        open_, high, low, close = (int(price) / 10_000 for price in prices)
        start = midnight + int(ms) * 10**6
        bars.append(onetape.Bar("NSE:YESBANK", "1min", start, open_, high, low, close, float(volume), source="lean"))
    tape.append(bars, batch="yesbank")
    day = datetime(2019, 7, 9, tzinfo=zone)
    table = tape.bars("NSE:YESBANK", "1min", day, day + timedelta(days=1), source="lean")
    assert table.num_rows == len(rows)
    assert table.column("open").to_pylist() == [bar.open for bar in bars]
