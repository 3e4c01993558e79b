"""Values: columns of text turned into columns to append, and every cell that cannot be, by row."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

#: Texts that mean "nothing here" in a column of numbers; those of pandas, R and SQL.
ABSENT = pa.array(["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "none", "-", "#N/A"])
_SIDES = {
    **dict.fromkeys(("buy", "b", "buyer", "bought", "1", "+1"), 1),
    **dict.fromkeys(("sell", "s", "seller", "sold", "-1"), -1),
    **dict.fromkeys(("", "0", "n", "none", "unknown", "nan", "null"), 0),
}
_TRUTHS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
    **dict.fromkeys(("", "nan", "null", "none"), None),
}
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf(?:inity)?", re.IGNORECASE)
_WHOLE_MAX = 2**63 - 1

Array = npt.NDArray[Any]


class Column(NamedTuple):
    """A converted column, and the rows whose text is not what the column holds."""

    values: Any
    bad: Array
    why: str


def numbers(texts: Any, *, thousands: bool) -> Column:
    """Return float64, null where absent. A bad cell is NaN, which the tape refuses too.

    `thousands`: "1,234.5" is a number. It is not where the delimiter is `;`: there the comma may be the decimal sign.
    """
    return _column(texts, pa.float64(), lambda text: _float(text, thousands), float("nan"), "not a number")


def whole_numbers(texts: Any, *, thousands: bool) -> Column:
    """Return int64, null where absent; "12.0" is 12. A bad cell is -1."""
    return _column(texts, pa.int64(), lambda text: _whole(text, thousands), -1, "not a whole number of 64 bits")


def sides(texts: Any) -> Column:
    """Return aggressor sides 1, -1 or 0; a bad cell is 9, which the tape refuses too."""
    encoded = pc.utf8_lower(pc.utf8_trim_whitespace(texts)).dictionary_encode()
    codes = np.array([_SIDES.get(text, 9) for text in encoded.dictionary.to_pylist()], dtype=np.int64)
    values = codes[encoded.indices.to_numpy(zero_copy_only=False)]
    return Column(values, values == 9, "not a side: buy, sell, b, s, 1, -1, 0 or nothing")


def truths(texts: Any) -> Column:
    """Return booleans, null where absent. A bad cell is null."""
    encoded = pc.utf8_lower(pc.utf8_trim_whitespace(texts)).dictionary_encode()
    known = encoded.dictionary.to_pylist()
    bad = np.array([text not in _TRUTHS for text in known], dtype=bool)
    found = pa.array([_TRUTHS.get(text) for text in known], pa.bool_())
    indices = encoded.indices.to_numpy(zero_copy_only=False)
    return Column(found.take(encoded.indices), bad[indices], "not true or false")


def _column(texts: Any, kind: Any, one: Callable[[str], Any], wrong: Any, why: str) -> Column:
    trimmed = pc.utf8_trim_whitespace(texts)
    present = pc.if_else(pc.is_in(trimmed, ABSENT), pa.scalar(None, pa.string()), trimmed)
    try:
        return Column(present.cast(kind), np.zeros(len(texts), dtype=bool), why)
    except pa.ArrowInvalid:
        pass
    values = [None if text is None else one(text) for text in present.to_pylist()]
    bad = np.array([value is _UNREADABLE for value in values], dtype=bool)
    return Column(pa.array([wrong if value is _UNREADABLE else value for value in values], kind), bad, why)


_UNREADABLE = object()


def _float(text: str, thousands: bool) -> Any:
    if thousands and _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    return float(text) if _NUMBER.fullmatch(text) else _UNREADABLE


def _whole(text: str, thousands: bool) -> Any:
    if thousands and _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if re.fullmatch(r"[+-]?\d+", text):
        value = int(text)
    else:
        number = _float(text, thousands=False)
        if number is _UNREADABLE or abs(number) > 2**53 or number != int(number):
            return _UNREADABLE
        value = int(number)
    return value if abs(value) <= _WHOLE_MAX else _UNREADABLE
