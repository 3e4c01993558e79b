"""Upkeep: sealing, retention, and the space given back."""

from __future__ import annotations

import apsw

from onetape.clock import Time, now_ns, to_ns
from onetape.store import layout, lifecycle, seal, sqlite
from onetape.tape.handle import Handle, log

_PRUNE_EVERY_NS = 3_600_000_000_000
_PRUNE_STEPS = 4
#: How long a seal waits for a moment without readers to begin an overgrown log anew.
_LOG_PATIENCE_MS = 50


class Upkeep(Handle):
    """What keeps the file in order."""

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
            log.error("sealing %s failed: %s", self.path, told)

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
