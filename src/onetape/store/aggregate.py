"""Aggregations: where one bar ends and the next begins, and what each is. Pure functions of trades in canonical order.

Sums are left folds from zero in canonical order, as store/bars.py makes them: NumPy's bincount and cumsum add one by
one, so whoever folds the same trades gets the same bytes. Amounts are compared with a margin of 1e-12 of what is asked
for, so that ten trades of 0.1 make up 1.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from onetape.store import sums
from onetape.store.bars import MINUTES
from onetape.store.block import Array, Columns
from onetape.store.interval import Interval
from onetape.store.sessions import Windows

_SUMS = ("volume", "notional", "bid_volume", "ask_volume")
_MARGIN = 1e-12
#: Bars shorter than this are found faster by looking at every trade than by an array operation a bar.
_SHORT = 64
#: 1970-01-05, a Monday: so that bars of seven days are weeks.
_MONDAY = 4


class Series(NamedTuple):
    """What bars are made of: trades, or one price of quotes, in canonical order (ts, seq); size and side if told."""

    ts: Array
    seq: Array
    price: Array
    size: Array | None
    side: Array | None

    def where(self, mask: Array) -> Series:
        """Return some of it."""
        if mask.dtype == bool and mask.all():
            return self
        return Series(*(None if column is None else column[mask] for column in self))  # type: ignore[arg-type]


def series(columns: Columns, price: str) -> Series:
    """Return the trades of ticks (price "trade"), or the "bid", the "ask" or the "mid" of their quotes."""
    ts, seq = columns["ts_event_ns"], columns["seq"]
    if price == "mid":
        nothing = np.full(len(ts), np.nan)
        # Halved before they are added: the sum of two great prices must not be infinite.
        values = columns.get("bid", nothing) * 0.5 + columns.get("ask", nothing) * 0.5
    else:
        values = columns.get("price" if price == "trade" else price, np.full(len(ts), np.nan))
    found = Series(
        ts,
        seq,
        values + 0.0,  # no bar has a negative zero
        columns.get("size") if price == "trade" else None,
        columns.get("side") if price == "trade" else None,
    )
    return found.where(~np.isnan(values))


class Cells(NamedTuple):
    """For each time: whether it is in a session, and of its bar of time the start, the end and the trading day."""

    inside: Array
    starts: Array
    over: Array
    days: Array


def cells(ts: Array, windows: Windows, interval: Interval) -> Cells:
    """Return the bars of time that times fall into. `windows` covers whole bars of several days."""
    span = windows.of(ts)
    inside = span >= 0
    if not len(windows.opens):
        nothing = np.zeros(len(ts), dtype="<i8")
        return Cells(inside, nothing, nothing, nothing)
    if interval.kind == "days":
        first, last = blocks(windows, interval)
        return Cells(inside, windows.opens[first[span]], windows.closes[last[span]], windows.days[first[span]])
    step = int(interval.size)
    opens = windows.opens[span]
    starts = opens + (ts - opens) // step * step
    over = np.minimum(np.minimum(starts, 2**63 - 1 - step) + step, windows.closes[span])  # the close cuts the last bar
    return Cells(inside, starts, over, windows.days[span])


class Timed(NamedTuple):
    """Bars of time: where each begins in the times that are in a session (`inside`; None: all), start, end, day."""

    inside: Array | None
    begin: Array
    starts: Array
    over: Array
    days: Array


def timed(ts: Array, windows: Windows, interval: Interval) -> Timed:
    """Return the bars of time that sorted times make."""
    spans = len(windows.opens)
    step = int(interval.size)
    steps = -(-(windows.closes - windows.opens) // step) if interval.kind == "time" else np.ones(spans, dtype="<i8")
    if not len(ts) or int(steps.sum()) > len(ts):  # more bars than times: look at each time
        return _timed_one_by_one(ts, windows, interval)
    first, last = np.searchsorted(ts, windows.opens), np.searchsorted(ts, windows.closes)
    span = np.repeat(np.arange(spans), steps)
    number = np.arange(len(span)) - np.repeat(np.cumsum(steps) - steps, steps)
    starts = windows.opens[span] + number * step * (interval.kind == "time")
    begin = np.searchsorted(ts, starts) if interval.kind == "time" else first
    end = np.append(begin[1:], len(ts))
    final = np.cumsum(steps) - 1
    end[final] = last
    over, days = windows.closes[span], windows.days[span]
    if interval.kind == "time":
        over = np.minimum(np.minimum(starts, 2**63 - 1 - step) + step, over)  # the close cuts the last bar
    elif spans:
        opening, closing = blocks(windows, interval)
        starts, over, days = windows.opens[opening], windows.closes[closing], windows.days[opening]
    there = end > begin
    counts, starts, over, days = (end - begin)[there], starts[there], over[there], days[there]
    inside = None
    if int(counts.sum()) < len(ts):
        inside = np.zeros(len(ts), dtype=bool)
        for start, stop in zip(first.tolist(), last.tolist(), strict=True):
            inside[start:stop] = True
    begin = np.cumsum(counts) - counts
    if interval.kind == "days":  # the spans of a session, and the sessions of a bar, are one
        one = edges(starts)
        begin, starts, over, days = begin[one], starts[one], over[one], days[one]
    return Timed(inside, begin, starts, over, days)


def _timed_one_by_one(ts: Array, windows: Windows, interval: Interval) -> Timed:
    at = cells(ts, windows, interval)
    inside = None if at.inside.all() else at.inside
    starts, over, days = (column if inside is None else column[inside] for column in (at.starts, at.over, at.days))
    begin = edges(starts)
    return Timed(inside, begin, starts[begin], over[begin], days[begin])


def blocks(windows: Windows, interval: Interval) -> tuple[Array, Array]:
    """Return for each span the first and the last span of its bar of `interval` days."""
    block = (windows.days - _MONDAY) // int(interval.size)
    edge = np.flatnonzero(block[1:] != block[:-1]) + 1
    begin = np.concatenate(([0], edge))
    end = np.append(edge, len(block)) - 1
    sizes = end - begin + 1
    return np.repeat(begin, sizes), np.repeat(end, sizes)


def whole_blocks(first_day: int, last_day: int, interval: Interval) -> tuple[int, int]:
    """Return the days of whole bars of several days around the given ones."""
    size = int(interval.size) if interval.kind == "days" else 1
    return first_day - (first_day - _MONDAY) % size, last_day + (-(last_day + 1 - _MONDAY)) % size


def edges(*keys: Array) -> Array:
    """Return where a new group begins in columns that are sorted by group."""
    count = len(keys[0])
    changes = np.zeros(max(0, count - 1), dtype=bool)
    for key in keys:
        changes |= key[1:] != key[:-1]
    return np.concatenate(([0], np.flatnonzero(changes) + 1)) if count else np.zeros(0, dtype="<i8")


def counted(found: Series, interval: Interval) -> tuple[Array, bool]:
    """Return where the bars of one session begin in its trades, and whether its last bar is closed."""
    count = len(found.ts)
    if interval.kind == "tick":
        size = int(interval.size)
        return np.arange(0, count, size), count % size == 0
    if interval.kind == "range":
        return np.array(_range_starts(found.price, interval.size)), False
    amounts = np.zeros(count) if found.size is None else np.where(np.isnan(found.size), 0.0, found.size)
    starts = _amount_starts(amounts if interval.kind == "volume" else amounts * np.abs(found.price), interval.size)
    closed = starts[-1] == count
    return np.array(starts[:-1] if closed else starts), closed


def _amount_starts(amounts: Array, limit: float) -> list[int]:
    """Return where bars begin that close with the amount that fills them; the end, if the last one is closed."""
    limit *= 1 - _MARGIN
    count, starts = len(amounts), [0]
    if limit < _SHORT * float(amounts.mean()):
        total = 0.0
        for at, amount in enumerate(amounts.tolist(), 1):
            total += amount
            if total >= limit:
                starts.append(at)
                total = 0.0
        return starts
    at, width = 0, 4 * _SHORT
    while at < count:
        place = int(np.searchsorted(np.cumsum(amounts[at : at + width]), limit))
        if place < min(width, count - at):
            at += place + 1
            starts.append(at)
            width = max(_SHORT, 2 * place)
        elif at + width >= count:
            break
        else:
            width *= 2
    return starts


def _range_starts(prices: Array, limit: float) -> list[int]:
    """Return where bars begin whose high and low are at most `limit` apart."""
    probe = _range_starts_one_by_one(prices[:4096], limit)
    if len(prices) <= 4096 or len(probe) > 4096 // _SHORT:
        return probe if len(prices) <= 4096 else _range_starts_one_by_one(prices, limit)
    count, starts, at, width = len(prices), [0], 0, 4 * _SHORT
    while at < count:
        part = prices[at : at + width]
        high, low = np.maximum.accumulate(part), np.minimum.accumulate(part)
        wide = high - low > limit + _MARGIN * np.maximum(np.abs(high), np.abs(low))
        place = int(np.argmax(wide))
        if wide[place]:
            at += place
            starts.append(at)
            width = max(_SHORT, 2 * place)
        elif at + width >= count:
            break
        else:
            width *= 2
    return starts


def _range_starts_one_by_one(prices: Array, limit: float) -> list[int]:
    starts, high, low = [0], float(prices[0]), float(prices[0])
    for at, price in enumerate(prices.tolist()):
        high, low = max(high, price), min(low, price)
        if high - low > limit + _MARGIN * max(abs(high), abs(low)):
            starts.append(at)
            high = low = price
    return starts


def fold(found: Series, begin: Array) -> Columns:
    """Return what the bars are that begin at these places: prices, sums (NaN where nobody told), number of trades."""
    count, end = len(begin), np.append(begin[1:], len(found.ts))
    made = _prices(found.price, found.price, found.price, found.price, begin, end)
    made["trades"] = end - begin
    made |= {name: np.full(count, np.nan) for name in _SUMS}
    if found.size is None or not count:
        return made
    sized = ~np.isnan(found.size)
    told = None if sized.all() else sized
    amount = found.size if told is None else np.where(sized, found.size, 0.0)
    exact = sums.is_exact(amount)
    made["volume"] = _total(amount, begin, told, exact)
    made["notional"] = _total(amount * found.price, begin, told)
    side = found.side
    if side is None:
        return made
    sided = side != 0 if told is None else sized & (side != 0)
    if exact and sided.all():  # what was bought and sold is the volume; all of these are exact
        net = _total(amount * side, begin, None, True)
        made["bid_volume"], made["ask_volume"] = (made["volume"] - net) * 0.5, (made["volume"] + net) * 0.5
    elif sided.any():
        told = None if sided.all() else sided
        for name, sign in (("bid_volume", -1), ("ask_volume", 1)):
            # Zero is added for a trade of the other side: it changes no sum, and says that sides were told.
            made[name] = _total(amount * (side == sign), begin, told, exact)
    return made


def join(minutes: Array, begin: Array) -> Columns:
    """Return what bars are that consist of whole MINUTES: their sums are those of the minutes, added up in order."""
    count, end = len(begin), np.append(begin[1:], len(minutes))
    if count == len(minutes):  # each minute is a bar
        return {name: minutes[name] for name in ("open", "high", "low", "close", "trades", *_SUMS)}
    made = _prices(minutes["open"], minutes["high"], minutes["low"], minutes["close"], begin, end)
    made["trades"] = np.add.reduceat(minutes["trades"], begin) if count else minutes["trades"]
    for name in _SUMS:
        values = np.ascontiguousarray(minutes[name])
        told = ~np.isnan(values)
        made[name] = _total(np.where(told, values, 0.0), begin, None if told.all() else told)
    return made


def vwap(made: Columns) -> Array:
    """Return the volume-weighted prices, NaN without volume."""
    volume = made["volume"]
    found = np.full(len(volume), np.nan)
    np.divide(made["notional"], volume, out=found, where=volume != 0)  # NaN stays NaN
    return found


def to_minutes(found: Series, begin: Array, revisions: Array) -> Array:
    """Return one symbol's MINUTES of trades, which begin at these places."""
    made = np.zeros(len(begin), MINUTES)
    for name, column in fold(found, begin).items():
        made[name] = column
    made["ts_event_ns"] = found.ts[begin] - found.ts[begin] % 60_000_000_000
    made["revision"] = revisions
    return made


