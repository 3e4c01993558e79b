"""Typed columns: Arrow columns of any fitting type turned into fields of records, and every cell that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from onetape.errors import ImportInvalid
from onetape.importing import names, times, values
from onetape.importing.values import Column

_FLOAT_WHOLE_MAX = 2**53


def refusal(field: str, kind: Any, *, alone: bool) -> str | None:
    """Return why a column of this type cannot be the field, or None."""
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_null(held) or _is_text(held):
        return None
    if not alone:
        return f"{kind} is no text, so it cannot be joined to a time"
    whole = pa.types.is_integer(held)
    number = whole or pa.types.is_floating(held) or pa.types.is_decimal(held)
    if field in names.TEXT_FIELDS:
        return None if whole and field == "symbol" else f"{kind} is no text"
    if field in names.TIME_FIELDS:
        time = pa.types.is_timestamp(held) or pa.types.is_date(held)
        return None if time or number else f"{kind} is no time"
    if field in names.TRUTH_FIELDS:
        return None if pa.types.is_boolean(held) or whole else f"{kind} is not true or false"
    return None if number else f"{kind} is no number"


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


class Reader:
    """Reads columns of one file; what the first time looks like holds for all of it."""

    def __init__(self, shown: str, time_format: str, zone: str) -> None:
        self._shown, self._time_format, self._zone = shown, time_format, zone
        self._forms: dict[str, str] = {}

    def read(self, field: str, columns: Sequence[Any], name: str) -> Column:
        """Return a field's values: text, int64, float64 or booleans, null where absent; a bad cell is null or refused.

        `name` is that of the first column: one that ends with _ns holds nanoseconds.
        """
        plain = [_plain(column) for column in columns]
        column = plain[0]
        if len(plain) > 1:
            column = pc.binary_join_element_wise(*[pc.utf8_trim_whitespace(part) for part in plain], " ")
        if column.null_count == len(column):
            return self._absent(field, len(column))
        if field in names.TEXT_FIELDS:
            return _good(column.cast(pa.string()))
        if field in names.TIME_FIELDS:
            return self._times(field, column, name)
        if field == "side":
            return _sides(column)
        if field in names.TRUTH_FIELDS:
            return values.truths(_texts(column)) if _is_text(column.type) else _good(column.cast(pa.bool_()))
        return _whole(column) if field in names.INT_FIELDS else _numbers(column)

    def _absent(self, field: str, count: int) -> Column:
        if field in ("ts_event_ns", "ts_start_ns"):
            return Column(np.full(count, -1), np.ones(count, dtype=bool), "every record has a time")
        kinds = {**dict.fromkeys(names.TEXT_FIELDS, pa.string()), "complete": pa.bool_(), "side": pa.int64()}
        whole = field in (*names.INT_FIELDS, *names.TIME_FIELDS)
        nulls = pa.nulls(count, pa.int64() if whole else kinds.get(field, pa.float64()))
        return _good(nulls.fill_null(0) if field == "side" else nulls)

    def _times(self, field: str, column: Any, name: str) -> Column:
        kind = column.type
        missing = column.is_null().to_numpy(zero_copy_only=False)
        if pa.types.is_timestamp(kind) and (kind.tz is not None or self._zone == "UTC"):
            found = _exact(column)
        elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            ns = _exact(column.cast(pa.timestamp("us")) if pa.types.is_date(kind) else column)
            local = times.in_zone(np.asarray(ns.values), ns.bad, self._zone)
            found = Column(local.ns, local.bad, local.why or ns.why)
        elif pa.types.is_integer(kind) and self._form(field, column, name) == "ns":
            found = _whole(column)
        else:
            form = self._form(field, column, name)
            read = times.read(pc.fill_null(_time_texts(column), "0"), form, self._zone)
            found = Column(read.ns, read.bad, read.why or f"not a time of the form {form}")
        ns = found.values
        if not isinstance(ns, np.ndarray):
            ns = ns.fill_null(0).to_numpy(zero_copy_only=False)
        bad = found.bad & ~missing
        if field == "ts_recv_ns":
            return Column(pa.array(ns, pa.int64(), mask=missing | bad), bad, found.why)
        why = "every record has a time" if missing.any() and not bad.any() else found.why
        return Column(pa.array(np.where(missing | bad, -1, ns), pa.int64()), bad | missing, why)

    def _form(self, field: str, column: Any, name: str) -> str:
        if field not in self._forms:
            sample = next(
                (str(text) for text in _time_texts(column.drop_null().slice(0, 1000)).to_pylist() if text), ""
            )
            found: str | None = self._time_format
            if self._time_format == "auto":
                found = "ns" if name.endswith("_ns") else times.detect(sample)
            if found is None:
                raise ImportInvalid(
                    f"{self._shown}, column {name!r} ({field}): {sample!r}: a time of a form that is not known",
                    hint="give --time-format",
                )
            self._forms[field] = found
        return self._forms[field]


def _plain(column: Any) -> Any:
    """Return a column without dictionary; texts as plain strings."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string()) if _is_text(column.type) else column


