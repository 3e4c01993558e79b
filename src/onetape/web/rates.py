"""Rates: how often something may be done, by whom; in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

#: Whoever was not seen for the longest is forgotten beyond so many; forgetting gives a full bucket.
_KEPT = 10_000


class Rates:
    """A token bucket for each name: `per_s` a second, `burst` at once."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, cost: float = 1.0) -> float:
        """Take from a name's bucket; return 0, or after how many seconds to come again."""
        now = self._clock()
        left, at = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_s)
        wait = 0.0 if left >= cost else (cost - left) / self._per_s
        self._left[name] = (left if wait else left - cost, now)
        self._left.move_to_end(name)
        if len(self._left) > _KEPT:
            self._left.popitem(last=False)
        return wait

    def charge(self, name: str, cost: float) -> None:
        """Take more from a name's bucket, below nothing if need be."""
        now = self._clock()
        left, at = self._left.get(name, (self._burst, now))
        self._left[name] = (max(-self._burst, min(self._burst, left + (now - at) * self._per_s) - cost), now)
        self._left.move_to_end(name)

    def __len__(self) -> int:
        return len(self._left)
