"""Hints: which keys were written lately, as the server's keyspace notifications tell. A hint is never the truth.

A thread of its own listens, so that the server does not cut us off for being slow. A key that is hinted a thousand
times before it is looked at is one hint. What was lost (a cut connection, a full queue) is made up for by a sweep:
`lost` says that one is due.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, NamedTuple

from onetape.errors import EndpointError
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, pack

#: Events after which a key is no more. A key that is gone without one went by FLUSHDB, SWAPDB or a restart.
_GONE = frozenset({b"del", b"expired", b"evicted", b"rename_from", b"move_from"})
#: Hinted keys that are held at most, each once.
QUEUE_MAX = 200_000
_TIMEOUT_S = 10.0


class Hint(NamedTuple):
    """A key that was written. `gone`: its last event was the end of it. `seen_s`: when the first one came in."""

    db: int
    key: bytes
    gone: bool
    seen_s: float


class Hints:
    """Listens to the events of some databases. start() it, take() from it, stop() it.

    `beat`: our own key in one of them, whose events measure the way and are no hints.
    """

    def __init__(self, url: str, dbs: tuple[int, ...], beat: bytes, *, queue_max: int = QUEUE_MAX) -> None:
        self._url = url
        self._dbs = dbs
        self._beat = beat
        self._queue_max = queue_max
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        self._done = threading.Event()
        self._endpoint: Endpoint | None = None
        self._waiting: dict[tuple[int, bytes], tuple[bool, float]] = {}
        self._channels: dict[bytes, tuple[int, bool]] = {}
        self._beats: deque[float] = deque(maxlen=64)
        self._thread = threading.Thread(target=self._listen, name="onetape-hints", daemon=True)
        #: Whether hints were lost since this was last set to False.
        self.lost = True
        self._cut = False
        self.lag_ms: float | None = None
        self.beat_at_s: float | None = None
        self.listening = False
        self.seen = 0

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._done.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(_TIMEOUT_S)

    def take(self, most: int) -> list[Hint]:
        """Return the oldest hints, each key once, and forget them."""
        with self._lock:
            places = [place for place, _ in zip(self._waiting, range(most), strict=False)]
            taken = [Hint(*place, *self._waiting.pop(place)) for place in places]
            if not self._waiting:
                self._arrived.clear()
        return taken

    def put_back(self, hints: list[Hint]) -> None:
        """Take hints again that could not be followed yet; what came in meanwhile says more."""
        with self._lock:
            for hint in hints:
                self._waiting.setdefault((hint.db, hint.key), (hint.gone, hint.seen_s))
            if hints:
                self._arrived.set()

    def wait(self, seconds: float) -> None:
        """Wait until there is a hint, at most so long."""
        self._arrived.wait(seconds)

    def pending(self, db: int, key: bytes) -> bool:
        """Return whether the key is hinted and not taken yet."""
        return (db, key) in self._waiting

    @property
    def queue(self) -> int:
        """How many keys are hinted and not taken yet."""
        return len(self._waiting)

    def oldest_s(self) -> float | None:
        """Return when the oldest hint that was not taken came in, by time.monotonic()."""
        with self._lock:
            return next(iter(self._waiting.values()))[1] if self._waiting else None

    def beat_sent(self) -> None:
        """Tell that our own key is being written now."""
        self._beats.append(time.monotonic())

    def beat_missing_s(self) -> float:
        """Return for how long a beat has been on its way, 0 where none is."""
        return time.monotonic() - self._beats[0] if self._beats else 0.0

    def cut(self) -> None:
        """Give the connection up and make another."""
        self._cut = True
        self._wake()

    def _wake(self) -> None:
        endpoint = self._endpoint
        if endpoint is not None and not endpoint.closed:
            try:
                endpoint.send(pack("PING"))  # its answer ends the listener's wait
            except EndpointError:
                pass

    def _listen(self) -> None:
        pause_s = 0.1
        while not self._done.is_set():
            try:
                with Endpoint.connect(self._url, timeout_s=_TIMEOUT_S) as endpoint:
                    self._endpoint = endpoint
                    endpoint.pipeline([("CLIENT", "SETNAME", "onetape-mirror")])
                    patterns = [b"__keyevent@%d__:*" % db for db in self._dbs]
                    endpoint.send(pack("PSUBSCRIBE", *patterns))
                    self._beats.clear()
                    self._cut = False
                    self.lost = self.listening = True  # what was written before is not hinted
                    pause_s = 0.1
                    while not (self._done.is_set() or self._cut):
                        self._take_in(endpoint.receive(1)[0])
            except EndpointError:
                self.lost = True
            finally:
                self.listening = False
            self._done.wait(pause_s)
            pause_s = min(2.0, pause_s * 2)

    def _take_in(self, message: Any) -> None:
        if isinstance(message, ReplyError):
            raise EndpointError(f"listening: {message.message}", code=message.code)
        if message[0] != b"pmessage":
            return
        channel, key = message[2], message[3]
        found = self._channels.get(channel)
        if found is None:
            name, _, event = channel.partition(b"__:")
            found = self._channels[channel] = (int(name.rpartition(b"@")[2]), event in _GONE)
        now_s = time.monotonic()
        if key == self._beat:
            if self._beats:
                self.lag_ms = (now_s - self._beats.popleft()) * 1000
            self.beat_at_s = now_s
            return
        if key.startswith(b"onetape:"):
            return
        self.seen += 1
        db, gone = found
        with self._lock:
            before = self._waiting.get((db, key))
            if before is not None:
                self._waiting[db, key] = (gone, before[1])
            elif len(self._waiting) < self._queue_max:
                self._waiting[db, key] = (gone, now_s)
            else:
                self.lost = True
                return
        self._arrived.set()
