"""The pump: a thread that gathers what is new on the tape (last trades, changed bars) and hands it over in pieces.

It sees ticks by a subscription, which goes on while the tape is away, and bars as the tape itself follows them, so what
is shown live is what history says. It gathers for longer where gathering takes long, so it never takes more than a
part of the processor however fast the ticks come.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onetape.errors import OnetapeError
from onetape.record import Bar, Record, Tick
from onetape.store.interval import parse
from onetape.web.rows import MS_NS, BarRow, Last, bar_row, bar_rows

if TYPE_CHECKING:
    from onetape.live.bar_follower import BarFollower
    from onetape.steady import SteadyTape
    from onetape.tape import Tape

_log = logging.getLogger("onetape.web")

#: Between two gatherings, s: at least, at most; and how many times as long as the last one took.
_PAUSE_S, _PAUSE_MAX_S, _PAUSE_TIMES = 0.002, 0.05, 3
#: Followers look this often even if no tick was told of, s: so that positions keep up.
_LOOK_S = 1.0
_QUEUE_RECORDS = 65_536
#: Bars handed over at once.
_TAKES_MAX = 8


@dataclass
class News:
    """What came since the last piece: ticks by symbol (how many, the last), changed bars by interval and symbol, and up
    to which position each interval's bars are told. `anew`: the tape is another one; what was told may not be on it.
    """

    ticks: dict[str, tuple[int, Last]] = field(default_factory=dict)
    bars: dict[str, dict[str, list[BarRow]]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    anew: bool = False

    def __bool__(self) -> bool:
        return bool(self.ticks or self.bars or self.positions or self.anew)


class _Symbol:
    """What was gathered of one symbol."""

    __slots__ = ("count", "last", "max_ns", "min_ns")

    def __init__(self) -> None:
        self.count, self.last = 0, Last()
        self.min_ns, self.max_ns = 2**63, -1


class Pump:
    """Hands `News` to `deliver`, in its own thread, from start() to close()."""

    def __init__(self, tape: SteadyTape, deliver: Callable[[News], None]) -> None:
        self._tape = tape
        self._deliver = deliver
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._closed = threading.Event()
        self._gathered: dict[str, _Symbol] = {}
        self._wanted: dict[str, set[str]] = {}
        self._positions: dict[str, int] = {}
        self._followers: dict[str, tuple[BarFollower, frozenset[str]]] = {}
        self._of: Tape | None = None
        self._subscription: Any = None
        self._thread: threading.Thread | None = None
        self.trouble: str | None = None

    def start(self) -> None:
        """Begin."""
        self._subscription = self._tape.subscribe(self._on_record, None, "drop_oldest", _QUEUE_RECORDS)
        self._thread = threading.Thread(target=self._run, name="onetape-web-pump", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; the thread is gone when this returns."""
        self._closed.set()
        self._event.set()
        if self._subscription is not None:
            self._subscription.close()
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
        self._event.set()
        return position

    def leave(self, symbol: str, interval: str) -> None:
        """Tell of them no more."""
        with self._lock:
            wanted = self._wanted.get(interval)
            if wanted is not None:
                wanted.discard(symbol)
                if not wanted:
                    del self._wanted[interval]

    def _on_record(self, record: Record) -> None:
        with self._lock:
            found = self._gathered.get(record.symbol)
            if found is None:
                found = self._gathered[record.symbol] = _Symbol()
            if isinstance(record, Tick):
                found.count += 1
                found.last.take(record)
            at = record.ts_start_ns if isinstance(record, Bar) else record.ts_event_ns
            if at < found.min_ns:
                found.min_ns = at
            if at > found.max_ns:
                found.max_ns = at
        if not self._event.is_set():
            self._event.set()

    def _run(self) -> None:
        looked = 0.0
        while not self._closed.is_set():
            self._event.wait(_LOOK_S)
            if self._closed.is_set():
                break
            self._event.clear()
            began = time.monotonic()
            with self._lock:
                gathered, self._gathered = self._gathered, {}
                wanted = {interval: frozenset(symbols) for interval, symbols in self._wanted.items()}
            news = News({name: (one.count, one.last) for name, one in gathered.items()})
            try:
                behind = self._bars(news, gathered, wanted, began - looked >= _LOOK_S)
                self.trouble = None
            except OnetapeError as error:
                behind = False
                self._release(str(error))
            except Exception as error:  # noqa: BLE001  (a thread has nobody above it: it goes on, and says why)
                behind = False
                _log.exception("changed bars could not be asked for")
                self._release(repr(error))
            if began - looked >= _LOOK_S:
                looked = began
            if news:
                self._deliver(news)
            if behind:
                self._event.set()
            took = time.monotonic() - began
            self._closed.wait(min(_PAUSE_MAX_S, max(_PAUSE_S, took * _PAUSE_TIMES)))
        self._release(None)

    def _bars(self, news: News, gathered: dict[str, _Symbol], wanted: dict[str, frozenset[str]], look: bool) -> bool:
        """Add the bars that changed; return whether there are more than were taken."""
        tape = self._tape.tape
        if tape is not self._of:
            self._release(None)
            self._of = tape
            if tape is not None:
                self._compare(self._tape.head, news)
        if tape is None:
            self._without(news, gathered, wanted)
            return False
        behind = False
        for interval in [interval for interval in self._followers if interval not in wanted]:
            self._followers.pop(interval)[0].close()
            with self._lock:
                if interval not in self._wanted:
                    self._positions.pop(interval, None)
        for interval, symbols in wanted.items():
            fresh = self._adopt(tape, interval, symbols)
            if not (fresh or look) and symbols.isdisjoint(gathered):
                continue
            follower, followed = self._followers[interval]
            for _ in range(_TAKES_MAX):
                bars = follower.take(0.0)
                if not bars:
                    break
                by_symbol = news.bars.setdefault(interval, {})
                for bar in bars:
                    by_symbol.setdefault(bar.symbol, []).append(bar_row(bar))
            else:
                behind = True
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
        self._followers[interval] = made, symbols
        if kept is not None:
            kept[0].close()
        return True

    def _compare(self, head: int | None, news: News) -> None:
        """Notice a tape that is not the one that was there before."""
        with self._lock:
            for interval, position in self._positions.items():
                if head is not None and position > head:
                    self._positions[interval] = head
                    news.anew = True

    def _without(self, news: News, gathered: dict[str, _Symbol], wanted: dict[str, frozenset[str]]) -> None:
        """Add what memory says of the bars that ticks fell into while the tape is away."""
        for interval, symbols in wanted.items():
            length = parse(interval).ns or 1
            for symbol in symbols & gathered.keys():
                seen = gathered[symbol]
                start = max(0, seen.min_ns - length)
                table = self._tape.bars(symbol, interval, start, seen.max_ns + 1)
                rows = [row for row in bar_rows(table) if (row[0] + 1) * MS_NS > start]
                if rows:
                    news.bars.setdefault(interval, {})[symbol] = rows

    def _release(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self.trouble:
            _log.warning("bars are not followed: %s; tried again", trouble)
            self.trouble = trouble
        self._of = None
        for follower, _ in self._followers.values():
            with contextlib.suppress(Exception):
                follower.close()
        self._followers.clear()
