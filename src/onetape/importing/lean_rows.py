"""Rows of QuantConnect Lean's files turned into ticks and bars: which column is what, in columns of text.

The columns are those of Lean's Data/<type>/readme.md; how many there are tells the variants of one kind apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from onetape.importing import times, values
from onetape.importing.format import Batch, Wrong
from onetape.record import Bar

#: Lean's mark of a suspicious tick, beside the 31 bits of its conditions.
SUSPICIOUS = 1 << 31
_DAY_NS = 86_400_000_000_000
_INTERVALS = {"second": "1s", "minute": "1min", "hour": "1h", "daily": "1d"}
_MARKS = ("exchange", "conditions", "suspicious")
_TRADE, _QUOTE = ("time", "price", "size"), ("time", "bid", "bid_size", "ask", "ask_size")
_OHLC = ("open", "high", "low", "close")
_QUOTE_BAR = (
    *(f"bid_{name}" for name in (*_OHLC, "size")),
    *(f"ask_{name}" for name in (*_OHLC, "size")),
)
#: (ticks?, kind) → number of columns → what they are.
_COLUMNS: dict[tuple[bool, str], dict[int, tuple[str, ...]]] = {
    (True, "trade"): {3: _TRADE, 4: (*_TRADE, "suspicious"), 6: (*_TRADE, *_MARKS)},
    (True, "quote"): {
        3: ("time", "bid", "ask"),
        5: _QUOTE,
        6: (*_QUOTE, "suspicious"),
        7: (*_QUOTE, "exchange", "suspicious"),
        8: (*_QUOTE, *_MARKS),
    },
    (False, "trade"): {5: ("time", *_OHLC), 6: ("time", *_OHLC, "volume")},
    (False, "quote"): {11: ("time", *_QUOTE_BAR)},
    (True, "openinterest"): {2: ("time", "open_interest")},
    (False, "openinterest"): {2: ("time", "open_interest")},
}
_NO_QUOTE = "quotes with neither a bid nor an ask"
_INTEREST = "values of open interest (alone they are neither a tick nor a bar)"

Array = npt.NDArray[Any]


class Reading(msgspec.Struct, frozen=True):
    """How rows of one file become records. `day` None: the rows have full dates."""

    kind: str
    resolution: str
    symbol: str
    source: str
    zone: str
    scale: float
    day: date | None


def columns(resolution: str, kind: str, count: int) -> tuple[str, ...] | None:
    """Return what `count` columns of a file are, or None if Lean has no such file."""
    return _COLUMNS[resolution == "tick", kind].get(count)


def expected(resolution: str, kind: str) -> str:
    """Return how many columns such a file can have, for a message."""
    return " or ".join(str(count) for count in sorted(_COLUMNS[resolution == "tick", kind]))


class _Found:
    """What was wrong with rows so far; the first reason of a row stays."""

    def __init__(self) -> None:
        self.wrong: dict[int, Wrong] = {}

    def take(self, field: str, texts: Any, column: values.Column) -> Array:
        for at in np.flatnonzero(column.bad).tolist():
            self.wrong.setdefault(at, Wrong(field, texts[at].as_py(), column.why))
        values_ = column.values
        if isinstance(values_, pa.Array | pa.ChunkedArray):
            values_ = values_.to_numpy(zero_copy_only=False)
        return np.asarray(values_)

    def numbers(self, field: str, texts: Any) -> Array:
        """Return float64, NaN where absent; what cannot be read is infinite, which the tape refuses."""
        column = values.numbers(texts, thousands=False)
        found = self.take(field, texts, column).astype(np.float64)
        return np.where(column.bad, np.inf, found)


def read(how: Reading, table: Any, place: Any) -> Batch:
    """Return the records of a table of text columns; `place` says where its row with an index stands."""
    found = _Found()
    texts = {name: pc.utf8_trim_whitespace(table.column(name).combine_chunks()) for name in table.column_names}
    if how.kind == "openinterest":
        return Batch(data=[], rows=0, place=place, skipped={_INTEREST: table.num_rows})
    ns = _times(how, texts["time"], found)
    numbers = {name: found.numbers(name, text) for name, text in texts.items() if name not in ("time", *_MARKS)}
    if how.resolution != "tick":
        return _bars(how, ns, numbers, found.wrong, place)
    marks = {name: texts[name] for name in _MARKS if name in texts}
    return _ticks(how, ns, numbers, marks, found, place)


def _times(how: Reading, texts: Any, found: _Found) -> Array:
    if how.day is None:
        # A daily bar carries a date, not a moment: it keeps the date, and starts where the tape's own days do.
        form = "%Y%m%d %H:%M"
        read = times.read(texts, form, "UTC" if how.resolution == "daily" else how.zone)
        return found.take("time", texts, values.Column(read.ns, read.bad, read.why or f"not a time of the form {form}"))
    since = times.read(texts, "ms", "UTC")
    outside = (since.ns < 0) | (since.ns >= _DAY_NS) | since.bad
    midnight = (how.day - date(1970, 1, 1)).days * _DAY_NS
    found.take("time", texts, values.Column(since.ns, outside, "not milliseconds since midnight"))
    read = times.in_zone(np.where(outside, 0, since.ns) + midnight, outside, how.zone)
    return found.take("time", texts, values.Column(read.ns, read.bad & ~outside, read.why))


def _ticks(
    how: Reading, ns: Array, numbers: Mapping[str, Array], marks: Mapping[str, Any], found: _Found, place: Any
) -> Batch:
    data: dict[str, Any] = {"symbol": how.symbol, "ts_event_ns": ns}
    flags = np.zeros(len(ns), dtype=np.int64)
    data["source"] = how.source
    if "exchange" in marks:
        known = pc.if_else(
            pc.equal(marks["exchange"], ""), how.source, pc.binary_join_element_wise(how.source, marks["exchange"], ":")
        )
        data["source"] = known
    if "conditions" in marks:
        flags |= _conditions(marks["conditions"], found)
    if "suspicious" in marks:
        flags |= np.where(_suspicious(marks["suspicious"], found), SUSPICIOUS, 0)
    if flags.any():
        data["flags"] = flags
    told = np.ones(len(ns), dtype=bool)
    if how.kind == "trade":
        data["price"], data["size"] = numbers["price"] / how.scale, numbers["size"]
    else:
        told = _quote(how, numbers, data)
        told[list(found.wrong)] = True
    if told.all():
        return Batch(data=data, rows=len(ns), place=place, wrong=found.wrong)
    kept = np.flatnonzero(told)
    data = {name: _taken(column, kept) for name, column in data.items()}
    wrong = {int(np.searchsorted(kept, at)): why for at, why in found.wrong.items()}
    return Batch(
        data=data,
        rows=len(kept),
        place=lambda index: place(int(kept[index])),
        wrong=wrong,
        skipped={_NO_QUOTE: len(ns) - len(kept)},
    )


def _quote(how: Reading, numbers: Mapping[str, Array], data: dict[str, Any]) -> Array:
    """Add bid and ask to the data: a price of 0 with a size of 0 is a side that is not there. Return who has one."""
    told = np.zeros(len(numbers["bid"]), dtype=bool)
    for side in ("bid", "ask"):
        price = numbers[side] / how.scale
        if f"{side}_size" in numbers:
            size = numbers[f"{side}_size"]
            nothing = (price == 0) & ((size == 0) | np.isnan(size))
            price = np.where(nothing, np.nan, price)
            data[f"{side}_size"] = np.where(np.isnan(price), np.nan, size)
        data[side] = price
        told |= ~np.isnan(price)
    return told


def _taken(column: Any, kept: Array) -> Any:
    if isinstance(column, str):
        return column
    return column.take(pa.array(kept)) if isinstance(column, pa.Array | pa.ChunkedArray) else column[kept]


def _conditions(texts: Any, found: _Found) -> Array:
    """Return the conditions, which are written in hexadecimal; nothing and "null" are none."""
    encoded = texts.dictionary_encode()
    codes = []
    for text in encoded.dictionary.to_pylist():
        try:
            code = 0 if text in ("", "null") else int(text, 16)
        except ValueError:
            code = -1
        codes.append(code if 0 <= code < SUSPICIOUS else -1)
    read = np.array(codes or [0], dtype=np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]
    found.take("conditions", texts, values.Column(read, read < 0, "not 31 bits in hexadecimal"))
    return np.where(read < 0, 0, read)


def _suspicious(texts: Any, found: _Found) -> Array:
    lower = pc.utf8_lower(texts)
    yes = pc.is_in(lower, pa.array(["1", "true"])).to_numpy(zero_copy_only=False)
    no = pc.is_in(lower, pa.array(["", "0", "false"])).to_numpy(zero_copy_only=False)
    found.take("suspicious", texts, values.Column(yes, ~(yes | no), "it is 0 or 1"))
    return np.asarray(yes)


def _bars(how: Reading, ns: Array, numbers: Mapping[str, Array], wrong: Mapping[int, Wrong], place: Any) -> Batch:
    """Return the bars: of trades as they are, of quotes those of the bids and those of the asks.

    These get symbols of their own, such as ES201312:bid: whoever asks for bars of ES201312 wants those of its trades.
    Their volume is the size that was quoted last.
    """
    interval = _INTERVALS[how.resolution]
    starts = ns.tolist()
    sides = (("", "volume"),) if how.kind == "trade" else (("bid_", "bid_size"), ("ask_", "ask_size"))
    made: list[tuple[int, Bar]] = []
    for prefix, volume in sides:
        symbol = f"{how.symbol}:{prefix[:-1]}" if prefix else how.symbol
        prices = [numbers[prefix + name] / how.scale for name in _OHLC]
        # A side without any price was not quoted in this interval; with some of them the tape names what is missing.
        there = ~np.isnan(prices).all(axis=0) if prefix else np.ones(len(ns), dtype=bool)
        lists = [column.tolist() for column in prices]
        sizes = [None if size != size else size for size in numbers[volume].tolist()] if volume in numbers else None
        for at in np.flatnonzero(there).tolist():
            open_, high, low, close = (column[at] for column in lists)
            size = sizes[at] if sizes is not None else None
            made.append((at, Bar(symbol, interval, starts[at], open_, high, low, close, size, source=how.source)))
    made.sort(key=lambda one: one[0])
    rows = [at for at, _ in made]
    told = set(rows)
    return Batch(
        data=[bar for _, bar in made],
        rows=len(made),
        place=lambda index: place(rows[index]),
        wrong={index: wrong[at] for index, at in enumerate(rows) if at in wrong},
        skipped={_NO_QUOTE: len(ns) - len(told)} if len(told) < len(ns) else {},
    )
