"""The heartbeat: how a client tells operators that it is there, which phase it saw, and what it did.

A field of the hash of clients, renewed with a write about once a second, and by a thread where nothing is written, so
that an idle client takes in a new phase within a second or two. Taken back when the client is closed.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING

import msgspec
import redis
from redis.exceptions import RedisError

from onetape.errors import OnetapeError
from onetape.migrate.dual.exchange import Exchange
from onetape.migrate.dual.step import Send, Steps, Wire
from onetape.migrate.wire.endpoint import pack

if TYPE_CHECKING:
    from onetape.migrate.dual.client import Dual

_log = logging.getLogger(__name__)

#: Seconds between two heartbeats.
EVERY_S = 1.0


class Beat:
    """What a heartbeat says, and when it was last said."""

    def __init__(self, exchange: Exchange, client: str, name: str) -> None:
        self._exchange, self._field, self._name = exchange, client, name
        self._last = 0.0
        self._version = -1
        self.told = False

    def forked(self, client: str) -> None:
        """Tell of another client from here on."""
        self._field, self.told, self._version = client, False, -1

    def _seen(self) -> int:
        state = self._exchange.state
        return state.version if state is not None else 0

    def due(self) -> bool:
        """Return whether the last one is a second old, or tells of another version than the one seen."""
        return time.monotonic() - self._last >= EVERY_S or self._version != self._seen()

    def pulse_due(self) -> bool:
        """Return whether a packet of its own is called for: a heartbeat, the server's clock, what is owed."""
        return self.due() or self._exchange.clock.is_old or bool(self._exchange.owed)

    def piggyback(self) -> bytes | None:
        """Return the packed command that tells it, None where it is not due. It counts as told."""
        if not self.due():
            return None
        self._last = time.monotonic()
        return self.packed()

    def packed(self) -> bytes:
        """Return the packed command that tells it now."""
        self.told, self._version = True, self._seen()
        exchange, counts = self._exchange, self._exchange.counts
        facts = {
            "name": self._name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "kind": "writer",
            "version": self._version,
            "phase": str(exchange.phase),
            "writes": counts.writes,
            "reads": counts.reads,
            "divergences": counts.divergences,
            "passed": counts.passed,
            "at_ms": exchange.clock.now_ms(),
            "lib": f"redis-py {redis.__version__}",
        }
        return pack("HSET", exchange.names.clients, self._field, msgspec.json.encode(facts))

    def pulse(self, lane: Wire) -> Steps:
        """Take in the state and tell the heartbeat."""
        exchange = self._exchange
        if not lane.armed:
            yield from exchange.arm(lane)
        replies = yield Send(pack("TIME") + pack("GET", exchange.names.state) + self.packed(), 3)
        exchange.clock.note(replies[0])
        if isinstance(replies[1], Exception):
            raise replies[1]
        exchange.note(lane, replies[1])
        self._last = time.monotonic()
        if exchange.owed:
            yield from exchange.pay(lane)

    def goodbye(self, lane: Wire) -> Steps:
        """Take the heartbeat back."""
        if not lane.armed:
            yield from self._exchange.arm(lane)
        if self._exchange.owed:
            yield from self._exchange.pay(lane)
        yield Send(pack("HDEL", self._exchange.names.clients, self._field), 1)
        self.told = False


class Heartbeat:
    """The heartbeat of a client that is used by threads."""

    def __init__(self, dual: Dual, beat: Beat) -> None:
        self._dual, self.beat = weakref.ref(dual), beat
        self._pid = 0
        self._done = threading.Event()
        self._lock = threading.Lock()

    def forked(self, client: str) -> None:
        """Begin anew in a process that was forked, perhaps while another thread held the lock."""
        self._lock = threading.Lock()
        self.beat.forked(client)

    def wake(self) -> None:
        """Start the thread, if this process has none."""
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._done = threading.Event()
                threading.Thread(
                    target=_beat_on, args=(self._dual, self.beat, self._done), name="onetape-dual", daemon=True
                ).start()

    def close(self) -> None:
        """Stop the thread and take the heartbeat back, if the server can be reached."""
        self._done.set()
        dual = self._dual()
        if dual is None or not self.beat.told or self._pid != os.getpid():
            return
        try:
            dual.once(self.beat.goodbye)
        except (RedisError, OnetapeError, OSError) as error:
            _log.info("the heartbeat of %s stays until it is old: %s", dual.id, error)


def _beat_on(of: weakref.ref[Dual], beat: Beat, done: threading.Event) -> None:
    while not done.wait(EVERY_S / 2):
        dual = of()
        if dual is None:
            return
        if beat.pulse_due():
            try:
                dual.once(beat.pulse)
            except (RedisError, OnetapeError, OSError) as error:  # a write will meet it too, and tell its caller
                _log.warning("no heartbeat of %s: %s", dual.id, error)
        del dual


__all__ = ["EVERY_S", "Beat", "Heartbeat"]
