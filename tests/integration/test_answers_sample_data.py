"""Answers of Dukascopy and Kite, and Marketstore's CSV files: the tape holds what the vendor's own output says."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import onetape
from onetape import Bar, Tick
from onetape.errors import ImportInvalid
from onetape.importing import CsvOptions, import_csv
from onetape.importing.formats import Imported, Options, import_file

MS = 1_000_000


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


def _one(tape: onetape.Tape | None, path: Path, **options: Any) -> Imported:
    (result,) = import_file(tape, path, options=Options(**options))
    return result


# Dukascopy


def test_ticks_told_as_differences_are_the_vendors_decoded_ones(tape: onetape.Tape, sample_data: Path) -> None:
    folder = sample_data / "dukascopy_node"
    done = _one(tape, folder / "ticks-BTC-USD-2023-2-20-12.json")
    decoded = json.loads((folder / "btcusd-tick-2023-02-20T12-2023-02-20T13.json").read_text())
    raw = json.loads((folder / "ticks-BTC-USD-2023-2-20-12.json").read_text())
    assert (done.stored, done.symbols) == (len(decoded), ("BTCUSD",))
    read = tape.read("BTCUSD").sort_by("seq").to_pydict()
    assert read["ts_event_ns"] == [row["timestamp"] * MS for row in decoded]
    assert read["ask"] == [float(row["askPrice"]) for row in decoded]
    assert read["bid"] == [float(row["bidPrice"]) for row in decoded]
    assert (read["ask_size"], read["bid_size"]) == (raw["askVolumes"], raw["bidVolumes"])
    assert _one(tape, folder / "ticks-BTC-USD-2023-2-20-12.json").stored == 0


def test_candles_told_as_differences_are_the_vendors_decoded_ones(tape: onetape.Tape, sample_data: Path) -> None:
    folder = sample_data / "dukascopy_node"
    done = _one(tape, folder / "candles-minute-BTC-USD-BID-2023-2-19.json")
    decoded = json.loads((folder / "btcusd-m1-bid-2023-02-19-2023-02-20.json").read_text())
    found = {bar.ts_start_ns: bar for bar in tape.bar_list("BTCUSD", "1min", source="dukascopy.bid")}
    assert done.stored == len(found) == 1437
    before = None
    for row in decoded:
        bar = found.get(row["timestamp"] * MS)
        told = tuple(float(row[name]) for name in ("open", "high", "low", "close"))
        if bar is None:  # a minute without a quote, which the vendor's tool fills with the price before
            assert told == (before,) * 4
        else:
            assert told == (bar.open, bar.high, bar.low, bar.close)
        before = told[3]


@pytest.mark.parametrize(
    ("name", "interval", "symbol"),
    [
        ("btcusd-d1-bid-2022-01-01-2023-02-20.json", "1d", None),
        ("btcusd-m1-bid-2023-02-19-2023-02-20.json", "1min", None),
        ("btcusd-s1-bid-2023-02-20T12-2023-02-20T13.json", "1s", None),
        ("sample_d1_data.json", "1d", "EURUSD"),
        ("sample_h1_data.json", "1h", "EURUSD"),
        ("sample_m1_data.json", "1min", "EURUSD"),
    ],
)
def test_decoded_bars(tape: onetape.Tape, sample_data: Path, name: str, interval: str, symbol: str | None) -> None:
    path = sample_data / "dukascopy_node" / name
    rows = json.loads(path.read_text())
    rows = [tuple(row.values()) if isinstance(row, dict) else tuple(row) for row in rows]
    done = _one(tape, path, symbol=symbol)
    assert done.stored == len(rows)
    source = "dukascopy" if symbol else "dukascopy.bid"
    found = tape.bar_list(symbol or "BTCUSD", interval, source=source)
    assert [(bar.ts_start_ns // MS, bar.open, bar.high, bar.low, bar.close) for bar in found] == [r[:5] for r in rows]
    assert [bar.volume for bar in found] == [row[5] if len(row) > 5 else None for row in rows]


def test_decoded_ticks(tape: onetape.Tape, sample_data: Path) -> None:
    path = sample_data / "dukascopy_node/sample_tick_data.json"
    with pytest.raises(ImportInvalid, match="of which symbol"):
        _one(tape, path)
    _one(tape, path, symbol="EURUSD")
    read = tape.read("EURUSD").sort_by("seq").to_pydict()
    rows = [list(row) for row in zip(*json.loads(path.read_text()), strict=True)]
    assert [ns // MS for ns in read["ts_event_ns"]] == rows[0]
    assert [read[name] for name in ("ask", "bid", "ask_size", "bid_size")] == rows[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["bids"].pop(), "not the answer it looks like"),
        (lambda body: body["times"].__setitem__(3, 1.5), r"\.5 is no whole number"),
        (lambda body: body.__setitem__("multiplier", 0), "not the answer it looks like"),
        (lambda body: body.__setitem__("bid", 24849.45), "is no multiple"),
        (lambda body: body.pop("asks"), "KeyError"),
        (lambda body: body["bidVolumes"].__setitem__(2, -1), "row 3, bid_size: -1"),
        (lambda body: body["times"].__setitem__(0, 10**14), "row 1, ts_event_ns"),
    ],
)
def test_a_damaged_answer_is_refused(
    tape: onetape.Tape, sample_data: Path, tmp_path: Path, change: Any, message: str
) -> None:
    body = json.loads((sample_data / "dukascopy_node/ticks-BTC-USD-2023-2-20-12.json").read_text())
    change(body)
    path = tmp_path / "ticks-BTC-USD-2023-2-20-12.json"
    path.write_text(json.dumps(body))
    with pytest.raises(ImportInvalid, match=message):
        _one(tape, path)
    path.write_text(json.dumps(body)[:5000])
    with pytest.raises(ImportInvalid, match="not whole JSON"):
        _one(tape, path)
    path.write_bytes(gzip.compress(json.dumps(body).encode())[:5000])
    with pytest.raises(ImportInvalid, match="cannot be read"):
        import_file(tape, path, "dukascopy")
    assert tape.stats().head == 0


# Kite


def test_a_quote_of_kite_has_its_session_open_interest_and_the_best_of_its_depth(
    tape: onetape.Tape, sample_data: Path
) -> None:
    path = sample_data / "kite/pykiteconnect2018_quote.json"
    done = _one(tape, path)
    assert tape.latest("NSE:INFY") == Tick(
        "NSE:INFY",
        onetape.to_ns(datetime.fromisoformat("2018-01-12T10:40:29+05:30")),
        price=1074.8,
        size=55.0,
        bid=1074.8,
        ask=1074.85,
        bid_size=35.0,
        ask_size=32.0,
        open=1085.8,
        high=1085.9,
        low=1070.9,
        volume=1368065.0,
        vwap=1077.03,
        open_interest=0.0,
        source="kite",
        seq=1,
    )
    assert done.notes == ("instrument tokens: NSE:INFY=408065",)
    assert done.skipped == {
        "values of buy_quantity": 1,
        "values of sell_quantity": 1,
        "values of ohlc.close (of the day before)": 1,
        "levels of depth behind the best": 8,
    }
    assert _one(tape, path).known == 1


@pytest.mark.parametrize(("name", "price", "open_"), [("ltp", 1074.35, None), ("ohlc", 1075, 1085.8)])
def test_an_answer_without_a_time_takes_the_one_that_is_given(
    tape: onetape.Tape, sample_data: Path, name: str, price: float, open_: float | None
) -> None:
    path = sample_data / f"kite/pykiteconnect2018_{name}.json"
    with pytest.raises(ImportInvalid, match="NSE:INFY says no time"):
        _one(tape, path)
    _one(tape, path, at="2018-01-12T10:40:29+05:30")
    tick = tape.latest("NSE:INFY")
    assert tick is not None
    assert (tick.ts_event_ns, tick.price, tick.open) == (1_515_733_829 * 10**9, price, open_)


def test_historical_candles_of_kite_become_bars(tape: onetape.Tape, sample_data: Path) -> None:
    path = sample_data / "kite/pykiteconnect2018_historical_minute.json"
    with pytest.raises(ImportInvalid, match="does not say its symbol"):
        _one(tape, path)
    _one(tape, path, symbol="NSE:INFY", interval="1min")
    start = onetape.to_ns("2017-12-15T03:45:00Z")
    bars = tape.bar_list("NSE:INFY", "1min")
    assert [(bar.ts_start_ns, bar.close, bar.volume) for bar in bars] == [
        (start, 1702.8, 2499),
        (start + 60 * 10**9, 1698.15, 1271),
    ]
    assert isinstance(bars[0], Bar)


def test_a_token_that_is_an_alias_lands_on_its_symbol(tape: onetape.Tape, tmp_path: Path) -> None:
    tape.append(Tick("NSE:INFY", 5, price=1.0))
    tape.alias("408065", "NSE:INFY")
    quote = {"instrument_token": 408065, "timestamp": "2018-01-12 10:40:29", "last_price": 7.5, "depth": {"buy": []}}
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"status": "success", "data": {"408065": quote}}))
    _one(tape, path)
    latest = tape.latest("NSE:INFY")
    assert latest is not None
    assert latest.price == 7.5


# Marketstore


@pytest.mark.parametrize(
    ("name", "output", "off_ns"),
    [
        ("ticks-example-1", "ticks-example-1-output", 200),
        ("ticks-example-1", "ticks-example-1-output-1D", 20_117),
        ("ticks-example-not-sorted-by-time", "ticks-example-not-sorted-by-time-output", 200),
    ],
)
def test_marketstores_csv_files_give_its_expected_rows(
    tape: onetape.Tape, sample_data: Path, name: str, output: str, off_ns: int
) -> None:
    folder = sample_data / "marketstore"
    (done,) = import_csv(tape, folder / f"{name}.csv", CsvOptions(symbol="EURUSD"))
    with (folder / f"{output}.csv").open() as file:
        expected = [row for row in csv.reader(file) if row]
    read = tape.read("EURUSD").to_pylist()
    assert done.stored == len(expected) == len(read)
    assert done.in_order == (name == "ticks-example-1")
    for row, (time, bid, ask, nanoseconds) in zip(read, expected, strict=True):
        second = onetape.to_ns(time.removesuffix(" +0000 UTC").replace(" ", "T") + "Z")
        assert (row["bid"], row["ask"]) == (float(bid), float(ask))
        # Its store keeps a time as one of 2^32 parts of a bucket, and so a little off; a tape keeps it exactly.
        assert abs(row["ts_event_ns"] - second - int(nanoseconds)) < off_ns
        assert row["ts_event_ns"] % 1000 == 0
