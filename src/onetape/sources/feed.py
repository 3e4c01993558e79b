"""The feed: what a source delivers put on the tape, each record once, however often either is killed.

    feed = Feed(source, tape)
    threading.Thread(target=feed.run).start()        # until feed.close(), or the source ends
    feed.stats.stored, feed.stats.last_error

A delivery's records and the source's cursor behind them are stored in one transaction, the cursor by
compare-and-set: a feed that was killed goes on exactly where its tape is, and of two feeds of one name one stops.
What arrives is stored at once; what arrived meanwhile is stored together. So a quiet source has the latency of one
commit, and one that is far ahead has the throughput of large ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from onetape.clock import Time, now_ns
from onetape.errors import CursorConflict, InvalidRecord, OnetapeError, SourceRefused, TapeBusy, TapeFull
from onetape.record import Bar, SeqRange, Tick
from onetape.sources.alone import Alone
from onetape.sources.beats import Beats
from onetape.sources.inbox import Arrived, Inbox
from onetape.sources.placed import Placed
from onetape.sources.source import ALIVE_S, Backoff, Delivery, Source, SourceStats
from onetape.store import table

log = logging.getLogger("onetape.sources")

#: Records stored in one transaction where more wait: about 10 ms of work, so that other writers get their turn.
JOIN_RECORDS = 8_192
#: Under backlog it stands still for this part of the time that storing took.
TURN = 0.25
#: How long a source may take to end after close() before it is left alone, s.
_END_S = 10.0
#: How often the tape is asked whether it is back, by a feed whose source has ended, s.
_SETTLE_S = 0.1


class FeedTape(Protocol):
    """What a feed needs: a Tape, or a SteadyTape, whose appends return None for what is held in memory."""

    def append(self, records: Any, *, ids: Any = ..., cursor: Any = ..., on_invalid: Any = ...) -> SeqRange | None:
        """Store records in one transaction."""

    def append_table(self, data: Any, *, ids: Any = ..., cursor: Any = ..., on_invalid: Any = ...) -> SeqRange | None:
        """Store columns in one transaction."""

    def cursor(self, name: str) -> str | None:
        """Return where a source is."""

    def heartbeat(self, source: str | None, symbols: Iterable[str], since: Time | None = None) -> Any:
        """Return a heartbeat of a source."""

    def cover(self, symbol: str, start: Time, end: Time, *, source: str | None = None) -> None:
        """Say what is covered."""

    def mark_missing(self, symbol: str, start: Time, end: Time, *, source: str | None = None) -> None:
        """Say what is missing."""


class FeedStats(SourceStats, frozen=True, kw_only=True):
    """A source's stats, and what its feed made of them.

    stored: records on the tape by this feed; held: given to a tape that is away, which keeps them in memory. refused
    are in the tape's quarantine, duplicates were there before. waiting: records that arrived and are not stored yet.
    last_seq: position of the newest record stored. last_error: why a commit is tried again, or why the feed ended.
    """

    stored: int = 0
    held: int = 0
    waiting: int = 0
    commits: int = 0
    last_seq: int | None = None
    last_error: str | None = None


class Feed:
    """Runs one source into one tape. `run()` is for a thread of its own, once; the rest may be called from any.

    heartbeat: whether a live source's connected time is covered for the symbols it sent; a source whose attribute
    `live` is False (a file, a replay) never covers the present.
    """

    def __init__(
        self, source: Source, tape: FeedTape, *, heartbeat: bool = True, join_records: int = JOIN_RECORDS
    ) -> None:
        self.source = source
        self.tape = tape
        self._join_records = join_records
        self._beats = Beats(tape, source.name) if heartbeat and getattr(source, "live", True) else None
        self._inbox = Inbox()
        self._alone = Alone(getattr(tape, "path", None), source.name)
        self._closed = threading.Event()
        self._backoff = Backoff(0.02, 1.0)
        self._cursor: str | None = None
        self._at_begin = True
        self._held_at: dict[str, str] = {}
        self._told: dict[str, Any] = {"stored": 0, "held": 0, "commits": 0, "last_seq": None, "last_error": None}
        self._refused = self._duplicates = 0

    @property
    def stats(self) -> FeedStats:
        """How it is now."""
        own = self.source.stats
        told = {name: getattr(own, name) for name in own.__struct_fields__}
        told["refused"] += self._refused
        told["duplicates"] += self._duplicates
        return FeedStats(**told, **self._told, waiting=self._inbox.records)

    def run(self) -> None:
        """Feed until close(), or until the source ends; then everything it gave is stored.

        Raises CursorConflict where another feed of this name runs, what the source raises, and TapeError where the
        tape cannot be used: what was given and not stored is given again after a restart.
        """
        pump = threading.Thread(target=self._pump, name=f"onetape-source-{self.source.name}", daemon=True)
        try:
            self._alone.keep()
            self._cursor = self.tape.cursor(self.source.cursor_name)
            self.source.resume(self._cursor)
            adopt = getattr(self.source, "adopt", None)
            if adopt is not None:  # a source of several places, each with a cursor of its own
                adopt(self.tape.cursor)
            pump.start()
            while (arrived := self._inbox.take(self._join_records, ALIVE_S)) is not None:
                self._alone.keep()
                began = time.monotonic()
                for joined in _joined(arrived):
                    self._store(joined)
                if self._inbox.records >= self._join_records:
                    # History comes in as fast as it goes: what else this process does (a page, services) gets its turn.
                    self._closed.wait((time.monotonic() - began) * TURN)
                self._check_held()
            while self._held_at and not self._closed.wait(_SETTLE_S):
                self._check_held()
        except BaseException as error:
            self._told["last_error"] = str(error)
            raise
        finally:
            self.source.close()
            self._inbox.refuse()
            if pump.ident is not None:
                pump.join(_END_S)
                if pump.is_alive():
                    log.error("source %s does not end; it is left alone", self.source.name)
            self._alone.end()

    def close(self) -> None:
        """End: the source first, then what it gave is stored, then run() returns."""
        self._closed.set()
        self.source.close()

    def _pump(self) -> None:
        source, inbox = self.source, self._inbox
        error: BaseException | None = None
        try:
            for delivery in source:
                told, now = source.stats, now_ns()
                heard = now if delivery.heard_ns is None else min(now, delivery.heard_ns)
                if not inbox.put(Arrived(delivery, heard, told.state == "live", told.reconnects)):
                    break
        except BaseException as why:  # noqa: BLE001  (raised by run())
            error = why
        inbox.end(error)

    def _store(self, joined: Sequence[Arrived]) -> None:
        """Store deliveries that go into one transaction, and say what they cover."""
        deliveries = [one.delivery for one in joined]
        name = self.source.name
        for delivery in deliveries:  # before the cursor moves past it: after a kill it is not told again
            for symbol, start_ns, end_ns in delivery.missing:
                self._patiently(lambda s=symbol, a=start_ns, b=end_ns: self.tape.mark_missing(s, a, b, source=name))
                if self._beats is not None:
                    self._beats.resume(end_ns)
        self._commit(deliveries)
        for delivery in deliveries:
            for symbol, start_ns, end_ns in delivery.covers:
                self._patiently(lambda s=symbol, a=start_ns, b=end_ns: self.tape.cover(s, a, b, source=name))
        if self._beats is not None:
            for delivery in deliveries:
                self._beats.see(_symbols(delivery))
            last = joined[-1]
            self._beats.beat(last.at_ns, last.live, last.reconnects)

    def _commit(self, deliveries: Sequence[Delivery]) -> None:
        place = next((one.place for one in deliveries if isinstance(one, Placed)), None)
        if place is not None:
            self._commit_placed(deliveries, *place)
            return
        after = next((one.cursor for one in reversed(deliveries) if one.cursor is not None), None)
        deliveries = self._without_known(deliveries)
        moved = after is not None and after != self._cursor
        columns = deliveries[0].columns if deliveries else None
        records: Any = columns if columns is not None else [one for each in deliveries for one in each.records]
        ids: list[bytes] | None = None
        if deliveries and deliveries[0].ids is not None:
            ids = [key for each in deliveries for key in each.ids or ()]
        count = sum(one.count for one in deliveries)
        if not count and not moved:
            return
        if ids is not None and count:  # an append has one identity: ids first, so that a kill between repeats them
            self._append(records, columns is not None, count, ids=ids)
            records, columns, count = [], None, 0
        if moved:
            assert after is not None
            self._append(records, columns is not None, count, cursor=(self.source.cursor_name, self._cursor, after))
            self._cursor = after
        elif count:
            self._append(records, columns is not None, count)
        self._at_begin = self._at_begin and not moved

    def _commit_placed(self, deliveries: Sequence[Delivery], name: str, before: str | None, after: str) -> None:
        (one,) = deliveries
        records = one.records if one.columns is None else one.columns
        self._append(records, one.columns is not None, one.count, cursor=(name, before, after))

    def _without_known(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Leave out what is at the cursor that the tape had at the begin; refuse a cursor that stands still later."""
        at, kept = self._cursor, []
        for one in deliveries:
            if one.cursor is not None and one.cursor == at and one.count and one.ids is None:
                if not self._at_begin or at != self._cursor:
                    raise SourceRefused(
                        f"source {self.source.name}: {one.count} records, and its cursor stays at {at!r}",
                        hint="a cursor is the position behind the records; without one it is None",
                    )
                self._duplicates += one.count
                continue
            kept.append(one)
            at = one.cursor if one.cursor is not None else at
        return kept

    def _append(self, records: Any, is_table: bool, count: int, **identity: Any) -> None:
        append = self.tape.append_table if is_table else self.tape.append
        try:
            done = self._patiently(lambda: append(records, on_invalid="quarantine", **identity))
        except CursorConflict as error:
            name, before, after = identity["cursor"]
            found = self.tape.cursor(name)
            if found != after:
                raise CursorConflict(
                    f"source {self.source.name}: another feed of this name has moved its cursor from {before!r} to "
                    f"{found!r}; this one stops, and nothing is stored twice",
                    hint="run one feed a name: stop the other one, or give this source another name",
                ) from error
            self._duplicates += count  # it was stored, and the answer was lost
            self._told["last_error"] = None
            return
        self._told["commits"] += 1
        if "cursor" in identity:
            name, _, after = identity["cursor"]
            if done is None or name in self._held_at:
                self._held_at[name] = after
        if done is None:
            self._told["held"] += count
            return
        if done.stored:
            self._told["stored"] += done.stored
            self._told["last_seq"] = done.last
        if done.stored < count:
            refused = _invalid(records, is_table)
            self._refused += min(refused, count - done.stored)
            self._duplicates += max(0, count - done.stored - refused)

    def _check_held(self) -> None:
        """Look, once the tape is back, whether what it held is on it.

        Where the tape was away from the begin its cursor was not known, and what was given from another place is left
        out. Raises CursorConflict then: started again, the source gives it from the tape's cursor.
        """
        if not self._held_at:
            return
        status = getattr(self.tape, "status", None)
        if status is not None and (not status.on_tape or status.held):
            return
        for name, after in self._held_at.items():
            found = self.tape.cursor(name)
            if found != after:
                raise CursorConflict(
                    f"source {self.source.name}: what was held while the tape was away is not on it: its cursor is at "
                    f"{found!r}, not at {after!r}",
                    hint="start the feed again: its source gives from there on",
                )
        self._held_at.clear()

    def _patiently(self, act: Any) -> Any:
        """Do it, again and again while the tape is busy or full; the source waits. Raises after close()."""
        while True:
            try:
                done = act()
            except (TapeBusy, TapeFull) as error:
                self._told["last_error"] = f"{error}; tried again by itself"
                if self._closed.is_set() or self._closed.wait(self._backoff.next_s()):
                    raise
                continue
            if self._told["last_error"] is not None:
                self._told["last_error"] = None
                self._backoff.reset()
            return done


