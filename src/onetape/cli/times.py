"""Times as people type them: what `onetape.to_ns` takes, and `now`, `today`, `-15m`, `-2h30m`, `-1d`."""

from __future__ import annotations

import re

from onetape.clock import now_ns, to_ns
from onetape.errors import ConfigInvalid

_UNITS_NS = {
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "min": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}
_PART = r"(\d+(?:\.\d+)?)(s|min|m|h|d|w)"
_RELATIVE = re.compile(rf"([+-])((?:{_PART})+)")
_DAY_NS = _UNITS_NS["d"]

HELP = "ISO 8601 (UTC unless it says otherwise), a date, ns, now, today, or relative: -15m, -2h30m, -1d."


def parse_time(text: str | None, name: str, now: int | None = None) -> int | None:
    """Return a time in ns since the epoch, or None for None. Raises ConfigInvalid, naming `name`."""
    if text is None:
        return None
    now = now_ns() if now is None else now
    word = text.strip()
    if word == "now":
        return now
    if word == "today":
        return now - now % _DAY_NS
    relative = _RELATIVE.fullmatch(word)
    if relative:
        span = sum(float(count) * _UNITS_NS[unit] for count, unit in re.findall(_PART, relative[2]))
        return now + (-int(span) if relative[1] == "-" else int(span))
    try:
        return to_ns(word, name)
    except ConfigInvalid as error:
        raise ConfigInvalid(
            error.message, hint="write 2025-03-14T09:30:00, 2025-03-14, now, today, or a span back such as -15m"
        ) from error


def parse_span(start: str | None, end: str | None, now: int | None = None) -> tuple[int | None, int | None]:
    """Return (start, end) in ns of --start and --end. Raises ConfigInvalid when they are the wrong way round."""
    now = now_ns() if now is None else now
    start_ns, end_ns = parse_time(start, "--start", now), parse_time(end, "--end", now)
    if start_ns is not None and end_ns is not None and start_ns >= end_ns:
        raise ConfigInvalid(
            f"--start {start} is not before --end {end}", hint="records of start <= time < end are shown"
        )
    return start_ns, end_ns


def position(as_of: str | None) -> int | str | None:
    """Return what --as-of says: a position where it is a short number, else a snapshot's name or a time as it stands.

    So long a number is a time in nanoseconds.
    """
    return int(as_of) if as_of is not None and as_of.isdecimal() and len(as_of) < 16 else as_of
