"""Pacing: what the backfill and the verify ask before they send, and are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Pacing(Protocol):
    """Decides when the next keys may be sent. Used by one thread."""

    #: How many keys are to go, as far as whoever asks knows: said before each wait().
    left: int
    #: To be raised by commands that others send too, so that they are not taken for the load of others.
    own_calls: int
    #: Called now and then while wait() waits, and once before it waits for perhaps long: with nothing on its way.
    on_wait: Callable[[], None] | None
    on_stop: Callable[[], None] | None

    @property
    def batch_keys(self) -> int | None:
        """How many keys should be sent together at most, None where it does not matter."""

    @property
    def reason(self) -> str | None:
        """Why it is slower than it could be at the moment, in words; None: nothing holds it back."""

    def wait(self, keys: int, size: int = 0, *, work: float | None = None) -> None:
        """Return when `keys` more keys of about `size` bytes in all (0: not known) may be sent.

        `work`: what they cost the server, in keys that are copied (`keys`, if None). Raises MemoryShort.
        """

    def waited(self) -> dict[str, float]:
        """Return the seconds waited by the kind of reason, most first."""


__all__ = ["Pacing"]
