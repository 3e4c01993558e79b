"""The board: last price, change, rate and lag of every symbol, kept up by following the tape; one row a symbol."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from onetape.clock import now_ns
from onetape.record import MINUTE_NS, OWN_SYMBOLS, Cancel, Tick

if TYPE_CHECKING:
    from onetape.tape import Tape

#: A rate is of about this many of the last seconds.
RATE_S = 5.0
_DAY_NS = 86_400_000_000_000
#: How far back the last trade is looked for behind quotes, in records.
_BEHIND_QUOTES = 200


class Row(msgspec.Struct, frozen=True):
    """One symbol. change: last price minus the session's open where its ticks carry one, else minus the UTC day's first
    trade; None before there is one. rate: ticks a second over the last seconds. lag_ms: the newest tick's arrival minus
    its event time. age_s: since its event time.
    """

    symbol: str
    price: float | None
    change: float | None
    change_pct: float | None
    bid: float | None
    ask: float | None
    rate: float
    lag_ms: float | None
    age_s: float
    ticks: int


class _Kept:
    __slots__ = ("counted", "first_until_ns", "lag_ms", "opened", "opened_day", "rate", "seen", "tick")

    def __init__(self, tick: Tick) -> None:
        self.tick = tick
        self.seen = 0
        self.counted = 0
        self.rate = 0.0
        self.lag_ms = None if tick.ts_recv_ns is None else (tick.ts_recv_ns - tick.ts_event_ns) / 1e6
        self.opened: float | None = None
        self.opened_day = -1
        self.first_until_ns = 0  # a trade of the day before it may be its first


class Board:
    """Follows a tape from now on. `look()` takes what came and returns the rows; call it at the rate of the screen."""

    def __init__(
        self,
        tape: Tape,
        symbols: Iterable[str] | None = None,
        *,
        clock: Callable[[], int] = now_ns,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tape, self._clock, self._timer = tape, clock, timer
        self._only = None if symbols is None else set(symbols)
        self._follower = tape.follow(None if symbols is None else list(symbols))
        self._kept = {
            symbol: _Kept(tick if tick.price is not None else self._newest(symbol) or tick)
            for symbol, tick in tape.latest().items()
            if self._shown(symbol)
        }
        self._looked_s = timer()
        self._watched_s = 0.0

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop following."""
        self._follower.close()

    @property
    def behind(self) -> int:
        """How many positions of the tape were not taken yet."""
        return self._follower.lag

    def look(self) -> list[Row]:
        """Take all records that came since the last look, and return the rows by symbol."""
        taken_back: set[str] = set()
        records = self._follower.take(0.0)
        while records:
            now = self._clock()
            for record in records:
                if isinstance(record, Tick) and self._shown(record.symbol):
                    self._take(record, now)
                elif isinstance(record, Cancel) and record.symbol in self._kept:
                    taken_back.add(record.symbol)
            records = self._follower.take(0.0)
        for symbol in taken_back:
            self._look_again(symbol)
        now_s = self._timer()
        passed = now_s - self._looked_s
        if passed > 0:
            self._looked_s = now_s
            self._watched_s += passed
            weight = passed / max(passed, min(self._watched_s, RATE_S))
            for kept in self._kept.values():
                kept.rate += (kept.counted / passed - kept.rate) * weight
                kept.counted = 0
        return [self._row(symbol, kept) for symbol, kept in sorted(self._kept.items())]

    def _shown(self, symbol: str) -> bool:
        return not symbol.startswith(OWN_SYMBOLS) and (self._only is None or symbol in self._only)

    def _take(self, tick: Tick, now: int) -> None:
        kept = self._kept.get(tick.symbol)
        if kept is None:
            kept = self._kept[tick.symbol] = _Kept(tick)
        kept.seen += 1
        kept.counted += 1
        kept.lag_ms = ((tick.ts_recv_ns or now) - tick.ts_event_ns) / 1e6
        if tick.price is not None and tick.ts_event_ns < kept.first_until_ns:
            kept.opened_day = -1
        if tick.ts_event_ns >= kept.tick.ts_event_ns:
            kept.tick = tick if tick.price is not None else _quoted(kept.tick, tick)

    def _row(self, symbol: str, kept: _Kept) -> Row:
        tick = kept.tick
        opened = tick.open if tick.open is not None else self._opened(symbol, kept)
        change = None if tick.price is None or not opened else tick.price - opened
        return Row(
            symbol,
            tick.price,
            change,
            None if change is None or not opened else 100 * change / abs(opened),
            tick.bid,
            tick.ask,
            kept.rate,
            kept.lag_ms,
            max(0.0, (self._clock() - tick.ts_event_ns) / 1e9),
            kept.seen,
        )

    def _opened(self, symbol: str, kept: _Kept) -> float | None:
        """Return the price of the first trade of the newest tick's UTC day; asked again where one may be before it."""
        day = kept.tick.ts_event_ns // _DAY_NS
        if day != kept.opened_day:
            bars = self._tape.bar_list(symbol, "1min", day * _DAY_NS, (day + 1) * _DAY_NS)
            kept.opened = bars[0].open if bars else None
            kept.first_until_ns = bars[0].ts_start_ns + MINUTE_NS if bars else (day + 1) * _DAY_NS
            kept.opened_day = day
        return kept.opened

    def _newest(self, symbol: str) -> Tick | None:
        """Return the last trade with the newest quote, as the tape has them now."""
        found: Tick | None = None
        for tick in self._tape.recent(symbol, _BEHIND_QUOTES):
            found = tick if found is None or tick.price is not None else _quoted(found, tick)
        return found

    def _look_again(self, symbol: str) -> None:
        """Take a symbol as the tape has it: something of it was taken back, maybe what is shown."""
        kept, newest = self._kept[symbol], self._newest(symbol)
        kept.opened_day = -1
        if newest is not None:
            kept.tick = newest
        else:
            del self._kept[symbol]


def _quoted(tick: Tick, quote: Tick) -> Tick:
    """Return the last trade with a newer quote."""
    return msgspec.structs.replace(
        tick,
        ts_event_ns=quote.ts_event_ns,
        bid=quote.bid if quote.bid is not None else tick.bid,
        ask=quote.ask if quote.ask is not None else tick.ask,
        open=quote.open if quote.open is not None else tick.open,
    )
