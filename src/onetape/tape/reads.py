"""Reading the newest ticks, from memory, and what the tape says of itself."""

from __future__ import annotations

import threading
import weakref
from typing import overload

import apsw

from onetape.errors import ConfigInvalid, TapeMissing
from onetape.facts import SymbolInfo, TapeStats
from onetape.live.recent import Recent, keep_up
from onetape.live.waker import Waker
from onetape.record import Tick
from onetape.store import layout, minutes, query, seal
from onetape.store.catalog import Catalog
from onetape.store.query import Names
from onetape.tape.continuous import view_of
from onetape.tape.handle import Handle


class Reads(Handle):
    """How the newest ticks are read."""

    @overload
    def latest(self, symbol: str) -> Tick | None: ...
    @overload
    def latest(self) -> dict[str, Tick]: ...
    def latest(self, symbol: str | None = None) -> Tick | dict[str, Tick] | None:
        """Return a symbol's tick with the greatest (ts_event_ns, seq), or None; without a symbol, all by symbol.

        From memory. This tape's own appends are seen at once, other processes' within milliseconds.
        """
        if symbol is None:
            rings = {name: self._ring(name) for name in self._symbol_names()}
            return {name: ring[-1] for name, ring in rings.items() if ring}
        ring = self._rings.get(symbol)
        if ring is None or (recent := self._recent) is None or recent.position < self._appended:
            ring = self._ring(symbol)
        if not ring and (view := view_of(self, symbol)) is not None:
            return view.latest()
        return ring[-1] if ring else None

    def recent(self, symbol: str, count: int = 1000) -> list[Tick]:
        """Return a symbol's newest `count` ticks, ascending in (ts_event_ns, seq).

        From memory up to recent_per_symbol; more are read from the file.
        """
        if count < 1:
            raise ConfigInvalid(f"count = {count}", hint="ask for at least one")
        if symbol not in self._rings and (view := view_of(self, symbol)) is not None:
            return view.recent(count)
        if count > self._recent_per_symbol:
            return self._newest(symbol, count)
        ring = self._rings.get(symbol)
        if ring is None or (recent := self._recent) is None or recent.position < self._appended:
            ring = self._ring(symbol)
        found = ring[-count:]
        if len(found) == count or self._recent is None:
            return found
        try:
            return self._recent.newest(symbol, count)
        except apsw.Error as error:
            raise self._failed(error, "read") from error

    def _newest(self, symbol: str, count: int) -> list[Tick]:
        with self._reading() as connection, query.snapshot(connection):
            symbol_id, symbol = self._catalog.find(connection, symbol)
            columns = None if symbol_id is None else query.newest(connection, symbol_id, count)
            if columns is None:
                return []
            return query.to_ticks(columns, symbol, Names(self._catalog, connection))

    def _ring(self, symbol: str) -> list[Tick]:
        self._check_open()
        if self._frozen is not None:
            return self._newest(symbol, self._recent_per_symbol)
        recent = self._recent or self._start_recent()
        try:
            if recent.position < self._appended:
                recent.catch_up()
            return recent.load(symbol)
        except apsw.Error as error:
            raise self._failed(error, "read") from error

    def _start_recent(self) -> Recent:
        with self._recent_lock:
            if self._recent is None:
                connection = self._connect("r")
                names = Names(Catalog(), connection)
                recent = Recent(connection, names, self._recent_per_symbol, self._memory_bytes)
                recent.aliases = self._catalog.aliases
                waker = Waker(layout.wal_path(self.path))
                self._keeper = threading.Thread(
                    target=keep_up,
                    args=(weakref.ref(self), recent, waker),
                    name="onetape-recent",
                    daemon=True,
                )
                self._rings = recent.rings
                self._recent = recent
                self._keeper_waker = waker
                self._keeper.start()
            return self._recent

    def symbols(self) -> list[SymbolInfo]:
        """Return what the tape holds of each symbol, by name."""
        with self._reading() as connection, query.snapshot(connection):
            counts = query.symbol_counts(connection)
            names = Names(self._catalog, connection)
            found = [SymbolInfo(names.symbols([symbol_id])[0], *kept) for symbol_id, kept in counts.items()]
        return sorted(found, key=lambda info: info.symbol)

    def _symbol_names(self) -> list[str]:
        with self._reading() as connection:
            self._catalog.load(connection)
        return self._catalog.names()

    @property
    def head(self) -> int:
        """The position of the newest record, of any process; 0 on an empty tape. Microseconds, where stats() counts."""
        with self._reading() as connection:
            return query.head(connection)

    def stats(self) -> TapeStats:
        """Return counts and sizes of the tape, and of this process's subscriptions to it.

        Raises TapeMissing where its file was removed or moved away.
        """
        with self._reading() as connection, query.snapshot(connection):
            counts = query.symbol_counts(connection).values()
            head = query.head(connection)
            sealed = seal.seal_position(connection)
            pruned_seq = connection.execute("SELECT pruned_seq FROM state").get
            kept = minutes.count(connection)
            chunk_count = connection.execute("SELECT count(*) FROM chunk").get
            bad = connection.execute("SELECT count(*) FROM quarantine").get
        try:
            file_bytes = self.path.stat().st_size
        except FileNotFoundError as error:
            raise TapeMissing(
                f"{self.path} is gone: {error.strerror}",
                hint="bring the file and its log back, or close this tape and open it anew",
            ) from error
        try:
            wal_bytes = layout.wal_path(self.path).stat().st_size
        except FileNotFoundError:
            wal_bytes = 0
        recent_symbols, recent_records = (0, 0) if self._recent is None else self._recent.counts()
        return TapeStats(
            path=str(self.path),
            format_version=layout.FORMAT_VERSION,
            durability=self.durability,
            head=head,
            seal=sealed,
            unsealed=head - sealed,
            ticks=sum(count.ticks for count in counts),
            bars_given=sum(count.bars for count in counts),
            bars_kept=kept,
            symbols=len(counts),
            chunks=chunk_count,
            quarantined=bad,
            file_bytes=file_bytes,
            wal_bytes=wal_bytes,
            retention_days=self._retention_days,
            pruned_seq=pruned_seq,
            recent_symbols=recent_symbols,
            recent_records=recent_records,
            subscriptions=[subscription.stats(head) for subscription in self._subscriptions],
            seal_error=self._seal_error,
        )
