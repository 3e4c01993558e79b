"""Tables: what users hand over (records, dicts of arrays, Arrow, pandas, Polars) turned into columns to append."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import msgspec
import numpy as np

from onetape.clock import to_ns
from onetape.errors import ConfigInvalid, InvalidRecord
from onetape.record import Bar, Tick, interval_ns
from onetape.store.block import ABSENT, DTYPES, Array, Columns, full
from onetape.store.layout import KIND_BAR, KIND_TICK
from onetape.store.validate import TIME_RANGE, Problem, problems, text_problem

_TICK_FIELDS = Tick.__struct_fields__
_BAR_FIELDS = Bar.__struct_fields__
#: Columns that an append gives itself: allowed in a table that was read from a tape, and ignored.
_POSITIONS = frozenset({"seq"})
_TIMES = ("ts_event_ns", "ts_recv_ns")
#: The source of a bar that was appended without one.
GIVEN = "given"


@dataclass
class Batch:
    """Records of one kind on their way to the journal: columns without names, and the names by record.

    `symbols` and `sources` are the distinct texts; `columns["symbol"]` and ["source"] index them (source: 0 is
    none, else 1 + index) until the catalog's ids replace them.
    """

    kind: int
    columns: Columns
    symbols: list[str]
    sources: list[str]
    nan_is_absent: dict[str, Array | None]

    def __len__(self) -> int:
        return len(self.columns["ts_event_ns"])

    def problems(self) -> list[Problem]:
        """Return what is wrong, one problem a record, in order."""
        refused = [
            {i: (text, why) for i, text in enumerate(texts, first) if (why := text_problem(what, text)) is not None}
            for what, texts, first in (("symbol", self.symbols, 0), ("source", self.sources, 1))
        ]
        return problems(self.kind, self.columns, refused[0], refused[1], self.nan_is_absent)

    def take(self, mask: Array) -> Batch:
        """Return the records a mask names."""
        columns = {name: column[mask] for name, column in self.columns.items()}
        return Batch(self.kind, columns, self.symbols, self.sources, {})

    def record(self, index: int) -> dict[str, Any]:
        """Return one record as a dict of what is there, for a person to read."""
        shown: dict[str, Any] = {"symbol": self.symbols[int(self.columns["symbol"][index])]}
        for name, column in self.columns.items():
            value = column[index].item()
            if name == "source":
                value = self.sources[value - 1] if value else None
            absent = value is None or value == ABSENT or (isinstance(value, float) and value != value)
            if name != "symbol" and not absent:
                shown[name] = value if value == value and value not in (math.inf, -math.inf) else repr(value)
        return shown


def from_records(records: Sequence[Tick] | Sequence[Bar], kind: int, offset: int) -> Batch:
    """Return a batch of records of one kind. Raises InvalidRecord (index counted from `offset`)."""
    fields = _TICK_FIELDS if kind == KIND_TICK else _BAR_FIELDS
    values: dict[str, Any] = dict(zip(fields, zip(*map(msgspec.structs.astuple, records), strict=True), strict=True))
    if kind == KIND_BAR:
        values["ts_event_ns"] = values.pop("ts_start_ns")
        for made in ("session", "number", "ts_end_ns"):
            del values[made]
        # The tape's own bars are those without a source; what somebody gives is never mistaken for them.
        values["source"] = [source or GIVEN for source in values["source"]]
    return _batch(kind, values, offset)


def from_table(table: Any) -> Batch:
    """Return a batch of ticks from a mapping of columns, an Arrow table, or a pandas or Polars frame.

    Columns are named as Tick's fields; a scalar stands for every row. Lists and Arrow hold None for what is not
    there; NumPy and pandas columns NaN. Times may be int64 ns or any timestamp type. Raises ConfigInvalid for
    columns that no tick has, InvalidRecord for values that no tick can have.
    """
    columns = _named_columns(table)
    unknown = sorted(set(columns) - set(_TICK_FIELDS) - _POSITIONS)
    if unknown:
        raise ConfigInvalid(
            f"no tick has a column {', '.join(map(repr, unknown))}",
            hint=f"columns are {', '.join(_TICK_FIELDS)}",
        )
    for needed in ("symbol", "ts_event_ns"):
        if needed not in columns:
            raise ConfigInvalid(f"the table has no column {needed!r}", hint="every tick has a symbol and a time")
    lengths = {name: len(c) for name, c in columns.items() if not _is_scalar(c)}
    if len(set(lengths.values())) > 1:
        raise ConfigInvalid(f"the columns differ in length: {lengths}")
    if not lengths:
        raise ConfigInvalid("every column is a scalar", hint="give at least ts_event_ns as a list or an array")
    count = next(iter(lengths.values()))
    spread = {name: _spread(c, count) if _is_scalar(c) else c for name, c in columns.items() if name not in _POSITIONS}
    return _batch(KIND_TICK, spread, 0)


def _column(column: Any) -> Any:
    """Return a column of pandas or Polars as Arrow, a masked one as a list with None, others as they are."""
    if isinstance(column, np.ma.MaskedArray):
        return column.tolist()
    if hasattr(column, "iloc") or (hasattr(column, "__arrow_c_stream__") and not _is_arrow(column)):
        from onetape.store import arrow

        return arrow.column(column)
    return column


def _is_arrow(value: Any) -> bool:
    """Return whether it is one of PyArrow's, without loading PyArrow: half of a process's memory, if it needs none."""
    return type(value).__module__.startswith("pyarrow.")


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bytes | int | float | datetime | date | np.generic)


def _spread(value: Any, count: int) -> Any:
    return _Repeated(value, count) if isinstance(value, str) or value is None else [value] * count


class _Repeated(Sequence[Any]):
    """One value `count` times, without the memory."""

    def __init__(self, value: Any, count: int) -> None:
        self.value, self.length = value, count

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return self.value


def _named_columns(table: Any) -> dict[str, Any]:
    if isinstance(table, Mapping):
        return {str(name): _column(column) for name, column in table.items()}
    from onetape.store import arrow

    return arrow.columns(table)


def _batch(kind: int, values: Mapping[str, Any], offset: int) -> Batch:
    columns: Columns = {}
    nan_is_absent: dict[str, Array | None] = {}
    symbols, columns["symbol"] = _texts(values["symbol"], 0, "symbol", offset)
    sources: list[str] = []
    for name, raw in values.items():
        if name in ("symbol", "seq"):
            continue
        if name == "source":
            sources, ids = _texts(raw, 1, "source", offset)
            if sources:
                columns["source"] = ids
        elif name == "interval":
            columns["interval_ns"] = _intervals(raw, offset)
        else:
            filled = _numbers(kind, name, raw, offset)
            if filled is not None:
                if filled[0].shape != columns["symbol"].shape:
                    raise InvalidRecord(offset, name, raw[0], f"{name} is one number a record")
                columns[name], nan_is_absent[name] = filled
    if kind == KIND_BAR:
        for name in ("open", "high", "low", "close"):  # a bar has all four: what is absent is invalid
            columns.setdefault(name, full(kind, name, len(columns["symbol"])))
            nan_is_absent[name] = None
    return Batch(kind, columns, symbols, sources, nan_is_absent)


def _intervals(raw: Sequence[Any], offset: int) -> Array:
    known: dict[Any, int] = {}
    for index, text in enumerate(raw):
        if text not in known:
            try:
                known[text] = interval_ns(text)
            except (ValueError, AttributeError) as error:
                raise InvalidRecord(offset + index, "interval", text, "an interval is such as '1min'") from error
    return np.array([known[text] for text in raw], dtype="<i8")


def _texts(raw: Any, first: int, name: str, offset: int) -> tuple[list[str], Array]:
    """Return the distinct texts in order of appearance and, for each row, `first` + its index (0: None)."""
    if isinstance(raw, _Repeated):
        if raw.value is None and first:
            return [], np.zeros(len(raw), dtype="<u4")
        return [raw.value], np.full(len(raw), first, dtype="<u4")
    if _is_arrow(raw):
        from onetape.store import arrow

        texts, indices = arrow.texts(raw)
        if first == 0 and len(indices) and int(indices.min()) < 0:
            texts, indices = [*texts, ""], np.where(indices < 0, len(texts), indices)
        return texts, indices.astype("<u4") if first == 0 else (indices.astype("<i8") + first).astype("<u4")
    known: dict[Any, int] = {} if first == 0 else {None: 0}
    try:
        row_ids = [known[text] if text in known else known.setdefault(text, len(known)) for text in raw]
    except TypeError as error:
        index = next((i for i, text in enumerate(raw) if not isinstance(text, str | None)), 0)
        raise InvalidRecord(offset + index, name, raw[index], f"a {name} is text") from error
    return [text for text in known if first == 0 or text is not None], np.array(row_ids, dtype="<u4")


def _numbers(kind: int, name: str, raw: Any, offset: int) -> tuple[Array, Array | None] | None:
    """Return (column, where NaN means absent), or None for a column without any value."""
    if isinstance(raw, _Repeated) and raw.value is None:
        return None
    dtype = DTYPES[kind][name]
    if _is_arrow(raw):
        return _from_arrow(name, raw, dtype, offset)
    if isinstance(raw, np.ndarray) and raw.dtype.kind in "fiuMb":
        return _from_numpy(name, raw, dtype, offset)
    return _from_list(name, list(raw), dtype, offset)


def _from_numpy(name: str, raw: Array, dtype: np.dtype[Any], offset: int) -> tuple[Array, Array | None]:
    if raw.dtype.kind == "M":
        if name not in _TIMES:
            raise ConfigInvalid(f"column {name!r} holds times", hint="it holds numbers")
        missing = np.isnat(raw)
        exact = raw.astype("datetime64[ns]")
        _refuse_first((exact.astype(raw.dtype) != raw) & ~missing, name, raw, offset, TIME_RANGE)
        return np.where(missing, ABSENT, exact.astype("<i8")), None
    if dtype.kind == "f":
        column = raw.astype(dtype, copy=False)
        nan = np.isnan(column)
        return column, (nan if nan.any() else None)
    if raw.dtype.kind == "f":
        missing = np.isnan(raw)
        whole = np.where(missing, 0.0, raw)
        bad = (whole != np.floor(whole)) | (np.abs(whole) >= 2.0**63)
        _refuse_first(bad, name, raw, offset, f"{name} is a whole number of {dtype.itemsize * 8} bits")
        column = whole.astype("<i8")
        if missing.any():
            column[missing] = ABSENT if dtype.itemsize == 8 else 0
    else:
        if np.can_cast(raw.dtype, dtype):
            return raw.astype(dtype, copy=False), None
        if raw.dtype.kind == "u" and raw.dtype.itemsize == 8:
            _refuse_first(raw > 2**63 - 1, name, raw, offset, f"{name} fits 64 bits with a sign")
        column = raw.astype("<i8")
    if dtype.itemsize < 8:
        info = np.iinfo(dtype)
        bad = (column < info.min) | (column > info.max)
        _refuse_first(bad, name, raw, offset, f"{name} is from {info.min} to {info.max}")
    return column.astype(dtype), None


def _refuse_first(bad: Array, name: str, raw: Any, offset: int, why: str) -> None:
    if bad.any():
        index = int(np.argmax(bad))
        raise InvalidRecord(offset + index, name, raw[index].item(), why)


def _from_arrow(name: str, raw: Any, dtype: np.dtype[Any], offset: int) -> tuple[Array, Array | None] | None:
    from onetape.store import arrow

    values, nulls = arrow.plain(raw, name)
    if isinstance(values, list):
        return _from_list(name, values, dtype, offset)
    if dtype.kind == "f":
        column = values.astype(dtype, copy=nulls is not None)
        if nulls is not None:
            column[nulls] = np.nan
        return column, nulls
    column, _ = _from_numpy(name, values, dtype, offset)
    if nulls is not None:
        column = column.copy()
        column[nulls] = ABSENT if dtype.itemsize == 8 else 0
    return column, None


def _from_list(name: str, raw: Sequence[Any], dtype: np.dtype[Any], offset: int) -> tuple[Array, Array | None] | None:
    absent = raw.count(None)
    if absent == len(raw) and raw and name != "ts_event_ns":
        return None
    kinds = set(map(type, raw))
    if name in _TIMES and not kinds <= {int, type(None)}:
        raw = [None if value is None else _time(value, name, offset + index) for index, value in enumerate(raw)]
        kinds = {int, type(None)}
    if any(issubclass(kind, str | bytes) for kind in kinds):
        raise _first_refused(name, raw, dtype, offset)
    try:
        if dtype.kind == "f":
            column = np.array(raw, dtype=dtype)
            return column, (np.isnan(column) & _is_none(raw) if absent else None)
        if absent:
            filler = ABSENT if dtype.itemsize == 8 else 0
            raw = [filler if value is None else value for value in raw]
        if not kinds <= {int, bool, type(None)}:  # NumPy would make floats of integers of several kinds
            raw = [operator.index(value) for value in raw]
        integers = np.array(raw)
        if integers.dtype.kind not in "iub" and raw:
            raise ValueError("not whole numbers")
    except (TypeError, ValueError, OverflowError) as error:
        raise _first_refused(name, raw, dtype, offset) from error
    return _from_numpy(name, integers if raw else integers.astype("<i8"), dtype, offset)


def _time(value: Any, name: str, index: int) -> int:
    try:
        return to_ns(value, name)
    except ConfigInvalid as error:
        raise InvalidRecord(index, name, value, "a time is ns, ISO 8601 text or a datetime") from error


def _is_none(raw: Sequence[Any]) -> Array:
    return np.fromiter([value is None for value in raw], dtype=bool, count=len(raw))


def _first_refused(name: str, raw: Sequence[Any], dtype: np.dtype[Any], offset: int) -> InvalidRecord:
    make: Callable[[Any], Any]
    if dtype.kind == "f":
        make, why = float, f"{name} is a number"
    else:
        info = np.iinfo(dtype)
        why = f"{name} is a whole number from {info.min + (dtype.itemsize == 8)} to {info.max}"

        def make(value: Any) -> Any:
            if isinstance(value, float) or not info.min <= int(value) <= info.max:
                raise ValueError(value)
            return value

    for index, value in enumerate(raw):
        try:
            if value is not None:
                if isinstance(value, str | bytes):
                    raise ValueError(value)
                make(value)
        except (TypeError, ValueError, OverflowError):
            return InvalidRecord(offset + index, name, value, why)
    return InvalidRecord(offset, name, raw[0] if raw else None, why)


def split_by_kind(records: Sequence[Tick | Bar]) -> list[tuple[int, int, Sequence[Any]]]:
    """Return runs of one kind as (kind, index of the first, records). Raises InvalidRecord for other objects."""
    ticks = [isinstance(record, Tick) for record in records]
    if all(ticks):
        return [(KIND_TICK, 0, records)] if records else []
    runs: list[tuple[int, int, Sequence[Any]]] = []
    start = 0
    for index, (record, is_tick) in enumerate(zip(records, ticks, strict=True)):
        if not is_tick and not isinstance(record, Bar):
            raise InvalidRecord(index, "record", record, "a record is a Tick or a Bar")
        if index and is_tick != ticks[index - 1]:
            runs.append((KIND_TICK if ticks[start] else KIND_BAR, start, records[start:index]))
            start = index
    runs.append((KIND_TICK if ticks[start] else KIND_BAR, start, records[start:]))
    return runs
