"""The handle: the file of a tape held open, its connections, locks and threads, and what closing it ends."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import apsw

from onetape.clock import Time, to_ns
from onetape.errors import ConfigInvalid, TapeClosed, TapeReadOnly, TapeUnusable
from onetape.live.follower import Follower
from onetape.live.recent import Recent
from onetape.live.subscription import Subscription
from onetape.live.waker import Waker
from onetape.record import TS_MAX_NS, Tick
from onetape.store import seal, sqlite
from onetape.store.catalog import Catalog
from onetape.store.sqlite import Durability
from onetape.writer import Writer

log = logging.getLogger("onetape.tape")


_open_tapes: weakref.WeakSet[Handle] = weakref.WeakSet()
_open_lock = threading.Lock()


#: How long a fork waits for a seal beside the appending, s: usually some milliseconds.
_FORK_PATIENCE_S = 1.0


def _before_fork() -> None:
    """Let seals be through: what SQLite has locked in a thread would stay locked in the new process for ever."""
    for tape in list(_open_tapes):
        sealer = tape._sealer
        if sealer is not None and sealer is not threading.current_thread():
            sealer.join(_FORK_PATIENCE_S)


def _after_fork() -> None:
    global _open_lock
    _open_lock = threading.Lock()  # another thread of the parent may have held it
    for tape in list(_open_tapes):
        tape._forked, tape._writable = True, False
        tape._rings, tape._recent = {}, None
        for writer in list(tape._writers):
            writer.forked()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def _at_exit() -> None:
    """Store what writers hold and end our threads: one that is still inside SQLite when Python goes would crash."""
    with _open_lock:
        tapes = list(_open_tapes)
    for tape in tapes:
        try:
            tape.close()
        except Exception as error:  # noqa: BLE001  (the others are still to be closed)
            log.error("closing %s at exit: %s", tape.path, error)


atexit.register(_at_exit)


class Handle:
    """What every part of a tape works on: connections to its file, and what this process holds for it."""

    def __init__(
        self,
        path: Path,
        recent_per_symbol: int,
        durability: Durability,
        mode: Literal["rw", "r"],
        retention_days: float | None,
        busy_timeout_ms: int,
        bar_retention_days: float | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        try:
            self.path = Path(os.path.realpath(path))  # the log lies beside the file, not beside a link to it
        except (OSError, ValueError) as error:
            raise TapeUnusable(f"cannot look at {str(path)!r}: {error}", hint="check the path") from error
        self.mode = mode
        self.durability = durability
        self._retention_days = retention_days
        self._bar_retention_days = bar_retention_days
        self._memory_bytes = memory_bytes
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
        self._keeper_waker: Waker | None = None
        self._followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        self._followers_lock = threading.Lock()
        self._followed = False
        self._frozen: tuple[int, int, bool] | None = None
        self._subscriptions: list[Subscription] = []
        self._writers: weakref.WeakSet[Writer] = weakref.WeakSet()
        self._seal_error: str | None = None
        #: Of continuous futures, by name and version, when they roll: see tape/schedules.py.
        self._schedules: dict[tuple[str, int], Any] = {}
        self._tail_from = self._sealed_to = 0
        #: Who seals beside the appending, and whether the last one failed, so that the appender does it.
        self._sealer: threading.Thread | None = None
        self._seal_alone = False
        self._sealed_at = time.monotonic()
        self._compactor: threading.Thread | None = None
        self._compactor_lock = threading.Lock()
        self._damaged: set[int] = set()
        self._checkpointer: threading.Thread | None = None
        self._appended = 0
        connection = self._connect()
        try:
            self._catalog.load(connection)
            self._tail_from = self._sealed_to = seal.seal_position(connection)
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
        if (sealer := self._sealer) is not None and sealer is not threading.current_thread():
            sealer.join(30)  # a process that appends once and ends is to leave no long journal behind
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
            if self._keeper_waker is not None:
                self._keeper_waker.close()
            self._keeper.join(5)
        if self._recent is not None:
            self._recent.close()
        for name in ("_sealer", "_compactor", "_checkpointer"):  # in this order: a seal may begin a merge
            thread = getattr(self, name)
            if thread is not None and thread is not threading.current_thread():
                thread.join(30)
        with self._write_lock, self._readers_lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()
            if self._writer_connection is not None:
                self._writer_connection.close()
        self._rings = {}
        self._recent = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _span(self, start: Time | None, end: Time | None) -> tuple[int, int]:
        start_ns = 0 if start is None else to_ns(start, "start")
        end_ns = TS_MAX_NS + 1 if end is None else to_ns(end, "end")
        return within(start_ns), within(end_ns)


def within(ns: int) -> int:
    """Return a time, or the end of time it lies beyond: nothing on a tape is earlier or later."""
    return min(max(ns, 0), TS_MAX_NS + 1)
