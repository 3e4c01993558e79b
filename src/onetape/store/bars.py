"""Bars: the one left fold that makes 1-minute bars of trades, live and from history alike.

A trade is a tick with a price. The fold goes over a minute's trades in canonical order and starts at zero, so its
float sums are the same bytes whoever does it. NumPy's bincount adds in array order, one by one: it is that fold
for all minutes at once. (reduceat and sum add in pairs, which gives other bytes.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from onetape.record import MINUTE_NS
from onetape.store.block import Array, Columns, canonical, take


class Minute(NamedTuple):
    """What is kept of one symbol's minute; None where no trade told. Field names are columns of table bar."""

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


Key = tuple[int, int]


def trades(columns: Columns) -> Columns:
    """Return the ticks that are trades, with the columns the fold reads, sorted by symbol, time, seq."""
    price = columns.get("price")
    if price is None:
        return {name: column[:0] for name, column in columns.items()}
    wanted = ("symbol", "ts_event_ns", "seq", "price", "size", "side")
    found = take({name: columns[name] for name in wanted if name in columns}, ~np.isnan(price))
    return take(found, np.lexsort((found["seq"], found["ts_event_ns"], found["symbol"])))


def late_counts(found: Columns, newest_before: Mapping[int, int]) -> dict[Key, int]:
    """Return, by (symbol, minute), how many trades arrived after a later minute had begun.

    `found` as trades() gives it; `newest_before[symbol_id]` is the greatest trade time already on the tape. It
    depends on the order of arrival alone, so a tape read again from its positions gives the same revisions.
    """
    symbols, minutes = found["symbol"], found["ts_event_ns"] // MINUTE_NS
    if not len(symbols):
        return {}
    order = np.lexsort((found["seq"], symbols))
    symbols, minutes = symbols[order], minutes[order]
    ids, group = np.unique(symbols, return_inverse=True)
    before = np.array([newest_before.get(symbol_id, -1) for symbol_id in ids.tolist()]) // MINUTE_NS
    # All symbols at once, each lifted above every minute of the one before it (a minute has 28 bits): so the
    # running maximum starts anew with each.
    lift = group << 28
    lifted = minutes + lift
    newest = np.maximum(before[group] + lift, np.concatenate(([-1], np.maximum.accumulate(lifted)[:-1])))
    late = lifted < newest
    counts: dict[Key, int] = {}
    for symbol_id, minute in zip(symbols[late].tolist(), minutes[late].tolist(), strict=True):
        key = (symbol_id, minute * MINUTE_NS)
        counts[key] = counts.get(key, 0) + 1
    return counts


def fold(
    found: Columns,
    late: Mapping[Key, int],
    kept: Callable[[list[Key]], dict[Key, Minute]],
    history: Callable[[int, int], Columns | None],
) -> list[Minute]:
    """Return the minutes that `found` (as trades() gives it) changes, as they are after it.

    `kept(keys)` gives the minutes already kept. `history(symbol_id, start_ns)` gives ALL trades of a minute that
    late trades fall into, those of `found` included, or None where retention has removed them.
    """
    if not len(found["ts_event_ns"]):
        return []
    keys, starts = _groups(found)
    known = kept(keys)
    ends = [*starts[1:], len(found["ts_event_ns"])]
    again: list[tuple[Key, Columns]] = []
    seeds: dict[Key, Minute] = {}
    straight = np.ones(len(found["ts_event_ns"]), dtype=bool)
    for key, start, end in zip(keys, starts, ends, strict=True):
        old = known.get(key)
        if old is None:
            continue
        first = (int(found["ts_event_ns"][start]), int(found["seq"][start]))
        if first > (old.last_ts, old.last_seq):
            seeds[key] = old
            continue
        straight[start:end] = False
        again.append((key, {name: column[start:end] for name, column in found.items()}))
    made = _sum(take(found, straight) if again else found, seeds)
    for key, part in again:
        whole = history(*key)
        if whole is None:
            made.append(_merge(known[key], _sum(part, {})[0]))
        else:
            made.append(_sum(whole, {})[0]._replace(revision=known[key].revision))
    return [bar._replace(revision=bar.revision + late.get((bar.symbol_id, bar.ts_start_ns), 0)) for bar in made]


