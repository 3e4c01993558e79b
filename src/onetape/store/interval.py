"""Intervals: how an aggregation is written, and what it means.

    250ms 1s 90s 1min 7min 1h      time: a bar a step, counted from the open of the session
    1d 5d 7d                       time: a bar a session, or all sessions of so many days, from Monday 1970-01-05
    100tick                        closes with its 100th trade
    5000volume                     closes with the trade with which the sizes of its trades add up to 5,000 or more
    1000000value                   closes with the trade with which price × size (without sign) adds up to 1,000,000
    2.5range                       a trade that would make high − low greater than 2.5 opens the next bar

A trade is never split. All but time bars are counted from the open of each session, so the same trades make the same
bars, whatever span is asked for.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from onetape.errors import ConfigInvalid
from onetape.record import interval_ns, interval_text
from onetape.store.layout import DAY_NS

Kind = Literal["time", "days", "tick", "volume", "value", "range"]

_COUNTED: tuple[Kind, ...] = ("tick", "volume", "value", "range")
_WRITTEN = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?(tick|volume|value|range)s?")
_HINT = "write 250ms, 30s, 5min, 1h, 1d, or 100tick, 5000volume, 1000000value, 2.5range"


class Interval(NamedTuple):
    """An aggregation: `size` is ns of "time", a count of "days" and "tick", else an amount. `text` is canonical."""

    kind: Kind
    size: float
    text: str

    @property
    def ns(self) -> int | None:
        """Return the length of a bar of time, or None for bars that are counted."""
        return int(self.size) * (DAY_NS if self.kind == "days" else 1) if self.kind in ("time", "days") else None

    @property
    def counted(self) -> bool:
        """Return whether trades close its bars, and not the clock."""
        return self.kind in _COUNTED


def parse(text: str) -> Interval:
    """Return what an interval's text means. Raises ConfigInvalid for one that means nothing."""
    if not isinstance(text, str):
        raise ConfigInvalid(f"interval = {text!r} is not a text", hint=_HINT)
    counted = _WRITTEN.fullmatch(text.strip())
    if counted:
        return _counted(text, float(counted[1]), counted[2])
    try:
        ns = interval_ns(text)
    except ValueError as error:
        raise ConfigInvalid(str(error), hint=_HINT) from error
    if ns % DAY_NS == 0:
        return Interval("days", ns // DAY_NS, interval_text(ns))
    if ns > DAY_NS:
        raise ConfigInvalid(
            f"{text!r} is longer than a day, but no whole number of days", hint="bars are counted from a session's open"
        )
    return Interval("time", ns, interval_text(ns))


def _counted(text: str, size: float, unit: str) -> Interval:
    kind = next(kind for kind in _COUNTED if kind == unit)
    if not size > 0:
        raise ConfigInvalid(f"{text!r} is not an interval: it is more than nothing", hint=_HINT)
    if kind == "tick" and size != int(size):
        raise ConfigInvalid(f"{text!r} is not an interval: ticks are counted whole", hint=_HINT)
    return Interval(kind, size, f"{int(size) if size == int(size) else size!r}{kind}")
