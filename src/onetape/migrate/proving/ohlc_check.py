"""The OHLC check: bars that the legacy system kept, held against the ticks that it kept.

A difference is one of the data, in old already: it says that the system's bars and ticks never agreed, not that a
migration lost something.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date

from onetape import clock
from onetape.migrate.proving import exact
from onetape.migrate.proving.conservation import OLD, Finding
from onetape.migrate.proving.day_sums import Key, Sums
from onetape.migrate.report import key_text
from onetape.record import Bar, interval_ns
from onetape.tape import Tape

_DAY_NS = 86_400 * 10**9
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DAILY_MAX = 200_000
#: Sums of floats that others made in some order of theirs differ from the exact one by less than this part of it.
_VOLUME_PART = 1e-9


class OhlcCheck:
    """Takes the bars of the old keys. `checked`: bars that ticks could be found for, `unchecked`: the others."""

    def __init__(self, tape: Tape | None) -> None:
        self._tape = tape
        self._daily: list[tuple[bytes, str, Bar]] = []
        self.checked = self.unchecked = 0

    def take(self, key: bytes, symbol: str, bars: list[Bar]) -> Iterator[Finding]:
        """Yield what differs in the bars of one key that are shorter than a day; daily ones are kept for daily()."""
        shorter = [bar for bar in bars if bar.interval != "1d"]
        for bar in bars:
            if bar.interval != "1d":
                continue
            if len(self._daily) < _DAILY_MAX:
                self._daily.append((key, symbol, bar))
            else:
                self.unchecked += 1
        for interval in dict.fromkeys(bar.interval for bar in shorter):
            yield from self._shorter(key, symbol, [bar for bar in shorter if bar.interval == interval])

    def _shorter(self, key: bytes, symbol: str, bars: list[Bar]) -> Iterator[Finding]:
        if self._tape is None:
            self.unchecked += len(bars)
            return
        interval = bars[0].interval
        first, last = min(bar.ts_start_ns for bar in bars), max(bar.ts_start_ns for bar in bars)
        made = self._tape.bar_list(symbol, interval, first, last + interval_ns(interval))
        own = {bar.ts_start_ns: bar for bar in made if bar.source is None}
        for bar in bars:
            ticks = own.get(bar.ts_start_ns)
            if ticks is None:
                self.unchecked += 1
                continue
            self.checked += 1
            wrong = [
                f"{name} {getattr(bar, name):.15g} stored, {getattr(ticks, name):.15g} in the ticks"
                for name in ("open", "high", "low", "close")
                if getattr(bar, name) != getattr(ticks, name)
            ]
            if bar.volume is not None and ticks.volume is not None and _apart(bar.volume, ticks.volume):
                wrong.append(f"volume {bar.volume:.15g} stored, {ticks.volume:.15g} in the ticks")
            if wrong:
                yield _finding(key, symbol, bar, clock.to_text(bar.ts_start_ns), wrong)

    def daily(self, sums: Mapping[Key, Sums]) -> Iterator[Finding]:
        """Yield what differs in the daily bars, held against the sums of the old ticks of the same date."""
        for key, symbol, bar in self._daily:
            day = bar.ts_start_ns // _DAY_NS + _EPOCH_ORDINAL
            ticks = sums.get((symbol, day))
            if ticks is None or ticks.opened is None or ticks.closed is None:
                self.unchecked += 1
                continue
            self.checked += 1
            wrong = []
            # Of trades in one ms nobody can say which was first: any of their prices will do.
            for name, low, high in (
                ("open", *ticks.opened[1:]), ("high", ticks.high, ticks.high),
                ("low", ticks.low, ticks.low), ("close", *ticks.closed[1:]),
            ):  # fmt: skip
                stored = getattr(bar, name)
                if not low <= stored <= high:
                    wrong.append(f"{name} {stored:.15g} stored, {low:.15g} in the ticks")
            if bar.volume is not None and ticks.sized == ticks.trades:
                volume = float(exact.number(ticks.volume))
                if _apart(bar.volume, volume):
                    wrong.append(f"volume {bar.volume:.15g} stored, {volume:.15g} in the ticks")
            if wrong:
                yield _finding(key, symbol, bar, date.fromordinal(day).isoformat(), wrong)


def _apart(stored: float, summed: float) -> bool:
    return abs(stored - summed) > _VOLUME_PART * max(abs(stored), abs(summed))


def _finding(key: bytes, symbol: str, bar: Bar, when: str, wrong: list[str]) -> Finding:
    told = f"{key_text(key)}: {bar.interval} bar of {when}: {'; '.join(wrong)}"
    return Finding("ohlc", symbol, when[:10], OLD, told)


__all__ = ["OhlcCheck"]
