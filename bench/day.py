"""The day: 10 million ticks of 50 symbols over one UTC day, made once a run from a seed, that every peer is given.

Nine fields a tick, 47 bytes: ts_event_ns (whole microseconds, as most feeds stamp, in nanoseconds), price, bid and
ask (float64, a random walk on a 0.25 grid), size, bid_size and ask_size (float32 that hold integers), side and flags;
and the symbol. Shares fall as rank ** -0.7: the busiest symbol has 1.24 million, a middle one 127,000. Two files of
the same rows: sorted by (symbol, time), what a column store likes best, and by time, as a feed delivers.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

DAY_NS = 86_400_000_000_000
HOUR_NS = 3_600_000_000_000
MINUTE_NS = 60_000_000_000
#: 2026-01-05, a Monday.
START_NS = 20_458 * DAY_NS
SYMBOLS = [f"SYM{rank:02d}" for rank in range(50)]
BUSIEST, MIDDLE = SYMBOLS[0], SYMBOLS[25]
FIELDS = ("ts_event_ns", "price", "size", "bid", "ask", "bid_size", "ask_size", "side", "flags")
RAW_BYTES = 47
ORDERS = ("symbol", "time")

SCHEMA = pa.schema(
    [
        ("symbol", pa.dictionary(pa.int16(), pa.string())),
        ("ts_event_ns", pa.int64()),
        ("price", pa.float64()),
        ("size", pa.float32()),
        ("bid", pa.float64()),
        ("ask", pa.float64()),
        ("bid_size", pa.float32()),
        ("ask_size", pa.float32()),
        ("side", pa.int8()),
        ("flags", pa.uint16()),
    ]
)


def counts(total: int) -> list[int]:
    """Return how many of `total` ticks each symbol has."""
    shares = np.arange(1, len(SYMBOLS) + 1) ** -0.7
    found = np.maximum(1, np.floor(total * shares / shares.sum()).astype(int))
    found[0] += total - found.sum()
    return [int(one) for one in found]


def write(
    folder: Path, total: int, *, span_ns: int = DAY_NS, grain_ns: int = 1000, name: str = "day"
) -> dict[str, Path]:
    """Write the day in both orders as Arrow IPC files and return their paths by order.

    Other than the day: `total` ticks over `span_ns` from its start, at whole multiples of `grain_ns`.
    """
    columns = _columns(total, span_ns, grain_ns)
    by_time = np.argsort(columns["ts_event_ns"], kind="stable")
    paths = {}
    for order in ORDERS:
        paths[order] = folder / f"{name}-by-{order}.arrow"
        table = _table(columns if order == "symbol" else {name: column[by_time] for name, column in columns.items()})
        with pa.OSFile(str(paths[order]), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(table)
    return paths


def load(path: Path | str) -> pa.Table:
    """Return a file's table, mapped: its columns are the file's own pages."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def spans() -> dict[str, tuple[int, int]]:
    """Return the spans that are read: the hour from noon, and the whole day."""
    noon = START_NS + 12 * HOUR_NS
    return {"hour": (noon, noon + HOUR_NS), "day": (START_NS, START_NS + DAY_NS)}


def _columns(total: int, span_ns: int, grain_ns: int) -> dict[str, Any]:
    random = np.random.default_rng(7)
    parts: dict[str, list[Any]] = {}
    for rank, count in enumerate(counts(total)):
        price = 4000 + 100 * rank + 0.25 * np.cumsum(random.integers(-1, 2, count))
        made = {
            "symbol": np.full(count, rank, "i2"),
            "ts_event_ns": START_NS + grain_ns * np.sort(random.integers(0, span_ns // grain_ns, count)),
            "price": price,
            "size": np.minimum(random.geometric(0.45, count), 500).astype("f4"),
            "bid": price - 0.25,
            "ask": price + 0.25,
            "bid_size": random.integers(1, 100, count).astype("f4"),
            "ask_size": random.integers(1, 100, count).astype("f4"),
            "side": random.integers(-1, 2, count).astype("i1"),
            "flags": random.choice(np.array([0, 1, 2], "u2"), count, p=[0.9, 0.08, 0.02]),
        }
        for name, column in made.items():
            parts.setdefault(name, []).append(column)
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def _table(columns: dict[str, Any]) -> pa.Table:
    arrays = [
        pa.DictionaryArray.from_arrays(pa.array(columns["symbol"]), _names()),
        *[pa.array(columns[name]) for name in FIELDS],
    ]
    return pa.table(arrays, schema=SCHEMA)


@cache
def _names() -> pa.Array:
    return pa.array(SYMBOLS)
