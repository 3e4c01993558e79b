"""Bars: the one left fold that makes 1-minute bars of trades, live and from history alike.

A trade is a tick with a price. The fold goes over a minute's trades in canonical order and starts at zero, so its
float sums are the same bytes whoever does it. NumPy's bincount adds in array order, one by one: it is that fold
for all minutes at once. (reduceat and sum add in pairs, which gives other bytes.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from onetape.record import MINUTE_NS
from onetape.store import sums
from onetape.store.block import DTYPES, Array, Columns, canonical, in_symbol_order, take
from onetape.store.layout import KIND_MINUTE

#: One symbol's minute. Sums are NaN where no trade told; a minute whose trades were all taken back has trades 0.
MINUTES = np.dtype([("symbol", "<u4"), *((name, dtype) for name, dtype in DTYPES[KIND_MINUTE].items())])
#: Trades folded at once: their columns and sums stay in the processor's cache.
_SLICE_RECORDS = 32_768
_SUMS = ("volume", "notional", "bid_volume", "ask_volume")


class Minute(NamedTuple):
    """A minute as a plain record; None where no trade told."""

    symbol_id: int
    ts_start_ns: int
    open: float
    high: float
    low: float
    close: float
    volume: float | None
    notional: float | None
    trades: int
    bid_volume: float | None
    ask_volume: float | None
    revision: int
    first_ts: int
    first_seq: int
    last_ts: int
    last_seq: int

    @property
    def vwap(self) -> float | None:
        """Return the volume-weighted price, or None without volume."""
        return self.notional / self.volume if self.volume and self.notional is not None else None


_FIELDS = tuple("ts_event_ns" if name == "ts_start_ns" else name for name in Minute._fields)
_FIELDS = tuple("symbol" if name == "symbol_id" else name for name in _FIELDS)

Key = tuple[int, int]
#: Of the keys (symbols, starts in ns): which are kept, and their minutes (of the others anything).
Kept = Callable[[Array, Array], tuple[Array, Array]]
History = Callable[[int, int], Columns | None]


def to_records(minutes: Array) -> list[Minute]:
    """Return minutes as plain records."""
    columns: list[list[Any]] = []
    for name in _FIELDS:
        values = minutes[name].tolist()
        columns.append([None if v != v else v for v in values] if name in _SUMS else values)
    return [Minute(*row) for row in zip(*columns, strict=True)]


def trades(columns: Columns, ordered: bool = False) -> Columns:
    """Return the ticks that are trades, with the columns the fold reads, sorted by symbol, time, seq.

    `ordered` says that the ticks are sorted so.
    """
    price = columns.get("price")
    if price is None:
        return {name: column[:0] for name, column in columns.items()}
    wanted = ("symbol", "ts_event_ns", "seq", "price", "size", "side")
    found = {name: columns[name] for name in wanted if name in columns}
    there = ~np.isnan(price)
    if not there.all():
        found = take(found, there)
    if ordered or in_symbol_order(found["symbol"], found["ts_event_ns"], found["seq"]):
        return found
    return take(found, np.lexsort((found["seq"], found["ts_event_ns"], found["symbol"])))


def late_counts(found: Columns, newest_before: Mapping[int, int]) -> dict[Key, int]:
    """Return, by (symbol, minute), how many trades arrived after a later minute had begun.

    `found` as trades() gives it; `newest_before[symbol_id]` is the greatest trade time already on the tape. It
    depends on the order of arrival alone, so a tape read again from its positions gives the same revisions.
    """
    symbols, seq = found["symbol"], found["seq"]
    if not len(symbols):
        return {}
    same = symbols[1:] == symbols[:-1]
    starts = np.concatenate(([0], np.flatnonzero(~same) + 1))
    first = found["ts_event_ns"][starts] // MINUTE_NS
    known = np.array([newest_before.get(symbol_id, -1) for symbol_id in symbols[starts].tolist()]) // MINUTE_NS
    in_order = bool(((seq[1:] > seq[:-1]) | ~same).all())
    if in_order and bool((first >= known).all()):
        return {}
    minutes = found["ts_event_ns"] // MINUTE_NS
    if not in_order:  # some arrived out of the order of their times
        order = np.lexsort((seq, symbols))
        symbols, minutes = symbols[order], minutes[order]
    sizes = np.diff(np.append(starts, len(symbols)))
    # All symbols at once, each lifted above every minute of the one before it (a minute has 28 bits): so the
    # running maximum starts anew with each.
    lifts = np.arange(len(starts)) << 28
    lift = np.repeat(lifts, sizes)
    lifted = minutes + lift
    newest = np.maximum(np.repeat(known + lifts, sizes), np.concatenate(([-1], np.maximum.accumulate(lifted)[:-1])))
    late = lifted < newest
    counts: dict[Key, int] = {}
    for symbol_id, minute in zip(symbols[late].tolist(), minutes[late].tolist(), strict=True):
        key = (symbol_id, minute * MINUTE_NS)
        counts[key] = counts.get(key, 0) + 1
    return counts


def fold(
    found: Columns, late: Mapping[Key, int], kept: Kept, history: History, cancelled: Mapping[Key, int] | None = None
) -> Array:
    """Return the MINUTES that `found` (as trades() gives it) changes, as they are after it, by symbol and time.

    `kept` gives the minutes already kept. `history(symbol_id, start_ns)` gives ALL trades of a minute that late
    trades fall into or that trades were taken back of, those of `found` included, or None where retention has
    removed them. `cancelled`: of how many trades each minute was relieved.
    """
    taken_back = cancelled or {}
    groups = symbols, starts, begin = _groups(found)
    have, old = kept(symbols, starts)
    end = np.append(begin[1:], len(found["ts_event_ns"]))
    first_ts, first_seq = found["ts_event_ns"][begin], found["seq"][begin]
    again = have & ~((first_ts > old["last_ts"]) | ((first_ts == old["last_ts"]) & (first_seq > old["last_seq"])))
    again |= have & (old["trades"] == 0)
    for at, key in enumerate(zip(symbols.tolist(), starts.tolist(), strict=True) if taken_back else ()):
        again[at] |= key in taken_back
    if again.any():
        straight = take(found, np.repeat(~again, end - begin))
        parts = [_sum(straight, have[~again], old[~again])]
    else:
        parts = [_sum(found, have, old, groups)]
    for at in np.flatnonzero(again).tolist():
        part = {name: column[begin[at] : end[at]] for name, column in found.items()}
        parts.append(_again(int(symbols[at]), int(starts[at]), part, old[at : at + 1] if have[at] else None, history))
    there = set(zip(symbols.tolist(), starts.tolist(), strict=True)) if taken_back else set()
    parts += list(_emptied([key for key in taken_back if key not in there], kept, history))
    made = np.concatenate(parts)
    for counts in (late, taken_back):
        for (symbol_id, start_ns), count in counts.items():
            made["revision"][(made["symbol"] == symbol_id) & (made["ts_event_ns"] == start_ns)] += count
    return made if len(parts) == 1 else made[np.lexsort((made["ts_event_ns"], made["symbol"]))]


def _again(symbol_id: int, start_ns: int, part: Columns, old: Array | None, history: History) -> Array:
    """Return one minute folded from all of its trades."""
    whole = history(symbol_id, start_ns)
    if whole is None:  # retention has removed them: what is kept, and these
        fresh = _sum(part, *_nothing(1))
        return fresh if old is None else _merge(old, fresh)
    made = _sum(whole, *_nothing(1)) if len(whole["ts_event_ns"]) else _without_trades(symbol_id, start_ns)
    if old is not None:
        made["revision"] = old["revision"]
    return made


def _emptied(keys: list[Key], kept: Kept, history: History) -> Iterator[Array]:
    """Yield the minutes of which trades were only taken back."""
    if not keys:
        return
    have, old = kept(np.array([key[0] for key in keys], dtype="<u4"), np.array([key[1] for key in keys], dtype="<i8"))
    for at, (symbol_id, start_ns) in enumerate(keys):
        whole = history(symbol_id, start_ns)
        if whole is None:
            continue
        made = _sum(whole, *_nothing(1)) if len(whole["ts_event_ns"]) else _without_trades(symbol_id, start_ns)
        if have[at]:
            made["revision"] = old["revision"][at]
        yield made


def _without_trades(symbol_id: int, start_ns: int) -> Array:
    made = np.zeros(1, MINUTES)
    made["symbol"], made["ts_event_ns"] = symbol_id, start_ns
    for name in _SUMS:
        made[name] = np.nan
    return made


def _nothing(count: int) -> tuple[Array, Array]:
    return np.zeros(count, dtype=bool), np.zeros(count, MINUTES)


def _groups(found: Columns) -> tuple[Array, Array, Array]:
    """Return symbol, start (ns) and place of the first trade of each minute."""
    symbols, ts = found["symbol"], found["ts_event_ns"]
    if not len(ts):
        return symbols, ts, np.zeros(0, dtype="<i8")
    minutes = ts // MINUTE_NS
    edge = (symbols[1:] != symbols[:-1]) | (minutes[1:] != minutes[:-1])
    begin = np.concatenate(([0], np.flatnonzero(edge) + 1))
    return symbols[begin], minutes[begin] * MINUTE_NS, begin


@np.errstate(over="ignore", invalid="ignore")  # prices of 1e300 are valid, and their sums are infinite
def _sum(found: Columns, have: Array, old: Array, groups: tuple[Array, Array, Array] | None = None) -> Array:
    """Fold groups from zero, or on from the minute kept in `old` where there is one."""
    symbols, starts, begin = _groups(found) if groups is None else groups
    if len(found["ts_event_ns"]) > 2 * _SLICE_RECORDS:
        return np.concatenate(list(_slices(found, have, old, (symbols, starts, begin))))
    return _sum_slice(found, have, old, (symbols, starts, begin))


def _sum_slice(found: Columns, have: Array, old: Array, groups: tuple[Array, Array, Array]) -> Array:
    symbols, starts, begin = groups
    count = len(begin)
    made = np.zeros(count, MINUTES)
    if not count:
        return made
    ends = np.append(begin[1:], len(found["ts_event_ns"]))
    sizes = ends - begin
    price = found["price"] + 0.0  # no bar has a negative zero
    size = found.get("size")
    side = found.get("side")
    sized = None if size is None else ~np.isnan(size)
    if sized is not None and sized.all():
        sized = None
    last = ends - 1
    ts, seq = found["ts_event_ns"], found["seq"]
    made["symbol"], made["ts_event_ns"] = symbols, starts
    made["open"], made["close"] = price[begin], price[last]
    made["high"], made["low"] = np.maximum.reduceat(price, begin), np.minimum.reduceat(price, begin)
    made["trades"] = sizes
    made["first_ts"], made["first_seq"], made["last_ts"], made["last_seq"] = ts[begin], seq[begin], ts[last], seq[last]
    seeds = np.flatnonzero(have)
    if len(seeds):
        before = old[seeds]
        made["open"][seeds] = before["open"]
        made["high"][seeds] = np.maximum(before["high"], made["high"][seeds])
        made["low"][seeds] = np.minimum(before["low"], made["low"][seeds])
        made["trades"][seeds] += before["trades"]
        for name in ("revision", "first_ts", "first_seq"):
            made[name][seeds] = before[name]
    kept = old if len(seeds) else None
    if size is None:
        for name in _SUMS:
            made[name] = np.nan if kept is None else np.where(have, kept[name], np.nan)
        return made
    amount = size if sized is None else np.where(sized, size, 0.0)
    told = np.ones(count, dtype=bool) if sized is None else np.logical_or.reduceat(sized, begin)
    exact = sums.is_exact(amount)
    made["volume"] = _total(begin, amount, exact, told, kept, have, "volume")
    made["notional"] = _total(begin, amount * price, None, told, kept, have, "notional")
    if side is None:
        for name in ("bid_volume", "ask_volume"):
            made[name] = np.nan if kept is None else np.where(have, kept[name], np.nan)
        return made
    sided = np.logical_or.reduceat(side != 0 if sized is None else (side != 0) & sized, begin)
    for name, sign in (("bid_volume", -1), ("ask_volume", 1)):
        made[name] = _total(begin, np.where(side == sign, amount, 0.0), exact or None, sided, kept, have, name)
    return made


def _slices(found: Columns, have: Array, old: Array, groups: tuple[Array, Array, Array]) -> Iterator[Array]:
    """Fold whole minutes at a time whose trades fit the processor's cache: a third of the time of all at once."""
    symbols, starts, begin = groups
    total = len(found["ts_event_ns"])
    cuts = np.unique(np.searchsorted(begin, np.arange(0, total, _SLICE_RECORDS)))
    bounds = [*cuts[cuts < len(begin)].tolist(), len(begin)]  # a minute may be longer than a slice
    for first, last in itertools.pairwise(bounds):
        start, end = int(begin[first]), int(begin[last]) if last < len(begin) else total
        part = {name: column[start:end] for name, column in found.items()}
        within = slice(first, last)
        yield _sum_slice(part, have[within], old[within], (symbols[within], starts[within], begin[within] - start))


