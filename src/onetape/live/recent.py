"""Recent: each symbol's newest ticks in memory, in canonical order, complete up to one position of the tape."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import apsw
import msgspec
import numpy as np

from onetape.errors import OnetapeError
from onetape.live.ring import Ring
from onetape.live.waker import Waker
from onetape.record import Cancel, Tick
from onetape.store import query, replay
from onetape.store.block import Array, Columns, take
from onetape.store.layout import KIND_TICK
from onetape.store.query import Names

_log = logging.getLogger("onetape.live")
#: How long the memory may lag behind another process's append.
_GATHER_S = 0.004
#: Records kept as objects for callers who asked for many, of all symbols: 0.6 MB.
_WARM_RECORDS = 1536
_FIT_EVERY_S = 0.25
#: Ticks that are taken in as records without a look at which of them will stay.
_STEP_RECORDS = 16_384
#: The page cache of this connection, which reads the file rarely and the journal's end often.
_PAGE_CACHE_KIB = 64


def _all_floats(tick: Tick) -> bool:
    values = (tick.price, tick.size, tick.bid, tick.ask, tick.bid_size, tick.ask_size, tick.open, tick.high, tick.low)
    for value in (*values, tick.volume, tick.vwap, tick.open_interest):
        if value is not None and value.__class__ is not float:
            return False
    return True


class SymbolMemory(NamedTuple):
    """What one symbol's newest ticks take of this process's memory: records held, of them as objects, and bytes."""

    symbol: str
    records: int
    objects: int
    bytes: int


class Recent:
    """Rings by symbol, loaded from the file when a symbol is first asked for, then kept up to date.

    `rings` maps symbols to the newest records of their rings; readers take from it without a lock (a list's slice is
    atomic), writers hold the lock. Above `bytes_max` the symbols that nobody has asked for the longest are let go;
    they are loaded again when they are asked for. Reading leaves no mark, so that it stays cheap: whoever is to go
    is first taken out of `rings`, and a symbol that is asked for before its turn comes is put back.
    """

    def __init__(
        self, connection: apsw.Connection, names: Names, per_symbol: int, bytes_max: int | None = None
    ) -> None:
        self.rings: dict[str, list[Tick]] = {}
        self.per_symbol = per_symbol
        self.bytes_max = bytes_max
        self.stopped = False
        self._connection = connection
        connection.pragma("cache_size", -_PAGE_CACHE_KIB)
        self._names = names
        self._held: OrderedDict[str, Ring] = OrderedDict()
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._warm: OrderedDict[str, int] = OrderedDict()
        self._loaded_at: dict[str, int] = {}
        self._ids: dict[str, int] = {}
        self._names_version = 0
        #: What the tape takes for aliases when it appends: name -> symbol.
        self.aliases: Mapping[str, str] = {}
        self._lock = threading.Lock()
        self._fitted_s = 0.0
        self.position = query.head(connection)

    def push(self, tick: Tick, seq: int) -> bool:
        """Add a tick just appended at `seq`; False if other records came between: catch_up() then."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if seq != self.position + 1:
                return False
            ring = self._held.get(name := tick.symbol)
            if ring is None and name in self.aliases:
                ring = self._held.get(name := self.aliases[name])
            if ring is not None:
                if not _all_floats(tick):
                    return False  # it reads back as floats: let it be read
                ring.add(msgspec.structs.replace(tick, symbol=name, seq=seq), self._names)
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
        self._names.catalog.refresh(self._connection)
        if self._names.catalog.version != self._names_version:
            self._renamed()
        # What retention has removed since is not missed here.
        while (step := replay.step(self._connection, self.position, all_left=True)) is not None:
            loaded = self._loaded()
            for record in replay.records(self._newest_of(step.found, loaded), self._names, loaded):
                ring = self._held.get(record.symbol)
                # A ring loaded a moment ago already holds what was there when it was read.
                if ring is None or (record.seq or 0) <= self._loaded_at[record.symbol]:
                    continue
                if isinstance(record, Tick):
                    ring.add(record, self._names)
                elif isinstance(record, Cancel):
                    self._forget(record.symbol)  # what stood before the tick that is gone is read from the file
            self.position = step.position
        if (now := time.monotonic()) - self._fitted_s > _FIT_EVERY_S:
            self._fitted_s = now
            self._fit()

    def _renamed(self) -> None:
        """Let go of symbols that bear another name now."""
        catalog = self._names.catalog
        for name, symbol_id in list(self._ids.items()):
            if catalog.symbol(self._connection, symbol_id) != name:
                self._forget(name)
        self._names_version = catalog.version

    def _newest_of(self, found: dict[int, Columns], loaded: Array) -> dict[int, Columns]:
        """Return what of a long step the rings can hold: as records, half a million ticks would take 200 MB."""
        ticks = found.get(KIND_TICK)
        if ticks is None or len(ticks["seq"]) <= _STEP_RECORDS:
            return found
        mine = take(ticks, np.isin(ticks["symbol"], loaded))
        order = np.lexsort((mine["seq"], mine["ts_event_ns"], mine["symbol"]))
        symbols = mine["symbol"][order]
        after = np.searchsorted(symbols, symbols, side="right") - np.arange(len(symbols))
        return {**found, KIND_TICK: take(mine, np.sort(order[after <= self.per_symbol]))}

    def _loaded(self) -> Array:
        return np.array([self._ids[symbol] for symbol in self._held], dtype="<u4")

    def load(self, symbol: str) -> list[Tick]:
        """Return the newest records of a symbol's ring, loaded now if it was not yet; empty if there are none."""
        with self._lock:
            ring = self._ring(symbol)
            return [] if ring is None else ring.newest

    def newest(self, symbol: str, count: int) -> list[Tick]:
        """Return a symbol's newest `count` ticks of its ring, or all there are."""
        with self._lock:
            ring = self._ring(symbol)
            if ring is None:
                return []
            self._heat(ring, count)
            found = ring.newest[-count:]
            if count > _WARM_RECORDS:
                ring.cool(1)
            return found

    def _heat(self, ring: Ring, count: int) -> None:
        """Make objects of `count` ticks, and pack those of symbols that were asked for earlier."""
        records = max(self._warm.pop(ring.symbol, 0), min(count, len(ring)))
        total = sum(self._warm.values()) + records
        while total > _WARM_RECORDS and self._warm:
            name, others = self._warm.popitem(last=False)
            total -= others
            if (other := self._held.get(name)) is not None:
                other.cool(1)
        self._warm[ring.symbol] = records
        ring.warm(count, self._names)

    def _ring(self, symbol: str) -> Ring | None:
        ring = self._kept(self._names.catalog.aliases.get(symbol, symbol))
        if ring is not None:
            return ring
        with query.snapshot(self._connection):
            head = query.head(self._connection)
            symbol_id, symbol = self._names.catalog.find(self._connection, symbol)
            if symbol_id is None:
                return None
            if (ring := self._kept(symbol)) is not None:  # held under its own name, asked for by an alias
                return ring
            columns = query.newest(self._connection, symbol_id, self.per_symbol)
            ring = Ring(symbol, self.per_symbol, columns, self._names)
        self._loaded_at[symbol] = head
        self._ids[symbol] = symbol_id
        self._held[symbol] = ring
        self.rings[symbol] = ring.newest
        self._catch_up()
        self._fit(ring)
        return ring

    def _kept(self, symbol: str) -> Ring | None:
        ring = self._held.get(symbol)
        if ring is not None and symbol in self._idle:
            del self._idle[symbol]
            self._held.move_to_end(symbol)
            self.rings[symbol] = ring.newest
        return ring

    def _fit(self, asked: Ring | None = None) -> None:
        """Let go of rings until the others fit, those nobody asked for first; never of the one asked for now."""
        if self.bytes_max is None:
            return
        total = sum(ring.weight() for ring in self._held.values())
        while total > self.bytes_max and len(self._held) > 1:
            if not self._idle:
                self._idle = OrderedDict.fromkeys(name for name, ring in self._held.items() if ring is not asked)
                for name in self._idle:
                    self.rings.pop(name, None)
            name, _ = self._idle.popitem(last=False)
            total -= self._held[name].weight()
            self._forget(name)

    def _forget(self, symbol: str) -> None:
        for by_symbol in (self._held, self.rings, self._idle, self._warm, self._loaded_at, self._ids):
            by_symbol.pop(symbol, None)

    def memory(self) -> list[SymbolMemory]:
        """Return what each symbol held takes, by name."""
        with self._lock:
            found = [
                SymbolMemory(symbol, len(ring), len(ring.newest), ring.measured())
                for symbol, ring in self._held.items()
            ]
        return sorted(found)

    def counts(self) -> tuple[int, int]:
        """Return how many symbols and records are held."""
        with self._lock:
            return len(self._held), sum(map(len, self._held.values()))


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
