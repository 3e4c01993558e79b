"""The fill: a thread that asks a history server for what was missed, while live trades wait until it is told.

    fill = Fill(…, places, going_on)
    fill.hold(tick) -> bool         # True: kept, and given in its turn
    for part in fill.parts(): …     # ticks to store, in order, and how it ended for a symbol

For each symbol: what history has behind the place, then those of the live trades that it had not. An answer that does
not reach the first live trade is asked for again, a few times: a history server may write with a delay.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping

import msgspec

from onetape.errors import SourceRefused
from onetape.record import Tick
from onetape.sources.dtc import history
from onetape.sources.dtc.layout import Malformed
from onetape.sources.dtc.place import Place, met, unseen

_NS = 1_000_000_000


class Part(msgspec.Struct):
    """Ticks of a symbol in order, and its place behind those that history told.

    joined: None while more comes; at the end, whether history met the live trades, which are its ticks then.
    """

    symbol: str
    ticks: list[Tick]
    place: Place
    joined: bool | None = None
    why: str = ""
    told: list[Tick] = []  # at the end: all that history told of the place's second


class _Held:
    """One symbol's live trades that wait, and the second in which they began."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []
        self.first_second: int | None = None


class Fill:
    """Fills several symbols, one after the other, in a thread of its own.

    held_max: when more live trades than this wait, the symbol is given up: what is missing is said to be.
    """

    def __init__(
        self,
        server: history.HistoryServer,
        places: Mapping[str, Place],
        theirs: Mapping[str, tuple[str, str]],
        *,
        source: str,
        clock: Callable[[], int],
        again_s: tuple[float, ...] = (0.5, 2.0),
        held_max: int = 200_000,
    ) -> None:
        self._server = server
        self._places = {symbol: _copy(place) for symbol, place in places.items()}
        self._theirs = dict(theirs)
        self._source, self._clock = source, clock
        self._again_s, self._held_max = again_s, held_max
        self._held = {symbol: _Held() for symbol in places}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._parts: queue.Queue[Part] = queue.Queue(maxsize=64)
        self._thread = threading.Thread(target=self._run, name=f"{source} history", daemon=True)
        self._thread.start()

    @property
    def open(self) -> set[str]:
        """The symbols that are still being filled."""
        with self._lock:
            return set(self._held)

    @property
    def done(self) -> bool:
        """Whether all is told and taken."""
        return not self._thread.is_alive() and self._parts.empty()

    def hold(self, tick: Tick) -> bool:
        """Keep a live trade of a symbol that is being filled; False where it is not."""
        with self._lock:
            held = self._held.get(tick.symbol)
            if held is None:
                return False
            if held.first_second is None:
                held.first_second = tick.ts_event_ns // _NS
            held.ticks.append(tick)
            return True

    def parts(self) -> Iterator[Part]:
        """Yield what is ready now. To be called by the thread that calls hold()."""
        while True:
            try:
                part = self._parts.get_nowait()
            except queue.Empty:
                return
            if part.joined is not None:
                with self._lock:
                    held = self._held.pop(part.symbol)
                part.ticks = held.ticks
                if part.joined:
                    part.ticks = unseen(held.ticks, part.place.second, part.told, held.first_second or 0)
            yield part

    def close(self) -> None:
        """End it. What waits is forgotten: it was not given, so the next fill brings it."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def _going_on(self) -> bool:
        return not self._stopped.is_set()

    def _put(self, part: Part) -> None:
        while self._going_on():
            try:
                self._parts.put(part, timeout=0.2)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        for symbol, place in self._places.items():
            if not self._going_on():
                return
            self._fill(symbol, place)

    def _fill(self, symbol: str, place: Place) -> None:
        why, told = "", []
        for wait_s in (0.0, *self._again_s):
            if self._stopped.wait(wait_s):
                return
            why = ""
            try:
                told = self._tell(symbol, place)
            except SourceRefused as error:
                why = str(error)
                break
            except (OSError, EOFError, Malformed) as error:
                why = str(error) or type(error).__name__
            if not self._going_on():
                return
            with self._lock:
                live, first = list(self._held[symbol].ticks), self._held[symbol].first_second
            if len(live) > self._held_max:
                why = f"more than {self._held_max} live trades waited for the history"
                break
            if not why and first is not None:
                if met(live, place.second, told, first):
                    break
                why = "the history ends before the live trades begin"
        self._put(Part(symbol, [], _copy(place), joined=not why, why=why, told=told))

    def _tell(self, symbol: str, place: Place) -> list[Tick]:
        """Give what history has behind the place, and return all it told of the last second that is known then."""
        of_last: list[Tick] = []  # all of the place's second
        skipping = True
        asked = history.ticks(
            self._server,
            symbol,
            *self._theirs[symbol],
            place.second,
            source=self._source,
            clock=self._clock,
            going_on=self._going_on,
        )
        for batch in asked:
            new: list[Tick] = []
            for tick in batch:
                second = tick.ts_event_ns // _NS
                if second < place.second:
                    continue
                if skipping:
                    if second == place.second:
                        of_last.append(tick)
                        continue
                    skipping = False
                    new += self._behind(place, of_last)
                if second > place.second:
                    of_last = []
                place.advance(tick, whole=True)
                of_last.append(tick)
                new.append(tick)
            if new:
                self._put(Part(symbol, new, _copy(place)))
            if not self._going_on():
                return of_last
        if skipping:
            new = self._behind(place, of_last)
            if new:
                self._put(Part(symbol, new, _copy(place)))
        return of_last

    @staticmethod
    def _behind(place: Place, of_second: list[Tick]) -> list[Tick]:
        """Those trades of the place's second that are new, and the place past them: the whole second is known then."""
        new = of_second[place.known_of(of_second) :]
        place.count, place.whole, place.run = max(len(of_second), place.count if place.whole else 0), True, []
        return new


def _copy(place: Place) -> Place:
    return Place(place.second, place.count, place.whole, list(place.run))
