"""DuckDB: one table sorted by (symbol, time), symbol an ENUM, two threads, every commit fsynced (it has no other way).

bulk     `con.register("feed", arrow)` and one `INSERT INTO tick SELECT * FROM feed`, with ORDER BY where the feed is
         not sorted; at its end DuckDB has written and fsynced the rows
read     `con.sql(...).to_arrow_table()` (the DB-API's result makes an extra copy); no ORDER BY, as a scan keeps the
         order of insertion, which is documented
bars     GROUP BY symbol and minute; arg_min and arg_max for open and close: first() and last() are not deterministic
1,000    `INSERT INTO ... SELECT * FROM` a registered Arrow table
single   `con.execute("INSERT ... VALUES (?, ...)", row)`
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import duckdb

from bench import day
from bench.peers import worker

_COLUMNS = (
    "symbol sym, ts_event_ns BIGINT, price DOUBLE, size FLOAT, bid DOUBLE, ask DOUBLE, bid_size FLOAT, ask_size FLOAT,"
    " side TINYINT, flags USMALLINT"
)
_NINE = ", ".join(day.FIELDS)
_BARS = (
    f"SELECT symbol, ts_event_ns // {day.MINUTE_NS} AS minute, arg_min(price, ts_event_ns) AS open, max(price) AS high,"
    " min(price) AS low, arg_max(price, ts_event_ns) AS close, sum(size) AS volume, count(*) AS trades"
    " FROM tick GROUP BY symbol, minute"
)


class DuckDB:
    """The peer, with its stores in one folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._con: Any = None

    def version(self) -> str:
        return f"DuckDB {duckdb.__version__}"

    def _fresh(self, name: str) -> Any:
        place = self._folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        con = duckdb.connect(str(place / "tick.duckdb"), config={"threads": worker.THREADS})
        con.execute("SET enable_progress_bar = false")
        con.execute(f"CREATE TYPE sym AS ENUM ({', '.join(map(repr, day.SYMBOLS))})")
        con.execute(f"CREATE TABLE tick({_COLUMNS})")
        return con

    def fill(self, path: str, order: str) -> float:
        """Make the day's table anew and return the seconds of its bulk insert."""
        if self._con is not None:
            self._con.close()
        feed = worker.feed(path)
        self._con = con = self._fresh("day")
        con.register("feed", feed)
        sort = "" if order == "symbol" else " ORDER BY symbol, ts_event_ns"
        return worker.seconds(lambda: con.execute(f"INSERT INTO tick SELECT * FROM feed{sort}"))

    def settle(self) -> float:
        """Bring the store into its final form and return the bytes it takes on the disk."""
        self._con.execute("CHECKPOINT")
        return worker.disk_bytes(self._folder / "day")

    def read(self, symbol: str, start: int, end: int, repeat: int) -> dict[str, Any]:
        query = f"SELECT {_NINE} FROM tick WHERE symbol = '{symbol}' AND ts_event_ns >= {start} AND ts_event_ns < {end}"
        return worker.timed(lambda: self._con.sql(query).to_arrow_table(), repeat)

    def bars(self, repeat: int) -> dict[str, Any]:
        return worker.timed(lambda: self._con.sql(_BARS).to_arrow_table(), repeat)

    def small(self, path: str, batches: int) -> list[float]:
        """Return the milliseconds of each of several durable appends of 1,000 records."""
        con = self._fresh("small")
        found = []
        for batch in worker.busiest(path, batches):

            def insert(batch: Any = batch) -> None:
                con.register("batch", batch)
                con.execute("INSERT INTO tick SELECT * FROM batch")

            found.append(1000 * worker.seconds(insert))
        con.close()
        return found

    def single(self, path: str, count: int) -> float:
        """Return how many ticks a second are inserted one by one, each durable before the next."""
        rows = [tuple(row.values()) for row in worker.feed(path).slice(0, count).to_pylist()]
        con = self._fresh("single")
        start = time.perf_counter()
        for row in rows:
            con.execute("INSERT INTO tick VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        rate = count / (time.perf_counter() - start)
        con.close()
        return rate

    def second_reader(self) -> str:
        """Return what another process is told that opens the same file meanwhile, or "" if it may."""
        import subprocess

        code = f"import duckdb; duckdb.connect({str(self._folder / 'day' / 'tick.duckdb')!r}, read_only=True)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:300]


if __name__ == "__main__":
    worker.serve(DuckDB(sys.argv[1]))
