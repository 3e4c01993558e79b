"""The inbox: deliveries on their way from a source's thread to the tape, in order, bounded, taken as many as wait."""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

from onetape.sources.source import Delivery

#: Records that may wait before the source has to: a second and more of the busiest feed, tens of megabytes.
RECORDS_MAX = 65_536
#: Deliveries that may wait, however small.
DELIVERIES_MAX = 8_192


class Arrived(NamedTuple):
    """A delivery, up to when its source was heard, and whether its source was live then, after how many reconnects."""

    delivery: Delivery
    at_ns: int
    live: bool
    reconnects: int


class Inbox:
    """Between one thread that puts and one that takes. Ended by `end()`, after which what waits can still be taken."""

    def __init__(self, records_max: int = RECORDS_MAX, deliveries_max: int = DELIVERIES_MAX) -> None:
        self._records_max, self._deliveries_max = records_max, deliveries_max
        self._waiting: deque[Arrived] = deque()
        self._records = 0
        self._ended = self._refusing = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def records(self) -> int:
        """How many records wait."""
        return self._records

    def put(self, arrived: Arrived) -> bool:
        """Add a delivery; wait while it is full. Return False where nobody will take it any more."""
        count = arrived.delivery.count
        with self._changed:
            while not self._refusing and self._waiting and self._full(count):
                self._changed.wait()
            if self._refusing:
                return False
            self._waiting.append(arrived)
            self._records += count
            self._changed.notify_all()
        return True

    def _full(self, more: int) -> bool:
        return self._records + more > self._records_max or len(self._waiting) >= self._deliveries_max

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing comes any more, and why, if it is an error: raised behind what waits."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def refuse(self) -> None:
        """Take nothing any more; whoever waits in put() goes on."""
        with self._changed:
            self._refusing = True
            self._changed.notify_all()

    def take(self, records: int, timeout_s: float) -> list[Arrived] | None:
        """Return what waits, at least one delivery and then up to `records` records, in order.

        [] after `timeout_s` without any; None at the end. Raises the error that the source ended with.
        """
        with self._changed:
            if not self._waiting and not self._ended:
                self._changed.wait(timeout_s)
            if not self._waiting:
                if not self._ended:
                    return []
                if self._error is not None:
                    raise self._error
                return None
            taken: list[Arrived] = []
            count = 0
            while self._waiting:
                more = self._waiting[0].delivery.count
                if taken and count + more > records:
                    break
                taken.append(self._waiting.popleft())
                count += more
            self._records -= count
            self._changed.notify_all()
        return taken
