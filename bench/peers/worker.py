"""The worker: the loop of a peer's process. One JSON object a line comes in, one goes out; the clock runs in here.

A peer is an object whose public methods are the work it can do. `{"do": "read", "symbol": ...}` calls
`read(symbol=...)` and answers `{"ok": what it returned}` or `{"error": text}`. What the peer's library prints goes to
the error output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench import day

#: Both cores of the machine, for every peer that lets itself be told.
THREADS = 2


def serve(peer: Any) -> None:
    """Say "ready", then answer until the input ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # only answers go where answers are expected
    print("ready", file=out)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"ok": getattr(peer, asked.pop("do"))(**asked)}
        except Exception as error:  # noqa: BLE001  (whatever it was: the asker says which peer, and goes on without it)
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=out)


def seconds(act: Callable[[], object]) -> float:
    """Return how long it took."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def timed(act: Callable[[], pa.Table], repeat: int) -> dict[str, Any]:
    """Return the times of `repeat` reads in ms, and what the last one found, to compare it with the others' answers.

    The result of a read is let go before the next one begins, outside of the time.
    """
    found: list[float] = []
    for _ in range(repeat):
        table = None
        start = time.perf_counter()
        table = act()
        found.append((time.perf_counter() - start) * 1000)
    assert table is not None
    return {"ms": found, "rows": table.num_rows, "columns": table.num_columns, "sum": _sum(table)}


def _sum(table: pa.Table) -> float:
    """Return a sum over prices and sizes: exact, as all of them are multiples of a quarter."""
    names = [
        name for name in ("price", "size", "bid", "ask", "bid_size", "ask_size", "flags") if name in table.schema.names
    ]
    return float(sum(table[name].to_numpy().sum(dtype="f8") for name in names))


def warm(table: pa.Table) -> pa.Table:
    """Return the table once all of its pages are mapped: what it costs to fetch them is nobody's time."""
    for column in table.columns:
        for chunk in column.chunks:
            for buffer in (chunk.indices if hasattr(chunk, "indices") else chunk).buffers():
                if buffer is not None:
                    memoryview(buffer)[::4096].tobytes()
    return table


def feed(path: str) -> pa.Table:
    """Return the day of a file, mapped and warm."""
    return warm(day.load(path))


def parts(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """Return each symbol's nine columns; slices, without a copy, when the table is sorted by symbol."""
    import numpy as np

    ids = table["symbol"].chunk(0).indices.to_numpy()
    if (ids[1:] < ids[:-1]).any():
        by = np.argsort(ids, kind="stable")
        table, ids = table.take(pa.array(by)), ids[by]
    cuts = np.searchsorted(ids, np.arange(len(day.SYMBOLS) + 1))
    nine = table.select(list(day.FIELDS))
    return [(name, nine.slice(cuts[rank], cuts[rank + 1] - cuts[rank])) for rank, name in enumerate(day.SYMBOLS)]


def disk_bytes(folder: Path | str) -> int:
    """Return what a folder's files take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in Path(folder).rglob("*") if path.is_file())


def busiest(path: str, batches: int, rows: int = 1000) -> Sequence[pa.Table]:
    """Return `batches` tables of `rows` ticks of the busiest symbol, ascending in time, each with its symbol."""
    table = feed(path)  # sorted by symbol: the busiest is first
    return [table.slice(start * rows, rows) for start in range(batches)]
