"""The trading day: from one of its starts to the next, in the market's own zone."""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple
from zoneinfo import ZoneInfo

from onetape.errors import ConfigInvalid

_S = 1_000_000_000


class TradingDay(NamedTuple):
    """When days begin."""

    starts: dt.time
    zone: ZoneInfo

    @classmethod
    def of(cls, text: str) -> TradingDay:
        """Return it from "HH:MM Zone"; UTC where there is no zone. Raises ConfigInvalid."""
        try:
            clock, _, zone = text.partition(" ")
            return cls(dt.time.fromisoformat(clock), ZoneInfo(zone or "UTC"))
        except (ValueError, OSError, KeyError) as error:
            raise ConfigInvalid(f"day_starts = {text!r}", hint='such as "17:00 America/Chicago"') from error

    def at(self, now_ns: int) -> tuple[int, int]:
        """Return start and end of the day that is now: start <= now < end, ns.

        A clock that is set back has the time of a start twice; the first of them is it.
        """
        today = dt.datetime.fromtimestamp(now_ns // _S, self.zone).date()
        days = (today + dt.timedelta(days=number) for number in (-1, 0, 1, 2))
        starts = [int(dt.datetime.combine(one, self.starts, self.zone).timestamp()) * _S for one in days]
        end = next(one for one in starts if one > now_ns)
        return starts[starts.index(end) - 1], end
