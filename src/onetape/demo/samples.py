"""Real ticks, read from the folder of sample data: each of its formats into Tick records, a bounded part of each file.

Times of the zips are milliseconds since midnight: New York's for US equities, UTC's for OANDA and COMEX (the gold
futures pause from 21:15 to 22:00 in their file, which is New York's 17:15 to 18:00). Equity prices are in 1/10,000.
"""

from __future__ import annotations

import csv
import gzip
import heapq
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from onetape import clock
from onetape.record import BUY, SELL, Tick

_NEW_YORK, _UTC = ZoneInfo("America/New_York"), ZoneInfo("UTC")
_MONTHS = "FGHJKMNQUVXZ"  # of futures, January to December
_MS = 1_000_000


class Sample(NamedTuple):
    """One instrument as it was recorded."""

    symbol: str
    origin: str
    ticks: list[Tick]


def read(folder: Path, limit: int) -> list[Sample]:
    """Return the instruments of the folder, at most `limit` ticks of each, in the order of their times.

    Files that are not there are left out.
    """
    found: list[Sample] = []
    for path, reader in _files(folder):
        if path.is_file():
            found += reader(path, limit)
    return [sample for sample in found if sample.ticks]


def _files(folder: Path) -> Iterator[tuple[Path, Callable[[Path, int], Iterable[Sample]]]]:
    tick = "lean/{}/{}/tick/{}/{}_{}.zip"
    yield folder / tick.format("future", "comex", "gc", "20131007", "trade"), _gold_futures
    yield folder / tick.format("equity", "usa", "ibm", "20131007", "trade"), _equity
    yield folder / tick.format("equity", "usa", "aig", "20131007", "trade"), _equity
    yield folder / tick.format("forex", "oanda", "eurusd", "20140504", "quote"), _oanda
    yield folder / tick.format("forex", "oanda", "nzdusd", "20140504", "quote"), _oanda
    yield folder / tick.format("cfd", "oanda", "xauusd", "20140504", "quote"), _oanda
    yield folder / "hftbacktest/btcusd_perp_20240808.gz", _binance
    yield folder / "hftbacktest/ethusdt_20240808.gz", _binance
    yield folder / "dukascopy_node/btcusd-tick-2023-02-20T12-2023-02-20T13.json", _dukascopy
    yield folder / "cryptofeed/BINANCE.ws.1.0", _binance
    yield folder / "cryptofeed/BITMEX.ws.1.0", _bitmex


def _rows(path: Path, member: str = "") -> Iterator[list[str]]:
    with zipfile.ZipFile(path) as archive, archive.open(member or archive.namelist()[0]) as file:
        yield from csv.reader(io.TextIOWrapper(file, "ascii"))


def _midnight_ns(path: Path, zone: ZoneInfo) -> int:
    return clock.to_ns(datetime.strptime(path.name[:8], "%Y%m%d").replace(tzinfo=zone))


def _since(midnight_ns: int, ms: str) -> int:
    """Return the time of a row; some have fractions of a millisecond."""
    whole, _dot, fraction = ms.partition(".")
    return midnight_ns + int(whole) * _MS + int((fraction + "000000")[:6])


def _gold_futures(path: Path, limit: int) -> Iterator[Sample]:
    midnight_ns = _midnight_ns(path, _UTC)
    with zipfile.ZipFile(path) as archive:
        members = sorted(archive.namelist())
    for member in members:
        expiry = member.removesuffix(".csv").rpartition("_")[2]
        symbol = f"COMEX:GC{_MONTHS[int(expiry[4:]) - 1]}{expiry[2:4]}"
        rows = islice(_rows(path, member), limit)
        ticks = [Tick(symbol, _since(midnight_ns, row[0]), float(row[1]), float(row[2])) for row in rows]
        yield Sample(symbol, "COMEX, 2013-10-07", ticks)


def _equity(path: Path, limit: int) -> Iterator[Sample]:
    midnight_ns, symbol = _midnight_ns(path, _NEW_YORK), path.parent.name.upper()
    trades = [
        Tick(symbol, _since(midnight_ns, row[0]), int(row[1]) / 10_000, float(row[2]))
        for row in islice(_rows(path), limit)
    ]
    quotes: list[Tick] = []
    beside = path.with_name(path.name.replace("_trade", "_quote"))
    if beside.is_file() and len(trades) < limit:
        # Up to where the trades end, and not more of them than may be used
        quotes = [_equity_quote(symbol, midnight_ns, row) for row in islice(_rows(beside), limit)]
    by_time = attrgetter("ts_event_ns")
    yield Sample(symbol, "US equity, 2013-10-07", list(islice(heapq.merge(trades, quotes, key=by_time), limit)))


def _equity_quote(symbol: str, midnight_ns: int, row: list[str]) -> Tick:
    bid, ask = int(row[1]), int(row[3])  # 0: nothing on that side
    return Tick(
        symbol,
        _since(midnight_ns, row[0]),
        bid=bid / 10_000 if bid else None,
        ask=ask / 10_000 if ask else None,
        bid_size=float(row[2]) if bid else None,
        ask_size=float(row[4]) if ask else None,
    )


