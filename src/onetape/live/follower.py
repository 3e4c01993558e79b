"""The follower: a reader with a position of its own that goes from history to live without gap or duplicate."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

import apsw
import numpy as np

from onetape.errors import TapeClosed
from onetape.live.waker import Waker
from onetape.record import Record
from onetape.store import query, replay
from onetape.store.block import Array
from onetape.store.catalog import Catalog
from onetape.store.query import Names

#: After a hint the commit may still be on its way into the log: look again after these pauses, seconds.
_LOOKS_S = (0.00005, 0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032)

Guard = Callable[[Exception, str], Exception]


class Follower:
    """Yields records after a position, for ever: first what is there, then what comes.

    Iterate over it, or call take(). It is for one thread; close() may come from any. `position` is the last one
    seen, whether it matched or not: give it as `from_seq` to go on later. `lag` is how many positions it is behind.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        waker: Waker,
        *,
        symbols: Iterable[str] | None = None,
        position: int | None = None,
        start_ns: int | None = None,
        idle_s: float | None = None,
        on_close: Callable[[Follower], None] | None = None,
    ) -> None:
        self._connection = connection
        self._waker = waker
        self._names = Names(Catalog(), connection)
        self._symbols = None if symbols is None else frozenset([symbols] if isinstance(symbols, str) else symbols)
        self._wanted: Array | None = None
        self._names_version = -1
        self._all_known = False
        self._start_ns = start_ns
        self._idle_s = idle_s
        self._buffer: deque[Record] = deque()
        self._cache = replay.Cache()
        self._closed = False
        self._using = threading.Lock()
        self._on_close = on_close
        if start_ns is not None:
            position = replay.first_position(connection, start_ns)
        #: From the beginning, or from a time: what retention has removed is not asked for.
        self._all_left = position == 0 or start_ns is not None
        self._pid = os.getpid()
        self.position = query.head(connection) if position is None else position

    @property
    def lag(self) -> int:
        """Return how many positions the tape is ahead of what was taken."""
        with self._using:
            if self._closed:
                return 0
            return query.head(self._connection) - self.position + len(self._buffer)

    def poke(self) -> None:
        """Make a waiting take() look at once."""
        self._waker.poke()

    def take(self, timeout_s: float | None = 0.0) -> list[Record]:
        """Return the next records in order of position, waiting up to `timeout_s` (None: for ever) for the first.

        Empty: none came in time, or closed. One call returns at most a span of the tape (65,536 records).
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        looks = len(_LOOKS_S)
        while not self._closed:
            found = self._look()
            if found:
                return found
            left = self._waker.interval_s if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return []
            pause = _LOOKS_S[looks] if looks < len(_LOOKS_S) else self._waker.interval_s
            hinted = self._waker.wait(min(left, pause))
            looks = 0 if hinted else looks + 1
        return []

    def _look(self) -> list[Record]:
        if os.getpid() != self._pid:
            raise TapeClosed("this follower was opened before the process was forked", hint="follow in the new process")
        with self._using:
            while not self._closed:
                step = replay.step(self._connection, self.position, self._all_left, self._cache)
                if step is None:
                    return []
                found = replay.records(step.found, self._names, self._matching(), self._start_ns)
                self.position = step.position
                if found:
                    return found
        return []

    def _matching(self) -> Array | None:
        catalog = self._names.catalog
        catalog.refresh(self._connection)
        if self._symbols is None:
            return None
        if self._wanted is None or self._names_version != catalog.version or not self._all_known:
            # A symbol may have been met for the first time, under its name or an alias.
            ids = {name: catalog.symbol_id(self._connection, name) for name in self._symbols}
            self._all_known = None not in ids.values()
            self._wanted = np.array(sorted({found for found in ids.values() if found is not None}), dtype="<u4")
            self._names_version = catalog.version
        return self._wanted

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        if not self._buffer:
            self._buffer.extend(self.take(self._idle_s))
            if not self._buffer:
                raise StopIteration
        return self._buffer.popleft()

    def close(self) -> None:
        """End it: an iteration stops after what it holds."""
        if self._closed:
            return
        self._closed = True
        self._waker.close()
        if self._on_close is not None:
            self._on_close(self)
        self._release()

    def _release(self) -> None:
        with self._using:
            self._connection.close()

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
