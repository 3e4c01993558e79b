"""The service of patterns: it judges bars as they are completed or revised, and learns what came true."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onetape.clock import now_ns
from onetape.errors import ChunkCorrupt, ConfigInvalid, InvalidRecord, OnetapeError, TapeError
from onetape.record import Bar, interval_ns
from onetape.services.patterns import registry
from onetape.services.patterns.detection import PREFIX, Detection, fits, is_one
from onetape.services.patterns.judging import judge_bars
from onetape.services.patterns.learned import PRIOR_LOST, PRIOR_WON, Job, Kind, Learned, learned_at
from onetape.services.patterns.outcomes import HORIZON_BARS, MOVE_ATR, UNDIRECTED_MOVE_ATR

if TYPE_CHECKING:
    from onetape.steady import SteadyTape
    from onetape.tape import Tape

_log = logging.getLogger("onetape.patterns")

Callback = Callable[[Detection], object]

#: How long a look for new bars waits, and how long after an error it is tried again, s.
_LOOK_S, _RETRY_S = 0.5, 1.0
#: Between looks, s: forming bars change with every tick, and only those that are over matter here.
_PACE_S = 0.1
#: Detections kept in memory for when the tape is away.
_NEWEST_MAX = 1000
#: Bars of a symbol judged at once where much is looked back at; and parts of it at the most, since one tick of a wrong
#: year makes a span of decades in which nothing is.
_BARS_AT_ONCE, _PARTS_MAX = 20_000, 64


class PatternService:
    """Follows the bars of symbols, writes what it detects onto the tape, and learns how often that came true.

    symbols: these alone; None is all. intervals: of time. detectors: names or groups of them; None is all. history_s:
    how far back from a symbol's newest record bars are judged at the first start with these symbols and detectors;
    later ones go on where the last one was, or, where retention has removed that, with all that is left. While the
    tape is away nothing is judged, and nothing is missed: it goes on where it was. What cannot be judged of one symbol
    is its own trouble, and is tried again with its next bar. Any number of processes may do this on one tape: a
    detection is there once. Raises ConfigInvalid.
    """

    name = "patterns"

    def __init__(
        self,
        tape: SteadyTape | Tape,
        *,
        symbols: Iterable[str] | None = None,
        intervals: Iterable[str] = ("1min",),
        detectors: Iterable[str] | None = None,
        history_s: float = 5 * 86_400,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self._tape = tape
        self._symbols = None if symbols is None else sorted(set(symbols))
        self._intervals = list(dict.fromkeys(intervals))
        for interval in self._intervals:
            _check_interval(interval)
        if not history_s >= 0:
            raise ConfigInvalid(f"history_s = {history_s}", hint="it is a number of seconds")
        self._which = registry.chosen(detectors)
        chosen = [self._symbols, sorted(detector.number for detector in self._which)]
        self._choice = hashlib.blake2b(repr(chosen).encode(), digest_size=8).hexdigest()
        self._history_ns = round(min(history_s, 1e9) * 1e9)
        self._clock = clock
        self._learned: Learned | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._callbacks: list[Callback] = []
        self._newest: deque[Detection] = deque(maxlen=_NEWEST_MAX)
        self._trouble: dict[str, str] = {}
        self._behind: dict[str, int] = {}
        self._judged = self._made = self._taken_back = 0
        self._lock = threading.Lock()

    async def start(self) -> None:
        """Begin to follow, each interval in a thread of its own. Starting again changes nothing."""
        if self._threads:
            return
        await asyncio.to_thread(self._open)
        self._stopping.clear()
        self._behind = {}
        self._threads = [
            threading.Thread(target=self._run, args=(interval,), name=f"onetape-patterns-{interval}", daemon=True)
            for interval in self._intervals
        ]
        for thread in self._threads:
            thread.start()

    async def stop(self) -> None:
        """End; what was judged is on the tape, and what was not is judged after the next start."""
        self._stopping.set()
        threads, self._threads = self._threads, []
        for thread in threads:
            await asyncio.to_thread(thread.join)
        with self._lock:
            learned, self._learned = self._learned, None
        if learned is not None:
            learned.close()

    def status(self) -> dict[str, Any]:
        """Return how it is, as plain data: what runs, which detectors are missing, counts since the start, trouble.

        `behind` is, by interval, how many positions of the tape were not looked at yet.
        """
        trouble = [*self._trouble.values()]
        if self._learned is not None and self._learned.trouble:
            trouble.append(self._learned.trouble)
        return {
            "running": bool(self._threads) and all(thread.is_alive() for thread in self._threads),
            "symbols": self._symbols,
            "intervals": self._intervals,
            "detectors": len(self._which),
            "missing": registry.missing(),
            "behind": dict(self._behind),
            "judged": self._judged,
            "made": self._made,
            "taken_back": self._taken_back,
            "trouble": "; ".join(trouble) or None,
        }

    def recent(self, limit: int = 100, symbol: str | None = None) -> list[Detection]:
        """Return the newest `limit` detections (of a symbol), the newest bar first.

        They are read from the tape, so they are those of all processes; while it is away, those made since the start.
        """
        if limit <= 0:
            return []
        found: list[Detection] = []
        tape = self._usable()
        try:
            if tape is None:
                found = [d for d in list(self._newest) if symbol is None or d.symbol == symbol]
            else:
                names = [PREFIX + (tape.symbol_of(symbol) or symbol)] if symbol is not None else _names(tape)
                for name in names:
                    found += [Detection.from_tick(tick) for tick in tape.recent(name, limit) if is_one(tick)]
        except OnetapeError:
            found = [d for d in list(self._newest) if symbol is None or d.symbol == symbol]
        found.sort(key=lambda d: (d.ts_ns, d.symbol, d.interval, d.number), reverse=True)
        return found[:limit]

    def statistics(self) -> dict[str, Any]:
        """Return what was learned, as plain data: of each detector, interval and direction how often it came true.

        `total` were judged, `rate` of them came true; `confidence` is drawn towards one half while little is known, and
        is what the next such detection carries. Raises TapeUnusable.
        """
        with self._lock:
            counts = learned_at(self._path()) if self._learned is None else self._learned.counts()
        rows = []
        for (number, interval, direction), count in sorted(counts.items()):
            detector = registry.DETECTORS.get(number)
            judged = count.won + count.lost
            rows.append(
                {
                    "number": number,
                    "name": detector.name if detector else f"detector {number}",
                    "group": detector.group if detector else "unknown",
                    "interval": interval,
                    "direction": direction,
                    "total": judged,
                    "successes": count.won,
                    "failures": count.lost,
                    "rate": count.won / judged if judged else None,
                    "confidence": count.confidence,
                }
            )
        return {
            "horizon_bars": HORIZON_BARS,
            "move_atr": MOVE_ATR,
            "undirected_move_atr": UNDIRECTED_MOVE_ATR,
            "prior": {"won": PRIOR_WON, "lost": PRIOR_LOST},
            "total": sum(count.won + count.lost for count in counts.values()),
            "successes": sum(count.won for count in counts.values()),
            "patterns": rows,
            "missing": registry.missing(),
        }

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call `callback(detection)` for each that this process writes, in its thread: be quick. Returns what ends it.

        A callback that raises is logged, and gets the next one.
        """
        with self._lock:
            self._callbacks = [*self._callbacks, callback]

        def end() -> None:
            with self._lock:
                self._callbacks = [kept for kept in self._callbacks if kept is not callback]

        return end

    def _path(self) -> Path:
        return Path(f"{self._tape.path}.patterns")

    def _open(self) -> None:
        with self._lock:
            if self._learned is None:
                self._learned = Learned(self._path())

    def _usable(self) -> Tape | None:
        """Return the tape where it can be used now: a SteadyTape's, which may be away, or the one that was given."""
        given: Any = self._tape
        found: Tape | None = getattr(given, "tape", given)
        return found

    def _run(self, interval: str) -> None:
        while not self._stopping.is_set():
            try:
                self._follow(interval)
            except OnetapeError as error:
                self._trouble[interval] = f"{interval}: {error}"
                _log.warning("patterns of %s bars wait: %s", interval, error)
            except Exception as error:  # noqa: BLE001  (a service goes on; the log has the reason)
                self._trouble[interval] = f"{interval}: {type(error).__name__}: {error}"
                _log.exception("patterns of %s bars wait", interval)
            self._stopping.wait(_RETRY_S)

    def _follow(self, interval: str) -> None:
        tape, learned = self._usable(), self._learned
        assert learned is not None
        if tape is None:
            self._trouble[interval] = f"{interval}: the tape is away; it goes on from where it was"
            return
        job = Job(interval, self._choice)
        position = learned.position(job)
        if position is not None and position > tape.head:
            position = None  # another tape is in its place
        if position is None:
            position = self._look_back(tape, learned, job, self._history_ns)
        try:
            self._follow_from(tape, learned, job, position)
        except TapeError as error:
            if "pruned_seq" not in error.facts:
                raise
            # Retention has removed records behind the position, and the detections of their times with them.
            self._follow_from(tape, learned, job, self._look_back(tape, learned, job, None))

    def _look_back(self, tape: Tape, learned: Learned, job: Job, history_ns: int | None) -> int:
        """Judge each symbol's history (None: all that is left), and return the position from which to go on."""
        head, earlier = tape.head, learned.earlier(job)
        if history_ns is not None and earlier is not None:
            head = min(head, earlier)  # others of this interval were looked at to there: nothing behind it is left out
        asked = None if self._symbols is None else {tape.symbol_of(name) or name for name in self._symbols}
        for info in tape.symbols():
            if asked is not None and info.symbol not in asked:
                continue
            if not fits(info.symbol) or info.ts_last_ns is None:
                continue
            earliest, last_ns = info.ts_first_ns or 0, info.ts_last_ns
            first_ns = earliest if history_ns is None else max(earliest, last_ns - history_ns)
            step = max(_BARS_AT_ONCE * interval_ns(job.interval), (last_ns - first_ns) // _PARTS_MAX)
            while first_ns <= last_ns and not self._stopping.is_set():
                self._judge(tape, learned, info.symbol, job, first_ns, min(last_ns, first_ns + step))
                first_ns += step + 1
        if not self._stopping.is_set():
            learned.looked_at(job, head)
        return head

    def _follow_from(self, tape: Tape, learned: Learned, job: Job, position: int) -> None:
        with tape.follow_bars(self._symbols, job.interval, position) as bars:
            while not self._stopping.is_set() and self._usable() is tape:
                changed = _changed(bars.take(_LOOK_S))
                self._trouble.pop(job.interval, None)
                for symbol, (first_ns, last_ns) in changed.items():
                    self._judge(tape, learned, symbol, job, first_ns, last_ns)
                if changed:
                    learned.looked_at(job, bars.position)
                self._behind[job.interval] = bars.lag
                self._stopping.wait(_PACE_S)

    def _judge(self, tape: Tape, learned: Learned, symbol: str, job: Job, first_ns: int, last_ns: int) -> None:
        def confidence(kind: Kind) -> float:
            return learned.count(kind).confidence

        interval = job.interval
        owed_ns = learned.owed(job, symbol)
        first_ns = first_ns if owed_ns is None else min(first_ns, owed_ns)
        trouble = f"{symbol} {interval}"
        try:
            done = judge_bars(tape, symbol, interval, first_ns, last_ns, self._which, confidence, self._clock())
        except Exception as error:  # one symbol's damage is not the others'
            if isinstance(error, OnetapeError) and not isinstance(error, ChunkCorrupt | InvalidRecord):
                raise  # it is the tape's
            if trouble not in self._trouble:
                _log.warning("patterns of %s bars of %s wait: %r", interval, symbol, error)
            self._trouble[trouble] = f"{symbol}: {error}; from its next bar on it is tried again"
            learned.owe(job, symbol, first_ns)
            return
        if owed_ns is not None:
            learned.owe(job, symbol, None)
        self._trouble.pop(trouble, None)
        learned.learn(symbol, interval, done.outcomes, done.newest_ns)
        self._judged += 1
        self._made += len(done.fresh)
        self._taken_back += len(done.gone)
        for detection in done.fresh:
            self._newest.append(detection)
            for callback in self._callbacks:
                try:
                    callback(detection)
                except Exception:  # noqa: BLE001  (one bad detection must not silence the others)
                    _log.exception("a subscriber's callback failed on %r", detection)


def _changed(bars: Iterable[Bar]) -> dict[str, tuple[int, int]]:
    """Return for each symbol the first and the last start of the bars that are complete, or have no trades any more."""
    found: dict[str, tuple[int, int]] = {}
    for bar in bars:
        if fits(bar.symbol) and (bar.complete or bar.trades == 0):
            first, last = found.get(bar.symbol, (bar.ts_start_ns, bar.ts_start_ns))
            found[bar.symbol] = (min(first, bar.ts_start_ns), max(last, bar.ts_start_ns))
    return found


def _names(tape: Tape) -> list[str]:
    """Return the symbols under which a tape holds detections."""
    return [info.symbol for info in tape.symbols() if info.symbol.startswith(PREFIX)]


def _check_interval(interval: str) -> None:
    try:
        length = interval_ns(interval)
    except ValueError as error:
        raise ConfigInvalid(f"intervals: {error}", hint='patterns are of bars of time, such as "1min"') from error
    if length % 1_000_000:
        raise ConfigInvalid(f"intervals: {interval!r}", hint="it is a whole number of milliseconds")
