"""The command that answers SQL: its table, JSON lines or CSV, printed as the answer comes."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onetape.cli import output
from onetape.cli.options import Json, TapePath, open_tape
from onetape.cli.times import position
from onetape.clock import to_text
from onetape.errors import ConfigInvalid

if TYPE_CHECKING:
    import pyarrow as pa

_MIB = 2**20
#: Rows of a table for people, unless told otherwise.
_ROWS = 50

TABLES = """\b
Tables:
  ticks     the columns of a tick, and time (UTC, microseconds; ts_event_ns is exact)
  bars      columns as in onetape bars --json, and time; name an interval:
            WHERE interval = '5min', of 1min, 5min, 15min, 30min, 1h, 4h, 1d
  bars_2min and so on: bars of any length, the same columns
  symbols   symbol, ticks, bars, ts_first_ns, ts_last_ns

\b
Conditions on symbol, ts_event_ns and time decide what is read at all.
"""


def sql(
    query: Annotated[str, typer.Argument(help="One SELECT, as DuckDB understands it; - reads it from stdin.")],
    limit: Annotated[
        int | None, typer.Option(min=0, help="At most this many rows; 0: all. [default: 50; all with --json, --csv]")
    ] = None,
    json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values under a line of names.")] = False,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="WHEN", help="Ticks as of a position, a snapshot or a time.")
    ] = None,
    memory: Annotated[
        int, typer.Option(min=16, metavar="MIB", help="For sorting and grouping, before it spills to disk.")
    ] = 1024,
    tape: TapePath = None,
) -> None:
    """Ask the tape with SQL: ticks, bars and symbols as tables. Needs onetape[sql]."""
    if json and as_csv:
        raise ConfigInvalid("--json and --csv were both given", hint="give one")
    text = sys.stdin.read() if query == "-" else query
    rows_max = limit if limit is not None else 0 if json or as_csv else _ROWS
    moment = position(as_of)
    with (
        open_tape(tape) as opened,
        opened.sql_batches(text, as_of=moment, memory_bytes=memory * _MIB) as (schema, batches),
    ):
        answer = _Answer(schema, batches, rows_max)
        if json:
            for row in answer:
                sys.stdout.write(output.json_line(dict(zip(schema.names, row, strict=True))) + "\n")
        elif as_csv:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(schema.names)
            writer.writerows(answer)
        else:
            _print_table(schema, list(answer))
        if answer.is_cut:
            output.note(f"the first {rows_max:,} rows; --limit 0 shows all")


class _Answer:
    """The rows of an answer, at most `rows_max` (0: all), as programs read them; whether there are more."""

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch], rows_max: int) -> None:
        self._names = schema.names
        self._batches = batches
        self._left = rows_max or sys.maxsize
        self.is_cut = False

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self._batches:
            self.is_cut = batch.num_rows > self._left
            columns = [_values(column) for column in batch.slice(0, self._left).columns]
            yield from map(list, zip(*columns, strict=True))
            self._left -= min(self._left, batch.num_rows)
            if self.is_cut:
                return


def _values(column: Any) -> list[Any]:
    """Return a column's values as JSON has them: times as text with all their digits."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        unit = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}[column.type.unit]
        return [None if v is None else to_text(v * unit) for v in column.view(pa.int64()).to_pylist()]
    return [_plain(value) for value in column.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)


def _print_table(schema: pa.Schema, rows: list[list[Any]]) -> None:
    import pyarrow as pa

    if not rows:
        output.note("no rows")
        return
    numbers = [pa.types.is_integer(field.type) or pa.types.is_floating(field.type) for field in schema]
    times = [field.name.endswith("_ns") and field.name.startswith("ts_") for field in schema]

    def cell(value: Any, is_time: bool) -> str:
        if is_time and isinstance(value, int) and value >= 0:
            return to_text(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "" if value is None else str(value)
        return output.number(value) if value == value and abs(value) != float("inf") else str(value)

    left = [name for name, number, time in zip(schema.names, numbers, times, strict=True) if time or not number]
    cells = [[cell(value, time) for value, time in zip(row, times, strict=True)] for row in rows]
    if all(text == "" for line in cells for text in line):
        cells = [["null"] * len(line) for line in cells]
    output.print_table(schema.names, cells, left)
