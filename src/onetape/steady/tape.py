"""The steady tape: what services, feeds and the page hold instead of a Tape, so that its outage is none of theirs.

    tape = SteadyTape("market_data.db")          # never raises for a tape that is away
    tape.append(Tick(...))                       # a SeqRange; None: held in memory, not durable yet
    tape.status                                  # on the tape, or why not, and how much is held

Away is a tape that is missing, locked, read-only, full or damaged. Then records are kept in a bounded ring, reads are
answered from it (and from the file, where that can still be read), subscribers get each record once as always. A thread
looks every `retry_s` whether the tape can be used again, and writes what was held, in order, each delivery under the
identity it came with or one of its own, so that not knowing whether the last write was stored costs nothing. A file
that was found damaged is not written to before somebody has changed it and it is found healthy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from onetape import tape as tapes
from onetape.clock import Time, now_ns
from onetape.errors import (
    ConfigInvalid,
    CursorConflict,
    TapeBusy,
    TapeClosed,
    TapeDamaged,
    TapeError,
    TapeFull,
    TapeMissing,
    TapeReadOnly,
    TapeTooNew,
    TapeUnusable,
)
from onetape.facts import SymbolInfo
from onetape.live.subscription import Subscription, SubscriptionStats, WhenSlow
from onetape.record import Bar, Record, SeqRange, Tick
from onetape.steady import merged
from onetape.steady.back import Back
from onetape.steady.beat import SteadyBeat
from onetape.steady.follower import SteadyFollower
from onetape.steady.held import put, valid
from onetape.steady.place import FileId, Place
from onetape.steady.ring import Cursor, Held, Ring
from onetape.store import table
from onetape.store.journal import Identity
from onetape.tape import Tape, care

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("onetape.steady")

#: Errors that say that the tape is away; any other is about what was asked.
AWAY = (TapeBusy, TapeFull, TapeReadOnly, TapeDamaged, TapeUnusable, TapeMissing, TapeTooNew, TapeClosed)
#: A tape that is locked for longer is away: services do not wait as long as an import does, ms.
BUSY_MS = 1_000


class SteadyStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a steady tape is. `since_ns`: when that began; `held` records wait for the tape in a ring of `ring_records`.

    dropped: records that the full ring let go, lost for the tape. written_back: records stored after an outage.
    outages: how often the tape was away.
    """

    on_tape: bool
    reason: str | None
    since_ns: int
    held: int
    ring_records: int
    dropped: int
    written_back: int
    outages: int


