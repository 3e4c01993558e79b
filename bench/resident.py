"""A service's process, to be weighed: `python -m bench.resident KIND PATH` says "ready" when it holds its data.

    alone     what the predecessor's service imports, and nothing held
    copies    the same with its own copy of the data, as the predecessor's four services each had: a dict of deques of
              the newest 1,000 records of each symbol, each record a dataclass of 15 fields
    tape      a tape opened, its latest and recent records asked for: what a service does instead

A line on its input makes it print what it weighs now, as JSON; the end of its input ends it. It collects no garbage and
gives nothing back first: what is resident is what an operator sees.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

RECENT = 1000


def main(kind: str, path: str) -> None:
    """Hold the data, then answer until the input ends."""
    held = _HOLD[kind](path)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(weight()), flush=True)
    del held


def weight() -> dict[str, int]:
    """Return the resident bytes of this process: whole, and with what it shares with others divided among them."""
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name.lower()] = int(rest.split()[0]) * 1024
    return found


def _alone(path: str) -> object:
    import asyncio
    import collections
    import dataclasses
    import sqlite3

    return asyncio, collections, dataclasses, sqlite3


def _copies(path: str) -> object:
    modules = _alone(path)
    from collections import deque
    from dataclasses import dataclass

    @dataclass
    class MarketData:
        symbol: str
        timestamp: float
        close: float
        open: float | None = None
        high: float | None = None
        low: float | None = None
        bid: float | None = None
        ask: float | None = None
        bid_size: float | None = None
        ask_size: float | None = None
        last_size: float | None = None
        volume: float | None = None
        vwap: float | None = None
        trades: int | None = None
        source: str = "unknown"

        def __post_init__(self) -> None:
            self.open = self.close if self.open is None else self.open
            self.high = self.close if self.high is None else self.high
            self.low = self.close if self.low is None else self.low

    held: dict[str, deque[MarketData]] = {}
    with open(path) as file:
        for line in file:
            symbol, ts, price, size, bid, ask, bid_size, ask_size = line.rstrip("\n").split(",")
            record = MarketData(
                sys.intern(symbol),
                int(ts) / 1e9,
                float(price),
                bid=float(bid),
                ask=float(ask),
                bid_size=float(bid_size),
                ask_size=float(ask_size),
                last_size=float(size),
            )
            held.setdefault(record.symbol, deque(maxlen=RECENT)).append(record)
    return modules, held


def _tape(path: str) -> object:
    import onetape

    tape = onetape.open(path, mode="r", recent_per_symbol=RECENT)
    for symbol in tape.latest():
        tape.recent(symbol, RECENT)
    return tape


_HOLD = {"alone": _alone, "copies": _copies, "tape": _tape}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
