"""The .scid file of Sierra Chart: its header, its records, and what ticks and bars they are. Pure, and fast in bulk.

The format is Sierra Chart's "Intraday Data File Format": a header that states its own size and that of a record, then
records of time, open, high, low, close, trades, volume, bid volume and ask volume. An open of 0 says that the record is
one trade, with the ask in high, the bid in low and the price in close; two huge negative opens mark the first and the
last part of a trade that the exchange filled in parts. Any other open is a bar's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.record import BUY, SELL, TS_MAX_NS, UNKNOWN, Bar, Tick, interval_text

#: Microseconds from 1899-12-30, where Sierra Chart's time begins, to 1970-01-01.
EPOCH_US = 2_209_161_600_000_000
#: Bits of a tick's flags: the record was the first, or the last, part of an unbundled trade.
FIRST_PART, LAST_PART = 1, 2
#: What stands in `open` of such parts.
OPEN_FIRST_PART, OPEN_LAST_PART = np.float32(-1.99900095e37), np.float32(-1.99900197e37)

_HEADER = struct.Struct("<4sIIHHI36s")
HEADER_BYTES = _HEADER.size
RECORD_BYTES = 40
#: Sizes that no version of the format comes near: they are a damaged header.
_HEADER_BYTES_MAX, _RECORD_BYTES_MAX = 65_536, 4096
_FIELDS = ("time", "open", "high", "low", "close", "trades", "volume", "bid_volume", "ask_volume")
_FORMATS = ("<i8", "<f4", "<f4", "<f4", "<f4", "<u4", "<u4", "<u4", "<u4")
_OFFSETS = (0, 8, 12, 16, 20, 24, 28, 32, 36)

Records = NDArray[Any]


class Header(msgspec.Struct, frozen=True):
    """What a file says of itself: where its records begin, how long each is, and the format's version."""

    header_bytes: int = HEADER_BYTES
    record_bytes: int = RECORD_BYTES
    version: int = 1

    def count(self, file_bytes: int) -> int:
        """Return how many whole records a file of this size has."""
        return max(0, file_bytes - self.header_bytes) // self.record_bytes

    def offset(self, record: int) -> int:
        """Return where a record begins, counted from 0."""
        return self.header_bytes + record * self.record_bytes

    def records(self, raw: bytes) -> Records:
        """Return the whole records in `raw` as an array with a field for each; nothing is copied."""
        spec: Any = {"names": _FIELDS, "formats": _FORMATS, "offsets": _OFFSETS, "itemsize": self.record_bytes}
        return np.frombuffer(raw, np.dtype(spec), count=len(raw) // self.record_bytes)


def read_header(raw: bytes, shown: str) -> Header:
    """Return the header that a file begins with. Raises ImportInvalid, naming what is wrong with it."""

    def wrong(what: str, hint: str = "the file is damaged or no .scid: get it again") -> ImportInvalid:
        return ImportInvalid(f"{shown}, header: {what}", hint=hint, file=shown)

    if len(raw) < HEADER_BYTES:
        raise wrong(f"{len(raw)} bytes of {HEADER_BYTES}", "the file was cut, or is just being made")
    mark, header_bytes, record_bytes, version, *_ = _HEADER.unpack_from(raw)
    if mark != b"SCID":
        raise wrong(f"begins with {mark!r}, not with b'SCID'")
    if not HEADER_BYTES <= header_bytes <= _HEADER_BYTES_MAX:
        raise wrong(f"says it is {header_bytes} bytes long; {HEADER_BYTES} to {_HEADER_BYTES_MAX} are possible")
    if not RECORD_BYTES <= record_bytes <= _RECORD_BYTES_MAX:
        raise wrong(f"says that a record is {record_bytes} bytes; {RECORD_BYTES} to {_RECORD_BYTES_MAX} are possible")
    if version != 1:
        raise wrong(f"version {version}; version 1 is known", "a newer Sierra Chart wrote it")
    return Header(header_bytes, record_bytes, version)


class Prices:
    """Prices of a file in the units of the market: times `multiplier`, snapped to the grid of `tick_size`.

    Both are taken as the decimals they are written as. A snapped price is the float64 nearest to the decimal on the
    grid, so that it equals the same price from any other source, bit for bit. Without a tick size a price is the
    file's float32, exactly, times the multiplier.
    """

    def __init__(self, multiplier: str | float = 1, tick_size: str | float | None = None) -> None:
        self._times = _fraction("multiplier", multiplier)
        self._grid = None if tick_size is None else _fraction("tick_size", tick_size)
        self.how = {"multiplier": str(self._times), "tick_size": None if self._grid is None else str(self._grid)}

    def of(self, raw: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return prices as float64. What is no number becomes infinite, which a tape refuses by name."""
        return self._of(raw.astype("<f8"))

    def of_text(self, value: float) -> float:
        """Return a price that was written as a decimal."""
        return float(self._of(np.array([value], "<f8"))[0])

    def _of(self, wide: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._grid is not None:
            steps = self._times / self._grid
            wide = np.rint(wide * (steps.numerator / steps.denominator))
            if self._grid.numerator != 1:
                wide *= self._grid.numerator
            if self._grid.denominator != 1:
                wide /= self._grid.denominator
        elif self._times != 1:
            wide = wide * self._times.numerator / self._times.denominator
        lost = np.isnan(wide)
        if lost.any():
            wide[lost] = np.inf
        return wide


def _fraction(name: str, value: str | float) -> Fraction:
    try:
        found = Decimal(str(value))
        if not found.is_finite() or found <= 0:
            raise InvalidOperation
        fraction = Fraction(found)
    except InvalidOperation as error:
        raise ConfigInvalid(f"{name} = {value!r}", hint="a decimal above 0, such as 0.25 or 0.01") from error
    if max(fraction.numerator, fraction.denominator) >= 2**40:
        raise ConfigInvalid(f"{name} = {value!r}", hint="fewer digits: it is kept exactly")
    return fraction


def times_ns(records: Records) -> NDArray[np.int64]:
    """Return when each record happened, ns since 1970 UTC; -1, which a tape refuses, of a time that is none."""
    us: NDArray[np.int64] = records["time"].astype("<i8")
    bad = (us <= EPOCH_US) | (us > EPOCH_US + TS_MAX_NS // 1000)
    ns = (us - EPOCH_US) * 1000
    if bad.any():
        ns[bad] = -1
    return ns


def bar_mask(records: Records) -> NDArray[np.bool_]:
    """Return which records are bars. The others are single trades, or parts of one."""
    opens = np.ascontiguousarray(records["open"])
    if not opens.any():
        return np.zeros(len(records), dtype=bool)
    found: NDArray[np.bool_] = (opens != 0) & (opens != OPEN_FIRST_PART) & (opens != OPEN_LAST_PART)
    return found


def tick_columns(records: Records, symbol: str, source: str | None, prices: Prices) -> dict[str, Any]:
    """Return single trades as columns for Tape.append_table(): NaN where a side of the quote was not known.

    side is the aggressor as bid and ask volume tell it, 0 where both or none has traded. flags are FIRST_PART and
    LAST_PART. The microseconds of a time are Sierra Chart's counter within a millisecond, and kept.
    """
    sold, bought = np.ascontiguousarray(records["bid_volume"]), np.ascontiguousarray(records["ask_volume"])
    side = np.where(sold == 0, np.where(bought > 0, BUY, UNKNOWN), np.where(bought == 0, SELL, UNKNOWN)).astype("<i1")
    columns: dict[str, Any] = {
        "symbol": symbol,
        "source": source,
        "ts_event_ns": times_ns(records),
        "price": prices.of(records["close"]),
        "size": records["volume"].astype("<f8"),
        "side": side,
    }
    for name, raw in (("bid", records["low"]), ("ask", records["high"])):
        column = prices.of(raw)
        absent = raw == 0
        if absent.any():
            column[absent] = np.nan
        columns[name] = column
    opens = np.ascontiguousarray(records["open"])
    if opens.any():
        flags = np.where(opens == OPEN_FIRST_PART, FIRST_PART, 0) | np.where(opens == OPEN_LAST_PART, LAST_PART, 0)
        columns["flags"] = flags.astype("<u4")
    return columns


def ticks(columns: Mapping[str, Any]) -> list[Tick]:
    """Return the columns of tick_columns() as records."""
    arrays = {name: column.tolist() for name, column in columns.items() if isinstance(column, np.ndarray)}
    for name in ("bid", "ask"):
        arrays[name] = [None if value != value else value for value in arrays[name]]
    symbol, source = columns["symbol"], columns["source"]
    return [
        Tick(symbol=symbol, source=source, **dict(zip(arrays, row, strict=True)))
        for row in zip(*arrays.values(), strict=True)
    ]


def bars(records: Records, symbol: str, source: str | None, prices: Prices, interval_ns: int, now_ns: int) -> list[Bar]:
    """Return bars as records, in their order. One whose interval is not over at `now_ns` is not complete."""
    interval = interval_text(interval_ns)
    found = [prices.of(records[name]).tolist() for name in ("open", "high", "low", "close")]
    counts = [records[name].tolist() for name in ("volume", "trades", "bid_volume", "ask_volume")]
    return [
        Bar(
            symbol=symbol,
            interval=interval,
            ts_start_ns=start,
            open=open_,
            high=high,
            low=low,
            close=close,
            volume=float(volume),
            trades=trades,
            bid_volume=float(sold),
            ask_volume=float(bought),
            complete=start + interval_ns <= now_ns,
            source=source,
        )
        for start, open_, high, low, close, volume, trades, sold, bought in zip(
            times_ns(records).tolist(), *found, *counts, strict=True
        )
    ]


def infer_interval_ns(records: Records) -> int | None:
    """Return the interval of bars: the step that at least half of them are apart. None where there is none such."""
    steps = np.diff(records["time"].astype("<i8"))
    steps = steps[steps > 0]
    if not len(steps):
        return None
    values, counts = np.unique(steps, return_counts=True)
    most = int(np.argmax(counts))
    step_ns = int(values[most]) * 1000
    return step_ns if 2 * counts[most] >= len(steps) and step_ns % 1_000_000 == 0 else None
