"""The tape as a PyArrow dataset: what DuckDB, Polars and PyArrow scan with their filters and columns pushed down.

A scan is planned in pieces of which something is known beforehand: of whom, and from when to when. A filter leaves out
the pieces in which it cannot be true (PyArrow itself says so, as it does of partitioned files), so its symbols and
times decide what is read. Where it is true of a whole piece by what is known, its rows are not looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow import fs

from onetape.errors import ConfigInvalid
from onetape.record import TS_MAX_NS
from onetape.store import arrow, windows
from onetape.store.layout import CHUNK_RECORDS_MAX
from onetape.store.query import TICK_NAMES
from onetape.tape.extent import Extent

#: Ticks of one piece: a scan's consumer holds a few of them at a time.
_PIECE_RECORDS = 131_072
_BATCH_ROWS = 65_536
#: The column beside those of a record: its time to the microsecond, rounded down. Neither DuckDB nor Polars pushes down
#: comparisons of nanosecond timestamps; both do of microseconds. ts_event_ns is exact.
_TIME = pa.field("time", pa.timestamp("us"))


class Piece(NamedTuple):
    """What can be read by itself, and what is known of all its rows."""

    symbol: str
    start_ns: int
    end_ns: int
    interval: str | None = None

    def guarantee(self, time_name: str) -> pc.Expression:
        """Return what is true of every row."""
        last_ns = min(self.end_ns, TS_MAX_NS + 1) - 1
        known = (pc.field("symbol") == self.symbol) & (pc.field(time_name) >= self.start_ns)
        known &= pc.field(time_name) <= last_ns
        for edge_ns, compare in ((self.start_ns, pc.Expression.__ge__), (last_ns, pc.Expression.__le__)):
            known &= compare(pc.field("time"), pa.scalar(edge_ns // 1000, _TIME.type))
        return known if self.interval is None else known & (pc.field("interval") == self.interval)


Read = Callable[[Piece, Sequence[str]], pa.Table]
Plan = Callable[["Wanted"], list[Piece]]


class Wanted:
    """A filter as a scan's planner asks it: which pieces can have rows for it, and which have nothing else."""

    def __init__(self, schema: pa.Schema, time_name: str, expression: pc.Expression | None) -> None:
        self._schema, self._time_name, self.expression = schema, time_name, expression
        text = "" if expression is None else str(expression)
        self.columns = [name for name in schema.names if re.search(rf"\b{name}\b", text)]
        self._known = {*self.columns} <= {"symbol", "interval", "time", time_name}

    @property
    def of_time(self) -> bool:
        """Return whether the filter says something of time."""
        return "time" in self.columns or self._time_name in self.columns

    def possible(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Return the pieces that the filter can be true in."""
        return list(pieces) if self.expression is None else self._kept(pieces, self.expression)

    def partly(self, pieces: Sequence[Piece]) -> set[Piece]:
        """Return, of pieces that the filter can be true in, those in which it need not be true of every row."""
        if self.expression is None:
            return set()
        # What is known is never null, so where the opposite cannot be true the filter is.
        return set(self._kept(pieces, ~self.expression)) if self._known else set(pieces)

    def _kept(self, pieces: Sequence[Piece], expression: pc.Expression) -> list[Piece]:
        kind, nowhere = pads.IpcFileFormat(), fs.LocalFileSystem()
        fragments = [
            kind.make_fragment(str(number), nowhere, partition_expression=piece.guarantee(self._time_name))
            for number, piece in enumerate(pieces)
        ]  # files that are not there: they are never opened
        plain = pa.schema([(field.name, _plain(field.type)) for field in self._schema])
        return [
            pieces[int(fragment.path)]
            for fragment in pads.FileSystemDataset(fragments, plain, kind, nowhere).get_fragments(expression)
        ]


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


class Scan:
    """A scan of a tape's dataset, as a `pyarrow.dataset.Scanner` is used: read by the thread that asks for a batch.

    PyArrow's own scanner reads ahead in threads that outlive an abandoned scan, and would call Python when it is gone.
    """

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        self.projected_schema = schema
        self._batches = batches

    def to_reader(self) -> pa.RecordBatchReader:
        """Return the batches as a reader."""
        return pa.RecordBatchReader.from_batches(self.projected_schema, self._batches)

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """Return the batches."""
        return self._batches

    def to_table(self) -> pa.Table:
        """Return all rows as one table."""
        return pa.Table.from_batches(self._batches, self.projected_schema)

    def head(self, num_rows: int) -> pa.Table:
        """Return the first rows as a table."""
        found, left = [], num_rows
        for batch in self._batches if num_rows > 0 else ():
            found.append(batch.slice(0, left))
            left -= found[-1].num_rows
            if not left:
                break
        return pa.Table.from_batches(found, self.projected_schema)

    def count_rows(self) -> int:
        """Return how many rows there are."""
        return sum(batch.num_rows for batch in self._batches)


class TapeDataset(pads.InMemoryDataset):  # type: ignore[misc]
    """Ticks or bars of a tape as a `pyarrow.dataset.Dataset` that reads what a scan asks for, and only then.

    For DuckDB (`con.register("ticks", dataset)`), Polars (`polars.scan_pyarrow_dataset(dataset)`) and PyArrow
    (`dataset.to_table(columns=…, filter=…)`). The rows of a scan come symbol by symbol, each in canonical order.
    """

    def __init__(self, schema: pa.Schema, time_name: str, plan: Plan, read: Read) -> None:
        super().__init__(schema.empty_table())  # the C++ half holds nothing: all reading goes through scanner()
        self._of_tape = schema, time_name, plan, read
        #: What a scan failed with: an engine passes errors on as text alone.
        self.error: Exception | None = None
        #: Set to end all scans at the next piece.
        self.stopped = False

    def scanner(self, columns: Any = None, filter: pc.Expression | None = None, **options: Any) -> Scan:
        """Return a scan of some columns and of the rows for which `filter` is true. Of PyArrow's options, batch_size
        counts."""
        schema, time_name, plan, read = self._of_tape
        if columns is not None and not isinstance(columns, list | tuple):
            raise ConfigInvalid("columns of a tape's dataset are a list of names", hint="compute on what it returns")
        names = list(schema.names if columns is None else columns)
        unknown = [name for name in names if name not in schema.names]
        if unknown:
            raise ConfigInvalid(f"there is no column {unknown[0]!r}", hint=f"columns are {', '.join(schema.names)}")
        wanted = Wanted(schema, time_name, filter)
        batches = self._batches(wanted, plan, read, names, options.get("batch_size") or _BATCH_ROWS)
        return Scan(pa.schema([schema.field(name) for name in names]), batches)

    def _batches(
        self, wanted: Wanted, plan: Plan, read: Read, names: list[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        try:
            pieces = plan(wanted)
            partly = wanted.partly(pieces)
            for piece in pieces:
                if self.stopped:
                    return
                if piece in partly:
                    table = read(piece, list(dict.fromkeys([*names, *wanted.columns])))
                    table = table.filter(wanted.expression).select(names)
                else:
                    table = read(piece, names).select(names)
                yield from table.to_batches(batch_rows)
        except Exception as error:
            self.error = error
            raise

    def to_batches(
        self, columns: Any = None, filter: pc.Expression | None = None, **options: Any
    ) -> Iterator[pa.RecordBatch]:
        """Return scanner()'s batches."""
        return self.scanner(columns, filter, **options).to_batches()

    def to_table(self, columns: Any = None, filter: pc.Expression | None = None, **options: Any) -> pa.Table:
        """Return scanner()'s rows as one table."""
        return self.scanner(columns, filter, **options).to_table()

    def head(self, num_rows: int, **options: Any) -> pa.Table:
        """Return scanner()'s first rows as a table."""
        return self.scanner(**options).head(num_rows)

    def count_rows(self, filter: pc.Expression | None = None, **options: Any) -> int:
        """Return how many rows there are for which `filter` is true."""
        return self.scanner([self._of_tape[1]], filter, **options).count_rows()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigInvalid("a tape's dataset can be scanned, not changed", hint="to_table(columns=…, filter=…) first")

    filter = get_fragments = join = join_asof = sort_by = replace_schema = take = _refuse


def of_ticks(extent: Extent) -> TapeDataset:
    """Return an extent's ticks as a dataset: the columns of a tick, and `time`."""
    schema = arrow.schema(TICK_NAMES).append(_TIME)
    ids = {name: symbol_id for symbol_id, name in extent.symbols.items()}

    def plan(wanted: Wanted) -> list[Piece]:
        whole = [Piece(name, extent.start_ns, extent.end_ns) for name in ids]
        pieces: list[Piece] = []
        for name, *_ in wanted.possible(whole):
            fine = extent.windows([ids[name]], CHUNK_RECORDS_MAX if wanted.of_time else _PIECE_RECORDS)
            kept = [(p.start_ns, p.end_ns) for p in wanted.possible([Piece(name, *window) for window in fine])]
            if wanted.of_time:
                kept = windows.merge(kept, [CHUNK_RECORDS_MAX] * len(kept), _PIECE_RECORDS)
            pieces += [Piece(name, *window) for window in kept]
        return pieces

    def read(piece: Piece, names: Sequence[str]) -> pa.Table:
        asked = [name for name in names if name != "time"]
        if "time" in names and "ts_event_ns" not in asked:
            asked.append("ts_event_ns")
        table = extent.read([ids[piece.symbol]], (piece.start_ns, piece.end_ns), asked)
        return with_time(table, "ts_event_ns").select(names) if "time" in names else table

    return TapeDataset(schema, "ts_event_ns", plan, read)


def of_bars(extent: Extent, bars: Callable[[str, str, int, int], pa.Table], intervals: Sequence[str]) -> TapeDataset:
    """Return bars of some intervals, as bars(symbol, interval, start_ns, end_ns) gives them, as a dataset."""
    schema = arrow.BAR_SCHEMA.append(_TIME)

    def plan(wanted: Wanted) -> list[Piece]:
        return wanted.possible(
            [
                Piece(name, extent.start_ns, extent.end_ns, interval)
                for interval in intervals
                for name in extent.symbols.values()
            ]
        )

    def read(piece: Piece, names: Sequence[str]) -> pa.Table:
        found = bars(piece.symbol, piece.interval or "", piece.start_ns, piece.end_ns)
        return with_time(found, "ts_start_ns").select(names)

    return TapeDataset(schema, "ts_start_ns", plan, read)


def with_time(table: pa.Table, name: str) -> pa.Table:
    """Return a table with the column `time` made of a column of nanoseconds."""
    times = table[name].combine_chunks().to_numpy(zero_copy_only=False) // 1000
    return table.append_column(_TIME, pa.array(times, pa.int64()).view(_TIME.type))
