"""The writer: group commit. Ticks are gathered for a few milliseconds and stored in one transaction."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from types import TracebackType

from onetape.errors import ConfigInvalid, InvalidRecord, OnetapeError, TapeClosed
from onetape.record import SeqRange, Tick

#: Ticks stored in one transaction at the most: about 20 ms of work, so that a flush is never long.
_COMMIT_RECORDS_MAX = 16_384


class Writer:
    """Gathers ticks and stores them together: every `max_delay_ms`, or as soon as `max_records` wait.

    A tick is safe once flush() (or close()) has returned after it; until then at most `max_delay_ms` of ticks are
    at risk. append() checks each tick at once and raises InvalidRecord. When a commit fails, its ticks stay in the
    writer, the error is raised by the next append, flush or close, and the next flush tries them again: nothing is
    dropped. It may be used from several threads.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Tick]], SeqRange],
        check: Callable[[Tick], None],
        max_delay_ms: float = 5,
        max_records: int = 4096,
    ) -> None:
        if max_delay_ms <= 0 or max_records < 1:
            raise ConfigInvalid("max_delay_ms is positive and max_records at least 1")
        self._commit = commit
        self._check = check
        self._delay_s = max_delay_ms / 1000
        self._max_records = max_records
        self._held: deque[Tick] = deque()
        self._room = threading.Lock()
        self._storing = threading.Lock()
        self._full = threading.Event()
        self._closed = False
        self._error: OnetapeError | None = None
        self.stored = 0
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="onetape-writer", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> list[Tick]:
        """Return the ticks that are not stored yet."""
        with self._room:
            return list(self._held)

    def append(self, tick: Tick) -> None:
        """Take a tick to store within max_delay_ms; waits while it is full.

        Raises InvalidRecord, and TapeError when storing failed; the tick given was not taken then.
        """
        self._check(tick)
        if os.getpid() != self._pid:
            raise TapeClosed("this writer was opened before the process was forked", hint="open one in the new process")
        if len(self._held) >= self._max_records and self._error is None and not self._closed:
            # Store, or wait for the thread that does: going on beside it, the two would take Python's lock from
            # each other at every statement.
            self._store()
        with self._room:
            if self._closed:
                raise TapeClosed("this writer is closed", hint="open another with tape.writer()")
            if self._error is not None:
                self._raise()
            self._held.append(tick)
            full = len(self._held) == self._max_records
        if full:
            self._full.set()

    def _raise(self) -> None:
        error, self._error = self._error, None
        assert error is not None
        raise error

    def flush(self) -> None:
        """Return once everything appended before is durable. Raises what a commit failed with."""
        with self._room:
            count = len(self._held)
            goal = self.stored + count
            self._error = None  # this flush tries again and raises for itself
        while self.stored < goal:
            self._store()

    def _store(self) -> None:
        with self._storing:
            with self._room:
                ticks = list(islice(self._held, _COMMIT_RECORDS_MAX))
            if not ticks:
                return
            try:
                self._commit(ticks)
            except InvalidRecord as error:  # it passed alone, but not beside the others: it is not the others' fault
                with self._room:
                    del self._held[error.index]
                raise
            with self._room:
                for _ in ticks:
                    self._held.popleft()
                self.stored += len(ticks)

    def _run(self) -> None:
        while not self._closed:
            self._full.wait(self._delay_s)
            self._full.clear()
            if self._error is not None:
                continue
            try:
                # Once, not until nothing is left: while ticks keep coming that would be commit after tiny commit.
                if self._held and not self._closed:
                    self._store()
            except OnetapeError as error:
                with self._room:
                    self._error = error
            except Exception as error:  # noqa: BLE001  (a thread has nobody above it: the next call raises it)
                with self._room:
                    self._error = OnetapeError(f"storing failed: {error!r}")

    def close(self) -> None:
        """Store what is held and end. When that fails it raises; `pending` still holds the ticks, and close() again
        tries again."""
        with self._room:
            self._closed = True
        self._full.set()
        self._thread.join()
        while self._held:
            self._store()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
