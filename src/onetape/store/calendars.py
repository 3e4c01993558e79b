"""Calendars: the trading days of exchanges, from the package exchange-calendars, loaded when one is asked for."""

from __future__ import annotations

import warnings
from datetime import date
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import numpy as np

from onetape.errors import ConfigInvalid
from onetape.store.block import Array
from onetape.store.sessions import Windows, day_of

#: India's two exchanges keep the same days and hours; the package knows them under the older one's name.
_ALSO = {"XNSE": "XBOM", "NSE": "XBOM"}
#: pandas, which the package counts in, ends on 2262-04-11.
_LAST_DAY = (date(2261, 12, 31) - date(1970, 1, 1)).days


class Known:
    """An exchange calendar by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def windows(self, first_day: int, last_day: int) -> Windows:
        """Return the sessions of the trading days first_day … last_day, a break between two spans of one day."""
        table = self._schedule(first_day, last_day)
        opens, closes, starts, ends = (_ns(table[name]) for name in ("open", "close", "break_start", "break_end"))
        days = _days(table.index)
        paused = starts > 0  # "not a time" is the least integer
        both = Windows(
            np.concatenate((opens, ends[paused])),
            np.concatenate((np.where(paused, starts, closes), closes[paused])),
            np.concatenate((days, days[paused])),
        )
        order = np.argsort(both.opens, kind="stable")
        order = order[(both.opens[order] >= 0) & (both.opens[order] < both.closes[order])]
        return Windows(both.opens[order], both.closes[order], both.days[order])

    def exceptions(self, first_day: int, last_day: int) -> tuple[list[int], dict[int, int], dict[int, int]]:
        """Return the trading days; early closes and late opens as UTC ns by day."""
        table, calendar = self._schedule(first_day, last_day), self._loaded(first_day, last_day)
        days = _days(table.index).tolist()
        closes = dict(zip(days, _ns(table["close"]).tolist(), strict=True))
        opens = dict(zip(days, _ns(table["open"]).tolist(), strict=True))
        early = set(_days(calendar.early_closes).tolist()) & closes.keys()
        late = set(_days(calendar.late_opens).tolist()) & opens.keys()
        return days, {day: closes[day] for day in early}, {day: opens[day] for day in late}

    def check(self, first_day: int, last_day: int) -> None:
        """Raise ConfigInvalid if these days are beyond what the calendar knows."""
        lowest, highest = _bounds(self.name)
        if first_day < lowest or last_day > highest:
            raise ConfigInvalid(
                f"the calendar {self.name} knows {day_of(lowest)} to {day_of(highest)},"
                f" not {day_of(first_day)} to {day_of(last_day)}",
                hint="ask for a span within, or install a newer exchange-calendars",
            )

    def _schedule(self, first_day: int, last_day: int) -> Any:
        calendar = self._loaded(first_day, last_day)
        return calendar.schedule.loc[str(day_of(max(first_day, 0))) : str(day_of(last_day))]

    def _loaded(self, first_day: int, last_day: int) -> Any:
        lowest, highest = _bounds(self.name)
        first, last = (day_of(min(max(day, lowest), highest)).year for day in (first_day, last_day))
        return _load(self.name, first, last)


@lru_cache(64)
def known(name: str) -> Known:
    """Return the calendar of that name. Raises ConfigInvalid, with names like it, where there is none."""
    package = _package()
    wanted = _ALSO.get(name, name)
    names = [*package.get_calendar_names(), *_ALSO]
    if wanted not in names:
        near = get_close_matches(name.upper(), names, 3, 0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "names are market codes such as XNYS, XBOM, CMES"
        raise ConfigInvalid(f"no exchange calendar is called {name!r}", hint=hint)
    return Known(wanted)


@lru_cache(64)
def _bounds(name: str) -> tuple[int, int]:
    """Return the first and last day a calendar knows, counted from 1970-01-01."""
    calendar = _get(name)
    lowest, highest = calendar.bound_min(), calendar.bound_max()
    first = 0 if lowest is None else max(0, (lowest.date() - date(1970, 1, 1)).days)
    last = _LAST_DAY if highest is None else (highest.date() - date(1970, 1, 1)).days
    return first, last


@lru_cache(16)
def _load(name: str, first_year: int, last_year: int) -> Any:
    """Return a calendar of whole years, as far as it knows them."""
    lowest, highest = _bounds(name)
    first = max(date(first_year, 1, 1), day_of(lowest))
    last = min(date(last_year, 12, 31), day_of(highest))
    return _get(name, start=str(first), end=str(last))


def _get(name: str, **span: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what the package asks of pandas is not ours to change
        calendar = _package().get_calendar(name, **span)
        _ = calendar.schedule, calendar.early_closes, calendar.late_opens  # computed once, with the same words
    return calendar


def _package() -> Any:
    try:
        import exchange_calendars
    except ImportError as error:
        raise ConfigInvalid(
            "exchange calendars are not installed", hint="pip install 'onetape[sessions]', or give a Session's hours"
        ) from error
    return exchange_calendars


def _ns(column: Any) -> Array:
    return np.asarray(column.dt.tz_localize(None).to_numpy().astype("datetime64[ns]").astype("<i8"))


def _days(index: Any) -> Array:
    return np.asarray(index.to_numpy().astype("datetime64[D]").astype("<i8"))
