"""Back: the positions at which records were stored after they had been held, and so were given already."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Protocol

from onetape.record import Record


class Following(Protocol):
    """Who follows: it was given what was held in deliveries above `held_from`, and has `passed` a position."""

    held_from: int

    @property
    def passed(self) -> int:
        """The last position up to which nothing is asked of `without()` any more."""


class Back:
    """Spans of positions, ascending, each with the number of the last held delivery in it. Thread-safe."""

    def __init__(self) -> None:
        #: Held by whoever stores what was held, until it is added here: who follows or reads must not see it
        #: before, nor in both places.
        self.storing = threading.Lock()
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._numbers: list[int] = []

    def __len__(self) -> int:
        return len(self._firsts)

    def add(self, first: int, last: int, number: int) -> None:
        """Add a span behind all others, while `storing` is held."""
        self._firsts.append(first)
        self._lasts.append(last)
        self._numbers.append(number)

    def without(self, found: list[Record], held_from: int) -> list[Record]:
        """Return the records that were not given while they were held, to who was given deliveries above a number."""
        with self.storing:
            if not self._numbers or self._numbers[-1] <= held_from:
                return found
            begin = bisect_right(self._numbers, held_from)
            firsts, lasts = self._firsts[begin:], self._lasts[begin:]
        kept = []
        for record in found:
            at = bisect_right(firsts, record.seq or 0) - 1
            if at < 0 or (record.seq or 0) > lasts[at]:
                kept.append(record)
        return kept

    def prune(self, following: Iterable[Following]) -> None:
        """Forget what everybody who follows has passed."""
        if not self._firsts:
            return
        positions = [one.passed for one in following]
        with self.storing:
            end = bisect_left(self._lasts, min(positions) + 1) if positions else len(self._lasts)
            del self._firsts[:end], self._lasts[:end], self._numbers[:end]
