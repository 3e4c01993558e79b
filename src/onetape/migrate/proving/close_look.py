"""The close look: of a few symbols and days that differ, which ticks each side has that another lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onetape import clock
from onetape.migrate.proving.conservation import NEW, OLD, TAPE, Balance
from onetape.migrate.proving.day_sums import Days, Hashes, Ints, Key, as_arrays, row_hashes

_NAMED = 5


class _Ticks(NamedTuple):
    hashes: Hashes
    times: Ints
    prices: Any
    sizes: Any


class CloseLook:
    """Keeps the ticks of some symbols and days of one side: 32 bytes a tick."""

    def __init__(self, days: Days, keys: Collection[Key], until_ns: int | None = None) -> None:
        self._days, self._until_ns = days, until_ns
        self._by_symbol: dict[str, set[int]] = {}
        for symbol, day in keys:
            self._by_symbol.setdefault(symbol, set()).add(day)
        self._kept: dict[Key, list[_Ticks]] = {}

    def add(self, symbols: Sequence[str], columns: Mapping[str, Any]) -> None:
        """Add ticks as DaySums.add() takes them; others than those wanted are let go."""
        if not len(symbols):
            return
        wanted = np.fromiter((symbol in self._by_symbol for symbol in symbols), bool, len(symbols))
        if not wanted.any():
            return
        times, values = as_arrays(columns)
        names = np.asarray(symbols, object)
        if self._until_ns is not None:
            wanted &= times < self._until_ns
        names, times, values = names[wanted], times[wanted], values[:, wanted]
        days, _minutes = self._days.of(times)
        hashes = row_hashes(times // 1_000_000, values)
        for key in dict.fromkeys(zip(names.tolist(), days.tolist(), strict=True)):
            symbol, day = key
            if day in self._by_symbol[symbol]:
                here = (names == symbol) & (days == day)
                part = _Ticks(hashes[here], times[here], values[0][here], values[1][here])
                self._kept.setdefault(key, []).append(part)

    def ticks(self, key: Key) -> _Ticks:
        """Return what was kept of a symbol and day."""
        kept = self._kept.get(key)
        if not kept:
            return _Ticks(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0), np.empty(0))
        return _Ticks(*map(np.concatenate, zip(*kept, strict=True)))


def compare(
    sides: Mapping[str, CloseLook], key: Key, pruned: Iterable[tuple[int, int]] = ()
) -> tuple[Balance, tuple[str, ...]]:
    """Return what one symbol and day amount to, tick by tick, and in words what differs.

    `pruned`: spans of time (ns) that the tape's retention has cleared: what it lacks there is not lost.
    """
    ticks = {side: look.ticks(key) for side, look in sides.items()}
    every = np.unique(np.concatenate([one.hashes for one in ticks.values()]))
    count = {side: np.bincount(np.searchsorted(every, one.hashes), minlength=len(every)) for side, one in ticks.items()}
    old, new = count[OLD], count[NEW]
    tape = count.get(TAPE)
    on_tape = np.zeros_like(old) if tape is None else tape
    told: list[str] = []
    # Where the old keys no longer have a tick (a hash written since, an entry expired), new and tape vouch for each
    # other: a surplus that both have is older than what old shows now.
    lacking = {NEW: np.maximum(0, old - new)}
    extra = np.zeros_like(new)
    double = {NEW: np.where((old > 0) | (on_tape > 0), np.maximum(0, new - np.maximum(old, on_tape)), 0)}
    if tape is not None:
        kept = ~_cleared(every, ticks, pruned)
        lacking[TAPE] = np.maximum(0, old - tape) * kept
        extra = np.where((old == 0) & (tape == 0), new, 0) * kept
        double[TAPE] = np.where((old > 0) | (new > 0), np.maximum(0, tape - np.maximum(old, new)), 0)
    for side, missing in lacking.items():
        if missing.any():
            told.append(f"{side} lacks {_named(every, missing, [ticks[OLD], ticks[NEW]])}")
    for side, twice in double.items():
        if twice.any():
            told.append(f"{side} holds too often {_named(every, twice, [ticks[side]])}")
    if extra.any():
        told.append(f"new holds what neither old nor tape has, {_named(every, extra, [ticks[NEW]])}")
    if any(one.any() for one in lacking.values()):
        return Balance.LOST, tuple(told)
    if told:
        return (Balance.DOUBLED if any(one.any() for one in double.values()) else Balance.EXTRA), tuple(told)
    more = {side: int(np.maximum(0, counts - old).sum()) for side, counts in count.items() if side != OLD}
    told = [f"{side} holds {number:,} that old no longer has" for side, number in more.items() if number]
    if tape is not None and (gone := int(np.maximum(0, np.maximum(old, new) - tape).sum())):
        told.append(f"retention has removed {gone:,} from the tape")
    return (Balance.MORE if told else Balance.EQUAL), tuple(told)


def _cleared(every: Hashes, ticks: Mapping[str, _Ticks], pruned: Iterable[tuple[int, int]]) -> Any:
    """Return for each hash whether its tick is of a time that the tape's retention has cleared."""
    out = np.zeros(len(every), bool)
    for start_ns, end_ns in pruned:
        for one in (ticks[OLD], ticks[NEW]):
            inside = (one.times >= start_ns) & (one.times < end_ns)
            out[np.searchsorted(every, one.hashes[inside])] = True
    return out


def _named(every: Hashes, counts: Any, where: Sequence[_Ticks]) -> str:
    """Return how many ticks those are, and the first of them by time, price and size."""
    total = int(counts.sum())
    found: dict[int, tuple[int, float, float]] = {}
    wanted = every[counts > 0]
    for one in where:
        for place in np.flatnonzero(np.isin(one.hashes, wanted)).tolist():
            found.setdefault(int(one.hashes[place]), (int(one.times[place]), one.prices[place], one.sizes[place]))
    first = sorted(found.values(), key=lambda tick: tick[0])[:_NAMED]
    told = ", ".join(
        clock.to_text(time)
        + ("" if np.isnan(price) else f" price {price:.15g}")
        + ("" if np.isnan(size) else f" size {size:.15g}")
        for time, price, size in first
    )
    rest = "" if len(found) <= _NAMED else ", …"
    return f"{total:,} tick{'s' if total != 1 else ''}: {told}{rest}"


__all__ = ["CloseLook", "compare"]