def _oanda(path: Path, limit: int) -> Iterator[Sample]:
    midnight_ns, symbol = _midnight_ns(path, _UTC), f"OANDA:{path.parent.name.upper()}"
    ticks = [
        Tick(symbol, _since(midnight_ns, row[0]), bid=float(row[1]), ask=float(row[2]))
        for row in islice(_rows(path), limit)
    ]
    yield Sample(symbol, "OANDA, 2014-05-04", ticks)


def _dukascopy(path: Path, limit: int) -> Iterator[Sample]:
    symbol = "DUKASCOPY:BTCUSD"
    rows = msgspec.json.decode(path.read_bytes(), type=list[dict[str, float]])[:limit]
    ticks = [Tick(symbol, int(row["timestamp"]) * _MS, bid=row["bidPrice"], ask=row["askPrice"]) for row in rows]
    yield Sample(symbol, "Dukascopy, 2023-02-20", ticks)


class _BinanceData(msgspec.Struct, frozen=True):
    s: str
    E: int | None = None
    p: str | None = None
    q: str | None = None
    m: bool | None = None
    b: str | None = None
    B: str | None = None
    a: str | int | None = None  # of an aggregated trade: its number
    A: str | None = None


class _BinanceMessage(msgspec.Struct, frozen=True):
    data: _BinanceData


def _binance(path: Path, limit: int) -> Iterator[Sample]:
    """Read raw websocket messages behind the time they were received: trades and best quotes."""
    decode = msgspec.json.Decoder(_BinanceMessage).decode
    by_symbol: dict[str, list[Tick]] = {}
    packed = path.suffix == ".gz"
    full = 0
    with gzip.open(path) if packed else path.open("rb") as file:
        for line in file:
            if b"@bookTicker" not in line[:80] and b"rade" not in line[:80]:
                continue
            head, _blank, text = line.partition(b" ")
            if not text.startswith(b"{"):
                continue
            seconds, _dot, fraction = head.strip(b":").partition(b".")
            got_ns = int(head) if packed else int((seconds + (fraction + b"0" * 9)[:9]).decode())
            found = decode(text).data
            symbol = f"BINANCE:{found.s}"
            ticks = by_symbol.setdefault(symbol, [])
            if len(ticks) >= limit:
                full += 1
                if full > limit:  # every symbol of the file has had its chance
                    break
                continue
            ticks.append(_binance_tick(symbol, found, got_ns))
    day = clock.to_text(got_ns)[:10]
    yield from (Sample(symbol, f"Binance, {day}", ticks) for symbol, ticks in by_symbol.items())


def _binance_tick(symbol: str, found: _BinanceData, got_ns: int) -> Tick:
    # Spot quotes carry no time of the exchange: then it is when they were received.
    event_ns = found.E * _MS if found.E is not None else got_ns
    if found.p is not None and found.q is not None:
        side = SELL if found.m else BUY  # m: the buyer was the maker, so the seller came to trade
        return Tick(symbol, event_ns, float(found.p), float(found.q), side=side, ts_recv_ns=got_ns)
    bid, bid_size, ask, ask_size = (float(x) if x else None for x in (found.b, found.B, found.a, found.A))
    return Tick(symbol, event_ns, None, None, bid, ask, bid_size, ask_size, ts_recv_ns=got_ns)


class _BitmexRow(msgspec.Struct, frozen=True, rename="camel"):
    symbol: str
    timestamp: str
    price: float | None = None
    size: float | None = None
    side: str | None = None
    bid_price: float | None = None
    bid_size: float | None = None
    ask_price: float | None = None
    ask_size: float | None = None


class _BitmexMessage(msgspec.Struct, frozen=True):
    data: list[_BitmexRow]


def _bitmex(path: Path, limit: int) -> Iterator[Sample]:
    decode = msgspec.json.Decoder(_BitmexMessage).decode
    by_symbol: dict[str, list[Tick]] = {}
    with path.open("rb") as file:
        for line in file:
            text = line.partition(b": ")[2]
            if not text.startswith((b'{"table":"trade"', b'{"table":"quote"')):
                continue
            for row in decode(text).data:
                ticks = by_symbol.setdefault(f"BITMEX:{row.symbol}", [])
                if len(ticks) < limit:
                    ticks.append(_bitmex_tick(row))
    yield from (Sample(symbol, "BitMEX, 2021-07-22", ticks) for symbol, ticks in by_symbol.items())


def _bitmex_tick(row: _BitmexRow) -> Tick:
    return Tick(
        f"BITMEX:{row.symbol}",
        clock.to_ns(row.timestamp),
        row.price,
        row.size,
        row.bid_price,
        row.ask_price,
        row.bid_size,
        row.ask_size,
        {"Buy": BUY, "Sell": SELL}.get(row.side or "", 0),
    )
