"""Rows of a MinhOS database turned into ticks and bars; its columns hold whatever was put there, text among it.

    market_data                          Tick
    timestamp (Unix seconds, mostly)     ts_event_ns
    close, last_size                     price, size
    bid, ask, bid_size, ask_size         the same
    open, high, low, volume, vwap, trades    the session so far, by the same name
    source ("unknown" is none)           source
    created_at (UTC, to the second)      ts_recv_ns

    what `metadata` has under "onetape"  the field of that name, instead of what the columns give (see exporting)

market_data_1min is bars: open, high, low, close, volume, vwap, trades, with `timestamp` for their START.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from onetape.clock import to_ns
from onetape.errors import ConfigInvalid
from onetape.importing.format import Batch, Wrong
from onetape.record import TS_MAX_NS, Bar

#: Column of the table → field of the tick.
TICK_NUMBERS = {
    "close": "price",
    "last_size": "size",
    **{name: name for name in ("bid", "ask", "bid_size", "ask_size", "open", "high", "low", "volume", "vwap")},
}
BAR_NUMBERS = ("open", "high", "low", "close", "volume", "vwap")
_ABSENT = frozenset(("", "null", "none", "nan", "n/a", "na", "-"))
#: A number is seconds, milliseconds, microseconds or nanoseconds by its size alone; the spans do not touch for any time
#: from 1973 on. Smaller ones (a time of day) are no time since the epoch.
_UNITS = ((10**8, 10**11, 9), (10**11, 10**14, 6), (10**14, 10**17, 3), (10**17, 10**20, 0))

Row = Mapping[str, Any]

_Float = float | None | UnsetType
_Ns = Annotated[int, msgspec.Meta(ge=0, le=TS_MAX_NS)]


class Kept(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What an export wrote beside a row of market_data because no column can hold it: fields of the tick."""

    price: _Float = UNSET
    size: _Float = UNSET
    bid: _Float = UNSET
    ask: _Float = UNSET
    bid_size: _Float = UNSET
    ask_size: _Float = UNSET
    open: _Float = UNSET
    high: _Float = UNSET
    low: _Float = UNSET
    volume: _Float = UNSET
    vwap: _Float = UNSET
    open_interest: float | UnsetType = UNSET
    side: Annotated[int, msgspec.Meta(ge=-1, le=1)] = 0
    flags: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    source: str | None = None
    ts_event_ns: _Ns | None = None
    ts_recv_ns: _Ns | None = None


class _Metadata(msgspec.Struct, gc=False):
    onetape: Kept | UnsetType = UNSET


_decode = msgspec.json.Decoder(_Metadata).decode


class Reader:
    """Reads values of rows; text without an offset is in `zone`. What cannot be read is noted in `wrong`."""

    def __init__(self, zone: str) -> None:
        self._zone = ZoneInfo(zone)
        self.wrong: dict[int, Wrong] = {}

    def time(self, index: int, value: Any) -> int:
        """Return ns since the epoch, -1 where the value is none."""
        try:
            return _time(value, self._zone)
        except ValueError as error:
            self.wrong.setdefault(index, Wrong("timestamp", value, str(error)))
            return -1

    def number(self, index: int, name: str, value: Any) -> float:
        """Return a float, NaN where nothing is there, infinite (which the tape refuses) where it is no number."""
        if value is None:
            return float("nan")
        if isinstance(value, int | float):
            return float(value)
        text = value.strip() if isinstance(value, str) else ""
        if isinstance(value, str) and text.lower() in _ABSENT:
            return float("nan")
        try:
            if "_" in text:
                raise ValueError
            return float(text)
        except ValueError:
            self.wrong.setdefault(index, Wrong(name, value, "not a number"))
            return float("inf")

    def whole(self, index: int, name: str, value: Any) -> int | None:
        """Return an integer or None; -1 (which the tape refuses) where it is none."""
        number = self.number(index, name, value)
        if number != number:
            return None
        if not abs(number) < 2**63 or number != int(number):
            self.wrong.setdefault(index, Wrong(name, value, "not a whole number of 64 bits"))
            return -1
        return value if isinstance(value, int) else int(number)

    def text(self, index: int, name: str, value: Any) -> str | None:
        """Return a text or None where nothing is there."""
        if value is None or isinstance(value, str):
            return value or None
        self.wrong.setdefault(index, Wrong(name, value, f"a {name} is text"))
        return None


def _kept(reader: Reader, index: int, value: Any) -> Kept | None:
    """Return what an export kept in `metadata`; what other programs wrote there is theirs."""
    if not isinstance(value, str) or '"onetape"' not in value:
        return None
    try:
        found = _decode(value).onetape
    except msgspec.ValidationError as error:
        if "$.onetape" in str(error):
            reader.wrong.setdefault(index, Wrong("metadata", value, str(error)))
        return None
    except (msgspec.DecodeError, UnicodeError):
        return None
    return found if isinstance(found, Kept) else None


