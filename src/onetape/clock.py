"""The clock: the one place that asks what time it is, and that turns what people write into nanoseconds."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime

from onetape.errors import ConfigInvalid

Time = str | int | datetime | date
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_ns() -> int:
    """Return the time now, ns since the epoch, UTC."""
    return time.time_ns()


def to_ns(value: Time, name: str = "time") -> int:
    """Return `value` as ns since the epoch, UTC.

    int: nanoseconds already. datetime: with a zone, exact; without one, UTC. date: its midnight, UTC. str: ISO
    8601 with up to nine decimals of a second; without an offset, UTC. Raises ConfigInvalid, naming `name`.
    """
    if isinstance(value, bool | float):  # a float cannot hold nanoseconds; seconds would be taken for them
        raise ConfigInvalid(f"{name} = {value!r} is not a time", hint="give ns, an ISO 8601 text or a datetime")
    if isinstance(value, int):
        return value
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        delta = aware - _EPOCH
        nanosecond = getattr(value, "nanosecond", 0)  # a pandas Timestamp is a datetime with more
        return (delta.days * 86400 + delta.seconds) * 1_000_000_000 + delta.microseconds * 1000 + nanosecond
    if isinstance(value, date):
        return (value - _EPOCH.date()).days * 86_400_000_000_000
    if isinstance(value, str):
        return _text_to_ns(value.strip(), name)
    try:  # a NumPy or pandas time or integer
        return int(value.astype("datetime64[ns]").astype("int64")) if hasattr(value, "astype") else int(value)
    except (TypeError, ValueError) as error:
        raise ConfigInvalid(
            f"{name} = {value!r} is not a time", hint="give ns, an ISO 8601 text or a datetime"
        ) from error


def _text_to_ns(text: str, name: str) -> int:
    if text.lstrip("-").isdecimal() and len(text) > 8:
        return int(text)
    whole, extra_ns = text, 0
    dot = text.find(".")
    if dot > 0:
        end = dot + 1
        while end < len(text) and text[end].isdecimal():
            end += 1
        digits = (text[dot + 1 : end] + "000000000")[:9]
        whole, extra_ns = text[:dot] + text[end:], int(digits)
    try:
        return to_ns(datetime.fromisoformat(whole)) + extra_ns
    except ValueError as error:
        raise ConfigInvalid(
            f"{name} = {text!r} is not a time", hint="write ISO 8601, such as 2025-03-14T09:30:00.250Z"
        ) from error


def to_text(ts_ns: int) -> str:
    """Return a time as ISO 8601 in UTC with the decimals it needs: 3, 6 or 9."""
    seconds, rest = divmod(ts_ns, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    if rest % 1_000_000 == 0:
        return f"{whole}.{rest // 1_000_000:03d}Z"
    if rest % 1000 == 0:
        return f"{whole}.{rest // 1000:06d}Z"
    return f"{whole}.{rest:09d}Z"
