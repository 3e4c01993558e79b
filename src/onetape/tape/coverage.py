"""Coverage of a tape: sources say what they recorded, and the tape says what is covered, quiet, missing or closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import apsw

from onetape.clock import Time, now_ns, to_ns
from onetape.errors import ConfigInvalid
from onetape.offloop import in_thread
from onetape.store import coverage, partition, query, sessions, silence
from onetape.store.partition import Gap, Pair, Span
from onetape.store.sessions import Sessions
from onetape.store.validate import text_problem
from onetape.tape.handle import Handle
from onetape.tape.heartbeat import Heartbeat

#: Covered time without a tick for longer is called quiet.
QUIET_S = 60.0


@runtime_checkable
class Closing(Protocol):
    """What knows when a market is closed: a Session, a Calendar, or anything with this method."""

    def closed(self, start_ns: int, end_ns: int) -> Iterable[Pair]:
        """Return the spans of start_ns … end_ns in which the market is closed, ascending."""


class CoverageReads(Handle):
    """What is known of a symbol's time."""

    def coverage(
        self,
        symbol: str,
        start: Time | None = None,
        end: Time | None = None,
        *,
        session: str | Closing | Sessions | None = None,
        quiet_s: float = QUIET_S,
    ) -> list[Span]:
        """Return start <= time < end as a partition: ascending spans without overlap or hole.

        Left out, they are the first and the last time that the tape knows anything of the symbol. session: when the
        market trades: "XNYS", "America/Chicago 17:00-16:00", a Session or a Calendar. quiet_s: covered time without a
        tick for longer is quiet. A span's state is one of covered, quiet, missing, closed, pruned, unknown (see Span).
        Where no source ever said what it covers, it is inferred: ticks that flow as usual cover, silence far longer
        than usual at that time of the day is unknown.
        """
        return self._coverage(symbol, start, end, session, quiet_s, only_gaps=False)

    def gaps(
        self,
        symbol: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
        *,
        session: str | Closing | Sessions | None = None,
        min_s: float = 0.0,
    ) -> list[Gap]:
        """Return the missing and unknown spans of at least `min_s`, by symbol and ascending; without a symbol, of all.

        Nothing of the time to come is a gap. Covered time is not read, so this is faster than coverage().
        """
        names, counts = [symbol] if symbol is not None else [], None
        if symbol is None:
            with self._reading() as connection, query.snapshot(connection):
                self._catalog.load(connection)
                names, counts = sorted(self._catalog.names()), query.symbol_counts(connection)
        now, out = now_ns(), []
        for name in names:
            for span in self._coverage(name, start, end, session, QUIET_S, only_gaps=True, counts=counts):
                last_ns = min(span.end_ns, now)
                if span.state in ("missing", "unknown") and last_ns - span.start_ns >= max(1, min_s * 1e9):
                    out.append(Gap(name, span.start_ns, last_ns, span.state, span.by, span.asked))
        return out

    def _coverage(
        self,
        symbol: str,
        start: Time | None,
        end: Time | None,
        session: str | Closing | Sessions | None,
        quiet_s: float,
        *,
        only_gaps: bool,
        counts: dict[int, query.SymbolCounts] | None = None,
    ) -> list[Span]:
        if not quiet_s >= 0:
            raise ConfigInvalid(f"quiet_s = {quiet_s!r}", hint="it is a number of seconds, not negative")
        start_ns, end_ns = self._span(start, end)
        with self._reading() as connection, query.snapshot(connection):
            if start is None or end is None:
                known = coverage.known(connection, self._catalog, symbol, counts)
                if known is None:
                    return []
                start_ns = known[0] if start is None else start_ns
                end_ns = known[1] if end is None else end_ns
            if start_ns >= end_ns:
                return []
            # A silence is measured beyond what is asked for, and so is what of it is closed.
            closed = _closed(session, max(0, start_ns - silence.SUSPECT_MAX_NS), end_ns + silence.SUSPECT_MAX_NS)
            now = min(max(now_ns(), start_ns), end_ns)
            found = coverage.spans(
                connection,
                self._catalog,
                symbol,
                start_ns,
                now,
                closed=closed,
                quiet_ns=int(quiet_s * 1e9),
                only_gaps=only_gaps,
            )
        if now < end_ns:  # what is to come is not missing
            found += partition.partition(symbol, now, end_ns, [], still=[(now, end_ns)], closed=closed)
        return found

    async def acoverage(
        self, symbol: str, start: Time | None = None, end: Time | None = None, **how: Any
    ) -> list[Span]:
        """As coverage(), off the event loop."""
        return await in_thread(self.coverage, symbol, start, end, **how)

    async def agaps(
        self, symbol: str | None = None, start: Time | None = None, end: Time | None = None, **how: Any
    ) -> list[Gap]:
        """As gaps(), off the event loop."""
        return await in_thread(self.gaps, symbol, start, end, **how)


