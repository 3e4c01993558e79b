"""The tally: what became of a client's reads, in all and over the last seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec

#: Seconds that are kept one by one.
KEPT_S = 600


class ReadStats(msgspec.Struct, frozen=True, kw_only=True):
    """How a client's reads went. Counts since it was made; reads of keys that the plan leaves alone are in none.

    `reads`: all. `new_reads`: answered by the new side. `old_reads`: answered by the old side because it was its turn.
    `old_fallbacks`: asked of the new side, which did not have what the old one has; `errors` among them because the new
    side gave an error. `misses`: neither had it. `passed`: commands let through although their keys have two sides.
    `shadow`: reads compared with the other side; `mismatches` of them differed twice, `healed` once. `dropped`: not
    compared because there were more than 200 a second, or the queue was full; `failed`: because a side did not answer.
    """

    reads: int = 0
    new_reads: int = 0
    old_reads: int = 0
    old_fallbacks: int = 0
    misses: int = 0
    errors: int = 0
    passed: int = 0
    shadow: int = 0
    mismatches: int = 0
    healed: int = 0
    dropped: int = 0
    failed: int = 0

    @property
    def new_read_percentage(self) -> float:
        """Of all reads that found something, how many the new side answered, 0 to 100."""
        answered = self.new_reads + self.old_reads + self.old_fallbacks
        return 100 * self.new_reads / answered if answered else 0.0


class Tally:
    """Counts. For any number of threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[str, int] = dict.fromkeys(ReadStats.__struct_fields__, 0)
        # Second → [new reads, fallbacks]: at most KEPT_S of them, whatever happens.
        self._seconds: dict[int, list[int]] = {}

    def add(self, what: str, number: int = 1) -> None:
        """Count something of ReadStats."""
        with self._lock:
            self._counts[what] += number

    def settle(self, new_reads: int, old_reads: int) -> None:
        """Count reads of a packet: answered by the new side, and by the old one in its turn."""
        if new_reads:
            self.new(new_reads)
        if old_reads:
            self.other("old_reads", old_reads)

    def new(self, number: int = 1) -> None:
        """Count reads that the new side answered."""
        self._switched("new_reads", 0, number)

    def fallback(self, number: int = 1) -> None:
        """Count reads that only the old side could answer."""
        self._switched("old_fallbacks", 1, number)

    def _switched(self, what: str, column: int, number: int) -> None:
        second = int(self._clock())
        with self._lock:
            self._counts["reads"] += number
            self._counts[what] += number
            found = self._seconds.get(second)
            if found is None:
                found = self._seconds[second] = [0, 0]
                if len(self._seconds) > KEPT_S:
                    oldest = second - KEPT_S
                    self._seconds = {at: pair for at, pair in self._seconds.items() if at > oldest}
            found[column] += number

    def other(self, what: str, number: int = 1) -> None:
        """Count reads that ended as `what` ("old_reads", "misses")."""
        with self._lock:
            self._counts["reads"] += number
            self._counts[what] += number

    def switched(self, seconds: int = 60) -> tuple[int, int]:
        """Return (answered by the new side, fallbacks) of the last seconds, up to KEPT_S."""
        since = int(self._clock()) - seconds
        with self._lock:
            pairs = [pair for at, pair in self._seconds.items() if at > since]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def fallback_rate(self, seconds: int = 60) -> float:
        """Return the share, 0 to 1, of the reads asked of the new side that had to fall back; 0 of none."""
        new, fallbacks = self.switched(seconds)
        return fallbacks / (new + fallbacks) if new + fallbacks else 0.0

    def stats(self) -> ReadStats:
        """Return the counts as of now."""
        with self._lock:
            return ReadStats(**self._counts)


__all__ = ["KEPT_S", "ReadStats", "Tally"]
