"""Real websocket recordings on the tape: it answers as the raw lines do, read here a second time and another way."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import onetape
from onetape.importing.formats import import_file


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


def _rows(tape: onetape.Tape, symbol: str, source: str, *names: str) -> list[tuple[Any, ...]]:
    rows = [row for row in tape.read(symbol).to_pylist() if row["source"] == source]
    return [tuple(row[name] for name in names) for row in sorted(rows, key=lambda row: row["seq"])]


def _messages(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with gzip.open(path, "rt") as lines:
        for line in lines:
            stamp, body = line.split(" ", 1)
            yield int(stamp), json.loads(body)


@pytest.mark.parametrize(
    ("file", "symbol", "count"),
    [("btcusd_perp_20240808.gz", "BTCUSD_PERP", 27907), ("ethusdt_20240808.gz", "ETHUSDT", 32806)],
)
def test_binance_trades_tickers_and_depth_of_hftbacktest(
    tape: onetape.Tape, sample_data: Path, file: str, symbol: str, count: int
) -> None:
    path = sample_data / "hftbacktest" / file
    (done,) = import_file(tape, path)
    assert (done.stored, done.refused, done.symbols) == (count, 0, (symbol,))
    trades, tickers, bids, asks, best = [], [], {}, {}, []
    last, told = None, None
    early: list[dict[str, Any]] = []
    for stamp, message in _messages(path):
        data = message.get("data", message)
        if message.get("stream", "").endswith("@trade"):
            trades.append((data["T"] * 10**6, stamp, float(data["p"]), float(data["q"]), -1 if data["m"] else 1))
        elif message.get("stream", "").endswith("@bookTicker"):
            at = data["T"] * 10**6 if "T" in data else stamp
            tickers.append((at, stamp, *(float(data[name]) for name in "bBaA")))
        else:
            if "lastUpdateId" in data:
                last = data["lastUpdateId"]
                bids, asks = ({Decimal(p): Decimal(q) for p, q in data[side]} for side in ("bids", "asks"))
                updates = [update for update in early if update["u"] > last]
            elif last is None:
                early.append(data)
                continue
            else:
                updates = [data] if data["u"] > last else []
                if not updates:
                    continue
            for update in updates:
                for side, levels in ((bids, update["b"]), (asks, update["a"])):
                    for price, size in levels:
                        side[Decimal(price)] = Decimal(size)
                        if not Decimal(size):
                            del side[Decimal(price)]
            now = (max(bids), bids[max(bids)], min(asks), asks[min(asks)])
            if now != told:
                best.append((stamp, *map(float, now)))
                told = now
    names = ("ts_event_ns", "ts_recv_ns")
    assert _rows(tape, symbol, "binance.trade", *names, "price", "size", "side") == trades
    quote = ("bid", "bid_size", "ask", "ask_size")
    assert _rows(tape, symbol, "binance.bookTicker", *names, *quote) == tickers
    assert _rows(tape, symbol, "binance.depth", "ts_recv_ns", *quote) == best
    assert sum(bar.trades or 0 for bar in tape.bar_list(symbol)) == len(trades)
    (again,) = import_file(tape, path)
    assert (again.stored, again.known) == (0, count)


def _lines(path: Path) -> list[tuple[str, Any]]:
    found = [line.split(": ", 1) for line in path.read_text().splitlines() if ": " in line and line[0].isdigit()]
    return [(stamp, json.loads(body)) for stamp, body in found]


def _ns(text: str) -> int:
    return int(Decimal(text) * 10**9)


def test_binance_of_cryptofeed_counts_what_it_cannot_take(tape: onetape.Tape, sample_data: Path) -> None:
    (done,) = import_file(tape, sample_data / "cryptofeed/BINANCE.ws.1.0")
    said = _lines(sample_data / "cryptofeed/BINANCE.ws.1.0")
    kinds = [message["stream"].split("@")[1] for _, message in said]
    assert done.skipped["depth updates without a snapshot"] == kinds.count("depth")
    assert done.skipped["kline messages"] == kinds.count("kline_1m")
    assert done.stored == kinds.count("bookTicker") + kinds.count("aggTrade")
    tickers = [
        (_ns(stamp), _ns(stamp), float(m["data"]["b"]), float(m["data"]["A"]))
        for stamp, m in said
        if m["stream"] == "nknusdt@bookTicker"
    ]
    assert _rows(tape, "NKNUSDT", "binance.bookTicker", "ts_event_ns", "ts_recv_ns", "bid", "ask_size") == tickers
    ((price, size, side),) = _rows(tape, "NKNUSDT", "binance.aggTrade", "price", "size", "side")[:1]
    first = next(m["data"] for _, m in said if m["stream"] == "nknusdt@aggTrade")
    assert (price, size, side) == (float(first["p"]), float(first["q"]), 1)


def test_bitmex_trades_quotes_and_book(tape: onetape.Tape, sample_data: Path) -> None:
    path = sample_data / "cryptofeed/BITMEX.ws.1.0"
    (done,) = import_file(tape, path)
    assert done.refused == 0
    said = _lines(path)
    for symbol in done.symbols:
        trades, quotes, best, book, told = [], [], [], {}, None
        for stamp, message in said:
            rows = [row for row in message.get("data", []) if row["symbol"] == symbol]
            for row in rows if message.get("table") == "trade" else []:
                trades.append((_ns(stamp), row["price"], row["size"], 1 if row["side"] == "Buy" else -1))
            for row in rows if message.get("table") == "quote" else []:
                at = onetape.to_ns(row["timestamp"])
                quotes.append((at, row["bidPrice"], row["bidSize"], row["askPrice"], row["askSize"]))
            if message.get("table") != "orderBookL2" or not rows:
                continue
            for row in rows:
                if message["action"] == "delete":
                    del book[row["id"]]
                else:
                    book[row["id"]] = {**book.get(row["id"], {}), **row}
            sides = [[row for row in book.values() if row["side"] == name] for name in ("Buy", "Sell")]
            bid, ask = max(sides[0], key=lambda row: row["price"]), min(sides[1], key=lambda row: row["price"])
            now = (bid["price"], bid["size"], ask["price"], ask["size"])
            if now != told:
                best.append((_ns(stamp), *now))
                told = now
        quote = ("bid", "bid_size", "ask", "ask_size")
        assert _rows(tape, symbol, "bitmex.trade", "ts_recv_ns", "price", "size", "side") == trades
        assert _rows(tape, symbol, "bitmex.quote", "ts_event_ns", *quote) == quotes
        assert _rows(tape, symbol, "bitmex.orderBookL2", "ts_recv_ns", *quote) == best


def test_kraken_trades_tickers_and_book(tape: onetape.Tape, sample_data: Path) -> None:
    for part in (48, 49, 50):
        (done,) = import_file(tape, sample_data / f"cryptofeed/KRAKEN.ws.{part}.0")
        assert done.refused == 0
        assert set(done.skipped) == {"requests and connections", "control messages"}
    trades = [
        (_ns(row[2]), _ns(stamp), float(row[0]), float(row[1]), {"b": 1, "s": -1}[row[3]])
        for stamp, message in _lines(sample_data / "cryptofeed/KRAKEN.ws.48.0")
        if isinstance(message, list) and message[-1] == "XMR/USD"
        for row in message[1]
    ]
    assert trades
    names = ("ts_event_ns", "ts_recv_ns", "price", "size", "side")
    assert _rows(tape, "XMR/USD", "kraken.trade", *names) == trades
    tickers = [
        (_ns(stamp), float(m[1]["b"][0]), float(m[1]["a"][2]), float(m[1]["v"][0]), m[1]["t"][0], float(m[1]["o"][0]))
        for stamp, m in _lines(sample_data / "cryptofeed/KRAKEN.ws.49.0")
        if isinstance(m, list) and m[-1] == "XMR/USD"
    ]
    names = ("ts_recv_ns", "bid", "ask_size", "volume", "trades", "open")
    assert _rows(tape, "XMR/USD", "kraken.ticker", *names) == tickers
    for symbol in ("XMR/USD", "ADA/XBT", "XBT/CHF"):
        sides: dict[str, dict[Decimal, Decimal]] = {}
        best, told = [], None
        for stamp, message in _lines(sample_data / "cryptofeed/KRAKEN.ws.50.0"):
            if not isinstance(message, list) or message[-1] != symbol:
                continue
            for body in message[1:-2]:
                for key, levels in body.items():
                    if key == "c":
                        continue
                    side = sides.setdefault(key[0], {})
                    for price, size, *_ in levels:
                        side[Decimal(price)] = Decimal(size)
                        if not Decimal(size):
                            del side[Decimal(price)]
            bid, ask = max(sides["b"]), min(sides["a"])
            now = (bid, sides["b"][bid], ask, sides["a"][ask])
            if now != told:
                best.append((_ns(stamp), *map(float, now)))
                told = now
        assert _rows(tape, symbol, "kraken.book", "ts_recv_ns", "bid", "bid_size", "ask", "ask_size") == best


@pytest.mark.parametrize("venue", ["BINANCE", "BITMEX", "KRAKEN"])
def test_rest_answers_hold_no_ticks_and_are_counted(tape: onetape.Tape, sample_data: Path, venue: str) -> None:
    (done,) = import_file(tape, sample_data / f"cryptofeed/{venue}.0")
    assert (done.rows, done.skipped["REST answers"]) == (0, 1)