class Coverage(CoverageReads):
    """How sources say what they covered, and how what was missing is filled in."""

    def cover(self, symbol: str, start: Time, end: Time, *, source: str | None = None) -> None:
        """Say that `source` recorded all there was of a symbol from start up to, not including, end.

        A symbol may be named before its first tick. Of one source the last word on a time holds; what any source
        covers is covered. Saying the same again changes nothing.
        """
        self._say(symbol, start, end, source, partition.SAID_COVERED)

    def mark_missing(self, symbol: str, start: Time, end: Time, *, source: str | None = None) -> None:
        """Say that `source` did not record start <= time < end, whatever it said before. Others may cover it."""
        self._say(symbol, start, end, source, partition.SAID_MISSING)

    def mark_asked(self, symbol: str, start: Time, end: Time, *, source: str) -> None:
        """Say that `source` was asked for start <= time < end and had nothing: the time stays what it is."""
        self._say(symbol, start, end, source, partition.SAID_EMPTY)

    def heartbeat(self, source: str | None, symbols: Iterable[str], since: Time | None = None) -> Heartbeat:
        """Return a Heartbeat of a source that begins to record these symbols at `since` (now, if left out)."""
        names = [symbols] if isinstance(symbols, str) else list(symbols)
        for name in names:
            _check(name, source)
        since_ns = now_ns() if since is None else to_ns(since, "since")

        def beat(from_ns: int, until_ns: int, rows: dict[str, int]) -> None:
            self._in_coverage(lambda connection: self._extend(connection, source, from_ns, until_ns, rows))

        self._writing()
        return Heartbeat(beat, names, since_ns)

    def _extend(
        self, connection: apsw.Connection, source: str | None, from_ns: int, until_ns: int, rows: dict[str, int]
    ) -> None:
        at_ns = now_ns()
        grown = {}
        for symbol, row_ns in rows.items():
            symbol_id, source_id = coverage.ids(connection, self._catalog, symbol, source)
            grown[symbol] = coverage.extend(connection, symbol_id, source_id, row_ns, from_ns, until_ns, at_ns)
        rows.update(grown)

    def _say(self, symbol: str, start: Time, end: Time, source: str | None, state: int) -> None:
        start_ns, end_ns = self._said_span(symbol, start, end, source)

        def say(connection: apsw.Connection) -> None:
            coverage.settle(connection, self._catalog)
            symbol_id, source_id = coverage.ids(connection, self._catalog, symbol, source)
            coverage.say(connection, symbol_id, source_id, start_ns, end_ns, state, now_ns())

        self._in_coverage(say)

    def _said_span(self, symbol: str, start: Time, end: Time, source: str | None) -> Pair:
        _check(symbol, source)
        span = self._span(start, end)
        if span[0] >= span[1]:
            raise ConfigInvalid(f"start {start!r} is not before end {end!r}", hint="a span is start <= time < end")
        return span

    def _in_coverage(self, act: Callable[[apsw.Connection], object]) -> None:
        connection = self._writing()
        with self._write_lock:
            try:
                with self._transaction(connection):
                    self._catalog.refresh(connection)
                    act(connection)
                self._catalog.load(connection)
            except apsw.Error as error:
                raise self._failed(error, "write the coverage of") from error


def _closed(session: str | Closing | Sessions | None, start_ns: int, end_ns: int) -> list[Pair]:
    if session is None:
        return []
    if isinstance(session, Closing):
        return [*session.closed(start_ns, end_ns)]
    return sessions.closed(sessions.find(session), start_ns, end_ns)


def _check(symbol: object, source: object) -> None:
    for what, text in (("symbol", symbol), ("source", source)):
        why = None if what == "source" and text is None else text_problem(what, text)
        if why is not None:
            raise ConfigInvalid(f"{what} = {text!r}: {why}")
