"""ArcticDB on LMDB: a symbol of it for each symbol of ours, indexed by time.

bulk     `lib.write_batch` of one pandas frame a symbol (that of Arrow tables is not public yet); the frames are ready
         when the clock starts where the feed is sorted by symbol, and split from it within the time where it is not
read     `lib.read(symbol, date_range=..., output_format="PYARROW")`
bars     `lib.read_batch` of a `QueryBuilder().resample("1min")` for each symbol
1,000    `lib.append` of a frame to one symbol, its best case: a feed's thousand would be appends to many
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import arcticdb
import pandas as pd
import pyarrow as pa

from bench import day
from bench.peers import worker

_AGGREGATES = {
    "open": ("price", "first"),
    "high": ("price", "max"),
    "low": ("price", "min"),
    "close": ("price", "last"),
    "volume": ("size", "sum"),
    "trades": ("price", "count"),
}


class ArcticDB:
    """The peer, with its stores in one folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._made = 0
        self._lib: Any = None
        self._place: Path | None = None

    def version(self) -> str:
        return f"ArcticDB {arcticdb.__version__}"

    def _fresh(self) -> tuple[Path, Any]:
        """Return a new folder and a library in it: one process may open one LMDB path only once."""
        self._made += 1
        place = self._folder / f"store-{self._made}"
        place.mkdir(parents=True)
        return place, arcticdb.Arctic(f"lmdb://{place}?map_size=4GB").create_library("bench")

    def fill(self, path: str, order: str) -> float:
        """Make the day's library anew and return the seconds of its bulk write."""
        feed = worker.feed(path)
        self._lib = None
        if self._place is not None:
            shutil.rmtree(self._place)
        self._place, self._lib = self._fresh()
        ready = _frames(feed) if order == "symbol" else None

        def write() -> None:
            frames = ready if ready is not None else _frames(feed)
            done = self._lib.write_batch([arcticdb.WritePayload(name, frame) for name, frame in frames])
            if failed := [one for one in done if isinstance(one, arcticdb.DataError)]:
                raise RuntimeError(str(failed[0]))

        return worker.seconds(write)

    def settle(self) -> float:
        assert self._place is not None
        return worker.disk_bytes(self._place)

    def read(self, symbol: str, start: int, end: int, repeat: int) -> dict[str, Any]:
        within = (pd.Timestamp(start), pd.Timestamp(end - 1))
        return worker.timed(lambda: self._lib.read(symbol, date_range=within, output_format="PYARROW").data, repeat)

    def bars(self, repeat: int) -> dict[str, Any]:
        def all_bars() -> pa.Table:
            asked = [
                arcticdb.ReadRequest(name, query_builder=arcticdb.QueryBuilder().resample("1min").agg(_AGGREGATES))
                for name in day.SYMBOLS
            ]
            found = self._lib.read_batch(asked, output_format="PYARROW")
            return pa.concat_tables([one.data for one in found])

        return worker.timed(all_bars, repeat)

    def small(self, path: str, batches: int) -> list[float]:
        """Return the milliseconds of each of several appends of 1,000 records to one symbol."""
        frames = [_frame(batch.select(list(day.FIELDS))) for batch in worker.busiest(path, batches + 1)]
        place, lib = self._fresh()
        lib.write("small", frames[0])
        found = [1000 * worker.seconds(lambda frame=frame: lib.append("small", frame)) for frame in frames[1:]]
        shutil.rmtree(place)
        return found


def _frames(feed: pa.Table) -> list[tuple[str, pd.DataFrame]]:
    return [(name, _frame(table)) for name, table in worker.parts(feed)]


def _frame(nine: pa.Table) -> pd.DataFrame:
    frame = nine.drop_columns(["ts_event_ns"]).to_pandas()
    frame.index = pd.DatetimeIndex(nine["ts_event_ns"].to_numpy().view("M8[ns]"), name="ts_event_ns")
    return frame


if __name__ == "__main__":
    worker.serve(ArcticDB(sys.argv[1]))
