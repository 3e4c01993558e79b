"""Contract days: what each contract of a continuous future came to on each trading day, and what a roll cost."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np

from onetape.record import interval_ns
from onetape.store.continuous import Definition
from onetape.store.rolls import Roll, Switch, day_start_ns, trading_day

if TYPE_CHECKING:
    from onetape.tape import Tape

_DAY = timedelta(days=1)
_MINUTE_NS = 60_000_000_000
_DAY_NS = 1440 * _MINUTE_NS
#: Days of one contract read at once: few reads for a year, and no more than a month too many.
_WINDOW_DAYS = 32
#: Bars whose volumes are summed where the tape has no ticks, in the order in which they are looked for.
_GIVEN = ("1min", "1h", "1d")
#: How far back a common trade may lie.
_PRICED_DAYS = 5


class Volumes:
    """The volume of each contract's trading days: sums of its bars' volumes, 0 where there is none."""

    def __init__(self, tape: Tape, definition: Definition, symbols: list[str]) -> None:
        self._tape, self._definition, self._symbols = tape, definition, symbols
        self._days: dict[tuple[int, date], float] = {}
        self._read: set[tuple[int, int]] = set()

    def __call__(self, contract: int, day: date) -> float:
        window = day.toordinal() // _WINDOW_DAYS
        if (contract, window) not in self._read:
            self._read.add((contract, window))
            self._load(contract, date.fromordinal(max(1, window * _WINDOW_DAYS)))
        return self._days.get((contract, day), 0.0)

    def _load(self, contract: int, first: date) -> None:
        edges = [day_start_ns(self._definition, first + n * _DAY) for n in range(_WINDOW_DAYS + 1)]
        symbol = self._symbols[contract]
        # A trading day begins on some whole minute: the longest bars that all days of the window are made of.
        longest = next(text for text in ("1h", "30min", "15min", "5min", "1min") if _fits(text, edges))
        for interval in dict.fromkeys((longest, *_GIVEN)):
            found = self._tape.bar_list(symbol, interval, max(0, edges[0]), max(0, edges[-1]))
            if interval != longest:  # the tape's own would reach over the end of a trading day
                found = [bar for bar in found if bar.source is not None]
            if found:
                break
        starts = np.array([bar.ts_start_ns for bar in found], dtype="<i8")
        volumes = np.array([bar.volume or 0.0 for bar in found])
        places = np.searchsorted(np.array(edges), starts, side="right") - 1
        sums = np.bincount(places, volumes, _WINDOW_DAYS) if len(places) else np.zeros(_WINDOW_DAYS)
        for n in np.flatnonzero(sums).tolist():
            self._days[contract, first + n * _DAY] = float(sums[n])


def _fits(interval: str, edges: list[int]) -> bool:
    return all(edge % interval_ns(interval) == 0 for edge in edges)


class OpenInterests:
    """The open interest of each contract at the end of trading days: the last that a tick told by then, or None."""

    def __init__(self, tape: Tape, definition: Definition, symbols: list[str]) -> None:
        self._tape, self._definition, self._symbols = tape, definition, symbols
        self._last: dict[int, dict[date, float]] = {}

    def __call__(self, contract: int, day: date) -> float | None:
        if contract not in self._last:
            self._last[contract] = self._load(self._symbols[contract])
        told = self._last[contract]
        if day in told:
            return told[day]
        return told[max(before)] if (before := [one for one in told if one < day]) else None

    def _load(self, symbol: str) -> dict[date, float]:
        table = self._tape.read(symbol, columns=["ts_event_ns", "open_interest"])
        table = table.filter(table["open_interest"].is_valid())
        times = table["ts_event_ns"].to_numpy()
        values = table["open_interest"].to_numpy()
        found: dict[date, float] = {}
        at = 0
        while at < len(times):
            day = trading_day(self._definition, int(times[at]))
            at = int(np.searchsorted(times, day_start_ns(self._definition, day + _DAY)))
            found[day] = float(values[at - 1])
        return found


def priced(tape: Tape, definition: Definition, symbols: list[str], switch: Switch) -> Roll:
    """Return a roll with its gap: the one declared, else that of the last bar before it that both contracts have."""
    old, new = symbols[switch.old], symbols[switch.new]
    declared = definition.gaps.get(definition.contracts[switch.new].symbol)
    made = Roll(definition.name, switch.ts_ns, old, new, switch.why, declared)
    if declared is not None:
        return made
    for interval, days in (("1min", 1), ("1min", _PRICED_DAYS), ("1h", _PRICED_DAYS), ("1d", _PRICED_DAYS)):
        start_ns, last_ns = switch.ts_ns - days * _DAY_NS, switch.ts_ns - interval_ns(interval)
        closes = [
            {bar.ts_start_ns: bar.close for bar in tape.bar_list(symbol, interval, start_ns, last_ns + 1)}
            for symbol in (old, new)
        ]
        common = closes[0].keys() & closes[1].keys()
        if not common and all(closes) and days == _PRICED_DAYS:
            return made  # both have bars of this length, but never at the same time: longer ones would only hide it
        if common:
            at = max(common)
            return Roll(
                definition.name,
                switch.ts_ns,
                old,
                new,
                switch.why,
                closes[1][at] - closes[0][at],
                closes[0][at],
                closes[1][at],
                at,
            )
    return made