def _prices(first: Array, top: Array, bottom: Array, last: Array, begin: Array, end: Array) -> Columns:
    if not len(begin):
        return {"open": first, "high": top, "low": bottom, "close": last}
    return {
        "open": first[begin],
        "high": np.maximum.reduceat(top, begin),
        "low": np.minimum.reduceat(bottom, begin),
        "close": last[end - 1],
    }


def _total(values: Array, begin: Array, told: Array | None, exact: bool | None = None) -> Array:
    """Return the folds of values that are 0 where nobody told, NaN where nobody told at all."""
    if not len(begin):
        return np.zeros(0)
    found = sums.by_group(values, begin, exact)
    if told is not None:
        found[~np.logical_or.reduceat(told, begin)] = np.nan
    return found


def late(seq: Array, places: Array, after: Array, until: Array) -> Array:
    """Return which of the records at `places` arrived after one that is later: one of places `after` … `until`.

    seq: of all records, in canonical order; places and until ascend. Of the records of one `until` the least seq behind
    each is found at once.
    """
    found = np.zeros(len(places), dtype=bool)
    begin = edges(until).tolist()
    for start, end in itertools.pairwise([*begin, len(places)]):
        first, limit = int(places[start]), int(until[start])
        behind = np.minimum.accumulate(seq[first:limit][::-1])[::-1]
        least = np.append(behind, np.iinfo("<i8").max)
        found[start:end] = seq[places[start:end]] > least[np.minimum(after[start:end], limit) - first]
    return found
