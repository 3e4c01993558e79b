"""A service's process, to be weighed: `python -m bench.resident KIND PATH` says "ready" when it holds its data.

    alone     what the predecessor's service imports, and nothing held
    copies    the same with its own copy of the data, as the predecessor's four services each had: a dict of deques of
              the newest 1,000 records of each symbol, each record a dataclass of 15 fields
    four      the four services of the predecessor in one process, each with its own copy
    tape      a tape opened, its latest and recent records asked for: what a service does instead
    services  the four services as they are, in one process on one steady tape, started, and asked for all they know

A line on its input makes it print what it weighs now, as JSON; the end of its input ends it. It collects no garbage and
gives nothing back first: what is resident is what an operator sees.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

RECENT = 1000
#: What the patterns get to look back over what is on the tape, s.
_LOOK_BACK_S = 1.0


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


def _four(path: str) -> object:
    return [_copies(path) for _ in range(4)]


def _tape(path: str) -> object:
    import onetape

    tape = onetape.open(path, mode="r", recent_per_symbol=RECENT)
    for symbol in tape.latest():
        tape.recent(symbol, RECENT)
    return tape


def _services(path: str) -> object:
    """Start the four services beside a clock that stands at the newest tick, so that its day is their present."""
    import asyncio
    import threading

    from onetape.services.charts.service import ChartConfig, ChartService
    from onetape.services.market_data import MarketDataService
    from onetape.services.patterns.service import PatternService
    from onetape.services.service import Service
    from onetape.services.state.service import StateService
    from onetape.steady import SteadyTape

    tape = SteadyTape(path, recent_per_symbol=RECENT, retention_days=None).start()
    last = tape.latest()
    now_ns = max(tick.ts_event_ns for tick in last.values())

    def clock() -> int:
        return now_ns

    state = StateService(tape, f"{path}.state", clock=clock)
    charts = ChartService(tape, [ChartConfig(symbol, symbol) for symbol in last], clock=clock)
    patterns = PatternService(tape, clock=clock)
    market_data = MarketDataService(tape, ws_port=0, http_port=0)
    services: list[Service] = [state, patterns, charts, market_data]
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def start() -> None:
        for service in services:
            await service.start()
        await asyncio.sleep(_LOOK_BACK_S)

    asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    for symbol in last:
        tape.recent(symbol, RECENT)
        state.fill(symbol, symbol, 1, last[symbol].price or 1.0)
    state.snapshot()
    charts.current_analysis()
    patterns.recent()
    market_data.market_data()
    return services, tape, loop


_HOLD = {"alone": _alone, "copies": _copies, "four": _four, "tape": _tape, "services": _services}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