def _good(column: Any) -> Column:
    return Column(column, np.zeros(len(column), dtype=bool), "")


def _texts(column: Any) -> Any:
    return pc.fill_null(column.cast(pa.string()), "")


def _exact(column: Any) -> Column:
    """Return instants as ns; one that does not fit is bad."""
    try:
        ns = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64()).fill_null(0)
        return Column(ns.to_numpy(zero_copy_only=False), np.zeros(len(column), dtype=bool), "")
    except pa.ArrowInvalid:
        scale = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[column.type.unit]
        raw = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        bad = (raw > (2**63 - 1) // scale) | (raw < -(2**63) // scale)
        return Column(np.where(bad, -1, np.where(bad, 0, raw) * scale), bad, "outside 1970-01-01 to 2262-04-11")


def _time_texts(column: Any) -> Any:
    if not pa.types.is_floating(column.type):
        return column.cast(pa.string())
    texts = [None if v is None or v != v else format(Decimal(repr(v)), "f") for v in column.to_pylist()]
    return pa.array(texts, pa.string())


def _numbers(column: Any) -> Column:
    kind = column.type
    if _is_text(kind):
        return values.numbers(_texts(column), thousands=True)
    if pa.types.is_decimal(kind):  # by way of its digits: the nearest 64-bit float, always
        return _good(column.cast(pa.string()).cast(pa.float64()))
    if pa.types.is_integer(kind):
        numbers = column.cast(pa.float64(), safe=False)
        raw = column.fill_null(0).to_numpy(zero_copy_only=False)
        bad = (raw > _FLOAT_WHOLE_MAX) | (raw < -_FLOAT_WHOLE_MAX)
        return Column(_spoilt(numbers, bad), bad, "a whole number of more than 53 bits does not fit a float")
    numbers = column.cast(pa.float64())
    return _good(pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers))


def _spoilt(numbers: Any, bad: Any) -> Any:
    return pc.if_else(pa.array(bad), pa.scalar(float("nan")), numbers) if bad.any() else numbers


def _whole(column: Any) -> Column:
    kind = column.type
    if _is_text(kind):
        return values.whole_numbers(_texts(column), thousands=True)
    if pa.types.is_floating(kind):
        column = pc.if_else(
            pc.is_nan(column.cast(pa.float64())), pa.scalar(None, pa.float64()), column.cast(pa.float64())
        )
    try:
        return _good(column.cast(pa.int64()))
    except pa.ArrowInvalid:
        found = values.whole_numbers(_texts(_time_texts(column)), thousands=False)
        return found._replace(why="not a whole number of 64 bits")


def _sides(column: Any) -> Column:
    return values.sides(_texts(column.cast(pa.int64()) if _is_whole_float(column) else column))


def _is_whole_float(column: Any) -> bool:
    if not pa.types.is_floating(column.type):
        return False
    try:
        column.cast(pa.int64())
    except pa.ArrowInvalid:
        return False
    return True
