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
from collections.abc import Callable, Iterable, Iterator, Mapping

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
    told: list[Tick] = []  # all that history told of the place's second


class _Held:
    """One symbol's live trades that wait, the second in which they began, and where history had come to."""

    def __init__(self, place: Place) -> None:
        self.ticks: list[Tick] = []
        self.first_second: int | None = None
        self.place, self.told = place, list[Tick]()  # of the last part that was given


class Fill:
    """Fills several symbols, one after the other, in a thread of its own.

    A symbol that is quiet is filled for good only when its first live trade comes: before, nobody can tell whether
    history has all of the gap yet. held_max: when more live trades than this wait, the symbol is given up: what is
    missing is said to be.
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
        self._held = {symbol: _Held(_copy(place)) for symbol, place in places.items()}
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._asking = True
        self._parts: queue.Queue[Part] = queue.Queue(maxsize=64)
        self._thread = threading.Thread(target=self._run, name=f"{source} history", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether history is being told, or live trades wait for it."""
        with self._changed:
            return self._asking or not self._parts.empty() or any(held.ticks for held in self._held.values())

    def hold(self, tick: Tick) -> bool:
        """Keep a live trade of a symbol that is being filled; False where it is not."""
        with self._changed:
            held = self._held.get(tick.symbol)
            if held is None:
                return False
            if held.first_second is None:
                held.first_second = tick.ts_event_ns // _NS
                self._changed.notify_all()
            held.ticks.append(tick)
            return True

    def parts(self) -> Iterator[Part]:
        """Yield what is ready now. To be called by the thread that calls hold()."""
        while True:
            try:
                part = self._parts.get_nowait()
            except queue.Empty:
                break
            held = self._held.get(part.symbol)
            if held is None:
                continue  # it was given up
            if part.joined is None:
                held.place, held.told = part.place, part.told
                yield part
            else:
                yield self._ended(part)
        for symbol, held in list(self._held.items()):
            if len(held.ticks) > self._held_max:
                why = f"more than {self._held_max} live trades waited for the history"
                yield self._ended(Part(symbol, [], held.place, joined=False, why=why))

    def _ended(self, part: Part) -> Part:
        """Return the last part of a symbol with those of its live trades that history did not tell."""
        with self._changed:
            held = self._held.pop(part.symbol)
            self._changed.notify_all()
        if not part.joined:  # what was told behind the last whole part was not given
            part.place, part.told = held.place, held.told
        part.ticks, first = held.ticks, held.first_second
        if first is not None and part.place.second >= first:
            part.ticks = unseen(held.ticks, part.place.second, part.told, first)
        return part

    def close(self) -> None:
        """End it. What waits is forgotten: it was not given, so the next fill brings it."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(timeout=5)

    def _going_on(self) -> bool:
        return not self._stopped.is_set()

    def _put(self, part: Part) -> None:
        while self._going_on() and part.symbol in self._held:
            try:
                self._parts.put(part, timeout=0.2)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        asked: Iterable[str] = list(self._places)
        while asked:
            for symbol in asked:
                if self._going_on() and symbol in self._held:
                    self._safely_fill(symbol)
            asked = self._next()

    def _next(self) -> list[str]:
        """Wait until there are symbols that a live trade came of; return them, none where there is nothing to do."""
        with self._changed:
            self._asking = False
            while self._going_on() and self._quiet():
                found = [symbol for symbol in self._quiet() if self._held[symbol].ticks]
                if found:
                    self._asking = True
                    return found
                self._changed.wait()
        return []

    def _quiet(self) -> list[str]:
        """The symbols that are neither filled nor about to be said to be."""
        return [symbol for symbol in self._places if symbol in self._held]

    def _safely_fill(self, symbol: str) -> None:
        """Fill; whatever goes wrong is why it is not: a thread that died would keep live trades back for ever."""
        place = self._places[symbol]
        try:
            self._fill(symbol, place)
        except Exception as error:  # noqa: BLE001
            self._end(Part(symbol, [], _copy(place), joined=False, why=f"{type(error).__name__}: {error}"))

    def _end(self, part: Part) -> None:
        del self._places[part.symbol]
        self._put(part)

    def _fill(self, symbol: str, place: Place) -> None:
        why: str = ""
        told: list[Tick] = []
        for wait_s in (0.0, *self._again_s):
            if self._stopped.wait(wait_s):
                return
            why, told = "", []
            try:
                self._tell(symbol, place, told)
            except SourceRefused as error:
                why = str(error)
                break
            except (OSError, EOFError, Malformed) as error:
                why = str(error) or type(error).__name__
            with self._changed:
                held = self._held.get(symbol)
                if held is None or not self._going_on():
                    return
                live, first = list(held.ticks), held.first_second
            if why:
                continue
            if first is None:
                return  # it is asked again when the first one comes
            if met(live, place.second, told, first):
                break
            why = "the history ends before the live trades begin"
        self._end(Part(symbol, [], _copy(place), joined=not why, why=why, told=told))

    def _tell(self, symbol: str, place: Place, told: list[Tick]) -> None:
        """Give what history has behind the place; `told` becomes all of the last second that is known then."""
        skipping = True
        asked = history.ticks(
            self._server,
            symbol,
            *self._theirs[symbol],
            place.second,
            source=self._source,
            clock=self._clock,
            going_on=lambda: self._going_on() and symbol in self._held,
        )
        for batch in asked:
            new: list[Tick] = []
            for tick in batch:
                second = tick.ts_event_ns // _NS
                if second < place.second:
                    continue
                if skipping:
                    if second == place.second:
                        told.append(tick)
                        continue
                    skipping = False
                    new += self._behind(place, told)
                if second > place.second:
                    told.clear()
                place.advance(tick, whole=True)
                told.append(tick)
                new.append(tick)
            if new:
                self._put(Part(symbol, new, _copy(place), told=list(told)))
        if skipping and self._going_on():
            new = self._behind(place, told)
            if new:
                self._put(Part(symbol, new, _copy(place), told=list(told)))

    @staticmethod
    def _behind(place: Place, of_second: list[Tick]) -> list[Tick]:
        """Those trades of the place's second that are new, and the place past them: the whole second is known then."""
        new = of_second[place.known_of(of_second) :]
        place.count, place.whole, place.run = max(len(of_second), place.count if place.whole else 0), True, []
        return new


def _copy(place: Place) -> Place:
    return Place(place.second, place.count, place.whole, list(place.run))
