"""The film: of each instrument what is past when the demo begins, and what is played as if it came now.

Instruments were recorded on different days and for different times. Each is cut where much is to come; what is before
the cut is moved as a whole, so that the cut is now, and what is behind it is played. The intervals between ticks stay
as they were recorded. A recording that is too short is played from its begin again, as often as it takes.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import msgspec

from onetape.demo import samples, simulator
from onetape.record import Tick

_S = 1_000_000_000
#: How much is played before it begins again, and the least that is past, ns.
COMING_NS, PAST_MIN_NS = 12 * 60 * _S, 15 * 60 * _S
#: Ticks read of each recording: a day of gold, seven hours of a share.
_READ_MAX = 40_000
#: A recording with fewer ticks, or of a shorter time, moves too little to look at.
_TICKS_MIN, _SPAN_MIN_NS = 800, 5 * 60 * _S
#: Between the end of a recording and its begin, when it is played again.
_SEAM_NS = 1 * _S
#: Simulated instruments where nothing was recorded, and the ticks of each over its session.
_SIMULATED, _SIMULATED_TICKS = 8, 12_000


class Film(NamedTuple):
    """One instrument: its past, whose last tick is before `now`, and what is to come, from `now` on, both ascending.

    turns: how often the recording is in it; below 1, not all of it is.
    """

    symbol: str
    origin: str | None
    past: list[Tick]
    coming: list[Tick]
    turns: float


def films(folder: Path | None, now_ns: int, seed: int) -> list[Film]:
    """Return the instruments: of the folder of sample data, or simulated where it has none that moves enough."""
    found = [] if folder is None else samples.read(folder, _READ_MAX)
    made = [cut(one.symbol, one.origin, _in_order(one.ticks), now_ns) for one in found if _moves(one.ticks)]
    if made:
        return made
    names = simulator.symbols(_SIMULATED)
    return [cut(name, None, simulator.ticks(name, _SIMULATED_TICKS, seed), now_ns) for name in names]


def cut(symbol: str, origin: str | None, ticks: Sequence[Tick], now_ns: int) -> Film:
    """Return a recording as a film whose past ends at now_ns. `ticks` are ascending in time."""
    times = [tick.ts_event_ns for tick in ticks]
    first_ns, span_ns = times[0], times[-1] - times[0] + _SEAM_NS
    at_ns = _best_cut(times)
    past_ns = max(PAST_MIN_NS, at_ns - first_ns)
    shift = now_ns - at_ns
    past = _turning(ticks, times, span_ns, at_ns - past_ns, at_ns, shift)
    coming = _turning(ticks, times, span_ns, at_ns, at_ns + COMING_NS, shift)
    return Film(symbol, origin, [*past], [*coming], (past_ns + COMING_NS) / span_ns)


def _turning(
    ticks: Sequence[Tick], times: Sequence[int], span_ns: int, start_ns: int, end_ns: int, shift: int
) -> Iterator[Tick]:
    """Yield the ticks of start <= time < end of a recording that is repeated for ever both ways, moved by `shift`."""
    turn = (start_ns - times[0]) // span_ns
    while times[0] + turn * span_ns < end_ns:
        moved = turn * span_ns
        first, last = bisect_left(times, start_ns - moved), bisect_left(times, end_ns - moved)
        for tick in ticks[first:last]:
            received = None if tick.ts_recv_ns is None else tick.ts_recv_ns + moved + shift
            event_ns = tick.ts_event_ns + moved + shift
            yield msgspec.structs.replace(tick, ts_event_ns=event_ns, ts_recv_ns=received)
        turn += 1


def _best_cut(times: Sequence[int]) -> int:
    """Return the time in the later half behind which the most is to come, with room for it where there is any."""
    first_ns, last_ns = times[0], times[-1]
    half_ns = first_ns + (last_ns - first_ns) // 2
    latest_ns = max(half_ns, last_ns - COMING_NS)
    step_ns = max(1, (latest_ns - half_ns) // 48)
    candidates = range(half_ns, latest_ns + 1, step_ns)
    return max(candidates, key=lambda at: bisect_left(times, at + COMING_NS) - bisect_left(times, at))


def _in_order(ticks: Sequence[Tick]) -> list[Tick]:
    return sorted(ticks, key=attrgetter("ts_event_ns"))


def _moves(ticks: Sequence[Tick]) -> bool:
    times = [tick.ts_event_ns for tick in ticks]
    return len(times) >= _TICKS_MIN and max(times) - min(times) >= _SPAN_MIN_NS


def without(ticks: Sequence[Tick], start_ns: int, end_ns: int) -> list[Tick]:
    """Return the ticks that are not of start <= time < end: a hole for the page to show."""
    return [tick for tick in ticks if not start_ns <= tick.ts_event_ns < end_ns]


def walk(seed: int) -> Iterator[int]:
    """Yield the steps of a price of a future, -2 to 2 of its ticks, with a little memory so that it has trends."""
    chance = random.Random(seed)
    lean = 0.0
    while True:
        lean = 0.98 * lean + chance.uniform(-0.06, 0.06)
        yield max(-2, min(2, round(chance.gauss(lean, 0.7))))
