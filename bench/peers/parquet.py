"""Parquet through PyArrow: a file a symbol, zstd, encodings tuned to the data, two threads. No transactions, no fsync.

write    `pq.write_table`, two files at a time: DELTA_BINARY_PACKED times, BYTE_STREAM_SPLIT prices, dictionaries for
         the rest, pages of version 2, zstd level 1 (level 3 gives half a percent), row groups of 65,536 (an hour reads
         five times as fast as from a million, and the size is the same)
read     `pq.read_table(file, memory_map=True)` with a filter on the time where it is less than the file
"""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench import day
from bench.peers import worker

_PRICES = ("price", "bid", "ask")
_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["size", "bid_size", "ask_size", "side", "flags"],
    "column_encoding": {"ts_event_ns": "DELTA_BINARY_PACKED", **dict.fromkeys(_PRICES, "BYTE_STREAM_SPLIT")},
    "data_page_version": "2.0",
    "write_statistics": ["ts_event_ns"],
    "row_group_size": 65_536,
}


class Parquet:
    """The peer, with its files in one folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) / "day"
        pa.set_cpu_count(worker.THREADS)

    def version(self) -> str:
        return f"Parquet (PyArrow {pa.__version__})"

    def fill(self, path: str, order: str) -> float:
        """Write the day's files anew and return the seconds."""
        feed = worker.feed(path)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

        def write() -> None:
            with ThreadPoolExecutor(worker.THREADS) as pool:
                list(
                    pool.map(lambda part: pq.write_table(part[1], self._file(part[0]), **_OPTIONS), worker.parts(feed))
                )

        return worker.seconds(write)

    def _file(self, symbol: str) -> str:
        return str(self._folder / f"{symbol}.parquet")

    def settle(self) -> float:
        return worker.disk_bytes(self._folder)

    def read(self, symbol: str, start: int, end: int, repeat: int) -> dict[str, Any]:
        whole = end - start >= day.DAY_NS
        within = None if whole else [("ts_event_ns", ">=", start), ("ts_event_ns", "<", end)]
        return worker.timed(lambda: pq.read_table(self._file(symbol), filters=within, memory_map=True), repeat)


if __name__ == "__main__":
    worker.serve(Parquet(sys.argv[1]))