class SteadyTape:
    """See the module. All methods may be called from any thread; `start()` begins to look for a tape that is away."""

    def __init__(
        self,
        path: str | os.PathLike[str] = "market_data.db",
        *,
        ring_records: int = 100_000,
        retry_s: float = 1.0,
        busy_timeout_ms: int = BUSY_MS,
        **options: Any,
    ) -> None:
        if ring_records < 1 or retry_s <= 0:
            raise ConfigInvalid(
                f"ring_records = {ring_records}, retry_s = {retry_s}", hint="at least 1 record, and above 0 s"
            )
        self.path = Path(os.path.realpath(path))
        self._place = Place(self.path)
        self._options = {**options, "busy_timeout_ms": busy_timeout_ms}
        self._retry_s = retry_s
        self._ring = Ring(ring_records)
        self._lock = threading.RLock()
        self._looking = threading.RLock()  # taken before _lock: one looks for the tape, and stores what is held
        self._back = Back()
        self._followers: weakref.WeakSet[SteadyFollower] = weakref.WeakSet()
        self._subscriptions: list[Subscription] = []
        self._cursors: dict[str, str | None] = {}
        self._known: dict[str, Tick] = {}
        self._tape: Tape | None = None
        self._file: FileId | None = None
        self._reason: str | None = None
        self._damaged: tuple[int, ...] | None = None
        self._vanished = False
        self._since_ns = now_ns()
        self._outages = self._written_back = self._refused = 0
        self._pid = os.getpid()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self._open()
        except (*AWAY, OSError) as error:
            self._go_away(error, self._tape)

    # The tape itself

    @property
    def tape(self) -> Tape | None:
        """The tape while records reach it; None while it is away."""
        return self._tape if self._reason is None else None

    @property
    def status(self) -> SteadyStatus:
        """How it is. Never waits."""
        reason = self._reason
        return SteadyStatus(
            on_tape=reason is None,
            reason=reason,
            since_ns=self._since_ns,
            held=self._ring.records,
            ring_records=self._ring.records_max,
            dropped=self._ring.dropped + self._refused,
            written_back=self._written_back,
            outages=self._outages,
        )

    def __getattr__(self, name: str) -> Any:
        """Return anything else of a Tape. Raises TapeMissing while it is away."""
        if name.startswith("_"):
            raise AttributeError(name)
        tape = self.tape
        if tape is None:
            raise TapeMissing(f"the tape is away: {self._reason}", hint="it is opened by itself once it can be")
        return getattr(tape, name)

    def start(self) -> SteadyTape:
        """Begin to look for a tape that is away. Repeating it is harmless."""
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._keep, name="onetape-steady", daemon=True)
                self._thread.start()
        return self

    def close(self) -> None:
        """Try once more to store what is held, end subscriptions, and close the file."""
        if self._closed.is_set():
            return
        if self._thread is not None:
            self.look()
        self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10)
        for subscription in list(self._subscriptions):
            subscription.close()
        for follower in self._following():
            follower.close()
        with self._lock:
            if self._ring.records:
                log.error("%d records that were held in memory are lost: %s", self._ring.records, self._reason)
            made, self._tape = self._tape, None
            if self._reason is None:
                self._reason = "it is closed"
        if made is not None:
            made.close()

    def __enter__(self) -> SteadyTape:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # Writing

    def append(
        self,
        records: Tick | Bar | Sequence[Tick | Bar],
        *,
        batch: str | None = None,
        ids: Sequence[bytes] | None = None,
        cursor: Cursor | None = None,
        on_invalid: Any = "raise",
    ) -> SeqRange | None:
        """As Tape.append(); None where the records are held in memory until the tape is back.

        Raises what the records themselves deserve (InvalidRecord, ConfigInvalid, CursorConflict); and TapeFull where
        the tape is away and there is no room for what a source can give again (a delivery with a cursor).
        """
        given: int | None = None
        if not isinstance(records, Tick | Bar | Sequence):
            records = list(records)  # what can be read once must be there still when it is to be held
        if self._reason is None:
            tape, file = self._tape, self._file
            try:
                self._place.check(self._file)
                assert tape is not None
                done = tape.append(records, batch=batch, ids=ids, cursor=cursor, on_invalid=on_invalid)
                if done.stored == (1 if isinstance(records, Tick | Bar) else len(records)):
                    self._remember(records)  # all of them: none of them is in quarantine
                if not self._place.holds_another(file):
                    return done
                given = done.first
                self._place.check(self._file)
            except AWAY as error:
                self._go_away(error, tape)
        found = [records] if isinstance(records, Tick | Bar) else list(records)
        return self._hold(found, batch, ids, cursor, on_invalid, given)

    def append_table(
        self,
        data: Any,
        *,
        batch: str | None = None,
        ids: Sequence[bytes] | None = None,
        cursor: Cursor | None = None,
        on_invalid: Any = "raise",
    ) -> SeqRange | None:
        """As Tape.append_table(); None where the ticks are held in memory."""
        given: int | None = None
        if self._reason is None:
            tape, file = self._tape, self._file
            try:
                self._place.check(self._file)
                assert tape is not None
                done = tape.append_table(data, batch=batch, ids=ids, cursor=cursor, on_invalid=on_invalid)
                if not self._place.holds_another(file):
                    return done
                given = done.first
                self._place.check(self._file)
            except AWAY as error:
                self._go_away(error, tape)
        found = table.from_table(data)
        if cursor is not None and len(found) > self._ring.records_max - self._ring.records:
            raise TapeFull(f"the tape is away: {self._reason}", hint="the source waits, and gives the records again")
        rows = [Tick(**found.record(at)) for at in range(len(found))]
        return self._hold(rows, batch, ids, cursor, on_invalid, given)

    def cursor(self, name: str) -> str | None:
        """As Tape.cursor(), also of what is held. A tape that is away is remembered as it was last asked."""
        held = self._ring.cursor(name)
        if held is not None:
            return held
        found: str | None = self._asked(lambda tape: tape.cursor(name), lambda: self._cursors.get(name))
        self._cursors[name] = found
        return found

    def heartbeat(self, source: str | None, symbols: Iterable[str], since: Time | None = None) -> SteadyBeat:
        """As Tape.heartbeat(); the time in which the tape was away is not covered by it."""
        return SteadyBeat(lambda: self.tape, source, symbols, since)

    def cover(self, symbol: str, start: Time, end: Time, *, source: str | None = None) -> None:
        """As Tape.cover(), while the tape is there; a word that is not stored leaves the time unknown."""
        self._said(lambda tape: tape.cover(symbol, start, end, source=source))

    def mark_missing(self, symbol: str, start: Time, end: Time, *, source: str | None = None) -> None:
        """As Tape.mark_missing(), while the tape is there."""
        self._said(lambda tape: tape.mark_missing(symbol, start, end, source=source))

    # Reading

    @property
    def head(self) -> int | None:
        """The position of the newest record on the tape, None while it is away."""
        tape = self.tape
        if tape is None:
            return None
        try:
            return tape.head
        except (*AWAY, OSError):
            return None

    def latest(self, symbol: str | None = None) -> Any:
        """As Tape.latest(): of what is on the tape and what is held, the greatest event time."""
        if symbol is not None:
            found, held = self._both(lambda tape: tape.latest(symbol), lambda: self._known.get(symbol), symbol)
            return merged.latest([found], held).get(symbol) if held else found
        every, held = self._both(lambda tape: tape.latest(), lambda: dict(self._known))
        return merged.latest(every.values(), held) if held else every

    def recent(self, symbol: str, count: int = 1000) -> list[Tick]:
        """As Tape.recent(): the newest ticks, ascending."""
        found, held = self._both(lambda tape: tape.recent(symbol, count), list, symbol)
        return merged.recent(found, held, count) if held else list(found)

    def symbols(self) -> list[SymbolInfo]:
        """As Tape.symbols()."""
        found, held = self._both(lambda tape: tape.symbols(), list)
        return merged.symbols(found, held) if held else list(found)

    def symbol_names(self) -> list[str]:
        """Return the names of the symbols, sorted."""
        return [info.symbol for info in self.symbols()]

    def read(
        self, symbol: str, start: Time | None = None, end: Time | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """As Tape.read(), of one symbol."""
        found, held = self._both(lambda tape: tape.read(symbol, start, end, columns=columns), lambda: None, symbol)
        return found if found is not None and not held else merged.table(found, held, symbol, start, end, columns)

    def bar_list(
        self, symbol: str, interval: str = "1min", start: Time | None = None, end: Time | None = None, **how: Any
    ) -> list[Bar]:
        """As Tape.bar_list(); bars of what is held are folded from it, and joined with those of the tape."""
        found, held = self._both(lambda tape: tape.bar_list(symbol, interval, start, end, **how), list, symbol)
        return merged.bars(found, held, interval, start, end, **how) if held else list(found)

    def bars(
        self, symbol: str, interval: str = "1min", start: Time | None = None, end: Time | None = None, **how: Any
    ) -> pa.Table:
        """As Tape.bars(), of one symbol. While records are held, time bars of trades have the columns of given bars."""
        if not self._ring.records:
            found = self._asked(lambda tape: tape.bars(symbol, interval, start, end, **how), lambda: None)
            if found is not None:
                return found
        from onetape.store import arrow

        return arrow.bars_to_arrow(self.bar_list(symbol, interval, start, end, **how))

    def follow(self, symbols: str | Iterable[str] | None = None, from_seq: int | None = None) -> SteadyFollower:
        """Return a follower from a position (None: from now) that goes on through outages."""
        with self._lock:  # what is held from here on is given to it, and not given again when it is stored
            made = SteadyFollower(
                lambda position: self._follower(symbols, position),
                self._back.without,
                symbols,
                from_seq,
                self._ring.number,
                self._ring.records_max,
                self._forget,
            )
            self._followers.add(made)
        return made

    def subscribe(
        self,
        callback: Callable[[Record], object],
        symbols: str | Iterable[str] | None = None,
        when_slow: WhenSlow = "drop_oldest",
        queue_records: int = 1000,
        *,
        from_seq: int | None = None,
    ) -> Subscription:
        """As Tape.subscribe(), through outages: each record once; those that came in an outage have seq None."""
        if when_slow not in ("block", "drop_oldest", "conflate", "disconnect"):
            raise ConfigInvalid(
                f"when_slow = {when_slow!r}", hint="it is 'block', 'drop_oldest', 'conflate' or 'disconnect'"
            )
        if queue_records < 1:
            raise ConfigInvalid(f"queue_records = {queue_records}", hint="it is at least 1")
        follower: Any = self.follow(symbols, from_seq)
        made = Subscription(follower, callback, when_slow, queue_records, self._ended)
        self._subscriptions.append(made)
        return made

    def subscription_stats(self) -> list[SubscriptionStats]:
        """Return what subscriptions have done."""
        head = self.head or 0
        return [one.stats(head) for one in list(self._subscriptions)]

    # Coming and going

    def look(self) -> bool:
        """Look at once whether the tape can be used, and store what is held; return whether it is.

        Who appends meanwhile does not wait: what comes is held too, and stored in its turn.
        """
        with self._looking:
            if self._closed.is_set():
                return False
            tape = self._tape
            try:
                if self._reason is None:
                    self._place.check(self._file)
                    self._back.prune(self._following())
                    return True
                if not self._may_return():
                    return False
                self._open()
                assert self._tape is not None
                tape = self._tape
                self._place.check(self._file)
                head = tape.head
                for follower in self._following():
                    follower.begin(head)  # "from now" was said while there was no tape to say where that is
                while not self._returned():
                    self._write_back(tape)
            except (*AWAY, OSError) as error:
                self._go_away(error, tape)
                return False
        for follower in self._following():
            follower.poke()
        return True

    def _returned(self) -> bool:
        """Be on the tape again, if nothing is held any more; return whether that is so."""
        with self._lock:
            if self._ring.records or len(self._ring):
                return False
            self._reason, self._damaged, self._vanished = None, None, False
            self._since_ns = now_ns()
            log.info("the tape is back: %s", self.path)
            return True

    def _following(self) -> list[SteadyFollower]:
        with self._lock:  # (a weak set cannot be read while another thread adds to it)
            return list(self._followers)

    def _forget(self, follower: SteadyFollower) -> None:
        with self._lock:
            self._followers.discard(follower)

    def _keep(self) -> None:
        while not self._closed.wait(self._retry_s):
            try:
                self.look()
            except Exception:  # (whatever it was, the next look may find the tape)
                log.exception("looking for the tape failed")

    def _open(self) -> None:
        if self._tape is None:
            made = tapes.open(self.path, **self._options)
            self._tape, self._file = made, self._place.file()
            with contextlib.suppress(TapeError):
                self._known = merged.latest(self._known.values(), made.latest().values())

    def _go_away(self, error: Exception, tape: Tape | None) -> None:
        """Hold records from now on, because of what using `tape` said; unless another was opened meanwhile."""
        with self._lock:
            if self._closed.is_set() or (tape is not self._tape and self._reason is None):
                return
            if self._reason is None:
                self._outages += 1
                self._since_ns = now_ns()
                log.warning("the tape is away, records are held in memory: %s", error)
            self._reason = str(error)
            if isinstance(error, TapeMissing | OSError) and self._tape is not None:
                self._vanished = True
            if isinstance(error, TapeDamaged | TapeUnusable):
                with contextlib.suppress(OSError):
                    self._damaged = self._place.stamp()
            if not isinstance(error, TapeBusy | TapeFull) and tape is self._tape:
                self._let_go()
            following = list(self._followers)
        for follower in following:
            follower.away()

    def _remember(self, records: Any) -> None:
        """Keep the last ticks that were appended here: they stay known when the file goes away."""
        known = self._known
        for record in (records,) if records.__class__ is Tick else records:
            if record.__class__ is Tick:
                last = known.get(record.symbol)
                if last is None or record.ts_event_ns >= last.ts_event_ns:
                    known[record.symbol] = record

    def _let_go(self) -> None:
        made, self._tape = self._tape, None
        if made is not None:
            with contextlib.suppress(Exception):  # it is broken already
                self._known = merged.latest(self._known.values(), made.latest().values())
            with contextlib.suppress(Exception):
                made.close()

    def _may_return(self) -> bool:
        """Return whether it makes sense to open the tape: not the same damage, nor no file where there was one."""
        if self._vanished and not self.path.exists():
            return False
        if self._damaged is not None and self.path.exists():
            if self._place.stamp() == self._damaged:
                return False
            self._damaged = self._place.stamp()
            checked = care.doctor(self.path)
            if not checked.healthy:
                self._reason = f"{self.path} is damaged still: {checked.problems[0].message}"
                return False
        return True

    def _write_back(self, tape: Tape) -> None:
        """Store what is first of what is held. Raises what says that the tape is away again."""
        self._place.check(self._file)
        run = self._ring.first([follower.held_from for follower in self._following()])
        if not run:
            return
        try:
            self._store(tape, run)
        except CursorConflict:  # a part of them may be stored: an answer was lost
            for held in run:
                self._store(tape, [held])

    def _store(self, tape: Tape, run: list[Held]) -> None:
        with self._back.storing:
            done, refused = put(tape, run)
            self._refused += refused
            self._place.check(
                self._file
            )  # it may have waited for a lock, and the file was replaced meanwhile: it is stored again
            if done is not None and done.last >= done.first:
                self._back.add(done.first, done.last, run[-1].number)
                self._written_back += done.stored
            self._ring.remove(run)

    def _hold(
        self,
        records: Sequence[Tick | Bar],
        batch: str | None,
        ids: Sequence[bytes] | None,
        cursor: Cursor | None,
        on_invalid: str,
        given: int | None,
    ) -> SeqRange | None:
        """Hold a delivery; store it, where the tape is back. `given`: its position in a file that was replaced."""
        if os.getpid() != self._pid:  # nobody here would ever store it
            raise TapeClosed(
                f"{self.path} was opened before this process was forked", hint="open it in the new process"
            )
        # What no tape takes is refused at once: held, it would stand in the way of everything behind it.
        Identity(batch, ids, cursor).check(len(records))
        if on_invalid not in ("raise", "quarantine"):
            raise ConfigInvalid(f"on_invalid = {on_invalid!r}", hint="it is 'raise' or 'quarantine'")
        good = valid(records, raising=on_invalid != "quarantine")
        with self._lock:
            tape = self._tape
            if self._reason is None and tape is not None:  # it came back just now
                try:
                    self._place.check(self._file)
                    return tape.append(
                        list(records),
                        batch=batch,
                        ids=ids,
                        cursor=cursor,
                        on_invalid=on_invalid,  # type: ignore[arg-type]
                    )
                except AWAY as error:
                    self._go_away(error, tape)
            if self._closed.is_set():
                raise TapeClosed(f"{self.path} is closed", hint="open it again")
            self._ring.add(records, batch, ids, cursor, on_invalid)
            for follower in self._followers:
                if given is None or follower.position < given:
                    follower.hold(good)
        return None

    def _both(
        self, ask: Callable[[Tape], Any], otherwise: Callable[[], Any], symbol: str | None = None
    ) -> tuple[Any, list[Tick]]:
        """Return what the tape answers and what is held beside it; no tick in both, and none in neither."""
        outages = self._outages
        if self._reason is None:
            found = self._asked(ask, otherwise)
            if self._reason is None and self._outages == outages:
                return found, []
        with self._back.storing:  # nothing goes from the one to the other meanwhile
            return self._asked(ask, otherwise), list(self._ring.ticks(symbol))

    def _asked(self, ask: Callable[[Tape], Any], otherwise: Callable[[], Any]) -> Any:
        """Return what the tape answers, also one that only cannot be written; else the other answer."""
        tape = self._tape
        if tape is None:
            return otherwise()
        try:
            return ask(tape)
        except (*AWAY, OSError) as error:
            if not isinstance(error, TapeBusy):
                self._go_away(error, tape)
            return otherwise()

    def _said(self, say: Callable[[Tape], None]) -> None:
        tape = self.tape
        if tape is not None:
            try:
                say(tape)
            except AWAY as error:
                log.warning("a word on coverage is not stored: %s", error)

    def _follower(self, symbols: str | Iterable[str] | None, position: int | None) -> Any:
        tape = self._tape
        if tape is None:
            raise TapeMissing(f"the tape is away: {self._reason}")
        if position is None:
            return tape.follow(symbols)
        return tape.follow(symbols, from_seq=min(position, tape.head))

    def _ended(self, subscription: Subscription) -> None:
        with contextlib.suppress(ValueError):
            self._subscriptions.remove(subscription)