def _total(
    begin: Array, values: Array, exact: bool | None, told: Array, old: Array | None, have: Array, name: str
) -> Array:
    """Return the sums of `values` by group, on from those kept; NaN where nobody told.

    A trade that told nothing has a zero, which changes no sum. exact: whether the order of adding is known not to
    matter (None: not known).
    """
    if old is None:
        total = sums.by_group(values, begin, exact)
        if not told.all():
            total[~told] = np.nan
        return total
    count = len(begin)
    before = np.where(have, old[name], np.nan)
    known = ~np.isnan(before)
    seed = np.where(known, before, 0.0)
    group = np.repeat(np.arange(count), np.diff(np.append(begin, len(values))))
    total = np.bincount(np.concatenate((np.arange(count), group)), np.concatenate((seed, values)), count)
    total[~(told | known)] = np.nan
    return total


def _merge(old: Array, new: Array) -> Array:
    """Join late trades to a minute whose own ticks retention has removed: exact but for the order of its sums."""
    made = old.copy()
    if (new["first_ts"][0], new["first_seq"][0]) < (old["first_ts"][0], old["first_seq"][0]):
        for name in ("open", "first_ts", "first_seq"):
            made[name] = new[name]
    if (new["last_ts"][0], new["last_seq"][0]) > (old["last_ts"][0], old["last_seq"][0]):
        for name in ("close", "last_ts", "last_seq"):
            made[name] = new[name]
    made["high"], made["low"] = np.maximum(old["high"], new["high"]), np.minimum(old["low"], new["low"])
    made["trades"] = old["trades"] + new["trades"]
    for name in _SUMS:
        both = old[name] + new[name]
        made[name] = np.where(np.isnan(old[name]), new[name], np.where(np.isnan(new[name]), old[name], both))
    return made


def none_kept(symbols: Array, _starts: Array) -> tuple[Array, Array]:
    """Return that nothing is kept yet."""
    return _nothing(len(symbols))


def of_history(columns: Columns) -> list[Minute]:
    """Return the minutes of ticks given whole, in one fold: what the kept bars must equal."""
    found = trades(canonical(columns))
    return to_records(fold(found, late_counts(found, {}), none_kept, lambda symbol_id, start_ns: None))
