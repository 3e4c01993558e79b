"""Queries: a tape's ticks and bars as tables for SQL, Polars and PyArrow, which read only what is asked of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from onetape.clock import Time
from onetape.errors import ConfigInvalid, QueryTooLarge
from onetape.record import TS_MAX_NS, interval_ns
from onetape.sql import MEMORY_BYTES, Database, Params
from onetape.tape.extent import Extent, Symbols
from onetape.tape.snapshots import Snapshots

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from onetape.tape.dataset import TapeDataset

#: What the table `bars` holds; others have a table of their own, such as bars_2min.
INTERVALS = ("1min", "5min", "15min", "30min", "1h", "4h", "1d")
#: An answer larger than this does not become one table.
RESULT_BYTES_MAX = 2**30
_BARS_OF = re.compile(r"bars_(\d+(?:s|min|h|d))")


class Queries(Snapshots):
    """How other engines read a tape."""

    def dataset(
        self,
        symbols: Symbols = None,
        start: Time | None = None,
        end: Time | None = None,
        *,
        as_of: int | str | Time | None = None,
    ) -> TapeDataset:
        """Return ticks as a `pyarrow.dataset.Dataset`: of one moment, and read when something scans it.

        Symbols and span as in read(). Columns are those of a tick, and `time`: UTC, in microseconds, rounded down. A
        scan's columns are all that is decoded; its filters on symbol, ts_event_ns and time decide what is read at all.
        """
        from onetape.tape import dataset

        position = None if as_of is None else self.as_of(as_of)
        return dataset.of_ticks(Extent(self, symbols, *self._span(start, end), position))

    def scan(
        self,
        symbols: Symbols = None,
        start: Time | None = None,
        end: Time | None = None,
        *,
        as_of: int | str | Time | None = None,
    ) -> pl.LazyFrame:
        """Return dataset() as a Polars LazyFrame, which pushes its columns and comparisons down to the tape.

        Raises ConfigInvalid where Polars is not installed.
        """
        try:
            import polars as pl
        except ImportError as error:
            raise ConfigInvalid(
                "scan() needs Polars, which is not installed", hint="pip install onetape[polars]"
            ) from error
        return pl.scan_pyarrow_dataset(self.dataset(symbols, start, end, as_of=as_of))

    def sql(
        self,
        query: str,
        params: Params = None,
        *,
        as_of: int | str | Time | None = None,
        memory_bytes: int = MEMORY_BYTES,
        result_bytes_max: int = RESULT_BYTES_MAX,
    ) -> pa.Table:
        """Return DuckDB's answer to one SELECT as an Arrow table; `params` are the values of its ? or $name.

        Tables: `ticks` (see dataset()); `bars` (see bars(), with `interval`, and `time`) of 1min, 5min, 15min, 30min,
        1h, 4h and 1d, and one a length such as `bars_5min`; `symbols`. Ticks are of one moment, and with `as_of` bars
        are too. Only those of the symbols and times that the query compares with are read, and only its columns. It
        takes `memory_bytes` for sorting and grouping before it spills to disk. It cannot read files, reach out, or
        write.

        Raises QueryInvalid with line and column, QueryTooLarge for an answer beyond `result_bytes_max`, ConfigInvalid
        where DuckDB is not installed, and what reading raises.
        """
        import pyarrow as pa

        batches, size = [], 0
        with self.sql_batches(query, params, as_of=as_of, memory_bytes=memory_bytes) as (schema, found):
            for batch in found:
                size += batch.nbytes
                if size > result_bytes_max:
                    raise QueryTooLarge(
                        f"the answer is larger than {result_bytes_max:,} bytes",
                        hint="aggregate, select fewer columns, add a LIMIT, or take it in batches: sql_batches()",
                    )
                batches.append(batch)
        return pa.Table.from_batches(batches, schema)

    @contextmanager
    def sql_batches(
        self,
        query: str,
        params: Params = None,
        *,
        as_of: int | str | Time | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        """As sql(), but give the answer's schema and its batches as they are made."""
        database = Database(memory_bytes)
        scanned: list[TapeDataset] = []
        try:
            asked = database.tables(query)
            position = None if as_of is None else self.as_of(as_of)
            for name, make in self._tables(asked, position).items():
                table = make()
                database.add(name, table)
                if hasattr(table, "error"):
                    scanned.append(table)
            reader = None
            try:
                reader = database.run(query, params)
                yield reader.schema, database.batches(query, reader)
            except Exception as error:
                for table in scanned:
                    if table.error is not None and error is not table.error:
                        raise table.error from error
                raise
            finally:
                for table in scanned:
                    table.stopped = True
                if reader is not None:
                    database.stop(reader)
        finally:
            database.close()

    def _tables(self, asked: set[str], position: int | None) -> dict[str, Callable[[], Any]]:
        """Return how to make each table of the names asked for."""
        made: dict[str, Callable[[], Any]] = {}
        if "ticks" in asked:
            made["ticks"] = lambda: self.dataset(as_of=position)
        if "bars" in asked:
            made["bars"] = lambda: self._bar_dataset(INTERVALS, position)
        if "symbols" in asked:
            made["symbols"] = self._symbol_table
        for name in asked:
            found = _BARS_OF.fullmatch(name)
            if found:
                interval = found[1]
                try:
                    interval_ns(interval)
                except ValueError as error:
                    raise ConfigInvalid(f"no table {name}: {error}") from error
                made[name] = lambda interval=interval: self._bar_dataset((interval,), position)  # type: ignore[misc]
        return made

    def _bar_dataset(self, intervals: tuple[str, ...], position: int | None) -> TapeDataset:
        from onetape.tape import dataset

        bars: Callable[[str, str, int, int], pa.Table] = partial(self.bars, as_of=position)  # type: ignore[attr-defined]
        return dataset.of_bars(Extent(self, None, 0, TS_MAX_NS + 1, None), bars, intervals)

    def _symbol_table(self) -> pa.Table:
        import pyarrow as pa

        found = self.symbols()  # type: ignore[attr-defined]
        fields = [("symbol", pa.string())]
        fields += [(name, pa.int64()) for name in ("ticks", "bars", "ts_first_ns", "ts_last_ns")]
        return pa.table({name: pa.array([getattr(info, name) for info in found], kind) for name, kind in fields})
