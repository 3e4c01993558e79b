"""Sealing and compaction: the journal turned into chunks, and chunks into fewer, smaller ones."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import apsw
import msgspec

from onetape.clock import now_ns
from onetape.errors import ChunkCorrupt, OnetapeError
from onetape.record import SeqRange
from onetape.store import beside, layout, lifecycle, minutes, seal, spans, sqlite
from onetape.tape.handle import log
from onetape.tape.upkeep import Upkeep

#: How long a seal waits for a moment without readers to begin an overgrown log anew.
_LOG_PATIENCE_MS = 50
#: An appender that fills the journal faster than this, s, seals it itself: it is in a hurry to be through, not to be
#: heard at once, and a thread beside it cost it a tenth of its speed.
_HURRY_S = 0.5
#: Records up to which the appender seals itself: it takes some milliseconds, and a thread would be in the way as long.
_SHORT_RECORDS = 2 * layout.SEAL_RECORDS
#: Times the limits of the journal's tail at which the appender seals it itself: nobody beside it does, or fast enough.
_ALONE_FROM = 4
#: Symbols' days of bars packed in one transaction: some milliseconds.
_DAYS_A_STEP = 4
#: Records in sealed spans from which they are merged in a thread of their own: the appender would wait 30 ms and more.
_BESIDE_RECORDS = 65_536
#: Records in merged spans that make the process that appends compact them, in a thread of its own.
_COMPACT_RECORDS = 3 * layout.SPAN_RECORDS_MAX // 4


class Compacted(msgspec.Struct, frozen=True):
    """What compact() did: spans merged into fewer, records in them, bytes of the file before and after."""

    spans: int
    records: int
    bytes_before: int
    bytes_after: int


class Sealing(Upkeep):
    """How chunks come about."""

    def _seal_when_due(self, done: SeqRange) -> None:
        """Seal once the journal holds SEAL_RECORDS rows, or SEAL_RECORDS_TAIL records. The caller holds the write lock.

        What others appended between counts a row a record; of an append of our own, however long, the rest of the
        records are taken off, by moving `_tail_from` along.
        """
        if done.stored >= layout.DIRECT_RECORDS and self._went_to_chunks(done):
            self._tail_from = self._sealed_to = done.last
        elif done.stored:
            self._tail_from += done.stored - 1
        tail = done.last - self._sealed_to
        if done.last - self._tail_from >= layout.SEAL_RECORDS or tail >= layout.SEAL_RECORDS_TAIL:
            self._seal_due()

    def _went_to_chunks(self, done: SeqRange) -> bool:
        """Return whether a long append is sealed already: what writers gather, and short runs of kinds, are not."""
        try:
            return seal.seal_position(self._writing()) >= done.last
        except apsw.Error:  # it is stored, whatever this tells: sealing it is tried then
            return False

    def _seal_due(self) -> None:
        """Have the journal's tail sealed beside the appending; or seal it, where that fails, falls behind or holds up.

        The caller holds the write lock.
        """
        rows, records = self._appended - self._tail_from, self._appended - self._sealed_to
        if (
            self._seal_alone
            or rows >= _ALONE_FROM * layout.SEAL_RECORDS
            or records >= _ALONE_FROM * layout.SEAL_RECORDS_TAIL
        ):
            self._seal()
        elif self._sealer is not None:
            return
        elif records < _SHORT_RECORDS or time.monotonic() - self._sealed_at < _HURRY_S:
            self._seal()
        else:
            sealer = threading.Thread(target=self._seal_beside, name="onetape-sealer", daemon=True)
            self._sealer = sealer
            try:
                sealer.start()
            except RuntimeError:  # no more threads, or Python is ending
                self._sealer = None
                self._seal()

    def _seal_beside(self) -> None:
        """Seal the journal's tail while appending goes on; where that fails, the next append does it."""
        try:
            with self._reading() as reader:
                ready = beside.prepare(reader, layout.SEAL_RECORDS)
                if ready is not None and self._put(ready):
                    self._catalog.refresh(reader)
                    self._tidy_beside()
        except Exception as error:  # noqa: BLE001  (the appender tries it itself, and tells what is wrong)
            self._seal_alone = True
            if not self._closed:
                log.warning("sealing %s beside the appending failed: %s", self.path, error)
        finally:
            self._sealer = None

    def _tidy_beside(self) -> None:
        """Do what comes after a seal, and move the log into the file: the next appends would wait 20 ms for that.

        Most of the log is moved while appending goes on; what came meanwhile, while it does not: so it begins anew.
        """
        connection = self._connect("rw")
        try:
            connection.wal_autocheckpoint(0)
            self._prune_when_due(connection)
            self._merge_when_due(connection)
            sqlite.move_log(connection)
            with self._write_lock:
                sqlite.move_log(connection)
            sqlite.restart_log(connection, self.path, _LOG_PATIENCE_MS, self._busy_timeout_ms)
        finally:
            connection.close()

    def _put(self, ready: beside.Ready) -> bool:
        """Put a span that was made ready in its place; return whether it was still to be sealed.

        Appends of this process wait for the transaction alone, not for those of other processes.
        """
        deadline = time.monotonic() + self._busy_timeout_ms / 1000
        while True:
            try:
                with self._write_lock, self._impatient(self._writing()) as connection:
                    return self._put_now(connection, ready)
            except apsw.BusyError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(random.uniform(0.0002, 0.002))

    @contextmanager
    def _impatient(self, connection: apsw.Connection) -> Iterator[apsw.Connection]:
        """Let a connection neither wait for others nor move the log into the file: appenders wait for it."""
        connection.set_busy_timeout(0)
        connection.wal_autocheckpoint(0)
        try:
            yield connection
        finally:
            connection.wal_autocheckpoint(sqlite.CHECKPOINT_PAGES)
            connection.set_busy_handler(sqlite.patience(self._busy_timeout_ms))

    def _put_now(self, connection: apsw.Connection, ready: beside.Ready) -> bool:
        with self._transaction(connection):
            done = beside.put(connection, ready)
            sealed = seal.seal_position(connection)
        self._sealed_to = sealed
        if done is None:  # somebody else was faster
            self._tail_from = max(self._tail_from, sealed)
            return False
        head, left = done
        self._tail_from = head - left
        self._sealed_at = time.monotonic()
        self._seal_error = None
        return True

    def _seal(self) -> None:
        """Seal the journal's tail. The caller holds the write lock; the records are durable whatever happens here."""
        connection = self._writing()
        try:
            with self._transaction(connection):
                sealed, head = seal.seal(connection, layout.SEAL_RECORDS)
            self._tail_from = self._sealed_to = sealed
            self._sealed_at = time.monotonic()
            self._seal_error, self._seal_alone = None, False
            self._catalog.refresh(connection)  # so that single appends heed changed names at last
            if head - sealed < layout.SEAL_RECORDS:
                self._prune_when_due(connection)
                self._merge_when_due(connection)
            sqlite.restart_log(connection, self.path, _LOG_PATIENCE_MS, self._busy_timeout_ms)
        except apsw.BusyError:
            self._tail_from += layout.SEAL_RECORDS // 4  # others are writing: they or a later append will seal
        except Exception as error:  # noqa: BLE001  (what was appended is stored: the appender must not think otherwise)
            self._tail_from += layout.SEAL_RECORDS
            self._sealed_to += layout.SEAL_RECORDS
            told = sqlite.translate(error, self.path, "seal") if isinstance(error, apsw.Error) else error
            self._seal_error = str(told)
            log.error("sealing %s failed: %s", self.path, told)

    @contextmanager
    def _checkpoint_beside(self, connection: apsw.Connection) -> Iterator[None]:
        """Let a long append leave moving the log into the file to a thread; one log at most waits to be moved."""
        self._await_checkpoint()
        connection.wal_autocheckpoint(0)
        try:
            yield
        finally:
            connection.wal_autocheckpoint(sqlite.CHECKPOINT_PAGES)
        self._checkpointer = threading.Thread(target=self._checkpoint, name="onetape-checkpointer", daemon=True)
        self._checkpointer.start()

    def _await_checkpoint(self) -> None:
        thread, self._checkpointer = self._checkpointer, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(30)

    def _checkpoint(self) -> None:
        try:
            connection = self._connect("rw")
            try:
                sqlite.move_log(connection)
            finally:
                connection.close()
        except (apsw.Error, OnetapeError) as error:
            log.warning("moving the log of %s into it failed: %s", self.path, error)  # a later commit does it

    def _to_merge(self, connection: apsw.Connection) -> list[spans.Span]:
        return spans.due(connection, spans.MERGED, spans.MERGE_RECORDS, spans.MERGE_SPANS, self._damaged)

    def _merge_is_due(self, connection: apsw.Connection) -> bool:
        return bool(self._to_merge(connection) or spans.due(connection, spans.COMPACT, _COMPACT_RECORDS))

    def _merge_when_due(self, connection: apsw.Connection) -> None:
        """Merge spans that are due: few records at once, many beside the appending. The caller holds the write lock.

        Where the thread is too slow for what is appended, or cannot, the appender merges itself, and so waits.
        """
        found = self._to_merge(connection)
        if found:
            records = sum(span.positions for span in found)
            behind = records >= 3 * spans.MERGE_RECORDS // 2 or len(found) >= 2 * spans.MERGE_SPANS
            if records < _BESIDE_RECORDS or behind:
                self._merge(connection, found)
                found = []
        if self._compactor is None and (found or spans.due(connection, spans.COMPACT, _COMPACT_RECORDS)):
            with self._compactor_lock:
                if self._compactor is None and not self._closed:
                    compactor = threading.Thread(target=self._compact_beside, name="onetape-compactor", daemon=True)
                    self._compactor = compactor
                    compactor.start()

    def _merge(self, connection: apsw.Connection, found: list[spans.Span]) -> None:
        try:
            merge = spans.prepare(connection, found, spans.MERGED)
        except ChunkCorrupt as error:  # what is damaged stays as it is, and holds nothing else up
            self._damaged.update(span.seal for span in found)
            log.error("merging chunks of %s failed: %s", self.path, error)
            return
        with self._transaction(connection):
            spans.replace(connection, merge)

    def _compact_beside(self) -> None:
        try:
            connection = self._connect("rw")
            try:
                found = self._to_merge(connection)
                if found and not self._closed:
                    self._merge(connection, found)
                self._compact(connection, _COMPACT_RECORDS)
            finally:
                connection.close()
        except (apsw.Error, OnetapeError) as error:
            if not self._closed:  # the next time it is due tries again; until then the tape is only larger
                log.warning("compacting %s failed: %s", self.path, error)
        finally:
            self._compactor = None

    def _compact(self, connection: apsw.Connection, at_least: int) -> tuple[int, int]:
        """Compact what is due, run after run; return how many spans and records were merged."""
        merged = records = tries = 0
        while not self._closed and (found := spans.due(connection, spans.COMPACT, at_least)):
            merge = spans.prepare(connection, found, spans.COMPACT)
            with self._transaction(connection):
                done = spans.replace(connection, merge)
            if done:
                merged, records, tries = merged + len(found), records + sum(span.positions for span in found), 0
            elif (tries := tries + 1) > 8:
                break  # somebody else is compacting the same spans, and faster
        return merged, records

    def seal(self) -> int:
        """Turn everything in the journal into chunks and bars now; return the position sealed up to.

        Appending does this by itself; call it before copying or measuring the file.
        """
        connection = self._writing()
        with self._write_lock:
            while True:
                try:
                    with self._transaction(connection):
                        sealed, head = seal.seal(connection)
                except apsw.Error as error:
                    raise self._failed(error, "seal") from error
                self._tail_from = self._sealed_to = sealed
                if sealed == head:
                    return head

    def _settle(self) -> None:
        self.seal()

    def compact(self) -> Compacted:
        """Pack everything on the tape as small as it gets, and give the space back; return what was done.

        Chunks of one symbol are merged, also where late records made them overlap, and days of bars that are over are
        packed. Nothing else changes: positions, order and every bit of every record stay, and so does what is read as
        of an earlier position. It may be stopped or killed at any time, and run again. Others read and append
        meanwhile: only putting a merge in its place takes the write lock, for some milliseconds.

        Raises TapeReadOnly, TapeBusy, TapeFull, ChunkCorrupt.
        """
        self._writing()
        self.seal()
        before = self.path.stat().st_size
        connection = self._connect("rw")
        try:
            done, records = self._compact(connection, 1)
            days = minutes.to_pack(connection, now_ns())
            for start in range(0, len(days), _DAYS_A_STEP):
                with self._transaction(connection):
                    minutes.pack(connection, days[start : start + _DAYS_A_STEP])
            while lifecycle.give_back(connection):
                pass
            sqlite.move_log(connection)
        except apsw.Error as error:
            raise self._failed(error, "compact") from error
        finally:
            connection.close()
        return Compacted(done, records, before, self.path.stat().st_size)
