"""ClickHouse in process (chDB): a MergeTree ordered by (symbol, time), two threads.

bulk     `INSERT INTO tick SELECT * FROM Python(feed)` of an Arrow table, default codecs, which write fastest (from an
         Arrow file: a third of the rate); it sorts by itself, and fsyncs nothing
disk     the same with Delta on times, Gorilla on prices, T64 on sides, all with ZSTD, after OPTIMIZE FINAL (its ALP
         codec is beta, and off)
read     `session.query(..., "DataFrame")`, which is faster than its "ArrowTable", made an Arrow table
1,000    `session.send_insert(..., "Arrow")`, the streaming insert: faster than from `Python()`
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import chdb
import pyarrow as pa
from chdb import session

from bench import day
from bench.peers import worker

_TYPES = {
    "symbol": "LowCardinality(String)",
    "ts_event_ns": "Int64",
    "price": "Float64",
    "size": "Float32",
    "bid": "Float64",
    "ask": "Float64",
    "bid_size": "Float32",
    "ask_size": "Float32",
    "side": "Int8",
    "flags": "UInt16",
}
_CODECS = {
    "ts_event_ns": "Delta, ZSTD(1)",
    "side": "T64, ZSTD(1)",
    **dict.fromkeys(("size", "bid_size", "ask_size", "flags"), "ZSTD(1)"),
    **dict.fromkeys(("price", "bid", "ask"), "Gorilla, ZSTD(1)"),
}
_NINE = ", ".join(day.FIELDS)
_SETTINGS = f"SETTINGS max_threads = {worker.THREADS}"
_BARS = (
    f"SELECT symbol, intDiv(ts_event_ns, {day.MINUTE_NS}) AS minute, argMin(price, ts_event_ns) AS open,"
    " max(price) AS high, min(price) AS low, argMax(price, ts_event_ns) AS close, sum(size) AS volume,"
    f" count() AS trades FROM bench.tick GROUP BY symbol, minute {_SETTINGS}"
)


class ChDB:
    """The peer, with one session on one folder."""

    def __init__(self, folder: str) -> None:
        place = Path(folder) / "chdb"
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        self._session = session.Session(str(place))
        self._session.query("CREATE DATABASE bench")

    def version(self) -> str:
        return f"chDB {chdb.__version__}"

    def _fresh(self, name: str, tuned: bool) -> None:
        columns = [
            f"{column} {kind}" + (f" CODEC({_CODECS[column]})" if tuned and column in _CODECS else "")
            for column, kind in _TYPES.items()
        ]
        self._session.query(f"DROP TABLE IF EXISTS bench.{name} SYNC")
        self._session.query(
            f"CREATE TABLE bench.{name} ({', '.join(columns)}) ENGINE = MergeTree ORDER BY (symbol, ts_event_ns)"
        )

    def fill(self, path: str, order: str, tuned: bool = False) -> float:
        """Make the day's table anew and return the seconds of its bulk insert."""
        feed = worker.feed(path)  # (a query finds it by its name)
        self._fresh("tick", tuned)
        insert = f"INSERT INTO bench.tick SELECT * FROM Python(feed) {_SETTINGS}, max_insert_threads = {worker.THREADS}"

        def act(feed: pa.Table = feed) -> None:
            self._session.query(insert)

        return worker.seconds(act)

    def settle(self) -> float:
        self._session.query("OPTIMIZE TABLE bench.tick FINAL")
        found = self._session.query(
            "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = 'bench' AND table = 'tick'"
        )
        return float(found.bytes())

    def read(self, symbol: str, start: int, end: int, repeat: int) -> dict[str, Any]:
        query = (
            f"SELECT {_NINE} FROM bench.tick WHERE symbol = '{symbol}' AND ts_event_ns >= {start}"
            f" AND ts_event_ns < {end} ORDER BY ts_event_ns {_SETTINGS}"
        )
        return worker.timed(
            lambda: pa.Table.from_pandas(self._session.query(query, "DataFrame"), preserve_index=False), repeat
        )

    def bars(self, repeat: int) -> dict[str, Any]:
        return worker.timed(lambda: self._session.query(_BARS, "ArrowTable"), repeat)

    def small(self, path: str, batches: int) -> list[float]:
        """Return the milliseconds of each of several appends of 1,000 records."""
        parts = worker.busiest(path, batches)
        self._fresh("small", False)

        def insert(part: pa.Table) -> None:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, part.schema) as writer:
                writer.write_table(part)
            with self._session.send_insert("INSERT INTO bench.small", "Arrow") as stream:
                stream.append(sink.getvalue().to_pybytes())
                stream.finish()

        return [1000 * worker.seconds(lambda part=part: insert(part)) for part in parts]


if __name__ == "__main__":
    worker.serve(ChDB(sys.argv[1]))