def _restore(data: dict[str, Any], kept: Mapping[int, Kept], rows: int) -> None:
    """Put into columns what an export kept beside its rows."""
    data["side"], data["flags"] = [0] * rows, [0] * rows
    data["open_interest"] = np.full(rows, np.nan)
    floats = [*TICK_NUMBERS.values(), "open_interest"]
    for index, found in kept.items():
        for field in floats:
            value = getattr(found, field)
            if value is not UNSET:
                data.setdefault(field, np.full(rows, np.nan))[index] = np.nan if value is None else value
        data["side"][index], data["flags"][index] = found.side, found.flags
        if found.source is not None:
            data["source"][index] = found.source
        if found.ts_recv_ns is not None:
            data["ts_recv_ns"][index] = found.ts_recv_ns


def _time(value: Any, zone: ZoneInfo) -> int:
    if isinstance(value, str) and not _is_numeric(value):
        try:
            moment = datetime.fromisoformat(value.strip())
            ns = to_ns(moment if moment.tzinfo else moment.replace(tzinfo=zone))
        except (ValueError, ConfigInvalid) as error:
            raise ValueError("neither Unix seconds nor ISO 8601") from error
    elif isinstance(value, str | int | float):
        try:
            number = Decimal(value.strip() if isinstance(value, str) else repr(value))
        except InvalidOperation as error:
            raise ValueError("not a time") from error
        unit = next((unit for low, high, unit in _UNITS if number.is_finite() and low <= number < high), None)
        if unit is None:
            raise ValueError("not a time since the epoch in s, ms, us or ns")
        ns = int((number * 10**unit).to_integral_value())
    else:
        raise ValueError("a record has a time" if value is None else "not a time")
    if not 0 <= ns <= TS_MAX_NS:
        raise ValueError("before 1970 or after 2262")
    return ns


def _is_numeric(text: str) -> bool:
    try:
        Decimal(text.strip())
    except InvalidOperation:
        return False
    return True


def ticks(rows: Sequence[Row], zone: str, source: str | None, place: Any) -> Batch:
    """Return the ticks of rows of market_data."""
    reader = Reader(zone)
    found = ((i, _kept(reader, i, row.get("metadata"))) for i, row in enumerate(rows))
    kept = {i: one for i, one in found if one is not None}
    data: dict[str, Any] = {
        "symbol": [reader.text(i, "symbol", row["symbol"]) or "" for i, row in enumerate(rows)],
        "ts_event_ns": [_event(reader, i, row["timestamp"], kept.get(i)) for i, row in enumerate(rows)],
    }
    for column, field in TICK_NUMBERS.items():
        if rows and column in rows[0]:
            data[field] = np.array([reader.number(i, column, row[column]) for i, row in enumerate(rows)])
    if rows and "trades" in rows[0]:
        data["trades"] = [reader.whole(i, "trades", row["trades"]) for i, row in enumerate(rows)]
    data["source"] = [
        named if (named := reader.text(i, "source", row.get("source"))) not in (None, "unknown") else source
        for i, row in enumerate(rows)
    ]
    data["ts_recv_ns"] = [_received(row.get("created_at")) for row in rows]
    if kept:
        _restore(data, kept, len(rows))
    return Batch(data=data, rows=len(rows), place=place, wrong=reader.wrong)


def _event(reader: Reader, index: int, value: Any, kept: Kept | None) -> int:
    """Return ns: the exact ones where they were kept and the row's seconds are still theirs; -1 of a wrong row."""
    if index in reader.wrong:
        return -1
    exact = None if kept is None else kept.ts_event_ns
    if exact is not None and exact / 10**9 == value:
        return exact
    return reader.time(index, value)


def _received(value: Any) -> int | None:
    """Return when a row was written; what SQLite's CURRENT_TIMESTAMP wrote is UTC."""
    try:
        return _time(value, ZoneInfo("UTC"))
    except ValueError:
        return None


def bars(rows: Sequence[Row], zone: str, source: str | None, place: Any) -> Batch:
    """Return the bars of rows of market_data_1min, each with an id made of its content: a row that changed is new."""
    reader = Reader(zone)
    made, ids = [], []
    for i, row in enumerate(rows):
        number = {name: reader.number(i, name, row.get(name)) for name in BAR_NUMBERS}
        made.append(
            Bar(
                reader.text(i, "symbol", row["symbol"]) or "",
                "1min",
                reader.time(i, row["timestamp"]),
                number["open"],
                number["high"],
                number["low"],
                number["close"],
                _present(number["volume"]),
                _present(number["vwap"]),
                reader.whole(i, "trades", row.get("trades")),
                source=source or "minhos",
            )
        )
        content = [row.get(name) for name in ("symbol", "timestamp", *BAR_NUMBERS, "trades")]
        ids.append(hashlib.sha256(f"minhos:market_data_1min:{source}:{content!r}".encode()).digest())
    return Batch(data=made, rows=len(made), place=place, wrong=reader.wrong, ids=ids)


def _present(number: float) -> float | None:
    return None if number != number else number
