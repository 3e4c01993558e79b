"""The rolling follower: the front contract's records as they come, and each roll between the last and the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apsw

from onetape.clock import now_ns
from onetape.live.follower import Follower
from onetape.live.waker import Waker
from onetape.record import Bar, Record
from onetape.store import query
from onetape.store.rolls import Schedule, Switch

if TYPE_CHECKING:
    from onetape.tape.continuous import Continuous

#: A roll met within this time after it took effect was decided live; one met later is history.
_LIVE_NS = 3 * 86_400_000_000_000


class RollFollower(Follower):
    """Follows a continuous future: ticks of whichever contract is the front at their event time, and Rolls.

    A Roll comes before the first record at or after its time. Later records of the old contract are left out, but
    for late ones whose event time is before the roll: they were the front's, and say of which contract they are.
    Prices are raw; a Roll carries the gap.
    """

    def __init__(self, view: Continuous, connection: apsw.Connection, waker: Waker, **options: Any) -> None:
        self._view = view
        self._contracts = view.symbols()
        super().__init__(connection, waker, **{**options, "symbols": self._contracts})
        self._live_from = query.head(connection)
        self._schedule = view.schedule()
        #: The rolls behind us: told, or older than where this began.
        self._behind: list[Switch] = view.behind(self._schedule, self.position, self._live_from, self._start_ns)

    def _look(self) -> list[Record]:
        while True:
            before = self.position
            found = super()._look()
            if not found:
                return found
            try:
                rolled = self._rolled(found)
            except BaseException:
                self.position = before  # what was not handed out is taken again
                raise
            if rolled:
                return rolled

    def _rolled(self, found: list[Record]) -> list[Any]:
        out: list[Any] = []
        behind = list(self._behind)
        for record in found:
            ts = record.ts_start_ns if isinstance(record, Bar) else record.ts_event_ns
            if ts >= self._schedule.until_ns:
                self._schedule = self._view.schedule({switch.old: switch for switch in behind})
            while len(behind) < len(self._schedule.switches):
                switch = self._schedule.switches[len(behind)]
                if switch.ts_ns > ts:
                    break
                if (record.seq or 0) > self._live_from and abs(now_ns() - switch.ts_ns) < _LIVE_NS:
                    switch = self._tell(switch)
                behind.append(switch)
                out.append(self._view.priced(switch))
            if self._contracts[self._schedule.front(ts)] == record.symbol:
                out.append(record)
        self._behind = behind
        return out

    def _tell(self, switch: Switch) -> Switch:
        """Have a roll decided live kept on the tape, so that history rolls like this; return the one kept."""
        kept = self._view.tell(switch)
        if kept != switch:
            rest = self._view.schedule({old.old: old for old in [*self._behind, kept]})
            self._schedule = Schedule(rest.first, rest.switches, rest.until_ns)
        return kept
