"""The pump: a thread that gathers what is new on the tape (last trades, changed bars) and hands it over in pieces.

Bars come as the tape itself follows them, so what is shown live is what history says. It gathers for longer where
gathering takes long, so it never takes more than a part of the processor however fast the ticks come. While the tape is
away, it looks at what memory has of the symbols that are wanted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onetape.errors import OnetapeError
from onetape.record import Tick
from onetape.store import query
from onetape.store.interval import parse
from onetape.web.rows import BarRow, bar_row, bar_rows, last_of
from onetape.web.tail import Tail, Told, open_tail

if TYPE_CHECKING:
    from onetape.live.bar_follower import BarFollower
    from onetape.steady import SteadyTape
    from onetape.tape import Tape

_log = logging.getLogger("onetape.web")

#: Between two gatherings, s: at least, at most; and how many times as long as the last one took.
_PAUSE_S, _PAUSE_MAX_S, _PAUSE_TIMES = 0.002, 0.05, 3
#: Followers look this often even if no tick was told of, s: so that positions keep up.
_LOOK_S = 1.0
#: It is seen this soon that the tape is away, is back, or is another, s; memory is looked at as often.
_NOTICE_S, _POLL_S = 0.25, 0.05


@dataclass
class News:
    """What came since the last piece: ticks by symbol (how many, the last), changed bars by interval and symbol, and up
    to which position each interval's bars are told. `anew`: the tape is another one; what was told may not be on it.
    """

    ticks: Told = field(default_factory=dict)
    bars: dict[str, dict[str, list[BarRow]]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    anew: bool = False

    def __bool__(self) -> bool:
        return bool(self.ticks or self.bars or self.positions or self.anew)


class Pump:
    """Hands `News` to `deliver`, in its own thread, from start() to close()."""

    def __init__(self, tape: SteadyTape, deliver: Callable[[News], None]) -> None:
        self._tape = tape
        self._deliver = deliver
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._wanted: dict[str, set[str]] = {}
        self._positions: dict[str, int] = {}
        self._followers: dict[str, tuple[BarFollower, frozenset[str]]] = {}
        self._of: Tape | None = None
        self._tail: Tail | None = None
        self._tail_position: int | None = None
        self._seen: dict[str, Tick] = {}
        self._seen_ns: dict[str, int] = {}
        self._thread: threading.Thread | None = None
        self.trouble: str | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="onetape-web-pump", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; the thread is gone when this returns."""
        self._closed.set()
        if self._tail is not None:
            self._tail.poke()
        if self._thread is not None:
            self._thread.join(5)

    def want(self, symbol: str, interval: str) -> int | None:
        """Tell of the bars of a symbol from now on; return the position behind which all changes will be told."""
        with self._lock:
            position: int | None = self._tape.head  # inside the lock: not before what was told already
            self._wanted.setdefault(interval, set()).add(symbol)
            if position is not None:
                known = self._positions.get(interval)
                self._positions[interval] = position if known is None else min(known, position)
        return position

    def leave(self, symbol: str, interval: str) -> None:
        """Tell of them no more."""
        with self._lock:
            wanted = self._wanted.get(interval)
            if wanted is not None:
                wanted.discard(symbol)
                if not wanted:
                    del self._wanted[interval]

    def _run(self) -> None:
        looked = 0.0
        behind = False
        while not self._closed.is_set():
            news = News()
            try:
                news.ticks = self._ticks(news, 0.0 if behind else _NOTICE_S)
                began = time.monotonic()
                look = began - looked >= _LOOK_S
                behind = self._bars(news, look or behind)
                self.trouble = None
            except OnetapeError as error:
                began, look, behind = time.monotonic(), True, False
                self._release(str(error))
            except Exception as error:  # noqa: BLE001  (a thread has nobody above it: it goes on, and says why)
                began, look, behind = time.monotonic(), True, False
                _log.exception("what is new on the tape could not be asked for")
                self._release(repr(error))
            if look:
                looked = began
            if news:
                self._deliver(news)
            took = time.monotonic() - began
            self._closed.wait(_NOTICE_S if self.trouble else min(_PAUSE_MAX_S, max(_PAUSE_S, took * _PAUSE_TIMES)))
        self._release(None)

    def _ticks(self, news: News, timeout_s: float) -> Told:
        """Return what came, waiting for it; notice first whether the tape is another one."""
        tape = self._tape.tape
        if tape is not self._of or (self._tail is not None and self._tail.ended):
            self._release(None)
            self._of = tape
            if tape is not None:
                self._compare(self._tape.head, news)
                self._tail = open_tail(tape, self._tail_position)
        if self._tail is None:
            self._closed.wait(_POLL_S)
            return self._remembered()
        found = self._tail.gather(timeout_s)
        self._tail_position = self._tail.position
        return found

    def _remembered(self) -> Told:
        """Return the last of wanted symbols that memory has something new of."""
        with self._lock:
            wanted = set().union(*self._wanted.values())
        found: Told = {}
        for symbol in wanted:
            tick, before = self._tape.latest(symbol), self._seen.get(symbol)
            if tick is None or tick == before:
                continue
            self._seen[symbol] = tick
            since = -1 if before is None else before.ts_event_ns
            newer = [one for one in self._tape.recent(symbol, 1000) if one.ts_event_ns >= since]
            found[symbol] = len(newer), last_of(newer)
        return found

    def _bars(self, news: News, look: bool) -> bool:
        """Add the bars that changed; return whether there are more than were taken."""
        with self._lock:
            wanted = {interval: frozenset(symbols) for interval, symbols in self._wanted.items()}
        tape = self._of
        if tape is None:
            self._without(news, wanted)
            return False
        behind = False
        for interval in [interval for interval in self._followers if interval not in wanted]:
            self._followers.pop(interval)[0].close()
            with self._lock:
                if interval not in self._wanted:
                    self._positions.pop(interval, None)
        for interval, symbols in wanted.items():
            fresh = self._adopt(tape, interval, symbols)
            if not (fresh or look) and symbols.isdisjoint(news.ticks):
                continue
            follower, followed = self._followers[interval]
            by_symbol: dict[str, list[BarRow]] = {}
            for bar in follower.take(0.0):
                by_symbol.setdefault(bar.symbol, []).append(bar_row(bar))
            if by_symbol:
                news.bars[interval] = by_symbol
            behind |= follower.position < (self._tail_position or 0)
            with self._lock:
                # Of a symbol that was wanted meanwhile, nothing is told up to here: it is followed from further back.
                if self._wanted.get(interval) and self._wanted[interval] <= followed:
                    self._positions[interval] = news.positions[interval] = follower.position
        return behind

    def _adopt(self, tape: Tape, interval: str, symbols: frozenset[str]) -> bool:
        """Follow these symbols' bars from where all that was told stands; return whether that is new."""
        kept = self._followers.get(interval)
        if kept is not None and symbols <= kept[1] and len(kept[1]) <= 2 * len(symbols) + 8:
            return False
        with self._lock:
            position = self._positions.get(interval)
        made = tape.follow_bars(symbols, interval, from_seq=position)
        query.keep_tail(made._connection)  # it is asked many times a second, and only reads
        self._followers[interval] = made, symbols
        if kept is not None:
            kept[0].close()
        return True

    def _compare(self, head: int | None, news: News) -> None:
        """Notice a tape that is not the one that was there before."""
        with self._lock:
            if head is not None and self._tail_position is not None and self._tail_position > head:
                self._tail_position = None
            if head is None:
                return
            for interval in self._wanted:
                position = self._positions.get(interval)
                if position is None or position > head:  # begun while the tape was away; or of another tape
                    self._positions[interval] = head
                    news.anew = True

    def _without(self, news: News, wanted: dict[str, frozenset[str]]) -> None:
        """Add what memory says of the bars that ticks fell into while the tape is away."""
        for interval, symbols in wanted.items():
            length = parse(interval).ns or 1
            for symbol in symbols & news.ticks.keys():
                until = max(news.ticks[symbol][1].trade_ns, 0) + 1
                start = max(0, self._seen_ns.get(symbol, until - length) - length)
                rows = bar_rows(self._tape.bars(symbol, interval, start, until))
                if rows:
                    news.bars.setdefault(interval, {})[symbol] = rows
        for symbol, (_, last) in news.ticks.items():
            self._seen_ns[symbol] = max(last.trade_ns, last.quote_ns)

    def _release(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self.trouble:
            _log.warning("bars are not followed: %s; tried again", trouble)
            self.trouble = trouble
        self._of = None
        if self._tail is not None:
            with contextlib.suppress(Exception):
                self._tail.close()
            self._tail = None
        for follower, _ in self._followers.values():
            with contextlib.suppress(Exception):
                follower.close()
        self._followers.clear()
