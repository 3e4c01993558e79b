"""Arrow: columns and bars as Arrow tables, and Arrow columns and frames as what an append takes.

The one module of the store that loads PyArrow; the others import it when they are asked for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from onetape.errors import ConfigInvalid
from onetape.record import Bar
from onetape.store.block import ABSENT, DTYPES, Array, Columns
from onetape.store.layout import KIND_TICK
from onetape.store.query import TICK_NAMES, Names

_STANDS_FOR_NULL = ("trades", "ts_recv_ns")
_ARROW = {"f": pa.float64(), "i8": pa.int64(), "u4": pa.uint32(), "i1": pa.int8()}


def arrow_type(name: str) -> pa.DataType:
    """Return the Arrow type of a tick's column."""
    if name in ("symbol", "source"):
        return pa.dictionary(pa.int32(), pa.string())
    dtype = DTYPES[KIND_TICK][name]
    return _ARROW["f"] if dtype.kind == "f" else _ARROW[dtype.str[1:]]


_CODED = ("symbol", "source")


def check_columns(wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the columns asked for: all, in Tick's order, for None. Raises ConfigInvalid."""
    asked = list(wanted) if wanted is not None else list(TICK_NAMES)
    unknown = [name for name in asked if name not in TICK_NAMES]
    if unknown:
        raise ConfigInvalid(f"no tick has a column {unknown[0]!r}", hint=f"columns are {', '.join(TICK_NAMES)}")
    return asked


def schema(asked: Sequence[str]) -> pa.Schema:
    """Return the Arrow schema of a tick's columns."""
    return pa.schema([(name, arrow_type(name)) for name in asked])


def to_arrow(
    columns: Columns | None,
    symbol: str | Sequence[str],
    wanted: Sequence[str] | None,
    names: Names,
    sources: Sequence[str] | None = None,
    complete: Collection[str] = (),
) -> pa.Table:
    """Return columns as an Arrow table of `wanted` columns (all, in Tick's order, by default).

    symbol: the one they are of, or the names that the column symbol counts, from zero. sources: the dictionary of the
    column source, name by id from 1; those that are met, by default. complete: columns known to have nothing absent.
    NumPy's memory becomes Arrow's, uncopied; only columns in which something is absent get a bitmap.
    """
    asked = check_columns(wanted)
    count = 0 if columns is None else len(columns["ts_event_ns"])
    have = columns or {}
    arrays = [
        pa.array(have[name], arrow_type(name))
        if name in complete and name not in _CODED
        else _arrow_column(name, have, symbol, count, names, sources)
        for name in asked
    ]
    return pa.table(arrays, names=asked)


def _arrow_column(
    name: str, have: Columns, symbol: str | Sequence[str], count: int, names: Names, sources: Sequence[str] | None
) -> Any:
    if name == "symbol":
        if isinstance(symbol, str):
            return _encoded(np.zeros(count, dtype="<i4"), [symbol])
        codes = have["symbol"].astype("<i4") if count else np.zeros(0, dtype="<i4")
        return _encoded(codes, symbol)
    if name == "source":
        return _sources(have.get("source", np.zeros(count, dtype="<u4")), names, sources)
    if name not in have:
        kind = arrow_type(name)
        plain_zero = name in ("side", "flags")
        return pa.array(np.zeros(count, dtype=DTYPES[KIND_TICK][name])) if plain_zero else pa.nulls(count, kind)
    return _numbers(np.ascontiguousarray(have[name]), arrow_type(name), name in _STANDS_FOR_NULL)


def empty(count: int, dtype: np.dtype[Any]) -> Array:
    """Return an array in Arrow's own memory, which is kept for the next one: fresh memory costs more than decoding."""
    made: Array = np.frombuffer(pa.allocate_buffer(count * dtype.itemsize), dtype, count)
    return made


def _numbers(column: Array, kind: pa.DataType, absent_is_least: bool) -> Any:
    """Return numbers as an Arrow array over the same memory, null where absent."""
    if column.dtype.kind == "f":
        # A minimum over anything absent is NaN, in a third of the time of isnan().any(). (A dot product would tell it
        # too, but it wakes the threads of the linear algebra library, which take the processor from everybody else.)
        absent = np.isnan(column) if len(column) and np.isnan(column.min()) else None
    else:
        some = absent_is_least and len(column) and int(column.min()) == ABSENT
        absent = column == ABSENT if some else None
    if absent is None or not absent.any():
        return pa.array(column, kind)
    valid = np.packbits(~absent, bitorder="little")
    return pa.Array.from_buffers(kind, len(column), [pa.py_buffer(valid), pa.py_buffer(column)])


def _sources(ids: Array, names: Names, sources: Sequence[str] | None) -> Any:
    """Return ids of sources as a dictionary array; id 0 is null."""
    if sources is None:
        met = [int(i) for i in np.flatnonzero(np.bincount(ids)) if i] if len(ids) else []
        code_of = np.zeros(max(met, default=0) + 1, dtype="<i4")
        code_of[met] = np.arange(len(met))
        codes = code_of[ids]
        texts: Sequence[str | None] = names.sources(met)
    else:
        codes, texts = np.maximum(ids.astype("<i4") - 1, 0), sources
    absent = ids == 0
    return _encoded(codes, texts, absent if absent.any() else None)


def _encoded(codes: Array, texts: Sequence[str | None], absent: Array | None = None) -> Any:
    indices = pa.array(codes, pa.int32(), mask=absent)
    return pa.DictionaryArray.from_arrays(indices, pa.array(texts, pa.string()), safe=False)  # made here, so in bounds


BAR_SCHEMA = pa.schema(
    [
        ("symbol", pa.string()),
        ("interval", pa.string()),
        ("ts_start_ns", pa.int64()),
        ("open", pa.float64()),
        ("high", pa.float64()),
        ("low", pa.float64()),
        ("close", pa.float64()),
        ("volume", pa.float64()),
        ("vwap", pa.float64()),
        ("trades", pa.int64()),
        ("bid_volume", pa.float64()),
        ("ask_volume", pa.float64()),
        ("complete", pa.bool_()),
        ("revision", pa.int64()),
        ("source", pa.string()),
    ]
)


def bars_to_arrow(found: Sequence[Bar]) -> pa.Table:
    """Return bars as an Arrow table of BAR_SCHEMA."""
    return pa.table(
        [pa.array([getattr(bar, field.name) for bar in found], field.type) for field in BAR_SCHEMA],
        schema=BAR_SCHEMA,
    )


def columns(table: Any) -> dict[str, Any]:
    """Return the columns of an Arrow table or batch, or of a pandas or Polars frame, by name."""
    try:
        if isinstance(table, pa.RecordBatch):
            table = pa.table(table)
        elif hasattr(table, "columns") and hasattr(table, "iloc"):  # pandas: NaN is how it says "not there"
            table = pa.Table.from_pandas(table, preserve_index=False)
        elif not isinstance(table, pa.Table) and hasattr(table, "__arrow_c_stream__"):  # Polars, every Arrow producer
            table = pa.table(table)
    except (pa.ArrowException, TypeError) as error:
        raise ConfigInvalid(f"cannot read the {type(table).__name__}: {error}") from error
    if not isinstance(table, pa.Table):
        raise ConfigInvalid(
            f"cannot append a {type(table).__name__}",
            hint="give a dict of columns, an Arrow table, or a pandas or Polars frame",
        )
    return {name: table.column(name) for name in table.column_names}


def column(series: Any) -> Any:
    """Return a pandas or Polars series as an Arrow array."""
    try:
        return pa.Array.from_pandas(series) if hasattr(series, "iloc") else pa.chunked_array(series)
    except (pa.ArrowException, TypeError) as error:
        raise ConfigInvalid(f"cannot read the {type(series).__name__}: {error}") from error


def texts(raw: Any) -> tuple[list[Any], Array]:
    """Return the distinct values of a column in order of appearance, and for each row its index, -1 for null."""
    encoded = _whole(raw)
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    indices = encoded.indices
    if indices.null_count:  # (asked first: what fills nulls loads pandas)
        indices = indices.fill_null(-1)
    indices = indices.to_numpy(zero_copy_only=False)
    return encoded.dictionary.to_pylist(), indices


def _whole(raw: Any) -> Any:
    if not isinstance(raw, pa.ChunkedArray):
        return raw
    return raw.chunk(0) if raw.num_chunks == 1 else raw.combine_chunks()


def plain(raw: Any, name: str) -> tuple[Array | list[Any], Array | None]:
    """Return a column as NumPy values and where they are null, or as a list where it holds no numbers or times."""
    array = _whole(raw)
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if array.null_count == len(array) and len(array):
        return [None] * len(array), None
    nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    try:
        if pa.types.is_timestamp(array.type):
            array = array.cast(pa.timestamp("ns", array.type.tz)).cast(pa.int64())
        if pa.types.is_decimal(array.type):
            array = array.cast(pa.float64())
    except pa.ArrowException as error:
        raise ConfigInvalid(f"column {name!r} cannot be used: {error}") from error
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return array.to_pylist(), None
    return (array.fill_null(0) if nulls is not None else array).to_numpy(zero_copy_only=False), nulls
