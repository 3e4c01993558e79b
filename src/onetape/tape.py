"""The tape: the one object users hold. It appends, reads, follows and tells, over one file shared by many processes."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import apsw
import msgspec

from onetape.clock import Time, now_ns, to_ns
from onetape.errors import ConfigInvalid, InvalidRecord, TapeClosed, TapeReadOnly, TapeUnusable
from onetape.facts import Quarantined, SymbolInfo, TapeStats
from onetape.live.follower import Follower
from onetape.live.recent import Recent, keep_up
from onetape.live.subscription import Subscription, WhenSlow
from onetape.live.waker import Waker
from onetape.record import TS_MAX_NS, Bar, SeqRange, Tick, interval_ns
from onetape.store import journal, layout, lifecycle, query, seal, sqlite, table
from onetape.store.block import encode_tick
from onetape.store.catalog import Catalog
from onetape.store.journal import Identity
from onetape.store.query import Names
from onetape.store.sqlite import Durability
from onetape.store.table import Batch
from onetape.writer import Writer

if TYPE_CHECKING:
    import pyarrow as pa

OnInvalid = Literal["raise", "quarantine"]
_PRUNE_EVERY_NS = 3_600_000_000_000
_PRUNE_STEPS = 4
#: How long a seal waits for a moment without readers to begin an overgrown log anew.
_LOG_PATIENCE_MS = 50
#: Subscriptions that ended by themselves stay in stats(), the last few.
_ENDED_KEPT = 8
_log = logging.getLogger("onetape.tape")
_APPEND_ONE = journal.APPEND_ONE
_new_tuple = tuple.__new__  # half the time of calling a NamedTuple


_open_tapes: weakref.WeakSet[Tape] = weakref.WeakSet()


_open_lock = threading.Lock()


def _after_fork() -> None:
    global _open_lock
    _open_lock = threading.Lock()  # another thread of the parent may have held it
    for tape in list(_open_tapes):
        tape._forked, tape._writable = True, False
        tape._rings, tape._recent = {}, None


os.register_at_fork(after_in_child=_after_fork)


def _at_exit() -> None:
    """Store what writers hold and end our threads: one that is still inside SQLite when Python goes would crash."""
    with _open_lock:
        tapes = list(_open_tapes)
    for tape in tapes:
        try:
            tape.close()
        except Exception as error:  # noqa: BLE001  (the others are still to be closed)
            _log.error("closing %s at exit: %s", tape.path, error)


atexit.register(_at_exit)


def open(  # (onetape.open is the documented name)
    path: str | os.PathLike[str] = "market_data.db",
    *,
    recent_per_symbol: int = 1000,
    durability: Durability = "process",
    mode: Literal["rw", "r"] = "rw",
    retention_days: float | None = 30,
    busy_timeout_ms: int = 10_000,
) -> Tape:
    """Open the tape at `path`, created if it is missing and `mode` is "rw".

    durability: "process": after an append returns, a killed process loses nothing; a power cut can lose the last
    moments but never corrupts. "power": a power cut loses nothing either (fsync at every commit).
    recent_per_symbol: newest ticks kept in memory for each symbol that is asked for.
    retention_days: ticks older than this, and on the tape for longer than this, are removed as the tape is written;
    bars stay. None keeps everything.
    busy_timeout_ms: how long a write waits for other processes' writes before TapeBusy.

    Raises TapeMissing, TapeUnusable, TapeReadOnly, TapeTooNew, TapeDamaged, TapeBusy, ConfigInvalid.
    """
    if durability not in ("process", "power"):
        raise ConfigInvalid(f"durability = {durability!r}", hint="it is 'process' or 'power'")
    if mode not in ("rw", "r"):
        raise ConfigInvalid(f"mode = {mode!r}", hint="it is 'rw' or 'r'")
    if recent_per_symbol < 1 or busy_timeout_ms < 0 or (retention_days is not None and retention_days <= 0):
        raise ConfigInvalid("recent_per_symbol and retention_days are positive, busy_timeout_ms is not negative")
    return Tape(Path(path), recent_per_symbol, durability, mode, retention_days, busy_timeout_ms)


class Tape:
    """A durable tape of market data in one SQLite file. Open it with `onetape.open`; it may be used from any thread.

    A process that forks opens its own: SQLite's files cannot be shared across a fork.
    """

    def __init__(
        self,
        path: Path,
        recent_per_symbol: int,
        durability: Durability,
        mode: Literal["rw", "r"],
        retention_days: float | None,
        busy_timeout_ms: int,
    ) -> None:
        try:
            self.path = Path(os.path.realpath(path))  # the log lies beside the file, not beside a link to it
        except (OSError, ValueError) as error:
            raise TapeUnusable(f"cannot look at {str(path)!r}: {error}", hint="check the path") from error
        self.mode = mode
        self.durability = durability
        self._retention_days = retention_days
        self._busy_timeout_ms = busy_timeout_ms
        self._recent_per_symbol = recent_per_symbol
        self._forked = False
        self._closed = False
        self._writable = False
        self._catalog = Catalog()
        self._symbol_ids = self._catalog.symbol_ids
        self._source_ids = self._catalog.source_ids
        self._readers: list[apsw.Connection] = []
        self._readers_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._recent: Recent | None = None
        self._rings: dict[str, list[Tick]] = {}
        self._recent_lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        self._followers_lock = threading.Lock()
        self._followed = False
        self._frozen: tuple[int, int, bool] | None = None
        self._subscriptions: list[Subscription] = []
        self._writers: weakref.WeakSet[Writer] = weakref.WeakSet()
        self._seal_error: str | None = None
        self._tail_from = 0
        self._appended = 0
        connection = self._connect()
        try:
            self._catalog.load(connection)
            self._tail_from = seal.seal_position(connection)
        except apsw.Error as error:
            connection.close()
            raise sqlite.translate(error, self.path, "open") from error
        self._writer_connection = connection if mode == "rw" else None
        if isinstance(connection, sqlite.FrozenConnection):
            self._frozen = sqlite.frozen_facts(self.path)
        if mode == "r":
            self._readers.append(connection)
        else:
            self._append_one = connection.cursor().execute
            self._last_rowid = connection.last_insert_rowid
            self._writable = True
        with _open_lock:
            _open_tapes.add(self)

    def __repr__(self) -> str:
        return f"<onetape.Tape {str(self.path)!r} mode={self.mode!r}>"

    # Writing

    def append(
        self,
        records: Tick | Bar | Sequence[Tick | Bar],
        *,
        batch: str | None = None,
        ids: Sequence[bytes] | None = None,
        cursor: tuple[str, str | None, str] | None = None,
        on_invalid: OnInvalid = "raise",
    ) -> SeqRange:
        """Store one record or several in one transaction; durable on return.

        Positions follow the order given. An identity makes it repeatable: `batch`, one id for all of it (known:
        nothing is stored, the first positions are returned); `ids`, one for each record (those known are left
        out); `cursor` = (name, before, after), an import position moved by compare-and-set (before None: new).

        Raises InvalidRecord (nothing is stored, unless on_invalid="quarantine": then the good ones are, and the
        bad ones are kept in quarantine with the reason), CursorConflict, TapeBusy, TapeFull, TapeReadOnly.
        """
        if records.__class__ is Tick and batch is None and ids is None and cursor is None:
            return self._append_tick(records, on_invalid)
        if isinstance(records, Tick | Bar):
            records = [records]
        if not isinstance(records, Sequence) or isinstance(records, str | bytes):
            try:
                records = list(records)
            except TypeError as error:
                raise ConfigInvalid(f"cannot append a {type(records).__name__}", hint="give Ticks or Bars") from error
        identity = Identity(batch, ids, cursor)
        try:
            batches = [table.from_records(run, kind, offset) for kind, offset, run in table.split_by_kind(records)]
        except InvalidRecord:
            if on_invalid != "quarantine":
                raise
            return self._append_sorted_out(records, identity)
        return self._append(batches, identity, len(records), on_invalid)

    def _append_sorted_out(self, records: Sequence[Any], identity: Identity) -> SeqRange:
        """Append those of the records that are some, one looked at at a time; quarantine the others."""
        identity.check(len(records))
        good: list[Tick | Bar] = []
        good_ids: list[bytes] = []
        refused: list[journal.Refused] = []
        for index, record in enumerate(records):
            key = identity.ids[index] if identity.ids is not None else None
            try:
                for kind, _, run in table.split_by_kind([record]):
                    for problem in table.from_records(run, kind, 0).problems():
                        raise problem.error()
                good.append(record)
                good_ids += [key] if key is not None else []
            except InvalidRecord as error:
                held = msgspec.structs.asdict(record) if isinstance(record, Tick | Bar) else {}
                refused.append(journal.Refused(index, error.field, error.why, journal.readable(held, error), key))
        batches = [table.from_records(run, kind, offset) for kind, offset, run in table.split_by_kind(good)]
        if identity.ids is not None:
            identity = identity._replace(ids=good_ids)
        return self._append(batches, identity, len(good), "quarantine", refused)

    def append_table(
        self,
        data: Any,
        *,
        batch: str | None = None,
        ids: Sequence[bytes] | None = None,
        cursor: tuple[str, str | None, str] | None = None,
        on_invalid: OnInvalid = "raise",
    ) -> SeqRange:
        """Store a table of ticks in one transaction; durable on return.

        `data` is a dict of columns (lists, NumPy arrays or scalars for every row), an Arrow table, or a pandas or
        Polars frame; columns are named as Tick's fields, in any order of rows. What is not there is None, a null,
        or NaN in NumPy and pandas columns. Identity, errors and order as in append().
        """
        found = table.from_table(data)
        return self._append([found], Identity(batch, ids, cursor), len(found), on_invalid)

    def _append_tick(self, tick: Tick, on_invalid: OnInvalid) -> SeqRange:
        blob = None
        try:
            symbol_id = self._symbol_ids.get(tick.symbol)
            source_id = self._source_ids.get(tick.source)
            if symbol_id is not None and source_id is not None:
                blob = encode_tick(tick, symbol_id, source_id)
        except Exception:  # noqa: BLE001, S110  (whatever it was: the slow path below names the field)
            pass
        if blob is None:
            if on_invalid == "quarantine":
                return self._append_sorted_out([tick], Identity())
            found = table.from_records([tick], layout.KIND_TICK, 0)
            return self._append([found], Identity(), 1, on_invalid)
        if not self._writable:
            self._refuse_write()
        with self._write_lock:
            try:
                self._append_one(_APPEND_ONE, (blob,))
            except apsw.Error as error:
                raise self._failed(error, "append to") from error
            self._appended = seq = self._last_rowid()
            if seq - self._tail_from >= layout.SEAL_RECORDS:
                self._seal()
        if (recent := self._recent) is not None:
            recent.push(tick, seq)
        if self._followed:
            self._poke()
        return _new_tuple(SeqRange, (seq, seq, 1))

    def _append(
        self,
        batches: list[Batch],
        identity: Identity,
        count: int,
        on_invalid: OnInvalid,
        refused: list[journal.Refused] | None = None,
    ) -> SeqRange:
        if on_invalid not in ("raise", "quarantine"):
            raise ConfigInvalid(f"on_invalid = {on_invalid!r}", hint="it is 'raise' or 'quarantine'")
        identity.check(count)
        refused = list(refused or [])
        bad_places: set[int] = set()
        offset = 0
        for place, found in enumerate(batches):
            wrong = found.problems()
            if wrong:
                if on_invalid == "raise":
                    problem = wrong[0]
                    raise InvalidRecord(problem.index + offset, problem.field, problem.value, problem.why)
                batches[place], bad = journal.refuse(found, wrong, offset)
                if identity.ids is not None:
                    bad = [one._replace(key=identity.ids[one.place]) for one in bad]
                refused.extend(bad)
                bad_places.update(one.place for one in bad)
            offset += len(found)
        if bad_places and identity.ids is not None:
            identity = identity._replace(ids=[key for i, key in enumerate(identity.ids) if i not in bad_places])
        connection = self._writing()
        with self._write_lock:
            try:
                done = journal.append(connection, self._catalog, batches, identity, refused)
            except apsw.Error as error:
                raise self._failed(error, "append to") from error
            self._appended = max(self._appended, done.last)
            if done.last - self._tail_from >= layout.SEAL_RECORDS:
                self._seal()
        if self._followed:
            self._poke()
        return done

    def writer(self, max_delay_ms: float = 5, max_records: int = 4096) -> Writer:
        """Return a writer that groups commits: ticks are durable within `max_delay_ms`, or when flush() returns."""
        self._writing()
        made = Writer(self._commit_ticks, self.check, max_delay_ms, max_records)
        self._writers.add(made)
        return made

    def _commit_ticks(self, ticks: Sequence[Tick]) -> SeqRange:
        return self._append([table.from_records(ticks, layout.KIND_TICK, 0)], Identity(), len(ticks), "raise")

    def check(self, tick: Tick) -> None:
        """Raise InvalidRecord if the tape would refuse this tick."""
        if not isinstance(tick, Tick):
            raise InvalidRecord(0, "record", tick, "a writer takes Ticks")
        try:
            source = tick.source
            known = tick.symbol in self._symbol_ids and source in self._source_ids
            if known and encode_tick(tick, 0, 0 if source is None else 1):
                return
        except Exception:  # noqa: BLE001, S110  (the slow path below names the field)
            pass
        for kind, offset, run in table.split_by_kind([tick]):
            for problem in table.from_records(run, kind, offset).problems():
                raise problem.error()

    def cursor(self, name: str) -> str | None:
        """Return the position an import with cursor=(name, …) has reached, or None."""
        with self._reading() as connection:
            return journal.position(connection, name)

    def has_ids(self, ids: Sequence[bytes]) -> list[bool]:
        """Return, for each record id, whether a record was appended with it."""
        Identity(ids=ids).check(len(ids))
        with self._reading() as connection:
            return journal.has_ids(connection, ids)

    def quarantined(self, limit: int = 100) -> list[Quarantined]:
        """Return the newest refused records, newest first."""
        with self._reading() as connection:
            rows: list[Any] = connection.execute(
                "SELECT at_ns, batch, position, field, why, record FROM quarantine ORDER BY id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [
            Quarantined(at_ns, batch, index, field, why, msgspec.json.decode(record))
            for at_ns, batch, index, field, why, record in rows
        ]

    def _seal(self) -> None:
        """Seal the journal's tail. The caller holds the write lock; the records are durable whatever happens here."""
        connection = self._writing()
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._tail_from, head = seal.seal(connection, layout.SEAL_RECORDS)
                connection.execute("COMMIT")
                self._seal_error = None
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            if head - self._tail_from < layout.SEAL_RECORDS:
                self._prune_when_due(connection)
            sqlite.restart_log(connection, self.path, _LOG_PATIENCE_MS, self._busy_timeout_ms)
        except apsw.BusyError:
            self._tail_from += layout.SEAL_RECORDS // 4  # others are writing: they or a later append will seal
        except Exception as error:  # noqa: BLE001  (what was appended is stored: the appender must not think otherwise)
            self._tail_from += layout.SEAL_RECORDS
            told = sqlite.translate(error, self.path, "seal") if isinstance(error, apsw.Error) else error
            self._seal_error = str(told)
            _log.error("sealing %s failed: %s", self.path, told)

    def seal(self) -> int:
        """Turn everything in the journal into chunks and bars now; return the position sealed up to.

        Appending does this by itself; call it before copying or measuring the file.
        """
        connection = self._writing()
        with self._write_lock:
            while True:
                try:
                    with self._transaction(connection):
                        self._tail_from, head = seal.seal(connection)
                except apsw.Error as error:
                    raise self._failed(error, "seal") from error
                if self._tail_from == head:
                    return head

    def prune(self, *, now: Time | None = None, retention_days: float | None = None) -> int:
        """Remove ticks older than the retention, in small steps, and give their space back; return how many.

        Bars stay. `retention_days` replaces the tape's own for this call. Other processes may write meanwhile.
        """
        days = retention_days if retention_days is not None else self._retention_days
        if days is None:
            return 0
        self.seal()
        before = lifecycle.cutoff_ns(now_ns() if now is None else to_ns(now, "now"), days)
        removed, connection = 0, self._writing()
        while True:
            with self._write_lock:
                try:
                    with self._transaction(connection):
                        count = lifecycle.prune_step(connection, before)
                except apsw.Error as error:
                    raise self._failed(error, "prune") from error
            removed += count
            if not count:
                break
        while True:
            with self._write_lock:
                try:
                    if not lifecycle.give_back(connection):
                        break
                except apsw.Error as error:
                    raise self._failed(error, "shrink") from error
        return removed

    def _prune_when_due(self, connection: apsw.Connection) -> None:
        if self._retention_days is None:
            return
        now = now_ns()
        last = int(connection.execute("SELECT last_prune_ns FROM state").get)
        if now - last < _PRUNE_EVERY_NS:
            return
        before = lifecycle.cutoff_ns(now, self._retention_days)
        for _ in range(_PRUNE_STEPS):
            with self._transaction(connection):
                if not lifecycle.prune_step(connection, before):
                    connection.execute("UPDATE state SET last_prune_ns = ?", (now,))
                    break
        lifecycle.give_back(connection)

    # Reading

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
        return ring[-1] if ring else None

    def recent(self, symbol: str, count: int = 1000) -> list[Tick]:
        """Return a symbol's newest `count` ticks, ascending in (ts_event_ns, seq).

        From memory up to recent_per_symbol; more are read from the file.
        """
        if count < 1:
            raise ConfigInvalid(f"count = {count}", hint="ask for at least one")
        if count > self._recent_per_symbol:
            return self._newest(symbol, count)
        ring = self._rings.get(symbol)
        if ring is None or (recent := self._recent) is None or recent.position < self._appended:
            ring = self._ring(symbol)
        return ring[-count:]

    def _newest(self, symbol: str, count: int) -> list[Tick]:
        with self._reading() as connection, query.snapshot(connection):
            symbol_id = self._catalog.symbol_id(connection, symbol)
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
                recent = Recent(connection, Names(Catalog(), connection), self._recent_per_symbol)
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

    def read(
        self,
        symbol: str,
        start: Time | None = None,
        end: Time | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Return a symbol's ticks with start <= ts_event_ns < end as one Arrow table, in canonical order.

        start, end: ns, ISO 8601 text, datetime or date (UTC without a zone); None is without bound. columns: names
        of Tick's fields, all by default; times int64 ns, prices and sizes float64, null where absent. A symbol the
        tape has never seen gives an empty table. Raises ChunkCorrupt.
        """
        from onetape.store import arrow

        start_ns, end_ns = self._span(start, end)
        with self._reading() as connection, query.snapshot(connection):
            symbol_id = self._catalog.symbol_id(connection, symbol)
            found = None if symbol_id is None else query.ticks(connection, symbol_id, start_ns, end_ns)
            return arrow.to_arrow(found, symbol, columns, Names(self._catalog, connection))

    def bars(
        self,
        symbol: str,
        interval: str = "1min",
        start: Time | None = None,
        end: Time | None = None,
        *,
        source: str | None = None,
    ) -> pa.Table:
        """Return a symbol's bars with start <= ts_start_ns < end as one Arrow table, ascending.

        The tape's own bars (source null) are made of trades, in whole minutes that divide a UTC day. Bars that were
        appended as bars fill the starts that have none of its own; source="…" returns only those of one source.
        """
        from onetape.store import arrow

        return arrow.bars_to_arrow(self.bar_list(symbol, interval, start, end, source=source))

    def bar_list(
        self,
        symbol: str,
        interval: str = "1min",
        start: Time | None = None,
        end: Time | None = None,
        *,
        source: str | None = None,
    ) -> list[Bar]:
        """Return what bars() returns, as Bar records."""
        start_ns, end_ns = self._span(start, end)
        try:
            length = interval_ns(interval)
        except ValueError as error:
            raise ConfigInvalid(str(error)) from error
        with self._reading() as connection, query.snapshot(connection):
            symbol_id = self._catalog.symbol_id(connection, symbol)
            if symbol_id is None:
                return []
            names = Names(self._catalog, connection)
            given = query.given_bars(connection, symbol_id, symbol, length, start_ns, end_ns, source, names)
            own: list[Bar] = []
            if source is None and (query.keeps(length) or not given):
                own = query.own_bars(connection, symbol_id, symbol, length, start_ns, end_ns)
        merged = {bar.ts_start_ns: bar for bar in reversed(given)} | {bar.ts_start_ns: bar for bar in own}
        return given if source is not None else [merged[ts] for ts in sorted(merged)]

    def _span(self, start: Time | None, end: Time | None) -> tuple[int, int]:
        start_ns = 0 if start is None else to_ns(start, "start")
        end_ns = TS_MAX_NS + 1 if end is None else to_ns(end, "end")
        return _within(start_ns), _within(end_ns)

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
        return list(self._catalog.symbol_ids)

    def stats(self) -> TapeStats:
        """Return counts and sizes of the tape, and of this process's subscriptions to it."""
        with self._reading() as connection, query.snapshot(connection):
            counts = query.symbol_counts(connection).values()
            head = query.head(connection)
            sealed = seal.seal_position(connection)
            pruned_seq = connection.execute("SELECT pruned_seq FROM state").get
            kept = connection.execute("SELECT count(*) FROM bar WHERE source_id = 0").get
            chunk_count = connection.execute("SELECT count(*) FROM chunk").get
            bad = connection.execute("SELECT count(*) FROM quarantine").get
        wal = layout.wal_path(self.path)
        rings = list(self._rings.values())
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
            file_bytes=self.path.stat().st_size,
            wal_bytes=wal.stat().st_size if wal.exists() else 0,
            retention_days=self._retention_days,
            pruned_seq=pruned_seq,
            recent_symbols=len(rings),
            recent_records=sum(map(len, rings)),
            subscriptions=[subscription.stats(head) for subscription in self._subscriptions],
            seal_error=self._seal_error,
        )

    # Following

    def follow(
        self,
        symbols: str | Iterable[str] | None = None,
        from_seq: int | None = None,
        from_time: Time | None = None,
        *,
        idle_s: float | None = None,
    ) -> Follower:
        """Return an iterator over records in order of position: what is there, then what comes, without end.

        from_seq: the last position already seen (0: from the beginning); from_time: records from this event time
        on, late ones included; neither: from now. symbols: only these, also ones yet to come. idle_s: end when
        nothing came for so long. It sees what any process appends, within milliseconds. Close it when done.
        """
        if from_seq is not None and from_time is not None:
            raise ConfigInvalid("give from_seq or from_time, not both")
        if from_seq is not None and not 0 <= from_seq <= TS_MAX_NS:
            raise ConfigInvalid(f"from_seq = {from_seq}", hint="0 is the beginning")
        start_ns = None if from_time is None else _within(to_ns(from_time, "from_time"))
        return self._follower(symbols, from_seq, start_ns, idle_s)

    def _follower(
        self,
        symbols: str | Iterable[str] | None,
        position: int | None,
        start_ns: int | None = None,
        idle_s: float | None = None,
    ) -> Follower:
        self._check_open()
        if self._frozen is not None:
            raise TapeUnusable(
                f"{self.path} cannot be followed: its folder may not be written, and nobody writes to the tape",
                hint="give this process the right to write to the folder, or open it while a writer runs",
            )
        connection = self._connect("r")
        waker = Waker(layout.wal_path(self.path))
        try:
            made = Follower(
                connection,
                waker,
                symbols=symbols,
                position=position,
                start_ns=start_ns,
                idle_s=idle_s,
                on_close=self._forget,
            )
        except apsw.Error as error:
            waker.close()
            raise self._failed(error, "follow") from error
        with self._followers_lock:
            self._followers.add(made)
            self._followed = True
        return made

    def _forget(self, follower: Follower) -> None:
        with self._followers_lock:
            self._followers.discard(follower)

    async def afollow(
        self,
        symbols: str | Iterable[str] | None = None,
        from_seq: int | None = None,
        from_time: Time | None = None,
        *,
        idle_s: float | None = None,
    ) -> AsyncIterator[Tick | Bar]:
        """As follow(), for `async for`; the event loop is never blocked. Close it with aclose(), or by leaving."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "onetape-afollow") as pool:
            follower = await loop.run_in_executor(pool, lambda: self.follow(symbols, from_seq, from_time))
            try:
                while True:
                    found = await loop.run_in_executor(pool, follower.take, idle_s)
                    if not found:
                        return
                    for record in found:
                        yield record
            finally:
                follower.close()

    def subscribe(
        self,
        callback: Callable[[Tick | Bar], object],
        symbols: str | Iterable[str] | None = None,
        when_slow: WhenSlow = "drop_oldest",
        queue_records: int = 1000,
        *,
        from_seq: int | None = None,
    ) -> Subscription:
        """Call `callback(record)` in a thread of its own for every record appended from now on, by any process.

        when_slow, for a callback slower than the tape: "block" (it gets everything, later), "drop_oldest",
        "conflate" (the newest of each symbol), "disconnect". queue_records bounds what waits in memory. No policy
        slows a writer or another subscriber. from_seq: start after this position instead of now.
        """
        if when_slow not in ("block", "drop_oldest", "conflate", "disconnect"):
            raise ConfigInvalid(
                f"when_slow = {when_slow!r}", hint="it is 'block', 'drop_oldest', 'conflate' or 'disconnect'"
            )
        if queue_records < 1:
            raise ConfigInvalid(f"queue_records = {queue_records}", hint="it is at least 1")
        made = Subscription(
            self._follower(symbols, from_seq), callback, when_slow, queue_records, self._subscription_ended
        )
        self._subscriptions.append(made)
        return made

    def _subscription_ended(self, subscription: Subscription) -> None:
        ended = [one for one in self._subscriptions if one is subscription or not one.active]
        for one in ended[: None if subscription.error is None else -_ENDED_KEPT]:
            with contextlib.suppress(ValueError):  # another thread was faster
                self._subscriptions.remove(one)

    def _poke(self) -> None:
        with self._followers_lock:
            followers = list(self._followers)
            self._followed = bool(followers)
        for follower in followers:
            follower.poke()

    # Twins for asyncio, where a caller would block

    async def aappend(self, records: Tick | Bar | Sequence[Tick | Bar], **identity: Any) -> SeqRange:
        """As append(), off the event loop."""
        return await asyncio.to_thread(self.append, records, **identity)

    async def aappend_table(self, data: Any, **identity: Any) -> SeqRange:
        """As append_table(), off the event loop."""
        return await asyncio.to_thread(self.append_table, data, **identity)

    async def aread(
        self,
        symbol: str,
        start: Time | None = None,
        end: Time | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """As read(), off the event loop."""
        return await asyncio.to_thread(self.read, symbol, start, end, columns)

    async def abars(
        self, symbol: str, interval: str = "1min", start: Time | None = None, end: Time | None = None
    ) -> pa.Table:
        """As bars(), off the event loop."""
        return await asyncio.to_thread(self.bars, symbol, interval, start, end)

    # Opening and closing

    def _connect(self, mode: Literal["rw", "r"] | None = None) -> apsw.Connection:
        return sqlite.connect(
            self.path,
            mode=mode or self.mode,
            durability=self.durability,
            busy_timeout_ms=self._busy_timeout_ms,
        )

    @contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        self._check_open()
        if self._frozen is not None:
            self._thaw()
        with self._readers_lock:
            connection = self._readers.pop() if self._readers else None
        if connection is None:
            connection = self._connect("r")
        try:
            yield connection
        except BaseException as error:
            connection.close(True)  # it may hold a statement of the traceback open, and with it an old moment
            if isinstance(error, apsw.Error):
                raise self._failed(error, "read") from error
            if isinstance(error, UnicodeEncodeError):
                raise ConfigInvalid(f"{error.object!r} is not valid UTF-8") from error
            raise
        with self._readers_lock:
            if self._closed:
                connection.close()
            else:
                self._readers.append(connection)

    def _thaw(self) -> None:
        """Open the file anew if somebody has written to a tape that nobody could be writing to."""
        with self._readers_lock:
            if sqlite.frozen_facts(self.path) != self._frozen:
                for connection in self._readers:
                    connection.close()
                fresh = self._connect("r")
                frozen = isinstance(fresh, sqlite.FrozenConnection)
                self._frozen = sqlite.frozen_facts(self.path) if frozen else None
                self._readers[:] = [fresh]

    @contextmanager
    def _transaction(self, connection: apsw.Connection) -> Iterator[None]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _writing(self) -> apsw.Connection:
        if not self._writable or self._writer_connection is None:
            self._refuse_write()
        return self._writer_connection

    def _refuse_write(self) -> NoReturn:
        self._check_open()
        raise TapeReadOnly(f'{self.path} was opened with mode="r"', hint="open it without mode to append")

    def _check_open(self) -> None:
        if self._forked:
            raise TapeClosed(
                f"{self.path} was opened before this process was forked",
                hint="open the tape in the new process",
            )
        if self._closed:
            raise TapeClosed(f"{self.path} is closed", hint="open it again")

    def _failed(self, error: apsw.Error, act: str) -> Exception:
        if self._closed:
            return TapeClosed(f"{self.path} was closed meanwhile")
        return sqlite.translate(error, self.path, act)

    def close(self) -> None:
        """Flush writers, end subscriptions and followers, and close the file. Repeating it is harmless."""
        if self._closed or self._forked:
            return
        for writer in list(self._writers):
            writer.close()
        self._closed, self._writable = True, False
        for subscription in list(self._subscriptions):
            subscription.close()
        with self._followers_lock:
            followers = list(self._followers)
        for follower in followers:
            follower.close()
        if self._keeper is not None:
            if self._recent is not None:
                self._recent.stopped = True
            self._keeper_waker.close()
            self._keeper.join(5)
        if self._recent is not None:
            self._recent.close()
        with self._write_lock, self._readers_lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()
            if self._writer_connection is not None:
                self._writer_connection.close()
        self._rings = {}
        self._recent = None

    def __enter__(self) -> Tape:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _within(ns: int) -> int:
    """Return a time, or the end of time it lies beyond: nothing on a tape is earlier or later."""
    return min(max(ns, 0), TS_MAX_NS + 1)
