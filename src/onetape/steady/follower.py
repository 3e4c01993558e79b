"""The follower of a steady tape: what is on the tape and what is held in memory, each record once, through outages."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from onetape.errors import OnetapeError
from onetape.live.follower import Follower
from onetape.record import Record

#: How often it looks for what is held, and whether a tape that is away is back, s.
_LOOK_S = 0.05


class SteadyFollower:
    """Gives records in the order of their arrival. What was held and is stored later is not given a second time.

    `open_` makes a follower of the tape behind a position (None: from now), or raises where the tape is away; `again`
    leaves out records that were given while they were held: those of deliveries above `held_from`. Made by SteadyTape.
    """

    def __init__(
        self,
        open_: Callable[[int | None], Follower],
        again: Callable[[list[Record], int], list[Record]],
        symbols: Iterable[str] | None,
        from_seq: int | None,
        held_from: int,
        held_max: int,
        on_close: Callable[[SteadyFollower], None],
    ) -> None:
        self._open, self._again = open_, again
        self._symbols = None if symbols is None else frozenset([symbols] if isinstance(symbols, str) else symbols)
        self.held_from = held_from
        self._held: deque[Record] = deque(maxlen=held_max)
        self._on_close = on_close
        self._wake = threading.Event()
        self._using = threading.Lock()
        self._closed = False
        self._inner: Follower | None = None
        self._from: int | None = from_seq
        #: The last position of which it is settled what is given: what was held may be forgotten up to here.
        self.passed = -1 if from_seq is None else from_seq
        self._inner = self._opened()

    @property
    def position(self) -> int:
        """The last position of the tape that was looked at; -1 before there was one."""
        inner = self._inner
        if inner is not None:
            return inner.position
        return -1 if self._from is None else self._from

    def begin(self, head: int) -> None:
        """Be told where the tape ends, before anything is stored late: who follows from now follows from there."""
        if self._from is None:
            self._from = head

    def hold(self, records: Iterable[Record]) -> None:
        """Be given records that could not be stored yet."""
        wanted = self._symbols
        self._held.extend(record for record in records if wanted is None or record.symbol in wanted)
        self.poke()

    def away(self) -> None:
        """Be told that the tape is away: its file is let go, and asked for again later."""
        self._let_go()
        self.poke()

    def poke(self) -> None:
        """Look at once."""
        self._wake.set()
        inner = self._inner
        if inner is not None:
            inner.poke()

    def take(self, timeout_s: float | None = 0.0) -> list[Record]:
        """Return what comes next, waiting up to `timeout_s` (None: for ever) for the first. [] : none, or closed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._closed:
            found = self._tape(0.0)
            if not found and self._held:
                found = self._tape(0.0) or self._taken()  # what was stored before it was held comes first
            if found:
                return found
            left = 3600.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return []
            found = self._tape(min(left, _LOOK_S)) if self._inner is not None and not self._held else []
            if found:
                return found
            if self._inner is None:
                self._wake.wait(min(left, _LOOK_S))
                self._wake.clear()
                self._inner = self._opened()
        return []

    def _taken(self) -> list[Record]:
        found: list[Record] = []
        while self._held:
            found.append(self._held.popleft())
        return found

    def _tape(self, timeout_s: float) -> list[Record]:
        inner = self._inner
        if inner is None:
            return []
        try:
            found = inner.take(timeout_s)
        except (OnetapeError, OSError):
            self._let_go()
            return []
        position = inner.position
        kept = self._again(found, self.held_from) if found else []
        self.passed = position
        return kept

    def _opened(self) -> Follower | None:
        if self._closed:
            return None
        try:
            made = self._open(self._from)
        except (OnetapeError, OSError):  # (a file that vanishes between two looks at it)
            return None
        if self._from is None:
            self._from = made.position
        self.passed = made.position  # (of another file than before it may be less)
        return made

    def _let_go(self) -> None:
        with self._using:
            inner, self._inner = self._inner, None
            if inner is not None:
                inner.close()  # first: a take that is under way ends before it, with the position behind what it gives
                self._from = inner.position

    def close(self) -> None:
        """End it."""
        self._closed = True
        self._let_go()
        self._wake.set()
        self._on_close(self)
