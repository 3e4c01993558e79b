"""Silence: where a symbol has no ticks, and for how long that is usual."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import apsw
import numpy as np

from onetape.store import query
from onetape.store.layout import DAY_NS, KIND_TICK, MIXED
from onetape.store.partition import Pair, merged, within, without

_QUARTER_NS, _QUARTERS = 900_000_000_000, 96
#: Silence of so long is never held against a symbol that nobody speaks of, and silence of more always is.
SUSPECT_MIN_NS, SUSPECT_MAX_NS = 60_000_000_000, 21_600_000_000_000
#: Nineteen of twenty spacings; and ten times the usual one is far longer than usual.
_NEARLY_ALL, _FAR_LONGER = 0.95, 10


def times(connection: apsw.Connection, symbol_id: int, start_ns: int, end_ns: int) -> Iterator[Any]:
    """Yield the symbol's tick times with start_ns <= ts_event_ns < end_ns, ascending, a UTC day at a time.

    Days on which no chunk and no record of the journal has anything are not looked at.
    """
    for first, last in _pieces(connection, symbol_id, start_ns, end_ns):
        columns = query.ticks(connection, symbol_id, first, last, wanted=["ts_event_ns"])
        if columns is not None and len(columns["ts_event_ns"]):
            yield columns["ts_event_ns"]


def _pieces(connection: apsw.Connection, symbol_id: int, start_ns: int, end_ns: int) -> Iterator[Pair]:
    rows: list[Any] = connection.execute(
        f"SELECT DISTINCT ts_min / {DAY_NS}, ts_max / {DAY_NS} FROM chunk"
        " WHERE kind = ? AND symbol_id IN (?, ?) AND ts_max >= ? AND ts_min < ?",
        (KIND_TICK, symbol_id, MIXED, start_ns, end_ns),
    ).fetchall()
    days = {day for first, last in rows for day in range(first, last + 1)}
    fresh = query.tail(connection).get(KIND_TICK)
    if fresh is not None:
        mine = fresh["ts_event_ns"][fresh["symbol"] == symbol_id]
        days.update(np.unique(mine // DAY_NS).tolist())
    for day in sorted(days):
        first, last = max(start_ns, day * DAY_NS), min(end_ns, (day + 1) * DAY_NS)
        if first < last:
            yield first, last


def silences(found: Iterable[Any], start_ns: int, end_ns: int, longer_than_ns: int) -> list[Pair]:
    """Return where start_ns … end_ns is without a tick for longer than `longer_than_ns`, whole silences unclipped.

    `found` are the ascending times of ticks in that span. A silence begins 1 ns after a tick and ends at one.
    """
    out: list[Pair] = []
    before = start_ns
    for ts in found:
        if int(ts[0]) - before > longer_than_ns:
            out.append((before, int(ts[0])))
        at = np.flatnonzero(np.diff(ts) > longer_than_ns + 1)
        out.extend(zip((ts[at] + 1).tolist(), ts[at + 1].tolist(), strict=True))
        before = int(ts[-1]) + 1
    if end_ns - before > longer_than_ns:
        out.append((before, end_ns))
    return out


def silent(
    connection: apsw.Connection,
    symbol_id: int,
    runs: Iterable[Pair],
    start_ns: int,
    end_ns: int,
    longer_than_ns: int,
    closed: Iterable[Pair] = (),
) -> list[Pair]:
    """Return where the runs, as far as they touch start_ns … end_ns, have no tick for longer than `longer_than_ns`.

    A silence is measured inside of its run, and in all of it, so that it does not matter which part is asked for.
    """
    out: list[Pair] = []
    reach = longer_than_ns + 1
    for first, last in runs:
        if first >= end_ns or last <= start_ns:
            continue
        low, high = max(first, start_ns - reach), min(last, end_ns + reach)
        since = first if low == first else low - reach
        out += silences(times(connection, symbol_id, low, high), since, high, longer_than_ns)
    return in_hours(((pair, longer_than_ns) for pair in out), closed)


def stops(
    connection: apsw.Connection, symbol_id: int, start_ns: int, end_ns: int, link_ns: int, chained: bool
) -> list[Pair]:
    """Return what nobody recorded of a hole between two words of sources: all but where its own ticks still flow.

    Ticks flow from one to the next within `link_ns`, and to the first from a covered span before (`chained`); never
    from the last of them to the end: what a source began to cover later says nothing of the time before.
    """
    ends: list[Pair] = []
    before: int | None = start_ns if chained else None
    left = start_ns
    for ts in times(connection, symbol_id, start_ns, end_ns):
        if before is None or int(ts[0]) - before > link_ns:
            ends.append((left, int(ts[0])))
        at = np.flatnonzero(np.diff(ts) > link_ns)
        ends.extend(zip((ts[at] + 1).tolist(), ts[at + 1].tolist(), strict=True))
        before = int(ts[-1])
        left = before + 1
    ends.append((left, end_ns))
    return [pair for pair in ends if pair[0] < pair[1]]


def unusual(
    connection: apsw.Connection, symbol_id: int, start_ns: int, end_ns: int, closed: Iterable[Pair] = ()
) -> list[Pair]:
    """Return where a symbol that nobody speaks of is silent for far longer than usual at that time of the day.

    Usual is what the days around show: at least the day before the end, and all of start_ns … end_ns. Of a silence that
    reaches into closed time, what lies outside has to be that long by itself.
    """
    first = max(0, min(start_ns - SUSPECT_MAX_NS, end_ns - DAY_NS) - 1)
    last = end_ns + SUSPECT_MAX_NS + 1
    usual = _Usual()
    found = silences(
        usual.watch(times(connection, symbol_id, first, last)), first - SUSPECT_MAX_NS - 1, last, SUSPECT_MIN_NS
    )
    near = [pair for pair in found if pair[0] < end_ns and pair[1] > start_ns]
    return in_hours(((pair, usual.suspect_ns(*pair)) for pair in near), closed)


def in_hours(found: Iterable[tuple[Pair, int]], closed: Iterable[Pair]) -> list[Pair]:
    """Return of each silence what is closed, and what is not where that is longer than its limit."""
    shut = merged(closed)
    out: list[Pair] = []
    for pair, limit_ns in found:
        if pair[1] - pair[0] > limit_ns:
            at_work = [(low, high) for low, high in without([pair], shut) if high - low > limit_ns] if shut else [pair]
            out += [*at_work, *within(shut, *pair)]
    return out


class _Usual:
    """The usual spacing of ticks by quarter of an hour of the day (UTC), as the median over days.

    Of one quarter it is its length divided by its ticks or what nearly all spacings stay below, whichever is longer:
    ticks come in bursts, so the spacings say too little of a thin one. Markets open at quarters, so none is half open.
    """

    def __init__(self) -> None:
        self._days: dict[int, list[float]] = defaultdict(list)
        self._limits: dict[int, int] = {}

    def watch(self, found: Iterable[Any]) -> Iterator[Any]:
        """Yield what is given, ascending times, and remember their spacing."""
        for ts in found:
            quarters = np.arange(int(ts[0]) // _QUARTER_NS, int(ts[-1]) // _QUARTER_NS + 2)
            at = np.searchsorted(ts, quarters * _QUARTER_NS).tolist()
            for quarter, (low, high) in zip(quarters.tolist(), itertools.pairwise(at), strict=False):
                if low < high:
                    nearly_all = np.quantile(np.diff(ts[low:high]), _NEARLY_ALL) if high - low > 1 else 0.0
                    self._days[quarter % _QUARTERS].append(max(float(nearly_all), _QUARTER_NS / (high - low)))
            yield ts

    def suspect_ns(self, start_ns: int, end_ns: int) -> int:
        """Return how long a silence has to be before it is suspect, by what is usual around its start and its end.

        Half a quarter before and after it: the silence itself must not make its own quarters look thin.
        """
        half = _QUARTER_NS // 2
        return max(self._limit(start_ns - half), self._limit(end_ns + half))

    def _limit(self, ns: int) -> int:
        quarter = ns // _QUARTER_NS % _QUARTERS
        if quarter not in self._limits:
            days = self._days.get(quarter)
            usual = float(np.median(days)) if days else float(SUSPECT_MAX_NS)
            self._limits[quarter] = int(min(max(_FAR_LONGER * usual, SUSPECT_MIN_NS), SUSPECT_MAX_NS))
        return self._limits[quarter]
