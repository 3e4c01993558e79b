"""Candles: the newest so many bars before a time, read in windows: a million bars cost what a screen of them does."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, OnetapeError
from onetape.facts import SymbolInfo
from onetape.record import TS_MAX_NS
from onetape.store.interval import Interval, parse
from onetape.store.made import keeps
from onetape.tape.extent import Extent
from onetape.web.rows import MS_NS, BarRow, bar_rows, gap_rows

if TYPE_CHECKING:
    from onetape.steady import SteadyTape

BARS_MAX = 5000
#: Shorter gaps are not shown, s.
GAP_MIN_S = 1.0
#: What is missing up to now, and for less than this, is not known yet: a feed says only now and then that it is there,
#: a quiet DTC server every 10 s.
PENDING_NS = 15 * 10**9
#: Ticks folded at a time where bars are not joined from kept minutes.
_RECORDS = 262_144
#: What the tape holds of each symbol is asked for at most so often, s.
_KNOWN_S = 1.0
#: Gaps are looked for in the newest so much of a window: it takes 2 ms a day. Bars of a day would hide them.
_DAY_NS = 86_400 * 10**9
_GAPS_NS = 45 * _DAY_NS


class Window(NamedTuple):
    """Bars ascending, whether there are older ones, gaps among them, and a position: all up to it is in the bars."""

    position: int | None
    bars: list[BarRow]
    more: bool
    gaps: list[list[Any]]


class Known:
    """What the tape holds of each symbol, looked at again at most once a second; by name."""

    def __init__(self, tape: SteadyTape) -> None:
        self._tape = tape
        self._lock = threading.Lock()
        self._seen: dict[str, SymbolInfo] = {}
        self._due_s = 0.0

    def all(self) -> dict[str, SymbolInfo]:
        """Return the symbols; as they were, where the tape cannot say."""
        with self._lock:
            if time.monotonic() >= self._due_s:
                self._seen = {info.symbol: info for info in self._tape.symbols()}
                self._due_s = time.monotonic() + _KNOWN_S
            return self._seen

    def of(self, symbol: str) -> SymbolInfo | None:
        """Return one symbol's, asked anew where it is not known."""
        found = self.all().get(symbol)
        if found is None and self._tape.latest(symbol) is not None:
            with self._lock:
                self._due_s = 0.0
            found = self.all().get(symbol)
        return found


def interval_of(text: str) -> Interval:
    """Return an interval of time. Raises ConfigInvalid: bars that trades close have no times of their own."""
    found = parse(text)
    if found.counted:
        raise ConfigInvalid(f"{text!r} is no interval of time", hint="ask for 1s, 1min, 1h, 1d and the like")
    return found


def newest(
    tape: SteadyTape, known: SymbolInfo | None, symbol: str, interval: Interval, end_ns: int | None, limit: int
) -> Window:
    """Return the newest `limit` bars that begin before end_ns (None: all there is), with the gaps in their span."""
    position = tape.head
    length = interval.ns or 1
    first_ns, last_ns = _extent(tape, known, symbol)
    end = min(last_ns + 1, TS_MAX_NS) if end_ns is None else min(end_ns, last_ns + 1)
    found: list[BarRow] = []
    windows = _windows(tape, symbol, interval, first_ns, end, limit)
    more = False
    for start, until in windows:
        table = tape.bars(symbol, interval.text, start, until)
        needed = limit - len(found)
        more = table.num_rows > needed
        if more:
            table = table.slice(table.num_rows - needed)
        found = bar_rows(table) + found
        if len(found) >= limit:
            more = more or start > first_ns
            break
    gaps: list[list[Any]] = []
    if found and length < _DAY_NS:
        start_ns = max(int(found[0][0]) * MS_NS, end - _GAPS_NS)
        until_ns = int(found[-1][0]) * MS_NS + length if end_ns is not None else TS_MAX_NS
        gaps = gap_rows(gaps_of(tape, symbol, start_ns, until_ns))
    return Window(position, found, more, gaps)


def gaps_of(tape: SteadyTape, symbol: str, start_ns: int, end_ns: int) -> Any:
    """Return the gaps of a span; none where the tape is away, or has none to tell of such a symbol."""
    now = now_ns()
    if tape.tape is None or start_ns >= end_ns:
        return []
    try:
        found = tape.tape.gaps(symbol, start_ns, end_ns, min_s=GAP_MIN_S)
        return [gap for gap in found if gap.end_ns < now or gap.end_ns - gap.start_ns >= PENDING_NS]
    except OnetapeError:  # a view of several contracts, or a tape that is going away: shading is a hint
        return []


def _extent(tape: SteadyTape, known: SymbolInfo | None, symbol: str) -> tuple[int, int]:
    first, last = TS_MAX_NS, -1
    if known is not None and known.ts_first_ns is not None and known.ts_last_ns is not None:
        first, last = known.ts_first_ns, known.ts_last_ns
    tick = tape.latest(symbol)
    if tick is not None:
        first, last = min(first, tick.ts_event_ns), max(last, tick.ts_event_ns)
        if known is None:
            first = 0
    return first, last


def _windows(tape: SteadyTape, symbol: str, interval: Interval, first_ns: int, end_ns: int, limit: int) -> Any:
    """Yield (start_ns, end_ns), newest first, back to the first record: small where bars are dense."""
    length = interval.ns or 1
    span = length * (limit + limit // 4 + 2)
    start = end_ns - span
    while start > first_ns:
        yield start, end_ns
        end_ns = start
        if not keeps(length) and tape.tape is not None:
            break  # sparse, and folded from ticks: by how many there are, not by time
        span *= 4
        start = end_ns - span
    else:
        if end_ns > 0:
            yield 0, end_ns
        return
    extent = Extent(tape.tape, symbol, 0, end_ns, None)
    yield from reversed(extent.windows(list(extent.symbols), _RECORDS))
