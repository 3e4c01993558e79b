"""Subscriptions: a callback fed from a follower, with a policy for when it is slower than the tape.

The tape itself is the queue, so no subscriber can block a writer or another subscriber; the policy says what a slow
one gets to see. `queue_records` bounds what waits for it in memory, besides what came in one reading of the tape.

    block        everything, later and later: the rest waits on the tape
    drop_oldest  the newest queue_records; what was older is dropped and counted
    conflate     the newest record of each symbol; what it replaced is dropped and counted
    disconnect   everything, until it is queue_records behind: then it ends with SubscriberTooSlow
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

from onetape.errors import OnetapeError, SubscriberTooSlow
from onetape.live.follower import Follower
from onetape.record import Bar, Cancel, Record

WhenSlow = Literal["block", "drop_oldest", "conflate", "disconnect"]
_log = logging.getLogger("onetape.live")
#: A busy subscriber looks for news at least this often, so that its queue is what its policy says.
_LOOK_S = 0.005


class SubscriptionStats(msgspec.Struct, frozen=True):
    """What a subscription has done: records delivered and dropped, callbacks that raised, positions behind."""

    delivered: int
    dropped: int
    errors: int
    queued: int
    lag: int


class Subscription:
    """A running subscription; close() ends it. `error` says why it ended by itself, else None.

    An exception of the callback is logged and counted, and the next record is delivered: one bad record must not
    silence a feed.
    """

    def __init__(
        self,
        follower: Follower,
        callback: Callable[[Record], object],
        when_slow: WhenSlow,
        queue_records: int,
        on_end: Callable[[Subscription], None],
    ) -> None:
        self._follower = follower
        self._callback = callback
        self._policy = when_slow
        self._limit = queue_records
        self._on_end = on_end
        self._queue: deque[Record] = deque()
        self._newest: dict[tuple[str, str], Record] = {}
        self._closed = threading.Event()
        self.delivered = 0
        self.dropped = 0
        self.errors = 0
        self.error: OnetapeError | None = None
        self._thread = threading.Thread(target=self._run, name="onetape-subscription", daemon=True)
        self._thread.start()

    @property
    def active(self) -> bool:
        """Return whether it still delivers."""
        return self._thread.is_alive() and not self._closed.is_set()

    @property
    def position(self) -> int:
        """Return the last position read from the tape for it."""
        return self._follower.position

    def stats(self, head: int) -> SubscriptionStats:
        """Return its counts, given the tape's last position."""
        queued = len(self._newest) if self._policy == "conflate" else len(self._queue)
        return SubscriptionStats(
            self.delivered, self.dropped, self.errors, queued, max(0, head - self._follower.position) + queued
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """End it; returns when the callback is no longer running, or after `timeout_s`."""
        self._closed.set()
        self._follower.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._deliver()
        except OnetapeError as error:
            self.error = error
            _log.error("a subscription ended: %s", error)
        except Exception as error:  # noqa: BLE001  (a thread has nobody above it: the reason must not get lost)
            self.error = OnetapeError(f"a subscription ended: {error!r}")
            _log.exception("a subscription ended")
        finally:
            self._closed.set()
            self._follower.close()
            self._queue.clear()
            self._newest.clear()
            self._on_end(self)

    def _deliver(self) -> None:
        looked = time.monotonic()
        while not self._closed.is_set():
            # Back after longer than a look may take: what has come meanwhile was waiting for it.
            late = time.monotonic() - looked > _LOOK_S and self._policy != "block"
            if not self._queue and not self._newest:
                self._fill(None, late)
            elif late:
                self._fill(0.0, late)
            looked = time.monotonic()
            for _ in range(64):
                record = self._next()
                if record is None or self._closed.is_set():
                    break
                try:
                    self._callback(record)
                except Exception:  # noqa: BLE001  (a subscriber's fault; see the class)
                    self.errors += 1
                    _log.exception("a subscriber's callback failed on %r", record)
                self.delivered += 1
                if time.monotonic() - looked > _LOOK_S:
                    break

    def _next(self) -> Record | None:
        if self._policy == "conflate":
            for key in self._newest:
                return self._newest.pop(key)
            return None
        return self._queue.popleft() if self._queue else None

    def _fill(self, timeout_s: float | None, late: bool) -> None:
        found = self._follower.take(timeout_s)
        while found:
            if self._policy == "conflate":
                self._conflate(found)
            else:
                self._queue.extend(found)
            if not late:
                return  # what came at once is no sign of slowness
            if self._policy == "disconnect" and len(self._queue) > self._limit:
                raise SubscriberTooSlow(
                    f"a subscriber fell {len(self._queue)} records behind, {self._limit} are allowed",
                    hint="make the callback faster, raise queue_records, or choose another when_slow",
                )
            if self._policy == "drop_oldest" and len(self._queue) > self._limit:
                over = len(self._queue) - self._limit
                for _ in range(over):
                    self._queue.popleft()
                self.dropped += over
            found = self._follower.take(0.0)

    def _conflate(self, found: list[Record]) -> None:
        for record in found:
            of = record.interval if isinstance(record, Bar) else "cancels" if isinstance(record, Cancel) else ""
            key = (record.symbol, of)
            old = self._newest.get(key)
            if old is not None:
                self.dropped += 1
                if _order(old) > _order(record):
                    continue
                del self._newest[key]  # its turn comes where the newer one stands
            self._newest[key] = record


def _order(record: Record) -> tuple[int, int]:
    ts = record.ts_start_ns if isinstance(record, Bar) else record.ts_event_ns
    return ts, record.seq or 0
