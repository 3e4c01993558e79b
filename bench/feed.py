"""The feed: ticks made the same way every time. 50 symbols, nine fields, prices on a 0.25 grid, times in ns."""

from __future__ import annotations

from typing import Any

import numpy as np

from onetape import Tick

SYMBOLS = [f"SYM{index:02d}" for index in range(50)]
DAY_NS = 86_400_000_000_000
#: 2026-01-05, a Monday.
START_NS = 20_458 * DAY_NS
HOUR_NS = 3_600_000_000_000

#: 10 million ticks a day: a busy feed of this many symbols.
GAP_NS = DAY_NS // 10_000_000


def columns(count: int, span_ns: int = 0) -> dict[str, Any]:
    """Return `count` ticks over `span_ns` (0: as many as the feed sends in it) as columns.

    Nine fields, ascending in time; the symbols' shares fall as 1 / rank.
    """
    span_ns = span_ns or count * GAP_NS
    random = np.random.default_rng(7)
    shares = 1 / np.arange(1, len(SYMBOLS) + 1)
    symbol = random.choice(len(SYMBOLS), count, p=shares / shares.sum())
    price = 100 + 100 * symbol + 0.25 * np.cumsum(random.integers(-1, 2, count))
    price = np.abs(price) + 1
    return {
        "symbol": np.array(SYMBOLS)[symbol],
        "ts_event_ns": START_NS + np.sort(random.integers(0, span_ns, count)),
        "price": price,
        "size": random.integers(1, 10, count).astype("f8"),
        "bid": price - 0.25,
        "ask": price + 0.25,
        "bid_size": random.integers(1, 500, count).astype("f8"),
        "ask_size": random.integers(1, 500, count).astype("f8"),
        "side": random.integers(-1, 2, count).astype("i1"),
    }


def ticks(count: int) -> list[Tick]:
    """Return `count` ticks as records."""
    made = {name: column.tolist() for name, column in columns(count).items()}
    return [
        Tick(symbol, ts, price, size, bid, ask, bid_size, ask_size, side)
        for symbol, ts, price, size, bid, ask, bid_size, ask_size, side in zip(*made.values(), strict=True)
    ]


def row(tick: Tick) -> tuple[Any, ...]:
    """Return a tick's nine fields, as a bare table holds them."""
    return (
        tick.symbol,
        tick.ts_event_ns,
        tick.price,
        tick.size,
        tick.bid,
        tick.ask,
        tick.bid_size,
        tick.ask_size,
        tick.side,
    )
