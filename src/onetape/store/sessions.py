"""Sessions: when a market trades, as spans of UTC time with the trading day they belong to.

A session is one trading day: one span of time, or two with a break between. Spans are half-open: a trade at the close
itself is outside. Local times are turned into UTC day by day with the time zone database, so a day with a change of
clocks has its 23 or 25 hours. A local time that the clocks skip means as far after the gap; one they show twice, the
first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo, available_timezones

import msgspec
import numpy as np

from onetape.errors import ConfigInvalid
from onetape.record import TS_MAX_NS
from onetape.store.block import Array
from onetape.store.layout import DAY_NS

_EPOCH = date(1970, 1, 1)
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?")
_WRITTEN = re.compile(r"(\S+) +(\d[\d:]*) ?- ?(\d[\d:]*)(?: +([a-z]{3}(?:[-,][a-z]{3})*))?(?: +(\S+))?")
_HINT = "write 'America/New_York 09:30-16:00', 'America/Chicago 17:00-16:00 mon-fri CMES', or a calendar such as XNYS"
#: No session begins or ends further from its trading day than this.
_REACH_DAYS = 3


class Windows(NamedTuple):
    """Spans of trading, ascending and without overlap: opens <= ts < closes, ns. Those of one session share its day.

    days: the trading day, counted from 1970-01-01. All three are int64 of one length.
    """

    opens: Array
    closes: Array
    days: Array

    def of(self, ts: Array) -> Array:
        """Return for each time the span it is in, or -1."""
        if not len(self.opens):
            return np.full(len(ts), -1)
        found: Array = np.searchsorted(self.opens, ts, side="right") - 1
        return np.where((found >= 0) & (ts < self.closes[found]), found, -1)


class Sessions(Protocol):
    """What knows the sessions of trading days: Session, Calendar, or anything with this method."""

    def windows(self, first_day: int, last_day: int) -> Windows:
        """Return the spans of the trading days first_day … last_day (both included), counted from 1970-01-01."""


class Session(msgspec.Struct, frozen=True):
    """Trading hours of one's own: local times, the days of the week, and whose holidays are kept.

    timezone: an IANA name. open, close: "09:30", "16:00:00", "24:00"; a close that is not after the open is on the
    trading day and the open on the day before it, so "17:00" to "16:00" is the futures day that is named after the day
    it ends on. days: trading days of the week, "mon" to "fri" by default. calendar: name of an exchange calendar whose
    holidays are no trading days, and whose early closes and late opens are kept.
    """

    timezone: str
    open: str
    close: str
    days: tuple[str, ...] = _DAYS[:5]
    calendar: str | None = None

    def __post_init__(self) -> None:
        _zone(self.timezone)
        if _clock(self.open) == timedelta(days=1):
            raise ConfigInvalid(f"a session cannot open at {self.open!r}", hint="write 00:00")
        _clock(self.close)
        if isinstance(self.days, str) or not self.days or set(self.days) - set(_DAYS):
            raise ConfigInvalid(f"days = {self.days!r}", hint=f"they are some of {', '.join(_DAYS)}")
        if self.calendar is not None:
            _calendar(self.calendar)

    def windows(self, first_day: int, last_day: int) -> Windows:
        """Return the sessions of the trading days first_day … last_day, counted from 1970-01-01."""
        found = _local_windows(self.timezone, self.open, self.close, frozenset(self.days), first_day, last_day)
        if self.calendar is None or not len(found.days):
            return found
        kept, early, late = _calendar(self.calendar).exceptions(first_day, last_day)
        there = np.isin(found.days, kept)
        opens, closes, days = (column[there] for column in found)
        opens = np.maximum(opens, np.array([late.get(day, 0) for day in days.tolist()], dtype="<i8"))
        closes = np.minimum(closes, np.array([early.get(day, TS_MAX_NS) for day in days.tolist()], dtype="<i8"))
        real = opens < closes
        return Windows(opens[real], closes[real], days[real])

    def check(self, first_day: int, last_day: int) -> None:
        """Raise ConfigInvalid if these days are beyond what the calendar knows."""
        if self.calendar is not None:
            _calendar(self.calendar).check(first_day, last_day)

    def closed(self, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
        """Return the spans of start_ns … end_ns in which the market is closed, ascending."""
        return closed(self, start_ns, end_ns)


class Calendar(msgspec.Struct, frozen=True):
    """The sessions of an exchange calendar by its name, such as XNYS: holidays, early closes and breaks with it."""

    name: str

    def __post_init__(self) -> None:
        _calendar(self.name)

    def windows(self, first_day: int, last_day: int) -> Windows:
        """Return the sessions of the trading days first_day … last_day, counted from 1970-01-01."""
        return _calendar(self.name).windows(first_day, last_day)

    def check(self, first_day: int, last_day: int) -> None:
        """Raise ConfigInvalid if these days are beyond what the calendar knows."""
        _calendar(self.name).check(first_day, last_day)

    def closed(self, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
        """Return the spans of start_ns … end_ns in which the market is closed, ascending."""
        return closed(self, start_ns, end_ns)


class UtcDays:
    """Every UTC day is a session: what holds where no session is asked for."""

    def windows(self, first_day: int, last_day: int) -> Windows:
        """Return the days themselves."""
        days = np.arange(max(first_day, 0), min(last_day, TS_MAX_NS // DAY_NS) + 1, dtype="<i8")
        opens = days * DAY_NS
        return Windows(
            opens, np.append(opens[1:], opens[-1:] + min(DAY_NS, 2**63 - 1 - int(opens.max(initial=0)))), days
        )


UTC_DAYS = UtcDays()


def find(session: str | Sessions | None) -> Sessions:
    """Return the sessions that are asked for: None, a calendar's name, hours as text, a Session or a Calendar.

    Text is a time zone and hours, "America/Chicago 17:00-16:00", then if need be days ("mon-fri", "sun,mon") and a
    calendar's name. Raises ConfigInvalid.
    """
    if session is None:
        return UTC_DAYS
    if not isinstance(session, str):
        if callable(getattr(session, "windows", None)):
            return session
        raise ConfigInvalid(f"session = {session!r}", hint=_HINT)
    written = _WRITTEN.fullmatch(session.strip())
    if written is None:
        return Calendar(session.strip())
    zone, opens, closes, days, calendar = written.groups()
    return Session(zone, opens, closes, _DAYS[:5] if days is None else _days(days), calendar)


def overlapping(sessions: Sessions, start_ns: int, end_ns: int) -> Windows:
    """Return whole sessions, all that reach into start_ns <= ts < end_ns."""
    if end_ns <= start_ns:
        return Windows(*(np.zeros(0, dtype="<i8"),) * 3)
    first, last = start_ns // DAY_NS, (end_ns - 1) // DAY_NS
    check = getattr(sessions, "check", None)
    if check is not None:
        check(first, last)
    found = sessions.windows(first - _REACH_DAYS, last + _REACH_DAYS)
    there = np.isin(found.days, found.days[(found.closes > start_ns) & (found.opens < end_ns)])
    return Windows(found.opens[there], found.closes[there], found.days[there])


def closed(sessions: Sessions, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """Return the spans of start_ns … end_ns in which no session is open, ascending."""
    found = overlapping(sessions, start_ns, end_ns)
    edges = [
        start_ns,
        *(edge for pair in zip(found.opens.tolist(), found.closes.tolist(), strict=True) for edge in pair),
    ]
    edges.append(end_ns)
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(a, b) for a, b in ((max(a, start_ns), min(b, end_ns)) for a, b in pairs) if a < b]


def day_of(number: int) -> date:
    """Return a trading day as a date."""
    return _EPOCH + timedelta(days=number)


def _days(text: str) -> tuple[str, ...]:
    found: list[str] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        unknown = next((name for name in (first, last or first) if name not in _DAYS), None)
        if unknown is not None:
            raise ConfigInvalid(f"{unknown!r} is no day of the week", hint=f"they are {', '.join(_DAYS)}")
        start, end = _DAYS.index(first), _DAYS.index(last or first)
        found += [_DAYS[at % 7] for at in range(start, end + 1 + (7 if end < start else 0))]
    return tuple(dict.fromkeys(found))


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError, TypeError) as error:
        near = get_close_matches(str(name), available_timezones(), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "write an IANA name such as America/New_York"
        raise ConfigInvalid(f"{name!r} is no time zone", hint=hint) from error


def _clock(text: str) -> timedelta:
    found = _CLOCK.fullmatch(text) if isinstance(text, str) else None
    if found is None or (found[1] == "24" and (found[2] != "00" or (found[3] or "00") != "00")):
        raise ConfigInvalid(f"{text!r} is no time of a day", hint="write 09:30 or 09:30:00, up to 24:00")
    return timedelta(hours=int(found[1]), minutes=int(found[2]), seconds=int(found[3] or 0))


@lru_cache(64)
def _local_windows(
    timezone: str, opens: str, closes: str, weekdays: frozenset[str], first_day: int, last_day: int
) -> Windows:
    zone, start, end = _zone(timezone), _clock(opens), _clock(closes)
    before = timedelta(days=1) if end <= start else timedelta()
    rows = []
    for number in range(max(first_day, -1), min(last_day, TS_MAX_NS // DAY_NS + 1) + 1):
        if _DAYS[(number + 3) % 7] in weekdays:
            midnight = datetime(1970, 1, 1) + timedelta(days=number)
            rows.append((_utc_ns(midnight - before + start, zone), _utc_ns(midnight + end, zone), number))
    found = np.array(rows, dtype="<i8").reshape(-1, 3)
    ends = np.minimum(found[:, 1], np.append(found[1:, 0], TS_MAX_NS + 1))
    real = (found[:, 0] < ends) & (ends > 0)
    return Windows(np.maximum(found[real, 0], 0), ends[real], found[real, 2])


def _utc_ns(local: datetime, zone: ZoneInfo) -> int:
    return min(int(local.replace(tzinfo=zone).timestamp()) * 1_000_000_000, TS_MAX_NS + 1)


def _calendar(name: str) -> Known:
    from onetape.store.calendars import known

    return known(name)


class Known(Protocol):
    """An exchange calendar, as store/calendars.py knows it."""

    def windows(self, first_day: int, last_day: int) -> Windows: ...

    def exceptions(self, first_day: int, last_day: int) -> tuple[Sequence[int], dict[int, int], dict[int, int]]: ...

    def check(self, first_day: int, last_day: int) -> None: ...
