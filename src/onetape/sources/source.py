"""The source: an iterator of deliveries that counts what it sees, comes back by itself and goes on where it was.

    source = ScidTail("ESZ6.scid", symbol="ESZ6")
    source.resume(tape.cursor(source.cursor_name))      # a position that the tape remembers, or None
    for delivery in source:                             # ends with close(), or where the source has an end
        tape.append(delivery.records, cursor=…)

A **delivery** is what arrived at once. Its cursor is the source's own position behind it, written in the transaction
that stores its records, so that a restart neither loses nor doubles. A live source gives at least one delivery a
second, an empty one where there was nothing: that says "connected, and nothing happened".
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, OnetapeError
from onetape.record import Bar, Tick

#: A live source gives a delivery at least this often, s.
ALIVE_S = 1.0

State = Literal["idle", "connecting", "live", "waiting", "ended", "failed"]


class Delivery(msgspec.Struct, frozen=True):
    """What a source gives at once, in the order of arrival.

    records: ticks and bars; in bulk `columns` instead, as Tape.append_table() takes them (never both).
    ids: an identity of each record, for sources whose repeats are told apart by name and not by place.
    cursor: where the source stands behind these records; None where it has no position.
    covers: (symbol, start_ns, end_ns) of which the source says that there was nothing else.
    missing: (symbol, start_ns, end_ns) of which it knows that it lost something.
    heard_ns: up to when the other side was heard; None: to now. What came later than that is not covered.
    """

    records: Sequence[Tick | Bar] = ()
    columns: Mapping[str, Any] | None = None
    ids: Sequence[bytes] | None = None
    cursor: str | None = None
    covers: Sequence[tuple[str, int, int]] = ()
    missing: Sequence[tuple[str, int, int]] = ()
    heard_ns: int | None = None

    @property
    def count(self) -> int:
        """How many records these are."""
        if self.columns is None:
            return len(self.records)
        return max((len(column) for column in self.columns.values() if hasattr(column, "__len__")), default=0)


class SourceStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a source has seen since it was made.

    lag_ms: arrival minus event time of the newest record, None before the first. gaps: how often something is known to
    be missing; dropped: records lost on the way that were counted; duplicates: repeats left out by identity; refused:
    what was no valid record. trouble: why it is not live, in words; None where it is.
    """

    name: str
    kind: str
    state: State
    trouble: str | None = None
    since_ns: int = 0
    records: int = 0
    dropped: int = 0
    gaps: int = 0
    duplicates: int = 0
    refused: int = 0
    reconnects: int = 0
    lag_ms: float | None = None
    flush_lag_ms: float | None = None
    last_event_ns: int | None = None
    last_recv_ns: int | None = None
    cursor: str | None = None
    facts: dict[str, Any] = {}


class Backoff:
    """How long to wait before the next attempt: doubling from `first_s` to `most_s`, a quarter of it by chance."""

    def __init__(self, first_s: float = 0.2, most_s: float = 30.0, chance: Callable[[], float] = random.random) -> None:
        if not 0 < first_s <= most_s:
            raise ConfigInvalid(
                f"a wait of {first_s} to {most_s} s", hint="the first is above 0 and not above the most"
            )
        self._first_s, self._most_s, self._chance = first_s, most_s, chance
        self._next_s = first_s

    def next_s(self) -> float:
        """Return how long to wait now; the next wait is twice as long."""
        wait, self._next_s = self._next_s, min(self._next_s * 2, self._most_s)
        return wait * (0.75 + 0.25 * self._chance())

    def reset(self) -> None:
        """Begin anew: the connection held."""
        self._next_s = self._first_s


