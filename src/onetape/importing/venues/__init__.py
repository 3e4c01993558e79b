"""Venues: what the messages of an exchange's websocket mean, one module a venue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

Row = dict[str, Any]  #: fields of a tick by name
Rows = list[Row]


class Said(NamedTuple):
    """One message: what was said, when we got it, and over which address, where the recording tells."""

    body: Any
    recv_ns: int
    url: str | None


class Venue(Protocol):
    """Turns messages into ticks. Holds the books that its updates build."""

    name: str

    def take(self, said: Said) -> Rows:
        """Return the ticks of a message. Raises KeyError, TypeError, ValueError, IndexError for one it cannot read."""
        ...

    def end(self) -> None:
        """Count what is still waiting for something that did not come."""
        ...


Skip = Callable[[str, int], None]  #: counts what is not taken, by kind


def ms(value: Any) -> int:
    """Return milliseconds as ns."""
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no time in ms")
    return value * 1_000_000


def seconds(text: str) -> int:
    """Return seconds with decimals, as text, as ns: exactly."""
    whole, _, fraction = text.partition(".")
    if not whole.isdecimal() or (fraction and not fraction.isdecimal()) or len(whole) > 10:
        raise ValueError(f"{text!r} is no time in seconds")
    return int(whole) * 1_000_000_000 + int((fraction + "000000000")[:9])
