"""Times as legacy systems write them: epoch numbers in any unit, ISO text with or without a zone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from onetape import clock
from onetape.errors import ConfigInvalid
from onetape.record import TS_MAX_NS

#: What stands for "no value" where a text was expected; compared in lower case.
ABSENT = frozenset(("", "null", "none", "n/a", "na", "-", "--"))

# A number is seconds, milliseconds, microseconds or nanoseconds by its size alone. The spans do not touch for
# any time from 1973-03-03 to 2262, so a name that claims another unit ("timestamp_ms" holding seconds, which
# real feeds do) cannot mislead. Smaller numbers (93005, a time of day) are no epoch time at all.
_UNITS = ((10**8, 10**11, 10**9), (10**11, 10**14, 10**6), (10**14, 10**17, 10**3), (10**17, 10**20, 1))
_CACHE_MAX = 10_000


class TimeReader:
    """Turns one system's written times into ns since the epoch, UTC.

    Text without an offset is in `zone` (an IANA name such as "Asia/Kolkata"); where clocks went back it is
    the first of the two times. Raises ConfigInvalid for an unknown zone.
    """

    def __init__(self, zone: str = "UTC") -> None:
        try:
            self._zone = ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ConfigInvalid(
                f"timezone = {zone!r} is not known here", hint="give an IANA name such as 'Asia/Kolkata'"
            ) from error
        self._seconds: dict[str, int] = {}

    def read(self, value: Any) -> int | None:
        """Return ns, or None where the value means that there is none (empty, null, 0).

        Takes int, float, bytes or str. Raises ValueError with the reason.
        """
        if isinstance(value, (bytes, str)):
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            text = text.strip()
            if text.lower() in ABSENT:
                return None
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            text = repr(value)
        elif value is None:
            return None
        else:
            raise ValueError(f"{_shown(value)} is not a time")
        found = self._number(text) if _numeric(text) else self._text(text)
        if found is not None and not 0 <= found <= TS_MAX_NS:
            raise ValueError(f"{_shown(text)} is before 1970 or after 2262")
        return found

    def read_column(self, values: Sequence[Any]) -> list[int | None]:
        """Return read() of every value, faster where all are whole numbers of one unit. Raises ValueError."""
        try:
            if not b"".join(values).isdigit():
                return list(map(self.read, values))
            numbers = list(map(int, values))  # an empty value among them raises, and is read one by one
        except (TypeError, ValueError):
            return list(map(self.read, values))
        least, greatest = min(numbers), max(numbers)
        for low, high, unit in _UNITS:
            if low <= least and greatest < high and greatest * unit <= TS_MAX_NS:
                return numbers if unit == 1 else [number * unit for number in numbers]  # type: ignore[return-value]
        return list(map(self.read, values))

    def _number(self, text: str) -> int | None:
        if "e" in text or "E" in text:
            text = f"{float(text):.9f}"
        whole_text, _dot, decimals = text.partition(".")
        whole = int(whole_text or "0")
        if whole == 0 and not decimals.strip("0"):
            return None
        for low, high, unit in _UNITS:
            if low <= whole < high:
                return whole * unit + int((decimals + "000000000")[:9]) * unit // 10**9
        raise ValueError(f"{_shown(text)} is not a time since the epoch in s, ms, us or ns")

    def _text(self, text: str) -> int:
        whole, nanoseconds = text, 0
        dot = text.find(".")
        if dot > 0:
            end = dot + 1
            while end < len(text) and text[end].isdecimal():
                end += 1
            whole, nanoseconds = text[:dot] + text[end:], int((text[dot + 1 : end] + "000000000")[:9])
        known = self._seconds.get(whole)  # many ticks share a second
        if known is None:
            try:
                moment = datetime.fromisoformat(whole)
            except ValueError:
                raise ValueError(f"{_shown(text)} is not a time") from None
            known = clock.to_ns(moment if moment.tzinfo else moment.replace(tzinfo=self._zone))
            if len(self._seconds) >= _CACHE_MAX:
                self._seconds.clear()
            self._seconds[whole] = known
        return known + nanoseconds


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and text.isascii() and "n" not in text.lower()  # neither nan nor inf


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
