"""Day sums: what the ticks of a symbol and day add up to, whatever the order in which they are met.

Nothing here knows where ticks come from. Memory grows with symbols and days, not with ticks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from onetape.migrate.proving import exact

#: What the checksum of a tick is of, besides its time.
COLUMNS = ("price", "size", "bid", "ask", "bid_size", "ask_size", "volume", "open_interest", "side")

_BUFFERED = 65_536
_MS_NS = 1_000_000
_DAY_NS = 86_400 * 10**9
_MINUTE_NS = 60 * 10**9
_QUARTER_NS = 900 * 10**9  # clocks change at quarters of an hour, and never within
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_NEVER = np.iinfo(np.int64).max

Key = tuple[str, int]
"""A symbol and a day, as date.toordinal() counts it."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]


class Sums:
    """The sums of one symbol and day.

    `volume`: of the sizes, exact (see exact.py). Times are ms since the epoch, rounded down: entries that have no other
    time than their id know no more. `opened` and `closed`: time, least and greatest price of the trades of the first
    and of the last moment with a trade. `check`: of all ticks in any order, to the ms; `check_ns`: to the ns.
    `minutes`: a bit for each minute of the day that has a tick.
    """

    __slots__ = (
        "check",
        "check_ns",
        "closed",
        "first_ms",
        "high",
        "last_ms",
        "low",
        "minutes",
        "opened",
        "sized",
        "ticks",
        "trades",
        "volume",
    )

    def __init__(self) -> None:
        self.ticks = self.trades = self.sized = self.volume = self.check = self.check_ns = self.minutes = 0
        self.first_ms, self.last_ms = int(_NEVER), -1
        self.high, self.low = -np.inf, np.inf
        self.opened: tuple[int, float, float] | None = None
        self.closed: tuple[int, float, float] | None = None

    def same(self, other: Sums) -> bool:
        """Return whether both are sums of equal ticks, as far as a ms tells."""
        return (self.ticks, self.volume, self.check) == (other.ticks, other.volume, other.check)


