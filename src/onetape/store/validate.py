"""What makes records valid: checked over whole columns, and the first or every offender named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onetape.errors import InvalidRecord
from onetape.record import MINUTE_NS, SYMBOL_BYTES_MAX, TS_MAX_NS
from onetape.store.block import ABSENT, Array
from onetape.store.layout import KIND_TICK

TIME_RANGE = "a time is ns since the epoch, from 1970-01-01 to 2262-04-11"

_NOT_NEGATIVE = {
    "size": "a size is not negative",
    "bid_size": "a size is not negative",
    "ask_size": "a size is not negative",
    "volume": "a volume is not negative",
    "bid_volume": "a volume is not negative",
    "ask_volume": "a volume is not negative",
    "open_interest": "open interest is not negative",
    "trades": "a count is not negative",
}


@dataclass(frozen=True)
class Problem:
    """One reason why one record is refused."""

    index: int
    field: str
    value: Any
    why: str

    def error(self) -> InvalidRecord:
        """Return the error to raise for it."""
        return InvalidRecord(self.index, self.field, self.value, self.why)


def symbol_problem(symbol: object) -> str | None:
    """Return why a symbol is refused, or None."""
    return text_problem("symbol", symbol)


def text_problem(what: str, text: object) -> str | None:
    """Return why the text of a symbol or source is refused, or None."""
    if text is None or text == "":
        return "a record needs a symbol" if what == "symbol" else "an empty source is None"
    if not isinstance(text, str):
        return f"a {what} is text"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return f"a {what} is valid UTF-8"
    if size > SYMBOL_BYTES_MAX:
        return f"a {what} has at most {SYMBOL_BYTES_MAX} bytes"
    if not text.isprintable():
        return f"a {what} has no control characters"
    return None


def problems(
    kind: int,
    columns: Mapping[str, Array],
    symbols: Mapping[int, tuple[Any, str]],
    sources: Mapping[int, tuple[Any, str]],
    nan_is_absent: Mapping[str, Array | None],
) -> list[Problem]:
    """Return the first problem of every invalid record, in the order of the records.

    `symbols` and `sources`: the refused ones by what the columns hold for them, with their texts and reasons.
    `nan_is_absent[name]` marks where a NaN stands for "not there"; every other NaN is invalid.
    """
    count = len(columns["ts_event_ns"])
    found: dict[int, Problem] = {}

    def mark(bad: Array, field: str, why: str) -> None:
        for index in np.flatnonzero(bad).tolist():
            found.setdefault(index, Problem(index, field, columns[field][index].item(), why))

    for field, refused in (("symbol", symbols), ("source", sources)):
        for which, (text, why) in refused.items():
            for index in np.flatnonzero(columns[field] == which).tolist():
                found.setdefault(index, Problem(index, field, text, why))
    ts = columns["ts_event_ns"]
    mark((ts < 0) | (ts > TS_MAX_NS), "ts_event_ns", TIME_RANGE)
    if "ts_recv_ns" in columns:
        received = columns["ts_recv_ns"]
        mark(((received < 0) & (received != ABSENT)) | (received > TS_MAX_NS), "ts_recv_ns", TIME_RANGE)
    for name, column in columns.items():
        if column.dtype.kind != "f" or not count:
            continue
        least, most = column.min(), column.max()
        if least > -np.inf and most < np.inf:  # a minimum over a NaN is NaN
            continue
        bad = ~np.isfinite(column)
        if bad.any():
            expected = nan_is_absent.get(name)
            if expected is not None:
                bad &= ~expected
            mark(bad, name, "a number is finite; leave out what is not known")
    for name, why in _NOT_NEGATIVE.items():
        if name in columns:
            column = columns[name]
            if not count or (column.dtype.kind != "i" and column.min() >= 0):
                continue
            bad = column < 0
            if column.dtype.kind == "i":
                bad &= column != ABSENT
            if bad.any():
                mark(bad, name, why)
    if kind == KIND_TICK:
        _tick_problems(columns, count, mark, found)
    else:
        _bar_problems(columns, mark)
    return [found[index] for index in sorted(found)]


def _tick_problems(columns: Mapping[str, Array], count: int, mark: Any, found: dict[int, Problem]) -> None:
    told = np.zeros(count, dtype=bool)
    for name in ("price", "bid", "ask"):
        if name in columns and count:
            if columns[name].min() > -np.inf:  # every one of them is there
                told[:] = True
                break
            told |= ~np.isnan(columns[name])
    for index in np.flatnonzero(~told).tolist():
        found.setdefault(index, Problem(index, "price", None, "a tick has a price, a bid or an ask"))
    if "side" in columns:
        mark(np.abs(columns["side"]) > 1, "side", "an aggressor side is 1, -1 or 0")


def _bar_problems(columns: Mapping[str, Array], mark: Any) -> None:
    high, low = columns["high"], columns["low"]
    for name in ("open", "close", "low"):
        mark(columns[name] > high, name, "no price of a bar is above its high")
    for name in ("open", "close"):
        mark(columns[name] < low, name, "no price of a bar is below its low")
    # A session may open at any minute, so an hour's bar may start at 03:45 UTC; a minute's may not start at :30.
    mark(
        columns["ts_event_ns"] % np.minimum(columns["interval_ns"], MINUTE_NS) != 0,
        "ts_event_ns",
        "a bar starts on a whole minute, or on its interval (UTC) where that is shorter",
    )
