"""Appending: records, tables and writers, durable on return, repeatable by identity."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal

import apsw
import msgspec
import numpy as np

from onetape.errors import ConfigInvalid, InvalidRecord
from onetape.facts import Quarantined
from onetape.offloop import in_thread
from onetape.record import Bar, SeqRange, Tick
from onetape.store import block, journal, layout, sqlite, table
from onetape.store.journal import Identity
from onetape.store.table import Batch
from onetape.store.tick_row import encode_tick, wide_row
from onetape.tape.follows import Follows
from onetape.tape.sealing import Sealing
from onetape.writer import AsyncWriter, NameUnknown, Pack, Run, Writer

OnInvalid = Literal["raise", "quarantine"]
_APPEND_ONE = journal.APPEND_ONE
_new_tuple = tuple.__new__  # half the time of calling a NamedTuple


class Appends(Sealing, Follows):
    """How records get onto a tape."""

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
                self._seal_due()
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
            long = sum(map(len, batches)) >= layout.DIRECT_RECORDS
            try:
                with self._checkpoint_beside(connection) if long else contextlib.nullcontext():
                    done = journal.append(connection, self._catalog, batches, identity, refused)
            except apsw.Error as error:
                raise self._failed(error, "append to") from error
            self._appended = max(self._appended, done.last)
            self._seal_when_due(done)
        if self._followed:
            self._poke()
        return done

    def writer(self, max_delay_ms: float = 5, max_records: int = 4096) -> Writer:
        """Return a writer that groups commits: ticks are durable within `max_delay_ms`, or when flush() returns.

        At most `max_records` ticks wait; the next one stores them first.
        """
        return self._writer(self._row, max_delay_ms, max_records, patient=True)

    def awriter(self, max_delay_ms: float = 5, max_at_risk: int = 4096) -> AsyncWriter:
        """Return a writer for asyncio: `async with tape.awriter(max_at_risk=100) as w: await w.append(tick)`.

        As writer(), where at most `max_at_risk` ticks are not durable yet when an append returns. The event loop never
        waits for another process's write, nor for the disk where durability is "power".
        """
        made = self._writer(self._row_of_known, max_delay_ms, max_at_risk, patient=False)
        return AsyncWriter(made, self.durability == "power", self._row)

    def _writer(self, pack: Pack, max_delay_ms: float, max_records: int, patient: bool) -> Writer:
        self._writing()
        made = Writer(pack, self._commit_runs, max_delay_ms, max_records, patient)
        self._writers.add(made)
        return made

    def _row(self, tick: Tick) -> tuple[int, bytes]:
        """Return a tick packed as one row. Raises InvalidRecord. A new symbol or source is written down first."""
        try:
            return self._row_of_known(tick)
        except NameUnknown:
            return self._row_of_any(tick)

    def _row_of_known(self, tick: Tick) -> tuple[int, bytes]:
        """Return a tick packed as one row. Raises InvalidRecord, or NameUnknown where the tape has to be asked."""
        try:
            symbol_id = self._symbol_ids.get(tick.symbol)
            source_id = self._source_ids.get(tick.source)
            if symbol_id is not None and source_id is not None:
                packed = wide_row(tick, symbol_id, source_id)
                if packed is not None:
                    return packed
        except Exception:  # noqa: BLE001, S110  (whatever it was: check() names the field)
            pass
        self.check(tick)
        if tick.symbol not in self._symbol_ids or tick.source not in self._source_ids:
            raise NameUnknown(tick.symbol)
        columns = dict(table.from_records([tick], layout.KIND_TICK, 0).columns)
        return _one_row(columns, self._symbol_ids[tick.symbol], self._source_ids[tick.source])

    def _row_of_any(self, tick: Tick) -> tuple[int, bytes]:
        """As _row(), after asking the tape what the tick's names stand for, and writing down those that are new."""
        connection = self._writing()
        with self._write_lock:
            try:
                with self._transaction(connection):
                    found = [table.from_records([tick], layout.KIND_TICK, 0)]
                    (batch,), _ = journal.named(connection, self._catalog, found)
                    symbol = batch.symbols[int(batch.columns["symbol"][0])]
                    symbol_id = self._catalog.ids(connection, "symbol", [symbol])[0]
                    source_id = 0 if tick.source is None else self._catalog.ids(connection, "source", [tick.source])[0]
                self._catalog.load(connection)
            except apsw.Error as error:
                raise self._failed(error, "append to") from error
        return _one_row(dict(batch.columns), symbol_id, source_id)

    def _commit_runs(self, runs: list[Run], wait: bool) -> SeqRange:
        connection = self._writing()
        with self._write_lock:
            if not wait:
                connection.set_busy_timeout(0)
            try:
                done = journal.append_runs(connection, runs)
            except apsw.Error as error:
                raise self._failed(error, "append to") from error
            finally:
                if not wait:
                    connection.set_busy_handler(sqlite.patience(self._busy_timeout_ms))
            self._appended = max(self._appended, done.last)
            self._seal_when_due(done)
        if self._followed:
            self._poke()
        return done

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

    async def aappend(self, records: Tick | Bar | Sequence[Tick | Bar], **identity: Any) -> SeqRange:
        """As append(), off the event loop."""
        return await in_thread(self.append, records, **identity)

    async def aappend_table(self, data: Any, **identity: Any) -> SeqRange:
        """As append_table(), off the event loop."""
        return await in_thread(self.append_table, data, **identity)


def _one_row(columns: block.Columns, symbol_id: int, source_id: int) -> tuple[int, bytes]:
    columns["symbol"] = np.array([symbol_id])
    if "source" in columns:
        columns["source"] = np.array([source_id])
    return block.one_row(layout.KIND_TICK, columns)
