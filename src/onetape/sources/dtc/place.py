"""The place: how far a symbol's trades are known, and where history and live trades meet without gap or double.

DTC gives trades no number, and live times may be whole seconds. A trade's identity here is its second and which trade
of that second it is: both the live stream and the history give all trades of a second in one order. Where it is not
known how many came before in a second (it had begun when the subscription did), what the trades are decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from onetape.errors import ConfigInvalid
from onetape.record import Tick

_NS = 1_000_000_000

#: Of a second that was entered in its middle, at most so many trades are remembered.
RUN_MAX = 10_000

What = tuple[float, float, int]


class Place(msgspec.Struct, array_like=True):
    """The last second of which trades are known, and how many of it.

    whole: whether the second was seen from its start; else `run` has the trades seen of it, (price, size, side).
    """

    second: int
    count: int = 0
    whole: bool = True
    run: list[What] = []

    def advance(self, tick: Tick, *, whole: bool) -> None:
        """Go past a trade. One of an earlier second changes nothing."""
        second = tick.ts_event_ns // _NS
        if second < self.second:
            return
        if second > self.second:
            self.second, self.count, self.whole, self.run = second, 0, whole, []
        self.count += 1
        if not self.whole and len(self.run) < RUN_MAX:
            self.run.append(what(tick))

    def known_of(self, trades: Sequence[Tick]) -> int:
        """Return how many of these, the whole second's trades from its start, are known already."""
        if self.whole:
            return min(self.count, len(trades))
        seen = [what(tick) for tick in trades]
        for start in range(len(seen) - len(self.run) + 1):
            if seen[start : start + len(self.run)] == self.run:
                return start + len(self.run)
        return 0


def what(tick: Tick) -> What:
    """What a trade is, without when."""
    return (tick.price or 0.0, tick.size or 0.0, tick.side)


def unseen(live: Sequence[Tick], second: int, told: Sequence[Tick], first_second: int) -> list[Tick]:
    """Return those live trades that history did not tell.

    History told everything before `second`, and `told` of it, from its start. `first_second` is the second in which
    the live trades begin, perhaps in its middle: of a later one they have all.
    """
    later = [tick for tick in live if tick.ts_event_ns // _NS > second]
    same = [tick for tick in live if tick.ts_event_ns // _NS == second]
    if second > first_second:
        return same[len(told) :] + later
    return same[_common(told, same) :] + later


def met(live: Sequence[Tick], second: int, told: Sequence[Tick], first_second: int) -> bool:
    """Return whether history, as unseen() takes it, reaches the live trades: nothing can lie between them."""
    if second != first_second:
        return second > first_second
    return _common(told, [tick for tick in live if tick.ts_event_ns // _NS == second]) > 0


def _common(told: Sequence[Tick], live: Sequence[Tick]) -> int:
    """How many trades end the one and begin the other."""
    seen, new = [what(tick) for tick in told], [what(tick) for tick in live]
    for common in range(min(len(seen), len(new)), 0, -1):
        if seen[-common:] == new[:common]:
            return common
    return 0


def encode(places: dict[str, Place]) -> str:
    """Return places as a cursor."""
    return msgspec.json.encode(places).decode()


def decode(cursor: str) -> dict[str, Place]:
    """Return the places of a cursor. Raises ConfigInvalid."""
    try:
        return msgspec.json.decode(cursor, type=dict[str, Place])
    except msgspec.DecodeError as error:
        raise ConfigInvalid(
            f"a cursor that no DTC source wrote: {cursor[:60]!r}", hint="another kind of source had this name before"
        ) from error