def _groups(found: Columns) -> tuple[list[Key], list[int]]:
    symbols, minutes = found["symbol"], found["ts_event_ns"] // MINUTE_NS
    edge = np.ones(len(symbols), dtype=bool)
    edge[1:] = (symbols[1:] != symbols[:-1]) | (minutes[1:] != minutes[:-1])
    starts = np.flatnonzero(edge)
    keys = list(zip(symbols[starts].tolist(), (minutes[starts] * MINUTE_NS).tolist(), strict=True))
    return keys, starts.tolist()


def _sum(found: Columns, seeds: Mapping[Key, Minute]) -> list[Minute]:
    """Fold groups from zero, or from the minute kept in `seeds`."""
    if not len(found["ts_event_ns"]):
        return []
    keys, starts = _groups(found)
    count = len(keys)
    begin = np.array(starts)
    end = np.append(begin[1:], len(found["ts_event_ns"])) - 1
    group = np.repeat(np.arange(count), np.diff(np.append(begin, end[-1] + 1)))
    price = found["price"] + 0.0  # SQLite keeps -0.0 as 0.0; so do bars that are not kept yet
    size = found.get("size", np.full(len(price), np.nan))
    side = found.get("side", np.zeros(len(price), dtype="<i1"))
    known = [seeds.get(key) for key in keys]
    sized = ~np.isnan(size)
    amount = np.where(sized, size, 0.0)

    def total(values: Array, where: Array, name: str) -> list[float | None]:
        seed = [getattr(old, name) if old is not None else None for old in known]
        start = np.array([0.0 if value is None else value for value in seed])
        sums = np.bincount(
            np.concatenate((np.arange(count), group[where])), np.concatenate((start, values[where])), count
        )
        told = np.bincount(group[where], minlength=count)
        return [
            None if value is None and not hits else result
            for value, hits, result in zip(seed, told.tolist(), sums.tolist(), strict=True)
        ]

    volume = total(amount, sized, "volume")
    notional = total(amount * price, sized, "notional")
    sided = sized & (side != 0)
    sold = total(np.where(side < 0, amount, 0.0), sided, "bid_volume")
    bought = total(np.where(side > 0, amount, 0.0), sided, "ask_volume")
    high = np.maximum.reduceat(price, begin).tolist()
    low = np.minimum.reduceat(price, begin).tolist()
    ts, seq = found["ts_event_ns"], found["seq"]
    rows = zip(
        price[begin].tolist(),
        high,
        low,
        price[end].tolist(),
        (end - begin + 1).tolist(),
        ts[begin].tolist(),
        seq[begin].tolist(),
        ts[end].tolist(),
        seq[end].tolist(),
        strict=True,
    )
    made = []
    for i, (first, top, bottom, last, number, first_ts, first_seq, last_ts, last_seq) in enumerate(rows):
        old = known[i]
        if old is not None:
            first, first_ts, first_seq = old.open, old.first_ts, old.first_seq
            top, bottom, number = max(old.high, top), min(old.low, bottom), number + old.trades
        made.append(
            Minute(
                *keys[i],
                first,
                top,
                bottom,
                last,
                volume[i],
                notional[i],
                number,
                sold[i],
                bought[i],
                old.revision if old is not None else 0,
                first_ts,
                first_seq,
                last_ts,
                last_seq,
            )
        )
    return made


def _merge(old: Minute, new: Minute) -> Minute:
    """Join late trades to a minute whose own ticks retention has removed: exact but for the order of its sums."""

    def plus(a: float | None, b: float | None) -> float | None:
        return b if a is None else a if b is None else a + b

    opens = old if (old.first_ts, old.first_seq) <= (new.first_ts, new.first_seq) else new
    closes = old if (old.last_ts, old.last_seq) >= (new.last_ts, new.last_seq) else new
    return old._replace(
        open=opens.open,
        high=max(old.high, new.high),
        low=min(old.low, new.low),
        close=closes.close,
        volume=plus(old.volume, new.volume),
        notional=plus(old.notional, new.notional),
        trades=old.trades + new.trades,
        bid_volume=plus(old.bid_volume, new.bid_volume),
        ask_volume=plus(old.ask_volume, new.ask_volume),
        first_ts=opens.first_ts,
        first_seq=opens.first_seq,
        last_ts=closes.last_ts,
        last_seq=closes.last_seq,
    )


def of_history(columns: Columns) -> list[Minute]:
    """Return the minutes of ticks given whole, in one fold: what the kept bars must equal."""
    found = trades(canonical(columns))
    return fold(found, late_counts(found, {}), lambda keys: {}, lambda symbol_id, start_ns: None)