class Source(ABC):
    """Base of all sources. Iterating, close() and stats may each be called from another thread.

    A subclass gives `_deliveries()`, and tells what it sees by `_tell()` and `_count()`. What goes wrong and passes by
    itself is waited out inside (`_wait`); what does not is raised, an OnetapeError with a hint.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, *, clock: Callable[[], int] = now_ns) -> None:
        if not name:
            raise ConfigInvalid("a source without a name", hint="its name keeps its place on the tape")
        self.name = name
        self._clock = clock
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._told: dict[str, Any] = {"state": "idle", "since_ns": clock()}
        self._facts: dict[str, Any] = {}
        self._missing_to: dict[str, int] = {}

    @property
    def cursor_name(self) -> str:
        """The name under which a tape keeps this source's cursor."""
        return f"source:{self.name}"

    @property
    def stats(self) -> SourceStats:
        """What it has seen so far, as of now."""
        with self._lock:
            return SourceStats(name=self.name, kind=self.kind, facts=dict(self._facts), **self._told)

    @property
    def stopped(self) -> bool:
        """Whether close() was called."""
        return self._stopped.is_set()

    def resume(self, cursor: str | None) -> None:
        """Go on behind this cursor, one that a delivery of a source of this name carried; None: from the beginning.

        To be called before iterating. Raises ConfigInvalid for what is no cursor of this kind.
        """
        self._tell(cursor=cursor)

    def __iter__(self) -> Iterator[Delivery]:
        try:
            for delivery in self._deliveries():
                self._seen(delivery)
                yield delivery
                if self._stopped.is_set():
                    break
        except OnetapeError as error:
            self._tell(state="failed", trouble=str(error))
            raise
        else:
            self._tell(state="ended", trouble=None)

    @abstractmethod
    def _deliveries(self) -> Iterator[Delivery]:
        """Yield deliveries until the source ends or `self.stopped`."""

    def close(self) -> None:
        """End the iteration, wherever it is, within a second. May be called twice, and from any thread."""
        self._stopped.set()

    def _wait(self, seconds: float) -> bool:
        """Wait; return whether to go on (False: close() was called)."""
        return not self._stopped.wait(seconds)

    def _tell(self, **told: Any) -> None:
        """Set fields of the stats. A new state sets since_ns."""
        with self._lock:
            if told.get("state", self._told["state"]) != self._told["state"]:
                told.setdefault("since_ns", self._clock())
            self._told.update(told)

    def _count(self, **by: int) -> None:
        """Add to counts of the stats."""
        with self._lock:
            for field, number in by.items():
                self._told[field] = self._told.get(field, 0) + number

    def _seen(self, delivery: Delivery) -> None:
        count, now = delivery.count, self._clock()
        with self._lock:
            told = self._told
            if delivery.cursor is not None:
                told["cursor"] = delivery.cursor
            for symbol, start_ns, end_ns in delivery.missing:
                if self._missing_to.get(symbol) != start_ns:  # else the same one goes on
                    told["gaps"] = told.get("gaps", 0) + 1
                self._missing_to[symbol] = end_ns
            if not count:
                return
            told["records"] = told.get("records", 0) + count
            told["last_recv_ns"] = now
            last = _last_event_ns(delivery)
            if last is not None:
                told["last_event_ns"] = max(last, told.get("last_event_ns") or 0)
                told["lag_ms"] = (now - last) / 1e6


def _last_event_ns(delivery: Delivery) -> int | None:
    if delivery.columns is not None:
        column = delivery.columns.get("ts_event_ns")
        return int(column[-1]) if column is not None and len(column) else None
    record = delivery.records[-1]
    return record.ts_event_ns if isinstance(record, Tick) else record.ts_start_ns


class Reconnecting(Source):
    """Base of sources over a connection: `_session()` is one connection's life, and what ends it is waited out.

    `lost` are the exceptions that mean "the other side is away": anything else is raised.
    """

    lost: ClassVar[tuple[type[BaseException], ...]] = (OSError, EOFError)

    def __init__(self, name: str, *, backoff: Backoff | None = None, clock: Callable[[], int] = now_ns) -> None:
        super().__init__(name, clock=clock)
        self._backoff = backoff or Backoff()

    @abstractmethod
    def _session(self) -> Iterator[Delivery]:
        """Connect, `_live()`, and yield deliveries until the connection ends. Raises one of `lost`, or returns."""

    def _live(self) -> None:
        """Say that the connection stands."""
        self._backoff.reset()
        self._tell(state="live", trouble=None)

    def _deliveries(self) -> Iterator[Delivery]:
        first = True
        while not self._stopped.is_set():
            if not first:
                self._count(reconnects=1)
            first = False
            self._tell(state="connecting")
            why = "the other side ended the connection"
            try:
                yield from self._session()
            except self.lost as error:
                why = str(error) or type(error).__name__
            if self._stopped.is_set():
                return
            self._tell(state="waiting", trouble=f"{why}; tried again by itself")
            if not self._wait(self._backoff.next_s()):
                return
