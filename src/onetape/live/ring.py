"""A ring: one symbol's newest ticks in memory, the newest of them as records and the rest packed.

A `Tick` with its numbers takes about 400 bytes of Python objects; packed it takes 30 to 60. Numbers are packed as
small integers where that gives every bit of them back: times and positions as steps of a unit from the least, prices
and sizes as counts of 1, 1/100, 1/4 and so on. What does not fit stays as it is.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np

from onetape.record import Tick
from onetape.store.block import ABSENT, DTYPES, Array, Columns, canonical, concatenate
from onetape.store.layout import KIND_TICK
from onetape.store.query import Names, to_ticks

#: Records kept as objects before they are packed, and packed plainly before all is packed small: packing 32 takes
#: half a microsecond each, packing small another half.
_OBJECTS_MAX, _PLAIN_MAX = 32, 256
#: What a Tick of nine fields takes, with its numbers.
OBJECT_BYTES = 400

_DTYPES = {name: dtype for name, dtype in DTYPES[KIND_TICK].items() if name != "symbol"}
_FIELDS = Tick.__struct_fields__
_MAYBE = ("trades", "ts_recv_ns")
#: Counts of what a price may be: a whole, a cent, a quarter, a tick of 1/32 or 1/64, a pip, a millionth.
_SCALES = (1.0, 100.0, 4.0, 10_000.0, 64.0, 1_000_000.0)
_COUNT_MAX, _NO_COUNT = 2.0**31 - 1, -(2**31)
_UNITS = (1000, 1_000_000, 1_000_000_000)
_INTEGERS = tuple(np.dtype(code) for code in ("<u1", "<u2", "<u4"))


def key(tick: Tick) -> tuple[int, int]:
    """Return where a tick stands in canonical order."""
    return tick.ts_event_ns, tick.seq or 0


class Column(NamedTuple):
    """How one packed column is read: value = (stored * unit + least) for integers, stored / scale for floats.

    Counts of a scale may hold _NO_COUNT for what is absent, if `least` is that.
    """

    name: str
    dtype: np.dtype[Any]
    unit: int
    least: int
    scale: float


class Packed(NamedTuple):
    """Columns in one piece of memory; `whole` if no value of them is absent, and no source is named."""

    records: int
    whole: bool
    columns: tuple[Column, ...]
    data: bytes


def pack(columns: Columns) -> Packed:
    """Pack columns of ticks, without `symbol`; `unpack` gives them back bit for bit."""
    found, parts = [], []
    for name, values in columns.items():
        how, stored = _small_floats(name, values) if values.dtype.kind == "f" else _small_integers(name, values)
        found.append(how)
        parts.append(stored.tobytes())
    return Packed(len(columns["ts_event_ns"]), _whole(columns), tuple(found), b"".join(parts))


def _whole(columns: Columns) -> bool:
    for name, column in columns.items():
        floats = column.dtype.kind == "f"
        if name == "source" or (np.isnan(column).any() if floats else name in _MAYBE and (column == ABSENT).any()):
            return False
    return True


def _small_integers(name: str, values: Array) -> tuple[Column, Array]:
    if len(values) and values.dtype.itemsize > 1:
        least, most = int(values.min()), int(values.max())
        if least != ABSENT:
            for unit in (1, *_UNITS):
                fitting = next((d for d in _INTEGERS if (most - least) // unit <= np.iinfo(d).max), None)
                if fitting is not None and (unit == 1 or not ((values - least) % unit).any()):
                    return Column(name, fitting, unit, least, 0.0), ((values - least) // unit).astype(fitting)
    return Column(name, values.dtype, 1, 0, 0.0), values


def _small_floats(name: str, values: Array) -> tuple[Column, Array]:
    absent = np.isnan(values)
    told = np.where(absent, 0.0, values) if absent.any() else values
    least, most = (float(told.min()), float(told.max())) if len(told) else (0.0, 0.0)
    for scale in _SCALES:
        if least * scale > -_COUNT_MAX and most * scale < _COUNT_MAX:
            counts = np.rint(told * scale).astype("<i4")
            if np.array_equal((counts / scale).view("<i8"), told.view("<i8")):
                if told is not values:
                    counts[absent] = _NO_COUNT
                    return Column(name, counts.dtype, 1, _NO_COUNT, scale), counts
                if least >= 0 and most * scale < 2**16:
                    return Column(name, np.dtype("<u2"), 1, 0, scale), counts.astype("<u2")
                return Column(name, counts.dtype, 1, 0, scale), counts
    return Column(name, values.dtype, 1, 0, 0.0), values


def unpack(packed: Packed, last: int | None = None) -> Columns:
    """Return the columns of what was packed, or of its last rows alone."""
    count, offset = packed.records, 0
    start = 0 if last is None else max(0, count - last)
    columns: Columns = {}
    for name, dtype, unit, least, scale in packed.columns:
        stored = np.frombuffer(packed.data, dtype, count - start, offset + start * dtype.itemsize)
        offset += count * dtype.itemsize
        if scale:
            columns[name] = stored / scale
            if least:
                columns[name][stored == _NO_COUNT] = np.nan
        elif dtype != _DTYPES[name]:
            columns[name] = (stored.astype("<i8") * unit + least).astype(_DTYPES[name])
        else:
            columns[name] = stored + least if least else stored
    return columns


def of_ticks(ticks: Sequence[Tick], names: Names) -> Array:
    """Return ticks as one plain table, a field for each column that any of them has."""
    count = len(ticks)
    found: dict[str, Sequence[Any]] = {}
    columns: list[Sequence[Any]] = list(zip(*map(msgspec.structs.astuple, ticks), strict=True))
    for name, values in zip(_FIELDS, columns, strict=True):
        if name == "symbol" or values.count(None) == count or (name in ("side", "flags") and not any(values)):
            continue
        if name == "source":
            found[name] = [_source_id(names, value) for value in values]
        elif None in values:
            missing = float("nan") if _DTYPES[name].kind == "f" else ABSENT
            found[name] = [missing if value is None else value for value in values]
        else:
            found[name] = values
    table = np.empty(count, dtype=[(name, _DTYPES[name]) for name in found])
    for name, told in found.items():
        table[name] = told
    return table


def _source_id(names: Names, source: str | None) -> int:
    catalog = names.catalog
    if source not in catalog.source_ids:
        catalog.load(names.connection)
    return catalog.source_ids[source]


class Ring:
    """The newest ticks of one symbol: at least `capacity` of them, if there are so many, and at most a third more.

    `newest` is a list of records, the newest at its end, never empty once there is a tick, and always the same list:
    it may be read without a lock. Its first `copies` records are packed as well, the others are nowhere else.
    """

    __slots__ = ("_objects_max", "_packed", "_plain", "_plain_max", "capacity", "copies", "kept", "newest", "symbol")

    def __init__(self, symbol: str, capacity: int, columns: Columns | None, names: Names) -> None:
        self.symbol = symbol
        self.capacity = capacity
        self.newest: list[Tick] = []
        self.copies = 0
        self.kept = 1
        self._packed: Packed | None = None
        self._plain: list[Array] = []
        self._objects_max = min(_OBJECTS_MAX, max(1, capacity // 8))
        self._plain_max = min(_PLAIN_MAX, capacity // 4)
        if columns is not None:
            self._packed = pack(columns)
            self.newest = to_ticks({name: column[-1:] for name, column in columns.items()}, symbol, names)
            self.copies = len(self.newest)

    def __len__(self) -> int:
        packed = self._packed.records if self._packed is not None else 0
        return packed + sum(map(len, self._plain)) + len(self.newest) - self.copies

    @property
    def packed_bytes(self) -> int:
        """Return what the packed ticks take."""
        return (len(self._packed.data) if self._packed is not None else 0) + sum(t.nbytes for t in self._plain)

    def weight(self) -> int:
        """Return about how many bytes the ring takes."""
        return self.packed_bytes + len(self.newest) * OBJECT_BYTES

    def measured(self) -> int:
        """Return how many bytes the ring takes, every object of it counted."""
        total = self.packed_bytes + sys.getsizeof(self.newest) + sum(map(sys.getsizeof, self._plain))
        if self._packed is not None:
            total += sys.getsizeof(b"") + sys.getsizeof(self._packed.columns) + 200 * len(self._packed.columns)
        for tick in list(self.newest):
            total += sys.getsizeof(tick)
            total += sum(sys.getsizeof(v) for v in msgspec.structs.astuple(tick) if v.__class__ in (float, int))
        return total

    def add(self, tick: Tick, names: Names) -> None:
        """Put a tick where it belongs."""
        newest = self.newest
        if not newest or newest[-1].ts_event_ns < tick.ts_event_ns or key(newest[-1]) < key(tick):
            newest.append(tick)
        else:
            place = bisect_left(newest, key(tick), key=key)
            if place and place >= self.copies and self.copies < len(newest):
                newest.insert(place, tick)
            else:
                self._plain.append(of_ticks([tick], names))
                self._squeeze_when_due()
                if place:  # what is before it among the copies is no longer next to what is after it
                    del newest[:place]
                    self.copies -= place
        if len(newest) - self.copies > self._objects_max:
            self._plain.append(of_ticks(newest[self.copies :], names))
            self.copies = len(newest)
            self.cool()
            self._squeeze_when_due()

    def _squeeze_when_due(self) -> None:
        if sum(map(len, self._plain)) <= self._plain_max:
            return
        columns = self._columns(None)
        if columns is not None:
            self._packed = pack({name: column[-self.capacity :] for name, column in columns.items()})
            self._plain.clear()

    def _columns(self, last: int | None) -> Columns | None:
        parts: list[Columns] = []
        if self._packed is not None:
            if not self._plain:
                return unpack(self._packed, last)
            parts.append(unpack(self._packed, last))
        parts += [{name: table[name] for name in table.dtype.names or ()} for table in self._plain]
        return canonical(concatenate(KIND_TICK, parts)) if parts else None

    def cool(self, keep: int | None = None) -> None:
        """Forget copies, all but what makes `keep` records (as many as were last asked for, if not given)."""
        self.kept = self.kept if keep is None else keep
        surplus = min(self.copies, len(self.newest) - self.kept)
        if surplus > 0:
            del self.newest[:surplus]
            self.copies -= surplus

    def warm(self, count: int, names: Names) -> None:
        """Have the newest `count` ticks as records, or all there are."""
        self.kept = max(self.kept, count)
        missing = min(count, len(self)) - len(self.newest)
        if missing <= 0:
            return
        wanted = missing + self.copies
        columns = self._columns(wanted)
        if columns is None:
            return
        end = len(columns["ts_event_ns"]) - self.copies
        older = {name: column[max(0, end - missing) : end] for name, column in columns.items()}
        whole = self._packed is not None and self._packed.whole and not self._plain
        self.newest[:0] = objects(older, self.symbol) if whole else to_ticks(older, self.symbol, names)
        self.copies += len(older["ts_event_ns"])


def objects(columns: Columns, symbol: str) -> list[Tick]:
    """Return columns in which nothing is absent as ticks of one symbol: twice as fast as asking each value."""
    values: list[Any] = [repeat(symbol)]
    for name in _FIELDS[1:]:
        column = columns.get(name)
        missing = 0 if name in ("side", "flags") else None
        values.append(repeat(missing) if column is None else column.tolist())
    return list(map(Tick, *values))
