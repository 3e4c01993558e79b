"""The ring: deliveries that wait for their tape, in order of arrival, bounded by records.

A delivery with a cursor comes from a source that can give it again: where there is no room it is refused, and its
source waits. One without comes once: it is taken, and the oldest of its kind goes, counted.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from onetape.errors import TapeFull
from onetape.record import Bar, Tick

Cursor = tuple[str, str | None, str]


class Held(msgspec.Struct, frozen=True, eq=False):
    """One delivery that waits, and the identity under which it will be stored. `number` counts from 1."""

    number: int
    records: Sequence[Tick | Bar]
    batch: str | None
    ids: Sequence[bytes] | None
    cursor: Cursor | None
    on_invalid: str


class Ring:
    """Deliveries of at most `records_max` records in all. Thread-safe."""

    def __init__(self, records_max: int) -> None:
        self.records_max = records_max
        self._lock = threading.Lock()
        self._held: deque[Held] = deque()
        self._number = 0
        self.records = 0
        self.dropped = 0

    @property
    def number(self) -> int:
        """The number of the newest delivery ever held."""
        return self._number

    def __len__(self) -> int:
        return len(self._held)

    def add(
        self,
        records: Sequence[Tick | Bar],
        batch: str | None,
        ids: Sequence[bytes] | None,
        cursor: Cursor | None,
        on_invalid: str,
    ) -> Held:
        """Keep a delivery; return it. Raises TapeFull for one with a cursor that there is no room for."""
        with self._lock:
            over = self.records + len(records) - self.records_max
            if over > 0 and cursor is not None:
                raise TapeFull(
                    f"the tape is away, and {self.records:,} records wait for it: {len(records):,} more are too many",
                    hint="the source waits, and gives them once there is room; see why the tape is away",
                )
            if over > 0:
                self._drop(over)
                if len(records) > self.records_max:
                    self.dropped += len(records) - self.records_max
                    records = records[-self.records_max :]
                    ids = None if ids is None else ids[-self.records_max :]
            if batch is None and ids is None and cursor is None:
                batch = f"held:{os.urandom(12).hex()}"  # stored or not: asking again under this name does no harm
            self._number += 1
            made = Held(self._number, records, batch, ids, cursor, on_invalid)
            self._held.append(made)
            self.records += len(records)
            return made

    def _drop(self, over: int) -> None:
        kept: list[Held] = []
        while over > 0 and self._held:
            oldest = self._held.popleft()
            if oldest.cursor is not None:
                kept.append(oldest)
                continue
            over -= len(oldest.records)
            self.records -= len(oldest.records)
            self.dropped += len(oldest.records)
        self._held.extendleft(reversed(kept))

    def first(self) -> Held | None:
        """Return the delivery whose turn it is, None where nothing waits."""
        with self._lock:
            return self._held[0] if self._held else None

    def remove(self, held: Held) -> None:
        """Take out a delivery that is stored; one that was dropped meanwhile is no error."""
        with self._lock:
            for at, one in enumerate(self._held):
                if one is held:
                    del self._held[at]
                    self.records -= len(held.records)
                    return

    def cursor(self, name: str) -> str | None:
        """Return where a source is by what is held, None where nothing of it is."""
        with self._lock:
            for held in reversed(self._held):
                if held.cursor is not None and held.cursor[0] == name:
                    return held.cursor[2]
        return None

    def ticks(self, symbol: str | None = None) -> Iterator[Tick]:
        """Yield the ticks that are held, of one symbol or all, in the order of their arrival."""
        with self._lock:
            held = list(self._held)
        for one in held:
            for record in one.records:
                if isinstance(record, Tick) and (symbol is None or record.symbol == symbol):
                    yield record
