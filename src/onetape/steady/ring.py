"""The ring: deliveries that wait for their tape, in order of arrival, bounded by records.

A delivery with a cursor comes from a source that can give it again: where there is no room it is refused, and its
source waits. One without comes once: it is taken, and the oldest of its kind goes, counted.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence

import msgspec

from onetape.errors import TapeFull
from onetape.record import Bar, Tick

Cursor = tuple[str, str | None, str]


class Held(msgspec.Struct, frozen=True, eq=False):
    """One delivery that waits, and the identity under which it will be stored. `number` counts from 1.

    own: the batch is a name that the ring gave it, which means nothing to anybody else.
    """

    number: int
    records: Sequence[Tick | Bar]
    batch: str | None
    ids: Sequence[bytes] | None
    cursor: Cursor | None
    on_invalid: str
    own: bool = False


class Ring:
    """Deliveries of at most `records_max` records in all. Thread-safe."""

    def __init__(self, records_max: int) -> None:
        self.records_max = records_max
        self._lock = threading.Lock()
        self._held: deque[Held] = deque()
        self._turn: list[Held] = []
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
            own = batch is None and ids is None and cursor is None
            if own:
                batch = f"held:{os.urandom(12).hex()}"  # stored or not: asking again under this name does no harm
            self._number += 1
            made = Held(self._number, records, batch, ids, cursor, on_invalid, own)
            self._held.append(made)
            self.records += len(records)
            return made

    def _drop(self, over: int) -> None:
        kept: list[Held] = []
        while over > 0 and self._held:
            oldest = self._held.popleft()
            if oldest.cursor is not None or (self._turn and oldest.number <= self._turn[-1].number):
                kept.append(oldest)
                continue
            over -= len(oldest.records)
            self.records -= len(oldest.records)
            self.dropped += len(oldest.records)
        self._held.extendleft(reversed(kept))

    def first(self, apart: Collection[int] = (), records_max: int = 4096) -> list[Held]:
        """Return the deliveries whose turn it is and that one append can store, oldest first; [] where none waits.

        Those of one source, each of which begins where the one before ends, or those without an identity from
        elsewhere. None is put together with the one behind a number of `apart`. They are the same until they are
        removed, whatever comes meanwhile: what they are stored as is their identity too.
        """
        with self._lock:
            if self._turn:
                return list(self._turn)
            run: list[Held] = []
            count = 0
            for held in self._held:
                count += len(held.records)
                if run and (count > records_max or run[-1].number in apart or not _together(run[-1], held)):
                    break
                run.append(held)
            self._turn = run
            return list(run)

    def remove(self, run: Sequence[Held]) -> None:
        """Take out deliveries that are stored, first ones first."""
        with self._lock:
            for held in run:
                self._held.remove(held)  # it is the first of them
                self.records -= len(held.records)
            self._turn = [held for held in self._turn if held not in run] if len(run) < len(self._turn) else []

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


def _together(one: Held, two: Held) -> bool:
    if one.cursor is not None and two.cursor is not None:
        plain = all(held.batch is None and held.ids is None for held in (one, two))
        return plain and one.cursor[0] == two.cursor[0] and one.cursor[2] == two.cursor[1]
    return one.own and two.own