class Days:
    """The days of one time zone."""

    def __init__(self, zone: str) -> None:
        self._zone = ZoneInfo(zone)
        self._offsets: dict[int, int] = {}

    def of(self, times_ns: Ints) -> tuple[Ints, Ints]:
        """Return for each time the ordinal of its date, and the minute of that day by the clock on the wall."""
        quarters, places = np.unique(times_ns // _QUARTER_NS, return_inverse=True)
        offsets = np.array([self._offset(quarter) for quarter in quarters.tolist()], np.int64)
        days, rest = np.divmod(times_ns + offsets[places], _DAY_NS)
        return days + _EPOCH_ORDINAL, rest // _MINUTE_NS

    def minute_ns(self, day: int, minute: int) -> int:
        """Return when a minute of a day begins, ns since the epoch, UTC."""
        moment = datetime.combine(date.fromordinal(day), datetime.min.time(), self._zone)
        return int(moment.replace(hour=minute // 60, minute=minute % 60).timestamp()) * 10**9

    def _offset(self, quarter: int) -> int:
        found = self._offsets.get(quarter)
        if found is None:
            offset = datetime.fromtimestamp(quarter * 900, self._zone).utcoffset()
            seconds = 0.0 if offset is None else offset.total_seconds()
            found = self._offsets[quarter] = round(seconds * 10**9)
        return found


class DaySums:
    """Adds ticks up by symbol and day of `zone`; ticks at or after `until_ns` are left out."""

    def __init__(self, zone: str, until_ns: int | None = None) -> None:
        self.days = Days(zone)
        self._until_ns = until_ns
        self._names: list[str] = []
        self._codes: dict[str, int] = {}
        self._sums: dict[Key, Sums] = {}
        self._held: list[tuple[Ints, Ints, Floats]] = []
        self._rows = 0

    def add(self, symbols: str | Sequence[str], columns: Mapping[str, Any]) -> None:
        """Add ticks given as columns: ts_event_ns and any of COLUMNS, lists or arrays, None or NaN where absent."""
        times, values = as_arrays(columns)
        if not len(times):
            return
        if isinstance(symbols, str):
            codes = np.full(len(times), self._code(symbols), np.int64)
        else:
            codes = np.fromiter(map(self._code, symbols), np.int64, len(times))
        if self._until_ns is not None:
            kept = times < self._until_ns
            codes, times, values = codes[kept], times[kept], values[:, kept]
        self._held.append((codes, times, values))
        self._rows += len(times)
        if self._rows >= _BUFFERED:
            self._flush()

    def found(self) -> dict[Key, Sums]:
        """Return the sums of all that was added."""
        self._flush()
        return self._sums

    def _code(self, symbol: str) -> int:
        code = self._codes.get(symbol)
        if code is None:
            code = self._codes[symbol] = len(self._names)
            self._names.append(symbol)
        return code

    def _flush(self) -> None:
        held, self._held, self._rows = self._held, [], 0
        if not held:
            return
        codes = np.concatenate([one[0] for one in held])
        times = np.concatenate([one[1] for one in held])
        values = np.concatenate([one[2] for one in held], axis=1)
        if len(times):
            self._add(codes, times, values)

    def _add(self, codes: Ints, times: Ints, values: Floats) -> None:
        days, minutes = self.days.of(times)
        keys, groups = np.unique(codes * 2**32 + days, return_inverse=True)
        order = np.argsort(groups, kind="stable")
        groups, times, minutes, values = groups[order], times[order], minutes[order], values[:, order]
        starts = np.flatnonzero(np.concatenate(([True], groups[1:] != groups[:-1])))
        prices, sizes = values[0], values[1]
        traded, sized = ~np.isnan(prices), ~np.isnan(sizes)
        ms = times // _MS_NS
        hashes = row_hashes(ms, values)
        finer = mixed(hashes ^ (times % _MS_NS).astype(np.uint64))
        volumes = exact.sums(sizes[sized], groups[sized])
        opened = _edge(np.minimum, np.where(traded, ms, _NEVER), starts, groups, prices, traded)
        closed = _edge(np.maximum, np.where(traded, ms, -1), starts, groups, prices, traded)
        counts = np.diff(np.append(starts, len(groups)))
        columns = zip(
            keys.tolist(),
            counts.tolist(),
            np.add.reduceat(traded.astype(np.int64), starts).tolist(),
            np.add.reduceat(sized.astype(np.int64), starts).tolist(),
            np.minimum.reduceat(ms, starts).tolist(),
            np.maximum.reduceat(ms, starts).tolist(),
            np.maximum.reduceat(np.where(traded, prices, -np.inf), starts).tolist(),
            np.minimum.reduceat(np.where(traded, prices, np.inf), starts).tolist(),
            np.add.reduceat(hashes, starts).tolist(),
            np.add.reduceat(finer, starts).tolist(),
            opened,
            closed,
            _bits(groups, minutes, len(starts)),
            strict=True,
        )
        for at, row in enumerate(columns):
            key, ticks, trades, with_size, first, last, high, low, check, check_ns, begun, ended, bits = row
            name = (self._names[key >> 32], key & (2**32 - 1))
            sums = self._sums.get(name)
            if sums is None:
                sums = self._sums[name] = Sums()
            sums.ticks += ticks
            sums.trades += trades
            sums.sized += with_size
            sums.volume += volumes.get(at, 0)
            sums.first_ms, sums.last_ms = min(sums.first_ms, first), max(sums.last_ms, last)
            sums.high, sums.low = max(sums.high, high), min(sums.low, low)
            sums.check = (sums.check + check) % 2**64
            sums.check_ns = (sums.check_ns + check_ns) % 2**64
            sums.minutes |= bits
            if trades:
                sums.opened = _nearer(sums.opened, begun, -1)
                sums.closed = _nearer(sums.closed, ended, 1)


def as_arrays(columns: Mapping[str, Any]) -> tuple[Ints, Floats]:
    """Return the times, and one row of float64 a column of COLUMNS, NaN where a value is absent."""
    times = np.asarray(columns["ts_event_ns"], np.int64)
    values = np.full((len(COLUMNS), len(times)), np.nan)
    for at, name in enumerate(COLUMNS):
        if name in columns:
            values[at] = np.asarray(columns[name], np.float64)
    values[np.isnan(values)] = np.nan  # one NaN for all
    side = values[-1]
    side[np.isnan(side)] = 0.0  # unknown
    return times, values


def row_hashes(ms: Ints, values: Floats) -> Hashes:
    """Return 64 bits for each tick, of its time in ms and of the bits of its values."""
    found = mixed(ms.astype(np.uint64))
    for row in values:
        found = mixed(found ^ np.ascontiguousarray(row).view(np.uint64))
    return found


def mixed(words: Hashes) -> Hashes:
    """Return words whose bits all depend on all bits: the finaliser of SplitMix64 (Steele et al., 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _edge(
    extreme: Any, ms: Ints, starts: Ints, groups: Ints, prices: Floats, traded: NDArray[np.bool_]
) -> list[tuple[int, float, float]]:
    """Return for each group its first or last moment with a trade, and the least and greatest price in it."""
    moments = extreme.reduceat(ms, starts)
    there = traded & (ms == moments[groups])
    least = np.minimum.reduceat(np.where(there, prices, np.inf), starts)
    greatest = np.maximum.reduceat(np.where(there, prices, -np.inf), starts)
    return list(zip(moments.tolist(), least.tolist(), greatest.tolist(), strict=True))


def _bits(groups: Ints, minutes: Ints, count: int) -> list[int]:
    pairs = np.unique(groups * 1440 + minutes)
    owners, which = np.divmod(pairs, 1440)
    bounds = np.searchsorted(owners, np.arange(count + 1))
    found = []
    for at in range(count):
        flags = np.zeros(1440, bool)
        flags[which[bounds[at] : bounds[at + 1]]] = True
        found.append(int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little"))
    return found


def _nearer(
    known: tuple[int, float, float] | None, new: tuple[int, float, float], sign: int
) -> tuple[int, float, float]:
    """Return the one of two moments that is the later (sign 1) or the earlier (-1), joined where they are one."""
    if known is None or (new[0] - known[0]) * sign > 0:
        return new
    if new[0] == known[0]:
        return new[0], min(new[1], known[1]), max(new[2], known[2])
    return known


__all__ = ["COLUMNS", "DaySums", "Days", "Key", "Sums", "as_arrays", "mixed", "row_hashes"]
