"""The server's clock: the time that a migration goes by, as one client knows it."""

from __future__ import annotations

import time
from typing import Any

from onetape.clock import now_ns

#: So old may what is known of the server's time be, s.
_CLOCK_S = 3.0


class ServerClock:
    """The server's time, which operators go by: our own clock may be wrong, or be set while we run."""

    def __init__(self) -> None:
        self._ahead_ms: float | None = None
        self._noted_s = float("-inf")

    def note(self, reply: Any) -> None:
        """Take in a reply to TIME; an error, where a user may not ask, leaves all as it is."""
        if isinstance(reply, list | tuple):
            self._noted_s = time.monotonic()
            self._ahead_ms = int(reply[0]) * 1000 + int(reply[1]) // 1000 - self._noted_s * 1000

    @property
    def is_old(self) -> bool:
        """Return whether the server should be asked again."""
        return time.monotonic() - self._noted_s > _CLOCK_S

    def now_ms(self) -> int:
        """Return the server's time, ms since the epoch; ours where it was never told."""
        if self._ahead_ms is None:
            return now_ns() // 1_000_000
        return round(time.monotonic() * 1000 + self._ahead_ms)
