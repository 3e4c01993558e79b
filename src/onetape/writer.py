"""The writer: group commit. Ticks are packed as they come and stored together, in one row of the journal."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from onetape.errors import ConfigInvalid, OnetapeError, TapeBusy, TapeClosed
from onetape.offloop import in_thread
from onetape.record import SeqRange, Tick


class Run(NamedTuple):
    """Ticks packed one behind another, all with the columns of `bits`."""

    bits: int
    rows: list[bytes]


class NameUnknown(LookupError):
    """A tick's symbol or source has to be asked of the tape, which may take as long as another process writes."""


#: Packs a tick as (bits, row). Raises InvalidRecord.
Pack = Callable[[Tick], tuple[int, bytes]]
#: Stores runs in their order, in one transaction. wait: for other processes' writes, or raise TapeBusy at once.
Commit = Callable[[list[Run], bool], SeqRange]


class Writer:
    """Gathers ticks and stores them together: every `max_delay_ms`, or as soon as `max_records` wait.

    A tick is safe once flush() (or close()) has returned after it; until then at most `max_records` ticks of at most
    `max_delay_ms` are at risk. append() checks each tick at once and raises InvalidRecord. When a commit fails, its
    ticks stay in the writer, the error is raised by the next append, flush or close, and the next flush tries them
    again: nothing is dropped. It may be used from several threads.
    """

    def __init__(
        self,
        pack: Pack,
        commit: Commit,
        max_delay_ms: float = 5,
        max_records: int = 4096,
        patient: bool = True,
    ) -> None:
        if max_delay_ms <= 0 or max_records < 1:
            raise ConfigInvalid("max_delay_ms is positive and max_records at least 1")
        self._pack = pack
        self._commit = commit
        self._delay_s = max_delay_ms / 1000
        self.max_records = max_records
        self._patient = patient  # whether its thread waits for other processes: whoever appends then waits for it
        self.storing = False
        self.held: list[Tick] = []
        self._runs: list[Run] = []
        self._bits = -1
        self._rows: list[bytes] = []
        self._since = 0.0
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._closed = False
        self._error: OnetapeError | None = None
        self.stored = 0
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="onetape-writer", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> list[Tick]:
        """Return the ticks that are not stored yet."""
        with self._lock:
            return list(self.held)

    @property
    def full(self) -> bool:
        """Return whether the next append stores what is held first."""
        return 0 < len(self.held) >= self.max_records

    def append(self, tick: Tick, pack: Pack | None = None) -> None:
        """Take a tick to store within max_delay_ms; where max_records are held, those are stored first.

        Raises InvalidRecord, and TapeError when storing failed; the tick given was not taken then.
        """
        with self._lock:
            if self._closed or self._error is not None or len(self.held) >= self.max_records:
                self._make_room()
            packed = self._pack(tick) if pack is None else pack(tick)
            if packed[0] != self._bits:
                run = Run(packed[0], [])
                self._runs.append(run)
                self._bits, self._rows = run.bits, run.rows
            self._rows.append(packed[1])
            if not self.held:
                self._since = time.monotonic()
            self.held.append(tick)

    def forked(self) -> None:
        """Make sure, in a process that was forked, that nothing is taken: the parent stores what is held."""
        self._lock, self.max_records = threading.RLock(), 0

    def _make_room(self) -> None:
        if os.getpid() != self._pid:
            raise TapeClosed("this writer was opened before the process was forked", hint="open one in the new process")
        if self._closed:
            raise TapeClosed("this writer is closed", hint="open another with tape.writer()")
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self._store(True)

    def flush(self) -> None:
        """Return once everything appended before is durable. Raises what a commit failed with."""
        with self._lock:
            self._error = None  # this flush tries again and raises for itself
            self._store(True)

    def try_flush(self) -> bool:
        """Store what is held unless another process is writing at this moment; return whether it is stored."""
        with self._lock:
            try:
                self._store(False)
            except TapeBusy:
                return False
            return True

    def _store(self, wait: bool) -> None:
        if not self.held:
            return
        self.storing = True
        try:
            self._commit(self._runs, wait)
        finally:
            self.storing = False
        self.stored += len(self.held)
        self.held, self._runs, self._bits = [], [], -1

    def _run(self) -> None:
        """Store what has waited for max_delay_ms."""
        while not self._closed:
            self._wake.wait(self._delay_s)
            if not self.held or self._error is not None or time.monotonic() - self._since < self._delay_s / 2:
                continue
            with self._lock:
                try:
                    if not self._closed:
                        self._store(self._patient)
                except TapeBusy as error:
                    if self._patient:
                        self._error = error  # else it is tried again after the next delay
                except OnetapeError as error:
                    self._error = error
                except Exception as error:  # noqa: BLE001  (a thread has nobody above it: the next call raises it)
                    self._error = OnetapeError(f"storing failed: {error!r}")

    def close(self) -> None:
        """Store what is held and end. When that fails it raises; `pending` still holds the ticks, and close() again
        tries again."""
        with self._lock:
            self._closed = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        with self._lock:
            self._store(True)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncWriter:
    """A Writer for asyncio: `await append(tick)`. The event loop never waits for another process, nor for a disk.

    At most `max_records` ticks are at risk, and each for at most `max_delay_ms`; otherwise as Writer.
    """

    def __init__(self, writer: Writer, blocks: bool, pack: Pack | None = None) -> None:
        self._writer = writer
        self._take = writer.append
        self._most = writer.max_records
        self._pack = pack  # in a thread, of what the writer's own cannot pack
        self._blocks = blocks  # a commit waits for the disk: it is made in a thread

    @property
    def pending(self) -> list[Tick]:
        """Return the ticks that are not stored yet."""
        return self._writer.pending

    async def append(self, tick: Tick) -> None:
        """As Writer.append()."""
        writer = self._writer
        if writer.storing or len(writer.held) >= self._most:
            await self._make_room()
        try:
            self._take(tick)
        except NameUnknown:
            await in_thread(self._take, tick, self._pack)

    async def _make_room(self) -> None:
        writer = self._writer
        while writer.storing or (writer.full and (self._blocks or not writer.try_flush())):
            await in_thread(writer.flush)  # and look again: other tasks may have filled it meanwhile

    async def flush(self) -> None:
        """As Writer.flush()."""
        await in_thread(self._writer.flush)

    async def aclose(self) -> None:
        """As Writer.close()."""
        await in_thread(self._writer.close)

    async def __aenter__(self) -> AsyncWriter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
