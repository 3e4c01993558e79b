"""Reads: one symbol's hour and day as Arrow, and bars of a day; for the record, beside a bare indexed table."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa

import onetape
from bench import bare, feed
from bench.measure import Line, Setting, alone, beside, take_turns


def measure(setting: Setting) -> list[Line]:
    """Return the times of reads on a day of ticks."""
    count = setting.scaled(2_000_000, 20_000)
    ticks = feed.columns(count, feed.DAY_NS)
    symbol = feed.SYMBOLS[0]
    noon = feed.START_NS + 12 * feed.HOUR_NS
    hour, day = (noon, noon + feed.HOUR_NS), (feed.START_NS, feed.START_NS + feed.DAY_NS)
    with setting.scratch() as folder, onetape.open(folder / "tape.db") as tape:
        for start in range(0, count, 50_000):  # a feed's day arrives in pieces
            tape.append_table({name: column[start : start + 50_000] for name, column in ticks.items()})
        tape.seal()
        tape.read(symbol, *hour)  # loads what reading needs
        peer = _fill(folder, ticks)
        figures = take_turns(
            {
                "hour": lambda: _ms(lambda: tape.read(symbol, *hour)),
                "bare hour": lambda: _ms(lambda: _select(peer, symbol, *hour)),
                "day": lambda: _ms(lambda: tape.read(symbol, *day)),
                "bare day": lambda: _ms(lambda: _select(peer, symbol, *day)),
                "bars": lambda: _ms(lambda: tape.bars(symbol, "1min", *day)),
                "all bars": lambda: _ms(lambda: [tape.bars(name, "1min", *day) for name in feed.SYMBOLS]),
            },
            setting.runs,
        )
        rows = {name: tape.read(symbol, *span).num_rows for name, span in (("hour", hour), ("day", day))}
        peer.close()
        path = tape.path
        tape.close()  # the log goes into the file
        size = path.stat().st_size / count
    indexed = "SQLite rows by index, to Arrow"
    return [
        beside(
            f"read() of an hour, {rows['hour']:,} ticks",
            "ms",
            figures["hour"],
            indexed,
            figures["bare hour"],
            more_is_better=False,
        ),
        beside(
            f"read() of a day, {rows['day']:,} ticks",
            "ms",
            figures["day"],
            indexed,
            figures["bare day"],
            more_is_better=False,
        ),
        alone("bars() of a symbol's day", "ms", figures["bars"]),
        alone(f"bars() of a day, {len(feed.SYMBOLS)} symbols, {count:,} ticks", "ms", figures["all bars"]),
        alone("file", "bytes/tick", [size]),
    ]


def _ms(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1000


def _fill(folder: Path, ticks: dict[str, Any]) -> apsw.Connection:
    connection = bare.connect(folder / "bare.db")
    with connection:
        rows = zip(*(column.tolist() for column in ticks.values()), strict=True)
        connection.executemany(bare.INSERT, rows)
        connection.execute("CREATE INDEX tick_by_time ON tick(symbol, ts_event_ns)")
    return connection


def _select(connection: apsw.Connection, symbol: str, start_ns: int, end_ns: int) -> pa.Table:
    rows = connection.execute(
        "SELECT ts_event_ns, price, size, bid, ask, bid_size, ask_size, side FROM tick"
        " WHERE symbol = ? AND ts_event_ns >= ? AND ts_event_ns < ? ORDER BY ts_event_ns",
        (symbol, start_ns, end_ns),
    ).fetchall()
    names = ("ts_event_ns", "price", "size", "bid", "ask", "bid_size", "ask_size", "side")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
