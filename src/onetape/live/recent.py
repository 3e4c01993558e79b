"""Recent: each symbol's newest ticks in memory, in canonical order, complete up to one position of the tape."""

from __future__ import annotations

import logging
import threading
import time
from bisect import insort
from collections.abc import Callable

import apsw
import msgspec
import numpy as np

from onetape.errors import OnetapeError
from onetape.live.waker import Waker
from onetape.record import Tick
from onetape.store import query, replay
from onetape.store.block import Array
from onetape.store.query import Names

_log = logging.getLogger("onetape.live")
#: How long the memory may lag behind another process's append.
_GATHER_S = 0.004


def _all_floats(tick: Tick) -> bool:
    values = (tick.price, tick.size, tick.bid, tick.ask, tick.bid_size, tick.ask_size, tick.open, tick.high, tick.low)
    for value in (*values, tick.volume, tick.vwap, tick.open_interest):
        if value is not None and value.__class__ is not float:
            return False
    return True


def _canonical(tick: Tick) -> tuple[int, int]:
    return tick.ts_event_ns, tick.seq or 0


class Recent:
    """Rings by symbol, loaded from the file when a symbol is first asked for, then kept up to date.

    Readers take from `rings` without a lock (a list's slice is atomic); writers hold the lock. Every ring holds at
    least the newest `per_symbol` ticks up to `position`, and at most twice as many.
    """

    def __init__(self, connection: apsw.Connection, names: Names, per_symbol: int) -> None:
        self.rings: dict[str, list[Tick]] = {}
        self.per_symbol = per_symbol
        self.stopped = False
        self._connection = connection
        self._names = names
        self._loaded_at: dict[str, int] = {}
        self._lock = threading.Lock()
        self.position = query.head(connection)

    def push(self, tick: Tick, seq: int) -> bool:
        """Add a tick just appended at `seq`; False if other records came between: catch_up() then."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if seq != self.position + 1:
                return False
            ring = self.rings.get(tick.symbol)
            if ring is not None:
                if not _all_floats(tick):
                    return False  # it reads back as floats: let it be read
                self._add(ring, msgspec.structs.replace(tick, seq=seq))
            self.position = seq
            return True
        finally:
            self._lock.release()

    def close(self) -> None:
        """Give the connection back, once nobody reads any more."""
        with self._lock:
            self._connection.close()

    def catch_up(self) -> None:
        """Take in everything that was appended since, by whoever."""
        with self._lock:
            self._catch_up()

    def _catch_up(self) -> None:
        # What retention has removed since is not missed here.
        while (step := replay.step(self._connection, self.position, all_left=True)) is not None:
            for record in replay.records(step.found, self._names, self._loaded()):
                ring = self.rings.get(record.symbol)
                # A ring loaded a moment ago already holds what was there when it was read.
                if ring is not None and isinstance(record, Tick) and (record.seq or 0) > self._loaded_at[record.symbol]:
                    self._add(ring, record)
            self.position = step.position

    def _loaded(self) -> Array:
        ids = self._names.catalog.symbol_ids
        return np.array([ids[symbol] for symbol in self.rings if symbol in ids], dtype="<u4")

    def _add(self, ring: list[Tick], tick: Tick) -> None:
        if not ring or _canonical(ring[-1]) < _canonical(tick):
            ring.append(tick)
        else:
            insort(ring, tick, key=_canonical)
        if len(ring) > 2 * self.per_symbol:
            del ring[: len(ring) - self.per_symbol]

    def load(self, symbol: str) -> list[Tick]:
        """Return the ring of a symbol, loaded now if it was not yet; empty if the tape does not know it."""
        with self._lock:
            ring = self.rings.get(symbol)
            if ring is not None:
                return ring
            with query.snapshot(self._connection):
                head = query.head(self._connection)
                symbol_id = self._names.catalog.symbol_id(self._connection, symbol)
                if symbol_id is None:
                    return []
                columns = query.newest(self._connection, symbol_id, self.per_symbol)
                ring = [] if columns is None else query.to_ticks(columns, symbol, self._names)
            self._loaded_at[symbol] = head
            self.rings[symbol] = ring
            self._catch_up()
            return ring


def keep_up(owner: Callable[[], object | None], recent: Recent, waker: Waker) -> None:
    """Keep `recent` up to date with what other processes append, until it is stopped or its `owner` is gone."""
    while True:
        hinted = waker.wait(waker.interval_s)
        if recent.stopped or owner() is None:
            return
        if hinted:
            # Every append of our own wakes us too: gather them, or we would compete with the appender for nothing.
            time.sleep(_GATHER_S)
        try:
            recent.catch_up()
        except (apsw.Error, OnetapeError) as error:
            # The next look tries again, and a caller that needs the file is told what is wrong with it.
            _log.warning("memory of a tape is behind: %s", error)