def _joined(arrived: Sequence[Arrived]) -> Iterable[list[Arrived]]:
    """Yield what can be stored at once: records with ids, records without; a table is alone."""
    group: list[Arrived] = []
    for one in arrived:
        first = group[0].delivery if group else None
        if first is not None and (
            first.columns is not None
            or isinstance(first, Placed)
            or isinstance(one.delivery, Placed)
            or one.delivery.columns is not None
            or (first.ids is None) != (one.delivery.ids is None)
        ):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _symbols(delivery: Delivery) -> Iterable[str]:
    if delivery.columns is not None:
        column = delivery.columns.get("symbol", ())
        found = {column} if isinstance(column, str) else {str(one) for one in column}
    else:
        found = {record.symbol for record in delivery.records if isinstance(record, Tick | Bar)}
    return found | {symbol for symbol, _start, _end in delivery.covers}


def _invalid(records: Any, is_table: bool) -> int:
    """Return how many of the records no tape takes."""
    if is_table:
        return len({problem.index for problem in table.from_table(records).problems()})
    wrong = 0
    for record in records:
        try:
            wrong += any(found.problems() for found in _batches(record))
        except (InvalidRecord, OnetapeError):
            wrong += 1
    return wrong


def _batches(record: Any) -> list[table.Batch]:
    return [table.from_records(run, kind, offset) for kind, offset, run in table.split_by_kind([record])]
